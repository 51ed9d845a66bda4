//! The devices that the machine has, which may be plugged in and out while it runs.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use belljar_proto::message::{DeviceSign, WantedDevice};
use serde_json::{Value, json};

use crate::{
    args::{Args, Opt},
    check::DEVICES,
    machine::Machine,
    migrate::Manners,
};

/// Properties that the state of a machine depends on, or that the guest sees.
const TELLING: [&str; 9] = ["id", "bus", "addr", "serial", "mount_tag", "scsi-id", "mac", "nr", "unit"];

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    driver: String,
    properties: Vec<(String, String)>,
}

impl Device {
    fn get(&self, key: &str) -> Option<&str> {
        self.properties.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// As it stands in a frozen machine's state.
    fn told(&self) -> String {
        let told = TELLING.iter().filter_map(|key| Some(format!("{key}={}", self.get(key)?)));
        std::iter::once(self.driver.clone()).chain(told).collect::<Vec<_>>().join(",")
    }

    fn of_option(opt: &Opt) -> Self {
        let properties = opt.keys.iter().filter(|(k, _)| *k != "driver").map(|(k, v)| (k.clone(), v.clone())).collect();
        Self { driver: opt.driver().to_owned(), properties }
    }

    fn of_json(value: &Value) -> Result<Self, String> {
        let mut properties = Vec::new();
        for (key, value) in value.as_object().into_iter().flatten() {
            match value {
                Value::String(text) => properties.push((key.clone(), text.clone())),
                Value::Number(number) => properties.push((key.clone(), number.to_string())),
                Value::Bool(on) => properties.push((key.clone(), if *on { "on" } else { "off" }.to_owned())),
                _ => return Err(format!("Invalid parameter type for '{key}'")),
            }
        }
        // As QEMU 9.2 and later are.
        for key in ["scsi-id", "lun", "channel", "bootindex"] {
            if value.get(key).is_some_and(Value::is_string) {
                return Err(format!("Invalid parameter type for '{key}', expected: integer"));
            }
        }
        let driver = value["driver"].as_str().ok_or("Parameter 'driver' is missing")?.to_owned();
        properties.retain(|(key, _)| key != "driver");
        Ok(Self { driver, properties })
    }
}

#[derive(Debug, Default)]
struct Inner {
    devices: Vec<Device>,
    nodes: BTreeSet<String>,
    networks: BTreeSet<String>,
    /// What there is of flash memory.
    flash: Vec<String>,
    /// Plugged in, and never seen by the guest.
    unseen: BTreeSet<String>,
}

/// The machine's devices.
#[derive(Debug)]
pub(crate) struct Hardware(Mutex<Inner>);

impl Hardware {
    /// As the command line says.
    pub(crate) fn new(args: &Args) -> Self {
        let of_machine = |name: &&str| args.last("machine").is_some_and(|machine| machine.get(name).is_some());
        let ids = |name: &str| args.all(name).filter_map(Opt::id).map(str::to_owned).collect();
        Self(Mutex::new(Inner {
            devices: args.all("device").map(Device::of_option).collect(),
            nodes: ids("blockdev"),
            networks: ids("netdev"),
            flash: ["pflash0", "pflash1"].into_iter().filter(of_machine).map(str::to_owned).collect(),
            unseen: BTreeSet::new(),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `netdev_add`.
    pub(crate) fn add_network(&self, arguments: &Value) -> Result<(), String> {
        let id = arguments["id"].as_str().ok_or("Parameter 'id' is missing")?;
        if arguments["type"] != "user" {
            return Err("Invalid parameter 'type'".into());
        }
        if self.inner().networks.insert(id.to_owned()) {
            Ok(())
        } else {
            Err(format!("Duplicate ID '{id}' for netdev"))
        }
    }

    /// `netdev_del`.
    pub(crate) fn remove_network(&self, arguments: &Value) -> Result<(), String> {
        let id = arguments["id"].as_str().ok_or("Parameter 'id' is missing")?;
        if self.inner().networks.remove(id) { Ok(()) } else { Err(format!("Device '{id}' not found")) }
    }

    /// What a machine's state says of its devices; why there can be none.
    pub(crate) fn to_state(&self) -> Result<Vec<String>, String> {
        let inner = self.inner();
        if inner.devices.iter().any(|d| d.driver == "nvme") {
            return Err("State blocked by non-migratable device '0000:00:10.0/nvme'".into());
        }
        let mut told: Vec<String> = inner.devices.iter().map(Device::told).collect();
        // QEMU's own network is in the state, too.
        told.extend(inner.networks.iter().map(|_| "slirp".to_owned()));
        told.extend(inner.flash.iter().cloned());
        told.sort();
        Ok(told)
    }

    /// Whether a state is of a machine with these devices.
    pub(crate) fn fits(&self, state: &Value) -> Result<(), String> {
        let ours = self.to_state()?;
        let theirs: Vec<&str> = state.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if ours == theirs {
            return Ok(());
        }
        let other = ours.iter().map(String::as_str).filter(|d| !theirs.contains(d));
        let unknown = theirs.iter().copied().filter(|d| !ours.iter().any(|o| o == d));
        let all: Vec<&str> = unknown.chain(other).collect();
        Err(format!("Unknown savevm section or instance: {}", all.join("; ")))
    }

    /// Whether the guest shows this of a device.
    pub(crate) fn shows(&self, wanted: &WantedDevice) -> bool {
        let inner = self.inner();
        let slot = |device: &Device| {
            let number = device.get("addr").and_then(|a| u8::from_str_radix(a.trim_start_matches("0x"), 16).ok())?;
            Some(format!("0000:00:{number:02x}.0"))
        };
        let seen = |device: &&Device| device.get("id").is_none_or(|id| !inner.unseen.contains(id));
        let here: Vec<&Device> =
            inner.devices.iter().filter(seen).filter(|d| slot(d).as_deref() == Some(&wanted.pci)).collect();
        let has = |driver: &str| here.iter().any(|d| d.driver == driver);
        match wanted.sign {
            DeviceSign::Gone => here.is_empty(),
            DeviceSign::Network => here.iter().any(|d| d.get("netdev").is_some()),
            DeviceSign::ScsiHost => has("virtio-scsi-pci"),
            DeviceSign::Disks(count) => {
                let scsi = inner.devices.iter().filter(seen).filter(|d| d.driver == "scsi-hd").count();
                let own = here.iter().filter(|d| d.get("drive").is_some()).count();
                let all = if has("virtio-scsi-pci") { scsi } else { own };
                all >= count as usize
            }
        }
    }
}

/// `device_add`, before the answer.
pub(crate) fn add(machine: &Machine, arguments: &Value) -> Result<(), String> {
    if machine.options.device_add == Manners::Refuse {
        return Err("device_add: said by the script".into());
    }
    let device = Device::of_json(arguments)?;
    let mut inner = machine.hardware.inner();
    let bus = DEVICES.iter().find(|(name, _)| *name == device.driver).map(|(_, bus)| *bus);
    let bus = bus.ok_or_else(|| format!("'{}' is not a valid device model name", device.driver))?;
    let id = device.get("id").ok_or("a device without an id, which could never be named")?.to_owned();
    if inner.devices.iter().any(|d| d.get("id") == Some(&id)) {
        return Err(format!("Duplicate device ID '{id}'"));
    }
    match bus {
        "PCI" => {
            let at = (device.get("bus"), device.get("addr"));
            if at.0 != Some("pci.0") || at.1.is_none() {
                return Err(format!("{id}: plugged in without a slot of its own: its copies would have others"));
            }
            if inner.devices.iter().any(|d| (d.get("bus"), d.get("addr")) == at) {
                return Err(format!(
                    "PCI: slot {} function 0 not available for {}",
                    at.1.unwrap_or_default(),
                    device.driver
                ));
            }
        }
        "SCSI" => {
            let adapter = device.get("bus").and_then(|b| b.strip_suffix(".0")).unwrap_or_default();
            if !inner.devices.iter().any(|d| d.get("id") == Some(adapter)) {
                return Err(format!("Bus '{adapter}.0' not found"));
            }
        }
        _ => return Err(format!("Bus '{bus}' does not support hotplugging")),
    }
    if let Some(drive) = device.get("drive") {
        if !inner.nodes.contains(drive) {
            return Err(format!("Property '{}.drive' can't find value '{drive}'", device.driver));
        }
        if inner.devices.iter().any(|d| d.get("drive") == Some(drive)) {
            return Err(format!("Drive '{drive}' is already in use"));
        }
    }
    if let Some(network) = device.get("netdev")
        && !inner.networks.contains(network)
    {
        return Err(format!("Property '{}.netdev' can't find value '{network}'", device.driver));
    }
    if machine.options.device_add == Manners::Fail {
        inner.unseen.insert(id);
    }
    inner.devices.push(device);
    Ok(())
}

/// `device_del`, before the answer. Gives the device that the guest lets go of at once.
pub(crate) fn remove(machine: &Machine, arguments: &Value) -> Result<Option<String>, String> {
    let id = arguments["id"].as_str().ok_or("Parameter 'id' is missing")?;
    let mut inner = machine.hardware.inner();
    if !inner.devices.iter().any(|d| d.get("id") == Some(id)) {
        return Err(format!("Device '{id}' not found"));
    }
    match machine.options.device_del {
        Manners::Obey => {
            inner.devices.retain(|d| d.get("id") != Some(id));
            Ok(Some(id.to_owned()))
        }
        Manners::Refuse => Err("device_del: said by the script".into()),
        _ => Ok(None),
    }
}

/// What QEMU reports of a device that is gone.
pub(crate) fn deleted(id: &str) -> Value {
    json!({ "device": id, "path": format!("/machine/peripheral/{id}") })
}
