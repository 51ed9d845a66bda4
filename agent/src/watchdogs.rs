//! Watchdogs of the guest that run: one bites whoever is there when its time is over.

use std::{fs, io::ErrorKind, path::Path};

/// Where the kernel has them.
const CLASS: &str = "/sys/class/watchdog";

/// Those that run, or of which nobody knows.
pub(crate) fn running() -> Vec<String> {
    running_in(Path::new(CLASS))
}

/// Those that run now and are not `known`, as they are told. One of which the kernel does not say whether it runs (without `CONFIG_WATCHDOG_SYSFS`) is among
/// them in any case: to open it would start it.
pub(crate) fn started(known: &[String]) -> Vec<String> {
    started_in(Path::new(CLASS), known)
}

fn running_in(class: &Path) -> Vec<String> {
    names(class).unwrap_or_default().into_iter().filter(|name| state(class, name).is_none_or(|runs| runs)).collect()
}

fn started_in(class: &Path, known: &[String]) -> Vec<String> {
    let Ok(names) = names(class) else { return vec![format!("{} cannot be read any more", class.display())] };
    let told = |name: String| match state(class, &name) {
        Some(false) => None,
        Some(true) => (!known.contains(&name)).then(|| format!("{name}, a watchdog that runs")),
        None => Some(format!("{name}, a watchdog that may run")),
    };
    names.into_iter().filter_map(told).collect()
}

fn names(class: &Path) -> Result<Vec<String>, ErrorKind> {
    match fs::read_dir(class) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()),
        // No driver of any was ever there.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.kind()),
    }
}

/// Whether it runs, as the kernel says.
fn state(class: &Path, name: &str) -> Option<bool> {
    fs::read_to_string(class.join(name).join("state")).ok().map(|state| state.trim() != "inactive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_runs_since_is_named() {
        let class = tempfile::tempdir().unwrap();
        for (name, state) in [("watchdog0", "active\n"), ("watchdog1", "inactive\n"), ("watchdog2", "active\n")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("state"), state).unwrap();
        }
        let known = vec!["watchdog2".to_owned()];
        assert_eq!(started_in(class.path(), &known), ["watchdog0, a watchdog that runs"]);
        let mut running = running_in(class.path());
        running.sort();
        assert_eq!(running, ["watchdog0", "watchdog2"]);
        // Of one whose state is told nowhere nobody knows.
        fs::remove_file(class.path().join("watchdog2/state")).unwrap();
        assert!(started_in(class.path(), &known).contains(&"watchdog2, a watchdog that may run".to_owned()));
        assert_eq!(started_in(&class.path().join("none"), &[]), [""; 0]);
        assert_eq!(started_in(&class.path().join("watchdog0/state"), &[]).len(), 1);
    }
}
