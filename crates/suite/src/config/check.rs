//! What no single key can be wrong about: contradictions, names that lead nowhere, things that stand twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use belljar_guest_spec::scheduled::MAX_ORDERS;
use toml::Spanned;

use super::{
    HOST_GUEST, guards,
    guest::{self, GuestTable},
    kernels::Families,
    typed::{FileTable, FilterText, HeaderTable, OrderTable, OverrideTable, ProfileTable, RetriesValue, SuiteTable},
    words::{Backoff, Format},
};
use crate::{
    diagnostic::{Diagnostic, enumerate, suggest},
    filter::Field,
    toml_tree::{List, Name, Table, TimeLimit, Walk},
};

/// The names that a file gives to things.
struct Names<'a> {
    guests: BTreeMap<&'a str, Option<&'a GuestTable>>,
    suites: BTreeSet<&'a str>,
    groups: BTreeSet<&'a str>,
}

pub(super) fn file(file: &FileTable, families: &Families, walk: &mut Walk) {
    let guests = || file.guests.iter().flat_map(|g| &g.get_ref().0);
    let suites = || file.suites.iter().flat_map(|s| &s.get_ref().0);
    let groups = || file.groups.iter().flat_map(|g| &g.get_ref().0);
    let mut names = Names {
        guests: BTreeMap::from([(HOST_GUEST, None)]),
        suites: suites().filter_map(|s| Some(s.get_ref().name.as_ref()?.get_ref().0.as_str())).collect(),
        groups: groups().map(|(name, _)| name.0.as_str()).collect(),
    };
    names.guests.extend(guests().map(|(name, (_, table))| (name.0.as_str(), Some(table))));
    for (name, (_, table)) in guests() {
        let members = families.get(&name.0).into_iter().flatten();
        names.guests.extend(members.map(|member| (member.name.as_str(), Some(table))));
    }
    for (_, (_, table)) in guests() {
        guest::check(table, walk);
    }
    for (_, (span, table)) in groups() {
        if !table.seen.contains("max-parallel") {
            walk.missing(span.clone(), "a group", "max-parallel", "max-parallel = 1");
        }
    }
    let mut seen = BTreeMap::new();
    for table in suites() {
        if let Some(name) = &table.get_ref().name
            && let Some(first) = seen.insert(name.get_ref().0.as_str(), name.span())
        {
            twice(walk, "suite", name, first);
        }
        suite(table.get_ref(), &names, walk);
    }
    for (_, (_, table)) in file.profile.iter().flat_map(|p| &p.get_ref().0) {
        profile(table, &names, walk);
    }
}

fn twice(walk: &mut Walk, what: &str, name: &Spanned<Name>, first: Range<usize>) {
    let line = walk.place(first).line;
    let diagnostic = Diagnostic::error(format!("there are two {what}s {:?}", name.get_ref().0))
        .at(walk.place(name.span()))
        .label(format!("the first one is in line {line}"));
    walk.push(diagnostic);
}

/// Says that a name leads nowhere.
fn unknown<'a>(
    walk: &mut Walk,
    span: Range<usize>,
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) {
    let mut diagnostic = Diagnostic::error(format!("there is no {what} {name:?}")).at(walk.place(span));
    let table = if what == "suite" { "[[suites]]".to_owned() } else { format!("[{what}s.{name}]") };
    diagnostic = match suggest(name, known.clone()) {
        Some(meant) => diagnostic.label(format!("did you mean {meant:?}?")),
        None if known.clone().next().is_none() => diagnostic.help(format!("describe it in {table}")),
        None => diagnostic
            .help(format!("there are {}; describe others in {table}", enumerate(known.map(|n| format!("{n:?}"))))),
    };
    walk.push(diagnostic);
}

pub(super) fn contradiction(walk: &mut Walk, span: Range<usize>, message: &str, help: &str) {
    let diagnostic = Diagnostic::error(message).at(walk.place(span)).help(help);
    walk.push(diagnostic);
}

pub(super) fn times(timeout: Option<&Spanned<TimeLimit>>, slow: Option<&Spanned<TimeLimit>>, walk: &mut Walk) {
    if let (Some(timeout), Some(slow)) = (timeout, slow)
        && slow.get_ref() >= timeout.get_ref()
    {
        let message = "`slow-timeout` is not shorter than `timeout`, so it never shows";
        contradiction(walk, slow.span(), message, "give it less, or leave it out");
    }
}

