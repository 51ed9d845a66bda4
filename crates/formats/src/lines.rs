//! Bytes to lines, in bounded memory.

/// Longer lines are cut.
const MAX_LINE: usize = 16 * 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes bytes, split anywhere, and hands each whole line on, without its end (LF or CRLF).
    pub(crate) fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.add(&rest[..end]);
            rest = &rest[end + 1..];
            self.flush(&mut each);
        }
        self.add(rest);
    }

    /// Hands on what has no end of line. Says whether there was any.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(&str)) -> bool {
        let any = !self.partial.is_empty();
        if any {
            self.flush(&mut each);
        }
        any
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn flush(&mut self, each: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&self.partial);
        each(line.strip_suffix('\r').unwrap_or(&line));
        self.partial.clear();
    }
}
