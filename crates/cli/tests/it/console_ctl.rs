//! What a command asks for in a guest without the agent, which is driven by a shell on its console.

use crate::harness::{Belljar, Lab, Outcome};

const SHELL: &str = "[serial]\nsend \"SeaBIOS (version 1.16.2)\\r\\n\"\nshell\n";

/// A guest in which the agent cannot run.
fn guest(lab: &Lab) -> Belljar<'_> {
    lab.run_image(SHELL).env("FAKE_GUEST_AGENT", "broken").args(["--timeout", "60s", "-v"])
}

fn marks(outcome: &Outcome) -> Vec<String> {
    let events = outcome.events().into_iter().filter(|event| event["kind"] == "mark");
    events.map(|event| event["text"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn disks_marks_and_devices_are_asked_for_by_files() {
    let lab = Lab::new();
    let text = "set -e; [ -z \"${BELLJAR_CTL-}\" ] || echo mark >$BELLJAR_CTL; belljar-ctl mark one; belljar-ctl disk data0 error write; belljar-ctl disk data0 counts | sed -n 1p; \
                belljar-ctl link down; belljar-ctl link up; belljar-ctl nmi; ! belljar-ctl disk data1 error; ! belljar-ctl kexec; \
                ! belljar-ctl clock +1h; ! belljar-ctl wakeup 5s; ! belljar-ctl explode 2>/dev/null; \
                echo 'mark by hand' >\"$BELLJAR_CTL_DIR/mine\"; until [ -e \"${BELLJAR_CTL_DIR%/*}/answers/mine\" ]; do sleep 0.1; done; \
                echo 'mark late' >\"$BELLJAR_CTL_DIR/late\"; exit 7";
    let outcome = guest(&lab).args(["--disk", "size=1M,serial=data0,lab"]).sh(text).go();
    outcome
        .code(7)
        .says("fault 1\nreads 0\n")
        .complains("sh on the console")
        .complains("there is no agent in this guest")
        .complains("which does not survive a suspend");
    assert_eq!(marks(&outcome), ["one", "by hand", "late"]);
    let told = outcome.controls();
    for wanted in
        ["disk data0: error write (fault 1)", "machine: link down ()", "machine: link up ()", "machine: nmi ()"]
    {
        assert!(told.iter().any(|told| told == wanted), "{wanted}: {told:?}");
    }
    assert!(told.iter().all(|told| !told.contains("kexec")), "{told:?}");
    // Nothing of it is left for a result.
    let out = lab.runs()[0].join("out");
    assert_eq!(std::fs::read_dir(&out).map_or(0, Iterator::count), 0, "{}", out.display());
}

#[test]
fn a_command_is_started_again_after_a_restart_that_it_asked_for() {
    for (ask, ends) in [("reset half", "quit"), ("power-cut half strict", "quit")] {
        let lab = Lab::new();
        let text = format!(
            "echo \"$BELLJAR_REBOOT_COUNT ${{BELLJAR_REBOOT_MARK-none}}\"; [ \"$BELLJAR_REBOOT_COUNT\" = 1 ] && exit 3; belljar-ctl {ask}; \
             echo lived on; sleep 60"
        );
        let outcome = guest(&lab).args(["--disk", "size=1M,serial=data0,lab"]).sh(&text).go();
        outcome.code(3).says("0 none\n1 half\n");
        assert!(lab.seen().contains(ends), "{ask}: {}", lab.seen());
        let told = outcome.controls();
        assert!(told.last().is_some_and(|told| told.contains("it is up again; it took ")), "{told:?}");
    }
}

#[test]
fn a_guest_without_shares_asks_over_its_console() {
    let lab = Lab::new();
    let image = lab.image("disk.qcow2", "qcow2");
    let guest = lab
        .belljar(["run", "--accel", "tcg", "-w", "none", "--disk", "size=1M,serial=data0,lab"])
        .script(SHELL)
        .in_playground();
    let guest = guest
        .args(["--image".as_ref(), image.as_os_str()])
        .env("FAKE_GUEST_AGENT", "broken")
        .env("FAKE_GUEST_9P", "off");
    let outcome = guest.sh("belljar-ctl mark one && belljar-ctl disk data0 counts | sed -n 1p; echo 'mark late' >$BELLJAR_CTL_DIR/x; exit 7").go();
    outcome.code(7).says("reads 0\n");
    assert_eq!(marks(&outcome), ["one", "late"]);
}

#[test]
fn orders_that_are_lost_are_no_pass() {
    let lab = Lab::new();
    let text = "n=0; while [ $n -lt 5000 ]; do echo 'mark x' >\"$BELLJAR_CTL_DIR/.$n\"; n=$((n+1)); done; exit 0";
    let outcome = guest(&lab).sh(text).go();
    outcome.code(125).complains("more than 4096 files").complains("orders were lost");
}
