//! What a kernel file says of itself, from its first bytes.
//!
//! Sources: `Documentation/arch/x86/boot.rst` (the setup header of a bzImage), `Documentation/arch/arm64/booting.rst`
//! (the header of an Image), the ELF specification.

use crate::bounded::le;

/// As much of a file as [`parse`] may look at: 255 setup sectors and the boot sector.
pub(crate) const HEAD: u64 = 256 * 512;

/// A processor architecture, as far as a kernel or a program may be for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
    /// Another, by the number that ELF gives it.
    Elf(u16),
}

impl Arch {
    /// From the machine number of an ELF header.
    #[must_use]
    pub fn from_elf_machine(machine: u16) -> Self {
        match machine {
            3 => Arch::X86,
            62 => Arch::X86_64,
            183 => Arch::Aarch64,
            243 => Arch::Riscv64,
            other => Arch::Elf(other),
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arch::X86_64 => f.write_str("x86-64"),
            Arch::X86 => f.write_str("32-bit x86"),
            Arch::Aarch64 => f.write_str("aarch64"),
            Arch::Riscv64 => f.write_str("riscv64"),
            Arch::Elf(n) => match n {
                20 => f.write_str("ppc"),
                21 => f.write_str("ppc64"),
                22 => f.write_str("s390x"),
                40 => f.write_str("32-bit Arm"),
                258 => f.write_str("loongarch64"),
                n => write!(f, "ELF machine {n}"),
            },
        }
    }
}

/// What kind of file a kernel is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// x86, with a setup header; the kernel proper is packed inside.
    BzImage,
    /// An ELF executable.
    Vmlinux,
    /// Arm64 or RISC-V, unpacked.
    Image,
    /// A packed Image in an EFI program.
    EfiZboot,
}

/// What [`parse`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) format: Format,
    pub(crate) arch: Option<Arch>,
    pub(crate) release: Option<String>,
    /// Where the packed kernel proper is in the file: offset and length in bytes.
    pub(crate) payload: Option<(u64, u64)>,
}

/// Reads the header of a kernel from the first [`HEAD`] bytes of its file. `None` when it is no kernel.
pub(crate) fn parse(head: &[u8]) -> Option<Header> {
    bzimage(head).or_else(|| elf(head)).or_else(|| image(head)).or_else(|| zboot(head))
}

fn bzimage(head: &[u8]) -> Option<Header> {
    if le::u16(head, 0x1fe)? != 0xaa55 || head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let protocol = le::u16(head, 0x206)?;
    let setup_sectors = match head[0x1f1] {
        0 => 4, // boot.rst: for backwards compatibility
        n => u64::from(n),
    };
    let setup_end = (setup_sectors + 1) * 512;

    let release = le::u16(head, 0x20e).filter(|&at| at != 0).and_then(|at| {
        let at = usize::from(at) + 0x200;
        let text = head.get(at..usize::try_from(setup_end).ok()?.min(head.len()))?;
        release_in(text)
    });
    let payload = (protocol >= 0x208)
        .then(|| Some((setup_end + u64::from(le::u32(head, 0x248)?), u64::from(le::u32(head, 0x24c)?))))
        .flatten()
        .filter(|&(_, length)| length > 0);
    // xloadflags came with 2.12; bit 0 is a 64-bit entry point.
    let arch = (protocol >= 0x20c)
        .then(|| le::u16(head, 0x236))
        .flatten()
        .map(|flags| if flags & 1 == 0 { Arch::X86 } else { Arch::X86_64 });
    Some(Header { format: Format::BzImage, arch, release, payload })
}

/// The first word of a version text, as `6.1.0-56-amd64 (debian-kernel@…) #1 SMP …`.
fn release_in(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|&b| b == 0 || b == b' ' || b == b'\n')?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plausible = word.len() <= 128 && word.starts_with(|c: char| c.is_ascii_digit());
    // It becomes part of a path; a slash in it would leave the modules' directory.
    let safe = word.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    (plausible && safe).then(|| word.to_owned())
}

/// An ELF executable is taken as a kernel when it is not made for an operating system's loader. Its release is
/// [`release_in_banner`]'s business, since it is anywhere in the file.
fn elf(head: &[u8]) -> Option<Header> {
    if head.get(..4)? != b"\x7fELF" || head.get(5)? != &1 {
        return None;
    }
    let executable = matches!(le::u16(head, 16)?, 2 | 3);
    let machine = le::u16(head, 18)?;
    let entry_and_phdrs_are_there = head.len() >= 64;
    (executable && entry_and_phdrs_are_there && !has_interpreter(head)).then(|| Header {
        format: Format::Vmlinux,
        arch: Some(Arch::from_elf_machine(machine)),
        release: None,
        payload: None,
    })
}

