//! What our GRUB is told: to find the guest's own configuration, and to boot its default entry with our words and our archive.
//!
//! GRUB's language is in its manual, "Writing full configuration files directly". A command goes before a function of the same name, so the commands that
//! load a kernel have other names in the modules on the medium (`modules.rs`), and the functions here have theirs.

use super::{
    ARCHIVE, DIR,
    modules::{self, TERMINAL_INPUT, TERMINAL_OUTPUT, TIMEOUT},
};

/// What begins a line on the serial console by which our GRUB says that it cannot go on.
pub const GAVE_UP: &str = "belljar: GRUB gives up: ";
/// What begins a line by which it says which entry it boots.
pub const BOOTS: &str = "belljar: GRUB boots: ";
/// What begins a line by which it says which configuration it reads.
pub const READS: &str = "belljar: GRUB reads ";

/// The image's disk, as GRUB for a BIOS has it: the one after the medium, for both have their places in the boot order.
const IMAGE: &str = "hd1";

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

/// The whole configuration, for a GRUB that has these modules; `words` are those that the kernel gets. `beside`: there are disks beside the image's on which systems may
/// be, so that configuration, kernel and initramfs must all be on the disk that is the image's for sure: GRUB cannot tell of which disks a RAID or LVM volume is made.
#[must_use]
pub fn text(modules: &[String], words: &str, beside: bool) -> String {
    let mut text = String::new();
    let mut add = |part: &str| {
        text.push_str(part);
        text.push('\n');
    };
    add("# Made by Belljar. It boots the default entry of the guest's own configuration.");
    add("insmod serial\ninsmod terminal");
    add("serial --unit=0 --speed=115200");
    // Also for a menu that the guest's configuration has made of another one.
    add(&format!("set {TIMEOUT}=0\nexport {TIMEOUT}"));
    add(&format!("{TERMINAL_INPUT} serial\n{TERMINAL_OUTPUT} serial"));
    modules.iter().for_each(|module| add(&format!("insmod {module}")));
    add("set belljar_medium=\"$root\"\nexport belljar_medium");
    add(&format!("set belljar_beside={}\nexport belljar_beside", if beside { "yes" } else { "no" }));
    add(
        "if regexp '^hd0(,.*|)$' \"$belljar_medium\"; then set belljar_shifts=yes; else set belljar_shifts=no; fi\nexport belljar_shifts",
    );
    add(&functions(words));
    let devices: &[String] = if beside { &[format!("({IMAGE})"), format!("({IMAGE},*)")] } else { &["(*)".to_owned()] };
    add(&SEARCH.replace("DIRECTORIES", &patterns(devices, DIRECTORIES, "grub.cfg")));
    add(&BLOCK.replace("ENTRIES", &patterns(devices, ENTRIES, "*.conf")).replace("DEVICES", &devices.join(" ")));
    add(LAST);
    let text = text.replace("GAVE_UP", GAVE_UP).replace("BOOTS", BOOTS).replace("READS", READS);
    text.replace("IMAGE", IMAGE)
}

/// The names, on every file system of these devices, of files of this name in these directories.
fn patterns(devices: &[String], directories: &[&str], file: &str) -> String {
    let mut all = Vec::new();
    for directory in directories {
        all.extend(devices.iter().map(|device| format!("{device}/{directory}/{file}")));
    }
    all.join(" ")
}

