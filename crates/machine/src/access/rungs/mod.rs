//! The ways into a guest, one file each.
//!
//! A rung is data: which guests it is for, what it attaches to the machine before the boot, and what is done at which sight of the
//! console. [`LADDER`] has them in the order in which their rules are tried.

mod cloud_init;
mod credentials;
mod grub;
mod ignition;
mod init;
mod initrd;
mod login;
mod own_init;
mod shell;
mod ssh;

pub use cloud_init::Seed;
pub use credentials::OLDEST_SYSTEMD;
pub(crate) use initrd::INITRD;
pub(crate) use ssh::SSH;

use belljar_guest_spec::{Access, BootSource};

use super::{Act, Sight};
use crate::qemu::{args::MachineConfig, platform::Platform};

/// One way in.
#[derive(Debug)]
pub struct Rung {
    /// What is reported as having held: "access: login".
    pub name: &'static str,
    /// The word by which a user asks for it; others may have the same.
    pub word: Access,
    /// Whether it is for a guest of this source.
    pub suits: fn(&BootSource) -> Suits,
    /// What the machine gets before the boot, beside what every machine has. The words of the user's own `append` come after it.
    pub attach: fn(&mut MachineConfig),
    /// What to do at which sight; nothing if the console is left alone.
    pub rules: &'static [(Sight, Act)],
    /// What is said of the agent that comes by it of its own accord; none where it leads to a shell, which then starts the agent.
    pub agent: Option<Agent>,
    /// Whether by it Belljar's program is the guest's first process, so that Belljar says what the guest is like.
    pub is_init: bool,
    /// A further disk that the machine gets, if it does: the last one, on the bus of the disk that is booted from.
    pub seed: Option<Seed>,
    /// What starts the guest's kernel.
    pub start: Start,
}

impl Rung {
    /// Whether machines for this processor have what it needs.
    #[must_use]
    pub fn is_for(&self, platform: &Platform) -> bool {
        self.word != Access::Credentials || platform.has_smbios
    }
}

/// What starts the kernel of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// What does it without Belljar: the boot loader of an image, or QEMU where Belljar gives the kernel.
    ByImage,
    /// QEMU, with the kernel and the initramfs that were read out of the image.
    Directly,
    /// A GRUB of Belljar's own, which reads them.
    ByOurGrub,
}

/// What is said of an agent that comes of its own accord.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// Which one it is: "the agent, which …".
    pub which: &'static str,
    /// The same of one that has not come.
    pub awaited: &'static str,
    /// How the copy of a template was got into.
    pub in_copy: &'static str,
    /// Whether it comes while the guest still boots, so that the end of that is to be waited for.
    pub before_boot: bool,
}

/// Whether a rung is for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suits {
    /// It is not.
    No,
    /// If it was asked for.
    IfAsked,
    /// It is.
    Yes,
}

/// Every rung, in the order in which their rules are tried.
pub const LADDER: &[&Rung] = &[
    &init::INIT,
    &INITRD,
    &own_init::OWN_INIT,
    &grub::GRUB,
    &credentials::CREDENTIALS,
    &ignition::IGNITION,
    &cloud_init::CLOUD_INIT,
    &login::LOGIN,
    &shell::SHELL,
    &SSH,
];

/// The rungs for a guest: those that were asked for, else those that suit it.
#[must_use]
pub fn choose(source: &BootSource) -> Vec<&'static Rung> {
    let asked = source.access();
    let fits = |rung: &&&Rung| match (rung.suits)(source) {
        Suits::No => false,
        Suits::IfAsked => asked == rung.word,
        Suits::Yes => asked == Access::Auto || asked == rung.word,
    };
    LADDER.iter().filter(fits).copied().collect()
}

/// The same for a guest of an image whose own boot is known to let nobody in: what is in the image is started directly.
#[must_use]
pub fn choose_direct(source: &BootSource) -> Vec<&'static Rung> {
    instead_of_agents(&INITRD, source)
}

/// The same where that cannot be read by Belljar, but maybe by GRUB.
#[must_use]
pub fn choose_grub(source: &BootSource) -> Vec<&'static Rung> {
    instead_of_agents(&grub::GRUB, source)
}

/// The same where that cannot be started directly, and cloud-init is in the image.
#[must_use]
pub fn choose_cloud_init(source: &BootSource) -> Vec<&'static Rung> {
    instead_of_agents(&cloud_init::CLOUD_INIT, source)
}

/// A rung, and those of a guest by which no agent comes of its own accord.
fn instead_of_agents(rung: &'static Rung, source: &BootSource) -> Vec<&'static Rung> {
    let others = choose(source).into_iter().filter(|rung| rung.agent.is_none());
    std::iter::once(rung).chain(others).collect()
}

/// For a rung that needs nothing of the machine but the serial line.
fn nothing(_: &mut MachineConfig) {}

/// For a rung into an image that a user has to ask for.
fn image_if_asked(source: &BootSource) -> Suits {
    match source {
        BootSource::Image { .. } => Suits::IfAsked,
        BootSource::Initramfs { .. } | BootSource::RootDir { .. } | BootSource::ContainerImage { .. } => Suits::No,
    }
}

/// A guest that boots by itself, to a console that may be typed at.
fn boots_by_itself(source: &BootSource) -> Suits {
    match source {
        BootSource::Image { .. } | BootSource::Initramfs { .. } => Suits::Yes,
        BootSource::RootDir { .. } | BootSource::ContainerImage { .. } => Suits::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_has_its_rungs() {
        let names = |source: &BootSource| choose(source).iter().map(|rung| rung.name).collect::<Vec<_>>();
        let initramfs =
            |access| BootSource::Initramfs { kernel: "k".into(), initrd: "i".into(), modules: None, access };
        let image = |access| BootSource::Image {
            path: "d".into(),
            format: None,
            bus: belljar_guest_spec::BusChoice::Auto,
            access,
        };
        assert_eq!(names(&BootSource::host()), ["Belljar's init"]);
        for access in [Access::Auto, Access::Console] {
            assert_eq!(names(&initramfs(access)), ["login", "shell"]);
        }
        assert_eq!(names(&image(Access::Auto)), ["credentials", "login", "shell"]);
        assert_eq!(names(&image(Access::Console)), ["login", "shell"]);
        assert_eq!(names(&image(Access::Credentials)), ["credentials"]);
        assert_eq!(names(&image(Access::Initrd)), ["initrd"]);
        assert_eq!(names(&image(Access::Grub)), ["grub"]);
        assert_eq!(names(&image(Access::CloudInit)), ["cloud-init"]);
        assert_eq!(names(&image(Access::Ignition)), ["ignition"]);
        assert_eq!(names(&image(Access::Ssh)), ["ssh"]);
        let direct = choose_direct(&image(Access::Auto));
        assert_eq!(direct.iter().map(|rung| rung.name).collect::<Vec<_>>(), ["initrd", "login", "shell"]);
        assert_eq!(names(&initramfs(Access::Init)), ["Belljar's init"]);
        let container = |access| BootSource::ContainerImage {
            image: belljar_guest_spec::ImageRef::Engine("box".into()),
            pull: belljar_guest_spec::PullPolicy::Never,
            kernel: None,
            modules: None,
            access,
        };
        assert_eq!(names(&container(Access::Auto)), ["Belljar's init"]);
        assert_eq!(names(&container(Access::Initrd)), ["beside the image's init"]);
    }
}
