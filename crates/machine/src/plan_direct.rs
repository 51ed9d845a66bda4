//! The direct start of what is in an image: its kernel, its initramfs and the kernel's words, as its boot loader would start them.
//!
//! They are read out of the image once, and kept in the cache under a name that follows the image's files.

use std::{
    fs::File,
    io::{Seek, Write},
    path::Path,
};

use belljar_disk_reader::{BootEntry, Description, FileRef, Init, InitKind, Provisioning, RootPassword, System};
use belljar_guest_spec::{Access, BootSource};
use belljar_image::{
    boot::{self, BootFiles},
    cache::Cache,
    kernel::Kernel,
};
use serde::{Deserialize, Serialize};

use crate::{
    access::rungs::{self, OLDEST_SYSTEMD, Rung, Start},
    host::HostContext,
    plan::PlanError,
    plan_choices::Choices,
    plan_firmware::{Wanted, is_by_uefi},
    plan_grub,
    plan_image::{self, ImageQuestion, ImageReader},
    plan_source::Found,
    qemu::platform::{self, Platform},
};

/// The most bytes of a kernel, and of an initramfs.
const MAX_KERNEL: u64 = 512 << 20;
const MAX_INITRD: u64 = 2 << 30;
/// The first process of an initramfs where the kernel's words name no other (the kernel's `admin-guide/kernel-parameters.rst`).
const INIT: &str = "/init";

/// What the image's boot loader would start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    title: String,
    kernel: String,
    initrds: Vec<String>,
    words: String,
    from: String,
    guess: bool,
}

impl Entry {
    /// # Errors
    /// Why there is none, with what was seen on the way.
    pub(crate) fn of(found: &Description) -> Result<Self, String> {
        let entry = entry(found)?;
        Ok(Self {
            title: entry.title.clone(),
            kernel: entry.kernel.path.clone(),
            initrds: entry.initrds.iter().map(|file| file.path.clone()).collect(),
            words: entry.command_line.clone(),
            from: entry.from.clone(),
            guess: entry.guess,
        })
    }
}

fn entry(found: &Description) -> Result<&BootEntry, String> {
    found.default_entry().ok_or_else(|| {
        let notes = found.notes.iter().map(|note| format!("; {note}")).collect::<String>();
        format!("no kernel was found in it that its boot loader would start{notes}")
    })
}

/// What of a system decides how it is got into where nobody says how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Login {
    /// Nobody logs in as root without a password.
    root_is_locked: bool,
    /// systemd's version, if its init is one that says so.
    systemd: Option<u32>,
    /// Its init, for a person.
    init: String,
    /// cloud-init is there, and not switched off.
    cloud_init: bool,
}

impl Login {
    pub(crate) fn of(system: &System) -> Self {
        let init = system.init.as_ref();
        let systemd = init.filter(|init| init.kind == InitKind::Systemd).and_then(|init| init.version);
        let version = |init: &Init| init.version.map_or_else(String::new, |version| format!(" {version}"));
        Self {
            root_is_locked: matches!(system.root_password, RootPassword::Locked | RootPassword::Set),
            systemd,
            init: init.map_or_else(|| "unknown".to_owned(), |init| format!("{}{}", init.kind.name(), version(init))),
            cloud_init: system.provisioning.contains(&Provisioning::CloudInit),
        }
    }

    fn takes_credentials(&self) -> bool {
        self.systemd.is_some_and(|version| version >= OLDEST_SYSTEMD)
    }
}

/// How an image is got into whose own boot leads to nobody who can get in, with the reason.
#[derive(Debug, PartialEq, Eq)]
enum Detour {
    /// Its kernel is started directly.
    Direct(String),
    /// A GRUB of Belljar's starts it.
    Grub(String),
    /// Its cloud-init is told to start the agent.
    CloudInit(String),
}

