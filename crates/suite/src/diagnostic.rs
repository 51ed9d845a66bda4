//! What is wrong, and where: file, line, column, the line itself with a caret, and what to do about it.

use std::{
    fmt::{self, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use regex::Regex;
use unicode_width::UnicodeWidthChar;

/// No more than this many columns of a line are shown.
const SHOWN_WIDTH: usize = 140;
/// What stands left of the caret when a long line is cut.
const SHOWN_BEFORE: usize = 60;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// Worth knowing, and stops nothing.
    Note,
}

/// A text that was read, for pointing into it. Cheap to clone.
#[derive(Clone)]
pub struct SourceText {
    name: PathBuf,
    text: Arc<str>,
}

impl fmt::Debug for SourceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the text: it may hold a password.
        write!(f, "SourceText({})", self.name.display())
    }
}

impl SourceText {
    /// `name` is how the file is called towards the user.
    #[must_use]
    pub fn new(name: impl Into<PathBuf>, text: &str) -> Self {
        Self { name: name.into(), text: hide_passwords(text).into() }
    }

    /// How the file is called.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// A part of the text, passwords hidden.
    pub(crate) fn text(&self, range: Range<usize>) -> &str {
        let start = floor(&self.text, range.start);
        &self.text[start..floor(&self.text, range.end.max(start))]
    }

