//! What a guest sees of the host, as it is asked for. What the guest itself is, says [`belljar_guest_spec`]. Nothing here has been
//! looked at yet; [`crate::plan`] resolves it.

use std::path::{Path, PathBuf};

use belljar_guest_spec::WorkspaceMode;

use crate::bounds::Bounds;

/// The host directories that a guest sees.
#[derive(Clone, Debug)]
pub struct ShareSpec {
    /// The workspace, unless there is to be none.
    pub workspace: Option<Workspace>,
    /// Host directory behind `$BELLJAR_OUT`; it exists.
    pub out: PathBuf,
    /// Somebody asked for what is written there: a guest that cannot have it is of no use.
    pub out_wanted: bool,
    /// How much the guest may write.
    pub bounds: Bounds,
    /// The kernel's modules, for a root that has none; [`crate::plan`] finds them.
    pub modules: Option<KernelModules>,
}

/// The modules of a guest's kernel, which its root does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModules {
    /// The directory on the host, such as `/lib/modules/6.1.0-56-amd64`.
    pub dir: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
}

impl ShareSpec {
    /// Whether the guest needs any share at all; where neither a workspace nor the output directory was asked for, a guest that
    /// has no 9p is welcome too.
    #[must_use]
    pub fn required(&self) -> bool {
        self.workspace.is_some() || self.out_wanted
    }

    /// Directories that the guest writes to.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Path> {
        let workspace = self.workspace.as_ref().filter(|w| w.mode == WorkspaceMode::Rw);
        workspace.map(|w| &*w.dir).into_iter().chain([&*self.out])
    }

    /// Where in the guest the workspace is, if what is done to it stays there.
    #[must_use]
    pub fn layer(&self) -> Option<&str> {
        let workspace = self.workspace.as_ref().filter(|w| w.mode == WorkspaceMode::Cow)?;
        Some(&workspace.mount_at)
    }
}

/// The host directory that holds the tests.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Absolute host path.
    pub dir: PathBuf,
    /// What becomes of the guest's writes.
    pub mode: WorkspaceMode,
    /// Absolute path in the guest.
    pub mount_at: String,
}
