//! Faults of a lab disk, as they are asked for: `error write at=1MiB+4KiB after=3 times=1`.
//!
//! A fault is an effect, the operations that it befalls, and conditions as `KEY=VALUE`. The same text is used on the command line, in
//! `belljar.toml`, in the header of a test, and in a guest.

use std::{fmt, str::FromStr, time::Duration};

use bytesize::ByteSize;

use crate::{values, words};

/// Bytes of the unit `s`, in which the kernel counts.
pub const SECTOR: u64 = 512;
/// Longest delay of one request. A guest's driver has long given up then.
const MAX_DELAY: Duration = Duration::from_secs(3600);

words! {
    /// What is asked of a disk.
    Operation {
        /// Bytes are read.
        Read = "read",
        /// Bytes are written.
        Write = "write",
        /// All that was written before is to be durable.
        Flush = "flush",
        /// Bytes are no longer needed.
        Discard = "discard",
        /// Bytes are to be zeros.
        Zero = "zero",
    }
}

words! {
    /// The error that the disk answers with: as much as the protocol between QEMU and Belljar can say.
    DiskError {
        /// The medium or the connection fails.
        Io = "EIO",
        /// There is no room.
        NoSpace = "ENOSPC",
        /// It is not permitted.
        NotPermitted = "EPERM",
        /// The request makes no sense.
        Invalid = "EINVAL",
        /// There is no memory.
        NoMemory = "ENOMEM",
    }
}

/// Which operations a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// Each of them.
    pub const ALL: Self = Self(0x1f);

    /// Whether this one is among them.
    #[must_use]
    pub fn has(self, operation: Operation) -> bool {
        self.0 & Self::of(operation).0 != 0
    }

    /// Just this one.
    #[must_use]
    pub const fn of(operation: Operation) -> Self {
        Self(1 << operation as u8)
    }

    /// These and those.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is one that is not among those.
    #[must_use]
    pub fn exceeds(self, other: Self) -> bool {
        self.0 & !other.0 != 0
    }

    fn words(self) -> impl Iterator<Item = &'static str> {
        use crate::Word;
        Operation::ALL.iter().filter(move |(_, operation)| self.has(*operation)).map(|(word, _)| *word)
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        f.write_str(&self.words().collect::<Vec<_>>().join(","))
    }
}

/// A range of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub start: u64,
    /// How long it is; at least 1.
    pub length: u64,
}

impl Range {
    /// The first byte behind it.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// Whether something of it is in these bytes.
    #[must_use]
    pub fn touches(self, offset: u64, length: u64) -> bool {
        offset < self.end() && self.start < offset.saturating_add(length)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = |bytes: u64| {
            if bytes.is_multiple_of(SECTOR) { format!("{}s", bytes / SECTOR) } else { bytes.to_string() }
        };
        write!(f, "{}+{}", unit(self.start), unit(self.length))
    }
}

/// What a fault does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is not done, and answered with an error.
    Error(DiskError),
    /// It is not answered until the fault is healed; it is done then.
    Hang,
    /// It is done, and answered, this much later.
    Delay(Duration),
    /// It is not done, and answered as if it were: a lost write, a flush that lies.
    Lose,
    /// Only so many of its first bytes are written, and it is answered as if all were.
    Tear(u64),
    /// It is written so many bytes further on, and answered as if it were where it belongs.
    Misplace(u64),
    /// One bit of what is read is another, in the answer alone.
    Flip,
}

/// A fault of a lab disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What it does.
    pub effect: Effect,
    /// Which operations it befalls.
    pub operations: Operations,
    /// Only those that touch these bytes. A flush touches all of them.
    pub range: Option<Range>,
    /// Only those that come by this path of a disk that has several, counted from 0.
    pub path: Option<u32>,
    /// So many that it would befall go by first.
    pub after: u64,
    /// How many it befalls then; all of them where nothing is said.
    pub times: Option<u64>,
    /// With which probability it befalls one, in millionths.
    pub chance: u32,
    /// What decides by `chance`, and which bit is flipped; the disk has one of its own for each fault where nothing is said.
    pub seed: Option<u64>,
}

