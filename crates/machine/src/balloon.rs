//! Memory that a test takes from its guest, by a balloon in it: virtio's, which the guest's driver fills with memory that it gives to the host.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::qemu::qmp::{self, EventStream, Qmp, QmpError, QueryBalloon};

/// How long the guest may take over the next step: it gives memory away piece by piece.
const STEP: Duration = Duration::from_secs(10);
/// How long it may take in all, which is less than who asks waits.
const LIMIT: Duration = Duration::from_secs(90);
/// The event by which QEMU tells how much the guest has: once a second at most (its `monitor/monitor.c`).
const CHANGE: &str = "BALLOON_CHANGE";
/// The unit of the device (virtio's specification, 5.5).
const PAGE: u64 = 4096;

/// The balloon of one machine.
#[derive(Debug)]
pub(crate) struct Balloon {
    /// Bytes of the machine's memory.
    whole: u64,
    /// How much the guest had before anybody asked, and how much was asked for last.
    orders: Option<(u64, u64)>,
}

impl Balloon {
    /// That of a machine with so many bytes of memory.
    pub(crate) fn new(whole: u64) -> Self {
        Self { whole, orders: None }
    }

    /// Has the guest keep so many bytes, or all; gives how many it has in the end, for who asks.
    ///
    /// # Errors
    /// Why that cannot be asked for, or the guest does nothing, for a person.
    pub(crate) async fn set(&mut self, qmp: &Qmp, target: Option<u64>) -> Result<String, String> {
        let target = target.unwrap_or(self.whole) / PAGE * PAGE;
        if target > self.whole {
            return Err(format!("the machine has {} bytes of memory, and not {target}", self.whole));
        }
        if target == 0 {
            return Err("a guest cannot do without any memory".to_owned());
        }
        let mut events = qmp.events();
        let before = now(qmp).await.map_err(|error| {
            format!("this machine has no balloon: {}; say balloon = true, or --balloon", error.told())
        })?;
        let (first, _) = self.orders.unwrap_or((before, before));
        qmp.execute(qmp::Balloon { value: target }).await.map_err(|error| error.told())?;
        self.orders = Some((first, target));
        let reached = await_change(qmp, &mut events, before, target).await?;
        if reached == before && reached != target {
            return Err(format!(
                "the guest does nothing: it has {reached} bytes as before; the driver is virtio_balloon (modprobe virtio_balloon), and gives no more than the guest can spare"
            ));
        }
        Ok(format!("memory {reached}"))
    }

    /// What was asked for up to now is part of the guest.
    pub(crate) fn keep(&mut self) {
        self.orders = self.orders.map(|(_, target)| (target, target));
    }

    /// Has the guest be as it was before somebody asked; gives whether it was otherwise.
    ///
    /// # Errors
    /// When that cannot be asked for, for a person.
    pub(crate) async fn give_back(&mut self, qmp: &Qmp) -> Result<bool, String> {
        let Some((first, _)) = self.orders.filter(|(first, target)| first != target) else { return Ok(false) };
        // A guest that does nothing has nothing to give back.
        qmp.execute(qmp::Balloon { value: first }).await.map_err(|error| error.told())?;
        self.orders = None;
        Ok(true)
    }
}

async fn now(qmp: &Qmp) -> Result<u64, QmpError> {
    qmp.execute(QueryBalloon {}).await.map(|info| info.actual)
}

/// Waits until the guest has what is wanted, or goes no further; gives what it has.
async fn await_change(qmp: &Qmp, events: &mut EventStream, before: u64, target: u64) -> Result<u64, String> {
    let deadline = Instant::now() + LIMIT;
    let mut has = before;
    loop {
        let is = now(qmp).await.map_err(|error| error.told())?;
        let moves = is != std::mem::replace(&mut has, is);
        if is == target || Instant::now() >= deadline {
            return Ok(is);
        }
        match timeout_at((Instant::now() + STEP).min(deadline), change(events)).await {
            Ok(true) => {}
            // Of changes that come soon after another the last one may not be told.
            Err(_) if moves => {}
            Ok(false) | Err(_) => return Ok(is),
        }
    }
}

/// Waits for news of the balloon; gives whether there may be more.
async fn change(events: &mut EventStream) -> bool {
    while let Some(event) = events.next().await {
        if event.name == CHANGE {
            return true;
        }
    }
    false
}
