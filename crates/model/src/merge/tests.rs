use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    AttemptId, Crash, CrashKind, Exit, Fault, Phase, RunId, Verdict,
    summary::{AttemptSummary, UnitState},
    test_run::*,
};

/// What one unit does, whichever part it runs in.
#[derive(Clone, Debug)]
struct Script {
    id: usize,
    skipped: bool,
    tries: Vec<Verdict>,
    cases: Vec<SubVerdict>,
    ends: bool,
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Pass),
        (1..255_u8).prop_map(|c| Verdict::Fail(Exit::Code(c))),
        Just(Verdict::Fail(Exit::Signal { number: 11, core: true })),
        Just(Verdict::Skip("not here".into())),
        Just(Verdict::Timeout(Phase::Command)),
        Just(Verdict::Crash(Crash { kind: CrashKind::Oops, seen: "BUG:".into(), phase: Phase::Command })),
        Just(Verdict::Error(Fault::Host { message: "no memory".into() })),
    ]
}

fn cases() -> impl Strategy<Value = Vec<SubVerdict>> {
    let case = prop_oneof![
        Just(SubVerdict::Pass),
        Just(SubVerdict::Fail),
        Just(SubVerdict::Skip),
        Just(SubVerdict::ExpectedFail),
        Just(SubVerdict::Missing)
    ];
    prop::collection::vec(case, 0..4)
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let one = (prop::bool::weighted(0.1), prop::collection::vec(verdict(), 1..4), cases(), prop::bool::weighted(0.9));
    prop::collection::vec(one, 0..20).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered.map(|(id, (skipped, tries, cases, ends))| Script { id, skipped, tries, cases, ends }).collect()
    })
}

struct Writer {
    events: Vec<Event>,
    at: Timestamp,
}

impl Writer {
    fn push(&mut self, kind: EventKind) {
        self.at += Duration::from_millis(7);
        self.events.push(Event { seq: self.events.len() as u64, at: self.at, kind, scope: None });
    }
}

fn log(scripts: &[Script], partition: Option<String>, late: u64) -> Vec<Event> {
    let mut w = Writer {
        events: Vec::new(),
        at: "2026-01-02T03:04:05Z".parse::<Timestamp>().unwrap() + Duration::from_millis(late),
    };
    w.push(EventKind::TestRunStarted(TestRunStarted {
        schema: SCHEMA,
        run: RunId::new(w.at, 1),
        version: "0.1.0".into(),
        host: Host { name: "host".into(), ..Host::default() },
        profile: "default".into(),
        command: vec!["belljar".into(), "test".into()],
        partition,
        missing: None,
        jobs: Some(2),
    }));
    for s in scripts {
        let (test, guest) = (format!("t{}", s.id), format!("g{}", s.id % 3));
        let id = UnitId::new("s", &test, &guest);
        let unit = Unit { unit: id, suite: "s".into(), test, guest, tags: vec![], file: None };
        w.push(if s.skipped {
            EventKind::UnitSkipped(UnitSkipped { unit, reason: "no such device".into() })
        } else {
            EventKind::UnitPlanned(unit)
        });
    }
    let mut counts = Counts { units: scripts.len() as u64, ..Counts::default() };
    for (instance, s) in (0_u64..).zip(scripts) {
        if s.skipped {
            counts.add(&Verdict::Skip(String::new()), false);
            continue;
        }
        let guest = format!("g{}", s.id % 3);
        let unit = UnitId::new("s", &format!("t{}", s.id), &guest);
        let started = GuestStarted { instance, guest, slot: u32::try_from(instance % 2).unwrap() };
        w.push(EventKind::GuestStarted(started));
        for (attempt, verdict) in (1..).zip(&s.tries) {
            let id = AttemptId { unit: unit.clone(), repeat: 1, attempt };
            let started = AttemptStarted { id: id.clone(), instance: Some(instance), slot: Some(0) };
            w.push(EventKind::AttemptStarted(started));
            for (n, result) in s.cases.iter().enumerate() {
                let subresult = Subresult { name: n.to_string(), result: *result, message: None, millis: None };
                w.push(EventKind::Subresult(AttemptSubresult { id: id.clone(), subresult }));
            }
            let tail = format!("{unit} {attempt}");
            let path = Some(format!("units/{}/out", s.id));
            let output = Output {
                id: id.clone(),
                stream: Stream::Stdout,
                bytes: tail.len() as u64,
                truncated: false,
                path,
                tail,
            };
            w.push(EventKind::Output(output));
            let last = usize::try_from(attempt).unwrap() == s.tries.len();
            if last && !s.ends {
                continue;
            }
            w.push(EventKind::AttemptEnded(AttemptEnded {
                id,
                verdict: verdict.clone(),
                millis: 5,
                exit: None,
                message: None,
                dir: Some("attempts/x".into()),
                retry_in: (!last).then_some(0),
            }));
        }
        if s.ends {
            let verdict = s.tries.last().unwrap().clone();
            let flaky = verdict == Verdict::Pass && s.tries.len() > 1;
            counts.add(&verdict, flaky);
            let attempts = u32::try_from(s.tries.len()).unwrap();
            w.push(EventKind::UnitEnded(UnitEnded { unit, verdict, flaky, attempts, millis: 5, message: None }));
        } else {
            counts.unfinished += 1;
        }
        w.push(EventKind::GuestEnded(GuestEnded { instance, message: None, peak_memory: Some(1) }));
    }
    let exit_code = counts.exit_code();
    w.push(EventKind::TestRunEnded(TestRunEnded { counts, exit_code, millis: 100, message: None }));
    w.events
}

