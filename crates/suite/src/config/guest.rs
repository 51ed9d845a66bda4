//! A guest in `belljar.toml`: its keys, what is wrong with them together, and the guest that they describe.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{
    Accel, Access, BootSource, BusChoice, ContainerSource, Devices, DirectoryContent, DiskContent, DiskKey, DiskSpec,
    DiskTraits, Display, Firmware, GuestSpec, ImageRef, Login, Need, NicMode, NumaNode, OopsPolicy, Password,
    PullPolicy, Secret, ShareKind, Sound, Source, Topology, Watchdog, WorkspaceMode,
    rules::{self, Key, Notation},
};
use toml::Spanned;

use super::{
    Guest,
    check::{contradiction, times},
    guards::{self, GuardsTable},
    layers::{layer, plain, unsigned},
    resolve::below,
    typed::{CpuList, Cpus, EnvText, Paths, PortName},
};
use crate::{
    settings::Layer,
    toml_tree::{
        DiskWwn, FilePath, GuestPath, Int, Label, List, Map, Memory, MountAt, OneOrMany, Sectors, Serial, Size, Table,
        Text, TimeLimit, User, VarName, Walk, table, word_value,
    },
};

word_value!(
    Accel,
    Access,
    BusChoice,
    Display,
    Firmware,
    Need,
    NicMode,
    PullPolicy,
    OopsPolicy,
    ShareKind,
    Sound,
    Watchdog,
    WorkspaceMode
);

