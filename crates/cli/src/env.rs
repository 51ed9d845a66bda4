//! Every environment variable that Belljar reads, in one place. `docs/manual.md` is checked against `ALL`.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

/// QEMU to use, as `--qemu`.
pub(crate) const QEMU: &str = "BELLJAR_QEMU";
/// Container engine to use, as `--engine`.
pub(crate) const ENGINE: &str = "BELLJAR_ENGINE";
/// `USER[:PASSWORD]` for the serial console, as `--login`.
pub(crate) const LOGIN: &str = "BELLJAR_LOGIN";
/// `kvm` or `tcg`, as `--accel`.
pub(crate) const ACCEL: &str = "BELLJAR_ACCEL";
/// Where kernels, initramfs and answers of probes are kept.
pub(crate) const CACHE_DIR: &str = "BELLJAR_CACHE_DIR";
/// `off`: every guest boots, as with `--no-template`.
pub(crate) const TEMPLATES: &str = "BELLJAR_TEMPLATES";
/// How much room templates may take.
pub(crate) const TEMPLATE_LIMIT: &str = "BELLJAR_TEMPLATE_LIMIT";
/// Where the directories of runs are made.
pub(crate) const STATE_DIR: &str = "BELLJAR_STATE_DIR";
/// How many directories of ended runs are kept.
pub(crate) const KEEP_RUNS: &str = "BELLJAR_KEEP_RUNS";
/// The configuration of `belljar test`, as `--config`.
pub(crate) const CONFIG: &str = "BELLJAR_CONFIG";
/// The user's home directory, whose keys and tokens no guest sees.
pub(crate) const HOME: &str = "HOME";
/// Names of more variables that QEMU gets.
pub(crate) const QEMU_ENV: &str = "BELLJAR_QEMU_ENV";
/// What QEMU gets without being named there: what its loader, its modules and its clock need.
pub(crate) const FOR_QEMU: &[&str] = &["PATH", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "TMPDIR", "TZ"];
/// The profile of `belljar test`, as `--profile`.
pub(crate) const PROFILE: &str = "BELLJAR_PROFILE";
/// Any value but the empty one: no colours.
pub(crate) const NO_COLOR: &str = "NO_COLOR";

/// Name and meaning of each, as the manual has it.
#[cfg(test)]
const ALL: &[(&str, &str)] = &[
    (QEMU, "QEMU to use, as `--qemu`"),
    (ENGINE, "container engine to use, as `--engine`"),
    (LOGIN, "`USER[:PASSWORD]` for the serial console, as `--login`"),
    (ACCEL, "`kvm` or `tcg`, as `--accel`"),
    (
        CACHE_DIR,
        "where extracted kernels, initramfs and the answers of probes are kept, instead of `$XDG_CACHE_HOME/belljar`",
    ),
    (TEMPLATES, "`off`: every guest boots, as with `--no-template`"),
    (TEMPLATE_LIMIT, "how much room templates may take in the cache (10GiB); the least recently used go first"),
    (STATE_DIR, "where the directories of runs are made, instead of `$XDG_STATE_HOME/belljar`"),
    (KEEP_RUNS, "how many directories of ended runs are kept (20)"),
    (CONFIG, "the configuration of `belljar test`, as `--config`"),
    (PROFILE, "the profile of `belljar test`, as `--profile`"),
    (
        QEMU_ENV,
        "names of more environment variables that QEMU gets, with commas between them, `*` at an end for any; else it gets \
         `PATH`, `LD_LIBRARY_PATH`, `QEMU_MODULE_DIR`, `TMPDIR` and `TZ` alone",
    ),
    (NO_COLOR, "any value but the empty one: no colours"),
];

/// The value of one variable; empty counts as unset.
pub(crate) fn get(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|v| !v.is_empty())
}

/// The value of a variable that the user named.
pub(crate) fn any(name: &OsStr) -> Option<OsString> {
    env::var_os(name)
}

/// The value of one variable as a path.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    get(name).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = include_str!("../../../docs/manual.md");

    #[test]
    fn the_manual_has_every_variable() {
        for (name, meaning) in ALL {
            assert!(MANUAL.contains(&format!("| `{name}` | {meaning} |")), "docs/manual.md lacks {name}: {meaning}");
        }
    }

    #[test]
    fn the_manual_has_every_exit_code() {
        for (code, meaning) in belljar_model::exit_code::ALL {
            assert!(MANUAL.contains(&format!("| {code} | {meaning} |")), "docs/manual.md lacks {code}: {meaning}");
        }
    }
}
