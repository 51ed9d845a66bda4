//! Throw-away layers: files without a name, which are gone with the last process that has them open.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;

use super::{DiskError, DiskImage, qcow2};
use crate::cache::unnamed_file;

/// A layer that takes a guest's writes.
#[derive(Debug)]
pub struct Overlay {
    /// The descriptor for QEMU's `-add-fd`, open for reading and writing. It is closed on `exec`.
    pub fd: OwnedFd,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
}

impl AsFd for Overlay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An empty qcow2 layer over `image`, in the file system of `dir`. Who opens it has to
/// name what is below it, for the layer itself does not.
///
/// It is written here and not by `qemu-img create`, which needs a name for it, and so could leave it behind.
///
/// # Errors
/// When `dir` has no room or cannot be written, or the image is larger than qcow2 can be.
pub fn create_overlay(dir: &Path, image: &DiskImage) -> Result<Overlay, DiskError> {
    overlay_in(unnamed(dir)?, dir, image.virtual_size)
}

/// The same in an empty file that the caller has made in `dir`, over anything of `virtual_size` bytes.
///
/// # Errors
/// When there is no room, or the size is larger than qcow2 can be.
pub fn overlay_in(file: File, dir: &Path, virtual_size: u64) -> Result<Overlay, DiskError> {
    if virtual_size > qcow2::MAX_SIZE {
        return Err(DiskError::Size { size: virtual_size, max: qcow2::MAX_SIZE });
    }
    // QEMU rounds a raw image up to whole sectors.
    let virtual_size = virtual_size.next_multiple_of(512);
    qcow2::write_empty(&file, virtual_size).map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })?;
    Ok(Overlay { fd: file.into(), virtual_size })
}

/// An empty disk of `size` bytes (raw, sparse), in the file system of `dir`.
///
/// # Errors
/// When `dir` cannot be written or has no files of that size.
pub fn create_empty(dir: &Path, size: u64) -> Result<Overlay, DiskError> {
    empty_in(unnamed(dir)?, dir, size)
}

/// The same in an empty file that the caller has made in `dir`.
///
/// # Errors
/// When the file system of `dir` has no files of that size.
pub fn empty_in(file: File, dir: &Path, size: u64) -> Result<Overlay, DiskError> {
    let max = i64::MAX as u64 / 2;
    if size == 0 || size > max {
        return Err(DiskError::Size { size, max });
    }
    let virtual_size = size.next_multiple_of(512);
    file.set_len(virtual_size).map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })?;
    Ok(Overlay { fd: file.into(), virtual_size })
}

/// An empty file without a name in the file system of `dir`, for reading and writing.
///
/// # Errors
/// When `dir` cannot be written.
pub fn unnamed(dir: &Path) -> Result<File, DiskError> {
    make_unnamed(dir).map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })
}

fn make_unnamed(dir: &Path) -> io::Result<File> {
    match unnamed_file(dir, OFlags::EXCL) {
        // File systems without O_TMPFILE (9p, NFS, …) say one of these.
        Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::IsADirectory) => {}
        other => return other,
    }
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let path = dir.join(format!("layer-{}-{moment}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Layer};
    use super::*;

    fn image(virtual_size: u64) -> DiskImage {
        let layer = Layer { path: "/x".into(), format: Format::Raw, device: false };
        DiskImage { layers: vec![layer], virtual_size, probed: false }
    }

    #[test]
    fn layers_have_no_name_and_whole_sectors() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = create_overlay(dir.path(), &image(1000)).unwrap();
        assert_eq!(overlay.virtual_size, 1024);
        let empty = create_empty(dir.path(), 1).unwrap();
        assert_eq!(File::from(empty.fd).metadata().unwrap().len(), 512);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_made_says_where() {
        let error = create_overlay(Path::new("/nonexistent"), &image(512)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        let error = create_overlay(Path::new("/proc"), &image(512)).unwrap_err();
        assert!(matches!(error, DiskError::Layer { .. }), "{error}");
        assert!(matches!(create_empty(Path::new("/tmp"), 0), Err(DiskError::Size { .. })));
        assert!(matches!(create_empty(Path::new("/tmp"), u64::MAX), Err(DiskError::Size { .. })));
        assert!(matches!(create_overlay(Path::new("/tmp"), &image(u64::MAX)), Err(DiskError::Size { .. })));
        let full = DiskError::Layer { dir: "/run".into(), source: io::ErrorKind::StorageFull.into() };
        assert!(full.to_string().contains("make room"));
    }
}
