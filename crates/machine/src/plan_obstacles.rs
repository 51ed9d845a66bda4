//! What keeps a guest from being started, as far as that can be said before it is.

use belljar_guest_spec::{Access, BootSource, DiskBus, GuestSpec};
use belljar_image::{boot, cache::Cache, initramfs, modules::ModuleIndex};

use crate::{
    host::HostContext,
    plan::PlanError,
    plan_choices::Choices,
    plan_firmware::uefi_for,
    plan_image::{self, ImageQuestion, ImageReader},
    plan_source::{Found, kernel_for_root},
    qemu::{platform, probe},
    share,
    volume::Volume,
};

/// All that keeps this guest from being started, as far as a look at the host tells, with how to mend it. Makes nothing.
#[must_use]
pub(crate) fn obstacles(source: &BootSource, spec: &GuestSpec, host: &HostContext) -> Vec<String> {
    let mut obstacles: Vec<PlanError> = Vec::new();
    let found = Found::look_at(source);
    let platform = found.as_ref().map_or_else(|_| platform::default(), Found::platform);
    let mut qemu = None;
    match probe::find_qemu(platform, host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir) {
        Ok(found) => {
            obstacles.extend(share::before_agent(&found).err().map(PlanError::NoShare));
            qemu = Some(found);
        }
        Err(error) => obstacles.push(error.into()),
    }
    let boots = || -> Result<(), PlanError> {
        match found? {
            Found::Image { path, format, bus: _ } => {
                let directly = source.access() == Access::Initrd;
                let image = plan_image::look_at(&host.qemu_img, path, format, directly)?;
                let cache = Cache::new(&host.cache_dir, &host.cache_dir);
                let reader = ImageReader::new(&image, &host.qemu_img, &cache);
                reader.refuse(source, &mut Choices::default())?;
                if let Some(qemu) = &qemu {
                    let question = ImageQuestion { source, spec, platform, host };
                    uefi_for(&reader, &question, qemu, &mut Choices::default())?;
                }
            }
            Found::Root { root: _, arch: _, kernel, modules } => {
                kernel_for_root(kernel, modules, &platform.processor, &mut Choices::default())?;
            }
            Found::Initramfs { kernel: _, initrd, modules } => {
                initramfs::check_foreign(initrd).map_err(boot::BootError::from)?;
                modules.map(ModuleIndex::load).transpose()?;
            }
        }
        Ok(())
    };
    obstacles.extend(boots().err());
    let disks =
        spec.hardware.disks.iter().filter_map(|disk| Volume::further(&host.qemu_img, disk, DiskBus::Virtio).err());
    obstacles.extend(disks.map(PlanError::from));
    obstacles.iter().map(ToString::to_string).collect()
}
