//! A unit: its repetitions, the tries of each, and its last word.

use std::{collections::HashMap, time::Duration};

use belljar_machine::{Cause, Lost};
use belljar_model::{AttemptId, EventKind, Fault, UnitId, Verdict, test_run as events};
use belljar_suite::plan::Unit;
use events::{MAX_MESSAGE, keep_start};
use tokio::time::Instant;

use super::attempt::{AttemptOutcome, Attempts, GuestUse};
use crate::{attempt::millis, machines::LeasedGuest};

/// The pause before a try after an error that is not the test's; it doubles.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_ERROR_PAUSE: Duration = Duration::from_secs(30);

/// Carries out units.
pub(crate) struct Units {
    pub(crate) attempts: Attempts,
    /// Units that cannot run, by their id, and why not: a binary that could not be listed, or no room on this host at all.
    pub(crate) barred: HashMap<String, Lost>,
    /// Tries after an error of Belljar or the host.
    pub(crate) error_retries: u32,
    /// Repeat each unit until it fails.
    pub(crate) until_fail: bool,
}

impl Units {
    /// Runs a unit to its end. Gives its last word, which is not told yet; none where nothing was tried.
    pub(crate) async fn run(
        &self,
        unit: &Unit,
        slot: u32,
        mut shared: Option<&mut Option<LeasedGuest>>,
    ) -> Option<events::UnitEnded> {
        let started = Instant::now();
        let name = UnitId::from(unit.id.as_str());
        let mut attempts = 0;
        let mut worst: Option<AttemptOutcome> = None;
        let mut flaky = false;
        let mut bad = 0;
        let mut repeat = 0;
        while self.until_fail || repeat < unit.repeat.max(1) {
            if repeat > 0 && self.attempts.cancel.is_wanted().is_some() {
                break;
            }
            repeat += 1;
            let (tried, tries, was_flaky) = self.repetition(unit, &name, repeat, slot, shared.as_deref_mut()).await;
            attempts += tries;
            flaky |= was_flaky;
            let failed = rank(&tried.verdict) > rank(&Verdict::Pass);
            bad += u32::from(failed);
            if worst.as_ref().is_none_or(|w| rank(&tried.verdict) > rank(&w.verdict)) {
                worst = Some(tried);
            }
            if failed && self.until_fail {
                break;
            }
        }
        let worst = worst?;
        let message = match (worst.message, repeat) {
            (message, 1) => message,
            (message, _) => {
                let said = message.map(|m| format!("; the worst: {m}")).unwrap_or_default();
                Some(format!("{bad} of {repeat} repetitions did not pass{said}"))
            }
        };
        Some(events::UnitEnded {
            unit: name,
            flaky: flaky && worst.verdict == Verdict::Pass,
            verdict: worst.verdict,
            attempts,
            millis: millis(started),
            message: message.map(|m| keep_start(&m, MAX_MESSAGE).to_owned()),
        })
    }

    /// One repetition: the first try, and the others if it goes badly. Gives the last try, their number, and whether it passed after a
    /// failure.
    async fn repetition(
        &self,
        unit: &Unit,
        name: &UnitId,
        repeat: u32,
        slot: u32,
        mut shared: Option<&mut Option<LeasedGuest>>,
    ) -> (AttemptOutcome, u32, bool) {
        let mut again = Again { failures: 0, errors: 0 };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let id = AttemptId { unit: name.clone(), repeat, attempt };
            let guest = match shared.as_deref_mut() {
                None => GuestUse::Own,
                Some(lease) => GuestUse::Shared(lease),
            };
            let tried = match self.cannot(unit) {
                Some(tried) => {
                    self.attempts.log.emit(EventKind::AttemptStarted(events::AttemptStarted {
                        id: id.clone(),
                        instance: None,
                        slot: Some(slot),
                    }));
                    tried
                }
                None => self.attempts.attempt(unit, &id, slot, guest).await,
            };
            let mut pause = again.after(&tried, unit, self.error_retries);
            if self.attempts.cancel.is_wanted().is_some() {
                pause = None;
            }
            self.attempts.log.emit(EventKind::AttemptEnded(events::AttemptEnded {
                id,
                verdict: tried.verdict.clone(),
                millis: tried.millis,
                exit: tried.exit,
                message: tried.message.clone(),
                dir: tried.dir.clone(),
                retry_in: pause.map(|p| u64::try_from(p.as_millis()).unwrap_or(u64::MAX)),
            }));
            if let Some(pause) = pause {
                let mut cancel = self.attempts.cancel.clone();
                tokio::select! {
                    biased;
                    _ = cancel.wanted() => {}
                    () = tokio::time::sleep(pause) => continue,
                }
            }
            let flaky = tried.verdict == Verdict::Pass && again.failures > 0;
            return (tried, attempt, flaky);
        }
    }

    /// What stands in the way of a unit before any guest is started.
    fn cannot(&self, unit: &Unit) -> Option<AttemptOutcome> {
        let lost = match self.barred.get(&unit.id) {
            Some(lost) => lost.clone(),
            None if unit.to_be_listed => Cause::Defect("the tests in this binary are not known".into()).into(),
            None => return None,
        };
        let (verdict, message) = (lost.verdict(), lost.message());
        let exit = if let Verdict::Fail(exit) = verdict { Some(exit) } else { None };
        Some(AttemptOutcome { verdict, message, exit, millis: 0, dir: None, retry: false })
    }
}

/// Counts what went badly, failures of the test apart from those of Belljar and the host.
struct Again {
    failures: u32,
    errors: u32,
}

impl Again {
    /// After which pause to try again, if at all.
    fn after(&mut self, tried: &AttemptOutcome, unit: &Unit, error_retries: u32) -> Option<Duration> {
        match &tried.verdict {
            Verdict::Pass | Verdict::Skip(_) => None,
            Verdict::Fail(_) | Verdict::Timeout(_) | Verdict::Crash(_) => {
                self.failures += 1;
                let retries = &unit.settings.retries;
                (self.failures <= retries.count).then(|| retries.pause(self.failures))
            }
            Verdict::Error(Fault::Host { .. }) => {
                self.errors += 1;
                let doubled = ERROR_PAUSE.saturating_mul(1 << (self.errors - 1).min(10)).min(LONGEST_ERROR_PAUSE);
                (tried.retry && self.errors <= error_retries).then_some(doubled)
            }
            Verdict::Error(Fault::Interrupted { .. } | Fault::OutputClosed) => None,
        }
    }
}

/// Of several repetitions the worst is the unit's verdict; a failure says more than an error.
fn rank(verdict: &Verdict) -> u8 {
    match verdict {
        Verdict::Skip(_) => 0,
        Verdict::Pass => 1,
        Verdict::Error(_) => 2,
        Verdict::Timeout(_) => 3,
        Verdict::Fail(_) => 4,
        Verdict::Crash(_) => 5,
    }
}
