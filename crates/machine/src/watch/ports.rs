//! The ports through which a guest's shares are served: open as long as a share is mounted there, so that one that is closed was let go of.
//!
//! QEMU reports at once that a port was opened or closed, but of one port at most once a second (`monitor_qapi_event_conf` in its
//! `monitor/monitor.c`). So whether all are open in the end is asked, and what is reported only ends a wait sooner.

use std::time::Duration;

use belljar_model::{CrashKind, Phase};
use tokio::time::Instant;

use super::{CLOSED, Lost, QmpEvent, of_port};
use crate::qemu::qmp::{Qmp, QueryChardev};

/// How long QEMU may take to say which are open.
const ANSWER: Duration = Duration::from_secs(10);

/// The ports of the shares that are mounted, by their ids.
#[derive(Debug, Default)]
pub(crate) struct SharePorts {
    mounted: Vec<String>,
    /// Those that were closed, and when that means their end: a guest that is about to suspend itself closes them too.
    closed: Vec<(String, Instant)>,
}

impl SharePorts {
    /// Shares are mounted through these ports.
    pub(crate) fn mounted(&mut self, ids: Vec<String>) {
        *self = Self { mounted: ids, closed: Vec::new() };
    }

    /// They are about to be unmounted.
    pub(crate) fn let_go(&mut self) {
        *self = Self::default();
    }

    /// Notes what QEMU reports.
    pub(super) fn note(&mut self, event: &QmpEvent) {
        let Some((id, open)) = of_port(event).filter(|(id, _)| self.mounted.iter().any(|known| known == id)) else {
            return;
        };
        self.closed.retain(|(known, _)| known != id);
        if !open {
            self.closed.push((id.to_owned(), Instant::now() + CLOSED));
        }
    }

    /// The guest sleeps, and its devices are switched off.
    pub(super) fn sleep(&mut self) {
        self.closed.clear();
    }

    /// When something has to be said of what was noted.
    pub(super) fn due(&self) -> impl Iterator<Item = Instant> + '_ {
        self.closed.iter().map(|(_, at)| *at)
    }

    /// A share whose port has been closed for too long.
    pub(super) fn lost(&self, phase: Phase) -> Option<Lost> {
        let now = Instant::now();
        self.closed.iter().any(|(_, at)| *at <= now).then(|| closed(phase))
    }

    /// Asks whether all of them are still open.
    pub(crate) async fn check(&self, qmp: &Qmp, phase: Phase) -> Option<Lost> {
        if self.mounted.is_empty() {
            return None;
        }
        match tokio::time::timeout(ANSWER, qmp.execute(QueryChardev {})).await {
            Ok(Ok(devices)) => {
                let is_open = |id: &String| devices.iter().any(|device| device.label == *id && device.frontend_open);
                (!self.mounted.iter().all(is_open)).then(|| closed(phase))
            }
            // Its end tells more.
            Ok(Err(_)) => None,
            Err(_) => Some(Lost::timeout(phase, "QEMU did not say which ports of shares are open")),
        }
    }
}

fn closed(phase: Phase) -> Lost {
    let seen = "the port of a share was closed in the guest: the process there that passes the share on (belljar-fuse) was killed, or died, or the \
         share was unmounted; what the guest saw of the share since then is not to be believed";
    Lost::crash(CrashKind::Silent, seen, phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::qmp::QmpTimestamp;

    fn event(id: &str, open: bool) -> QmpEvent {
        let timestamp = QmpTimestamp { seconds: 0, microseconds: 0 };
        QmpEvent { name: "VSERPORT_CHANGE".into(), data: serde_json::json!({"id": id, "open": open}), timestamp }
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_stays_closed_is_a_share_that_is_lost() {
        let mut ports = SharePorts::default();
        ports.note(&event("share-port1", false));
        assert_eq!(ports.due().count(), 0, "before it is mounted");
        ports.mounted(vec!["share-port1".into(), "share-port2".into()]);
        ports.note(&event("other", false));
        ports.note(&event("share-port2", false));
        assert!(ports.lost(Phase::Command).is_none() && ports.due().count() == 1);
        ports.note(&event("share-port2", true));
        tokio::time::advance(CLOSED * 2).await;
        assert!(ports.lost(Phase::Command).is_none());
        ports.note(&event("share-port1", false));
        tokio::time::advance(CLOSED).await;
        assert!(ports.lost(Phase::Command).is_some());
        ports.sleep();
        assert!(ports.lost(Phase::Command).is_none());
        ports.note(&event("share-port1", false));
        ports.let_go();
        ports.note(&event("share-port1", false));
        assert_eq!(ports.due().count(), 0);
    }
}
