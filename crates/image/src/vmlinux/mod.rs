//! The kernel proper (vmlinux) out of a bzImage, so that QEMU can start it by PVH.
//!
//! A bzImage unpacks itself inside the guest, which without hardware virtualisation takes about three seconds more
//! than unpacking it here. QEMU starts an ELF kernel that has a PVH entry (CONFIG_PVH; every distribution's has)
//! straight away. What cannot be taken out boots as the bzImage it is.

mod elf;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub use elf::pvh_entry;

use crate::cache::{self, Cache, CacheError, Cached};
use crate::decompress::Packing;
use crate::kernel::{Arch, Format, Kernel};

/// No unpacked kernel has more, debug sections included (the build strips them before packing).
const MAX_VMLINUX: u64 = 1 << 30;

/// Part of the name in the cache: change it with what is written there.
const LAYOUT: u32 = 1;

/// Taking a kernel out of its bzImage failed in a way that is worth an error.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// The kernel's file could not be read again.
    #[error("cannot read the kernel {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The unpacked kernel could not be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why QEMU cannot start a kernel by PVH.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPvh {
    /// Its kind of file has none inside.
    #[error("the kernel's header does not say where its packed part is")]
    NoPayload,
    /// It is for another machine.
    #[error("only kernels for PCs are")]
    NoPc,
    /// There is no decoder.
    #[error("the kernel is packed with {0}, which has no decoder here")]
    Packing(&'static str),
    /// The packed part is broken.
    #[error("the kernel's packed part cannot be unpacked: {0}")]
    Broken(String),
    /// What starts it takes no other form.
    #[error("UEFI firmware starts EFI programs")]
    ByUefi,
    /// An ELF without the note, or no ELF.
    #[error("the kernel has no PVH entry (CONFIG_PVH)")]
    NoEntry,
}

/// What is to be given to QEMU as kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootable {
    /// An ELF kernel with a PVH entry.
    Pvh {
        /// The file.
        path: PathBuf,
        /// Whether it was in the cache; none if it is the user's own file.
        hit: Option<bool>,
        /// What was wrong with one that was in the cache and had to be unpacked anew.
        flaw: Option<String>,
    },
    /// The file as it is, and why not otherwise.
    AsIs {
        /// The file.
        path: PathBuf,
        /// Why not by PVH.
        why: NoPvh,
    },
}

/// A failure while a bzImage is unpacked: of the kernel (boot it as it is) or of the host.
enum Failed {
    NoPvh(NoPvh),
    Host(VmlinuxError),
}

impl From<CacheError> for Failed {
    fn from(error: CacheError) -> Self {
        Failed::Host(error.into())
    }
}

/// The quickest form of `kernel` for QEMU, taken from the cache or put there.
///
/// # Errors
/// When the host fails: the kernel can no longer be read, or there is no room. A kernel that has no quicker form is no
/// error.
pub fn bootable(kernel: &Kernel, cache: &Cache) -> Result<Bootable, VmlinuxError> {
    let read = |source| VmlinuxError::Read { path: kernel.path.clone(), source };
    let as_is = |why| Ok(Bootable::AsIs { path: kernel.path.clone(), why });
    if !matches!(kernel.arch, None | Some(Arch::X86 | Arch::X86_64)) {
        return as_is(NoPvh::NoPc);
    }
    if kernel.format == Format::Vmlinux {
        let file = File::open(&kernel.path).map_err(read)?;
        return match pvh_entry(&file).map_err(read)? {
            true => Ok(Bootable::Pvh { path: kernel.path.clone(), hit: None, flaw: None }),
            false => as_is(NoPvh::NoEntry),
        };
    }
    let Some(payload) = kernel.payload else { return as_is(NoPvh::NoPayload) };
    let mut key = blake3::Hasher::new();
    key.update(&LAYOUT.to_le_bytes());
    cache::fingerprint(&kernel.path, &mut key).map_err(read)?;
    let name = format!("vmlinux-{}", cache::short(&key));
    match cache.get_or_write(&name, |out, at| extract(&kernel.path, payload, out, at)) {
        Ok(Cached { path, hit, flaw }) => Ok(Bootable::Pvh { path, hit: Some(hit), flaw }),
        Err(Failed::NoPvh(why)) => as_is(why),
        Err(Failed::Host(error)) => Err(error),
    }
}

