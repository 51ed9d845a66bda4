//! Commands in a guest that works.

use std::fs;

use crate::harness::{Lab, WELL, snapshot};

#[test]
fn the_exit_code_is_the_commands() {
    let lab = Lab::new();
    for code in [0, 1, 7, 77, 121, 124, 125, 255] {
        lab.run(WELL).sh(&format!("exit {code}")).go().code(code);
    }
}

#[test]
fn a_pass_says_little() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).sh("echo out; echo err >&2").go();
    outcome.code(0).says("out\n");
    assert_eq!(outcome.verdict(), "pass");
    snapshot!(outcome);
}

#[test]
fn a_signal_is_named() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).sh("kill -9 $$").go();
    outcome.code(137).complains("SIGKILL");
    let outcome = lab.run(WELL).sh("kill -TERM $$").go();
    outcome.code(143).complains("SIGTERM");
}

#[test]
fn ten_mebibytes_come_back_as_they_went() {
    let lab = Lab::new();
    // Every byte, in no order that a protocol or a terminal could like.
    let mut state = 0x2545_f491_u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    })
    .take(10 << 20)
    .collect();
    let outcome = lab.run(WELL).stdin(bytes.clone()).sh("cat; echo done >&2").go();
    outcome.code(0).complains("done\n");
    assert!(outcome.stdout == bytes, "{} of {} bytes", outcome.stdout.len(), bytes.len());
}

#[test]
fn input_that_is_not_read_does_no_harm() {
    let lab = Lab::new();
    lab.run(WELL).stdin(vec![b'x'; 3 << 20]).sh("exec <&-; echo ok").go().code(0).says("ok\n");
    lab.run(WELL).stdin("lost").args(["--no-stdin"]).sh("wc -c").go().code(0).says("0\n");
    lab.run(WELL).open_stdin().sh("echo ok").go().code(0).says("ok\n");
}

#[test]
fn environment_directory_and_arguments_arrive() {
    let lab = Lab::new();
    let outcome = lab
        .run(WELL)
        .args(["--env", "A=with space", "--env", "B=", "--env", "C"])
        .env("C", "from here")
        .command(["sh", "-c", "printf '%s|' \"$A\" \"$B\" \"$C\" \"$@\"", "sh", "a b", "", "*", "ü"])
        .go();
    outcome.code(0).says("with space||from here|a b||*|ü|");
    let outcome = lab.run(WELL).args(["--env", "NOT_SET_ANYWHERE"]).sh("true").go();
    outcome.code(125).complains("NOT_SET_ANYWHERE is not set here");
    lab.run(WELL).args(["--cwd", "/tmp"]).command(["pwd"]).go().code(0).says("/tmp\n");
    let outcome = lab.run(WELL).args(["--cwd", "/no/such/directory"]).command(["pwd"]).go();
    // Not 127: it is not the command that is not there.
    outcome.code(126).complains("/no/such/directory: there is no such directory in the guest");
}

#[test]
fn the_workspace_is_shared_and_results_arrive() {
    let lab = Lab::new();
    fs::write(lab.path("workspace/input"), "in").expect("input");
    let outcome = lab
        .run(WELL)
        .args(["--out".as_ref(), lab.path("results").as_os_str()])
        .sh("cat input; echo made > made; echo result > $BELLJAR_OUT/result")
        .go();
    outcome.code(0).says("in");
    assert_eq!(fs::read_to_string(lab.path("workspace/made")).expect("made"), "made\n");
    assert_eq!(fs::read_to_string(lab.path("results/result")).expect("result"), "result\n");
}

#[test]
fn without_a_directory_for_results_they_are_in_the_runs() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).sh("echo result > $BELLJAR_OUT/result").go();
    outcome.code(0);
    assert_eq!(outcome.kept("out/result"), b"result\n");
}

#[test]
fn what_cannot_be_started_is_told_apart() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).command(["no-such-program"]).go();
    outcome.code(127).complains("no-such-program");
    fs::write(lab.path("workspace/plain"), "text").expect("file");
    let outcome = lab.run(WELL).command(["./plain"]).go();
    outcome.code(126).complains("./plain");
    let outcome = lab.run(WELL).args(["--user", "nobody-of-that-name"]).command(["true"]).go();
    outcome.code(126).complains("nobody-of-that-name");
    assert!(outcome.verdict().starts_with("fail"), "{}", outcome.verdict());
}

