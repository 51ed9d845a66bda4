//! What the user can type after `test`, `list`, `report` and `merge`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use belljar_guest_spec::{Accel, Guard, GuardAction, NicMode, WorkspaceMode, guard_option};
use clap::{Args, ValueEnum, ValueHint};

use crate::{
    args::{HostArgs, word},
    env,
};

pub(crate) const TEST_HELP: &str = "\
A FILTER is a part of a test's name or path, or an expression: suite(storage), guest(debian), tag(slow), name(ext4), \
id(=storage/ext4.sh@debian), name(/^raid/), with and, or, not and parentheses. Of several filters one must match.

Examples:
  belljar test
  belljar test ext4
  belljar test 'suite(storage) and not tag(slow)'
  belljar test --rerun-failed
  belljar test --profile ci --partition hash:1/4 --junit junit.xml

Exit codes: 0 if all passed, 100 if tests failed, 125 if some could not be judged, 4 if no test matched, 96 for a bad \
belljar.toml, 2 for a wrong command line, 128+N if signal N ended the run.";

pub(crate) const LIST_HELP: &str = "\
Filters are those of `belljar test`. Tests in libtest binaries are known only in the guest, so a binary is listed as one.";

pub(crate) const REPORT_HELP: &str = "\
RUN is a run's directory, its name among the runs that are kept, or `last`.";

/// Which tests, and how.
#[derive(Debug, Args)]
pub(crate) struct SuiteArgs {
    /// Tests to take [default: those of the profile, or else all]
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,

    /// The configuration [default: belljar.toml here, or in the nearest directory above]
    #[arg(short = 'c', long, value_name = "FILE", env = env::CONFIG, hide_env = true, value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// The profile of the configuration
    #[arg(short = 'P', long, value_name = "NAME", default_value = "default", env = env::PROFILE, hide_env = true)]
    pub(crate) profile: String,

    /// Take one part of the tests: slice:K/N or hash:K/N
    #[arg(long, value_name = "PART")]
    pub(crate) partition: Option<String>,

    /// Take only what did not pass when it last ran
    #[arg(long)]
    pub(crate) rerun_failed: bool,

    /// Give up on a test after this time, whatever the configuration says
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Settings of all tests")]
    pub(crate) timeout: Option<Duration>,

    /// Call a test slow after this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Settings of all tests")]
    pub(crate) slow_timeout: Option<Duration>,

    /// Tries after a failure
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100),
          help_heading = "Settings of all tests")]
    pub(crate) retries: Option<u32>,

    /// The guests' memory, such as 512M or 2GiB
    #[arg(short = 'm', long, value_name = "SIZE", help_heading = "Settings of all tests")]
    pub(crate) memory: Option<String>,

    /// Most that a test may leave in its output directory, such as 100M
    #[arg(long, value_name = "SIZE", help_heading = "Settings of all tests")]
    pub(crate) max_output: Option<String>,

    /// Most that a test may write to its guest's disks
    #[arg(long, value_name = "SIZE", help_heading = "Settings of all tests")]
    pub(crate) max_disk: Option<String>,

    /// The guests' processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255),
          help_heading = "Settings of all tests")]
    pub(crate) cpus: Option<u32>,

    /// The guests' network
    #[arg(long, value_name = "NIC", value_parser = word::<NicMode>(), help_heading = "Settings of all tests")]
    pub(crate) nic: Option<NicMode>,

    /// What becomes of what guests write into the workspace
    #[arg(long, value_name = "WORKSPACE_MODE", value_parser = word::<WorkspaceMode>(), help_heading = "Settings of all tests")]
    pub(crate) workspace_mode: Option<WorkspaceMode>,

    /// Set a variable for all tests, or pass on this process's own with just NAME
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", help_heading = "Settings of all tests")]
    pub(crate) env: Vec<OsString>,

    /// User in the guest to run as
    #[arg(short = 'u', long, value_name = "USER", help_heading = "Settings of all tests")]
    pub(crate) user: Option<String>,

    /// What a guard (coredump, warning, taint, unit, oom, io-error) does that sees something: fail, warn or ignore
    #[arg(long = "guard", value_name = "GUARD=ACTION", value_parser = guard_option, help_heading = "Settings of all tests")]
    pub(crate) guards: Vec<(Guard, GuardAction)>,
}