/// Unpacks a bzImage's payload (offset and length in the file) to `out`, which is empty and will be `at`, and keeps of it
/// what a boot needs.
fn extract(kernel: &Path, (offset, length): (u64, u64), out: &mut File, at: &Path) -> Result<(), Failed> {
    let read = |source| Failed::Host(VmlinuxError::Read { path: kernel.to_owned(), source });
    let write =
        |source| Failed::from(CacheError { what: "the unpacked kernel".to_owned(), path: at.to_owned(), source });
    let broken = |e: io::Error| Failed::NoPvh(NoPvh::Broken(e.to_string()));

    let mut file = File::open(kernel).map_err(read)?;
    file.seek(SeekFrom::Start(offset)).map_err(read)?;
    let mut magic = Vec::new();
    (&file).take(6).read_to_end(&mut magic).map_err(read)?;
    file.seek(SeekFrom::Start(offset)).map_err(read)?;
    let packing = Packing::of(&magic);
    let source = BufReader::with_capacity(256 << 10, file.take(length));
    let mut reader = packing.reader(source).map_err(broken)?.ok_or(Failed::NoPvh(NoPvh::Packing(packing.name())))?;

    let mut buffer = vec![0; 256 << 10];
    let mut written = 0;
    loop {
        let n = fill(&mut reader, &mut buffer).map_err(broken)?;
        if n == 0 {
            break;
        }
        if written == 0 && !buffer.starts_with(b"\x7fELF") {
            return Err(Failed::NoPvh(NoPvh::NoEntry));
        }
        written += n as u64;
        if written > MAX_VMLINUX {
            return Err(Failed::NoPvh(NoPvh::Broken(format!("it has more than {MAX_VMLINUX} bytes"))));
        }
        write_sparse(out, &buffer[..n]).map_err(write)?;
    }
    out.set_len(written).map_err(write)?;
    match elf::keep_what_boots(out).map_err(write)? {
        true => Ok(()),
        false => Err(Failed::NoPvh(NoPvh::NoEntry)),
    }
}

