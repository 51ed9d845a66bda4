//! The state that all parts of the pretended QEMU share.

use std::{
    collections::BTreeSet,
    io::Write as _,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use belljar_proto::message::{KernelNews, Question, ToHost};
use serde_json::{Value, json};

use crate::{
    agent::port::Port,
    args::{Args, Opt},
    hardware::Hardware,
    journal::Journal,
    migrate::{Manners, Migration},
    qmp::Control,
    screen::Screen,
    sshd::Forward,
};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// `exit(code)`.
    Exit(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// What `[options]` can set.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Version that QEMU says it has.
    pub(crate) version: String,
    /// Whether the guest shuts down when the power button is pressed.
    pub(crate) powerdown_obeyed: bool,
    /// Whether SIGTERM, SIGINT and SIGHUP end QEMU.
    pub(crate) sigterm_obeyed: bool,
    /// Whether QMP's `quit` ends QEMU.
    pub(crate) quit_obeyed: bool,
    /// Whether QMP's `cont` is obeyed.
    pub(crate) cont_obeyed: bool,
    /// What becomes of freezing.
    pub(crate) migrate: Manners,
    /// What becomes of loading what was frozen.
    pub(crate) incoming: Manners,
    /// What becomes of plugging a device in; `fail`: the guest never sees it.
    pub(crate) device_add: Manners,
    /// What becomes of plugging one out; `fail`: the guest keeps it.
    pub(crate) device_del: Manners,
    /// What becomes of a picture of the screen; `fail`: it is none.
    pub(crate) screendump: Manners,
    /// Seconds that a copy of the guest's memory takes.
    pub(crate) dump: u64,
    /// Whether there is an SSH server in the guest.
    pub(crate) sshd: bool,
    /// The name by which the script was found, if it was one of several.
    pub(crate) name: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: "8.2.0".into(),
            powerdown_obeyed: true,
            sigterm_obeyed: true,
            quit_obeyed: true,
            cont_obeyed: true,
            migrate: Manners::Obey,
            incoming: Manners::Obey,
            device_add: Manners::Obey,
            device_del: Manners::Obey,
            screendump: Manners::Obey,
            dump: 0,
            sshd: true,
            name: None,
        }
    }
}

#[derive(Debug)]
struct State {
    status: &'static str,
    marks: BTreeSet<String>,
    end: Option<End>,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The command line.
    pub(crate) args: Args,
    /// From the script.
    pub(crate) options: Options,
    /// For the test.
    pub(crate) journal: Arc<Journal>,
    /// The QMP channel.
    pub(crate) control: Control,
    /// Freezing and going on.
    pub(crate) migration: Migration,
    /// Its devices.
    pub(crate) hardware: Hardware,
    /// What it shows.
    pub(crate) screen: Screen,
    /// The way to its SSH server.
    pub(crate) forward: Forward,
    state: Mutex<State>,
    changed: Condvar,
    /// Of the agent that has a session.
    agent: Mutex<Option<Port>>,
    /// What the guest keeps of its memory, where a balloon was told to take some.
    balloon: Mutex<Option<u64>>,
    /// Ports of shares that the guest has closed.
    closed: Mutex<BTreeSet<String>>,
}

