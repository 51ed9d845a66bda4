//! What of a plan is about directories: which shares a machine has, and what is behind them.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{DiskBus, WorkspaceMode};
use belljar_share_disk::layout::SERIAL;

use crate::{
    plan::CONTROL_DIR,
    qemu::args::{Chardev, Disk, DiskSource, HelperLine, MachineConfig, Node, Share},
    share::{self, Kind, virtiofsd},
    spec::{ShareSpec, Workspace},
};

/// The directory in the run's directory that is shared where there is no workspace: nothing is in it.
const PLACEHOLDER: &str = "ctl/no-workspace";

/// The agent in the run's directory.
fn agent_file(run_dir: &Path) -> PathBuf {
    run_dir.join(CONTROL_DIR).join(share::AGENT_FILE)
}

/// Puts the agent where the guest can fetch it from.
pub(crate) fn put_agent(agent: &[u8], run_dir: &Path) -> std::io::Result<()> {
    let file = agent_file(run_dir);
    fs_err::create_dir_all(run_dir.join(CONTROL_DIR))?;
    fs_err::write(&file, agent)?;
    fs_err::set_permissions(&file, Permissions::from_mode(0o755))
}

/// The shares of every guest that has any to write to. The workspace's device is there even if there is no workspace, for the sake of a template's copies: then an
/// empty directory is behind it.
pub(crate) fn spec_shares(share: &ShareSpec, kinds: &[&'static Kind], run_dir: &Path) -> Vec<Share> {
    let (path, read_only) = match &share.workspace {
        Some(Workspace { dir, mode, .. }) => (dir.clone(), *mode != WorkspaceMode::Rw),
        None => (run_dir.join(PLACEHOLDER), true),
    };
    let mut shares = vec![exchanged(kinds, share::OUT_TAG.into(), share.out.clone(), false)];
    if share.workspace.is_some() || kinds.iter().any(|kind| kind.frozen.is_ok()) {
        shares.push(exchanged(kinds, share::WORKSPACE_TAG.into(), path, read_only));
    }
    shares
}

/// The disk on which shares are, on the bus of the disk that is booted from. What is in it each guest has for itself.
pub(crate) fn share_disk(bus: DiskBus) -> Disk {
    let node = Node { drops_zeros: true, ..Node::new(DiskSource::Path(PathBuf::new()), "raw") };
    Disk { bus, serial: Some(SERIAL.to_owned()), ..Disk::new(node) }
}

/// A share that any of these kinds may carry: there is what each needs of the machine.
pub(crate) fn exchanged(kinds: &[&'static Kind], tag: String, path: PathBuf, read_only: bool) -> Share {
    let kinds: Vec<_> = kinds.iter().map(|kind| share::carrying(kind, &tag)).collect();
    let device = kinds.iter().find_map(|kind| kind.device);
    let port = kinds.iter().any(|kind| kind.has_port).then_some(Chardev::Null);
    let on_disk = kinds.iter().any(|kind| kind.on_disk);
    // Where a person would have it; a run makes its own.
    let has_server = kinds.iter().any(|kind| kind.has_server);
    let server = has_server.then(|| HelperLine::Path(virtiofsd::socket_by_hand(&tag).into()));
    Share { tag, device, port, server, on_disk, path, read_only }
}

/// Makes the empty directory that is behind the device of a workspace that there is not.
pub(crate) fn make_placeholder(config: &MachineConfig) -> std::io::Result<()> {
    let mut shares = config.shares.iter().filter(|s| s.tag == share::WORKSPACE_TAG);
    match shares.find(|s| s.path.ends_with(PLACEHOLDER)) {
        Some(share) => fs_err::create_dir_all(&share.path),
        None => Ok(()),
    }
}
