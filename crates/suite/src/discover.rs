//! Which test files there are.
//!
//! A test's name is its path below the directory that all patterns of its suite have in common. So it depends on the
//! configuration and the file alone: a new file never renames another, and no two files of a suite have the same name.
//!
//! `*` does not match names that begin with a dot, and `**` does not go through symbolic links, as in shells.

mod setup;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Config, Format, Isolation, Suite, no_such},
    diagnostic::{Diagnostic, Diagnostics, Place, SourceText, enumerate, hides},
    files,
    glob::Pattern,
    header::{self, Header},
};

pub use self::setup::{InWorkspace, SetUp};

/// So many names are given in one message.
const NAMED: usize = 10;

/// A test file of a suite.
#[derive(Clone, Debug)]
pub struct TestFile {
    /// Its suite.
    pub suite: Arc<Suite>,
    /// Its name within the suite.
    pub name: String,
    /// Relative to `belljar.toml`.
    pub file: String,
    /// On the host.
    pub path: PathBuf,
    /// Relative to the workspace, which the guest sees.
    pub in_workspace: PathBuf,
    /// What it says of itself.
    pub header: Header,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// In the order of the suites, then by name.
    pub tests: Vec<TestFile>,
    /// The set-up of each suite that has one, by the suite's name.
    pub setup: BTreeMap<String, SetUp>,
    /// Worth knowing.
    pub notes: Diagnostics,
}

/// Looks for all test files of all suites, and reads their headers.
///
/// # Errors
///
/// All mistakes: files that cannot be run, patterns that match nothing, wrong headers, missing setup scripts.
pub fn discover(config: &Config) -> Result<Discovery, Diagnostics> {
    let mut found = Discovery::default();
    let real = |dir: &Path| fs_err::canonicalize(dir);
    let roots = match (real(&config.dir), real(&config.workspace)) {
        (Ok(dir), Ok(workspace)) if workspace.is_dir() => Roots { dir, workspace },
        (Ok(_), Ok(_)) => {
            let message = format!("the workspace {} is not a directory", config.workspace.display());
            return Err(std::iter::once(Diagnostic::error(message)).collect());
        }
        (Err(e), _) | (_, Err(e)) => {
            let help = "`workspace` in belljar.toml is a directory of the host, relative to the file";
            return Err(
                std::iter::once(Diagnostic::error(format!("cannot use the workspace: {e}")).help(help)).collect()
            );
        }
    };
    for suite in &config.suites {
        let tests = in_suite(config, &roots, suite, &mut found.notes);
        found.tests.extend(tests);
        if let Some(setup) = setup::find(&roots, suite, &mut found.notes) {
            found.setup.insert(suite.name.clone(), setup);
        }
    }
    let notes = std::mem::take(&mut found.notes).into_result()?;
    Ok(Discovery { notes, ..found })
}

struct Roots {
    dir: PathBuf,
    workspace: PathBuf,
}

