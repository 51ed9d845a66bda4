//! Little languages of the command line: sizes, disks, variables.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use belljar_guest_spec::{
    BusChoice, DirectoryContent, DiskContent, DiskKey, DiskSpec, DiskTraits, MAX_PATHS, NumaNode, SectorSize, Topology,
    Word, Wwn, values,
};

/// Reads a size such as `512M` or `2GiB`, the value of an option.
pub(crate) fn size(option: &str, text: &str) -> Result<u64, String> {
    values::size(text).map_err(|why| format!("{option}: {text:?} is {why}"))
}

/// Reads the memory of a guest.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    values::memory(text).map_err(|why| format!("--memory: {text:?} is {why}"))
}

/// Reads `size=1G,serial=data0,bus=nvme` or `file=disk.qcow2`. A comma in a value is doubled, as for QEMU.
pub(crate) fn disk(text: &str) -> Result<DiskSpec, String> {
    let once =
        || format!("in --disk {text}: give one of size= and file=, or directory= with or without size=, each once");
    let (mut bytes, mut path, mut label) = (None, None, None);
    let mut serial = None;
    let mut bus = BusChoice::default();
    let mut lab = false;
    let mut traits = DiskTraits::default();
    for part in split_commas(text) {
        if part == "lab" {
            lab = true;
            continue;
        }
        let part = if FLAGS.iter().any(|flag| flag.word() == part) { format!("{part}=true") } else { part };
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("in --disk {text}: {part:?} should be KEY=VALUE"))?;
        match key {
            "size" if bytes.is_some() => return Err(once()),
            "file" | "directory" if path.is_some() => return Err(once()),
            "size" => bytes = Some(size(&format!("in --disk {text}"), value)?),
            "file" | "directory" => path = Some((key == "directory", PathBuf::from(value))),
            "label" => {
                let read = values::label(value).map_err(|why| format!("in --disk {text}: {value:?} is {why}"))?;
                label = Some(read.to_owned());
            }
            "serial" => {
                let read = values::serial(value).map_err(|why| format!("in --disk {text}: {value:?} is {why}"))?;
                serial = Some(read.to_owned());
            }
            "bus" => {
                bus = BusChoice::of(value).ok_or_else(|| {
                    let words: Vec<_> = BusChoice::words().collect();
                    format!("in --disk {text}: unknown bus {value:?}; there are {}", words.join(", "))
                })?;
            }
            _ => {
                let key = DiskKey::of(key).ok_or_else(|| {
                    let words: Vec<_> = DiskKey::words().collect();
                    format!(
                        "in --disk {text}: unknown key {key:?}; there are size, file, directory, label, serial, bus, lab, {}",
                        words.join(", ")
                    )
                })?;
                set_trait(&mut traits, key, value)
                    .map_err(|why| format!("in --disk {text}: {key}: {value:?} is {why}"))?;
            }
        }
    }
    let content = match (path, bytes) {
        (Some((true, path)), size) => DiskContent::Directory(DirectoryContent { path, size, label: label.take() }),
        (Some((false, _)), Some(_)) => return Err(once()),
        (Some((false, path)), None) => DiskContent::Image(path),
        (None, Some(size)) => DiskContent::Empty(size),
        (None, None) => return Err(format!("in --disk {text}: say size=SIZE, file=IMAGE or directory=DIRECTORY")),
    };
    if label.is_some() {
        return Err(format!("in --disk {text}: label= is that of a file system which is made of a directory="));
    }
    let disk = DiskSpec { content, serial, bus, lab, traits };
    match disk.conflicts(bus.asked()).first() {
        Some(conflict) => Err(format!("in --disk {text}: {conflict}")),
        None => Ok(disk),
    }
}

