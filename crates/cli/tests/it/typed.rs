//! The agent, typed over the console of a guest that has no other way to it.

use crate::harness::{Belljar, Lab};

/// A shell, and what follows on the second serial port when the agent is started by hand.
const GUEST: &str =
    "[serial]\nsend \"SeaBIOS (version 1.16.2)\\r\\n\"\nshell\n[serial1]\nwait agent 85000\nagent pid1=off\n";

/// A kernel without 9p in a machine whose port brings no agent, with these variables of the fake's.
fn run<'a>(lab: &'a Lab, variables: &[(&str, &str)]) -> Belljar<'a> {
    run_script(lab, GUEST, variables)
}

fn run_script<'a>(lab: &'a Lab, script: &str, variables: &[(&str, &str)]) -> Belljar<'a> {
    lab.image("disk.qcow2", "qcow2");
    let image = lab.path("disk.qcow2").display().to_string();
    let run =
        lab.belljar(["run", "--accel", "tcg", "-w", "none", "-v", "--image", &image]).script(script).in_playground();
    variables.iter().fold(run.env("FAKE_GUEST_9P", "off"), |run, (name, value)| run.env(name, value))
}

#[test]
fn it_is_typed_where_nothing_else_brings_it() {
    let lab = Lab::new();
    let outcome = run(&lab, &[]).sh("echo out; echo err >&2; exit 7").go();
    outcome.code(7).says("out\n").complains("err\n");
    outcome.complains("agent: typed over the console (the agent does not run in this guest: exit code 126");
    outcome.complains("for the guest's base64 -d, gunzip -c and cksum)").complains("agent: 100 % typed (in ");
    outcome.complains("0 of its pieces more than once").complains("session: agent on the second serial port");
    assert_eq!(outcome.chosen("agent").first().map(String::as_str), Some("typed over the console"));
}

#[test]
fn a_guest_that_has_little_is_typed_to_in_other_words() {
    let lab = Lab::new();
    for (lacks, used) in [
        ("cksum", "base64 -d, gunzip -c and sha256sum"),
        ("gunzip,cksum,sha256sum,dd", "base64 -d, gzip -dc and wc -c"),
        ("gunzip,gzip,zcat,cksum,sha256sum,wc", "base64 -d, nothing"),
        ("base64,dd,head", "printf, gunzip -c and cksum"),
    ] {
        let outcome = run(&lab, &[("FAKE_GUEST_LACKS", lacks)]).sh("exit 7").go();
        outcome.code(7).complains(&format!("for the guest's {used})")).complains("agent on the second serial port");
    }
}

#[test]
fn what_did_not_arrive_is_typed_again() {
    let lab = Lab::new();
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "once")]).sh("exit 7").go();
    outcome.code(7).complains(", 1 of its pieces more than once").complains("agent on the second serial port");
    // The beginning of what is typed behind the first piece is lost.
    let script = GUEST.replace("shell\n", "shell\nwait piece 60000\ndrop 500\n");
    let outcome = run_script(&lab, &script, &[("FAKE_GUEST_BASE64", "marks")]).sh("exit 7").go();
    outcome.code(7).complains("agent: 100 % typed").complains("agent on the second serial port");
}

#[test]
fn what_never_arrives_whole_is_said() {
    let lab = Lab::new();
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "damaged")]).sh("echo out; exit 7").go();
    outcome.code(7).complains("session: sh on the console (the agent does not run in this guest: exit code 126");
    outcome.complains("nor can it be typed over the console: piece 1 of ");
    outcome.complains("did not arrive whole, typed 4 times, by what cksum says");
    // The next boot may have more luck, and a template would not.
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "damaged")]).with_templates().sh("exit 7").go();
    outcome.code(7).complains("so that it has to boot each time: its agent could not be typed this time: piece 1 of");
    assert_eq!(lab.templates().len(), 0);
    // Nothing sums up what came, but the agent itself: it is not started.
    let lacks = ("FAKE_GUEST_LACKS", "gunzip,gzip,zcat,cksum,sha256sum,wc");
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "damaged"), lacks]).sh("echo out; exit 7").go();
    outcome.code(7).complains("the agent's own checksum of itself is another in ");
    // Whatever says that all is well: what is compressed tells.
    let lacks = ("FAKE_GUEST_LACKS", "cksum,sha256sum,wc");
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "damaged"), lacks]).sh("echo out; exit 7").go();
    outcome.code(7).complains("it could not be put together in ");
}

#[test]
fn what_cannot_be_typed_is_said() {
    let lab = Lab::new();
    let outcome = run(&lab, &[("FAKE_GUEST_AGENT", "broken")]).sh("echo out; exit 7").go();
    outcome.code(7).complains("session: sh on the console (").complains("it does not run in ");
    // Nowhere to put it.
    let image = lab.path("disk.qcow2").display().to_string();
    let run = lab.belljar(["run", "--accel", "tcg", "-w", "none", "-v", "--image", &image]).script(GUEST);
    let outcome = run.env("FAKE_GUEST_9P", "off").sh("true").go();
    outcome.complains("nor can it be typed over the console: it can write to none of /run, /dev/shm, /tmp, /var/tmp");
}

#[test]
fn a_guest_that_stops_to_answer_is_given_up() {
    let lab = Lab::new();
    let outcome = run(&lab, &[("FAKE_GUEST_BASE64", "hang")]).args(["--boot-timeout", "15s"]).sh("true").go();
    assert_ne!(outcome.status.code(), Some(0));
    outcome.complains("the guest's shell was to take piece 1 of ");
}
