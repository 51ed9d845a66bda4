//! What a guest wrote to its shares, on its way to the host: at the end of a test, and before a restart.

use std::time::Duration;

use belljar_model::{CrashKind, EventKind, Exit, Phase};
use belljar_proto::message::{Returned, SyncFault, SyncReport};

use crate::{Cause, Lost, boot::Machine, guest::Observe, session};

/// What the agent packed for the host, where shares come and go on a disk.
///
/// # Errors
/// Where what was written cannot be on the host.
pub(crate) fn returned(report: SyncReport, by_disk: bool, observe: Observe<'_>) -> Result<Option<Returned>, Lost> {
    if by_disk && let Some(SyncFault::Covered(places)) = &report.fault {
        // What is below such a place cannot be told from what was deleted, or put there.
        let places = places.join(", ");
        return Err(Lost::from(Cause::BroughtBack(format!(
            "the command has left something mounted in a directory that is shared on a disk, so that nothing of it was brought back: {places}; \
             have it unmounted by the command, or mount it elsewhere"
        )))
        .lasting());
    }
    session::of_sync(report.fault, observe)?;
    Ok(report.returned)
}

impl Machine {
    /// Takes what the guest packed for the host.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) async fn bring_back(
        &mut self,
        returned: Option<Returned>,
        limit: Duration,
        observe: Observe<'_>,
    ) -> Result<(), Lost> {
        let exchange = self.exchange.take().ok_or_else(|| {
            Cause::Unsynced("what the guest left was being unpacked when somebody gave up waiting for it".to_owned())
        })?;
        let returned = returned.ok_or_else(|| {
            Cause::BroughtBack(
                "the agent did not say what it packed for the host, so that what the guest left cannot be had"
                    .to_owned(),
            )
        })?;
        let (exchange, brought) = exchange.brought_back(returned, limit).await?;
        self.exchange = Some(exchange);
        for message in brought?.warnings {
            observe(EventKind::Warning { message });
        }
        Ok(())
    }

    /// For a restart that the test announces and brings about itself: brings to the host what it has written up to now, for nobody can be asked later,
    /// and answers. The command runs on meanwhile; gives how it has ended, if it has.
    ///
    /// # Errors
    /// When the guest is lost, or what was written.
    pub(crate) async fn prepare_restart(
        &mut self,
        mut running: impl Future<Output = Result<Exit, Lost>> + Unpin,
        (by_disk, limit): (bool, Duration),
        observe: Observe<'_>,
    ) -> Result<Option<Result<Exit, Lost>>, Lost> {
        self.watch.power.begin_preparing();
        let (agent, shell) = (self.watch.reports().cloned(), self.watch.shell_asks().cloned());
        if agent.is_none() && shell.is_none() {
            self.watch.withdraw("there is nobody in this guest who could be asked for what it wrote", observe);
            return Ok(None);
        }
        let syncing = async {
            match (agent, shell) {
                (Some(agent), _) => agent.sync().await,
                (None, Some(shell)) => match shell.sync().await {
                    Ok(fault) => SyncReport { fault, returned: None },
                    // The session has ended, which is seen as what it is.
                    Err(_) => std::future::pending().await,
                },
                (None, None) => std::future::pending().await,
            }
        };
        let mut ended = None;
        let report = {
            let mut synced = std::pin::pin!(tokio::time::timeout(limit, syncing));
            let mut another = false;
            loop {
                tokio::select! {
                    biased;
                    report = &mut synced => break report,
                    exit = &mut running, if ended.is_none() => ended = Some(exit),
                    lost = self.watch.trouble(Phase::Command, observe), if !another => match lost.cause {
                        // It is time for that when this is done.
                        Cause::Restart => another = true,
                        _ => return Err(of_haste(lost)),
                    },
                }
            }
        };
        let Ok(report) = report else {
            let limit = crate::for_people(limit);
            let blame = self.watch.blame();
            return Err(Lost::timeout(
                Phase::Command,
                format!(
                    "for reboot-prepare the guest did not bring what it wrote to the shares to the host within {limit}{blame}"
                ),
            ));
        };
        match returned(report, by_disk, observe) {
            Err(lost) => self.watch.withdraw(&lost.cause.to_string(), observe),
            Ok(returned) => {
                if by_disk {
                    self.bring_back(returned, limit, observe).await?;
                }
                // What guards have looked at for it came before the answer; nothing more may come.
                if let Some(lost) = self.watch.take_news(Phase::Command, observe) {
                    return Err(lost);
                }
                self.served.may_end();
                self.watch.prepare(observe);
            }
        }
        Ok(ended)
    }
}

/// The guest went down before it was told that it may.
fn of_haste(lost: Lost) -> Lost {
    match lost.cause.crash_kind() {
        Some(CrashKind::Reboot | CrashKind::PowerOff | CrashKind::Watchdog | CrashKind::Qemu) => lost.with_advice(
            "reboot-prepare was asked for, and not answered yet: what was written to the shares is being brought to the host; wait for the answer, as \
             belljar-ctl does",
        ),
        _ => lost,
    }
}