/// Reads `--numa`.
pub(crate) fn numa_node(text: &str) -> Result<NumaNode, String> {
    let mut node = NumaNode::default();
    for part in split_commas(text) {
        let wrong = || format!("--numa {text}: write memory=SIZE, and cpus=0-1 and distances=10:20 where it has some");
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        let is = |what: String| format!("in --numa {text}: {value:?} is {what}");
        match key {
            "memory" => node.memory = values::size(value).map_err(is)?,
            "cpus" => node.cpus = NumaNode::cpus(value).map_err(is)?,
            "distances" => {
                let all: Option<Vec<u8>> = value.split(':').map(|distance| distance.parse().ok()).collect();
                node.distances = all.ok_or_else(|| {
                    is("no list of distances; write numbers from 10 to 255, such as 10:20".to_owned())
                })?;
            }
            _ => return Err(wrong()),
        }
    }
    Ok(node)
}

/// Reads `--cpu-topology`.
pub(crate) fn topology(text: &str) -> Result<Topology, String> {
    let mut topology = Topology { sockets: 1, cores: 1, threads: 1 };
    for part in text.split(',') {
        let wrong = || format!("--cpu-topology {text}: write sockets=N,cores=N,threads=N, each from 1 to 255");
        let (key, count) = part.split_once('=').ok_or_else(wrong)?;
        let count = count.parse().ok().filter(|count| (1..=255).contains(count)).ok_or_else(wrong)?;
        match key {
            "sockets" => topology.sockets = count,
            "cores" => topology.cores = count,
            "threads" => topology.threads = count,
            _ => return Err(wrong()),
        }
    }
    Ok(topology)
}

/// Keys that can stand alone, which makes them `true`.
const FLAGS: [DiskKey; 3] = [DiskKey::ReadOnly, DiskKey::Removable, DiskKey::Unplugged];

/// Takes what a key says of the kind of a disk. The error completes "… is ".
fn set_trait(traits: &mut DiskTraits, key: DiskKey, value: &str) -> Result<(), String> {
    let flag = || value.parse::<bool>().map_err(|_| "neither true nor false".to_owned());
    let sectors = || {
        let size = value.parse().ok().and_then(SectorSize::of);
        size.ok_or_else(|| "no size of a disk's sectors; there are 512 and 4096".to_owned())
    };
    match key {
        DiskKey::SectorSize => traits.sector_size = Some(sectors()?),
        DiskKey::PhysicalSectorSize => traits.physical_sector_size = Some(sectors()?),
        DiskKey::Wwn => traits.wwn = Some(Wwn::parse(value)?),
        DiskKey::ReadOnly => traits.read_only = flag()?,
        DiskKey::Rotational => traits.rotational = Some(flag()?),
        DiskKey::WriteCache => traits.write_cache = Some(flag()?),
        DiskKey::Fua => traits.fua = Some(flag()?),
        DiskKey::Discard => traits.discard = Some(flag()?),
        DiskKey::DiscardGranularity => traits.discard_granularity = Some(values::size(value)?),
        DiskKey::Removable => traits.removable = flag()?,
        DiskKey::Unplugged => traits.unplugged = flag()?,
        DiskKey::Paths => {
            let paths = value.parse().ok().filter(|paths| (1..=MAX_PATHS).contains(paths));
            traits.paths = Some(paths.ok_or_else(|| format!("no number of paths; there are 1 to {MAX_PATHS}"))?);
        }
    }
    Ok(())
}

fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            ',' if chars.peek() == Some(&',') => {
                chars.next();
                parts[last].push(',');
            }
            ',' => parts.push(String::new()),
            c => parts[last].push(c),
        }
    }
    parts
}