table! {
    /// A guest: the machine under test. Without image, kernel and rootfs it is this host's own userland.
    GuestTable is "a guest" {
        /// Run in a container of this image, of podman or docker: a name that the engine knows, or ./PATH of an image on disk.
        "container" container: Text = "(none)",
        /// Whether the engine may fetch the image of container, or of rootfs: never, if it is missing, or always.
        "pull" pull: PullPolicy = "\"never\"",
        /// The container's processes may do what the engine's user may do on the host; else they have the rights that the engine gives.
        "privileged" privileged: bool = "false",
        /// The image's systemd is the container's first process; tests begin when it says that the system is up.
        "systemd" systemd: bool = "false",
        /// Boot this disk image (qcow2, raw, vmdk, vdi, vhdx, vpc), unmodified; nothing is written to it.
        "image" image: FilePath = "(none)",
        /// Take the image as being of this format.
        "image-format" image_format: Text = "(what qemu-img says)",
        /// How the image is attached; auto is virtio, or what the image has a driver for where it has none for that.
        "boot-bus" boot_bus: BusChoice = "\"auto\"",
        /// The disk that it boots from is a lab disk, called boot: Belljar serves it itself, so that a test can make it fail (see the manual, "Breaking things"). With image.
        "boot-lab" boot_lab: bool = "false",
        /// What starts the image's boot loader: the machine's BIOS, UEFI (OVMF) with variables of its own for each guest, or (auto) what the image has one for.
        "firmware" firmware: Firmware = "\"auto\"",
        /// Boot this kernel: with initrd its user space, else with rootfs.
        "kernel" kernel: FilePath = "(the newest installed one that can do it)",
        /// A guest for each of these kernels, named after its version (NAME-6.1.0-56-amd64): files, or patterns of them; NAME stands for all of them. With rootfs.
        "kernels" kernels: OneOrMany<FilePath> = "(none)",
        /// The initramfs to boot the kernel with.
        "initrd" initrd: FilePath = "(none)",
        /// Use this directory as the guest's root, read-only under a writable layer; or the files of a container image: container:NAME of an engine's, container:./PATH of one on disk.
        "rootfs" rootfs: FilePath = "\"/\"",
        /// The kernel's modules, such as /lib/modules/6.1.0-56-amd64.
        "modules" modules: FilePath = "(found by the kernel's version)",
        /// Words for the kernel's command line.
        "append" append: OneOrMany<Text> = "[]",
        /// How to get in: what the serial line offers, or Belljar's own init (only with kernel).
        "access" access: Access = "\"auto\"",
        /// Log in on the serial console as this user.
        "login" login: LoginTable = "(root without a password, where a login is asked for)",
        /// The private key, without a passphrase, by which the user of the login, or root, is let in over SSH, where nothing else lets anybody in or access is ssh.
        "ssh-key" ssh_key: FilePath = "(none)",
        /// The guest's memory.
        "memory" memory: Memory = "\"1GiB\"",
        /// The guest's processors.
        "cpus" cpus: Cpus = "1",
        /// Processors that a test can plug in (belljar-ctl plug cpu).
        "spare-cpus" spare_cpus: Cpus = "(none)",
        /// Memory that a test can plug in, by modules of a multiple of 128 MiB (belljar-ctl plug memory SIZE).
        "spare-memory" spare_memory: Size = "(none)",
        /// QEMU's machine type.
        "machine" machine: Text = "(Belljar's choice)",
        /// QEMU's CPU model.
        "cpu" cpu: Text = "(Belljar's choice)",
        /// KVM or emulation.
        "accel" accel: Accel = "(KVM if a probe shows that it runs a guest)",
        /// Extra disks, thrown away with the guest. Those of suites and headers come after them.
        "disks" disks: List<DiskTable> = "[]",
        /// Network: none, isolated (DHCP answers, nothing is reachable), user (the outside world by NAT). A container has none unless it is asked for.
        "nic" nic: NicMode = "\"isolated\"",
        /// What a fault that the guest's kernel reports does: the guest counts as crashed, or it is noted.
        "oops" oops: OopsPolicy = "\"crash\"",
        /// Keep the guest's memory when its kernel panics, or fails otherwise and that is a crash: packed, for crash(8), as memory.kdump beside console.log, if it is no larger than this.
        "panic-dump" panic_dump: Size = "(none)",
        /// What a test is told of while it runs (core dumps, kernel warnings, failed units and the like), and whether it fails for that.
        "guards" guards: GuardsTable = "(each \"fail\")",
        /// What carries the workspace and the output directory into the guest: 9p where its kernel has that, else FUSE, else a disk; or one by name (9p, fuse, disk, virtiofs).
        "share" share: ShareKind = "\"auto\"",
        /// Give it a TPM 2.0, a new one each time it boots (swtpm); such a guest has no template.
        "tpm" tpm: bool = "false",
        /// Give it a watchdog, which resets the machine if the guest does not feed it in time: auto is what is usual on its platform (i6300esb, on s390x diag288), or one by name (i6300esb, ib700, itco, diag288).
        "watchdog" watchdog: Watchdog = "(none)",
        /// Give it a balloon, by which a test takes memory from the guest (`belljar-ctl balloon 256M`). Such a guest has no template.
        "balloon" balloon: bool = "false",
        /// Give it a graphics card, of which a test takes pictures (`belljar-ctl screenshot NAME`): std, virtio, bochs or cirrus. It is shown nowhere.
        "display" display: Display = "(none; for an image on a PC one on the ISA bus)",
        /// Give it a sound card that nobody hears: hda, ac97, es1370 or virtio.
        "sound" sound: Sound = "(none)",
        /// Whether it has a source of randomness (virtio-rng).
        "rng" rng: bool = "true",
        /// How its processors are put together: as many as `cpus` says.
        "cpu-topology" cpu_topology: TopologyTable = "(QEMU's choice)",
        /// Further serial ports by name, two at most: what the guest writes to one is in serial-NAME.log beside console.log.
        "serial-ports" serial_ports: List<PortName> = "[]",
        /// Nodes of processors and memory (NUMA), which have all of the guest's between them. Such a guest has no template.
        "numa" numa: List<NumaTable> = "[]",
        /// Modules of persistent memory (NVDIMM) of these sizes: they begin empty, keep what is written over a reboot, and are thrown away. Such a guest has no template.
        "pmem" pmem: List<Size> = "[]",
        /// Give up on the boot after this time.
        "boot-timeout" boot_timeout: TimeLimit = "(2m, 20m without KVM, sooner if nothing moves)",
        /// What of the host the guest does not see in its root directory and workspace, beside keys and tokens in home directories,
        /// processes and temporary files: paths, which may begin with `~`, and whose last part may end in `*`.
        "hide" hide: List<FilePath> = "[]",
        /// Passed to QEMU as they are, after all others.
        "qemu-args" qemu_args: List<Text> = "[]",
        /// Where the guest sees the workspace.
        "mount-at" mount_at: MountAt = "\"/mnt/hostos\"",
        /// What becomes of the guest's writes to the workspace.
        "workspace-mode" workspace_mode: WorkspaceMode = "\"cow\"",
        /// Give up on a test after this time.
        "timeout" timeout: TimeLimit = "\"10m\"",
        /// Call a test slow after this time.
        "slow-timeout" slow_timeout: TimeLimit = "\"1m\"",
        /// Variables for tests, on top of those of lower places.
        "env" env: Map<VarName, EnvText> = "{}",
        /// Directory in the guest that tests run in.
        "cwd" cwd: GuestPath = "(the workspace)",
        /// User in the guest that tests run as.
        "user" user: User = "(the user that Belljar got in as)",
        /// Most that a test may leave in its output directory.
        "max-output" max_output: Size = "(1GiB, or a quarter of what is free)",
        /// Most that a test may write to the guest's disks.
        "max-disk" max_disk: Size = "(half of what is free)",
    }
}

