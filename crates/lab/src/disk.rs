//! A disk with its faults: what becomes of each request.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    time::{Duration, Instant},
};

use belljar_guest_spec::fault::{self, CERTAIN, DiskError, Effect, Fault, Operation, Range, Rate};

use crate::{
    answers::Answers,
    control::{Answer, Counts, Logged, MAX_MARK, MAX_TOLD, Order, What},
    nbd::{self, Request},
    store::{GRANULE, Placed, Store, StoreError},
    survival::Survival,
};

/// Most requests that are remembered.
const MAX_LOG: usize = 65_536;
/// Most marks by which counts can be asked for.
const MAX_MARKS: usize = 10_000;
/// Most faults at a time.
const MAX_FAULTS: usize = 256;
/// Most ranges with a medium error at a time.
const MAX_DAMAGED: usize = 4096;
/// Bytes from which on what is read is not copied.
const LENT: u32 = 64 << 10;
/// Least bytes that a piece of it has on average, if it is not copied.
const MIN_PIECE: u32 = 16 << 10;
/// Bytes that rot in one piece.
const ROTTED: u64 = 1 << 20;
/// Largest range that can rot at once, in bytes.
const MAX_ROT: u64 = 64 << 20;

/// A fault that is in force.
#[derive(Clone, Debug)]
struct Armed {
    number: u32,
    fault: Fault,
    random: fastrand::Rng,
    /// How many it would have befallen, and how many it has.
    seen: u64,
    done: u64,
}

impl Armed {
    fn new(number: u32, fault: Fault, seed: u64) -> Self {
        Self { number, fault, random: fastrand::Rng::with_seed(seed), seen: 0, done: 0 }
    }

    /// Whether it befalls this request.
    fn befalls(&mut self, operation: Operation, request: &Request<'_>) -> bool {
        let Fault { operations, range, path, after, times, chance, .. } = self.fault;
        let (offset, length) = (request.offset, u64::from(request.length));
        let there = operation == Operation::Flush || range.is_none_or(|range| range.touches(offset, length));
        if !operations.has(operation) || !there || path.is_some_and(|path| path != request.path) {
            return false;
        }
        self.seen += 1;
        let befalls = self.seen > after
            && times.is_none_or(|times| self.done < times)
            && (chance >= CERTAIN || self.random.u32(0..CERTAIN) < chance);
        self.done += u64::from(befalls);
        befalls
    }
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// When it has come.
    came: Instant,
    /// When it is its turn, at the disk's rate.
    turn: Option<Instant>,
    /// The fault that holds it up, and for how long then; none is until it is healed.
    held: Option<(u32, Option<Duration>)>,
    /// What is done then.
    effect: Option<Effect>,
    /// The number of the fault that decided.
    fault: Option<u32>,
    /// Which bit is flipped.
    bit: u64,
}

impl Fate {
    /// When it is done.
    pub fn when(&self) -> When {
        match (self.held, self.turn) {
            (Some((fault, None)), _) => When::Healed(fault),
            (Some((_, Some(by))), turn) => When::At(turn.unwrap_or(self.came) + by),
            (None, Some(turn)) => When::At(turn),
            (None, None) => When::Now,
        }
    }
}

/// When a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once.
    Now,
    /// Not before this.
    At(Instant),
    /// When what it hangs for is healed: this fault.
    Healed(u32),
}

/// What a disk is told, beside its bytes.
#[derive(Clone, Debug, Default)]
struct Told {
    faults: Vec<Armed>,
    damaged: Vec<Range>,
    rate: Rate,
    capacity: Option<u64>,
}

/// Whether requests are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// All but reads wait.
    Held,
    /// They fail, for whoever asks is about to end.
    LetGo,
    /// They fail, for the power was cut.
    Off,
}

