//! The script: what the pretended guest does.
//!
//! ```text
//! # Comments start with a hash.
//! [options]                  # how the pretended QEMU itself behaves
//! powerdown ignore
//!
//! [serial]                   # one track for each channel, all run at once
//! send "SeaBIOS\r\n"
//! login user=root password=secret prompt="\e[32m#\e[0m "
//! wait oops 5000
//! send "\r\nKernel panic - not syncing: Fatal exception\r\n"
//!
//! [agent]
//! wait never
//! ```
//!
//! A line is a verb, then words, each bare, `"quoted"` with C's escapes (and `\e`), or `key=word`.
//! See `README.md` beside this crate for every section, verb and option.

use std::fmt;

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The part before `=`, where there was one outside quotes.
    pub(crate) key: Option<String>,
    /// The word itself, unescaped.
    pub(crate) value: Vec<u8>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Line number, from 1.
    pub(crate) line: usize,
    /// First word.
    pub(crate) verb: String,
    /// The other words.
    pub(crate) words: Vec<Word>,
}

/// The lines of one `[section]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    /// What stands between the brackets.
    pub(crate) name: String,
    /// Its lines, in order.
    pub(crate) steps: Vec<Step>,
}

/// A whole script.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    /// In the order of the file; a name stands once.
    pub(crate) sections: Vec<Section>,
}

/// A mistake in a script.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ScriptError {
    /// Line number, from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "script line {}: {}", self.line, self.what)
    }
}

/// Names a section may have.
const SECTIONS: [&str; 14] = [
    "options",
    "start",
    "probe",
    "machine",
    "serial",
    "serial1",
    "agent",
    "direct-serial",
    "direct-agent",
    "grub-serial",
    "grub-agent",
    "clone",
    "clone-serial",
    "clone-agent",
];

impl Script {
    /// Reads a script.
    pub(crate) fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut script = Self::default();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            let fail = |what: String| ScriptError { line, what };
            let trimmed = raw.trim();
            if let Some(rest) = trimmed.strip_prefix('[') {
                let name = rest.split(']').next().unwrap_or_default().trim().to_owned();
                if !SECTIONS.contains(&name.as_str()) {
                    return Err(fail(format!("no section is called [{name}]; there are {}", SECTIONS.join(", "))));
                }
                if script.section(&name).is_some() {
                    return Err(fail(format!("section [{name}] stands twice")));
                }
                script.sections.push(Section { name, steps: Vec::new() });
                continue;
            }
            let mut words = split(trimmed).map_err(fail)?.into_iter();
            let Some(first) = words.next() else { continue };
            if first.key.is_some() {
                return Err(fail("a line starts with a verb, not with key=value".into()));
            }
            let verb = String::from_utf8_lossy(&first.value).into_owned();
            let section = script.sections.last_mut().ok_or_else(|| fail("a line outside any [section]".into()))?;
            section.steps.push(Step { line, verb, words: words.collect() });
        }
        Ok(script)
    }

    /// The lines of a section, if it is there.
    pub(crate) fn section(&self, name: &str) -> Option<&[Step]> {
        let section = self.sections.iter().find(|s| s.name == name)?;
        Some(&section.steps)
    }
}

impl Step {
    /// An error at this line.
    pub(crate) fn fail(&self, what: impl Into<String>) -> ScriptError {
        ScriptError { line: self.line, what: what.into() }
    }

    /// The n-th word without a key.
    pub(crate) fn word(&self, n: usize) -> Option<&[u8]> {
        let mut plain = self.words.iter().filter(|w| w.key.is_none());
        plain.nth(n).map(|w| w.value.as_slice())
    }

    /// The n-th word without a key, which must be there.
    pub(crate) fn need(&self, n: usize) -> Result<&[u8], ScriptError> {
        self.word(n).ok_or_else(|| self.fail(format!("`{}` wants {} word(s)", self.verb, n + 1)))
    }

    /// The same as text.
    pub(crate) fn need_text(&self, n: usize) -> Result<String, ScriptError> {
        Ok(String::from_utf8_lossy(self.need(n)?).into_owned())
    }

    /// The n-th word as a number, if there.
    pub(crate) fn number(&self, n: usize) -> Result<Option<u64>, ScriptError> {
        match self.word(n) {
            None => Ok(None),
            Some(w) => {
                Ok(Some(size(w).ok_or_else(|| self.fail(format!("{:?} is not a number", String::from_utf8_lossy(w))))?))
            }
        }
    }

    /// The value of `key=`.
    pub(crate) fn bytes(&self, key: &str) -> Option<&[u8]> {
        let mut keyed = self.words.iter().filter(|w| w.key.as_deref() == Some(key));
        keyed.next().map(|w| w.value.as_slice())
    }

