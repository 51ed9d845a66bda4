//! `syslinux.cfg`, `extlinux.conf` and their kin: syslinux on PCs, U-Boot on others.

use super::{Boot, BootEntry, Loader, Place, file_ref, parent};
use crate::description::Volume;
use crate::fs::{FileSystems, View};

const MAX_CONFIG: u64 = 256 << 10;
const MAX_ENTRIES: usize = 64;
const MAX_INCLUDES: usize = 8;

const PLACES: &[&str] = &[
    "/extlinux/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/syslinux/syslinux.cfg",
    "/boot/syslinux/syslinux.cfg",
    "/boot/syslinux/extlinux.conf",
    "/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
];

/// One `LABEL`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Label {
    name: String,
    title: String,
    linux: String,
    initrds: Vec<String>,
    append: String,
    is_default: bool,
}

pub(super) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Vec<Boot> {
    let mut found: Vec<Boot> = Vec::new();
    for (volume, _) in volumes.iter().enumerate().filter(|(_, volume)| volume.is_readable()) {
        for path in PLACES {
            let Ok((path, _)) = fs.resolve(volume, View::Top, path) else { continue };
            let place = Place { volume, view: View::Top, path };
            let from = place.describe(volumes);
            if found.iter().any(|boot| boot.from == from) {
                continue;
            }
            let Ok(bytes) = fs.read(volume, View::Top, &place.path, MAX_CONFIG) else { continue };
            let mut text = String::from_utf8_lossy(&bytes).into_owned();
            include(fs, &place, &mut text);
            let boot = read(volumes, fs, &place, &text);
            if !boot.entries.is_empty() || !boot.notes.is_empty() {
                found.push(boot);
            }
        }
    }
    found
}

/// Puts the files that it includes at its end, for their labels.
fn include(fs: &mut FileSystems, place: &Place, text: &mut String) {
    let words = |line: &str| -> Option<String> {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        let second = if first.eq_ignore_ascii_case("menu") { words.next()? } else { first };
        second.eq_ignore_ascii_case("include").then(|| words.next().map(str::to_owned))?
    };
    let names: Vec<String> = text.lines().filter_map(words).take(MAX_INCLUDES).collect();
    for name in names {
        let path = absolute(&place.path, &name);
        if let Ok(bytes) = fs.read(place.volume, place.view, &path, MAX_CONFIG) {
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

/// Paths are relative to the configuration's directory.
fn absolute(configuration: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", parent(configuration)) }
}

fn parse(text: &str) -> (Vec<Label>, Option<String>) {
    let mut labels: Vec<Label> = Vec::new();
    let mut default = None;
    let mut append = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        let key = key.to_ascii_lowercase();
        let count = labels.len();
        match (key.as_str(), labels.last_mut()) {
            ("default" | "ontimeout", None) => default = Some(value.to_owned()),
            ("default" | "ontimeout", Some(_)) => default = default.or_else(|| Some(value.to_owned())),
            ("label", _) if count == MAX_ENTRIES => break,
            ("label", _) => labels.push(Label { name: value.to_owned(), append: append.clone(), ..Label::default() }),
            ("append", None) => value.clone_into(&mut append),
            ("append", Some(label)) => label.append = if value == "-" { String::new() } else { value.to_owned() },
            ("linux" | "kernel", Some(label)) => {
                // syslinux hides it from names of modules.
                value.clone_into(&mut label.linux);
            }
            ("initrd", Some(label)) => label.initrds = value.split(',').map(|path| path.trim().to_owned()).collect(),
            ("menu", Some(label)) => {
                let (key, value) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                match key.to_ascii_lowercase().as_str() {
                    "label" => label.title = value.trim().replace('^', ""),
                    "default" => label.is_default = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    (labels, default)
}

fn read(volumes: &[Volume], fs: &mut FileSystems, place: &Place, text: &str) -> Boot {
    let mut boot = Boot::new(Loader::Syslinux, place.describe(volumes));
    let (labels, default) = parse(text);
    // A default that is a menu's program leaves it to the menu.
    let chosen = labels.iter().position(|label| label.is_default);
    let named = default.and_then(|name| labels.iter().position(|label| label.name.eq_ignore_ascii_case(&name)));
    let chosen = named.or(chosen).unwrap_or(0);
    for (index, label) in labels.iter().enumerate() {
        match entry(volumes, fs, place, label) {
            Ok(entry) => {
                if index == chosen {
                    boot.default = Some(boot.entries.len());
                }
                boot.entries.push(BootEntry { from: boot.from.clone(), ..entry });
            }
            Err(why) if index == chosen => boot.notes.push(format!("the default entry of {}: {why}", boot.from)),
            Err(_) => {}
        }
    }
    if boot.default.is_none() && !boot.entries.is_empty() {
        boot.notes.push(format!("the first entry of {} that starts a kernel was taken", boot.from));
        boot.default = Some(0);
    }
    boot
}

fn entry(volumes: &[Volume], fs: &mut FileSystems, place: &Place, label: &Label) -> Result<BootEntry, String> {
    if label.linux.is_empty() {
        return Err("it starts no kernel".into());
    }
    let mut initrds = label.initrds.clone();
    let words: Vec<&str> = label.append.split_ascii_whitespace().collect();
    if let Some(paths) = words.iter().find_map(|word| word.strip_prefix("initrd="))
        && initrds.is_empty()
    {
        initrds = paths.split(',').map(str::to_owned).collect();
    }
    let mut file = |path: &str| {
        let path = absolute(&place.path, path);
        file_ref(volumes, fs, &place.with(&path)).map_err(|error| format!("it names {path}: {error}"))
    };
    let kernel = file(&label.linux)?;
    let initrds = initrds.iter().filter(|path| !path.is_empty()).map(|path| file(path)).collect::<Result<_, _>>()?;
    let command_line = words.iter().filter(|word| !word.starts_with("initrd=")).copied().collect::<Vec<_>>().join(" ");
    let title = if label.title.is_empty() { label.name.clone() } else { label.title.clone() };
    Ok(BootEntry { title, kernel, initrds, command_line, from: String::new(), guess: false, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpines_is_read() {
        let text = "# Generated\nDEFAULT menu.c32\nPROMPT 0\nTIMEOUT 10\n\nLABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux ^virt\n  LINUX vmlinuz-virt\n  INITRD a,b\n  APPEND root=UUID=1 modules=ext4 quiet\nLABEL lts\n";
        let (labels, default) = parse(text);
        assert_eq!(default.as_deref(), Some("menu.c32"));
        assert_eq!(labels.len(), 2);
        let virt = &labels[0];
        assert_eq!((virt.title.as_str(), virt.linux.as_str(), virt.is_default), ("Linux virt", "vmlinuz-virt", true));
        assert_eq!(virt.initrds, ["a", "b"]);
        assert_eq!(absolute("/boot/extlinux.conf", "vmlinuz"), "/boot/vmlinuz");
        assert_eq!(absolute("/extlinux.conf", "../x"), "/../x");
    }
}
