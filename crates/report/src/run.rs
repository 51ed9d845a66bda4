//! What a person reads of `belljar run`: a live line on a terminal, plain lines elsewhere.

use std::{io, time::Duration};

use belljar_model::{
    CrashKind, Event, EventKind, Phase, Verdict,
    event::{FindingOutcome, control_text, finding_text, takes_long},
    verdict::{Exit, Fault},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Errors only.
    Quiet,
    /// What a person needs.
    Normal,
    /// What was chosen and why, too.
    Verbose,
    /// And every line of the console.
    Console,
}

impl Level {
    /// From which on an alarm is shown: one that the test may have asked for is what it wants to see in its guest.
    pub(crate) fn of_alarm(ordered: bool) -> Self {
        if ordered { Self::Verbose } else { Self::Normal }
    }

    /// From which on what a guard has seen is shown.
    pub(crate) fn of_finding(outcome: FindingOutcome) -> Self {
        if outcome == FindingOutcome::Allowed { Self::Verbose } else { Self::Normal }
    }
}

/// How it is said.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// How much.
    pub level: Level,
    /// Whether there is a live line: standard error is a terminal.
    pub live: bool,
    /// Whether colours are wanted.
    pub color: bool,
}

/// Tells a person how a run goes.
pub struct RunReporter<W> {
    out: W,
    style: Style,
    live: Option<ProgressBar>,
    phase: Option<Phase>,
    started: Option<Timestamp>,
    logs: String,
    last_line: String,
}

/// Linux's number.
const SIGINT: i32 = 2;
/// How often the live line's clock moves.
const TICK: Duration = Duration::from_millis(200);
/// Characters of the console's last line that the live line shows at most; the terminal's width cuts it further.
const LIVE_CONSOLE: usize = 100;

impl<W: io::Write> RunReporter<W> {
    /// Writes to `out`; `logs` is where the run's directory is.
    pub fn new(out: W, style: Style, logs: impl Into<String>) -> Self {
        Self { out, style, live: None, phase: None, started: None, logs: logs.into(), last_line: String::new() }
    }

