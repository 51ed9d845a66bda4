//! Devices that are neither disks nor the card, nor there in every machine.

use std::ffi::OsString;

use super::{Device, MachineConfig, disk::push, keyval::KeyVal, slots::Slot};

/// A device that was asked for, with what QEMU has to be told of it.
#[derive(Clone, Debug)]
pub struct Further {
    /// Options that come before it, such as what is behind it, each with its value.
    pub(crate) options: Vec<(&'static str, KeyVal)>,
    /// The device; none if the machine has it by itself.
    pub device: Option<Device>,
    /// Whether it takes a slot on the PCI bus.
    pub takes_slot: bool,
}

impl Further {
    /// A device on the PCI bus.
    pub(crate) fn on_pci(device: Device) -> Self {
        Self { options: Vec::new(), device: Some(device), takes_slot: true }
    }

    /// A device that is elsewhere, or is the machine's own.
    pub(crate) fn elsewhere(device: Option<Device>) -> Self {
        Self { options: Vec::new(), device, takes_slot: false }
    }

    /// The same, with one option more.
    #[must_use]
    pub(crate) fn with(mut self, option: &'static str, value: KeyVal) -> Self {
        self.options.push((option, value));
        self
    }
}

impl MachineConfig {
    /// How many of the slots for further disks these devices take.
    pub(crate) fn further_slots(&self) -> usize {
        self.further.iter().filter(|further| further.takes_slot).count()
    }

    pub(super) fn push_further(&self, out: &mut Vec<OsString>) {
        let mut before = 0;
        for further in &self.further {
            for (option, value) in &further.options {
                push(out, option, value.clone());
            }
            let slot: Option<Slot> = further.takes_slot.then(|| self.further_slot(before)).flatten();
            before += u8::from(further.takes_slot);
            if let Some(device) = further.device.clone() {
                push(out, "-device", device.at(slot).key_val());
            }
        }
    }
}
