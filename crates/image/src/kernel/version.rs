//! Which of two kernel releases is the newer.

use std::cmp::Ordering;
use std::fmt;

/// A kernel release as `uname -r` gives it, such as `6.1.0-56-amd64` or `6.10-rc3`. Ordered by age; releases that
/// differ only in how they are written (`6.1` and `6.1.0`) fall back to the order of their text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Release(String);

impl Release {
    /// Any text is a release.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A run of digits or a run of letters; everything else separates. A number is newer than a word, and a word
/// (a flavour such as `amd64`, `cloud`, `generic`) newer than nothing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Word(&'a str),
    Number(Digits<'a>),
}

/// Digits without leading zeros, so that length and then text compare their values, of any size.
#[derive(Debug, PartialEq, Eq)]
struct Digits<'a>(&'a str);

impl Ord for Digits<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(other.0))
    }
}

impl PartialOrd for Digits<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let class = |c: char| (c.is_ascii_digit(), c.is_alphabetic());
        let end = rest.find(|c| class(c) != class(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        match class(first) {
            (true, _) => parts.push(Part::Number(Digits(run.trim_start_matches('0')))),
            (_, true) => parts.push(Part::Word(run)),
            _ => {}
        }
        rest = after;
    }
    parts
}

/// Major, minor and patch level, the release candidate (`None` is the release itself, newer than any candidate),
/// and the rest: the distribution's own numbers and the flavour.
fn key(text: &str) -> ([Digits<'_>; 3], bool, Vec<Part<'_>>) {
    let base_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (base, rest) = text.split_at(base_end);
    let mut numbers = base.split('.').map(|n| Digits(n.trim_start_matches('0')));
    let base = [(); 3].map(|()| numbers.next().unwrap_or(Digits("")));
    let rest = parts(rest);
    let released = !matches!(rest.first(), Some(Part::Word(word)) if *word == "rc");
    (base, released, rest)
}

impl Ord for Release {
    fn cmp(&self, other: &Self) -> Ordering {
        key(&self.0).cmp(&key(&other.0)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn older_before_newer() {
        let ordered = [
            "5.10.0-32-amd64",
            "6.1.0-0.deb11.21-amd64",
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.1.0-56-cloud-amd64",
            "6.8.0-45-generic",
            "6.9.7-200.fc40.x86_64",
            "6.10.0-rc7",
            "6.10-rc10",
            "6.10",
            "6.10.1-arch1-1",
            "6.12.43+deb13-amd64",
            "6.12.107+deb13-amd64",
            "7.2.12+deb14-amd64",
            "10.0.0",
        ];
        for pair in ordered.windows(2) {
            assert!(Release::new(pair[0]) < Release::new(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn numbers_of_any_size_compare() {
        assert!(Release::new("6.99999999999999999999998") < Release::new("6.99999999999999999999999"));
        assert!(Release::new("6.1.0-007") < Release::new("6.1.0-8"));
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[0-9a-z.+-]{0,12}", b in "[0-9a-z.+-]{0,12}", c in "\\PC{0,8}") {
            let [a, b, c] = [a, b, c].map(Release::new);
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a == b, a.cmp(&b).is_eq());
            let mut all = [a, b, c];
            all.sort();
            prop_assert!(all[0] <= all[1] && all[1] <= all[2] && all[0] <= all[2]);
        }
    }
}
