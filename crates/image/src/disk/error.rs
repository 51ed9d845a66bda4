//! Why an image cannot be used: one variant for each thing that a person would mend in another way.

use std::io;
use std::path::{Path, PathBuf};

use super::Format;

/// Why a disk image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No such file.
    #[error("there is no disk image {}", path.display())]
    NotFound {
        /// The file asked for.
        path: PathBuf,
    },
    /// A directory, a character device, …
    #[error("{} is {what}, not a disk image{}", path.display(), if *what == "a directory" { " (a root directory is given with --rootfs)" } else { "" })]
    NotAFile {
        /// The file asked for.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Not UTF-8, in which alone QEMU takes names of nodes' files.
    #[error("the path {} is not UTF-8, which QEMU needs; mend: rename it", path.display())]
    NotUtf8 {
        /// The file asked for.
        path: PathBuf,
    },
    /// No byte in it.
    #[error("the disk image {} is empty (0 bytes); was its download cut short?", path.display())]
    Empty {
        /// The file asked for.
        path: PathBuf,
    },
    /// Permission denied, input/output error, …
    #[error("cannot read the disk image {}: {source}{}", path.display(), may_read(path, source))]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An installer's CD, or one that boots as nothing else.
    #[error(
        "{} is a CD image (ISO 9660), such as an installer's, with no live system on it that boots from a disk; mend: get the \
         distribution's disk image (often called \"cloud\" or \"generic\", *.qcow2), or boot the installer's kernel with \
         --kernel and --initrd{}", path.display(), as_raw(*hybrid)
    )]
    Iso {
        /// The file asked for.
        path: PathBuf,
        /// Whether it would also boot as a disk.
        hybrid: bool,
    },
    /// `disk.qcow2.xz` and the like.
    #[error("the disk image {} is packed with {packing}; unpack it first: {command}", path.display())]
    Packed {
        /// The file asked for.
        path: PathBuf,
        /// With what.
        packing: &'static str,
        /// What unpacks it, quoted to paste.
        command: String,
    },
    /// A kernel, a program, a web page, …
    #[error("{} is not a disk image but {what}", path.display())]
    SomethingElse {
        /// The file asked for.
        path: PathBuf,
        /// What it is, with what to do.
        what: &'static str,
    },
    /// A format that QEMU knows but that is not taken.
    #[error(
        "the disk image {} has the format {format:?}, which cannot be used; usable are {usable}; mend: qemu-img convert \
         -O qcow2 {} disk.qcow2", path.display(), quoted(path), usable = Format::names()
    )]
    UnusableFormat {
        /// The file asked for.
        path: PathBuf,
        /// Its format, as `qemu-img` calls it.
        format: String,
    },
    /// `qemu-img` was told a format that the image does not have.
    #[error("the disk image {} is not in the format {format}: {said}", path.display())]
    NotInFormat {
        /// The file.
        path: PathBuf,
        /// The format that the user or the image above gave.
        format: Format,
        /// What `qemu-img` said.
        said: String,
    },
    /// The contents are of no format at all, and so raw; the name says otherwise.
    #[error(
        "{} is called a {named} image and does not have the contents of one: get it again; or, if it holds the plain \
         contents of a disk, say so with --image-format raw", path.display()
    )]
    NotAsNamed {
        /// The file.
        path: PathBuf,
        /// What its name says.
        named: Format,
    },
    /// The name of the file and its contents disagree in a way that a guest could have brought about.
    #[error(
        "{} has the contents of a {found} image{}, but neither its name nor you say that it is one; a guest can write \
         such contents into a raw image to be handed other files; mend: say which it is, with --image-format {found} or --image-format raw",
        path.display(), if *backed { " with a backing file" } else { "" }
    )]
    Disputed {
        /// The file.
        path: PathBuf,
        /// What its contents look like.
        found: Format,
        /// Whether they name a backing file.
        backed: bool,
    },
    /// Another process writes to the image.
    #[error(
        "the disk image {} is in use: another process (a running virtual machine?) has it open for writing; end that, or \
         copy the image while it is not written to", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Encrypted.
    #[error("the disk image {} is encrypted, which is not supported; mend: qemu-img convert it to a plain one", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// Cut short.
    #[error(
        "the disk image {} is cut short: it has {size} bytes and refers to data at {needs}; was its download or copy \
         interrupted?", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes in it.
        size: u64,
        /// An offset that it refers to.
        needs: u64,
    },
    /// Marked corrupt, or unreadable to `qemu-img`.
    #[error("the disk image {} is broken: {said}{}", path.display(), if *repairable { format!("; mend: qemu-img check -r all {}", quoted(path)) } else { String::new() })]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        said: String,
        /// Whether `qemu-img check` may help.
        repairable: bool,
    },
    /// qcow2 with its data elsewhere.
    #[error(
        "the disk image {} keeps its data in another file, which is not supported; mend: qemu-img convert -O qcow2 {} \
         disk.qcow2", path.display(), quoted(path)
    )]
    ExternalData {
        /// The file.
        path: PathBuf,
    },
    /// A part of a vmdk that is not beside it.
    #[error("the disk image {} has a part {extent:?}; parts are taken only from the image's own directory", path.display())]
    ExtentElsewhere {
        /// The vmdk.
        path: PathBuf,
        /// The part's name in it.
        extent: String,
    },
    /// A part of a vmdk that is not there.
    #[error("the disk image {} needs {}, which is not there; copy all files of the image", path.display(), extent.display())]
    ExtentMissing {
        /// The vmdk.
        path: PathBuf,
        /// The part.
        extent: PathBuf,
    },
    /// A backing file that is no local file.
    #[error("the disk image {} is based on {backing:?}; only files of this host are taken", path.display())]
    BackingNotAFile {
        /// The image.
        path: PathBuf,
        /// The name in it.
        backing: String,
    },
    /// A backing file without its format.
    #[error(
        "the disk image {} is based on {} but does not record that file's format, and guessing it is not safe; mend: \
         qemu-img rebase -u -F FORMAT -b {} {}, with the FORMAT that it has (qcow2, raw, …)",
        path.display(), backing.display(), quoted(backing), quoted(path)
    )]
    BackingFormatUnknown {
        /// The image.
        path: PathBuf,
        /// Its backing file.
        backing: PathBuf,
    },
    /// Something is wrong with a backing file.
    #[error("the disk image {} cannot be used because of what it is based on: {cause}", path.display())]
    Backing {
        /// The image above.
        path: PathBuf,
        /// What is wrong.
        cause: Box<DiskError>,
    },
    /// A circle, or nearly.
    #[error("the disk image {} is based on more than {max} others, or on itself", path.display())]
    ChainTooLong {
        /// The image asked for.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// `qemu-img` is not there.
    #[error(
        "cannot look at disk images: {} is not there; mend: install qemu-img (Debian and Ubuntu: apt-get install \
         qemu-utils; Fedora, RHEL, Alpine, Arch: the package qemu-img)", program.display()
    )]
    NoQemuImg {
        /// The program looked for.
        program: PathBuf,
    },
    /// `qemu-img` could not be run, or said nothing that can be understood.
    #[error("{} info {} failed: {said}", program.display(), path.display())]
    QemuImg {
        /// The program.
        program: PathBuf,
        /// The image.
        path: PathBuf,
        /// What went wrong.
        said: String,
    },
    /// A throw-away layer could not be written.
    #[error("cannot make a disk layer in {}: {source}{}", dir.display(), full(source))]
    Layer {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A disk of no size, or of more than QEMU can do.
    #[error("a disk of {size} bytes cannot be made: at least 1 and at most {max}")]
    Size {
        /// Asked for.
        size: u64,
        /// The most.
        max: u64,
    },
}

pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map_or_else(|_| text.to_string(), Into::into)
}

fn may_read(path: &Path, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("; mend: sudo chmod a+r {}, or copy it to a place of your own", quoted(path))
        }
        _ => String::new(),
    }
}

fn as_raw(hybrid: bool) -> &'static str {
    if hybrid { ", or attach it as the disk that it also is with --image-format raw" } else { "" }
}

fn full(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => ": make room there, or choose another directory",
        io::ErrorKind::QuotaExceeded => ": your quota is used up there",
        io::ErrorKind::ReadOnlyFilesystem => ": choose a directory that can be written to",
        io::ErrorKind::FileTooLarge => ": the file system there has no files of that size",
        _ => "",
    }
}
