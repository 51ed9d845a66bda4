//! What is told of a guest that nobody gets into, and what boot loaders are told.

use crate::harness::{Lab, Outcome, snapshot};

/// GRUB's menu as it waits, in short.
const MENU: &str = r#"\e[2J\e[1;1H      GNU GRUB  version 2.06\e[4;4H*Debian GNU/Linux\e[5;4H"#;

fn never_in<'a>(lab: &'a Lab, script: &str, options: &[&str]) -> Outcome<'a> {
    lab.run_image(script).args(["--boot-timeout", "4s"]).args(options).sh("true").go()
}

/// The lines about the picture.
fn of_picture<'a>(outcome: &'a Outcome<'_>) -> Vec<&'a str> {
    outcome.stderr.lines().filter(|line| line.contains("picture")).collect()
}

#[test]
fn a_guest_that_was_not_entered_leaves_a_picture_of_its_screen() {
    let lab = Lab::new();
    for options in [&[][..], &["--access", "console"], &["--access", "credentials"]] {
        let outcome = never_in(&lab, "[serial]\nsend \"Starting\\r\\n\"\ndrain\n[agent]\ndrain\n", options);
        outcome.code(124).complains("a picture of its screen: ");
        let said = of_picture(&outcome);
        let [line] = said[..] else { panic!("{}", outcome.stderr) };
        let path = line.split_once("a picture of its screen: ").unwrap().1;
        assert!(path.ends_with("/screen.png"), "{path}");
        let picture = std::fs::read(path).unwrap();
        assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x01"), "{picture:?}");
        assert!(String::from_utf8_lossy(&outcome.kept("events.jsonl")).contains("screen.png"));
    }
}

#[test]
fn what_was_tried_is_told_with_what_to_try() {
    let lab = Lab::new();
    let outcome = never_in(&lab, "[serial]\nsend \"Starting\\r\\n\"\ndrain\n[agent]\ndrain\n", &[]);
    snapshot!(outcome);
}

#[test]
fn a_picture_that_cannot_be_had_is_told_and_hides_nothing() {
    let lab = Lab::new();
    let silent = "[serial]\ndrain\n[agent]\ndrain\n";
    for (manner, said) in [
        ("refuse", "there is no picture of its screen: "),
        ("fail", "there is no picture of its screen: what QEMU wrote is no picture"),
        ("hang", "there is no picture of its screen: "),
    ] {
        let outcome = never_in(&lab, &format!("[options]\nscreendump {manner}\n{silent}"), &[]);
        outcome.code(124).complains(said).complains("did not come on the serial console");
        assert!(outcome.kept("screen.png").is_empty());
    }
    // With a screen of the user's own there is none of Belljar's.
    let outcome = never_in(&lab, silent, &["--qemu-arg=-device", "--qemu-arg=VGA"]);
    outcome.code(124);
    assert_eq!(of_picture(&outcome), [""; 0]);
}

#[test]
fn a_guest_that_was_entered_or_ended_by_itself_leaves_none() {
    let lab = Lab::new();
    let outcome = lab.run_image("[serial]\nlogin\n[agent]\nwait agent\nagent pid1=off\n").sh("exit 3").go();
    outcome.code(3);
    assert!(outcome.kept("screen.png").is_empty());
    let outcome = never_in(&lab, "[serial]\nsend \"Starting\\r\\n\"\nwait qmp\nshutdown\n", &[]);
    outcome.code(121);
    assert_eq!(of_picture(&outcome), [""; 0], "{}", outcome.stderr);
}

#[test]
fn a_boot_menu_that_waits_is_answered() {
    let lab = Lab::new();
    let script = format!(
        "[serial]\nsend \"{MENU}\"\nawait \"\\r\" 60000\nsend \"\\e[2J\\e[H\\r\\n[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nlogin user=root\n[agent]\nwait agent\nagent pid1=off\n"
    );
    let outcome = lab.run_image(&script).args(["-v"]).sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("boot menu: the choice that it shows (GRUB's menu waited for a key");
    // Also where the console is not typed at otherwise.
    let script = format!(
        "[serial]\nsend \"{MENU}\"\nawait \"\\r\" 60000\nmark menu\ndrain\n[agent]\nwait menu\nagent pid1=off\n"
    );
    let outcome = lab.run_image(&script).args(["-v", "--access", "credentials"]).sh("echo in; exit 7").go();
    outcome.code(7).complains("boot menu: the choice that it shows").complains("access: credentials");
}
