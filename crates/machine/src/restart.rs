//! A machine that goes down in the middle of a command, because the command asked for it, and comes up again with its disks: another QEMU takes its
//! place, the guest boots by the plan as it did at first, and the command is started again.
//!
//! What the guest has beside its memory stays as it is: its disks, those of them that are lab disks with their faults and logs, the variables of
//! its firmware and its TPM.

mod input;
mod output;
mod snapshot;
mod staying;

use std::time::Duration;

use belljar_guest_spec::machine_order::{Down, Restart};
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::Identity;
use tokio::time::Instant;

use crate::{
    Cause, Lost,
    boot::{Booted, Machine},
    guest::{Observe, Views},
    lab::Lab,
    launch::Predecessor,
    plan::Plan,
    qemu::{
        process::End,
        qmp::{Stop, SystemPowerdown},
    },
    running::{QemuGuest, TAIL},
    watch::{Expectation, MOST_RESTARTS, control, of_exceeded},
};

pub(crate) use input::Input;
pub(crate) use output::{Lines, last_words};
pub(crate) use snapshot::{MOST_SNAPSHOTS, Snapshots};

/// How long QEMU may take to close its files when its guest has gone down.
const CLOSING: Duration = Duration::from_secs(60);
/// How long after QEMU was told to stop it is taken to wait for what was asked of its disks, and not for its processors.
const DRAINING: Duration = Duration::from_secs(2);
/// How often it is looked again whether a guest has gone down.
const AGAIN: Duration = Duration::from_secs(1);

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

    /// Whether the guest's initramfs is nowhere in it.
    pub(crate) fn is_without_initramfs(&self) -> bool {
        self.plan.root_is_in_memory()
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Why there is no snapshot of the machine, if so.
    pub(crate) fn not_kept(&self) -> Option<String> {
        self.plan.not_kept()
    }

    /// Whether nobody in the guest listens for the power button: its first process is the agent, and what listens elsewhere is started by an init.
    pub(crate) fn nobody_at_button(&self) -> bool {
        self.plan.agent_is_first()
    }
}

/// The restarts of one command.
#[derive(Debug, Default)]
pub(crate) struct Past {
    count: u32,
    mark: Option<String>,
    pub(crate) snapshots: Snapshots,
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

/// In the moment of a power cut no lab disk answers any more. How it goes down otherwise is told at once; of a power cut when it has come about.
pub(crate) async fn begin(lab: &Lab, restart: &Restart, observe: Observe<'_>) -> Result<(), Lost> {
    if let Down::PowerCut(_) = restart.how {
        lab.hold().await.map_err(Cause::ShareServer)?;
    } else {
        observe(control(&restart.to_string(), "", false));
    }
    Ok(())
}

impl QemuGuest {
    /// Restarts may be asked for from now on.
    #[must_use]
    pub(crate) fn with_restarts(mut self, plan: &Plan, view: Option<&Views>) -> Self {
        self.restarts = Some(Restarts::new(plan, view));
        self
    }

    /// Something was set up in it.
    #[must_use]
    pub(crate) fn with_set_up(mut self) -> Self {
        self.set_up = true;
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
        let snapshots = &mut past.snapshots;
        let (down, is) = match &restart.how {
            Down::Snapshot(name) => {
                self.take_snapshot(&restart, name, snapshots, observe).await?;
                (None, "it is kept, and goes on")
            }
            Down::Return(name) => {
                self.tell_what_is_lost(&restart, observe);
                self.return_to(name, snapshots, observe).await?;
                (None, "it is what it was")
            }
            how if how.keeps_machine() => {
                self.let_go(&restart, observe).await?;
                self.begin_again(&restart, observe).await?;
                // When the one has ended and the other begins is known to nobody.
                (None, "it is up again")
            }
            _ => {
                self.tell_what_is_lost(&restart, observe);
                self.go_down(&restart, observe).await?;
                let down = begun.elapsed();
                self.come_up(observe).await?;
                (Some(down), "it is up again")
            }
        };
        past.count += 1;
        past.mark = Some(restart.mark.clone());
        let all = begun.elapsed();
        let took = match down {
            Some(down) => {
                let up = crate::for_people(all.saturating_sub(down));
                format!("{} to go down, and {up} to come up", crate::for_people(down))
            }
            None => crate::for_people(all),
        };
        let told = format!("{is}; it took {took}");
        observe(control(&restart.to_string(), &told, false));
        Ok(())
    }

