use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio as ProcessStdio;
use std::time::Duration;

use belljar_proto::message::{Exec, MountFault, MountMode, Setup, ShutdownHow, Status, Stdio, SyncReport, WindowSize};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::super::*;
use super::{Broken, Endless, Kept, command, run, sh};

/// An agent on the other end of a socket. It ends with the socket.
fn start() -> (UnixStream, Child) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let program = rustix::fs::memfd_create("agent", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut program = std::fs::File::from(program);
    program.write_all(belljar_agent_binary::AGENTS[0].program).unwrap();
    let agent = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(["serve", "--fd", "0"])
        .stdin(ProcessStdio::from(OwnedFd::from(theirs)))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (UnixStream::from_std(ours).unwrap(), agent)
}

async fn session() -> (AgentSession, Child) {
    let (port, agent) = start();
    let (session, announce, kind) = AgentSession::connect(vec![(PortKind::Serial, Box::new(port))]).await.unwrap();
    assert!(!announce.pid1);
    assert_eq!(kind, PortKind::Serial);
    (session, agent)
}

fn io(sink: &mut Kept) -> ExecIo<'_> {
    ExecIo { stdin: None, sink, control: None }
}

async fn outcome(session: &mut AgentSession, exec: Exec) -> (Status, Kept) {
    let mut sink = Kept::default();
    let status = session.exec(exec, io(&mut sink)).await.unwrap();
    (status, sink)
}

#[test]
fn commands_run_one_after_another() {
    run(async {
        let (mut session, _agent) = session().await;
        let (status, sink) = outcome(&mut session, sh("echo out; echo err >&2; exit 7")).await;
        assert_eq!(status, Status::Code(7));
        assert_eq!((&*sink.stdout, &*sink.stderr), (&b"out\n"[..], &b"err\n"[..]));
        assert!(sink.pid.is_some());
        let (status, _) = outcome(&mut session, sh("kill -9 $$")).await;
        assert_eq!(status, Status::Signal { signal: 9, core: false });
        session.ping().await.unwrap();
        assert_eq!(session.sync().await.unwrap(), SyncReport::default());
        session.shutdown(ShutdownHow::Immediate).await.unwrap().unwrap();
        assert!(matches!(session.ping().await, Err(SessionError::Closed { .. })));
    });
}

#[test]
fn the_first_port_that_announces_is_taken() {
    run(async {
        let (port, _agent) = start();
        let (silent, _other_end) = tokio::io::duplex(64);
        let (closed, other_end) = tokio::io::duplex(64);
        drop(other_end);
        let ports: Vec<(PortKind, BoxedPort)> = vec![
            (PortKind::Serial, Box::new(silent)),
            (PortKind::Serial, Box::new(closed)),
            (PortKind::Virtio, Box::new(port)),
        ];
        let (mut session, _, kind) = AgentSession::connect(ports).await.unwrap();
        assert_eq!(kind, PortKind::Virtio);
        session.ping().await.unwrap();
    });
}

/// Carries bytes between an agent and a host until the host is gone, as QEMU does: the agent learns nothing of it.
async fn relay(agent: &mut UnixStream, host: tokio::io::DuplexStream) {
    let (mut from_agent, mut to_agent) = agent.split();
    let (mut from_host, mut to_host) = tokio::io::split(host);
    tokio::select! {
        _ = tokio::io::copy(&mut from_agent, &mut to_host) => {}
        _ = tokio::io::copy(&mut from_host, &mut to_agent) => {}
    }
}

#[test]
fn a_new_host_takes_over_from_one_that_is_gone() {
    run(async {
        let (mut port, _agent) = start();
        let (first, other_end) = tokio::io::duplex(1 << 16);
        let host = async {
            let (mut session, ..) = AgentSession::connect(vec![(PortKind::Virtio, Box::new(first))]).await.unwrap();
            // Gone in the middle of a flood.
            let mut sink = Kept::default();
            let flood = session.exec(sh("yes"), io(&mut sink));
            assert!(tokio::time::timeout(Duration::from_millis(50), flood).await.is_err());
        };
        tokio::join!(host, relay(&mut port, other_end));

        let (second, other_end) = tokio::io::duplex(1 << 16);
        let host = async {
            // The agent does not announce itself, as it knows of no end: whoever resumes it greets it unasked.
            let mut session = AgentSession::resume(PortKind::Virtio, Box::new(second)).await.unwrap();
            let (status, sink) = outcome(&mut session, sh("echo new")).await;
            assert_eq!((status, &*sink.stdout), (Status::Code(0), &b"new\n"[..]));
        };
        tokio::join!(host, relay(&mut port, other_end));
    });
}

#[test]
fn ten_mebibytes_go_through_cat() {
    run(async {
        let (mut session, _agent) = session().await;
        let mut bytes = vec![0; 10 << 20];
        getrandom::fill(&mut bytes).unwrap();
        let mut input = &bytes[..];
        let mut sink = Kept::default();
        let status = session
            .exec(sh("cat; echo done >&2"), ExecIo { stdin: Some(&mut input), sink: &mut sink, control: None })
            .await
            .unwrap();
        assert_eq!(status, Status::Code(0));
        assert!(sink.stdout == bytes);
        assert_eq!(sink.stderr, b"done\n");
    });
}

