//! What a process gives up before it becomes QEMU.
//!
//! Belljar starts QEMU through itself: `belljar __exec --parent PID [--descriptors N,N…] -- qemu-system-x86_64 …`. The
//! shim, [`shim_main`], changes what can only be changed from within the new process and then becomes QEMU.
//! In order:
//!
//! 1. **Its own process group**, so that a Ctrl-C meant for Belljar does not reach QEMU, and so that a kill reaches
//!    all that QEMU may have started.
//! 2. **No core files**: QEMU's memory is the guest's, and an abort would leave gigabytes in the working directory.
//! 3. **Fewer capabilities** (`caps`), when root starts it.
//! 4. **No new privileges**: no set-uid program gives back what was dropped; the kernel also demands it
//!    of whoever installs a filter without being root.
//! 5. **A seccomp filter** (`filter`): what a guest leaves on the host over 9p is plain files of the
//!    user, whatever the guest's root asks for.
//! 6. **Death with its parent** (`PR_SET_PDEATHSIG`), last, because the kernel forgets it when credentials
//!    change. The parent is the *thread* that started it, so that thread must live as long as the guest. A parent that was
//!    gone before is found by comparing `getppid()`.
//!
//! Descriptors that QEMU is to have under certain numbers come through standard input (`descriptors`), which is `/dev/null` after
//! that. Environment and working directory pass through untouched.
//!
//! With `--server` a program is started so that serves a share as QEMU serves one (`virtiofsd`). It has no `umask(2)`, as many descriptors as it may have, a filter more
//! (`filter::install_for_server`), and what it takes to confine itself to the share's directory: as root two capabilities, else a user namespace of its own.
//!
//! With `--helper` there it is a program that is no guest: of the above it gets 1, 2 and 6.
//!
//! With `--view` after the parent's id it is another process: one that opens the directories for a guest without what they are not to show
//! ([`namespace`]); with `--share` one that serves a directory to a guest (`serving`), and with `--lab-disk`
//! one that serves a disk to QEMU (`disk`).

mod caps;
mod descriptors;
mod disk;
mod filter;
pub mod hidden;
pub mod mounts;
pub mod namespace;
mod serving;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use belljar_lab::Setup;
use belljar_share_fuse::Use;
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setpgid, setrlimit,
};
use rustix::thread::UnshareFlags;
use thiserror::Error;

/// How to start a program through [`shim_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shim {
    /// The program that calls [`shim_main`]: Belljar itself, best as `/proc/self/exe`.
    pub program: PathBuf,
    /// What makes it do so: `__exec`.
    pub args: Vec<OsString>,
}