/// A disk that is served.
#[derive(Debug)]
pub struct LabDisk {
    store: Store,
    read_only: bool,
    /// By how many paths requests come.
    paths: u32,
    /// Made of its name: what decides where no seed is given, so that two disks do not fail alike.
    seed: u64,
    begun: Instant,
    now: Told,
    /// What comes back for another test.
    kept: Told,
    last_fault: u32,
    /// Until when the disk is busy with what it has taken, at its rate.
    busy: Option<Instant>,
    /// Requests wait that were given their turn at another rate.
    is_rate_new: bool,
    counts: Counts,
    marks: HashMap<String, (Counts, u64)>,
    log: VecDeque<Logged>,
    /// Requests that stood in the log before those that do.
    forgotten: u64,
    power: Power,
    /// Another QEMU was connected, whose guest does not run yet.
    is_connecting: bool,
    /// QEMU's own flushes do nothing.
    is_still: bool,
    /// What the host could not do.
    broken: Option<io::Error>,
}

impl LabDisk {
    /// A disk without faults. By its name it chooses where nobody says how.
    pub fn new(store: Store, read_only: bool, name: &str) -> Self {
        Self {
            store,
            read_only,
            paths: 1,
            seed: seed_of(name),
            begun: Instant::now(),
            now: Told::default(),
            kept: Told::default(),
            last_fault: 0,
            busy: None,
            is_rate_new: false,
            counts: Counts::default(),
            marks: HashMap::new(),
            log: VecDeque::new(),
            forgotten: 0,
            power: Power::On,
            is_connecting: false,
            is_still: false,
            broken: None,
        }
    }

    /// The same, to which so many paths lead.
    #[must_use]
    pub fn with_paths(self, paths: u32) -> Self {
        Self { paths, ..self }
    }

    /// How many paths lead to it.
    pub fn paths(&self) -> u32 {
        self.paths
    }

    /// Another QEMU is connected; that its guest runs [is told](Order::Begin).
    pub fn connected(&mut self) {
        self.is_connecting = true;
    }

    /// What a client is told of it.
    pub fn export(&self) -> nbd::Export {
        nbd::Export { size: self.store.size(), read_only: self.read_only }
    }

    /// Whether each request fails: it has no power, or was let go.
    pub fn is_off(&self) -> bool {
        matches!(self.power, Power::Off | Power::LetGo)
    }

    /// Whether requests of this kind wait for an order, whatever becomes of them else. Reads do not: nobody is told by them that something is kept.
    pub fn holds(&self, operation: Option<Operation>) -> bool {
        self.power == Power::Held && operation != Some(Operation::Read)
    }

