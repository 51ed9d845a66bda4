//! A volume that is in the machine's flash memory: the firmware's variables, which a system changes at each boot.

use super::Plugging;
use crate::qemu::args::{MachineConfig, Node};

#[derive(Clone, Copy, Debug)]
pub(super) struct FlashFront;

impl FlashFront {
    /// See [`super::Volume::plugging`].
    pub(super) fn plugging(self) -> Plugging {
        Plugging::Never
    }

    /// Shows it to the machine, behind the firmware.
    pub(super) fn show(self, node: Node, config: &mut MachineConfig) {
        config.flash.push(node);
    }
}
