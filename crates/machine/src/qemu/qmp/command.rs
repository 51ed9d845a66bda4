//! The commands that are used, and what they answer with.

use std::fmt;
use std::path::PathBuf;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A command: its fields are the arguments.
pub trait QmpCommand: Serialize {
    /// What comes back.
    type Reply: DeserializeOwned;
    /// The command's name in QMP.
    fn name(&self) -> &str;
}

/// The reply of a command that has nothing to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoReply;

impl<'de> Deserialize<'de> for NoReply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IgnoredAny).map(|_| Self)
    }
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $wire:literal -> $reply:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Serialize)]
        pub struct $name {}

        impl QmpCommand for $name {
            type Reply = $reply;
            fn name(&self) -> &'static str {
                $wire
            }
        }
    )*};
}

commands! {
    /// Whether the machine runs.
    QueryStatus = "query-status" -> RunState;
    /// Ends QEMU at once. Wait for the process, not for the reply.
    Quit = "quit" -> NoReply;
    /// Presses the power button.
    SystemPowerdown = "system_powerdown" -> NoReply;
    /// Presses the reset button.
    SystemReset = "system_reset" -> NoReply;
    /// Wakes a machine that has suspended itself.
    SystemWakeup = "system_wakeup" -> NoReply;
    /// Gives the processors a non-maskable interrupt.
    InjectNmi = "inject-nmi" -> NoReply;
    /// Halts the processors.
    Stop = "stop" -> NoReply;
    /// Lets the processors go on.
    Cont = "cont" -> NoReply;
    /// Whether the machine runs under KVM.
    QueryKvm = "query-kvm" -> KvmInfo;
    /// Which QEMU this is.
    QueryVersion = "query-version" -> Version;
    /// The processors and their host threads.
    QueryCpusFast = "query-cpus-fast" -> Vec<CpuInfo>;
    /// The lines to the guest.
    QueryChardev = "query-chardev" -> Vec<ChardevInfo>;
    /// How much of its memory the guest has.
    QueryBalloon = "query-balloon" -> BalloonInfo;
    /// How freezing or thawing goes.
    QueryMigrate = "query-migrate" -> MigrationInfo;
    /// Starts the conversation.
    Capabilities = "qmp_capabilities" -> NoReply;
}

/// `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// Whether instructions run.
    pub running: bool,
    /// `running`, `paused`, `shutdown`, `guest-panicked`, `internal-error`, `io-error`, `prelaunch`…: open.
    pub status: String,
}

/// A line of `query-chardev`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChardevInfo {
    /// Its id.
    pub label: String,
    /// Whether the guest has the other end open.
    pub frontend_open: bool,
}

/// `query-kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct KvmInfo {
    /// Whether this machine uses it.
    pub enabled: bool,
    /// Whether QEMU was built with it.
    pub present: bool,
}

/// `query-version`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// The release.
    pub qemu: VersionTriple,
    /// The distribution's own name for it; may be empty.
    #[serde(default)]
    pub package: Package,
}

/// A distribution's version string.
pub type Package = String;

/// A release of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionTriple {
    /// As in **7**.2.22.
    pub major: u32,
    /// As in 7.**2**.22.
    pub minor: u32,
    /// As in 7.2.**22**.
    pub micro: u32,
}

impl fmt::Display for VersionTriple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// `query-migrate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// `setup`, `active`, `completed`, `failed`…; none if there was no migration.
    pub status: Option<String>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why there cannot be one now.
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
}

/// `query-balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BalloonInfo {
    /// Bytes.
    pub actual: u64,
}

/// Asks the guest to keep so much of its memory; returns at once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Balloon {
    /// Bytes.
    pub value: u64,
}

impl QmpCommand for Balloon {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "balloon"
    }
}

/// Plugs the cable of a network card in or out.
#[derive(Clone, Debug, Serialize)]
pub struct SetLink {
    /// The card's or its network's name.
    pub name: &'static str,
    /// Whether it is in.
    pub up: bool,
}

impl QmpCommand for SetLink {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "set_link"
    }
}

/// Takes the descriptor that comes with it.
#[derive(Clone, Debug, Serialize)]
pub struct GetFd {
    /// Its name from now on.
    pub fdname: &'static str,
}

impl QmpCommand for GetFd {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "getfd"
    }
}

/// Takes the descriptor that comes with it into a set, whose name is a file's for QEMU: `/dev/fdset/N`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AddFd {}

