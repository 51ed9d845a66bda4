//! What a test may have happen to its machine as a whole, as it is asked for: `reboot MARK`, `power-cut MARK seed=7`, `nmi`, `link down`,
//! `unplug disk data0`.

use std::{fmt, time::Duration};

use crate::{MAX_PATHS, fault, values};

/// Longest name of a picture, or a snapshot, in bytes.
const MAX_NAME: usize = 64;
/// Longest mark, in bytes.
const MAX_MARK: usize = 128;
/// The longest time after which a guest is woken: its sleep has a limit.
const MAX_SLEEP: Duration = Duration::from_secs(300);
/// The farthest that a clock jumps: a hundred years.
const MAX_STEP: Duration = Duration::from_secs(100 * 365 * 86400);
/// What memory is plugged in by, in bytes: a memory block of Linux on x86_64 (the kernel's `admin-guide/mm/memory-hotplug.rst`).
const MEMORY_BLOCK: u64 = 128 << 20;

/// Something that happens to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineOrder {
    /// It goes down and comes up again, and the command is started again.
    Restart(Restart),
    /// The next time that it goes down by itself is such a restart.
    Prepare(Restart),
    /// Its processors get a non-maskable interrupt.
    Nmi,
    /// The cable of its network card is plugged in, or out.
    Link(bool),
    /// A device goes out of it.
    Unplug {
        /// Which.
        device: Device,
        /// The guest has no notice of it.
        surprise: bool,
    },
    /// A device comes into it, or back.
    Plug(Device),
    /// It is woken so long after it has suspended itself.
    Wakeup(Duration),
    /// The guest's clock jumps by so many nanoseconds.
    Clock(i64),
    /// The guest's clock goes faster than it should by so many millionths, or slower; 0 is as it should.
    ClockRate(i32),
    /// Memory is taken from the guest, which keeps so many bytes, or given back: as many as it has from the boot on.
    Balloon(Option<u64>),
    /// A picture of its screen is kept under this name.
    Screenshot(String),
}

/// What can go out of a machine that runs, and come into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The disk with this serial number, or one of its paths, counted from 0.
    Disk {
        /// Its serial number.
        name: String,
        /// The path; none is all of them.
        path: Option<u32>,
    },
    /// The network card.
    Nic,
    /// A processor: the next one, or that which came last.
    Cpu,
    /// A memory module of so many bytes, or, where it is unplugged, that which came last.
    Memory(Option<u64>),
}

/// As it is asked for.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk { name, path: None } => write!(f, "disk {name}"),
            Self::Disk { name, path: Some(path) } => write!(f, "disk {name} path={path}"),
            Self::Nic => f.write_str("nic"),
            Self::Cpu => f.write_str("cpu"),
            Self::Memory(_) => f.write_str("memory"),
        }
    }
}

/// A restart in the middle of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// How the machine goes down.
    pub how: Down,
    /// What the command is told when it is started again; may be empty.
    pub mark: String,
}

/// How a machine goes down, or what is done in place of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// Through the guest's own service manager.
    Reboot,
    /// By the reset button: the guest has no notice of it, and its disks keep what they have.
    Reset,
    /// By the power button, upon which the guest shuts itself down.
    PowerButton,
    /// The power is cut, and what was not flushed to lab disks is lost; a seed chooses what survives all the same.
    PowerCut(Option<u64>),
    /// By what the test does.
    Itself,
    /// Another kernel is started in its place (kexec), without the machine's firmware.
    Kexec {
        /// It is the one that the test has loaded itself.
        loaded: bool,
    },
    /// The system's programs all end and begin again, and its kernel goes on (systemd-soft-reboot.service(8)).
    SoftReboot,
    /// It goes on, and what it is now is kept under this name: its memory, its devices and its disks.
    Snapshot(String),
    /// It is what it was when the snapshot of this name was taken.
    Return(String),
}

