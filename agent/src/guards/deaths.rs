//! Which programs are killed by signals that dump core: the kernel tells by its process connector (`linux/cn_proc.h`), whether a core is written or
//! not, and whatever `core_pattern` is. A filter in the kernel keeps all else away, so that a fork costs hardly more than without.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_proto::message::{GuardNews, MAX_SEEN};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};

use crate::{sys, text};

/// `NETLINK_CONNECTOR`.
const CONNECTOR: u32 = 11;
/// `CN_IDX_PROC`, which is the group as well, and `CN_VAL_PROC`.
const PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// No `enum proc_cn_mcast_op`. It is answered as wrong, as long as the kernel tells anybody anything (its `cn_proc_ack`).
const UNKNOWN: u32 = 0x4242;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// Where things are in a message: behind `struct nlmsghdr` and `struct cn_msg` is a `struct proc_event`.
const CN_MSG: usize = 16;
const WHAT: usize = 36;
const DATA: usize = 52;

/// `PROC_EVENT_NONE`, the answer to who wants to listen.
const NONE: u32 = 0;
/// `PROC_EVENT_COREDUMP`.
const CORE_DUMP: u32 = 0x4000_0000;
/// `PROC_EVENT_EXIT`.
const EXIT: u32 = 0x8000_0000;

/// Signals that dump core (signal(7)).
const DUMPS: [i32; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];
/// Those of them that no program gets by a fault of its own: somebody sends it, or has set a limit.
const ORDERED: [i32; 3] = [libc::SIGQUIT, libc::SIGXCPU, libc::SIGXFSZ];

/// How long the kernel's answer may take. It is there when the question is sent.
const ANSWER: Duration = Duration::from_millis(200);
/// How long a name may be that is told.
const MAX_NAME: usize = 256;

/// A program that dies.
#[derive(Debug)]
pub(super) struct Death {
    /// The thread that has the signal.
    thread: i32,
    pub(super) pid: i32,
    name: String,
    program: String,
    parent: String,
    /// As `wait` has it; none as long as it dies.
    status: Option<i32>,
}

impl Death {
    /// One that has begun, with what `/proc` still says.
    fn of(thread: i32, pid: i32, parent: i32) -> Self {
        let name = |pid: i32| {
            let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            text::lossy(name.trim_ascii_end())
        };
        let program = fs::read_link(format!("/proc/{pid}/exe")).map(|path| path.to_string_lossy().into_owned());
        let mut program = program.unwrap_or_default();
        program.truncate((0..=MAX_NAME.min(program.len())).rev().find(|n| program.is_char_boundary(*n)).unwrap_or(0));
        let parent = if parent > 0 { name(parent) } else { String::new() };
        Self { thread, pid, name: name(pid), program, parent, status: None }
    }

    fn signal(&self) -> i32 {
        self.status.unwrap_or_default() & 0x7f
    }

    pub(super) fn news(self) -> GuardNews {
        GuardNews::CoreDump {
            pid: u32::try_from(self.pid).unwrap_or(0),
            signal: self.signal(),
            core: self.status.unwrap_or_default() & 0x80 != 0,
            name: self.name,
            program: self.program,
            parent: self.parent,
        }
    }
}

/// A socket on which the kernel tells.
pub(super) struct Deaths {
    fd: OwnedFd,
    /// Those that are not told yet.
    dying: Vec<Death>,
    /// How many times the kernel had more to tell than there was room for, or more died than are kept.
    lost: u32,
    answered: bool,
}