table! {
    /// A node of processors and memory.
    NumaTable is "a NUMA node" {
        /// Its processors, by their numbers, such as "0-1,4".
        "cpus" cpus: CpuList = "(none)",
        /// Its memory.
        "memory" memory: Size = "(must be given)",
        /// How far it is to each node, in their order, itself (10) included.
        "distances" distances: List<Int<10, 255>> = "(QEMU's choice)",
    }
}

table! {
    /// How processors are put together.
    TopologyTable is "a topology of processors" {
        /// Processor packages.
        "sockets" sockets: Cpus = "1",
        /// Cores of each package.
        "cores" cores: Cpus = "1",
        /// Threads of each core.
        "threads" threads: Cpus = "1",
    }
}

table! {
    /// A login.
    LoginTable is "a login" {
        /// The user's name.
        "user" user: User = "\"root\"",
        /// The user's password.
        "password" password: Secret = "(none)",
        /// The environment variable that holds the password.
        "password-env" password_env: VarName = "(none)",
    }
}

table! {
    /// An extra disk. What is written to it is thrown away.
    DiskTable is "a disk" {
        /// An empty disk of this size; with directory the size of the disk.
        "size" size: Size = "(none)",
        /// A disk with what is in this image, which is not written to.
        "file" file: FilePath = "(none)",
        /// A disk with an ext4 file system of this directory's files, as they are when a guest is first prepared; it is not written to.
        "directory" directory: FilePath = "(none)",
        /// The label of that file system: /dev/disk/by-label/LABEL.
        "label" label: Label = "(none)",
        /// The serial number by which the guest finds the disk: /dev/disk/by-id/virtio-SERIAL.
        "serial" serial: Serial = "(none)",
        /// How it is attached; auto is virtio, or the bus of the boot disk where the image's kernel has no virtio.
        "bus" bus: BusChoice = "\"auto\"",
        /// Whether it is a lab disk: one that Belljar serves itself, so that a test can make it fail (see the manual, "Breaking things").
        "lab" lab: bool = "false",
        /// Bytes of its logical sectors, the least that can be read and written: 512 or 4096 (not on SATA and IDE).
        "sector-size" sector_size: Sectors = "512",
        /// Bytes of its physical sectors, which a power cut does not tear: 512 or 4096.
        "physical-sector-size" physical_sector_size: Sectors = "(sector-size)",
        /// Its World Wide Name, on SCSI, SATA and IDE: the guest finds the disk as /dev/disk/by-id/wwn-0x….
        "wwn" wwn: DiskWwn = "(none)",
        /// Whether it refuses writes; on virtio, SCSI and USB.
        "read-only" read_only: bool = "false",
        /// Whether it turns; on SCSI, SATA and IDE.
        "rotational" rotational: bool = "(what the bus's disks are)",
        /// Whether it has a cache that holds what was written until it is flushed. One on NVMe always has.
        "write-cache" write_cache: bool = "true",
        /// Whether the guest can have a single write be durable before it is answered (FUA); on SCSI and USB. One on virtio, SATA and IDE never can.
        "fua" fua: bool = "false",
        /// Whether it takes discards. One on NVMe always does, one on USB never.
        "discard" discard: bool = "true",
        /// In which units it takes discards; on virtio, SCSI and NVMe.
        "discard-granularity" discard_granularity: Size = "(QEMU's choice)",
        /// Whether its medium can be taken out; on SCSI and USB.
        "removable" removable: bool = "false",
        /// By how many paths the guest has it, on SCSI: each is a disk on a controller of its own, with the same serial number and name (multipath).
        "paths" paths: Paths = "1",
        /// Whether it is not in the machine until a test plugs it in (belljar-ctl plug disk SERIAL); not on SATA and IDE.
        "unplugged" unplugged: bool = "false",
    }
}

