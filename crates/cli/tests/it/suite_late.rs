//! Output of what a test leaves behind: listened to, and nothing is judged by what was cut.

use std::fs;

use crate::harness::{Lab, SUITE, WELL};

const TAP: &str = "echo 1..1; echo ok 1";

#[test]
fn output_that_is_cut_off_is_no_result() {
    let lab = Lab::new();
    let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\"]\n";
    let with = |format: &str, text: &str| format!("# belljar: format = \"{format}\"\n{text}");
    for (late, tap, skip, said) in [
        ("whole", "pass", "skip: not here", None),
        ("open", "pass", "skip: not here", Some("said nothing for 5 s")),
        ("cut", "fail 0", "fail 77", Some("cut off")),
    ] {
        let guest = lab.machine("g", &format!("[serial]\ndrain\n[agent]\nagent late={late}\n"));
        fs::write(lab.path("workspace/belljar.toml"), format!("{guest}{suite}")).expect("configuration");
        lab.test_file("tap", &with("tap", TAP));
        lab.test_file("kselftest", &with("kselftest", TAP));
        lab.test_file("skip", &with("tap", "echo not here; exit 77"));
        // Judged by its exit code alone.
        lab.test_file("exit", "exit 0");
        let outcome = lab.test(["-j4"]).go();
        outcome.verdicts_are(&[("tap", tap), ("kselftest", tap), ("skip", skip), ("exit", "pass")]);
        for told in ["tap", "exit"] {
            let warnings = outcome.told("warning", told);
            let heard = said.is_some_and(|said| warnings.iter().any(|w| w["message"].to_string().contains(said)));
            assert_eq!(heard, said.is_some(), "{late} {told}: {warnings:?}");
        }
    }
}

#[test]
fn a_run_tells_of_it() {
    let lab = Lab::new();
    let script = |late: &str| WELL.replace("\nagent\n", &format!("\nagent late={late}\n"));
    let outcome = lab.run(&script("cut")).sh("echo out").go();
    outcome.code(0).says("out\n").complains("cut off").complains(">/dev/null 2>&1");
    let outcome = lab.run(&script("open")).sh("exit 3").go();
    outcome.code(3).complains("processes that it left behind with its output open");
    let outcome = lab.run(&script("busy")).sh("exit 3").go();
    outcome.code(3).complains("said nothing for 30 s, but were at work all the time");
    let outcome = lab.run(&script("whole")).sh("exit 3").go();
    outcome.code(3);
    assert!(!outcome.stderr.contains("left behind"), "{}", outcome.stderr);
}

/// The limit is the command's; what it leaves behind has limits of its own.
#[test]
fn listening_to_what_is_left_does_not_count_as_the_commands_time() {
    let lab = Lab::new();
    let suite = SUITE.replace("guests = [\"g\"]\n", "guests = [\"m\"]\ntimeout = \"1s\"\n");
    // It says at once that the command has ended, and how only after two seconds.
    let guest = lab.machine("m", "[serial]\ndrain\n[agent]\nagent late=open\n");
    fs::write(lab.path("workspace/belljar.toml"), format!("{guest}{suite}")).expect("configuration");
    lab.test_file("late", "sleep 2; exit 3");
    let outcome = lab.test([""; 0]).go();
    assert_eq!(outcome.verdicts()["s/late@m"], "fail 3", "{}", outcome.text());
}

/// Where there is no agent, the shell that keeps the command listens.
#[test]
fn a_shell_on_the_console_listens_too() {
    let lab = Lab::new();
    let run = |text: &str| {
        let run = lab.run_image("[serial]\nshell\n").env("FAKE_GUEST_AGENT", "broken");
        run.args(["--timeout", "60s"]).sh(text).go()
    };
    let outcome = run("(sleep 2; echo late) & echo early; exit 3");
    outcome.code(3).says("early\nlate\n");
    assert!(!outcome.stderr.contains("left behind"), "{}", outcome.stderr);
    let outcome = run("sleep 20 >&2 & echo early");
    outcome
        .code(0)
        .says("early\n")
        .complains("processes that it left behind with its output open said nothing for 5 s");
}
