//! The agent's loop: one thread, one poll, nothing that waits elsewhere.

mod orders;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use belljar_proto::frame::FrameError;
use belljar_proto::message::{Announce, Mount, ShutdownHow, Source, ToAgent, ToHost, VERSION};
use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid};
use rustix::system::RebootCommand;

use crate::ask::{self, Asks};
use crate::booted::BootWatch;
use crate::clock::ClockWatch;
use crate::command::{Command, Leftover, Step};
use crate::devices::Awaited;
use crate::disk_names::DiskNames;
use crate::guards::Guards;
use crate::job::Job;
use crate::kmsg::KernelRecord;
use crate::leftovers::{Baseline, Shares};
use crate::link::{Incoming, Link, Lost};
use crate::network::Cards;
use crate::port::{self, Port};
use crate::renew::{self, Carried};
use crate::share::disk::Unpacked;
use crate::soft_reboot::SoftReboot;
use crate::still::{self, StoodStill};
use crate::{mount_table, serve, shutdown, sys, text};

/// How often the agent announces itself while nobody has greeted it.
const ANNOUNCE: Duration = Duration::from_secs(1);
/// How often a port whose host went away is looked at.
const AWAY: Duration = Duration::from_millis(100);
/// Most pieces read of one stream before the others have their turn.
const PIECES: usize = 8;
/// Most pieces read of ended commands before the port is looked at.
const FINISHING: usize = 32;
/// Most pipes of ended commands that are kept open for what they left behind.
const MAX_LEFTOVERS: usize = 64;

/// systemd's signals for its first process, which its tools send: `SIGRTMIN+3` and on, as the C libraries count.
const HALT: i32 = 37;
const POWEROFF: i32 = 38;
const REBOOT: i32 = 39;

/// What a ready descriptor belongs to. Commands are named by place, which holds for one turn of the loop.
#[derive(Clone, Copy)]
enum Ready {
    Signals,
    Port,
    Kernel,
    /// Block devices come, go and change.
    Devices,
    Guards,
    Asks,
    Starting(usize),
    Input(usize),
    Output(usize, usize),
    Job(usize),
    Leftover(usize),
}

/// The agent.
pub(crate) struct Agent {
    link: Link,
    signals: OwnedFd,
    /// Environment of the commands.
    env: Vec<Vec<u8>>,
    /// The host name that was set last.
    hostname: String,
    /// Tag of the session, once there is one.
    session: Option<u64>,
    next_announce: Instant,
    /// The host is away; when to look again.
    away_until: Option<Instant>,
    commands: Vec<Command>,
    jobs: Vec<Job>,
    mounts: Vec<Mount>,
    /// Mounts that the setup under way makes.
    mounting: Vec<Mount>,
    /// What is known of shares that came on a disk, if they did.
    unpacked: Option<Unpacked>,
    /// The guest was frozen once: what mounting needs is there, so that it is quick.
    quiesced: bool,
    /// The network cards that the guest had when it was frozen.
    cards: Cards,
    /// The host directory that becomes the root with the first setup.
    root: Option<Source>,
    leftovers: Vec<Leftover>,
    /// The kernel's record, read as long as there is a session.
    kernel: KernelRecord,
    /// Which disks it speaks of.
    names: DiskNames,
    /// What is looked for while a command runs.
    guards: Guards,
    /// What programs in the guest ask of the host.
    asks: Asks,
    /// The shares as they were when they had been mounted.
    shares: Shares,
    /// What belongs to the guest, once tests share it.
    baseline: Option<Baseline>,
    /// The process that goes on once everything is said.
    renewal: Option<renew::Prepared>,
    /// A device that the host waits for.
    awaited: Option<Awaited>,
    /// The end of the boot, for which the host waits.
    booting: Option<BootWatch>,
    /// Bytes were lost in the session; the next frame says whether it matters.
    garbage: Option<FrameError>,
    ending: Option<ShutdownHow>,
    /// All programs but this one begin again.
    soft_reboot: Option<SoftReboot>,
    /// The container's processes stand still.
    still: Option<StoodStill>,
    /// Which command's output is read first in this turn, so that none is always last.
    turn: usize,
    clock: ClockWatch,
}

impl Agent {
    /// An agent on an open port.
    pub(crate) fn new(port: Port, env: Vec<Vec<u8>>) -> Result<Self, Errno> {
        // Where the kernel is not the guest's own, what it says is nobody's business here.
        let record = if port.kind.has_own_kernel() { KernelRecord::open() } else { KernelRecord::none() };
        Self::with_record(port, env, record)
    }

