//! What Belljar orders a disk server to do, and what it is told: JSON, one line each, over a socket that nobody else has.

use std::fmt;

use belljar_guest_spec::{
    Word as _,
    fault::{self, Fault, Operation, Rate},
};
use serde::{Deserialize, Serialize};

/// Longest line in either direction, in bytes.
pub const MAX_LINE: usize = 2 << 20;
/// Most requests that [`Order::Log`] tells of.
pub const MAX_TOLD: usize = 2000;

/// Most states of a disk that are remembered at a time.
pub const MAX_SNAPSHOTS: usize = 8;

/// Longest text of a mark, in bytes.
pub const MAX_MARK: usize = 256;

/// An order; the server answers each with one [`Answer`], in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The text of a [fault](belljar_guest_spec::fault::Fault), which is in force from now on.
    Arm(String),
    /// This fault, or all of them, is no longer in force. What hangs goes on.
    Heal(Option<u32>),
    /// Reads of this range fail until it is written to: a medium error.
    Damage(String),
    /// From now on the bytes of this range are other ones, one bit in each sector: what nobody wrote.
    Rot {
        /// The range.
        at: String,
        /// Which bits; the disk has a choice of its own.
        seed: Option<u64>,
    },
    /// The text of a [rate](belljar_guest_spec::fault::Rate).
    Limit(String),
    /// So many bytes may have been written at most; `None` is all.
    Capacity(Option<u64>),
    /// What was asked of the disk since it is there, or since a mark.
    Counts(Option<String>),
    /// The last requests, at most [`MAX_TOLD`], since it is there, or since a mark.
    Log(Option<String>),
    /// A mark in the log.
    Mark(String),
    /// Everything that was answered is written where the disk can be opened as a frozen one. Nobody must write to the disk after that, but to give it up as one.
    Freeze,
    /// The power is cut: all that hangs is gone, what was not flushed is lost, and each request fails until the power is [on](Order::On) again. A seed
    /// chooses what survives all the same; without one nothing does.
    Cut(Option<u64>),
    /// The power is on again, and requests are answered again.
    On,
    /// Nothing but reads is done or answered any more: what comes waits, until the power is [cut](Order::Cut), or the disk is [let go](Order::LetGo).
    Hold,
    /// QEMU is about to end: all that hangs or comes fails until the disk is [on](Order::On) again, and nothing is lost of what was done before.
    LetGo,
    /// The same for a disk that has power, whose medium is about to be taken out; one that has none refuses it.
    TakeOut,
    /// What it is told up to now is part of it, and comes back by [`Renew`](Self::Renew).
    Keep,
    /// It is as it was at [`Keep`](Self::Keep), but for its bytes, its counts and its log: faults, damage, rate, capacity and power.
    Renew,
    /// What is on it now, flushed and not, is remembered under this number, in place of what was remembered under it before. At most
    /// [`MAX_SNAPSHOTS`] are.
    Snapshot(u32),
    /// What is on it is what was remembered under this number. Its faults, counts and log are as they are.
    GoBack(u32),
    /// Nothing is remembered any more.
    Forget,
    /// QEMU is another one from now on: its line for the path of this number comes with this order (`SCM_RIGHTS`, unix(7)).
    Connect(u32),
    /// Its processors are about to stand still: flushes are QEMU's own from now on, which does them before it writes down what its machine is. They are
    /// answered, and do nothing, until it [goes on](Order::Begin).
    Still,
    /// Its guest runs: from now on faults and rates hold again, which for another QEMU's own requests they do not, for it does not come up without
    /// answers.
    Begin,
}

/// What an order does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It changes how the disk behaves.
    Change,
    /// It only asks, or sets a mark.
    Question,
}

