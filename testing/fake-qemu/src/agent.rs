//! Stands in for our agent on a port: the real frames and messages, real commands on the host, and every way to
//! misbehave that a script asks for.

mod disk;
mod exec;
mod fuse;
pub(crate) mod port;

use std::{collections::HashMap, path::PathBuf, sync::Arc, thread, time::Duration};

use belljar_proto::{
    frame::{Assembler, Decoder, Kind, MAX_MESSAGE},
    message::{
        Announce, BootSign, DiskChange, DiskContent, DiskInUse, ExecId, KernelNews, Leftovers, MACHINE_WORDS, Mount,
        MountFault, Nonce, Outcome, OutputEnd, Question, SetupReport, ShutdownHow, Source, Status, SyncFault,
        SyncReport, ToAgent, ToHost, VERSION,
    },
};

use crate::{
    args::Opt,
    channel::Channel,
    guest::Guest,
    machine::{End, Machine},
    script::{ScriptError, Step},
};
use disk::Unpacked;
use exec::Running;
use fuse::Fuse;
use port::Port;

/// How long a slow guest is without an agent before it is off: longer than a closed port is taken for anything but a death.
const SLOW: Duration = Duration::from_secs(7);

/// How the agent behaves.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    version: u16,
    pid1: bool,
    in_initramfs: bool,
    every: Duration,
    hostname: String,
    setup: String,
    pong: bool,
    /// `ok`, `fail`, `never`, `die`.
    sync: String,
    /// How shares come back on a disk: `ok`, `noted`, `damaged`, `cut`, `much`, `silent`, `forged`, `link`, `set-uid`; `lacking`, `no-room`: they never came.
    disk: String,
    /// What the guest does with shares over FUSE when a command begins: `ok` (nothing), `unknown`, `outside`, `short`, `long`, `cut`, `closed`, `killed`.
    fuse: String,
    /// Whether the script speaks of that. A guest has no FUSE otherwise where it can have 9p: what comes over FUSE no command of this program's can look into.
    has_fuse: bool,
    /// `ok`, `left`, `never`, `die`.
    quiesce: String,
    /// `ok`, `left`, `never`, `die`, `stray`.
    renew: String,
    /// `ok`, `panic`, `slow`.
    shutdown: String,
    /// What comes of the boot's end: `login`, `rest`, `emergency`, `limit`, `panic`, `never`.
    boot: String,
    /// So many marks are set when a command begins.
    marks: u32,
    /// What is asked of the disks when a command begins, and of the machine when it begins for the first time.
    asks: Vec<String>,
    /// `silent`, `watched`, `unreadable`.
    kernel: String,
    log: Option<String>,
    /// So many times.
    logs: u64,
    /// Of commands.
    exec: ExecManners,
    /// Of frames.
    port: port::Manners,
}

/// How commands are reported.
#[derive(Clone, Debug)]
pub(crate) struct ExecManners {
    /// `right`, `wrong`, `zero`.
    nonce: String,
    /// `once`, `twice`, `never`, `other-id`, `early`.
    exited: String,
    /// `run`, `fail`, `ignore`, `fatal`, `no-started`, `twice-started`.
    mode: String,
    /// Bytes of junk on standard output before the command's own.
    flood: u64,
    /// How standard input is credited: `on`, `off`, `huge`.
    credit: String,
    /// Told as the exit code instead of the real one.
    code: Option<u8>,
    /// How output came to its end: `whole`, `open`, `cut`.
    late: String,
    /// Somebody set the clock while a test ran.
    clock_set: bool,
}

const KEYS: [&str; 34] = [
    "asks",
    "disk",
    "fuse",
    "boot",
    "marks",
    "renew",
    "shutdown",
    "kernel",
    "quiesce",
    "logs",
    "sync",
    "version",
    "pid1",
    "initramfs",
    "every",
    "hostname",
    "setup",
    "pong",
    "log",
    "nonce",
    "exited",
    "exec",
    "flood",
    "credit",
    "code",
    "late",
    "clock-set",
    "session",
    "garbage",
    "seed",
    "silent-after",
    "eof-after",
    "split",
    "duplicate",
];

fn one_of(step: &Step, key: &str, known: &[&str]) -> Result<String, ScriptError> {
    let value = step.text(key).unwrap_or_else(|| known[0].into());
    if known.contains(&value.as_str()) {
        Ok(value)
    } else {
        Err(step.fail(format!("{key}={value}: there are {}", known.join(", "))))
    }
}

