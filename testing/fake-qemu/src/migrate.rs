//! Freezing a machine, and going on with what was frozen.
//!
//! The guest's own files, and what is marked in it, are in its memory once it is stopped; a file of memory holds [`RAM_MAGIC`], a length
//! and JSON. The state of the devices holds [`STATE_MAGIC`] and JSON. Both name the moment of the stop: a state that is loaded over
//! another memory fails, as a real guest would in a worse way.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use crate::{
    args::{Args, RamFile},
    guest::Guest,
    machine::{End, Machine, complain},
    script::{ScriptError, Step},
};

const RAM_MAGIC: &[u8; 8] = b"FAKE RAM";
/// As QEMU's own.
const STATE_MAGIC: &[u8; 4] = b"QEVM";
/// Most bytes of what is in memory.
const MAX_RAM: usize = 1 << 20;
/// What there is to be agreed on.
const CAPABILITIES: [&str; 3] = ["x-ignore-shared", "events", "auto-converge"];

/// What becomes of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// It succeeds.
    Obey,
    /// The command is refused.
    Refuse,
    /// It begins and fails.
    Fail,
    /// It begins, and has no end.
    Hang,
    /// It begins, and QEMU dies.
    Die,
}

impl Manners {
    /// As the script says.
    pub(crate) fn of(step: &Step) -> Result<Self, ScriptError> {
        match step.need(0)? {
            b"obey" => Ok(Self::Obey),
            b"refuse" => Ok(Self::Refuse),
            b"fail" => Ok(Self::Fail),
            b"hang" => Ok(Self::Hang),
            b"die" => Ok(Self::Die),
            _ => Err(step.fail("obey, refuse, fail, hang or die")),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Descriptors by name.
    fds: Vec<(String, OwnedFd)>,
    capabilities: Vec<String>,
    status: Option<&'static str>,
    error: Option<String>,
    /// Where the state goes to or comes from.
    file: Option<File>,
    /// Shares that are mounted in the guest, which cannot be frozen.
    mounted: Vec<(String, PathBuf)>,
    /// The channel on which the agent serves.
    port: Option<String>,
    /// The moment of the last stop.
    moment: String,
    /// What was in memory then.
    memory: Value,
}

impl Inner {
    fn ignores_shared(&self) -> bool {
        self.capabilities.iter().any(|c| c == "x-ignore-shared")
    }
}

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct Migration(Mutex<Inner>);

impl Migration {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `getfd`.
    pub(crate) fn take(&self, arguments: &Value, fds: &mut Vec<OwnedFd>) -> Result<(), String> {
        let name = arguments["fdname"].as_str().ok_or("Parameter 'fdname' is missing")?;
        let fd = fds.pop().ok_or("No file descriptor supplied via SCM_RIGHTS")?;
        let mut inner = self.inner();
        inner.fds.retain(|(n, _)| n != name);
        inner.fds.push((name.to_owned(), fd));
        Ok(())
    }

    /// `dump-guest-memory`: a mebibyte is what there is of it.
    pub(crate) fn dump(&self, arguments: &Value) -> Result<(), String> {
        let name = arguments["protocol"].as_str().and_then(|to| to.strip_prefix("fd:"));
        let name = name.ok_or("parameter 'protocol' must start with 'file:' or 'fd:'")?;
        let mut inner = self.inner();
        let at = inner.fds.iter().position(|(known, _)| known == name);
        let (_, fd) = inner.fds.remove(at.ok_or_else(|| format!("File descriptor named '{name}' has not been found"))?);
        let written = File::from(fd).write_all(&[b'm'; 1 << 20]);
        written.map_err(|error| format!("dump: failed to save memory: {error}"))
    }

    /// `migrate-set-capabilities`.
    pub(crate) fn set_capabilities(&self, arguments: &Value) -> Result<(), String> {
        let mut inner = self.inner();
        if inner.file.is_some() {
            return Err("There's a migration process in progress".into());
        }
        for one in arguments["capabilities"].as_array().ok_or("Parameter 'capabilities' is missing")? {
            let name = one["capability"].as_str().unwrap_or_default();
            if !CAPABILITIES.contains(&name) {
                return Err(format!("Parameter 'capability' does not accept value '{name}'"));
            }
            inner.capabilities.retain(|c| c != name);
            if one["state"] == true {
                inner.capabilities.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// `migrate-set-parameters`.
    pub(crate) fn set_parameters(&self, arguments: &Value) -> Result<(), String> {
        let known = arguments.as_object().is_some_and(|all| all.keys().all(|name| name == "max-bandwidth"));
        if known && arguments["max-bandwidth"].as_u64().is_some_and(|bytes| bytes > 0) {
            return Ok(());
        }
        Err(format!("Parameter '{arguments}' is unexpected"))
    }

    /// `query-migrate`.
    pub(crate) fn info(&self) -> Value {
        let inner = self.inner();
        let mut info = json!({});
        if let Some(status) = inner.status {
            info["status"] = status.into();
        }
        if let Some(error) = &inner.error {
            info["error-desc"] = error.as_str().into();
        }
        info
    }

    /// The shares that are mounted in the guest from now on.
    pub(crate) fn mounted(&self, shares: Vec<(String, PathBuf)>) {
        self.inner().mounted = shares;
    }

    /// Where the agent was greeted.
    pub(crate) fn served_on(&self, channel: &str) {
        self.inner().port = Some(channel.to_owned());
    }

    /// Where the agent serves.
    pub(crate) fn port(&self) -> Option<String> {
        self.inner().port.clone()
    }
}

/// Opens the guest's memory as QEMU does, for writing even where that is private.
pub(crate) fn open_memory(args: &Args) -> Result<(), String> {
    let Some(ram) = args.ram() else { return Ok(()) };
    let file = File::options().read(true).write(true).open(&ram.path);
    let size = file.and_then(|f| f.metadata()).map(|m| m.len());
    let path = ram.path.display();
    match size {
        Err(e) => Err(format!("can't open backing store {path} for guest RAM: {e}")),
        Ok(have) if have < ram.size => {
            Err(format!("backing store size {have:#x} does not match 'size' option {:#x}", ram.size))
        }
        Ok(_) => Ok(()),
    }
}

fn read_memory(ram: &RamFile) -> io::Result<Value> {
    let file = File::open(&ram.path)?;
    let mut head = [0; 12];
    file.read_exact_at(&mut head, 0)?;
    let (magic, length) = head.split_at(RAM_MAGIC.len());
    let length = u32::from_le_bytes(length.try_into().map_err(io::Error::other)?) as usize;
    if magic != RAM_MAGIC || length > MAX_RAM {
        return Err(io::Error::other("there is no guest in this memory"));
    }
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, head.len() as u64)?;
    Ok(serde_json::from_slice(&text)?)
}

/// The name of the script that the guest in memory plays.
pub(crate) fn script_in_memory(args: &Args) -> Option<String> {
    if !args.has("incoming") {
        return None;
    }
    read_memory(&args.ram()?).ok()?["script"].as_str().map(str::to_owned)
}

/// Puts the guest that was stopped into its memory, also where that is a file that others may read.
pub(crate) fn to_memory(machine: &Machine, guest: &Guest) -> io::Result<()> {
    let mut moment = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut moment)?;
    let moment = format!("{:032x}", u128::from_le_bytes(moment));
    let files: Vec<Value> = guest.own().iter().map(|dir| files_below(dir)).collect::<io::Result<_>>()?;
    let memory = json!({ "moment": moment, "script": machine.options.name, "marks": machine.marks(), "files": files });
    let text = memory.to_string();
    {
        let mut inner = machine.migration.inner();
        (inner.moment, inner.memory) = (moment, memory);
    }
    let Some(ram) = machine.args.ram().filter(|r| r.shared) else { return Ok(()) };
    let length = u32::try_from(text.len()).ok().filter(|l| *l as usize <= MAX_RAM);
    let length = length.ok_or_else(|| io::Error::other("it is too large"))?;
    let bytes = [RAM_MAGIC.as_slice(), &length.to_le_bytes(), text.as_bytes()].concat();
    File::options().write(true).open(&ram.path)?.write_all_at(&bytes, 0)
}

/// Name, mode and content of each file, and those of each directory.
fn files_below(dir: &Path) -> io::Result<Value> {
    let mut found = serde_json::Map::new();
    for entry in fs::read_dir(dir)? {
        let (entry, path) = entry.map(|e| (e.file_name(), e.path()))?;
        let metadata = fs::symlink_metadata(&path)?;
        let content = if metadata.is_dir() {
            files_below(&path)?
        } else if metadata.is_file() {
            json!([metadata.permissions().mode(), fs::read(&path)?])
        } else {
            continue;
        };
        found.insert(entry.to_string_lossy().into_owned(), content);
    }
    Ok(found.into())
}

/// The other way round.
fn put_files(dir: &Path, files: &Value) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (name, content) in files.as_object().into_iter().flatten() {
        let path = dir.join(name);
        if content.is_object() {
            put_files(&path, content)?;
            continue;
        }
        let (mode, bytes): (u32, Vec<u8>) = serde_json::from_value(content.clone())?;
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(())
}

/// Whether `cont` can be obeyed.
pub(crate) fn may_go_on(machine: &Machine) -> Result<(), String> {
    if machine.status() == "finish-migrate" {
        return Err("Migration is not finalized yet".into());
    }
    if machine.options.cont_obeyed { Ok(()) } else { Err("cont: said by the script".into()) }
}

/// `migrate`, before the answer.
pub(crate) fn ask(machine: &Machine, arguments: &Value) -> Result<(), String> {
    let uri = arguments["uri"].as_str().ok_or("Parameter 'uri' is missing")?;
    let name = uri.strip_prefix("fd:").ok_or_else(|| format!("unknown migration protocol: {uri}"))?;
    if machine.status() == "inmigrate" {
        return Err("Guest is waiting for an incoming migration".into());
    }
    let mut inner = machine.migration.inner();
    if let Some((tag, dir)) = inner.mounted.first() {
        let dir = dir.display();
        return Err(format!(
            "Migration is disabled when VirtFS export path '{dir}' is mounted in the guest using mount_tag '{tag}'"
        ));
    }
    if machine.options.migrate == Manners::Refuse {
        return Err("State blocked by non-migratable device '0000:00:05.0/fake'".into());
    }
    machine.hardware.to_state()?;
    let at = inner.fds.iter().position(|(n, _)| n == name);
    let at = at.ok_or_else(|| format!("File descriptor named '{name}' has not been found"))?;
    inner.file = Some(inner.fds.remove(at).1.into());
    inner.error = None;
    Ok(())
}

/// `migrate-incoming`, before the answer.
pub(crate) fn ask_incoming(machine: &Machine, arguments: &Value) -> Result<(), String> {
    let uri = arguments["uri"].as_str().ok_or("Parameter 'uri' is missing")?;
    let number = uri.strip_prefix("fd:").and_then(|n| n.parse().ok());
    let number = number.ok_or_else(|| format!("unknown migration protocol: {uri}"))?;
    if !machine.args.has("incoming") {
        return Err("'-incoming' was not specified on the command line".into());
    }
    let mut inner = machine.migration.inner();
    if machine.status() != "inmigrate" || inner.file.is_some() {
        return Err("The incoming migration has already been started".into());
    }
    if machine.options.incoming == Manners::Refuse {
        return Err("migrate-incoming: said by the script".into());
    }
    // The safe way to own a descriptor known by its number only.
    let this = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| e.to_string())?;
    let file = pidfd_getfd(this, number, PidfdGetfdFlags::empty()).map_err(|e| format!("fd {number}: {e}"))?;
    inner.file = Some(file.into());
    Ok(())
}

/// Says how far it is, if that is wanted.
fn tell(machine: &Machine, status: &'static str) {
    let wanted = {
        let mut inner = machine.migration.inner();
        inner.status = Some(status);
        inner.capabilities.iter().any(|c| c == "events")
    };
    if wanted {
        machine.control.event("MIGRATION", &json!({ "status": status }));
    }
}

/// `migrate`, after the answer.
pub(crate) fn save(machine: &Arc<Machine>) {
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        tell(&machine, "setup");
        tell(&machine, "active");
        let before = machine.status();
        match machine.options.migrate {
            Manners::Hang => machine.set_status("finish-migrate"),
            Manners::Die => machine.end(End::Signal(11)),
            how => {
                let written = if how == Manners::Fail { Err("said by the script".into()) } else { write(&machine) };
                let mut inner = machine.migration.inner();
                inner.file = None;
                inner.error = written.as_ref().err().cloned();
                drop(inner);
                machine.set_status(if written.is_ok() { "postmigrate" } else { before });
                tell(&machine, if written.is_ok() { "completed" } else { "failed" });
            }
        }
    });
}

