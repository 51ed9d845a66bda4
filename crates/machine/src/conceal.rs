//! What guests are not to see of the host, taken out of the directories that they get.
//!
//! Where the host permits no mount namespace nothing can be hidden. Then a guest still gets the directories, which is said each time, unless
//! the user asked for something to be hidden. What a guest may *write* to must hold nothing of Belljar's own: the run's record, the cache, the
//! state directory. Hiding does not help there, for what is hidden can still be renamed.

#![expect(clippy::disallowed_methods, reason = "an age, for which nobody waits")]

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use belljar_model::EventKind;
use rustix::fs::{Mode, OFlags};

use crate::{
    host::HostContext,
    qemu::{
        args::{MachineConfig, Share},
        descriptors::{Descriptors, Purpose},
        sandbox::{
            hidden::{self, Seen, Shared},
            mounts::MountTable,
            namespace::{self, ViewError},
        },
    },
    share,
};

/// How a guest's shares are opened.
#[derive(Clone, Debug)]
pub(crate) struct Concealment {
    /// What is not to be seen. Plans are copied for each guest, and this is long.
    hidden: Arc<Hidden>,
    /// What of this the user named.
    hide: Arc<[PathBuf]>,
    /// Whether the host permits it.
    possible: bool,
}

/// What is not to be seen, and what of it there was when it was last looked for.
#[derive(Debug)]
struct Hidden {
    named: Vec<PathBuf>,
    found: Mutex<Option<Found>>,
}

/// What a look at the host has found.
#[derive(Debug)]
struct Found {
    since: Instant,
    mounts: MountTable,
    hidden: Arc<BTreeSet<PathBuf>>,
    own: Arc<[Seen]>,
}

/// A directory that Belljar serves itself.
pub(crate) struct ServedDirectory {
    /// Of which share.
    pub(crate) tag: String,
    /// As the guest is to see it.
    pub(crate) directory: OwnedFd,
    /// What keeps it so.
    pub(crate) view: Option<OwnedFd>,
}

/// What matters for one guest.
struct Places {
    /// What is not to be seen, wherever it is mounted.
    hidden: Arc<BTreeSet<PathBuf>>,
    /// What only Belljar writes to, as far as it is the same for each guest.
    own: Arc<[Seen]>,
    /// The guest's own directory.
    dir: Seen,
}

/// For so long what was there is not looked for again: a suite starts a guest in less time than that takes.
const LOOK: Duration = Duration::from_secs(5);

impl Hidden {
    fn find(&self, host: &HostContext, dir: &Path) -> io::Result<Places> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = found.take().filter(|known| known.since.elapsed() < LOOK);
        if let Some(before) = &mut known
            && before.mounts.renew()?
        {
            known = None;
        }
        let known = match known {
            Some(known) => known,
            None => {
                let mounts = MountTable::read()?;
                let mut hidden = mounts.seen(&hidden::expand_all(&self.named).flat_map(|(_, real)| real).collect());
                hidden.extend(mounts.kernel());
                let own: Vec<_> = own_places(host).map(|path| see(path, &mounts)).collect();
                Found { since: Instant::now(), mounts, hidden: Arc::new(hidden), own: own.into() }
            }
        };
        let known = found.insert(known);
        let dir = see(dir, &known.mounts);
        Ok(Places { hidden: Arc::clone(&known.hidden), own: Arc::clone(&known.own), dir })
    }
}

/// At which paths this is seen.
fn see(path: &Path, mounts: &MountTable) -> Seen {
    Seen { named: path.to_owned(), at: mounts.seen(&hidden::expand(path).into_iter().collect()) }
}

fn see_all(paths: &[PathBuf], mounts: &MountTable) -> Vec<Seen> {
    let seen = |real: Vec<PathBuf>| mounts.seen(&real.into_iter().collect());
    hidden::expand_all(paths).map(|(path, real)| Seen { named: path.clone(), at: seen(real) }).collect()
}

