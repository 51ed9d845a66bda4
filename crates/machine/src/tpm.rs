//! A TPM 2.0 for a guest: `swtpm`, a process of its own for each machine, behind QEMU's backend `emulator`.
//!
//! The two speak over a socket pair, so that nothing has to be named, and swtpm ends with QEMU, with Belljar, and in any case with [`Emulator`]. What the
//! TPM keeps is in a directory of the guest's that goes with it: each machine has a new TPM. Protocol: swtpm's manual page `swtpm_ioctls(3)`.

use std::{
    ffi::OsStr,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use belljar_guest_spec::GuestSpec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::UnboundedSender,
};

use crate::{
    companion::{Companion, of_line},
    host::HostContext,
    launch::Launch,
    qemu::{
        args::{self, HelperLine},
        descriptors::Purpose,
        probe::{QemuInfo, look_up},
    },
};

/// The program.
const PROGRAM: &str = "swtpm";
/// Its package, where distributions have one.
const PACKAGE: &str = "swtpm";
/// The directory with the state, in the guest's own.
pub(crate) const DIR: &str = "tpm";
/// The socket's name there for a person who starts the guest by hand.
pub(crate) const CONTROL: &str = "control";
/// The numbers under which it finds the line to QEMU, and the directory with the state: its options end at a comma, which a path may have.
const LINE: i32 = 3;
const STATE: i32 = 4;
/// `CMD_GET_CAPABILITY`, and the length of the answer, which begins with a result that is zero.
const ASK: [u8; 4] = 1_u32.to_be_bytes();
const ANSWER: usize = 8;

/// Why a guest cannot have a TPM.
#[derive(Debug, thiserror::Error)]
pub enum NoTpm {
    /// QEMU has none.
    #[error("{} has no device for a TPM; name another QEMU with --qemu, or leave the TPM out", path.display())]
    Qemu {
        /// The program.
        path: PathBuf,
    },
    /// The emulator is not there.
    #[error(
        "a TPM is emulated by {PROGRAM}, which is not in PATH; install the package {PACKAGE}, or leave the TPM out"
    )]
    Emulator,
    /// The kernel would not find its processors.
    #[error(
        "a guest with a TPM whose kernel is started without its firmware has one processor: QEMU puts its initramfs over the tables that tell of others; \
         give it one processor, or boot an image by its own boot loader"
    )]
    Processors,
    /// The kernel would not find something else that it is told of by tables.
    #[error(
        "a guest with a TPM whose kernel is started without its firmware cannot have {key}: QEMU puts its initramfs over the tables that tell of it \
         (ACPI); leave {key} or the TPM out, or boot an image by its own boot loader"
    )]
    Tables {
        /// The setting.
        key: &'static str,
    },
}

/// What makes a guest's TPM.
#[derive(Clone, Debug)]
pub(crate) struct Tpm {
    program: PathBuf,
    /// QEMU's device.
    pub(crate) device: String,
}

impl Tpm {
    pub(crate) fn find(qemu: &QemuInfo, path: Option<&OsStr>) -> Result<Self, NoTpm> {
        let device = qemu.tpms.first().cloned().ok_or_else(|| NoTpm::Qemu { path: qemu.path.clone() })?;
        let program = look_up(Path::new(PROGRAM), path).ok_or(NoTpm::Emulator)?;
        Ok(Self { program, device })
    }

    /// The machine's, as a person starts it.
    pub(crate) fn config(&self) -> args::Tpm {
        args::Tpm { device: self.device.clone(), line: HelperLine::Path(Path::new(DIR).join(CONTROL)) }
    }

    /// Words for swtpm whose line to QEMU is this.
    fn words(line: &str, dir: &Path) -> Vec<String> {
        let state = format!("dir={}", dir.display());
        ["socket", "--tpm2", "--terminate", "--tpmstate", &state, "--ctrl", line].map(str::to_owned).to_vec()
    }

