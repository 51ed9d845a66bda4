//! Whether a guest's network cards are through with what was begun with them: a guest that is frozen in the middle of it hands the
//! middle to each of its copies, and there the card's address changes under whoever configures it. systemd-networkd(8) 252 for one,
//! told of another address between the card's coming up and its carrier, never asks for an address on the network.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys;

/// How long is waited, at most: what answers stands beside the guest, and answers at once or never.
const LIMIT: Duration = Duration::from_secs(10);
/// How soon is looked again.
const PAUSE: Duration = Duration::from_millis(100);
/// `<linux/if.h>`: somebody has switched the card on.
const IFF_UP: u32 = 1;
/// `<linux/if_ether.h>`: what a DHCP client listens to, by itself or with all the rest.
const DHCP_PROTOCOLS: [&str; 2] = ["0800", "0003"];

/// The cards of a guest as it was frozen.
#[derive(Default)]
pub(crate) struct Cards {
    pub(crate) names: Vec<OsString>,
    /// Whether one of them had an IPv4 address.
    pub(crate) addressed: bool,
}

impl Cards {
    pub(crate) fn now() -> Self {
        let names = names(Path::new("/"));
        let addressed = names.iter().any(|card| is_addressed(card));
        Self { names, addressed }
    }
}

/// Waits until nothing is under way, or the limit is over. `addressed` tells that the guest had a card with an address before, which it
/// will want to have again.
pub(crate) fn settle(addressed: bool) {
    let until = Instant::now() + LIMIT;
    while is_under_way(Path::new("/"), addressed, is_addressed) && Instant::now() < until {
        std::thread::sleep(PAUSE);
    }
}

/// The names of the network cards.
pub(crate) fn names(root: &Path) -> Vec<OsString> {
    let cards = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    cards.map(|card| card.file_name()).filter(|card| card != "lo").collect()
}

fn is_addressed(card: &OsStr) -> bool {
    sys::has_ipv4(card.as_encoded_bytes()) == Ok(true)
}

fn is_under_way(root: &Path, addressed: bool, is_addressed: impl Fn(&OsStr) -> bool) -> bool {
    let net = root.join("sys/class/net");
    let read = |card: &OsStr, what: &str| {
        let text = fs::read_to_string(net.join(card).join(what)).unwrap_or_default();
        text.trim().to_owned()
    };
    // Bridges and the like are nobody's hardware.
    let cards: Vec<_> = names(root).into_iter().filter(|card| net.join(card).join("device").exists()).collect();
    if cards.iter().any(|card| is_addressed(card)) {
        return cards.iter().any(|card| has_news(&read, card));
    }
    let listened = |card: &OsStr| is_listened_to(root, &read(card, "ifindex"));
    let plugged_in = |card: &OsStr| !is_up(&read, card) || read(card, "carrier") == "1";
    cards.iter().any(|card| has_news(&read, card) || listened(card) || addressed && plugged_in(card))
}

fn is_up(read: &impl Fn(&OsStr, &str) -> String, card: &OsStr) -> bool {
    let flags = read(card, "flags");
    u32::from_str_radix(flags.trim_start_matches("0x"), 16).is_ok_and(|flags| flags & IFF_UP != 0)
}

/// Whether the card has a carrier of which the kernel has not told yet, which it does up to a second later (`net/core/link_watch.c`).
fn has_news(read: &impl Fn(&OsStr, &str) -> String, card: &OsStr) -> bool {
    is_up(read, card) && read(card, "carrier") == "1" && read(card, "operstate") == "down"
}

