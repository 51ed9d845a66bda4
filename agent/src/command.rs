//! A command that runs: its pipes or its terminal.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_proto::frame::{Kind, MAX_PAYLOAD};
use belljar_proto::message::{
    AskFiles, Exec, ExecId, LATE_BYTES, LATE_MOST, LATE_QUIET, Mount, Nonce, OutputEnd, STDIN_WINDOW, Status, Stdio,
    ToHost, WindowSize,
};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::termios::{InputModes, OptionalActions, SpecialCodeIndex, Winsize};

use crate::late;
use crate::link::Link;
use crate::look;
use crate::mounts;
use crate::spawn::{self, Prepared, Refused, Streams};
use crate::sys;

/// Most that is read of a terminal after its command ended: more than the kernel keeps for it.
const TERMINAL_REST: u64 = 256 * 1024;
/// Credit is given back in pieces of at least this size, or when all is taken.
const CREDIT_STEP: u32 = STDIN_WINDOW / 8;

/// Most bytes that a left-behind process may write to nobody.
const PATIENCE: usize = 64 << 20;

/// A pipe that a process left behind may still write to.
pub(crate) struct Leftover {
    pub(crate) fd: OwnedFd,
    /// Bytes that it may still write.
    patience: usize,
}

impl Leftover {
    /// What left-behind processes print goes nowhere, but does not kill them either, unless they only waste the processor. `false`: nothing
    /// more comes, or too much came.
    pub(crate) fn drain(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(read) if read > 0 && read < self.patience => {
                self.patience -= read;
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            _ => false,
        }
    }
}

/// Standard input on its way to the command.
pub(crate) struct Input {
    pub(crate) fd: OwnedFd,
    queue: VecDeque<Vec<u8>>,
    /// Taken of the queue's first piece.
    taken: usize,
    /// Bytes in the queue and credit not yet given back, never more than the window.
    outstanding: u32,
    uncredited: u32,
    eof: bool,
    terminal: bool,
}

/// One stream of output.
pub(crate) struct Output {
    pub(crate) fd: OwnedFd,
    kind: Kind,
    /// Bytes still to be read once the command has ended.
    rest: u64,
    /// Since when there was nothing to read, once the command has ended.
    quiet_since: Option<Instant>,
    /// Bytes read without a pause, and when the last of them were.
    burst: usize,
    last: Instant,
    /// Not to be looked at before.
    pub(crate) held_until: Option<Instant>,
}

/// A stream that has carried this much without a pause is a flood.
const FLOOD: usize = 64 * 1024;
/// How long a stream may be silent without its being a pause.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a flood is left alone to gather when a look at it gave little. Without this each small write of the command wakes the
/// agent, which on one processor costs more than the bytes do: a third of the throughput is left. Ordinary
/// output never waits, so that standard output and error reach a person in the order in which they were written.
const GATHER: Duration = Duration::from_millis(3);
/// The same as [`LATE_QUIET`] and [`LATE_MOST`] for a terminal: its processes are hung up when the command ends.
const TERMINAL_QUIET: Duration = Duration::from_millis(200);
const TERMINAL_MOST: Duration = Duration::from_secs(1);
/// Room for what gathers, in bytes; the kernel's default would be full too soon.
const PIPE_SIZE: usize = 1 << 20;

impl Output {
    fn new(fd: OwnedFd, kind: Kind) -> Self {
        Self { fd, kind, rest: 0, quiet_since: None, burst: 0, last: Instant::now(), held_until: None }
    }

    /// Counts what was read, and lets a flood gather.
    fn count(&mut self, read: usize) {
        let now = Instant::now();
        if now.duration_since(self.last) > PAUSE {
            self.burst = 0;
        }
        self.last = now;
        self.burst = self.burst.saturating_add(read);
        self.rest = self.rest.saturating_sub(read as u64);
        self.quiet_since = None;
        let gathers = self.burst >= FLOOD && read < MAX_PAYLOAD / 2;
        self.held_until = gathers.then(|| now + GATHER);
    }
}

