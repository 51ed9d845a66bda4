//! Started from a root shell in any guest: into the background, away from the terminal and from whatever would end it
//! with the shell.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::MountFlags;

use crate::agent::Agent;
use crate::port::{self, NoPort, Port};
use crate::sys::{self, Strings};
use crate::{mounts, text};

/// A port there is, but it could not be opened.
const UNOPENED: u8 = 1;
/// The kernel or the machine has no port for us.
const LACKING: u8 = 3;

/// How soon a port is looked for again in a system that boots.
const PORT_AGAIN: Duration = Duration::from_millis(500);

/// Variables that say something about the login shell, its terminal or its service, and not about the system.
const OF_THE_SHELL: &[&str] = &[
    "COLUMNS",
    "HISTFILE",
    "HUSHLOGIN",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LINES",
    "LS_COLORS",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "MOTD_SHOWN",
    "OLDPWD",
    "PS1",
    "PS2",
    "PS4",
    "PWD",
    "SHLVL",
    "SYSTEMD_EXEC_PID",
    "TERM",
    "TMOUT",
    "_",
];

/// `serve`: starts the agent in the background and says whether it has a port.
pub(crate) fn detached() -> i32 {
    if !rustix::process::geteuid().is_root() {
        text::say("serve: must be started by root");
        return 1;
    }
    let Ok((report, tell)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        text::say("serve: cannot make a pipe");
        return 1;
    };
    match sys::fork() {
        Err(errno) => {
            text::say(&format!("serve: fork: {}", text::errno(errno)));
            return 1;
        }
        Ok(None) => {
            drop(report);
            // Twice, so that the agent leads no session and can never get a terminal.
            let _ = rustix::process::setsid();
            match sys::fork() {
                Ok(None) => {
                    from_memory(&tell);
                    sys::exit_now(daemon(tell))
                }
                _ => sys::exit_now(0),
            }
        }
        Ok(Some(_)) => drop(tell),
    }
    // Ends when the agent has said how it went, or is dead.
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    loop {
        match rustix::io::read(&report, &mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    match said.split_first() {
        Some((0, _)) => 0,
        Some((&code, why)) => {
            text::say(&format!("serve: {}", text::lossy(why)));
            i32::from(code)
        }
        None => {
            text::say("serve: the agent ended before it had opened a port");
            1
        }
    }
}

/// `serve --foreground`: the same without leaving the terminal, to look at.
pub(crate) fn foreground() -> i32 {
    prepare_system();
    match open() {
        Ok(port) => serve(port),
        Err((code, why)) => {
            text::say(&format!("serve: {why}"));
            i32::from(code)
        }
    }
}

/// `serve --fd`: on a descriptor that is already open, changing nothing else in the system; questions are taken only at a path that is given.
pub(crate) fn on_fd(fd: OwnedFd, ask_at: Option<&Path>) -> i32 {
    sys::close_others(fd.as_raw_fd());
    let ready = if rustix::termios::isatty(&fd) { port::make_raw(&fd) } else { Ok(()) }
        .and_then(|()| rustix::io::ioctl_fionbio(&fd, true));
    if let Err(errno) = ready {
        text::say(&format!("serve: {}", text::errno(errno)));
        return 1;
    }
    run(Agent::new(Port { fd, kind: port::Kind::Given }, environment()).map(|agent| match ask_at {
        Some(path) => agent.asked_at(path),
        None => agent,
    }))
}

/// The agent in the background, with a pipe on which to say how it went.
pub(crate) fn daemon(tell: OwnedFd) -> i32 {
    sys::close_others(tell.as_raw_fd());
    prepare_system();
    leave();
    match open() {
        Ok(port) => {
            let _ = rustix::io::write(&tell, &[0]);
            drop(tell);
            serve(port)
        }
        Err((code, why)) => {
            let _ = rustix::io::write(&tell, &[&[code], why.as_bytes()].concat());
            i32::from(code)
        }
    }
}

/// Leaves the process that started the guest, and serves in the guest's root as soon as there is a port. What it runs has this environment.
pub(crate) fn in_guest(environment: Vec<Vec<u8>>) -> i32 {
    prepare_system();
    leave();
    loop {
        match port::open(true) {
            Ok(port) => return run(Agent::new(port, environment)),
            // The system is young: what has the port may come yet. Belljar's patience is the limit.
            Err(NoPort::Lacking(_) | NoPort::Unopened(_)) => std::thread::sleep(PORT_AGAIN),
        }
    }
}

fn open() -> Result<Port, (u8, String)> {
    port::open(true).map_err(|error| match error {
        NoPort::Lacking(why) => (LACKING, why),
        NoPort::Unopened(why) => (UNOPENED, why),
    })
}

fn serve(port: Port) -> i32 {
    run(Agent::new(port, environment()))
}

pub(crate) fn run(agent: Result<Agent, Errno>) -> i32 {
    match agent {
        Ok(agent) => {
            agent.run();
            0
        }
        Err(errno) => {
            text::say(&format!("serve: {}", text::errno(errno)));
            1
        }
    }
}

pub(crate) fn environment() -> Vec<Vec<u8>> {
    std::env::vars_os()
        .filter(|(key, _)| OF_THE_SHELL.iter().all(|of_the_shell| key != of_the_shell))
        .map(|(key, value)| [key.into_vec(), value.into_vec()].join(&b'='))
        .collect()
}

/// Goes on from a copy of the program in memory, so that the file system it was started from can be unmounted.
/// Where that is not possible, the agent goes on as it is.
fn from_memory(tell: &OwnedFd) {
    let copy = || -> Result<OwnedFd, Errno> {
        let program = fs::read("/proc/self/exe").map_err(|_| Errno::NOENT)?;
        let copy = rustix::fs::memfd_create("belljar-agent", MemfdFlags::CLOEXEC)?;
        let mut rest = program.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::write(&copy, rest)?;
            rest = &rest[written..];
        }
        Ok(copy)
    };
    need_proc();
    let Ok(copy) = copy() else { return };
    let argv = sys::c_strings(vec![
        b"belljar-agent".to_vec(),
        b"serve".to_vec(),
        b"--daemon".to_vec(),
        tell.as_raw_fd().to_string().into_bytes(),
    ]);
    let env = sys::own_environment();
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", copy.as_raw_fd())) else {
        return;
    };
    let _ = rustix::io::fcntl_setfd(tell, FdFlags::empty());
    sys::execve(&path, &Strings::new(&argv), &Strings::new(&env));
    let _ = rustix::io::fcntl_setfd(tell, FdFlags::CLOEXEC);
}

