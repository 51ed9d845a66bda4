//! From a plan to a machine that only has to be started.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use belljar_image::disk::unnamed;
use belljar_share_disk::layout::DISK_SIZE;
use belljar_share_fuse::Use;

use crate::{
    conceal::{ConcealError, ServedDirectory},
    launch::{FedProgram, Launch, Predecessor},
    plan::{Plan, PlanError},
    plan_shares::{make_placeholder, put_agent},
    qemu::{
        args::{Chardev, DiskSource, HelperLine, ProgramPort},
        descriptors::Purpose,
    },
    share::{self, exchange::DiskExchange, served::Served, virtiofsd::ToServe},
    tpm,
    volume::{Kept, VolumeError},
};

impl Plan {
    /// Makes what a boot needs: layers that take what the guest writes, and the agent where the guest can fetch it.
    pub(crate) fn launch(&self) -> Result<Launch, PlanError> {
        let mut launch = Launch::of(self.config.clone());
        self.volumes.boot(&self.dir, &mut launch).map_err(VolumeError::from)?;
        self.complete(launch)
    }

    /// What a boot needs beside its volumes.
    fn complete(&self, mut launch: Launch) -> Result<Launch, PlanError> {
        self.bring_agent(&mut launch)?;
        self.conceal(&mut launch)?;
        launch.tpm = tpm::connect(&mut launch).map_err(|source| PlanError::TpmLine { source })?;
        self.put_agent_on_disk(&mut launch);
        Ok(launch)
    }

    /// The same for a machine in whose place it comes, with the volumes of that one. `of_template`: it was a template's copy; `mac`: the address of its
    /// network card, if it had one of its own.
    pub(crate) fn launch_again(
        &self,
        kept: Vec<Kept>,
        predecessor: Predecessor,
        of_template: bool,
        mac: Option<[u8; 6]>,
    ) -> Result<Launch, PlanError> {
        let mut config = if of_template { self.config_to_freeze() } else { self.config.clone() };
        if let Some(mac) = mac {
            config.nic.mac = Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
        }
        let mut launch = Launch { predecessor: Some(predecessor), ..Launch::of(config) };
        self.volumes.again(kept, &self.dir, &mut launch).map_err(VolumeError::from)?;
        self.complete(launch)
    }

    /// Puts the agent onto the disk of shares, for a guest that boots.
    pub(crate) fn put_agent_on_disk(&self, launch: &mut Launch) {
        if let Some(exchange) = launch.exchange.as_mut().filter(|_| self.config.program.on_disk.is_some()) {
            exchange.program = self.platform().agent().map(|agent| agent.program);
        }
    }

    /// Takes what the guest must not see out of its shares, and gives those their ports that Belljar serves itself.
    pub(crate) fn conceal(&self, launch: &mut Launch) -> Result<(), ConcealError> {
        let Launch { config, descriptors, served, exchange, to_serve, pmem, predecessor, .. } = launch;
        let mut left = predecessor.iter_mut().flat_map(|before| before.pmem.drain(..));
        for module in config.further.iter_mut().filter_map(|further| further.pmem.as_mut()) {
            let file = match left.next() {
                Some(file) => file,
                None => {
                    let file = unnamed(&self.dir)?;
                    file.set_len(module.size)?;
                    file
                }
            };
            module.file = Some(descriptors.add(Purpose::Volume, file.try_clone()?));
            pmem.push(file);
        }
        for log in config.further.iter_mut().filter_map(|further| further.log.as_mut()) {
            // What the guest wrote before it went down stays.
            let file = File::options().create(true).append(true).open(self.dir.join(log.file_name()))?;
            log.file = Some(descriptors.add_set(Purpose::Volume, file));
        }
        let mut on_disk = Vec::new();
        for one in self.concealment.apply(config, descriptors, &self.host, &self.dir)? {
            let ServedDirectory { tag, directory, view } = one;
            let Some(share) = config.shares.iter_mut().find(|share| share.tag == tag) else { continue };
            // Nothing is known in the guest of a workspace that there is not.
            if share.on_disk && (share.tag != share::WORKSPACE_TAG || self.share.workspace.is_some()) {
                let (directory, view) = (directory.try_clone()?, view.as_ref().map(OwnedFd::try_clone).transpose()?);
                let returns = !share.read_only;
                on_disk.push((ServedDirectory { tag: tag.clone(), directory, view }, returns));
            }
            let using = if share.read_only { Use::Reading } else { Use::Exchange };
            if share.server.is_some() {
                let (directory, view) = (directory.try_clone()?, view.as_ref().map(OwnedFd::try_clone).transpose()?);
                let made = ToServe::new(tag.clone(), directory, view, using, &self.dir);
                let (one, line) = made.map_err(ConcealError::Line)?;
                share.server = Some(HelperLine::Fd(descriptors.add(Purpose::Server, line)));
                to_serve.push(one);
            }
            if share.port.is_none() {
                continue;
            }
            let (port, theirs) = UnixStream::pair()?;
            share.port = Some(Chardev::Fd(descriptors.add(Purpose::Port, theirs)));
            served.push(Served { tag, port, directory, view, using });
        }
        if let Some(disk) = &mut config.share_disk {
            let file = unnamed(&self.dir)?;
            file.set_len(DISK_SIZE)?;
            let file_of_qemu = file.try_clone()?;
            disk.node.source = DiskSource::FdSet(descriptors.add_set(Purpose::Volume, file_of_qemu));
            *exchange = Some(DiskExchange::new(file, on_disk, &self.dir, self.share.bounds)?);
        }
        Ok(())
    }

    /// Puts what a boot needs where the guest finds it.
    pub(crate) fn bring_agent(&self, launch: &mut Launch) -> Result<(), PlanError> {
        let Launch { config, descriptors, program, .. } = launch;
        make_placeholder(config).map_err(|source| PlanError::Control { source })?;
        let agent = self.platform().agent();
        if let Some(agent) = agent.filter(|_| config.program.port.is_some()) {
            let (to, theirs) = UnixStream::pair().map_err(|source| PlanError::Control { source })?;
            config.program.port = Some(ProgramPort::Fed(descriptors.add(Purpose::Program, theirs)));
            *program = Some(FedProgram { bytes: agent.program, to });
        }
        self.put_agent_again().map_err(|source| PlanError::Control { source })
    }

    /// Puts the agent where a guest that has nothing else finds it.
    pub(crate) fn put_agent_again(&self) -> std::io::Result<()> {
        match self.platform().agent() {
            Some(agent) if self.config.shares.iter().any(|share| share.tag == share::CONTROL_TAG) => {
                put_agent(agent.program, &self.dir)
            }
            _ => Ok(()),
        }
    }
}
