//! Disks that are broken, cut short, or meant badly.

use std::sync::Arc;

use belljar_disk_reader::{Disk, Limits, fuzz, inspect};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::image;

const ALL: &[&str] = &["ext4", "ext3", "ext2", "xfs", "btrfs", "fat12", "fat16", "gpt", "mbr", "lvm"];

#[test]
fn a_disk_that_is_cut_short_anywhere_is_read_as_far_as_it_goes() {
    for name in ALL {
        let whole = image(name);
        let steps =
            [0, 1, 511, 512, 513, 1024, 1100, 4096, 66_000, 69_632, 100_000, 1 << 20, whole.len() / 2, whole.len() - 1];
        for cut in steps.into_iter().filter(|&cut| cut < whole.len()) {
            fuzz::bytes(&whole[..cut]);
        }
    }
}

/// Bytes are changed where there is something, which is in little of a disk.
#[test]
fn changed_bytes_do_no_harm() {
    for name in ALL {
        let base = image(name);
        let used: Vec<u64> = base
            .chunks(64)
            .enumerate()
            .filter(|(_, c)| c.iter().any(|&b| b != 0))
            .map(|(i, _)| 64 * i as u64)
            .collect();
        let change = (0..used.len(), 0u64..64, prop_oneof![Just(0u8), Just(0xff), Just(1), any::<u8>()]);
        let mut runner = TestRunner::new(Config { cases: 6, ..Config::default() });
        let outcome = runner.run(&prop::collection::vec(change, 1..12), |changes| {
            let data: Vec<u8> = changes
                .iter()
                .flat_map(|&(i, at, byte)| {
                    let place = (used[i] + at).to_le_bytes();
                    [place[0], place[1], place[2], byte]
                })
                .collect();
            fuzz::disk(&base, &data);
            Ok(())
        });
        assert!(outcome.is_ok(), "{name}: {outcome:?}");
    }
}

/// A chain of logical partitions that leads back, and partitions that are not on the disk.
#[test]
fn a_table_that_lies_is_told() {
    let base = image("mbr");
    let look =
        |changes: Vec<(u64, u8)>| inspect(&Disk::of_bytes(Arc::clone(&base), changes, Limits::default())).unwrap();
    // The second entry of the first table in the extended partition: where the next one is, from 4096 on.
    let next = 4096 * 512 + 446 + 16 + 8;
    let circle = look(vec![(next, 0), (next + 1, 0), (next + 2, 0), (next + 3, 0)]);
    assert!(circle.notes.iter().any(|note| note.contains("leads back")), "{:?}", circle.notes);
    let far = look(vec![(next + 3, 0xff)]);
    assert!(far.notes.iter().any(|note| note.contains("cannot be read")), "{:?}", far.notes);
    let long = look(vec![(446 + 12 + 3, 0x7f)]);
    assert!(
        long.notes.iter().any(|note| note.contains("ends past the end of the disk: the image is cut short")),
        "{:?}",
        long.notes
    );
}

#[test]
fn a_chain_of_clusters_that_is_a_circle_ends() {
    // FAT12, whose root directory has EFI in cluster 2: each entry of the FAT from the third on is made to name cluster 2.
    let base = image("fat12");
    let changes: Vec<(u64, u8)> =
        (0..30).flat_map(|i| [(512 + 3 + 3 * i, 2), (512 + 4 + 3 * i, 0x20), (512 + 5 + 3 * i, 0)]).collect();
    let disk = Disk::of_bytes(base, changes, Limits::default());
    let found = inspect(&disk).unwrap();
    let error = found.list_path(0, "/EFI").unwrap_err();
    assert!(error.to_string().contains("a circle"), "{error}");
}

#[test]
fn a_limit_ends_the_look_and_is_named() {
    let limits = Limits { bytes: 100_000, ..Limits::default() };
    let error = inspect(&Disk::of_bytes(image("ext4"), Vec::new(), limits)).unwrap_err();
    assert!(error.is_limit() && error.to_string().contains("100000 bytes"), "{error}");
}
