//! Commands that have devices of their machine go out, and come in.

use crate::harness::{Lab, Outcome, WELL};

fn asking(asks: &str, options: &str) -> String {
    let script = WELL.replace("\nagent\n", &format!("\nagent asks={asks}\n"));
    if options.is_empty() { script } else { format!("[options]\n{options}\n{script}") }
}

/// What happened to the machine, and whether it was refused.
fn controls(outcome: &Outcome) -> Vec<String> {
    let events = outcome.events().into_iter().filter(|event| event["kind"] == "control");
    let of = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    events
        .map(|event| {
            let refused = if event["refused"] == true { "refused " } else { "" };
            format!("{refused}{} ({})", of(&event, "order"), of(&event, "outcome"))
        })
        .collect()
}

#[test]
fn devices_go_out_and_come_in() {
    let lab = Lab::new();
    let disks = ["--disk", "size=1M,serial=a,lab", "--disk", "size=1M,serial=b,bus=scsi,unplugged"];
    let asks = "unplug+disk+a,unplug+disk+a,plug+disk+b,unplug+disk+b+surprise,unplug+nic+surprise,plug+nic,plug+disk+a,\
                unplug+disk+a+surprise,plug+disk+a,unplug+cpu";
    let outcome = lab.run(&asking(asks, "")).args(disks).sh("sleep 3").go();
    outcome.code(0);
    assert_eq!(
        controls(&outcome),
        [
            "unplug disk a ()",
            "refused unplug disk a (the disk a is out already)",
            "plug disk b ()",
            "unplug disk b surprise ()",
            "unplug nic surprise ()",
            "plug nic ()",
            "plug disk a ()",
            "unplug disk a surprise ()",
            "plug disk a ()",
            "refused unplug cpu (without KVM, QEMU does not survive it that a processor is unplugged)",
        ]
    );
    let seen = lab.seen();
    for command in ["device_del", "device_add", "set_link"] {
        assert!(seen.contains(command), "{command}: {seen}");
    }
}

#[test]
fn what_qemu_refuses_is_told() {
    let lab = Lab::new();
    let outcome =
        lab.run(&asking("unplug+disk+a", "device-del refuse")).args(["--disk", "size=1M,serial=a"]).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(
        controls(&outcome),
        ["refused unplug disk a (QEMU refused `device_del`: device_del: said by the script (GenericError))"]
    );
}

#[test]
fn an_unplug_that_the_guest_does_not_allow_holds_up_no_disk() {
    let lab = Lab::new();
    let asks = "a+hang,unplug+disk+a,a+heal";
    let outcome = lab.run(&asking(asks, "device-del fail")).args(["--disk", "size=1M,serial=a,lab"]).sh("sleep 2").go();
    outcome.code(0);
    assert_eq!(controls(&outcome), ["hang (fault 1)", "heal (healed 1)"]);
}

#[test]
fn media_come_out_and_go_in() {
    let lab = Lab::new();
    let disks = [
        "--disk",
        "size=1M,serial=a,bus=scsi,removable,lab",
        "--disk",
        "size=1M,serial=b,bus=scsi,removable",
        "--disk",
        "size=1M,serial=c,lab",
    ];
    let asks = "a+eject,a+eject,a+insert,a+insert,b+eject+force,unplug+disk+b,b+insert,plug+disk+b,b+insert,\
                c+eject,d+eject,a+eject+now";
    let outcome = lab.run(&asking(asks, "")).args(disks).sh("sleep 3").go();
    outcome.code(0);
    assert_eq!(
        controls(&outcome),
        [
            "eject ()",
            "refused eject (the medium of the disk a is out already)",
            "insert ()",
            "refused insert (the medium of the disk a is in already)",
            "eject force ()",
            "unplug disk b ()",
            "refused insert (the disk b is not plugged in)",
            "plug disk b ()",
            "refused insert (the medium of the disk b is in already)",
            "refused eject (the medium of the disk c cannot be taken out: it is not `removable`, which disks on scsi and usb can be)",
            "refused eject (there is no disk \"d\" whose medium could be taken out: it would be one with a serial number and `removable = true`, on scsi or usb)",
        ]
    );
    let seen = lab.seen();
    for command in ["blockdev-open-tray", "blockdev-remove-medium", "blockdev-insert-medium", "blockdev-close-tray"] {
        assert!(seen.contains(command), "{command}: {seen}");
    }
}

/// Orders that a run has for its machine.
fn ordered<'a>(lab: &'a Lab, orders: &[&str], script: &str) -> Outcome<'a> {
    let orders = orders.iter().flat_map(|order| ["--order", *order]);
    let disks = ["--disk", "size=1M,serial=a,lab"];
    lab.run(WELL).args(disks.into_iter().chain(orders)).sh(script).go()
}

#[test]
fn orders_are_given_when_it_is_time() {
    let lab = Lab::new();
    let outcome = ordered(&lab, &["+1s link down", "+100ms disk a error read", "+0s disk a counts"], "sleep 3");
    outcome.code(0);
    assert_eq!(controls(&outcome), ["error read (fault 1)", "link down ()"]);
    let restart = ordered(&lab, &["+200ms reset half"], "[ $BELLJAR_REBOOT_COUNT = 1 ] && exit 4; sleep 60");
    restart.code(4);
}

#[test]
fn a_clock_that_does_not_jump_is_told_whoever_asks() {
    let lab = Lab::new();
    let outcome = lab.run(&asking("clock+-99years,clock+-1h", "")).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(controls(&outcome), ["refused clock -99years (EINVAL)", "clock -1h ()"]);
    let outcome = ordered(&lab, &["+0s clock -1h", "+100ms clock -99years"], "sleep 1");
    outcome.code(125).complains("+100ms clock -99years: EINVAL");
    assert_eq!(controls(&outcome), ["clock -1h ()", "refused clock -99years (EINVAL)"]);
}

#[test]
fn a_pass_without_what_was_ordered_is_none() {
    let lab = Lab::new();
    let outcome = ordered(&lab, &["+50s nmi"], "true");
    outcome.code(125).complains("+50s nmi: the test ended before");
    let outcome = ordered(&lab, &["mark:never nmi"], "exit 6");
    outcome.code(6).complains("the test did not set the mark");
    let outcome = ordered(&lab, &["+0s disk b error"], "sleep 1");
    outcome.code(125).complains("there is no lab disk \"b\"");
    let outcome = ordered(&lab, &["soon nmi"], "true");
    outcome.code(125).complains("--order: \"soon nmi\" is no time for an order");
}
