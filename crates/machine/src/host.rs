//! What the host's side of a guest stands on.

use std::{ffi::OsString, path::PathBuf};

use crate::qemu::{args::Accel, sandbox::Shim};

/// Paths and programs, all decided by whoever read the environment and the command line.
#[derive(Clone, Debug)]
pub struct HostContext {
    /// Where kernels, initramfs, agents and answers of probes are kept; made when needed.
    pub cache_dir: PathBuf,
    /// QEMU where the user named one.
    pub qemu: Option<PathBuf>,
    /// The value of `PATH`, in which it is looked for otherwise.
    pub path: Option<OsString>,
    /// The container engine that the user named: a path, or a name to be looked for in `path`.
    pub engine: Option<PathBuf>,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// Where the user keeps descriptions of firmware, beside those of the system; see [`firmware`](crate::qemu::firmware).
    pub firmware_dirs: Vec<PathBuf>,
    /// Other directories that only Belljar writes to: where runs are kept, and what is remembered of them.
    pub own: Vec<PathBuf>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// `KEY=VALUE`: the environment of guests that Belljar initialises itself.
    pub guest_env: Vec<String>,
    /// All that QEMU gets of the environment.
    pub qemu_env: Vec<(OsString, OsString)>,
    /// How a process becomes QEMU.
    pub shim: Shim,
    /// The accelerator where the user named one for all guests.
    pub accel: Option<Accel>,
}
