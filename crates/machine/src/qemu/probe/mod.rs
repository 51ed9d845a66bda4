//! What the QEMU at hand is and has, and whether KVM really runs a guest.
//!
//! `/dev/kvm` that opens, and even creates a machine, proves nothing: nested or emulated KVM may be slower than translation by
//! an order of magnitude, or hang in a stock guest's first instructions. So a guest of a few instructions is run, with the
//! stock firmware, and has to be done in less time than real KVM needs by far. The answer is remembered in the cache.

#![expect(clippy::disallowed_methods, reason = "it blocks in a thread of its own, and measures what the host can do")]

pub(crate) mod remember;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant, SystemTime},
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

use belljar_guest_spec::Word;

use super::{
    args::Accel,
    descriptors::{Descriptors, FdSet, Purpose},
    platform::{Kvm, Platform, ProbeGuest},
    process::stat,
    sandbox::Shim,
};
use crate::share::{ninep, virtiofs};
use remember::Memory;

/// The oldest major and minor version that Belljar works with.
pub const OLDEST: (u32, u32) = (7, 2);
/// How long a question to QEMU may take; it answers in a twentieth of a second.
const ASK_LIMIT: Duration = Duration::from_secs(20);
/// How long the probe's guest may compute under KVM. Real KVM needs less than a third of a second, firmware included.
/// Processor time counts, so that a busy host is not taken for one without KVM.
const KVM_LIMIT: Duration = Duration::from_secs(1);
/// How many times as long it may take by the clock.
const CLOCK_FACTOR: u32 = 6;
/// How often its processor time is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a "no" is believed: the machine may just have been busy.
const NO_FOR: Duration = Duration::from_secs(3600);
/// Longest answer of QEMU that is read.
const MAX_ANSWER: u64 = 4 << 20;
/// Devices for a TPM: of PCs, of machines with a device tree, of POWER. No QEMU has two of these that suit its machines.
const TPMS: [&str; 3] = ["tpm-tis", "tpm-tis-device", "tpm-spapr"];
/// Devices that a guest has only where they are asked for.
const FURTHER: &[&str] = &[
    "i6300esb",
    "ib700",
    "diag288",
    "virtio-balloon-pci",
    "virtio-balloon-ccw",
    "VGA",
    "virtio-vga",
    "virtio-gpu-pci",
    "virtio-gpu-ccw",
    "bochs-display",
    "cirrus-vga",
    "intel-hda",
    "hda-duplex",
    "AC97",
    "ES1370",
    "virtio-sound-pci",
    "virtio-sound-ccw",
    "pci-serial",
    "nvdimm",
];
/// The device node.
const KVM: &str = "/dev/kvm";

/// A QEMU that can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuInfo {
    /// The program.
    pub path: PathBuf,
    /// Why this one.
    pub why: String,
    /// Its version.
    pub version: Version,
    /// Built with seccomp.
    pub has_sandbox: bool,
    /// Built with 9p over virtio.
    pub has_9p: bool,
    /// Built with a graphics card on the ISA bus.
    pub has_isa_vga: bool,
    /// Built with virtiofs.
    pub has_virtiofs: bool,
    /// Its devices for a TPM, the one to take first. An answer that is kept from before there was this question is none.
    pub tpms: Vec<String>,
    /// Those of its devices that a guest has only where they are asked for.
    pub devices: Vec<String>,
}

