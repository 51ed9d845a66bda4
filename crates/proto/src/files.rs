//! What the agent says of files: where results lie that a test left, and what is in them.
//!
//! The answer to a [`FileQuery`] comes as the output of a command does, for it may be long: records one after the other, each a
//! length of four bytes, little endian, and so many bytes of postcard. The last one is [`FileRecord::End`]; an answer without it
//! is cut off and worth nothing.

use serde::{Deserialize, Serialize};

use crate::frame::{from_bytes, to_bytes};

/// Longest record; the paths of files are no longer.
const MAX_RECORD: usize = 64 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileQuery {
    /// Which files there are. Answered by [`FileRecord::Found`] for each, in no order.
    Look {
        /// Absolute path of the directory that is looked into.
        root: Vec<u8>,
        /// Which paths below it are wanted.
        wanted: Vec<Vec<Part>>,
    },
    /// What is in files. Answered by [`FileRecord::Bytes`] and one [`FileRecord::Read`] for each, in the order of the paths.
    Read {
        /// Absolute path of the directory that the paths are relative to.
        root: Vec<u8>,
        /// Paths that a look gave.
        paths: Vec<Vec<u8>>,
        /// Most bytes of one file; a longer one is not read to its end.
        most: u64,
        /// Most bytes of all.
        most_in_all: u64,
    },
}

/// A part of a wanted path, between slashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A name; `*` in it stands for any bytes.
    Name(Vec<u8>),
    /// Any number of names, none included.
    Any,
}

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRecord {
    /// Something is there.
    Found(Found),
    /// The next bytes of the file that is being read.
    Bytes(Vec<u8>),
    /// This file is read, or why it is not, or not to its end.
    Read(Result<(), String>),
    /// The answer is whole.
    End {
        /// Why not all was looked at that should have been.
        cut: Option<String>,
        /// Somebody set the guest's clock since the look before, so that times prove nothing.
        clock_set: bool,
    },
}

/// Something that a look came across.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Relative to the root; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FoundKind,
    /// Of the path itself, which may be a symbolic link.
    pub stamp: Stamp,
    /// Of what a symbolic link leads to.
    pub target: Option<Stamp>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FoundKind {
    /// A wanted regular file, perhaps behind a symbolic link.
    File,
    /// Something else where a file is wanted, in a person's words.
    Other(String),
    /// A directory that could not be looked into, and why not.
    Closed(String),
    /// A directory on which another file system is mounted.
    Mount,
}

/// By which it is known whether a file is what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Device and inode number.
    pub inode: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// When its content was changed, in seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// When anything about it was changed, which nobody can set.
    pub ctime: (i64, u32),
}

impl FileRecord {
    /// With its length before it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = to_bytes(self).unwrap_or_default();
        let mut bytes = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        bytes.extend(body);
        bytes
    }
}

/// Why bytes are no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// A length that no record has.
    #[error("a record of {0} bytes")]
    Length(u32),
    /// What is in a record is none.
    #[error("a record that cannot be read")]
    Record,
    /// Something comes after the end.
    #[error("bytes after the end")]
    Trailing,
}

/// Reads an answer that comes in pieces.
#[derive(Debug, Default)]
pub struct FileRecords {
    bytes: Vec<u8>,
    ended: bool,
}

impl FileRecords {
    /// Takes bytes, split anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole record.
    ///
    /// # Errors
    /// Where what came is no answer.
    #[expect(clippy::should_implement_trait, reason = "more may be pushed after it gave nothing")]
    pub fn next(&mut self) -> Result<Option<FileRecord>, FilesError> {
        if self.ended && !self.bytes.is_empty() {
            return Err(FilesError::Trailing);
        }
        let Some((length, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > MAX_RECORD {
            return Err(FilesError::Length(length));
        }
        let Some(body) = rest.get(..size) else { return Ok(None) };
        let record: FileRecord = from_bytes(body).map_err(|_| FilesError::Record)?;
        self.bytes.drain(..4 + size);
        self.ended = matches!(record, FileRecord::End { .. });
        Ok(Some(record))
    }

    /// Whether the end has come.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(records: &mut FileRecords) -> Result<Vec<FileRecord>, FilesError> {
        let mut got = Vec::new();
        while let Some(record) = records.next()? {
            got.push(record);
        }
        Ok(got)
    }

    #[test]
    fn an_answer_in_pieces_is_whole_only_with_its_end() {
        let found = Found { path: b"a/b.xml".to_vec(), kind: FoundKind::File, stamp: Stamp::default(), target: None };
        let end = FileRecord::End { cut: None, clock_set: true };
        let sent = [FileRecord::Found(found), FileRecord::Bytes(vec![7; 1000]), FileRecord::Read(Ok(())), end];
        let bytes: Vec<u8> = sent.iter().flat_map(FileRecord::encode).collect();
        let mut records = FileRecords::default();
        let mut got = Vec::new();
        for byte in &bytes {
            assert!(!records.is_whole());
            records.push(&[*byte]);
            got.extend(all(&mut records).unwrap());
        }
        assert_eq!(got, sent);
        assert!(records.is_whole());
        records.push(b"x");
        assert_eq!(records.next(), Err(FilesError::Trailing));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut records = FileRecords::default();
            records.push(&bytes);
            let _ = all(&mut records);
        }
    }
}
