//! Notices the death of a guest, whatever else is being waited for: what its kernel says of itself, what QEMU reports over
//! QMP, and the end of QEMU itself.
//!
//! The kernel's faults come on two ways. The console shows them only if it is set to, and shows what programs write as well; the agent
//! reads the kernel's own record, in which every line has its writer. Where the agent vouches for that record, a line of the console
//! that is not in it was no fault; where it does not answer, or there is none, the console alone decides.

mod asked;
mod doubt;
mod expected;
pub(crate) mod guards;
mod heartbeat;
mod ports;
mod power;
mod sleep;

use std::{path::Path, sync::Arc, time::Duration};

use belljar_guest_spec::OopsPolicy;
use belljar_model::{CrashKind, EventKind, Phase};
use tokio::time::Instant;

use crate::{
    Cause, Lost, QemuEnd,
    beside::{self, Beside},
    bounds::Exceeded,
    console::{Alarm, AlarmKind, Alarms, Console, ConsoleView, Phase as AlarmPhase, Severity},
    desk::Desk,
    guest::Observe,
    lab::Lab,
    orders::Inbox,
    qemu::{
        args::{AGENT_PORT_ID, MachineConfig},
        process::{End, ExitWatch, Qemu},
        qmp::{EventStream, QmpEvent},
    },
    replaced::{self, ReplacedFiles},
    running::AFTERMATH,
    session::{agent::Reports, console::ShellAsks},
    share::served::Ends,
};
pub(crate) use asked::{Marks, control};
use doubt::Suspect;
pub(crate) use expected::{Expectation, Expected};
use guards::Guarding;
use heartbeat::Heartbeat;
pub(crate) use ports::SharePorts;
pub(crate) use power::{MOST_RESTARTS, Power};
use sleep::Sleep;

/// A console that is silent for this long has nothing more to say of a fault.
const QUIET: Duration = Duration::from_millis(500);
/// How long a trace is waited for at most.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long the agent's port may be closed by a guest that is about to suspend itself.
const CLOSED: Duration = Duration::from_secs(5);

/// Watches one guest from its start to its end.
#[derive(Debug)]
pub(crate) struct Watch {
    alarms: Alarms,
    view: ConsoleView,
    events: EventStream,
    exit: ExitWatch,
    oops: OopsPolicy,
    /// How many bytes had come over the console when a session was reached: what boot loaders and initramfs print means
    /// nothing from there on.
    entered_at: Option<u64>,
    expected: Expected,
    /// What the agent tells, where there is one.
    reports: Option<Arc<Reports>>,
    /// What programs in a guest without the agent ask for, while a command runs.
    shell_asks: Option<Arc<ShellAsks>>,
    marks: Marks,
    /// Whether it is to go down and come up again.
    pub(crate) power: Power,
    /// What the guest asks of its lab disks, and QEMU's names of them.
    desk: Desk,
    lab_nodes: Vec<String>,
    /// What guards see of the command that runs.
    pub(crate) guarding: Guarding,
    /// What the kernel's own record shows to have ended the guest.
    fault: Option<Lost>,
    /// Lines of the console that are not borne out yet.
    suspects: Vec<Suspect>,
    /// Lines of the console that turned out to be a program's.
    cleared: Vec<Alarm>,
    heartbeat: Heartbeat,
    sleep: Sleep,
    /// The agent's port was closed; when that means its end.
    closed: Option<Instant>,
    /// The ports of shares.
    pub(crate) ports: SharePorts,
    /// Tells of servers of shares that end.
    servers: Ends,
    /// The processes that serve it, and when it is looked at them again.
    beside: (Beside, Instant),
    /// One that has ended, which is not forgotten when nobody waits any more.
    server_end: Option<String>,
    /// Orders from outside.
    pub(crate) inbox: Inbox,
    /// The guest's time was stopped from here.
    stopped: bool,
    /// What of the host's the guest may damage without noticing, and when it is looked for again.
    replaced: Option<(ReplacedFiles, Instant)>,
}

