//! What the host has the agent do.

use std::os::fd::AsRawFd;
use std::time::Duration;

use belljar_proto::message::{
    AskFiles, Exec, Leftovers, MODULES_SHARE, Mount, Outcome, Quiesce, Setup, SetupReport, ShutdownHow, SyncFault,
    SyncReport, ToAgent, ToHost,
};
use rustix::io::Errno;

use super::Agent;
use crate::booted::BootWatch;
use crate::command::Command;
use crate::devices::Awaited;
use crate::job::{Job, Kind};
use crate::leftovers::{Baseline, Shares};
use crate::network::Cards;
use crate::renew::{self, Carried};
use crate::share::disk::Unpacked;
use crate::soft_reboot::SoftReboot;
use crate::spawn::Refused;
use crate::still::StoodStill;
use crate::{identity, kexec, root, setup, soft_reboot, sys, text};

/// How long a kernel may take to be loaded, and systemd to take an order. The host waits for longer.
const LOADING: Duration = Duration::from_secs(120);
/// How often the kernel's record is looked at again before an answer.
const KERNEL_TURNS: usize = 16;

impl Agent {
    pub(super) fn obey(&mut self, message: ToAgent) {
        match message {
            // Taken care of before.
            ToAgent::Hello { .. } => {}
            ToAgent::Setup(wanted) => self.set_up(wanted),
            ToAgent::Quiesce(wanted) => self.quiesce(wanted),
            ToAgent::Renew { fresh } => self.renew(fresh),
            ToAgent::AwaitDevice(wanted) => self.awaited = Some(Awaited::new(wanted)),
            ToAgent::AwaitBoot { limit_ms } => self.booting = Some(BootWatch::new(limit_ms)),
            ToAgent::Exec(exec) => self.exec(&exec),
            ToAgent::Files(asked) => self.files(&asked),
            ToAgent::StdinEof(id) => {
                if let Some(command) = self.command(id) {
                    command.end_input();
                    self.feed(id);
                }
            }
            ToAgent::Signal { id, signal } => {
                if let Some(command) = self.command(id) {
                    command.signal(signal);
                }
            }
            ToAgent::Resize { id, size } => {
                if let Some(command) = self.command(id) {
                    command.resize(size);
                }
            }
            ToAgent::Clock(now) => {
                if self.link.kind().has_own_kernel() {
                    setup::set_clock(now);
                }
            }
            ToAgent::StepClock(step) => {
                let done = if self.link.kind().has_own_kernel() {
                    setup::step_clock(step)
                } else {
                    Err("the clock is not this guest's own".to_owned())
                };
                self.link.queue(&ToHost::ClockStepped(done.err()));
            }
            ToAgent::RateClock(rate) => {
                let done = if self.link.kind().has_own_kernel() {
                    sys::set_clock_rate(rate).map_err(|errno| format!("the clock's rate: {}", text::errno(errno)))
                } else {
                    Err("the clock is not this guest's own".to_owned())
                };
                self.link.queue(&ToHost::ClockStepped(done.err()));
            }
            ToAgent::StandStill(wanted) => {
                if self.link.kind().is_container() {
                    match (wanted, self.still.take()) {
                        (true, still) => self.still = still.or_else(|| Some(StoodStill::begin())),
                        (false, still) => still.into_iter().for_each(StoodStill::end),
                    }
                }
            }
            ToAgent::Answer { number, answer } => {
                if answer == Outcome::GoesDown {
                    self.commands.iter_mut().for_each(|command| command.signal(libc::SIGKILL));
                }
                self.asks.answered(number, answer);
            }
            ToAgent::Ping(number) => {
                self.tell_of_kernel();
                self.link.queue(&ToHost::Pong(number));
            }
            ToAgent::Sync if self.shares.are_dead() => {
                self.tell_of_kernel();
                self.link.queue(&unsynced(SyncFault::Suspended));
            }
            ToAgent::Sync => match setup::start_sync(&self.mounts, self.unpacked.as_ref()) {
                Ok(job) => self.jobs.push(job),
                Err(errno) => {
                    let why = format!("fork: {}", text::errno(errno));
                    self.link.queue(&unsynced(SyncFault::Failed(why)));
                }
            },
            ToAgent::MakeDirectories(wanted) => {
                for why in setup::make_directories(&wanted) {
                    self.link.queue(&ToHost::Log(why));
                }
            }
            ToAgent::Shutdown(how) => self.shut_down(how),
        }
    }

