//! `belljar doctor IMAGE`: what an image is, what would be tried with it, and what will not work. It is read, and not started.
//!
//! All text of the image goes through [`plain`] before it is shown.

use std::path::Path;

use belljar_disk_reader::{
    BootEntry, Description, Disk, Init, InitKind, Limits, Loader, Partition, RootPassword, System, SystemKernel, Table,
    Volume, inspect,
};
use belljar_image::{
    disk::{self, DiskImage},
    kernel::Arch,
    modules::{Feature, Presence},
};
use belljar_machine::{
    console::sanitize::sanitize_line,
    plan_direct::{SecondBoot, Ways, ways_into},
    plan_drivers::hardware_for,
    plan_firmware::uefi_of,
    plan_image::{no_machine, processor_of},
    qemu::{
        platform::{self, Platform},
        probe,
    },
    share,
};
use bytesize::ByteSize;

use super::Finding;
use crate::{env, settings};

/// The longest text of an image that is shown whole, in characters.
const LONGEST: usize = 400;
/// Lines of one kind that are shown: partitions, kernels, entries, notes.
const MANY: usize = 12;
/// What is said of a kernel, beside what shares need.
const FEATURES: &[(&str, Feature)] = &[
    ("9p", Feature::NineP),
    ("fuse", Feature::FileSystem("fuse")),
    ("virtiofs", Feature::FileSystem("virtiofs")),
    ("virtio disk", Feature::VirtioBlk),
    ("virtio network", Feature::VirtioNet),
    ("virtio console", Feature::VirtioConsole),
    ("SATA", Feature::Ahci),
    ("IDE", Feature::Piix),
    ("NVMe", Feature::Nvme),
    ("overlay", Feature::Overlay),
];

/// What is found of an image.
pub(super) fn look_at(image: &Path, qemu: Option<&Path>) -> Vec<Finding> {
    let mut findings = match disk::inspect(&settings::qemu_img(), image, None, disk::Use::Boot) {
        Err(error) => vec![Finding::bad("image", error.to_string())],
        Ok(found) => {
            let mut findings = of_format(&found);
            let described =
                Disk::open(&found, &settings::qemu_img(), Limits::default()).and_then(|disk| inspect(&disk));
            match described.and_then(|description| Ok((description.system()?, description))) {
                Ok((system, description)) => findings.extend(of_disk(&description, system.as_ref(), qemu)),
                Err(error) => {
                    findings.push(boot_sector(&found));
                    findings.push(Finding::note("disk", plain(&error.to_string()), "what is on it was not looked at"));
                }
            }
            findings
        }
    };
    for finding in &mut findings {
        finding.of_image = true;
    }
    findings
}

fn of_format(found: &DiskImage) -> Vec<Finding> {
    let layers = found.layers().iter().zip(std::iter::once("image").chain(std::iter::repeat("backing")));
    let mut findings: Vec<Finding> = layers
        .map(|(layer, about)| Finding::good(about, format!("{}: {}", layer.path.display(), layer.format.driver())))
        .collect();
    findings.push(Finding::good("size", format!("{} for the guest", ByteSize(found.virtual_size))));
    findings
}

fn boot_sector(found: &DiskImage) -> Finding {
    match found.has_boot_sector(&settings::qemu_img()) {
        Ok(true) => Finding::good("boot", "its first sector has a boot signature"),
        Ok(false) => Finding::bad(
            "boot",
            "there is nothing to boot on it: its first sector has no boot signature (55 AA)\n\
             mend: get a disk image with a system on it; as an extra disk (--disk file=…) it will do",
        ),
        Err(error) => Finding::note(
            "boot",
            format!("its first sector could not be read: {error}"),
            "whether it boots will be seen",
        ),
    }
}

