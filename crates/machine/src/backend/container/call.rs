//! One call of an engine's program: started so that it dies with Belljar, heard within bounds, and waited for by a thread, so that it is waited for
//! even where nobody listens any more.

use std::{
    fs::File,
    io::{self, Read},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;

use super::claim::Claim;
use crate::qemu::process::Alive;

/// Most bytes of an answer.
const MOST_ANSWER: usize = 4 << 20;
/// Bytes of what was said on standard error that are kept: its end.
const KEPT: usize = 16 << 10;
/// The kernel's function in which a process waits that opens a named pipe (`fs/pipe.c`).
const AT_PIPE: &str = "wait_for_partner";
/// The threads read a pipe and wait.
const STACK: usize = 128 << 10;

/// The groups of all calls under way: those that finish without Belljar are ended by it if they do not in time.
static UNDER_WAY: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends all calls under way: the engine had its time, and does not answer.
pub fn end_calls() {
    for group in UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = kill_process_group(*group, Signal::KILL);
    }
}

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) struct CallEnd {
    /// How the program did.
    pub(crate) status: ExitStatus,
    /// What it wrote to standard output, where that was wanted.
    pub(crate) stdout: Arc<[u8]>,
    /// It wrote more than is taken.
    pub(crate) cut: bool,
    /// The end of what it said on standard error, for a person.
    pub(crate) stderr: String,
}

impl CallEnd {
    /// What it said last, or how it ended.
    pub(crate) fn said(&self) -> String {
        if self.stderr.is_empty() { self.status.to_string() } else { self.stderr.clone() }
    }
}

/// A call under way. Dropping it leaves it to its end, unless it is to end with whoever waits for it.
#[derive(Debug)]
pub(crate) struct Call {
    group: Arc<Mutex<Option<Pid>>>,
    end: watch::Receiver<Option<CallEnd>>,
    said: Arc<Mutex<Vec<u8>>>,
    ends_when_dropped: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.ends_when_dropped {
            self.kill();
        }
    }
}

impl Call {
    /// Starts a call; standard output is taken if `answers`. Of the thread that starts it the program's life depends.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(command: Command, answers: bool) -> io::Result<Self> {
        Self::start_with(command, answers, Vec::new(), None)
    }

    /// Starts a call whose standard output goes to a file.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start_into(command: Command, into: File) -> io::Result<Self> {
        // Nobody bounds what it writes any more when nobody waits for it.
        Ok(Self::start_to(command, (Stdio::null(), into.into()), Vec::new(), None)?.ending_when_dropped())
    }

    /// Starts a call whose standard input comes from a file, and whose standard output is taken.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start_from(command: Command, from: File) -> io::Result<Self> {
        Self::start_to(command, (from.into(), Stdio::piped()), Vec::new(), None)
    }

    /// The same, with calls that are made when it has ended, whoever listens then. One that does not end well leaves a doubt about the claim, whether all is gone.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start_with(
        command: Command,
        answers: bool,
        afterwards: Vec<Command>,
        claim: Option<Arc<Claim>>,
    ) -> io::Result<Self> {
        let output = if answers { Stdio::piped() } else { Stdio::null() };
        Self::start_to(command, (Stdio::null(), output), afterwards, claim)
    }

    fn start_to(
        mut command: Command,
        (input, output): (Stdio, Stdio),
        afterwards: Vec<Command>,
        claim: Option<Arc<Claim>>,
    ) -> io::Result<Self> {
        command.stdin(input).stderr(Stdio::piped()).stdout(output);
        let alive = Alive::begin();
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = Arc::new(Mutex::new(pid));
        let under_way = || UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        under_way().extend(pid);
        let (told, end) = watch::channel(None);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let of_child = Arc::clone(&group);
        let said = Arc::default();
        let of_thread: Arc<Mutex<Vec<u8>>> = Arc::clone(&said);
        let wait = move || {
            let into = Arc::clone(&of_thread);
            let errors = stderr.and_then(|pipe| spawn(move || hear(pipe, KEPT, true, &into)).ok());
            let answer = Mutex::default();
            let cut = stdout.is_some_and(|pipe| hear(pipe, MOST_ANSWER, false, &answer));
            let answer = answer.into_inner().unwrap_or_else(PoisonError::into_inner);
            drop(errors.map(thread::JoinHandle::join));
            let status = child.wait();
            *of_child.lock().unwrap_or_else(PoisonError::into_inner) = None;
            under_way().retain(|call| Some(*call) != pid);
            let mut is_gone = status.as_ref().is_ok_and(ExitStatus::success);
            if let Ok(status) = status {
                let stderr = clean(&of_thread.lock().unwrap_or_else(PoisonError::into_inner));
                told.send_replace(Some(CallEnd { status, stdout: answer.into(), cut, stderr }));
            }
            for mut command in afterwards {
                let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                // What is left is found by its labels.
                is_gone &= silent.status().is_ok_and(|status| status.success());
            }
            if let Some(claim) = claim.filter(|_| !is_gone) {
                claim.doubt();
            }
            drop(alive);
        };
        match spawn(wait) {
            Ok(_) => Ok(Self { group, end, said, ends_when_dropped: false }),
            Err(error) => {
                let call = Self { group, end, said, ends_when_dropped: false };
                call.kill();
                Err(error)
            }
        }
    }

    /// The same, to be killed when it is dropped.
    pub(crate) fn ending_when_dropped(mut self) -> Self {
        self.ends_when_dropped = true;
        self
    }

    /// Waits for its end; none if that will never be known.
    pub(crate) async fn ended(&mut self) -> Option<CallEnd> {
        self.end.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Forgets what it has said on standard error up to now, which says nothing of its end.
    pub(crate) fn forget_said(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What it has said on standard error up to now, for a person.
    pub(crate) fn said_so_far(&self) -> String {
        clean(&self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<CallEnd> {
        self.end.borrow().clone()
    }

    /// Whether a thread of the program stands still at a named pipe that nobody writes to (proc_pid_wchan(5)); no where the kernel does not say.
    pub(crate) fn waits_at_pipe(&self) -> bool {
        let Some(pid) = *self.group.lock().unwrap_or_else(PoisonError::into_inner) else { return false };
        let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
        let waits = |thread: std::fs::DirEntry| {
            std::fs::read_to_string(thread.path().join("wchan")).is_ok_and(|function| function.trim() == AT_PIPE)
        };
        threads.into_iter().flatten().flatten().any(waits)
    }

    /// Ends it, with all that it started and that did not leave it.
    pub(crate) fn kill(&self) {
        // The lock is held, so that the number is still its own.
        if let Some(group) = *self.group.lock().unwrap_or_else(PoisonError::into_inner) {
            let killed = kill_process_group(group, Signal::KILL);
            if killed.is_err() {
                // It has not come as far as having a group.
                let _ = rustix::process::kill_process(group, Signal::KILL);
            }
        }
    }

    /// Waits for its end, for so long; one that takes longer is killed.
    ///
    /// # Errors
    /// If it took longer.
    pub(crate) async fn within(mut self, limit: Duration) -> Result<CallEnd, Overdue> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(Some(end)) => Ok(end),
            _ => {
                self.kill();
                Err(Overdue(limit))
            }
        }
    }
}

/// A call took longer than it may.
#[derive(Debug)]
pub(crate) struct Overdue(pub(crate) Duration);

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name("engine".into()).stack_size(STACK).spawn(work)
}

