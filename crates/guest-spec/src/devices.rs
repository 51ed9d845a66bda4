//! Devices of a machine beside its disks, its network card and its TPM, as they are asked for.

use crate::words;

words! {
    /// The device that resets a machine whose guest does not feed it in time.
    #[derive(Default)]
    Watchdog {
        /// What is usual on the guest's platform.
        #[default]
        Auto = "auto",
        /// Intel's 6300ESB, on a PCI bus.
        I6300esb = "i6300esb",
        /// iBASE's 700, on a PC's ISA bus.
        Ib700 = "ib700",
        /// That of the chipset of the machine type q35 (TCO).
        Itco = "itco",
        /// That of an IBM Z machine's hypervisor.
        Diag288 = "diag288",
    }
}

words! {
    /// A graphics card, of whose frame buffer pictures can be taken.
    Display {
        /// QEMU's own, with VGA (`bochs-drm` in Linux).
        Std = "std",
        /// virtio-gpu; on a PC with VGA.
        Virtio = "virtio",
        /// The same as `std`, without VGA.
        Bochs = "bochs",
        /// Cirrus Logic's GD5446.
        Cirrus = "cirrus",
    }
}

words! {
    /// A sound card. What is played is heard by nobody, and what is recorded is silence.
    Sound {
        /// Intel's High Definition Audio, with a codec that plays and records.
        Hda = "hda",
        /// Intel's 82801AA.
        Ac97 = "ac97",
        /// Ensoniq's AudioPCI.
        Es1370 = "es1370",
        /// virtio-sound.
        Virtio = "virtio",
    }
}

/// How processors are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Processor packages.
    pub sockets: u32,
    /// Cores of each package.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Topology {
    /// How many processors that makes.
    #[must_use]
    pub fn processors(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// Most further serial ports of a guest: Linux makes no more of itself than four in all (`CONFIG_SERIAL_8250_RUNTIME_UARTS`).
pub const MAX_SERIAL_PORTS: usize = 2;
/// Longest name of one, in bytes.
const MAX_PORT_NAME: usize = 32;

/// Checks the name of a serial port.
///
/// # Errors
/// Says what it looks like.
pub fn port_name(text: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if (1..=MAX_PORT_NAME).contains(&text.len()) && text.bytes().all(known) {
        return Ok(());
    }
    Err(format!("no name of a serial port; one has letters, digits, '_' and '-', {MAX_PORT_NAME} at most"))
}

/// Processors and memory that are near one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its processors, by their numbers: first and last of each range.
    pub cpus: Vec<(u32, u32)>,
    /// Bytes of its memory.
    pub memory: u64,
    /// How far it is to each node, in their order, itself included; none is QEMU's choice.
    pub distances: Vec<u8>,
}

/// Most modules of persistent memory of a guest.
const MAX_PMEM: usize = 4;
/// In what the size of such a module is counted, in bytes: a large page.
const PMEM_UNIT: u64 = 2 << 20;
/// The least that Linux makes a device of, in bytes.
const LEAST_PMEM: u64 = 16 << 20;

/// Checks the sizes of modules of persistent memory.
///
/// # Errors
/// Says what is wrong, and what to do.
pub fn check_pmem(sizes: &[u64]) -> Result<(), String> {
    if sizes.len() > MAX_PMEM {
        return Err(format!("there are {} modules, and a guest has {MAX_PMEM} at most", sizes.len()));
    }
    match sizes.iter().find(|size| **size < LEAST_PMEM || !size.is_multiple_of(PMEM_UNIT)) {
        Some(size) => Err(format!("a module has 16 MiB or more, by 2 MiB, and {size} bytes are none")),
        None => Ok(()),
    }
}

/// Most nodes of a machine (QEMU's `MAX_NODES`).
const MAX_NODES: usize = 128;

/// The distance of a node to itself (ACPI's specification, System Locality Information Table).
const LOCAL: u8 = 10;

impl NumaNode {
    /// Reads processors, such as `0-1,4`.
    ///
    /// # Errors
    /// Says what they look like.
    pub fn cpus(text: &str) -> Result<Vec<(u32, u32)>, String> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last && last < 255).then_some((first, last))
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.ok_or_else(|| "no list of processors; write their numbers, such as \"0-1,4\"".to_owned())
    }
}

