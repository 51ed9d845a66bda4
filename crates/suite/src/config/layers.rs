//! From tables as typed to layers of settings.

use std::{collections::BTreeMap, path::Path};

use belljar_guest_spec::{Need, NicMode, WorkspaceMode, scheduled::ScheduledOrder};
use toml::Spanned;

use super::{
    Retries,
    guards::guards,
    guest::disks,
    typed::{
        AnyText, EnvText, HeaderTable, OrderTable, OverrideTable, Pattern, ProfileTable, RetriesValue, SuiteTable,
    },
    words::{Backoff, Format, Isolation},
};
use crate::{
    settings::Layer,
    toml_tree::{GuestPath, Int, List, Map, Memory, MountAt, Name, OneOrMany, Size, Text, TimeLimit, User, VarName},
};

/// A typed value as it is meant.
pub(super) trait Plain {
    type Out;
    fn plain(&self) -> Self::Out;
}

/// What is behind an optional key.
pub(super) fn plain<T: Plain>(value: &Option<Spanned<T>>) -> Option<T::Out> {
    value.as_ref().map(|v| v.get_ref().plain())
}

macro_rules! plain_copies {
    ($($ty:ty),*) => { $( impl Plain for $ty {
        type Out = $ty;
        fn plain(&self) -> $ty { *self }
    } )* };
}
plain_copies!(bool, Format, Isolation, WorkspaceMode, Need, NicMode);

macro_rules! plain_wrappers {
    ($($ty:ty => $out:ty),*) => { $( impl Plain for $ty {
        type Out = $out;
        fn plain(&self) -> $out { self.0.clone() }
    } )* };
}
plain_wrappers!(
    TimeLimit => std::time::Duration, Memory => u64, Size => u64, GuestPath => String, MountAt => String, User => String, Name => String, Text => String,
    AnyText => String, Pattern => String, EnvText => String, VarName => String
);

impl<const MIN: i64, const MAX: i64> Plain for Int<MIN, MAX> {
    type Out = i64;
    fn plain(&self) -> i64 {
        self.0
    }
}

impl<T: Plain> Plain for List<T> {
    type Out = Vec<T::Out>;
    fn plain(&self) -> Vec<T::Out> {
        self.0.iter().map(|v| v.get_ref().plain()).collect()
    }
}

impl<T: Plain> Plain for OneOrMany<T> {
    type Out = Vec<T::Out>;
    fn plain(&self) -> Vec<T::Out> {
        self.0.iter().map(|v| v.get_ref().plain()).collect()
    }
}

impl Plain for Map<VarName, EnvText> {
    type Out = BTreeMap<String, String>;
    fn plain(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(k, (_, v))| (k.0.clone(), v.0.clone())).collect()
    }
}

impl Plain for RetriesValue {
    type Out = Retries;
    fn plain(&self) -> Retries {
        match self {
            Self::Count(count) => Retries::at_once(count.unsigned()),
            Self::Table(table) => {
                let none = Retries::default();
                Retries {
                    count: table.count.as_ref().map_or(0, |c| c.get_ref().unsigned()),
                    delay: table.delay.as_ref().map_or(none.delay, |d| d.get_ref().0),
                    backoff: table.backoff.as_ref().map_or(Backoff::Fixed, |b| *b.get_ref()),
                    max_delay: table.max_delay.as_ref().map_or(none.max_delay, |d| d.get_ref().0),
                }
            }
        }
    }
}

/// Numbers have checked ranges.
pub(super) fn unsigned(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

macro_rules! layer {
    ($table:ident: $($key:ident),*) => {
        Layer { $( $key: plain(&$table.$key), )* env: plain(&$table.env).unwrap_or_default(), ..Layer::default() }
    };
}

macro_rules! of_suite_or_header {
    ($table:ident, $dir:expr) => {
        Layer {
            cpus: plain(&$table.cpus).map(unsigned),
            spare_cpus: plain(&$table.spare_cpus).map(unsigned),
            priority: plain(&$table.priority).and_then(|p| i32::try_from(p).ok()),
            disks: disks(&$table.disks, $dir),
            guards: guards(&$table.guards),
            orders: $table.orders.as_ref().map(|list| orders(list.get_ref())),
            tags: plain(&$table.tags).unwrap_or_default().into_iter().collect(),
            needs: plain(&$table.needs).unwrap_or_default().into_iter().collect(),
            requires: plain(&$table.requires).unwrap_or_default().into_iter().collect(),
            ..layer!($table: timeout, slow_timeout, retries, format, isolation, workspace_mode, exclusive, group, skip, memory, spare_memory, nic, boot_lab,
                     cwd, user, args, junit, max_output, max_disk)
        }
    };
}

/// Orders; those that are wrong are left out.
fn orders(list: &List<OrderTable>) -> Vec<ScheduledOrder> {
    let order = |table: &Spanned<OrderTable>| {
        let table = table.get_ref();
        let at = table.at.as_ref().map(|at| at.get_ref().0.clone());
        let when = at.or_else(|| table.on.as_ref().map(|on| on.get_ref().0.clone()))?;
        Some(ScheduledOrder { when, order: table.order.as_ref()?.get_ref().0.clone() })
    };
    list.0.iter().filter_map(order).collect()
}

/// What a suite says.
pub(super) fn of_suite(table: &SuiteTable, dir: &Path) -> Layer {
    of_suite_or_header!(table, dir)
}

/// What a header says, with the files of disks relative to `belljar.toml`.
pub(crate) fn of_header(table: &HeaderTable, dir: &Path) -> Layer {
    of_suite_or_header!(table, dir)
}

/// What a profile says of all tests.
pub(super) fn of_profile(table: &ProfileTable) -> Layer {
    Layer {
        timeout: plain(&table.timeout),
        slow_timeout: plain(&table.slow_timeout),
        retries: plain(&table.retries),
        ..Layer::default()
    }
}

/// What an override says.
pub(super) fn of_override(table: &OverrideTable) -> Layer {
    Layer {
        priority: plain(&table.priority).and_then(|p| i32::try_from(p).ok()),
        guards: guards(&table.guards),
        ..layer!(table: timeout, slow_timeout, retries, exclusive, group, skip)
    }
}

pub(super) use layer;
