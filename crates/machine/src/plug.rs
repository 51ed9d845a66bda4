//! Plugging devices into a guest that runs: before it is frozen in its turn, or into a copy.
//!
//! The bytes of the disks are in the machine from its start, only their devices come later, under the names and in the slots that they would
//! have had from the boot on. One at a time: a guest names disks in the order in which it meets them.

use std::time::Duration;

use belljar_model::{CrashKind, Phase};
use belljar_proto::message::{DeviceSign, WantedDevice};

use crate::{
    Lost,
    hotplug::is_gone,
    limits::Limits,
    plan_template::{CARD_KIND, CardChange},
    qemu::{
        args::{CARD, MachineConfig, NETDEV, Plugged},
        qmp::{DeviceAdd, DeviceDel, NetdevAdd, NetdevDel, Qmp, QmpCommand, QmpError},
    },
    session::agent::{AgentSession, of_session},
};

/// What is to change in a machine that runs.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    disks: Vec<Plugged>,
    card: Option<(CardChange, Plugged)>,
    unknown: bool,
}

/// Why a device is not in the guest.
#[derive(Debug)]
pub(crate) struct Unplugged {
    /// The kind of device.
    pub(crate) kind: &'static str,
    pub(crate) why: String,
}

/// What came of plugging, where nothing good did.
#[derive(Debug)]
pub(crate) enum PlugError {
    /// The guest has not got the device.
    Unplugged(Unplugged),
    /// The guest is lost.
    Lost(Lost),
}

impl Changes {
    /// The disks of this machine that are not attached, and what becomes of its network card.
    pub(crate) fn of(config: &MachineConfig, card: CardChange) -> Self {
        let disks = config.plugged();
        let there = config.card().zip(config.nic_slot()).map(|(device, slot)| Plugged {
            device,
            name: "the network card".to_owned(),
            kind: CARD_KIND,
            slot,
            sign: DeviceSign::Network,
        });
        let card = there.filter(|_| card != CardChange::None).map(|device| (card, device));
        Self { unknown: disks.is_none(), disks: disks.unwrap_or_default(), card }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.card.is_none() && !self.unknown
    }

    /// The kind of one of the devices, for what concerns all.
    pub(crate) fn kind(&self) -> &'static str {
        self.disks.first().map_or(CARD_KIND, |disk| disk.kind)
    }
}

/// Makes the changes, each of which the guest has to take note of.
pub(crate) async fn plug(
    changes: &Changes,
    qmp: &Qmp,
    session: &mut AgentSession,
    limits: &Limits,
) -> Result<(), PlugError> {
    let mut plugging = Plugger { qmp, session, limit: limits.device() };
    if changes.unknown {
        let why = "it has no place in this machine".to_owned();
        return Err(PlugError::Unplugged(Unplugged { kind: changes.kind(), why }));
    }
    if let Some((change, card)) = &changes.card {
        plugging.remove_card(card).await?;
        if *change == CardChange::Replace {
            plugging.say(card, NetdevAdd { kind: "user", id: NETDEV }).await?;
            plugging.add(card).await?;
        }
    }
    for disk in &changes.disks {
        plugging.add(disk).await?;
    }
    Ok(())
}

struct Plugger<'a> {
    qmp: &'a Qmp,
    session: &'a mut AgentSession,
    limit: Duration,
}

impl Plugger<'_> {
    async fn say<C: QmpCommand>(&self, of: &Plugged, command: C) -> Result<(), PlugError> {
        match self.qmp.execute(command).await {
            Ok(_) => Ok(()),
            // What it died of will be known in a moment.
            Err(error @ QmpError::Closed { .. }) => {
                Err(PlugError::Lost(Lost::crash(CrashKind::Silent, error.to_string(), Phase::Boot)))
            }
            Err(error) => Err(unplugged(of, format!("QEMU refuses {}: {error}", of.name))),
        }
    }

    async fn add(&mut self, device: &Plugged) -> Result<(), PlugError> {
        self.say(device, DeviceAdd(device.device.json())).await?;
        if self.is(device, device.sign).await? {
            return Ok(());
        }
        let limit = crate::for_people(self.limit);
        Err(unplugged(device, format!("the guest did not take note of {} within {limit}", device.name)))
    }

    async fn remove_card(&mut self, card: &Plugged) -> Result<(), PlugError> {
        let mut events = self.qmp.events();
        self.say(card, DeviceDel { id: CARD }).await?;
        let gone = tokio::time::timeout(self.limit, is_gone(&mut events, CARD)).await;
        if !matches!(gone, Ok(Ok(()))) || !self.is(card, DeviceSign::Gone).await? {
            let limit = crate::for_people(self.limit);
            return Err(unplugged(card, format!("the guest did not let go of {} within {limit}", card.name)));
        }
        // A network that is left behind would be in the state of a machine that has none.
        self.say(card, NetdevDel { id: NETDEV }).await
    }

    async fn is(&mut self, device: &Plugged, sign: DeviceSign) -> Result<bool, PlugError> {
        let limit_ms = u32::try_from(self.limit.as_millis()).unwrap_or(u32::MAX);
        let wanted = WantedDevice { pci: device.slot.in_guest(), sign, limit_ms };
        self.session.await_device(wanted).await.map_err(|e| PlugError::Lost(of_session(e, Phase::Session)))
    }
}

fn unplugged(device: &Plugged, why: String) -> PlugError {
    PlugError::Unplugged(Unplugged { kind: device.kind, why })
}
