//! Builds the agent as a static program and leaves it where the library embeds it.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The agent's profile, in the workspace's `Cargo.toml`.
const PROFILE: &str = "agent";

/// What the cargo that runs us was told and the other must not hear: flags and wrappers for its own target, such as
/// clippy's, and settings that move or shape its output.
const NOT_FOR_THE_AGENT: &[&str] = &[
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

#[expect(clippy::print_stderr, reason = "cargo shows a build script's standard error where it fails")]
fn main() {
    if let Err(error) = build() {
        eprintln!("cannot build the agent: {error}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = here.join("../..");
    for source in ["agent", "crates/proto", "crates/share-disk", "Cargo.toml", "Cargo.lock"] {
        watch(&workspace.join(source));
    }
    watch(&here.join("build.rs"));

    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let (target, flags) = choose_target(&rustc, &variable("TARGET")?)?;
    let target_dir = out.join("target");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--locked", "--quiet", "--profile", PROFILE, "--target", &target])
        .arg("--manifest-path")
        .arg(workspace.join("agent/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir);
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let shapes_the_build =
            name.starts_with("CARGO_PROFILE_") || (name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS"));
        if shapes_the_build || NOT_FOR_THE_AGENT.contains(&name) {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let done = cargo.output().map_err(|error| format!("cargo did not start: {error}"))?;
    if !done.status.success() {
        return Err(explain(&String::from_utf8_lossy(&done.stderr), &target).into());
    }
    let agent = target_dir.join(&target).join(PROFILE).join("belljar-agent");
    let bytes = fs::read(&agent).map_err(|error| format!("read {}: {error}", agent.display()))?;
    fs::write(out.join("belljar-agent"), &bytes)?;
    println!("cargo::rustc-env=BELLJAR_AGENT_FINGERPRINT={:032x}", fnv(&bytes));
    Ok(())
}

/// The target to build for, with the flags that make it static: musl where its standard library is installed, else the host's
/// own C library, which links statically where its archive is installed.
fn choose_target(rustc: &str, target: &str) -> Result<(String, Vec<String>)> {
    let Some(machine) = target.strip_suffix("-unknown-linux-gnu") else {
        // musl, or a target that we do not know: cargo and the linker say what is wrong with it.
        return Ok((target.into(), no_relocations()));
    };
    let musl = format!("{machine}-unknown-linux-musl");
    let asked = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", &musl])
        .output()
        .map_err(|error| format!("{rustc} did not start: {error}"))?;
    let directory = String::from_utf8(asked.stdout)?;
    if asked.status.success() && Path::new(directory.trim()).is_dir() {
        return Ok((musl, no_relocations()));
    }
    let mut flags = no_relocations();
    flags.push("-Ctarget-feature=+crt-static".into());
    Ok((target.into(), flags))
}

/// A program at a fixed address starts faster: it has nothing to relocate.
fn no_relocations() -> Vec<String> {
    vec!["-Crelocation-model=static".into()]
}

fn explain(output: &str, target: &str) -> String {
    let hint = if output.contains("cannot find -lc") || output.contains("unable to find library -lc") {
        let musl = target.replace("-gnu", "-musl");
        format!(
            "\nThe static C library is missing. Install it (Debian: libc6-dev; Fedora and RHEL: glibc-static), \
             or let Rust bring one: rustup target add {musl}"
        )
    } else if output.contains("linker") && output.contains("not found") {
        "\nA C compiler is needed to link (Debian: gcc libc6-dev; Fedora and RHEL: gcc glibc-static).".into()
    } else {
        String::new()
    };
    format!("its own cargo failed:\n{output}{hint}")
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn variable(name: &str) -> Result<String> {
    env::var(name).map_err(|_| format!("{name} is not set: this runs under cargo only").into())
}

/// FNV-1a of 128 bits: tells builds apart, needs no dependency.
fn fnv(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
    })
}
