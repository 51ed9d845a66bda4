//! QEMU's command line, read as QEMU reads it.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;

/// Options without a value.
const FLAGS: [&str; 13] = [
    "nodefaults",
    "no-user-config",
    "no-reboot",
    "no-shutdown",
    "nographic",
    "S",
    "snapshot",
    "enable-kvm",
    "daemonize",
    "no-hpet",
    "no-acpi",
    "version",
    "h",
];

/// Options with a value.
const VALUED: [&str; 52] = [
    "incoming",
    "M",
    "machine",
    "cpu",
    "accel",
    "smp",
    "m",
    "name",
    "uuid",
    "smbios",
    "fw_cfg",
    "global",
    "set",
    "boot",
    "kernel",
    "initrd",
    "append",
    "dtb",
    "bios",
    "L",
    "drive",
    "blockdev",
    "device",
    "object",
    "chardev",
    "serial",
    "parallel",
    "monitor",
    "mon",
    "qmp",
    "netdev",
    "tpmdev",
    "audiodev",
    "numa",
    "nic",
    "net",
    "fsdev",
    "virtfs",
    "add-fd",
    "display",
    "vga",
    "rtc",
    "icount",
    "sandbox",
    "msg",
    "action",
    "watchdog-action",
    "pidfile",
    "D",
    "d",
    "trace",
    "fw_cfg",
];

/// One option's value taken apart: `driver,key=value,…`, or the same as a JSON object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opt {
    /// Name, without the dashes.
    pub(crate) name: String,
    /// The value as typed.
    pub(crate) raw: String,
    /// The first part, if it is not `key=value`.
    pub(crate) first: Option<String>,
    /// The other parts. A part without `=` is `key` → `on`; JSON objects are flattened with dots.
    pub(crate) keys: BTreeMap<String, String>,
}

impl Opt {
    /// What `id=` gives.
    pub(crate) fn id(&self) -> Option<&str> {
        self.get("id").or_else(|| self.get("node-name"))
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// The driver: of `-device`, the first part or `driver=`.
    pub(crate) fn driver(&self) -> &str {
        self.first.as_deref().or_else(|| self.get("driver")).or_else(|| self.get("qom-type")).unwrap_or_default()
    }
}

/// Memory that is a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RamFile {
    /// Where.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) size: u64,
    /// Whether what the guest writes gets into the file.
    pub(crate) shared: bool,
}

/// Every option, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args {
    /// As typed.
    pub(crate) opts: Vec<Opt>,
}

impl Args {
    /// Reads the command line; the error is in QEMU's words.
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut args = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-') else {
                // QEMU takes a bare word for a disk image, which nobody means here.
                return Err(format!("{word}: a bare word on the command line"));
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            if FLAGS.contains(&name) {
                args.opts.push(Opt { name: name.into(), ..Opt::default() });
            } else if VALUED.contains(&name) {
                let raw = words.next().ok_or_else(|| format!("-{name}: requires an argument"))?;
                args.opts.push(read(name, raw)?);
            } else {
                return Err(format!("-{name}: invalid option"));
            }
        }
        Ok(args)
    }

    /// All options of this name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Opt> + 'a {
        self.opts.iter().filter(move |o| o.name == name)
    }

    /// The last option of this name.
    pub(crate) fn last(&self, name: &str) -> Option<&Opt> {
        self.opts.iter().rev().find(|o| o.name == name)
    }

    /// Whether it is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    /// The first accelerator asked for; TCG is QEMU's default.
    pub(crate) fn accel(&self) -> String {
        if self.has("enable-kvm") {
            return "kvm".into();
        }
        let accel = self.opts.iter().find(|o| o.name == "accel").and_then(|o| o.first.clone());
        let of_machine = || {
            let machine = self.last("machine").or_else(|| self.last("M"))?;
            machine.get("accel").map(str::to_owned)
        };
        let names = accel.or_else(of_machine).unwrap_or_else(|| "tcg".into());
        names.split(':').next().unwrap_or("tcg").to_owned()
    }

    /// What `-action panic=` says, or QEMU's default.
    pub(crate) fn panic_action(&self) -> String {
        let given = self.all("action").filter_map(|o| o.get("panic")).last();
        given.unwrap_or("shutdown").to_owned()
    }

    /// The file that is the guest's memory, if that is one.
    pub(crate) fn ram(&self) -> Option<RamFile> {
        let machine = self.last("machine").or_else(|| self.last("M"))?;
        let id = machine.get("memory-backend")?;
        let object = self.all("object").find(|o| o.id() == Some(id) && o.driver() == "memory-backend-file")?;
        Some(RamFile {
            path: object.get("mem-path")?.into(),
            size: object.get("size")?.parse().ok()?,
            shared: object.get("share") == Some("on"),
        })
    }

    /// Numbers of the descriptors that the command line names.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let memory = |o: &Opt| Some(o.get("mem-path")?.strip_prefix("/proc/self/fd/")?.to_owned());
        let memory = self.all("object").filter_map(memory);
        let share = |o: &Opt| Some(o.get("path")?.strip_prefix("/proc/self/fd/")?.to_owned());
        let shares = self.all("fsdev").filter_map(share);
        let served = self.opts.iter().filter_map(|o| o.get("server.str").map(str::to_owned));
        self.opts
            .iter()
            .filter_map(|o| o.get("fd").map(str::to_owned))
            .chain(served)
            .chain(memory)
            .chain(shares)
            .collect()
    }

    /// Whether a reset ends the machine.
    pub(crate) fn reset_ends(&self) -> bool {
        self.has("no-reboot") || self.all("action").any(|o| o.get("reboot") == Some("shutdown"))
    }

    /// Whether a shutdown leaves the machine stopped instead of ending it.
    pub(crate) fn shutdown_pauses(&self) -> bool {
        self.has("no-shutdown") || self.all("action").any(|o| o.get("shutdown") == Some("pause"))
    }
}

