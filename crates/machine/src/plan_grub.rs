//! The start of an image by a GRUB of our own: the disk from which the firmware starts it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{DiskBus, DiskContent, GuestSpec};
use belljar_image::{
    cache::Cache,
    grub::{
        self, Grub, GrubError, Starter,
        config::{BOOTS, READS},
    },
    initramfs::{self, InitramfsSpec},
    kernel::Arch,
};
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{INIT_AGENT_PATH, InitRoot};

use crate::{
    Lost,
    console::{AlarmKind, ConsoleView, Scanner},
    plan::PlanError,
    plan_choices::Choices,
    plan_image::{Facts, ImageQuestion, ImageReader},
    qemu::{platform::Platform, probe::look_up},
    volume::Volume,
};

/// The disk's serial number, by which a person knows it.
const SERIAL: &str = "belljar-grub";
/// What the kernel would have started in the guest's initramfs.
const INIT: &str = "/init";

/// What starts GRUB in a machine with such firmware.
pub(crate) fn starter(by_uefi: bool) -> Starter {
    if by_uefi { Starter::Uefi } else { Starter::Bios }
}

/// The GRUB that is installed for it; `path` is where its program is looked for.
///
/// # Errors
/// What is missing, and what to install.
pub fn find(path: Option<&OsStr>, starter: Starter) -> Result<Grub, GrubError> {
    let program = grub::PROGRAMS.iter().find_map(|name| look_up(Path::new(name), path));
    Grub::of(&program.ok_or(GrubError::NoProgram { starter })?, starter)
}

/// Whether GRUB is made for such a processor here.
pub(crate) fn starts(arch: Arch) -> bool {
    arch == Arch::X86_64
}

/// Whether an image's system is for what GRUB is made for here, and for what the agent is.
///
/// # Errors
/// What it is for instead, with what to do.
pub(crate) fn check_processor(reader: &ImageReader<'_>, platform: &'static Platform) -> Result<(), String> {
    let arch = reader.facts().ok().and_then(Facts::arch).unwrap_or(platform.processor.arch);
    if starts(arch) && platform.agent().is_some() {
        return Ok(());
    }
    Err(format!(
        "it is for {arch}, and GRUB starts images for {} here; use another way in (--access initrd)",
        Arch::X86_64
    ))
}

/// Whether there is a disk beside the image's on which a system may be. One of zeros has none.
fn has_others(spec: &GuestSpec) -> bool {
    spec.hardware.disks.iter().any(|disk| !matches!(disk.content, DiskContent::Empty(_)))
}

/// Whether GRUB can tell the image's disk from all others. A BIOS numbers them in the boot order.
///
/// # Errors
/// Why it cannot, with what to do.
pub(crate) fn check_disks(spec: &GuestSpec, by_uefi: bool) -> Result<(), String> {
    if by_uefi && has_others(spec) {
        return Err("GRUB reads all disks, and under UEFI it cannot be told which one is the image's, so that a system on a further disk could be started in its place; \
                    leave out the disks that have a file of yours, or use another way in (--access initrd)"
            .to_owned());
    }
    Ok(())
}

/// Whether GRUB can start the image on this host, as far as a look tells. Makes nothing.
pub(crate) fn check(
    reader: &ImageReader<'_>,
    question: &ImageQuestion<'_>,
    by_uefi: bool,
) -> Result<(&'static [u8], Grub), PlanError> {
    let ImageQuestion { platform, host, spec, .. } = question;
    let failed = |why: String| PlanError::Grub { image: reader.image().path().to_owned(), why };
    check_processor(reader, platform).map_err(failed)?;
    check_disks(spec, by_uefi).map_err(failed)?;
    let agent = platform.agent().ok_or(PlanError::NoAgent { platform })?.program;
    let grub = find(host.path.as_deref(), starter(by_uefi)).map_err(|error| failed(error.to_string()))?;
    Ok((agent, grub))
}

/// The disk from which GRUB is started, before the one that is in `reader`; made now or by an earlier run.
pub(crate) fn medium(
    reader: &ImageReader<'_>,
    question: &ImageQuestion<'_>,
    (by_uefi, bus): (bool, DiskBus),
    cache: &Cache,
    choices: &mut Choices,
) -> Result<Volume, PlanError> {
    let ImageQuestion { platform, host, spec: guest, .. } = question;
    let failed = |why: String| PlanError::Grub { image: reader.image().path().to_owned(), why };
    let (agent, grub) = check(reader, question, by_uefi)?;
    let spec = InitramfsSpec { agent, root: InitRoot::OfGuest { init: INIT.to_owned() }, modules: &[], alone: false };
    let mut archive = Vec::new();
    initramfs::build(&spec, &mut archive).map_err(|error| failed(format!("cannot make its archive: {error}")))?;
    // Of several the last one counts, and these come behind the entry's own.
    let words = format!("console={} rdinit={INIT_AGENT_PATH}", platform.console);
    let made = grub.medium(&archive, (&words, has_others(guest)), cache).map_err(|error| failed(error.to_string()))?;
    choices.0.extend(made.flaw.map(|flaw| EventKind::Warning {
        message: format!(
            "the disk with GRUB in the cache was not as it was made ({flaw}) and was made anew: {}",
            made.path.display()
        ),
    }));
    let when = if made.hit { "made by an earlier run" } else { "made now" };
    let (program, modules) = (grub.program.display(), grub.modules.display());
    let why =
        format!("{when} with {program}, of {modules}; it boots the default entry of the image's own configuration");
    choices.add("GRUB", made.path.display().to_string(), why);
    Ok(Volume::medium(&host.qemu_img, &made.path, SERIAL, bus)?)
}

