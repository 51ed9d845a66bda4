//! What a log of `belljar test` amounts to: a pure fold of events into the state that every report stands on.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use crate::{
    event::{Event, EventKind, FindingOutcome, Phase, Scope, control_text, finding_text},
    test_run::{
        AttemptEnded, AttemptFiles, AttemptId, Counts, GuestStarted, Output, SetupEnded, SetupStarted, Stopping,
        SubVerdict, Subresult, TestRunEnded, TestRunStarted, Unit, UnitEnded, UnitId, keep_end, keep_start,
    },
    verdict::Verdict,
};

/// How much is kept; what is beyond is counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of output kept of each stream of a try that passed or was skipped.
    pub passing_tail: usize,
    /// Bytes of output kept of each stream of any other try.
    pub failing_tail: usize,
    /// Tries kept of one unit; those that passed go first.
    pub attempts: usize,
    /// Whether any are kept of a unit that ended well: passed, or skipped.
    pub of_passing: bool,
    /// Cases kept of one try; those that passed go first.
    pub subresults: usize,
    /// Choices, warnings and alarms kept of one try.
    pub notes: usize,
    /// Bytes of the console's last lines kept of one try.
    pub console: usize,
    /// Choices and warnings kept of the run, and set-up scripts, and pauses.
    pub run_notes: usize,
    /// Machines kept for the timeline.
    pub guests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            passing_tail: 2 * 1024,
            failing_tail: crate::test_run::MAX_TAIL,
            attempts: 16,
            of_passing: true,
            subresults: 1000,
            notes: 32,
            console: 16 * 1024,
            run_notes: 1000,
            guests: 100_000,
        }
    }
}

/// A run of `belljar test`, as far as its log goes.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// How it began; `None` if the log does not say.
    pub started: Option<TestRunStarted>,
    /// When the first event was.
    pub first: Option<Timestamp>,
    /// When the latest event was.
    pub last: Option<Timestamp>,
    /// How it ended; `None` if it was cut off, or still runs.
    pub ended: Option<TestRunEnded>,
    /// Why no more tests were begun, the first reason.
    pub stopping: Option<Stopping>,
    /// Each unit, in the order in which they were planned.
    pub units: Vec<UnitSummary>,
    /// Each machine, in the order in which they started.
    pub guests: Vec<GuestSpan>,
    /// Set-up scripts, in the order in which they started.
    pub setups: Vec<SetupSummary>,
    /// What was chosen or worth knowing of the run as a whole.
    pub notes: Vec<Note>,
    /// When the run stood still; the end is missing if it never went on.
    pub pauses: Vec<(Timestamp, Option<Timestamp>)>,
    /// Events of kinds that this version does not know.
    pub unknown: u64,
    /// Events of this version that fit nothing before them, such as the end of a try that did not start.
    pub stray: u64,
    limits: Limits,
    index: HashMap<UnitId, usize>,
    instances: HashMap<u64, usize>,
}

/// Where a unit stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Nothing was begun for it.
    Planned,
    /// Not to run, for this reason.
    Skipped(String),
    /// Begun, and not ended.
    Running,
    /// It has its last word.
    Ended(UnitEnded),
}

/// One test on one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSummary {
    /// The test and its guest.
    pub unit: Unit,
    /// Where it stands.
    pub state: UnitState,
    /// Its tries, in order, as far as they were kept.
    pub attempts: Vec<AttemptSummary>,
    /// How many were not kept.
    pub attempts_dropped: u64,
}

