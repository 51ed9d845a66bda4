//! A kernel's modules: which there are, what is built in, what must be inserted before what.
//!
//! Sources: `modules.dep(5)`, `depmod.d(5)` for soft dependencies, and a module's own `.modinfo` section where
//! nobody ran `depmod`.

mod feature;
mod parse;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use feature::{Feature, Presence};
pub use parse::module_name;

use crate::bounded;
use crate::decompress::Packing;

/// `modules.dep` of a distribution's kernel has half a megabyte.
const MAX_INDEX: u64 = 32 << 20;
/// An unpacked module; those with debug sections are large.
const MAX_MODULE: u64 = 256 << 20;
/// Entries looked at when there is no `modules.dep`.
const MAX_ENTRIES: usize = 100_000;

/// Why a directory of modules or a module cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// The directory is not one of a kernel's modules.
    #[error(
        "{} holds no kernel modules: it has neither modules.dep nor a directory kernel; \
         a module directory is one such as /lib/modules/6.1.0-56-amd64{}", dir.display(),
        inside.as_ref().map(|d| format!("; did you mean {}?", d.display())).unwrap_or_default()
    )]
    NotAModuleDirectory {
        /// The directory given.
        dir: PathBuf,
        /// One in it that would do.
        inside: Option<PathBuf>,
    },
    /// Nothing says what is built in, so that nothing can be said to be missing.
    #[error(
        "{} has no modules.builtin, the kernel's list of what is built in; mend: install all parts of the kernel's \
         package (on Debian 14 and later the list is in linux-base-RELEASE)", dir.display()
    )]
    NoBuiltinList {
        /// The directory given.
        dir: PathBuf,
    },
    /// A file that was expected cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said, or the decoder.
        source: io::Error,
    },
    /// Packed in a way that nothing here can read.
    #[error("cannot unpack the module {}: there is no decoder for {packing}", path.display())]
    Packing {
        /// The file.
        path: PathBuf,
        /// How it is packed.
        packing: &'static str,
    },
    /// The file is no module.
    #[error("{} is not a kernel module: it is no ELF file when unpacked", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
}

/// What a kernel's module directory says.
#[derive(Clone, Debug)]
pub struct ModuleIndex {
    dir: PathBuf,
    /// `modules.dep`, of which a run needs a dozen lines out of thousands.
    dep: String,
    modules: HashMap<String, Entry>,
    builtin: HashSet<String>,
    soft: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Absolute, or below the directory.
    path: PathBuf,
    needs: Needs,
}

/// What a module needs, by name.
#[derive(Clone, Debug)]
enum Needs {
    /// Where in `modules.dep` the paths are.
    Listed(Range<usize>),
    /// In the module itself, once asked.
    Asked(OnceCell<Vec<String>>),
}

/// One module to insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as the kernel lists it.
    pub name: String,
    /// Its file, maybe packed.
    pub path: PathBuf,
}

/// What [`ModuleIndex::resolve`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// To be inserted in this order.
    pub insert: Vec<Module>,
    /// Asked for and built in.
    pub builtin: Vec<String>,
    /// Asked for, or needed by what was, and not to be had.
    pub missing: Vec<String>,
}

impl ModuleIndex {
    /// Reads a directory such as `/lib/modules/6.1.0-56-amd64`. Without a `modules.dep` (a package that was unpacked
    /// but not installed) its tree is walked instead, and dependencies are read from the modules.
    ///
    /// # Errors
    /// When the directory holds no modules or its index cannot be read.
    pub fn load(dir: &Path) -> Result<Self, ModulesError> {
        let read = |name: &str| {
            let path = dir.join(name);
            match bounded::read(&path, MAX_INDEX) {
                Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
                Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => Ok(None),
                Err(source) => Err(ModulesError::Read { path, source }),
            }
        };
        let (modules, dep) = match read("modules.dep")? {
            Some(text) => (from_dep(&text), text),
            None if dir.join("kernel").is_dir() => (walk(dir), String::new()),
            None => {
                return Err(ModulesError::NotAModuleDirectory { dir: dir.to_owned(), inside: tree_inside(dir) });
            }
        };
        let builtin = read("modules.builtin")?.ok_or_else(|| ModulesError::NoBuiltinList { dir: dir.to_owned() })?;
        Ok(Self {
            modules,
            builtin: parse::builtin(&builtin),
            soft: parse::softdep(&read("modules.softdep")?.unwrap_or_default()),
            dir: dir.to_owned(),
            dep,
        })
    }

    /// The directory that was read.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the kernel has a module of this name (`-` and `_` are the same).
    #[must_use]
    pub fn presence(&self, name: &str) -> Presence {
        let name = parse::normalise(name);
        if self.builtin.contains(&name) {
            Presence::Builtin
        } else if self.module(&name).is_some() {
            Presence::Module
        } else {
            Presence::Absent
        }
    }

