//! The host directories that a guest sees: which there are, and what is mounted where.
//!
//! What one kind of share does differently is in a file of its own, which is a line in `KINDS`.

pub(crate) mod carried;
pub(crate) mod disk;
pub(crate) mod exchange;
pub(crate) mod fuse;
pub mod ninep;
pub(crate) mod served;
pub(crate) mod virtiofs;
pub(crate) mod virtiofsd;

use belljar_guest_spec::{ShareKind, WorkspaceMode};
use belljar_image::modules::Feature;
use belljar_proto::message::{MODULES_SHARE, Mount, MountFault, MountMode, Source};

use crate::{
    qemu::{
        args::{ArgsError, PushDevice, Share},
        probe::QemuInfo,
    },
    spec::ShareSpec,
};

/// A kind of share: what carries a directory of the host's into a guest.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Its name, for the event log.
    pub(crate) name: &'static str,
    /// The type of its mounts in the guest's `/proc/mounts`.
    pub(crate) file_system: &'static str,
    /// What the guest's kernel must have, for a person.
    pub(crate) what: &'static str,
    /// What to do about a guest whose kernel does not have it.
    pub(crate) advice: &'static str,
    /// The same, for an initramfs that Belljar adds modules to.
    pub(crate) features: &'static [Feature],
    /// How the agent mounts the share of this tag.
    pub(crate) source: fn(tag: &str) -> Source,
    /// How a shell mounts it; none if only the agent can.
    pub(crate) by_shell: Option<ByShell>,
    /// Its device on QEMU's command line, if QEMU serves it.
    pub(crate) device: Option<PushDevice>,
    /// Whether Belljar serves it, through a port.
    pub(crate) has_port: bool,
    /// Whether a program beside QEMU serves it, to which the guest's memory is shared.
    pub(crate) has_server: bool,
    /// Whether the directories are on a disk, from which the agent copies them.
    pub(crate) on_disk: bool,
    /// Why this QEMU cannot serve it, with how to mend that.
    pub(crate) obstacle: fn(&QemuInfo) -> Option<String>,
    /// Whether a guest that has one can be frozen while it is not mounted, so that copies mount their own; if not, why.
    pub(crate) frozen: Result<(), &'static str>,
}

/// How a shell mounts shares of a kind.
#[derive(Debug)]
pub(crate) struct ByShell {
    /// The command, of the tag, the path as a word of the shell, and `ro` or `rw`.
    pub(crate) mount: fn(tag: &str, at: &str, mode: &str) -> String,
    /// How it loads what mounting needs. Not every guest does that by itself.
    pub(crate) load: &'static str,
    /// How it finds out whether the kernel has it.
    pub(crate) known: &'static str,
}

/// Every kind that is taken without being asked for, the first choice first. FUSE is faster than 9p where there are many files, and does what a disk does; QEMU's 9p goes by the names of
/// files that are open, so that what took the place of one is changed instead of it.
pub(crate) const KINDS: &[&Kind] = &[&fuse::FUSE, &ninep::NINE_P, &disk::DISK];

/// The kinds that are tried where none is asked for, the first choice first; see [`choose`].
fn preferred(is_init: bool, needs_disk: bool) -> Vec<&'static Kind> {
    let mut kinds: Vec<_> = KINDS.iter().copied().filter(|kind| kind.on_disk == needs_disk).collect();
    // A relay can be killed where the agent cannot: `kill -9 -1` would end the shares and nothing else.
    kinds.sort_by_key(|kind| is_init && kind.has_port);
    kinds
}

/// The kind by which a guest gets its root and the agent, which nothing in it can serve yet.
///
/// # Errors
/// Why QEMU cannot serve it.
pub(crate) fn before_agent(qemu: &QemuInfo) -> Result<&'static Kind, String> {
    match (ninep::NINE_P.obstacle)(qemu) {
        None => Ok(&ninep::NINE_P),
        Some(why) => Err(why),
    }
}

