//! Entries of the boot loader specification: `/loader/entries/*.conf`, read by GRUB (Fedora, RHEL) and by systemd-boot.
//!
//! Source: the UAPI Group's "Boot Loader Specification", type 1; Fedora's `blscfg` for `$kernelopts` and the like.

use std::cmp::Ordering;

use belljar_image::kernel::Release;

use super::{Boot, BootEntry, FileRef, Loader, Place, file_ref, parent};
use crate::description::Volume;
use crate::fs::{FileSystems, View};

/// Entries that are read.
const MAX_ENTRIES: usize = 64;
/// Bytes of one.
const MAX_ENTRY: u64 = 64 << 10;

/// One entry as it stands in its file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Specified {
    /// The file's name without its suffix, and without what counts how often it was tried.
    pub(super) id: String,
    title: String,
    version: String,
    machine_id: String,
    sort_key: String,
    linux: String,
    efi: String,
    initrds: Vec<String>,
    options: Vec<String>,
}

impl Specified {
    fn parse(id: &str, text: &str) -> Self {
        // `fedora+3-1.conf` has three tries left.
        let counted = id.rsplit_once('+').filter(|(_, tries)| tries.bytes().all(|b| b.is_ascii_digit() || b == b'-'));
        let mut entry = Self { id: counted.map_or(id, |(id, _)| id).to_owned(), ..Self::default() };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim().to_owned();
            match key {
                "title" => entry.title = value,
                "version" => entry.version = value,
                "machine-id" => entry.machine_id = value,
                "sort-key" => entry.sort_key = value,
                "linux" => entry.linux = value,
                "efi" => entry.efi = value,
                "initrd" => entry.initrds.extend(value.split_ascii_whitespace().map(str::to_owned)),
                "options" => entry.options.push(value),
                _ => {}
            }
        }
        entry
    }

    pub(super) fn title(&self) -> String {
        match (self.title.as_str(), self.version.as_str()) {
            ("", _) => self.id.clone(),
            (title, "") => title.to_owned(),
            (title, version) if title.contains(version) => title.to_owned(),
            (title, version) => format!("{title} ({version})"),
        }
    }

    /// What it boots; its paths are on the file system of `root`. `variable` is GRUB's.
    pub(super) fn boot(
        &self,
        volumes: &[Volume],
        fs: &mut FileSystems,
        root: &Place,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<BootEntry, String> {
        let mut file = |path: &str| -> Result<FileRef, String> {
            file_ref(volumes, fs, &root.with(path)).map_err(|error| format!("it names {path}: {error}"))
        };
        if self.linux.is_empty() {
            return Err(if self.efi.is_empty() {
                "it names no kernel".into()
            } else {
                format!("it starts the EFI program {}", self.efi)
            });
        }
        let kernel = file(&put_in(&self.linux, variable))?;
        let mut initrds = Vec::new();
        for path in &self.initrds {
            for path in put_in(path, variable).split_ascii_whitespace() {
                initrds.push(file(path)?);
            }
        }
        let options: Vec<String> = self.options.iter().map(|options| put_in(options, variable)).collect();
        let words = options.join(" ");
        let command_line = words.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        Ok(BootEntry {
            title: self.title(),
            kernel,
            initrds,
            command_line,
            from: String::new(),
            guess: false,
            notes: Vec::new(),
        })
    }
}

/// `$name` replaced by its value, for GRUB writes such entries too.
fn put_in(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let after = after.strip_prefix('{').unwrap_or(after);
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, behind) = after.split_at(end);
        out.push_str(&variable(name).unwrap_or_default());
        rest = behind.strip_prefix('}').unwrap_or(behind);
    }
    out.push_str(rest);
    out
}

/// The entries in a directory.
pub(super) fn read(fs: &mut FileSystems, directory: &Place) -> Vec<Specified> {
    let names = fs.list(directory.volume, directory.view, &directory.path).unwrap_or_default();
    let mut entries = Vec::new();
    for (name, id) in names.iter().filter_map(|name| Some((name, name.strip_suffix(".conf")?))).take(MAX_ENTRIES) {
        let path = format!("{}/{name}", directory.path);
        if let Ok(bytes) = fs.read(directory.volume, directory.view, &path, MAX_ENTRY) {
            entries.push(Specified::parse(id, &String::from_utf8_lossy(&bytes)));
        }
    }
    entries
}

/// GRUB's order of names, which hold versions.
pub(super) fn by_name(a: &str, b: &str) -> Ordering {
    natural(a).cmp(&natural(b)).then_with(|| a.cmp(b))
}

