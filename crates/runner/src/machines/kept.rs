//! Set-up whose outcome is kept with its guest, so that it runs once and every test starts from there.
//!
//! What decides the outcome must be known, or a test would meet a guest that nobody described: the scripts and what they are said to read
//! are copied at the beginning of the run, the copies are all that the guest sees while it is set up, and their hash is part of the template's key.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use belljar_guest_spec::WorkspaceMode;
use belljar_machine::{
    Cause, Lost,
    backend::{Layer, SetUp},
    guest::{Answer, Guest},
    spec::Workspace,
    tree,
};
use belljar_model::EventKind;
use belljar_suite::{
    discover,
    plan::{Plan, Unit},
};
use fs_err as fs;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, symlinkat as symlink},
    io::Errno,
};

use super::{
    not_made,
    setup::{Scene, SetUpScripts},
};
use crate::{beneath, cancel::Cancel, environment::environment, names::safe_name, sparse};

/// Where the copies are, in the run's directory.
const COPIES: &str = "setup";
/// The workspace of a guest that is being set up, in the instance's directory.
const WORKSPACE: &str = "setup-workspace";
/// A set-up that failed so often is not tried again in this run.
const HOPELESS: u32 = 3;
/// What may be behind the failure of a set-up that is kept.
const HINT: &str = "\nwith `setup-once` it sees no more of the workspace than itself and `setup-inputs`";

/// The kept set-ups of a run, by the suite's name.
#[derive(Debug, Default)]
pub(crate) struct KeptSetUps {
    dir: PathBuf,
    suites: BTreeMap<String, Result<Copies, String>>,
    /// By the layer's id: how often it failed, and the last message.
    failed: RefCell<HashMap<[u8; 32], (u32, String)>>,
}

/// What the scripts of one suite see.
#[derive(Debug)]
struct Copies {
    dir: PathBuf,
    hash: blake3::Hash,
}

impl KeptSetUps {
    /// Copies what the set-ups of the plan's suites see.
    pub(crate) fn new(
        run_dir: &Path,
        workspace: &Path,
        setup: &BTreeMap<String, discover::SetUp>,
        plan: &Plan,
    ) -> Self {
        let dir = run_dir.join(COPIES);
        let mut suites = BTreeMap::new();
        for (name, setup) in setup {
            let Some(inputs) = &setup.kept else { continue };
            if plan.units.iter().all(|u| u.suite.name != *name) {
                continue;
            }
            let dir = dir.join(safe_name(name));
            let copied = copy_all(workspace, &dir, setup.scripts.iter().chain(inputs));
            let copied = copied.map_err(|e| format!("cannot copy what the set-up of {name} reads: {e}"));
            suites.insert(name.clone(), copied.map(|hash| Copies { dir, hash }));
        }
        Self { dir, suites, failed: RefCell::default() }
    }

    /// Whether the set-up of the unit's suite is one.
    pub(crate) fn is_kept(&self, unit: &Unit) -> bool {
        self.suites.contains_key(&unit.suite.name)
    }

    /// The set-up of the unit's suite, if it is kept.
    ///
    /// # Errors
    /// If it cannot be had in this run.
    pub(crate) fn setting<'a>(
        &'a self,
        scripts: &'a SetUpScripts,
        unit: &'a Unit,
        scene: Scene<'a>,
        cancel: Cancel,
    ) -> Result<Option<Setting<'a>>, Lost> {
        let copies = match self.suites.get(&unit.suite.name) {
            None => return Ok(None),
            Some(Ok(copies)) => copies,
            Some(Err(why)) => return Err(Cause::SetUp(why.clone()).into()),
        };
        let mut hasher = blake3::Hasher::new_derive_key("belljar 1 set-up of a guest");
        hasher.update(copies.hash.as_bytes());
        for word in std::iter::once(unit.guest.spec.mount_at.clone().into_bytes()).chain(environment(unit, None)) {
            hasher.update(&(word.len() as u64).to_le_bytes()).update(&word);
        }
        let id = *hasher.finalize().as_bytes();
        if let Some((failed, last)) = self.failed.borrow().get(&id)
            && *failed >= HOPELESS
        {
            let message = format!("{last}\nIt failed {failed} times in this run and was not tried again");
            return Err(Cause::SetUp(message).into());
        }
        Ok(Some(Setting { kept: self, scripts, cancel, unit, scene, copies, id }))
    }

    /// Removes the copies.
    pub(crate) fn clear(&self) {
        if !self.suites.is_empty() {
            drop(tree::remove(&self.dir));
        }
    }
}

