//! Ending the guest.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use belljar_proto::message::{Mount, ShutdownHow};
use rustix::mount::UnmountFlags;
use rustix::process::{WaitOptions, getpid};
use rustix::system::{RebootCommand, reboot};

use crate::{modules, sys};

/// How long processes have to end by themselves.
const GRACE: Duration = Duration::from_millis(500);
/// How long writing back may take when the guest is to end.
const SYNC: Duration = Duration::from_secs(30);

/// How long services have to end after their manager has agreed to it.
const ORDERLY: Duration = Duration::from_secs(60);
/// First processes that manage nothing.
const SHELLS: &[&str] = &["ash", "bash", "busybox", "dash", "ksh", "mksh", "sh", "zsh"];

/// Ends the guest; `mounts` are shares to be unmounted first.
pub(crate) fn run(how: ShutdownHow, mounts: &[Mount]) {
    let orderly = match how {
        ShutdownHow::PowerOff => Orderly { command: RebootCommand::PowerOff, ways: &POWER_OFF },
        ShutdownHow::Reboot => Orderly { command: RebootCommand::Restart, ways: &REBOOT },
        ShutdownHow::Kexec { .. } => Orderly { command: RebootCommand::Kexec, ways: &KEXEC },
        // That ends nothing of which this process knows.
        ShutdownHow::SoftReboot => return,
        ShutdownHow::Immediate => {
            sync();
            return end(RebootCommand::PowerOff);
        }
    };
    if !getpid().is_init() {
        return ask_the_system(&orderly);
    }
    // While the shares' relays live.
    sync();
    end_processes();
    sync();
    for mount in mounts.iter().rev() {
        let _ = rustix::mount::unmount(mount.path.as_str(), UnmountFlags::empty());
    }
    end(orderly.command);
}

/// An end that the guest's services have notice of.
struct Orderly {
    /// What is done at last.
    command: RebootCommand,
    /// Who may do it, the first choice first.
    ways: &'static [(Manager, &'static str, &'static [&'static str])],
}

/// Which first process listens to a program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Systemd,
    Any,
}

const POWER_OFF: [(Manager, &str, &[&str]); 4] = [
    (Manager::Systemd, "systemctl", &["--no-block", "poweroff"]),
    (Manager::Any, "poweroff", &[]),
    (Manager::Any, "busybox", &["poweroff"]),
    (Manager::Any, "halt", &["-p"]),
];
/// The tools of others know of none, or start it without a word to the services.
const KEXEC: [(Manager, &str, &[&str]); 1] = [(Manager::Systemd, "systemctl", &["--no-block", "kexec"])];
const REBOOT: [(Manager, &str, &[&str]); 3] = [
    (Manager::Systemd, "systemctl", &["--no-block", "reboot"]),
    (Manager::Any, "reboot", &[]),
    (Manager::Any, "busybox", &["reboot"]),
];

/// As the first process: ends everything, as a signal asked for.
pub(crate) fn by_signal(command: RebootCommand) {
    end_processes();
    sync();
    end(command);
}

/// The system call; it comes back only where it is not allowed.
pub(crate) fn end(command: RebootCommand) {
    let _ = reboot(command);
}

/// In a child: through whatever manages the guest's services, if anything does.
fn ask_the_system(orderly: &Orderly) {
    let Ok(None) = sys::fork() else {
        return;
    };
    // `init=/bin/sh`: the tools would ask a shell, which does not listen.
    let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let managed = !SHELLS.contains(&first.trim_end());
    let systemd = std::fs::exists("/run/systemd/system").unwrap_or(false);
    let listens = |manager| if manager == Manager::Systemd { systemd } else { managed };
    for (_, program, args) in orderly.ways.iter().filter(|(manager, ..)| listens(*manager)) {
        let Some(program) = modules::find_program(program) else {
            continue;
        };
        let asked =
            Command::new(program).args(*args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if asked.is_ok_and(|status| status.success()) {
            // It ends this process with all others, unless it did not mean it.
            sys::poll(&mut [], Some(ORDERLY));
            break;
        }
    }
    sync();
    end(orderly.command);
    sys::exit_now(1)
}

/// Asks all processes to end, then makes them. For the first process, which is itself spared.
fn end_processes() {
    let _ = sys::kill(-1, libc::SIGTERM);
    let deadline = Instant::now() + GRACE;
    // Stopped processes would not hear the first.
    let _ = sys::kill(-1, libc::SIGCONT);
    while Instant::now() < deadline {
        match rustix::process::wait(WaitOptions::NOHANG) {
            // Nobody is left.
            Err(_) => return,
            Ok(Some(_)) => {}
            Ok(None) => sys::poll(&mut [], Some(Duration::from_millis(10))),
        }
    }
    let _ = sys::kill(-1, libc::SIGKILL);
}

/// Writes everything back, in a child: a device that hangs must not keep the guest from ending.
fn sync() {
    let Ok((done, tell)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        return;
    };
    match sys::fork() {
        Ok(None) => {
            rustix::fs::sync();
            sys::exit_now(0)
        }
        Ok(Some(_)) => {
            // Only the child has it open now: its end is the pipe's.
            drop(tell);
            sys::poll(&mut [sys::poll_fd(&done, libc::POLLIN)], Some(SYNC));
        }
        Err(_) => rustix::fs::sync(),
    }
}
