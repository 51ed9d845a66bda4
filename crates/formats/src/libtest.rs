//! What Rust's test programs print.

use belljar_model::test_run::{SubVerdict, Subresult};

use crate::{lines::Lines, results::Results};

/// Arguments by which a test program lists its tests.
pub const LIST: &[&str] = &["--list", "--format", "terse"];

/// Most tests that a listing may have, and longest name of one.
const MAX_LISTED: usize = 100_000;
const MAX_LISTED_NAME: usize = 4096;

/// Arguments by which a test program runs the test `name` alone, whether it is marked as ignored or not.
#[must_use]
pub fn run_one(name: &str) -> Vec<String> {
    ["--exact", name, "--include-ignored", "--test-threads=1", "--color=never"].map(str::to_owned).into()
}

/// Reads what [`LIST`] prints: the names of the tests, without benchmarks.
///
/// # Errors
/// If it is no such list: a line that is none, a name that stands twice, is empty or has control characters.
pub fn parse_list(text: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(text)
        .map_err(|e| format!("the list of tests is not UTF-8 (at byte {})", e.valid_up_to()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the list of tests is cut off".to_owned());
    }
    let mut names = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        if let Some(name) = line.strip_suffix(": test") {
            if name.len() > MAX_LISTED_NAME || names.len() >= MAX_LISTED {
                return Err("the list of tests is longer than any real one".to_owned());
            }
            if name.is_empty() || name.chars().any(char::is_control) {
                return Err(format!("the list of tests has a name that is none: {name:?}"));
            }
            names.push(name.to_owned());
        } else if !line.ends_with(": benchmark") && !is_listing_total(line) {
            return Err(format!(
                "a line of the list of tests ends neither in `: test` nor in `: benchmark`: {line:.100}"
            ));
        }
    }
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|p| p[0] == p[1]) {
        return Err(format!("the list of tests has `{}` twice", pair[0]));
    }
    Ok(names)
}

/// `3 tests, 0 benchmarks`, which the format `pretty` adds.
fn is_listing_total(line: &str) -> bool {
    line.split_once(" test").is_some_and(|(n, rest)| n.parse::<u64>().is_ok() && rest.contains("benchmark"))
}

/// Reads what a run of a test program prints (the format `pretty`, which is the default).
#[derive(Debug, Default)]
pub struct LibtestParser {
    lines: Lines,
    results: Results,
    /// Passed and failed by the latest `test result:` line.
    total: Option<(bool, u64, u64, u64)>,
    announced: Option<u64>,
}

impl LibtestParser {
    /// Takes bytes of standard output, split anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(bytes, |line| self.line(line));
        self.lines = lines;
    }

    /// The results, at the end of the output.
    #[must_use]
    pub fn finish(mut self) -> Results {
        let mut lines = std::mem::take(&mut self.lines);
        lines.finish(|line| self.line(line));
        match self.total {
            None => {
                let why = "there is no `test result:` line: the test program did not come to its end";
                if self.announced.is_some() || !self.results.is_empty() {
                    self.results.problem(why);
                } else {
                    self.results.absent = Some(why.to_owned());
                }
            }
            Some((ok, passed, failed, ignored)) => {
                if !ok || failed > 0 {
                    if !self.results.cases.iter().any(|c| c.result.is_bad()) {
                        self.results.problem(format!("the test program says: {failed} failed"));
                    }
                } else if passed == 0 && ignored == 0 {
                    self.results.problem("the test program ran no test");
                }
                let seen = |r| self.results.cases.iter().filter(|c| c.result == r).count() as u64;
                // Tests that write between `...` and `ok` hide their line; the total does not lie.
                let (pass, skip) = (seen(SubVerdict::Pass), seen(SubVerdict::Skip));
                if self.results.dropped == 0 {
                    for n in pass..passed.min(pass.saturating_add(1000)) {
                        self.results.add(case(
                            format!("(passed, name not seen, {})", n - pass + 1),
                            SubVerdict::Pass,
                            None,
                        ));
                    }
                    if pass > passed || skip > ignored {
                        self.results.problem("the test program's total contradicts its lines");
                    }
                }
                if let Some(announced) = self.announced
                    && announced != passed.saturating_add(failed).saturating_add(ignored)
                {
                    self.results.problem(format!("{announced} tests were announced, and the total differs"));
                }
            }
        }
        self.results
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("running ") {
            let count = rest.strip_suffix(" tests").or_else(|| rest.strip_suffix(" test"));
            if let Some(count) = count.and_then(|c| c.parse().ok()) {
                self.announced = Some(count);
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.total = total(rest).or(self.total);
        } else if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, end)) = rest.rsplit_once(" ... ")
        {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            let word = end.split([',', ' ']).next().unwrap_or_default();
            let note = end.split_once(", ").map(|(_, why)| why.to_owned());
            let result = match word {
                "ok" => SubVerdict::Pass,
                "FAILED" => SubVerdict::Fail,
                "ignored" => SubVerdict::Skip,
                _ => return,
            };
            self.results.add(case(name.to_owned(), result, note));
        }
    }
}