/// Says what is wrong with keys that are right by themselves.
pub(super) fn check(table: &GuestTable, walk: &mut Walk) {
    check_source(table, walk);
    if let Some(login) = &table.login {
        let login = login.get_ref();
        if let (Some(_), Some(env)) = (&login.password, &login.password_env) {
            let message = "`password` and `password-env` are both given";
            let help = "keep one of them; `password-env` keeps the password out of this file";
            contradiction(walk, env.span(), message, help);
        }
    }
    check_disks(table.disks.as_ref(), &BTreeSet::new(), walk);
    guards::check(table.guards.as_ref(), walk);
    for node in table.numa.iter().flat_map(|nodes| &nodes.get_ref().0) {
        if !node.get_ref().seen.contains("memory") {
            walk.missing(node.span(), NumaTable::NOUN, "memory", "memory = \"512MiB\"");
        }
    }
    times(table.timeout.as_ref(), table.slow_timeout.as_ref(), walk);
}

/// Whether the keys that say what a guest boots from go together.
fn check_source(table: &GuestTable, walk: &mut Walk) {
    let is_image = image_root(table, Path::new("")).is_some();
    let has = |key: Key| match key {
        Key::RootImage => is_image,
        key => table.seen.contains(key.word()),
    };
    let span = |key| match key {
        Key::Image => table.image.as_ref().map(Spanned::span),
        Key::ImageFormat => table.image_format.as_ref().map(Spanned::span),
        Key::BootBus => table.boot_bus.as_ref().map(Spanned::span),
        Key::BootLab => table.boot_lab.as_ref().map(Spanned::span),
        Key::Firmware => table.firmware.as_ref().map(Spanned::span),
        Key::Kernels => table.kernels.as_ref().map(Spanned::span),
        Key::Kernel => table.kernel.as_ref().map(Spanned::span),
        Key::Initrd => table.initrd.as_ref().map(Spanned::span),
        Key::Rootfs | Key::RootImage => table.rootfs.as_ref().map(Spanned::span),
        Key::Modules => table.modules.as_ref().map(Spanned::span),
        Key::Append => table.append.as_ref().map(Spanned::span),
        Key::Access => table.access.as_ref().map(Spanned::span),
        Key::Login => table.login.as_ref().map(Spanned::span),
        Key::Container => table.container.as_ref().map(Spanned::span),
        Key::Pull => table.pull.as_ref().map(Spanned::span),
        Key::Privileged => table.privileged.as_ref().map(Spanned::span),
        Key::Systemd => table.systemd.as_ref().map(Spanned::span),
        Key::Tpm => table.tpm.as_ref().map(Spanned::span),
        Key::Watchdog => table.watchdog.as_ref().map(Spanned::span),
        Key::Balloon => table.balloon.as_ref().map(Spanned::span),
        Key::Display => table.display.as_ref().map(Spanned::span),
        Key::Sound => table.sound.as_ref().map(Spanned::span),
        Key::Rng => table.rng.as_ref().map(Spanned::span),
        Key::CpuTopology => table.cpu_topology.as_ref().map(Spanned::span),
        Key::SerialPorts => table.serial_ports.as_ref().map(Spanned::span),
        Key::Numa => table.numa.as_ref().map(Spanned::span),
        Key::Pmem => table.pmem.as_ref().map(Spanned::span),
        Key::PanicDump => table.panic_dump.as_ref().map(Spanned::span),
        Key::Machine => table.machine.as_ref().map(Spanned::span),
        Key::Cpu => table.cpu.as_ref().map(Spanned::span),
        Key::QemuArgs => table.qemu_args.as_ref().map(Spanned::span),
        Key::Share => table.share.as_ref().map(Spanned::span),
        Key::SshKey => table.ssh_key.as_ref().map(Spanned::span),
    };
    let access = table.access.as_ref().map(|a| *a.get_ref());
    for conflict in rules::source(has, access, Notation::Toml) {
        // A value that is wrong by itself was spoken of already.
        if let Some(span) = span(conflict.key) {
            contradiction(walk, span, &conflict.message, &conflict.help);
        }
    }
}

