//! One try at a unit.

use std::{path::PathBuf, rc::Rc};

use belljar_formats::libtest;
use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Ending, Io},
    share,
};
use belljar_model::{AttemptId, EventKind, Exit, Fault, Phase, Scope, Verdict, test_run as events};
use belljar_suite::plan::Unit;
use events::{MAX_MESSAGE, Stream, keep_start};
use fs_err as fs;
use tokio::time::Instant;

use super::{
    collect, files,
    gather::{Gathered, NO_AGENT, gather, junit_patterns, junit_results},
    judge, requires,
};
use crate::{
    attempt::{self, CommandEnd, Tripped, millis},
    cancel::Cancel,
    door::Door,
    environment::environment,
    event_writer::EventWriter,
    exec::Limit,
    machines::{LeasedGuest, Machines, not_made, pool::Pool},
    names::safe_name,
    orders::OrdersFor,
    output::{OUTPUT, Recorded, Recorder},
    run_dir::{self, of_guest},
};

/// Which guest a try has.
pub(crate) enum GuestUse<'a> {
    /// In one of its own.
    Own,
    /// In the one that there is, or in a new one that is then there for those who follow.
    Shared(&'a mut Option<LeasedGuest>),
}

/// What became of a try.
#[derive(Debug)]
pub(crate) struct AttemptOutcome {
    pub(crate) verdict: Verdict,
    pub(crate) message: Option<String>,
    pub(crate) exit: Option<Exit>,
    pub(crate) millis: u64,
    /// Where everything that is kept of it is, relative to the run's directory.
    pub(crate) dir: Option<String>,
    /// Where the fault is Belljar's or the host's: whether another try may help.
    pub(crate) retry: bool,
}

/// How a test's run ended, before anything was read out of it.
enum End {
    /// With the JUnit files that the agent has found.
    Exit(CommandEnd, Option<Gathered>),
    Skip(String),
    Lost(Lost),
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// What is known of a try when its guest is done with it.
struct Evidence {
    end: End,
    recorded: Option<Recorded>,
    /// Its directory, relative to the run's.
    place: String,
    /// The console's log, relative to the run's directory, where the guest has one.
    console: Option<String>,
}

/// Carries out single tries.
pub(crate) struct Attempts {
    pub(crate) log: EventWriter,
    pub(crate) cancel: Cancel,
    pub(crate) machines: Rc<Machines>,
    pub(crate) pool: Rc<Pool>,
    /// The run's directory.
    pub(crate) run_dir: PathBuf,
    /// Where people ask for something to happen to guests.
    pub(crate) door: Option<Rc<Door>>,
}

impl Attempts {
    /// Tries once. All events but the last, which says whether there is another try, are told.
    pub(crate) async fn attempt(&self, unit: &Unit, id: &AttemptId, slot: u32, guest: GuestUse<'_>) -> AttemptOutcome {
        let started = Instant::now();
        let mut cancel = self.cancel.clone();
        let evidence = match guest {
            GuestUse::Own => self.alone(unit, id, slot, &mut cancel).await,
            GuestUse::Shared(lease) => self.shared(unit, id, slot, lease, &mut cancel).await,
        };
        // A guest that was not even tried has left nothing.
        let dir = Some(evidence.place.clone()).filter(|place| self.run_dir.join(place).is_dir());
        let (verdict, message, exit, retry) = self.tell(unit, id, evidence);
        AttemptOutcome { verdict, message, exit, millis: millis(started), dir, retry }
    }

    fn begin(&self, id: &AttemptId, instance: u64, slot: u32) {
        let (id, instance, slot) = (id.clone(), Some(instance), Some(slot));
        self.log.emit(EventKind::AttemptStarted(events::AttemptStarted { id, instance, slot }));
    }

    /// The console's log of a unit's guest whose files are in `home`.
    fn console_in(&self, home: &str, unit: &Unit) -> Option<String> {
        Some(format!("{home}/{}", self.machines.files_of(unit).console?))
    }

