//! Why a program could not be executed: the kernel's number alone names the wrong file, or none.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::text;

/// As much of a program as is looked at.
const HEAD: usize = 4096;

/// What is wrong with `program`, as seen from `cwd`, that `execve` answered with `errno`; none where the number says it all.
pub(crate) fn of_program(program: &[u8], cwd: &[u8], errno: Errno) -> Option<String> {
    let path = Path::new(std::ffi::OsStr::from_bytes(cwd)).join(std::ffi::OsStr::from_bytes(program));
    match errno {
        Errno::NOENT => missing(&path),
        Errno::ACCESS => denied(&path),
        Errno::NOEXEC => format(&path),
        _ => None,
    }
}

/// Whether there is something of this name, even a link that leads nowhere.
pub(crate) fn is_there(program: &[u8], cwd: &[u8]) -> bool {
    fs::symlink_metadata(Path::new(std::ffi::OsStr::from_bytes(cwd)).join(std::ffi::OsStr::from_bytes(program))).is_ok()
}

/// What is missing is not always the file itself.
fn missing(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Err(_) => fs::symlink_metadata(path).ok().map(|_| "it is a symbolic link that leads nowhere".to_owned()),
        Ok(_) => {
            let head = head(path)?;
            let (what, needed) = match interpreter(&head) {
                Some(interpreter) => ("interpreter", interpreter),
                None => ("loader", loader(path, &head)?),
            };
            Some(format!("its {what} {} is missing in the guest", text::lossy(&needed)))
        }
    }
}

fn denied(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.is_dir() {
        return Some("it is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Some("it is no regular file".to_owned());
    }
    if rustix::fs::statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::NOEXEC)) {
        return Some("it lies on a file system that is mounted with noexec".to_owned());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Some("it is not executable (chmod +x)".to_owned());
    }
    let interpreter = head(path).and_then(|head| interpreter(&head))?;
    let interpreter = PathBuf::from(std::ffi::OsStr::from_bytes(&interpreter));
    let metadata = fs::metadata(&interpreter).ok()?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return None;
    }
    Some(format!("its interpreter {} is not executable", interpreter.display()))
}

fn format(path: &Path) -> Option<String> {
    let head = head(path)?;
    match machine(&head) {
        Some(machine) => {
            let ours = rustix::system::uname();
            Some(format!("it is a program for {machine}, the guest is {}", ours.machine().to_string_lossy()))
        }
        None if head.starts_with(b"\x7fELF") => Some("it is an ELF file that this kernel cannot run".to_owned()),
        None if head.starts_with(b"MZ") => Some("it is a program for another system".to_owned()),
        None if is_script(&head) => None,
        None => Some("it is neither a program nor a script".to_owned()),
    }
}

/// Whether a shell may run it as its script: text, as far as its first line shows.
pub(crate) fn is_script_at(program: &[u8]) -> bool {
    head(Path::new(std::ffi::OsStr::from_bytes(program))).is_none_or(|head| is_script(&head))
}

fn is_script(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    !head.starts_with(b"\x7fELF") && !line.contains(&0)
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    open(path)?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Never waits for the other end of a pipe.
fn open(path: &Path) -> Option<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// The program of a first line `#!…`.
fn interpreter(head: &[u8]) -> Option<Vec<u8>> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let mut word = line.trim_ascii().split(u8::is_ascii_whitespace);
    // What an editor of another system left at the line's end is a part of the name to the kernel.
    let end = if line.ends_with(b"\r") { &b"\\r (the line ends with a carriage return)"[..] } else { b"" };
    let first = word.next().filter(|word| !word.is_empty())?;
    Some(if word.next().is_none() { [first, end].concat() } else { first.to_vec() })
}

/// The loader that a 64-bit ELF file of this byte order asks for (`PT_INTERP`).
fn loader(path: &Path, head: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u32 = 3;
    const LONGEST: usize = 4096;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for at in 0..count.min(64) {
        let at = usize::try_from(table.checked_add(at * size)?).ok()?;
        if number(at, 4)? == u64::from(PT_INTERP) {
            let (from, length) = (number(at.checked_add(8)?, 8)?, number(at.checked_add(32)?, 8)?);
            let mut file = open(path)?;
            file.seek(SeekFrom::Start(from)).ok()?;
            let mut name = Vec::new();
            file.take(length.min(LONGEST as u64)).read_to_end(&mut name).ok()?;
            while name.last() == Some(&0) {
                name.pop();
            }
            return Some(name);
        }
    }
    None
}

/// The architecture of an ELF file that is not this one's.
fn machine(head: &[u8]) -> Option<String> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let pair = |at: usize| -> Option<u16> {
        let bytes: [u8; 2] = head.get(at..at + 2)?.try_into().ok()?;
        Some(if head[5] == 2 { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let own = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => 0,
    };
    let number = pair(18)?;
    // Numbers of the ELF specification (e_machine).
    let name = match number {
        own_number if own_number == own => return None,
        3 => "i386",
        8 => "mips",
        20 => "ppc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        258 => "loongarch",
        other => return Some(format!("another architecture (ELF machine {other})")),
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn why(path: &Path, errno: Errno) -> String {
        of_program(path.as_os_str().as_bytes(), b"/", errno).unwrap_or_default()
    }

    #[test]
    fn the_file_that_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8], mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let lost = file("lost", b"#!/no/such/sh -e\n", 0o755);
        assert_eq!(why(&lost, Errno::NOENT), "its interpreter /no/such/sh is missing in the guest");
        let windows = file("windows", b"#!/bin/sh\r\necho\r\n", 0o755);
        assert!(why(&windows, Errno::NOENT).contains("/bin/sh\\r (the line ends with a carriage return) is missing"));
        symlink("/no/such", dir.path().join("link")).unwrap();
        assert_eq!(why(&dir.path().join("link"), Errno::NOENT), "it is a symbolic link that leads nowhere");
        assert_eq!(why(&dir.path().join("none"), Errno::NOENT), "");
        assert_eq!(why(&file("plain", b"x", 0o644), Errno::ACCESS), "it is not executable (chmod +x)");
        assert_eq!(why(dir.path(), Errno::ACCESS), "it is a directory");

        let own = fs::read("/proc/self/exe").unwrap();
        let loader = loader(Path::new("/proc/self/exe"), &own[..HEAD.min(own.len())]);
        assert!(loader.is_none_or(|name| name.starts_with(b"/lib")), "a loader is an absolute path");
        let mut other = own[..64].to_vec();
        other[18] = 183;
        assert!(why(&file("arm", &other, 0o755), Errno::NOEXEC).starts_with("it is a program for aarch64"));
        assert_eq!(why(&file("data", b"a\0b", 0o755), Errno::NOEXEC), "it is neither a program nor a script");
        assert!(!is_script(&other) && !is_script(b"a\0b\n") && is_script(b"echo a\n\0") && is_script(b""));
        // What is read of a file is bounded, and a pipe is not waited for.
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o755.into(), 0).unwrap();
        assert_eq!(why(&pipe, Errno::NOEXEC), "");
        assert_eq!(why(&pipe, Errno::ACCESS), "it is no regular file");
    }
}
