//! The little of ELF (64-bit, little-endian) that a kernel's boot needs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::bounded::le;

/// `XEN_ELFNOTE_PHYS32_ENTRY` of `xen/include/public/elfnote.h`: where a PVH guest starts.
const PHYS32_ENTRY: u32 = 18;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// A kernel has about six program headers.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// A kernel's notes have half a kilobyte.
const MAX_NOTES: u64 = 1 << 20;

struct Segment {
    kind: u32,
    offset: u64,
    size: u64,
}

fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// The segments, and where the table of them ends in the file; none if this is no 64-bit executable for x86.
fn segments(file: &File) -> io::Result<Option<(Vec<Segment>, u64)>> {
    let Some(header) = read_at(file, 0, HEADER)? else { return Ok(None) };
    let x86_64 = header.starts_with(b"\x7fELF\x02\x01") && le::u16(&header, 18) == Some(62);
    let (Some(at), Some(size), Some(count)) = (le::u64(&header, 32), le::u16(&header, 54), le::u16(&header, 56)) else {
        return Ok(None);
    };
    if !x86_64 || usize::from(size) != PROGRAM_HEADER || count > MAX_PROGRAM_HEADERS {
        return Ok(None);
    }
    let length = PROGRAM_HEADER * usize::from(count);
    let Some(table_end) = at.checked_add(length as u64).filter(|&end| i64::try_from(end).is_ok()) else {
        return Ok(None);
    };
    let Some(table) = read_at(file, at, length)? else { return Ok(None) };
    let segment = |entry: &[u8]| {
        Some(Segment { kind: le::u32(entry, 0)?, offset: le::u64(entry, 8)?, size: le::u64(entry, 32)? })
    };
    Ok(table.chunks_exact(PROGRAM_HEADER).map(segment).collect::<Option<Vec<_>>>().map(|s| (s, table_end)))
}

/// Whether an ELF kernel has the note that tells QEMU where to start it (`XEN_ELFNOTE_PHYS32_ENTRY`).
///
/// # Errors
/// When the file cannot be read; a file that is something else has no such note.
pub fn pvh_entry(kernel: &File) -> io::Result<bool> {
    let Some((segments, _)) = segments(kernel)? else { return Ok(false) };
    for segment in segments.iter().filter(|s| s.kind == PT_NOTE && s.size <= MAX_NOTES) {
        let Ok(length) = usize::try_from(segment.size) else { continue };
        if i64::try_from(segment.offset).is_err() {
            continue;
        }
        if read_at(kernel, segment.offset, length)?.is_some_and(|notes| has_pvh_note(&notes)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes: sizes of name and descriptor, type, name, descriptor, both padded to four bytes.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    let next = |notes: &[u8]| {
        let name_size = usize::try_from(le::u32(notes, 0)?).ok()?;
        let desc_size = usize::try_from(le::u32(notes, 4)?).ok()?;
        let kind = le::u32(notes, 8)?;
        let desc = 12usize.checked_add(name_size.checked_next_multiple_of(4)?)?;
        let end = desc.checked_add(desc_size.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12 + name_size)?;
        Some((kind == PHYS32_ENTRY && name == b"Xen\0" && desc_size >= 4, end))
    };
    while let Some((found, end)) = next(notes) {
        if found {
            return true;
        }
        notes = notes.get(end..).unwrap_or_default();
    }
    false
}

/// Cuts off what is behind the segments (symbols, relocations) and clears the header's section fields that pointed
/// there. False, with the file in any state, when it is no PVH kernel.
pub(super) fn keep_what_boots(file: &File) -> io::Result<bool> {
    if !pvh_entry(file)? {
        return Ok(false);
    }
    let Some((segments, table_end)) = segments(file)? else { return Ok(false) };
    let ends = segments
        .iter()
        .filter(|s| matches!(s.kind, PT_LOAD | PT_NOTE))
        .map(|s| s.offset.checked_add(s.size))
        .collect::<Option<Vec<_>>>();
    let Some(end) = ends.and_then(|ends| ends.into_iter().max()) else { return Ok(false) };
    if end > file.metadata()?.len() {
        return Ok(false);
    }
    file.set_len(end.max(table_end).max(HEADER as u64))?;
    file.write_all_at(&[0; 8], 40)?; // e_shoff
    file.write_all_at(&[0; 6], 58)?; // e_shentsize, e_shnum, e_shstrndx
    Ok(true)
}

/// An ELF kernel with one segment of code, notes, and sections behind.
#[cfg(test)]
pub(super) fn fake_vmlinux(with_note: bool) -> Vec<u8> {
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[32] = 64; // e_phoff
    elf[40..48].copy_from_slice(&30_000_u64.to_le_bytes()); // e_shoff
    elf[54] = 56;
    elf[56] = 2;
    elf[58] = 64;
    elf[60] = 3;
    let mut segment = |kind: u32, offset: u64, size: u64| {
        let mut entry = vec![0; 56];
        entry[..4].copy_from_slice(&kind.to_le_bytes());
        entry[8..16].copy_from_slice(&offset.to_le_bytes());
        entry[32..40].copy_from_slice(&size.to_le_bytes());
        elf.extend_from_slice(&entry);
    };
    segment(PT_LOAD, 4096, 16_384);
    segment(PT_NOTE, 8192, 40);
    elf.resize(4096, 0);
    elf.resize(8192, 0x90);
    let mut note = |kind: u32, name: &[u8]| {
        elf.extend_from_slice(&4_u32.to_le_bytes());
        elf.extend_from_slice(&4_u32.to_le_bytes());
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(name);
        elf.extend_from_slice(&[1, 2, 3, 4]);
    };
    note(6, b"Xen\0");
    note(if with_note { PHYS32_ENTRY } else { 17 }, b"Xen\0");
    elf.resize(16_384, 0);
    elf.resize(20_480, 0xc3);
    elf.resize(40_000, 0x55);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_note_is_found_or_not() {
        assert!(pvh_entry(&file(&fake_vmlinux(true))).unwrap());
        assert!(!pvh_entry(&file(&fake_vmlinux(false))).unwrap());
        assert!(!pvh_entry(&file(b"\x7fELF")).unwrap());
        assert!(!pvh_entry(&File::open("/proc/self/exe").unwrap()).unwrap());
    }

    #[test]
    fn a_cut_kernel_is_not_kept() {
        let whole = fake_vmlinux(true);
        assert!(keep_what_boots(&file(&whole)).unwrap());
        assert!(!keep_what_boots(&file(&whole[..20_000])).unwrap());
    }

    proptest! {
        #[test]
        fn no_notes_panic(notes: Vec<u8>) {
            has_pvh_note(&notes);
        }

        #[test]
        fn no_change_of_a_good_header_panics(changes in prop::collection::vec((0usize..176, any::<u8>()), 1..12)) {
            let mut elf = fake_vmlinux(true);
            for (at, byte) in changes {
                elf[at] = byte;
            }
            let file = file(&elf);
            pvh_entry(&file).unwrap();
            keep_what_boots(&file).unwrap();
        }
    }
}
