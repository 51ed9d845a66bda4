//! Reading TOML with all mistakes told at once.
//!
//! serde stops at the first mistake and knows no places, so the document is walked by hand: [`Value`] reads one kind of value
//! and pushes what is wrong into [`Walk`]; the `table!` macro makes from one list of keys the struct, its reader, the check for
//! unknown keys and the JSON Schema, so that they cannot drift apart.

mod scalar;
mod table;

use std::ops::Range;

use serde_json::{Value as Json, json};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub use self::scalar::{
    Delay, DiskWwn, FilePath, GuestPath, Int, Label, List, Map, Memory, MountAt, Name, OneOrMany, OrderSign, OrderText,
    OrderTime, Sectors, Serial, Size, Text, TimeLimit, User, VarName,
};
pub(crate) use self::{
    scalar::{name, read_text},
    table::{table, word_value},
};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, SourceText, enumerate, suggest};

/// The state of reading one text.
#[derive(Debug)]
pub struct Walk {
    source: SourceText,
    /// Where in the source the parsed text begins.
    offset: usize,
    diagnostics: Diagnostics,
    /// Lines that could not be parsed; what is read of them means nothing.
    broken: Vec<Range<usize>>,
    /// The key whose value is being read.
    pub(crate) key: String,
}

impl Walk {
    /// Parses `text`, which begins at byte `offset` of `source`, and reads it as `T`.
    pub fn read<T: Value>(source: &SourceText, offset: usize, text: &str) -> (Option<T>, Self) {
        let mut walk = Self {
            source: source.clone(),
            offset,
            diagnostics: Diagnostics::default(),
            broken: Vec::new(),
            key: String::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let span = error.span().unwrap_or(0..0);
            let message = match error.message().trim() {
                "duplicate key" => "this key stands here for the second time".to_owned(),
                other => other.replace('\n', ", "),
            };
            walk.error(span, message);
        }
        walk.broken =
            walk.diagnostics.iter().filter_map(|d| Some(broken_lines(text, d.place.as_ref()?.line))).collect();
        let document = Spanned::new(document.span(), DeValue::Table(document.into_inner()));
        let value = T::read(&document, &mut walk);
        (value, walk)
    }

    /// The place of a range of the parsed text.
    #[must_use]
    pub fn place(&self, span: Range<usize>) -> Place {
        self.source.place(self.offset + span.start..self.offset + span.end)
    }

    /// Whether an array as typed has no items, be they right or wrong.
    pub(crate) fn is_blank_array(&self, span: Range<usize>) -> bool {
        let text = self.source.text(self.offset + span.start..self.offset + span.end);
        let inner = text.trim().strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        inner.is_some_and(|t| t.lines().all(|l| l.trim().is_empty() || l.trim().starts_with('#')))
    }

    /// Says what is wrong at a place.
    pub fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        let diagnostic = Diagnostic::error(message).at(self.place(span));
        self.push(diagnostic);
    }

    /// All that is wrong.
    #[must_use]
    pub fn finish(self) -> Diagnostics {
        self.diagnostics
    }

    /// Adds a mistake.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let in_broken =
            |d: &Diagnostic| d.place.as_ref().is_some_and(|p| self.broken.iter().any(|b| b.contains(&p.line)));
        if !in_broken(&diagnostic) {
            self.diagnostics.push(diagnostic);
        }
    }

    /// Whether the text is TOML at all. If not, what is missing and what leads nowhere may only be in a broken line.
    #[must_use]
    pub fn parsed(&self) -> bool {
        self.broken.is_empty()
    }

    /// The key whose value is being read, in backquotes.
    fn subject(&self) -> String {
        if self.key.is_empty() { "this".into() } else { format!("`{}`", self.key) }
    }

    /// Says that a value is of the wrong type.
    pub(crate) fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = type_name(value.get_ref());
        let diagnostic = Diagnostic::error(format!("{} must be {expected}, not {found}", self.subject()))
            .at(self.place(value.span()))
            .label(format!("this is {found}"));
        self.push(diagnostic);
    }

    /// Says that a value is of the right type and wrong still.
    fn wrong_value(&mut self, span: Range<usize>, shown: &str, why: &str) {
        let subject = self.subject();
        let shown: String = if shown.chars().count() > 60 {
            format!("{}…", shown.chars().take(60).collect::<String>())
        } else {
            shown.to_owned()
        };
        self.error(span, format!("{subject}: {shown} is {why}"));
    }

    /// Says that a key must be there, with an example of it.
    pub(crate) fn missing(&mut self, span: Range<usize>, noun: &str, key: &str, example: &str) {
        if !self.parsed() {
            return;
        }
        let diagnostic = Diagnostic::error(format!("{noun} needs the key `{key}`"))
            .at(self.place(span))
            .help(format!("such as {example}"));
        self.push(diagnostic);
    }

    pub(crate) fn unknown_key(&mut self, key: &Spanned<std::borrow::Cow<'_, str>>, keys: &[&str], noun: &str) {
        let word = key.get_ref();
        let mut diagnostic = Diagnostic::error(format!("unknown key `{word}` in {noun}")).at(self.place(key.span()));
        diagnostic = match suggest(word, keys.iter().copied()) {
            Some(meant) => diagnostic.label(format!("did you mean `{meant}`?")),
            None => match crate::schema::homes(word).as_slice() {
                [] => diagnostic.help(format!("{noun} has the keys {}", enumerate(keys))),
                homes => diagnostic.label(format!("this is a key of {}", enumerate(homes).replace(" and ", " or "))),
            },
        };
        self.push(diagnostic);
    }
}

