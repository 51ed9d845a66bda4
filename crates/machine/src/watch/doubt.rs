//! Which lines are the kernel's own.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use belljar_guest_spec::OopsPolicy;
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{DiskPath, KernelLine, KernelNews, MAX_NAMED};
use tokio::time::Instant;

use super::{FATAL, Watch, changed, is_routine, rank};
use crate::{
    Lost,
    console::{Alarm, AlarmKind, Phase as AlarmPhase, Severity, kernel_kind},
    guest::Observe,
    harmed::HarmedDisks,
};

/// How long the agent has to answer before the console alone is believed. It goes before everything else in the guest, so that
/// a kernel that works lets it answer within a fraction of that.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a guest that says that it ends has for that.
const ENDING: Duration = Duration::from_secs(5);
/// How often a guest that has not taken the question is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// `TAINT_BAD_PAGE`, `TAINT_DIE` and `TAINT_SOFTLOCKUP` (the kernel's `include/linux/panic.h`).
const FAULTS: u64 = 1 << 5 | 1 << 7 | 1 << 14;

/// Most lines of the console that are known to be what was ordered.
const MOST_CLEARED: usize = 1000;

/// A line of the console that ends the guest if it is the kernel's.
#[derive(Debug)]
pub(super) struct Suspect {
    alarm: Alarm,
    lost: Lost,
    /// Which answer of the agent's says that it is not.
    ticket: Option<u64>,
    until: Instant,
}

impl Suspect {
    /// When to look at it again.
    pub(super) fn due(&self) -> Instant {
        if self.ticket.is_some() { self.until } else { self.until.min(Instant::now() + AGAIN) }
    }
}

impl Watch {
    /// What a line of the console means; `Some` if the guest is lost.
    pub(super) fn of_console(&mut self, alarm: Alarm, phase: Phase, observe: Observe<'_>) -> Option<Lost> {
        if self.of_sleep(alarm.kind, false, observe) {
            return None;
        }
        let witnessed = self.is_witnessed(&alarm);
        if alarm.kind == AlarmKind::HungTask && self.is_ordered(&alarm) && self.cleared.len() < MOST_CLEARED {
            if !witnessed {
                observe(self.told(&alarm, false));
            }
            // The disk may be healed by the time that the console is looked at once more.
            self.cleared.push(alarm);
            return None;
        }
        let lost = self.of_alarm(&alarm, phase);
        let of_kernel = alarm.kind.phase() == AlarmPhase::Kernel;
        let suspect = match (lost, alarm.kind.severity()) {
            (Some(lost), _) if !witnessed => {
                observe(self.told(&alarm, true));
                return Some(lost);
            }
            (Some(lost), _) => (lost, PATIENCE),
            (None, Severity::Ending) if self.entered_at.is_some_and(|at| alarm.at > at) => {
                (ending(&alarm, phase), ENDING)
            }
            // The kernel's record has it, too.
            (None, _) if witnessed && of_kernel => return None,
            (None, _) => {
                let ordered = self.is_ordered(&alarm);
                if !is_routine(alarm.kind)
                    && (ordered || !self.guarding.kernel_says(alarm.kind, &alarm.line, false, observe))
                {
                    observe(self.told(&alarm, false));
                }
                return None;
            }
        };
        let (lost, patience) = suspect;
        let ticket = self.reports.as_ref().and_then(|reports| reports.ask());
        self.suspects.push(Suspect { alarm, lost, ticket, until: Instant::now() + patience });
        None
    }

    fn told(&self, alarm: &Alarm, fatal: bool) -> EventKind {
        self.told_of(alarm, self.is_ordered(alarm), fatal)
    }

    /// What a disk was told to do is told once, as an order; what comes of it may be a thousand lines.
    fn told_of(&self, alarm: &Alarm, ordered: bool, fatal: bool) -> EventKind {
        EventKind::Alarm { name: alarm.kind.title().into(), line: alarm.line.clone(), fatal, ordered }
    }