    /// Takes one event.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub fn on_event(&mut self, event: &Event) -> io::Result<()> {
        match &event.kind {
            EventKind::RunStarted { guest, .. } => {
                self.started = Some(event.at);
                if self.style.level >= Level::Normal && !self.style.live {
                    self.say(&format!("guest: {guest}"))?;
                }
            }
            EventKind::Choice { what, chosen, why } if self.style.level >= Level::Verbose => {
                self.say(&format!("{what}: {chosen} ({why})"))?;
            }
            EventKind::Choice { what, chosen, why }
                if self.style.level == Level::Normal && takes_long(what, chosen) =>
            {
                self.say(&format!("{what}: {chosen} ({why})"))?;
            }
            EventKind::Phase { phase } => self.on_phase(*phase, event.at)?,
            EventKind::Warning { message } if self.style.level >= Level::Normal => {
                let head = self.paint("33", "note");
                self.say(&format!("{head}: {message}"))?;
            }
            EventKind::Mark { text } if self.style.level >= Level::Verbose => self.say(&format!("mark: {text}"))?,
            EventKind::Control { device, order, outcome, refused } if self.style.level >= Level::Verbose => {
                self.say(&format!("control: {}", control_text(device, order, outcome, *refused)))?;
            }
            // One that ends the guest is what the end is told by.
            EventKind::Alarm { name, line, fatal: false, ordered } if self.style.level >= Level::of_alarm(*ordered) => {
                let head = self.paint("33", name);
                self.say(&format!("{head}: {line}"))?;
            }
            EventKind::Finding { guard, text, outcome, reason } if self.style.level >= Level::of_finding(*outcome) => {
                let head = self.paint("33", guard);
                self.say(&format!("{head}: {}", finding_text(text, reason.as_deref())))?;
            }
            EventKind::CommandStarted { .. } => self.stop_live(),
            EventKind::CommandEnded { .. } => {}
            EventKind::ConsoleTail { lines } => self.console_tail(lines)?,
            EventKind::RunEnded { verdict, message, .. } => self.on_end(verdict, message.as_deref(), event.at)?,
            // What is not to be said at this level, what only `belljar test` logs, and what a later version does.
            _ => {}
        }
        Ok(())
    }

    /// Says that a phase takes its time, where no live line shows it. To be called when one has gone on for a moment.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub fn on_delay(&mut self, phase: Phase) -> io::Result<()> {
        let what = match phase {
            Phase::Prepare => "looking at what the guest is made of, and unpacking it: some seconds the first time",
            Phase::Boot => {
                "the guest comes up, or its template is checked: seconds for a container, minutes at most for a machine, more without KVM"
            }
            Phase::Access | Phase::Session => "getting into the guest",
            Phase::Command | Phase::Close => return Ok(()),
        };
        if self.phase == Some(phase) && self.live.is_none() && self.style.level >= Level::Normal {
            self.say(&format!("still {phase} ({what})"))?;
        }
        Ok(())
    }

    /// The phase that was heard of last.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// Shows a line of the console: in the live line, or as a line of its own at [`Level::Console`]. The line must
    /// have no control characters.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub fn on_console_line(&mut self, line: &str) -> io::Result<()> {
        if self.style.level >= Level::Console {
            let line = self.paint("2", &format!("| {line}"));
            return self.print(&line);
        }
        if let Some(live) = &self.live
            && !line.trim().is_empty()
        {
            self.last_line = line.chars().take(LIVE_CONSOLE).collect();
            live.set_message(self.live_text());
        }
        Ok(())
    }

    /// Takes the live line away, so that something else can use the terminal.
    pub fn stop_live(&mut self) {
        if let Some(live) = self.live.take() {
            live.finish_and_clear();
        }
    }

    fn on_phase(&mut self, phase: Phase, at: Timestamp) -> io::Result<()> {
        let before = self.phase.replace(phase);
        if phase == Phase::Command {
            self.stop_live();
            if self.style.level >= Level::Verbose || (self.style.level >= Level::Normal && !self.style.live) {
                let up = self.since_start(at);
                self.say(&format!("up after {up}"))?;
            }
        } else if self.style.live && self.style.level >= Level::Normal && before != Some(Phase::Command) {
            if phase == Phase::Close {
                self.stop_live();
            } else {
                let text = self.live_text();
                self.live.get_or_insert_with(new_live_line).set_message(text);
            }
        }
        Ok(())
    }

    fn on_end(&mut self, verdict: &Verdict, message: Option<&str>, at: Timestamp) -> io::Result<()> {
        self.stop_live();
        let took = self.since_start(at);
        let mut message = message;
        let (worth, text) = match verdict {
            Verdict::Pass => (Level::Verbose, format!("exit code 0 after {took}")),
            // The command never ran: that is not its own failure.
            Verdict::Fail(Exit::Code(_)) if message.is_some() => {
                (Level::Quiet, message.take().unwrap_or_default().to_owned())
            }
            Verdict::Fail(Exit::Code(code)) => (Level::Normal, format!("exit code {code} after {took}")),
            Verdict::Fail(exit @ Exit::Signal { .. }) => (Level::Normal, format!("{exit} after {took}")),
            Verdict::Skip(why) => (Level::Normal, format!("skipped: {why}")),
            Verdict::Timeout(phase) => (Level::Quiet, format!("timed out while {phase}, after {took}")),
            Verdict::Crash(crash) if crash.kind == CrashKind::BootFailed => {
                (Level::Quiet, format!("{}: {}", crash.kind, crash.seen))
            }
            Verdict::Crash(crash) => (Level::Quiet, format!("{} while {}: {}", crash.kind, crash.phase, crash.seen)),
            Verdict::Error(Fault::Host { message }) => (Level::Quiet, message.clone()),
            Verdict::Error(Fault::Interrupted { signal }) => (
                // Whoever presses Ctrl-C knows; of what ended it otherwise nobody else tells.
                if *signal == SIGINT { Level::Normal } else { Level::Quiet },
                format!("interrupted by {}", belljar_model::verdict::signal_name(*signal).unwrap_or("a signal")),
            ),
            Verdict::Error(Fault::OutputClosed) => {
                (Level::Verbose, "ended, since nobody reads the output any more".to_owned())
            }
        };
        let serious = worth == Level::Quiet;
        if self.style.level >= worth {
            let head = if serious { self.paint("31", "error") + ": " } else { String::new() };
            self.say(&format!("{head}{text}"))?;
            if let Some(message) = message {
                self.say(message)?;
            }
            if !matches!(verdict, Verdict::Pass) || self.style.level >= Level::Verbose {
                let logs = self.paint("2", &format!("logs: {}", self.logs));
                self.say(&logs)?;
            }
        }
        self.out.flush()
    }

    fn console_tail(&mut self, lines: &[String]) -> io::Result<()> {
        if lines.is_empty() || self.style.level >= Level::Console {
            return Ok(());
        }
        self.stop_live();
        self.say("the console's last lines:")?;
        for line in lines {
            let line = self.paint("2", &format!("  | {line}"));
            self.print(&line)?;
        }
        Ok(())
    }

    fn live_text(&self) -> String {
        let phase = self.phase.map_or_else(String::new, |p| p.to_string());
        if self.last_line.is_empty() { phase } else { format!("{phase} · {}", self.last_line) }
    }

    fn since_start(&self, at: Timestamp) -> String {
        let millis = self.started.map_or(0, |s| at.duration_since(s).as_millis().max(0));
        #[expect(clippy::cast_precision_loss, reason = "a duration for a person, to a tenth of a second")]
        let seconds = millis as f64 / 1000.0;
        format!("{seconds:.1} s")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        self.print(&format!("belljar: {first}"))?;
        for line in lines {
            self.print(&format!("  {line}"))?;
        }
        Ok(())
    }

    fn print(&mut self, line: &str) -> io::Result<()> {
        match &self.live {
            Some(live) => live.suspend(|| writeln!(self.out, "{line}")),
            None => writeln!(self.out, "{line}"),
        }
    }
}

