//! Commands, really run.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Stdio as Redirect},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use belljar_proto::{
    files::FileQuery,
    frame::Kind,
    message::{AskFiles, Exec, GuardNews, KernelNews, Nonce, OutputEnd, Status, Stdio, ToHost, WindowSize},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    termios::{Winsize, tcsetwinsize},
};

use super::Shared;
use crate::{guest::Guest, look, terminal};

/// A command that was started.
#[derive(Debug)]
pub(super) struct Running {
    pid: Pid,
    stdin: Option<mpsc::Sender<Option<Vec<u8>>>>,
    pty: Option<OwnedFd>,
}

impl Running {
    /// Bytes for standard input, or its end.
    pub(super) fn stdin(&self, bytes: Option<Vec<u8>>) {
        if let Some(stdin) = &self.stdin {
            // The command may have ended.
            let _late = stdin.send(bytes);
        }
    }

    /// A signal to the whole group.
    pub(super) fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            let _gone = kill_process_group(self.pid, signal);
        }
    }

    /// The terminal's new size.
    pub(super) fn resize(&self, size: WindowSize) {
        if let Some(pty) = &self.pty {
            let _gone = tcsetwinsize(pty, winsize(size));
        }
    }
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Starts a command, or says why not.
pub(super) fn start(shared: &Arc<Shared>, exec: Exec) -> Option<Running> {
    let id = exec.id;
    match shared.manners.mode.as_str() {
        "ignore" => return None,
        "fail" => {
            shared.port.say(&ToHost::ExecFailed { id, what: "fork".into(), errno: 12 });
            return None;
        }
        "fatal" => {
            shared.port.say(&ToHost::Fatal("said by the script".into()));
            return None;
        }
        _ => {}
    }
    match Plan::of(shared, exec) {
        Ok(plan) => plan.run(shared),
        Err((what, errno)) => {
            shared.port.say(&ToHost::ExecFailed { id, what, errno });
            None
        }
    }
}

/// Answers a question after files, as the agent does.
pub(super) fn files(shared: &Arc<Shared>, asked: AskFiles) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let AskFiles { id, nonce, mut query } = asked;
        let (FileQuery::Look { root, .. } | FileQuery::Read { root, .. }) = &mut query;
        *root = on_host(&shared, root).into_vec();
        let mut output = Vec::new();
        let clock_set = shared.manners.clock_set;
        let answered = look::answer(&query, clock_set, &mut output).is_ok();
        output.chunks(32 * 1024).all(|piece| shared.port.output(Kind::Stdout, id, piece));
        let status = Status::Code(u8::from(!answered));
        shared.port.say(&ToHost::Exited { id, nonce, status, output: OutputEnd::Whole });
    });
}

/// A command in the host's terms.
struct Plan {
    exec: Exec,
    argv: Vec<OsString>,
    dir: PathBuf,
    env: Vec<(OsString, OsString)>,
}

const ENOENT: i32 = 2;