/// A command.
pub(crate) struct Command {
    pub(crate) id: ExecId,
    nonce: Nonce,
    pub(crate) pid: Pid,
    /// Where the child says that it could not become the command, and what it was to become.
    pub(crate) starting: Option<(OwnedFd, Box<Prepared>)>,
    pub(crate) input: Option<Input>,
    pub(crate) outputs: Vec<Output>,
    status: Option<Status>,
    /// Until when what it left behind is listened to.
    grace: Option<Instant>,
    /// When somebody who has its output open was last seen at work, which is no silence; and when that is looked at next.
    busy_at: Option<Instant>,
    look_at: Option<Instant>,
    seen: late::Seen,
    /// The grace is over, and what was in the pipes then is counted.
    closing: bool,
    /// Bytes that were read since it ended.
    late: u64,
    /// How far the pipe of questions was written to when it had ended.
    pub(crate) written: Option<u64>,
    /// The host knows that it has ended and its output has not.
    pub(crate) lingers: bool,
    /// It could not be started, and the host knows.
    pub(crate) refused: bool,
    /// The terminal's other end.
    terminal: Option<OwnedFd>,
}

/// What came of a step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Goes on.
    On,
    /// All that was to be read for now is read.
    Dry,
}

impl Command {
    /// Starts a command. The shares are made to look like its user's own, as far as that can be had.
    pub(crate) fn start(exec: &Exec, base_env: &[Vec<u8>], shares: Vec<Mount>) -> Result<Self, Refused> {
        let term = match &exec.stdio {
            Stdio::Pty { term, .. } => Some(term.as_str()),
            Stdio::Pipes | Stdio::PipesNoStdin => None,
        };
        let prepared = Box::new(spawn::prepare(exec, base_env, term)?.with_shares(shares));
        match &exec.stdio {
            Stdio::Pty { size, .. } => Self::on_terminal(exec, *size, prepared),
            Stdio::Pipes | Stdio::PipesNoStdin => Self::on_pipes(exec, prepared),
        }
    }

    /// Answers a question after files, in a process of its own.
    pub(crate) fn files(asked: &AskFiles, clock_set: bool) -> Result<Self, Errno> {
        let (stdout, stdout_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&stdout, true)?;
        let Some(pid) = sys::fork()? else {
            drop(stdout);
            let _ = rustix::process::setsid();
            let mut out = std::io::BufWriter::with_capacity(MAX_PAYLOAD, std::fs::File::from(stdout_end));
            let answered = look::answer(&asked.query, clock_set, &mut out).and_then(|()| out.flush());
            sys::exit_now(i32::from(answered.is_err()))
        };
        Ok(Self::new(asked.id, asked.nonce, pid, vec![Output::new(stdout, Kind::Stdout)]))
    }

    fn new(id: ExecId, nonce: Nonce, pid: Pid, outputs: Vec<Output>) -> Self {
        Self {
            id,
            nonce,
            pid,
            starting: None,
            input: None,
            outputs,
            status: None,
            grace: None,
            busy_at: None,
            look_at: None,
            seen: late::Seen::default(),
            closing: false,
            late: 0,
            written: None,
            lingers: false,
            refused: false,
            terminal: None,
        }
    }

