//! What the two sides say. Each message travels as the payload of one frame (see [`crate::frame`]),
//! encoded with postcard; bulk output travels as raw payloads, so that a byte of output costs a byte.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::files::FileQuery;

pub use crate::ask::{MACHINE_WORDS, MAX_QUESTION, MAX_SAID, Outcome, Question};

/// The name of the virtio port the agent looks for (`/sys/class/virtio-ports/*/name`).
pub const PORT_NAME: &str = "belljar.agent";

/// The name of the virtio port from which a guest reads the agent, where no share brings it.
pub const PROGRAM_PORT_NAME: &str = "belljar.program";

/// Version of everything in this crate. Host and agent come from one build, so it only guards
/// against a stale agent, such as one resumed from an old template.
pub const VERSION: u16 = 27;

/// The exit code of an agent that is to have systemd in a container, and says on standard error why there can be none.
pub const CANNOT_BE_HAD: i32 = 77;

/// Number the host gives to one command; never used twice in a session.
pub type ExecId = u32;

/// 128 random bits that tie a record to one attempt. Never appears on a command line,
/// in the environment or on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

/// From Belljar to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to [`ToHost::Announce`]; from here on every frame carries the session tag given here.
    Hello {
        /// [`VERSION`] of the host.
        version: u16,
        /// Goes into every later frame's header, both ways.
        session: u64,
    },
    /// Mounts the shares and prepares the guest. Answered by [`ToHost::SetupDone`].
    Setup(Setup),
    /// Makes the guest ready to be frozen: nothing of the host's stays mounted, and what a copy needs to mount its own shares is
    /// there. Answered by [`ToHost::Quiesced`].
    Quiesce(Quiesce),
    /// Between two tests that share the guest. Answered by [`ToHost::Renewing`].
    Renew {
        /// `false`: what runs now belongs to the guest and is to live on, such as the daemons of set-up scripts. `true`: what was
        /// started since is ended; if nothing is wrong then, the agent becomes a new process, which announces itself like one that
        /// was just started and knows nothing of the session.
        fresh: bool,
    },
    /// Waits until a device that was plugged in or out is there or gone for the guest. Answered by [`ToHost::DeviceAwaited`].
    AwaitDevice(WantedDevice),
    /// Waits until the guest has booted, as far as a look at it tells. Answered by [`ToHost::Booted`].
    AwaitBoot {
        /// How long it may take.
        limit_ms: u32,
    },
    /// Starts a command. Answered by [`ToHost::Started`] or [`ToHost::ExecFailed`].
    Exec(Box<Exec>),
    /// Asks for files, in a process of the agent's own. The answer comes as the output of a command, with [`ToHost::Exited`] at its
    /// end.
    Files(Box<AskFiles>),
    /// No more standard input for this command.
    StdinEof(ExecId),
    /// Sends a signal to the command's process group.
    Signal {
        /// Which command.
        id: ExecId,
        /// Linux signal number.
        signal: i32,
    },
    /// New size of the command's terminal.
    Resize {
        /// Which command.
        id: ExecId,
        /// Rows and columns.
        size: WindowSize,
    },
    /// Has the guest's clock jump by so many nanoseconds. Answered by [`ToHost::ClockStepped`].
    StepClock(i64),
    /// Has the guest's clock go faster by so many millionths, or slower. Answered by [`ToHost::ClockStepped`].
    RateClock(i32),
    /// Sets the guest's clock to these nanoseconds since the Unix epoch, if it is off by much. Not answered.
    Clock(u64),
    /// Stops all that runs in a container but the agent, or lets it go on. A machine is stopped from outside. Not answered.
    StandStill(bool),
    /// Asks for a [`ToHost::Pong`] with the same number.
    Ping(u64),
    /// Answer to [`ToHost::Ask`].
    Answer {
        /// Of the question.
        number: u32,
        /// What came of it.
        answer: Outcome,
    },
    /// Writes everything in the shares back to the host. Answered by [`ToHost::Synced`].
    Sync,
    /// Makes directories that each of the guest's users may write to: the host has them in a share that the guest has only a copy of. Not answered.
    MakeDirectories(Vec<String>),
    /// Ends the guest. The agent answers with [`ToHost::Ending`] first, or with [`ToHost::NotEnding`].
    Shutdown(ShutdownHow),
}

