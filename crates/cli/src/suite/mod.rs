//! `belljar test`, `list`, `report` and `merge`.

pub(crate) mod args;
mod chosen;
mod list;
mod merge;
mod past;
mod report;
mod run;

pub(crate) use self::{
    chosen::{find, shown},
    list::list,
    merge::merge,
    report::report,
    run::test,
};

use belljar_model::exit_code;
use belljar_suite::diagnostic::Diagnostics;

/// Why there is no result: what to tell, and the exit code.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { message, code: exit_code::CANNOT_RUN }
    }
}

impl From<Refused> for String {
    fn from(refused: Refused) -> Self {
        refused.message
    }
}

impl Refused {
    /// The command line is wrong.
    fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: exit_code::USAGE }
    }

    /// `belljar.toml`, or something that belongs to it, is wrong.
    fn config(found: &Diagnostics) -> Self {
        Self { message: found.to_string(), code: exit_code::BAD_CONFIG }
    }
}
