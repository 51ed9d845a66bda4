//! `belljar.toml` and headers as typed by the user: every key with its meaning, its kind and its default.
//!
//! This is the one list of keys, with that of a guest's in [`super::guest`]. The reader, the errors, the JSON Schema and the test of `docs/belljar.toml` follow from it.

use belljar_guest_spec::{MAX_PATHS, Need, NicMode, WorkspaceMode};

use crate::{
    config::{
        guards::GuardsTable,
        guest::{DiskTable, GuestTable},
        words::{Backoff, Format, Isolation},
    },
    filter::Filter,
    toml_tree::{
        Delay, FilePath, GuestPath, Int, List, Map, Memory, Name, OneOrMany, OrderSign, OrderText, OrderTime, Size,
        Table, Text, TimeLimit, User, Value, VarName, Walk, read_text, table,
    },
};
use serde_json::{Value as Json, json};
use toml::{Spanned, de::DeValue};

/// A number of processors.
pub type Cpus = Int<1, 255>;
/// Of paths to a disk.
pub type Paths = Int<1, { MAX_PATHS as i64 }>;
/// A number of tries after the first.
pub type Tries = Int<0, 100>;
/// Higher runs earlier.
pub type Priority = Int<-1000, 1000>;
/// A number of things at the same time.
pub type Many = Int<1, 100_000>;

table! {
    /// Something that happens to a test's machine while it runs.
    OrderTable is "an order" {
        /// So long after the test has started.
        "at" at: OrderTime = "(none)",
        /// When the test sets this mark: mark:NAME.
        "on" on: OrderSign = "(none)",
        /// What happens, in the words of belljar-ctl.
        "order" order: OrderText = "(none)",
    }
}

table! {
    /// What is to be tested, and in which guests.
    FileTable is "belljar.toml" {
        /// The host directory that guests see; the test files are in it.
        "workspace" workspace: FilePath = "\".\"",
        /// The guests by name.
        "guests" guests: Map<Name, GuestTable> = "(only `host`: this host's own userland)",
        /// The suites of tests.
        "suites" suites: List<SuiteTable> = "(none)",
        /// Limits to what runs at the same time, by name.
        "groups" groups: Map<Name, GroupTable> = "(none)",
        /// How runs are done, by name; `default` holds for all of them.
        "profile" profile: Map<Name, ProfileTable> = "(only `default`)",
    }
}