/// How a guest is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownHow {
    /// Through the guest's own service manager where there is one, else at once.
    PowerOff,
    /// The same, to start again.
    Reboot,
    /// `reboot(RB_POWER_OFF)` after syncing.
    Immediate,
    /// Through the guest's own service manager where there is one that knows of it, to start another kernel.
    Kexec {
        /// It is loaded; else the agent loads the kernel that runs.
        loaded: bool,
    },
    /// Through systemd, to have all programs but the agent begin again. The agent goes on in the session, and its next [`ToHost::Booted`] is
    /// about that new beginning.
    SoftReboot,
}

/// The preparation of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// In the order in which they are to be mounted.
    pub mounts: Vec<Mount>,
    /// Directories of the guest's own, made if missing, that each of its users may write to: where a command looks for a share that
    /// this guest does not have.
    pub directories: Vec<String>,
    /// Where commands run that are not told otherwise, if it is not `/`: made if missing, as engines of containers do.
    pub working_dir: Option<String>,
    /// The host's wall clock, nanoseconds since the Unix epoch; 0 leaves the guest's clock alone.
    pub clock_ns: u64,
    /// What is on the disk of the shares, if there is one.
    pub disk: Option<DiskContent>,
    /// For a guest that Belljar initialises: what it is to be like, which may differ between the copies of one frozen guest.
    pub system: Option<System>,
    /// For a copy of a frozen guest: what makes it another than its siblings.
    pub identity: Option<Identity>,
}

/// What is on the disk of the shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskContent {
    /// By which the guest knows that it reads this content and no earlier one.
    pub id: [u8; 16],
    /// The names of shares, with the bytes that the files of each take.
    pub sizes: Vec<(String, u64)>,
}

/// What a guest that Belljar initialises is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The host name; empty leaves it alone. Set once: one that was set and then changed in the guest stays changed.
    pub hostname: String,
    /// `KEY=VALUE`, the environment of every command unless it clears it (`PATH`, `HOME`, `LANG`, …).
    pub env: Vec<String>,
}

/// What makes a copy of a guest another guest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Fresh random bytes for the kernel's generator.
    pub seed: [u8; 32],
    /// For `/etc/machine-id`, where the guest has one; zeros leave it alone.
    pub machine_id: [u8; 16],
    /// Added to the host name, such as `-1f2e3d`; empty leaves it alone.
    pub host_suffix: String,
    /// For the network card whose address is [`Identity::old_mac`]; the same leaves it alone.
    pub mac: [u8; 6],
    /// The address that the frozen guest's card had.
    pub old_mac: [u8; 6],
}

impl core::fmt::Debug for Identity {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // The seed is the guest's secret.
        f.debug_struct("Identity")
            .field("host_suffix", &self.host_suffix)
            .field("mac", &self.mac)
            .finish_non_exhaustive()
    }
}

/// How a guest is made ready to be frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiesce {
    /// What is to be unmounted beside the shares of the last [`Setup`].
    pub unmount: Vec<String>,
    /// What carries the shares that copies will mount, the first choice first: one that the kernel can mount is enough.
    pub shares: Vec<Source>,
    /// Copies will want an overlay file system.
    pub overlay: bool,
    /// Whether all that is not on a disk yet is written there.
    pub sync: bool,
    /// Whether what a command has left behind is ended, where it holds a share. What holds one elsewhere, such as a service, is not.
    pub end_holders: bool,
}

/// What is waited for of a device on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedDevice {
    /// Its name in `/sys/bus/pci/devices`, such as `0000:00:10.0`.
    pub pci: String,
    /// What shows that it is as it is wanted.
    pub sign: DeviceSign,
    /// How long it may take.
    pub limit_ms: u32,
}

/// What a guest shows of a device that it has taken note of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceSign {
    /// An adapter of SCSI disks.
    ScsiHost,
    /// At least this many disks.
    Disks(u32),
    /// A network interface.
    Network,
    /// The device is not there.
    Gone,
}

/// What shows that a guest has booted, or will not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootSign {
    /// A program waits for somebody to log in, such as `agetty`.
    Login(String),
    /// None does, but nothing was started for [`BOOT_REST`].
    Rest,
    /// The guest's init gave up, and left this program for a person to mend things with.
    Emergency(String),
    /// Neither came within the limit.
    Limit,
}

