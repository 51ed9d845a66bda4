use std::time::Duration;

use belljar_proto::frame::{Decoder, Encoder, Frame, HEADER_LEN, Kind, MAGIC, from_bytes};
use belljar_proto::message::{Announce, Nonce, OutputEnd, STDIN_WINDOW, Status, ToAgent, ToHost, VERSION};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::*;
use super::{Endless, Kept, NONCE, run, sh};

/// The guest's side, under the test's control.
struct Guest {
    port: DuplexStream,
    decoder: Decoder,
    session: u64,
}

fn announce() -> ToHost {
    ToHost::Announce(Announce {
        version: VERSION,
        pid1: true,
        kernel: "6.1\x1b[31m".into(),
        machine: "x86_64".into(),
        hostname: "guest".into(),
        in_initramfs: false,
    })
}

impl Guest {
    fn new(port: DuplexStream) -> Self {
        Self { port, decoder: Decoder::new(), session: 0 }
    }

    async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.port.write_all(bytes).await;
    }

    async fn say(&mut self, message: &ToHost) {
        let mut bytes = Vec::new();
        Encoder::new(self.session).message(message, &mut bytes).unwrap();
        self.raw(&bytes).await;
    }

    async fn bulk(&mut self, kind: Kind, exec: u32, bytes: &[u8]) {
        let mut frames = Vec::new();
        Encoder::new(self.session).bytes(kind, exec, bytes, &mut frames);
        self.raw(&frames).await;
    }

    async fn hear(&mut self) -> Option<Frame> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Some(frame.unwrap());
            }
            let read = self.port.read(&mut buffer).await.ok().filter(|&read| read > 0)?;
            self.decoder.push(&buffer[..read]);
        }
    }

    async fn hear_message(&mut self) -> ToAgent {
        loop {
            let frame = self.hear().await.unwrap();
            if frame.kind == Kind::Control {
                return from_bytes(&frame.payload).unwrap();
            }
        }
    }

    async fn begin(&mut self) {
        self.say(&announce()).await;
        let ToAgent::Hello { session, .. } = self.hear_message().await else { panic!("no greeting") };
        self.session = session;
        self.say(&ToHost::Ready).await;
    }
}

/// Runs a command against a guest that does `behave` once it was asked to.
async fn against<F>(behave: impl FnOnce(Guest) -> F) -> (Result<Status, SessionError>, Kept)
where
    F: Future<Output = Guest>,
{
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let mut guest = Guest::new(theirs);
    let host = async {
        let (mut session, announce, _) = AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]).await?;
        assert_eq!(announce.kernel, "6.1\u{FFFD}[31m");
        session.set_liveness(Liveness { silent_after: Duration::from_secs(30) });
        let mut sink = Kept::default();
        let io = ExecIo { stdin: Some(&mut Endless), sink: &mut sink, control: None };
        let status = session.exec(sh("x"), io).await;
        Ok((status, sink))
    };
    let script = async {
        guest.begin().await;
        assert!(matches!(guest.hear_message().await, ToAgent::Exec(_)));
        let mut guest = behave(guest).await;
        // Until the host hangs up.
        while guest.hear().await.is_some() {}
    };
    let host = async {
        let outcome: Result<_, SessionError> = host.await;
        outcome
    };
    let (outcome, ()) = tokio::join!(host, script);
    match outcome {
        Ok(outcome) => outcome,
        Err(error) => (Err(error), Kept::default()),
    }
}

fn exited(id: u32, nonce: Nonce) -> ToHost {
    ToHost::Exited { id, nonce, status: Status::Code(0), output: OutputEnd::Whole }
}

#[test]
fn a_guest_that_keeps_to_it_passes() {
    let (status, sink) = run(against(async |mut guest: Guest| {
        guest.say(&ToHost::Started { id: 1, pid: 9 }).await;
        guest.bulk(Kind::Stdout, 1, b"hi").await;
        guest.say(&ToHost::Log("a line".into())).await;
        guest.say(&exited(1, NONCE)).await;
        guest
    }));
    assert_eq!(status.unwrap(), Status::Code(0));
    assert_eq!((sink.pid, &*sink.stdout), (Some(9), &b"hi"[..]));
}

/// The error that a guest's behaviour ends in.
fn error<F>(behave: impl FnOnce(Guest) -> F) -> SessionError
where
    F: Future<Output = Guest>,
{
    run(against(behave)).0.unwrap_err()
}

#[test]
fn a_result_without_this_attempts_nonce_is_none() {
    let error = error(async |mut guest: Guest| {
        guest.say(&exited(1, Nonce([8; 16]))).await;
        guest
    });
    assert!(matches!(error, SessionError::WrongNonce { id: 1 }), "{error}");
}

