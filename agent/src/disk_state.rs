//! Which disks the guest has, and which of them are read-only: a test may take one away from its driver, or have the kernel refuse to write to it, and the next
//! one would fail for that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use belljar_proto::message::{DiskChange, MAX_NAMED};
use serde::{Deserialize, Serialize};

use crate::disk_use::{LETTING_GO, LOOK, entries, read, serial};
use crate::sys;

/// The disks that there are, by the kernel's name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskStates(BTreeMap<String, DiskState>);

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DiskState {
    serial: String,
    /// What of it is read-only: the number of each partition, and nothing for the disk as a whole.
    read_only: BTreeSet<String>,
}

impl DiskStates {
    /// Those that there are now.
    pub(crate) fn now() -> Self {
        Self::of(Path::new("/sys/block"))
    }

    fn of(block: &Path) -> Self {
        let disks = entries(block).into_iter().filter_map(|name| {
            let dir = block.join(&name);
            if !dir.join("device").exists() {
                return None;
            }
            let is_read_only = |dir: &Path| read(&dir.join("ro")).is_some_and(|ro| ro != "0");
            let parts = entries(&dir).into_iter().map(|part| dir.join(part));
            let parts = parts.filter(|part| is_read_only(part)).filter_map(|part| read(&part.join("partition")));
            let whole = is_read_only(&dir).then(String::new);
            let read_only = parts.chain(whole).collect();
            Some((name, DiskState { serial: serial(&dir), read_only }))
        });
        Self(disks.collect())
    }

    /// What became of them since then, for the worse. One that is not there is given a moment to come back.
    pub(crate) fn changed_since(&self) -> Vec<DiskChange> {
        let until = Instant::now() + LETTING_GO;
        loop {
            let now = Self::now();
            if self.gone(&now).is_empty() || Instant::now() >= until {
                return self.changes(&now);
            }
            sys::poll(&mut [], Some(LOOK));
        }
    }

    /// Names of those that are not there under any name. A disk by several paths is there several times.
    fn gone(&self, now: &Self) -> Vec<&String> {
        let mut rest: Vec<(&String, &str)> = now.0.iter().map(|(name, disk)| (name, &*disk.serial)).collect();
        let mut take = |is_it: &dyn Fn(&(&String, &str)) -> bool| {
            let at = rest.iter().position(is_it);
            at.map(|at| rest.remove(at)).is_some()
        };
        let mut moved = Vec::new();
        // First those that have kept their names.
        for (name, was) in &self.0 {
            if !take(&|(now, serial)| *now == name && *serial == was.serial) {
                moved.push((name, was));
            }
        }
        moved.retain(|(_, was)| was.serial.is_empty() || !take(&|(_, serial)| *serial == was.serial));
        moved.into_iter().map(|(name, _)| name).collect()
    }

    fn changes(&self, now: &Self) -> Vec<DiskChange> {
        let change = |name: &String, change: String| {
            let serial = self.0.get(name).map(|was| was.serial.clone()).unwrap_or_default();
            DiskChange { device: name.clone(), serial, change }
        };
        let gone = self.gone(now);
        let mut all: Vec<_> = gone.iter().map(|name| change(name, "is not there any more".to_owned())).collect();
        for (name, was) in self.0.iter().filter(|(name, _)| !gone.contains(name)) {
            let is_it = |(now, disk): &(&String, &DiskState)| {
                disk.serial == was.serial && (!was.serial.is_empty() || *now == name)
            };
            let now: BTreeSet<_> = now.0.iter().filter(is_it).flat_map(|(_, disk)| &disk.read_only).collect();
            for part in now.into_iter().filter(|part| !was.read_only.contains(*part)) {
                let what = if part.is_empty() { String::new() } else { format!("has a partition {part} that ") };
                all.push(change(name, format!("{what}is read-only now")));
            }
        }
        all.truncate(MAX_NAMED);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(disks: &[(&str, &str, &[&str])]) -> DiskStates {
        let state = |(name, serial, read_only): &(&str, &str, &[&str])| {
            let read_only = read_only.iter().map(|&part| part.to_owned()).collect();
            ((*name).to_owned(), DiskState { serial: (*serial).to_owned(), read_only })
        };
        DiskStates(disks.iter().map(state).collect())
    }

    fn told(was: &DiskStates, now: &DiskStates) -> Vec<String> {
        let all = was.changes(now).into_iter();
        all.map(|disk| format!("{} {} {}", disk.serial, disk.device, disk.change)).collect()
    }

    #[test]
    fn a_disk_that_is_gone_or_read_only_is_named() {
        let was = states(&[("sda", "paths", &[]), ("sdb", "paths", &[]), ("sr0", "", &[""]), ("vda", "d", &["1"])]);
        assert_eq!(told(&was, &was), [""; 0]);
        let one = states(&[("sda", "paths", &[]), ("sr0", "", &[""]), ("vda", "d", &["1"]), ("vdb", "new", &[""])]);
        assert_eq!(told(&was, &one), ["paths sdb is not there any more"], "one path of two");
        let moved = states(&[("sdc", "paths", &[]), ("sdb", "paths", &[]), ("sr0", "", &[""]), ("vdb", "d", &["1"])]);
        assert_eq!(told(&was, &moved), [""; 0], "it has another name");
        let other = states(&[("sda", "paths", &[]), ("sdb", "x", &[]), ("vda", "d", &["1", "2", ""])]);
        let all = [
            "paths sdb is not there any more",
            " sr0 is not there any more",
            "d vda is read-only now",
            "d vda has a partition 2 that is read-only now",
        ];
        assert_eq!(told(&was, &other), all, "another disk has its name");
        assert_eq!(told(&was, &states(&[])).len(), 4);
        assert_eq!(told(&states(&[]), &was), [""; 0]);
        let better = states(&[("sda", "paths", &[]), ("sdb", "x", &[]), ("vda", "d", &[])]);
        assert_eq!(told(&other, &better), [""; 0], "writable is no harm");
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let block = tempfile::tempdir().unwrap();
        let write = |at: &str, text: &str| {
            let at = block.path().join(at);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, text).unwrap();
        };
        std::fs::create_dir_all(block.path().join("vda/device")).unwrap();
        for (at, text) in [
            ("vda/ro", "0\n"),
            ("vda/serial", "d\n"),
            ("vda/vda2/partition", "2\n"),
            ("vda/vda2/ro", "1\n"),
            ("vda/vda1/partition", "1\n"),
            ("vda/vda1/ro", "0\n"),
            ("dm-0/ro", "1\n"),
        ] {
            write(at, text);
        }
        assert_eq!(DiskStates::of(block.path()), states(&[("vda", "d", &["2"])]));
        write("vda/ro", "1\n");
        assert_eq!(DiskStates::of(block.path()), states(&[("vda", "d", &["", "2"])]));
    }
}
