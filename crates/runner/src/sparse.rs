//! Copies of files that a guest left: what is a hole stays one. A guest makes a file of many terabytes by one call, which takes no room, and
//! whoever writes its zeros fills the disk.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::Path,
};

use rustix::{
    fs::{SeekFrom as Wanted, seek},
    io::Errno,
};

/// Copies what is in `from` to `to`, which is empty.
///
/// # Errors
/// When one cannot be read or the other be written.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    let mut at = 0;
    while at < size {
        at = match seek(from, Wanted::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            // A file system that does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, Wanted::Hole(at)).unwrap_or(size).min(size);
        let (mut source, mut goal) = (from, to);
        source.seek(SeekFrom::Start(at))?;
        goal.seek(SeekFrom::Start(at))?;
        if io::copy(&mut io::Read::take(source, end.saturating_sub(at)), &mut goal)? == 0 {
            // It became shorter meanwhile.
            break;
        }
        at = end;
    }
    to.set_len(size)
}

/// Copies a regular file with its mode, through no link and without waiting for what is none.
///
/// # Errors
/// As [`copy`].
pub(crate) fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    const NO_WAIT: i32 = rustix::fs::OFlags::NONBLOCK.union(rustix::fs::OFlags::NOFOLLOW).bits().cast_signed();
    let source = fs_err::OpenOptions::new().read(true).custom_flags(NO_WAIT).open(from)?;
    let goal = fs_err::File::create(to)?;
    copy(source.file(), goal.file())?;
    goal.set_permissions(source.metadata()?.permissions())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_stay_holes_and_data_stays_data() {
        let dir = tempfile::tempdir().unwrap();
        let new =
            |name: &str| File::options().read(true).write(true).create_new(true).open(dir.path().join(name)).unwrap();
        let (from, to) = (new("from"), new("to"));
        from.set_len(1 << 40).unwrap();
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(b"middle", 1 << 35).unwrap();
        copy(&from, &to).unwrap();
        let metadata = to.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 40);
        assert!(metadata.blocks() < 2048, "{} blocks", metadata.blocks());
        let mut read = [0; 6];
        to.read_exact_at(&mut read, 1 << 35).unwrap();
        assert_eq!(&read, b"middle");
        to.read_exact_at(&mut read[..5], 0).unwrap();
        assert_eq!(&read[..5], b"start");
        let (empty, plain, copied) = (new("empty"), new("plain"), new("copied"));
        copy(&empty, &new("none")).unwrap();
        plain.write_all_at(b"all of it", 0).unwrap();
        copy(&plain, &copied).unwrap();
        assert_eq!(std::fs::read(dir.path().join("copied")).unwrap(), b"all of it");
    }
}
