//! The agent beside the guest's own init: started by the kernel in the guest's own initramfs, it starts what the kernel would have started,
//! waits in a process of its own until that has brought up the root, and goes there.
//!
//! Nothing of the guest is changed for that, and it needs no login, no service manager and no file of the guest's. The waiting process has a
//! mount namespace of its own, so that the initramfs can do with its mounts what it likes.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use belljar_proto::message::INIT_AGENT_PATH;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::LinkNameSpaceType;

use crate::sys::{self, Strings};
use crate::{mounts, refusal, serve, text};

/// The name by which systemd spares a process at the switch of roots (its `ROOT_STORAGE_DAEMONS` document): it begins with `@`.
const NAME: &str = "@belljar-agent";
/// Where the waiting process sees the processes. The initramfs has a `/proc` of its own, or none.
const PROC: &str = "/.belljar-proc";
/// How often it looks whether the root is there.
const LOOK: Duration = Duration::from_millis(100);
/// Programs that are the first process while they change the root.
const SWITCHING: &[&str] = &["run-init", "switch_root", "nuke"];
/// Files of an initramfs of systemd's (its `INITRD_INTERFACE` document).
const OF_INITRAMFS: &str = "etc/initrd-release";

/// As the first process: starts the waiting process, and becomes the guest's init. Comes back only with the reason why that cannot be.
pub(crate) fn begin(init: &str) -> String {
    match sys::fork() {
        Ok(None) => {
            let _ = rustix::process::setsid();
            let argv = [NAME, "serve", "--beside"].map(|word| CString::new(word).unwrap_or_default());
            let Ok(program) = CString::new(INIT_AGENT_PATH) else { sys::exit_now(1) };
            let errno = sys::execve(&program, &Strings::new(&argv), &Strings::new(&[]));
            text::say(&format!("execute {INIT_AGENT_PATH}: {}", text::errno(errno)));
            sys::exit_now(1)
        }
        Ok(Some(_)) => {}
        // The guest boots all the same, and nobody is there to answer.
        Err(errno) => text::say(&format!("fork: {}", text::errno(errno))),
    }
    become_init(init, "the first process of the guest's own initramfs")
}

/// What the kernel does not know of its command line it passes on to its init.
fn become_init(init: &str, which: &str) -> String {
    become_program(init, &format!(", {which}"), std::env::args_os().skip(1).map(OsStringExt::into_vec))
}

/// Executes a program with these words in the place of this one. Comes back only with the reason why that cannot be; `more` is said of the program in it.
pub(crate) fn become_program(program: &str, more: &str, words: impl Iterator<Item = Vec<u8>>) -> String {
    let argv = sys::c_strings([program.as_bytes().to_vec()].into_iter().chain(words));
    let env = sys::own_environment();
    let Ok(path) = CString::new(program) else { return format!("{program:?} is no path") };
    let errno = sys::execve(&path, &Strings::new(&argv), &Strings::new(&env));
    let why = refusal::of_program(program.as_bytes(), b"/", errno);
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("execute {program}{more}: {}{why}", text::errno(errno))
}

/// As the first process in the root of a container image: starts the agent beside, and becomes the image's own init. Comes back only with the reason why
/// that cannot be.
pub(crate) fn start_own(init: &str) -> String {
    match sys::fork() {
        Ok(None) => {
            let _ = rustix::process::setsid();
            sys::exit_now(serve::in_guest(environment()))
        }
        Ok(Some(_)) => {}
        Err(errno) => text::say(&format!("fork: {}", text::errno(errno))),
    }
    become_init(init, "the image's own first process")
}

/// `serve --beside`: waits for the guest's root, goes there, and serves.
pub(crate) fn go_on() -> i32 {
    let _ = rustix::thread::set_name(c"belljar-agent");
    match enter() {
        Ok(()) => serve::in_guest(environment()),
        Err((what, errno)) => {
            text::say(&format!("serve --beside: {what}: {}", text::errno(errno)));
            1
        }
    }
}

