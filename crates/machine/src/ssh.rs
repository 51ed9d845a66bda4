//! The way into a guest over SSH: a forwarded port, the guest's server behind it, and a command that starts the agent.
//!
//! The host's own `ssh` does it, since it knows every server, key and token that a user has. It is told to leave the user's configuration, agent and known hosts alone, and
//! it checks no key of the server's: the guest is the other end of a port that QEMU has opened for it, and nobody knows its key. The port is one of the loopback device that the
//! kernel chooses, and is closed when the agent is there. `ssh` is started through the shim, as QEMU is, and ends with Belljar.

use std::{
    cell::{Cell, RefCell},
    ffi::OsString,
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use belljar_guest_spec::{Access, Credentials, GuestSpec, NicMode, Secret};
use fs_err::{OpenOptions, os::unix::fs::OpenOptionsExt as _};
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    Cause,
    console::sanitize::sanitize_line,
    host::HostContext,
    limits::Limits,
    qemu::{
        args::NETDEV,
        probe::look_up,
        qmp::{HumanMonitorCommand, Qmp},
    },
};

/// The program, and its package.
const PROGRAM: &str = "ssh";
const PACKAGE: &str = "openssh-client";
/// Who logs in where nobody is named.
const ROOT: &str = "root";
/// The server's port in the guest.
const PORT: u16 = 22;
/// How long a server may take to say what it is, and how often that is asked.
const BANNER: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);
/// How long a login that is refused is tried again: the server may be there before what lets a user in.
const REFUSED: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(4);
/// Most bytes of what `ssh` and the guest say that are told.
const MAX_SAID: usize = 4096;
/// The exit code of `ssh` where it did not come to the command.
const NO_SESSION: i32 = 255;
/// That of the command where its user does not get root's rights.
const NOT_ROOT: i32 = 97;
/// Longest key that is looked at.
const MAX_KEY: u64 = 64 << 10;
/// How a key of OpenSSH's own format begins that has no passphrase: the name of the format, and that of its cipher, `none` (OpenSSH's `PROTOCOL.key`).
const PLAIN_KEY: &str = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU";
/// The variable from which the program that is asked for the password has it.
const VARIABLE: &str = "BELLJAR_SSH_PASSWORD";
/// That program, in the guest's directory as long as it is needed.
pub const PASSWORD_PROGRAM: &str = "ssh-password";

/// Why a guest cannot be entered over SSH.
#[derive(Debug, thiserror::Error)]
pub enum NoSsh {
    /// The host has none.
    #[error(
        "a guest is entered over SSH by the host's {PROGRAM}, which is not in PATH; install the package {PACKAGE}, or ask for another way in (--access)"
    )]
    Program,
    /// There is nothing to log in with.
    #[error(
        "--access ssh needs something to log in with: a key (--ssh-key FILE), or the password of a user (--login USER:PASSWORD)"
    )]
    Nothing,
    /// The guest has no network.
    #[error("--access ssh needs a network card, by which the guest is reached; leave --nic none out")]
    Card,
    /// The key cannot be read.
    #[error("cannot read the key {} for SSH: {source}; name a file that is there with --ssh-key", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It is none.
    #[error("{} is no private key for SSH{}", path.display(), if *is_public { ", but a public one; name the private one with --ssh-key" } else { "; name one with --ssh-key" })]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Whether it is the public half of one.
        is_public: bool,
    },
    /// Others may read it.
    #[error("{PROGRAM} takes no key that others may read, as {} is: chmod 600 it, or a copy of it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// Nobody is asked for what opens it.
    #[error(
        "the key {} has a passphrase, and nobody is asked for one; name a key without one with --ssh-key (ssh-keygen -p -f a copy of it takes it off)",
        path.display()
    )]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
}

/// How a guest is entered over SSH.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    program: PathBuf,
    user: String,
    password: Option<Secret>,
    key: Option<PathBuf>,
    /// Whether it is the only way in, and not the last of several.
    alone: bool,
}

/// How far it has come, for a person.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    said: RefCell<String>,
    has_asked: Cell<bool>,
    /// The port that is open, if one is.
    port: Cell<Option<u16>>,
}

impl Progress {
    fn say(&self, what: String) {
        *self.said.borrow_mut() = what;
    }

