//! The machine as data, and the QEMU command line that makes it.
//!
//! Everything here is pure: the same [`MachineConfig`] always gives the same arguments, so they can
//! be shown (`--dry-run`), kept in the run's directory and held against snapshots.
//!
//! Channels are [`descriptors`](super::descriptors) that QEMU inherits, so no path has to be invented, cleaned up or kept under 108 bytes.

mod build;
mod disk;
mod further;
mod keyval;
mod node;
mod shell;
mod slots;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;

pub use belljar_guest_spec::{Accel, DiskBus, NicMode};
use belljar_guest_spec::{DEFAULT_MEMORY, NumaNode, Topology};
use belljar_share_disk::layout;
use thiserror::Error;

pub(crate) use self::build::AGENT_PORT_ID;
pub use self::build::{CARD, NETDEV, SANDBOX};
pub(crate) use self::disk::push;
pub use self::disk::{Disk, Plugged, Removable, RemovablePart};
pub use self::further::{Further, Pmem, SerialLog};
pub use self::keyval::Device;
pub(crate) use self::keyval::KeyVal;
pub use self::node::{Backing, DiskSource, Node};
pub use self::shell::to_shell;
pub use self::slots::{Seat, Slot, Slots};
use super::descriptors::{Descriptors, Fd, FdSet, Line};
use super::platform::{self, MachineType, Platform};

/// Everything about a machine that reaches QEMU's command line.
///
/// Start from [`MachineConfig::default`] and change what differs.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Shown in the host's process list; any text.
    pub name: String,
    /// What it runs on.
    pub platform: &'static Platform,
    /// `-machine`, as QEMU takes it (`pc`, `q35`, `pc-i440fx-7.2,usb=on`): not escaped.
    pub machine: String,
    /// How instructions run.
    pub accel: Accel,
    /// `-cpu`, as QEMU takes it; `None` takes the platform's.
    pub cpu: Option<String>,
    /// Guest memory in bytes; rounded up to a whole MiB.
    pub memory: u64,
    /// Where the memory is.
    pub ram: Ram,
    /// Waits for a frozen machine's state, which is behind this descriptor, instead of booting.
    pub incoming: Option<Fd>,
    /// Number of processors.
    pub cpus: u32,
    /// How they are put together; `None` leaves that to QEMU.
    pub topology: Option<Topology>,
    /// Nodes of processors and memory; none is one of all.
    pub numa: Vec<NumaNode>,
    /// QEMU's own seccomp filter; only `false` where QEMU was built without it.
    pub sandbox: bool,
    /// Where devices are; `None` leaves that to QEMU, for each machine anew.
    pub slots: Option<&'static Slots>,
    /// Where the lines to the guest and the control channel end.
    pub channels: Channels,
    /// Boots this kernel; `None` boots by firmware.
    pub kernel: Option<Kernel>,
    /// What is in its flash memory, in order: the firmware where it is not the machine's own, and the firmware's variables.
    pub flash: Vec<Node>,
    /// In order: the order decides `vda`, `vdb`….
    pub disks: Vec<Disk>,
    /// The disk on which shares are, after all others.
    pub share_disk: Option<Disk>,
    /// The network card.
    pub nic: Nic,
    /// Host directories.
    pub shares: Vec<Share>,
    /// Descriptors that disks refer to as [`DiskSource::FdSet`]. See [`MachineConfig::inheriting`].
    pub fd_sets: Vec<FdSet>,
    /// SMBIOS strings (type 11), such as systemd's credentials.
    pub smbios: Vec<String>,
    /// Files of the firmware's configuration device, `fw_cfg`, each with its name and its text.
    pub fw_cfg: Vec<(String, String)>,
    /// A TPM.
    pub tpm: Option<Tpm>,
    /// Devices that it has only where they are asked for; those on the PCI bus get their places in this order.
    pub further: Vec<Further>,
    /// From where a guest that has no share yet can read the agent.
    pub program: Program,
    /// A source of randomness, so that a young guest does not wait for entropy.
    pub rng: bool,
    /// A device by which the guest's kernel tells of its panic.
    pub pvpanic: bool,
    /// A generation id, by which a resumed guest notices that it is a copy.
    pub vmgenid: bool,
    /// A graphics card (`VGA`, `virtio-vga`), for boot loaders that want one; shown nowhere.
    pub vga: Option<String>,
    /// Whether it stands still when its kernel has panicked, instead of ending.
    pub pause_on_panic: bool,
    /// Most processors that it can have, if some can be plugged in.
    pub max_cpus: Option<u32>,
    /// Most bytes of memory that it can have, if some can be plugged in.
    pub max_memory: Option<u64>,
    /// Appended as they are, last, so that they can override.
    pub extra: Vec<OsString>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        let platform = platform::default();
        Self {
            name: "belljar".to_owned(),
            platform,
            machine: platform.machine.to_owned(),
            accel: Accel::Tcg,
            cpu: None,
            memory: DEFAULT_MEMORY,
            ram: Ram::Anonymous,
            incoming: None,
            cpus: 1,
            topology: None,
            numa: Vec::new(),
            sandbox: true,
            slots: None,
            channels: Channels::inherited(),
            kernel: None,
            flash: Vec::new(),
            disks: Vec::new(),
            share_disk: None,
            nic: Nic::default(),
            shares: Vec::new(),
            fd_sets: Vec::new(),
            smbios: Vec::new(),
            fw_cfg: Vec::new(),
            tpm: None,
            further: Vec::new(),
            program: Program::default(),
            rng: true,
            pvpanic: true,
            vmgenid: false,
            vga: None,
            pause_on_panic: false,
            max_cpus: None,
            max_memory: None,
            extra: Vec::new(),
        }
    }
}

