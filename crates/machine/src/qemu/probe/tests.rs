//! The parts that need no QEMU; the probe's guest itself is run in `testing/guests` and by `belljar doctor`.

use super::*;

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
    let error = find_qemu(Some(Path::new("/bin/true")), None, dir.path()).unwrap_err();
    assert!(matches!(error, ProbeError::NotQemu { .. }), "{error}");
    let error = find_qemu(Some(Path::new("/nonexistent/qemu")), None, dir.path()).unwrap_err();
    assert!(matches!(error, ProbeError::Ask { .. }), "{error}");
    let error = find_qemu(None, Some(OsStr::new("/nonexistent")), dir.path());
    // A distribution's own place may well have one.
    if let Err(error) = error {
        assert!(error.to_string().contains("--qemu"), "{error}");
    }
}

#[test]
fn the_probes_disk_is_a_boot_sector() {
    let disk = image::disk();
    assert_eq!(&disk[510..512], &[0x55, 0xaa]);
    assert_eq!(disk.len() % 512, 0);
}
