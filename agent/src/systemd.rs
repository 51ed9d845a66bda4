//! What belongs to the guest's systemd, where that is the first process: its units and their processes, which no test has left. What came during a test is
//! stopped by systemd itself, which would call it failed if it were killed.

mod demand;

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use belljar_proto::message::MAX_NAMED;
use rustix::process::getpid;
use serde::{Deserialize, Serialize};

use crate::{modules, sys};

/// How long an answer of systemd's may take; without KVM the question alone takes a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How long units may take to stop before they are killed.
const STOPPING: Duration = Duration::from_secs(8);
/// How long units may take to be gone when their processes were killed, and how often is looked.
const KILLED: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);
/// Most bytes of an answer.
const MOST: usize = 1 << 20;
/// Units that a test starts. Mounts are looked at by themselves, and the others only order what there is.
const KINDS: &[&str] = &["service", "scope", "socket", "timer", "path"];
/// Units without which the system is not what it was, whatever else a test is about.
const CORE: &[&str] = &[
    "sysinit.target",
    "basic.target",
    "multi-user.target",
    "graphical.target",
    "systemd-journald.service",
    "dbus.service",
    "dbus-broker.service",
];
/// What logind keeps of a shutdown that is to come.
const SCHEDULED: &str = "/run/systemd/shutdown/scheduled";
/// What `sd_booted(3)` goes by.
const BOOTED: &str = "/run/systemd/system";

/// What belongs to systemd when the first test begins.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct System {
    /// Its units that are not inactive, or have something to do; none where it did not say.
    units: Option<HashSet<String>>,
    /// Those of them that ran and are expected to.
    running: HashSet<String>,
    /// Control groups of its processes.
    groups: HashSet<String>,
}

/// What a test has left of units.
#[derive(Debug, Default)]
pub(crate) struct Units {
    /// Those that were stopped.
    pub(crate) stopped: Vec<String>,
    /// Those of the system that do not run any more.
    pub(crate) gone: Vec<String>,
    /// Why the guest is of no more use.
    pub(crate) left: Vec<String>,
}

/// A unit as `systemctl list-units` has it.
#[derive(Debug, PartialEq, Eq)]
struct Unit<'a> {
    name: &'a str,
    active: &'a str,
}

impl Unit<'_> {
    fn is_up(&self) -> bool {
        !matches!(self.active, "inactive" | "failed")
    }

    fn may_be_a_tests(&self) -> bool {
        let kind = self.name.rsplit_once('.').map(|(_, kind)| kind);
        self.name != "init.scope" && kind.is_some_and(|kind| KINDS.contains(&kind))
    }
}

/// The lines of `systemctl list-units --plain --no-legend`, before which older versions put a mark.
fn units(answer: &str) -> Vec<Unit<'_>> {
    let unit = |line| {
        let mut words = str::split_ascii_whitespace(line).skip_while(|word: &&str| !word.contains('.'));
        let (name, _load, active) = (words.next()?, words.next()?, words.next()?);
        Some(Unit { name, active })
    };
    answer.lines().filter_map(unit).collect()
}

impl System {
    /// What there is now; none where systemd is not the first process.
    pub(crate) fn now() -> Option<Self> {
        if !is_first_process() {
            return None;
        }
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let shared = [group(getpid().as_raw_nonzero().get()), group(1)];
        let groups = numbers.filter_map(group).filter(|group| !is_everybodys(group, &shared));
        let groups = groups.collect();
        let Some((units, running)) = known() else { return Some(Self { groups, ..Self::default() }) };
        Some(Self { units: Some(units), running, groups })
    }

    /// Whether a process is one of a unit that was there: systemd may start it anew.
    pub(crate) fn has(&self, pid: i32, parent: i32) -> bool {
        let in_group = || group(pid).is_some_and(|group| self.has_group(&group));
        in_group() || (parent == 1 && is_of_systemd(pid))
    }

