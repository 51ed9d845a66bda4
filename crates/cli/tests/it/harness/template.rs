//! Templates in a laboratory, and what a run did with them.

use std::{fs, path::PathBuf};

use super::{Belljar, Lab, Live, Outcome};

impl Lab {
    /// What is where templates are kept, half-made ones included.
    pub(crate) fn templates(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache/belljar/templates")).into_iter().flatten().flatten();
        let mut templates: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        templates.sort();
        templates
    }

    /// The only template.
    #[track_caller]
    pub(crate) fn template(&self) -> PathBuf {
        let templates = self.templates();
        assert_eq!(templates.len(), 1, "{templates:?}");
        let name = templates[0].file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert!(name.bytes().all(|b| b.is_ascii_hexdigit()), "it is made: {name}");
        templates.into_iter().next().unwrap_or_default()
    }

    /// How many pretended QEMUs booted, and how many went on with what was frozen.
    pub(crate) fn starts(&self) -> (usize, usize) {
        let seen = self.seen();
        let guests = seen.lines().filter(|l| l.contains("\"kind\":\"args\"") && l.contains("-chardev"));
        let (clones, booted): (Vec<&str>, Vec<&str>) = guests.partition(|l| l.contains("-incoming"));
        (booted.len(), clones.len())
    }

    /// How often the pretended QEMUs were asked to do this over QMP.
    pub(crate) fn asked(&self, command: &str) -> usize {
        let needle = format!("\"execute\":\"{command}\"");
        self.seen().lines().filter(|l| l.contains(&needle)).count()
    }
}

impl Belljar<'_> {
    /// Guests are frozen and copied, as they are for a user.
    pub(crate) fn with_templates(self) -> Self {
        self.env("BELLJAR_TEMPLATES", "on")
    }
}

impl Live<'_> {
    /// Waits until the last run has written this into its event log.
    #[track_caller]
    pub(crate) fn await_event(&mut self, text: &str) {
        let lab = self.lab;
        let log =
            || lab.runs().iter().any(|r| fs::read_to_string(r.join("events.jsonl")).is_ok_and(|l| l.contains(text)));
        while !log() {
            assert!(self.still_there_after(std::time::Duration::from_millis(3)), "belljar ended before {text:?}");
        }
    }
}

impl Outcome<'_> {
    /// What was chosen of templates, in order.
    pub(crate) fn chosen(&self, what: &str) -> Vec<String> {
        let choices = self.events().into_iter().filter(|e| e["kind"] == "choice" && e["what"] == what);
        choices.map(|e| e["chosen"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// What was warned of.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let warnings = self.events().into_iter().filter(|e| e["kind"] == "warning");
        warnings.map(|e| e["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Fails unless there was one warning, with this in it.
    #[track_caller]
    pub(crate) fn warns_once(&self, text: &str) -> &Self {
        let warnings = self.warnings();
        assert!(matches!(&warnings[..], [one] if one.contains(text)), "{warnings:#?}\nstderr: {}", self.stderr);
        self
    }

    /// Fails unless this was chosen of templates, and nobody was warned of anything.
    #[track_caller]
    pub(crate) fn quietly(&self, chosen: &[&str]) -> &Self {
        assert_eq!(self.chosen("template"), chosen, "{}", self.stderr);
        assert_eq!(self.warnings(), [""; 0], "{}", self.stderr);
        self
    }
}
