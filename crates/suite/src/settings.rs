//! Which setting holds where several places give one: the one home of precedence.
//!
//! From the strongest to the weakest ([`Level::ALL`]):
//!
//! 1. a **flag** of the command line,
//! 2. an **override** of the profile, the first whose filter matches and that has the key: it is the only place that can speak of
//!    one test on one guest in one profile, so nothing but a flag is more exact,
//! 3. the **header** of the test file,
//! 4. the **suite**,
//! 5. the **profile**,
//! 6. the **guest**,
//! 7. the **default**.
//!
//! Variables of all places are put together, the stronger winning by name. Tags, needs and requirements of suite and header are put together.
//! What guards are told to do is put together by guard, and what they allow as well.
//! Disks of the guest come first, then those of the header, or else of the suite.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use belljar_guest_spec::{DiskSpec, Guards, Hardware, Need, NicMode, WorkspaceMode, scheduled::ScheduledOrder};
use serde::Serialize;

use crate::{
    config::{Format, Isolation, Retries},
    units,
};

/// A place that a setting can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The command line.
    Flag,
    /// An override of the profile.
    Override,
    /// The test file's header.
    Header,
    /// The suite.
    Suite,
    /// The profile.
    Profile,
    /// The guest.
    Guest,
    /// Belljar.
    Default,
}

impl Level {
    /// From the strongest to the weakest.
    pub const ALL: [Self; 7] =
        [Self::Flag, Self::Override, Self::Header, Self::Suite, Self::Profile, Self::Guest, Self::Default];
}

/// What one place says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Limit to one attempt.
    pub timeout: Option<Duration>,
    /// From when on a test is called slow.
    pub slow_timeout: Option<Duration>,
    /// Tries after a failure.
    pub retries: Option<Retries>,
    /// How results are read.
    pub format: Option<Format>,
    /// Who shares a guest.
    pub isolation: Option<Isolation>,
    /// What becomes of the guest's writes to the workspace.
    pub workspace_mode: Option<WorkspaceMode>,
    /// Nothing else runs at the same time.
    pub exclusive: Option<bool>,
    /// The group whose limit holds.
    pub group: Option<String>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
    /// Why it is not run.
    pub skip: Option<String>,
    /// The guest's memory in bytes.
    pub memory: Option<u64>,
    /// The guest's processors.
    pub cpus: Option<u32>,
    /// Processors that can be plugged in.
    pub spare_cpus: Option<u32>,
    /// Bytes of memory that can be plugged in.
    pub spare_memory: Option<u64>,
    /// The guest's network.
    pub nic: Option<NicMode>,
    /// Whether the boot disk is a lab disk.
    pub boot_lab: Option<bool>,
    /// Disks on top of the guest's.
    pub disks: Option<Vec<DiskSpec>>,
    /// What happens to its machine while it runs.
    pub orders: Option<Vec<ScheduledOrder>>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Directory in the guest.
    pub cwd: Option<String>,
    /// User in the guest.
    pub user: Option<String>,
    /// Arguments for the test.
    pub args: Option<Vec<String>>,
    /// Patterns of JUnit files.
    pub junit: Option<Vec<String>>,
    /// Labels.
    pub tags: BTreeSet<String>,
    /// Commands that must be in the guest.
    pub requires: BTreeSet<String>,
    /// What the guest must be.
    pub needs: BTreeSet<Need>,
    /// What the guards do.
    pub guards: Guards,
    /// Bytes that may be left in the output directory.
    pub max_output: Option<u64>,
    /// Bytes that may be written to the guest's disks.
    pub max_disk: Option<u64>,
}

/// How one test is run on one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Limit to one attempt.
    #[serde(rename = "timeout-ms", with = "units::millis")]
    pub timeout: Duration,
    /// From when on it is called slow.
    #[serde(rename = "slow-timeout-ms", with = "units::millis")]
    pub slow_timeout: Duration,
    /// Tries after a failure.
    pub retries: Retries,
    /// How results are read.
    pub format: Format,
    /// Who shares its guest.
    pub isolation: Isolation,
    /// What becomes of the guest's writes to the workspace.
    pub workspace_mode: WorkspaceMode,
    /// Nothing else runs at the same time.
    pub exclusive: bool,
    /// The group whose limit holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Higher runs earlier.
    pub priority: i32,
    /// Why it is not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<String>,
    /// Variables. Belljar's own (`BELLJAR_…`) come on top.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Directory in the guest; none means the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User in the guest; none means the one that Belljar got in as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What happens to its machine while it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orders: Vec<ScheduledOrder>,
    /// Arguments for the test.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Patterns of JUnit files, looked for in the output directory, then in the workspace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub junit: Vec<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// Commands that must be in the guest.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub requires: BTreeSet<String>,
    /// What the guest must be.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub needs: BTreeSet<Need>,
    /// What the guards do.
    #[serde(skip_serializing_if = "Guards::is_default")]
    pub guards: Guards,
    /// Bytes that may be left in the output directory; none means what fits the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output: Option<u64>,
    /// Bytes that may be written to the guest's disks; none means what fits the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk: Option<u64>,
}

