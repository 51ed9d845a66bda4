//! Finds the pretended QEMU beside the program under test; builds it where it is missing or old.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

/// Its path.
pub(crate) fn fake_qemu() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = env::var_os("BELLJAR_TEST_FAKE_QEMU") {
            return path.into();
        }
        let belljar = Path::new(env!("CARGO_BIN_EXE_belljar"));
        let path = belljar.with_file_name("fake-qemu");
        // One of the test processes builds it, the others wait and find it made.
        let lock = File::create(belljar.with_file_name("fake-qemu.lock")).expect("lock file");
        lock.lock().expect("lock");
        if !is_fresh(&path) {
            build(belljar);
            assert!(path.exists(), "cargo did not make {}; name it in BELLJAR_TEST_FAKE_QEMU", path.display());
        }
        path
    })
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Whether it is newer than all that it is made of.
fn is_fresh(path: &Path) -> bool {
    let Ok(made) = path.metadata().and_then(|m| m.modified()) else { return false };
    let sources = ["testing/fake-qemu/src", "testing/fake-qemu/Cargo.toml", "crates/proto/src"];
    sources.iter().all(|dir| newest(&workspace().join(dir)) <= made)
}

fn newest(path: &Path) -> SystemTime {
    let own = path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    below.map(|entry| newest(&entry.path())).max().map_or(own, |newest| newest.max(own))
}

fn build(belljar: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = belljar.parent().and_then(Path::file_name).expect("a directory of the profile");
    let profile = if profile == "debug" { "dev".as_ref() } else { profile };
    let target = belljar.parent().and_then(Path::parent).expect("a target directory");
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "fake-qemu", "--profile"])
        .arg(profile)
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace())
        .status();
    assert!(built.is_ok_and(|s| s.success()), "cargo could not build fake-qemu");
    // Cargo leaves the file alone where only its source's time has changed.
    let touched = File::options().append(true).open(belljar.with_file_name("fake-qemu"));
    let _busy = touched.and_then(|f| f.set_modified(SystemTime::now()));
}
