//! Answers to what programs ask of the terminal. busybox `ash` and systemd wait for them.
//!
//! We claim to be as little as possible: a VT100 of fixed size that recognises no mode.

use super::escape::{Csi, Token};

/// The answer to a query at this cursor position (from 1) on a terminal of this size, `None` where nothing was asked
/// or the right answer is silence.
pub(crate) fn answer(token: &Token<'_>, cursor: (u16, u16), size: (u16, u16)) -> Option<Vec<u8>> {
    let text = match token {
        Token::Csi(csi) => return csi_answer(csi, cursor, size),
        // Foreground and background colour: systemd wants to know whether the terminal is dark.
        Token::Osc(b"10;?") => "\x1b]10;rgb:cccc/cccc/cccc\x1b\\".to_owned(),
        Token::Osc(b"11;?") => "\x1b]11;rgb:0000/0000/0000\x1b\\".to_owned(),
        // DECRQSS and XTGETTCAP: no such setting, no such capability.
        Token::Dcs(body) if body.starts_with(b"$q") => "\x1bP0$r\x1b\\".to_owned(),
        Token::Dcs(body) if body.starts_with(b"+q") => "\x1bP0+r\x1b\\".to_owned(),
        // DECID
        Token::Esc { intermediate: 0, last: b'Z' } => "\x1b[?1;0c".to_owned(),
        _ => return None,
    };
    Some(text.into_bytes())
}

fn csi_answer(csi: &Csi<'_>, (row, column): (u16, u16), (rows, columns): (u16, u16)) -> Option<Vec<u8>> {
    let first = csi.param(0);
    let text = match (csi.private(), csi.intermediate(), csi.last) {
        (None, None, b'n') if first == Some(6) => format!("\x1b[{row};{column}R"),
        (Some(b'?'), None, b'n') if first == Some(6) => format!("\x1b[?{row};{column};1R"),
        (None, None, b'n') if first == Some(5) => "\x1b[0n".to_owned(),
        (None, None, b'c') if first.unwrap_or(0) == 0 => "\x1b[?1;0c".to_owned(),
        (Some(b'>'), None, b'c') if first.unwrap_or(0) == 0 => "\x1b[>0;0;0c".to_owned(),
        (Some(b'>'), None, b'q') if first.unwrap_or(0) == 0 => "\x1bP>|belljar\x1b\\".to_owned(),
        (Some(b'?'), Some(b'$'), b'p') => format!("\x1b[?{};0$y", first.unwrap_or(0)),
        (None, Some(b'$'), b'p') => format!("\x1b[{};0$y", first.unwrap_or(0)),
        (None, None, b't') if first == Some(18) => format!("\x1b[8;{rows};{columns}t"),
        _ => return None,
    };
    Some(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::escape::Parser;
    use crate::console::line::LineEditor;

    fn answers(bytes: &[u8]) -> String {
        let mut parser = Parser::default();
        let mut line = LineEditor::new(24, 80);
        let mut out = Vec::new();
        parser.advance(bytes, &mut |t| {
            line.feed(&t, &mut |_| {});
            out.extend(answer(&t, line.cursor(), line.size()).unwrap_or_default());
        });
        out.escape_ascii().to_string()
    }

    #[test]
    fn busybox_is_told_where_its_prompt_ends() {
        assert_eq!(answers(b"/ # \x1b[6n"), "\\x1b[1;5R");
    }

    #[test]
    fn what_systemd_257_asks_is_answered() {
        let asked = b"\x1b7\x1b[32766;32766H\x1b[6n\x1b8\x1b[?2026$p\x1b[c\x1b]11;?\x1b\\\x1b[>0q";
        let got = answers(asked);
        assert_eq!(
            got,
            "\\x1b[24;80R\\x1b[?2026;0$y\\x1b[?1;0c\\x1b]11;rgb:0000/0000/0000\\x1b\\\\\\x1bP>|belljar\\x1b\\\\"
        );
    }

    #[test]
    fn settings_are_not_queries() {
        assert_eq!(answers(b"\x1b[?2004h\x1b[1m\x1b]0;t\x07\x1b[?1;0c\x1b[1;5R"), "");
    }
}
