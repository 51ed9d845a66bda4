//! The last line of a terminal: what a person would see where the cursor is.
//!
//! No screen is kept. Full-screen programs move between lines; each such move ends the line, so that their texts
//! still turn up in the ring of last lines.

use super::escape::{Csi, Token};
use super::sanitize::{Utf8, showable};

/// Longest line, in characters; the rest of a longer one is dropped from the display, not from the log.
pub(crate) const LINE_MAX: usize = 4096;

/// Interprets tokens into lines.
#[derive(Debug)]
pub(crate) struct LineEditor {
    cells: Vec<char>,
    column: usize,
    row: u16,
    saved: (u16, usize),
    /// The cursor was put somewhere on the screen, and no line was ended since.
    addressed: bool,
    utf8: Utf8,
    size: (u16, u16),
}

impl LineEditor {
    /// An empty line at the bottom of a terminal of this size.
    pub(crate) fn new(rows: u16, columns: u16) -> Self {
        LineEditor {
            cells: Vec::new(),
            column: 0,
            row: 1,
            saved: (1, 0),
            addressed: false,
            utf8: Utf8::default(),
            size: (rows.max(1), columns.max(1)),
        }
    }

    /// Takes one token; `done` gets each line that was ended by it, without trailing blanks.
    pub(crate) fn feed(&mut self, token: &Token<'_>, done: &mut dyn FnMut(String)) {
        match token {
            Token::Text(bytes) => {
                let LineEditor { cells, column, utf8, .. } = self;
                utf8.push(bytes, &mut |c| put(cells, column, c));
            }
            Token::Control(b) => {
                self.flush_utf8();
                match b {
                    b'\n' | 0x0b | 0x0c => {
                        self.addressed = false;
                        self.end_line(done);
                        self.row = (self.row + 1).min(self.size.0);
                    }
                    b'\r' => self.column = 0,
                    0x08 => self.column = self.column.saturating_sub(1),
                    b'\t' => {
                        let to = ((self.column / 8) + 1) * 8;
                        while self.column < to.min(LINE_MAX) {
                            if self.cells.get(self.column).is_none() {
                                put(&mut self.cells, &mut self.column, ' ');
                            } else {
                                self.column += 1;
                            }
                        }
                    }
                    _ => {}
                }
            }
            Token::Csi(csi) => {
                self.flush_utf8();
                self.csi(csi, done);
            }
            Token::Esc { intermediate: 0, last } => {
                self.flush_utf8();
                match last {
                    b'7' => self.saved = (self.row, self.column),
                    b'8' => (self.row, self.column) = self.saved,
                    b'D' | b'E' | b'M' | b'c' => self.end_line(done),
                    _ => {}
                }
            }
            Token::Esc { .. } | Token::Osc(_) | Token::Dcs(_) => self.flush_utf8(),
        }
    }

    fn csi(&mut self, csi: &Csi<'_>, done: &mut dyn FnMut(String)) {
        if csi.private().is_some() || csi.intermediate().is_some() {
            return;
        }
        let n = usize::from(csi.param(0).unwrap_or(1).max(1)).min(LINE_MAX);
        match csi.last {
            b'C' => self.column = (self.column + n).min(LINE_MAX),
            b'D' => self.column = self.column.saturating_sub(n),
            b'G' | b'`' => self.column = n - 1,
            b'A' | b'B' | b'E' | b'F' | b'd' => self.end_line(done),
            b'H' | b'f' => {
                self.end_line(done);
                // Not "home", with which a screen is cleared, nor "as far as it goes", with which it is measured.
                self.addressed = (2..500).contains(&csi.param(0).unwrap_or(1));
                self.row = csi.param(0).unwrap_or(1).clamp(1, self.size.0);
                self.column = usize::from(csi.param(1).unwrap_or(1).clamp(1, self.size.1)) - 1;
            }
            b'J' if csi.param(0).unwrap_or(0) >= 2 => self.end_line(done),
            b'K' | b'J' => match csi.param(0).unwrap_or(0) {
                0 => self.cells.truncate(self.column),
                1 => self.cells.iter_mut().take(self.column + 1).for_each(|c| *c = ' '),
                _ => self.cells.clear(),
            },
            b'P' if self.column < self.cells.len() => {
                let to = (self.column + n).min(self.cells.len());
                self.cells.drain(self.column..to);
            }
            b'@' if self.column < self.cells.len() => {
                self.cells.splice(self.column..self.column, std::iter::repeat_n(' ', n));
                self.cells.truncate(LINE_MAX);
            }
            b'X' => self.cells.iter_mut().skip(self.column).take(n).for_each(|c| *c = ' '),
            b's' => self.saved = (self.row, self.column),
            b'u' => (self.row, self.column) = self.saved,
            _ => {}
        }
    }