/// Why a guest cannot have its shares.
#[derive(Debug, thiserror::Error)]
pub enum ConcealError {
    /// What is shared cannot be looked at.
    #[error("cannot look at what the guest is to get of the host: {0}")]
    Look(#[from] io::Error),
    /// The user wants something hidden.
    #[error("cannot hide from the guest what --hide or `hide` names: {why}; {MEND}")]
    Hide {
        /// Why not.
        why: ViewError,
    },
    /// The guest could write to what Belljar itself goes by.
    #[error(
        "{} lies in {}, which the guest may write to: it could change what this run records, or what later guests are made from\n\
         {mend}, share the workspace read-only or copy-on-write (--workspace-mode ro or cow), or share another one (--workspace)",
        own.display(), share.display()
    )]
    WithinReach {
        /// Belljar's.
        own: PathBuf,
        /// The guest's.
        share: PathBuf,
        /// What to change.
        mend: String,
    },
    /// The guest could write to a part of what Belljar itself goes by.
    #[error(
        "{} lies in {}, where Belljar keeps what it goes by itself, and the guest may write to it; name a directory elsewhere, or share it \
         read-only or copy-on-write (--workspace-mode ro or cow)", share.display(), own.display()
    )]
    Inside {
        /// The guest's.
        share: PathBuf,
        /// Belljar's.
        own: PathBuf,
    },
    /// What is to be hidden is what the guest gets.
    #[error("cannot hide {}, for the guest gets that very directory; name what in it is to be hidden", path.display())]
    HideShare {
        /// What is to be hidden.
        path: PathBuf,
    },
    /// A star where it means nothing.
    #[error("cannot hide {}: `*` stands for anything only as the last character; name each path for itself", path.display())]
    HidePattern {
        /// What is to be hidden.
        path: PathBuf,
    },
    /// What can be renamed cannot be hidden.
    #[error(
        "cannot hide {} from a guest that may write to {}, for it could rename it; share the workspace read-only or copy-on-write \
         (--workspace-mode ro or cow), or share another one", path.display(), share.display()
    )]
    HideWritable {
        /// What is to be hidden.
        path: PathBuf,
        /// The guest's.
        share: PathBuf,
    },
    /// The disk on which shares are to be cannot be made.
    #[error("cannot make the disk on which the guest gets its shares: {0}")]
    Disk(#[from] belljar_image::disk::DiskError),
    /// The server of a share cannot be reached.
    #[error("cannot make the line to the server of a share (virtiofsd): {0}; the run's directory must be writable")]
    Line(io::Error),
    /// It was possible before.
    #[error("cannot hide from the guest what it must not see: {0}")]
    View(#[from] ViewError),
}

/// How to make it possible.
const MEND: &str = "where the host does not permit user namespaces, permit them (sysctl kernel.apparmor_restrict_unprivileged_userns=0 \
                    on Ubuntu; in a container its runtime must permit unshare(2) and mount(2))";

impl Concealment {
    /// Decides what is hidden, tries whether it can be, and tells if not. `dir` is where this run writes.
    pub(crate) fn new(
        hide: &[PathBuf],
        config: &MachineConfig,
        host: &HostContext,
        dir: &Path,
        tell: &mut dyn FnMut(EventKind),
    ) -> Result<Self, ConcealError> {
        let shares = shares(config);
        look_at(hide, &shares, tell)?;
        let real = hidden::existing(&shares)?;
        let mounts = MountTable::read()?;
        tell_of_secrets(&real, host, tell)?;
        let mut concealment = Self { hidden: Arc::new(all_hidden(hide, host, dir)), hide: hide.into(), possible: true };
        let why = match concealment.open(&shares, host, dir) {
            Ok(_) => return Ok(concealment),
            Err(ConcealError::View(why)) => why,
            Err(other) => return Err(other),
        };
        concealment.possible = false;
        if hidden::within(&real, &see_all(hide, &mounts)).is_some() {
            return Err(ConcealError::Hide { why });
        }
        tell(EventKind::Warning {
            message: format!(
                "nothing can be hidden from the guest: {why}. It can read all that you can read in {}, processes, keys and \
                 tokens among it; {MEND}",
                shares.iter().map(|s| s.path.display().to_string()).collect::<Vec<_>>().join(" and ")
            ),
        });
        Ok(concealment)
    }

    /// Puts directories in which nothing hidden is seen in the place of the machine's shares; gives those that Belljar serves itself.
    pub(crate) fn apply(
        &self,
        config: &mut MachineConfig,
        descriptors: &mut Descriptors,
        host: &HostContext,
        dir: &Path,
    ) -> Result<Vec<ServedDirectory>, ConcealError> {
        let shares = shares(config);
        let mut served = Vec::new();
        if self.possible {
            if let Some((views, which)) = self.open(&shares, host, dir)? {
                for (view, path) in views.dirs.into_iter().zip(which) {
                    let same = |s: &&mut Share| std::fs::canonicalize(&s.path).is_ok_and(|p| p == path);
                    let mut theirs = config.shares.iter_mut().filter(same).peekable();
                    if theirs.peek().is_none() {
                        continue;
                    }
                    let ours = view.try_clone()?;
                    let view = descriptors.add(Purpose::Directory, view);
                    for share in theirs {
                        if share.is_served() {
                            let (directory, view) = (ours.try_clone()?, Some(views.namespace.try_clone()?));
                            served.push(ServedDirectory { tag: share.tag.clone(), directory, view });
                        }
                        share.path = view.path().into();
                    }
                }
                descriptors.add_set(Purpose::View, views.namespace);
            }
        } else {
            self.check(&hidden::existing(&shares)?, &self.hidden.find(host, dir)?, host)?;
        }
        for share in config.shares.iter().filter(|share| share.is_served()) {
            if served.iter().all(|one| one.tag != share.tag) {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = rustix::fs::open(&share.path, flags, Mode::empty()).map_err(io::Error::from)?;
                served.push(ServedDirectory { tag: share.tag.clone(), directory, view: None });
            }
        }
        Ok(served)
    }

    fn open(
        &self,
        shares: &[Shared],
        host: &HostContext,
        dir: &Path,
    ) -> Result<Option<(namespace::Views, Vec<PathBuf>)>, ConcealError> {
        let shares = hidden::existing(shares)?;
        let places = self.hidden.find(host, dir)?;
        self.check(&shares, &places, host)?;
        let Some(order) = hidden::order(&shares, &places.hidden) else { return Ok(None) };
        Ok(Some((namespace::open(&host.shim, &order)?, order.shares)))
    }

    /// Sees that the guest can write to nothing that must stay out of its reach.
    fn check(&self, shares: &[Shared], places: &Places, host: &HostContext) -> Result<(), ConcealError> {
        let writable = writable(shares);
        if writable.is_empty() {
            return Ok(());
        }
        if let Some((own, share)) = hidden::within(&writable, places.own.iter().chain([&places.dir])) {
            return Err(ConcealError::WithinReach { mend: mend(&own, host), own, share });
        }
        // Nor to a part of it. Each guest's own directory is one, and holds what is made for it to write to.
        let inside = |share: &Shared| places.own.iter().find(|own| own.at.iter().any(|at| share.path.starts_with(at)));
        let strange = writable.iter().filter(|share| !places.dir.at.iter().any(|dir| share.path.starts_with(dir)));
        if let Some((share, own)) = strange.filter_map(|share| Some((share, inside(share)?))).next() {
            return Err(ConcealError::Inside { share: share.path.clone(), own: own.named.clone() });
        }
        if self.hide.is_empty() {
            return Ok(());
        }
        match hidden::within(&writable, &see_all(&self.hide, &MountTable::read()?)) {
            Some((path, share)) => Err(ConcealError::HideWritable { path, share }),
            None => Ok(()),
        }
    }
}

/// What of the directories of a container is not to be seen: an engine mounts something empty there.
#[derive(Debug)]
pub(crate) struct Covers(Concealment);

impl Covers {
    /// Decides what is hidden, by the rules for machines. `dir` is where this run writes.
    pub(crate) fn new(
        hide: &[PathBuf],
        shares: &[Shared],
        host: &HostContext,
        dir: &Path,
        tell: &mut dyn FnMut(EventKind),
    ) -> Result<Self, ConcealError> {
        look_at(hide, shares, tell)?;
        let concealment =
            Concealment { hidden: Arc::new(all_hidden(hide, host, dir)), hide: hide.into(), possible: true };
        tell_of_secrets(&hidden::existing(shares)?, host, tell)?;
        Ok(Self(concealment))
    }

    /// The real paths below these directories that have to be covered, the deepest first. `dir` is the guest's own directory.
    pub(crate) fn of(&self, shares: &[Shared], host: &HostContext, dir: &Path) -> Result<Vec<PathBuf>, ConcealError> {
        let shares = hidden::existing(shares)?;
        let places = self.0.hidden.find(host, dir)?;
        self.0.check(&shares, &places, host)?;
        Ok(hidden::order(&shares, &places.hidden).map(|order| order.covers).unwrap_or_default())
    }
}

/// What no guest is to see.
fn all_hidden(hide: &[PathBuf], host: &HostContext, dir: &Path) -> Hidden {
    let secrets = hidden::defaults(homes(host).iter().map(PathBuf::as_path));
    let own = own_places(host).map(Path::to_owned);
    let all = secrets.into_iter().chain(own).chain([dir.to_owned()]).chain(hide.iter().cloned());
    Hidden { named: all.collect(), found: Mutex::default() }
}

/// Tells of keys and the like that a guest may write to, and so may read under another name.
fn tell_of_secrets(real: &[Shared], host: &HostContext, tell: &mut dyn FnMut(EventKind)) -> Result<(), ConcealError> {
    let secrets = hidden::defaults(homes(host).iter().map(PathBuf::as_path));
    if let Some((secret, share)) = hidden::within(&writable(real), &see_all(&secrets, &MountTable::read()?)) {
        tell(EventKind::Warning {
            message: format!(
                "{} lies in {}, which the guest may write to, and so may read under another name; share the workspace read-only or \
                 copy-on-write (--workspace-mode ro or cow), or a smaller one",
                secret.display(),
                share.display()
            ),
        });
    }
    Ok(())
}

/// Looks whether what the user wants hidden can mean what it says.
fn look_at(hide: &[PathBuf], shares: &[Shared], tell: &mut dyn FnMut(EventKind)) -> Result<(), ConcealError> {
    for path in hide {
        let there = hidden::expand(path);
        let is_share =
            |p: &PathBuf| shares.iter().any(|s| std::fs::canonicalize(&s.path).is_ok_and(|share| share == *p));
        if there.iter().any(is_share) {
            return Err(ConcealError::HideShare { path: path.clone() });
        }
        if there.is_empty() {
            let text = path.as_os_str().as_encoded_bytes();
            if text.strip_suffix(b"*").unwrap_or(text).contains(&b'*') {
                return Err(ConcealError::HidePattern { path: path.clone() });
            }
            let message = format!(
                "there is no {}, which is to be hidden from the guest: nothing is hidden there",
                path.display()
            );
            tell(EventKind::Warning { message });
        }
    }
    Ok(())
}

fn writable(shares: &[Shared]) -> Vec<Shared> {
    shares.iter().filter(|s| s.writable).cloned().collect()
}

/// What only Belljar writes to, beside each guest's directory.
fn own_places(host: &HostContext) -> impl Iterator<Item = &Path> {
    host.own.iter().map(PathBuf::as_path).chain([host.cache_dir.as_path()])
}

fn mend(own: &Path, host: &HostContext) -> String {
    if own == host.cache_dir {
        "Set BELLJAR_CACHE_DIR to a directory elsewhere".to_owned()
    } else if host.own.iter().any(|o| o == own) {
        "Set BELLJAR_STATE_DIR to a directory elsewhere".to_owned()
    } else {
        "Name a directory elsewhere with --run-dir".to_owned()
    }
}

fn homes(host: &HostContext) -> BTreeSet<PathBuf> {
    let mut homes = hidden::homes(&std::fs::read("/etc/passwd").unwrap_or_default());
    homes.extend(host.home.clone());
    homes
}

/// The directories that may show more than they are to. All others are Belljar's own, or hold modules.
fn shares(config: &MachineConfig) -> Vec<Shared> {
    let tags = [share::ROOT_TAG, share::WORKSPACE_TAG, share::OUT_TAG];
    let all = config.shares.iter().filter(|s| tags.contains(&&*s.tag));
    all.map(|s| Shared { path: s.path.clone(), writable: !s.read_only }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_mean_what_it_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key1"), "").unwrap();
        let shares = [Shared { path: dir.path().to_owned(), writable: false }];
        let look = |name: &str| {
            let mut told = Vec::new();
            let looked = look_at(&[dir.path().join(name)], &shares, &mut |event| told.push(event));
            (looked.map_err(|e| e.to_string()), told.len())
        };
        assert_eq!(look("key1"), (Ok(()), 0));
        assert_eq!(look("key*"), (Ok(()), 0));
        assert_eq!(look("kay"), (Ok(()), 1));
        assert_eq!(look("kay*"), (Ok(()), 1));
        assert!(look("k*y1").0.unwrap_err().contains("only as the last character"));
        assert!(look("").0.unwrap_err().contains("gets that very directory"));
        // A file may be called so.
        std::fs::write(dir.path().join("k*y1"), "").unwrap();
        assert_eq!(look("k*y1"), (Ok(()), 0));
    }
}