impl Machine {
    /// One that waits for `cont` if the command line says `-S`.
    pub(crate) fn new(args: Args, options: Options, journal: Arc<Journal>, control: Control) -> Arc<Self> {
        let status = match (args.has("incoming"), args.has("S")) {
            (true, _) => "inmigrate",
            (false, true) => "prelaunch",
            (false, false) => "running",
        };
        Arc::new(Self {
            migration: Migration::default(),
            hardware: Hardware::new(&args),
            screen: Screen::default(),
            forward: Forward::default(),
            args,
            options,
            journal,
            control,
            state: Mutex::new(State { status, marks: BTreeSet::new(), end: None }),
            changed: Condvar::new(),
            agent: Mutex::new(None),
            balloon: Mutex::default(),
            closed: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// The run state, in QMP's words.
    pub(crate) fn status(&self) -> &'static str {
        self.state().status
    }

    /// Changes the run state.
    pub(crate) fn set_status(&self, status: &'static str) {
        self.update(|s| s.status = status);
    }

    /// Blocks until the guest's processors run.
    pub(crate) fn await_running(&self) {
        let guard = self.state();
        drop(self.changed.wait_while(guard, |s| s.status != "running"));
    }

    /// Everything that happened so far.
    pub(crate) fn marks(&self) -> Vec<String> {
        self.state().marks.iter().cloned().collect()
    }

    /// As [`mark`](Self::mark), but what happens often is noted the first time.
    pub(crate) fn mark_once(&self, name: &str) {
        if !self.state().marks.contains(name) {
            self.mark(name);
        }
    }

    /// Notes that something happened, for `wait` in another track.
    pub(crate) fn mark(&self, name: &str) {
        self.journal.note("mark", name);
        self.update(|s| {
            s.marks.insert(name.to_owned());
        });
    }

    /// Notes what happened before the machine was frozen.
    pub(crate) fn recall(&self, name: &str) {
        self.update(|s| {
            s.marks.insert(name.to_owned());
        });
    }

    /// Blocks until it happened; false if the time passed.
    pub(crate) fn await_mark(&self, name: &str, within: Option<Duration>) -> bool {
        let deadline = within.map(|d| Instant::now() + d);
        let mut guard = self.state();
        while !guard.marks.contains(name) {
            guard = match deadline {
                None => self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Ends the program. The first end holds.
    pub(crate) fn end(&self, end: End) {
        self.journal.note("end", format!("{end:?}"));
        self.update(|s| {
            s.end.get_or_insert(end);
        });
    }

    /// Whether the program is to end.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// Blocks until the program is to end.
    pub(crate) fn await_end(&self) -> End {
        let mut guard = self.state();
        loop {
            if let Some(end) = guard.end {
                return end;
            }
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What QEMU does when the machine is off, whoever did it.
    pub(crate) fn shutdown(&self, guest: bool, reason: &str) {
        self.control.event("SHUTDOWN", &json!({ "guest": guest, "reason": reason }));
        if guest && self.args.shutdown_pauses() {
            self.set_status("shutdown");
            self.control.event("STOP", &Value::Null);
        } else {
            self.end(End::Exit(0));
        }
    }

    /// What QEMU does when the guest reboots.
    pub(crate) fn reset(&self) {
        if self.args.reset_ends() {
            self.shutdown(true, "guest-reset");
        } else {
            self.control.event("RESET", &json!({ "guest": true, "reason": "guest-reset" }));
        }
    }

    /// `balloon`, and `query-balloon` without a value: bytes that the guest has.
    pub(crate) fn balloon(&self, value: Option<u64>) -> Result<u64, String> {
        if !self.args.all("device").any(|device| device.driver().starts_with("virtio-balloon")) {
            return Err("No balloon device has been activated".into());
        }
        let mut kept = self.balloon.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = value.or(*kept);
        let actual = kept.unwrap_or(1 << 30);
        if value.is_some() {
            self.control.event("BALLOON_CHANGE", &json!({ "actual": actual }));
        }
        Ok(actual)
    }

    /// What QEMU does when its watchdog was not fed.
    pub(crate) fn bite(&self) {
        if !self.args.all("device").any(|device| ["i6300esb", "ib700"].contains(&device.driver())) {
            return self.script_failed("there is no watchdog that could bite");
        }
        self.control.event("WATCHDOG", &json!({ "action": "reset" }));
        self.reset();
    }

    /// Which agent passes on what the kernel says.
    pub(crate) fn set_agent(&self, port: Port) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = Some(port);
    }

    /// News of the kernel's own record, by way of the agent. `false`: there is none that could pass them on.
    pub(crate) fn kernel(&self, news: KernelNews) -> bool {
        let agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        agent.as_ref().is_some_and(|port| port.say(&ToHost::Kernel(news)))
    }

    /// A question of a program in the guest, by way of the agent. `false`: there is none that could pass it on.
    pub(crate) fn ask(&self, number: u32, question: Question) -> bool {
        let agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        agent.as_ref().is_some_and(|port| port.say(&ToHost::Ask { number, question }))
    }

    /// A program in the guest opens or closes the port of Belljar's agent. As in QEMU, nobody hears of a port without an id.
    pub(crate) fn port(&self, open: bool) {
        for id in self.args.all("device").filter(|d| d.driver() == "virtserialport").filter_map(Opt::id) {
            self.control.event("VSERPORT_CHANGE", &json!({"open": open, "id": id}));
        }
    }

    /// A share's relay opens or closes its port.
    pub(crate) fn share_port(&self, id: &str, open: bool) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if open {
            closed.remove(id)
        } else {
            closed.insert(id.to_owned())
        };
        drop(closed);
        self.control.event("VSERPORT_CHANGE", &json!({ "open": open, "id": id }));
    }

    /// Whether the guest has closed the port of a share.
    pub(crate) fn is_closed(&self, id: &str) -> bool {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Whether it was started with a disk of this serial number.
    pub(crate) fn has_disk(&self, serial: &str) -> bool {
        self.args.all("device").any(|device| device.get("serial") == Some(serial))
    }

    /// What QEMU does when the guest's kernel tells the pvpanic device.
    pub(crate) fn panicked(&self) {
        let action = self.args.panic_action();
        let said = match action.as_str() {
            "pause" => "pause",
            "none" => "run",
            _ => "poweroff",
        };
        self.control.event("GUEST_PANICKED", &json!({ "action": said }));
        match action.as_str() {
            "none" => {}
            "pause" => {
                self.set_status("guest-panicked");
                self.control.event("STOP", &Value::Null);
            }
            "exit-failure" => self.end(End::Exit(1)),
            _ => self.shutdown(true, "guest-panic"),
        }
    }

    /// A script whose expectation does not hold: loud, and the end.
    pub(crate) fn script_failed(&self, what: &str) {
        self.journal.note("script-failed", what);
        complain(&format!("fake-qemu: {what}"));
        self.end(End::Exit(70));
    }
}

/// A line on standard error.
pub(crate) fn complain(text: &str) {
    // Nobody is left to tell when standard error is gone.
    let _lost = writeln!(std::io::stderr(), "{text}");
}