impl Deaths {
    /// Begins to listen.
    ///
    /// # Errors
    /// Why the kernel does not tell.
    pub(super) fn open() -> Result<Self, String> {
        let failed = |what: &'static str| move |errno: Errno| format!("{what}: {}", text::errno(errno));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = std::num::NonZeroU32::new(CONNECTOR).map(Protocol::from_raw);
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)
            .map_err(failed("the kernel has no connector (CONFIG_CONNECTOR): socket"))?;
        sys::attach_filter(&fd, &filter()).map_err(failed("setsockopt SO_ATTACH_FILTER"))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, PROC)).map_err(failed("bind to the process connector"))?;
        let mut deaths = Self { fd, dying: Vec::new(), lost: 0, answered: false };
        if !deaths.ask(LISTEN).map_err(failed("ask the process connector"))? {
            return Err("the kernel tells nobody of processes that die (CONFIG_PROC_EVENTS is off, or this is no \
                        namespace of the kernel's own)"
                .to_owned());
        }
        Ok(deaths)
    }

    /// Asks the kernel for something; gives whether it answers.
    fn ask(&mut self, what: u32) -> Result<bool, Errno> {
        self.read();
        self.answered = false;
        rustix::net::send(&self.fd, &question(what), SendFlags::empty())?;
        let until = Instant::now() + ANSWER;
        self.read();
        while !self.answered {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.wait(left);
        }
        Ok(true)
    }

    /// Whether the kernel has gone on telling: one counter says whether anybody listens, and who takes back a wish to listen that he has never had
    /// switches it off for all. If it has not, it is asked to tell again.
    pub(super) fn still_tells(&mut self) -> bool {
        let tells = self.ask(UNKNOWN).unwrap_or(false);
        if !tells {
            // What comes of it is seen at the next command's end.
            let _ = self.ask(LISTEN);
        }
        tells
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Waits until there is something to read, and reads it.
    fn wait(&mut self, limit: Duration) {
        sys::poll(&mut [sys::poll_fd(&self.fd, libc::POLLIN)], Some(limit));
        self.read();
    }

    /// Reads what there is.
    pub(super) fn read(&mut self) {
        let mut buffer = [0; 1024];
        loop {
            match rustix::io::read(self.fd.as_fd(), &mut buffer) {
                Ok(0) => return,
                Ok(read) => self.take_message(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => self.lost += 1,
                Err(_) => return,
            }
        }
    }

    fn take_message(&mut self, message: &[u8]) {
        match event(message) {
            Some(Event::Answer) => self.answered = true,
            Some(Event::Dumps { thread, pid, parent }) => {
                if self.dying.iter().any(|death| death.pid == pid && death.status.is_none()) {
                    return;
                }
                if self.dying.len() < 2 * MAX_SEEN as usize {
                    self.dying.push(Death::of(thread, pid, parent));
                } else {
                    self.lost += 1;
                }
            }
            Some(Event::Exit { thread, status }) => {
                let death = self.dying.iter_mut().find(|death| death.thread == thread && death.status.is_none());
                if let Some(death) = death {
                    death.status = Some(status);
                }
            }
            None => {}
        }
    }

    /// Waits a little for those that die, and then takes what is known of them.
    pub(super) fn settle(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        self.read();
        while self.dying.iter().any(|death| death.status.is_none()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wait(left);
        }
        // What is dumped for so long is told without its signal, where the kernel does not say it yet.
        for death in self.dying.iter_mut().filter(|death| death.status.is_none()) {
            let stat = fs::read_to_string(format!("/proc/{}/stat", death.pid)).unwrap_or_default();
            death.status = Some(dies_of(&stat));
        }
    }

    /// Those that have died, without those that somebody had die.
    pub(super) fn take(&mut self) -> Vec<Death> {
        let (dead, dying) = std::mem::take(&mut self.dying).into_iter().partition(|death| death.status.is_some());
        self.dying = dying;
        let mut dead: Vec<Death> = dead;
        dead.retain(|death| !ORDERED.contains(&death.signal()));
        dead
    }

    /// Forgets what has happened up to now. One that still dies was killed before.
    pub(super) fn forget(&mut self) {
        self.dying.clear();
        self.lost = 0;
    }

    /// How often something was lost since the last call.
    pub(super) fn lost(&mut self) -> u32 {
        std::mem::take(&mut self.lost)
    }
}

/// The signal by which a process whose core is being dumped dies, going by its `/proc/PID/stat` (`exit_code`, proc_pid_stat(5)): newer kernels
/// have it there already. 0: it is not said.
fn dies_of(stat: &str) -> i32 {
    // The name, in parentheses, may be anything; behind it is the third field.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    let code = fields.and_then(|mut fields| fields.nth(52 - 3)?.parse::<i32>().ok());
    code.map_or(0, |code| code & 0x7f)
}

/// What the kernel tells.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Answer,
    Dumps { thread: i32, pid: i32, parent: i32 },
    Exit { thread: i32, status: i32 },
}