/// Millionths that are a certainty.
pub const CERTAIN: u32 = 1_000_000;

/// Every effect: its word, what it can befall, and what it befalls where nothing is said.
const EFFECTS: &[(&str, Operations, Operations)] = &[
    ("error", Operations::ALL, Operations::ALL),
    ("hang", Operations::ALL, Operations::ALL),
    ("delay", Operations::ALL, Operations::ALL),
    ("lose", CHANGES_AND_FLUSH, Operations::of(Operation::Write)),
    ("tear", Operations::of(Operation::Write), Operations::of(Operation::Write)),
    ("misplace", Operations::of(Operation::Write), Operations::of(Operation::Write)),
    ("flip", Operations::of(Operation::Read), Operations::of(Operation::Read)),
];
const CHANGES_AND_FLUSH: Operations = Operations::of(Operation::Write)
    .or(Operations::of(Operation::Flush))
    .or(Operations::of(Operation::Discard))
    .or(Operations::of(Operation::Zero));

impl Effect {
    fn word(self) -> &'static str {
        match self {
            Self::Error(_) => "error",
            Self::Hang => "hang",
            Self::Delay(_) => "delay",
            Self::Lose => "lose",
            Self::Tear(_) => "tear",
            Self::Misplace(_) => "misplace",
            Self::Flip => "flip",
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let word = words.next().ok_or_else(|| format!("no fault; write one of {}", effects()))?;
        let (_, possible, usual) = *EFFECTS
            .iter()
            .find(|(known, ..)| *known == word)
            .ok_or_else(|| format!("{word:?} is no fault; there are {}", effects()))?;
        let mut operations: Option<Operations> = None;
        let mut given = Given::default();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => given.take(key, value)?,
                None => {
                    let more = of_words(word)?;
                    operations = Some(operations.map_or(more, |before| before.or(more)));
                }
            }
        }
        let operations = operations.unwrap_or(usual);
        if operations.exceeds(possible) {
            return Err(format!("{word} befalls {possible}, not {operations}"));
        }
        let effect = given.effect(word)?;
        let Given { range, path, after, times, chance, seed, .. } = given;
        let fault = Self {
            effect,
            operations,
            range,
            path,
            after: after.unwrap_or(0),
            times,
            chance: chance.unwrap_or(CERTAIN),
            seed,
        };
        if seed.is_some() && chance.is_none() && effect != Effect::Flip {
            return Err("seed= decides nothing here; it goes with chance=".to_owned());
        }
        Ok(fault)
    }
}

impl Fault {
    /// Whether anything of it is decided by its seed.
    #[must_use]
    pub fn is_by_seed(&self) -> bool {
        self.chance < CERTAIN || self.effect == Effect::Flip
    }
}

/// Whether a fault can begin with this word.
#[must_use]
pub fn is_effect(word: &str) -> bool {
    EFFECTS.iter().any(|(known, ..)| *known == word)
}

/// All words that a fault can begin with.
#[must_use]
pub fn effects() -> String {
    EFFECTS.iter().map(|(word, ..)| *word).collect::<Vec<_>>().join(", ")
}

fn of_words(text: &str) -> Result<Operations, String> {
    use crate::Word;
    let mut all = None;
    for word in text.split(',') {
        let one = match word {
            "all" => Operations::ALL,
            word => Operations::of(Operation::of(word).ok_or_else(|| {
                let known = Operation::words().collect::<Vec<_>>().join(", ");
                format!("{word:?} is no operation of a disk; there are {known}, and all")
            })?),
        };
        all = Some(all.map_or(one, |before: Operations| before.or(one)));
    }
    all.ok_or_else(|| "no operation".to_owned())
}

