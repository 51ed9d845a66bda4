//! The shares: which 9p tags there are, and what is mounted where.

use belljar_guest_spec::WorkspaceMode;
use belljar_proto::message::{Mount, MountFault, MountMode};

use crate::spec::ShareSpec;

/// Tag of the workspace, as the tool had it that Belljar replaces.
pub const WORKSPACE_TAG: &str = "hostos";
/// Tag of the output directory.
pub const OUT_TAG: &str = "belljar-out";
/// Tag of the read-only directory that holds the agent, for guests whose initramfs is not ours.
pub const CONTROL_TAG: &str = "belljar-ctl";
/// Tag of the kernel's modules, for a root that has none.
pub const MODULES_TAG: &str = belljar_proto::message::MODULES_TAG;
/// Tag of the root directory of a guest that has one of the host's.
pub const ROOT_TAG: &str = "belljar-root";

/// Where the guest sees the output directory; the value of `$BELLJAR_OUT`.
pub const OUT_PATH: &str = "/run/belljar/out";
/// Where the guest sees the control directory.
pub const CONTROL_PATH: &str = "/run/belljar/ctl";
/// Name of the agent in the control directory.
pub const AGENT_FILE: &str = "agent";

/// What the agent is to mount, in order.
#[must_use]
pub fn mounts(spec: &ShareSpec) -> Vec<Mount> {
    let mut mounts = vec![Mount { tag: OUT_TAG.into(), path: OUT_PATH.into(), mode: MountMode::ReadWrite }];
    if let Some(workspace) = &spec.workspace {
        let mode = match workspace.mode {
            WorkspaceMode::Rw => MountMode::ReadWrite,
            WorkspaceMode::Ro => MountMode::ReadOnly,
            WorkspaceMode::Cow => MountMode::CopyOnWrite,
        };
        mounts.push(Mount { tag: WORKSPACE_TAG.into(), path: workspace.mount_at.clone(), mode });
    }
    if let Some(modules) = &spec.modules {
        // So that a guest can install some of its own and run depmod.
        let mode = MountMode::CopyOnWrite;
        mounts.push(Mount { tag: MODULES_TAG.into(), path: format!("/lib/modules/{}", modules.release), mode });
    }
    mounts
}

/// What to do about a guest without 9p.
pub(crate) const NO_9P: &str = "Debian's cloud kernel and the RHEL family have none; use a kernel that has the modules 9p and \
                                9pnet_virtio, or do without shares: --workspace none, and no --out";

/// What a guest is told of that has no output directory although nobody asked for one.
pub(crate) const OUT_IS_LOST: &str = "what the command writes to $BELLJAR_OUT stays in the guest and ends with it";

/// What a person calls a share.
pub(crate) fn what(tag: &str) -> &str {
    match tag {
        WORKSPACE_TAG => "the workspace",
        OUT_TAG => "the output directory",
        MODULES_TAG => "its modules",
        CONTROL_TAG => "the directory that holds its agent",
        other => other,
    }
}

/// A person's words for a share that could not be mounted.
#[must_use]
pub fn explain(mount: &Mount, fault: &MountFault) -> String {
    let what = what(&mount.tag);
    match fault {
        MountFault::No9p { detail } => {
            format!("the guest's kernel cannot mount {what}: it has no 9p file system over virtio ({detail}). {NO_9P}")
        }
        MountFault::NoOverlay { detail } if mount.tag == MODULES_TAG => {
            format!("the guest's kernel has no overlayfs, by which it gets its modules ({detail})")
        }
        MountFault::NoOverlay { detail } => format!(
            "the guest's kernel has no overlayfs, which the workspace mode cow needs ({detail}); use \
             --workspace-mode ro or rw"
        ),
        MountFault::Failed { detail } => format!("the guest could not mount {what} at {}: {detail}", mount.path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{KernelModules, Workspace};

    #[test]
    fn the_output_directory_is_always_there() {
        let bounds = crate::bounds::Bounds::default();
        let none = ShareSpec { workspace: None, out: "/o".into(), out_wanted: false, bounds, modules: None };
        assert!(!none.required());
        assert!(ShareSpec { out_wanted: true, ..none.clone() }.required());
        assert_eq!(mounts(&none).len(), 1);
        let both = ShareSpec {
            workspace: Some(Workspace { dir: "/w".into(), mode: WorkspaceMode::Cow, mount_at: "/mnt/hostos".into() }),
            ..none
        };
        let mounts = mounts(&both);
        assert_eq!(mounts[1].tag, "hostos");
        assert_eq!(mounts[1].mode, MountMode::CopyOnWrite);
        let said = explain(&mounts[1], &MountFault::No9p { detail: "modprobe 9p: not found".into() });
        assert!(said.contains("--workspace none") && said.contains("modprobe 9p: not found"), "{said}");

        let modules = KernelModules { dir: "/lib/modules/6.1".into(), release: "6.1".into() };
        let with_modules = super::mounts(&ShareSpec { modules: Some(modules), ..both });
        assert_eq!((with_modules[2].path.as_str(), with_modules[2].mode), ("/lib/modules/6.1", MountMode::CopyOnWrite));
    }
}
