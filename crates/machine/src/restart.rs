//! A machine that goes down in the middle of a command, because the command asked for it, and comes up again with its disks: another QEMU takes its
//! place, the guest boots by the plan as it did at first, and the command is started again.
//!
//! What the guest has beside its memory stays as it is: its disks, those of them that are lab disks with their faults and logs, the variables of
//! its firmware and its TPM.

use std::time::Duration;

use belljar_guest_spec::machine_order::{Down, Restart};
use belljar_model::{CrashKind, EventKind, Phase};
use tokio::time::Instant;

use crate::{
    Cause, Lost,
    boot::{Booted, Machine, Unbooted},
    guest::{Observe, Views},
    lab::Lab,
    launch::Predecessor,
    plan::Plan,
    qemu::{process::End, qmp::SystemPowerdown},
    running::{QemuGuest, TAIL},
    watch::{MOST_RESTARTS, control, of_exceeded},
};

/// How long QEMU may take to close its files when its guest has gone down.
const CLOSING: Duration = Duration::from_secs(60);
/// How long what was running has to end when the machine goes down.
pub(crate) const ENDING: Duration = Duration::from_secs(3);

/// What a command is told of restarts: by Belljar's own names, and by those of other harnesses.
const MARKS: [&str; 2] = ["BELLJAR_REBOOT_MARK", "AUTOPKGTEST_REBOOT_MARK"];
const COUNTS: [&str; 2] = ["BELLJAR_REBOOT_COUNT", "TMT_REBOOT_COUNT"];

/// How a machine is started that takes the place of another.
#[derive(Debug)]
pub(crate) struct Restarts {
    plan: Box<Plan>,
    view: Option<Views>,
}

impl Restarts {
    pub(crate) fn new(plan: &Plan, view: Option<&Views>) -> Self {
        Self { plan: Box::new(plan.clone()), view: view.cloned() }
    }
}

/// The restarts of one command.
#[derive(Debug, Default)]
pub(crate) struct Past {
    count: u32,
    mark: Option<String>,
}

impl Past {
    /// What a command is to know of them.
    pub(crate) fn environment(&self) -> Vec<Vec<u8>> {
        let entry = |name: &str, value: &str| format!("{name}={value}").into_bytes();
        let marks = self.mark.iter().flat_map(|mark| MARKS.map(|name| entry(name, mark)));
        COUNTS.map(|name| entry(name, &self.count.to_string())).into_iter().chain(marks).collect()
    }

    /// Why there is to be no further one, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        (self.count >= MOST_RESTARTS)
            .then(|| format!("the machine was restarted {MOST_RESTARTS} times for this command"))
    }
}

/// Cuts the power of the lab disks, if that is how the machine goes down: before anything else can reach them.
pub(crate) async fn cut_power(lab: &Lab, restart: &Restart, observe: Observe<'_>) -> Result<(), Lost> {
    let mut outcome = String::new();
    if let Down::PowerCut(seed) = restart.how {
        outcome = lab.cut(seed).await.map_err(Cause::ShareServer)?;
    }
    observe(control(&restart.to_string(), &outcome, false));
    Ok(())
}

impl QemuGuest {
    /// Restarts may be asked for from now on.
    #[must_use]
    pub(crate) fn with_restarts(mut self, plan: &Plan, view: Option<&Views>) -> Self {
        self.restarts = Some(Restarts::new(plan, view));
        self
    }

    /// Has the machine go down as it was asked to, and come up again.
    ///
    /// # Errors
    /// When what was written to the shares did not reach the host, the guest turned out to have failed, it did not go down, or it did not come
    /// up again.
    pub(crate) async fn restart(
        &mut self,
        restart: Restart,
        past: &mut Past,
        observe: Observe<'_>,
    ) -> Result<(), Lost> {
        let begun = Instant::now();
        self.go_down(restart.how, observe).await?;
        let down = begun.elapsed();
        self.come_up(observe).await?;
        past.count += 1;
        past.mark = Some(restart.mark.clone());
        let told = format!(
            "it is up again; it took {} to go down, and {} to come up",
            crate::for_people(down),
            crate::for_people(begun.elapsed().saturating_sub(down))
        );
        observe(control(&restart.to_string(), &told, false));
        Ok(())
    }

    async fn go_down(&mut self, how: Down, observe: Observe<'_>) -> Result<(), Lost> {
        if how != Down::Itself {
            // As at the end of a guest: nobody can be asked later.
            self.settle(observe).await?;
        }
        if matches!(how, Down::Reset | Down::PowerCut(_)) {
            let end = self.machine.qemu.quit(CLOSING).await;
            return self.closed(end).await;
        }
        if matches!(how, Down::Reboot | Down::PowerButton) {
            self.shut_down(how, observe).await?;
        }
        // It closes its files, whose last pieces are in its memory.
        let end = tokio::time::timeout(CLOSING, self.machine.qemu.wait()).await.ok();
        if end.is_none() && how == Down::Itself {
            let what = "the guest was to go down by itself, and its machine goes on: a kernel that is started without a reset (kexec) cannot be followed";
            return Err(Lost::crash(CrashKind::Reboot, what, Phase::Command));
        }
        self.closed(end).await
    }