impl Order {
    /// Reads an order as a user writes it (`eject` and `insert` are the machine's, `device` is the guest's): a fault, or `heal`, `damage`, `rot`, `limit`, `capacity`, `cut`, `on`, `counts`, `log` or `mark` with
    /// what goes with it.
    ///
    /// # Errors
    /// Says what there is instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()));
        let mark = || Some(rest.to_owned()).filter(|rest| !rest.is_empty());
        let range = |order: fn(String) -> Self| {
            fault::range(rest).map_err(|what| format!("{word} wants a range; {rest:?} is {what}"))?;
            Ok(order(rest.to_owned()))
        };
        match word {
            "heal" => match rest {
                "" | "all" => Ok(Self::Heal(None)),
                number => {
                    let wrong = |_| format!("{number:?} is no number of a fault; write heal NUMBER, or heal all");
                    number.parse().map(Some).map(Self::Heal).map_err(wrong)
                }
            },
            "damage" => range(Self::Damage),
            "rot" => {
                let (at, seed) = rest.split_once(char::is_whitespace).map_or((rest, None), |(at, seed)| (at, Some(seed)));
                fault::range(at).map_err(|what| format!("rot wants a range; {at:?} is {what}"))?;
                let seed = seed.map(|seed| {
                    let number = seed.trim().strip_prefix("seed=").and_then(|seed| seed.parse().ok());
                    number.ok_or_else(|| format!("after the range of rot there may be seed=NUMBER, not {:?}", seed.trim()))
                });
                Ok(Self::Rot { at: at.to_owned(), seed: seed.transpose()? })
            }
            "limit" => rest.parse::<Rate>().map(|_| Self::Limit(rest.to_owned())),
            "capacity" if rest == "none" => Ok(Self::Capacity(None)),
            "capacity" => {
                let bytes = fault::bytes(rest).map_err(|what| format!("{rest:?} is {what}, nor none"))?;
                Ok(Self::Capacity(Some(bytes)))
            }
            "cut" => fault::survival(rest).map(Self::Cut),
            "on" if rest.is_empty() => Ok(Self::On),
            "device" if rest.is_empty() => {
                Err("by which device the guest has a disk is known in the guest: ask there, by belljar-ctl disk NAME device".to_owned())
            }
            "counts" => Ok(Self::Counts(mark())),
            "log" => Ok(Self::Log(mark())),
            "mark" => mark().map(Self::Mark).ok_or_else(|| "a mark has a name".to_owned()),
            _ => text.parse::<Fault>().map(|fault| Self::Arm(fault.to_string())).map_err(|error| {
                if fault::is_effect(word) {
                    error
                } else {
                    format!(
                        "{word:?} is nothing that a disk is told; there are the faults {}, and heal, damage, rot, limit, capacity, cut, on, eject, insert, device, counts, log and mark",
                        fault::effects()
                    )
                }
            }),
        }
    }

    /// What it does.
    pub fn class(&self) -> Class {
        match self {
            Self::Counts(_) | Self::Log(_) | Self::Mark(_) => Class::Question,
            _ => Class::Change,
        }
    }

    /// By which path of a disk it befalls requests, if not by all.
    pub fn path(&self) -> Option<u32> {
        match self {
            Self::Arm(text) => text.parse::<Fault>().ok()?.path,
            _ => None,
        }
    }

    /// Whether the guest's kernel may find the disk at fault because this was done, with this answer.
    pub fn may_harm(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (_, Answer::Refused(_) | Answer::Healed(0)) => false,
            (Self::Limit(rate), _) => rate.trim() != "none",
            // Power that comes again was cut before, which counts.
            (Self::Capacity(None) | Self::On | Self::Counts(_) | Self::Log(_) | Self::Mark(_), _) => false,
            _ => true,
        }
    }
}

/// What an order led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The fault is in force.
    Armed {
        /// Its number.
        number: u32,
        /// The seed that decides something of it.
        seed: Option<u64>,
    },
    /// So many faults were healed.
    Healed(u32),
    /// What was asked of the disk.
    Counts(Counts),
    /// Requests, the oldest first; `missing` older ones are not told.
    Log {
        /// What was asked for.
        requests: Vec<Logged>,
        /// How many came before them and are not told.
        missing: u64,
    },
    /// The power is off.
    Cut {
        /// Changes since the last flush.
        pending: u64,
        /// How many of them are not there as a whole.
        lost: u64,
    },
    /// It is as it was; what was otherwise before.
    Renewed(Vec<String>),
    /// It is not done, for this reason.
    Refused(String),
}

/// How many requests there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Writes that had to be durable when they were answered; they are among the writes.
    pub fua: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Requests for zeros.
    pub zeros: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Requests that a fault befell.
    pub faults: u64,
}

impl Answer {
    /// What there is to say of it in so many bytes, for a shell to read; or why it was refused. Of a log that is longer the last of it is said.
    ///
    /// # Errors
    /// When it was refused.
    pub fn said(&self, room: usize) -> Result<String, String> {
        Ok(match self {
            Self::Done => String::new(),
            Self::Renewed(was) => was.join("\n"),
            Self::Armed { number, .. } => format!("fault {number}\n"),
            Self::Healed(count) => format!("healed {count}\n"),
            Self::Counts(counts) => counts.to_string(),
            Self::Log { requests, missing } => {
                let lines: Vec<_> = requests.iter().map(|line| format!("{line}\n")).collect();
                let mut left = room.saturating_sub("missing 18446744073709551615\n".len());
                let fits = |line: &&String| {
                    left = left.saturating_sub(line.len());
                    left > 0
                };
                let told = lines.iter().rev().take_while(fits).count();
                let untold = lines.len() - told;
                let missing = missing + untold as u64;
                let missing = if missing > 0 { format!("missing {missing}\n") } else { String::new() };
                missing + &lines[untold..].concat()
            }
            Self::Cut { pending, lost } => format!("pending {pending}\nlost {lost}\n"),
            Self::Refused(why) => return Err(why.clone()),
        })
    }
}