    /// Has the guest end as it is to, or says why it does not.
    fn shut_down(&mut self, how: ShutdownHow) {
        let job = match how {
            ShutdownHow::Kexec { loaded: true } if !kexec::is_loaded() => {
                let why = "no kernel is loaded that could be started".to_owned();
                return self.link.queue(&ToHost::NotEnding(why));
            }
            ShutdownHow::Kexec { loaded: false } => Job::start(Kind::Kexec, Some(LOADING), || {
                kexec::load(&kexec::Wanted::default()).err().map(String::into_bytes).unwrap_or_default()
            }),
            ShutdownHow::SoftReboot => match SoftReboot::begin() {
                Ok(begun) => {
                    self.soft_reboot = Some(begun);
                    Job::start(Kind::SoftReboot, Some(LOADING), soft_reboot::ask)
                }
                Err(why) => return self.link.queue(&ToHost::NotEnding(why)),
            },
            how => return self.ends(how),
        };
        match job {
            Ok(job) => self.jobs.push(job),
            Err(errno) => self.ends_not(format!("fork: {}", text::errno(errno))),
        }
    }

    fn ends(&mut self, how: ShutdownHow) {
        self.link.queue(&ToHost::Ending);
        self.ending = Some(how);
    }

    fn ends_not(&mut self, why: String) {
        if let Some(soft_reboot) = self.soft_reboot.take() {
            soft_reboot.end();
        }
        self.link.queue(&ToHost::NotEnding(why));
    }

    /// Tells all that the kernel has said up to now, unless it talks without end.
    pub(super) fn tell_of_kernel(&mut self) {
        for _ in 0..KERNEL_TURNS {
            if !self.kernel.pass_on(&mut self.link, &mut self.names) {
                return;
            }
        }
    }

    /// What a program asks for may be that a disk fails: what the kernel said before was not ordered, and what stands on that disk now is looked for while
    /// it is there.
    pub(super) fn before_asks(&mut self) {
        if self.link.kind().has_own_kernel() {
            self.tell_of_kernel();
            self.names.look();
        }
    }

    /// Makes the guest for the next test what it was for the one before.
    fn renew(&mut self, fresh: bool) {
        let mut found = Leftovers::default();
        match (fresh, &mut self.baseline) {
            (true, _) if self.shares.are_dead() => {
                found.left.push("dead shares, for the guest was suspended".into());
            }
            (true, Some(baseline)) => {
                for command in self.commands.drain(..) {
                    command.signal(libc::SIGKILL);
                }
                for job in self.jobs.drain(..) {
                    job.kill();
                }
                self.leftovers.clear();
                found = baseline.restore(!self.link.kind().is_in_guest());
            }
            (true, None) => found.left.push("nobody knows what belongs to the guest".into()),
            (false, _) => self.baseline = Some(Baseline::now(&self.mounts, !self.link.kind().is_in_guest())),
        }
        if fresh && found.left.is_empty() {
            match self.successor() {
                Ok(prepared) => self.renewal = Some(prepared),
                Err(errno) => found.left.push(format!("the agent, which cannot begin anew: {}", text::errno(errno))),
            }
        }
        self.tell_of_kernel();
        self.link.queue(&ToHost::Renewing(Box::new(found)));
    }

    fn successor(&mut self) -> Result<renew::Prepared, Errno> {
        let (record, tainted) = self.kernel.parts();
        renew::prepare(&Carried {
            port: self.link.port().fd.as_raw_fd(),
            port_kind: self.link.kind(),
            kernel_record: record.map(|fd| fd.as_raw_fd()),
            tainted,
            env: std::mem::take(&mut self.env),
            hostname: std::mem::take(&mut self.hostname),
            mounts: std::mem::take(&mut self.mounts),
            shares: std::mem::take(&mut self.shares),
            baseline: self.baseline.take().unwrap_or_default(),
            quiesced: self.quiesced,
            unpacked: self.unpacked.as_ref().map(AsRawFd::as_raw_fd),
        })
    }

