//! Bodies of the fuzz targets in `fuzz/`: any bytes, and what must hold of them. The property tests run them too, so that they
//! are run where there is no fuzzer.

use belljar_model::{
    Exit, Verdict,
    test_run::{MAX_MESSAGE, MAX_NAME, SubVerdict},
};

use crate::{
    MAX_CASES, Results, judge,
    junit::parse_junit,
    libtest::{LibtestParser, parse_list},
    tap::{Dialect, TapParser},
};

/// What holds of all results, whatever they were read from.
fn weigh(results: &Results) {
    assert!(results.cases.len() <= MAX_CASES);
    for case in &results.cases {
        assert!(case.name.len() <= MAX_NAME);
        assert!(case.message.as_ref().is_none_or(|m| m.len() <= MAX_MESSAGE));
    }
    for exit in [Exit::Code(0), Exit::Code(1), Exit::Code(77), Exit::Signal { number: 9, core: false }] {
        if judge(exit, results, false, None).0 == Verdict::Pass {
            assert_eq!(exit, Exit::Code(0));
            assert!(results.problems.is_empty() && results.dropped_bad == 0);
            assert!(results.cases.iter().all(|c| !c.result.is_bad()));
            assert!(results.dropped > 0 || results.cases.iter().any(|c| c.result == SubVerdict::Pass));
        }
    }
}

/// TAP of both dialects: the cut does not matter. The first byte says into how large pieces the rest is cut.
pub fn tap(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    for dialect in [Dialect::Tap, Dialect::Kselftest] {
        let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let mut parser = TapParser::new(dialect);
            pieces.for_each(|piece| parser.feed(piece));
            parser.finish()
        };
        let whole = read(&mut std::iter::once(bytes));
        assert_eq!(whole, read(&mut bytes.chunks(usize::from(cut).max(1))));
        weigh(&whole);
    }
}

/// The output and the list of a libtest binary: the cut does not matter.
pub fn libtest(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut parser = LibtestParser::default();
        pieces.for_each(|piece| parser.feed(piece));
        parser.finish()
    };
    let whole = read(&mut std::iter::once(bytes));
    assert_eq!(whole, read(&mut bytes.chunks(usize::from(cut).max(1))));
    weigh(&whole);
    if let Ok(names) = parse_list(bytes) {
        assert!(names.iter().all(|n| !n.is_empty() && !n.contains(char::is_control)));
    }
}

/// A JUnit file.
pub fn junit(data: &[u8]) {
    weigh(&parse_junit(data));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tap(cut in any::<u8>(), text in "((not )?ok( [0-9]{1,3})?( - [a-z#\\\\]{0,5})?( # (SKIP|TODO)[ a-z]{0,5})?\n|1\\.\\.[0-9]{1,3}\n|    |Bail out!|TAP version 1[34]\n|  ---\n|  \\.\\.\\.\n|# Subtest|[ \\PC]{0,6}\n?){0,12}") {
            super::tap(&[&[cut], text.as_bytes()].concat());
        }

        #[test]
        fn libtest(cut in any::<u8>(), text in "(\nrunning [0-9]{1,2} tests?\n|test [a-z:]{1,5} \\.\\.\\. (ok|FAILED|ignored, x)\n|test result: (ok|FAILED)\\. [0-9] passed; [0-9] failed; [0-9] ignored; 0 measured\n|[a-z:]{0,4}: (test|benchmark)\n|\\PC{0,6}){0,10}") {
            super::libtest(&[&[cut], text.as_bytes()].concat());
        }

        #[test]
        fn junit(text in "(<testsuites?>|</testsuites?>|<testcase( name=\"[a-z&;#0-9]{0,6}\")?( time=\"[0-9.e-]{0,5}\")?/?>|</testcase>|<(failure|error|skipped|system-out)( message=\"\\PC{0,4}\")?/?>|<!\\[CDATA\\[|\\]\\]>|&[a-z#0-9]{0,4};|\\PC{0,6}){0,16}") {
            super::junit(text.as_bytes());
        }

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::tap(&data);
            super::libtest(&data);
            super::junit(&data);
        }
    }
}
