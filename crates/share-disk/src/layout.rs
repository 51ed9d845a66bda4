//! What is where on the disk.
//!
//! ```text
//! 0        header: magic (16 bytes), id (16), length of the program (8), length of the archive (8), its CRC-32 (4), CRC-32 of all this (4); numbers
//!          are little-endian, and zeros fill the rest of 4096 bytes
//! 1 MiB    the agent, for a guest that has no other way to it
//! 64 MiB   archive with what the guest is to see
//! 128 GiB  archive with what the guest changed, whose length and CRC-32 the agent says
//! ```
//!
//! The file behind it is sparse: nothing takes room but what is written.

/// Bytes of the disk as the guest sees it.
pub const DISK_SIZE: u64 = 256 << 30;
/// Where the agent is.
pub const PROGRAM_AT: u64 = 1 << 20;
/// Where the archive for the guest is.
pub const CONTENT_AT: u64 = 64 << 20;
/// Where the archive of the guest is.
pub const RETURN_AT: u64 = 128 << 30;
/// Most bytes of an archive, each way.
pub const MAX_ARCHIVE: u64 = RETURN_AT - CONTENT_AT;
/// Most bytes of the agent.
pub const MAX_PROGRAM: u64 = CONTENT_AT - PROGRAM_AT;
/// Bytes of the header, and what all that is read or written at once is a multiple of.
pub const BLOCK: usize = 4096;
/// How the disk begins, by which it is known on any bus: a line, which a shell can compare too.
pub const MAGIC: &[u8; 16] = b"belljar-share-1\n";
/// The disk's serial number.
pub const SERIAL: &str = "belljar-share";

/// Bytes of the header that mean something.
const HEADER: usize = 16 + 16 + 8 + 8 + 4 + 4;

/// The agent as it is on the disk: in whole blocks, with zeros behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// How many blocks.
    pub blocks: u64,
    /// What POSIX's `cksum` says of them.
    pub sum: u32,
}

impl Program {
    /// Of these bytes.
    #[must_use]
    pub fn of(program: &[u8]) -> Self {
        let blocks = program.len().div_ceil(BLOCK);
        let mut padded = program.to_vec();
        padded.resize(blocks * BLOCK, 0);
        Self { blocks: blocks as u64, sum: cksum(&padded) }
    }
}

/// The checksum of POSIX's `cksum`: a CRC-32 that takes the highest bit of each byte first and begins with zero, over the bytes and their number. It is
/// that of `crc32fast` with all bits the other way round.
#[must_use]
pub fn cksum(bytes: &[u8]) -> u32 {
    let length = (bytes.len() as u64).to_le_bytes();
    let used = length.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let reversed: Vec<u8> = bytes.iter().chain(&length[..used]).map(|byte| byte.reverse_bits()).collect();
    let mut crc = crc32fast::Hasher::new_with_initial(u32::MAX);
    crc.update(&reversed);
    crc.finalize().reverse_bits()
}

/// How the disk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Random, and another for each content: who is told of it knows what it reads.
    pub id: [u8; 16],
    /// Bytes of the agent; 0 if it is not there.
    pub program: u64,
    /// Bytes of the archive for the guest.
    pub content: u64,
    /// Their CRC-32.
    pub crc: u32,
}

impl Header {
    /// As it is on the disk.
    #[must_use]
    pub fn to_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(MAGIC);
        put(&self.id);
        put(&self.program.to_le_bytes());
        put(&self.content.to_le_bytes());
        put(&self.crc.to_le_bytes());
        let crc = crc32fast::hash(&block[..HEADER - 4]);
        block[HEADER - 4..HEADER].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Reads it; none if this is no such disk, or the header is damaged.
    #[must_use]
    pub fn of_block(block: &[u8]) -> Option<Self> {
        let bytes = block.get(..HEADER).filter(|bytes| bytes.starts_with(MAGIC))?;
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let crc = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if crc(HEADER - 4)? != crc32fast::hash(&bytes[..HEADER - 4]) {
            return None;
        }
        let header =
            Self { id: bytes[16..32].try_into().ok()?, program: number(32)?, content: number(40)?, crc: crc(48)? };
        (header.program <= MAX_PROGRAM && header.content <= MAX_ARCHIVE).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_cksum() {
        // Of GNU's: `printf 123456789 | cksum`, and of nothing.
        assert_eq!((cksum(b"123456789"), cksum(b"")), (930_766_865, 4_294_967_295));
        let program = Program::of(&[7; 5000]);
        let padded = [&[7; 5000][..], &[0; 3192]].concat();
        assert_eq!(program, Program { blocks: 2, sum: cksum(&padded) });
    }
}
