//! The QEMU Machine Protocol, as QEMU speaks it on an inherited socket.

use std::{
    io::{IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Deserializer, Value, json};

use crate::{
    guest::Guest,
    hardware,
    machine::{End, Machine},
    migrate::{self, Manners},
    sshd,
};

/// Whether QMP works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// As it should.
    Well,
    /// It takes commands and says nothing, not even events.
    Mute,
    /// The connection is closed.
    Closed,
}

#[derive(Debug)]
struct Inner {
    socket: Option<UnixStream>,
    negotiated: bool,
    health: Health,
}

/// The side that writes.
#[derive(Debug)]
pub(crate) struct Control(Mutex<Inner>);

impl Control {
    /// On this socket, if the command line asks for QMP.
    pub(crate) fn new(socket: Option<UnixStream>) -> Self {
        Self(Mutex::new(Inner { socket, negotiated: false, health: Health::Well }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes bytes as they are, whatever the state.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        self.with(|inner| {
            if let Some(socket) = inner.socket.as_mut() {
                // Belljar may be gone; QEMU does not care either.
                let _lost = socket.write_all(bytes);
            }
        });
    }

    fn say(&self, value: &Value) {
        let line = format!("{value}\r\n");
        self.with(|inner| {
            if inner.health == Health::Well
                && let Some(socket) = inner.socket.as_mut()
            {
                let _lost = socket.write_all(line.as_bytes());
            }
        });
    }

    /// An event; QEMU says none before `qmp_capabilities`.
    pub(crate) fn event(&self, name: &str, data: &Value) {
        if !self.with(|inner| inner.negotiated) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = json!({ "seconds": now.as_secs(), "microseconds": now.subsec_micros() });
        let mut event = json!({ "timestamp": stamp, "event": name });
        if !data.is_null() {
            event["data"] = data.clone();
        }
        self.say(&event);
    }

    /// Stops answering.
    pub(crate) fn mute(&self) {
        self.with(|inner| inner.health = Health::Mute);
    }

    /// Answers again.
    pub(crate) fn unmute(&self) {
        self.with(|inner| inner.health = Health::Well);
    }

    /// Closes the connection.
    pub(crate) fn close(&self) {
        self.with(|inner| {
            inner.health = Health::Closed;
            if let Some(socket) = &inner.socket {
                let _already = socket.shutdown(Shutdown::Both);
            }
        });
    }
}

/// Speaks until the other side is gone. The socket is another handle of [`Control`]'s.
pub(crate) fn serve(machine: &Arc<Machine>, guest: &Arc<Guest>, socket: &UnixStream) {
    let mut version = machine.options.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let mut number = || version.next().unwrap_or(0);
    let qemu = json!({ "major": number(), "minor": number(), "micro": number() });
    let version = json!({ "qemu": qemu, "package": "fake" });
    machine.control.say(&json!({ "QMP": { "version": version, "capabilities": ["oob"] } }));
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    let mut fds = Vec::new();
    loop {
        match receive(socket, &mut chunk, &mut fds) {
            Some(n) if n > 0 => buffer.extend_from_slice(&chunk[..n]),
            _ => return,
        }
        let mut used = 0;
        let mut stream = Deserializer::from_slice(&buffer).into_iter::<Value>();
        let mut broken = None;
        for item in &mut stream {
            match item {
                Ok(command) => answer(machine, guest, &version, &command, &mut fds),
                Err(e) if e.is_eof() => break,
                Err(e) => {
                    broken = Some(e.to_string());
                    break;
                }
            }
        }
        used += stream.byte_offset();
        if let Some(what) = broken {
            machine.journal.note("qmp-broken", what.as_str());
            machine.control.say(&error("GenericError", &format!("JSON parse error, {what}"), None));
            // QEMU's parser, too, drops what it holds after an error.
            buffer.clear();
            used = 0;
        }
        buffer.drain(..used);
    }
}

/// Bytes, and the descriptors that come with them.
fn receive(socket: &UnixStream, chunk: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => {
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                return Some(received.bytes);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn error(class: &str, desc: &str, id: Option<&Value>) -> Value {
    let mut reply = json!({ "error": { "class": class, "desc": desc } });
    if let Some(id) = id {
        reply["id"] = id.clone();
    }
    reply
}

/// Names that `query-commands` lists and [`answer`] knows.
const COMMANDS: [&str; 44] = [
    "blockdev-open-tray",
    "blockdev-remove-medium",
    "blockdev-insert-medium",
    "blockdev-close-tray",
    "query-memory-devices",
    "set_link",
    "balloon",
    "query-balloon",
    "add-fd",
    "remove-fd",
    "screendump",
    "device_add",
    "device_del",
    "netdev_add",
    "netdev_del",
    "getfd",
    "dump-guest-memory",
    "migrate",
    "migrate-incoming",
    "migrate-set-capabilities",
    "migrate-set-parameters",
    "query-migrate",
    "qmp_capabilities",
    "query-status",
    "query-version",
    "query-commands",
    "query-name",
    "query-kvm",
    "query-uuid",
    "query-chardev",
    "query-fdsets",
    "query-block",
    "query-blockstats",
    "query-cpus-fast",
    "query-memory-size-summary",
    "quit",
    "stop",
    "cont",
    "system_reset",
    "system_powerdown",
    "system_wakeup",
    "inject-nmi",
    "set-action",
    "human-monitor-command",
];

fn answer(machine: &Arc<Machine>, guest: &Arc<Guest>, version: &Value, command: &Value, fds: &mut Vec<OwnedFd>) {
    machine.journal.note("qmp", command.clone());
    let control = &machine.control;
    let id = command.get("id");
    let Some(name) = command.get("execute").or_else(|| command.get("exec-oob")).and_then(Value::as_str) else {
        control.say(&error("GenericError", "QMP input lacks member 'execute'", id));
        return;
    };
    let negotiated = control.with(|inner| inner.negotiated);
    if negotiated == (name == "qmp_capabilities") {
        let desc = if negotiated {
            "Capabilities negotiation is already complete, command ignored"
        } else {
            "Expecting capabilities negotiation with 'qmp_capabilities'"
        };
        control.say(&error("CommandNotFound", desc, id));
        return;
    }
    let status = |status: &str| json!({ "status": status, "running": status == "running" });
    let arguments = &command["arguments"];
    if name == "device_add" && machine.options.device_add == Manners::Die {
        return machine.end(End::Signal(11));
    }
    if name == "screendump" && machine.options.screendump == Manners::Hang {
        return;
    }
    let (mut deleted, mut set) = (None, 0);
    let refused = match name {
        "device_add" => hardware::add(machine, arguments).err(),
        "device_del" => hardware::remove(machine, arguments).map(|gone| deleted = gone).err(),
        "netdev_add" => machine.hardware.add_network(arguments).err(),
        "netdev_del" => machine.hardware.remove_network(arguments).err(),
        "getfd" => machine.migration.take(arguments, fds).err(),
        "dump-guest-memory" => {
            std::thread::sleep(std::time::Duration::from_secs(machine.options.dump));
            machine.migration.dump(arguments).err()
        }
        "balloon" => machine.balloon(arguments["value"].as_u64()).err(),
        "query-balloon" => machine.balloon(None).err(),
        "add-fd" => machine.screen.take(fds).map(|number| set = number).err(),
        "remove-fd" => machine.screen.drop_set(arguments).err(),
        "screendump" => machine.screen.dump(&machine.args, machine.options.screendump, arguments).err(),
        "migrate-set-capabilities" => machine.migration.set_capabilities(arguments).err(),
        "migrate-set-parameters" => machine.migration.set_parameters(arguments).err(),
        "migrate" => migrate::ask(machine, arguments).err(),
        "migrate-incoming" => migrate::ask_incoming(machine, arguments).err(),
        "cont" => migrate::may_go_on(machine).err(),
        _ => None,
    };
    if let Some(desc) = refused {
        control.say(&error("GenericError", &desc, id));
        return;
    }
    let result = match name {
        "getfd"
        | "dump-guest-memory"
        | "migrate-set-capabilities"
        | "migrate-set-parameters"
        | "migrate"
        | "migrate-incoming"
        | "device_add"
        | "device_del"
        | "netdev_add"
        | "netdev_del"
        | "remove-fd"
        | "balloon"
        | "screendump" => json!({}),
        "query-memory-devices" => json!([]),
        "query-balloon" => json!({ "actual": machine.balloon(None).unwrap_or_default() }),
        "add-fd" => json!({ "fdset-id": set, "fd": 99 }),
        "query-migrate" => machine.migration.info(),
        "qmp_capabilities" => {
            control.with(|inner| inner.negotiated = true);
            json!({})
        }
        "query-status" => status(machine.status()),
        "query-version" => version.clone(),
        "query-commands" => COMMANDS.iter().map(|n| json!({ "name": n })).collect(),
        "query-name" | "set_link" | "system_wakeup" | "inject-nmi" | "set-action" => json!({}),
        "blockdev-open-tray" | "blockdev-remove-medium" | "blockdev-insert-medium" | "blockdev-close-tray" => json!({}),
        "query-kvm" => json!({ "enabled": machine.args.accel() == "kvm", "present": true }),
        "query-uuid" => json!({ "UUID": "00000000-0000-0000-0000-000000000000" }),
        "query-chardev" => {
            let devs = machine.args.all("chardev");
            let open = |id: Option<&str>| id.is_none_or(|id| !machine.is_closed(id));
            devs.map(|d| json!({ "label": d.id(), "filename": "fd", "frontend-open": open(d.id()) })).collect()
        }
        "query-fdsets" | "query-block" | "query-blockstats" => json!([]),
        "query-cpus-fast" => json!([{ "cpu-index": 0, "thread-id": std::process::id(), "target": "x86_64" }]),
        "query-memory-size-summary" => json!({ "base-memory": 1_u64 << 30 }),
        "human-monitor-command" => {
            json!(sshd::monitor(machine, arguments["command-line"].as_str().unwrap_or_default()))
        }
        "stop" | "cont" => {
            let (now, event) = if name == "stop" { ("paused", "STOP") } else { ("running", "RESUME") };
            if machine.status() != now {
                machine.set_status(now);
                control.event(event, &Value::Null);
            }
            if name == "stop"
                && let Err(why) = migrate::to_memory(machine, guest)
            {
                machine.script_failed(&format!("the guest does not get into its memory: {why}"));
            }
            json!({})
        }
        "system_reset" => {
            control.event("RESET", &json!({ "guest": false, "reason": "host-qmp-system-reset" }));
            json!({})
        }
        "system_powerdown" => {
            control.event("POWERDOWN", &Value::Null);
            machine.mark("powerdown");
            json!({})
        }
        "quit" => {
            // The event comes before the reply: the main loop sees the request to shut down first.
            if machine.options.quit_obeyed {
                control.event("SHUTDOWN", &json!({ "guest": false, "reason": "host-qmp-quit" }));
            }
            json!({})
        }
        _ => {
            let desc = format!("The command {name} has not been found");
            control.say(&error("CommandNotFound", &desc, id));
            return;
        }
    };
    let mut reply = json!({ "return": result });
    if let Some(id) = id {
        reply["id"] = id.clone();
    }
    control.say(&reply);
    match name {
        "qmp_capabilities" => machine.mark("qmp"),
        "device_add" => machine.mark("device-added"),
        "device_del" => {
            if let Some(id) = deleted {
                control.event("DEVICE_DELETED", &hardware::deleted(&id));
            }
        }
        "migrate" => migrate::save(machine),
        "migrate-incoming" => migrate::load(machine, guest),
        "system_powerdown" if machine.options.powerdown_obeyed => machine.shutdown(true, "guest-shutdown"),
        "quit" if machine.options.quit_obeyed => machine.end(End::Exit(0)),
        _ => {}
    }
}
