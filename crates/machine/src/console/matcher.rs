//! Finds patterns in the console's text, bytewise, without waiting for the end of a line.
//!
//! The text comes with escape sequences removed. What is found does not depend on how the text was cut into chunks:
//! of all matches the one that is complete first counts, of those complete at once the pattern named first.

use std::fmt;
use std::time::Duration;

use memchr::memmem::Finder;

/// How many bytes of a marker must come in one piece before a foreign line is believed to have cut it in two.
const SEED: usize = 1;
/// Most lines that may land within one marker.
const INSERTIONS_MAX: u16 = 32;
/// Most bytes that may land within one marker.
const INSERTED_MAX: usize = 16 * 1024;
/// Longest payload of a marker.
const PAYLOAD_MAX: usize = 64;
/// Most readings of one stretch of text that are followed at once.
const THREADS_MAX: usize = 256;

/// Something to wait for.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// These bytes, wherever they are.
    Literal(Vec<u8>),
    /// These bytes as the last ones on the line (blanks aside), with nothing more for this long: a prompt.
    AtRest(Vec<u8>, Duration),
    /// See [`Marker`].
    Marker(Marker),
}

impl Pattern {
    /// [`Pattern::Literal`].
    pub fn literal(text: impl AsRef<[u8]>) -> Self {
        Pattern::Literal(text.as_ref().to_vec())
    }

    /// [`Pattern::AtRest`].
    pub fn at_rest(text: impl AsRef<[u8]>, rest: Duration) -> Self {
        Pattern::AtRest(text.as_ref().to_vec(), rest)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Literal(text) => write!(f, "\"{}\"", text.escape_ascii()),
            Pattern::AtRest(text, _) => write!(f, "\"{}\" at the end of a line", text.escape_ascii()),
            Pattern::Marker(_) => write!(f, "the shell's answer"),
        }
    }
}

/// A line of our own making: a nonce, a payload, `>`. It is recognised although the kernel, or a service, wrote whole
/// lines into the middle of it, as they do on a serial line.
///
/// The payload is made of ASCII letters, digits, `:`, `.`, `-` and `_`, and counts only if `valid` says so; it should carry
/// a check, since a foreign line may begin with digits.
#[derive(Clone)]
pub struct Marker {
    /// What it starts with; holds a nonce.
    open: Vec<u8>,
    valid: fn(&[u8]) -> bool,
}

impl Marker {
    /// A marker with this start and this check of its payload.
    pub fn new(open: impl AsRef<[u8]>, valid: fn(&[u8]) -> bool) -> Self {
        Marker { open: open.as_ref().to_vec(), valid }
    }
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Marker({})", self.open.escape_ascii())
    }
}

/// Where a pattern was found, in bytes from the start of the unread text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Index of the pattern.
    pub(crate) pattern: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// The payload of a marker, without what landed in it.
    pub(crate) payload: Vec<u8>,
}

/// Looks for several patterns in a growing text.
#[derive(Debug)]
pub(crate) struct Matcher {
    patterns: Vec<Search>,
    scanned: usize,
}

#[derive(Debug)]
enum Search {
    Literal(Finder<'static>),
    AtRest(Vec<u8>, Duration),
    Marker(MarkerSearch),
}

impl Matcher {
    pub(crate) fn new(patterns: &[Pattern]) -> Self {
        let patterns = patterns
            .iter()
            .map(|p| match p {
                Pattern::Literal(text) => Search::Literal(Finder::new(text).into_owned()),
                Pattern::AtRest(text, rest) => Search::AtRest(text.trim_ascii_end().to_vec(), *rest),
                Pattern::Marker(m) => Search::Marker(MarkerSearch::new(m)),
            })
            .collect();
        Matcher { patterns, scanned: 0 }
    }

    /// `unread` is the whole text from where the search began; it only ever grows at its end.
    pub(crate) fn feed(&mut self, unread: &[u8]) -> Option<Found> {
        let scanned = self.scanned;
        let mut best: Option<Found> = None;
        for (index, search) in self.patterns.iter_mut().enumerate() {
            let found = match search {
                Search::Literal(finder) => {
                    let len = finder.needle().len();
                    let from = (scanned + 1).saturating_sub(len).min(unread.len());
                    finder.find(&unread[from..]).map(|at| Found {
                        pattern: index,
                        start: from + at,
                        end: from + at + len,
                        payload: Vec::new(),
                    })
                }
                Search::AtRest(..) => None,
                Search::Marker(m) => m.feed(unread, scanned).map(|f| Found { pattern: index, ..f }),
            };
            if let Some(found) = found
                && best.as_ref().is_none_or(|b| found.end < b.end)
            {
                best = Some(found);
            }
        }
        self.scanned = unread.len();
        best
    }