impl Watch {
    pub(crate) fn new(
        console: &Console,
        qemu: &Qemu,
        oops: OopsPolicy,
        servers: Ends,
        beside: Beside,
        (lab, config, dir): (Lab, &MachineConfig, &Path),
    ) -> Self {
        Self {
            alarms: console.alarms(),
            view: console.view(),
            events: qemu.events(),
            exit: qemu.exit_watch(),
            oops,
            entered_at: None,
            expected: Expected::default(),
            reports: None,
            shell_asks: None,
            marks: Marks::default(),
            power: Power::default(),
            desk: Desk::new(lab, qemu.qmp().clone(), config, dir),
            lab_nodes: config.served_disks(),
            guarding: Guarding::default(),
            fault: None,
            suspects: Vec::new(),
            cleared: Vec::new(),
            heartbeat: Heartbeat::new(qemu.wanted_clock()),
            sleep: Sleep::default(),
            closed: None,
            ports: SharePorts::default(),
            servers,
            beside: (beside, Instant::now() + beside::LOOK),
            server_end: None,
            inbox: Inbox::default(),
            stopped: false,
            replaced: None,
        }
    }

    /// The guest has mounted what it can write to.
    pub(crate) fn shared(&mut self, files: ReplacedFiles) {
        self.replaced = Some((files, Instant::now() + replaced::LOOK));
    }

    /// Looks whether the guest's writes go where it means them to go.
    pub(crate) fn look_at_shares(&mut self, observe: Observe<'_>) {
        let Some((files, next)) = &mut self.replaced else { return };
        for message in files.look() {
            observe(EventKind::Warning { message });
        }
        *next = Instant::now() + replaced::LOOK;
    }

    /// The same, unless that was done a moment ago. In a guest that many short commands share it would be most of their cost.
    pub(crate) fn look_at_shares_if_due(&mut self, observe: Observe<'_>) {
        if self.replaced.as_ref().is_some_and(|(_, next)| *next <= Instant::now()) {
            self.look_at_shares(observe);
        }
    }

    /// What to say, beside that something took too long, of the processes that serve the guest: those that stand still, if any.
    pub(crate) fn blame(&self) -> String {
        let hangs = self.desk.lab().hangs().map(|hangs| format!("; {hangs}"));
        self.beside.0.blame() + &hangs.unwrap_or_default()
    }

    /// Where it is announced what is asked of the guest.
    pub(crate) fn expected(&self) -> &Expected {
        &self.expected
    }

    /// What QEMU reports, unless it was asked for.
    fn of_event(&self, event: &QmpEvent, phase: Phase) -> Option<Lost> {
        // A lab disk's errors are the guest's to see; what the host cannot do ends its server.
        let node = event.data.get("node-name").and_then(|name| name.as_str());
        if event.name == "BLOCK_IO_ERROR" && node.is_some_and(|node| self.lab_nodes.iter().any(|lab| lab == node)) {
            return None;
        }
        let lost = of_event(event, phase)?;
        let asked_for = match lost.cause.crash_kind() {
            Some(CrashKind::PowerOff) => self.expected.has(Expectation::PowerOff),
            _ => event.name == "STOP" && self.expected.take(Expectation::Stop),
        };
        (!asked_for).then_some(lost)
    }

    /// Resolves when a guest that is asked to power itself off has come to an end, in whatever way; a loss is a fault of its kernel, or of the
    /// host, on the way there.
    pub(crate) async fn powered_off(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        self.expected.announce(Expectation::PowerOff);
        self.ports.let_go();
        let lost = self.trouble(Phase::Close, observe).await;
        // What its kernel said last may not have been read yet.
        let lost = self.explain(lost, Phase::Close).await;
        match lost.cause.crash_kind() {
            Some(CrashKind::Panic | CrashKind::Oops | CrashKind::Watchdog) | None => Err(lost),
            Some(_) => Ok(()),
        }
    }

    /// The guest is up; `reports` is what its agent tells, if it has one.
    pub(crate) fn entered(&mut self, reports: Option<Arc<Reports>>) {
        self.entered_at = Some(self.view.bytes_seen());
        self.heartbeat.reset();
        self.reports = reports;
    }

