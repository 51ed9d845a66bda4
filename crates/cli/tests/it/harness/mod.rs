//! A laboratory for one test: directories of its own, Belljar started in them, and nothing left behind.

mod build;
mod leftovers;
mod outcome;
mod pty;
mod suite;
mod template;

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

pub(crate) use build::fake_qemu;
pub(crate) use outcome::{FILTERS, Outcome, snapshot};
pub(crate) use pty::Pty;
pub(crate) use suite::{SUITE, words};

/// No test's program runs longer than this.
const LIMIT: Duration = Duration::from_secs(90);

/// The variable by which what was left running is found.
pub(crate) const MARK: &str = "BELLJAR_TEST_MARK";

/// A guest whose agent is its first process and works.
pub(crate) const WELL: &str = "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\n[agent]\nwait banner 80000\nagent\n";

/// Directories of one test.
#[derive(Debug)]
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    mark: String,
}

impl Lab {
    /// Fresh ones.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("belljar-it-").tempdir().expect("temporary directory");
        let mark = format!("it-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { dir, mark };
        for name in ["home", "cache", "state", "tmp", "workspace", "rootfs/bin", "scratch"] {
            fs::create_dir_all(lab.path(name)).expect("directory");
        }
        fs::write(lab.path("rootfs/bin/sh"), "").expect("shell");
        fs::write(lab.path("vmlinux"), kernel()).expect("kernel");
        lab
    }

    /// A path in the laboratory.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directories of runs so far, oldest first.
    pub(crate) fn runs(&self) -> Vec<PathBuf> {
        let mut runs: Vec<PathBuf> = fs::read_dir(self.path("state/belljar/runs"))
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        // Names of the same second are in no order.
        runs.sort_by_key(|run| run.join("events.jsonl").metadata().and_then(|m| m.created()).ok());
        runs
    }

    /// What the pretended QEMUs saw, as lines of JSON.
    pub(crate) fn seen(&self) -> String {
        fs::read_to_string(self.path("fake.log")).unwrap_or_default()
    }

    /// An image for `--image`, 1 MiB with some code for a BIOS in its first sector.
    pub(crate) fn image(&self, name: &str, format: &str) -> PathBuf {
        let path = self.path(name);
        let raw = if format == "raw" { path.clone() } else { self.path("image.raw") };
        let mut disk = vec![0; 1 << 20];
        disk[..2].copy_from_slice(b"\xeb\xfe");
        disk[510..512].copy_from_slice(b"\x55\xaa");
        fs::write(&raw, disk).expect("disk");
        if format != "raw" {
            let words = ["convert", "-q", "-f", "raw", "-O", format];
            let made = Command::new("qemu-img").args(words).args([&raw, &path]).status();
            assert!(made.expect("qemu-img is installed").success());
        }
        path
    }

    /// `belljar` with these words.
    pub(crate) fn belljar<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Belljar<'_> {
        Belljar {
            lab: self,
            words: words.into_iter().map(|w| w.as_ref().to_owned()).collect(),
            command: Vec::new(),
            env: Vec::new(),
            stdin: Vec::new(),
            open_stdin: false,
            stdout: None,
            wrapper: Vec::new(),
            limit: LIMIT,
        }
    }

    /// `belljar run` on the script's machine, whose first process is the agent.
    pub(crate) fn run(&self, script: &str) -> Belljar<'_> {
        self.run_bare(script).args(self.kernel_and_root())
    }

    /// The same with the accelerator left open.
    pub(crate) fn run_on_any(&self, script: &str) -> Belljar<'_> {
        self.belljar(["run", "-w", "none"]).script(script).args(self.kernel_and_root())
    }

    /// `belljar shell` on the script's machine.
    pub(crate) fn shell(&self, script: &str) -> Belljar<'_> {
        self.belljar(["shell", "--accel", "tcg", "-w", "none"]).script(script).args(self.kernel_and_root())
    }

    pub(crate) fn kernel_and_root(&self) -> [OsString; 4] {
        ["--kernel".into(), self.path("vmlinux").into(), "--rootfs".into(), self.path("rootfs").into()]
    }

    /// `belljar run` on the script's machine, which boots from a disk image.
    pub(crate) fn run_image(&self, script: &str) -> Belljar<'_> {
        let image = self.path("disk.qcow2");
        if !image.exists() {
            self.image("disk.qcow2", "qcow2");
        }
        self.run_bare(script).args(["--image".as_ref(), image.as_os_str()]).in_playground()
    }

    /// `belljar run` on the script's machine, without a guest.
    pub(crate) fn run_bare(&self, script: &str) -> Belljar<'_> {
        let workspace = self.path("workspace");
        self.belljar(["run"]).script(script).args([
            "--accel".as_ref(),
            "tcg".as_ref(),
            "--workspace".as_ref(),
            workspace.as_os_str(),
        ])
    }
}