    fn has_group(&self, group: &str) -> bool {
        // A service may make groups below its own.
        self.groups
            .iter()
            .any(|own| group.strip_prefix(own.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/')))
    }

    /// Stops what came since, and says what is not as it was.
    pub(crate) fn restore(&mut self) -> Units {
        let mut found = Units::default();
        if !is_first_process() {
            found.left.push("another first process than systemd".to_owned());
            return found;
        }
        match state() {
            None => {
                found.left.push("a systemd that does not say how the system stands".to_owned());
                return found;
            }
            Some(state) if state == "stopping" || state == "maintenance" => {
                found.left.push(format!("the system in the state {state}, as systemd calls it"));
                return found;
            }
            Some(_) => {}
        }
        if fs::exists(SCHEDULED).unwrap_or(false) || is_about_to_end() {
            found.left.push("a shutdown of the system that is to come".to_owned());
            return found;
        }
        let (Some(known), Some(answer)) = (&self.units, list()) else {
            found.left.push("a systemd that does not say which units there are".to_owned());
            return found;
        };
        let now = units(&answer);
        let is_gone = |name: &&&str| known.contains(**name) && !now.iter().any(|u| u.name == **name && u.is_up());
        if let Some(name) = CORE.iter().find(is_gone) {
            found.left.push(format!("the system without {name}"));
            return found;
        }
        let how = |name: &String| match now.iter().find(|unit| unit.name == name) {
            Some(unit) if unit.is_up() => None,
            Some(unit) if unit.active == "failed" => Some(format!("{name} (failed)")),
            _ => Some(name.clone()),
        };
        // What it started for somebody and nobody needs any more is no test's doing, and not told again.
        let ended: Vec<&str> =
            self.running.iter().filter(|name| how(name).as_ref() == Some(name)).map(|n| &**n).collect();
        let ended = ended_by_themselves(&ended, |name| now.iter().any(|unit| unit.name == name && unit.is_up()));
        self.running.retain(|name| !ended.contains(name));
        found.gone = self.running.iter().filter_map(how).collect();
        // Told each time: the next test runs without them as this one did, and its result may be of that.
        found.gone.sort_unstable();
        let came: Vec<_> = now.iter().filter(|unit| unit.may_be_a_tests() && !known.contains(unit.name)).collect();
        // Of whatever kind, it has the system degraded.
        let has_failed = |unit: &&Unit<'_>| unit.active == "failed" && !known.contains(unit.name);
        let failed: Vec<&str> = now.iter().filter(has_failed).map(|unit| unit.name).collect();
        let up: Vec<&str> = came.iter().filter(|unit| unit.is_up()).map(|unit| unit.name).collect();
        found
            .left
            .extend(stop(&up).into_iter().take(MAX_NAMED).map(|unit| format!("the unit {unit}, which does not stop")));
        if !up.is_empty() || !failed.is_empty() {
            // One that has stopped well is not there any more, which is no fault.
            let names = up.iter().chain(&failed).copied();
            drop(ask(&["reset-failed", "--"].into_iter().chain(names).collect::<Vec<_>>(), ANSWER));
        }
        found.stopped = up.iter().map(|name| (*name).to_owned()).collect();
        found.stopped.extend(failed.iter().map(|name| format!("{name} (failed)")));
        found
    }
}

/// Those of these units that have ended by themselves.
fn ended_by_themselves(names: &[&str], is_up: impl Fn(&str) -> bool) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let words: Vec<&str> =
        ["show", "--no-pager", demand::PROPERTIES, "--"].into_iter().chain(names.iter().copied()).collect();
    // What it does not say of itself is told of it.
    let answer = ask(&words, ANSWER).unwrap_or_default();
    let ended = demand::ended_by_themselves(&answer, is_up).into_iter().filter(|name| names.contains(name));
    ended.map(str::to_owned).collect()
}

/// Stops units, and kills what does not stop in time. Gives those that are still there.
fn stop(names: &[&str]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let with =
        |words: &[&'static str]| words.iter().copied().chain(["--"]).chain(names.iter().copied()).collect::<Vec<_>>();
    drop(ask(&with(&["stop"]), STOPPING));
    let still = || {
        let answer = list().unwrap_or_default();
        let up = units(&answer).into_iter().filter(|unit| names.contains(&unit.name) && unit.is_up());
        up.map(|unit| unit.name.to_owned()).collect::<Vec<_>>()
    };
    if still().is_empty() {
        return Vec::new();
    }
    drop(ask(&with(&["kill", "--signal=SIGKILL"]), ANSWER));
    // To be stopped is still what systemd was asked for.
    let until = Instant::now() + KILLED;
    loop {
        let still = still();
        if still.is_empty() || Instant::now() >= until {
            return still;
        }
        sys::poll(&mut [], Some(AGAIN));
    }
}

/// By its name and what it leaves, as whoever asks whether a test has the systemd that it needs.
pub(crate) fn is_first_process() -> bool {
    let name = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    name.trim_ascii_end() == "systemd" && fs::exists(BOOTED).unwrap_or(false)
}

/// One of the forks that systemd makes of itself.
fn is_of_systemd(pid: i32) -> bool {
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    program(1).is_some_and(|of_first| of_first.ends_with("systemd/systemd") && program(pid) == Some(of_first))
}

/// Units that are there, with those that are to come; and which of them run. A scope ends with its processes.
fn known() -> Option<(HashSet<String>, HashSet<String>)> {
    let (list, jobs) = (list()?, ask(&["list-jobs", "--plain", "--no-legend", "--full", "--no-pager"], ANSWER)?);
    let units = units(&list);
    let there = units.iter().filter(|unit| unit.active != "inactive").map(|unit| unit.name);
    let to_come = jobs.lines().filter_map(|line| line.split_ascii_whitespace().nth(1));
    let runs = |unit: &&Unit<'_>| unit.active == "active" && unit.may_be_a_tests() && !unit.name.ends_with(".scope");
    let running = units.iter().filter(runs).map(|unit| unit.name.to_owned());
    Some((there.chain(to_come).map(str::to_owned).collect(), running.collect()))
}

/// How the system stands, in systemctl's words. systemd does not answer for a moment when it executes itself anew.
fn state() -> Option<String> {
    let until = Instant::now() + ANSWER;
    loop {
        let said = ask(&["is-system-running"], until.saturating_duration_since(Instant::now()))?;
        let said = said.trim_ascii();
        if !matches!(said, "" | "offline" | "unknown") {
            return Some(said.to_owned());
        }
        if Instant::now() >= until {
            return None;
        }
        sys::poll(&mut [], Some(AGAIN));
    }
}

/// Whether logind has been asked to end the system, and waits for who delays that (org.freedesktop.login1(5)); no where there is none.
fn is_about_to_end() -> bool {
    let words = [
        "--auto-start=no",
        "get-property",
        "org.freedesktop.login1",
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
        "PreparingForShutdown",
    ];
    ask_by("busctl", &words, ANSWER).is_some_and(|said| said.trim_ascii() == "b true")
}

fn list() -> Option<String> {
    ask(&["list-units", "--all", "--plain", "--no-legend", "--full", "--no-pager"], ANSWER)
}

/// What systemctl writes; none if it took longer, or does not run.
fn ask(words: &[&str], limit: Duration) -> Option<String> {
    ask_by("systemctl", words, limit)
}

/// The same for another program.
fn ask_by(program: &str, words: &[&str], limit: Duration) -> Option<String> {
    let program = modules::find_program(program)?;
    let mut command = Command::new(program);
    command
        .args(words)
        .env_clear()
        .env("LC_ALL", "C")
        .env("SYSTEMD_COLORS", "0")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let answer = hear(&mut child, Instant::now() + limit);
    if answer.is_none() {
        let _ = child.kill();
    }
    let _ = child.wait();
    answer
}

/// What a process writes until it closes its output; none if that takes longer.
fn hear(child: &mut Child, until: Instant) -> Option<String> {
    let mut pipe = child.stdout.take()?;
    let mut answer = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [sys::poll_fd(&pipe, libc::POLLIN)];
        sys::poll(&mut fds, Some(left));
        if fds[0].revents == 0 {
            if left.is_zero() {
                return None;
            }
            continue;
        }
        match pipe.read(&mut buffer).ok()? {
            0 => return Some(String::from_utf8_lossy(&answer).into_owned()),
            read => answer.extend_from_slice(&buffer[..read.min(MOST.saturating_sub(answer.len()))]),
        }
    }
}

/// The control group of systemd's in which a process is (cgroups(7)).
fn group(pid: i32) -> Option<String> {
    of_groups(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?).map(str::to_owned)
}

/// That of its own hierarchy beside those of the first version, else that of the second.
fn of_groups(text: &str) -> Option<&str> {
    let of =
        |begin: &str| text.lines().find_map(|line| line.split_once(':').and_then(|(_, rest)| rest.strip_prefix(begin)));
    of("name=systemd:").or_else(|| of(":"))
}

/// Whether one of these is in this group or below it: what is there is no unit's.
fn is_everybodys(group: &str, of: &[Option<String>]) -> bool {
    let holds = |own: &String| {
        own.strip_prefix(group.trim_end_matches('/')).is_some_and(|r| r.is_empty() || r.starts_with('/'))
    };
    of.iter().flatten().any(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_with_and_without_marks() {
        let answer = "dbus.service loaded active running D-Bus 1.2\n● bad.service loaded failed failed Bad\n\n  x.timer loaded inactive dead\nodd\n";
        let read: Vec<_> = units(answer).iter().map(|unit| (unit.name, unit.active, unit.is_up())).collect();
        assert_eq!(
            read,
            [("dbus.service", "active", true), ("bad.service", "failed", false), ("x.timer", "inactive", false)]
        );
        for (name, may) in
            [("a.service", true), ("init.scope", false), ("x.mount", false), ("service", false), ("a.b.path", true)]
        {
            assert_eq!(Unit { name, active: "active" }.may_be_a_tests(), may, "{name}");
        }
    }

    #[test]
    fn a_process_belongs_to_systemd_by_its_group() {
        let hybrid = "9:name=systemd:/c/system.slice/dbus.service\n8:pids:/c\n0::/c\n";
        assert_eq!(of_groups(hybrid), Some("/c/system.slice/dbus.service"));
        assert_eq!(of_groups("0::/system.slice/dbus.service\n"), Some("/system.slice/dbus.service"));
        assert_eq!(of_groups("8:pids:/c\n"), None);
        let groups = HashSet::from(["/s/dbus.service".to_owned()]);
        let system = System { groups, ..System::default() };
        for (group, has) in
            [("/s/dbus.service", true), ("/s/dbus.service/x", true), ("/s/dbus.service2", false), ("/s", false)]
        {
            assert_eq!(system.has_group(group), has, "{group}");
        }
        let own = [Some("/c/init.scope".to_owned()), None];
        for (group, is) in
            [("/", true), ("/c", true), ("/c/init.scope", true), ("/c/init", false), ("/c/system.slice/x", false)]
        {
            assert_eq!(is_everybodys(group, &own), is, "{group}");
        }
    }
}
