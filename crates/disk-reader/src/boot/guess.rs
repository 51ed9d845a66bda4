//! The newest kernel that lies where kernels lie, for a disk whose boot loader says nothing.

use belljar_image::kernel::Release;

use super::{Boot, BootEntry, Loader, Place, file_ref};
use crate::description::Volume;
use crate::fs::{FileSystems, View};
use crate::system::{Root, find_root};

/// How kernels are called, before their version.
const NAMES: &[&str] = &["vmlinuz", "vmlinux", "Image", "kernel", "linux"];
const MAX_KERNELS: usize = 32;

pub(super) fn find(volumes: &[Volume], fs: &mut FileSystems) -> Option<Boot> {
    let root = find_root(volumes, fs, None);
    let mut best: Option<(Release, Place, Vec<String>)> = None;
    let of_root = root
        .iter()
        .flat_map(|root| ["/boot", ""].map(|below| (root.volume, root.view, format!("{}{below}", root.top))));
    let others =
        (0..volumes.len()).flat_map(|volume| ["", "/boot"].map(|directory| (volume, View::Top, directory.to_owned())));
    for (volume, view, directory) in of_root.chain(others) {
        let Ok(names) = fs.list(volume, view, if directory.is_empty() { "/" } else { &directory }) else { continue };
        let kernels = names.iter().filter_map(|name| {
            let rest = NAMES.iter().find_map(|start| name.strip_prefix(start))?;
            (rest.is_empty() || rest.starts_with('-')).then(|| (name, rest.trim_start_matches('-')))
        });
        for (name, version) in kernels.take(MAX_KERNELS) {
            let release = Release::new(version);
            if best.as_ref().is_none_or(|(newest, ..)| release > *newest) {
                let place = Place { volume, view, path: format!("{directory}/{name}") };
                if file_ref(volumes, fs, &place).is_ok() {
                    best = Some((release, place, names.clone()));
                }
            }
        }
        if best.is_some() {
            break;
        }
    }
    let (release, place, names) = best?;
    let mut boot = Boot::new(Loader::None, "no boot loader's configuration".into());
    let kernel = file_ref(volumes, fs, &place).ok()?;
    let version = release.as_str();
    let initrd = [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
        format!("initramfs-{version}"),
        format!("initrd-{version}.img"),
        "initrd.img".to_owned(),
        "initrd".to_owned(),
    ]
    .into_iter()
    .find(|name| names.contains(name));
    let directory = super::parent(&place.path).to_owned();
    let initrds = initrd.and_then(|name| file_ref(volumes, fs, &place.with(&format!("{directory}/{name}"))).ok());
    let command_line = root.as_ref().map(|root| {
        let release = Place { volume: root.volume, view: root.view, path: format!("{}/etc/alpine-release", root.top) };
        let is_alpine = file_ref(volumes, fs, &release).is_ok();
        words(volumes, root, is_alpine)
    });
    let command_line = command_line.unwrap_or_default();
    let mut notes = vec![
        "no boot loader's configuration was found: the newest kernel was taken, and the words for it made up"
            .to_owned(),
    ];
    if command_line.is_empty() {
        notes.push("no root file system was found that it could be told of".into());
    }
    boot.entries.push(BootEntry {
        title: place.path.rsplit('/').next().unwrap_or_default().to_owned(),
        kernel,
        initrds: initrds.into_iter().collect(),
        command_line,
        from: boot.from.clone(),
        guess: true,
        notes: Vec::new(),
    });
    boot.default = Some(0);
    boot.notes = notes;
    Some(boot)
}

/// What Alpine's initramfs (mkinitfs) is to load, which it does not find out by itself: the file system, and drivers of whatever the disk may be on.
const MKINITFS_DRIVERS: &str = "virtio_pci,virtio_blk,virtio_scsi,sd-mod,ahci,ata_piix,nvme";

fn words(volumes: &[Volume], root: &Root, is_alpine: bool) -> String {
    let Some(volume) = volumes.get(root.volume) else { return String::new() };
    let partition = volume.partition.as_ref().map(|partition| format!("root=PARTUUID={}", partition.partuuid));
    let mut words = match volume.content.uuid.as_str() {
        "" => partition.unwrap_or_default(),
        uuid => format!("root=UUID={uuid}"),
    };
    if !words.is_empty() {
        words.push_str(" ro");
        if let Some(subvolume) = root.top.strip_prefix('/') {
            words.push_str(" rootflags=subvol=");
            words.push_str(subvolume);
        }
        if is_alpine {
            let kind = volume.content.kind.name().to_lowercase();
            words.push_str(&format!(" rootfstype={kind} modules={kind},{MKINITFS_DRIVERS}"));
        }
    }
    words
}
