//! What a command asks of its machine as a whole: to go down and come up again.

use belljar_guest_spec::machine_order::{Down, Restart};

use crate::{desk::Asker, restart::MOST_SNAPSHOTS};

/// Most restarts in one command.
pub(crate) const MOST_RESTARTS: u32 = 50;

/// Whether the machine may be restarted now, and whether it is to be.
#[derive(Debug)]
pub(crate) struct Power {
    /// Why it may not.
    refusal: Option<String>,
    wanted: Option<Wanted>,
    /// One that the test is to bring about itself, for which nothing has been done yet.
    announced: Option<(Asker, Restart)>,
    /// What has to be done for it has begun.
    is_preparing: bool,
    prepared: Option<Restart>,
    /// Nobody in the guest listens for its power button.
    no_button: bool,
    /// What would start another kernel in it lacks an initramfs.
    no_kexec: bool,
    /// There is no agent in it.
    no_agent: bool,
    /// Why there is no snapshot of the machine.
    no_snapshot: Option<String>,
    /// The names of the snapshots that there are.
    snapshots: Vec<String>,
}

/// A restart that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The question's number.
    pub(crate) number: u32,
    pub(crate) restart: Restart,
}

impl Default for Power {
    fn default() -> Self {
        Self {
            refusal: Some("no command runs that could be started again".to_owned()),
            wanted: None,
            announced: None,
            is_preparing: false,
            prepared: None,
            no_button: false,
            no_kexec: false,
            no_agent: false,
            no_snapshot: None,
            snapshots: Vec::new(),
        }
    }
}

impl Power {
    /// A command begins, for which the machine may be restarted, or may not for this reason.
    pub(crate) fn begin(&mut self, refusal: Option<String>) {
        *self = Self { refusal, ..Self::default() };
    }

    /// Nobody in the guest listens for its power button, while this command runs.
    pub(crate) fn without_button(&mut self) {
        self.no_button = true;
    }

    /// The guest's initramfs is not in it, while this command runs: no other kernel can be started with it.
    pub(crate) fn without_kexec(&mut self) {
        self.no_kexec = true;
    }

    /// There is no agent in the guest, while this command runs.
    pub(crate) fn without_agent(&mut self) {
        self.no_agent = true;
    }

    /// There are these snapshots, and no further ones for this reason, while this command runs.
    pub(crate) fn with_snapshots(&mut self, names: Vec<String>, obstacle: Option<String>) {
        (self.snapshots, self.no_snapshot) = (names, obstacle);
    }

    /// No command runs any more.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// Takes a restart.
    ///
    /// # Errors
    /// Why it is not to be.
    pub(super) fn want(&mut self, number: u32, restart: Restart) -> Result<(), String> {
        if let Some(why) = &self.refusal {
            return Err(why.clone());
        }
        if let Some(Wanted { restart, .. }) = &self.wanted {
            return Err(format!("the machine goes down already: {restart}"));
        }
        if self.no_button && restart.how == Down::PowerButton {
            return Err("nobody in this guest listens for the power button, for its first process is Belljar's agent and no service of the system \
                        runs; take reboot"
                .to_owned());
        }
        if self.no_agent && restart.how.keeps_machine() {
            return Err(format!("there is no agent in this guest, which {restart} needs; take reboot"));
        }
        if self.no_kexec && matches!(restart.how, Down::Kexec { .. }) {
            return Err("this guest has its root and its kernel from the host, and not the initramfs that another kernel would need; take a guest with \
                        its system on an image"
                .to_owned());
        }
        match &restart.how {
            Down::Snapshot(name) => {
                if let Some(why) = &self.no_snapshot {
                    return Err(format!("there is no snapshot of this guest's machine: {why}"));
                }
                if self.snapshots.len() >= MOST_SNAPSHOTS && !self.snapshots.contains(name) {
                    return Err(format!(
                        "there are {MOST_SNAPSHOTS} snapshots already; take a name again that there is"
                    ));
                }
            }
            Down::Return(name) if !self.snapshots.contains(name) => {
                let there = if self.snapshots.is_empty() {
                    "this command has taken none".to_owned()
                } else {
                    format!("there are {}", self.snapshots.join(", "))
                };
                return Err(format!("there is no snapshot {name}; {there}"));
            }
            _ => {}
        }
        self.wanted = Some(Wanted { number, restart });
        Ok(())
    }

