//! What is to run where, in which order, and what is not, and why.
//!
//! In this order: the matrix (each test on each of its guests), the filter, `--rerun-failed`, the partition, tests that say
//! themselves that they are skipped, the order. So a test that is skipped belongs to one part of a parted run, too.
//!
//! **Ids.** `suite/test@guest`, and `suite/test::case@guest` for a test of a libtest binary. A guest's name has no `@`, a suite's
//! no `/`, so an id can be taken apart.

mod list;
mod order;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::{GuestSpec, Hardware, Surroundings};
use serde::Serialize;

pub use self::list::{Listing, SCHEMA as LISTING_SCHEMA};
use crate::{
    config::{Config, Format, Guest, Isolation, Profile, Suite, no_such},
    diagnostic::{Diagnostic, Diagnostics},
    discover::{Discovery, TestFile},
    filter::{Answer, Field, Filter, Subject},
    partition::Partition,
    settings::{Layer, Settings},
};

/// What was asked for, beside the configuration.
#[derive(Clone, Debug)]
pub struct PlanOptions<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// The tests; none means those of the profile, or else all.
    pub filter: Option<Filter>,
    /// What flags say of all tests.
    pub flags: Layer,
    /// The part of the run.
    pub partition: Option<Partition>,
    /// Only these units: those that failed last.
    pub rerun: Option<&'a BTreeSet<String>>,
    /// How long units took before, by id.
    pub durations: Option<&'a HashMap<String, Duration>>,
    /// What is in libtest binaries, by the id of the unit that stands for the binary.
    pub cases: Option<&'a BTreeMap<String, Vec<Case>>>,
    /// Attempts at each unit, each with a verdict of its own.
    pub repeat: u32,
}

impl<'a> PlanOptions<'a> {
    /// All tests, once.
    #[must_use]
    pub fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            filter: None,
            flags: Layer::default(),
            partition: None,
            rerun: None,
            durations: None,
            cases: None,
            repeat: 1,
        }
    }
}

/// A test in a libtest binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name, such as `module::test`.
    pub name: String,
    /// Whether the binary says that it is left out unless asked for.
    pub ignored: bool,
}

/// What is to run where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they should start.
    pub units: Vec<Unit>,
    /// The units in groups that belong together, in the same order.
    pub cells: Vec<Cell>,
    /// What does not run, in stable order.
    pub skipped: Vec<Skipped>,
    /// The machines that the units run on.
    pub machines: Vec<Machine>,
    /// The filter that held.
    pub filter: Filter,
    /// The part of the run.
    pub partition: Option<Partition>,
    /// The profile's name.
    pub profile: String,
    /// Worth knowing.
    pub notes: Diagnostics,
}

/// One test on one guest.
#[derive(Clone, Debug)]
pub struct Unit {
    /// `suite/test@guest`, the same in every run.
    pub id: String,
    /// Its suite.
    pub suite: Arc<Suite>,
    /// The test's name within the suite.
    pub test: String,
    /// The test within a libtest binary.
    pub case: Option<String>,
    /// Its guest.
    pub guest: Arc<Guest>,
    /// The test file, relative to `belljar.toml`.
    pub file: String,
    /// The test file on the host.
    pub path: PathBuf,
    /// The test file, relative to the workspace that the guest sees.
    pub in_workspace: PathBuf,
    /// How it is run.
    pub settings: Arc<Settings>,
    /// On which of [`Plan::machines`].
    pub machine: usize,
    /// How long it took before.
    pub recorded: Option<Duration>,
    /// Attempts at it, each with a verdict of its own.
    pub repeat: u32,
    /// A libtest binary whose tests are not known yet: list it, and plan again with [`PlanOptions::cases`].
    pub to_be_listed: bool,
}

impl Unit {
    /// The test file as the guest sees it.
    #[must_use]
    pub fn guest_path(&self) -> String {
        format!("{}/{}", self.guest.spec.mount_at.trim_end_matches('/'), self.in_workspace.display())
    }
}

/// Units that belong together: one alone, or those that share a guest, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The id of the unit, or `suite@guest`.
    pub id: String,
    /// Which of [`Plan::units`].
    pub units: Range<usize>,
    /// Whether they share a guest.
    pub shared: bool,
}