    /// The value of `key=` as text.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        self.bytes(key).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// The value of `key=` as a number, with `k`, `M`, `G` for powers of 1024.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u64>, ScriptError> {
        match self.bytes(key) {
            None => Ok(None),
            Some(v) => Ok(Some(
                size(v).ok_or_else(|| self.fail(format!("{key}={:?} is not a number", String::from_utf8_lossy(v))))?,
            )),
        }
    }

    /// The value of `key=` as on or off.
    pub(crate) fn switch(&self, key: &str, default: bool) -> Result<bool, ScriptError> {
        match self.bytes(key) {
            None => Ok(default),
            Some(b"on") => Ok(true),
            Some(b"off") => Ok(false),
            Some(_) => Err(self.fail(format!("{key}= takes on or off"))),
        }
    }

    /// Fails on a key that the verb does not know.
    pub(crate) fn only(&self, keys: &[&str]) -> Result<(), ScriptError> {
        for word in &self.words {
            if let Some(key) = &word.key
                && !keys.contains(&key.as_str())
            {
                return Err(self.fail(format!("`{}` has no option {key}=; it has {}", self.verb, keys.join(", "))));
            }
        }
        Ok(())
    }
}

/// `123`, `64k`, `16M`, `1G`.
fn size(word: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(word).ok()?;
    let text = text.trim_end_matches("iB");
    let (digits, shift) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// Splits a line into words.
fn split(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut chars = line.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some(_) => {}
        }
        let mut key = None;
        let mut value = Vec::new();
        let mut bare = true;
        while let Some(&c) = chars.peek() {
            match c {
                c if c.is_whitespace() => break,
                '"' => {
                    chars.next();
                    bare = false;
                    quoted(&mut chars, &mut value)?;
                }
                '=' if bare && key.is_none() => {
                    chars.next();
                    let name = String::from_utf8_lossy(&value).into_owned();
                    if name.is_empty() {
                        return Err("a `=` without a key before it".into());
                    }
                    key = Some(name);
                    value.clear();
                }
                c => {
                    chars.next();
                    value.extend(c.to_string().as_bytes());
                }
            }
        }
        words.push(Word { key, value });
    }
}

/// Reads to the closing quote.
fn quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, value: &mut Vec<u8>) -> Result<(), String> {
    loop {
        match chars.next().ok_or("a quote is not closed")? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or("a backslash at the end")? {
                'r' => value.push(b'\r'),
                'n' => value.push(b'\n'),
                't' => value.push(b'\t'),
                'a' => value.push(7),
                'b' => value.push(8),
                'e' => value.push(0x1b),
                '0' => value.push(0),
                '\\' => value.push(b'\\'),
                '"' => value.push(b'"'),
                'x' => {
                    let hex: String = [chars.next(), chars.next()].into_iter().flatten().collect();
                    let byte = u8::from_str_radix(&hex, 16).map_err(|_e| format!("\\x{hex} is not a byte"))?;
                    value.push(byte);
                }
                c => return Err(format!("no escape is called \\{c}")),
            },
            c => value.extend(c.to_string().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Step {
        let script = Script::parse(&format!("[serial]\n{line}\n")).expect("parses");
        script.section("serial").expect("section")[0].clone()
    }

    #[test]
    fn words_quotes_and_keys() {
        let step = one(r#"shell prompt="\e[1m# \x07" echo=off plain "a b" # comment"#);
        assert_eq!(step.verb, "shell");
        assert_eq!(step.bytes("prompt"), Some(&b"\x1b[1m# \x07"[..]));
        assert_eq!(step.word(0), Some(&b"plain"[..]));
        assert_eq!(step.word(1), Some(&b"a b"[..]));
        assert_eq!(step.word(2), None);
        assert!(!step.switch("echo", true).expect("switch"));
    }

    #[test]
    fn an_equals_sign_in_quotes_is_text() {
        assert_eq!(one(r#"send "a=b""#).word(0), Some(&b"a=b"[..]));
    }

    #[test]
    fn sizes() {
        assert_eq!(one("flood 10MiB").number(0), Ok(Some(10 << 20)));
        assert_eq!(one("flood 3k").number(0), Ok(Some(3 << 10)));
        assert_eq!(one("sleep 25").number(0), Ok(Some(25)));
        assert!(one("sleep soon").number(0).is_err());
    }

    #[test]
    fn mistakes_name_their_line() {
        let line = |text: &str| Script::parse(text).expect_err("fails").line;
        assert_eq!(line("send x"), 1);
        assert_eq!(line("[serial]\n\nsend \"x"), 3);
        assert_eq!(line("[serial]\nsend \"\\q\""), 2);
        assert_eq!(line("[serial]\n[serial]"), 2);
        assert_eq!(line("[cereal]"), 1);
        assert!(one("send x=1").only(&["y"]).is_err());
    }
}
