//! Ignition, which sets a system up at its first boot (Fedora CoreOS, Flatcar): it finds in the firmware's configuration device a unit for systemd that
//! starts the agent. Source: Ignition's "Configuration Specification v3.0.0", which all of its versions since 2.0 read, and the file's name for QEMU from its
//! "Supported Platforms".

use belljar_guest_spec::Access;

use super::{Agent, Rung, Start, credentials, image_if_asked};
use crate::qemu::args::{MachineConfig, ProgramSource};

pub(super) const IGNITION: Rung = Rung {
    name: "ignition",
    word: Access::Ignition,
    suits: image_if_asked,
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "was started by the guest's systemd, by a unit that the guest's Ignition has made",
        awaited: "was to be started by the guest's systemd, by a unit that the guest's Ignition makes at its first boot",
        in_copy: "it was started in its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::ByImage,
};

/// Where Ignition looks in a machine of QEMU's.
const FILE: &str = "opt/com.coreos/config";

fn attach(config: &mut MachineConfig) {
    config.fw_cfg.push((FILE.to_owned(), ignition_config(config.program.source())));
}

/// The same unit as by a credential, which is enabled by what its last section says.
fn ignition_config(program: ProgramSource) -> String {
    let unit = format!("{}[Install]\nWantedBy=sysinit.target\n", credentials::unit(program));
    let unit = serde_json::json!({ "name": credentials::UNIT, "enabled": true, "contents": unit });
    serde_json::json!({ "ignition": { "version": "3.0.0" }, "systemd": { "units": [unit] } }).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_configuration_is_as_the_specification_has_it() {
        let mut config = MachineConfig::default();
        attach(&mut config);
        let [(name, text)] = &config.fw_cfg[..] else { panic!("{:?}", config.fw_cfg) };
        assert_eq!(name, "opt/com.coreos/config");
        let json: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json["ignition"], serde_json::json!({ "version": "3.0.0" }));
        let unit = &json["systemd"]["units"][0];
        assert!(unit["name"].as_str().unwrap().ends_with(".service") && unit["enabled"] == true);
        let contents = unit["contents"].as_str().unwrap();
        let sections: Vec<_> = contents.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"]);
        insta::assert_snapshot!(text);
        // On the command line a comma ends a value, and is doubled to be none.
        let args = config.to_args().unwrap();
        let at = args.iter().position(|arg| arg == "-fw_cfg").unwrap();
        let expected = format!("name={name},string={}", text.replace(',', ",,"));
        assert_eq!(args[at + 1].to_str().unwrap(), expected);
    }
}
