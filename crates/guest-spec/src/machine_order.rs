//! What a test may have happen to its machine as a whole, as it is asked for: `reboot MARK`, `power-cut MARK seed=7`, `nmi`, `link down`.

use std::fmt;

use crate::fault;

/// Longest mark, in bytes.
const MAX_MARK: usize = 128;

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
}

/// A restart in the middle of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// How the machine goes down.
    pub how: Down,
    /// What the command is told when it is started again; may be empty.
    pub mark: String,
}

/// How a machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Down {
    fn word(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::PowerButton => "power-button",
            Self::PowerCut(_) => "power-cut",
            Self::Itself => "reboot-prepare",
        }
    }
}

impl fmt::Display for Restart {
    /// As it is asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.how.word())?;
        if !self.mark.is_empty() {
            write!(f, " {}", self.mark)?;
        }
        match self.how {
            Down::PowerCut(Some(seed)) => write!(f, " seed={seed}"),
            Down::PowerCut(None) => f.write_str(" strict"),
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
            "power-cut" => return power_cut(&rest),
            "nmi" if rest.is_empty() => return Ok(Self::Nmi),
            "link" => {
                return match rest[..] {
                    ["up"] => Ok(Self::Link(true)),
                    ["down"] => Ok(Self::Link(false)),
                    _ => Err("a link is up or down: write link up, or link down".to_owned()),
                };
            }
            _ => {
                return Err(format!(
                    "{word:?} is nothing that a machine is told; there are reboot, reboot-prepare, reset, power-button, power-cut, nmi and link"
                ));
            }
        };
        let [mark] = match rest[..] {
            [] => [""],
            [mark] => [mark],
            _ => return Err(format!("{word} takes one word, the mark with which the test is started again")),
        };
        let restart = Restart { how, mark: checked(mark)? };
        Ok(if how == Down::Itself { Self::Prepare(restart) } else { Self::Restart(restart) })
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
    }

    #[test]
    fn what_is_none_says_what_there_is() {
        for (text, says) in [
            ("", "there are reboot"),
            ("explode", "there are reboot"),
            ("nmi now", "there are reboot"),
            ("link", "up or down"),
            ("reboot a b", "takes one word"),
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