/// The kinds of a guest's other shares, of which it gets the first that its kernel has. `has_agent`: it can run the agent. `needs_disk`: it is known to
/// have nothing by which it could mount one, so that none is tried; a disk is put into no machine for nothing, for the guest sees it. `is_init`: the agent is the
/// first process, which nobody in the guest can kill.
///
/// # Errors
/// Why there is none.
pub(crate) fn choose(
    asked: ShareKind,
    has_agent: bool,
    is_init: bool,
    needs_disk: bool,
    qemu: &QemuInfo,
) -> Result<Vec<&'static Kind>, String> {
    let wanted: Vec<&'static Kind> = match asked {
        ShareKind::Auto => preferred(is_init, needs_disk),
        ShareKind::NineP => vec![&ninep::NINE_P],
        ShareKind::Fuse => vec![&fuse::FUSE],
        ShareKind::Disk => vec![&disk::DISK],
        ShareKind::Virtiofs => vec![&virtiofs::VIRTIOFS],
    };
    let mut kinds = Vec::new();
    let mut obstacles = Vec::new();
    for kind in wanted {
        let no_agent = || {
            let why =
                format!("shares by {} need the agent, of which there is none for this guest's processor", kind.name);
            (!has_agent && kind.by_shell.is_none()).then_some(why)
        };
        match (kind.obstacle)(qemu).or_else(no_agent) {
            None => kinds.push(kind),
            Some(why) => obstacles.push(why),
        }
    }
    if kinds.is_empty() { Err(obstacles.join("; ")) } else { Ok(kinds) }
}

/// Whether a kernel is known to lack something for each kind that is mounted, so that only a disk is left. `has` tells what it has, as far as that is known.
pub(crate) fn needs_disk(has: impl Fn(Feature) -> Option<bool>) -> bool {
    let lacks = |kind: &&Kind| kind.features.iter().any(|feature| has(*feature) == Some(false));
    KINDS.iter().copied().filter(|kind| !kind.on_disk).all(|kind| lacks(&kind))
}

