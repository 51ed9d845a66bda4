//! cloud-init, which a cloud's images have: it takes what it is to do from a disk labelled `cidata` (cloud-init's NoCloud), and starts the agent early
//! in each boot.
//!
//! It comes late in the order: cloud-init is slow, and writes into the guest, where it stays switched off as long as no disk has anything for it to do.
//! So all that it is given to do is to run one command, before there is a network: none of its modules for users, keys, names, locales or disks
//! is in the lists that it gets. Alpine's tiny-cloud and FreeBSD's nuageinit look for the same disk.

use belljar_guest_spec::Access;
use belljar_image::seed::{SeedError, seed_disk};

use super::{Agent, Rung, Start, image_if_asked, nothing};
use crate::{enter, qemu::args::ProgramSource};

pub(super) const CLOUD_INIT: Rung = Rung {
    name: "cloud-init",
    word: Access::CloudInit,
    suits: image_if_asked,
    attach: nothing,
    rules: &[],
    agent: Some(Agent {
        which: "was started by the guest's cloud-init, which was told to by a disk labelled cidata",
        awaited: "was to be started by the guest's cloud-init, which is told to by a disk labelled cidata",
        in_copy: "it was started in its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: Some(Seed { serial: "belljar-cidata", make }),
    start: Start::ByImage,
};

/// A small disk by which a rung tells a program in the guest what to do.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// The disk's serial number, by which a person knows it.
    pub serial: &'static str,
    /// The disk's bytes for a boot that has this name, which no other has, in a machine whose agent comes from there.
    pub make: fn(&str, ProgramSource) -> Result<Vec<u8>, SeedError>,
}

/// How long the port, or the disk, may take to be there: its driver may not be loaded yet.
const SECONDS: u32 = 20;

fn make(boot: &str, program: ProgramSource) -> Result<Vec<u8>, SeedError> {
    let (meta, user) = (meta_data(boot), user_data(program));
    seed_disk(
        "cidata",
        &[
            ("meta-data", meta.as_bytes()),
            ("user-data", user.as_bytes()),
            ("network-config", NETWORK_CONFIG.as_bytes()),
        ],
    )
}

/// A name that the guest has not had yet, so that nothing is taken for done; and that all is to be done before there is a network.
fn meta_data(boot: &str) -> String {
    format!("instance-id: belljar-{boot}\ndsmode: local\n")
}

/// The guest's network stays as the image has it.
const NETWORK_CONFIG: &str = "version: 1\nconfig: disabled\n";

/// What is to be done: JSON, which is YAML too. The keys after the lists hold where a system has its lists elsewhere.
fn user_data(program: ProgramSource) -> String {
    let script = format!(
        "unset INSTANCE_ID; export HOME=/root USER=root LOGNAME=root SHELL=/bin/sh; cd /; ({}) >/dev/null 2>&1 || :",
        enter::fetch(program, "serve", SECONDS)
    );
    let config = serde_json::json!({
        "bootcmd": [script],
        "cloud_init_modules": ["bootcmd"],
        "cloud_config_modules": [],
        "cloud_final_modules": [],
        "users": [],
        "preserve_hostname": true,
        "manage_etc_hosts": false,
        "ssh_deletekeys": false,
        "ssh_genkeytypes": [],
        "growpart": {"mode": "off"},
        "resize_rootfs": false,
    });
    format!("#cloud-config\n{config}\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use belljar_disk_reader::{Disk, Limits, inspect};
    use belljar_image::disk::{self, Format, Use};

    use super::*;

    #[test]
    fn the_disk_tells_of_one_command() {
        insta::assert_snapshot!(format!(
            "{}--\n{}--\n{NETWORK_CONFIG}",
            meta_data("7"),
            user_data(ProgramSource::Port)
        ));
    }

    #[test]
    fn what_is_written_is_what_another_reader_sees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        fs_err::write(&path, make("7", ProgramSource::Port).unwrap()).unwrap();
        let image = disk::inspect(Path::new("qemu-img"), &path, Some(Format::Raw), Use::Data).unwrap();
        let found = inspect(&Disk::open(&image, Path::new("qemu-img"), Limits::default()).unwrap()).unwrap();
        let [volume] = &found.volumes[..] else { panic!("it has partitions: {found:?}") };
        assert_eq!((volume.content.label.as_str(), volume.unreadable.as_ref()), ("cidata", None));
        let read = |name| String::from_utf8(found.read_path(0, name, 64 << 10).unwrap()).unwrap();
        assert_eq!(found.list_path(0, "/").unwrap(), ["meta-data", "network-config", "user-data"]);
        assert_eq!(read("/meta-data"), meta_data("7"));
        assert_eq!(read("/user-data"), user_data(ProgramSource::Port));
        assert_eq!(read("/network-config"), NETWORK_CONFIG);
        assert!(!found.has_boot_code || found.loader == belljar_disk_reader::Loader::None, "nothing boots from it");
    }
}
