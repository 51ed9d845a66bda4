//! What a command is connected to on our side.

use std::future::Future;
use std::io;
use std::pin::Pin;

use belljar_proto::message::{OutputEnd, WindowSize};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

/// What [`OutputSink`]'s methods give.
pub type SinkFuture<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

/// Where a command's output goes. The next bytes come when the future is done, so a slow sink slows the command.
pub trait OutputSink: Send {
    /// The command runs under this process id in the guest.
    fn started(&mut self, pid: u32) {
        let _ = pid;
    }
    /// The command has ended in its time; what processes that it left behind still write is listened to for a while.
    fn lingers(&mut self) {}
    /// Its output did not come to its end: processes that it left behind still have it open.
    fn left_open(&mut self, how: OutputEnd) {
        let _ = how;
    }
    /// The machine goes down in the middle of the command, or is up again, and the command is started again. What was said of its end before
    /// that is not true any more.
    fn restarts(&mut self, is_up: bool) {
        let _ = is_up;
    }
    /// Bytes of its standard output, or of its terminal.
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a>;
    /// Bytes of its standard error.
    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a>;
}

/// Something to do to a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecControl {
    /// Send this Linux signal to its process group.
    Signal(i32),
    /// Give its terminal this size.
    Resize(WindowSize),
}

/// A command's connections.
pub struct ExecIo<'a> {
    /// Read as the command takes it; `None` is an empty input.
    pub stdin: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    /// Takes the output.
    pub sink: &'a mut dyn OutputSink,
    /// Taken while the command runs.
    pub control: Option<&'a mut mpsc::Receiver<ExecControl>>,
}
