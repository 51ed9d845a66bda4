//! Ten thousand units. `cargo test -p belljar --test it suite_many -- --ignored`, best with `--release`: some minutes.

use std::{fs, time::Duration};

use crate::harness::{Lab, SUITE};

const UNITS: usize = 10_000;
/// Kibibytes; see the bench for what it really takes.
const MOST: u64 = 100 * 1024;

fn many(isolation: &str) {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}isolation = \"{isolation}\"\n"), &[]);
    for n in 0..UNITS {
        lab.test_file(&format!("{n:05}"), if n % 100 == 7 { "echo broken; exit 1" } else { "exit 0" });
    }
    // What the machines saw would fill the disk.
    let mut run = lab.test(["-j4", "-q", "--junit", "r.xml"]).without_journal().unlimited().spawn();
    let mut peak = 0;
    while run.still_there_after(Duration::from_millis(100)) {
        peak = run.kibibytes_if_there("VmHWM").map_or(peak, |now| peak.max(now));
    }
    let outcome = run.end();
    outcome.code(100);
    assert_eq!(outcome.verdicts().values().filter(|v| *v == "pass").count(), UNITS - UNITS / 100);
    let xml = fs::read_to_string(lab.path("workspace/r.xml")).expect("report");
    assert!(xml.contains("tests=\"10000\" failures=\"100\" errors=\"0\""), "{}", &xml[..300]);
    assert!(peak > 0 && peak < MOST, "{peak} KiB");
}

#[test]
#[ignore = "takes minutes"]
fn each_in_a_guest_of_its_own() {
    many("test");
}

#[test]
#[ignore = "takes minutes"]
fn all_in_one_guest() {
    many("suite");
}
