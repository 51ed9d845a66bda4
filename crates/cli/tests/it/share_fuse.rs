//! Shares over FUSE: what a guest's kernel asks, what none asks, and servers that end.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Lab, WELL};

/// A guest whose kernel does this with its shares when a command begins.
fn agent(how: &str) -> String {
    WELL.replace("\nagent\n", &format!("\nagent fuse={how}\n"))
}

#[test]
fn a_kernel_s_first_requests_are_answered_and_nothing_leads_outside() {
    for (how, mode) in
        [("ok", "ro"), ("ok", "rw"), ("ok", "cow"), ("unknown", "rw"), ("outside", "rw"), ("outside", "ro")]
    {
        let lab = Lab::new();
        let outcome = lab.run(&agent(how)).args(["-v", "--share", "fuse", "--workspace-mode", mode]).sh("exit 7").go();
        outcome.code(7).complains("share: fuse");
    }
}

#[test]
fn it_is_no_first_choice_where_the_agent_is_the_first_process() {
    let lab = Lab::new();
    lab.run(&agent("ok")).args(["-v"]).sh("exit 7").go().code(7).complains("share: 9p");
}

#[test]
fn a_share_that_is_served_no_more_is_never_a_pass() {
    for (how, said) in [
        ("short", "the server of the"),
        ("long", "the server of the"),
        ("cut", "the server of the"),
        ("killed", "the server of the"),
        ("closed", "the port of a share was closed in the guest"),
    ] {
        let lab = Lab::new();
        // Whether the command ends at once or not.
        for command in ["sleep 100", "true"] {
            let outcome = lab.run(&agent(how)).args(["--share", "fuse"]).sh(command).go();
            outcome.code(if how == "closed" { 121 } else { 125 }).complains(said).complains("is not to be believed");
        }
    }
}

#[test]
fn a_server_that_stands_still_is_named_and_one_ctrl_c_ends_the_wait_for_it() {
    let lab = Lab::new();
    // What was written is waited for at the end of the command, for minutes in a guest without KVM.
    let mut run = lab.run(&agent("stopped sync=never")).args(["--share", "fuse"]).sh("true").spawn();
    run.await_event("the server of the workspace (process ");
    run.signal(Signal::INT);
    let outcome = run.end();
    outcome.code(130).complains("is stopped (by SIGSTOP or a debugger)");
    assert_eq!(outcome.verdict(), "error/interrupted");
    assert!(outcome.elapsed < Duration::from_secs(60), "{:?}", outcome.elapsed);
}