table! {
    /// A suite: test files that are run alike.
    SuiteTable is "a suite" {
        /// The suite's name.
        "name" name: Name = "(must be given)",
        /// Test files, as patterns relative to belljar.toml: `*`, `?`, `[…]`, `{a,b}`, and `**` for directories of any depth.
        "tests" tests: OneOrMany<Pattern> = "(must be given)",
        /// What of these is no test, as patterns.
        "exclude" exclude: OneOrMany<Pattern> = "[]",
        /// The guests to run on, each test on each.
        "guests" guests: List<Name> = "(every guest of this file)",
        /// "test": a fresh guest for each test; "suite": one guest for all, in order.
        "isolation" isolation: Isolation = "\"test\"",
        /// How results are read: the exit code (0 passes, 77 skips), or finer ones out of the output.
        "format" format: Format = "\"exit\"",
        /// JUnit files to pick up after each test, as patterns in the output directory, then in the workspace.
        "junit" junit: OneOrMany<Pattern> = "[]",
        /// Arguments for each test.
        "args" args: List<AnyText> = "[]",
        /// Give up on a test after this time.
        "timeout" timeout: TimeLimit = "\"10m\"",
        /// Call a test slow after this time.
        "slow-timeout" slow_timeout: TimeLimit = "\"1m\"",
        /// Tries after a failure.
        "retries" retries: RetriesValue = "0",
        /// Labels, for filters.
        "tags" tags: List<Name> = "[]",
        /// Nothing else runs at the same time.
        "exclusive" exclusive: bool = "false",
        /// The group whose limit holds.
        "group" group: Name = "(none)",
        /// Higher runs earlier.
        "priority" priority: Priority = "0",
        /// Run nothing of it, for this reason.
        "skip" skip: Text = "(none)",
        /// Scripts that run once on a guest before its tests, in this order.
        "setup" setup: OneOrMany<FilePath> = "[]",
        /// Keep the guest as these scripts leave it and start every test from there, in later runs too.
        "setup-once" setup_once: bool = "false",
        /// What the scripts read then beside themselves, as patterns; they see nothing else, and run again when it changes.
        "setup-inputs" setup_inputs: OneOrMany<Pattern> = "[]",
        /// Give up on a setup script after this time.
        "setup-timeout" setup_timeout: TimeLimit = "\"10m\"",
        /// Commands that must be in the guest, else the test is skipped.
        "requires" requires: List<Text> = "[]",
        /// What the guest must be, or the test is skipped: "machine" is one with a kernel of its own, no container, "systemd" one whose first process that is.
        "needs" needs: OneOrMany<Need> = "[]",
        /// The guest's memory instead of its own setting.
        "memory" memory: Memory = "(the guest's)",
        /// The guest's processors instead of its own setting.
        "cpus" cpus: Cpus = "(the guest's)",
        /// Processors that a test can plug in.
        "spare-cpus" spare_cpus: Cpus = "(the guest's)",
        /// Memory that a test can plug in, by modules of a multiple of 128 MiB.
        "spare-memory" spare_memory: Size = "(the guest's)",
        /// The guest's network instead of its own setting.
        "nic" nic: NicMode = "(the guest's)",
        /// The disk that the guest boots from is a lab disk, so that a test can make it fail.
        "boot-lab" boot_lab: bool = "(the guest's)",
        /// Disks on top of the guest's.
        "disks" disks: List<DiskTable> = "[]",
        /// What happens to the machine of each test while it runs, in the words of belljar-ctl (see the manual, "Breaking things").
        "orders" orders: List<OrderTable> = "[]",
        /// What becomes of the guest's writes to the workspace.
        "workspace-mode" workspace_mode: WorkspaceMode = "\"cow\"",
        /// Variables for tests, on top of those of lower places.
        "env" env: Map<VarName, EnvText> = "{}",
        /// Directory in the guest that tests run in.
        "cwd" cwd: GuestPath = "(the workspace)",
        /// User in the guest that tests run as.
        "user" user: User = "(the user that Belljar got in as)",
        /// What a test is told of while it runs, and whether it fails for that; on top of what the guest says.
        "guards" guards: GuardsTable = "(the guest's)",
        /// Most that a test may leave in its output directory.
        "max-output" max_output: Size = "(the guest's)",
        /// Most that a test may write to the guest's disks.
        "max-disk" max_disk: Size = "(the guest's)",
    }
}

table! {
    /// The header of a test file: what holds for this test alone.
    HeaderTable is "a header" {
        /// The guests to run on instead of the suite's.
        "guests" guests: List<Name> = "(the suite's)",
        /// A fresh guest, or the one of the suite.
        "isolation" isolation: Isolation = "(the suite's)",
        /// How results are read.
        "format" format: Format = "(the suite's)",
        /// JUnit files to pick up after the test.
        "junit" junit: OneOrMany<Pattern> = "(the suite's)",
        /// Arguments for the test.
        "args" args: List<AnyText> = "(the suite's)",
        /// Give up on the test after this time.
        "timeout" timeout: TimeLimit = "(the suite's)",
        /// Call the test slow after this time.
        "slow-timeout" slow_timeout: TimeLimit = "(the suite's)",
        /// Tries after a failure.
        "retries" retries: RetriesValue = "(the suite's)",
        /// Labels on top of the suite's.
        "tags" tags: List<Name> = "[]",
        /// Nothing else runs at the same time.
        "exclusive" exclusive: bool = "(the suite's)",
        /// The group whose limit holds.
        "group" group: Name = "(the suite's)",
        /// Higher runs earlier.
        "priority" priority: Priority = "(the suite's)",
        /// Do not run it, for this reason.
        "skip" skip: Text = "(the suite's)",
        /// Commands that must be in the guest on top of the suite's, else the test is skipped.
        "requires" requires: List<Text> = "[]",
        /// What the guest must be, or the test is skipped: "machine" is one with a kernel of its own, no container, "systemd" one whose first process that is.
        "needs" needs: OneOrMany<Need> = "[]",
        /// The guest's memory.
        "memory" memory: Memory = "(the suite's)",
        /// The guest's processors.
        "cpus" cpus: Cpus = "(the suite's)",
        /// Processors that the test can plug in.
        "spare-cpus" spare_cpus: Cpus = "(the suite's)",
        /// Memory that the test can plug in, by modules of a multiple of 128 MiB.
        "spare-memory" spare_memory: Size = "(the suite's)",
        /// The guest's network.
        "nic" nic: NicMode = "(the suite's)",
        /// The disk that the guest boots from is a lab disk, so that the test can make it fail.
        "boot-lab" boot_lab: bool = "(the suite's)",
        /// Disks instead of the suite's.
        "disks" disks: List<DiskTable> = "(the suite's)",
        /// What happens to the machine while the test runs, in the words of belljar-ctl.
        "orders" orders: List<OrderTable> = "(the suite's)",
        /// What becomes of the guest's writes to the workspace.
        "workspace-mode" workspace_mode: WorkspaceMode = "(the suite's)",
        /// Variables on top of the suite's.
        "env" env: Map<VarName, EnvText> = "{}",
        /// Directory in the guest that the test runs in.
        "cwd" cwd: GuestPath = "(the suite's)",
        /// User in the guest that the test runs as.
        "user" user: User = "(the suite's)",
        /// What the test is told of while it runs, and whether it fails for that; on top of what the suite says.
        "guards" guards: GuardsTable = "(the suite's)",
        /// Most that the test may leave in its output directory.
        "max-output" max_output: Size = "(the suite's)",
        /// Most that the test may write to the guest's disks.
        "max-disk" max_disk: Size = "(the suite's)",
    }
}