    /// The place of a range of bytes; ranges outside of the text are moved to its end.
    #[must_use]
    pub fn place(&self, range: Range<usize>) -> Place {
        let text = &*self.text;
        let start = floor(text, range.start);
        let end = floor(text, range.end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line_text = text[line_start..line_end].trim_end_matches('\r');
        // A range of several lines is marked to the end of its first.
        let marked = text[start..end.min(line_end).max(start)].trim_end();
        Place {
            file: self.name.clone(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            length: marked.chars().count().max(1),
            text: line_text.to_owned(),
        }
    }
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Puts asterisks over what may be a password, so that a message about its line does not tell it to a CI log. Lengths stay.
fn hide_passwords(text: &str) -> String {
    static PASSWORD: LazyLock<Option<Regex>> = LazyLock::new(|| {
        Regex::new(r#"password["']?[ \t]*=[ \t]*(?:"((?:[^"\\\n]|\\.)*)|'([^'\n]*)|([^\s,}"']+))"#).ok()
    });
    let Some(password) = &*PASSWORD else { return text.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for found in password.captures_iter(text) {
        let Some(value) = found.get(1).or_else(|| found.get(2)).or_else(|| found.get(3)) else { continue };
        out.push_str(&text[done..value.start()]);
        out.extend(std::iter::repeat_n('*', value.len()));
        done = value.end();
    }
    out.push_str(&text[done..]);
    out
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as the user calls it.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters marked, at least 1.
    pub length: usize,
    /// The whole line.
    pub text: String,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// Where, if it is in a text.
    pub place: Option<Box<Place>>,
    /// Stands beside the caret.
    pub label: String,
    /// What to do next.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error that is in no text.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, message: message.into(), place: None, label: String::new(), help: None }
    }

    /// A note that is in no text.
    #[must_use]
    pub fn note(message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(message) }
    }

    /// The same, at a place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(Box::new(place));
        self
    }

    /// The same, with words beside the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same, with what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn order(&self) -> (Severity, Option<(&Path, usize, usize)>) {
        (self.severity, self.place.as_deref().map(|p| (p.file.as_path(), p.line, p.column)))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Note => "note",
        };
        write!(f, "{severity}: {}", visible(&self.message))?;
        let mut margin = 1;
        if let Some(place) = &self.place {
            margin = place.line.to_string().len() + 1;
            let (text, before, marks) = excerpt(place);
            write!(
                f,
                "\n{:>margin$}--> {}:{}:{}",
                "",
                visible(&place.file.to_string_lossy()),
                place.line,
                place.column
            )?;
            write!(f, "\n{:margin$} |", "")?;
            write!(f, "\n{:>margin$} | {text}", place.line)?;
            write!(f, "\n{:margin$} | {:before$}{}", "", "", "^".repeat(marks))?;
            if !self.label.is_empty() {
                write!(f, " {}", visible(&self.label))?;
            }
        }
        if let Some(help) = &self.help {
            let help = help.split('\n').map(|l| visible(l).into_owned()).collect::<Vec<_>>();
            let help = help.join(&format!("\n{:margin$}         ", ""));
            write!(f, "\n{:margin$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// The line as shown, the columns before the mark, and the columns marked.
fn excerpt(place: &Place) -> (String, usize, usize) {
    let (mut before, mut marked, mut line) = (0, 0, String::new());
    let mut cells = Vec::new();
    for (i, c) in place.text.chars().enumerate() {
        let mut shown = String::new();
        show(c, &mut shown);
        let width = shown.chars().map(|c| c.width().unwrap_or(0)).sum::<usize>();
        let place_of = (i + 1).cmp(&place.column);
        cells.push((shown, width, place_of.is_lt(), place_of.is_ge() && i + 1 < place.column + place.length));
    }
    let total: usize = cells.iter().map(|c| c.1).sum();
    let ahead: usize = cells.iter().filter(|c| c.2).map(|c| c.1).sum();
    let cut = if total > SHOWN_WIDTH { ahead.saturating_sub(SHOWN_BEFORE) } else { 0 };
    if cut > 0 {
        line.push('…');
        before = 1;
    }
    let (mut at, mut used) = (0, 0);
    for (shown, width, is_before, is_marked) in cells {
        at += width;
        if at <= cut {
            continue;
        }
        if used + width > SHOWN_WIDTH {
            line.push('…');
            break;
        }
        used += width;
        line.push_str(&shown);
        before += if is_before { width } else { 0 };
        marked += if is_marked { width } else { 0 };
    }
    (line.trim_end().to_owned(), before, marked.max(1))
}

fn show(c: char, out: &mut String) {
    match c {
        '\t' => out.push_str("    "),
        c if hides(c) => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// Control characters, those that turn the direction of a line around, and those that end a line or a paragraph.
pub(crate) fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub(crate) fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(hides) {
        return text.into();
    }
    let mut out = String::new();
    text.chars().for_each(|c| show(c, &mut out));
    out.into()
}

/// Several mistakes, in the order of their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Adds all of another.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether one of them is an error.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }

    /// Errors first, each kind by place.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.0.sort_by(|a, b| a.order().cmp(&b.order()));
        self.0.dedup();
        self
    }

    /// The notes of these, if there is no error among them.
    ///
    /// # Errors
    ///
    /// All of these, sorted, if one is an error.
    pub fn into_result(self) -> Result<Self, Self> {
        let sorted = self.sorted();
        if sorted.has_errors() { Err(sorted) } else { Ok(sorted) }
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<T: IntoIterator<Item = Diagnostic>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The candidate that `word` was most likely meant to be.
pub(crate) fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let normal = |s: &str| s.to_lowercase().replace(['_', ' '], "-");
    let word = normal(word);
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&word, &normal(c)), c))
        .filter(|(distance, c)| *distance <= (word.chars().count().max(c.chars().count()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// `a, b and c`.
pub(crate) fn enumerate<T: fmt::Display>(words: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = words.into_iter().map(|w| w.to_string()).collect();
    match words.as_slice() {
        [] => "none".into(),
        [one] => one.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str, range: Range<usize>) -> String {
        let source = SourceText::new("f.toml", text);
        Diagnostic::error("wrong").at(source.place(range)).label("here").help("do this\nand that").to_string()
    }

    #[test]
    fn points_at_the_mistake() {
        insta::assert_snapshot!(at("a = 1\n\tbb = 日本 x\nc", 12..18), @r"
        error: wrong
          --> f.toml:2:7
           |
         2 |     bb = 日本 x
           |          ^^^^ here
           = help: do this
                   and that
        ");
        assert!(at("", 0..0).contains("f.toml:1:1"));
    }

    #[test]
    fn cuts_long_lines_around_the_mistake() {
        let line = format!("{}MARK{}", "x".repeat(500), "y".repeat(500));
        let shown = at(&line, 500..504);
        assert!(shown.contains("xMARKy") && shown.contains("^^^^ here"), "{shown}");
        assert!(shown.lines().all(|l| l.chars().count() < 160), "{shown}");
        let [text, mark] = [3, 4].map(|n| shown.lines().nth(n).unwrap().to_owned());
        assert_eq!(text.chars().position(|c| c == 'M'), mark.chars().position(|c| c == '^'));
    }

    #[test]
    fn never_shows_a_password_or_a_control_character() {
        for text in [
            "login = { user = 'x', password = \"sec\\\"ret\", usr = 1 }",
            "password = 'secret'",
            "password=secret",
            "\"password\" = \"secret",
        ] {
            let shown = at(text, 0..text.len());
            assert!(!shown.contains("ret"), "{shown}");
            assert!(shown.contains("***"), "{shown}");
        }
        assert!(at("password-env = \"PW\"", 0..2).contains("PW"));
        assert!(at("\u{1b}[31m\u{202e}", 0..1).contains("\\u{1b}[31m\\u{202e}"));
    }

    #[test]
    fn suggests_what_was_meant() {
        let keys = ["memory", "cpus", "fail-fast", "image"];
        assert_eq!(suggest("memroy", keys), Some("memory"));
        assert_eq!(suggest("fail_fast", keys), Some("fail-fast"));
        assert_eq!(suggest("cpu", keys), Some("cpus"));
        assert_eq!(suggest("colour", keys), None);
        assert_eq!(suggest("x", keys), None);
    }

    proptest! {
        #[test]
        fn renders_anything(text in "(?s).{0,60}", start in 0_usize..80, len in 0_usize..80) {
            let shown = at(&text, start..start + len);
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