/// What was given as `KEY=VALUE`.
#[derive(Default)]
struct Given {
    range: Option<Range>,
    path: Option<u32>,
    after: Option<u64>,
    times: Option<u64>,
    chance: Option<u32>,
    seed: Option<u64>,
    errno: Option<DiskError>,
    by: Option<String>,
    keep: Option<u64>,
}

impl Given {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        use crate::Word;
        let number = || value.parse::<u64>().map_err(|_| format!("{key}={value} is no whole number"));
        let wrong = |what: String| format!("{key}={value} is {what}");
        let twice = match key {
            "at" => self.range.replace(range(value).map_err(wrong)?).is_some(),
            "path" => {
                let path =
                    value.parse().map_err(|_| wrong("no number of a path; they are counted from 0".to_owned()))?;
                self.path.replace(path).is_some()
            }
            "after" => self.after.replace(number()?).is_some(),
            "times" => {
                let times = number()?;
                if times == 0 {
                    return Err(wrong("never; leave the fault away".to_owned()));
                }
                self.times.replace(times).is_some()
            }
            "chance" => self.chance.replace(chance(value).map_err(wrong)?).is_some(),
            "seed" => self.seed.replace(number()?).is_some(),
            "errno" => {
                let known = || DiskError::words().collect::<Vec<_>>().join(", ");
                let errno = DiskError::of(value);
                let errno =
                    errno.ok_or_else(|| wrong(format!("none that a disk answers with; there are {}", known())))?;
                self.errno.replace(errno).is_some()
            }
            "by" => self.by.replace(value.to_owned()).is_some(),
            "keep" => self.keep.replace(bytes(value).map_err(wrong)?).is_some(),
            _ => {
                return Err(format!(
                    "{key}= is not known; there are at=, path=, after=, times=, chance=, seed=, errno=, by= and keep="
                ));
            }
        };
        if twice { Err(format!("{key}= is there twice")) } else { Ok(()) }
    }

    /// The effect, with what goes with it and nothing else.
    fn effect(&mut self, word: &str) -> Result<Effect, String> {
        let (errno, by, keep) = (self.errno.take(), self.by.take(), self.keep.take());
        let unfit = |there: bool, key| if there { Err(format!("{word} has no {key}=")) } else { Ok(()) };
        unfit(errno.is_some() && word != "error", "errno")?;
        unfit(by.is_some() && !matches!(word, "delay" | "misplace"), "by")?;
        unfit(keep.is_some() && word != "tear", "keep")?;
        let missing = |what: &str| format!("{word} wants {what}");
        Ok(match word {
            "error" => Effect::Error(errno.unwrap_or(DiskError::Io)),
            "hang" => Effect::Hang,
            "delay" => {
                let by = by.ok_or_else(|| missing("by=DURATION, such as by=200ms"))?;
                let delay =
                    humantime::parse_duration(&by).map_err(|error| format!("by={by} is no duration: {error}"))?;
                if delay.is_zero() {
                    return Err(format!("by={by} is no delay"));
                }
                if delay > MAX_DELAY {
                    return Err(format!("by={by} is more than an hour; use hang"));
                }
                Effect::Delay(delay)
            }
            "lose" => Effect::Lose,
            "tear" => Effect::Tear(keep.unwrap_or(SECTOR)),
            "misplace" => {
                let by = by.ok_or_else(|| missing("by=BYTES, such as by=4KiB"))?;
                let by = bytes(&by).map_err(|what| format!("by={by} is {what}"))?;
                if by == 0 || !by.is_multiple_of(SECTOR) {
                    return Err("by= is a number of whole sectors of 512 bytes, and not none".to_owned());
                }
                Effect::Misplace(by)
            }
            _ => Effect::Flip,
        })
    }
}

