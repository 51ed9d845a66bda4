//! Where the root file system is.

use crate::description::Volume;
use crate::fs::{FileSystems, View};

/// Files of which a root file system has one.
const SIGNS: &[&str] = &["/etc/os-release", "/usr/lib/os-release", "/sbin/init", "/etc/passwd"];
/// Directories of the topmost one of a btrfs that may be a subvolume with a system.
const MAX_SUBVOLUMES: usize = 32;

/// A root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) volume: usize,
    pub(crate) view: View,
    /// The directory that is mounted, as a subvolume is; empty if it is the topmost.
    pub(crate) top: String,
}

/// Finds the root file system: by the words for the kernel, else by what looks like one.
pub(crate) fn find_root(volumes: &[Volume], fs: &mut FileSystems, command_line: Option<&str>) -> Option<Root> {
    if let Some(words) = command_line
        && let Some(volume) = named(volumes, words)
    {
        let flags = word(words, "rootflags=").unwrap_or_default();
        let subvolume = flags.split(',').find_map(|flag| flag.strip_prefix("subvol="));
        let mut places =
            subvolume.map(|name| (View::Top, format!("/{}", name.trim_matches('/')))).into_iter().collect::<Vec<_>>();
        places.extend(tops(volumes, fs, volume));
        return places
            .into_iter()
            .map(|(view, top)| Root { volume, view, top: top.trim_end_matches('/').to_owned() })
            .find(|root| looks_like_one(fs, root));
    }
    for volume in (0..volumes.len()).filter(|&index| volumes[index].is_readable()) {
        for (view, top) in tops(volumes, fs, volume) {
            let root = Root { volume, view, top };
            if looks_like_one(fs, &root) {
                return Some(root);
            }
        }
    }
    None
}

/// Directories of a volume that may be mounted as the root.
fn tops(volumes: &[Volume], fs: &mut FileSystems, volume: usize) -> Vec<(View, String)> {
    let mut tops = vec![(View::Top, String::new())];
    if volumes.get(volume).is_some_and(Volume::has_subvolumes) {
        tops.insert(0, (View::Default, String::new()));
        let names = fs.list(volume, View::Top, "/").unwrap_or_default();
        tops.extend(names.iter().take(MAX_SUBVOLUMES).map(|name| (View::Top, format!("/{name}"))));
    }
    tops
}

fn looks_like_one(fs: &mut FileSystems, root: &Root) -> bool {
    SIGNS.iter().any(|sign| {
        // A link to `/usr/lib` leads within the root, which is not the volume's topmost directory.
        let path = format!("{}{sign}", root.top);
        fs.resolve(root.volume, root.view, &path).is_ok() || fs.is_link(root.volume, root.view, &path)
    })
}

/// What follows `start` in the last word for the kernel that begins so.
pub(super) fn word<'a>(words: &'a str, start: &str) -> Option<&'a str> {
    // The last one counts, as for the kernel.
    words.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(start))
}

/// The volume that the kernel is told to take for its root; none if it is not there.
pub(super) fn named(volumes: &[Volume], words: &str) -> Option<usize> {
    volume_of(volumes, word(words, "root=")?.trim_matches('"'))
}

/// The volume that is called so in the words for the kernel, or in `/etc/fstab`.
pub(super) fn volume_of(volumes: &[Volume], name: &str) -> Option<usize> {
    let find = |is_it: &dyn Fn(&Volume) -> bool| volumes.iter().position(is_it);
    let by_partition = |is_it: &dyn Fn(&crate::partition::Partition) -> bool| {
        find(&|v: &Volume| v.partition.as_ref().is_some_and(is_it))
    };
    for (start, rest) in [
        ("UUID=", "/dev/disk/by-uuid/"),
        ("LABEL=", "/dev/disk/by-label/"),
        ("PARTUUID=", "/dev/disk/by-partuuid/"),
        ("PARTLABEL=", "/dev/disk/by-partlabel/"),
    ] {
        let Some(value) = name.strip_prefix(start).or_else(|| name.strip_prefix(rest)) else { continue };
        return match start {
            "UUID=" => find(&|v| !v.content.uuid.is_empty() && v.content.uuid.eq_ignore_ascii_case(value)),
            "LABEL=" => find(&|v| !v.content.label.is_empty() && v.content.label == value),
            "PARTUUID=" => by_partition(&|p| p.partuuid.eq_ignore_ascii_case(value)),
            _ => by_partition(&|p| !p.name.is_empty() && p.name == value),
        };
    }
    if let Some(mapped) = name.strip_prefix("/dev/mapper/") {
        return find(&|v| v.grub_name().strip_prefix("lvm/") == Some(mapped));
    }
    let device = name.strip_prefix("/dev/")?;
    if let Some((group, volume)) = device.split_once('/') {
        return find(&|v| v.logical.as_ref().is_some_and(|(g, n)| g == group && n == volume));
    }
    let digits = device.trim_start_matches(|c: char| !c.is_ascii_digit());
    match device.strip_prefix("nvme").map(|rest| rest.split_once('p')) {
        Some(parts) => by_partition(&|p| parts.is_some_and(|(_, number)| number == p.number.to_string())),
        None if digits.is_empty() => find(&|v| v.partition.is_none() && v.logical.is_none()),
        None => by_partition(&|p| digits == p.number.to_string()),
    }
}
