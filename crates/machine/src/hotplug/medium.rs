//! The medium of a removable disk: it is taken out, and put in again, while the device stays.

use serde_json::{Value, json};

use super::{Hotplug, say};
use crate::{
    console::sanitize::sanitize_line,
    lab::Lab,
    qemu::qmp::{Qmp, Raw},
};

/// What is to become of the medium of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediumOrder {
    /// It comes out; with `force` also if the guest holds it.
    Eject {
        /// As with a pin in the hole that drives have for that.
        force: bool,
    },
    /// It is put in again.
    Insert,
}

impl MediumOrder {
    /// Reads `NAME eject [force]` and `NAME insert`: the disk's name, and the order. `None`: it is another order to a disk.
    ///
    /// # Errors
    /// Says what there is instead.
    pub(crate) fn parse(text: &str) -> Option<Result<(String, Self), String>> {
        let mut words = text.split_whitespace();
        let (name, word) = (words.next()?, words.next()?);
        let rest: Vec<&str> = words.collect();
        let order = match (word, &rest[..]) {
            ("eject", []) => Self::Eject { force: false },
            ("eject", ["force"]) => Self::Eject { force: true },
            ("insert", []) => Self::Insert,
            ("eject" | "insert", _) => {
                return Some(Err("there are disk NAME eject, eject force, and insert".to_owned()));
            }
            _ => return None,
        };
        Some(Ok((name.to_owned(), order)))
    }
}

impl Hotplug {
    /// Takes the medium out of the disk of this name, or puts it in again.
    ///
    /// # Errors
    /// Why that was not done, for a person.
    pub(crate) async fn move_medium(
        &mut self,
        name: &str,
        order: MediumOrder,
        qmp: &Qmp,
        lab: &Lab,
    ) -> Result<(), String> {
        let slot = self.all.iter_mut().find(|slot| slot.device.name.as_deref() == Some(name));
        let told = sanitize_line(name.as_bytes());
        let slot = slot.ok_or_else(|| {
            format!(
                "there is no disk {told:?} whose medium could be taken out: it would be one with a serial number and `removable = true`, on scsi or usb"
            )
        })?;
        if !slot.device.has_medium() {
            return Err(format!(
                "the medium of the disk {told} cannot be taken out: it is not `removable`, which disks on scsi and usb can be"
            ));
        }
        if slot.is_in.iter().any(|is_in| !is_in) {
            return Err(format!("the disk {told} is not plugged in"));
        }
        let wants_in = order == MediumOrder::Insert;
        if wants_in != slot.is_ejected {
            let is = if wants_in { "in" } else { "out" };
            return Err(format!("the medium of the disk {told} is {is} already"));
        }
        let media: Vec<_> = slot.device.parts.iter().filter_map(|part| part.medium.clone()).collect();
        match order {
            MediumOrder::Insert => {
                for medium in &media {
                    let put = json!({ "id": medium.device, "node-name": medium.node });
                    say(qmp, Raw::new("blockdev-insert-medium", put)).await?;
                    say(qmp, Raw::new("blockdev-close-tray", json!({ "id": medium.device }))).await?;
                }
                slot.is_ejected = false;
            }
            MediumOrder::Eject { force } => {
                let held = || {
                    format!(
                        "the guest holds the medium of the disk {told}: it is mounted, or open; `eject force` takes it all the same"
                    )
                };
                let all = if force { Value::Null } else { say(qmp, Raw::new("query-block", json!({}))).await? };
                if media.iter().any(|medium| is_locked(&all, &medium.device)) {
                    return Err(held());
                }
                for medium in &media {
                    let open = json!({ "id": medium.device, "force": force });
                    say(qmp, Raw::new("blockdev-open-tray", open)).await?;
                }
                lab.note_harm(name, None);
                // QEMU takes a medium out when nothing is asked of it any more, and would wait for what hangs.
                let is_let_go = slot.device.is_served && lab.let_go_of(name).await?;
                let mut removed = Ok(());
                for medium in &media {
                    let remove = json!({ "id": medium.device });
                    let done = say(qmp, Raw::new("blockdev-remove-medium", remove)).await;
                    // If something is out that is not known to be wholly out, it can be put in all the same.
                    slot.is_ejected |= done.is_ok();
                    removed = removed.and(done.map(drop));
                }
                if is_let_go {
                    lab.give_power(name).await?;
                }
                // A guest that came to hold it meanwhile is asked for it by QEMU, which answers as if it were open.
                removed.map_err(|why| if why.contains("is not open") { held() } else { why })?;
            }
        }
        Ok(())
    }
}

/// Whether the guest holds the medium in this device. `all` is what QEMU's `query-block` says.
fn is_locked(all: &Value, device: &str) -> bool {
    all.as_array().into_iter().flatten().any(|one| one["qdev"] == device && one["locked"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_that_the_guest_holds_is_known() {
        let all = json!([{ "qdev": "disk1-device", "locked": true }, { "qdev": "disk2-device", "locked": false }, { "device": "x" }]);
        assert!(is_locked(&all, "disk1-device"));
        assert!(!is_locked(&all, "disk2-device") && !is_locked(&all, "disk3-device") && !is_locked(&Value::Null, "x"));
    }

    #[test]
    fn orders_to_a_medium_are_told_from_others() {
        let read = |text| MediumOrder::parse(text);
        assert_eq!(read("a eject"), Some(Ok(("a".to_owned(), MediumOrder::Eject { force: false }))));
        assert_eq!(read(" a  eject force "), Some(Ok(("a".to_owned(), MediumOrder::Eject { force: true }))));
        assert_eq!(read("a insert"), Some(Ok(("a".to_owned(), MediumOrder::Insert))));
        for other in ["", "a", "a error", "eject", "a heal eject"] {
            assert_eq!(read(other), None, "{other}");
        }
        for wrong in ["a eject now", "a insert force", "a eject force force"] {
            assert!(read(wrong).unwrap().is_err(), "{wrong}");
        }
    }
}