    /// Whether the agent would know of it if the kernel had said this.
    fn is_witnessed(&self, alarm: &Alarm) -> bool {
        let up = self.entered_at.is_some_and(|at| alarm.at > at);
        up && self.reports.as_ref().is_some_and(|reports| reports.vouches())
    }

    /// Clears what the agent's answer has cleared, and gives the loss that no answer has.
    pub(super) fn judge_suspects(&mut self, observe: Observe<'_>) -> Option<Lost> {
        let mut at = 0;
        while let Some(suspect) = self.suspects.get_mut(at) {
            if let Some(reports) = &self.reports {
                suspect.ticket = suspect.ticket.or_else(|| reports.ask());
                if suspect.ticket.is_some_and(|ticket| reports.answered() >= ticket) {
                    let Suspect { alarm, .. } = self.suspects.remove(at);
                    let line = alarm.line.clone();
                    let name = "no message of the kernel's, though it looks like one".into();
                    observe(EventKind::Alarm { name, line, fatal: false, ordered: false });
                    self.cleared.push(alarm);
                    continue;
                }
                if reports.is_held() {
                    suspect.until = suspect.until.max(Instant::now() + AGAIN);
                }
            }
            if Instant::now() >= suspect.until {
                let Suspect { alarm, lost, .. } = self.suspects.remove(at);
                observe(self.told(&alarm, true));
                return Some(lost);
            }
            at += 1;
        }
        None
    }

    /// Reads what the agent tells of the kernel; `Some` if the guest is lost.
    pub(crate) fn take_news(&mut self, phase: Phase, observe: Observe<'_>) -> Option<Lost> {
        while let Some(news) = self.reports.as_ref().and_then(|reports| reports.next_news()) {
            let lost = match news {
                KernelNews::Watched => {
                    observe(choice("the kernel's own record", "the agent reads /dev/kmsg beside the console"));
                    None
                }
                KernelNews::Unreadable(why) => {
                    self.guarding.record_closed(&why, observe);
                    observe(choice("the console alone", &why));
                    None
                }
                KernelNews::Line(line) => self.of_record(line, phase, observe),
                KernelNews::Guard(news) => {
                    self.guarding.take(news, observe);
                    None
                }
                KernelNews::Lost { records, tainted } => {
                    let message = format!(
                        "{records} messages of the guest's kernel were overwritten before they could be read; the console alone says \
                         whether it failed"
                    );
                    observe(EventKind::Warning { message });
                    self.guarding.lost_records(records, observe);
                    (tainted & FAULTS != 0 && self.oops == OopsPolicy::Crash).then(|| {
                        let seen = format!(
                            "its messages are lost, but /proc/sys/kernel/tainted has the flags {tainted:#x} now"
                        );
                        Lost::crash(CrashKind::Oops, seen, phase)
                    })
                }
            };
            if lost.is_some() {
                self.fault.clone_from(&lost);
                return lost;
            }
        }
        None
    }

    fn of_record(&mut self, line: KernelLine, phase: Phase, observe: Observe<'_>) -> Option<Lost> {
        let KernelLine { text: line, devices } = line;
        let kind = kernel_kind(&line)?;
        if self.of_sleep(kind, true, observe) || is_routine(kind) || kind.severity() == Severity::Ending {
            return None;
        }
        let alarm = Alarm { kind, line, at: self.view.bytes_seen() };
        let lost = self.of_alarm(&alarm, phase);
        // What a disk was told to do is not held against anybody. The agent says which disk it is.
        let harmed = self.desk.lab().harmed();
        let (ordered, line) = match kind {
            AlarmKind::DiskError if harmed.explain(&devices) => (true, Cow::Borrowed(&*alarm.line)),
            AlarmKind::DiskError if harmed.any() => {
                (false, format!("{} {}", alarm.line, whose(&devices, harmed)).into())
            }
            AlarmKind::DiskError => (false, Cow::Borrowed(&*alarm.line)),
            _ => (self.is_ordered(&alarm), Cow::Borrowed(&*alarm.line)),
        };
        if lost.is_some() || ordered || !self.guarding.kernel_says(kind, &line, true, observe) {
            observe(self.told_of(&alarm, ordered, lost.is_some()));
        }
        lost
    }

