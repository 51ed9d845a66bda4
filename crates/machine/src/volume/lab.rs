//! A disk that Belljar serves itself: which files its server gets.

use std::{fs::File, io, os::unix::net::UnixStream, path::Path};

use belljar_guest_spec::{DiskBus, DiskTraits};
use belljar_image::disk::{DiskError, DiskImage, has_writer, unnamed};
use belljar_lab::{Below, Setup};
use belljar_model::EventKind;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

use super::{
    Bytes, Front, Kept, Volume, VolumeError,
    content::Content,
    disk::DiskFront,
    raw_copy::{self, RawCopy},
};
use crate::{
    Cause, Lost,
    host::HostContext,
    lab::{LabDisk, LabLine},
    launch::Launch,
    qemu::{
        args::{DiskSource, Node},
        descriptors::Purpose,
    },
};

/// The physical sector that QEMU's disks tell of where nothing is said, in bytes.
const SECTOR: u64 = 512;
/// A lab disk has so many bytes at most.
pub(super) const MOST: u64 = 8 << 40;

/// A disk that Belljar serves.
#[derive(Clone, Debug)]
pub(super) struct LabFront {
    /// Its name, and its serial number.
    pub(super) name: String,
    /// The raw copy of its image, or that itself where it is raw; none of a block device, whose changes cannot be noticed.
    copy: Option<RawCopy>,
}

/// An image from which a disk is served as it is, while it is served.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// The disk's name.
    name: String,
    image: DiskImage,
    itself: RawCopy,
}

impl Watched {
    /// Why what was read of it is not to be believed, if it is not what it was when it was first looked at.
    pub(crate) fn change(&self) -> Option<String> {
        let Self { name, image, itself } = self;
        let shown = image.path().display();
        match itself.is_of(image) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "the image {shown} of the lab disk {name} was changed, or replaced, while the guest ran; leave it alone meanwhile"
            )),
            Err(error) => Some(format!(
                "the image {shown} of the lab disk {name} cannot be looked at any more, which the guest ran on: {error}; leave it alone meanwhile"
            )),
        }
    }
}

impl Volume {
    /// The same, served by Belljar under this name, which is its serial number, too.
    pub(super) fn into_lab(self, name: String) -> Result<Self, VolumeError> {
        let Self { content, mut front, .. } = self;
        if let Content::Image(image) = &content
            && image.has_device()
            && !image.is_plain()
        {
            return Err(VolumeError::OnDevice { path: image.path().to_owned() });
        }
        if content.size() > MOST {
            return Err(VolumeError::TooLarge { name, size: content.size() });
        }
        if let Front::Disk(disk) = &mut front {
            disk.serial = Some(name.clone());
        }
        Ok(Self { content, front, lab: Some(LabFront { name, copy: None }) })
    }

    /// Finds or makes the copy from which it is served, if there has to be one; with what a person is told of that.
    pub(super) async fn find_copy(&mut self, host: &HostContext, dir: &Path) -> Result<Vec<EventKind>, Lost> {
        let (Some(lab), Content::Image(image)) = (&mut self.lab, &self.content) else { return Ok(Vec::new()) };
        if image.is_plain() {
            if !image.has_device() {
                let unreadable = |source| DiskError::Read { path: image.path().to_owned(), source };
                let itself = RawCopy::itself(image).map_err(unreadable);
                lab.copy = Some(itself.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting())?);
            }
            return Ok(Vec::new());
        }
        let (copy, told) = raw_copy::find(&lab.name, image, host, dir).await?;
        lab.copy = Some(copy);
        Ok(told)
    }
}

impl LabFront {
    /// This image, if the disk is served from it as it is.
    fn watched(&self, image: &DiskImage) -> Option<Watched> {
        let itself = self.copy.clone().filter(|copy| copy.path == image.path())?;
        Some(Watched { name: self.name.clone(), image: image.clone(), itself })
    }

