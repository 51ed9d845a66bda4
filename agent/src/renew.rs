//! The agent as a new process: between two tests that share a guest, so that the second one's secrets come to memory that the first one
//! cannot have looked at.
//!
//! The program is executed anew, and finds what it goes on with in a sealed file in memory, whose descriptor is its argument. The port
//! stays open all the while, so that nobody else can open it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use belljar_proto::frame::{from_bytes, to_bytes};
use belljar_proto::message::Mount;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io::{Errno, FdFlags};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::kmsg::KernelRecord;
use crate::leftovers::{Baseline, Shares};
use crate::port::{Kind, Port};
use crate::share::disk::Unpacked;
use crate::sys::{self, Strings};
use crate::{still, text};

/// What the new process goes on with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub(crate) port: RawFd,
    pub(crate) port_kind: Kind,
    pub(crate) kernel_record: Option<RawFd>,
    pub(crate) tainted: u64,
    pub(crate) env: Vec<Vec<u8>>,
    pub(crate) hostname: String,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) shares: Shares,
    pub(crate) baseline: Baseline,
    pub(crate) quiesced: bool,
    /// What is known of shares that came on a disk.
    pub(crate) unpacked: Option<RawFd>,
}

/// A new process that is ready to begin.
pub(crate) struct Prepared {
    carried: OwnedFd,
    keep: Vec<RawFd>,
}

/// Writes down what the new process needs.
pub(crate) fn prepare(carried: &Carried) -> Result<Prepared, Errno> {
    let bytes = to_bytes(carried).map_err(|_| Errno::TOOBIG)?;
    let file = rustix::fs::memfd_create("belljar-carried", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    let keep = [Some(carried.port), carried.kernel_record, carried.unpacked];
    Ok(Prepared { carried: file, keep: keep.into_iter().flatten().collect() })
}

/// Becomes the new process; comes back only with an error.
pub(crate) fn become_new(prepared: &Prepared, port: &Port) -> Errno {
    for &fd in &prepared.keep {
        if let Err(errno) = sys::pass_on(fd) {
            return errno;
        }
    }
    if let Err(errno) = rustix::io::fcntl_setfd(&prepared.carried, FdFlags::empty()) {
        return errno;
    }
    let number = prepared.carried.as_raw_fd().to_string().into_bytes();
    let argv = sys::c_strings(vec![b"belljar-agent".to_vec(), b"serve".to_vec(), b"--renewed".to_vec(), number]);
    let env = sys::own_environment();
    // What runs can be written to by nobody, wherever it came from.
    let errno = sys::execve(c"/proc/self/exe", &Strings::new(&argv), &Strings::new(&env));
    let _ = rustix::io::fcntl_setfd(port.as_fd(), FdFlags::CLOEXEC);
    errno
}

/// `serve --renewed`: goes on where an earlier process of the agent was.
pub(crate) fn go_on(carried: OwnedFd) -> i32 {
    let _ = rustix::thread::set_name(c"belljar-agent");
    match read(&carried).and_then(|carried| {
        if carried.port_kind == Kind::SystemContainer {
            still::beside_systemd();
        }
        Agent::renewed(carried)
    }) {
        Ok(agent) => {
            drop(carried);
            agent.run();
            0
        }
        Err(errno) => {
            text::say(&format!("serve --renewed: {}", text::errno(errno)));
            1
        }
    }
}

fn read(file: &OwnedFd) -> Result<Carried, Errno> {
    // Only the agent itself makes such a file: nobody can have changed it.
    if !rustix::fs::fcntl_get_seals(file)?.contains(SealFlags::WRITE) {
        return Err(Errno::INVAL);
    }
    let size = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| Errno::INVAL)?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::read(file, &mut bytes[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    from_bytes(&bytes[..filled]).map_err(|_| Errno::INVAL)
}

impl Carried {
    /// Takes over what is open.
    pub(crate) fn open(&self) -> Result<(Port, KernelRecord, Option<Unpacked>), Errno> {
        let port = Port { fd: sys::inherit(self.port)?, kind: self.port_kind };
        let record = self.kernel_record.map(sys::inherit).transpose()?;
        let unpacked = self.unpacked.map(sys::inherit).transpose()?.map(Unpacked::inherited);
        Ok((port, KernelRecord::inherited(record, self.tainted), unpacked))
    }
}
