//! How things end.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{event::Phase, exit_code};

/// What became of one attempt. `Pass` needs a record that the guest wrote for this very attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "detail")]
pub enum Verdict {
    /// Exit code 0, vouched for by the attempt's nonce.
    Pass,
    /// The command ended in any other way of its own.
    Fail(Exit),
    /// The test says that it does not apply here.
    Skip(String),
    /// A deadline passed in this phase.
    Timeout(Phase),
    /// The guest died, panicked or hung.
    Crash(Crash),
    /// Belljar, or the host, could not do its part.
    Error(Fault),
}

impl Verdict {
    /// The verdict on a command that ended with `exit`.
    #[must_use]
    pub fn of_exit(exit: Exit) -> Self {
        match exit {
            Exit::Code(0) => Self::Pass,
            other => Self::Fail(other),
        }
    }

    /// With which code `belljar run` exits.
    #[must_use]
    pub fn run_exit_code(&self) -> u8 {
        match self {
            Self::Pass => exit_code::OK,
            // Nothing but a guard fails a command that has succeeded.
            Self::Fail(Exit::Code(exit_code::OK)) => exit_code::GUARD,
            Self::Fail(Exit::Code(code)) => *code,
            Self::Fail(Exit::Signal { number, .. }) => exit_code::for_signal(*number),
            Self::Skip(_) => 77,
            Self::Timeout(_) => exit_code::TIMEOUT,
            Self::Crash(_) => exit_code::GUEST_DIED,
            Self::Error(Fault::Interrupted { signal }) => exit_code::for_signal(*signal),
            Self::Error(Fault::OutputClosed) => exit_code::for_signal(13),
            Self::Error(Fault::Host { .. }) => exit_code::CANNOT_RUN,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// It was killed.
    Signal {
        /// Linux signal number.
        number: i32,
        /// Whether the guest's kernel says that it dumped core.
        core: bool,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { number, core } => {
                match signal_name(*number) {
                    Some(name) => write!(f, "killed by {name} (signal {number})")?,
                    None => write!(f, "killed by signal {number}")?,
                }
                if *core {
                    f.write_str(", core dumped")?;
                }
                Ok(())
            }
        }
    }
}

/// The name of a Linux signal, as on every architecture that Belljar runs on (signal(7)).
#[must_use]
pub fn signal_name(number: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(number).ok().and_then(|n| n.checked_sub(1)).and_then(|n| NAMES.get(n)).copied()
}

/// How the guest was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// What kind of end.
    pub kind: CrashKind,
    /// What was seen, such as the kernel's own line.
    pub seen: String,
    /// In which phase.
    pub phase: Phase,
}

/// The kinds of a guest's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashKind {
    /// The kernel panicked.
    Panic,
    /// The kernel reported an oops, a BUG, a lockup, a stall.
    Oops,
    /// The guest powered itself off.
    PowerOff,
    /// The guest restarted unasked.
    Reboot,
    /// The guest did not feed its watchdog in time, which then reset the machine.
    Watchdog,
    /// Nothing was heard from the guest, or its session broke.
    Silent,
    /// QEMU itself ended.
    Qemu,
    /// The container ended.
    Container,
    /// The boot came to an end that is none: a maintenance shell, a boot loader's prompt.
    BootFailed,
}

impl fmt::Display for CrashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic => "the guest's kernel panicked",
            Self::Oops => "the guest's kernel reported a fault",
            Self::PowerOff => "the guest powered off",
            Self::Reboot => "the guest rebooted unasked",
            Self::Watchdog => "the guest's watchdog bit",
            Self::Silent => "the guest stopped answering",
            Self::Qemu => "QEMU ended",
            Self::Container => "the container ended",
            Self::BootFailed => "the guest did not boot",
        })
    }
}

/// Why Belljar could not do its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Something on the host, or in what was asked.
    Host {
        /// What was attempted, what happened, what to do next.
        message: String,
    },
    /// A person or a CI server ended the run.
    Interrupted {
        /// The signal that did.
        signal: i32,
    },
    /// Whoever read the command's output is gone.
    OutputClosed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exit_code_zero_passes() {
        assert_eq!(Verdict::of_exit(Exit::Code(0)), Verdict::Pass);
        for code in 1..=255 {
            assert_eq!(Verdict::of_exit(Exit::Code(code)).run_exit_code(), code);
        }
        let killed = Verdict::of_exit(Exit::Signal { number: 9, core: false });
        assert_eq!(killed.run_exit_code(), 137);
        assert_ne!(killed, Verdict::Pass);
        assert_eq!(Verdict::Fail(Exit::Code(0)).run_exit_code(), exit_code::GUARD);
    }

    #[test]
    fn signals_are_named() {
        assert_eq!(Exit::Signal { number: 11, core: true }.to_string(), "killed by SIGSEGV (signal 11), core dumped");
        assert_eq!(Exit::Signal { number: 35, core: false }.to_string(), "killed by signal 35");
        assert_eq!(signal_name(31), Some("SIGSYS"));
        assert_eq!(signal_name(0), None);
        assert_eq!(signal_name(-5), None);
    }
}