    /// A pattern that matches if nothing more comes for as long as it says.
    pub(crate) fn at_rest(&self, unread: &[u8]) -> Option<(Found, Duration)> {
        let line_start = memchr::memrchr(b'\n', unread).map_or(0, |n| n + 1);
        let line = unread[line_start..].trim_ascii_end();
        self.patterns
            .iter()
            .enumerate()
            .filter_map(|(index, search)| match search {
                Search::AtRest(text, rest) if line.ends_with(text) => {
                    let start = line_start + line.len() - text.len();
                    Some((Found { pattern: index, start, end: unread.len(), payload: Vec::new() }, *rest))
                }
                _ => None,
            })
            .min_by_key(|(_, rest)| *rest)
    }

    /// The first `n` bytes of the text were given up for want of room.
    pub(crate) fn forget(&mut self, n: usize) {
        self.scanned = self.scanned.saturating_sub(n);
        for search in &mut self.patterns {
            if let Search::Marker(m) = search {
                m.threads.iter_mut().for_each(|t| t.start = t.start.saturating_sub(n));
            }
        }
    }
}

/// One reading of the text: so much of the marker was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thread {
    start: usize,
    /// Bytes of `open` seen; all of them means that the payload has begun.
    matched: usize,
    payload: Vec<u8>,
    /// Within a foreign line.
    skipping: bool,
    insertions: u16,
    inserted: usize,
}

#[derive(Debug)]
struct MarkerSearch {
    marker: Marker,
    seed: Finder<'static>,
    threads: Vec<Thread>,
    next: Vec<Thread>,
}

impl MarkerSearch {
    fn new(marker: &Marker) -> Self {
        let seed = &marker.open[..marker.open.len().min(SEED)];
        MarkerSearch {
            marker: marker.clone(),
            seed: Finder::new(seed).into_owned(),
            threads: Vec::new(),
            next: Vec::new(),
        }
    }

    fn feed(&mut self, unread: &[u8], scanned: usize) -> Option<Found> {
        let seed_len = self.seed.needle().len();
        if seed_len == 0 {
            return None;
        }
        let mut i = scanned;
        while i < unread.len() {
            if self.threads.is_empty() {
                let from = (i + 1).saturating_sub(seed_len);
                let Some(at) = self.seed.find(&unread[from..]) else { break };
                i = from + at + seed_len - 1;
            } else if let Some(found) = self.step(unread[i], i) {
                return Some(found);
            }
            if unread[..=i].ends_with(self.seed.needle()) {
                self.spawn(Thread {
                    start: i + 1 - seed_len,
                    matched: seed_len,
                    payload: Vec::new(),
                    skipping: false,
                    insertions: 0,
                    inserted: 0,
                });
                std::mem::swap(&mut self.threads, &mut self.next);
                self.threads.append(&mut self.next);
            }
            i += 1;
        }
        None
    }

    /// Every reading takes one byte; those that can take it in two ways become two.
    fn step(&mut self, b: u8, at: usize) -> Option<Found> {
        let mut threads = std::mem::take(&mut self.threads);
        let mut complete: Option<Thread> = None;
        for thread in threads.drain(..) {
            if thread.skipping {
                self.skip(thread, b);
                continue;
            }
            if b == b'\r' {
                self.spawn(thread);
                continue;
            }
            // The byte may belong to the marker, and it may be the first of a foreign line.
            let mut foreign = thread.clone();
            foreign.skipping = true;
            foreign.insertions += 1;
            self.skip(foreign, b);
            let mut ours = thread;
            if let Some(expected) = self.marker.open.get(ours.matched) {
                if *expected == b {
                    ours.matched += 1;
                    self.spawn(ours);
                }
            } else if b == b'>' {
                // Of several readings the one with the least in between is right.
                if (self.marker.valid)(&ours.payload)
                    && complete.as_ref().is_none_or(|c| (ours.inserted, c.start) < (c.inserted, ours.start))
                {
                    complete = Some(ours);
                }
            } else if (b.is_ascii_alphanumeric() || b":.-_".contains(&b)) && ours.payload.len() < PAYLOAD_MAX {
                ours.payload.push(b);
                self.spawn(ours);
            }
        }
        std::mem::swap(&mut self.threads, &mut self.next);
        self.next.clear();
        complete.map(|t| Found { pattern: 0, start: t.start, end: at + 1, payload: t.payload })
    }

    fn skip(&mut self, mut thread: Thread, b: u8) {
        thread.inserted += 1;
        if b == b'\n' {
            thread.skipping = false;
        }
        if thread.insertions <= INSERTIONS_MAX && thread.inserted <= INSERTED_MAX {
            self.spawn(thread);
        }
    }

