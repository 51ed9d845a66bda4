//! Devices that a guest has where they are asked for.

use crate::harness::{Lab, Outcome, WELL};

#[test]
fn a_watchdog_that_bites_is_a_verdict_of_its_own() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--watchdog", "auto", "-v"]).sh("echo begun; bite; sleep 60").go();
    outcome.code(121).says("begun\n").complains("watchdog bit").complains("watchdog: i6300esb");
    assert_eq!(outcome.verdict(), "crash/watchdog");
    assert!(lab.seen().contains("watchdog=reset") && lab.seen().contains("i6300esb"), "{}", lab.seen());
}

#[test]
fn a_bite_that_was_prepared_is_a_restart() {
    let lab = Lab::new();
    let asking = WELL.replace("\nagent\n", "\nagent asks=reboot-prepare+half\n");
    let bites = "[ $BELLJAR_REBOOT_COUNT = 0 ] || exit 3; sleep 1; bite; sleep 60";
    let outcome = lab.run(&asking).args(["--watchdog", "i6300esb"]).sh(bites).go();
    outcome.code(3);
    let events = outcome.events();
    let told: Vec<_> = events.iter().filter(|e| e["kind"] == "control").map(|e| e["outcome"].as_str()).collect();
    assert!(told.contains(&Some("the guest's watchdog bit")), "{told:?}");
    // Only once.
    let outcome = lab.run(&asking).args(["--watchdog", "i6300esb"]).sh("sleep 1; bite; sleep 60").go();
    assert_eq!(outcome.code(121).verdict(), "crash/watchdog");
}

#[test]
fn what_this_machine_or_qemu_has_not_got_is_told() {
    let lab = Lab::new();
    for (words, said) in [
        (
            &["--watchdog", "diag288"][..],
            "have no watchdog diag288; take i6300esb or ib700 or itco, or leave watchdog out",
        ),
        (&["--watchdog", "itco"][..], "is part of the machine type q35"),
    ] {
        let outcome = lab.run(WELL).args(words).sh("true").go();
        outcome.code(125).complains(said);
    }
    let outcome = lab.belljar(["run", "--container", "x", "--watchdog", "auto", "--", "true"]).script(WELL).go();
    outcome.code(2).complains("--watchdog does not go with --container: a container is no machine");
}

/// What was asked of the machine, and what came of it.
fn controls(outcome: &Outcome) -> Vec<String> {
    let events = outcome.events().into_iter().filter(|event| event["kind"] == "control");
    let of = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    events.map(|event| format!("{} ({})", of(&event, "order"), of(&event, "outcome"))).collect()
}

fn asking(asks: &str) -> String {
    WELL.replace("\nagent\n", &format!("\nagent asks={asks}\n"))
}

#[test]
fn a_balloon_takes_memory_from_the_guest() {
    let lab = Lab::new();
    let asks = asking("balloon+256M,balloon+5G,balloon+4096,balloon+full");
    let outcome = lab.run(&asks).args(["--balloon"]).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(
        controls(&outcome),
        [
            "balloon 256M (memory 268435456)",
            "balloon 5G (the machine has 1073741824 bytes of memory, and not 5368709120)",
            "balloon 4096 (no guest goes on with 4096 bytes of memory; leave it 64 MiB or more, and as much as its programs need)",
            "balloon full (memory 1073741824)"
        ]
    );
    let outcome = lab.run(&asking("balloon+256M")).sh("sleep 1").go();
    outcome.code(0);
    let told = controls(&outcome);
    assert!(told[0].starts_with("balloon 256M (this machine has no balloon: QEMU refused `query-balloon`"), "{told:?}");
}

#[test]
fn pictures_of_the_screen_are_kept_with_the_guests_files() {
    let lab = Lab::new();
    let asks = asking("screenshot+one,screenshot+one,screenshot+../two");
    let outcome = lab.run(&asks).args(["--display", "std"]).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(controls(&outcome), ["screenshot one (screenshots/one.png)", "screenshot one (screenshots/one-2.png)"]);
    for kept in ["screenshots/one.png", "screenshots/one-2.png"] {
        assert!(outcome.kept(kept).starts_with(b"\x89PNG"), "{kept}");
    }
    assert!(lab.seen().contains("screenshot wants a name"), "{}", lab.seen());
    let outcome = lab.run(&asking("screenshot+one")).sh("sleep 1").go();
    outcome.code(0);
    let told = controls(&outcome);
    assert!(told[0].contains("a machine without a graphics card gets one by display"), "{told:?}");
}

#[test]
fn sound_randomness_and_how_processors_are_put_together() {
    let lab = Lab::new();
    let words = ["--sound", "hda", "--no-rng", "--cpus", "4", "--cpu-topology", "sockets=2,cores=2"];
    lab.run(WELL).args(words).sh("true").go().code(0);
    let seen = lab.seen();
    for told in ["\"none,id=sound0\"", "hda-duplex,audiodev=sound0", "\"4,sockets=2,cores=2,threads=1\""] {
        assert!(seen.contains(told), "{told}: {seen}");
    }
    assert!(!seen.contains("rng-builtin"), "{seen}");
    let outcome = lab.run(WELL).args(["--cpu-topology", "sockets=2,cores=2"]).sh("true").go();
    outcome.code(125).complains("makes 4 processors").complains("say cpus = 4");
    let outcome = lab.run(WELL).args(["--cpu-topology", "sockets=x"]).sh("true").go();
    outcome.code(125).complains("write sockets=N,cores=N,threads=N");
}

#[test]
fn serial_ports_and_nodes() {
    let lab = Lab::new();
    let node =
        |cpus: &str| format!("cpus={cpus},memory=512M,distances={}", if cpus == "0" { "10:20" } else { "20:10" });
    let numa = ["--cpus", "2", "--numa", &node("0"), "--numa", &node("1")].map(str::to_owned);
    let outcome = lab.run(WELL).args(["--serial-port", "modem"]).args(numa).sh("true").go();
    outcome.code(0);
    let seen = lab.seen();
    for told in [
        "file,id=serial-modem,path=/dev/fdset/",
        "pci-serial,chardev=serial-modem",
        "node,nodeid=1,memdev=ram-node1,cpus=1-1",
        "dist,src=1,dst=0,val=20",
    ] {
        assert!(seen.contains(told), "{told}: {seen}");
    }
    for (words, said) in [
        (["--serial-port", "../x"], "is no name of a serial port"),
        (["--numa", "memory=512M"], "numa: its nodes have 512 MiB of memory, and the guest 1024 MiB"),
        (["--numa", "cpus=x"], "is no list of processors"),
    ] {
        lab.run(WELL).args(words).sh("true").go().code(125).complains(said);
    }
}

#[test]
fn persistent_memory_is_the_same_after_a_restart() {
    let lab = Lab::new();
    let outcome =
        lab.run(&asking("reset")).args(["--pmem", "16M"]).sh("[ $BELLJAR_REBOOT_COUNT = 1 ] || sleep 60").go();
    outcome.code(0);
    let seen = lab.seen();
    assert_eq!(seen.matches("memory-backend-file,id=pmem0,size=16777216,mem-path=/proc/self/fd/").count(), 2, "{seen}");
    assert!(seen.contains("nvdimm=on") && seen.contains("slots=16,maxmem=1040M"), "{seen}");
    let outcome = lab.run(WELL).args(["--pmem", "1M"]).sh("true").go();
    outcome.code(125).complains("pmem: a module has 16 MiB or more");
}
