//! Real file systems and disks (`tests/data/make` made them), real images of every format by `qemu-img`, and all of it broken in many ways.

mod formats;
mod hostile;
mod real;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use belljar_disk_reader::{Description, Disk, Limits, inspect};

/// A disk of `tests/data`.
fn image(name: &str) -> Arc<[u8]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.img.xz"));
    let packed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(&packed[..], false).read_to_end(&mut bytes).unwrap();
    bytes.into()
}

fn in_memory(bytes: Arc<[u8]>) -> Disk {
    Disk::of_bytes(bytes, Vec::new(), Limits::default())
}

fn look(name: &str) -> Description {
    inspect(&in_memory(image(name))).unwrap()
}

/// What `tests/data/make` wrote as an initrd.
fn initrd() -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    bytes.extend((0..700_000_u32).map(|i| u8::try_from(i / 1000 % 256).unwrap()));
    bytes
}

fn qemu_img() -> PathBuf {
    "/usr/bin/qemu-img".into()
}
