//! Where the guest's commands really run: on the host, in a scratch directory, unable to do harm.
//!
//! What is dangerous has three guards: the programs that end or change a machine (`poweroff`, `mount`, …) are
//! [applets](crate::applet) found first in `PATH`; a test may run the whole program in a [`PLAYGROUND`], whose `/mnt` and
//! `/run` are its own; and a seccomp filter refuses what is left.

use std::{
    ffi::{CString, OsStr, OsString},
    fs, io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt as _, fs::symlink, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use belljar_share_disk::layout::SERIAL;
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    fs::{FileType, Mode, OFlags},
    process,
};

use crate::{
    applet,
    args::Args,
    check,
    machine::{Machine, complain},
    script::Script,
    track::Track,
};

/// First argument of the program as the shim before a child.
pub(crate) const CHILD: &str = "--fake-child";

/// The pretended guest's file system and shares.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The scratch directory.
    pub(crate) root: PathBuf,
    /// Tag and host directory of each 9p share.
    pub(crate) shares: Vec<(String, PathBuf)>,
    /// The file behind the disk of shares.
    pub(crate) share_disk: Option<PathBuf>,
    control: Option<fs::File>,
    inherited: Vec<i32>,
    remove: bool,
    groups: Mutex<Vec<process::Pid>>,
}

impl Guest {
    /// Lays out the scratch directory, below `scratch` or else the temporary directory.
    pub(crate) fn new(args: &Args, scratch: Option<&Path>) -> io::Result<Self> {
        let name = format!("fake-qemu-{}", std::process::id());
        let root = scratch.map_or_else(std::env::temp_dir, Path::to_owned).join(name);
        // One that was killed leaves its own behind, and numbers of processes come again.
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for dir in ["bin", "root", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let this = std::env::current_exe()?;
        // Our agent where an initramfs has it.
        fs::create_dir_all(root.join("belljar"))?;
        symlink(&this, root.join("belljar/agent"))?;
        for name in applet::NAMES {
            symlink(&this, root.join("bin").join(name))?;
        }
        let fifo = root.join("control");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        // Open for both, so that it never ends and opening never waits.
        let control = fs::File::options().read(true).write(true).open(&fifo)?;
        let mut guest = Self {
            root,
            shares: shares(args),
            share_disk: share_disk(args),
            control: Some(control),
            inherited: args.descriptors().iter().filter_map(|n| n.parse().ok()).collect(),
            remove: scratch.is_none(),
            groups: Mutex::default(),
        };
        if args.has("incoming") {
            // The state of the frozen machine.
            guest.inherited.extend(check::unnamed(args).iter().filter_map(|(n, _)| n.parse::<i32>().ok()));
        }
        guest.inherited.sort_unstable();
        guest.inherited.dedup();
        Ok(guest)
    }

    /// The control pipe's end that is read.
    pub(crate) fn take_control(&mut self) -> Option<fs::File> {
        self.control.take()
    }

    /// Directories of files that are the guest's own, so that they are frozen with it.
    pub(crate) fn own(&self) -> [PathBuf; 2] {
        [self.root.join("root"), self.root.join("tmp")]
    }

    /// What a guest path is on the host, where no mount can make it so.
    pub(crate) fn rewrites(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let here = self.root.join("belljar/agent").into_os_string().into_encoded_bytes();
        vec![(b"/belljar/agent".to_vec(), here)]
    }

    /// Variables that every command of the guest gets.
    pub(crate) fn env(&self) -> Vec<(OsString, OsString)> {
        let shares: Vec<String> = self.shares.iter().map(|(tag, path)| format!("{tag}={}", path.display())).collect();
        let pairs = [
            ("PATH", self.path("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
            ("HOME", self.root.join("root").into()),
            ("TMPDIR", self.root.join("tmp").into()),
            ("TERM", "vt220".into()),
            ("USER", "root".into()),
            (applet::CONTROL, self.root.join("control").into()),
            (applet::SHARES, shares.join("\n").into()),
        ];
        let own = pairs.into_iter().map(|(k, v): (&str, OsString)| (k.into(), v));
        // So that a test finds what was left of it, and steers the applets.
        let passed = std::env::vars_os().filter(|(k, _)| {
            let k = k.as_bytes();
            k.starts_with(b"BELLJAR_TEST_") || k.starts_with(b"FAKE_GUEST_")
        });
        passed.chain(own).collect()
    }

    /// A `PATH` with the applets first.
    pub(crate) fn path(&self, rest: impl AsRef<OsStr>) -> OsString {
        let mut path = self.root.join("bin").into_os_string();
        path.push(":");
        path.push(rest);
        path
    }

    /// A command that dies with this program, in a session of its own, on this terminal if any. It does not inherit the
    /// machine's sockets.
    pub(crate) fn command(&self, tty: Option<&CString>, dir: &Path, argv: &[OsString]) -> io::Result<Command> {
        let tty = tty.map_or_else(|| "-".into(), |t| OsStr::from_bytes(t.as_bytes()).to_owned());
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(CHILD).arg(std::process::id().to_string()).arg(tty).arg(dir).args(argv);
        command.env_clear().envs(self.env());
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let hide = |fd: &i32| Ok(FdMapping { parent_fd: null.as_fd().try_clone_to_owned()?, child_fd: *fd });
        let mappings = self.inherited.iter().map(hide).collect::<io::Result<Vec<_>>>()?;
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        Ok(command)
    }

    /// Starts what [`Guest::command`] made.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<std::process::Child> {
        let child = command.spawn()?;
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(process::Pid::from_child(&child));
        Ok(child)
    }

    /// Ends all that the guest's commands started, and removes the scratch directory unless it is the test's.
    pub(crate) fn clean_up(&self) {
        for group in self.groups.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // Each leads a group of its own, unless it is gone.
            let _gone = process::kill_process_group(group, process::Signal::KILL);
        }
        if self.remove {
            let _left = fs::remove_dir_all(&self.root);
        }
    }
}

/// Starts to obey what the guest's programs write into the control pipe. Steps are played on these tracks, by section.
pub(crate) fn obey(machine: &Arc<Machine>, control: Option<fs::File>, tracks: Vec<(&'static str, Track)>) {
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        let Some(reader) = control else { return };
        for line in io::BufRead::lines(io::BufReader::new(reader)).map_while(Result::ok) {
            machine.journal.note("control", line.as_str());
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("o" | "poweroff", _) => machine.shutdown(true, "guest-shutdown"),
                ("b" | "reboot", _) => machine.reset(),
                ("c" | "panic", _) => machine.panicked(),
                ("bite", _) => machine.bite(),
                ("mark", name) => machine.mark(name),
                ("play", step) => {
                    let (section, step) = step.split_once(' ').unwrap_or((step, ""));
                    let track = tracks.iter().find(|(name, _)| *name == section).map(|(_, track)| track.clone());
                    let script = Script::parse(&format!("[{section}]\n{step}"));
                    match (track, script) {
                        (Some(track), Ok(script)) => drop(track.play(script.section(section).unwrap_or_default())),
                        (None, _) => machine.script_failed(&format!("there is no track {section}")),
                        (_, Err(e)) => machine.script_failed(&e.to_string()),
                    }
                }
                _ => {}
            }
        }
    });
}

