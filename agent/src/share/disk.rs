//! Shares that come on a disk: the agent unpacks the archive on it into the guest's memory, or into a directory of the guest's where there is
//! more room, and packs what was changed for the host.
//!
//! The disk is read and written past the kernel's cache, and held open only meanwhile: in a copy of the guest another content is behind it.
//! What was unpacked is remembered in a file in memory, so that the processes that do the work, and an agent that was executed anew, know it.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use belljar_proto::message::{DiskContent, Mount, MountFault, MountMode, Returned, SyncFault, SyncReport};
use belljar_share_disk::device::{RangeReader, RangeWriter};
use belljar_share_disk::layout::{BLOCK, CONTENT_AT, DISK_SIZE, Header, MAX_ARCHIVE, RETURN_AT};
use belljar_share_disk::pack::{Contents, Manifest, contents, look, pack_changes};
use belljar_share_disk::record;
use belljar_share_disk::tar::Writer;
use belljar_share_disk::unpack::{Rules, Target, open_root, unpack};
use rustix::fs::{FileType, MemfdFlags, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount};
use serde::{Deserialize, Serialize};

use super::{Carrier, Cause, Use};
use crate::{modules, mounts, port, sys, text};

/// Drivers of the buses that the disk may be on.
pub(super) const DRIVERS: &[&str] = &["virtio_pci", "virtio_blk", "ahci", "ata_piix", "nvme", "virtio_scsi", "sd_mod"];
/// How long the disk may take to be there once its driver is.
const APPEARS: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// A change after this is later by the file system's clock too, which ticks a hundred times in a second at least.
const TICK: Duration = Duration::from_millis(20);
/// What is wanted beside the files themselves.
const SPARE: u64 = 32 << 20;
/// Where there may be room on a disk of the guest's.
const DIRECTORIES: &[&str] = &["/var/tmp", "/tmp", "/var", "/"];
/// tmpfs and ramfs, by their magic numbers: what is there is in memory too (statfs(2)).
const IN_MEMORY: &[i64] = &[0x0102_1994, 0x8584_58f6];

/// What is told of a share on a disk where something else was asked of it.
pub(super) struct Disk;

impl Carrier for Disk {
    fn file_system(&self) -> &'static str {
        "disk"
    }

    fn modules(&self) -> &'static [&'static str] {
        DRIVERS
    }

    fn bus(&self) -> &'static [&'static str] {
        &[]
    }

    /// It is unpacked with all others, and not mounted.
    fn mount(&self, _: &str, _: Use) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }

    fn may_lack_modules(&self, _: Errno) -> bool {
        false
    }

    fn explain(&self, _: Errno) -> Cause {
        Cause::Other(Some("nobody has said what is on the disk"))
    }
}

/// What is known of the shares that came on a disk.
pub(crate) struct Unpacked {
    file: OwnedFd,
}

/// The same, as it is written down.
#[derive(Default, Serialize, Deserialize)]
struct Known {
    content: DiskContent,
    shares: Vec<KnownShare>,
}

#[derive(Serialize, Deserialize)]
struct KnownShare {
    place: Place,
    /// Device and number of its top.
    top: (u64, u64),
    /// What was in it when the host knew all of it last; none where the host is not to know.
    files: Option<Manifest>,
    /// And what was in them.
    contents: Contents,
}

/// Where a share is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its number among the shares.
    number: u32,
    name: String,
    path: String,
    mode: MountMode,
    /// What it takes, with what is to spare.
    wanted: u64,
    /// A directory of the guest's that is mounted there; none if it is in memory.
    directory: Option<String>,
}

impl Place {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// For a person.
    pub(super) fn shown(&self) -> String {
        match &self.directory {
            None => format!("{} is in the guest's memory", self.path),
            Some(directory) => format!("{} is in {directory} of the guest", self.path),
        }
    }
}

