//! Reading an event log that may have been cut off, damaged, or written by a later version.

use std::io::{self, BufRead, Read};

use crate::event::{Event, EventKind, MAX_LINE};

/// Every kind of this version, as it stands in the log.
pub const KINDS: &[&str] = &[
    "run-started",
    "choice",
    "phase",
    "warning",
    "alarm",
    "finding",
    "mark",
    "control",
    "command-started",
    "command-ended",
    "console-tail",
    "run-ended",
    "test-run-started",
    "unit-planned",
    "unit-skipped",
    "attempt-started",
    "unit-slow",
    "output",
    "subresult",
    "attempt-files",
    "attempt-ended",
    "unit-ended",
    "guest-started",
    "guest-ready",
    "guest-ended",
    "setup-started",
    "setup-ended",
    "paused",
    "resumed",
    "stopping",
    "test-run-ended",
];

/// Kinds of earlier versions, which are read as others.
const EARLIER_KINDS: &[&str] =
    &["attempt-phase", "attempt-choice", "attempt-warning", "attempt-alarm", "attempt-console"];

/// What was wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The last line has no newline and is no event: the writer was killed while it wrote it.
    CutOff,
    /// Longer than [`MAX_LINE`].
    TooLong,
    /// Not an event of this schema.
    Unreadable(String),
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, never stored")]
pub enum Line {
    /// An event; its kind may be [`EventKind::Unknown`].
    Event(Event),
    /// Something else. Its events are lost, and with them whatever they would have said.
    Damaged {
        /// Number of the line; the first is 1.
        number: u64,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// Reads a log line by line; see [`read_log`].
#[derive(Debug)]
pub struct LogReader<R> {
    from: R,
    number: u64,
    line: Vec<u8>,
}

/// Reads the log in `from`, in memory bounded by the longest line. Ends at the end of the file; an error of reading ends it too.
pub fn read_log<R: BufRead>(from: R) -> LogReader<R> {
    LogReader { from, number: 0, line: Vec::new() }
}

impl<R: BufRead> LogReader<R> {
    fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.line.clear();
            // The newline is not counted by MAX_LINE.
            let limit = MAX_LINE as u64 + 1;
            let taken = self.from.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
            if taken == 0 {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            let whole = self.line.last() == Some(&b'\n');
            if !whole && taken as u64 == limit {
                self.skip_line()?;
                return Ok(Some(Line::Damaged { number, damage: Damage::TooLong }));
            }
            let text = self.line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            return Ok(Some(match parse(text) {
                Ok(event) => Line::Event(event),
                Err(_) if !whole => Line::Damaged { number, damage: Damage::CutOff },
                Err(why) => Line::Damaged { number, damage: Damage::Unreadable(why) },
            }));
        }
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.from.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|b| *b == b'\n');
            let used = end.map_or(buffer.len(), |at| at + 1);
            self.from.consume(used);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

impl<R: BufRead> Iterator for LogReader<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_line().transpose()
    }
}

