//! Images made by `qemu-img`, opened by QEMU. Both have to be installed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use belljar_image::disk::{DiskError, DiskImage, Format, Use, create_empty, create_overlay, inspect};
use serde_json::{Value, json};

const QEMU_IMG: &str = "/usr/bin/qemu-img";
const QEMU: &str = "qemu-system-x86_64";

struct Images {
    dir: tempfile::TempDir,
}

impl Images {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs `qemu-img` in the directory.
    fn img(&self, args: &[&str]) {
        let out = Command::new(QEMU_IMG)
            .args(args)
            .current_dir(&self.dir)
            .output()
            .expect("these tests need qemu-img (Debian: qemu-utils)");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// A raw disk of 4 MiB whose byte at each MiB is 0xa5.
    fn raw(&self, name: &str) -> PathBuf {
        let mut bytes = vec![0; 4 << 20];
        for mib in 0..4 {
            bytes[mib << 20..][..4096].fill(0xa5);
        }
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn inspect(&self, name: &str) -> Result<DiskImage, DiskError> {
        inspect(Path::new(QEMU_IMG), &self.path(name), None, Use::Boot)
    }
}

/// A QEMU that is not started, with a block node, asked over QMP. It is killed when dropped.
struct Qemu {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Qemu {
    /// `fd` becomes descriptor set 1.
    fn start(node: &Value, fd: impl AsFd) -> Result<Self, String> {
        // A copy that exec leaves open, made by the shell: there is no safe code for it in std.
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()));
        let mut command = Command::new("sh");
        // qemu-io writes to standard output behind the monitor's back; in lines, so as not to be late.
        command.args(["-c", "exec 9<>\"$0\" && exec stdbuf -oL \"$@\"", &path, QEMU]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "q35", "-accel", "tcg"]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args(["-add-fd", "fd=9,set=1", "-qmp", "stdio"]);
        command.args(["-blockdev", &node.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut qemu = Self { child, stdin, stdout };
        let mut greeting = String::new();
        if qemu.stdout.read_line(&mut greeting).unwrap() == 0 {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut qemu.child.stderr.take().unwrap(), &mut said).unwrap();
            return Err(said);
        }
        qemu.ask(&json!({ "execute": "qmp_capabilities" }));
        Ok(qemu)
    }

    /// What QEMU wrote beside the answer.
    fn ask(&mut self, command: &Value) -> String {
        writeln!(self.stdin, "{command}").unwrap();
        let mut beside = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "QEMU ended");
            match serde_json::from_str::<Value>(&line) {
                Ok(answer) if answer.get("return").is_some() => return beside,
                Ok(answer) => assert!(answer.get("error").is_none(), "{answer}"),
                Err(_) => beside.push_str(&line),
            }
        }
    }

