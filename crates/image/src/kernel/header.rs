//! What a kernel file says of itself, from its first bytes.
//!
//! Sources: `Documentation/arch/x86/boot.rst` (the setup header of a bzImage), `Documentation/arch/arm64/booting.rst`
//! (the header of an Image), `Documentation/arch/arm/booting.rst` and `arch/arm/boot/compressed/head.S` (that of a zImage), `arch/s390/boot/head.S`
//! and `arch/s390/include/asm/setup.h` (what is at the beginning of s390x's), `drivers/firmware/efi/libstub/zboot-header.S`, the ELF specification.

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

    /// The machine number of ELF headers for it.
    #[must_use]
    pub fn elf_machine(self) -> u16 {
        match self {
            Arch::X86 => 3,
            Arch::X86_64 => 62,
            Arch::Aarch64 => 183,
            Arch::Riscv64 => 243,
            Arch::Elf(number) => number,
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
    /// 32-bit Arm; it unpacks itself.
    ZImage,
    /// IBM Z; it unpacks itself.
    S390,
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
    bzimage(head)
        .or_else(|| elf(head))
        .or_else(|| image(head))
        .or_else(|| zboot(head))
        .or_else(|| zimage(head))
        .or_else(|| s390(head))
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
    if head.get(..2)? != b"MZ" || head.get(4..8)? != b"zimg" {
        return None;
    }
    // As of every EFI program: a PE header, with the processor's number (PE format, "Machine Types").
    let pe = usize::try_from(le::u32(head, 0x3c)?).ok()?;
    let machine =
        head.get(pe..pe.checked_add(4)?).filter(|magic| magic == b"PE\0\0").and_then(|_| le::u16(head, pe + 4));
    let arch = match machine {
        Some(0xaa64) => Some(Arch::Aarch64),
        Some(0x5064) => Some(Arch::Riscv64),
        Some(0x6264) => Some(Arch::Elf(258)),
        _ => None,
    };
    Some(Header { format: Format::EfiZboot, arch, release: None, payload: None })
}

fn zimage(head: &[u8]) -> Option<Header> {
    const MAGIC: u32 = 0x016f_2818;
    let arch = Some(Arch::Elf(40));
    (le::u32(head, 0x24)? == MAGIC).then_some(Header { format: Format::ZImage, arch, release: None, payload: None })
}

fn s390(head: &[u8]) -> Option<Header> {
    if head.get(0x1_0008..0x1_000e)? != b"S390EP" {
        return None;
    }
    // The address of the text, as it is in memory and in the file; older kernels have zero there.
    let at = head.get(0x1_0428..0x1_0430).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let text = at.filter(|&at| at > 0).and_then(|at| head.get(usize::try_from(at).ok()?..));
    let release = text.and_then(|text| release_in(&text[..text.len().min(256)]));
    Some(Header { format: Format::S390, arch: Some(Arch::Elf(22)), release, payload: None })
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
        let mut zboot = vec![0; 0x100];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        zboot[0x3c] = 0x80;
        zboot[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x50");
        assert_eq!(parse(&zboot).unwrap().arch, Some(Arch::Riscv64));
        let mut zimage = vec![0; 0x30];
        zimage[0x24..0x28].copy_from_slice(&[0x18, 0x28, 0x6f, 0x01]);
        assert_eq!(parse(&zimage).unwrap().arch, Some(Arch::Elf(40)));
        let mut z = vec![0; 0x1_2000];
        z[0x1_0008..0x1_000e].copy_from_slice(b"S390EP");
        assert_eq!(parse(&z).unwrap().release, None);
        z[0x1_042d..0x1_0430].copy_from_slice(&[1, 0x10, 0]);
        z[0x1_1000..0x1_1012].copy_from_slice(b"6.12.118-s390x (x)");
        let header = parse(&z).unwrap();
        assert_eq!((header.arch, header.release.as_deref()), (Some(Arch::Elf(22)), Some("6.12.118-s390x")));
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
        fn no_address_in_a_header_panics(at: u64, pe: u32) {
            let mut z = vec![0; 0x1_1000];
            z[0x1_0008..0x1_000e].copy_from_slice(b"S390EP");
            z[0x1_0428..0x1_0430].copy_from_slice(&at.to_be_bytes());
            parse(&z);
            let mut zboot = b"MZ\0\0zimg".to_vec();
            zboot.resize(0x60, 0);
            zboot[0x3c..0x40].copy_from_slice(&pe.to_le_bytes());
            parse(&zboot);
        }

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