    /// In a guest of its own, whose directory becomes that of the try.
    async fn alone(&self, unit: &Unit, id: &AttemptId, slot: u32, cancel: &mut Cancel) -> Evidence {
        let warm = self.pool.take(unit);
        let instance = warm.as_ref().map_or_else(|| self.machines.next_instance(), |w| w.instance);
        self.begin(id, instance, slot);
        let scope = Scope { attempt: id.clone(), instance: Some(instance) };
        let mut observe = |kind| self.log.of_attempt(&scope, kind);
        let leased = match warm {
            Some(warm) => tokio::select! {
                biased;
                why = cancel.overdue() => Err(why.lost(Phase::Boot)),
                ready = warm.ready(&mut observe) => ready,
            },
            None => self.machines.set_up(unit, instance, slot, cancel, &mut observe).await,
        };
        let (end, recorded) = match leased {
            Err(lost) => (End::Lost(lost), None),
            Ok(mut lease) => {
                let since = Instant::now();
                let mut recorder = Recorder::new(&lease.dir.join(OUTPUT), unit.settings.format);
                let end = self.perform(unit, id, &mut lease, None, &mut recorder, cancel).await;
                observe(EventKind::Phase { phase: Phase::Close });
                let end = match end {
                    End::Lost(lost) => {
                        lease.give_up(&lost, cancel, &mut observe).await;
                        End::Lost(lost)
                    }
                    end => after(end, lease.close(Ending::Kill, cancel, &mut observe).await),
                };
                self.pool.pace.note_used(since.elapsed());
                (end, Some(recorder.finish()))
            }
        };
        // From here on it is the try's.
        let mut home = of_guest(instance);
        let goal = attempt_place(id);
        let moved = self.run_dir.join(&goal);
        let parent = moved.parent().unwrap_or(&moved);
        let left = self.run_dir.join(&home);
        if left.is_dir() && fs::create_dir_all(parent).and_then(|()| fs::rename(&left, &moved)).is_ok() {
            home = goal;
        }
        Evidence { end, recorded, console: self.console_in(&home, unit), place: home }
    }

    /// In a guest that others use before and after it.
    async fn shared(
        &self,
        unit: &Unit,
        id: &AttemptId,
        slot: u32,
        lease: &mut Option<LeasedGuest>,
        cancel: &mut Cancel,
    ) -> Evidence {
        let told = renew(lease, cancel).await;
        let instance = lease.as_ref().map_or_else(|| self.machines.next_instance(), |l| l.instance);
        self.begin(id, instance, slot);
        let scope = Scope { attempt: id.clone(), instance: Some(instance) };
        let mut observe = |kind| self.log.of_attempt(&scope, kind);
        told.into_iter().for_each(&mut observe);
        let home = attempt_place(id);
        let dir = self.run_dir.join(&home);
        let console = self.console_in(&of_guest(instance), unit);
        if let Err(error) = fs::create_dir_all(&dir) {
            let end = not_made("make a directory for the test's files", &error).into();
            return Evidence { end, recorded: None, place: home, console };
        }
        if lease.is_none() {
            let fresh = match self.machines.set_up(unit, instance, slot, cancel, &mut observe).await {
                Ok(mut fresh) => match within(cancel, fresh.keep_processes(&mut observe)).await {
                    Ok(()) => Ok(fresh),
                    Err(lost) => {
                        fresh.give_up(&lost, cancel, &mut observe).await;
                        Err(lost)
                    }
                },
                Err(lost) => Err(lost),
            };
            match fresh {
                Ok(fresh) => *lease = Some(fresh),
                Err(lost) => return Evidence { end: End::Lost(lost), recorded: None, place: home, console },
            }
        }
        let Some(running) = lease.as_mut() else {
            let end = Lost::from(Cause::Defect("there is no guest for the test".into())).into();
            return Evidence { end, recorded: None, place: home, console };
        };
        running.tries += 1;
        let own = running.tries;
        let out = running.dir.join(run_dir::OUT).join(own.to_string());
        let mut recorder = Recorder::new(&dir.join(OUTPUT), unit.settings.format);
        let end = match fs::create_dir(&out).and_then(|()| crate::out_dir::open_to_all(&out)) {
            Ok(()) => self.perform(unit, id, running, Some(own), &mut recorder, cancel).await,
            Err(error) => not_made("make the output directory", &error).into(),
        };
        let settled = match &end {
            End::Lost(lost) if !lost.cause.is_programs_own() => Ok(()),
            _ => tokio::select! {
                biased;
                why = cancel.overdue() => Err(why.lost(Phase::Close)),
                settled = running.settle(&mut observe) => settled,
            },
        };
        let end = after(end, settled);
        // Whatever else it was, the next test must not meet it.
        if let End::Lost(lost) = &end
            && !lost.cause.is_programs_own()
            && let Some(broken) = lease.take()
        {
            broken.give_up(lost, cancel, &mut observe).await;
        }
        // Nothing that matters is lost if it cannot be moved: it stays with the guest's files.
        drop(files::keep(&out, &dir.join(run_dir::OUT)));
        Evidence { end, recorded: Some(recorder.finish()), place: home, console }
    }