fn parse(text: &[u8]) -> Result<Event, String> {
    let event: Event = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if let EventKind::Unknown(fields) = &event.kind {
        match fields.get("kind").and_then(|k| k.as_str()) {
            // A kind of ours whose fields are not ours must not pass for a stranger.
            Some(kind) if KINDS.contains(&kind) || EARLIER_KINDS.contains(&kind) => {
                return Err(format!("a field of `{kind}` is missing or unknown"));
            }
            Some(_) => {}
            None => return Err("it has no kind".to_owned()),
        }
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: &str = r#"{"seq":0,"at":"2026-01-02T03:04:05Z","kind":"paused"}"#;

    fn lines(text: &[u8]) -> Vec<Line> {
        read_log(text).map(Result::unwrap).collect()
    }

    fn damage(text: &[u8]) -> Vec<(u64, Damage)> {
        lines(text)
            .into_iter()
            .filter_map(|l| match l {
                Line::Damaged { number, damage } => Some((number, damage)),
                Line::Event(_) => None,
            })
            .collect()
    }

    #[test]
    fn a_line_cut_off_at_any_place_is_told_from_a_damaged_one() {
        for at in 1..FIRST.len() {
            let text = format!("{FIRST}\n{}", &FIRST[..at]);
            assert_eq!(damage(text.as_bytes()), [(2, Damage::CutOff)], "{text}");
        }
        assert_eq!(damage(format!("{FIRST}\n{FIRST}").as_bytes()), []);
        let text = format!("{}\n{FIRST}\n", &FIRST[..20]);
        assert!(matches!(&damage(text.as_bytes())[..], [(1, Damage::Unreadable(_))]), "{text}");
    }

    #[test]
    fn a_long_line_costs_itself_alone() {
        let long = "x".repeat(MAX_LINE * 3);
        let text = format!("{FIRST}\n{long}\n{FIRST}\n");
        assert_eq!(damage(text.as_bytes()), [(2, Damage::TooLong)]);
        assert_eq!(lines(text.as_bytes()).len(), 3);
    }

    #[test]
    fn unknown_kinds_are_kept_as_they_came() {
        let text = r#"{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"comet-seen","tail":{"long":[1,2.5]},"unit":"a"}"#;
        let Some(Line::Event(event)) = lines(text.as_bytes()).pop() else { panic!("no event") };
        assert!(matches!(event.kind, EventKind::Unknown(_)));
        let again: serde_json::Value = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn unknown_fields_are_ignored_and_known_kinds_must_be_whole() {
        let more = r#"{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"guest-ready","instance":3,"mood":"fine"}"#;
        assert_eq!(damage(more.as_bytes()), []);
        let less = r#"{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"guest-ready"}"#;
        assert!(matches!(&damage(format!("{less}\n").as_bytes())[..], [(1, Damage::Unreadable(_))]));
        let verdict = r#"{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"unit-ended","unit":"a","verdict":"triumph","attempts":1,"millis":1}"#;
        assert!(matches!(&damage(format!("{verdict}\n").as_bytes())[..], [(1, Damage::Unreadable(_))]));
        let none = r#"{"seq":1,"at":"2026-01-02T03:04:05Z"}"#;
        assert_eq!(damage(format!("{none}\n").as_bytes()).len(), 1);
    }

    /// Lines of a log of schema 1.
    #[test]
    fn what_a_guest_said_in_a_try_of_an_earlier_version_is_read_as_now() {
        let of = |kind: &str, rest: &str| {
            let text = format!(
                r#"{{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"{kind}","unit":"s/t@g","repeat":1,"attempt":2,{rest}}}"#
            );
            let Some(Line::Event(event)) = lines(text.as_bytes()).pop() else { panic!("no event in {text}") };
            event
        };
        for (before, now, rest) in [
            ("attempt-phase", "phase", r#""phase":"boot","instance":3"#),
            ("attempt-phase", "phase", r#""phase":"boot""#),
            ("attempt-choice", "choice", r#""what":"share","chosen":"9p","why":"it is there""#),
            ("attempt-warning", "warning", r#""message":"slow disk""#),
            ("attempt-alarm", "alarm", r#""name":"oops","line":"BUG: x","fatal":true"#),
            ("attempt-console", "console-tail", r#""lines":["login:"]"#),
        ] {
            let event = of(before, rest);
            assert_eq!(event, of(now, rest));
            assert!(!matches!(event.kind, EventKind::Unknown(_)), "{before}");
            let scope = event.scope.expect(before);
            assert_eq!((scope.attempt.unit.as_str(), scope.attempt.attempt), ("s/t@g", 2));
            assert_eq!(scope.instance, rest.contains("instance").then_some(3));
            assert!(KINDS.contains(&now) && EARLIER_KINDS.contains(&before));
        }
        let less = r#"{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"attempt-phase","unit":"a","repeat":1,"attempt":1}"#;
        assert!(matches!(&damage(format!("{less}\n").as_bytes())[..], [(1, Damage::Unreadable(_))]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let count = lines(&bytes).len();
            prop_assert!(count <= bytes.split(|b| *b == b'\n').count());
        }
    }
}
