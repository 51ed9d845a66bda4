//! Processes of containers that their engine knows nothing of any more. podman that is killed between making a container and starting it leaves a process
//! that waits for its start for ever, with the one that watches it (`conmon`), and no record. What is left of it to tell whose it is
//! is the container's name, among the arguments of the one that watches.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::owner::{Fate, Owner};
use crate::proc_stat;

/// The program that watches a container for podman, and the option with which it is told the container's name.
const WATCHER: &str = "conmon";
const WATCHED: &str = "-n";
/// Longest arguments that are read.
const MOST: u64 = 64 << 10;
/// How long a call of an engine may go on by itself when its Belljar is gone, in seconds: it may be copying an image.
const CALL: f64 = 900.0;

/// A process, by its arguments.
struct Process {
    pid: Pid,
    /// The file's name of its program, as it was called.
    program: String,
    arguments: Vec<String>,
}

impl Process {
    /// The container that it watches.
    fn watched(&self) -> Option<&str> {
        let place = self.arguments.iter().position(|word| word == WATCHED)?;
        (self.program == WATCHER).then(|| self.arguments.get(place + 1).map(String::as_str)).flatten()
    }
}

/// Ends the processes of this container, if there are any.
pub(super) fn end_of_container(name: &str) {
    end(Path::new("/proc"), |watched| watched == name);
}

/// Ends those of all containers whose Belljar is gone; gives what they were.
pub(super) fn end_of_the_gone() -> Vec<String> {
    let ended = end(Path::new("/proc"), is_of_gone);
    ended
        .into_iter()
        .map(|name| format!("the processes of the container {name}, of which its engine knew nothing"))
        .collect()
}

/// For how many seconds this engine does something yet for a Belljar that is gone: of several such calls, the youngest's. What takes it too long is ended.
pub(super) fn youngest_call(engine: &Path) -> Option<f64> {
    let program = engine.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let calls = processes(Path::new("/proc")).into_iter().filter(|process| process.program == program);
    let of_gone = calls.filter(|process| process.arguments.iter().any(|word| is_of_gone(word)));
    let young = of_gone.filter_map(|process| {
        let age = age(process.pid).filter(|age| *age < CALL);
        if age.is_none() {
            kill(process.pid);
        }
        age
    });
    young.min_by(f64::total_cmp)
}

fn is_of_gone(name: &str) -> bool {
    Owner::of_name(name).is_some_and(|owner| owner.fate() == Fate::Gone)
}

/// Ends what the watchers of these containers have started, upon which they clean up and end; those that have nothing left are ended themselves.
fn end(proc: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let all = processes(proc);
    let mut ended = Vec::new();
    for watcher in &all {
        let Some(name) = watcher.watched().filter(|name| wanted(name)) else { continue };
        let children: Vec<Pid> =
            all.iter().map(|process| process.pid).filter(|&pid| parent(proc, pid) == Some(watcher.pid)).collect();
        if children.is_empty() {
            kill(watcher.pid);
        }
        children.into_iter().for_each(kill);
        ended.push(name.to_owned());
    }
    ended
}

/// Kills a process whose arguments were just read.
fn kill(pid: Pid) {
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}

fn processes(proc: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let read = |dir: PathBuf| {
        let pid = Pid::from_raw(dir.file_name()?.to_str()?.parse().ok()?)?;
        let mut bytes = Vec::new();
        fs::File::open(dir.join("cmdline")).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
        let mut words = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let program = words.next()?.rsplit('/').next()?.to_owned();
        Some(Process { pid, program, arguments: words.collect() })
    };
    entries.flatten().filter_map(|entry| read(entry.path())).collect()
}

/// The fields of `/proc/PID/stat` after the name (proc_pid_stat(5)); the first is the state.
fn fields(proc: &Path, pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read(proc.join(pid.as_raw_nonzero().to_string()).join("stat")).ok()?;
    Some(proc_stat::behind_name(&String::from_utf8_lossy(&stat))?.map(str::to_owned).collect())
}

fn parent(proc: &Path, pid: Pid) -> Option<Pid> {
    Pid::from_raw(fields(proc, pid)?.get(1)?.parse().ok()?)
}

/// For how long a process has been there, in seconds.
fn age(pid: Pid) -> Option<f64> {
    let began: f64 = fields(Path::new("/proc"), pid)?.get(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some(uptime - began / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::CommandExt as _, process::Command};

    use super::*;

    /// A process that goes by this name and has these arguments.
    fn named(program: &str, arguments: &[&str]) -> std::process::Child {
        let mut command = Command::new("sh");
        // The shell executes nothing else, so that it keeps its arguments.
        command.arg0(program).args(["-c", "while :; do read -r _ || sleep 100; done"]).args(arguments);
        command.stdin(std::process::Stdio::piped()).spawn().unwrap()
    }

    fn ended(mut child: std::process::Child) -> bool {
        for _ in 0..200 {
            if child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        false
    }

    #[test]
    fn only_the_processes_of_those_that_are_gone_are_ended() {
        let this = Owner::this().unwrap();
        let mut gone = Command::new("true").spawn().unwrap();
        let (place, _) = this
            .label()
            .rsplit_once('/')
            .map(|(rest, _)| rest.rsplit_once('/').unwrap())
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let owner = Owner::parse(&format!("{place}/{}/1", gone.id())).unwrap();
        gone.wait().unwrap();
        let (ours, theirs) = (this.name("01"), owner.name("02"));
        let stray = named("/usr/bin/conmon", &["-c", "x", "-n", &theirs]);
        let other = named("/usr/bin/conmon", &["-c", "x", "-n", &ours]);
        let no_watcher = named("/usr/bin/vi", &["-n", &theirs]);
        let said = end_of_the_gone();
        assert!(
            said.iter().any(|what| what.contains(&theirs)) && !said.iter().any(|what| what.contains(&ours)),
            "{said:?}"
        );
        assert!(ended(stray));
        assert!(!ended(other) && !ended(no_watcher));
    }

    #[test]
    fn a_call_of_one_that_is_gone_is_seen() {
        let this = Owner::this().unwrap();
        let label = this.label();
        let (place, _) = label.rsplit_once('/').unwrap();
        let gone = Owner::parse(&format!("{place}/1")).unwrap();
        let engine = format!("belljar-test-engine-{}", std::process::id());
        let engine_path = PathBuf::from(format!("/x/{engine}"));
        let mut call = named(&engine, &["run", "--name", &this.name("01")]);
        assert_eq!(youngest_call(&engine_path), None);
        call.kill().unwrap();
        call.wait().unwrap();
        let mut call = named(&engine, &["run", "--name", &gone.name("01")]);
        let seen = (0..100).any(|_| {
            youngest_call(&engine_path).is_some_and(|age| age < 60.0) || {
                std::thread::sleep(std::time::Duration::from_millis(5));
                false
            }
        });
        assert!(seen);
        call.kill().unwrap();
        call.wait().unwrap();
    }
}
