//! What is hidden in the directories that a guest gets, as a list of paths to be covered.
//!
//! All of it is decided by real paths, not by names: what is to be hidden may be reached through a link, and the same files may be seen
//! at another place through a bind mount. A second name of a *file* (a hard link) cannot be found and is not hidden.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::namespace::Order;

/// The host's own state, no part of which is a user's file: its processes, devices, sockets, and what others left for the moment.
pub const HOST_STATE: &[&str] = &["/proc", "/sys", "/dev", "/run", "/var/run", "/tmp", "/var/tmp"];

/// File systems that are windows into the host's kernel, wherever they are mounted.
const KERNEL: &[&str] = &[
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

/// One mount of this process's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// Of its file system.
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where it is mounted.
    at: PathBuf,
    kind: String,
}

/// A directory that a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether the guest can write into it.
    pub writable: bool,
}

/// What has to be covered so that none of `hidden` is seen in `shares`, and those of them in which something is; or nothing if
/// nothing has to be. What a share itself lies in, or is, stays as it is: it was asked for by name. Hidden paths are those that
/// [`expand`] gives.
///
/// # Errors
/// When the list of mounts cannot be read, or a share cannot be found.
pub fn order(shares: &[Shared], hidden: &BTreeSet<PathBuf>) -> std::io::Result<Option<Order>> {
    let shares = existing(shares)?;
    let mounts = parse(&fs::read("/proc/self/mountinfo")?);
    Ok(decide(&shares, hidden, &mounts))
}

/// The first of these paths that lies in a share, or is it, and that share; by whatever mount it is seen there.
///
/// # Errors
/// When the list of mounts cannot be read, or a share cannot be found.
pub fn within(shares: &[Shared], paths: &[PathBuf]) -> std::io::Result<Option<(PathBuf, PathBuf)>> {
    if shares.is_empty() || paths.is_empty() {
        return Ok(None);
    }
    let mounts = parse(&fs::read("/proc/self/mountinfo")?);
    for share in existing(shares)? {
        let real = share.path.clone();
        let inside = |path: &&PathBuf| {
            let seen = expand(path)
                .into_iter()
                .flat_map(|p| elsewhere(&p, &mounts).into_iter().chain([p]).collect::<Vec<_>>());
            seen.into_iter().any(|p| p.starts_with(&real))
        };
        if let Some(path) = paths.iter().find(inside) {
            return Ok(Some((path.clone(), share.path.clone())));
        }
    }
    Ok(None)
}

/// Their real paths. One that is not there is not made by anybody but QEMU's user, who gets an error from it.
fn existing(shares: &[Shared]) -> std::io::Result<Vec<Shared>> {
    let real = |share: &Shared| match fs::canonicalize(&share.path) {
        Ok(path) => Some(Ok(Shared { path, writable: share.writable })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(Err(error)),
    };
    shares.iter().filter_map(real).collect()
}

fn decide(shares: &[Shared], hidden: &BTreeSet<PathBuf>, mounts: &[Mount]) -> Option<Order> {
    let mut all = hidden.clone();
    all.extend(hidden.iter().flat_map(|path| elsewhere(path, mounts)));
    all.extend(mounts.iter().filter(|m| KERNEL.contains(&&*m.kind)).map(|m| m.at.clone()));
    let below = |path: &Path, share: &Shared| path != share.path && path.starts_with(&share.path);
    all.retain(|path| shares.iter().any(|share| below(path, share)));
    // What lies in something that is covered is gone with it, unless a share begins in between.
    let lost = |path: &PathBuf| {
        let reached = |outer: &Path| shares.iter().any(|s| below(path, s) && s.path.starts_with(outer));
        path.ancestors().skip(1).any(|outer| all.contains(outer) && !reached(outer))
    };
    let mut covers: Vec<PathBuf> = all.iter().filter(|path| !lost(path)).cloned().collect();
    if covers.is_empty() {
        return None;
    }
    covers.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    let affected = shares.iter().filter(|share| covers.iter().any(|cover| below(cover, share)));
    let shares = affected.map(|s| s.path.clone()).collect();
    Some(Order { shares, covers })
}

/// The real paths of what a path means, whose last part may end in `*`; none where there is nothing.
#[must_use]
pub fn expand(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let (Some(start), Some(parent)) = (name.strip_suffix(b"*"), path.parent()) else {
        return fs::canonicalize(path).into_iter().collect();
    };
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok).filter(|e| e.file_name().as_bytes().starts_with(start));
    entries.filter_map(|e| fs::canonicalize(e.path()).ok()).collect()
}

/// Where else the same files are seen, through other mounts of the same file system.
fn elsewhere(path: &Path, mounts: &[Mount]) -> Vec<PathBuf> {
    // Of mounts over one another the last one is seen.
    let holds = |m: &&Mount| path.starts_with(&m.at);
    let Some(depth) = mounts.iter().filter(holds).map(|m| m.at.components().count()).max() else { return Vec::new() };
    let Some(own) = mounts.iter().filter(holds).rfind(|m| m.at.components().count() == depth) else {
        return Vec::new();
    };
    let Ok(inside) = path.strip_prefix(&own.at) else { return Vec::new() };
    let real = join(&own.root, inside);
    let others = mounts.iter().filter(|m| m.device == own.device && m.at != own.at);
    let seen = |m: &Mount| match real.strip_prefix(&m.root) {
        Ok(rest) => Some(join(&m.at, rest)),
        // A part of what is hidden.
        Err(_) => m.root.starts_with(&real).then(|| m.at.clone()),
    };
    others.filter_map(seen).collect()
}

/// As [`Path::join`], without a slash at the end.
fn join(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) }
}

/// Reads `mountinfo` (proc(5)).
fn parse(text: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut words = line.split(|b| *b == b' ').filter(|w| !w.is_empty());
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let device = text(words.nth(2)?);
        let (root, at) = (unescape(words.next()?), unescape(words.next()?));
        words.find(|word| *word == b"-")?;
        Some(Mount { device, root, at, kind: text(words.next()?) })
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Undoes `\040` and its like.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((&first, more)) = rest.split_first() {
        let octal = more.get(..3).filter(|_| first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[3..];
            }
            None => {
                bytes.push(first);
                rest = more;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
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
        let hidden = hidden.iter().map(PathBuf::from).collect();
        let order = decide(&shares, &hidden, &parse(MOUNTS.as_bytes()))?;
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
