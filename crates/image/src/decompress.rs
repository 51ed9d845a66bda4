//! The compressions that kernels and their modules come in, told apart by their first bytes.

use std::io::{self, BufRead, Read};

/// Memory that an xz or lzma decoder may take, in KiB: kernels are packed with dictionaries of up to 128 MiB.
const LZMA_MEMORY_KIB: u32 = 256 * 1024;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// The .xz container, with the x86 branch filter in a bzImage.
    Xz,
    /// The old .lzma container.
    Lzma,
    /// Zstandard.
    Zstd,
    /// The "legacy" frame that `lz4 -l` writes.
    Lz4Legacy,
    /// Known, but nobody has shipped it in years: not worth a decoder.
    Bzip2,
    /// Likewise.
    Lzop,
}

impl Packing {
    /// Recognises the first bytes (6 suffice); what is not recognised is taken as not packed.
    pub(crate) fn of(head: &[u8]) -> Packing {
        match head {
            [0x1f, 0x8b | 0x9e, ..] => Packing::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
            [0x5d, 0, 0, ..] => Packing::Lzma,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            [0x02, 0x21, 0x4c, 0x18, ..] => Packing::Lz4Legacy,
            [b'B', b'Z', b'h', ..] => Packing::Bzip2,
            [0x89, b'L', b'Z', b'O', ..] => Packing::Lzop,
            _ => Packing::None,
        }
    }

    /// Its name as people know it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Packing::None => "none",
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Lzma => "lzma",
            Packing::Zstd => "zstd",
            Packing::Lz4Legacy => "lz4",
            Packing::Bzip2 => "bzip2",
            Packing::Lzop => "lzop",
        }
    }

    /// A reader of what is packed in `source`. It reads one stream and leaves what follows alone,
    /// since a bzImage appends the unpacked size. `None` for a packing without a decoder.
    pub(crate) fn reader<'a, R: BufRead + 'a>(self, source: R) -> io::Result<Option<Box<dyn Read + 'a>>> {
        Ok(Some(match self {
            Packing::None => Box::new(source),
            Packing::Gzip => Box::new(flate2::bufread::GzDecoder::new(source)),
            Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(source, false, LZMA_MEMORY_KIB)),
            Packing::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(source, LZMA_MEMORY_KIB, None)?),
            Packing::Zstd => Box::new(ruzstd::decoding::StreamingDecoder::new(source).map_err(io::Error::other)?),
            Packing::Lz4Legacy => Box::new(Lz4Legacy::new(source)),
            Packing::Bzip2 | Packing::Lzop => return Ok(None),
        }))
    }
}

/// Reads `lz4 -l`: a magic number, then blocks, each after its packed length (32 bits).
struct Lz4Legacy<R> {
    source: R,
    started: bool,
    block: Vec<u8>,
    taken: usize,
}

impl<R: Read> Lz4Legacy<R> {
    /// What one block holds at most, by the format.
    const BLOCK: usize = 8 << 20;

    fn new(source: R) -> Self {
        Self { source, started: false, block: Vec::new(), taken: 0 }
    }

    /// The next block, empty at the end.
    fn fill(&mut self) -> io::Result<()> {
        self.block.clear();
        self.taken = 0;
        if !self.started {
            let mut magic = [0; 4];
            self.source.read_exact(&mut magic)?;
            self.started = true;
        }
        let mut length = Vec::new();
        (&mut self.source).take(4).read_to_end(&mut length)?;
        let Ok(length) = <[u8; 4]>::try_from(length.as_slice()) else { return Ok(()) };
        let length = u64::from(u32::from_le_bytes(length));
        let mut packed = Vec::new();
        // Never more than the block could need; incompressible data grows by 1/255.
        let most = (Self::BLOCK + Self::BLOCK / 255 + 64) as u64;
        (&mut self.source).take(length.min(most)).read_to_end(&mut packed)?;
        if packed.is_empty() {
            return Ok(()); // the four bytes were the unpacked size that a bzImage appends
        }
        if packed.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block = lz4_flex::block::decompress(&packed, Self::BLOCK).map_err(io::Error::other)?;
        Ok(())
    }
}

impl<R: Read> Read for Lz4Legacy<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.block.len() {
            self.fill()?;
        }
        let n = (&self.block[self.taken..]).read(out)?;
        self.taken += n;
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Packs with the tools that kernels are packed with.
    pub(crate) fn pack_with(command: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("these tests need {}: {e}", command[0]));
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
        let out = child.wait_with_output().unwrap();
        feeder.join().unwrap().unwrap();
        assert!(out.status.success());
        out.stdout
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Looks like machine code to the branch filter: calls all over.
    pub(crate) fn sample() -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        for i in 0u32..60_000 {
            bytes.extend_from_slice(&[0xe8]);
            bytes.extend_from_slice(&(i % 977).to_le_bytes());
            bytes.extend_from_slice(b"\x90\x55");
        }
        bytes
    }

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Packing::of(packed).reader(packed)?.unwrap().read_to_end(&mut out)?;
        Ok(out)
    }

    const TOOLS: &[&[&str]] = &[
        &["gzip", "-9"],
        &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"],
        &["xz", "--check=crc32", "--lzma2=dict=1MiB"],
        &["xz", "--format=lzma"],
        &["zstd", "-q", "-c", "-22", "--ultra"],
        &["lz4", "-q", "-l", "-c"],
    ];

    #[test]
    fn every_packing_comes_back_with_and_without_the_appended_size() {
        let sample = sample();
        for tool in TOOLS {
            let mut packed = pack_with(tool, &sample);
            assert_ne!(Packing::of(&packed), Packing::None, "{tool:?}");
            assert!(unpack(&packed).unwrap() == sample, "{tool:?}");
            packed.extend_from_slice(&u32::try_from(sample.len()).unwrap().to_le_bytes());
            assert!(unpack(&packed).unwrap() == sample, "{tool:?} with a size behind");
        }
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let sample = sample();
        for tool in TOOLS {
            let packed = pack_with(tool, &sample);
            assert!(unpack(&packed[..packed.len() / 2]).is_err(), "{tool:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn rubbish_does_not_panic(mut bytes: Vec<u8>, which in 0usize..5) {
            let magic: &[u8] = [&b"\x1f\x8b\x08"[..], b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"][which];
            bytes.splice(0..0, magic.iter().copied());
            if let Ok(Some(reader)) = Packing::of(&bytes).reader(&bytes[..]) {
                let _ = reader.take(1 << 20).read_to_end(&mut Vec::new());
            }
        }
    }
}
