//! JUnit XML, as nose, pytest, Maven, gtest and others write it.

use belljar_model::test_run::{MAX_MESSAGE, MAX_NAME, SubVerdict, Subresult, keep_start};
use quick_xml::{
    Reader, XmlVersion,
    events::{BytesRef, BytesStart, Event},
};

use crate::results::Results;

/// Longer documents are not read.
pub const MAX_DOCUMENT: usize = 64 * 1024 * 1024;
/// Deeper documents are not read.
const MAX_DEPTH: usize = 64;

/// Reads one document. Entities are not expanded beyond XML's own five and characters by number; nothing is fetched.
#[must_use]
pub fn parse_junit(document: &[u8]) -> Results {
    let mut walk = Walk::default();
    if document.len() > MAX_DOCUMENT {
        walk.results.problem(format!("the JUnit file is longer than {} MiB and was not read", MAX_DOCUMENT >> 20));
        return walk.results;
    }
    let text = String::from_utf8_lossy(document);
    if let Err(why) = walk.document(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
        walk.results.problem(format!("the JUnit file is damaged: {why}"));
    }
    walk.results
}

/// What declares an entity.
const ENTITY: &[u8] = b"<!ENTITY";

/// Elements of a case that quote what somebody wrote, or hold a verdict already.
const QUOTING: &[&[u8]] = &[
    b"system-out",
    b"system-err",
    b"properties",
    b"failure",
    b"error",
    b"skipped",
    b"flakyFailure",
    b"flakyError",
    b"rerunFailure",
    b"rerunError",
];

#[derive(Default)]
struct Walk {
    results: Results,
    depth: usize,
    suites: Vec<Suite>,
    case: Option<Case>,
    /// The verdict element that is open, by its depth: its text is the message.
    open: Option<usize>,
    /// The element of a case that is open and in which anything may stand, by its depth.
    quoted: Option<usize>,
}

#[derive(Default)]
struct Suite {
    name: String,
    depth: usize,
    /// What its attributes say.
    announced: u64,
    announced_bad: u64,
    cases: u64,
    bad: u64,
}

struct Case {
    name: String,
    depth: usize,
    result: SubVerdict,
    message: String,
    millis: Option<u64>,
}

