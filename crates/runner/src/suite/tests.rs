//! Whole runs of suites, in guests that are pretended ([`crate::pretend`]). The clock is pretended too, so that pauses and limits take no
//! time.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use belljar_guest_spec::Surroundings;
use belljar_machine::{
    Cause, Lost,
    backend::{Backends, qemu::QemuBackend},
    guest::Origin,
    host::HostContext,
    lease::{Templates, Use},
    qemu::sandbox::Shim,
    template::TemplateStore,
};
use belljar_model::{EventKind, RunId, Verdict, test_run::Host, verdict::Fault};
use belljar_suite::{
    config::Config,
    discover::discover,
    plan::{PlanOptions, plan},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::LocalSet};
use write_program::write_program;

use super::{Cases, Ended, Request, RunControl, RunLimits, StandStill, run};
use crate::{
    cancel::{self, Canceller},
    log::EventLog,
    pretend::{Fate, LAST_WORDS, Pretend, SCRATCH},
};

/// One suite `s`, with a test of its own for each file in `t`.
const SUITE: &str = "[[suites]]\nname = \"s\"\ntests = \"t/*\"\n";

/// A suite on the disk.
struct World {
    dir: TempDir,
    limits: RunLimits,
}

/// What came of it.
struct Outcome {
    events: Vec<EventKind>,
    ended: Result<Ended, String>,
    run_dir: PathBuf,
}

/// Something that is done when the log shows this.
type Reaction<'a> = &'a dyn Fn(&EventKind, &Canceller, &mpsc::UnboundedSender<StandStill>);

impl World {
    fn new(config: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("belljar.toml"), config).unwrap();
        for (name, steps) in files {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            write_program(&path, format!("#!/bin/pretend\n{steps}\n"));
        }
        let limits = RunLimits {
            jobs: Some(1),
            max_memory: Some(8 << 30),
            max_cpus: 2,
            groups: BTreeMap::new(),
            fail_fast: false,
            global_timeout: None,
            error_retries: 0,
            until_fail: false,
        };
        Self { dir, limits }
    }

    /// One whose guests fare like `fate`.
    fn run(&self, pretend: &Pretend) -> Outcome {
        self.run_with(pretend.alone(), true, &|_, _, _| ())
    }

    fn run_with(&self, backends: Backends, paused: bool, react: Reaction<'_>) -> Outcome {
        let path = self.dir.path().join("belljar.toml");
        let config = Config::load(&path, &path).unwrap_or_else(|e| panic!("{e}"));
        let found = discover(&config).unwrap_or_else(|found| panic!("{found:?}"));
        let run_dir = self.dir.path().join("run");
        fs_err::create_dir(&run_dir).unwrap();
        let setup = found.setup.clone();
        let planner = move |cases: &Cases| {
            let options = PlanOptions { cases: Some(cases), ..PlanOptions::new(&config.profiles["default"]) };
            plan(&config, &found, &options)
        };
        let request = Request {
            run: RunId::new(jiff::Timestamp::UNIX_EPOCH, 1),
            version: "0".into(),
            command: vec!["belljar".into()],
            host_words: Host {
                name: "host".into(),
                kernel: "Linux".into(),
                arch: "none".into(),
                cpus: 2,
                memory: 8 << 30,
                accelerator: String::new(),
            },
            plan: Box::new(planner),
            setup,
            workspace: fs_err::canonicalize(self.dir.path()).unwrap(),
            around: Surroundings::default(),
            backends,
            run_dir: run_dir.clone(),
            limits: self.limits.clone(),
        };
        let (canceller, cancel) = cancel::channel();
        let canceller = Rc::new(canceller);
        let (stops, stand_still) = mpsc::unbounded_channel();
        let control = RunControl { canceller: Rc::clone(&canceller), cancel, stand_still };
        let events: Rc<RefCell<Vec<EventKind>>> = Rc::default();
        let seen = Rc::clone(&events);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(paused).build().unwrap();
        let ended = LocalSet::new().block_on(&runtime, async {
            let (tell, mut told) = mpsc::unbounded_channel();
            let observer = move |event: &belljar_model::Event| {
                seen.borrow_mut().push(event.kind.clone());
                // Whoever reacts is gone at the end.
                drop(tell.send(event.kind.clone()));
            };
            let log = EventLog::create(&run_dir.join("events.jsonl"), Box::new(observer)).unwrap();
            let reacting = async {
                while let Some(kind) = told.recv().await {
                    react(&kind, &canceller, &stops);
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = run(request, log, control) => ended,
                () = reacting => unreachable!("it waits for ever"),
            }
        });
        let events = events.borrow().clone();
        let named = events.iter().filter_map(|kind| match kind {
            EventKind::AttemptEnded(ended) => ended.dir.as_ref(),
            _ => None,
        });
        for dir in named {
            assert!(run_dir.join(dir).is_dir(), "a person is sent to {dir}, which is not there");
        }
        Outcome { events, ended, run_dir }
    }
}

