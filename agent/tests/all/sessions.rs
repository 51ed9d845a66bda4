//! Sessions: how they begin, how they are taken over, what breaks them.

use std::io::Write;

use belljar_proto::frame::{Encoder, Kind, from_bytes};
use belljar_proto::message::{Status, Stdio, ToAgent, ToHost, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::peer::{Peer, exec};

#[test]
fn it_sums_itself_up_as_cksum_does() {
    let program = env!("CARGO_BIN_EXE_belljar-agent");
    let own = std::process::Command::new(program).arg("sum").output().unwrap();
    let file = std::fs::File::open(program).unwrap();
    let theirs = std::process::Command::new("cksum").stdin(file).output().unwrap();
    assert!(own.status.success() && !own.stdout.is_empty());
    assert_eq!(own.stdout, theirs.stdout);
}

#[test]
fn it_announces_itself_until_greeted() {
    let mut peer = Peer::start();
    for _ in 0..2 {
        let ToHost::Announce(announce) = peer.message() else { panic!("no announcement") };
        assert_eq!(announce.version, VERSION);
        assert!(!announce.pid1);
        assert!(!announce.kernel.is_empty() && !announce.machine.is_empty());
    }
    peer.greet(1);
    peer.send(&ToAgent::Ping(5));
    assert_eq!(peer.message(), ToHost::Pong(5));
}

#[test]
fn rubbish_before_the_greeting_does_no_harm() {
    let mut peer = Peer::start();
    let mut rubbish = b"\xB7\x1A\x01login: root\r\n\xB7".repeat(100);
    // The tail of a frame of a session before, whose host is gone.
    Encoder::new(99).bytes(Kind::Stdin, 1, &[7; 5000], &mut rubbish);
    peer.stream.write_all(&rubbish[50..]).unwrap();
    peer.greet(2);
    assert_eq!(peer.sh(1, "exit 9").status, Some(Status::Code(9)));
}

#[test]
fn nothing_is_obeyed_before_the_greeting_or_with_another_tag() {
    let mut peer = Peer::start();
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.send(&ToAgent::Ping(1));
    peer.greet(10);
    peer.session = 11;
    peer.send(&ToAgent::Ping(2));
    peer.session = 10;
    peer.send(&ToAgent::Ping(3));
    assert_eq!(peer.message(), ToHost::Pong(3));
}

#[test]
fn a_greeting_said_twice_is_one() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["cat"]))));
    let session = peer.session;
    peer.hello(session);
    peer.stdin(1, b"still here");
    peer.send(&ToAgent::StdinEof(1));
    assert_eq!(peer.outcome(1).text(), "still here");
}

#[test]
fn a_new_greeting_ends_what_ran() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", "echo $$; yes"]))));
    let pid = loop {
        let frame = peer.frame().unwrap();
        if frame.kind == Kind::Stdout {
            let text = String::from_utf8(frame.payload).unwrap();
            break text.lines().next().unwrap().to_owned();
        }
    };
    peer.hello(5000);
    // What was on its way before carries the old tag.
    loop {
        let frame = peer.frame().unwrap();
        if frame.session == 5000 {
            assert_eq!(from_bytes(&frame.payload), Ok(ToHost::Ready));
            break;
        }
        assert_ne!(frame.kind, Kind::Control);
    }
    // The same number is another command now.
    let ran = peer.sh(1, &format!("while kill -0 {pid} 2>/dev/null; do :; done; echo gone"));
    assert_eq!(ran.text(), "gone\n");
}

#[test]
fn another_version_is_refused() {
    let mut peer = Peer::start();
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.send(&ToAgent::Hello { version: VERSION + 1, session: 3 });
    loop {
        match peer.message() {
            ToHost::Announce(_) => {}
            ToHost::Fatal(why) => {
                assert!(why.contains("version"), "{why}");
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[test]
fn lost_frames_in_a_session_are_noticed() {
    let mut peer = Peer::greeted();
    peer.stream.write_all(b"a kernel message").unwrap();
    peer.send(&ToAgent::Ping(1));
    let ToHost::Fatal(why) = peer.message() else { panic!("not noticed") };
    assert!(why.contains("16 bytes on the port are not frames"), "{why}");
    // It waits for a new host.
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.greet(77);
    assert_eq!(peer.sh(1, "true").status, Some(Status::Code(0)));
}

#[test]
fn the_agent_ends_with_its_port_and_takes_its_commands_along() {
    let mut peer = Peer::greeted();
    let mut wanted = exec(1, &["sh", "-c", "echo $$; exec sleep 60"]);
    wanted.stdio = Stdio::PipesNoStdin;
    peer.send(&ToAgent::Exec(Box::new(wanted)));
    let pid = loop {
        let frame = peer.frame().unwrap();
        if frame.kind == Kind::Stdout {
            break String::from_utf8(frame.payload).unwrap().trim().to_owned();
        }
    };
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    let command = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    drop(peer);
    // Readable when the process has ended.
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    let mut fds = [PollFd::new(&command, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&minute)), Ok(1), "it lives on");
}

#[test]
fn ending_is_announced() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Shutdown(belljar_proto::message::ShutdownHow::PowerOff));
    assert_eq!(peer.message(), ToHost::Ending);
    assert!(peer.frame().is_none());
}