impl Shim {
    /// A command that starts `program`; its arguments are added to it. To be spawned by the thread that
    /// called this, as the program dies with that thread.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.begin();
        command.arg("--").arg(program);
        command
    }

    /// A command that starts a program which is no guest, such as a container engine: in a process group of its own, and dead with Belljar,
    /// but with all its rights. To be spawned by the thread that called this, as the program dies with that thread.
    #[must_use]
    pub fn command_for_helper(&self, program: &Path) -> Command {
        let mut command = self.begin();
        command.arg(HELPER).arg("--").arg(program);
        command
    }

    /// The same for a program that goes on to its end where Belljar is gone, for what it would leave half done is worse, and it ends by itself.
    #[must_use]
    pub(crate) fn command_that_finishes(&self, program: &Path) -> Command {
        let mut command = self.begin();
        command.arg(FINISHING).arg("--").arg(program);
        command
    }

    /// The same for a program that finds these descriptors under these numbers, each of which may be given once. Its standard input,
    /// on which they travel, must be left as it is.
    ///
    /// # Errors
    /// When there is no socket to be had, or no room in it for so many.
    pub fn command_with(&self, program: &Path, descriptors: Vec<(i32, OwnedFd)>) -> io::Result<Command> {
        let mut command = self.begin();
        let (numbers, descriptors): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
        command.stdin(descriptors::send(&descriptors)?);
        command.arg("--descriptors").arg(numbers.join(",")).arg("--").arg(program);
        Ok(command)
    }

    /// The same for a program that serves a share.
    ///
    /// # Errors
    /// See [`Shim::command_with`].
    pub(crate) fn command_of_server(
        &self,
        program: &Path,
        server: Server,
        descriptors: Vec<(i32, OwnedFd)>,
    ) -> io::Result<Command> {
        let mut command = self.begin();
        let (numbers, descriptors): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let numbers: Vec<String> = numbers.iter().map(i32::to_string).collect();
        command.stdin(descriptors::send(&descriptors)?);
        command.arg(SERVER).arg(server.word()).arg("--descriptors").arg(numbers.join(",")).arg("--").arg(program);
        Ok(command)
    }

    /// A command that serves a share. Its standard input must be left as it is; `descriptors` are the port, the directory, and what keeps
    /// that as it is seen.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(crate) fn command_to_serve(&self, using: Use, descriptors: Vec<OwnedFd>) -> io::Result<Command> {
        let mut command = self.begin();
        command.stdin(descriptors::send(&descriptors)?);
        command.arg(serving::WORD).arg(serving::word(using)).arg(descriptors.len().to_string());
        Ok(command)
    }

    /// A command that serves a lab disk. Its standard input must be left as it is; `descriptors` are the line to QEMU, that to Belljar, and the setup's
    /// files.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(crate) fn command_to_serve_disk(&self, setup: &Setup, descriptors: Vec<OwnedFd>) -> io::Result<Command> {
        let mut command = self.begin();
        command.stdin(descriptors::send(&descriptors)?);
        command.arg(disk::WORD).arg(serde_json::to_string(setup)?);
        Ok(command)
    }

    fn begin(&self) -> Command {
        let mut command = Command::new(&self.program);
        let parent = getpid().as_raw_nonzero().to_string();
        command.args(&self.args).arg("--parent").arg(parent);
        command
    }
}

/// What makes the shim start a program that serves a share.
const SERVER: &str = "--server";

/// A program that serves a share as QEMU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// What the share is for.
    pub(crate) using: Use,
    /// Whether it confines itself to the directory although it is not started by root.
    pub(crate) own_users: bool,
}

impl Server {
    fn word(self) -> String {
        let users = if self.own_users { "own" } else { "host" };
        format!("{},{users}", serving::word(self.using))
    }

    fn of(word: &OsStr) -> Option<Self> {
        let words = [Use::Exchange, Use::Reading]
            .into_iter()
            .flat_map(|using| [false, true].into_iter().map(move |own_users| Self { using, own_users }));
        words.into_iter().find(|server| word == OsStr::new(&server.word()))
    }

    /// What only it has of what the process gives up, before the filters that all have.
    fn prepare(self) -> Result<(), ShimError> {
        rustix::process::umask(Mode::empty());
        let limit = getrlimit(Resource::Nofile);
        // It has a descriptor for each file that the guest knows.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        if self.own_users {
            namespace::own_users(UnshareFlags::empty())?;
        }
        caps::drop_for_confined().map_err(|e| prepare(DROP_CAPABILITIES, e))?;
        if self.own_users {
            caps::keep_to_confine().map_err(|e| prepare("keep what confines it", e))?;
        }
        Ok(())
    }
}

