//! Bodies of the fuzz targets, so that the property tests run them too.

use super::alarm::Scanner;
use super::matcher::{Matcher, Pattern};
use super::pump::Shared;
use super::sanitize::{Sanitizer, sanitize_line};
use super::{ConsoleOptions, Marker};

/// Any bytes in any chunks: nothing panics, nothing unprintable comes out, the cut does not matter.
pub fn console(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let chunks: Vec<&[u8]> = bytes.chunks(usize::from(cut).max(1)).collect();

    let shared = Shared::new(&ConsoleOptions { unread_limit: 1 << 20, ..ConsoleOptions::default() });
    let whole = Shared::new(&ConsoleOptions { unread_limit: 1 << 20, ..ConsoleOptions::default() });
    for chunk in &chunks {
        let (answers, _) = shared.take(chunk);
        assert!(answers.iter().all(|a| a.len() < 64));
    }
    whole.take(bytes);
    assert_eq!(shared.lock().buffer.unread(), whole.lock().buffer.unread());
    assert_eq!(shared.tail(50), whole.tail(50));
    let clean = |c: char| !c.is_control();
    assert!(shared.tail(1000).iter().all(|l| l.chars().all(clean)));

    let mut sanitizer = Sanitizer::new();
    let mut out = String::new();
    chunks.iter().for_each(|c| sanitizer.push(c, &mut out));
    sanitizer.finish(&mut out);
    assert!(out.chars().all(|c| c == '\n' || c == '\t' || clean(c)));
    assert!(sanitize_line(bytes).chars().all(clean));

    let mut scanner = Scanner::default();
    for line in out.lines() {
        scanner.open_line(line);
        scanner.line(line);
    }
}

/// The first byte says where the text is cut; whole or cut, the same is found, and within the text.
pub fn matcher(data: &[u8]) {
    let Some((&cut, text)) = data.split_first() else { return };
    let patterns = [
        Pattern::literal("login:"),
        Pattern::literal("<b"),
        Pattern::Marker(Marker::new("<bj:1:", |p| p.len() > 1 && p[0] == p[p.len() - 1])),
    ];
    let mut at_once = Matcher::new(&patterns);
    let expected = at_once.feed(text);
    let mut in_parts = Matcher::new(&patterns);
    let mut end = 0;
    let mut found = None;
    while found.is_none() && end < text.len() {
        end = (end + usize::from(cut).max(1)).min(text.len());
        found = in_parts.feed(&text[..end]);
        in_parts.at_rest(&text[..end]);
    }
    assert_eq!(found, expected);
    if let Some(found) = found {
        assert!(found.start <= found.end && found.end <= text.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn console(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::console(&data);
        }

        #[test]
        fn console_with_escapes(cut in 1u8..40, text in "[\x1b\\[\\]P\\\\;0-9a-zA-Z?$ \r\n\t\x07\x08é]{0,200}") {
            super::console(&[&[cut], text.as_bytes()].concat());
        }

        #[test]
        fn matcher(cut in 1u8..40, text in "[<bj:1a>\r\n]{0,100}") {
            super::matcher(&[&[cut], text.as_bytes()].concat());
        }
    }
}
