//! A guest of `belljar.toml` for `belljar run` and `belljar shell`.

use std::{path::Path, sync::Arc};

use belljar_machine::{MountMode, bounds::Bounds, spec::GuestSpec};
use belljar_runner::suite::spec::{Surroundings, guest_spec, password_variables, workspace};
use belljar_suite::{
    config::{Config, ConfigError, Guest},
    plan::Machine,
    settings::Layer,
};

use crate::{args::GuestArgs, env, settings, suite};

/// A guest that was asked for by name.
pub(crate) struct Named(Arc<Guest>);

impl Named {
    /// The guest that the options name, if they name one.
    pub(crate) fn of(args: &GuestArgs) -> Result<Option<Self>, String> {
        let Some(name) = &args.guest else { return Ok(None) };
        let file = suite::find(args.config.as_deref())?;
        let config = Config::load(&file, &suite::shown(&file)).map_err(|error| match error {
            ConfigError::Wrong { found, .. } => found.to_string(),
            other => other.to_string(),
        })?;
        let guest = config.guest(name).map_err(|found| format!("--guest: {found}"))?;
        Ok(Some(Self(Arc::clone(guest))))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// What it is.
    pub(crate) fn spec(&self) -> Result<GuestSpec, String> {
        let (_, hardware) = Layer::merge([&self.0.layer]).settle(&self.0.disks);
        let passwords = password_variables([&*self.0]).into_iter().filter_map(|name| {
            let value = env::any(name.as_ref())?;
            Some((name.to_owned(), value.into_string().ok()?))
        });
        let around =
            Surroundings { guest_env: settings::guest_env(), passwords: passwords.collect(), home: settings::home() };
        guest_spec(&Machine { guest: Arc::clone(&self.0), hardware, units: 1 }, &around)
    }

    /// The accelerator that it wants.
    pub(crate) fn accel(&self) -> Option<belljar_machine::qemu::args::Accel> {
        belljar_runner::suite::spec::accel(&self.0)
    }

    /// Where it sees the workspace.
    pub(crate) fn mount_at(&self) -> &str {
        &self.0.mount_at
    }

    /// What becomes of its writes there, if it says so.
    pub(crate) fn workspace_mode(&self) -> Option<MountMode> {
        let mode = self.0.layer.workspace_mode?;
        Some(workspace(Path::new("/"), &self.0, mode).mode)
    }

    /// How much it may write.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { output: self.0.layer.max_output, disk: self.0.layer.max_disk }
    }

    /// Its variables.
    pub(crate) fn env(&self) -> Vec<Vec<u8>> {
        self.0.layer.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
    }

    /// Its directory for commands.
    pub(crate) fn cwd(&self) -> Option<&str> {
        self.0.layer.cwd.as_deref()
    }

    /// Its user for commands.
    pub(crate) fn user(&self) -> Option<&str> {
        self.0.layer.user.as_deref()
    }
}
