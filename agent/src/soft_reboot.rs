//! A new beginning of all programs but the agent, by systemd, under the kernel that runs (systemd-soft-reboot.service(8)).
//!
//! The agent is spared, as storage daemons are. When the old programs are gone is told by one that is not: a process of its own, which does nothing.

use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use crate::{modules, sys, systemd, text};

/// Most bytes of what systemd says that are told.
const MOST_SAID: usize = 1024;
/// The first version of systemd that has it.
const OLDEST: u32 = 254;
const NO_SYSTEMD: &str = "only systemd does that, and it is not the guest's first process; take reboot";
const NO_SYSTEMCTL: &str = "there is no systemctl in the guest";

/// One that is under way.
#[derive(Debug)]
pub(crate) struct SoftReboot {
    /// The process that goes with the old programs; none when it has.
    witness: Option<Pid>,
}

impl SoftReboot {
    /// Makes this process one that is spared, and another that is not.
    ///
    /// # Errors
    /// Why it cannot be, for a person.
    pub(crate) fn begin() -> Result<Self, String> {
        if !systemd::is_first_process() {
            return Err(NO_SYSTEMD.to_owned());
        }
        let witness = match sys::fork().map_err(|errno| format!("fork: {}", text::errno(errno)))? {
            None => {
                let _ = rustix::thread::set_name(c"belljar-witness");
                sys::close_others(-1);
                loop {
                    sys::poll(&mut [], None);
                }
            }
            Some(witness) => witness,
        };
        sys::be_spared(true);
        Ok(Self { witness: Some(witness) })
    }

    /// A child has ended.
    pub(crate) fn ended(&mut self, pid: Pid) {
        self.witness = self.witness.filter(|witness| *witness != pid);
    }

    /// Whether the old programs are still there.
    pub(crate) fn is_going_down(&self) -> bool {
        self.witness.is_some()
    }

    /// It has come to its end, or is not to be: this process is like others again, and in the root of the first one, which may be another.
    pub(crate) fn end(self) {
        if let Some(witness) = self.witness {
            let _ = sys::kill(witness.as_raw_nonzero().get(), libc::SIGKILL);
        }
        sys::be_spared(false);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(root) = rustix::fs::open("/proc/1/root", flags, Mode::empty()) {
            let _ = rustix::process::fchdir(root).and_then(|()| rustix::process::chroot("."));
        }
    }
}

/// Whether systemd can do it, as far as that is to be seen before.
///
/// # Errors
/// Why it cannot, for a person.
pub(crate) fn check() -> Result<(), String> {
    if !systemd::is_first_process() {
        return Err(NO_SYSTEMD.to_owned());
    }
    let program = modules::find_program("systemctl").ok_or(NO_SYSTEMCTL)?;
    let said = Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let said = said.map_err(|error| format!("start systemctl: {}", text::io(&error)))?.stdout;
    match version(&text::lossy(&said)) {
        Some(version) if version < OLDEST => {
            Err(format!("this guest has systemd {version}, and there are soft reboots from {OLDEST} on; take reboot"))
        }
        // What it is not known of is asked.
        _ => Ok(()),
    }
}

/// What systemctl(1) says first: `systemd 257 (257.9-1)`.
fn version(said: &str) -> Option<u32> {
    let number = said.strip_prefix("systemd ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Asks systemd for it; gives why it is not to be, or nothing.
pub(crate) fn ask() -> Vec<u8> {
    let Some(program) = modules::find_program("systemctl") else {
        return NO_SYSTEMCTL.into();
    };
    let asked = Command::new(program).args(["--no-block", "soft-reboot"]).stdin(Stdio::null()).output();
    match asked {
        Ok(output) if output.status.success() => Vec::new(),
        Ok(output) => {
            let said = &output.stderr[..output.stderr.len().min(MOST_SAID)];
            format!("systemctl soft-reboot, which there is from systemd {OLDEST} on: {}", text::lossy(said).trim())
                .into_bytes()
        }
        Err(error) => format!("start systemctl: {}", text::io(&error)).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_systemd_is_read() {
        assert_eq!(version("systemd 257 (257.9-1~deb13u1)\n+PAM"), Some(257));
        assert_eq!(version("systemd 252.38-1\n"), Some(252));
        assert_eq!(version("busybox"), None);
    }
}
