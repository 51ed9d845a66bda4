//! Cuts a terminal's byte stream into text, control characters and control sequences (ECMA-48, plus what xterm adds).
//!
//! The result does not depend on how the stream was cut into chunks. Every collected sequence is bounded, and a
//! string sequence (OSC, DCS) also ends at a line break: an unfinished one must not swallow the rest of a boot.

/// Longest control sequence that is kept; a longer one is dropped up to its end.
const CSI_MAX: usize = 64;
/// Longest OSC or DCS string; a longer one is taken for text that was never a string.
const STRING_MAX: usize = 1024;

/// One piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// Bytes without any control character; not necessarily whole UTF-8 characters.
    Text(&'a [u8]),
    /// A C0 control character or DEL.
    Control(u8),
    /// `ESC [ … final`.
    Csi(Csi<'a>),
    /// `ESC intermediates final`.
    Esc {
        /// The first intermediate byte, 0 if there was none.
        intermediate: u8,
        /// The final byte.
        last: u8,
    },
    /// `ESC ] … ST`.
    Osc(&'a [u8]),
    /// `ESC P … ST`; SOS, PM and APC strings are dropped in silence.
    Dcs(&'a [u8]),
}

/// A control sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Csi<'a> {
    /// Everything between `ESC [` and the final byte.
    pub(crate) body: &'a [u8],
    /// The final byte.
    pub(crate) last: u8,
}

impl Csi<'_> {
    /// `?`, `>`, `=` or `<` before the parameters.
    pub(crate) fn private(&self) -> Option<u8> {
        self.body.first().copied().filter(|b| (0x3c..=0x3f).contains(b))
    }

    /// The byte between parameters and final byte, such as `$` in DECRQM.
    pub(crate) fn intermediate(&self) -> Option<u8> {
        self.body.iter().copied().find(|b| (0x20..=0x2f).contains(b))
    }

    /// Parameter number `n` (from 0); `None` where it is missing or empty. Too large ones are clamped.
    pub(crate) fn param(&self, n: usize) -> Option<u16> {
        let digits_and_semicolons = self.body.iter().filter(|b| (0x30..=0x3b).contains(*b));
        let mut index = 0;
        let mut value: Option<u16> = None;
        for &b in digits_and_semicolons {
            if b == b';' {
                if index == n {
                    return value;
                }
                index += 1;
                value = None;
            } else if b.is_ascii_digit() {
                let digit = u16::from(b - b'0');
                value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(digit));
            }
        }
        if index == n { value } else { None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ground,
    Escape,
    Intermediate(u8),
    Csi,
    /// A control sequence past [`CSI_MAX`].
    CsiIgnore,
    String(StringKind),
    /// ESC within a string: a backslash now ends it.
    StringEscape(StringKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringKind {
    Osc,
    Dcs,
    Other,
}

/// The tokenizer's state between chunks.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    collected: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Parser { state: State::Ground, collected: Vec::with_capacity(CSI_MAX) }
    }
}

impl Parser {
    /// Feeds a chunk; `sink` gets the tokens in order.
    pub(crate) fn advance(&mut self, bytes: &[u8], sink: &mut dyn FnMut(Token<'_>)) {
        let mut i = 0;
        while i < bytes.len() {
            if self.state == State::Ground {
                let run = bytes[i..].iter().take_while(|b| !is_control(**b)).count();
                if run > 0 {
                    sink(Token::Text(&bytes[i..i + run]));
                    i += run;
                    continue;
                }
            }
            if self.step(bytes[i], sink) {
                i += 1;
            }
        }
    }

    /// Takes one byte; false means that the state changed and the byte is to be taken again.
    fn step(&mut self, b: u8, sink: &mut dyn FnMut(Token<'_>)) -> bool {
        match self.state {
            State::Ground => {
                if b == 0x1b {
                    self.enter(State::Escape);
                } else if is_control(b) {
                    sink(Token::Control(b));
                } else {
                    sink(Token::Text(&[b]));
                }
            }
            State::Escape => match b {
                0x1b => {}
                b'[' => self.enter(State::Csi),
                b']' => self.enter(State::String(StringKind::Osc)),
                b'P' => self.enter(State::String(StringKind::Dcs)),
                b'X' | b'^' | b'_' => self.enter(State::String(StringKind::Other)),
                0x20..=0x2f => self.enter(State::Intermediate(b)),
                0x30..=0x7e => {
                    sink(Token::Esc { intermediate: 0, last: b });
                    self.enter(State::Ground);
                }
                _ => return self.abandon(),
            },
            State::Intermediate(first) => match b {
                0x20..=0x2f => {}
                0x30..=0x7e => {
                    sink(Token::Esc { intermediate: first, last: b });
                    self.enter(State::Ground);
                }
                0x1b => self.enter(State::Escape),
                _ => return self.abandon(),
            },
            State::Csi | State::CsiIgnore => match b {
                0x20..=0x3f => {
                    if self.collected.len() == CSI_MAX {
                        self.state = State::CsiIgnore;
                    } else {
                        self.collected.push(b);
                    }
                }
                0x40..=0x7e => {
                    if self.state == State::Csi {
                        sink(Token::Csi(Csi { body: &self.collected, last: b }));
                    }
                    self.enter(State::Ground);
                }
                0x1b => self.enter(State::Escape),
                // A terminal goes on with the sequence after these; CAN and SUB end it.
                0x00..=0x1f if b != 0x18 && b != 0x1a => sink(Token::Control(b)),
                _ => return self.abandon(),
            },
            State::String(kind) => match b {
                0x07 => self.finish_string(kind, sink),
                0x1b => self.state = State::StringEscape(kind),
                b'\n' | b'\r' | 0x18 | 0x1a => return self.abandon(),
                _ if self.collected.len() >= STRING_MAX => return self.abandon(),
                _ => self.collected.push(b),
            },
            State::StringEscape(kind) => {
                self.finish_string(kind, sink);
                if b != b'\\' {
                    self.enter(State::Escape);
                    return false;
                }
            }
        }
        true
    }

    fn enter(&mut self, state: State) {
        self.collected.clear();
        self.state = state;
    }

    /// Drops what was collected; the byte at hand is ordinary again.
    fn abandon(&mut self) -> bool {
        self.enter(State::Ground);
        false
    }

    fn finish_string(&mut self, kind: StringKind, sink: &mut dyn FnMut(Token<'_>)) {
        match kind {
            StringKind::Osc => sink(Token::Osc(&self.collected)),
            StringKind::Dcs => sink(Token::Dcs(&self.collected)),
            StringKind::Other => {}
        }
        self.enter(State::Ground);
    }
}

/// C0 and DEL. C1 controls as single bytes are not looked for: in UTF-8 they are parts of characters.
fn is_control(b: u8) -> bool {
    b < 0x20 || b == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The tokens as text, adjacent text joined.
    fn tokens(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        let mut out: Vec<String> = Vec::new();
        let mut joined = false;
        for chunk in chunks {
            parser.advance(chunk, &mut |t| match t {
                Token::Text(b) => {
                    let piece = b.escape_ascii().to_string();
                    if joined && let Some(last) = out.last_mut() {
                        last.push_str(&piece);
                    } else {
                        out.push(format!("T:{piece}"));
                    }
                    joined = true;
                }
                other => {
                    out.push(format!("{other:?}"));
                    joined = false;
                }
            });
        }
        out
    }

    #[test]
    fn colours_titles_and_charsets_are_not_text() {
        let got = tokens(&[b"\x1b[1;32mroot\x1b[0m\x1b]0;title\x07#\x1b(B \x1bPq..\x1b\\x\x1b]2;t\x1b\\"]);
        let text: Vec<_> = got.iter().filter(|t| t.starts_with("T:")).collect();
        assert_eq!(text, ["T:root", "T:#", "T: ", "T:x"]);
    }

    #[test]
    fn an_unfinished_string_ends_at_the_line() {
        assert_eq!(tokens(&[b"\x1b]0;never\nnext"]), ["Control(10)", "T:next"]);
    }

    #[test]
    fn parameters_are_read_with_their_defaults() {
        let csi = Csi { body: b"?25;;99999999", last: b'h' };
        assert_eq!(csi.private(), Some(b'?'));
        assert_eq!((csi.param(0), csi.param(1), csi.param(2), csi.param(3)), (Some(25), None, Some(65535), None));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_tokens(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let cut = cut.min(bytes.len());
            prop_assert_eq!(tokens(&[&bytes]), tokens(&[&bytes[..cut], &bytes[cut..]]));
        }

        #[test]
        fn any_cut_of_escapes_gives_the_same_tokens(bytes in "[\x1b\\]\\[P0-9;?$mnA\x07\n\\\\ -]{0,80}", cut in 0usize..80) {
            let bytes = bytes.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(tokens(&[bytes]), tokens(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
