//! What a caller of QEMU can get wrong, and the real one would forgive, misread or only notice later.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    path::Path,
};

use rustix::{
    fs::{FileType, OFlags},
    process,
};

use crate::args::{Args, Opt};

/// Devices that the pretended machine has.
pub(crate) const DEVICES: [(&str, &str); 47] = [
    ("vhost-user-fs-pci", "PCI"),
    ("vhost-user-fs-ccw", "virtual-css-bus"),
    ("virtio-9p-ccw", "virtual-css-bus"),
    ("virtio-blk-ccw", "virtual-css-bus"),
    ("virtio-scsi-ccw", "virtual-css-bus"),
    ("virtio-serial-ccw", "virtual-css-bus"),
    ("virtio-rng-ccw", "virtual-css-bus"),
    ("virtio-net-ccw", "virtual-css-bus"),
    ("virtio-9p-pci", "PCI"),
    ("virtio-blk-pci", "PCI"),
    ("virtio-scsi-pci", "PCI"),
    ("virtio-serial-pci", "PCI"),
    ("virtio-rng-pci", "PCI"),
    ("virtio-net-pci", "PCI"),
    ("virtio-balloon-pci", "PCI"),
    ("virtio-9p-device", "virtio-bus"),
    ("virtio-blk-device", "virtio-bus"),
    ("virtio-serial-device", "virtio-bus"),
    ("virtio-rng-device", "virtio-bus"),
    ("virtio-net-device", "virtio-bus"),
    ("virtserialport", "virtio-serial-bus"),
    ("virtconsole", "virtio-serial-bus"),
    ("isa-serial", "ISA"),
    ("isa-debug-exit", "ISA"),
    ("isa-debugcon", "ISA"),
    ("pvpanic", "ISA"),
    ("pvpanic-pci", "PCI"),
    ("vmgenid", "System"),
    ("nvme", "PCI"),
    ("ich9-ahci", "PCI"),
    ("e1000", "PCI"),
    ("e1000e", "PCI"),
    ("VGA", "PCI"),
    ("isa-vga", "ISA"),
    ("tpm-tis", "ISA"),
    ("i6300esb", "PCI"),
    ("virtio-vga", "PCI"),
    ("intel-hda", "PCI"),
    ("hda-duplex", "HDA"),
    ("AC97", "PCI"),
    ("nvdimm", "memory"),
    ("pci-serial", "PCI"),
    ("ib700", "ISA"),
    ("ide-hd", "IDE"),
    ("ide-cd", "IDE"),
    ("scsi-hd", "SCSI"),
    ("scsi-cd", "SCSI"),
];

/// Everything wrong with the command line and the descriptors it names.
pub(crate) fn command_line(args: &Args) -> Vec<String> {
    let mut wrong = Vec::new();
    for flag in ["nodefaults", "no-user-config"] {
        if !args.has(flag) {
            wrong.push(format!("no -{flag}: the host's configuration and default devices get in"));
        }
    }
    if !args.has("nographic") && !args.all("display").any(|o| o.first.as_deref() == Some("none")) {
        wrong.push("neither -display none nor -nographic: QEMU would open a window".into());
    }
    for once in ["m", "smp", "machine", "cpu", "kernel", "initrd", "append", "name", "bios"] {
        if args.all(once).count() > 1 {
            wrong.push(format!("-{once} stands twice: the last one wins"));
        }
    }
    if args.accel() != "kvm" && args.last("cpu").is_some_and(|o| o.driver() == "host") {
        wrong.push("CPU model 'host' requires KVM or HVF".into());
    }
    if (args.has("initrd") || args.has("append")) && !args.has("kernel") {
        wrong.push("-initrd and -append only allowed with -kernel option".into());
    }
    for file in ["kernel", "initrd", "bios"] {
        if let Some(opt) = args.last(file)
            && let Err(e) = fs::File::open(&opt.raw)
        {
            wrong.push(format!("could not open {file} file '{}': {e}", opt.raw));
        }
    }
    ids(args, &mut wrong);
    sockets(args, &mut wrong);
    references(args, &mut wrong);
    memory(args, &mut wrong);
    flash(args, &mut wrong);
    disks(args, &mut wrong);
    wrong
}

/// Ids are unique among options of one kind.
fn ids(args: &Args, wrong: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for opt in &args.opts {
        if let Some(id) = opt.id()
            && !seen.insert((opt.name.as_str(), id))
        {
            wrong.push(format!("Duplicate ID '{id}' for {}", opt.name));
        }
    }
}

