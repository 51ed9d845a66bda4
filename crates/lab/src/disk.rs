//! A disk with its faults: what becomes of each request.

use std::{
    collections::{HashMap, VecDeque},
    io,
    time::{Duration, Instant},
};

use belljar_guest_spec::fault::{self, CERTAIN, DiskError, Effect, Fault, Operation, Range, Rate};

use crate::{
    control::{Answer, Counts, Logged, MAX_MARK, MAX_TOLD, Order, What},
    nbd::{self, Request},
    store::{Store, StoreError},
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
/// Largest range that can rot at once, in bytes.
const MAX_ROT: u64 = 64 << 20;

/// A fault that is in force.
#[derive(Debug)]
struct Armed {
    number: u32,
    fault: Fault,
    random: fastrand::Rng,
    /// How many it would have befallen, and how many it has.
    seen: u64,
    done: u64,
}

impl Armed {
    fn new(number: u32, fault: Fault) -> Self {
        Self { number, fault, random: fastrand::Rng::with_seed(fault.seed), seen: 0, done: 0 }
    }

    /// Whether it befalls this request.
    fn befalls(&mut self, operation: Operation, offset: u64, length: u64) -> bool {
        let Fault { operations, range, after, times, chance, .. } = self.fault;
        let there = operation == Operation::Flush || range.is_none_or(|range| range.touches(offset, length));
        if !operations.has(operation) || !there {
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
    /// When it is done.
    pub when: When,
    /// What is done then.
    effect: Option<Effect>,
    /// The number of the fault that decided.
    fault: Option<u32>,
    /// Which bit is flipped.
    bit: u64,
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

/// A disk that is served.
#[derive(Debug)]
pub struct LabDisk {
    store: Store,
    read_only: bool,
    begun: Instant,
    faults: Vec<Armed>,
    last_fault: u32,
    damaged: Vec<Range>,
    rate: Rate,
    /// Until when the disk is busy with what it has taken, at its rate.
    busy: Option<Instant>,
    counts: Counts,
    marks: HashMap<String, (Counts, u64)>,
    log: VecDeque<Logged>,
    /// Requests that stood in the log before those that do.
    forgotten: u64,
    off: bool,
    /// What the host could not do.
    broken: Option<io::Error>,
}

impl LabDisk {
    /// A disk without faults.
    pub fn new(store: Store, read_only: bool) -> Self {
        Self {
            store,
            read_only,
            begun: Instant::now(),
            faults: Vec::new(),
            last_fault: 0,
            damaged: Vec::new(),
            rate: Rate::default(),
            busy: None,
            counts: Counts::default(),
            marks: HashMap::new(),
            log: VecDeque::new(),
            forgotten: 0,
            off: false,
            broken: None,
        }
    }

    /// What a client is told of it.
    pub fn export(&self) -> nbd::Export {
        nbd::Export { size: self.store.size(), read_only: self.read_only }
    }

    /// Whether it has no power: each request fails.
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// What the host could not do, so that the disk is of no use any more; once.
    pub fn take_broken(&mut self) -> Option<io::Error> {
        self.broken.take()
    }

    /// Whether requests that hang for this fault hang on.
    pub fn hangs(&self, fault: u32) -> bool {
        self.faults.iter().any(|armed| armed.number == fault)
    }

    /// Decides what becomes of a request.
    pub fn decide(&mut self, request: &Request<'_>, now: Instant) -> Fate {
        let mut fate = Fate { when: When::Now, effect: None, fault: None, bit: 0 };
        let Some(operation) = request.operation else { return fate };
        if self.rate != Rate::default() {
            fate.when = When::At(self.take_turn(request, now));
        }
        let (offset, length) = (request.offset, u64::from(request.length));
        let Some(armed) =
            self.faults.iter_mut().find_map(|armed| armed.befalls(operation, offset, length).then_some(armed))
        else {
            return fate;
        };
        fate.fault = Some(armed.number);
        match armed.fault.effect {
            Effect::Hang => fate.when = When::Healed(armed.number),
            Effect::Delay(by) => {
                let from = if let When::At(at) = fate.when { at } else { now };
                fate.when = When::At(from + by);
            }
            effect => {
                if effect == Effect::Flip {
                    fate.bit = armed.random.u64(..);
                }
                fate.effect = Some(effect);
            }
        }
        fate
    }

    /// When a request that comes now is done, at the disk's rate.
    fn take_turn(&mut self, request: &Request<'_>, now: Instant) -> Instant {
        let moves = matches!(request.operation, Some(Operation::Read | Operation::Write));
        let bytes = if moves { f64::from(request.length) } else { 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "a rate is no exact thing")]
        let takes = |amount: f64, rate: Option<u64>| rate.map_or(0.0, |rate| amount / rate as f64);
        let takes = takes(bytes, self.rate.bytes).max(takes(1.0, self.rate.requests));
        let from = self.busy.filter(|busy| *busy > now).unwrap_or(now);
        let done = from + Duration::try_from_secs_f64(takes).unwrap_or(Duration::MAX / 4);
        self.busy = Some(done);
        done
    }

    /// Does a request, and puts its answer into `out`.
    pub fn execute(&mut self, request: &Request<'_>, fate: Fate, out: &mut Vec<u8>) {
        let begin = out.len();
        nbd::reply(request.cookie, None, out);
        let failed = match self.act(request, fate, out) {
            Ok(()) => false,
            Err(Failed::Answer(error)) => {
                out.truncate(begin);
                nbd::reply(request.cookie, Some(error), out);
                true
            }
            Err(Failed::Host(error)) => {
                // Nobody gets an answer any more.
                out.truncate(begin);
                self.broken = Some(error);
                return;
            }
        };
        self.count(request, fate.fault, failed);
    }

    fn act(&mut self, request: &Request<'_>, fate: Fate, out: &mut Vec<u8>) -> Result<(), Failed> {
        if self.off {
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
                if self.damaged.iter().any(|range| range.touches(offset, length)) {
                    return Err(DiskError::Io.into());
                }
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
                        at = offset.saturating_add(by) % self.store.size().max(1);
                        let room = usize::try_from(self.store.size() - at).unwrap_or(usize::MAX);
                        bytes = &bytes[..bytes.len().min(room)];
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
        if self.damaged.iter().all(|range| !range.touches(offset, length)) {
            return;
        }
        let end = offset + length;
        let rest = |range: &Range| {
            let before = Range { start: range.start, length: offset.saturating_sub(range.start).min(range.length) };
            let behind =
                Range { start: range.start.max(end), length: range.end().saturating_sub(range.start.max(end)) };
            if range.touches(offset, length) { [before, behind] } else { [*range, Range { start: 0, length: 0 }] }
        };
        self.damaged = self.damaged.iter().flat_map(rest).filter(|range| range.length > 0).collect();
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
                if self.faults.len() == MAX_FAULTS {
                    return Err(format!("there are {MAX_FAULTS} faults already; heal some"));
                }
                if fault.range.is_some_and(|range| range.start >= self.store.size()) {
                    return Err(format!("at= is behind the disk's end, which is at {}", self.store.size()));
                }
                self.last_fault += 1;
                self.faults.push(Armed::new(self.last_fault, fault));
                Ok(Answer::Armed(self.last_fault))
            }
            Order::Heal(number) => self.heal(number).map(Answer::Healed),
            Order::Damage(text) => {
                let range = self.on_disk(&text)?;
                if self.damaged.len() >= MAX_DAMAGED {
                    return Err(format!("there are {MAX_DAMAGED} damaged ranges already"));
                }
                // A medium fails in whole sectors.
                let start = range.start / fault::SECTOR * fault::SECTOR;
                let length = range.end().next_multiple_of(fault::SECTOR) - start;
                self.damaged.push(Range { start, length });
                Ok(Answer::Done)
            }
            Order::Rot(text) => {
                let range = self.on_disk(&text)?;
                if range.length > MAX_ROT {
                    return Err(format!("{} bytes are too many; let {MAX_ROT} rot at a time", range.length));
                }
                self.rot(range).map_err(host)?;
                Ok(Answer::Done)
            }
            Order::Limit(text) => {
                self.rate = text.parse()?;
                self.busy = None;
                Ok(Answer::Done)
            }
            Order::Capacity(bytes) => {
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
            Order::Cut(_) if self.off => Err("the disk has no power already".to_owned()),
            Order::Cut(seed) => {
                self.off = true;
                self.busy = None;
                let lost = self.store.cut(seed.map_or(Survival::Strict, Survival::Seed)).map_err(host)?;
                self.note(What::Power(false));
                Ok(Answer::Cut { pending: lost.pending, lost: lost.lost })
            }
            Order::On => {
                if !std::mem::replace(&mut self.off, false) {
                    return Err("the disk has power".to_owned());
                }
                self.note(What::Power(true));
                Ok(Answer::Done)
            }
            // The server's loop does that.
            Order::Connect => Err("there is no line with it".to_owned()),
        }
    }

    fn heal(&mut self, number: Option<u32>) -> Result<u32, String> {
        let before = self.faults.len() + self.damaged.len();
        match number {
            None => {
                self.faults.clear();
                self.damaged.clear();
            }
            Some(number) => {
                self.faults.retain(|armed| armed.number != number);
                if self.faults.len() == before - self.damaged.len() {
                    return Err(format!("there is no fault {number}"));
                }
            }
        }
        Ok(u32::try_from(before - self.faults.len() - self.damaged.len()).unwrap_or(u32::MAX))
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

    /// Flips a bit in each sector, as if it had been there for long.
    fn rot(&mut self, range: Range) -> Result<(), StoreError> {
        let mut bytes = vec![0; usize::try_from(range.length).map_err(io::Error::other)?];
        self.store.read(range.start, &mut bytes)?;
        for sector in bytes.chunks_mut(fault::SECTOR as usize) {
            let middle = sector.len() / 2;
            sector[middle] ^= 1;
        }
        self.store.write(range.start, &bytes, true)
    }
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
mod tests {
    use super::*;
    use crate::store::Base;

    const SIZE: u64 = 1 << 20;

    fn disk() -> LabDisk {
        LabDisk::new(Store::new(SIZE, Base::Zeros, tempfile::tempfile().unwrap()), false)
    }

    fn asked(operation: Operation, offset: u64, length: u32, payload: &[u8]) -> Request<'_> {
        Request { cookie: 1, operation: Some(operation), offset, length, fua: false, payload }
    }

    /// Does a request at once; gives what was read, or the number of the error.
    fn ask(disk: &mut LabDisk, request: Request<'_>) -> Result<Vec<u8>, u32> {
        let fate = disk.decide(&request, Instant::now());
        assert_eq!(fate.when, When::Now);
        let mut out = Vec::new();
        disk.execute(&request, fate, &mut out);
        match u32::from_be_bytes(out[4..8].try_into().unwrap()) {
            0 => Ok(out[16..].to_vec()),
            error => Err(error),
        }
    }

    fn read(disk: &mut LabDisk, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        ask(disk, asked(Operation::Read, offset, length, &[]))
    }

    fn write(disk: &mut LabDisk, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, u32> {
        ask(disk, asked(Operation::Write, offset, bytes.len() as u32, bytes))
    }

    fn flush(disk: &mut LabDisk) -> Result<Vec<u8>, u32> {
        ask(disk, asked(Operation::Flush, 0, 0, &[]))
    }

    fn arm(disk: &mut LabDisk, text: &str) -> u32 {
        match disk.obey(Order::Arm(text.to_owned())) {
            Answer::Armed(number) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(disk: &mut LabDisk, order: Order) -> String {
        match disk.obey(order) {
            Answer::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_come_where_and_as_often_as_they_are_asked_for() {
        let mut disk = disk();
        let fault = arm(&mut disk, "error write errno=ENOSPC at=8s+8s after=1 times=2");
        let bytes = [1; 512];
        assert_eq!(write(&mut disk, 0, &bytes), Ok(vec![]), "elsewhere");
        assert_eq!(read(&mut disk, 4096, 512), Ok(vec![0; 512]), "another operation");
        let tries: Vec<_> = (0..5).map(|_| write(&mut disk, 4096, &bytes).err()).collect();
        assert_eq!(tries, [None, Some(28), Some(28), None, None]);
        assert_eq!(disk.obey(Order::Heal(Some(fault))), Answer::Healed(1));
        assert!(refused(&mut disk, Order::Heal(Some(fault))).contains("no fault 1"));
        // A fault by chance is the same under the same seed.
        let by_chance = || {
            let mut disk = self::disk();
            arm(&mut disk, "error read chance=0.5 seed=9");
            (0..64).map(|_| read(&mut disk, 0, 512).is_err()).collect::<Vec<_>>()
        };
        let failed = by_chance();
        assert_eq!(failed, by_chance());
        assert!((10..54).contains(&failed.iter().filter(|failed| **failed).count()));
    }

    #[test]
    fn what_is_lost_torn_misplaced_or_flipped_is_answered_as_if_it_were_not() {
        let mut disk = disk();
        let new = [7; 1024];
        arm(&mut disk, "lose write times=1");
        assert_eq!(write(&mut disk, 0, &new), Ok(vec![]));
        assert_eq!(read(&mut disk, 0, 1024), Ok(vec![0; 1024]));
        arm(&mut disk, "tear times=1");
        write(&mut disk, 0, &new).unwrap();
        assert_eq!(read(&mut disk, 0, 1024), Ok([vec![7; 512], vec![0; 512]].concat()));
        arm(&mut disk, "misplace by=16s times=1 at=0");
        write(&mut disk, 0, &[8; 512]).unwrap();
        assert_eq!(read(&mut disk, 0, 512), Ok(vec![7; 512]));
        assert_eq!(read(&mut disk, 8192, 512), Ok(vec![8; 512]));
        arm(&mut disk, "misplace by=1s times=1");
        write(&mut disk, SIZE - 512, &[9; 512]).unwrap();
        assert_eq!(read(&mut disk, 0, 512), Ok(vec![9; 512]), "behind the end is the beginning");
        arm(&mut disk, "flip times=1 seed=4");
        let flipped = read(&mut disk, 0, 512).unwrap();
        let bits: u32 = flipped.iter().map(|byte| (byte ^ 9).count_ones()).sum();
        assert_eq!(bits, 1);
        assert_eq!(read(&mut disk, 0, 512), Ok(vec![9; 512]), "only the answer was wrong");
        assert_eq!(disk.obey(Order::Rot("0+1024".into())), Answer::Done);
        let rotten = read(&mut disk, 0, 1024).unwrap();
        assert_eq!((rotten[256], rotten[768], rotten[0]), (9 ^ 1, 1, 9), "a bit of each sector");
    }

    #[test]
    fn a_flush_that_lies_makes_nothing_durable() {
        let mut disk = disk();
        write(&mut disk, 0, &[1; 512]).unwrap();
        flush(&mut disk).unwrap();
        arm(&mut disk, "lose flush");
        write(&mut disk, 512, &[2; 512]).unwrap();
        assert_eq!(flush(&mut disk), Ok(vec![]));
        assert_eq!(disk.obey(Order::Cut(None)), Answer::Cut { pending: 1, lost: 1 });
        assert!(disk.is_off());
        assert!(refused(&mut disk, Order::Cut(None)).contains("no power already"));
        assert_eq!(
            (read(&mut disk, 0, 512), write(&mut disk, 0, &[3; 512]), flush(&mut disk)),
            (Err(5), Err(5), Err(5))
        );
        let mut bytes = [9; 1024];
        disk.store.read(0, &mut bytes).unwrap();
        assert_eq!(bytes.to_vec(), [vec![1; 512], vec![0; 512]].concat());
        assert_eq!((disk.obey(Order::On), disk.is_off()), (Answer::Done, false));
        assert!(refused(&mut disk, Order::On).contains("has power"));
        assert_eq!(read(&mut disk, 0, 1024), Ok(bytes.to_vec()));
        let Answer::Log { requests, .. } = disk.obey(Order::Log(None)) else { panic!() };
        let power = |on| requests.iter().any(|logged| logged.what == What::Power(on));
        assert!(power(false) && power(true), "{requests:?}");
    }

    #[test]
    fn a_medium_error_is_healed_by_writing() {
        let mut disk = disk();
        write(&mut disk, 0, &[1; 4096]).unwrap();
        assert_eq!(disk.obey(Order::Damage("1000+1100".into())), Answer::Done);
        assert_eq!(read(&mut disk, 0, 512), Ok(vec![1; 512]));
        assert_eq!((read(&mut disk, 512, 512), read(&mut disk, 0, 4096)), (Err(5), Err(5)));
        write(&mut disk, 1024, &[2; 512]).unwrap();
        let now: Vec<_> = (0..8).map(|sector| read(&mut disk, sector * 512, 512).is_ok()).collect();
        assert_eq!(now, [true, false, true, false, false, true, true, true]);
        write(&mut disk, 0, &[3; 4096]).unwrap();
        assert_eq!(read(&mut disk, 0, 4096), Ok(vec![3; 4096]));
        assert!(refused(&mut disk, Order::Damage("2048s".into())).contains("not on the disk"));
    }

    #[test]
    fn requests_are_put_off_or_hang() {
        let mut disk = disk();
        let now = Instant::now();
        let request = asked(Operation::Read, 0, 1 << 19, &[]);
        disk.obey(Order::Limit("bytes=1MiB".into()));
        let second = |disk: &mut LabDisk| match disk.decide(&request, now).when {
            When::At(at) => (at - now).as_millis(),
            other => panic!("{other:?}"),
        };
        assert_eq!((second(&mut disk), second(&mut disk)), (500, 1000));
        disk.obey(Order::Limit("none".into()));
        arm(&mut disk, "delay read by=200ms times=1");
        assert_eq!(second(&mut disk), 200);
        let hang = arm(&mut disk, "hang");
        assert_eq!(disk.decide(&request, now).when, When::Healed(hang));
        assert!(disk.hangs(hang));
        assert_eq!(disk.obey(Order::Heal(None)), Answer::Healed(2));
        assert!(!disk.hangs(hang));
    }

    #[test]
    fn what_was_asked_of_it_is_counted_and_told() {
        let mut disk = disk();
        write(&mut disk, 0, &[1; 512]).unwrap();
        assert_eq!(disk.obey(Order::Mark("synced".into())), Answer::Done);
        let fault = arm(&mut disk, "error flush times=1");
        flush(&mut disk).unwrap_err();
        flush(&mut disk).unwrap();
        let Answer::Counts(counts) = disk.obey(Order::Counts(Some("synced".into()))) else { panic!() };
        assert_eq!(counts, Counts { flushes: 2, errors: 1, faults: 1, ..Counts::default() });
        let Answer::Counts(all) = disk.obey(Order::Counts(None)) else { panic!() };
        assert_eq!((all.writes, all.written_bytes, all.flushes), (1, 512, 2));
        let Answer::Log { requests, missing } = disk.obey(Order::Log(Some("synced".into()))) else { panic!() };
        let lines: Vec<_> =
            requests.iter().map(|line| line.to_string().split_once(' ').unwrap().1.to_owned()).collect();
        assert_eq!(
            (missing, lines),
            (0, vec!["mark synced".into(), format!("flush 0 0 fault={fault} failed"), "flush 0 0".into()])
        );
        assert!(refused(&mut disk, Order::Counts(Some("x".into()))).contains("no mark"));
        for _ in 0..MAX_LOG + 10 {
            flush(&mut disk).unwrap();
        }
        let Answer::Log { requests, missing } = disk.obey(Order::Log(Some("synced".into()))) else { panic!() };
        assert_eq!((requests.len(), missing), (MAX_TOLD, (MAX_LOG + 13 - MAX_TOLD) as u64));
    }

    #[test]
    fn what_the_disk_cannot_do_is_an_error() {
        let mut disk = disk();
        assert_eq!(write(&mut disk, SIZE, &[1; 512]), Err(28));
        assert_eq!(read(&mut disk, SIZE - 512, 1024), Err(22));
        assert_eq!(read(&mut disk, u64::MAX, 512), Err(22));
        assert_eq!(ask(&mut disk, Request { operation: None, ..asked(Operation::Read, 0, 1, &[]) }), Err(22));
        disk.read_only = true;
        assert_eq!((write(&mut disk, 0, &[1; 512]), flush(&mut disk)), (Err(1), Ok(vec![])));
        disk.read_only = false;
        assert_eq!(disk.obey(Order::Capacity(Some(4096))), Answer::Done);
        write(&mut disk, 0, &[1; 4096]).unwrap();
        assert_eq!(write(&mut disk, 4096, &[1; 512]), Err(28));
    }
}