impl QmpCommand for AddFd {
    type Reply = AddedFd;
    fn name(&self) -> &'static str {
        "add-fd"
    }
}

/// `add-fd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddedFd {
    /// The set's number.
    pub fdset_id: u64,
}

/// Closes the descriptors of a set.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemoveFd {
    /// The set's number.
    pub fdset_id: u64,
}

impl QmpCommand for RemoveFd {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "remove-fd"
    }
}

/// What both ends of a migration have to agree on.
#[derive(Clone, Debug, Serialize)]
pub struct MigrateSetCapabilities {
    /// Each with its state.
    pub capabilities: Vec<MigrationCapability>,
}

/// One of [`MigrateSetCapabilities`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MigrationCapability {
    /// Its name.
    pub capability: &'static str,
    /// On or off.
    pub state: bool,
}

impl QmpCommand for MigrateSetCapabilities {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "migrate-set-capabilities"
    }
}

/// Sets how freezing is done.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateSetParameters {
    /// Bytes in a second at which memory is written at most.
    pub max_bandwidth: u64,
}

impl QmpCommand for MigrateSetParameters {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "migrate-set-parameters"
    }
}

/// Writes the guest's memory, page by page and packed, and stops the machine meanwhile; comes back when all is written.
#[derive(Clone, Debug, Serialize)]
pub struct DumpGuestMemory {
    paging: bool,
    protocol: &'static str,
    format: &'static str,
}

impl DumpGuestMemory {
    /// To a descriptor that was handed over: `fd:NAME`.
    #[must_use]
    pub fn to(protocol: &'static str) -> Self {
        Self { paging: false, protocol, format: "kdump-zlib" }
    }
}

impl QmpCommand for DumpGuestMemory {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "dump-guest-memory"
    }
}

/// Writes the machine's state; comes back at once, the end comes as an event `MIGRATION`.
#[derive(Clone, Debug, Serialize)]
pub struct Migrate {
    /// Where to.
    pub uri: String,
}

impl QmpCommand for Migrate {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "migrate"
    }
}

/// Reads a machine's state; comes back at once. The machine then goes on, or QEMU ends.
#[derive(Clone, Debug, Serialize)]
pub struct MigrateIncoming {
    /// Where from.
    pub uri: String,
}

impl QmpCommand for MigrateIncoming {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "migrate-incoming"
    }
}

/// Plugs a device in: its properties, with `driver` and `id`.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct DeviceAdd(pub Value);

impl QmpCommand for DeviceAdd {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "device_add"
    }
}

/// Asks the guest to let go of a device; that it did comes as an event `DEVICE_DELETED`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeviceDel<'a> {
    /// The device's name.
    pub id: &'a str,
}

impl QmpCommand for DeviceDel<'_> {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "device_del"
    }
}

/// Makes a network that a card can be on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NetdevAdd {
    /// Its kind, such as `user`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its name.
    pub id: &'static str,
}

impl QmpCommand for NetdevAdd {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "netdev_add"
    }
}

/// Removes a network.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NetdevDel {
    /// Its name.
    pub id: &'static str,
}

impl QmpCommand for NetdevDel {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "netdev_del"
    }
}

/// One entry of `query-cpus-fast`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// Its number.
    pub cpu_index: u32,
    /// The thread that runs it, as the host numbers threads.
    pub thread_id: i32,
}

/// A line for QEMU's human monitor: for diagnosis (`info registers`), not for control.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The line.
    pub command_line: String,
}

impl QmpCommand for HumanMonitorCommand {
    type Reply = String;
    fn name(&self) -> &'static str {
        "human-monitor-command"
    }
}

/// Writes what the graphics card shows to a file.
#[derive(Clone, Debug, Serialize)]
pub struct ScreenDump {
    /// Where to.
    pub filename: PathBuf,
}

impl QmpCommand for ScreenDump {
    type Reply = NoReply;
    fn name(&self) -> &'static str {
        "screendump"
    }
}

/// Any command, untyped.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Its name.
    pub name: String,
    /// Its arguments: an object.
    pub arguments: Value,
}

impl Raw {
    /// A command with arguments, `json!({})` for none.
    #[must_use]
    pub fn new(name: &str, arguments: Value) -> Self {
        Self { name: name.to_owned(), arguments }
    }
}

impl Serialize for Raw {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.arguments.serialize(serializer)
    }
}

impl QmpCommand for Raw {
    type Reply = Value;
    fn name(&self) -> &str {
        &self.name
    }
}
