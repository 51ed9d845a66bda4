//! Starting a command: everything that can fail before its first instruction is reported by the step that failed.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use belljar_proto::message::{Exec, Mount, MountMode};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::owner;
use crate::refusal;
use crate::sys::{self, Strings};
use crate::text;
use crate::trust;
use crate::users::{self, Identity};

pub(crate) const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A step of the child before it becomes the command. Goes over a pipe as a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session,
    Terminal,
    Streams,
    Groups,
    Group,
    User,
    Directory,
    Program,
    Workspace,
}

const STEPS: [Step; 9] = [
    Step::Session,
    Step::Terminal,
    Step::Streams,
    Step::Groups,
    Step::Group,
    Step::User,
    Step::Directory,
    Step::Program,
    Step::Workspace,
];

/// Why a command could not be started.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) what: String,
    /// Of the program itself, by which shells tell a command that is not there from one that cannot be run; 0 where it was not
    /// come so far.
    pub(crate) errno: i32,
}

impl Refused {
    /// A step before the program failed.
    pub(crate) fn new(what: impl Into<String>, errno: Errno) -> Self {
        Self::words(format!("{}: {}", what.into(), text::errno(errno)))
    }

    fn words(what: impl Into<String>) -> Self {
        Self { what: what.into(), errno: 0 }
    }

    fn program(what: impl Into<String>, errno: Errno) -> Self {
        Self { what: what.into(), errno: errno.raw_os_error() }
    }
}

/// A command made ready, so that the child has little to do.
pub(crate) struct Prepared {
    /// Paths to try in this order.
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    pub(crate) identity: Option<Identity>,
    /// What of the host's is mounted, which is to look like the user's own as far as that can be had.
    shares: Vec<Mount>,
    /// Where the program was looked for, for the message.
    searched: Option<String>,
}

/// The child's standard streams.
pub(crate) struct Streams<'a> {
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// They are a terminal, which becomes the child's controlling terminal.
    pub(crate) terminal: bool,
}

/// A list of `KEY=VALUE` in which a key occurs once.
struct Environment(Vec<Vec<u8>>);

impl Environment {
    fn key(entry: &[u8]) -> &[u8] {
        entry.split(|&byte| byte == b'=').next().unwrap_or(entry)
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let entry = self.0.iter().find(|entry| Self::key(entry) == key)?;
        entry.get(key.len() + 1..)
    }

    fn set(&mut self, entry: Vec<u8>) {
        match self.0.iter_mut().find(|old| Self::key(old) == Self::key(&entry)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    fn set_pair(&mut self, key: &str, value: &str) {
        self.set(format!("{key}={value}").into_bytes());
    }

    fn set_missing(&mut self, key: &str, value: &str) {
        if self.get(key.as_bytes()).is_none() {
            self.set_pair(key, value);
        }
    }
}

impl Prepared {
    /// The same in a guest with these shares.
    pub(crate) fn with_shares(self, shares: Vec<Mount>) -> Self {
        Self { shares, ..self }
    }

    /// Shares of which the host does not see what becomes of them.
    fn layered(&self) -> impl Iterator<Item = &str> {
        self.shares.iter().filter(|share| share.mode == MountMode::CopyOnWrite).map(|share| share.path.as_str())
    }
}

/// Makes a command ready. `base` is the agent's own environment, `term` the kind of the command's terminal.
pub(crate) fn prepare(exec: &Exec, base: &[Vec<u8>], term: Option<&str>) -> Result<Prepared, Refused> {
    let identity = match &exec.user {
        Some(user) => Some(users::find(user).map_err(Refused::words)?),
        None => None,
    };
    let mut env = Environment(Vec::new());
    if !exec.clear_env {
        env.0.extend_from_slice(base);
        match &identity {
            Some(user) => {
                env.set_pair("HOME", &user.home);
                env.set_pair("USER", &user.name);
                env.set_pair("LOGNAME", &user.name);
                env.set_pair("SHELL", &user.shell);
            }
            None => {
                env.set_missing("HOME", "/root");
                env.set_missing("USER", "root");
                env.set_missing("LOGNAME", "root");
                env.set_missing("SHELL", "/bin/sh");
            }
        }
        env.set_missing("PATH", &text::lossy(DEFAULT_PATH));
        if let Some(term) = term {
            env.set_pair("TERM", term);
        }
    }
    for entry in &exec.env {
        env.set(entry.clone());
    }

    let name = exec
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refused::program("execve of nothing: the command is empty", Errno::NOENT))?;
    let (programs, searched) = if name.contains(&b'/') {
        (vec![name.clone()], None)
    } else {
        let base_path = base.iter().find(|entry| Environment::key(entry) == b"PATH").map(|entry| &entry[5..]);
        let path = env.get(b"PATH").or(base_path).unwrap_or(DEFAULT_PATH);
        let programs = path
            .split(|&byte| byte == b':')
            .map(|directory| match directory {
                // An empty entry is the working directory, by POSIX.
                b"" => name.clone(),
                directory => [directory, b"/", name].concat(),
            })
            .collect();
        (programs, Some(text::lossy(path)))
    };
    let cwd = exec.cwd.clone().unwrap_or_else(|| b"/".to_vec());
    let strings = |list: Vec<Vec<u8>>, what: &str| {
        list.into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Refused::new(format!("{what} with a NUL byte"), Errno::INVAL))
    };
    Ok(Prepared {
        programs: strings(programs, "a program name")?,
        argv: strings(exec.argv.clone(), "an argument")?,
        env: strings(env.0, "an environment entry")?,
        cwd: CString::new(cwd).map_err(|_| Refused::new("a working directory with a NUL byte", Errno::INVAL))?,
        identity,
        shares: Vec::new(),
        searched,
    })
}

