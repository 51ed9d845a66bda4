//! The little of qcow2 (QEMU's `docs/interop/qcow2.txt`) that is done here: an empty image, and a look at whether an
//! image is all there, which neither `qemu-img info` nor QEMU does before a guest reads what is missing.
//!
//! An empty image in clusters of 64 KiB:
//!
//! ```text
//! 0  header, version 3
//! 1  refcount table: one entry, to cluster 2
//! 2  refcount block: 1 for each cluster here
//! 3… L1 table, all zeros
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: &[u8] = b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// What one entry of the L1 table stands for: a cluster of 8-byte entries, each a cluster.
const PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
/// QEMU takes L1 tables of up to 32 MiB.
pub(super) const MAX_SIZE: u64 = (32 << 20) / 8 * PER_L1_ENTRY;

/// Makes an empty file an empty qcow2 image of `virtual_size` bytes, at most [`MAX_SIZE`].
pub(super) fn write_empty(file: &File, virtual_size: u64) -> io::Result<()> {
    let l1_entries = virtual_size.div_ceil(PER_L1_ENTRY);
    let clusters = 3 + (l1_entries * 8).div_ceil(CLUSTER);
    let l1_entries = u32::try_from(l1_entries).map_err(io::Error::other)?;
    let header = [
        MAGIC,
        &3_u32.to_be_bytes(), // version
        &[0; 8 + 4],          // backing file: QEMU is told on its command line
        &CLUSTER_BITS.to_be_bytes(),
        &virtual_size.to_be_bytes(),
        &[0; 4], // encryption
        &l1_entries.to_be_bytes(),
        &(3 * CLUSTER).to_be_bytes(),
        &CLUSTER.to_be_bytes(), // refcount table
        &1_u32.to_be_bytes(),   // clusters of that
        &[0; 4 + 8],            // snapshots
        &[0; 8 + 8 + 8],        // incompatible, compatible, autoclear features
        &4_u32.to_be_bytes(),   // refcounts of 1 << 4 bits
        &104_u32.to_be_bytes(), // length of this; zeros follow, the end of header extensions
    ]
    .concat();
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts = vec![[0, 1]; usize::try_from(clusters).map_err(io::Error::other)?];
    file.write_all_at(counts.as_flattened(), 2 * CLUSTER)?;
    file.set_len(clusters * CLUSTER)
}

/// What is in a header that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    cluster_bits: u32,
    l1_entries: u32,
    l1_offset: u64,
    incompatible: u64,
}

