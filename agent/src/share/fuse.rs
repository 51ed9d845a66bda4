//! Shares over FUSE: the kernel's requests go through a port of the machine to a server on the host. A relay passes them.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{Carrier, Cause, Use, relay};
use crate::port::{self, NoPort};
use crate::{mounts, sys};

/// The type of its mounts in `/proc/mounts`, which tells them from those of the guest's own.
pub(super) const KIND: &str = "fuse.belljar";
const DEVICE: &str = "/dev/fuse";
/// The device's number (the kernel's `Documentation/admin-guide/devices.txt`).
const NUMBER: (u32, u32) = (10, 229);
/// How often a port is looked at that is to be closed.
const LOOK: Duration = Duration::from_millis(5);
/// The machine has no port of this name.
const NO_PORT: Errno = Errno::ADDRNOTAVAIL;

/// The share whose port has this name.
pub(super) struct Fuse<'a> {
    pub(super) port: &'a str,
}

impl Carrier for Fuse<'_> {
    fn file_system(&self) -> &'static str {
        "fuse"
    }

    fn modules(&self) -> &'static [&'static str] {
        &["fuse"]
    }

    fn bus(&self) -> &'static [&'static str] {
        &["virtio_pci", "virtio_console"]
    }

    /// `default_permissions`: the guest's kernel judges its users by owners and modes, as on a disk. `allow_other`: it lets others than the
    /// one who mounts in at all.
    fn mount(&self, target: &str, wanted: Use) -> Result<(), Errno> {
        let device = port::open_device(DEVICE, NUMBER)?;
        let port = match port::named(self.port) {
            Ok(port) => port.fd,
            Err(NoPort::Lacking(_)) => return Err(NO_PORT),
            Err(NoPort::Unopened(_)) => return Err(Errno::BUSY),
        };
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions");
        let name = self.port.rsplit('.').next().unwrap_or(self.port);
        mounts::mount(name, target, KIND, wanted.flags(), &options)?;
        let answers = relay::start(device, port).and_then(|()| rustix::fs::stat(target));
        if let Err(errno) = answers {
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
            return Err(errno);
        }
        Ok(())
    }

    /// `ENODEV`: no such file system. `ENOENT`, `ENXIO`: no driver behind the device.
    fn may_lack_modules(&self, errno: Errno) -> bool {
        matches!(errno, Errno::NODEV | Errno::NOENT | Errno::NXIO | NO_PORT)
    }

    fn explain(&self, errno: Errno) -> Cause {
        match errno {
            Errno::NODEV | Errno::NOENT | Errno::NXIO => Cause::Lacks(None),
            NO_PORT if !fs::exists("/sys/bus/virtio/drivers/virtio_console").unwrap_or(false) => {
                Cause::Lacks(Some("no virtio_console"))
            }
            NO_PORT => Cause::Other(Some("the machine has no port for this share")),
            Errno::BUSY => Cause::Other(Some("another program has the share's port open")),
            Errno::NOTCONN | Errno::CONNABORTED => Cause::Other(Some("nobody serves it on the host")),
            _ => Cause::Other(None),
        }
    }

    /// The relay ends when the mount does, and closes its port then.
    fn let_go(&self, deadline: Instant) -> Result<(), String> {
        loop {
            match port::named(self.port) {
                Err(NoPort::Unopened(why)) => {
                    if Instant::now() >= deadline {
                        return Err(format!("the relay of the share {}: {why}", self.port));
                    }
                    sys::poll(&mut [], Some(LOOK));
                }
                Ok(_) | Err(NoPort::Lacking(_)) => return Ok(()),
            }
        }
    }
}
