//! Against the real agent, as a process of this machine, and against peers that do not keep to the protocol.

mod hostile;
mod real;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use belljar_proto::message::{Exec, Nonce, Stdio};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

use super::{OutputSink, SinkFuture};

const NONCE: Nonce = Nonce([7; 16]);

/// Keeps what a command prints, and tells a listener of it.
#[derive(Default)]
struct Kept {
    pid: Option<u32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    tell: Option<mpsc::UnboundedSender<Vec<u8>>>,
}

impl OutputSink for Kept {
    fn started(&mut self, pid: u32) {
        self.pid = Some(pid);
    }
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.stdout.extend_from_slice(bytes);
        if let Some(tell) = &self.tell {
            let _ = tell.send(bytes.to_vec());
        }
        Box::pin(async { Ok(()) })
    }
    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.stderr.extend_from_slice(bytes);
        Box::pin(async { Ok(()) })
    }
}

/// A sink that breaks at the first byte.
struct Broken;

impl OutputSink for Broken {
    fn stdout<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async { Err(io::Error::from(io::ErrorKind::BrokenPipe)) })
    }
    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async { Err(io::Error::from(io::ErrorKind::BrokenPipe)) })
    }
}

/// Input without an end.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        buffer.initialize_unfilled().fill(b'y');
        buffer.advance(room);
        Poll::Ready(Ok(()))
    }
}

fn command(argv: &[&str]) -> Exec {
    Exec {
        id: 0,
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

fn sh(script: &str) -> Exec {
    command(&["sh", "-c", script])
}

/// Runs one test's future as the program runs: on one thread, with time that is real.
fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        tokio::time::timeout(std::time::Duration::from_secs(60), test).await.expect("the test hangs")
    })
}
