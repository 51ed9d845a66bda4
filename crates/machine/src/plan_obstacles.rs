//! What keeps a guest from being started, as far as that can be said before it is.

use belljar_guest_spec::{Access, BootSource, DiskBus, DiskContent, GuestSpec, ShareKind};
use belljar_image::{boot, cache::Cache, initramfs, modules::ModuleIndex};

use crate::{
    host::HostContext,
    plan::PlanError,
    plan_choices::Choices,
    plan_devices,
    plan_firmware::{machine, uefi_for},
    plan_grub,
    plan_image::ImageQuestion,
    plan_source::{Found, kernel_for_root},
    qemu::{
        platform::{self, Platform},
        probe::{self, QemuInfo},
    },
    share::{self, virtiofs, virtiofsd::Virtiofsd},
    ssh::Ssh,
    tpm::{self, Tpm},
    volume::{Volume, directory},
};

/// Whether the devices, and the programs beside QEMU, that a guest asks for are there, and go with the rest of it.
fn of_helpers(
    source: &BootSource,
    spec: &GuestSpec,
    host: &HostContext,
    platform: &'static Platform,
    qemu: &QemuInfo,
) -> Result<(), PlanError> {
    let path = host.path.as_deref();
    if spec.tpm {
        let directly = !matches!(source, BootSource::Image { .. }) || source.access() == Access::Initrd;
        tpm::check(&Tpm::find(qemu, path)?, directly, spec)?;
    }
    plan_devices::further(spec, platform, machine(platform, spec), qemu, &mut Choices::default())?;
    if spec.share == ShareKind::Virtiofs {
        (virtiofs::VIRTIOFS.obstacle)(qemu).map_or(Ok(()), |why| Err(PlanError::NoShare(why)))?;
        Virtiofsd::find(path)?;
    }
    if spec.credentials().is_ok() {
        Ssh::of(spec, source.access(), host)?;
    }
    Ok(())
}

/// All that keeps this guest from being started, as far as a look at the host tells, with how to mend it. Makes nothing.
#[must_use]
pub(crate) fn obstacles(source: &BootSource, spec: &GuestSpec, host: &HostContext) -> Vec<String> {
    let mut obstacles: Vec<PlanError> = Vec::new();
    let cache = Cache::new(&host.cache_dir, &host.cache_dir);
    let found = Found::look_at(source, None, &host.qemu_img, &cache);
    let platform = found.as_ref().map_or_else(|_| platform::default(), |found| found.platform().0);
    let mut qemu = None;
    match probe::find_qemu(platform, host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir) {
        Ok(found) => {
            obstacles.extend(share::before_agent(&found).err().map(PlanError::NoShare));
            obstacles.extend(of_helpers(source, spec, host, platform, &found).err());
            qemu = Some(found);
        }
        Err(error) => obstacles.push(error.into()),
    }
    let boots = |found: &Found<'_>| -> Result<(), PlanError> {
        match found {
            Found::Image { reader, bus: _ } => {
                reader.refuse(source, &mut Choices::default())?;
                if let Some(qemu) = &qemu {
                    let question = ImageQuestion { source, spec, platform, host };
                    let directly = source.access() == Access::Initrd;
                    let uefi = uefi_for(reader, &question, qemu, directly, &mut Choices::default())?;
                    if source.access() == Access::Grub {
                        plan_grub::check(reader, &question, uefi.is_some())?;
                    }
                }
            }
            &Found::Root { root, arch: _, kernel, modules } => {
                if platform.agent().is_none() {
                    return Err(PlanError::NoAgent { platform });
                }
                kernel_for_root(Some(root), kernel, modules, &platform.processor, &mut Choices::default())?;
            }
            // What it is for is not known before it was read.
            &Found::ContainerImage { image: _, kernel, modules } => {
                kernel_for_root(None, kernel, modules, &platform.processor, &mut Choices::default())?;
            }
            &Found::Initramfs { kernel: _, initrd, modules } => {
                initramfs::check_foreign(initrd).map_err(boot::BootError::from)?;
                modules.map(ModuleIndex::load).transpose()?;
            }
        }
        Ok(())
    };
    if let Ok(found) = &found {
        obstacles.extend(boots(found).err());
    }
    obstacles.extend(found.err());
    let mut hardware = spec.hardware.clone();
    let mut directories = Vec::new();
    hardware.disks.retain(|disk| match &disk.content {
        DiskContent::Directory(directory) => {
            directories.extend(directory::obstacle(directory, host));
            false
        }
        DiskContent::Empty(_) | DiskContent::Image(_) => true,
    });
    let disks = Volume::all_further(&host.qemu_img, &hardware, DiskBus::Virtio);
    obstacles.extend(disks.err().map(PlanError::from));
    obstacles.iter().map(ToString::to_string).chain(directories).collect()
}