#[cfg(test)]
impl QemuInfo {
    /// One that has nothing but what every QEMU has.
    pub(crate) fn of_nothing() -> Self {
        Self {
            path: "qemu".into(),
            why: String::new(),
            version: Version { major: 7, minor: 2, micro: 0 },
            has_sandbox: true,
            has_9p: true,
            has_isa_vga: false,
            has_virtiofs: true,
            tpms: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// Reads the first line of `--version`.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.split_once("version ")?.1;
        let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = number.split('.').map(|p| p.parse().ok());
        Some(Self { major: parts.next()??, minor: parts.next()??, micro: parts.next().flatten().unwrap_or(0) })
    }
}

/// Why there is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// None is there.
    #[error(
        "there is no QEMU for {}: looked for {} in PATH{}\ninstall {} or name one with --qemu", platform.processor.arch,
        platform.programs.join(", "), platform.places.iter().map(|p| format!(", {p}")).collect::<String>(), platform.packages
    )]
    None {
        /// What it is to make machines of.
        platform: &'static Platform,
    },
    /// It could not be started, or did not answer.
    #[error("cannot ask {} for its {what}: {source}\nname another with --qemu", path.display())]
    Ask {
        /// Which program.
        path: PathBuf,
        /// What was asked.
        what: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// It answers as no QEMU does.
    #[error("{} does not say what version it is, so it is no QEMU: {said:?}\nname another with --qemu", path.display())]
    NotQemu {
        /// Which program.
        path: PathBuf,
        /// Its first line.
        said: String,
    },
    /// It is too old.
    #[error("{} is QEMU {version}; Belljar needs {}.{} or later", path.display(), OLDEST.0, OLDEST.1)]
    Old {
        /// Which program.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// Which accelerator, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccelChoice {
    /// The accelerator.
    pub accel: Accel,
    /// What speaks for it, for a person.
    pub why: String,
    /// Where it is not KVM although it might be: what to do.
    pub mend: Option<String>,
    /// Whether the answer was found by an earlier run.
    pub remembered: bool,
}

/// The accelerator that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// There is no way.
    #[error("KVM was asked for (--accel kvm) and cannot be used: {why}\n{mend}")]
    NoKvm {
        /// Why not.
        why: String,
        /// What to do.
        mend: String,
    },
}

/// Finds QEMU for a platform, `named` or in `path` (the value of `PATH`), and what it has.
///
/// # Errors
/// See [`ProbeError`].
pub fn find_qemu(
    platform: &'static Platform,
    named: Option<&Path>,
    path: Option<&OsStr>,
    cache: &Path,
) -> Result<QemuInfo, ProbeError> {
    let (program, why) = find_program(platform, named, path)?;
    let memory = Memory::new(cache);
    // What was asked is part of it: another Belljar may have asked for less.
    let asked = FURTHER.join(",");
    let key = identity(&program).map(|program| format!("{}\0{asked}\0{program}", platform.processor.name));
    if let Some(known) = key.as_deref().and_then(|k| memory.recall::<QemuInfo>("qemu", k)) {
        return Ok(QemuInfo { why, path: program, ..known });
    }
    let info = interview(platform, program, why)?;
    if let Some(key) = key {
        memory.keep("qemu", &key, &info);
    }
    Ok(info)
}

/// Finds the program, with what speaks for it; see [`find_qemu`].
///
/// # Errors
/// Where there is none.
pub fn find_program(
    platform: &'static Platform,
    named: Option<&Path>,
    path: Option<&OsStr>,
) -> Result<(PathBuf, String), ProbeError> {
    match named {
        Some(named) => Ok((look_up(named, path).unwrap_or_else(|| named.to_owned()), "named by the user".to_owned())),
        None => first_found(platform, path).ok_or(ProbeError::None { platform }),
    }
}

fn first_found(platform: &Platform, path: Option<&OsStr>) -> Option<(PathBuf, String)> {
    let in_path = platform.programs.iter().find_map(|name| look_up(Path::new(name), path));
    in_path.map(|p| (p, "the first in PATH".into())).or_else(|| {
        let place = platform.places.iter().map(Path::new).find(|p| is_program(p))?;
        Some((place.to_owned(), "where the distribution keeps it".into()))
    })
}

/// As `execvp` would.
pub(crate) fn look_up(name: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return is_program(name).then(|| name.to_owned());
    }
    std::env::split_paths(path?).map(|dir| dir.join(name)).find(|p| is_program(p))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0)
}

