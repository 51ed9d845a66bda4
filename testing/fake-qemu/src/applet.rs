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

use belljar_share_disk::layout::cksum;

use crate::machine::complain;

/// Variable with the path of the control pipe.
pub(crate) const CONTROL: &str = "FAKE_QEMU_CONTROL";
/// Variable with `tag=directory` lines.
pub(crate) const SHARES: &str = "FAKE_QEMU_SHARES";
/// Variable that says that `/mnt` and `/run` are not the host's.
pub(crate) const APART: &str = "FAKE_GUEST_APART";
/// Variable of the test: `off` means a kernel without 9p.
const NINE_P: &str = "FAKE_GUEST_9P";
/// Variable of the test: `broken` means that our agent cannot be executed there.
const AGENT: &str = "FAKE_GUEST_AGENT";

/// Variable of the test: names of tools, with commas, that the guest does not have.
const LACKS: &str = "FAKE_GUEST_LACKS";
/// Variable of the test: what `base64 -d` does with more than a line: `damaged` (a byte is another), `once` (only the first time), `marks`
/// (the mark `piece` at its end), `hang`.
const BASE64: &str = "FAKE_GUEST_BASE64";

/// Tools that the guest may lack.
const TOOLS: [&str; 9] = ["base64", "gunzip", "gzip", "zcat", "cksum", "sha256sum", "wc", "dd", "head"];

/// Every applet.
pub(crate) const NAMES: [&str; 31] = [
    "base64",
    "gunzip",
    "gzip",
    "zcat",
    "cksum",
    "sha256sum",
    "wc",
    "dd",
    "head",
    "chmod",
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
    "machine",
    "panic",
    "bite",
    "swapoff",
    "busybox",
];

/// Number of `kill` on x86-64.
pub(crate) const SYS_KILL: i64 = 62;

