//! Stands in for `qemu-system-x86_64` in tests: takes QEMU's arguments and complains about wrong ones, speaks QMP, and
//! plays a script on the serial line and the agent's port. See `README.md`.

mod agent;
mod applet;
mod args;
mod channel;
mod check;
mod guest;
mod hardware;
mod info;
mod journal;
// The agent's own, so that files are looked for here as there.
#[path = "../../../agent/src/look.rs"]
mod look;
mod machine;
mod migrate;
mod qmp;
mod rng;
mod screen;
mod script;
mod sshd;
mod terminal;
mod track;
mod virtiofsd;

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal, getpid, kill_process, pidfd_getfd, pidfd_open};
use serde_json::Value;

use args::Args;
use channel::Channel;
use guest::Guest;
use journal::Journal;
use machine::{End, Machine, complain};
use qmp::Control;
use script::{Script, Step};
use track::Track;

/// Exit code for a caller's or a script's mistake.
const MISTAKE: u8 = 70;

/// What happens without a script: a guest whose agent answers.
const DEFAULT_SCRIPT: &str = "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\n[agent]\nwait banner 80000\nagent\n";

/// Section of the script, and the chardev it is played on.
const TRACKS: [(&str, Option<&str>); 4] =
    [("machine", None), ("serial", Some("console")), ("serial1", Some("serial1")), ("agent", Some("agent"))];

fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    if let Some(code) = applet::main(&words) {
        return code;
    }
    if words.get(1).is_some_and(|w| w == guest::CHILD) {
        return guest::child(&words[2..]);
    }
    if words.get(1).is_some_and(|w| w == guest::PLAYGROUND) {
        return guest::playground(&words[2..]);
    }
    if words.get(1).is_some_and(|w| w == guest::ON_TERMINAL) {
        return guest::on_terminal(&words[2..]);
    }
    if words.get(1).is_some_and(|w| w == virtiofsd::WORD) {
        let words: Vec<String> = words[2..].iter().map(|w| w.to_string_lossy().into_owned()).collect();
        return match virtiofsd::main(&words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                complain(&why);
                ExitCode::FAILURE
            }
        };
    }
    match run(&words) {
        Ok(code) => code,
        Err(e) => {
            complain(&e);
            ExitCode::from(MISTAKE)
        }
    }
}

fn run(words: &[OsString]) -> Result<ExitCode, String> {
    let options: Vec<String> = words[1..].iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let journal = Arc::new(Journal::open(env::var_os("FAKE_QEMU_LOG").map(PathBuf::from).as_deref()));
    journal.note("args", Value::from(options.clone()));
    let (script, name) = script(&options)?;
    let settings = track::options(&script).map_err(|e| e.to_string())?;
    let settings = machine::Options { name, ..settings };
    if let Some(answer) = info::answer(&options, &settings.version) {
        let wrote = std::io::stdout().write_all(answer.as_bytes());
        return Ok(ExitCode::from(u8::from(wrote.is_err())));
    }
    let args = match Args::parse(&options) {
        Ok(args) => args,
        Err(e) => {
            complain(&format!("qemu-system-x86_64: {e}"));
            return Ok(ExitCode::from(1));
        }
    };
    // A probe is a machine of its own, with its own rules.
    let probe = args.all("device").any(|d| d.driver() == "isa-debug-exit");
    let mut wrong = check::command_line(&args);
    if !probe && env::var_os("FAKE_QEMU_CHECK").is_none_or(|v| v != "args") {
        wrong.extend(check::process(&args));
    }
    if !wrong.is_empty() {
        journal.note("caller-wrong", wrong.join("; "));
        return Err(format!("fake-qemu: the caller is wrong: {}", wrong.join("; ")));
    }
    if let Err(why) = migrate::open_memory(&args) {
        complain(&format!("qemu-system-x86_64: {why}"));
        return Ok(ExitCode::from(1));
    }
    power_on(args, &script, settings, journal, probe).map_err(|e| format!("fake-qemu: {e}"))
}

/// Word of the kernel's command line that names a script.
const SCRIPT_WORD: &str = "fake.script=";