impl Manners {
    /// As the script says.
    pub(crate) fn of(step: &Step) -> Result<Self, ScriptError> {
        step.only(&KEYS)?;
        let code = step.count("code")?.and_then(|c| u8::try_from(c).ok());
        Ok(Self {
            version: step.count("version")?.and_then(|v| u16::try_from(v).ok()).unwrap_or(VERSION),
            pid1: step.switch("pid1", true)?,
            in_initramfs: step.switch("initramfs", false)?,
            every: Duration::from_millis(step.count("every")?.unwrap_or(200)),
            hostname: step.text("hostname").unwrap_or_else(|| "fake".into()),
            setup: one_of(step, "setup", &["ok", "no9p", "no-overlay", "failed", "bad-index", "never"])?,
            pong: step.switch("pong", true)?,
            sync: one_of(step, "sync", &["ok", "fail", "gone", "covered", "covered-out", "never", "die"])?,
            disk: one_of(
                step,
                "disk",
                &["ok", "noted", "damaged", "cut", "much", "silent", "forged", "link", "set-uid", "lacking", "no-room"],
            )?,
            fuse: one_of(
                step,
                "fuse",
                &["ok", "unknown", "outside", "short", "long", "cut", "closed", "killed", "stopped"],
            )?,
            has_fuse: step.text("fuse").is_some(),
            quiesce: one_of(step, "quiesce", &["ok", "left", "never", "die"])?,
            renew: one_of(step, "renew", &["ok", "left", "disk", "kept", "changed", "never", "die", "stray"])?,
            marks: step.count("marks")?.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            asks: step.text("asks").iter().flat_map(|asks| asks.split(',')).map(|ask| ask.replace('+', " ")).collect(),
            shutdown: one_of(step, "shutdown", &["ok", "panic", "slow", "refused", "gone"])?,
            boot: one_of(step, "boot", &["login", "rest", "emergency", "limit", "panic", "never"])?,
            kernel: one_of(step, "kernel", &["silent", "watched", "unreadable"])?,
            log: step.text("log"),
            logs: step.count("logs")?.unwrap_or(1),
            exec: ExecManners {
                nonce: one_of(step, "nonce", &["right", "wrong", "zero"])?,
                exited: one_of(step, "exited", &["once", "twice", "never", "other-id", "early"])?,
                mode: one_of(step, "exec", &["run", "fail", "ignore", "fatal", "no-started", "twice-started"])?,
                flood: step.count("flood")?.unwrap_or(0),
                credit: one_of(step, "credit", &["on", "off", "huge"])?,
                code,
                late: one_of(step, "late", &["whole", "open", "busy", "cut"])?,
                clock_set: step.switch("clock-set", false)?,
            },
            port: port::Manners {
                session: one_of(step, "session", &["right", "wrong", "zero"])?,
                garbage: step.count("garbage")?.unwrap_or(0),
                seed: step.count("seed")?.unwrap_or(1),
                silent_after: step.count("silent-after")?,
                eof_after: step.count("eof-after")?,
                split: step.switch("split", false)?,
                duplicate: step.switch("duplicate", false)?,
            },
        })
    }
}

/// What all parts of one agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The machine.
    pub(crate) machine: Arc<Machine>,
    /// Where commands run.
    pub(crate) guest: Arc<Guest>,
    /// The way to Belljar.
    pub(crate) port: Port,
    /// How commands are reported.
    pub(crate) manners: ExecManners,
    /// Guest path and host directory of each mount.
    pub(crate) mounts: Vec<(Vec<u8>, PathBuf)>,
}

impl Shared {
    /// Says under this tag that the next commands pass.
    fn stray(&self, session: u64) {
        for id in 1..20 {
            self.port.forge(
                session,
                &ToHost::Exited { id, nonce: Nonce([0; 16]), status: Status::Code(0), output: OutputEnd::Whole },
            );
        }
    }
}

