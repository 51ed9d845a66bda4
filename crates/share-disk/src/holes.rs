//! Where in a file there are data, and where holes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Where data begin, and how long they are.
pub(crate) type Extent = (u64, u64);

/// Most extents of one file; what comes after them is taken for data.
const MAX_EXTENTS: usize = 1 << 20;
const PIECE: usize = 256 * 1024;
/// What is looked at for zeros at once.
const BLOCK: usize = 4096;

/// What is no hole in the first `size` bytes of a file, in order. A file system that knows no holes has one extent.
pub(crate) fn extents(file: &OwnedFd, size: u64) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let begin = match seek(file, SeekFrom::Data(at)) {
            Ok(begin) if begin < size => begin,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = match seek(file, SeekFrom::Hole(begin)) {
            Ok(end) if end > begin && extents.len() + 1 < MAX_EXTENTS => end.min(size),
            Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(errno) => return Err(errno.into()),
        };
        extents.push((begin, end - begin));
        at = end;
    }
    Ok(extents)
}

/// CRC-32 of all blocks that are not zero, each with its place: the same whether zeros are a hole or not, for reading mapped memory fills holes in tmpfs.
pub(crate) fn checksum(file: &OwnedFd) -> io::Result<u32> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; PIECE];
    for (begin, length) in extents(file, size)? {
        let end = begin + length;
        let mut at = begin / BLOCK as u64 * BLOCK as u64;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let mut filled = 0;
            while filled < wanted {
                match rustix::io::pread(file, &mut buffer[filled..wanted], at + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            for (number, block) in buffer[..filled].chunks(BLOCK).enumerate() {
                // Without the zeros at its end, so that one that a hole cuts is the same.
                let used = block.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                if used > 0 {
                    crc.update(&(at + (number * BLOCK) as u64).to_le_bytes());
                    crc.update(&block[..used]);
                }
            }
            if filled < wanted {
                break;
            }
            at += filled as u64;
        }
    }
    crc.update(&size.to_le_bytes());
    Ok(crc.finalize())
}