    /// Whether a restart may be announced that the test is to bring about itself.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn may_announce(&self) -> Result<(), String> {
        if let Some(why) = &self.refusal {
            return Err(why.clone());
        }
        let wanted = self.wanted.as_ref().map(|wanted| &wanted.restart);
        match wanted.or(self.announced.as_ref().map(|(_, restart)| restart)) {
            Some(restart) => Err(format!("something else is being done to the machine already: {restart}")),
            None => Ok(()),
        }
    }

    /// Takes a restart that the test is to bring about itself: once what it has written is on the host, it is to be [prepared](Self::prepare). Who asks
    /// is answered then.
    pub(super) fn announce(&mut self, asker: Asker, restart: Restart) {
        self.announced = Some((asker, restart));
        self.is_preparing = false;
    }

    /// What has to be done for what was announced is being done.
    pub(crate) fn begin_preparing(&mut self) {
        self.is_preparing = true;
    }

    /// All is done for what was announced; gives it.
    pub(super) fn prepare(&mut self) -> Option<(Asker, Restart)> {
        let (asker, restart) = self.announced.take()?;
        self.prepared = Some(restart.clone());
        Some((asker, restart))
    }

    /// What was announced is not to be; gives it.
    pub(super) fn withdraw(&mut self) -> Option<(Asker, Restart)> {
        self.announced.take()
    }

    /// Nothing more is taken, for this reason.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.refusal = Some(why.to_owned());
    }

    /// Whether somebody is to see to a restart: to have the machine go down, or to what has to be done before it goes down by itself.
    pub(super) fn is_due(&self) -> bool {
        self.wanted.is_some() || (self.announced.is_some() && !self.is_preparing)
    }

    /// Whether it may go down by itself.
    pub(crate) fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// The restart that is asked for.
    pub(crate) fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// The restart that is asked for; once.
    pub(crate) fn take_wanted(&mut self) -> Option<Wanted> {
        self.wanted.take()
    }

    /// The restart that was prepared; once.
    pub(crate) fn take_prepared(&mut self) -> Option<Restart> {
        self.prepared.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_taken_once_and_only_while_a_command_runs() {
        let restart = || Restart { how: Down::Reboot, mark: "m".to_owned() };
        let mut power = Power::default();
        assert!(power.want(1, restart()).unwrap_err().contains("no command runs"));
        let asker = || Asker::Outside { answer: tokio::sync::oneshot::channel().0, reports: None };
        assert!(power.may_announce().is_err() && !power.is_prepared());
        power.begin(None);
        power.want(2, restart()).unwrap();
        assert!(power.want(3, restart()).unwrap_err().contains("goes down already: reboot m"));
        assert!(power.is_due());
        assert_eq!(power.take_wanted().map(|wanted| wanted.number), Some(2));
        assert!(power.take_wanted().is_none());
        power.may_announce().unwrap();
        power.announce(asker(), restart());
        assert!(power.may_announce().unwrap_err().contains("already") && !power.is_prepared());
        assert!(power.is_due());
        power.begin_preparing();
        assert!(!power.is_due());
        assert!(power.withdraw().is_some() && power.prepare().is_none() && !power.is_prepared());
        power.announce(asker(), restart());
        assert!(power.prepare().is_some());
        assert_eq!(power.take_prepared(), Some(restart()));
        power.begin(Some("not here".to_owned()));
        assert_eq!(power.want(4, restart()).unwrap_err(), "not here");
        power.begin(None);
        power.without_button();
        let by_button = Restart { how: Down::PowerButton, mark: String::new() };
        assert!(power.want(4, by_button.clone()).unwrap_err().contains("take reboot"));
        power.begin(None);
        let snapshot = |name: &str| Restart { how: Down::Snapshot(name.to_owned()), mark: String::new() };
        let back = |name: &str| Restart { how: Down::Return(name.to_owned()), mark: String::new() };
        assert!(power.want(4, back("a")).unwrap_err().ends_with("taken none"));
        power.with_snapshots((0..8).map(|n| n.to_string()).collect(), None);
        assert!(power.want(4, back("a")).unwrap_err().contains("there are 0, 1, 2"));
        assert!(power.want(4, snapshot("a")).unwrap_err().contains("8 snapshots already"));
        power.want(4, snapshot("7")).unwrap();
        power.begin(None);
        power.with_snapshots(vec!["a".to_owned()], Some("it has none".to_owned()));
        assert!(power.want(4, snapshot("a")).unwrap_err().ends_with("it has none"));
        power.want(4, back("a")).unwrap();
        power.begin(None);
        power.want(4, by_button).unwrap();
        power.begin(None);
        power.without_agent();
        let kexec = Restart { how: Down::Kexec { loaded: false }, mark: String::new() };
        assert!(power.want(4, kexec).unwrap_err().contains("no agent"));
        power.want(4, restart()).unwrap();
        power.end();
        assert!(power.want(5, restart()).is_err());
    }
}
