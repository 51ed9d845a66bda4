//! Asks `qemu-img info` what one file is.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::{DiskError, Format};
use crate::bounded;

/// It reads a few kilobytes; only a file system that hangs takes long.
const DEADLINE: Duration = Duration::from_secs(60);
const MAX_OUTPUT: u64 = 8 << 20;

/// What is used of `qemu-img info --output=json`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Info {
    pub(super) format: String,
    pub(super) virtual_size: u64,
    #[serde(default)]
    pub(super) encrypted: bool,
    pub(super) backing_filename: Option<String>,
    pub(super) backing_filename_format: Option<String>,
    #[serde(default)]
    pub(super) format_specific: FormatSpecific,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct FormatSpecific {
    #[serde(default)]
    pub(super) data: Data,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Data {
    #[serde(default)]
    pub(super) corrupt: bool,
    pub(super) data_file: Option<String>,
}

/// Looks at one file. `path` is absolute, so that nothing in it is taken for a protocol. The image is locked for the
/// moment, as every reader should (no `-U`): one that another process writes to is refused here already.
pub(super) fn info(program: &Path, path: &Path, format: Option<Format>) -> Result<Info, DiskError> {
    let failed = |said: String| DiskError::QemuImg { program: program.to_owned(), path: path.to_owned(), said };
    let failed_io = |e: io::Error| failed(e.to_string());

    let output = memory("stdout").map_err(failed_io)?;
    let errors = memory("stderr").map_err(failed_io)?;
    let mut command = Command::new(program);
    command.args(["info", "--output=json"]);
    if let Some(format) = format {
        command.args(["-f", format.driver()]);
    }
    command.arg(path);
    command.stdin(Stdio::null());
    command.stdout(output.try_clone().map_err(failed_io)?);
    command.stderr(errors.try_clone().map_err(failed_io)?);
    let child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => DiskError::NoQemuImg { program: program.to_owned() },
        _ => failed(e.to_string()),
    })?;
    let Some(status) = wait(child).map_err(failed_io)? else {
        return Err(failed(format!("it did not end within {} s; is the file system there?", DEADLINE.as_secs())));
    };
    if !status.success() {
        let said = said(&text(errors).map_err(failed_io)?);
        return Err(explain(path, format, said).unwrap_or_else(failed));
    }
    let json = text(output).map_err(failed_io)?;
    serde_json::from_slice(&json).map_err(|e| failed(format!("its answer cannot be understood: {e}")))
}

/// The image's first sector, as the guest sees it.
pub(super) fn first_sector(program: &Path, path: &Path, format: Format) -> io::Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let sector = dir.path().join("sector");
    let of = |word: &str, path: &Path| {
        let mut joined = std::ffi::OsString::from(word);
        joined.push(path);
        joined
    };
    let mut command = Command::new(program);
    command.args(["dd", "-U", "-f", format.driver(), "-O", "raw", "bs=512", "count=1"]);
    command.arg(of("if=", path)).arg(of("of=", &sector));
    let errors = memory("qemu-img errors")?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    match wait(command.spawn()?)? {
        Some(status) if status.success() => bounded::read(&sector, 512),
        Some(_) => Err(io::Error::other(said(&text(errors)?))),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A file in memory: unlike a pipe it needs nobody to empty it.
fn memory(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

fn text(mut file: File) -> io::Result<Vec<u8>> {
    use std::io::Seek;
    file.rewind()?;
    bounded::read_all(file, MAX_OUTPUT)
}

/// None when the deadline passed; the child is gone then too.
fn wait(mut child: Child) -> io::Result<Option<ExitStatus>> {
    // Where the kernel has no pidfd (before 5.3) there is no deadline either.
    if let Ok(pidfd) = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        let deadline = Timespec::try_from(DEADLINE).map_err(io::Error::other)?;
        let ended = loop {
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline)) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other? > 0,
            }
        };
        if !ended {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
    child.wait().map(Some)
}

/// The last lines that `qemu-img` wrote, without its name.
fn said(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let lines: Vec<_> =
        text.lines().map(|l| l.trim_start_matches("qemu-img: ").trim()).filter(|l| !l.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(4)..].join("; ");
    if text.is_empty() { "it said nothing".into() } else { text }
}

/// The variant for what `qemu-img` said, or what it said.
fn explain(path: &Path, format: Option<Format>, said: String) -> Result<DiskError, String> {
    let path = path.to_owned();
    if said.contains("lock") && said.contains("Is another process using the image") {
        return Ok(DiskError::InUse { path });
    }
    if said.contains("Permission denied") {
        return Ok(DiskError::Read { path, source: io::ErrorKind::PermissionDenied.into() });
    }
    if let Some(format) = format
        && (said.contains("is not in") || said.contains("not in VHD") || said.contains("not supported"))
    {
        return Ok(DiskError::NotInFormat { path, format, said });
    }
    if said.contains("Could not open") {
        let repairable = said.contains("replayed") || said.contains("orrupt");
        return Ok(DiskError::Broken { path, said, repairable });
    }
    Err(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(format: Option<Format>, said: &str) -> String {
        match explain(Path::new("/x/d"), format, said.into()) {
            Ok(error) => format!("{error:?}").split(' ').next().unwrap().to_owned(),
            Err(_) => "none".into(),
        }
    }

    #[test]
    fn what_qemu_img_says_is_understood() {
        let locked = "Could not open 'd': Failed to get shared \"write\" lock; Is another process using the image [d]?";
        assert_eq!(explained(None, locked), "InUse");
        assert_eq!(explained(Some(Format::Qcow2), "Could not open 'd': Image is not in qcow2 format"), "NotInFormat");
        assert_eq!(explained(None, "Could not open 'd': qcow2 header too short"), "Broken");
        assert_eq!(explained(None, "something new"), "none");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = info(Path::new("/nonexistent/qemu-img"), Path::new("/etc/hostname"), None).unwrap_err();
        assert!(matches!(error, DiskError::NoQemuImg { .. }));
        assert!(error.to_string().contains("qemu-utils"));
    }

    #[test]
    fn a_program_that_says_rubbish_is_an_error() {
        let error = info(Path::new("/bin/echo"), Path::new("/etc/hostname"), None).unwrap_err();
        assert!(error.to_string().contains("cannot be understood"), "{error}");
        let error = info(Path::new("/bin/false"), Path::new("/etc/hostname"), None).unwrap_err();
        assert!(error.to_string().contains("said nothing"), "{error}");
    }

    #[test]
    fn fields_that_are_missing_have_defaults() {
        let info: Info = serde_json::from_str(r#"{"format":"raw","virtual-size":5,"children":[{}]}"#).unwrap();
        assert_eq!(info, Info { format: "raw".into(), virtual_size: 5, ..Info::default() });
    }
}