impl UnitSummary {
    /// Its last word: `None` if it has not ended.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match &self.state {
            UnitState::Skipped(reason) => Some(Verdict::Skip(reason.clone())),
            UnitState::Ended(ended) => Some(ended.verdict.clone()),
            UnitState::Planned | UnitState::Running => None,
        }
    }

    /// Whether it passed after a try that failed.
    #[must_use]
    pub fn is_flaky(&self) -> bool {
        matches!(&self.state, UnitState::Ended(e) if e.flaky)
    }

    /// The try that explains the verdict: the last with the same kind of verdict, else the last.
    #[must_use]
    pub fn telling_attempt(&self) -> Option<&AttemptSummary> {
        let verdict = self.verdict();
        let same = |a: &&AttemptSummary| {
            let (Some(end), Some(verdict)) = (&a.ended, &verdict) else { return false };
            std::mem::discriminant(&end.verdict) == std::mem::discriminant(verdict)
        };
        self.attempts.iter().rev().find(same).or(self.attempts.last())
    }

    /// What to tell of it beyond the verdict.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        let own = match &self.state {
            UnitState::Ended(e) => e.message.as_deref(),
            _ => None,
        };
        own.or_else(|| self.telling_attempt()?.ended.as_ref()?.message.as_deref())
    }
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptSummary {
    /// Which repetition; the first is 1.
    pub repeat: u32,
    /// Which try within it; the first is 1.
    pub attempt: u32,
    /// When it began.
    pub started: Timestamp,
    /// In which machine.
    pub instance: Option<u64>,
    /// When each phase began.
    pub phases: Vec<(Phase, Timestamp)>,
    /// How it ended.
    pub ended: Option<AttemptEnded>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it wrote, one for each stream.
    pub outputs: Vec<Output>,
    /// The cases inside it, as far as they were kept.
    pub subresults: Vec<Subresult>,
    /// How many cases had which result, those that were not kept included.
    pub sub_counts: BTreeMap<SubVerdict, u64>,
    /// Choices, warnings, alarms.
    pub notes: Vec<Note>,
    /// How many of them were not kept.
    pub notes_dropped: u64,
    /// The console's last lines.
    pub console: Vec<String>,
    /// What it left.
    pub files: Option<AttemptFiles>,
    /// It was slow: for how long it had run when that was last said, in milliseconds.
    pub slow: Option<u64>,
}

impl AttemptSummary {
    /// How many cases there were, those that were not kept included.
    #[must_use]
    pub fn sub_total(&self) -> u64 {
        self.sub_counts.values().sum()
    }
}

/// Something worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Something was chosen.
    Choice {
        /// Such as `accelerator`.
        what: String,
        /// What was taken.
        chosen: String,
        /// Why this.
        why: String,
    },
    /// A warning.
    Warning(String),
    /// A guard has seen something.
    Finding {
        /// Which guard.
        guard: String,
        /// What it has seen, and why it is allowed, if it is.
        text: String,
        /// What comes of it.
        outcome: FindingOutcome,
    },
    /// How far the test said that it had come, and when.
    Mark {
        /// In its own words.
        text: String,
        /// When it said so.
        at: Timestamp,
    },
    /// What happened to one of the guest's devices because somebody asked for it, and when.
    Control {
        /// The device, what was asked for, and what came of it.
        text: String,
        /// When.
        at: Timestamp,
    },
    /// Something on the console.
    Alarm {
        /// What kind.
        name: String,
        /// The line.
        line: String,
        /// Whether the try ended for it.
        fatal: bool,
    },
}

/// A machine's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSpan {
    /// How it started.
    pub started: GuestStarted,
    /// When it started.
    pub from: Timestamp,
    /// When it was ready.
    pub ready: Option<Timestamp>,
    /// How it came to be, once it was ready.
    pub how: String,
    /// When it ended.
    pub to: Option<Timestamp>,
    /// Why it ended, if not because it was done with.
    pub message: Option<String>,
    /// The most memory that it took, in bytes.
    pub peak_memory: Option<u64>,
}

/// A set-up script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupSummary {
    /// How it started.
    pub started: SetupStarted,
    /// When it started.
    pub from: Timestamp,
    /// How it ended.
    pub ended: Option<SetupEnded>,
}

