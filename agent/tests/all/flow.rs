//! Bulk: nothing lost, nothing hoarded.

use std::io::Write;

use belljar_proto::frame::{Kind, MAX_PAYLOAD, from_bytes};
use belljar_proto::message::{STDIN_WINDOW, Status, ToAgent, ToHost};

use crate::peer::{Peer, exec};

/// Bytes without a pattern, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[test]
fn ten_mebibytes_come_back_as_they_went() {
    let bytes = noise(10 << 20);
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["cat"]))));
    let (mut sent, mut credit, mut back) = (0, STDIN_WINDOW as usize, Vec::new());
    loop {
        let piece = credit.min(bytes.len() - sent).min(50_000);
        if piece > 0 {
            peer.stdin(1, &bytes[sent..sent + piece]);
            sent += piece;
            credit -= piece;
            if sent == bytes.len() {
                peer.send(&ToAgent::StdinEof(1));
            }
            continue;
        }
        let frame = peer.frame().unwrap();
        if frame.kind == Kind::Stdout {
            back.extend_from_slice(&frame.payload);
            continue;
        }
        match from_bytes(&frame.payload).unwrap() {
            ToHost::StdinCredit { bytes, .. } => credit += bytes as usize,
            ToHost::Exited { status, .. } => {
                assert_eq!(status, Status::Code(0));
                break;
            }
            _ => {}
        }
    }
    assert!(back == bytes, "{} bytes came back", back.len());
}

#[test]
fn a_host_that_does_not_read_stops_the_command_and_still_gets_answers() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", "yes & yes >&2 & wait"]))));
    // Until it is under way.
    while peer.frame().unwrap().kind == Kind::Control {}
    let before = peer.memory();
    for number in 0..100 {
        peer.send(&ToAgent::Ping(number));
    }
    let mut bulk = 0;
    let mut pongs = 0;
    while pongs < 100 {
        let frame = peer.frame().unwrap();
        match frame.kind {
            Kind::Control => pongs += 1,
            _ => bulk += frame.payload.len(),
        }
        // The agent goes on writing while we look for the answers, but not before them: at most what is in the socket
        // and one frame for each turn in which a ping was read.
        assert!(bulk < 101 * MAX_PAYLOAD + (4 << 20), "no answer in {bulk} bytes");
    }
    assert!(peer.memory() < before + (4 << 20));
    peer.send(&ToAgent::Signal { id: 1, signal: 9 });
    assert_eq!(peer.outcome(1).status, Some(Status::Signal { signal: 9, core: false }));
}

#[test]
fn a_command_that_reads_nothing_gets_no_more_than_the_window() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", "read x; exit 0"]))));
    peer.stdin(1, &vec![b'a'; STDIN_WINDOW as usize]);
    // The pipe took some of it; what the agent gives back is no more than that.
    let credit = peer.await_message(|message| match message {
        ToHost::StdinCredit { bytes, .. } => Some(*bytes),
        _ => None,
    });
    assert!(credit < STDIN_WINDOW);
    peer.stdin(1, &vec![b'a'; STDIN_WINDOW as usize + 1]);
    let why = peer.await_message(|message| match message {
        ToHost::Fatal(why) => Some(why.clone()),
        _ => None,
    });
    assert!(why.contains("more standard input than there is room for"), "{why}");
}

#[test]
fn a_closed_input_is_reported() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", "exec 0</dev/null; sleep 60"]))));
    peer.await_message(|message| (*message == ToHost::StdinClosed(1)).then_some(()));
    // What was on its way is dropped without a word.
    peer.stdin(1, b"late");
    peer.send(&ToAgent::StdinEof(1));
    peer.send(&ToAgent::Signal { id: 1, signal: 9 });
    assert!(peer.outcome(1).status.is_some());
}

#[test]
fn many_commands_at_once_are_kept_apart() {
    let mut peer = Peer::greeted();
    for id in 1..=8 {
        let script = format!("for i in $(seq 1000); do echo {id}; done");
        peer.send(&ToAgent::Exec(Box::new(exec(id, &["sh", "-c", &script]))));
        peer.send(&ToAgent::StdinEof(id));
    }
    let mut lines = [0; 9];
    let mut ended = 0;
    while ended < 8 {
        let frame = peer.frame().unwrap();
        if frame.kind == Kind::Control {
            if let ToHost::Exited { id, .. } = from_bytes(&frame.payload).unwrap() {
                assert_eq!(lines[id as usize], 2000);
                ended += 1;
            }
        } else {
            let digit = b'0' + u8::try_from(frame.exec).unwrap();
            assert!(frame.payload.iter().all(|&byte| byte == digit || byte == b'\n'));
            lines[frame.exec as usize] += frame.payload.len();
        }
    }
}

#[test]
fn arguments_longer_than_a_frame_arrive() {
    let mut peer = Peer::greeted();
    // Each below the kernel's limit for one string.
    let long = "x".repeat(100_000);
    let ran = peer.run(exec(1, &["sh", "-c", "echo ${#1} ${#2} ${#3}", "sh", &long, &long, &long]));
    assert_eq!(ran.text(), "100000 100000 100000\n");
    peer.stream.flush().unwrap();
}
