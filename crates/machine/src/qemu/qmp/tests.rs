//! The decoder against arbitrary bytes, the client against a scripted peer.

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

fn decode(bytes: &[u8]) -> Result<Vec<Message>, DecodeError> {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next().transpose()).collect()
}

#[test]
fn every_kind_of_message() {
    let text = format!(
        "{GREETING}\r\n\r\n{{\"return\": {{}}, \"id\": 1}}\n{{\"id\": 2, \"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}}}\n\
         {{\"timestamp\": {{\"seconds\": 5, \"microseconds\": 6}}, \"event\": \"FROM_THE_FUTURE\", \"data\": {{\"a\": [1]}}}}\n\
         {{\"event\": \"STOP\"}}\n{{\"unfinished\""
    );
    let messages = decode(text.as_bytes()).unwrap();
    let triple = VersionTriple { major: 7, minor: 2, micro: 22 };
    assert!(matches!(&messages[0], Message::Greeting(g) if g.version.qemu == triple && g.version.package == "Debian"));
    assert_eq!(messages[1], Message::Return { id: Some(1), value: json!({}) });
    assert_eq!(messages[2], Message::Error { id: Some(2), class: "GenericError".to_owned(), desc: "no".to_owned() });
    let timestamp = QmpTimestamp { seconds: 5, microseconds: 6 };
    let event = QmpEvent { name: "FROM_THE_FUTURE".to_owned(), data: json!({"a": [1]}), timestamp };
    assert_eq!(messages[3], Message::Event(event));
    assert!(matches!(&messages[4], Message::Event(e) if e.name == "STOP" && e.data == Value::Null));
    assert_eq!(messages.len(), 5);
}

#[test]
fn what_is_not_qmp_is_refused_for_good() {
    for line in ["hello", "[1]", "{}", "{\"id\": 3}", "{\"return\": ", "\u{1b}[2J", "{\"event\": 7}"] {
        let mut decoder = Decoder::new();
        decoder.push(line.as_bytes());
        decoder.push(b"\n");
        let error = decoder.next().unwrap_err();
        decoder.push(b"{\"return\": {}}\n");
        assert_eq!(decoder.next().unwrap_err(), error, "{line}");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}

#[test]
fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
    let deep = format!("{{\"return\": {}\n", "[".repeat(1 << 20));
    assert!(matches!(decode(deep.as_bytes()), Err(DecodeError::NotJson { .. })));
}

#[test]
fn a_line_without_end_is_bounded() {
    let mut decoder = Decoder::new();
    let chunk = vec![b' '; 1 << 20];
    let failed = (0..10).find_map(|_| {
        decoder.push(&chunk);
        decoder.next().err()
    });
    assert_eq!(failed, Some(DecodeError::TooLong));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn nearly_json_never_panics(text in "[{}\\[\\]\":,a-z0-9\n ]{0,200}") {
        let _ = decode(text.as_bytes());
    }

    /// How the bytes are cut makes no difference.
    #[test]
    fn splits_do_not_matter(
        ids in proptest::collection::vec((any::<u64>(), "\\PC{0,30}"), 0..8),
        cuts in proptest::collection::vec(1usize..40, 1..60),
    ) {
        let text: String =
            ids.iter().map(|(id, s)| format!("{}\r\n", json!({"return": {"s": s}, "id": id}))).collect();
        let whole = decode(text.as_bytes()).unwrap();
        prop_assert_eq!(whole.len(), ids.len());
        let mut decoder = Decoder::new();
        let (mut rest, mut cuts, mut seen) = (text.as_bytes(), cuts.iter().cycle(), Vec::new());
        while !rest.is_empty() {
            let (head, tail) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            decoder.push(head);
            while let Some(message) = decoder.next().unwrap() {
                seen.push(message);
            }
            rest = tail;
        }
        prop_assert_eq!(seen, whole);
    }
}

/// The other end, as far as a test needs one.
struct Peer {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: BufReader::new(read).lines(), write }
    }

    async fn say(&mut self, text: &str) {
        self.write.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().expect("a command")).unwrap()
    }

    async fn answer(&mut self, value: Value) -> Value {
        let heard = self.hear().await;
        self.say(&json!({"return": value, "id": heard["id"]}).to_string()).await;
        heard
    }
}

/// A conversation whose negotiation is over.
async fn connected() -> (Qmp, EventStream, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer::new(theirs);
    let hello = async {
        peer.say(GREETING).await;
        assert_eq!(peer.answer(json!({})).await["execute"], "qmp_capabilities");
    };
    let (connected, ()) = tokio::join!(Qmp::connect(ours, Duration::from_secs(600)), hello);
    let (qmp, events) = connected.unwrap();
    (qmp, events, peer)
}

