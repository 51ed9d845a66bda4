//! A container whose first process is the image's systemd: when the system is up, what of it failed, and how it stands when a command has ended.

use std::time::Duration;

use belljar_model::{CrashKind, EventKind, Exit, Phase};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    Cause, Lost,
    command::GuestCommand,
    first_process, for_people,
    guest::{Io, Observe},
    session::{
        Session,
        agent::{AgentSession, OutputSink, SinkFuture},
    },
};

/// How soon systemd is asked again, at first and at last.
const SOONEST: Duration = Duration::from_millis(30);
const LATEST: Duration = Duration::from_millis(500);
/// How long it may take to tell what failed, or what it waits for.
const TELLING: Duration = Duration::from_secs(5);
/// How long systemd may take to say how the system stands.
const ANSWERING: Duration = Duration::from_secs(10);
/// How soon it is asked again where nobody answered.
const AGAIN: Duration = Duration::from_millis(200);
/// What starts where a system ends to begin again (systemd.special(7)), and where it only ends.
const RESTARTS: [&str; 3] = ["reboot.target", "kexec.target", "soft-reboot.target"];
const ENDS: [&str; 3] = ["poweroff.target", "halt.target", "exit.target"];
/// Most bytes of an answer that are kept.
const MOST: usize = 4096;
/// Most units that are told of.
const MOST_UNITS: usize = 10;

/// What systemd says of the system as a whole (systemctl(1), `is-system-running`).
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It is not up yet, or does not answer yet.
    Coming(String),
    /// It is up.
    Running,
    /// It is up, and units have failed.
    Degraded,
    /// It will not come up.
    Lost(String),
}

impl State {
    fn of(answer: &str) -> Self {
        match answer {
            "running" => Self::Running,
            "degraded" => Self::Degraded,
            "maintenance" | "stopping" => Self::Lost(answer.to_owned()),
            other => Self::Coming(other.to_owned()),
        }
    }
}

/// Waits until systemd says that the system is up.
///
/// # Errors
/// If it does not within `limit`, or gave up; those of a broken session.
pub(super) async fn await_up(session: &mut AgentSession, limit: Duration, observe: Observe<'_>) -> Result<(), Lost> {
    let deadline = Instant::now() + limit;
    let mut again = SOONEST;
    let mut last = String::new();
    let degraded = loop {
        match timeout_at(deadline, ask(session, &["systemctl", "is-system-running"])).await {
            Err(_) => break Err(()),
            Ok(answer) => match State::of(&answer?) {
                State::Running => break Ok(false),
                State::Degraded => break Ok(true),
                State::Lost(state) => {
                    let failed = failed(session).await;
                    let said = format!("systemd says that the system is in the state {state}{failed}");
                    return Err(Lost::crash(CrashKind::BootFailed, said, Phase::Boot));
                }
                State::Coming(state) => last = state,
            },
        }
        if timeout_at(deadline, sleep(again)).await.is_err() {
            break Err(());
        }
        again = (again * 2).min(LATEST);
    };
    match degraded {
        Ok(is_degraded) => {
            check_first_process(session).await?;
            let chosen = if is_degraded { "degraded" } else { "running" };
            let why = "systemd says so of the system".to_owned();
            observe(EventKind::Choice { what: "booted".into(), chosen: chosen.into(), why });
            if is_degraded {
                let message = format!("the container's system is up, but degraded{}", failed(session).await);
                observe(EventKind::Warning { message });
            }
            Ok(())
        }
        Err(()) => {
            drop(tokio::time::timeout(TELLING, Session::kill_running(session)).await);
            let jobs = jobs(session).await;
            let state = if last.is_empty() { String::new() } else { format!(", which it calls {last}") };
            let said = format!("systemd did not say that the system is up within {}{state}{jobs}", for_people(limit));
            Err(Lost::timeout(Phase::Boot, said))
        }
    }
}

/// Sees that systemd really is the first process, whatever the image has for its programs.
async fn check_first_process(session: &mut AgentSession) -> Result<(), Lost> {
    let (exit, answer) = match tokio::time::timeout(ANSWERING, answer(session, first_process::question())).await {
        Ok(answered) => answered?,
        Err(_) => {
            let said = format!("the container did not say within {} which its first process is", for_people(ANSWERING));
            return Err(Lost::timeout(Phase::Boot, said));
        }
    };
    if first_process::is_systemd(exit, &answer)? {
        return Ok(());
    }
    let why = "systemd cannot run in this container: what the image has in its place is not systemd, although the image's systemctl says that the \
               system is up; take an image that has it, or leave `systemd` (--systemd) out";
    Err(Lost::from(Cause::Skipped(why.to_owned())).lasting())
}