impl Answer {
    /// What there is to tell in the event log beside what is said: what is needed to do the same again.
    pub fn told(&self) -> String {
        match self {
            Self::Armed { seed: Some(seed), .. } => format!(", seed={seed}"),
            _ => String::new(),
        }
    }
}

impl Counts {
    /// What came after those.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads.saturating_sub(before.reads),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            writes: self.writes.saturating_sub(before.writes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            fua: self.fua.saturating_sub(before.fua),
            flushes: self.flushes.saturating_sub(before.flushes),
            discards: self.discards.saturating_sub(before.discards),
            zeros: self.zeros.saturating_sub(before.zeros),
            errors: self.errors.saturating_sub(before.errors),
            faults: self.faults.saturating_sub(before.faults),
        }
    }
}

impl fmt::Display for Counts {
    /// One `NAME NUMBER` on each line, for a shell to read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("reads", self.reads),
            ("read-bytes", self.read_bytes),
            ("writes", self.writes),
            ("written-bytes", self.written_bytes),
            ("fua", self.fua),
            ("flushes", self.flushes),
            ("discards", self.discards),
            ("zeros", self.zeros),
            ("errors", self.errors),
            ("faults", self.faults),
        ];
        for (name, number) in all {
            writeln!(f, "{name} {number}")?;
        }
        Ok(())
    }
}

/// A line of a disk's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Logged {
    /// Microseconds since the server has begun.
    pub at: u64,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What stands in a disk's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A mark.
    Mark(String),
    /// The power was cut, or is on again.
    Power(bool),
    /// A request.
    Request {
        /// What was asked for.
        operation: Operation,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
        /// Whether it had to be durable when it was answered.
        fua: bool,
        /// The fault that befell it.
        #[serde(skip_serializing_if = "Option::is_none")]
        fault: Option<u32>,
        /// Whether it was answered with an error.
        failed: bool,
    },
}