    fn flush_utf8(&mut self) {
        let LineEditor { cells, column, utf8, .. } = self;
        utf8.flush(&mut |c| put(cells, column, c));
    }

    fn end_line(&mut self, done: &mut dyn FnMut(String)) {
        let line = self.current();
        self.cells.clear();
        self.column = 0;
        // Moving about on an empty line is no line.
        done(line);
    }

    /// The open line as far as it goes, without trailing blanks.
    pub(crate) fn current(&self) -> String {
        let mut line: String = self.cells.iter().collect();
        line.truncate(line.trim_end().len());
        line
    }

    /// Whether a full-screen program seems to be at work.
    pub(crate) fn is_full_screen(&self) -> bool {
        self.addressed
    }

    /// Row and column of the cursor, from 1, within the terminal's size.
    pub(crate) fn cursor(&self) -> (u16, u16) {
        let column = u16::try_from(self.column + 1).unwrap_or(u16::MAX).min(self.size.1);
        (self.row, column)
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> (u16, u16) {
        self.size
    }
}

fn put(cells: &mut Vec<char>, column: &mut usize, c: char) {
    let Some(c) = showable(c) else { return };
    if *column >= LINE_MAX {
        return;
    }
    if cells.len() <= *column {
        cells.resize(*column + 1, ' ');
    }
    cells[*column] = c;
    *column += 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::escape::Parser;

    fn lines(bytes: &[u8]) -> (Vec<String>, String) {
        let mut parser = Parser::default();
        let mut editor = LineEditor::new(24, 80);
        let mut done = Vec::new();
        parser.advance(bytes, &mut |t| editor.feed(&t, &mut |l| done.push(l)));
        (done, editor.current())
    }

    #[test]
    fn a_dialog_gives_its_texts() {
        let (done, open) = lines(b"\x1b[2J\x1b[3;10HChoose language\x1b[5;12H<Go Back>");
        assert!(done.iter().any(|l| l.trim() == "Choose language"), "{done:?}");
        assert_eq!(open.trim(), "<Go Back>");
        let full_screen = |bytes: &[u8]| {
            let mut editor = LineEditor::new(24, 80);
            Parser::default().advance(bytes, &mut |t| editor.feed(&t, &mut |_| {}));
            editor.is_full_screen()
        };
        assert!(full_screen(b"\x1b[2J\x1b[5;12H<Go Back>"));
        assert!(!full_screen(b"\x1b[H\x1b[Jdebian login: "));
        assert!(!full_screen(b"\x1b[5;12H<Go Back>\r\n# "));
        assert!(!full_screen(b"\x1b[32766;32766H\x1b[6n"));
    }

    #[test]
    fn a_line_has_an_end() {
        let long = vec![b'x'; 100_000];
        let (_, open) = lines(&long);
        assert_eq!(open.len(), LINE_MAX);
    }

    #[test]
    fn the_cursor_is_told_as_a_terminal_would() {
        let mut parser = Parser::default();
        let mut editor = LineEditor::new(24, 80);
        parser.advance(b"/ # ", &mut |t| editor.feed(&t, &mut |_| {}));
        assert_eq!(editor.cursor(), (1, 5));
        parser.advance(b"\x1b[32766;32766H", &mut |t| editor.feed(&t, &mut |_| {}));
        assert_eq!(editor.cursor(), (24, 80));
    }
}