/// What is on a disk.
fn of_disk(description: &Description, system: Option<&System>, qemu: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![Finding::good("disk", layout(description))];
    let unreadable = description.volumes.iter().filter_map(|volume| Some((volume, volume.unreadable.as_ref()?)));
    for (volume, why) in unreadable.take(MANY) {
        findings.push(Finding::note("disk", format!("{}: {}", volume.name, plain(why)), "what is on it is not known"));
    }
    let other =
        description.volumes.iter().filter(|v| v.content.kind.is_other_file_system() || v.content.kind.is_encrypted());
    for volume in other.take(MANY) {
        let what = format!("{}: {}, which cannot be read here", volume.name, volume.content.kind.name());
        findings.push(Finding::note("disk", what, "a guest may well boot from it; what is on it is not known"));
    }
    let obstacles = description.obstacles();
    findings.extend(obstacles.iter().map(|obstacle| Finding::bad("boot", plain(&obstacle.to_string()))));
    findings.extend(firmware(description).map(|what| Finding::good("boot", what)).or_else(|| {
        let directly = description.default_entry().filter(|entry| !entry.initrds.is_empty()).map(|_| {
            Finding::good("boot", "no firmware finds anything on it to start, so its kernel would be started directly")
        });
        directly.or_else(|| {
            obstacles.is_empty().then(|| {
                Finding::note(
                    "boot",
                    "there is no code in its first sector, and no EFI system partition",
                    "firmware will hardly find anything to start: get a disk image with a boot loader on it",
                )
            })
        })
    }));
    findings.extend(of_menu(description));
    match system {
        Some(system) => {
            findings.extend(of_system(description, system));
            let platform = processor_of(system).and_then(platform::of).unwrap_or_else(platform::default);
            findings.extend(of_uefi(description, platform, qemu));
            findings.extend(
                hardware_for(description, system, platform)
                    .into_iter()
                    .map(|(what, said)| Finding::good(what, plain(&said))),
            );
        }
        None => {
            findings.push(Finding::note("system", "none was found", "only a boot will tell what is on it"));
            findings.extend(of_uefi(description, platform::default(), qemu));
        }
    }
    findings.push(ladder(description));
    findings
}

/// Partitions, or the one thing that is on it, a line each.
fn layout(description: &Description) -> String {
    let table = match description.table {
        Table::None => "no partition table",
        Table::Mbr => "a partition table (MBR)",
        Table::Gpt => "a partition table (GPT)",
    };
    let mut text = table.to_owned();
    for volume in description.volumes.iter().take(MANY) {
        text.push('\n');
        text.push_str(&one_volume(volume));
    }
    if let Some(more) = description.volumes.len().checked_sub(MANY).filter(|&more| more > 0) {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

fn one_volume(volume: &Volume) -> String {
    let mut words = vec![plain(volume.content.kind.name())];
    if !volume.content.label.is_empty() {
        words.push(format!("{:?}", plain(&volume.content.label)));
    }
    if let Some(purpose) = volume.partition.as_ref().and_then(Partition::purpose) {
        words.push(format!("for {purpose}"));
    }
    words.push(ByteSize(volume.size).to_string());
    format!("{}: {}", plain(&volume.name), words.join(", "))
}

/// Which firmware finds something on it; none where that is not known.
fn firmware(description: &Description) -> Option<String> {
    let programs = description.efi_programs();
    let bios_boot = description.volumes.iter().any(|v| v.partition.as_ref().is_some_and(Partition::is_bios_boot));
    let by_bios = description.has_boot_code.then_some({
        if bios_boot {
            "a BIOS (code in its first sector, and a BIOS boot partition)"
        } else {
            "a BIOS (code in its first sector)"
        }
    });
    let by_efi = (!programs.is_empty() || description.esp().is_some()).then(|| match programs.as_slice() {
        [] => "UEFI (an EFI system partition)".to_owned(),
        programs => format!("UEFI ({})", plain(&programs.join(", "))),
    });
    match (by_bios, by_efi) {
        (Some(bios), Some(efi)) => Some(format!("by {bios} or {efi}")),
        (Some(bios), None) => Some(format!("by {bios} only")),
        (None, Some(efi)) => Some(format!("by {efi} only: there is no code for a BIOS in its first sector")),
        (None, None) => None,
    }
}

/// The UEFI firmware where it is needed.
fn of_uefi(description: &Description, platform: &'static Platform, qemu: Option<&Path>) -> Option<Finding> {
    // Where there is no QEMU, that was said.
    let (qemu, _) = probe::find_program(platform, qemu, env::get("PATH").as_deref()).ok()?;
    Some(match uefi_of(description, platform, &qemu, &settings::firmware_dirs().ok()?)? {
        Ok(code) => Finding::good("firmware", code.display().to_string()),
        Err(why) => Finding::bad("firmware", why),
    })
}

/// The boot loader's menu, and what is wrong with it.
fn of_menu(description: &Description) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (description.default_entry(), description.loader) {
        (Some(entry), loader) => {
            let more = match description.entries.len() - 1 {
                0 => String::new(),
                n => format!(", and {n} more"),
            };
            let from =
                if loader == Loader::None { entry.from.clone() } else { format!("{}, {}", loader.name(), entry.from) };
            findings.push(Finding::good("loader", format!("{}: {:?}{more}", plain(&from), plain(&entry.title))));
            findings.push(Finding::good("line", plain(&entry.command_line)));
            findings.push(consoles(entry));
        }
        (None, Loader::None) => findings.push(Finding::note(
            "loader",
            "no boot loader's configuration was found, and no kernel",
            "only a boot will tell what it starts",
        )),
        (None, loader) => findings.push(Finding::note(
            "loader",
            format!("{}, of which no entry starts a kernel that is there", loader.name()),
            "only a boot will tell what it starts",
        )),
    }
    for note in description.notes.iter().take(MANY) {
        findings.push(Finding::note("disk", plain(note), "it was read as far as it goes"));
    }
    findings
}

fn consoles(entry: &BootEntry) -> Finding {
    let names: Vec<&str> =
        entry.command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("console=")).collect();
    // `tty0`, `tty1`: screens.
    let is_serial =
        |name: &&&str| !name.trim_start_matches("tty").starts_with(|c: char| c.is_ascii_digit()) && **name != "tty";
    match names.iter().find(is_serial) {
        Some(serial) => Finding::good("console", format!("{} (of {})", plain(serial), plain(&names.join(" ")))),
        None => Finding::note(
            "console",
            if names.is_empty() {
                "the kernel line names none, so it is on the screen".to_owned()
            } else {
                format!("only {}", plain(&names.join(" ")))
            },
            "nothing may come on the serial line, where a login is looked for: the image needs console=ttyS0 on its kernel line, and a getty there",
        ),
    }
}

