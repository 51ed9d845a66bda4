//! A GRUB of our own: a small disk from which a machine starts GRUB, which finds the guest's own configuration and boots its default entry, with our archive
//! before the guest's initramfs.
//!
//! GRUB is the host's, from its packages. What is on the disk:
//!
//! ```text
//! sector 0               boot.img, and a partition table with one partition        (BIOS)
//! sectors 1 to 2047      core.img, which boot.img looks for there                  (BIOS)
//! sector 2048            the partition, with a FAT file system
//!   /EFI/BOOT/BOOTX64.EFI  GRUB                                                    (UEFI)
//!   /belljar/grub.cfg      the configuration ([`config`])
//!   /belljar/agent.img     our archive
//!   /belljar/PLATFORM/     GRUB's modules (`modules.rs`)
//! ```
//!
//! The same files give the same disk.

pub mod config;
mod modules;

use std::{
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use self::modules::Modules;
use crate::{
    bounded,
    cache::{self, Cache, CacheError, Cached},
    fat,
};

/// Part of the name in the cache: change it with what is on the disk.
const LAYOUT: u32 = 2;
/// Our directory on the medium, and the archive in it.
const DIR: &str = "/belljar";
const ARCHIVE: &str = "agent.img";
const SECTOR: usize = 512;
/// Where the partition begins, in sectors.
const FIRST: usize = 2048;
/// Bytes that the file system has beside the files in it, for its tables, its directories, and what is left of clusters.
const SPARE: usize = 4 << 20;
/// Bytes of code in the first sector; the disk's number and the partition table follow.
const CODE: usize = 440;
/// The disk's number.
const NUMBER: [u8; 4] = *b"bjar";
/// Types of partitions with FAT: one that is addressed by sectors, and that of UEFI's system partition.
const FAT: u8 = 0x0e;
const ESP: u8 = 0xef;
/// GRUB's programs and images are no longer, in bytes.
const MAX_IMAGE: u64 = 16 << 20;

/// What starts GRUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// A BIOS.
    Bios,
    /// UEFI firmware of 64 bits.
    Uefi,
}

impl Starter {
    /// GRUB's name of its platform, and of the directory with its modules.
    #[must_use]
    pub fn platform(self) -> &'static str {
        match self {
            Self::Bios => "i386-pc",
            Self::Uefi => "x86_64-efi",
        }
    }

    /// The packages that have GRUB for it.
    #[must_use]
    pub fn packages(self) -> &'static str {
        match self {
            Self::Bios => "grub-pc-bin and grub-common (Debian), grub2-pc-modules and grub2-tools-minimal (Fedora)",
            Self::Uefi => {
                "grub-efi-amd64-bin and grub-common (Debian), grub2-efi-x64-modules and grub2-tools-minimal (Fedora)"
            }
        }
    }
}

/// Names of the program that puts GRUB together.
pub const PROGRAMS: [&str; 2] = ["grub-mkimage", "grub2-mkimage"];
/// Where modules are, from the directory above that of the program.
const PLACES: [&str; 3] = ["lib/grub", "share/grub2", "share/grub"];

/// A GRUB that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grub {
    /// The program that puts it together.
    pub program: PathBuf,
    /// The modules of the platform.
    pub modules: PathBuf,
    starter: Starter,
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum GrubError {
    /// The program is not there.
    #[error("GRUB is put together by {}, which is not in PATH; install {}", PROGRAMS[0], starter.packages())]
    NoProgram {
        /// What is to start it.
        starter: Starter,
    },
    /// The modules are not there.
    #[error("there is no GRUB for a guest that {} starts (looked in {}); install {}", firmware(*starter), show(looked_in), starter.packages())]
    NoModules {
        /// What is to start it.
        starter: Starter,
        /// Where they were looked for.
        looked_in: Vec<PathBuf>,
    },
    /// A file of GRUB's.
    #[error("cannot read GRUB's {}: {source}; install its package again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of GRUB's is not what it is known as.
    #[error("{} is not as GRUB's are known: it has not {what}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// The program failed.
    #[error("{} could not put GRUB together: {said}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// What GRUB is started by does not fit before the partition.
    #[error("GRUB is too large for the disk from which it is started: {size} bytes")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The disk's file system cannot be made.
    #[error("cannot make the disk with GRUB: {0}")]
    Write(io::Error),
    /// See [`CacheError`].
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn firmware(starter: Starter) -> &'static str {
    match starter {
        Starter::Bios => "a BIOS",
        Starter::Uefi => "UEFI firmware",
    }
}