fn event(message: &[u8]) -> Option<Event> {
    let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let number = |at: usize| word(at).and_then(|word| i32::try_from(word).ok());
    if (word(CN_MSG)?, word(CN_MSG + 4)?) != (PROC, PROC) {
        return None;
    }
    match word(WHAT)? {
        NONE => Some(Event::Answer),
        CORE_DUMP => {
            // Kernels before 4.18 do not name the parent.
            let parent = number(DATA + 12).unwrap_or(0);
            Some(Event::Dumps { thread: number(DATA)?, pid: number(DATA + 4)?, parent })
        }
        EXIT => Some(Event::Exit { thread: number(DATA)?, status: number(DATA + 8)? }),
        _ => None,
    }
}

fn question(what: u32) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(40_u32.to_ne_bytes());
    message.extend(DONE.to_ne_bytes());
    message.extend([0; 10]);
    for word in [PROC, PROC, 0, 0] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(what.to_ne_bytes());
    message
}

/// Lets the kernel's answer through, cores that are dumped, and the ends of processes by signals that dump core.
fn filter() -> Vec<libc::sock_filter> {
    // `linux/bpf_common.h`.
    const LOAD_WORD: u16 = 0x20;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    // The filter reads words as they are sent on a network.
    let what = |what: u32| what.to_be();
    let low_byte = if cfg!(target_endian = "little") { DATA + 8 } else { DATA + 11 };
    let signals = DUMPS.len();
    // Steps from behind the first one to the last, which takes the message.
    let to_take = |from: usize| u8::try_from(6 + signals - from).unwrap_or(0);
    let mut steps = vec![
        step(LOAD_WORD, WHAT as u32, 0, 0),
        step(JUMP_IF, what(CORE_DUMP), to_take(1), 0),
        step(JUMP_IF, what(NONE), to_take(2), 0),
        step(JUMP_IF, what(EXIT), 0, to_take(3) - 1),
        step(LOAD_BYTE, low_byte as u32, 0, 0),
        step(AND, 0x7f, 0, 0),
    ];
    for (number, signal) in DUMPS.iter().enumerate() {
        steps.push(step(JUMP_IF, signal.cast_unsigned(), to_take(6 + number), 0));
    }
    steps.push(step(RETURN, 0, 0, 0));
    steps.push(step(RETURN, u32::MAX, 0, 0));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel sends it (`drivers/connector/cn_proc.c`).
    fn message(what: u32, data: &[u32]) -> Vec<u8> {
        let mut message = question(LISTEN);
        message.truncate(WHAT);
        message.extend(what.to_ne_bytes());
        message.extend([0; 12]);
        data.iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message.resize(DATA + 24, 0);
        message
    }

    /// Plays the filter.
    fn passes(message: &[u8]) -> bool {
        let steps = filter();
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let step = &steps[at];
            at += 1;
            match step.code {
                0x20 => a = u32::from_be_bytes(message[step.k as usize..][..4].try_into().unwrap()),
                0x30 => a = u32::from(message[step.k as usize]),
                0x54 => a &= step.k,
                0x15 => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                0x06 => return step.k != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_kernel_passes_on_what_matters() {
        assert_eq!(question(LISTEN).len(), 40);
        assert!(passes(&message(NONE, &[])));
        assert!(passes(&message(CORE_DUMP, &[7, 7, 1, 1])));
        for signal in DUMPS {
            for status in [signal, signal | 0x80] {
                assert!(passes(&message(EXIT, &[7, 7, status.cast_unsigned(), 17])), "{status}");
            }
        }
        for status in [0, 9, 15, 0x100, 0xb00, 0x0600] {
            assert!(!passes(&message(EXIT, &[7, 7, status, 17])), "{status:#x}");
        }
        // Fork, exec, a change of ids or of the name.
        for what in [1, 2, 4, 0x40, 0x80, 0x100, 0x200] {
            assert!(!passes(&message(what, &[7, 7, 11, 11])), "{what:#x}");
        }
    }

    #[test]
    fn messages_are_read() {
        assert_eq!(event(&message(CORE_DUMP, &[8, 7, 2, 1])), Some(Event::Dumps { thread: 8, pid: 7, parent: 1 }));
        assert_eq!(event(&message(EXIT, &[8, 7, 0x8b, 17])), Some(Event::Exit { thread: 8, status: 0x8b }));
        assert_eq!(event(&message(NONE, &[])), Some(Event::Answer));
        assert_eq!(event(&message(1, &[])), None);
        for cut in 0..DATA {
            assert!(event(&message(CORE_DUMP, &[8, 7])[..cut]).is_none(), "{cut}");
        }
    }

    fn deaths() -> Deaths {
        let (fd, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        Deaths { fd, dying: Vec::new(), lost: 0, answered: true }
    }

    #[test]
    fn who_dies_is_told_when_it_is_dead_and_unless_it_was_asked_to() {
        let own = std::process::id();
        let mut deaths = deaths();
        deaths.take_message(&message(CORE_DUMP, &[own, own, 1, 1]));
        deaths.take_message(&message(CORE_DUMP, &[own + 1, own, 1, 1]));
        assert!(deaths.take().is_empty(), "its signal is not known");
        deaths.take_message(&message(EXIT, &[own, own, 0x8b, 17]));
        let told: Vec<_> = deaths.take().into_iter().map(Death::news).collect();
        let [GuardNews::CoreDump { pid, name, program, signal: 11, core: true, .. }] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(*pid == own && !name.is_empty() && program.starts_with('/'));
        for signal in ORDERED {
            deaths.take_message(&message(CORE_DUMP, &[own, own, 1, 1]));
            deaths.take_message(&message(EXIT, &[own, own, signal.cast_unsigned(), 17]));
        }
        assert!(deaths.take().is_empty());
    }

    #[test]
    fn the_signal_of_a_core_that_is_being_dumped_is_read() {
        let stat = |code: &str| format!("7 (a) 1 (b) D 1{} {code}\n", " 0".repeat(52 - 5));
        assert_eq!((dies_of(&stat("3")), dies_of(&stat("139")), dies_of(&stat("0"))), (3, 11, 0));
        assert_eq!((dies_of(""), dies_of("7 (a) D 1"), dies_of(&stat("x"))), (0, 0, 0));
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(own.rsplit_once(')').unwrap().1.split_ascii_whitespace().count(), 50, "exit_code is the last");
    }

    #[test]
    fn a_core_that_takes_long_is_told_without_its_signal() {
        let mut deaths = deaths();
        deaths.take_message(&message(CORE_DUMP, &[i32::MAX.cast_unsigned(), i32::MAX.cast_unsigned(), 1, 1]));
        deaths.settle(Duration::from_millis(1));
        assert!(matches!(deaths.take().pop().unwrap().news(), GuardNews::CoreDump { signal: 0, .. }));
        for pid in 1000..1200 {
            deaths.take_message(&message(CORE_DUMP, &[pid, pid, 1, 1]));
        }
        assert_eq!((deaths.lost(), deaths.lost()), (100, 0));
    }
}