    /// The commands by which a person starts it: in the background, with its socket in the directory [`DIR`].
    pub(crate) fn by_hand() -> [Vec<std::ffi::OsString>; 2] {
        let line = format!("type=unixio,path={DIR}/{CONTROL}");
        let words = Self::words(&line, Path::new(DIR));
        let start = std::iter::once(PROGRAM.to_owned()).chain(words).chain(["--daemon".to_owned()]);
        [["mkdir", "-p", "--", DIR].map(Into::into).to_vec(), start.map(Into::into).collect()]
    }
}

/// The two ends of the line between QEMU and a TPM that is not there yet.
#[derive(Debug)]
pub(crate) struct Line {
    /// QEMU's.
    pub(crate) of_qemu: UnixStream,
    /// swtpm's.
    pub(crate) of_tpm: UnixStream,
}

/// Whether the machine can have what it has beside a TPM. Firmware that finds one takes more of the memory's end for its ACPI tables than QEMU (`hw/i386/x86.c`, `acpi_data_size`)
/// leaves free there, and the initramfs of a kernel that is started directly comes over them: tried with 7.2.
///
/// `directly`: its kernel is started without the firmware.
pub(crate) fn check(tpm: &Tpm, directly: bool, spec: &GuestSpec) -> Result<(), NoTpm> {
    if !directly || word(&tpm.config()).is_none() {
        return Ok(());
    }
    if spec.hardware.cpus > 1 {
        return Err(NoTpm::Processors);
    }
    // NFIT, SRAT and SLIT, and what DSDT says of places for more.
    let by_tables = [
        (!spec.devices.pmem.is_empty(), "pmem"),
        (!spec.devices.numa.is_empty(), "numa"),
        (spec.hardware.spare_cpus > 0, "spare-cpus"),
        (spec.hardware.spare_memory > 0, "spare-memory"),
    ];
    by_tables.into_iter().find(|(is_asked, _)| *is_asked).map_or(Ok(()), |(_, key)| Err(NoTpm::Tables { key }))
}

/// What a kernel that is started directly must be told to find the TPM, since it has no ACPI tables.
pub(crate) fn word(tpm: &args::Tpm) -> Option<&'static str> {
    (tpm.device == "tpm-tis").then_some("tpm_tis.force=1")
}

/// Gives a machine that has a TPM its line to it.
pub(crate) fn connect(launch: &mut Launch) -> io::Result<Option<Line>> {
    let Some(tpm) = &mut launch.config.tpm else { return Ok(None) };
    let (of_qemu, of_tpm) = UnixStream::pair()?;
    tpm.line = HelperLine::Fd(launch.descriptors.add(Purpose::Tpm, of_qemu.try_clone()?));
    Ok(Some(Line { of_qemu, of_tpm }))
}

/// A running TPM. Dropping it ends it and removes what it kept.
#[derive(Debug)]
pub(crate) struct Emulator {
    process: Companion,
    dir: PathBuf,
}

impl Emulator {
    /// Starts a new TPM in the guest's directory, or one that goes on with what an earlier one kept there, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub(crate) async fn start(
        tpm: &Tpm,
        line: Line,
        dir: &Path,
        goes_on: bool,
        host: &HostContext,
    ) -> io::Result<Self> {
        let dir = dir.join(DIR);
        if !goes_on {
            let _ = fs_err::remove_dir_all(&dir);
            fs_err::create_dir(&dir)?;
        }
        let state = std::fs::File::open(&dir)?;
        let mut command =
            host.shim.command_with(&tpm.program, vec![(LINE, line.of_tpm.into()), (STATE, state.into())])?;
        let state = PathBuf::from(format!("/proc/self/fd/{STATE}"));
        command.args(Tpm::words(&format!("type=unixio,clientfd={LINE}"), &state));
        let mut emulator = Self { process: Companion::start(command, host)?, dir };
        emulator.process.answers(answers(&line.of_qemu)).await?;
        Ok(emulator)
    }

    /// Ends it, and leaves what it kept to one that goes on.
    pub(crate) fn leave(mut self) {
        self.process.end();
        self.dir = PathBuf::new();
    }

    /// Tells, once, when it has ended.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub(crate) fn watch(&mut self, tell: UnboundedSender<String>) -> io::Result<()> {
        self.process.watch("the guest's TPM (swtpm)".to_owned(), tell)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.process.end();
        if !self.dir.as_os_str().is_empty() {
            let _ = fs_err::remove_dir_all(&self.dir);
        }
    }
}

