//! What a disk would boot: kernel, initrd and command line, as its boot loader's configuration has them.

mod bls;
mod grub;
mod guess;
mod syslinux;
mod uki;

use serde::Serialize;

use crate::description::Volume;
use crate::fs::{FileError, FileSystems, Kind, View};

/// The program that starts the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// `grub.cfg`, with entries of the boot loader specification where it asks for them.
    Grub,
    /// Entries of the boot loader specification by themselves.
    SystemdBoot,
    /// A kernel, its initrd and its words in one EFI program.
    UnifiedKernel,
    /// syslinux and its kin, and whatever reads `extlinux.conf` (U-Boot).
    Syslinux,
    /// None was found: the newest kernel that lies where kernels lie.
    None,
}

impl Loader {
    /// As people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::UnifiedKernel => "a unified kernel image",
            Self::Syslinux => "syslinux (extlinux.conf)",
            Self::None => "none",
        }
    }
}

/// A file on a disk that was looked at, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileRef {
    /// Index of its volume in [`Description::volumes`](crate::Description::volumes).
    pub volume: usize,
    /// From where in the file system its path counts.
    pub view: View,
    /// Its path there, links resolved.
    pub path: String,
    /// Where in the file it begins; 0 but for what is within a unified kernel image.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// What one line of a boot menu boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootEntry {
    /// As the menu has it. It comes from the image, and may hold anything.
    pub title: String,
    /// The kernel.
    pub kernel: FileRef,
    /// What is handed to it, one file behind the other; some boot without.
    pub initrds: Vec<FileRef>,
    /// The words for the kernel.
    pub command_line: String,
    /// The configuration that says so.
    pub from: String,
    /// Whether no configuration says so.
    pub guess: bool,
    /// What was left out.
    pub notes: Vec<String>,
}

/// A configuration that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) loader: Loader,
    pub(crate) from: String,
    pub(crate) entries: Vec<BootEntry>,
    /// Which of them boots when nobody chooses.
    pub(crate) default: Option<usize>,
    pub(crate) notes: Vec<String>,
}

impl Boot {
    fn new(loader: Loader, from: String) -> Self {
        Self { loader, from, entries: Vec::new(), default: None, notes: Vec::new() }
    }
}

/// A path in a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) volume: usize,
    pub(crate) view: View,
    pub(crate) path: String,
}

impl Place {
    /// For a person.
    fn describe(&self, volumes: &[Volume]) -> String {
        let volume = volumes.get(self.volume).map(|volume| volume.name.as_str()).unwrap_or_default();
        format!("{} of {volume}", self.path)
    }

    fn with(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }
}

/// Reads the configurations of every kind. The first is the one that is believed; the others are named in its notes.
pub(crate) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Option<Boot> {
    let mut all = grub::find(volumes, fs);
    all.extend(bls::find(volumes, fs));
    all.extend(uki::find(volumes, fs));
    all.extend(syslinux::find(volumes, fs));
    let usable = all.iter().position(|boot| boot.default.is_some());
    if usable.is_none()
        && let Some(mut guess) = guess::find(volumes, fs)
    {
        guess.notes.splice(0..0, all.into_iter().flat_map(|boot| boot.notes));
        return Some(guess);
    }
    let mut boot = (!all.is_empty()).then(|| all.remove(usable.unwrap_or(0)))?;
    let known = |other: &Boot, entry: &BootEntry| {
        // GRUB puts its variables into entries of the boot loader specification.
        let by_grub = (boot.loader, other.loader) == (Loader::Grub, Loader::SystemdBoot);
        boot.entries
            .iter()
            .any(|ours| ours.kernel == entry.kernel && (by_grub || ours.command_line == entry.command_line))
    };
    let others: Vec<Boot> =
        all.into_iter().filter(|other| !other.entries.iter().all(|entry| known(other, entry))).collect();
    for other in others {
        boot.notes.push(format!(
            "there is another configuration, {} ({}), which was passed over",
            other.from,
            other.loader.name()
        ));
    }
    Some(boot)
}

/// The file that a path leads to.
fn file_ref(volumes: &[Volume], fs: &mut FileSystems, place: &Place) -> Result<FileRef, FileError> {
    let (path, stat) = fs.resolve(place.volume, place.view, &place.path)?;
    if stat.kind != Kind::File || volumes.get(place.volume).is_none() {
        return Err(FileError::NotAFile);
    }
    Ok(FileRef { volume: place.volume, view: place.view, path, offset: 0, size: stat.size })
}

/// The `name=value` lines of GRUB's environment block.
fn environment(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
}

/// The part of a path before its last slash.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// Runs a configuration of GRUB, for the fuzz target.
pub(crate) fn run_grub(volumes: &[Volume], text: &str) {
    let place = Place { volume: 0, view: View::Top, path: "/boot/grub/grub.cfg".into() };
    grub::read(volumes, &mut crate::description::file_systems(volumes), &place, text);
}