impl RunSummary {
    /// A summary that keeps as much as `limits` say.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The summary of a whole log.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut summary = Self::default();
        for event in events {
            summary.apply(event);
        }
        summary
    }

    /// A unit by its id.
    #[must_use]
    pub fn unit(&self, id: &UnitId) -> Option<&UnitSummary> {
        self.index.get(id).and_then(|at| self.units.get(*at))
    }

    /// How many units ended how, by now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { units: self.units.len() as u64, ..Counts::default() };
        for unit in &self.units {
            match unit.verdict() {
                Some(verdict) => counts.add(&verdict, unit.is_flaky()),
                None => counts.unfinished += 1,
            }
        }
        counts
    }

    /// Units that have no verdict.
    pub fn unfinished(&self) -> impl Iterator<Item = &UnitSummary> {
        self.units.iter().filter(|u| matches!(u.state, UnitState::Planned | UnitState::Running))
    }

    /// Milliseconds that the run took by now, without pauses.
    #[must_use]
    pub fn millis(&self) -> u64 {
        if let Some(ended) = &self.ended {
            return ended.millis;
        }
        let (Some(first), Some(last)) = (self.first, self.last) else { return 0 };
        let paused: u64 = self.pauses.iter().map(|(from, to)| millis_between(*from, to.unwrap_or(last))).sum();
        millis_between(first, last).saturating_sub(paused)
    }

    /// Whether the log lacks its end.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self.ended.is_none()
    }

    /// Of a merged run whose parts were not all there: what to say of it.
    #[must_use]
    pub fn incomplete(&self) -> Option<String> {
        let missing = self.started.as_ref()?.missing.as_deref()?;
        Some(format!("this is not the whole run, for parts of it are missing: {missing}"))
    }

    /// Takes one event. Order matters within a unit, not between units.
    pub fn apply(&mut self, event: &Event) {
        self.first = Some(self.first.map_or(event.at, |t| t.min(event.at)));
        self.last = Some(self.last.map_or(event.at, |t| t.max(event.at)));
        let fits = match &event.kind {
            EventKind::TestRunStarted(e) => {
                self.started.get_or_insert_with(|| e.clone());
                true
            }
            EventKind::UnitPlanned(unit) => self.plan(unit, UnitState::Planned),
            EventKind::UnitSkipped(e) => self.plan(&e.unit, UnitState::Skipped(e.reason.clone())),
            EventKind::AttemptStarted(e) => self.start_attempt(&e.id, e.instance, event.at),
            EventKind::Phase { phase } => self.with_scope(event.scope.as_ref(), |a, scope, _| {
                if a.phases.len() < 32 {
                    a.phases.push((*phase, event.at));
                }
                a.instance = scope.instance.or(a.instance);
            }),
            EventKind::Choice { what, chosen, why } => self.note(
                event.scope.as_ref(),
                Note::Choice { what: what.clone(), chosen: chosen.clone(), why: why.clone() },
            ),
            EventKind::Warning { message } => self.note(event.scope.as_ref(), Note::Warning(message.clone())),
            EventKind::Finding { guard, text, outcome, reason } => {
                let (guard, text) = (guard.clone(), finding_text(text, reason.as_deref()));
                self.note(event.scope.as_ref(), Note::Finding { guard, text, outcome: *outcome })
            }
            EventKind::Mark { text } => {
                self.note(event.scope.as_ref(), Note::Mark { text: text.clone(), at: event.at })
            }
            EventKind::Control { device, order, outcome, refused } => {
                let text = control_text(device, order, outcome, *refused);
                self.note(event.scope.as_ref(), Note::Control { text, at: event.at })
            }
            EventKind::Alarm { name, line, fatal, .. } => {
                self.note(event.scope.as_ref(), Note::Alarm { name: name.clone(), line: line.clone(), fatal: *fatal })
            }
            // The end of the try says more.
            EventKind::CommandStarted { .. } | EventKind::CommandEnded { .. } => {
                self.with_scope(event.scope.as_ref(), |_, _, _| ())
            }
            EventKind::UnitSlow(e) => self.with(&e.id, |a, _| a.slow = Some(e.millis)),
            EventKind::Output(e) => self.with(&e.id, |a, limits| {
                let tail = keep_end(&e.tail, limits.failing_tail).to_owned();
                a.outputs.retain(|o| o.stream != e.stream);
                a.outputs.push(Output { tail, ..e.clone() });
                a.outputs.sort_by_key(|o| o.stream);
            }),
            EventKind::Subresult(e) => self.with(&e.id, |a, limits| a.add_subresult(&e.subresult, limits)),
            EventKind::ConsoleTail { lines } => self.with_scope(event.scope.as_ref(), |a, _, limits| {
                let mut left = limits.console;
                let fitting = lines.iter().rev().take_while(|l| {
                    let fits = l.len() < left;
                    left = left.saturating_sub(l.len() + 1);
                    fits
                });
                a.console = fitting.cloned().collect();
                a.console.reverse();
            }),
            EventKind::AttemptFiles(e) => self.with(&e.id, |a, _| a.files = Some(e.clone())),
            EventKind::AttemptEnded(e) => self.with(&e.id, |a, limits| a.end(e, event.at, limits)),
            EventKind::UnitEnded(e) => self.end_unit(e),
            EventKind::GuestStarted(e) => self.start_guest(e, event.at),
            EventKind::GuestReady(e) => self.with_guest(e.instance, |g| {
                g.ready = Some(event.at);
                g.how.clone_from(&e.how);
            }),
            EventKind::GuestEnded(e) => self.with_guest(e.instance, |g| {
                g.to = Some(event.at);
                g.message.clone_from(&e.message);
                g.peak_memory = e.peak_memory;
            }),
            EventKind::SetupStarted(e) => {
                if self.setups.len() < self.limits.run_notes {
                    self.setups.push(SetupSummary { started: e.clone(), from: event.at, ended: None });
                }
                true
            }
            EventKind::SetupEnded(e) => self.end_setup(e),
            EventKind::Paused => {
                if self.pauses.len() < self.limits.run_notes {
                    self.pauses.push((event.at, None));
                }
                true
            }
            EventKind::Resumed => match self.pauses.last_mut() {
                Some((_, to)) => {
                    to.get_or_insert(event.at);
                    true
                }
                None => false,
            },
            EventKind::Stopping(e) => {
                self.stopping.get_or_insert_with(|| e.clone());
                true
            }
            EventKind::TestRunEnded(e) => {
                self.ended = Some(e.clone());
                true
            }
            EventKind::Unknown(_) => {
                self.unknown += 1;
                true
            }
            // Of `belljar run`.
            EventKind::RunStarted { .. } | EventKind::RunEnded { .. } => false,
        };
        self.stray += u64::from(!fits);
    }

    fn plan(&mut self, unit: &Unit, state: UnitState) -> bool {
        if self.index.contains_key(&unit.unit) {
            return false;
        }
        self.index.insert(unit.unit.clone(), self.units.len());
        self.units.push(UnitSummary { unit: unit.clone(), state, attempts: Vec::new(), attempts_dropped: 0 });
        true
    }

    fn unit_mut(&mut self, id: &UnitId) -> Option<&mut UnitSummary> {
        self.index.get(id).and_then(|at| self.units.get_mut(*at))
    }

    fn start_attempt(&mut self, id: &AttemptId, instance: Option<u64>, at: Timestamp) -> bool {
        let keep = self.limits.attempts.max(1);
        let Some(unit) = self.unit_mut(&id.unit) else { return false };
        if !matches!(unit.state, UnitState::Planned | UnitState::Running) {
            return false;
        }
        unit.state = UnitState::Running;
        if unit.attempts.len() >= keep {
            let passed = |a: &AttemptSummary| a.ended.as_ref().is_some_and(|e| e.verdict == Verdict::Pass);
            let victim = unit.attempts.iter().position(passed).unwrap_or(keep / 2);
            unit.attempts.remove(victim);
            unit.attempts_dropped += 1;
        }
        unit.attempts.push(AttemptSummary {
            repeat: id.repeat,
            attempt: id.attempt,
            started: at,
            instance,
            phases: Vec::new(),
            ended: None,
            ended_at: None,
            outputs: Vec::new(),
            subresults: Vec::new(),
            sub_counts: BTreeMap::new(),
            notes: Vec::new(),
            notes_dropped: 0,
            console: Vec::new(),
            files: None,
            slow: None,
        });
        true
    }

    fn with(&mut self, id: &AttemptId, change: impl FnOnce(&mut AttemptSummary, &Limits)) -> bool {
        let limits = self.limits;
        let Some(unit) = self.unit_mut(&id.unit) else { return false };
        let same = |a: &&mut AttemptSummary| a.repeat == id.repeat && a.attempt == id.attempt;
        let Some(attempt) = unit.attempts.iter_mut().rev().find(same) else { return false };
        change(attempt, &limits);
        true
    }

    /// What only a guest says that is made or used for a try fits nothing without one.
    fn with_scope(&mut self, scope: Option<&Scope>, change: impl FnOnce(&mut AttemptSummary, &Scope, &Limits)) -> bool {
        scope.is_some_and(|scope| self.with(&scope.attempt, |attempt, limits| change(attempt, scope, limits)))
    }

    /// Of a try, or of the run as a whole.
    fn note(&mut self, scope: Option<&Scope>, note: Note) -> bool {
        let Some(scope) = scope else { return self.run_note(note) };
        self.with(&scope.attempt, |attempt, limits| {
            // A fatal alarm explains the end; it always has a place.
            if attempt.notes.len() < limits.notes || matches!(note, Note::Alarm { fatal: true, .. }) {
                attempt.notes.truncate(limits.notes);
                attempt.notes.push(note);
            } else {
                attempt.notes_dropped += 1;
            }
        })
    }

    fn run_note(&mut self, note: Note) -> bool {
        if self.notes.len() < self.limits.run_notes {
            self.notes.push(note);
        }
        true
    }

    fn end_unit(&mut self, ended: &UnitEnded) -> bool {
        let keep = self.limits.of_passing;
        let Some(unit) = self.unit_mut(&ended.unit) else { return false };
        // The first word is the last: nothing later can turn a failure into a pass.
        if matches!(unit.state, UnitState::Ended(_) | UnitState::Skipped(_)) {
            return false;
        }
        unit.state = UnitState::Ended(ended.clone());
        if !keep && matches!(ended.verdict, Verdict::Pass | Verdict::Skip(_)) {
            unit.attempts_dropped += unit.attempts.len() as u64;
            unit.attempts = Vec::new();
        }
        true
    }

    fn start_guest(&mut self, started: &GuestStarted, at: Timestamp) -> bool {
        if self.guests.len() < self.limits.guests {
            self.instances.insert(started.instance, self.guests.len());
            self.guests.push(GuestSpan {
                started: started.clone(),
                from: at,
                ready: None,
                how: String::new(),
                to: None,
                message: None,
                peak_memory: None,
            });
        }
        true
    }

    fn with_guest(&mut self, instance: u64, change: impl FnOnce(&mut GuestSpan)) -> bool {
        if let Some(guest) = self.instances.get(&instance).and_then(|at| self.guests.get_mut(*at)) {
            change(guest);
            return true;
        }
        self.guests.len() >= self.limits.guests
    }

    fn end_setup(&mut self, ended: &SetupEnded) -> bool {
        let same = |s: &&mut SetupSummary| {
            s.ended.is_none()
                && s.started.script == ended.script
                && s.started.guest == ended.guest
                && s.started.instance == ended.instance
        };
        match self.setups.iter_mut().find(same) {
            Some(setup) => {
                setup.ended = Some(ended.clone());
                true
            }
            None => self.setups.len() >= self.limits.run_notes,
        }
    }
}