/// The smallest kernel: an ELF header and the text by which a kernel is known.
fn kernel() -> Vec<u8> {
    let mut elf = vec![0; 4096];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    elf[20] = 1;
    elf[52] = 64;
    elf[512..][..72].copy_from_slice(b"Linux version 6.1.0-fake (fake@fake) (gcc) #1 SMP PREEMPT_DYNAMIC fake\n\0");
    elf
}

/// One call of the program.
#[derive(Debug)]
pub(crate) struct Belljar<'a> {
    lab: &'a Lab,
    words: Vec<OsString>,
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    open_stdin: bool,
    stdout: Option<Stdio>,
    wrapper: Vec<OsString>,
    limit: Duration,
}

impl<'a> Belljar<'a> {
    /// More words before the command.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(|w| w.as_ref().to_owned()));
        self
    }

    /// The command after `--`.
    pub(crate) fn command<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        self
    }

    /// `sh -c TEXT` as the command.
    pub(crate) fn sh(self, text: &str) -> Self {
        self.command(["sh", "-c", text])
    }

    /// A variable.
    pub(crate) fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The pretended QEMU's script.
    pub(crate) fn script(self, text: &str) -> Self {
        let path = self.lab.path("script");
        fs::write(&path, text).expect("script");
        self.env("FAKE_QEMU_SCRIPT", path)
    }

    /// Standard input; without it there is an empty one.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Standard input stays open, with nothing in it.
    pub(crate) fn open_stdin(mut self) -> Self {
        self.open_stdin = true;
        self
    }

    /// Standard output goes here instead of being collected.
    pub(crate) fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    /// The pretended QEMUs note nothing of what they see.
    pub(crate) fn without_journal(self) -> Self {
        self.env("FAKE_QEMU_LOG", "/dev/null")
    }

    /// May run for an hour.
    pub(crate) fn unlimited(mut self) -> Self {
        self.limit = Duration::from_secs(3600);
        self
    }

    /// Started by this program, such as `prlimit …`.
    pub(crate) fn under<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        self
    }

    /// Started where `/mnt` and `/run` are its own, so that what is typed on a console cannot touch the host's.
    pub(crate) fn in_playground(self) -> Self {
        let unshare = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"];
        let words = unshare.iter().map(OsString::from);
        self.under(words.chain([fake_qemu().into(), "--playground".into()]))
    }

    /// The call as a command of its own.
    pub(crate) fn to_command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(env!("CARGO_BIN_EXE_belljar").into());
        words.extend(self.words.iter().cloned());
        if !self.command.is_empty() {
            words.push("--".into());
            words.extend(self.command.iter().cloned());
        }
        let lab = self.lab;
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(lab.path("workspace"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", lab.path("home"))
            .env("XDG_CACHE_HOME", lab.path("cache"))
            .env("XDG_STATE_HOME", lab.path("state"))
            .env("TMPDIR", lab.path("tmp"))
            .env("LC_ALL", "C.UTF-8")
            // Most of them are of a guest that boots; templates have theirs.
            .env("BELLJAR_TEMPLATES", "off")
            .env("BELLJAR_QEMU", fake_qemu())
            .env("BELLJAR_QEMU_ENV", "FAKE_*,BELLJAR_TEST_*")
            .env("FAKE_QEMU_SCRATCH", lab.path("scratch"))
            .env("FAKE_QEMU_LOG", lab.path("fake.log"))
            .env("FAKE_GUEST_SEEN", lab.path("fake.log"))
            .env("FAKE_QEMU_INHERITED", inherited())
            .env(MARK, &lab.mark)
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> Live<'a> {
        let mut command = self.to_command();
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        command.stdout(self.stdout.take().unwrap_or_else(Stdio::piped));
        let mut child = command.spawn().expect("belljar starts");
        // The command holds our handle on where standard output goes.
        drop(command);
        let stdin = child.stdin.take().expect("stdin");
        let kept = if self.open_stdin {
            Some(stdin)
        } else {
            let bytes = std::mem::take(&mut self.stdin);
            thread::spawn(move || {
                let mut stdin = stdin;
                // A program that does not read its input closes it.
                let _unread = stdin.write_all(&bytes);
            });
            None
        };
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let started = Instant::now();
        Live { lab: self.lab, child, stdout, stderr, _stdin: kept, started, limit: self.limit }
    }

    /// Starts it and waits for its end; nothing may be left.
    pub(crate) fn go(self) -> Outcome<'a> {
        self.spawn().end()
    }
}

/// The descriptors that whoever started the tests left open in us, and so in all that we start.
fn inherited() -> String {
    const CLOEXEC: u32 = 0o2_000_000;
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
        let flags = flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok()).unwrap_or(CLOEXEC);
        if flags & CLOEXEC == 0 {
            numbers.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    numbers.join(",")
}

