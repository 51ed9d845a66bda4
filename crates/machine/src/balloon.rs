//! Memory that a test takes from its guest, by a balloon in it: virtio's, which the guest's driver fills with memory that it gives to the host.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::qemu::qmp::{self, EventStream, Qmp, QmpError, QueryBalloon, Raw};

/// How long the guest may take over the next step: it gives memory away piece by piece.
const STEP: Duration = Duration::from_secs(10);
/// How long it may take in all, which is less than who asks waits.
const LIMIT: Duration = Duration::from_secs(90);
/// The event by which QEMU tells how much the guest has: once a second at most (its `monitor/monitor.c`).
const CHANGE: &str = "BALLOON_CHANGE";
/// The unit of the device (virtio's specification, 5.5).
const PAGE: u64 = 4096;
/// The least that a guest is told to keep, in bytes: with less its kernel kills all that runs, and panics.
const LEAST: u64 = 64 << 20;

/// The balloon of one machine.
#[derive(Debug)]
pub(crate) struct Balloon {
    /// Bytes of the memory with which the machine has started.
    start: u64,
    /// How much was taken from the guest before anybody asked, and how much is to be taken by what was asked for last.
    orders: Option<(u64, u64)>,
}

/// What came of giving memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenBack {
    /// None was taken.
    Nothing,
    /// The guest has it again.
    All,
    /// The guest has not taken all of it: so many bytes it is without still.
    Lacking(u64),
}

impl Balloon {
    /// That of a machine that starts with so many bytes of memory.
    pub(crate) fn new(start: u64) -> Self {
        Self { start, orders: None }
    }

    /// Has the guest keep so many bytes, or all; gives how many it has in the end, for who asks.
    ///
    /// # Errors
    /// Why that cannot be asked for, or the guest does nothing, for a person.
    pub(crate) async fn set(&mut self, qmp: &Qmp, target: Option<u64>) -> Result<String, String> {
        let whole = self.whole(qmp).await?;
        let target = target.unwrap_or(whole) / PAGE * PAGE;
        if target > whole {
            return Err(format!("the machine has {whole} bytes of memory, and not {target}"));
        }
        if target < LEAST.min(whole) {
            return Err(format!(
                "no guest goes on with {target} bytes of memory; leave it {} MiB or more, and as much as its programs need",
                LEAST >> 20
            ));
        }
        let mut events = qmp.events();
        let before = now(qmp).await.map_err(|error| {
            format!("this machine has no balloon: {}; say balloon = true, or --balloon", error.told())
        })?;
        let taken = whole.saturating_sub(before);
        let (first, earlier) = self.orders.unwrap_or((taken, taken));
        qmp.execute(qmp::Balloon { value: target }).await.map_err(|error| error.told())?;
        self.orders = Some((first, whole - target));
        let reached = await_change(qmp, &mut events, before, target).await?;
        if reached == before && reached != target {
            // What is refused is not to be done when the driver comes later.
            qmp.execute(qmp::Balloon { value: whole.saturating_sub(earlier) }).await.map_err(|error| error.told())?;
            self.orders = Some((first, earlier));
            return Err(format!(
                "the guest does nothing: it has {reached} bytes as before; the driver is virtio_balloon (modprobe virtio_balloon), and gives no more than the guest can spare"
            ));
        }
        Ok(format!("memory {reached}"))
    }

    /// What was asked for up to now is part of the guest.
    pub(crate) fn keep(&mut self) {
        self.orders = self.orders.map(|(_, taken)| (taken, taken));
    }

    /// Whether memory was taken from the guest, and not given back.
    pub(crate) fn is_taken(&self) -> bool {
        self.orders.is_some_and(|(first, taken)| first != taken)
    }

    /// Has the guest be as it was before somebody asked, and waits until it is.
    ///
    /// # Errors
    /// When that cannot be asked for, for a person.
    pub(crate) async fn give_back(&mut self, qmp: &Qmp) -> Result<GivenBack, String> {
        let Some((first, _)) = self.orders.filter(|_| self.is_taken()) else {
            return Ok(GivenBack::Nothing);
        };
        let target = self.whole(qmp).await?.saturating_sub(first);
        let mut events = qmp.events();
        let before = now(qmp).await.map_err(|error| error.told())?;
        qmp.execute(qmp::Balloon { value: target }).await.map_err(|error| error.told())?;
        self.orders = Some((first, first));
        let reached = await_change(qmp, &mut events, before, target).await?;
        Ok(if reached == target { GivenBack::All } else { GivenBack::Lacking(target.abs_diff(reached)) })
    }

    /// Bytes of the machine's memory now, with what was plugged in, as QEMU's device counts them (`get_current_ram_size` in its `hw/virtio/virtio-balloon.c`).
    async fn whole(&self, qmp: &Qmp) -> Result<u64, String> {
        let modules = qmp.execute(Raw::new("query-memory-devices", json!({}))).await.map_err(|error| error.told())?;
        Ok(self.start + plugged(&modules))
    }
}

/// Bytes of the memory modules that QEMU's `query-memory-devices` names, persistent ones left out.
fn plugged(modules: &Value) -> u64 {
    let modules = modules.as_array().into_iter().flatten().filter(|module| module["type"] == "dimm");
    modules.filter_map(|module| module["data"]["size"].as_u64()).sum()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_plugged_in_is_memory_too() {
        let module = |kind: &str, size: u64| json!({ "type": kind, "data": { "size": size, "addr": 0 } });
        assert_eq!(
            plugged(&json!([module("nvdimm", 1 << 30), module("dimm", 128 << 20), module("dimm", 1 << 28)])),
            384 << 20
        );
        assert_eq!(plugged(&json!([])), 0);
    }
}
