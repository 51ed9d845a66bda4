//! How much a guest may write to the host's disks, and whoever watches that it does not write more.
//!
//! What is watched: the output directory (`max-output`), the files that take what is written to the guest's disks
//! (`max-disk`), and the room that is left on each file system that the guest can fill, by writes to a workspace too: the host keeps some.
//! The thread that watches QEMU looks, the sooner the less may be written, and kills QEMU as soon as there is too much. So it costs
//! no more than was allowed, and what was written in the time of one look.

#![expect(clippy::disallowed_methods, reason = "the thread that watches QEMU measures what its looks take")]

use std::{
    collections::HashSet,
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, fstatvfs, openat, statat};

/// What a guest may write, in bytes; none is what fits the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// To the output directory.
    pub output: Option<u64>,
    /// To its disks.
    pub disk: Option<u64>,
}

/// Most of the output where nothing else is said.
const MOST_OUTPUT: u64 = 1 << 30;
/// Most room that is kept for the host.
const MOST_KEPT: u64 = 1 << 30;
/// A file system of which nothing is kept: so small a one is no host's.
const SMALL: u64 = 64 << 20;
/// Bytes of a file system in one of which room is kept.
const SHARE_KEPT: u64 = 20;
/// Most files that the host is left room for.
const MOST_FILES_KEPT: u64 = 10_000;
/// What a file is counted as where it is asked how soon there may be too many: nobody makes files faster than that makes it.
const FILE: u64 = 4096;
/// Faster than a guest writes.
const SPEED: u64 = 2 << 30;
const SOONEST: Duration = Duration::from_millis(4);
const LATEST: Duration = Duration::from_millis(100);
/// Of the time, at most one part in so many goes into looking.
const COST: u32 = 20;
/// Most entries of the output directory that are looked at, and most directories in one another.
const MOST_ENTRIES: usize = 500_000;
const DEEPEST: usize = 200;
/// The size of a block in `stat` (stat(2)).
const BLOCK: u64 = 512;

/// What one guest may write, and has written.
#[derive(Debug)]
pub struct Gauge {
    output: Output,
    disks: Disks,
    rooms: Vec<Room>,
}

/// What was there before a guest wrote, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    output: u64,
    disks: u64,
}

#[derive(Debug)]
struct Output {
    dir: OwnedFd,
    limit: u64,
    /// What was there before.
    before: u64,
    /// What was found when it was last looked at.
    used: u64,
    looked: Instant,
    took: Duration,
}

#[derive(Debug)]
struct Disks {
    files: Vec<File>,
    limit: u64,
    before: u64,
}

/// A file system of which some is the host's.
#[derive(Debug)]
struct Room {
    dir: OwnedFd,
    at: PathBuf,
    keep: Left,
}

/// What a file system has left.
#[derive(Clone, Copy, Debug)]
struct Left {
    bytes: u64,
    /// Files that can still be made; a file system that sets no limit to them has any number.
    files: u64,
}

/// There is too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded(Box<str>);

impl Exceeded {
    fn of(message: String) -> Self {
        Self(message.into())
    }

    /// What was reached, and how to raise it.
    pub(crate) fn message(&self) -> &str {
        &self.0
    }
}

impl Gauge {
    /// Looks what is there before the guest writes. `others` are directories that it can fill beside its output directory and its disks.
    pub(crate) fn new(
        bounds: Bounds,
        out: &Path,
        layers: Vec<File>,
        run_dir: &Path,
        others: &[&Path],
    ) -> io::Result<Self> {
        let mut rooms = Vec::new();
        let mut devices = HashSet::new();
        let of_layers = (!layers.is_empty()).then_some(run_dir);
        for at in [Some(out), of_layers].into_iter().flatten().chain(others.iter().copied()) {
            let dir = open(at)?;
            if devices.insert(fstat(&dir)?.st_dev) {
                let keep = kept(&dir)?;
                rooms.push(Room { dir, at: at.to_owned(), keep });
            }
        }
        let dir = open(out)?;
        let limit = output_limit(bounds, &dir)?;
        let started = Instant::now();
        let before = measure(&dir)?.unwrap_or(0);
        let output = Output { dir, limit, before, used: 0, looked: started, took: started.elapsed() };
        let limit = match bounds.disk {
            Some(limit) => limit,
            None => free(&open(run_dir)?)? / 2,
        };
        let before = blocks(&layers);
        Ok(Self { output, disks: Disks { files: layers, limit, before }, rooms })
    }

    /// What was there before the guest wrote.
    pub(crate) fn before(&self) -> Before {
        Before { output: self.output.before, disks: self.disks.before }
    }

    /// The same for a machine that takes the place of another: what the guest wrote in that one counts, too.
    #[must_use]
    pub(crate) fn since(mut self, before: Before) -> Self {
        self.output.before = before.output;
        self.disks.before = before.disks;
        self
    }

