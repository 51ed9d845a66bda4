//! The command lines of typical machines, kept as snapshots, and what must never be on one.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::Command;

use belljar_guest_spec::{DiskTraits, SectorSize, Wwn};
use proptest::prelude::*;

use super::*;
use crate::qemu::descriptors::Purpose;
use crate::share::ninep::push_device;

/// One option a line, quoted as for a shell.
fn lines(config: &MachineConfig) -> String {
    let args = config.to_args().expect("a command line");
    let mut out = String::new();
    for arg in &args {
        let text = to_shell(std::slice::from_ref(arg));
        let option = arg.as_bytes().starts_with(b"-");
        out.push_str(if out.is_empty() {
            ""
        } else if option {
            "\n"
        } else {
            " "
        });
        out.push_str(&text);
    }
    out
}

fn one_set() -> FdSet {
    Descriptors::default().add_set(Purpose::Volume, tempfile::tempfile().unwrap())
}

fn raw(path: impl Into<PathBuf>) -> Node {
    Node::new(DiskSource::Path(path.into()), "raw")
}

fn overlay() -> Disk {
    let backing = Backing {
        source: DiskSource::Path("/images/debian,12.qcow2".into()),
        format: "qcow2".to_owned(),
        device: false,
        backing: None,
    };
    let node = Node { backing: Some(Box::new(backing)), ..Node::layer(DiskSource::FdSet(one_set())) };
    Disk { boot_index: Some(0), ..Disk::new(node) }
}

#[test]
fn nothing_but_the_default() {
    insta::assert_snapshot!(lines(&MachineConfig::default()));
}

#[test]
fn stock_image() {
    let mut descriptors = Descriptors::default();
    let sets = [(); 2].map(|()| descriptors.add_set(Purpose::Volume, tempfile::tempfile().unwrap()));
    // One for reading, one for reading and writing.
    let sets = sets.map(|set| FdSet { set: 1, ..set }).to_vec();
    let config = MachineConfig {
        name: "debian, stock".to_owned(),
        accel: Accel::Kvm,
        memory: (512 << 20) + 1,
        cpus: 2,
        disks: vec![
            overlay(),
            Disk {
                serial: Some("data0".to_owned()),
                ..Disk::new(Node::layer(DiskSource::Path("/run/x/data0.qcow2".into())))
            },
            Disk::new(Node { read_only: true, throw_away: false, ..raw("/run/x/seed.img") }),
        ],
        fd_sets: sets,
        shares: vec![Share {
            on_disk: false,
            tag: "hostos".to_owned(),
            device: Some(push_device),
            port: None,
            server: None,
            path: "/home/u/my project".into(),
            read_only: false,
        }],
        smbios: vec!["io.systemd.credential:x=1,2".to_owned()],
        vmgenid: true,
        vga: Some("VGA".to_owned()),
        extra: vec!["-global".into(), "isa-debugcon.iobase=0x402".into()],
        ..MachineConfig::default()
    };
    insta::assert_snapshot!(lines(&config));
}

#[test]
fn nodes_of_processors_and_memory() {
    let node = |cpus: &str, memory: u64, distances: [u8; 2]| NumaNode {
        cpus: NumaNode::cpus(cpus).unwrap(),
        memory,
        distances: distances.to_vec(),
    };
    let numa = vec![node("0,2", 768 << 20, [10, 21]), node("1,3", 256 << 20, [31, 10])];
    let topology = Some(Topology { sockets: 2, cores: 1, threads: 2 });
    let config = MachineConfig { numa, topology, cpus: 4, ..MachineConfig::default() };
    let kept = |line: &&str| ["-object", "-machine", "-numa", "-smp"].iter().any(|option| line.starts_with(option));
    let text = lines(&config);
    insta::assert_snapshot!(text.lines().filter(kept).collect::<Vec<_>>().join("\n"));
}