impl Down {
    fn word(&self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::PowerButton => "power-button",
            Self::PowerCut(_) => "power-cut",
            Self::Itself => "reboot-prepare",
            Self::Kexec { .. } => "kexec",
            Self::SoftReboot => "soft-reboot",
            Self::Snapshot(_) => "snapshot",
            Self::Return(_) => "return",
        }
    }

    /// Whether the machine itself goes on, so that what it is made of stays as it is.
    #[must_use]
    pub fn keeps_machine(&self) -> bool {
        matches!(self, Self::Kexec { .. } | Self::SoftReboot | Self::Snapshot(_))
    }
}

impl fmt::Display for Restart {
    /// As it is asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.how.word())?;
        if let Down::Snapshot(name) | Down::Return(name) = &self.how {
            write!(f, " {name}")?;
        }
        if !self.mark.is_empty() {
            write!(f, " {}", self.mark)?;
        }
        match self.how {
            Down::PowerCut(Some(seed)) => write!(f, " seed={seed}"),
            Down::PowerCut(None) => f.write_str(" strict"),
            Down::Kexec { loaded: true } => f.write_str(" loaded"),
            _ => Ok(()),
        }
    }
}

impl MachineOrder {
    /// Reads an order.
    ///
    /// # Errors
    /// Says what there is instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let word = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let how = match word {
            "reboot" => Down::Reboot,
            "reset" => Down::Reset,
            "power-button" => Down::PowerButton,
            "reboot-prepare" => Down::Itself,
            "soft-reboot" => Down::SoftReboot,
            "kexec" => return kexec(&rest),
            "snapshot" | "return" => return snapshot(word, &rest),
            "power-cut" => return power_cut(&rest),
            "nmi" if rest.is_empty() => return Ok(Self::Nmi),
            "link" => {
                return match rest[..] {
                    ["up"] => Ok(Self::Link(true)),
                    ["down"] => Ok(Self::Link(false)),
                    _ => Err("a link is up or down: write link up, or link down".to_owned()),
                };
            }
            "plug" | "unplug" => return hotplug(word, &rest),
            "wakeup" => return wakeup(&rest),
            "clock" => return clock(&rest),
            "balloon" => return balloon(&rest),
            "screenshot" => return screenshot(&rest),
            _ => {
                return Err(format!(
                    "{word:?} is nothing that a machine is told; there are reboot, reboot-prepare, soft-reboot, kexec, reset, power-button, power-cut, snapshot, return, nmi, link, plug, unplug, wakeup, clock, balloon and screenshot"
                ));
            }
        };
        let [mark] = match rest[..] {
            [] => [""],
            [mark] => [mark],
            _ => return Err(format!("{word} takes one word, the mark with which the test is started again")),
        };
        let mark = checked(mark)?;
        Ok(match how {
            Down::Itself => Self::Prepare(Restart { how, mark }),
            how => Self::Restart(Restart { how, mark }),
        })
    }
}

fn power_cut(words: &[&str]) -> Result<MachineOrder, String> {
    let is_survival = |word: &&&str| **word == "strict" || word.starts_with("seed=");
    let seed = words.iter().find(is_survival).copied().unwrap_or("strict");
    let marks: Vec<&str> = words.iter().filter(|word| !is_survival(word)).copied().collect();
    if marks.len() > 1 || words.len() > marks.len() + 1 {
        return Err("power-cut takes a mark with which the test is started again, and strict or seed=NUMBER".to_owned());
    }
    let mark = checked(marks.first().copied().unwrap_or_default())?;
    Ok(MachineOrder::Restart(Restart { how: Down::PowerCut(fault::survival(seed)?), mark }))
}

fn kexec(words: &[&str]) -> Result<MachineOrder, String> {
    let (loaded, marks) = match words {
        [marks @ .., "loaded"] => (true, marks),
        marks => (false, marks),
    };
    let [mark] = match marks {
        [] => [""],
        [mark] => [*mark],
        _ => {
            return Err("kexec takes a mark with which the test is started again, and loaded; which kernel it is to be is told to belljar-ctl in \
                        the guest"
                .to_owned());
        }
    };
    Ok(MachineOrder::Restart(Restart { how: Down::Kexec { loaded }, mark: checked(mark)? }))
}

