//! Files where a guest may have been: a link that it left is never followed, and what it put in the place of something is noticed.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use fs_err as fs;
use rustix::{
    fs::{
        AtFlags, Dir, DirEntry, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, readlinkat, renameat, statat,
        symlinkat, unlinkat,
    },
    io::Errno,
};

/// Where a report goes: known before any guest runs, written when all have ended.
#[derive(Debug)]
pub struct ReportPlace {
    /// As it was named.
    shown: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A file in a directory that guests cannot reach, or below one that they can write to: this one was opened before.
    Below { top: OwnedFd, inside: PathBuf, name: std::ffi::OsString },
    /// A pipe or a device where no guest reaches, which is written to as it is.
    Special,
}

impl ReportPlace {
    /// Makes the directories of a report and opens what is needed to write it. `shared` is the directory that guests may be able to
    /// write to.
    ///
    /// # Errors
    /// If the report could not be written here.
    pub fn new(path: &Path, shared: &Path) -> io::Result<Self> {
        let shown = std::path::absolute(path)?;
        let (Some(parent), Some(name)) = (shown.parent(), shown.file_name()) else {
            return Err(io::Error::other(format!("{} names no file", shown.display())));
        };
        fs::create_dir_all(parent)?;
        if shown.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        // Links that are there before any guest are the user's.
        let (real, shared) = (fs::canonicalize(parent)?, fs::canonicalize(shared)?);
        let (top, inside) = match real.strip_prefix(&shared) {
            Ok(inside) => (&shared, inside.to_owned()),
            Err(_) if fs::metadata(&shown).is_ok_and(|m| !m.is_file()) => {
                return Ok(Self { shown, kind: Kind::Special });
            }
            Err(_) => (&real, PathBuf::new()),
        };
        let kind = Kind::Below { top: directory(top)?, inside, name: name.to_owned() };
        Ok(Self { shown, kind })
    }

    /// As it was named, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shown
    }

    /// Whether it is a pipe or a device, out of reach for guests, which is written to by its name.
    #[must_use]
    pub fn is_special(&self) -> bool {
        matches!(self.kind, Kind::Special)
    }

    /// Writes the report, whole or not at all, unless it is special.
    ///
    /// # Errors
    /// If it cannot be, or if its name does not lead to it any more.
    pub fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let (top, inside, name) = match &mut self.kind {
            Kind::Special => return Err(io::Error::other("it is no file")),
            Kind::Below { top, inside, name } => (top, inside, name),
        };
        let dir = walk(&*top, inside, true)?;
        let (mut file, temporary) = create(&dir)?;
        let written = file.write_all(text).and_then(|()| Ok(renameat(&dir, &temporary, &dir, &*name)?));
        if let Err(error) = written {
            let _ = unlinkat(&dir, &temporary, AtFlags::empty());
            return Err(error);
        }
        let own = fstat(&file)?;
        let found = rustix::fs::stat(&self.shown);
        if !found.is_ok_and(|found| (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)) {
            return Err(io::Error::other(
                "it was written, but its name leads elsewhere by now: something in a guest changed a directory or a link on the way; \
                 write reports where guests cannot, or share the workspace read-only or copy-on-write",
            ));
        }
        Ok(())
    }
}