/// System calls that a guest's command may not do to the host. x86-64, as this program pretends to be.
pub(crate) fn refused_system_calls() -> Vec<i64> {
    // reboot, mount, umount2, init_module, finit_module, delete_module, sethostname, setdomainname, settimeofday,
    // clock_settime, syslog, swapon, swapoff, pivot_root, chroot, kexec_load, kexec_file_load, iopl, ioperm, connect
    vec![169, 165, 166, 175, 313, 176, 170, 171, 164, 227, 103, 167, 168, 155, 161, 246, 320, 172, 173, 42]
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
        "bite" => end("bite"),
        "mark" => tell(&format!("mark {}", args.join(" "))),
        "machine" => machine(args),
        "agent" => agent(args),
        tool if TOOLS.contains(&tool) && lacks(tool) => {
            complain(&format!("{tool}: not found"));
            127
        }
        "base64" if has("-d") => base64(),
        tool if TOOLS.contains(&tool) => pass(tool, args),
        "chmod" => chmod(args),
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

/// Has steps of a script played now: `machine SECTION STEP…`.
fn machine(args: &[String]) -> u8 {
    let Some((section, steps)) = args.split_first() else { return 2 };
    steps.iter().map(|step| tell(&format!("play {section} {step}"))).max().unwrap_or(2)
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

/// Whether the test says that the guest does not have a tool.
fn lacks(tool: &str) -> bool {
    env::var(LACKS).is_ok_and(|names| names.split(',').any(|name| name == tool))
}

/// `base64 -d`.
fn base64() -> u8 {
    let decode = || -> std::io::Result<u8> {
        let mut decoder = Command::new("/usr/bin/base64").arg("-d").stdout(std::process::Stdio::piped()).spawn()?;
        let mut bytes = Vec::new();
        if let Some(mut stdout) = decoder.stdout.take() {
            std::io::Read::read_to_end(&mut stdout, &mut bytes)?;
        }
        let code = decoder.wait()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        let state = env::temp_dir().join("base64-damaged");
        let how = env::var(BASE64).unwrap_or_default();
        if bytes.len() > 1000 {
            match how.as_str() {
                "hang" => loop {
                    std::thread::park();
                },
                "once" if state.exists() => {}
                "damaged" | "once" => {
                    bytes[500] ^= 1;
                    fs::write(&state, "")?;
                }
                "marks" => {
                    tell("mark piece");
                }
                _ => {}
            }
        }
        std::io::stdout().write_all(&bytes)?;
        Ok(code)
    };
    decode().unwrap_or(1)
}

/// The agent that was typed would look for its port on the host: the applet stands in for it from here on.
fn chmod(args: &[String]) -> u8 {
    let Some(file) = args.last().map(Path::new).filter(|file| file.ends_with("agent") && file.is_file()) else {
        return pass("chmod", args);
    };
    let sum = fs::read(file).map(|typed| format!("{} {}", cksum(&typed), typed.len()));
    let replaced = sum.and_then(|sum| {
        fs::write(file.with_extension("sum"), sum)?;
        fs::remove_file(file)?;
        symlink(env::current_exe()?, file)
    });
    u8::from(replaced.is_err())
}

/// Our agent, started by hand on the console: the script's agent answers on the port.
fn agent(args: &[String]) -> u8 {
    if env::var_os(AGENT).is_some_and(|v| v == "broken") {
        complain("agent: cannot execute binary file: Exec format error");
        return 126;
    }
    match args.first().map(String::as_str) {
        Some("version") => 0,
        Some("sum") => {
            let own = env::args_os().next().map(|name| PathBuf::from(name).with_extension("sum"));
            own.and_then(|file| fs::read_to_string(file).ok()).map_or(1, |sum| say(&sum))
        }
        _ => tell("mark agent"),
    }
}

/// `mount … -t 9p … TAG PATH`: a link to the share's directory in place of the mount point.
fn mount(args: &[String]) -> u8 {
    let mut plain = Vec::new();
    let mut kind = "";
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-t" => kind = words.next().map_or("", String::as_str),
            "-o" => {
                words.next();
            }
            w if w.starts_with('-') => {}
            w => plain.push(w),
        }
    }
    if kind != "9p" {
        return 0;
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
    if !is_own(at) {
        return fail("permission denied");
    }
    // What a machine before this one had mounted in the same playground.
    let before = if tag == "belljar-ctl" { Path::new(at).join("agent") } else { PathBuf::from(at) };
    if before.is_symlink() && fs::remove_file(&before).is_ok() && tag != "belljar-ctl" {
        return symlink(dir, at).map_or_else(|e| fail(&e.to_string()), |()| 0);
    }
    let made = fs::remove_dir(at).and_then(|()| {
        if tag == "belljar-ctl" {
            // Our real agent would look for ports on the host: the applet stands in for it.
            fs::create_dir(at)?;
            symlink(env::current_exe()?, Path::new(at).join("agent"))
        } else {
            symlink(dir, at)
        }
    });
    made.map_or_else(|e| fail(&e.to_string()), |()| 0)
}

/// Whether a path is the guest's and not the host's.
fn is_own(path: &str) -> bool {
    let own = if env::var_os(APART).is_some() { &["/run", "/mnt"][..] } else { &[] };
    // Shares are the guest's, too, but for its root, which is read-only.
    let shares = env::var(SHARES).unwrap_or_default();
    let shares = shares.lines().filter_map(|l| l.split_once('=')).filter(|(tag, _)| *tag != "belljar-root");
    let shares: Vec<PathBuf> = shares.map(|(_, dir)| dir.into()).collect();
    let mut own = own.iter().map(PathBuf::from).chain([env::temp_dir()]).chain(shares);
    own.any(|dir| Path::new(path).starts_with(dir))
}

/// Only where the guest is writable: elsewhere it would be the host that gets the directory.
fn mkdir(args: &[String]) -> u8 {
    let outside = |word: &&String| word.starts_with('/') && !is_own(word);
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