fn of_system(description: &Description, system: &System) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = system.name.as_deref().map_or_else(|| "a system that does not say its name".to_owned(), plain);
    findings.push(Finding::good("system", format!("{name}, on {}", plain(&system.root))));
    if let Some(arch) = processor_of(system) {
        findings.push(of_processor(arch));
    }
    findings.push(match &system.init {
        Some(init) => Finding::good("init", of_init(init)),
        None => Finding::note("init", "none was found", "only a boot will tell how it begins"),
    });
    findings.extend(of_kernels(description, system));
    findings.push(of_login(system));
    if let Some(getty) = &system.serial_getty {
        findings.push(Finding::good("getty", format!("on ttyS0 ({})", plain(getty))));
    }
    if !system.provisioning.is_empty() {
        let names: Vec<_> = system.provisioning.iter().map(|one| one.name()).collect();
        findings.push(Finding::good("set-up", format!("{} is there", names.join(", "))));
    }
    findings
}

/// What a system is for, and whether there is a QEMU for it and an agent.
fn of_processor(arch: Arch) -> Finding {
    let Some(platform) = platform::of(arch) else {
        return Finding::bad("for", no_machine(arch).unwrap_or_else(|| arch.to_string()));
    };
    if platform.processor.name == platform::default().processor.name {
        return Finding::good("for", arch.to_string());
    }
    match probe::find_program(platform, None, env::get("PATH").as_deref()) {
        Err(error) => Finding::bad("for", format!("{arch}: {error}")),
        Ok((qemu, _)) => match platform.agent().is_none().then(|| platform.how_to_have_agent()) {
            None => Finding::good("for", format!("{arch}, by {}", qemu.display())),
            Some(how) => Finding::note(
                "for",
                format!("{arch}, by {}, without Belljar's agent, of which there is none for it", qemu.display()),
                format!(
                    "it is driven by a shell on its console{}",
                    how.map(|how| format!("; or {how}")).unwrap_or_default()
                ),
            ),
        },
    }
}

fn of_init(init: &Init) -> String {
    let version = init.version.map(|version| format!(" {version}")).unwrap_or_default();
    match init.kind {
        InitKind::Other => format!("{} ({})", init.kind.name(), plain(&init.path)),
        kind => format!("{}{version}", kind.name()),
    }
}

