//! Shares over virtiofs: a `virtiofsd` that checks its caller, and QEMU's first words to one.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use rustix::fs::FileType;

use crate::args::Args;

/// The word that makes this program a `virtiofsd`: then how it behaves (`well`, `refuses`, `strange`, `deaf`), and the words that it gets.
pub(crate) const WORD: &str = "virtiofsd";
/// How long the other side may take.
const LIMIT: Duration = Duration::from_secs(60);
/// `VHOST_USER_GET_FEATURES`, and the head of its answer (QEMU's `docs/interop/vhost-user.rst`).
const ASK: [u32; 3] = [1, 1, 0];
const ANSWER: [u32; 3] = [1, 5, 8];

fn bytes(words: [u32; 3]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Serves as one until QEMU is gone.
pub(crate) fn main(words: &[String]) -> Result<(), String> {
    let (how, words) = words.split_first().ok_or("how?")?;
    let wrong = caller(words);
    if !wrong.is_empty() {
        return Err(format!("virtiofsd: the caller is wrong: {}", wrong.join("; ")));
    }
    if how == "refuses" {
        return Err("no share for \u{1b}[31myou".into());
    }
    let said = |error: std::io::Error| error.to_string();
    let listener = UnixListener::from(std::os::fd::OwnedFd::from(crate::socket("3").map_err(said)?));
    let (mut line, _) = listener.accept().map_err(said)?;
    loop {
        let mut head = [0; 12];
        // QEMU is gone.
        if line.read_exact(&mut head).is_err() {
            return Ok(());
        }
        if how == "deaf" {
            continue;
        }
        let [.., l0, l1, l2, l3] = head;
        let mut payload = vec![0; usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(0).min(4096)];
        line.read_exact(&mut payload).map_err(said)?;
        if head[..4] == bytes(ASK)[..4] {
            let head = if how == "strange" { vec![7; 12] } else { bytes(ANSWER) };
            line.write_all(&[head, vec![0; 8]].concat()).map_err(said)?;
        }
    }
}

/// What is wrong with how it was started.
fn caller(words: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let joined = words.join(" ");
    if !joined.contains("--fd=3") || !joined.contains("/proc/self/fd/4/.") {
        wrong.push(format!("its words are {joined}"));
    }
    let kind =
        |fd: u32| rustix::fs::stat(format!("/proc/self/fd/{fd}")).map(|stat| FileType::from_raw_mode(stat.st_mode));
    for (fd, wanted) in [(0, FileType::CharacterDevice), (3, FileType::Socket), (4, FileType::Directory)] {
        if kind(fd) != Ok(wanted) {
            wrong.push(format!("descriptor {fd} is {:?}", kind(fd)));
        }
    }
    if rustix::process::parent_process_death_signal().ok().flatten() != Some(rustix::process::Signal::KILL) {
        wrong.push("it would outlive its parent".into());
    }
    if rustix::process::getpgrp() != rustix::process::getpid() {
        wrong.push("a terminal's Ctrl-C reaches it".into());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')) {
        wrong.push("no seccomp filter".into());
    }
    // A share that is read: nothing there can be changed, even by who can.
    if joined.contains("cache=always") || joined.contains("--cache always") {
        let made = fs::File::create("/proc/self/fd/4/belljar-probe").map_err(|error| error.raw_os_error());
        if made.as_ref().err() != Some(&Some(rustix::io::Errno::ROFS.raw_os_error())) {
            wrong.push(format!("it can make a file in a share that is read: {made:?}"));
        }
    }
    if env::vars_os().any(|(name, _)| name == "HOME") {
        wrong.push("it has the user's environment".into());
    }
    wrong
}

/// Asks behind each device what QEMU asks first, and keeps the lines.
pub(crate) fn connect(args: &Args) -> Result<Vec<UnixStream>, String> {
    let mut lines = Vec::new();
    for device in args.all("device").filter(|device| device.driver().starts_with("vhost-user-fs")) {
        let chardev = args.all("chardev").find(|chardev| chardev.id() == device.get("chardev"));
        let fd = chardev.and_then(|chardev| chardev.get("fd")).ok_or("vhost-user-fs: no chardev with a socket")?;
        let said = |error: std::io::Error| format!("vhost-user-fs: {error}");
        let mut line = crate::socket(fd).map_err(said)?;
        line.set_read_timeout(Some(LIMIT)).map_err(said)?;
        line.write_all(&bytes(ASK)).map_err(said)?;
        let mut answer = [0; 20];
        line.read_exact(&mut answer).map_err(said)?;
        if answer[..12] != bytes(ANSWER) {
            return Err("vhost-user-fs: no answer of a back end".into());
        }
        lines.push(line);
    }
    Ok(lines)
}
