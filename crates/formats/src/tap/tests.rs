use belljar_model::{Exit, Verdict};
use proptest::prelude::*;

use super::*;
use crate::judge;

fn parse(dialect: Dialect, text: &[u8]) -> Results {
    let mut parser = TapParser::new(dialect);
    parser.feed(text);
    parser.finish()
}

fn told(dialect: Dialect, text: &str) -> String {
    let results = parse(dialect, text.as_bytes());
    let mut said = String::new();
    for c in &results.cases {
        let message = c.message.as_deref().map(|m| format!(": {}", m.replace('\n', " | "))).unwrap_or_default();
        said.push_str(&format!("{} {}{message}\n", c.result, c.name));
    }
    for p in results.problems.iter().chain(&results.absent) {
        said.push_str(&format!("! {p}\n"));
    }
    if let Some(why) = &results.skipped {
        said.push_str(&format!("skipped: {why}\n"));
    }
    said
}

fn tap(text: &str) -> String {
    told(Dialect::Tap, text)
}

fn passes(dialect: Dialect, text: &[u8]) -> bool {
    judge(Exit::Code(0), &parse(dialect, text), false, None).0 == Verdict::Pass
}

#[test]
fn thirteen() {
    insta::assert_snapshot!(tap(
        "TAP version 13\n1..6\nsome junk\nok 1 - mkfs\nnot ok 2 - mount\n# wrong fs type\n  ---\n  message: boom\n  ok 9\n  ...\nok 3 # SKIP no loop\nnot ok 4 - later # TODO kernel bug\nok - five\nok 6 done # todo\n"
    ), @r"
    pass mkfs
    fail mount: wrong fs type | message: boom | ok 9
    skip #3: no loop
    expected-fail later: kernel bug
    pass five
    pass done: passed, though marked as TODO: 
    ");
}

#[test]
fn carriage_returns_and_a_plan_at_the_end() {
    insta::assert_snapshot!(tap("ok 1 - a\r\nok 2 - b\r\n1..2\r\n"), @r"
    pass a
    pass b
    ");
    assert!(passes(Dialect::Tap, b"ok 1 - a\r\nok 2 - b\r\n1..2"));
}

#[test]
fn plans_that_do_not_hold() {
    insta::assert_snapshot!(tap("1..3\nok 1\nok 3\n"), @r"
    pass #1
    pass #3
    missing #2
    ! 3 results were planned, and there are 2
    ");
    insta::assert_snapshot!(tap("1..1\nok 1\nok 2\n"), @r"
    pass #1
    pass #2
    ! result 2 is beyond the plan of 1..1
    ! 1 results were planned, and there are 2
    ");
    insta::assert_snapshot!(tap("1..2\nok 1\nok 1\n"), @r"
    pass #1
    pass #1
    ! result 1 stands twice
    ");
    insta::assert_snapshot!(tap("ok 1\n"), @r"
    pass #1
    ! there is no plan: the output may be cut off
    ");
    insta::assert_snapshot!(tap("1..1\n1..1\nok 1\n"), @r"
    pass #1
    ! there are two plans
    ");
    insta::assert_snapshot!(tap("ok 1\n1..2\nok 2\n"), @r"
    pass #1
    pass #2
    ! a result stands after the plan that should have been the end
    ");
    insta::assert_snapshot!(tap("hello\n"), @"! there is no TAP in the output");
    insta::assert_snapshot!(tap("1..1\nok 99999999999999999999999\n"), @r"
    pass #99999999999999999999999
    ! a result's number is none
    ");
}

#[test]
fn skipped_as_a_whole() {
    insta::assert_snapshot!(tap("1..0 # Skipped: no KVM\n"), @"skipped: no KVM");
    insta::assert_snapshot!(tap("TAP version 14\n1..0\n"), @"skipped: the plan is 1..0");
    let results = parse(Dialect::Tap, b"1..0 # SKIP no KVM\n");
    assert_eq!(judge(Exit::Code(0), &results, false, None).0, Verdict::Skip("no KVM".into()));
    assert!(!passes(Dialect::Tap, b"1..0\nok 1\n"));
}

#[test]
fn bail_out() {
    insta::assert_snapshot!(tap("1..2\nok 1\nBail out! no disk\n"), @r"
    pass #1
    missing #2
    ! Bail out! no disk
    ! 2 results were planned, and there are 1
    ");
    assert!(!passes(Dialect::Tap, b"1..1\nok 1\n    Bail out!\n"));
}

#[test]
fn directives_need_a_word_of_their_own() {
    insta::assert_snapshot!(tap(
        "1..6\nnot ok 1 fix # TODOlist\nnot ok 2 a\\# TODO\nnot ok 3 b # SKIP lazy\nnot ok 4 c#todo\nok 5 d # skipping\nok 6 a \\# b # c\n"
    ), @r"
    fail fix # TODOlist
    fail a# TODO
    fail b: not ok, though marked as skipped: lazy
    fail c#todo
    skip d
    pass a # b # c
    ");
}

#[test]
fn subtests_of_fourteen() {
    insta::assert_snapshot!(tap(
        "TAP version 14\n1..3\n# Subtest: outer\n    ok 1 - a\n    # Subtest: inner\n        not ok 1 - deep\n          ---\n          why: because\n          ...\n        1..1\n    not ok 2 - inner\n    1..2\nnot ok 1 - outer\nok 2 - plain\n    not ok 1 - excused\n    1..1\nnot ok 3 - later # TODO\n"
    ), @r"
    pass outer > a
    fail outer > inner > deep: why: because
    pass plain
    expected-fail later > excused
    ");
}

#[test]
fn a_parent_cannot_hide_its_children() {
    insta::assert_snapshot!(tap("1..1\n    not ok 1 - child\n    1..1\nok 1 - parent\n"), @"fail parent > child");
    insta::assert_snapshot!(tap("1..1\n    ok 1 - child\n    1..2\nok 1 - parent\n"), @r"
    pass parent > child
    missing parent > #2
    ! parent: 2 results were planned, and there are 1
    ");
    insta::assert_snapshot!(tap("1..1\n    ok 1 - child\n    1..1\nnot ok 1 - parent\n"), @r"
    pass parent > child
    fail parent
    ");
    insta::assert_snapshot!(tap("1..1\nok 1\n    ok 1 - child\n    1..1\n"), @r"
    pass #1
    pass child
    ! nested tests are not followed by the result of their parent: the output is cut off
    ");
}

#[test]
fn kernel_dialect() {
    let text = "KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n    KTAP version 1\n    1..1\n    # test_1: initializing test_1\n    ok 1 test_1\n  ok 1 example_test_1\n  ok 2 b # SKIP no hw\nok 1 example\n  KTAP version 1\n  not ok 1 x # XFAIL known\nok 2 second\n";
    insta::assert_snapshot!(told(Dialect::Kselftest, text), @r"
    pass example > example_test_1 > test_1
    skip example > b: no hw
    expected-fail second > x: known
    ");
    assert!(passes(Dialect::Kselftest, text.as_bytes()));
}

#[test]
fn kselftest_runner() {
    let text = "TAP version 13\n1..4\n# timeout set to 45\n# selftests: timers: posix_timers\n# TAP version 13\n# 1..2\n# ok 1 a\n# not ok 2 b\n# # Totals: pass:1 fail:1\nnot ok 1 selftests: timers: posix_timers # exit=1\n# hello\nok 2 selftests: timers: nanosleep\nnot ok 3 selftests: timers: raw_skew # SKIP\nnot ok 4 selftests: timers: leap # TIMEOUT 45 seconds\n";
    insta::assert_snapshot!(told(Dialect::Kselftest, text), @r"
    pass selftests: timers: posix_timers # exit=1 > a
    fail selftests: timers: posix_timers # exit=1 > b
    pass selftests: timers: nanosleep
    skip selftests: timers: raw_skew
    error selftests: timers: leap: TIMEOUT 45 seconds
    ");
}

#[test]
fn cut_off_anywhere_is_no_pass() {
    let begins = [
        "1..3\nok 1 - a\n    ok 1 - c\n    1..1\nok 2 - b\nok 3 - cc",
        "TAP version 14\n1..2\nok 1\n  ---\n  a: b\n  ...\nok 2",
    ];
    for text in begins {
        assert!(passes(Dialect::Tap, text.as_bytes()), "{text}");
        // The last line may lose its end: its verdict and number are what counts.
        let safe = text.rfind("ok ").unwrap();
        for at in 0..=safe + 1 {
            assert!(!passes(Dialect::Tap, &text.as_bytes()[..at]), "{:?}", &text[..at]);
        }
    }
}

#[test]
fn an_open_block_is_no_pass() {
    assert!(!passes(Dialect::Tap, b"1..1\nok 1\n  ---\n  a: b\n"));
}

#[test]
fn memory_is_bounded() {
    let mut parser = TapParser::new(Dialect::Tap);
    for n in 0..30_000 {
        parser.feed(format!("{}ok - {}\n", " ".repeat(n % 40), "x".repeat(50)).as_bytes());
    }
    parser.feed(&vec![b'y'; 1 << 20]);
    let results = parser.finish();
    assert!(results.cases.len() <= MAX_CASES);
    assert!(results.problems.len() <= 20);
}

/// A tree of results, for which we know what TAP should say.
#[derive(Clone, Debug)]
struct Node {
    ok: bool,
    name: String,
    children: Vec<Node>,
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = ("[a-zA-Z #\\\\-]{0,12}", prop::bool::weighted(0.8)).prop_map(|(name, ok)| Node {
        ok,
        name: format!("n{name}"),
        children: vec![],
    });
    leaf.prop_recursive(3, 30, 5, |inner| {
        ("[a-z]{1,5}", prop::collection::vec(inner, 1..5)).prop_map(|(name, children)| {
            let ok = children.iter().all(|c| c.ok);
            Node { ok, name, children }
        })
    })
}

fn write(nodes: &[Node], depth: usize, plan_first: bool, out: &mut String) {
    let pad = "    ".repeat(depth);
    let plan = format!("{pad}1..{}\n", nodes.len());
    if plan_first {
        out.push_str(&plan);
    }
    for (n, node) in (1..).zip(nodes) {
        if !node.children.is_empty() {
            write(&node.children, depth + 1, !plan_first, out);
        }
        let word = if node.ok { "ok" } else { "not ok" };
        let name = node.name.replace('\\', "\\\\").replace('#', "\\#");
        out.push_str(&format!("{pad}{word} {n} - {name}\n"));
    }
    if !plan_first {
        out.push_str(&plan);
    }
}

fn leaves(nodes: &[Node], prefix: &str, all: &mut Vec<(String, bool)>) {
    for node in nodes {
        let name = format!("{prefix}{}", node.name.trim());
        if node.children.is_empty() {
            all.push((name, node.ok));
        } else {
            leaves(&node.children, &format!("{name} > "), all);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 0..500_usize) {
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        let mut pieces = TapParser::new(Dialect::Kselftest);
        pieces.feed(a);
        pieces.feed(b);
        prop_assert_eq!(pieces.finish(), parse(Dialect::Kselftest, &bytes));
    }

    #[test]
    fn any_lines_without_a_kept_plan_do_not_pass(lines in prop::collection::vec(prop::sample::select(vec![
        "ok", "not ok", "ok 1", "ok 2 - b", "    ok 1", "    1..1", "        ok", "  ---", "  ...", "# Subtest: x", "not ok 2 # TODO",
        "ok # SKIP", "TAP version 14", "KTAP version 1", "Bail out!", "pragma +strict", "junk", "# ok 1", "  # 1..2", "\u{0}",
    ]), 0..15)) {
        let text = lines.join("\n");
        for dialect in [Dialect::Tap, Dialect::Kselftest] {
            prop_assert!(!passes(dialect, text.as_bytes()));
            // With a plan it passes only without failures and bailing out.
            let planned = format!("1..2\n{text}");
            if passes(dialect, planned.as_bytes()) {
                prop_assert!(!lines.contains(&"not ok") && !lines.contains(&"Bail out!"));
            }
        }
    }

    #[test]
    fn what_is_written_is_read(nodes in prop::collection::vec(node(), 1..6), plan_first in any::<bool>()) {
        let mut text = String::from("TAP version 14\n");
        write(&nodes, 0, plan_first, &mut text);
        let results = parse(Dialect::Tap, text.as_bytes());
        let mut wanted = Vec::new();
        leaves(&nodes, "", &mut wanted);
        let read: Vec<(String, bool)> =
            results.cases.iter().map(|c| (c.name.clone(), c.result == SubVerdict::Pass)).collect();
        prop_assert_eq!(&read, &wanted, "{}", text);
        prop_assert_eq!(&results.problems, &Vec::<String>::new(), "{}", text);
        prop_assert_eq!(passes(Dialect::Tap, text.as_bytes()), wanted.iter().all(|(_, ok)| *ok));
        // A line that is lost costs the pass.
        for lost in 1..text.lines().count() {
            let kept: Vec<&str> = text.lines().enumerate().filter(|(n, _)| *n != lost).map(|(_, l)| l).collect();
            prop_assert!(!passes(Dialect::Tap, kept.join("\n").as_bytes()), "{}", kept.join("\n"));
        }
    }
}

#[test]
fn colours_tabs_and_small_letters_hide_nothing() {
    let bad = |text: &str| {
        let results = parse(Dialect::Tap, text.as_bytes());
        results.problems.len() + results.cases.iter().filter(|case| case.result.is_bad()).count()
    };
    assert_eq!(bad("1..1\nok 1\n"), 0);
    assert_eq!(bad("1..1\n\u{1b}[32mok 1\u{1b}[0m\n"), 0);
    assert_eq!(bad("1..2\nok 1\n\u{1b}[1;31mnot ok 2\u{1b}[0m - x\n"), 1);
    assert_ne!(bad("1..1\nok 1\n\u{1b}[31mnot ok 2\u{1b}[0m\n"), 0);
    assert_ne!(bad("1..1\n\tnot ok 1 - inner\n\t1..1\nok 1\n"), 0);
    assert_eq!(bad("1..1\nok 1\nbail out! no disk\n"), 1);
    assert_eq!(bad("1..1\nok 1 \u{1b}[0\n"), 0);
}

#[test]
fn in_strict_tap_every_line_counts() {
    let problems = |text: &str| parse(Dialect::Tap, text.as_bytes()).problems;
    assert!(problems("TAP version 14\npragma +strict\n1..1\n# a comment\nok 1\n  ---\n  a: b\n  ...\n\n").is_empty());
    assert_eq!(problems("TAP version 14\npragma +strict\n1..1\nnot okay\nok 1\n").len(), 1);
    assert!(problems("TAP version 14\npragma +strict\npragma -strict\n1..1\nnonsense\nok 1\n").is_empty());
    assert!(problems("TAP version 14\n1..1\nnonsense\nok 1\n").is_empty());
}

#[test]
fn totals_that_no_result_bears_out_are_a_problem() {
    let told = |totals: &str| {
        parse(Dialect::Kselftest, format!("TAP version 13\n1..1\nok 1 a\n{totals}\n").as_bytes()).problems
    };
    assert!(told("# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0").is_empty());
    for bad in ["fail:2 xfail:0 error:0", "fail:0 error:1"] {
        let problems = told(&format!("# Totals: pass:1 {bad}"));
        assert!(problems.len() == 1 && problems[0].starts_with("the totals say"), "{problems:?}");
    }
    let seen = "TAP version 13\n1..1\nnot ok 1 a\n# Totals: pass:0 fail:1 xfail:0 xpass:0 skip:0 error:0\n";
    assert!(parse(Dialect::Kselftest, seen.as_bytes()).problems.is_empty());
}