/// Whether somebody waits for packets on a card without an address, as DHCP clients do (packet(7), proc(5)).
fn is_listened_to(root: &Path, ifindex: &str) -> bool {
    let sockets = fs::read_to_string(root.join("proc/net/packet")).unwrap_or_default();
    // sk, RefCnt, Type, Proto, Iface, R, Rmem, User, Inode
    sockets.lines().skip(1).any(|socket| {
        let mut words = socket.split_whitespace().skip(3);
        let protocol = words.next().is_some_and(|word| DHCP_PROTOCOLS.contains(&word));
        protocol && words.next() == Some(ifindex)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Lab(PathBuf);

    impl Lab {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("belljar-network-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("proc/net")).unwrap();
            let lab = Self(root);
            lab.card("lo", "0x9", "1", "unknown");
            lab.listen("0806", 2);
            lab
        }

        fn card(&self, name: &str, flags: &str, carrier: &str, state: &str) {
            let card = self.0.join("sys/class/net").join(name);
            fs::create_dir_all(&card).unwrap();
            if name != "lo" && name != "br0" {
                fs::create_dir_all(card.join("device")).unwrap();
            }
            for (what, text) in [("flags", flags), ("carrier", carrier), ("operstate", state), ("ifindex", "2")] {
                fs::write(card.join(what), format!("{text}\n")).unwrap();
            }
        }

        fn listen(&self, protocol: &str, ifindex: u32) {
            let text = format!(
                "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                 ffff8881 3      10   {protocol}   {ifindex}     1 0      998    4711\n"
            );
            fs::write(self.0.join("proc/net/packet"), text).unwrap();
        }

        fn is_under_way(&self, before: bool, now: bool) -> bool {
            is_under_way(&self.0, before, |_| now)
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_guest_without_cards_waits_for_nothing() {
        let lab = Lab::new("none");
        assert!(!lab.is_under_way(false, false) && !lab.is_under_way(true, false));
        lab.card("br0", "0x1003", "1", "down");
        assert!(!lab.is_under_way(true, false), "a bridge is no card");
    }

    #[test]
    fn a_carrier_is_waited_for_until_the_kernel_has_told_of_it() {
        let lab = Lab::new("carrier");
        lab.card("ens4", "0x1003", "1", "down");
        assert!(lab.is_under_way(false, false));
        assert!(lab.is_under_way(false, true), "with an address, too");
        lab.card("ens4", "0x1003", "0", "down");
        assert!(!lab.is_under_way(false, false), "there is none");
        lab.card("ens4", "0x1003", "1", "up");
        assert!(!lab.is_under_way(false, false));
        lab.card("ens4", "0x1002", "", "down");
        assert!(!lab.is_under_way(false, false), "nobody has switched it on");
    }

    #[test]
    fn an_address_is_waited_for_where_somebody_asks_for_it() {
        let lab = Lab::new("asked");
        lab.card("ens4", "0x1003", "1", "up");
        for (protocol, ifindex, expected) in
            [("0800", 2, true), ("0003", 2, true), ("88cc", 2, false), ("0800", 3, false)]
        {
            lab.listen(protocol, ifindex);
            assert_eq!(lab.is_under_way(false, false), expected, "{protocol} {ifindex}");
            assert!(!lab.is_under_way(false, true), "it is there");
        }
    }

    #[test]
    fn an_address_is_waited_for_where_a_card_had_one() {
        let lab = Lab::new("had");
        lab.card("ens4", "0x1002", "", "down");
        assert!(lab.is_under_way(true, false), "it will be switched on");
        lab.card("ens4", "0x1003", "1", "up");
        assert!(lab.is_under_way(true, false) && !lab.is_under_way(true, true) && !lab.is_under_way(false, false));
        lab.card("ens4", "0x1003", "0", "down");
        assert!(!lab.is_under_way(true, false), "nothing is to be had without a carrier");
    }

    #[test]
    fn the_loopback_interface_is_no_card() {
        assert!(!names(Path::new("/")).iter().any(|card| card == "lo"));
        assert!(is_addressed(OsStr::new("lo")) || !Path::new("/sys/class/net/lo").exists());
        assert!(!is_addressed(OsStr::new("belljar-none")));
    }
}
