//! The screen of a guest: what is kept of it where nobody gets in.
//!
//! A machine that boots an image has a graphics card on the ISA bus. A boot loader, a kernel without a console on the serial line and an installer show
//! there what is in the way. It takes no slot on the PCI bus and has no driver but the console that every kernel for PCs has, so that a boot takes no longer.
//! QEMU writes the picture to a memory file that it is lent: so it needs no right to make files, and nothing is left when it is killed.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_guest_spec::{BootSource, GuestSpec};
use flate2::{Compression, write::ZlibEncoder};
use rustix::fs::MemfdFlags;

use crate::qemu::{
    args::MachineConfig,
    probe::QemuInfo,
    qmp::{AddFd, Qmp, QmpError, RemoveFd, ScreenDump},
};

/// The picture's name in the guest's directory.
pub const SCREEN: &str = "screen.png";
/// The card.
pub(crate) const CARD: &str = "isa-vga";
/// QEMU takes milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the largest picture, as QEMU writes it: the card's memory is 8 MiB.
const MAX: u64 = 32 << 20;
/// Where the card's memory is besides (QEMU's `VBE_DISPI_LFB_PHYSICAL_ADDRESS`). Devices that are plugged in may get their place from the end of the
/// guest's memory on, so that it must not end just before.
const FRAME_BUFFER: u64 = 0xe000_0000;
/// So far before it it may end.
const DISTANCE: u64 = 0x2000_0000;

/// Has the machine show what an image does before anybody is in: on the serial line and, where it can have one, on a screen.
pub(crate) fn attach(config: &mut MachineConfig, source: &BootSource, spec: &GuestSpec, qemu: &QemuInfo) {
    let BootSource::Image { .. } = source else { return };
    if let Some((property, value)) = config.platform.talkative
        && !config.machine.contains(&format!("{property}="))
    {
        config.machine.push_str(&format!(",{property}={value}"));
    }
    if spec.devices.display.is_some() {
        return;
    }
    // The firmware has to know the card: UEFI's does not. What the user gives QEMU may be another.
    let is_free = config.flash.is_empty() && spec.qemu_args.is_empty();
    // On q35 the BIOS does not come to its first line with it (SeaBIOS 1.16.2 of QEMU 7.2).
    let is_usual = config.machine_type().name == config.platform.default_machine().name;
    let is_far = !(FRAME_BUFFER - DISTANCE + 1..=FRAME_BUFFER).contains(&config.ram_size());
    if config.platform.has_isa_screen && qemu.has_isa_vga && is_free && is_usual && is_far {
        config.vga = Some(CARD.to_owned());
    }
}

/// Keeps a picture of what the screen shows in this directory.
///
/// # Errors
/// Why there is none; nothing if QEMU has ended.
pub(crate) async fn keep(qmp: &Qmp, dir: &Path) -> Result<PathBuf, Option<String>> {
    let png = picture(qmp).await?;
    let path = dir.join(SCREEN);
    let to = path.clone();
    match tokio::task::spawn_blocking(move || fs_err::write(&to, png)).await {
        Ok(written) => written.map_err(|error| Some(error.to_string()))?,
        Err(panic) => return Err(Some(panic.to_string())),
    }
    Ok(path)
}

/// A picture of what the screen shows, as a PNG.
///
/// # Errors
/// Why there is none; nothing if QEMU has ended.
pub(crate) async fn picture(qmp: &Qmp) -> Result<Vec<u8>, Option<String>> {
    let of_qemu = |error: QmpError| match error {
        QmpError::Closed { .. } => None,
        error => Some(error.to_string()),
    };
    let of_file = |error: io::Error| Some(error.to_string());
    let (ours, theirs) = memory_file().map_err(of_file)?;
    let set = qmp.lend::<AddFd>(AddFd {}, theirs.into(), LIMIT).await.map_err(of_qemu)?.fdset_id;
    let dumped = qmp.execute_within(ScreenDump { filename: format!("/dev/fdset/{set}").into() }, LIMIT).await;
    // Whatever came of it, the file is not QEMU's any more.
    drop(qmp.execute_within(RemoveFd { fdset_id: set }, LIMIT).await);
    dumped.map_err(of_qemu)?;
    let made = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        (&ours).take(MAX).read_to_end(&mut bytes)?;
        to_png(&bytes).ok_or_else(|| io::Error::other("what QEMU wrote is no picture"))
    });
    match made.await {
        Ok(made) => made.map_err(of_file),
        Err(panic) => Err(Some(panic.to_string())),
    }
}

/// A memory file, and the same for somebody who may only write to it. QEMU empties it before it writes.
fn memory_file() -> io::Result<(File, File)> {
    let ours = File::from(rustix::fs::memfd_create("belljar-screen", MemfdFlags::CLOEXEC)?);
    let theirs = File::options().write(true).open(format!("/proc/self/fd/{}", ours.as_raw_fd()))?;
    Ok((ours, theirs))
}

