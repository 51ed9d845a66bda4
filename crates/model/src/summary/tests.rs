//! Tests of the fold.

use super::*;
use crate::{
    Exit,
    test_run::{AttemptStarted, AttemptSubresult, Stream},
};

struct Log(RunSummary, u64);

impl Log {
    fn new(limits: Limits) -> Self {
        let mut log = Self(RunSummary::new(limits), 0);
        let unit = Unit {
            unit: "s/t@g".into(),
            suite: "s".into(),
            test: "t".into(),
            guest: "g".into(),
            tags: vec![],
            file: None,
        };
        log.push(EventKind::UnitPlanned(unit));
        log
    }

    fn push(&mut self, kind: EventKind) {
        self.push_of(None, kind);
    }

    fn push_of(&mut self, scope: Option<Scope>, kind: EventKind) {
        self.1 += 1;
        let at = Timestamp::from_millisecond(i64::try_from(self.1).unwrap()).unwrap();
        self.0.apply(&Event { seq: self.1, at, kind, scope });
    }

    fn start(&mut self, repeat: u32, attempt: u32) -> AttemptId {
        let id = AttemptId { unit: "s/t@g".into(), repeat, attempt };
        self.push(EventKind::AttemptStarted(AttemptStarted { id: id.clone(), instance: None, slot: None }));
        id
    }

    fn end(&mut self, id: &AttemptId, verdict: Verdict) {
        let ended =
            AttemptEnded { id: id.clone(), verdict, millis: 1, exit: None, message: None, dir: None, retry_in: None };
        self.push(EventKind::AttemptEnded(ended));
    }

    fn write(&mut self, id: &AttemptId, tail: &str) {
        let (bytes, tail) = (tail.len() as u64, tail.to_owned());
        let output = Output { id: id.clone(), stream: Stream::Stdout, bytes, truncated: false, path: None, tail };
        self.push(EventKind::Output(output));
    }

    fn unit(&self) -> &UnitSummary {
        &self.0.units[0]
    }
}

#[test]
fn a_thousand_repetitions_keep_the_one_that_failed() {
    let mut log = Log::new(Limits { attempts: 4, ..Limits::default() });
    for repeat in 1..=1000 {
        let id = log.start(repeat, 1);
        log.end(&id, if repeat == 500 { Verdict::Fail(Exit::Code(3)) } else { Verdict::Pass });
    }
    let unit = log.unit();
    assert_eq!(unit.attempts.len(), 4);
    assert_eq!(unit.attempts_dropped, 996);
    assert!(unit.attempts.iter().any(|a| a.repeat == 500));
    assert_eq!(unit.attempts.last().unwrap().repeat, 1000);
}

#[test]
fn bad_cases_push_good_ones_out_and_all_are_counted() {
    let mut log = Log::new(Limits { subresults: 10, ..Limits::default() });
    let id = log.start(1, 1);
    for n in 0..100 {
        let result = if n >= 95 { SubVerdict::Fail } else { SubVerdict::Pass };
        let subresult = Subresult { name: n.to_string(), result, message: None, millis: None };
        log.push(EventKind::Subresult(AttemptSubresult { id: id.clone(), subresult }));
    }
    let attempt = &log.unit().attempts[0];
    assert_eq!(attempt.subresults.len(), 10);
    assert_eq!(attempt.subresults.iter().filter(|s| s.result == SubVerdict::Fail).count(), 5);
    assert_eq!(attempt.sub_total(), 100);
    assert_eq!(attempt.sub_counts[&SubVerdict::Pass], 95);
}

#[test]
fn a_pass_keeps_less_of_its_output_than_a_failure() {
    let mut log = Log::new(Limits { passing_tail: 4, failing_tail: 8, ..Limits::default() });
    let id = log.start(1, 1);
    log.write(&id, "0123456789");
    assert_eq!(log.unit().attempts[0].outputs[0].tail, "23456789");
    log.end(&id, Verdict::Pass);
    assert_eq!(log.unit().attempts[0].outputs[0].tail, "6789");
    assert_eq!(log.unit().attempts[0].outputs[0].bytes, 10);
}

