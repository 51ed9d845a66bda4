//! What a disk server is started with.

use std::{fs::File, io, sync::Arc};

use belljar_guest_spec::MAX_PATHS;
use serde::{Deserialize, Serialize};

use crate::{
    disk::LabDisk,
    store::{Base, Frozen, Store},
};

/// Most layers below a disk.
const MAX_BELOW: usize = 8;

/// A disk that is to be served; the files come as descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Setup {
    /// What the disk is called.
    pub name: String,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// What a power cut does not tear, in bytes: the physical sector.
    pub sector: u64,
    /// By how many paths QEMU has it, each with a line of its own; at least 1.
    pub paths: u32,
    /// Whether the data file is that of a frozen disk, which goes on; else it is empty.
    pub goes_on: bool,
    /// What is below, each over the next.
    pub below: Vec<Below>,
}

/// A file below a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Below {
    /// A frozen disk.
    Frozen,
    /// The bytes as they are; nothing is below.
    Raw,
}

impl Setup {
    /// How many files it wants: the data, then what is below.
    pub fn files(&self) -> usize {
        1 + self.below.len()
    }

    /// Opens the disk.
    ///
    /// # Errors
    /// When the files are not what was said, or cannot be read.
    pub fn open(&self, files: Vec<File>) -> io::Result<LabDisk> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if self.paths == 0 || self.paths > MAX_PATHS {
            return Err(wrong("it has no path, or too many"));
        }
        if files.len() != self.files() || self.below.len() > MAX_BELOW {
            return Err(wrong("there are not as many files as were said"));
        }
        let mut files = files.into_iter();
        let data = files.next().ok_or_else(|| wrong("there is no data file"))?;
        let mut base = Base::Zeros;
        // The lowest first.
        for (below, file) in self.below.iter().zip(files).rev() {
            base = match below {
                Below::Raw => Base::File(Arc::new(file)),
                Below::Frozen => Base::Frozen(Arc::new(Frozen::open(file, base)?)),
            };
        }
        if let Base::Frozen(frozen) = &base
            && frozen.size() != self.size
        {
            return Err(wrong("what is below has another size"));
        }
        let mut store = if self.goes_on {
            let frozen = Frozen::open(data, base)?;
            if frozen.size() != self.size {
                return Err(wrong("the data file is of a disk of another size"));
            }
            Store::go_on(frozen)
        } else {
            Store::new(self.size, base, data)
        };
        store.set_sector(self.sector);
        Ok(LabDisk::new(store, self.read_only, &self.name).with_paths(self.paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Answer, Order};

    fn setup(goes_on: bool, below: &[Below]) -> Setup {
        Setup {
            name: "data0".to_owned(),
            size: 1 << 20,
            read_only: false,
            sector: 512,
            paths: 1,
            goes_on,
            below: below.to_vec(),
        }
    }

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn layers_are_put_over_one_another() {
        let (raw, first) = (file(), file());
        raw.set_len(1 << 19).unwrap();
        let mut disk =
            setup(false, &[Below::Raw]).open(vec![first.try_clone().unwrap(), raw.try_clone().unwrap()]).unwrap();
        assert_eq!(disk.obey(Order::Freeze), Answer::Done);
        let clone = |f: &File| f.try_clone().unwrap();
        setup(false, &[Below::Frozen, Below::Raw]).open(vec![file(), clone(&first), clone(&raw)]).unwrap();
        setup(true, &[Below::Raw]).open(vec![clone(&first), clone(&raw)]).unwrap();
        // What is no frozen disk is none, and another size is another disk.
        setup(true, &[]).open(vec![file()]).unwrap_err();
        setup(false, &[Below::Frozen]).open(vec![file(), raw]).unwrap_err();
        setup(false, &[]).open(vec![]).unwrap_err();
        for paths in [0, MAX_PATHS + 1] {
            Setup { paths, ..setup(false, &[]) }.open(vec![file()]).unwrap_err();
        }
        let other = Setup { size: 1 << 19, ..setup(false, &[Below::Frozen]) };
        other.open(vec![file(), first]).unwrap_err();
    }
}
