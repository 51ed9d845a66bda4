//! The disk on which a guest's directories come and go: what is on it for one guest, and what that brings back.
//!
//! Behind the disk is a sparse file without a name. It is filled before the machine starts, and read when the agent says that what was changed is
//! on it. The guest may write there what it likes: the archive is believed only as far as its length and its checksum are what the agent said over
//! the session, and what is in it makes plain files in the directories that the guest may write to (`belljar-share-disk`).

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use belljar_proto::message::{DiskContent, Returned};
use belljar_share_disk::{
    device::{RangeReader, RangeWriter},
    layout::{CONTENT_AT, Header, MAX_ARCHIVE, MAX_PROGRAM, PROGRAM_AT, RETURN_AT},
    pack::{Manifest, pack, weigh},
    tar::Writer,
    unpack::{Rules, Target, UnpackError, unpack},
};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use tokio::time::Instant;

use crate::{
    Cause,
    bounds::{self, Bounds},
    conceal::ServedDirectory,
    share,
};

/// Where in the guest's directory what was changed on both sides is kept.
const ASIDE: &str = "workspace-conflicts";

/// Bytes after which it is looked again whether the host has what is kept for it.
const LOOK_EVERY: u64 = 4 << 20;
/// How many of the largest files are named where there is no room.
const NAMED: usize = 5;

/// One directory that goes onto the disk.
#[derive(Debug)]
struct Exchanged {
    tag: String,
    directory: OwnedFd,
    /// What keeps it as it is seen, to be held as long as it is used.
    _view: Option<OwnedFd>,
    /// Whether what the guest changes is brought back.
    returns: bool,
    /// What is known to be in it.
    known: Manifest,
    bytes: u64,
}

/// A guest's disk of shares.
#[derive(Debug)]
pub(crate) struct DiskExchange {
    file: File,
    id: [u8; 16],
    shares: Vec<Exchanged>,
    /// The agent, for a guest that has no other way to it.
    pub(crate) program: Option<&'static [u8]>,
    /// The guest's own directory.
    dir: PathBuf,
    bounds: Bounds,
}

/// What there is to say when something was brought back.
#[derive(Debug, Default)]
pub(crate) struct BroughtBack {
    /// For a person.
    pub(crate) warnings: Vec<String>,
}

/// Ends the work of another thread with whoever waits for it.
#[derive(Debug, Default)]
struct Abandon(Arc<AtomicBool>);

