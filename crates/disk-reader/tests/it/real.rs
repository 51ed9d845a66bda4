//! What is on them is found.

use belljar_disk_reader::{ContentKind, FileError, Loader, SystemKernel, Table};
use belljar_image::modules::{Feature, Presence};

use crate::{image, in_memory, initrd, look};

const UUID: &str = "11111111-2222-4333-8444-555555555555";

#[test]
fn each_file_system_gives_the_kernel_that_grub_would_boot() {
    for (name, kind, top, flags) in [
        ("ext4", ContentKind::Ext4, "", ""),
        ("ext3", ContentKind::Ext3, "", ""),
        ("ext2", ContentKind::Ext2, "", ""),
        ("xfs", ContentKind::Xfs, "", ""),
        ("btrfs", ContentKind::Btrfs, "/@", "rootflags=subvol=@ "),
    ] {
        let found = look(name);
        let [volume] = found.volumes.as_slice() else { panic!("{name}: {:?}", found.volumes) };
        let content = &volume.content;
        assert_eq!((content.kind, content.label.as_str(), content.uuid.as_str()), (kind, "fake", UUID), "{name}");
        assert_eq!((found.table, volume.unreadable.as_deref()), (Table::None, None), "{name}");
        assert_eq!((found.loader, found.notes.as_slice()), (Loader::Grub, [].as_slice()), "{name}");
        let titles: Vec<_> = found.entries.iter().map(|entry| entry.title.as_str()).collect();
        // "First" names its kernel by a link of the topmost directory.
        assert_eq!(titles, ["Fake Linux", "First", "Second"], "{name}");
        let entry = found.default_entry().unwrap();
        assert_eq!(entry.title, "Second", "{name}: the environment block says so");
        assert_eq!(
            entry.command_line,
            format!("root=UUID={UUID} ro {flags}console=tty0 console=ttyS0,115200"),
            "{name}"
        );
        assert_eq!(entry.from, format!("{top}/boot/grub/grub.cfg of the whole disk"));
        assert_eq!(entry.kernel.path, format!("{top}/boot/vmlinuz-6.1.0-9-amd64"), "{name}");
        assert!(!entry.guess);
        let [file] = entry.initrds.as_slice() else { panic!("{name}: {entry:?}") };
        assert!(found.read_file(file, 1 << 20).unwrap() == initrd(), "{name}");
        assert!(matches!(found.read_file(file, 1000), Err(FileError::TooLarge { size: 700_006, max: 1000 })));
        // The kernel of "First" is named by a link.
        assert_eq!(found.entries[1].kernel.path, entry.kernel.path, "{name}");
        let kernel = found.read_file(&entry.kernel, 1 << 20).unwrap();
        assert_eq!((kernel.len(), &kernel[0x202..0x206]), (42_560, &b"HdrS"[..]), "{name}");
    }
}

#[test]
fn a_table_of_efi_is_read_and_its_copy_where_it_is_broken() {
    let found = look("gpt");
    assert_eq!((found.table, found.has_boot_code), (Table::Gpt, true));
    let names: Vec<_> = found.volumes.iter().map(|volume| (volume.name.as_str(), volume.content.kind)).collect();
    assert_eq!(
        names,
        [("partition 1", ContentKind::Ext4), ("partition 14", ContentKind::Empty), ("partition 15", ContentKind::Fat)]
    );
    let root = found.volumes[0].partition.as_ref().unwrap();
    assert_eq!((root.name.as_str(), root.partuuid.as_str()), ("the root", "0a0a0a0a-0000-4000-8000-000000000001"));
    assert_eq!(found.volumes[2].content.uuid, "ABCD-EF01");
    assert_eq!(found.esp().map(|esp| esp.name.as_str()), Some("partition 15"));
    assert!(found.volumes[1].partition.as_ref().unwrap().is_bios_boot());
    assert_eq!(found.default_entry().unwrap().title, "Second");
    assert_eq!(found.notes, [""; 0], "the configuration on the EFI system partition leads to the same");

    // A byte of the first table's entries; then of both.
    let size = image("gpt").len() as u64;
    let look = |changes: &[(u64, u8)]| {
        let disk =
            belljar_disk_reader::Disk::of_bytes(image("gpt"), changes.to_vec(), belljar_disk_reader::Limits::default());
        belljar_disk_reader::inspect(&disk).unwrap()
    };
    let copy = look(&[(1024, 0x77)]);
    assert_eq!(copy.volumes.len(), 3);
    assert!(copy.notes[0].contains("its copy at the disk's end was read"), "{:?}", copy.notes);
    let none = look(&[(1024, 0x77), (size - 33 * 512, 0x77)]);
    assert!(none.notes[0].contains("checksum is wrong"), "{:?}", none.notes);
    let mut gone = vec![(512, 0)];
    gone.push((size - 512, 0));
    let none = look(&gone);
    assert!(none.notes[0].contains("has a GPT, of which nothing can be read"), "{:?}", none.notes);
}