impl Layer {
    /// What Belljar says where nobody else does.
    #[must_use]
    pub fn defaults() -> Self {
        Self {
            timeout: Some(Duration::from_secs(600)),
            slow_timeout: Some(Duration::from_secs(60)),
            retries: Some(Retries::default()),
            format: Some(Format::Exit),
            isolation: Some(Isolation::Test),
            workspace_mode: Some(WorkspaceMode::Cow),
            exclusive: Some(false),
            priority: Some(0),
            ..Self::default()
        }
    }

    /// What holds if `self` is stronger than `weaker`.
    #[must_use]
    pub fn over(&self, weaker: &Self) -> Self {
        macro_rules! first {
            ($($key:ident),*) => {
                Self {
                    $( $key: self.$key.clone().or_else(|| weaker.$key.clone()), )*
                    env: weaker.env.iter().chain(&self.env).map(|(k, v)| (k.clone(), v.clone())).collect(),
                    tags: &self.tags | &weaker.tags,
                    requires: &self.requires | &weaker.requires,
                    needs: &self.needs | &weaker.needs,
                    guards: self.guards.over(&weaker.guards),
                }
            };
        }
        first!(
            timeout,
            slow_timeout,
            retries,
            format,
            isolation,
            workspace_mode,
            exclusive,
            group,
            priority,
            skip,
            memory,
            cpus,
            spare_cpus,
            spare_memory,
            nic,
            boot_lab,
            disks,
            orders,
            cwd,
            user,
            args,
            junit,
            max_output,
            max_disk
        )
    }

