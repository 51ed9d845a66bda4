//! What a guest left on the host: looked at without ever following a link of the guest's.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use belljar_formats::junit;
use belljar_model::test_run::{LeftFile, MAX_FILES};
use belljar_suite::glob::Pattern;
use fs_err as fs;
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2},
    io::Errno,
};

use super::junit::{Left, junit_of};
use crate::output::clean;

/// Most entries that are looked at, and deepest directory.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 32;
/// Most directories that are open at the same time.
const MAX_OPEN: usize = 1000;
/// Most reasons that are told why something was not seen.
const MAX_TOLD: usize = 20;
/// Most bytes that are read of all JUnit files of one test.
const MAX_IN_ALL: u64 = 256 * 1024 * 1024;

/// What a person calls the output directory.
pub(crate) const OUT_NAME: &str = "$BELLJAR_OUT";

/// The regular files under a directory.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// In order of their names, at most [`MAX_FILES`].
    pub(crate) files: Vec<LeftFile>,
    /// How many more there are.
    pub(crate) more: u64,
}

/// Looks what there is. A directory that is none, or cannot be read, has nothing.
pub(crate) fn left(dir: &Path) -> Listed {
    let mut all = walk(dir).files;
    let more = all.len().saturating_sub(MAX_FILES) as u64;
    all.truncate(MAX_FILES);
    let shown =
        |path: &Path| path.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let files = all.iter().map(|(path, bytes)| LeftFile { path: shown(path), bytes: *bytes }).collect();
    Listed { files, more }
}

/// Reads the JUnit files under `dir` that one of `patterns` matches. What cannot be read, or is no regular file, is a problem of the
/// results, but for what is in `known`.
pub(crate) fn junit(dir: &Path, patterns: &[Pattern], known: &[PathBuf]) -> Left {
    let mut left = Left::default();
    let wanted = |path: &Path| patterns.iter().any(|p| p.matches(path)) && !known.iter().any(|k| k == path);
    let shown = |path: &Path| clean(path.as_os_str().as_bytes());
    let Walked { files, others, unseen } = walk(dir);
    let mut room = MAX_IN_ALL;
    for (path, _) in files.into_iter().filter(|(path, _)| wanted(path)) {
        let name = format!("{} in {OUT_NAME}", shown(&path));
        match read(dir, &path) {
            Ok(document) if document.len() as u64 <= room => {
                room -= document.len() as u64;
                left.results.extend(junit_of(&document, &name));
            }
            Ok(_) => left
                .results
                .problem(format!("{name} was not read: there are more than {} MiB of them", MAX_IN_ALL >> 20)),
            Err(error) => left.results.problem(format!("{name} was not read: {error}")),
        }
        left.paths.push(path);
    }
    for (path, what) in others.into_iter().filter(|(path, _)| wanted(path)) {
        left.results.problem(format!("{} in {OUT_NAME} is {what}, and was not read", shown(&path)));
    }
    for why in unseen {
        left.results.problem(format!("not all of {OUT_NAME} was looked through for JUnit files: {why}"));
    }
    left
}

/// Moves a directory that the guest wrote into to where it is kept. What is no directory any more is left behind.
pub(crate) fn keep(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(from)?.is_dir() { fs::rename(from, to) } else { Ok(()) }
}

/// What is under a directory.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// All regular files, by name, with their sizes.
    pub(crate) files: Vec<(PathBuf, u64)>,
    /// What is neither a regular file nor a directory, and what it is.
    others: Vec<(PathBuf, &'static str)>,
    /// Why there may be more.
    unseen: Vec<String>,
}

impl Walked {
    /// Whether there are symbolic links.
    pub(crate) fn has_links(&self) -> bool {
        self.others.iter().any(|(_, what)| *what == LINK)
    }
}

const LINK: &str = "a symbolic link";