    /// What the host could not do, so that the disk is of no use any more; once.
    pub fn take_broken(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Whether requests that hang for this fault hang on.
    pub fn hangs(&self, fault: u32) -> bool {
        self.now.faults.iter().any(|armed| armed.number == fault)
    }

    /// Whether it is a flush of QEMU's own, of which the guest knows nothing.
    fn is_own_flush(&self, request: &Request<'_>) -> bool {
        self.is_still && request.operation == Some(Operation::Flush)
    }

    /// The client of this path is gone: it takes no answers any more.
    pub fn gone(&mut self, path: u32) {
        self.store.take_back(path, None);
    }

    /// Decides what becomes of a request that has come.
    pub fn decide(&mut self, request: &Request<'_>, now: Instant) -> Fate {
        // Nobody asks under a cookie whose answer has not come (`doc/proto.md`, "Request message").
        self.store.take_back(request.path, Some(request.cookie));
        let mut fate = Fate { came: now, turn: None, held: None, effect: None, fault: None, bit: 0 };
        let is_others = self.is_connecting || self.is_own_flush(request);
        let Some(operation) = request.operation.filter(|_| !is_others) else { return fate };
        fate.turn = self.take_turn(request, now);
        let Some(armed) =
            self.now.faults.iter_mut().find_map(|armed| armed.befalls(operation, request).then_some(armed))
        else {
            return fate;
        };
        fate.fault = Some(armed.number);
        match armed.fault.effect {
            Effect::Hang => fate.held = Some((armed.number, None)),
            Effect::Delay(by) => fate.held = Some((armed.number, Some(by))),
            effect => {
                if effect == Effect::Flip {
                    fate.bit = armed.random.u64(..);
                }
                fate.effect = Some(effect);
            }
        }
        fate
    }

    /// Decides anew when a request is done that waits, after an order. Those that wait are to be asked for in the order in which they came.
    pub fn decide_again(&mut self, request: &Request<'_>, fate: &mut Fate, now: Instant) {
        if fate.held.is_some_and(|(fault, _)| !self.hangs(fault)) {
            fate.held = None;
        }
        if self.is_rate_new && fate.turn.is_some_and(|turn| turn > now) {
            fate.turn = self.take_turn(request, now);
        }
    }

    /// All that wait were [decided again](Self::decide_again).
    pub fn all_decided(&mut self) {
        self.is_rate_new = false;
    }

    fn set_rate(&mut self, rate: Rate) {
        self.now.rate = rate;
        self.busy = None;
        self.is_rate_new = true;
    }

    /// When a request that comes now is done, at the disk's rate, if it has one.
    fn take_turn(&mut self, request: &Request<'_>, now: Instant) -> Option<Instant> {
        if self.now.rate == Rate::default() {
            return None;
        }
        let moves = matches!(request.operation, Some(Operation::Read | Operation::Write));
        let bytes = if moves { f64::from(request.length) } else { 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact thing")]
        let takes = |amount: f64, rate: Option<u64>| rate.map_or(0.0, |rate| amount / rate as f64);
        let takes = takes(bytes, self.now.rate.bytes).max(takes(1.0, self.now.rate.requests));
        let from = self.busy.filter(|busy| *busy > now).unwrap_or(now);
        let done = from + Duration::try_from_secs_f64(takes).unwrap_or(Duration::MAX / 4);
        self.busy = Some(done);
        self.busy
    }

    /// Does a request, and puts its answer into `out`.
    pub fn execute(&mut self, request: &Request<'_>, fate: Fate, answers: &mut Answers) {
        self.answer(request, fate, answers, |disk, answers| disk.act(request, fate, answers));
    }

    /// Blocks for what this request writes, so that it can go there while it arrives. `None`: it is to be done as a whole.
    pub(crate) fn place(&mut self, request: &Request<'_>) -> Option<Placed> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let fits =
            offset.is_multiple_of(GRANULE) && offset.checked_add(length).is_some_and(|end| end <= self.store.size());
        if request.length < LENT || !fits || self.read_only || self.power != Power::On {
            return None;
        }
        self.store.place(request.path, length, (request.length / MIN_PIECE) as usize)
    }

    /// Does a request whose bytes are where they were [placed](Self::place), and puts its answer into `answers`. Gives them where it is
    /// not simply done, so that it can be done as any other.
    ///
    /// # Errors
    /// When the host cannot read what was placed.
    pub(crate) fn execute_placed(
        &mut self,
        request: &Request<'_>,
        fate: Fate,
        placed: &Placed,
        answers: &mut Answers,
    ) -> io::Result<Option<Vec<u8>>> {
        if self.power != Power::On || fate.when() != When::Now || fate.effect.is_some() {
            return match self.store.take_placed(request.path, placed) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(StoreError::Host(error)) => Err(error),
                Err(error) => Err(io::Error::other(error)),
            };
        }
        self.answer(request, fate, answers, |disk, _| {
            disk.store.put_placed(request.path, request.offset, placed, request.fua)?;
            disk.repair(request.offset, request.length.into());
            Ok(())
        });
        Ok(None)
    }

    /// Puts the answer of a request into `answers`, which is done by `act`.
    fn answer(
        &mut self,
        request: &Request<'_>,
        fate: Fate,
        answers: &mut Answers,
        act: impl FnOnce(&mut Self, &mut Answers) -> Result<(), Failed>,
    ) {
        let out = answers.buffer();
        let begin = out.len();
        nbd::reply(request.cookie, None, out);
        if self.is_own_flush(request) && !self.is_off() {
            return;
        }
        // Where it fails nothing but bytes was put there.
        let failed = match act(self, answers) {
            Ok(()) => false,
            Err(Failed::Answer(error)) => {
                let out = answers.buffer();
                out.truncate(begin);
                nbd::reply(request.cookie, Some(error), out);
                true
            }
            Err(Failed::Host(error)) => {
                // Nobody gets an answer any more.
                answers.buffer().truncate(begin);
                self.broken = Some(error);
                return;
            }
        };
        self.count(request, fate.fault, failed);
    }

    fn act(&mut self, request: &Request<'_>, fate: Fate, answers: &mut Answers) -> Result<(), Failed> {
        if self.is_off() {
            return Err(DiskError::Io.into());
        }
        let operation = request.operation.ok_or(DiskError::Invalid)?;
        let (offset, length, fua) = (request.offset, u64::from(request.length), request.fua);
        if offset.checked_add(length).is_none_or(|end| end > self.store.size()) {
            let error = if operation == Operation::Write { DiskError::NoSpace } else { DiskError::Invalid };
            return Err(error.into());
        }
        if self.read_only && !matches!(operation, Operation::Read | Operation::Flush) {
            return Err(DiskError::NotPermitted.into());
        }
        match fate.effect {
            Some(Effect::Error(error)) => return Err(error.into()),
            Some(Effect::Lose) => return Ok(()),
            _ => {}
        }
        match operation {
            Operation::Read => {
                if request.length > nbd::MAX_PAYLOAD {
                    return Err(DiskError::Invalid.into());
                }
                if self.now.damaged.iter().any(|range| range.touches(offset, length)) {
                    return Err(DiskError::Io.into());
                }
                if request.length >= LENT && fate.effect.is_none() {
                    let most = (request.length / MIN_PIECE) as usize;
                    if let Some(pieces) = self.store.lend(request.path, request.cookie, offset, length, most)? {
                        answers.push(pieces);
                        return Ok(());
                    }
                }
                let out = answers.buffer();
                let begin = out.len();
                out.resize(begin + request.length as usize, 0);
                let bytes = &mut out[begin..];
                self.store.read(offset, bytes)?;
                if fate.effect == Some(Effect::Flip) && !bytes.is_empty() {
                    let bit = fate.bit % (bytes.len() as u64 * 8);
                    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
                }
            }
            Operation::Write => {
                let (mut at, mut bytes) = (offset, request.payload);
                match fate.effect {
                    Some(Effect::Tear(keep)) => {
                        bytes = &bytes[..bytes.len().min(usize::try_from(keep).unwrap_or(usize::MAX))];
                    }
                    Some(Effect::Misplace(by)) => {
                        // Past the end it comes to the beginning, as an address with a bit too many does.
                        let size = self.store.size().max(1);
                        at = u64::try_from((u128::from(offset) + u128::from(by)) % u128::from(size)).unwrap_or(0);
                        let room = usize::try_from(size - at).unwrap_or(usize::MAX).min(bytes.len());
                        let rest = &bytes[room..];
                        bytes = &bytes[..room];
                        self.store.write(0, rest, fua)?;
                        self.repair(0, rest.len() as u64);
                    }
                    _ => {}
                }
                self.store.write(at, bytes, fua)?;
                self.repair(at, bytes.len() as u64);
            }
            Operation::Flush => self.store.flush()?,
            Operation::Discard | Operation::Zero => {
                self.store.zero(offset, length, fua)?;
                self.repair(offset, length);
            }
        }
        Ok(())
    }

    /// What is written to is no longer damaged.
    fn repair(&mut self, offset: u64, length: u64) {
        if self.now.damaged.iter().all(|range| !range.touches(offset, length)) {
            return;
        }
        let end = offset + length;
        let rest = |range: &Range| {
            let before = Range { start: range.start, length: offset.saturating_sub(range.start).min(range.length) };
            let behind =
                Range { start: range.start.max(end), length: range.end().saturating_sub(range.start.max(end)) };
            if range.touches(offset, length) { [before, behind] } else { [*range, Range { start: 0, length: 0 }] }
        };
        self.now.damaged = self.now.damaged.iter().flat_map(rest).filter(|range| range.length > 0).collect();
    }

    fn count(&mut self, request: &Request<'_>, fault: Option<u32>, failed: bool) {
        let counts = &mut self.counts;
        counts.errors += u64::from(failed);
        counts.faults += u64::from(fault.is_some());
        let Some(operation) = request.operation else { return };
        let bytes = u64::from(request.length);
        match operation {
            Operation::Read => {
                counts.reads += 1;
                counts.read_bytes += bytes;
            }
            Operation::Write => {
                counts.writes += 1;
                counts.written_bytes += bytes;
                counts.fua += u64::from(request.fua);
            }
            Operation::Flush => counts.flushes += 1,
            Operation::Discard => counts.discards += 1,
            Operation::Zero => counts.zeros += 1,
        }
        let Request { offset, length, fua, .. } = *request;
        self.note(What::Request { operation, offset, length, fua, fault, failed });
    }

    fn note(&mut self, what: What) {
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
            self.forgotten += 1;
        }
        let at = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.log.push_back(Logged { at, what });
    }