#[test]
fn a_result_of_another_session_is_none() {
    let error = error(async |mut guest: Guest| {
        guest.session ^= 1;
        guest.say(&exited(1, NONCE)).await;
        guest
    });
    assert!(matches!(error, SessionError::WrongSession), "{error}");
}

#[test]
fn a_result_of_another_command_is_none() {
    for id in [0, 2, u32::MAX] {
        let error = error(async |mut guest: Guest| {
            guest.say(&exited(id, NONCE)).await;
            guest
        });
        assert!(matches!(error, SessionError::UnknownExec { id: of, .. } if of == id), "{error}");
    }
}

#[test]
fn output_of_another_command_is_an_error() {
    let error = error(async |mut guest: Guest| {
        guest.bulk(Kind::Stderr, 2, b"x").await;
        guest
    });
    assert!(matches!(error, SessionError::UnknownExec { id: 2, .. }), "{error}");
}

#[test]
fn the_end_of_the_port_is_no_result() {
    let error = run(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        let host = async {
            let (mut session, ..) = AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]).await?;
            let mut sink = Kept::default();
            let io = ExecIo { stdin: None, sink: &mut sink, control: None };
            session.exec(sh("x"), io).await
        };
        let script = async {
            guest.begin().await;
            guest.hear_message().await;
            let mut frames = Vec::new();
            Encoder::new(guest.session).message(&exited(1, NONCE), &mut frames).unwrap();
            // All but the last byte.
            guest.raw(&frames[..frames.len() - 1]).await;
            drop(guest);
        };
        let (outcome, ()) = tokio::join!(host, script);
        outcome.unwrap_err()
    });
    assert!(matches!(error, SessionError::Closed { mid_frame: true }), "{error}");
    assert!(error.to_string().contains("in the middle of a frame"));
}

#[test]
fn rubbish_and_huge_lengths_end_the_session() {
    let mut huge = vec![0; HEADER_LEN];
    huge[..4].copy_from_slice(&[MAGIC[0], MAGIC[1], 1, 1]);
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    for rubbish in [b"Kernel panic - not syncing".to_vec(), huge] {
        let error = error(async |mut guest: Guest| {
            guest.raw(&rubbish).await;
            guest.say(&exited(1, NONCE)).await;
            guest
        });
        assert!(matches!(error, SessionError::Garbage(_)), "{error}");
    }
}

#[test]
fn a_message_that_never_ends_is_refused() {
    let error = error(async |mut guest: Guest| {
        guest.bulk(Kind::Part, 0, &vec![1; 1 << 20]).await;
        guest
    });
    assert!(matches!(error, SessionError::Message(_)), "{error}");
}

#[test]
fn room_that_is_not_there_is_not_believed() {
    let error = error(async |mut guest: Guest| {
        let bytes = STDIN_WINDOW;
        for _ in 0..3 {
            guest.say(&ToHost::StdinCredit { id: 1, bytes }).await;
        }
        guest
    });
    assert!(matches!(error, SessionError::Protocol { .. }), "{error}");
}

#[test]
fn an_agent_that_starts_again_is_noticed() {
    let error = error(async |mut guest: Guest| {
        guest.session = 0;
        guest.say(&announce()).await;
        guest
    });
    assert!(matches!(error, SessionError::Restarted), "{error}");
}

#[test]
fn the_agents_own_words_are_made_harmless() {
    let error = error(async |mut guest: Guest| {
        guest.say(&ToHost::Fatal("\x1b]0;owned\x07\u{202E}".into())).await;
        guest
    });
    assert_eq!(error.to_string(), "the agent gave up: \u{FFFD}]0;owned\u{FFFD}\u{FFFD}");
}

#[test]
fn silence_is_noticed_and_asked_about() {
    // Time stands still but for the timers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut asked = 0;
    let error = runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        let host = async {
            let (mut session, ..) = AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]).await?;
            session.set_liveness(Liveness { silent_after: Duration::from_secs(30) });
            let mut sink = Kept::default();
            let io = ExecIo { stdin: None, sink: &mut sink, control: None };
            session.exec(sh("x"), io).await
        };
        let script = async {
            guest.begin().await;
            // Alive for a minute, then no more.
            let begin = tokio::time::Instant::now();
            while let Some(frame) = guest.hear().await {
                if let Ok(ToAgent::Ping(number)) = from_bytes(&frame.payload) {
                    asked += 1;
                    if begin.elapsed() < Duration::from_secs(60) {
                        guest.say(&ToHost::Pong(number)).await;
                    }
                }
            }
        };
        let (outcome, ()) = tokio::join!(host, script);
        outcome.unwrap_err()
    });
    let SessionError::Silent { since, .. } = error else { panic!("{error}") };
    assert_eq!(since.as_secs(), 30);
    assert!(asked > 12, "{asked}");
}

