//! UEFI firmware that is installed, found by the descriptions that its packages bring (QEMU's `docs/interop/firmware.json`).
//!
//! A description is a file of JSON. Those of all directories are tried in the order of their names; of two of the same name that of the earlier
//! directory counts, and an empty one hides those after it. What is looked for is kept in flash memory, with variables that are writable, and starts whatever the
//! guest has: no keys are enrolled in it, and it needs no system management mode.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::platform::Platform;

/// Bytes of a description that are read at most.
const MOST: u64 = 1 << 20;
/// Where administrators and packages keep descriptions.
const DIRS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];

/// UEFI firmware for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uefi {
    /// Its program.
    pub code: FlashImage,
    /// Its variables, as each machine has them at first.
    pub variables: FlashImage,
    /// Where it is described.
    pub described_in: PathBuf,
}

/// What is in a machine's flash memory at first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FlashImage {
    /// The file.
    #[serde(rename = "filename")]
    pub path: PathBuf,
    /// QEMU's name of its format.
    pub format: String,
}

/// No UEFI firmware fits.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no UEFI firmware for this guest (machine type {machine} on {architecture}): no description in {dirs} fits; {mend}\
     {passed_over}"
)]
pub struct NoUefi {
    machine: String,
    architecture: &'static str,
    /// Where descriptions were looked for.
    dirs: String,
    /// Those that do not fit, with the reason.
    passed_over: String,
    /// What to do.
    mend: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<FlashImage>,
    nvram_template: Option<FlashImage>,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

/// Finds UEFI firmware for a machine, as `-machine` describes it. `qemu` is the program that makes it; `own` are directories of
/// descriptions that count before the system's.
///
/// # Errors
/// Where none fits.
pub fn find(platform: &Platform, machine: &str, qemu: &Path, own: &[PathBuf]) -> Result<Uefi, NoUefi> {
    let program = qemu.canonicalize().unwrap_or_else(|_| qemu.to_owned());
    let [administrators, packages] = DIRS.map(PathBuf::from);
    let mut dirs = own.to_vec();
    dirs.push(administrators);
    dirs.extend(program.parent().and_then(Path::parent).map(|prefix| prefix.join("share/qemu/firmware")));
    if !dirs.contains(&packages) {
        dirs.push(packages);
    }
    find_in(&dirs, platform, machine)
}

fn find_in(dirs: &[PathBuf], platform: &Platform, machine: &str) -> Result<Uefi, NoUefi> {
    let mut passed_over = String::new();
    for (name, path) in descriptions(dirs) {
        match read(&path).and_then(|description| description.map_or(Ok(None), |d| d.fits(platform, machine))) {
            Ok(Some((code, variables))) => return Ok(Uefi { code, variables, described_in: path }),
            Ok(None) => {}
            Err(why) => passed_over.extend(["\n".to_owned(), name, " ".to_owned(), why]),
        }
    }
    let shown: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(NoUefi {
        machine: machine.to_owned(),
        architecture: platform.processor.name,
        dirs: shown.join(", "),
        passed_over,
        mend: platform.uefi_packages.map_or_else(
            || "there is none for such a processor: leave firmware at \"auto\"".to_owned(),
            |packages| format!("install {packages}"),
        ),
    })
}

/// All descriptions by their names.
fn descriptions(dirs: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    // A directory that is not there, or cannot be read, has none.
    for entry in dirs.iter().rev().flat_map(|dir| dir.read_dir().into_iter().flatten().flatten()) {
        let path = entry.path();
        if let (Some("json"), Ok(name)) = (path.extension().and_then(|e| e.to_str()), entry.file_name().into_string()) {
            found.insert(name, path);
        }
    }
    found
}

/// Reads a description; one that is empty is none.
fn read(path: &Path) -> Result<Option<Description>, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs_err::File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| format!("cannot be read ({e})"))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| format!("is no description of firmware ({e})"))
}

impl Description {
    /// The firmware's code and its variables, if it is UEFI for this machine; else why not, where it is UEFI for such a processor.
    fn fits(self, platform: &Platform, machine: &str) -> Result<Option<(FlashImage, FlashImage)>, String> {
        let is_uefi = self.interface_types.iter().any(|kind| kind == "uefi");
        let targets = self.targets.iter().filter(|target| target.architecture == platform.processor.name);
        let machines: Vec<&str> = targets.flat_map(|target| &target.machines).map(String::as_str).collect();
        if !is_uefi || machines.is_empty() {
            return Ok(None);
        }
        let names = platform.machine_names(machine);
        if !names.iter().any(|name| machines.iter().any(|pattern| is_like(name, pattern))) {
            return Err(format!("is for {}", machines.join(" and ")));
        }
        let unfit = [("enrolled-keys", "starts only what is signed"), ("requires-smm", "needs system management mode")];
        if let Some((_, why)) = unfit.iter().find(|(feature, _)| self.features.iter().any(|has| has == feature)) {
            return Err((*why).to_owned());
        }
        let Mapping { device, executable: Some(code), nvram_template: Some(variables) } = self.mapping else {
            return Err("has no variables that are kept in flash memory".into());
        };
        if device != "flash" {
            return Err(format!("is not for flash memory, but for {device}"));
        }
        for FlashImage { path, .. } in [&code, &variables] {
            if !path.is_file() {
                return Err(format!("names {}, which is not there", path.display()));
            }
        }
        Ok(Some((code, variables)))
    }
}