    /// In words; none if nothing has happened.
    pub(crate) fn said(&self) -> Option<String> {
        Some(self.said.borrow().clone()).filter(|said| !said.is_empty())
    }

    /// Whether somebody was asked to start the agent. An agent that comes then has come by that.
    pub(crate) fn has_asked(&self) -> bool {
        self.has_asked.get()
    }

    /// Closes the way to the guest's server, if there is one, when nobody needs it any more.
    pub(crate) async fn close(&self, qmp: &Qmp) {
        let Some(port) = self.port.take() else { return };
        let line = format!("hostfwd_remove {NETDEV} tcp:127.0.0.1:{port}");
        drop(qmp.execute(HumanMonitorCommand { command_line: line }).await);
    }
}

impl Ssh {
    /// What the guest's description says of it; none if it says nothing.
    pub(crate) fn of(spec: &GuestSpec, access: Access, host: &HostContext) -> Result<Option<Self>, NoSsh> {
        let alone = access == Access::Ssh;
        if !alone && (access != Access::Auto || spec.ssh_key.is_none()) {
            return Ok(None);
        }
        let login = spec.credentials().ok().flatten();
        let (user, password) = match login {
            Some(Credentials { user, password }) => (user, password),
            None => (ROOT.to_owned(), None),
        };
        let key = spec.ssh_key.clone();
        if key.is_none() && password.is_none() {
            return Err(NoSsh::Nothing);
        }
        if spec.hardware.nic == NicMode::None {
            return Err(NoSsh::Card);
        }
        key.as_deref().map(look_at).transpose()?;
        let program = look_up(Path::new(PROGRAM), host.path.as_deref()).ok_or(NoSsh::Program)?;
        Ok(Some(Self { program, user, password, key, alone }))
    }

    /// Words for `ssh` to a server behind this port.
    fn words(&self, port: u16) -> Vec<OsString> {
        let mut words: Vec<OsString> =
            ["-F", "/dev/null", "-T", "-p", &port.to_string(), "-l", &self.user].map(Into::into).into();
        let mut methods = Vec::new();
        if self.key.is_some() {
            methods.push("publickey");
        }
        if self.password.is_some() {
            methods.extend(["password", "keyboard-interactive"]);
        }
        let methods = format!("PreferredAuthentications={}", methods.join(","));
        let batch = format!("BatchMode={}", if self.password.is_some() { "no" } else { "yes" });
        let options = [
            "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=no",
            "UpdateHostKeys=no",
            "IdentityAgent=none",
            "IdentitiesOnly=yes",
            "NumberOfPasswordPrompts=1",
            "ConnectionAttempts=1",
            "ClearAllForwardings=yes",
            "ControlPath=none",
            "LogLevel=ERROR",
            &batch,
            &methods,
        ];
        words.extend(options.iter().flat_map(|option| ["-o".into(), OsString::from(option)]));
        if let Some(key) = &self.key {
            words.extend(["-i".into(), key.clone().into_os_string()]);
        }
        words.extend(["--", "127.0.0.1", &as_root()].map(Into::into));
        words
    }

    /// What goes to the command: the password, for who has to become root by it, and what is to be done.
    fn input(&self, script: &str) -> Vec<u8> {
        let password = self.password.as_ref().map_or("", |password| password.expose());
        format!("{password}\n{script}\n").into_bytes()
    }
}

/// The command that a user runs: a shell of root's, of what comes after the first line.
fn as_root() -> String {
    format!(
        "sh -c 'IFS= read -r p; if [ \"$(id -u)\" = 0 ]; then exec sh; elif sudo -n true 2>/dev/null; then exec sudo -n sh; elif [ -n \"$p\" ] && command -v sudo >/dev/null; \
         then {{ printf \"%s\\n\" \"$p\"; cat; }} | sudo -S -p \"\" sh; else exit {NOT_ROOT}; fi'"
    )
}

