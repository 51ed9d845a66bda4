//! QMP, QEMU's control channel: lines of JSON over a socket.
//!
//! - [`Decoder`]: bytes to [`Message`]s; pure, bounded.
//! - [`Qmp`]: commands with typed replies, each with a deadline.
//! - [`EventStream`]: what QEMU tells unasked. [`QmpEvent`] is open: a newer QEMU's event is just a name.
//!
//! On `quit` the `SHUTDOWN` event comes before the command's reply, and the end of file may come
//! before either is read: whoever quits a QEMU waits for its process, not for these.

mod client;
mod command;
mod decoder;
mod event;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::console::sanitize::sanitize_line;

pub use self::client::{DEFAULT_TIMEOUT, Qmp};
pub use self::command::{
    AddFd, AddedFd, Balloon, BalloonInfo, Capabilities, ChardevInfo, Cont, CpuInfo, DeviceAdd, DeviceDel,
    DumpGuestMemory, GetFd, HumanMonitorCommand, InjectNmi, KvmInfo, Migrate, MigrateIncoming, MigrateSetCapabilities,
    MigrateSetParameters, MigrationCapability, MigrationInfo, NetdevAdd, NetdevDel, NoReply, Package, QmpCommand,
    QueryBalloon, QueryChardev, QueryCpusFast, QueryKvm, QueryMigrate, QueryStatus, QueryVersion, Quit, Raw, RemoveFd,
    RunState, ScreenDump, SetLink, Stop, SystemPowerdown, SystemReset, SystemWakeup, Version, VersionTriple,
};
pub use self::decoder::{DecodeError, Decoder, Greeting, MAX_MESSAGE, Message};
pub use self::event::{EventStream, QmpEvent, QmpTimestamp};

/// Why a command has no answer, or not the one hoped for.
#[derive(Clone, Debug, Error)]
pub enum QmpError {
    /// QEMU understood and refused.
    #[error("QEMU refused `{command}`: {desc} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, such as `GenericError` or `CommandNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The channel ended: QEMU is gone or going.
    #[error("QEMU closed its control channel before it answered `{command}`; its own messages are in qemu.log")]
    Closed {
        /// The command.
        command: String,
    },
    /// Nothing came in time. The command may still take effect.
    #[error(
        "QEMU did not answer `{command}` on its control channel within {:.1} s; it hangs, or the host is overloaded",
        .after.as_secs_f64()
    )]
    Timeout {
        /// The command.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// The answer is not what this command answers with.
    #[error("QEMU answered `{command}` with something unexpected: {source}")]
    Reply {
        /// The command.
        command: String,
        /// What did not fit.
        source: Arc<serde_json::Error>,
    },
    /// The command cannot be written as JSON.
    #[error("cannot write `{command}` as JSON: {source}")]
    Encode {
        /// The command.
        command: String,
        /// What the encoder said.
        source: Arc<serde_json::Error>,
    },
    /// What came is not QMP.
    #[error("QEMU's control channel broke: {0}")]
    Decode(#[from] DecodeError),
    /// The socket failed.
    #[error("cannot use QEMU's control channel: {0}")]
    Io(Arc<io::Error>),
}

impl QmpError {
    /// As it may stand in the log and on a terminal: QEMU's words may be a guest's.
    pub(crate) fn told(&self) -> String {
        sanitize_line(self.to_string().as_bytes())
    }
}

impl QmpError {
    /// Whether QEMU does not know the command: another version's, or a device is not built in.
    #[must_use]
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "CommandNotFound")
    }
}
