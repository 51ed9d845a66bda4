//! Guest output made safe to show: no control sequence of the guest's ever reaches a person's terminal.
//!
//! [`Sanitizer`] is for output as it streams by, [`sanitize_line`] for one line as a terminal would show it in the end.

use super::escape::{Parser, Token};
use super::line::LineEditor;

/// Streaming filter: keeps text, `\n` and `\t`; drops control sequences; invalid UTF-8 and characters that reorder a
/// line become U+FFFD. `\r\n` becomes `\n`; a `\r` alone starts a new line, so nothing shown is ever overwritten.
#[derive(Debug, Default)]
pub struct Sanitizer {
    parser: Parser,
    utf8: Utf8,
    pending_cr: bool,
    column: usize,
}

impl Sanitizer {
    /// A filter at the start of a line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Filters one chunk and appends what may be shown to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        let Sanitizer { parser, utf8, pending_cr, column } = self;
        parser.advance(bytes, &mut |token| {
            match token {
                Token::Control(b'\r') => {
                    utf8.flush(&mut |c| put(c, pending_cr, column, out));
                    *pending_cr = true;
                }
                Token::Control(b'\n') => {
                    utf8.flush(&mut |c| put(c, pending_cr, column, out));
                    *pending_cr = false;
                    *column = 0;
                    out.push('\n');
                }
                Token::Control(b'\t') => {
                    utf8.flush(&mut |c| put(c, pending_cr, column, out));
                    put('\t', pending_cr, column, out);
                }
                Token::Text(text) => utf8.push(text, &mut |c| put(c, pending_cr, column, out)),
                // A character cut in two by a sequence is two broken halves, as on a terminal.
                _ => utf8.flush(&mut |c| put(c, pending_cr, column, out)),
            }
        });
    }

    /// The stream is over: a character cut short becomes U+FFFD, an open line stays open.
    pub fn finish(&mut self, out: &mut String) {
        let Sanitizer { utf8, pending_cr, column, .. } = self;
        utf8.flush(&mut |c| put(c, pending_cr, column, out));
        self.pending_cr = false;
    }
}

fn put(c: char, pending_cr: &mut bool, column: &mut usize, out: &mut String) {
    if std::mem::take(pending_cr) && *column > 0 {
        out.push('\n');
        *column = 0;
    }
    if let Some(c) = showable(c) {
        out.push(c);
        *column += 1;
    } else if c == '\t' {
        out.push(c);
        *column += 1;
    }
}

/// What stands for this character on a person's terminal, if anything.
pub(crate) fn showable(c: char) -> Option<char> {
    match c {
        c if c.is_control() => None,
        // Bidirectional overrides and isolates make a line read as something else than it is.
        '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some('\u{fffd}'),
        '\u{2028}' | '\u{2029}' => Some(' '),
        c => Some(c),
    }
}

/// One line of guest output as a terminal would show it: carriage returns and backspaces overwrite, erasing erases,
/// colours are gone. Only the last line counts if there are several. At most 4 KiB of characters.
pub fn sanitize_line(bytes: &[u8]) -> String {
    let mut parser = Parser::default();
    let mut line = LineEditor::new(24, 80);
    let mut last = String::new();
    parser.advance(bytes, &mut |token| line.feed(&token, &mut |done| last = done));
    let open = line.current();
    if open.is_empty() { last } else { open }
}

/// Decodes UTF-8 over chunk ends; what is not UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    pending: Vec<u8>,
}

impl Utf8 {
    pub(crate) fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(char)) {
        let mut rest = bytes;
        while !self.pending.is_empty() && !rest.is_empty() {
            self.pending.push(rest[0]);
            rest = &rest[1..];
            self.settle(sink);
        }
        for chunk in rest.utf8_chunks() {
            chunk.valid().chars().for_each(&mut *sink);
            let invalid = chunk.invalid();
            let at_end = std::ptr::eq(invalid.as_ptr_range().end, rest.as_ptr_range().end);
            if at_end && is_unfinished(invalid) {
                self.pending.extend_from_slice(invalid);
            } else if !invalid.is_empty() {
                sink(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Whatever is still open is not going to be finished.
    pub(crate) fn flush(&mut self, sink: &mut dyn FnMut(char)) {
        if !self.pending.is_empty() {
            self.pending.clear();
            sink(char::REPLACEMENT_CHARACTER);
        }
    }

    fn settle(&mut self, sink: &mut dyn FnMut(char)) {
        if is_unfinished(&self.pending) {
            return;
        }
        let taken = std::mem::take(&mut self.pending);
        for chunk in taken.utf8_chunks() {
            chunk.valid().chars().for_each(&mut *sink);
            let invalid = chunk.invalid();
            let at_end = std::ptr::eq(invalid.as_ptr_range().end, taken.as_ptr_range().end);
            if at_end && is_unfinished(invalid) {
                self.pending.extend_from_slice(invalid);
            } else if !invalid.is_empty() {
                sink(char::REPLACEMENT_CHARACTER);
            }
        }
    }
}

fn is_unfinished(bytes: &[u8]) -> bool {
    !bytes.is_empty() && matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(chunks: &[&[u8]]) -> String {
        let mut s = Sanitizer::new();
        let mut out = String::new();
        for c in chunks {
            s.push(c, &mut out);
        }
        s.finish(&mut out);
        out
    }

    #[test]
    fn text_is_kept_and_sequences_are_not() {
        assert_eq!(run(&["\x1b[31mrot\x1b[0m grün\tx\r\n".as_bytes()]), "rot grün\tx\n");
        assert_eq!(run(&[b"\x1b]52;c;ZXZpbA==\x07safe\x1b[2J"]), "safe");
        assert_eq!(run(&[b"10%\r20%\r\r\n\r\nx"]), "10%\n20%\n\nx");
        assert_eq!(run(&["a\u{9b}31mb\u{202e}c".as_bytes()]), "a31mb\u{fffd}c");
        assert_eq!(run(&[b"a\xc3", b"\xa4\xffb\xe2\x82"]), "aä\u{fffd}b\u{fffd}");
    }

    #[test]
    fn a_line_is_what_a_terminal_shows_in_the_end() {
        assert_eq!(sanitize_line(b"loading 10%\rloading 99%"), "loading 99%");
        assert_eq!(sanitize_line(b"abc\x08\x08X"), "aXc");
        assert_eq!(sanitize_line(b"abcdef\r\x1b[Kxy\r\n"), "xy");
        assert_eq!(sanitize_line(b"[\x1b[0;32m  OK  \x1b[0m] Started"), "[  OK  ] Started");
    }

    proptest! {
        #[test]
        fn no_control_character_comes_through(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8)) {
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let out = run(&parts);
            prop_assert!(out.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{out:?}");
            prop_assert_eq!(run(&[&chunks.concat()]), out);
            let line = sanitize_line(&chunks.concat());
            prop_assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        }

        #[test]
        fn escape_rich_input_comes_out_clean(text in "[\x1b\\[\\]P;0-9a-zA-Z\r\n\t\x07\x08\u{9b}\u{9d}é]{0,120}", cut in 0usize..120) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let out = run(&[&bytes[..cut], &bytes[cut..]]);
            prop_assert!(out.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{out:?}");
            prop_assert_eq!(run(&[bytes]), out);
        }

        #[test]
        fn plain_text_is_left_alone(text in "[a-zA-Z0-9 äß\n\t]{0,200}") {
            prop_assert_eq!(run(&[text.as_bytes()]), text);
        }
    }
}
