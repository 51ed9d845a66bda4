//! Devices that are neither disks nor the card, nor there in every machine.

use std::ffi::OsString;

use super::{Device, MachineConfig, disk::push, keyval::KeyVal, slots::Slot};
use crate::qemu::descriptors::{Fd, FdSet};

/// What a guest writes to a serial port.
#[derive(Clone, Debug)]
pub struct SerialLog {
    /// The port's name.
    pub name: String,
    /// Where it is kept; none is nowhere: for a command line that a person pastes.
    pub file: Option<FdSet>,
}

impl SerialLog {
    /// The name of what is behind the port.
    pub(crate) fn chardev(&self) -> String {
        format!("serial-{}", self.name)
    }

    /// The file in the guest's directory.
    pub(crate) fn file_name(&self) -> String {
        format!("serial-{}.log", self.name)
    }

    fn key_val(&self) -> KeyVal {
        match self.file {
            Some(set) => KeyVal::new("file").set("id", self.chardev()).set("path", set.path()).set("append", "on"),
            None => KeyVal::new("null").set("id", self.chardev()),
        }
    }
}

/// Memory that keeps what is in it: what is behind a module of it.
#[derive(Clone, Debug)]
pub struct Pmem {
    /// Its number, from 0.
    pub number: usize,
    /// Bytes.
    pub size: u64,
    /// The file; none is one by a name of its own: for a command line that a person pastes.
    pub file: Option<Fd>,
}

impl Pmem {
    /// The name of what is behind the module.
    pub(crate) fn backend(&self) -> String {
        format!("pmem{}", self.number)
    }

    fn key_val(&self) -> KeyVal {
        let path = self.file.map_or_else(|| format!("pmem{}.raw", self.number), Fd::path);
        let object = KeyVal::new("memory-backend-file").set("id", self.backend()).set("size", self.size.to_string());
        object.set("mem-path", path).set("share", "on")
    }
}

/// A device that was asked for, with what QEMU has to be told of it.
#[derive(Clone, Debug)]
pub struct Further {
    /// Options that come before it, such as what is behind it, each with its value.
    pub(crate) options: Vec<(&'static str, KeyVal)>,
    /// The device; none if the machine has it by itself.
    pub device: Option<Device>,
    /// What is behind it, if it is a serial port.
    pub log: Option<SerialLog>,
    /// What is behind it, if it is a module of persistent memory.
    pub pmem: Option<Pmem>,
    /// Devices that are plugged into it.
    pub within: Vec<Device>,
    /// Whether it takes a slot on the PCI bus.
    pub takes_slot: bool,
    /// Whether it is a screen.
    pub is_screen: bool,
    /// Why a machine that has it is not to be copied, if so.
    pub uncopied: Option<&'static str>,
}

impl Further {
    /// A device on the PCI bus.
    pub(crate) fn on_pci(device: Device) -> Self {
        Self {
            options: Vec::new(),
            device: Some(device),
            log: None,
            pmem: None,
            within: Vec::new(),
            takes_slot: true,
            is_screen: false,
            uncopied: None,
        }
    }

    /// A device that is elsewhere, or is the machine's own.
    pub(crate) fn elsewhere(device: Option<Device>) -> Self {
        Self {
            options: Vec::new(),
            device,
            log: None,
            pmem: None,
            within: Vec::new(),
            takes_slot: false,
            is_screen: false,
            uncopied: None,
        }
    }

    /// The same, with one option more.
    #[must_use]
    pub(crate) fn with(mut self, option: &'static str, value: KeyVal) -> Self {
        self.options.push((option, value));
        self
    }
}

impl MachineConfig {
    /// Whether there is a screen of which a picture can be taken.
    pub(crate) fn has_screen(&self) -> bool {
        self.vga.is_some() || self.further.iter().any(|further| further.is_screen)
    }

    /// Bytes of persistent memory.
    pub(super) fn pmem_size(&self) -> u64 {
        self.further.iter().filter_map(|further| Some(further.pmem.as_ref()?.size)).sum()
    }

    /// How many of the slots for further disks these devices take.
    pub(crate) fn further_slots(&self) -> usize {
        self.further.iter().filter(|further| further.takes_slot).count()
    }

    pub(super) fn push_further(&self, out: &mut Vec<OsString>) {
        let mut before = 0;
        for further in &self.further {
            if let Some(log) = &further.log {
                push(out, "-chardev", log.key_val());
            }
            if let Some(pmem) = &further.pmem {
                push(out, "-object", pmem.key_val());
            }
            for (option, value) in &further.options {
                push(out, option, value.clone());
            }
            let slot: Option<Slot> = further.takes_slot.then(|| self.further_slot(before)).flatten();
            before += usize::from(further.takes_slot);
            if let Some(device) = further.device.clone() {
                push(out, "-device", device.at(slot).key_val());
            }
            for device in &further.within {
                push(out, "-device", device.key_val());
            }
        }
    }
}