    /// Goes on where another process was.
    pub(crate) fn renewed(carried: Carried) -> Result<Self, Errno> {
        let (port, kernel, unpacked) = carried.open()?;
        let Carried { env, hostname, mounts, shares, baseline, quiesced, .. } = carried;
        let mut agent = Self::with_record(port, env, kernel)?;
        agent.asks.open();
        Ok(Self { hostname, mounts, shares, unpacked, baseline: Some(baseline), quiesced, ..agent })
    }

    fn with_record(port: Port, env: Vec<Vec<u8>>, kernel: KernelRecord) -> Result<Self, Errno> {
        if port.kind == port::Kind::Given {
            // A test's agent ends nothing but what comes of itself.
            let _ = rustix::process::set_child_subreaper(Some(getpid()));
        } else {
            // Its memory holds what decides whether a result is believed: no other user may look at it.
            let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
        }
        let mut wanted = vec![libc::SIGCHLD];
        if port.kind.is_container() {
            // What an engine sends to have a container end.
            wanted.push(libc::SIGTERM);
        } else if getpid().is_init() {
            // What shutdown tools send to the first process.
            wanted.extend([libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2]);
            wanted.extend([HALT, POWEROFF, REBOOT]);
        }
        // A test's agent is asked where that says.
        let asks = if port.kind == port::Kind::Given { Asks::default() } else { Asks::at(ask::PATH.into()) };
        Ok(Self {
            asks,
            link: Link::new(port),
            signals: sys::signal_fd(&wanted)?,
            env,
            hostname: String::new(),
            session: None,
            next_announce: Instant::now(),
            away_until: None,
            commands: Vec::new(),
            jobs: Vec::new(),
            mounts: Vec::new(),
            mounting: Vec::new(),
            unpacked: None,
            quiesced: false,
            cards: Cards::default(),
            root: None,
            leftovers: Vec::new(),
            kernel,
            names: DiskNames::default(),
            guards: Guards::default(),
            shares: Shares::default(),
            baseline: None,
            renewal: None,
            awaited: None,
            booting: None,
            garbage: None,
            ending: None,
            soft_reboot: None,
            still: None,
            turn: 0,
            clock: ClockWatch::default(),
        })
    }

    /// Which takes questions of programs at this path.
    pub(crate) fn asked_at(mut self, path: &Path) -> Self {
        self.asks = Asks::at(path.to_owned());
        self.asks.open();
        self
    }

    /// Whose root is entered with the first setup.
    pub(crate) fn with_root_at_setup(mut self, source: Source) -> Self {
        self.root = Some(source);
        self
    }

    /// Serves until the port is gone for good.
    pub(crate) fn run(mut self) {
        let mut fds = Vec::new();
        let mut whose = Vec::new();
        loop {
            if self.turn_once(&mut fds, &mut whose).is_err() {
                if self.link.kind().is_for_life() {
                    self.end();
                    return;
                }
                self.link.restart();
                self.session = None;
                self.garbage = None;
                self.away_until = Some(Instant::now() + AWAY);
            }
        }
    }

    fn turn_once(&mut self, fds: &mut Vec<libc::pollfd>, whose: &mut Vec<Ready>) -> Result<(), Lost> {
        self.announce();
        self.finish_commands()?;
        self.expire_jobs();
        if let Some(seen) = self.awaited.as_mut().and_then(Awaited::look) {
            self.awaited = None;
            self.link.queue(&ToHost::DeviceAwaited(seen));
        }
        let old_ones_live = self.soft_reboot.as_ref().is_some_and(SoftReboot::is_going_down);
        if let Some(sign) = self.booting.as_mut().and_then(|watch| watch.look(old_ones_live)) {
            self.booting = None;
            if let Some(soft_reboot) = self.soft_reboot.take() {
                soft_reboot.end();
            }
            if self.link.kind().has_own_kernel() {
                serve::leave_groups();
            }
            self.link.queue(&ToHost::Booted(sign));
        }
        if self.away_until.is_none() {
            self.link.flush()?;
            if let Some(how) = self.ending.filter(|_| self.link.is_idle()) {
                self.ending = None;
                if self.link.kind().is_for_life() {
                    // A container ends with its first process, and a test's agent runs on the machine of who wrote it.
                    return Err(Lost);
                }
                shutdown::run(how, &self.mounts);
            }
            if self.link.is_idle()
                && let Some(prepared) = self.renewal.take()
            {
                let errno = renew::become_new(&prepared, self.link.port());
                let why = format!("execute the agent anew: {}", text::errno(errno));
                self.link.queue(&ToHost::Fatal(why));
            }
        }

        fds.clear();
        whose.clear();
        self.interests(fds, whose);
        sys::poll(fds, self.timeout());

        // The port comes last: what the host says changes what the places mean.
        for (fd, ready) in fds.iter().zip(whose.iter()) {
            if fd.revents != 0 {
                self.handle(*ready, fd.revents)?;
            }
        }
        self.commands.retain(|command| !command.refused);
        self.jobs.retain(|job| !job.done);
        self.look_after_port();
        Ok(())
    }