fn snapshot(word: &str, words: &[&str]) -> Result<MachineOrder, String> {
    let wrong = || {
        if word == "snapshot" {
            "snapshot takes a name, and the mark with which the test is started again, such as snapshot ready begin"
                .to_owned()
        } else {
            "return takes the name of a snapshot, and the mark with which the test is started again there, such as return ready second".to_owned()
        }
    };
    // Who goes back without another mark would do the same again and again.
    let [name, mark] = words else { return Err(wrong()) };
    let name = checked_name(word, name)?;
    let how = if word == "snapshot" { Down::Snapshot(name) } else { Down::Return(name) };
    Ok(MachineOrder::Restart(Restart { how, mark: checked(mark)? }))
}

fn hotplug(word: &str, rest: &[&str]) -> Result<MachineOrder, String> {
    let is_out = word == "unplug";
    let Some((kind, words)) = rest.split_first() else {
        return Err(format!("{word} wants a device: disk NAME, nic, cpu or memory"));
    };
    let surprise = is_out && words.last() == Some(&"surprise");
    let words = if surprise { &words[..words.len() - 1] } else { words };
    let device = match (*kind, words) {
        ("disk", [name]) => Device::Disk { name: (*name).to_owned(), path: None },
        ("disk", [name, path]) => {
            let path = path.strip_prefix("path=").and_then(|path| path.parse().ok()).filter(|path| *path < MAX_PATHS);
            let path = path.ok_or_else(|| format!("a disk's paths are path=0 to path={}", MAX_PATHS - 1))?;
            Device::Disk { name: (*name).to_owned(), path: Some(path) }
        }
        ("nic", []) => Device::Nic,
        ("cpu", []) => Device::Cpu,
        ("memory", []) if is_out => Device::Memory(None),
        ("memory", [size]) if !is_out => {
            let bytes = values::size(size).map_err(|what| format!("{size:?} is {what}"))?;
            if !bytes.is_multiple_of(MEMORY_BLOCK) {
                return Err(format!("memory is plugged in by modules of a multiple of 128 MiB, and {size} is none"));
            }
            Device::Memory(Some(bytes))
        }
        ("disk", _) => {
            return Err(format!(
                "write {word} disk NAME, with the disk's serial number, and path=N for one of its paths"
            ));
        }
        ("memory", _) => return Err("write plug memory SIZE, such as 256M, and unplug memory".to_owned()),
        ("nic" | "cpu", _) => return Err(format!("{word} {kind} takes no more words")),
        _ => return Err(format!("{kind:?} cannot be plugged; there are disk NAME, nic, cpu and memory")),
    };
    if surprise && !matches!(device, Device::Disk { .. } | Device::Nic) {
        return Err("only disks and cards go by surprise".to_owned());
    }
    Ok(if is_out { MachineOrder::Unplug { device, surprise } } else { MachineOrder::Plug(device) })
}

fn wakeup(words: &[&str]) -> Result<MachineOrder, String> {
    let [after] = words else { return Err("wakeup wants a time, such as wakeup 5s".to_owned()) };
    let after = humantime::parse_duration(after).map_err(|error| format!("{after:?} is no duration: {error}"))?;
    if after > MAX_SLEEP {
        return Err(format!("a guest is woken after {} at most", humantime::format_duration(MAX_SLEEP)));
    }
    Ok(MachineOrder::Wakeup(after))
}

fn clock(words: &[&str]) -> Result<MachineOrder, String> {
    let wrong = || {
        "clock wants how far it jumps, such as clock +1h, or clock -90s, or how fast it goes: clock rate=1.05"
            .to_owned()
    };
    let [step] = words else { return Err(wrong()) };
    if let Some(rate) = step.strip_prefix("rate=") {
        return clock_rate(rate);
    }
    let (forward, step) = match (step.strip_prefix('+'), step.strip_prefix('-')) {
        (Some(step), _) => (true, step),
        (_, Some(step)) => (false, step),
        _ => return Err(wrong()),
    };
    let step = humantime::parse_duration(step).map_err(|error| format!("{step:?} is no duration: {error}"))?;
    if step > MAX_STEP {
        return Err("a clock jumps by a hundred years at most".to_owned());
    }
    let nanoseconds = i64::try_from(step.as_nanos()).map_err(|_| wrong())?;
    Ok(MachineOrder::Clock(if forward { nanoseconds } else { -nanoseconds }))
}