/// The script in `FAKE_QEMU_SCRIPT`, a file or a directory of such.
fn script(options: &[String]) -> Result<(Script, Option<String>), String> {
    let mut found = None;
    let text = match env::var_os("FAKE_QEMU_SCRIPT").map(PathBuf::from) {
        None => DEFAULT_SCRIPT.to_owned(),
        Some(path) if path.is_dir() => {
            let line = options.iter().skip_while(|o| *o != "-append").nth(1);
            let name = line.and_then(|l| l.split(' ').find_map(|w| w.strip_prefix(SCRIPT_WORD)));
            // The kernel of one that goes on is in its memory.
            found = name.map(str::to_owned).or_else(|| migrate::script_in_memory(&Args::parse(options).ok()?));
            of_machine(&path, found.as_deref())?
        }
        Some(path) => fs::read_to_string(&path).map_err(|e| format!("fake-qemu: {}: {e}", path.display()))?,
    };
    Ok((Script::parse(&text).map_err(|e| format!("fake-qemu: {e}"))?, found))
}

/// The script of one of several machines: its `NAME.N` for its N-th start, else `NAME`, else the default.
fn of_machine(dir: &Path, name: Option<&str>) -> Result<String, String> {
    let Some(name) = name else { return Ok(DEFAULT_SCRIPT.to_owned()) };
    let start = (1_u32..).find(|n| {
        // Of two that start at the same time one makes the file.
        let made = dir.join(format!(".{name}.{n}"));
        fs::OpenOptions::new().write(true).create_new(true).open(made).is_ok()
    });
    let files = [start.map(|n| format!("{name}.{n}")), Some(name.to_owned())];
    let file = files.into_iter().flatten().map(|f| dir.join(f)).find(|f| f.exists());
    let file = file.ok_or_else(|| format!("fake-qemu: there is no script {name} in {}", dir.display()))?;
    fs::read_to_string(&file).map_err(|e| format!("fake-qemu: {}: {e}", file.display()))
}

/// The inherited socket with this number.
pub(crate) fn socket(fd: &str) -> std::io::Result<UnixStream> {
    let number = fd.parse().map_err(std::io::Error::other)?;
    // The safe way to own a descriptor known by its number only; the original stays open beside it.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this, number, PidfdGetfdFlags::empty())?.into())
}

fn power_on(
    args: Args,
    script: &Script,
    settings: machine::Options,
    journal: Arc<Journal>,
    probe: bool,
) -> std::io::Result<ExitCode> {
    let scratch = env::var_os("FAKE_QEMU_SCRATCH").map(PathBuf::from);
    let of = |id: &str| -> std::io::Result<Option<UnixStream>> {
        let dev = args.all("chardev").find(|d| d.id() == Some(id));
        dev.and_then(|d| d.get("fd")).map(socket).transpose()
    };
    let qmp = of("qmp")?;
    let mut channels = Vec::new();
    for (_, id) in TRACKS {
        channels.push(match id {
            None => None,
            Some(id) => of(id)?.map(|s| Channel::new(id, s)).transpose()?,
        });
    }
    let _shares = virtiofsd::connect(&args).map_err(std::io::Error::other)?;
    let mut guest = Guest::new(&args, scratch.as_deref())?;
    let control = Control::new(qmp.as_ref().map(UnixStream::try_clone).transpose()?);
    let machine = Machine::new(args, settings, journal, control);
    let control = guest.take_control();
    let guest = Arc::new(guest);
    signals(&machine)?;

    // Before anything else, as when QEMU does not get as far as QMP. Its steps are on this thread.
    let track = |channel| Track { machine: Arc::clone(&machine), guest: Arc::clone(&guest), channel, place: 0 };
    let tracks = TRACKS.iter().zip(&channels).map(|((section, _), channel)| (*section, track(channel.clone())));
    guest::obey(&machine, control, tracks.collect());
    let started = track(None).play(script.section("start").unwrap_or_default());
    if !started || machine.has_ended() {
        return Ok(leave(&machine, &guest));
    }
    if let Some(qmp) = qmp {
        let (machine, guest) = (Arc::clone(&machine), Arc::clone(&guest));
        thread::spawn(move || qmp::serve(&machine, &guest, &qmp));
    }
    if probe {
        let steps = script.section("probe").map(<[_]>::to_vec);
        let (track, machine) = (track(None), Arc::clone(&machine));
        thread::spawn(move || match steps {
            Some(steps) => {
                track.play(&steps);
            }
            None if machine.args.accel() == "kvm" => {
                complain("qemu-system-x86_64: Could not access KVM kernel module: No such file or directory");
                machine.end(End::Exit(1));
            }
            // What Belljar's probe writes to the port, as QEMU makes an exit code of it.
            None => machine.end(End::Exit((0x2a << 1) | 1)),
        });
    } else if machine.args.has("incoming") {
        go_on(&machine, script, &channels, &track);
    } else {
        for ((section, id), channel) in TRACKS.into_iter().zip(channels) {
            let Some(steps) = steps_of(&machine, script, section) else {
                if let Some(channel) = channel {
                    channel.listen(Arc::clone(&machine.journal));
                }
                continue;
            };
            if id.is_some() && channel.is_none() {
                machine.script_failed(&format!("[{section}] has no chardev on the command line"));
                break;
            }
            let (track, machine) = (track(channel), Arc::clone(&machine));
            thread::spawn(move || {
                machine.await_running();
                track.play(&steps);
            });
        }
    }
    Ok(leave(&machine, &guest))
}