    /// Whether there is too much by now. `thorough` looks at all of it; else what takes long is looked at less often.
    pub(crate) fn look(&mut self, thorough: bool) -> Option<Exceeded> {
        let used = self.disks.used();
        if used > self.disks.limit {
            return Some(exceeded("what the guest wrote to its disks", used, self.disks.limit, "max-disk"));
        }
        for room in &self.rooms {
            let Ok(left) = left(&room.dir) else { continue };
            if left.files < room.keep.files {
                return Some(Exceeded::of(format!(
                    "the guest was ended because the host's file system at {} can hold only {} files more, of which {} are kept for the host; \
                     remove some, have the guest make fewer, or use another file system",
                    room.at.display(),
                    left.files,
                    room.keep.files
                )));
            }
            if left.bytes < room.keep.bytes {
                return Some(Exceeded::of(format!(
                    "the guest was ended because the host's file system at {} has only {} left, of which {} are kept for the host; make \
                     room, have the guest write less, or use another file system",
                    room.at.display(),
                    size(left.bytes),
                    size(room.keep.bytes)
                )));
            }
        }
        let output = &mut self.output;
        if !thorough && output.looked.elapsed() < output.took * COST {
            return None;
        }
        let started = Instant::now();
        let found = measure(&output.dir);
        output.looked = Instant::now();
        output.took = started.elapsed();
        match found {
            Ok(Some(found)) => {
                output.used = found.saturating_sub(output.before);
                (output.used > output.limit).then(|| {
                    exceeded("what the guest left in its output directory", output.used, output.limit, "max-output")
                })
            }
            Ok(None) => Some(Exceeded::of(format!(
                "what the guest left in its output directory cannot be measured against max-output ({}): there are more than {MOST_ENTRIES} \
                 files, or directories in one another to a depth of {DEEPEST}; leave an archive there instead",
                size(output.limit)
            ))),
            // It is gone with all that was in it, or is no directory of ours any more: nothing more is written there.
            Err(_) => None,
        }
    }

    /// When to look again: before more can be written than is allowed.
    pub(crate) fn next(&self) -> Duration {
        let output = self.output.limit.saturating_sub(self.output.used);
        let disks = self.disks.limit.saturating_sub(self.disks.used());
        let room = |room: &Room| {
            let left = left(&room.dir).unwrap_or(Left { bytes: 0, files: 0 });
            let files = left.files.saturating_sub(room.keep.files).saturating_mul(FILE);
            left.bytes.saturating_sub(room.keep.bytes).min(files)
        };
        let rooms = self.rooms.iter().map(room);
        let least = rooms.chain([output, disks]).min().unwrap_or(0);
        let until = Duration::from_nanos(least.saturating_mul(1_000_000_000 / (SPEED >> 20)) >> 20);
        until.clamp(SOONEST, LATEST).max(self.output.took * COST / 4)
    }
}

impl Disks {
    fn used(&self) -> u64 {
        blocks(&self.files).saturating_sub(self.before)
    }
}

/// The most that a guest may leave in this output directory at once.
pub(crate) fn output_limit(bounds: Bounds, out: &OwnedFd) -> io::Result<u64> {
    match bounds.output {
        Some(limit) => Ok(limit),
        None => Ok(MOST_OUTPUT.min(free(out)? / 4)),
    }
}

/// Bytes that may be written to a directory so that what is kept for the host stays.
pub(crate) fn room_of_host(dir: &OwnedFd) -> io::Result<u64> {
    Ok(free(dir)?.saturating_sub(kept(dir)?.bytes))
}

/// That more than so much was left in the output directory.
pub(crate) fn output_exceeded(limit: u64) -> Exceeded {
    Exceeded::of(format!(
        "what the guest left in its output directory is more than the limit max-output, {}; write less, or raise it with --max-output or \
         `max-output` in belljar.toml",
        size(limit)
    ))
}

fn exceeded(what: &str, used: u64, limit: u64, key: &str) -> Exceeded {
    Exceeded::of(format!(
        "{what} reached the limit {key}: {} of at most {}; write less, or raise it with --{key} or `{key}` in belljar.toml",
        size(used),
        size(limit)
    ))
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// Bytes that this user can still write.
fn free(dir: &OwnedFd) -> io::Result<u64> {
    Ok(left(dir)?.bytes)
}

/// What this user can still write.
fn left(dir: &OwnedFd) -> io::Result<Left> {
    let stat = fstatvfs(dir)?;
    // Some, such as btrfs, say that they have no files at all.
    let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Left { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files })
}

/// What is left to the host: a part of the file system, and never more than half of what is there at the beginning.
fn kept(dir: &OwnedFd) -> io::Result<Left> {
    let stat = fstatvfs(dir)?;
    let all = stat.f_blocks.saturating_mul(stat.f_frsize);
    if all < SMALL {
        return Ok(Left { bytes: 0, files: 0 });
    }
    let left = left(dir)?;
    Ok(Left {
        bytes: (all / SHARE_KEPT).min(MOST_KEPT).min(left.bytes / 2),
        files: (stat.f_files / SHARE_KEPT).min(MOST_FILES_KEPT).min(left.files / 2),
    })
}

fn blocks(files: &[File]) -> u64 {
    let blocks = |file: &File| fstat(file).ok().and_then(|s| u64::try_from(s.st_blocks).ok());
    files.iter().filter_map(blocks).sum::<u64>().saturating_mul(BLOCK)
}

