//! Reading files no further than a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a file for reading without waiting on it, should it be a FIFO.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    File::options().read(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open(path)
}

/// The whole file, or `FileTooLarge` when it has more than `max` bytes.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_all(open(path)?, max)
}

/// Everything in `source`, or `FileTooLarge` when that is more than `max` bytes.
pub(crate) fn read_all(source: impl Read, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {max} bytes, which is more than such a file should have"),
        ));
    }
    Ok(bytes)
}

/// The first `max` bytes of a file, or fewer when it has fewer.
pub(crate) fn head(file: &File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Integers at an offset of a byte slice; none where the slice ends before them.
pub(crate) mod le {
    macro_rules! at {
        ($name:ident, $ty:ty) => {
            pub(crate) fn $name(bytes: &[u8], offset: usize) -> Option<$ty> {
                let end = offset.checked_add(size_of::<$ty>())?;
                Some(<$ty>::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
            }
        };
    }
    at!(u16, u16);
    at!(u32, u32);
    at!(u64, u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_the_limit_is_an_error_and_not_a_part() {
        assert_eq!(read_all(&b"12345"[..], 5).unwrap(), b"12345");
        assert_eq!(read_all(&b"123456"[..], 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn integers_past_the_end_are_none() {
        assert_eq!(le::u32(&[1, 0, 0, 0], 0), Some(1));
        assert_eq!(le::u32(&[1, 0, 0, 0], 1), None);
        assert_eq!(le::u64(&[0; 8], usize::MAX), None);
    }
}
