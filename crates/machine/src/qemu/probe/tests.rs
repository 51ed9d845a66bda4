//! The parts that need no QEMU; the probe's guest itself is run in `testing/guests` and by `belljar doctor`.

use belljar_image::processor::Processor;

use super::*;
use crate::qemu::platform;

#[test]
fn versions() {
    let of = |text| Version::parse(text).map(|v| v.to_string());
    assert_eq!(of("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)").as_deref(), Some("7.2.22"));
    assert_eq!(of("QEMU emulator version 10.0.2").as_deref(), Some("10.0.2"));
    assert_eq!(of("QEMU emulator version 9.1").as_deref(), Some("9.1.0"));
    assert_eq!(of("BusyBox v1.35"), None);
    assert_eq!(of(""), None);
    assert!(Version::parse("version 10.0.2") > Version::parse("version 7.2.22"));
}

#[test]
fn a_program_that_is_no_qemu_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let error = find_qemu(platform::default(), Some(Path::new("/bin/true")), None, dir.path()).unwrap_err();
    assert!(matches!(error, ProbeError::NotQemu { .. }), "{error}");
    let error = find_qemu(platform::default(), Some(Path::new("/nonexistent/qemu")), None, dir.path()).unwrap_err();
    assert!(matches!(error, ProbeError::Ask { .. }), "{error}");
    let error = find_qemu(platform::default(), None, Some(OsStr::new("/nonexistent")), dir.path());
    // A distribution's own place may well have one.
    if let Err(error) = error {
        assert!(error.to_string().contains("--qemu"), "{error}");
    }
}

#[test]
fn kvm_is_not_tried_for_another_processor() {
    let hosts = platform::default();
    assert!(kvm_of(hosts).is_ok());
    let processor = Processor { name: "z80", ..hosts.processor };
    let refused = |platform: &Platform| match kvm_of(platform) {
        Err(Answer::No { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(&Platform { processor, ..hosts.clone() }).contains("the host's own"));
    assert!(refused(&Platform { kvm: None, ..hosts.clone() }).contains("no guest"));
}

/// The probe's guest is right: where instructions run, it ends as it should.
#[test]
#[ignore = "starts QEMU"]
fn the_probes_guest_runs_under_translation() {
    let cache = tempfile::tempdir().unwrap();
    let qemu = find_qemu(platform::default(), None, std::env::var_os("PATH").as_deref(), cache.path()).unwrap();
    // In the shell `$0` is the first word after the script, so that what is left is the program.
    let shim = Shim { program: "/bin/sh".into(), args: ["-c", "shift 2; exec \"$@\""].map(OsString::from).to_vec() };
    let guest = &platform::default().kvm.as_ref().unwrap().probe;
    try_guest(guest, Accel::Tcg, &qemu, &shim, Duration::from_secs(60)).unwrap();
}

/// A guest that does nothing but compute is given up after its processor time, one that does not even compute by the
/// clock.
#[test]
fn a_guest_that_never_ends_is_killed() {
    let mut child = Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    assert_eq!(wait_while_busy(&mut child, Duration::from_millis(50)).unwrap(), None);
    let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    assert_eq!(wait_while_busy(&mut child, Duration::from_millis(20)).unwrap(), None);
    let mut child = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
    assert_eq!(wait_while_busy(&mut child, Duration::from_secs(60)).unwrap().and_then(|s| s.code()), Some(7));
}
