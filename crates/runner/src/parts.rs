//! The files of a run, copied beside those of others.

use std::{io, path::Path};

use fs_err as fs;

use crate::{run_dir, sparse};

/// Directories deeper than this are left out: a guest makes them as deep as it likes, and a path of the host's has an end.
const MAX_DEPTH: usize = 64;
/// So are all files and directories after this many.
const MAX_ENTRIES: usize = 1_000_000;

/// Copies what a run of a suite kept. Links that a guest left are not followed and not copied. Gives what had to be left out, for a
/// person.
///
/// # Errors
/// The first file that cannot be read or written.
pub fn copy(run: &Path, to: &Path) -> io::Result<Vec<String>> {
    let mut left_out = Vec::new();
    fs::create_dir_all(to)?;
    let mut waiting = Vec::new();
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            waiting.push((entry.path(), to.join(&name), 1));
        } else if entry.file_type()?.is_file() && name == run_dir::EVENTS {
            fs::copy(entry.path(), to.join(&name))?;
        }
    }
    let mut seen = 0;
    while let Some((from, to, depth)) = waiting.pop() {
        fs::create_dir(&to)?;
        let entries = match fs::read_dir(&from) {
            // A mode that the guest gave it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                left_out.push(error.to_string());
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let (kind, goal) = (entry.file_type()?, to.join(entry.file_name()));
            seen += 1;
            if seen > MAX_ENTRIES {
                left_out.push(format!("what comes after {MAX_ENTRIES} files and directories"));
                return Ok(left_out);
            }
            if kind.is_dir() && (depth >= MAX_DEPTH || goal.as_os_str().len() > LONGEST) {
                left_out.push(format!("{}, which is too deep", entry.path().display()));
            } else if kind.is_dir() {
                waiting.push((entry.path(), goal, depth + 1));
            } else if kind.is_file() {
                match sparse::copy_file(&entry.path(), &goal) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => left_out.push(error.to_string()),
                    copied => drop(copied?),
                }
            }
        }
    }
    Ok(left_out)
}

/// Longest path of a directory, so that there is room for a name of the longest kind in it.
const LONGEST: usize = 4096 - 256 - 1;

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
        let mut deep = run.join("attempts/deep");
        for _ in 0..MAX_DEPTH + 2 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let left_out = copy(&run, &to).unwrap();
        assert!(left_out.len() == 1 && left_out[0].ends_with("which is too deep"), "{left_out:?}");
        assert_eq!(fs::read_to_string(to.join("attempts/a/out/f")).unwrap(), "x");
        assert!(to.join(run_dir::EVENTS).is_file());
        assert!(fs::symlink_metadata(to.join("attempts/a/out/etc")).is_err());
        assert!(!to.join("lock").exists());
    }
}
