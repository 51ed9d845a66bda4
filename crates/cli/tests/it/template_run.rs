//! Templates of `belljar run`: made once, used from then on, and done without where they cannot be had.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::harness::{Belljar, Lab, Outcome, WELL, on_tmpfs, read_only};

/// A guest that works, on a QEMU with these options.
fn well(options: &str) -> String {
    format!("[options]\n{options}\n{WELL}")
}

/// A guest that begins to boot and never gets anywhere.
const STUCK: &str = "[serial]\nmark stuck\ndrain\n";

/// `belljar run` with templates.
fn run<'a>(lab: &'a Lab, script: &str) -> Belljar<'a> {
    lab.run(script).with_templates()
}

#[test]
fn made_by_the_first_run_and_found_by_the_second() {
    let lab = Lab::new();
    let outcome = run(&lab, WELL).sh("echo out; echo err >&2; exit 7").go();
    outcome.code(7).says("out\n").quietly(&["made"]).complains("err");
    assert_eq!(lab.starts(), (1, 1), "one boots and is copied");
    let template = lab.template();
    for part in ["manifest", "ram", "state"] {
        assert!(template.join(part).metadata().is_ok_and(|m| m.len() > 0), "{part}");
    }
    run(&lab, WELL).sh("cat; kill -9 $$").stdin("in").go().code(137).says("in").quietly(&["found"]);
    run(&lab, WELL).command(["/no/such/program"]).go().code(127).quietly(&["found"]);
    assert_eq!(lab.starts(), (1, 3));
    assert_eq!(lab.template(), template);
    // Each copy is told to be somebody else.
    let seen = lab.seen();
    let names: Vec<&str> = seen.split("host_suffix: ").skip(1).filter_map(|s| s.split(',').next()).collect();
    assert_eq!(names.len(), 3, "{seen}");
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "{names:?}");
    // Another machine is another guest.
    run(&lab, WELL).args(["--memory", "256M"]).sh("true").go().code(0).quietly(&["made"]);
    assert_eq!(lab.templates().len(), 2);
}

#[test]
fn how_a_copy_was_got_into_is_in_its_log() {
    let lab = Lab::new();
    let choices = |outcome: &Outcome<'_>| {
        let events = outcome.events();
        let choices = events.iter().filter(|e| e["kind"] == "choice");
        choices.map(|e| format!("{}: {}", e["what"], e["chosen"]).replace('"', "")).collect::<Vec<_>>()
    };
    let boots = run(&lab, WELL).args(["--no-template"]).sh("true").go();
    let made = run(&lab, WELL).sh("true").go();
    let found = run(&lab, WELL).sh("true").go();
    for outcome in [&boots, &made, &found] {
        let choices = choices(outcome.code(0));
        for wanted in ["access: Belljar's init", "session: agent on the virtio port", "share: 9p"] {
            assert!(choices.iter().any(|c| c == wanted), "{wanted} is not in {choices:?}");
        }
    }
    // Making one is told without being asked for, for it takes its time; finding one is not.
    made.complains("template: made (there is none for this guest yet; it boots once");
    assert!(!found.stderr.contains("template"), "{}", found.stderr);
    let quiet = run(&lab, WELL).args(["-q", "--memory", "256M"]).sh("true").go();
    assert_eq!(quiet.code(0).stderr, "");
}

#[test]
fn not_where_they_are_not_wanted() {
    let lab = Lab::new();
    let outcome = run(&lab, WELL).args(["--no-template"]).sh("exit 3").go();
    outcome.code(3).quietly(&[]);
    lab.run(WELL).env("BELLJAR_TEMPLATES", "off").sh("exit 4").go().code(4).quietly(&[]);
    assert_eq!((lab.starts(), lab.templates().len()), ((2, 0), 0));
    // What is there is not used either.
    run(&lab, WELL).sh("true").go().code(0);
    run(&lab, WELL).args(["--no-template"]).sh("exit 3").go().code(3).quietly(&[]);
    assert_eq!(lab.starts(), (4, 1));
}

#[test]
fn a_guest_that_cannot_be_frozen_goes_on() {
    let cases = [
        (well("migrate refuse"), "non-migratable device"),
        (well("migrate fail"), "said by the script"),
        (WELL.replace("\nagent\n", "\nagent quiesce=left\n"), "/mnt/left"),
    ];
    for (script, why) in cases {
        let lab = Lab::new();
        let outcome = run(&lab, &script).sh("echo out; exit 7").go();
        outcome.code(7).says("out\n").warns_once("cannot be kept as a template").warns_once(why);
        assert_eq!((lab.starts(), lab.templates().len()), ((1, 0), 0), "{why}");
        // Perhaps it can be done the next time.
        run(&lab, WELL).sh("exit 8").go().code(8).quietly(&["made"]);
    }
}