impl Outcome {
    /// A line for each unit: the test's name, its verdict, and its message.
    fn units(&self) -> String {
        let mut text = String::new();
        for kind in &self.events {
            if let EventKind::UnitEnded(ended) = kind {
                let name = ended.unit.as_str().trim_start_matches("s/").split('@').next().unwrap_or_default();
                let message = ended.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
                let flaky = if ended.flaky { " (flaky)" } else { "" };
                let _ = writeln!(text, "{name} {}{flaky}{message}", shown(&ended.verdict));
            }
        }
        text
    }

    fn exit_code(&self) -> u8 {
        self.ended.as_ref().unwrap_or_else(|why| panic!("{why}")).exit_code
    }

    /// Tries at a unit, in all.
    fn attempts(&self) -> usize {
        self.events.iter().filter(|kind| matches!(kind, EventKind::AttemptEnded(_))).count()
    }
}

fn shown(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Pass => "pass".to_owned(),
        Verdict::Fail(exit) => format!("fail, {exit}"),
        Verdict::Skip(why) => format!("skip, {why}"),
        Verdict::Timeout(phase) => format!("timeout, {phase:?}"),
        Verdict::Crash(crash) => format!("crash, {}: {}", crash.kind, crash.seen),
        Verdict::Error(Fault::Host { message }) => format!("error, {message}"),
        Verdict::Error(other) => format!("error, {other:?}"),
    }
}

#[test]
fn what_a_command_did_is_the_verdict_and_each_has_a_guest_of_its_own() {
    let world = World::new(
        SUITE,
        &[("t/a", "say hello"), ("t/b", "exit 3"), ("t/c", "exit 77"), ("t/d", "crash"), ("t/e", "lose")],
    );
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!((outcome.exit_code(), pretend.count("lease"), pretend.count("gone")), (100, 5, 5));
    assert_eq!(pretend.journal()[..5], ["all: probe", "all: prepare", "0: lease", "0: run t/a", "0: close Kill"]);
    assert_eq!(pretend.count("close Kill"), 3, "those whose end vouches for what they did");
    assert_eq!(pretend.count("close Hurry"), 2);
    assert_eq!(pretend.count("kill command"), 1, "only in a guest that may be alive");
    let kept = outcome.run_dir.join("attempts/s.a@host/try-1");
    assert!(kept.join(LAST_WORDS).is_file() && !kept.join(SCRATCH).exists(), "what is of use is kept");
    let console = |kind: &&EventKind| matches!(kind, EventKind::Output(o) if o.path.as_deref().is_some_and(|p| p.ends_with(LAST_WORDS)));
    assert_eq!(outcome.events.iter().filter(console).count(), 5, "the backend says where the console is");
}

#[test]
fn a_guest_that_loses_what_was_written_passes_nothing() {
    let world = World::new(SUITE, &[("t/a", "unsynced")]);
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(outcome.exit_code(), 125);
}

#[test]
fn a_command_out_of_time_is_killed_and_its_guest_ended_in_a_hurry() {
    let world = World::new(&format!("{SUITE}timeout = \"90s\"\n"), &[("t/a", "say so far\nhang")]);
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(pretend.journal()[3..], ["0: run t/a", "0: kill command", "0: close Hurry", "0: gone"]);
    let tail = |kind: &&EventKind| matches!(kind, EventKind::ConsoleTail { lines } if lines == &["what it was at"]);
    assert_eq!(outcome.events.iter().filter(tail).count(), 1);
}

#[test]
fn what_may_pass_is_tried_again_and_what_a_test_did_is_not() {
    let mut world = World::new(SUITE, &[("t/a", "once lose"), ("t/b", "exit 1"), ("t/c", "lose")]);
    world.limits.error_retries = 2;
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(outcome.attempts(), 2 + 1 + 3);
}

