//! GRUB's modules: which ones are on the medium, and those of which commands get other names.

use std::{collections::BTreeSet, path::Path};

use super::GrubError;
use crate::bounded;

/// `linux` and `initrd` under the names that they have on the medium, of the same length.
pub(super) const LINUX: &str = "bjlnx";
pub(super) const INITRD: &str = "bjinrd";

/// A module's file is no longer, in bytes.
const MAX_MODULE: u64 = 4 << 20;
/// Lists of modules and their like are not either.
const MAX_LIST: u64 = 1 << 20;

/// In the core image: what reaches the medium's file system, and reads the configuration there.
pub(super) const CORE: &[&str] = &["part_msdos", "fat", "normal"];
/// What the configuration cannot do without.
const NEEDED: &[&str] =
    &["serial", "terminal", "echo", "test", "regexp", "true", "sleep", "configfile", "loadenv", "linux", "boot"];
/// What it has where this GRUB has it: partition tables, file systems, what joins disks, and commands of configurations.
const WANTED: &[&str] = &[
    "part_gpt",
    "part_apple",
    "part_bsd",
    "part_sun",
    "ext2",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "jfs",
    "reiserfs",
    "iso9660",
    "udf",
    "squash4",
    "nilfs2",
    "exfat",
    "erofs",
    "hfsplus",
    "bcachefs",
    "minix3",
    "ufs2",
    "diskfilter",
    "lvm",
    "mdraid09",
    "mdraid1x",
    "raid5rec",
    "raid6rec",
    "dm_nv",
    "ldm",
    "gzio",
    "xzio",
    "lzopio",
    "search",
    "search_fs_uuid",
    "search_fs_file",
    "search_label",
    "probe",
    "eval",
    "loopback",
    "cpuid",
    "smbios",
    "tr",
    "cat",
    "ls",
    "minicmd",
];

/// GRUB's variables under the names that they have on the medium, of the same length. A configuration that sets one of them by the name that it knows changes nothing: where
/// modules and lists of commands come from, who is asked for a password, how long a menu waits, whether output waits for a key.
pub(super) const TIMEOUT: &str = "bjmeout";
const VARIABLES: &[(&str, &str)] =
    &[("prefix", "bjpref"), ("superusers", "bjperusers"), ("timeout", TIMEOUT), ("pager", "bjger")];
/// The commands that say what is a terminal.
pub(super) const TERMINAL_INPUT: &str = "bjrminal_input";
pub(super) const TERMINAL_OUTPUT: &str = "bjrminal_output";

/// Names in a file of GRUB's that are others on the medium.
struct Renamed {
    /// The module, or the program's kernel.
    file: &'static str,
    /// Those that must be there, else it is another file than the one that is known.
    needed: &'static [(&'static str, &'static str)],
    /// Those that are there in some GRUBs.
    others: &'static [(&'static str, &'static str)],
}

/// What GRUB itself starts with.
pub(super) const KERNEL: &str = "kernel.img";

/// The commands, and the module itself, so that a configuration that loads it by its name has none that goes before our functions.
const RENAMED: &[Renamed] = &[
    Renamed {
        file: "linux",
        needed: &[("linux", LINUX)],
        others: &[("initrd", INITRD), ("linuxefi", "bjlnxefi"), ("initrdefi", "bjinrdefi")],
    },
    Renamed { file: "loadenv", needed: &[("save_env", "bjsv_env")], others: &[("loadenv", "bjldenv")] },
    Renamed {
        file: "terminal",
        needed: &[("terminal_input", TERMINAL_INPUT), ("terminal_output", TERMINAL_OUTPUT)],
        others: &[],
    },
    Renamed { file: "normal", needed: VARIABLES, others: &[] },
    Renamed { file: KERNEL, needed: &[VARIABLES[0]], others: &[] },
];

impl Renamed {
    fn of(file: &str) -> Option<&'static Self> {
        RENAMED.iter().find(|renamed| renamed.file == file)
    }

    fn all(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> + use<> {
        self.needed.iter().chain(self.others)
    }
}

/// The name of a module on the medium.
pub(super) fn renamed(module: &str) -> &str {
    let name = Renamed::of(module).and_then(|renamed| renamed.all().find(|(name, _)| *name == module));
    name.map_or(module, |(_, other)| other)
}

/// What is missing in a file that is another than the one that is known.
pub(super) const OTHER: &str = "a name that Belljar has to change";

/// A file of the medium.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// What is on the medium of a directory of GRUB's modules.
#[derive(Debug)]
pub(super) struct Modules {
    /// The modules that the configuration loads, by their names on the medium.
    pub(super) load: Vec<String>,
    /// Their files, and those of what they need.
    pub(super) files: Vec<File>,
}

