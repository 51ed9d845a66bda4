//! Finds out what an image is, file by file down its chain.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::locks::has_writer;
use super::qemu_img::{self, Info};
use super::{DiskError, DiskImage, Format, Layer, iso, qcow2, sniff, vmdk};
use crate::bounded;

/// Longest chain of backing files.
const MAX_LAYERS: usize = 32;

/// What a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The guest boots from it, so that it has to be the image of a system.
    Boot,
    /// The guest finds it as one more disk, which may hold anything: a tar archive, a CD's image, a line of text.
    Data,
}

/// Looks at an image and everything that it is based on. `forced` is the format as the user gave it; without it
/// `qemu-img` finds out.
///
/// # Errors
/// One of many: see [`DiskError`].
pub fn inspect(qemu_img: &Path, file: &Path, forced: Option<Format>, wanted: Use) -> Result<DiskImage, DiskError> {
    let absolute = std::path::absolute(file).map_err(|source| DiskError::Read { path: file.to_owned(), source })?;
    let mut layers: Vec<Layer> = Vec::new();
    let mut virtual_size = 0;
    let mut next = Some((absolute.clone(), forced));
    while let Some((path, format)) = next.take() {
        if layers.len() == MAX_LAYERS {
            return Err(DiskError::ChainTooLong { path: absolute, max: MAX_LAYERS });
        }
        let found = look(qemu_img, &path, format, wanted).map_err(|cause| match layers.last() {
            None => cause,
            Some(_) => DiskError::Backing { path: absolute.clone(), cause: Box::new(cause) },
        })?;
        if layers.is_empty() {
            virtual_size = found.virtual_size;
        }
        layers.push(found.layer);
        next = found.backing.map(|(path, format)| (path, Some(format)));
    }
    Ok(DiskImage { layers, virtual_size, probed: forced.is_none() })
}

struct Found {
    layer: Layer,
    virtual_size: u64,
    backing: Option<(PathBuf, Format)>,
}

fn look(qemu_img: &Path, path: &Path, given: Option<Format>, wanted: Use) -> Result<Found, DiskError> {
    if path.to_str().is_none() {
        return Err(DiskError::NotUtf8 { path: path.to_owned() });
    }
    let (file, size) = open(path)?;
    let read = |source| DiskError::Read { path: path.to_owned(), source };
    let head = bounded::head(&file, sniff::HEAD.max(vmdk::HEAD)).map_err(read)?;
    match (given, wanted) {
        (None, Use::Boot) => match sniff::refuse(path, &head) {
            Err(DiskError::Iso { hybrid: true, .. }) if iso::is_live(&file, &head).map_err(read)? => {
                if let (Some(size), Some(needs)) = (size, iso::size(&head))
                    && size < needs
                {
                    return Err(DiskError::Truncated { path: path.to_owned(), size, needs });
                }
            }
            known => known?,
        },
        (None, Use::Data) => sniff::refuse_compressed(path, &head)?,
        (Some(_), _) => {}
    }
    if given.is_none_or(|f| f == Format::Vmdk) {
        vmdk::check_extents(path, &head)?;
    }
    let qcow2 = qcow2::Header::parse(&head).filter(|_| given.is_none_or(|f| f == Format::Qcow2));
    if qcow2.is_some_and(qcow2::Header::has_external_data) {
        return Err(DiskError::ExternalData { path: path.to_owned() });
    }

    let info = qemu_img::info(qemu_img, path, given)?;
    let format = checked(path, given, &info)?;
    // Where there are no locks, QEMU has none either.
    if has_writer(&file).unwrap_or(false) {
        return Err(DiskError::InUse { path: path.to_owned() });
    }
    if let (Some(header), Some(size)) = (qcow2, size)
        && let Some(needs) = header.missing(&file, size).map_err(read)?
    {
        return Err(DiskError::Truncated { path: path.to_owned(), size, needs });
    }
    let backing = backing(path, format, &info)?;
    let layer = Layer { path: path.to_owned(), format, device: size.is_none() };
    Ok(Found { layer, virtual_size: info.virtual_size, backing })
}

/// The open file, and its size unless it is a block device.
fn open(path: &Path) -> Result<(File, Option<u64>), DiskError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DiskError::NotFound { path: path.to_owned() },
        _ => DiskError::Read { path: path.to_owned(), source },
    };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    let not = |what| Err(DiskError::NotAFile { path: path.to_owned(), what });
    if kind.is_dir() {
        return not("a directory");
    }
    if !kind.is_file() && !kind.is_block_device() {
        return not("a device, a pipe or a socket");
    }
    let file = bounded::open(path).map_err(failed)?;
    if kind.is_block_device() {
        return Ok((file, None));
    }
    match file.metadata().map_err(failed)?.len() {
        0 => Err(DiskError::Empty { path: path.to_owned() }),
        size => Ok((file, Some(size))),
    }
}

/// The format, once nothing speaks against the image.
fn checked(path: &Path, given: Option<Format>, info: &Info) -> Result<Format, DiskError> {
    let owned = || path.to_owned();
    let format: Format =
        info.format.parse().map_err(|_| DiskError::UnusableFormat { path: owned(), format: info.format.clone() })?;
    if info.encrypted {
        return Err(DiskError::Encrypted { path: owned() });
    }
    if info.format_specific.data.data_file.is_some() {
        return Err(DiskError::ExternalData { path: owned() });
    }
    if info.format_specific.data.corrupt {
        let said = "it is marked corrupt".to_owned();
        return Err(DiskError::Broken { path: owned(), said, repairable: true });
    }
    if info.virtual_size == 0 {
        let said = "it is a disk of 0 bytes".to_owned();
        return Err(DiskError::Broken { path: owned(), said, repairable: false });
    }
    // What a guest writes to a raw image can be a qcow2 header that names any file of the host as its backing file.
    // So contents that lead to other files count only if name or user agree; and never against a name that says raw.
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let backed = info.backing_filename.is_some();
    let agreed = given.is_some() || format.has_extension(extension);
    let said_raw = Format::Raw.has_extension(extension);
    if !agreed && format != Format::Raw && (backed || said_raw) {
        return Err(DiskError::Disputed { path: owned(), found: format, backed });
    }
    // What `qemu-img` does not know it calls raw.
    let named = Format::ALL.iter().find(|f| f.has_extension(extension)).copied();
    if let (Format::Raw, None, Some(named)) = (format, given, named.filter(|&f| f != Format::Raw)) {
        return Err(DiskError::NotAsNamed { path: owned(), named });
    }
    Ok(format)
}

/// The next file of the chain.
fn backing(path: &Path, format: Format, info: &Info) -> Result<Option<(PathBuf, Format)>, DiskError> {
    let Some(name) = &info.backing_filename else { return Ok(None) };
    // As QEMU does: a colon before any slash is a protocol.
    let protocol = name.find(':').is_some_and(|colon| name.find('/').is_none_or(|slash| colon < slash));
    if protocol || name.is_empty() {
        return Err(DiskError::BackingNotAFile { path: path.to_owned(), backing: name.clone() });
    }
    let file = path.parent().unwrap_or(Path::new("/")).join(name);
    match info.backing_filename_format.as_deref().map(str::parse::<Format>) {
        Some(Ok(format)) => Ok(Some((file, format))),
        Some(Err(unknown)) => Err(DiskError::UnusableFormat { path: file, format: unknown.0 }),
        // A vmdk's parent is a vmdk.
        None if format == Format::Vmdk => Ok(Some((file, Format::Vmdk))),
        None => Err(DiskError::BackingFormatUnknown { path: path.to_owned(), backing: file }),
    }
}