/// Tag and directory of each share on the command line.
fn shares(args: &Args) -> Vec<(String, PathBuf)> {
    let mut shares = Vec::new();
    for dev in args.all("device") {
        let (Some(tag), Some(id)) = (dev.get("mount_tag"), dev.get("fsdev")) else { continue };
        let path = args.all("fsdev").find(|f| f.id() == Some(id)).and_then(|f| f.get("path"));
        // By its name on the host: what plays the guest has none of this program's descriptors.
        let real = |p: &str| fs::canonicalize(p).unwrap_or_else(|_| p.into());
        shares.extend(path.map(|p| (tag.to_owned(), real(p))));
    }
    shares
}

/// The file behind the disk on which Belljar puts shares.
fn share_disk(args: &Args) -> Option<PathBuf> {
    let device = args.all("device").find(|device| device.get("serial") == Some(SERIAL))?;
    let node = args.all("blockdev").find(|node| node.get("node-name") == device.get("drive"))?;
    let name = node.get("file.filename")?;
    let Some(set) = name.strip_prefix("/dev/fdset/") else { return Some(name.into()) };
    let added = args.all("add-fd").find(|added| added.get("set") == Some(set))?;
    Some(format!("/proc/self/fd/{}", added.get("fd")?).into())
}

/// First argument of the program as a helper of tests: `--on-terminal TTY PROGRAM ARGS…` runs a program as the leader
/// of a session on a terminal of its own.
pub(crate) const ON_TERMINAL: &str = "--on-terminal";

/// See [`ON_TERMINAL`]. Only returns if it failed.
pub(crate) fn on_terminal(words: &[OsString]) -> ExitCode {
    let [tty, program, args @ ..] = words else { return ExitCode::from(70) };
    let error = match lead_session(tty) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(e) => e,
    };
    complain(&format!("fake-qemu: {}: {error}", program.display()));
    ExitCode::from(70)
}

/// A session of our own, on this terminal.
fn lead_session(tty: &OsStr) -> io::Result<()> {
    process::setsid()?;
    // The first terminal that the leader of a session opens becomes its controlling terminal.
    let tty = rustix::fs::open(Path::new(tty), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&tty)?;
    rustix::stdio::dup2_stdout(&tty)?;
    rustix::stdio::dup2_stderr(&tty)?;
    Ok(())
}

