//! Pictures of a guest's screen that a test asks for.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use fs_err as fs;

use crate::{console::sanitize::sanitize_line, qemu::qmp::Qmp, screen};

/// Their directory in the guest's.
pub(crate) const SCREENSHOTS: &str = "screenshots";
/// Most pictures of one guest, and most bytes of them.
const MOST: usize = 1000;
const MOST_BYTES: u64 = 256 << 20;

/// The pictures of one guest.
#[derive(Debug)]
pub(crate) struct Pictures {
    /// The guest's directory.
    dir: PathBuf,
    taken: usize,
    bytes: u64,
}

impl Pictures {
    /// Those of the guest whose files are in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), taken: 0, bytes: 0 }
    }

    /// Takes one; gives what there is to say: its place in the guest's directory.
    ///
    /// # Errors
    /// Why there is none, for a person.
    pub(crate) async fn take(&mut self, qmp: &Qmp, name: &str) -> Result<String, String> {
        if self.taken >= MOST {
            return Err(format!("there are {MOST} pictures of this guest, which is the most"));
        }
        let png = screen::picture(qmp).await.map_err(|why| match why {
            Some(why) => format!(
                "there is no picture: {}; a machine without a graphics card gets one by display = \"std\", or --display std",
                sanitize_line(why.as_bytes())
            ),
            None => "the machine has ended".to_owned(),
        })?;
        let length = u64::try_from(png.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(length) > MOST_BYTES {
            return Err(format!("all pictures of this guest may have {} MiB", MOST_BYTES >> 20));
        }
        let dir = self.dir.join(SCREENSHOTS);
        let name = name.to_owned();
        let written = tokio::task::spawn_blocking(move || write(&dir, &name, &png)).await;
        let file = match written {
            Ok(Ok(file)) => file,
            Ok(Err(error)) => return Err(format!("the picture cannot be kept: {error}; is the disk full?")),
            Err(panic) => return Err(format!("the picture cannot be kept: {panic}")),
        };
        (self.taken, self.bytes) = (self.taken + 1, self.bytes + length);
        Ok(format!("{SCREENSHOTS}/{file}"))
    }
}

/// Writes a picture under its name, or with a number more where there is one of that name; gives the file's.
fn write(dir: &Path, name: &str, png: &[u8]) -> std::io::Result<String> {
    fs::create_dir_all(dir)?;
    for number in 1..=MOST + 1 {
        let file = if number == 1 { format!("{name}.png") } else { format!("{name}-{number}.png") };
        match fs::OpenOptions::new().write(true).create_new(true).open(dir.join(&file)) {
            Ok(mut opened) => {
                opened.write_all(png).inspect_err(|_| drop(fs::remove_file(dir.join(&file))))?;
                return Ok(file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("each name is taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_picture_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        assert_eq!(write(&dir, "a", b"1").unwrap(), "a.png");
        assert_eq!(write(&dir, "a", b"2").unwrap(), "a-2.png");
        assert_eq!(write(&dir, "b", b"3").unwrap(), "b.png");
        assert_eq!(fs::read(dir.join("a.png")).unwrap(), b"1");
        assert_eq!(fs::read(dir.join("a-2.png")).unwrap(), b"2");
    }
}
