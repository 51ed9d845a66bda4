//! What programs ask of the host by way of the agent.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use belljar_proto::message::{MAX_QUESTION, Question, Status, ToAgent, ToHost};

use crate::peer::{Peer, exec};

/// An agent in a session that takes questions, and where.
fn asked() -> (Peer, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made/control");
    let mut peer = Peer::start_with(&["--ask".as_ref(), path.as_os_str()]);
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.greet(4711);
    (peer, path, dir)
}

/// What comes until a command has ended.
fn until_its_end(peer: &mut Peer, script: &str) -> Vec<ToHost> {
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", script]))));
    peer.send(&ToAgent::StdinEof(1));
    let mut said = Vec::new();
    loop {
        match peer.message() {
            ToHost::Exited { status, .. } => {
                assert_eq!(status, Status::Code(0));
                return said;
            }
            ToHost::Started { .. } | ToHost::StdinCredit { .. } | ToHost::StdinClosed(_) => {}
            other => said.push(other),
        }
    }
}

fn mark(number: u32, text: &str) -> ToHost {
    ToHost::Ask { number, question: Question::Mark(text.into()) }
}

#[test]
fn marks_come_in_order_and_before_the_end_of_the_command_that_set_them() {
    let (mut peer, path, _dir) = asked();
    assert!(path.metadata().unwrap().file_type().is_fifo());
    let script = "echo mark one >\"$BELLJAR_CTL\"; printf '  mark   two words \\nmark three\\n' >$BELLJAR_CTL";
    assert_eq!(until_its_end(&mut peer, script), [mark(1, "one"), mark(2, "two words"), mark(3, "three")]);
    // Also what is not read at once, from several processes.
    let script = "for i in 1 2 3 4; do (n=0; while [ $n -lt 300 ]; do echo mark $i-$n; n=$((n+1)); done >$BELLJAR_CTL) & done; wait";
    let said = until_its_end(&mut peer, script);
    assert_eq!(said.len(), 1200);
    for i in 1..=4 {
        let of = |said: &ToHost| match said {
            ToHost::Ask { question: Question::Mark(text), .. } => {
                text.strip_prefix(&format!("{i}-")).map(str::to_owned)
            }
            other => panic!("{other:?}"),
        };
        let numbers: Vec<_> = said.iter().filter_map(of).collect();
        assert_eq!(numbers, (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_no_question_is_told_and_does_no_harm() {
    let (mut peer, _path, _dir) = asked();
    let long = "x".repeat(MAX_QUESTION);
    let script = format!("printf 'shutdown now\\nmark\\n\\nmark {long}\\nmark \\377\\nmark last\\n' >$BELLJAR_CTL");
    let said = until_its_end(&mut peer, &script);
    let logs = said.iter().filter(|m| matches!(m, ToHost::Log(_))).count();
    assert_eq!(logs, 4, "{said:?}");
    assert_eq!(said[said.len() - 2..], [mark(1, "\u{fffd}"), mark(2, "last")]);
}

#[test]
fn a_host_that_refuses_is_asked_no_more_in_that_session() {
    let (mut peer, _path, _dir) = asked();
    assert_eq!(until_its_end(&mut peer, "echo mark a >$BELLJAR_CTL"), [mark(1, "a")]);
    peer.send(&ToAgent::Answer { number: 1, done: true });
    assert_eq!(until_its_end(&mut peer, "echo mark b >$BELLJAR_CTL"), [mark(2, "b")]);
    peer.send(&ToAgent::Answer { number: 2, done: false });
    peer.send(&ToAgent::Ping(1));
    assert_eq!(peer.message(), ToHost::Pong(1));
    assert_eq!(until_its_end(&mut peer, "echo mark c >$BELLJAR_CTL"), []);
    peer.greet(4712);
    assert_eq!(until_its_end(&mut peer, "echo mark d >$BELLJAR_CTL"), [mark(1, "d")]);
}

#[test]
fn a_guest_without_the_pipe_has_no_variable_for_it() {
    let mut peer = Peer::start_with(&["--ask".as_ref(), Path::new("/proc/belljar/control").as_os_str()]);
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.greet(1);
    assert_eq!(until_its_end(&mut peer, "test -z \"${BELLJAR_CTL+x}\""), []);
}