/// Socket chardevs are sockets, and connected.
fn sockets(args: &Args, wrong: &mut Vec<String>) {
    let mut seen = BTreeMap::new();
    for dev in args.all("chardev") {
        let id = dev.id().unwrap_or_default();
        if id.is_empty() {
            wrong.push(format!("-chardev {}: no id", dev.raw));
        }
        if dev.driver() != "socket" {
            continue;
        }
        let Some(fd) = dev.get("fd") else {
            wrong.push(format!("chardev {id}: a socket without an inherited fd"));
            continue;
        };
        let mode = fs::File::open(format!("/proc/self/fd/{fd}")).map(|_f| ()).err();
        let kind = rustix::fs::stat(format!("/proc/self/fd/{fd}"));
        match kind {
            Err(_) => wrong.push(format!(
                "chardev {id}: fd {fd} is not open ({})",
                mode.map(|e| e.to_string()).unwrap_or_default()
            )),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                wrong.push(format!("chardev {id}: fd {fd} is not a socket"));
            }
            Ok(_) => {
                if let Some(other) = seen.insert(fd.to_owned(), id.to_owned()) {
                    wrong.push(format!("chardev {id}: fd {fd} is {other}'s already"));
                }
            }
        }
    }
}

/// What refers to another thing's id finds it, and nothing is left over.
fn references(args: &Args, wrong: &mut Vec<String>) {
    let mut used: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let kinds = [
        ("chardev", "chardev"),
        ("fsdev", "fsdev"),
        ("netdev", "netdev"),
        ("rng", "object"),
        ("iothread", "object"),
        ("tpmdev", "tpmdev"),
        ("audiodev", "audiodev"),
    ];
    let mut tags = BTreeSet::new();
    let nodes: BTreeSet<&str> = args.all("blockdev").chain(args.all("drive")).filter_map(Opt::id).collect();
    for dev in args.all("device") {
        if let Some(drive) = dev.get("drive")
            && !nodes.contains(drive)
        {
            wrong.push(format!("-device {}: Property can't find value '{drive}'", dev.raw));
        }
        let driver = dev.driver();
        if !DEVICES.iter().any(|(name, _)| *name == driver) {
            wrong.push(format!("'{driver}' is not a valid device model name"));
        }
        for (key, kind) in kinds {
            if let Some(id) = dev.get(key)
                && !used.entry(kind).or_default().insert(id.to_owned())
            {
                wrong.push(format!("-device {}: {kind} {id} is in use", dev.raw));
            }
        }
        if let Some(tag) = dev.get("mount_tag").or_else(|| dev.get("tag"))
            && (tag.is_empty() || tag.len() > 31 || !tags.insert(tag.to_owned()))
        {
            wrong.push(format!("mount tag {tag:?} is empty, too long, or there twice"));
        }
    }
    for (option, kind) in [("serial", "chardev"), ("monitor", "chardev")] {
        for opt in args.all(option) {
            if let Some(id) = opt.raw.strip_prefix("chardev:") {
                used.entry(kind).or_default().insert(id.to_owned());
            }
        }
    }
    for tpm in args.all("tpmdev") {
        used.entry("chardev").or_default().extend(tpm.get("chardev").map(str::to_owned));
    }
    for mon in args.all("mon") {
        let id = mon.get("chardev").or(mon.first.as_deref());
        used.entry("chardev").or_default().extend(id.map(str::to_owned));
        if mon.get("mode") != Some("control") {
            wrong.push(format!("-mon {}: not mode=control, so no QMP", mon.raw));
        }
    }
    for kind in ["chardev", "fsdev", "netdev", "tpmdev", "audiodev"] {
        let have: BTreeSet<String> = args.all(kind).filter_map(Opt::id).map(str::to_owned).collect();
        let used = used.remove(kind).unwrap_or_default();
        for id in used.difference(&have) {
            wrong.push(format!("Property can't find {kind} value '{id}'"));
        }
        for id in have.difference(&used) {
            wrong.push(format!("{kind} {id} is used by nothing"));
        }
    }
    for dev in args.all("fsdev") {
        let path = dev.get("path").unwrap_or_default();
        if !Path::new(path).is_dir() {
            wrong.push(format!("fsdev path {path:?} is not a directory"));
        }
    }
}

