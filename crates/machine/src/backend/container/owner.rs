//! Whose a container is: what Belljar writes on everything that it has an engine make, and by which it knows later that nobody is left who wants it.

use std::{fs, process};

use crate::proc_stat;

/// The label that says whose it is.
pub(crate) const OWNER: &str = "belljar.owner";
/// The label with the process that had it made, for a person.
pub(crate) const PID: &str = "belljar.pid";
/// The label with the directory of the guest's logs, for a person.
pub(crate) const RUN: &str = "belljar.run";

/// What the name of each container of Belljar's begins with.
pub(crate) const NAMED: &str = "belljar-";

/// One process of Belljar, told from all others: those of other hosts, of earlier boots, in other namespaces of processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The host, its boot, and the namespace in which the number counts.
    place: String,
    pid: u32,
    /// When the process began, in ticks since the boot.
    start: u64,
}

/// What became of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It runs.
    Alive,
    /// It has ended.
    Gone,
    /// It is not of this place, and so nothing is known of it.
    Unknown,
}

impl Owner {
    /// This process; none where the system does not say who it is.
    pub(crate) fn this() -> Option<Self> {
        let pid = process::id();
        Some(Self { place: place()?, pid, start: start_of(pid)? })
    }

    /// As the value of a label.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}/{}", self.place, self.pid, self.start)
    }

    /// A name that no other container has, which says whose it is: where labels are not seen, in the arguments of processes.
    pub(crate) fn name(&self, random: &str) -> String {
        let namespace = self.place.rsplit('/').next().unwrap_or_default();
        format!("{NAMED}{}-{}-{namespace}-{random}", self.pid, self.start)
    }

    /// Whose a container of this name is, if it is a name of Belljar's and of this boot.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(NAMED)?.split('-');
        let (pid, start, namespace) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        (parts.count() == 1).then_some(())?;
        let (boot, _) = place()?.rsplit_once('/').map(|(boot, here)| (boot.to_owned(), here.to_owned()))?;
        Some(Self { place: format!("{boot}/{namespace}"), pid, start })
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What a label says.
    pub(crate) fn parse(label: &str) -> Option<Self> {
        let (rest, start) = label.rsplit_once('/')?;
        let (place, pid) = rest.rsplit_once('/')?;
        Some(Self { place: place.to_owned(), pid: pid.parse().ok()?, start: start.parse().ok()? })
    }

    /// What became of it.
    pub(crate) fn fate(&self) -> Fate {
        match place() {
            Some(here) if here == self.place => match start_of(self.pid) {
                Some(start) if start == self.start => Fate::Alive,
                _ => Fate::Gone,
            },
            _ => Fate::Unknown,
        }
    }
}

/// This boot of this host, and the namespace of this process's number.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let namespace: String = namespace.display().to_string().chars().filter(char::is_ascii_digit).collect();
    Some(format!("{}/{namespace}", boot.trim()))
}

/// When a process began, in ticks since the boot.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = proc_stat::behind_name(&stat)?;
    // One that nobody has waited for yet has ended.
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_known_again() {
        let this = Owner::this().unwrap();
        assert_eq!(Owner::parse(&this.label()), Some(this.clone()));
        assert_eq!(this.fate(), Fate::Alive);
        let later = Owner { start: this.start + 1, ..this.clone() };
        assert_eq!(later.fate(), Fate::Gone, "another process has its number");
        let elsewhere = Owner { place: "x/1".into(), ..this };
        assert_eq!(elsewhere.fate(), Fate::Unknown);
        for text in ["", "1/2", "a/b/c", "/x/1"] {
            assert!(Owner::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_name_says_whose_it_is() {
        let this = Owner::this().unwrap();
        assert_eq!(Owner::of_name(&this.name("0a1b")), Some(this.clone()));
        let elsewhere = this.name("0a1b").replace(this.place.rsplit('/').next().unwrap(), "7");
        assert_eq!(Owner::of_name(&elsewhere).map(|owner| owner.fate()), Some(Fate::Unknown));
        for name in
            ["", "belljar-", "belljar-0a1b2c", "belljar-1-2-3", "belljar-1-2-3-4-5", "belljar-a-2-3-4", "x-1-2-3-4"]
        {
            assert!(Owner::of_name(name).is_none(), "{name}");
        }
    }

    #[test]
    fn a_process_that_ended_is_gone() {
        let mut child = process::Command::new("true").spawn().unwrap();
        let (place, pid) = (place().unwrap(), child.id());
        let start = start_of(pid).unwrap_or(7);
        child.wait().unwrap();
        assert_eq!(Owner { place, pid, start }.fate(), Fate::Gone);
    }
}
