//! JUnit XML as Jenkins, GitLab and GitHub's actions read it.
//!
//! Written by hand and not with `quick-junit`: Jenkins' xUnit plugin checks files against a schema without the attributes `disabled`
//! and `uuid` that it always writes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use belljar_model::{
    summary::{AttemptSummary, RunSummary, UnitSummary},
    test_run::{Stream, SubVerdict, Subresult},
};

use crate::words::{Outcome, describe, reason, seconds};

/// What the document is to hold.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Before the paths of attachments: where the run's directory is, as Jenkins finds it. Without it there are no attachments.
    pub run_dir: Option<String>,
    /// Leave out the cases inside tests.
    pub without_subresults: bool,
}

/// Writes the run as JUnit XML. A test suite is a suite on a guest; the cases inside a test are a suite of their own.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(run: &RunSummary, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let mut groups: BTreeMap<usize, Vec<&UnitSummary>> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    let mut places: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for unit in &run.units {
        let name = format!("{}@{}", unit.unit.suite, unit.unit.guest);
        let place = *places.entry(name.clone()).or_insert_with(|| {
            names.push(name);
            names.len() - 1
        });
        groups.entry(place).or_default().push(unit);
    }
    let mut total = Totals::default();
    for unit in &run.units {
        total.add_unit(unit, run);
        if let Some(attempt) = with_cases(unit, options) {
            attempt.subresults.iter().for_each(|s| total.add_case(s));
        }
    }
    let incomplete = run.incomplete();
    if incomplete.is_some() {
        total.tests += 1;
        total.errors += 1;
    }
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    let name = run.started.as_ref().map_or("belljar".to_owned(), |s| format!("belljar {}", s.run));
    write!(out, "<testsuites")?;
    attribute(out, "name", &name)?;
    write!(out, r#" tests="{}" failures="{}" errors="{}""#, total.tests, total.failures, total.errors)?;
    writeln!(out, r#" time="{}">"#, seconds(run.millis()))?;
    for (place, units) in &groups {
        suite(out, run, &names[*place], units, options)?;
        for unit in units {
            if let Some(attempt) = with_cases(unit, options) {
                cases(out, unit, attempt)?;
            }
        }
    }
    if let Some(incomplete) = incomplete {
        // A reader of JUnit judges by test cases alone.
        writeln!(out, r#"  <testsuite name="belljar" tests="1" failures="0" errors="1" skipped="0" time="0">"#)?;
        write!(out, r#"    <testcase name="parts of the run" classname="belljar" time="0"><error"#)?;
        attribute(out, "message", &incomplete)?;
        writeln!(out, "/></testcase>\n  </testsuite>")?;
    }
    writeln!(out, "</testsuites>")
}

#[derive(Default)]
struct Totals {
    tests: u64,
    failures: u64,
    errors: u64,
    skipped: u64,
    millis: u64,
}

impl Totals {
    fn add_unit(&mut self, unit: &UnitSummary, run: &RunSummary) {
        self.tests += 1;
        self.millis += millis(unit);
        match Outcome::of(unit, run) {
            Outcome::Fail | Outcome::Timeout | Outcome::Crash => self.failures += 1,
            Outcome::Error | Outcome::Unfinished => self.errors += 1,
            Outcome::Skip | Outcome::NotRun => self.skipped += 1,
            Outcome::Pass | Outcome::Flaky => {}
        }
    }

    fn add_case(&mut self, case: &Subresult) {
        self.tests += 1;
        self.millis += case.millis.unwrap_or(0);
        match case.result {
            SubVerdict::Fail => self.failures += 1,
            SubVerdict::Error | SubVerdict::Missing => self.errors += 1,
            SubVerdict::Skip | SubVerdict::ExpectedFail => self.skipped += 1,
            SubVerdict::Pass => {}
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(
            out,
            r#" tests="{}" failures="{}" errors="{}" skipped="{}" time="{}""#,
            self.tests,
            self.failures,
            self.errors,
            self.skipped,
            seconds(self.millis)
        )
    }
}

fn millis(unit: &UnitSummary) -> u64 {
    match &unit.state {
        belljar_model::summary::UnitState::Ended(e) => e.millis,
        _ => 0,
    }
}

fn with_cases<'a>(unit: &'a UnitSummary, options: &Options) -> Option<&'a AttemptSummary> {
    unit.telling_attempt().filter(|a| !a.subresults.is_empty() && !options.without_subresults)
}

fn suite(
    out: &mut dyn Write,
    run: &RunSummary,
    name: &str,
    units: &[&UnitSummary],
    options: &Options,
) -> io::Result<()> {
    let mut totals = Totals::default();
    units.iter().for_each(|u| totals.add_unit(u, run));
    write!(out, "  <testsuite")?;
    attribute(out, "name", name)?;
    totals.write(out)?;
    let first = units.iter().filter_map(|u| u.attempts.first()).map(|a| a.started).min().or(run.first);
    if let Some(at) = first {
        attribute(out, "timestamp", &at.strftime("%Y-%m-%dT%H:%M:%S").to_string())?;
    }
    if let Some(started) = &run.started {
        attribute(out, "hostname", &started.host.name)?;
    }
    writeln!(out, ">")?;
    properties(out, run, units)?;
    for unit in units {
        test(out, run, name, unit, options)?;
    }
    writeln!(out, "  </testsuite>")
}

fn properties(out: &mut dyn Write, run: &RunSummary, units: &[&UnitSummary]) -> io::Result<()> {
    let mut all: Vec<(&str, String)> = Vec::new();
    if let Some(unit) = units.first() {
        all.push(("belljar.suite", unit.unit.suite.clone()));
        all.push(("belljar.guest", unit.unit.guest.clone()));
    }
    if let Some(started) = &run.started {
        all.push(("belljar.run", started.run.to_string()));
        all.push(("belljar.version", started.version.clone()));
        all.push(("belljar.profile", started.profile.clone()));
        all.push(("belljar.command", started.command.join(" ")));
        all.push(("belljar.host.kernel", started.host.kernel.clone()));
        all.push(("belljar.accelerator", started.host.accelerator.clone()));
        if let Some(partition) = &started.partition {
            all.push(("belljar.partition", partition.clone()));
        }
    }
    writeln!(out, "    <properties>")?;
    for (name, value) in all.iter().filter(|(_, v)| !v.is_empty()) {
        write!(out, "      <property")?;
        attribute(out, "name", name)?;
        attribute(out, "value", value)?;
        writeln!(out, "/>")?;
    }
    writeln!(out, "    </properties>")
}

fn test(out: &mut dyn Write, run: &RunSummary, class: &str, unit: &UnitSummary, options: &Options) -> io::Result<()> {
    write!(out, "    <testcase")?;
    attribute(out, "name", &unit.unit.test)?;
    attribute(out, "classname", class)?;
    writeln!(out, r#" time="{}">"#, seconds(millis(unit)))?;
    let outcome = Outcome::of(unit, run);
    let telling = unit.telling_attempt();
    let mut message = reason(unit, run);
    if let Some(more) = unit.message() {
        message = format!("{message}: {}", more.lines().next().unwrap_or_default());
    }
    match outcome {
        Outcome::Pass | Outcome::Flaky => {}
        Outcome::Skip | Outcome::NotRun => {
            write!(out, "      <skipped")?;
            attribute(out, "message", &message)?;
            writeln!(out, "/>")?;
        }
        Outcome::Fail | Outcome::Timeout | Outcome::Crash | Outcome::Error | Outcome::Unfinished => {
            let tag = if matches!(outcome, Outcome::Error | Outcome::Unfinished) { "error" } else { "failure" };
            write!(out, "      <{tag}")?;
            attribute(out, "type", outcome.as_str())?;
            attribute(out, "message", &message)?;
            write!(out, ">")?;
            text(out, &explanation(unit, telling))?;
            writeln!(out, "</{tag}>")?;
        }
    }
    for attempt in &unit.attempts {
        if telling.is_none_or(|t| (t.repeat, t.attempt) != (attempt.repeat, attempt.attempt)) {
            rerun(out, outcome, attempt)?;
        }
    }
    if let Some(attempt) = telling {
        output(out, "      ", attempt, Some(options))?;
    }
    writeln!(out, "    </testcase>")
}

fn explanation(unit: &UnitSummary, attempt: Option<&AttemptSummary>) -> String {
    let mut lines = vec![reason_line(unit)];
    lines.extend(unit.message().map(str::to_owned));
    if let Some(attempt) = attempt {
        for case in attempt.subresults.iter().filter(|c| c.result.is_bad()).take(50) {
            let why = case.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
            lines.push(format!("{}: {}{why}", case.result, case.name));
        }
        if !attempt.console.is_empty() {
            lines.push("the console's last lines:".to_owned());
            lines.extend(attempt.console.iter().map(|l| format!("  | {l}")));
        }
    }
    lines.retain(|l| !l.is_empty());
    lines.join("\n")
}

fn reason_line(unit: &UnitSummary) -> String {
    unit.verdict().map(|v| describe(&v)).unwrap_or_default()
}

fn rerun(out: &mut dyn Write, outcome: Outcome, attempt: &AttemptSummary) -> io::Result<()> {
    let Some(ended) = &attempt.ended else { return Ok(()) };
    let of = Outcome::of_verdict(&ended.verdict);
    if !of.is_bad() {
        return Ok(());
    }
    let tag = match (outcome, of) {
        (Outcome::Pass | Outcome::Flaky | Outcome::Skip, Outcome::Error) => "flakyError",
        (Outcome::Pass | Outcome::Flaky | Outcome::Skip, _) => "flakyFailure",
        (_, Outcome::Error) => "rerunError",
        _ => "rerunFailure",
    };
    write!(out, "      <{tag}")?;
    let said = describe(&ended.verdict);
    attribute(out, "message", &format!("try {}: {said}", attempt.attempt))?;
    attribute(out, "type", of.as_str())?;
    writeln!(out, ">")?;
    write!(out, "        <stackTrace>")?;
    text(out, ended.message.as_deref().unwrap_or(&said))?;
    writeln!(out, "</stackTrace>")?;
    output(out, "        ", attempt, None)?;
    writeln!(out, "      </{tag}>")
}

fn output(out: &mut dyn Write, pad: &str, attempt: &AttemptSummary, options: Option<&Options>) -> io::Result<()> {
    let tail = |wanted: &[Stream]| {
        let mut all = String::new();
        for o in attempt.outputs.iter().filter(|o| wanted.contains(&o.stream)) {
            if o.bytes > o.tail.len() as u64 && !o.tail.is_empty() {
                all.push_str(&format!("[the last {} of {} bytes]\n", o.tail.len(), o.bytes));
            }
            all.push_str(&o.tail);
        }
        all
    };
    let mut attached = String::new();
    if let Some(dir) = options.and_then(|o| o.run_dir.as_deref()) {
        for path in attachments(attempt) {
            attached.push_str(&format!("\n[[ATTACHMENT|{dir}/{path}]]"));
        }
    }
    let stdout = tail(&[Stream::Stdout, Stream::Combined]);
    for (tag, all, ours) in [("system-out", stdout, attached), ("system-err", tail(&[Stream::Stderr]), String::new())] {
        if !all.is_empty() || !ours.is_empty() {
            write!(out, "{pad}<{tag}>")?;
            text(out, &all)?;
            escape(out, &ours, false)?;
            writeln!(out, "</{tag}>")?;
        }
    }
    Ok(())
}

/// Takes the meaning from lines by which a test's own output would have Jenkins attach a file.
fn unattached(text: &str) -> String {
    text.replace("[[ATTACHMENT|", "[\u{200b}[ATTACHMENT|")
}

fn attachments(attempt: &AttemptSummary) -> Vec<String> {
    let logs = attempt.outputs.iter().filter_map(|o| o.path.clone());
    let left = attempt.files.iter().flat_map(|f| f.files.iter().map(|file| format!("{}/{}", f.dir, file.path)));
    let plain = |p: &String| {
        !p.contains("]]")
            && !p.chars().any(char::is_control)
            && p.split('/').all(|part| !part.is_empty() && part != "..")
    };
    logs.chain(left).filter(plain).collect()
}

fn cases(out: &mut dyn Write, unit: &UnitSummary, attempt: &AttemptSummary) -> io::Result<()> {
    let mut totals = Totals::default();
    attempt.subresults.iter().for_each(|s| totals.add_case(s));
    let name = unit.unit.unit.as_str();
    write!(out, "  <testsuite")?;
    attribute(out, "name", name)?;
    totals.write(out)?;
    writeln!(out, ">")?;
    for case in &attempt.subresults {
        write!(out, "    <testcase")?;
        attribute(out, "name", &case.name)?;
        attribute(out, "classname", name)?;
        write!(out, r#" time="{}""#, seconds(case.millis.unwrap_or(0)))?;
        let message = case.message.as_deref().unwrap_or_default();
        let tag = match case.result {
            SubVerdict::Pass => {
                writeln!(out, "/>")?;
                continue;
            }
            SubVerdict::Fail => "failure",
            SubVerdict::Error | SubVerdict::Missing => "error",
            SubVerdict::Skip | SubVerdict::ExpectedFail => "skipped",
        };
        write!(out, "><{tag}")?;
        attribute(out, "type", case.result.as_str())?;
        attribute(out, "message", message.lines().next().unwrap_or_default())?;
        write!(out, ">")?;
        text(out, message)?;
        writeln!(out, "</{tag}></testcase>")?;
    }
    writeln!(out, "  </testsuite>")
}

fn attribute(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    write!(out, " {name}=\"")?;
    escape(out, &unattached(value), true)?;
    write!(out, "\"")
}

fn text(out: &mut dyn Write, text: &str) -> io::Result<()> {
    escape(out, &unattached(text), false)
}

/// XML 1.0 has no way at all to write some characters; they are replaced.
fn escape(out: &mut dyn Write, text: &str, attribute: bool) -> io::Result<()> {
    let mut buffer = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => buffer.push_str("&amp;"),
            '<' => buffer.push_str("&lt;"),
            '>' => buffer.push_str("&gt;"),
            '"' if attribute => buffer.push_str("&quot;"),
            '\n' if attribute => buffer.push_str("&#10;"),
            '\t' if attribute => buffer.push_str("&#9;"),
            '\r' => buffer.push_str("&#13;"),
            '\n' | '\t' => buffer.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => buffer.push('\u{fffd}'),
            c => buffer.push(c),
        }
    }
    out.write_all(buffer.as_bytes())
}
