//! `kernels`: one guest as several, each under a kernel of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::{Component, Path, PathBuf},
};

use belljar_guest_spec::{BootSource, Source};
use belljar_image::kernel::{self, Release};
use toml::Spanned;

use super::{Guest, HOST_GUEST, guest::GuestTable, typed::FileTable};
use crate::{
    diagnostic::{Diagnostic, enumerate},
    files,
    glob::Pattern,
    toml_tree::{Walk, name},
};

/// One guest has no more kernels.
const MOST: usize = 200;

/// The guests that a guest with `kernels` stands for, by its name; oldest kernel first. One whose kernels are wrong stands for none.
pub(super) type Families = BTreeMap<String, Vec<Member>>;

/// A guest of a family.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name.
    pub name: String,
    /// Its kernel.
    pub kernel: PathBuf,
}

/// A kernel that a pattern matched.
struct Found {
    path: PathBuf,
    /// What tells it from the others, the best first: its version, its file's name, what the pattern's first wildcard stood for.
    labels: [Option<String>; 3],
}

/// Looks for the kernels of all guests that have a pattern of them. `dir` is what relative patterns are below.
pub(super) fn expand(file: &FileTable, dir: &Path, walk: &mut Walk) -> Families {
    let guests = || file.guests.iter().flat_map(|g| &g.get_ref().0);
    let declared: BTreeSet<&str> = guests().map(|(name, _)| name.0.as_str()).collect();
    let mut families = Families::new();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (guest, (_, table)) in guests() {
        // What a table has besides is spoken of elsewhere.
        let Some(kernels) = &table.kernels else { continue };
        let members = members(&guest.0, table, dir, walk);
        let taken = members.iter().find(|member| declared.contains(member.name.as_str()));
        if guest.0 == HOST_GUEST {
            let help = "give it another name; `host` is one guest, which is always there";
            wrong(walk, kernels, "the guest \"host\" has several kernels", help);
        } else if let Some(member) = taken {
            let message = format!("the guest under {} would be called {:?}", member.kernel.display(), member.name);
            wrong(walk, kernels, &message, "there is one of this name in the file; give that another");
        }
        for member in &members {
            if let Some(other) = known.insert(member.name.clone(), guest.0.clone()) {
                let message = format!(
                    "the guest under {} would be called {:?}, as one of {other:?}",
                    member.kernel.display(),
                    member.name
                );
                wrong(walk, kernels, &message, "give one of the two guests another name");
            }
        }
        families.insert(guest.0.clone(), members);
    }
    families
}

impl Guest {
    /// The guest under one kernel of a family.
    pub(super) fn of_family(&self, family: &str, member: &Member) -> Self {
        let mut guest = Self { name: member.name.clone(), family: Some(family.to_owned()), ..self.clone() };
        if let Source::Boot(BootSource::RootDir { kernel, .. } | BootSource::ContainerImage { kernel, .. }) =
            &mut guest.spec.source
        {
            *kernel = Some(member.kernel.clone());
        }
        guest
    }
}

fn wrong<T>(walk: &mut Walk, at: &Spanned<T>, message: &str, help: &str) {
    let diagnostic = Diagnostic::error(message).at(walk.place(at.span())).help(help);
    walk.push(diagnostic);
}

