//! What is kept of a guest's memory when its kernel has failed, where that is asked for.
//!
//! QEMU packs it, page by page (`kdump-zlib`, which crash(8) reads), and writes it to a pipe, so that it makes no file and a limit holds whatever it
//! does. The file has its name only when it is whole, so that nothing stays of one that is given up, however Belljar ends.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use tempfile::NamedTempFile;

use crate::{
    Lost,
    bounds::{self, size},
    qemu::qmp::{DumpGuestMemory, Qmp, QmpError},
};

/// Its name in the guest's directory.
const MEMORY: &str = "memory.kdump";
/// QEMU packs some ten megabytes in a second, and more of what is empty.
const LIMIT: Duration = Duration::from_secs(300);
/// How long what was packed last may take to be on the disk.
const WRITING: Duration = Duration::from_secs(30);
/// Bytes that are written at once.
const PIECE: usize = 256 << 10;

/// Where the memory is kept, and how much at most.
#[derive(Clone, Debug)]
pub(crate) struct MemoryDump {
    pub(crate) dir: PathBuf,
    pub(crate) most: u64,
}

impl MemoryDump {
    /// Keeps the memory of a guest that was lost, and says where, or why not. One whose QEMU has ended has none.
    pub(crate) async fn of(&self, qmp: &Qmp, lost: Lost) -> Lost {
        match self.keep(qmp).await {
            Ok((path, bytes)) => {
                lost.and_advice(format!("the guest's memory, for crash(8): {} ({})", path.display(), size(bytes)))
            }
            Err(Some(why)) => lost.and_advice(format!("the guest's memory is not kept: {why}")),
            Err(None) => lost.and_advice("the guest's memory is not kept: QEMU has ended".to_owned()),
        }
    }

    async fn keep(&self, qmp: &Qmp) -> Result<(PathBuf, u64), Option<String>> {
        let of_host = |error: io::Error| Some(error.to_string());
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| of_host(errno.into()))?;
        let (dir, most) = (self.dir.clone(), self.most);
        let mut writing = tokio::task::spawn_blocking(move || write(ours, &dir, most));
        let of_qemu = |error: QmpError| match error {
            QmpError::Closed { .. } => None,
            error => Some(error.told()),
        };
        qmp.hand_over("memory", theirs).await.map_err(of_qemu)?;
        let dumped = qmp.execute_within(DumpGuestMemory::to("fd:memory"), LIMIT).await;
        let written = tokio::time::timeout(WRITING, &mut writing).await;
        match (dumped, written) {
            (Ok(_), Ok(Ok(Ok((file, bytes))))) => {
                let path = self.dir.join(MEMORY);
                file.keep_as(&path).map_err(of_host)?;
                Ok((path, bytes))
            }
            // That is why QEMU could not write.
            (_, Ok(Ok(Err(error)))) => Err(of_host(error)),
            (Err(error), _) => Err(of_qemu(error)),
            (Ok(_), Ok(Err(panic))) => Err(Some(panic.to_string())),
            (Ok(_), Err(_)) => Err(Some("it was not on the disk in time".to_owned())),
        }
    }
}

/// A file on its way to its name.
#[derive(Debug)]
enum Unfinished {
    Unnamed(File),
    /// Where the file system has no files without a name.
    Named(NamedTempFile),
}

impl Unfinished {
    fn new_in(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self::Unnamed(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => Ok(Self::Named(NamedTempFile::new_in(dir)?)),
            Err(errno) => Err(errno.into()),
        }
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Unnamed(file) => file,
            Self::Named(file) => file.as_file_mut(),
        }
    }

    /// Gives it this name, which no file may have.
    fn keep_as(self, path: &Path) -> io::Result<()> {
        match self {
            // AT_EMPTY_PATH would want CAP_DAC_READ_SEARCH.
            Self::Unnamed(file) => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                Ok(linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
            }
            Self::Named(file) => file.persist_noclobber(path).map(drop).map_err(|error| error.error),
        }
    }
}

/// Writes what comes to a file that is gone when nobody wants it, to the end of it.
fn write(from: OwnedFd, dir: &Path, most: u64) -> io::Result<(Unfinished, u64)> {
    let mut from = File::from(from);
    let mut file = Unfinished::new_in(dir)?;
    let place = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok((file, bytes)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        bytes += read as u64;
        if bytes > most {
            return Err(io::Error::other(format!("it is more than {}, which is its limit (panic-dump)", size(most))));
        }
        if bounds::room_of_host(&place)? < read as u64 {
            return Err(io::Error::other(
                "there is nothing left of the host's file system but what is kept for the host",
            ));
        }
        file.file().write_all(&buffer[..read])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let of = |bytes: &[u8], most| {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let bytes = bytes.to_vec();
            // Who reads no more ends it.
            let writer = std::thread::spawn(move || drop(File::from(theirs).write_all(&bytes)));
            let written = write(ours, dir.path(), most);
            writer.join().unwrap();
            written
        };
        let (file, bytes) = of(&[7; 1 << 20], 1 << 20).unwrap();
        assert_eq!(bytes, 1 << 20);
        // Whoever is killed now leaves nothing behind.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = dir.path().join(MEMORY);
        file.keep_as(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 1 << 20]);
        let (other, _) = of(&[7; 1], 1).unwrap();
        other.keep_as(&path).unwrap_err();
        let named = Unfinished::Named(NamedTempFile::new_in(dir.path()).unwrap());
        named.keep_as(&dir.path().join("named")).unwrap();
        std::fs::remove_file(dir.path().join("named")).unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = of(&[7; 1 << 20], (1 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("which is its limit"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