/// Bytes that a directory and all below it take, through no link; none where there is too much to be looked at. What cannot be
/// opened is left out, for the guest's file server could not have written there.
fn measure(top: &OwnedFd) -> io::Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut bytes = 0_u64;
    let mut entries = 0_usize;
    let mut linked = HashSet::new();
    let mut open: Vec<(OwnedFd, Vec<CString>)> = Vec::new();
    let mut next = Some(openat(top, c".", flags, Mode::empty())?);
    loop {
        if let Some(fd) = next.take() {
            let mut inner = Vec::new();
            let Ok(listing) = Dir::read_from(&fd) else { continue };
            for entry in listing.filter_map(Result::ok) {
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                entries += 1;
                if entries > MOST_ENTRIES {
                    return Ok(None);
                }
                let Ok(stat) = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
                let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if directory || stat.st_nlink < 2 || linked.insert((stat.st_dev, stat.st_ino)) {
                    bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK));
                }
                if directory {
                    inner.push(name.to_owned());
                }
            }
            if !inner.is_empty() {
                if open.len() >= DEEPEST {
                    return Ok(None);
                }
                open.push((fd, inner));
            }
        }
        let Some((fd, mut names)) = open.pop() else { return Ok(Some(bytes)) };
        let Some(name) = names.pop() else { continue };
        next = openat(fd.as_fd(), &*name, flags, Mode::empty()).ok();
        // The last one's parent is not needed any more, so that a chain of any length takes one descriptor.
        if !names.is_empty() {
            open.push((fd, names));
        }
    }
}

/// For people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: &[(u32, &str)] = &[(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.iter().find(|(shift, _)| bytes >= 1 << shift) {
        Some((shift, unit)) => {
            let tenths = ((bytes >> (shift - 10)) * 10) >> 10;
            if tenths.is_multiple_of(10) {
                format!("{} {unit}", tenths / 10)
            } else {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            }
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use super::*;

    fn gauge(dir: &Path, output: u64, layers: Vec<File>) -> Gauge {
        Gauge::new(Bounds { output: Some(output), disk: Some(1 << 20) }, dir, layers, dir, &[]).unwrap()
    }

    #[test]
    fn what_was_there_before_and_what_is_behind_links_does_not_count() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&dir, &other] {
            fs::write(dir.path().join("old"), vec![1; 4 << 20]).unwrap();
        }
        let mut gauge = gauge(dir.path(), 1 << 20, Vec::new());
        symlink(other.path(), dir.path().join("link")).unwrap();
        fs::hard_link(dir.path().join("old"), dir.path().join("again")).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/new"), vec![1; 512 << 10]).unwrap();
        assert_eq!(gauge.look(true), None);
        fs::write(dir.path().join("sub/more"), vec![1; 600 << 10]).unwrap();
        let exceeded = gauge.look(true).unwrap();
        assert!(
            exceeded.message().contains("max-output") && exceeded.message().contains("at most 1 MiB"),
            "{exceeded:?}"
        );
    }

    #[test]
    fn layers_count_with_what_is_in_them_and_not_with_their_length() {
        let dir = tempfile::tempdir().unwrap();
        let mut layer = tempfile::tempfile().unwrap();
        layer.set_len(1 << 40).unwrap();
        let mut gauge = gauge(dir.path(), 1 << 20, vec![layer.try_clone().unwrap()]);
        assert_eq!(gauge.look(true), None);
        layer.write_all(&vec![1; 2 << 20]).unwrap();
        assert!(gauge.look(false).unwrap().message().contains("max-disk"));
    }

    #[test]
    fn a_long_chain_is_measured_and_a_deep_bush_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let chain = |bushy: bool| {
            let mut at = openat(rustix::fs::CWD, dir.path(), OFlags::RDONLY, Mode::empty()).unwrap();
            for n in 0..DEEPEST + 10 {
                for name in if bushy { &["d", "e"][..] } else { &["d"][..] } {
                    let _ = rustix::fs::mkdirat(&at, *name, Mode::RWXU);
                }
                at = openat(&at, "d", OFlags::RDONLY, Mode::empty()).unwrap_or_else(|e| panic!("{n}: {e}"));
            }
            let file = openat(&at, "f", OFlags::WRONLY | OFlags::CREATE, Mode::RWXU).unwrap();
            File::from(file).write_all(&vec![1; 2 << 20]).unwrap();
        };
        let mut gauge = gauge(dir.path(), 1 << 20, Vec::new());
        chain(false);
        assert!(gauge.look(true).unwrap().message().contains("reached the limit"));
        chain(true);
        assert!(gauge.look(true).unwrap().message().contains("cannot be measured"));
    }

    #[test]
    fn the_less_is_left_the_sooner_it_looks_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(gauge(dir.path(), 0, Vec::new()).next(), SOONEST);
        let wide =
            Gauge::new(Bounds { output: Some(1 << 40), disk: Some(1 << 40) }, dir.path(), Vec::new(), dir.path(), &[]);
        assert!(wide.unwrap().next() > SOONEST);
        for (bytes, text) in [(0, "0 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB"), (2047, "1.9 KiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