/// Starts the command. The descriptor says how that went: it ends when the command runs, or holds what
/// [`failure`] reads.
pub(crate) fn start(prepared: &Prepared, streams: &Streams<'_>) -> Result<(Pid, OwnedFd), Errno> {
    let (report, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    if let Some(pid) = sys::fork()? {
        rustix::io::ioctl_fionbio(&report, true)?;
        return Ok((pid, report));
    }
    let (step, errno) = become_command(prepared, streams);
    let mut failure = [0; 5];
    failure[0] = step as u8;
    failure[1..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    let _ = rustix::io::write(&tell, &failure);
    sys::exit_now(127)
}

/// In the child. Comes back only where something failed.
fn become_command(prepared: &Prepared, streams: &Streams<'_>) -> (Step, Errno) {
    match set_up(prepared, streams) {
        Ok(()) => {}
        Err(failed) => return failed,
    }
    let argv = Strings::new(&prepared.argv);
    let env = Strings::new(&prepared.env);
    // As execvp does it: a file that may not be executed does not end the search, but is what is reported.
    let mut denied = false;
    let mut last = Errno::NOENT;
    for program in &prepared.programs {
        last = sys::execve(program, &argv, &env);
        match last {
            Errno::ACCESS => denied = true,
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            // No shell is to read a program as if it were its script.
            Errno::NOEXEC if !refusal::is_script_at(program.as_bytes()) => return (Step::Program, last),
            Errno::NOEXEC => {
                // A script without a first line that names its interpreter: shells run it themselves.
                let shell = c"/bin/sh".to_owned();
                let script = Strings::new([&shell, program].into_iter().chain(&prepared.argv[1..]));
                let failed = sys::execve(&shell, &script, &env);
                let errno = if failed == Errno::NOENT { Errno::NOEXEC } else { failed };
                return (Step::Program, errno);
            }
            _ => return (Step::Program, last),
        }
    }
    (Step::Program, if denied { Errno::ACCESS } else { last })
}

fn set_up(prepared: &Prepared, streams: &Streams<'_>) -> Result<(), (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    rustix::process::setsid().map_err(at(Step::Session))?;
    if streams.terminal {
        rustix::process::ioctl_tiocsctty(streams.stdin).map_err(at(Step::Terminal))?;
    }
    rustix::stdio::dup2_stdin(streams.stdin).map_err(at(Step::Streams))?;
    rustix::stdio::dup2_stdout(streams.stdout).map_err(at(Step::Streams))?;
    rustix::stdio::dup2_stderr(streams.stderr).map_err(at(Step::Streams))?;
    // The agent's protection is not the command's.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let uid = prepared.identity.as_ref().map_or(0, |identity| identity.uid);
    if let Some(identity) = prepared.identity.as_ref().filter(|_| uid != 0) {
        for workspace in prepared.layered() {
            let given = owner::give(workspace, uid, identity.gid);
            given.map_err(|(_, errno)| (Step::Workspace, errno))?;
        }
    }
    trust::git(&prepared.shares, uid);
    if let Some(identity) = &prepared.identity {
        let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(at(Step::Groups))?;
        let gid = Gid::from_raw(identity.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Step::Group))?;
        let uid = Uid::from_raw(identity.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Step::User))?;
    }
    rustix::process::chdir(&prepared.cwd).map_err(at(Step::Directory))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::command_signals();
    // Last, so that the command comes as far as this before the guest's services have their turn.
    let _ = rustix::process::setpriority_process(None, 0);
    Ok(())
}

/// Whether the command runs (`Some(Ok)`), could not be started (`Some(Err)`), or is still on its way (`None`).
pub(crate) fn failure(report: impl AsFd, prepared: &Prepared) -> Option<Result<(), Refused>> {
    let mut failure = [0; 5];
    let read = loop {
        match rustix::io::read(&report, &mut failure) {
            Ok(read) => break read,
            Err(Errno::AGAIN) => return None,
            Err(Errno::INTR) => {}
            Err(error) => return Some(Err(Refused::new("start the command", error))),
        }
    };
    if read == 0 {
        return Some(Ok(()));
    }
    let errno = i32::from_ne_bytes(std::array::from_fn(|i| failure[1 + i]));
    let step = STEPS.get(usize::from(failure[0])).copied().unwrap_or(Step::Program);
    Some(Err(describe(step, Errno::from_raw_os_error(errno), prepared)))
}