fn members(guest: &str, table: &GuestTable, dir: &Path, walk: &mut Walk) -> Vec<Member> {
    let Some(kernels) = &table.kernels else { return Vec::new() };
    let mut found: Vec<Found> = Vec::new();
    let mut known = BTreeSet::new();
    for pattern in &kernels.get_ref().0 {
        let text = pattern.get_ref();
        match look_for(&text.0, dir) {
            Ok(matched) if matched.is_empty() => {
                let message = format!("{:?} matches no file", text.0.display().to_string());
                wrong(
                    walk,
                    pattern,
                    &message,
                    "a kernel that is not there is tested by nobody; correct it, or take it out",
                );
            }
            // A link beside its kernel is the same kernel.
            Ok(matched) => found.extend(
                matched
                    .into_iter()
                    .filter(|f| known.insert(fs_err::canonicalize(&f.path).unwrap_or_else(|_| f.path.clone()))),
            ),
            Err(why) => {
                let help = "`*`, `?`, `[…]` and `{a,b}` stand within one name, such as /boot/vmlinuz-*";
                wrong(walk, pattern, &why, help);
            }
        }
    }
    if kernels.get_ref().0.is_empty() && walk.is_blank_array(kernels.span()) {
        wrong(walk, kernels, "`kernels` is empty", "such as kernels = [\"/boot/vmlinuz-*\"]");
    }
    if found.len() > MOST {
        let message = format!("these are {} kernels, and a guest has {MOST} at most", found.len());
        wrong(walk, kernels, &message, "write narrower patterns");
        return Vec::new();
    }
    let Some(labels) = labels(&found) else {
        let paths = enumerate(found.iter().map(|f| f.path.display().to_string()));
        let message = format!("nothing that could name a guest tells these kernels apart: {paths}");
        wrong(walk, kernels, &message, "describe a guest for each, with `kernel`");
        return Vec::new();
    };
    let mut members: Vec<(String, Member)> = found
        .into_iter()
        .zip(labels)
        .map(|(found, label)| (label.clone(), Member { name: format!("{guest}-{label}"), kernel: found.path }))
        .collect();
    members.sort_by_cached_key(|(label, _)| Release::new(label));
    let members: Vec<Member> = members.into_iter().map(|(_, member)| member).collect();
    if let Some(why) = members.iter().find_map(|member| name(&member.name).err()) {
        wrong(
            walk,
            kernels,
            &format!("a guest for each kernel would have a name that is {why}"),
            "shorten the guest's name",
        );
    }
    members
}

/// The best kind of labels that all have, and no two the same.
fn labels(found: &[Found]) -> Option<Vec<String>> {
    (0..3).find_map(|kind| {
        let labels: Vec<String> = found.iter().map(|f| f.labels[kind].clone()).collect::<Option<_>>()?;
        (labels.iter().collect::<BTreeSet<_>>().len() == labels.len()).then_some(labels)
    })
}