    fn interests(&mut self, fds: &mut Vec<libc::pollfd>, whose: &mut Vec<Ready>) {
        let mut add = |fd, ready| {
            fds.push(fd);
            whose.push(ready);
        };
        add(sys::poll_fd(&self.signals, libc::POLLIN), Ready::Signals);
        let here = self.away_until.is_none();
        let idle = here && self.link.is_idle();
        if let Some(record) = self.kernel.fd().filter(|_| here && self.session.is_some()) {
            add(sys::poll_fd(record, libc::POLLIN), Ready::Kernel);
        }
        if let Some(events) = self.names.fd().filter(|_| here && self.session.is_some()) {
            add(sys::poll_fd(events, libc::POLLIN), Ready::Devices);
        }
        if let Some(deaths) = self.guards.fd().filter(|_| here && self.session.is_some()) {
            add(sys::poll_fd(deaths, libc::POLLIN), Ready::Guards);
        }
        if let Some(pipe) = self.asks.fd().filter(|_| idle && self.session.is_some()) {
            add(sys::poll_fd(pipe, libc::POLLIN), Ready::Asks);
        }
        for (at, job) in self.jobs.iter().enumerate() {
            add(sys::poll_fd(&job.report, libc::POLLIN), Ready::Job(at));
        }
        for (at, leftover) in self.leftovers.iter().enumerate() {
            add(sys::poll_fd(&leftover.fd, libc::POLLIN), Ready::Leftover(at));
        }
        let now = Instant::now();
        let count = self.commands.len();
        for at in (0..count).map(|at| (at + self.turn) % count) {
            let command = &mut self.commands[at];
            if let Some((report, _)) = &command.starting {
                add(sys::poll_fd(report, libc::POLLIN), Ready::Starting(at));
            }
            if let Some(input) = &command.input {
                // A closed reader is reported even if nothing is asked for.
                let write = if input.wants_to_write() { libc::POLLOUT } else { 0 };
                add(sys::poll_fd(&input.fd, write), Ready::Input(at));
            }
            if idle {
                for (which, output) in command.outputs.iter_mut().enumerate() {
                    output.held_until = output.held_until.filter(|&until| until > now);
                    if output.held_until.is_none() {
                        add(sys::poll_fd(&output.fd, libc::POLLIN), Ready::Output(at, which));
                    }
                }
            }
        }
        if here {
            let read = if self.link.may_read() { libc::POLLIN } else { 0 };
            let write = if idle { 0 } else { libc::POLLOUT };
            add(sys::poll_fd(&self.link.as_fd(), read | write), Ready::Port);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let here = self.away_until.is_none();
        let announce = (here && self.session.is_none()).then_some(self.next_announce);
        // While the port is busy nothing is read, however due it is.
        let reads = here && self.link.is_idle();
        let reading = self.commands.iter().filter(|_| reads).flat_map(|command| {
            let held = command.outputs.iter().filter_map(|output| output.held_until);
            held.chain(command.next_look())
        });
        let deadlines = self.jobs.iter().filter_map(|job| job.deadline);
        let device = self.awaited.as_ref().map(Awaited::next);
        let boot = self.booting.as_ref().map(BootWatch::next);
        let looks = device.into_iter().chain(boot);
        let next = announce.into_iter().chain(self.away_until).chain(deadlines).chain(looks).chain(reading).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, ready: Ready, events: i16) -> Result<(), Lost> {
        match ready {
            Ready::Signals => self.take_signals(),
            Ready::Kernel => drop(self.kernel.pass_on(&mut self.link, &mut self.names)),
            Ready::Devices => self.names.hear(),
            Ready::Guards => self.guards.pass_on(&mut self.link),
            Ready::Asks => {
                self.before_asks();
                self.asks.pass_on(&mut self.link, &self.names);
            }
            Ready::Port => {
                if events & libc::POLLIN != 0 {
                    // What came before a hang-up is still taken in.
                    let filled = self.link.fill();
                    while let Some(incoming) = self.link.next() {
                        self.take(incoming);
                    }
                    filled?;
                } else if events & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0 {
                    return Err(Lost);
                }
            }
            Ready::Starting(at) => {
                if let Some(command) = self.commands.get_mut(at) {
                    command.check_start(&mut self.link);
                }
            }
            Ready::Input(at) => {
                if let Some(command) = self.commands.get_mut(at) {
                    if events & (libc::POLLERR | libc::POLLHUP) != 0 {
                        command.close_input(&mut self.link);
                    } else {
                        command.feed(&mut self.link);
                    }
                }
            }
            Ready::Output(at, which) => {
                self.turn = self.turn.wrapping_add(1);
                for _ in 0..PIECES {
                    let Some(command) = self.commands.get_mut(at) else {
                        break;
                    };
                    if !self.link.is_idle() || command.pump(which, &mut self.link) == Step::Dry {
                        break;
                    }
                    self.link.flush()?;
                }
            }
            Ready::Job(at) => self.take_report(at),
            Ready::Leftover(at) => self.drain_leftover(at),
        }
        Ok(())
    }

    /// Reads what ended commands left in their pipes, and sends their records.
    fn finish_commands(&mut self) -> Result<(), Lost> {
        let mut at = 0;
        let mut pieces = 0;
        while at < self.commands.len() {
            let command = &mut self.commands[at];
            if !command.has_ended() {
                at += 1;
                continue;
            }
            let mut which = 0;
            while self.away_until.is_none() && which < command.outputs.len() {
                self.link.flush()?;
                pieces += 1;
                if !self.link.is_idle() || pieces > FINISHING {
                    return Ok(());
                }
                let before = command.outputs.len();
                if command.pump(which, &mut self.link) == Step::Dry && command.outputs.len() == before {
                    which += 1;
                }
            }
            if let Some(record) = command.record() {
                // What it has asked before comes before, for which the host may have to answer other questions first.
                let written = *command.written.get_or_insert_with(|| self.asks.written());
                if !self.asks.is_told(written) {
                    self.before_asks();
                }
                self.asks.pass_on(&mut self.link, &self.names);
                if !self.asks.is_told(written) {
                    at += 1;
                    continue;
                }
                let id = self.commands[at].id;
                if self.guards.watches(id) {
                    self.tell_of_kernel();
                    self.guards.end(self.kernel.cut(), &mut self.link);
                }
                self.link.queue(&record);
                let leftovers = self.commands.remove(at).into_leftovers();
                self.leftovers.extend(leftovers);
                let too_many = self.leftovers.len().saturating_sub(MAX_LEFTOVERS);
                self.leftovers.drain(..too_many);
            } else {
                if !std::mem::replace(&mut command.lingers, true) {
                    let id = command.id;
                    self.link.queue(&ToHost::Lingers(id));
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn announce(&mut self) {
        let now = Instant::now();
        if self.session.is_some() || self.away_until.is_some() || now < self.next_announce {
            return;
        }
        self.next_announce = now + ANNOUNCE;
        // One at a time, if nobody takes it.
        if !self.link.is_idle() {
            return;
        }
        let name = rustix::system::uname();
        self.link.queue(&ToHost::Announce(Announce {
            version: VERSION,
            pid1: getpid().is_init(),
            kernel: text::lossy(name.release().to_bytes()),
            machine: text::lossy(name.machine().to_bytes()),
            hostname: text::lossy(name.nodename().to_bytes()),
            in_initramfs: mount_table::is_initial_root(),
        }));
    }

    /// Sees whether the host is back. A port that hung up is always ready, so it is not waited for but looked at.
    fn look_after_port(&mut self) {
        let Some(until) = self.away_until else {
            return;
        };
        if Instant::now() < until {
            return;
        }
        let mut fds = [sys::poll_fd(&self.link.as_fd(), libc::POLLIN | libc::POLLOUT)];
        sys::poll(&mut fds, Some(Duration::ZERO));
        if fds[0].revents & (libc::POLLHUP | libc::POLLERR) == 0 {
            self.away_until = None;
            self.next_announce = Instant::now();
        } else {
            self.away_until = Some(Instant::now() + AWAY);
        }
    }

    fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Garbage(error) => {
                if self.session.is_some() {
                    self.garbage = Some(error);
                }
            }
            Incoming::Message { session, message } => match *message {
                ToAgent::Hello { version, session } => self.greeted(version, session),
                // Not of this session: left over from one before.
                _ if self.session != Some(session) => {}
                message if self.is_intact() => self.obey(message),
                _ => {}
            },
            Incoming::Unreadable { session, .. } if self.session != Some(session) => {}
            Incoming::Stdin(frame) if self.session != Some(frame.session) => {}
            Incoming::Unreadable { error, .. } => {
                self.link.queue(&ToHost::Fatal(format!("the host sent {error}")));
            }
            Incoming::Stdin(frame) => {
                if self.is_intact()
                    && let Some(command) = self.commands.iter_mut().find(|command| command.id == frame.exec)
                {
                    if command.take_input(frame.payload) {
                        command.feed(&mut self.link);
                    } else {
                        self.link
                            .queue(&ToHost::Fatal("the host sent more standard input than there is room for".into()));
                    }
                }
            }
        }
    }

    /// Whether nothing of this session was lost on the way.
    fn is_intact(&mut self) -> bool {
        let Some(error) = self.garbage.take() else {
            return true;
        };
        self.link.queue(&ToHost::Fatal(format!("frames from the host may be lost: {error}")));
        self.session = None;
        self.link.encoder.session = 0;
        false
    }

    fn greeted(&mut self, version: u16, session: u64) {
        self.garbage = None;
        if self.session == Some(session) {
            return;
        }
        // Another host than before, or the same anew: what ran for it is nobody's now.
        self.kill_all();
        self.link.encoder.session = session;
        if version == VERSION {
            self.session = Some(session);
            self.asks.begin();
            self.link.queue(&ToHost::Ready);
            if self.link.kind().has_own_kernel() {
                self.names.begin();
                self.kernel.introduce(&mut self.link);
            }
        } else {
            self.link.queue(&ToHost::Fatal(format!("the host speaks version {version}, the agent version {VERSION}")));
        }
    }

    /// Ends what it has started; in a container all that runs in it, so that nothing is left when it has ended itself.
    fn end(&mut self) {
        self.kill_all();
        match self.link.kind() {
            port::Kind::Container => still::kill_everything(),
            port::Kind::SystemContainer => still::end_system(),
            port::Kind::Virtio | port::Kind::Serial | port::Kind::Given => {}
        }
    }

    fn kill_all(&mut self) {
        for command in self.commands.drain(..) {
            command.signal(libc::SIGKILL);
        }
        for job in self.jobs.drain(..) {
            job.kill();
        }
        // What the killed helper had mounted is not known.
        self.mounts.append(&mut self.mounting);
        self.leftovers.clear();
        self.awaited = None;
        self.booting = None;
    }

    /// A job past its deadline is killed; its report then ends short, which tells.
    fn expire_jobs(&mut self) {
        let now = Instant::now();
        for job in &mut self.jobs {
            if job.deadline.is_some_and(|deadline| deadline <= now) {
                job.deadline = None;
                job.kill();
            }
        }
    }

    fn drain_leftover(&mut self, at: usize) {
        if self.leftovers.get_mut(at).is_some_and(|leftover| !leftover.drain()) {
            self.leftovers.remove(at);
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
            match signal {
                libc::SIGCHLD => self.reap(),
                libc::SIGTERM if self.link.kind().is_container() => {
                    self.end();
                    sys::exit_now(0);
                }
                libc::SIGUSR1 | HALT => shutdown::by_signal(RebootCommand::Halt),
                libc::SIGUSR2 | POWEROFF => shutdown::by_signal(RebootCommand::PowerOff),
                libc::SIGTERM | libc::SIGINT | REBOOT => {
                    shutdown::by_signal(RebootCommand::Restart);
                }
                _ => {}
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(soft_reboot) = &mut self.soft_reboot {
                soft_reboot.ended(pid);
            }
            let Some(command) = self.commands.iter_mut().find(|command| command.pid == pid && !command.has_ended())
            else {
                // A job, or an orphan.
                continue;
            };
            // It may have ended before anybody looked whether it started.
            command.check_start(&mut self.link);
            command.ended(text::status(status.as_raw()));
        }
    }
}