/// How long nothing is started in a guest before it is taken for one that has booted and waits for no login.
pub const BOOT_REST: Duration = Duration::from_secs(30);

/// How much of what the guest writes reaches the host directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountMode {
    /// Writes go to the host.
    ReadWrite,
    /// Writes fail.
    ReadOnly,
    /// Writes stay in the guest's memory (overlayfs over a read-only mount).
    CopyOnWrite,
}

/// One host directory in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Its name, which no other share of the guest has; whatever carries it.
    pub name: String,
    /// What carries it, the first choice first; never none. What the kernel has nothing for is passed over.
    pub sources: Vec<Source>,
    /// Absolute path in the guest; made if missing.
    pub path: String,
    /// See [`MountMode`].
    pub mode: MountMode,
}

/// What carries a share into the guest, by the kind of share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A 9p device of the machine.
    NineP {
        /// Its mount tag.
        tag: String,
    },
    /// The kernel's requests, passed by a relay through a virtio port whose other end a server on the host has.
    Fuse {
        /// The port's name.
        port: String,
    },
    /// A disk with an archive, which the agent unpacks; see [`Setup::disk`].
    Disk,
    /// A virtiofs device of the machine.
    Virtiofs {
        /// Its tag.
        tag: String,
    },
    /// Nothing that the agent mounts: the engine of the container has put it there.
    Engine {
        /// Where the engine has put it instead, only to be read: the agent copies it to its place.
        copy_of: Option<String>,
    },
}

/// What came of a [`Setup`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupReport {
    /// For each mount that failed its index and why. Empty: all is there.
    pub faults: Vec<(u32, MountFault)>,
    /// Which of [`Mount::sources`] carries the shares.
    pub source: u32,
    /// Why those before it do not, each.
    pub lacking: Vec<String>,
    /// Where the guest has its copies of shares that came on a disk, for a person.
    pub places: Vec<String>,
}

/// What came of a [`ToAgent::Sync`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReport {
    /// Why not everything has reached the host, if it has not.
    pub fault: Option<SyncFault>,
    /// What is on the disk for the host, if the shares came on one.
    pub returned: Option<Returned>,
}

/// An archive on the disk of the shares: what the guest changed since the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// Its length.
    pub bytes: u64,
    /// Its CRC-32.
    pub crc: u32,
    /// What could not be put into it, a line for each kind of thing.
    pub left_out: Vec<String>,
}

/// The name of the virtio port of a share.
#[must_use]
pub fn share_port(name: &str) -> String {
    format!("belljar.share.{name}")
}

/// The name of the program that passes a share's requests through its port, as the guest's processes see it.
pub const RELAY_NAME: &str = "belljar-fuse";

/// Name of the share that holds the kernel's modules, for a guest whose root has none. They are the system's and not the workspace's.
pub const MODULES_SHARE: &str = "belljar-mod";

/// Why a mount could not be made: what the person reads depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountFault {
    /// The guest's kernel lacks the file system of this kind of share, or what carries it, even after modules were tried.
    NoFileSystem {
        /// What was tried and what it said.
        detail: String,
    },
    /// The kernel has no overlayfs, which `cow` needs.
    NoOverlay {
        /// What was tried and what it said.
        detail: String,
    },
    /// The system call that failed and its error.
    Failed {
        /// For example `mount 9p hostos on /mnt/hostos: EINVAL`.
        detail: String,
    },
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Number of this command.
    pub id: ExecId,
    /// Comes back in [`ToHost::Exited`]; without it no result counts.
    pub nonce: Nonce,
    /// Program (looked up in the `PATH` of `env`, else of the agent) and arguments; bytes, not text.
    pub argv: Vec<Vec<u8>>,
    /// Added to the agent's own environment, `KEY=VALUE`.
    pub env: Vec<Vec<u8>>,
    /// Start with an empty environment instead of the agent's.
    pub clear_env: bool,
    /// Absolute path; none means `/`.
    pub cwd: Option<Vec<u8>>,
    /// User name or number in the guest; none means root. Sets groups, `HOME`, `USER`, `LOGNAME`, `SHELL`.
    pub user: Option<String>,
    /// Where standard input, output and error go.
    pub stdio: Stdio,
    /// What is to be looked for while it runs; none: nobody wants to know. What is seen is told by [`GuardNews`].
    pub guards: Option<AgentGuards>,
}