impl AttemptSummary {
    fn add_subresult(&mut self, subresult: &Subresult, limits: &Limits) {
        *self.sub_counts.entry(subresult.result).or_default() += 1;
        if self.subresults.len() >= limits.subresults {
            let dull = |s: &Subresult| !s.result.is_bad();
            match self.subresults.iter().rposition(dull) {
                Some(at) if subresult.result.is_bad() => {
                    self.subresults.remove(at);
                }
                _ => return,
            }
        }
        self.subresults.push(subresult.clone());
    }

    fn end(&mut self, ended: &AttemptEnded, at: Timestamp, limits: &Limits) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(ended.clone());
        self.ended_at = Some(at);
        if matches!(ended.verdict, Verdict::Pass | Verdict::Skip(_)) {
            for output in &mut self.outputs {
                output.tail = keep_end(&output.tail, limits.passing_tail).to_owned();
            }
        }
        // What was cut leaves its room.
        for output in &mut self.outputs {
            output.tail.shrink_to_fit();
        }
        self.subresults.shrink_to_fit();
        for subresult in &mut self.subresults {
            if let Some(message) = &mut subresult.message
                && message.len() > crate::test_run::MAX_MESSAGE
            {
                *message = keep_start(message, crate::test_run::MAX_MESSAGE).to_owned();
            }
        }
    }
}

fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