/// Why a program was not started.
#[derive(Debug, Error)]
pub enum ShimError {
    /// This is for Belljar's own use.
    #[error("cannot read the shim's arguments: {0}; expected --parent PID [--descriptors N,N...] -- PROGRAM [ARG...]")]
    Usage(&'static str),
    /// Belljar was killed in the meantime.
    #[error("process {parent} ended before its guest was started; nothing is left to do")]
    Orphaned {
        /// The process that asked.
        parent: i32,
    },
    /// A step of the preparation failed.
    #[error("cannot {what} before starting QEMU: {source}{}", hint(.what))]
    Prepare {
        /// Which step.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A share cannot be served any longer.
    #[error("{0}")]
    Serve(belljar_share_fuse::ServeError),
    /// A lab disk cannot be served any longer.
    #[error("{0}")]
    ServeDisk(belljar_lab::ServeError),
    /// The system-call filter could not be installed.
    #[error(
        "cannot install the system-call filter: {0}; \
         the host's kernel needs CONFIG_SECCOMP_FILTER, and a container's runtime must permit seccomp(2)"
    )]
    Filter(#[from] seccompiler::Error),
    /// A directory cannot be opened without what it is not to show.
    #[error("{0}")]
    View(#[from] namespace::StepError),
    /// The program itself.
    #[error("cannot start {}: {source}", .program.display())]
    Exec {
        /// Which one.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn hint(what: &str) -> &'static str {
    if what == DROP_CAPABILITIES { "; run as an ordinary user, who has none to drop" } else { "" }
}

/// Says that the program is no guest.
const HELPER: &str = "--helper";

/// The same, of one that does not end with Belljar.
const FINISHING: &str = "--finishing";

const DROP_CAPABILITIES: &str = "drop capabilities";

/// Prepares this process as the module says and becomes the program that `args` name
/// (`--parent PID [--descriptors N,N...] -- PROGRAM [ARG...]`). Returns only on failure.
///
/// # Errors
///
/// When the arguments cannot be read, the parent is gone, or a step fails: then nothing was started, and the caller
/// writes the error where QEMU's own messages go and exits.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> Result<Infallible, ShimError> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.get(2).is_some_and(|word| word == namespace::WORD) {
        namespace::serve(args.into_iter().skip(3))?;
        std::process::exit(0);
    }
    if args.get(2).is_some_and(|word| word == serving::WORD) {
        serving::run(&args[1], &args[3..])?;
        std::process::exit(0);
    }
    if args.get(2).is_some_and(|word| word == disk::WORD) {
        disk::run(&args[1], &args[3..])?;
        std::process::exit(0);
    }
    let order = parse(args)?;
    let mut command = Command::new(&order.program);
    command.args(&order.args);
    if !order.descriptors.is_empty() {
        const TAKE: &str = "take over its descriptors";
        let stdin = io::stdin();
        let received = descriptors::receive(stdin.as_fd(), order.descriptors.len());
        let received = received.map_err(|source| ShimError::Prepare { what: TAKE, source })?;
        let mappings = order.descriptors.iter().zip(received);
        let mappings = mappings.map(|(&child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings).map_err(|_| ShimError::Usage("a number twice after --descriptors"))?;
        command.stdin(Stdio::null());
    }

    match setpgid(None, None) {
        // Who leads a session leads a group already.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(prepare("make a process group", error)),
    }
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, nothing).map_err(|e| prepare("forbid core files", e))?;
    if !order.is_helper {
        match order.server {
            Some(server) => server.prepare()?,
            None => caps::drop_for_qemu().map_err(|e| prepare(DROP_CAPABILITIES, e))?,
        }
        rustix::thread::set_no_new_privs(true).map_err(|e| prepare("renounce new privileges", e))?;
        filter::install()?;
        if let Some(server) = order.server {
            filter::install_for_server(server.using)?;
        }
    }
    if !order.finishes {
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| prepare("tie its life to Belljar's", e))?;
    }
    if getppid().map(Pid::as_raw_pid) != Some(order.parent) {
        return Err(ShimError::Orphaned { parent: order.parent });
    }

    let source = command.exec();
    Err(ShimError::Exec { program: order.program, source })
}

fn prepare(what: &'static str, error: Errno) -> ShimError {
    ShimError::Prepare { what, source: error.into() }
}