/// Looks through a directory, and through no link. One that is not there has nothing.
pub(crate) fn walk(dir: &Path) -> Walked {
    let mut found = Walked::default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut seen = 0;
    let mut waiting: Vec<(PathBuf, OwnedFd, usize)> = Vec::new();
    match open(dir, flags, Mode::empty()) {
        Ok(top) => waiting.push((PathBuf::new(), top, 0)),
        Err(Errno::NOENT) => {}
        Err(error) => found.unseen.push(format!("it cannot be opened: {error}")),
    }
    'all: while let Some((at, fd, depth)) = waiting.pop() {
        let shown = |path: &Path| clean(path.as_os_str().as_bytes());
        let mut entries = match Dir::new(fd) {
            Ok(entries) => entries,
            Err(error) => {
                found.unseen.push(format!("{} cannot be read: {error}", shown(&at)));
                continue;
            }
        };
        while let Some(entry) = entries.next() {
            let (entry, fd) = match (entry, entries.fd()) {
                (Ok(entry), Ok(fd)) => (entry, fd),
                (Err(error), _) | (_, Err(error)) => {
                    found.unseen.push(format!("{} cannot be read: {error}", shown(&at)));
                    break;
                }
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            seen += 1;
            if seen > MAX_ENTRIES {
                found.unseen.push(format!("there are more than {MAX_ENTRIES} files"));
                break 'all;
            }
            let path = at.join(name);
            let stat = || rustix::fs::statat(fd, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            let kind = match entry.file_type() {
                // Not every file system says it with the name.
                FileType::Unknown => stat().map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode)),
                kind => kind,
            };
            match kind {
                FileType::Directory if depth >= MAX_DEPTH || waiting.len() >= MAX_OPEN => {
                    found.unseen.push(format!("{} is too deep, or beside too many others", shown(&path)));
                }
                FileType::Directory => match openat(fd, entry.file_name(), flags, Mode::empty()) {
                    Ok(inner) => waiting.push((path, inner, depth + 1)),
                    Err(error) => found.unseen.push(format!("{} cannot be opened: {error}", shown(&path))),
                },
                FileType::RegularFile => {
                    found.files.push((path, stat().map_or(0, |s| u64::try_from(s.st_size).unwrap_or(0))));
                }
                FileType::Symlink => found.others.push((path, LINK)),
                FileType::Fifo => found.others.push((path, "a FIFO")),
                FileType::Socket => found.others.push((path, "a socket")),
                _ => found.others.push((path, "no regular file")),
            }
        }
    }
    found.files.sort();
    found.others.sort();
    // Whoever is told of some will look for the others.
    found.unseen.truncate(MAX_TOLD);
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
        // A link where a file is wanted is told of, unless somebody else has read it.
        let linked = junit(dir.path(), &patterns(&["**/*.xml"]), &[]);
        assert_eq!((linked.results.cases.len(), linked.paths.len()), (1, 1));
        assert_eq!(linked.results.problems, ["file.xml in $BELLJAR_OUT is a symbolic link, and was not read"]);
        let known = junit(dir.path(), &patterns(&["*.xml"]), &["file.xml".into()]);
        assert!(known.results.problems.is_empty() && known.paths.is_empty());
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
        let left = junit(dir.path(), &patterns(&["*.xml"]), &[]);
        let problems = left.results.problems.join("\n");
        assert!(problems.contains("p.xml in $BELLJAR_OUT is a FIFO"), "{problems}");
        assert!(problems.contains("q.xml in $BELLJAR_OUT: the JUnit file is damaged"), "{problems}");
    }

    #[test]
    fn there_is_no_number_of_files_from_which_on_none_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..1500 {
            fs::write(dir.path().join(format!("{n:04}.xml")), GOOD).unwrap();
        }
        fs::write(dir.path().join("9999.xml"), GOOD.replace("/></", "><failure/></testcase></")).unwrap();
        let left = junit(dir.path(), &patterns(&["*.xml"]), &[]);
        assert_eq!((left.paths.len(), left.results.cases.len()), (1501, 1501));
        assert!(left.results.cases[1500].result.is_bad());
    }

    #[test]
    fn what_is_too_deep_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d/".repeat(MAX_DEPTH + 2));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("a.xml"), GOOD).unwrap();
        let left = junit(dir.path(), &patterns(&["**/*.xml"]), &[]);
        assert!(left.results.problems[0].contains("too deep"), "{:?}", left.results.problems);
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
}
