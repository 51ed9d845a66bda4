//! Why there is no guest.

use std::io;

use belljar_machine::{Cause, Lost};

/// Why there is no guest, or why it is of no use.
#[derive(Debug)]
pub(crate) struct GuestError {
    pub(crate) lost: Lost,
    /// Whether another try may help.
    pub(crate) retry: bool,
}

impl From<Lost> for GuestError {
    fn from(lost: Lost) -> Self {
        Self { retry: !lost.lasting, lost }
    }
}

/// Something on the host's disk could not be made.
pub(crate) fn not_made(attempt: &str, error: &io::Error) -> Lost {
    Cause::host_file(attempt, error, "free some space").into()
}