    /// Runs the test itself.
    async fn perform(
        &self,
        unit: &Unit,
        id: &AttemptId,
        lease: &mut LeasedGuest,
        own_out: Option<u32>,
        recorder: &mut Recorder,
        cancel: &mut Cancel,
    ) -> End {
        let instance = lease.instance;
        let scope = Scope { attempt: id.clone(), instance: Some(instance) };
        let mut observe = |kind| self.log.of_attempt(&scope, kind);
        match requires::missing(unit, &mut *lease.guest, cancel, &mut observe).await {
            Ok(None) => {}
            Ok(Some(why)) => return End::Skip(why),
            Err(lost) => return lost.into(),
        }
        let patterns = junit_patterns(unit);
        let workspace =
            collect::SearchRoot { root: &unit.guest.spec.mount_at, name: "the workspace", patterns: &patterns };
        let before = if patterns.is_empty() {
            None
        } else {
            match collect::look(&mut *lease.guest, workspace, cancel, &mut observe).await {
                Ok(None) => {
                    observe(EventKind::Warning { message: NO_AGENT.into() });
                    None
                }
                Ok(seen) => seen,
                Err(lost) => return lost.into(),
            }
        };
        let out = match own_out {
            None => share::OUT_PATH.to_owned(),
            Some(number) => format!("{}/{number}", share::OUT_PATH),
        };
        let command = test_command(unit, id, &out);
        let limit = Limit { after: Some(unit.settings.timeout), name: "timeout" };
        let started = Instant::now();
        let slow = async {
            let every = unit.settings.slow_timeout.max(std::time::Duration::from_secs(1));
            let mut next = started + every;
            loop {
                tokio::time::sleep_until(next).await;
                let told = events::UnitSlow { id: id.clone(), millis: millis(started) };
                self.log.emit(EventKind::UnitSlow(told));
                next += every;
            }
        };
        let io = Io { stdin: None, sink: recorder, control: None };
        let name = if id.repeat > 1 { format!("{}#{}", id.unit, id.repeat) } else { id.unit.to_string() };
        let orders =
            OrdersFor { schedule: &unit.settings.orders, door: self.door.as_deref().map(|door| (door, name.as_str())) };
        let ended = tokio::select! {
            biased;
            ended = attempt::command(&mut *lease.guest, command, io, orders, limit, cancel, &mut observe) => ended,
            () = slow => return Lost::from(Cause::Defect("a timer ended that has no end".into())).into(),
        };
        let exit = match ended {
            Ok(exit) => exit,
            Err(lost) => return lost.into(),
        };
        let Some(before) = before else { return End::Exit(exit, None) };
        let out_here = match own_out {
            None => lease.dir.join(run_dir::OUT),
            Some(number) => lease.dir.join(run_dir::OUT).join(number.to_string()),
        };
        let there = collect::SearchRoot { root: &out, name: files::OUT_NAME, patterns: &patterns };
        match gather(&mut *lease.guest, workspace, &before, there, &out_here, &recorder.place(), cancel, &mut observe)
            .await
        {
            Ok(gathered) => End::Exit(exit, Some(gathered)),
            Err(lost) => lost.into(),
        }
    }

