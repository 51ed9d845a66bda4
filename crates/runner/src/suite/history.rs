//! What is remembered from run to run: how long each unit took, and which did not pass.
//!
//! A run is noted when it begins. If it was cut off, the next one reads its event log, so that nothing that was seen is
//! forgotten; units that had not ended count as not passed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, BufReader, Read as _, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_model::{
    RunSummary, Verdict,
    log::Line,
    read_log,
    summary::{Limits, UnitState},
};
use belljar_suite::files::open_regular;
use fs_err as fs;
use serde::{Deserialize, Serialize};

/// Version of the file; another one is begun anew.
const VERSION: u32 = 1;
/// Units that are remembered at most: those seen last.
const MAX_UNITS: usize = 100_000;
/// No file is longer.
const MAX_FILE: u64 = 64 << 20;

/// The name of the file for the runs of this `belljar.toml`, whose path is absolute.
#[must_use]
pub fn file_name(config: &Path) -> String {
    let project = config.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    let project: String =
        project.unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    format!("{project:.60}-{:016x}.json", crate::names::hash(config.as_os_str().as_encoded_bytes()))
}

/// What is remembered of the runs of one `belljar.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    version: u32,
    /// Runs so far; says which units were seen last.
    runs: u64,
    /// The directory of a run whose end was not noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open: Option<PathBuf>,
    units: BTreeMap<String, Remembered>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Remembered {
    /// Milliseconds of the last time that it ran to an end of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    /// It did not pass.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    bad: bool,
    /// In which run.
    run: u64,
}

impl History {
    /// What `file` says; a file that is not there, damaged, or of another version says nothing.
    #[must_use]
    pub fn load(file: &Path) -> Self {
        let read = || {
            let mut bytes = Vec::new();
            open_regular(file).ok()?.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
            (bytes.len() as u64 <= MAX_FILE).then_some(bytes)
        };
        let history = read().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let mut history = history.filter(|h| h.version == VERSION).unwrap_or_default();
        history.version = VERSION;
        if let Some(run) = history.open.take() {
            history.learn_from(&run);
        }
        history
    }

    /// How long units took, by id.
    #[must_use]
    pub fn durations(&self) -> HashMap<String, Duration> {
        self.units.iter().filter_map(|(id, r)| Some((id.clone(), Duration::from_millis(r.ms?)))).collect()
    }

    /// The ids of the units that did not pass when they last ran.
    #[must_use]
    pub fn not_passed(&self) -> BTreeSet<String> {
        self.units.iter().filter(|(_, r)| r.bad).map(|(id, _)| id.clone()).collect()
    }

    /// Notes that a run begins.
    pub fn begin(&mut self, run_dir: &Path) {
        self.open = Some(run_dir.to_owned());
    }

    /// Notes what a run's event log says, and that it is over.
    pub fn learn_from(&mut self, run_dir: &Path) {
        self.open = None;
        let Ok(file) = open_regular(&run_dir.join(crate::run_dir::EVENTS)) else { return };
        // Only the ends matter.
        let mut run = RunSummary::new(Limits {
            passing_tail: 0,
            failing_tail: 0,
            attempts: 1,
            of_passing: false,
            subresults: 0,
            notes: 0,
            console: 0,
            run_notes: 0,
            guests: 0,
        });
        for line in read_log(BufReader::new(file)) {
            match line {
                Ok(Line::Event(event)) => run.apply(&event),
                Ok(Line::Damaged { .. }) => {}
                Err(_) => break,
            }
        }
        self.runs += 1;
        for unit in &run.units {
            let (ms, bad) = match &unit.state {
                UnitState::Ended(ended) => {
                    let own = matches!(ended.verdict, Verdict::Pass | Verdict::Fail(_));
                    (own.then_some(ended.millis), !matches!(ended.verdict, Verdict::Pass | Verdict::Skip(_)))
                }
                UnitState::Skipped(_) => continue,
                // It had not ended, or not begun: `--rerun-failed` is for what was not seen to pass.
                _ => (None, true),
            };
            let id = unit.unit.unit.as_str().to_owned();
            let before = self.units.get(&id).and_then(|r| r.ms);
            self.units.insert(id, Remembered { ms: ms.or(before), bad, run: self.runs });
        }
        let surplus = self.units.len().saturating_sub(MAX_UNITS);
        if surplus > 0 {
            let mut runs: Vec<u64> = self.units.values().map(|r| r.run).collect();
            runs.sort_unstable();
            let oldest = runs[surplus - 1];
            self.units.retain(|_, r| r.run > oldest);
        }
    }

    /// Writes `file`, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let parent = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        let mut new = tempfile::NamedTempFile::new_in(parent)?;
        serde_json::to_writer(&mut new, self)?;
        new.flush()?;
        new.persist(file).map_err(|e| e.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(lines: &[&str]) -> String {
        let numbered = lines.iter().enumerate();
        numbered.map(|(n, l)| format!("{{\"seq\":{n},\"at\":\"2026-01-02T03:04:05Z\",{l}}}\n")).collect()
    }

    fn planned(id: &str) -> String {
        format!("\"kind\":\"unit-planned\",\"unit\":\"{id}\",\"suite\":\"s\",\"test\":\"t\",\"guest\":\"g\"")
    }

    fn ended(id: &str, verdict: &str, ms: u64) -> String {
        format!("\"kind\":\"unit-ended\",\"unit\":\"{id}\",{verdict},\"attempts\":1,\"millis\":{ms}")
    }

    #[test]
    fn a_run_that_was_cut_off_is_learnt_from_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let file = dir.path().join("history.json");
        let mut history = History::load(&file);
        history.begin(&run);
        history.save(&file).unwrap();
        let pass = "\"verdict\":\"pass\"";
        let fail = "\"verdict\":\"fail\",\"detail\":{\"code\":1}";
        let lines = [planned("a"), planned("b"), planned("c"), ended("a", pass, 7), ended("b", fail, 9)];
        fs::write(run.join("events.jsonl"), events(&lines.each_ref().map(String::as_str))).unwrap();
        let history = History::load(&file);
        assert_eq!(history.not_passed(), ["b", "c"].map(String::from).into());
        assert_eq!(history.durations()["a"], Duration::from_millis(7));
        assert!(!history.durations().contains_key("c"));
        history.save(&file).unwrap();
        assert_eq!(History::load(&file).not_passed().len(), 2, "and not twice");
    }

    #[test]
    fn a_damaged_file_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("history.json");
        fs::write(&file, "{\"version\":1,").unwrap();
        assert!(History::load(&file).not_passed().is_empty());
        fs::write(&file, "{\"version\":99,\"runs\":1,\"units\":{\"a\":{\"bad\":true,\"run\":1}}}").unwrap();
        assert!(History::load(&file).not_passed().is_empty());
    }
}
