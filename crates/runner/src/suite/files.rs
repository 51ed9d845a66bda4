//! What a guest left on the host: looked at without ever following a link of the guest's.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use belljar_formats::{Results, junit};
use belljar_model::test_run::{LeftFile, MAX_FILES};
use belljar_suite::glob::Pattern;
use fs_err as fs;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};

use super::output::clean_results;

/// Most entries that are looked at, and deepest directory.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 32;
/// Most JUnit files that are read of one test.
const MAX_JUNIT: usize = 1000;

/// The regular files under a directory.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// In order of their names, at most [`MAX_FILES`].
    pub(crate) files: Vec<LeftFile>,
    /// How many more there are.
    pub(crate) more: u64,
}

/// Looks what there is. A directory that is none, or cannot be read, has nothing.
pub(crate) fn left(dir: &Path) -> Left {
    let mut all = walk(dir);
    let more = all.len().saturating_sub(MAX_FILES) as u64;
    all.truncate(MAX_FILES);
    let shown =
        |path: &Path| path.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let files = all.iter().map(|(path, bytes)| LeftFile { path: shown(path), bytes: *bytes }).collect();
    Left { files, more }
}

/// Reads the JUnit files under `dir` that one of `patterns` matches, and not `but`; none if there are none.
pub(crate) fn junit(dir: &Path, patterns: &[Pattern], but: Option<&Pattern>) -> Option<Results> {
    let mut results: Option<Results> = None;
    let wanted = |path: &Path| patterns.iter().any(|p| p.matches(path)) && !but.is_some_and(|b| b.matches(path));
    let found = walk(dir).into_iter().filter(|(path, _)| wanted(path));
    for (path, _) in found.take(MAX_JUNIT) {
        let read = match read(dir, &path) {
            Ok(document) => junit::parse_junit(&document),
            // As a document that ends too early, which it is.
            Err(_) => junit::parse_junit(b""),
        };
        let read = clean_results(read);
        match &mut results {
            Some(results) => results.extend(read),
            none => *none = Some(read),
        }
    }
    results
}

/// Moves a directory that the guest wrote into to where it is kept. What is no directory any more is left behind.
pub(crate) fn keep(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(from)?.is_dir() { fs::rename(from, to) } else { Ok(()) }
}

/// All regular files, by name, with their sizes.
fn walk(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut seen = 0;
    let mut waiting: Vec<(PathBuf, OwnedFd, usize)> = Vec::new();
    if let Ok(top) = open(dir, flags, Mode::empty()) {
        waiting.push((PathBuf::new(), top, 0));
    }
    while let Some((at, fd, depth)) = waiting.pop() {
        let Ok(mut entries) = Dir::new(fd) else { continue };
        while let Some(entry) = entries.next() {
            let Ok(entry) = entry else { continue };
            let Ok(fd) = entries.fd() else { break };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            seen += 1;
            if seen > MAX_ENTRIES {
                break;
            }
            let path = at.join(name);
            match entry.file_type() {
                FileType::Directory if depth < MAX_DEPTH && waiting.len() < 1000 => {
                    if let Ok(inner) = openat(fd, entry.file_name(), flags, Mode::empty()) {
                        waiting.push((path, inner, depth + 1));
                    }
                }
                FileType::RegularFile => {
                    let stat = rustix::fs::statat(fd, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
                    found.push((path, stat.map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0))));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Reads a regular file under `dir`, never beyond it and through no link, as far as a JUnit file may be long and one byte more.
fn read(dir: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let top = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = openat2(&top, path, flags, Mode::empty(), how)?;
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("no regular file"));
    }
    let mut document = Vec::new();
    std::fs::File::from(fd).take(junit::MAX_DOCUMENT as u64 + 1).read_to_end(&mut document)?;
    Ok(document)
}

/// A unit's id as one file name.
pub(crate) fn safe_name(id: &str) -> String {
    const LONGEST: usize = 120;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._@+-:".contains(c);
    let safe: String = id
        .chars()
        .map(|c| {
            if c == '/' {
                '.'
            } else if plain(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let suite = id.split('/').next().unwrap_or_default();
    let changed = safe.len() > LONGEST
        || suite.contains('.')
        || id.chars().any(|c| c != '/' && !plain(c))
        || id.matches('/').count() > 1;
    if !changed {
        return safe;
    }
    // Two ids must not come to the same name.
    format!("{}-{:016x}", belljar_model::test_run::keep_start(&safe, LONGEST), super::hash(id.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const GOOD: &str = r#"<testsuite tests="1"><testcase classname="a" name="b"/></testsuite>"#;

    fn patterns(all: &[&str]) -> Vec<Pattern> {
        all.iter().map(|p| Pattern::new(p).unwrap()).collect()
    }

    #[test]
    fn links_are_neither_followed_nor_listed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.xml"), GOOD).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/mine.xml"), GOOD).unwrap();
        fs::write(dir.path().join("new\nline"), "x").unwrap();
        symlink(outside.path(), dir.path().join("there")).unwrap();
        symlink(outside.path().join("secret.xml"), dir.path().join("file.xml")).unwrap();
        let left = left(dir.path());
        let names: Vec<&str> = left.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["new\u{fffd}line", "sub/mine.xml"]);
        assert_eq!(junit(dir.path(), &patterns(&["**/*.xml"]), None).unwrap().cases.len(), 1);
        assert!(junit(dir.path(), &patterns(&["*.xml"]), None).is_none());
        assert!(read(dir.path(), Path::new("there/secret.xml")).is_err());
        assert!(read(dir.path(), Path::new("../x")).is_err());
        let link = dir.path().join("link-to-dir");
        symlink(dir.path().join("sub"), &link).unwrap();
        assert!(super::left(&link).files.is_empty());
        keep(&link, &dir.path().join("kept")).unwrap();
        assert!(!dir.path().join("kept").exists());
    }

    #[test]
    fn a_fifo_does_not_block_and_a_damaged_file_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(CWD, dir.path().join("p.xml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(read(dir.path(), Path::new("p.xml")).is_err());
        fs::write(dir.path().join("q.xml"), "<testsuite><testcase").unwrap();
        let results = junit(dir.path(), &patterns(&["*.xml"]), None).unwrap();
        assert!(!results.problems.is_empty());
    }

    #[test]
    fn many_files_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..MAX_FILES + 7 {
            fs::write(dir.path().join(format!("{n:05}")), "x").unwrap();
        }
        let left = left(dir.path());
        assert_eq!((left.files.len(), left.more), (MAX_FILES, 7));
        assert_eq!(left.files[0], LeftFile { path: "00000".into(), bytes: 1 });
    }

    #[test]
    fn names_of_files_are_plain_and_apart() {
        assert_eq!(safe_name("storage/ext4.sh@debian"), "storage.ext4.sh@debian");
        let odd = safe_name("s/a b@g");
        assert!(odd.starts_with("s.a_b@g-"), "{odd}");
        assert_ne!(odd, safe_name("s/a_b@g"));
        assert_ne!(odd, safe_name("s/a\u{e9}b@g"));
        assert_ne!(safe_name("s/a.b@g"), safe_name("s/a/b@g"));
        assert_ne!(safe_name("s.a/b@g"), safe_name("s/a.b@g"));
        assert!(safe_name(&format!("s/{}@g", "x".repeat(5000))).len() < 200);
        assert!(!safe_name("../../etc@g").contains('/'));
    }
}