    /// Does what is ordered.
    pub fn obey(&mut self, order: Order) -> Answer {
        self.carry_out(order).unwrap_or_else(Answer::Refused)
    }

    fn carry_out(&mut self, order: Order) -> Result<Answer, String> {
        let host = |error: StoreError| error.to_string();
        match order {
            Order::Arm(text) => {
                let fault: Fault = text.parse()?;
                if let Effect::Misplace(by) = fault.effect
                    && by % self.store.size().max(1) == 0
                {
                    let size = self.store.size();
                    return Err(format!(
                        "by= is the disk's size of {size} bytes, or a multiple: that is where it belongs"
                    ));
                }
                if self.now.faults.len() == MAX_FAULTS {
                    return Err(format!("there are {MAX_FAULTS} faults already; heal some"));
                }
                if fault.range.is_some_and(|range| range.start >= self.store.size()) {
                    return Err(format!("at= is behind the disk's end, which is at {}", self.store.size()));
                }
                if let Some(path) = fault.path.filter(|path| *path >= self.paths) {
                    let there = if self.paths == 1 { "1 path".to_owned() } else { format!("{} paths", self.paths) };
                    return Err(format!("path={path}: the disk has {there}, counted from 0"));
                }
                self.last_fault += 1;
                let number = self.last_fault;
                let seed = fault.seed.unwrap_or_else(|| mixed(self.seed, number.into(), 0) >> 32);
                self.now.faults.push(Armed::new(number, fault, seed));
                Ok(Answer::Armed { number, seed: fault.is_by_seed().then_some(seed) })
            }
            Order::Heal(number) => self.heal(number).map(Answer::Healed),
            Order::Damage(text) => {
                let range = self.on_disk(&text)?;
                if self.now.damaged.len() >= MAX_DAMAGED {
                    return Err(format!("there are {MAX_DAMAGED} damaged ranges already"));
                }
                // A medium fails in whole sectors.
                self.now.damaged.push(whole_sectors(range));
                Ok(Answer::Done)
            }
            Order::Rot { at, seed } => {
                let range = whole_sectors(self.on_disk(&at)?);
                if range.length > MAX_ROT {
                    return Err(format!("{} bytes are too many; let {MAX_ROT} rot at a time", range.length));
                }
                self.rot(range, seed.unwrap_or(self.seed)).map_err(host)?;
                Ok(Answer::Done)
            }
            Order::Limit(text) => {
                self.set_rate(text.parse()?);
                Ok(Answer::Done)
            }
            Order::Capacity(bytes) => {
                self.now.capacity = bytes;
                self.store.set_capacity(bytes);
                Ok(Answer::Done)
            }
            Order::Counts(mark) => {
                let before = mark.map(|mark| self.mark(&mark).map(|(counts, _)| counts)).transpose()?;
                Ok(Answer::Counts(self.counts.since(before.unwrap_or_default())))
            }
            Order::Log(mark) => {
                let from = mark.map(|mark| self.mark(&mark).map(|(_, number)| number)).transpose()?.unwrap_or(0);
                let end = self.forgotten + self.log.len() as u64;
                let first = from.max(self.forgotten).max(end.saturating_sub(MAX_TOLD as u64));
                let skipped = usize::try_from(first - self.forgotten).unwrap_or(usize::MAX);
                let requests = self.log.iter().skip(skipped).cloned().collect();
                Ok(Answer::Log { requests, missing: first - from })
            }
            Order::Mark(text) => {
                if text.len() > MAX_MARK || self.marks.len() >= MAX_MARKS && !self.marks.contains_key(&text) {
                    return Err(format!("a mark has {MAX_MARK} bytes at most, and there are {MAX_MARKS} at most"));
                }
                let number = self.forgotten + self.log.len() as u64;
                self.marks.insert(text.clone(), (self.counts, number));
                self.note(What::Mark(text));
                Ok(Answer::Done)
            }
            Order::Freeze => {
                self.store.freeze().map_err(host)?;
                Ok(Answer::Done)
            }
            // QEMU could not have it flushed, and would wait.
            Order::Snapshot(_) if self.power != Power::On => {
                Err("the disk has no power; give it power before: on".to_owned())
            }
            Order::Snapshot(_) if self.now.faults.iter().any(|armed| armed.fault.effect == Effect::Hang) => {
                Err("requests to the disk hang by order; heal that before".to_owned())
            }
            Order::Snapshot(number) => {
                self.store.snapshot(number)?;
                Ok(Answer::Done)
            }
            Order::GoBack(number) => {
                self.store.go_back(number)?;
                Ok(Answer::Done)
            }
            Order::Forget => {
                self.store.forget_snapshots();
                Ok(Answer::Done)
            }
            Order::Cut(_) if self.power == Power::Off => Err("the disk has no power already".to_owned()),
            Order::Cut(seed) => {
                self.power = Power::Off;
                self.busy = None;
                let lost = self.store.cut(seed.map_or(Survival::Strict, Survival::Seed)).map_err(host)?;
                self.note(What::Power(false));
                Ok(Answer::Cut { pending: lost.pending, lost: lost.lost })
            }
            Order::On => {
                match std::mem::replace(&mut self.power, Power::On) {
                    Power::On => return Err("the disk has power".to_owned()),
                    Power::Off => self.note(What::Power(true)),
                    Power::Held | Power::LetGo => {}
                }
                Ok(Answer::Done)
            }
            Order::Hold | Order::LetGo if self.power == Power::Off => Ok(Answer::Done),
            Order::Hold => {
                self.power = Power::Held;
                Ok(Answer::Done)
            }
            Order::TakeOut if self.power != Power::On => Err("the disk has no power".to_owned()),
            Order::LetGo | Order::TakeOut => {
                self.power = Power::LetGo;
                Ok(Answer::Done)
            }
            Order::Keep => {
                self.kept = self.now.clone();
                Ok(Answer::Done)
            }
            Order::Renew => Ok(Answer::Renewed(self.renew())),
            // The server's loop does that.
            Order::Still => {
                self.is_still = true;
                Ok(Answer::Done)
            }
            Order::Begin => {
                (self.is_connecting, self.is_still) = (false, false);
                Ok(Answer::Done)
            }
            Order::Connect(_) => Err("there is no line with it".to_owned()),
        }
    }