    /// Whether the kernel has all that a feature needs.
    #[must_use]
    pub fn feature(&self, feature: Feature) -> Presence {
        feature.modules().iter().map(|m| self.presence(m)).max().unwrap_or(Presence::Builtin)
    }

    /// The modules to insert for those wanted, dependencies first, each once.
    ///
    /// # Errors
    /// When there is no `modules.dep` and a module cannot be read for its dependencies.
    pub fn resolve<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<Resolved, ModulesError> {
        let mut resolved = Resolved::default();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(&parse::normalise(name), true, &mut seen, &mut resolved)?;
        }
        Ok(resolved)
    }

    /// Adds a module after what it needs. The depth of the recursion is bounded by the number of modules, and in any
    /// real tree by about ten; a circle ends at what was seen.
    fn visit(
        &self,
        name: &str,
        required: bool,
        seen: &mut HashSet<String>,
        out: &mut Resolved,
    ) -> Result<(), ModulesError> {
        if seen.len() > 1000 || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if self.builtin.contains(name) {
            out.builtin.push(name.to_owned());
            return Ok(());
        }
        let Some((entry, path)) = self.module(name) else {
            if required {
                out.missing.push(name.to_owned());
            } else {
                seen.remove(name);
            }
            return Ok(());
        };
        // A soft dependency is often an alias (`crypto-crc32c`) and never a reason to fail.
        for soft in self.soft.get(name).into_iter().flatten() {
            self.visit(soft, false, seen, out)?;
        }
        for need in self.needs(entry, &path)? {
            self.visit(&need, true, seen, out)?;
        }
        out.insert.push(Module { name: name.to_owned(), path });
        Ok(())
    }

    /// A module that is there, and its file.
    fn module(&self, name: &str) -> Option<(&Entry, PathBuf)> {
        let entry = self.modules.get(name)?;
        let path = self.dir.join(&entry.path);
        path.is_file().then_some((entry, path))
    }

    fn needs(&self, entry: &Entry, path: &Path) -> Result<Vec<String>, ModulesError> {
        match &entry.needs {
            Needs::Listed(range) => {
                let paths = self.dep.get(range.clone()).unwrap_or_default();
                Ok(paths.split_ascii_whitespace().filter_map(module_name).collect())
            }
            Needs::Asked(known) => {
                if known.get().is_none() {
                    let needs = parse::modinfo(&read_module(path)?, "depends")
                        .map(|text| text.split(',').filter(|n| !n.is_empty()).map(parse::normalise).collect())
                        .unwrap_or_default();
                    let _ = known.set(needs);
                }
                Ok(known.get().cloned().unwrap_or_default())
            }
        }
    }
}

fn from_dep(text: &str) -> HashMap<String, Entry> {
    parse::dep(text)
        .filter_map(|(path, needs)| {
            Some((module_name(path)?, Entry { path: path.into(), needs: Needs::Listed(needs) }))
        })
        .collect()
}

/// Somebody who gives the directory above, or that of `make INSTALL_MOD_PATH=… modules_install`.
fn tree_inside(dir: &Path) -> Option<PathBuf> {
    ["", "lib/modules", "usr/lib/modules"].iter().find_map(|below| {
        let entries = std::fs::read_dir(dir.join(below)).ok()?.flatten().take(100);
        entries.map(|e| e.path()).find(|d| d.join("modules.dep").is_file() || d.join("kernel").is_dir())
    })
}

fn walk(top: &Path) -> HashMap<String, Entry> {
    let mut found = HashMap::new();
    let mut dirs = vec![top.join("kernel"), top.join("updates"), top.join("extra")];
    let mut entries_left = MAX_ENTRIES;
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Some(left) = entries_left.checked_sub(1) else { return found };
            entries_left = left;
            // Not through symbolic links: `build` and `source` lead out of the tree.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Some(name) = entry.file_name().to_str().and_then(module_name) {
                        found.insert(name, Entry { path: entry.path(), needs: Needs::Asked(OnceCell::new()) });
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// A module's bytes, unpacked.
///
/// # Errors
/// When the file cannot be read or unpacked, or is no module.
pub fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let failed = |source| ModulesError::Read { path: path.to_owned(), source };
    let bytes = bounded::read(path, MAX_MODULE).map_err(failed)?;
    let packing = Packing::of(&bytes);
    let bytes = match packing {
        Packing::None => bytes,
        _ => {
            let reader = packing.reader(&bytes[..]).map_err(failed)?;
            let reader = reader.ok_or(ModulesError::Packing { path: path.to_owned(), packing: packing.name() })?;
            bounded::read_all(reader, MAX_MODULE).map_err(failed)?
        }
    };
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ModulesError::NotAModule { path: path.to_owned() });
    }
    Ok(bytes)
}