/// What makes a program file the same as before.
pub(crate) fn identity(program: &Path) -> Option<String> {
    let m = program.metadata().ok()?;
    let real = program.canonicalize().ok()?;
    Some(format!("{}\0{}\0{}\0{}\0{}.{}", real.display(), m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
}

fn interview(platform: &Platform, path: PathBuf, why: String) -> Result<QemuInfo, ProbeError> {
    let ask = |what, args: &[&str]| {
        answer(&path, args).map_err(|source| ProbeError::Ask { path: path.clone(), what, source })
    };
    let (_, said) = ask("version", &["--version"])?;
    let first = said.lines().next().unwrap_or_default().to_owned();
    let Some(version) = Version::parse(&first) else { return Err(ProbeError::NotQemu { path, said: first }) };
    if (version.major, version.minor) < OLDEST {
        return Err(ProbeError::Old { path, version });
    }
    let (listed, devices) = ask("devices", &["-device", "help"])?;
    // Making the list loads every module, and ends in an abort where another build's are in the way. Of one device
    // it speaks without them; of one that it has not, only on standard error.
    let has = |device: &str| -> Result<bool, ProbeError> {
        let is_listed = devices.contains(&format!("\"{device}\""));
        Ok(is_listed
            || (!listed.success() && ask("a device", &["-device", &format!("{device},help")])?.1.contains(device)))
    };
    let has_9p = has(&platform.default_machine().transport.device(ninep::DEVICE))?;
    let has_virtiofs = has(&platform.default_machine().transport.device(virtiofs::DEVICE))?;
    let has_isa_vga = has(crate::screen::CARD)?;
    let mut tpms = Vec::new();
    for device in TPMS {
        if has(device)? {
            tpms.push(device.to_owned());
        }
    }
    let mut further = Vec::new();
    for device in FURTHER {
        if has(device)? {
            further.push((*device).to_owned());
        }
    }
    let (sandboxed, _) = ask("sandbox", &["-sandbox", super::args::SANDBOX, "-machine", "help"])?;
    Ok(QemuInfo {
        why,
        version,
        has_sandbox: sandboxed.success(),
        has_9p,
        has_virtiofs,
        has_isa_vga,
        tpms,
        devices: further,
        path,
    })
}

/// Runs a program that answers and ends.
pub(crate) fn answer(program: &Path, args: &[&str]) -> io::Result<(ExitStatus, String)> {
    let mut child =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let out = child.stdout.take();
    // The answer may be longer than a pipe holds, so it is read while the program runs.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(out) = out {
            out.take(MAX_ANSWER).read_to_end(&mut text)?;
        }
        Ok::<_, io::Error>(text)
    });
    let Some(status) = wait(&mut child, ASK_LIMIT)? else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", ASK_LIMIT.as_secs())));
    };
    let text = reader.join().map_err(|_| io::Error::other("reading its answer broke off"))??;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// Waits for a child; kills it when its time is over.
fn wait(child: &mut std::process::Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = match Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
        Some(pid) => ends_within(&pidfd_open(pid, PidfdFlags::empty())?, limit)?,
        None => false,
    };
    finish(child, ended)
}

/// Waits for a child; kills it when it has used up its processor time, or far more of the clock's.
fn wait_while_busy(child: &mut std::process::Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut ended = false;
    if let Some(pid) = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        let used = || stat::read(pid).map_or(Duration::ZERO, |stat| stat.cpu);
        while !ended && started.elapsed() < limit * CLOCK_FACTOR && used() < limit {
            ended = ends_within(&fd, LOOK)?;
        }
    }
    finish(child, ended)
}

