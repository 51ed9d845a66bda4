//! The processes beside QEMU that serve a guest: which there are, whether one stands still, and their end.
//!
//! A server that was stopped, or whose directory is on a file system that does not answer, looks in the guest like a command or a `sync` that
//! takes long. Only the host's kernel knows better.

use std::{
    collections::BTreeMap,
    fs, io,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::proc_stat;

/// How often it is looked whether one stands still.
pub(crate) const LOOK: Duration = Duration::from_secs(2);
/// One that is found so in this many looks one after the other stands still: a write that takes a while is none.
const LOOKS: u32 = 3;
/// How long a killed process is waited for. One that waits for a disk in the kernel ends when the disk answers, and not before.
const END: Duration = Duration::from_secs(2);

/// How a process stands that does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standstill {
    /// By a signal, or by who traces it.
    Stopped,
    /// In the kernel, for something that nothing interrupts.
    Waits,
}

impl Standstill {
    fn what(self) -> &'static str {
        match self {
            Self::Stopped => "is stopped (by SIGSTOP or a debugger); `kill -CONT` has it go on",
            Self::Waits => {
                "waits in the host's kernel for a file system that does not answer (is it on a network, or is a disk failing?)"
            }
        }
    }
}

/// One that serves.
#[derive(Debug)]
struct Process {
    what: String,
    /// How often it was found standing still, one look after the other.
    still: u32,
    told: bool,
}

/// All of a guest's. What is shared is one list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside(Arc<Mutex<BTreeMap<u32, Process>>>);

/// Dropped when the process has ended.
#[derive(Debug)]
pub(crate) struct Noted(Beside, u32);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.processes().remove(&self.1);
    }
}

impl Beside {
    fn processes(&self) -> MutexGuard<'_, BTreeMap<u32, Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a process until it is forgotten; `what` it is, for a person.
    pub(crate) fn note(&self, what: String, pid: u32) -> Noted {
        self.processes().insert(pid, Process { what, still: 0, told: false });
        Noted(self.clone(), pid)
    }

    /// Whether there is any to look at.
    pub(crate) fn is_empty(&self) -> bool {
        self.processes().is_empty()
    }

    /// Looks at each, and gives what there is to say that was not said before.
    pub(crate) fn look(&self) -> Vec<String> {
        let mut said = Vec::new();
        for (pid, process) in self.processes().iter_mut() {
            let Some(how) = standstill(*pid) else {
                (process.still, process.told) = (0, false);
                continue;
            };
            process.still = process.still.saturating_add(1);
            if process.still >= LOOKS && !std::mem::replace(&mut process.told, true) {
                said.push(format!("{} (process {pid}) {}; the guest waits for it", process.what, how.what()));
            }
        }
        said
    }

    /// What to add to what is said of something that took too long: each that stands still now.
    pub(crate) fn blame(&self) -> String {
        let still = |(pid, process): (&u32, &Process)| {
            standstill(*pid).map(|how| format!("; {} (process {pid}) {}", process.what, how.what()))
        };
        self.processes().iter().filter_map(still).collect()
    }
}

/// How a process stands, if one of its threads does (`/proc/PID/task/TID/stat`, proc_pid_stat(5)).
pub(crate) fn standstill(pid: u32) -> Option<Standstill> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    threads.filter_map(|thread| of_stat(&fs::read_to_string(thread.path().join("stat")).ok()?)).next()
}

fn of_stat(text: &str) -> Option<Standstill> {
    match proc_stat::behind_name(text)?.next()? {
        "T" | "t" => Some(Standstill::Stopped),
        "D" => Some(Standstill::Waits),
        _ => None,
    }
}

/// Kills a process and takes its end. One that does not end for what it waits for in the kernel is left to a thread that takes its end then.
pub(crate) fn end(mut child: Child) {
    let _ = child.kill();
    if matches!(ended_soon(&mut child), Ok(false)) {
        std::thread::spawn(move || child.wait());
    }
}

/// Whether it has ended within [`END`].
fn ended_soon(child: &mut Child) -> io::Result<bool> {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(200);
    while child.try_wait()?.is_none() {
        if waited >= END {
            return Ok(false);
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn the_state_is_read_behind_the_name() {
        assert_eq!(of_stat("12 (a) T (b) S 1 2"), None);
        assert_eq!(of_stat("12 (a b) T 1 2"), Some(Standstill::Stopped));
        assert_eq!(of_stat("12 (a)) D 1 2"), Some(Standstill::Waits));
        assert_eq!(of_stat(""), None);
        assert_eq!(of_stat("12 (a)"), None);
    }

    #[test]
    fn one_that_is_stopped_is_told_of_once_until_it_goes_on() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        let send = |signal| {
            kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
            let wanted = signal == Signal::STOP;
            while (standstill(pid) == Some(Standstill::Stopped)) != wanted {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let beside = Beside::default();
        assert!(beside.is_empty());
        let noted = beside.note("the server of the workspace".into(), pid);
        let looks = |count: u32| -> Vec<String> { (0..count).flat_map(|_| beside.look()).collect() };
        assert_eq!(looks(10), [""; 0]);
        assert_eq!(beside.blame(), "");
        for _ in 0..2 {
            send(Signal::STOP);
            assert_eq!(looks(LOOKS - 1), [""; 0], "a moment is none");
            let said = looks(10);
            assert!(said.len() == 1 && said[0].contains(&format!("(process {pid}) is stopped")), "{said:?}");
            assert!(beside.blame().starts_with("; the server of the workspace (process "), "{}", beside.blame());
            send(Signal::CONT);
            assert_eq!(looks(10), [""; 0]);
        }
        send(Signal::STOP);
        drop(noted);
        assert_eq!((looks(10), beside.blame()), (Vec::new(), String::new()));
        // A stopped one is killed all the same.
        end(child);
        assert_eq!(standstill(pid), None);
    }
}
