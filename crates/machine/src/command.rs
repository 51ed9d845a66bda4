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

impl GuestCommand {
    /// These words as root in `/`, with nothing added to the guest's own environment and without a terminal.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let argv = words.into_iter().map(|word| word.as_bytes().to_vec()).collect();
        Self { argv, env: Vec::new(), cwd: None, user: None, terminal: None }
    }
}

/// The terminal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its first size.
    pub size: WindowSize,
    /// Value of `TERM`.
    pub term: String,
}