/// Memory that is a file is one, is used, and can be frozen.
fn memory(args: &Args, wrong: &mut Vec<String>) {
    let named = args.last("machine").and_then(|m| m.get("memory-backend"));
    let lends = args.all("device").any(|device| device.driver().starts_with("vhost-user-fs"));
    let is_lent = |o: &Opt| o.driver() == "memory-backend-memfd" && o.get("share") == Some("on");
    let lent = args.all("object").find(|object| is_lent(object) && object.id() == named);
    if lends && lent.is_none() {
        wrong.push("vhost-user-fs: the guest's memory is not shared with its back end".into());
    }
    let of_nodes: Vec<&str> =
        args.all("numa").chain(args.all("device")).filter_map(|user| user.get("memdev")).collect();
    for object in args.all("object").filter(|o| o.driver().starts_with("memory-backend")) {
        if object.id().is_some_and(|id| of_nodes.contains(&id)) {
            continue;
        }
        if object.id().is_none() || object.id() != named {
            wrong.push(format!("-object {}: memory that is used by nothing", object.raw));
        }
        if object.driver() != "memory-backend-file" && !(lends && is_lent(object)) {
            wrong.push(format!("-object {}: QEMU writes it to the state of a frozen machine", object.raw));
        }
    }
    let size = lent.and_then(|object| object.get("size")?.parse::<u64>().ok());
    if size.is_some_and(|size| args.last("m").is_none_or(|m| m.raw != format!("{}M", size >> 20))) {
        wrong.push("the memory's size is not the machine's".into());
    }
    match (named, args.ram()) {
        (Some(_), None) if lends => {}
        (Some(id), None) => wrong.push(format!("Property can't find memory-backend value '{id}', or it is no file")),
        (_, Some(ram)) if args.last("m").is_none_or(|m| m.raw != format!("{}M", ram.size >> 20)) => {
            wrong.push("the memory's size is not the machine's".into());
        }
        _ => {}
    }
    if args.last("incoming").is_some_and(|i| i.raw != "defer") {
        wrong.push("-incoming without `defer`: the capabilities cannot be set before the state is read".into());
    }
}

/// Flash memory is that of nodes that are there: the firmware is not written to, its variables can be.
fn flash(args: &Args, wrong: &mut Vec<String>) {
    let machine = args.last("machine");
    for (property, read_only) in [("pflash0", "on"), ("pflash1", "off")] {
        let Some(name) = machine.and_then(|m| m.get(property)) else { continue };
        match args.all("blockdev").find(|node| node.id() == Some(name)) {
            None => wrong.push(format!("Property can't find {property} value '{name}'")),
            Some(node) if node.get("read-only") != Some(read_only) => {
                wrong.push(format!("{property}: the node {name} does not have read-only={read_only}"));
            }
            Some(_) => {}
        }
    }
}

/// Every descriptor handed over for a disk can be read, and qcow2 is qcow2.
fn disks(args: &Args, wrong: &mut Vec<String>) {
    let mut sets: BTreeMap<String, String> = BTreeMap::new();
    for opt in args.all("add-fd") {
        let (Some(fd), Some(set)) = (opt.get("fd"), opt.get("set")) else {
            wrong.push(format!("-add-fd {}: fd= and set= are needed", opt.raw));
            continue;
        };
        match access_mode(fd) {
            None => wrong.push(format!("-add-fd fd={fd}: not open")),
            // What is written to a serial port is not read.
            Some(mode)
                if mode.contains(OFlags::WRONLY)
                    && !args
                        .all("chardev")
                        .any(|end| end.get("path").and_then(|path| path.strip_prefix("/dev/fdset/")) == Some(set)) =>
            {
                wrong.push(format!("-add-fd fd={fd}: cannot be read"));
            }
            Some(_) => {
                sets.insert(format!("/dev/fdset/{set}"), fd.to_owned());
            }
        }
    }
    for opt in args.all("drive").chain(args.all("blockdev")) {
        for key in ["file", "filename", "file.filename", "backing.file.filename"] {
            let Some(name) = opt.get(key) else { continue };
            let path = if name.starts_with("/dev/fdset/") {
                match sets.get(name) {
                    Some(fd) => format!("/proc/self/fd/{fd}"),
                    None => {
                        wrong.push(format!("{name}: no such descriptor set"));
                        continue;
                    }
                }
            } else {
                name.to_owned()
            };
            let mut magic = [0; 4];
            let read = fs::File::open(&path).and_then(|mut f| f.read_exact(&mut magic));
            let is_overlay = opt.get("format") == Some("qcow2") || opt.driver() == "qcow2" && key != "filename";
            match read {
                Err(e) => wrong.push(format!("Could not open '{name}': {e}")),
                Ok(()) if is_overlay && !key.starts_with("backing") && &magic != b"QFI\xfb" => {
                    wrong.push(format!("'{name}': Image is not in qcow2 format"));
                }
                Ok(()) => {}
            }
        }
    }
}

/// How a descriptor is open, from its `flags` in `/proc/self/fdinfo`.
fn access_mode(fd: &str) -> Option<OFlags> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:"))?;
    let bits = u32::from_str_radix(flags.trim(), 8).ok()?;
    Some(OFlags::from_bits_retain(bits))
}