/// Asks it something that changes nothing.
async fn answers(line: &UnixStream) -> io::Result<()> {
    let ours = line.try_clone()?;
    ours.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(ours)?;
    let mut answer = [0; ANSWER];
    let asked = match stream.write_all(&ASK).await {
        Ok(()) => stream.read_exact(&mut answer).await.map(drop),
        Err(error) => Err(error),
    };
    drop(stream);
    // For QEMU, which is to find it as a new one is.
    line.set_nonblocking(false)?;
    match asked {
        Ok(()) if answer.starts_with(&[0; 4]) => Ok(()),
        Ok(()) => Err(io::Error::other(format!("it answered {answer:02x?}"))),
        Err(error) => Err(of_line(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// What comes of asking an emulator that says this, and ends if it is to.
    async fn asked(answer: &[u8]) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(answer).unwrap();
        if answer.len() < ANSWER {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let answered = answers(&ours).await;
        let mut question = [0; 4];
        (&theirs).read_exact(&mut question).unwrap();
        assert_eq!(question, ASK);
        answered
    }

    #[tokio::test]
    async fn an_emulator_that_works_says_what_it_can() {
        asked(&[0, 0, 0, 0, 0, 1, 0x7f, 0xff]).await.unwrap();
        assert_eq!(asked(&[]).await.unwrap_err().to_string(), "it has ended");
        assert_eq!(asked(&[0; 5]).await.unwrap_err().to_string(), "it has ended");
        let wrong = asked(&[0, 0, 0, 9, 0, 0, 0, 0]).await.unwrap_err().to_string();
        assert!(wrong.starts_with("it answered [00, 00, 00, 09"), "{wrong}");
    }

    #[test]
    fn what_the_kernel_would_not_be_told_of_is_refused() {
        type Change<'a> = &'a dyn Fn(&mut GuestSpec);
        let tpm = Tpm { program: "swtpm".into(), device: "tpm-tis".to_owned() };
        let alone = || GuestSpec::new(belljar_guest_spec::Source::host());
        let told = |change: &dyn Fn(&mut GuestSpec), directly| {
            let mut spec = alone();
            change(&mut spec);
            check(&tpm, directly, &spec).err().map(|why| why.to_string())
        };
        assert_eq!(told(&|_| {}, true), None);
        assert!(told(&|spec| spec.hardware.cpus = 2, true).unwrap().contains("has one processor"));
        let by_tables: [(&str, Change<'_>); 4] = [
            ("pmem", &|spec| spec.devices.pmem = vec![64 << 20]),
            ("numa", &|spec| spec.devices.numa = vec![belljar_guest_spec::NumaNode::default()]),
            ("spare-cpus", &|spec| spec.hardware.spare_cpus = 1),
            ("spare-memory", &|spec| spec.hardware.spare_memory = 1 << 30),
        ];
        for (key, change) in by_tables {
            assert!(told(change, true).unwrap().contains(&format!("cannot have {key}:")), "{key}");
            assert_eq!(told(change, false), None, "{key}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let qemu = |tpms: &[&str]| QemuInfo {
            path: "/usr/bin/qemu".into(),
            tpms: tpms.iter().map(|&tpm| tpm.to_owned()).collect(),
            ..QemuInfo::of_nothing()
        };
        let none = Tpm::find(&qemu(&[]), None).unwrap_err().to_string();
        assert!(none.contains("/usr/bin/qemu has no device for a TPM"), "{none}");
        let none = Tpm::find(&qemu(&["tpm-tis"]), Some(OsStr::new("/no/such"))).unwrap_err().to_string();
        assert!(none.contains("install the package swtpm"), "{none}");
    }
}