/// A new file under a name of its own.
fn create(dir: &OwnedFd) -> io::Result<(File, String)> {
    loop {
        let name = format!(".belljar-{:08x}", getrandom::u32().map_err(io::Error::other)?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // For everybody who may read what the user's umask allows.
        match openat(dir, &name, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => return Ok((fd.into(), name)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Opens a directory that is no guest's to change.
pub(crate) fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a directory below one, never beyond it and through no link; makes what is missing if it may.
pub(crate) fn walk(top: impl AsFd, inside: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(top, ".", flags, Mode::empty())?;
    for part in inside.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other(format!("{} leads out of its directory", inside.display())));
        };
        if make {
            match mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        at = openat(&at, name, flags, Mode::empty()).map_err(|error| no_link(error, &at, name, inside))?;
    }
    Ok(at)
}

/// Moves a file or a directory with all that is in it, from one directory to another, into which nothing of it has come yet.
pub(crate) fn transfer(from: &OwnedFd, to: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match renameat(from, name, to, name) {
        Ok(()) => return Ok(()),
        Err(Errno::XDEV) => {}
        Err(error) => return Err(error.into()),
    }
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let inner = openat(from, name, flags | OFlags::DIRECTORY, Mode::empty())?;
            let goal = openat(to, name, flags | OFlags::DIRECTORY, Mode::empty())?;
            let names: Vec<_> = Dir::read_from(&inner)?.collect::<Result<Vec<_>, _>>()?;
            for entry in names.iter().map(DirEntry::file_name).filter(|n| !matches!(n.to_bytes(), b"." | b"..")) {
                transfer(&inner, &goal, OsStr::from_bytes(entry.to_bytes()))?;
            }
            fchmod(&goal, Mode::from_raw_mode(stat.st_mode & 0o777))?;
            unlinkat(from, name, AtFlags::REMOVEDIR)?;
        }
        FileType::RegularFile => {
            let source = File::from(openat(from, name, flags, Mode::empty())?);
            let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let goal = File::from(openat(to, name, create, Mode::RUSR | Mode::WUSR)?);
            crate::sparse::copy(&source, &goal)?;
            fchmod(&goal, Mode::from_raw_mode(stat.st_mode & 0o777))?;
            unlinkat(from, name, AtFlags::empty())?;
        }
        FileType::Symlink => {
            symlinkat(&*readlinkat(from, name, Vec::new())?, to, name)?;
            unlinkat(from, name, AtFlags::empty())?;
        }
        // A pipe or a socket holds nothing; it goes with the directory from which the rest came.
        _ => {}
    }
    Ok(())
}

/// Says that it is a link, where that is what stands in the way.
fn no_link(error: Errno, dir: &OwnedFd, name: &OsStr, inside: &Path) -> io::Error {
    let link = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
    if link {
        let text = format!(
            "{} in {} is a symbolic link, which is not followed where a guest may have made it",
            name.display(),
            inside.display()
        );
        return io::Error::other(text);
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(place: &mut ReportPlace) -> Result<(), String> {
        place.write(b"new").map_err(|e| e.to_string())
    }

    #[test]
    fn a_report_is_never_written_through_a_link_that_came_later() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, elsewhere) = (dir.path().join("shared"), dir.path().join("elsewhere"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("junit.xml"), "old").unwrap();
        let path = shared.join("reports/junit.xml");
        // The directory gives way to a link.
        let mut place = ReportPlace::new(&path, &shared).unwrap();
        fs::remove_dir(shared.join("reports")).unwrap();
        symlink(&elsewhere, shared.join("reports")).unwrap();
        assert!(write(&mut place).unwrap_err().contains("symbolic link"));
        assert_eq!(fs::read_to_string(elsewhere.join("junit.xml")).unwrap(), "old");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
        // It is removed, as by a test that cleans up, or the file is a link: the report replaces that.
        fs::remove_file(shared.join("reports")).unwrap();
        write(&mut place).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        fs::remove_file(&path).unwrap();
        symlink(elsewhere.join("junit.xml"), &path).unwrap();
        write(&mut place).unwrap();
        assert_eq!(fs::read_to_string(elsewhere.join("junit.xml")).unwrap(), "old");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn a_link_of_the_users_is_followed_as_it_was_and_a_changed_one_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, artifacts) = (dir.path().join("shared"), dir.path().join("artifacts"));
        fs::create_dir(&shared).unwrap();
        fs::create_dir(&artifacts).unwrap();
        symlink(&artifacts, shared.join("reports")).unwrap();
        let path = shared.join("reports/junit.xml");
        let mut place = ReportPlace::new(&path, &shared).unwrap();
        write(&mut place).unwrap();
        assert_eq!(fs::read_to_string(artifacts.join("junit.xml")).unwrap(), "new");
        fs::remove_file(shared.join("reports")).unwrap();
        fs::create_dir(shared.join("reports")).unwrap();
        fs::write(&path, "forged").unwrap();
        assert!(write(&mut place).unwrap_err().contains("leads elsewhere"));
    }

    #[test]
    fn a_device_is_written_to_and_a_directory_is_refused_before() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ReportPlace::new(Path::new("/dev/null"), dir.path()).unwrap().is_special());
        assert!(ReportPlace::new(dir.path(), dir.path()).is_err());
    }
}