/// What the agent looks for while a command runs, beside the lines of the kernel's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentGuards {
    /// Programs that are killed by a signal that dumps core.
    pub core_dumps: bool,
    /// New flags of `/proc/sys/kernel/tainted`.
    pub taint: bool,
    /// Units of systemd's that fail.
    pub units: bool,
}

/// A question after files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskFiles {
    /// Number of this question, as of a command.
    pub id: ExecId,
    /// As in [`Exec::nonce`].
    pub nonce: Nonce,
    /// What is asked.
    pub query: FileQuery,
}

/// Where a command's standard streams go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Pipes, standard input from the host.
    Pipes,
    /// Pipes, standard input is `/dev/null`.
    PipesNoStdin,
    /// A pseudo-terminal of its own, as the controlling terminal of a new session; all output is "stdout".
    Pty {
        /// First size.
        size: WindowSize,
        /// Value of `TERM`.
        term: String,
    },
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// `exit(code)`.
    Code(u8),
    /// Killed by this Linux signal number.
    Signal {
        /// Linux signal number.
        signal: i32,
        /// Whether the kernel says it dumped core.
        core: bool,
    },
}

/// How the output of a command that ended came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputEnd {
    /// Nobody has it open any more: it is whole.
    Whole,
    /// Processes that the command left behind have it open, and nothing came for [`LATE_QUIET`], in which none of them was seen at
    /// work. What they still write is lost.
    LeftOpen,
    /// The same, but they were seen at work until [`LATE_MOST`] was over.
    LeftBusy,
    /// They were still writing after [`LATE_MOST`], or had written [`LATE_BYTES`]: it is cut off.
    Cut,
}

/// How long the output of an ended command may be silent before nothing more is expected of the processes that have it open, such
/// as the filter of a script's `exec > >(filter)`.
pub const LATE_QUIET: Duration = Duration::from_secs(5);
/// How long such processes are listened to at most: one may write for ever.
pub const LATE_MOST: Duration = Duration::from_secs(30);
/// How many bytes of theirs are taken at most.
pub const LATE_BYTES: u64 = 64 << 20;

/// From the agent to Belljar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// Sent at the start and once a second until [`ToAgent::Hello`] comes, on every port the agent listens on.
    Announce(Announce),
    /// The agent took the session on this port; the others are closed.
    Ready,
    /// Answer to [`ToAgent::Setup`].
    SetupDone(SetupReport),
    /// Answer to [`ToAgent::Quiesce`]: where something of the host's is still mounted.
    Quiesced(Vec<String>),
    /// Answer to [`ToAgent::AwaitDevice`]: whether it came to that within the limit.
    DeviceAwaited(bool),
    /// Answer to [`ToAgent::AwaitBoot`].
    Booted(BootSign),
    /// The command runs.
    Started {
        /// Which command.
        id: ExecId,
        /// Process id in the guest.
        pid: u32,
    },
    /// The command could not be started; there will be no [`ToHost::Exited`].
    ExecFailed {
        /// Which command.
        id: ExecId,
        /// What was attempted, such as `execve`, `change to its directory /x`, `find user "bob"`.
        what: String,
        /// Linux `errno` of the program itself, as `ENOENT` where it is not there; 0 where something before it failed, such as a
        /// directory that is missing, which says nothing of the program.
        errno: i32,
    },
    /// The command ended, but processes that it left behind have its output open: they are listened to for a while
    /// ([`LATE_QUIET`], [`LATE_MOST`]). How it ended comes after that, with [`ToHost::Exited`].
    Lingers(ExecId),
    /// The command ended, and all that it wrote before has been sent.
    Exited {
        /// Which command.
        id: ExecId,
        /// As given in [`Exec::nonce`].
        nonce: Nonce,
        /// How it ended.
        status: Status,
        /// Whether its output did.
        output: OutputEnd,
    },
    /// This many more bytes of standard input may be sent for this command ([`STDIN_WINDOW`] at the start).
    StdinCredit {
        /// Which command.
        id: ExecId,
        /// Bytes taken out of the agent's queue.
        bytes: u32,
    },
    /// The command closed its standard input; what comes now is dropped.
    StdinClosed(ExecId),
    /// Answer to [`ToAgent::Ping`].
    Pong(u64),
    /// Answer to [`ToAgent::Sync`].
    Synced(SyncReport),
    /// Answer to [`ToAgent::Renew`], the last word of the session if the guest is clean.
    Renewing(Box<Leftovers>),
    /// Somebody in the guest asks the host for something, at any time. What was asked before a command ended is told before its
    /// [`ToHost::Exited`]. Answered by [`ToAgent::Answer`].
    Ask {
        /// Counts the questions of this session.
        number: u32,
        /// What is asked for.
        question: Question,
    },
    /// What the guest's kernel says of itself, and what guards see. Everything that it said before an answer to [`ToAgent::Ping`], [`ToAgent::Sync`],
    /// [`ToAgent::Quiesce`] or [`ToAgent::Renew`] is told before that answer.
    Kernel(KernelNews),
    /// The guest is about to end as asked.
    Ending,
    /// It is not, for this reason.
    NotEnding(String),
    /// Answer to [`ToAgent::StepClock`] and [`ToAgent::RateClock`]: why that was not done to the clock, if it was not.
    ClockStepped(Option<String>),
    /// Something worth a line in the event log.
    Log(String),
    /// The agent cannot go on; the guest is lost.
    Fatal(String),
}

