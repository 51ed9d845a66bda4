//! Configurations as distributions write them, on a real file system with a kernel in it.

use std::io::Read;

use super::*;
use crate::{Disk, Limits, inspect};

const KERNEL: &str = "/boot/vmlinuz-6.1.0-9-amd64";

/// Runs a configuration as if it were the disk's.
fn run(text: &str) -> Boot {
    let packed = include_bytes!("../../../tests/data/ext2.img.xz");
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(&packed[..], false).read_to_end(&mut bytes).unwrap();
    let found = inspect(&Disk::of_bytes(bytes.into(), Vec::new(), Limits::default())).unwrap();
    let mut fs = crate::description::file_systems(&found.volumes);
    let place = Place { volume: 0, view: View::Top, path: "/boot/grub/grub.cfg".into() };
    read(&found.volumes, &mut fs, &place, text)
}

fn default(text: &str) -> (String, String) {
    let boot = run(text);
    let entry = boot.default.and_then(|index| boot.entries.get(index)).unwrap_or_else(|| panic!("{boot:?}"));
    (entry.title.clone(), entry.command_line.clone())
}

fn entry(title: &str, words: &str) -> String {
    format!("menuentry '{title}' --class gnu --id 'id-{title}' $dummy {{\n\tlinux\t{KERNEL} {words}\n}}\n")
}

#[test]
fn debians_is_run() {
    // `update-grub` of Debian 12, shortened where it draws.
    let head = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

export menuentry_id_option

if [ "${prev_saved_entry}" ]; then
  set saved_entry="${prev_saved_entry}"
  save_env saved_entry
fi

function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}

if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
insmod part_gpt
    font="/usr/share/grub/unicode.pf2"
fi

if loadfont $font ; then
  set gfxmode=auto
  terminal_output gfxterm
fi
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=menu
    set timeout=5
  # Fallback normal timeout code.
  else
    set timeout=5
  fi
fi
function gfxmode {
	set gfxpayload="${1}"
}
set linux_gfx_mode=
export linux_gfx_mode
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class gnu --class os $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	set root='hd0,gpt1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1  11111111-2222-4333-8444-555555555555
	else
	  search --no-floppy --fs-uuid --set=root 11111111-2222-4333-8444-555555555555
	fi
	echo	'Loading Linux 6.1.0-9-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=1 ro  quiet
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-9-amd64
}
if [ "$grub_platform" = "efi" ]; then
	fwsetup --is-supported
	if [ "$?" = 0 ]; then
		menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
			fwsetup
		}
	fi
fi
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;
    let boot = run(head);
    assert_eq!(boot.notes, [""; 0]);
    let [entry] = boot.entries.as_slice() else { panic!("{boot:?}") };
    assert_eq!((entry.title.as_str(), entry.command_line.as_str()), ("Debian GNU/Linux", "root=UUID=1 ro quiet"));
    assert_eq!((entry.kernel.path.as_str(), entry.initrds.len()), (KERNEL, 1));
}

#[test]
fn the_default_is_a_number_a_title_or_an_id() {
    let menu = format!(
        "{}submenu 'More > less' --id more {{\n{}{}}}\n{}",
        entry("a", "1"),
        entry("b", "2"),
        entry("c", "3"),
        entry("d", "4")
    );
    for (chosen, title) in [
        ("0", "a"),
        ("2", "d"),
        ("d", "d"),
        ("id-d", "d"),
        ("1>1", "c"),
        ("more>id-c", "c"),
        ("more>c", "c"),
        // Into the submenu, and there its first.
        ("1", "b"),
        // What is not there is the first.
        ("7", "a"),
        ("gone", "a"),
        ("", "a"),
    ] {
        assert_eq!(default(&format!("set default=\"{chosen}\"\n{menu}")).0, title, "{chosen}");
    }
}

#[test]
fn conditions_loops_and_functions_decide() {
    let cases = [
        ("if [ -f /etc/fstab -a ! -e /gone ]; then x=yes; fi", "yes"),
        ("if test -d /etc/fstab -o -s /etc/fstab; then x=yes; fi", "yes"),
        ("if [ a = b ]; then x=1; elif [ 3 -gt 2 ]; then x=2; else x=3; fi", "2"),
        ("if ! false; then x=not; fi", "not"),
        ("for i in a b c; do x=\"$x$i\"; done", "abc"),
        ("function f { x=\"$2-$#\"; return 1; x=no; }\nif f a b; then x=wrong; fi", "b-2"),
        ("while [ \"$x\" != aaa ]; do x=a$x; done", "aaa"),
        ("until [ \"$x\" = bb ]; do x=${x}b; done", "bb"),
        ("search --label --set=dev fake\nif [ -e ($dev)/etc/fstab ]; then x=found; fi", "found"),
        ("search --file --set=dev /etc/gone || x=none\nif search -f /etc/fstab; then x=file; fi", "file"),
        ("load_env --file /boot/grub/grubenv saved_entry\nset x=$saved_entry", "advanced>second"),
        ("x=a\\ b\\\nc", "a bc"),
    ];
    for (script, value) in cases {
        let (_, words) = default(&format!("{script}\nmenuentry t {{\nlinux {KERNEL} \"x=$x\"\n}}\n"));
        let quoted = if value.contains(' ') { format!("\"x={value}\"") } else { format!("x={value}") };
        assert_eq!(words, quoted, "{script}");
    }
}

#[test]
fn what_leads_nowhere_is_told() {
    let gone = run("menuentry 'x' {\nlinux /boot/gone\n}\n");
    assert_eq!((gone.default, gone.entries.len()), (None, 0));
    assert_eq!(
        gone.notes,
        ["the default entry of /boot/grub/grub.cfg of the whole disk: it names /boot/gone, which is not there"]
    );
    let chain = run(&format!("menuentry 'Windows' {{\nchainloader +1\n}}\n{}", entry("linux", "q")));
    assert_eq!(chain.default, Some(0));
    assert!(
        chain.notes[0].contains("starts no kernel but does chainloader") && chain.notes[1].contains("was taken"),
        "{chain:?}"
    );
    for endless in [
        "while true; do true; done",
        "function f {\nf\n}\nf",
        "source /boot/grub/grub.cfg\nwhile true; do source /boot/grub/grub.cfg; done",
    ] {
        let boot = run(endless);
        assert!(boot.notes.iter().any(|note| note.contains("the rest was left out")), "{endless}: {boot:?}");
    }
}