    /// What of the guest does not survive this restart, although a test may think so.
    fn tell_what_is_lost(&self, restart: &Restart, observe: Observe<'_>) {
        if restart.how == Down::Itself && self.by_disk {
            let message = "the guest's shares are on a disk: what was written to them until reboot-prepare was answered is on the host; what it wrote to them after that is lost";
            observe(EventKind::Warning { message: message.to_owned() });
        }
        let in_memory = self.restarts.as_ref().is_some_and(|restarts| restarts.plan.root_is_in_memory());
        if in_memory && self.set_up && !matches!(restart.how, Down::Return(_)) {
            let message = "the guest's root is in memory: what its set-up, or an earlier command, changed there is gone with the restart, and is not done again";
            observe(EventKind::Warning { message: message.to_owned() });
        }
        if self.machine.watch.is_cable_out() {
            let message =
                "the network card's cable was plugged out; with the restart it is plugged in, as it was at first";
            observe(EventKind::Warning { message: message.to_owned() });
        }
    }

    async fn go_down(&mut self, restart: &Restart, observe: Observe<'_>) -> Result<(), Lost> {
        let how = &restart.how;
        if *how != Down::Itself {
            // As at the end of a guest: nobody can be asked later.
            self.settle(observe).await.map_err(|lost| {
                let stands_still = matches!(lost.cause, Cause::Timeout { .. }) || lost.cause.crash_kind() == Some(CrashKind::Silent);
                if !(stands_still && matches!(how, Down::PowerCut(_))) {
                    return lost;
                }
                // That is no crash of the guest's.
                let lost_by = "in a power cut the lab disks answer no more, so that whatever in the guest needs one stands still: swap must not be on one";
                Cause::QemuRefused(format!("the power was not cut: {}; {lost_by}", lost.cause)).into()
            })?;
        }
        match how {
            Down::Reset => self.stop_processors().await?,
            Down::PowerCut(seed) => {
                self.stop_processors().await?;
                // QEMU wants what it has been asked for to be done, and flushed, before it stands still or ends: by now nothing is.
                let lost = self.machine.lab.cut(*seed).await.map_err(Cause::ShareServer)?;
                observe(control(&restart.to_string(), &lost, false));
            }
            Down::Reboot | Down::PowerButton => self.shut_down(how, observe).await?,
            Down::Itself | Down::Kexec { .. } | Down::SoftReboot | Down::Snapshot(_) | Down::Return(_) => {}
        }
        // What is still under way goes with a machine that is down, as with a real one. QEMU would wait for it.
        self.machine.lab.let_go().await.map_err(Cause::ShareServer)?;
        if matches!(how, Down::Reset | Down::PowerCut(_)) {
            let end = self.machine.qemu.quit(CLOSING).await;
            return self.closed(end).await;
        }
        // It closes its files, whose last pieces are in its memory.
        let end = tokio::time::timeout(CLOSING, self.machine.qemu.wait()).await.ok();
        if end.is_none() && *how == Down::Itself {
            let what = "the guest was to go down by itself, and its machine goes on: a kernel that is started without a reset (kexec) cannot be followed";
            return Err(Lost::crash(CrashKind::Reboot, what, Phase::Command).with_tail(self.machine.console.tail(TAIL)));
        }
        self.closed(end).await
    }

    /// Has the guest's processors stand still. QEMU says so before it waits for its disks, but for a SCSI controller, which waits for what is under way
    /// first. What lab disks have of that is given back then.
    async fn stop_processors(&mut self) -> Result<(), Lost> {
        let qmp = self.machine.qemu.qmp().clone();
        let mut events = qmp.events();
        self.machine.watch.expected().announce(Expectation::Stop);
        let mut stopping = tokio::spawn(async move { qmp.execute(Stop {}).await });
        let stopped = async {
            loop {
                tokio::select! {
                    biased;
                    event = events.next() => match event {
                        Some(event) if event.name == "STOP" => return Ok(()),
                        Some(_) => {}
                        // QEMU has ended, which is told as what it is.
                        None => return Ok(()),
                    },
                    answered = &mut stopping => return match answered {
                        Ok(Err(error)) => Err(error),
                        _ => Ok(()),
                    },
                }
            }
        };
        let mut stopped = std::pin::pin!(tokio::time::timeout(CLOSING, stopped));
        let ended = tokio::select! {
            biased;
            ended = &mut stopped => ended,
            () = tokio::time::sleep(DRAINING) => {
                // The processors stand still before QEMU waits.
                self.machine.lab.let_go().await.map_err(Cause::ShareServer)?;
                stopped.await
            }
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cause::QemuRefused(format!("the guest's processors do not stop: {error}")).into()),
            Err(_) => {
                let limit = crate::for_people(CLOSING);
                Err(Cause::QemuRefused(format!("QEMU did not stop the guest's processors within {limit}")).into())
            }
        }
    }

