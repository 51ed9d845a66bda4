//! The loop of a disk server: QEMU's requests on one socket, Belljar's orders on another, and the time.
//!
//! One thread does one request after another. What is put off or hangs waits beside the others, and is done when it is answered, so that a flush in
//! between does not cover it.

use std::{
    collections::VecDeque,
    io::{self, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

use crate::{
    answers::{Answers, SendError},
    arriving::{Arrived, Arriving, Pipe},
    control::{Answer, MAX_LINE, Order},
    disk::{Fate, LabDisk, When},
    nbd::{self, Conversation, Malformed, Request, Said},
};

/// Bytes that are read at a time, if no more are known to come.
const READ: usize = 32 << 10;
/// Answers that wait to be taken, in bytes, before no more requests are.
const MAX_UNSENT: u64 = 64 << 20;
/// Requests that wait before no more are taken; QEMU has 16 under way at most (`MAX_NBD_REQUESTS`).
const MAX_WAITING: usize = 256;

/// Why a server ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What came is not what QEMU sends.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Belljar's order is none.
    #[error("an order that is none: {0}")]
    Order(String),
    /// The host cannot read or write the disk's files. What a guest would make of that is not to be believed.
    #[error("the host cannot read or write the files of the disk: {0}; make room where the run's directory is")]
    Host(io::Error),
    /// A socket does not work.
    #[error("waiting for requests: {0}")]
    Io(#[from] io::Error),
}

/// A request that is not done yet.
struct Waiting {
    cookie: u64,
    operation: Option<belljar_guest_spec::fault::Operation>,
    offset: u64,
    length: u32,
    fua: bool,
    payload: Vec<u8>,
    path: u32,
    fate: Fate,
}

impl Waiting {
    fn of(request: &Request<'_>, fate: Fate) -> Self {
        let Request { cookie, operation, offset, length, fua, payload, path } = *request;
        Self { cookie, operation, offset, length, fua, payload: payload.to_vec(), path, fate }
    }

    /// What was asked, and what becomes of it.
    fn parts(&mut self) -> (Request<'_>, &mut Fate) {
        let Self { cookie, operation, offset, length, fua, payload, path, fate } = self;
        let (cookie, operation, offset, length, fua, path) = (*cookie, *operation, *offset, *length, *fua, *path);
        (Request { cookie, operation, offset, length, fua, payload, path }, fate)
    }
}

/// Bytes that have come, of which the first are done with.
#[derive(Default)]
struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads what is there; gives whether the other end is.
    fn read(&mut self, mut from: impl Read, more: usize) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = self.end + more.max(READ);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        match from.read(&mut self.buffer[self.end..]) {
            Ok(read) => {
                self.end += read;
                Ok(read > 0)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// QEMU's end of one of the disk's paths.
struct Client {
    path: u32,
    stream: UnixStream,
    conversation: Conversation,
    incoming: Incoming,
    /// A request that is not there as a whole, of which the bytes go to the disk as they come.
    arriving: Option<Arriving>,
    pipe: Option<Pipe>,
    outgoing: Answers,
}

impl Client {
    fn begin(path: u32, stream: UnixStream, disk: &LabDisk) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut outgoing = Answers::default();
        let conversation = Conversation::begin(disk.export(), outgoing.buffer());
        let (incoming, pipe) = (Incoming::default(), Pipe::new());
        Ok(Self { path, stream, conversation, incoming, arriving: None, pipe, outgoing })
    }
}

/// Belljar's line, by which lines to further QEMUs come.
struct Control {
    stream: UnixStream,
    lines: VecDeque<OwnedFd>,
}

/// Most lines that wait for their order.
const MAX_LINES: usize = 4;

impl Read for &mut Control {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_LINES))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.stream, &mut [IoSliceMut::new(buffer)], &mut message, flags)?;
        for part in message.drain() {
            if let RecvAncillaryMessage::ScmRights(lines) = part {
                self.lines.extend(lines);
            }
        }
        self.lines.truncate(MAX_LINES);
        Ok(received.bytes)
    }
}

