//! Patterns of file names, relative to a directory.

use std::path::{Component, Path};

use globset::{Glob, GlobBuilder, GlobMatcher};

/// A pattern ready for use.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
    /// The leading directories that have no wildcard in them.
    base: String,
    /// Whether names that begin with a dot are looked at.
    hidden: bool,
}

impl Pattern {
    /// Reads a pattern. A leading `./` makes no difference.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut plain = text;
        while let Some(rest) = plain.strip_prefix("./") {
            plain = rest.trim_start_matches('/');
        }
        let matcher = build(plain)?.compile_matcher();
        let wild = plain.find(['*', '?', '[', '{', '\\']).unwrap_or(plain.len());
        let base = plain[..wild].rfind('/').map_or("", |i| &plain[..i]);
        let hidden = plain.starts_with('.') || plain.contains("/.") || plain.contains("{.") || plain.contains(",.");
        Ok(Self { text: text.to_owned(), matcher, base: base.to_owned(), hidden })
    }

    /// As typed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The leading directories that have no wildcard in them.
    #[must_use]
    pub fn base(&self) -> &Path {
        Path::new(&self.base)
    }

    /// Whether it looks at names that begin with a dot.
    #[must_use]
    pub fn hidden(&self) -> bool {
        self.hidden
    }

    /// How many levels below its base it can match; none for any number, which is what `**` is for.
    #[must_use]
    pub fn depth(&self) -> Option<usize> {
        if self.text.contains("**") { None } else { Some(self.text.matches('/').count() + 1) }
    }

    /// Whether a relative path matches.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        self.matcher.is_match(path)
    }
}

fn build(text: &str) -> Result<Glob, String> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|e| format!("no usable pattern: {}", e.kind()))
}

/// Checks a pattern; the error completes "… is ".
///
/// # Errors
///
/// Says what is wrong with it.
pub fn check(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("empty".into());
    }
    if text.contains('\0') {
        return Err("no usable pattern: it has a NUL character in it".into());
    }
    if text.starts_with('/') {
        return Err("absolute; write a relative one".into());
    }
    if text.ends_with('/') {
        return Err(format!("a directory; write \"{text}*\" for the files in it"));
    }
    if Path::new(text).components().any(|c| c == Component::ParentDir) {
        return Err("not usable: it leaves its directory by `..`".into());
    }
    Pattern::new(text).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, path, expected) in [
            ("tests/*.sh", "tests/a.sh", true),
            ("./tests/*.sh", "tests/a.sh", true),
            ("tests/*.sh", "tests/x/a.sh", false),
            ("tests/**/*.sh", "tests/x/y/a.sh", true),
            ("tests/**/*.sh", "tests/a.sh", true),
            ("t{a,b}/?", "ta/x", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(Path::new(path)), expected, "{pattern} {path}");
        }
        for (pattern, base) in
            [("tests/*.sh", "tests"), ("a/b/c", "a/b"), ("*", ""), ("a/{b,c}/d", "a"), ("x/y*/z", "x")]
        {
            assert_eq!(Pattern::new(pattern).unwrap().base(), Path::new(base), "{pattern}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for wrong in ["", " ", "/etc/*", "../x", "a/../b", "a/", "[a", "{a", "a\0"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
