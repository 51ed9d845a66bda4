//! Makes a copy of a frozen guest another guest than its siblings. What a guest does not have, or does not let be changed, stays
//! as it is.

use std::fs;
use std::io::Write;

use belljar_proto::message::Identity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{sys, text};

/// Longest host name that Linux takes.
const MAX_NAME: usize = 64;

/// What needs no root file system. The generator of random numbers comes before everything that may use it.
pub(crate) fn assume(identity: &Identity) {
    let _ = sys::reseed(&identity.seed);
    if !identity.host_suffix.is_empty() {
        let old = host_name();
        let _ = rustix::system::sethostname(new_name(&old, &identity.host_suffix).as_bytes());
    }
    change_mac(&identity.old_mac, &identity.mac);
}

/// What is in files.
pub(crate) fn write(identity: &Identity) {
    let mut id: String = identity.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
    id.push('\n');
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        let _ = replace(path, id.as_bytes());
    }
    if !identity.host_suffix.is_empty() {
        let new = host_name();
        if let Some(old) = new.strip_suffix(&identity.host_suffix) {
            rename_in_files(old, &new);
        }
    }
}

/// The files that know a host's name: as many as had the old one.
fn rename_in_files(old: &str, new: &str) {
    if fs::read_to_string("/etc/hostname").is_ok_and(|text| text.trim() == old) {
        let _ = replace("/etc/hostname", format!("{new}\n").as_bytes());
    }
    // A name that cannot be looked up makes programs wait for a network that is not there.
    if fs::read_to_string("/etc/hosts").is_ok_and(|text| text.split_whitespace().any(|word| word == old)) {
        let file = fs::File::options().append(true).open("/etc/hosts");
        let _ = file.and_then(|mut file| file.write_all(format!("\n127.0.1.1 {new}\n").as_bytes()));
    }
}

fn host_name() -> String {
    text::lossy(rustix::system::uname().nodename().to_bytes())
}

/// The old name, cut where the new one would be too long.
fn new_name(old: &str, suffix: &str) -> String {
    let mut end = old.len().min(MAX_NAME.saturating_sub(suffix.len()));
    while !old.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &old[..end])
}

/// Writes a file that is there. What a symbolic link leads to is somebody else's.
fn replace(path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::io::write(file, bytes).map(drop)
}

fn change_mac(old: &[u8; 6], new: &[u8; 6]) {
    let wanted = old.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let Ok(cards) = fs::read_dir("/sys/class/net") else {
        return;
    };
    for card in cards.flatten() {
        if fs::read_to_string(card.path().join("address")).is_ok_and(|address| address.trim_end() == wanted) {
            let _ = sys::set_mac(card.file_name().as_encoded_bytes(), new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_what_linux_takes() {
        assert_eq!(new_name("debian", "-1f2e3d"), "debian-1f2e3d");
        let long = "x".repeat(64);
        assert_eq!(new_name(&long, "-1f2e3d").len(), 64);
        assert!(new_name(&long, "-1f2e3d").ends_with("x-1f2e3d"));
        assert_eq!(new_name(&"ä".repeat(32), "-1").len(), 64);
    }
}
