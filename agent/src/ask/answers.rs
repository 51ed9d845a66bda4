//! Answers to questions, each in a file under the name that the line gave: its first line is `ok` or `error`, and the rest is what there is to say.
//!
//! The files are in a directory beside the pipe, which only root writes to, and appear as a whole. The last [`MAX_ANSWERS`] stay.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

use belljar_proto::ask::{MAX_ANSWER_NAME, is_answer_name};
use belljar_proto::message::Outcome;
use rustix::fs::Mode;

/// Most answers that are kept.
const MAX_ANSWERS: usize = 256;
/// Most that are awaited.
const MAX_WAITING: usize = 4096;

/// Who waits for an answer, and which answers there are.
#[derive(Debug, Default)]
pub(super) struct Answers {
    waiting: HashMap<u32, String>,
    written: VecDeque<PathBuf>,
}

/// Where the answers are of who writes to the pipe at `pipe`.
pub(super) fn directory(pipe: &Path) -> PathBuf {
    pipe.with_file_name("answers")
}

/// What shows that a question has been taken, whose answer may take long.
pub(super) fn taken(pipe: &Path, name: &str) -> PathBuf {
    // No answer has such a name.
    directory(pipe).join(format!(".taken-{name}"))
}

/// Shows that this question has been taken.
pub(super) fn take(pipe: Option<&Path>, name: &str) {
    if let Some(pipe) = pipe
        && super::make_directory(&directory(pipe)).is_ok()
    {
        let _ = std::fs::write(taken(pipe, name), "");
    }
}

/// The name under which the answer to a line is wanted, and the line itself.
pub(super) fn name_and_line(line: &[u8]) -> (Result<Option<String>, String>, &[u8]) {
    let Some(rest) = line.strip_prefix(b">") else { return (Ok(None), line) };
    let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
    let (name, line) = rest.split_at(end);
    let name = std::str::from_utf8(name).ok().filter(|name| is_answer_name(name.as_bytes()));
    let name = name.map(|name| Some(name.to_owned()));
    (
        name.ok_or_else(|| {
            format!("the name of an answer has 1 to {MAX_ANSWER_NAME} letters, digits and \".\", \"_\", \"-\"")
        }),
        line,
    )
}

impl Answers {
    /// Somebody waits for the answer to this question.
    pub(super) fn expect(&mut self, number: u32, name: String) {
        // Whoever asks so much and does not wait has no answer.
        if self.waiting.len() < MAX_WAITING {
            self.waiting.insert(number, name);
        }
    }

    /// Under which name the answer to a question is awaited, if it is.
    pub(super) fn take(&mut self, number: u32) -> Option<String> {
        self.waiting.remove(&number)
    }

    /// Writes an answer. Where that cannot be done, nobody gets one, and who waits for it has a limit.
    pub(super) fn put(&mut self, pipe: Option<&Path>, name: &str, answer: &Outcome) {
        let Some(directory) = pipe.map(directory) else { return };
        if super::make_directory(&directory).is_err() {
            return;
        }
        let (path, new) = (directory.join(name), directory.join(".new"));
        let _ = std::fs::remove_file(&new);
        let written = std::fs::write(&new, answer.to_answer());
        // For any user, whatever the file mode creation mask is.
        let _ = rustix::fs::chmod(&new, Mode::from_raw_mode(0o644));
        if written.and_then(|()| std::fs::rename(&new, &path)).is_err() {
            return;
        }
        if let Some(pipe) = pipe {
            let _ = std::fs::remove_file(taken(pipe, name));
        }
        self.written.push_back(path);
        if self.written.len() > MAX_ANSWERS
            && let Some(oldest) = self.written.pop_front()
            && !self.written.contains(&oldest)
        {
            let _ = std::fs::remove_file(oldest);
        }
    }
}

/// Removes the answers of an earlier session.
pub(super) fn clear(pipe: Option<&Path>) {
    if let Some(directory) = pipe.map(directory) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_say_where_its_answer_goes() {
        let named = |line: &'static str| {
            let (name, line) = name_and_line(line.as_bytes());
            (name.map_err(|_| ()), std::str::from_utf8(line).unwrap())
        };
        assert_eq!(named("mark x"), (Ok(None), "mark x"));
        assert_eq!(named(">a.1-_ disk d counts"), (Ok(Some("a.1-_".into())), " disk d counts"));
        for wrong in [">", "> mark x", ">../a mark x", ">.new mark x", ">a/b mark x", ">\u{e4} mark x"] {
            assert!(named(wrong).0.is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_files_and_the_last_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("control");
        let mut answers = Answers::default();
        answers.expect(3, "one".into());
        assert_eq!((answers.take(2), answers.take(3), answers.take(3)), (None, Some("one".into()), None));
        answers.put(Some(&pipe), "one", &Outcome::Done("a 1\nb 2".into()));
        answers.put(Some(&pipe), "two", &Outcome::Refused("no".into()));
        let read = |name: &str| std::fs::read_to_string(directory(&pipe).join(name));
        assert_eq!(read("one").unwrap(), "ok\na 1\nb 2\n");
        assert_eq!(read("two").unwrap(), "error\nno\n");
        for number in 0..MAX_ANSWERS {
            answers.put(Some(&pipe), &format!("n{number}"), &Outcome::Done(String::new()));
        }
        assert!(read("one").is_err());
        assert_eq!(read("n0").unwrap(), "ok\n");
        clear(Some(&pipe));
        assert!(read("n0").is_err());
    }
}