/// A TPM that a process beside QEMU emulates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// QEMU's device.
    pub device: String,
    /// Where the emulator is.
    pub line: HelperLine,
}

/// The line to a process beside QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelperLine {
    /// A connected socket.
    Fd(Fd),
    /// A socket by its name: for a command line that a person pastes.
    Path(PathBuf),
}

/// Where a machine's memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ram {
    /// Nowhere but in the process.
    #[default]
    Anonymous,
    /// In a file without a name that QEMU makes, and lends to the processes that serve its devices.
    Lent,
    /// In the file under this descriptor: what the guest writes gets there.
    Shared(Fd),
    /// In the same, but what the guest writes stays in the process.
    Private(Fd),
}

impl MachineConfig {
    /// The same machine, as it is started with these descriptors.
    #[must_use]
    pub fn inheriting(&self, descriptors: &Descriptors) -> Self {
        Self { channels: Channels::inherited(), fd_sets: descriptors.sets(), ..self.clone() }
    }

    /// The type of the machine.
    #[must_use]
    pub fn machine_type(&self) -> &'static MachineType {
        self.platform.machine_type(&self.machine)
    }

    /// The memory's size as QEMU has it, in bytes.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.memory.next_multiple_of(1 << 20)
    }
}

/// The other end of a character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chardev {
    /// A connected socket under this descriptor.
    Fd(Fd),
    /// QEMU's own terminal: for a command line that a person pastes.
    Stdio,
    /// Bytes go nowhere; the device is there all the same.
    Null,
}

/// The lines between host and machine. `None` leaves the device out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// First serial port.
    pub console: Option<Chardev>,
    /// The virtio port [`belljar_proto::message::PORT_NAME`].
    pub agent: Option<Chardev>,
    /// Second serial port, where the platform has one. Needs `console`: QEMU numbers ports in order.
    pub serial1: Option<Chardev>,
    /// The control channel.
    pub qmp: Option<Chardev>,
}

impl Channels {
    /// As [`super::process`] hands them over.
    #[must_use]
    pub const fn inherited() -> Self {
        Self {
            console: Some(Chardev::Fd(Line::Console.fd())),
            agent: Some(Chardev::Fd(Line::Agent.fd())),
            serial1: Some(Chardev::Fd(Line::Serial1.fd())),
            qmp: Some(Chardev::Fd(Line::Control.fd())),
        }
    }

    /// For a command line to be pasted into a terminal: the console is the terminal,
    /// the other devices are there with nobody behind them, and QEMU is not controlled.
    #[must_use]
    pub const fn terminal() -> Self {
        Self { console: Some(Chardev::Stdio), agent: Some(Chardev::Null), serial1: Some(Chardev::Null), qmp: None }
    }
}

/// The agent for a guest that cannot mount anything yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// A second virtio port, from which it can be read once.
    pub port: Option<ProgramPort>,
    /// How it is on the disk of shares, if it is there.
    pub on_disk: Option<layout::Program>,
}