/// The kernel release that a module was built for, as its `vermagic` says.
#[must_use]
pub fn built_for(module: &[u8]) -> Option<String> {
    parse::modinfo(module, "vermagic")?.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::{gzip, pack_with};
    use std::fs;

    /// A module directory; each module is `path: what it depends on, by name`.
    fn tree(modules: &[(&str, &str)], files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, depends) in modules {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let elf = format!("\x7fELF..\0license=GPL\0depends={depends}\0vermagic=6.1.0-56-amd64 SMP\0");
            let bytes = match file.extension().unwrap().to_str().unwrap() {
                "gz" => gzip(elf.as_bytes()),
                "xz" => pack_with(&["xz", "--check=crc32", "--lzma2=dict=1MiB"], elf.as_bytes()),
                "zst" => pack_with(&["zstd", "-q", "-c"], elf.as_bytes()),
                _ => elf.into_bytes(),
            };
            fs::write(file, bytes).unwrap();
        }
        fs::write(dir.path().join("modules.builtin"), "").unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn order(resolved: &Resolved) -> Vec<&str> {
        resolved.insert.iter().map(|m| m.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tree(
            &[("kernel/a.ko", ""), ("kernel/b-b.ko.xz", ""), ("kernel/c.ko.gz", ""), ("kernel/d.ko.zst", "")],
            &[
                (
                    "modules.dep",
                    "kernel/c.ko.gz: kernel/b-b.ko.xz kernel/a.ko\nkernel/b-b.ko.xz: kernel/a.ko\nkernel/a.ko:\nkernel/d.ko.zst:\n",
                ),
                ("modules.softdep", "# x\nsoftdep c pre: d crypto-x post: e\n"),
                ("modules.builtin", "kernel/y/built-in.ko\n"),
            ],
        );
        let index = ModuleIndex::load(dir.path()).unwrap();
        let resolved = index.resolve(["c", "a", "built_in", "nothing"]).unwrap();
        assert_eq!(order(&resolved), ["d", "a", "b_b", "c"]);
        assert_eq!(resolved.builtin, ["built_in"]);
        assert_eq!(resolved.missing, ["nothing"]);
        for module in &resolved.insert {
            assert!(read_module(&module.path).unwrap().starts_with(b"\x7fELF"), "{module:?}");
        }
        assert_eq!(index.presence("b-b"), Presence::Module);
        assert_eq!(index.presence("built-in"), Presence::Builtin);
    }

    #[test]
    fn without_an_index_the_modules_are_asked() {
        let dir = tree(&[("kernel/x/a.ko.xz", ""), ("kernel/y/b-b.ko.xz", "a"), ("kernel/c.ko.xz", "b_b,a,gone")], &[]);
        let resolved = ModuleIndex::load(dir.path()).unwrap().resolve(["c"]).unwrap();
        assert_eq!(order(&resolved), ["a", "b_b", "c"]);
        assert_eq!(resolved.missing, ["gone"]);
        assert_eq!(built_for(&read_module(&resolved.insert[0].path).unwrap()).as_deref(), Some("6.1.0-56-amd64"));
    }

    #[test]
    fn a_directory_too_high_up_is_pointed_down() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("lib/modules/6.1/kernel")).unwrap();
        let say = |dir: &Path| ModuleIndex::load(dir).unwrap_err().to_string();
        assert!(say(top.path()).ends_with("lib/modules/6.1?"));
        assert!(say(&top.path().join("lib/modules")).ends_with("lib/modules/6.1?"));
    }

    #[test]
    fn a_circle_ends() {
        let dir = tree(
            &[("kernel/a.ko", ""), ("kernel/b.ko", "")],
            &[("modules.dep", "kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\n")],
        );
        let resolved = ModuleIndex::load(dir.path()).unwrap().resolve(["a"]).unwrap();
        assert_eq!(order(&resolved), ["b", "a"]);
    }

    #[test]
    fn a_module_listed_but_not_there_is_missing() {
        let dir = tree(&[], &[("modules.dep", "kernel/a.ko:\n")]);
        let index = ModuleIndex::load(dir.path()).unwrap();
        assert_eq!(index.presence("a"), Presence::Absent);
        assert_eq!(index.resolve(["a"]).unwrap().missing, ["a"]);
    }

    #[test]
    fn what_is_no_module_directory_or_no_module_is_refused() {
        let dir = tree(&[], &[("x.ko", "text"), ("y.ko", "BZh91AY")]);
        assert!(matches!(ModuleIndex::load(dir.path()), Err(ModulesError::NotAModuleDirectory { .. })));
        assert!(matches!(ModuleIndex::load(&dir.path().join("x.ko")), Err(ModulesError::NotAModuleDirectory { .. })));
        assert!(matches!(read_module(&dir.path().join("x.ko")), Err(ModulesError::NotAModule { .. })));
        assert!(matches!(read_module(&dir.path().join("y.ko")), Err(ModulesError::Packing { .. })));
        fs::write(dir.path().join("modules.dep"), "").unwrap();
        fs::remove_file(dir.path().join("modules.builtin")).unwrap();
        assert!(matches!(ModuleIndex::load(dir.path()), Err(ModulesError::NoBuiltinList { .. })));
    }
}
