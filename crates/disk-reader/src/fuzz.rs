//! Bodies of the fuzz targets in `fuzz/`: any bytes, and what must hold of them. The property tests run them too, so that they are run where there is no
//! fuzzer.

use std::sync::Arc;
use std::time::Duration;

use crate::{Disk, FileError, Limits, inspect};

/// As much as a broken disk of a few megabytes may make anybody read.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 256 << 20 };
/// Bytes of a file that are read.
const MAX_FILE: u64 = 4 << 20;

/// A disk of which bytes were changed, each by four bytes of `data`: nothing panics, nothing is endless.
pub fn disk(base: &Arc<[u8]>, data: &[u8]) {
    let size = (base.len() as u64).max(1);
    let changes =
        data.chunks_exact(4).take(64).map(|c| (u64::from(u32::from_le_bytes([c[0], c[1], c[2], 0])) % size, c[3]));
    look(&Disk::of_bytes(Arc::clone(base), changes.collect(), LIMITS));
}

/// A disk that is these bytes.
pub fn bytes(data: &[u8]) {
    look(&Disk::of_bytes(data.into(), Vec::new(), LIMITS));
}

/// A configuration of GRUB, on a disk on which nothing is.
pub fn grub(data: &[u8]) {
    let description =
        inspect(&Disk::of_bytes([0; 4096].into(), Vec::new(), LIMITS)).expect("an empty disk can be read");
    let text = String::from_utf8_lossy(data);
    crate::boot::run_grub(&description.volumes, &text);
}

/// An initramfs: it is read to its end, or is an error.
pub fn initramfs(data: &[u8]) {
    let mut names = belljar_image::initramfs::ModuleNames::default();
    if names.add(data).is_ok() {
        let modules = names.into_modules();
        assert!(modules.iter().all(|name| !name.is_empty() && !name.contains(['/', '-'])), "{modules:?}");
    }
}

/// Everything that is read of a disk.
fn look(disk: &Disk) {
    let Ok(description) = inspect(disk) else { return };
    let told = serde_json::to_string(&description).expect("it is data");
    assert!(!told.contains("its reader failed (a bug)"), "{told}");
    for entry in &description.entries {
        drop(description.initramfs_modules(entry));
        for file in std::iter::once(&entry.kernel).chain(&entry.initrds) {
            match description.read_file(file, MAX_FILE) {
                Ok(bytes) => assert_eq!(bytes.len() as u64, file.size),
                Err(error) => assert!(!matches!(error, FileError::Panicked { .. }), "{error}"),
            }
        }
    }
    if let Ok(Some(system)) = description.system() {
        let overlay = belljar_image::modules::Feature::Overlay;
        assert!(system.kernels.iter().filter_map(|kernel| kernel.feature(overlay)).count() <= system.kernels.len());
    }
    drop(description.obstacles());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// What the fuzzer found: arguments that grow with each call.
    #[test]
    fn arguments_do_not_grow_for_ever() {
        super::grub(format!("function f {{\n f {}\n}}\nf a b c\n", "$* ".repeat(300)).as_bytes());
    }

    proptest! {
        #[test]
        fn grub(text in "(set |\\$\\{?[a-z@#]{0,3}\\}?|menuentry |submenu |if |then\n|else\n|fi\n|\\{|\\}|for x in a b; do |done\n|\\[ |\\]|;|\n|'|\"|\\\\|linux /a |source /x |function f |f |while |-a|-o|! |\\(|\\)|[a-z ]{0,4}){0,40}") {
            super::grub(text.as_bytes());
        }

        #[test]
        fn initramfs(mut data in prop::collection::vec(any::<u8>(), 0..512), magic in 0usize..6) {
            let word: &[u8] = [&b"070701"[..], b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"][magic];
            data.splice(0..0, word.iter().copied());
            super::initramfs(&data);
        }

        #[test]
        fn bytes(mut data in prop::collection::vec(any::<u8>(), 0..4096), magic in 0usize..8) {
            let (at, word): (usize, &[u8]) =
                [(0, &b"XFSB"[..]), (1080, b"\x53\xef"), (510, b"\x55\xaa"), (512, b"EFI PART"), (24, b"LVM2 001"), (0, b"LUKS\xba\xbe"), (54, b"FAT16"), (82, b"FAT32")][magic];
            if data.len() >= at + word.len() {
                data[at..at + word.len()].copy_from_slice(word);
            }
            super::bytes(&data);
        }
    }
}
