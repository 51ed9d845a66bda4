//! Pictures of the screen, as `screendump` writes them to a descriptor that QEMU was lent.

use std::{
    fs::File,
    io::Write as _,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use rustix::fs::OFlags;
use serde_json::Value;

use crate::{args::Args, migrate::Manners};

/// What was lent, and pictures made of.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    sets: Mutex<Vec<(u64, OwnedFd)>>,
}

/// A picture of two points, red and green, as QEMU writes it.
const PICTURE: &[u8] = b"P6\n2 1\n255\n\xff\0\0\0\xff\0";

impl Screen {
    fn sets<T>(&self, act: impl FnOnce(&mut Vec<(u64, OwnedFd)>) -> T) -> T {
        act(&mut self.sets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `add-fd`.
    pub(crate) fn take(&self, fds: &mut Vec<OwnedFd>) -> Result<u64, String> {
        let fd = fds.pop().ok_or("No file descriptor supplied via SCM_RIGHTS")?;
        Ok(self.sets(|sets| {
            // Those of the command line come before.
            let number = 100 + u64::try_from(sets.len()).unwrap_or_default();
            sets.push((number, fd));
            number
        }))
    }

    /// `remove-fd`.
    pub(crate) fn drop_set(&self, arguments: &Value) -> Result<(), String> {
        let number = arguments["fdset-id"].as_u64().ok_or("Parameter 'fdset-id' is missing")?;
        self.sets(|sets| match sets.iter().position(|(one, _)| *one == number) {
            Some(at) => {
                sets.remove(at);
                Ok(())
            }
            None => Err(format!("File descriptor named 'fdset-id:{number}' not found")),
        })
    }

    /// `screendump`.
    pub(crate) fn dump(&self, args: &Args, manners: Manners, arguments: &Value) -> Result<(), String> {
        if !args.all("device").any(|device| matches!(device.driver(), "isa-vga" | "VGA")) {
            return Err("There is no console to take a screendump from".into());
        }
        if manners == Manners::Refuse {
            return Err("no screen today".into());
        }
        let name = arguments["filename"].as_str().ok_or("Parameter 'filename' is missing")?;
        let number = name.strip_prefix("/dev/fdset/").and_then(|number| number.parse::<u64>().ok());
        let number = number.ok_or_else(|| format!("failed to open file '{name}': Operation not permitted"))?;
        self.sets(|sets| {
            let found = sets.iter().find(|(one, _)| *one == number);
            let (_, fd) = found.ok_or_else(|| format!("failed to open file '{name}': No such file or directory"))?;
            let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| e.to_string())?;
            // QEMU takes one of a set that is open as it wants to open it.
            if flags & OFlags::RWMODE != OFlags::WRONLY {
                return Err(format!("failed to open file '{name}': Permission denied"));
            }
            let mut file = File::from(fd.try_clone().map_err(|e| e.to_string())?);
            file.set_len(0).map_err(|e| format!("failed to open file '{name}': {e}"))?;
            let picture = if manners == Manners::Fail { b"GIF89a".as_slice() } else { PICTURE };
            file.write_all(picture).map_err(|e| e.to_string())
        })
    }
}