/// Reads to the end and keeps the first bytes, or the last, as they come; tells whether there were more.
fn hear(mut pipe: impl Read, most: usize, last: bool, kept: &Mutex<Vec<u8>>) -> bool {
    let mut cut = false;
    let mut buffer = [0; 8192];
    loop {
        let read = match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => return cut,
            Ok(read) => read,
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if last {
            kept.extend_from_slice(&buffer[..read]);
            let over = kept.len().saturating_sub(most);
            cut |= over > 0;
            kept.drain(..over);
        } else {
            let room = most - kept.len();
            cut |= read > room;
            kept.extend_from_slice(&buffer[..read.min(room)]);
        }
    }
}

/// Text for a person: lines without control characters.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(|line| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>());
    let lines: Vec<String> = lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn an_answer_is_told_with_what_was_said_beside_it() {
        let call = Call::start(shell("echo answer; printf 'a\\033[31m\\nb\\n' >&2; exit 3"), true).unwrap();
        let end = call.within(Duration::from_secs(20)).await.unwrap();
        assert_eq!((end.status.code(), &*end.stdout, end.cut), (Some(3), &b"answer\n"[..], false));
        assert_eq!(end.said(), "a [31m\nb");
    }

    #[tokio::test]
    async fn what_never_ends_is_killed() {
        let mut command = shell("sleep 1000");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let call = Call::start(command, true).unwrap();
        let mut end = call.end.clone();
        assert!(call.within(Duration::from_millis(50)).await.is_err());
        let end = end.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(end.status.code().is_none());
    }

    #[tokio::test]
    async fn what_is_forgotten_is_no_part_of_the_end() {
        let (read, write) = io::pipe().unwrap();
        let mut call = Call::start_to(
            shell("echo before >&2; read -r line; echo after >&2"),
            (read.into(), Stdio::null()),
            Vec::new(),
            None,
        )
        .unwrap();
        while call.said.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        call.forget_said();
        drop(write);
        assert_eq!(call.ended().await.unwrap().stderr, "after");
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let heard = |bytes: &[u8], last| {
            let kept = Mutex::default();
            let cut = hear(bytes, 4, last, &kept);
            (kept.into_inner().unwrap(), cut)
        };
        assert_eq!(heard(b"abcdef", false), (b"abcd".to_vec(), true));
        assert_eq!(heard(b"abcdef", true), (b"cdef".to_vec(), true));
        assert_eq!(heard(b"abc", true), (b"abc".to_vec(), false));
    }
}
