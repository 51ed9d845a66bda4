//! What `belljar list` shows: what would run where, and why not.
//!
//! The JSON form is stable: fields are added, and [`SCHEMA`] rises when one changes its meaning.

use std::{collections::BTreeMap, fmt::Write as _};

use belljar_guest_spec::{Hardware, Source};
use serde::Serialize;

use super::{Plan, Skipped};
use crate::{diagnostic::visible, settings::Settings};

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// A plan for showing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Listing<'a> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The profile.
    pub profile: &'a str,
    /// The filter, as it was understood.
    pub filter: String,
    /// The part of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// The guests with their hardware.
    pub machines: Vec<ListedMachine<'a>>,
    /// What would run, in order.
    pub units: Vec<ListedUnit<'a>>,
    /// What would not.
    pub skipped: &'a [Skipped],
    /// Worth knowing.
    pub notes: Vec<String>,
}

/// A guest with its hardware.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListedMachine<'a> {
    /// Its name.
    pub guest: &'a str,
    /// What it boots from.
    #[serde(flatten)]
    pub source: &'a Source,
    /// Its hardware.
    pub hardware: &'a Hardware,
    /// How many units run on it.
    pub units: usize,
    /// What keeps it from running on this host, with how to mend it; see [`Listing::with_obstacles`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<String>,
}

/// A unit.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ListedUnit<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its suite.
    pub suite: &'a str,
    /// Its test.
    pub test: &'a str,
    /// Its test within a libtest binary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<&'a str>,
    /// Its guest.
    pub guest: &'a str,
    /// Which of the machines.
    pub machine: usize,
    /// Its file, relative to `belljar.toml`.
    pub file: &'a str,
    /// The units that it shares a guest with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<&'a str>,
    /// How long it took before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_ms: Option<u64>,
    /// Whether what is in it is not known before it is asked.
    pub to_be_listed: bool,
    /// What it wants that its guest never has, so that it is skipped; see [`Listing::with_lacks`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
    /// How it is run.
    pub settings: &'a Settings,
}

impl Plan {
    /// The plan for showing.
    #[must_use]
    pub fn listing(&self) -> Listing<'_> {
        let shares = self.cells.iter().flat_map(|c| c.units.clone().map(|_| c.shared.then_some(c.id.as_str())));
        Listing {
            schema: SCHEMA,
            profile: &self.profile,
            filter: self.filter.to_string(),
            partition: self.partition.map(|p| p.to_string()),
            machines: self
                .machines
                .iter()
                .map(|m| ListedMachine {
                    guest: &m.guest.name,
                    source: &m.guest.spec.source,
                    hardware: &m.hardware,
                    units: m.units,
                    obstacles: Vec::new(),
                })
                .collect(),
            units: self
                .units
                .iter()
                .zip(shares)
                .map(|(unit, shares)| ListedUnit {
                    id: &unit.id,
                    suite: &unit.suite.name,
                    test: &unit.test,
                    case: unit.case.as_deref(),
                    guest: &unit.guest.name,
                    machine: unit.machine,
                    file: &unit.file,
                    shares,
                    recorded_ms: unit.recorded.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
                    to_be_listed: unit.to_be_listed,
                    lacks: None,
                    settings: &unit.settings,
                })
                .collect(),
            skipped: &self.skipped,
            notes: self.notes.iter().map(|n| n.message.clone()).collect(),
        }
    }
}

impl Listing<'_> {
    /// Says of each machine what keeps it from running here: its units would end as errors.
    #[must_use]
    pub fn with_obstacles(mut self, obstacles: Vec<Vec<String>>) -> Self {
        for (machine, found) in self.machines.iter_mut().zip(obstacles) {
            machine.obstacles = found;
        }
        self
    }

    /// Says of each unit what it wants that its guest never has: it would be skipped.
    #[must_use]
    pub fn with_lacks(mut self, lacks: Vec<Option<String>>) -> Self {
        for (unit, lacking) in self.units.iter_mut().zip(lacks) {
            unit.lacks = lacking;
        }
        self
    }

    fn cannot_run(&self, unit: &ListedUnit<'_>) -> Option<&str> {
        self.machines.get(unit.machine)?.obstacles.first().map(String::as_str)
    }

    /// The listing for a person: suites with their tests, the guests of each, what is not run and why.
    ///
    /// What the filter or another part leaves out is only counted, unless `verbose`.
    #[must_use]
    pub fn human(&self, verbose: bool) -> String {
        // Suite, then test, then what is to be said of it on which guests.
        let mut suites: BTreeMap<&str, BTreeMap<&str, BTreeMap<String, Vec<&str>>>> = BTreeMap::new();
        for unit in &self.units {
            let name = unit.id.strip_prefix(unit.suite).and_then(|t| t.strip_prefix('/')).unwrap_or(unit.test);
            let name = name.rsplit_once('@').map_or(name, |(test, _)| test);
            let says = match (&unit.lacks, self.cannot_run(unit)) {
                (Some(why), _) => format!("skipped: {why}"),
                (None, Some(why)) => format!("cannot run: {}", why.replace('\n', "; ")),
                (None, None) if unit.to_be_listed => "to be listed".to_owned(),
                (None, None) => String::new(),
            };
            let tests = suites.entry(unit.suite).or_default();
            tests.entry(name).or_default().entry(says).or_default().push(unit.guest);
        }
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        for skip in self.skipped {
            if verbose || skip.reason.is_verdict() {
                let tests = suites.entry(&skip.suite).or_default();
                let says = format!("skipped: {}", skip.reason);
                tests.entry(&skip.test).or_default().entry(says).or_default().push(&skip.guest);
            } else {
                *counted.entry(skip.reason.to_string()).or_default() += 1;
            }
        }
        let mut out = String::new();
        for (suite, tests) in &suites {
            let _ = writeln!(out, "{suite}");
            let width = tests.keys().map(|t| t.chars().count()).max().unwrap_or(0).min(40);
            for (test, groups) in tests {
                for (says, guests) in groups {
                    let says = if says.is_empty() { String::new() } else { format!("  ({says})") };
                    let _ = writeln!(out, "  {:width$}  {}{}", visible(test), guests.join(" "), visible(&says));
                }
            }
        }
        let lacking = self.units.iter().filter(|unit| unit.lacks.is_some()).count();
        let skipped = self.skipped.len() + lacking;
        let cannot = self.units.iter().filter(|u| u.lacks.is_none() && self.cannot_run(u).is_some()).count();
        let cannot = if cannot > 0 { format!(" ({cannot} cannot run here)") } else { String::new() };
        let _ = writeln!(out, "{}{cannot}, {skipped} skipped", count(self.units.len() - lacking, "unit"));
        for (why, count) in counted {
            let _ = writeln!(out, "  {count} not shown: {why}");
        }
        out
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
