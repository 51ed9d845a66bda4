//! Whether the commands that a test requires are in the guest.

use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
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

/// Which of the commands that the unit requires is not in the guest.
///
/// # Errors
/// If that could not be found out.
pub(crate) async fn missing(
    unit: &Unit,
    guest: &mut dyn Guest,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Option<String>, Lost> {
    let wanted = &unit.settings.requires;
    if wanted.is_empty() {
        return Ok(None);
    }
    let words = ["sh", "-c", MISSING, "sh"].into_iter().chain(wanted.iter().map(String::as_str));
    let (exit, answer) = ask(guest, words, cancel, observe).await?;
    match exit {
        Exit::Code(0) => Ok(None),
        _ => {
            let said = String::from_utf8_lossy(&answer.stdout);
            let named = wanted.iter().find(|w| said.trim() == w.as_str());
            match named {
                Some(name) => Ok(Some(name.clone())),
                None => {
                    let wanted = wanted.iter().cloned().collect::<Vec<_>>().join(", ");
                    Err(Cause::Answer(format!("could not find out whether the guest has {wanted}: {exit}")).into())
                }
            }
        }
    }
}

/// Runs a command of Belljar's own in the guest.
async fn ask<'a>(
    guest: &mut dyn Guest,
    words: impl IntoIterator<Item = &'a str>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(Exit, Answer), Lost> {
    let command = GuestCommand {
        argv: words.into_iter().map(|w| w.as_bytes().to_vec()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
    };
    let mut answer = Answer::default();
    let io = Io { stdin: None, sink: &mut answer, control: None };
    let exit = exec(guest, command, io, OWN_LIMIT, cancel, observe).await?;
    Ok((exit, answer))
}