/// Checks disks; gives back their serial numbers together with those that were there before.
pub(super) fn check_disks<'a>(
    list: Option<&'a Spanned<List<DiskTable>>>,
    before: &BTreeSet<&'a str>,
    walk: &mut Walk,
) -> BTreeSet<&'a str> {
    let mut serials = before.clone();
    for disk in list.iter().flat_map(|l| &l.get_ref().0) {
        let span = disk.span();
        let disk = disk.get_ref();
        match (disk.seen.contains("size"), disk.seen.contains("file"), disk.seen.contains("directory")) {
            (_, true, true) => {
                let help = "`file` makes a disk with what is in an image, `directory` one with a file system of its files; keep one of them";
                contradiction(walk, span.clone(), "a disk has both `file` and `directory`", help);
            }
            (true, true, false) => {
                let help = "`size` makes an empty disk, `file` one with what is in an image; keep one of them";
                contradiction(walk, span.clone(), "a disk has both `size` and `file`", help);
            }
            (false, false, false) => {
                walk.missing(span.clone(), DiskTable::NOUN, "size", "size = \"1GiB\", or file = \"disk.qcow2\"");
            }
            _ => {}
        }
        if let Some(label) = disk.label.as_ref().filter(|_| !disk.seen.contains("directory")) {
            let message = "`label` is that of a file system which is made of a `directory`, and there is none";
            contradiction(walk, label.span(), message, "leave it out, or give `directory`");
        }
        check_kind(disk, walk);
        if let Some(serial) = &disk.serial
            && !serials.insert(&serial.get_ref().0)
        {
            let message = format!("two disks of a guest have the serial number {:?}", serial.get_ref().0);
            contradiction(walk, serial.span(), &message, "give each its own; the guest finds it by that");
        }
    }
    serials
}

/// Says what does not go together of the kind of a disk.
fn check_kind(disk: &DiskTable, walk: &mut Walk) {
    // Which bus it has in the end is not known here where none is asked for.
    let bus = disk.bus.as_ref().and_then(|bus| bus.get_ref().asked());
    let size = disk.size.as_ref().map(|size| size.get_ref().0);
    let has_serial = disk.seen.contains("serial") || disk.lab.as_ref().is_some_and(|lab| *lab.get_ref());
    for conflict in traits(disk).conflicts(size, has_serial, bus) {
        let span = match conflict.key {
            DiskKey::SectorSize => disk.sector_size.as_ref().map(Spanned::span),
            DiskKey::PhysicalSectorSize => disk.physical_sector_size.as_ref().map(Spanned::span),
            DiskKey::Wwn => disk.wwn.as_ref().map(Spanned::span),
            DiskKey::ReadOnly => disk.read_only.as_ref().map(Spanned::span),
            DiskKey::Rotational => disk.rotational.as_ref().map(Spanned::span),
            DiskKey::WriteCache => disk.write_cache.as_ref().map(Spanned::span),
            DiskKey::Fua => disk.fua.as_ref().map(Spanned::span),
            DiskKey::Discard => disk.discard.as_ref().map(Spanned::span),
            DiskKey::DiscardGranularity => disk.discard_granularity.as_ref().map(Spanned::span),
            DiskKey::Removable => disk.removable.as_ref().map(Spanned::span),
            DiskKey::Paths => disk.paths.as_ref().map(Spanned::span),
            DiskKey::Unplugged => disk.unplugged.as_ref().map(Spanned::span),
        };
        let span = span.unwrap_or_else(|| disk.span.clone());
        contradiction(walk, span, &conflict.message, &conflict.help);
    }
}

/// Which kind of disk a table asks for.
fn traits(disk: &DiskTable) -> DiskTraits {
    DiskTraits {
        sector_size: disk.sector_size.as_ref().map(|size| size.get_ref().0),
        physical_sector_size: disk.physical_sector_size.as_ref().map(|size| size.get_ref().0),
        wwn: disk.wwn.as_ref().map(|wwn| wwn.get_ref().0),
        read_only: plain(&disk.read_only).unwrap_or_default(),
        rotational: plain(&disk.rotational),
        write_cache: plain(&disk.write_cache),
        fua: plain(&disk.fua),
        discard: plain(&disk.discard),
        discard_granularity: disk.discard_granularity.as_ref().map(|size| size.get_ref().0),
        removable: plain(&disk.removable).unwrap_or_default(),
        paths: plain(&disk.paths).map(unsigned),
        unplugged: plain(&disk.unplugged).unwrap_or_default(),
    }
}

