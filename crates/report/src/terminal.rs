//! What a person reads of `belljar test`: live lines on a terminal, plain lines elsewhere, and an account at the end.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Write},
    time::Duration,
};

use belljar_model::{
    AttemptId, Event, EventKind, UnitId, Verdict,
    event::{control_text, finding_text, takes_long},
    summary::{Limits, RunSummary, UnitSummary},
    test_run::{AttemptEnded, Counts, Unit, UnitEnded},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    Reporter,
    run::Level,
    words::{Outcome, describe, duration, harmless, reason, seconds},
};

/// Lines of output shown of a failure.
const TAIL_LINES: usize = 30;
/// Live lines for running tests at most.
const LIVE_LINES: usize = 12;
/// How often the live lines' clocks move.
const TICK: Duration = Duration::from_millis(200);
/// Width of the word in front, as nextest has it.
const HEAD: usize = 12;

/// How it is said.
pub struct Options {
    /// How much: [`Level::Quiet`] tells failures and the account, [`Level::Verbose`] also choices and skipped tests.
    pub level: Level,
    /// Whether colours are wanted.
    pub color: bool,
    /// Where live lines are drawn; `None` for plain output.
    pub live: Option<ProgressDrawTarget>,
    /// Where the run's directory is.
    pub run_dir: String,
    /// The command that runs a unit again alone.
    pub rerun: Box<dyn Fn(&Unit) -> String>,
    /// How long each unit took before, in milliseconds, for the time that is left.
    pub history: HashMap<UnitId, u64>,
}

/// Tells a person how a run of `belljar test` goes.
pub struct TestReporter<W> {
    out: W,
    options: Options,
    run: RunSummary,
    counts: Counts,
    jobs: u64,
    live: Option<Live>,
    /// What is said once, and was.
    told: HashSet<String>,
}

struct Live {
    all: MultiProgress,
    total: ProgressBar,
    units: Vec<(AttemptId, ProgressBar)>,
    /// Milliseconds that the units not yet ended will take, as far as history tells.
    left: u64,
}

impl<W: Write> TestReporter<W> {
    /// Writes to `out`; live lines, if there are any, must be drawn on the same terminal.
    pub fn new(out: W, mut options: Options) -> Self {
        // Only failures are told once more at the end.
        let limits = Limits {
            passing_tail: 0,
            attempts: 4,
            of_passing: false,
            subresults: 100,
            guests: 0,
            notes: 0,
            ..Limits::default()
        };
        let live = options.live.take().map(Live::new);
        Self {
            out,
            options,
            run: RunSummary::new(limits),
            counts: Counts::default(),
            jobs: 1,
            live,
            told: HashSet::new(),
        }
    }

