//! Devices that come and go while the guest runs: whether its kernel, and its udev(7) if it has one, have taken note.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use belljar_proto::message::{DeviceSign, WantedDevice};

/// How soon is looked again, at least and at most.
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_millis(250);
/// So much longer than a look took is waited before the next: the agent goes before everything else in the guest, and what it waits for
/// is work that the guest has to come to. A look each 10 ms left an emulated processor on a busy host with little else to do.
const SHARE: u32 = 12;

/// A device that is waited for.
pub(crate) struct Awaited {
    wanted: WantedDevice,
    deadline: Instant,
    next: Instant,
}

impl Awaited {
    pub(crate) fn new(wanted: WantedDevice) -> Self {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(wanted.limit_ms.into());
        Self { wanted, deadline, next: now }
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Whether the device is as it is wanted; `None` as long as there is time for it.
    pub(crate) fn look(&mut self) -> Option<bool> {
        let now = Instant::now();
        if now < self.next {
            return None;
        }
        let seen = is_there(Path::new("/"), &self.wanted);
        let cost = now.elapsed();
        self.next = now + cost + pause(cost);
        if seen { Some(true) } else { (now >= self.deadline).then_some(false) }
    }
}

/// How long to wait after a look that took so long.
fn pause(cost: Duration) -> Duration {
    (cost * SHARE).clamp(SOONEST, LATEST)
}

/// Whether the device shows in the file systems below `root`.
fn is_there(root: &Path, wanted: &WantedDevice) -> bool {
    let behind = |class: &str| -> Vec<PathBuf> {
        let part = format!("/{}/", wanted.pci);
        let entries = fs::read_dir(root.join("sys/class").join(class)).into_iter().flatten().flatten();
        let ours = |at: &PathBuf| fs::read_link(at).is_ok_and(|to| to.to_string_lossy().contains(&part));
        entries.map(|entry| entry.path()).filter(ours).collect()
    };
    match wanted.sign {
        DeviceSign::Gone => !root.join("sys/bus/pci/devices").join(&wanted.pci).exists(),
        DeviceSign::ScsiHost => !behind("scsi_host").is_empty(),
        DeviceSign::Disks(count) => {
            let all: Vec<PathBuf> = behind("block").into_iter().map(shown).collect();
            let disks = all.iter().filter(|at| !at.join("partition").exists()).count();
            let known = |at: &PathBuf| is_known(root, 'b', &at.join("dev"));
            disks >= usize::try_from(count).unwrap_or(usize::MAX) && all.iter().all(known)
        }
        DeviceSign::Network => {
            let all = behind("net");
            !all.is_empty() && all.iter().all(|at| is_known(root, 'n', &at.join("ifindex")))
        }
    }
}

/// The device by which the guest has a disk: one on NVMe that may have several paths shows behind its controller as a path (`nvme0c0n1`), which is hidden, and
/// elsewhere as the disk itself (`nvme0n1`; the kernel's `drivers/nvme/host/multipath.c`).
fn shown(at: PathBuf) -> PathBuf {
    let is_hidden = fs::read(at.join("hidden")).is_ok_and(|text| text.trim_ascii() == b"1");
    let name = at.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match disk_of_path(&name).filter(|_| is_hidden) {
        Some(disk) => at.with_file_name(disk),
        None => at,
    }
}

/// `nvme0n1` of `nvme0c3n1`.
fn disk_of_path(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let are_numbers = [subsystem, controller, namespace].iter().all(|n| n.parse::<u32>().is_ok());
    are_numbers.then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Whether udev is through with a device, so that it has its name and its links. Where udev does not run, nobody gives it others.
fn is_known(root: &Path, kind: char, number: &Path) -> bool {
    let udev = root.join("run/udev");
    if !udev.join("control").exists() {
        return true;
    }
    let number = fs::read_to_string(number).unwrap_or_default();
    // `queue` is there while there is something to do (systemd's udev-manager.c).
    udev.join(format!("data/{kind}{}", number.trim())).exists() && !udev.join("queue").exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("belljar-devices-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        root
    }

    fn add(root: &Path, class: &str, name: &str, at: &str, files: &[(&str, &str)]) {
        let device = root.join("sys/devices").join(at).join(name);
        fs::create_dir_all(&device).unwrap();
        for (file, text) in files {
            fs::write(device.join(file), text).unwrap();
        }
        let class = root.join("sys/class").join(class);
        fs::create_dir_all(&class).unwrap();
        symlink(Path::new("../../devices").join(at).join(name), class.join(name)).unwrap();
    }

    fn wanted(sign: DeviceSign) -> WantedDevice {
        WantedDevice { pci: "0000:00:10.0".into(), sign, limit_ms: 0 }
    }

    #[test]
    fn disks_count_without_their_partitions_and_without_others() {
        let root = root("disks");
        let is_there = |count| is_there(&root, &wanted(DeviceSign::Disks(count)));
        assert!(!is_there(1));
        add(&root, "block", "vda", "pci0000:00/0000:00:03.0/virtio1/block", &[("dev", "254:0\n")]);
        assert!(!is_there(1), "another's");
        add(&root, "block", "sda", "pci0000:00/0000:00:10.0/virtio2/host0/block", &[("dev", "8:0\n")]);
        add(
            &root,
            "block",
            "sda1",
            "pci0000:00/0000:00:10.0/virtio2/host0/block/sda",
            &[("dev", "8:1\n"), ("partition", "1")],
        );
        assert!(is_there(1) && !is_there(2));
        // Where udev runs, it has to be through with all of them.
        fs::create_dir_all(root.join("run/udev/data")).unwrap();
        fs::write(root.join("run/udev/control"), "").unwrap();
        fs::write(root.join("run/udev/data/b8:0"), "").unwrap();
        assert!(!is_there(1));
        fs::write(root.join("run/udev/data/b8:1"), "").unwrap();
        assert!(is_there(1));
        fs::write(root.join("run/udev/queue"), "").unwrap();
        assert!(!is_there(1));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_path_of_an_nvme_disk_is_known_when_the_disk_is() {
        let root = root("nvme");
        let is_there = || is_there(&root, &wanted(DeviceSign::Disks(1)));
        add(&root, "block", "nvme0c0n1", "pci0000:00/0000:00:10.0/nvme/nvme0", &[("hidden", "1\n")]);
        assert!(is_there(), "without udev nobody waits for it");
        fs::create_dir_all(root.join("run/udev/data")).unwrap();
        fs::write(root.join("run/udev/control"), "").unwrap();
        assert!(!is_there());
        add(&root, "block", "nvme0n1", "virtual/nvme-subsystem/nvme-subsys0", &[("dev", "259:0\n")]);
        assert!(!is_there());
        fs::write(root.join("run/udev/data/b259:0"), "").unwrap();
        assert!(is_there());
        assert_eq!(disk_of_path("nvme10c2n3").as_deref(), Some("nvme10n3"));
        for other in ["nvme0n1", "nvmec0n1", "vda", "nvme0c0n1p1"] {
            assert_eq!(disk_of_path(other), None, "{other}");
        }
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn looks_take_a_small_part_of_the_processor() {
        let pause = |millis| pause(Duration::from_millis(millis)).as_millis();
        assert_eq!(pause(0), 10, "on a fast machine");
        assert_eq!(pause(5), 60);
        assert_eq!(pause(100), 250, "but the deadline is not missed by much");
    }

    #[test]
    fn cards_and_adapters_and_what_is_gone() {
        let root = root("others");
        let is_there = |sign| is_there(&root, &wanted(sign));
        assert!(is_there(DeviceSign::Gone) && !is_there(DeviceSign::Network) && !is_there(DeviceSign::ScsiHost));
        fs::create_dir_all(root.join("sys/bus/pci/devices/0000:00:10.0")).unwrap();
        add(&root, "net", "eth0", "pci0000:00/0000:00:10.0/virtio1/net", &[("ifindex", "2\n")]);
        add(&root, "scsi_host", "host0", "pci0000:00/0000:00:10.0/virtio2/host0/scsi_host", &[]);
        assert!(!is_there(DeviceSign::Gone) && is_there(DeviceSign::Network) && is_there(DeviceSign::ScsiHost));
        fs::create_dir_all(root.join("run/udev")).unwrap();
        fs::write(root.join("run/udev/control"), "").unwrap();
        assert!(!is_there(DeviceSign::Network));
        fs::remove_dir_all(&root).unwrap();
    }
}
