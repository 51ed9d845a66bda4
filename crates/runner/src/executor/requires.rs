//! Whether what a test requires is in the guest: commands, and systemd.

use belljar_guest_spec::Need;
use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    first_process,
    guest::{Guest, Io},
};
use belljar_model::{EventKind, Exit};
use belljar_suite::plan::Unit;

use crate::{
    cancel::Cancel,
    exec::{Limit, exec},
    output::Answer,
};

/// Limit to a command of Belljar's own in the guest; without KVM a shell's start takes seconds.
const OWN_LIMIT: Limit = Limit { after: Some(std::time::Duration::from_secs(120)), name: "Belljar's own limit" };

/// Says which of its arguments is no command.
const MISSING: &str = "PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin; for c; do command -v \"$c\" >/dev/null 2>&1 || { echo \"$c\"; exit 1; }; done";

/// Why the guest is not what the unit needs or requires; none if it is.
///
/// # Errors
/// If that could not be found out.
pub(crate) async fn missing(
    unit: &Unit,
    guest: &mut dyn Guest,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Option<String>, Lost> {
    if unit.settings.needs.contains(&Need::Systemd) {
        let (exit, answer) = ask(guest, first_process::question(), cancel, observe).await?;
        if !first_process::is_systemd(exit, &answer.stdout)? {
            return Ok(Some("it needs systemd, which is not the guest's first process".to_owned()));
        }
    }
    let wanted = &unit.settings.requires;
    if wanted.is_empty() {
        return Ok(None);
    }
    let words = ["sh", "-c", MISSING, "sh"].into_iter().chain(wanted.iter().map(String::as_str));
    let (exit, answer) = ask(guest, GuestCommand::of_words(words), cancel, observe).await?;
    match exit {
        Exit::Code(0) => Ok(None),
        _ => {
            let said = String::from_utf8_lossy(&answer.stdout);
            let named = wanted.iter().find(|w| said.trim() == w.as_str());
            match named {
                Some(name) => Ok(Some(format!("the guest has no `{name}`"))),
                None => {
                    let wanted = wanted.iter().cloned().collect::<Vec<_>>().join(", ");
                    Err(Cause::Answer(format!("could not find out whether the guest has {wanted}: {exit}")).into())
                }
            }
        }
    }
}

/// Runs a command of Belljar's own in the guest.
async fn ask(
    guest: &mut dyn Guest,
    command: GuestCommand,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(Exit, Answer), Lost> {
    let mut answer = Answer::default();
    let io = Io { stdin: None, sink: &mut answer, control: None };
    let exit = exec(guest, command, io, OWN_LIMIT, cancel, observe).await?;
    Ok((exit, answer))
}
