//! QEMU's `key=value,key=value` syntax, in which a comma in a value is written twice.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option value under construction, such as `virtio-blk-pci,drive=disk0`.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyVal(Vec<u8>);

impl KeyVal {
    /// Starts with a first word that has no key, such as a device's name.
    pub(super) fn new(first: impl AsRef<OsStr>) -> Self {
        Self(Vec::new()).word(first)
    }

    /// Starts with nothing.
    pub(super) fn empty() -> Self {
        Self(Vec::new())
    }

    /// Adds a word without a key.
    fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        escape(word.as_ref(), &mut self.0);
        self
    }

    /// Adds `key=value`.
    #[must_use]
    pub(super) fn set(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        escape(value.as_ref(), &mut self.0);
        self
    }

    /// Adds `key=value` if there is a value.
    #[must_use]
    pub(super) fn set_some(self, key: &str, value: Option<impl AsRef<OsStr>>) -> Self {
        match value {
            Some(value) => self.set(key, value),
            None => self,
        }
    }

    /// The finished argument.
    pub(super) fn finish(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

fn escape(value: &OsStr, out: &mut Vec<u8>) {
    for &byte in value.as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(b',');
        }
    }
}