#[test]
fn what_cannot_be_started_is_told_even_with_q() {
    let lab = Lab::new();
    let quiet = || lab.run(WELL).args(["-q"]);
    quiet().command(["/no/such"]).go().code(127).complains("cannot start the command: execve /no/such");
    quiet().args(["--cwd", "/no/such"]).command(["true"]).go().code(126).complains("/no/such");
    quiet().args(["--user", "nobody-of-that-name"]).command(["true"]).go().code(126).complains("nobody-of");
    // What ran and failed says so itself.
    assert_eq!(quiet().sh("exit 127").go().code(127).stderr, "");
}

#[test]
fn a_timeout_ends_the_command_and_shows_the_console() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--timeout", "300ms"]).sh("echo begun; exec sleep 60").go();
    outcome.code(124).says("begun\n").complains("--timeout").complains("Linux version 6.1.0-fake");
    assert_eq!(outcome.verdict(), "timeout/command");
}

#[test]
fn the_logs_are_kept() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).sh("true").go();
    outcome.code(0);
    assert!(String::from_utf8_lossy(&outcome.kept("console.log")).contains("Linux version 6.1.0-fake"));
    let command = String::from_utf8(outcome.kept("qemu.cmd")).expect("text");
    assert!(command.contains("-nodefaults") && command.contains("fake-qemu"), "{command}");
    let kinds: Vec<_> = outcome.events().iter().filter_map(|e| e["kind"].as_str().map(str::to_owned)).collect();
    for kind in ["run-started", "choice", "phase", "command-started", "command-ended", "run-ended"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is not among {kinds:?}");
    }
}

#[test]
fn verbose_says_what_was_chosen_and_quiet_nothing() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["-v"]).sh("true").go();
    outcome.code(0).complains("accelerator").complains("tcg").complains("logs: ");
    let outcome = lab.run(WELL).args(["-q"]).sh("true").go();
    assert_eq!(outcome.code(0).stderr, "");
    let outcome = lab.run(WELL).args(["-q"]).sh("echo mine >&2; exit 3").go();
    outcome.code(3).complains("mine\n");
    let outcome = lab.run(WELL).args(["-vv"]).sh("true").go();
    outcome.code(0).complains("Linux version 6.1.0-fake");
}

#[test]
fn the_guest_is_powered_off_when_asked() {
    let lab = Lab::new();
    lab.run(WELL).args(["--power-off"]).sh("exit 5").go().code(5);
    assert!(lab.seen().contains("Shutdown(PowerOff)"), "{}", lab.seen());
}

#[test]
fn what_a_guest_does_on_its_way_to_power_off_is_told_apart() {
    let lab = Lab::new();
    // The agent's port is closed long before: that was asked for.
    let slow = WELL.replace("\nagent\n", "\nagent shutdown=slow\n");
    lab.run(&slow).args(["--power-off"]).sh("exit 5").go().code(5);
    let panicking = slow.replace("shutdown=slow", "shutdown=panic");
    let outcome = lab.run(&panicking).args(["--power-off"]).sh("true").go();
    assert_eq!(outcome.code(121).verdict(), "crash/panic");
}