impl Walk {
    fn document(&mut self, text: &str) -> Result<(), String> {
        let mut reader = Reader::from_str(text);
        let mut rooted = false;
        loop {
            match reader.read_event().map_err(|e| e.to_string())? {
                Event::Start(tag) => {
                    self.start(&tag, rooted)?;
                    rooted = true;
                }
                Event::Empty(tag) => {
                    self.start(&tag, rooted)?;
                    rooted = true;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(text) => self.text(&text.decode().map_err(|e| e.to_string())?),
                Event::CData(text) => self.text(&text.decode().map_err(|e| e.to_string())?),
                Event::GeneralRef(reference) => {
                    let text = resolve(&reference);
                    self.text(&text);
                }
                Event::Eof => break,
                Event::DocType(text) if text.windows(ENTITY.len()).any(|part| part == ENTITY) => {
                    self.results.problem("the JUnit file declares entities of its own, which are not read");
                }
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
        if self.depth > 0 {
            return Err("it is cut off".to_owned());
        }
        if !rooted {
            return Err("there is nothing in it".to_owned());
        }
        Ok(())
    }

    fn start(&mut self, tag: &BytesStart<'_>, rooted: bool) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("elements are nested deeper than {MAX_DEPTH}"));
        }
        let local = tag.local_name();
        let name = local.as_ref();
        if !rooted && name != b"testsuite" && name != b"testsuites" {
            return Err("its root is neither `testsuites` nor `testsuite`".to_owned());
        }
        if self.depth == 1 && rooted {
            return Err("it has two roots".to_owned());
        }
        match name {
            b"testsuite" | b"testsuites" if self.case.is_none() => self.suites.push(Suite {
                name: attribute(tag, b"name").unwrap_or_default(),
                depth: self.depth,
                announced: number(tag, b"tests"),
                announced_bad: number(tag, b"failures").saturating_add(number(tag, b"errors")),
                ..Suite::default()
            }),
            b"testcase" if self.case.is_none() => self.case = Some(self.new_case(tag)),
            _ if self.quoted.is_some() => {}
            b"include" if tag.name().prefix().is_some() => {
                self.results.problem("the JUnit file includes another one, which was not read");
            }
            b"failure" => self.verdict(tag, SubVerdict::Fail),
            b"error" => self.verdict(tag, SubVerdict::Error),
            b"skipped" => {
                let expected = attribute(tag, b"type").is_some_and(|t| t == "pytest.xfail");
                self.verdict(tag, if expected { SubVerdict::ExpectedFail } else { SubVerdict::Skip });
            }
            _ => {}
        }
        if QUOTING.contains(&name) && self.case.is_some() && self.quoted.is_none() {
            self.quoted = Some(self.depth);
        }
        Ok(())
    }

    fn new_case(&self, tag: &BytesStart<'_>) -> Case {
        let name = attribute(tag, b"name").unwrap_or_else(|| "(no name)".to_owned());
        let class = attribute(tag, b"classname").filter(|c| !c.is_empty());
        // gtest tells by attributes what did not run.
        let idle = attribute(tag, b"status").is_some_and(|s| s == "notrun" || s == "disabled")
            || attribute(tag, b"result").is_some_and(|r| r == "suppressed" || r == "skipped");
        // Some writers say it so, and not by an element.
        let says_bad = |name: &[u8]| {
            let said = attribute(tag, name).unwrap_or_default().to_ascii_lowercase();
            matches!(&*said, "fail" | "failed" | "failure" | "error" | "errored")
        };
        let result = if says_bad(b"status") || says_bad(b"result") {
            SubVerdict::Fail
        } else if idle {
            SubVerdict::Skip
        } else {
            SubVerdict::Pass
        };
        Case {
            name: match class {
                Some(class) => format!("{class} > {name}"),
                None => name,
            },
            depth: self.depth,
            result,
            message: String::new(),
            millis: attribute(tag, b"time").as_deref().and_then(millis),
        }
    }

    fn verdict(&mut self, tag: &BytesStart<'_>, result: SubVerdict) {
        let message = attribute(tag, b"message").unwrap_or_default();
        match &mut self.case {
            // Deeper, too: in a step of the case, or in a case within it.
            Some(case) if self.depth == case.depth + 1 || result.is_bad() => {
                // The worst of several counts: a test may fail, and fail again when it cleans up.
                let weight = |r: SubVerdict| match r {
                    SubVerdict::Fail => 3,
                    SubVerdict::Error => 2,
                    SubVerdict::Skip | SubVerdict::ExpectedFail => 1,
                    SubVerdict::Pass | SubVerdict::Missing => 0,
                };
                if weight(result) > weight(case.result) {
                    case.result = result;
                }
                if !message.is_empty() {
                    add(&mut case.message, &message);
                    add(&mut case.message, "\n");
                }
                self.open = Some(self.depth);
            }
            Some(_) => {}
            None if result.is_bad() => {
                let suite = self.suites.last().map_or_else(String::new, |s| s.name.clone());
                let name = format!("{suite} (as a whole)");
                self.results.add(Subresult { name, result, message: Some(message), millis: None });
                for suite in &mut self.suites {
                    suite.bad += 1;
                }
            }
            None => {}
        }
    }

    fn text(&mut self, text: &str) {
        if self.open.is_some()
            && let Some(case) = &mut self.case
        {
            add(&mut case.message, text);
        }
    }

    fn end(&mut self) {
        if self.open == Some(self.depth) {
            self.open = None;
        }
        if self.quoted == Some(self.depth) {
            self.quoted = None;
        }
        if self.case.as_ref().is_some_and(|c| c.depth == self.depth)
            && let Some(case) = self.case.take()
        {
            for suite in &mut self.suites {
                suite.cases += 1;
                suite.bad += u64::from(case.result.is_bad());
            }
            let message = Some(case.message.trim().to_owned());
            self.results.add(Subresult { name: case.name, result: case.result, message, millis: case.millis });
        }
        if self.suites.last().is_some_and(|s| s.depth == self.depth)
            && let Some(suite) = self.suites.pop()
        {
            // Writers count differently; that something failed or ran they agree on.
            if suite.announced_bad > 0 && suite.bad == 0 {
                self.results.problem(format!(
                    "suite `{}` says that {} cases failed, and shows none",
                    keep_start(&suite.name, MAX_NAME),
                    suite.announced_bad
                ));
            } else if suite.announced > 0 && suite.cases == 0 {
                self.results.problem(format!(
                    "suite `{}` says that {} cases ran, and shows none",
                    keep_start(&suite.name, MAX_NAME),
                    suite.announced
                ));
            }
        }
        self.depth = self.depth.saturating_sub(1);
    }
}

fn add(message: &mut String, text: &str) {
    let room = MAX_MESSAGE.saturating_sub(message.len());
    message.push_str(keep_start(text, room));
}

fn attribute(tag: &BytesStart<'_>, name: &[u8]) -> Option<String> {
    let found = tag.attributes().with_checks(false).flatten().find(|a| a.key.local_name().as_ref() == name)?;
    let raw = String::from_utf8_lossy(&found.value).into_owned();
    let value = found.normalized_value(XmlVersion::Implicit1_0).map_or(raw, std::borrow::Cow::into_owned);
    Some(keep_start(&value, MAX_MESSAGE).to_owned())
}

fn number(tag: &BytesStart<'_>, name: &[u8]) -> u64 {
    attribute(tag, name).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Seconds, perhaps with commas between thousands.
fn millis(time: &str) -> Option<u64> {
    let seconds: f64 = time.trim().replace(',', "").parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (0.0..1e12).contains(&seconds).then(|| (seconds * 1000.0).round() as u64)
}

fn resolve(reference: &BytesRef<'_>) -> String {
    if let Ok(Some(c)) = reference.resolve_char_ref() {
        return c.to_string();
    }
    match reference.decode().unwrap_or_default().as_ref() {
        "lt" => "<".to_owned(),
        "gt" => ">".to_owned(),
        "amp" => "&".to_owned(),
        "quot" => "\"".to_owned(),
        "apos" => "'".to_owned(),
        other => format!("&{};", keep_start(other, 64)),
    }
}

#[cfg(test)]
mod tests {
    use belljar_model::{Exit, Verdict};
    use proptest::prelude::*;

    use super::*;
    use crate::judge;

    fn told(document: &str) -> String {
        let results = parse_junit(document.as_bytes());
        let mut text = String::new();
        for c in &results.cases {
            let message = c.message.as_deref().unwrap_or("").replace('\n', " | ");
            text.push_str(format!("{} {} {:?} {message}", c.result, c.name, c.millis).trim_end());
            text.push('\n');
        }
        for p in &results.problems {
            text.push_str(&format!("! {p}\n"));
        }
        text
    }

    #[test]
    fn nose() {
        insta::assert_snapshot!(told(
            r#"<?xml version="1.0" encoding="UTF-8"?><testsuite name="nosetests" tests="3" errors="1" failures="1" skip="1"><testcase classname="test_a.TestA" name="test_ok" time="0.012"></testcase><testcase classname="test_a.TestA" name="test_bad" time="1"><failure type="exceptions.AssertionError" message="1 != 2"><![CDATA[Traceback <here>
AssertionError: 1 != 2]]></failure></testcase><testcase classname="test_a" name="test_err" time="0.000"><error type="X" message="b&amp;b&#33;"></error></testcase></testsuite>"#
        ), @r"
        pass test_a.TestA > test_ok Some(12)
        fail test_a.TestA > test_bad Some(1000) 1 != 2 | Traceback <here> | AssertionError: 1 != 2
        error test_a > test_err Some(0) b&b!
        ");
    }

    #[test]
    fn pytest_maven_gtest() {
        insta::assert_snapshot!(told(
            r#"<testsuites>
              <testsuite name="pytest" tests="3" skipped="2"><properties><property name="a" value="b"/></properties>
                <testcase classname="t" name="a[x &lt; y]" time="0.1"><system-out>not <b/> a failure</system-out></testcase>
                <testcase classname="t" name="b"><skipped type="pytest.skip" message="no root">t.py:1</skipped></testcase>
                <testcase classname="t" name="c"><skipped type="pytest.xfail" message="bug 7"/></testcase></testsuite>
              <testsuite name="maven" time="1,234.5"><testcase name="m" time="1,234.5"><flakyFailure type="x">once</flakyFailure></testcase></testsuite>
              <testsuite name="gtest"><testcase name="D" status="notrun" result="suppressed"/></testsuite>
              <testsuite name="load"><error message="cannot import"/></testsuite>
            </testsuites>"#
        ), @r"
        pass t > a[x < y] Some(100)
        skip t > b None no root | t.py:1
        expected-fail t > c None bug 7
        pass m Some(1234500)
        skip D None
        error load (as a whole) None cannot import
        ");
    }

    #[test]
    fn contradictions_are_problems() {
        insta::assert_snapshot!(told(r#"<testsuite name="x" tests="2" failures="1"><testcase name="a"/></testsuite>"#), @r"
        pass a None
        ! suite `x` says that 1 cases failed, and shows none
        ");
        insta::assert_snapshot!(told(r#"<testsuite name="x" tests="2"/>"#), @"! suite `x` says that 2 cases ran, and shows none");
        insta::assert_snapshot!(told("<html/>"), @"! the JUnit file is damaged: its root is neither `testsuites` nor `testsuite`");
        insta::assert_snapshot!(told(""), @"! the JUnit file is damaged: there is nothing in it");
    }

    #[test]
    fn a_failure_counts_wherever_it_stands_in_a_case() {
        let bad =
            |case: &str| parse_junit(format!("<testsuite>{case}</testsuite>").as_bytes()).cases[0].result.is_bad();
        for case in [
            "<testcase name='a'><testcase name='b'><failure/></testcase></testcase>",
            "<testcase name='a'><steps><step><error/></step></steps></testcase>",
            "<testcase name='a' status='failed'/>",
            "<testcase name='a' result='Error'></testcase>",
        ] {
            assert!(bad(case), "{case}");
        }
        for case in [
            "<testcase name='a'><system-out><x><failure/></x></system-out></testcase>",
            "<testcase name='a'><skipped><failure/></skipped></testcase>",
            "<testcase name='a'><flakyFailure><failure/></flakyFailure></testcase>",
            "<testcase name='a' status='run' result='completed'/>",
        ] {
            assert!(!bad(case), "{case}");
        }
        let after = "<testcase name='a'><system-out><x/></system-out><failure/></testcase>";
        assert!(bad(after));
    }

    #[test]
    fn what_stands_in_another_file_is_a_problem() {
        let include = r#"<testsuite><testcase name="a"/><xi:include href="b.xml"/></testsuite>"#;
        insta::assert_snapshot!(told(include), @r"
        pass a None
        ! the JUnit file includes another one, which was not read
        ");
        let entity =
            r#"<!DOCTYPE x [<!ENTITY f "<failure/>">]><testsuite><testcase name="a">&f;</testcase></testsuite>"#;
        insta::assert_snapshot!(told(entity), @r"
        pass a None
        ! the JUnit file declares entities of its own, which are not read
        ");
        insta::assert_snapshot!(told(r#"<!DOCTYPE testsuite><testsuite><testcase name="a"/></testsuite>"#), @"pass a None");
    }

    #[test]
    fn entities_do_not_grow() {
        let bomb = r#"<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><testsuite><testcase name="&b;"><failure>&b;&lt;</failure></testcase></testsuite>"#;
        insta::assert_snapshot!(told(bomb), @r"
        fail &b; None &b;<
        ! the JUnit file declares entities of its own, which are not read
        ");
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("<testsuite>{}", "<a>".repeat(100_000));
        insta::assert_snapshot!(told(&deep), @"! the JUnit file is damaged: elements are nested deeper than 64");
    }

    const GOOD: &str = r#"<testsuites><testsuite name="s" tests="1"><testcase name="a" classname="b" time="0.5"/></testsuite></testsuites>"#;

    #[test]
    fn cut_off_anywhere_is_no_pass() {
        for at in 0..GOOD.len() {
            let results = parse_junit(&GOOD.as_bytes()[..at]);
            assert_ne!(judge(Exit::Code(0), &results, false, None).0, Verdict::Pass, "{}", &GOOD[..at]);
        }
        assert_eq!(judge(Exit::Code(0), &parse_junit(GOOD.as_bytes()), false, None).0, Verdict::Pass);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let results = parse_junit(&bytes);
            prop_assert_ne!(judge(Exit::Code(0), &results, false, None).0, Verdict::Pass);
        }

        #[test]
        fn any_mix_of_pieces(pieces in prop::collection::vec(prop::sample::select(vec![
            "<testsuite>", "</testsuite>", "<testsuites>", "</testsuites>", "<testcase name='a'>", "</testcase>", "<failure>", "</failure>",
            "<skipped/>", "<error/>", "text", "&lt;", "&#0;", "&#x110000;", "<![CDATA[", "]]>", "<!--", "-->", "<testcase/>", "\u{feff}", "<",
        ]), 0..30)) {
            let _ = parse_junit(pieces.concat().as_bytes());
        }

        #[test]
        fn a_failure_is_never_lost(names in prop::collection::vec(("[a-z<&\"]{0,8}", any::<bool>()), 1..20)) {
            let escape = |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
            let body: String = names.iter().map(|(n, bad)| {
                format!("<testcase name=\"{}\">{}</testcase>", escape(n), if *bad { "<failure/>" } else { "" })
            }).collect();
            let results = parse_junit(format!("<testsuite>{body}</testsuite>").as_bytes());
            let read: Vec<(String, bool)> = results.cases.iter().map(|c| (c.name.clone(), c.result.is_bad())).collect();
            prop_assert_eq!(read, names);
        }
    }
}
