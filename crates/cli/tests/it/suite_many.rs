//! Suites of many units: memory, descriptors and files stay within bounds.
//!
//! Ten thousand on request, a minute or so in a release build:
//! `cargo test --release -p belljar --test it suite_many -- --ignored`.

use std::{fs, time::Duration};

use crate::harness::{Lab, SUITE};

/// Mebibytes: what a run takes without any unit, and with ten thousand. The pages of the program itself, six sevenths of a short run of a
/// debug build, are the kernel's to keep or to drop, and do not count.
const ANY: u64 = 6;
const TEN_THOUSAND: u64 = 60;
/// Descriptors that four guests at a time may take, and those that are being ended.
const DESCRIPTORS: usize = 200;

fn many(isolation: &str, units: usize) {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}isolation = \"{isolation}\"\n"), &[]);
    for n in 0..units {
        lab.test_file(&format!("{n:05}"), if n % 100 == 7 { "echo broken; exit 1" } else { "exit 0" });
    }
    // What the machines saw would fill the disk.
    let mut run = lab.test(["-j4", "-q", "--junit", "r.xml"]).without_journal().unlimited().spawn();
    let (mut peak, mut open) = (0, 0);
    while run.still_there_after(Duration::from_millis(50)) {
        peak = run.kibibytes_if_there("RssAnon").map_or(peak, |now| peak.max(now));
        open = run.descriptors_if_there().map_or(open, |now| open.max(now));
    }
    let outcome = run.end();
    outcome.code(100);
    let bad = units / 100;
    let verdicts = outcome.verdicts();
    let others: Vec<_> = verdicts.iter().filter(|(_, v)| *v != "pass" && *v != "fail 1").collect();
    assert!(others.is_empty(), "{others:?}");
    assert_eq!(verdicts.values().filter(|v| *v == "pass").count(), units - bad);
    let xml = fs::read_to_string(lab.path("workspace/r.xml")).expect("report");
    assert!(xml.contains(&format!("tests=\"{units}\" failures=\"{bad}\" errors=\"0\"")), "{}", &xml[..300]);
    let most = (ANY + TEN_THOUSAND * units as u64 / 10_000) * 1024;
    assert!(peak > 0 && peak < most, "{peak} KiB of at most {most}");
    assert!(open > 0 && open < DESCRIPTORS, "{open} descriptors");
}

#[test]
fn a_thousand_in_guests_of_their_own() {
    many("test", 1000);
}

#[test]
fn a_thousand_in_one_guest() {
    many("suite", 1000);
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_in_guests_of_their_own() {
    many("test", 10_000);
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_in_one_guest() {
    many("suite", 10_000);
}