/// Serves the port until it closes. An agent that is `resumed` was frozen in a session, and noticed nothing: it waits for the next host
/// to greet it.
pub(crate) fn serve(
    machine: &Arc<Machine>,
    guest: &Arc<Guest>,
    channel: &Arc<Channel>,
    manners: &Manners,
    resumed: bool,
) {
    let port = Port::new(Arc::clone(channel), manners.port.clone());
    let announce = ToHost::Announce(Announce {
        version: manners.version,
        pid1: manners.pid1,
        kernel: "6.1.0-fake".into(),
        machine: "x86_64".into(),
        hostname: manners.hostname.clone(),
        in_initramfs: manners.in_initramfs,
    });
    let greeted: Arc<Greeted> = Arc::new((std::sync::Mutex::new(resumed), std::sync::Condvar::new()));
    if !resumed {
        let announce = announce.clone();
        let (port, greeted, every) = (port.clone(), Arc::clone(&greeted), manners.every);
        thread::spawn(move || announce_to(&port, &announce, &greeted, every));
    }
    let mut agent = Agent {
        shared: Arc::new(Shared {
            machine: Arc::clone(machine),
            guest: Arc::clone(guest),
            port,
            manners: manners.exec.clone(),
            mounts: Vec::new(),
        }),
        manners: manners.clone(),
        running: HashMap::new(),
        session: 0,
        unpacked: None,
        fuse: Vec::new(),
        announce,
        greeted: Arc::clone(&greeted),
    };
    let mut decoder = Decoder::new();
    let mut assembler = Assembler::new(MAX_MESSAGE);
    let mut chunk = vec![0; 64 * 1024];
    let mut socket = channel.socket();
    loop {
        let count = std::io::Read::read(&mut socket, &mut chunk).unwrap_or(0);
        if count == 0 {
            return;
        }
        decoder.push(&chunk[..count]);
        while let Some(found) = decoder.next_frame() {
            let frame = match found {
                Ok(frame) => frame,
                Err(e) => {
                    machine.script_failed(&format!("agent: Belljar sent rubbish: {e}"));
                    continue;
                }
            };
            if frame.kind == Kind::Stdin {
                agent.stdin(frame.exec, Some(frame.payload));
                continue;
            }
            match assembler.push::<ToAgent>(&frame) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    if let ToAgent::Hello { .. } = message {
                        *greeted.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = true;
                        greeted.1.notify_all();
                    }
                    agent.take(message);
                }
                Err(e) => machine.script_failed(&format!("agent: a bad message from Belljar: {e}")),
            }
        }
    }
}

/// Whether the host has greeted this agent.
type Greeted = (std::sync::Mutex<bool>, std::sync::Condvar);

/// Announces the agent until it is greeted.
fn announce_to(port: &Port, announce: &ToHost, greeted: &Greeted, every: Duration) {
    loop {
        port.say(announce);
        let guard = greeted.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (guard, _) = greeted
            .1
            .wait_timeout_while(guard, every, |done| !*done)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *guard {
            return;
        }
    }
}

struct Agent {
    shared: Arc<Shared>,
    manners: Manners,
    running: HashMap<ExecId, Running>,
    /// The tag that the host gave.
    session: u64,
    /// Shares that came on a disk.
    unpacked: Option<Unpacked>,
    /// Shares that are mounted over FUSE.
    fuse: Vec<Fuse>,
    announce: ToHost,
    greeted: Arc<Greeted>,
}

impl Agent {
    fn say(&self, message: &ToHost) {
        self.shared.port.say(message);
    }

    fn stdin(&self, id: ExecId, bytes: Option<Vec<u8>>) {
        if let Some(running) = self.running.get(&id) {
            running.stdin(bytes);
        }
    }

