//! What an image may be at most. An image may come from anybody.

/// Most of everything. Each bound that is passed is an error that names it ([`Exceeded`]).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Files, directories, links and devices, those of lower layers that an upper one removes included.
    pub entries: u64,
    /// Bytes of all layers, unpacked.
    pub bytes: u64,
    /// Bytes of names, links and extended attributes, which are in memory.
    pub metadata: u64,
    /// Directories that lie in one another.
    pub depth: u16,
    /// Names that are looked up on the way to files, those of links included.
    pub steps: u64,
    /// Layers.
    pub layers: usize,
    /// Bytes of the extended attributes of one file.
    pub attributes: usize,
    /// Bytes that are left free where the file system is written.
    pub keep_free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 64 << 30,
            metadata: 512 << 20,
            depth: 512,
            steps: 500_000_000,
            layers: 512,
            attributes: 64 << 10,
            keep_free: 256 << 20,
        }
    }
}

/// Bytes of a manifest, an index or a configuration.
pub const MAX_JSON: u64 = 8 << 20;
/// Bytes of a name in a directory, which is all that a file system takes.
pub const MAX_NAME: usize = 255;
/// Bytes of a path, and of what a symbolic link says.
pub const MAX_PATH: usize = 4095;
/// Bytes of the headers that tell more of one file: long names, attributes.
pub const MAX_HEADERS: u64 = 1 << 20;
/// Links that lead to one file, one after another.
pub const MAX_HOPS: u32 = 40;

/// A bound that an image passes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// See [`Limits::entries`].
    #[error("it has more than {0} files")]
    Entries(u64),
    /// See [`Limits::bytes`].
    #[error("its layers have more than {} GiB when they are unpacked", .0 >> 30)]
    Bytes(u64),
    /// See [`Limits::metadata`].
    #[error("its names, links and extended attributes have more than {} MiB", .0 >> 20)]
    Metadata(u64),
    /// See [`Limits::depth`].
    #[error("its directories are more than {0} deep")]
    Depth(u16),
    /// See [`Limits::steps`].
    #[error("its paths lead through too many links and directories (more than {0} in all)")]
    Steps(u64),
    /// See [`Limits::layers`].
    #[error("it has more than {0} layers")]
    Layers(usize),
    /// See [`Limits::attributes`].
    #[error("a file of it has more than {} KiB of extended attributes", .0 >> 10)]
    Attributes(usize),
    /// See [`MAX_HEADERS`].
    #[error("what its archive says of one file is longer than {} KiB", MAX_HEADERS >> 10)]
    Headers,
    /// See [`Limits::keep_free`].
    #[error("fewer than {} MiB would be left free there", .0 >> 20)]
    Room(u64),
}
