use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn write(at: &Path, text: &str) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(at, text).unwrap();
}

/// A `/sys` in which devices come and go.
struct Sys(tempfile::TempDir);

impl Sys {
    fn new() -> Self {
        let sys = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(sys.block()).unwrap();
        sys
    }

    fn block(&self) -> PathBuf {
        self.0.path().join("block")
    }

    /// A disk of this number, with a partition.
    fn disk(&self, name: &str, serial: &str, diskseq: &str) {
        let dir = self.block().join(name);
        fs::create_dir_all(dir.join("device")).unwrap();
        write(&dir.join("serial"), serial);
        if !diskseq.is_empty() {
            write(&dir.join("diskseq"), diskseq);
        }
        let part = if name.ends_with(|c: char| c.is_ascii_digit()) { format!("{name}p1") } else { format!("{name}1") };
        write(&dir.join(part).join("partition"), "1\n");
    }

    /// A device that is made of others.
    fn stacked(&self, name: &str, on: &[&str]) {
        let _ = fs::remove_dir_all(self.block().join(name));
        fs::create_dir_all(self.block().join(name).join("slaves")).unwrap();
        for below in on {
            fs::create_dir(self.block().join(name).join("slaves").join(below)).unwrap();
        }
    }

    fn gone(&self, name: &str) {
        fs::remove_dir_all(self.block().join(name)).unwrap();
    }

    fn names(&self) -> DiskNames {
        let mut names = DiskNames { sys: self.0.path().to_owned(), ..DiskNames::default() };
        names.look();
        names
    }
}

/// The serial numbers of what a line is of that is written now.
fn of(names: &mut DiskNames, line: &str) -> Vec<Vec<String>> {
    let now = raw_now();
    names.read_at(now);
    serials(names.of_line(line, now))
}

fn serials(devices: Vec<Vec<DiskPath>>) -> Vec<Vec<String>> {
    devices.into_iter().map(|disks| disks.into_iter().map(|disk| disk.serial).collect()).collect()
}

fn on_device(names: &mut DiskNames, name: &str) -> Vec<Vec<String>> {
    of(names, &format!("I/O error, dev {name}, sector 8"))
}

#[test]
fn a_name_is_that_of_the_disk_below() {
    let sys = Sys::new();
    sys.disk("vda", "root", "1");
    sys.disk("sda", "data0", "2");
    sys.disk("nvme0n1", "data1", "3");
    sys.stacked("dm-0", &["sda1", "nvme0n1p1"]);
    sys.stacked("dm-1", &["dm-0"]);
    sys.stacked("dm-2", &[]);
    let mut names = sys.names();
    let mut is = |name: &str, disks: &[&[&str]]| assert_eq!(on_device(&mut names, name), disks, "{name}");
    is("vda", &[&["root"]]);
    is("sda1", &[&["data0"]]);
    is("nvme0n1p1", &[&["data1"]]);
    is("dm-1", &[&["data0", "data1"]]);
    is("dm-2", &[&[]]);
    // A partition that was gone before anybody looked.
    is("nvme0n1p7", &[&["data1"]]);
    is("sda7", &[&["data0"]]);
    is("sdz", &[]);
    is("7", &[]);
    assert_eq!(of(&mut names, "EXT4-fs error (device dm-0): x"), [["data0", "data1"]]);
    assert_eq!(of(&mut names, "a line of something else"), [[""; 0]; 0]);
}

#[test]
fn what_went_away_stays_known_until_another_has_its_name() {
    for diskseq in [true, false] {
        let sys = Sys::new();
        let seq = |number: &str| if diskseq { number.to_owned() } else { String::new() };
        sys.disk("sda", "data0", &seq("1"));
        sys.stacked("md0", &["sda"]);
        let mut names = sys.names();
        sys.stacked("md0", &[]);
        sys.gone("sda");
        names.look();
        assert_eq!(on_device(&mut names, "sda1"), [["data0"]]);
        assert_eq!(on_device(&mut names, "md0"), [["data0"]], "it stood on that");
        let before = raw_now();
        names.read_at(before);
        // Longer than a disk is there before it is told of.
        std::thread::sleep(Duration::from_micros(SEEN_LATE + 100_000));
        sys.disk("sda", "spare", &seq("2"));
        names.look();
        assert_eq!(on_device(&mut names, "sda"), [["spare"]]);
        assert_eq!(serials(names.of_line("I/O error, dev sda, sector 1", before)), [["data0"]], "what is read late");
        let between = raw_now() - SEEN_LATE / 2;
        let both = serials(names.of_line("I/O error, dev sda, sector 1", between));
        assert_eq!(both, [["data0"], ["spare"]], "it may be either");
        // A stack of the same name.
        sys.gone("md0");
        names.look();
        sys.stacked("md0", &["sda"]);
        std::thread::sleep(Duration::from_micros(SEEN_LATE));
        assert_eq!(on_device(&mut names, "md0").last().unwrap(), &["spare"]);
    }
}