/// Everything wrong with the process that QEMU was started as.
pub(crate) fn process(args: &Args) -> Vec<String> {
    let mut wrong = Vec::new();
    let death = process::parent_process_death_signal().ok().flatten();
    if death != Some(process::Signal::KILL) {
        wrong.push(format!("the parent's death would not kill QEMU (death signal {death:?})"));
    }
    if process::getpgrp() != process::getpid() {
        wrong.push("not the leader of a process group of its own: a terminal's Ctrl-C reaches QEMU".into());
    }
    if rustix::termios::isatty(rustix::stdio::stdin()) {
        wrong.push("standard input is a terminal: QEMU would read from it".into());
    }
    match args.last("sandbox") {
        Some(opt) if opt.driver() == "on" || opt.get("enable") == Some("on") => {}
        _ => wrong.push("no -sandbox on".into()),
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    if field("Seccomp") != "2" {
        wrong.push("no seccomp filter: the guest could leave set-uid files on the host".into());
    }
    let bounding = u64::from_str_radix(&field("CapBnd"), 16).unwrap_or(u64::MAX);
    let effective = u64::from_str_radix(&field("CapEff"), 16).unwrap_or(u64::MAX);
    // CAP_MKNOD, CAP_SYS_ADMIN, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PTRACE
    for cap in [27_u32, 21, 16, 17, 19] {
        if (bounding & effective) >> cap & 1 == 1 {
            wrong.push(format!("capability {cap} is still there"));
        }
    }
    wrong.extend(leaked(args));
    wrong
}

/// Number and target of the descriptors that are open and that the command line does not name.
pub(crate) fn unnamed(args: &Args) -> Vec<(String, String)> {
    // What the test itself had open is not the caller's doing.
    let inherited = std::env::var("FAKE_QEMU_INHERITED").unwrap_or_default();
    let journal = std::env::var("FAKE_QEMU_LOG").unwrap_or_default();
    let named: BTreeSet<String> = args
        .descriptors()
        .into_iter()
        .chain(["0", "1", "2"].into_iter().chain(inherited.split(',')).map(str::to_owned))
        .collect();
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let mut unnamed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let ours = target.starts_with("/proc/") || target == journal;
        if !ours && !named.contains(&name) {
            unnamed.push((name, target));
        }
    }
    unnamed
}

/// Descriptors that nobody will name.
fn leaked(args: &Args) -> Vec<String> {
    let unnamed = unnamed(args);
    // The state of a frozen machine is named over QMP.
    let is_state = |target: &str| args.has("incoming") && target.starts_with('/');
    let state = unnamed.iter().position(|(_, target)| is_state(target));
    let others = unnamed.iter().enumerate().filter(|(at, _)| Some(*at) != state);
    others.map(|(_, (name, target))| format!("descriptor {name} ({target}) was left open")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::words;

    fn wrong(line: &str) -> Vec<String> {
        command_line(&Args::parse(&words(line)).expect("parses"))
    }

    const GOOD: &str = "-nodefaults -no-user-config -display none";

    #[test]
    fn a_plain_command_line_is_fine() {
        assert_eq!(wrong(GOOD), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        let found = wrong("-display gtk").join("\n");
        assert!(found.contains("-nodefaults") && found.contains("window"), "{found}");
    }

    #[test]
    fn dangling_and_unused_ids() {
        let found = wrong(&format!("{GOOD} -device virtserialport,chardev=agent -fsdev local,id=x,path=/"));
        assert!(found.contains(&"Property can't find chardev value 'agent'".to_owned()));
        assert!(found.contains(&"fsdev x is used by nothing".to_owned()));
    }

    #[test]
    fn descriptors_must_be_what_they_are_said_to_be() {
        let found = wrong(&format!("{GOOD} -chardev socket,id=a,fd=0 -serial chardev:a"));
        assert!(found.iter().any(|w| w.contains("fd 0")), "{found:?}");
        let found = wrong(&format!("{GOOD} -add-fd fd=987,set=1"));
        assert_eq!(found, ["-add-fd fd=987: not open"]);
    }

    #[test]
    fn flash_memory_is_of_nodes_that_are_there() {
        let found =
            wrong(&format!("{GOOD} -machine pc,pflash0=flash0,pflash1=x -blockdev driver=null-co,node-name=flash0"));
        assert_eq!(
            found,
            ["pflash0: the node flash0 does not have read-only=on", "Property can't find pflash1 value 'x'"]
        );
    }

    #[test]
    fn contradictions() {
        let found = wrong(&format!("{GOOD} -accel tcg -cpu host -append x"));
        assert_eq!(found.len(), 2, "{found:?}");
        let found = wrong(&format!("{GOOD} -device warp-drive"));
        assert_eq!(found, ["'warp-drive' is not a valid device model name"]);
    }
}