/// Refuses a key that cannot be used, before anything is started.
fn look_at(path: &Path) -> Result<(), NoSsh> {
    let unread = |source| NoSsh::Unread { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = belljar_image::open_without_waiting(path).map_err(unread)?;
    let about = file.metadata().map_err(unread)?;
    file.take(MAX_KEY).read_to_end(&mut bytes).map_err(unread)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(body) = text.split_once("PRIVATE KEY-----").map(|(_, body)| body) else {
        let is_public = ["ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC"].iter().any(|begin| text.starts_with(begin));
        return Err(NoSsh::NoKey { path: path.to_owned(), is_public });
    };
    // As ssh has it (`sshkey_perm_ok`).
    if about.uid() == geteuid().as_raw() && about.mode() & 0o077 != 0 {
        return Err(NoSsh::Exposed { path: path.to_owned() });
    }
    let is_openssh = text.contains("BEGIN OPENSSH");
    if text.contains("ENCRYPTED") || (is_openssh && !body.trim_start().starts_with(PLAIN_KEY)) {
        return Err(NoSsh::Passphrase { path: path.to_owned() });
    }
    Ok(())
}

/// Has the guest run `script`, which starts the agent and ends, as soon as its server answers. It waits for the server as
/// long as nobody drops it.
///
/// # Errors
/// When the server lets nobody in, or the agent does not start.
pub(crate) async fn enter(
    ssh: &Ssh,
    qmp: &Qmp,
    script: &str,
    (host, dir): (&HostContext, &Path),
    limits: &Limits,
    progress: &Progress,
) -> Result<(), Cause> {
    let say = |what: String| progress.say(what);
    let port = open(qmp).await?;
    progress.port.set(Some(port));
    say(format!(
        "no SSH server has answered at the guest's port {PORT}; it must run one, and take its address by DHCP"
    ));
    while !answers(port).await {
        sleep(PAUSE).await;
    }
    say("an SSH server answers in the guest, and other ways in are waited for".to_owned());
    if !ssh.alone {
        sleep(limits.other_rung()).await;
    }
    let user = &ssh.user;
    let limit = limits.setup_of_copy();
    let mut refused_since = None;
    loop {
        say(format!("the guest's SSH server was asked to let {user} in"));
        progress.has_asked.set(true);
        let done = timeout(limit, Session::run(ssh, port, script, (host, dir))).await;
        let (code, said) = match done {
            Ok(done) => done.map_err(|e| {
                Cause::host_file("run ssh", &e, "see whether it works, and whether the run's directory is writable")
            })?,
            Err(_) => {
                let limit = crate::for_people(limit);
                return Err(Cause::Session(format!("what starts the agent did not end over SSH within {limit}")));
            }
        };
        let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
        match code {
            0 => break,
            NO_SESSION => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= REFUSED {
                    return Err(Cause::Session(format!(
                        "the guest's SSH server did not let {user} in: {said}; name the user with --login USER or USER:PASSWORD, and a key that the guest knows with --ssh-key"
                    )));
                }
                say(format!("the guest's SSH server did not let {user} in: {said}"));
                sleep(AGAIN).await;
            }
            NOT_ROOT => {
                return Err(Cause::Session(format!(
                    "{user} got in over SSH, but is not root, and sudo does not make it root without a password: log in as root, or give the password (--login {user}:PASSWORD)"
                )));
            }
            code => {
                return Err(Cause::Session(format!(
                    "{user} got in over SSH, but the agent did not start there: exit code {code}, {said}"
                )));
            }
        }
    }
    say(format!("{user} got in over SSH, and the agent was started"));
    Ok(())
}

/// Whether an SSH server says what it is behind this port. QEMU takes each connection, whoever is behind it.
async fn answers(port: u16) -> bool {
    let asked = async {
        let mut line = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut said = Vec::new();
        let mut some = [0; 256];
        // A server may say something else before (RFC 4253, 4.2).
        while said.len() < MAX_SAID {
            match line.read(&mut some).await.ok()? {
                0 => return None,
                count => said.extend_from_slice(&some[..count]),
            }
            if said.windows(4).any(|word| word == b"SSH-") {
                // So that it does not wait for somebody who has gone.
                let _ = line.shutdown().await;
                return Some(());
            }
        }
        None
    };
    timeout(BANNER, asked).await.ok().flatten().is_some()
}