#[test]
fn a_test_that_passes_at_the_second_try_is_flaky() {
    let world = World::new(&format!("{SUITE}retries = 1\n"), &[("t/a", "once exit 1")]);
    let outcome = world.run(&Pretend::new(Fate::default()));
    assert_eq!(outcome.units(), "a pass (flaky)\n");
}

#[test]
fn a_guest_that_cannot_be_prepared_is_not_tried_for_each_test() {
    let mut world = World::new(SUITE, &[("t/a", ""), ("t/b", "")]);
    world.limits.error_retries = 2;
    let fate = Fate::default();
    *fate.unprepared.borrow_mut() = Some(Lost::from(Cause::Description("there is no such guest".into())).lasting());
    let pretend = Pretend::new(fate);
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!((pretend.count("prepare"), outcome.attempts()), (1, 2));
}

#[test]
fn a_guest_that_never_comes_up_is_given_up_after_three_times() {
    let mut world = World::new(SUITE, &[("t/a", ""), ("t/b", "")]);
    world.limits.error_retries = 9;
    let pretend = Pretend::new(Fate { lost_on_lease: 99.into(), ..Fate::default() });
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(pretend.count("lease"), 3);
    assert_eq!(pretend.count("prepare"), 1, "that it does not come up says nothing against how it was prepared");
}

#[test]
fn guests_that_are_made_fast_are_made_ahead() {
    let world = World::new(SUITE, &[("t/a", ""), ("t/b", ""), ("t/c", ""), ("t/d", "")]);
    let ahead = |origin| {
        let pretend = Pretend::new(Fate { origin, ..Fate::default() });
        let outcome = world.run(&pretend);
        fs_err::remove_dir_all(&outcome.run_dir).unwrap();
        assert_eq!((outcome.exit_code(), pretend.count("lease"), pretend.count("gone")), (0, 4, 4), "{origin:?}");
        pretend.count("check")
    };
    assert_eq!(ahead(Origin::Cold), 0, "what boots would slow down the tests beside it");
    assert_eq!(ahead(Origin::Clone), 3, "all but the first, which shows how it is made");
}

#[test]
fn a_guest_that_died_waiting_is_no_verdict_on_the_test() {
    let mut world = World::new(SUITE, &[("t/a", ""), ("t/b", "")]);
    world.limits.error_retries = 1;
    let pretend = Pretend::new(Fate { origin: Origin::Clone, lost_waiting: 1.into(), ..Fate::default() });
    let outcome = world.run(&pretend);
    assert_eq!(outcome.units(), "a pass\nb pass\n");
    assert_eq!((outcome.attempts(), pretend.count("lease"), pretend.count("gone")), (3, 3, 3));
}

#[test]
fn guests_that_nobody_took_are_ended_with_the_run() {
    let mut world = World::new(SUITE, &[("t/a", ""), ("t/b", "exit 1"), ("t/c", ""), ("t/d", "")]);
    world.limits.fail_fast = true;
    let pretend = Pretend::new(Fate { origin: Origin::Clone, ..Fate::default() });
    let outcome = world.run(&pretend);
    assert_eq!(outcome.exit_code(), 100);
    assert_eq!(pretend.count("run t/c"), 0);
    assert_eq!(pretend.count("lease"), pretend.count("gone"));
    let count = |is: fn(&EventKind) -> bool| outcome.events.iter().filter(|kind| is(kind)).count();
    let (begun, ended) =
        (|k: &_| matches!(k, EventKind::GuestStarted(_)), |k: &_| matches!(k, EventKind::GuestEnded(_)));
    assert_eq!(count(begun), count(ended), "each guest that is told of has an end");
}

#[test]
fn a_set_up_runs_in_each_guest_or_once_where_it_can_be_kept() {
    let files = [("t/a", ""), ("t/b", ""), ("setup", "say ready")];
    let runs = |keys: &str, keeps| {
        let world = World::new(&format!("{SUITE}setup = \"setup\"\n{keys}"), &files);
        let pretend = Pretend::new(Fate { keeps, ..Fate::default() });
        assert_eq!(world.run(&pretend).units(), "a pass\nb pass\n");
        (pretend.count("run setup"), pretend.count("keep"))
    };
    assert_eq!(runs("", true), (2, 0), "nobody asked for it to be kept");
    assert_eq!(runs("setup-once = true\n", true), (1, 1));
    assert_eq!(runs("setup-once = true\n", false), (2, 0), "the backend cannot");
}

