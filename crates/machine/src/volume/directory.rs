//! A disk with the files of a directory of the host's: an ext4 file system that `mke2fs` makes of it in the cache.
//!
//! Its name there follows from all that can be seen of the directory's files but their bytes (inodes, sizes, times, owners, modes), which are looked at
//! again when it is made: what changed meanwhile makes it an error.

use std::{
    fs::{DirEntry, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use belljar_guest_spec::{DirectoryContent, DiskContent, DiskSpec};
use belljar_image::cache;
use belljar_model::EventKind;

use super::{
    lab::MOST,
    made::{self, Recipe, TARGET},
};
use crate::{Cause, Lost, bounds, host::HostContext, lost::blocking, qemu::probe::look_up};

/// Part of the names in the cache: change it with what is made.
const VERSION: &[u8] = b"1";
/// Files of a directory at most.
const MOST_FILES: u64 = 2_000_000;
/// Directories in one another at most.
const MOST_DEPTH: usize = 200;
/// Bytes of a block, and of an inode.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// Bytes of disk for each inode where nothing is known of the files.
const BYTES_PER_INODE: u64 = 16_384;
/// What a file system has beside its files: its journal, its groups, and room for the guest.
const ROOM: u64 = 64 << 20;
/// Disks are of whole MiB where nobody says their size.
const MEBIBYTE: u64 = 1 << 20;
/// Sockets that are named.
const MOST_TOLD: usize = 8;

/// What kernels since Linux 4.12 know.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// What was seen of a directory.
#[derive(Debug, Default)]
struct Seen {
    hasher: blake3::Hasher,
    files: u64,
    /// Bytes that the files take.
    bytes: u64,
    sockets: Vec<String>,
}

impl Seen {
    /// Looks at all that is in a directory. Links are not followed.
    fn of(path: &Path) -> io::Result<Self> {
        let mut seen = Self::default();
        let top = std::fs::metadata(path)?;
        if !top.is_dir() {
            return Err(io::Error::other(format!("{} is no directory", path.display())));
        }
        seen.add(path, &top);
        seen.add_all(path, top.dev(), 0)?;
        Ok(seen)
    }

    fn add_all(&mut self, dir: &Path, device: u64, depth: usize) -> io::Result<()> {
        let failed = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{} cannot be read: {error}", path.display()))
        };
        if depth > MOST_DEPTH {
            return Err(io::Error::other(format!("{} is more than {MOST_DEPTH} directories deep", dir.display())));
        }
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<DirEntry>>>);
        let mut entries = entries.map_err(|error| failed(dir, error))?;
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = std::fs::symlink_metadata(&path).map_err(|error| failed(&path, error))?;
            self.add(&path, &metadata);
            if self.files > MOST_FILES {
                return Err(io::Error::other(format!("there are more than {MOST_FILES} files in it")));
            }
            if metadata.file_type().is_socket() && self.sockets.len() < MOST_TOLD {
                self.sockets.push(path.display().to_string());
            }
            if metadata.is_dir() {
                if metadata.dev() != device {
                    let said =
                        format!("something is mounted at {}, which is no part of it; unmount that", path.display());
                    return Err(io::Error::other(said));
                }
                self.add_all(&path, device, depth + 1)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, metadata: &Metadata) {
        self.files += 1;
        // Holes take nothing. Where the host's file system packs files, more may be needed, which mke2fs tells.
        let taken = metadata.blocks().saturating_mul(512).max(BLOCK);
        let stored = if metadata.is_file() { metadata.len().min(taken) } else { metadata.len() };
        self.bytes += stored.next_multiple_of(BLOCK);
        let name = path.as_os_str().as_bytes();
        self.hasher.update(&(name.len() as u64).to_le_bytes());
        self.hasher.update(name);
        for number in [
            metadata.ino(),
            metadata.rdev(),
            metadata.mode().into(),
            metadata.size(),
            metadata.uid().into(),
            metadata.gid().into(),
            metadata.nlink(),
        ] {
            self.hasher.update(&number.to_le_bytes());
        }
        for time in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            self.hasher.update(&time.to_le_bytes());
        }
    }

    /// The size of a disk on which it all fits, in bytes.
    fn fitting(&self) -> u64 {
        let files = self.bytes.saturating_add(self.files.saturating_mul(INODE + BLOCK / 8));
        // A tenth for what the file system keeps of the blocks, and for root.
        files.saturating_add(files / 8).saturating_add(ROOM).next_multiple_of(MEBIBYTE)
    }
}

/// What is to be made of a directory.
fn name(seen: &Seen, size: u64, label: Option<&str>) -> String {
    let mut hasher = seen.hasher.clone();
    hasher.update(VERSION);
    hasher.update(&size.to_le_bytes());
    hasher.update(label.unwrap_or_default().as_bytes());
    format!("directory-{}", cache::short(&hasher))
}

/// Where `mke2fs` is: it is for root, so that it may not be where an ordinary user's programs are.
fn program(host: &HostContext) -> Option<PathBuf> {
    let name = Path::new("mke2fs");
    look_up(name, host.path.as_deref()).or_else(|| look_up(name, Some("/usr/sbin:/sbin".as_ref())))
}

const NO_PROGRAM: &str =
    "mke2fs is not there, which makes a file system of a directory; install e2fsprogs, or give an image (file) instead";