/// How to get into an image where no way in was asked for, if its own boot is known to lead to nobody who can. `nobody_logs_in`: no login was given;
/// `closed`: its own boot was tried. What comes of a GRUB is known only when it was tried.
fn detour(
    platform: &Platform,
    firmware: &Wanted,
    login: Option<&Login>,
    (entry, for_grub): (Option<&Entry>, Option<&str>),
    nobody_logs_in: bool,
    closed: Option<String>,
) -> Option<Detour> {
    let entry = entry.filter(|entry| !entry.initrds.is_empty());
    if let Some(why) = closed.filter(|_| nobody_logs_in) {
        if entry.is_some_and(|entry| !entry.guess) {
            return Some(Detour::Direct(why));
        }
        if let Some(volume) = for_grub {
            return Some(Detour::Grub(format!("{why}; GRUB may be able to read {volume}")));
        }
    }
    if firmware.finds_nothing && entry.is_some() {
        let why = "no firmware finds anything on it to start: no code in its first sector, and nothing for UEFI";
        return Some(Detour::Direct(why.to_owned()));
    }
    let takes_unit = |login: &Login| platform.has_smbios && login.takes_credentials();
    let login = login.filter(|login| nobody_logs_in && login.root_is_locked && !takes_unit(login))?;
    let init = &login.init;
    let why = if platform.has_smbios {
        format!("its root has no login without a password, and its init, {init}, takes no unit from outside")
    } else {
        let processor = platform.processor.name;
        format!(
            "its root has no login without a password, and a machine for {processor} has no tables to give a unit by"
        )
    };
    if entry.is_some_and(|entry| !entry.guess) {
        return Some(Detour::Direct(why));
    }
    login.cloud_init.then(|| {
        let why = format!("{why}; nothing was found in it that could be started directly, and cloud-init is there");
        Detour::CloudInit(why)
    })
}

/// How an image would be got into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// The ways that would be tried, in this order.
    pub names: Vec<&'static str>,
    /// Why its kernel would be started directly, if it would be from the first.
    pub directly: Option<String>,
    /// What would start it in a second boot if nobody gets in by its own.
    pub then: Option<SecondBoot>,
}

/// What starts an image whose own boot lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecondBoot {
    /// Its kernel is started directly.
    Directly,
    /// A GRUB of Belljar's, for what is in this volume, which Belljar does not read; where GRUB's packages are installed.
    ByGrub(String),
}

/// The ways into a guest of this disk that are tried where nobody says which, by their names; and why what is in it is started directly, if it is.
/// They suit every disk where nothing is known of its system.
#[must_use]
pub fn ways_into(source: &BootSource, found: &Description) -> Ways {
    let system = found.system().ok().flatten();
    let login = system.as_ref().map(Login::of);
    let platform = system.as_ref().and_then(plan_image::processor_of).and_then(platform::of);
    let platform = platform.unwrap_or_else(platform::default);
    if platform.agent().is_none() {
        let rungs = rungs::choose(source).into_iter().filter(|rung| rung.agent.is_none());
        return Ways { names: rungs.map(|rung| rung.name).collect(), directly: None, then: None };
    }
    let entry = Entry::of(found).ok();
    let seen = (entry.as_ref(), None);
    let detour = detour(platform, &Wanted::of(found), login.as_ref(), seen, true, None);
    let (rungs, why) = match detour {
        Some(Detour::Direct(why)) => (rungs::choose_direct(source), Some(why)),
        Some(Detour::CloudInit(_)) => (rungs::choose_cloud_init(source), None),
        Some(Detour::Grub(_)) => (rungs::choose_grub(source), None),
        None => (rungs::choose(source), None),
    };
    let rungs: Vec<_> = rungs.into_iter().filter(|rung| rung.is_for(platform)).collect();
    let then = if entry.is_some_and(|entry| can_be_started_after(&entry, &rungs)) {
        Some(SecondBoot::Directly)
    } else {
        let can = go_by_image(&rungs) && plan_grub::starts(platform.processor.arch);
        plan_image::for_grub(found).filter(|_| can).map(SecondBoot::ByGrub)
    };
    Ways { names: rungs.iter().map(|rung| rung.name).collect(), directly: why, then }
}

