//! What is hidden in the directories that a guest gets, as a list of paths to be covered.
//!
//! All of it is decided by real paths, not by names: what is to be hidden may be reached through a link, and the same files may be seen
//! at another place through a bind mount. A second name of a *file* (a hard link) cannot be found and is not hidden.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::namespace::Order;

/// The host's own state, no part of which is a user's file: its processes, devices, sockets, and what others left for the moment.
pub const HOST_STATE: &[&str] = &["/proc", "/sys", "/dev", "/run", "/var/run", "/tmp", "/var/tmp"];

/// A directory that a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether the guest can write into it.
    pub writable: bool,
}

/// What has to be covered so that none of `hidden` is seen in `shares`, and those of them in which something is; or nothing if
/// nothing has to be. What a share itself lies in, or is, stays as it is: it was asked for by name. The shares are those that
/// [`existing`] gives, and hidden is what [`MountTable::seen`](super::mounts::MountTable::seen) does.
#[must_use]
pub fn order(shares: &[Shared], hidden: &BTreeSet<PathBuf>) -> Option<Order> {
    let below = |path: &Path, share: &Shared| path != share.path && path.starts_with(&share.path);
    let all: BTreeSet<&PathBuf> = hidden.iter().filter(|path| shares.iter().any(|share| below(path, share))).collect();
    // What lies in something that is covered is gone with it, unless a share begins in between.
    let lost = |path: &Path| {
        let reached = |outer: &Path| shares.iter().any(|s| below(path, s) && s.path.starts_with(outer));
        path.ancestors().skip(1).any(|outer| hidden.contains(outer) && !reached(outer))
    };
    let mut covers: Vec<PathBuf> = all.into_iter().filter(|path| !lost(path)).cloned().collect();
    if covers.is_empty() {
        return None;
    }
    covers.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let affected = shares.iter().filter(|share| covers.iter().any(|cover| below(cover, share)));
    let shares = affected.map(|s| s.path.clone()).collect();
    Some(Order { shares, covers })
}

/// A path as it was named, and the real paths at which its files are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As it was named; its last part may end in `*`.
    pub named: PathBuf,
    /// By whatever mount.
    pub at: BTreeSet<PathBuf>,
}

/// The first of these that lies in one of the shares that [`existing`] gives, or is it, and that share.
#[must_use]
pub fn within<'a>(shares: &[Shared], paths: impl IntoIterator<Item = &'a Seen>) -> Option<(PathBuf, PathBuf)> {
    paths.into_iter().find_map(|path| {
        let holds = |share: &&Shared| path.at.iter().any(|at| at.starts_with(&share.path));
        Some((path.named.clone(), shares.iter().find(holds)?.path.clone()))
    })
}

/// Shares by their real paths. One that is not there is not made by anybody but QEMU's user, who gets an error from it.
///
/// # Errors
/// When one cannot be looked at.
pub fn existing(shares: &[Shared]) -> std::io::Result<Vec<Shared>> {
    let real = |share: &Shared| match fs::canonicalize(&share.path) {
        Ok(path) => Some(Ok(Shared { path, writable: share.writable })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error)),
    };
    shares.iter().filter_map(real).collect()
}

/// The real paths of what a path means, whose last part may end in `*`; none where there is nothing.
#[must_use]
pub fn expand(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let (Some(start), Some(parent)) = (name.strip_suffix(b"*"), path.parent()) else {
        // Most of what is looked for is not there, which one question to the kernel tells.
        let there = fs::symlink_metadata(path).is_ok();
        return there.then(|| fs::canonicalize(path).ok()).flatten().into_iter().collect();
    };
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok).filter(|e| e.file_name().as_bytes().starts_with(start));
    entries.filter_map(|e| fs::canonicalize(e.path()).ok()).collect()
}