/// What a name in the file system turned out to be.
enum Found {
    File { executable: bool },
    Directory,
    Broken,
    Special(&'static str),
    Unreadable(io::Error),
}

fn look(path: &Path) -> Found {
    match fs_err::metadata(path) {
        Ok(meta) if meta.is_file() => Found::File { executable: meta.permissions().mode() & 0o111 != 0 },
        Ok(meta) if meta.is_dir() => Found::Directory,
        Ok(meta) if meta.file_type().is_fifo() => Found::Special("a named pipe"),
        Ok(meta) if meta.file_type().is_socket() => Found::Special("a socket"),
        Ok(_) => Found::Special("a device"),
        Err(_) if fs_err::symlink_metadata(path).is_ok_and(|m| m.is_symlink()) => Found::Broken,
        Err(e) => Found::Unreadable(e),
    }
}

/// The mistakes in the headers of test files, for a configuration that has mistakes of its own: so that all are told at once. What
/// depends on the configuration, such as the names of guests, is left for when it is right.
#[must_use]
pub fn mistakes_in_headers(config: &Config) -> Diagnostics {
    let mut found = Diagnostics::default();
    let (Ok(dir), Ok(workspace)) = (fs_err::canonicalize(&config.dir), fs_err::canonicalize(&config.workspace)) else {
        return found;
    };
    let roots = Roots { dir, workspace };
    let mut seen = BTreeSet::new();
    for suite in config.suites.iter().filter(|s| s.layer.format != Some(Format::Libtest)) {
        // Of the files themselves more is known once the patterns are right.
        for file in files_of(&roots, suite, &mut Diagnostics::default()) {
            if seen.insert(file.clone())
                && let Ok(start) = start_of(&roots.dir.join(&file))
                && let Err(wrong) = header::read(&config.shown_dir.join(&file), &config.dir, &start)
            {
                found.append(wrong);
            }
        }
    }
    found.sorted()
}

/// The test files that a suite's patterns match, relative to the root.
fn files_of(roots: &Roots, suite: &Suite, out: &mut Diagnostics) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    let mut excluded = vec![0_usize; suite.exclude.len()];
    for (pattern, place) in &suite.tests {
        let mut kinds = Kinds::default();
        let mut files_of_pattern = 0;
        for relative in look_for(roots, pattern, place, out) {
            let mut dropped = false;
            for (i, (exclude, _)) in suite.exclude.iter().enumerate() {
                if exclude.matches(&relative) {
                    excluded[i] += 1;
                    dropped = true;
                }
            }
            files_of_pattern += usize::from(!dropped);
            if !dropped && let Some(file) = kinds.sort(roots, relative, out, place) {
                files.insert(file);
            }
        }
        kinds.tell(out, place, pattern, files_of_pattern);
    }
    for ((pattern, place), count) in suite.exclude.iter().zip(excluded) {
        if count == 0 {
            out.push(Diagnostic::note(format!("{:?} excludes nothing", pattern.text())).at(place.clone()));
        }
    }
    files
}

fn in_suite(config: &Config, roots: &Roots, suite: &Arc<Suite>, out: &mut Diagnostics) -> Vec<TestFile> {
    let files = files_of(roots, suite, out);
    let base = common_base(&suite.tests);
    let name = |file: &str| file.strip_prefix(&base).unwrap_or(file).trim_start_matches('/').to_owned();
    let mut tests = Vec::new();
    for file in files {
        match read(config, roots, suite, &file) {
            Ok((in_workspace, header)) => tests.push(TestFile {
                suite: Arc::clone(suite),
                name: name(&file),
                path: config.dir.join(&file),
                in_workspace,
                header,
                file,
            }),
            Err(wrong) => out.append(wrong),
        }
    }
    tests
}

/// The directory that all patterns have in common, without a slash at its end.
fn common_base(patterns: &[(Pattern, Place)]) -> String {
    let mut bases = patterns.iter().map(|(p, _)| p.base().components().collect::<Vec<_>>());
    let Some(mut common) = bases.next() else { return String::new() };
    for base in bases {
        let same = common.iter().zip(&base).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    common.iter().collect::<PathBuf>().to_string_lossy().into_owned()
}

/// What one pattern matches, relative to the root. That it is nothing is told.
fn look_for(roots: &Roots, pattern: &Pattern, place: &Place, out: &mut Diagnostics) -> Vec<PathBuf> {
    let mut walk = Walk { root: &roots.dir, pattern, matched: Vec::new(), wrong: Vec::new() };
    walk.directory(pattern.base(), 0);
    let Walk { matched, wrong, .. } = walk;
    if matched.is_empty() && wrong.is_empty() {
        out.push(matches_nothing(roots, pattern, place));
    }
    wrong.into_iter().for_each(|d| out.push(d.at(place.clone())));
    matched
}

/// The walk for one pattern.
struct Walk<'a> {
    root: &'a Path,
    pattern: &'a Pattern,
    matched: Vec<PathBuf>,
    wrong: Vec<Diagnostic>,
}