    fn spawn(&mut self, thread: Thread) {
        let same =
            |t: &Thread| t.matched == thread.matched && t.skipping == thread.skipping && t.payload == thread.payload;
        if let Some(old) = self.next.iter_mut().find(|t| same(t)) {
            if (thread.inserted, old.start) < (old.inserted, thread.start) {
                *old = thread;
            }
        } else if self.next.len() < THREADS_MAX {
            self.next.push(thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first match when the text comes in these chunks.
    pub(super) fn first(patterns: &[Pattern], chunks: &[&[u8]]) -> Option<Found> {
        let mut matcher = Matcher::new(patterns);
        let mut text = Vec::new();
        for chunk in chunks {
            text.extend_from_slice(chunk);
            if let Some(found) = matcher.feed(&text) {
                return Some(found);
            }
        }
        None
    }

    fn digits_twice(p: &[u8]) -> bool {
        let Ok(p) = std::str::from_utf8(p) else { return false };
        p.split_once(':').is_some_and(|(a, b)| a == b && !a.is_empty() && a.bytes().all(|c| c.is_ascii_digit()))
    }

    fn marker() -> Pattern {
        Pattern::Marker(Marker::new("<k3x9q7:17:", digits_twice))
    }

    #[test]
    fn the_match_complete_first_counts() {
        let patterns = [Pattern::literal("abcdef"), Pattern::literal("cd"), Pattern::literal("bcd")];
        let found = first(&patterns, &[b"xabcdef"]).expect("found");
        assert_eq!((found.pattern, found.start, found.end), (1, 3, 5));
    }

    #[test]
    fn a_prompt_is_at_rest_at_the_end_of_its_line() {
        let m = Matcher::new(&[Pattern::at_rest("login:", Duration::from_secs(1))]);
        assert!(m.at_rest(b"x\r\ndebian login: ").is_some());
        assert!(m.at_rest(b"login:\nLast login: today").is_none());
    }

    #[test]
    fn foreign_lines_in_a_marker_do_no_harm() {
        let texts: [&[u8]; 7] = [
            b"out<k3x9q7:17:12:12>",
            b"out<k3x9[   12.345678] eth0: link up\r\nq7:17:12:12>",
            b"out<k3x9q7:17:1[   12.345678] eth0: link up\r\n2:12>",
            b"out<k3x9q7:17:18021q: no stamp\r\n2:12>",
            b"out<k3x9q7:17:12:12[   12.345678] a\r\n[   12.345679] b > c\r\n>",
            b"out<k3x9q7[ 1.000000] a\r\n:17:[ 1.000000] b\r\n12:12>",
            b"<k3x9 never ends\nout<k3x9q7:17:12:12>",
        ];
        for text in texts {
            let found = first(&[marker()], &[text]).unwrap_or_else(|| panic!("{}", text.escape_ascii()));
            assert_eq!(found.payload, b"12:12", "{}", text.escape_ascii());
            assert_eq!(found.end, text.len());
            assert!(text[..found.start].ends_with(b"out"), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_payload_that_does_not_check_is_none() {
        assert_eq!(first(&[marker()], &[b"<k3x9q7:17:12:13>\r\n<k3x9q7:17:>\n"]), None);
        assert_eq!(first(&[marker()], &[b"<$_bj:17:$_c:$_c> <k3x9q7:18:1:1>\n"]), None);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_match(
            text in "[ab<k3x9q7:1\r\n >]{0,60}(<k3x9q7:17:1:1>)?[ab]{0,9}",
            cuts in proptest::collection::vec(0usize..90, 0..6),
        ) {
            let patterns = [Pattern::literal("aba"), Pattern::literal("bb"), marker(), Pattern::literal("x9")];
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&bytes[from..cut]);
                from = cut;
            }
            chunks.push(&bytes[from..]);
            prop_assert_eq!(first(&patterns, &chunks), first(&patterns, &[bytes]));
        }

        #[test]
        fn a_marker_survives_lines_landing_anywhere(
            code in 0u8..=255,
            before in "[a-z<k3x9 \n]{0,40}",
            lines in proptest::collection::vec(("\\[ {1,4}[0-9]{1,3}\\.[0-9]{6}\\] [ -~]{0,60}", 1usize..22), 0..4),
        ) {
            let text = format!("<k3x9q7:17:{code}:{code}>");
            let mut out = text.clone().into_bytes();
            let mut places: Vec<_> = lines.iter().map(|(l, at)| (l, (*at).min(text.len()))).collect();
            places.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
            for (line, at) in places {
                out.splice(at..at, format!("{line}\r\n").into_bytes());
            }
            let all = [before.as_bytes(), &out].concat();
            let found = first(&[marker()], &[&all]);
            prop_assert!(found.is_some(), "{}", all.escape_ascii());
            prop_assert_eq!(found.map(|f| f.payload), Some(format!("{code}:{code}").into_bytes()));
        }

        #[test]
        fn any_bytes_are_searched_without_a_panic(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            first(&[Pattern::literal(""), marker(), Pattern::literal("\0")], &parts);
        }
    }
}