/// A summary without times, order, and the numbers of machines.
fn essence(summary: &RunSummary) -> impl PartialEq + std::fmt::Debug + use<> {
    let attempt = |a: &AttemptSummary| {
        let ended = a.ended.as_ref().map(|e| (e.verdict.clone(), e.exit, e.retry_in.is_some()));
        (a.repeat, a.attempt, ended, a.outputs.clone(), a.subresults.clone(), a.sub_counts.clone())
    };
    let units: BTreeMap<_, _> = summary
        .units
        .iter()
        .map(|u| {
            let began = matches!(u.state, UnitState::Running);
            let attempts: Vec<_> = u.attempts.iter().map(attempt).collect();
            (u.unit.unit.clone(), (u.unit.guest.clone(), u.verdict(), u.is_flaky(), began, attempts))
        })
        .collect();
    let mut guests: Vec<_> = summary.guests.iter().map(|g| (g.started.guest.clone(), g.to.is_some())).collect();
    guests.sort();
    let ended = summary.ended.as_ref().map(|e| (e.counts, e.exit_code));
    (units, guests, ended, summary.counts(), summary.stray, summary.unknown)
}

proptest! {
    #[test]
    fn parts_merged_equal_the_run_unparted(
        all in scripts(),
        n in 1..5_usize,
        late in prop::collection::vec(0..500_u64, 5),
    ) {
        let whole = RunSummary::of(&log(&all, None, 0));
        let parts = (0..n).map(|k| {
            // What is skipped by plan is skipped in every part.
            let part: Vec<Script> = all.iter().filter(|s| s.skipped || s.id % n == k).cloned().collect();
            let name = (n > 1).then(|| format!("slice:{}/{n}", k + 1));
            Part { name: String::new(), prefix: String::new(), events: log(&part, name, late[k]) }
        });
        let merged = merge(parts.collect()).unwrap();
        for (seq, event) in (0..).zip(&merged) {
            prop_assert_eq!(event.seq, seq);
        }
        let summary = RunSummary::of(&merged);
        prop_assert_eq!(essence(&summary), essence(&whole));
        prop_assert_eq!(summary.started.unwrap().partition, None);
        // And once more: a merged log is a log.
        let again = merge(vec![Part { name: String::new(), prefix: String::new(), events: merged.clone() }]).unwrap();
        prop_assert_eq!(again, merged);
    }

    #[test]
    fn a_log_cut_off_anywhere_never_gains_a_pass(all in scripts(), at in any::<prop::sample::Index>()) {
        let events = log(&all, None, 0);
        let whole = RunSummary::of(&events);
        let cut = RunSummary::of(&events[..at.index(events.len())]);
        prop_assert!(cut.is_cut_off());
        prop_assert!(cut.counts().pass <= whole.counts().pass);
        for unit in &cut.units {
            let later = whole.unit(&unit.unit.unit).unwrap().verdict();
            prop_assert!(unit.verdict().is_none() || unit.verdict() == later);
        }
        let ended: usize = cut.units.iter().filter(|u| u.verdict().is_some()).count();
        prop_assert_eq!(ended + cut.unfinished().count(), cut.units.len());
    }

    #[test]
    fn a_log_survives_being_written_and_read(all in scripts()) {
        let events = log(&all, Some("hash:1/2".into()), 0);
        let mut text = Vec::new();
        for event in &events {
            serde_json::to_writer(&mut text, event).unwrap();
            text.push(b'\n');
        }
        let read: Vec<Event> = crate::read_log(&text[..])
            .map(|l| match l.unwrap() {
                crate::log::Line::Event(e) => e,
                damaged => panic!("{damaged:?}"),
            })
            .collect();
        prop_assert_eq!(read, events);
    }
}

fn two() -> Vec<Script> {
    let script = |id| Script { id, skipped: false, tries: vec![Verdict::Pass], cases: vec![], ends: true };
    vec![script(0), script(1)]
}

#[test]
fn a_part_that_was_cut_off_leaves_the_whole_without_an_end() {
    let all = two();
    let mut cut = log(&all[1..], Some("slice:2/2".into()), 0);
    cut.pop();
    let whole = log(&all[..1], Some("slice:1/2".into()), 0);
    let parts = [whole, cut].map(|events| Part { name: String::new(), prefix: "x".into(), events });
    let merged = merge(parts.into()).unwrap();
    assert!(RunSummary::of(&merged).is_cut_off());
    let path = merged.iter().find_map(|e| if let EventKind::Output(o) = &e.kind { o.path.clone() } else { None });
    assert_eq!(path.as_deref(), Some("x/units/0/out"));
}