/// Copies files to where they are in the workspace; gives a hash of where they are and what is in them. A link is copied as one: a test may
/// have left it, and it may lead anywhere on the host.
fn copy_all<'a>(
    workspace: &Path,
    dir: &Path,
    files: impl Iterator<Item = &'a discover::InWorkspace>,
) -> io::Result<blake3::Hash> {
    let files: BTreeSet<&Path> = files.map(|f| &*f.in_workspace).collect();
    let top = beneath::directory(workspace)?;
    let mut hasher = blake3::Hasher::new();
    for in_workspace in files {
        let copy = dir.join(in_workspace);
        fs::create_dir_all(copy.parent().unwrap_or(dir))?;
        let link = copy_one(&top, in_workspace, &copy)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", in_workspace.display())))?;
        if let Some(target) = link {
            let name = in_workspace.as_os_str().as_encoded_bytes();
            for part in [b"link", name, target.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
            continue;
        }
        let name = in_workspace.as_os_str().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        // Of the copy, for the file may be written to this moment.
        let mode = fs::metadata(&copy)?.mode();
        hasher.update(&(mode & 0o777).to_le_bytes());
        let content = blake3::Hasher::new().update_reader(File::open(&copy)?)?.finalize();
        hasher.update(content.as_bytes());
    }
    Ok(hasher.finalize())
}

/// Copies one file of the workspace, or the link that stands there, of which it gives the target.
fn copy_one(top: &OwnedFd, in_workspace: &Path, copy: &Path) -> io::Result<Option<CString>> {
    let parent = beneath::walk(top, in_workspace.parent().unwrap_or(Path::new("")), false)?;
    let name = in_workspace.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&parent, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::LOOP) => {
            let target = readlinkat(&parent, name, Vec::new())?;
            symlink(&*target, CWD, copy)?;
            return Ok(Some(target));
        }
        Err(error) => return Err(error.into()),
    };
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file any more"));
    }
    let goal = File::options().write(true).create_new(true).open(copy)?;
    sparse::copy(&File::from(file), &goal)?;
    goal.set_permissions(PermissionsExt::from_mode(stat.st_mode & 0o777))?;
    Ok(None)
}

/// A set-up for one guest.
pub(crate) struct Setting<'a> {
    kept: &'a KeptSetUps,
    scripts: &'a SetUpScripts,
    cancel: Cancel,
    unit: &'a Unit,
    scene: Scene<'a>,
    copies: &'a Copies,
    id: [u8; 32],
}

impl Setting<'_> {
    /// For the lease of the guest.
    pub(crate) fn layer(&mut self) -> Layer<'_> {
        let suite = &self.unit.suite;
        let scripts = u32::try_from(suite.setup.len()).unwrap_or(u32::MAX);
        Layer {
            id: self.id,
            title: format!("with the set-up of {}", suite.name),
            limit: suite.setup_timeout.saturating_mul(scripts),
            set_up: self,
        }
    }

    fn workspace(&self) -> PathBuf {
        self.scene.dir.join(WORKSPACE)
    }
}

impl Drop for Setting<'_> {
    fn drop(&mut self) {
        let dir = self.workspace();
        if dir.exists() {
            // No guest has it any more.
            drop(tree::remove(&dir));
        }
    }
}

impl SetUp for Setting<'_> {
    fn inputs(&mut self) -> Result<Workspace, Lost> {
        let dir = self.workspace();
        copy_tree(&self.copies.dir, &dir).map_err(|e| not_made("copy what the set-up reads", &e))?;
        Ok(Workspace { dir, mode: WorkspaceMode::Rw, mount_at: self.unit.guest.spec.mount_at.clone() })
    }

    fn run<'s>(&'s mut self, guest: &'s mut dyn Guest, observe: &'s mut dyn FnMut(EventKind)) -> Answer<'s, ()> {
        Box::pin(async move {
            let Self { scripts, unit, scene, cancel, .. } = self;
            let ran = scripts.run(unit, *scene, guest, HINT, cancel, observe).await;
            if let Err(Lost { cause: cause @ Cause::SetUp(_), .. }) = &ran {
                let mut failed = self.kept.failed.borrow_mut();
                let (count, last) = failed.entry(self.id).or_default();
                *count += 1;
                *last = cause.to_string();
            }
            ran
        })
    }
}

/// Copies directories and files, all that there is in the copies of a run.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let goal = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &goal)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, goal)?;
        } else {
            sparse::copy_file(&entry.path(), &goal)?;
        }
    }
    // The guest's users are not the host's.
    fs::set_permissions(to, PermissionsExt::from_mode(0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_knows_names_modes_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let copies = std::cell::Cell::new(0);
        let hash = |files: &[(&str, &str, u32)]| {
            copies.set(copies.get() + 1);
            let (from, to) =
                (dir.path().join(format!("{}", copies.get())), dir.path().join(format!("{}c", copies.get())));
            fs::create_dir_all(&from).unwrap();
            let files: Vec<_> = files
                .iter()
                .map(|(name, text, mode)| {
                    let path = from.join(name);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    match text.strip_prefix("-> ") {
                        Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                        None => {
                            fs::write(&path, text).unwrap();
                            fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
                        }
                    }
                    discover::InWorkspace { in_workspace: name.into(), path }
                })
                .collect();
            let hash = copy_all(&from, &to, files.iter()).unwrap();
            assert!(fs::symlink_metadata(to.join("a/x")).is_ok(), "it is where the guest looks for it");
            hash
        };
        let first = hash(&[("a/x", "1", 0o755), ("b", "", 0o644)]);
        assert_eq!(first, hash(&[("b", "", 0o644), ("a/x", "1", 0o755)]), "not of the order");
        assert_ne!(first, hash(&[("a/x", "2", 0o755), ("b", "", 0o644)]));
        assert_ne!(first, hash(&[("a/x", "1", 0o700), ("b", "", 0o644)]));
        assert_ne!(first, hash(&[("a/x", "1", 0o755), ("c", "", 0o644)]));
        assert_ne!(first, hash(&[("a/x", "1", 0o755)]));
        let link = hash(&[("a/x", "-> /etc/hostname", 0), ("b", "", 0o644)]);
        assert_ne!(first, link);
        assert_ne!(link, hash(&[("a/x", "-> /etc/passwd", 0), ("b", "", 0o644)]));
        let copied = dir.path().join(format!("{}c/a/x", copies.get() - 1));
        assert_eq!(fs::read_link(copied).unwrap(), Path::new("/etc/hostname"), "it is not followed");
    }
}