    fn command(&mut self, id: u32) -> Option<&mut Command> {
        self.commands.iter_mut().find(|command| command.id == id)
    }

    fn feed(&mut self, id: u32) {
        if let Some(command) = self.commands.iter_mut().find(|command| command.id == id) {
            command.feed(&mut self.link);
        }
    }

    fn set_up(&mut self, wanted: Setup) {
        // Neither on a machine of who wrote a test, nor on the host of a container.
        let ours = self.link.kind().has_own_kernel();
        if let Some(system) = &wanted.system {
            self.env = system.env.iter().map(|entry| entry.clone().into_bytes()).collect();
        }
        if ours {
            // At once and not in the job: it is quick, and what is done to the shares carries times.
            setup::set_clock(wanted.clock_ns);
            if let Some(system) = &wanted.system {
                self.take_name(&system.hostname);
            }
            if let Some(identity) = &wanted.identity {
                identity::assume(identity);
            }
        }
        if let Some(source) = self.root.take()
            && let Err(why) = root::enter(&source)
        {
            self.link.queue(&ToHost::Fatal(why));
            return;
        }
        if ours && let Some(identity) = &wanted.identity {
            identity::write(identity);
        }
        for why in setup::make_directories(&wanted.directories) {
            self.link.queue(&ToHost::Log(why));
        }
        if let Some(path) = &wanted.working_dir
            && let Err(why) = setup::make_working_dir(path)
        {
            self.link.queue(&ToHost::Log(why));
        }
        let before = self.unpacked.take();
        if let Some(content) = &wanted.disk {
            match Unpacked::new(content) {
                Ok(unpacked) => self.unpacked = Some(unpacked),
                Err(errno) => {
                    let why = format!("memfd_create: {}", text::errno(errno));
                    self.link.queue(&ToHost::Fatal(why));
                    return;
                }
            }
        }
        if self.quiesced && self.unpacked.is_none() {
            // A process for it would cost an emulated guest more than the work.
            let report = setup::mount_all(&wanted.mounts, &self.mounts, before.as_ref(), None);
            if ours && let Some(identity) = &wanted.identity {
                identity::change_address(identity, &self.cards.names);
            }
            self.mounting = wanted.mounts;
            self.mounted(report);
            return;
        }
        if ours && let Some(identity) = &wanted.identity {
            identity::change_address(identity, &self.cards.names);
        }
        let mounting = wanted.mounts.clone();
        match setup::start(wanted, &self.mounts, before.as_ref(), self.unpacked.as_ref()) {
            Ok(job) => {
                self.mounting = mounting;
                self.mounts.clear();
                self.jobs.push(job);
            }
            Err(errno) => {
                let why = format!("fork: {}", text::errno(errno));
                self.link.queue(&ToHost::Fatal(why));
            }
        }
    }

    fn take_name(&mut self, name: &str) {
        // Set again it would undo what a set-up did that the guest was frozen with.
        if !name.is_empty() && name != self.hostname {
            name.clone_into(&mut self.hostname);
            let _ = rustix::system::sethostname(name.as_bytes());
        }
    }

    /// Remembers what is mounted, and tells.
    fn mounted(&mut self, report: SetupReport) {
        let carrying = usize::try_from(report.source).unwrap_or(usize::MAX);
        self.mounts = (0_u32..)
            .zip(self.mounting.drain(..))
            .filter(|(index, _)| report.faults.iter().all(|(failed, _)| failed != index))
            .map(|(_, mount)| Mount { sources: mount.sources.into_iter().skip(carrying).take(1).collect(), ..mount })
            .collect();
        self.shares = Shares::of(&self.mounts);
        if let Some(baseline) = &mut self.baseline {
            baseline.remounted(&self.mounts);
        }
        self.open_asks();
        self.link.queue(&ToHost::SetupDone(report));
    }

