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

/// Where further standard libraries may be, beside the toolchain's: a directory as `rustc --print sysroot` names one.
const SYSROOT: &str = "BELLJAR_AGENT_SYSROOT";

/// A processor for which the agent can be built.
struct Processor {
    /// As `uname -m` has it.
    name: &'static str,
    /// How the names of its targets begin in Rust.
    rust: &'static str,
}

const PROCESSORS: &[Processor] = include!("src/processors.rs");

/// What to build for, and how.
struct Target {
    name: String,
    flags: Vec<String>,
}

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
    watch(&here.join("src/processors.rs"));
    println!("cargo::rerun-if-env-changed={SYSROOT}");

    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let own = variable("CARGO_CFG_TARGET_ARCH")?;
    // rustup lists there what it installs.
    if let Some(list) =
        ask(&rustc, &["--print", "sysroot"], None)?.map(|at| Path::new(&at).join("lib/rustlib/components"))
        && list.is_file()
    {
        watch(&list);
    }
    let target = choose_target(&rustc, &variable("TARGET")?)?;
    let mut agents = vec![embed(&workspace, &out, &own, &target)?];
    for processor in PROCESSORS.iter().filter(|processor| processor.name != own) {
        let built = further_target(&rustc, processor).and_then(|target| match target {
            Some(target) => embed(&workspace, &out, processor.name, &target).map(Some),
            None => Ok(None),
        });
        match built {
            Ok(agent) => agents.extend(agent),
            // Belljar is of use without it, and `belljar doctor` says which there are.
            Err(error) => {
                let error = error.to_string().replace('\n', "; ");
                println!("cargo::warning=belljar will have no agent for {}: {error}", processor.name);
            }
        }
    }
    fs::write(out.join("agents.rs"), format!("&[{}]", agents.concat()))?;
    Ok(())
}

/// Builds the agent for a target, leaves it where the library embeds it, and gives the library's line for it.
fn embed(workspace: &Path, out: &Path, processor: &str, target: &Target) -> Result<String> {
    let target_dir = out.join("target");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--locked", "--quiet", "--profile", PROFILE, "--target", &target.name])
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
    cargo.env("CARGO_ENCODED_RUSTFLAGS", target.flags.join("\x1f"));
    let done = cargo.output().map_err(|error| format!("cargo did not start: {error}"))?;
    if !done.status.success() {
        return Err(explain(&String::from_utf8_lossy(&done.stderr), &target.name).into());
    }
    let agent = target_dir.join(&target.name).join(PROFILE).join("belljar-agent");
    let bytes = fs::read(&agent).map_err(|error| format!("read {}: {error}", agent.display()))?;
    let file = out.join(format!("belljar-agent-{processor}"));
    fs::write(&file, &bytes)?;
    let fingerprint = fnv(&bytes);
    Ok(format!(
        "Agent {{ processor: {processor:?}, program: include_bytes!({file:?}), fingerprint: \"{fingerprint:032x}\" }},"
    ))
}

/// The target to build for, with the flags that make it static: musl where its standard library is installed, else the host's
/// own C library, which links statically where its archive is installed.
fn choose_target(rustc: &str, target: &str) -> Result<Target> {
    let Some(machine) = target.strip_suffix("-unknown-linux-gnu") else {
        // musl, or a target that we do not know: cargo and the linker say what is wrong with it.
        return Ok(Target { name: target.into(), flags: no_relocations() });
    };
    let musl = format!("{machine}-unknown-linux-musl");
    if has_standard_library(rustc, &musl, None)? {
        return Ok(Target { name: musl, flags: no_relocations() });
    }
    let mut flags = no_relocations();
    flags.push(STATIC.into());
    Ok(Target { name: target.into(), flags })
}

const STATIC: &str = "-Ctarget-feature=+crt-static";

/// The target for another processor than that of the host, if Rust has a standard library for one: musl, which brings all that is linked, else the GNU
/// C library, whose compiler for that processor is then needed.
fn further_target(rustc: &str, processor: &Processor) -> Result<Option<Target>> {
    let places = [None, env::var(SYSROOT).ok().filter(|place| !place.is_empty())];
    for (libc, place) in
        ["musl", "gnu"].iter().flat_map(|libc| places.iter().map(move |place| (libc, place.as_deref())))
    {
        let name = format!("{}-unknown-linux-{libc}", processor.rust);
        if !has_standard_library(rustc, &name, place)? {
            continue;
        }
        let mut flags = no_relocations();
        flags.push(STATIC.into());
        flags.extend(place.map(|place| format!("--sysroot={place}")));
        let by_user = format!("CARGO_TARGET_{}_LINKER", name.to_uppercase().replace('-', "_"));
        println!("cargo::rerun-if-env-changed={by_user}");
        if env::var_os(by_user).is_none() {
            flags.extend(linker(rustc, processor, libc)?);
        }
        return Ok(Some(Target { name, flags }));
    }
    Ok(None)
}

/// Whether there is a standard library for a target, in the toolchain or in another directory.
fn has_standard_library(rustc: &str, target: &str, sysroot: Option<&str>) -> Result<bool> {
    let directory = ask(rustc, &["--print", "target-libdir", "--target", target], sysroot)?.map(PathBuf::from);
    let Some(directory) = directory.filter(|directory| directory.is_dir()) else { return Ok(false) };
    if sysroot.is_some() {
        watch(&directory);
    }
    Ok(true)
}

/// What links for another processor: the linker that comes with Rust, or the system's, where all else comes with Rust too; else the C compiler for it.
fn linker(rustc: &str, processor: &Processor, libc: &str) -> Result<Vec<String>> {
    let compiler = format!("{}-linux-gnu-gcc", processor.name);
    if libc == "musl" {
        let with_rust = ask(rustc, &["--print", "sysroot"], None)?.map(|sysroot| {
            Path::new(&sysroot).join("lib/rustlib").join(variable("HOST").unwrap_or_default()).join("bin/rust-lld")
        });
        if let Some(lld) = with_rust.filter(|lld| lld.is_file()).or_else(|| in_path("ld.lld")) {
            let path = format!("-Clinker={}", lld.display());
            return Ok(vec![path, "-Clinker-flavor=ld.lld".into(), "-Clink-self-contained=yes".into()]);
        }
    }
    if in_path(&compiler).is_some() {
        return Ok(vec![format!("-Clinker={compiler}")]);
    }
    let or_lld = if libc == "musl" { "rust-lld, ld.lld or " } else { "" };
    let package = format!("gcc-{}-linux-gnu and libc6-dev for it", processor.name);
    Err(format!("its standard library is there, and no linker for it: {or_lld}{compiler} (Debian: {package})").into())
}

/// The first line of what rustc answers; none if it does not know.
fn ask(rustc: &str, words: &[&str], sysroot: Option<&str>) -> Result<Option<String>> {
    let mut asked = Command::new(rustc);
    asked.args(words).args(sysroot.map(|place| format!("--sysroot={place}")));
    let answer = asked.output().map_err(|error| format!("{rustc} did not start: {error}"))?;
    let said = String::from_utf8(answer.stdout)?;
    Ok(answer.status.success().then(|| said.trim().to_owned()))
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(program)).find(|path| path.is_file())
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