table! {
    /// A group.
    GroupTable is "a group" {
        /// Tests of the group that may run at the same time.
        "max-parallel" max_parallel: Many = "(must be given)",
    }
}

table! {
    /// A profile: how a run is done. What a profile leaves out is as in `default`.
    ProfileTable is "a profile" {
        /// Tests to run where the command line names none.
        "filter" filter: FilterText = "\"all()\"",
        /// Tests to run at the same time.
        "jobs" jobs: Many = "(as many as memory and processors allow)",
        /// Memory that all guests together may have.
        "max-memory" max_memory: Memory = "(what the host has free)",
        /// Processors that all guests together may have.
        "max-cpus" max_cpus: Many = "(what the host has)",
        /// Start no more tests after a failure.
        "fail-fast" fail_fast: bool = "false",
        /// End the run after this time.
        "global-timeout" global_timeout: TimeLimit = "(none)",
        /// Give up on a test after this time, where the suite does not say it.
        "timeout" timeout: TimeLimit = "\"10m\"",
        /// Call a test slow after this time, where the suite does not say it.
        "slow-timeout" slow_timeout: TimeLimit = "\"1m\"",
        /// Tries after a failure, where the suite does not say it.
        "retries" retries: RetriesValue = "0",
        /// Tries after an error of Belljar or the host, which are no failures of the test.
        "error-retries" error_retries: Tries = "2",
        /// Write a JUnit report here, relative to belljar.toml.
        "junit" junit: FilePath = "(none)",
        /// Write a TAP report here.
        "tap" tap: FilePath = "(none)",
        /// Write an HTML report here.
        "html" html: FilePath = "(none)",
        /// Exceptions for some tests; of several that match, the first that has a key holds.
        "overrides" overrides: List<OverrideTable> = "[]",
    }
}

table! {
    /// An exception for the tests that match a filter. It is stronger than headers and suites.
    OverrideTable is "an override" {
        /// The tests.
        "filter" filter: FilterText = "(must be given)",
        /// Give up on a test after this time.
        "timeout" timeout: TimeLimit = "(unchanged)",
        /// Call a test slow after this time.
        "slow-timeout" slow_timeout: TimeLimit = "(unchanged)",
        /// Tries after a failure.
        "retries" retries: RetriesValue = "(unchanged)",
        /// Nothing else runs at the same time.
        "exclusive" exclusive: bool = "(unchanged)",
        /// The group whose limit holds.
        "group" group: Name = "(unchanged)",
        /// Higher runs earlier.
        "priority" priority: Priority = "(unchanged)",
        /// What the tests are told of while they run, and whether they fail for that; on top of what is said elsewhere.
        "guards" guards: GuardsTable = "(unchanged)",
        /// Do not run them, for this reason.
        "skip" skip: Text = "(unchanged)",
        /// Variables on top of the test's.
        "env" env: Map<VarName, EnvText> = "{}",
    }
}

