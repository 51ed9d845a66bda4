//! The compressions that layers and archives come in, told apart by their first bytes.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Memory that an xz decoder may take, in KiB.
const XZ_MEMORY_KIB: u32 = 256 * 1024;

/// How bytes are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
    Xz,
    /// Known, without a decoder here.
    Bzip2,
}

impl Packing {
    /// By the first bytes.
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }
}

/// A reader of what is packed in `source`, to its end.
///
/// # Errors
/// Where there is no decoder, or the first bytes cannot be read.
pub(crate) fn reader<'a, R: BufRead + 'a>(mut source: R) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Packing::of(source.fill_buf()?) {
        Packing::None => Box::new(source),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Packing::Zstd => Box::new(Zstd::new(source)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, XZ_MEMORY_KIB)),
        Packing::Bzip2 => {
            let said = "it is packed by bzip2, for which there is no decoder here; pack it by gzip, zstd or xz";
            return Err(io::Error::new(io::ErrorKind::Unsupported, said));
        }
    })
}

/// Frames of Zstandard, one after another, of which some hold nothing for us.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    is_within: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), is_within: false }
    }

    /// Goes to the next frame that holds something; tells whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_within {
                if !self.begin()? {
                    return Ok(0);
                }
                self.is_within = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
            }
            match self.decoder.read(out)? {
                0 => self.is_within = false,
                read => return Ok(read),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    fn pack(command: &[&str], bytes: &[u8]) -> Vec<u8> {
        let mut child = Command::new(command[0]);
        let child = child.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|e| panic!("these tests need {}: {e}", command[0]));
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn all_that_comes_one_after_another_is_read_and_what_is_cut_is_an_error() {
        for tool in [&["gzip"][..], &["zstd", "-q"], &["xz"]] {
            let mut packed = pack(tool, b"first ");
            packed.extend(pack(tool, b"second"));
            let mut read = Vec::new();
            reader(&packed[..]).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, b"first second", "{tool:?}");
            let cut = &packed[..packed.len() - 5];
            assert!(reader(cut).unwrap().read_to_end(&mut read).is_err(), "{tool:?}");
        }
    }

    #[test]
    fn frames_that_hold_nothing_are_skipped() {
        let mut packed = vec![0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        packed.extend(pack(&["zstd", "-q"], b"within"));
        packed.extend([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
        let mut read = Vec::new();
        reader(&packed[..]).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, b"within");
    }

    #[test]
    fn what_has_no_decoder_says_what_to_do() {
        let Err(error) = reader(&b"BZh9"[..]) else { panic!("bzip2 was read") };
        assert!(error.to_string().contains("gzip"));
    }

    proptest::proptest! {
        #[test]
        fn rubbish_does_not_panic(mut bytes: Vec<u8>, which in 0usize..4) {
            let magic: &[u8] = [&b"\x1f\x8b\x08"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"][which];
            bytes.splice(0..0, magic.iter().copied());
            if let Ok(reader) = reader(&bytes[..]) {
                let _ = reader.take(1 << 20).read_to_end(&mut Vec::new());
            }
        }
    }
}
