//! What is mounted in the guest, by the kernel's own list.
//!
//! It is read from a `/proc` of the agent's own, which is mounted nowhere, so that nothing a command mounts or unmounts hides it.

use std::fs;
use std::io::Read;

use belljar_proto::mountinfo;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use serde::{Deserialize, Serialize};

use crate::text;

/// File systems in which the kernel shows itself, or which a system mounts as it goes on: nothing is hidden by them.
const OF_THE_KERNEL: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "tracefs",
];

/// Where a mount is a matter of who made it.
const FOR_MOUNTS: &[&str] = &["/mnt", "/media", "/run", "/tmp", "/srv", "/var/tmp"];

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mounted {
    /// Where it is mounted.
    pub(crate) at: String,
    /// Number of its file system.
    device: String,
    /// What of the file system is mounted.
    root: String,
    kind: String,
}

impl Mounted {
    /// Its file system.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// The number of its file system, such as `8:1`.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    fn is_below(&self, directory: &str) -> bool {
        is_below(&self.at, directory)
    }

    fn is_of_the_kernel(&self) -> bool {
        OF_THE_KERNEL.contains(&&*self.kind)
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
}

/// Everything that is mounted; nothing where the kernel does not say.
pub(crate) fn read() -> Vec<Mounted> {
    let own = own_list().or_else(|| fs::read("/proc/self/mountinfo").ok());
    parse(&own.unwrap_or_default())
}

/// In a list of what is mounted, what is mounted at these places now comes instead of what was.
pub(crate) fn renew(list: &mut Vec<Mounted>, places: &[String]) {
    renew_from(list, places, read());
}

fn renew_from(list: &mut Vec<Mounted>, places: &[String], now: Vec<Mounted>) {
    list.retain(|mounted| !places.contains(&mounted.at));
    list.extend(now.into_iter().filter(|mounted| places.contains(&mounted.at)));
}

/// Whether the root is the kernel's initial one; no where the kernel does not say.
pub(crate) fn is_initial_root() -> bool {
    is_initial_root_of(&read())
}

fn is_initial_root_of(mounts: &[Mounted]) -> bool {
    // What was mounted over it is below it in the list.
    mounts.iter().rfind(|mounted| mounted.at == "/").is_some_and(|root| root.kind == "rootfs")
}

fn own_list() -> Option<Vec<u8>> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    rustix::mount::fsconfig_create(&context).ok()?;
    let proc = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).ok()?;
    let list = rustix::fs::openat(&proc, "self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    fs::File::from(list).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

pub(crate) fn parse(list: &[u8]) -> Vec<Mounted> {
    let mounted = |m: mountinfo::Mount| Mounted {
        at: text::lossy(&m.at),
        device: m.device,
        root: text::lossy(&m.root),
        kind: m.kind,
    };
    mountinfo::parse(list).into_iter().map(mounted).collect()
}

/// Places below one of `shares` where something is mounted now that was not `before`: what is written there is not in the share.
pub(crate) fn covering<'a>(shares: impl Iterator<Item = &'a str> + Clone, before: &[Mounted]) -> Vec<String> {
    covering_of(shares, before, &read())
}

fn covering_of<'a>(shares: impl Iterator<Item = &'a str> + Clone, before: &[Mounted], now: &[Mounted]) -> Vec<String> {
    let new = now.iter().filter(|mounted| !before.contains(mounted));
    let mut places: Vec<String> =
        new.filter(|m| shares.clone().any(|share| m.is_below(share))).map(|m| m.at.clone()).collect();
    places.dedup();
    places
}

/// What of the mounts is not as it was `before`, as far as somebody who uses the guest next may be misled by it.
pub(crate) fn changes(shares: &[String], before: &[Mounted]) -> Vec<String> {
    changes_of(shares, before, &read())
}