#[test]
fn marks_are_told_when_asked_for_and_bounded() {
    let lab = Lab::new();
    let with = |n: u32| WELL.replace("\nagent\n", &format!("\nagent marks={n}\n"));
    let outcome = lab.run(&with(2)).args(["-v"]).sh("echo out").go();
    outcome.code(0).says("out\n").complains("belljar: mark: step 1 [31m\nbelljar: mark: step 2 [31m\n");
    assert!(lab.seen().contains(r#"Answer { number: 2, answer: Done(\"\") }"#), "{}", lab.seen());
    let outcome = lab.run(&with(2)).sh("true").go();
    assert!(!outcome.code(0).stderr.contains("mark"), "{}", outcome.stderr);

    let outcome = lab.run(&with(1500)).sh("true").go();
    outcome.code(0).complains("the command sets more than 1000 marks: the rest is not recorded");
    assert_eq!(outcome.events().iter().filter(|event| event["kind"] == "mark").count(), 1000);
}

#[test]
fn a_guest_asks_for_faults_of_its_lab_disks() {
    let lab = Lab::new();
    let asks = "data0+error+write+times=1,data0+counts,data0+explode\u{1b}[31m,data1+counts,data0+mark+x,lab0+heal";
    let script = WELL.replace("\nagent\n", &format!("\nagent asks={asks}\n"));
    let disks = ["--disk", "size=1M,serial=data0,lab", "--disk", "size=1M,lab"];
    let outcome = lab.run(&script).args(disks).args(["-v"]).sh("sleep 2").go();
    outcome.code(0).complains("belljar: control: disk data0: error write times=1 (fault 1)\n");
    outcome.complains("belljar: control: disk lab0: heal (healed 0)\n");
    let seen = lab.seen();
    for answer in [
        r#"number: 1, answer: Done("fault 1\n")"#,
        r#"number: 2, answer: Done("reads 0\nread-bytes 0\n"#,
        r#"number: 3, answer: Refused("\"explode"#,
        r#"number: 4, answer: Refused("there is no lab disk \"data1\"; there are data0, lab0")"#,
        r#"number: 5, answer: Done("")"#,
        r#"number: 6, answer: Done("healed 0\n")"#,
    ] {
        // As a string of JSON has it.
        let quoted = serde_json::to_string(answer).expect("text");
        assert!(seen.contains(quoted.trim_matches('"')), "{answer}: {seen}");
    }
    // What changes nothing is no event.
    let controls: Vec<_> = outcome.events().into_iter().filter(|event| event["kind"] == "control").collect();
    assert_eq!(controls.len(), 2, "{controls:?}");
    assert_eq!((&controls[0]["device"], &controls[0]["outcome"]), (&"disk data0".into(), &"fault 1".into()));

    let outcome = lab.run(&WELL.replace("\nagent\n", "\nagent asks=data0+counts\n")).sh("sleep 1").go();
    outcome.code(0);
    assert!(lab.seen().contains("this guest has no lab disks"), "{}", lab.seen());
}

#[test]
fn a_lab_disk_that_cannot_be_served_is_told() {
    let lab = Lab::new();
    let twice = ["--disk", "size=1M,serial=a,lab", "--disk", "size=1M,serial=a,lab"];
    lab.run(WELL).args(twice).sh("true").go().code(125).complains("two disks have the serial number a");
    let beside = ["--disk", "size=1M,serial=a", "--disk", "size=1M,serial=a,lab"];
    lab.run(WELL).args(beside).sh("true").go().code(125).complains("two disks have the serial number a");
}

#[test]
fn a_lab_disk_that_is_too_large_is_refused_at_once() {
    let lab = Lab::new();
    let image = lab.path("large.raw");
    fs::File::create(&image).and_then(|file| file.set_len(9 << 40)).expect("image");
    let of_image = format!("file={},lab", image.display());
    let of_directory = format!("directory={},size=9T", lab.path("workspace").display());
    for disk in ["size=9T,lab", &of_image, &of_directory] {
        lab.run(WELL).args(["--disk", disk]).sh("true").go().code(125).complains(" 8 TiB at most");
    }
}

#[test]
fn an_image_that_changes_while_a_run_serves_it_is_an_error() {
    let lab = Lab::new();
    let image = lab.image("data.raw", "raw");
    let guest = lab.machine("m", WELL);
    let config = format!(
        "{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"m\"]\ndisks = [{{ file = \"{}\", lab = true }}]\n",
        image.display()
    );
    lab.suite(&config, &[("1-before", &format!("echo x >>{}", image.display())), ("2-after", "exit 0")]);
    let outcome = lab.test(["-j1"]).go();
    let verdicts = outcome.verdicts();
    assert_eq!(
        (&*verdicts["s/1-before@m"], &*verdicts["s/2-after@m"]),
        ("error host", "error host"),
        "{}",
        outcome.text()
    );
    for told in [
        "was changed, or replaced, while the guest ran; leave it alone meanwhile; what the guest saw of it since then is not to be believed",
        "it was changed since this run has looked at it first",
    ] {
        assert!(outcome.text().contains(told), "{told}: {}", outcome.text());
    }
}

#[test]
fn an_image_that_changes_under_a_shared_guest_is_an_error_of_the_test_that_ran() {
    let lab = Lab::new();
    let image = lab.image("data.raw", "raw");
    let guest = lab.machine("m", WELL);
    let config = format!(
        "{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"m\"]\nisolation = \"suite\"\ndisks = [{{ file = \"{}\", lab = true }}]\n",
        image.display()
    );
    let change = format!("echo x >>{}", image.display());
    lab.suite(&config, &[("1-before", "exit 0"), ("2-changes", &change)]);
    let outcome = lab.test(["-j1"]).go();
    let verdicts = outcome.verdicts();
    assert_eq!((&*verdicts["s/1-before@m"], &*verdicts["s/2-changes@m"]), ("pass", "error host"), "{}", outcome.text());
}

#[test]
fn a_lab_disk_has_a_raw_copy_of_an_image_in_another_format() {
    let lab = Lab::new();
    let image = lab.image("data.qcow2", "qcow2");
    let path = image.display();
    let run = || {
        let disk = format!("file={path},serial=data0,lab");
        let plain = format!("file={},lab", lab.path("image.raw").display());
        lab.run(WELL).args(["-v", "--disk", &disk, "--disk", &plain]).sh("sleep 1").go()
    };
    let copies = || {
        let names = fs::read_dir(lab.path("cache/belljar")).expect("cache").flatten().map(|entry| entry.path());
        let is_copy = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("belljar-raw-") && !name.ends_with(".seal")
        };
        names.filter(is_copy).collect::<Vec<_>>()
    };
    run().code(0).complains("the bytes of the lab disk data0: a raw copy of ").complains(" (made now, in ");
    let made = copies();
    let [copy] = &made[..] else { panic!("a raw image has no copy: {made:?}") };
    assert_eq!(fs::read(copy).expect("copy"), fs::read(lab.path("image.raw")).expect("image"));
    run().code(0).complains(" (made by an earlier run)");
    assert_eq!(copies(), made);
    fs::write(copy, "damage").expect("copy");
    run()
        .code(0)
        .complains("in the cache was not as it was made (it has 6 bytes instead of 1048576) and was made anew");
    // Another image at the same place.
    lab.image("data.qcow2", "qcow2");
    run().code(0).complains(" (made now, in ");
    assert_eq!(copies().len(), 2);
}

#[test]
fn the_boot_disk_may_be_a_lab_disk() {
    let lab = Lab::new();
    let script = "[serial]\nlogin user=root password=secret\n[agent]\nwait agent 80000\nagent pid1=off asks=boot+error+write,boot+counts\n";
    let run = |script: &str, words: &[&str]| {
        lab.run_image(script).args(["-v", "--login", "root:secret"]).args(words).sh("sleep 2").go()
    };
    let outcome = run(script, &["--boot-lab"]);
    outcome.code(0).complains("the bytes of the lab disk boot: a raw copy of ");
    outcome.complains("belljar: control: disk boot: error write (fault 1)\n");
    assert!(lab.seen().contains(r"reads 0\\nread-bytes 0"), "{}", lab.seen());
    run(script, &["--boot-lab", "--disk", "size=1M,serial=boot"])
        .code(125)
        .complains("two disks have the serial number boot");
    // Without it there is nothing to be told.
    run(script, &[]).code(0);
    assert!(lab.seen().contains("this guest has no lab disks"), "{}", lab.seen());
    lab.run(WELL)
        .args(["--boot-lab"])
        .sh("true")
        .go()
        .code(2)
        .complains("--boot-lab says something about --image, which is not given");
}

#[test]
fn a_guest_cannot_write_to_what_belljar_goes_by() {
    let lab = Lab::new();
    for place in ["cache/belljar/templates", "state/belljar/runs/earlier"] {
        let place = lab.path(place);
        fs::create_dir_all(&place).expect("directory");
        let text = place.display().to_string();
        let kernel = ["--kernel".into(), lab.path("vmlinux"), "--rootfs".into(), lab.path("rootfs")];
        let run = |words: &[&str]| {
            lab.belljar(["run", "--accel", "tcg"]).script(WELL).args(kernel.clone()).args(words).sh("true").go()
        };
        for words in [["-w", text.as_str()], ["--out", &text]] {
            run(&words).code(125).complains("where Belljar keeps what it goes by itself");
        }
        run(&["-w", &text, "--workspace-mode", "ro"]).code(0);
    }
}

#[test]
fn ended_runs_are_cleared_away() {
    let lab = Lab::new();
    for _ in 0..4 {
        lab.run(WELL).env("BELLJAR_KEEP_RUNS", "2").sh("true").go().code(0);
    }
    assert!(lab.runs().len() <= 3, "{:?}", lab.runs());
}

#[test]
fn runs_do_not_disturb_each_other() {
    let lab = Lab::new();
    let runs: Vec<_> = (0..4).map(|n| lab.run(WELL).sh(&format!("echo {n}; exit {n}")).spawn()).collect();
    for (n, run) in (0..4).zip(runs) {
        run.end_dirty().code(n).says(&format!("{n}\n"));
    }
    assert_eq!(lab.runs().len(), 4);
}
