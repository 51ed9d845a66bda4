//! Unified kernel images: EFI programs that hold a kernel, its initrd and its words. Source: the UAPI Group's "Unified Kernel Image" specification;
//! the PE/COFF format.

use belljar_image::kernel::Release;

use super::{Boot, BootEntry, FileRef, Loader, Place, file_ref};
use crate::bytes::{le16, le32, text};
use crate::description::Volume;
use crate::fs::{FileSystems, View};

const MAX_IMAGES: usize = 32;
/// The headers of a PE file.
const HEAD: u64 = 16 << 10;
const MAX_SECTIONS: usize = 96;
/// Bytes of `.cmdline` and `.osrel`.
const MAX_TEXT: u64 = 64 << 10;

struct Section {
    name: String,
    offset: u64,
    size: u64,
}

pub(super) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Vec<Boot> {
    let mut found = Vec::new();
    for (volume, _) in volumes.iter().enumerate().filter(|(_, volume)| volume.is_readable()) {
        for directory in ["/EFI/Linux", "/boot/EFI/Linux", "/efi/EFI/Linux", "/boot/efi/EFI/Linux"] {
            let mut names = fs.list(volume, View::Top, directory).unwrap_or_default();
            names.retain(|name| name.to_ascii_lowercase().ends_with(".efi"));
            names.sort_by(|a, b| super::bls::by_name(b, a));
            let from = Place { volume, view: View::Top, path: directory.to_owned() };
            let mut boot = Boot::new(Loader::UnifiedKernel, from.describe(volumes));
            for name in names.iter().take(MAX_IMAGES) {
                let place = from.with(&format!("{directory}/{name}"));
                match entry(volumes, fs, &place) {
                    Ok(entry) => boot.entries.push(BootEntry { from: place.describe(volumes), ..entry }),
                    Err(why) => boot.notes.push(format!("{}: {why}", place.describe(volumes))),
                }
            }
            if !boot.entries.is_empty() || !boot.notes.is_empty() {
                boot.default = (!boot.entries.is_empty()).then_some(0);
                found.push(boot);
            }
        }
    }
    found
}

fn entry(volumes: &[Volume], fs: &mut FileSystems, place: &Place) -> Result<BootEntry, String> {
    let file = file_ref(volumes, fs, place).map_err(|error| error.to_string())?;
    let head = fs.head(place.volume, place.view, &file.path, HEAD).map_err(|error| error.to_string())?;
    let sections = sections(&head).ok_or("it is no EFI program")?;
    let piece = |name: &str| -> Option<FileRef> {
        let section = sections.iter().find(|section| section.name == name)?;
        let ends = section.offset.checked_add(section.size)?;
        (ends <= file.size && section.size > 0).then(|| FileRef {
            offset: section.offset,
            size: section.size,
            ..file.clone()
        })
    };
    let mut text_of = |name: &str| -> String {
        let Some(piece) = piece(name) else { return String::new() };
        let bytes = fs.piece(&piece, MAX_TEXT).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim_end_matches(['\0', '\n']).trim().to_owned()
    };
    let release = text_of(".osrel");
    let title = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned());
    let version = text_of(".uname");
    let title = match (title, version.is_empty()) {
        (Some(title), true) => title,
        (Some(title), false) => format!("{title} ({})", Release::new(version)),
        (None, _) => place.path.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    Ok(BootEntry {
        title,
        kernel: piece(".linux").ok_or("it holds no kernel")?,
        initrds: [".ucode", ".initrd"].into_iter().filter_map(piece).collect(),
        command_line: text_of(".cmdline"),
        from: String::new(),
        guess: false,
        notes: Vec::new(),
    })
}

fn sections(head: &[u8]) -> Option<Vec<Section>> {
    head.starts_with(b"MZ").then_some(())?;
    let pe = usize::try_from(le32(head, 0x3c)?).ok()?;
    (head.get(pe..)?.starts_with(b"PE\0\0")).then_some(())?;
    let count = usize::from(le16(head, pe + 6)?).min(MAX_SECTIONS);
    let table = pe + 24 + usize::from(le16(head, pe + 20)?);
    let section = |index: usize| {
        let at = table + 40 * index;
        // The size in memory is the true one; that in the file is rounded up.
        let (virtual_size, raw_size) = (le32(head, at + 8)?, le32(head, at + 16)?);
        Some(Section {
            name: text(head, at, 8)?,
            offset: u64::from(le32(head, at + 20)?),
            size: u64::from(virtual_size.min(raw_size)),
        })
    };
    Some((0..count).map_while(section).collect())
}