/// A PNG (W3C's "Portable Network Graphics") of a picture as QEMU writes it: PPM (netpbm's ppm(5)) with three bytes for each point. Bytes behind it do
/// not count. Nothing, if it is none.
fn to_png(ppm: &[u8]) -> Option<Vec<u8>> {
    let mut rest = ppm.strip_prefix(b"P6")?;
    let mut number = || {
        rest = rest.trim_ascii_start();
        let digits = rest.iter().take(8).take_while(|byte| byte.is_ascii_digit()).count();
        let (text, after) = rest.split_at(digits);
        rest = after;
        std::str::from_utf8(text).ok()?.parse::<u32>().ok().filter(|&number| number > 0)
    };
    let (width, height, most) = (number()?, number()?, number()?);
    let points = rest.get(1..)?;
    if most != 255 {
        return None;
    }
    let row = usize::try_from(width).ok()?.checked_mul(3)?;
    let points = points.get(..row.checked_mul(usize::try_from(height).ok()?)?)?;
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::fast());
    for points in points.chunks_exact(row) {
        // Each row begins with the kind of its filter: none.
        rows.write_all(&[0]).and_then(|()| rows.write_all(points)).ok()?;
    }
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], bytes: &[u8]| -> Option<()> {
        png.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
        let from = png.len();
        png.extend(kind);
        png.extend(bytes);
        let sum = crc32fast::hash(&png[from..]);
        png.extend(sum.to_be_bytes());
        Some(())
    };
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // Eight bits for each colour, three colours, and the only ways there are to compress, filter and order.
    header.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &header)?;
    chunk(b"IDAT", &rows.finish().ok()?)?;
    chunk(b"IEND", &[])?;
    Some(png)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_picture_is_the_same_as_a_png() {
        let ppm = b"P6\n2 1\n255\n\xff\0\0\0\0\xff\0\0\0";
        let png = to_png(ppm).unwrap();
        // IHDR and IEND as any program writes them.
        assert_eq!(png[..33], *b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x01\x08\x02\0\0\0\x7b\x40\xe8\xdd");
        assert_eq!(png[png.len() - 12..], *b"\0\0\0\0IEND\xae\x42\x60\x82");
        let length = usize::from(png[36]);
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&png[41..41 + length]).read_to_end(&mut rows).unwrap();
        assert_eq!(rows, b"\0\xff\0\0\0\0\xff");
    }

    #[test]
    fn what_is_no_picture_is_none() {
        for bytes in [
            &b""[..],
            b"P6",
            b"P5\n1 1\n255\nxxx",
            b"P6\n1 1\n65535\nxxxxxx",
            b"P6\n0 1\n255\nxxx",
            b"P6\n2 2\n255\nxxx",
            b"P6\n99999999 99999999\n255\nx",
            &[0; 100],
        ] {
            assert_eq!(to_png(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), header in "P6\n[0-9]{1,3} [0-9]{1,3}\n255\n") {
            to_png(&bytes);
            bytes.splice(0..0, header.bytes());
            to_png(&bytes);
        }
    }

    #[test]
    fn the_file_that_is_lent_is_for_writing() {
        let (mut ours, mut theirs) = memory_file().unwrap();
        theirs.set_len(0).unwrap();
        theirs.write_all(b"P6").unwrap();
        assert!(theirs.read(&mut [0]).is_err());
        let mut read = Vec::new();
        ours.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"P6");
    }

    #[test]
    fn who_has_a_screen() {
        let image = |path: &str| BootSource::Image {
            path: path.into(),
            format: None,
            bus: belljar_guest_spec::BusChoice::Auto,
            access: belljar_guest_spec::Access::Auto,
        };
        let qemu = |has_isa_vga| QemuInfo { has_isa_vga, ..QemuInfo::of_nothing() };
        let has = |machine: &str, memory: u64, source: &BootSource, args: &[&str], known| {
            let mut config = MachineConfig { machine: machine.into(), memory, ..MachineConfig::default() };
            let mut spec = GuestSpec::new(source.clone());
            spec.qemu_args = args.iter().map(Into::into).collect();
            attach(&mut config, source, &spec, &qemu(known));
            (config.vga.is_some(), config.machine.contains("graphics=off"))
        };
        let disk = image("d");
        for (machine, memory) in [("pc", 1 << 30), ("pc-i440fx-7.2", 1 << 30), ("pc", 3 << 30), ("pc", 4 << 30)] {
            assert_eq!(has(machine, memory, &disk, &[], true), (true, true), "{machine} {memory}");
        }
        assert_eq!(has("pc", 1 << 30, &BootSource::host(), &[], true), (false, false));
        assert_eq!(has("pc", 1 << 30, &disk, &["-vga", "std"], true), (false, true));
        for other in ["q35", "microvm"] {
            assert_eq!(has(other, 1 << 30, &disk, &[], true), (false, true), "{other}");
        }
        assert_eq!(has("pc", 1 << 30, &disk, &[], false), (false, true), "this QEMU has no such card");
        assert_eq!(
            has("pc", 7 << 29, &disk, &[], true),
            (false, true),
            "what is plugged in would be where the card is"
        );
    }
}