#[test]
fn own_kernel_for_pasting() {
    let config = MachineConfig {
        channels: Channels::terminal(),
        kernel: Some(Kernel {
            image: "/boot/vmlinuz".into(),
            initrd: Some("/run/x/initrd, new".into()),
            append: "console=ttyS0 quiet panic=-1".to_owned(),
        }),
        nic: Nic { mode: NicMode::None, ..Nic::default() },
        shares: vec![Share {
            on_disk: false,
            tag: "belljar-root".to_owned(),
            device: Some(push_device),
            port: None,
            server: None,
            path: "/".into(),
            read_only: true,
        }],
        pvpanic: false,
        rng: false,
        sandbox: false,
        ..MachineConfig::default()
    };
    insta::assert_snapshot!(lines(&config));
}

#[test]
fn every_bus_on_both_machines() {
    let buses = [DiskBus::Ide, DiskBus::Sata, DiskBus::Scsi, DiskBus::Nvme, DiskBus::Usb, DiskBus::Virtio];
    let disks =
        buses.iter().flat_map(|&bus| [bus, bus]).map(|bus| Disk { bus, ..Disk::new(raw("/d")) }).collect::<Vec<_>>();
    let mut config = MachineConfig {
        nic: Nic { mode: NicMode::User, model: Some("e1000".to_owned()), mac: Some("52:54:00:00:00:01".to_owned()) },
        disks,
        ..MachineConfig::default()
    };
    let devices = |config: &MachineConfig| {
        let text = lines(config);
        let kept = text.lines().filter(|l| l.starts_with("-device") || l.starts_with("-netdev"));
        kept.collect::<Vec<_>>().join("\n")
    };
    let pc = devices(&config);
    config.machine = "q35".to_owned();
    insta::assert_snapshot!(format!("{pc}\n\nq35:\n{}", devices(&config)));
}

#[test]
fn each_path_of_a_served_disk_has_a_node_of_its_own() {
    let source = |path: &str| DiskSource::Path(path.into());
    let traits = DiskTraits { paths: Some(3), ..DiskTraits::default() };
    let disk = |node: Node| Disk { bus: DiskBus::Scsi, traits: traits.clone(), ..Disk::new(node) };
    let served = Node::served(source("/a"), vec![source("/b"), source("/c")], false);
    let config = MachineConfig { disks: vec![disk(served), disk(raw("/d"))], ..MachineConfig::default() };
    let text = lines(&config);
    for (node, file) in [("disk0", "/a"), ("disk0-path1", "/b"), ("disk0-path2", "/c")] {
        let line = format!("driver=nbd,node-name={node},read-only=off,discard=unmap,server.type=fd,server.str={file}");
        assert!(text.contains(&line), "{line}: {text}");
        assert!(text.contains(&format!(",drive={node},")), "{node}: {text}");
    }
    // Of QEMU's own disk all paths lead to one.
    assert_eq!(text.matches(",drive=disk1,").count(), 3, "{text}");
    assert_eq!(config.served_disks(), ["disk0", "disk0-path1", "disk0-path2"]);
}

