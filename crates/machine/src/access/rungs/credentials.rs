//! A unit for the guest's systemd, which takes it from outside: as credentials (systemd's CREDENTIALS document) in SMBIOS strings of type 11.
//!
//! The guest boots as it does without, from its own boot loader, and nobody has to log in. systemd 256 and later have a credential for a whole
//! unit (`systemd.extra-unit.*` in systemd-debug-generator(8)); 252 and later take lines for systemd-tmpfiles(8), which puts the unit and a rule for
//! udev where both look, before udev is there. An older systemd, and whatever is not systemd, knows of neither.

use belljar_guest_spec::{Access, BootSource};
use data_encoding::BASE64;

use super::{Agent, Rung, Start, Suits};
use crate::{
    enter,
    qemu::args::{MachineConfig, ProgramSource},
};

pub(super) const CREDENTIALS: Rung = Rung {
    name: "credentials",
    word: Access::Credentials,
    suits: |source| match source {
        BootSource::Image { .. } => Suits::Yes,
        BootSource::Initramfs { .. } | BootSource::RootDir { .. } | BootSource::ContainerImage { .. } => Suits::No,
    },
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "was started by the guest's systemd, by a unit that it was given as a credential",
        awaited: "was to be started by the guest's systemd, by a unit that it is given as a credential (systemd 252 and later take it)",
        in_copy: "it was started in its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::ByImage,
};

/// The first version of systemd that takes them.
pub const OLDEST_SYSTEMD: u32 = 252;

/// The name of the unit, which the guest's `systemctl` shows.
pub(super) const UNIT: &str = "belljar-agent.service";

/// A link to `/run` for as long as the guest's devices are set up.
const LINK: &str = "/dev/.belljar";

/// What makes the link; where both are there, the second makes it again.
const TMPFILES: &str = "systemd-tmpfiles-setup-dev-early.service systemd-tmpfiles-setup-dev.service";

/// How long the port, or the disk, may take to be there, once its driver is. A machine without one costs the guest as long.
const SECONDS: u32 = 20;

fn attach(config: &mut MachineConfig) {
    let unit = unit(config.program.source());
    let wants = format!("[Unit]\nWants={UNIT}\n");
    for (name, value) in [
        (format!("systemd.extra-unit.{UNIT}"), unit.as_str()),
        ("systemd.unit-dropin.sysinit.target".to_owned(), &wants),
        ("tmpfiles.extra".to_owned(), &tmpfiles(&unit)),
    ] {
        let value = BASE64.encode(value.as_bytes());
        config.smbios.push(format!("io.systemd.credential.binary:{name}={value}"));
    }
}

/// The unit. It is there before the system is, and not in an initramfs: the agent waits for the end of the boot itself. Whatever becomes of
/// it, the guest is none the worse: a unit that failed would show in `systemctl is-system-running`.
pub(super) fn unit(program: ProgramSource) -> String {
    // In a command line of systemd's a dollar is written twice (systemd.service(5)).
    let script = format!("rm -f {LINK}; {}", enter::fetch(program, "serve", SECONDS)).replace('$', "$$");
    format!(
        "[Unit]\nDescription=Belljar's agent\nDefaultDependencies=no\nAfter={TMPFILES}\nIgnoreOnIsolate=yes\nConditionPathExists=!/etc/initrd-release\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nKillMode=process\nStandardOutput=null\nStandardError=null\n\
         Environment=HOME=/root USER=root LOGNAME=root SHELL=/bin/sh\n\
         ExecStart=-/bin/sh -c '{script}'\n"
    )
}

/// Lines for systemd-tmpfiles, which put the unit, and a rule for udev by which systemd wants it, where both look. They have to be there before udev
/// is: it looks for new rules every three seconds at most, so that what it is told of later may well meet the old ones, and nothing else would
/// come. Before udev only `/dev` is set up (systemd-tmpfiles-setup-dev.service, in which lines for `/dev` count): from there a link leads to `/run`.
fn tmpfiles(unit: &str) -> String {
    // Escapes of C's are undone in the argument, and a per cent sign begins a specifier (tmpfiles.d(5)).
    let text = unit.replace('\\', "\\\\").replace('\n', "\\n").replace('%', "%%");
    let rule = format!("SUBSYSTEM==\"block|net|tty\", TAG+=\"systemd\", ENV{{SYSTEMD_WANTS}}+=\"{UNIT}\"");
    format!(
        "L {LINK} - - - - /run\n\
         f {LINK}/systemd/system/{UNIT} 0644 root root - {text}\n\
         f {LINK}/udev/rules.d/99-belljar.rules 0644 root root - {rule}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_comes_by_two_ways_and_is_the_same() {
        let mut config = MachineConfig::default();
        attach(&mut config);
        let decoded: Vec<(String, String)> = config
            .smbios
            .iter()
            .map(|string| {
                let (name, value) =
                    string.strip_prefix("io.systemd.credential.binary:").unwrap().split_once('=').unwrap();
                (name.to_owned(), String::from_utf8(BASE64.decode(value.as_bytes()).unwrap()).unwrap())
            })
            .collect();
        insta::assert_snapshot!(decoded.iter().map(|(name, value)| format!("--- {name}\n{value}")).collect::<String>());
        let lines: Vec<&str> = decoded[2].1.lines().collect();
        assert_eq!(lines.len(), 3, "a line that is broken is none of tmpfiles'");
        let escaped = lines[1].split_once(" root root - ").unwrap().1;
        assert_eq!(escaped.replace("\\n", "\n"), decoded[0].1);
        assert!(!decoded[0].1.contains(['%', '\\']), "neither systemd nor tmpfiles may read anything into it");
        assert!(config.smbios.iter().all(|string| string.len() < 2048));
        config.smbios.clear();
        config.program.on_disk = Some(belljar_share_disk::layout::Program { blocks: 9999, sum: u32::MAX });
        attach(&mut config);
        let lengths: Vec<_> = config.smbios.iter().map(String::len).collect();
        assert!(lengths.iter().all(|length| *length < 2048), "{lengths:?}");
        let of_disk = unit(config.program.source());
        assert!(of_disk.contains("belljar-share-1") && !of_disk.contains("virtio"), "{of_disk}");
    }
}