/// Opens a port of the host's that leads to the guest's server.
async fn open(qmp: &Qmp) -> Result<u16, Cause> {
    let failed = |what: &str| {
        Cause::Session(format!(
            "QEMU opens no port to the guest's SSH server: {what}; give the guest a network card of QEMU's own user network"
        ))
    };
    let ask = |line: String| async move {
        let said = qmp.execute(HumanMonitorCommand { command_line: line }).await;
        said.map_err(|error| failed(&error.to_string()))
    };
    let said = ask(format!("hostfwd_add {NETDEV} tcp:127.0.0.1:0-:{PORT}")).await?;
    if !said.trim().is_empty() {
        return Err(failed(&sanitize_line(said.as_bytes())));
    }
    let table = ask("info usernet".to_owned()).await?;
    forwarded(&table).ok_or_else(|| failed("it does not say which"))
}

/// The port of the host's that leads to the guest's, of QEMU's table: `TCP[HOST_FORWARD] 12 127.0.0.1 40001 10.0.2.15 22 0 0`.
fn forwarded(table: &str) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, _, _, from, _, to, ..] = words[..] else { return None };
        (kind == "TCP[HOST_FORWARD]" && to.parse() == Ok(PORT)).then(|| from.parse().ok())?
    })
}

/// A running `ssh`, which ends with it.
struct Session {
    child: Child,
    asked: Option<PathBuf>,
}

