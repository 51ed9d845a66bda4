//! JUnit files that a test leaves in the workspace: found by the agent's own system calls, told apart from what was there by a look
//! before, and brought to the host by the agent, for in the guest alone they may be seen, and links mean something.
//!
//! What cannot be read, or was not looked at, is a problem of the results: it is told, and spoils a pass.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_formats::{Results, junit::MAX_DOCUMENT};
use belljar_machine::{
    Cause, Lost, for_people,
    guest::Guest,
    session::agent::{FileQuery, FileRecord, FileRecords, Found, FoundKind, OutputSink, Part, SinkFuture},
};
use belljar_model::{EventKind, Phase};
use belljar_suite::glob::Pattern;
use fs_err as fs;

use super::{
    files,
    junit::{Left, junit_of},
};
use crate::{cancel::Cancel, names::safe_name, output::clean};

/// Limit to one question; the agent gives up its look earlier and says so.
const LIMIT: Duration = Duration::from_secs(180);
/// Most bytes of all files of a test.
const MAX_IN_ALL: u64 = 256 * 1024 * 1024;
/// Most patterns that alternatives make of one.
const MAX_ALTERNATIVES: usize = 200;
/// Most paths that are asked for at once, in bytes: a message holds 4 MiB.
const MAX_ASKED: usize = 1024 * 1024;

/// What a look saw, by path.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    found: HashMap<Vec<u8>, Found>,
    cut: Option<String>,
    clock_set: bool,
}

/// A directory of the guest that is looked through.
#[derive(Clone, Copy)]
pub(crate) struct SearchRoot<'a> {
    /// In the guest.
    pub(crate) root: &'a str,
    /// What a person calls it.
    pub(crate) name: &'a str,
    /// Which paths below it are wanted.
    pub(crate) patterns: &'a [Pattern],
}

/// Looks which files there are; none where no agent could look.
///
/// # Errors
/// If the guest is lost, or gives no answer.
pub(crate) async fn look(
    guest: &mut dyn Guest,
    place: SearchRoot<'_>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Option<Seen>, Lost> {
    let wanted = place.patterns.iter().flat_map(|p| parts(p.text())).collect();
    let query = FileQuery::Look { root: place.root.as_bytes().to_vec(), wanted };
    let mut seen = Seen::default();
    let mut sink = Answer::new(|record| match record {
        FileRecord::Found(found) => drop(seen.found.insert(found.path.clone(), found)),
        FileRecord::End { cut, clock_set } => (seen.cut, seen.clock_set) = (cut, clock_set),
        FileRecord::Bytes(_) | FileRecord::Read(_) => {}
    });
    let answered = ask(guest, query, &mut sink, cancel, observe).await?;
    Ok(answered.then_some(seen))
}

