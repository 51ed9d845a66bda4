//! A machine that only has to be started.

use std::{fs::File, os::unix::net::UnixStream};

use belljar_image::disk::DiskError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use crate::{
    bounds::Before,
    conceal::ConcealError,
    lab::{Lab, LabDisk, LabLine},
    qemu::{args::MachineConfig, descriptors::Descriptors},
    share::{exchange::DiskExchange, served::Served, virtiofsd::ToServe},
    tpm,
    volume::Kept,
};

/// Why there is no machine for a copy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// What takes its writes cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What it must not see cannot be hidden.
    #[error(transparent)]
    Conceal(#[from] ConcealError),
    /// A file of it or of the template cannot be opened.
    #[error("cannot open what a copy of the template needs: {0}")]
    Files(#[from] std::io::Error),
}

/// A machine that only has to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) config: MachineConfig,
    pub(crate) descriptors: Descriptors,
    /// What Belljar serves itself.
    pub(crate) served: Vec<Served>,
    /// What the guest reads from its port for the agent, and where to write it.
    pub(crate) program: Option<FedProgram>,
    /// What comes and goes on the disk of shares.
    pub(crate) exchange: Option<DiskExchange>,
    /// The line to its TPM.
    pub(crate) tpm: Option<tpm::Line>,
    /// What programs beside QEMU serve.
    pub(crate) to_serve: Vec<ToServe>,
    /// Its lab disks.
    pub(crate) lab: Vec<LabDisk>,
    /// Lines to those that are served already.
    pub(crate) lab_lines: Vec<LabLine>,
    /// What is kept of each of its volumes, in their order.
    pub(crate) kept: Vec<Kept>,
    /// What is in its persistent memory.
    pub(crate) pmem: Vec<File>,
    /// What is left of the machine in whose place it comes.
    pub(crate) predecessor: Option<Predecessor>,
}

/// What is left of a machine that went down to come up again, beside its volumes.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// Its lab disks.
    pub(crate) lab: Lab,
    /// What there was before its guest wrote.
    pub(crate) before: Before,
    /// What is in its persistent memory.
    pub(crate) pmem: Vec<File>,
}

/// The agent on its way to a guest that reads it from a port.
#[derive(Debug)]
pub(crate) struct FedProgram {
    pub(crate) bytes: &'static [u8],
    pub(crate) to: UnixStream,
}

impl Launch {
    /// A machine that has no volumes yet.
    pub(crate) fn of(config: MachineConfig) -> Self {
        Self {
            config,
            descriptors: Descriptors::default(),
            served: Vec::new(),
            program: None,
            exchange: None,
            tpm: None,
            to_serve: Vec::new(),
            lab: Vec::new(),
            lab_lines: Vec::new(),
            kept: Vec::new(),
            pmem: Vec::new(),
            predecessor: None,
        }
    }
}

/// The agent's way to a guest that reads it from a port. It ends with the machine.
#[derive(Debug)]
pub(crate) struct Feeding(JoinHandle<()>);

impl Feeding {
    pub(crate) fn start(program: FedProgram) -> Self {
        Self(tokio::spawn(feed(program)))
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Writes the agent to who reads it. Who does not get all of it cannot run it, and says so.
async fn feed(FedProgram { bytes, to }: FedProgram) {
    let connected = to.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(to));
    if let Ok(mut to) = connected
        && to.write_all(bytes).await.is_ok()
    {
        // The reader gets its end only when all of it has been taken.
        let _ = to.shutdown().await;
        let _ = to.read_u8().await;
    }
}