    /// The guest is about to begin anew, in the machine that it has: what was seen of it up to now says nothing of what is to come. What of the console
    /// has been cleared stays so.
    pub(crate) fn begin_again(&mut self) {
        self.entered_at = None;
        self.reports = None;
        self.fault = None;
        self.suspects.clear();
        self.closed = None;
        self.replaced = None;
        self.ports.let_go();
        self.heartbeat.reset();
    }

    /// By what programs in a guest without the agent ask for something.
    pub(crate) fn hear_shell(&mut self, asks: Option<Arc<ShellAsks>>) {
        self.shell_asks = asks;
    }

    /// What programs in a guest without the agent ask for.
    pub(crate) fn shell_asks(&self) -> Option<&Arc<ShellAsks>> {
        self.shell_asks.as_ref()
    }

    /// What the agent tells, where there is one.
    pub(crate) fn reports(&self) -> Option<&Arc<Reports>> {
        self.reports.as_ref()
    }

    /// For how long the guest has been suspended, if it is.
    pub(crate) fn suspended(&self) -> Option<Duration> {
        self.sleep.since().map(|since| since.elapsed())
    }

    /// Resolves when the guest is lost; what does not end it is observed. Cancelling loses nothing.
    pub(crate) async fn trouble(&mut self, phase: Phase, observe: Observe<'_>) -> Lost {
        let mut qmp_open = true;
        loop {
            let changes = self.reports.as_ref().map(|reports| reports.changes());
            let shell_changes = self.shell_asks.as_ref().map(|asks| asks.changes());
            self.answer_asks(observe);
            if let Some(lost) = self.lost_orders().or_else(|| self.take_news(phase, observe)) {
                return lost;
            }
            if self.power.is_due() {
                return Cause::Restart.into();
            }
            if let Some(lost) = self.judge_suspects(observe) {
                return lost;
            }
            let due = self.due();
            let look = self.replaced.as_ref().map(|(_, next)| *next);
            tokio::select! {
                biased;
                alarm = self.alarms.next() => {
                    if let Some(lost) = self.of_console(alarm, phase, observe) {
                        return lost;
                    }
                }
                event = self.events.next(), if qmp_open => match event {
                    Some(event) => {
                        if let Some(lost) = self.of_event(&event, phase) {
                            return lost;
                        }
                        self.notice(&event, observe);
                        match of_agent_port(&event) {
                            Some(true) => self.closed = None,
                            Some(false) if self.entered_at.is_some() && !self.expected.has_end() => self.closed = Some(Instant::now() + CLOSED),
                            _ => {}
                        }
                    }
                    // QEMU is about to be gone; its exit tells more.
                    None => qmp_open = false,
                },
                end = self.exit.ended() => return of_end(&end, phase),
                Some(why) = self.servers.recv() => {
                    self.server_end = Some(why.clone());
                    return self.of_server(why, phase).await;
                }
                () = changed(changes) => {}
                () = changed(shell_changes) => {}
                done = self.desk.next() => observe(done),
                order = self.inbox.next() => self.take_order(order),
                () = tokio::time::sleep_until(due) => {
                    if let Some(lost) = self.of_silence(phase) {
                        return lost;
                    }
                }
                () = tokio::time::sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                    self.look_at_shares(observe);
                }
                () = tokio::time::sleep_until(self.beside.1), if !self.beside.0.is_empty() => {
                    for message in self.beside.0.look() {
                        observe(EventKind::Warning { message });
                    }
                    self.beside.1 = Instant::now() + beside::LOOK;
                }
            }
        }
    }

    /// When something has to be looked at although nothing has happened.
    fn due(&self) -> Instant {
        let suspects = self.suspects.iter().map(Suspect::due);
        suspects
            .chain(self.sleep.due())
            .chain(self.closed)
            .chain(self.ports.due())
            .fold(self.heartbeat.due(), Instant::min)
    }

    /// Whether the guest has been quiet in a way that means its end.
    fn of_silence(&mut self, phase: Phase) -> Option<Lost> {
        if self.sleep.since().is_some() {
            // Its devices are switched off as well, the port's among them.
            self.closed = None;
            self.ports.sleep();
            self.heartbeat.reset();
            return self.sleep.overslept(phase);
        }
        if self.closed.take_if(|at| *at <= Instant::now()).is_some() {
            let seen = "the agent's port was closed in the guest: the agent was killed, or died";
            return Some(Lost::crash(CrashKind::Silent, seen, phase));
        }
        if self.expected.has(Expectation::Restart) {
            self.ports.sleep();
        }
        if let Some(lost) = self.ports.lost(phase) {
            return Some(lost);
        }
        let may_be_heard = !self.stopped && !self.expected.may_be_silent();
        let Some(reports) = self.reports.as_ref().filter(|_| may_be_heard) else {
            self.heartbeat.reset();
            return None;
        };
        let silent = self.heartbeat.beat(reports)?;
        let seen = format!(
            "the agent has not answered for {}, although the guest has nothing else to do: it was stopped or killed, or the guest was halted",
            crate::for_people(silent)
        );
        let lost = Lost::crash(CrashKind::Silent, seen, phase);
        Some(match self.desk.lab().hangs() {
            Some(hangs) => lost.with_advice(format!(
                "{hangs}: QEMU itself may wait for that, as it does for an NVMe disk that is reset"
            )),
            None => lost,
        })
    }

    /// What became of the shares without anybody having noticed. A server that ends explains a port that is closed, and may be told of a moment later.
    pub(crate) async fn shares(&mut self, qmp: &crate::qemu::qmp::Qmp, phase: Phase) -> Option<Lost> {
        let closed = self.ports.check(qmp, phase).await;
        if self.server_end.is_none() {
            let patience = if closed.is_some() { AFTERMATH } else { Duration::ZERO };
            self.server_end = tokio::time::timeout(patience, self.servers.recv()).await.ok().flatten();
        }
        match self.server_end.clone() {
            Some(why) => Some(self.of_server(why, phase).await),
            None => closed,
        }
    }

    /// A server of a share has ended, perhaps because QEMU did.
    async fn of_server(&mut self, why: String, phase: Phase) -> Lost {
        match tokio::time::timeout(AFTERMATH, self.exit.ended()).await {
            Ok(end) => of_end(&end, phase),
            Err(_) => Cause::ShareServer(why).into(),
        }
    }

    /// What QEMU reports and what is no end.
    fn notice(&mut self, event: &QmpEvent, observe: Observe<'_>) {
        self.ports.note(event);
        match event.name.as_str() {
            "SUSPEND" => return self.fall_asleep(observe),
            "WAKEUP" => return self.wake_up(observe),
            "STOP" => self.stopped = true,
            "RESUME" => self.stopped = false,
            _ => return,
        }
        self.heartbeat.reset();
    }

    /// A better reason for a loss, if one is known by now or within a moment: the panic behind a reset, the power-off behind a
    /// closed port.
    pub(crate) async fn explain(&mut self, lost: Lost, phase: Phase) -> Lost {
        use CrashKind::{PowerOff, Qemu, Reboot, Silent, Watchdog};
        if !matches!(lost.cause.crash_kind(), Some(Silent | Qemu | Reboot | PowerOff | Watchdog)) {
            return lost;
        }
        let mut best = self.second_boot(phase).filter(|boot| rank(boot) > rank(&lost)).unwrap_or(lost);
        // A broken session says least, and a QEMU that dies may take its time over it on a busy host.
        let patience = if rank(&best) == 0 { AFTERMATH * 10 } else { AFTERMATH };
        let deadline = Instant::now() + patience;
        loop {
            // Asked once: QEMU's end is noted by a thread of its own, and an end that was not looked at explains nothing.
            let ended = self.exit.has_ended();
            if ended {
                // Nothing more comes, but what came last may not have been read yet.
                drop(tokio::time::timeout_at(deadline, self.view.closed()).await);
                let found = of_end(&self.exit.ended().await, phase);
                if rank(&found) > rank(&best) {
                    best = found;
                }
            }
            while let Some(event) = self.events.try_next() {
                self.notice(&event, &mut |_| ());
                best = self.of_event(&event, phase).filter(|found| rank(found) > rank(&best)).unwrap_or(best);
            }
            if let Some(fault) = self.fault_now(phase) {
                return fault;
            }
            if rank(&best) >= FATAL || ended || Instant::now() >= deadline {
                return best;
            }
            match tokio::time::timeout_at(deadline, self.trouble(phase, &mut |_| ())).await {
                Err(_) => return best,
                Ok(found) if rank(&found) > rank(&best) => best = found,
                Ok(_) => {}
            }
        }
    }

    /// Waits until a guest whose kernel failed has said what it has to say: its trace comes line by line, and a person
    /// will want it.
    pub(crate) async fn last_words(&mut self, lost: &Lost) {
        if !matches!(lost.cause.crash_kind(), Some(CrashKind::Panic | CrashKind::Oops)) {
            return;
        }
        let mut last = self.view.last_line();
        let quiet = async { while tokio::time::timeout(QUIET, last.changed()).await.is_ok_and(|c| c.is_ok()) {} };
        let spoken = async {
            tokio::select! {
                () = quiet => {}
                _ = self.exit.ended() => {}
            }
        };
        // One that never ends has said enough.
        drop(tokio::time::timeout(LAST_WORDS, spoken).await);
    }

    /// A kernel that started after the session was reached, as by kexec. No proof by itself: `dmesg` may have been printed to
    /// the console.
    fn second_boot(&self, phase: Phase) -> Option<Lost> {
        let entered = self.entered_at?;
        let start = self.alarms.all().into_iter().find(|a| a.kind == AlarmKind::KernelStart && a.at > entered)?;
        Some(Lost::crash(CrashKind::Reboot, start.line, phase))
    }

    fn of_alarm(&self, alarm: &Alarm, phase: Phase) -> Option<Lost> {
        let kind = match alarm.kind.severity() {
            Severity::Fatal => match alarm.kind {
                _ if self.is_ordered(alarm) => return None,
                AlarmKind::NoRoot | AlarmKind::InitDied | AlarmKind::Panic => CrashKind::Panic,
                _ if self.oops == OopsPolicy::Note => return None,
                _ => CrashKind::Oops,
            },
            Severity::Stuck if alarm.kind.phase() == AlarmPhase::Boot && self.entered_at.is_none() => {
                CrashKind::BootFailed
            }
            // Seen on the console before QEMU reports it; what QEMU reports counts.
            Severity::Ending | Severity::Stuck | Severity::Note => return None,
        };
        let seen = if kind == CrashKind::BootFailed {
            format!("{} ({})", alarm.kind.title(), alarm.line)
        } else {
            alarm.line.clone()
        };
        let lost = Lost::crash(kind, seen, phase);
        let advice = alarm.kind.advice();
        Some(if advice.is_empty() { lost } else { lost.with_advice(advice) })
    }
}

