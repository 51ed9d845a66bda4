//! Opening what the user named, without ever waiting for it.

use std::{fs::File, io, os::unix::fs::FileTypeExt, path::Path};

use fs_err::os::unix::fs::OpenOptionsExt;

/// What is no regular file, for a person.
#[must_use]
pub fn special(kind: std::fs::FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a named pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

/// Opens a regular file for reading. A pipe would keep us waiting for whoever writes to it, and a device may never end.
///
/// # Errors
/// If it is something else, which the error names, or cannot be opened.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let refuse = |metadata: &std::fs::Metadata| match special(metadata.file_type()) {
        Some(what) => Err(io::Error::other(format!("{}: it is {what}, not a file", path.display()))),
        None => Ok(()),
    };
    // Before it is opened, for some devices take that as an order; and after, for it may be another one by then.
    refuse(&fs_err::metadata(path)?)?;
    const O_NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let (file, path) = fs_err::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?.into_parts();
    refuse(&file.metadata().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("loop"), path("loop")).unwrap();
        fs_err::write(path("file"), "x").unwrap();
        open_regular(&path("file")).unwrap();
        let refused = |path: &Path| open_regular(path).unwrap_err().to_string();
        assert!(refused(&path("pipe")).contains("a named pipe"));
        assert!(refused(&path("socket")).contains("a socket"));
        assert!(refused(dir.path()).contains("a directory"));
        assert!(refused(Path::new("/dev/zero")).contains("a device"));
        assert!(refused(&path("loop")).contains("symbolic links"), "{}", refused(&path("loop")));
        assert!(refused(&path("none")).contains("none"));
    }
}
