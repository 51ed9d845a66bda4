//! The host's side, without its manners.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio as ProcessStdio};
use std::time::Duration;

use belljar_proto::frame::{Decoder, Encoder, Frame, Kind, from_bytes};
use belljar_proto::message::{Exec, Nonce, OutputEnd, Status, Stdio, ToAgent, ToHost, VERSION};

pub(crate) const NONCE: Nonce = Nonce(*b"0123456789abcdef");

/// An agent and our end of its port.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    pub(crate) session: u64,
    decoder: Decoder,
    frames: VecDeque<Frame>,
    agent: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The agent ends with its port, and its commands with it.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.agent.wait();
    }
}

impl Peer {
    /// An agent that nobody has greeted.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more arguments.
    pub(crate) fn start_with(more: &[&std::ffi::OsStr]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // A bound for a test that hangs, never reached by one that passes.
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_belljar-agent"))
            .args(["serve", "--fd", "0"])
            .args(more)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C")
            .stdin(ProcessStdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self { stream: ours, session: 0, decoder: Decoder::new(), frames: VecDeque::new(), agent }
    }

    /// An agent in a session.
    pub(crate) fn greeted() -> Self {
        let mut peer = Self::start();
        assert!(matches!(peer.message(), ToHost::Announce(_)));
        peer.greet(4711);
        peer
    }

    pub(crate) fn greet(&mut self, session: u64) {
        self.hello(session);
        while self.message() != ToHost::Ready {}
    }

    pub(crate) fn hello(&mut self, session: u64) {
        self.session = 0;
        self.send(&ToAgent::Hello { version: VERSION, session });
        self.session = session;
    }

    pub(crate) fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        Encoder::new(self.session).message(message, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn stdin(&mut self, id: u32, bytes: &[u8]) {
        let mut frames = Vec::new();
        Encoder::new(self.session).bytes(Kind::Stdin, id, bytes, &mut frames);
        self.stream.write_all(&frames).unwrap();
    }

    /// The next frame; `None` when the agent has closed the port.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut buffer = [0; 65536];
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let read = self.stream.read(&mut buffer).expect("the agent says nothing");
            if read == 0 {
                return None;
            }
            self.decoder.push(&buffer[..read]);
            while let Some(next) = self.decoder.next_frame() {
                self.frames.push_back(next.expect("the agent sends only frames"));
            }
        }
    }

    /// The next message; bulk is passed over.
    pub(crate) fn message(&mut self) -> ToHost {
        loop {
            let frame = self.frame().expect("the agent is there");
            if frame.kind == Kind::Control {
                return from_bytes(&frame.payload).unwrap();
            }
        }
    }

    /// Waits for a message that is wanted.
    pub(crate) fn await_message<T>(&mut self, mut take: impl FnMut(&ToHost) -> Option<T>) -> T {
        loop {
            let message = self.message();
            if let Some(taken) = take(&message) {
                return taken;
            }
            assert!(
                matches!(message, ToHost::Started { .. } | ToHost::StdinCredit { .. } | ToHost::StdinClosed(_)),
                "unexpected {message:?}"
            );
        }
    }

    /// Runs a command with no input to its end.
    pub(crate) fn run(&mut self, exec: Exec) -> Ran {
        let id = exec.id;
        self.send(&ToAgent::Exec(Box::new(exec)));
        self.send(&ToAgent::StdinEof(id));
        self.outcome(id)
    }

    /// Takes a command's output and its end.
    pub(crate) fn outcome(&mut self, id: u32) -> Ran {
        let mut ran = Ran::default();
        loop {
            let frame = self.frame().expect("the agent is there");
            match frame.kind {
                Kind::Stdout => ran.stdout.extend_from_slice(&frame.payload),
                Kind::Stderr => ran.stderr.extend_from_slice(&frame.payload),
                _ => match from_bytes(&frame.payload).unwrap() {
                    ToHost::Exited { id: of, nonce, status, output } => {
                        assert_eq!((of, nonce), (id, NONCE));
                        ran.status = Some(status);
                        ran.output = Some(output);
                        return ran;
                    }
                    ToHost::ExecFailed { id: of, what, errno } => {
                        assert_eq!(of, id);
                        ran.failed = Some((what, errno));
                        return ran;
                    }
                    ToHost::Lingers(of) => {
                        assert_eq!((of, std::mem::replace(&mut ran.lingers, true)), (id, false));
                    }
                    ToHost::Started { .. } | ToHost::StdinClosed(_) | ToHost::StdinCredit { .. } => {}
                    other => panic!("unexpected {other:?}"),
                },
            }
        }
    }

    pub(crate) fn sh(&mut self, id: u32, script: &str) -> Ran {
        self.run(exec(id, &["sh", "-c", script]))
    }

    /// Resident memory of the agent, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.agent.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }
}

/// What became of a command.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Option<Status>,
    pub(crate) failed: Option<(String, i32)>,
    /// Whether the host was told that the command ended and its output did not.
    pub(crate) lingers: bool,
    pub(crate) output: Option<OutputEnd>,
}

impl Ran {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub(crate) fn exec(id: u32, argv: &[&str]) -> Exec {
    Exec {
        id,
        nonce: NONCE,
        argv: argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env: vec![],
        clear_env: false,
        cwd: None,
        user: None,
        stdio: Stdio::Pipes,
        guards: None,
    }
}