/// Reads a probability such as `0.25` or `25%` into millionths.
fn chance(text: &str) -> Result<u32, String> {
    let wrong = || "no probability; write one such as 0.25 or 25%".to_owned();
    let (number, all) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let number: f64 = number.parse().map_err(|_| wrong())?;
    if !(number > 0.0 && number <= all) {
        return Err(wrong());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and a million")]
    let millionths = (number / all * f64::from(CERTAIN)).round() as u32;
    // What is less is not never.
    Ok(millionths.max(1))
}

/// Reads a number of bytes, which may be none: `4KiB`, `8s` in sectors, `512`.
///
/// # Errors
/// Says what one looks like.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "no number of bytes; write one such as 4096, 4KiB, or 8s for sectors of 512 bytes".to_owned();
    if let Ok(bytes) = text.parse::<u64>() {
        return Ok(bytes);
    }
    match text.strip_suffix('s') {
        Some(sectors) => sectors.parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(SECTOR)).ok_or_else(wrong),
        None => values::size(text).map_err(|_| wrong()),
    }
}

/// Reads a range, `START+LENGTH` or `START` for one sector.
///
/// # Errors
/// Says what one looks like.
pub fn range(text: &str) -> Result<Range, String> {
    let (start, length) = text.split_once('+').map_or((text, None), |(start, length)| (start, Some(length)));
    if text.contains(char::is_whitespace) {
        return Err("no range; write START+LENGTH without a blank, such as 1MiB+4KiB".to_owned());
    }
    let (start, length) = (bytes(start)?, length.map_or(Ok(SECTOR), bytes)?);
    if length == 0 || start.checked_add(length).is_none() {
        return Err("no range; write START+LENGTH, such as 1MiB+4KiB, or 2048s+8s in sectors".to_owned());
    }
    Ok(Range { start, length })
}

/// Reads what survives a power cut beyond what was flushed: nothing (`strict`, or no word), or what a seed chooses (`seed=7`).
///
/// # Errors
/// Says what there is.
pub fn survival(text: &str) -> Result<Option<u64>, String> {
    match text {
        "" | "strict" => Ok(None),
        _ => {
            let seed = text.strip_prefix("seed=").and_then(|seed| seed.parse().ok());
            seed.map(Some)
                .ok_or_else(|| format!("{text:?} does not say what survives a power cut; write strict, or seed=NUMBER"))
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.effect.word(), self.operations)?;
        match self.effect {
            Effect::Error(error) => write!(f, " errno={error}")?,
            Effect::Delay(by) => write!(f, " by={}", humantime::format_duration(by).to_string().replace(' ', ""))?,
            Effect::Tear(keep) => write!(f, " keep={keep}")?,
            Effect::Misplace(by) => write!(f, " by={by}")?,
            Effect::Hang | Effect::Lose | Effect::Flip => {}
        }
        if let Some(range) = self.range {
            write!(f, " at={range}")?;
        }
        if let Some(path) = self.path {
            write!(f, " path={path}")?;
        }
        if self.after > 0 {
            write!(f, " after={}", self.after)?;
        }
        if let Some(times) = self.times {
            write!(f, " times={times}")?;
        }
        if self.chance < CERTAIN {
            write!(f, " chance={}", f64::from(self.chance) / f64::from(CERTAIN))?;
        }
        if let Some(seed) = self.seed {
            write!(f, " seed={seed}")?;
        }
        Ok(())
    }
}

/// How much a lab disk does in a second; `None` means as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes read and written.
    pub bytes: Option<u64>,
    /// Requests.
    pub requests: Option<u64>,
}

impl FromStr for Rate {
    type Err = String;

