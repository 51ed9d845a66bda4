//! The tests in libtest binaries, found out where they will run: in the guest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use belljar_formats::libtest;
use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Ending, Guest, Io},
};
use belljar_model::{EventKind, Exit, Verdict, test_run as events};
use belljar_suite::plan::{Case, Plan, Unit};
use tokio::time::Instant;

use super::judge;
use crate::{
    attempt::millis,
    cancel::Cancel,
    environment::environment,
    event_writer::EventWriter,
    exec::{Limit, exec},
    machines::{LeasedGuest, Machines},
    output::{Answer, clean},
};

/// What libtest binaries hold, by the id of the unit that stands for the binary.
pub type Cases = BTreeMap<String, Vec<Case>>;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) cases: Cases,
    pub(crate) unlisted: HashMap<String, Lost>,
}

/// Lists each binary on each of its guests; those of one machine in one guest, one after another.
pub(crate) async fn list(machines: &Machines, plan: &Plan, log: &EventWriter, mut cancel: Cancel) -> Listed {
    let mut listed = Listed::default();
    for machine in 0..plan.machines.len() {
        let mut lease: Option<LeasedGuest> = None;
        for unit in plan.units.iter().filter(|u| u.to_be_listed && u.machine == machine) {
            if cancel.is_wanted().is_some() {
                break;
            }
            if let Some(why) = machines.lacks(plan, unit) {
                listed.unlisted.insert(unit.id.clone(), Cause::Skipped(why).into());
                continue;
            }
            match one(machines, log, unit, &mut lease, &mut cancel).await {
                Ok(cases) => drop(listed.cases.insert(unit.id.clone(), cases)),
                Err(lost) => {
                    if !lost.cause.is_programs_own()
                        && let Some(broken) = lease.take()
                    {
                        broken.give_up(&lost, &mut cancel, &mut |_| ()).await;
                    }
                    listed.unlisted.insert(unit.id.clone(), lost);
                }
            }
        }
        if let Some(lease) = lease {
            drop(lease.close(Ending::Kill, &mut cancel, &mut |_| ()).await);
        }
    }
    listed
}

async fn one(
    machines: &Machines,
    log: &EventWriter,
    unit: &Unit,
    lease: &mut Option<LeasedGuest>,
    cancel: &mut Cancel,
) -> Result<Vec<Case>, Lost> {
    if lease.is_none() {
        let instance = machines.next_instance();
        let booted = machines.set_up(unit, instance, 0, cancel, &mut |_| ()).await?;
        *lease = Some(booted);
    }
    let Some(lease) = lease.as_mut() else { return Err(Cause::Defect("there is no guest".into()).into()) };
    let script = format!("the list of tests of {}", unit.in_workspace.display());
    let (guest, instance) = (unit.guest.name.clone(), Some(lease.instance));
    log.emit(EventKind::SetupStarted(events::SetupStarted { script: script.clone(), guest: guest.clone(), instance }));
    let started = Instant::now();
    let listed = both(unit, &mut *lease.guest, cancel).await;
    let (verdict, message) = match &listed {
        Ok(_) => (Verdict::Pass, None),
        Err(lost) => (lost.verdict(), lost.message()),
    };
    log.emit(EventKind::SetupEnded(events::SetupEnded {
        script,
        guest,
        instance,
        verdict,
        millis: millis(started),
        message,
        path: None,
        tail: String::new(),
    }));
    listed
}

/// All tests, and which of them are marked as ignored.
async fn both(unit: &Unit, guest: &mut dyn Guest, cancel: &mut Cancel) -> Result<Vec<Case>, Lost> {
    let all = names(unit, guest, &[], cancel).await?;
    let ignored: BTreeSet<String> = names(unit, guest, &["--ignored"], cancel).await?.into_iter().collect();
    Ok(all.into_iter().map(|name| Case { ignored: ignored.contains(&name), name }).collect())
}

async fn names(unit: &Unit, guest: &mut dyn Guest, more: &[&str], cancel: &mut Cancel) -> Result<Vec<String>, Lost> {
    let words = libtest::LIST.iter().chain(more).map(|w| w.as_bytes().to_vec());
    let command = GuestCommand {
        argv: std::iter::once(unit.guest_path().into_bytes()).chain(words).collect(),
        env: environment(unit, None),
        cwd: Some(unit.guest.spec.mount_at.clone().into_bytes()),
        user: unit.settings.user.clone(),
        terminal: None,
        guards: None,
    };
    let mut answer = Answer::default();
    let io = Io { stdin: None, sink: &mut answer, control: None };
    let limit = Limit { after: Some(unit.settings.timeout), name: "timeout" };
    let exit = exec(guest, command, io, limit, cancel, &mut |_| ()).await?;
    let fail = |why: String| {
        let exit = if exit == Exit::Code(0) { Exit::Code(1) } else { exit };
        Lost::from(Cause::Failed { exit, why: clean(why.as_bytes()) })
    };
    let command = format!("{} {}", unit.guest_path(), libtest::LIST.join(" "));
    let last_of = |text: &[u8]| clean(text).lines().rev().map(str::trim).find(|l| !l.is_empty()).map(str::to_owned);
    if exit == Exit::Code(judge::SKIP) && !libtest::parse_list(&answer.stdout).is_ok_and(|names| !names.is_empty()) {
        let why = last_of(&answer.stderr).or_else(|| last_of(&answer.stdout)).unwrap_or_else(|| exit.to_string());
        return Err(Cause::Skipped(why).into());
    }
    if exit != Exit::Code(0) {
        let last = last_of(&answer.stderr).unwrap_or_default();
        return Err(fail(format!("could not list the tests: `{command}` ended with {exit}: {last}")));
    }
    if answer.cut {
        return Err(Cause::Answer("the list of tests is too long, or was cut off".into()).into());
    }
    libtest::parse_list(&answer.stdout).map_err(|why| {
        fail(format!("could not list the tests with `{command}`: {why}; is this a binary of Rust's test harness?"))
    })
}