/// Which lines mean nothing where `line` could not be parsed: all that a broken table header was for.
fn broken_lines(text: &str, line: usize) -> Range<usize> {
    let is_header = |l: &str| l.trim_start().starts_with('[');
    let mut lines = text.lines().skip(line.saturating_sub(1));
    if !lines.next().is_some_and(is_header) {
        return line..line + 1;
    }
    line..line + 1 + lines.take_while(|l| !is_header(l)).count()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A kind of value in a TOML file.
pub trait Value: Sized {
    /// What a value of this kind is, for "must be …".
    fn expected() -> String;

    /// The JSON Schema of such values.
    fn schema() -> Json;

    /// Reads one, or says in `walk` what is wrong with it. A container may be given back without its wrong parts.
    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self>;

    /// Reads one and remembers where it stood.
    fn read_spanned(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Spanned<Self>> {
        Self::read(value, walk).map(|v| Spanned::new(value.span(), v))
    }
}

/// One key of a table.
#[derive(Clone, Debug)]
pub struct Key {
    /// As typed.
    pub name: &'static str,
    /// What it means, in one line.
    pub doc: String,
    /// Its default as TOML, or in words within parentheses.
    pub default: &'static str,
    /// What its value must be.
    pub expected: String,
    /// The JSON Schema of its value.
    pub schema: Json,
}

/// A table with known keys.
pub trait Table: Value {
    /// What the table is, such as `a guest`.
    const NOUN: &'static str;

    /// All its keys, in the order of the documentation.
    fn keys() -> Vec<Key>;
}

/// The JSON Schema of a table.
pub(crate) fn table_schema<T: Table>(doc: &str) -> Json {
    let properties: serde_json::Map<String, Json> = T::keys()
        .into_iter()
        .map(|key| {
            let mut schema = key.schema;
            if let Json::Object(schema) = &mut schema {
                let words = match key.default {
                    "(must be given)" => Some(" Must be given.".to_owned()),
                    words => words.starts_with('(').then(|| format!(" Default: {}.", words.trim_matches(['(', ')']))),
                };
                schema.insert("description".into(), json!(format!("{}{}", key.doc, words.unwrap_or_default())));
                if let Some(default) = default_json(key.default) {
                    schema.insert("default".into(), default);
                }
            }
            (key.name.to_owned(), schema)
        })
        .collect();
    json!({ "type": "object", "description": doc, "additionalProperties": false, "properties": properties })
}

/// The value of a default that is written as TOML.
fn default_json(text: &str) -> Option<Json> {
    if text.starts_with('(') {
        return None;
    }
    let table: toml::Table = format!("v = {text}").parse().ok()?;
    serde_json::to_value(table.get("v")?).ok()
}

/// For "must be …".
pub(crate) fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    format!("one of {}", enumerate(words.map(|w| format!("\"{w}\""))).replace(" and ", " or "))
}

pub(crate) fn no_such_word<'a>(text: &str, words: impl Iterator<Item = &'a str> + Clone) -> String {
    let meant = suggest(text, words.clone()).map(|m| format!("; did you mean \"{m}\"?")).unwrap_or_default();
    format!("not {}{meant}", one_of(words))
}
