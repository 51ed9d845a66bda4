//! Whoever watches that a container does not write more than it may: as for a machine, but what is ended is the container.

use std::{io, net::Shutdown, os::unix::net::UnixStream, sync::mpsc, thread};

use tokio::sync::oneshot;

use crate::bounds::{Exceeded, Gauge};

/// A container that is watched. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Gauged {
    /// Dropped, it asks for a last look.
    more: Option<mpsc::Sender<()>>,
    outcome: oneshot::Receiver<Option<Exceeded>>,
    exceeded: Option<Exceeded>,
}

impl Gauged {
    /// Watches a container that ends when this port is closed.
    pub(crate) fn start(mut gauge: Gauge, port: UnixStream) -> io::Result<Self> {
        let (more, asked) = mpsc::channel::<()>();
        let (tell, outcome) = oneshot::channel();
        let watch = move || {
            let exceeded = loop {
                match asked.recv_timeout(gauge.next()) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        if let Some(exceeded) = gauge.look(false) {
                            break Some(exceeded);
                        }
                    }
                    _ => break gauge.look(true),
                }
            };
            if exceeded.is_some() {
                let _ = port.shutdown(Shutdown::Both);
            }
            let _ = tell.send(exceeded);
        };
        thread::Builder::new().name("gauge".into()).stack_size(256 << 10).spawn(watch)?;
        Ok(Self { more: Some(more), outcome, exceeded: None })
    }

    /// Whether it has written too much, as far as is known now.
    pub(crate) fn exceeded(&mut self) -> Option<Exceeded> {
        if let Ok(Some(exceeded)) = self.outcome.try_recv() {
            self.exceeded = Some(exceeded);
        }
        self.exceeded.clone()
    }

    /// Looks a last time.
    pub(crate) async fn finish(mut self) -> Option<Exceeded> {
        if self.exceeded().is_some() {
            return self.exceeded;
        }
        drop(self.more.take());
        self.outcome.await.ok().flatten()
    }
}
