//! Images that are not raw, through `qemu-nbd`. It has to be installed, with `qemu-img` (Debian: qemu-utils).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use belljar_disk_reader::{Disk, Limits, ReadError, inspect};
use belljar_image::disk::{self, Format, Use};
use write_program::write_program;

use crate::{image, initrd, qemu_img};

fn img(dir: &Path, args: &[&str]) {
    let out = Command::new(qemu_img())
        .args(args)
        .current_dir(dir)
        .output()
        .expect("these tests need qemu-img (Debian: qemu-utils)");
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn raw(dir: &Path) -> PathBuf {
    let path = dir.join("disk.raw");
    fs::write(&path, image("gpt")).unwrap();
    path
}

fn open(path: &Path) -> Result<Disk, ReadError> {
    let found = disk::inspect(&qemu_img(), path, None, Use::Boot).unwrap();
    Disk::open(&found, &qemu_img(), Limits::default())
}

/// Ids of the servers that this process has started and that still run.
fn servers() -> Vec<u32> {
    let children = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let ids: Vec<u32> =
        children.flat_map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    ids.into_iter()
        .filter(|id| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("qemu-nbd")))
        .collect()
}

#[test]
fn each_format_gives_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    for &format in Format::ALL {
        let name = format!("disk.{format}");
        if format != Format::Raw {
            img(dir.path(), &["convert", "-O", format.driver(), "disk.raw", &name]);
        }
        let found = inspect(&open(&dir.path().join(&name)).unwrap()).unwrap();
        let entry = found.default_entry().unwrap_or_else(|| panic!("{name}: {found:?}"));
        assert!(found.read_file(&entry.initrds[0], 1 << 20).unwrap() == initrd(), "{name}");
    }
}

#[test]
fn what_is_packed_in_parts_or_based_on_another_is_read() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    img(dir.path(), &["convert", "-c", "-O", "qcow2", "disk.raw", "packed.qcow2"]);
    img(dir.path(), &["convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "disk.raw", "parts.vmdk"]);
    img(dir.path(), &["create", "-q", "-f", "qcow2", "-b", "parts.vmdk", "-F", "vmdk", "a, name=odd.qcow2", "64M"]);
    img(dir.path(), &["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "over.qcow2"]);
    for name in ["packed.qcow2", "parts.vmdk", "a, name=odd.qcow2", "over.qcow2"] {
        let found = inspect(&open(&dir.path().join(name)).unwrap()).unwrap();
        let entry = found.default_entry().unwrap_or_else(|| panic!("{name}: {found:?}"));
        assert!(found.read_file(&entry.initrds[0], 1 << 20).unwrap() == initrd(), "{name}");
    }
}

#[test]
fn the_server_ends_with_the_reader_and_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    img(dir.path(), &["convert", "-O", "qcow2", "disk.raw", "alone.qcow2"]);
    let disk = open(&dir.path().join("alone.qcow2")).unwrap();
    let found = inspect(&disk).unwrap();
    drop(disk);
    // The description can still be asked.
    assert!(found.read_file(&found.entries[0].kernel, 1 << 20).is_ok());
    let mine: Vec<u32> = servers()
        .into_iter()
        .filter(|id| fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default().contains("alone.qcow2"))
        .collect();
    assert_eq!(mine.len(), 1, "{mine:?}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mine[0])).unwrap().count();
    assert!(descriptors < 40, "it has inherited {descriptors} descriptors");
    drop(found);
    assert!(!Path::new(&format!("/proc/{}", mine[0])).exists());
}

/// What [`nothing_outlives_a_reader_that_is_killed`] starts and kills.
#[test]
#[ignore = "it is started by another test"]
fn a_reader_that_waits() {
    let Some(path) = std::env::var_os("READER_TEST_IMAGE") else { return };
    let disk = open(Path::new(&path)).unwrap();
    fs::write(Path::new(&path).with_file_name("open"), "").unwrap();
    std::thread::sleep(Duration::from_secs(600));
    drop(disk);
}

#[test]
fn nothing_outlives_a_reader_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    img(dir.path(), &["convert", "-O", "qcow2", "disk.raw", "orphan.qcow2"]);
    let path = dir.path().join("orphan.qcow2");
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "formats::a_reader_that_waits", "--ignored"])
        .env("READER_TEST_IMAGE", &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !dir.path().join("open").exists() {
        assert!(reader.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(Duration::from_millis(10));
    }
    let name = path.to_str().unwrap();
    let serves = |id: &u32| {
        fs::read_to_string(format!("/proc/{id}/cmdline"))
            .is_ok_and(|words| words.starts_with("/usr/bin/qemu-nbd") && words.contains(name))
    };
    let all = || {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(serves)
            .collect::<Vec<u32>>()
    };
    assert_eq!(all().len(), 1);
    reader.kill().unwrap();
    reader.wait().unwrap();
    // The kernel closes the connection, of which the server hears.
    while !all().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_server_that_dies_or_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    img(dir.path(), &["convert", "-O", "qcow2", "disk.raw", "killed.qcow2"]);
    let path = dir.path().join("killed.qcow2");
    let disk = open(&path).unwrap();
    let mine = servers()
        .into_iter()
        .find(|id| fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default().contains("killed.qcow2"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(mine.unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = inspect(&disk).unwrap_err();
    assert!(matches!(&error, ReadError::Server { program, .. } if program.ends_with("qemu-nbd")), "{error}");

    let found = disk::inspect(&qemu_img(), &path, None, Use::Boot).unwrap();
    let error = Disk::open(&found, Path::new("/nonexistent/qemu-img"), Limits::default()).unwrap_err();
    assert!(matches!(error, ReadError::NoServer { .. }) && error.to_string().contains("qemu-utils"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = Disk::open(&found, &qemu_img(), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn a_server_that_says_nothing_or_rubbish_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path());
    img(dir.path(), &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]);
    let found = disk::inspect(&qemu_img(), &dir.path().join("disk.qcow2"), None, Use::Boot).unwrap();
    let fake = |script: &str, time| {
        let program = dir.path().join("qemu-nbd");
        write_program(&program, format!("#!/bin/sh\n{script}\n"));
        Disk::open(&found, &dir.path().join("qemu-img"), Limits { time, ..Limits::default() }).unwrap_err().to_string()
    };
    let text = fake("echo 'qemu-nbd: no such luck' >&2; exit 1", Duration::from_secs(20));
    assert!(text.ends_with("no such luck"), "{text}");
    let text = fake("exec sleep 60", Duration::from_millis(200));
    assert!(text.ends_with("it did not answer in time"), "{text}");
}