/// Reads until the buffer is full or the source at its end.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Writes at the file's position, leaving holes for pages of zeros: nearly half of a kernel is room to grow.
fn write_sparse(out: &mut File, bytes: &[u8]) -> io::Result<()> {
    const PAGE: usize = 4096;
    let mut pages = bytes.chunks(PAGE).peekable();
    let mut rest = bytes;
    while pages.peek().is_some() {
        let zeros = std::iter::from_fn(|| pages.next_if(|p| p.iter().all(|&b| b == 0))).map(<[u8]>::len).sum();
        let data = std::iter::from_fn(|| pages.next_if(|p| p.iter().any(|&b| b != 0))).map(<[u8]>::len).sum();
        out.seek_relative(i64::try_from(zeros).map_err(io::Error::other)?)?;
        let (_, after) = rest.split_at(zeros);
        let (data, after) = after.split_at(data);
        out.write_all(data)?;
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::elf::fake_vmlinux;
    use super::*;
    use crate::boot::guests_initramfs;
    use crate::decompress::tests::{gzip, pack_with};
    use crate::kernel::fake_bzimage;
    use crate::processor::X86_64;

    struct Fixture {
        dir: tempfile::TempDir,
        cache: Cache,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let run = dir.path().join("run");
            std::fs::create_dir(&run).unwrap();
            let cache = Cache::new(dir.path().join("cache"), run);
            Self { dir, cache }
        }

        fn bootable(&self, payload: &[u8]) -> Bootable {
            let path = self.dir.path().join("vmlinuz");
            std::fs::write(&path, fake_bzimage("6.1.0-56-amd64", payload)).unwrap();
            bootable(&Kernel::open(&path, &[&X86_64]).unwrap(), &self.cache).unwrap()
        }

        fn cached(&self) -> usize {
            std::fs::read_dir(self.dir.path().join("cache")).map_or(0, Iterator::count)
        }
    }

    #[test]
    fn every_packing_that_kernels_use_comes_out() {
        let elf = fake_vmlinux(true);
        for tool in [
            &["xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"][..],
            &["gzip", "-9"],
            &["xz", "--format=lzma"],
            &["zstd", "-q", "-c", "-22", "--ultra"],
            &["lz4", "-q", "-l", "-c"],
        ] {
            let fixture = Fixture::new();
            // The relocations and the unpacked size come behind, as in a real one.
            let mut packed = pack_with(tool, &[&elf[..], &[0xab; 5000]].concat());
            packed.extend_from_slice(&[0x10, 0x20, 0, 0]);
            let Bootable::Pvh { path, hit: Some(false), .. } = fixture.bootable(&packed) else { panic!("{tool:?}") };
            let out = std::fs::read(&path).unwrap();
            assert!(out.len() < elf.len(), "the sections and what is behind are gone: {}", out.len());
            assert!(pvh_entry(&File::open(&path).unwrap()).unwrap());
            // Code and data are as they were, behind the header whose section fields were cleared.
            assert!(out[64..] == elf[64..out.len()], "{tool:?}");
        }
    }

    #[test]
    fn it_is_taken_out_once_and_again_when_the_kernel_changes() {
        let fixture = Fixture::new();
        let payload = gzip(&fake_vmlinux(true));
        assert!(matches!(fixture.bootable(&payload), Bootable::Pvh { hit: Some(false), .. }));
        let kernel = Kernel::open(&fixture.dir.path().join("vmlinuz"), &[&X86_64]).unwrap();
        assert!(matches!(bootable(&kernel, &fixture.cache).unwrap(), Bootable::Pvh { hit: Some(true), .. }));
        assert!(matches!(fixture.bootable(&gzip(&fake_vmlinux(true))), Bootable::Pvh { hit: Some(false), .. }));
        assert_eq!(fixture.cached(), 4, "two, each with its seal");
    }

    #[test]
    fn what_has_no_quicker_form_boots_as_it_is_and_leaves_nothing() {
        let fixture = Fixture::new();
        let why = |payload: &[u8]| match fixture.bootable(payload) {
            Bootable::AsIs { why, .. } => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(&gzip(&fake_vmlinux(false))), NoPvh::NoEntry);
        assert_eq!(why(&gzip(b"no elf")), NoPvh::NoEntry);
        assert_eq!(why(b"BZh91AY"), NoPvh::Packing("bzip2"));
        assert_eq!(why(b""), NoPvh::NoPayload);
        let whole = gzip(&fake_vmlinux(true));
        assert!(matches!(why(&whole[..whole.len() / 2]), NoPvh::Broken(_)));
        assert_eq!(fixture.cached(), 0);
    }

    #[test]
    fn uefi_firmware_is_given_the_kernel_as_it_is() {
        let fixture = Fixture::new();
        let kernel = fixture.dir.path().join("vmlinuz");
        let initrd = fixture.dir.path().join("initrd");
        std::fs::write(&kernel, fake_bzimage("6.1.0-56-amd64", &gzip(&fake_vmlinux(true)))).unwrap();
        std::fs::write(&initrd, b"070701").unwrap();
        let opened = Kernel::open(&kernel, &[&X86_64]).unwrap();
        let start = |by_uefi| {
            guests_initramfs(&opened, &initrd, "/init", by_uefi, &X86_64, b"\x7fELF", &fixture.cache).unwrap()
        };
        let by_uefi = start(true);
        assert_eq!((&by_uefi.kernel, by_uefi.pvh), (&kernel, false), "{:?}", by_uefi.choices);
        let otherwise = start(false);
        assert!(otherwise.pvh && otherwise.kernel != kernel, "{:?}", otherwise.choices);
        assert_eq!(by_uefi.initrd, otherwise.initrd);
    }

    #[test]
    fn holes_read_as_the_zeros_they_were() {
        let mut bytes = vec![0; 300_000];
        bytes[5_000..5_010].fill(1);
        bytes[200_000] = 2;
        let mut file = tempfile::tempfile().unwrap();
        for piece in bytes.chunks(256 << 10) {
            write_sparse(&mut file, piece).unwrap();
        }
        file.set_len(bytes.len() as u64).unwrap();
        file.rewind().unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == bytes);
    }
}