/// A guest with the hardware that tests want. Its units can run in clones of one template.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The guest.
    pub guest: Arc<Guest>,
    /// Its hardware.
    pub hardware: Hardware,
    /// How many units run on it.
    pub units: usize,
}

impl Machine {
    /// The guest as it is to be made.
    ///
    /// # Errors
    /// If the environment lacks what the guest's description wants of it.
    pub fn spec(&self, around: &Surroundings) -> Result<GuestSpec, String> {
        let spec = GuestSpec { hardware: self.hardware.clone(), ..self.guest.spec.clone() };
        spec.resolved(around).map_err(|e| format!("the guest \"{}\": {e}", self.guest.name))
    }
}

/// What does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// As of a unit.
    pub id: String,
    /// The suite.
    pub suite: String,
    /// The test.
    pub test: String,
    /// The guest.
    pub guest: String,
    /// The test file, relative to `belljar.toml`.
    pub file: String,
    /// Why not.
    pub reason: SkipReason,
}

/// Why something does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why", content = "text")]
pub enum SkipReason {
    /// The filter does not match.
    Filter,
    /// It did not fail last time.
    NotFailed,
    /// It is in another part.
    Partition,
    /// The suite, the header or the profile says so: a skip that reports show.
    Said(String),
    /// The libtest binary says so: a skip that reports show.
    Ignored,
}

impl SkipReason {
    /// Whether it is a verdict on the test, which reports show, and not a choice of this run.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::Said(_) | Self::Ignored)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter => f.write_str("the filter does not match"),
            Self::NotFailed => f.write_str("it did not fail last time"),
            Self::Partition => f.write_str("it is in another part"),
            Self::Said(why) => f.write_str(why),
            Self::Ignored => f.write_str("#[ignore]"),
        }
    }
}

/// The id of a unit.
#[must_use]
pub fn unit_id(suite: &str, test: &str, case: Option<&str>, guest: &str) -> String {
    match case {
        Some(case) => format!("{suite}/{test}::{case}@{guest}"),
        None => format!("{suite}/{test}@{guest}"),
    }
}

/// What a unit's id says: suite, test (with the case, if it has one) and guest.
#[must_use]
pub fn split_id(id: &str) -> Option<(&str, &str, &str)> {
    let (rest, guest) = id.rsplit_once('@')?;
    let (suite, test) = rest.split_once('/')?;
    Some((suite, test, guest))
}

/// Makes the plan.
#[must_use]
pub fn plan(config: &Config, discovery: &Discovery, options: &PlanOptions<'_>) -> Plan {
    let filter = options.filter.clone().or_else(|| options.profile.filter.clone()).unwrap_or(Filter::All);
    let mut notes = unknown_names(config, discovery, &filter);
    let candidates = candidates(config, discovery, options);
    if let Some(rerun) = options.rerun {
        notes.append(gone(rerun, &candidates));
    }
    let mut skipped = Vec::new();
    let mut wanted = Vec::new();
    for candidate in candidates {
        let subject = candidate.subject();
        let reason = if filter.answer(&subject) == Answer::No {
            SkipReason::Filter
        } else if options.rerun.is_some_and(|rerun| !is_in(rerun, &subject)) {
            SkipReason::NotFailed
        } else {
            wanted.push(candidate);
            continue;
        };
        skipped.push((candidate.place, candidate.skip(reason)));
    }
    let cells = cells(wanted, options.partition, &mut skipped);
    let (mut units, cells) = order::order(cells);
    let machines = machines(&mut units);
    skipped.sort_by_key(|(place, _)| *place);
    Plan {
        units: units.into_iter().map(|c| c.unit).collect(),
        cells,
        skipped: skipped.into_iter().map(|(_, s)| s).collect(),
        machines,
        partition: options.partition,
        profile: options.profile.name.clone(),
        notes: notes.sorted(),
        filter,
    }
}

/// A unit that may run.
struct Candidate {
    unit: Unit,
    /// In the stable order.
    place: usize,
    /// The test's name with its case.
    name: String,
    hardware: Hardware,
    /// Whether its binary leaves it out.
    ignored: bool,
}