fn clock_rate(rate: &str) -> Result<MachineOrder, String> {
    let is_number = !rate.is_empty() && rate.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = if is_number { rate.parse::<f64>().ok() } else { None };
    let Some(number) = number.filter(|number| (0.9..=1.1).contains(number)) else {
        return Err(format!("{rate:?} is no rate of a clock; Linux takes 0.9 to 1.1, where 1 is as it should go"));
    };
    #[expect(clippy::cast_possible_truncation, reason = "at most 100000")]
    let millionths = ((number - 1.0) * 1e6).round() as i32;
    Ok(MachineOrder::ClockRate(millionths))
}

fn balloon(words: &[&str]) -> Result<MachineOrder, String> {
    match words {
        ["full"] => Ok(MachineOrder::Balloon(None)),
        [size] => {
            let bytes = values::size(size).map_err(|what| format!("{size:?} is {what}"))?;
            Ok(MachineOrder::Balloon(Some(bytes)))
        }
        _ => Err("balloon wants what the guest is to keep, such as balloon 256M, or full for all".to_owned()),
    }
}

fn screenshot(words: &[&str]) -> Result<MachineOrder, String> {
    checked_name("screenshot", words.join(" ").as_str()).map(MachineOrder::Screenshot)
}

/// A name of something that is kept.
fn checked_name(word: &str, name: &str) -> Result<String, String> {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if begins && name.len() <= MAX_NAME && name.bytes().all(known) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{word} wants a name of letters, digits, '.', '_' and '-', which begins with a letter or a digit, of {MAX_NAME} at most"
    ))
}