async fn ask(
    guest: &mut dyn Guest,
    query: FileQuery,
    sink: &mut Answer<impl FnMut(FileRecord) + Send>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<bool, Lost> {
    let asking = tokio::time::timeout(LIMIT, guest.files(query, sink, observe));
    let answered = tokio::select! {
        biased;
        why = cancel.wanted() => return Err(why.lost(Phase::Command)),
        answered = asking => answered,
    };
    let Ok(answered) = answered else {
        let limit = for_people(LIMIT);
        return Err(Lost::timeout(
            Phase::Command,
            format!("the agent did not say within {limit} which files the test left"),
        ));
    };
    if answered? && !sink.records.is_whole() {
        return Err(Cause::Answer("the agent's answer, which files the test left, is cut off".into()).into());
    }
    Ok(sink.records.is_whole())
}

impl Seen {
    /// What is there now and was not `before`, read; `keep` is where copies are put on the host.
    ///
    /// # Errors
    /// If the guest is lost, or gives no answer.
    pub(crate) async fn since(
        self,
        before: &Self,
        guest: &mut dyn Guest,
        place: SearchRoot<'_>,
        keep: &Path,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<Left, Lost> {
        let mut left = Left::default();
        let compared = self.compare(before, place);
        compared.problems.into_iter().for_each(|problem| left.results.problem(problem));
        let mut files = compared.files.into_iter().peekable();
        while files.peek().is_some() {
            let (mut asked, mut bytes) = (Vec::new(), 0);
            while let Some(file) = files.next_if(|(path, _)| asked.is_empty() || bytes + path.len() < MAX_ASKED) {
                bytes += file.0.len() + 8;
                asked.push(file);
            }
            let query = FileQuery::Read {
                root: place.root.as_bytes().to_vec(),
                paths: asked.iter().map(|(path, _)| path.clone()).collect(),
                most: MAX_DOCUMENT as u64,
                most_in_all: MAX_IN_ALL,
            };
            let mut reading =
                Reading { asked: asked.into_iter(), document: Vec::new(), left: &mut left, keep, name: place.name };
            let mut sink = Answer::new(|record| reading.take(record));
            ask(guest, query, &mut sink, cancel, observe).await?;
            drop(sink);
            if reading.asked.next().is_some() {
                let what = "the agent did not say of each file that the test left what is in it";
                return Err(Cause::Answer(what.into()).into());
            }
        }
        Ok(left)
    }

    /// Leaves out what the host has seen itself, through no link.
    pub(crate) fn forget(&mut self, here: &files::Walked) {
        let known: HashSet<&[u8]> = here.files.iter().map(|(path, _)| path.as_os_str().as_bytes()).collect();
        // The directory itself is no mount that anybody has to be told of.
        self.found.retain(|path, _| !path.is_empty() && !known.contains(path.as_slice()));
    }

    fn compare(self, before: &Self, place: SearchRoot<'_>) -> Compared {
        let name = place.name;
        let mut problems = Vec::new();
        for cut in before.cut.iter().chain(&self.cut) {
            problems.push(format!(
                "{name} was not looked through for JUnit files: {}; say with `junit` where they are",
                clean(cut.as_bytes())
            ));
        }
        let was_cut = before.cut.is_some();
        let mut inodes = HashSet::new();
        let mut found: Vec<(Vec<u8>, Found)> = self.found.into_iter().collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let mut files = Vec::new();
        for (path, now) in found {
            let then = before.found.get(&path);
            let same = then == Some(&now) && !was_cut;
            let shown = clean(&path);
            match &now.kind {
                FoundKind::File => {
                    let path_of = Path::new(OsStr::from_bytes(&path));
                    if !place.patterns.iter().any(|p| p.matches(path_of)) || (same && !self.clock_set) {
                        continue;
                    }
                    // Several links lead to one file; each counts for the pattern that it matches.
                    let again = !inodes.insert(now.target.unwrap_or(now.stamp).inode);
                    let how = if same {
                        How::Doubtful
                    } else if again {
                        How::Again
                    } else {
                        How::Left
                    };
                    files.push((path, how));
                }
                FoundKind::Other(what)
                    if !same && place.patterns.iter().any(|p| p.matches(Path::new(OsStr::from_bytes(&path)))) =>
                {
                    problems.push(format!("{shown} in {name} is {}, and was not read", clean(what.as_bytes())));
                }
                FoundKind::Closed(why) if !same => {
                    let why = clean(why.as_bytes());
                    problems
                        .push(format!("the directory {shown} in {name} was not looked into for JUnit files: {why}"));
                }
                FoundKind::Mount if !same => {
                    let what = if path.is_empty() { name.to_owned() } else { format!("{shown} in {name}") };
                    problems.push(format!(
                        "{what} is not what it was before the test: something was mounted there, and what is under it was not looked at"
                    ));
                }
                FoundKind::Other(_) | FoundKind::Closed(_) | FoundKind::Mount => {}
            }
        }
        Compared { files, problems }
    }
}

/// What differs between two looks.
struct Compared {
    files: Vec<(Vec<u8>, How)>,
    problems: Vec<String>,
}

/// How a file counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The test left it.
    Left,
    /// It is one that counts under another name.
    Again,
    /// It looks as it did before, but the guest's clock was set meanwhile: it can only make the verdict worse.
    Doubtful,
}

/// Takes the files' contents.
struct Reading<'a> {
    asked: std::vec::IntoIter<(Vec<u8>, How)>,
    document: Vec<u8>,
    left: &'a mut Left,
    keep: &'a Path,
    name: &'a str,
}

