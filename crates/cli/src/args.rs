//! What the user can type. Nothing is resolved here; see [`crate::settings`].

use std::{ffi::OsString, path::PathBuf, time::Duration};

use belljar_guest_spec::{Guard, GuardAction, Word, WorkspaceMode, guard_option};
use clap::{
    Args, Parser, Subcommand, ValueHint,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::{env, guest::GuestArgs, suite::args as suite};

/// Functional tests of operating-system features, each in its own throw-away machine.
#[derive(Debug, Parser)]
#[command(name = "belljar", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one command in one fresh guest and exit with its exit code
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Run the suites of belljar.toml, each test in a fresh guest
    #[command(after_help = suite::TEST_HELP)]
    Test(Box<suite::TestArgs>),
    /// List which tests would run, where, and why not
    #[command(after_help = suite::LIST_HELP)]
    List(Box<suite::ListArgs>),
    /// Write a report of a run that is over, from its event log
    #[command(after_help = suite::REPORT_HELP)]
    Report(suite::ReportArgs),
    /// Make one run of the parts that were run with --partition
    Merge(suite::MergeArgs),
    /// Open a terminal in a fresh guest
    Shell(Box<ShellArgs>),
    /// Have something happen to the machine of a test that runs: a disk fails, the power is cut
    #[command(after_help = CTL_HELP)]
    Ctl(CtlArgs),
    /// Look after the guests that booted once and are copied from then on
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Say what this host, or an image, can do, and how to mend what is missing
    Doctor(DoctorArgs),
    /// Write a completion script for a shell to standard output
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    Man {
        /// Write one page for each command into this directory instead of the main page to standard output
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
}

impl Command {
    /// The options that describe a guest, where it takes such.
    pub(crate) fn guest(&self) -> Option<&GuestArgs> {
        match self {
            Self::Run(args) => Some(&args.guest),
            Self::Shell(args) => Some(&args.guest),
            Self::Template(TemplateCommand::Make(args)) => Some(&args.guest),
            _ => None,
        }
    }
}

const RUN_HELP: &str = "\
With none of --guest, --image, --kernel and --rootfs the guest is this host's own userland: its root directory, read-only, \
under a writable layer in the guest's memory.

Examples:
  belljar run -- uname -a
  belljar run -- sh -c 'make check'
  belljar run --image debian.qcow2 --login root:secret -- ./tests/all.sh
  belljar run --disk size=1G,serial=data0 -- mkfs.ext4 /dev/disk/by-id/virtio-data0

Exit codes: the command's own, 128+N if signal N killed it, 124 on a timeout, 121 if the guest died under it, \
125 if Belljar could not run it, 2 for a wrong command line.";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,

    /// Give up on the command after this time, such as 90s or 5m [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Limits")]
    pub(crate) timeout: Option<Duration>,

    /// Have this happen to its machine while the command runs, in the words of belljar-ctl: '+5s disk data0 hang', 'mark:ready power-cut'
    #[arg(long = "order", value_name = "WHEN ORDER", help_heading = "Command")]
    pub(crate) orders: Vec<String>,

    /// End the guest through its own service manager instead of at once, for what happens only then
    #[arg(long, help_heading = "Limits")]
    pub(crate) power_off: bool,

    /// Give the command an empty standard input instead of this one
    #[arg(short = 'n', long, help_heading = "Command")]
    pub(crate) no_stdin: bool,

    /// Give the command a terminal of its own and pass its bytes on unchanged; one with nobody at it where there is none here
    #[arg(short = 't', long, conflicts_with = "no_stdin", help_heading = "Command")]
    pub(crate) tty: bool,

    /// Command and arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

const CTL_HELP: &str = "\
RUN is the name of a run that goes on, its directory, or `last`. UNIT is the test, as `belljar list` names it; where one alone runs, it may be left out.

Examples:
  belljar ctl last disk data0 error write
  belljar ctl last/storage/raid.sh@debian unplug disk data1

Exit codes: 0 if it was done, 1 if it was refused, 125 if nobody answered. The orders are in the manual, under Breaking things.";

#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The run, and the test of it
    #[arg(value_name = "RUN[/UNIT]")]
    pub(crate) run: String,

    /// The test, where RUN is a directory
    #[arg(long, value_name = "UNIT")]
    pub(crate) unit: Option<String>,

    /// What is to happen, in the words of belljar-ctl
    #[arg(required = true, value_name = "ORDER", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) order: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,

    /// Command to run on the terminal [default: the user's login shell]
    #[arg(last = true, value_name = "CMD", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Say which there are, the one used last first
    List,
    /// Boot a guest and keep it, unless it is kept already
    Make(Box<TemplateMakeArgs>),
    /// Remove those not used for the longest time, until the others fit into the limit
    Prune {
        /// Bytes that may stay, such as 2GiB [default: that of BELLJAR_TEMPLATE_LIMIT]
        #[arg(long, value_name = "SIZE", conflicts_with = "all")]
        limit: Option<String>,
        /// Remove all of them
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TemplateMakeArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// A disk image to look at as well
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,

    /// QEMU to use [default: the first qemu-system-x86_64 found]
    #[arg(long, value_name = "FILE", env = env::QEMU, hide_env = true, value_hint = ValueHint::FilePath)]
    pub(crate) qemu: Option<PathBuf>,

    /// Container engine to use [default: podman, or docker where that works]
    #[arg(long, value_name = "FILE", env = env::ENGINE, hide_env = true, value_hint = ValueHint::CommandName)]
    pub(crate) engine: Option<PathBuf>,

    /// Ask again instead of remembering what was found before
    #[arg(long)]
    pub(crate) fresh: bool,
}

/// What of the host the guest sees.
#[derive(Debug, Args)]
#[command(next_help_heading = "Share")]
pub(crate) struct ShareArgs {
    /// The host directory that the guest sees, or `none`
    #[arg(short = 'w', long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) workspace: PathBuf,

    /// rw: the guest writes into it; ro: it cannot; cow: what it writes stays in the guest [default: rw]
    #[arg(long, value_name = "WORKSPACE_MODE", value_parser = word::<WorkspaceMode>())]
    pub(crate) workspace_mode: Option<WorkspaceMode>,

    /// Where the guest sees it [default: /mnt/hostos]
    #[arg(long, value_name = "PATH")]
    pub(crate) mount_at: Option<String>,

    /// Host directory for what the command leaves in $BELLJAR_OUT [default: `out` in the run's directory]
    #[arg(short = 'o', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: Option<PathBuf>,

    /// Most that the command may leave there, such as 100M [default: 1GiB, or a quarter of what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_output: Option<String>,

    /// Most that the guest may write to its disks [default: half of what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_disk: Option<String>,
}

/// How the command is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Command")]
pub(crate) struct ExecArgs {
    /// Set a variable for the command, or pass on this process's own with just NAME
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,

    /// Directory in the guest to run in [default: the workspace]
    #[arg(short = 'C', long, value_name = "PATH")]
    pub(crate) cwd: Option<String>,

    /// User in the guest to run as, by name or number
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// What a guard (coredump, warning, taint, unit, oom, io-error) does that sees something: fail, warn or ignore [default: fail]
    #[arg(long = "guard", value_name = "GUARD=ACTION", value_parser = guard_option)]
    pub(crate) guards: Vec<(Guard, GuardAction)>,
}

/// How Belljar itself works.
#[derive(Debug, Args)]
#[command(next_help_heading = "Belljar")]
pub(crate) struct HostArgs {
    /// QEMU to use [default: the first qemu-system-x86_64 found]
    #[arg(long, value_name = "FILE", env = env::QEMU, hide_env = true, value_hint = ValueHint::FilePath)]
    pub(crate) qemu: Option<PathBuf>,

    /// Container engine to use [default: podman, or docker where that works]
    #[arg(long, value_name = "FILE", env = env::ENGINE, hide_env = true, value_hint = ValueHint::CommandName)]
    pub(crate) engine: Option<PathBuf>,

    /// Put the logs of this run here [default: a directory of its own under the state directory]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) run_dir: Option<PathBuf>,

    /// Boot the guest anew instead of starting a clone of one that has booted before
    #[arg(long)]
    pub(crate) no_template: bool,

    /// Print the QEMU command, quoted to paste, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Say what was chosen and why; twice: show the console as well
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Say nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Reads one of a few words.
pub(crate) fn word<W: Word + Send + Sync>() -> impl TypedValueParser<Value = W> {
    PossibleValuesParser::new(W::words()).map(|word| W::of(&word).expect("clap takes no other word"))
}