fn named(name: &str, events: Vec<Event>) -> Part {
    Part { name: name.into(), prefix: String::new(), events }
}

#[test]
fn what_is_no_set_of_parts_is_refused() {
    let all = two();
    assert_eq!(merge(vec![]), Err(MergeError::Nothing));
    assert_eq!(merge(vec![named("x", vec![])]), Err(MergeError::NotATestRun { part: "x".into() }));
    let twice = vec![named("x", log(&all, None, 0)), named("y", log(&all[1..], None, 0))];
    let unit = UnitId::new("s", "t1", "g1");
    assert_eq!(merge(twice), Err(MergeError::Duplicate { unit, first: "x".into(), second: "y".into() }));
    let mut later = log(&all, None, 0);
    if let EventKind::TestRunStarted(e) = &mut later[0].kind {
        e.schema = SCHEMA + 1;
    }
    assert_eq!(merge(vec![named("x", later)]), Err(MergeError::Schema { part: "x".into(), schema: SCHEMA + 1 }));
}

#[test]
fn a_whole_is_made_of_its_own_parts_and_of_each_once() {
    let refused = |of: &[Option<&str>]| {
        let part = |(n, of): (usize, &Option<&str>)| named(&format!("p{n}"), log(&[], of.map(str::to_owned), 0));
        merge(of.iter().enumerate().map(part).collect()).unwrap_err().to_string()
    };
    let (one, three) = (Some("slice:1/3"), Some("slice:3/3"));
    assert_eq!(refused(&[one, three, one]), "p0 and p2 are both the part slice:1/3; name each part once");
    let apart = "these are no parts of one run; merge the parts of each run for themselves";
    for (other, is) in
        [(Some("slice:2/4"), "the part slice:2/4"), (Some("hash:2/3"), "the part hash:2/3"), (None, "no part of a run")]
    {
        assert_eq!(refused(&[one, three, other]), format!("p0 is the part slice:1/3, and p2 is {is}: {apart}"));
    }
    assert_eq!(refused(&[None, one]), format!("p0 is no part of a run, and p1 is the part slice:1/3: {apart}"));
    for nonsense in ["slice:4/3", "slice:0/3", "slice", "slice:a/b"] {
        assert!(refused(&[Some(nonsense)]).contains("damaged"), "{nonsense}");
    }
    assert!(refused(&[Some("hash:1/3 + hash:3/3")]).contains("p0 was itself merged of some"));
}

#[test]
fn part_of_a_run_is_no_success_and_says_what_is_missing() {
    let all = two();
    let part = |of: &str, units: &[Script]| named(of, log(units, Some(of.into()), 0));
    let merged = merge(vec![part("hash:3/3", &all[..1]), part("hash:1/3", &all[1..])]).unwrap();
    let run = RunSummary::of(&merged);
    let started = run.started.as_ref().unwrap();
    assert_eq!(started.missing.as_deref(), Some("hash:2/3"));
    assert_eq!(started.partition.as_deref(), Some("hash:3/3 + hash:1/3"));
    assert_eq!((run.counts().pass, run.ended.as_ref().unwrap().exit_code), (2, exit_code::CANNOT_RUN));
    assert!(run.incomplete().unwrap().contains("hash:2/3"));
    // It becomes no whole by merging it once more.
    assert_eq!(merge(vec![named("m", merged)]), Err(MergeError::Incomplete { part: "m".into() }));

    let alone = RunSummary::of(&merge(vec![part("slice:2/1000000000000", &all)]).unwrap());
    let missing = alone.started.unwrap().missing.unwrap();
    assert!(missing.starts_with("slice:1/1000000000000, slice:3/1000000000000, "), "{missing}");
    assert!(missing.ends_with(" and 999999999979 more"), "{missing}");
    assert_eq!(alone.ended.unwrap().exit_code, exit_code::CANNOT_RUN);

    let whole = merge(vec![part("hash:3/3", &all[..1]), part("hash:1/3", &all[1..]), part("hash:2/3", &[])]).unwrap();
    let whole = RunSummary::of(&whole);
    assert_eq!((whole.incomplete(), whole.ended.unwrap().exit_code), (None, 0));
    assert_eq!(whole.started.unwrap().partition, None);
}

#[test]
fn an_interruption_outranks_counts() {
    assert_eq!(joined_code([0, 130, 100].into_iter(), false), 130);
    assert_eq!(joined_code([0, 125, 100].into_iter(), false), 100);
    assert_eq!(joined_code([0, 4, 0].into_iter(), false), 0);
    assert_eq!(joined_code([4, 4].into_iter(), true), 4);
}