#[test]
fn a_set_up_that_fails_is_no_verdict_and_is_given_up() {
    let files = [("t/a", ""), ("t/b", ""), ("t/c", ""), ("t/d", ""), ("setup", "say no room\nexit 4")];
    let mut world = World::new(&format!("{SUITE}setup = \"setup\"\nsetup-once = true\n"), &files);
    world.limits.error_retries = 3;
    let pretend = Pretend::new(Fate { keeps: true, ..Fate::default() });
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!((pretend.count("run setup"), outcome.attempts()), (3, 4), "not for each test, and for none twice");
    assert_eq!(pretend.count("lease"), pretend.count("gone"));
}

#[test]
fn tests_that_share_a_guest_have_it_until_one_spoils_it() {
    let files = [("t/a", ""), ("t/b", "exit 1"), ("t/c", "spoil"), ("t/d", ""), ("t/e", "crash"), ("t/f", "")];
    let world = World::new(&format!("{SUITE}isolation = \"suite\"\n"), &files);
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    let runs: Vec<String> = pretend.journal().into_iter().filter(|line| line.contains("run ")).collect();
    assert_eq!(runs, ["0: run t/a", "0: run t/b", "0: run t/c", "1: run t/d", "1: run t/e", "2: run t/f"]);
    assert_eq!(pretend.count("settle"), 5, "all but the one whose guest died");
    let warned = |kind: &&EventKind| matches!(kind, EventKind::Warning { message } if message.contains("a mount"));
    assert_eq!(outcome.events.iter().filter(warned).count(), 1);
}

#[test]
fn a_signal_ends_the_run_and_its_guests() {
    let world = World::new(SUITE, &[("t/a", "hang"), ("t/b", "")]);
    let pretend = Pretend::new(Fate::default());
    let interrupt = |kind: &EventKind, canceller: &Canceller, _: &_| {
        if matches!(kind, EventKind::CommandStarted { .. }) {
            canceller.signal(2);
        }
    };
    let outcome = world.run_with(pretend.alone(), true, &interrupt);
    assert_eq!(outcome.exit_code(), 130);
    assert_eq!(pretend.journal()[3..], ["0: run t/a", "0: kill command", "0: close Hurry", "0: gone"]);
}

#[test]
fn nothing_begins_after_a_signal_and_a_limit_of_the_run_is_not_the_set_ups_fault() {
    let files = [("t/a", ""), ("t/b", ""), ("t/c", ""), ("setup", "hang")];
    for (more, keeps) in [("", false), ("setup-once = true\n", true)] {
        let config = format!("{SUITE}isolation = \"suite\"\nsetup = \"setup\"\n{more}");
        let mut world = World::new(&config, &files);
        let pretend = Pretend::new(Fate { keeps, ..Fate::default() });
        let interrupt = |kind: &EventKind, canceller: &Canceller, _: &_| {
            if matches!(kind, EventKind::SetupStarted { .. }) {
                canceller.signal(2);
            }
        };
        let outcome = world.run_with(pretend.alone(), true, &interrupt);
        assert_eq!(outcome.exit_code(), 130);
        let begun = |kind: &&EventKind| matches!(kind, EventKind::AttemptStarted(_));
        assert_eq!(outcome.events.iter().filter(begun).count(), 1, "{more}");

        fs_err::remove_dir_all(world.dir.path().join("run")).unwrap();
        world.limits.global_timeout = Some(Duration::from_secs(2));
        let outcome = world.run(&Pretend::new(Fate { keeps, ..Fate::default() }));
        let ended = outcome.events.iter().find_map(|kind| match kind {
            EventKind::UnitEnded(ended) => Some(ended.verdict.clone()),
            _ => None,
        });
        assert!(matches!(ended, Some(Verdict::Timeout(_))), "{more}{ended:?}");
    }
}

#[test]
fn a_second_signal_waits_for_nobody() {
    let world = World::new(SUITE, &[("t/a", "hang"), ("t/b", "")]);
    let pretend = Pretend::new(Fate { origin: Origin::Clone, ..Fate::default() });
    let interrupt = |kind: &EventKind, canceller: &Canceller, _: &_| {
        if matches!(kind, EventKind::CommandStarted { .. }) {
            canceller.signal(2);
            canceller.signal(2);
        }
    };
    let outcome = world.run_with(pretend.alone(), true, &interrupt);
    assert_eq!(outcome.exit_code(), 130);
    assert_eq!((pretend.count("kill command"), pretend.count("close Hurry"), pretend.count("gone")), (0, 0, 1));
}

