//! Writes the cpio format "newc" that kernels unpack (`Documentation/driver-api/early-userspace/buffer-format.rst`):
//! per entry a header of a magic number and thirteen numbers of eight hexadecimal digits, the name with a NUL, padding
//! to four bytes, the content, padding to four bytes. Owner is root, times are zero.

use std::io::{self, Write};

/// One entry of an archive. Modes are permissions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// A directory.
    Dir {
        /// Permissions.
        mode: u32,
    },
    /// A file.
    File {
        /// Permissions.
        mode: u32,
        /// At most 4 GiB.
        content: &'a [u8],
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: &'a str,
    },
    /// A character device.
    CharDevice {
        /// Permissions.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Writes an archive entry by entry. Without [`Writer::finish`] the archive has no end.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0, inode: 0 }
    }

    /// Adds an entry. `name` is relative, without a leading slash.
    ///
    /// # Errors
    /// Those of the output, and `InvalidInput` for a content over 4 GiB.
    pub fn add(&mut self, name: &str, node: &Node<'_>) -> io::Result<()> {
        self.inode += 1;
        let (mode, links, content, (major, minor)) = match *node {
            Node::Dir { mode } => (0o040_000 | mode, 2, &[][..], (0, 0)),
            Node::File { mode, content } => (0o100_000 | mode, 1, content, (0, 0)),
            Node::Symlink { target } => (0o120_777, 1, target.as_bytes(), (0, 0)),
            Node::CharDevice { mode, major, minor } => (0o020_000 | mode, 1, &[][..], (major, minor)),
        };
        self.entry(name, self.inode, mode, links, content, (major, minor))
    }

    /// Writes the end mark, pads to 512 bytes, flushes.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, 0, 1, &[], (0, 0))?;
        self.pad(512)?;
        self.out.flush()
    }

    fn entry(
        &mut self,
        name: &str,
        inode: u32,
        mode: u32,
        links: u32,
        content: &[u8],
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        let too_long = |e| io::Error::new(io::ErrorKind::InvalidInput, e);
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), name size, check
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08X}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        self.put(&header)?;
        self.pad(4)?;
        self.put(content)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let rest = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; 512][..usize::try_from(rest).unwrap_or(0)])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Entry {
        pub(crate) name: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) content: Vec<u8>,
    }

    /// Reads an archive as strictly as the kernel does.
    pub(crate) fn read(archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |i: usize| {
                let at = at + 6 + 8 * i;
                u32::from_str_radix(std::str::from_utf8(&archive[at..at + 8]).unwrap(), 16).unwrap()
            };
            let name = at + 110;
            let name_end = name + field(11) as usize;
            assert_eq!(archive[name_end - 1], 0);
            let content = name_end.next_multiple_of(4);
            let end = content + field(6) as usize;
            let entry = Entry {
                name: String::from_utf8(archive[name..name_end - 1].to_vec()).unwrap(),
                mode: field(1),
                device: (field(9), field(10)),
                content: archive[content..end].to_vec(),
            };
            at = end.next_multiple_of(4);
            if entry.name == "TRAILER!!!" {
                assert!(archive[at..].iter().all(|&b| b == 0) && archive.len().is_multiple_of(512));
                return entries;
            }
            entries.push(entry);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-z/]{1,20}", any::<Vec<u8>>(), 0u32..0o7777), 0..8)) {
            let mut out = Vec::new();
            let mut writer = Writer::new(&mut out);
            for (name, content, mode) in &files {
                writer.add(name, &Node::File { mode: *mode, content }).unwrap();
            }
            writer.finish().unwrap();
            let expected: Vec<_> = files.into_iter().map(|(name, content, mode)| {
                Entry { name, mode: 0o100_000 | mode, device: (0, 0), content }
            }).collect();
            prop_assert_eq!(read(&out), expected);
        }
    }
}
