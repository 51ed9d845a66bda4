//! Turns a request into events. Nothing here prints: whoever wants to know, observes.
//!
//! `belljar run` is [`run`]; `belljar test` is [`suite`], with what schedules, what carries out and what gives machines in a room each.

mod attempt;
pub mod beneath;
pub mod cancel;
pub mod door;
mod environment;
mod event_writer;
mod exec;
mod executor;
pub mod log;
mod machines;
mod names;
mod orders;
pub mod out_dir;
mod output;
pub mod parts;
#[cfg(test)]
mod pretend;
pub mod run;
pub mod run_dir;
mod schedule;
mod sparse;
pub mod suite;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs_err::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    /// What it needs of a guest goes through `belljar_machine::backend`, or a guest that is no machine cannot be had.
    #[test]
    fn nothing_but_tests_names_what_is_qemus() {
        let here = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut found = Vec::new();
        sources(here, &mut found);
        assert!(found.len() > 30, "{found:?}");
        let is_test = |path: &Path| ["lib.rs", "pretend.rs", "tests.rs"].iter().any(|name| path.ends_with(name));
        for path in found.iter().filter(|path| !is_test(path)) {
            let text = fs_err::read_to_string(path).unwrap().to_lowercase();
            for word in ["qemu", "qmp", "console.log", "plan::prepare", "lease::"] {
                assert!(!text.contains(word), "{} says {word}", path.display());
            }
        }
    }
}