fn changes_of(shares: &[String], before: &[Mounted], now: &[Mounted]) -> Vec<String> {
    if now.is_empty() {
        return Vec::new();
    }
    let is_in_the_way = |m: &&Mounted| {
        let in_share = shares.iter().any(|share| m.is_below(share));
        let elsewhere = FOR_MOUNTS.iter().any(|place| m.is_below(place));
        in_share || !(elsewhere || m.is_of_the_kernel())
    };
    let came = now.iter().filter(|m| !before.contains(m)).filter(is_in_the_way);
    let came = came.map(|m| format!("{} (something is mounted there)", m.at));
    // What a system has in `/run` comes and goes with its services.
    let is_missed = |m: &&Mounted| !m.is_of_the_kernel() && !m.is_below("/run") && !now.contains(m);
    let went = before.iter().filter(is_missed).map(|m| format!("{} (unmounted)", m.at));
    came.chain(went).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
22 36 0:20 / /proc rw,nosuid - proc proc rw
36 1 0:29 / / rw,relatime - overlay overlay rw,lowerdir=/a
37 27 0:32 / /run/belljar/out rw,relatime shared:5 - 9p belljar-out rw
38 36 0:33 / /mnt/hostos rw,relatime - overlay overlay rw
39 36 8:1 / /srv/data rw - ext4 /dev/vda rw
40 27 0:40 / /run/user/0 rw - tmpfs tmpfs rw
";

    fn with(line: &str) -> Vec<Mounted> {
        parse(format!("{BEFORE}{line}\n").as_bytes())
    }

    fn changed(line: &str) -> Vec<String> {
        changes_of(&["/mnt/hostos".to_owned(), "/run/belljar/out".to_owned()], &parse(BEFORE.as_bytes()), &with(line))
    }

    #[test]
    fn what_is_mounted_over_a_part_of_a_share_is_named() {
        let shares = ["/mnt/hostos", "/run/belljar/out"];
        let covered = |line| covering_of(shares.into_iter(), &parse(BEFORE.as_bytes()), &with(line));
        assert_eq!(covered("50 37 0:50 / /run/belljar/out/a\\040b rw - tmpfs x rw"), ["/run/belljar/out/a b"]);
        assert_eq!(covered("50 38 0:29 /x /mnt/hostos/t.sh rw - overlay x rw"), ["/mnt/hostos/t.sh"]);
        for other in ["50 36 0:50 / /mnt/hostos2 rw - tmpfs x rw", "50 36 0:50 / /tmp/x rw - tmpfs x rw", "", "x"] {
            assert!(covered(other).is_empty(), "{other}");
        }
    }

    #[test]
    fn a_mount_that_hides_programs_or_shares_is_a_change() {
        for (at, is_one) in [
            ("/usr", true),
            ("/", true),
            ("/bin/bash", true),
            ("/proc/1", true),
            ("/mnt/hostos/t/b.sh", true),
            ("/run/belljar/out/3/d", true),
            ("/opt/tool", true),
            ("/mnt/scratch", false),
            ("/tmp/a", false),
            ("/run/user/1", false),
        ] {
            let told = changed(&format!("50 36 0:50 / {at} rw - tmpfs x rw"));
            assert_eq!(told.len(), usize::from(is_one), "{at}: {told:?}");
        }
        assert!(changed("50 36 0:50 / /proc/sys/fs/binfmt_misc rw - binfmt_misc x rw").is_empty());
    }

    #[test]
    fn only_what_was_mounted_again_is_known_anew() {
        let now = with("50 36 0:50 / /usr rw - tmpfs x rw")
            .into_iter()
            .map(|m| if m.at == "/mnt/hostos" { Mounted { device: "0:90".into(), ..m } } else { m });
        let (now, places): (Vec<_>, _) = (now.collect(), ["/mnt/hostos".to_owned(), "/run/belljar/out".to_owned()]);
        let mut known = parse(BEFORE.as_bytes());
        renew_from(&mut known, &places, now.clone());
        assert_eq!(changes_of(&places, &known, &now), ["/usr (something is mounted there)"]);
    }

    #[test]
    fn what_was_unmounted_is_a_change() {
        let gone = |at: &str| {
            let now: Vec<Mounted> = parse(BEFORE.as_bytes()).into_iter().filter(|m| m.at != at).collect();
            changes_of(&[], &parse(BEFORE.as_bytes()), &now)
        };
        assert_eq!(gone("/srv/data"), ["/srv/data (unmounted)"]);
        assert!(gone("/run/user/0").is_empty());
        // The kernel does not say.
        assert!(changes_of(&[], &parse(BEFORE.as_bytes()), &[]).is_empty());
    }

    #[test]
    fn the_list_is_there() {
        assert!(read().iter().any(|mounted| mounted.at == "/"));
    }

    #[test]
    fn the_initial_root_is_told_from_one_that_was_mounted() {
        let initial = b"1 1 0:2 / / rw - rootfs rootfs rw\n20 1 0:19 / /proc rw - proc proc rw\n";
        assert!(is_initial_root_of(&parse(initial)));
        assert!(!is_initial_root_of(&parse(&[&initial[..], b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n"].concat())));
        assert!(!is_initial_root_of(&parse(b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n")));
        assert!(!is_initial_root_of(&parse(b"22 1 0:40 / / rw - tmpfs root rw\n")), "a system may live in memory");
        assert!(!is_initial_root_of(&[]));
    }
}
