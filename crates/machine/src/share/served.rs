//! The servers of a guest's shares that Belljar serves itself: each is a process of its own behind a port ([`crate::qemu::sandbox::serving`]),
//! started when the guest first asks something there. So a guest that never does costs nothing.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use belljar_share_fuse::Use;
use tokio::{
    io::{AsyncReadExt, Interest},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    beside::{self, Beside},
    console::sanitize::sanitize_line,
    host::HostContext,
    qemu::sandbox::Shim,
    share,
};

/// Most bytes of what a server says that are told.
const MAX_SAID: u64 = 4096;

/// What is behind the port of one share.
#[derive(Debug)]
pub(crate) struct Served {
    /// The share's tag.
    pub(crate) tag: String,
    /// Belljar's end of the port.
    pub(crate) port: StdStream,
    /// The directory, as the guest is to see it.
    pub(crate) directory: OwnedFd,
    /// What keeps it as it is seen, to be held as long as it is used.
    pub(crate) view: Option<OwnedFd>,
    /// What it is for.
    pub(crate) using: Use,
}

/// All of a guest's, running or not. Dropping them ends them.
#[derive(Debug)]
pub(crate) struct Servers {
    tasks: Vec<JoinHandle<()>>,
}

impl Served {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            tag: self.tag.clone(),
            port: self.port.try_clone()?,
            directory: self.directory.try_clone()?,
            view: self.view.as_ref().map(OwnedFd::try_clone).transpose()?,
            using: self.using,
        })
    }
}

/// A guest's servers, which are others once the guest has begun anew. Dropping them ends them.
#[derive(Debug)]
pub(crate) struct ServedAgain {
    served: Vec<Served>,
    beside: Beside,
    tell: mpsc::UnboundedSender<String>,
    servers: Servers,
    may_end: Arc<AtomicBool>,
}

impl ServedAgain {
    /// See [`Servers::start`].
    pub(crate) fn start(
        served: Vec<Served>,
        host: &HostContext,
        beside: &Beside,
        tell: mpsc::UnboundedSender<String>,
    ) -> io::Result<Self> {
        let (servers, may_end) = (Servers { tasks: Vec::new() }, Arc::default());
        let mut all = Self { served, beside: beside.clone(), tell, servers, may_end };
        all.begin_again(host)?;
        Ok(all)
    }

    /// Ends the servers.
    pub(crate) async fn end(&mut self) {
        for task in self.servers.tasks.drain(..) {
            task.abort();
            // It ends its server on the way.
            drop(task.await);
        }
    }

    /// The guest goes down, and unmounts its shares on the way: a server that ends then without a word does what is asked of it.
    pub(crate) fn may_end(&self) {
        self.may_end.store(true, Ordering::Relaxed);
    }

    /// Has others started when they are needed, at the same ports.
    ///
    /// # Errors
    /// When a socket cannot be waited for.
    pub(crate) fn begin_again(&mut self, host: &HostContext) -> io::Result<()> {
        let served = self.served.iter().map(Served::try_clone).collect::<io::Result<_>>()?;
        self.may_end = Arc::default();
        self.servers = Servers::start(served, host, &self.beside, self.tell.clone(), &self.may_end)?;
        Ok(())
    }
}

/// How servers are started, and all that they get of the environment.
type Surroundings = (Shim, Vec<(OsString, OsString)>);

/// Tells when one of them, or another process that the guest depends on, has ended: which, and why.
pub(crate) type Ends = mpsc::UnboundedReceiver<String>;

impl Servers {
    /// Has each server started when it is needed, and noted as long as it runs.
    ///
    /// # Errors
    /// When a socket cannot be waited for.
    pub(crate) fn start(
        served: Vec<Served>,
        host: &HostContext,
        beside: &Beside,
        tell: mpsc::UnboundedSender<String>,
        may_end: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let host = Arc::new((host.shim.clone(), host.qemu_env.clone()));
        let mut tasks = Vec::new();
        for one in served {
            one.port.set_nonblocking(true)?;
            let port = UnixStream::from_std(one.port.try_clone()?)?;
            let (host, beside, tell) = (Arc::clone(&host), beside.clone(), tell.clone());
            let may_end = Arc::clone(may_end);
            tasks.push(tokio::spawn(async move {
                if port.ready(Interest::READABLE).await.is_err() {
                    return;
                }
                drop(port);
                let what = share::server_of(&one.tag);
                let why = match run(one, &host, &beside).await {
                    Ok(said) if said.is_empty() && may_end.load(Ordering::Relaxed) => return,
                    Ok(said) => said,
                    Err(error) => format!("it could not be started: {error}"),
                };
                // Nobody listening is fine.
                drop(tell.send(format!("{what} ended{}{why}", if why.is_empty() { "" } else { ": " })));
            }));
        }
        Ok(Self { tasks })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A server that is killed and reaped whatever happens.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.0.take() {
            beside::end(server);
        }
    }
}

/// Runs a server to its end; gives what it said.
async fn run(served: Served, (shim, env): &Surroundings, beside: &Beside) -> io::Result<String> {
    let Served { tag, port, directory, view, using } = served;
    port.set_nonblocking(false)?;
    let mut command = shim.command_to_serve(using, [port.into(), directory].into_iter().chain(view).collect())?;
    let (ours, theirs) = StdStream::pair()?;
    command
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(OwnedFd::from(theirs));
    let server = command.spawn()?;
    let noted = beside.note(share::server_of(&tag), server.id());
    let server = Running(Some(server));
    // Its other end is to be the server's alone: then its end is the server's.
    drop(command);
    ours.set_nonblocking(true)?;
    let mut said = Vec::new();
    let mut life = UnixStream::from_std(ours)?;
    (&mut life).take(MAX_SAID).read_to_end(&mut said).await?;
    if said.len() as u64 >= MAX_SAID {
        tokio::io::copy(&mut life, &mut tokio::io::sink()).await?;
    }
    drop((noted, server));
    Ok(sanitize_line(&said).trim_start_matches("belljar: error: ").trim().to_owned())
}
