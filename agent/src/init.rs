//! The agent as the guest's first process: makes a system out of an initramfs, as [`InitConfig`] says.

use std::fs;
use std::os::fd::AsRawFd;

use belljar_proto::frame::from_bytes;
use belljar_proto::message::{INIT_CONFIG_PATH, InitConfig, InitRoot};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};
use rustix::system::RebootCommand;

use crate::agent::Agent;
use crate::port::{self, NoPort};
use crate::{beside, modules, mounts, root, serve, shutdown, sys, text};

/// What ends the guest before it has begun: the step and why it failed.
struct Fatal(String);

impl Fatal {
    fn step(what: &str, errno: Errno) -> Self {
        Self(format!("{what}: {}", text::errno(errno)))
    }
}

/// Does not come back.
pub(crate) fn run() -> ! {
    let why = match start() {
        Ok(agent) => {
            agent.run();
            Fatal("the port is gone".into())
        }
        Err(why) => why,
    };
    text::say(&format!("fatal: {}", why.0));
    // The line has to leave the serial port before the machine is gone.
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
    shutdown::end(RebootCommand::PowerOff);
    sys::exit_now(1)
}

fn start() -> Result<Agent, Fatal> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let config =
        fs::read(INIT_CONFIG_PATH).map_err(|error| Fatal(format!("read {INIT_CONFIG_PATH}: {}", text::io(&error))))?;
    let config: InitConfig = from_bytes(&config).map_err(|error| Fatal(format!("{INIT_CONFIG_PATH}: {error}")))?;
    if let InitRoot::OfGuest { init } = &config.root {
        return Err(Fatal(beside::begin(init)));
    }
    for module in &config.modules {
        match modules::insert(module.as_str()) {
            Ok(()) => {}
            // Also what the kernel says when a symbol is unknown.
            Err(Errno::NOENT) => {
                text::say(&format!("module {module}: ENOENT (the file, or a module that it needs, is missing)"));
            }
            Err(errno) => text::say(&format!("module {module}: {}", text::errno(errno))),
        }
    }
    let mut of_disk = None;
    let mut own_init = None;
    let mut of_kernel = None;
    if !matches!(config.root, InitRoot::Initramfs) {
        // Read, and in memory for nothing from here on.
        for module in &config.modules {
            let _ = rustix::fs::unlink(module.as_str());
        }
    }
    let root = match config.root {
        InitRoot::Share(source) => {
            root::prepare().map_err(Fatal)?;
            Some(source)
        }
        InitRoot::Disk { ref serial, ref file_system, ref init, ref modules } => {
            of_disk = Some((serial, file_system));
            of_kernel = modules.as_ref();
            own_init = init.as_deref();
            root::prepare().map_err(Fatal)?;
            None
        }
        InitRoot::Initramfs | InitRoot::OfGuest { .. } => None,
    };
    let place = match own_init {
        Some(_) => Place::OwnInit,
        None if root.is_none() && of_disk.is_none() => Place::Memory,
        None => Place::Disk,
    };
    mount_system(place)?;
    if let Some((serial, file_system)) = of_disk {
        // It is the machine's own, so that a guest can be frozen that has it.
        root::enter_disk(serial, file_system).map_err(Fatal)?;
    }
    if let Some(modules) = of_kernel {
        root::mount_modules(modules).map_err(Fatal)?;
    }
    console();
    if let Some(init) = own_init {
        return Err(Fatal(beside::start_own(init)));
    }
    serve::protect();
    limits();
    if let Err(errno) = sys::loopback_up() {
        text::say(&format!("loopback interface: {}", text::errno(errno)));
    }
    let port = port::open(false).map_err(|error| match error {
        NoPort::Lacking(why) | NoPort::Unopened(why) => Fatal(format!("no port to talk to Belljar: {why}")),
    })?;
    let agent = Agent::new(port, Vec::new()).map_err(|errno| Fatal::step("signalfd", errno))?;
    Ok(match root {
        Some(source) => agent.with_root_at_setup(source),
        None => agent,
    })
}