impl Reading<'_> {
    fn take(&mut self, record: FileRecord) {
        match record {
            FileRecord::Bytes(bytes) => {
                let room = (MAX_DOCUMENT + 1).saturating_sub(self.document.len());
                self.document.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            FileRecord::Read(read) => {
                let document = std::mem::take(&mut self.document);
                if let Some((path, how)) = self.asked.next() {
                    self.file(&path, how, read, &document);
                }
            }
            FileRecord::Found(_) | FileRecord::End { .. } => {}
        }
    }

    fn file(&mut self, path: &[u8], how: How, read: Result<(), String>, document: &[u8]) {
        let shown = clean(path);
        let mut results = match read {
            Ok(()) => junit_of(document, &format!("{shown} in {}", self.name)),
            Err(why) => {
                let mut results = Results::default();
                results.problem(format!("{shown} in {} was not read: {}", self.name, clean(why.as_bytes())));
                results
            }
        };
        match how {
            How::Left => {
                if let Err(error) = self.keep(&shown, document) {
                    results.problem(format!("{shown} in {} could not be kept: {error}; free some space", self.name));
                }
            }
            How::Again => results = Results::default(),
            How::Doubtful => results.cases.retain(|case| case.result.is_bad()),
        }
        self.left.results.extend(results);
        if how != How::Doubtful {
            self.left.paths.push(PathBuf::from(OsStr::from_bytes(path)));
        }
    }

    fn keep(&self, shown: &str, document: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(self.keep)?;
        let path = self.keep.join(safe_name(shown));
        fs::File::options().write(true).create_new(true).open(path)?.write_all(document)
    }
}

/// Takes an answer of the agent's.
struct Answer<F> {
    records: FileRecords,
    take: F,
}

impl<F: FnMut(FileRecord) + Send> Answer<F> {
    fn new(take: F) -> Self {
        Self { records: FileRecords::default(), take }
    }
}

impl<F: FnMut(FileRecord) + Send> OutputSink for Answer<F> {
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.records.push(bytes);
        let taken = loop {
            match self.records.next() {
                Ok(Some(record)) => (self.take)(record),
                Ok(None) => break Ok(()),
                Err(error) => {
                    break Err(std::io::Error::other(format!("the agent's answer about files is none: {error}")));
                }
            }
        };
        Box::pin(std::future::ready(taken))
    }

    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A pattern as the agent understands it, which may match more: the whole pattern is matched here.
fn parts(pattern: &str) -> Vec<Vec<Part>> {
    let anything = || vec![vec![Part::Any]];
    if pattern.contains('\\') {
        return anything();
    }
    let Some(plain) = alternatives(pattern) else { return anything() };
    let name = |part: &str| {
        let mut name = Vec::new();
        let mut chars = part.chars();
        while let Some(c) = chars.next() {
            match c {
                // One character is no more than any.
                '?' => name.push(b'*'),
                '[' => {
                    // A bracket that is the first in a class, or the first after its negation, does not end it.
                    let mut first = true;
                    for c in chars.by_ref() {
                        match c {
                            ']' if !first => break,
                            '!' | '^' if first => {}
                            _ => first = false,
                        }
                    }
                    name.push(b'*');
                }
                c => name.extend(c.to_string().bytes()),
            }
        }
        Part::Name(name)
    };
    let path = |text: &String| {
        let parts = text.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(|part| if part == "**" { Part::Any } else { name(part) }).collect()
    };
    plain.iter().map(path).collect()
}

