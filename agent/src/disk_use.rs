//! Disks of the guest that are in use: mounted, swapped to, or part of another block device (device mapper, RAID, LVM, bcache, loop devices).
//!
//! What the kernel says of a use gives it a name. Whether there is one is found out by asking for the disk alone (`O_EXCL`, open(2)), which the kernel refuses
//! while somebody has it: so a use is found in whatever mount namespace it is, and of whatever kind. Loop devices are asked for what is behind them.

mod loops;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use belljar_proto::message::{DiskInUse, MAX_NAMED};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::loops::{Behind, Loop};
use crate::mount_table::{self, Mounted};
use crate::{sys, text};

/// Where the system itself is, or may come to be mounted at any time.
const OF_THE_SYSTEM: &[&str] = &["/", "/boot", "/boot/efi", "/efi"];
/// How long a disk may take to be let go of by somebody who has ended.
pub(crate) const LETTING_GO: Duration = Duration::from_secs(3);
/// How often is looked meanwhile.
pub(crate) const LOOK: Duration = Duration::from_millis(50);
/// Most block devices above one another.
pub(crate) const MAX_DEPTH: usize = 16;

/// How many directories above a disk on USB its adapter is: target, host, interface, device.
const USB_DEPTH: usize = 4;

/// Disks that are in use, by the kernel's name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskUses(BTreeMap<String, DiskUse>);

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DiskUse {
    serial: String,
    /// What each use is by, such as the number of a file system; and how it is told.
    uses: BTreeMap<String, String>,
    /// Somebody has it for himself.
    claimed: bool,
}

impl DiskUses {
    /// Those that are in use now.
    pub(crate) fn now() -> Self {
        let swaps = swap_devices(&fs::read_to_string("/proc/swaps").unwrap_or_default());
        let (mounts, loops) = (mount_table::read(), loops::now());
        Kernel { sys: Path::new("/sys"), mounts: &mounts, swaps: &swaps, loops: &loops, is_claimed }.uses()
    }

    /// What has come to be in use since then. What nobody can name is given a moment to end.
    pub(crate) fn since(&self) -> Vec<DiskInUse> {
        let until = Instant::now() + LETTING_GO;
        loop {
            let new = self.new_of(&Self::now());
            let is_settled = new.iter().all(|disk| !disk.uses.is_empty());
            if is_settled || Instant::now() >= until {
                return new.into_iter().map(named).take(MAX_NAMED).collect();
            }
            sys::poll(&mut [], Some(LOOK));
        }
    }

    /// What was in use before, and is.
    pub(crate) fn kept(&self) -> Vec<DiskInUse> {
        self.kept_of(&Self::now())
    }

    fn kept_of(&self, now: &Self) -> Vec<DiskInUse> {
        let kept = |(device, now): (&String, &DiskUse)| {
            let was = self.0.get(device)?;
            let uses = now.uses.iter().filter(|(by, _)| was.uses.contains_key(*by));
            let uses: Vec<String> = uses.map(|(_, shown)| shown.clone()).take(MAX_NAMED).collect();
            let (device, serial) = (device.clone(), now.serial.clone());
            ((was.claimed && now.claimed) || !uses.is_empty()).then_some(DiskInUse { device, serial, uses })
        };
        now.0.iter().filter_map(kept).map(named).take(MAX_NAMED).collect()
    }

    fn new_of(&self, now: &Self) -> Vec<DiskInUse> {
        let none = DiskUse::default();
        let new = |(device, now): (&String, &DiskUse)| {
            let was = self.0.get(device).unwrap_or(&none);
            let uses = now.uses.iter().filter(|(by, _)| !was.uses.contains_key(*by));
            let uses: Vec<String> = uses.map(|(_, shown)| shown.clone()).take(MAX_NAMED).collect();
            // Where a use of it has a name, that one claims it.
            let is_claimed = now.claimed && !was.claimed && now.uses.is_empty();
            let (device, serial) = (device.clone(), now.serial.clone());
            (is_claimed || !uses.is_empty()).then_some(DiskInUse { device, serial, uses })
        };
        now.0.iter().filter_map(new).collect()
    }
}