    fn heal(&mut self, number: Option<u32>) -> Result<u32, String> {
        let before = self.now.faults.len() + self.now.damaged.len();
        match number {
            None => {
                self.now.faults.clear();
                self.now.damaged.clear();
            }
            Some(number) => {
                self.now.faults.retain(|armed| armed.number != number);
                if self.now.faults.len() == before - self.now.damaged.len() {
                    return Err(format!("there is no fault {number}"));
                }
            }
        }
        Ok(u32::try_from(before - self.now.faults.len() - self.now.damaged.len()).unwrap_or(u32::MAX))
    }

    fn on_disk(&self, text: &str) -> Result<Range, String> {
        let range = fault::range(text).map_err(|what| format!("{text} is {what}"))?;
        if range.end() > self.store.size() {
            return Err(format!("{text} is not on the disk, which has {} bytes", self.store.size()));
        }
        Ok(range)
    }

    fn mark(&self, mark: &str) -> Result<(Counts, u64), String> {
        self.marks.get(mark).copied().ok_or_else(|| format!("there is no mark {mark:?} on this disk"))
    }

    /// Has it be as it was when that was [kept](Order::Keep); gives what was otherwise.
    fn renew(&mut self) -> Vec<String> {
        let mut was = Vec::new();
        let numbers = |told: &Told| told.faults.iter().map(|armed| armed.number).collect::<BTreeSet<_>>();
        let (now, kept) = (numbers(&self.now), numbers(&self.kept));
        let counted = |count: usize| format!("{count} {}", if count == 1 { "fault" } else { "faults" });
        match now.difference(&kept).count() {
            0 => {}
            more => was.push(counted(more)),
        }
        match kept.difference(&now).count() {
            0 => {}
            fewer => was.push(format!("{} fewer", counted(fewer))),
        }
        let changes = [
            (self.now.damaged != self.kept.damaged, "damage"),
            (self.now.rate != self.kept.rate, "a limit"),
            (self.now.capacity != self.kept.capacity, "a capacity"),
            (self.power == Power::Off, "no power"),
        ];
        was.extend(changes.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned()));
        self.now = self.kept.clone();
        self.set_rate(self.now.rate);
        self.store.set_capacity(self.now.capacity);
        self.marks.clear();
        if std::mem::replace(&mut self.power, Power::On) == Power::Off {
            self.note(What::Power(true));
        }
        was
    }

    /// Flips a bit in each sector of some whole ones, as if it had been there for long. Another one each time.
    fn rot(&mut self, range: Range, seed: u64) -> Result<(), StoreError> {
        let number = self.store.count_rot();
        let (mut at, end) = (range.start, range.end().min(self.store.size()));
        let mut bytes = Vec::new();
        while at < end {
            let length = (end - at).min(ROTTED);
            bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            self.store.read(at, &mut bytes)?;
            for (sector, number_of_it) in bytes.chunks_mut(fault::SECTOR as usize).zip(at / fault::SECTOR..) {
                // Never the same bit as the last times, or it would be healed.
                let bit = mixed(seed, number_of_it, 1).wrapping_add(number) % (sector.len() as u64 * 8);
                sector[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
            self.store.write(at, &bytes, true)?;
            at += length;
        }
        Ok(())
    }
}

/// A number made of a name: FNV-1a.
fn seed_of(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A number that has little to do with those that it is made of.
fn mixed(seed: u64, number: u64, what: u64) -> u64 {
    let seed = fastrand::Rng::with_seed(seed).u64(..);
    fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ what).u64(..)
}

/// All sectors that something of a range is in.
fn whole_sectors(range: Range) -> Range {
    let start = range.start / fault::SECTOR * fault::SECTOR;
    Range { start, length: range.end().next_multiple_of(fault::SECTOR) - start }
}

/// Why a request was not done.
enum Failed {
    /// The guest is told.
    Answer(DiskError),
    /// The host is at fault: it is no answer that a disk gives.
    Host(io::Error),
}

impl From<DiskError> for Failed {
    fn from(error: DiskError) -> Self {
        Self::Answer(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Answer(DiskError::NoSpace),
            StoreError::NotOnDisk => Self::Answer(DiskError::Invalid),
            StoreError::Host(error) => Self::Host(error),
        }
    }
}

#[cfg(test)]
mod tests;
