//! Devices that go out of a machine that runs, and come into it, because a test says so.
//!
//! A device on PCI, a processor and a memory module go when the guest has let go of them, for which QEMU asks it (`docs/system/`, "Hotplug"); disks on
//! SCSI and USB go at once, as when they are pulled.

pub(crate) mod medium;

use std::{fmt, time::Duration};

use belljar_guest_spec::machine_order::Device;
use serde_json::{Value, json};

use crate::{
    console::sanitize::sanitize_line,
    lab::Lab,
    qemu::{
        args::{Accel, CARD, MachineConfig, Ram, Removable},
        qmp::{DeviceAdd, DeviceDel, EventStream, Qmp, QmpCommand, QmpError, Raw, SetLink},
    },
};

/// How long a guest has to let go of a device.
const LIMIT: Duration = Duration::from_secs(60);
/// How long its kernel has to say whether it takes a processor or memory.
const TAKEN: Duration = Duration::from_secs(10);
/// At a multiple of this memory may begin, in bytes; QEMU has as much room for each module beside its size (`enforce_aligned_dimm`).
const MEMORY_PLACE: u64 = 1 << 30;

/// What may go out of one machine and come into it, and what of it is in.
#[derive(Debug, Default)]
pub(crate) struct Hotplug {
    all: Vec<Slot>,
    /// Processors and memory modules that have come, QEMU's names of them.
    cpus: Vec<String>,
    memory: Vec<String>,
    /// How many of these have come so far.
    count: u32,
    /// The machine's memory is lent to processes beside QEMU, so that what comes has to be, too.
    lends_memory: bool,
    /// The machine runs without KVM.
    is_emulated: bool,
    /// Its guest is told of what comes by ACPI, and says what it has made of it.
    says_what_came: bool,
    /// The guest was asked to let go of something, has not, and may still do so.
    is_unsure: bool,
}

/// A device and its parts.
#[derive(Debug)]
struct Slot {
    device: Removable,
    /// Whether each part is in.
    is_in: Vec<bool>,
    /// It was taken by surprise, for which its server has cut its power.
    is_cut: bool,
    /// Its medium is out.
    is_ejected: bool,
}

impl Hotplug {
    pub(crate) fn of(config: &MachineConfig) -> Self {
        let slot = |device: Removable| Slot {
            is_in: vec![device.is_in; device.parts.len()],
            is_cut: false,
            is_ejected: false,
            device,
        };
        Self {
            all: config.removable().into_iter().map(slot).collect(),
            lends_memory: config.ram == Ram::Lent,
            is_emulated: config.accel == Accel::Tcg,
            says_what_came: config.platform.processor.name == "x86_64",
            ..Self::default()
        }
    }

