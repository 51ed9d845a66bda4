//! What the user can type. Nothing is resolved here; see [`crate::settings`].

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::{env, suite::args as suite};

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

    /// Ask again instead of remembering what was found before
    #[arg(long)]
    pub(crate) fresh: bool,
}

/// Which guest, and what machine it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Guest")]
pub(crate) struct GuestArgs {
    /// Take this guest of belljar.toml; options say what is to be different about it
    #[arg(short = 'g', long, value_name = "NAME",
          conflicts_with_all = ["image", "kernel", "rootfs", "initrd", "modules", "boot_bus"])]
    pub(crate) guest: Option<String>,

    /// The configuration with the guest [default: belljar.toml here, or in the nearest directory above]
    #[arg(short = 'c', long, value_name = "FILE", requires = "guest", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// Boot this disk image (qcow2, raw, vmdk, vdi, vhdx, vpc), unmodified; nothing is written to it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "rootfs", "initrd", "modules", "append"],
          value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,

    /// Take the image as being of this format instead of what qemu-img says
    #[arg(long, value_name = "FORMAT", requires = "image")]
    pub(crate) image_format: Option<String>,

    /// Boot this kernel: with --initrd its user space, else with --rootfs or the host's root directory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kernel: Option<PathBuf>,

    /// The initramfs to boot the kernel with; its shell is looked for on the serial line
    #[arg(long, value_name = "FILE", requires = "kernel", conflicts_with = "rootfs", value_hint = ValueHint::FilePath)]
    pub(crate) initrd: Option<PathBuf>,

    /// Use this directory as the guest's root, read-only under a writable layer [default: /]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) rootfs: Option<PathBuf>,

    /// The kernel's modules, such as /lib/modules/6.1.0-56-amd64 [default: found by the kernel's version]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) modules: Option<PathBuf>,

    /// Add to the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,

    /// Log in on the serial console as USER with PASSWORD (better in the environment: BELLJAR_LOGIN)
    #[arg(long, value_name = "USER[:PASSWORD]", env = env::LOGIN, hide_env = true, hide_env_values = true)]
    pub(crate) login: Option<String>,

    /// How to get in: what the serial line offers, or Belljar's own init (only with --kernel) [default: auto]
    #[arg(long, value_enum, default_value_t = AccessArg::Auto, hide_default_value = true)]
    pub(crate) access: AccessArg,

    /// The guest's memory, such as 512M or 2GiB [default: 1GiB]
    #[arg(short = 'm', long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,

    /// The guest's processors [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: Option<u32>,

    /// QEMU machine type
    #[arg(long, value_name = "TYPE")]
    pub(crate) machine: Option<String>,

    /// QEMU CPU model
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,

    /// KVM or emulation [default: KVM if a probe shows that it runs a guest]
    #[arg(long, value_enum, env = env::ACCEL, hide_env = true)]
    pub(crate) accel: Option<AccelArg>,

    /// Add a disk: size=1G or file=IMAGE, with serial=NAME, bus=virtio|scsi|sata|ide|nvme; thrown away at the end
    #[arg(long = "disk", value_name = "SPEC")]
    pub(crate) disks: Vec<String>,

    /// How the boot disk is attached
    #[arg(long, value_name = "BUS", value_enum, default_value_t = BusArg::Virtio, requires = "image")]
    pub(crate) boot_bus: BusArg,

    /// Network: none, isolated (DHCP answers, nothing is reachable) or user (the outside world by NAT) [default: isolated]
    #[arg(long, value_enum)]
    pub(crate) nic: Option<NicArg>,

    /// What a fault that the guest's kernel reports (oops, BUG, lockup) does to the run [default: crash]
    #[arg(long, value_enum)]
    pub(crate) oops: Option<OopsArg>,

    /// Give up on the boot after this time [default: 2m, 20m without KVM, sooner if nothing moves]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) boot_timeout: Option<Duration>,

    /// Hide this path of the host from the guest as well; its last part may end in * (keys and tokens in home directories,
    /// processes and temporary files are hidden anyway)
    #[arg(long, value_name = "PATH")]
    pub(crate) hide: Vec<PathBuf>,

    /// Pass this argument to QEMU as it is, after all others
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_args: Vec<OsString>,
}

/// What of the host the guest sees.
#[derive(Debug, Args)]
#[command(next_help_heading = "Share")]
pub(crate) struct ShareArgs {
    /// The host directory that the guest sees, or `none`
    #[arg(short = 'w', long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) workspace: PathBuf,

    /// rw: the guest writes into it; ro: it cannot; cow: what it writes stays in the guest [default: rw]
    #[arg(long, value_enum)]
    pub(crate) workspace_mode: Option<ModeArg>,

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
}

/// How Belljar itself works.
#[derive(Debug, Args)]
#[command(next_help_heading = "Belljar")]
pub(crate) struct HostArgs {
    /// QEMU to use [default: the first qemu-system-x86_64 found]
    #[arg(long, value_name = "FILE", env = env::QEMU, hide_env = true, value_hint = ValueHint::FilePath)]
    pub(crate) qemu: Option<PathBuf>,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessArg {
    Auto,
    Console,
    Init,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccelArg {
    Kvm,
    Tcg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BusArg {
    Virtio,
    Scsi,
    Sata,
    Ide,
    Nvme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NicArg {
    None,
    Isolated,
    User,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OopsArg {
    Crash,
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    Rw,
    Ro,
    Cow,
}