/// `belljar test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    pub(crate) suite: SuiteArgs,

    /// Tests at the same time [default: the profile's, or else as many as memory and processors allow]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000),
          help_heading = "Run")]
    pub(crate) jobs: Option<u32>,

    /// Memory that all guests together may have [default: the profile's, or else what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Run")]
    pub(crate) max_memory: Option<String>,

    /// Processors that all guests together may have [default: the profile's, or else the host's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Run")]
    pub(crate) max_cpus: Option<u32>,

    /// Start no more tests after a failure
    #[arg(long, overrides_with = "no_fail_fast", help_heading = "Run")]
    pub(crate) fail_fast: bool,

    /// Run all tests whatever fails
    #[arg(long, overrides_with = "fail_fast", help_heading = "Run")]
    pub(crate) no_fail_fast: bool,

    /// End the run after this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Run")]
    pub(crate) global_timeout: Option<Duration>,

    /// Tries after an error of Belljar or the host
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100), help_heading = "Run")]
    pub(crate) error_retries: Option<u32>,

    /// Run each test so often
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000),
          conflicts_with = "until_fail", help_heading = "Run")]
    pub(crate) repeat: Option<u32>,

    /// Run each test again and again until it fails
    #[arg(long, help_heading = "Run")]
    pub(crate) until_fail: bool,

    /// KVM or emulation, for all guests [default: the guest's, or KVM if a probe shows that it runs a guest]
    #[arg(long, value_name = "ACCEL", value_parser = word::<Accel>(), env = env::ACCEL, hide_env = true, help_heading = "Run")]
    pub(crate) accel: Option<Accel>,

    /// Write a JUnit report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Reports")]
    pub(crate) junit: Option<PathBuf>,

    /// Write a TAP report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Reports")]
    pub(crate) tap: Option<PathBuf>,

    /// Write an HTML report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Reports")]
    pub(crate) html: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// `belljar list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) suite: SuiteArgs,

    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Also list what the filter leaves out
    #[arg(short, long)]
    pub(crate) verbose: bool,

    /// Container engine that would be used [default: podman, or docker where that works]
    #[arg(long, value_name = "FILE", env = env::ENGINE, hide_env = true, value_hint = ValueHint::CommandName)]
    pub(crate) engine: Option<PathBuf>,

    /// QEMU that would be used [default: the first qemu-system-x86_64 found]
    #[arg(long, value_name = "FILE", env = env::QEMU, hide_env = true, value_hint = ValueHint::FilePath)]
    pub(crate) qemu: Option<PathBuf>,
}

/// `belljar report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run
    #[arg(value_name = "RUN", default_value = "last", value_hint = ValueHint::DirPath)]
    pub(crate) run: PathBuf,

    /// What to write
    #[arg(short, long, value_enum, default_value_t = ReportFormat::Text)]
    pub(crate) format: ReportFormat,

    /// Write into this file instead of to standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
}

/// What a report can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// As `belljar test` tells it
    Text,
    /// JUnit XML
    Junit,
    /// TAP 14
    Tap,
    /// One page
    Html,
    /// The events, one JSON object a line
    Json,
}

/// `belljar merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The runs of the parts: directories, or names among the runs that are kept
    #[arg(required = true, num_args = 1.., value_name = "RUN", value_hint = ValueHint::DirPath)]
    pub(crate) runs: Vec<PathBuf>,

    /// Directory for the run that they make together [default: among the runs that are kept]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) output: Option<PathBuf>,

    /// Say nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
