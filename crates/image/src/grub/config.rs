//! What our GRUB is told: to find the guest's own configuration, and to boot its default entry with our words and our archive.
//!
//! GRUB's language is in its manual, "Writing full configuration files directly". A command goes before a function of the same name, so the commands that
//! load a kernel have other names in the modules on the medium (`modules.rs`), and the functions here have theirs.

use super::{ARCHIVE, DIR, modules};

/// What begins a line on the serial console by which our GRUB says that it cannot go on.
pub const GAVE_UP: &str = "belljar: GRUB gives up: ";
/// What begins a line by which it says which entry it boots.
pub const BOOTS: &str = "belljar: GRUB boots: ";

/// The directories of GRUB's configuration, in the order in which they are looked for on all file systems. A star is a subvolume's name.
const DIRECTORIES: &[&str] =
    &["boot/grub", "grub", "boot/grub2", "grub2", "*/boot/grub", "*/grub", "*/boot/grub2", "*/grub2"];
/// The directories of boot loader specification entries (UAPI.1).
const ENTRIES: &[&str] = &["loader/entries", "boot/loader/entries"];
/// What loads a kernel or its initramfs, by any name that distributions have for it.
const LINUX: &[&str] = &["linux", "linux16", "linuxefi"];
const INITRD: &[&str] = &["initrd", "initrd16", "initrdefi"];
/// What starts something else than a Linux that GRUB has read.
const OTHERS: &[(&str, &str)] = &[
    ("chainloader", "hands over to another boot loader"),
    ("multiboot", "starts something else than Linux"),
    ("multiboot2", "starts something else than Linux"),
    ("xen_hypervisor", "starts something else than Linux"),
    ("kfreebsd", "starts something else than Linux"),
    ("ntldr", "starts something else than Linux"),
];
/// Keys of boot loader specification entries that decide nothing here. Those with a hyphen, which no function's name may have, GRUB complains of and passes over.
const UNUSED_KEYS: &[&str] = &["version", "architecture", "grub_users", "grub_arg", "grub_class", "id"];

/// The whole configuration, for a GRUB that has these modules; `words` are those that the kernel's get.
#[must_use]
pub fn text(modules: &[String], words: &str) -> String {
    let mut text = String::new();
    let mut add = |part: &str| {
        text.push_str(part);
        text.push('\n');
    };
    add("# Made by Belljar. It boots the default entry of the guest's own configuration.");
    add("set pager=0\ninsmod serial\ninsmod terminal");
    add("serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial");
    modules.iter().for_each(|module| add(&format!("insmod {module}")));
    add("set belljar_medium=\"$root\"\nexport belljar_medium");
    add(&functions(words));
    add(&SEARCH.replace("DIRECTORIES", &patterns(DIRECTORIES, "grub.cfg")));
    add(&BLOCK.replace("ENTRIES", &patterns(ENTRIES, "*.conf")));
    add(LAST);
    text.replace("GAVE_UP", GAVE_UP).replace("BOOTS", BOOTS)
}

/// The names, on every file system, of files of this name in these directories.
fn patterns(directories: &[&str], file: &str) -> String {
    let all: Vec<_> = directories.iter().map(|directory| format!("(*)/{directory}/{file}")).collect();
    all.join(" ")
}

fn functions(words: &str) -> String {
    let (linux, initrd) = (modules::LINUX, modules::INITRD);
    let archive = format!("($belljar_medium){DIR}/{ARCHIVE}");
    let mut text = format!(
        r#"function belljar_give_up {{
  terminal_output serial
  echo "GAVE_UP$1"
  while true; do sleep 3600; done
}}
function belljar_linux {{
  if [ "$belljar_reads" = yes ]; then
    set belljar_linux="$1"
  else
    terminal_output serial
    echo "BOOTS$chosen"
    echo "belljar: its kernel: $1"
    if {linux} "$@" {words}; then true; else belljar_give_up "the kernel $1 cannot be loaded"; fi
    if {initrd} {archive}; then true; else belljar_give_up "Belljar's archive cannot be loaded"; fi
  fi
}}
function belljar_initrd {{
  if [ "$belljar_reads" = yes ]; then
    set belljar_initrd="$belljar_initrd $*"
  else
    if {initrd} {archive} "$@"; then true; else belljar_give_up "the initramfs $* cannot be loaded"; fi
  fi
}}
"#
    );
    let mut define = |name: &str, body: &str| text.push_str(&format!("function {name} {{ {body}; }}\n"));
    LINUX.iter().for_each(|name| define(name, "belljar_linux \"$@\""));
    INITRD.iter().for_each(|name| define(name, "belljar_initrd \"$@\""));
    for (name, what) in OTHERS {
        define(name, &format!("belljar_give_up \"the entry $chosen {what}\""));
    }
    define("cryptomount", "belljar_give_up \"what it needs to read is encrypted\"");
    // Nothing of the image is written, and there is no screen.
    for name in ["save_env", "load_video", "savedefault", "recordfail"] {
        define(name, "true");
    }
    define("loadfont", "false");
    UNUSED_KEYS.iter().for_each(|key| define(key, "true"));
    define("title", "set belljar_title=\"$*\"");
    define("options", "set belljar_options=\"$belljar_options $*\"");
    text.push_str(READ_ENTRIES);
    text
}

