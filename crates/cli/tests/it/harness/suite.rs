//! Suites in a laboratory: `belljar.toml` and test files in its workspace, and what became of the units.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    path::Path,
};

use serde_json::Value;
use write_program::write_program;

use super::{Belljar, Lab, Outcome};

/// A suite of all files in `t`, on the guest `g`, which works.
pub(crate) const SUITE: &str = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\"]\n";

impl Lab {
    /// A `belljar.toml` with the guest `g` and what is given, and test files: shell text each.
    pub(crate) fn suite(&self, config: &str, tests: &[(&str, &str)]) {
        let guest = self.guest("g", "");
        fs::write(self.path("workspace/belljar.toml"), format!("{guest}\n{config}")).expect("configuration");
        for (name, text) in tests {
            self.test_file(name, text);
        }
    }

    /// The table of a guest that boots with a working agent, or as `more` says: see [`Lab::machine`].
    pub(crate) fn guest(&self, name: &str, more: &str) -> String {
        format!("[guests.{name}]\nkernel = \"../vmlinux\"\nrootfs = \"../rootfs\"\n{more}")
    }

    /// A guest whose machine plays this script. Its N-th start plays the script `NAME.N` if there is one.
    pub(crate) fn machine(&self, name: &str, script: &str) -> String {
        self.machine_script(name, script);
        self.guest(name, &format!("append = \"fake.script={name}\"\n"))
    }

    /// Only the script.
    pub(crate) fn machine_script(&self, name: &str, script: &str) {
        fs::create_dir_all(self.path("scripts")).expect("directory");
        fs::write(self.path("scripts").join(name), script).expect("script");
    }

    /// An executable shell script in `t`, or where the name has a slash there.
    pub(crate) fn test_file(&self, name: &str, text: &str) {
        let name = if name.contains('/') { name.to_owned() } else { format!("t/{name}") };
        let path = self.path("workspace").join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("directory");
        write_program(&path, format!("#!/bin/sh\n{text}\n"));
    }

    /// `belljar test` on those machines, on a host with room for all of them unless told otherwise.
    pub(crate) fn test<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Belljar<'_> {
        fs::create_dir_all(self.path("scripts")).expect("directory");
        let mut all: Vec<OsString> = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        for (flag, value) in [("--max-cpus", "64"), ("--max-memory", "64GiB")] {
            if !all.iter().any(|w| w == flag) {
                all.extend([flag.into(), value.into()]);
            }
        }
        self.belljar(["test", "--accel", "tcg"]).args(all).env("FAKE_QEMU_SCRIPT", self.path("scripts"))
    }
}

/// A verdict in an event in a few words: `pass`, `fail 3`, `fail SIGKILL`…, `skip: why`, `crash panic`, `timeout command`.
pub(crate) fn words(event: &Value) -> String {
    let detail = &event["detail"];
    let name = event["verdict"].as_str().unwrap_or("?");
    match name {
        "pass" => {
            if event["flaky"] == true {
                "flaky".to_owned()
            } else {
                "pass".to_owned()
            }
        }
        "fail" => match &detail["signal"]["number"] {
            Value::Null => format!("fail {}", detail["code"]),
            number => format!("fail signal {number}"),
        },
        "skip" => format!("skip: {}", detail.as_str().unwrap_or_default()),
        "timeout" => format!("timeout {}", detail.as_str().unwrap_or_default()),
        "crash" => format!("crash {}", detail["kind"].as_str().unwrap_or_default()),
        "error" => match detail.as_str() {
            Some(kind) => format!("error {kind}"),
            None => format!("error {}", detail.as_object().and_then(|o| o.keys().next()).map_or("?", String::as_str)),
        },
        other => other.to_owned(),
    }
}

impl Outcome<'_> {
    /// What became of each unit, by its id; `planned` if it has no end.
    #[track_caller]
    pub(crate) fn verdicts(&self) -> BTreeMap<String, String> {
        let mut verdicts = BTreeMap::new();
        for event in self.events() {
            let unit = event["unit"].as_str().unwrap_or_default().to_owned();
            match event["kind"].as_str() {
                Some("unit-planned") => drop(verdicts.insert(unit, "planned".to_owned())),
                Some("unit-skipped") => {
                    drop(verdicts.insert(unit, format!("skipped: {}", event["reason"].as_str().unwrap_or_default())));
                }
                Some("unit-ended") => {
                    let before = verdicts.insert(unit, words(&event));
                    assert_eq!(before.as_deref(), Some("planned"), "a unit ends once: {event}");
                }
                _ => {}
            }
        }
        verdicts
    }

    /// The events of one kind, of one test if its name is given.
    pub(crate) fn told(&self, kind: &str, test: &str) -> Vec<Value> {
        let unit = format!("s/{test}@g");
        let wanted = |e: &Value| e["kind"] == kind && (test.is_empty() || e["unit"] == unit.as_str());
        self.events().into_iter().filter(wanted).collect()
    }

    /// The tries of a test, in words.
    pub(crate) fn tries(&self, test: &str) -> Vec<String> {
        self.told("attempt-ended", test).iter().map(words).collect()
    }

    /// Fails unless the verdicts are these.
    #[track_caller]
    pub(crate) fn verdicts_are(&self, expected: &[(&str, &str)]) -> &Self {
        let verdicts = self.verdicts();
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(test, verdict)| (format!("s/{test}@g"), (*verdict).to_owned())).collect();
        assert_eq!(verdicts, expected, "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}
