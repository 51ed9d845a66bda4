//! What a command asks of its machine as a whole: to go down and come up again.

use belljar_guest_spec::machine_order::Restart;

/// Most restarts in one command.
pub(crate) const MOST_RESTARTS: u32 = 50;

/// Whether the machine may be restarted now, and whether it is to be.
#[derive(Debug)]
pub(crate) struct Power {
    /// Why it may not.
    refusal: Option<String>,
    wanted: Option<Wanted>,
    prepared: Option<Restart>,
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
        Self { refusal: Some("no command runs that could be started again".to_owned()), wanted: None, prepared: None }
    }
}

impl Power {
    /// A command begins, for which the machine may be restarted, or may not for this reason.
    pub(crate) fn begin(&mut self, refusal: Option<String>) {
        *self = Self { refusal, wanted: None, prepared: None };
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
        self.wanted = Some(Wanted { number, restart });
        Ok(())
    }

    /// Takes a restart that the test brings about itself.
    ///
    /// # Errors
    /// Why it is not to be.
    pub(super) fn prepare(&mut self, restart: Restart) -> Result<(), String> {
        match &self.refusal {
            Some(why) => Err(why.clone()),
            None => {
                self.prepared = Some(restart);
                Ok(())
            }
        }
    }

    /// Whether the machine is to go down.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
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
    use belljar_guest_spec::machine_order::Down;

    use super::*;

    #[test]
    fn a_restart_is_taken_once_and_only_while_a_command_runs() {
        let restart = || Restart { how: Down::Reboot, mark: "m".to_owned() };
        let mut power = Power::default();
        assert!(power.want(1, restart()).unwrap_err().contains("no command runs"));
        assert!(power.prepare(restart()).is_err() && !power.is_prepared());
        power.begin(None);
        power.want(2, restart()).unwrap();
        assert!(power.want(3, restart()).unwrap_err().contains("goes down already: reboot m"));
        assert!(power.is_wanted());
        assert_eq!(power.take_wanted().map(|wanted| wanted.number), Some(2));
        assert!(power.take_wanted().is_none());
        power.prepare(restart()).unwrap();
        assert_eq!(power.take_prepared(), Some(restart()));
        power.begin(Some("not here".to_owned()));
        assert_eq!(power.want(4, restart()).unwrap_err(), "not here");
        power.end();
        assert!(power.want(5, restart()).is_err());
    }
}