#[test]
fn kinds_of_disks() {
    let all = DiskTraits {
        sector_size: Some(SectorSize::S4096),
        wwn: Some(Wwn::parse("0x5000c500a1b2c3d4").unwrap()),
        read_only: true,
        rotational: Some(true),
        write_cache: Some(false),
        fua: Some(true),
        discard_granularity: Some(65536),
        removable: true,
        paths: Some(2),
        ..DiskTraits::default()
    };
    let ata = DiskTraits {
        sector_size: None,
        read_only: false,
        removable: false,
        paths: None,
        discard_granularity: None,
        fua: Some(false),
        ..all.clone()
    };
    let emulated = DiskTraits { physical_sector_size: Some(SectorSize::S4096), ..DiskTraits::default() };
    let no_discard = DiskTraits {
        discard: Some(false),
        fua: Some(false),
        rotational: Some(false),
        wwn: all.wwn,
        ..DiskTraits::default()
    };
    let virtio =
        DiskTraits { wwn: None, rotational: None, removable: false, paths: None, fua: Some(false), ..all.clone() };
    let nvme = DiskTraits { fua: None, write_cache: None, read_only: false, ..virtio.clone() };
    let usb = DiskTraits { wwn: None, rotational: None, discard_granularity: None, paths: None, ..all.clone() };
    let disks: [(DiskBus, DiskTraits); 9] = [
        (DiskBus::Virtio, virtio),
        (DiskBus::Virtio, DiskTraits { discard: Some(false), ..emulated.clone() }),
        (DiskBus::Virtio, DiskTraits { discard: Some(true), write_cache: Some(true), ..DiskTraits::default() }),
        (DiskBus::Scsi, all),
        (DiskBus::Scsi, no_discard.clone()),
        (DiskBus::Sata, ata),
        (DiskBus::Sata, DiskTraits { physical_sector_size: Some(SectorSize::S4096), ..no_discard }),
        (DiskBus::Nvme, DiskTraits { rotational: Some(false), ..nvme }),
        (DiskBus::Usb, usb),
    ];
    let disks = disks.into_iter().map(|(bus, traits)| {
        assert_eq!(traits.conflicts(None, true, Some(bus)), []);
        let node = Node { write_protected: traits.read_only, ..raw("/d") };
        let attached = matches!(bus, DiskBus::Sata | DiskBus::Usb) || traits.paths() > 1;
        Disk { bus, traits, attached, ..Disk::new(node) }
    });
    let mut config = MachineConfig { disks: disks.collect(), ..MachineConfig::default() };
    config.slots = config.machine_type().slots;
    let plugged = config.plugged().expect("slots for all of them");
    let plugged = plugged.iter().map(|one| one.device.json().to_string()).collect::<Vec<_>>().join("\n");
    config.disks.iter_mut().for_each(|disk| disk.attached = true);
    let text = lines(&config);
    let text = text
        .lines()
        .filter(|line| ["disk", "scsi", "usb"].iter().any(|word| line.contains(word)))
        .collect::<Vec<_>>()
        .join("\n");
    insta::assert_snapshot!(format!("{text}\n\nplugged in:\n{plugged}"));
}

#[test]
fn odd_names_stay_one_value() {
    let path = OsString::from_vec(b"/a,readonly=on,b \n\xff'=\x1b[2J".to_vec());
    let config = MachineConfig {
        shares: vec![Share {
            on_disk: false,
            tag: "t,x".to_owned(),
            device: Some(push_device),
            port: None,
            server: None,
            path: path.clone().into(),
            read_only: false,
        }],
        ..MachineConfig::default()
    };
    let args = config.to_args().unwrap();
    let at = args.iter().position(|a| a == "-fsdev").unwrap();
    assert_eq!(
        args[at + 1].as_bytes(),
        b"local,id=share0,path=/a,,readonly=on,,b \n\xff'=\x1b[2J,security_model=none,multidevs=remap"
    );
    assert!(!to_shell(&args).contains(['\n', '\x1b']), "a terminal is safe from it");
}

