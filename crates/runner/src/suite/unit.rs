//! A unit: its repetitions, the tries of each, and its last word.

use std::{rc::Rc, time::Duration};

use belljar_model::{AttemptId, EventKind, Fault, UnitId, Verdict, test_run as events};
use belljar_suite::plan::Unit;
use events::{MAX_MESSAGE, keep_start};
use tokio::time::Instant;

use super::{
    Cx,
    attempt::{self, Place, Tried},
    lease::Lease,
    millis,
};

/// The pause before a try after an error that is not the test's; it doubles.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_ERROR_PAUSE: Duration = Duration::from_secs(30);

/// Runs a unit to its end, and tells it.
pub(crate) async fn run(cx: &Rc<Cx>, unit: &Unit, slot: u32, mut shared: Option<&mut Option<Lease>>) {
    let started = Instant::now();
    let name = UnitId::from(unit.id.as_str());
    let mut attempts = 0;
    let mut worst: Option<Tried> = None;
    let mut flaky = false;
    let mut bad = 0;
    let mut repeat = 0;
    while cx.until_fail || repeat < unit.repeat.max(1) {
        if repeat > 0 && cx.cancel.is_wanted().is_some() {
            break;
        }
        repeat += 1;
        let (tried, tries, was_flaky) = repetition(cx, unit, &name, repeat, slot, shared.as_deref_mut()).await;
        attempts += tries;
        flaky |= was_flaky;
        let failed = rank(&tried.verdict) > rank(&Verdict::Pass);
        bad += u32::from(failed);
        if worst.as_ref().is_none_or(|w| rank(&tried.verdict) > rank(&w.verdict)) {
            worst = Some(tried);
        }
        if failed && cx.until_fail {
            break;
        }
    }
    let Some(worst) = worst else { return };
    let message = match (worst.message, repeat) {
        (message, 1) => message,
        (message, _) => {
            let said = message.map(|m| format!("; the worst: {m}")).unwrap_or_default();
            Some(format!("{bad} of {repeat} repetitions did not pass{said}"))
        }
    };
    cx.unit_ended(events::UnitEnded {
        unit: name,
        flaky: flaky && worst.verdict == Verdict::Pass,
        verdict: worst.verdict,
        attempts,
        millis: millis(started.elapsed()),
        message: message.map(|m| keep_start(&m, MAX_MESSAGE).to_owned()),
    });
}

/// One repetition: the first try, and the others if it goes badly. Gives the last try, their number, and whether it passed after a
/// failure.
async fn repetition(
    cx: &Rc<Cx>,
    unit: &Unit,
    name: &UnitId,
    repeat: u32,
    slot: u32,
    mut shared: Option<&mut Option<Lease>>,
) -> (Tried, u32, bool) {
    let mut again = Again { failures: 0, errors: 0 };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let id = AttemptId { unit: name.clone(), repeat, attempt };
        let place = match shared.as_deref_mut() {
            None => Place::Own,
            Some(lease) => Place::Shared(lease),
        };
        let tried = match cx.cannot(unit) {
            Some(tried) => {
                cx.tell.emit(EventKind::AttemptStarted(events::AttemptStarted {
                    id: id.clone(),
                    instance: None,
                    slot: Some(slot),
                }));
                tried
            }
            None => attempt::attempt(cx, unit, &id, slot, place).await,
        };
        let mut pause = again.after(&tried, unit, cx.error_retries);
        if cx.cancel.is_wanted().is_some() {
            pause = None;
        }
        cx.tell.emit(EventKind::AttemptEnded(events::AttemptEnded {
            id,
            verdict: tried.verdict.clone(),
            millis: tried.millis,
            exit: tried.exit,
            message: tried.message.clone(),
            dir: tried.dir.clone(),
            retry_in: pause.map(millis),
        }));
        if let Some(pause) = pause {
            let mut cancel = cx.cancel.clone();
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

/// Counts what went badly, failures of the test apart from those of Belljar and the host.
struct Again {
    failures: u32,
    errors: u32,
}

impl Again {
    /// After which pause to try again, if at all.
    fn after(&mut self, tried: &Tried, unit: &Unit, error_retries: u32) -> Option<Duration> {
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
