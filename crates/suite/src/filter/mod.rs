//! Which tests: the filter language.
//!
//! ```text
//! filter    = term { "or" term }            also |
//! term      = factor { "and" factor }       also &
//! factor    = "not" factor                  also !
//!           | "(" filter ")"
//!           | FIELD "(" matcher ")" | "all()" | "none()"
//!           | WORD                          the same as id(WORD)
//! FIELD     = id | name | suite | guest | tag
//! matcher   = "/" REGEX "/" | "=" EXACT | TEXT
//! ```
//!
//! `id` looks at `suite/test@guest` and at the path of the test file, `name` at the test's name within its suite. A plain text is
//! looked for anywhere in an `id` and a `name`; of a `suite`, `guest` or `tag` it is the whole, with `*` and `?` as in a shell.
//! A backslash takes its meaning from `(`, `)`, `/`, `=`, a space and itself.

mod parse;
mod text;

use std::{collections::BTreeSet, fmt, str::FromStr};

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

use crate::diagnostic::{Diagnostic, SourceText};

/// A filter as parsed; [`fmt::Display`] writes it so that it parses to the same again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Every test.
    All,
    /// No test.
    None,
    /// Where this holds.
    Is(Field, Matcher),
    /// Where this does not hold.
    Not(Box<Filter>),
    /// Where all hold; at least two, none of them an `And`.
    And(Vec<Filter>),
    /// Where one holds; at least two, none of them an `Or`.
    Or(Vec<Filter>),
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `suite/test@guest`, or the path of the test file.
    Id,
    /// The test's name within its suite.
    Name,
    /// The suite's name.
    Suite,
    /// The guest's name.
    Guest,
    /// One of the test's tags.
    Tag,
}

impl Field {
    /// Every field with its word.
    pub const ALL: [(&'static str, Self); 5] =
        [("id", Self::Id), ("name", Self::Name), ("suite", Self::Suite), ("guest", Self::Guest), ("tag", Self::Tag)];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("id", |(word, _)| word)
    }
}

/// How it is looked at.
#[derive(Clone, Debug)]
pub enum Matcher {
    /// Anywhere in it.
    Contains(String),
    /// The whole of it.
    Exact(String),
    /// The whole of it, with `*`, `?` and `[…]`.
    Glob(String, GlobMatcher),
    /// Anywhere in it, unless it has anchors.
    Regex(Regex),
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contains(a), Self::Contains(b))
            | (Self::Exact(a), Self::Exact(b))
            | (Self::Glob(a, _), Self::Glob(b, _)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for Matcher {}

impl Matcher {
    /// Reads a glob.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn glob(text: &str) -> Result<Self, String> {
        let glob = GlobBuilder::new(text).backslash_escape(true).build().map_err(|e| e.kind().to_string())?;
        Ok(Self::Glob(text.to_owned(), glob.compile_matcher()))
    }

    /// Reads a regular expression.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn regex(text: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(text).size_limit(1 << 20).build().map_err(|e| match e {
            regex::Error::CompiledTooBig(_) => "it is too big".to_owned(),
            other => other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        })?;
        Ok(Self::Regex(regex))
    }

    /// Whether `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Contains(part) => text.contains(part.as_str()),
            Self::Exact(whole) => text == whole,
            Self::Glob(_, glob) => glob.is_match(text),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// `suite/test@guest`.
    pub id: &'a str,
    /// The test file, relative to `belljar.toml`.
    pub path: &'a str,
    /// The test's name within its suite.
    pub name: &'a str,
    /// The suite's name.
    pub suite: &'a str,
    /// The guest's name.
    pub guest: &'a str,
    /// The guest with several kernels that it came of.
    pub family: Option<&'a str>,
    /// The test's tags.
    pub tags: &'a BTreeSet<String>,
    /// Whether it holds tests whose names are not known yet.
    pub to_be_listed: bool,
}

