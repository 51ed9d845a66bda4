//! What a fuzzer runs: reading what a guest puts on its disk, without making files of it. The property tests make files.

use crate::layout::Header;
use crate::tar::{Kind, PIECE_HEADER, Reader};

/// Reads a header and an archive.
pub fn archive(bytes: &[u8]) {
    let _ = Header::of_block(bytes);
    let mut reader = Reader::new(bytes);
    let mut data = [0; 1024];
    while let Ok(Some(entry)) = reader.entry() {
        let mut read = 0;
        // Of a file with holes as pieces, and whatever is left then.
        while let (Kind::Sparse(_), Ok(Some((_, length)))) = (&entry.kind, reader.piece()) {
            read += PIECE_HEADER as u64;
            let mut left = length;
            while let Ok(more @ 1..) = reader.data(&mut data[..usize::try_from(left).unwrap_or(1024).min(1024)]) {
                (read, left) = (read + more as u64, left - more as u64);
            }
        }
        while let Ok(more @ 1..) = reader.data(&mut data) {
            read += more as u64;
        }
        assert!(read <= entry.size && read <= bytes.len() as u64);
    }
}