#[test]
fn guests_stand_still_with_the_run() {
    let world = World::new(SUITE, &[("t/a", "hang")]);
    let pretend = Pretend::new(Fate::default());
    let react = |kind: &EventKind, canceller: &Canceller, stops: &mpsc::UnboundedSender<StandStill>| match kind {
        EventKind::CommandStarted { .. } => stops.send(Box::new(|| ())).unwrap(),
        EventKind::Resumed => canceller.signal(15),
        _ => {}
    };
    // Whoever stands still holds the clock, which must run before.
    let outcome = world.run_with(pretend.alone(), false, &react);
    assert_eq!(outcome.exit_code(), 143);
    let clock: Vec<String> =
        pretend.journal().into_iter().filter(|line| line.ends_with("stop") || line.ends_with("on")).collect();
    assert_eq!(clock, ["0: stop", "0: go on"]);
}

#[test]
fn what_no_guest_has_skips_the_test_and_is_no_pass() {
    let world = World::new(&format!("{SUITE}disks = [{{ size = \"1MiB\" }}]\n"), &[("t/a", "")]);
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(pretend.count("lease"), 0);
    let counts = outcome.ended.unwrap().counts;
    assert_eq!((counts.skip, counts.pass), (1, 0));
}

#[test]
fn a_guest_larger_than_what_there_is_is_not_tried() {
    let mut world = World::new(&format!("[guests.g]\nmemory = \"2GiB\"\n{SUITE}guests = [\"g\"]\n"), &[("t/a", "")]);
    world.limits.max_memory = Some(1 << 30);
    let pretend = Pretend::new(Fate::default());
    let outcome = world.run(&pretend);
    insta::assert_snapshot!(outcome.units());
    assert_eq!(pretend.count("prepare"), 0);
}

/// A backend for QEMU on a host that has none.
fn no_qemu(cache: &Path) -> QemuBackend {
    let host = HostContext {
        cache_dir: cache.to_owned(),
        qemu: None,
        path: Some("/nonexistent".into()),
        engine: None,
        qemu_img: "/nonexistent/qemu-img".into(),
        firmware_dirs: Vec::new(),
        own: Vec::new(),
        home: None,
        guest_env: Vec::new(),
        qemu_env: Vec::new(),
        shim: Shim { program: "/nonexistent/shim".into(), args: Vec::new() },
        accel: None,
    };
    QemuBackend::new(host, Templates::new(TemplateStore::new(cache.join("templates"), u64::MAX), Use::Never))
}

#[test]
fn a_suite_whose_guests_need_no_qemu_runs_without_one() {
    let config = format!("[guests.disk]\nimage = \"disk.img\"\n{SUITE}guests = [\"host\"]\n");
    let world = World::new(&config, &[("t/a", ""), ("t/b", "exit 1")]);
    let pretend = Pretend::new(Fate::default());
    let both = Backends::of_these(vec![Rc::new(pretend.clone()), Rc::new(no_qemu(world.dir.path()))]);
    let outcome = world.run_with(both, true, &|_, _, _| ());
    assert_eq!(outcome.units(), "a pass\nb fail, exit code 1\n");
    let accelerator = outcome.events.iter().find_map(|kind| match kind {
        EventKind::TestRunStarted(started) => Some(started.host.accelerator.clone()),
        _ => None,
    });
    assert_eq!(accelerator.as_deref(), Some(""), "its guests have none");
}

#[test]
fn a_suite_is_refused_where_what_gives_one_of_its_guests_cannot() {
    let config = format!("[guests.disk]\nimage = \"disk.img\"\n{SUITE}guests = [\"host\", \"disk\"]\n");
    let world = World::new(&config, &[("t/a", ""), ("disk.img", "")]);
    let pretend = Pretend::new(Fate::default());
    let both = Backends::of_these(vec![Rc::new(pretend.clone()), Rc::new(no_qemu(world.dir.path()))]);
    let outcome = world.run_with(both, true, &|_, _, _| ());
    let why = outcome.ended.unwrap_err();
    assert!(why.starts_with("there is no QEMU for x86-64"), "{why}");
    assert_eq!(pretend.count("prepare"), 0);
    fs_err::remove_dir_all(&outcome.run_dir).unwrap();

    let impossible = Pretend::new(Fate { impossible: Some("nothing can be pretended here"), ..Fate::default() });
    let outcome = World::new(SUITE, &[("t/a", "")]).run(&impossible);
    assert_eq!(outcome.ended.unwrap_err(), "nothing can be pretended here");
}