/// What keeps a disk from being made of this directory, if something does.
pub(crate) fn obstacle(directory: &DirectoryContent, host: &HostContext) -> Option<String> {
    let path = &directory.path;
    let look = std::fs::metadata(path)
        .and_then(|found| if found.is_dir() { Ok(()) } else { Err(io::Error::other("it is no directory")) });
    match look {
        Err(error) => Some(format!("no disk can be made of {}: {error}", path.display())),
        Ok(()) => program(host).is_none().then(|| NO_PROGRAM.to_owned()),
    }
}

/// Puts images in the place of all directories; gives what a person is told of that. `dir` is for what no cache can take.
///
/// # Errors
/// Why one cannot be made.
pub(crate) async fn make_all(disks: &mut [DiskSpec], host: &HostContext, dir: &Path) -> Result<Vec<EventKind>, Lost> {
    let mut told = Vec::new();
    for disk in disks {
        let DiskContent::Directory(directory) = disk.content.clone() else { continue };
        let (image, of_it) = make(&directory, &disk.name(), host, dir).await?;
        disk.content = DiskContent::Image(image);
        told.extend(of_it);
    }
    Ok(told)
}

async fn make(
    directory: &DirectoryContent,
    disk: &str,
    host: &HostContext,
    dir: &Path,
) -> Result<(PathBuf, Vec<EventKind>), Lost> {
    let DirectoryContent { path, size, label } = directory;
    let lasting = |said: String| Lost::from(Cause::Description(said)).lasting();
    let absolute = std::path::absolute(path);
    let path = &absolute.map_err(|error| lasting(format!("no disk can be made of {}: {error}", path.display())))?;
    let shown = path.display();
    let program = program(host).ok_or_else(|| lasting(NO_PROGRAM.to_owned()))?;
    let look = {
        let path = path.clone();
        move || Seen::of(&path)
    };
    let seen = blocking("look at a directory", look).await?;
    let seen = seen.map_err(|error| lasting(format!("no disk can be made of {shown}: {error}")))?;
    let size = size.unwrap_or_else(|| seen.fitting());
    if size > MOST {
        let said = format!("it would have {}, and such a disk has 8 TiB at most", bounds::size(size));
        return Err(lasting(format!("no disk can be made of {shown}: {said}")));
    }
    let name = name(&seen, size, label.as_deref());
    let inodes = (size / BYTES_PER_INODE).max(seen.files + seen.files / 4 + 1024);
    let top = std::fs::metadata(path).map_err(|error| lasting(format!("no disk can be made of {shown}: {error}")))?;
    let mut command = host.shim.command_for_helper(&program);
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-I", "256", "-O", FEATURES, "-N"]);
    // Nothing is left for the guest's kernel to do when it is mounted: that would be requests which nobody has asked for.
    let extended = format!("lazy_itable_init=0,lazy_journal_init=0,root_owner={}:{}", top.uid(), top.gid());
    command.arg(inodes.to_string()).args(["-E", &extended]);
    if let Some(label) = label {
        command.args(["-L", label]);
    }
    command.arg("-d").arg(path).arg(TARGET);
    let (same, of_before, label) = (path.clone(), name.clone(), label.clone());
    let recipe = Recipe {
        name: name.clone(),
        what: format!("file system of {shown} for {disk}"),
        size,
        command,
        program: "mke2fs",
        is_same: Box::new(move || Ok(self::name(&Seen::of(&same)?, size, label.as_deref()) == of_before)),
        advice: if directory.size.is_some() {
            "; where it does not fit, give it a larger `size`, or leave that out"
        } else {
            "; whatever is in it has to be yours to read, and where it does not fit, `size` says how large the disk is"
        },
    };
    let made = made::find(recipe, host, dir).await?;
    let why = format!(
        "an ext4 file system of {} files in {shown} ({}); owners are kept by their numbers",
        seen.files - 1,
        made.how
    );
    let mut told = vec![EventKind::Choice { what: "disk".into(), chosen: made.path.display().to_string(), why }];
    told.extend(made.warnings);
    if !seen.sockets.is_empty() {
        let message =
            format!("sockets in {shown} are files that nobody listens at in the guest: {}", seen.sockets.join(", "));
        told.push(EventKind::Warning { message });
    }
    if top.mode() & 0o7777 != 0o755 {
        let message = format!(
            "the directory {shown} itself has mode {:o}, and the root of the file system that was made of it 755; its extended attributes are not on it, either",
            top.mode() & 0o7777
        );
        told.push(EventKind::Choice { what: "disk".into(), chosen: "mode 755".into(), why: message });
    }
    Ok((made.path, told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_in_a_directory_makes_another_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        std::fs::create_dir(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/file"), "one").unwrap();
        std::os::unix::fs::symlink("/nonexistent", path.join("link")).unwrap();
        let name_now = |size, label| name(&Seen::of(path).unwrap(), size, label);
        let first = name_now(1, None);
        assert_eq!(name_now(1, None), first);
        assert_ne!(name_now(2, None), first);
        assert_ne!(name_now(1, Some("x")), first);
        std::fs::write(path.join("sub/file"), "two").unwrap();
        let second = name_now(1, None);
        assert_ne!(second, first, "the same size");
        std::fs::rename(path.join("sub/file"), path.join("sub/other")).unwrap();
        assert_ne!(name_now(1, None), second);
        assert_eq!(Seen::of(path).unwrap().files, 4);
    }

    #[test]
    fn what_is_no_directory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Seen::of(&file).unwrap_err().to_string().contains("is no directory"));
        Seen::of(&dir.path().join("none")).unwrap_err();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert_eq!(Seen::of(dir.path()).unwrap().sockets.len(), 1);
        // Something is mounted below it.
        assert!(Seen::of(Path::new("/")).unwrap_err().to_string().contains("mounted at /"));
    }
}