    /// What is in or out otherwise than at first, for a person; nothing where all is as it was.
    pub(crate) fn changed(&self) -> Option<String> {
        let slots = self.all.iter().filter(|slot| slot.is_in.iter().any(|is_in| *is_in != slot.device.is_in));
        let mut all: Vec<String> = slots.map(|slot| slot.device.told()).collect();
        let ejected = self.all.iter().filter(|slot| slot.is_ejected);
        all.extend(ejected.map(|slot| format!("the medium of {}", slot.device.told())));
        if !self.cpus.is_empty() {
            all.push("processors".to_owned());
        }
        if !self.memory.is_empty() {
            all.push("memory".to_owned());
        }
        if self.is_unsure {
            all.push("what it may still let go of".to_owned());
        }
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Takes a device out.
    ///
    /// # Errors
    /// Why it is still in, for a person.
    pub(crate) async fn unplug(&mut self, device: &Device, surprise: bool, qmp: &Qmp, lab: &Lab) -> Result<(), String> {
        // Until it is known, whoever is not there any more to hear it has to take it for possible.
        let was_unsure = std::mem::replace(&mut self.is_unsure, true);
        let done = self.take_out(device, surprise, qmp, lab).await;
        self.is_unsure = was_unsure || matches!(done, Err(Stays::MayStillGo));
        done.map_err(|stays| match (stays, lab.hangs()) {
            (Stays::MayStillGo, Some(hangs)) => format!("{}; {hangs}", Stays::MayStillGo),
            (stays, _) => stays.to_string(),
        })
    }

    async fn take_out(&mut self, device: &Device, surprise: bool, qmp: &Qmp, lab: &Lab) -> Result<(), Stays> {
        match device {
            Device::Disk { .. } | Device::Nic => {
                let slot = self.slot(device)?;
                let parts = slot.parts(device, true)?;
                if surprise && !slot.device.goes_at_once {
                    slot.silence(qmp, lab).await?;
                }
                if let Device::Disk { name, path } = device {
                    lab.note_harm(name, *path);
                }
                for part in parts {
                    delete(qmp, &slot.device.parts[part].id).await?;
                    slot.is_in[part] = false;
                }
                Ok(())
            }
            // QEMU 7.2 writes where it must not then, and QEMU 10 ends itself when another one comes (`tcg_register_thread`).
            Device::Cpu if self.is_emulated => {
                Err(Stays::Refused("without KVM, QEMU does not survive it that a processor is unplugged".to_owned()))
            }
            Device::Cpu => {
                let id = self.cpus.last().ok_or_else(|| {
                    "no processor was plugged in that could be unplugged; those of the start stay".to_owned()
                })?;
                delete(qmp, id).await?;
                self.cpus.pop();
                Ok(())
            }
            Device::Memory(_) => {
                let id = self.memory.last().ok_or_else(|| {
                    "no memory was plugged in that could be unplugged; that of the start stays".to_owned()
                })?;
                delete(qmp, id).await?;
                let object = json!({ "id": backend(id) });
                say(qmp, Raw::new("object-del", object)).await?;
                self.memory.pop();
                Ok(())
            }
        }
    }

    /// Has a device come. A network card comes with its cable in, or out. Gives what there is to say of it.
    ///
    /// # Errors
    /// Why it has not come, for a person.
    pub(crate) async fn plug(
        &mut self,
        device: &Device,
        is_cable_out: bool,
        qmp: &Qmp,
        lab: &Lab,
    ) -> Result<String, String> {
        match device {
            Device::Disk { .. } | Device::Nic => {
                let slot = self.slot(device)?;
                for part in slot.parts(device, false)? {
                    let whole = &slot.device.parts[part];
                    for device in &whole.devices {
                        say(qmp, DeviceAdd(device.json())).await?;
                    }
                    if let Some(id) = &whole.switch {
                        let property = json!({ "path": format!("/machine/peripheral/{id}"), "property": "attached", "value": true });
                        say(qmp, Raw::new("qom-set", property)).await?;
                    }
                    slot.is_in[part] = true;
                }
                // It comes with its medium.
                slot.is_ejected = false;
                slot.let_speak(is_cable_out, qmp, lab).await?;
                Ok(String::new())
            }
            Device::Cpu => {
                let free = self.free_cpu(qmp).await?;
                let id = self.next("cpu");
                let mut properties = free.get("props").cloned().unwrap_or_else(|| json!({}));
                properties["driver"] = free.get("type").cloned().unwrap_or(Value::Null);
                properties["id"] = json!(id);
                let mut events = qmp.events();
                say(qmp, DeviceAdd(properties)).await?;
                self.cpus.push(id.clone());
                self.taken(&mut events, &id).await
            }
            Device::Memory(bytes) => {
                let id = self.next("memory");
                let kind = if self.lends_memory { "memory-backend-memfd" } else { "memory-backend-ram" };
                let mut object = json!({ "qom-type": kind, "id": backend(&id), "size": bytes });
                if self.lends_memory {
                    object["share"] = json!(true);
                }
                say(qmp, Raw::new("object-add", object)).await?;
                let mut module = json!({ "driver": "pc-dimm", "id": id, "memdev": backend(&id) });
                if let Some(place) = place_for_memory(&say(qmp, Raw::new("query-memory-devices", json!({}))).await?) {
                    module["addr"] = json!(place);
                }
                let mut events = qmp.events();
                if let Err(why) = say(qmp, DeviceAdd(module)).await {
                    drop(say(qmp, Raw::new("object-del", json!({ "id": backend(&id) }))).await);
                    return Err(format!("{why}; `spare-memory` says how much can be plugged in"));
                }
                self.memory.push(id.clone());
                self.taken(&mut events, &id).await
            }
        }
    }

    /// Waits for what the guest makes of a processor or memory that has come.
    async fn taken(&self, events: &mut EventStream, id: &str) -> Result<String, String> {
        if !self.says_what_came {
            return Ok(String::new());
        }
        match tokio::time::timeout(TAKEN, verdict(events, id)).await {
            Ok(Some(0)) => Ok(String::new()),
            Ok(Some(status)) => Err(format!(
                "it is plugged in, and the guest's kernel does not take it (status {status} of ACPI's _OST); its own messages say why"
            )),
            Ok(None) => Err("QEMU ended".to_owned()),
            Err(_) => Ok(format!(
                "it is plugged in; the guest's kernel has not said within {} s whether it takes it",
                TAKEN.as_secs()
            )),
        }
    }

    fn slot(&mut self, device: &Device) -> Result<&mut Slot, String> {
        let wanted = match device {
            Device::Disk { name, .. } => Some(name.as_str()),
            _ => None,
        };
        let names: Vec<&str> = self.all.iter().filter_map(|slot| slot.device.name.as_deref()).collect();
        let unknown = match wanted {
            None => "this guest has no network card".to_owned(),
            Some(_) if names.is_empty() => {
                "this guest has no disk that could be plugged: it would be one beside that which is booted from, with a serial number".to_owned()
            }
            Some(name) => {
                format!("there is no disk {:?} to be plugged; there are {}", sanitize_line(name.as_bytes()), names.join(", "))
            }
        };
        self.all.iter_mut().find(|slot| slot.device.name.as_deref() == wanted).ok_or(unknown)
    }

    fn next(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("plugged-{kind}{}", self.count)
    }

    /// Where a processor may come.
    async fn free_cpu(&self, qmp: &Qmp) -> Result<Value, String> {
        let none =
            || "there is no place for a further processor; `spare-cpus` says how many can be plugged in".to_owned();
        let places = say(qmp, Raw::new("query-hotpluggable-cpus", json!({}))).await?;
        // The last one is the first (QEMU's `qmp_query_hotpluggable_cpus`).
        let free = places.as_array().into_iter().flatten().rev().find(|place| place.get("qom-path").is_none());
        free.cloned().ok_or_else(none)
    }
}

impl Slot {
    /// Its parts that are asked for, and are in, or out.
    fn parts(&self, device: &Device, are_in: bool) -> Result<Vec<usize>, String> {
        let all = match device {
            Device::Disk { path: Some(path), .. } => {
                let path = usize::try_from(*path).unwrap_or(usize::MAX);
                if path >= self.is_in.len() {
                    return Err(format!("{} has {}, counted from 0", self.device.told(), paths(self.is_in.len())));
                }
                path..path + 1
            }
            _ => 0..self.is_in.len(),
        };
        let parts: Vec<usize> = all.filter(|part| self.is_in[*part] == are_in).collect();
        if parts.is_empty() {
            return Err(format!("{} is {} already", self.device.told(), if are_in { "out" } else { "in" }));
        }
        Ok(parts)
    }