/// The serial number of the disk from which Belljar's GRUB is started.
const GRUB: &str = "belljar-grub";

/// The lines of a section; of the one for a kernel that QEMU was given, or for Belljar's GRUB, if it was, or is there, and there is one.
fn steps_of(machine: &Machine, script: &Script, section: &str) -> Option<Vec<Step>> {
    let direct = machine.args.has("kernel").then(|| script.section(&format!("direct-{section}"))).flatten();
    let grub = || machine.has_disk(GRUB).then(|| script.section(&format!("grub-{section}"))).flatten();
    direct.or_else(grub).or_else(|| script.section(section)).map(<[_]>::to_vec)
}

/// What a machine that was frozen does once it runs again.
fn go_on(
    machine: &Arc<Machine>,
    script: &Script,
    channels: &[Option<Arc<Channel>>],
    track: &impl Fn(Option<Arc<Channel>>) -> Track,
) {
    let steps = |section: &str| steps_of(machine, script, section);
    let console = channels.iter().flatten().find(|c| c.name == "console");
    for (section, channel) in [("clone", None), ("clone-serial", console.cloned())] {
        if let Some(channel) = &channel {
            channel.listen(Arc::clone(&machine.journal));
        }
        let (track, machine, steps) = (track(channel), Arc::clone(machine), steps(section).unwrap_or_default());
        thread::spawn(move || {
            machine.await_running();
            track.play(&steps);
        });
    }
    // The agent is where it was, with the manners it had.
    for port in channels.iter().flatten().filter(|c| c.name != "console") {
        let section = TRACKS.iter().find(|(_, id)| *id == Some(port.name.as_str())).and_then(|(s, _)| steps(s));
        let agent = steps("clone-agent").unwrap_or_else(|| {
            let had = section.into_iter().flatten().find(|s| s.verb == "agent");
            vec![had.unwrap_or(Step { line: 0, verb: "agent".into(), words: Vec::new() })]
        });
        let (track, machine, name) = (track(Some(Arc::clone(port))), Arc::clone(machine), port.name.clone());
        thread::spawn(move || {
            machine.await_running();
            if machine.migration.port().as_deref() == Some(&name) {
                track.play(&agent);
            }
        });
    }
}

/// What QEMU does on SIGTERM and its like.
fn signals(machine: &Arc<Machine>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        for signal in &mut signals {
            machine.journal.note("signal", signal);
            if machine.options.sigterm_obeyed {
                complain(&format!("qemu-system-x86_64: terminating on signal {signal}"));
                machine.shutdown(false, "host-signal");
            }
        }
    });
    Ok(())
}

/// Waits for the end and ends so.
fn leave(machine: &Machine, guest: &Guest) -> ExitCode {
    let end = machine.await_end();
    channel::fall_silent();
    guest.clean_up();
    match end {
        End::Exit(code) => std::process::exit(code),
        End::Signal(number) => {
            if let Some(signal) = Signal::from_named_raw(number) {
                // Rust's own handler takes the first SIGSEGV or SIGBUS and steps aside.
                let _ours = kill_process(getpid(), signal);
                let _again = kill_process(getpid(), signal);
            }
            // A signal that does not kill is a mistake in the script.
            ExitCode::from(MISTAKE)
        }
    }
}
