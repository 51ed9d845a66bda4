//! Sparse files of tar archives, whole again: which bytes there are, and where; all others are zeros.
//!
//! GNU tar writes them in four ways ("Storing Sparse Files" in its manual): an entry of a kind of its own, with the map in its header and in blocks behind it; and
//! `pax` 0.0, 0.1 and 1.0, with the map in the `pax` header, or in the first blocks of the data. A map that does not fit the data is refused: of it
//! would come a file with other bytes, and nobody would notice.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::limits::MAX_HEADERS;

const RECORD: usize = 512;

/// A run of bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they are in the file.
    at: u64,
    length: u64,
}

/// What a `pax` header says of a sparse file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The file's name, where the header has another for those who do not know of sparse files.
    pub(crate) name: Option<Vec<u8>>,
    version: (Option<u64>, Option<u64>),
    size: Option<u64>,
    count: Option<u64>,
    /// The numbers of the map, as they come: where, and how many.
    map: Vec<u64>,
    /// Whether something was said at all.
    pub(crate) any: bool,
}

impl Told {
    /// Hears one word of it: what is behind `GNU.sparse.`.
    pub(crate) fn hear(&mut self, word: &[u8], value: &[u8]) -> Result<(), String> {
        self.any = true;
        let number = |value: &[u8]| number(value).ok_or_else(|| "its sparse map is no list of numbers".to_owned());
        match word {
            b"name" => self.name = Some(value.to_vec()),
            b"major" => self.version.0 = Some(number(value)?),
            b"minor" => self.version.1 = Some(number(value)?),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"numblocks" => self.count = Some(number(value)?),
            // They come in turn, so that the one may be told from the other by its place.
            b"offset" if self.map.len().is_multiple_of(2) => self.map.push(number(value)?),
            b"numbytes" if !self.map.len().is_multiple_of(2) => self.map.push(number(value)?),
            b"map" if self.map.is_empty() => {
                self.map = value.split(|&byte| byte == b',').map(number).collect::<Result<_, _>>()?;
            }
            _ => return Err(format!("{:?} is not known of sparse files", String::from_utf8_lossy(word))),
        }
        Ok(())
    }

    /// The map; `read` gives the first blocks of the data, where it is there.
    pub(crate) fn map(self, size: u64, mut read: impl FnMut() -> io::Result<[u8; RECORD]>) -> io::Result<Map> {
        match self.version {
            (None | Some(0), None | Some(0 | 1)) => {
                if self.count.is_some_and(|count| count.checked_mul(2) != Some(self.map.len() as u64)) {
                    return Err(wrong("its sparse map has another length than is said"));
                }
                Map::new(self.size, &self.map, size)
            }
            (Some(1), Some(0)) if self.map.is_empty() => {
                let mut numbers = Vec::new();
                let (mut digits, mut wanted, mut blocks) = (Vec::new(), None, 0);
                while wanted.is_none_or(|wanted| numbers.len() as u64 != wanted) {
                    if blocks * RECORD as u64 >= MAX_HEADERS {
                        return Err(wrong("its sparse map is too long"));
                    }
                    blocks += 1;
                    for byte in read()? {
                        if wanted == Some(numbers.len() as u64) {
                            break;
                        }
                        if byte != b'\n' {
                            digits.push(byte);
                            continue;
                        }
                        let said = number(&std::mem::take(&mut digits));
                        let said = said.ok_or_else(|| wrong("its sparse map is no list of numbers"))?;
                        if wanted.is_some() {
                            numbers.push(said);
                        } else {
                            let both = said.checked_mul(2);
                            wanted = Some(both.ok_or_else(|| wrong("its sparse map is too long"))?);
                        }
                    }
                }
                let left = size.checked_sub(blocks * RECORD as u64);
                Map::new(self.size, &numbers, left.ok_or_else(|| wrong("its sparse map is longer than its data"))?)
            }
            _ => Err(wrong("it is packed as a sparse file of a kind that is not known; pack it without --sparse")),
        }
    }
}

