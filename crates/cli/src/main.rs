//! Functional tests of operating-system features, each in its own throw-away machine.
//!
//! This crate alone prints, reads the environment and decides exit codes; the work is done by the other crates.

mod args;
mod ctl;
mod doctor;
mod env;
mod guest;
mod input;
mod run;
mod settings;
mod shell;
mod sink;
mod specs;
mod suite;
mod template;
mod terminal;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use args::{Cli, Command};
use belljar_machine::{backend::container, qemu::process::all_ended};
use belljar_model::exit_code;
use clap::{CommandFactory, Parser};
use guest::GuestArgs;
use nix::sys::signal::{SigSet, Signal};

/// First argument of a process that is about to become QEMU.
pub(crate) const EXEC: &str = "__exec";

/// How long a killed QEMU may take to be gone.
const LAST_LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    outlive_file_size_limit();
    let mut words = std::env::args_os();
    let (program, first) = (words.next(), words.next());
    // Not for people, and not for clap: what follows belongs to another program.
    if first.as_deref().is_some_and(|f| f == EXEC) {
        let Err(error) = belljar_machine::qemu::sandbox::shim_main(words);
        complain(&error.to_string());
        return ExitCode::from(exit_code::CANNOT_RUN);
    }
    if first.as_deref().is_some_and(|f| f == terminal::GUARD) {
        // Nobody is left to be told of a failure.
        return if terminal::guard().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let words: Vec<OsString> = program.into_iter().chain(first).chain(words).collect();
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no errors.
            let code = if error.use_stderr() { exit_code::USAGE } else { exit_code::OK };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    if let Some(conflict) = cli.command.guest().and_then(GuestArgs::conflict) {
        complain(&conflict);
        return ExitCode::from(exit_code::USAGE);
    }
    quiet_readers();
    // Whoever was killed could not do it, and its user may never make a template again.
    template::sweep();
    sweep_containers();
    let code = obey(cli.command);
    // They are killed, but not gone the same moment.
    if !all_ended(LAST_LIMIT) {
        container::end_calls();
    }
    code
}

/// Removes containers that are left of a Belljar that was killed, where there is a sign of one.
fn sweep_containers() {
    // Whoever needs the directory says what is wrong with it.
    let Ok(cache) = settings::cache_dir() else { return };
    for said in container::sweep(&cache, &settings::shim()) {
        complain_note(&said);
    }
}

/// Where files may not be longer than so much (`ulimit -f`), writing more is an error like a full disk, and does not end this process, nor those that it starts.
fn outlive_file_size_limit() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGXFSZ);
    // Without it the kernel ends us: no pass either.
    let _ = set.thread_block();
}

/// A panic in the reader of a file system is caught and told as an error of the disk.
fn quiet_readers() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !belljar_disk_reader::is_reading() {
            tell(panic);
        }
    }));
}

fn obey(command: Command) -> ExitCode {
    let code = match command {
        Command::Run(args) => run::run(*args),
        Command::Test(args) => return refused(suite::test(*args)),
        Command::List(args) => return refused(suite::list(&args)),
        Command::Report(args) => return refused(suite::report(&args)),
        Command::Merge(args) => return refused(suite::merge(&args)),
        Command::Shell(args) => shell::shell(*args),
        Command::Ctl(args) => ctl::ctl(&args),
        Command::Template(command) => template::template(command),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "belljar", &mut script);
            write_out(&script)
        }
        Command::Man { out } => man(out.as_deref()),
    };
    code.map_or_else(
        |message| {
            complain(&message);
            ExitCode::from(exit_code::CANNOT_RUN)
        },
        ExitCode::from,
    )
}

/// The exit code, after what is to be told.
fn refused(result: Result<u8, suite::Refused>) -> ExitCode {
    result.map_or_else(
        |refused| {
            complain(&refused.message);
            ExitCode::from(refused.code)
        },
        ExitCode::from,
    )
}

/// Tells a person what is worth knowing and stops nothing.
pub(crate) fn complain_note(message: &str) {
    drop(writeln!(io::stderr(), "belljar: {message}"));
}

/// Tells a person what went wrong.
pub(crate) fn complain(message: &str) {
    // A diagnostic says itself that it is one.
    let mut lines = message.strip_prefix("error: ").unwrap_or(message).lines();
    let first = lines.next().unwrap_or_default();
    let rest: String = lines.map(|l| if l.is_empty() { "\n".to_owned() } else { format!("\n  {l}") }).collect();
    // With standard error closed there is nobody to tell.
    drop(writeln!(io::stderr(), "belljar: error: {first}{rest}"));
}

/// Writes to standard output; a reader that went away is no error.
fn write_out(bytes: &[u8]) -> Result<u8, String> {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Ok(()) => Ok(exit_code::OK),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(exit_code::OK),
        Err(error) => Err(format!("cannot write to standard output: {error}")),
    }
}

fn man(out: Option<&Path>) -> Result<u8, String> {
    match out {
        Some(dir) => {
            fs_err::create_dir_all(dir).map_err(|e| e.to_string())?;
            clap_mangen::generate_to(Cli::command(), dir)
                .map_err(|e| format!("cannot write the manual pages into {}: {e}", dir.display()))?;
            Ok(exit_code::OK)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(|e| e.to_string())?;
            write_out(&page)
        }
    }
}
