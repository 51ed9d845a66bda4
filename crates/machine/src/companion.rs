//! A process beside QEMU, to which a device of the machine leads: it is started through the shim, watched, and ended with the machine.

use std::{
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{io::AsyncReadExt, sync::mpsc::UnboundedSender};

use crate::{beside, console::sanitize::sanitize_line, host::HostContext};

/// How long one may take to answer the first time.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// How long what it said is waited for when it has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Most bytes of what one says that are told.
const MAX_SAID: usize = 4096;

/// A running one. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Companion {
    /// Until it was ended.
    child: Option<Child>,
    pid: u32,
    /// Its standard error, which is closed by its end.
    life: Option<UnixStream>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Companion {
    /// Starts a command of the shim's ([`crate::qemu::sandbox::Shim`]), to which its words were added.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn start(mut command: Command, host: &HostContext) -> io::Result<Self> {
        let (life, theirs) = UnixStream::pair()?;
        let env = host.qemu_env.iter().map(|(name, value)| (name, value));
        command.env_clear().envs(env).stdout(Stdio::null()).stderr(OwnedFd::from(theirs));
        let child = command.spawn()?;
        let pid = child.id();
        // Its other end is to be the process's alone.
        drop(command);
        Ok(Self { child: Some(child), pid, life: Some(life), said: Arc::default() })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for something that it has to do first, with what it said where it does not.
    ///
    /// # Errors
    /// When it does not within [`LIMIT`]. It is ended then.
    pub(crate) async fn answers(&mut self, asked: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.end();
                let mut text = Vec::new();
                if let Some(life) = self.life.take() {
                    // Something that it started and that left its group may have it open.
                    let _ = life.set_read_timeout(Some(LAST_WORDS));
                    let _ = life.take(MAX_SAID as u64).read_to_end(&mut text);
                }
                let text = sanitize_line(&text);
                let text = text.trim();
                Err(io::Error::other(if text.is_empty() { error.to_string() } else { format!("{error}: {text}") }))
            }
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    /// Tells, once, when it has ended: `what` it is, and what it said last.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub(crate) fn watch(&mut self, what: String, tell: UnboundedSender<String>) -> io::Result<()> {
        let Some(life) = self.life.take() else { return Ok(()) };
        life.set_nonblocking(true)?;
        let mut life = tokio::net::UnixStream::from_std(life)?;
        let said = Arc::clone(&self.said);
        tokio::spawn(async move {
            let mut some = [0; 1024];
            // All is read, or it would stand still; the end is kept, which says why.
            while let Ok(count @ 1..) = life.read(&mut some).await {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.extend_from_slice(&some[..count]);
                let too_many = said.len().saturating_sub(MAX_SAID);
                said.drain(..too_many);
            }
            let said = sanitize_line(&said.lock().unwrap_or_else(PoisonError::into_inner));
            let said = said.trim();
            // Nobody listening is fine.
            drop(tell.send(if said.is_empty() { format!("{what} ended") } else { format!("{what} ended: {said}") }));
        });
        Ok(())
    }

    /// Ends it, and whatever it started.
    pub(crate) fn end(&mut self) {
        let Some(child) = self.child.take() else { return };
        // It leads a group of its own, if it has come so far.
        let group = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        beside::end(child);
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.end();
    }
}

/// What an error means of a line to one.
pub(crate) fn of_line(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::Error::other("it has ended")
        }
        _ => error,
    }
}