/// The same for many paths, most of which lie in few directories that are not there; each with what it means.
pub fn expand_all<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> impl Iterator<Item = (&'a PathBuf, Vec<PathBuf>)> {
    let mut known: HashMap<&Path, bool> = HashMap::new();
    paths.into_iter().map(move |path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let may_be = parent.is_none_or(|parent| *known.entry(parent).or_insert_with(|| parent.exists()));
        (path, if may_be { expand(path) } else { Vec::new() })
    })
}

/// What is hidden in a user's home directory where nothing else is said: keys, passwords and tokens of programs, and what
/// programs keep for themselves.
pub const HOME_SECRETS: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".config/gcloud",
    ".config/gh",
    ".config/glab-cli",
    ".config/hub",
    ".config/doctl",
    ".config/containers",
    ".config/helm",
    ".config/op",
    ".config/rclone",
    ".config/sops",
    ".config/borg",
    ".config/git/credentials",
    ".config/pypoetry",
    ".config/composer/auth.json",
    ".composer/auth.json",
    ".config/chromium",
    ".config/google-chrome*",
    ".config/BraveSoftware",
    ".config/microsoft-edge*",
    ".config/vivaldi",
    ".config/opera",
    ".mozilla",
    ".thunderbird",
    ".librewolf",
    "snap/firefox",
    "snap/chromium",
    ".var/app",
    ".config/Signal",
    ".config/Slack",
    ".config/discord",
    ".docker",
    ".kube",
    ".helm",
    ".minikube",
    ".oci",
    ".terraform.d",
    ".terraformrc",
    ".vault-token",
    ".netrc",
    "_netrc",
    ".git-credentials",
    ".npmrc",
    ".yarnrc*",
    ".pypirc",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".s3cfg",
    ".boto",
    ".fetchmailrc",
    ".msmtprc",
    ".cargo/credentials*",
    ".gem/credentials",
    ".m2/settings*",
    ".gradle/gradle.properties",
    ".nuget/NuGet.Config",
    ".password-store",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".local/share/containers",
    ".local/share/password-store",
    ".local/share/mkcert",
    ".local/state",
    ".pki",
    ".step",
    ".age",
    ".config/age",
    ".databricks*",
    ".cache",
    ".bash_history",
    ".zsh_history",
    ".history",
    ".python_history",
    ".psql_history",
    ".mysql_history",
    ".node_repl_history",
    ".lesshst",
    ".viminfo",
    ".Xauthority",
    ".ICEauthority",
    ".claude*",
    ".codex",
];

/// What is hidden outside of home directories: keys of the host's services. An ordinary user cannot read them anyway.
pub const HOST_SECRETS: &[&str] = &[
    "/etc/ssh/ssh_host_*",
    "/etc/ssl/private",
    "/etc/letsencrypt",
    "/etc/wireguard",
    "/etc/openvpn",
    "/etc/ipsec.secrets",
    "/etc/krb5.keytab",
    "/etc/NetworkManager/system-connections",
    "/etc/netplan",
    "/etc/docker",
    "/etc/kubernetes",
    "/etc/rancher",
    "/etc/gitlab-runner",
    "/etc/credstore*",
    "/var/lib/systemd/credential.secret",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/lib/rancher",
    "/var/lib/libvirt/secrets",
    "/var/lib/NetworkManager",
    "/var/lib/iwd",
    "/var/lib/bluetooth",
    "/var/lib/cloud",
    "/var/lib/jenkins/secrets",
    "/var/lib/jenkins/credentials.xml",
];

/// All that is hidden where nothing else is said, for these home directories.
pub fn defaults<'a>(homes: impl IntoIterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = HOST_STATE.iter().chain(HOST_SECRETS).map(PathBuf::from).collect();
    for home in homes {
        all.extend(HOME_SECRETS.iter().map(|name| home.join(name)));
    }
    all
}