/// Whether a name is like a pattern, in which `*` stands for any characters.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => {
            let Some(left) = name.strip_prefix(start) else { return false };
            left.char_indices().map(|(at, _)| at).chain([left.len()]).any(|at| is_like(&left[at..], rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::platform;

    struct Dirs(tempfile::TempDir);

    impl Dirs {
        fn new() -> Self {
            let dirs = Self(tempfile::tempdir().unwrap());
            for file in ["code", "vars"] {
                std::fs::write(dirs.path(file), "").unwrap();
            }
            dirs
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Describes firmware in the file `name`, with what differs from that of Debian.
        fn describe(&self, name: &str, differs: &[(&str, &str)]) {
            let (code, vars) = (self.path("code"), self.path("vars"));
            let mut text = format!(
                r#"{{"description": "x", "interface-types": ["uefi"], "mapping": {{"device": "flash",
                "executable": {{"filename": "{}", "format": "raw"}}, "nvram-template": {{"filename": "{}", "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}],
                "features": ["acpi-s3", "verbose-dynamic"], "tags": []}}"#,
                code.display(),
                vars.display()
            );
            for (from, to) in differs {
                assert!(text.contains(from), "{from}");
                text = text.replace(from, to);
            }
            self.write(name, &text);
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn find(&self, machine: &str) -> Result<String, String> {
            let platform = &platform::PLATFORMS[0];
            match find_in(&[self.path("first"), self.path("second")], platform, machine) {
                Ok(uefi) => Ok(uefi.described_in.strip_prefix(self.0.path()).unwrap().display().to_string()),
                Err(error) => Err(error.to_string().replace(&self.0.path().display().to_string(), "DIR")),
            }
        }
    }

    #[test]
    fn none_is_said_with_what_to_install() {
        insta::assert_snapshot!(Dirs::new().find("pc,usb=on").unwrap_err());
    }

    #[test]
    fn the_first_that_fits_by_name_whatever_its_directory() {
        let dirs = Dirs::new();
        dirs.describe("first/60-x.json", &[]);
        dirs.describe("second/50-x.json", &[]);
        for machine in ["pc", "pc,usb=on", "pc-i440fx-7.2", "q35", "pc-q35-9.0,usb=on"] {
            assert_eq!(dirs.find(machine), Ok("second/50-x.json".into()), "{machine}");
        }
        for machine in ["microvm", "isapc", "pc-i440", ""] {
            assert!(dirs.find(machine).unwrap_err().contains("50-x.json is for pc-i440fx-* and pc-q35-*"), "{machine}");
        }
        // The earlier directory counts, and what is empty there hides the other.
        dirs.describe("first/50-x.json", &[]);
        assert_eq!(dirs.find("pc"), Ok("first/50-x.json".into()));
        dirs.write("first/50-x.json", "");
        assert_eq!(dirs.find("pc"), Ok("first/60-x.json".into()));
    }

    #[test]
    fn what_does_not_fit_is_passed_over_with_its_reason() {
        let dirs = Dirs::new();
        let first = |feature: &str| format!("[\"{feature}\", \"acpi-s3\"");
        dirs.describe("first/10.json", &[("[\"acpi-s3\"", &first("enrolled-keys"))]);
        dirs.describe("first/11.json", &[("[\"acpi-s3\"", &first("requires-smm"))]);
        dirs.describe("first/12.json", &[("\"flash\"", "\"memory\"")]);
        dirs.describe("first/13.json", &[("nvram-template", "else")]);
        dirs.describe("first/14.json", &[("/vars", "/nothing")]);
        dirs.describe("first/15.json", &[("pc-i440fx-*", "pc-q35-1.*.2")]);
        // These are of other machines altogether, of which nothing is said.
        dirs.describe("first/16.json", &[("x86_64", "aarch64")]);
        dirs.describe("first/17.json", &[("uefi", "bios")]);
        dirs.write("first/18.json", "{");
        dirs.write("first/readme.txt", "{");
        insta::assert_snapshot!(dirs.find("pc").unwrap_err());
        dirs.describe("second/99.json", &[]);
        assert_eq!(dirs.find("pc"), Ok("second/99.json".into()));
    }

    #[test]
    fn stars_stand_for_anything() {
        for (name, pattern) in
            [("pc-q35-7.2", "pc-q35-*"), ("pc-q35-", "pc-q35-*"), ("virt", "virt"), ("axbyc", "a*b*c"), ("x", "*")]
        {
            assert!(is_like(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in [("pc", "pc-*"), ("pcx", "pc"), ("axbyd", "a*b*c"), ("", "a")] {
            assert!(!is_like(name, pattern), "{name} {pattern}");
        }
    }
}
