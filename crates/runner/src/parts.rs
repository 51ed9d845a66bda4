//! The files of a run, copied beside those of others.

use std::{io, path::Path};

use fs_err as fs;

use crate::run_dir;

/// Copies what a run of a suite kept. Links that a guest left are not followed and not copied.
///
/// # Errors
/// The first file that cannot be read or written.
pub fn copy(run: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            tree(&entry.path(), &to.join(&name))?;
        } else if entry.file_type()?.is_file() && name == run_dir::EVENTS {
            fs::copy(entry.path(), to.join(&name))?;
        }
    }
    Ok(())
}

fn tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let goal = to.join(entry.file_name());
        if kind.is_dir() {
            tree(&entry.path(), &goal)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), goal)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_and_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (run, to) = (dir.path().join("run"), dir.path().join("to"));
        fs::create_dir_all(run.join("attempts/a/out")).unwrap();
        fs::write(run.join("attempts/a/out/f"), "x").unwrap();
        fs::write(run.join(run_dir::EVENTS), "{}").unwrap();
        fs::write(run.join("lock"), "").unwrap();
        std::os::unix::fs::symlink("/etc", run.join("attempts/a/out/etc")).unwrap();
        copy(&run, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("attempts/a/out/f")).unwrap(), "x");
        assert!(to.join(run_dir::EVENTS).is_file());
        assert!(fs::symlink_metadata(to.join("attempts/a/out/etc")).is_err());
        assert!(!to.join("lock").exists());
    }
}
