//! Which disks the kernel's names stand for: of `vdb1`, `dm-0` or `md127` those that it stands on, by their serial numbers.
//!
//! A name says nothing a moment later: a disk goes, and another one gets its name. So it is remembered which device had a name when, the kernel tells of each
//! that comes and goes (`KOBJECT_UEVENT`), and a line of the kernel's is of the device that had the name when it was written. What a device once stood on
//! it is taken to stand on as long as it is there: a part that has failed is taken out of an array before the array's own errors are read.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use belljar_proto::kernel::{ErrorPlace, error_place};
use belljar_proto::message::{DiskPath, MAX_NAMED};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::disk_use::{MAX_DEPTH, entries, number, read, serial};
use crate::mount_table::{self, Mounted};
use crate::port;

/// How old what is known may be when a line is read that names a device: of what is stacked on a disk the kernel does not always tell.
const FRESH: Duration = Duration::from_millis(100);
/// The same where the name is not known at all.
const SOON: Duration = Duration::from_millis(10);
/// How long before a device is seen it may have had its name: the kernel tells of a disk when it has looked for partitions.
const SEEN_LATE: u64 = 1_000_000;
/// Most names, and most devices of one name, that are remembered.
const MAX_NAMES: usize = 2000;
const MAX_OWNERS: usize = 16;
/// How the kernel calls the SCSI controllers by which QEMU's disks with several paths are reached.
const CONTROLLER: &str = "virtio_scsi";

/// The kernel's names, and whose they are and were.
pub(crate) struct DiskNames {
    sys: PathBuf,
    /// What the kernel tells of devices; none where it does not.
    events: Option<OwnedFd>,
    /// Those that have had a name, in their order.
    owners: BTreeMap<String, Vec<Owner>>,
    /// When it was looked the last time.
    looked: Option<Instant>,
    clock: RecordClock,
}

/// A device that has, or had, a name.
#[derive(Debug, Default)]
struct Owner {
    /// What tells it from another one of the same name, as far as the kernel says.
    instance: String,
    /// When it was first seen: microseconds of `CLOCK_MONOTONIC_RAW`.
    since: u64,
    is_gone: bool,
    /// Which disk it is, if it is one.
    disk: Option<DiskPath>,
    /// The disks that it stands on, or stood on once.
    on: BTreeSet<DiskPath>,
    /// The disks of the Btrfs that it is a part of.
    beside: BTreeSet<DiskPath>,
}

/// A block device that is there.
struct There {
    dir: PathBuf,
    /// The disk whose partition it is.
    whole: Option<String>,
}

impl Default for DiskNames {
    fn default() -> Self {
        let clock = RecordClock::default();
        Self { sys: "/sys".into(), events: None, owners: BTreeMap::new(), looked: None, clock }
    }
}

impl DiskNames {
    /// From here on names are remembered.
    pub(crate) fn begin(&mut self) {
        // Where the kernel does not tell, it is looked when a line is read.
        self.events = self.events.take().or_else(|| port::uevents().ok());
        self.look();
    }

