//! An SSH server as far as it is seen before anybody logs in: a port that is forwarded to it, and its first line.
//!
//! Who sends `LOGIN` to the port, as a test's own `ssh` does, sets the mark `ssh`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::machine::Machine;

/// How long a line may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The port that is forwarded, if one is.
#[derive(Debug, Default)]
pub(crate) struct Forward(Mutex<Option<u16>>);

/// A line for the human monitor; what it answers.
pub(crate) fn monitor(machine: &Arc<Machine>, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut forward = machine.forward.0.lock().unwrap_or_else(PoisonError::into_inner);
    match (&words[..], *forward) {
        (["hostfwd_add", "net0", "tcp:127.0.0.1:0-:22"], None) => {
            if !machine.args.all("netdev").any(|netdev| netdev.id() == Some("net0")) {
                return "Invalid host forwarding rule\r\n".into();
            }
            match listen(machine) {
                Ok(port) => *forward = Some(port),
                Err(error) => return format!("Could not set up host forwarding rule: {error}\r\n"),
            }
            String::new()
        }
        (["hostfwd_remove", "net0", rule], Some(port)) if *rule == format!("tcp:127.0.0.1:{port}") => {
            *forward = None;
            machine.mark("forward-removed");
            format!("host forwarding rule for {rule} removed\r\n")
        }
        (["info", "usernet"], _) => {
            let rule = forward.map(|port| {
                format!("  TCP[HOST_FORWARD]  13       127.0.0.1 {port}       10.0.2.15    22     0     0\r\n")
            });
            format!(
                "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n{}",
                rule.unwrap_or_default()
            )
        }
        _ => String::new(),
    }
}

fn listen(machine: &Arc<Machine>) -> std::io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let machine = Arc::clone(machine);
    thread::spawn(move || {
        for line in listener.incoming().flatten() {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                // QEMU takes a connection, whoever is behind the port; nobody there ends it.
                if !machine.options.sshd {
                    return;
                }
                let mut line = line;
                let _gone = line.set_read_timeout(Some(LIMIT)).and_then(|()| line.write_all(b"SSH-2.0-fake\r\n"));
                let mut said = String::new();
                if BufReader::new(&line).read_line(&mut said).is_ok() && said == "LOGIN\n" {
                    machine.mark("ssh");
                }
            });
        }
    });
    Ok(port)
}
