//! Makes a copy of a frozen guest another guest than its siblings. What a guest does not have, or does not let be changed, stays
//! as it is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::Path;

use belljar_proto::message::Identity;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{network, sys, text};

/// See machine-id(5).
const MACHINE_ID: &str = "/etc/machine-id";
/// Where systemd-journald(8) keeps one directory for each machine.
const JOURNALS: &[&str] = &["/run/log/journal", "/var/log/journal"];
/// Longest host name that Linux takes.
const MAX_NAME: usize = 64;

/// What needs no root file system. The generator of random numbers comes before everything that may use it.
pub(crate) fn assume(identity: &Identity) {
    let _ = sys::reseed(&identity.seed);
    if !identity.host_suffix.is_empty() {
        let old = host_name();
        // A copy that was restarted may have it on its disk, or may have lost it with the power.
        if !old.ends_with(&identity.host_suffix) {
            let _ = rustix::system::sethostname(new_name(&old, &identity.host_suffix).as_bytes());
        }
    }
}

/// The address of the network card. It comes last: what looks after the network in the guest configures the card anew when it changes,
/// which costs an emulated guest more than all the rest, and nothing of that is to come before what the host waits for. `cards` are the
/// guest's as it was frozen.
pub(crate) fn change_address(identity: &Identity, cards: &[OsString]) {
    if identity.mac == identity.old_mac {
        return;
    }
    let is_old = |card: &OsStr| sys::mac(card.as_encoded_bytes()) == Ok(identity.old_mac);
    let change = |card: &OsStr| {
        let _ = sys::set_mac(card.as_encoded_bytes(), &identity.mac);
    };
    let mut found = false;
    for card in cards.iter().filter(|card| is_old(card)) {
        found = true;
        change(card);
    }
    if !found {
        // Plugged in since, or renamed.
        network::names(Path::new("/")).iter().filter(|card| is_old(card)).for_each(|card| change(card));
    }
}

/// What is in files.
pub(crate) fn write(identity: &Identity) {
    if identity.machine_id != [0; 16] {
        let id: String = identity.machine_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let old = fs::read_to_string(MACHINE_ID).unwrap_or_default();
        for path in [MACHINE_ID, "/var/lib/dbus/machine-id"] {
            let _ = replace(path, format!("{id}\n").as_bytes());
        }
        for journal in JOURNALS {
            keep_journal(Path::new(journal), old.trim(), &id);
        }
    }
    if !identity.host_suffix.is_empty() {
        let new = host_name();
        if let Some(old) = new.strip_suffix(&identity.host_suffix) {
            rename_in_files(old, &new);
        }
    }
}

/// journald goes on writing where it began, under the machine's old id; journalctl(1) looks under the new one.
fn keep_journal(journal: &Path, old: &str, new: &str) {
    let is_id = !old.is_empty() && old.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id && journal.join(old).is_dir() {
        let _ = rustix::fs::symlink(old, journal.join(new));
    }
}

/// The files that know a host's name: as many as had the old one.
fn rename_in_files(old: &str, new: &str) {
    if fs::read_to_string("/etc/hostname").is_ok_and(|text| text.trim() == old) {
        let _ = replace("/etc/hostname", format!("{new}\n").as_bytes());
    }
    // A name that cannot be looked up makes programs wait for a network that is not there.
    let is_known = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    if fs::read_to_string("/etc/hosts").is_ok_and(|text| is_known(&text, old) && !is_known(&text, new)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_found_under_the_new_id() {
        let dir = std::env::temp_dir().join(format!("belljar-journal-{}", std::process::id()));
        let old = "0123456789abcdef0123456789abcdef";
        fs::create_dir_all(dir.join(old)).unwrap();
        fs::write(dir.join(old).join("system.journal"), "lines").unwrap();
        keep_journal(&dir, old, "fedc");
        assert_eq!(fs::read_to_string(dir.join("fedc/system.journal")).unwrap(), "lines");
        for not_there in ["", "..", "00000000000000000000000000000000"] {
            keep_journal(&dir, not_there, "aaaa");
            assert!(!dir.join("aaaa").exists(), "{not_there:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_card_is_known_by_its_address() {
        assert_eq!(sys::mac(b"lo"), Ok([0; 6]), "the loopback interface is always there");
        assert_eq!(sys::mac(b"belljar-none"), Err(Errno::NODEV));
        assert_eq!(sys::mac(&[b'x'; 16]), Err(Errno::INVAL), "longer than a name can be");
    }

    #[test]
    fn names_stay_within_what_linux_takes() {
        assert_eq!(new_name("debian", "-1f2e3d"), "debian-1f2e3d");
        let long = "x".repeat(64);
        assert_eq!(new_name(&long, "-1f2e3d").len(), 64);
        assert!(new_name(&long, "-1f2e3d").ends_with("x-1f2e3d"));
        assert_eq!(new_name(&"ä".repeat(32), "-1").len(), 64);
    }
}
