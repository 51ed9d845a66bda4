//! A FAT file system in memory, with files in it. The same files give the same bytes.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// The number that each of these file systems has.
const VOLUME_ID: u32 = 0x0be1_1a12;

/// Makes a file system with this label, of at most eleven letters, on all of `disk`, and puts directories and files into it. A directory comes behind the one that it
/// is in.
///
/// # Errors
/// Where the label is too long, or they do not fit.
pub(crate) fn write<'a>(
    disk: &mut [u8],
    label: &str,
    dirs: &[String],
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> io::Result<()> {
    let mut name = [b' '; 11];
    let room = name.get_mut(..label.len()).ok_or_else(|| io::Error::other("the label is too long"))?;
    room.copy_from_slice(label.as_bytes());
    let mut disk = Cursor::new(disk);
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_label(name).volume_id(VOLUME_ID))?;
    let fs = FileSystem::new(&mut disk, FsOptions::new())?;
    for dir in dirs {
        fs.root_dir().create_dir(dir)?;
    }
    for (name, bytes) in files {
        let mut file = fs.root_dir().create_file(name)?;
        file.write_all(bytes)?;
        file.flush()?;
    }
    fs.unmount()
}
