//! Parsing filters.

use std::ops::Range;

use super::{Field, Filter, FilterError, Matcher, text::ends_word};
use crate::diagnostic::{enumerate, suggest};

/// Nesting beyond this is refused, for the parser calls itself.
const DEPTH: usize = 64;
/// A longer filter is refused.
const LENGTH: usize = 64 * 1024;

pub(super) fn parse(text: &str) -> Result<Filter, FilterError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    if text.len() > LENGTH {
        return Err(parser.error(0..1, "the filter is longer than 64 KiB"));
    }
    parser.space();
    if parser.rest().is_empty() {
        return Err(parser.error(0..0, "the filter is empty").help("write all() for all tests"));
    }
    let filter = parser.alternatives()?;
    match parser.rest().chars().next() {
        None => Ok(filter),
        Some(')') => Err(parser.error(parser.at..parser.at + 1, "this `)` closes nothing")),
        Some(_) => {
            let end = parser.word_end().max(parser.at + 1);
            Err(parser
                .error(parser.at..end, "expected `and`, `or` or the end of the filter here")
                .help("`a and b` matches what has both, `a or b` what has one of them"))
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl FilterError {
    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl<'a> Parser<'a> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> FilterError {
        FilterError { filter: self.text.to_owned(), span, message: message.into(), help: None }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Where the word that begins here ends.
    fn word_end(&self) -> usize {
        self.at + self.rest().find(ends_word).unwrap_or(self.rest().len())
    }

    /// Takes an operator: a symbol, or a word that stands alone.
    fn take(&mut self, symbol: char, word: &str) -> bool {
        let end = self.word_end();
        let length = match self.rest().strip_prefix(symbol) {
            // As in shells and C.
            Some(rest) if symbol != '!' && rest.starts_with(symbol) => 2,
            Some(_) => 1,
            None if self.text.get(self.at..end) == Some(word) => word.len(),
            None => return false,
        };
        self.at += length;
        self.space();
        true
    }

    fn alternatives(&mut self) -> Result<Filter, FilterError> {
        let mut parts = vec![self.conjunction()?];
        while self.take('|', "or") {
            parts.push(self.conjunction()?);
        }
        Ok(Filter::or(parts))
    }

    fn conjunction(&mut self) -> Result<Filter, FilterError> {
        let mut parts = vec![self.factor()?];
        while self.take('&', "and") {
            parts.push(self.factor()?);
        }
        Ok(Filter::and(parts))
    }

    fn factor(&mut self) -> Result<Filter, FilterError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error(self.at..self.at + 1, format!("the filter is nested more than {DEPTH} deep")));
        }
        let start = self.at;
        let filter = if self.take('!', "not") {
            Filter::Not(Box::new(self.factor()?))
        } else if self.rest().starts_with('(') {
            self.at += 1;
            self.space();
            let inner = self.alternatives()?;
            if !self.rest().starts_with(')') {
                return Err(self.error(start..start + 1, "this `(` is never closed"));
            }
            self.at += 1;
            inner
        } else {
            self.word()?
        };
        self.space();
        self.depth -= 1;
        Ok(filter)
    }

    fn word(&mut self) -> Result<Filter, FilterError> {
        let start = self.at;
        let end = self.word_end();
        let word = &self.text[start..end];
        if word.is_empty() {
            let found = match self.rest().chars().next() {
                None => "the filter ends".to_owned(),
                Some(c) => format!("there is `{c}`"),
            };
            return Err(self
                .error(start..start + 1, format!("{found} where a test should be named"))
                .help("write a part of a name, or one of id(…), name(…), suite(…), guest(…), tag(…), all(), none()"));
        }
        if matches!(word, "and" | "or" | "not") {
            return Err(self
                .error(start..end, format!("`{word}` stands where a test should be named"))
                .help(format!("write id({word}) to look for the word itself")));
        }
        self.at = end;
        if self.rest().starts_with('(') {
            return self.predicate(start..end);
        }
        let word = word.strip_prefix("./").filter(|w| !w.is_empty()).unwrap_or(word);
        Ok(Filter::Is(Field::Id, Matcher::Contains(word.to_owned())))
    }

    /// What follows a word and an open parenthesis.
    fn predicate(&mut self, word: Range<usize>) -> Result<Filter, FilterError> {
        let open = self.at;
        let name = &self.text[word.clone()];
        self.at += 1;
        let constant = match name {
            "all" => Some(Filter::All),
            "none" => Some(Filter::None),
            _ => None,
        };
        if let Some(constant) = constant {
            self.space();
            if !self.rest().starts_with(')') {
                return Err(self.error(open..open + 1, format!("`{name}()` has nothing between its parentheses")));
            }
            self.at += 1;
            return Ok(constant);
        }
        let Some((_, field)) = Field::ALL.iter().find(|(f, _)| *f == name) else {
            let words = Field::ALL.iter().map(|(w, _)| *w).chain(["all", "none"]);
            let meant = suggest(name, words.clone());
            let help = match meant {
                Some(meant) => format!("did you mean `{meant}(…)`?"),
                None => format!("there are {}", enumerate(words.map(|w| format!("{w}()")))),
            };
            return Err(self.error(word, format!("there is no `{name}(…)` in filters")).help(help));
        };
        self.space();
        let matcher = if self.rest().starts_with('/') { self.regex()? } else { self.plain(*field, open)? };
        self.space();
        if !self.rest().starts_with(')') {
            return Err(match self.rest().is_empty() {
                true => self.error(open..open + 1, "this `(` is never closed"),
                false => self.error(self.at..self.at + 1, "expected `)` here"),
            });
        }
        self.at += 1;
        Ok(Filter::Is(*field, matcher))
    }

    fn regex(&mut self) -> Result<Matcher, FilterError> {
        let start = self.at;
        self.at += 1;
        let mut source = String::new();
        let mut chars = self.rest().char_indices();
        let end = loop {
            match chars.next() {
                None => {
                    return Err(self
                        .error(start..start + 1, "this regular expression is never closed")
                        .help("it ends with a `/`; within it, write `\\/`"));
                }
                Some((i, '/')) => break self.at + i + 1,
                Some((_, '\\')) => match chars.next() {
                    Some((_, '/')) => source.push('/'),
                    Some((_, c)) => source.extend(['\\', c]),
                    None => source.push('\\'),
                },
                Some((_, c)) => source.push(c),
            }
        };
        self.at = end;
        Matcher::regex(&source).map_err(|why| self.error(start..end, format!("not a regular expression: {why}")))
    }

    fn plain(&mut self, field: Field, open: usize) -> Result<Matcher, FilterError> {
        let start = self.at;
        let exact = self.rest().starts_with('=');
        self.at += usize::from(exact);
        let mut text = String::new();
        // Bytes of `text` that a backslash keeps from being trimmed.
        let mut kept = 0;
        let mut chars = self.rest().char_indices().peekable();
        let end = loop {
            match chars.next() {
                None => return Err(self.error(open..open + 1, "this `(` is never closed")),
                Some((i, ')')) => break self.at + i,
                Some((_, '\\')) => {
                    match chars.next_if(|(_, c)| matches!(c, '\\' | '(' | ')' | '/' | '=') || c.is_whitespace()) {
                        Some((_, c)) => {
                            text.push(c);
                            kept = text.len();
                        }
                        None => text.push('\\'),
                    }
                }
                Some((_, c)) => text.push(c),
            }
        };
        self.at = end;
        text.truncate(kept.max(text.trim_end().len()));
        if text.is_empty() {
            return Err(self
                .error(open..end + 1, "there is nothing to look for between the parentheses")
                .help("write all() for all tests"));
        }
        match (exact, field) {
            (true, _) => Ok(Matcher::Exact(text)),
            (false, Field::Id | Field::Name) => Ok(Matcher::Contains(text)),
            (false, _) => Matcher::glob(&text).map_err(|why| self.error(start..end, format!("not a pattern: {why}"))),
        }
    }
}
