//! Devices that a guest has only where they are asked for: which of QEMU's they are, and why one cannot be had.

use std::path::PathBuf;

use belljar_guest_spec::{Devices, Watchdog, Word};

use crate::{
    plan_choices::Choices,
    qemu::{
        args::{Device, Further, KeyVal},
        platform::Platform,
        probe::QemuInfo,
    },
};

/// Why a guest cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// No machine for this processor has it.
    #[error("machines for {arch} have no {key} {word}; {there}, or leave {key} out")]
    Platform {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        word: &'static str,
        /// The processor.
        arch: String,
        /// What to ask for instead.
        there: String,
    },
    /// It is part of another type of machine.
    #[error(
        "the {key} {word} is part of the machine type {wanted}, and this machine is {machine:?}; say --machine {wanted} (machine = \"{wanted}\"), or take another {key}"
    )]
    Machine {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        word: &'static str,
        /// Of which type the machine has to be.
        wanted: &'static str,
        /// Which it is.
        machine: String,
    },
    /// QEMU was built without it.
    #[error("{} has no device {device:?}, which {key} asks for; name another QEMU with --qemu, or leave {key} out", path.display())]
    Qemu {
        /// The setting.
        key: &'static str,
        /// The device, in QEMU's words.
        device: String,
        /// The program.
        path: PathBuf,
    },
}

/// For which machine devices are looked for.
struct Ground<'a> {
    platform: &'static Platform,
    /// As `-machine` names it.
    machine: &'a str,
    qemu: &'a QemuInfo,
}

/// QEMU's devices for what was asked for.
///
/// # Errors
/// Where one cannot be had.
pub(crate) fn further(
    asked: &Devices,
    platform: &'static Platform,
    machine: &str,
    qemu: &QemuInfo,
    choices: &mut Choices,
) -> Result<Vec<Further>, NoDevice> {
    let ground = Ground { platform, machine, qemu };
    let mut all = Vec::new();
    if let Some(watchdog) = asked.watchdog {
        all.push(ground.watchdog(watchdog, choices)?);
    }
    Ok(all)
}

impl Ground<'_> {
    /// A device of QEMU's, if this one has it.
    fn device(&self, key: &'static str, name: &str) -> Result<Device, NoDevice> {
        if self.qemu.devices.iter().any(|known| known == name) {
            return Ok(Device::new(name));
        }
        Err(NoDevice::Qemu { key, device: name.to_owned(), path: self.qemu.path.clone() })
    }

    fn watchdog(&self, asked: Watchdog, choices: &mut Choices) -> Result<Further, NoDevice> {
        const KEY: &str = "watchdog";
        let there = self.platform.watchdogs;
        let chosen = if asked == Watchdog::Auto { there.first().copied().unwrap_or_default() } else { asked };
        if !there.contains(&chosen) {
            let words: Vec<&str> = there.iter().map(|watchdog| watchdog.word()).collect();
            let arch = self.platform.processor.arch.to_string();
            return Err(NoDevice::Platform {
                key: KEY,
                word: chosen.word(),
                arch,
                there: format!("take {}", words.join(" or ")),
            });
        }
        if asked == Watchdog::Auto {
            choices.add(KEY, chosen.word(), format!("what is usual on {}", self.platform.processor.arch));
        }
        let further = match chosen {
            Watchdog::Auto | Watchdog::I6300esb => Further::on_pci(self.device(KEY, "i6300esb")?),
            Watchdog::Ib700 => Further::elsewhere(Some(self.device(KEY, "ib700")?)),
            Watchdog::Diag288 => Further::elsewhere(Some(self.device(KEY, "diag288")?)),
            Watchdog::Itco => {
                const Q35: &str = "q35";
                if self.platform.machine_type(self.machine).name != Q35 {
                    let machine = self.machine.to_owned();
                    return Err(NoDevice::Machine { key: KEY, word: chosen.word(), wanted: Q35, machine });
                }
                // The strap by which a board keeps its chipset from resetting it; on before QEMU 8.0.
                let strap = KeyVal::new("ICH9-LPC.noreboot=false");
                Further::elsewhere(None).with("-global", strap)
            }
        };
        // QEMU's default, which a bite depends on: the reset ends QEMU, as each does (`-no-reboot`).
        Ok(further.with("-action", KeyVal::empty().set("watchdog", "reset")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{
        args::MachineConfig,
        platform::{self, PLATFORMS},
    };

    fn of(name: &str) -> &'static Platform {
        PLATFORMS.iter().copied().find(|platform| platform.processor.name == name).unwrap()
    }

    fn qemu(devices: &[&str]) -> QemuInfo {
        QemuInfo { devices: devices.iter().map(|&device| device.to_owned()).collect(), ..QemuInfo::of_nothing() }
    }

    /// What QEMU is told, or why it is not.
    fn told(devices: &Devices, platform: &'static Platform, machine: &str, known: &[&str]) -> String {
        let mut choices = Choices::default();
        match further(devices, platform, machine, &qemu(known), &mut choices) {
            Ok(all) => {
                let config = MachineConfig { further: all, ..MachineConfig::default() };
                let words = config.to_args().unwrap();
                let without = MachineConfig::default().to_args().unwrap();
                let words: Vec<_> = words[without.len()..].iter().map(|word| word.to_string_lossy()).collect();
                words.join(" ")
            }
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn each_platform_has_its_watchdogs() {
        let watchdog = |word| Devices { watchdog: Some(word) };
        let known = ["i6300esb", "ib700", "diag288"];
        let on = |name: &str, word, machine| told(&watchdog(word), of(name), machine, &known);
        let reset = "-action watchdog=reset -device";
        assert_eq!(on("x86_64", Watchdog::Auto, "pc"), format!("{reset} i6300esb"));
        assert_eq!(on("x86_64", Watchdog::Ib700, "pc"), format!("{reset} ib700"));
        assert_eq!(on("s390x", Watchdog::Auto, "s390-ccw-virtio"), format!("{reset} diag288"));
        assert_eq!(on("aarch64", Watchdog::Auto, "virt"), format!("{reset} i6300esb"));
        assert_eq!(
            on("x86_64", Watchdog::Itco, "pc-q35-7.2"),
            "-global ICH9-LPC.noreboot=false -action watchdog=reset"
        );
        let said = on("x86_64", Watchdog::Itco, "pc");
        assert!(said.contains("is part of the machine type q35, and this machine is \"pc\""), "{said}");
        let said = on("s390x", Watchdog::I6300esb, "s390-ccw-virtio");
        assert!(said.contains("have no watchdog i6300esb; take diag288"), "{said}");
        let said = told(&watchdog(Watchdog::Auto), platform::default(), "pc", &[]);
        assert!(said.contains("has no device \"i6300esb\", which watchdog asks for"), "{said}");
    }

    #[test]
    fn what_is_usual_can_be_had() {
        for platform in PLATFORMS {
            assert!(!platform.watchdogs.contains(&Watchdog::Auto), "{}", platform.processor.name);
        }
    }
}