fn show(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Grub {
    /// The GRUB whose program `program` is, for what starts it.
    ///
    /// # Errors
    /// Where its modules are not there.
    pub fn of(program: &Path, starter: Starter) -> Result<Self, GrubError> {
        let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
        let prefix = real.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
        let looked_in: Vec<_> = PLACES.iter().map(|place| prefix.join(place).join(starter.platform())).collect();
        match looked_in.iter().find(|dir| dir.join("moddep.lst").is_file()) {
            Some(modules) => Ok(Self { program: program.to_owned(), modules: modules.clone(), starter }),
            None => Err(GrubError::NoModules { starter, looked_in }),
        }
    }

    /// The disk, made now or by an earlier run. It has this archive, and the kernel gets these words; `beside`: see [`config::text`]. Its name in the cache says all that it is made of.
    ///
    /// # Errors
    /// See [`GrubError`].
    pub fn medium(&self, archive: &[u8], (words, beside): (&str, bool), cache: &Cache) -> Result<Cached, GrubError> {
        let modules = Modules::read(&self.modules)?;
        let config = config::text(&modules.load, words, beside);
        let name = self.name(archive, &config, &modules)?;
        cache.get_or_write(&format!("grub-{name}"), |out, at| {
            let disk = self.disk(archive, &config, &modules)?;
            out.write_all(&disk)
                .map_err(|source| CacheError { what: "the disk with GRUB".into(), path: at.to_owned(), source }.into())
        })
    }

    fn name(&self, archive: &[u8], config: &str, modules: &Modules) -> Result<String, GrubError> {
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        put(&LAYOUT.to_le_bytes());
        put(self.starter.platform().as_bytes());
        put(archive);
        put(config.as_bytes());
        for file in &modules.files {
            put(file.name.as_bytes());
            put(&file.bytes);
        }
        for path in self.images() {
            put(&self.read(path)?);
        }
        let seen = cache::fingerprint(&self.program, &mut hasher);
        seen.map_err(|source| GrubError::Read { path: self.program.clone(), source })?;
        Ok(cache::short(&hasher))
    }

    /// What the program, or this one, puts the rest together with.
    fn images(&self) -> &'static [&'static str] {
        match self.starter {
            Starter::Bios => &["boot.img", "diskboot.img", "kernel.img", "lzma_decompress.img", "biosdisk.mod"],
            Starter::Uefi => &["kernel.img"],
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, GrubError> {
        let path = self.modules.join(name);
        bounded::read(&path, MAX_IMAGE).map_err(|source| GrubError::Read { path, source })
    }

    fn disk(&self, archive: &[u8], config: &str, modules: &Modules) -> Result<Vec<u8>, GrubError> {
        let program = self.put_together(modules)?;
        let platform = format!("belljar/{}", self.starter.platform());
        let mut files: Vec<(String, &[u8])> =
            modules.files.iter().map(|file| (format!("{platform}/{}", file.name), file.bytes.as_slice())).collect();
        files.push(("belljar/grub.cfg".into(), config.as_bytes()));
        files.push((format!("belljar/{ARCHIVE}"), archive));
        let mut dirs = vec!["belljar".to_owned(), platform];
        if self.starter == Starter::Uefi {
            dirs.extend(["EFI".to_owned(), "EFI/BOOT".to_owned()]);
            files.push(("EFI/BOOT/BOOTX64.EFI".into(), &program));
        }
        let content: usize = files.iter().map(|(_, bytes)| bytes.len().next_multiple_of(4096)).sum();
        let size = (content + content / 8 + SPARE).next_multiple_of(1 << 20);
        let mut disk = vec![0; FIRST * SECTOR + size];
        let (before, partition) = disk.split_at_mut(FIRST * SECTOR);
        if self.starter == Starter::Bios {
            self.put_before(&program, before)?;
        }
        let kind = if self.starter == Starter::Uefi { ESP } else { FAT };
        partition_table(before, kind, size / SECTOR);
        let files = files.iter().map(|(name, bytes)| (name.as_str(), *bytes));
        fat::write(partition, "BELLJAR", &dirs, files).map_err(GrubError::Write)?;
        Ok(disk)
    }

    /// Puts what a BIOS starts before the partition: as `boot.img` has it, the rest comes in the sectors behind it.
    fn put_before(&self, core: &[u8], before: &mut [u8]) -> Result<(), GrubError> {
        let boot = self.read("boot.img")?;
        let path = || self.modules.join("boot.img");
        let code = boot.get(..CODE).ok_or_else(|| GrubError::Unknown { path: path(), what: "a sector" })?;
        // Where it looks for the next sector: GRUB's `GRUB_BOOT_MACHINE_KERNEL_SECTOR`.
        if bounded::le::u64(&boot, 0x5c) != Some(1) {
            return Err(GrubError::Unknown { path: path(), what: "the next sector's number" });
        }
        before[..CODE].copy_from_slice(code);
        let room = before.get_mut(SECTOR..SECTOR + core.len()).ok_or(GrubError::TooLarge { size: core.len() })?;
        room.copy_from_slice(core);
        Ok(())
    }

    /// What the firmware or `boot.img` starts.
    fn put_together(&self, modules: &Modules) -> Result<Vec<u8>, GrubError> {
        let failed = |said: String| GrubError::Failed { program: self.program.clone(), said };
        let prefix = match self.starter {
            // The partition of the disk from which it was started.
            Starter::Bios => "(,msdos1)/belljar",
            Starter::Uefi => "/belljar",
        };
        // It is put together of what is on the medium, with other names in it than GRUB's own.
        let dir = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes)
                .map_err(|error| failed(format!("cannot write {name}: {error}")))
        };
        modules.files.iter().try_for_each(|file| write(&file.name, &file.bytes))?;
        for name in self.images() {
            let unknown = || GrubError::Unknown { path: self.modules.join(name), what: modules::OTHER };
            write(name, &modules::rename(name, self.read(name)?).ok_or_else(unknown)?)?;
        }
        // A file without a name: the program syncs what it has written, and no pipe can be.
        let out = tempfile::tempfile().map_err(|error| failed(error.to_string()))?;
        let written = out.try_clone().map_err(|error| failed(error.to_string()))?;
        let disk: &[&str] = match self.starter {
            Starter::Bios => &["biosdisk"],
            Starter::Uefi => &[],
        };
        let mut command = Command::new(&self.program);
        command.arg("-O").arg(self.starter.platform()).arg("-d").arg(dir.path()).args(["-p", prefix]);
        command.args(disk).args(modules::CORE).stdin(Stdio::null()).stdout(written).env("LC_ALL", "C");
        let done = command.output().map_err(|error| failed(error.to_string()))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            return Err(failed(if said.is_empty() { done.status.to_string() } else { said }));
        }
        let mut program = out;
        program.rewind().map_err(|error| failed(error.to_string()))?;
        let program = bounded::read_all(program, MAX_IMAGE).map_err(|error| failed(error.to_string()))?;
        if program.is_empty() {
            return Err(failed("it wrote nothing".to_owned()));
        }
        Ok(program)
    }
}