/// Reads `NAME=VALUE`, or `NAME` whose value `look_up` knows.
pub(crate) fn variable(text: &OsStr, look_up: impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let name = bytes.split(|b| *b == b'=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(format!("--env {}: there is no name before the =", text.display()));
    }
    if name.len() < bytes.len() {
        return Ok(bytes.to_vec());
    }
    let value = look_up(text)
        .ok_or_else(|| format!("--env {0}: {0} is not set here; write {0}=VALUE to give it one", text.display()))?;
    let mut whole = text.to_owned().into_vec();
    whole.push(b'=');
    whole.extend_from_slice(value.as_bytes());
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks() {
        let disk_of = |text| disk(text).unwrap();
        assert_eq!(
            disk_of("size=1G,serial=x"),
            DiskSpec { serial: Some("x".into()), ..DiskSpec::new(DiskContent::Empty(1 << 30)) }
        );
        assert_eq!(
            disk_of(
                "size=1G,bus=scsi,sector-size=4096,physical-sector-size=4096,wwn=0x5000c500a1b2c3d4,read-only,rotational=false,\
                 write-cache=true,fua=true,discard=true,discard-granularity=64K,removable=true,paths=2"
            )
            .traits,
            DiskTraits {
                sector_size: Some(SectorSize::S4096),
                physical_sector_size: Some(SectorSize::S4096),
                wwn: Some(Wwn::parse("0x5000c500a1b2c3d4").unwrap()),
                read_only: true,
                rotational: Some(false),
                write_cache: Some(true),
                fua: Some(true),
                discard: Some(true),
                discard_granularity: Some(65536),
                removable: true,
                unplugged: false,
                paths: Some(2),
            }
        );
        assert!(!disk_of("size=1G,read-only=false").traits.read_only);
        let directory = |size, label: Option<&str>| {
            DiskContent::Directory(DirectoryContent { path: "d".into(), size, label: label.map(str::to_owned) })
        };
        assert_eq!(disk_of("directory=d").content, directory(None, None));
        assert_eq!(disk_of("label=l,directory=d,size=1G").content, directory(Some(1 << 30), Some("l")));
        for wrong in [
            "directory=d,file=f",
            "directory=d,directory=e",
            "size=1G,file=f",
            "size=1G,label=l",
            "file=f,label=l",
            "directory=d,label=a/b",
            "directory=d,label=12345678901234567",
            "label=l",
        ] {
            disk(wrong).unwrap_err();
        }
        assert!(disk_of("size=1G,lab").lab);
        assert_eq!(disk_of("file=a,,b.img,bus=nvme").content, DiskContent::Image("a,b.img".into()));
        for (wrong, says) in [
            ("", "KEY=VALUE"),
            ("serial=x", "say size="),
            ("size=1G,file=x", "one of"),
            ("size=1G,serail=x", "unknown key \"serail\""),
            ("size=1G,bus=floppy", "unknown bus"),
            ("size=1Q", "is not a size"),
            ("size=1G,serial=", "1 to 20"),
            ("size=1G,sector-size=1024", "sector-size: \"1024\" is no size of a disk's sectors"),
            ("size=1G,bus=scsi,serial=a,paths=9", "there are 1 to 8"),
            ("size=1G,bus=scsi,paths=2", "both paths lead to the same disk"),
            ("size=1G,wwn=5", "16 hexadecimal digits"),
            ("size=1G,rotational", "KEY=VALUE"),
            ("size=1G,read-only=on", "neither true nor false"),
            ("size=1G,bus=sata,sector-size=4096", "does not go with a disk on sata"),
            ("size=1G,bus=nvme,read-only", "read-only = true does not go with a disk on nvme"),
            ("size=5000,sector-size=4096", "no whole number of sectors"),
        ] {
            let error = disk(wrong).unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[test]
    fn variables() {
        let none = |_: &OsStr| None;
        assert_eq!(variable(OsStr::new("A=b=c"), none), Ok(b"A=b=c".to_vec()));
        assert_eq!(variable(OsStr::new("A"), |_| Some("v".into())), Ok(b"A=v".to_vec()));
        assert!(variable(OsStr::new("A"), none).unwrap_err().contains("A=VALUE"));
        assert!(variable(OsStr::new("=x"), none).is_err());
    }
}
