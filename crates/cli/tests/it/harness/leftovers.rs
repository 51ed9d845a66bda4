//! What a run may not leave behind.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, MARK};

/// The kernel needs a moment to kill what a signal was sent to.
const PATIENCE: Duration = Duration::from_secs(10);

/// By which the pretended guest's own processes are known.
const GUEST: &[u8] = b"FAKE_QEMU_CONTROL=";

/// Files of a run's directory.
const RUN_FILES: [&str; 18] = [
    "ctl",
    "orders",
    "covers",
    "engine.cmd",
    "engine.log",
    "workspace-conflicts",
    "events.jsonl",
    "console.log",
    "qemu.log",
    "qemu.cmd",
    "lock",
    "out",
    "attempts",
    "guests",
    "screen.png",
    "memory.kdump",
    "screenshots",
    "serial-modem.log",
];

/// Fails if a process or a file is left of this laboratory's calls.
pub(crate) fn check(lab: &Lab, mark: &str, said: &str) {
    let needle = format!("{MARK}={mark}");
    let start = Instant::now();
    loop {
        let left = processes(&needle);
        if left.is_empty() {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "processes are left: {left:#?}\nbelljar said: {said}");
        thread::sleep(Duration::from_millis(5));
    }
    let files = files(lab);
    assert!(files.is_empty(), "files are left: {files:#?}\nbelljar said: {said}");
}

/// Processes with this in their environment, or below the laboratory in their command line, zombies excepted.
fn processes(needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        // Of this laboratory, and not of one whose number begins alike.
        let ours = environ.split(|b| *b == 0).any(|v| v == needle.as_bytes());
        if environ.split(|b| *b == 0).any(|v| v.starts_with(GUEST)) {
            // A guest's process would be gone with its machine; the pretended machine may leave one that left its group.
            if ours && let Some(pid) = entry.file_name().to_str().and_then(|n| Pid::from_raw(n.parse().ok()?)) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        } else if ours {
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = cmdline.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
            found.push(format!("{}: {}", entry.file_name().display(), words.join(" ")));
        }
    }
    found
}

/// Files where none belong.
pub(crate) fn files(lab: &Lab) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for empty in ["home", "tmp", "rootfs"] {
        walk(&lab.path(empty), &mut found);
    }
    found.retain(|p| !p.ends_with("rootfs/bin/sh"));
    for run in lab.runs() {
        let entries = fs::read_dir(&run).into_iter().flatten().flatten();
        found.extend(entries.map(|e| e.path()).filter(|p| !RUN_FILES.iter().any(|name| p.ends_with(name))));
        // Boot files, where the cache cannot be written to; runs that were made one.
        let own = |p: &PathBuf| {
            let name = p.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("belljar-") || name.starts_with("part-")
        };
        found.retain(|p| !own(p));
        // A run that was killed keeps what it had copied for its set-ups; nobody uses it any more.
        let ended = fs::read_to_string(run.join("events.jsonl")).is_ok_and(|log| log.contains("\"test-run-ended\""));
        found.retain(|p| ended || !p.ends_with("setup"));
    }
    for other in fs::read_dir(lab.path("state/belljar")).into_iter().flatten().flatten() {
        if other.file_name() != "runs" && other.file_name() != "history" {
            found.push(other.path());
        }
    }
    let mut cached = Vec::new();
    walk(&lab.path("cache"), &mut cached);
    found.extend(cached.into_iter().filter(|p| half_written(p)));
    found
}

fn half_written(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.starts_with(".tmp") || name.ends_with(".tmp") || name.ends_with(".part") || name.contains(".new")
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}
