//! GRUB's configuration: run as GRUB would run it, as far as it decides what is booted.
//!
//! What GRUB draws, waits for and loads does not matter; variables, conditions, searches, the environment block, functions, files that are sourced, and
//! entries of the boot loader specification do. A command that is not known is taken to succeed. Steps, depth and files are limited.

mod run;
mod script;

use crate::boot::{Boot, BootEntry, Loader, Place};
use crate::description::Volume;
use crate::fs::{FileSystems, View};

/// Bytes of a configuration.
const MAX_CONFIG: u64 = 1 << 20;
/// Where a configuration is, below the root of a file system.
const PLACES: &[&str] = &["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// Directories of the topmost one of a btrfs that may be a subvolume with a system.
const MAX_SUBVOLUMES: usize = 32;

/// Everything that GRUB would find, in the order in which it is looked at.
pub(super) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Vec<Boot> {
    let mut found = Vec::new();
    for place in places(volumes, fs) {
        let Ok(bytes) = fs.read(place.volume, place.view, &place.path, MAX_CONFIG) else { continue };
        let boot = read(volumes, fs, &place, &String::from_utf8_lossy(&bytes));
        if !boot.entries.is_empty() || !boot.notes.is_empty() {
            found.push(boot);
        }
    }
    found
}

/// Configurations that are there.
fn places(volumes: &[Volume], fs: &mut FileSystems) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    for (volume, described) in volumes.iter().enumerate().filter(|(_, v)| v.is_readable()) {
        let mut tries: Vec<(View, String)> = PLACES.iter().map(|path| (View::Top, (*path).to_owned())).collect();
        if described.has_subvolumes() {
            tries.extend(PLACES.iter().map(|path| (View::Default, (*path).to_owned())));
            let names = fs.list(volume, View::Top, "/").unwrap_or_default();
            let below = names
                .iter()
                .take(MAX_SUBVOLUMES)
                .flat_map(|name| PLACES[..2].iter().map(move |path| format!("/{name}{path}")));
            tries.extend(below.map(|path| (View::Top, path)));
        }
        // Where there is nothing but an EFI system partition, or to be followed to the real one.
        let vendors = fs.list(volume, View::Top, "/EFI").unwrap_or_default();
        tries.extend(vendors.iter().take(MAX_SUBVOLUMES).map(|name| (View::Top, format!("/EFI/{name}/grub.cfg"))));
        for (view, path) in tries {
            if let Ok((path, _)) = fs.resolve(volume, view, &path) {
                let place = Place { volume, view, path };
                if !found.contains(&place) {
                    found.push(place);
                }
            }
        }
    }
    // An EFI system partition's leads to another, if it is not the only one.
    found.sort_by_key(|place| place.path.to_ascii_uppercase().starts_with("/EFI/"));
    found
}

/// Runs one configuration.
pub(super) fn read(volumes: &[Volume], fs: &mut FileSystems, place: &Place, text: &str) -> Boot {
    let mut boot = Boot::new(Loader::Grub, place.describe(volumes));
    let block = match script::parse(text) {
        Ok(block) => block,
        Err(error) => {
            boot.notes.push(format!("{} cannot be understood: {error}", boot.from));
            return boot;
        }
    };
    let mut run = run::Run::new(volumes, fs, place);
    run.top(&block);
    let chosen = run.choose();
    let entries = run.entries();
    boot.notes.append(&mut run.notes);
    let mut default = None;
    for (path, outcome) in entries {
        match outcome {
            Ok(entry) => {
                if Some(&path) == chosen.as_ref() {
                    default = Some(boot.entries.len());
                }
                boot.entries.push(BootEntry { from: boot.from.clone(), ..entry });
            }
            Err(why) if Some(&path) == chosen.as_ref() => {
                boot.notes.push(format!("the default entry of {}: {why}", boot.from));
            }
            Err(_) => {}
        }
    }
    if default.is_none() && !boot.entries.is_empty() {
        boot.notes.push(format!(
            "{} does not say which entry is the default one: the first that starts a kernel was taken",
            boot.from
        ));
        default = Some(0);
    }
    boot.default = default;
    boot
}

#[cfg(test)]
mod tests;
