//! The conversation with a running guest: `Session` is what a guest needs of one, [`agent`] and [`console`] are the two there are.

pub mod agent;
pub mod console;

use std::{fmt, path::Path, sync::Arc};

use belljar_model::{EventKind, Exit};
use belljar_proto::{
    files::FileQuery,
    message::{Leftovers, SyncFault, SyncReport},
};

use crate::{
    Cause, Lost,
    boot::Entered,
    command::GuestCommand,
    guest::{Answer, Io, Observe},
    session::agent::{AgentSession, OutputSink, Reports},
    session::console::ShellAsks,
    share,
    template::Frozen,
};

/// What a guest needs of the conversation with it, whatever it goes through. Somebody else sets the limits. Dropping an answer leaves what was asked for under way.
pub(crate) trait Session: fmt::Debug {
    /// Who mounted the shares, for a person; none where nobody did.
    fn mounted_by(&self) -> Option<&'static str>;

    /// What comes beside the answers; none where nobody in the guest tells anything unasked.
    fn reports(&self) -> Option<Arc<Reports>>;

    /// What programs in a guest without the agent ask for.
    fn shell_asks(&self) -> Option<Arc<ShellAsks>> {
        None
    }

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
    fn sync(&mut self) -> Answer<'_, SyncReport>;

    /// Makes directories that the host has in a share of which the guest has only a copy.
    fn make_directories(&mut self, paths: Vec<String>) -> Answer<'_, ()>;

    /// Asks the guest to power itself off.
    fn power_off(&mut self) -> Answer<'_, ()>;

    /// Asks the guest to go down and start again.
    fn reboot(&mut self) -> Answer<'_, ()>;

    /// The agent, where there is one.
    fn agent(&mut self) -> Option<&mut AgentSession> {
        None
    }

    /// What was got in the guest, to be frozen with it.
    fn into_entered(self: Box<Self>, frozen: &Frozen) -> Entered;
}

/// What it means that an earlier test left this behind: what was killed is told, and of what is left there is a reason for another guest.
pub(crate) fn of_leftovers(found: &Leftovers, observe: Observe<'_>) -> Option<String> {
    let named = |names: &[String], count: u32| {
        let more = count.saturating_sub(u32::try_from(names.len()).unwrap_or(u32::MAX));
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", names.join(", "))
    };
    if found.stopped_count > 0 {
        let units = named(&found.stopped, found.stopped_count);
        let message = format!("an earlier test left units of systemd behind, which were stopped: {units}");
        observe(EventKind::Warning { message });
    }
    // Else another guest is taken, in which they run.
    if found.gone_count > 0 && found.left.is_empty() {
        let units = named(&found.gone, found.gone_count);
        let message = format!("units of systemd that ran do not run any more after an earlier test: {units}");
        observe(EventKind::Warning { message });
    }
    if found.killed_count > 0 {
        let processes = named(&found.killed, found.killed_count);
        let message = format!("an earlier test left something running, which was killed: {processes}");
        observe(EventKind::Warning { message });
    }
    (!found.left.is_empty()).then(|| format!("an earlier test has left behind: {}", found.left.join(", ")))
}

/// What it means for a command's result that its shares came to rest like this.
///
/// # Errors
/// Where the result can no longer be believed.
pub(crate) fn of_sync(fault: Option<SyncFault>, observe: Observe<'_>) -> Result<(), Lost> {
    match fault {
        None => Ok(()),
        Some(SyncFault::Failed(what)) => Err(Cause::Unsynced(what).into()),
        Some(SyncFault::Suspended) => {
            let message = "the guest was suspended, and its shares did not survive that: what was written to them before is here, and nothing \
                           that came after";
            observe(EventKind::Warning { message: message.into() });
            Ok(())
        }
        Some(SyncFault::Gone(places)) => Err(Lost::from(Cause::Unmounted(places)).lasting()),
        // What is in the output directory is a result; a workspace may well be where somebody mounts an image.
        Some(SyncFault::Covered(places))
            if places.iter().any(|place| Path::new(place).starts_with(share::OUT_PATH)) =>
        {
            Err(Lost::from(Cause::OutCovered(places)).lasting())
        }
        Some(SyncFault::Covered(places)) => {
            let message = format!(
                "the command has left something mounted in the workspace: what it wrote there stays in the guest, and is gone with it: {}",
                places.join(", ")
            );
            observe(EventKind::Warning { message });
            Ok(())
        }
    }
}