    /// Has it answer nothing more, before its guest is asked to let go of it.
    async fn silence(&mut self, qmp: &Qmp, lab: &Lab) -> Result<(), String> {
        match &self.device.name {
            None => say(qmp, SetLink { name: CARD, up: false }).await.map(drop),
            Some(name) if self.device.is_served => {
                self.is_cut = lab.cut_one(name).await?;
                Ok(())
            }
            Some(_) => Err(
                "QEMU takes no disk on this bus by surprise: take one on scsi or usb, or a lab disk, which answers nothing more then".to_owned(),
            ),
        }
    }

    /// What comes is a device like any other.
    async fn let_speak(&mut self, is_cable_out: bool, qmp: &Qmp, lab: &Lab) -> Result<(), String> {
        match &self.device.name {
            None => say(qmp, SetLink { name: CARD, up: !is_cable_out }).await.map(drop),
            Some(name) if std::mem::take(&mut self.is_cut) => lab.give_power(name).await,
            Some(_) => Ok(()),
        }
    }
}

impl Removable {
    /// Whether its medium can be taken out.
    fn has_medium(&self) -> bool {
        self.parts.iter().any(|part| part.medium.is_some())
    }

    /// What it is called where somebody is told of it.
    fn told(&self) -> String {
        self.name.as_ref().map_or_else(|| "the network card".to_owned(), |name| format!("the disk {name}"))
    }
}

fn paths(count: usize) -> String {
    format!("{count} {}", if count == 1 { "path" } else { "paths" })
}

/// Where memory has to come in a machine with persistent memory, if QEMU's choice would be wrong: behind that, of whatever size it is, and where a block of the
/// kernel's may begin, which is 2 GiB at most and 128 MiB in a small guest. `there` is what QEMU's `query-memory-devices` says.
fn place_for_memory(there: &Value) -> Option<u64> {
    let modules = || there.as_array().into_iter().flatten();
    let end = |module: &Value| Some(module["data"]["addr"].as_u64()? + module["data"]["size"].as_u64()?);
    let ends = |kind: &str| modules().filter(|module| module["type"] == kind).filter_map(end).max();
    let of_persistent = ends("nvdimm")?.next_multiple_of(MEMORY_PLACE);
    Some(ends("dimm").map_or(of_persistent, |end| end.max(of_persistent)))
}

/// What the guest's kernel says of a device that has come (QEMU's event `ACPI_DEVICE_OST`): 0 is well. `None`: QEMU has ended.
async fn verdict(events: &mut EventStream, id: &str) -> Option<u64> {
    while let Some(event) = events.next().await {
        if event.name == "ACPI_DEVICE_OST"
            && let Some(status) = status_of(&event.data, id)
        {
            return Some(status);
        }
    }
    None
}

/// The status in such an event, if it is of this device.
fn status_of(data: &Value, id: &str) -> Option<u64> {
    let info = &data["info"];
    (info["device"].as_str() == Some(id)).then(|| info["status"].as_u64()).flatten()
}

/// The name of what is behind a memory module.
fn backend(id: &str) -> String {
    format!("{id}-bytes")
}

async fn say<C: QmpCommand>(qmp: &Qmp, command: C) -> Result<C::Reply, String> {
    qmp.execute(command).await.map_err(|error| error.told())
}

/// Why a device is still in.
#[derive(Debug)]
enum Stays {
    /// It stays, for this reason.
    Refused(String),
    /// The guest was asked to let go of it, and has not yet.
    MayStillGo,
}

impl From<String> for Stays {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::MayStillGo => write!(
                f,
                "the guest did not let go of it within {} s; it may still do so. Its kernel needs a driver for that (ACPI hotplug), and requests \
                 that the device does not answer hold it up",
                LIMIT.as_secs()
            ),
        }
    }
}