/// The guest that a table describes, with paths below `dir`.
pub(super) fn resolve(name: &str, table: &GuestTable, dir: &Path) -> Guest {
    let layer = layer_of(table);
    let mut spec = GuestSpec::new(source(table, dir));
    let disks = disks(&table.disks, dir).unwrap_or_default();
    spec.hardware = Layer::merge([&layer]).settle(&disks).1;
    spec.firmware = table.firmware.as_ref().map(|f| *f.get_ref()).unwrap_or_default();
    spec.machine = plain(&table.machine);
    spec.cpu = plain(&table.cpu);
    spec.accel = table.accel.as_ref().map(|a| *a.get_ref());
    spec.append = plain(&table.append).unwrap_or_default();
    spec.qemu_args = plain(&table.qemu_args).unwrap_or_default().into_iter().map(Into::into).collect();
    spec.login = table.login.as_ref().map(|l| login(l.get_ref()));
    spec.ssh_key = table.ssh_key.as_ref().map(|k| of_host(dir, &k.get_ref().0));
    spec.oops = table.oops.as_ref().map(|o| *o.get_ref()).unwrap_or_default();
    spec.panic_dump = plain(&table.panic_dump);
    spec.share = table.share.as_ref().map(|s| *s.get_ref()).unwrap_or_default();
    spec.tpm = plain(&table.tpm).unwrap_or_default();
    spec.devices = devices(table);
    spec.boot_timeout = plain(&table.boot_timeout);
    spec.hide = table.hide.iter().flat_map(|l| &l.get_ref().0).map(|p| of_host(dir, &p.get_ref().0)).collect();
    spec.mount_at = plain(&table.mount_at).unwrap_or(spec.mount_at);
    Guest { name: name.to_owned(), family: None, spec, layer }
}

fn numa_node(table: &NumaTable) -> NumaNode {
    let distances = plain(&table.distances).unwrap_or_default();
    NumaNode {
        cpus: table.cpus.as_ref().and_then(|cpus| NumaNode::cpus(&cpus.get_ref().0).ok()).unwrap_or_default(),
        memory: table.memory.as_ref().map(|memory| memory.get_ref().0).unwrap_or_default(),
        distances: distances.into_iter().filter_map(|distance| u8::try_from(distance).ok()).collect(),
    }
}

/// What devices it asks for beside disks and the card.
fn devices(table: &GuestTable) -> Devices {
    let topology = table.cpu_topology.as_ref().map(|topology| {
        let topology = topology.get_ref();
        let of = |count: &Option<Spanned<Cpus>>| plain(count).map_or(1, unsigned);
        Topology { sockets: of(&topology.sockets), cores: of(&topology.cores), threads: of(&topology.threads) }
    });
    Devices {
        watchdog: table.watchdog.as_ref().map(|watchdog| *watchdog.get_ref()),
        balloon: plain(&table.balloon).unwrap_or_default(),
        display: table.display.as_ref().map(|display| *display.get_ref()),
        sound: table.sound.as_ref().map(|sound| *sound.get_ref()),
        rng: plain(&table.rng).unwrap_or(true),
        topology,
        pmem: plain(&table.pmem).unwrap_or_default(),
        serial_ports: table
            .serial_ports
            .iter()
            .flat_map(|l| &l.get_ref().0)
            .map(|name| name.get_ref().0.clone())
            .collect(),
        numa: table.numa.iter().flat_map(|nodes| &nodes.get_ref().0).map(|node| numa_node(node.get_ref())).collect(),
    }
}

/// A path of the host, of which a `~` at the beginning is for later.
fn of_host(dir: &Path, path: &Path) -> PathBuf {
    if path.starts_with("~") { path.to_owned() } else { dir.join(path) }
}

fn source(table: &GuestTable, dir: &Path) -> Source {
    let access = table.access.as_ref().map(|a| *a.get_ref()).unwrap_or_default();
    let modules = below(dir, &table.modules);
    if let Some(image) = plain(&table.container) {
        let pull = table.pull.as_ref().map(|p| *p.get_ref()).unwrap_or_default();
        let image = ImageRef::parse(&image, dir);
        let [privileged, systemd] = [&table.privileged, &table.systemd].map(|key| plain(key).unwrap_or_default());
        return ContainerSource { image, pull, privileged, systemd }.into();
    }
    let kernel = below(dir, &table.kernel);
    if let Some(image) = image_root(table, dir) {
        let pull = table.pull.as_ref().map(|p| *p.get_ref()).unwrap_or_default();
        return BootSource::ContainerImage { image, pull, kernel, modules, access }.into();
    }
    if let Some(path) = below(dir, &table.image) {
        let bus = table.boot_bus.as_ref().map(|b| *b.get_ref()).unwrap_or_default();
        return BootSource::Image { path, format: plain(&table.image_format), bus, access }.into();
    }
    match (kernel, below(dir, &table.initrd)) {
        (Some(kernel), Some(initrd)) => BootSource::Initramfs { kernel, initrd, modules, access }.into(),
        (kernel, _) => BootSource::RootDir { root: below(dir, &table.rootfs), kernel, modules }.into(),
    }
}

