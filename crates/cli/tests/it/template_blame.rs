//! What is not as it was made goes and is made anew; what only the host is to blame for stays.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use crate::harness::{Belljar, Lab, WELL};

/// `belljar run` with templates.
fn run<'a>(lab: &'a Lab, script: &str) -> Belljar<'a> {
    lab.run(script).with_templates()
}

/// A guest that boots and whose copies come to this.
fn copies(section: &str) -> String {
    format!("{WELL}[clone-agent]\nhang\n[clone]\n{section}\n")
}

#[test]
fn a_host_that_is_short_of_something_costs_no_template() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let kept = lab.template();
    for said in [
        "cannot set up guest memory 'ram': Cannot allocate memory",
        "qemu_thread_create: Resource temporarily unavailable",
        "Could not open '/dev/fdset/1': Too many open files",
    ] {
        let script = format!("{WELL}[start]\nstderr {said:?}\nexit 1\n");
        let outcome = run(&lab, &script).sh("true").go();
        // The guest that boots instead fares no better, and that is what is told.
        outcome.code(125).complains(said).warns_once("the template stays");
        assert_eq!(outcome.chosen("template"), ["found", "again", "found"], "{said}");
        assert_eq!(lab.template(), kept);
    }
    run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["found"]);
}

#[test]
fn copies_that_somebody_kills_cost_no_template() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let kept = lab.template();
    for _ in 0..4 {
        let outcome = run(&lab, &copies("signal 9")).sh("exit 7").go();
        outcome.code(7).warns_once("the template stays").warns_once("SIGKILL");
        assert_eq!(lab.template(), kept);
    }
    run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["found"]);
    // So it is where it was made a moment before.
    fs::remove_dir_all(&kept).expect("removed");
    run(&lab, &copies("signal 9")).sh("exit 7").go().code(7).warns_once("the template stays");
    run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["found"]);
}

#[test]
fn a_template_that_fails_again_and_again_goes_at_last() {
    let lab = Lab::new();
    let fail = || run(&lab, &copies("signal 11")).sh("exit 7").go();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let kept = lab.template();
    for _ in 0..2 {
        fail().code(7).warns_once("the template stays").warns_once("SIGSEGV");
        assert_eq!(lab.template(), kept);
        // One that goes on makes up for those that did not.
        run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["found"]);
    }
    fail().code(7).warns_once("the template stays");
    let outcome = fail();
    outcome.code(7);
    assert_eq!(outcome.chosen("template"), ["found", "made"], "{}", outcome.stderr);
    let warnings = outcome.warnings();
    assert!(warnings[0].contains("was removed") && warnings[0].contains("3. time in a row"), "{warnings:#?}");
    assert!(warnings[1].contains("its copy does not go on"), "{warnings:#?}");
    assert_eq!(lab.templates().len(), 0);
}

/// The only file in the cache whose name begins so, its seal aside.
fn cached(lab: &Lab, prefix: &str) -> PathBuf {
    let entries = fs::read_dir(lab.path("cache/belljar")).expect("cache").flatten().map(|e| e.path());
    let mut found = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && !name.ends_with(".seal")
    });
    let one = found.next().expect("it is cached");
    assert_eq!(found.next(), None);
    one
}

#[test]
fn boot_files_in_the_cache_are_checked_and_mended() {
    let lab = Lab::new();
    lab.run(WELL).sh("true").go().code(0);
    let initrd = cached(&lab, "belljar-initrd-");
    let whole = fs::read(&initrd).expect("read");
    type Damage = fn(&File);
    let damages: [(&str, Damage); 3] = [
        ("its checksum is wrong", |file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, 5000)
                .and_then(|()| file.write_all_at(&[byte[0] ^ 1], 5000))
                .expect("flipped");
        }),
        ("bytes instead of", |file| file.set_len(4096).expect("cut")),
        ("bytes instead of", |file| file.set_len(0).expect("emptied")),
    ];
    for (why, damage) in damages {
        let time = initrd.metadata().and_then(|m| m.modified()).expect("time");
        let file = File::options().read(true).write(true).open(&initrd).expect("open");
        damage(&file);
        file.set_modified(time).expect("time");
        let outcome = lab.run(WELL).sh("exit 7").go();
        outcome.code(7).warns_once("initramfs in the cache was not as it was made").warns_once(why);
        assert!(fs::read(&initrd).expect("read") == whole, "{why}: it is made anew");
        let outcome = lab.run(WELL).sh("exit 7").go();
        assert_eq!(outcome.warnings(), [""; 0]);
    }
}

#[test]
fn a_template_is_not_made_of_damaged_boot_files() {
    let lab = Lab::new();
    lab.run(WELL).sh("true").go().code(0);
    let file = File::options().write(true).open(cached(&lab, "belljar-initrd-")).expect("open");
    file.write_all_at(b"x", 5000).expect("changed");
    let outcome = run(&lab, WELL).sh("exit 7").go();
    outcome.code(7).warns_once("was made anew");
    assert_eq!(outcome.chosen("template"), ["made"]);
    run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["found"]);
}

#[test]
fn answers_in_the_cache_are_believed_only_if_they_are_whole() {
    let lab = Lab::new();
    lab.run(WELL).sh("true").go().code(0);
    let before = lab.seen().matches("\"kind\":\"args\"").count();
    lab.run(WELL).sh("true").go().code(0);
    let usual = lab.seen().matches("\"kind\":\"args\"").count() - before;
    for entry in fs::read_dir(lab.path("cache/belljar")).expect("cache").flatten() {
        if entry.path().extension().is_some_and(|e| e == "json") {
            let text = fs::read_to_string(entry.path()).expect("read").replace("true", "null").replace("7.2", "8.2");
            fs::write(entry.path(), text).expect("changed");
        }
    }
    let before = lab.seen().matches("\"kind\":\"args\"").count();
    lab.run(WELL).sh("exit 7").go().code(7);
    let asked = lab.seen().matches("\"kind\":\"args\"").count() - before;
    assert!(asked > usual, "QEMU is asked again: {asked} instead of {usual} starts");
}
