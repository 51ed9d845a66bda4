//! The text files that `depmod` and the kernel's build leave. What cannot be understood is passed over: a line too
//! many in one of them is no reason not to boot.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The kernel takes `-` and `_` in a module's name as the same.
pub(super) fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file: `kernel/net/9p/9pnet.ko.xz` holds `9pnet`.
#[must_use]
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().find_map(|end| file.strip_suffix(end))?;
    (!stem.is_empty()).then(|| normalise(stem))
}

/// The lines `PATH: PATH PATH…` of `modules.dep`: the module, and where in the text the paths of what it needs are.
pub(super) fn dep(text: &str) -> impl Iterator<Item = (&str, Range<usize>)> {
    let mut at = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let start = at;
        at += line.len();
        let colon = line.find(':')?;
        Some((line[..colon].trim(), start + colon + 1..at))
    })
}

/// The names in `modules.builtin`, a path a line.
pub(super) fn builtin(text: &str) -> HashSet<String> {
    text.lines().filter_map(|line| module_name(line.trim())).collect()
}

/// What `softdep NAME pre: A B post: C` wants before `NAME`.
pub(super) fn softdep(text: &str) -> HashMap<String, Vec<String>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
        let before = words.skip_while(|&w| w != "pre:").skip(1).take_while(|&w| w != "post:" && w != "pre:");
        found.entry(normalise(name)).or_default().extend(before.map(normalise));
    }
    found
}

/// The value of `KEY=VALUE` in a module's `.modinfo` section. The section's strings are looked for in the whole file:
/// each begins after a NUL, and none of the keys asked for here is in a module's code.
pub(super) fn modinfo<'a>(module: &'a [u8], key: &str) -> Option<&'a str> {
    let needle = [b"\0", key.as_bytes(), b"="].concat();
    let start = memchr::memmem::find(module, &needle)? + needle.len();
    let rest = &module[start..];
    let end = memchr::memchr(0, &rest[..rest.len().min(4096)])?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko.zst").unwrap(), "virtio_rng");
        assert_eq!(module_name("9p.ko").unwrap(), "9p");
        for none in ["", ".ko", "kernel/", "modules.dep", "x.ko.bz2"] {
            assert_eq!(module_name(none), None, "{none}");
        }
    }

    #[test]
    fn modinfo_ends_at_its_nul() {
        assert_eq!(modinfo(b"\0depends=a,b\0x", "depends"), Some("a,b"));
        assert_eq!(modinfo(b"\0depends=\0x", "depends"), Some(""));
        assert_eq!(modinfo(b"\0depends=a", "depends"), None);
        assert_eq!(modinfo(b"xdepends=a\0", "depends"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|\n|:|softdep |pre: |post: |/|\\.ko){0,60}", bytes: Vec<u8>) {
            let _ = dep(&text).count();
            builtin(&text);
            softdep(&text);
            let _ = module_name(&text);
            modinfo(&bytes, "depends");
        }

        #[test]
        fn what_is_written_is_read(lines in prop::collection::vec(("[a-z_]{1,8}", prop::collection::vec("[a-z_]{1,8}", 0..4)), 0..8)) {
            let text: String = lines.iter().map(|(m, needs)| {
                let needs: String = needs.iter().map(|n| format!(" kernel/{n}.ko")).collect();
                format!("kernel/{m}.ko:{needs}\n")
            }).collect();
            let read: Vec<_> = dep(&text).map(|(m, needs)| {
                (module_name(m).unwrap(), text[needs].split_whitespace().map(|n| module_name(n).unwrap()).collect::<Vec<_>>())
            }).collect();
            prop_assert_eq!(read, lines);
        }
    }
}