impl Plan {
    fn of(shared: &Shared, exec: Exec) -> Result<Self, (String, i32)> {
        let here = |bytes: &[u8]| on_host(shared, bytes);
        let mut env = Vec::new();
        for pair in &exec.env {
            let (key, value) = split(pair).ok_or(("environment".to_owned(), 22))?;
            env.push((key, here(value.as_bytes())));
        }
        let given = env.iter().rev().find(|(k, _)| k == "PATH").map(|(_, v)| v.clone());
        let path = shared.guest.path(given.unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        env.retain(|(k, _)| k != "PATH");
        env.push(("PATH".into(), path.clone()));
        if let Some(user) = &exec.user
            && user != "root"
            && user != "0"
        {
            return Err((format!("find user \"{user}\""), 0));
        }
        let dir = match &exec.cwd {
            None => shared.guest.root.clone(),
            Some(cwd) => here(cwd).into(),
        };
        if !dir.is_dir() {
            let said = exec.cwd.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            return Err((format!("change to its directory {said}: there is no such directory in the guest"), 0));
        }
        let mut argv: Vec<OsString> = exec.argv.iter().map(|a| here(a)).collect();
        let program = argv.first().ok_or(("execve".to_owned(), ENOENT))?.clone();
        argv[0] = find(&program, &path, &dir).map_err(|errno| {
            let name = program.to_string_lossy();
            let what = if errno == ENOENT && !name.contains('/') { "find" } else { "execve" };
            (format!("{what} {name}"), errno)
        })?;
        Ok(Self { exec, argv, dir, env })
    }

    fn run(self, shared: &Arc<Shared>) -> Option<Running> {
        let id = self.exec.id;
        let guarded = self.exec.guards.is_some();
        if guarded {
            shared.port.say(&ToHost::Kernel(KernelNews::Guard(GuardNews::Begins(id))));
        }
        let nonce = wrong_or_right(&shared.manners.nonce, self.exec.nonce);
        // The thread that starts a child must outlive it: its end is the parent's end to the kernel.
        let (started, wait) = mpsc::channel();
        let shared = Arc::clone(shared);
        let failed = Arc::clone(&shared);
        thread::spawn(move || match self.spawn(&shared.guest) {
            Ok((child, files)) => attend(&shared, child, files, (id, guarded), nonce, &started),
            Err(e) => {
                let _nobody = started.send(Err(e));
            }
        });
        match wait.recv() {
            Ok(Ok(running)) => Some(running),
            Ok(Err(e)) => {
                let errno = e.raw_os_error().unwrap_or(5);
                failed.port.say(&ToHost::ExecFailed { id, what: "fork".into(), errno });
                None
            }
            Err(_) => None,
        }
    }

    fn spawn(&self, guest: &Guest) -> std::io::Result<(Child, Files)> {
        let (mut files, mut slave) = (Files::default(), None);
        if let Stdio::Pty { size, .. } = &self.exec.stdio {
            let (master, path) = terminal::open_pty(size.cols, size.rows)?;
            files.stdout = Some(File::from(master.try_clone()?));
            files.stdin = Some(File::from(master.try_clone()?));
            files.pty = Some(master);
            slave = Some(path);
        }
        let mut command = guest.command(slave.as_ref(), &self.dir, &self.argv)?;
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        match &self.exec.stdio {
            Stdio::Pty { term, .. } => {
                command.env("TERM", term);
            }
            other => {
                command.stdin(if *other == Stdio::Pipes { Redirect::piped() } else { Redirect::null() });
                command.stdout(Redirect::piped()).stderr(Redirect::piped());
            }
        }
        let mut child = guest.spawn(&mut command)?;
        if files.pty.is_none() {
            files.stdin = child.stdin.take().map(|f| File::from(OwnedFd::from(f)));
            files.stdout = child.stdout.take().map(|f| File::from(OwnedFd::from(f)));
            files.stderr = child.stderr.take().map(|f| File::from(OwnedFd::from(f)));
        }
        Ok((child, files))
    }
}

/// Our ends of a command's streams.
#[derive(Default)]
struct Files {
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
    pty: Option<OwnedFd>,
}

/// Passes the command's streams on until it ends, and says how.
fn attend(
    shared: &Arc<Shared>,
    mut child: Child,
    mut files: Files,
    (id, guarded): (u32, bool),
    nonce: Nonce,
    started: &mpsc::Sender<std::io::Result<Running>>,
) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    // Of a command that has ended the agent says nothing more.
    let over = Arc::new(Mutex::new(false));
    let stdin = files.stdin.take().map(|file| feed(shared, file, id, &over));
    let times = match shared.manners.mode.as_str() {
        "no-started" => 0,
        "twice-started" => 2,
        _ => 1,
    };
    for _ in 0..times {
        shared.port.say(&ToHost::Started { id, pid: child.id() });
    }
    let _listener = started.send(Ok(Running { pid, stdin, pty: files.pty.take() }));
    shared.machine.mark("exec");
    let output = match shared.manners.late.as_str() {
        "open" => OutputEnd::LeftOpen,
        "busy" => OutputEnd::LeftBusy,
        "cut" => OutputEnd::Cut,
        _ => OutputEnd::Whole,
    };
    let ends = GuardNews::Ends { id, lines: 0, programs: 0, units: 0 };
    let exited = |status| ToHost::Exited { id, nonce, status, output };
    if shared.manners.exited == "early" {
        shared.port.say(&exited(Status::Code(0)));
    }
    if output != OutputEnd::Whole {
        shared.port.say(&ToHost::Lingers(id));
    }
    flood(shared, id);
    let code = stream(shared, &mut child, files, id, pid);
    *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    let status = match shared.manners.code {
        Some(code) => Status::Code(code),
        None => code,
    };
    if guarded {
        shared.port.say(&ToHost::Kernel(KernelNews::Guard(ends)));
    }
    match shared.manners.exited.as_str() {
        "never" | "early" => {}
        "other-id" => {
            shared.port.say(&ToHost::Exited { id: id + 1, nonce, status, output });
        }
        "twice" => {
            shared.port.say(&exited(status));
            shared.port.say(&exited(Status::Code(0)));
        }
        _ => {
            shared.port.say(&exited(status));
        }
    }
    shared.machine.mark("exited");
}

/// Junk in place of a command's output.
fn flood(shared: &Shared, id: u32) {
    let junk = vec![b'x'; 64 * 1024];
    let mut left = shared.manners.flood;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(junk.len());
        if !shared.port.output(Kind::Stdout, id, &junk[..count]) {
            return;
        }
        left -= count as u64;
    }
}

