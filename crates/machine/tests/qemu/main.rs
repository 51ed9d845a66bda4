//! QEMU and the process it runs in, with real processes.

mod namespace;
mod process;
mod real;
mod sandbox;

use std::path::PathBuf;

use belljar_machine::qemu::sandbox::Shim;

/// Belljar's stand-in, `examples/shim.rs`.
fn shim() -> Shim {
    let mut dir = std::env::current_exe().expect("our own path");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let program: PathBuf = dir.join("examples/shim");
    assert!(program.exists(), "{} is missing: cargo build -p belljar-machine --examples", program.display());
    Shim { program, args: Vec::new() }
}
