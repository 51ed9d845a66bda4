//! One page that holds a whole run: no network, no file beside it.
//!
//! The page is `page.html` with its style and its script put in, and the run as JSON, out of which the script builds what
//! is looked at and no more. Bytes of a guest only ever become the text of an element. A content security policy forbids the rest.

use std::io::{self, Write};

use belljar_model::event::FindingOutcome;
use belljar_model::summary::{AttemptSummary, Note, RunSummary, UnitState, UnitSummary};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::words::{Outcome, describe, duration, harmless, reason, seconds};

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");

/// Writes the run as a page. `run_dir` is where the run's directory is, seen from the page, for the links to files; empty is beside it.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(run: &RunSummary, run_dir: &str, out: &mut dyn Write) -> io::Result<()> {
    // Marks what is ours for the policy; a page without a run has nothing foreign in it.
    let nonce = run.started.as_ref().map_or("belljar".to_owned(), |s| s.run.to_string());
    for part in PAGE.split("{{") {
        let Some((name, text)) = part.split_once("}}") else {
            out.write_all(part.as_bytes())?;
            continue;
        };
        match name {
            "nonce" => out.write_all(escape(&nonce).as_bytes())?,
            "title" => out.write_all(escape(&title(run)).as_bytes())?,
            "style" => out.write_all(STYLE.as_bytes())?,
            "script" => out.write_all(SCRIPT.as_bytes())?,
            "plain" => plain(run, out)?,
            "data" => data(run, run_dir, &mut ScriptSafe(&mut *out))?,
            _ => {}
        }
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn title(run: &RunSummary) -> String {
    let counts = run.counts();
    let state = if run.is_cut_off() {
        "cut off".to_owned()
    } else if counts.bad() > 0 {
        format!("{} failed", counts.bad())
    } else if counts.error > 0 {
        format!("{} could not be judged", counts.error)
    } else if run.incomplete().is_some() {
        "parts missing".to_owned()
    } else if counts.unfinished > 0 {
        "stopped early".to_owned()
    } else {
        "passed".to_owned()
    };
    format!("{state} · {} tests · Belljar", counts.units)
}

/// What is shown where no script runs.
fn plain(run: &RunSummary, out: &mut dyn Write) -> io::Result<()> {
    let counts = run.counts();
    writeln!(out, "<p>{} tests, {} passed, in {}.</p><ul>", counts.units, counts.pass, duration(run.millis()))?;
    for unit in run.units.iter().filter(|u| Outcome::of(u, run).is_bad()).take(1000) {
        let why = reason(unit, run);
        writeln!(out, "<li>{}: {}</li>", escape(unit.unit.unit.as_str()), escape(&why))?;
    }
    writeln!(out, "</ul>")
}

fn data(run: &RunSummary, run_dir: &str, out: &mut dyn Write) -> io::Result<()> {
    let zero = run.first.unwrap_or(Timestamp::UNIX_EPOCH);
    let at = |t: Timestamp| i64::try_from(t.duration_since(zero).as_millis()).unwrap_or(0);
    let started = run.started.as_ref();
    let head = json!({
        "base": run_dir,
        "run": started.map(|s| s.run.to_string()),
        "version": started.map(|s| &s.version),
        "host": started.map(|s| json!({
            "name": harmless(&s.host.name),
            "kernel": harmless(&s.host.kernel),
            "cpus": s.host.cpus,
            "accelerator": harmless(&s.host.accelerator),
        })),
        "profile": started.map(|s| harmless(&s.profile)),
        "command": started.map(|s| harmless(&s.command.join(" "))),
        "partition": started.and_then(|s| s.partition.as_deref()),
        "first": run.first.map(Timestamp::as_millisecond),
        "length": run.last.map_or(0, at),
        "millis": run.millis(),
        "cutOff": run.is_cut_off(),
        "incomplete": run.incomplete().as_deref().map(harmless),
        "exit": run.ended.as_ref().map(|e| e.exit_code),
        "message": run.ended.as_ref().and_then(|e| e.message.as_deref()).map(harmless),
        "stopping": run.stopping.as_ref().map(|s| harmless(&s.reason)),
        "pauses": run.pauses.iter().map(|(from, to)| json!([at(*from), to.map(at)])).collect::<Vec<_>>(),
        "notes": notes(&run.notes, None),
        "setups": run.setups.iter().map(|s| json!({
            "script": harmless(&s.started.script),
            "guest": harmless(&s.started.guest),
            "from": at(s.from),
            "outcome": s.ended.as_ref().map(|e| Outcome::of_verdict(&e.verdict).as_str()),
            "why": s.ended.as_ref().map(|e| harmless(&describe(&e.verdict))),
            "ms": s.ended.as_ref().map(|e| e.millis),
            "tail": s.ended.as_ref().map(|e| harmless(&e.tail)),
            "path": s.ended.as_ref().and_then(|e| e.path.as_deref()),
        })).collect::<Vec<_>>(),
        "guests": run.guests.iter().map(|g| json!({
            "i": g.started.instance,
            "name": harmless(&g.started.guest),
            "slot": g.started.slot,
            "how": harmless(&g.how),
            "from": at(g.from),
            "ready": g.ready.map(at),
            "to": g.to.map(at),
            "why": g.message.as_deref().map(harmless),
            "memory": g.peak_memory,
        })).collect::<Vec<_>>(),
    });
    write!(out, "{{\"head\":")?;
    serde_json::to_writer(&mut *out, &head)?;
    write!(out, ",\"units\":[")?;
    for (n, unit) in run.units.iter().enumerate() {
        if n > 0 {
            writeln!(out, ",")?;
        }
        serde_json::to_writer(&mut *out, &of_unit(unit, run, &at))?;
    }
    write!(out, "]}}")
}

fn of_unit(unit: &UnitSummary, run: &RunSummary, at: &dyn Fn(Timestamp) -> i64) -> Value {
    let ms = match &unit.state {
        UnitState::Ended(e) => Some(e.millis),
        _ => None,
    };
    let telling = unit.telling_attempt().map(|t| (t.repeat, t.attempt));
    json!({
        "suite": harmless(&unit.unit.suite),
        "test": harmless(&unit.unit.test),
        "guest": harmless(&unit.unit.guest),
        "tags": unit.unit.tags.iter().map(|t| harmless(t)).collect::<Vec<_>>(),
        "file": unit.unit.file.as_deref().map(harmless),
        "outcome": Outcome::of(unit, run).as_str(),
        "why": harmless(&reason(unit, run)),
        "message": unit.message().map(harmless),
        "ms": ms,
        "dropped": unit.attempts_dropped,
        "telling": unit.attempts.iter().position(|a| Some((a.repeat, a.attempt)) == telling),
        "attempts": unit.attempts.iter().map(|a| of_attempt(a, at)).collect::<Vec<_>>(),
    })
}

fn of_attempt(a: &AttemptSummary, at: &dyn Fn(Timestamp) -> i64) -> Value {
    json!({
        "repeat": a.repeat,
        "attempt": a.attempt,
        "from": at(a.started),
        "to": a.ended_at.map(at),
        "guest": a.instance,
        "outcome": a.ended.as_ref().map_or("unfinished", |e| Outcome::of_verdict(&e.verdict).as_str()),
        "why": a.ended.as_ref().map(|e| harmless(&describe(&e.verdict))),
        "message": a.ended.as_ref().and_then(|e| e.message.as_deref()).map(harmless),
        "ms": a.ended.as_ref().map(|e| e.millis),
        "slow": a.slow,
        "phases": a.phases.iter().map(|(p, t)| json!([p.to_string(), at(*t)])).collect::<Vec<_>>(),
        "outputs": a.outputs.iter().map(|o| json!({
            "stream": o.stream.to_string(),
            "bytes": o.bytes,
            "cut": o.truncated,
            "path": o.path,
            "tail": harmless(&o.tail),
            "kept": o.tail.len(),
        })).collect::<Vec<_>>(),
        "cases": a.subresults.iter().map(|s| json!([
            s.result.as_str(), harmless(&s.name), s.message.as_deref().map(harmless), s.millis,
        ])).collect::<Vec<_>>(),
        "caseCounts": a.sub_counts.iter().map(|(r, n)| (r.as_str(), *n)).collect::<std::collections::BTreeMap<_, _>>(),
        "notes": notes(&a.notes, Some(a.started)),
        "console": a.console.iter().map(|l| harmless(l)).collect::<Vec<_>>(),
        "dir": a.files.as_ref().map(|f| &f.dir),
        "files": a.files.as_ref().map_or_else(Vec::new, |f| {
            f.files.iter().map(|f| json!([f.path, f.bytes])).collect()
        }),
        "more": a.files.as_ref().map_or(0, |f| f.more),
    })
}

/// Of a try that began then, or of the run.
fn notes(notes: &[Note], began: Option<Timestamp>) -> Vec<Value> {
    let after = |at: Timestamp| {
        let millis = began.and_then(|began| u64::try_from(at.duration_since(began).as_millis()).ok());
        millis.map(|millis| format!("after {} s", seconds(millis)))
    };
    notes
        .iter()
        .map(|note| match note {
            Note::Choice { what, chosen, why } => {
                json!(["choice", format!("{}: {}", harmless(what), harmless(chosen)), harmless(why)])
            }
            Note::Warning(text) => json!(["note", harmless(text), null]),
            Note::Mark { text, at } => json!(["mark", harmless(text), after(*at)]),
            Note::Control { text, at } => json!(["control", harmless(text), after(*at)]),
            Note::Finding { guard, text, outcome } => {
                let comes_of_it = match outcome {
                    FindingOutcome::Fail => "fails the test",
                    FindingOutcome::Warn => "warns",
                    FindingOutcome::Allowed => "allowed",
                };
                json!([format!("guard {}", harmless(guard)), harmless(text), comes_of_it])
            }
            Note::Alarm { name, line, fatal } => {
                json!([if *fatal { "fatal" } else { "alarm" }, harmless(name), harmless(line)])
            }
        })
        .collect()
}

/// Keeps JSON from ending the element that holds it: in JSON these characters stand in strings only.
struct ScriptSafe<'a>(&'a mut dyn Write);

impl Write for ScriptSafe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|b| matches!(b, b'<' | b'>' | b'&')) {
            self.0.write_all(&rest[..at])?;
            write!(self.0, "\\u{:04x}", rest[at])?;
            rest = &rest[at + 1..];
        }
        self.0.write_all(rest)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in harmless(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}
