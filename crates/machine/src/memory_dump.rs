//! What is kept of a guest's memory when its kernel has failed, where that is asked for.
//!
//! QEMU packs it, page by page (`kdump-zlib`, which crash(8) reads), and writes it to a pipe, so that it makes no file and a limit holds whatever it
//! does. The file has its name only when it is whole.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
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
                file.persist_noclobber(&path).map_err(|error| of_host(error.error))?;
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

/// Writes what comes to a file that is gone when nobody wants it, to the end of it.
fn write(from: OwnedFd, dir: &Path, most: u64) -> io::Result<(NamedTempFile, u64)> {
    let mut from = File::from(from);
    let mut file = NamedTempFile::new_in(dir)?;
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
        file.write_all(&buffer[..read])?;
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
        assert_eq!(std::fs::read(file.path()).unwrap(), vec![7; 1 << 20]);
        drop(file);
        let error = of(&[7; 1 << 20], (1 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("which is its limit"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