/// The container image that is to be the root, if one is.
fn image_root(table: &GuestTable, dir: &Path) -> Option<ImageRef> {
    ImageRef::of_rootfs(&table.rootfs.as_ref()?.get_ref().0, dir)
}

fn login(table: &LoginTable) -> Login {
    let password = match (&table.password, &table.password_env) {
        (_, Some(name)) => Password::Env(name.get_ref().0.clone()),
        (Some(password), None) => Password::Given(password.get_ref().clone()),
        (None, None) => Password::None,
    };
    Login { user: plain(&table.user).unwrap_or_else(|| "root".to_owned()), password }
}

/// Disks with their files below `dir`; those that are wrong are left out.
pub(super) fn disks(list: &Option<Spanned<List<DiskTable>>>, dir: &Path) -> Option<Vec<DiskSpec>> {
    let list = list.as_ref()?.get_ref();
    let disk = |disk: &Spanned<DiskTable>| {
        let disk = disk.get_ref();
        let size = disk.size.as_ref().map(|size| size.get_ref().0);
        let content = match (&disk.directory, size, &disk.file) {
            (Some(directory), size, _) => DiskContent::Directory(DirectoryContent {
                path: dir.join(&directory.get_ref().0),
                size,
                label: disk.label.as_ref().map(|label| label.get_ref().0.clone()),
            }),
            (None, Some(size), _) => DiskContent::Empty(size),
            (None, None, Some(file)) => DiskContent::Image(dir.join(&file.get_ref().0)),
            (None, None, None) => return None,
        };
        Some(DiskSpec {
            content,
            serial: disk.serial.as_ref().map(|s| s.get_ref().0.clone()),
            bus: disk.bus.as_ref().map(|b| *b.get_ref()).unwrap_or_default(),
            lab: plain(&disk.lab).unwrap_or_default(),
            traits: traits(disk),
        })
    };
    Some(list.0.iter().filter_map(disk).collect())
}

/// What a guest says of tests on it.
fn layer_of(table: &GuestTable) -> Layer {
    Layer {
        memory: plain(&table.memory),
        cpus: plain(&table.cpus).map(unsigned),
        spare_cpus: plain(&table.spare_cpus).map(unsigned),
        spare_memory: plain(&table.spare_memory),
        guards: guards::guards(&table.guards),
        nic: plain(&table.nic).or_else(|| table.container.as_ref().map(|_| NicMode::None)),
        ..layer!(table: timeout, slow_timeout, workspace_mode, boot_lab, cwd, user, max_output, max_disk)
    }
}

#[cfg(test)]
mod tests {
    use belljar_guest_spec::{DEFAULT_MEMORY, DEFAULT_MOUNT_AT, Hardware, values};

    use super::*;

    #[test]
    fn the_defaults_that_are_told_are_those_that_hold() {
        let told = |name: &str| {
            let key = GuestTable::keys().into_iter().find(|key| key.name == name).unwrap();
            key.default.trim_matches('"').to_owned()
        };
        let hardware = Hardware::default();
        assert_eq!(values::memory(&told("memory")), Ok(DEFAULT_MEMORY));
        assert_eq!((told("cpus"), told("nic")), (hardware.cpus.to_string(), hardware.nic.to_string()));
        assert_eq!(told("mount-at"), DEFAULT_MOUNT_AT);
        assert_eq!(
            (told("access"), told("boot-bus")),
            (Access::default().to_string(), BusChoice::default().to_string())
        );
        assert_eq!(told("firmware"), Firmware::default().to_string());
        assert_eq!(told("oops"), OopsPolicy::default().to_string());
        assert_eq!(told("share"), ShareKind::default().to_string());
    }
}