    /// What is to be waited for.
    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.events.as_ref()
    }

    /// The device files of the disk with this serial number, one for each path to it in their order; none where the guest has no such disk.
    pub(crate) fn devices(&self, serial: &str) -> Vec<String> {
        let block = self.sys.join("block");
        let path = |(name, owners): (&String, &Vec<Owner>)| {
            let owner = owners.last().filter(|owner| !owner.is_gone)?;
            let disk = owner.disk.as_ref().filter(|disk| disk.serial == serial)?;
            // A path to a disk on NVMe has no file.
            let is_hidden = read(&block.join(name).join("hidden")).is_some_and(|hidden| hidden == "1");
            (!is_hidden).then(|| (disk.path, format!("/dev/{name}")))
        };
        let mut found: Vec<(u32, String)> = self.owners.iter().filter_map(path).collect();
        found.sort();
        found.into_iter().map(|(_, device)| device).collect()
    }

    /// The kernel tells something.
    pub(crate) fn hear(&mut self) {
        if self.drain() {
            self.look();
        }
    }

    /// A record of this time was read.
    pub(crate) fn read_at(&mut self, time: u64) {
        self.clock.note(time, raw_now());
    }

    /// For each device that a line of this time may be about, the disks that it stands on.
    pub(crate) fn of_line(&mut self, line: &str, time: u64) -> Vec<Vec<DiskPath>> {
        let Some(place) = error_place(line) else { return Vec::new() };
        self.look_again(FRESH);
        let when = self.clock.raw(time, raw_now());
        let mut all = match place {
            ErrorPlace::Device(name) => self.owners_of(name, when, |owner| &owner.on),
            ErrorPlace::Btrfs(name) => self.owners_of(name, when, |owner| &owner.beside),
            ErrorPlace::AnyOf(kind) => self.mounted(kind, &mount_table::read()),
        };
        all.truncate(MAX_NAMED);
        all
    }

    /// The disks of each device that may have had this name then.
    fn owners_of(&mut self, name: &str, when: u64, further: fn(&Owner) -> &BTreeSet<DiskPath>) -> Vec<Vec<DiskPath>> {
        if !self.owners.contains_key(name) {
            self.look_again(SOON);
        }
        let found = self.owners.get(name).or_else(|| self.owners.get(whole_of(name)?));
        let Some(owners) = found else { return Vec::new() };
        let at = owners.iter().rposition(|owner| owner.since <= when).unwrap_or(0);
        let next = owners.get(at + 1).filter(|next| next.since.saturating_sub(when) < SEEN_LATE);
        let disks = |owner: &Owner| owner.on.union(further(owner)).take(MAX_NAMED).cloned().collect();
        owners.get(at).into_iter().chain(next).map(disks).collect()
    }

    /// The same for each file system of this kind that is mounted.
    fn mounted(&self, kind: &str, mounts: &[Mounted]) -> Vec<Vec<DiskPath>> {
        let there = self.there();
        let by_number: BTreeMap<String, &String> =
            there.iter().map(|(name, device)| (number(&device.dir), name)).collect();
        let numbers: BTreeSet<&str> = mounts.iter().filter(|mount| mount.kind() == kind).map(Mounted::device).collect();
        let owner = |number: &str| self.owners.get(*by_number.get(number)?)?.last();
        let disks = |number| owner(number).map(|owner| owner.on.iter().cloned().collect()).unwrap_or_default();
        numbers.into_iter().map(disks).collect()
    }

    fn look_again(&mut self, age: Duration) {
        let changed = self.drain();
        if changed || self.looked.is_none_or(|looked| looked.elapsed() >= age) {
            self.look();
        }
    }

    /// Reads what the kernel tells; gives whether it is of block devices.
    fn drain(&mut self) -> bool {
        let Some(events) = &self.events else { return false };
        let mut buffer = [0; 8192];
        let mut changed = false;
        loop {
            match rustix::io::read(events.as_fd(), &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return changed,
                Ok(read) => {
                    let Some((name, goes)) = of_block(&buffer[..read]) else { continue };
                    changed = true;
                    if goes && let Some(owner) = self.owners.get_mut(name).and_then(|owners| owners.last_mut()) {
                        owner.is_gone = true;
                    }
                }
                // Some was lost.
                Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.events = None;
                    return true;
                }
            }
        }
    }

    /// Looks which names there are.
    pub(crate) fn look(&mut self) {
        let since = if self.looked.is_some() { raw_now() } else { 0 };
        self.looked = Some(Instant::now());
        let there = self.there();
        for (name, owners) in &mut self.owners {
            if let Some(owner) = owners.last_mut() {
                owner.is_gone |= !there.contains_key(name);
            }
        }
        for (name, device) in &there {
            self.note_owner(name, device, since);
        }
        let resolve = Resolve { sys: &self.sys, there: &there, owners: &self.owners, mounts: Mounts::default() };
        let below: Vec<_> = there.keys().map(|name| (name.clone(), resolve.disks(name, 0))).collect();
        for (name, disks) in below {
            if let Some(owner) = self.owners.get_mut(&name).and_then(|owners| owners.last_mut()) {
                owner.on.extend(disks);
            }
        }
        let pools = self.sys.join("fs/btrfs");
        for pool in entries(&pools) {
            let names = entries(&pools.join(pool).join("devices"));
            let disks: BTreeSet<DiskPath> = names.iter().flat_map(|name| self.on(name)).cloned().collect();
            for name in &names {
                if let Some(owner) = self.owners.get_mut(name).and_then(|owners| owners.last_mut()) {
                    owner.beside.extend(disks.iter().cloned());
                }
            }
        }
    }

    /// What the device that has this name now stands on.
    fn on(&self, name: &str) -> impl Iterator<Item = &DiskPath> {
        self.owners.get(name).and_then(|owners| owners.last()).into_iter().flat_map(|owner| &owner.on)
    }

    /// The block devices that are there, and their partitions.
    fn there(&self) -> BTreeMap<String, There> {
        let block = self.sys.join("block");
        let mut all = BTreeMap::new();
        for name in entries(&block) {
            let dir = block.join(&name);
            for part in entries(&dir) {
                // A partition is called like its disk.
                if part.starts_with(&name) && dir.join(&part).join("partition").exists() {
                    all.insert(part.clone(), There { dir: dir.join(&part), whole: Some(name.clone()) });
                }
            }
            all.insert(name, There { dir, whole: None });
        }
        all
    }

    fn note_owner(&mut self, name: &str, device: &There, since: u64) {
        let instance = instance(&device.dir, device.whole.as_ref().map(|whole| self.sys.join("block").join(whole)));
        let full = self.owners.len() >= MAX_NAMES && !self.owners.contains_key(name);
        if full {
            return;
        }
        let owners = self.owners.entry(name.to_owned()).or_default();
        let is_it = |owner: &&mut Owner| !owner.is_gone && owner.instance == instance;
        let is_disk = device.whole.is_none() && device.dir.join("device").exists();
        let disk = || is_disk.then(|| DiskPath { serial: serial(&device.dir), path: path(&self.sys, &device.dir) });
        match owners.last_mut().filter(is_it) {
            // A virtio disk is asked itself, and only once: it may have been told to answer nothing.
            Some(owner) if !name.starts_with("vd") => {
                if owner.disk.as_ref().is_some_and(|disk| disk.serial.is_empty()) {
                    owner.on.clear();
                    owner.disk = disk();
                }
            }
            Some(_) => {}
            None => {
                if owners.len() >= MAX_OWNERS {
                    owners.remove(0);
                }
                owners.push(Owner { instance, since, disk: disk(), ..Owner::default() });
            }
        }
    }
}

