//! A container that is started while the engine is asked what its image's name stands for.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::{container::Engine, harness::Lab};

/// How often the engine was told to start a container ahead, and one when all was known; without those that look at an image.
fn starts(engine: &Engine<'_>) -> (usize, usize) {
    let count = |socket: &str| engine.calls().lines().filter(|line| line.ends_with(socket)).count();
    (count(" serve --container /.belljar/host-ahead"), count(" serve --container /.belljar/host"))
}

/// Waits until that is so.
fn until(engine: &Engine<'_>, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "it does not come to that: {}", engine.calls());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_waits_for_the_answer_before_anything_runs_in_it() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    assert_eq!(starts(&engine), (0, 1), "{}", engine.calls());
    engine.manner("inspect-slow");
    let words = ["run".into(), "-v".into(), "--engine".into(), engine.program().into_os_string()];
    let words = words.into_iter().chain(["--container".into(), "img".into()]);
    let mut live = lab.belljar(words).sh("echo x >>ran").spawn();
    // The agent has come up when its root is there.
    until(&engine, || starts(&engine).0 == 1 && engine.is_up());
    assert!(live.still_there_after(Duration::from_millis(300)));
    assert!(!lab.path("workspace/ran").exists(), "nobody knows yet that it is the right image");
    fs::write(engine.path("go"), "").expect("file");
    live.end().code(0).complains("start: ahead (img stood for the same image the last time");
    assert_eq!(starts(&engine), (1, 1), "{}", engine.calls());
    assert_eq!(fs::read_to_string(lab.path("workspace/ran")).expect("file"), "x\n");
}

#[test]
fn one_of_another_image_is_not_taken() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind);
        engine.run(&["-w", "none"], "true").code(0);
        let engine =
            engine.file("inspected", r#"[{"Id": "77", "Config": {"WorkingDir": "/usr"}, "Architecture": ""}]"#);
        let outcome = engine.run(&["-v", "-w", "none"], "pwd; echo x >$BELLJAR_OUT/ran");
        outcome.code(0).says("/usr\n");
        outcome.complains("start: anew (img stood for 0123abcd the last time; a container of that was started");
        let calls = engine.calls();
        let of = |words: &str| calls.lines().filter(|line| line.contains(words)).count();
        assert_eq!(
            (of(" 0123abcd serve --container /.belljar/host-ahead"), of(" 77 serve --container /.belljar/host")),
            (1, 1),
            "{calls}"
        );
        // The right one is known now. What changes beside the files counts, too.
        let engine =
            engine.file("inspected", r#"[{"Id": "77", "Config": {"WorkingDir": "/etc"}, "Architecture": ""}]"#);
        engine.run(&["-v", "-w", "none"], "pwd").code(0).says("/etc\n").complains("start: anew (");
        engine.run(&["-v", "-w", "none"], "pwd").code(0).says("/etc\n").complains("start: ahead (");
    }
}

#[test]
fn what_is_wrong_with_the_image_is_told_as_ever() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let engine = engine.file("images", "");
    engine.run(&[], "touch ran").code(125).complains("podman has no image img; fetch it with");
    assert!(!lab.path("workspace/ran").exists());
    let engine = engine.file("images", "img\n");
    engine.manner("nonsense");
    engine.run(&[], "touch ran").code(125).complains("what podman says of the image img cannot be read");
    let before = starts(&engine);
    engine.manner("dies");
    engine.run(&[], "touch ran").code(121).complains("before its agent had come up");
    assert_eq!(starts(&engine), (before.0 + 1, before.1), "what failed is not tried again in silence");
    assert!(!lab.path("workspace/ran").exists());
}

#[test]
fn nothing_goes_ahead_where_nothing_is_to_be_started_or_more_has_to_be_made() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    engine.run(&["--dry-run"], "true").code(0);
    engine.run(&["--nic", "isolated"], "true").code(0);
    engine.run(&["--pull", "always"], "true").code(0);
    lab.suite(
        "[guests.box]\ncontainer = \"img\"\n[[suites]]\nname = \"s\"\ntests = \"t/*\"\nguests = [\"box\"]\n",
        &[("pass", "true")],
    );
    let program = engine.program();
    lab.belljar(["test".as_ref(), "--engine".as_ref(), program.as_os_str()]).go().code(0);
    assert_eq!(starts(&engine).0, 0, "{}", engine.calls());
}

#[test]
fn a_belljar_that_is_killed_meanwhile_leaves_nothing() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    engine.manner("inspect-slow");
    let words =
        || ["run".into(), "--engine".into(), engine.program().into_os_string(), "--container".into(), "img".into()];
    let call = || lab.belljar(words()).sh("touch ran").spawn();
    // When the engine was told of both, and when the container's agent is there and nobody has spoken to it.
    for is_up in [false, true] {
        let before = starts(&engine).0;
        let live = call();
        until(&engine, || starts(&engine).0 > before && (!is_up || engine.is_up()));
        // The laboratory sees that no process is left.
        live.kill();
        assert!(!lab.path("workspace/ran").exists());
    }
    let live = call();
    until(&engine, || engine.is_up());
    live.signal(rustix::process::Signal::INT);
    live.end().code(130);
    engine.manner("");
    engine.run(&[], "true").code(0);
    assert!(!lab.path("workspace/ran").exists());
}