fn functions(words: &str) -> String {
    let (linux, initrd) = (modules::LINUX, modules::INITRD);
    let archive = format!("($belljar_medium){DIR}/{ARCHIVE}");
    let mut text = format!(
        r#"function belljar_give_up {{
  echo "GAVE_UP$1"
  while true; do sleep 3600; done
}}
# Whether this is on the first disk, where that is the medium.
function belljar_is_first {{
  if [ "$belljar_shifts" = yes ]; then regexp --set=1:belljar_part '^hd0(,.*|)$' "$1"; else false; fi
}}
# Where a file of an entry is: what an entry calls the first disk is the medium's number here, and means the image's.
function belljar_place {{
  set belljar_on=
  set belljar_file="$1"
  set belljar_moved=
  if regexp --set=1:belljar_on --set=2:belljar_path '^\(([^)]*)\)(.*)$' "$1"; then
    if belljar_is_first "$belljar_on"; then
      set belljar_on="IMAGE$belljar_part"
      set belljar_file="($belljar_on)$belljar_path"
      set belljar_moved=yes
    fi
  else
    if belljar_is_first "$root"; then set root="IMAGE$belljar_part"; fi
    set belljar_on="$root"
  fi
  if [ "$belljar_beside" = yes ]; then
    if regexp '^IMAGE(,.*|)$' "$belljar_on"; then true; else
      belljar_give_up "$1 is on $belljar_on, which may be another disk than the image's"
    fi
  fi
}}
function belljar_linux {{
  if [ "$belljar_reads" = yes ]; then
    set belljar_linux="$1"
  else
    if [ -n "$chosen" ]; then echo "BOOTS$chosen"; else echo "BOOTSwhat its configuration says outside of entries"; fi
    echo "belljar: its kernel: $1"
    if regexp '^[^"]*("[^"]*"[^"]*)*$' "$*"; then true; else
      belljar_give_up "the kernel's words have a quote without an end, behind which it would not see Belljar's"
    fi
    PLACE "$1"
    set belljar_kernel="$belljar_file"
    shift
    set belljar_words=
    set belljar_dashes=
    for belljar_word in "$@"; do
      if [ "$belljar_word" = "--" -a -z "$belljar_dashes" ]; then
        set belljar_dashes=yes
        set belljar_words="$belljar_words {words}"
      fi
      set belljar_words="$belljar_words $belljar_word"
    done
    # What is behind two dashes is for the first process.
    if [ -n "$belljar_dashes" ]; then
      if {linux} "$belljar_kernel" $belljar_words; then true; else belljar_give_up "the kernel $belljar_kernel cannot be loaded"; fi
    else
      if {linux} "$belljar_kernel" "$@" {words}; then true; else belljar_give_up "the kernel $belljar_kernel cannot be loaded"; fi
    fi
    if {initrd} {archive}; then true; else belljar_give_up "Belljar's archive cannot be loaded"; fi
  fi
}}
function belljar_initrd {{
  if [ "$belljar_reads" = yes ]; then
    set belljar_initrd="$belljar_initrd $*"
  else
    set belljar_files=
    set belljar_any=
    for belljar_one in "$@"; do
      PLACE "$belljar_one"
      set belljar_files="$belljar_files $belljar_file"
      set belljar_any="$belljar_any$belljar_moved"
    done
    if [ -n "$belljar_any" ]; then
      if {initrd} {archive} $belljar_files; then true; else belljar_give_up "the initramfs $belljar_files cannot be loaded"; fi
    else
      if {initrd} {archive} "$@"; then true; else belljar_give_up "the initramfs $* cannot be loaded"; fi
    fi
  fi
}}
"#
    )
    .replace("PLACE", "belljar_place");
    let mut define = |name: &str, body: &str| text.push_str(&format!("function {name} {{ {body}; }}\n"));
    LINUX.iter().for_each(|name| define(name, "belljar_linux \"$@\""));
    INITRD.iter().for_each(|name| define(name, "belljar_initrd \"$@\""));
    for (name, what) in OTHERS {
        define(name, &format!("belljar_give_up \"the entry $chosen {what}\""));
    }
    define("cryptomount", "belljar_give_up \"what it needs to read is encrypted\"");
    // Nothing of the image is written, and there is no screen.
    for name in ["save_env", "load_video", "savedefault", "recordfail", "terminal_input", "terminal_output"] {
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
  echo "READS$belljar_found"
  set prefix="$belljar_directory"
  set config_directory="$belljar_directory"
  export prefix
  if [ -s "$belljar_directory/grubenv" ]; then load_env -f "$belljar_directory/grubenv"; fi
  source "$belljar_found"
"#;

/// Without one, boot loader specification entries.
const BLOCK: &str = r#"else
  belljar_entries ENTRIES
  if [ "$belljar_has_entries" != yes ]; then
    for device in DEVICES; do set belljar_devices="$belljar_devices $device"; done
    if [ "$belljar_beside" = yes ]; then set belljar_why=", nothing else than the image's own disk being looked at beside your further disks"; fi
    belljar_give_up "no grub.cfg and no boot loader entries on$belljar_devices$belljar_why"
  fi
fi
"#;

/// What holds whatever the guest's configuration said: nobody chooses, and an entry that does not boot is told. Nobody is asked for a password, since GRUB does not
/// know who may ask (`modules.rs`).
const LAST: &str = r#"set timeout_style=menu
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
        insta::assert_snapshot!(text(&modules, "console=ttyS0 rdinit=/belljar/agent", false));
    }

    #[test]
    fn beside_other_disks_only_the_image_counts() {
        let text = text(&[], "", true);
        assert!(text.contains("set belljar_beside=yes\n") && !text.contains("(*)"), "{text}");
        assert!(
            text.contains(" (hd1)/boot/grub/grub.cfg (hd1,*)/boot/grub/grub.cfg ") && !text.contains("IMAGE"),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_called_by_the_name_of_a_function_that_hides_it() {
        let text = text(&[], "", false);
        for name in LINUX.iter().chain(INITRD) {
            assert!(text.contains(&format!("function {name} {{ belljar_")), "{name}");
        }
        assert!(!text.contains("GAVE_UP") && !text.contains("BOOTS") && !text.contains("ENTRIES"), "{text}");
        assert!(GAVE_UP.len() < 40 && BOOTS.len() < 40 && READS.len() < 40, "GRUB breaks lines at 80 characters");
    }
}