    fn on_pipes(exec: &Exec, prepared: Box<Prepared>) -> Result<Self, Refused> {
        let failed = |errno| Refused::new("make pipes", errno);
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed);
        let (stdin, input) = if exec.stdio == Stdio::Pipes {
            let (ours, theirs) = pipe().map(|(read, write)| (write, read))?;
            rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
            (theirs, Some(Input::new(ours, false)))
        } else {
            // A pipe that nobody writes to, where a bare system has no such device.
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .or_else(|_| pipe().map(|(read, _)| read))?;
            (null, None)
        };
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        if let Some(identity) = &prepared.identity {
            // `/dev/stdout` and its like open the pipe anew, by its owner and mode. A device is nobody's to give away.
            let pipes = [Some(&stdout_end), Some(&stderr_end), input.is_some().then_some(&stdin)];
            for pipe in pipes.into_iter().flatten() {
                let owner = (Some(Uid::from_raw(identity.uid)), Some(Gid::from_raw(identity.gid)));
                rustix::fs::fchown(pipe, owner.0, owner.1).map_err(failed)?;
            }
        }
        for ours in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(ours, true).map_err(failed)?;
            let _ = rustix::pipe::fcntl_setpipe_size(ours, PIPE_SIZE);
        }
        let (pid, report) = spawn::start(
            &prepared,
            &Streams { stdin: stdin.as_fd(), stdout: stdout_end.as_fd(), stderr: stderr_end.as_fd(), terminal: false },
        )
        .map_err(|errno| Refused::new("fork", errno))?;
        let outputs = vec![Output::new(stdout, Kind::Stdout), Output::new(stderr, Kind::Stderr)];
        let new = Self::new(exec.id, exec.nonce, pid, outputs);
        Ok(Self { starting: Some((report, prepared)), input, ..new })
    }

    fn on_terminal(exec: &Exec, size: WindowSize, prepared: Box<Prepared>) -> Result<Self, Refused> {
        let failed = |errno| Refused::new("make a terminal", errno);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = match rustix::pty::openpt(flags) {
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::IO) => {
                mounts::terminals();
                rustix::pty::openpt(flags)
            }
            other => other,
        }
        .map_err(failed)?;
        rustix::pty::grantpt(&ours).map_err(failed)?;
        rustix::pty::unlockpt(&ours).map_err(failed)?;
        // By its own ioctl where the kernel has it: /dev/pts need not be mounted where we look.
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)
            .or_else(|_| {
                let path = rustix::pty::ptsname(&ours, Vec::new())?;
                let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty())
            })
            .map_err(failed)?;
        set_size(&ours, size).map_err(failed)?;
        if let Ok(mut settings) = rustix::termios::tcgetattr(&theirs) {
            settings.input_modes |= InputModes::IUTF8;
            let _ = rustix::termios::tcsetattr(&theirs, OptionalActions::Now, &settings);
        }
        if let Some(identity) = &prepared.identity {
            let _ = rustix::fs::fchown(&theirs, Some(Uid::from_raw(identity.uid)), None);
        }
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(&ours, 3).map_err(failed);
        let (input, output) = (duplicate()?, duplicate()?);
        let (pid, report) = spawn::start(
            &prepared,
            &Streams { stdin: theirs.as_fd(), stdout: theirs.as_fd(), stderr: theirs.as_fd(), terminal: true },
        )
        .map_err(|errno| Refused::new("fork", errno))?;
        let new = Self::new(exec.id, exec.nonce, pid, vec![Output::new(output, Kind::Stdout)]);
        let input = Some(Input::new(input, true));
        Ok(Self { starting: Some((report, prepared)), input, terminal: Some(ours), ..new })
    }

    /// Tells the host how the start went, once that is known.
    pub(crate) fn check_start(&mut self, link: &mut Link) {
        let Some((report, prepared)) = &self.starting else {
            return;
        };
        let Some(outcome) = spawn::failure(report, prepared) else {
            return;
        };
        self.starting = None;
        let id = self.id;
        match outcome {
            Ok(()) => {
                let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
                link.queue(&ToHost::Started { id, pid });
            }
            Err(Refused { what, errno }) => {
                self.refused = true;
                link.queue(&ToHost::ExecFailed { id, what, errno });
            }
        }
    }

    /// The child is gone. What is in its pipes now is still to be read, and what processes that it left behind write, as long as
    /// they do, but not for ever.
    pub(crate) fn ended(&mut self, status: Status) {
        self.status = Some(status);
        let most = if self.terminal.is_some() { TERMINAL_MOST } else { LATE_MOST };
        self.grace = Some(Instant::now() + most);
        // Its silence before the end says nothing of what comes after it.
        self.outputs.iter_mut().for_each(|output| output.quiet_since = None);
        self.count_rest();
    }

    fn count_rest(&mut self) {
        for output in &mut self.outputs {
            output.rest = if self.terminal.is_some() {
                TERMINAL_REST
            } else {
                rustix::io::ioctl_fionread(&output.fd).unwrap_or(0)
            };
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// Reads one piece of output into the link, which has to be idle.
    pub(crate) fn pump(&mut self, at: usize, link: &mut Link) -> Step {
        let ended = self.has_ended();
        let listens = self.grace.is_none_or(|until| Instant::now() < until);
        if !listens && !self.closing {
            self.closing = true;
            self.count_rest();
        }
        let Some(output) = self.outputs.get_mut(at) else {
            return Step::Dry;
        };
        let limit = if !listens {
            usize::try_from(output.rest).map_or(MAX_PAYLOAD, |rest| rest.min(MAX_PAYLOAD))
        } else {
            MAX_PAYLOAD
        };
        if limit == 0 {
            return Step::Dry;
        }
        let is_terminal = self.terminal.is_some();
        let read = link.bulk(output.kind, self.id, |room| {
            let limit = limit.min(room.len());
            let mut filled = 0;
            loop {
                match rustix::io::read(&output.fd, &mut room[filled..limit]) {
                    Err(Errno::INTR) => {}
                    // A terminal gives its bytes in small pieces.
                    Ok(read) if is_terminal && read > 0 && filled + read < limit => filled += read,
                    Ok(read) => return Ok(filled + read),
                    // What this was about is seen again at the next read.
                    Err(_) if filled > 0 => return Ok(filled),
                    Err(errno) => return Err(errno),
                }
            }
        });
        match read {
            Err(Errno::AGAIN) => {
                output.rest = 0;
                output.quiet_since.get_or_insert_with(Instant::now);
                Step::Dry
            }
            // A terminal reports an error when nobody has its other end any more.
            Ok(0) | Err(_) => {
                self.outputs.remove(at);
                Step::Dry
            }
            Ok(read) => {
                output.count(read);
                if ended {
                    output.held_until = None;
                }
                let step = if output.held_until.is_some() { Step::Dry } else { Step::On };
                if ended {
                    self.late += read as u64;
                    if self.late > LATE_BYTES && !self.closing {
                        self.grace = Some(Instant::now());
                    }
                }
                step
            }
        }
    }

    /// The record of the end, once all output before it is read.
    pub(crate) fn record(&mut self) -> Option<ToHost> {
        let status = self.status?;
        self.look_who_works();
        let drained = self.outputs.iter().all(|output| output.rest == 0);
        if self.refused || !drained || self.quiet_at().is_some_and(|at| Instant::now() < at) {
            return None;
        }
        let now = Instant::now();
        let quiet = self.quiet();
        let is_over = self.grace.is_some_and(|until| until <= now) && self.terminal.is_none();
        let is_busy = is_over && self.busy_at.is_some_and(|at| now < at + quiet);
        let is_quiet = |output: &Output| output.quiet_since.is_some_and(|since| now >= since + quiet);
        let output = if self.outputs.is_empty() {
            OutputEnd::Whole
        } else if self.outputs.iter().all(is_quiet) {
            if is_busy { OutputEnd::LeftBusy } else { OutputEnd::LeftOpen }
        } else {
            OutputEnd::Cut
        };
        Some(ToHost::Exited { id: self.id, nonce: self.nonce, status, output })
    }

    /// Has silence begin anew where those who have the output open are at work.
    fn look_who_works(&mut self) {
        // A terminal's processes are hung up.
        if self.terminal.is_some() || self.outputs.is_empty() {
            return;
        }
        let now = Instant::now();
        let look_at = *self.look_at.get_or_insert(now + late::LOOK);
        let ends = self.quiet_at().is_some_and(|at| at <= now);
        let listens = self.grace.is_some_and(|until| now < until);
        if listens && (ends || look_at <= now) {
            let is_at_work = self.seen.at_work(self.outputs.iter().map(|output| output.fd.as_fd()));
            let looked = Instant::now();
            // Where they leave the agent hardly any time, looks must not take all of that.
            self.look_at = Some(looked + late::LOOK.max(late::SHARE * looked.duration_since(now)));
            if is_at_work {
                self.busy_at = Some(looked);
            }
        }
    }

    fn quiet(&self) -> Duration {
        if self.terminal.is_some() { TERMINAL_QUIET } else { LATE_QUIET }
    }

    /// When nothing more is expected of what an ended command left behind.
    pub(crate) fn quiet_at(&self) -> Option<Instant> {
        let (grace, quiet) = (self.grace?, self.quiet());
        let silent = |output: &Output| output.quiet_since.map(|since| since.max(self.busy_at.unwrap_or(since)));
        self.outputs.iter().map(|output| silent(output).map_or(grace, |since| grace.min(since + quiet))).max()
    }

    /// When an ended command is to be looked at again.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let quiet_at = self.quiet_at()?;
        Some(self.look_at.map_or(quiet_at, |at| at.min(quiet_at)))
    }

    /// Pipes that a process left behind may still write to. A terminal is hung up instead.
    pub(crate) fn into_leftovers(self) -> Vec<Leftover> {
        if self.terminal.is_some() {
            return Vec::new();
        }
        self.outputs.into_iter().map(|output| Leftover { fd: output.fd, patience: PATIENCE }).collect()
    }

    /// Sends a signal to the command's process group, and to what runs in the foreground of its terminal.
    pub(crate) fn signal(&self, signal: i32) {
        if self.has_ended() {
            return;
        }
        let pid = self.pid.as_raw_nonzero().get();
        // Before its own session is made there is no group yet.
        if sys::kill(-pid, signal).is_err() {
            let _ = sys::kill(pid, signal);
        }
        let foreground = self.terminal.as_ref().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
        if let Some(group) = foreground.filter(|&group| group != self.pid) {
            let _ = sys::kill(-group.as_raw_nonzero().get(), signal);
        }
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = set_size(terminal, size);
        }
    }

    /// Takes standard input from the host. `false`: the host sent more than there was room for.
    pub(crate) fn take_input(&mut self, bytes: Vec<u8>) -> bool {
        let Some(input) = &mut self.input else {
            // The command has closed it; the host may not know yet.
            return true;
        };
        let outstanding = input.outstanding as usize + bytes.len();
        if outstanding > STDIN_WINDOW as usize || input.eof {
            return false;
        }
        input.outstanding = outstanding as u32;
        input.queue.push_back(bytes);
        true
    }

    pub(crate) fn end_input(&mut self) {
        if let Some(input) = &mut self.input {
            input.eof = true;
        }
    }

    /// Writes what the command takes of its standard input.
    pub(crate) fn feed(&mut self, link: &mut Link) {
        let Some(input) = &mut self.input else {
            return;
        };
        let open = input.write();
        let credit_due = input.uncredited >= CREDIT_STEP || input.queue.is_empty();
        if open && credit_due && input.uncredited > 0 {
            let bytes = std::mem::take(&mut input.uncredited);
            input.outstanding -= bytes;
            link.queue(&ToHost::StdinCredit { id: self.id, bytes });
        }
        if !open {
            self.close_input(link);
        } else if input.eof && input.queue.is_empty() {
            if input.terminal {
                input.type_eof();
            }
            self.input = None;
        }
    }

    /// The command reads no more.
    pub(crate) fn close_input(&mut self, link: &mut Link) {
        if self.input.take().is_some_and(|input| !input.eof) {
            link.queue(&ToHost::StdinClosed(self.id));
        }
    }
}

impl Input {
    fn new(fd: OwnedFd, terminal: bool) -> Self {
        Self { fd, queue: VecDeque::new(), taken: 0, outstanding: 0, uncredited: 0, eof: false, terminal }
    }

    pub(crate) fn wants_to_write(&self) -> bool {
        !self.queue.is_empty() || self.eof
    }

    /// `false`: nobody reads any more.
    fn write(&mut self) -> bool {
        while let Some(piece) = self.queue.front() {
            match rustix::io::write(&self.fd, &piece[self.taken..]) {
                Ok(written) => {
                    self.taken += written;
                    self.uncredited += written as u32;
                    if self.taken == piece.len() {
                        self.queue.pop_front();
                        self.taken = 0;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// A terminal has no end: what is typed there says so.
    fn type_eof(&self) {
        let eof =
            rustix::termios::tcgetattr(&self.fd).map_or(4, |settings| settings.special_codes[SpecialCodeIndex::VEOF]);
        let _ = rustix::io::write(&self.fd, &[eof]);
    }
}

fn set_size(terminal: &OwnedFd, size: WindowSize) -> Result<(), Errno> {
    rustix::termios::tcsetwinsize(
        terminal,
        Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 },
    )
}