/// Output until the command ends, and what is left in the pipes then.
fn stream(shared: &Shared, child: &mut Child, files: Files, id: u32, pid: Pid) -> Status {
    let mut streams: Vec<(Kind, File)> = Vec::new();
    streams.extend(files.stdout.map(|f| (Kind::Stdout, f)));
    streams.extend(files.stderr.map(|f| (Kind::Stderr, f)));
    for (_, file) in &streams {
        let _blocking_then = rustix::io::ioctl_fionbio(file, true);
    }
    let ended = pidfd_open(pid, PidfdFlags::empty());
    let mut chunk = vec![0; 32 * 1024];
    if let Ok(ended) = ended {
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
            fds.extend(streams.iter().map(|(_, f)| PollFd::from_borrowed_fd(f.as_fd(), PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
            drop(fds);
            let mut open = ready[1..].iter();
            streams.retain_mut(|(kind, file)| {
                open.next() != Some(&true) || read_some(shared, id, *kind, file, &mut chunk) != Some(0)
            });
            if ready[0] {
                break;
            }
        }
    }
    for (kind, file) in &mut streams {
        while read_some(shared, id, *kind, file, &mut chunk).is_some_and(|n| n > 0) {}
    }
    match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Status::Code(u8::try_from(code).unwrap_or(255)),
            (None, signal) => Status::Signal { signal: signal.unwrap_or(0), core: status.core_dumped() },
        },
        Err(_) => Status::Code(255),
    }
}

/// One read; `Some(0)` at the end of the stream, `None` where nothing is there yet.
fn read_some(shared: &Shared, id: u32, kind: Kind, file: &mut File, chunk: &mut [u8]) -> Option<usize> {
    match file.read(chunk) {
        Ok(0) => Some(0),
        Ok(count) => {
            shared.port.output(kind, id, &chunk[..count]);
            shared.machine.mark_once("output");
            Some(count)
        }
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(_) => Some(0),
    }
}

/// Starts to write standard input; what is sent goes in, `None` ends it.
fn feed(shared: &Arc<Shared>, mut file: File, id: u32, over: &Arc<Mutex<bool>>) -> mpsc::Sender<Option<Vec<u8>>> {
    let (send, receive) = mpsc::channel::<Option<Vec<u8>>>();
    let (shared, over) = (Arc::clone(shared), Arc::clone(over));
    let credit = shared.manners.credit.clone();
    let say = move |message: &ToHost| {
        let over = over.lock().unwrap_or_else(PoisonError::into_inner);
        if !*over {
            shared.port.say(message);
        }
    };
    thread::spawn(move || {
        while let Ok(Some(bytes)) = receive.recv() {
            if write_all(&mut file, &bytes).is_err() {
                say(&ToHost::StdinClosed(id));
                return;
            }
            let bytes = u32::try_from(bytes.len()).unwrap_or(0);
            match credit.as_str() {
                "off" => {}
                "huge" => say(&ToHost::StdinCredit { id, bytes: u32::MAX }),
                _ => say(&ToHost::StdinCredit { id, bytes }),
            }
        }
    });
    send
}

/// A terminal's master shares its non-blocking mode with the side that reads.
fn write_all(file: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)], None)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn split(pair: &[u8]) -> Option<(OsString, OsString)> {
    let at = pair.iter().position(|b| *b == b'=')?;
    Some((OsString::from_vec(pair[..at].to_vec()), OsString::from_vec(pair[at + 1..].to_vec())))
}

/// Replaces the guest's mount points by the host's directories.
fn on_host(shared: &Shared, bytes: &[u8]) -> OsString {
    let mut bytes = bytes.to_vec();
    for (path, dir) in &shared.mounts {
        let mut from = 0;
        while let Some(at) = bytes[from..].windows(path.len()).position(|w| w == path).map(|p| p + from) {
            let dir = dir.as_os_str().as_bytes();
            bytes.splice(at..at + path.len(), dir.iter().copied());
            from = at + dir.len();
        }
    }
    OsString::from_vec(bytes)
}

/// What `execvp` finds.
fn find(program: &OsStr, path: &OsStr, dir: &Path) -> Result<OsString, i32> {
    let usable = |file: &Path| {
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().ok()?);
        Some(if file.is_file() && mode & 0o111 != 0 { Ok(()) } else { Err(13) })
    };
    let candidates: Vec<PathBuf> = if program.as_bytes().contains(&b'/') {
        vec![dir.join(program)]
    } else {
        std::env::split_paths(path).map(|d| d.join(program)).collect()
    };
    let mut errno = ENOENT;
    for file in candidates {
        match usable(&file) {
            Some(Ok(())) => return Ok(file.into()),
            Some(Err(e)) => errno = e,
            None => {}
        }
    }
    Err(errno)
}

fn wrong_or_right(how: &str, Nonce(bytes): Nonce) -> Nonce {
    match how {
        "wrong" => Nonce(bytes.map(|b| !b)),
        "zero" => Nonce([0; 16]),
        _ => Nonce(bytes),
    }
}