impl Abandon {
    fn end(&self) -> End {
        End::Abandoned(Arc::clone(&self.0))
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When work on a thread of its own is given up.
#[derive(Clone, Debug)]
enum End {
    /// When nobody waits for it any more.
    Abandoned(Arc<AtomicBool>),
    /// Then, whoever waits; by tokio's clock, which stands still while Belljar is stopped.
    At(Instant),
}

impl End {
    fn has_come(&self) -> bool {
        match self {
            Self::Abandoned(abandoned) => abandoned.load(Ordering::Relaxed),
            Self::At(deadline) => Instant::now() >= *deadline,
        }
    }

    /// # Errors
    /// When it has come.
    fn check(&self) -> io::Result<()> {
        // Not `Interrupted`, which is tried again.
        if self.has_come() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// Passes bytes on as long as the host has what is kept for it on this file system.
struct Reserved<T> {
    inner: T,
    on: OwnedFd,
    /// Bytes since that was looked at.
    since: u64,
}

impl<T: Write> Write for Reserved<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.since >= LOOK_EVERY {
            if bounds::room_of_host(&self.on)? == 0 {
                return Err(io::Error::other(
                    "there is nothing left of the host's file system but what is kept for the host",
                ));
            }
            self.since = 0;
        }
        let written = self.inner.write(bytes)?;
        self.since += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Passes bytes on until the work is given up.
struct Awaited<T> {
    inner: T,
    end: End,
}

impl<T: Write> Write for Awaited<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.end.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Awaited<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.end.check()?;
        self.inner.read(into)
    }
}

impl DiskExchange {
    /// A disk on which nothing is yet, whose bytes are in `file`. `dir` is the guest's own directory.
    pub(crate) fn new(
        file: File,
        directories: Vec<(ServedDirectory, bool)>,
        dir: &Path,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| io::Error::other(error.to_string()))?;
        let exchanged = |(served, returns): (ServedDirectory, bool)| Exchanged {
            tag: served.tag,
            directory: served.directory,
            _view: served.view,
            returns,
            known: Manifest::new(),
            bytes: 0,
        };
        let shares = directories.into_iter().map(exchanged).collect();
        Ok(Self { file, id, shares, program: None, dir: dir.to_owned(), bounds })
    }

    /// Puts the directories onto the disk; gives what of them is not there, for a person.
    ///
    /// # Errors
    /// Where one cannot be read, or there is no room.
    pub(crate) async fn filled(mut self) -> io::Result<(Self, Vec<String>)> {
        let abandon = Abandon::default();
        let end = abandon.end();
        tokio::task::spawn_blocking(move || self.fill(end).map(|left_out| (self, left_out)))
            .await
            .map_err(io::Error::other)?
    }

    /// Refuses what cannot fit, before anything is written.
    fn weigh(&self, room: u64, end: &End) -> io::Result<()> {
        let mut bytes = 0_u64;
        let mut largest = Vec::new();
        for share in &self.shares {
            let what = share::what(&share.tag);
            let weight = weigh(&share.directory, || end.check())
                .map_err(|error| io::Error::new(error.kind(), format!("{what} cannot be looked at: {error}")))?;
            bytes = bytes.saturating_add(weight.bytes);
            largest.extend(weight.largest.into_iter().map(|(bytes, path)| (bytes, format!("{path} of {what}"))));
        }
        let room = room.min(MAX_ARCHIVE);
        if bytes <= room {
            return Ok(());
        }
        largest.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let size = |bytes| bounds::size(bytes);
        let largest: Vec<_> =
            largest.into_iter().take(NAMED).map(|(bytes, path)| format!("{path} ({})", size(bytes))).collect();
        Err(io::Error::other(format!(
            "a copy takes {} without the holes of files, and there is room for {} beside what is kept for the host; the largest files are {}",
            size(bytes),
            size(room),
            largest.join(", ")
        )))
    }

    fn fill(&mut self, end: End) -> io::Result<Vec<String>> {
        let on = rustix::fs::open(&self.dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.weigh(bounds::room_of_host(&on)?, &end)?;
        if let Some(program) = self.program {
            let mut writer = RangeWriter::new(self.file.as_fd(), PROGRAM_AT, MAX_PROGRAM);
            writer.write_all(program)?;
            writer.finish()?;
        }
        let writer = RangeWriter::new(self.file.as_fd(), CONTENT_AT, MAX_ARCHIVE);
        let writer = Reserved { inner: writer, on, since: LOOK_EVERY };
        let mut archive = Writer::new(Awaited { inner: writer, end });
        let mut left_out = Vec::new();
        for share in &mut self.shares {
            let packed = pack(&mut archive, &share.tag, &share.directory, None).map_err(|error| {
                io::Error::new(error.kind(), format!("{} cannot be packed: {error}", share::what(&share.tag)))
            })?;
            (share.known, share.bytes) = (packed.manifest, packed.bytes);
            let what = share::what(&share.tag);
            left_out
                .extend(packed.left_out.lines().iter().map(|line| format!("{what} reaches the guest without {line}")));
        }
        let (content, crc) = archive.end()?.inner.inner.finish()?;
        let program = self.program.map_or(0, |program| program.len() as u64);
        let block = Header { id: self.id, program, content, crc }.to_block();
        let mut done = 0;
        while done < block.len() {
            done += rustix::io::pwrite(&self.file, &block[done..], done as u64)?;
        }
        Ok(left_out)
    }

    /// What the agent is told of it.
    pub(crate) fn content(&self) -> DiskContent {
        DiskContent { id: self.id, sizes: self.shares.iter().map(|share| (share.tag.clone(), share.bytes)).collect() }
    }

    /// Bytes that the guest has to unpack.
    pub(crate) fn bytes(&self) -> u64 {
        self.shares.iter().map(|share| share.bytes).sum()
    }

    /// Directories that the host has made in the output directory since, by where they are in the guest.
    pub(crate) fn new_directories(&self) -> Vec<String> {
        let Some(out) = self.shares.iter().find(|share| share.tag == share::OUT_TAG) else { return Vec::new() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listing = openat(&out.directory, c".", flags, Mode::empty()).and_then(Dir::new);
        let Ok(listing) = listing else { return Vec::new() };
        let names = listing.filter_map(Result::ok).filter(|entry| entry.file_type() == FileType::Directory);
        let names = names.map(|entry| entry.file_name().to_bytes().to_vec());
        let new = names.filter(|name| name != b"." && name != b".." && !out.known.contains_key(name));
        new.filter_map(|name| Some(format!("{}/{}", share::OUT_PATH, String::from_utf8(name).ok()?))).collect()
    }

    /// Brings what the guest changed, and has put on the disk, into the directories. It goes on even if nobody waits for it, but not longer than `limit`.
    pub(crate) async fn brought_back(
        mut self,
        returned: Returned,
        limit: Duration,
    ) -> Result<(Self, Result<BroughtBack, Cause>), Cause> {
        let end = End::At(Instant::now() + limit);
        let of_thread = end.clone();
        let work = tokio::task::spawn_blocking(move || {
            let brought = self.bring_back(&returned, of_thread);
            (self, brought)
        });
        let given_up = || {
            let limit = crate::for_people(limit);
            Err(Cause::Unsynced(format!(
                "what the guest left on the disk of its shares was not unpacked within {limit}"
            )))
        };
        // The thread may be stuck in one call, which nothing ends.
        match tokio::time::timeout(limit, work).await {
            Err(_) => given_up(),
            Ok(Ok((_, Err(_)))) if end.has_come() => given_up(),
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Cause::Defect(format!("what the guest left could not be unpacked: {error}"))),
        }
    }

    fn bring_back(&mut self, returned: &Returned, end: End) -> Result<BroughtBack, Cause> {
        let mut brought = BroughtBack::default();
        brought.warnings.extend(
            returned.left_out.iter().map(|line| format!("the guest's directory reaches the host without {line}")),
        );
        if returned.bytes == 0 {
            return Ok(brought);
        }
        if returned.bytes > MAX_ARCHIVE {
            return Err(Cause::BroughtBack(format!(
                "the guest says that it packed {} bytes, and there is no room for that on the disk",
                returned.bytes
            )));
        }
        let archive = || RangeReader::new(self.file.as_fd(), RETURN_AT, returned.bytes);
        let crc = archive().finish().map_err(|error| unread(&error))?;
        if crc != returned.crc {
            return Err(damaged("its checksum is another than the agent said"));
        }
        let aside = self.dir.join(ASIDE);
        let host =
            |attempt: &str, error: &io::Error| Cause::host_file(attempt, error, "it must be writable and have room");
        fs_err::create_dir_all(&aside)
            .map_err(|error| host("make a directory for what was changed on both sides", &error))?;
        let kept: OwnedFd = fs_err::File::open(&aside)
            .map_err(|error| host("open the directory for what was changed on both sides", &error))?
            .into_parts()
            .0
            .into();
        let mut targets = Vec::new();
        let mut output_limit = 0;
        let mut archive = archive();
        for share in self.shares.iter_mut().filter(|share| share.returns) {
            let is_out = share.tag == share::OUT_TAG;
            let room = if is_out {
                bounds::output_limit(self.bounds, &share.directory)
            } else {
                bounds::room_of_host(&share.directory)
            };
            let room = room.map_err(|error| host("look how much room there is", &error))?;
            if is_out {
                output_limit = room;
            }
            let Exchanged { tag, directory, known, .. } = share;
            targets.push(Target {
                known: Some(known),
                room,
                aside: (!is_out).then_some(&kept),
                ..Target::fresh(tag, directory)
            });
        }
        let done = unpack(Awaited { inner: &mut archive, end }, &mut targets, Rules::Plain);
        let conflict = |target: Target<'_>| (target.name == share::OUT_TAG, target.overridden, target.conflicts);
        let conflicts: Vec<_> = targets.into_iter().map(conflict).collect();
        // Nothing was put there, most likely.
        let is_empty = std::fs::remove_dir(&aside).is_ok();
        done.map_err(|error| of_unpack(error, output_limit))?;
        // What was unpacked is what was checked before.
        if archive.finish().map_err(|error| unread(&error))? != returned.crc {
            return Err(damaged("it was changed while it was read"));
        }
        for (is_out, overridden, (paths, count)) in conflicts.into_iter().filter(|(_, _, (_, count))| *count > 0) {
            let more = count.saturating_sub(paths.len() as u64);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let paths = format!("{}{more}", paths.join(", "));
            if is_out && overridden > 0 {
                return Err(Cause::BroughtBack(format!(
                    "the guest left files in its output directory where others are on the host, which stay as they are there, so that the guest's are \
                     lost: {paths}; let --out name an empty directory that nobody else writes to"
                )));
            }
            if is_out {
                brought.warnings.push(format!(
                    "what the guest changed in its output directory was changed or moved on the host meanwhile, and stays as it is there: {paths}"
                ));
                continue;
            }
            let kept = if is_empty { String::new() } else { format!("; the guest's files are in {}", aside.display()) };
            return Err(Cause::BroughtBack(format!(
                "the guest and somebody on the host both changed files of the workspace, and those of the host stay as they are: {paths}{kept}. A share \
                 by disk is brought back only when a command has ended: do not change the workspace before that, or use --workspace-mode cow"
            )));
        }
        Ok(brought)
    }
}

fn unread(error: &io::Error) -> Cause {
    damaged(&format!("it cannot be read: {error}"))
}

fn damaged(why: &str) -> Cause {
    Cause::BroughtBack(format!(
        "what the guest put on the disk of its shares for the host is not what it packed, so that what it left cannot be had: {why}"
    ))
}

fn of_unpack(error: UnpackError, limit: u64) -> Cause {
    match error {
        UnpackError::TooMuch { target } if target == share::OUT_TAG => Cause::Exceeded(bounds::output_exceeded(limit)),
        UnpackError::TooMuch { .. } => {
            Cause::Unsynced("the host's file system has no room for what the guest changed in the workspace".to_owned())
        }
        UnpackError::Io { .. } => Cause::Unsynced(error.to_string()),
        UnpackError::Archive(_) | UnpackError::Path(_) | UnpackError::TooMany => damaged(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use belljar_share_disk::{layout::DISK_SIZE, tar};

    use super::*;

    fn never() -> End {
        End::Abandoned(Arc::default())
    }

    struct Lab {
        dir: tempfile::TempDir,
        exchange: DiskExchange,
    }

    impl Lab {
        fn new(bounds: Bounds) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let share = |tag: &str, name: &str| {
                let path = dir.path().join(name);
                fs::create_dir_all(&path).unwrap();
                ServedDirectory { tag: tag.to_owned(), directory: File::open(path).unwrap().into(), view: None }
            };
            let shares = vec![(share(share::OUT_TAG, "out"), true), (share(share::WORKSPACE_TAG, "w"), true)];
            fs::write(dir.path().join("w/file"), "before").unwrap();
            let file = tempfile::tempfile().unwrap();
            file.set_len(DISK_SIZE).unwrap();
            let mut exchange = DiskExchange::new(file, shares, dir.path(), bounds).unwrap();
            exchange.program = Some(b"program");
            exchange.fill(never()).unwrap();
            Self { dir, exchange }
        }

        /// What an agent says that packed this.
        fn returned(&self, path: &str, data: &[u8]) -> Returned {
            let mut archive = Writer::new(RangeWriter::new(self.exchange.file.as_fd(), RETURN_AT, MAX_ARCHIVE));
            let kind = tar::Kind::File;
            let size = data.len() as u64;
            let entry = tar::Entry { path: path.into(), kind, mode: 0o644, owner: (0, 0), mtime: (0, 0), size };
            archive.entry(&entry).unwrap();
            archive.data(data).unwrap();
            let (bytes, crc) = archive.end().unwrap().finish().unwrap();
            Returned { bytes, crc, left_out: Vec::new() }
        }
    }

    #[test]
    fn what_is_on_the_disk_is_what_the_agent_is_told() {
        let lab = Lab::new(Bounds::default());
        let mut block = [0; 4096];
        rustix::io::pread(&lab.exchange.file, &mut block, 0).unwrap();
        let header = Header::of_block(&block).unwrap();
        let content = lab.exchange.content();
        assert_eq!((header.id, header.program), (content.id, 7));
        assert_eq!(content.sizes, [(share::OUT_TAG.to_owned(), 0), (share::WORKSPACE_TAG.to_owned(), 6)]);
        let crc = RangeReader::new(lab.exchange.file.as_fd(), CONTENT_AT, header.content).finish().unwrap();
        assert_eq!(crc, header.crc);
        fs::create_dir(lab.dir.path().join("out/7")).unwrap();
        assert_eq!(lab.exchange.new_directories(), ["/run/belljar/out/7"]);
    }

    #[test]
    fn what_a_guest_brings_back_is_never_less_than_it_says() {
        let mut lab = Lab::new(Bounds { output: Some(1 << 20), disk: None });
        let good = lab.returned("belljar-out/result", b"passed");
        for bad in [
            Returned { crc: good.crc ^ 1, ..good.clone() },
            Returned { bytes: good.bytes - 512, ..good.clone() },
            Returned { bytes: MAX_ARCHIVE + 1, ..good.clone() },
        ] {
            let cause = lab.exchange.bring_back(&bad, never()).unwrap_err();
            assert!(matches!(cause, Cause::BroughtBack(_)), "{bad:?}: {cause}");
        }
        let cut = {
            // The checksum of an archive without its end is right, and it is none.
            let bytes = good.bytes - 1024;
            let crc = RangeReader::new(lab.exchange.file.as_fd(), RETURN_AT, bytes).finish().unwrap();
            Returned { bytes, crc, left_out: Vec::new() }
        };
        let cause = lab.exchange.bring_back(&cut, never()).unwrap_err();
        assert!(cause.to_string().contains("it ends in the middle"), "{cause}");
        fs::remove_file(lab.dir.path().join("out/result")).unwrap();
        lab.exchange.shares[0].known.clear();
        lab.exchange.bring_back(&lab.returned("belljar-out/result", b"passed"), never()).unwrap();
        assert_eq!(fs::read(lab.dir.path().join("out/result")).unwrap(), b"passed");
        let forged = lab.returned("belljar-out/../w/file", b"forged");
        let cause = lab.exchange.bring_back(&forged, never()).unwrap_err();
        assert!(cause.to_string().contains("leads out of its directory"), "{cause}");
        let much = lab.returned("belljar-out/much", &vec![1; 2 << 20]);
        let cause = lab.exchange.bring_back(&much, never()).unwrap_err();
        assert!(matches!(cause, Cause::Exceeded(_)) && cause.to_string().contains("max-output"), "{cause}");
        assert_eq!(fs::read(lab.dir.path().join("w/file")).unwrap(), b"before");
    }

    #[test]
    fn a_file_that_both_sides_changed_stays_the_hosts_and_the_guests_is_kept() {
        let mut lab = Lab::new(Bounds::default());
        lab.exchange.bring_back(&lab.returned("hostos/file", b"by the guest"), never()).unwrap();
        let file = lab.dir.path().join("w/file");
        assert_eq!(fs::read(&file).unwrap(), b"by the guest");
        assert!(!lab.dir.path().join(ASIDE).exists());
        fs::write(&file, "by the host").unwrap();
        let cause = lab.exchange.bring_back(&lab.returned("hostos/file", b"once more"), never()).unwrap_err();
        assert!(cause.to_string().contains("both changed files of the workspace"), "{cause}");
        assert_eq!(fs::read(&file).unwrap(), b"by the host");
        assert_eq!(fs::read(lab.dir.path().join(ASIDE).join("file")).unwrap(), b"once more");
        // Of the output directory it is only said.
        let top = lab.exchange.shares[0].known[b"".as_slice()];
        lab.exchange.shares[0].known.insert(b"x".to_vec(), top);
        let brought = lab.exchange.bring_back(&lab.returned("belljar-out/x", b"x"), never()).unwrap();
        assert_eq!(brought.warnings.len(), 1, "{brought:?}");
        // Where another file is in the place of the guest's, that is not had.
        fs::write(lab.dir.path().join("out/result"), "of an earlier run").unwrap();
        let cause = lab.exchange.bring_back(&lab.returned("belljar-out/result", b"new"), never()).unwrap_err();
        assert!(cause.to_string().contains("let --out name an empty directory"), "{cause}");
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up() {
        let lab = Lab::new(Bounds::default());
        let returned = lab.returned("belljar-out/result", b"x");
        let given_up = lab.exchange.brought_back(returned, Duration::ZERO).await;
        assert!(matches!(given_up, Err(Cause::Unsynced(said)) if said.contains("was not unpacked within")));
    }
}
