//! A disk that Belljar serves itself: which files its server gets.

use std::{fs::File, os::unix::net::UnixStream, path::Path};

use belljar_guest_spec::DiskTraits;
use belljar_image::disk::{DiskError, Format, unnamed};
use belljar_lab::{Below, Setup};

use super::{Bytes, Front, Kept, Volume, VolumeError, content::Content};
use crate::{
    lab::{LabDisk, LabLine},
    launch::Launch,
    qemu::{
        args::{DiskSource, Node},
        descriptors::Purpose,
    },
};

/// The physical sector that QEMU's disks tell of where nothing is said, in bytes.
const SECTOR: u64 = 512;

impl Volume {
    /// The same, served by Belljar under this name, which is its serial number, too.
    pub(super) fn into_lab(self, name: String) -> Result<Self, VolumeError> {
        let Self { content, mut front, .. } = self;
        if let Content::Image(image) = &content
            && (image.layers().len() != 1 || image.format() != Format::Raw)
        {
            return Err(VolumeError::NotRaw { path: image.path().to_owned(), format: image.format().driver() });
        }
        if let Front::Disk(disk) = &mut front {
            disk.serial = Some(name.clone());
        }
        Ok(Self { content, front, lab: Some(name) })
    }
}

/// Has a disk served; gives it as QEMU sees it. `number` is the volume's own.
pub(super) fn serve(
    name: &str,
    content: &Content,
    traits: Option<&DiskTraits>,
    number: usize,
    bytes: Bytes<'_>,
    launch: &mut Launch,
) -> Result<Node, DiskError> {
    let in_dir = |dir: &Path, source| DiskError::Layer { dir: dir.to_owned(), source };
    let in_run = |source| in_dir(Path::new("the run's directory"), source);
    let (of_qemu, line) = UnixStream::pair().map_err(in_run)?;
    let read_only = traits.is_some_and(|traits| traits.read_only);
    let hand_over = |launch: &mut Launch| {
        let socket = launch.descriptors.add(Purpose::Lab, of_qemu);
        Node::served(DiskSource::Fd(socket), read_only)
    };
    let mut below = Vec::new();
    let mut files = Vec::new();
    let goes_on = matches!(bytes, Bytes::Own(_));
    match bytes {
        Bytes::Again(Kept::Lab(written), _) => {
            // Its server is there, and gets another line.
            launch.kept.push(Kept::Lab(written.try_clone().map_err(in_run)?));
            launch.lab_lines.push(LabLine { name: name.to_owned(), line, written });
            return Ok(hand_over(launch));
        }
        Bytes::Again(_, dir) | Bytes::InDir(dir) => files.push(unnamed(dir)?),
        Bytes::InTemplate(making) => {
            files.push(making.create_volume(number).map_err(|source| in_dir(making.dir(), source))?);
        }
        Bytes::Own(file) => files.push(file),
        Bytes::Over(frozen, dir) => {
            files.push(unnamed(dir)?);
            below.push(Below::Frozen);
            files.push(frozen);
        }
    }
    if let Content::Image(image) = content {
        let path = image.path();
        let file = File::open(path).map_err(|source| DiskError::Read { path: path.to_owned(), source })?;
        below.push(Below::Raw);
        files.push(file);
    }
    let written = files[0].try_clone().map_err(in_run)?;
    launch.kept.push(Kept::Lab(files[0].try_clone().map_err(in_run)?));
    // QEMU rounds a raw image up to whole sectors.
    let size = content.size().next_multiple_of(SECTOR);
    // What a power cut does not tear is a physical sector.
    let sector = traits.and_then(DiskTraits::sectors).map_or(SECTOR, |(_, physical)| physical.bytes());
    let setup = Setup { name: name.to_owned(), size, read_only, sector, goes_on, below };
    launch.lab.push(LabDisk { name: name.to_owned(), setup, files, line, written });
    Ok(hand_over(launch))
}