fn write(machine: &Machine) -> Result<(), String> {
    let mut inner = machine.migration.inner();
    if inner.moment.is_empty() {
        return Err("the guest was not stopped".into());
    }
    let devices = machine.hardware.to_state()?;
    let mut state = json!({ "moment": inner.moment, "port": inner.port, "devices": devices });
    if !(inner.ignores_shared() && machine.args.ram().is_some_and(|ram| ram.shared)) {
        state["memory"] = inner.memory.clone();
    }
    let text = state.to_string();
    let bytes = [STATE_MAGIC.as_slice(), text.as_bytes()].concat();
    let file = inner.file.as_mut().ok_or("there is nowhere to write to")?;
    file.write_all(&bytes).map_err(|e| format!("Unable to write to the state: {e}"))
}

/// `migrate-incoming`, after the answer.
pub(crate) fn load(machine: &Arc<Machine>, guest: &Arc<Guest>) {
    let (machine, guest) = (Arc::clone(machine), Arc::clone(guest));
    thread::spawn(move || {
        tell(&machine, "setup");
        tell(&machine, "active");
        let loaded = match machine.options.incoming {
            Manners::Hang => return,
            Manners::Die => return machine.end(End::Signal(11)),
            Manners::Fail => Err(io::Error::other("said by the script")),
            Manners::Obey | Manners::Refuse => read(&machine, &guest),
        };
        machine.migration.inner().file = None;
        match loaded {
            Ok(()) => {
                // It was stopped when it was frozen.
                machine.set_status("paused");
                tell(&machine, "completed");
            }
            Err(e) => {
                tell(&machine, "failed");
                complain(&format!("qemu-system-x86_64: load of migration failed: {e}"));
                machine.end(End::Exit(1));
            }
        }
    });
}

