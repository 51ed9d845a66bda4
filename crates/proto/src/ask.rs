//! What somebody in a guest asks the host for, as lines of text, and what comes of it, as files of text: the same with the agent and without.

use crate::message::{MACHINE_WORDS, Outcome, Question};

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