pub(crate) fn need_proc() {
    if fs::exists("/proc/self").unwrap_or(false) {
        return;
    }
    let _ = mounts::make_directory("/proc");
    let _ = mounts::mount("proc", "/proc", "proc", MountFlags::empty(), "");
}

/// A bare shell of an initramfs may have nothing mounted: without /sys no port is found by its name.
fn prepare_system() {
    need_proc();
    if !fs::exists("/sys/class").unwrap_or(false) {
        let _ = mounts::make_directory("/sys");
        let _ = mounts::mount("sysfs", "/sys", "sysfs", MountFlags::empty(), "");
    }
    // Without it every script's `>/dev/null` fills a file.
    if !fs::exists("/dev/null").unwrap_or(false) {
        let _ = mounts::make_directory("/dev");
        let _ = mounts::mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755");
    }
}

/// Leaves the terminal, the shell's directory and the service's control group, and is spared when memory runs out.
fn leave() {
    let _ = rustix::thread::set_name(c"belljar-agent");
    let _ = rustix::process::chdir("/");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    protect();
    leave_groups();
    silence();
}

/// Has its standard streams lead nowhere.
pub(crate) fn silence() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nothing = rustix::fs::open("/dev/null", flags, Mode::empty())
        .or_else(|_| rustix::fs::memfd_create("null", MemfdFlags::CLOEXEC));
    if let Ok(nothing) = nothing {
        let _ = rustix::stdio::dup2_stdin(&nothing);
        let _ = rustix::stdio::dup2_stdout(&nothing);
        let _ = rustix::stdio::dup2_stderr(&nothing);
    }
}

/// Goes to the topmost control groups: a service manager ends everything in that of the login on the console, and puts what ran before it
/// into its own.
pub(crate) fn leave_groups() {
    if let Ok(groups) = fs::read_to_string("/proc/self/cgroup") {
        for line in groups.lines() {
            let controllers = line.split(':').nth(1).unwrap_or_default();
            let name = controllers.trim_start_matches("name=");
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                let at = if name.is_empty() {
                    format!("{root}/cgroup.procs")
                } else {
                    format!("{root}/{name}/cgroup.procs")
                };
                let _ = write_existing(&at, b"0");
            }
        }
    }
}

/// The agent answers when the guest is busy, and goes last when its memory runs out.
///
/// It goes before all that its own work in a copy has the guest's services do (the clock, mounts, the network card): they have that to do
/// beside the command, which need not wait for it.
pub(crate) fn protect() {
    let _ = write_existing("/proc/self/oom_score_adj", b"-1000");
    let _ = rustix::process::setpriority_process(None, -20);
}

/// Writes to a file that the kernel offers, without making one where it does not.
fn write_existing(path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file.as_fd(), bytes).map(drop)
}
