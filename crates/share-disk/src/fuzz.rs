//! What a fuzzer runs: reading what a guest puts on its disk, without making files of it. The property tests make files.

use crate::layout::Header;
use crate::tar::Reader;

/// Reads a header and an archive.
pub fn archive(bytes: &[u8]) {
    let _ = Header::of_block(bytes);
    let mut reader = Reader::new(bytes);
    let mut data = [0; 1024];
    while let Ok(Some(entry)) = reader.entry() {
        let mut read = 0;
        while let Ok(more @ 1..) = reader.data(&mut data) {
            read += more as u64;
        }
        assert!(read <= entry.size && read <= bytes.len() as u64);
    }
}