#[test]
fn input_that_nobody_reads_does_not_hold_the_end_up() {
    run(async {
        let (mut session, _agent) = session().await;
        for script in ["head -c 1 >/dev/null", "exec <&-; echo closed", "exit 0"] {
            let mut sink = Kept::default();
            let status = session
                .exec(sh(script), ExecIo { stdin: Some(&mut Endless), sink: &mut sink, control: None })
                .await
                .unwrap();
            assert_eq!(status, Status::Code(0), "{script}");
        }
    });
}

#[test]
fn signals_and_sizes_reach_the_command() {
    run(async {
        let (mut session, _agent) = session().await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let (control, mut controls) = mpsc::channel(4);
        let mut sink = Kept { tell: Some(tell), ..Kept::default() };
        let mut exec = sh("trap 'stty size' WINCH; trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done");
        exec.stdio = Stdio::Pty { size: WindowSize { rows: 24, cols: 80 }, term: "dumb".into() };
        let running = session.exec(exec, ExecIo { stdin: None, sink: &mut sink, control: Some(&mut controls) });
        let user = async {
            assert_eq!(told.recv().await.unwrap(), b"ready\r\n");
            let size = WindowSize { rows: 5, cols: 6 };
            control.send(ExecControl::Resize(size)).await.unwrap();
            assert_eq!(told.recv().await.unwrap(), b"5 6\r\n");
            control.send(ExecControl::Signal(15)).await.unwrap();
            // The command goes on being served when there is nobody to control it.
            drop(control);
        };
        let (status, ()) = tokio::join!(running, user);
        assert_eq!(status.unwrap(), Status::Code(5));
    });
}

#[test]
fn what_cannot_start_says_why() {
    run(async {
        let (mut session, _agent) = session().await;
        let mut sink = Kept::default();
        let error = session.exec(command(&["/no/such"]), io(&mut sink)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot start the command: execve /no/such: No such file or directory (os error 2)"
        );
        // The session goes on.
        session.ping().await.unwrap();
    });
}

#[test]
fn a_command_given_up_on_is_killed_by_the_next() {
    run(async {
        let (mut session, _agent) = session().await;
        let mut sink = Kept::default();
        let given_up =
            tokio::time::timeout(Duration::from_millis(100), session.exec(sh("echo $$; yes"), io(&mut sink)));
        assert!(given_up.await.is_err());
        let (status, _) = outcome(&mut session, sh("exit 3")).await;
        assert_eq!(status, Status::Code(3));
        session.ping().await.unwrap();
    });
}

#[test]
fn a_broken_sink_is_our_fault_and_the_session_goes_on() {
    run(async {
        let (mut session, _agent) = session().await;
        let error =
            session.exec(sh("yes"), ExecIo { stdin: None, sink: &mut Broken, control: None }).await.unwrap_err();
        assert!(matches!(error, SessionError::Sink(_)), "{error}");
        let (status, _) = outcome(&mut session, sh("exit 4")).await;
        assert_eq!(status, Status::Code(4));
    });
}

#[test]
fn setup_names_the_mount_that_failed() {
    run(async {
        let (mut session, _agent) = session().await;
        let mount = |path: &str| belljar_proto::message::Mount {
            name: "tag".into(),
            sources: vec![belljar_proto::message::Source::NineP { tag: "tag".into() }],
            path: path.into(),
            mode: MountMode::ReadOnly,
        };
        let setup = Setup { mounts: vec![mount("not/absolute")], ..Setup::default() };
        let faults = session.setup(setup).await.unwrap().faults;
        assert!(
            matches!(&faults[..], [(0, MountFault::Failed { detail })] if detail.contains("not/absolute")),
            "{faults:?}"
        );
    });
}

#[test]
fn an_agent_that_dies_closes_the_session() {
    run(async {
        let (mut session, mut agent) = session().await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut sink = Kept { tell: Some(tell), ..Kept::default() };
        let running = session.exec(sh("echo ready; read x"), io(&mut sink));
        let killer = async {
            told.recv().await.unwrap();
            agent.kill().await.unwrap();
        };
        let mut exec = sh("true");
        exec.stdio = Stdio::PipesNoStdin;
        let (ended, ()) = tokio::join!(running, killer);
        // With its input at an end the command may have ended before: never with a pass.
        assert!(matches!(ended, Err(SessionError::Closed { .. }) | Ok(Status::Code(1))), "{ended:?}");
        let mut sink = Kept::default();
        assert!(matches!(session.exec(exec, io(&mut sink)).await, Err(SessionError::Closed { .. })));
    });
}

#[test]
fn the_agent_works_over_a_terminal() {
    run(async {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let theirs = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        let program = rustix::fs::memfd_create("agent", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut program = std::fs::File::from(program);
        program.write_all(belljar_agent_binary::AGENTS[0].program).unwrap();
        let _agent = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .args(["serve", "--fd", "0"])
            .stdin(ProcessStdio::from(theirs))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let master = std::fs::File::from(ours);
        let (reader, writer) = (master.try_clone().unwrap(), master);
        let port = tokio::io::join(tokio::fs::File::from_std(reader), tokio::fs::File::from_std(writer));
        let (mut session, ..) = AgentSession::connect(vec![(PortKind::Serial, Box::new(port))]).await.unwrap();
        let (status, sink) = outcome(&mut session, sh("printf '\\000\\003\\004\\021\\023\\032\\377\\n\\r'")).await;
        assert_eq!(status, Status::Code(0));
        assert_eq!(sink.stdout, b"\0\x03\x04\x11\x13\x1a\xff\n\r");
        session.shutdown(ShutdownHow::Immediate).await.unwrap().unwrap();
    });
}
