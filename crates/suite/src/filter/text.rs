//! Writing filters so that they parse again.

use std::fmt::{self, Write as _};

use super::{Field, Matcher};

/// Whether a character cannot stand in a bare word.
pub(super) fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '(' | ')' | '&' | '|')
}

/// Whether a text can stand as a bare word.
fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['!', '/', '='])
        && !text.starts_with("./")
        && !text.chars().any(|c| ends_word(c) || c == '\\' || c.is_control())
        && !matches!(text, "and" | "or" | "not")
}

pub(super) fn write_is(f: &mut fmt::Formatter<'_>, field: Field, matcher: &Matcher) -> fmt::Result {
    if let (Field::Id, Matcher::Contains(text)) = (field, matcher)
        && is_bare(text)
    {
        return f.write_str(text);
    }
    write!(f, "{}(", field.word())?;
    match matcher {
        Matcher::Contains(text) | Matcher::Glob(text, _) => escaped(f, text, true)?,
        Matcher::Exact(text) => {
            f.write_char('=')?;
            escaped(f, text, false)?;
        }
        Matcher::Regex(regex) => {
            f.write_char('/')?;
            let mut chars = regex.as_str().chars();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => {
                        f.write_char(c)?;
                        chars.next().map_or(Ok(()), |next| f.write_char(next))?;
                    }
                    '/' => f.write_str("\\/")?,
                    c => f.write_char(c)?,
                }
            }
            f.write_char('/')?;
        }
    }
    f.write_char(')')
}

/// `first`: whether the text stands where a `/` or a `=` would say what kind of matcher it is.
fn escaped(f: &mut fmt::Formatter<'_>, text: &str, first: bool) -> fmt::Result {
    let last = text.chars().count().saturating_sub(1);
    for (i, c) in text.chars().enumerate() {
        let special = matches!(c, '\\' | '(' | ')')
            || (first && i == 0 && matches!(c, '/' | '='))
            || (c.is_whitespace() && (i == 0 || i == last));
        if special {
            f.write_char('\\')?;
        }
        f.write_char(c)?;
    }
    Ok(())
}
