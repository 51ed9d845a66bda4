//! What can go wrong in a session with the agent.

use std::io;
use std::time::Duration;

use belljar_proto::frame::{FrameError, MessageError};
use belljar_proto::message::{ExecId, MountFault};

/// Longest text of the guest that goes into an error or the log, in characters.
const MAX_TEXT: usize = 4096;

/// Why a session, or one command in it, could not go on. None of these is ever a result of the command.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The port is closed: QEMU is gone, or closed its end.
    #[error("the agent's port was closed{}", if *.mid_frame { ", in the middle of a frame" } else { "" })]
    Closed {
        /// Whether bytes of an unfinished frame had come.
        mid_frame: bool,
    },
    /// Reading or writing the port failed.
    #[error("{what} the agent's port failed: {source}")]
    Port {
        /// `reading` or `writing`.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The agent is of another version, such as one in an old template.
    #[error(
        "the agent in the guest speaks version {theirs}, this Belljar speaks version {ours}: make the guest's template again"
    )]
    Version {
        /// The agent's version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// Bytes that are no frames came on the port during the session, so frames may be lost.
    #[error("the agent's port is corrupted, output may be lost: {0}")]
    Garbage(#[source] FrameError),
    /// A frame came whose message cannot be read.
    #[error("the agent sent {0}")]
    Message(#[source] MessageError),
    /// A frame of another session came.
    #[error("a frame of another session came on the agent's port")]
    WrongSession,
    /// The agent announces itself anew: it was started again, or lost the session.
    #[error("the agent in the guest started again during the session")]
    Restarted,
    /// A result without the nonce of this attempt.
    #[error("the agent reported the end of command {id} with the nonce of another attempt; the result is not believed")]
    WrongNonce {
        /// Which command.
        id: ExecId,
    },
    /// Something about a command that was never started or has already ended.
    #[error("the agent sent {what} of command {id}, which is not running")]
    UnknownExec {
        /// Which command.
        id: ExecId,
        /// What came.
        what: String,
    },
    /// The agent did what it must not do.
    #[error("the agent broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// Nothing was heard for longer than [`Liveness::silent_after`](super::Liveness::silent_after).
    #[error("the agent has been silent for {:.1} s, waiting for {awaited}", .since.as_secs_f64())]
    Silent {
        /// For how long.
        since: Duration,
        /// What was awaited.
        awaited: String,
    },
    /// The agent says that it cannot go on.
    #[error("the agent gave up: {detail}")]
    AgentFatal {
        /// In its own words.
        detail: String,
    },
    /// The command could not be started.
    #[error("cannot start the command: {what}{}", errno_text(*.errno))]
    ExecFailed {
        /// What was attempted, such as `execve /bin/foo`.
        what: String,
        /// Linux `errno`, 0 where none applies.
        errno: i32,
    },
    /// What the command printed could not be passed on.
    #[error("passing on the command's output failed: {0}")]
    Sink(#[source] io::Error),
    /// What the command was to read could not be read.
    #[error("reading standard input for the command failed: {0}")]
    Stdin(#[source] io::Error),
    /// No random number for the session's tag.
    #[error("no random numbers from the system: {0}")]
    Random(#[source] getrandom::Error),
}

fn errno_text(errno: i32) -> String {
    if errno == 0 {
        return String::new();
    }
    // The guest's number: only those that Linux knows have a text.
    format!(": {}", io::Error::from_raw_os_error(errno))
}

/// Text from the guest, fit for a person: no control characters, no more than a screenful.
pub(super) fn clean(text: &str) -> String {
    let mut clean: String = text
        .chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() || is_bidi(c) { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if clean.len() < text.len() && text.chars().nth(MAX_TEXT).is_some() {
        clean.push('…');
    }
    clean
}

/// Characters that turn the direction of text, with which a line can be made to read as another.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

pub(super) fn clean_fault(fault: MountFault) -> MountFault {
    match fault {
        MountFault::NoFileSystem { detail } => MountFault::NoFileSystem { detail: clean(&detail) },
        MountFault::NoOverlay { detail } => MountFault::NoOverlay { detail: clean(&detail) },
        MountFault::Failed { detail } => MountFault::Failed { detail: clean(&detail) },
    }
}