/// How the system stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is up.
    Up,
    /// It is on its way down; what systemd says of it.
    Ending(CrashKind, String),
    /// It is not what it was, as a phrase, and a command that comes later should not meet it.
    Odd(String),
}

/// How the system stands when a command has ended.
///
/// # Errors
/// Those of a broken session.
pub(super) async fn standing(session: &mut AgentSession) -> Result<Standing, Lost> {
    let asked = tokio::time::timeout(ANSWERING, async {
        loop {
            match ask(session, &["systemctl", "is-system-running"]).await {
                // systemctl's own words where it reaches nobody, as for a moment when systemd executes itself anew.
                Ok(state) if ["", "offline", "unknown"].contains(&&*state) => sleep(AGAIN).await,
                answered => break answered,
            }
        }
    })
    .await;
    Ok(match asked {
        Ok(Ok(state)) if state == "stopping" => {
            let asked =
                tokio::time::timeout(TELLING, ask(session, &["systemctl", "list-jobs", "--plain", "--no-legend"]));
            ending(&asked.await.ok().and_then(Result::ok).unwrap_or_default())
        }
        Ok(Ok(state)) if state == "maintenance" => Standing::Odd(
            "the system in the state maintenance, as systemd calls it (rescue or emergency mode)".to_owned(),
        ),
        Ok(Ok(_)) if is_about_to_end(session).await? => {
            let said = "logind was about to end the system when the command had ended, and waited for somebody who delays that";
            Standing::Ending(CrashKind::PowerOff, said.to_owned())
        }
        Ok(Ok(_)) => Standing::Up,
        Ok(Err(Lost { cause: Cause::Description(_), .. })) => {
            Standing::Odd("a system without systemctl, which says how it stands".to_owned())
        }
        Ok(Err(lost)) => return Err(lost),
        Err(_) => {
            drop(tokio::time::timeout(TELLING, Session::kill_running(session)).await);
            Standing::Odd(format!("a systemd that has not said within {} how the system stands", for_people(ANSWERING)))
        }
    })
}

/// Whether logind has been asked to end the system, and waits for who delays that (org.freedesktop.login1(5)); no where nobody says so.
async fn is_about_to_end(session: &mut AgentSession) -> Result<bool, Lost> {
    let logind = "org.freedesktop.login1";
    let question = ["--auto-start=no", "get-property", logind, "/org/freedesktop/login1"];
    let words =
        ["busctl"].into_iter().chain(question).chain(["org.freedesktop.login1.Manager", "PreparingForShutdown"]);
    match tokio::time::timeout(TELLING, ask(session, &words.collect::<Vec<_>>())).await {
        Ok(Ok(said)) => Ok(said == "b true"),
        Ok(Err(Lost { cause: Cause::Description(_), .. })) => Ok(false),
        Ok(Err(lost)) => Err(lost),
        Err(_) => {
            drop(tokio::time::timeout(TELLING, Session::kill_running(session)).await);
            Ok(false)
        }
    }
}

/// Says which of the units that it is given do not run again when the system starts anew. Those of users come with their logins.
const NOT_ANEW: &str = r#"for unit; do
    case $unit in user@*.service | user-runtime-dir@*.service) continue ;; esac
    case $(systemctl is-enabled -- "$unit" 2>/dev/null) in
    enabled | alias | generated) continue ;;
    enabled-runtime)
        for link in /run/systemd/generator*/*.wants/"$unit" /run/systemd/generator*/*.requires/"$unit"; do
            [ ! -L "$link" ] || continue 2
        done ;;
    static | indirect)
        by=$(systemctl show --property=WantedBy --property=RequiredBy --property=TriggeredBy --value -- "$unit")
        [ -z "$by" ] || continue
        [ "$(systemctl show --property=Type --value -- "$unit")" != dbus ] || continue ;;
    esac
    echo "$unit"
done"#;

/// Which of these units, which have been stopped, do not run again by themselves where the system starts anew with the files that there are.
///
/// # Errors
/// Those of a broken session.
pub(super) async fn not_started_anew(session: &mut AgentSession, units: &[String]) -> Result<Vec<String>, Lost> {
    let words = ["sh", "-c", NOT_ANEW, "sh"].into_iter().chain(units.iter().map(String::as_str));
    let (exit, said) = answer(session, GuestCommand::of_words(words)).await?;
    // Who does not say it well has said nothing.
    let said = String::from_utf8_lossy(&said).into_owned();
    let named: Vec<&str> = said.lines().collect();
    let is_whole = exit == Exit::Code(0) && named.iter().all(|name| units.iter().any(|unit| unit == name));
    Ok(units.iter().filter(|unit| !is_whole || named.contains(&unit.as_str())).cloned().collect())
}