/// What `{a,b}` stands for, each written out; none if that is too much.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let Some(open) = pattern.find('{') else { return Some(vec![pattern.to_owned()]) };
    let (before, rest) = (&pattern[..open], &pattern[open + 1..]);
    let (mut depth, mut from, mut choices, mut close) = (0, 0, Vec::new(), None);
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                choices.push(&rest[from..at]);
                close = Some(at);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                choices.push(&rest[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    // A brace in a class of characters, or one that is not closed, is not told apart here.
    let after = &rest[close? + 1..];
    if pattern.contains('[') {
        return None;
    }
    let mut all = Vec::new();
    for choice in choices {
        all.extend(alternatives(&format!("{before}{choice}{after}"))?);
        if all.len() > MAX_ALTERNATIVES {
            return None;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use belljar_machine::session::agent::Stamp;

    use super::*;

    fn patterns(all: &[&str]) -> Vec<Pattern> {
        all.iter().map(|p| Pattern::new(p).unwrap()).collect()
    }

    fn found(path: &str, kind: FoundKind, inode: u64, ctime: i64) -> (Vec<u8>, Found) {
        let stamp = Stamp { inode: (1, inode), ctime: (ctime, 0), ..Stamp::default() };
        (path.into(), Found { path: path.into(), kind, stamp, target: None })
    }

    fn seen(all: impl IntoIterator<Item = (Vec<u8>, Found)>) -> Seen {
        Seen { found: all.into_iter().collect(), cut: None, clock_set: false }
    }

    fn compared(before: &Seen, now: Seen) -> Compared {
        let patterns = patterns(&["**/*.xml"]);
        now.compare(before, SearchRoot { root: "/w", name: "the workspace", patterns: &patterns })
    }

    #[test]
    fn only_what_the_test_left_counts() {
        let before = seen([found("old.xml", FoundKind::File, 1, 5), found("again.xml", FoundKind::File, 2, 5)]);
        let now = || {
            [
                found("old.xml", FoundKind::File, 1, 5),
                found("again.xml", FoundKind::File, 2, 6),
                found("new.xml", FoundKind::File, 3, 4),
                found("same.xml", FoundKind::File, 3, 4),
                found("no.txt", FoundKind::File, 4, 4),
            ]
        };
        let told = compared(&before, seen(now()));
        let names: Vec<(&str, How)> =
            told.files.iter().map(|(p, how)| (std::str::from_utf8(p).unwrap(), *how)).collect();
        assert_eq!(names, [("again.xml", How::Left), ("new.xml", How::Left), ("same.xml", How::Again)]);
        assert!(told.problems.is_empty(), "{:?}", told.problems);
        // With another clock nothing is known of what looks the same.
        let told = compared(&before, Seen { clock_set: true, ..seen(now()) });
        assert_eq!(told.files[2], (b"old.xml".to_vec(), How::Doubtful), "{:?}", told.files);
    }

    #[test]
    fn what_was_not_read_is_a_problem() {
        let what = [
            found("", FoundKind::Mount, 1, 0),
            found("p.xml", FoundKind::Other("a FIFO".into()), 2, 0),
            found("shut", FoundKind::Closed("Permission denied".into()), 3, 0),
        ];
        assert!(compared(&seen(what.clone()), seen(what.clone())).problems.is_empty(), "it was so before");
        let told = compared(&seen([]), seen(what.clone()));
        assert_eq!(told.problems.len(), 3, "{:?}", told.problems);
        for (before, now) in [(Some("limit"), None), (None, Some("limit"))] {
            let cut = |why: Option<&str>| Seen { cut: why.map(str::to_owned), ..seen(what.clone()) };
            assert!(!compared(&cut(before), cut(now)).problems.is_empty(), "{before:?} {now:?}");
        }
        // What was there before is not known, so that a file of then is none of the test's.
        let cut = Seen { cut: Some("limit".into()), ..seen([]) };
        assert_eq!(compared(&cut, seen([found("a.xml", FoundKind::File, 9, 0)])).problems.len(), 1);
    }

    #[test]
    fn the_agent_is_asked_for_no_less_than_is_wanted() {
        let shown = |pattern: &str| -> Vec<String> {
            let part = |part: &Part| match part {
                Part::Any => "**".to_owned(),
                Part::Name(name) => String::from_utf8_lossy(name).into_owned(),
            };
            parts(pattern).iter().map(|path| path.iter().map(part).collect::<Vec<_>>().join("/")).collect()
        };
        assert_eq!(shown("*.xml"), ["*.xml"]);
        assert_eq!(shown("./reports/**/TEST-*.xml"), ["reports/**/TEST-*.xml"]);
        assert_eq!(shown("a?/r[0-9].xml"), ["a*/r*.xml"]);
        assert_eq!(shown("r[]!x].xml"), ["r*.xml"]);
        assert_eq!(shown("{a,b/{c,d}}/*.xml"), ["a/*.xml", "b/c/*.xml", "b/d/*.xml"]);
        assert_eq!(shown("a\\*.xml"), ["**"]);
        assert_eq!(shown("{a,[b,]}.xml"), ["**"]);
    }
}