fn new_live_line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("belljar: {elapsed:>3} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    bar.set_style(style);
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use belljar_model::{Crash, RunId};

    use super::*;

    fn told(level: Level, kinds: Vec<EventKind>) -> String {
        let mut out = Vec::new();
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let style = Style { level, live: false, color: false };
        let mut reporter = RunReporter::new(&mut out, style, "/state/runs/x");
        for (seq, kind) in (0_u64..).zip(kinds) {
            let at = start + Duration::from_millis(1500 * seq);
            reporter.on_event(&Event { seq, at, kind, scope: None }).unwrap();
        }
        drop(reporter);
        String::from_utf8(out).unwrap()
    }

    fn run(verdict: Verdict, message: Option<&str>) -> Vec<EventKind> {
        let exit_code = verdict.run_exit_code();
        vec![
            EventKind::RunStarted {
                schema: 1,
                run: RunId::new("2026-01-02T03:04:05Z".parse().unwrap(), 1),
                version: "0.1.0".into(),
                guest: "debian.qcow2".into(),
                command: vec!["true".into()],
            },
            EventKind::Choice { what: "accelerator".into(), chosen: "tcg".into(), why: "no /dev/kvm".into() },
            EventKind::Phase { phase: Phase::Boot },
            EventKind::Phase { phase: Phase::Command },
            EventKind::CommandStarted { pid: Some(7) },
            EventKind::ConsoleTail { lines: vec!["[    1.0] last".into()] },
            EventKind::RunEnded { verdict, exit_code, message: message.map(Into::into) },
        ]
    }

    #[test]
    fn failing_command() {
        insta::assert_snapshot!(told(Level::Normal, run(Verdict::Fail(Exit::Code(7)), None)), @r"
        belljar: guest: debian.qcow2
        belljar: up after 4.5 s
        belljar: the console's last lines:
          | [    1.0] last
        belljar: exit code 7 after 9.0 s
        belljar: logs: /state/runs/x
        ");
    }

    #[test]
    fn crash_is_told_even_when_quiet() {
        let crash = Crash { kind: CrashKind::Panic, seen: "Kernel panic - not syncing".into(), phase: Phase::Command };
        insta::assert_snapshot!(told(Level::Quiet, run(Verdict::Crash(crash), None)), @r"
        belljar: the console's last lines:
          | [    1.0] last
        belljar: error: the guest's kernel panicked while running: Kernel panic - not syncing
        belljar: logs: /state/runs/x
        ");
    }

    #[test]
    fn verbose_says_what_was_chosen() {
        insta::assert_snapshot!(told(Level::Verbose, run(Verdict::Pass, None)), @r"
        belljar: guest: debian.qcow2
        belljar: accelerator: tcg (no /dev/kvm)
        belljar: up after 4.5 s
        belljar: the console's last lines:
          | [    1.0] last
        belljar: exit code 0 after 9.0 s
        belljar: logs: /state/runs/x
        ");
    }

    #[test]
    fn pass_is_silent_at_the_end() {
        let kinds = run(Verdict::Pass, None).into_iter().filter(|k| !matches!(k, EventKind::ConsoleTail { .. }));
        insta::assert_snapshot!(told(Level::Normal, kinds.collect()), @r"
        belljar: guest: debian.qcow2
        belljar: up after 4.5 s
        ");
    }

    #[test]
    fn what_takes_long_is_told() {
        let made = EventKind::Choice { what: "template".into(), chosen: "made".into(), why: "it boots once".into() };
        assert_eq!(told(Level::Normal, vec![made.clone()]), "belljar: template: made (it boots once)\n");
        assert_eq!(told(Level::Quiet, vec![made]), "");
        let found = EventKind::Choice { what: "template".into(), chosen: "found".into(), why: "made 3 s ago".into() };
        assert_eq!(told(Level::Normal, vec![found]), "");
        for (level, lines) in [(Level::Normal, 1), (Level::Quiet, 0)] {
            let mut out = Vec::new();
            let mut reporter = RunReporter::new(&mut out, Style { level, live: false, color: false }, "");
            let kind = EventKind::Phase { phase: Phase::Prepare };
            reporter.on_event(&Event { seq: 0, at: Timestamp::UNIX_EPOCH, kind, scope: None }).unwrap();
            reporter.on_delay(Phase::Boot).unwrap();
            reporter.on_delay(Phase::Prepare).unwrap();
            drop(reporter);
            let said = String::from_utf8(out).unwrap();
            assert_eq!(said.matches("still preparing").count(), lines, "{said}");
            assert_eq!(said.lines().count(), lines, "{said}");
        }
    }

    #[test]
    fn what_did_not_start_is_told_even_when_quiet() {
        let message = "cannot start the command: execve /no/such: No such file or directory (os error 2)";
        let kinds = run(Verdict::Fail(Exit::Code(127)), Some(message));
        let kinds = kinds.into_iter().filter(|k| !matches!(k, EventKind::ConsoleTail { .. }));
        insta::assert_snapshot!(told(Level::Quiet, kinds.collect()), @r"
        belljar: error: cannot start the command: execve /no/such: No such file or directory (os error 2)
        belljar: logs: /state/runs/x
        ");
        // The command's own failure is told by its exit code.
        let kinds = run(Verdict::Fail(Exit::Code(127)), None);
        let kinds = kinds.into_iter().filter(|k| !matches!(k, EventKind::ConsoleTail { .. }));
        assert_eq!(told(Level::Quiet, kinds.collect()), "");
    }

    #[test]
    fn timeout_says_what_was_awaited() {
        let message = "waited 120 s for a login prompt on the serial console\nthe image may have no getty there";
        insta::assert_snapshot!(told(Level::Quiet, run(Verdict::Timeout(Phase::Access), Some(message))), @r"
        belljar: the console's last lines:
          | [    1.0] last
        belljar: error: timed out while getting in, after 9.0 s
        belljar: waited 120 s for a login prompt on the serial console
          the image may have no getty there
        belljar: logs: /state/runs/x
        ");
    }
}