fn retries(value: Option<&Spanned<RetriesValue>>, walk: &mut Walk) {
    let Some(RetriesValue::Table(table)) = value.map(Spanned::get_ref) else { return };
    let pauses = table.delay.as_ref().is_some_and(|d| d.get_ref().0 > Duration::ZERO);
    if !table.seen.contains("delay") || (table.delay.is_some() && !pauses) {
        let backoff = table.backoff.as_ref().filter(|b| *b.get_ref() == Backoff::Exponential).map(Spanned::span);
        for (key, span) in [("backoff", backoff), ("max-delay", table.max_delay.as_ref().map(Spanned::span))] {
            if let Some(span) = span {
                contradiction(
                    walk,
                    span,
                    &format!("`{key}` has no effect without a `delay`"),
                    "such as delay = \"1s\"",
                );
            }
        }
    }
    if let (Some(delay), Some(longest)) = (&table.delay, &table.max_delay)
        && longest.get_ref() < delay.get_ref()
    {
        contradiction(
            walk,
            delay.span(),
            "`delay` is longer than `max-delay`",
            "the pause is never longer than max-delay",
        );
    }
}

fn group(value: Option<&Spanned<Name>>, names: &Names<'_>, walk: &mut Walk) {
    if let Some(group) = value
        && !names.groups.contains(group.get_ref().0.as_str())
    {
        unknown(walk, group.span(), "group", &group.get_ref().0, names.groups.iter().copied());
    }
}

fn suite(table: &SuiteTable, names: &Names<'_>, walk: &mut Walk) {
    for (key, example) in [("name", "name = \"storage\""), ("tests", "tests = [\"tests/*.sh\"]")] {
        if !table.seen.contains(key) {
            walk.missing(table.span.clone(), SuiteTable::NOUN, key, example);
        }
    }
    if let Some(tests) = &table.tests
        && tests.get_ref().0.is_empty()
        // Not an array whose patterns were all wrong, which was spoken of already.
        && walk.is_blank_array(tests.span())
    {
        contradiction(
            walk,
            tests.span(),
            "`tests` is empty",
            "such as tests = [\"tests/*.sh\"]; `skip` leaves a suite out",
        );
    }
    setup(table, walk);
    guest_list(table.guests.as_ref(), names, walk);
    group(table.group.as_ref(), names, walk);
    times(table.timeout.as_ref(), table.slow_timeout.as_ref(), walk);
    retries(table.retries.as_ref(), walk);
    results(table.format.as_ref(), table.seen.contains("junit"), walk);
    let guests = table.guests.as_ref().map(|g| &g.get_ref().0);
    let tables: Vec<_> = match guests {
        Some(list) => list.iter().filter_map(|g| *names.guests.get(g.get_ref().0.as_str())?).collect(),
        None => names.guests.values().copied().flatten().collect(),
    };
    let mut serials = BTreeSet::new();
    for guest in tables {
        let disks = guest.disks.iter().flat_map(|d| &d.get_ref().0);
        serials.extend(disks.filter_map(|d| Some(d.get_ref().serial.as_ref()?.get_ref().0.as_str())));
    }
    guards::check(table.guards.as_ref(), walk);
    guest::check_disks(table.disks.as_ref(), &serials, walk);
    orders(table.orders.as_ref(), walk);
}

/// Checks that each order says when, and what.
fn orders(list: Option<&Spanned<List<OrderTable>>>, walk: &mut Walk) {
    let Some(list) = list else { return };
    if list.get_ref().0.len() > MAX_ORDERS {
        let message = format!("a test has {MAX_ORDERS} orders at most");
        contradiction(walk, list.span(), &message, "belljar-ctl in the test gives as many as it likes");
    }
    for order in &list.get_ref().0 {
        let (span, order) = (order.span(), order.get_ref());
        match (order.seen.contains("at"), order.seen.contains("on")) {
            (true, true) => {
                let help = "`at` is a time, `on` a mark of the test; keep one of them";
                contradiction(walk, span.clone(), "an order has both `at` and `on`", help);
            }
            (false, false) => walk.missing(span.clone(), OrderTable::NOUN, "at", "at = \"+5s\", or on = \"mark:NAME\""),
            _ => {}
        }
        if !order.seen.contains("order") {
            walk.missing(span, OrderTable::NOUN, "order", "order = \"disk data0 error write\"");
        }
    }
}

