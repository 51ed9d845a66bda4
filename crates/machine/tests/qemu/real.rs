//! Real machines, run with `cargo test -p belljar-machine --test qemu -- --ignored`. `BELLJAR_TEST_QEMU` names another QEMU,
//! and `BELLJAR_TEST_QEMU_ARGS` what it needs to be told (`-L DIR`).
//!
//! The guests are an installed kernel with busybox, and a script as their first process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use belljar_guest_spec::{DiskTraits, SectorSize, Wwn};
use belljar_image::cache::Cache;
use belljar_image::kernel::{Userland, discover};
use belljar_image::modules::read_module;
use belljar_image::vmlinux::{Bootable, bootable};
use belljar_machine::qemu::args::{Disk, DiskBus, DiskSource, Kernel, MachineConfig, Nic, NicMode, Node, Share};
use belljar_machine::qemu::descriptors::{Descriptors, Purpose};
use belljar_machine::qemu::platform;
use belljar_machine::qemu::process::{Qemu, SpawnError, SpawnRequest};
use belljar_machine::qemu::qmp::{HumanMonitorCommand, QueryCpusFast, QueryStatus, QueryVersion, SystemPowerdown};
use belljar_machine::share::ninep::push_device;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::shim;

/// Longer than any of these guests needs under translation on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn spawn(&self, mut config: MachineConfig, descriptors: Descriptors) -> Result<Qemu, SpawnError> {
        let program = std::env::var_os("BELLJAR_TEST_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let more = std::env::var("BELLJAR_TEST_QEMU_ARGS").unwrap_or_default();
        config.extra.extend(more.split_whitespace().map(OsString::from));
        let request = SpawnRequest {
            program: Path::new(&program),
            config: &config,
            shim: &shim(),
            env: &std::env::vars_os().collect::<Vec<_>>(),
            gauge: None,
            log: &self.path("qemu.log"),
            descriptors,
        };
        Qemu::spawn(request).await
    }

    /// Boots the newest suitable kernel with a script as its first process; gives what it printed after `BEGIN`.
    async fn run(&self, config: MachineConfig, modules: &[&str], script: &str) -> String {
        let found = discover(&["/".into()], &platform::processors());
        let installed = found.choose(Userland::Directory, &platform::default().processor).unwrap();
        let cache = Cache::new(self.path("cache"), self.dir.path());
        let image = match bootable(&installed.kernel, &cache).unwrap() {
            Bootable::Pvh { path, .. } | Bootable::AsIs { path, .. } => path,
        };
        let initrd = self.path("initrd");
        self.write_initrd(&initrd, installed.modules.as_ref().unwrap(), modules, script);
        let append = "console=ttyS0 quiet panic=-1".to_owned();
        let config = MachineConfig { kernel: Some(Kernel { image, initrd: Some(initrd), append }), ..config };

        let mut qemu = self.spawn(config, Descriptors::default()).await.unwrap();
        let mut channels = qemu.take_channels();
        let mut said = Vec::new();
        let read = channels.console.read_to_end(&mut said);
        let finished = tokio::time::timeout(PATIENCE, read).await.is_ok();
        let said = String::from_utf8_lossy(&said).replace('\r', "");
        assert!(finished && said.contains("\nEND\n"), "the guest did not get to its end:\n{said}");
        assert_eq!(qemu.wait().await.status.code(), Some(0));
        said.split_once("BEGIN\n").unwrap().1.to_owned()
    }

    fn write_initrd(&self, to: &Path, index: &belljar_image::modules::ModuleIndex, modules: &[&str], script: &str) {
        let busybox = fs::read("/bin/busybox").expect("busybox, linked statically");
        let mut archive = Vec::new();
        for dir in ["bin", "dev", "proc", "sys", "tmp", "m", "etc"] {
            cpio_entry(&mut archive, dir, 0o040_755, b"");
        }
        cpio_entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
        cpio_entry(&mut archive, "bin/sh", 0o120_777, b"busybox");
        let mut insert = String::new();
        for module in index.resolve(modules.iter().copied()).unwrap().insert {
            let name = format!("m/{}.ko", module.name);
            cpio_entry(&mut archive, &name, 0o100_644, &read_module(&module.path).unwrap());
            insert.push_str(&format!("insmod /{name}\n"));
        }
        // Without a console node of the archive's own the first process starts with nothing open.
        let init = format!(
            "#!/bin/sh\n/bin/busybox mount -t devtmpfs d /dev; exec </dev/console >/dev/console 2>&1\n\
             /bin/busybox --install -s /bin\nexport PATH=/bin\nmount -t proc p /proc; mount -t sysfs s /sys\n{insert}\n\
             echo BEGIN\n{script}\necho END\nsync\npoweroff -f\n"
        );
        cpio_entry(&mut archive, "init", 0o100_755, init.as_bytes());
        cpio_entry(&mut archive, "TRAILER!!!", 0, b"");
        fs::write(to, archive).unwrap();
    }
}

