//! Kernel modules: those that Belljar put into the initramfs, else the guest's own through its `modprobe`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use belljar_proto::message::INIT_MODULE_DIR;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::text;

/// Inserts one module file; one that is there already is fine.
pub(crate) fn insert(path: impl rustix::path::Arg) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::system::finit_module(&file, c"", 0) {
        Err(Errno::EXIST) => Ok(()),
        // A kernel that lacks the newer call, or a file system that it refuses to load from.
        Err(Errno::NOSYS | Errno::NOEXEC) => {
            let mut image = Vec::new();
            let mut file = fs::File::from(file);
            std::io::Read::read_to_end(&mut file, &mut image).map_err(|_| Errno::IO)?;
            match rustix::system::init_module(&image, c"") {
                Err(Errno::EXIST) => Ok(()),
                other => other,
            }
        }
        other => other,
    }
}

/// Finds a program of the guest where administrators' programs are, whatever `PATH` says.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    ["/sbin", "/usr/sbin", "/bin", "/usr/bin"]
        .iter()
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|path| path.exists())
}

/// Tries to load a module by name; gives what the tool said where it failed.
pub(crate) fn modprobe(name: &str) -> Option<String> {
    let Some(program) = find_program("modprobe") else {
        return Some("no modprobe in the guest".into());
    };
    let output = Command::new(program).arg(name).stdin(Stdio::null()).stdout(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = text::lossy(&output.stderr[..output.stderr.len().min(500)]);
            Some(format!("modprobe {name}: {}", said.trim()))
        }
        Err(error) => Some(format!("modprobe {name}: {}", text::io(&error))),
    }
}

/// Makes modules available by all means there are; gives what was tried and failed.
pub(crate) fn load(names: &[&str]) -> String {
    if insert_all_of_ours() {
        return "the modules that Belljar brought are loaded".into();
    }
    let failures: Vec<String> = names.iter().filter_map(|name| modprobe(name)).collect();
    failures.join("; ")
}

/// Inserts what is in our directory, in whatever order works. `false` where there is nothing.
fn insert_all_of_ours() -> bool {
    let Ok(entries) = fs::read_dir(INIT_MODULE_DIR) else {
        return false;
    };
    let mut left: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    left.sort();
    let found = !left.is_empty();
    // A module that needs another fails until that one is there.
    loop {
        let before = left.len();
        left.retain(|path| insert(path).is_err());
        if left.is_empty() || left.len() == before {
            return found;
        }
    }
}
