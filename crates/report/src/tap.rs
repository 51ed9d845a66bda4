//! TAP 14, a point for each unit; the cases inside a test are its subtests.

use std::io::{self, Write};

use belljar_model::{
    summary::{RunSummary, UnitState, UnitSummary},
    test_run::SubVerdict,
};

use crate::words::{Outcome, harmless, reason};

/// Most lines of output in a block.
const OUTPUT_LINES: usize = 100;

/// Writes the run as TAP 14.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(run: &RunSummary, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "TAP version 14")?;
    if let Some(started) = &run.started {
        writeln!(out, "# belljar {} run {}", one_line(&started.version), started.run)?;
    }
    if run.units.is_empty() {
        writeln!(out, "1..0 # SKIP no test matched")?;
    } else {
        writeln!(out, "1..{}", run.units.len())?;
    }
    for (number, unit) in (1..).zip(&run.units) {
        point(out, run, number, unit)?;
    }
    if run.is_cut_off() && !run.units.is_empty() {
        writeln!(out, "# the run was cut off")?;
    }
    if let Some(incomplete) = run.incomplete() {
        writeln!(out, "Bail out! {}", one_line(&incomplete))?;
    }
    Ok(())
}

fn point(out: &mut dyn Write, run: &RunSummary, number: usize, unit: &UnitSummary) -> io::Result<()> {
    let outcome = Outcome::of(unit, run);
    let name = description(unit.unit.unit.as_str());
    if let Some(attempt) = unit.telling_attempt().filter(|a| !a.subresults.is_empty()) {
        writeln!(out, "# Subtest: {name}")?;
        writeln!(out, "    1..{}", attempt.subresults.len())?;
        for (n, case) in (1..).zip(&attempt.subresults) {
            let (ok, directive) = match case.result {
                SubVerdict::Pass => ("ok", ""),
                SubVerdict::Skip => ("ok", " # SKIP "),
                SubVerdict::ExpectedFail => ("not ok", " # TODO "),
                SubVerdict::Fail | SubVerdict::Error | SubVerdict::Missing => ("not ok", ""),
            };
            let message = case.message.as_deref().unwrap_or_default();
            let why = if directive.is_empty() { String::new() } else { one_line(message) };
            writeln!(out, "    {}", format!("{ok} {n} - {}{directive}{why}", description(&case.name)).trim_end())?;
            if case.result.is_bad() {
                let mut block = Block::new(out, "      ")?;
                block.text("result", case.result.as_str())?;
                block.lines("message", message)?;
                block.end()?;
            }
        }
    }
    let (ok, skip) = match outcome {
        Outcome::Pass | Outcome::Flaky => ("ok", String::new()),
        Outcome::Skip | Outcome::NotRun => ("ok", format!(" # SKIP {}", one_line(&reason(unit, run)))),
        _ => ("not ok", String::new()),
    };
    writeln!(out, "{ok} {number} - {name}{skip}")?;
    if outcome == Outcome::Pass || !skip.is_empty() {
        return Ok(());
    }
    let mut block = Block::new(out, "  ")?;
    block.text("verdict", outcome.as_str())?;
    block.text("reason", &reason(unit, run))?;
    if let UnitState::Ended(ended) = &unit.state {
        writeln!(block.out, "  duration_ms: {}", ended.millis)?;
        writeln!(block.out, "  attempts: {}", ended.attempts)?;
    }
    block.lines("message", unit.message().unwrap_or_default())?;
    if let Some(attempt) = unit.telling_attempt().filter(|_| outcome.is_bad()) {
        for output in &attempt.outputs {
            block.lines(&output.stream.to_string(), &output.tail)?;
        }
        block.lines("console_tail", &attempt.console.join("\n"))?;
    }
    block.end()
}

struct Block<'a> {
    out: &'a mut dyn Write,
    pad: &'static str,
}

impl<'a> Block<'a> {
    fn new(out: &'a mut dyn Write, pad: &'static str) -> io::Result<Self> {
        writeln!(out, "{pad}---")?;
        Ok(Self { out, pad })
    }

    fn text(&mut self, key: &str, value: &str) -> io::Result<()> {
        writeln!(self.out, "{}{key}: {}", self.pad, quoted(value))
    }

    fn lines(&mut self, key: &str, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "{}{key}:", self.pad)?;
        let skip = text.lines().count().saturating_sub(OUTPUT_LINES);
        for line in text.lines().skip(skip) {
            writeln!(self.out, "{}  - {}", self.pad, quoted(line))?;
        }
        Ok(())
    }

    fn end(self) -> io::Result<()> {
        writeln!(self.out, "{}...", self.pad)
    }
}

/// A string of JSON is one of YAML, if nothing in it is a control character.
fn quoted(text: &str) -> String {
    serde_json::Value::String(harmless(text)).to_string()
}

fn one_line(text: &str) -> String {
    harmless(text.lines().next().unwrap_or_default()).replace('\t', " ")
}

fn description(name: &str) -> String {
    harmless(name).replace(['\n', '\t'], " ").replace('\\', "\\\\").replace('#', "\\#")
}