/// What GRUB has said that it boots, on the console.
#[derive(Debug, Default)]
pub(crate) struct BootedEntry {
    entry: std::cell::RefCell<Option<String>>,
    /// The file in which it is.
    of: std::cell::RefCell<Option<String>>,
}

impl BootedEntry {
    /// Takes note of it. Ends where a kernel starts that GRUB has not said it boots: it has not the agent.
    pub(crate) async fn note(&self, view: &ConsoleView) -> Lost {
        let mut lines = view.lines();
        while let Some(line) = lines.next().await {
            let line = line.trim();
            if let Some(file) = line.strip_prefix(READS.trim_end()) {
                self.of.replace(Some(file.trim().to_owned()));
            }
            if let Some(entry) = line.strip_prefix(BOOTS.trim_end()) {
                self.entry.replace(Some(entry.trim().to_owned()));
                break;
            }
            if is_kernel_start(line) {
                let seen = "a kernel was started by commands of the image's, not by those of Belljar's GRUB, so that nothing of Belljar's is in it";
                let advice = "Its grub.cfg loads GRUB's modules from the image by their files' names (insmod): leave that out, or use another way in (--access).";
                return Lost::crash(CrashKind::BootFailed, seen.to_owned(), Phase::Boot).with_advice(advice);
            }
        }
        std::future::pending().await
    }

    /// What there is to tell of it.
    pub(crate) fn told(&self) -> Option<EventKind> {
        let entry = self.entry.take()?;
        let of = self.of.take().map_or(String::new(), |file| format!(", of {file}"));
        Some(EventKind::Choice {
            what: "entry".into(),
            chosen: entry,
            why: format!("Belljar's GRUB said on the console that it boots this one{of}"),
        })
    }
}

/// Whether a kernel's first message is in this line: behind a time stamp of nought, or alone.
fn is_kernel_start(line: &str) -> bool {
    let is_first = line.strip_prefix('[').is_none_or(|stamp| stamp.trim_start().starts_with("0.000000]"));
    is_first && Scanner::default().line(line) == Some(AlarmKind::KernelStart)
}

/// What a person is told of the GRUBs on this host: those that are there, and what is missing of others.
#[must_use]
pub fn installed(path: Option<&OsStr>) -> (Vec<PathBuf>, Vec<String>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for starter in [Starter::Bios, Starter::Uefi] {
        match find(path, starter) {
            Ok(grub) => there.push(grub.modules),
            Err(error) => missing.push(error.to_string()),
        }
    }
    (there, missing)
}

#[cfg(test)]
mod tests {
    use belljar_disk_reader::{Disk, Limits, Table, inspect};
    use belljar_image::disk::{self, Format, Use};
    use write_program::write_program;

    use super::*;

    /// Names that Belljar changes, beside those of commands that load something.
    const OTHERS: &str = "terminal_input\0terminal_output\0prefix\0superusers\0timeout\0pager\0";

