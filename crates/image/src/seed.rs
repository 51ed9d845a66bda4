//! Small disks that tell a guest's own set-up program what to do: files in a FAT file system on a disk without partitions.

use crate::fat;

/// Bytes of such a disk.
pub const SEED_SIZE: u64 = 1 << 20;

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a disk labelled {label:?}: {source}")]
pub struct SeedError {
    /// Its label.
    pub label: String,
    /// What went wrong: its files are too large for it.
    pub source: std::io::Error,
}

/// A disk with this label, of at most eleven letters, and these files: the same bytes for the same files.
///
/// # Errors
/// Where they do not fit.
pub fn seed_disk(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>, SeedError> {
    let made = || -> std::io::Result<Vec<u8>> {
        let mut disk = vec![0; usize::try_from(SEED_SIZE).map_err(std::io::Error::other)?];
        fat::write(&mut disk, label, &[], files.iter().copied())?;
        Ok(disk)
    };
    made().map_err(|source| SeedError { label: label.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told() {
        let large = vec![0; 2 << 20];
        let error = seed_disk("cidata", &[("user-data", &large)]).unwrap_err();
        assert!(error.to_string().starts_with("cannot make a disk labelled \"cidata\": "), "{error}");
        assert!(seed_disk("longer than that", &[]).is_err());
    }

    #[test]
    fn the_same_files_are_the_same_bytes() {
        let make = || seed_disk("cidata", &[("meta-data", b"a"), ("user-data", b"b")]).unwrap();
        assert!(make() == make());
    }
}
