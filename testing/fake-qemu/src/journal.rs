//! What the pretended QEMU saw, for the test to read: one JSON object a line, in the file named by `FAKE_QEMU_LOG`.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::Mutex,
};

use serde_json::{Value, json};

/// Where it is written, if anywhere.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Option<File>>);

impl Journal {
    /// Appends to this file.
    pub(crate) fn open(path: Option<&Path>) -> Self {
        let file = path.and_then(|p| OpenOptions::new().create(true).append(true).open(p).ok());
        Self(Mutex::new(file))
    }

    /// Notes something of a kind.
    pub(crate) fn note(&self, kind: &str, value: impl Into<Value>) {
        let line = json!({ "pid": std::process::id(), "kind": kind, "value": value.into() });
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = file.as_mut() {
            // A test that loses its journal fails on its own.
            let _lost = file.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Notes bytes of a channel.
    pub(crate) fn bytes(&self, kind: &str, bytes: &[u8]) {
        self.note(kind, String::from_utf8_lossy(bytes).into_owned());
    }
}
