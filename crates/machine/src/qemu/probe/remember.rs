//! Answers kept for the next run: small JSON files, found by a hash of the question and believed only if they repeat it and are as
//! they were written.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io::Read,
    path::{Path, PathBuf},
};

use belljar_image::cache::Cache;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// No answer is longer.
const MAX: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    question: String,
    answer: T,
}

/// Before the JSON, on a line of its own.
fn checksum(json: &[u8]) -> String {
    format!("{}\n", blake3::hash(json).to_hex())
}

/// A directory of answers.
pub(crate) struct Memory {
    cache: Cache,
}

impl Memory {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { cache: Cache::new(dir, dir) }
    }

    /// The answer to this very question; what cannot be read is not known.
    pub(crate) fn recall<T: DeserializeOwned>(&self, kind: &str, question: &str) -> Option<T> {
        let mut text = String::new();
        belljar_image::open_without_waiting(&self.path(kind, question))
            .ok()?
            .take(MAX)
            .read_to_string(&mut text)
            .ok()?;
        let json = &text[text.find('\n')? + 1..];
        if !text.starts_with(&checksum(json.as_bytes())) {
            return None;
        }
        let kept: Kept<T> = serde_json::from_str(json).ok()?;
        (kept.question == question).then_some(kept.answer)
    }

    /// Keeps an answer. Failing to costs time later and nothing else.
    pub(crate) fn keep<T: Serialize>(&self, kind: &str, question: &str, answer: &T) {
        let kept = Kept { question: question.to_owned(), answer };
        let Ok(json) = serde_json::to_vec(&kept) else { return };
        let text = [checksum(&json).as_bytes(), &json].concat();
        drop(self.cache.replace(&name(kind, question), &text));
    }

    /// Forgets the answer.
    pub(crate) fn forget(&self, kind: &str, question: &str) {
        drop(std::fs::remove_file(self.path(kind, question)));
    }

    fn path(&self, kind: &str, question: &str) -> PathBuf {
        self.cache.path(&name(kind, question))
    }
}

fn name(kind: &str, question: &str) -> String {
    let mut hasher = DefaultHasher::new();
    // Another number for another format: an older Belljar may use the same cache.
    (2, question).hash(&mut hasher);
    format!("{kind}-{:016x}.json", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_question_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(dir.path());
        assert_eq!(memory.recall::<u32>("n", "q"), None);
        memory.keep("n", "q", &7);
        assert_eq!(memory.recall("n", "q"), Some(7));
        memory.keep("n", "q", &8);
        assert_eq!(memory.recall("n", "q"), Some(8));
        assert_eq!(memory.recall::<u32>("n", "p"), None);
        assert_eq!(memory.recall::<u32>("m", "q"), None);
        let kept = std::fs::read_to_string(memory.path("n", "q")).unwrap();
        for damaged in ["{}", "", &kept[1..], &kept[..kept.len() - 1], &kept.replace(":8", ":9")] {
            std::fs::write(memory.path("n", "q"), damaged).unwrap();
            assert_eq!(memory.recall::<u32>("n", "q"), None, "{damaged}");
        }
        // Nobody writes to it.
        std::fs::remove_file(memory.path("n", "q")).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, memory.path("n", "q"), fifo, mode, 0).unwrap();
        assert_eq!(memory.recall::<u32>("n", "q"), None);
        memory.keep("n", "q", &9);
        assert_eq!(memory.recall("n", "q"), Some(9));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