impl Session {
    /// Runs the script; gives the exit code, and the last of what was said.
    async fn run(ssh: &Ssh, port: u16, script: &str, (host, dir): (&HostContext, &Path)) -> io::Result<(i32, String)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (input, of_ssh) = UnixStream::pair()?;
        let mut command = host.shim.command(&ssh.program);
        let env = host.qemu_env.iter().map(|(name, value)| (name, value));
        command.args(ssh.words(port)).env_clear().envs(env);
        let mut asked = None;
        if let Some(password) = &ssh.password {
            let program = dir.join(PASSWORD_PROGRAM);
            let text = format!("#!/bin/sh\nprintf '%s\\n' \"${VARIABLE}\"\n");
            let mut file = OpenOptions::new();
            file.write(true).create(true).truncate(true).mode(0o700);
            file.open(&program)?.write_all(text.as_bytes())?;
            command.env("SSH_ASKPASS", std::path::absolute(&program)?).env("SSH_ASKPASS_REQUIRE", "force");
            // Older ones ask for a display before they ask a program.
            command.env("DISPLAY", "none").env(VARIABLE, password.expose());
            asked = Some(program);
        }
        command.stdin(OwnedFd::from(of_ssh)).stdout(OwnedFd::from(theirs.try_clone()?)).stderr(OwnedFd::from(theirs));
        let mut session = Self { child: command.spawn()?, asked };
        drop(command);
        input.set_nonblocking(true)?;
        ours.set_nonblocking(true)?;
        let mut input = tokio::net::UnixStream::from_std(input)?;
        let mut output = tokio::net::UnixStream::from_std(ours)?;
        let text = ssh.input(script);
        let write = async {
            // Who does not read all of it says why.
            if input.write_all(&text).await.is_ok() {
                let _ = input.shutdown().await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = Vec::new();
        let read = async {
            let mut some = [0; 1024];
            while let Ok(count @ 1..) = output.read(&mut some).await {
                said.extend_from_slice(&some[..count]);
                let too_many = said.len().saturating_sub(MAX_SAID);
                said.drain(..too_many);
            }
        };
        tokio::select! {
            () = write => {}
            () = read => {}
        }
        // Its output has ended, and so has it, or is about to.
        let code = loop {
            match session.child.try_wait()? {
                Some(status) => break status.code().unwrap_or(NO_SESSION),
                None => sleep(Duration::from_millis(5)).await,
            }
        };
        Ok((code, sanitize_line(&said).trim().to_owned()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // Reaped already, its number may be another's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(asked) = &self.asked {
            let _ = fs_err::remove_file(asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use write_program::write_program;

    use super::*;

    #[test]
    fn the_port_is_found_in_qemus_table() {
        // As QEMU 7.2 has it.
        let table = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[HOST_FORWARD]  13       127.0.0.1 40001       10.0.2.15    22     0     0\r\n  UDP[236 sec]       40       10.0.2.15 38891        10.0.2.3    53     0     0\r\n";
        assert_eq!(forwarded(table), Some(40001));
        assert_eq!(forwarded(&table.replace("   22 ", "   23 ")), None);
        assert_eq!(forwarded(&table.replace("40001", "99999")), None);
        assert_eq!(forwarded(""), None);
    }

    #[test]
    fn keys_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, words: &[&str]| {
            let path = dir.path().join(name);
            let done = Command::new("ssh-keygen").args(["-q", "-C", "x", "-f"]).arg(&path).args(words).status();
            done.is_ok_and(|status| status.success()).then_some(path)
        };
        // Where there is no ssh-keygen, the texts alone.
        if let Some(plain) = made("plain", &["-t", "ed25519", "-N", ""]) {
            look_at(&plain).unwrap();
            assert!(matches!(look_at(&plain.with_extension("pub")), Err(NoSsh::NoKey { is_public: true, .. })));
            let rsa = made("rsa", &["-t", "rsa", "-b", "1024", "-m", "PEM", "-N", "", "-q"]);
            rsa.iter().for_each(|path| look_at(path).unwrap());
            for (name, form) in [("a", "RFC4716"), ("b", "PEM"), ("c", "PKCS8")] {
                let Some(path) = made(name, &["-t", "rsa", "-b", "2048", "-m", form, "-N", "secret"]) else { continue };
                assert!(matches!(look_at(&path), Err(NoSsh::Passphrase { .. })), "{form}");
            }
        }
        let open = dir.path().join("open");
        std::fs::write(&open, format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{PLAIN_KEY}AAAA\n")).unwrap();
        let mode = |mode| std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert!(matches!(look_at(&open), Err(NoSsh::Exposed { .. })));
        mode(0o600);
        look_at(&open).unwrap();
        let text = dir.path().join("text");
        std::fs::write(&text, "hello").unwrap();
        assert!(matches!(look_at(&text), Err(NoSsh::NoKey { is_public: false, .. })));
        assert!(matches!(look_at(&dir.path().join("none")), Err(NoSsh::Unread { .. })));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(matches!(look_at(&fifo), Err(NoSsh::NoKey { is_public: false, .. })), "nobody waits for who writes");
    }

    #[test]
    fn words_leave_the_users_own_things_alone() {
        let ssh = Ssh {
            program: "/usr/bin/ssh".into(),
            user: "u".into(),
            password: Some(Secret::new("hunter2")),
            key: Some("/k".into()),
            alone: true,
        };
        let shown =
            |ssh: &Ssh| ssh.words(40001).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join("\n");
        insta::assert_snapshot!(shown(&ssh));
        let without = Ssh { password: None, ..ssh.clone() };
        assert!(shown(&without).contains("BatchMode=yes\n") && shown(&without).contains("=publickey\n"));
        assert!(!shown(&ssh).contains("hunter2"));
        assert_eq!(ssh.input("x"), b"hunter2\nx\n");
    }

    /// The command's own shell, with a `sudo` that is asked for a password, that is not, and none.
    #[test]
    fn another_user_becomes_root_by_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, text: &str| {
            let path = dir.path().join(name);
            write_program(&path, format!("#!/bin/sh\n{text}\n"));
        };
        let run = |id: &str, sudo: Option<&str>, input: &str| {
            program("id", &format!("echo {id}"));
            match sudo {
                Some(text) => program("sudo", text),
                None => drop(std::fs::remove_file(dir.path().join("sudo"))),
            }
            let words = as_root();
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            let mut command = Command::new("sh");
            command.arg("-c").arg(&words).env("PATH", path);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let done = child.wait_with_output().unwrap();
            (done.status.code(), String::from_utf8(done.stdout).unwrap())
        };
        let script = "pw d\necho done; exit 3\n";
        assert_eq!(run("0", Some("exit 1"), script), (Some(3), "done\n".into()));
        // sudo -n true, sudo -n sh
        assert_eq!(run("7", Some("shift; exec \"$@\""), script), (Some(3), "done\n".into()));
        // It asks: -S -p '' sh.
        let asks = "[ \"$1\" != -n ] || exit 1; IFS= read -r p; [ \"$p\" = 'pw d' ] || exit 9; shift 3; exec \"$@\"";
        assert_eq!(run("7", Some(asks), script), (Some(3), "done\n".into()));
        assert_eq!(run("7", Some(asks), "\necho no\n").0, Some(NOT_ROOT));
    }
}