    fn open_asks(&mut self) {
        self.asks.open();
        if self.link.kind().has_own_kernel() {
            self.asks.offer_reboots();
        }
    }

    fn quiesce(&mut self, wanted: Quiesce) {
        // Each copy would have to make it. It goes over into a root that is entered later.
        self.open_asks();
        if self.link.kind().has_own_kernel() {
            self.guards.listen_ahead();
        }
        match setup::start_quiesce(wanted, &self.mounts, self.unpacked.as_ref(), self.cards.addressed) {
            Ok(job) => self.jobs.push(job),
            Err(errno) => {
                let why = format!("fork: {}", text::errno(errno));
                self.link.queue(&ToHost::Quiesced(vec![why]));
            }
        }
    }

    fn exec(&mut self, exec: &Exec) {
        // The kernel's modules are the system's, whoever looks at them.
        let shares = self.mounts.iter().filter(|mount| mount.name != MODULES_SHARE).cloned().collect();
        let env = self.asks.environment(&self.env);
        if exec.guards.is_some() {
            self.tell_of_kernel();
            self.kernel.begin();
        }
        self.guards.begin(exec, &mut self.link);
        match Command::start(exec, &env, shares) {
            Ok(command) => {
                self.guards.started(command.pid.as_raw_nonzero().get());
                self.commands.push(command);
            }
            Err(Refused { what, errno }) => {
                let id = exec.id;
                self.link.queue(&ToHost::ExecFailed { id, what, errno });
            }
        }
    }

    fn files(&mut self, asked: &AskFiles) {
        let clock_set = self.clock.was_set();
        match Command::files(asked, clock_set) {
            Ok(command) => self.commands.push(command),
            Err(errno) => {
                let (id, what) = (asked.id, "start a process that looks for files".to_owned());
                self.link.queue(&ToHost::ExecFailed { id, what, errno: errno.raw_os_error() });
            }
        }
    }

    pub(super) fn take_report(&mut self, at: usize) {
        let Some(job) = self.jobs.get_mut(at) else {
            return;
        };
        let (kind, timely) = (job.kind, job.deadline.is_some());
        let Some(report) = job.poll() else { return };
        match kind {
            Kind::Setup => {
                let report = setup::report(report);
                self.mounted(report);
            }
            Kind::Quiesce => {
                let left = setup::left(report);
                self.quiesced = left.is_empty();
                if self.quiesced {
                    self.mounts.clear();
                    self.unpacked = None;
                    self.shares = Shares::default();
                    self.cards = Cards::now();
                }
                self.tell_of_kernel();
                self.link.queue(&ToHost::Quiesced(left));
            }
            Kind::Kexec | Kind::SoftReboot => {
                let why = text::lossy(report);
                let why = if timely { why } else { format!("it was not done within {} s", LOADING.as_secs()) };
                match (why.is_empty(), kind) {
                    (false, _) => self.ends_not(why),
                    (true, Kind::Kexec) => self.ends(ShutdownHow::Kexec { loaded: true }),
                    // It is told when it has come about.
                    (true, _) => self.link.queue(&ToHost::Ending),
                }
            }
            Kind::Sync => {
                let gone = self.shares.changes();
                let mut report = setup::sync_report(report);
                if gone.is_empty() {
                    let covered = || Some(self.shares.covered()).filter(|places| !places.is_empty());
                    report.fault = report.fault.or_else(|| covered().map(SyncFault::Covered));
                } else {
                    report = SyncReport { fault: Some(SyncFault::Gone(gone)), returned: None };
                }
                self.tell_of_kernel();
                // While a command is guarded that is asked for when the guest may go down from here on.
                self.guards.look(&mut self.link);
                self.link.queue(&ToHost::Synced(report));
            }
        }
    }
}

fn unsynced(fault: SyncFault) -> ToHost {
    ToHost::Synced(SyncReport { fault: Some(fault), returned: None })
}