impl fmt::Display for Logged {
    /// `SECONDS read OFFSET LENGTH`, and words: `fua`, `fault=NUMBER`, `failed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} ", self.at / 1_000_000, self.at % 1_000_000)?;
        match &self.what {
            What::Mark(text) => write!(f, "mark {text}"),
            What::Power(on) => f.write_str(if *on { "power on" } else { "power off" }),
            What::Request { operation, offset, length, fua, fault, failed } => {
                write!(f, "{} {offset} {length}", operation.word())?;
                if *fua {
                    f.write_str(" fua")?;
                }
                if let Some(fault) = fault {
                    write!(f, " fault={fault}")?;
                }
                if *failed {
                    f.write_str(" failed")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_a_user_writes_them() {
        let read = |text: &str| Order::parse(text).unwrap();
        assert_eq!(read("error write  times=1"), Order::Arm("error write errno=EIO times=1".into()));
        assert_eq!((read("heal"), read("heal 3")), (Order::Heal(None), Order::Heal(Some(3))));
        assert_eq!(read("damage 8s+8s"), Order::Damage("8s+8s".into()));
        assert_eq!(read("rot 8s"), Order::Rot { at: "8s".into(), seed: None });
        assert_eq!(read("rot 8s  seed=4"), Order::Rot { at: "8s".into(), seed: Some(4) });
        assert_eq!((read("cut"), read("cut seed=7"), read("on")), (Order::Cut(None), Order::Cut(Some(7)), Order::On));
        assert_eq!(
            (read("capacity 1MiB"), read("capacity none")),
            (Order::Capacity(Some(1 << 20)), Order::Capacity(None))
        );
        assert_eq!(
            (read("counts"), read("log after fsync")),
            (Order::Counts(None), Order::Log(Some("after fsync".into())))
        );
        assert_eq!((read("mark x").class(), read("limit none").class()), (Class::Question, Class::Change));
        for (text, says) in [
            ("", "is nothing that a disk is told"),
            ("explode", "the faults error, hang"),
            ("error explode", "no operation"),
            ("heal x", "no number of a fault"),
            ("rot", "wants a range"),
            ("rot 0 +5", "seed=NUMBER, not \"+5\""),
            ("rot 0+5 seed=x", "seed=NUMBER"),
            ("damage 1MiB +4KiB", "without a blank"),
            ("limit fast", "no rate"),
            ("capacity", "no number of bytes"),
            ("mark", "has a name"),
            ("cut hard", "strict, or seed=NUMBER"),
            ("on off", "is nothing that a disk is told"),
        ] {
            let error = Order::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_harms_nothing_is_known() {
        for (text, answer, harms) in [
            ("error write", Answer::Armed { number: 1, seed: None }, true),
            ("error write", Answer::Refused("no".into()), false),
            ("heal", Answer::Healed(0), false),
            ("heal", Answer::Healed(1), true),
            ("limit none", Answer::Done, false),
            ("limit bytes=1MiB", Answer::Done, true),
            ("capacity none", Answer::Done, false),
            ("capacity 1MiB", Answer::Done, true),
            ("damage 0+8s", Answer::Done, true),
            ("rot 0+8s", Answer::Done, true),
            ("cut", Answer::Cut { pending: 0, lost: 0 }, true),
            ("on", Answer::Done, false),
            ("mark x", Answer::Done, false),
            ("counts", Answer::Counts(Counts::default()), false),
        ] {
            assert_eq!(Order::parse(text).unwrap().may_harm(&answer), harms, "{text}");
        }
    }

    #[test]
    fn answers_are_for_a_shell_to_read() {
        let of = |answer: Answer| answer.said(1000);
        assert_eq!(of(Answer::Armed { number: 4, seed: None }), Ok("fault 4\n".into()));
        let armed = Answer::Armed { number: 4, seed: Some(7) };
        assert_eq!((armed.told(), of(armed)), (", seed=7".into(), Ok("fault 4\n".into())));
        assert_eq!(
            of(Answer::Log { requests: vec![Logged { at: 1, what: What::Mark("m".into()) }], missing: 2 }),
            Ok("missing 2\n0.000001 mark m\n".into())
        );
        assert_eq!(of(Answer::Refused("no".into())), Err("no".into()));
        assert!(of(Answer::Counts(Counts { fua: 3, ..Counts::default() })).unwrap().contains("\nfua 3\n"));
    }

    #[test]
    fn how_much_of_a_log_is_missing_is_said_whatever_cuts_it() {
        let line = |at| Logged { at, what: What::Mark("x".into()) };
        let log = Answer::Log { requests: (0..100).map(line).collect(), missing: 5 };
        for room in 29..3000 {
            let said = log.said(room).unwrap();
            assert!(said.len() <= room);
            let missing: usize =
                said.lines().next().and_then(|line| line.strip_prefix("missing ")).unwrap().parse().unwrap();
            assert_eq!(missing + said.lines().count() - 1, 105);
            assert!(said.lines().count() == 1 || said.ends_with("0.000099 mark x\n"));
        }
        assert_eq!(log.said(3000).unwrap().lines().count(), 101);
    }

    #[test]
    fn lines_read_back() {
        let orders = [
            Order::Arm("error write".to_owned()),
            Order::Heal(None),
            Order::Capacity(Some(5)),
            Order::Cut(Some(7)),
            Order::Freeze,
            Order::Snapshot(1),
            Order::GoBack(1),
            Order::Still,
            Order::Begin,
            Order::Forget,
            Order::Rot { at: "0".to_owned(), seed: Some(1) },
            Order::Renew,
            Order::Hold,
            Order::LetGo,
            Order::TakeOut,
        ];
        for order in orders {
            let line = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order, "{line}");
        }
        let logged = Logged {
            at: 1_500_000,
            what: What::Request {
                operation: Operation::Write,
                offset: 512,
                length: 4096,
                fua: true,
                fault: Some(2),
                failed: true,
            },
        };
        let answer = Answer::Log {
            requests: vec![
                logged.clone(),
                Logged { at: 2, what: What::Mark("x".into()) },
                Logged { at: 3, what: What::Power(true) },
            ],
            missing: 3,
        };
        let line = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer, "{line}");
        assert_eq!(logged.to_string(), "1.500000 write 512 4096 fua fault=2 failed");
    }

    #[test]
    fn as_many_requests_as_may_be_told_fit_into_a_line() {
        let what = What::Request {
            operation: Operation::Discard,
            offset: u64::MAX,
            length: u32::MAX,
            fua: true,
            fault: Some(u32::MAX),
            failed: false,
        };
        let longest = Logged { at: u64::MAX, what: What::Mark("\"".repeat(MAX_MARK)) };
        let mut requests = vec![Logged { at: u64::MAX, what }; MAX_TOLD / 2];
        requests.resize(MAX_TOLD, longest);
        let line = serde_json::to_string(&Answer::Log { requests, missing: u64::MAX }).unwrap();
        assert!(line.len() < MAX_LINE, "{}", line.len());
    }
}