fn read(machine: &Machine, guest: &Guest) -> io::Result<()> {
    let mut inner = machine.migration.inner();
    let mut bytes = Vec::new();
    inner.file.as_mut().ok_or_else(|| io::Error::other("no state"))?.read_to_end(&mut bytes)?;
    let text = bytes.strip_prefix(STATE_MAGIC).ok_or_else(|| io::Error::other("Not a migration stream"))?;
    let state: Value = serde_json::from_slice(text)?;
    // Who writes it and who reads it agree on where it is.
    let memory = match (&state["memory"], inner.ignores_shared()) {
        (Value::Null, true) => read_memory(&machine.args.ram().ok_or_else(|| io::Error::other("no memory"))?)?,
        (memory @ Value::Object(_), false) => memory.clone(),
        (Value::Null, false) => return Err(io::Error::other("the memory is not in the state")),
        _ => return Err(io::Error::other("the memory is in the state")),
    };
    if state["moment"] != memory["moment"] || !state["moment"].is_string() {
        return Err(io::Error::other("the state is of another memory"));
    }
    machine.hardware.fits(&state["devices"]).map_err(io::Error::other)?;
    inner.port = state["port"].as_str().map(str::to_owned);
    drop(inner);
    for (dir, files) in guest.own().iter().zip(memory["files"].as_array().into_iter().flatten()) {
        put_files(dir, files)?;
    }
    for mark in memory["marks"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        machine.recall(mark);
    }
    Ok(())
}