    /// What holds of several places, the strongest first, above the defaults.
    #[must_use]
    pub fn merge<'a>(layers: impl IntoIterator<Item = &'a Self>) -> Self {
        let merged = layers.into_iter().fold(Self::default(), |strong, weak| strong.over(weak));
        merged.over(&Self::defaults())
    }

    /// The settings that these merged layers come to, and the guest's hardware with `guest_disks` first.
    #[must_use]
    pub fn settle(self, guest_disks: &[DiskSpec]) -> (Settings, Hardware) {
        let default = Hardware::default();
        let hardware = Hardware {
            memory: self.memory.unwrap_or(default.memory),
            cpus: self.cpus.unwrap_or(default.cpus),
            spare_cpus: self.spare_cpus.unwrap_or(default.spare_cpus),
            spare_memory: self.spare_memory.unwrap_or(default.spare_memory),
            nic: self.nic.unwrap_or(default.nic),
            boot_lab: self.boot_lab.unwrap_or(default.boot_lab),
            disks: guest_disks.iter().cloned().chain(self.disks.unwrap_or_default()).collect(),
        };
        let orders = self.orders.unwrap_or_default();
        let mut needs = self.needs;
        if !orders.is_empty() {
            // Nothing else could carry them out.
            needs.insert(Need::Machine);
        }
        let settings = Settings {
            timeout: self.timeout.unwrap_or(Duration::MAX),
            slow_timeout: self.slow_timeout.unwrap_or(Duration::MAX),
            retries: self.retries.unwrap_or_default(),
            format: self.format.unwrap_or(Format::Exit),
            isolation: self.isolation.unwrap_or(Isolation::Test),
            workspace_mode: self.workspace_mode.unwrap_or(WorkspaceMode::Cow),
            exclusive: self.exclusive.unwrap_or(false),
            group: self.group,
            priority: self.priority.unwrap_or(0),
            skip: self.skip,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            args: self.args.unwrap_or_default(),
            junit: self.junit.unwrap_or_default(),
            tags: self.tags,
            requires: self.requires,
            needs,
            guards: self.guards,
            orders,
            max_output: self.max_output,
            max_disk: self.max_disk,
        };
        (settings, hardware)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Config, diagnostic::SourceText};

    /// One file in which `{LEVEL}` stands where that level can give a setting.
    fn settings(key: &str, values: &BTreeMap<Level, String>) -> serde_json::Value {
        let line = |level| values.get(&level).map(|v| format!("{key} = {v}\n")).unwrap_or_default();
        let exception = match values.get(&Level::Override) {
            Some(value) => format!("[[profile.default.overrides]]\nfilter = \"all()\"\n{key} = {value}\n"),
            None => String::new(),
        };
        let text = format!(
            "[guests.g]\n{}[[suites]]\nname = \"s\"\ntests = \"*\"\n{}[groups]\na.max-parallel = 1\nb.max-parallel = 1\n\
             c.max-parallel = 1\n[profile.default]\n{}{exception}",
            line(Level::Guest),
            line(Level::Suite),
            line(Level::Profile),
        );
        let config = Config::parse("belljar.toml", &text).unwrap_or_else(|e| panic!("{text}\n{e}"));
        let header = |level| {
            let source = SourceText::new("t", "");
            crate::header::parse(&source, 0, Path::new(""), &line(level)).unwrap().layer
        };
        let (flag, header) = (header(Level::Flag), header(Level::Header));
        let profile = config.profile("default").unwrap();
        let (guest, suite) = (&config.guests["g"], &config.suites[0]);
        let exception = profile.overrides.first().map(|o| o.layer.clone()).unwrap_or_default();
        let layers = [&flag, &exception, &header, &suite.layer, &profile.layer, &guest.layer];
        let (settings, hardware) = Layer::merge(layers).settle(&guest.spec.hardware.disks);
        let mut json = serde_json::to_value(settings).unwrap();
        let hardware = serde_json::to_value(hardware).unwrap();
        json.as_object_mut().unwrap().extend(hardware.as_object().unwrap().clone());
        json.get(key).or_else(|| json.get(format!("{key}-ms"))).cloned().unwrap_or_default()
    }

    #[test]
    fn the_stronger_place_holds() {
        use Level::{Flag, Guest, Header, Override, Profile, Suite};
        let all = &[Flag, Override, Header, Suite, Profile, Guest][..];
        let table: &[(&str, &[Level], [&str; 3])] = &[
            ("timeout", all, ["\"1s\"", "\"2s\"", "\"3s\""]),
            ("slow-timeout", all, ["\"1s\"", "\"2s\"", "\"3s\""]),
            ("retries", &[Flag, Override, Header, Suite, Profile], ["1", "2", "{ count = 3, delay = \"1s\" }"]),
            ("exclusive", &[Flag, Override, Header, Suite], ["true", "false", "true"]),
            ("group", &[Flag, Override, Header, Suite], ["\"a\"", "\"b\"", "\"c\""]),
            ("priority", &[Override, Header, Suite], ["1", "2", "3"]),
            ("skip", &[Override, Header, Suite], ["\"a\"", "\"b\"", "\"c\""]),
            ("format", &[Header, Suite], ["\"tap\"", "\"kselftest\"", "\"libtest\""]),
            ("isolation", &[Header, Suite], ["\"test\"", "\"suite\"", "\"test\""]),
            ("workspace-mode", &[Flag, Header, Suite, Guest], ["\"rw\"", "\"ro\"", "\"cow\""]),
            ("memory", &[Flag, Header, Suite, Guest], ["\"100M\"", "\"200M\"", "\"300M\""]),
            ("cpus", &[Flag, Header, Suite, Guest], ["2", "3", "4"]),
            ("spare-cpus", &[Header, Suite, Guest], ["2", "3", "4"]),
            ("spare-memory", &[Header, Suite, Guest], ["\"128M\"", "\"256M\"", "\"384M\""]),
            ("nic", &[Flag, Header, Suite, Guest], ["\"none\"", "\"user\"", "\"isolated\""]),
            ("cwd", &[Flag, Header, Suite, Guest], ["\"/a\"", "\"/b\"", "\"/c\""]),
            ("user", &[Flag, Header, Suite, Guest], ["\"a\"", "\"b\"", "\"c\""]),
            ("max-output", &[Flag, Header, Suite, Guest], ["\"100M\"", "\"200M\"", "\"300M\""]),
            ("max-disk", &[Flag, Header, Suite, Guest], ["\"100M\"", "\"200M\"", "\"300M\""]),
            ("args", &[Header, Suite], ["[\"a\"]", "[\"b\"]", "[\"c\"]"]),
            ("junit", &[Header, Suite], ["[\"a\"]", "[\"b\"]", "[\"c\"]"]),
            (
                "orders",
                &[Header, Suite],
                [
                    "[{ at = \"+1s\", order = \"nmi\" }]",
                    "[{ on = \"mark:a\", order = \"nmi\" }]",
                    "[{ at = \"2s\", order = \"link up\" }]",
                ],
            ),
            ("disks", &[Header, Suite], ["[{ size = \"1G\" }]", "[{ size = \"2G\" }]", "[]"]),
        ];
        for (key, levels, values) in table {
            for (i, stronger) in levels.iter().enumerate() {
                let alone = settings(key, &BTreeMap::from([(*stronger, values[0].to_owned())]));
                assert_ne!(alone, serde_json::Value::Null, "{key} at {stronger:?}");
                for weaker in &levels[i + 1..] {
                    let both = BTreeMap::from([(*stronger, values[0].to_owned()), (*weaker, values[1].to_owned())]);
                    assert_eq!(settings(key, &both), alone, "{key}: {stronger:?} over {weaker:?}");
                    let swapped = BTreeMap::from([(*stronger, values[1].to_owned()), (*weaker, values[0].to_owned())]);
                    assert_ne!(settings(key, &swapped), alone, "{key}: {stronger:?} over {weaker:?}");
                }
            }
        }
        assert!(Level::ALL.is_sorted());
    }

    #[test]
    fn variables_tags_and_disks_are_put_together() {
        let layer = |env: &[(&str, &str)], tags: &[&str]| Layer {
            env: env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            tags: tags.iter().map(|&t| t.into()).collect(),
            ..Layer::default()
        };
        let (settings, _) =
            Layer::merge([&layer(&[("A", "1")], &["x"]), &layer(&[("A", "2"), ("B", "2")], &["y"])]).settle(&[]);
        assert_eq!(settings.env, layer(&[("A", "1"), ("B", "2")], &[]).env);
        assert_eq!(settings.tags, layer(&[], &["x", "y"]).tags);
    }
}