/// The files that `pattern` matches, sorted.
fn look_for(pattern: &Path, dir: &Path) -> Result<Vec<Found>, String> {
    let mut at = vec![(if pattern.is_absolute() { PathBuf::from("/") } else { dir.to_owned() }, None)];
    for component in pattern.components() {
        let part = match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            Component::ParentDir => {
                at.iter_mut().for_each(|(path, _)| path.push(".."));
                continue;
            }
            Component::Normal(part) => part.to_string_lossy().into_owned(),
        };
        if !part.contains(['*', '?', '[', '{', '\\']) {
            at.iter_mut().for_each(|(path, _)| path.push(&part));
            continue;
        }
        if part.contains("**") {
            return Err(format!("{part:?} is no usable pattern"));
        }
        let pattern = Pattern::new(&part)?;
        let mut next = Vec::new();
        for (path, label) in at {
            let entries = match fs_err::read_dir(&path) {
                Ok(entries) => entries,
                // Others may match.
                Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(e) => return Err(format!("cannot look for kernels: {e}")),
            };
            for entry in entries {
                let name = entry.map_err(|e| format!("cannot look for kernels: {e}"))?.file_name();
                let hidden = name.as_encoded_bytes().starts_with(b".") && !pattern.hidden();
                if !hidden && pattern.matches(Path::new(&name)) {
                    let label = label.clone().or_else(|| usable(bare(&name.to_string_lossy())));
                    next.push((path.join(name), label));
                }
            }
        }
        at = next;
    }
    let mut found = Vec::new();
    for (path, label) in at {
        match fs_err::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => found.push(read(path, label)),
            // A link that leads nowhere, or a place that cannot be looked at.
            Err(e)
                if fs_err::symlink_metadata(&path).is_ok_and(|m| m.is_symlink())
                    || e.kind() != std::io::ErrorKind::NotFound =>
            {
                return Err(format!("a kernel cannot be looked at: {e}"));
            }
            Err(_) => {}
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn read(path: PathBuf, wildcard: Option<String>) -> Found {
    // What cannot be read, or is no kernel, is told of when it is to start a guest.
    let version = files::open_regular(&path).ok().and_then(|file| {
        let mut head = Vec::new();
        file.take(kernel::IDENTITY).read_to_end(&mut head).ok()?;
        usable(kernel::identify(&head)?.1?.as_str())
    });
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let file = file.and_then(|file| usable(bare(&file)));
    Found { path, labels: [version, file, wildcard] }
}

/// A name without what kernels' names begin with.
fn bare(name: &str) -> &str {
    let prefixes = ["vmlinuz-", "vmlinux-", "bzImage-", "Image-", "kernel-", "linux-"];
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// A text as a part of a guest's name.
fn usable(text: &str) -> Option<String> {
    let part: String =
        text.chars().map(|c| if c.is_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect();
    (!part.is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// What is needed of a bzImage to tell its version.
    fn bzimage(version: &str) -> Vec<u8> {
        let mut head = vec![0; 0x1000];
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        head[0x20e..0x210].copy_from_slice(&0x600_u16.to_le_bytes());
        head[0x800..0x800 + version.len()].copy_from_slice(version.as_bytes());
        head
    }

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new(files: &[(&str, &[u8])]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in files {
                let path = dir.path().join(name);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                fs_err::write(path, bytes).unwrap();
            }
            Self(dir)
        }

        fn config(&self, text: &str) -> Result<Config, String> {
            Config::parse(self.0.path().join("belljar.toml"), text).map_err(|wrong| wrong.to_string())
        }

        /// The family's guests, with the file of each kernel.
        fn members(&self, kernels: &str) -> Vec<(String, String)> {
            let config = self.config(&format!("[guests.k]\nkernels = {kernels}\n")).unwrap();
            let kernel = |name: &String| match config.guests[name].spec.source.boot().unwrap() {
                BootSource::RootDir { kernel: Some(kernel), .. } => {
                    kernel.strip_prefix(self.0.path()).unwrap().display().to_string()
                }
                other => panic!("{other:?}"),
            };
            config.families["k"].iter().map(|name| (name.clone(), kernel(name))).collect()
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn a_guest_for_each_kernel_is_named_after_its_version() {
        let lab = Lab::new(&[
            ("boot/vmlinuz-6.12.0", &bzimage("6.12.0-rc1+ (me@here) #1")),
            ("boot/vmlinuz-5.10.0", &bzimage("5.10.0-9-amd64 (me@here) #1")),
            ("boot/vmlinuz-6.1.0", &bzimage("6.1.0 (me@here) #1")),
            ("boot/initrd.img-6.1.0", b""),
            ("boot/vmlinuz-dir/x", b""),
        ]);
        std::os::unix::fs::symlink("vmlinuz-6.1.0", lab.0.path().join("boot/vmlinuz-link")).unwrap();
        assert_eq!(
            lab.members("[\"boot/vmlinuz-*\"]"),
            pairs(&[
                ("k-5.10.0-9-amd64", "boot/vmlinuz-5.10.0"),
                ("k-6.1.0", "boot/vmlinuz-6.1.0"),
                ("k-6.12.0-rc1_", "boot/vmlinuz-6.12.0"),
            ])
        );
        let whole = format!("[\"{}/boot/vmlinuz-6.1*\", \"./boot/vmlinuz-5.10.0\"]", lab.0.path().display());
        assert_eq!(lab.members(&whole).len(), 3);
    }

    #[test]
    fn what_has_no_version_of_its_own_is_named_after_what_tells_it_apart() {
        let same = bzimage("6.1.0 (me@here) #1");
        let lab = Lab::new(&[
            ("b/linux-a/arch/x86/boot/bzImage", &same),
            ("b/linux-b/arch/x86/boot/bzImage", &same),
            ("e/vmlinux-6.1", b"\x7fELF"),
            ("e/vmlinux-6.2", b"\x7fELF"),
        ]);
        assert_eq!(
            lab.members("\"b/*/arch/x86/boot/bzImage\""),
            pairs(&[("k-a", "b/linux-a/arch/x86/boot/bzImage"), ("k-b", "b/linux-b/arch/x86/boot/bzImage")])
        );
        assert_eq!(lab.members("\"e/*\""), pairs(&[("k-6.1", "e/vmlinux-6.1"), ("k-6.2", "e/vmlinux-6.2")]));
    }

    #[test]
    fn suites_and_the_command_line_may_name_the_family() {
        let lab = Lab::new(&[("v/vmlinuz-1", b"x"), ("v/vmlinuz-2", b"x")]);
        let config = lab
            .config("[guests.k]\nkernels = \"v/*\"\n[guests.z]\n[[suites]]\nname = \"a\"\ntests = \"t/*\"\nguests = [\"k\", \"z\", \"k-2\"]\n[[suites]]\nname = \"b\"\ntests = \"t/*\"\n")
            .unwrap();
        assert_eq!(config.suites[0].guests, ["k-1", "k-2", "z"]);
        assert_eq!(config.suites[1].guests, ["k-1", "k-2", "z"]);
        assert_eq!(config.guests.keys().collect::<Vec<_>>(), ["host", "k-1", "k-2", "z"]);
        assert_eq!(config.guest("k-1").unwrap().family.as_deref(), Some("k"));
        let told = |name: &str| config.guest(name).unwrap_err().to_string();
        let expected =
            "error: \"k\" is a guest for each of its kernels\n  = help: name one of them: \"k-1\" and \"k-2\"";
        assert_eq!(told("k").trim_end(), expected);
        assert!(told("k-3").starts_with("error: there is no guest \"k-3\""), "{}", told("k-3"));
    }

    #[test]
    fn what_cannot_be_a_matrix_is_told() {
        let lab = Lab::new(&[
            ("v/vmlinuz-1", b"x"),
            ("v/x/bzImage", b"x"),
            ("w/x/bzImage", b"x"),
            ("u/vmlinuz-rt-1", b"x"),
            ("l/vmlinuz-1", b"x"),
        ]);
        std::os::unix::fs::symlink("nowhere", lab.0.path().join("l/vmlinuz-2")).unwrap();
        let told = |text: &str| {
            let found = lab.config(text).unwrap_err();
            found.replace(&lab.0.path().display().to_string(), "DIR")
        };
        let all = [
            "[guests.k]\nkernels = [\"v/none-*\", \"v/vmlinuz-1\"]\n",
            "[guests.k]\nkernels = []\n",
            "[guests.k]\nkernels = \"v/**\"\n",
            "[guests.k]\nkernels = \"v/[\"\n",
            "[guests.k]\nkernels = [\"v/x/bzImage\", \"w/x/bzImage\"]\n",
            "[guests.host]\nkernels = \"v/vmlinuz-*\"\n",
            "[guests.k]\nkernels = \"v/vmlinuz-*\"\n[guests.k-1]\n",
            "[guests.k]\nkernels = \"u/vmlinuz-rt-1\"\n[guests.k-rt]\nkernels = \"v/vmlinuz-1\"\n",
            "[guests.k]\nkernels = \"l/*\"\n",
            "[guests.k]\nkernels = \"v/vmlinuz-*\"\nkernel = \"v/vmlinuz-1\"\nmodules = \"m\"\n",
            "[guests.k]\nkernels = \"v/vmlinuz-*\"\nimage = \"i.qcow2\"\n",
            "[guests.k]\nkernels = \"v/vmlinuz-*\"\ninitrd = \"i\"\n",
        ];
        insta::assert_snapshot!(all.map(told).join("\n----\n"));
    }
}