impl Walk<'_> {
    /// Looks at what is in `relative`, `depth` below the pattern's base.
    fn directory(&mut self, relative: &Path, depth: usize) {
        let entries = match fs_err::read_dir(self.root.join(relative)) {
            Ok(entries) => entries,
            Err(e) if depth == 0 && e.kind() == io::ErrorKind::NotFound => return,
            Err(e) if depth == 0 && e.kind() == io::ErrorKind::NotADirectory => return,
            Err(e) => return self.wrong.push(Diagnostic::error(format!("cannot look for tests: {e}"))),
        };
        let mut names = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => names.push(entry.file_name()),
                Err(e) => self.wrong.push(Diagnostic::error(format!("cannot look for tests: {e}"))),
            }
        }
        names.sort();
        for name in names {
            if name.as_encoded_bytes().starts_with(b".") && !self.pattern.hidden() {
                continue;
            }
            let relative = relative.join(name);
            if self.pattern.matches(&relative) {
                self.matched.push(relative.clone());
            }
            let path = self.root.join(&relative);
            let is_directory = match self.pattern.depth() {
                // A link could lead back here.
                None => fs_err::symlink_metadata(&path).is_ok_and(|m| m.is_dir()),
                Some(deepest) => depth + 1 < deepest && path.is_dir(),
            };
            if is_directory {
                self.directory(&relative, depth + 1);
            }
        }
    }
}

/// What matched a pattern and is no test.
#[derive(Default)]
struct Kinds {
    not_executable: Vec<String>,
    directories: Vec<String>,
}

impl Kinds {
    /// Gives back what is a test file.
    fn sort(&mut self, roots: &Roots, relative: PathBuf, out: &mut Diagnostics, place: &Place) -> Option<String> {
        let shown = relative.to_string_lossy().into_owned();
        let wrong = |message: String, help: &str| Diagnostic::error(message).at(place.clone()).help(help);
        let Some(name) = relative.to_str().filter(|n| !n.chars().any(hides)) else {
            let message = format!("the name of {shown:?} is no text that can stand in a report");
            out.push(wrong(message, "rename it, or leave it out with `exclude`"));
            return None;
        };
        match look(&roots.dir.join(&relative)) {
            Found::File { executable: true } => return Some(name.to_owned()),
            Found::File { executable: false } => self.not_executable.push(name.to_owned()),
            Found::Directory => self.directories.push(name.to_owned()),
            Found::Broken => {
                out.push(wrong(
                    format!("{name} is a symbolic link that leads nowhere"),
                    "mend it, or leave it out with `exclude`",
                ));
            }
            Found::Special(what) => {
                out.push(wrong(format!("{name} is {what}, not a test"), "leave it out with `exclude`"));
            }
            Found::Unreadable(e) => out.push(wrong(format!("cannot look at a test: {e}"), "see to its permissions")),
        }
        None
    }

    fn tell(self, out: &mut Diagnostics, place: &Place, pattern: &Pattern, matched: usize) {
        if let [first, others @ ..] = &self.not_executable[..] {
            let subject = if others.is_empty() {
                format!("{first} is not executable")
            } else {
                format!("{} files are not executable: {}", others.len() + 1, some(&self.not_executable, ", "))
            };
            let files: Vec<String> = self.not_executable.iter().map(|f| quoted(f)).collect();
            let help = format!("chmod +x {}\nor leave out what is no test with `exclude`", some(&files, " "));
            out.push(Diagnostic::error(subject).at(place.clone()).help(help));
        }
        if self.directories.is_empty() {
            return;
        }
        let directories = some(&self.directories, ", ");
        if self.directories.len() == matched {
            let message = format!("{:?} matches only directories: {directories}", pattern.text());
            let help = format!("write {:?} for the files in them", format!("{}/*", pattern.text()));
            out.push(Diagnostic::error(message).at(place.clone()).help(help));
        } else if pattern.depth().is_some() {
            let message = format!("{:?} matches directories too, which are passed over: {directories}", pattern.text());
            out.push(Diagnostic::note(message).at(place.clone()));
        }
    }
}

/// The first of many.
fn some(names: &[String], between: &str) -> String {
    match names.len().checked_sub(NAMED) {
        None | Some(0) => names.join(between),
        Some(more) => format!("{}{between}… ({more} more)", names[..NAMED].join(between)),
    }
}