    /// Judges, and tells everything but the end.
    fn tell(&self, unit: &Unit, id: &AttemptId, evidence: Evidence) -> (Verdict, Option<String>, Option<Exit>, bool) {
        let Evidence { end, recorded, place, console } = evidence;
        let scope = Scope { attempt: id.clone(), instance: None };
        let dir: PathBuf = self.run_dir.join(&place);
        let out = dir.join(run_dir::OUT);
        let tail = recorded.as_ref().map(|r| r.tail.as_str()).unwrap_or_default();
        let written = recorded.as_ref().and_then(|r| r.results.as_ref());
        let mut junit = None;
        let mut lines = Vec::new();
        let mut retry = false;
        let (verdict, message, exit) = match end {
            End::Exit(CommandEnd { exit, tripped }, gathered) => {
                junit = junit_results(unit, &out, gathered);
                let (verdict, message) = judge::verdict(exit, unit.settings.format, written, junit.as_ref(), tail);
                let (verdict, message) = Tripped::verdict(tripped.as_deref(), verdict, message);
                (verdict, message, Some(exit))
            }
            End::Skip(why) => (Verdict::Skip(why), None, None),
            End::Lost(lost) => {
                retry = lost.is_worth_another_try();
                let (verdict, message) = (lost.verdict(), lost.message());
                lines = lost.tail;
                let exit = if let Verdict::Fail(exit) = verdict { Some(exit) } else { None };
                (verdict, message, exit)
            }
        };
        // A pass that its own log cannot vouch for is none.
        let (verdict, message) = match self.log.failure() {
            Some(why) if verdict == Verdict::Pass => {
                let message = format!("the test passed, but {why}");
                (Verdict::Error(Fault::Host { message }), None)
            }
            _ => (verdict, message),
        };
        if let Some(recorded) = &recorded
            && let Some(stream) = recorded.stream
        {
            self.log.emit(EventKind::Output(events::Output {
                id: id.clone(),
                stream,
                bytes: recorded.bytes,
                truncated: recorded.truncated,
                path: Some(format!("{place}/{OUTPUT}")),
                tail: recorded.tail.clone(),
            }));
            if let Some(message) = recorded.over_limit.clone() {
                self.log.of_attempt(&scope, EventKind::Warning { message });
            }
        }
        let said = |path: &String| fs::metadata(self.run_dir.join(path)).map_or(0, |m| m.len());
        if let Some((console, bytes)) = console.map(|path| (path.clone(), said(&path))).filter(|(_, bytes)| *bytes > 0)
        {
            self.log.emit(EventKind::Output(events::Output {
                id: id.clone(),
                stream: Stream::Console,
                bytes,
                truncated: false,
                path: Some(console),
                tail: String::new(),
            }));
        }
        let results = [written, junit.as_ref()];
        for case in results.into_iter().flatten().flat_map(|r| &r.cases) {
            let told = events::AttemptSubresult { id: id.clone(), subresult: case.clone() };
            self.log.emit(EventKind::Subresult(told));
        }
        if !lines.is_empty() {
            self.log.of_attempt(&scope, EventKind::ConsoleTail { lines });
        }
        let left = files::left(&out);
        if !left.files.is_empty() {
            let (dir, files, more) = (format!("{place}/{}", run_dir::OUT), left.files, left.more);
            self.log.emit(EventKind::AttemptFiles(events::AttemptFiles { id: id.clone(), dir, files, more }));
        }
        let message = message.map(|m| keep_start(&m, MAX_MESSAGE).to_owned());
        (verdict, message, exit, retry)
    }
}

/// Between two tests: makes the guest what it was for the one before, or gives it up if that cannot be. Gives what there is to be told of it.
async fn renew(lease: &mut Option<LeasedGuest>, cancel: &mut Cancel) -> Vec<EventKind> {
    let mut told = Vec::new();
    let Some(running) = lease.as_mut() else { return told };
    let lost = match within(cancel, running.renew(&mut |kind| told.push(kind))).await {
        Ok(None) => return told,
        Ok(Some(why)) => Cause::NotRenewed(why).into(),
        Err(lost) => lost,
    };
    told.push(EventKind::Warning {
        message: format!("a new guest is taken, for the one that was shared is of no more use: {}", lost.cause),
    });
    if let Some(broken) = lease.take() {
        // What its end shows is of the test before, which has told it.
        broken.give_up(&lost, cancel, &mut |_| ()).await;
    }
    told
}

/// Waits, unless the run is to end at once, or has been to end for a while.
async fn within<T>(cancel: &mut Cancel, work: impl Future<Output = Result<T, Lost>>) -> Result<T, Lost> {
    tokio::select! {
        biased;
        why = cancel.overdue() => Err(why.lost(Phase::Session)),
        done = work => done,
    }
}

/// What the command did says more than what the guest did after it, unless that makes a pass doubtful.
fn after(end: End, closed: Result<(), Lost>) -> End {
    match (end, closed) {
        (End::Exit(..) | End::Skip(_), Err(lost)) => lost.into(),
        (end, _) => end,
    }
}

fn test_command(unit: &Unit, id: &AttemptId, out: &str) -> GuestCommand {
    let mut argv = vec![unit.guest_path().into_bytes()];
    argv.extend(unit.settings.args.iter().map(|a| a.clone().into_bytes()));
    if let Some(case) = &unit.case {
        argv.extend(libtest::run_one(case).into_iter().map(String::into_bytes));
    }
    let mount = unit.guest.spec.mount_at.trim_end_matches('/');
    let cwd = match &unit.settings.cwd {
        None => unit.guest.spec.mount_at.clone(),
        Some(path) if path.starts_with('/') => path.clone(),
        Some(path) => format!("{mount}/{path}"),
    };
    GuestCommand {
        argv,
        env: environment(unit, Some((id, out))),
        cwd: Some(cwd.into_bytes()),
        user: unit.settings.user.clone(),
        terminal: None,
        guards: Some(unit.settings.guards.clone()),
    }
}

/// Where a try's files are, relative to the run's directory.
fn attempt_place(id: &AttemptId) -> String {
    let name = safe_name(id.unit.as_str());
    if id.repeat > 1 {
        format!("attempts/{name}/repeat-{}-try-{}", id.repeat, id.attempt)
    } else {
        format!("attempts/{name}/try-{}", id.attempt)
    }
}