/// Numbers in it compare as such.
fn natural(text: &str) -> Vec<(u8, Release)> {
    text.split(['-', '_'])
        .map(|part| (u8::from(part.starts_with(|c: char| c.is_ascii_digit())), Release::new(part)))
        .collect()
}

/// systemd-boot's: by sort key, machine, and then the newest first.
fn by_sort_key(a: &Specified, b: &Specified) -> Ordering {
    match (a.sort_key.is_empty(), b.sort_key.is_empty()) {
        (false, true) => Ordering::Less,
        (true, false) => Ordering::Greater,
        (false, false) => (&a.sort_key, &a.machine_id)
            .cmp(&(&b.sort_key, &b.machine_id))
            .then_with(|| Release::new(b.version.as_str()).cmp(&Release::new(a.version.as_str())))
            .then_with(|| by_name(&b.id, &a.id)),
        (true, true) => by_name(&b.id, &a.id),
    }
}

/// What systemd-boot would find: entries on an EFI system partition or the boot loader's own.
pub(super) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Vec<Boot> {
    let mut found = Vec::new();
    for (volume, _) in volumes.iter().enumerate().filter(|(_, volume)| volume.is_readable()) {
        for top in ["", "/boot", "/efi"] {
            let directory = Place { volume, view: View::Top, path: format!("{top}/loader/entries") };
            let mut entries = read(fs, &directory);
            if entries.is_empty() {
                continue;
            }
            let mut boot = Boot::new(Loader::SystemdBoot, directory.describe(volumes));
            entries.sort_by(by_sort_key);
            let configuration =
                fs.read(volume, View::Top, &format!("{}/loader.conf", parent(&directory.path)), MAX_ENTRY);
            let pattern = configuration.ok().and_then(|bytes| {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text.lines().find_map(|line| Some(line.trim().strip_prefix("default")?.trim().to_owned()))
            });
            let chosen = pattern.as_deref().and_then(|pattern| {
                let is_it = |entry: &Specified| {
                    matches(pattern.trim_end_matches(".conf"), &entry.id) || matches(pattern, &entry.id)
                };
                entries.iter().position(is_it)
            });
            let chosen = chosen.unwrap_or(0);
            let root = directory.with("/");
            for (index, entry) in entries.iter().enumerate() {
                match entry.boot(volumes, fs, &root, &|_| None) {
                    Ok(entry) => {
                        if index == chosen {
                            boot.default = Some(boot.entries.len());
                        }
                        boot.entries.push(BootEntry { from: boot.from.clone(), ..entry });
                    }
                    Err(why) if index == chosen => {
                        boot.notes.push(format!("the default entry of {}: {why}", boot.from));
                    }
                    Err(_) => {}
                }
            }
            if boot.default.is_none() && !boot.entries.is_empty() {
                boot.notes.push(format!("the first entry of {} that starts a kernel was taken", boot.from));
                boot.default = Some(0);
            }
            found.push(boot);
        }
    }
    found
}

/// Whether a name is meant by a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    (p, n) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_with_its_variables() {
        let text = "title Fedora Linux (6.12.1-200.fc41.x86_64) 41\nversion 6.12.1-200.fc41.x86_64\n# no\nlinux /vmlinuz-6.12.1\n\
                    initrd /a.img $tuned_initrd\noptions $kernelopts ${more} quiet\nid x\n";
        let entry = Specified::parse("abc-6.12.1+3-0", text);
        assert_eq!((entry.id.as_str(), entry.linux.as_str()), ("abc-6.12.1", "/vmlinuz-6.12.1"));
        let variable = |name: &str| (name == "kernelopts").then(|| "root=UUID=1 ro".to_owned());
        assert_eq!(put_in(&entry.options[0], &variable), "root=UUID=1 ro  quiet");
        assert_eq!(entry.title(), "Fedora Linux (6.12.1-200.fc41.x86_64) 41");
    }

    #[test]
    fn the_newest_comes_first() {
        let mut names = ["m-6.9.1-1.fc41", "m-0-rescue", "m-6.12.1-200.fc41"];
        names.sort_by(|a, b| by_name(b, a));
        assert_eq!(names, ["m-6.12.1-200.fc41", "m-6.9.1-1.fc41", "m-0-rescue"]);
    }

    #[test]
    fn patterns() {
        assert!(matches("*-fedora-*", "x-fedora-6") && matches("arch", "arch") && matches("a?c*", "abc"));
        assert!(!matches("arch", "archx") && !matches("*a", "b") && matches("*", ""));
    }
}
