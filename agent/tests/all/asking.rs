//! What programs ask of the host by way of the agent.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use belljar_proto::message::{MAX_QUESTION, Outcome, Question, Status, ToAgent, ToHost};

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
            other => {
                if let ToHost::Ask { number, .. } = other {
                    peer.send(&ToAgent::Answer { number, answer: Outcome::Done(String::new()) });
                }
                said.push(other);
            }
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
fn who_asks_more_than_is_answered_waits_and_nothing_is_lost() {
    const ALL: u32 = 30_000;
    let (mut peer, _path, _dir) = asked();
    // In one piece, which the pipe does not hold, and the end of which the command does not wait for.
    let script = format!(
        "(seq {ALL} | sed 's/^/disk d mark /' >$BELLJAR_CTL) & while kill -0 $! 2>/dev/null; do sleep 0.01; done"
    );
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", &script]))));
    peer.send(&ToAgent::StdinEof(1));
    let mut asked = 0;
    let next = |peer: &mut Peer| loop {
        match peer.message() {
            ToHost::Ask { number, question: Question::Disk(text) } => break Ok((number, text)),
            ToHost::Exited { status, .. } => break Err(status),
            ToHost::Pong(_) => break Ok((0, String::new())),
            _ => {}
        }
    };
    // Nothing is answered: the rest stays where it is.
    std::thread::sleep(std::time::Duration::from_millis(500));
    peer.send(&ToAgent::Ping(1));
    while next(&mut peer).unwrap().0 > 0 {
        asked += 1;
    }
    assert!((256..1280).contains(&asked), "{asked}");
    let answer = |peer: &mut Peer, number| peer.send(&ToAgent::Answer { number, answer: Outcome::Done(String::new()) });
    (1..=asked).for_each(|number| answer(&mut peer, number));
    loop {
        match next(&mut peer) {
            Ok((number, text)) => {
                asked += 1;
                assert_eq!((number, text), (asked, format!("d mark {asked}")));
                answer(&mut peer, number);
            }
            Err(status) => {
                assert_eq!((status, asked), (Status::Code(0), ALL));
                break;
            }
        }
    }
}

#[test]
fn what_is_no_question_is_told_and_does_no_harm() {
    let (mut peer, _path, _dir) = asked();
    let long = "x".repeat(MAX_QUESTION);
    let script = format!("printf 'shutdown now\\nmark\\n\\nmark {long}\\nmark \\377\\nmark last\\n' >$BELLJAR_CTL");
    let said = until_its_end(&mut peer, &script);
    // An empty line is no question at all.
    let logs = said.iter().filter(|m| matches!(m, ToHost::Log(_))).count();
    assert_eq!(logs, 3, "{said:?}");
    assert_eq!(said[said.len() - 2..], [mark(1, "\u{fffd}"), mark(2, "last")]);
}

#[test]
fn a_host_that_refuses_is_asked_no_more_in_that_session() {
    let (mut peer, _path, _dir) = asked();
    assert_eq!(until_its_end(&mut peer, "echo mark a >$BELLJAR_CTL"), [mark(1, "a")]);
    peer.send(&ToAgent::Answer { number: 1, answer: Outcome::Done(String::new()) });
    assert_eq!(until_its_end(&mut peer, "echo mark b >$BELLJAR_CTL"), [mark(2, "b")]);
    peer.send(&ToAgent::Answer { number: 2, answer: Outcome::Full });
    peer.send(&ToAgent::Ping(1));
    assert_eq!(peer.message(), ToHost::Pong(1));
    assert_eq!(until_its_end(&mut peer, "echo mark c >$BELLJAR_CTL"), []);
    peer.greet(4712);
    assert_eq!(until_its_end(&mut peer, "echo mark d >$BELLJAR_CTL"), [mark(1, "d")]);
}

/// Runs a script that has the program, whose questions get these answers; gives what was asked for.
fn answered(peer: &mut Peer, dir: &Path, script: &str, answers: &[Outcome]) -> Vec<String> {
    let program = dir.join("belljar-ctl");
    let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_belljar-agent"), &program);
    let script = format!("ctl={}; {script}", program.display());
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", &script]))));
    peer.send(&ToAgent::StdinEof(1));
    let (mut asked, mut answers) = (Vec::new(), answers.iter());
    loop {
        match peer.message() {
            ToHost::Ask { number, question: Question::Disk(text) } => {
                asked.push(text);
                let answer = answers.next().expect("an answer").clone();
                peer.send(&ToAgent::Answer { number, answer });
            }
            ToHost::Exited { status, .. } => {
                assert_eq!(status, Status::Code(0));
                return asked;
            }
            _ => {}
        }
    }
}

#[test]
fn the_program_waits_for_the_answer_and_exits_by_it() {
    let (mut peer, path, dir) = asked();
    let script = "set -e
        [ \"$($ctl disk data0 counts)\" = 'reads 1' ]
        code=0; said=$($ctl disk data1 heal 2>&1) || code=$?; [ $code = 1 ]; [ \"$said\" = 'belljar: no such disk' ]
        code=0; $ctl disk 2>/dev/null || code=$?; [ $code = 2 ]
        code=0; said=$($ctl disk data0 log 2>&1 >/dev/full) || code=$?; [ $code = 3 ]
        case $said in *'it was done, but'*ENOSPC*) ;; *) exit 9 ;; esac
        echo '>mine disk data0 heal' >$BELLJAR_CTL
        while [ ! -e ${BELLJAR_CTL%control}answers/mine ]; do sleep 0.01; done
        [ \"$(cat ${BELLJAR_CTL%control}answers/mine)\" = ok ]
        echo '>../wrong disk data0 heal' >$BELLJAR_CTL
        echo '>bad explode' >$BELLJAR_CTL
        while [ ! -e ${BELLJAR_CTL%control}answers/bad ]; do sleep 0.01; done
        head -n 1 ${BELLJAR_CTL%control}answers/bad | grep -qx error
        printf 'disk data0 mark x' >$BELLJAR_CTL
        $ctl disk data0 counts";
    let answers = [
        Outcome::Done("reads 1\n".into()),
        Outcome::Refused("no such disk".into()),
        Outcome::Done("x".into()),
        Outcome::Done(String::new()),
        Outcome::Done(String::new()),
        Outcome::Done(String::new()),
    ];
    let asked = answered(&mut peer, dir.path(), script, &answers);
    // Of the last two the first was not ended by who wrote it.
    assert_eq!(asked, ["data0 counts", "data1 heal", "data0 log", "data0 heal", "data0 mark x", "data0 counts"]);
    // Another session's answers are gone.
    assert!(path.with_file_name("answers").exists());
    peer.greet(4712);
    peer.send(&ToAgent::Ping(1));
    assert_eq!(peer.message(), ToHost::Pong(1));
    assert!(!path.with_file_name("answers").exists());
}

#[test]
fn a_guest_without_the_pipe_has_no_variable_for_it() {
    let mut peer = Peer::start_with(&["--ask".as_ref(), Path::new("/proc/belljar/control").as_os_str()]);
    assert!(matches!(peer.message(), ToHost::Announce(_)));
    peer.greet(1);
    assert_eq!(until_its_end(&mut peer, "test -z \"${BELLJAR_CTL+x}\""), []);
}
