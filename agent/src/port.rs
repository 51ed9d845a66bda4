//! The port over which the agent talks to Belljar: a virtio port, else the second serial port.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_proto::message::PORT_NAME;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::termios::{ControlModes, OptionalActions, QueueSelector};
use serde::{Deserialize, Serialize};

use crate::{modules, sys, text};

/// How long a virtio port may take to appear once its driver is there. Its name comes in a message of its own, and an
/// emulated guest is slow.
const APPEARS: Duration = Duration::from_secs(10);
const PORTS: &str = "/sys/class/virtio-ports";
const SERIAL: &str = "/dev/ttyS1";
/// Device number of [`SERIAL`].
const SERIAL_DEVICE: (u32, u32) = (4, 65);

/// What kind of port it is; they behave differently when the host is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Reports a hang-up while the host is away, and works again when it is back.
    Virtio,
    /// Knows nothing of the host.
    Serial,
    /// Handed over by whoever started the agent; when it ends, so does the agent.
    Given,
    /// A socket of the host's in a container, in which the agent is the first process; when it ends, so does the container.
    Container,
    /// The same in a container whose first process is the image's own systemd: when it ends, the agent has that end.
    SystemContainer,
}

impl Kind {
    /// Whether the agent ends with its port: there will be no other host.
    pub(crate) fn is_for_life(self) -> bool {
        self == Self::Given || self.is_container()
    }

    /// Whether the kernel is the guest's own, with its clock, its record and its names: a container has the host's.
    pub(crate) fn has_own_kernel(self) -> bool {
        matches!(self, Self::Virtio | Self::Serial)
    }

    /// Whether it is a container's, in whose namespace of processes nothing runs but what is the guest's.
    pub(crate) fn is_container(self) -> bool {
        matches!(self, Self::Container | Self::SystemContainer)
    }

    /// Whether all that runs here is the guest's: a test's agent runs on the machine of who wrote the test.
    pub(crate) fn is_in_guest(self) -> bool {
        self != Self::Given
    }
}

/// An open port.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: Kind,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why there is no port.
#[derive(Debug)]
pub(crate) enum NoPort {
    /// The kernel, or the machine, has neither kind.
    Lacking(String),
    /// There is one that cannot be opened.
    Unopened(String),
}

/// Opens the port: the virtio port of our name where there is one, else the second serial port.
pub(crate) fn open(may_modprobe: bool) -> Result<Port, NoPort> {
    let virtio = match virtio_port(PORT_NAME, may_modprobe) {
        Ok(Some(port)) => return Ok(port),
        Ok(None) => "no virtio port of the name ".to_owned() + PORT_NAME,
        // Open already: most likely another agent has it.
        Err(why) => return Err(NoPort::Unopened(why)),
    };
    match serial_port() {
        Ok(port) => Ok(port),
        Err(NoPort::Lacking(why)) => Err(NoPort::Lacking(format!("{virtio}; {why}"))),
        Err(NoPort::Unopened(why)) => Err(NoPort::Unopened(format!("{virtio}; {why}"))),
    }
}

/// Opens the virtio port of this name.
pub(crate) fn named(name: &str) -> Result<Port, NoPort> {
    match virtio_port(name, false) {
        Ok(Some(port)) => Ok(port),
        Ok(None) => Err(NoPort::Lacking(format!("no virtio port of the name {name}"))),
        Err(why) => Err(NoPort::Unopened(why)),
    }
}

fn virtio_port(name: &str, may_modprobe: bool) -> Result<Option<Port>, String> {
    let events = uevents();
    if let Some(found) = find_virtio(name) {
        return open_virtio(&found).map(Some);
    }
    if may_modprobe && !fs::exists(PORTS).unwrap_or(false) {
        modules::modprobe("virtio_console");
    }
    // Nothing is awaited on a machine without such a device.
    if !has_virtio_console() {
        if !(may_modprobe && has_unclaimed_virtio()) {
            return Ok(None);
        }
        if modules::modprobe("virtio_pci").is_some() && !has_virtio_console() {
            // There is no driver that would find it.
            return Ok(None);
        }
    }
    let deadline = Instant::now() + APPEARS;
    loop {
        if let Some(found) = find_virtio(name) {
            return open_virtio(&found).map(Some);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match &events {
            Ok(events) => {
                sys::poll(&mut [sys::poll_fd(events, libc::POLLIN)], Some(left));
                let mut event = [0; 4096];
                while rustix::io::read(events, &mut event).is_ok() {}
            }
            // A kernel without netlink: nothing tells us, so we look.
            Err(_) => sys::poll(&mut [], Some(left.min(Duration::from_millis(20)))),
        }
    }
}

/// A socket on which the kernel says what devices come and change.
///
/// # Errors
/// Of a kernel without netlink, or in a namespace to which it does not tell.
pub(crate) fn uevents() -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

struct Found {
    /// Such as `vport1p1`.
    device: String,
    number: (u32, u32),
}

fn find_virtio(wanted: &str) -> Option<Found> {
    for entry in fs::read_dir(PORTS).ok()?.flatten() {
        let path = entry.path();
        let Ok(name) = fs::read_to_string(path.join("name")) else {
            continue;
        };
        if name.trim_end() != wanted {
            continue;
        }
        let number = fs::read_to_string(path.join("dev")).ok()?;
        let (major, minor) = number.trim_end().split_once(':')?;
        return Some(Found {
            device: entry.file_name().into_string().ok()?,
            number: (major.parse().ok()?, minor.parse().ok()?),
        });
    }
    None
}

/// Whether the machine has a virtio console device (id 3) that a driver can take.
fn has_virtio_console() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else {
        return false;
    };
    devices
        .flatten()
        .any(|device| fs::read_to_string(device.path().join("device")).is_ok_and(|id| id.trim_end() == "0x0003"))
}