/// One option's value.
fn read(name: &str, raw: &str) -> Result<Opt, String> {
    let mut opt = Opt { name: name.into(), raw: raw.into(), ..Opt::default() };
    // Not lists of keys: file names and free text.
    if ["kernel", "initrd", "append", "bios", "L", "D", "d", "dtb"].contains(&name) {
        opt.first = Some(raw.into());
        return Ok(opt);
    }
    if raw.starts_with('{') {
        let value: Value = serde_json::from_str(raw).map_err(|e| format!("-{name} {raw}: JSON parse error: {e}"))?;
        flatten("", &value, &mut opt.keys);
        return Ok(opt);
    }
    for (index, part) in parts(raw).into_iter().enumerate() {
        match part.split_once('=') {
            Some((key, value)) => {
                if opt.keys.insert(key.into(), value.into()).is_some() && name != "smbios" {
                    return Err(format!("-{name} {raw}: `{key}=` stands twice"));
                }
            }
            None if index == 0 => opt.first = Some(part),
            None if part.is_empty() => return Err(format!("-{name} {raw}: an empty part")),
            None => {
                opt.keys.insert(part, "on".into());
            }
        }
    }
    Ok(opt)
}

/// Splits at single commas; a doubled comma is a comma.
fn parts(raw: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => parts.push(String::new()),
            c => {
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts
}

/// `{"a": {"b": 1}}` as `a.b` → `1`.
fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    let name = |key: &str| {
        if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&name(key), value, out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(&name(&index.to_string()), value, out);
            }
        }
        Value::Bool(on) => {
            out.insert(prefix.into(), if *on { "on" } else { "off" }.into());
        }
        Value::String(text) => {
            out.insert(prefix.into(), text.clone());
        }
        other => {
            out.insert(prefix.into(), other.to_string());
        }
    }
}

#[cfg(test)]
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_doubled_commas() {
        let args = Args::parse(&words("-nodefaults -chardev socket,id=qmp,fd=3 -fsdev local,id=a,path=/x,,y,readonly"))
            .expect("parses");
        assert!(args.has("nodefaults"));
        let dev = args.last("chardev").expect("chardev");
        assert_eq!((dev.driver(), dev.id(), dev.get("fd")), ("socket", Some("qmp"), Some("3")));
        let fs = args.last("fsdev").expect("fsdev");
        assert_eq!((fs.get("path"), fs.get("readonly")), (Some("/x,y"), Some("on")));
    }

    #[test]
    fn json_values() {
        let args = Args::parse(&[
            "-blockdev".into(),
            r#"{"driver":"qcow2","node-name":"d","file":{"driver":"file","filename":"/dev/fdset/1"},"read-only":false}"#.into(),
        ])
        .expect("parses");
        let dev = args.last("blockdev").expect("blockdev");
        assert_eq!((dev.driver(), dev.id()), ("qcow2", Some("d")));
        assert_eq!(dev.get("file.filename"), Some("/dev/fdset/1"));
        assert_eq!(dev.get("read-only"), Some("off"));
    }

    #[test]
    fn errors_are_in_qemus_words() {
        let fail = |line| Args::parse(&words(line)).expect_err("fails");
        assert_eq!(fail("-frobnicate"), "-frobnicate: invalid option");
        assert_eq!(fail("-m"), "-m: requires an argument");
        assert!(fail("disk.img").contains("bare word"));
        assert!(fail("-chardev socket,id=a,id=b").contains("twice"));
    }

    #[test]
    fn accelerators() {
        let accel = |line| Args::parse(&words(line)).expect("parses").accel();
        assert_eq!(accel("-nodefaults"), "tcg");
        assert_eq!(accel("-enable-kvm"), "kvm");
        assert_eq!(accel("-machine q35,accel=kvm:tcg"), "kvm");
        assert_eq!(accel("-accel tcg,thread=multi"), "tcg");
    }
}