#[derive(Debug, PartialEq, Eq)]
struct Order {
    parent: i32,
    /// Whether it serves a share, and which.
    server: Option<Server>,
    /// It is no guest.
    is_helper: bool,
    /// It goes on where Belljar ends.
    finishes: bool,
    /// Numbers of descriptors, above those of the standard streams.
    descriptors: Vec<i32>,
    program: PathBuf,
    args: Vec<OsString>,
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Order, ShimError> {
    let mut args = args.into_iter();
    if args.next().as_deref() != Some(OsStr::new("--parent")) {
        return Err(ShimError::Usage("no --parent"));
    }
    let parent = args.next().and_then(|pid| pid.to_str()?.parse().ok()).filter(|&pid: &i32| pid > 0);
    let parent = parent.ok_or(ShimError::Usage("no process id after --parent"))?;
    let mut word = args.next();
    let mut server = None;
    if word.as_deref() == Some(OsStr::new(SERVER)) {
        let said = args.next().as_deref().and_then(Server::of);
        server = Some(said.ok_or(ShimError::Usage("no use after --server"))?);
        word = args.next();
    }
    let finishes = word.as_deref() == Some(OsStr::new(FINISHING));
    let is_helper = finishes || word.as_deref() == Some(OsStr::new(HELPER));
    if is_helper {
        word = args.next();
    }
    let mut descriptors = Vec::new();
    if word.as_deref() == Some(OsStr::new("--descriptors")) {
        const NONE: ShimError = ShimError::Usage("no numbers above 2 after --descriptors");
        let numbers = args.next().and_then(|n| n.into_string().ok()).ok_or(NONE)?;
        for number in numbers.split(',') {
            descriptors.push(number.parse().ok().filter(|n| *n > 2).ok_or(NONE)?);
        }
        word = args.next();
    }
    if word.as_deref() != Some(OsStr::new("--")) {
        return Err(ShimError::Usage("no --"));
    }
    let program = args.next().ok_or(ShimError::Usage("no program"))?.into();
    Ok(Order { parent, server, is_helper, finishes, descriptors, program, args: args.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_command_reads_back() {
        let shim = Shim { program: "/proc/self/exe".into(), args: words("__exec") };
        let mut command = shim.command(Path::new("/usr/bin/qemu"));
        command.args(words("-m 1 -- --parent"));
        let args: Vec<OsString> = command.get_args().map(OsStr::to_owned).collect();
        assert_eq!(args[0], "__exec");
        let order = parse(args[1..].to_vec()).unwrap();
        assert_eq!(order.parent, getpid().as_raw_nonzero().get());
        assert_eq!(order.program, Path::new("/usr/bin/qemu"));
        assert_eq!(order.args, words("-m 1 -- --parent"));
        assert_eq!(order.descriptors, [0; 0]);
        assert!(!order.is_helper);
        let command = shim.command_for_helper(Path::new("/usr/bin/podman"));
        let order = parse(command.get_args().skip(1).map(OsStr::to_owned)).unwrap();
        assert!(order.is_helper && !order.finishes);
        assert_eq!(order.program, Path::new("/usr/bin/podman"));
        let command = shim.command_that_finishes(Path::new("/usr/bin/podman"));
        let order = parse(command.get_args().skip(1).map(OsStr::to_owned)).unwrap();
        assert!(order.is_helper && order.finishes);

        let given = vec![(7, tempfile::tempfile().unwrap().into()), (3, tempfile::tempfile().unwrap().into())];
        let command = shim.command_with(Path::new("/usr/bin/qemu"), given).unwrap();
        let args: Vec<OsString> = command.get_args().skip(1).map(OsStr::to_owned).collect();
        assert_eq!(parse(args).unwrap().descriptors, [7, 3]);

        let server = Server { using: Use::Reading, own_users: true };
        let given = vec![(3, tempfile::tempfile().unwrap().into())];
        let command = shim.command_of_server(Path::new("/usr/bin/virtiofsd"), server, given).unwrap();
        let order = parse(command.get_args().skip(1).map(OsStr::to_owned).collect::<Vec<_>>()).unwrap();
        assert_eq!((order.server, order.descriptors.as_slice()), (Some(server), [3].as_slice()));
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "",
            "--parent",
            "--parent x -- a",
            "--parent 0 -- a",
            "--parent -7 -- a",
            "--parent 7 a",
            "--parent 7 --",
            "--parent 7 --descriptors -- a",
            "--parent 7 --descriptors 3,2 -- a",
            "--parent 7 --descriptors 3, -- a",
            "--parent 7 --descriptors 3 a",
            "--parent 7 --server",
            "--parent 7 --server reading -- a",
            "--parent 7 --server reading,other -- a",
        ] {
            assert!(matches!(shim_main(words(text)), Err(ShimError::Usage(_))), "{text}");
        }
    }
}