fn ends_within(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            // A signal that somebody handles, such as a change of the terminal's size.
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Reaps a child; one that has not ended is killed.
fn finish(child: &mut std::process::Child, ended: bool) -> io::Result<Option<ExitStatus>> {
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

/// Chooses the accelerator for a platform, by trying.
///
/// # Errors
/// Only where KVM was asked for and cannot be had.
pub fn choose_accel(
    platform: &Platform,
    requested: Option<Accel>,
    qemu: &QemuInfo,
    shim: &Shim,
    cache: &Path,
) -> Result<AccelChoice, AccelError> {
    if requested == Some(Accel::Tcg) {
        let why = "asked for".into();
        return Ok(AccelChoice { accel: Accel::Tcg, why, mend: None, remembered: false });
    }
    if !platform.is_hosts() && requested.is_none() {
        // Nothing is amiss on this host.
        let why = format!("guests for {} are emulated on a host of another processor", platform.processor.arch);
        return Ok(AccelChoice { accel: Accel::Tcg, why, mend: None, remembered: false });
    }
    let (answer, remembered) = kvm(platform, requested, qemu, shim, cache);
    match (answer, requested) {
        (Answer::Yes { millis }, _) => {
            let why = format!("a guest of a few instructions ran on it in {millis} ms");
            Ok(AccelChoice { accel: Accel::Kvm, why, mend: None, remembered })
        }
        (Answer::No { why, mend }, Some(Accel::Kvm)) => Err(AccelError::NoKvm { why, mend }),
        (Answer::No { why, mend }, _) => Ok(AccelChoice { accel: Accel::Tcg, why, mend: Some(mend), remembered }),
    }
}

/// What came of trying KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Yes { millis: u64 },
    No { why: String, mend: String },
}

/// An answer, and when it was found.
#[derive(Debug, Serialize, Deserialize)]
struct Dated {
    answer: Answer,
    at: SystemTime,
}

fn kvm(platform: &Platform, requested: Option<Accel>, qemu: &QemuInfo, shim: &Shim, cache: &Path) -> (Answer, bool) {
    let kvm = match kvm_of(platform) {
        Ok(kvm) => kvm,
        Err(no) => return (no, false),
    };
    // Rights may change at any moment, and asking costs nothing.
    if let Some(no) = cannot_open(kvm) {
        return (no, false);
    }
    let memory = Memory::new(cache);
    let key = kvm_identity(&qemu.path);
    if let Some(known) = key.as_deref().and_then(|k| memory.recall::<Dated>("kvm", k)) {
        // Whoever asks for KVM wants it tried.
        let fresh = requested.is_none() && known.at.elapsed().is_ok_and(|age| age < NO_FOR);
        if fresh || matches!(known.answer, Answer::Yes { .. }) {
            return (known.answer, true);
        }
    }
    let answer = match try_guest(&kvm.probe, Accel::Kvm, qemu, shim, KVM_LIMIT) {
        Ok(took) => Answer::Yes { millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) },
        Err(why) => Answer::No {
            why: format!("{KVM} opens, but {why}"),
            mend: "this machine is probably virtual, without (working) nested virtualisation: switch that on in its host, or \
                   run on hardware; `belljar doctor --fresh` tries again"
                .into(),
        },
    };
    if let Some(key) = key {
        memory.keep("kvm", &key, &Dated { answer: answer.clone(), at: SystemTime::now() });
    }
    (answer, false)
}

/// KVM, where it can be of use at all.
fn kvm_of(platform: &Platform) -> Result<&Kvm, Answer> {
    let arch = platform.processor.arch;
    if !platform.is_hosts() {
        return Err(Answer::No {
            why: format!(
                "KVM runs guests of the host's own processor only ({}), and this one is {arch}",
                std::env::consts::ARCH
            ),
            mend: format!("run it on a host whose processor is {arch}"),
        });
    }
    platform.kvm.as_ref().ok_or_else(|| Answer::No {
        why: format!("Belljar has no guest for {arch} by which it could be tried whether KVM works"),
        mend: "nothing helps but one that is made for it; please report that you want it".into(),
    })
}