/// What Belljar's orders led to.
struct Obeyed {
    /// Belljar is still there.
    stays: bool,
    /// The lines to a QEMU that takes the place of the one before, with their paths.
    lines: Vec<(u32, UnixStream)>,
}

/// Serves a disk until Belljar closes `control`. `qemu` are the lines to QEMU, one for each path of the disk.
///
/// # Errors
/// When QEMU or Belljar say what they never say, or a socket does not work.
pub fn serve(mut disk: LabDisk, qemu: Vec<UnixStream>, control: UnixStream) -> Result<(), ServeError> {
    control.set_nonblocking(true)?;
    let mut control = Control { stream: control, lines: VecDeque::new() };
    let begun = (0..).zip(qemu).map(|(path, stream)| Client::begin(path, stream, &disk));
    let mut clients = begun.collect::<io::Result<Vec<_>>>()?;
    let mut orders = Incoming::default();
    let mut answers = Answers::default();
    let mut waiting: Vec<Waiting> = Vec::new();
    loop {
        if let Some(error) = disk.take_broken() {
            return Err(ServeError::Host(error));
        }
        let (of_qemu, of_belljar) = wait(&clients, &control.stream, &answers, &waiting, &disk)?;
        let over = PollFlags::HUP | PollFlags::ERR;
        if of_belljar.intersects(PollFlags::IN | over) {
            let obeyed = take_orders(&mut control, &mut orders, &mut answers, &mut disk)?;
            let now = Instant::now();
            for one in &mut waiting {
                let (request, fate) = one.parts();
                disk.decide_again(&request, fate, now);
            }
            disk.all_decided();
            if !obeyed.stays {
                return Ok(());
            }
            if !obeyed.lines.is_empty() {
                for (path, line) in obeyed.lines {
                    // What the one before had asked for is nobody's.
                    disk.gone(path);
                    clients.retain(|client| client.path != path);
                    waiting.retain(|one| one.path != path);
                    clients.push(Client::begin(path, line, &disk)?);
                }
                continue;
            }
        }
        if !sent(answers.send(&control.stream).map(|()| true))? {
            return Ok(());
        }
        finish(&mut disk, &mut waiting, &mut clients);
        let mut gone = Vec::new();
        for (client, of_it) in clients.iter_mut().zip(of_qemu) {
            let mut stays = true;
            if of_it.intersects(PollFlags::IN | over) {
                stays = client.take(&mut disk, &mut waiting)?;
            }
            stays &= sent(client.outgoing.send(&client.stream).map(|()| true))?;
            if !stays {
                disk.gone(client.path);
                gone.push(client.path);
            }
        }
        // The disk stays: whoever asks for it may want to know what was asked of it, and another QEMU may come.
        clients.retain(|client| !gone.contains(&client.path));
        waiting.retain(|one| !gone.contains(&one.path));
    }
}