#[test]
fn who_is_replaced_between_two_looks_is_known_by_its_number() {
    let sys = Sys::new();
    sys.disk("vdb", "data0", "5");
    let mut names = sys.names();
    sys.gone("vdb");
    sys.disk("vdb", "data1", "6");
    names.look();
    assert_eq!(on_device(&mut names, "vdb"), [["data1"]]);
    assert_eq!(names.owners["vdb"].len(), 2);
    // A virtio disk is asked once.
    write(&sys.block().join("vdb/serial"), "other");
    names.look();
    assert_eq!(on_device(&mut names, "vdb"), [["data1"]]);
}

#[test]
fn a_btrfs_is_on_all_its_disks() {
    let sys = Sys::new();
    sys.disk("vda", "data0", "1");
    sys.disk("vdb", "data1", "2");
    let mut names = sys.names();
    let line = "BTRFS error (device vda): bdev /dev/vdb errs: wr 1, rd 0, flush 0, corrupt 0, gen 0";
    assert_eq!(of(&mut names, line), [["data0"]]);
    for name in ["vda", "vdb"] {
        fs::create_dir_all(sys.0.path().join("fs/btrfs/7f/devices").join(name)).unwrap();
    }
    fs::create_dir_all(sys.0.path().join("fs/btrfs/features")).unwrap();
    names.look();
    assert_eq!(of(&mut names, line), [["data0", "data1"]]);
    assert_eq!(on_device(&mut names, "vda"), [["data0"]], "the disk's own error");
    // It was mounted once.
    fs::remove_dir_all(sys.0.path().join("fs")).unwrap();
    names.look();
    assert_eq!(of(&mut names, "BTRFS error (device vdb): open_ctree failed"), [["data0", "data1"]]);
}

#[test]
fn a_file_system_that_is_not_named_is_each_of_its_kind() {
    let sys = Sys::new();
    for (name, number) in [("vda", "254:0"), ("vdb", "254:16")] {
        sys.disk(name, name, number);
        write(&sys.block().join(name).join("dev"), number);
    }
    let names = sys.names();
    let mounts = |list: &str| mount_table::parse(list.as_bytes());
    let (a, b) = ("40 22 254:0 / /a rw - squashfs x rw\n", "41 22 254:16 / /b rw - squashfs x rw\n");
    let elsewhere = "42 22 7:0 / /c rw - squashfs x rw\n43 22 254:16 / /d rw - ext4 x rw\n";
    assert_eq!(serials(names.mounted("squashfs", &mounts(&format!("{a}{b}{a}")))), [["vda"], ["vdb"]]);
    assert_eq!(serials(names.mounted("squashfs", &mounts(elsewhere))), [[""; 0]]);
    assert_eq!(names.mounted("squashfs", &[]), [[]; 0]);
}

#[test]
fn a_file_is_on_what_is_mounted_above_it() {
    let sys = Sys::new();
    sys.disk("vda", "root", "1");
    sys.disk("vdb", "data0", "2");
    write(&sys.block().join("vda/dev"), "254:0");
    write(&sys.block().join("vdb/vdb1/dev"), "254:17");
    let names = sys.names();
    let there = names.there();
    let mounts =
        "22 1 254:0 / / rw - ext4 x rw\n40 22 254:17 / /srv rw - ext4 x rw\n41 22 0:30 / /srv/x rw - tmpfs x rw\n";
    let cell = std::cell::OnceCell::from(mount_table::parse(mounts.as_bytes()));
    let resolve = Resolve { sys: sys.0.path(), there: &there, owners: &names.owners, mounts: Mounts(cell) };
    assert_eq!(resolve.device_of("/srv/image").as_deref(), Some("vdb1"));
    assert_eq!(resolve.device_of("/srvx/image").as_deref(), Some("vda"));
    assert_eq!(resolve.device_of("/srv/x/image"), None);
}