/// A partition table with one partition, of this many sectors, up to the end of the disk.
fn partition_table(sectors: &mut [u8], kind: u8, count: usize) {
    let number = |sectors: usize| u32::try_from(sectors).unwrap_or(u32::MAX).to_le_bytes();
    sectors[CODE..CODE + 4].copy_from_slice(&NUMBER);
    let entry = &mut sectors[446..462];
    // To be booted from; the places by cylinders say that they are too far.
    entry[..8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&number(FIRST));
    entry[12..].copy_from_slice(&number(count));
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_partition_up_to_the_end() {
        let mut sectors = vec![0; SECTOR];
        partition_table(&mut sectors, FAT, 4096);
        assert_eq!(sectors[446..462], [0x80, 0xfe, 0xff, 0xff, 0x0e, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 16, 0, 0]);
        assert_eq!(
            (sectors[510..].to_vec(), sectors[462..510].iter().all(|byte| *byte == 0)),
            (vec![0x55, 0xaa], true)
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_packages() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("bin/grub-mkimage");
        let why = |starter| Grub::of(&program, starter).unwrap_err().to_string();
        assert!(why(Starter::Bios).contains("install grub-pc-bin"), "{}", why(Starter::Bios));
        assert!(why(Starter::Uefi).contains("install grub-efi-amd64-bin"), "{}", why(Starter::Uefi));
        assert!(why(Starter::Bios).contains("lib/grub/i386-pc"), "{}", why(Starter::Bios));
        let none = GrubError::NoProgram { starter: Starter::Uefi }.to_string();
        assert!(none.contains("grub-mkimage") && none.contains("grub-efi-amd64-bin"), "{none}");
    }
}