#[test]
fn a_stale_agent_is_refused() {
    let error = run(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        let ToHost::Announce(mut announce) = announce() else { unreachable!() };
        announce.version = VERSION + 1;
        guest.say(&ToHost::Announce(announce)).await;
        AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]).await.err().unwrap()
    });
    assert!(matches!(error, SessionError::Version { theirs, .. } if theirs == VERSION + 1), "{error}");
}

#[test]
fn rubbish_before_the_answer_is_of_an_earlier_life() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        let host = AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]);
        let script = async {
            guest.raw(b"half a frame").await;
            guest.session = 12345;
            guest.bulk(Kind::Stdout, 3, b"of the session before").await;
            guest.say(&exited(3, NONCE)).await;
            guest.session = 0;
            guest.say(&announce()).await;
            let ToAgent::Hello { session, .. } = guest.hear_message().await else { panic!("no greeting") };
            // Said before the greeting came; it is then said again.
            guest.say(&announce()).await;
            let again = guest.hear_message().await;
            assert!(matches!(again, ToAgent::Hello { session: again, .. } if again == session));
            guest.session = session;
            guest.say(&ToHost::Ready).await;
            guest
        };
        let (session, _guest) = tokio::join!(host, script);
        session.unwrap();
    });
}

#[test]
fn an_agent_that_awaits_the_rest_of_a_frame_is_greeted_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        // The beginning of a frame of a host that died.
        let mut frame = Vec::new();
        Encoder::new(1).bytes(Kind::Stdin, 1, &vec![0; 60_000], &mut frame);
        guest.decoder.push(&frame[..100]);
        let script = async {
            let greeting = loop {
                if let Some(Ok(frame)) = guest.decoder.next_frame() {
                    break frame;
                }
                let mut buffer = [0; 4096];
                let read = guest.port.read(&mut buffer).await.unwrap();
                guest.decoder.push(&buffer[..read]);
            };
            let Ok(ToAgent::Hello { session, .. }) = from_bytes(&greeting.payload) else { panic!("no greeting") };
            guest.session = session;
            guest.say(&ToHost::Ready).await;
            guest
        };
        let (session, _guest) = tokio::join!(AgentSession::resume(PortKind::Virtio, Box::new(ours)), script);
        session.unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, it gets no result out of the host without the nonce, and no panic.
    #[test]
    fn no_bytes_make_a_pass(bytes in proptest::collection::vec(any::<u8>(), 0..3000), framed: bool) {
        let (status, _) = run(against(async |mut guest: Guest| {
            if framed {
                guest.bulk(Kind::Control, 0, &bytes).await;
            } else {
                guest.raw(&bytes).await;
            }
            let _ = guest.port.shutdown().await;
            guest
        }));
        prop_assert!(status.is_err());
    }
}

/// The agent may notice that nobody reads a command's input a moment after it said that the command could not be started.
#[test]
fn word_of_the_input_of_a_command_that_has_ended_is_no_fault() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let mut guest = Guest::new(theirs);
        let host = async {
            let (mut session, ..) = AgentSession::connect(vec![(PortKind::Virtio, Box::new(ours))]).await.unwrap();
            let mut sink = Kept::default();
            let io = ExecIo { stdin: None, sink: &mut sink, control: None };
            let failed = session.exec(sh("x"), io).await.unwrap_err();
            assert!(matches!(failed, SessionError::ExecFailed { .. }), "{failed}");
            session.ping().await
        };
        let script = async {
            guest.begin().await;
            let id = loop {
                if let ToAgent::Exec(exec) = guest.hear_message().await {
                    break exec.id;
                }
            };
            guest.say(&ToHost::ExecFailed { id, what: "execve x".into(), errno: 2 }).await;
            guest.say(&ToHost::StdinClosed(id)).await;
            guest.say(&ToHost::StdinCredit { id, bytes: 1 }).await;
            while let Some(frame) = guest.hear().await {
                if let Ok(ToAgent::Ping(number)) = from_bytes(&frame.payload) {
                    guest.say(&ToHost::Pong(number)).await;
                    break;
                }
            }
            guest
        };
        let (outcome, _guest) = tokio::join!(host, script);
        outcome.unwrap();
    });
}
