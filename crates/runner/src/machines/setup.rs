//! Set-up scripts: they run in a guest before its tests.

use std::{collections::BTreeMap, path::Path};

use belljar_machine::{
    Cause, Lost,
    command::{GuestCommand, ROOT},
    guest::{Guest, Io},
};
use belljar_model::{EventKind, Exit, Verdict, test_run as events};
use belljar_suite::{discover::SetUp, plan::Unit};
use tokio::time::Instant;

use crate::{
    attempt::millis,
    cancel::{Cancel, Why},
    environment::environment,
    event_writer::EventWriter,
    exec::{Limit, exec},
    output::Recorder,
    run_dir::of_guest,
};

/// The guest that is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) instance: u64,
    /// Its directory.
    pub(crate) dir: &'a Path,
}

/// The set-up scripts of all suites.
pub(crate) struct SetUpScripts {
    log: EventWriter,
    /// By the suite's name.
    suites: BTreeMap<String, SetUp>,
}

impl SetUpScripts {
    /// The scripts of these suites; `log` hears of each that runs.
    pub(crate) fn new(log: EventWriter, suites: BTreeMap<String, SetUp>) -> Self {
        Self { log, suites }
    }

    /// Whether the unit's suite has any.
    pub(crate) fn are_for(&self, unit: &Unit) -> bool {
        self.suites.contains_key(&unit.suite.name)
    }

    /// Runs those of the unit's suite. `hint` is told with a failure.
    ///
    /// # Errors
    /// If one of them did not exit with 0; that is no verdict on any test.
    pub(crate) async fn run(
        &self,
        unit: &Unit,
        scene: Scene<'_>,
        running: &mut dyn Guest,
        hint: &str,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<(), Lost> {
        for (number, script) in self.suites.get(&unit.suite.name).into_iter().flat_map(|s| &s.scripts).enumerate() {
            let shown = script.in_workspace.display().to_string();
            let (guest, instance) = (unit.guest.name.clone(), Some(scene.instance));
            self.log.emit(EventKind::SetupStarted(events::SetupStarted {
                script: shown.clone(),
                guest: guest.clone(),
                instance,
            }));
            let started = Instant::now();
            let log = free_name(scene.dir, number + 1);
            let mut recorder = Recorder::new(&scene.dir.join(&log), belljar_suite::config::Format::Exit);
            let path = format!("{}/{shown}", unit.guest.spec.mount_at.trim_end_matches('/'));
            let command = GuestCommand {
                argv: vec![path.into_bytes()],
                env: environment(unit, None),
                cwd: Some(unit.guest.spec.mount_at.clone().into_bytes()),
                // What a set-up is for, only root may do, whatever an image says.
                user: Some(ROOT.to_owned()),
                terminal: None,
                guards: None,
            };
            let limit = Limit { after: Some(unit.suite.setup_timeout), name: "setup-timeout" };
            let io = Io { stdin: None, sink: &mut recorder, control: None };
            let mut ended = exec(running, command, io, limit, cancel, observe).await;
            if matches!(ended, Ok(Exit::Code(0))) {
                // It may have had the system end, which the first test would have to answer for.
                ended = running.check(observe).await.map(|()| Exit::Code(0));
            }
            let recorded = recorder.finish();
            let (verdict, message) = match &ended {
                Ok(exit) => (Verdict::of_exit(*exit), None),
                Err(lost) => (lost.verdict(), lost.message()),
            };
            self.log.emit(EventKind::SetupEnded(events::SetupEnded {
                script: shown.clone(),
                guest,
                instance,
                verdict: verdict.clone(),
                millis: millis(started),
                message: message.clone(),
                path: recorded.stream.map(|_| format!("{}/{log}", of_guest(scene.instance))),
                tail: recorded.tail.clone(),
            }));
            let why = match ended {
                Ok(Exit::Code(0)) => continue,
                // That is no fault of the script's.
                Err(lost) if matches!(lost.cause, Cause::Interrupted { .. }) => return Err(lost),
                Err(lost) if matches!(cancel.is_wanted(), Some(Why::OutOfTime(_))) => return Err(lost),
                Ok(exit) => exit.to_string(),
                Err(lost) => lost.cause.to_string(),
            };
            let last = recorded.tail.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
            let said = if last.is_empty() { String::new() } else { format!("; it said: {last}") };
            let message = format!("the set-up script {shown} failed: {why}{said}{hint}");
            return Err(Cause::SetUp(message).into());
        }
        Ok(())
    }
}

/// Where a script's output goes: a guest that could not be kept with its set-up is followed by another in the same place.
fn free_name(dir: &Path, number: usize) -> String {
    let again = (2..).map(|time| format!("setup-{number}-again-{time}.log"));
    let mut names = std::iter::once(format!("setup-{number}.log")).chain(again);
    names.find(|name| !dir.join(name).exists()).unwrap_or_default()
}