#[test]
fn an_extended_partition_is_read() {
    let found = look("mbr");
    assert_eq!((found.table, found.has_boot_code), (Table::Mbr, false));
    let names: Vec<_> = found.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["partition 1", "partition 5", "partition 6"]);
    assert_eq!(found.volumes[1].partition.as_ref().unwrap().partuuid, "cafe0001-05");
    assert_eq!(found.volumes[1].content.kind, ContentKind::Ext2);
    assert_eq!(found.default_entry().unwrap().from, "/boot/grub/grub.cfg of partition 5");
}

#[test]
fn a_logical_volume_is_put_together() {
    let found = look("lvm");
    let names: Vec<_> = found.volumes.iter().map(|volume| (volume.name.as_str(), volume.content.kind)).collect();
    assert_eq!(names, [("partition 1", ContentKind::Lvm), ("the logical volume vg-0/root", ContentKind::Ext4)]);
    let striped =
        "the logical volume vg-0/striped cannot be read: it is over several stripes, and only linear ones are read";
    assert_eq!(found.notes, [striped]);
    let entry = found.default_entry().unwrap();
    assert!(found.read_file(&entry.initrds[0], 1 << 20).unwrap() == initrd());
}

#[test]
fn a_fat_of_each_width_is_read() {
    for (name, label) in [("fat12", "FAKE"), ("fat16", "FAKE"), ("fat32", "FAKE")] {
        let found = look(name);
        let volume = &found.volumes[0];
        assert_eq!((volume.content.kind, volume.content.uuid.as_str()), (ContentKind::Fat, "1234-5678"), "{name}");
        assert_eq!((volume.content.label.as_str(), volume.unreadable.as_deref()), (label, None), "{name}");
        let read = |path: &str| found.read_path(0, path, 1 << 20);
        assert_eq!(read("/EFI/BOOT/BOOTX64.EFI").unwrap(), initrd()[..9000], "{name}");
        assert_eq!(read("/efi/boot/bootx64.efi").unwrap().len(), 9000, "{name}");
        let text = String::from_utf8(read("/A Long Name of a directory/os-release.with.dots").unwrap()).unwrap();
        assert!(text.contains("Fake Linux 9"), "{name}");
        assert_eq!(read("/EFI/file number 37.txt").unwrap(), b"37\n", "{name}");
        assert!(matches!(read("/EFI/nothing"), Err(FileError::NotFound)), "{name}");
        assert!(matches!(read("/EFI"), Err(FileError::NotAFile)), "{name}");
        assert!(matches!(read("/EFI/BOOT/BOOTX64.EFI/x"), Err(FileError::NotADirectory)), "{name}");
        assert_eq!(found.list_path(0, "/EFI").unwrap().len(), 41, "{name}");
    }
}

#[test]
fn links_are_followed_within_the_file_system() {
    for name in ["ext4", "ext2", "xfs"] {
        let found = look(name);
        let read = |path: &str| found.read_path(0, path, 1 << 20);
        assert!(read("/deep/a/b/up").unwrap().starts_with(b"# a comment"), "{name}");
        assert!(read("/absolute/../absolute/os-release").unwrap().starts_with(b"NAME="), "{name}");
        assert!(read("/../../etc/./fstab").unwrap().starts_with(b"# a comment"), "{name}");
        assert!(matches!(read("/deep/loop-a"), Err(FileError::Links)), "{name}");
        assert!(matches!(read("/etc/fstab/x"), Err(FileError::NotADirectory)), "{name}");
        assert!(matches!(read(&"/etc/..".repeat(1000)), Err(FileError::LongPath)), "{name}");
        let names = found.list_path(0, "/many").unwrap();
        assert_eq!((names.len(), names[0].as_str()), (200, "a-name-that-takes-room-1"), "{name}");
    }
}