/// Resolves when there is more to read; never where nobody tells.
async fn changed(changes: Option<tokio::sync::watch::Receiver<u64>>) {
    let gone = match changes {
        Some(mut changes) => changes.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

/// What the end of QEMU says of the guest.
fn of_end(end: &End, phase: Phase) -> Lost {
    match &end.exceeded {
        Some(exceeded) => of_exceeded(exceeded),
        None => Cause::QemuEnded { end: QemuEnd(Arc::new(end.clone())), phase }.into(),
    }
}

/// A guest that wrote more than it may. It would do so again.
pub(crate) fn of_exceeded(exceeded: &Exceeded) -> Lost {
    Lost::from(Cause::Exceeded(exceeded.clone())).lasting()
}

const FATAL: u8 = 4;

/// Seen in every boot.
fn is_routine(kind: AlarmKind) -> bool {
    matches!(
        kind,
        AlarmKind::KernelStart
            | AlarmKind::BootMenu
            | AlarmKind::NetworkBootTried
            | AlarmKind::Suspend
            | AlarmKind::Wake
    )
}

/// How much a loss explains.
fn rank(lost: &Lost) -> u8 {
    match lost.cause.crash_kind() {
        Some(CrashKind::Silent) => 0,
        Some(CrashKind::Qemu | CrashKind::Container) => 1,
        Some(CrashKind::PowerOff | CrashKind::Reboot) => 2,
        // It is why there was a reset.
        Some(CrashKind::Watchdog) => 3,
        Some(CrashKind::Panic | CrashKind::Oops | CrashKind::BootFailed) | None => FATAL,
    }
}

/// Whether the agent's port was opened or closed (QEMU's `qapi/char.json`, `VSERPORT_CHANGE`). The agent never closes it, but a guest
/// that suspends itself does. Other ports are the user's own.
fn of_agent_port(event: &QmpEvent) -> Option<bool> {
    of_port(event).filter(|(id, _)| *id == AGENT_PORT_ID).map(|(_, open)| open)
}

/// Which port was opened or closed.
fn of_port(event: &QmpEvent) -> Option<(&str, bool)> {
    let id = event.data.get("id").and_then(serde_json::Value::as_str);
    let open = event.data.get("open").and_then(serde_json::Value::as_bool);
    id.zip(open).filter(|_| event.name == "VSERPORT_CHANGE")
}

/// What QEMU reports of a guest that nobody asked to end (QEMU's `qapi/run-state.json`).
fn of_event(event: &QmpEvent, phase: Phase) -> Option<Lost> {
    match event.name.as_str() {
        "GUEST_PANICKED" => Some(Lost::crash(CrashKind::Panic, "QEMU's pvpanic device was told of a panic", phase)),
        "SHUTDOWN" => {
            let reason = event.data.get("reason").and_then(|r| r.as_str()).unwrap_or("without a reason");
            match reason {
                "guest-reset" => Some(Lost::crash(CrashKind::Reboot, "QEMU reports a reset by the guest", phase)),
                "guest-panic" => Some(Lost::crash(CrashKind::Panic, "QEMU reports a panic of the guest", phase)),
                "guest-shutdown" => {
                    Some(Lost::crash(CrashKind::PowerOff, "QEMU reports a shutdown by the guest", phase))
                }
                other => Some(Lost::crash(CrashKind::Qemu, format!("QEMU reports a shutdown: {other}"), phase)),
            }
        }
        "WATCHDOG" => {
            let seen = "the guest did not feed it in time, and QEMU reports that it resets the machine";
            Some(Lost::crash(CrashKind::Watchdog, seen, phase))
        }
        "STOP" => Some(Lost::crash(CrashKind::Qemu, "QEMU stopped the guest (no space left on the host?)", phase)),
        "BLOCK_IO_ERROR" => {
            let why = event.data.get("reason").and_then(|r| r.as_str()).unwrap_or("without a reason");
            Some(Cause::DiskWrite(why.to_owned()).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::QmpTimestamp;

    fn event(name: &str, data: serde_json::Value) -> Option<Lost> {
        let timestamp = QmpTimestamp { seconds: 0, microseconds: 0 };
        of_event(&QmpEvent { name: name.into(), data, timestamp }, Phase::Command)
    }

    fn kind(lost: Option<Lost>) -> Option<CrashKind> {
        let lost = lost?;
        Some(lost.cause.crash_kind().unwrap_or_else(|| panic!("{lost:?}")))
    }

    #[test]
    fn what_qemu_reports_is_told_apart() {
        let shutdown = |reason: &str| kind(event("SHUTDOWN", serde_json::json!({"guest": true, "reason": reason})));
        assert_eq!(shutdown("guest-reset"), Some(CrashKind::Reboot));
        assert_eq!(shutdown("guest-shutdown"), Some(CrashKind::PowerOff));
        assert_eq!(shutdown("guest-panic"), Some(CrashKind::Panic));
        assert_eq!(kind(event("SHUTDOWN", serde_json::Value::Null)), Some(CrashKind::Qemu));
        assert_eq!(kind(event("WATCHDOG", serde_json::json!({"action": "reset"}))), Some(CrashKind::Watchdog));
        assert_eq!(kind(event("RTC_CHANGE", serde_json::Value::Null)), None);
    }

    #[test]
    fn a_panic_explains_more_than_a_reset() {
        let of = |kind| rank(&Lost::crash(kind, "", Phase::Boot));
        assert!(of(CrashKind::Panic) > of(CrashKind::Watchdog));
        assert!(of(CrashKind::Watchdog) > of(CrashKind::Reboot));
        assert!(of(CrashKind::Reboot) > of(CrashKind::Qemu));
        assert!(of(CrashKind::Qemu) > of(CrashKind::Silent));
    }
}
