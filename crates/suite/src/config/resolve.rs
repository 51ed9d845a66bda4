//! From the file as typed to the file as meant. What is wrong was said already, and is passed over here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::Spanned;

use super::{
    Config, DEFAULT_PROFILE, Guest, HOST_GUEST, Override, Profile, Suite, guest,
    kernels::Families,
    layers::{self, plain, unsigned},
    typed::{FileTable, Pattern as PatternText, ProfileTable, SuiteTable},
};
use crate::{
    diagnostic::Place,
    glob::Pattern,
    toml_tree::{FilePath, OneOrMany, Walk},
};

pub(super) fn file(path: &Path, shown: &Path, file: &FileTable, families: &Families, walk: &Walk) -> Config {
    let dir = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut guests = BTreeMap::new();
    let mut declared = Vec::new();
    for (name, (_, table)) in file.guests.iter().flat_map(|g| &g.get_ref().0) {
        let guest = guest::resolve(&name.0, table, &dir);
        declared.push(name.0.clone());
        let Some(members) = families.get(&name.0) else {
            guests.insert(name.0.clone(), Arc::new(guest));
            continue;
        };
        for member in members {
            guests.insert(member.name.clone(), Arc::new(guest.of_family(&name.0, member)));
        }
    }
    guests.entry(HOST_GUEST.to_owned()).or_insert_with(|| Arc::new(Guest::host(HOST_GUEST)));
    if declared.is_empty() {
        declared.push(HOST_GUEST.to_owned());
    }
    let suites = file.suites.iter().flat_map(|s| &s.get_ref().0);
    let mut config = Config {
        families: families.iter().map(|(n, m)| (n.clone(), m.iter().map(|m| m.name.clone()).collect())).collect(),
        guests,
        ..Config::empty(&dir)
    };
    let named = |names: &[String]| config.guests_named(names).into_iter().map(|g| g.name.clone()).collect();
    let of_table = |table| {
        let mut suite = suite(table, &dir, &declared, walk)?;
        suite.guests = named(&suite.guests);
        Some(Arc::new(suite))
    };
    let suites = suites.filter_map(|s| of_table(s.get_ref())).collect();
    let groups = file.groups.iter().flat_map(|g| &g.get_ref().0);
    let groups = groups
        .map(|(name, (_, g))| (name.0.clone(), g.max_parallel.as_ref().map_or(1, |m| m.get_ref().unsigned())))
        .collect();
    config.path = path.to_owned();
    config.shown_dir = shown.parent().unwrap_or_else(|| Path::new("")).to_owned();
    config.workspace = file.workspace.as_ref().map_or_else(|| dir.clone(), |w| dir.join(&w.get_ref().0));
    config.suites = suites;
    config.groups = groups;
    config.profiles = profiles(file, &dir);
    config
}

pub(super) fn below(dir: &Path, path: &Option<Spanned<FilePath>>) -> Option<PathBuf> {
    path.as_ref().map(|p| dir.join(&p.get_ref().0))
}

fn patterns(list: &Option<Spanned<OneOrMany<PatternText>>>, walk: &Walk) -> Vec<(Pattern, Place)> {
    let items = list.iter().flat_map(|l| &l.get_ref().0);
    items.filter_map(|p| Some((Pattern::new(&p.get_ref().0).ok()?, walk.place(p.span())))).collect()
}

fn suite(table: &SuiteTable, dir: &Path, declared: &[String], walk: &Walk) -> Option<Suite> {
    let scripts = table.setup.iter().flat_map(|s| &s.get_ref().0);
    Some(Suite {
        name: plain(&table.name)?,
        tests: patterns(&table.tests, walk),
        exclude: patterns(&table.exclude, walk),
        guests: plain(&table.guests).unwrap_or_else(|| declared.to_vec()),
        setup: scripts.map(|s| (dir.join(&s.get_ref().0), walk.place(s.span()))).collect(),
        setup_once: plain(&table.setup_once).unwrap_or_default(),
        setup_inputs: patterns(&table.setup_inputs, walk),
        setup_timeout: plain(&table.setup_timeout).unwrap_or(Duration::from_secs(600)),
        layer: layers::of_suite(table, dir),
    })
}

fn profiles(file: &FileTable, dir: &Path) -> BTreeMap<String, Arc<Profile>> {
    let tables = || file.profile.iter().flat_map(|p| &p.get_ref().0);
    let base = tables().find(|(name, _)| name.0 == DEFAULT_PROFILE).map_or_else(
        || Profile::empty(DEFAULT_PROFILE),
        |(_, (_, t))| profile(DEFAULT_PROFILE, t, dir, &Profile::empty("")),
    );
    let mut all: BTreeMap<_, _> = tables()
        .filter(|(name, _)| name.0 != DEFAULT_PROFILE)
        .map(|(name, (_, table))| (name.0.clone(), Arc::new(profile(&name.0, table, dir, &base))))
        .collect();
    all.insert(DEFAULT_PROFILE.to_owned(), Arc::new(base));
    all
}

fn profile(name: &str, table: &ProfileTable, dir: &Path, base: &Profile) -> Profile {
    let overrides = table.overrides.iter().flat_map(|o| &o.get_ref().0).filter_map(|o| {
        let o = o.get_ref();
        Some(Override { filter: o.filter.as_ref()?.get_ref().0.clone(), layer: layers::of_override(o) })
    });
    Profile {
        name: name.to_owned(),
        filter: table.filter.as_ref().map(|f| f.get_ref().0.clone()).or_else(|| base.filter.clone()),
        jobs: plain(&table.jobs).map(unsigned).or(base.jobs),
        max_memory: table.max_memory.as_ref().map(|m| m.get_ref().0).or(base.max_memory),
        max_cpus: plain(&table.max_cpus).map(unsigned).or(base.max_cpus),
        fail_fast: plain(&table.fail_fast).unwrap_or(base.fail_fast),
        global_timeout: plain(&table.global_timeout).or(base.global_timeout),
        error_retries: plain(&table.error_retries).map_or(base.error_retries, unsigned),
        junit: below(dir, &table.junit).or_else(|| base.junit.clone()),
        tap: below(dir, &table.tap).or_else(|| base.tap.clone()),
        html: below(dir, &table.html).or_else(|| base.html.clone()),
        layer: layers::of_profile(table).over(&base.layer),
        overrides: overrides.chain(base.overrides.iter().cloned()).collect(),
    }
}