fn setup(table: &SuiteTable, walk: &mut Walk) {
    let once = table.setup_once.as_ref().filter(|once| *once.get_ref());
    if let Some(once) = once
        && !table.seen.contains("setup")
    {
        let help = "name the scripts, such as setup = \"setup.sh\"";
        contradiction(walk, once.span(), "`setup-once` without `setup` keeps nothing", help);
    }
    // A wrong `setup-once` was spoken of already.
    if let Some(inputs) = table.setup_inputs.as_ref().filter(|inputs| !inputs.get_ref().0.is_empty())
        && once.is_none()
        && (table.setup_once.is_some() || !table.seen.contains("setup-once"))
    {
        let help = "add `setup-once = true`; without it setup scripts see the whole workspace";
        contradiction(walk, inputs.span(), "`setup-inputs` without `setup-once` says nothing", help);
    }
}

fn guest_list(list: Option<&Spanned<List<Name>>>, names: &Names<'_>, walk: &mut Walk) {
    let Some(list) = list else { return };
    let mut seen = BTreeMap::new();
    for name in &list.get_ref().0 {
        let text = name.get_ref().0.as_str();
        if !names.guests.contains_key(text) {
            unknown(walk, name.span(), "guest", text, names.guests.keys().copied());
        }
        if seen.insert(text, name.span()).is_some() {
            contradiction(walk, name.span(), &format!("the guest {text:?} stands twice"), "a test runs once on each");
        }
    }
    if list.get_ref().0.is_empty() && walk.is_blank_array(list.span()) {
        contradiction(walk, list.span(), "`guests` is empty", "leave the key out for every guest of the file");
    }
}

fn results(format: Option<&Spanned<Format>>, junit: bool, walk: &mut Walk) {
    if let Some(format) = format
        && *format.get_ref() == Format::Junit
        && !junit
    {
        let message = "format = \"junit\" needs the key `junit`: which files to pick up";
        contradiction(
            walk,
            format.span(),
            message,
            "such as junit = [\"*.xml\"], files in $BELLJAR_OUT or the workspace",
        );
    }
}

fn profile(table: &ProfileTable, names: &Names<'_>, walk: &mut Walk) {
    times(table.timeout.as_ref(), table.slow_timeout.as_ref(), walk);
    retries(table.retries.as_ref(), walk);
    filter(table.filter.as_ref(), names, walk);
    for table in table.overrides.iter().flat_map(|o| &o.get_ref().0) {
        let table = table.get_ref();
        if !table.seen.contains("filter") {
            walk.missing(table.span.clone(), OverrideTable::NOUN, "filter", "filter = \"guest(debian) and tag(slow)\"");
        }
        if table.seen.iter().all(|key| *key == "filter") {
            let keys = enumerate(OverrideTable::keys().iter().skip(1).map(|k| k.name));
            contradiction(
                walk,
                table.span.clone(),
                "an override that changes nothing",
                &format!("it can change {keys}"),
            );
        }
        filter(table.filter.as_ref(), names, walk);
        group(table.group.as_ref(), names, walk);
        times(table.timeout.as_ref(), table.slow_timeout.as_ref(), walk);
        retries(table.retries.as_ref(), walk);
        guards::check(table.guards.as_ref(), walk);
    }
}

fn filter(value: Option<&Spanned<FilterText>>, names: &Names<'_>, walk: &mut Walk) {
    let Some(value) = value else { return };
    for (field, name) in value.get_ref().0.names() {
        match field {
            Field::Guest if !names.guests.contains_key(name) => {
                unknown(walk, value.span(), "guest", name, names.guests.keys().copied());
            }
            Field::Suite if !names.suites.contains(name) => {
                unknown(walk, value.span(), "suite", name, names.suites.iter().copied());
            }
            _ => {}
        }
    }
}

/// Checks what a header says.
pub(crate) fn header(table: &HeaderTable, walk: &mut Walk) {
    times(table.timeout.as_ref(), table.slow_timeout.as_ref(), walk);
    retries(table.retries.as_ref(), walk);
    guest::check_disks(table.disks.as_ref(), &BTreeSet::new(), walk);
    guards::check(table.guards.as_ref(), walk);
    orders(table.orders.as_ref(), walk);
    if let Some(list) = &table.guests
        && list.get_ref().0.is_empty()
        && walk.is_blank_array(list.span())
    {
        contradiction(walk, list.span(), "`guests` is empty", "`skip = \"reason\"` leaves a test out");
    }
}