    /// Has the guest shut itself down.
    async fn shut_down(&mut self, how: Down, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = self.machine.limits.power_off();
        let gone = {
            let Self { machine, session, .. } = &mut *self;
            let qmp = machine.qemu.qmp().clone();
            let asked = async {
                // What came of it is seen by the watch.
                if how == Down::Reboot {
                    drop(session.reboot().await);
                } else {
                    drop(qmp.execute(SystemPowerdown {}).await);
                }
            };
            let mut gone = std::pin::pin!(tokio::time::timeout(limit, machine.watch.powered_off(observe)));
            tokio::select! {
                biased;
                gone = &mut gone => gone,
                () = asked => gone.await,
            }
        };
        match gone {
            Ok(Ok(())) => Ok(()),
            Ok(Err(lost)) => Err(self.explain(lost, Phase::Command).await),
            Err(_) => {
                let limit = crate::for_people(limit);
                let what = format!("the guest did not go down within {limit}, as it was asked to");
                Err(Lost::timeout(Phase::Command, what).with_tail(self.machine.console.tail(TAIL)))
            }
        }
    }

    /// What it means for the disks how QEMU has ended.
    async fn closed(&mut self, end: Option<End>) -> Result<(), Lost> {
        let Some(end) = end else {
            self.machine.qemu.kill().await;
            let limit = crate::for_people(CLOSING);
            return Err(Cause::QemuRefused(format!(
                "QEMU did not close the guest's disks within {limit}, so that they may not be whole"
            ))
            .into());
        };
        if let Some(exceeded) = &end.exceeded {
            return Err(of_exceeded(exceeded));
        }
        if !end.is_orderly() {
            let why = format!("QEMU did not close the guest's disks, so that they may not be whole: {end}");
            return Err(Cause::QemuRefused(why).into());
        }
        Ok(())
    }

    async fn come_up(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        let Some(Restarts { plan, view }) = &self.restarts else {
            return Err(Cause::Defect("a machine is to come up again that nobody knows how to start".to_owned()).into());
        };
        let (plan, view) = (plan.clone(), view.clone());
        if self.machine.kept.len() != plan.volumes.count() {
            return Err(Cause::Defect("the machine has not kept each of its disks".to_owned()).into());
        }
        let Machine { kept, lab, before, tpm, pmem, .. } = &mut self.machine;
        if let Some(tpm) = tpm.take() {
            tpm.leave();
        }
        let predecessor = Predecessor { lab: lab.clone(), before: *before, pmem: std::mem::take(pmem) };
        let launch = plan.launch_again(std::mem::take(kept), predecessor, self.template.is_some());
        let launch = launch.map_err(|e| Cause::Description(e.to_string()))?;
        observe(EventKind::Phase { phase: Phase::Boot });
        let booted = Booted::boot(&plan, launch, view.as_ref(), observe).await.map_err(Unbooted::lost)?;
        let guest = booted.finish(&plan, observe).await?;
        self.take_over(guest);
        observe(EventKind::Phase { phase: Phase::Command });
        Ok(())
    }

    /// Waits for a guest to go down that was to do so by itself, and of whose agent nothing more is heard.
    pub(crate) async fn await_end(&mut self, lost: Lost, observe: Observe<'_>) -> Lost {
        if lost.cause.crash_kind() != Some(CrashKind::Silent) {
            return lost;
        }
        let limit = self.machine.limits.power_off();
        let ended = tokio::time::timeout(limit, self.machine.watch.trouble(Phase::Command, observe)).await;
        ended.unwrap_or(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_knows_how_often_it_was_started_again_and_with_which_mark() {
        let told =
            |past: &Past| past.environment().iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect::<Vec<_>>();
        assert_eq!(told(&Past::default()), ["BELLJAR_REBOOT_COUNT=0", "TMT_REBOOT_COUNT=0"]);
        let past = Past { count: 2, mark: Some("here".to_owned()) };
        assert_eq!(
            told(&past),
            [
                "BELLJAR_REBOOT_COUNT=2",
                "TMT_REBOOT_COUNT=2",
                "BELLJAR_REBOOT_MARK=here",
                "AUTOPKGTEST_REBOOT_MARK=here"
            ]
        );
        assert_eq!(past.refusal(), None);
        assert!(Past { count: MOST_RESTARTS, mark: None }.refusal().unwrap().contains("50 times"));
    }
}