#[test]
fn a_qemu_that_is_lost_to_the_freezing_is_replaced() {
    let cases = [
        (well("migrate die"), "4s", "SIGSEGV"),
        (well("migrate fail\ncont ignore"), "4s", "nor does it go on"),
        (well("migrate hang"), "4s", "did not write the state"),
    ];
    for (script, limit, why) in cases {
        let lab = Lab::new();
        let outcome = run(&lab, &script).args(["--boot-timeout", limit]).sh("echo out; exit 7").go();
        outcome.code(7).says("out\n").warns_once("cannot be kept as a template").warns_once(why);
        assert_eq!((lab.starts(), lab.templates().len()), ((2, 0), 0), "{why}");
    }
}

#[test]
fn a_guest_that_dies_while_it_gets_ready_is_told_of() {
    let lab = Lab::new();
    let outcome = run(&lab, &WELL.replace("\nagent\n", "\nagent quiesce=die\n")).sh("true").go();
    outcome.code(121).complains("SIGSEGV");
    assert_eq!((lab.starts(), lab.templates().len()), ((1, 0), 0));
}

#[test]
fn a_copy_that_does_not_go_on_is_no_guest() {
    let cases = [
        (well("incoming refuse"), "said by the script"),
        (well("incoming fail"), "load of migration failed"),
        (well("incoming die"), "SIGSEGV"),
        (well("incoming hang"), "did not load the template within"),
        (well("cont ignore"), "said by the script"),
        (format!("{WELL}[clone-agent]\nhang\n"), "nobody answered in the copy within"),
        (format!("{WELL}[clone-agent]\nhang\n[clone]\nsignal 11\n"), "SIGSEGV"),
    ];
    for (script, why) in cases {
        let lab = Lab::new();
        let outcome = run(&lab, &script).args(["--boot-timeout", "4s"]).sh("echo out; exit 7").go();
        outcome.code(7).says("out\n").warns_once("its copy does not go on").warns_once(why);
        assert_eq!((lab.starts(), lab.templates().len()), ((2, 1), 0), "{why}: booted, copied in vain, booted");
    }
}

#[test]
fn a_template_that_has_become_useless_is_made_anew() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    // As after an update of the host that nobody can see.
    let outcome = run(&lab, &well("incoming fail")).sh("exit 7").go();
    outcome.code(7);
    assert_eq!(outcome.chosen("template"), ["found", "made"]);
    let warnings = outcome.warnings();
    assert!(warnings.len() == 2 && warnings[0].contains("of no use and was removed"), "{warnings:#?}");
    assert_eq!(lab.templates().len(), 0);
    run(&lab, WELL).sh("exit 8").go().code(8).quietly(&["made"]);
}

#[test]
fn what_was_spoilt_is_not_used() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let cut = |path: &Path, length| {
        File::options().write(true).open(path).and_then(|f| f.set_len(length)).expect("cut");
    };
    let change = |path: &Path, at| {
        let file = File::options().read(true).write(true).open(path).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).and_then(|()| file.write_all_at(&[!byte[0]], at)).expect("changed");
    };
    type Spoil<'a> = &'a dyn Fn(&Path);
    let spoilt: [(&str, Spoil<'_>); 9] = [
        ("state cut off", &|t| cut(&t.join("state"), 20)),
        ("state changed", &|t| change(&t.join("state"), 20)),
        ("state gone", &|t| fs::remove_file(t.join("state")).expect("removed")),
        ("memory cut off", &|t| cut(&t.join("ram"), 1 << 20)),
        ("memory changed where it is used", &|t| change(&t.join("ram"), 20)),
        ("memory changed where it is empty", &|t| change(&t.join("ram"), 50 << 20)),
        ("memory gone", &|t| fs::remove_file(t.join("ram")).expect("removed")),
        ("manifest cut off", &|t| cut(&t.join("manifest"), 100)),
        ("another's memory", &|t| assert!(fs::copy(t.join("state"), t.join("ram")).is_ok())),
    ];
    for (what, spoil) in spoilt {
        spoil(&lab.template());
        let outcome = run(&lab, WELL).sh("echo out; exit 7").go();
        outcome.code(7).says("out\n").warns_once("the template of this guest was removed, for");
        assert_eq!(outcome.chosen("template"), ["made"], "{what}");
    }
    run(&lab, WELL).sh("exit 8").go().code(8).quietly(&["found"]);
    // The whole of it gone is nothing to be warned of.
    fs::remove_dir_all(lab.template()).expect("removed");
    run(&lab, WELL).sh("exit 8").go().code(8).quietly(&["made"]);
}