/// What a system that is stopping does, by its jobs.
fn ending(jobs: &str) -> Standing {
    let has = |unit: &&&str| jobs.lines().any(|line| line.split_whitespace().any(|word| word == **unit));
    let (kind, unit) = match (RESTARTS.iter().find(has), ENDS.iter().find(has)) {
        (Some(unit), _) => (CrashKind::Reboot, Some(unit)),
        (None, unit) => (CrashKind::PowerOff, unit),
    };
    let unit = unit.map(|unit| format!(" for {unit}")).unwrap_or_default();
    Standing::Ending(kind, format!("systemd was stopping the system{unit} when the command had ended"))
}

/// Which units failed, as the end of a sentence.
async fn failed(session: &mut AgentSession) -> String {
    units(session, &["systemctl", "list-units", "--failed", "--plain", "--no-legend"], 0, "failed").await
}

/// What it still waits for, as the end of a sentence.
async fn jobs(session: &mut AgentSession) -> String {
    units(session, &["systemctl", "list-jobs", "--plain", "--no-legend"], 1, "it waits for").await
}

/// The words of an answer's lines in this column.
async fn units(session: &mut AgentSession, command: &[&str], column: usize, what: &str) -> String {
    let asked = tokio::time::timeout(TELLING, ask(session, command)).await;
    let Ok(Ok(answer)) = asked else { return String::new() };
    let units: Vec<&str> = answer.lines().filter_map(|line| line.split_whitespace().nth(column)).collect();
    if units.is_empty() {
        return String::new();
    }
    let more = units.len().saturating_sub(MOST_UNITS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("; {what}: {}{more}", units[..units.len().min(MOST_UNITS)].join(", "))
}

/// What a command writes, without control characters.
async fn ask(session: &mut AgentSession, words: &[&str]) -> Result<String, Lost> {
    answer(session, GuestCommand::of_words(words.iter().copied())).await.map(|(_, said)| super::call::clean(&said))
}

/// How a command ends, and what it writes.
async fn answer(session: &mut AgentSession, command: GuestCommand) -> Result<(Exit, Vec<u8>), Lost> {
    let program = command.argv.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
    let mut answer = Answer::default();
    let mut io = Io { stdin: None, sink: &mut answer, control: None };
    match Session::exec(session, command, &mut io).await {
        Ok(exit) => Ok((exit, answer.0)),
        Err(Lost { cause: Cause::NotStarted { why, .. }, .. }) => {
            let said = format!(
                "the image's systemd cannot be asked, for its {program} does not run ({why}); install all of systemd"
            );
            Err(Lost::from(Cause::Description(said)).lasting())
        }
        Err(lost) => Err(lost),
    }
}

/// The beginning of a command's output.
#[derive(Default)]
struct Answer(Vec<u8>);

impl OutputSink for Answer {
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        let room = MOST.saturating_sub(self.0.len());
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Box::pin(std::future::ready(Ok(())))
    }

    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_system_that_is_up_is_taken_for_one() {
        assert_eq!((State::of("running"), State::of("degraded")), (State::Running, State::Degraded));
        for answer in ["", "offline", "unknown", "initializing", "starting", "running\nx", "Running", "not found"] {
            assert_eq!(State::of(answer), State::Coming(answer.to_owned()));
        }
        assert_eq!(State::of("maintenance"), State::Lost("maintenance".into()));
        assert_eq!(State::of("stopping"), State::Lost("stopping".into()));
    }

    #[test]
    fn what_a_stopping_system_does_is_told_by_its_jobs() {
        let kind = |jobs: &str| match ending(jobs) {
            Standing::Ending(kind, said) => (kind, said.contains(" for ")),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            kind("89 shutdown.target start waiting\n84 poweroff.target start waiting"),
            (CrashKind::PowerOff, true)
        );
        assert_eq!(kind("84 reboot.target start waiting"), (CrashKind::Reboot, true));
        assert_eq!(kind("84 my-reboot.target start waiting"), (CrashKind::PowerOff, false));
        assert_eq!(kind(""), (CrashKind::PowerOff, false));
    }
}
