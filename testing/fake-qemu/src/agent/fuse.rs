//! Shares over FUSE, as far as a guest without a kernel can have them: a kernel's first requests to Belljar's server, and what no kernel sends.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use crate::machine::Machine;

/// How long a server may take for an answer.
const LIMIT: Duration = Duration::from_secs(60);
/// Operations (the kernel's `include/uapi/linux/fuse.h`).
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
/// No operation.
const UNKNOWN: u32 = 9999;
/// The root's number.
const ROOT: u64 = 1;
const ENOSYS: i32 = 38;

/// One share that was mounted.
#[derive(Debug)]
pub(crate) struct Fuse {
    /// The device's id.
    id: String,
    port: UnixStream,
    last: u64,
}

impl Fuse {
    /// Opens the port of this name and mounts what is behind it.
    pub(crate) fn mount(machine: &Machine, name: &str) -> Result<Self, String> {
        let device = machine.args.all("device").find(|d| d.driver() == "virtserialport" && d.get("name") == Some(name));
        let device = device.ok_or_else(|| format!("the machine has no port {name}"))?;
        let chardev = machine.args.all("chardev").find(|c| c.id() == device.get("chardev"));
        let fd = chardev.and_then(|c| c.get("fd")).ok_or_else(|| format!("nothing is behind the port {name}"))?;
        let port = crate::socket(fd).map_err(|e| e.to_string())?;
        port.set_read_timeout(Some(LIMIT)).map_err(|e| e.to_string())?;
        let mut fuse = Self { id: device.id().unwrap_or_default().to_owned(), port, last: 0 };
        machine.share_port(&fuse.id, true);
        // Version 7.31: `fuse_init_in` has four words then.
        let words: Vec<u8> = [7_u32, 31, 1 << 17, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        fuse.expect(INIT, ROOT, &words, |error| error == 0)?;
        fuse.expect(GETATTR, ROOT, &[0; 16], |error| error == 0)?;
        Ok(fuse)
    }

    /// What the guest does with it when a command begins. An error is Belljar's.
    pub(crate) fn play(&mut self, machine: &Machine, how: &str) -> Result<(), String> {
        self.misbehave(machine, how)?;
        if matches!(how, "short" | "long" | "cut" | "killed") {
            // The relay ends when nobody is behind its port, and only then the kernel has errors for whoever uses the share.
            let left = self.port.read(&mut [0; 64]).map_err(|e| format!("the server does not close the port: {e}"))?;
            if left > 0 {
                return Err(format!("{how} was answered"));
            }
            machine.share_port(&self.id, false);
        }
        Ok(())
    }

    fn misbehave(&mut self, machine: &Machine, how: &str) -> Result<(), String> {
        let said = |e: std::io::Error| e.to_string();
        match how {
            "unknown" => self.expect(UNKNOWN, ROOT, &[], |error| error == -ENOSYS),
            "outside" => {
                for name in ["..", ".", "a/b", "../../etc/passwd", ""] {
                    self.expect(LOOKUP, ROOT, format!("{name}\0").as_bytes(), |error| error < 0)?;
                }
                // A node that nobody has told it of.
                self.expect(GETATTR, 4711, &[0; 16], |error| error < 0)
            }
            // A length that is shorter than a header, and one that nothing has room for.
            "short" => self.port.write_all(&[&7_u32.to_le_bytes()[..], &[0; 60]].concat()).map_err(said),
            "long" => self.port.write_all(&[&u32::MAX.to_le_bytes()[..], &[0; 60]].concat()).map_err(said),
            "cut" => {
                let request = self.request(GETATTR, ROOT, &[0; 16]);
                self.port.write_all(&request[..44]).map_err(said)?;
                self.port.shutdown(Shutdown::Write).map_err(said)
            }
            "closed" => {
                machine.share_port(&self.id, false);
                Ok(())
            }
            "killed" => to_servers(rustix::process::Signal::KILL),
            "stopped" => to_servers(rustix::process::Signal::STOP),
            _ => Ok(()),
        }
    }

    fn request(&mut self, operation: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.last += 2;
        let length = u32::try_from(40 + body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::new();
        bytes.extend(length.to_le_bytes());
        bytes.extend(operation.to_le_bytes());
        bytes.extend(self.last.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        // Who asks: root, process 1.
        bytes.extend([0_u32, 0, 1, 0].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(body);
        bytes
    }

    /// Asks, and fails unless the answer is to that and its error is a right one.
    fn expect(&mut self, operation: u32, node: u64, body: &[u8], right: fn(i32) -> bool) -> Result<(), String> {
        let request = self.request(operation, node, body);
        let asked = || format!("FUSE operation {operation} of node {node} with {:?}", String::from_utf8_lossy(body));
        let said = |e: std::io::Error| format!("{}: {e}", asked());
        self.port.write_all(&request).map_err(said)?;
        let mut header = [0; 16];
        self.port.read_exact(&mut header).map_err(said)?;
        let [l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = header;
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(0);
        let mut rest = vec![0; length.saturating_sub(header.len())];
        self.port.read_exact(&mut rest).map_err(said)?;
        let error = i32::from_le_bytes([e0, e1, e2, e3]);
        if u64::from_le_bytes(unique) != self.last || !right(error) {
            return Err(format!("{} was answered with error {error}", asked()));
        }
        Ok(())
    }
}

/// Kills the servers of this machine's Belljar: other children of its own parent.
fn to_servers(signal: rustix::process::Signal) -> Result<(), String> {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).map_err(|e| e.to_string())?;
    for child in children.split_whitespace() {
        let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|word| word == b"--share") {
            let pid = child.parse().ok().and_then(rustix::process::Pid::from_raw);
            let pid = pid.ok_or_else(|| format!("no process: {child}"))?;
            rustix::process::kill_process(pid, signal).map_err(|e| e.to_string())?;
        }
    }
    // Those of further shares are dead already then; that they are is seen at their ports.
    Ok(())
}