impl AsRawFd for Unpacked {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Unpacked {
    /// Of a content that is to be unpacked.
    pub(crate) fn new(content: &DiskContent) -> Result<Self, Errno> {
        let file = rustix::fs::memfd_create("belljar-unpacked", MemfdFlags::CLOEXEC)?;
        let unpacked = Self { file };
        unpacked.write(&Known { content: content.clone(), shares: Vec::new() })?;
        Ok(unpacked)
    }

    /// Of an agent before this one.
    pub(crate) fn inherited(file: OwnedFd) -> Self {
        Self { file }
    }

    fn write(&self, known: &Known) -> Result<(), Errno> {
        let bytes = record::to_bytes(known).ok_or(Errno::INVAL)?;
        rustix::fs::ftruncate(&self.file, 0)?;
        let mut done = 0;
        while done < bytes.len() {
            done += rustix::io::pwrite(&self.file, &bytes[done..], done as u64)?;
        }
        Ok(())
    }

    fn read(&self) -> Result<Known, Errno> {
        let size = usize::try_from(rustix::fs::fstat(&self.file)?.st_size).map_err(|_| Errno::INVAL)?;
        let mut bytes = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match rustix::io::pread(&self.file, &mut bytes[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        record::from_bytes(&bytes[..filled]).ok_or(Errno::INVAL)
    }

    /// Makes room for a share where the guest has it, beside those that have theirs.
    pub(super) fn prepare(&self, number: u32, share: &Mount, others: &[Place]) -> Result<Place, MountFault> {
        let failed = |detail| MountFault::Failed { detail };
        let known = self.read().map_err(|errno| failed(text::errno(errno)))?;
        if others.is_empty() {
            // Without the disk none of them can be had.
            find(&known.content.id)?;
        }
        let size = known.content.sizes.iter().find(|(name, _)| *name == share.name).map_or(0, |(_, size)| *size);
        let wanted = size.saturating_add(size / 8).saturating_add(SPARE);
        let taken = others.iter().filter(|place| place.directory.is_none()).map(|place| place.wanted).sum();
        let directory = choose(wanted, taken).map_err(failed)?;
        let place = Place {
            number,
            name: share.name.clone(),
            path: share.path.clone(),
            mode: share.mode,
            wanted,
            directory: directory.map(|directory| {
                let id = &known.content.id;
                format!("{directory}/.belljar-{}-{:02x}{:02x}{:02x}", share.name, id[0], id[1], id[2])
            }),
        };
        place.mount().map_err(|errno| failed(format!("make room for {}: {}", share.name, text::errno(errno))))?;
        Ok(place)
    }

    /// Unpacks all shares to their places.
    pub(super) fn fill(&self, places: &[Place]) -> Result<(), String> {
        let filled = self.try_fill(places);
        if filled.is_err() {
            for place in places {
                place.let_go();
            }
        }
        filled
    }

    fn try_fill(&self, places: &[Place]) -> Result<(), String> {
        let mut known = self.read().map_err(text::errno)?;
        let id = known.content.id;
        let (disk, header) = find(&id).map_err(|fault| match fault {
            MountFault::NoFileSystem { detail } | MountFault::NoOverlay { detail } | MountFault::Failed { detail } => {
                detail
            }
        })?;
        let roots: Result<Vec<OwnedFd>, _> = places.iter().map(|place| open_root(&place.path)).collect();
        let roots = roots.map_err(|error| error.to_string())?;
        let mut targets: Vec<Target<'_>> =
            places.iter().zip(&roots).map(|(place, root)| Target::fresh(&place.name, root)).collect();
        let mut archive = RangeReader::new(disk.as_fd(), CONTENT_AT, header.content);
        unpack(&mut archive, &mut targets, Rules::Whole).map_err(|error| error.to_string())?;
        if archive.finish().map_err(|error| error.to_string())? != header.crc {
            return Err("what was read of the disk of the shares is not what the host wrote".to_owned());
        }
        sys::poll(&mut [], Some(TICK));
        for (place, root) in places.iter().zip(&roots) {
            let files = (place.mode == MountMode::ReadWrite)
                .then(|| look(root))
                .transpose()
                .map_err(|error| format!("look at {}: {error}", place.path))?;
            let contents = files.as_ref().map(|files| contents(root, files)).transpose();
            let contents = contents.map_err(|error| format!("read {}: {error}", place.path))?.unwrap_or_default();
            if place.mode == MountMode::ReadOnly {
                let bind = if place.directory.is_some() { MountFlags::BIND } else { MountFlags::empty() };
                mount_remount(place.path.as_str(), bind | MountFlags::RDONLY, c"")
                    .map_err(|errno| format!("remount {} read-only: {}", place.path, text::errno(errno)))?;
            }
            known.shares.push(KnownShare {
                place: place.clone(),
                top: top(root).map_err(text::errno)?,
                files,
                contents,
            });
        }
        self.write(&known).map_err(text::errno)
    }

    /// Packs what was changed, for the host.
    pub(crate) fn bring_back(&self) -> SyncReport {
        match self.try_bring_back() {
            Ok(returned) => SyncReport { fault: None, returned: Some(returned) },
            Err(fault) => SyncReport { fault: Some(fault), returned: None },
        }
    }

    fn try_bring_back(&self) -> Result<Returned, SyncFault> {
        let failed = |why: String| SyncFault::Failed(why);
        let mut known = self.read().map_err(|errno| failed(text::errno(errno)))?;
        if known.shares.is_empty() {
            // None of them came.
            return Ok(Returned::default());
        }
        let (disk, _) = find(&known.content.id)
            .map_err(|fault| failed(format!("the disk of the shares is not there any more: {fault:?}")))?;
        let mut archive = Writer::new(RangeWriter::new(disk.as_fd(), RETURN_AT, MAX_ARCHIVE));
        let mut left_out = Vec::new();
        for share in &mut known.shares {
            let Some(files) = &mut share.files else { continue };
            let path = &share.place.path;
            let root = open_root(path).map_err(|_| SyncFault::Gone(vec![path.clone()]))?;
            // What is not there must not be taken for deleted.
            if top(&root) != Ok(share.top) {
                return Err(SyncFault::Gone(vec![path.clone()]));
            }
            let packed = pack_changes(&mut archive, &share.place.name, &root, files, &mut share.contents)
                .map_err(|error| failed(format!("pack {path}: {error}")))?;
            *files = packed.manifest;
            left_out.extend(packed.left_out.lines().into_iter().map(|line| format!("{path}: {line}")));
        }
        let written = archive.end().and_then(RangeWriter::finish);
        let (bytes, crc) = written.map_err(|error| failed(format!("write to the disk of the shares: {error}")))?;
        rustix::fs::fdatasync(&disk).map_err(|errno| failed(format!("fdatasync: {}", text::errno(errno))))?;
        self.write(&known).map_err(|errno| failed(text::errno(errno)))?;
        left_out.truncate(16);
        Ok(Returned { bytes, crc, left_out })
    }

    /// Takes away what a share was in that is not mounted any more.
    pub(crate) fn discard(&self) {
        for share in self.read().unwrap_or_default().shares {
            if let Some(directory) = share.place.directory {
                let _ = fs::remove_dir_all(directory);
            }
        }
        let _ = rustix::fs::ftruncate(&self.file, 0);
    }
}

fn top(root: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(root)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Place {
    fn mount(&self) -> Result<(), Errno> {
        match &self.directory {
            None => {
                let (_, total) = memory();
                let size = self.wanted.max(total / 2);
                mounts::mount("tmpfs", &self.path, "tmpfs", MountFlags::empty(), &format!("mode=0755,size={size}"))
            }
            Some(directory) => {
                rustix::fs::mkdir(directory.as_str(), rustix::fs::Mode::from_raw_mode(0o755))?;
                mount_bind(directory.as_str(), self.path.as_str())
            }
        }
    }

    fn let_go(&self) {
        let _ = rustix::mount::unmount(self.path.as_str(), UnmountFlags::DETACH);
        if let Some(directory) = &self.directory {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Where a share that takes so much is put, beside what is taken of the memory: into memory, or into a directory of the guest's.
fn choose(wanted: u64, taken: u64) -> Result<Option<&'static str>, String> {
    let (available, _) = memory();
    // The guest's tests want memory too.
    let memory = (available / 2).saturating_sub(taken);
    if wanted <= memory {
        return Ok(None);
    }
    let mut most = (0, "");
    for directory in DIRECTORIES {
        let free = room(directory).unwrap_or(0);
        if wanted <= free {
            return Ok(Some(directory));
        }
        if free > most.0 {
            most = (free, directory);
        }
    }
    let mib = |bytes: u64| bytes >> 20;
    let elsewhere = match most {
        (0, _) => "on no disk of its own is there a directory that can be written to".to_owned(),
        (free, directory) => format!("{} MiB in {directory}", mib(free)),
    };
    Err(format!(
        "the guest has no room for it: it takes {} MiB, and there are {} MiB of memory for it (half of what is available), and {elsewhere}; give the \
         guest more --memory, or share a smaller directory",
        mib(wanted),
        mib(memory)
    ))
}

/// Bytes of memory that are available, and of all.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    (line("MemAvailable:").or_else(|| line("MemFree:")).unwrap_or(0), line("MemTotal:").unwrap_or(0))
}

/// Bytes of a disk that can be written to in a directory.
fn room(directory: &str) -> Option<u64> {
    let kind = rustix::fs::statfs(directory).ok()?.f_type;
    if IN_MEMORY.contains(&kind) {
        return None;
    }
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).ok()?;
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Opens the disk with this content, having its drivers loaded where it is not there.
fn find(id: &[u8; 16]) -> Result<(OwnedFd, Header), MountFault> {
    if let Some(found) = look_for(id) {
        return found;
    }
    let tried = modules::load(DRIVERS);
    let deadline = Instant::now() + APPEARS;
    loop {
        if let Some(found) = look_for(id) {
            return found;
        }
        if Instant::now() >= deadline {
            let detail = "the guest sees no disk of its shares".to_owned();
            let detail = if tried.is_empty() { detail } else { format!("{detail}; {tried}") };
            return Err(MountFault::NoFileSystem { detail });
        }
        sys::poll(&mut [], Some(LOOK));
    }
}

/// Looks for it among the disks that the kernel knows now.
fn look_for(id: &[u8; 16]) -> Option<Result<(OwnedFd, Header), MountFault>> {
    let mut last = None;
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let dir = entry.path();
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        if read("size").trim().parse() != Ok(DISK_SIZE / 512) {
            continue;
        }
        let number = read("dev");
        let Some((Ok(major), Ok(minor))) = number.trim().split_once(':').map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        let node = format!("/dev/{}", entry.file_name().to_string_lossy().replace('!', "/"));
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
        let header = port::open_node(FileType::BlockDevice, &node, (major, minor), flags).and_then(|disk| {
            let mut block = [0; BLOCK];
            let read = RangeReader::new(disk.as_fd(), 0, BLOCK as u64).read_exact(&mut block);
            read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok((disk, Header::of_block(&block)))
        });
        match header {
            Ok((disk, Some(header))) if header.id == *id => return Some(Ok((disk, header))),
            Ok((_, Some(_))) => last = Some(format!("{node} is a disk of shares with another content")),
            Ok((_, None)) => {}
            Err(errno) => last = Some(format!("read {node}: {}", text::errno(errno))),
        }
    }
    last.map(|detail| Err(MountFault::Failed { detail }))
}
