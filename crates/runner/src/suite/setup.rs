//! What runs in a guest before its tests: set-up scripts, and the question whether a test's commands are there.

use std::path::Path;

use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Guest, Io},
};
use belljar_model::{EventKind, Exit, Verdict, test_run as events};
use belljar_suite::plan::Unit;
use tokio::time::Instant;

use super::{
    Cx,
    lease::{Lease, Unfit, place},
    output::{Answer, Recorder},
};
use crate::{
    cancel::Cancel,
    exec::{Limit, exec},
};

/// Limit to a command of Belljar's own in the guest; without KVM a shell's start takes seconds.
const OWN_LIMIT: Limit = Limit { after: Some(std::time::Duration::from_secs(120)), name: "Belljar's own limit" };

/// What may be behind the failure of a set-up that is kept.
const KEPT_HINT: &str = "\nwith `setup-once` it sees no more of the workspace than itself and `setup-inputs`";

/// Says which of its arguments is no command.
const MISSING: &str = "PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin; for c; do command -v \"$c\" >/dev/null 2>&1 || { echo \"$c\"; exit 1; }; done";

/// The guest that is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) instance: u64,
    /// Its directory.
    pub(crate) dir: &'a Path,
}

/// Runs the set-up scripts of the unit's suite.
///
/// # Errors
/// If one of them did not exit with 0; that is no verdict on any test.
pub(crate) async fn run(
    cx: &Cx,
    unit: &Unit,
    scene: Scene<'_>,
    running: &mut Guest,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(), Unfit> {
    let kept = cx.kept.is_kept(unit);
    for (number, script) in cx.setup.get(&unit.suite.name).into_iter().flat_map(|s| &s.scripts).enumerate() {
        let shown = script.in_workspace.display().to_string();
        let (guest, instance) = (unit.guest.name.clone(), Some(scene.instance));
        cx.tell.emit(EventKind::SetupStarted(events::SetupStarted {
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
            env: cx.environment(unit, None),
            cwd: Some(unit.guest.spec.mount_at.clone().into_bytes()),
            user: None,
            terminal: None,
        };
        let limit = Limit { after: Some(unit.suite.setup_timeout), name: "setup-timeout" };
        let io = Io { stdin: None, sink: &mut recorder, control: None };
        let ended = exec(running, command, io, limit, cancel, observe).await;
        let recorded = recorder.finish();
        let (verdict, message) = match &ended {
            Ok(exit) => (Verdict::of_exit(*exit), None),
            Err(lost) => (lost.verdict(), lost.message()),
        };
        cx.tell.emit(EventKind::SetupEnded(events::SetupEnded {
            script: shown.clone(),
            guest,
            instance,
            verdict: verdict.clone(),
            millis: super::millis(started.elapsed()),
            message: message.clone(),
            path: recorded.stream.map(|_| format!("{}/{log}", place(scene.instance))),
            tail: recorded.tail.clone(),
        }));
        let why = match ended {
            Ok(Exit::Code(0)) => continue,
            Err(lost) if matches!(lost.cause, Cause::Interrupted { .. }) => return Err(lost.into()),
            Ok(exit) => exit.to_string(),
            Err(lost) => lost.cause.to_string(),
        };
        let last = recorded.tail.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        let said = if last.is_empty() { String::new() } else { format!("; it said: {last}") };
        let hint = if kept { KEPT_HINT } else { "" };
        let message = format!("the set-up script {shown} failed: {why}{said}{hint}");
        return Err(Unfit { lost: Cause::SetUp(message).into(), retry: false });
    }
    Ok(())
}

/// Where a script's output goes: a guest that could not be kept with its set-up is followed by another in the same place.
fn free_name(dir: &Path, number: usize) -> String {
    let again = (2..).map(|time| format!("setup-{number}-again-{time}.log"));
    let mut names = std::iter::once(format!("setup-{number}.log")).chain(again);
    names.find(|name| !dir.join(name).exists()).unwrap_or_default()
}

/// Which of the commands that the unit requires is not in the guest.
///
/// # Errors
/// If that could not be found out.
pub(crate) async fn missing(
    unit: &Unit,
    lease: &mut Lease,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Option<String>, Lost> {
    let wanted = &unit.settings.requires;
    if wanted.is_empty() {
        return Ok(None);
    }
    let words = ["sh", "-c", MISSING, "sh"].into_iter().chain(wanted.iter().map(String::as_str));
    let (exit, answer) = ask(lease, words, cancel, observe).await?;
    match exit {
        Exit::Code(0) => Ok(None),
        _ => {
            let said = String::from_utf8_lossy(&answer.stdout);
            let named = wanted.iter().find(|w| said.trim() == w.as_str());
            match named {
                Some(name) => Ok(Some(name.clone())),
                None => {
                    let wanted = wanted.iter().cloned().collect::<Vec<_>>().join(", ");
                    Err(Cause::Answer(format!("could not find out whether the guest has {wanted}: {exit}")).into())
                }
            }
        }
    }
}

/// Runs a command of Belljar's own in the guest.
pub(crate) async fn ask<'a>(
    lease: &mut Lease,
    words: impl IntoIterator<Item = &'a str>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(Exit, Answer), Lost> {
    let command = GuestCommand {
        argv: words.into_iter().map(|w| w.as_bytes().to_vec()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    };
    let mut answer = Answer::default();
    let io = Io { stdin: None, sink: &mut answer, control: None };
    let exit = exec(&mut lease.guest, command, io, OWN_LIMIT, cancel, observe).await?;
    Ok((exit, answer))
}