    /// Reads `bytes=10MiB requests=100`, one of the two, or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut rate = Self::default();
        let words: Vec<_> = text.split_whitespace().collect();
        if words == ["none"] {
            return Ok(rate);
        }
        for word in &words {
            let (key, number) = match word.split_once('=') {
                Some(("bytes", value)) => (&mut rate.bytes, bytes(value)),
                Some(("requests", value)) => (
                    &mut rate.requests,
                    value.parse().map_err(|_| "no number of requests; write one such as 100".to_owned()),
                ),
                _ => return Err(format!("{word:?} is no rate; write bytes=10MiB, requests=100, or none")),
            };
            match number {
                Ok(0) => return Err(format!("{word} is nothing; use hang")),
                Ok(_) if key.is_some() => return Err(format!("{word}: that is there twice")),
                Ok(number) => *key = Some(number),
                Err(what) => return Err(format!("{word} is {what}")),
            }
        }
        if words.is_empty() { Err("no rate; write bytes=10MiB, requests=100, or none".to_owned()) } else { Ok(rate) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.map(|bytes| format!("{} in a second", ByteSize(bytes)));
        let requests = self.requests.map(|requests| format!("{requests} requests in a second"));
        let all: Vec<_> = bytes.into_iter().chain(requests).collect();
        f.write_str(&if all.is_empty() { "as much as it can".to_owned() } else { all.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Fault {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<Fault>().expect_err(text)
    }

    #[test]
    fn a_fault_is_an_effect_with_its_operations_and_conditions() {
        assert_eq!(read("error").to_string(), "error all errno=EIO");
        assert_eq!(
            read("error write,flush read errno=ENOSPC at=1MiB+4KiB after=3 times=1 chance=25% seed=7").to_string(),
            "error read,write,flush errno=ENOSPC at=2048s+8s after=3 times=1 chance=0.25 seed=7"
        );
        assert_eq!(read("hang path=1 write").to_string(), "hang write path=1");
        assert_eq!(read("delay by=1500ms").effect, Effect::Delay(Duration::from_millis(1500)));
        assert_eq!(read("lose flush").to_string(), "lose flush");
        assert_eq!(read("tear").effect, Effect::Tear(512));
        assert_eq!(read("misplace by=8s at=100").to_string(), "misplace write by=4096 at=100+1s");
        assert_eq!(read("flip seed=3").to_string(), "flip read seed=3");
        assert_eq!(read("hang all chance=0.0000000001").chance, 1, "what is rare is not never");
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        for (text, says) in [
            ("", "no fault"),
            ("explode", "there are error, hang"),
            ("error trim", "there are read, write"),
            ("error write at=x", "no number of bytes"),
            ("error at=4096+0", "no range"),
            ("error at=18446744073709551615+2", "no range"),
            ("error errno=EBADF", "there are EIO"),
            ("error by=3s", "error has no by="),
            ("hang keep=1", "hang has no keep="),
            ("delay", "delay wants by="),
            ("delay by=1", "no duration"),
            ("delay by=2h", "use hang"),
            ("delay by=0s", "no delay"),
            ("lose read", "lose befalls write,flush,discard,zero, not read"),
            ("flip write", "flip befalls read"),
            ("misplace by=100", "whole sectors"),
            ("misplace", "wants by=BYTES"),
            ("error times=0", "never"),
            ("error chance=0", "no probability"),
            ("error chance=101%", "no probability"),
            ("error chance=NaN", "no probability"),
            ("error seed=1", "goes with chance="),
            ("error after=1 after=2", "twice"),
            ("error path=-1", "counted from 0"),
            ("error often=1", "not known"),
        ] {
            let error = refused(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_rate_is_read() {
        assert_eq!("bytes=1MiB requests=50".parse(), Ok(Rate { bytes: Some(1 << 20), requests: Some(50) }));
        assert_eq!("none".parse(), Ok(Rate::default()));
        for wrong in ["", "fast", "bytes=0", "bytes=x", "none none", "bytes=5 bytes=6", "requests=-1", "requests=4KiB"]
        {
            wrong.parse::<Rate>().unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in "(error|hang|delay|lose|tear|misplace|flip)?( ?(read|write|all|,|at=|path=|by=|keep=|[0-9s+%.]{1,12}))*") {
            if let Ok(fault) = text.parse::<Fault>() {
                let again: Fault = fault.to_string().parse().unwrap();
                prop_assert_eq!(again.to_string(), fault.to_string());
                prop_assert_eq!(Fault { chance: 1, ..again }, Fault { chance: 1, ..fault });
            }
        }
    }
}