fn collect(mut from: impl std::io::Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _cut = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    lab: &'a Lab,
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    _stdin: Option<std::process::ChildStdin>,
    started: Instant,
    limit: Duration,
}

impl<'a> Live<'a> {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("belljar is there to be signalled");
    }

    /// Waits until the pretended QEMU has noted something of this kind with this text in it.
    #[track_caller]
    pub(crate) fn await_note(&mut self, kind: &str, text: &str) -> &mut Self {
        loop {
            let noted = self.lab.seen().lines().any(|line| {
                let note: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                note["kind"] == kind && note["value"].to_string().contains(text)
            });
            if noted {
                return self;
            }
            if self.wait(Duration::from_millis(3)) {
                panic!("belljar ended before {kind} {text:?}: {}\nQEMU saw: {}", self.said(), self.lab.seen());
            }
            assert!(self.started.elapsed() < LIMIT, "{kind} {text:?} was not noted: {}", self.lab.seen());
        }
    }

    /// Waits until the guest has got that far.
    #[track_caller]
    pub(crate) fn await_mark(&mut self, name: &str) -> &mut Self {
        self.await_note("mark", &format!("\"{name}\""))
    }

    /// What it is doing, as a letter of `/proc/PID/stat`; `T` is stopped.
    pub(crate) fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("stat");
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("state")
    }

    /// A field of its `/proc/PID/status`, in kibibytes.
    pub(crate) fn kibibytes(&self, field: &str) -> u64 {
        self.kibibytes_if_there(field).expect("field")
    }

    /// The same, unless it has ended.
    pub(crate) fn kibibytes_if_there(&self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    /// How many descriptors it has open, unless it has ended.
    pub(crate) fn descriptors_if_there(&self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.child.id())).ok()?.count()).filter(|count| *count > 0)
    }

    /// Waits so long; true if it is still there.
    pub(crate) fn still_there_after(&mut self, time: Duration) -> bool {
        !self.wait(time)
    }

    /// Waits at most so long for the end.
    fn wait(&mut self, time: Duration) -> bool {
        let Ok(ended) = pidfd_open(self.pid(), PidfdFlags::empty()) else { return true };
        let time =
            Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&time)).is_ok_and(|n| n > 0)
    }

    fn said(&mut self) -> String {
        let stderr = self.stderr.take().and_then(|t| t.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&stderr).into_owned()
    }

    /// Waits for the end; nothing may be left.
    pub(crate) fn end(self) -> Outcome<'a> {
        let lab = self.lab;
        let outcome = self.end_dirty();
        leftovers::check(lab, &lab.mark, &outcome.stderr);
        outcome
    }

    /// Waits for the end and looks for nothing.
    pub(crate) fn end_dirty(mut self) -> Outcome<'a> {
        let limit = self.limit;
        if !self.wait(limit.saturating_sub(self.started.elapsed())) {
            let _ours = self.child.kill();
            let said = self.said();
            panic!("belljar did not end within {limit:?}; it said: {said}\nQEMU saw: {}", self.lab.seen());
        }
        let status = self.child.wait().expect("status");
        let stdout = self.stdout.take().and_then(|t| t.join().ok()).unwrap_or_default();
        let stderr = self.said();
        assert!(!stderr.contains("panicked at"), "belljar panicked: {stderr}");
        Outcome { lab: self.lab, status, stdout, stderr, elapsed: self.started.elapsed() }
    }

    /// Kills it with what it started left to the kernel.
    pub(crate) fn kill(self) -> Outcome<'a> {
        let _late = kill_process(self.pid(), Signal::KILL);
        self.end()
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Shell text that waits until the script has marked something.
pub(crate) fn until(mark: &str) -> String {
    format!("until grep -q '\"value\":\"{mark}\"' \"$FAKE_GUEST_SEEN\"; do sleep 0.01; done")
}

/// Words for [`Belljar::under`]: in a mount namespace of its own, after this text of the shell, to which `directory` is `$0`.
pub(crate) fn mounted(directory: impl Into<OsString>, text: &str) -> Vec<OsString> {
    let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", text];
    words.iter().map(OsString::from).chain([directory.into()]).collect()
}

/// The same, where `directory` is a tmpfs of these options.
pub(crate) fn on_tmpfs(directory: impl Into<OsString>, options: &str) -> Vec<OsString> {
    mounted(directory, &format!("mount -t tmpfs -o {options} tmpfs \"$0\" && exec \"$@\""))
}

/// The same, where `directory` can only be read.
pub(crate) fn read_only(directory: impl Into<OsString>) -> Vec<OsString> {
    mounted(directory, "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"")
}