/// Integers of a qcow2 are big-endian.
fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Header {
    /// From the first bytes of a file; none if it is no qcow2 of version 2 or 3.
    pub(super) fn parse(head: &[u8]) -> Option<Header> {
        let version = be32(head, 4)?;
        (head.starts_with(MAGIC) && matches!(version, 2 | 3)).then_some(())?;
        Some(Header {
            cluster_bits: be32(head, 20)?,
            l1_entries: be32(head, 36)?,
            l1_offset: be64(head, 40)?,
            incompatible: if version == 3 { be64(head, 72)? } else { 0 },
        })
    }

    /// Whether the guest's data is in another file, which `qemu-img` might open for a look at this one.
    pub(super) fn has_external_data(self) -> bool {
        self.incompatible & 4 != 0
    }

    /// An offset that the image refers to and that is past its end; none if there is none, or none found within
    /// reasonable effort.
    pub(super) fn missing(self, file: &File, size: u64) -> io::Result<Option<u64>> {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        /// All tables of a full image of half a terabyte.
        const MAX_TABLES: u64 = 64 << 20;
        if !(9..=21).contains(&self.cluster_bits) {
            return Ok(None); // QEMU will say so better
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        let Some(l1_end) = self.l1_offset.checked_add(l1_bytes) else { return Ok(Some(u64::MAX)) };
        if l1_end > size {
            return Ok(Some(l1_end));
        }
        if l1_bytes > 32 << 20 {
            return Ok(None);
        }
        let mut l1 = vec![0; usize::try_from(l1_bytes).map_err(io::Error::other)?];
        file.read_exact_at(&mut l1, self.l1_offset)?;
        let l2_offsets = || l1.as_chunks::<8>().0.iter().map(|e| u64::from_be_bytes(*e) & OFFSET).filter(|&o| o != 0);
        let cluster = 1_u64 << self.cluster_bits;
        let past_end = |&offset: &u64| offset.checked_add(cluster).is_none_or(|end| end > size);
        if let Some(offset) = l2_offsets().find(past_end) {
            return Ok(Some(offset));
        }
        let most_tables = usize::try_from(MAX_TABLES / cluster).map_err(io::Error::other)?;
        let mut l2 = vec![0; usize::try_from(cluster).map_err(io::Error::other)?];
        // From the end: what is cut off is what was written last.
        let tables: Vec<_> = l2_offsets().collect();
        for &offset in tables.iter().rev().take(most_tables) {
            file.read_exact_at(&mut l2, offset)?;
            let furthest = self.data_offsets(&l2).max().unwrap_or(0);
            if furthest >= size {
                return Ok(Some(furthest));
            }
        }
        Ok(None)
    }

    /// Where the clusters of an L2 table have their data.
    fn data_offsets(self, l2: &[u8]) -> impl Iterator<Item = u64> + '_ {
        let extended = self.incompatible & 16 != 0;
        let entry_size = if extended { 16 } else { 8 };
        let compressed_mask = (1_u64 << (62 - (self.cluster_bits - 8))) - 1;
        l2.chunks_exact(entry_size).filter_map(move |entry| {
            let entry = be64(entry, 0)?;
            if entry & (1 << 62) != 0 {
                return Some(entry & compressed_mask);
            }
            // A cluster of zeros may have room that was never written.
            let zeros = extended || entry & 1 != 0;
            (!zeros).then_some(entry & 0x00ff_ffff_ffff_fe00)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn empty(virtual_size: u64) -> (File, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        write_empty(&file, virtual_size).unwrap();
        let mut head = vec![0; 4096];
        file.read_exact_at(&mut head, 0).unwrap();
        (file, head)
    }

    #[test]
    fn an_empty_image_is_whole() {
        for size in [512, 1 << 30, PER_L1_ENTRY, PER_L1_ENTRY + 512, 1 << 44, MAX_SIZE] {
            let (file, head) = empty(size);
            let header = Header::parse(&head).unwrap();
            assert!(!header.has_external_data());
            let length = file.metadata().unwrap().len();
            assert_eq!(header.missing(&file, length).unwrap(), None, "{size}");
            assert!(header.missing(&file, 2 * CLUSTER).unwrap().is_some());
        }
    }

    #[test]
    fn data_past_the_end_is_missing() {
        let (file, head) = empty(1 << 30);
        let header = Header::parse(&head).unwrap();
        file.write_all_at(&(1_u64 << 63 | (4 * CLUSTER)).to_be_bytes(), 3 * CLUSTER).unwrap();
        assert_eq!(header.missing(&file, 4 * CLUSTER).unwrap(), Some(4 * CLUSTER));
        file.set_len(5 * CLUSTER).unwrap();
        assert_eq!(header.missing(&file, 5 * CLUSTER).unwrap(), None);
        let entry = |entry: u64| {
            file.write_all_at(&entry.to_be_bytes(), 4 * CLUSTER).unwrap();
            header.missing(&file, 5 * CLUSTER).unwrap()
        };
        assert_eq!(entry(1 << 63 | (5 * CLUSTER)), Some(5 * CLUSTER));
        assert_eq!(entry(1 << 63 | (5 * CLUSTER) | 1), None, "zeros need no data");
        assert_eq!(entry(1 << 62 | 1 << 55 | 9_000_000), Some(9_000_000), "compressed");
        assert_eq!(entry(1 << 62 | 1 << 55 | 300_000), None);
    }

    proptest! {
        #[test]
        fn no_image_panics(changes in prop::collection::vec((0usize..112, any::<u8>()), 0..20), table: [u64; 8], size in 0u64..1 << 20) {
            let (file, mut head) = empty(1 << 30);
            for (at, byte) in changes {
                head[at] = byte;
            }
            let mut writer = &file;
            writer.write_all(&head).unwrap();
            for (i, entry) in table.iter().enumerate() {
                file.write_all_at(&entry.to_be_bytes(), 3 * CLUSTER + 8 * i as u64).unwrap();
            }
            if let Some(header) = Header::parse(&head) {
                let size = size.min(file.metadata().unwrap().len());
                header.missing(&file, size).unwrap();
            }
        }

        #[test]
        fn no_header_panics(bytes: Vec<u8>) {
            Header::parse(&bytes);
            Header::parse(&[MAGIC, &[0, 0, 0, 3], &bytes].concat());
        }
    }
}