/// Whether the other end is still there to take what was sent.
fn sent(result: Result<bool, SendError>) -> Result<bool, ServeError> {
    match result {
        Ok(is_there) => Ok(is_there),
        Err(SendError::Socket(error)) if is_gone(&error) => Ok(false),
        Err(SendError::Socket(error)) => Err(ServeError::Io(error)),
        Err(SendError::File(error)) => Err(ServeError::Host(error)),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Waits until there is something to do: what there is of each client, and of Belljar.
fn wait(
    clients: &[Client],
    control: &UnixStream,
    answers: &Answers,
    waiting: &[Waiting],
    disk: &LabDisk,
) -> io::Result<(Vec<PollFlags>, PollFlags)> {
    let mut of_control = PollFlags::IN;
    of_control.set(PollFlags::OUT, answers.unsent() > 0);
    let mut sockets = vec![PollFd::new(control, of_control)];
    for client in clients {
        let mut of_qemu = PollFlags::empty();
        of_qemu.set(PollFlags::IN, waiting.len() < MAX_WAITING && client.outgoing.unsent() < MAX_UNSENT);
        of_qemu.set(PollFlags::OUT, client.outgoing.unsent() > 0);
        sockets.push(PollFd::new(&client.stream, of_qemu));
    }
    // What is held waits for an order.
    let due = waiting
        .iter()
        .filter(|one| !disk.holds(one.operation))
        .filter_map(|one| if let When::At(at) = one.fate.when() { Some(at) } else { None })
        .min();
    // A moment more than is left, so that it is over then.
    let left = due.map(|due| due.saturating_duration_since(Instant::now()) + Duration::from_micros(50));
    let timeout =
        left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
    match poll(&mut sockets, timeout.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok((vec![PollFlags::empty(); clients.len()], PollFlags::empty())),
        Err(errno) => return Err(errno.into()),
    }
    let mut seen = sockets.iter().map(PollFd::revents);
    let of_belljar = seen.next().unwrap_or(PollFlags::empty());
    Ok((seen.collect(), of_belljar))
}

/// Does what need not wait any longer.
fn finish(disk: &mut LabDisk, waiting: &mut Vec<Waiting>, clients: &mut [Client]) {
    let now = Instant::now();
    let due = |one: &Waiting, disk: &LabDisk| match one.fate.when() {
        // Nothing is done any more, and all are told so.
        _ if disk.is_off() => true,
        _ if disk.holds(one.operation) => false,
        When::Now => true,
        When::At(at) => at <= now,
        When::Healed(fault) => !disk.hangs(fault),
    };
    let mut at = 0;
    while at < waiting.len() {
        if due(&waiting[at], disk) {
            let mut one = waiting.remove(at);
            let (request, fate) = one.parts();
            if let Some(client) = clients.iter_mut().find(|client| client.path == request.path) {
                disk.execute(&request, *fate, &mut client.outgoing);
            }
        } else {
            at += 1;
        }
    }
}

impl Client {
    /// Takes what has come; gives whether the client stays.
    fn take(&mut self, disk: &mut LabDisk, waiting: &mut Vec<Waiting>) -> Result<bool, ServeError> {
        if let Some(arriving) = &mut self.arriving {
            let arrived = arriving.fill(&self.stream, &mut self.pipe);
            if arrived.as_ref().is_ok_and(|arrived| *arrived == Arrived::Some) {
                return Ok(true);
            }
            if !sent(arrived.map(|arrived| arrived == Arrived::All))? {
                return Ok(false);
            }
            self.arrived(disk, waiting)?;
            // Others come between, so that none waits for a large one behind the other.
            return Ok(true);
        }
        let more = nbd::missing(self.incoming.bytes());
        if !self.incoming.read(&self.stream, more)? {
            return Ok(false);
        }
        let now = Instant::now();
        let out = &mut self.outgoing;
        loop {
            let bytes = &self.incoming.buffer[self.incoming.start..self.incoming.end];
            let Some((taken, said)) = self.conversation.next(bytes, out.buffer())? else { break };
            match said {
                Said::Nothing => {}
                Said::Goodbye => return Ok(false),
                Said::Request(request) => {
                    let request = Request { path: self.path, ..request };
                    let fate = disk.decide(&request, now);
                    do_or_wait(&request, fate, disk, waiting, out);
                }
            }
            self.incoming.start += taken;
        }
        self.let_arrive(disk)?;
        Ok(true)
    }

    /// Has the bytes of a large write, of which the first are there, go to the disk as they come.
    fn let_arrive(&mut self, disk: &mut LabDisk) -> Result<(), ServeError> {
        if !self.conversation.is_shaken() {
            return Ok(());
        }
        let bytes = self.incoming.bytes();
        let Some(head) = nbd::part_of_write(bytes) else { return Ok(()) };
        let Some(placed) = nbd::of_head(head).and_then(|request| disk.place(&Request { path: self.path, ..request }))
        else {
            return Ok(());
        };
        let mut arriving = Arriving::new(*head, placed);
        arriving.take(&bytes[head.len()..]).map_err(ServeError::Host)?;
        self.incoming.start = self.incoming.end;
        self.arriving = Some(arriving);
        Ok(())
    }

    /// What was arriving is there as a whole.
    fn arrived(&mut self, disk: &mut LabDisk, waiting: &mut Vec<Waiting>) -> Result<(), ServeError> {
        let Some(Arriving { head, placed, .. }) = self.arriving.take() else { return Ok(()) };
        let Some(request) = nbd::of_head(&head) else { return Ok(()) };
        let request = Request { path: self.path, ..request };
        let fate = disk.decide(&request, Instant::now());
        let bytes = disk.execute_placed(&request, fate, &placed, &mut self.outgoing).map_err(ServeError::Host)?;
        if let Some(payload) = bytes {
            do_or_wait(&Request { payload: &payload, ..request }, fate, disk, waiting, &mut self.outgoing);
        }
        Ok(())
    }
}

/// Does a request, if it is its time.
fn do_or_wait(request: &Request<'_>, fate: Fate, disk: &mut LabDisk, waiting: &mut Vec<Waiting>, out: &mut Answers) {
    if disk.is_off() || (fate.when() == When::Now && !disk.holds(request.operation)) {
        disk.execute(request, fate, out);
    } else {
        waiting.push(Waiting::of(request, fate));
    }
}

/// Takes what Belljar has ordered.
fn take_orders(
    control: &mut Control,
    orders: &mut Incoming,
    answers: &mut Answers,
    disk: &mut LabDisk,
) -> Result<Obeyed, ServeError> {
    let mut obeyed = Obeyed { stays: orders.read(&mut *control, 0)?, lines: Vec::new() };
    if !obeyed.stays {
        return Ok(obeyed);
    }
    while let Some(end) = orders.bytes().iter().position(|byte| *byte == b'\n') {
        let order: Order =
            serde_json::from_slice(&orders.bytes()[..end]).map_err(|error| ServeError::Order(error.to_string()))?;
        let answer = match (order, control.lines.front()) {
            (Order::Connect(path), Some(_)) if path < disk.paths() => {
                disk.connected();
                obeyed.lines.extend(control.lines.pop_front().map(|line| (path, UnixStream::from(line))));
                Answer::Done
            }
            (order, _) => disk.obey(order),
        };
        serde_json::to_writer(answers.buffer(), &answer).map_err(|error| ServeError::Order(error.to_string()))?;
        answers.buffer().push(b'\n');
        orders.start += end + 1;
    }
    if orders.bytes().len() > MAX_LINE {
        return Err(ServeError::Order("it is too long".to_owned()));
    }
    Ok(obeyed)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, IoSlice, Write as _},
        os::fd::AsFd,
        thread::JoinHandle,
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;
    use crate::{
        nbd::tests::{asked, hello},
        store::{Base, Store},
    };

    const SIZE: u64 = 1 << 20;
    const LIMIT: Duration = Duration::from_secs(20);

    struct Served {
        qemu: UnixStream,
        control: BufReader<UnixStream>,
        server: JoinHandle<Result<(), ServeError>>,
    }

    impl Served {
        fn start() -> Self {
            Self::of(LabDisk::new(Store::new(SIZE, Base::Zeros, tempfile::tempfile().unwrap()), false, "data0"))
        }

        fn of(disk: LabDisk) -> Self {
            let (qemu, theirs) = UnixStream::pair().unwrap();
            let (control, orders) = UnixStream::pair().unwrap();
            let server = std::thread::spawn(move || serve(disk, vec![theirs], orders));
            for stream in [&qemu, &control] {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
            }
            let mut served = Self { qemu, control: BufReader::new(control), server };
            served.qemu.write_all(&hello()).unwrap();
            served.read(18 + 20 + 32 + 34 + 20);
            served
        }

        fn read(&mut self, count: usize) -> Vec<u8> {
            let mut bytes = vec![0; count];
            self.qemu.read_exact(&mut bytes).unwrap();
            bytes
        }

        fn order(&mut self, order: &Order) -> Answer {
            let line = serde_json::to_string(order).unwrap() + "\n";
            self.control.get_mut().write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            self.control.read_line(&mut answer).unwrap();
            serde_json::from_str(&answer).unwrap()
        }

        /// The cookie and the error of the next answer.
        fn answer(&mut self) -> (u64, u32) {
            let head = self.read(16);
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            (u64::from(number(8)) << 32 | u64::from(number(12)), number(4))
        }

        fn ends(self) -> Result<(), ServeError> {
            drop((self.qemu, self.control));
            self.server.join().unwrap()
        }
    }

    #[test]
    fn requests_are_answered_and_the_server_ends_with_belljar() {
        let mut served = Served::start();
        let bytes: Vec<u8> = (0..200_000u32).map(|at| at as u8).collect();
        let mut all = asked(1, 0, 1, 512, 200_000, &bytes);
        all.extend(asked(3, 0, 2, 0, 0, b""));
        all.extend(asked(0, 0, 3, 512, 200_000, b""));
        // In pieces, as a full socket cuts it.
        for piece in all.chunks(70_001) {
            served.qemu.write_all(piece).unwrap();
        }
        assert_eq!((served.answer(), served.answer(), served.answer()), ((1, 0), (2, 0), (3, 0)));
        assert_eq!(served.read(200_000), bytes);
        let Answer::Counts(counts) = served.order(&Order::Counts(None)) else { panic!() };
        assert_eq!((counts.reads, counts.writes, counts.flushes), (1, 1, 1));
        served.ends().unwrap();
    }

    #[test]
    fn a_large_write_is_there_when_all_of_it_has_come() {
        let mut served = Served::start();
        let bytes: Vec<u8> = (0..400 * 1024u32).map(|at| (at / 3) as u8).collect();
        let whole = asked(1, 0, 1, 8192, 400 * 1024, &bytes);
        let read = |cookie| asked(0, 0, cookie, 8192, 400 * 1024, b"");
        served.qemu.write_all(&whole[..100_000]).unwrap();
        assert_eq!(served.order(&Order::Snapshot(1)), Answer::Done);
        assert_eq!(served.order(&Order::Forget), Answer::Done);
        let Answer::Counts(counts) = served.order(&Order::Counts(None)) else { panic!() };
        assert_eq!((counts.writes, counts.written_bytes), (0, 0));
        served.qemu.write_all(&whole[100_000..]).unwrap();
        assert_eq!(served.answer(), (1, 0));
        served.qemu.write_all(&read(2)).unwrap();
        assert_eq!(served.answer(), (2, 0));
        assert!(served.read(400 * 1024) == bytes);
        // What becomes of it is decided when it is there.
        served.qemu.write_all(&asked(1, 0, 3, 8192, 400 * 1024, &[7; 400 * 1024])[..100_000]).unwrap();
        served.order(&Order::Arm("tear write keep=4096".into()));
        served.qemu.write_all(&[7; 400 * 1024 + 28 - 100_000]).unwrap();
        assert_eq!(served.answer(), (3, 0));
        served.qemu.write_all(&read(4)).unwrap();
        assert_eq!(served.answer(), (4, 0));
        let torn = [&[7; 4096][..], &bytes[4096..]].concat();
        assert!(served.read(400 * 1024) == torn);
        served.order(&Order::Heal(None));
        // A hang holds it as it does any other.
        let Answer::Armed { number: hang, .. } = served.order(&Order::Arm("hang write".into())) else { panic!() };
        served.qemu.write_all(&asked(1, 0, 5, 8192, 400 * 1024, &bytes)).unwrap();
        served.qemu.write_all(&read(6)).unwrap();
        assert_eq!(served.answer(), (6, 0));
        assert!(served.read(400 * 1024) == torn);
        served.order(&Order::Heal(Some(hang)));
        assert_eq!(served.answer(), (5, 0));
        // One that has come in half when the power is cut is nowhere.
        served.qemu.write_all(&asked(1, 0, 7, 8192, 400 * 1024, &[9; 400 * 1024])[..100_000]).unwrap();
        assert_eq!(served.order(&Order::Cut(None)), Answer::Cut { pending: 3, lost: 3 });
        served.qemu.write_all(&[9; 400 * 1024 + 28 - 100_000]).unwrap();
        assert_eq!(served.answer(), (7, 5));
        served.order(&Order::On);
        served.qemu.write_all(&read(8)).unwrap();
        assert_eq!(served.answer(), (8, 0));
        assert!(!served.read(400 * 1024).contains(&9));
        // Nor is one whose client has gone.
        served.qemu.write_all(&asked(1, 0, 9, 0, 400 * 1024, &[9; 400 * 1024])[..100_000]).unwrap();
        served.ends().unwrap();
    }

    #[test]
    fn what_is_put_off_lets_others_pass_and_what_hangs_goes_on_when_it_is_healed() {
        let mut served = Served::start();
        let Answer::Armed { number: hang, .. } = served.order(&Order::Arm("hang write".into())) else { panic!() };
        served.order(&Order::Arm("delay flush by=50ms".into()));
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        served.qemu.write_all(&asked(3, 0, 2, 0, 0, b"")).unwrap();
        served.qemu.write_all(&asked(0, 0, 3, 0, 512, b"")).unwrap();
        assert_eq!(served.answer(), (3, 0));
        assert_eq!(served.read(512), [0; 512], "what hangs is not written");
        assert_eq!(served.answer(), (2, 0));
        assert_eq!(served.order(&Order::Heal(Some(hang))), Answer::Healed(1));
        assert_eq!(served.answer(), (1, 0));
        served.qemu.write_all(&asked(0, 0, 4, 0, 512, b"")).unwrap();
        assert_eq!(served.answer(), (4, 0));
        assert_eq!(served.read(512), [5; 512]);
        served.ends().unwrap();
    }

    #[test]
    fn what_is_put_off_is_done_as_soon_as_nothing_puts_it_off() {
        let mut served = Served::start();
        served.order(&Order::Arm("delay write by=1h".into()));
        served.order(&Order::Limit("bytes=1".into()));
        served.qemu.write_all(&asked(0, 0, 1, 0, 512, b"")).unwrap();
        served.qemu.write_all(&asked(1, 0, 2, 0, 512, &[5; 512])).unwrap();
        // It is known to have come when what came behind it has.
        served.qemu.write_all(&asked(3, 0, 3, 0, 0, b"")).unwrap();
        served.order(&Order::Limit("bytes=1GiB".into()));
        let mut answers = vec![served.answer()];
        if answers == [(1, 0)] {
            served.read(512);
        }
        answers.push(served.answer());
        if answers[1] == (1, 0) {
            served.read(512);
        }
        answers.sort_unstable();
        assert_eq!(answers, [(1, 0), (3, 0)]);
        assert_eq!(served.order(&Order::Heal(None)), Answer::Healed(1));
        assert_eq!(served.answer(), (2, 0));
        served.ends().unwrap();
    }

    #[test]
    fn without_power_all_fails_that_hangs_or_comes_until_it_is_on_again() {
        let mut served = Served::start();
        served.order(&Order::Arm("hang flush".into()));
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        served.qemu.write_all(&asked(3, 0, 2, 0, 0, b"")).unwrap();
        assert_eq!(served.answer(), (1, 0));
        assert_eq!(served.order(&Order::Cut(None)), Answer::Cut { pending: 1, lost: 1 });
        assert_eq!(served.answer(), (2, 5), "what hangs");
        served.qemu.write_all(&asked(0, 0, 3, 0, 512, b"")).unwrap();
        assert_eq!(served.answer(), (3, 5));
        assert_eq!(served.order(&Order::On), Answer::Done);
        served.qemu.write_all(&asked(0, 0, 4, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((4, 0), vec![0; 512]));
        served.ends().unwrap();
    }

    #[test]
    fn what_is_held_is_neither_done_nor_answered_and_lost_with_the_power() {
        let mut served = Served::start();
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        served.qemu.write_all(&asked(3, 0, 2, 0, 0, b"")).unwrap();
        assert_eq!((served.answer(), served.answer()), ((1, 0), (2, 0)));
        assert_eq!(served.order(&Order::Hold), Answer::Done);
        served.qemu.write_all(&asked(1, 0, 3, 0, 512, &[6; 512])).unwrap();
        served.qemu.write_all(&asked(3, 0, 4, 0, 0, b"")).unwrap();
        served.qemu.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(served.qemu.read(&mut [0; 16]).is_err(), "no answer");
        served.qemu.set_read_timeout(Some(LIMIT)).unwrap();
        // Who has to read on the way to its end can.
        served.qemu.write_all(&asked(0, 0, 9, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((9, 0), vec![5; 512]));
        assert_eq!(served.order(&Order::Cut(None)), Answer::Cut { pending: 0, lost: 0 }, "it was not even taken");
        assert_eq!((served.answer(), served.answer()), ((3, 5), (4, 5)));
        assert_eq!(served.order(&Order::On), Answer::Done);
        served.qemu.write_all(&asked(0, 0, 5, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((5, 0), vec![5; 512]));
        served.ends().unwrap();
    }

    #[test]
    fn who_lets_a_disk_go_gets_back_what_hangs_and_loses_nothing() {
        let mut served = Served::start();
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        assert_eq!(served.answer(), (1, 0));
        served.order(&Order::Arm("hang write,flush".into()));
        served.qemu.write_all(&asked(1, 0, 2, 0, 512, &[6; 512])).unwrap();
        assert_eq!(served.order(&Order::LetGo), Answer::Done);
        assert_eq!(served.answer(), (2, 5));
        served.qemu.write_all(&asked(3, 0, 3, 0, 0, b"")).unwrap();
        assert_eq!(served.answer(), (3, 5), "not even QEMU's own flush hangs");
        assert!(matches!(served.order(&Order::TakeOut), Answer::Refused(_)));
        assert_eq!(served.order(&Order::On), Answer::Done);
        assert_eq!(served.order(&Order::TakeOut), Answer::Done);
        served.qemu.write_all(&asked(0, 0, 5, 0, 512, b"")).unwrap();
        assert_eq!(served.answer(), (5, 5));
        assert_eq!(served.order(&Order::On), Answer::Done);
        served.qemu.write_all(&asked(0, 0, 4, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((4, 0), vec![5; 512]));
        // It has power, and faults stay.
        assert!(matches!(served.order(&Order::On), Answer::Refused(_)));
        assert_eq!(served.order(&Order::Heal(None)), Answer::Healed(1));
        served.ends().unwrap();
    }

    #[test]
    fn another_qemu_takes_the_place_of_the_one_before() {
        let mut served = Served::start();
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        assert_eq!(served.answer(), (1, 0));
        // Half a request, and one that is never answered.
        served.order(&Order::Arm("hang flush".into()));
        served.qemu.write_all(&asked(3, 0, 2, 0, 0, b"")).unwrap();
        served.qemu.write_all(&asked(1, 0, 3, 0, 512, &[6; 512])[..100]).unwrap();
        assert!(matches!(served.order(&Order::Connect(0)), Answer::Refused(_)), "without a line");
        let (qemu, theirs) = UnixStream::pair().unwrap();
        qemu.set_read_timeout(Some(LIMIT)).unwrap();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let lines = [theirs.as_fd()];
        message.push(SendAncillaryMessage::ScmRights(&lines));
        let line = serde_json::to_string(&Order::Connect(0)).unwrap() + "\n";
        sendmsg(served.control.get_ref(), &[IoSlice::new(line.as_bytes())], &mut message, SendFlags::empty()).unwrap();
        let mut answer = String::new();
        served.control.read_line(&mut answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&answer).unwrap(), Answer::Done);
        assert_eq!(served.qemu.read(&mut [0; 16]).unwrap(), 0, "the one before is gone");
        served.qemu = qemu;
        served.qemu.write_all(&hello()).unwrap();
        served.read(18 + 20 + 32 + 34 + 20);
        served.qemu.write_all(&asked(0, 0, 4, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((4, 0), vec![5; 512]));
        // It comes up, whatever befalls its guest then.
        served.qemu.write_all(&asked(3, 0, 5, 0, 0, b"")).unwrap();
        assert_eq!(served.answer(), (5, 0));
        assert_eq!(served.order(&Order::Begin), Answer::Done);
        served.qemu.write_all(&asked(3, 0, 6, 0, 0, b"")).unwrap();
        served.qemu.write_all(&asked(0, 0, 7, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((7, 0), vec![5; 512]), "the flush hangs");
        assert_eq!(served.order(&Order::Heal(None)), Answer::Healed(1));
        assert_eq!(served.answer(), (6, 0));
        served.ends().unwrap();
    }

    #[test]
    fn a_fault_of_one_path_befalls_no_other() {
        let disk = LabDisk::new(Store::new(SIZE, Base::Zeros, tempfile::tempfile().unwrap()), false, "data0");
        let (first, second, (control, orders)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let lines = vec![first.1, second.1];
        let server = std::thread::spawn(move || serve(disk.with_paths(2), lines, orders));
        let control = BufReader::new(control);
        let mut served = Served { qemu: first.0, control, server };
        let mut other = second.0;
        for path in [&mut served.qemu, &mut other] {
            path.set_read_timeout(Some(LIMIT)).unwrap();
            path.write_all(&hello()).unwrap();
            path.read_exact(&mut [0; 18 + 20 + 32 + 34 + 20]).unwrap();
        }
        assert!(matches!(served.order(&Order::Arm("error path=2".into())), Answer::Refused(_)));
        served.order(&Order::Arm("error write path=0".into()));
        let Answer::Armed { number: hang, .. } = served.order(&Order::Arm("hang flush path=1".into())) else {
            panic!()
        };
        let write = |cookie| asked(1, 0, cookie, 0, 512, &[5; 512]);
        served.qemu.write_all(&[write(1), asked(3, 0, 2, 0, 0, b"")].concat()).unwrap();
        assert_eq!((served.answer(), served.answer()), ((1, 5), (2, 0)));
        other.write_all(&[write(3), asked(3, 0, 4, 0, 0, b"")].concat()).unwrap();
        std::mem::swap(&mut served.qemu, &mut other);
        assert_eq!(served.answer(), (3, 0));
        served.order(&Order::Heal(Some(hang)));
        assert_eq!(served.answer(), (4, 0));
        // One that is gone takes nothing of the other's with it.
        drop(other);
        served.qemu.write_all(&asked(0, 0, 5, 0, 512, b"")).unwrap();
        assert_eq!((served.answer(), served.read(512)), ((5, 0), vec![5; 512]));
        served.ends().unwrap();
    }

    #[test]
    fn what_the_host_cannot_write_is_no_answer_to_the_guest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = std::fs::File::open(file.path()).unwrap();
        let mut served = Served::of(LabDisk::new(Store::new(SIZE, Base::Zeros, data), false, "data0"));
        served.qemu.write_all(&asked(1, 0, 1, 0, 512, &[5; 512])).unwrap();
        assert_eq!(served.qemu.read(&mut [0; 16]).unwrap(), 0, "no answer");
        let error = served.server.join().unwrap().unwrap_err();
        assert!(matches!(error, ServeError::Host(_)), "{error}");
    }

    #[test]
    fn who_says_what_nobody_says_ends_it() {
        let mut served = Served::start();
        served.qemu.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let error = served.server.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("not of the NBD protocol"), "{error}");
        let mut served = Served::start();
        served.control.get_mut().write_all(b"{\"explode\":1}\n").unwrap();
        served.server.join().unwrap().unwrap_err();
        let mut served = Served::start();
        drop(served.qemu);
        served.qemu = UnixStream::pair().unwrap().0;
        assert_eq!(served.order(&Order::Mark("x".into())), Answer::Done, "QEMU's end is not the server's");
        served.ends().unwrap();
    }

    #[test]
    fn who_takes_no_answers_fills_no_memory() {
        let mut served = Served::start();
        served.qemu.set_nonblocking(true).unwrap();
        let one = asked(0, 0, 1, 0, 1 << 20, b"");
        let mut sent = 0u64;
        let begun = Instant::now();
        // Without a bound the server would take them all.
        while sent < 2000 * one.len() as u64 && begun.elapsed() < Duration::from_millis(500) {
            match served.qemu.write(&one) {
                Ok(count) => sent += count as u64,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        let Answer::Counts(counts) = served.order(&Order::Counts(None)) else { panic!() };
        let buffered = MAX_UNSENT >> 20;
        // What was read at a time is done as a whole.
        assert!(counts.reads <= buffered + (READ / one.len()) as u64 + 1, "{}", counts.reads);
        served.ends().unwrap();
    }
}