#[test]
fn a_path_is_that_of_its_controller() {
    let sys = Sys::new();
    for (host, place, kind) in [
        ("host0", "0000:00:01.1", "ata_piix"),
        ("host2", "0000:00:07.0", "virtio_scsi"),
        ("host1", "0000:00:07.1", "virtio_scsi"),
    ] {
        let device = sys.0.path().join("devices").join(place).join(host);
        fs::create_dir_all(device.join("target/x")).unwrap();
        let class = sys.0.path().join("class/scsi_host").join(host);
        write(&class.join("proc_name"), kind);
        symlink(&device, class.join("device")).unwrap();
    }
    for (name, at) in [("sda", "0000:00:07.1/host1"), ("sdb", "0000:00:07.0/host2"), ("sdc", "0000:00:01.1/host0")] {
        fs::create_dir_all(sys.block().join(name)).unwrap();
        symlink(sys.0.path().join("devices").join(at).join("target/x"), sys.block().join(name).join("device")).unwrap();
    }
    let paths = ["sda", "sdb", "sdc"].map(|name| path(sys.0.path(), &sys.block().join(name)));
    assert_eq!(paths, [1, 0, 0]);
}

#[test]
fn a_disk_is_found_by_its_number() {
    let sys = Sys::new();
    sys.disk("nvme0n1", "data0", "1");
    sys.disk("nvme0c0n1", "data0", "2");
    write(&sys.block().join("nvme0c0n1/hidden"), "1\n");
    sys.disk("sdb", "both", "3");
    sys.disk("sda", "both", "4");
    let mut names = sys.names();
    assert_eq!(names.devices("data0"), ["/dev/nvme0n1"]);
    assert_eq!(names.devices("both"), ["/dev/sda", "/dev/sdb"]);
    names.owners.get_mut("sda").unwrap()[0].disk.as_mut().unwrap().path = 1;
    assert_eq!(names.devices("both"), ["/dev/sdb", "/dev/sda"], "in the order of its paths");
    assert_eq!(names.devices("data1"), [""; 0]);
    sys.gone("sda");
    names.look();
    assert_eq!(names.devices("both"), ["/dev/sdb"]);
}

#[test]
fn what_the_kernel_tells_is_read() {
    let event = |action: &str, subsystem: &str| {
        format!(
            "{action}@/devices/x/block/vdb\0ACTION={action}\0DEVPATH=/devices/x/block/vdb\0SUBSYSTEM={subsystem}\0DEVNAME=vdb\0"
        )
    };
    assert_eq!(of_block(event("add", "block").as_bytes()), Some(("vdb", false)));
    assert_eq!(of_block(event("remove", "block").as_bytes()), Some(("vdb", true)));
    assert_eq!(of_block(event("add", "net").as_bytes()), None);
    for odd in [&b""[..], b"add@/x", b"\xff\0SUBSYSTEM=block", b"SUBSYSTEM=block\0"] {
        assert_eq!(of_block(odd), None);
    }
    for (name, whole) in
        [("sda1", Some("sda")), ("nvme0n1p12", Some("nvme0n1")), ("md127p1", Some("md127")), ("sda", None)]
    {
        assert_eq!(whole_of(name), whole);
    }
}

#[test]
fn a_record_that_is_read_late_is_of_its_own_time() {
    let mut clock = RecordClock::default();
    assert_eq!(clock.raw(50, 1000), 50);
    clock.note(100, 1_000_100);
    clock.note(200, 5_000_000);
    assert_eq!(clock.raw(200, 5_000_000), 1_000_200, "read four seconds late");
    assert_eq!(clock.raw(9_000_000, 5_000_000), 5_000_000, "never later than now");
    // The clocks drift apart, as far as clocks do.
    clock.note(1_000_000_000, 1_001_000_500);
    assert_eq!(clock.raw(1_000_000_000, 2_000_000_000), 1_001_000_500);
}