/// Why what was written to the shares may not have reached the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncFault {
    /// The system calls that failed and their errors.
    Failed(String),
    /// These shares are not where they were mounted any more.
    Gone(Vec<String>),
    /// Something else is mounted over these places in the shares.
    Covered(Vec<String>),
    /// The guest was suspended, which the shares did not survive. Every write that had ended before is on the host; one after it has
    /// not ended.
    Suspended,
}

/// What earlier commands left in a guest that is to be as it was before them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftovers {
    /// Processes that were killed, such as `sleep (412)`; at most [`MAX_NAMED`].
    pub killed: Vec<String>,
    /// How many there were.
    pub killed_count: u32,
    /// Units of systemd's that were stopped, or had failed, such as `run-u5.service`; at most [`MAX_NAMED`].
    pub stopped: Vec<String>,
    /// How many there were.
    pub stopped_count: u32,
    /// Units of the system that do not run any more, such as `cron.service (failed)`; at most [`MAX_NAMED`].
    pub gone: Vec<String>,
    /// How many there were.
    pub gone_count: u32,
    /// Processes that could not be killed, or mounts that are not as they were: the guest is of no more use.
    pub left: Vec<String>,
    /// Disks that have come to be in use; at most [`MAX_NAMED`]. Whether that matters is for the host to say, who knows which disks these are.
    pub disks: Vec<DiskInUse>,
    /// Disks that were in use before, and are; at most [`MAX_NAMED`].
    pub kept: Vec<DiskInUse>,
    /// Disks that are not as they were; at most [`MAX_NAMED`].
    pub changed: Vec<DiskChange>,
}

/// A disk of the guest that something uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInUse {
    /// The kernel's name, such as `vda`.
    pub device: String,
    /// Its serial number; empty where the kernel does not say.
    pub serial: String,
    /// How it is used, for a person, such as `mounted at /srv`.
    pub uses: Vec<String>,
}

/// A disk of the guest that is not as it was, whoever uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChange {
    /// The kernel's name that it had, such as `vda`.
    pub device: String,
    /// Its serial number; empty where the kernel did not say.
    pub serial: String,
    /// What became of it, for a person, such as `is not there any more`.
    pub change: String,
}

/// Most processes or mounts that are named.
pub const MAX_NAMED: usize = 20;

/// News from the kernel's own record, `/dev/kmsg`, and what guards have seen, in the order in which both happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelNews {
    /// The agent reads the record from here on.
    Watched,
    /// It cannot, and why.
    Unreadable(String),
    /// A line that the kernel wrote itself and [`crate::kernel::may_matter`] picks out.
    Line(KernelLine),
    /// So many records were overwritten before they were read.
    Lost {
        /// How many.
        records: u64,
        /// The flags of `/proc/sys/kernel/tainted` that were not set when the agent began.
        tainted: u64,
    },
    /// What guards have seen.
    Guard(GuardNews),
}

/// A line of the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLine {
    /// What it says.
    pub text: String,
    /// For each device that it may be about, the disks that this stands on; at most [`MAX_NAMED`] of either. There are several devices where a name has gone over
    /// from one to another at about that time. None: the line names no device, or one of which the agent knows no disk.
    pub devices: Vec<Vec<DiskPath>>,
}