/// One of the file systems that a system has.
struct SystemMount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: &'static str,
    /// Nothing works without it.
    needed: bool,
    /// Not where the root is in memory already.
    on_disk_only: bool,
    /// Also where the guest has an init of its own, to which an initramfs hands over no more than these.
    handed_over: bool,
}

/// Where the root is, and who makes a system of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    Disk,
    /// On a disk, with an init that mounts what it wants.
    OwnInit,
}

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const KERNEL: MountFlags = PLAIN.union(MountFlags::NOEXEC);

const fn system(kind: &'static str, at: &'static str, flags: MountFlags, data: &'static str) -> SystemMount {
    SystemMount { kind, at, flags, data, needed: false, on_disk_only: false, handed_over: false }
}

const SYSTEM: &[SystemMount] = &[
    SystemMount { needed: true, handed_over: true, ..system("proc", "/proc", KERNEL, "") },
    SystemMount { needed: true, handed_over: true, ..system("sysfs", "/sys", KERNEL, "") },
    SystemMount { needed: true, handed_over: true, ..system("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755") },
    system("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "gid=5,mode=0620,ptmxmode=0666"),
    system("tmpfs", "/dev/shm", PLAIN, "mode=1777"),
    SystemMount { on_disk_only: true, handed_over: true, ..system("tmpfs", "/run", PLAIN, "mode=0755") },
    // As a disk would have it: tests make devices and set-uid files there.
    SystemMount { on_disk_only: true, ..system("tmpfs", "/tmp", MountFlags::empty(), "mode=1777") },
    system("cgroup2", "/sys/fs/cgroup", KERNEL, ""),
    system("debugfs", "/sys/kernel/debug", KERNEL, "mode=0700"),
    system("tracefs", "/sys/kernel/tracing", KERNEL, "mode=0700"),
];

fn mount_system(place: Place) -> Result<(), Fatal> {
    let in_memory = place == Place::Memory;
    for wanted in SYSTEM.iter().filter(|wanted| wanted.handed_over || place != Place::OwnInit) {
        if wanted.on_disk_only && in_memory {
            let _ = rustix::fs::mkdir(wanted.at, Mode::from_raw_mode(0o755));
            continue;
        }
        let mount = || mounts::mount(wanted.kind, wanted.at, wanted.kind, wanted.flags, wanted.data);
        let mut mounted = mount();
        if mounted == Err(Errno::NOENT) && rustix::fs::mkdir(wanted.at, Mode::from_raw_mode(0o755)).is_ok() {
            mounted = mount();
        }
        match mounted {
            // The kernel may have mounted /dev itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) if wanted.needed => {
                let what = format!("mount {} on {}", wanted.kind, wanted.at);
                return Err(Fatal::step(&what, errno));
            }
            // A kernel built without it.
            Err(_) => {}
        }
    }
    if in_memory {
        let _ = rustix::fs::chmod("/tmp", Mode::from_raw_mode(0o1777));
    }
    if place != Place::OwnInit {
        let _ = rustix::fs::mkdir("/run/lock", Mode::empty());
        let _ = rustix::fs::chmod("/run/lock", Mode::from_raw_mode(0o1777));
    }
    mounts::link("/proc/self/fd", "/dev/fd");
    mounts::link("/proc/self/fd/0", "/dev/stdin");
    mounts::link("/proc/self/fd/1", "/dev/stdout");
    mounts::link("/proc/self/fd/2", "/dev/stderr");
    Ok(())
}

/// Standard streams on the console, or on nothing: never closed, lest another file get their numbers.
fn console() {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let opened = rustix::fs::open("/dev/console", flags, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/null", flags, Mode::empty()));
    if let Ok(console) = opened {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
        if console.as_raw_fd() <= 2 {
            // The kernel had found no console, so this is one of the three.
            std::mem::forget(console);
        }
    }
}

/// As service managers have it: programs may raise the number of open files.
fn limits() {
    let limit = Rlimit { current: Some(1024), maximum: Some(524_288) };
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}
