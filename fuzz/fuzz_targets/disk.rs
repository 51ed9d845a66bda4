#![no_main]

use std::io::Read;
use std::sync::{Arc, LazyLock};

static DISKS: LazyLock<Vec<Arc<[u8]>>> = LazyLock::new(|| {
    let packed: [&[u8]; 8] = [
        include_bytes!("../../crates/disk-reader/tests/data/ext2.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/ext4.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/xfs.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/btrfs.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/fat12.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/fat16.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/gpt.img.xz"),
        include_bytes!("../../crates/disk-reader/tests/data/mbr.img.xz"),
    ];
    let unpack = |packed| {
        let mut bytes = Vec::new();
        lzma_rust2::XzReader::new(packed, false).read_to_end(&mut bytes).expect("a disk of the tests");
        bytes.into()
    };
    packed.into_iter().map(unpack).collect()
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((which, data)) = data.split_first() {
        belljar_disk_reader::fuzz::disk(&DISKS[usize::from(*which) % DISKS.len()], data);
    }
});