impl Candidate {
    fn subject(&self) -> Subject<'_> {
        let unit = &self.unit;
        Subject {
            id: &unit.id,
            path: &unit.file,
            name: &self.name,
            suite: &unit.suite.name,
            guest: &unit.guest.name,
            family: unit.guest.family.as_deref(),
            tags: &unit.settings.tags,
            to_be_listed: unit.to_be_listed,
        }
    }

    fn skip(self, reason: SkipReason) -> Skipped {
        Skipped {
            id: self.unit.id,
            suite: self.unit.suite.name.clone(),
            test: self.name,
            guest: self.unit.guest.name.clone(),
            file: self.unit.file,
            reason,
        }
    }

    /// Why it does not run although it is wanted.
    fn said(&self) -> Option<SkipReason> {
        match &self.unit.settings.skip {
            Some(why) => Some(SkipReason::Said(why.clone())),
            None => self.ignored.then_some(SkipReason::Ignored),
        }
    }
}

/// So many units before are looked at for the same settings, which are then kept once: most tests have those of their suite.
const ALIKE: usize = 8;

/// The matrix.
fn candidates(config: &Config, discovery: &Discovery, options: &PlanOptions<'_>) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = Vec::new();
    for test in &discovery.tests {
        for guest in guests_of(config, test) {
            let id = unit_id(&test.suite.name, &test.name, None, &guest.name);
            let format = test.header.layer.format.or(test.suite.layer.format);
            let cases = options.cases.and_then(|c| c.get(&id));
            match cases {
                _ if format != Some(Format::Libtest) => {
                    all.push(candidate(options, test, guest, None, false, &all));
                }
                None => all.push(candidate(options, test, guest, None, true, &all)),
                Some(cases) => {
                    for case in cases {
                        all.push(candidate(options, test, guest, Some(case), false, &all));
                    }
                }
            }
        }
    }
    all
}

fn candidate(
    options: &PlanOptions<'_>,
    test: &TestFile,
    guest: &Arc<Guest>,
    case: Option<&Case>,
    to_be_listed: bool,
    before: &[Candidate],
) -> Candidate {
    let suite = &test.suite;
    let case_name = case.map(|c| c.name.as_str());
    let id = unit_id(&suite.name, &test.name, case_name, &guest.name);
    let name = case_name.map_or_else(|| test.name.clone(), |case| format!("{}::{case}", test.name));
    let tags = &suite.layer.tags | &test.header.layer.tags;
    let subject = Subject {
        id: &id,
        path: &test.file,
        name: &name,
        suite: &suite.name,
        guest: &guest.name,
        family: guest.family.as_deref(),
        tags: &tags,
        to_be_listed,
    };
    let exceptions = options.profile.overrides.iter();
    let exceptions = exceptions.filter(|o| o.filter.answer(&subject) == Answer::Yes).map(|o| &o.layer);
    let layers = std::iter::once(&options.flags).chain(exceptions).chain([
        &test.header.layer,
        &suite.layer,
        &options.profile.layer,
        &guest.layer,
    ]);
    let (settings, hardware) = Layer::merge(layers).settle(&guest.spec.hardware.disks);
    let alike = before.iter().rev().take(ALIKE).map(|c| &c.unit.settings).find(|s| ***s == settings).cloned();
    let unit = Unit {
        recorded: options.durations.and_then(|d| d.get(&id)).copied(),
        suite: Arc::clone(suite),
        test: test.name.clone(),
        case: case_name.map(str::to_owned),
        guest: Arc::clone(guest),
        file: test.file.clone(),
        path: test.path.clone(),
        in_workspace: test.in_workspace.clone(),
        settings: alike.unwrap_or_else(|| Arc::new(settings)),
        machine: 0,
        repeat: options.repeat,
        to_be_listed,
        id,
    };
    Candidate { unit, place: before.len(), name, hardware, ignored: case.is_some_and(|c| c.ignored) }
}

/// A cell that is not laid out yet.
struct Group {
    id: String,
    shared: bool,
    units: Vec<Candidate>,
}

