//! The published form of every event that `belljar test` has.

use crate::{
    AttemptId, Crash, CrashKind, Event, EventKind, Exit, Phase, RunId, Scope, UnitId, Verdict, event::SCHEMA,
    log::KINDS, test_run::*,
};

fn every_kind() -> Vec<EventKind> {
    let unit = UnitId::new("storage", "mkfs.sh", "debian");
    let id = AttemptId { unit: unit.clone(), repeat: 1, attempt: 2 };
    let planned = Unit {
        unit: unit.clone(),
        suite: "storage".into(),
        test: "mkfs.sh".into(),
        guest: "debian".into(),
        tags: vec!["slow".into()],
        file: Some("tests/storage/mkfs.sh".into()),
    };
    let crash = Crash { kind: CrashKind::Oops, seen: "BUG: x".into(), phase: Phase::Command };
    vec![
        EventKind::TestRunStarted(TestRunStarted {
            schema: SCHEMA,
            run: RunId::new("2026-01-02T03:04:05Z".parse().unwrap(), 1),
            version: "0.1.0".into(),
            host: Host {
                name: "h".into(),
                kernel: "Linux 6.12".into(),
                arch: "x86_64".into(),
                cpus: 2,
                memory: 1024,
                accelerator: "kvm".into(),
            },
            profile: "ci".into(),
            command: vec!["belljar".into(), "test".into()],
            partition: Some("hash:1/2".into()),
            missing: None,
            jobs: Some(2),
        }),
        EventKind::UnitPlanned(planned.clone()),
        EventKind::UnitSkipped(UnitSkipped { unit: planned, reason: "no image".into() }),
        EventKind::AttemptStarted(AttemptStarted { id: id.clone(), instance: Some(3), slot: Some(0) }),
        EventKind::Phase { phase: Phase::Boot },
        EventKind::Choice { what: "share".into(), chosen: "9p".into(), why: "it is there".into() },
        EventKind::Warning { message: "slow disk".into() },
        EventKind::Finding {
            guard: "coredump".into(),
            text: "x was killed".into(),
            outcome: crate::event::FindingOutcome::Allowed,
            reason: Some("known".into()),
        },
        EventKind::Alarm { name: "oops".into(), line: "BUG: x".into(), fatal: true, ordered: false },
        EventKind::Mark { text: "disk is gone".into() },
        EventKind::Control {
            device: "disk data0".into(),
            order: "error write times=1".into(),
            outcome: "fault 1".into(),
            refused: false,
        },
        EventKind::CommandStarted { pid: Some(7) },
        EventKind::CommandEnded { exit: Exit::Code(0), millis: 11 },
        EventKind::UnitSlow(UnitSlow { id: id.clone(), millis: 60_000 }),
        EventKind::Output(Output {
            id: id.clone(),
            stream: Stream::Stderr,
            bytes: 5,
            truncated: false,
            path: Some("units/1/stderr".into()),
            tail: "tail\n".into(),
        }),
        EventKind::Subresult(AttemptSubresult {
            id: id.clone(),
            subresult: Subresult {
                name: "case".into(),
                result: SubVerdict::ExpectedFail,
                message: Some("todo".into()),
                millis: Some(3),
            },
        }),
        EventKind::ConsoleTail { lines: vec!["login:".into()] },
        EventKind::AttemptFiles(AttemptFiles {
            id: id.clone(),
            dir: "units/1/out".into(),
            files: vec![LeftFile { path: "a.xml".into(), bytes: 7 }],
            more: 0,
        }),
        EventKind::AttemptEnded(AttemptEnded {
            id,
            verdict: Verdict::Fail(Exit::Code(0)),
            millis: 12,
            exit: Some(Exit::Code(0)),
            message: Some("1 of 3 cases failed".into()),
            dir: Some("attempts/a/try-1".into()),
            retry_in: Some(1000),
        }),
        EventKind::UnitEnded(UnitEnded {
            unit,
            verdict: Verdict::Crash(crash),
            flaky: false,
            attempts: 2,
            millis: 24,
            message: None,
        }),
        EventKind::GuestStarted(GuestStarted { instance: 3, guest: "debian".into(), slot: 1 }),
        EventKind::GuestReady(GuestReady { instance: 3, how: "clone".into() }),
        EventKind::GuestEnded(GuestEnded { instance: 3, message: None, peak_memory: Some(9) }),
        EventKind::SetupStarted(SetupStarted { script: "prepare".into(), guest: "debian".into(), instance: Some(3) }),
        EventKind::SetupEnded(SetupEnded {
            script: "prepare".into(),
            guest: "debian".into(),
            instance: Some(3),
            verdict: Verdict::Pass,
            millis: 4,
            message: None,
            path: None,
            tail: String::new(),
        }),
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Stopping(Stopping { reason: "fail-fast".into(), running: 2 }),
        EventKind::TestRunEnded(TestRunEnded {
            counts: Counts { units: 1, crash: 1, ..Counts::default() },
            exit_code: 100,
            millis: 30,
            message: None,
        }),
    ]
}

#[test]
fn the_schema_is_as_published() {
    let mut text = String::new();
    let attempt = AttemptId { unit: UnitId::new("storage", "mkfs.sh", "debian"), repeat: 1, attempt: 2 };
    for (seq, kind) in (0..).zip(every_kind()) {
        let scope = kind.is_of_guest().then(|| Scope { attempt: attempt.clone(), instance: Some(3) });
        let event = Event { seq, at: "2026-01-02T03:04:05.678Z".parse().unwrap(), kind, scope };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        text.push_str(&line);
        text.push('\n');
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_reader_knows_every_kind() {
    let name = |k: &EventKind| serde_json::to_value(k).unwrap()["kind"].as_str().unwrap().to_owned();
    for kind in every_kind() {
        assert!(KINDS.contains(&name(&kind).as_str()), "{}", name(&kind));
    }
    // Two are those of `belljar run` alone: its begin and its end.
    assert_eq!(KINDS.len(), every_kind().len() + 2);
}

/// The longest texts that the bounds allow, all of them characters that JSON doubles or makes six of.
#[test]
fn a_bounded_event_fits_a_line() {
    let unit = UnitId::new(&"s".repeat(200), &"\"".repeat(500), &"g".repeat(100));
    let id = AttemptId { unit, repeat: u32::MAX, attempt: u32::MAX };
    let tail = "\u{1}".repeat(MAX_TAIL);
    let output =
        Output { id, stream: Stream::Combined, bytes: u64::MAX, truncated: true, path: Some("p".repeat(4096)), tail };
    let event = Event { seq: u64::MAX, at: jiff::Timestamp::MAX, kind: EventKind::Output(output), scope: None };
    assert!(serde_json::to_vec(&event).unwrap().len() < crate::event::MAX_LINE);
}