fn describe(step: Step, errno: Errno, prepared: &Prepared) -> Refused {
    match step {
        Step::Session => Refused::new("setsid", errno),
        Step::Terminal => Refused::new("make the terminal the controlling one", errno),
        Step::Streams => Refused::new("set up standard input and output", errno),
        Step::Groups => Refused::new("setgroups", errno),
        Step::Group => Refused::new("setgid", errno),
        Step::User => Refused::new("setuid", errno),
        Step::Workspace => {
            let user = prepared.identity.as_ref().map_or("?", |identity| &identity.name);
            let shares = prepared.layered().collect::<Vec<_>>().join(" and ");
            Refused::new(format!("give {shares} and all below it to the user {user}"), errno)
        }
        Step::Directory => {
            let cwd = text::lossy(prepared.cwd.as_bytes());
            let why = match errno {
                Errno::NOENT => "there is no such directory in the guest".to_owned(),
                Errno::NOTDIR => "it is not a directory in the guest".to_owned(),
                Errno::ACCESS => match &prepared.identity {
                    Some(identity) => format!("user {} may not enter it", identity.name),
                    None => text::errno(errno),
                },
                errno => text::errno(errno),
            };
            Refused::words(format!("change to its directory {cwd}: {why}"))
        }
        Step::Program => of_program(errno, prepared),
    }
}

/// What `execve` refused, and why as far as the files show it.
fn of_program(errno: Errno, prepared: &Prepared) -> Refused {
    let name = text::lossy(prepared.argv[0].as_bytes());
    let cwd = prepared.cwd.as_bytes();
    // Of those that were tried the first that is there is the one that was meant.
    let found = prepared.programs.iter().find(|program| refusal::is_there(program.as_bytes(), cwd));
    let what = match (found, &prepared.searched) {
        (None, Some(path)) if errno == Errno::NOENT => format!("find {name} in PATH={path}"),
        (Some(found), Some(_)) => format!("execve {}", text::lossy(found.as_bytes())),
        _ => format!("execve {name}"),
    };
    let why = found.and_then(|found| refusal::of_program(found.as_bytes(), cwd, errno)).or_else(|| {
        let user = prepared.identity.as_ref().filter(|user| errno == Errno::ACCESS && user.uid != 0)?;
        Some(format!("user {} may not execute it", user.name))
    });
    Refused::program(why.map_or_else(|| what.clone(), |why| format!("{what}, for {why}")), errno)
}

#[cfg(test)]
mod tests {
    use belljar_proto::message::{Nonce, Stdio};

    use super::*;

    fn exec(argv: &[&str], env: &[&str]) -> Exec {
        Exec {
            id: 1,
            nonce: Nonce([0; 16]),
            argv: argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
            env: env.iter().map(|entry| entry.as_bytes().to_vec()).collect(),
            clear_env: false,
            cwd: None,
            user: None,
            stdio: Stdio::Pipes,
            guards: None,
        }
    }

    fn list(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    #[test]
    fn the_program_is_looked_for_in_the_commands_path() {
        let base = [b"PATH=/base".to_vec()];
        let prepared = prepare(&exec(&["ls"], &[]), &base, None).ok().unwrap();
        assert_eq!(list(&prepared.programs), ["/base/ls"]);
        let prepared = prepare(&exec(&["ls"], &["PATH=/a::/b"]), &base, None).ok().unwrap();
        assert_eq!(list(&prepared.programs), ["/a/ls", "ls", "/b/ls"]);
        let prepared = prepare(&exec(&["./ls"], &[]), &base, None).ok().unwrap();
        assert_eq!(list(&prepared.programs), ["./ls"]);
        let mut clear = exec(&["ls"], &[]);
        clear.clear_env = true;
        let prepared = prepare(&clear, &base, None).ok().unwrap();
        assert_eq!(list(&prepared.programs), ["/base/ls"]);
        assert!(prepared.env.is_empty());
    }

    #[test]
    fn the_commands_environment_wins() {
        let base = [b"A=1".to_vec(), b"B=2".to_vec(), b"PATH=/p".to_vec()];
        let prepared = prepare(&exec(&["x"], &["B=3", "C=", "HOME=/h"]), &base, Some("xterm")).ok().unwrap();
        assert_eq!(
            list(&prepared.env),
            ["A=1", "B=3", "PATH=/p", "HOME=/h", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=xterm", "C="]
        );
    }

    #[test]
    fn nothing_and_nul_are_refused() {
        assert!(prepare(&exec(&[], &[]), &[], None).is_err());
        assert!(prepare(&exec(&[""], &[]), &[], None).is_err());
        assert!(prepare(&exec(&["a\0b"], &[]), &[], None).is_err());
        assert!(prepare(&exec(&["a"], &["x\0=1"]), &[], None).is_err());
    }
}