/// Whether a 64-bit ELF's program headers ask for a dynamic loader (`PT_INTERP`), as programs do and kernels do not.
fn has_interpreter(head: &[u8]) -> bool {
    let (Some(at), Some(size), Some(count)) = (le::u64(head, 32), le::u16(head, 54), le::u16(head, 56)) else {
        return false;
    };
    let header = |i: u16| {
        let at = usize::try_from(at).ok()?.checked_add(usize::from(size) * usize::from(i))?;
        le::u32(head, at)
    };
    head.get(4) == Some(&2) && (0..count).any(|i| header(i) == Some(3))
}

fn image(head: &[u8]) -> Option<Header> {
    let arch = match head.get(56..60)? {
        b"ARM\x64" => Arch::Aarch64,
        b"RSC\x05" => Arch::Riscv64,
        _ => return None,
    };
    Some(Header { format: Format::Image, arch: Some(arch), release: None, payload: None })
}

fn zboot(head: &[u8]) -> Option<Header> {
    (head.get(..2)? == b"MZ" && head.get(4..8)? == b"zimg").then_some(Header {
        format: Format::EfiZboot,
        arch: None,
        release: None,
        payload: None,
    })
}

/// The release in the banner `Linux version 6.1.0-56-amd64 (…` of an unpacked kernel.
pub(crate) fn release_in_banner(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    // The format string of the same message comes as "Linux version %s"; the next one is the real one.
    memchr::memmem::find_iter(bytes, BANNER).find_map(|at| release_in(&bytes[at + BANNER.len()..]))
}

/// A bzImage whose packed kernel is `payload`, as small as it can be.
#[cfg(test)]
pub(crate) fn fake_bzimage(release: &str, payload: &[u8]) -> Vec<u8> {
    let setup_end = 5 * 512;
    let mut bytes = vec![0; setup_end];
    bytes[0x1f1] = 4;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    bytes[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    bytes[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    let text = format!("{release} (someone@somewhere) #1 SMP\0");
    bytes[0x400..0x400 + text.len()].copy_from_slice(text.as_bytes());
    bytes.extend_from_slice(&[0xcc; 16]); // the unpacker's code
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&[0xdd; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bzimage_says_its_release_and_where_its_payload_is() {
        let file = fake_bzimage("6.1.0-56-amd64", b"packed");
        let header = parse(&file).unwrap();
        assert_eq!(header.format, Format::BzImage);
        assert_eq!(header.arch, Some(Arch::X86_64));
        assert_eq!(header.release.as_deref(), Some("6.1.0-56-amd64"));
        let (at, length) = header.payload.unwrap();
        assert_eq!(&file[usize::try_from(at).unwrap()..][..usize::try_from(length).unwrap()], b"packed");
    }

    #[test]
    fn a_release_that_would_leave_the_modules_directory_is_none() {
        for bad in ["../../etc", "6.1/../..", "", "amd64"] {
            assert_eq!(parse(&fake_bzimage(bad, b"x")).unwrap().release, None, "{bad}");
        }
    }

    #[test]
    fn others_are_told_apart() {
        let mut arm = vec![0; 64];
        arm[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(parse(&arm).unwrap().arch, Some(Arch::Aarch64));
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(&std::fs::read("/proc/self/exe").unwrap()), None, "a program is no kernel");
    }

    #[test]
    fn the_banner_is_found_behind_its_own_format() {
        let text = b"..Linux version %s (..\0..Linux version 6.1.0-rc2+ (me@here) #1\0";
        assert_eq!(release_in_banner(text).as_deref(), Some("6.1.0-rc2+"));
        assert_eq!(release_in_banner(b"Linux version"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            parse(&bytes);
            release_in_banner(&bytes);
        }

        #[test]
        fn no_change_of_a_good_header_panics(changes in prop::collection::vec((0usize..2600, any::<u8>()), 0..40), cut in 0usize..2700) {
            let mut file = fake_bzimage("6.1", b"x");
            for (at, byte) in changes {
                if let Some(b) = file.get_mut(at) {
                    *b = byte;
                }
            }
            file.truncate(cut);
            parse(&file);
        }
    }
}