/// Whether nodes have all of a machine between them.
///
/// # Errors
/// Says what is wrong, and what to do.
pub fn check_numa(nodes: &[NumaNode], memory: u64, cpus: u32) -> Result<(), String> {
    if nodes.is_empty() {
        return Ok(());
    }
    if nodes.len() > MAX_NODES {
        return Err(format!("there are {} nodes, and a machine has {MAX_NODES} at most", nodes.len()));
    }
    if let Some(at) = nodes.iter().position(|node| node.memory == 0) {
        return Err(format!("node {at} has no memory, which QEMU makes none of; give it some, such as 128MiB"));
    }
    let all: u64 = nodes.iter().map(|node| node.memory).sum();
    if let Some(at) = nodes.iter().position(|node| !node.memory.is_multiple_of(1 << 20)) {
        return Err(format!("the memory of node {at} is no multiple of 1 MiB"));
    }
    if all != memory {
        return Err(format!(
            "its nodes have {} MiB of memory, and the guest {} MiB; make them the same",
            all >> 20,
            memory >> 20
        ));
    }
    let mut of = vec![None; cpus as usize];
    for (at, node) in nodes.iter().enumerate() {
        for cpu in node.cpus.iter().flat_map(|&(first, last)| first..=last) {
            match of.get_mut(cpu as usize) {
                None => {
                    return Err(format!(
                        "node {at} has processor {cpu}, and the guest has 0 to {}",
                        cpus.saturating_sub(1)
                    ));
                }
                Some(Some(other)) => return Err(format!("processor {cpu} is in node {other} and in node {at}")),
                Some(free) => *free = Some(at),
            }
        }
    }
    if let Some(cpu) = of.iter().position(Option::is_none) {
        return Err(format!("processor {cpu} is in no node; give it to one"));
    }
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| !node.distances.is_empty()) {
        if node.distances.len() != nodes.len() {
            return Err(format!(
                "node {at} has {} distances; write one to each of the {} nodes, in their order",
                node.distances.len(),
                nodes.len()
            ));
        }
        if node.distances[at] != LOCAL || node.distances.iter().enumerate().any(|(to, &far)| to != at && far <= LOCAL) {
            return Err(format!(
                "the distance of node {at} to itself is {LOCAL}, and to others more, up to 255 for none"
            ));
        }
    }
    // QEMU takes a distance for that of the way back where nothing is said of it, and wants all where one way differs.
    if nodes.iter().any(|node| !node.distances.is_empty()) && nodes.iter().any(|node| node.distances.is_empty()) {
        return Err("some nodes have distances and others have none; give all of them some, or none".to_owned());
    }
    Ok(())
}

/// Devices of a machine that it has only where they are asked for, and one that it lacks only then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The watchdog, if there is to be one.
    pub watchdog: Option<Watchdog>,
    /// Whether there is a balloon, by which memory is taken from the guest.
    pub balloon: bool,
    /// The graphics card, if there is to be one.
    pub display: Option<Display>,
    /// The sound card, if there is to be one.
    pub sound: Option<Sound>,
    /// Whether there is a source of randomness.
    pub rng: bool,
    /// How its processors are put together; none is QEMU's choice.
    pub topology: Option<Topology>,
    /// Its further serial ports, by name.
    pub serial_ports: Vec<String>,
    /// Its nodes of processors and memory; none is one of all.
    pub numa: Vec<NumaNode>,
    /// Its modules of persistent memory: bytes of each.
    pub pmem: Vec<u64>,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            watchdog: None,
            balloon: false,
            display: None,
            sound: None,
            rng: true,
            topology: None,
            serial_ports: Vec::new(),
            numa: Vec::new(),
            pmem: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpus: &str, memory: u64, distances: &[u8]) -> NumaNode {
        let cpus = if cpus.is_empty() { Vec::new() } else { NumaNode::cpus(cpus).unwrap() };
        NumaNode { cpus, memory: memory << 20, distances: distances.to_vec() }
    }

    #[test]
    fn nodes_have_all_of_a_machine_between_them() {
        let check = |nodes: &[NumaNode]| check_numa(nodes, 1 << 30, 4);
        for good in [
            &[][..],
            &[node("0-1", 512, &[]), node("2-3", 512, &[])],
            &[node("0,2", 768, &[10, 21]), node("1,3", 256, &[31, 10])],
            // One of memory alone.
            &[node("0-3", 512, &[10, 255]), node("", 512, &[255, 10])],
        ] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        assert!(check(&vec![node("0-3", 8, &[]); 129]).unwrap_err().contains("128 at most"));
        for (wrong, says) in [
            (&[node("0-3", 0, &[]), node("", 1024, &[])][..], "node 0 has no memory"),
            (&[node("0-3", 512, &[])], "have 512 MiB of memory, and the guest 1024 MiB"),
            (&[node("0-2", 1024, &[])], "processor 3 is in no node"),
            (&[node("0-4", 1024, &[])], "node 0 has processor 4, and the guest has 0 to 3"),
            (&[node("0-2", 512, &[]), node("2-3", 512, &[])], "processor 2 is in node 0 and in node 1"),
            (&[node("0-3", 1024, &[10, 20])], "2 distances"),
            (&[node("0-1", 512, &[10, 20]), node("2-3", 512, &[])], "some nodes have distances"),
            (&[node("0-1", 512, &[20, 10]), node("2-3", 512, &[10, 20])], "to itself is 10"),
            (&[node("0-1", 512, &[10, 10]), node("2-3", 512, &[10, 10])], "to others more"),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn persistent_memory_comes_in_modules() {
        assert_eq!(check_pmem(&[16 << 20, 1 << 30]), Ok(()));
        for (wrong, says) in
            [(&[8 << 20][..], "16 MiB or more"), (&[(16 << 20) + 4096], "by 2 MiB"), (&[1 << 30; 5], "4 at most")]
        {
            assert!(check_pmem(wrong).unwrap_err().contains(says));
        }
    }

    #[test]
    fn processors_and_ports_are_named() {
        assert_eq!(NumaNode::cpus("0-1,4"), Ok(vec![(0, 1), (4, 4)]));
        for wrong in ["", "a", "2-1", "0-", "255", "0,,1"] {
            assert!(NumaNode::cpus(wrong).unwrap_err().contains("such as"), "{wrong}");
        }
        assert_eq!(port_name("modem-1"), Ok(()));
        for wrong in ["", "../x", "a b", "a,b", &"x".repeat(33)] {
            assert!(port_name(wrong).is_err(), "{wrong}");
        }
    }
}