fn enter() -> Result<(), (&'static str, Errno)> {
    sys::own_mount_namespace().map_err(|errno| ("unshare", errno))?;
    let _ = rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
    let _ = rustix::fs::mkdir(PROC, Mode::from_raw_mode(0o700));
    mounts::mount("proc", PROC, "proc", MountFlags::NOSUID, "").map_err(|errno| ("mount proc", errno))?;
    // Held open: whoever empties the initramfs removes the directory, and with it what is mounted there, in this namespace too.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open(PROC, flags, Mode::empty()).map_err(|errno| ("open proc", errno))?;
    let initramfs = rustix::fs::stat("/").map_err(|errno| ("stat /", errno))?;
    while !is_root_there(&proc, initramfs.st_dev) {
        std::thread::sleep(LOOK);
    }
    let open = |path: &str, flags| rustix::fs::openat(&proc, path, flags | OFlags::CLOEXEC, Mode::empty());
    let root = open("1/root", OFlags::PATH | OFlags::DIRECTORY).map_err(|errno| ("open its root", errno))?;
    let space = open("1/ns/mnt", OFlags::RDONLY).map_err(|errno| ("open its mount namespace", errno))?;
    rustix::thread::move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|errno| ("setns", errno))?;
    rustix::process::fchdir(&root).map_err(|errno| ("fchdir", errno))?;
    rustix::process::chroot(".").map_err(|errno| ("chroot", errno))
}

/// Whether the first process is that of the system, in its root.
fn is_root_there(proc: &OwnedFd, initramfs: u64) -> bool {
    let Ok(root) = rustix::fs::statat(proc, "1/root/.", AtFlags::empty()) else { return false };
    let of_initramfs = rustix::fs::statat(proc, format!("1/root/{OF_INITRAMFS}"), AtFlags::empty());
    let name = rustix::fs::openat(proc, "1/comm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut buffer = [0; 64];
    let read = name.and_then(|file| rustix::io::read(file, &mut buffer)).unwrap_or(0);
    let name = text::lossy(&buffer[..read]);
    root.st_dev != initramfs && matches!(of_initramfs, Err(Errno::NOENT)) && !SWITCHING.contains(&name.trim_end())
}

/// What a login of root's would have, as far as it does not depend on the shell.
fn environment() -> Vec<Vec<u8>> {
    let own = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "SHELL=/bin/sh",
    ];
    let locale = ["/etc/locale.conf", "/etc/default/locale"].iter().find_map(|file| fs::read_to_string(file).ok());
    let words = locale.as_deref().map(locale_words).unwrap_or_default();
    own.into_iter().map(str::to_owned).chain(words).map(String::into_bytes).collect()
}

/// The variables of a locale's file: `LANG=…` and `LC_…=…`, quoted or not (locale.conf(5)).
fn locale_words(text: &str) -> Vec<String> {
    let variable = |line: &str| {
        let (name, value) = line.trim().split_once('=')?;
        let quoted = |mark| value.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        let is_locale = name == "LANG" || name == "LANGUAGE" || name.starts_with("LC_");
        (is_locale && !value.is_empty()).then(|| format!("{name}={value}"))
    };
    text.lines().filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_program_cannot_be_the_first_process_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        let said = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            become_program(path.to_str().unwrap(), ", an init", std::iter::empty())
        };
        let no_program = said(b"gar\0bage");
        assert!(no_program.ends_with("ENOEXEC (not an executable format): it is neither a program nor a script"));
        let no_interpreter = said(b"#!/no/such/interpreter -x\n");
        assert!(no_interpreter.contains(", an init: ENOENT"), "{no_interpreter}");
        assert!(no_interpreter.ends_with("its interpreter /no/such/interpreter is missing in the guest"));
    }

    #[test]
    fn a_locale_is_taken_as_the_login_would() {
        let text = "# comment\nLANG=\"de_DE.UTF-8\"\nLC_TIME='C'\nLC_ALL=\nPATH=/evil\n LANGUAGE=de\n";
        assert_eq!(locale_words(text), ["LANG=de_DE.UTF-8", "LC_TIME=C", "LANGUAGE=de"]);
    }
}
