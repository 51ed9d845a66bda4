//! `kill -9` of Belljar at any moment leaves no process, no file and no changed image.

use std::time::{Duration, Instant};

use crate::harness::{Lab, WELL};

/// Moments of the fifty that fall into preparation, boot, login, command and end.
const MOMENTS: u32 = 50;

#[test]
fn while_a_command_runs() {
    let lab = Lab::new();
    let mut run = lab.run(WELL).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    run.kill();
}

#[test]
fn while_nothing_answers() {
    let lab = Lab::new();
    let mut run = lab.run_image("[options]\nsigterm ignore\n[serial]\nshell\nmark booted\n").sh("true").spawn();
    run.await_mark("booted");
    run.kill();
}

#[test]
fn at_fifty_moments() {
    let lab = Lab::new();
    let image = lab.image("disk.qcow2", "qcow2");
    let before = std::fs::read(&image).expect("image");
    let script = "[serial]\nlogin user=root password=secret\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let call = || {
        let args = ["--image".as_ref(), image.as_os_str(), "--login".as_ref(), "root:secret".as_ref()];
        lab.run_bare(script)
            .in_playground()
            .args(args)
            .args(["--disk", "size=16M"])
            .sh("echo x > $BELLJAR_OUT/x; sleep 0.05")
    };
    let start = Instant::now();
    call().go().code(0);
    let whole = start.elapsed() + Duration::from_millis(20);
    for moment in 0..MOMENTS {
        let mut run = call().spawn();
        // Evenly over the whole of a run: every phase gets its share.
        let ended = !run.still_there_after(whole * moment / MOMENTS);
        let outcome = run.kill();
        assert!(ended || outcome.status.code() != Some(0) || moment > MOMENTS / 2, "{:?}", outcome.status);
        assert!(std::fs::read(&image).expect("image") == before, "moment {moment}");
    }
    // And the next run finds nothing in its way.
    call().go().code(0);
}

#[test]
fn a_parent_that_dies_before_qemu_starts() {
    let lab = Lab::new();
    for micros in [0, 500, 1000, 2000, 4000, 8000, 12000, 16000, 24000, 32000] {
        let mut run = lab.run(WELL).sh("exec sleep 60").spawn();
        run.still_there_after(Duration::from_micros(micros));
        run.kill();
    }
}
