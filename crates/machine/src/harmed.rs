//! Disks that were told to behave otherwise than good ones do: what the kernel says of them is no surprise.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use belljar_proto::message::DiskPath;

/// How much of a disk was told so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HarmedDisk {
    /// All of it, by whichever path.
    whole: bool,
    /// What comes by these paths.
    paths: BTreeSet<u32>,
}

/// Those of a machine, by their serial numbers. An order stays noted when it is taken back: what comes of it may be told of much later.
#[derive(Clone, Debug, Default)]
pub(crate) struct HarmedDisks(Arc<Mutex<BTreeMap<String, HarmedDisk>>>);

impl HarmedDisks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, HarmedDisk>> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This disk is, or what comes by one path of it.
    pub(crate) fn note(&self, name: &str, path: Option<u32>) {
        let mut all = self.all();
        let disk = all.entry(name.to_owned()).or_default();
        match path {
            None => disk.whole = true,
            Some(path) => drop(disk.paths.insert(path)),
        }
    }

    /// The same; gives what was known before, to be [put back](Self::put_back).
    pub(crate) fn note_again(&self, name: &str, path: Option<u32>) -> HarmedDisk {
        let before = self.all().get(name).cloned().unwrap_or_default();
        self.note(name, path);
        before
    }

    /// Of this disk that is known again which was known before.
    pub(crate) fn put_back(&self, name: &str, before: HarmedDisk) {
        let mut all = self.all();
        if before == HarmedDisk::default() {
            all.remove(name);
        } else {
            all.insert(name.to_owned(), before);
        }
    }

    /// Nothing is known of any.
    pub(crate) fn forget(&self) {
        self.all().clear();
    }

    /// Whether something is known of this one.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.all().contains_key(name)
    }

    /// Whether something is known of one at all.
    pub(crate) fn any(&self) -> bool {
        !self.all().is_empty()
    }

    /// Whether an error may come of it, whichever of these devices has it: each stands on one of them. Of no device nobody knows that.
    pub(crate) fn explain(&self, devices: &[Vec<DiskPath>]) -> bool {
        let all = self.all();
        let is_harmed = |disk: &DiskPath| {
            let harmed = all.get(&disk.serial);
            harmed.is_some_and(|harmed| harmed.whole || harmed.paths.contains(&disk.path))
        };
        !devices.is_empty() && devices.iter().all(|disks| disks.iter().any(is_harmed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(serial: &str, path: u32) -> DiskPath {
        DiskPath { serial: serial.into(), path }
    }

    #[test]
    fn an_error_is_explained_by_what_it_stands_on() {
        let harmed = HarmedDisks::default();
        assert!(!harmed.any() && !harmed.explain(&[vec![disk("a", 0)]]));
        harmed.note("a", None);
        assert!(harmed.any() && harmed.has("a") && !harmed.has("b"));
        assert!(harmed.explain(&[vec![disk("a", 0)]]) && harmed.explain(&[vec![disk("a", 1)]]));
        assert!(harmed.explain(&[vec![disk("b", 0), disk("a", 0)]]), "one of an array");
        assert!(!harmed.explain(&[vec![disk("b", 0)]]));
        assert!(!harmed.explain(&[vec![disk("", 0)]]), "one that does not say its name");
        assert!(!harmed.explain(&[]) && !harmed.explain(&[vec![]]), "nobody knows which");
        assert!(!harmed.explain(&[vec![disk("a", 0)], vec![disk("b", 0)]]), "it may be the other");
        assert!(harmed.explain(&[vec![disk("a", 0)], vec![disk("b", 0), disk("a", 0)]]));
        harmed.forget();
        assert!(!harmed.explain(&[vec![disk("a", 0)]]));
    }

    #[test]
    fn a_path_is_not_the_other() {
        let harmed = HarmedDisks::default();
        harmed.note("a", Some(1));
        assert!(harmed.explain(&[vec![disk("a", 1)]]) && !harmed.explain(&[vec![disk("a", 0)]]));
        assert!(harmed.explain(&[vec![disk("a", 0), disk("a", 1)]]), "what stands on both");
        let before = harmed.note_again("a", None);
        assert!(harmed.explain(&[vec![disk("a", 0)]]));
        harmed.put_back("a", before);
        assert!(harmed.has("a") && !harmed.explain(&[vec![disk("a", 0)]]));
        let before = harmed.note_again("b", Some(0));
        harmed.put_back("b", before);
        assert!(!harmed.has("b"));
    }
}
