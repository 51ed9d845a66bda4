//! What the host has, and how much of it guests may take.

use std::path::{Path, PathBuf};

use belljar_machine::backend::{Backends, Footprint};
use belljar_suite::plan::Plan;

/// What is left to the host.
const RESERVE: u64 = 512 << 20;

/// What a guest of each of the plan's machines takes. Those that nothing gives take nothing: there will be none.
pub(crate) fn of_machines(plan: &Plan, backends: &Backends) -> Vec<Footprint> {
    let given = plan.machines.iter().map(|machine| {
        let backend = backends.of(&machine.guest.spec.source);
        backend.map(|backend| backend.footprint(&machine.hardware)).unwrap_or_default()
    });
    given.collect()
}

/// What each of the plan's units takes while it runs.
pub(crate) fn of_units(plan: &Plan, backends: &Backends) -> Vec<Footprint> {
    let guests = of_machines(plan, backends);
    plan.units.iter().map(|unit| guests[unit.machine]).collect()
}

/// Why there is no room for such a guest, if there is none, even with nothing else running: what all guests together may have is
/// `max_memory`, or else all that the host has.
#[must_use]
pub fn no_room_for(guest: &Footprint, max_memory: Option<u64>, host: Memory) -> Option<String> {
    let (limit, what) = match max_memory {
        Some(limit) => (limit, "max-memory allows"),
        // A host that does not say what it has is trusted to have enough.
        None if host.total == 0 => return None,
        None => (host.total, "this host has"),
    };
    let mib = |bytes: u64| bytes >> 20;
    (guest.total_memory() > limit).then(|| {
        let beside = match guest.overhead {
            0 => String::new(),
            overhead => format!(" and {} {} MiB", guest.program, mib(overhead)),
        };
        format!(
            "the guest wants {} MiB of memory{beside}, and {what} {} MiB for all guests together; give the guest less",
            mib(guest.memory),
            mib(limit)
        )
    })
}

/// The host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All there is, in bytes; a container's limit counts as all.
    pub total: u64,
    /// What can be had without swapping, in bytes.
    pub available: u64,
}

impl Memory {
    /// Of this host, or of the container that this process is in. Zeros where the system does not say.
    #[must_use]
    pub fn of_host() -> Self {
        let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
        let mut memory = Self {
            total: field(&text, "MemTotal:").unwrap_or(0),
            available: field(&text, "MemAvailable:").unwrap_or(0),
        };
        let own = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if let Some(group) = own.lines().find_map(|l| l.strip_prefix("0::/")) {
            memory = memory.within(Path::new("/sys/fs/cgroup"), Path::new(group));
        }
        memory
    }

    /// What all guests together may take by default.
    pub(crate) fn budget(self) -> u64 {
        self.available.saturating_sub(RESERVE.max(self.total / 20))
    }

    /// Within the limits of a control group and those above it (kernel document `admin-guide/cgroup-v2`, memory).
    fn within(mut self, root: &Path, group: &Path) -> Self {
        for part in group.ancestors() {
            let dir: PathBuf = root.join(part);
            let number = |name: &str| {
                fs_err::read_to_string(dir.join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok())
            };
            if let Some(max) = number("memory.max") {
                let used = number("memory.current").unwrap_or(0);
                self.total = self.total.min(max);
                self.available = self.available.min(max.saturating_sub(used));
            }
        }
        self
    }
}

/// A line of `/proc/meminfo`, in bytes (proc(5)).
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(2 << 20));
        assert_eq!(field(text, "MemTotal:"), Some(24_000_000 << 10));
        assert_eq!(field("MemAvailable: much", "MemAvailable:"), None);
    }

    #[test]
    fn a_container_has_what_its_limit_leaves() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs_err::create_dir_all(&inner).unwrap();
        fs_err::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        fs_err::write(root.path().join("a/memory.current"), "400\n").unwrap();
        fs_err::write(inner.join("memory.max"), "max\n").unwrap();
        let host = Memory { total: 5000, available: 4000 };
        assert_eq!(host.within(root.path(), Path::new("a/b")), Memory { total: 1000, available: 600 });
        assert_eq!(host.within(root.path(), Path::new("c")), host);
        assert_eq!(host.budget(), 0);
    }
}