#[test]
fn a_template_that_is_written_to_while_in_use_makes_no_pass() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0);
    let ram = lab.template().join("ram");
    let spoil = format!("printf x | dd of={} bs=1 seek=60000000 conv=notrunc status=none", ram.display());
    let outcome = run(&lab, WELL).sh(&spoil).go();
    outcome.code(125).complains("template was written to");
    run(&lab, WELL).sh("exit 7").go().code(7).warns_once("was removed, for");
}

#[test]
fn a_template_that_is_removed_while_in_use_is_not_missed() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0);
    let remove = format!("rm -r {}; exit 7", lab.template().display());
    run(&lab, WELL).sh(&remove).go().code(7).quietly(&["found"]);
    assert_eq!(lab.templates().len(), 0);
}

#[test]
fn of_several_at_the_same_time_one_makes_it() {
    let lab = Lab::new();
    let call = |code: i32| run(&lab, WELL).args(["-v"]).sh(&format!("exit {code}")).spawn();
    let runs = [11, 12, 13].map(|code| (code, call(code)));
    let mut made = 0;
    for (code, run) in runs {
        let outcome = run.end_dirty();
        outcome.code(code);
        if outcome.stderr.contains("template: made") {
            made += 1;
        } else {
            outcome.complains("template: found");
        }
    }
    assert_eq!((made, lab.starts()), (1, (1, 3)));
    lab.template();
}

#[test]
fn who_waits_for_a_maker_that_is_killed_makes_it() {
    let lab = Lab::new();
    let mut maker = run(&lab, STUCK).sh("true").spawn();
    maker.await_mark("stuck");
    let half = lab.templates();
    assert!(matches!(&half[..], [one] if one.to_string_lossy().ends_with(".making")), "{half:?}");
    let mut next = run(&lab, WELL).sh("exit 7").spawn();
    next.await_event("\"awaited\"");
    maker.signal(Signal::KILL);
    drop(maker.end_dirty());
    let outcome = next.end();
    outcome.code(7).quietly(&["awaited", "made"]);
    lab.template();
}

#[test]
fn nothing_half_made_is_used() {
    let lab = Lab::new();
    for script in [STUCK.to_owned(), well("migrate hang")] {
        for signal in [Signal::KILL, Signal::TERM] {
            let mut maker = run(&lab, &script).sh("true").spawn();
            if script == STUCK {
                maker.await_mark("stuck");
            } else {
                maker.await_note("qmp", "\"migrate\"");
            }
            maker.signal(signal);
            let outcome = maker.end();
            assert_ne!(outcome.status.code(), Some(0));
            // Who is killed cannot clear up; everybody else does.
            assert_eq!(lab.templates().len(), usize::from(signal == Signal::KILL), "{:?}", lab.templates());
            run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["made"]);
            fs::remove_dir_all(lab.template()).expect("removed");
            fs::remove_file(lab.path("fake.log")).expect("removed");
        }
    }
}

#[test]
fn a_disk_that_changed_is_another_guest() {
    let lab = Lab::new();
    let data = lab.image("data", "raw");
    let time = data.metadata().and_then(|m| m.modified()).expect("time");
    let disk = format!("file={}", data.display());
    let call = || run(&lab, WELL).args(["--disk", &disk]).sh("exit 7").go();
    call().code(7).quietly(&["made", "plugged"]);
    call().code(7).quietly(&["found"]);
    // In place, and the time of the last change set back.
    let file = File::options().write(true).open(&data).expect("open");
    file.write_all_at(b"x", 1000).and_then(|()| file.set_modified(time)).expect("changed");
    call().code(7).quietly(&["found", "plugged"]);
    assert_eq!((lab.templates().len(), lab.starts().0), (3, 1), "the guest itself, and each of the disk's contents");
    call().code(7).quietly(&["found"]);
}