#[test]
fn of_what_passed_nothing_need_be_kept_but_the_verdict() {
    let end =
        |verdict| UnitEnded { unit: "s/t@g".into(), verdict, flaky: false, attempts: 1, millis: 1, message: None };
    for (verdict, kept) in [(Verdict::Pass, 0), (Verdict::Skip("no".into()), 0), (Verdict::Fail(Exit::Code(1)), 1)] {
        let mut log = Log::new(Limits { of_passing: false, ..Limits::default() });
        let id = log.start(1, 1);
        log.end(&id, verdict.clone());
        log.push(EventKind::UnitEnded(end(verdict.clone())));
        assert_eq!((log.unit().attempts.len(), log.unit().verdict()), (kept, Some(verdict)));
    }
}

#[test]
fn notes_are_bounded() {
    let mut log = Log::new(Limits { notes: 3, ..Limits::default() });
    let id = log.start(1, 1);
    for _ in 0..10 {
        let scope = Scope { attempt: id.clone(), instance: None };
        log.push_of(Some(scope), EventKind::Warning { message: "x".into() });
    }
    assert_eq!(log.unit().attempts[0].notes.len(), 3);
    assert_eq!(log.unit().attempts[0].notes_dropped, 7);
}

#[test]
fn what_a_guest_says_is_of_its_try_or_of_the_run() {
    let mut log = Log::new(Limits::default());
    let id = log.start(1, 1);
    let warning = EventKind::Warning { message: "x".into() };
    log.push(warning.clone());
    assert_eq!((log.0.notes.len(), log.unit().attempts[0].notes.len()), (1, 0));
    let of = |attempt: &AttemptId| Some(Scope { attempt: attempt.clone(), instance: Some(7) });
    log.push_of(of(&id), warning);
    log.push_of(of(&id), EventKind::Phase { phase: Phase::Boot });
    log.push_of(of(&id), EventKind::CommandStarted { pid: Some(3) });
    log.push_of(of(&id), EventKind::CommandEnded { exit: Exit::Code(0), millis: 1 });
    log.push_of(of(&id), EventKind::ConsoleTail { lines: vec!["last".into()] });
    let attempt = &log.unit().attempts[0];
    assert_eq!((log.0.notes.len(), attempt.notes.len(), attempt.phases.len()), (1, 1, 1));
    assert_eq!((attempt.instance, attempt.console.len(), log.0.stray), (Some(7), 1, 0));
    // Without a try, or with one that nobody knows, it fits nothing.
    log.push(EventKind::Phase { phase: Phase::Boot });
    log.push(EventKind::CommandStarted { pid: None });
    log.push_of(of(&AttemptId { attempt: 9, ..id }), EventKind::Phase { phase: Phase::Boot });
    assert_eq!(log.0.stray, 3);
}

#[test]
fn the_first_word_on_a_unit_is_the_last() {
    let mut log = Log::new(Limits::default());
    let end = |verdict| {
        EventKind::UnitEnded(UnitEnded {
            unit: "s/t@g".into(),
            verdict,
            flaky: false,
            attempts: 1,
            millis: 1,
            message: None,
        })
    };
    log.push(end(Verdict::Fail(Exit::Code(1))));
    log.push(end(Verdict::Pass));
    assert_eq!(log.unit().verdict(), Some(Verdict::Fail(Exit::Code(1))));
    assert_eq!(log.0.stray, 1);
    assert_eq!(log.0.counts().exit_code(), crate::exit_code::TESTS_FAILED);
}

#[test]
fn what_belongs_to_nothing_is_counted_and_harmless() {
    let mut log = Log::new(Limits::default());
    let id = AttemptId { unit: "s/other@g".into(), repeat: 1, attempt: 1 };
    log.end(&id, Verdict::Pass);
    log.end(&AttemptId { unit: "s/t@g".into(), ..id }, Verdict::Pass);
    assert_eq!(log.0.stray, 2);
    assert_eq!(log.unit().verdict(), None);
    assert!(log.0.is_cut_off());
}