#[test]
fn refusals_name_the_culprit() {
    let disk = |bus, serial: &str, read_only| Disk {
        bus,
        serial: Some(serial.to_owned()),
        ..Disk::new(Node { read_only, ..raw("/d") })
    };
    let share = |tag: &str| Share {
        on_disk: false,
        tag: tag.to_owned(),
        device: Some(push_device),
        port: None,
        server: None,
        path: "/".into(),
        read_only: true,
    };
    let base = MachineConfig::default;
    let cases = [
        MachineConfig { name: "a\0b".to_owned(), ..base() },
        MachineConfig { extra: vec!["-append".into(), "\0".into()], ..base() },
        MachineConfig { memory: 0, ..base() },
        MachineConfig { cpus: 0, ..base() },
        MachineConfig { machine: String::new(), ..base() },
        MachineConfig { disks: vec![disk(DiskBus::Virtio, "a-serial-number-of-22-b", false)], ..base() },
        MachineConfig { disks: vec![disk(DiskBus::Virtio, "", false)], ..base() },
        MachineConfig { disks: vec![disk(DiskBus::Sata, "s", true)], ..base() },
        MachineConfig { disks: vec![disk(DiskBus::Ide, "s", false); 5], ..base() },
        MachineConfig { shares: vec![share("")], ..base() },
        MachineConfig { shares: vec![share(&"t".repeat(32))], ..base() },
        MachineConfig { shares: vec![share("a"), share("a")], ..base() },
        MachineConfig { channels: Channels { console: None, ..Channels::inherited() }, ..base() },
    ];
    let said = cases.map(|config| config.to_args().expect_err("refused").to_string());
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn firmware_in_flash_memory() {
    let code = Node::fixed(DiskSource::Path("/usr/share/OVMF/CODE.fd".into()), "raw");
    let config = MachineConfig {
        machine: "pc,graphics=off".to_owned(),
        ram: Ram::Shared(one_set().fd),
        flash: vec![code, Node::layer(DiskSource::FdSet(one_set()))],
        ..MachineConfig::default()
    };
    let text = lines(&config);
    let flash: Vec<_> = text.lines().filter(|line| line.contains("flash")).collect();
    insta::assert_snapshot!(flash.join("\n"));
}

#[test]
fn no_network_beyond_the_guest_unless_asked_for() {
    let text = lines(&MachineConfig::default());
    assert!(text.contains("-netdev user,id=net0,restrict=on\n"));
    let text = lines(&MachineConfig { nic: Nic { mode: NicMode::None, ..Nic::default() }, ..MachineConfig::default() });
    assert!(!text.contains("-net") && text.contains("-nodefaults"));
}

proptest! {
    /// What is pasted into a shell arrives as it was: through the shell itself.
    #[test]
    fn pasted_words_arrive(args in proptest::collection::vec(
        proptest::collection::vec(1u8..=255, 0..12), 1..6)
    ) {
        let args: Vec<OsString> = args.into_iter().map(OsString::from_vec).collect();
        let script = format!("printf '%s\\0' {}", to_shell(&args));
        let out = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
        let want: Vec<u8> = args.iter().flat_map(|a| [a.as_bytes(), b"\0"].concat()).collect();
        prop_assert_eq!(out.stdout, want);
    }

    /// A path reads back, whatever its bytes.
    #[test]
    fn a_path_is_one_value(path in proptest::collection::vec(1u8..=255, 1..40)) {
        let config = MachineConfig {
            disks: vec![Disk::new(raw(OsString::from_vec(path.clone())))],
            ..MachineConfig::default()
        };
        let args = config.to_args().unwrap();
        let at = args.iter().position(|a| a == "-blockdev").unwrap();
        let pairs = read_pairs(args[at + 1].as_bytes());
        let found = pairs.iter().find(|(k, _)| k == b"file.filename").map(|(_, v)| v.clone());
        prop_assert_eq!(found, Some(path));
        prop_assert_eq!(pairs.len(), 10);
    }
}

/// Reads `key=value,…` as QEMU does.
fn read_pairs(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut fields, mut at) = (vec![Vec::new()], 0);
    while at < text.len() {
        match (text[at], text.get(at + 1)) {
            (b',', Some(b',')) => {
                fields.last_mut().unwrap().push(b',');
                at += 1;
            }
            (b',', _) => fields.push(Vec::new()),
            (byte, _) => fields.last_mut().unwrap().push(byte),
        }
        at += 1;
    }
    let split = |field: Vec<u8>| {
        let at = field.iter().position(|&b| b == b'=').unwrap_or(field.len());
        (field[..at].to_vec(), field.get(at + 1..).unwrap_or_default().to_vec())
    };
    fields.into_iter().map(split).collect()
}