    /// A GRUB whose program writes what it was asked for, and whose modules are text.
    fn pretended(dir: &Path, starter: Starter) -> Grub {
        let (program, modules) = (dir.join("bin/grub-mkimage"), dir.join("lib/grub").join(starter.platform()));
        for dir in [program.parent().unwrap(), &modules] {
            fs_err::create_dir_all(dir).unwrap();
        }
        write_program(&program, "#!/bin/sh\necho \"core $*\"\n");
        let names =
            "part_msdos fat normal serial terminal echo test regexp true sleep configfile loadenv linux boot ext2 zfs";
        for name in names.split(' ') {
            fs_err::write(modules.join(format!("{name}.mod")), format!("{name}: linux\0initrd\0save_env\0{OTHERS}"))
                .unwrap();
        }
        let mut boot = vec![0x90; 512];
        boot[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
        for (name, bytes) in [
            ("boot.img", &boot[..]),
            ("diskboot.img", b"1"),
            ("kernel.img", b"prefix\0"),
            ("lzma_decompress.img", b"3"),
            ("biosdisk.mod", b"4"),
            ("moddep.lst", b""),
            ("fs.lst", b"ext2\nfat\nufs1\n"),
        ] {
            fs_err::write(modules.join(name), bytes).unwrap();
        }
        let path = std::env::join_paths([program.parent().unwrap()]).unwrap();
        find(Some(&path), starter).unwrap()
    }

    #[test]
    fn what_is_written_is_what_another_reader_sees() {
        for starter in [Starter::Bios, Starter::Uefi] {
            let dir = tempfile::tempdir().unwrap();
            let grub = pretended(dir.path(), starter);
            let cache = Cache::new(dir.path().join("cache"), dir.path());
            let archive = vec![7; 3 << 20];
            let made = grub.medium(&archive, ("console=ttyS0 rdinit=/x", false), &cache).unwrap();
            assert!(!made.hit && grub.medium(&archive, ("console=ttyS0 rdinit=/x", false), &cache).unwrap().hit);
            assert!(!grub.medium(&archive, ("console=ttyS1", false), &cache).unwrap().hit, "other words, another disk");
            let qemu_img = Path::new("qemu-img");
            let image = disk::inspect(qemu_img, &made.path, Some(Format::Raw), Use::Boot).unwrap();
            let found = inspect(&Disk::open(&image, qemu_img, Limits::default()).unwrap()).unwrap();
            let [volume] = &found.volumes[..] else { panic!("{found:?}") };
            assert_eq!((found.table, volume.content.label.as_str()), (Table::Mbr, "BELLJAR"));
            assert_eq!((volume.unreadable.as_ref(), found.has_boot_code), (None, starter == Starter::Bios));
            assert_eq!(found.esp().is_some(), starter == Starter::Uefi);
            let read = |path: &str| found.read_path(0, path, 8 << 20).unwrap();
            let config = String::from_utf8(read("/belljar/grub.cfg")).unwrap();
            assert!(config.contains("bjlnx \"$belljar_kernel\" \"$@\" console=ttyS0 rdinit=/x;"), "{config}");
            assert!(config.contains("\ninsmod zfs\n") && config.contains("\ninsmod bjlnx\n"), "{config}");
            assert_eq!(read("/belljar/agent.img"), archive);
            let modules = format!("/belljar/{}", starter.platform());
            let names = found.list_path(0, &modules).unwrap();
            assert!(names.contains(&"bjlnx.mod".to_owned()) && !names.contains(&"linux.mod".to_owned()), "{names:?}");
            assert!(!names.contains(&"command.lst".to_owned()), "GRUB would load the real commands by themselves");
            let renamed = format!("linux: bjlnx\0bjinrd\0save_env\0{OTHERS}");
            assert_eq!(read(&format!("{modules}/bjlnx.mod")), renamed.as_bytes());
            let bytes = fs_err::read(&made.path).unwrap();
            let started = match starter {
                Starter::Bios => bytes[512..1024].to_vec(),
                Starter::Uefi => read("/EFI/BOOT/BOOTX64.EFI"),
            };
            let words = format!("core -O {} -d ", starter.platform());
            assert!(String::from_utf8_lossy(&started).starts_with(&words), "{:?}", String::from_utf8_lossy(&started));
        }
    }

    #[test]
    fn a_kernels_first_message_is_known() {
        assert!(is_kernel_start("[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)"));
        assert!(is_kernel_start("Linux version 2.6.32"));
        assert!(
            !is_kernel_start("belljar: GRUB boots: Linux version 6")
                && !is_kernel_start("[    1.500000] Linux version 6")
        );
    }

    #[test]
    fn under_uefi_no_other_disk_may_have_a_system() {
        use belljar_guest_spec::{Access, BootSource, BusChoice, DiskSpec};
        let image = |path: &str| BootSource::Image {
            path: path.into(),
            format: None,
            bus: BusChoice::Auto,
            access: Access::Grub,
        };
        let with = |content| {
            let mut spec = GuestSpec::new(image("/image"));
            spec.hardware.disks.push(DiskSpec::new(content));
            spec
        };
        let (empty, full) = (with(DiskContent::Empty(1)), with(DiskContent::Image("/x".into())));
        assert!(check_disks(&empty, true).is_ok() && check_disks(&full, false).is_ok());
        assert!(check_disks(&full, true).unwrap_err().contains("leave out the disks"));
        assert!(has_others(&full) && !has_others(&empty) && !has_others(&GuestSpec::new(image("/image"))));
    }

    #[test]
    fn every_file_of_grubs_makes_another_disk() {
        let dir = tempfile::tempdir().unwrap();
        let grub = pretended(dir.path(), Starter::Bios);
        let cache = Cache::new(dir.path().join("cache"), dir.path());
        let mut made = std::collections::BTreeSet::from([grub.medium(b"a", ("w", false), &cache).unwrap().path]);
        for name in ["kernel.img", "diskboot.img", "lzma_decompress.img", "ext2.mod", "moddep.lst"] {
            fs_err::write(grub.modules.join(name), format!("ext2: fat\n{name}\0prefix\0")).unwrap();
            assert!(made.insert(grub.medium(b"a", ("w", false), &cache).unwrap().path), "{name}");
        }
        assert!(made.insert(grub.medium(b"b", ("w", false), &cache).unwrap().path), "the archive");
        assert!(made.insert(grub.medium(b"b", ("w", true), &cache).unwrap().path), "beside other disks");
        fs_err::write(&grub.program, "#!/bin/sh\necho another version\n").unwrap();
        assert!(made.insert(grub.medium(b"b", ("w", false), &cache).unwrap().path), "the program");
    }
}