/// The answer of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It does not match.
    No,
    /// It depends on names that are not known yet.
    Depends,
    /// It matches.
    Yes,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Filter {
    /// Where all of `parts` hold.
    #[must_use]
    pub fn and(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::And(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        if flat.len() == 1 {
            flat.remove(0)
        } else if flat.is_empty() {
            Self::All
        } else {
            Self::And(flat)
        }
    }

    /// Where one of `parts` holds.
    #[must_use]
    pub fn or(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::Or(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        if flat.len() == 1 {
            flat.remove(0)
        } else if flat.is_empty() {
            Self::None
        } else {
            Self::Or(flat)
        }
    }

    /// The filter of several arguments on a command line: one of them must match. Without any, all tests do.
    ///
    /// # Errors
    ///
    /// The first mistake.
    pub fn of_arguments<S: AsRef<str>>(arguments: &[S]) -> Result<Self, FilterError> {
        if arguments.is_empty() {
            return Ok(Self::All);
        }
        Ok(Self::or(arguments.iter().map(|a| a.as_ref().parse()).collect::<Result<Vec<_>, _>>()?))
    }

    /// Whether `subject` matches.
    #[must_use]
    pub fn answer(&self, subject: &Subject<'_>) -> Answer {
        match self {
            Self::All => Answer::Yes,
            Self::None => Answer::No,
            Self::Is(field, matcher) => is(*field, matcher, subject),
            Self::Not(inner) => match inner.answer(subject) {
                Answer::No => Answer::Yes,
                Answer::Depends => Answer::Depends,
                Answer::Yes => Answer::No,
            },
            Self::And(parts) => fold(parts, subject, Answer::Yes, Answer::No),
            Self::Or(parts) => fold(parts, subject, Answer::No, Answer::Yes),
        }
    }

    /// The words that name a suite, a guest or a tag in full, for telling those that there are none of.
    #[must_use]
    pub fn names(&self) -> Vec<(Field, &str)> {
        match self {
            Self::All | Self::None => Vec::new(),
            Self::Is(field @ (Field::Suite | Field::Guest | Field::Tag), Matcher::Exact(text)) => vec![(*field, text)],
            Self::Is(field @ (Field::Suite | Field::Guest | Field::Tag), Matcher::Glob(text, _))
                if !text.contains(['*', '?', '[', '{', '\\']) =>
            {
                vec![(*field, text)]
            }
            Self::Is(..) => Vec::new(),
            Self::Not(inner) => inner.names(),
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::names).collect(),
        }
    }
}

fn fold(parts: &[Filter], subject: &Subject<'_>, neutral: Answer, decisive: Answer) -> Answer {
    let mut answer = neutral;
    for part in parts {
        match part.answer(subject) {
            a if a == decisive => return a,
            Answer::Depends => answer = Answer::Depends,
            _ => {}
        }
    }
    answer
}

fn is(field: Field, matcher: &Matcher, subject: &Subject<'_>) -> Answer {
    let matched = match field {
        Field::Id => matcher.matches(subject.id) || matcher.matches(subject.path),
        Field::Name => matcher.matches(subject.name),
        Field::Suite => matcher.matches(subject.suite),
        Field::Guest => matcher.matches(subject.guest) || subject.family.is_some_and(|name| matcher.matches(name)),
        Field::Tag => subject.tags.iter().any(|tag| matcher.matches(tag)),
    };
    match (field, matcher) {
        // What is part of the file's name is part of each name of a test in it.
        (Field::Id | Field::Name, Matcher::Contains(_)) if subject.to_be_listed && matched => Answer::Yes,
        (Field::Id | Field::Name, Matcher::Exact(text)) if subject.to_be_listed => {
            if matched || is_of_case(field, text, subject) { Answer::Depends } else { Answer::No }
        }
        (Field::Id | Field::Name, _) if subject.to_be_listed => Answer::Depends,
        _ => matched.into(),
    }
}

/// Whether this can be the id or the name of a test in that file: `suite/FILE::TEST@guest`, `FILE::TEST`.
fn is_of_case(field: Field, text: &str, subject: &Subject<'_>) -> bool {
    let (file, end) = match field {
        Field::Id => subject.id.split_at(subject.id.rfind('@').unwrap_or(subject.id.len())),
        _ => (subject.name, ""),
    };
    text.strip_prefix(file).is_some_and(|rest| rest.starts_with("::") && rest.ends_with(end))
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        parse::parse(text)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::None => f.write_str("none()"),
            Self::Is(field, matcher) => text::write_is(f, *field, matcher),
            Self::Not(inner) => match &**inner {
                Self::And(_) | Self::Or(_) => write!(f, "not ({inner})"),
                _ => write!(f, "not {inner}"),
            },
            Self::And(parts) | Self::Or(parts) => {
                let word = if matches!(self, Self::And(_)) { " and " } else { " or " };
                for (i, part) in parts.iter().enumerate() {
                    f.write_str(if i > 0 { word } else { "" })?;
                    match part {
                        Self::And(_) | Self::Or(_) => write!(f, "({part})")?,
                        _ => write!(f, "{part}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// What is wrong with a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// The whole filter.
    pub filter: String,
    /// Bytes of it that are wrong.
    pub span: std::ops::Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub help: Option<String>,
}

impl FilterError {
    /// The same as a diagnostic.
    #[must_use]
    pub fn diagnostic(&self) -> Diagnostic {
        let place = SourceText::new("filter", &self.filter).place(self.span.clone());
        let diagnostic = Diagnostic::error(&self.message).at(place);
        match &self.help {
            Some(help) => diagnostic.help(help),
            None => diagnostic,
        }
    }
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.diagnostic())
    }
}

impl std::error::Error for FilterError {}

#[cfg(test)]
mod tests;