    /// `qemu-io` on a node; what it says.
    fn io(&mut self, node: &str, command: &str) -> String {
        let line = format!("qemu-io {node} \"{command}\"");
        self.ask(&json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } }))
    }

    fn holds(&mut self, node: &str, pattern: u8, at: &str) -> bool {
        let said = self.io(node, &format!("read -P {pattern} {at} 4k"));
        assert!(said.contains("read 4096/4096") || said.contains("verification failed"), "{said}");
        !said.contains("failed")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The node `disk` with the layer in descriptor set 1 over what was seen of the image.
fn over(image: &DiskImage) -> Value {
    let backing = image.layers().iter().rev().fold(Value::Null, |below, layer| {
        let file = json!({ "driver": "file", "filename": layer.path, "read-only": true, "locking": "on" });
        let mut node = json!({ "driver": layer.format.driver(), "read-only": true, "file": file });
        if matches!(layer.format, Format::Qcow2 | Format::Vmdk | Format::Qcow | Format::Qed) {
            node["backing"] = below;
        }
        node
    });
    json!({ "driver": "qcow2", "node-name": "disk", "file": in_set_1(), "backing": backing })
}

fn in_set_1() -> Value {
    json!({ "driver": "file", "filename": "/dev/fdset/1" })
}

/// Boots nothing, but reads through the nodes, writes to the layer, and sees the image unchanged.
fn works(image: &DiskImage, dir: &Path) {
    let files: Vec<_> = image.layers().iter().map(|l| (l.path.clone(), fs::read(&l.path).unwrap())).collect();
    let overlay = create_overlay(dir, image).unwrap();
    let mut qemu = Qemu::start(&over(image), &overlay).unwrap();
    assert!(qemu.holds("disk", 0xa5, "1M"), "{image:?}");
    assert!(qemu.holds("disk", 0, "1100k"));
    let said = qemu.io("disk", "write -P 0x5a 1M 64k");
    assert!(said.contains("wrote 65536/65536"), "{said}");
    assert!(qemu.holds("disk", 0x5a, "1M") && qemu.holds("disk", 0xa5, "2M"));
    drop(qemu);
    for (path, bytes) in files {
        assert!(fs::read(&path).unwrap() == bytes, "{} was written to", path.display());
    }
}

#[test]
fn every_format_is_found_out_and_takes_a_layer() {
    let images = Images::new();
    images.raw("disk.raw");
    for &format in Format::ALL {
        let name = format!("disk.{format}");
        if format != Format::Raw {
            images.img(&["convert", "-O", format.driver(), "disk.raw", &name]);
        }
        let image = images.inspect(&name).unwrap();
        assert_eq!((image.format(), image.probed), (format, true));
        // vpc rounds to whole cylinders.
        assert!(image.virtual_size >= 4 << 20 && image.virtual_size < 5 << 20, "{image:?}");
        works(&image, images.dir.path());
    }
}

#[test]
fn an_image_in_parts_and_a_packed_one_work() {
    let images = Images::new();
    images.raw("disk.raw");
    for subformat in ["twoGbMaxExtentSparse", "monolithicFlat", "streamOptimized", "twoGbMaxExtentFlat"] {
        let name = format!("{subformat}.vmdk");
        images.img(&["convert", "-O", "vmdk", "-o", &format!("subformat={subformat}"), "disk.raw", &name]);
        works(&images.inspect(&name).unwrap(), images.dir.path());
    }
    images.img(&["convert", "-c", "-O", "qcow2", "disk.raw", "packed.qcow2"]);
    works(&images.inspect("packed.qcow2").unwrap(), images.dir.path());
    fs::remove_file(images.path("monolithicFlat-flat.vmdk")).unwrap();
    assert!(matches!(images.inspect("monolithicFlat.vmdk"), Err(DiskError::ExtentMissing { .. })));
}

#[test]
fn a_chain_is_walked_and_opened_as_it_was_seen() {
    let images = Images::new();
    images.raw("disk.raw");
    images.img(&["convert", "-O", "vmdk", "disk.raw", "base.vmdk"]);
    images.img(&["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk"]);
    images.img(&["create", "-q", "-f", "qcow2", "-b", "child.vmdk", "-F", "vmdk", "a.qcow2"]);
    let absolute = images.path("a.qcow2");
    images.img(&["create", "-q", "-f", "qcow2", "-b", absolute.to_str().unwrap(), "-F", "qcow2", "b.qcow2"]);
    let image = images.inspect("b.qcow2").unwrap();
    let names: Vec<_> = image.layers().iter().map(|l| l.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["b.qcow2", "a.qcow2", "child.vmdk", "base.vmdk"]);
    works(&image, images.dir.path());

    images.img(&["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "c.qcow2"]);
    works(&images.inspect("c.qcow2").unwrap(), images.dir.path());
    fs::remove_file(images.path("disk.raw")).unwrap();
    let error = images.inspect("c.qcow2").unwrap_err();
    assert!(error.to_string().contains("disk.raw") && error.to_string().contains("c.qcow2"), "{error}");
}

#[test]
fn a_larger_layer_over_a_smaller_one_reads_zeros_behind() {
    let images = Images::new();
    images.raw("disk.raw");
    images.img(&["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "big.qcow2", "64M"]);
    let image = images.inspect("big.qcow2").unwrap();
    assert_eq!(image.virtual_size, 64 << 20);
    let overlay = create_overlay(images.dir.path(), &image).unwrap();
    let mut qemu = Qemu::start(&over(&image), &overlay).unwrap();
    assert!(qemu.holds("disk", 0xa5, "3M") && qemu.holds("disk", 0, "50M"));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let images = Images::new();
    let create = |name: &str, backing: &str| {
        images.img(&["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", name, "1M"]);
        images.inspect(name).unwrap_err()
    };
    for backing in ["nbd:localhost:10809", "http://localhost/x", "json:{\"driver\":\"null-co\"}"] {
        let error = create("x.qcow2", backing);
        assert!(matches!(error, DiskError::BackingNotAFile { .. }), "{backing}: {error}");
    }
    // A colon behind a slash is a name like any other.
    assert!(matches!(create("y.qcow2", "./a:b"), DiskError::Backing { .. }));

    images.img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M"]);
    assert!(matches!(images.inspect("external.qcow2"), Err(DiskError::ExternalData { .. })));
}

#[test]
fn a_backing_file_without_its_format_comes_with_the_mend() {
    let images = Images::new();
    images.raw("disk.raw");
    images.img(&["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "x.qcow2"]);
    let mut bytes = fs::read(images.path("x.qcow2")).unwrap();
    let extension = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[extension..extension + 4].fill(0x11); // an unknown extension, which is passed over
    fs::write(images.path("x.qcow2"), bytes).unwrap();
    let error = images.inspect("x.qcow2").unwrap_err();
    assert!(error.to_string().contains("qemu-img rebase -u -F FORMAT"), "{error}");
}

#[test]
fn contents_that_a_guest_could_have_written_do_not_count() {
    let images = Images::new();
    images.raw("secret.raw");
    images.img(&["create", "-q", "-f", "qcow2", "-b", "secret.raw", "-F", "raw", "disk.qcow2"]);
    for name in ["disk.raw", "disk.img", "disk"] {
        fs::copy(images.path("disk.qcow2"), images.path(name)).unwrap();
        let error = images.inspect(name).unwrap_err();
        assert!(matches!(error, DiskError::Disputed { .. }), "{name}: {error}");
        let raw = inspect(Path::new(QEMU_IMG), &images.path(name), Some(Format::Raw), Use::Boot).unwrap();
        assert_eq!((raw.format(), raw.layers().len(), raw.probed), (Format::Raw, 1, false));
        let qcow2 = inspect(Path::new(QEMU_IMG), &images.path(name), Some(Format::Qcow2), Use::Boot).unwrap();
        assert_eq!(qcow2.layers().len(), 2);
    }
    // Without a backing file there is nothing to be had: qcow2 images are often called .img.
    images.img(&["create", "-q", "-f", "qcow2", "alone.img", "1M"]);
    assert_eq!(images.inspect("alone.img").unwrap().format(), Format::Qcow2);
}

#[test]
fn what_cannot_be_an_image_says_why() {
    let images = Images::new();
    fs::write(images.path("empty"), "").unwrap();
    assert!(matches!(images.inspect("empty"), Err(DiskError::Empty { .. })));
    assert!(matches!(images.inspect("gone"), Err(DiskError::NotFound { .. })));
    assert!(matches!(images.inspect("."), Err(DiskError::NotAFile { what: "a directory", .. })));
    assert!(matches!(
        inspect(Path::new(QEMU_IMG), Path::new("/dev/null"), None, Use::Boot),
        Err(DiskError::NotAFile { .. })
    ));

    fs::write(images.path("text.qcow2"), "hello").unwrap();
    let error = images.inspect("text.qcow2").unwrap_err();
    assert!(matches!(error, DiskError::NotAsNamed { named: Format::Qcow2, .. }), "{error}");
    let raw = inspect(Path::new(QEMU_IMG), &images.path("text.qcow2"), Some(Format::Raw), Use::Boot).unwrap();
    assert_eq!(raw.format(), Format::Raw);

    images.raw("disk.raw");
    let forced =
        |name: &str, format| inspect(Path::new(QEMU_IMG), &images.path(name), Some(format), Use::Boot).unwrap_err();
    for format in [Format::Qcow2, Format::Vmdk, Format::Vdi, Format::Vhdx, Format::Vpc, Format::Qed] {
        let error = forced("disk.raw", format);
        assert!(matches!(error, DiskError::NotInFormat { .. } | DiskError::Broken { .. }), "{error}");
    }
    fs::write(images.path("e.luks"), luks()).unwrap();
    assert!(matches!(images.inspect("e.luks"), Err(DiskError::UnusableFormat { .. } | DiskError::Encrypted { .. })));
}

/// An encrypted disk whose key slots are empty. `qemu-img create` would measure the processor for it, and gives up on a busy one.
fn luks() -> Vec<u8> {
    // cryptsetup's on-disk format, version 1: strings padded with zeros, numbers big-endian, sectors of 512 bytes.
    const SLOT: u32 = 504;
    let mut header = b"LUKS\xba\xbe\0\x01".to_vec();
    for (text, room) in [("aes", 32), ("xts-plain64", 32), ("sha256", 32)] {
        header.extend(text.bytes().chain(std::iter::repeat(0)).take(room));
    }
    let mut put = |bytes: &[u8]| header.extend(bytes);
    put(&(8 + 8 * SLOT).next_multiple_of(8).to_be_bytes()); // where the data begin
    put(&64_u32.to_be_bytes()); // bytes of the key
    put(&[0; 20 + 32]); // digest of the key, and its salt
    put(&1000_u32.to_be_bytes()); // its iterations
    put(&[b'0'; 40]); // UUID
    for slot in 0..8 {
        put(&0xdead_u32.to_be_bytes()); // not in use
        put(&[0; 4 + 32]);
        put(&(8 + slot * SLOT).to_be_bytes());
        put(&4000_u32.to_be_bytes()); // stripes
    }
    header.resize(4 << 20, 0);
    header
}

#[test]
fn a_cut_image_is_found_out() {
    let images = Images::new();
    images.raw("disk.raw");
    images.img(&["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let bytes = fs::read(images.path("disk.qcow2")).unwrap();
    for keep in [60, 1000, 70_000, 200_000, bytes.len() - 65_536] {
        fs::write(images.path("cut.qcow2"), &bytes[..keep]).unwrap();
        let error = images.inspect("cut.qcow2").unwrap_err();
        assert!(matches!(error, DiskError::Truncated { .. } | DiskError::Broken { .. }), "{keep}: {error}");
    }
    let mut corrupt = bytes.clone();
    corrupt[79] |= 2; // the incompatible feature "corrupt"
    fs::write(images.path("corrupt.qcow2"), corrupt).unwrap();
    let error = images.inspect("corrupt.qcow2").unwrap_err();
    assert!(error.to_string().contains("qemu-img check -r all"), "{error}");
}

#[test]
fn a_live_system_that_boots_from_a_disk_is_one() {
    let images = Images::new();
    // A volume descriptor, and a topmost directory with one name in it (ECMA-119, 8.4 and 9.1).
    let iso = |name: &[u8], boots: bool| {
        let mut bytes = vec![0; 40 * 2048];
        bytes[0x1fe..0x200].copy_from_slice(if boots { &[0x55, 0xaa] } else { &[0, 0] });
        bytes[0x8001..0x8006].copy_from_slice(b"CD001");
        bytes[0x8000 + 80] = 40;
        bytes[0x8000 + 129] = 8;
        bytes[0x8000 + 158] = 18;
        bytes[0x8000 + 167] = 8;
        bytes[18 * 2048] = 40;
        bytes[18 * 2048 + 32] = u8::try_from(name.len()).unwrap();
        bytes[18 * 2048 + 33..18 * 2048 + 33 + name.len()].copy_from_slice(name);
        bytes
    };
    let look = |bytes: &[u8]| {
        fs::write(images.path("some.iso"), bytes).unwrap();
        images.inspect("some.iso")
    };
    assert_eq!(look(&iso(b"LIVE", true)).unwrap().format(), Format::Raw);
    assert!(matches!(look(&iso(b"LIVE", false)), Err(DiskError::Iso { hybrid: false, .. })));
    assert!(matches!(look(&iso(b"POOL", true)), Err(DiskError::Iso { hybrid: true, .. })));
    let cut = &iso(b"LIVE", true)[..39 * 2048];
    assert!(matches!(look(cut), Err(DiskError::Truncated { needs: 81_920, .. })));
}

#[test]
fn readers_share_an_image_and_writers_are_kept_out() {
    let images = Images::new();
    images.raw("disk.raw");
    images.img(&["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let image = images.inspect("disk.qcow2").unwrap();
    let layer = || create_overlay(images.dir.path(), &image).unwrap();
    let node = over(&image);
    let file = json!({ "driver": "file", "filename": images.path("disk.qcow2") });
    let writer = json!({ "driver": "qcow2", "node-name": "w", "file": file });

    let mut first = Qemu::start(&node, layer()).unwrap();
    let mut second = Qemu::start(&node, layer()).unwrap();
    assert!(first.holds("disk", 0xa5, "1M") && second.holds("disk", 0xa5, "1M"));
    let refused = Qemu::start(&writer, layer()).err().expect("a writer beside two readers");
    assert!(refused.contains("Failed to get \"write\" lock"), "{refused}");
    drop((first, second));

    let _writing = Qemu::start(&writer, layer()).unwrap();
    let refused = Qemu::start(&node, layer()).err().expect("a reader beside a writer");
    assert!(refused.contains("Failed to get shared \"write\" lock"), "{refused}");
    assert!(matches!(images.inspect("disk.qcow2"), Err(DiskError::InUse { .. })));
}

#[test]
fn an_empty_disk_takes_writes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = create_empty(dir.path(), 1 << 30).unwrap();
    let mut qemu = Qemu::start(&json!({ "driver": "raw", "node-name": "data", "file": in_set_1() }), &disk).unwrap();
    assert!(qemu.holds("data", 0, "0") && qemu.io("data", "write -P 1 1023M 1M").contains("wrote"));
    assert!(qemu.holds("data", 1, "1023M"));
}