#[test]
fn a_guest_that_is_reached_by_its_console_too() {
    let lab = Lab::new();
    let script = "[serial]\nlogin user=root password=secret\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let call = || lab.run_image(script).with_templates().args(["--login", "root:secret"]).sh("echo out; exit 7").go();
    call().code(7).says("out\n").quietly(&["made"]);
    // The layer that took the boot's writes is part of it.
    assert!(lab.template().join("disk0").exists());
    call().code(7).says("out\n").quietly(&["found"]);
    assert_eq!(lab.starts(), (1, 2));
    assert_eq!(lab.seen().matches("\"value\":\"login\"").count(), 1, "a copy is logged in already");
    // Who may not log in gets no copy of a guest where somebody else did.
    let outcome = lab.run_image(script).with_templates().args(["--login", "root:wrong", "--boot-timeout", "60s"]);
    let outcome = outcome.sh("true").go();
    assert!(!matches!(outcome.status.code(), Some(0)), "{}", outcome.stderr);
    assert_eq!(outcome.chosen("template"), ["made"]);
}

#[test]
fn a_cache_that_can_only_be_read() {
    let lab = Lab::new();
    let call =
        |words: &[&str]| run(&lab, WELL).under(read_only(lab.path("cache"))).args(words).sh("echo out; exit 7").go();
    let outcome = call(&[]);
    outcome.code(7).says("out\n").warns_once("templates cannot be kept in");
    assert_eq!(lab.starts(), (1, 0));
    run(&lab, WELL).sh("exit 7").go().code(7).quietly(&["made"]);
    // What is there is used.
    call(&[]).code(7).says("out\n").quietly(&["found"]);
    assert_eq!(lab.starts(), (2, 2));
    call(&["--memory", "256M"]).code(7).warns_once("templates cannot be kept in");
    lab.template();
}

#[test]
fn a_place_for_templates_that_is_none() {
    let lab = Lab::new();
    fs::create_dir_all(lab.path("cache/belljar")).expect("directory");
    fs::write(lab.path("cache/belljar/templates"), "").expect("file");
    run(&lab, WELL).sh("exit 7").go().code(7).warns_once("templates cannot be kept in");
}

#[test]
fn no_room_for_them() {
    let lab = Lab::new();
    let outcome = run(&lab, WELL).under(on_tmpfs(lab.path("cache"), "size=64M")).sh("exit 7").go();
    outcome.code(7).warns_once("not enough room");
}

#[test]
fn listed_made_and_pruned() {
    let lab = Lab::new();
    let template = |words: &[&str]| lab.belljar(["template"]).args(words).with_templates().script(WELL);
    template(&["list"]).go().code(0).says("There are no templates yet: the first run of a guest makes one.\n");
    template(&["prune"]).go().code(0).says("0 removed, 0 B freed\n");
    let vmlinux = lab.path("vmlinux").display().to_string();
    let rootfs = lab.path("rootfs").display().to_string();
    let guest = ["make", "-v", "--accel", "tcg", "--kernel", &vmlinux, "--rootfs", &rootfs];
    template(&guest).go().code(0).complains("template: made");
    let kept = lab.template();
    template(&guest).go().code(0).complains("template: found");
    let listed = template(&["list"]).go();
    let key = kept.file_name().unwrap_or_default().to_string_lossy().into_owned();
    listed.code(0);
    assert!(listed.text().contains(&key[..10]) && listed.text().contains("with a root directory"), "{}", listed.text());
    run(&lab, WELL).sh("true").go().code(0).quietly(&["found"]);
    // What nobody can use is listed, and can be removed.
    fs::write(kept.join("manifest"), "rubbish").expect("spoilt");
    let listed = template(&["list"]).go();
    assert!(listed.text().contains("unusable"), "{}", listed.text());
    assert!(template(&["prune"]).go().code(0).text().starts_with("0 removed"));
    assert!(template(&["prune", "--limit", "1k"]).go().code(0).text().starts_with("1 removed"));
    assert_eq!(lab.templates().len(), 0);
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    assert!(template(&["prune", "--all"]).go().code(0).text().starts_with("1 removed"));
    assert_eq!(lab.templates().len(), 0);
    // Making one is all that is asked for: without one it has failed.
    let outcome = template(&guest).env("BELLJAR_TEMPLATES", "off").go();
    outcome.code(125).complains("switched off");
}

