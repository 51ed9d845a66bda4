//! A guest that suspends itself. Of a machine's own sleep QEMU tells; of one in which only its kernel rests (s2idle) the kernel does, on
//! the console if that shows it, and in its record when the agent can read that again.

use std::time::Duration;

use belljar_model::{CrashKind, EventKind, Phase};
use tokio::time::Instant;

use super::Watch;
use crate::{Lost, console::AlarmKind, guest::Observe};

/// How long a guest may be suspended. Nothing wakes one that has set no alarm.
const LIMIT: Duration = Duration::from_secs(600);

/// Whether the guest sleeps.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    since: Option<Instant>,
    /// How often its kernel said on the console that it goes to sleep and that it has woken, and how often in its record: whatever is
    /// heard first counts.
    console: (u32, u32),
    record: (u32, u32),
}

impl Sleep {
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// When it has slept for too long.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + LIMIT)
    }

    /// The end of a guest that does not wake.
    pub(super) fn overslept(&mut self, phase: Phase) -> Option<Lost> {
        let slept = self.since.take_if(|since| since.elapsed() >= LIMIT)?.elapsed();
        let slept = crate::for_people(slept);
        let seen = format!("the guest suspended itself, and nothing has woken it for {slept}");
        let advice = "a guest wakes by itself only if it has set an alarm, as with rtcwake(8)";
        Some(Lost::crash(CrashKind::Silent, seen, phase).with_advice(advice))
    }
}

impl Watch {
    /// A line of the console's or of the record's about sleep. `true`: it was one.
    pub(super) fn of_sleep(&mut self, kind: AlarmKind, from_record: bool, observe: Observe<'_>) -> bool {
        let Sleep { console, record, .. } = &mut self.sleep;
        let (here, there) = if from_record { (record, console) } else { (console, record) };
        match kind {
            AlarmKind::Suspend => {
                here.0 += 1;
                if here.0 > there.0 {
                    self.fall_asleep(observe);
                }
            }
            AlarmKind::Wake => {
                here.1 += 1;
                if here.1 > there.1 {
                    self.wake_up(observe);
                }
            }
            _ => return false,
        }
        true
    }

    pub(super) fn fall_asleep(&mut self, observe: Observe<'_>) {
        if self.entered_at.is_none() || self.sleep.since.is_some() {
            return;
        }
        self.sleep.since = Some(Instant::now());
        observe(EventKind::Warning { message: "the guest suspended itself; the run goes on when it wakes".into() });
        self.sleep_changed();
    }

    pub(super) fn wake_up(&mut self, observe: Observe<'_>) {
        let Some(since) = self.sleep.since.take() else { return };
        let slept = crate::for_people(since.elapsed());
        observe(EventKind::Warning {
            message: format!(
                "the guest woke after {slept}; whatever uses a 9p share from now on hangs, its root if that is one, for 9p does not survive a suspend"
            ),
        });
        self.sleep_changed();
    }

    fn sleep_changed(&mut self) {
        self.closed = None;
        self.heartbeat.reset();
        if let Some(reports) = &self.reports {
            reports.set_asleep(self.sleep.since.is_some());
        }
    }
}