    /// Has the guest shut itself down.
    async fn shut_down(&mut self, how: &Down, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = self.machine.limits.power_off();
        let gone = {
            let Self { machine, session, .. } = &mut *self;
            machine.served.may_end();
            let qmp = machine.qemu.qmp().clone();
            let asked = async {
                // What came of it is seen by the watch.
                if *how == Down::Reboot {
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
                let blame = self.machine.watch.blame();
                let what = format!("the guest did not go down within {limit}, as it was asked to{blame}");
                Err(Lost::timeout(Phase::Command, what).with_tail(self.machine.console.tail(TAIL)))
            }
        }
    }

    /// What it means for the disks how QEMU has ended.
    async fn closed(&mut self, end: Option<End>) -> Result<(), Lost> {
        let Some(end) = end else {
            self.machine.qemu.kill().await;
            let limit = crate::for_people(CLOSING);
            let blame = self.machine.watch.blame();
            return Err(Cause::QemuRefused(format!(
                "QEMU did not close the guest's disks within {limit}, so that they may not be whole{blame}"
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
        let mac = self.identity.as_ref().map(|identity| identity.mac);
        let launch = plan.launch_again(std::mem::take(kept), predecessor, self.template.is_some(), mac);
        let launch = launch.map_err(|e| of_second_boot(Cause::Description(e.to_string()).into()))?;
        observe(EventKind::Phase { phase: Phase::Boot });
        let hangs = self.machine.lab.hangs();
        let booted = Booted::boot(&plan, launch, view.as_ref(), observe).await;
        let booted = booted.map_err(|unbooted| {
            let lost = of_second_boot(unbooted.lost());
            hangs.iter().cloned().fold(lost, Lost::and_advice)
        })?;
        let identity = self
            .identity
            .as_ref()
            .map(|identity| again(identity, plan.root_is_in_memory() || plan.volumes.boot_loses_power()))
            .transpose()?;
        let guest = booted.finish(&plan, identity, observe).await?;
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
        let watch = &mut self.machine.watch;
        watch.power.refuse("the machine goes down already");
        let ended = async {
            loop {
                let found = watch.trouble(Phase::Command, observe).await;
                match found.cause.crash_kind() {
                    // That is known.
                    Some(CrashKind::Silent) => tokio::time::sleep(AGAIN).await,
                    _ => return found,
                }
            }
        };
        match tokio::time::timeout(limit, ended).await {
            Ok(ended) => ended,
            Err(_) => {
                let limit = crate::for_people(limit);
                lost.with_advice(format!(
                    "the guest was to go down by itself (reboot-prepare), and did not within another {limit}; one that is halted never does"
                ))
            }
        }
    }
}

/// The guest has booted before: what a person is told of a first boot may not be why.
fn of_second_boot(lost: Lost) -> Lost {
    lost.and_advice(
        "the guest has booted before; this is its boot after the restart, before which the test may have damaged its boot disk, or somebody changed files of \
         the host that it boots from"
            .to_owned(),
    )
}

/// What makes a copy of a template the machine that it was before it went down: its card has its address by now, and what is on a disk is there, unless
/// `is_lost`.
fn again(identity: &Identity, is_lost: bool) -> Result<Identity, Lost> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Cause::NoRandom(error.to_string()))?;
    let Identity { machine_id, host_suffix, mac, .. } = identity.clone();
    let (machine_id, host_suffix) = if is_lost { (machine_id, host_suffix) } else { ([0; 16], String::new()) };
    Ok(Identity { seed, machine_id, host_suffix, mac, old_mac: mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_machine_after_a_restart() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let copy =
            Identity { seed: [1; 32], machine_id: [2; 16], host_suffix: "-010203".to_owned(), mac, old_mac: [9; 6] };
        let on_disk = again(&copy, false).unwrap();
        assert_eq!((on_disk.machine_id, on_disk.host_suffix.as_str()), ([0; 16], ""), "it is there");
        assert_eq!((on_disk.mac, on_disk.old_mac), (mac, mac), "nothing to be changed");
        assert_ne!(on_disk.seed, copy.seed);
        let in_memory = again(&copy, true).unwrap();
        assert_eq!((in_memory.machine_id, in_memory.host_suffix), (copy.machine_id, copy.host_suffix));
    }

    #[test]
    fn a_command_knows_how_often_it_was_started_again_and_with_which_mark() {
        let told =
            |past: &Past| past.environment().iter().map(|e| String::from_utf8(e.clone()).unwrap()).collect::<Vec<_>>();
        assert_eq!(told(&Past::default()), ["BELLJAR_REBOOT_COUNT=0", "TMT_REBOOT_COUNT=0"]);
        let past = Past { count: 2, mark: Some("here".to_owned()), ..Past::default() };
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
        assert!(Past { count: MOST_RESTARTS, ..Past::default() }.refusal().unwrap().contains("50 times"));
    }
}