    fn take(&mut self, message: ToAgent) {
        // The nonce is a secret of the attempt: not even the journal gets it.
        let note = match &message {
            ToAgent::Exec(exec) => {
                let argv: Vec<_> = exec.argv.iter().map(|a| String::from_utf8_lossy(a)).collect();
                format!("Exec {argv:?} cwd {:?} user {:?}", exec.cwd.as_deref().map(String::from_utf8_lossy), exec.user)
            }
            other => format!("{other:?}"),
        };
        self.shared.machine.journal.note("to-agent", note);
        match message {
            ToAgent::Answer { answer, .. } => {
                if answer == Outcome::GoesDown {
                    self.running.values().for_each(|running| running.signal(9));
                }
            }
            ToAgent::Hello { version, session } => {
                if version != VERSION {
                    self.shared.machine.script_failed("agent: Belljar greets with another version");
                }
                // Another host than before: what ran for it is nobody's now.
                for (_, running) in self.running.drain() {
                    running.signal(9);
                }
                self.shared.machine.migration.served_on(self.shared.port.name());
                self.shared.machine.set_agent(self.shared.port.clone());
                let stray = self.manners.renew == "stray" && self.session != 0 && self.session != session;
                self.shared.port.begin(session);
                self.say(&ToHost::Ready);
                match self.manners.kernel.as_str() {
                    "watched" => self.say(&ToHost::Kernel(KernelNews::Watched)),
                    "unreadable" => self.say(&ToHost::Kernel(KernelNews::Unreadable("open /dev/kmsg".into()))),
                    _ => {}
                }
                if stray {
                    // Somebody who had the port and the tag before has kept them: he says that the next test passes.
                    let old = std::mem::replace(&mut self.session, session);
                    self.shared.stray(old);
                }
                self.session = session;
                self.shared.machine.mark("greeted");
                for log in self.manners.log.iter().cycle().take(usize::try_from(self.manners.logs).unwrap_or(1)) {
                    self.say(&ToHost::Log(log.clone()));
                }
            }
            ToAgent::Setup(setup) => match setup
                .disk
                .filter(|_| setup.mounts.first().is_some_and(|mount| mount.sources.contains(&Source::Disk)))
            {
                Some(content) => self.setup_from_disk(&content, &setup.mounts),
                None => self.setup(&setup.mounts),
            },
            ToAgent::MakeDirectories(paths) => {
                for path in paths {
                    if let Some(unpacked) = &self.unpacked {
                        unpacked.make_directory(&self.shared.mounts, &path);
                    }
                }
            }
            ToAgent::Quiesce(_) => self.quiesce(),
            ToAgent::Renew { fresh } => self.renew(fresh),
            ToAgent::AwaitDevice(wanted) => {
                let hardware = &self.shared.machine.hardware;
                let deadline = std::time::Instant::now() + Duration::from_millis(wanted.limit_ms.into());
                let mut seen = hardware.shows(&wanted);
                while !seen && std::time::Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(5));
                    seen = hardware.shows(&wanted);
                }
                self.say(&ToHost::DeviceAwaited(seen));
            }
            ToAgent::AwaitBoot { .. } => match self.manners.boot.as_str() {
                "never" => {}
                "rest" => self.say(&ToHost::Booted(BootSign::Rest)),
                "emergency" => self.say(&ToHost::Booted(BootSign::Emergency("sulogin\x1b[31m".into()))),
                "limit" => self.say(&ToHost::Booted(BootSign::Limit)),
                "panic" => self.shared.machine.panicked(),
                _ => self.say(&ToHost::Booted(BootSign::Login("agetty".into()))),
            },
            ToAgent::Exec(command) => {
                for number in 1..=self.manners.marks {
                    let question = Question::Mark(format!("step {number}\x1b[31m"));
                    self.say(&ToHost::Ask { number, question });
                }
                // A machine is not restarted for ever.
                let again = command.env.iter().any(|entry| entry.starts_with(b"BELLJAR_REBOOT_MARK="));
                for (number, ask) in (self.manners.marks + 1..).zip(self.manners.asks.clone()) {
                    let of_machine = MACHINE_WORDS.contains(&ask.split(' ').next().unwrap_or_default());
                    match (of_machine, again) {
                        (true, true) => {}
                        (true, false) => self.say(&ToHost::Ask { number, question: Question::Machine(ask) }),
                        (false, _) => self.say(&ToHost::Ask { number, question: Question::Disk(ask) }),
                    }
                }
                let mut fuse = std::mem::take(&mut self.fuse);
                for share in &mut fuse {
                    if let Err(why) = share.play(&self.shared.machine, &self.manners.fuse) {
                        self.shared.machine.script_failed(&format!("agent: {why}"));
                    }
                }
                self.fuse = fuse;
                let id = command.id;
                if let Some(running) = exec::start(&self.shared, *command) {
                    self.running.insert(id, running);
                }
            }
            ToAgent::Files(asked) => exec::files(&self.shared, *asked),
            ToAgent::StdinEof(id) => self.stdin(id, None),
            ToAgent::Signal { id, signal } => {
                if let Some(running) = self.running.get(&id) {
                    running.signal(signal);
                }
            }
            ToAgent::Resize { id, size } => {
                if let Some(running) = self.running.get(&id) {
                    running.resize(size);
                }
            }
            ToAgent::Clock(_) | ToAgent::StandStill(_) => {}
            // No clock goes back beyond 1970.
            ToAgent::StepClock(step) => {
                let century = 100 * 365 * 86_400 * 1_000_000_000;
                self.say(&ToHost::ClockStepped((step < -century / 2).then(|| "EINVAL".to_owned())));
            }
            ToAgent::RateClock(_) => self.say(&ToHost::ClockStepped(None)),
            ToAgent::Ping(number) => {
                if self.manners.pong {
                    self.say(&ToHost::Pong(number));
                }
            }
            ToAgent::Sync => match self.manners.sync.as_str() {
                "never" => {}
                "die" => self.shared.machine.end(End::Signal(11)),
                how => {
                    let failed = match how {
                        "fail" => Some(SyncFault::Failed("syncfs /mnt/hostos: No space left on device".into())),
                        "covered" => Some(SyncFault::Covered(vec!["/mnt/hostos/d".into()])),
                        "covered-out" => {
                            Some(SyncFault::Covered(vec!["/mnt/hostos/d".into(), "/run/belljar/out/d".into()]))
                        }
                        "gone" => Some(SyncFault::Gone(vec!["/mnt/hostos (unmounted)".into()])),
                        _ => None,
                    };
                    let returned = match &mut self.unpacked {
                        Some(unpacked) if failed.is_none() => match unpacked.bring_back(&self.manners.disk) {
                            Ok(returned) => returned,
                            Err(error) => {
                                self.shared.machine.script_failed(&format!("agent: packing failed: {error}"));
                                None
                            }
                        },
                        _ => None,
                    };
                    self.say(&ToHost::Synced(SyncReport { fault: failed, returned }));
                }
            },
            ToAgent::Shutdown(how) if self.manners.shutdown == "refused" => {
                self.say(&ToHost::NotEnding(format!("nothing of the kind: {how:?}\x1b[31m")));
            }
            ToAgent::Shutdown(how) => {
                self.say(&ToHost::Ending);
                match self.manners.shutdown.as_str() {
                    // It goes on, and is asked for the end of the boot.
                    "ok" if how == ShutdownHow::SoftReboot => {}
                    "ok" if matches!(how, ShutdownHow::Kexec { .. }) => self.begin_again(),
                    "gone" => self.shared.port.begin(0),
                    "ok" if how == ShutdownHow::Reboot => self.shared.machine.reset(),
                    "panic" => self.shared.machine.panicked(),
                    "slow" => {
                        self.shared.machine.port(false);
                        thread::sleep(SLOW);
                        self.shared.machine.shutdown(true, "guest-shutdown");
                    }
                    _ => self.shared.machine.shutdown(true, "guest-shutdown"),
                }
            }
        }
    }

    /// Ends what earlier commands left, and becomes an agent that knows nothing of the session.
    fn renew(&mut self, fresh: bool) {
        let mut found = Leftovers::default();
        match self.manners.renew.as_str() {
            "never" => return,
            "die" if fresh => return self.shared.machine.end(End::Signal(11)),
            "left" if fresh => found.left.push("the process stuck (412), which does not end".into()),
            "disk" | "kept" if fresh => {
                let disk =
                    DiskInUse { device: "vda".into(), serial: "data0".into(), uses: vec!["mounted at /srv".into()] };
                let list = if self.manners.renew == "kept" { &mut found.kept } else { &mut found.disks };
                list.push(disk);
            }
            "changed" if fresh => found.changed.push(DiskChange {
                device: "vda".into(),
                serial: "data0".into(),
                change: "is not there any more".into(),
            }),
            _ => {}
        }
        for (_, running) in self.running.drain().filter(|_| fresh) {
            running.signal(9);
        }
        self.say(&ToHost::Renewing(Box::new(found.clone())));
        if fresh && found.left.is_empty() {
            self.begin_again();
        }
    }

    /// Another agent, which knows nothing of the session, announces itself.
    fn begin_again(&mut self) {
        for (_, running) in self.running.drain() {
            running.signal(9);
        }
        *self.greeted.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = false;
        self.shared.port.begin(0);
        let (port, announce) = (self.shared.port.clone(), self.announce.clone());
        let (greeted, every) = (Arc::clone(&self.greeted), self.manners.every);
        thread::spawn(move || announce_to(&port, &announce, &greeted, every));
    }

    fn quiesce(&self) {
        match self.manners.quiesce.as_str() {
            "never" => {}
            "die" => self.shared.machine.end(End::Signal(11)),
            "left" => {
                self.say(&ToHost::Quiesced(vec!["/mnt/left".into()]));
            }
            _ => {
                self.shared.machine.migration.mounted(Vec::new());
                self.say(&ToHost::Quiesced(Vec::new()));
            }
        }
    }

    fn setup_from_disk(&mut self, content: &DiskContent, mounts: &[Mount]) {
        let mut report = SetupReport::default();
        let unpacked = match self.manners.disk.as_str() {
            "lacking" => Err(MountFault::NoFileSystem { detail: "the guest sees no disk of its shares".into() }),
            "no-room" => Err(MountFault::Failed { detail: "the guest has no room for it: it takes 9 MiB".into() }),
            _ => Unpacked::new(&self.shared.guest, content, mounts).map_err(|detail| MountFault::Failed { detail }),
        };
        match unpacked {
            Ok((unpacked, known)) => {
                self.unpacked = Some(unpacked);
                if let Some(shared) = Arc::get_mut(&mut self.shared) {
                    shared.mounts = known;
                }
                let place = |mount: &Mount| format!("{} is in the guest's memory", mount.path);
                report.places = mounts.iter().map(place).collect();
            }
            Err(fault) => report.faults.extend((0_u32..).zip(mounts).map(|(index, _)| (index, fault.clone()))),
        }
        self.say(&ToHost::SetupDone(report));
    }

    /// Mounts a share over FUSE; gives an empty directory in its place, for nothing here has a kernel that could look into it.
    fn mount_fuse(&mut self, port: &str, mount: &Mount) -> Result<PathBuf, String> {
        let place = self.shared.guest.root.join("fuse").join(&mount.name);
        std::fs::create_dir_all(&place).map_err(|e| e.to_string())?;
        self.fuse.push(Fuse::mount(&self.shared.machine, port)?);
        Ok(place)
    }

    /// The same over virtiofs.
    fn mount_virtiofs(&self, tag: &str, mount: &Mount) -> Result<PathBuf, String> {
        let has = |d: &Opt| d.driver().starts_with("vhost-user-fs") && d.get("tag") == Some(tag);
        if !self.shared.machine.args.all("device").any(has) {
            return Err(format!("the machine has no virtiofs of the tag {tag}"));
        }
        let place = self.shared.guest.root.join("virtiofs").join(&mount.name);
        std::fs::create_dir_all(&place).map_err(|e| e.to_string())?;
        Ok(place)
    }

    fn setup(&mut self, mounts: &[Mount]) {
        let mut faults = Vec::new();
        let mut known = Vec::new();
        let mut tags = Vec::new();
        let is_9p = |source: &Source| matches!(source, Source::NineP { .. });
        let at =
            mounts.iter().find_map(|mount| mount.sources.iter().position(is_9p)).filter(|_| !self.manners.has_fuse);
        let at = at.unwrap_or(0);
        let lacking = vec!["mount fuse: the script speaks of none".to_owned(); at];
        let source = u32::try_from(at).unwrap_or(0);
        for (index, mount) in (0_u32..).zip(mounts) {
            let detail = "mount 9p: said by the script".to_owned();
            if let Some(Source::Fuse { port }) = mount.sources.get(at)
                && self.manners.setup == "ok"
            {
                match self.mount_fuse(port, mount) {
                    Ok(place) => known.push((mount.path.clone().into_bytes(), place)),
                    Err(why) => self.shared.machine.script_failed(&format!("agent: {why}")),
                }
                continue;
            }
            if let Some(Source::Virtiofs { tag }) = mount.sources.get(at)
                && self.manners.setup == "ok"
            {
                match self.mount_virtiofs(tag, mount) {
                    Ok(place) => known.push((mount.path.clone().into_bytes(), place)),
                    Err(why) => self.shared.machine.script_failed(&format!("agent: {why}")),
                }
                continue;
            }
            let share = self.shared.guest.shares.iter().find(|(tag, _)| *tag == mount.name);
            match self.manners.setup.as_str() {
                "no9p" => faults.push((index, MountFault::NoFileSystem { detail })),
                "no-overlay" => faults.push((index, MountFault::NoOverlay { detail })),
                "failed" => faults.push((index, MountFault::Failed { detail })),
                _ => match share {
                    Some((tag, dir)) => {
                        tags.push((tag.clone(), dir.clone()));
                        known.push((mount.path.clone().into_bytes(), dir.clone()));
                    }
                    None => {
                        let detail = format!("mount 9p {}: no such share in the machine", mount.name);
                        faults.push((index, MountFault::Failed { detail }));
                    }
                },
            }
        }
        if self.manners.setup == "bad-index" {
            faults.push((99, MountFault::Failed { detail: "no such mount".into() }));
        }
        self.shared.machine.migration.mounted(tags);
        // Only before the first command, so nobody else holds it.
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.mounts = known;
        }
        if self.manners.setup != "never" {
            self.say(&ToHost::SetupDone(SetupReport { faults, source, lacking, ..SetupReport::default() }));
        }
    }
}