/// The kind by which a shell without an agent mounts shares.
///
/// # Errors
/// Why it cannot.
pub(crate) fn for_shell(kinds: &[&'static Kind]) -> Result<&'static Kind, String> {
    kinds.iter().copied().find(|kind| kind.by_shell.is_some()).ok_or_else(|| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
        format!(
            "the guest has no agent, which shares by {} need; use --share auto, 9p or virtiofs, or do without shares: --workspace none, and no --out",
            names.join(" and ")
        )
    })
}

/// Names of the kinds of shares in the order in which they are preferred, and what a guest's kernel must have for each.
pub fn needs() -> impl Iterator<Item = (&'static str, &'static [Feature])> {
    KINDS.iter().map(|kind| (kind.name, kind.features))
}

/// Refuses a tag that is longer than a kind's devices can have.
fn check_tag(share: &Share, max: usize) -> Result<(), ArgsError> {
    let len = share.tag.len();
    if len > max {
        return Err(ArgsError::TooLong { what: "the share's tag", value: share.tag.clone(), len, max });
    }
    Ok(())
}

/// Tag of the workspace, as the tool had it that Belljar replaces.
pub const WORKSPACE_TAG: &str = "hostos";
/// Tag of the output directory.
pub const OUT_TAG: &str = "belljar-out";
/// Tag of the read-only directory that holds the agent, for guests whose initramfs is not ours.
pub const CONTROL_TAG: &str = "belljar-ctl";
/// Tag of the kernel's modules, for a root that has none.
pub const MODULES_TAG: &str = MODULES_SHARE;
/// Tag of the root directory of a guest that has one of the host's.
pub const ROOT_TAG: &str = "belljar-root";

/// Where the guest sees the output directory; the value of `$BELLJAR_OUT`.
pub const OUT_PATH: &str = "/run/belljar/out";
/// Where the guest sees the control directory.
pub const CONTROL_PATH: &str = "/run/belljar/ctl";
/// Name of the agent in the control directory.
pub const AGENT_FILE: &str = "agent";

/// What the agent is to mount, in order.
pub(crate) fn mounts(spec: &ShareSpec, kinds: &[&'static Kind]) -> Vec<Mount> {
    let mount = |tag: &str, path: &str, mode| {
        let sources = kinds.iter().map(|kind| (carrying(kind, tag).source)(tag)).collect();
        Mount { name: tag.into(), sources, path: path.into(), mode }
    };
    let mut mounts = vec![mount(OUT_TAG, OUT_PATH, MountMode::ReadWrite)];
    if let Some(workspace) = &spec.workspace {
        let mode = match workspace.mode {
            WorkspaceMode::Rw => MountMode::ReadWrite,
            WorkspaceMode::Ro => MountMode::ReadOnly,
            WorkspaceMode::Cow => MountMode::CopyOnWrite,
        };
        mounts.push(mount(WORKSPACE_TAG, &workspace.mount_at, mode));
    }
    if let Some(modules) = &spec.modules {
        // So that a guest can install some of its own and run depmod.
        let mode = MountMode::CopyOnWrite;
        mounts.push(mount(MODULES_TAG, &format!("/lib/modules/{}", modules.release), mode));
    }
    mounts
}

/// What carries this share where the others are carried by a kind: modules are too many to be copied.
pub(crate) fn carrying(kind: &'static Kind, tag: &str) -> &'static Kind {
    if kind.on_disk && tag == MODULES_TAG { &ninep::NINE_P } else { kind }
}

/// What a guest is told of that has no output directory although nobody asked for one.
pub(crate) const OUT_IS_LOST: &str = "what the command writes to $BELLJAR_OUT stays in the guest and ends with it";

/// What a person calls the process that serves a share.
pub(crate) fn server_of(tag: &str) -> String {
    format!("the server of {}", what(tag))
}

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

/// What the agent says of a share that could not be mounted.
pub(crate) fn detail(fault: &MountFault) -> &str {
    match fault {
        MountFault::NoFileSystem { detail } | MountFault::NoOverlay { detail } | MountFault::Failed { detail } => {
            detail
        }
    }
}

/// A person's words for a share that could not be mounted.
pub(crate) fn explain(mount: &Mount, kind: &Kind, fault: &MountFault) -> String {
    let what = what(&mount.name);
    match fault {
        MountFault::NoFileSystem { detail } => {
            let Kind { what: lacking, advice, .. } = kind;
            format!("the guest's kernel cannot mount {what}: it has no {lacking} ({detail}). {advice}")
        }
        MountFault::NoOverlay { detail } if mount.name == MODULES_TAG => {
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
    fn a_disk_is_for_a_kernel_that_is_known_to_have_nothing_else() {
        let fuse = Feature::FileSystem("fuse");
        assert!(needs_disk(|feature| Some(feature != Feature::NineP && feature != fuse)));
        assert!(needs_disk(|_| Some(false)));
        let has = |all: &'static [Feature]| move |feature| Some(all.contains(&feature));
        assert!(!needs_disk(has(&[Feature::FileSystem("fuse"), Feature::VirtioConsole, Feature::VirtioPci])));
        assert!(!needs_disk(has(&[Feature::NineP, Feature::VirtioPci])));
        assert!(needs_disk(has(&[Feature::NineP, Feature::FileSystem("fuse"), Feature::VirtioConsole])), "on no bus");
        assert!(!needs_disk(|_| None), "nothing is guessed");
        assert!(!needs_disk(|feature| (feature == Feature::NineP).then_some(false)));
    }

    #[test]
    fn a_relay_is_no_first_choice_where_it_alone_can_be_killed() {
        let names = |is_init| preferred(is_init, false).iter().map(|kind| kind.name).collect::<Vec<_>>();
        assert_eq!((names(false), names(true)), (vec!["fuse", "9p"], vec!["9p", "fuse"]));
    }

    #[test]
    fn the_output_directory_is_always_there() {
        let bounds = crate::bounds::Bounds::default();
        let none = ShareSpec { workspace: None, out: "/o".into(), out_wanted: false, bounds, modules: None };
        assert!(!none.required());
        assert!(ShareSpec { out_wanted: true, ..none.clone() }.required());
        let kind = &ninep::NINE_P;
        assert_eq!(mounts(&none, KINDS).len(), 1);
        assert_eq!(mounts(&none, KINDS)[0].sources.len(), KINDS.len());
        let both = ShareSpec {
            workspace: Some(Workspace { dir: "/w".into(), mode: WorkspaceMode::Cow, mount_at: "/mnt/hostos".into() }),
            ..none
        };
        let mounts = mounts(&both, KINDS);
        assert_eq!(mounts[1].name, "hostos");
        assert_eq!(mounts[1].mode, MountMode::CopyOnWrite);
        let said = explain(&mounts[1], kind, &MountFault::NoFileSystem { detail: "modprobe 9p: not found".into() });
        assert!(said.contains("--workspace none") && said.contains("modprobe 9p: not found"), "{said}");

        let modules = KernelModules { dir: "/lib/modules/6.1".into(), release: "6.1".into() };
        let with_modules = super::mounts(&ShareSpec { modules: Some(modules), ..both }, KINDS);
        assert_eq!((with_modules[2].path.as_str(), with_modules[2].mode), ("/lib/modules/6.1", MountMode::CopyOnWrite));
    }
}
