//! A command for a guest.

use belljar_proto::message::WindowSize;

/// What to start, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCommand {
    /// Program and arguments; bytes, not text.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE`, added to the guest's own environment.
    pub env: Vec<Vec<u8>>,
    /// Absolute path in the guest; none means `/`.
    pub cwd: Option<Vec<u8>>,
    /// User in the guest, by name or number; none means root.
    pub user: Option<String>,
    /// A terminal of its own.
    pub terminal: Option<Terminal>,
}

/// The terminal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its first size.
    pub size: WindowSize,
    /// Value of `TERM`.
    pub term: String,
}