/// `blscfg`, as distributions call it that have it: makes entries of the files that are given, the newest first. `-pgt` compares the numbers after what two names
/// have in common at their beginning.
const READ_ENTRIES: &str = r#"function belljar_entry {
  set belljar_title=
  set belljar_linux=
  set belljar_initrd=
  set belljar_options=
  set belljar_reads=yes
  source "$1"
  set belljar_reads=
  regexp --set=1:belljar_id '([^/]*)\.conf$' "$1"
  regexp --set=1:belljar_on '^\(([^)]*)\)' "$1"
  if [ -n "$belljar_linux" ]; then
    menuentry "$belljar_title" --id "$belljar_id" "$belljar_on" "$belljar_linux" "$belljar_options" "$belljar_initrd" {
      set root="$2"
      linux "$3" $4
      if [ -n "$5" ]; then initrd $5; fi
    }
  fi
}
function belljar_entries {
  set belljar_newest=
  for file in "$@"; do
    if [ -f "$file" ]; then
      if [ -z "$belljar_newest" ]; then
        set belljar_newest="$file"
      elif [ "$file" -pgt "$belljar_newest" ]; then
        set belljar_newest="$file"
      fi
    fi
  done
  if [ -n "$belljar_newest" ]; then
    set belljar_has_entries=yes
    belljar_entry "$belljar_newest"
    for file in "$@"; do
      if [ -f "$file" -a "$file" != "$belljar_newest" ]; then belljar_entry "$file"; fi
    done
  fi
}
function blscfg {
  belljar_entries ($root)/loader/entries/*.conf
  if [ "$belljar_has_entries" != yes ]; then belljar_entries ($root)/boot/loader/entries/*.conf; fi
}
"#;

/// The guest's configuration, with its environment block, which the configuration itself would look for where GRUB's own files are.
const SEARCH: &str = r#"set belljar_found=
for file in DIRECTORIES; do
  if [ -z "$belljar_found" -a -f "$file" ]; then set belljar_found="$file"; fi
done
if [ -n "$belljar_found" ]; then
  regexp --set=1:root '^\(([^)]*)\)' "$belljar_found"
  regexp --set=1:belljar_directory '^(.*)/grub\.cfg$' "$belljar_found"
  echo "belljar: GRUB reads $belljar_found"
  if [ -s "$belljar_directory/grubenv" ]; then load_env -f "$belljar_directory/grubenv"; fi
  source "$belljar_found"
"#;

/// Without one, boot loader specification entries.
const BLOCK: &str = r#"else
  belljar_entries ENTRIES
  if [ "$belljar_has_entries" != yes ]; then
    for device in (*); do set belljar_devices="$belljar_devices $device"; done
    belljar_give_up "no grub.cfg and no boot loader entries on$belljar_devices"
  fi
fi
"#;

/// What holds whatever the guest's configuration said: nobody chooses, nobody is asked for a password, and an entry that does not boot is told.
const LAST: &str = r#"terminal_output serial
unset superusers
set timeout=0
set timeout_style=menu
set fallback=belljar-none
export fallback
menuentry "nothing" --id belljar-none { belljar_give_up "no entry of it boots"; }
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_for_people() {
        let modules = ["ext2".to_owned(), modules::renamed("linux").to_owned()];
        insta::assert_snapshot!(text(&modules, "console=ttyS0 rdinit=/belljar/agent"));
    }

    #[test]
    fn nothing_is_called_by_the_name_of_a_function_that_hides_it() {
        let text = text(&[], "");
        for name in LINUX.iter().chain(INITRD) {
            assert!(text.contains(&format!("function {name} {{ belljar_")), "{name}");
        }
        assert!(!text.contains("GAVE_UP") && !text.contains("BOOTS") && !text.contains("ENTRIES"), "{text}");
        assert!(GAVE_UP.len() < 40 && BOOTS.len() < 40, "GRUB breaks lines at 80 characters");
    }
}
