//! What is in a volume before the guest writes to it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    path::Path,
};

use belljar_image::{
    disk::{self, DiskError, DiskImage, Format, Layer, Use, empty_in, overlay_in},
    seed::SEED_SIZE,
};

use data_encoding::HEXLOWER;

use super::VolumeError;
use crate::{
    access::rungs::Seed,
    qemu::args::{Backing, DiskSource, Node, ProgramSource},
    template::{KeyMaker, Unkeyable},
};

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// An image, under a layer.
    Image(DiskImage),
    /// This many bytes of zeros.
    Empty(u64),
    /// What tells a program in the guest what to do, other bytes for each boot.
    Seed(Seed, ProgramSource),
}

impl Content {
    /// An image that may hold anything.
    pub(super) fn data(qemu_img: &Path, image: &Path, format: Option<&str>) -> Result<Self, VolumeError> {
        let format = format.map(str::parse).transpose()?;
        Ok(Self::Image(disk::inspect(qemu_img, image, format, Use::Data)?))
    }

    /// Puts what decides it into a key.
    pub(super) fn add_to(&self, key: &mut KeyMaker) -> Result<(), Unkeyable> {
        match self {
            Self::Empty(size) => key.add("empty", &size.to_le_bytes()),
            // The same whatever the boot's name is.
            Self::Seed(seed, program) => {
                let bytes = (seed.make)("", *program).map_err(|error| Unkeyable::Impossible(error.to_string()))?;
                key.add("seed", &bytes);
            }
            Self::Image(image) => {
                key.add("size", &image.virtual_size.to_le_bytes());
                for layer in image.layers() {
                    if layer.device {
                        let what =
                            format!("{} is a block device, whose changes cannot be noticed", layer.path.display());
                        return Err(Unkeyable::Impossible(what));
                    }
                    key.add("format", layer.format.driver().as_bytes());
                }
                let files = image.files();
                for file in files.map_err(|source| Unkeyable::File { path: image.path().to_owned(), source })? {
                    key.add_file("layer", &file)?;
                }
            }
        }
        Ok(())
    }

    /// Whether it is made of a file in this directory.
    pub(super) fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Image(image) => image.layers().iter().any(|layer| layer.path.starts_with(dir)),
            Self::Empty(_) | Self::Seed(..) => false,
        }
    }

    /// Bytes that the guest sees.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Image(image) => image.virtual_size,
            Self::Empty(size) => *size,
            Self::Seed(..) => SEED_SIZE,
        }
    }

    /// Makes what takes the guest's writes of an empty file in `dir`.
    pub(super) fn make(&self, file: File, dir: &Path) -> Result<File, DiskError> {
        let made = match self {
            Self::Image(image) => overlay_in(file, dir, image.virtual_size)?,
            Self::Empty(size) => empty_in(file, dir, *size)?,
            Self::Seed(seed, program) => {
                let written = seed_for_one_boot(seed, *program).and_then(|bytes| (&file).write_all(&bytes));
                written.map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })?;
                return Ok(file);
            }
        };
        Ok(made.fd.into())
    }

    /// The same over what was made before.
    pub(super) fn make_layer(&self, file: File, dir: &Path) -> Result<File, DiskError> {
        Ok(overlay_in(file, dir, self.size())?.fd.into())
    }

    /// What was made, for QEMU, its bytes being in `source`.
    pub(super) fn node(&self, source: DiskSource) -> Node {
        match self {
            Self::Image(image) => Node { backing: backing(image.layers()), ..Node::layer(source) },
            Self::Empty(_) | Self::Seed(..) => Node::new(source, Format::Raw.driver()),
        }
    }

    /// How a file of it is named.
    pub(super) fn extension(&self) -> &'static str {
        match self {
            Self::Image(_) => "qcow2",
            Self::Empty(_) | Self::Seed(..) => "raw",
        }
    }

    /// How a person makes the same; none for what only Belljar has a use for.
    pub(super) fn by_hand(&self, qemu_img: &Path, file: &Path) -> Option<Vec<OsString>> {
        let (options, operands) = match self {
            Self::Seed(..) => return None,
            Self::Image(image) => (
                vec!["-f", "qcow2", "-F", image.format().driver(), "-b"],
                vec![image.path().as_os_str().to_owned(), file.as_os_str().to_owned()],
            ),
            Self::Empty(size) => (vec!["-f", "raw"], vec![file.as_os_str().to_owned(), size.to_string().into()]),
        };
        let command = [qemu_img.as_os_str(), "create".as_ref(), "-q".as_ref()].map(OsStr::to_owned).into_iter();
        Some(command.chain(options.into_iter().map(OsString::from)).chain(operands).collect())
    }
}

/// The bytes of a seed, under a name that no other boot has.
fn seed_for_one_boot(seed: &Seed, program: ProgramSource) -> io::Result<Vec<u8>> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(io::Error::other)?;
    (seed.make)(&HEXLOWER.encode(&name), program).map_err(io::Error::other)
}

/// The whole chain below a layer, formats included, so that QEMU takes nothing from a header on trust.
fn backing(layers: &[Layer]) -> Option<Box<Backing>> {
    let (first, rest) = layers.split_first()?;
    Some(Box::new(Backing {
        source: DiskSource::Path(first.path.clone()),
        format: first.format.driver().to_owned(),
        device: first.device,
        backing: backing(rest),
    }))
}
