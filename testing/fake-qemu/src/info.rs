//! What QEMU prints and then ends: `--version`, `-device help` and their like.

use std::fmt::Write as _;

use crate::check::DEVICES;

/// The answer, if the command line only asks for one.
pub(crate) fn answer(words: &[String], version: &str) -> Option<String> {
    let pairs = words.iter().zip(words.iter().skip(1).chain([words.last()?]));
    for (word, next) in pairs {
        let name = word.trim_start_matches('-');
        match (name, next.as_str()) {
            ("version", _) => {
                return Some(format!(
                    "QEMU emulator version {version}\nCopyright (c) 2003-2023 Fabrice Bellard and the QEMU Project developers\n"
                ));
            }
            ("machine" | "M", "help" | "?") => return Some(MACHINES.into()),
            ("accel", "help" | "?") => {
                return Some("Accelerators supported in QEMU binary:\ntcg\nkvm\n".into());
            }
            ("cpu", "help" | "?") => return Some(CPUS.into()),
            ("netdev", "help" | "?") => {
                return Some("Available netdev backend types:\nsocket\nhubport\nuser\n".into());
            }
            ("chardev", "help" | "?") => {
                return Some("Available chardev backend types: \n  socket\n  null\n  file\n".into());
            }
            ("sandbox", "help" | "?") => {
                return Some("sandbox options:\n  enable=<bool (on/off)>\n".into());
            }
            ("device", "help" | "?") => return Some(devices()),
            ("device", other) if other.ends_with(",help") => {
                return Some(format!("{} options:\n", &other[..other.len() - 5]));
            }
            _ => {}
        }
    }
    None
}

/// Machines, newest first, as QEMU sorts them.
const MACHINES: &str = "Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-8.2)
pc-i440fx-8.2        Standard PC (i440FX + PIIX, 1996) (default)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-8.2)
pc-q35-8.2           Standard PC (Q35 + ICH9, 2009)
isapc                ISA-only PC
none                 empty machine
";

const CPUS: &str = "Available CPUs:
x86 qemu64                (alias configured by machine type)
x86 max                   Enables all features supported by the accelerator in the current host
x86 host                  processor with all supported host features

Recognized CPUID flags:
  fpu vme de pse
";

/// `-device help`.
fn devices() -> String {
    let mut text = String::from("Misc devices:\n");
    for (name, bus) in DEVICES {
        let _infallible = writeln!(text, "name \"{name}\", bus {bus}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::words;

    #[test]
    fn answers_only_questions() {
        let ask = |line: &str| answer(&words(line), "8.2.0");
        assert!(ask("--version").is_some_and(|t| t.starts_with("QEMU emulator version 8.2.0\n")));
        assert!(ask("-device help").is_some_and(|t| t.contains("\"virtio-9p-pci\", bus PCI")));
        assert!(ask("-nodefaults -machine help").is_some_and(|t| t.contains("q35                  ")));
        assert!(ask("-accel help").is_some_and(|t| t.contains("\ntcg\n")));
        assert_eq!(ask("-nodefaults -machine q35"), None);
        assert_eq!(ask(""), None);
    }
}