/// A mark as it may stand in a command's environment.
fn checked(mark: &str) -> Result<String, String> {
    if mark.len() > MAX_MARK || mark.chars().any(char::is_control) {
        return Err(format!("a mark has {MAX_MARK} bytes at most, and no control characters"));
    }
    Ok(mark.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_told() {
        let restart = |how, mark: &str| MachineOrder::Restart(Restart { how, mark: mark.to_owned() });
        for (text, order, told) in [
            ("reboot", restart(Down::Reboot, ""), "reboot"),
            ("reboot  after-upgrade ", restart(Down::Reboot, "after-upgrade"), "reboot after-upgrade"),
            ("reset 1", restart(Down::Reset, "1"), "reset 1"),
            ("power-button x", restart(Down::PowerButton, "x"), "power-button x"),
            ("power-cut", restart(Down::PowerCut(None), ""), "power-cut strict"),
            ("power-cut a strict", restart(Down::PowerCut(None), "a"), "power-cut a strict"),
            ("power-cut seed=7 a", restart(Down::PowerCut(Some(7)), "a"), "power-cut a seed=7"),
            ("soft-reboot a", restart(Down::SoftReboot, "a"), "soft-reboot a"),
            ("kexec", restart(Down::Kexec { loaded: false }, ""), "kexec"),
            ("kexec a loaded", restart(Down::Kexec { loaded: true }, "a"), "kexec a loaded"),
            ("snapshot s.1 a", restart(Down::Snapshot("s.1".to_owned()), "a"), "snapshot s.1 a"),
            ("return s.1  b", restart(Down::Return("s.1".to_owned()), "b"), "return s.1 b"),
        ] {
            let read = MachineOrder::parse(text).unwrap();
            assert_eq!(read, order, "{text}");
            let MachineOrder::Restart(restart) = read else { panic!() };
            assert_eq!(restart.to_string(), told);
        }
        let prepared = Restart { how: Down::Itself, mark: "m".to_owned() };
        assert_eq!(MachineOrder::parse("reboot-prepare m"), Ok(MachineOrder::Prepare(prepared)));
        assert_eq!(MachineOrder::parse("nmi"), Ok(MachineOrder::Nmi));
        assert_eq!(MachineOrder::parse("link down"), Ok(MachineOrder::Link(false)));
        assert_eq!(MachineOrder::parse("balloon 256M"), Ok(MachineOrder::Balloon(Some(256 << 20))));
        assert_eq!(MachineOrder::parse("balloon full"), Ok(MachineOrder::Balloon(None)));
        assert_eq!(MachineOrder::parse("screenshot a-1.b"), Ok(MachineOrder::Screenshot("a-1.b".to_owned())));
    }

    #[test]
    fn devices_clocks_and_sleep() {
        let disk = |name: &str, path| Device::Disk { name: name.to_owned(), path };
        for (text, order) in [
            ("unplug disk data0", MachineOrder::Unplug { device: disk("data0", None), surprise: false }),
            (
                "unplug disk data0 path=1 surprise",
                MachineOrder::Unplug { device: disk("data0", Some(1)), surprise: true },
            ),
            // That is its serial number.
            ("plug disk surprise", MachineOrder::Plug(disk("surprise", None))),
            ("unplug nic surprise", MachineOrder::Unplug { device: Device::Nic, surprise: true }),
            ("plug cpu", MachineOrder::Plug(Device::Cpu)),
            ("plug memory 256M", MachineOrder::Plug(Device::Memory(Some(256 << 20)))),
            ("unplug memory", MachineOrder::Unplug { device: Device::Memory(None), surprise: false }),
            ("wakeup 5s", MachineOrder::Wakeup(Duration::from_secs(5))),
            ("clock +1h", MachineOrder::Clock(3_600_000_000_000)),
            ("clock -90s", MachineOrder::Clock(-90_000_000_000)),
            ("clock rate=1.05", MachineOrder::ClockRate(50_000)),
            ("clock rate=0.9", MachineOrder::ClockRate(-100_000)),
            ("clock rate=1", MachineOrder::ClockRate(0)),
        ] {
            assert_eq!(MachineOrder::parse(text), Ok(order), "{text}");
        }
        for (text, says) in [
            ("plug", "disk NAME, nic, cpu or memory"),
            ("plug disk", "write plug disk NAME"),
            ("unplug disk surprise", "write unplug disk NAME"),
            ("plug disk a path=8", "path=0 to path=7"),
            ("plug nic 2", "no more words"),
            ("plug toaster", "cannot be plugged"),
            ("plug memory", "plug memory SIZE"),
            ("plug memory 100M", "multiple of 128 MiB"),
            ("unplug memory 128M", "unplug memory"),
            ("unplug cpu surprise", "only disks and cards"),
            ("wakeup", "wakeup 5s"),
            ("wakeup 6m", "at most"),
            ("clock 1h", "clock +1h"),
            ("clock +200years", "hundred years"),
            ("clock +x", "no duration"),
            ("clock rate=2", "0.9 to 1.1"),
            ("clock rate=nan", "0.9 to 1.1"),
            ("clock rate=", "0.9 to 1.1"),
        ] {
            let error = MachineOrder::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_none_says_what_there_is() {
        for (text, says) in [
            ("", "there are reboot"),
            ("explode", "there are reboot"),
            ("nmi now", "there are reboot"),
            ("balloon", "such as balloon 256M"),
            ("balloon much", "not a size"),
            ("screenshot", "wants a name"),
            ("screenshot ../x", "wants a name"),
            ("screenshot .x", "wants a name"),
            ("screenshot a b", "wants a name"),
            ("link", "up or down"),
            ("snapshot", "snapshot takes a name"),
            ("snapshot a", "and the mark"),
            ("snapshot ../a b", "snapshot wants a name"),
            ("return a", "and the mark"),
            ("return a b c", "return takes"),
            ("reboot a b", "takes one word"),
            ("kexec a b", "takes a mark"),
            ("kexec kernel=/x a", "belljar-ctl in the guest"),
            ("power-cut a b", "takes a mark"),
            ("power-cut strict seed=1", "takes a mark"),
            ("power-cut seed=x", "seed=NUMBER"),
            ("reboot a\u{7}b", "no control characters"),
            (&format!("reset {}", "x".repeat(200)), "128 bytes"),
        ] {
            let error = MachineOrder::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