impl Modules {
    /// # Errors
    /// Where one that is needed is not there, or is not as it is known.
    pub(super) fn read(dir: &Path) -> Result<Self, GrubError> {
        let read = |name: &str, max| {
            let path = dir.join(name);
            bounded::read(&path, max).map_err(|source| GrubError::Read { path, source })
        };
        let needs = String::from_utf8_lossy(&read("moddep.lst", MAX_LIST)?).into_owned();
        let needs_of = |module: &str| {
            let line = needs.lines().find_map(|line| line.strip_prefix(module)?.strip_prefix(':'));
            line.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let is_there = |module: &&&str| dir.join(format!("{module}.mod")).is_file();
        let wanted: Vec<&str> = NEEDED.iter().chain(WANTED.iter().filter(is_there)).copied().collect();
        let mut names = BTreeSet::new();
        let mut open: Vec<String> = CORE.iter().chain(&wanted).map(ToString::to_string).collect();
        while let Some(module) = open.pop() {
            if !names.contains(&module) {
                open.extend(needs_of(&module));
                names.insert(module);
            }
        }
        let mut files = Vec::new();
        let mut list = String::new();
        for module in &names {
            let bytes = read(&format!("{module}.mod"), MAX_MODULE)?;
            let bytes = rename(module, bytes).ok_or_else(|| {
                let path = dir.join(format!("{module}.mod"));
                GrubError::Unknown { path, what: OTHER }
            })?;
            let name = renamed(module);
            files.push(File { name: format!("{name}.mod"), bytes });
            let needs: Vec<_> = needs_of(module);
            let needs: Vec<_> = needs.iter().map(|needed| renamed(needed)).collect();
            list.push_str(&format!("{name}: {}\n", needs.join(" ")));
        }
        // GRUB tries the modules of file systems in this list on a disk that it does not know.
        let systems = String::from_utf8_lossy(&read("fs.lst", MAX_LIST)?).into_owned();
        let systems: String =
            systems.lines().filter(|line| names.contains(*line)).map(|line| format!("{line}\n")).collect();
        files.push(File { name: "moddep.lst".into(), bytes: list.into_bytes() });
        files.push(File { name: "fs.lst".into(), bytes: systems.into_bytes() });
        Ok(Self { load: wanted.iter().map(|module| renamed(module).to_owned()).collect(), files })
    }
}

/// A file with the names that it has on the medium; none where one that must be is not in it.
pub(super) fn rename(file: &str, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let Some(renamed) = Renamed::of(file) else { return Some(bytes) };
    for (at, (name, other)) in renamed.all().enumerate() {
        let places = places(&bytes, name);
        if places.is_empty() && at < renamed.needed.len() {
            return None;
        }
        for place in places {
            bytes.get_mut(place..place + other.len())?.copy_from_slice(other.as_bytes());
        }
    }
    Some(bytes)
}

/// Where this name is, as a whole word with a zero behind it.
fn places(bytes: &[u8], name: &str) -> Vec<usize> {
    let is_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    let whole = [name.as_bytes(), b"\0"].concat();
    let found = memchr::memmem::find_iter(bytes, &whole);
    found
        .filter(|at| at.checked_sub(1).and_then(|before| bytes.get(before)).is_none_or(|byte| !is_of_word(byte)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_get_names_of_the_same_length_and_nothing_else_changes() {
        for renamed in RENAMED {
            assert!(renamed.all().all(|(name, other)| name.len() == other.len()), "{}", renamed.file);
        }
        let bytes = b"linux\0Load Linux.\0initrd\0grub_cmd_linux\0linux.c\0xlinux\0.linux\0linuxefi\0linux".to_vec();
        let other = rename("linux", bytes).unwrap();
        let want = b"bjlnx\0Load Linux.\0bjinrd\0grub_cmd_linux\0linux.c\0xlinux\0.linux\0bjlnxefi\0linux";
        assert_eq!(String::from_utf8_lossy(&other), String::from_utf8_lossy(want));
        assert_eq!(rename("ext2", b"linux\0".to_vec()), Some(b"linux\0".to_vec()));
        assert_eq!(rename("linux", b"other\0".to_vec()), None, "it is another module");
        let other = rename(KERNEL, b"prefix\0root\0no prefix\0".to_vec()).unwrap();
        assert_eq!(String::from_utf8_lossy(&other), "bjpref\0root\0no bjpref\0");
        assert_eq!(rename("normal", b"prefix\0timeout\0pager\0".to_vec()), None, "one of them is not there");
    }

    #[test]
    fn what_is_needed_of_modules_comes_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs_err::write(dir.path().join(name), text).unwrap();
        for module in NEEDED.iter().chain(CORE).chain(&["ext2", "fshelp", "extcmd", "other"]) {
            let others = "terminal_input\0terminal_output\0prefix\0superusers\0timeout\0pager\0";
            write(&format!("{module}.mod"), &format!("{module}\0linux\0save_env\0{others}"));
        }
        write("moddep.lst", "ext2: fshelp\necho: extcmd\nfshelp:\nother: ext2\nconfigfile: loadenv\n");
        write("fs.lst", "ext2\nfat\nufs1\n");
        let modules = Modules::read(dir.path()).unwrap();
        let file = |name: &str| {
            let found = modules.files.iter().find(|file| file.name == name);
            found.map(|file| String::from_utf8_lossy(&file.bytes).into_owned())
        };
        assert!(file("fshelp.mod").is_some() && file("extcmd.mod").is_some());
        assert_eq!((file("other.mod"), file("linux.mod"), file("loadenv.mod")), (None, None, None));
        assert!(file("bjlnx.mod").unwrap().starts_with("bjlnx\0bjlnx\0save_env\0terminal_input\0"));
        assert!(file("normal.mod").unwrap().ends_with("\0bjpref\0bjperusers\0bjmeout\0bjger\0"));
        assert_eq!(file("fs.lst").as_deref(), Some("ext2\nfat\n"), "GRUB looks for no module that is not there");
        assert!(file("moddep.lst").unwrap().contains("\nconfigfile: bjldenv\n"));
        assert!(modules.load.contains(&"ext2".to_owned()) && !modules.load.contains(&"zfs".to_owned()));
        fs_err::remove_file(dir.path().join("sleep.mod")).unwrap();
        assert!(Modules::read(dir.path()).unwrap_err().to_string().contains("sleep.mod"));
    }
}