/// Finds what devices stand on.
struct Resolve<'a> {
    sys: &'a Path,
    there: &'a BTreeMap<String, There>,
    owners: &'a BTreeMap<String, Vec<Owner>>,
    mounts: Mounts,
}

/// What is mounted, once somebody wants to know.
#[derive(Default)]
struct Mounts(std::cell::OnceCell<Vec<Mounted>>);

impl Resolve<'_> {
    fn disks(&self, name: &str, depth: usize) -> BTreeSet<DiskPath> {
        let Some(device) = self.there.get(name).filter(|_| depth <= MAX_DEPTH) else { return BTreeSet::new() };
        let whole = device.whole.as_deref().unwrap_or(name);
        if let Some(disk) = self.owners.get(whole).and_then(|owners| owners.last()).and_then(|owner| owner.disk.clone())
        {
            return BTreeSet::from([disk]);
        }
        let dir = self.sys.join("block").join(whole);
        let file = read(&dir.join("loop/backing_file")).and_then(|file| self.device_of(&file));
        let below = entries(&dir.join("slaves")).into_iter().chain(file);
        below.flat_map(|below| self.disks(&below, depth + 1)).collect()
    }

    /// On which block device this file is, by what is mounted: nobody waits for a disk by that.
    fn device_of(&self, file: &str) -> Option<String> {
        let mounts = self.mounts.0.get_or_init(mount_table::read);
        let above = mounts.iter().filter(|mount| Path::new(file).starts_with(&mount.at));
        // Of two at the same place the later one is on top.
        let mount = above.max_by_key(|mount| mount.at.len())?;
        let found = self.there.iter().find(|(_, device)| number(&device.dir) == mount.device());
        found.map(|(name, _)| name.clone())
    }
}

