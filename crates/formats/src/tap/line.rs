//! One line of TAP.

use std::borrow::Cow;

use super::Dialect;

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Element {
    Version,
    Plan(Plan),
    Point(Point),
    BailOut(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) count: u64,
    pub(super) skip: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) ok: bool,
    pub(super) number: Option<String>,
    pub(super) name: String,
    pub(super) directive: Directive,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Directive {
    None,
    Skip(String),
    Todo(String),
    /// KTAP's `TIMEOUT` and `ERROR`.
    Broken(String),
}

/// The indentation and the rest of a line. With `hashes`, each `# ` before an element counts as two columns, as kselftest's runner puts
/// it before a test's own output; the flag says that there was one.
pub(super) fn measure(line: &str, hashes: bool) -> (usize, &str, bool) {
    let text = line.trim_start_matches(' ');
    let indent = line.len() - text.len();
    if hashes && text.starts_with("# ") {
        let mut rest = text;
        let mut columns = indent;
        while let Some(after) = rest.strip_prefix("# ") {
            let trimmed = after.trim_start_matches(' ');
            columns += 2 + (after.len() - trimmed.len());
            rest = trimmed;
        }
        if parse(rest, Dialect::Kselftest).is_some() {
            return (columns, rest, true);
        }
    }
    (indent, text, false)
}

/// The line without colours, and with the tabs that it is indented by as four columns each.
pub(super) fn plain(line: &str) -> Cow<'_, str> {
    let mut line = Cow::Borrowed(line);
    if line.contains('\u{1b}') {
        let mut pieces = line.split("\u{1b}[");
        let mut plain = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find(|c: char| !(c.is_ascii_digit() || matches!(c, ';' | ':')));
            match end.map(|end| piece.split_at(end)) {
                Some((_, rest)) if rest.starts_with(['m', 'K']) => plain.push_str(&rest[1..]),
                _ => plain.extend(["\u{1b}[", piece]),
            }
        }
        line = Cow::Owned(plain);
    }
    let blank = line.len() - line.trim_start_matches([' ', '\t']).len();
    if line[..blank].contains('\t') {
        line = Cow::Owned(line[..blank].replace('\t', "    ") + &line[blank..]);
    }
    line
}

/// The number of failed tests that a line such as `Totals: pass:1 fail:2 xfail:0 xpass:0 skip:0 error:0` tells, without the `#` before it.
pub(super) fn failed_in_all(comment: &str) -> Option<u64> {
    let rest = comment.trim_start().strip_prefix("Totals: pass:")?;
    let counts = rest.split_whitespace().filter_map(|word| word.split_once(':'));
    let bad = counts.filter(|(what, _)| matches!(*what, "fail" | "error"));
    Some(bad.filter_map(|(_, count)| count.parse::<u64>().ok()).fold(0, u64::saturating_add))
}

/// What `text`, without indentation, is; `None` for anything else.
pub(super) fn parse(text: &str, dialect: Dialect) -> Option<Element> {
    let text = text.trim_end();
    if let Some(version) = text.strip_prefix("TAP version ").or_else(|| text.strip_prefix("KTAP version ")) {
        return version.trim().parse::<u32>().ok().map(|_| Element::Version);
    }
    const BAIL_OUT: &str = "Bail out!";
    if text.get(..BAIL_OUT.len()).is_some_and(|start| start.eq_ignore_ascii_case(BAIL_OUT)) {
        let why = &text[BAIL_OUT.len()..];
        return Some(Element::BailOut(why.trim().to_owned()));
    }
    if let Some(rest) = text.strip_prefix("1..") {
        return plan(rest).map(Element::Plan);
    }
    let (ok, rest) = match text.strip_prefix("not ok") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok")?),
    };
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    Some(Element::Point(point(ok, rest.trim_start(), dialect)))
}

fn plan(rest: &str) -> Option<Plan> {
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let count = rest[..digits].parse().ok()?;
    let after = rest[digits..].trim_start();
    if after.is_empty() {
        return Some(Plan { count, skip: None });
    }
    let comment = after.strip_prefix('#')?.trim_start();
    let skip = word(comment, "skip").map(
        |(_, why)| {
            if why.is_empty() { "the plan is 1..0".to_owned() } else { why.to_owned() }
        },
    );
    Some(Plan { count, skip })
}

fn point(ok: bool, rest: &str, dialect: Dialect) -> Point {
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let whole = rest[digits..].is_empty() || rest[digits..].starts_with([' ', '\t']);
    let (number, rest) =
        if digits > 0 && whole { (Some(rest[..digits].to_owned()), rest[digits..].trim_start()) } else { (None, rest) };
    let rest = match rest.strip_prefix('-') {
        Some(after) if after.is_empty() || after.starts_with([' ', '\t']) => after.trim_start(),
        _ => rest,
    };
    let (name, directive) = split_directive(rest, dialect);
    Point { ok, number, name: unescape(name.trim()), directive }
}

/// Parts a description from the directive behind its last unescaped `#`.
fn split_directive(text: &str, dialect: Dialect) -> (&str, Directive) {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('#') {
        // `#` must begin the text or stand after a space, and not be escaped.
        if at > 0 && !matches!(bytes[at - 1], b' ' | b'\t') {
            continue;
        }
        let comment = text[at + 1..].trim_start();
        if let Some((tail, why)) = word(comment, "skip")
            && matches!(tail.to_ascii_lowercase().as_str(), "" | "ped" | "ping")
        {
            return (&text[..at], Directive::Skip(why.to_owned()));
        }
        let exact =
            |which: &str| word(comment, which).filter(|(tail, _)| tail.is_empty()).map(|(_, why)| why.to_owned());
        if let Some(why) = exact("todo") {
            return (&text[..at], Directive::Todo(why));
        }
        if dialect == Dialect::Kselftest {
            if let Some(why) = exact("xfail") {
                return (&text[..at], Directive::Todo(why));
            }
            for broken in ["TIMEOUT", "ERROR"] {
                if exact(broken).is_some() {
                    return (&text[..at], Directive::Broken(comment.to_owned()));
                }
            }
        }
    }
    (text, Directive::None)
}

/// If `text` begins with `which` in any case: the letters that follow it directly, and the text behind them.
fn word<'a>(text: &'a str, which: &str) -> Option<(&'a str, &'a str)> {
    let head = text.get(..which.len())?;
    if !head.eq_ignore_ascii_case(which) {
        return None;
    }
    let rest = &text[which.len()..];
    let tail = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some((&rest[..tail], rest[tail..].trim_start_matches([':', ' ', '\t', '-']).trim_end()))
}

/// TAP 14 writes `\#` for `#` and `\\` for `\`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(next @ ('#' | '\\'))) => {
                plain.push(*next);
                chars.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}
