//! A terminal to start Belljar on, and the person before it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::fake_qemu;

/// A terminal. What is written to it is collected from the start.
#[derive(Debug)]
pub(crate) struct Pty {
    master: File,
    path: PathBuf,
    // Keeps the terminal from hanging up between two programs.
    slave: OwnedFd,
    seen: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

impl Pty {
    /// A fresh one of 24 by 80.
    pub(crate) fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("pty");
        grantpt(&master).expect("grant");
        unlockpt(&master).expect("unlock");
        let path = ptsname(&master, Vec::new()).expect("name");
        let path = PathBuf::from(OsStr::from_bytes(path.as_bytes()));
        let slave =
            rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).expect("slave");
        let pty = Self { master: File::from(master), path, slave, seen: Arc::default() };
        pty.resize(24, 80);
        let mut reader = pty.master.try_clone().expect("clone");
        let seen = Arc::clone(&pty.seen);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                seen.0.lock().expect("lock").extend_from_slice(&chunk[..count]);
                seen.1.notify_all();
            }
        });
        pty
    }

    /// The words that start a program as the leader of a session on this terminal.
    pub(crate) fn wrapper(&self) -> [OsString; 3] {
        [fake_qemu().into(), "--on-terminal".into(), self.path.clone().into()]
    }

    /// The terminal as a stream of a child.
    pub(crate) fn stdio(&self) -> Stdio {
        self.slave.try_clone().expect("clone").into()
    }

    /// Changes the size.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("size");
    }

    /// Types.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("typed");
    }

    /// All that was written so far.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.seen.0.lock().expect("lock").clone()
    }

    /// Waits until this was written.
    #[track_caller]
    pub(crate) fn await_text(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = self.seen.0.lock().expect("lock");
        while !seen.windows(text.len()).any(|w| w == text.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} did not come: {:?}", String::from_utf8_lossy(&seen));
            seen = self.seen.1.wait_timeout(seen, left).expect("lock").0;
        }
    }

    /// Whether lines are edited and echoed, as a shell leaves a terminal.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.slave).expect("modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}
