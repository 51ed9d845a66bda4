//! Whether what a test requires is in the guest: commands, and systemd.

use belljar_guest_spec::Need;
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

/// Tells whether systemd is the first process: by what `sd_booted(3)` goes by, and by the name that systemd gives itself.
const IS_SYSTEMD: &str =
    "[ -d /run/systemd/system ] && read -r name </proc/1/comm && [ \"$name\" = systemd ] && echo yes || echo no";

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
        let (exit, answer) = ask(guest, ["sh", "-c", IS_SYSTEMD], cancel, observe).await?;
        match (exit, answer.stdout.trim_ascii()) {
            (Exit::Code(0), b"yes") => {}
            (Exit::Code(0), b"no") => {
                return Ok(Some("it needs systemd, which is not the guest's first process".to_owned()));
            }
            (exit, _) => {
                let said = format!("could not find out whether systemd is the guest's first process: {exit}");
                return Err(Cause::Answer(said).into());
            }
        }
    }
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
async fn ask<'a>(
    guest: &mut dyn Guest,
    words: impl IntoIterator<Item = &'a str>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(Exit, Answer), Lost> {
    let command = GuestCommand::of_words(words);
    let mut answer = Answer::default();
    let io = Io { stdin: None, sink: &mut answer, control: None };
    let exit = exec(guest, command, io, OWN_LIMIT, cancel, observe).await?;
    Ok((exit, answer))
}
