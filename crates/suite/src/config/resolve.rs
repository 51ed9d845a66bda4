//! From the file as typed to the file as meant. What is wrong was said already, and is passed over here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use toml::Spanned;

use super::{
    Config, DEFAULT_PROFILE, Guest, HOST_GUEST, Login, Override, Password, Profile, Source, Suite,
    layers::{self, plain, unsigned},
    typed::{FileTable, GuestTable, LoginTable, Pattern as PatternText, ProfileTable, SuiteTable},
    words::{Access, Bus, Oops},
};
use crate::{
    diagnostic::Place,
    glob::Pattern,
    toml_tree::{FilePath, OneOrMany, Walk},
};

pub(super) fn file(path: &Path, shown: &Path, file: &FileTable, walk: &Walk) -> Config {
    let dir = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut guests = BTreeMap::new();
    let mut declared = Vec::new();
    for (name, (_, table)) in file.guests.iter().flat_map(|g| &g.get_ref().0) {
        guests.insert(name.0.clone(), Arc::new(guest(&name.0, table, &dir)));
        declared.push(name.0.clone());
    }
    guests.entry(HOST_GUEST.to_owned()).or_insert_with(|| Arc::new(Guest::host(HOST_GUEST)));
    if declared.is_empty() {
        declared.push(HOST_GUEST.to_owned());
    }
    let suites = file.suites.iter().flat_map(|s| &s.get_ref().0);
    let suites = suites.filter_map(|s| suite(s.get_ref(), &dir, &declared, walk)).map(Arc::new).collect();
    let groups = file.groups.iter().flat_map(|g| &g.get_ref().0);
    let groups = groups
        .map(|(name, (_, g))| (name.0.clone(), g.max_parallel.as_ref().map_or(1, |m| m.get_ref().unsigned())))
        .collect();
    Config {
        path: path.to_owned(),
        shown_dir: shown.parent().unwrap_or_else(|| Path::new("")).to_owned(),
        workspace: file.workspace.as_ref().map_or_else(|| dir.clone(), |w| dir.join(&w.get_ref().0)),
        guests,
        suites,
        groups,
        profiles: profiles(file, &dir),
        dir,
    }
}

fn below(dir: &Path, path: &Option<Spanned<FilePath>>) -> Option<PathBuf> {
    path.as_ref().map(|p| dir.join(&p.get_ref().0))
}

/// A path of the host, of which a `~` at the beginning is for later.
fn of_host(dir: &Path, path: &Path) -> PathBuf {
    if path.starts_with("~") { path.to_owned() } else { dir.join(path) }
}

fn guest(name: &str, table: &GuestTable, dir: &Path) -> Guest {
    let host = Guest::host(name);
    Guest {
        source: source(table, dir),
        login: table.login.as_ref().map(|l| login(l.get_ref())),
        machine: plain(&table.machine),
        cpu: plain(&table.cpu),
        accel: table.accel.as_ref().map(|a| *a.get_ref()),
        append: plain(&table.append).unwrap_or_default(),
        hide: table.hide.iter().flat_map(|l| &l.get_ref().0).map(|p| of_host(dir, &p.get_ref().0)).collect(),
        disks: layers::disks(&table.disks, dir).unwrap_or_default(),
        oops: table.oops.as_ref().map_or(Oops::Crash, |o| *o.get_ref()),
        boot_timeout: plain(&table.boot_timeout),
        qemu_args: plain(&table.qemu_args).unwrap_or_default(),
        mount_at: plain(&table.mount_at).unwrap_or(host.mount_at),
        layer: layers::of_guest(table),
        name: host.name,
    }
}

fn source(table: &GuestTable, dir: &Path) -> Source {
    let access = table.access.as_ref().map_or(Access::Auto, |a| *a.get_ref());
    let modules = below(dir, &table.modules);
    let kernel = below(dir, &table.kernel);
    if let Some(path) = below(dir, &table.image) {
        let bus = table.boot_bus.as_ref().map_or(Bus::Virtio, |b| *b.get_ref());
        return Source::Image { path, format: plain(&table.image_format), bus, access };
    }
    match (kernel, below(dir, &table.initrd)) {
        (Some(kernel), Some(initrd)) => Source::Initramfs { kernel, initrd, modules, access },
        (kernel, _) => Source::RootDir { root: below(dir, &table.rootfs), kernel, modules },
    }
}

fn login(table: &LoginTable) -> Login {
    let password = match (&table.password, &table.password_env) {
        (_, Some(name)) => Password::Env(name.get_ref().0.clone()),
        (Some(password), None) => Password::Given(password.get_ref().clone()),
        (None, None) => Password::None,
    };
    Login { user: plain(&table.user).unwrap_or_else(|| "root".to_owned()), password }
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