fn named(mut disk: DiskInUse) -> DiskInUse {
    if disk.uses.is_empty() {
        disk.uses.push("in use, the kernel does not say by whom".to_owned());
    }
    disk
}

/// Whether somebody has the block device of this name for himself.
fn is_claimed(name: &str, number: &str) -> bool {
    let node = Path::new("/dev").join(name);
    let is_it = |meta: &fs::Metadata| meta.file_type().is_block_device() && of_number(meta.rdev()) == number;
    if !fs::symlink_metadata(&node).is_ok_and(|meta| is_it(&meta)) {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(&node, flags, Mode::empty()).is_err_and(|errno| errno == Errno::BUSY)
}

/// A device's number as the kernel writes it, `8:1`.
fn of_number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// The numbers of the block devices that are swapped to, by `/proc/swaps` (proc_swaps(5)).
fn swap_devices(list: &str) -> BTreeSet<String> {
    let paths = list.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    let block = paths.filter_map(|path| fs::metadata(path).ok()).filter(|meta| meta.file_type().is_block_device());
    block.map(|meta| of_number(meta.rdev())).collect()
}

/// What the kernel says.
struct Kernel<'a, Claimed> {
    /// Where its `/sys` is.
    sys: &'a Path,
    mounts: &'a [Mounted],
    /// Numbers of the devices that are swapped to.
    swaps: &'a BTreeSet<String>,
    loops: &'a [Loop],
    /// Whether the device of this name and number is somebody's.
    is_claimed: Claimed,
}

impl<Claimed: Fn(&str, &str) -> bool> Kernel<'_, Claimed> {
    fn uses(&self) -> DiskUses {
        let block = self.sys.join("block");
        let disks = entries(&block).into_iter().filter_map(|name| {
            let dir = block.join(&name);
            // One that has no device of its own is made of others.
            dir.join("device").exists().then(|| {
                let mut uses = BTreeMap::new();
                self.add_uses(&name, &dir, None, 0, &mut uses);
                let claimed = (self.is_claimed)(&name, &number(&dir));
                let of_system = self.is_of_system(&dir);
                let serial = serial(&dir);
                (name, DiskUse { serial, uses, claimed: claimed && !of_system })
            })
        });
        DiskUses(disks.filter(|(_, disk)| disk.claimed || !disk.uses.is_empty()).collect())
    }

    /// Whether the system is on it, which has it for itself.
    fn is_of_system(&self, dir: &Path) -> bool {
        let numbers: Vec<String> = self.parts(dir).into_iter().map(|(_, dir)| number(&dir)).collect();
        self.mounts.iter().any(|mount| is_system(mount) && numbers.iter().any(|number| number == mount.device()))
    }

    /// The device and its partitions: name and directory.
    fn parts(&self, dir: &Path) -> Vec<(String, PathBuf)> {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let parts = entries(dir).into_iter().map(|name| (name.clone(), dir.join(name)));
        let parts = parts.filter(|(_, dir)| dir.join("partition").exists());
        std::iter::once((name, dir.to_owned())).chain(parts).collect()
    }

    /// Adds how a block device, its partitions and all that is made of them are used. `by`: how the device is told, unless it is the disk itself.
    fn add_uses(&self, name: &str, dir: &Path, by: Option<&str>, depth: usize, uses: &mut BTreeMap<String, String>) {
        if depth > MAX_DEPTH {
            return;
        }
        let through = by.map(|by| format!(" through {by}")).unwrap_or_default();
        let mut parts = self.parts(dir);
        if let Some(first) = parts.first_mut() {
            name.clone_into(&mut first.0);
        }
        for (name, dir) in parts {
            let number = number(&dir);
            let of_it: Vec<&Mounted> = self.mounts.iter().filter(|mount| mount.device() == number).collect();
            if let Some(mount) = of_it.first().filter(|_| !of_it.iter().any(|mount| is_system(mount))) {
                uses.insert(format!("mount {number}"), format!("mounted at {}{through}", mount.at));
            }
            if self.swaps.contains(&number) {
                uses.insert(format!("swap {number}"), format!("swap{through}"));
            }
            for file_system in entries(&self.sys.join("fs/btrfs")) {
                // The numbers of its mounts are its own.
                if self.sys.join("fs/btrfs").join(&file_system).join("devices").join(&name).exists() {
                    uses.insert(format!("btrfs {file_system}"), format!("a mounted btrfs{through}"));
                }
            }
            for holder in entries(&dir.join("holders")) {
                let shown = match read(&self.sys.join("block").join(&holder).join("dm/name")) {
                    Some(name) => format!("{holder} ({name})"),
                    None => holder.clone(),
                };
                self.add_above(&holder, &shown, format!("part of {shown}{through}"), depth, uses);
            }
            let is_of_system = of_it.iter().any(|mount| is_system(mount));
            for Loop { name, behind } in self.loops {
                let told = match behind {
                    Behind::Device(behind) if *behind == number => format!("behind {name}{through}"),
                    // A file of the system's is no use of its disk.
                    Behind::FileOn(on) if *on == number && !is_of_system => format!("a file behind {name}{through}"),
                    _ => continue,
                };
                self.add_above(name, name, told, depth, uses);
            }
        }
    }

    /// Adds that a block device stands on what is looked at, and how that is used in its turn. `shown`: how it is told; `told`: how the use is.
    fn add_above(&self, name: &str, shown: &str, told: String, depth: usize, uses: &mut BTreeMap<String, String>) {
        if uses.insert(format!("holder {name}"), told).is_none() {
            self.add_uses(name, &self.sys.join("block").join(name), Some(shown), depth + 1, uses);
        }
    }
}