/// The shim: `PARENT TTY DIR PROGRAM ARGS…`. Only returns if it failed.
pub(crate) fn child(words: &[OsString]) -> ExitCode {
    match prepare(words) {
        Ok(mut command) => {
            let error = command.exec();
            complain(&format!("{}: {error}", words[3].display()));
            ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
        }
        Err(e) => {
            complain(&format!("fake-qemu: cannot start a command of the guest: {e}"));
            ExitCode::from(70)
        }
    }
}

fn prepare(words: &[OsString]) -> io::Result<Command> {
    let [parent, tty, dir, program, args @ ..] = words else {
        return Err(io::Error::other("PARENT TTY DIR PROGRAM are needed"));
    };
    process::set_parent_process_death_signal(Some(process::Signal::KILL))?;
    let alive = process::getppid().map(|p| p.as_raw_pid().to_string());
    if alive.as_deref().map(OsStr::new) != Some(parent) {
        return Err(io::Error::other("the machine is gone already"));
    }
    if tty == "-" {
        process::setsid()?;
    } else {
        lead_session(tty)?;
    }
    harmless()?;
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    Ok(command)
}

/// First argument of the program as a helper of tests: `--playground PROGRAM ARGS…`, in a user and a mount namespace of its
/// own, gives it an empty `/mnt` and `/run` and runs the program.
pub(crate) const PLAYGROUND: &str = "--playground";

/// See [`PLAYGROUND`]. Only returns if it failed.
pub(crate) fn playground(words: &[OsString]) -> ExitCode {
    let [program, args @ ..] = words else { return ExitCode::from(70) };
    let error = match lay_out() {
        Ok(()) => Command::new(program).args(args).env(applet::APART, "1").exec(),
        Err(e) => e,
    };
    complain(&format!("fake-qemu: cannot make a playground: {error}"));
    ExitCode::from(70)
}

/// Mounts over what a guest has of its own.
fn lay_out() -> io::Result<()> {
    use rustix::mount::{MountFlags, mount, mount_bind};
    for empty in ["/mnt", "/run"] {
        mount("tmpfs", empty, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    }
    // What is written to these reaches nobody.
    fs::write("/run/.sink", "7\t4\t1\t7\n")?;
    for knob in ["/proc/sysrq-trigger", "/proc/sys/kernel/printk"] {
        if Path::new(knob).exists() {
            mount_bind("/run/.sink", knob)?;
        }
    }
    Ok(())
}

/// Refuses what would change the host instead of the guest.
fn harmless() -> io::Result<()> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        TargetArch,
    };
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refused = applet::refused_system_calls();
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        refused.into_iter().map(|number| (number, Vec::new())).collect();
    // kill(-1, …): everybody; kill(1, …): the guest's init, which is the host's.
    let mut kill = Vec::new();
    for pid in [u64::from(u32::MAX), 1] {
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, pid);
        kill.push(is.and_then(|c| SeccompRule::new(vec![c])).map_err(io::Error::other)?);
    }
    rules.insert(applet::SYS_KILL, kill);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(1), arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// Replaces paths in a stream of bytes, holding back only what may still become one of them.
#[derive(Debug, Default)]
pub(crate) struct Rewriter {
    rules: Vec<(Vec<u8>, Vec<u8>)>,
    held: Vec<u8>,
}

impl Rewriter {
    /// Replaces each first by its second.
    pub(crate) fn new(rules: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        Self { rules, held: Vec::new() }
    }

    /// The next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.held.push(byte);
            while !self.held.is_empty() {
                if let Some((_, to)) = self.rules.iter().find(|(from, _)| *from == self.held) {
                    out.extend_from_slice(to);
                    self.held.clear();
                } else if self.rules.iter().any(|(from, _)| from.starts_with(&self.held)) {
                    break;
                } else {
                    out.push(self.held.remove(0));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_rewritten_across_pieces() {
        let rules = vec![(b"/mnt/hostos".to_vec(), b"/s/w".to_vec()), (b"/proc/sys".to_vec(), b"/s/p".to_vec())];
        let mut rewriter = Rewriter::new(rules);
        let mut out = rewriter.push(b"cd /mnt/ho");
        assert_eq!(out, b"cd ");
        out.extend(rewriter.push(b"stos/x && echo o >/proc/sysrq-trigger; ls /mnt//proc/sys\n"));
        assert_eq!(String::from_utf8_lossy(&out), "cd /s/w/x && echo o >/s/prq-trigger; ls /mnt//s/p\n");
    }
}