/// Each kernel with what it can do; and how the workspace gets into the one that boots.
fn of_kernels(description: &Description, system: &System) -> Vec<Finding> {
    let booting = description.booting_kernel(system);
    let boots = |kernel: &&SystemKernel| booting.is_some_and(|booting| std::ptr::eq(*kernel, booting));
    let mut findings = Vec::new();
    for kernel in system.kernels.iter().take(MANY) {
        let release = kernel.release.as_ref().map_or_else(|| kernel.path.clone(), ToString::to_string);
        let which = if system.kernels.len() > 1 && boots(&kernel) { " (the default)" } else { "" };
        let has = |wanted: bool| {
            let known = FEATURES.iter().filter_map(|(name, feature)| Some((name, kernel.feature(*feature)?)));
            known
                .filter(|(_, presence)| (*presence != Presence::Absent) == wanted)
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let abilities = match (has(true), has(false)) {
            (with, without) if with.is_empty() && without.is_empty() => {
                "what it can do is not known, for its modules are not there".to_owned()
            }
            (with, without) if without.is_empty() => format!("with {with}"),
            (with, without) if with.is_empty() => format!("without {without}"),
            (with, without) => format!("with {with}; without {without}"),
        };
        findings.push(Finding::good("kernel", format!("{}{which}: {abilities}", plain(&release))));
    }
    let Some(kernel) = booting.or(system.kernels.first()) else {
        findings.push(Finding::note(
            "kernel",
            "none was found in /boot, and no modules of one",
            "what it can do is not known",
        ));
        return findings;
    };
    let has_all = |features: &[Feature]| {
        features
            .iter()
            .map(|feature| kernel.feature(*feature))
            .collect::<Option<Vec<_>>>()
            .map(|found| found.iter().all(|p| *p != Presence::Absent))
    };
    let kinds: Vec<(&str, Option<bool>)> = share::needs().map(|(name, features)| (name, has_all(features))).collect();
    let named = |wanted: Option<bool>| {
        kinds.iter().filter(|(_, has)| *has == wanted).map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    findings.push(match (named(Some(true)), named(None)) {
        // Where it is not known what else there is, no disk is made for them.
        (can, unknown) if !can.is_empty() && (can != "disk" || unknown.is_empty()) => {
            Finding::good("share", format!("the workspace comes by {can}"))
        }
        (_, unknown) if !unknown.is_empty() => {
            Finding::note("share", format!("whether its kernel has {unknown} is not known"), "only a boot will tell")
        }
        _ => Finding::note(
            "share",
            format!("its kernel has nothing that the workspace could come by ({})", named(Some(false))),
            "use the distribution's generic kernel, or do without: --workspace none, and no --out",
        ),
    });
    findings
}

fn lacks_agent(system: &System) -> bool {
    processor_of(system).and_then(platform::of).is_some_and(|platform| platform.agent().is_none())
}

fn of_login(system: &System) -> Finding {
    match system.root_password {
        RootPassword::None => Finding::good("root", "has no password: a login prompt lets it in"),
        RootPassword::Set => Finding::note("root", "has a password", "give it with --login root:PASSWORD"),
        RootPassword::Locked if lacks_agent(system) => Finding::note(
            "root",
            "is locked: no password lets it in at a login prompt",
            "without Belljar's agent for its processor nothing else gets in: see above how to have one, or unlock root",
        ),
        RootPassword::Locked => Finding::good(
            "root",
            "is locked: no password lets it in at a login prompt, and none is needed for the ways in below",
        ),
        RootPassword::Unknown => {
            Finding::note("root", "whether it has a password is not known", "only a boot will tell")
        }
    }
}

/// The ways in, as the ladder itself has them.
fn ladder(found: &Description) -> Finding {
    let source = belljar_guest_spec::BootSource::Image {
        path: "image".into(),
        format: None,
        bus: belljar_guest_spec::BusChoice::Auto,
        access: belljar_guest_spec::Access::Auto,
    };
    let Ways { names, directly, then } = ways_into(&source, found);
    let directly = directly.map_or_else(String::new, |why| format!("; its kernel would be started directly: {why}"));
    let then = match then {
        Some(SecondBoot::Directly) => "; if nobody gets in by them, its kernel would be started directly in a second boot, with the agent behind its initramfs".to_owned(),
        Some(SecondBoot::ByGrub(volume)) => format!(
            "; if nobody gets in by them, a GRUB of Belljar's would start it in a second boot, with the agent behind its initramfs: GRUB may be able to read {}",
            plain(&volume)
        ),
        None => String::new(),
    };
    Finding::good("access", format!("ways in that would be tried: {}{directly}{then}", names.join(", then ")))
}

/// Text of an image on one line, without anything that a terminal would obey.
fn plain(text: &str) -> String {
    let line: String =
        text.split(['\n', '\r']).map(|part| sanitize_line(part.as_bytes())).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