/// A disk as the guest has it, by one of its paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskPath {
    /// Its serial number; empty where the kernel does not say.
    pub serial: String,
    /// By which of the SCSI controllers it is reached, counted from 0 in the order of their places; 0 on another bus.
    pub path: u32,
}

/// What the agent tells of a command with [`Exec::guards`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardNews {
    /// The command is about to start; what was told before was before it.
    Begins(ExecId),
    /// A program was killed.
    CoreDump {
        /// Its process id.
        pid: u32,
        /// The name of its process; empty if it was gone before anybody could look.
        name: String,
        /// Its file, as far as the kernel says.
        program: String,
        /// The name of its parent's process, or empty.
        parent: String,
        /// Linux signal number; 0 if the kernel has not told it in time.
        signal: i32,
        /// Whether the kernel says that it dumped core.
        core: bool,
    },
    /// These flags of `/proc/sys/kernel/tainted` are new.
    Taint(u64),
    /// A unit of systemd's failed.
    Unit {
        /// Its name.
        name: String,
        /// Its `Result` in systemd's words, such as `exit-code`; empty where it has none.
        result: String,
    },
    /// A guard cannot see.
    Blind {
        /// Which.
        guard: BlindGuard,
        /// Whether it could when the command began.
        meanwhile: bool,
        /// Why.
        why: String,
    },
    /// The command has ended, and all that was seen is told. Comes before [`ToHost::Exited`].
    Ends {
        /// Which command.
        id: ExecId,
        /// Lines of the kernel's that may matter and were not told, for there were too many.
        lines: u32,
        /// Programs that were killed and were not told.
        programs: u32,
        /// Units that failed and were not told.
        units: u32,
    },
}

/// A guard that the agent may be unable to do its part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BlindGuard {
    /// [`AgentGuards::core_dumps`].
    CoreDumps,
    /// [`AgentGuards::units`].
    Units,
    /// [`AgentGuards::taint`].
    Taint,
}

/// Most programs, and most units, of one command that are told.
pub const MAX_SEEN: u32 = 50;

/// Bytes of standard input that the host may have under way for one command.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// [`VERSION`] of the agent.
    pub version: u16,
    /// Whether the agent is the guest's first process.
    pub pid1: bool,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// `/proc/sys/kernel/hostname`.
    pub hostname: String,
    /// Whether the guest's root is still the kernel's initial one, in which its initramfs was unpacked.
    pub in_initramfs: bool,
}

/// What the agent does as PID 1 of an initramfs, in the file [`INIT_CONFIG_PATH`] (postcard).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitConfig {
    /// Modules to insert in this order, as paths in the initramfs, uncompressed. One that fails to insert is
    /// reported (`EEXIST` is fine) and the rest go on.
    pub modules: Vec<String>,
    /// Where the root file system comes from.
    pub root: InitRoot,
}

/// Where the root file system of an agent-initialised guest comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitRoot {
    /// A host directory, read-only, under a writable layer in memory.
    Share(Source),
    /// The initramfs itself stays the root.
    Initramfs,
    /// The guest's own init brings it up. The agent only starts that, and goes to its root when it is there.
    OfGuest {
        /// The first process of the guest's initramfs, such as `/init`.
        init: String,
    },
    /// A file system on a disk of the machine's, read-only, under a writable layer in memory.
    Disk {
        /// The disk's serial number.
        serial: String,
        /// The kind of file system.
        file_system: String,
        /// The program in it that becomes the first process, beside which the agent runs; none if that is the agent.
        init: Option<String>,
        /// The kernel's modules, where they are to be there before that program starts.
        modules: Option<InitModules>,
    },
}

/// The kernel's modules on a disk of the machine's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitModules {
    /// The disk's serial number.
    pub serial: String,
    /// The kind of file system.
    pub file_system: String,
    /// What `uname -r` says: the name of their directory.
    pub release: String,
}

/// Where the agent finds [`InitConfig`] in its initramfs.
pub const INIT_CONFIG_PATH: &str = "/belljar/init.conf";
/// Where the agent itself is in an initramfs that Belljar writes or adds to.
pub const INIT_AGENT_PATH: &str = "/belljar/agent";
/// Where modules are in an initramfs that Belljar writes or adds to.
pub const INIT_MODULE_DIR: &str = "/belljar/modules";