fn case(name: String, result: SubVerdict, message: Option<String>) -> Subresult {
    Subresult { name, result, message, millis: None }
}

/// `ok. 1 passed; 0 failed; 0 ignored; …`
fn total(rest: &str) -> Option<(bool, u64, u64, u64)> {
    let (word, numbers) = rest.split_once(". ")?;
    let ok = match word {
        "ok" => true,
        "FAILED" => false,
        _ => return None,
    };
    let number = |what: &str| {
        numbers.split("; ").find_map(|part| part.strip_suffix(what).and_then(|n| n.trim().parse::<u64>().ok()))
    };
    Some((ok, number(" passed")?, number(" failed")?, number(" ignored")?))
}

#[cfg(test)]
mod tests {
    use belljar_model::{Exit, Verdict};
    use proptest::prelude::*;

    use super::*;
    use crate::judge;

    fn parse(text: &str) -> Results {
        let mut parser = LibtestParser::default();
        parser.feed(text.as_bytes());
        parser.finish()
    }

    fn verdict(text: &str) -> Verdict {
        judge(Exit::Code(0), &parse(text), false, None).0
    }

    const GOOD: &str = "\nrunning 1 test\ntest a::b ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\n";

    #[test]
    fn lists() {
        assert_eq!(
            parse_list(b"a::b: test\nb: benchmark\nsrc/lib.rs - x (line 3): test\n").unwrap(),
            ["a::b", "src/lib.rs - x (line 3)"]
        );
        assert_eq!(parse_list(b"").unwrap(), Vec::<String>::new());
        assert!(parse_list(b"a: te").is_err());
        assert!(parse_list(b"a: test\na: test\n").is_err());
        assert!(parse_list(b"hello\n").is_err());
        assert!(parse_list(b": test\n").is_err());
        assert!(parse_list(b"a\x1b[2J: test\n").is_err());
        assert!(parse_list(b"\xff: test\n").is_err());
    }

    #[test]
    fn one_test() {
        assert_eq!(verdict(GOOD), Verdict::Pass);
        assert_eq!(verdict(&GOOD.replace('\n', "\r\n")), Verdict::Pass);
        let none = "running 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out\n";
        assert!(matches!(verdict(none), Verdict::Fail(_)));
        let ignored = "running 1 test\ntest a ... ignored, not today\n\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured\n";
        assert!(matches!(verdict(ignored), Verdict::Skip(_)));
        let failed =
            "running 1 test\ntest a ... FAILED\n\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured\n";
        assert_eq!(parse(failed).cases[0].result, SubVerdict::Fail);
    }

    #[test]
    fn output_may_hide_a_line_but_not_the_total() {
        let noisy = GOOD.replace("... ok", "... hello\nok");
        assert_eq!(verdict(&noisy), Verdict::Pass);
        let lying = GOOD.replace("ok. 1 passed; 0 failed", "FAILED. 0 passed; 1 failed");
        assert!(matches!(verdict(&lying), Verdict::Fail(_)));
    }

    #[test]
    fn cut_off_anywhere_is_no_pass() {
        let end = GOOD.find("0 ignored").unwrap();
        for at in 0..end {
            assert_ne!(verdict(&GOOD[..at]), Verdict::Pass, "{:?}", &GOOD[..at]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 0..500_usize) {
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut pieces = LibtestParser::default();
            pieces.feed(a);
            pieces.feed(b);
            let mut whole = LibtestParser::default();
            whole.feed(&bytes);
            prop_assert_eq!(pieces.finish(), whole.finish());
            let _ = parse_list(&bytes);
        }
    }
}