/// Takes a device out, and waits until it is.
async fn delete(qmp: &Qmp, id: &str) -> Result<(), Stays> {
    let mut events = qmp.events();
    match qmp.execute(DeviceDel { id }).await {
        Ok(_) => {}
        // The guest has let go of it after somebody had given up waiting for that.
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => return Ok(()),
        // It was asked before, and may still do it.
        Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {}
        Err(error) => return Err(error.told().into()),
    }
    let gone = tokio::time::timeout(LIMIT, is_gone(&mut events, id)).await;
    gone.map_err(|_| Stays::MayStillGo)?.map_err(Stays::Refused)
}

/// Waits for what becomes of a device that the guest is to let go of (QEMU's `qapi/qdev.json`).
///
/// # Errors
/// Why it is not gone, for a person.
pub(crate) async fn is_gone(events: &mut EventStream, id: &str) -> Result<(), String> {
    while let Some(event) = events.next().await {
        if event.data.get("device").and_then(Value::as_str) != Some(id) {
            continue;
        }
        match event.name.as_str() {
            "DEVICE_DELETED" => return Ok(()),
            "DEVICE_UNPLUG_GUEST_ERROR" | "MEM_UNPLUG_ERROR" => {
                return Err("the guest refuses to let go of it: it is in use there".to_owned());
            }
            _ => {}
        }
    }
    Err("QEMU ended".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::args::RemovablePart;

    fn hotplug() -> Hotplug {
        let part = |id: &str| RemovablePart { id: id.to_owned(), devices: Vec::new(), switch: None, medium: None };
        let slot = |name: Option<&str>, parts: usize, is_in| Slot {
            device: Removable {
                name: name.map(str::to_owned),
                parts: vec![part("x"); parts],
                goes_at_once: false,
                is_served: false,
                is_in,
            },
            is_in: vec![is_in; parts],
            is_cut: false,
            is_ejected: false,
        };
        Hotplug {
            all: vec![slot(Some("a"), 2, true), slot(Some("b"), 1, false), slot(None, 1, true)],
            ..Hotplug::default()
        }
    }

    fn disk(name: &str, path: Option<u32>) -> Device {
        Device::Disk { name: name.to_owned(), path }
    }

    #[test]
    fn what_is_out_already_is_told() {
        let mut all = hotplug();
        let mut parts = |device: &Device, are_in| all.slot(device).and_then(|slot| slot.parts(device, are_in));
        assert_eq!(parts(&disk("a", None), true), Ok(vec![0, 1]));
        assert_eq!(parts(&disk("a", Some(1)), true), Ok(vec![1]));
        assert_eq!(parts(&disk("b", None), false), Ok(vec![0]));
        assert_eq!(parts(&Device::Nic, true), Ok(vec![0]));
        assert_eq!(parts(&Device::Nic, false).unwrap_err(), "the network card is in already");
        assert_eq!(parts(&disk("b", None), true).unwrap_err(), "the disk b is out already");
        assert_eq!(parts(&disk("a", Some(2)), true).unwrap_err(), "the disk a has 2 paths, counted from 0");
        assert_eq!(parts(&disk("c", None), true).unwrap_err(), "there is no disk \"c\" to be plugged; there are a, b");
        let mut none = Hotplug::default();
        assert!(none.slot(&disk("a", None)).unwrap_err().contains("with a serial number"));
        assert_eq!(none.slot(&Device::Nic).unwrap_err(), "this guest has no network card");
    }

    #[test]
    fn memory_comes_where_the_kernel_can_take_it() {
        const GIB: u64 = 1 << 30;
        let module = |kind: &str, addr: u64, size: u64| json!({ "type": kind, "data": { "addr": addr, "size": size } });
        let persistent = module("nvdimm", 4 * GIB, 64 << 20);
        assert_eq!(place_for_memory(&json!([])), None);
        assert_eq!(place_for_memory(&json!([module("dimm", 4 * GIB, GIB)])), None);
        assert_eq!(place_for_memory(&json!([persistent])), Some(5 * GIB));
        let first = module("dimm", 5 * GIB, 128 << 20);
        assert_eq!(place_for_memory(&json!([persistent, first])), Some(5 * GIB + (128 << 20)));
        let said = json!({ "info": { "device": "plugged-memory1", "slot": "0", "slot-type": "DIMM", "source": 1, "status": 1 } });
        assert_eq!(status_of(&said, "plugged-memory1"), Some(1));
        assert_eq!(status_of(&said, "plugged-memory2"), None);
    }

    #[test]
    fn what_is_otherwise_than_at_first_is_known() {
        let mut all = hotplug();
        assert_eq!(all.changed(), None);
        all.all[0].is_in[1] = false;
        all.all[1].is_in[0] = true;
        all.cpus.push("plugged-cpu1".to_owned());
        assert_eq!(all.changed().as_deref(), Some("the disk a, the disk b, processors"));
        all.cpus.clear();
        all.is_unsure = true;
        assert!(all.changed().unwrap().ends_with("what it may still let go of"));
        all.is_unsure = false;
        all.all[2].is_ejected = true;
        assert!(all.changed().unwrap().ends_with("the medium of the network card"));
        all.all[2].is_ejected = false;
        all.all[0].is_in[1] = true;
        all.all[1].is_in[0] = false;
        assert_eq!(all.changed(), None);
    }
}