/// What tells a device from another one of its name: the kernel's own count of disks (`diskseq`, Linux 5.15), else where it is.
fn instance(dir: &Path, whole: Option<PathBuf>) -> String {
    let dir = whole.unwrap_or_else(|| dir.to_owned());
    read(&dir.join("diskseq")).unwrap_or_else(|| {
        let place = std::fs::canonicalize(&dir).unwrap_or_default();
        let mapped = read(&dir.join("dm/name")).unwrap_or_default();
        format!("{} {mapped}", place.display())
    })
}

/// By which controller a disk is reached.
fn path(sys: &Path, dir: &Path) -> u32 {
    let found = || {
        let device = std::fs::canonicalize(dir.join("device")).ok()?;
        let is_host =
            |name: &str| name.strip_prefix("host").is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()));
        let host = device.ancestors().find(|at| at.file_name().and_then(|name| name.to_str()).is_some_and(is_host))?;
        let class = sys.join("class/scsi_host");
        let is_ours = |name: &String| read(&class.join(name).join("proc_name")).is_some_and(|name| name == CONTROLLER);
        let place = |name: String| {
            let host = std::fs::canonicalize(class.join(name).join("device")).ok()?;
            host.parent().map(Path::to_owned)
        };
        let places: BTreeSet<PathBuf> = entries(&class).into_iter().filter(is_ours).filter_map(place).collect();
        let at = places.iter().position(|place| Some(place.as_path()) == host.parent())?;
        u32::try_from(at).ok()
    };
    found().unwrap_or(0)
}

/// The disk whose partition has such a name (the kernel's `disk_name`).
fn whole_of(name: &str) -> Option<&str> {
    let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if base.len() == name.len() {
        return None;
    }
    let numbered = base.strip_suffix('p').filter(|disk| disk.ends_with(|c: char| c.is_ascii_digit()));
    Some(numbered.unwrap_or(base))
}

/// The block device of which the kernel tells, and whether it goes.
fn of_block(event: &[u8]) -> Option<(&str, bool)> {
    let text = std::str::from_utf8(event).ok()?;
    let value = |key: &str| text.split('\0').find_map(|word| word.strip_prefix(key));
    if value("SUBSYSTEM=")? != "block" {
        return None;
    }
    let name = value("DEVPATH=")?.rsplit('/').next()?;
    Some((name, value("ACTION=")? == "remove"))
}

fn raw_now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    u64::try_from(micros).unwrap_or(0)
}

/// How far the clock of the kernel's record is from `CLOCK_MONOTONIC_RAW`, both in microseconds. A record is read soon after it was written, or later, and never
/// before: the least distance is the best.
#[derive(Debug, Default)]
struct RecordClock {
    /// The least distance, and when it was seen.
    least: Option<(i64, u64)>,
}

/// By which part two clocks of one machine may drift apart.
const DRIFT: u64 = 1000;

impl RecordClock {
    fn note(&mut self, time: u64, now: u64) {
        let distance = now.cast_signed() - time.cast_signed();
        if self.at(now).is_none_or(|least| distance <= least) {
            self.least = Some((distance, now));
        }
    }

    /// What the distance may be now.
    fn at(&self, now: u64) -> Option<i64> {
        let (least, seen) = self.least?;
        Some(least + (now.saturating_sub(seen) / DRIFT).cast_signed())
    }

    /// A record's time by the other clock; never later than now.
    fn raw(&self, time: u64, now: u64) -> u64 {
        let raw = time.cast_signed() + self.least.map_or(0, |(least, _)| least);
        u64::try_from(raw).unwrap_or(0).min(now)
    }
}

#[cfg(test)]
mod tests;