/// Appends an entry in the format that kernels unpack ("newc").
fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let inode = archive.len();
    let head = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    archive.extend(head.iter().flat_map(|n| format!("{n:08x}").into_bytes()));
    for part in [format!("{name}\0").as_bytes(), content] {
        archive.extend_from_slice(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}

/// Everything that a command line can have is accepted, under the sandbox, by the shim's process, and answers.
#[tokio::test]
#[ignore = "starts QEMU"]
async fn every_device_is_accepted() {
    for machine in ["pc", "q35"] {
        let bench = Bench::new();
        let mut disks = Vec::new();
        for (i, bus) in [
            DiskBus::Virtio,
            DiskBus::Scsi,
            DiskBus::Ide,
            DiskBus::Sata,
            DiskBus::Nvme,
            DiskBus::Virtio,
            DiskBus::Usb,
            DiskBus::Scsi,
        ]
        .into_iter()
        .enumerate()
        {
            let path = bench.path(&format!("disk, {i} = \"\n"));
            File::create(&path).unwrap().set_len(1 << 20).unwrap();
            let serial = Some(format!("serial, {i}"));
            let boot_index = Some(u32::try_from(i).unwrap());
            disks.push(Disk { bus, serial, boot_index, ..Disk::new(Node::new(DiskSource::Path(path), "raw")) });
        }
        disks[5].node.read_only = true;
        disks[6].traits = DiskTraits {
            sector_size: Some(SectorSize::S4096),
            write_cache: Some(false),
            removable: true,
            ..DiskTraits::default()
        };
        disks[7].traits = DiskTraits {
            wwn: Some(Wwn::parse("0x5000c500a1b2c3d4").unwrap()),
            fua: Some(true),
            paths: Some(2),
            ..DiskTraits::default()
        };
        disks[7].boot_index = None;
        // A file without a name any more.
        let unnamed = tempfile::tempfile().unwrap();
        unnamed.set_len(1 << 20).unwrap();
        let mut descriptors = Descriptors::default();
        disks.push(Disk::new(Node::new(DiskSource::FdSet(descriptors.add_set(Purpose::Volume, unnamed)), "raw")));
        let shared = bench.path("dir, a=b\n'");
        fs::create_dir(&shared).unwrap();
        let config = MachineConfig {
            name: "a, name = with\n'odd' \"characters\"".to_owned(),
            machine: machine.to_owned(),
            memory: 128 << 20,
            cpus: 2,
            disks,
            shares: vec![
                Share {
                    tag: "a,b".to_owned(),
                    device: Some(push_device),
                    port: None,
                    server: None,
                    on_disk: false,
                    path: shared,
                    read_only: false,
                },
                Share {
                    tag: "t".repeat(31),
                    device: Some(push_device),
                    port: None,
                    server: None,
                    on_disk: false,
                    path: "/".into(),
                    read_only: true,
                },
            ],
            smbios: vec!["a=b, c".to_owned()],
            vmgenid: true,
            vga: Some("VGA".to_owned()),
            ..MachineConfig::default()
        };
        let mut qemu = bench.spawn(config, descriptors).await.unwrap();
        let qmp = qemu.qmp();
        assert!(qmp.execute(QueryStatus {}).await.unwrap().running);
        assert_eq!(qmp.execute(QueryCpusFast {}).await.unwrap().len(), 2);
        assert!(qmp.execute(QueryVersion {}).await.unwrap().qemu.major >= 7);
        let info = qmp.execute(HumanMonitorCommand { command_line: "info name".to_owned() }).await.unwrap();
        assert!(info.starts_with("a, name = with"), "{info}");
        let mut events = qemu.events();
        qmp.execute(SystemPowerdown {}).await.unwrap();
        assert_eq!(events.next().await.unwrap().name, "POWERDOWN");
        assert!(qemu.cpu_time() > Duration::ZERO && qemu.rss().unwrap() > 1 << 20);
        let end = qemu.quit(PATIENCE).await.unwrap();
        assert_eq!((end.status.code(), end.killed), (Some(0), false), "{end}");
    }
}

#[tokio::test]
#[ignore = "starts QEMU"]
async fn qemu_tells_what_is_wrong_and_so_do_we() {
    let bench = Bench::new();
    let config = MachineConfig { machine: "no-such-machine".to_owned(), ..MachineConfig::default() };
    let said = bench.spawn(config, Descriptors::default()).await.unwrap_err().to_string();
    assert!(said.contains("unsupported machine type") && said.contains("-machine help"), "{said}");

    // Held by one, wanted by another.
    let path = bench.path("image");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let config = || MachineConfig {
        disks: vec![Disk::new(Node::new(DiskSource::Path(path.clone()), "raw"))],
        ..MachineConfig::default()
    };
    let mut first = bench.spawn(config(), Descriptors::default()).await.unwrap();
    let said = bench.spawn(config(), Descriptors::default()).await.unwrap_err().to_string();
    assert!(said.contains("Another process writes to this image"), "{said}");
    first.kill().await.unwrap();
}

/// The guest's root tries everything that makes a file more than a file.
#[tokio::test]
#[ignore = "boots a guest"]
async fn what_a_guest_leaves_is_plain_files_of_the_caller() {
    let bench = Bench::new();
    let shared = bench.path("shared");
    fs::create_dir(&shared).unwrap();
    let share = |tag: &str, path: &Path, read_only| Share {
        on_disk: false,
        tag: tag.to_owned(),
        device: Some(push_device),
        port: None,
        server: None,
        path: path.to_owned(),
        read_only,
    };
    let config = MachineConfig {
        nic: Nic { mode: NicMode::None, ..Nic::default() },
        shares: vec![share("w", &shared, false), share("r", Path::new("/"), true)],
        ..MachineConfig::default()
    };
    let script = r#"
        mkdir /w /r
        mount -t 9p -o trans=virtio,version=9p2000.L,access=any w /w
        mount -t 9p -o trans=virtio,version=9p2000.L,access=any r /r
        mount --bind /w /r/mnt
        cat > /tmp/script <<'SCRIPT'
            export PATH=/usr/sbin:/usr/bin:/sbin:/bin
            cd /mnt; umask 022; id -u
            echo x > owned; chown 1234:2345 owned && echo chown-ok
            cp /bin/true setuid; chmod u+s setuid || echo setuid-refused
            cp /bin/true setuid2; chmod 6755 setuid2 || echo both-refused
            cp /bin/true setgid; chmod g+s setgid; echo setgid-done
            perl -e 'use Fcntl; sysopen(F, "created", O_CREAT|O_WRONLY, 04755) or print "create-refused\n"'
            mknod char c 1 3 || echo char-refused
            mknod block b 8 0 || echo block-refused
            mknod fifo p; echo fifo $?
            cp /bin/true caps; setcap cap_net_admin,cap_sys_admin+ep caps || echo setcap-refused
            ln -s /etc/shadow link; ln owned hard && echo links-ok
            ln -s ../../../../../../../../etc escape
            mkdir dir; chmod 3777 dir; chown 5:5 dir; echo y > dir/f; mkdir dir/sub
            tar -C /bin -cf - true | tar -xf - -C dir --owner=7 && echo tar-ok
            echo z > plain; chmod 640 plain; chmod +x dir/f
            cp -a plain copied && rm copied && echo copy-ok
            touch -d 2001-02-03 plain
            echo w > /etc/belljar-test || echo root-is-read-only
SCRIPT
        cp /tmp/script /w/script
        chroot /r /bin/sh /mnt/script
        umount /r/mnt /w; rm -f /w/script
    "#;
    let said = bench.run(config, &["virtio_pci", "9pnet_virtio", "9p"], script).await;
    let words = "chown-ok setuid-refused both-refused setgid-done create-refused char-refused block-refused \
                 setcap-refused links-ok tar-ok copy-ok root-is-read-only";
    for word in words.split_whitespace() {
        assert!(said.lines().any(|line| line == word), "{word} is missing from:\n{said}");
    }

    let me = fs::metadata(&shared).unwrap();
    let mut seen = Vec::new();
    let mut left = vec![shared.clone()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            assert_eq!((meta.uid(), meta.gid()), (me.uid(), me.gid()), "{}", path.display());
            // A directory with the bit would be harmless, and has it not either.
            assert_eq!(meta.permissions().mode() & 0o6000, 0, "{}", path.display());
            assert!(!kind.is_char_device() && !kind.is_block_device(), "{}", path.display());
            if kind.is_file() {
                let caps = rustix::fs::getxattr(&path, "security.capability", &mut [0u8; 64][..]);
                assert_eq!(caps.unwrap_err(), rustix::io::Errno::NODATA, "{}", path.display());
            }
            if kind.is_dir() {
                left.push(path.clone());
            }
            seen.push(path);
        }
    }
    assert!(seen.len() >= 14, "{seen:?}\n{said}");
    assert_eq!(fs::metadata(shared.join("plain")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(shared.join("plain")).unwrap().mtime() / 86_400, 11_356);
    assert_eq!(fs::read_link(shared.join("link")).unwrap(), Path::new("/etc/shadow"));
    assert!(!Path::new("/etc/belljar-test").exists());
}

/// DHCP answers, and nothing else does: not the host under any of its names.
#[tokio::test]
#[ignore = "boots two guests"]
async fn an_isolated_guest_reaches_nothing() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    greet(listener);
    // The same number, so that one script asks for both; hosts without IPv6 have nothing to reach there.
    let has_ipv6 = TcpListener::bind(("::1", port)).map(greet).is_ok();
    let datagrams = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let datagrams6 = UdpSocket::bind(("::1", port));
    let script = format!(
        r#"
        printf '#!/bin/sh\n[ -n "$ip" ] && ip addr add $ip/24 dev eth0 && echo "LEASE $ip router $router dns $dns"\n' > /tmp/lease
        chmod +x /tmp/lease
        ip link set lo up; ip link set eth0 up
        udhcpc -i eth0 -s /tmp/lease -q -n -f 2>&1
        ip route add default via 10.0.2.2
        for i in 1 2 3 4 5 6; do grep -q '^fec0' /proc/net/if_inet6 && break; sleep 1; done
        ip -6 addr add fec0::99/64 dev eth0 2>/dev/null; sleep 2
        for to in 10.0.2.2 10.0.2.3 {address} fec0::2 fec0::3; do
            for port in {port} 22 53 111; do
                echo | timeout 5 nc $to $port 2>/dev/null | grep -q GREETING && echo REACHED $to $port
            done
            # A datagram.
            timeout 2 tftp -g -r x -l /tmp/x $to {port} >/dev/null 2>&1
        done
        nslookup localhost 10.0.2.3 >/dev/null 2>&1 && echo REACHED dns
        tftp -g -r etc/hostname -l /tmp/x 10.0.2.2 >/dev/null 2>&1 && echo REACHED tftp
    "#,
        address = host_address(),
    );
    let modules = ["virtio_pci", "virtio_net", "af_packet"];
    let config = |mode| MachineConfig { nic: Nic { mode, ..Nic::default() }, ..MachineConfig::default() };
    let received = |socket: &UdpSocket| {
        socket.set_nonblocking(true).unwrap();
        socket.recv(&mut [0; 100]).is_ok()
    };

    let said = Bench::new().run(config(NicMode::Isolated), &modules, &script).await;
    assert!(said.contains("LEASE 10.0.2.15"), "{said}");
    assert!(!said.contains("REACHED"), "{said}");
    assert!(!received(&datagrams) && !datagrams6.as_ref().is_ok_and(received), "{said}");

    // The same script finds what is there when it may: its silence above means something.
    let said = Bench::new().run(config(NicMode::User), &modules, &script).await;
    assert!(said.contains(&format!("REACHED 10.0.2.2 {port}")), "{said}");
    assert!(received(&datagrams), "{said}");
    if has_ipv6 {
        assert!(said.contains(&format!("REACHED fec0::2 {port}")), "{said}");
        assert!(received(datagrams6.as_ref().unwrap()), "{said}");
    }
}

/// Says a word to everyone who connects, for as long as the test runs.
fn greet(listener: TcpListener) {
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let _ = connection.and_then(|mut connection| connection.write_all(b"GREETING\n"));
        }
    });
}

/// An address of this host by which others reach it; any, if it has none.
fn host_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let address = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    address.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}
