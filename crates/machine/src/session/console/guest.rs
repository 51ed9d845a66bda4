//! What a guest needs of the shell on its console.

use std::sync::Arc;

use belljar_model::Exit;
use belljar_proto::{
    files::FileQuery,
    message::{Leftovers, SyncFault, SyncReport},
};

use super::{ConsoleSession, ShellAsks};
use crate::{
    boot::Entered,
    command::GuestCommand,
    guest::Io,
    session::{
        Answer, Session,
        agent::{OutputSink, Reports},
    },
    template::Frozen,
};

impl Session for ConsoleSession {
    fn mounted_by(&self) -> Option<&'static str> {
        self.has_exchange().then_some("the shell on the console")
    }

    fn reports(&self) -> Option<Arc<Reports>> {
        None
    }

    fn shell_asks(&self) -> Option<Arc<ShellAsks>> {
        Some(self.asks.clone())
    }

    fn wants_whole_stdin(&self) -> bool {
        true
    }

    fn exec<'a>(&'a mut self, command: GuestCommand, io: &'a mut Io<'_>) -> Answer<'a, Exit> {
        Box::pin(self.exec(command, io))
    }

    fn take_notes(&mut self) -> Vec<String> {
        self.take_notes()
    }

    fn kill_running(&mut self) -> Answer<'_, ()> {
        Box::pin(self.kill_running())
    }

    fn files<'a>(&'a mut self, _: FileQuery, _: &'a mut dyn OutputSink) -> Answer<'a, bool> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn check(&mut self) -> Answer<'_, ()> {
        Box::pin(self.check())
    }

    fn warm_up(&mut self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn keep_processes(&mut self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// What a shell on the console leaves running it cannot tell from what was there.
    fn renew(&mut self) -> Answer<'_, Leftovers> {
        Box::pin(std::future::ready(Ok(Leftovers::default())))
    }

    fn sync(&mut self) -> Answer<'_, SyncReport> {
        Box::pin(async {
            // One that did not come to its end before the machine is to go down. A line for it may be under way.
            self.kill_running().await?;
            Ok(SyncReport { fault: self.sync().await?.map(SyncFault::Failed), returned: None })
        })
    }

    /// A shell's shares are the host's own.
    fn make_directories(&mut self, _: Vec<String>) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn power_off(&mut self) -> Answer<'_, ()> {
        Box::pin(self.power_off())
    }

    fn reboot(&mut self) -> Answer<'_, ()> {
        Box::pin(self.reboot())
    }

    fn into_entered(self: Box<Self>, _: &Frozen) -> Entered {
        Entered::Shell(Box::new(self.into_shell()))
    }
}
