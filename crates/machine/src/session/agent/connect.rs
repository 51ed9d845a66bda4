//! Finding the agent on one of several ports.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use belljar_proto::frame::{Decoder, Encoder, Frame, HEADER_LEN, Kind, MAX_PAYLOAD, from_bytes};
use belljar_proto::message::{Announce, ToAgent, ToHost, VERSION};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, MissedTickBehavior};

use super::error::{SessionError, clean};
use super::link::Link;

/// How long an agent may take to answer a greeting before it is greeted again.
const GREET_AGAIN: Duration = Duration::from_secs(3);

/// Bytes that are taken at once while nothing but an announcement is expected.
const HEARING: usize = 4 * 1024;

/// What a port must be able to do.
pub trait Port: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Port for T {}

/// Any port.
pub type BoxedPort = Box<dyn Port>;

/// Which way leads to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// A virtio port.
    Virtio,
    /// The second serial port.
    Serial,
    /// A socket that a container connects to.
    Socket,
}

/// A port on which nobody has announced himself yet.
struct Candidate {
    kind: PortKind,
    port: BoxedPort,
    decoder: Decoder,
}

impl Candidate {
    /// Reads until an announcement comes. What is no announcement is left over from earlier and passed over.
    fn poll_announce(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<Announce, SessionError>> {
        loop {
            while let Some(next) = self.decoder.next_frame() {
                if let Some(announce) = next.ok().as_ref().and_then(announced) {
                    return Poll::Ready(Ok(announce));
                }
            }
            let mut read = ReadBuf::new(buffer);
            match Pin::new(&mut self.port).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(source)) => {
                    let what = "reading";
                    return Poll::Ready(Err(SessionError::Port { what, source }));
                }
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    return Poll::Ready(Err(closed(&self.decoder)));
                }
                Poll::Ready(Ok(())) => self.decoder.push(read.filled()),
            }
        }
    }
}

fn announced(frame: &Frame) -> Option<Announce> {
    if frame.session != 0 || frame.kind != Kind::Control {
        return None;
    }
    match from_bytes(&frame.payload) {
        Ok(ToHost::Announce(announce)) => Some(announce),
        _ => None,
    }
}

fn closed(decoder: &Decoder) -> SessionError {
    SessionError::Closed { mid_frame: decoder.pending() > 0 }
}

pub(super) async fn connect(ports: Vec<(PortKind, BoxedPort)>) -> Result<(Link, Announce, PortKind), SessionError> {
    let mut candidates: Vec<Candidate> =
        ports.into_iter().map(|(kind, port)| Candidate { kind, port, decoder: Decoder::new() }).collect();
    let mut buffer = vec![0; HEARING];
    let mut last = SessionError::Closed { mid_frame: false };
    while !candidates.is_empty() {
        let (at, announce) = poll_fn(|cx| {
            for (at, candidate) in candidates.iter_mut().enumerate() {
                if let Poll::Ready(announce) = candidate.poll_announce(cx, &mut buffer) {
                    return Poll::Ready((at, announce));
                }
            }
            Poll::Pending
        })
        .await;
        let candidate = candidates.swap_remove(at);
        let kind = candidate.kind;
        let greeted = match announce {
            Ok(announce) if announce.version != VERSION => {
                return Err(SessionError::Version { theirs: announce.version, ours: VERSION });
            }
            Ok(announce) => {
                greet(kind, candidate.port, candidate.decoder, &mut buffer).await.map(|link| (link, announce))
            }
            Err(error) => Err(error),
        };
        match greeted {
            Ok((link, announce)) => return Ok((link, clean_announce(announce), kind)),
            // Another port may still lead to the agent.
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Greets an agent that had a session with another host, and does not announce itself as it knows of no end.
pub(super) async fn resume(kind: PortKind, port: BoxedPort) -> Result<Link, SessionError> {
    greet(kind, port, Decoder::new(), &mut vec![0; HEARING]).await
}

/// Greets the agent and waits until it is ready.
async fn greet(
    kind: PortKind,
    mut port: BoxedPort,
    mut decoder: Decoder,
    buffer: &mut [u8],
) -> Result<Link, SessionError> {
    let session = session_tag()?;
    let mut hello = Vec::new();
    Encoder::default()
        .message(&ToAgent::Hello { version: VERSION, session }, &mut hello)
        .map_err(SessionError::Message)?;
    send(&mut port, &hello).await?;
    let mut again = tokio::time::interval_at(Instant::now() + GREET_AGAIN, GREET_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(next) = decoder.next_frame() {
            // Rubbish before the agent's answer is of its port's earlier life.
            let Ok(frame) = next else { continue };
            if announced(&frame).is_some() {
                // It had not heard us when it said this; an agent that has, knows the tag and stays as it is.
                send(&mut port, &hello).await?;
            } else if frame.session == session {
                return match from_bytes(&frame.payload) {
                    Ok(ToHost::Ready) => Ok(Link::start(kind, port, decoder, session)),
                    Ok(ToHost::Fatal(text)) => Err(SessionError::AgentFatal { detail: clean(&text) }),
                    _ => Err(SessionError::Protocol { what: "something else came before it was ready".into() }),
                };
            }
        }
        let read = tokio::select! {
            read = port.read(buffer) => read,
            _ = again.tick() => {
                // A host before us may have died in the middle of a frame, whose rest the agent then awaits: enough zeros for
                // the longest.
                let mut padded = vec![0; HEADER_LEN + MAX_PAYLOAD];
                padded.extend_from_slice(&hello);
                send(&mut port, &padded).await?;
                continue;
            }
        };
        let read = read.map_err(|source| SessionError::Port { what: "reading", source })?;
        if read == 0 {
            return Err(closed(&decoder));
        }
        decoder.push(&buffer[..read]);
    }
}

async fn send(port: &mut BoxedPort, bytes: &[u8]) -> Result<(), SessionError> {
    port.write_all(bytes).await.map_err(|source| SessionError::Port { what: "writing", source })
}

/// A tag that no earlier session of this guest, or of a clone of it, has had. Never 0.
pub(super) fn session_tag() -> Result<u64, SessionError> {
    loop {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(SessionError::Random)?;
        let tag = u64::from_le_bytes(bytes);
        if tag != 0 {
            return Ok(tag);
        }
    }
}

fn clean_announce(announce: Announce) -> Announce {
    Announce {
        kernel: clean(&announce.kernel),
        machine: clean(&announce.machine),
        hostname: clean(&announce.hostname),
        ..announce
    }
}