/// The cheap reasons.
fn cannot_open(kvm: &Kvm) -> Option<Answer> {
    let Kvm { switches, modules, .. } = kvm;
    let error = std::fs::File::options().read(true).write(true).open(KVM).err()?;
    let (why, mend) = match error.kind() {
        io::ErrorKind::NotFound => (
            format!("there is no {KVM}"),
            format!(
                "switch virtualisation on in the firmware ({switches}) and load {modules}; in a container pass the device in \
                 (--device /dev/kvm)"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("{KVM} is there, but not for this user"),
            "add the user to the device's group (usermod -aG kvm USER, then log in anew), or let udev give the rights"
                .into(),
        ),
        _ => (
            format!("{KVM} cannot be opened: {error}"),
            format!("check that the modules {modules} are loaded and virtualisation is on in the firmware"),
        ),
    };
    Some(Answer::No { why, mend })
}

/// What makes an answer about KVM the same question as before.
fn kvm_identity(qemu: &Path) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let node = std::fs::metadata(KVM).ok()?;
    let program = identity(qemu)?;
    Some(format!("{}\0{}\0{}\0{}\0{}\0{program}", boot.trim(), node.rdev(), node.mode(), node.uid(), node.gid()))
}

/// Runs the guest of a few instructions; gives how long it took, or why it did not.
fn try_guest(
    guest: &ProbeGuest,
    accel: Accel,
    qemu: &QemuInfo,
    shim: &Shim,
    limit: Duration,
) -> Result<Duration, String> {
    let cannot = |what: &str, error: io::Error| format!("{what}: {error}");
    let mut disk = tempfile::tempfile().map_err(|e| cannot("no place for the probe's disk", e))?;
    disk.write_all(&(guest.disk)()).map_err(|e| cannot("the probe's disk could not be written", e))?;
    // QEMU takes a descriptor of a set only if it was opened for just what is wanted of it.
    let disk = std::fs::File::open(format!("/proc/self/fd/{}", disk.as_raw_fd()))
        .map_err(|e| cannot("the probe's disk could not be opened", e))?;
    let mut descriptors = Descriptors::default();
    let disk = descriptors.add_set(Purpose::Below, disk);
    let mut command = shim.command(&qemu.path);
    command.args(words(guest, accel, qemu.has_sandbox, disk));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mappings = descriptors.without_lines().map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
    command.fd_mappings(mappings.collect()).map_err(|e| format!("the probe's disk could not be handed over: {e}"))?;
    let started = Instant::now();
    let mut child = command.spawn().map_err(|e| cannot("the probe could not be started", e))?;
    let ended = wait_while_busy(&mut child, limit).map_err(|e| cannot("the probe could not be waited for", e))?;
    match ended {
        None => Err(format!(
            "a guest of a few instructions was not done after {:.1} s, which takes a tenth of that where KVM works",
            started.elapsed().as_secs_f64()
        )),
        Some(status) if status.code() == Some(guest.exit_code) => Ok(started.elapsed()),
        Some(status) => {
            let mut said = String::new();
            if let Some(stderr) = child.stderr.take() {
                // What cannot be read is not said.
                drop(stderr.take(2000).read_to_string(&mut said));
            }
            let said = crate::console::sanitize::sanitize_line(said.trim().as_bytes());
            Err(format!("a guest of a few instructions did not run: QEMU ended with {status}: {said}"))
        }
    }
}

fn words(guest: &ProbeGuest, accel: Accel, sandbox: bool, disk: FdSet) -> Vec<OsString> {
    let mut words: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-machine", guest.machine, "-m", "32"]
            .map(String::from)
            .to_vec();
    if sandbox {
        words.extend(["-sandbox".into(), super::args::SANDBOX.into()]);
    }
    words.extend(["-accel".into(), accel.word().into()]);
    let FdSet { fd, set } = disk;
    words.extend(["-add-fd".into(), format!("fd={fd},set={set}")]);
    words.extend([
        "-blockdev".into(),
        format!(
            "driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename={},file.read-only=on,file.locking=off",
            disk.path()
        ),
    ]);
    words.extend(guest.devices.iter().flat_map(|device| ["-device", device]).map(String::from));
    words.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests;