#[test]
fn entries_of_the_boot_loader_specification_are_grubs_menu() {
    let found = look("bls");
    assert_eq!((found.loader, found.notes.as_slice()), (Loader::Grub, [].as_slice()));
    let kernels: Vec<_> = found.entries.iter().map(|entry| entry.kernel.path.as_str()).collect();
    assert_eq!(kernels, ["/vmlinuz-6.12.1-200.fc41.x86_64", "/vmlinuz-6.9.1-1.fc41.x86_64", "/vmlinuz-0-rescue"]);
    let entry = found.default_entry().unwrap();
    assert_eq!(entry.title, "Fedora Linux (6.9.1-1.fc41.x86_64) 41 (Cloud Edition)", "the environment block has it");
    assert_eq!(entry.command_line, format!("root=UUID={UUID} ro rootflags=subvol=root console=ttyS0"));
    assert_eq!(found.read_file(&entry.initrds[0], 100).unwrap(), b"6.9.1-1.fc41.x86_64\n");
}

#[test]
fn other_loaders_are_read() {
    let found = look("sdboot");
    let entry = found.default_entry().unwrap();
    assert_eq!((found.loader, entry.title.as_str()), (Loader::SystemdBoot, "arch-fallback (6.12)"));
    assert_eq!((entry.command_line.as_str(), entry.initrds.len()), ("root=LABEL=x rw console=ttyS0", 1));
    assert_eq!(found.efi_programs(), ["BOOTX64.EFI"]);

    let found = look("uki");
    let entry = found.default_entry().unwrap();
    assert_eq!((found.loader, entry.title.as_str()), (Loader::UnifiedKernel, "Fake 1 (6.12.1)"));
    assert_eq!(entry.command_line, "root=LABEL=x quiet");
    assert_eq!(found.read_file(&entry.initrds[0], 100).unwrap(), b"an initrd");
    let kernel = found.read_file(&entry.kernel, 1 << 20).unwrap();
    assert_eq!((kernel.len(), &kernel[0x202..0x206]), (42_560, &b"HdrS"[..]));

    let found = look("extlinux");
    let entry = found.default_entry().unwrap();
    assert_eq!((found.loader, entry.title.as_str()), (Loader::Syslinux, "Linux virt"));
    assert_eq!(entry.command_line, format!("root=UUID={UUID} modules=sd-mod,ext4 quiet"));
    assert_eq!(
        (entry.kernel.path.as_str(), entry.initrds[0].path.as_str()),
        ("/boot/vmlinuz-virt", "/boot/initramfs-virt")
    );
    assert_eq!(found.system().unwrap().unwrap().name.as_deref(), Some("Alpine Linux v3.23"));
}

#[test]
fn a_kernel_outside_of_its_system_is_known_by_its_modules() {
    let found = look("outside");
    let system = found.system().unwrap().unwrap();
    let paths: Vec<_> = system.kernels.iter().map(|kernel| kernel.path.as_str()).collect();
    // Not the directory that a removed kernel left.
    assert_eq!(paths, ["/lib/modules/6.12.9-1-amd64", "/lib/modules/6.1.0-9-amd64"]);
    // By the release that is in the unified image's kernel, for its name is another, and it is not the newest.
    let booting = found.booting_kernel(&system).unwrap();
    assert_eq!(booting.release.as_ref().unwrap().as_str(), "6.1.0-9-amd64");
    let has = |kernel: &SystemKernel, feature| kernel.feature(feature);
    assert_eq!(has(booting, Feature::NineP), Some(Presence::Module));
    assert_eq!(has(&system.kernels[0], Feature::NineP), Some(Presence::Absent));
    // One in the system itself, by its file's name too.
    let found = look("gpt");
    let system = found.system().unwrap().unwrap();
    assert_eq!(found.booting_kernel(&system).unwrap().path, "/boot/vmlinuz-6.1.0-9-amd64");
    // The boot loader starts a kernel that is no kernel of the system's.
    assert!(look("uki").system().unwrap().is_none());
}

#[test]
fn a_disk_of_nothing_has_nothing() {
    for size in [0, 1, 511, 512, 4096, 1 << 20] {
        let found = belljar_disk_reader::inspect(&in_memory(vec![0; size].into())).unwrap();
        assert_eq!(found.volumes[0].content.kind, ContentKind::Empty, "{size}");
        assert_eq!((found.default_entry(), found.loader, found.table), (None, Loader::None, Table::None));
    }
}

