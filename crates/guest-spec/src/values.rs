//! How single values are written. Each error completes "… is ".

use bytesize::ByteSize;

/// The least memory that a guest can start in, in bytes.
const LEAST_MEMORY: u64 = 64 << 20;
/// The longest serial number that every kind of disk can have, in bytes (virtio's specification, 5.2.6).
const MAX_SERIAL: usize = 20;
/// Longest label of a file system, in bytes: that of ext4.
const MAX_LABEL: usize = 16;

/// Reads a size such as `512M` or `2GiB` into bytes. A bare letter means a power of two, as QEMU has it.
///
/// # Errors
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let normal = match trimmed.chars().last() {
        Some('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T') => format!("{trimmed}iB"),
        _ => trimmed.to_owned(),
    };
    let bytes = normal
        .parse::<ByteSize>()
        .map_err(|_| "not a size; write a number and a unit, such as \"512M\" or \"2GiB\"".to_owned())?
        .as_u64();
    match bytes {
        0 => Err("nothing; write a size above zero".into()),
        // What QEMU can count.
        b if b > i64::MAX as u64 => Err("more than any machine has".into()),
        b => Ok(b),
    }
}

/// Reads the memory of a guest into bytes, in whole mebibytes.
///
/// # Errors
/// As [`size`], and where it is too little for a guest.
pub fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < LEAST_MEMORY {
        return Err(format!("too little memory for a guest; give it at least {}", ByteSize(LEAST_MEMORY)));
    }
    // QEMU wants whole pages, and Linux is happiest with whole mebibytes.
    Ok(bytes.next_multiple_of(1 << 20))
}

/// Checks the serial number of a disk.
///
/// # Errors
/// Says what it looks like.
pub fn serial(text: &str) -> Result<&str, String> {
    if text.is_empty() || text.len() > MAX_SERIAL || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("no usable serial number: it has 1 to {MAX_SERIAL} visible ASCII characters"));
    }
    Ok(text)
}

/// Checks the label of a file system.
///
/// # Errors
/// Says what it looks like.
pub fn label(text: &str) -> Result<&str, String> {
    if text.is_empty() || text.len() > MAX_LABEL || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Err(format!("no usable label: it has 1 to {MAX_LABEL} visible ASCII characters, and no slash"));
    }
    Ok(text)
}

/// Checks a path in the guest.
///
/// # Errors
/// Says what it looks like.
pub fn guest_path(text: &str) -> Result<&str, String> {
    if text.contains('\0') {
        return Err("not usable: it has a NUL character in it".into());
    }
    if !text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err("not an absolute path without `..`".into());
    }
    Ok(text)
}

/// Checks where the guest is to see the workspace.
///
/// # Errors
/// As [`guest_path`], and for a place that the guest needs for itself.
pub fn mount_at(text: &str) -> Result<&str, String> {
    const NEEDED: &[&str] = &["proc", "sys", "dev", "run/belljar"];
    let parts: Vec<&str> = guest_path(text)?.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let path = parts.join("/");
    let below = |place: &&str| path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if path.is_empty() || path == "run" || NEEDED.iter().any(below) {
        return Err("no place for the workspace: the guest needs what is there; take one such as /mnt/hostos".into());
    }
    Ok(text)
}

/// Checks the name of a user in the guest, or a number.
///
/// # Errors
/// Says what it looks like.
pub fn user(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        return Err("empty".into());
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':') {
        return Err("not a usable user name: it has no spaces, colons and control characters".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size(" 1GiB"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "G", "-1G", "1X", "one", "0", "1 G G", "99999999T", "inf", "NaN"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(memory("10M").unwrap_err().contains("at least 64.0 MiB"));
        assert_eq!(memory("100000001"), Ok(96 << 20));
    }

    #[test]
    fn names_in_the_guest() {
        assert_eq!((serial("data0"), guest_path("/mnt/x"), user("1000")), (Ok("data0"), Ok("/mnt/x"), Ok("1000")));
        for wrong in ["", "with space", "ä", "123456789012345678901"] {
            assert!(serial(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "mnt", "/a/../b", "/a\0"] {
            assert!(guest_path(wrong).is_err(), "{wrong}");
        }
        for wrong in ["/", "//", "/./", "/proc", "/sys/x", "/dev/", "/run", "/run/belljar/out", "mnt"] {
            assert!(mount_at(wrong).is_err(), "{wrong}");
        }
        for fine in ["/mnt/hostos", "/run/x", "/devices", "/home/me/src"] {
            assert_eq!(mount_at(fine), Ok(fine));
        }
        for wrong in ["", "a b", "a:b", "a\n"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,20}|[0-9. ]{0,24}[a-zA-Z]{0,3}") {
            let _ = (size(&text), memory(&text), serial(&text), guest_path(&text), mount_at(&text), user(&text));
        }
    }
}