/// Whether this can be started directly where these rungs, by the image's own boot, lead nowhere.
fn can_be_started_after(entry: &Entry, rungs: &[&'static Rung]) -> bool {
    go_by_image(rungs) && !entry.guess && !entry.initrds.is_empty()
}

/// Whether by all of these rungs the image boots as it does without Belljar.
fn go_by_image(rungs: &[&'static Rung]) -> bool {
    !rungs.iter().any(|rung| rung.start != Start::ByImage || rung.seed.is_some())
}

/// How an image is got into if its own boot lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WayBack {
    /// In no other way.
    None,
    /// Its kernel is started directly.
    Direct,
    /// A GRUB of Belljar's is tried.
    Grub,
    /// A GRUB of Belljar's would be tried, were it there; what is missing, and what to do.
    NoGrub(String),
}

impl WayBack {
    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        matches!(self, Self::Direct | Self::Grub)
    }

    /// The one for an image where nobody says how to get in, and `rungs` are tried first.
    pub(crate) fn of(reader: &ImageReader<'_>, question: &ImageQuestion<'_>, rungs: &[&'static Rung]) -> Self {
        let ImageQuestion { source, spec, platform, host } = question;
        let is_open = source.access() == Access::Auto && spec.login.is_none() && platform.agent().is_some();
        if !is_open || !go_by_image(rungs) || reader.image().has_device() {
            return Self::None;
        }
        let entry = reader.facts().ok().and_then(|facts| facts.entry.as_ref().ok());
        if entry.is_some_and(|entry| can_be_started_after(entry, rungs)) {
            return Self::Direct;
        }
        let is_read_by_grub = reader.facts().map_or(true, |facts| facts.for_grub.is_some());
        if !is_read_by_grub || plan_grub::check_processor(reader, platform).is_err() {
            return Self::None;
        }
        let by_uefi = is_by_uefi(reader, question);
        if let Err(why) = plan_grub::check_disks(spec, by_uefi) {
            return Self::NoGrub(why);
        }
        match plan_grub::find(host.path.as_deref(), plan_grub::starter(by_uefi)) {
            Ok(_) => Self::Grub,
            Err(error) => Self::NoGrub(error.to_string()),
        }
    }
}

/// Remembers why an image's own boot lets nobody in, or that this is not so: what is planned for it then starts it directly, or does not.
pub(crate) fn remember_closed(source: &BootSource, host: &HostContext, dir: &Path, why: Option<&str>) {
    let cache = Cache::new(&host.cache_dir, dir);
    if let Ok(Found::Image { reader, .. }) = Found::look_at(source, None, &host.qemu_img, &cache) {
        reader.set_closed(why);
    }
}

/// What starts an image directly, with the words for its kernel; none where it boots by itself. Where nobody says how to get in, that depends on what
/// is in the image, and `rungs` with it.
pub(crate) fn of_image(
    reader: &ImageReader<'_>,
    question: &ImageQuestion<'_>,
    cache: &Cache,
    rungs: &mut Vec<&'static Rung>,
    choices: &mut Choices,
) -> Result<Option<(BootFiles, String)>, PlanError> {
    let ImageQuestion { source, spec, platform, .. } = question;
    let Some(agent) = platform.agent() else { return Ok(None) };
    if rungs.iter().any(|rung| rung.start == Start::ByOurGrub) {
        return Ok(None);
    }
    if !rungs.iter().any(|rung| rung.start == Start::Directly) {
        // Changes of a device would not be noticed.
        let is_open = source.access() == Access::Auto && !reader.image().has_device();
        let detour = match reader.facts() {
            _ if !is_open => None,
            Ok(facts) => {
                let seen = (facts.entry.as_ref().ok(), facts.for_grub.as_deref());
                detour(platform, &facts.firmware, facts.login.as_ref(), seen, spec.login.is_none(), reader.closed())
            }
            // Of an image that cannot be read nothing is known, and it boots by itself.
            Err(_) => reader.closed().filter(|_| spec.login.is_none()).map(Detour::Grub),
        };
        match detour {
            Some(Detour::Direct(why)) => {
                choices.add("start", "directly, without the image's boot loader", why);
                *rungs = rungs::choose_direct(source);
            }
            Some(Detour::Grub(why)) => {
                plan_grub::check(reader, question, is_by_uefi(reader, question)).map_err(|error| match error {
                    PlanError::Grub { image, why: lacks } => {
                        let why =
                            format!("{lacks}. It is started so because {why}; with a --login, its own boot is tried");
                        PlanError::Grub { image, why }
                    }
                    other => other,
                })?;
                choices.add("start", "by a GRUB of Belljar's own, which reads the image", why);
                *rungs = rungs::choose_grub(source);
                return Ok(None);
            }
            Some(Detour::CloudInit(why)) => {
                choices.add("seed", "a disk for the guest's cloud-init", why);
                *rungs = rungs::choose_cloud_init(source);
                return Ok(None);
            }
            None => return Ok(None),
        }
    }
    let by_uefi = is_by_uefi(reader, question);
    direct_start(reader, by_uefi, (platform, agent.program), cache, choices).map(Some)
}

/// Makes ready what starts the image directly, with the agent behind its initramfs; gives the words for its kernel too.
fn direct_start(
    reader: &ImageReader<'_>,
    by_uefi: bool,
    (platform, agent): (&'static Platform, &'static [u8]),
    cache: &Cache,
    choices: &mut Choices,
) -> Result<(BootFiles, String), PlanError> {
    let image = reader.image();
    let failed = |why: String| PlanError::Direct { image: image.path().to_owned(), why };
    if let Some(device) = image.layers().iter().find(|layer| layer.device) {
        let device = device.path.display();
        return Err(failed(format!(
            "{device} is a block device, whose changes would not be noticed; use --access credentials"
        )));
    }
    let facts = reader.facts().map_err(|why| failed(why.to_owned()))?;
    let entry = facts
        .entry
        .as_ref()
        .map_err(|why| failed(format!("{why}. `belljar doctor {}` says what was found", image.path().display())))?;
    if entry.initrds.is_empty() {
        let why = format!(
            "{} has no initramfs for {}, behind which Belljar's program could be; use --access credentials, or give a --login",
            entry.from, entry.kernel
        );
        return Err(failed(why));
    }
    let kernel = reader.get("kernel", |reader, out| {
        let found = reader.description()?;
        copy(found, &self::entry(found)?.kernel, MAX_KERNEL, out)
    });
    let initrd = reader.get("initrd", |reader, out| {
        let found = reader.description()?;
        for file in &self::entry(found)?.initrds {
            // The kernel looks for each archive at a multiple of four bytes.
            let end = out.stream_position().map_err(|error| error.to_string())?;
            out.write_all(&vec![0; padding(end)]).map_err(|error| error.to_string())?;
            copy(found, file, MAX_INITRD, out)?;
        }
        Ok(())
    });
    let (kernel, initrd) = (kernel.map_err(failed)?, initrd.map_err(failed)?);
    let why = if entry.guess {
        "no boot loader's configuration was found, and it is the newest kernel there".to_owned()
    } else {
        format!("{} boots \"{}\" when nobody chooses", entry.from, entry.title.escape_debug())
    };
    choices.add("kernel", format!("{} of the image", entry.kernel), why);
    let kernel = Kernel::open(&kernel, &platform::processors())?;
    let init = entry.words.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("rdinit="));
    let init = init.unwrap_or(INIT);
    let files = boot::guests_initramfs(&kernel, &initrd, init, by_uefi, &platform.processor, agent, cache)?;
    Ok((files, entry.words.clone()))
}