    /// Whether it may be what was ordered. Where nobody says which disk an error is of, each disk's may be.
    pub(super) fn is_ordered(&self, alarm: &Alarm) -> bool {
        match alarm.kind {
            AlarmKind::DiskError => self.desk.lab().harmed().any(),
            // Whoever waits for a disk that hangs for long is told of by the kernel.
            AlarmKind::HungTask => self.desk.lab().may_hang_tasks(),
            _ => false,
        }
    }

    /// A fault of the kernel that nobody has looked at yet, going by what is known now.
    pub(crate) fn fault_now(&mut self, phase: Phase) -> Option<Lost> {
        let lost = self.take_news(phase, &mut |_| ());
        lost.or_else(|| self.fault.clone()).or_else(|| self.of_alarm(self.unexplained(phase).first()?, phase))
    }

    /// The same for a guest that answers: what the console shows is held against the kernel's record.
    pub(crate) async fn doubt(&mut self, phase: Phase, observe: Observe<'_>) -> Option<Lost> {
        let until = Instant::now() + PATIENCE;
        let mut asked = None;
        loop {
            let changes = self.reports.as_ref().map(|reports| reports.changes());
            if let Some(lost) = self.take_news(phase, observe) {
                return Some(lost);
            }
            let open = self.unexplained(phase);
            let Some(first) = open.first() else { return self.fault.clone() };
            if open.iter().any(|alarm| !self.is_witnessed(alarm)) || Instant::now() >= until {
                return self.of_alarm(first, phase);
            }
            let reports = self.reports.clone()?;
            match &asked {
                Some((ticket, count)) if reports.answered() >= *ticket => {
                    self.cleared.extend(open.into_iter().take(*count));
                    asked = None;
                    continue;
                }
                Some(_) => {}
                None => asked = reports.ask().map(|ticket| (ticket, open.len())),
            }
            tokio::select! {
                () = changed(changes) => {}
                _ = self.exit.ended() => return self.of_alarm(first, phase),
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Lines of the console that end the guest and are not known to be a program's.
    fn unexplained(&self, phase: Phase) -> Vec<Alarm> {
        let ends = |alarm: &Alarm| self.of_alarm(alarm, phase).is_some_and(|lost| rank(&lost) >= FATAL);
        self.alarms.all().into_iter().filter(|alarm| ends(alarm) && !self.cleared.contains(alarm)).collect()
    }
}

/// Of which disk an error is that nobody has ordered, while something else was told to fail.
fn whose(devices: &[Vec<DiskPath>], harmed: &HarmedDisks) -> String {
    let disks: BTreeSet<&DiskPath> = devices.iter().flatten().filter(|disk| !disk.serial.is_empty()).collect();
    let told = |disk: &DiskPath| {
        // Of such a disk another path was told to fail.
        if harmed.has(&disk.serial) { format!("{} by path {}", disk.serial, disk.path) } else { disk.serial.clone() }
    };
    let known: Vec<String> = disks.into_iter().take(MAX_NAMED).map(told).collect();
    if known.is_empty() {
        return "(of no disk that was told to fail, as far as is known)".to_owned();
    }
    format!("(of {}, which nobody told to fail)", known.join(" and "))
}

fn choice(chosen: &str, why: &str) -> EventKind {
    EventKind::Choice { what: "kernel faults".into(), chosen: chosen.into(), why: why.into() }
}

/// What it means that a guest said that it ends, and neither did nor answers.
fn ending(alarm: &Alarm, phase: Phase) -> Lost {
    let kind = if alarm.kind == AlarmKind::Restart { CrashKind::Reboot } else { CrashKind::PowerOff };
    let said = "the guest said so, and does not answer any more, but its machine goes on";
    Lost::crash(kind, alarm.line.clone(), phase).with_advice(said)
}