#[test]
fn what_cannot_be_read_is_known() {
    let kind = |at: usize, word: &[u8]| {
        let mut bytes = vec![0; 200 << 10];
        bytes[at..at + word.len()].copy_from_slice(word);
        belljar_disk_reader::inspect(&in_memory(bytes.into())).unwrap().volumes[0].content.kind
    };
    assert_eq!(kind(0, b"LUKS\xba\xbe\0\x02"), ContentKind::Luks);
    assert_eq!(kind(512, b"LABELONE                LVM2 001"), ContentKind::Lvm);
    assert_eq!(kind(4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"), ContentKind::Md);
    assert_eq!(kind(4086, b"SWAPSPACE2"), ContentKind::Swap);
    assert_eq!(kind(0x8001, b"CD001"), ContentKind::Iso9660);
    assert_eq!(kind(0, b"hsqs"), ContentKind::Squashfs);
    assert_eq!(kind(3, b"-FVE-FS-"), ContentKind::Bitlocker);
    assert_eq!(kind(100, b"x"), ContentKind::Unknown);
}

#[test]
fn the_system_is_known() {
    use belljar_disk_reader::{InitKind, RootPassword};
    use belljar_image::kernel::Arch;
    use belljar_image::modules::{Feature, Presence};
    for (name, root) in [
        ("ext4", "the whole disk"),
        ("xfs", "the whole disk"),
        ("btrfs", "the whole disk, subvolume @"),
        ("gpt", "partition 1"),
        ("mbr", "partition 5"),
        ("lvm", "the logical volume vg-0/root"),
    ] {
        let found = look(name);
        let system = found.system().unwrap().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(
            (system.root.as_str(), system.name.as_deref(), system.id.as_str()),
            (root, Some("Fake Linux 9 (nine)"), "fake"),
            "{name}"
        );
        let init = system.init.as_ref().unwrap();
        assert_eq!(
            (init.kind, init.version, init.path.as_str()),
            (InitKind::Systemd, Some(252), "/usr/lib/systemd/systemd"),
            "{name}"
        );
        assert_eq!((system.arch, system.root_password), (Some(Arch::X86_64), RootPassword::Locked), "{name}");
        let [kernel] = system.kernels.as_slice() else { panic!("{name}: {system:?}") };
        assert_eq!(kernel.release.as_ref().unwrap().as_str(), "6.1.0-9-amd64", "{name}");
        assert_eq!(kernel.arch, Some(Arch::X86_64));
        let features = [Feature::NineP, Feature::FileSystem("fuse"), Feature::VirtioBlk, Feature::Overlay]
            .map(|f| kernel.feature(f).unwrap());
        assert_eq!(features, [Presence::Module, Presence::Module, Presence::Builtin, Presence::Absent], "{name}");
        assert_eq!(found.obstacles(), [], "{name}");
        // No hash is kept anywhere.
        assert!(!format!("{found:?} {system:?}").contains("$y$"), "{name}");
    }
}

#[test]
fn what_no_machine_boots_from_is_told() {
    use belljar_disk_reader::Obstacle;
    let obstacles = |bytes: Vec<u8>| belljar_disk_reader::inspect(&in_memory(bytes.into())).unwrap().obstacles();
    assert_eq!(obstacles(vec![0; 1 << 20]), [Obstacle::Empty]);
    let mut luks = vec![0; 1 << 20];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    let [encrypted] = obstacles(luks).try_into().unwrap();
    assert!(encrypted.to_string().starts_with("the whole disk is encrypted (LUKS)"), "{encrypted}");
    let swap = |at: usize| {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + 10].copy_from_slice(b"SWAPSPACE2");
        bytes
    };
    assert_eq!(obstacles(swap(4086)), [Obstacle::NothingToBoot]);
    // A partition, and a file system, of which half is there.
    for (name, what) in [
        ("gpt", "partition 15"),
        ("ext4", "the ext4 file system of the whole disk"),
        ("xfs", "the XFS file system of the whole disk"),
        ("btrfs", "the btrfs file system of the whole disk"),
    ] {
        let whole = image(name);
        let found = obstacles(whole[..whole.len() * 5 / 8].to_vec());
        let cut = |obstacle: &Obstacle| matches!(obstacle, Obstacle::Truncated { what: cut, .. } if cut == what);
        assert!(found.iter().any(cut), "{name}: {found:?}");
    }
}

#[test]
fn a_log_that_is_not_read_is_told() {
    let found = look("btrfs-log");
    assert!(found.notes[0].starts_with("the whole disk: the btrfs was not unmounted"), "{:?}", found.notes);
    assert_eq!(found.default_entry().unwrap().title, "Second");
}

/// A look at a disk belongs on a thread that may block, and its outcome to another.
#[test]
fn what_was_found_can_go_to_another_thread() {
    let found = look("extlinux");
    let entry = found.default_entry().unwrap().clone();
    let initrd = std::thread::spawn(move || found.read_file(&entry.initrds[0], 100).unwrap()).join().unwrap();
    assert_eq!(initrd, b"initramfs\n");
}