    fn on_end_of_attempt(&mut self, ended: &AttemptEnded) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.remove(&ended.id);
        }
        let outcome = Outcome::of_verdict(&ended.verdict);
        if let Some(after) = ended.retry_in {
            let head = format!("TRY {} {}", ended.id.attempt, word(outcome));
            let wait = if after >= 1000 { format!(", again in {}", duration(after)) } else { String::new() };
            let said = match (&ended.verdict, &ended.message) {
                // Where a guest died, the message is only a hint.
                (Verdict::Crash(_), _) | (_, None) => describe(&ended.verdict),
                (_, Some(message)) => message.clone(),
            };
            let said = said.lines().next().unwrap_or_default();
            let line = format!("{}: {said}{wait}", self.timed(ended.millis, &ended.id.unit));
            self.line(&head, outcome, &line)?;
        }
        Ok(())
    }

    fn on_end_of_unit(&mut self, ended: &UnitEnded) -> io::Result<()> {
        self.counts.add(&ended.verdict, ended.flaky);
        if let Some(live) = &mut self.live {
            let expected = self.options.history.get(&ended.unit).copied().unwrap_or(0);
            live.left = live.left.saturating_sub(expected);
        }
        self.refresh();
        let outcome = if ended.flaky { Outcome::Flaky } else { Outcome::of_verdict(&ended.verdict) };
        let quiet = matches!(outcome, Outcome::Pass | Outcome::Skip | Outcome::Flaky);
        if quiet && self.options.level == Level::Quiet {
            return Ok(());
        }
        let head =
            if outcome == Outcome::Flaky { format!("FLAKY {}", ended.attempts) } else { word(outcome).to_owned() };
        let mut line = self.timed(ended.millis, &ended.unit);
        match &ended.verdict {
            Verdict::Pass => {}
            Verdict::Fail(_) if ended.message.is_some() => {
                line = format!("{line}: {}", ended.message.as_deref().unwrap_or_default());
            }
            verdict => line = format!("{line}: {}", describe(verdict)),
        }
        let line = line.lines().next().unwrap_or_default().to_owned();
        self.line(&head, outcome, &line)
    }

    fn timed(&self, millis: u64, unit: &UnitId) -> String {
        format!("[{:>9}s] {unit}", seconds(millis))
    }

    fn line(&mut self, head: &str, outcome: Outcome, rest: &str) -> io::Result<()> {
        let head = self.paint(color(outcome), &format!("{head:>HEAD$}"));
        self.say(&format!("{head} {}", harmless(rest)))
    }

    fn note(&mut self, head: &str, text: &str) -> io::Result<()> {
        let head = self.paint("33", &format!("{head:>HEAD$}"));
        self.say(&format!("{head} {}", harmless(text)))
    }

    /// Every line that is written comes through here, and only what this module made of it has escape sequences.
    fn say(&mut self, text: &str) -> io::Result<()> {
        let out = &mut self.out;
        match &self.live {
            Some(live) => live.all.suspend(|| writeln!(out, "{text}")),
            None => writeln!(out, "{text}"),
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.options.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn refresh(&mut self) {
        let Some(live) = &self.live else { return };
        let units = self.run.units.len() as u64;
        let done = self.counts.ended();
        let mut said = tally(&self.counts, "");
        let left = live.left / self.jobs.max(1);
        if left > 0 && done < units {
            said = format!("{said} · about {} left", duration(left));
        }
        live.total.set_length(units);
        live.total.set_position(done);
        live.total.set_message(said);
    }

    fn account(&mut self) -> io::Result<()> {
        let run = std::mem::take(&mut self.run);
        let counts = run.counts();
        let rule = self.paint("2", &"─".repeat(HEAD));
        self.say(&rule)?;
        for unit in &run.units {
            if Outcome::of(unit, &run).is_bad() {
                self.failure(unit, &run)?;
            }
        }
        for setup in &run.setups {
            if let Some(ended) = setup.ended.as_ref().filter(|e| !matches!(e.verdict, Verdict::Pass | Verdict::Skip(_)))
            {
                let said = format!("set-up `{}` on {}: {}", ended.script, ended.guest, describe(&ended.verdict));
                self.line("SET-UP", Outcome::of_verdict(&ended.verdict), &said)?;
                self.block("output", &ended.tail)?;
            }
        }
        let all_well =
            counts.bad() + counts.error + counts.unfinished == 0 && counts.units > 0 && run.incomplete().is_none();
        let code = if all_well { "1;32" } else { "1;31" };
        let head = self.paint(code, &format!("{:>HEAD$}", "Summary"));
        let tests = if counts.units == 1 { "test" } else { "tests" };
        let took = seconds(run.millis());
        let unfinished = if run.is_cut_off() { "did not end" } else { "not run" };
        let tally = tally(&counts, unfinished);
        self.say(&format!("{head} [{took:>9}s] {} {tests}: {tally}", counts.units))?;
        if let Some(message) = run.ended.as_ref().and_then(|e| e.message.clone()) {
            self.note("note", &message)?;
        }
        if let Some(incomplete) = run.incomplete() {
            self.note("not whole", &incomplete)?;
        }
        if run.is_cut_off() {
            self.note("cut off", "the event log lacks its end")?;
        }
        if !all_well || self.options.level >= Level::Verbose {
            let dir = harmless(&self.options.run_dir);
            self.say(&format!("{:>HEAD$} {dir}", "files"))?;
        }
        self.out.flush()
    }

    fn failure(&mut self, unit: &UnitSummary, run: &RunSummary) -> io::Result<()> {
        let outcome = Outcome::of(unit, run);
        let took = match &unit.state {
            belljar_model::summary::UnitState::Ended(e) => e.millis,
            _ => 0,
        };
        let why = reason(unit, run);
        let line = format!("{}: {}", self.timed(took, &unit.unit.unit), why.lines().next().unwrap_or_default());
        self.line(word(outcome), outcome, &line)?;
        let more = why.lines().skip(1).collect::<Vec<_>>().join("\n");
        self.indented(&more)?;
        if let Some(message) = unit.message().filter(|m| *m != why) {
            let message = message.to_owned();
            self.indented(&message)?;
        }
        let mut files = None;
        if let Some(attempt) = unit.telling_attempt() {
            let bad: Vec<String> = attempt
                .subresults
                .iter()
                .filter(|s| s.result.is_bad())
                .take(20)
                .map(|s| {
                    let why = s.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
                    if why.is_empty() {
                        format!("{}: {}", s.result, s.name)
                    } else {
                        format!("{}: {}: {why}", s.result, s.name)
                    }
                })
                .collect();
            self.indented(&bad.join("\n"))?;
            for output in &attempt.outputs {
                self.block(&output.stream.to_string(), &output.tail)?;
            }
            if outcome != Outcome::Fail {
                self.block("console", &attempt.console.join("\n"))?;
            }
            let ended = attempt.ended.as_ref().and_then(|e| e.dir.clone());
            let beside = || {
                let path = attempt.outputs.iter().find_map(|o| o.path.as_deref())?;
                Some(path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned())
            };
            files = ended.or_else(beside);
        }
        if let Some(dir) = files {
            let place = format!("{}/{dir}", self.options.run_dir);
            self.labelled("files", &place)?;
        }
        let again = (self.options.rerun)(&unit.unit);
        self.labelled("again", &again)?;
        self.say("")
    }

    fn labelled(&mut self, label: &str, text: &str) -> io::Result<()> {
        let label = self.paint("2", &format!("{label}:"));
        self.say(&format!("{:HEAD$} {label} {}", "", harmless(text)))
    }

    fn indented(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            self.say(format!("{:HEAD$} {}", "", harmless(line)).trim_end())?;
        }
        Ok(())
    }

    fn block(&mut self, name: &str, text: &str) -> io::Result<()> {
        let text = text.trim_end();
        if text.is_empty() {
            return Ok(());
        }
        let count = text.lines().count();
        let title =
            if count > TAIL_LINES { format!("{name}, the last {TAIL_LINES} lines:") } else { format!("{name}:") };
        let title = self.paint("2", &title);
        self.say(&format!("{:HEAD$} {title}", ""))?;
        for line in text.lines().skip(count.saturating_sub(TAIL_LINES)) {
            let bar = self.paint("2", "│");
            self.say(format!("{:HEAD$} {bar} {}", "", harmless(line)).trim_end())?;
        }
        Ok(())
    }

    fn on_plan(&mut self, unit: &UnitId) {
        if let Some(live) = &mut self.live {
            live.left += self.options.history.get(unit).copied().unwrap_or(0);
        }
    }

    fn show(&mut self, event: &Event) -> io::Result<()> {
        let level = self.options.level;
        match &event.kind {
            EventKind::TestRunStarted(e) => {
                self.jobs = e.jobs.unwrap_or(1).into();
                if level >= Level::Verbose {
                    let said = format!("{} on {} ({} CPUs, profile {})", e.run, e.host.name, e.host.cpus, e.profile);
                    self.note("run", &said)?;
                }
            }
            EventKind::UnitPlanned(unit) => self.on_plan(&unit.unit),
            EventKind::UnitSkipped(e) => {
                self.counts.skip += 1;
                if level >= Level::Verbose {
                    self.line("SKIP", Outcome::Skip, &format!("{:12} {}: {}", "", e.unit.unit, e.reason))?;
                }
            }
            EventKind::AttemptStarted(e) => {
                if let Some(live) = &mut self.live {
                    live.add(&e.id);
                }
                self.refresh();
            }
            EventKind::Phase { phase } => {
                if let (Some(live), Some(scope)) = (&mut self.live, &event.scope) {
                    live.say(&scope.attempt, &phase.to_string());
                }
            }
            EventKind::Choice { what, chosen, why } if level >= Level::Verbose => {
                self.note("choice", &of_unit(event, &format!("{what}: {chosen} ({why})")))?;
            }
            // Once: all that need it wait for the same.
            EventKind::Choice { what, chosen, why }
                if level == Level::Normal
                    && event.scope.is_some()
                    && takes_long(what, chosen)
                    && self.told.insert(why.clone()) =>
            {
                self.note(what, &format!("{chosen}: {why}"))?;
            }
            EventKind::Warning { message } if level >= Level::Normal => {
                self.note("note", &of_unit(event, message))?;
            }
            EventKind::Mark { text } if level >= Level::Verbose => {
                self.note("mark", &of_unit(event, text))?;
            }
            EventKind::Control { device, order, outcome, refused } if level >= Level::Verbose => {
                self.note("control", &of_unit(event, &control_text(device, order, outcome, *refused)))?;
            }
            EventKind::Alarm { name, line, ordered, .. }
                if level >= Level::of_alarm(*ordered) && event.scope.is_some() =>
            {
                self.note("alarm", &of_unit(event, &format!("{name}: {line}")))?;
            }
            EventKind::Finding { guard, text, outcome, reason } if level >= Level::of_finding(*outcome) => {
                self.note(guard, &of_unit(event, &finding_text(text, reason.as_deref())))?;
            }
            EventKind::UnitSlow(e) if level >= Level::Normal => {
                let line = format!("[> {:>7}s] {}", seconds(e.millis), e.id.unit);
                self.note("SLOW", &line)?;
            }
            EventKind::AttemptEnded(e) => self.on_end_of_attempt(e)?,
            EventKind::UnitEnded(e) => self.on_end_of_unit(e)?,
            EventKind::SetupStarted(e) if level >= Level::Verbose => {
                self.note("set-up", &format!("`{}` on {}", e.script, e.guest))?;
            }
            EventKind::Paused => {
                if let Some(live) = &mut self.live {
                    live.hide();
                }
            }
            EventKind::Resumed => {
                if let Some(live) = &mut self.live {
                    live.resume();
                }
            }
            EventKind::Stopping(e) => {
                let running = if e.running > 0 { format!(" ({} still running)", e.running) } else { String::new() };
                self.note("stopping", &format!("{}{running}", e.reason))?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl<W: Write> Reporter for TestReporter<W> {
    fn on_event(&mut self, event: &Event) -> io::Result<()> {
        self.run.apply(event);
        self.show(event)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if let Some(live) = self.live.take() {
            live.end();
        }
        self.account()
    }
}

impl Live {
    fn new(target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let total = all.add(ProgressBar::new(0));
        total.set_style(style("{elapsed:>12} [{bar:24}] {pos}/{len} {wide_msg}").progress_chars("━╸ "));
        total.enable_steady_tick(TICK);
        Self { all, total, units: Vec::new(), left: 0 }
    }

    fn add(&mut self, id: &AttemptId) {
        // What does not fit on the screen runs unseen.
        if self.units.len() >= LIVE_LINES {
            return;
        }
        let bar = self.all.insert_before(&self.total, ProgressBar::new_spinner());
        bar.set_style(style("{elapsed:>12} {wide_msg}"));
        bar.enable_steady_tick(TICK);
        self.units.push((id.clone(), bar));
        self.say(id, "");
    }

    fn say(&self, id: &AttemptId, phase: &str) {
        if let Some((_, bar)) = self.units.iter().find(|(i, _)| i == id) {
            let again = if id.attempt > 1 { format!(" (try {})", id.attempt) } else { String::new() };
            let phase = if phase.is_empty() { String::new() } else { format!(" · {phase}") };
            bar.set_message(harmless(&format!("{}{again}{phase}", id.unit)));
        }
    }

    fn remove(&mut self, id: &AttemptId) {
        if let Some(at) = self.units.iter().position(|(i, _)| i == id) {
            let (_, bar) = self.units.remove(at);
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }

    /// Leaves the terminal to whoever stopped us; the clocks stand.
    fn hide(&mut self) {
        for bar in self.units.iter().map(|(_, b)| b).chain([&self.total]) {
            bar.disable_steady_tick();
        }
        let _ = self.all.clear();
    }

    fn resume(&mut self) {
        for bar in self.units.iter().map(|(_, b)| b).chain([&self.total]) {
            bar.enable_steady_tick(TICK);
        }
    }

    fn end(self) {
        for (_, bar) in &self.units {
            bar.finish_and_clear();
        }
        self.total.finish_and_clear();
        let _ = self.all.clear();
    }
}

/// Names the unit that it was said of, if it was one.
fn of_unit(event: &Event, said: &str) -> String {
    match &event.scope {
        Some(scope) => format!("{}: {said}", scope.attempt.unit),
        None => said.to_owned(),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "PASS",
        Outcome::Flaky => "FLAKY",
        Outcome::Fail => "FAIL",
        Outcome::Timeout => "TIMEOUT",
        Outcome::Crash => "CRASH",
        Outcome::Error => "ERROR",
        Outcome::Skip => "SKIP",
        Outcome::NotRun => "NOT RUN",
        Outcome::Unfinished => "UNFINISHED",
    }
}

fn color(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "1;32",
        Outcome::Flaky | Outcome::Skip | Outcome::NotRun => "1;33",
        Outcome::Error => "1;35",
        Outcome::Fail | Outcome::Timeout | Outcome::Crash | Outcome::Unfinished => "1;31",
    }
}

/// `3 passed (1 flaky), 1 failed, 2 skipped`. `unfinished` says what became of those without an end.
fn tally(counts: &Counts, unfinished: &str) -> String {
    let flaky = if counts.flaky > 0 { format!(" ({} flaky)", counts.flaky) } else { String::new() };
    let mut parts = vec![format!("{} passed{flaky}", counts.pass)];
    let all = [
        (counts.fail, "failed"),
        (counts.timeout, "timed out"),
        (counts.crash, "crashed"),
        (counts.error, "could not be judged"),
        (counts.skip, "skipped"),
        (counts.unfinished, unfinished),
    ];
    parts.extend(all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    parts.join(", ")
}