/// The home directories that a `passwd` file names, and none that is the root directory.
#[must_use]
pub fn homes(passwd: &[u8]) -> BTreeSet<PathBuf> {
    let home = |line: &[u8]| {
        let home = line.split(|b| *b == b':').nth(5)?;
        let home = Path::new(OsStr::from_bytes(home));
        (home.is_absolute() && home.parent().is_some()).then(|| home.to_owned())
    };
    passwd.split(|b| *b == b'\n').filter_map(home).collect()
}

#[cfg(test)]
mod tests {
    use super::super::mounts::MountTable;
    use super::*;

    const MOUNTS: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw
24 27 0:6 / /dev rw - devtmpfs devtmpfs rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 254:1 / /home rw - ext4 /dev/vdb rw
31 27 254:1 /u/.ssh /srv/keys rw - ext4 /dev/vdb rw
32 27 254:1 /u /srv/with\\040space rw - ext4 /dev/vdb rw
33 27 0:44 / /srv/root/proc rw master:2 - proc proc rw
";

    fn order(shares: &[(&str, bool)], hidden: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
        let shares: Vec<Shared> =
            shares.iter().map(|(path, writable)| Shared { path: path.into(), writable: *writable }).collect();
        let mounts = MountTable::of(MOUNTS);
        let mut hidden = mounts.seen(&hidden.iter().map(PathBuf::from).collect());
        hidden.extend(mounts.kernel());
        let order = super::order(&shares, &hidden)?;
        let text = |paths: Vec<PathBuf>| paths.into_iter().map(|p| p.display().to_string()).collect();
        Some((text(order.shares), text(order.covers)))
    }

    #[test]
    fn the_same_files_are_hidden_wherever_they_are_mounted() {
        let (_, covers) = order(&[("/", false)], &["/home/u/.ssh", "/tmp", "/proc"]).unwrap();
        for path in ["/home/u/.ssh", "/srv/keys", "/srv/with space/.ssh", "/tmp", "/proc", "/dev", "/srv/root/proc"] {
            assert!(covers.iter().any(|c| c == path), "{path} of {covers:?}");
        }
        let depth = |path: &String| Path::new(path).components().count();
        assert!(covers.iter().map(depth).rev().collect::<Vec<_>>().is_sorted(), "the deepest first: {covers:?}");
    }

    #[test]
    fn what_is_shared_by_name_is_seen_and_nothing_is_done_for_nothing() {
        assert_eq!(order(&[("/home/u/project", true)], &["/home/u/.ssh", "/tmp"]), None);
        assert_eq!(order(&[("/home/u/.ssh", true)], &["/home/u/.ssh"]), None);
        // A workspace in a hidden directory, and something hidden in that.
        let hidden = ["/home/u/.cache", "/home/u/.cache/w/run", "/home/u/.cache/other/x"];
        let (shares, covers) = order(&[("/", false), ("/home/u/.cache/w", true)], &hidden).unwrap();
        assert_eq!(shares.len(), 2);
        assert!(covers.contains(&"/home/u/.cache/w/run".into()) && !covers.contains(&"/home/u/.cache/other/x".into()));
        let position = |path: &str| covers.iter().position(|c| c == path).unwrap();
        assert!(position("/home/u/.cache/w/run") < position("/home/u/.cache"));
    }

    #[test]
    fn patterns_and_links_lead_to_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        for name in ["credentials", "credentials.toml", "other"] {
            fs::write(top.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("other", top.join("link")).unwrap();
        assert_eq!(expand(&top.join("credentials*")).len(), 2);
        assert_eq!(expand(&top.join("link")), [top.join("other")]);
        assert!(expand(&top.join("none")).is_empty());
        let homes = homes(b"root:x:0:0:root:/root:/bin/sh\nodd:x\nd:x:1:1:d:/:/x\nu:x:2:2::/home/u:/bin/sh\n");
        assert_eq!(homes.into_iter().collect::<Vec<_>>(), [Path::new("/home/u"), Path::new("/root")]);
    }
}