/// Puts together what shares a guest, and takes what is in this part and runs.
fn cells(wanted: Vec<Candidate>, partition: Option<Partition>, skipped: &mut Vec<(usize, Skipped)>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut shared: HashMap<String, usize> = HashMap::new();
    for candidate in wanted {
        let unit = &candidate.unit;
        if unit.settings.isolation == Isolation::Test {
            groups.push(Group { id: unit.id.clone(), shared: false, units: vec![candidate] });
            continue;
        }
        let id = format!("{}@{}", unit.suite.name, unit.guest.name);
        let at = *shared.entry(id.clone()).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { id, shared: true, units: Vec::new() });
        }
        groups[at].units.push(candidate);
    }
    let mut kept = Vec::new();
    for (index, mut group) in groups.into_iter().enumerate() {
        // A binary to be listed is in each part until its tests are known.
        let to_be_listed = group.units.iter().any(|c| c.unit.to_be_listed);
        let elsewhere = partition.is_some_and(|p| !to_be_listed && !p.takes(index, &group.id));
        let mut run = Vec::new();
        for candidate in group.units {
            match if elsewhere { Some(SkipReason::Partition) } else { candidate.said() } {
                Some(reason) => skipped.push((candidate.place, candidate.skip(reason))),
                None => run.push(candidate),
            }
        }
        if !run.is_empty() {
            group.units = run;
            kept.push(group);
        }
    }
    kept
}

/// Gives each unit its machine.
fn machines(units: &mut [Candidate]) -> Vec<Machine> {
    let mut machines: Vec<Machine> = Vec::new();
    for candidate in units {
        let guest = &candidate.unit.guest;
        let same = |m: &Machine| Arc::ptr_eq(&m.guest, guest) && m.hardware == candidate.hardware;
        let at = machines.iter().position(same).unwrap_or(machines.len());
        if at == machines.len() {
            machines.push(Machine { guest: Arc::clone(guest), hardware: candidate.hardware.clone(), units: 0 });
        }
        machines[at].units += 1;
        candidate.unit.machine = at;
    }
    machines
}

/// Says which of the units that failed last time are not there any more.
fn gone(rerun: &BTreeSet<String>, candidates: &[Candidate]) -> Diagnostics {
    if candidates.iter().any(|c| c.unit.to_be_listed) {
        return Diagnostics::default();
    }
    let known: BTreeSet<&str> = candidates.iter().map(|c| c.unit.id.as_str()).collect();
    let gone = rerun.iter().filter(|id| !known.contains(id.as_str()));
    gone.map(|id| Diagnostic::note(format!("{id} failed last time and is not there any more"))).collect()
}

fn guests_of<'a>(config: &'a Config, test: &'a TestFile) -> Vec<&'a Arc<Guest>> {
    match &test.header.guests {
        Some(guests) => config.guests_named(guests.iter().map(|(name, _)| name)),
        None => config.guests_named(&test.suite.guests),
    }
}

/// Says which names in a filter there are not: most likely they are misspelt.
fn unknown_names(config: &Config, discovery: &Discovery, filter: &Filter) -> Diagnostics {
    let suites: BTreeSet<String> = config.suites.iter().map(|s| s.name.clone()).collect();
    let tags: BTreeSet<String> =
        discovery.tests.iter().flat_map(|t| t.suite.layer.tags.iter().chain(&t.header.layer.tags)).cloned().collect();
    let note = |what, name: &str, known: Vec<&String>| {
        let known_already = known.iter().any(|k| *k == name);
        (!known_already).then(|| Diagnostic {
            severity: crate::diagnostic::Severity::Note,
            ..*no_such(what, name, known.into_iter())
        })
    };
    let names = filter.names().into_iter().filter_map(|(field, name)| match field {
        Field::Guest => note("guest", name, config.guest_names().collect()),
        Field::Suite => note("suite", name, suites.iter().collect()),
        Field::Tag => note("tag", name, tags.iter().collect()),
        Field::Id | Field::Name => None,
    });
    names.collect()
}

/// Whether a unit is among those that failed; a binary whose tests are not known is if one of them is.
fn is_in(rerun: &BTreeSet<String>, subject: &Subject<'_>) -> bool {
    if rerun.contains(subject.id) {
        return true;
    }
    let start = format!("{}/{}::", subject.suite, subject.name);
    subject.to_be_listed
        && rerun
            .range(start.clone()..)
            .take_while(|id| id.starts_with(&start))
            .any(|id| split_id(id).is_some_and(|(_, _, guest)| guest == subject.guest))
}

#[cfg(test)]
mod tests;