    /// The file that has the bytes of this image.
    fn file(&self, image: &DiskImage) -> Result<File, DiskError> {
        let failed = |path: &Path, source| DiskError::Read { path: path.to_owned(), source };
        let path = self.copy.as_ref().map_or(image.path(), |copy| &copy.path);
        let file = File::open(path).map_err(|source| failed(path, source))?;
        // Where there are no locks, QEMU has none either.
        if has_writer(&file).unwrap_or(false) {
            return Err(DiskError::InUse { path: path.to_owned() });
        }
        match self.copy.as_ref().map_or(Ok(true), |copy| copy.is_of(image)) {
            Ok(true) => Ok(file),
            Ok(false) => {
                let changed = "it was changed since this run has looked at it first; leave it alone meanwhile";
                Err(failed(image.path(), io::Error::other(changed)))
            }
            Err(source) => Err(failed(image.path(), source)),
        }
    }
}

/// Bytes that a line between QEMU and a server takes until the other end has to read some: a few large requests, so that the two need not
/// take turns for each part of one. Where the host gives less (`net.core.wmem_max`) it is slower.
const LINE_BUFFER: usize = 2 << 20;

/// A line between QEMU and a server.
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = UnixStream::pair()?;
    for end in [&one, &other] {
        // Only whoever may administer the network gets past the host's limit.
        if set_socket_send_buffer_size_force(end, LINE_BUFFER).is_err() {
            let _ = set_socket_send_buffer_size(end, LINE_BUFFER);
        }
    }
    Ok((one, other))
}

/// Has a disk served; gives it as QEMU sees it. `number` is the volume's own.
pub(super) fn serve(
    lab: &LabFront,
    content: &Content,
    front: Option<&DiskFront>,
    number: usize,
    bytes: Bytes<'_>,
    launch: &mut Launch,
) -> Result<Node, DiskError> {
    let name = lab.name.as_str();
    let in_dir = |dir: &Path, source| DiskError::Layer { dir: dir.to_owned(), source };
    let in_run = |source| in_dir(Path::new("the run's directory"), source);
    let traits = front.map(|front| &front.traits);
    let paths = traits.map_or(1, DiskTraits::paths);
    let (of_qemu, line) = pair().map_err(in_run)?;
    let (mut further, mut lines) = (Vec::new(), vec![line]);
    for _ in 1..paths {
        let (theirs, line) = pair().map_err(in_run)?;
        further.push(theirs);
        lines.push(line);
    }
    let read_only = traits.is_some_and(|traits| traits.read_only);
    let hand_over = |launch: &mut Launch| {
        let mut hand_over = |socket| DiskSource::Fd(launch.descriptors.add(Purpose::Lab, socket));
        let first = hand_over(of_qemu);
        Node::served(first, further.into_iter().map(hand_over).collect(), read_only)
    };
    let mut below = Vec::new();
    let mut files = Vec::new();
    let goes_on = matches!(bytes, Bytes::Own(_));
    match bytes {
        Bytes::Again(Kept::Lab(written), _) => {
            // Its server is there, and gets another line.
            launch.kept.push(Kept::Lab(written.try_clone().map_err(in_run)?));
            launch.lab_lines.push(LabLine { name: name.to_owned(), lines, written });
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
    let mut watched = None;
    if let Content::Image(image) = content {
        below.push(Below::Raw);
        files.push(lab.file(image)?);
        watched = lab.watched(image);
    }
    let written = files[0].try_clone().map_err(in_run)?;
    launch.kept.push(Kept::Lab(files[0].try_clone().map_err(in_run)?));
    // QEMU rounds a raw image up to whole sectors.
    let size = content.size().next_multiple_of(SECTOR);
    // What a power cut does not tear is a physical sector.
    let sector = traits.and_then(DiskTraits::sectors).map_or(SECTOR, |(_, physical)| physical.bytes());
    let setup = Setup { name: name.to_owned(), size, read_only, sector, paths, goes_on, below };
    let forgets_fua = front.is_some_and(|front| front.bus == DiskBus::Nvme);
    launch.lab.push(LabDisk { name: name.to_owned(), setup, files, lines, written, watched, forgets_fua });
    Ok(hand_over(launch))
}
