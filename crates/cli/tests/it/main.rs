//! The whole program, as a user starts it, against a QEMU that does what a script says
//! (`testing/fake-qemu`). One binary for all tests: it links once.

mod access;
mod harness;

mod agent;
mod boot;
mod console;
mod console_ctl;
mod container;
mod container_ahead;
mod crash;
mod devices;
mod doctor_image;
mod firmware;
mod grub;
mod guards;
mod host;
mod hotplug;
mod image_root;
mod interrupt;
mod kernel_faults;
mod kill;
mod no_virtio;
mod odd_files;
mod processors;
mod restart;
mod run;
mod screen;
mod share_disk;
mod share_fuse;
mod share_virtiofs;
mod ssh;
mod suite_config;
mod suite_console;
mod suite_forging;
mod suite_junit;
mod suite_late;
mod suite_many;
mod suite_reports;
mod suite_running;
mod suite_signals;
mod suite_terminal;
mod suite_verdicts;
mod template_blame;
mod template_devices;
mod template_run;
mod template_setup;
mod template_suite;
mod terminal;
mod tpm;
mod typed;
mod untrusted;
mod usage;

#[test]
fn no_test_file_is_forgotten() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    let main = include_str!("main.rs");
    for entry in std::fs::read_dir(here).expect("directory of tests") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        let Some(module) = name.strip_suffix(".rs").filter(|m| *m != "main") else { continue };
        assert!(main.contains(&format!("\nmod {module};\n")), "{name} is not part of the tests");
    }
}