fn is_system(mount: &Mounted) -> bool {
    OF_THE_SYSTEM.contains(&&*mount.at)
}

/// The names in a directory; none where it is none.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What a file of the kernel's says, without blanks around it; none where there is nothing.
pub(crate) fn read(path: &Path) -> Option<String> {
    fs::read(path).ok().map(|bytes| text::lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty())
}

/// The number of a block device, such as `8:1`.
pub(crate) fn number(dir: &Path) -> String {
    read(&dir.join("dev")).unwrap_or_default()
}

/// The disk's serial number; nothing where the kernel does not say.
pub(crate) fn serial(dir: &Path) -> String {
    let plain = || read(&dir.join("serial")).or_else(|| read(&dir.join("device/serial")));
    // A page of the disk's own words: four bytes, and the number (SPC, "Unit Serial Number VPD page").
    let page = || {
        let page = fs::read(dir.join("device/vpd_pg80")).ok()?;
        Some(text::lossy(page.get(4..)?).trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
    };
    // The kernel asks no disk on USB for that page; what it is behind has the number.
    let usb = || {
        let device = fs::canonicalize(dir.join("device")).ok()?;
        device.ancestors().skip(1).take(USB_DEPTH).find_map(|above| read(&above.join("serial")))
    };
    plain().or_else(page).or_else(usb).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: &Path, text: &str) {
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, text).unwrap();
    }

    /// A `/sys` with a disk of the system, a disk with a partition, a SCSI disk, and a mapped device.
    fn sys() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for (name, number, is_disk) in
            [("vda", "254:0", true), ("vdb", "254:16", true), ("sda", "8:0", true), ("dm-0", "253:0", false)]
        {
            write(&sys.path().join("block").join(name).join("dev"), &format!("{number}\n"));
            if is_disk {
                fs::create_dir(sys.path().join("block").join(name).join("device")).unwrap();
            }
        }
        write(&sys.path().join("block/vdb/serial"), "data0");
        write(&sys.path().join("block/vdb/vdb1/partition"), "1\n");
        write(&sys.path().join("block/vdb/vdb1/dev"), "254:17\n");
        write(&sys.path().join("block/sda/device/vpd_pg80"), "\0\u{7f}\0\u{5}data1");
        write(&sys.path().join("block/vda/vda1/partition"), "1\n");
        write(&sys.path().join("block/vda/vda1/dev"), "254:1\n");
        sys
    }

    const ROOT: &str = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n";

    fn uses(sys: &Path, mounts: &str, swaps: &[&str], claimed: &[&str]) -> DiskUses {
        uses_with(sys, mounts, swaps, claimed, &[])
    }

    fn uses_with(sys: &Path, mounts: &str, swaps: &[&str], claimed: &[&str], loops: &[Loop]) -> DiskUses {
        let mounts = mount_table::parse(format!("{ROOT}{mounts}").as_bytes());
        let swaps = swaps.iter().map(|&number| number.to_owned()).collect();
        let is_claimed = |name: &str, _: &str| claimed.contains(&name);
        Kernel { sys, mounts: &mounts, swaps: &swaps, loops, is_claimed }.uses()
    }

    fn told(was: &DiskUses, now: &DiskUses) -> Vec<String> {
        was.new_of(now).into_iter().map(named).map(line).collect()
    }

    fn line(disk: DiskInUse) -> String {
        format!("{} {}: {}", disk.device, disk.serial, disk.uses.join(", "))
    }

    #[test]
    fn what_came_to_be_in_use_is_named() {
        let sys = sys();
        let nothing = uses(sys.path(), "", &[], &["vda"]);
        assert_eq!(nothing, DiskUses::default(), "the system's own disk is no use");
        let mounted =
            uses(sys.path(), "40 22 254:17 / /srv rw - ext4 /dev/vdb1 rw\n", &["8:0"], &["vda", "vdb", "sda"]);
        assert_eq!(told(&nothing, &mounted), ["sda data1: swap", "vdb data0: mounted at /srv"]);
        assert_eq!(told(&mounted, &mounted), [""; 0], "a set-up's");
        let elsewhere = "40 22 254:17 / /srv rw - ext4 x rw\n41 22 254:17 /a /mnt rw - ext4 x rw\n";
        assert_eq!(
            told(&mounted, &uses(sys.path(), elsewhere, &["8:0"], &["vdb", "sda"])),
            [""; 0],
            "the same file system"
        );
        assert_eq!(told(&mounted, &nothing), [""; 0]);
    }

    #[test]
    fn what_is_made_of_a_disk_uses_it() {
        let sys = sys();
        let nothing = uses(sys.path(), "", &[], &[]);
        fs::create_dir_all(sys.path().join("block/sda/holders/dm-0")).unwrap();
        fs::create_dir_all(sys.path().join("block/vdb/vdb1/holders/dm-0")).unwrap();
        write(&sys.path().join("block/dm-0/dm/name"), "vg-data\n");
        let held = uses(sys.path(), "", &[], &[]);
        let both = ["sda data1: part of dm-0 (vg-data)", "vdb data0: part of dm-0 (vg-data)"];
        assert_eq!(told(&nothing, &held), both);
        let mounted = uses(sys.path(), "40 22 253:0 / /srv rw - xfs /dev/dm-0 rw\n", &[], &[]);
        let through = "mounted at /srv through dm-0 (vg-data)";
        assert_eq!(told(&held, &mounted), [format!("sda data1: {through}"), format!("vdb data0: {through}")]);
        // A ring has an end.
        fs::create_dir_all(sys.path().join("block/dm-0/holders/dm-0")).unwrap();
        assert_eq!(told(&nothing, &uses(sys.path(), "", &[], &[])).len(), 2);
    }

    #[test]
    fn a_loop_device_is_a_use_of_what_is_behind_it() {
        let sys = sys();
        let nothing = uses(sys.path(), "", &[], &[]);
        for (at, name) in ["loop0", "loop1", "loop2"].into_iter().enumerate() {
            write(&sys.path().join("block").join(name).join("dev"), &format!("7:{at}\n"));
        }
        let over = |name: &str, behind| Loop { name: name.into(), behind };
        let device = |number: &str| Behind::Device(number.into());
        let bound = [over("loop0", device("8:0")), over("loop1", device("254:17")), over("loop2", device("9:9"))];
        let of_loops = |mounts, swaps: &[&str]| uses_with(sys.path(), mounts, swaps, &[], &bound);
        assert_eq!(told(&nothing, &of_loops("", &[])), ["sda data1: behind loop0", "vdb data0: behind loop1"]);
        let used = of_loops("40 22 7:0 / /srv rw - ext4 /dev/loop0 rw\n", &["7:1"]);
        let both = ["sda data1: mounted at /srv through loop0", "vdb data0: swap through loop1"];
        assert_eq!(told(&of_loops("", &[]), &used), both, "a set-up's that a test uses");
        fs::create_dir_all(sys.path().join("block/loop0/holders/dm-0")).unwrap();
        assert_eq!(told(&used, &of_loops("", &[])), ["sda data1: part of dm-0 through loop0"]);
        // Of files, those on other disks than the system's count; one loop device may be on another.
        let files = [over("loop0", Behind::FileOn("254:17".into())), over("loop1", device("7:0"))];
        let on = "40 22 254:17 / /srv rw - ext4 /dev/vdb1 rw\n";
        let was = uses(sys.path(), on, &[], &[]);
        let chain = "vdb data0: part of dm-0 through loop0, a file behind loop0, behind loop1 through loop0";
        assert_eq!(told(&was, &uses_with(sys.path(), on, &[], &[], &files)), [chain]);
        let of_system = [over("loop2", Behind::FileOn("254:1".into()))];
        assert_eq!(told(&nothing, &uses_with(sys.path(), "", &[], &[], &of_system)), [""; 0]);
        // This machine's own are read without harm.
        drop(loops::now());
    }

    #[test]
    fn what_stays_in_use_is_named() {
        let sys = sys();
        let kept = |was: &DiskUses, now: &DiskUses| was.kept_of(now).into_iter().map(line).collect::<Vec<_>>();
        let on = "40 22 254:17 / /srv rw - ext4 /dev/vdb1 rw\n";
        let was = uses(sys.path(), on, &[], &["vda", "vdb", "sda"]);
        let both = ["sda data1: in use, the kernel does not say by whom", "vdb data0: mounted at /srv"];
        assert_eq!(kept(&was, &was), both);
        assert_eq!(kept(&was, &uses(sys.path(), on, &["8:0"], &["vdb"])), both[1..], "another use of the other");
        assert_eq!(kept(&was, &uses(sys.path(), "", &[], &["vda"])), [""; 0]);
        assert_eq!(kept(&uses(sys.path(), "", &[], &[]), &was), [""; 0]);
    }

    #[test]
    fn a_use_without_a_name_is_one() {
        let sys = sys();
        let nothing = uses(sys.path(), "", &[], &["vda"]);
        let claimed = uses(sys.path(), "", &[], &["vda", "vdb"]);
        assert_eq!(told(&nothing, &claimed), ["vdb data0: in use, the kernel does not say by whom"]);
        assert_eq!(told(&claimed, &claimed), [""; 0]);
        fs::create_dir_all(sys.path().join("fs/btrfs/7f/devices/vdb")).unwrap();
        let btrfs = uses(sys.path(), "", &[], &["vda", "vdb"]);
        assert_eq!(told(&nothing, &btrfs), ["vdb data0: a mounted btrfs"]);
        // Something of the system's is mounted when it is first looked at.
        let boot = uses(sys.path(), "40 22 254:16 / /boot rw - vfat /dev/vdb rw\n", &[], &["vda", "vdb"]);
        assert_eq!(told(&btrfs, &boot), [""; 0]);
    }

    #[test]
    fn a_disk_on_usb_has_its_adapters_number() {
        let sys = tempfile::tempdir().unwrap();
        let (adapter, block) = (sys.path().join("usb1/1-1"), sys.path().join("block/sdb"));
        let device = adapter.join("1-1:1.0/host3/target3:0:0/3:0:0:0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(&block).unwrap();
        std::os::unix::fs::symlink(&device, block.join("device")).unwrap();
        assert_eq!(serial(&block), "");
        write(&adapter.join("serial"), "stick\n");
        assert_eq!(serial(&block), "stick");
        write(&device.join("vpd_pg80"), "\0\u{7f}\0\u{4}disk\0");
        assert_eq!(serial(&block), "disk");
    }

    #[test]
    fn swap_is_read_as_the_kernel_writes_it() {
        assert!(swap_devices("Filename Type Size Used Priority\n/proc/self/stat file 1 0 -2\nx\n\n").is_empty());
        assert!(swap_devices("").is_empty());
        // This machine's own is read without harm.
        drop(DiskUses::now());
    }
}