/// The map of an entry of GNU's own kind, which is in its header and in blocks behind it.
pub(crate) fn of_gnu(
    header: &Header,
    size: u64,
    mut read: impl FnMut() -> io::Result<[u8; RECORD]>,
) -> io::Result<Map> {
    let header = header.as_gnu().ok_or_else(|| wrong("it is packed as a sparse file, without a header of GNU's"))?;
    let mut numbers = Vec::new();
    let add = |part: &GnuSparseHeader, numbers: &mut Vec<u64>| -> io::Result<()> {
        if !part.is_empty() {
            numbers.extend([part.offset()?, part.length()?]);
        }
        Ok(())
    };
    for part in &header.sparse {
        add(part, &mut numbers)?;
    }
    let mut more = header.is_extended();
    let mut blocks = 0;
    while more {
        blocks += 1;
        if blocks * RECORD as u64 > MAX_HEADERS {
            return Err(wrong("its sparse map is too long"));
        }
        let mut block = GnuExtSparseHeader::new();
        block.as_mut_bytes().copy_from_slice(&read()?);
        for part in block.sparse() {
            add(part, &mut numbers)?;
        }
        more = block.is_extended();
    }
    Map::new(Some(header.real_size()?), &numbers, size)
}

/// Where the bytes of a file are, and which they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Bytes of it that are in the archive.
    pub(crate) stored: u64,
    /// In order; the last comes first.
    runs: Vec<Run>,
    at: u64,
}

impl Map {
    fn new(size: Option<u64>, numbers: &[u64], stored: u64) -> io::Result<Self> {
        let size = size.ok_or_else(|| wrong("it is packed as a sparse file, and its size is not said"))?;
        let (pairs, odd) = numbers.as_chunks::<2>();
        let (mut end, mut sum, mut runs) = (0_u64, 0_u64, Vec::new());
        for &[at, length] in pairs {
            let after = at.checked_add(length).filter(|&after| at >= end && after <= size);
            end = after.ok_or_else(|| wrong("the parts of its sparse map do not follow one another within it"))?;
            sum += length;
            if length > 0 {
                runs.push(Run { at, length });
            }
        }
        if !odd.is_empty() || sum != stored {
            return Err(wrong(&format!("its sparse map speaks of {sum} bytes, and there are {stored}")));
        }
        runs.reverse();
        Ok(Self { size, stored, runs, at: 0 })
    }

    /// Gives the next bytes of the file; `read` gives those of the archive.
    pub(crate) fn read(&mut self, out: &mut [u8], mut read: impl Read) -> io::Result<usize> {
        let most = |length: u64| out.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let Some(run) = self.runs.last_mut() else {
            let zeros = most(self.size - self.at);
            out[..zeros].fill(0);
            self.at += zeros as u64;
            return Ok(zeros);
        };
        if self.at < run.at {
            let zeros = most(run.at - self.at);
            out[..zeros].fill(0);
            self.at += zeros as u64;
            return Ok(zeros);
        }
        let wanted = most(run.length);
        let got = read.read(&mut out[..wanted])?;
        self.at += got as u64;
        run.at += got as u64;
        run.length -= got as u64;
        if run.length == 0 {
            self.runs.pop();
        }
        Ok(got)
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 20 && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_does_not_fit_is_refused() {
        for (size, numbers, stored) in [
            (10, &[0, 4, 3, 2][..], 6),
            (10, &[5, 1, 2, 1], 2),
            (10, &[8, 4], 4),
            (10, &[0, 4, 6], 4),
            (10, &[0, 4], 5),
            (10, &[0, 4], 3),
            (10, &[u64::MAX, 2], 2),
        ] {
            assert!(Map::new(Some(size), numbers, stored).is_err(), "{numbers:?}");
        }
        assert!(Map::new(None, &[0, 4], 4).is_err());
        let mut map = Map::new(Some(10), &[0, 0, 2, 3, 5, 1, 10, 0], 4).unwrap();
        let (mut from, mut read) = (&b"abcd"[..], Vec::<u8>::new());
        let mut out = [7; 4];
        loop {
            match map.read(&mut out, &mut from).unwrap() {
                0 => break,
                got => read.extend(&out[..got]),
            }
        }
        assert_eq!(read, b"\0\0abcd\0\0\0\0");
    }
}
