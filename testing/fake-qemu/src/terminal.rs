//! A shell on the serial line: a real one, on a real pseudo-terminal, so that the line discipline's limit of 4095
//! characters, its echo and its signals are the kernel's own.

use std::{
    ffi::{CString, OsString},
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

use crate::{
    channel::Channel,
    guest::{Guest, Rewriter},
    machine::Machine,
    script::{ScriptError, Step},
};

/// A new pseudo-terminal: its master and the path of its slave.
pub(crate) fn open_pty(cols: u16, rows: u16) -> std::io::Result<(OwnedFd, CString)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?;
    tcsetwinsize(&master, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok((master, path))
}

/// How a shell looks.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    program: Vec<OsString>,
    prompt: String,
    echo: bool,
    cols: u16,
    rows: u16,
}

/// Options of `shell`, and of `login` for the shell behind it.
pub(crate) const LOOK: [&str; 5] = ["program", "prompt", "echo", "cols", "rows"];

impl Look {
    /// As the script says.
    pub(crate) fn of(step: &Step) -> Result<Self, ScriptError> {
        let small = |key, default| match step.count(key)? {
            None => Ok(default),
            Some(n) => u16::try_from(n).map_err(|_e| step.fail(format!("{key}={n} is too much"))),
        };
        let program = step.text("program").unwrap_or_else(|| "/bin/sh".into());
        Ok(Self {
            program: program.split_whitespace().map(OsString::from).collect(),
            prompt: step.text("prompt").unwrap_or_else(|| "# ".into()),
            echo: step.switch("echo", true)?,
            cols: small("cols", 0)?,
            rows: small("rows", 0)?,
        })
    }
}

/// Runs a shell on the channel from this place of its input until it ends; gives the place where it ended.
///
/// Must be called from a thread that lives on as long as the shell: the kernel takes a thread's end for its parent's.
pub(crate) fn shell(
    machine: &Arc<Machine>,
    guest: &Arc<Guest>,
    channel: &Arc<Channel>,
    look: &Look,
    from: usize,
) -> usize {
    let result = start(guest, look).map(|(mut child, master)| {
        machine.mark("shell");
        let done = Arc::new(AtomicBool::new(false));
        let to_shell = {
            let (channel, guest, done) = (Arc::clone(channel), Arc::clone(guest), Arc::clone(&done));
            let master = master.try_clone();
            thread::spawn(move || match master {
                Ok(master) => forward(&channel, &guest, master, from, &done),
                Err(_) => from,
            })
        };
        let mut master = std::fs::File::from(master);
        let mut chunk = [0; 4096];
        // Ends with EIO when the last process has closed the slave.
        while let Ok(count) = master.read(&mut chunk) {
            if count == 0 || !channel.send(&chunk[..count]) {
                break;
            }
        }
        let _killed_or_ended = child.kill();
        let _reaped = child.wait();
        done.store(true, Ordering::Release);
        to_shell.join().unwrap_or(from)
    });
    machine.mark("shell-end");
    match result {
        Ok(place) => place,
        Err(e) => {
            machine.script_failed(&format!("shell: {e}"));
            from
        }
    }
}

fn start(guest: &Guest, look: &Look) -> std::io::Result<(std::process::Child, OwnedFd)> {
    let (master, slave) = open_pty(look.cols, look.rows)?;
    if !look.echo {
        let mut modes = tcgetattr(&master)?;
        modes.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&master, OptionalActions::Now, &modes)?;
    }
    let mut command = guest.command(Some(&slave), &guest.root.join("root"), &look.program)?;
    command.env("PS1", &look.prompt).env("ENV", "").env("HISTFILE", "/dev/null");
    Ok((guest.spawn(&mut command)?, master))
}

fn forward(channel: &Channel, guest: &Guest, master: OwnedFd, from: usize, done: &AtomicBool) -> usize {
    let mut rewriter = Rewriter::new(guest.rewrites());
    let mut place = from;
    let mut master = std::fs::File::from(master);
    while !done.load(Ordering::Acquire) {
        // The input has no descriptor to wait for together with the shell's end.
        let Some(bytes) = channel.receive(place, Some(Instant::now() + Duration::from_millis(20))) else {
            if channel.is_closed() {
                // A line that is hung up: the shell gets SIGHUP when the master is gone, which is when we are.
                return place;
            }
            continue;
        };
        place += bytes.len();
        if master.write_all(&rewriter.push(&bytes)).is_err() {
            break;
        }
    }
    place
}

/// How `login` behaves.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    user: Vec<u8>,
    password: Option<Vec<u8>>,
    banner: Vec<u8>,
    prompt: Vec<u8>,
    motd: Vec<u8>,
    tries: usize,
    flush: bool,
    look: Look,
}

/// Options of `login` besides [`LOOK`]'s.
pub(crate) const LOGIN: [&str; 7] = ["user", "password", "banner", "login-prompt", "motd", "tries", "flush"];

impl Login {
    /// As the script says.
    pub(crate) fn of(step: &Step) -> Result<Self, ScriptError> {
        let bytes = |key, default: &str| step.bytes(key).unwrap_or(default.as_bytes()).to_vec();
        Ok(Self {
            user: bytes("user", "root"),
            password: step.bytes("password").map(<[u8]>::to_vec),
            banner: bytes("banner", "\r\nDebian GNU/Linux 12 fake ttyS0\r\n\r\n"),
            prompt: bytes("login-prompt", "fake login: "),
            motd: bytes("motd", "Linux fake 6.1.0 #1 SMP x86_64\r\n\r\nThe programs included are free software.\r\n"),
            tries: usize::try_from(step.count("tries")?.unwrap_or(3)).unwrap_or(3),
            flush: step.switch("flush", true)?,
            look: Look::of(step)?,
        })
    }
}

/// Plays getty, login and the shell behind them, again and again, as init does.
pub(crate) fn login(machine: &Arc<Machine>, guest: &Arc<Guest>, channel: &Arc<Channel>, login: &Login, from: usize) {
    let mut place = from;
    let mut failures = 0;
    channel.send(&login.banner);
    loop {
        channel.send(&login.prompt);
        let Some(user) = read_line(channel, &mut place, true) else { return };
        if user.is_empty() {
            continue;
        }
        let mut right = user == login.user;
        if !right || login.password.is_some() {
            channel.send(b"Password: ");
            let Some(password) = read_line(channel, &mut place, false) else { return };
            right = right && Some(password) == login.password;
        }
        if right {
            machine.mark("login");
            failures = 0;
            channel.send(&login.motd);
            if login.flush {
                // What was typed ahead is lost, as with a real getty.
                place = place.max(channel.received());
            }
            place = shell(machine, guest, channel, &login.look, place);
            channel.send(&login.banner);
            continue;
        }
        machine.mark("login-refused");
        failures += 1;
        channel.send(b"\r\nLogin incorrect\r\n");
        if failures >= login.tries {
            failures = 0;
            channel.send(b"Maximum number of tries exceeded\r\n");
            channel.send(&login.banner);
        }
    }
}

/// One line as a terminal with editing gives it.
fn read_line(channel: &Channel, place: &mut usize, echo: bool) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        let bytes = channel.receive(*place, None)?;
        for byte in bytes {
            *place += 1;
            match byte {
                b'\r' | b'\n' => {
                    channel.send(b"\r\n");
                    return Some(line);
                }
                3 | 0x15 => line.clear(),
                8 | 0x7f => {
                    line.pop();
                }
                4 => {}
                byte => {
                    line.push(byte);
                    if echo {
                        channel.send(&[byte]);
                    }
                }
            }
        }
    }
}