#[tokio::test(start_paused = true)]
async fn replies_are_typed() {
    let (qmp, _events, mut peer) = connected().await;
    assert_eq!(qmp.greeting().version.qemu.major, 7);
    let (status, heard) =
        tokio::join!(qmp.execute(QueryStatus {}), peer.answer(json!({"running": true, "status": "running", "new": 1})));
    assert_eq!(status.unwrap(), RunState { running: true, status: "running".to_owned() });
    assert_eq!(heard["execute"], "query-status");
    assert_eq!(heard["arguments"], json!({}));

    let command = HumanMonitorCommand { command_line: "info version".to_owned() };
    let (text, heard) = tokio::join!(qmp.execute(command), peer.answer(json!("7.2\r\n")));
    assert_eq!(text.unwrap(), "7.2\r\n");
    assert_eq!(heard["arguments"], json!({"command-line": "info version"}));

    let (wrong, _) = tokio::join!(qmp.execute(QueryStatus {}), peer.answer(json!([1])));
    assert!(matches!(wrong, Err(QmpError::Reply { .. })));
}

#[tokio::test(start_paused = true)]
async fn replies_find_their_callers_in_any_order() {
    let (qmp, _events, mut peer) = connected().await;
    let script = async {
        let (first, second) = (peer.hear().await, peer.hear().await);
        peer.say(&json!({"return": second["execute"], "id": second["id"]}).to_string()).await;
        peer.say(&json!({"return": first["execute"], "id": first["id"]}).to_string()).await;
    };
    let (a, b, ()) = tokio::join!(qmp.execute(Raw::new("a", json!({}))), qmp.execute(Raw::new("b", json!({}))), script);
    assert_eq!((a.unwrap(), b.unwrap()), (json!("a"), json!("b")));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_class_and_words() {
    let (qmp, _events, mut peer) = connected().await;
    let script = async {
        let heard = peer.hear().await;
        let error = json!({"class": "CommandNotFound", "desc": "The command x has not been found"});
        peer.say(&json!({"error": error, "id": heard["id"]}).to_string()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(Raw::new("x", json!({}))), script);
    let error = answer.unwrap_err();
    assert!(error.is_unknown_command());
    assert_eq!(error.to_string(), "QEMU refused `x`: The command x has not been found (CommandNotFound)");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline_and_the_late_answer_is_nobodys() {
    let (qmp, _events, mut peer) = connected().await;
    let (answer, late) = tokio::join!(qmp.execute_within(Stop {}, Duration::from_secs(3)), peer.hear());
    assert!(matches!(answer, Err(QmpError::Timeout { ref command, .. }) if command == "stop"));
    peer.say(&json!({"return": "late", "id": late["id"]}).to_string()).await;
    let (answer, _) = tokio::join!(qmp.execute(Raw::new("next", json!({}))), peer.answer(json!("in time")));
    assert_eq!(answer.unwrap(), json!("in time"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_gives_up_harms_no_other() {
    let (qmp, _events, mut peer) = connected().await;
    {
        let abandoned = qmp.execute(Stop {});
        tokio::pin!(abandoned);
        tokio::select! {
            biased;
            _ = &mut abandoned => panic!("nobody answers"),
            heard = peer.hear() => assert_eq!(heard["execute"], "stop"),
        }
    }
    let (answer, _) = tokio::join!(qmp.execute(Cont {}), peer.answer(json!({})));
    assert_eq!(answer.unwrap(), NoReply);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_channel_ends_every_call() {
    let (qmp, mut events, mut peer) = connected().await;
    let script = async {
        peer.hear().await;
        peer.hear().await;
        // As QEMU does on `quit`: the event first, and here no reply at all.
        peer.say(r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#).await;
        drop(peer);
    };
    let (a, b, ()) = tokio::join!(qmp.execute(Quit {}), qmp.execute(QueryStatus {}), script);
    assert!(matches!(a, Err(QmpError::Closed { ref command }) if command == "quit"), "{a:?}");
    assert!(matches!(b, Err(QmpError::Closed { .. })));
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), event.reason()), ("SHUTDOWN", Some("host-qmp-quit")));
    assert_eq!(events.next().await, None);
    assert!(matches!(qmp.execute(Stop {}).await, Err(QmpError::Closed { .. })));
    assert_eq!(qmp.events().next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_breaks_says_how() {
    let (qmp, mut events, mut peer) = connected().await;
    let script = async {
        peer.hear().await;
        peer.say("qemu: something on the wrong channel").await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(Stop {}), script);
    assert!(matches!(answer, Err(QmpError::Decode(DecodeError::NotJson { .. }))));
    assert_eq!(events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn no_greeting_no_conversation() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let silent = Qmp::connect(ours, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(silent, QmpError::Timeout { .. }));

    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let gone = Qmp::connect(ours, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(gone, QmpError::Closed { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_does_not_read_fills_no_memory_and_hangs_nobody() {
    let (qmp, _events, _peer) = connected().await;
    let big = Raw::new("x", json!({"pad": "x".repeat(1 << 16)}));
    for _ in 0..100 {
        let answer = qmp.execute_within(big.clone(), Duration::from_millis(5)).await;
        assert!(matches!(answer, Err(QmpError::Timeout { .. })));
    }
}