#[test]
fn over_the_limit_the_least_used_goes() {
    let lab = Lab::new();
    let call = |memory: &str| run(&lab, WELL).args(["--memory", memory]).env("BELLJAR_TEMPLATE_LIMIT", "1k");
    call("256M").sh("exit 7").go().code(7).quietly(&["made"]);
    let first = lab.template();
    call("512M").sh("exit 7").go().code(7).quietly(&["made"]);
    assert_ne!(lab.template(), first, "the newest stays, whatever the limit");
}

#[test]
fn who_waits_for_a_maker_can_be_interrupted() {
    let lab = Lab::new();
    let mut maker = run(&lab, STUCK).sh("true").spawn();
    maker.await_mark("stuck");
    let mut next = run(&lab, WELL).sh("true").spawn();
    next.await_event("\"awaited\"");
    next.signal(Signal::TERM);
    assert_eq!(next.end_dirty().status.code(), Some(143));
    // What is being made is no template that could be pruned.
    lab.belljar(["template", "prune", "--all"]).spawn().end_dirty().code(0).says("0 removed, 0 B freed\n");
    assert_eq!(lab.templates().len(), 1);
    maker.signal(Signal::TERM);
    assert_eq!(maker.end().status.code(), Some(143));
    assert_eq!(lab.templates().len(), 0);
}

#[test]
fn what_a_killed_maker_left_is_cleared_up_by_pruning_too() {
    let lab = Lab::new();
    let mut maker = run(&lab, STUCK).sh("true").spawn();
    maker.await_mark("stuck");
    maker.kill();
    assert_eq!(lab.templates().len(), 1);
    lab.belljar(["template", "prune"]).go().code(0).says("0 removed, 0 B freed\n");
    assert_eq!(lab.templates().len(), 0);
}

#[test]
fn what_a_killed_maker_left_is_cleared_up_by_whatever_is_started_next() {
    let lab = Lab::new();
    for words in [&["completions", "bash"][..], &["template", "list"], &["man"], &["list"]] {
        let mut maker = run(&lab, STUCK).sh("true").spawn();
        maker.await_mark("stuck");
        maker.kill();
        assert_eq!(lab.templates().len(), 1);
        // What else is there is none of its business.
        let others = lab.path("cache/belljar/templates/others");
        fs::create_dir_all(&others).expect("directory");
        drop(lab.belljar(words).go());
        assert_eq!(lab.templates(), std::slice::from_ref(&others), "{words:?}");
        fs::remove_dir(others).expect("removed");
        fs::remove_file(lab.path("fake.log")).expect("removed");
    }
}

#[test]
fn what_is_being_made_is_listed_and_left_alone() {
    let lab = Lab::new();
    let mut maker = run(&lab, STUCK).sh("true").spawn();
    maker.await_mark("stuck");
    let pid = maker.pid().as_raw_nonzero();
    for _ in 0..2 {
        let listed = lab.belljar(["template", "list"]).spawn().end_dirty();
        listed.code(0);
        let text = listed.text();
        let rows: Vec<&str> = text.lines().filter(|l| l.contains("being made")).collect();
        let [row] = rows[..] else { panic!("{text}") };
        assert!(row.contains("with a root directory") && row.contains(&format!("by process {pid}")), "{row}");
    }
    maker.signal(Signal::TERM);
    drop(maker.end());
    assert!(!lab.belljar(["template", "list"]).go().text().contains("being made"));
}

/// Moments of the first run at which it is killed.
const MOMENTS: u32 = 16;

#[test]
fn killed_at_any_moment_of_the_making() {
    let lab = Lab::new();
    let call = || run(&lab, WELL).sh("exit 7");
    let start = Instant::now();
    call().go().code(7);
    let whole = start.elapsed() + Duration::from_millis(20);
    for moment in 0..MOMENTS {
        for template in lab.templates() {
            fs::remove_dir_all(template).expect("removed");
        }
        let mut maker = call().spawn();
        maker.still_there_after(whole * moment / MOMENTS);
        maker.kill();
        let outcome = call().go();
        outcome.code(7);
        assert_eq!(outcome.warnings(), [""; 0], "moment {moment}");
        lab.template();
    }
}

#[test]
fn who_waits_for_a_maker_that_hangs_boots() {
    let lab = Lab::new();
    let mut maker = run(&lab, STUCK).sh("true").spawn();
    maker.await_mark("stuck");
    let outcome = run(&lab, WELL).args(["--boot-timeout", "4s"]).sh("exit 7").spawn().end_dirty();
    outcome.code(7).quietly(&["awaited", "none"]);
    maker.kill();
}
