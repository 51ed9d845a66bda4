//! What the user named and is no file that can be read to its end: told, and never waited for.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use rustix::fs::{CWD, FileType, mknodat};

use crate::harness::{Lab, SUITE, WELL};

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, 0o644.into(), 0).expect("named pipe");
}

/// Names of what is no file, in a laboratory, and what it is called.
fn odd(lab: &Lab) -> [(String, &'static str); 4] {
    let name = |name: &str| lab.path(name).display().to_string();
    if !lab.path("pipe").exists() {
        pipe(&lab.path("pipe"));
        drop(UnixListener::bind(lab.path("socket")).expect("socket"));
        symlink(lab.path("loop"), lab.path("loop")).expect("link");
    }
    [
        (name("pipe"), "pipe"),
        (name("socket"), "socket"),
        ("/dev/zero".to_owned(), "device"),
        (name("loop"), "symbolic links"),
    ]
}

#[test]
fn a_configuration_that_is_no_file_is_refused() {
    let lab = Lab::new();
    for (file, what) in odd(&lab) {
        for command in ["test", "list"] {
            lab.belljar([command, "-c", &file]).go().code(96).complains(what);
        }
        lab.belljar(["run", "-g", "g", "-c", &file]).command(["true"]).go().code(125).complains(what);
    }
    // The one that is found, too.
    pipe(&lab.path("workspace/belljar.toml"));
    lab.belljar(["list"]).go().code(96).complains("belljar.toml: it is a named pipe, not a file");
}

#[test]
fn a_log_that_is_no_file_is_refused() {
    let lab = Lab::new();
    for (file, what) in odd(&lab) {
        if what != "symbolic links" {
            lab.belljar(["report", &file]).go().code(125).complains(what);
            lab.belljar(["merge", &file, &file]).go().code(125).complains(what);
        }
    }
    fs::create_dir(lab.path("run")).expect("directory");
    pipe(&lab.path("run/events.jsonl"));
    let run = lab.path("run").display().to_string();
    lab.belljar(["report", &run]).go().code(125).complains("a named pipe");
    lab.belljar(["merge", &run, &run]).go().code(125).complains("a named pipe");
    // Its end would not be seen in this life.
    let endless = lab.path("endless.jsonl");
    fs::File::create(&endless).and_then(|f| f.set_len(1 << 40)).expect("file");
    lab.belljar(["report", &endless.display().to_string()]).go().code(125).complains("which no run's log has");
}

#[test]
fn what_a_guest_boots_from_that_is_no_file_is_refused() {
    let lab = Lab::new();
    let rootfs = lab.path("rootfs").display().to_string();
    let kernel = lab.path("vmlinux").display().to_string();
    for (file, _) in odd(&lab) {
        for words in [
            vec!["--image", &file],
            vec!["--kernel", &file, "--rootfs", &rootfs],
            vec!["--kernel", &kernel, "--initrd", &file],
            vec!["--kernel", &kernel, "--rootfs", &file],
            vec!["--kernel", &kernel, "--rootfs", &rootfs, "--modules", &file],
            vec!["--kernel", &kernel, "--rootfs", &rootfs, "--disk", &format!("file={file}")],
        ] {
            let outcome = lab.run_bare(WELL).args(words).command(["true"]).go();
            outcome.code(125).complains(&file);
        }
    }
}

#[test]
fn a_report_is_refused_at_once_where_it_cannot_be_written() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    for (file, what) in odd(&lab) {
        if matches!(what, "socket" | "symbolic links") {
            lab.test(["--junit", &file]).go().code(125).complains(what);
        }
    }
    lab.test(["--tap", "/tmp"]).go().code(125).complains("it is a directory; name a file in it");
    assert_eq!(lab.starts(), (0, 0), "nothing ran");
    // A pipe may have a reader by then, and is not waited for if not.
    let pipe = lab.path("pipe").display().to_string();
    lab.test(["--junit", &pipe]).go().code(125).complains("nobody reads it");
    let reader = std::process::Command::new("cat").arg(&pipe).stdout(std::process::Stdio::piped()).spawn();
    let reader = reader.expect("cat");
    lab.test(["--junit", &pipe]).go().code(0);
    let read = reader.wait_with_output().expect("read").stdout;
    assert!(String::from_utf8_lossy(&read).contains("<testsuites"), "{read:?}");
}

#[test]
fn text_is_no_image() {
    let lab = Lab::new();
    fs::write(lab.path("text"), "root:x:0:0:root:/root:/bin/bash\n".repeat(40)).expect("file");
    let text = lab.path("text").display().to_string();
    let outcome = lab.belljar(["doctor", &text]).script(WELL).go();
    assert!(outcome.code(125).text().contains("is not a disk image but a text file"), "{}", outcome.text());
    lab.run_bare(WELL).args(["--image", &text]).command(["true"]).go().code(125).complains("a text file");
    // A disk with nothing on it is a fine one, but not to boot from.
    fs::write(lab.path("blank.raw"), [0; 1 << 20]).expect("file");
    let blank = lab.path("blank.raw").display().to_string();
    let outcome = lab.belljar(["doctor", &blank]).script(WELL).go();
    assert!(outcome.code(125).text().contains("there is nothing on it"), "{}", outcome.text());
    fs::write(lab.path("disk.raw"), [&[0; 510][..], &[0x55, 0xaa], &[0; 1 << 20]].concat()).expect("file");
    let disk = lab.path("disk.raw").display().to_string();
    let outcome = lab.belljar(["doctor", &disk]).script(WELL).go();
    assert!(outcome.text().contains("there is nothing to boot on it"), "{}", outcome.text());
}
