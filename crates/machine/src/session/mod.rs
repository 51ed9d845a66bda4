//! The conversation with a running guest: `Session` is what a guest needs of one, [`agent`] and [`console`] are the two there are.

pub mod agent;
pub mod console;

use std::{fmt, sync::Arc};

use belljar_model::Exit;
use belljar_proto::{
    files::FileQuery,
    message::{Leftovers, SyncFault},
};

use crate::{
    boot::Entered,
    command::GuestCommand,
    guest::{Answer, Io},
    session::agent::{OutputSink, Reports},
    template::Frozen,
};

/// What a guest needs of the conversation with it, whatever it goes through. Somebody else sets the limits. Dropping an answer leaves what was asked for under way.
pub(crate) trait Session: fmt::Debug {
    /// Who mounted the shares, for a person; none where nobody did.
    fn mounted_by(&self) -> Option<&'static str>;

    /// What comes beside the answers; none where nobody in the guest tells anything unasked.
    fn reports(&self) -> Option<Arc<Reports>>;

    /// Whether a command without a terminal gets its standard input only when that has come to its end.
    fn wants_whole_stdin(&self) -> bool;

    /// Runs a command to its end.
    fn exec<'a>(&'a mut self, command: GuestCommand, io: &'a mut Io<'_>) -> Answer<'a, Exit>;

    /// What there is to be said of the command that ended last.
    fn take_notes(&mut self) -> Vec<String>;

    /// Kills what [`exec`](Self::exec) left running.
    fn kill_running(&mut self) -> Answer<'_, ()>;

    /// Asks for files, whose answer goes to `sink`; gives `false` where nobody could be asked.
    fn files<'a>(&'a mut self, query: FileQuery, sink: &'a mut dyn OutputSink) -> Answer<'a, bool>;

    /// Sees that somebody answers, and sets the guest's clock.
    fn check(&mut self) -> Answer<'_, ()>;

    /// Has the guest do once what every command needs.
    fn warm_up(&mut self) -> Answer<'_, ()>;

    /// What runs in the guest now is part of it.
    fn keep_processes(&mut self) -> Answer<'_, ()>;

    /// Ends what is no part of the guest, and gives the session keys of its own; tells what was found.
    fn renew(&mut self) -> Answer<'_, Leftovers>;

    /// Brings what was written to the shares to the host; tells why that may not have come about.
    fn sync(&mut self) -> Answer<'_, Option<SyncFault>>;

    /// Asks the guest to power itself off.
    fn power_off(&mut self) -> Answer<'_, ()>;

    /// What was got in the guest, to be frozen with it.
    fn into_entered(self: Box<Self>, frozen: &Frozen) -> Entered;
}
