//! What somebody in a guest asks the host for, as lines of text, and what comes of it, as files of text: the same with the agent and without.

use serde::{Deserialize, Serialize};

/// What somebody in the guest asks the host for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// A line in the event log that says how far a test has come.
    Mark(String),
    /// What is to happen to one of the guest's disks, in the words of the manual.
    Disk(String),
    /// What is to happen to the machine, in the words of the manual; the first is one of [`MACHINE_WORDS`].
    Machine(String),
}

/// With what a line begins by which something is to happen to the machine.
pub const MACHINE_WORDS: &[&str] = &[
    "reboot",
    "reboot-prepare",
    "soft-reboot",
    "kexec",
    "reset",
    "power-button",
    "power-cut",
    "snapshot",
    "return",
    "nmi",
    "link",
    "plug",
    "unplug",
    "wakeup",
    "clock",
    "balloon",
    "screenshot",
];

/// What came of a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done; what there is to say, at most [`MAX_SAID`] bytes of it.
    Done(String),
    /// It was not, for this reason.
    Refused(String),
    /// It was not, and nothing of the kind need be asked again in this session.
    Full,
    /// The machine goes down: what runs is ended, and nobody hears any more of it.
    GoesDown,
}

/// Most bytes of what is said to a question.
pub const MAX_SAID: usize = 32 << 10;

/// Most bytes of a line by which somebody in the guest asks for something.
pub const MAX_QUESTION: usize = 1024;

/// Longest name of an answer, in bytes.
pub const MAX_ANSWER_NAME: usize = 64;

/// Whether an answer may have this name: 1 to [`MAX_ANSWER_NAME`] letters, digits, `.`, `_` and `-`, of which the first is no `.`.
#[must_use]
pub fn is_answer_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= MAX_ANSWER_NAME
        && name[0] != b'.'
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

impl Question {
    /// What a line asks for: `mark TEXT`, `disk NAME ORDER`, or an order to the machine.
    ///
    /// # Errors
    /// Why it asks for nothing, for a person.
    pub fn parse(line: &str) -> Result<Self, String> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim_start();
        match word {
            "mark" if !rest.is_empty() => Ok(Self::Mark(rest.to_owned())),
            "disk" if !rest.is_empty() => Ok(Self::Disk(rest.to_owned())),
            _ if MACHINE_WORDS.contains(&word) => Ok(Self::Machine(line.to_owned())),
            _ => Err("it takes lines such as \"mark TEXT\", \"disk NAME ORDER\" and \"reboot MARK\"".to_owned()),
        }
    }
}

impl Outcome {
    /// The text of the file in which an answer is: its first line is `ok` or `error`, and what there is to say comes after that.
    #[must_use]
    pub fn to_answer(&self) -> String {
        let (word, said) = match self {
            Self::Done(said) => ("ok", said.as_str()),
            Self::Refused(why) => ("error", why.as_str()),
            Self::Full => ("error", "no more of it is taken in this session"),
            Self::GoesDown => ("ok", "the machine goes down"),
        };
        let end = if said.is_empty() || said.ends_with('\n') { "" } else { "\n" };
        format!("{word}\n{said}{end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_asks_for_something_or_is_told_why_not() {
        assert_eq!(Question::parse(" mark a  b "), Ok(Question::Mark("a  b".into())));
        assert_eq!(Question::parse("disk d0 error"), Ok(Question::Disk("d0 error".into())));
        assert_eq!(Question::parse("link down"), Ok(Question::Machine("link down".into())));
        for wrong in ["", "mark", "disk ", "explode", "rebooted"] {
            assert!(Question::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_a_word_and_what_there_is_to_say() {
        assert_eq!(Outcome::Done(String::new()).to_answer(), "ok\n");
        assert_eq!(Outcome::Done("a 1\nb 2".into()).to_answer(), "ok\na 1\nb 2\n");
        assert_eq!(Outcome::Refused("no\n".into()).to_answer(), "error\nno\n");
        assert!(Outcome::Full.to_answer().starts_with("error\n") && Outcome::GoesDown.to_answer().starts_with("ok\n"));
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["a", "ctl-1-2", "A.b_c", &"x".repeat(MAX_ANSWER_NAME)] {
            assert!(is_answer_name(name.as_bytes()), "{name}");
        }
        for name in ["", ".", "..", ".new", "a/b", "a b", "ä", &"x".repeat(MAX_ANSWER_NAME + 1)] {
            assert!(!is_answer_name(name.as_bytes()), "{name}");
        }
    }
}
