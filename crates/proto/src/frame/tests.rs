use proptest::prelude::*;

use super::*;
use crate::message::{Exec, Nonce, Stdio, ToAgent, ToHost};

/// Feeds a stream in pieces and gives everything that came out of it.
fn decode(stream: &[u8], cuts: &[usize]) -> (Vec<Frame>, u64) {
    let mut decoder = Decoder::new();
    let (mut frames, mut skipped) = (Vec::new(), 0);
    let mut at = 0;
    let mut cuts = cuts.iter().cycle();
    while at < stream.len() {
        let step = cuts.next().map_or(stream.len(), |&cut| cut.max(1));
        let end = (at + step).min(stream.len());
        decoder.push(&stream[at..end]);
        at = end;
        while let Some(next) = decoder.next_frame() {
            match next {
                Ok(frame) => frames.push(frame),
                Err(error) => skipped += error.skipped,
            }
        }
        assert!(decoder.pending() < HEADER_LEN + MAX_PAYLOAD);
    }
    assert_eq!(
        frames.iter().map(|frame| (HEADER_LEN + frame.payload.len()) as u64).sum::<u64>()
            + skipped
            + decoder.pending() as u64,
        stream.len() as u64,
        "every byte is a frame's, passed over or still waiting"
    );
    (frames, skipped)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Control), Just(Kind::Stdout), Just(Kind::Stderr), Just(Kind::Stdin), Just(Kind::Part),]
}

prop_compose! {
    fn frame()(kind in kind(), exec: u32, session: u64, payload in proptest::collection::vec(any::<u8>(), 0..300)) -> Frame {
        Frame { kind, exec, session, payload }
    }
}

/// Bytes that hold many magics and headers that begin well.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        Just(MAGIC.to_vec()),
        Just(vec![MAGIC[0]]),
        (any::<u8>(), any::<u8>()).prop_map(|(format, kind)| vec![MAGIC[0], MAGIC[1], format, kind]),
        (0_u8..5, 0_u32..200).prop_map(|(kind, length)| {
            let mut header = vec![0; HEADER_LEN];
            header[..4].copy_from_slice(&[MAGIC[0], MAGIC[1], FORMAT, kind]);
            header[16..20].copy_from_slice(&length.to_le_bytes());
            header
        }),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn encode(frame: &Frame, out: &mut Vec<u8>) {
    Encoder::new(frame.session).one(frame.kind, frame.exec, &frame.payload, out);
}

proptest! {
    #[test]
    fn round_trip_under_any_split(frames in proptest::collection::vec(frame(), 0..8), cuts in proptest::collection::vec(1_usize..200, 1..20)) {
        let mut stream = Vec::new();
        for frame in &frames {
            encode(frame, &mut stream);
        }
        let (got, skipped) = decode(&stream, &cuts);
        prop_assert_eq!(got, frames);
        prop_assert_eq!(skipped, 0);
    }

    #[test]
    fn garbage_alone_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cuts in proptest::collection::vec(1_usize..200, 1..20)) {
        decode(&bytes, &cuts);
    }

    #[test]
    fn frames_are_found_between_garbage(
        parts in proptest::collection::vec((garbage(), frame()), 1..6),
        cuts in proptest::collection::vec(1_usize..200, 1..20),
    ) {
        let mut stream = Vec::new();
        for (garbage, frame) in &parts {
            stream.extend_from_slice(garbage);
            encode(frame, &mut stream);
        }
        // A false header may wait for as many bytes as it claims.
        stream.resize(stream.len() + 300, 0);
        let (got, _) = decode(&stream, &cuts);
        let wanted: Vec<Frame> = parts.into_iter().map(|(_, frame)| frame).collect();
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn a_changed_byte_costs_one_frame(before in frame(), hurt in frame(), after in frame(), at: prop::sample::Index, flip in 1_u8..=255) {
        let mut stream = Vec::new();
        encode(&before, &mut stream);
        let start = stream.len();
        encode(&hurt, &mut stream);
        let at = start + at.index(stream.len() - start);
        stream[at] ^= flip;
        encode(&after, &mut stream);
        // A hurt length may claim up to a longest frame.
        stream.resize(stream.len() + MAX_PAYLOAD + HEADER_LEN, 0);
        let (got, skipped) = decode(&stream, &[stream.len()]);
        prop_assert_eq!(got, vec![before, after]);
        prop_assert!(skipped > 0);
    }

    #[test]
    fn any_bytes_as_message_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = from_bytes::<ToHost>(&bytes);
        let _ = from_bytes::<ToAgent>(&bytes);
        let _ = from_bytes::<crate::message::InitConfig>(&bytes);
    }

    #[test]
    fn long_messages_travel_in_parts(size in 0_usize..300_000) {
        let message = ToAgent::Exec(Box::new(Exec {
            id: 7,
            nonce: Nonce([3; 16]),
            argv: vec![vec![b'a'; size]],
            env: vec![],
            clear_env: false,
            cwd: None,
            user: None,
            stdio: Stdio::Pipes,
            guards: None,
        }));
        let mut stream = Vec::new();
        Encoder::new(5).message(&message, &mut stream).unwrap();
        let (frames, _) = decode(&stream, &[stream.len()]);
        let mut assembler = Assembler::new(MAX_MESSAGE);
        let mut got = Vec::new();
        for frame in &frames {
            got.extend(assembler.push::<ToAgent>(frame).unwrap());
        }
        prop_assert_eq!(got, vec![message]);
    }
}

#[test]
fn a_message_over_the_receivers_limit_is_refused() {
    let mut assembler = Assembler::new(10);
    let frame = |kind, payload: &[u8]| Frame { kind, exec: 0, session: 0, payload: payload.to_vec() };
    assert_eq!(assembler.push::<ToHost>(&frame(Kind::Part, &[0; 8])), Ok(None));
    assert_eq!(assembler.push::<ToHost>(&frame(Kind::Part, &[0; 8])), Err(MessageError::TooLong { limit: 10 }));
    // What came before is forgotten.
    let ready = to_bytes(&ToHost::Ready).unwrap();
    assert_eq!(assembler.push::<ToHost>(&frame(Kind::Control, &ready)), Ok(Some(ToHost::Ready)));
}

#[test]
fn a_message_above_the_senders_limit_is_not_sent() {
    let mut out = Vec::new();
    let sent = Encoder::default().message(&ToHost::Log("x".repeat(MAX_MESSAGE)), &mut out);
    assert_eq!(sent, Err(MessageError::TooLong { limit: MAX_MESSAGE }));
    assert!(out.is_empty());
}

#[test]
fn trailing_bytes_are_refused() {
    let mut bytes = to_bytes(&ToHost::Ready).unwrap();
    bytes.push(0);
    assert_eq!(from_bytes::<ToHost>(&bytes), Err(MessageError::Trailing(1)));
}

#[test]
fn the_format_stays_as_documented() {
    let mut out = Vec::new();
    Encoder::new(0x0102_0304_0506_0708).bytes(Kind::Stderr, 9, b"hi", &mut out);
    assert_eq!(out[..20], [0xB7, 0x1A, 1, 2, 9, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0]);
    assert_eq!(&out[24..], b"hi");
}