fn copy(found: &Description, file: &FileRef, max: u64, out: &mut File) -> Result<(), String> {
    let copied = found.copy_file(file, max, out);
    copied.map(drop).map_err(|error| format!("cannot read {} out of it: {error}", file.path))
}

/// How many bytes there are from `at` to the next multiple of four.
fn padding(at: u64) -> usize {
    usize::try_from(at.next_multiple_of(4) - at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(initrds: &[&str], guess: bool) -> Entry {
        Entry {
            title: String::new(),
            kernel: "/vmlinuz".into(),
            initrds: initrds.iter().map(ToString::to_string).collect(),
            words: String::new(),
            from: String::new(),
            guess,
        }
    }

    #[test]
    fn an_image_is_got_into_otherwise_only_where_its_own_boot_does_not_lead_in() {
        let boots = Wanted { uefi: false, why: String::new(), finds_nothing: false };
        let nothing = Wanted { finds_nothing: true, ..boots.clone() };
        let login = |root_is_locked, systemd, cloud_init| Login {
            root_is_locked,
            systemd,
            init: "sysvinit".into(),
            cloud_init,
        };
        let (good, guessed, bare) = (entry(&["i"], false), entry(&["i"], true), entry(&[], false));
        fn asked(firmware: &Wanted, login: &Login, entry: &Entry, nobody_logs_in: bool) -> Option<Detour> {
            detour(
                platform::PLATFORMS[0],
                firmware,
                Some(login),
                (Some(entry), Some("partition 1")),
                nobody_logs_in,
                None,
            )
        }
        fn directly(login: &Login, firmware: &Wanted, entry: &Entry, nobody_logs_in: bool, why: &str) -> bool {
            matches!(asked(firmware, login, entry, nobody_logs_in), Some(Detour::Direct(said)) if said.contains(why))
        }
        for cloud_init in [false, true] {
            for systemd in [None, Some(247)] {
                assert!(directly(&login(true, systemd, cloud_init), &boots, &good, true, "sysvinit"));
            }
            let old = &login(true, None, cloud_init);
            assert_eq!(asked(&boots, old, &good, false), None, "somebody logs in");
            for entry in [&good, &bare, &guessed] {
                let new = &login(true, Some(252), cloud_init);
                assert_eq!(asked(&boots, new, entry, true), None, "it takes credentials");
                let open = &login(false, None, cloud_init);
                assert_eq!(asked(&boots, open, entry, true), None, "root logs in without a password");
            }
            for nobody in [true, false] {
                assert!(directly(&login(false, Some(257), cloud_init), &nothing, &guessed, nobody, "no firmware"));
            }
        }
        for entry in [&bare, &guessed] {
            assert_eq!(asked(&boots, &login(true, None, false), entry, true), None, "nothing is known to start");
            let late = asked(&boots, &login(true, Some(247), true), entry, true);
            assert!(matches!(late, Some(Detour::CloudInit(why)) if why.contains("cloud-init is there")));
        }
    }

    #[test]
    fn what_is_known_to_let_nobody_in_is_started_directly() {
        let boots = Wanted { uefi: false, why: String::new(), finds_nothing: false };
        let with = |login: Option<&Login>, entry: &Entry, for_grub, nobody_logs_in| {
            let why = Some("it was tried".to_owned());
            detour(platform::PLATFORMS[0], &boots, login, (Some(entry), for_grub), nobody_logs_in, why)
        };
        let asked = |login: Option<&Login>, entry: &Entry, nobody_logs_in| with(login, entry, None, nobody_logs_in);
        let login = |root_is_locked, systemd| Login { root_is_locked, systemd, init: "x".into(), cloud_init: false };
        let good = entry(&["i"], false);
        for login in [None, Some(&login(true, Some(252))), Some(&login(false, None))] {
            assert_eq!(asked(login, &good, true), Some(Detour::Direct("it was tried".into())));
            assert_eq!(asked(login, &good, false), None, "somebody logs in");
            for entry in [entry(&[], false), entry(&["i"], true)] {
                assert_eq!(asked(login, &entry, true), None, "nothing is known to start");
                let by_grub = with(login, &entry, Some("partition 1 (ZFS)"), true);
                let why = "it was tried; GRUB may be able to read partition 1 (ZFS)";
                assert_eq!(by_grub, Some(Detour::Grub(why.into())));
                assert_eq!(with(login, &entry, Some("partition 1"), false), None, "somebody logs in");
            }
        }
    }

    #[test]
    fn a_machine_without_tables_gives_no_unit() {
        let boots = Wanted { uefi: true, why: String::new(), finds_nothing: false };
        let login = Login { root_is_locked: true, systemd: Some(257), init: "systemd 257".into(), cloud_init: false };
        let entry = entry(&["i"], false);
        for platform in platform::PLATFORMS {
            let chosen = detour(platform, &boots, Some(&login), (Some(&entry), None), true, None);
            assert_eq!(chosen.is_none(), platform.has_smbios, "{}: {chosen:?}", platform.processor.name);
        }
    }

    #[test]
    fn each_archive_begins_where_the_kernel_looks_for_it() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }
}
