//! QEMU's `key=value,key=value` syntax, in which a comma in a value is written twice.

use super::slots::Slot;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option value under construction, such as `virtio-blk-pci,drive=disk0`.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyVal(Vec<u8>);

impl KeyVal {
    /// Starts with a first word that has no key, such as a device's name.
    pub(crate) fn new(first: impl AsRef<OsStr>) -> Self {
        Self(Vec::new()).word(first)
    }

    /// Starts with nothing.
    pub(crate) fn empty() -> Self {
        Self(Vec::new())
    }

    /// Adds a word without a key.
    fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        escape(word.as_ref(), &mut self.0);
        self
    }

    /// Adds `key=value`.
    #[must_use]
    pub(crate) fn set(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        escape(value.as_ref(), &mut self.0);
        self
    }

    /// The finished argument.
    pub(crate) fn finish(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

/// A device: on the command line, or plugged into a machine that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    driver: String,
    properties: Vec<(&'static str, Property)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Property {
    Text(String),
    Number(u64),
    /// A number that people write in hexadecimal digits.
    Hex(u64),
    Flag(bool),
}

impl Device {
    pub(crate) fn new(driver: &str) -> Self {
        Self { driver: driver.to_owned(), properties: Vec::new() }
    }

    #[must_use]
    pub(crate) fn text(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.properties.push((key, Property::Text(value.into())));
        self
    }

    #[must_use]
    pub(crate) fn some_text(self, key: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.text(key, value),
            None => self,
        }
    }

    #[must_use]
    pub(crate) fn number(mut self, key: &'static str, value: impl Into<u64>) -> Self {
        self.properties.push((key, Property::Number(value.into())));
        self
    }

    #[must_use]
    pub(crate) fn hex(mut self, key: &'static str, value: u64) -> Self {
        self.properties.push((key, Property::Hex(value)));
        self
    }

    #[must_use]
    pub(crate) fn flag(mut self, key: &'static str, value: bool) -> Self {
        self.properties.push((key, Property::Flag(value)));
        self
    }

    /// Where it is plugged in, unless that is left to QEMU.
    #[must_use]
    pub(crate) fn at(self, slot: Option<Slot>) -> Self {
        match slot {
            Some(slot) => self.text("bus", slot.bus()).text("addr", slot.address()),
            None => self,
        }
    }

    /// For `-device`.
    pub(crate) fn key_val(&self) -> KeyVal {
        self.properties.iter().fold(KeyVal::new(&self.driver), |all, (key, value)| match value {
            Property::Text(text) => all.set(key, text),
            Property::Number(number) => all.set(key, number.to_string()),
            Property::Hex(number) => all.set(key, format!("{number:#x}")),
            Property::Flag(on) => all.set(key, on_off(*on)),
        })
    }

    /// Arguments of QMP's `device_add`.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let mut all = serde_json::Map::new();
        all.insert("driver".to_owned(), self.driver.as_str().into());
        for (key, value) in &self.properties {
            let value = match value {
                Property::Text(text) => text.as_str().into(),
                // Text for a number, or for a flag, is refused by QEMU 9.2 and later.
                Property::Number(number) | Property::Hex(number) => (*number).into(),
                Property::Flag(on) => (*on).into(),
            };
            all.insert((*key).to_owned(), value);
        }
        all.into()
    }
}

/// How QEMU writes what is so or not.
pub(super) fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn escape(value: &OsStr, out: &mut Vec<u8>) {
    for &byte in value.as_bytes() {
        out.push(byte);
        if byte == b',' {
            out.push(b',');
        }
    }
}
