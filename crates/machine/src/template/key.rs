//! What decides how a guest that has booted looks, as one number. Two guests with the same key are the same guest.

use std::{fmt, io, path::PathBuf};

use belljar_image::cache;

/// Part of every key: change it when the making of templates or the files of one change.
const VERSION: u32 = 2;

/// Names a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateKey(String);

impl TemplateKey {
    /// The key as part of a file's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a file's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let good = text.len() == LENGTH && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned()))
    }
}

/// Characters of a key.
const LENGTH: usize = 40;

impl fmt::Display for TemplateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a guest cannot have a template.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unkeyable {
    /// A file of its source cannot be looked at.
    #[error("{} cannot be looked at: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something about it that cannot be copied, or whose changes cannot be noticed.
    #[error("{0}")]
    Impossible(String),
}

/// Collects what decides a key. Each part goes in with its name and its length, so that no two lists are taken for one another.
pub(crate) struct KeyMaker(blake3::Hasher);

impl KeyMaker {
    pub(crate) fn new() -> Self {
        let mut maker = Self(blake3::Hasher::new());
        maker.add("version", &VERSION.to_le_bytes());
        maker
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    /// Adds a file's identity, which changes with its content.
    pub(crate) fn add_file(&mut self, name: &str, path: &std::path::Path) -> Result<(), Unkeyable> {
        self.add(name, b"file");
        cache::fingerprint(path, &mut self.0).map_err(|source| Unkeyable::File { path: path.to_owned(), source })
    }

    pub(crate) fn finish(self) -> TemplateKey {
        TemplateKey(self.0.finalize().to_hex()[..LENGTH].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[(&str, &str)]) -> TemplateKey {
        let mut maker = KeyMaker::new();
        for (name, value) in parts {
            maker.add(name, value.as_bytes());
        }
        maker.finish()
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "d")]), key(&[("a", "bcd")]));
    }

    #[test]
    fn only_keys_are_read_as_keys() {
        let key = key(&[]);
        assert_eq!(TemplateKey::parse(key.as_str()), Some(key.clone()));
        for wrong in ["", "..", "x", &key.as_str()[1..], &format!("{key}0"), &key.as_str().to_uppercase()] {
            assert_eq!(TemplateKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_changed_in_place_gives_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let key = || {
            let mut maker = KeyMaker::new();
            maker.add_file("image", &path).map(|()| maker.finish())
        };
        assert!(matches!(key(), Err(Unkeyable::File { .. })));
        std::fs::write(&path, "one").unwrap();
        let first = key().unwrap();
        assert_eq!(key().unwrap(), first);
        // The same size, and the time of the last write set back.
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut changed = first.clone();
        // Times of files go in steps of some milliseconds.
        while changed == first {
            std::fs::write(&path, "two").unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            changed = key().unwrap();
        }
        assert_ne!(changed, first);
    }
}
