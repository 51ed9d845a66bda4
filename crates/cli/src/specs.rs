//! Little languages of the command line: sizes, disks, logins, variables.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use belljar_machine::spec::{Bus, DiskContent, DiskSpec};
use bytesize::ByteSize;

/// Reads a size such as `512M` or `2GiB`. A bare letter means a power of two, as QEMU has it.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let normal = match trimmed.chars().last() {
        Some('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T') => format!("{trimmed}iB"),
        _ => trimmed.to_owned(),
    };
    let bytes = normal
        .parse::<ByteSize>()
        .map_err(|_| format!("{text:?} is not a size; write a number and a unit, such as 512M or 2GiB"))?
        .as_u64();
    if bytes == 0 { Err(format!("{text:?} is nothing; write a size above zero")) } else { Ok(bytes) }
}

/// Reads the memory of a guest.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 64 << 20;
    let bytes = size(text)?;
    if bytes < LEAST {
        return Err(format!("{text} is too little memory for a guest; give it at least {}", ByteSize(LEAST)));
    }
    // QEMU wants whole pages, and Linux is happiest with whole mebibytes.
    Ok(bytes.next_multiple_of(1 << 20))
}

/// Reads `size=1G,serial=data0,bus=nvme` or `file=disk.qcow2`. A comma in a value is doubled, as for QEMU.
pub(crate) fn disk(text: &str) -> Result<DiskSpec, String> {
    let mut content = None;
    let mut serial = None;
    let mut disk_bus = Bus::Virtio;
    for part in split_commas(text) {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("in --disk {text}: {part:?} should be KEY=VALUE"))?;
        match key {
            "size" | "file" if content.is_some() => {
                return Err(format!("in --disk {text}: give one of size= and file=, once"));
            }
            "size" => content = Some(DiskContent::Empty(size(value).map_err(|e| format!("in --disk {text}: {e}"))?)),
            "file" => content = Some(DiskContent::Image(PathBuf::from(value))),
            "serial" if value.is_empty() || value.len() > 20 || !value.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err(format!("in --disk {text}: a serial is 1 to 20 visible ASCII characters"));
            }
            "serial" => serial = Some(value.to_owned()),
            "bus" => disk_bus = bus(value).map_err(|e| format!("in --disk {text}: {e}"))?,
            _ => {
                return Err(format!("in --disk {text}: unknown key {key:?}; there are size, file, serial and bus"));
            }
        }
    }
    let content = content.ok_or_else(|| format!("in --disk {text}: say size=SIZE or file=IMAGE"))?;
    Ok(DiskSpec { content, serial, bus: disk_bus })
}

fn bus(text: &str) -> Result<Bus, String> {
    match text {
        "virtio" => Ok(Bus::Virtio),
        "scsi" => Ok(Bus::Scsi),
        "sata" => Ok(Bus::Sata),
        "ide" => Ok(Bus::Ide),
        "nvme" => Ok(Bus::Nvme),
        _ => Err(format!("unknown bus {text:?}; there are virtio, scsi, sata, ide and nvme")),
    }
}

fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            ',' if chars.peek() == Some(&',') => {
                chars.next();
                parts[last].push(',');
            }
            ',' => parts.push(String::new()),
            c => parts[last].push(c),
        }
    }
    parts
}

/// Reads `USER[:PASSWORD]`. The message never holds the password.
pub(crate) fn login(text: &str) -> Result<(String, Option<String>), String> {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    if user.is_empty() || user.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("the login has no usable user name; write USER or USER:PASSWORD".into());
    }
    if password.is_some_and(|p| p.chars().any(char::is_control)) {
        return Err(format!("the password for {user} has control characters in it, which cannot be typed"));
    }
    Ok((user.to_owned(), password.map(str::to_owned)))
}

/// Reads `NAME=VALUE`, or `NAME` whose value `look_up` knows.
pub(crate) fn variable(text: &OsStr, look_up: impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let name = bytes.split(|b| *b == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(format!("--env {}: there is no name before the =", text.display()));
    }
    if name.len() < bytes.len() {
        return Ok(bytes.to_vec());
    }
    let value = look_up(text)
        .ok_or_else(|| format!("--env {0}: {0} is not set here; write {0}=VALUE to give it one", text.display()))?;
    let mut whole = text.to_owned().into_vec();
    whole.push(b'=');
    whole.extend_from_slice(value.as_bytes());
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "G", "-1G", "1X", "one", "0", "1 G G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(memory("10M").unwrap_err().contains("too little"));
        assert_eq!(memory("100000001"), Ok(96 << 20));
    }

    #[test]
    fn disks() {
        let disk_of = |text| disk(text).unwrap();
        assert_eq!(
            disk_of("size=1G,serial=x"),
            DiskSpec { content: DiskContent::Empty(1 << 30), serial: Some("x".into()), bus: Bus::Virtio }
        );
        assert_eq!(disk_of("file=a,,b.img,bus=nvme").content, DiskContent::Image("a,b.img".into()));
        for (wrong, says) in [
            ("", "KEY=VALUE"),
            ("serial=x", "say size="),
            ("size=1G,file=x", "one of"),
            ("size=1G,serail=x", "unknown key \"serail\""),
            ("size=1G,bus=usb", "unknown bus"),
            ("size=1Q", "is not a size"),
            ("size=1G,serial=", "1 to 20"),
        ] {
            let error = disk(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn logins_never_show_the_password() {
        assert_eq!(login("root"), Ok(("root".into(), None)));
        assert_eq!(login("root:a:b"), Ok(("root".into(), Some("a:b".into()))));
        assert_eq!(login("root:"), Ok(("root".into(), Some(String::new()))));
        let error = login("root:sec\nret").unwrap_err();
        assert!(!error.contains("sec"), "{error}");
        assert!(login(":x").is_err());
    }

    #[test]
    fn variables() {
        let none = |_: &OsStr| None;
        assert_eq!(variable(OsStr::new("A=b=c"), none), Ok(b"A=b=c".to_vec()));
        assert_eq!(variable(OsStr::new("A"), |_| Some("v".into())), Ok(b"A=v".to_vec()));
        assert!(variable(OsStr::new("A"), none).unwrap_err().contains("A=VALUE"));
        assert!(variable(OsStr::new("=x"), none).is_err());
    }
}
