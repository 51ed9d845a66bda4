//! Programs of the guest that must not be the host's: found first in `PATH`, they tell the machine or pretend.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::machine::complain;

/// Variable with the path of the control pipe.
pub(crate) const CONTROL: &str = "FAKE_QEMU_CONTROL";
/// Variable with `tag=directory` lines.
pub(crate) const SHARES: &str = "FAKE_QEMU_SHARES";
/// Variable of the test: `off` means a kernel without 9p.
const NINE_P: &str = "FAKE_GUEST_9P";
/// Variable of the test: `broken` means that our agent cannot be executed there.
const AGENT: &str = "FAKE_GUEST_AGENT";

/// Every applet.
pub(crate) const NAMES: [&str; 19] = [
    "poweroff",
    "halt",
    "shutdown",
    "reboot",
    "systemctl",
    "init",
    "telinit",
    "mount",
    "modprobe",
    "insmod",
    "dmesg",
    "mkdir",
    "mknod",
    "sync",
    "hostname",
    "mark",
    "panic",
    "swapoff",
    "busybox",
];

/// Number of `kill` on x86-64.
pub(crate) const SYS_KILL: i64 = 62;

/// System calls that a guest's command may not do to the host. x86-64, as this program pretends to be.
pub(crate) fn refused_system_calls(apart: bool) -> Vec<i64> {
    // mount, umount2, pivot_root, chroot
    const MOUNTS: [i64; 4] = [165, 166, 155, 161];
    // reboot, init_module, finit_module, delete_module, sethostname, setdomainname, settimeofday, clock_settime,
    // syslog, swapon, swapoff, kexec_load, kexec_file_load, iopl, ioperm, connect
    const OTHERS: [i64; 16] = [169, 175, 313, 176, 170, 171, 164, 227, 103, 167, 168, 246, 320, 172, 173, 42];
    if apart { OTHERS.to_vec() } else { [&OTHERS[..], &MOUNTS[..]].concat() }
}

/// Runs the applet that this program was called as, if it was.
pub(crate) fn main(words: &[OsString]) -> Option<ExitCode> {
    env::var_os(CONTROL)?;
    let name = Path::new(words.first()?).file_name()?.to_str()?;
    let args: Vec<String> = words[1..].iter().map(|w| w.to_string_lossy().into_owned()).collect();
    if name != "agent" && !NAMES.contains(&name) {
        return None;
    }
    Some(ExitCode::from(run(name, &args)))
}

fn run(name: &str, args: &[String]) -> u8 {
    let has = |word: &str| args.iter().any(|a| a == word);
    match name {
        "poweroff" | "halt" => end("poweroff"),
        "reboot" => end("reboot"),
        "shutdown" => end(if has("-r") { "reboot" } else { "poweroff" }),
        "init" | "telinit" if has("0") => end("poweroff"),
        "init" | "telinit" if has("6") => end("reboot"),
        "systemctl" if has("poweroff") || has("halt") => end("poweroff"),
        "systemctl" if has("reboot") => end("reboot"),
        "panic" => end("panic"),
        "mark" => tell(&format!("mark {}", args.join(" "))),
        "agent" => agent(),
        "busybox" => match args.split_first() {
            Some((first, rest)) if NAMES.contains(&first.as_str()) => run(first, rest),
            _ => pass("busybox", args),
        },
        "mount" => mount(args),
        "mkdir" => mkdir(args),
        "mknod" => 1,
        "hostname" if args.is_empty() => say("fake"),
        _ => 0,
    }
}

fn say(text: &str) -> u8 {
    u8::from(writeln!(std::io::stdout(), "{text}").is_err())
}

/// Writes to the control pipe.
fn tell(line: &str) -> u8 {
    let pipe = env::var_os(CONTROL).unwrap_or_default();
    let wrote =
        fs::OpenOptions::new().append(true).open(pipe).and_then(|mut p| p.write_all(format!("{line}\n").as_bytes()));
    u8::from(wrote.is_err())
}

/// Tells the machine that it ends, and waits for it.
fn end(how: &str) -> u8 {
    // As the machine's own end would end it.
    let killed = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    if killed.is_err() || tell(how) != 0 {
        return 1;
    }
    loop {
        std::thread::park();
    }
}

/// Our agent, started by hand on the console: the script's agent answers on the port.
fn agent() -> u8 {
    if env::var_os(AGENT).is_some_and(|v| v == "broken") {
        complain("agent: cannot execute binary file: Exec format error");
        return 126;
    }
    tell("mark agent")
}

/// `mount … -t 9p … TAG PATH`: the share's directory, mounted there; other kinds are real.
fn mount(args: &[String]) -> u8 {
    let mut plain = Vec::new();
    let (mut kind, mut options) = ("", "");
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-t" => kind = words.next().map_or("", String::as_str),
            "-o" => options = words.next().map_or("", String::as_str),
            w if w.starts_with('-') => {}
            w => plain.push(w),
        }
    }
    if kind != "9p" {
        return pass("mount", args);
    }
    let [tag, at] = plain[..] else { return 1 };
    let fail = |why: &str| {
        complain(&format!("mount: {at}: {why}."));
        32
    };
    if env::var_os(NINE_P).is_some_and(|v| v == "off") {
        return fail("unknown filesystem type '9p'");
    }
    let shares = env::var(SHARES).unwrap_or_default();
    let Some(dir) = shares.lines().find_map(|l| l.strip_prefix(tag)?.strip_prefix('=')) else {
        return fail(&format!("special device {tag} does not exist"));
    };
    let read_only = options.split(',').any(|o| o == "ro");
    match mount_share(tag, dir, at, read_only) {
        Ok(()) => 0,
        Err(e) => fail(&e.to_string()),
    }
}

fn mount_share(tag: &str, dir: &str, at: &str, read_only: bool) -> std::io::Result<()> {
    use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
    if tag == "belljar-ctl" {
        // Our real agent would look for ports on the host: the applet stands in for it.
        mount("tmpfs", at, "tmpfs", MountFlags::NODEV, None)?;
        symlink(env::current_exe()?, Path::new(at).join("agent"))?;
        return Ok(());
    }
    mount_bind(dir, at)?;
    if read_only {
        mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, "")?;
    }
    Ok(())
}

/// Only where the guest is writable: elsewhere it would be the host that gets the directory.
fn mkdir(args: &[String]) -> u8 {
    let writable = ["/run", "/mnt"].map(PathBuf::from).into_iter().chain([env::temp_dir()]);
    let writable: Vec<PathBuf> = writable.collect();
    let outside = |word: &&String| word.starts_with('/') && !writable.iter().any(|w| Path::new(word).starts_with(w));
    if let Some(word) = args.iter().find(outside) {
        complain(&format!("mkdir: cannot create directory '{word}': Read-only file system"));
        return 1;
    }
    pass("mkdir", args)
}

/// The host's program of that name.
fn pass(name: &str, args: &[String]) -> u8 {
    let found = ["/bin", "/usr/bin"].map(|d| Path::new(d).join(name)).into_iter().find(|p| p.exists());
    let Some(program) = found else {
        complain(&format!("{name}: not found"));
        return 127;
    };
    let status = Command::new(program.as_os_str() as &OsStr).args(args).status();
    status.ok().and_then(|s| s.code()).and_then(|c| u8::try_from(c).ok()).unwrap_or(1)
}