table! {
    /// Retries with a pause before each.
    RetriesTable is "a table of retries" {
        /// Tries after the first.
        "count" count: Tries = "(must be given)",
        /// The pause before a retry.
        "delay" delay: Delay = "\"0s\"",
        /// How the pause grows: it does not, or it doubles.
        "backoff" backoff: Backoff = "\"fixed\"",
        /// The longest pause.
        "max-delay" max_delay: Delay = "\"1m\"",
    }
}

/// A number of retries, or a table.
#[derive(Clone, Debug)]
pub enum RetriesValue {
    /// So many, at once.
    Count(Tries),
    /// With pauses.
    Table(Box<RetriesTable>),
}

impl Value for RetriesValue {
    fn expected() -> String {
        "a number of retries, or a table such as { count = 2, delay = \"1s\", backoff = \"exponential\" }".into()
    }

    fn schema() -> Json {
        let mut table = RetriesTable::schema();
        table["required"] = json!(["count"]);
        json!({ "anyOf": [Tries::schema(), table] })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        match value.get_ref() {
            DeValue::Integer(_) => Tries::read(value, walk).map(Self::Count),
            DeValue::Table(_) => {
                let table = RetriesTable::read(value, walk)?;
                if !table.seen.contains("count") {
                    walk.missing(value.span(), RetriesTable::NOUN, "count", "count = 2");
                }
                Some(Self::Table(Box::new(table)))
            }
            _ => {
                walk.wrong_type(value, &Self::expected());
                None
            }
        }
    }
}

/// Makes a kind of text.
macro_rules! text_kind {
    ($(#[$meta:meta])* $name:ident, $expected:literal, $schema:tt, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub String);

        impl Value for $name {
            fn expected() -> String {
                $expected.into()
            }

            fn schema() -> Json {
                json!($schema)
            }

            fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
                let check: fn(&str) -> Result<(), String> = $check;
                read_text(value, walk, $expected, |t| check(t).map(|()| Self(t.to_owned())))
            }
        }
    };
}

text_kind!(
    /// A pattern of file names.
    Pattern, "a pattern such as \"tests/*.sh\"", { "type": "string", "minLength": 1 },
    |text| crate::glob::check(text)
);
text_kind!(
    /// The value of a variable.
    EnvText, "a string", { "type": "string" },
    |text| if text.contains('\0') { Err("no usable value: it has a NUL character in it".into()) } else { Ok(()) }
);
text_kind!(
    /// An argument of a command.
    AnyText, "a string", { "type": "string" },
    |text| if text.contains('\0') { Err("no usable argument: it has a NUL character in it".into()) } else { Ok(()) }
);

text_kind!(
    /// The name of a serial port.
    PortName, "the name of a serial port, such as \"modem\"", { "type": "string", "pattern": "^[A-Za-z0-9_-]{1,32}$" },
    belljar_guest_spec::port_name
);
text_kind!(
    /// Numbers of processors.
    CpuList, "a list of processors, such as \"0-1,4\"", { "type": "string", "pattern": "^[ 0-9,-]+$" },
    |text| belljar_guest_spec::NumaNode::cpus(text).map(drop)
);

/// A filter in a file.
#[derive(Clone, Debug)]
pub struct FilterText(pub Filter);

impl Value for FilterText {
    fn expected() -> String {
        "a filter such as \"guest(debian) and tag(slow)\"".into()
    }

    fn schema() -> Json {
        json!({ "type": "string", "minLength": 1, "examples": ["guest(debian) and not tag(slow)"] })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::String(text) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        match text.parse::<Filter>() {
            Ok(filter) => Some(Self(filter)),
            Err(error) => {
                let span = value.span();
                // Without escapes and with single quotes the place within the string is known.
                let exact = span.len() == text.len() + 2;
                let place = if exact {
                    walk.place(span.start + 1 + error.span.start..span.start + 1 + error.span.end)
                } else {
                    walk.place(span)
                };
                let diagnostic = crate::diagnostic::Diagnostic::error(error.message).at(place);
                walk.push(match error.help {
                    Some(help) => diagnostic.help(help),
                    None => diagnostic,
                });
                None
            }
        }
    }
}
