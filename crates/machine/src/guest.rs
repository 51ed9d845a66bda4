//! A running guest, whatever it runs in: what is asked of it, and what it is asked with.

use std::{fmt, pin::Pin, rc::Rc, time::Duration};

use belljar_model::{EventKind, Exit};
use belljar_proto::files::FileQuery;
use tokio::{io::AsyncRead, sync::mpsc};

use crate::{
    Lost,
    command::GuestCommand,
    console::ConsoleView,
    orders::Orders,
    session::agent::{ExecControl, OutputSink},
};

/// Work that somebody waits for.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What comes of it, or how the guest was lost.
pub type Answer<'a, T> = Pending<'a, Result<T, Lost>>;

/// Takes what is worth an event.
pub type Observe<'a> = &'a mut dyn FnMut(EventKind);

/// Takes the console of each machine that is started, to be looked at.
pub type Views = mpsc::UnboundedSender<ConsoleView>;

/// Where a guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It booted.
    Cold,
    /// It is the copy of one that booted.
    Clone,
    /// It is a container that was started.
    Container,
}

impl Origin {
    /// Its name in the event log.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cold => "boot",
            Self::Clone => "clone",
            Self::Container => "container",
        }
    }

    /// Whether one more like it is made fast, so that some may be made before a test asks for them: what takes its time would slow down
    /// the tests that run beside it.
    #[must_use]
    pub fn is_quick(self) -> bool {
        match self {
            Self::Cold => false,
            Self::Clone | Self::Container => true,
        }
    }
}

/// What a command is connected to.
pub struct Io<'a> {
    /// Standard input; none is an empty one.
    pub stdin: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    /// Takes the output.
    pub sink: &'a mut dyn OutputSink,
    /// Signals and window sizes while it runs.
    pub control: Option<mpsc::Receiver<ExecControl>>,
}

/// How a guest is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At once, when the shares are safe.
    Kill,
    /// Through its own service manager.
    PowerOff,
    /// At once, when the shares are as safe as they can be made in a few seconds: the result is known to be bad.
    Hurry,
}

/// The guest's time. While it stands still the guest computes nothing, and as far as its backend can see to that, its own clock does not
/// move.
pub trait GuestClock {
    /// Stops it. Of a guest that has ended meanwhile nothing is said.
    fn stop(&self) -> Pending<'_, ()>;

    /// Lets it go on.
    fn go_on(&self) -> Pending<'_, ()>;
}

/// A guest in which commands run, one after another. Dropping it ends it at once, and leaves nothing behind.
///
/// An answer waits until it is there or the guest is lost; only where it says so does it have a limit of its own. While it waits, the guest's
/// death is looked for.
pub trait Guest: fmt::Debug {
    /// Where it comes from.
    fn origin(&self) -> Origin;

    /// Runs one command to its end and gives what the guest vouches for. There is no limit but the caller's: dropping the answer leaves the
    /// command running; see [`kill_command`](Self::kill_command).
    fn exec<'a>(&'a mut self, command: GuestCommand, io: Io<'a>, observe: Observe<'a>) -> Answer<'a, Exit>;

    /// Kills what [`exec`](Self::exec) left running, as well as it can within a few seconds.
    fn kill_command<'a>(&'a mut self, observe: Observe<'a>) -> Pending<'a, ()>;

    /// Asks for files in the guest, whose answer goes to `sink`; gives `false` where there is nobody in it who could be believed.
    fn files<'a>(
        &'a mut self,
        query: FileQuery,
        sink: &'a mut dyn OutputSink,
        observe: Observe<'a>,
    ) -> Answer<'a, bool>;

    /// For a guest that waits for somebody to need it: has it do once what every command needs, so that the first one begins sooner.
    fn warm_up<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()>;

    /// For a guest that has waited: sees within a limit that it is still there, and that its clock is right.
    fn check<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()>;

    /// What runs in the guest now, such as daemons of set-up scripts, is part of it and lives on over [`renew`](Self::renew). Has a limit.
    fn keep_processes<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()>;

    /// Makes the guest ready, within a limit, for a test that has nothing to do with those before: what they left running is ended, and
    /// nothing that they saw lets them speak for the next. Gives why the guest is of no more use, if it is.
    fn renew<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, Option<String>>;

    /// Brings, within a limit, what was written to the shares to the host, for a guest in which more is to run. A loss means that what ran
    /// cannot be believed, and that nothing more should run here.
    fn settle<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()>;

    /// Brings, within a limit, what was written to the shares to the host, and ends the guest. A loss means that the command's result can no
    /// longer be believed: what it wrote did not reach the host, or the guest turned out to have failed.
    fn close(self: Box<Self>, how: Ending, observe: Observe<'_>) -> Answer<'_, ()>;

    /// By which its time is stopped while somebody else has hold of the guest itself.
    fn clock(&self) -> Rc<dyn GuestClock>;

    /// By which orders are given to its devices and its machine while somebody else has hold of the guest itself; none where there is nothing that
    /// could be told.
    fn orders(&self) -> Option<Orders> {
        None
    }

    /// For how long the guest has been suspended by itself, if it is.
    fn suspended(&self) -> Option<Duration>;

    /// Why nobody in the guest could say that a command has ended, where that can be seen from outside.
    fn silenced(&mut self) -> Option<Lost> {
        None
    }

    /// Keeps what is asked for of the memory of a guest whose kernel has failed, and says in the loss where it is, or why it is not kept. Has a limit of
    /// its own, for that may take longer than a command.
    fn keep_memory(&mut self, lost: Lost) -> Pending<'_, Lost> {
        Box::pin(std::future::ready(lost))
    }

    /// What it said last, on a console say, where a person needs it to see what the guest was at: lines without control characters.
    fn last_lines(&self, most: usize) -> Vec<String>;
}