/// From where such a guest is told to read the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramSource {
    /// From the virtio port.
    Port,
    /// From the disk of shares.
    Disk(layout::Program),
}

impl Program {
    /// From where it is to be read: from the port, wherever there is one.
    #[must_use]
    pub fn source(&self) -> ProgramSource {
        match (&self.port, self.on_disk) {
            (None, Some(program)) => ProgramSource::Disk(program),
            _ => ProgramSource::Port,
        }
    }

    /// The same in a machine whose guest has the agent.
    #[must_use]
    pub(crate) fn read_already(&self) -> Self {
        Self { port: self.port.as_ref().map(|_| ProgramPort::Silent), on_disk: self.on_disk }
    }
}

/// What is behind the virtio port [`belljar_proto::message::PROGRAM_PORT_NAME`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramPort {
    /// A socket under this descriptor, whose bytes the first reader gets.
    Fed(Fd),
    /// Nothing: who was to read has read.
    Silent,
}

/// What to boot instead of the firmware's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// A bzImage, or an ELF kernel with a PVH entry.
    pub image: PathBuf,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
}

impl Kernel {
    /// Adds words to its command line.
    pub(crate) fn add(&mut self, words: &str) {
        if !self.append.is_empty() {
            self.append.push(' ');
        }
        self.append.push_str(words);
    }
}

/// The network card and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// What the guest can reach.
    pub mode: NicMode,
    /// QEMU's device. `None` takes the one on virtio, for which every Linux of the last fifteen years has a driver.
    pub model: Option<String>,
    /// The hardware address, as QEMU takes it; `None` leaves it to QEMU.
    pub mac: Option<String>,
}

impl Default for Nic {
    fn default() -> Self {
        Self { mode: NicMode::Isolated, model: None, mac: None }
    }
}

/// Puts a share's device on the command line: of the share, a name for what is behind the device, and where the device is.
pub type PushDevice = fn(&Share, &str, Seat, &mut Vec<OsString>) -> Result<(), ArgsError>;

/// A host directory for the guest.
#[derive(Clone, Debug)]
pub struct Share {
    /// The name the guest mounts by.
    pub tag: String,
    /// The device by which QEMU serves it, if it does: that of a [`crate::share`].
    pub device: Option<PushDevice>,
    /// The other end of the port through which Belljar serves it, if it does.
    pub port: Option<Chardev>,
    /// The line to the process beside QEMU that serves it, if one does.
    pub server: Option<HelperLine>,
    /// Whether Belljar puts it on the machine's disk of shares.
    pub on_disk: bool,
    /// The directory.
    pub path: PathBuf,
    /// Whether writes are refused by the host.
    pub read_only: bool,
}

impl Share {
    /// Whether somebody else than QEMU opens the directory.
    #[must_use]
    pub(crate) fn is_served(&self) -> bool {
        self.port.is_some() || self.on_disk || self.server.is_some()
    }
}

/// Why there is no command line for a machine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArgsError {
    /// No program can be given such an argument.
    #[error("{what} contains a NUL byte, which no argument can carry; remove it")]
    Nul {
        /// Which argument.
        what: String,
    },
    /// QEMU would refuse or cut it.
    #[error("{what} {value:?} is {len} bytes long and can have at most {max}; use a shorter one")]
    TooLong {
        /// Which property.
        what: &'static str,
        /// What was given.
        value: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// It would read as the start of other properties, or as nothing.
    #[error("{what} is empty or zero; give it a value")]
    Empty {
        /// Which property.
        what: &'static str,
    },
    /// Two shares under one name.
    #[error("two shares have the tag {tag:?}; every share needs its own")]
    DuplicateTag {
        /// The name.
        tag: String,
    },
    /// The bus is full.
    #[error(
        "{count} {bus} disks do not fit: machine {machine:?} has room for {max}; use virtio or scsi for the others"
    )]
    TooManyDisks {
        /// Which bus.
        bus: DiskBus,
        /// How many were asked for.
        count: usize,
        /// How many fit.
        max: usize,
        /// The machine type.
        machine: String,
    },
    /// IDE and SATA disks cannot be read-only.
    #[error("a disk on {bus} cannot be read-only; use virtio or scsi")]
    ReadOnlyBus {
        /// Which bus.
        bus: DiskBus,
    },
    /// QEMU numbers serial ports in order.
    #[error("the second serial port needs the first one (the console)")]
    SecondSerialAlone,
}
