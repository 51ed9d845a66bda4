//! From what was typed to a plan: the configuration found and read, tests looked for, flags put on top.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::Guards;
use belljar_model::exit_code;
use belljar_runner::suite::{Cases, history::History};
use belljar_suite::{
    config::{Config, ConfigError, FILE_NAME, Profile, Retries},
    discover::{Discovery, discover, mistakes_in_headers},
    filter::Filter,
    partition::Partition,
    plan::{self, Plan, PlanOptions},
    settings::Layer,
};

use super::{Refused, args::SuiteArgs};
use crate::{env, settings, specs};

/// Everything that decides what runs.
pub(crate) struct Chosen {
    pub(crate) config: Config,
    pub(crate) discovery: Discovery,
    pub(crate) profile: Arc<Profile>,
    pub(crate) history: History,
    pub(crate) history_file: PathBuf,
    filter: Option<Filter>,
    flags: Layer,
    partition: Option<Partition>,
    rerun: Option<BTreeSet<String>>,
    durations: HashMap<String, Duration>,
}

impl Chosen {
    /// Reads and checks everything.
    pub(crate) fn new(args: &SuiteArgs) -> Result<Self, Refused> {
        let filter = match &args.filters[..] {
            [] => None,
            words => Some(Filter::of_arguments(words).map_err(|e| Refused::usage(e.to_string()))?),
        };
        let partition = args.partition.as_deref().map(str::parse).transpose();
        let partition = partition.map_err(|e: String| Refused::usage(format!("--partition: {e}")))?;
        let flags = flags(args).map_err(Refused::usage)?;

        let file = find(args.config.as_deref())?;
        let config = Config::load(&file, &shown(&file)).map_err(|error| match error {
            ConfigError::Wrong { mut found, rest } => {
                if let Some(rest) = rest {
                    found.append(mistakes_in_headers(&rest));
                }
                Refused::config(&found)
            }
            other => Refused { message: other.to_string(), code: exit_code::BAD_CONFIG },
        })?;
        let profile = config
            .profile(&args.profile)
            .map_err(|found| Refused { message: format!("--profile: {found}"), code: exit_code::BAD_CONFIG })?;
        let profile = Arc::clone(profile);
        let discovery = discover(&config).map_err(|found| Refused::config(&found))?;
        let history_file = settings::history_file(&config.path)?;
        let history = History::load(&history_file);
        let rerun = args.rerun_failed.then(|| history.not_passed());
        let durations = history.durations();
        Ok(Self { config, discovery, profile, history, history_file, filter, flags, partition, rerun, durations })
    }

    /// The plan, given the tests in libtest binaries as far as they are known.
    pub(crate) fn plan(&self, cases: &Cases, repeat: u32) -> Plan {
        let options = PlanOptions {
            filter: self.filter.clone(),
            flags: self.flags.clone(),
            partition: self.partition,
            rerun: self.rerun.as_ref(),
            durations: Some(&self.durations),
            cases: Some(cases),
            repeat,
            ..PlanOptions::new(&self.profile)
        };
        plan::plan(&self.config, &self.discovery, &options)
    }

    /// How long units took before, by id.
    pub(crate) fn durations(&self) -> &HashMap<String, Duration> {
        &self.durations
    }

    /// Why a plan without units has none, for a person.
    pub(crate) fn why_none(&self, plan: &Plan) -> String {
        if self.config.suites.is_empty() {
            return format!("{} has no suites; add a [[suites]] table", self.config.path.display());
        }
        if self.rerun.as_ref().is_some_and(BTreeSet::is_empty) {
            return "nothing is left to run again: all that ran last time passed".to_owned();
        }
        let count = plan.skipped.len();
        let mut why = format!("no test matches {}", plan.filter);
        if let Some(partition) = plan.partition {
            why.push_str(&format!(" in part {partition}"));
        }
        if count > 0 {
            why.push_str(&format!("; {count} were left out (belljar list -v shows them)"));
        }
        why
    }

    /// Whether `--rerun-failed` found that all is well.
    pub(crate) fn nothing_to_rerun(&self) -> bool {
        self.rerun.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

/// The configuration that was named, or the nearest.
pub(crate) fn find(named: Option<&Path>) -> Result<PathBuf, Refused> {
    if let Some(path) = named {
        // A directory stands for the file in it.
        let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
        return settings::absolute(&file).map_err(Refused::from);
    }
    let here = std::env::current_dir().map_err(|e| format!("there is no current directory: {e}"))?;
    let found = here.ancestors().map(|dir| dir.join(FILE_NAME)).find(|file| file.exists());
    found.ok_or_else(|| Refused {
        message: format!(
            "there is no {FILE_NAME} in {} or above; write one (the manual's chapter on suites begins with three lines of it), \
             or name it with --config",
            here.display()
        ),
        code: exit_code::BAD_CONFIG,
    })
}

/// A path as a person in the current directory would type it.
pub(crate) fn shown(file: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    file.strip_prefix(&here).unwrap_or(file).to_owned()
}

fn flags(args: &SuiteArgs) -> Result<Layer, String> {
    let mut layer = Layer {
        timeout: args.timeout,
        slow_timeout: args.slow_timeout,
        retries: args.retries.map(Retries::at_once),
        cpus: args.cpus,
        user: args.user.clone(),
        ..Layer::default()
    };
    layer.memory = args.memory.as_deref().map(specs::memory).transpose()?;
    layer.max_output = settings::bound("--max-output", args.max_output.as_deref())?;
    layer.max_disk = settings::bound("--max-disk", args.max_disk.as_deref())?;
    layer.guards = Guards::new(args.guards.iter().copied(), Vec::new());
    layer.nic = args.nic;
    layer.workspace_mode = args.workspace_mode;
    for text in &args.env {
        let variable = specs::variable(text, env::any)?;
        let variable = String::from_utf8(variable).map_err(|_| format!("--env {}: no UTF-8", text.display()))?;
        let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
        layer.env.insert(name.to_owned(), value.to_owned());
    }
    Ok(layer)
}