/// For pasting into a shell.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '+' | '@' | '=' | ',');
    if name.chars().all(plain) && !name.starts_with('-') {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

fn matches_nothing(roots: &Roots, pattern: &Pattern, place: &Place) -> Diagnostic {
    let message = format!("{:?} matches nothing", pattern.text());
    let base = pattern.base();
    let help = match look(&roots.dir.join(base)) {
        Found::Directory => {
            let place = if base.as_os_str().is_empty() {
                "beside belljar.toml".to_owned()
            } else {
                format!("in {}", base.display())
            };
            format!("it is looked for {place}; correct it, or take it out")
        }
        Found::Unreadable(_) => format!("there is no directory {}, beside belljar.toml", base.display()),
        _ => format!("{} is no directory", base.display()),
    };
    Diagnostic::error(message).at(place.clone()).help(help)
}

/// Where the guest sees a test file, and what its header says.
fn read(config: &Config, roots: &Roots, suite: &Suite, file: &str) -> Result<(PathBuf, Header), Diagnostics> {
    let one = |d: Diagnostic| std::iter::once(d).collect::<Diagnostics>();
    let path = roots.dir.join(file);
    let outside = || {
        let help = format!(
            "the guest sees {} and nothing else; set `workspace` to a directory above both",
            roots.workspace.display()
        );
        one(Diagnostic::error(format!("{file} is not in the workspace")).help(help))
    };
    let in_workspace = path.strip_prefix(&roots.workspace).map_err(|_| outside())?.to_owned();
    // A link that leaves the workspace leads nowhere in the guest.
    let target = fs_err::canonicalize(&path).map_err(|e| one(Diagnostic::error(e.to_string())))?;
    if !target.starts_with(&roots.workspace) {
        return Err(outside());
    }
    if suite.layer.format == Some(Format::Libtest) {
        return Ok((in_workspace, Header::default()));
    }
    let start =
        start_of(&path).map_err(|e| one(Diagnostic::error(format!("cannot read the header of a test: {e}"))))?;
    let shown = config.shown_dir.join(file);
    let header = header::read(&shown, &config.dir, &start)?;
    let wrong = check_header(config, suite, &header, &SourceText::new(shown, &String::from_utf8_lossy(&start)));
    if wrong.is_empty() { Ok((in_workspace, header)) } else { Err(wrong) }
}

/// As much of a file as a header may be in.
fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(header::REACH + header::LINE);
    files::open_regular(path)?.take((header::REACH + header::LINE) as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// What a header says must fit to its suite and to the rest of the file.
fn check_header(config: &Config, suite: &Suite, header: &Header, source: &SourceText) -> Diagnostics {
    let mut out = Diagnostics::default();
    for (guest, span) in header.guests.iter().flatten() {
        if !config.guest_names().any(|name| name == guest) {
            out.push(no_such("guest", guest, config.guest_names()).at(source.place(span.clone())));
        }
    }
    if let (Some(group), Some(span)) = (&header.layer.group, &header.group)
        && !config.groups.contains_key(group)
    {
        out.push(no_such("group", group, config.groups.keys()).at(source.place(span.clone())));
    }
    let shared = header.layer.isolation.or(suite.layer.isolation) == Some(Isolation::Suite);
    for (key, span) in &header.hardware {
        if shared {
            let message =
                format!("`{key}` would change the guest that this test shares with its suite {:?}", suite.name);
            let help = "add `isolation = \"test\"` to the header for a guest of its own, or give the key to the suite";
            out.push(Diagnostic::error(message).at(source.place(span.clone())).help(help));
        }
    }
    let guests = match &header.guests {
        Some(guests) => config.guests_named(guests.iter().map(|(name, _)| name)),
        None => config.guests_named(&suite.guests),
    };
    let serials = header.layer.disks.iter().flatten().filter_map(|d| d.serial.as_ref());
    let twice: Vec<_> = serials
        .filter(|s| guests.iter().any(|g| g.spec.hardware.disks.iter().any(|d| d.serial.as_ref() == Some(s))))
        .collect();
    if let (false, Some((_, span))) = (twice.is_empty(), header.hardware.iter().find(|(key, _)| *key == "disks")) {
        let message = format!("the guest has a disk with the serial number {} already", enumerate(twice));
        out.push(Diagnostic::error(message).at(source.place(span.clone())));
    }
    out
}

#[cfg(test)]
mod tests;