/// Whether the machine has a virtio console on its PCI bus that the virtio bus does not know of.
fn has_unclaimed_virtio() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/pci/devices") else {
        return false;
    };
    devices.flatten().any(|device| {
        let read = |file| fs::read_to_string(device.path().join(file)).unwrap_or_default();
        read("vendor").trim_end() == "0x1af4" && matches!(read("device").trim_end(), "0x1003" | "0x1043")
    })
}

fn open_virtio(found: &Found) -> Result<Port, String> {
    let fd = open_device(&format!("/dev/{}", found.device), found.number).map_err(|error| {
        let hint = if error == Errno::BUSY { ": another program has it, perhaps another agent" } else { "" };
        format!("open virtio port {}: {}{hint}", found.device, text::errno(error))
    })?;
    Ok(Port { fd, kind: Kind::Virtio })
}

/// Opens a character device by its node, or by one that is made for the purpose where nobody has made it.
pub(crate) fn open_device(node: &str, number: (u32, u32)) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open_node(FileType::CharacterDevice, node, number, flags)
}

/// The same for a device of this kind.
pub(crate) fn open_node(
    kind: FileType,
    node: &str,
    (major, minor): (u32, u32),
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let number = rustix::fs::makedev(major, minor);
    if rustix::fs::stat(node).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number)
    {
        return rustix::fs::open(node, flags, Mode::empty());
    }
    let mut last = Errno::NOENT;
    // Which of them is writable and allows devices differs between systems.
    for directory in ["/dev", "/run", "/", "/tmp"] {
        let own = format!("{directory}/.belljar-port");
        let _ = rustix::fs::unlink(&own);
        let mode = Mode::RUSR | Mode::WUSR;
        let opened = rustix::fs::mknodat(CWD, &own, kind, mode, number)
            .and_then(|()| rustix::fs::open(&own, flags, Mode::empty()));
        let _ = rustix::fs::unlink(&own);
        match opened {
            Ok(fd) => return Ok(fd),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn serial_port() -> Result<Port, NoPort> {
    let consoles = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    if consoles.split_whitespace().any(|console| console == "ttyS1") {
        return Err(NoPort::Unopened(format!("{SERIAL} is a console of the kernel")));
    }
    let fd = match open_device(SERIAL, SERIAL_DEVICE) {
        Ok(fd) => fd,
        Err(error @ (Errno::NXIO | Errno::NODEV | Errno::NOENT)) => {
            return Err(NoPort::Lacking(format!("{SERIAL}: {}", text::errno(error))));
        }
        Err(error) => {
            return Err(NoPort::Unopened(format!("open {SERIAL}: {}", text::errno(error))));
        }
    };
    // The 8250 driver makes nodes for ports that are not there.
    if sys::serial_type(fd.as_fd()) == Ok(0) {
        return Err(NoPort::Lacking(format!("{SERIAL} has no chip behind it")));
    }
    make_raw(&fd).map_err(|error| NoPort::Unopened(format!("set up {SERIAL}: {}", text::errno(error))))?;
    Ok(Port { fd, kind: Kind::Serial })
}

/// Makes a terminal pass bytes as they are.
pub(crate) fn make_raw(fd: &OwnedFd) -> Result<(), Errno> {
    let mut settings = rustix::termios::tcgetattr(fd)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD | ControlModes::CS8;
    settings.control_modes &=
        !(ControlModes::CRTSCTS | ControlModes::HUPCL | ControlModes::PARENB | ControlModes::CSTOPB);
    let _ = settings.set_speed(115_200);
    rustix::termios::tcsetattr(fd, OptionalActions::Now, &settings)?;
    // Not for a pseudo-terminal in a test, which has no such thing as an owner.
    let _ = rustix::termios::ioctl_tiocexcl(fd);
    rustix::termios::tcflush(fd, QueueSelector::IOFlush)
}
