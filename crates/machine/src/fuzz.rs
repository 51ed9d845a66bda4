//! Bodies of the fuzz targets in `fuzz/`: any bytes, and what must hold of them. The property tests run them too, so that they
//! are run where there is no fuzzer.

use belljar_proto::frame;
use belljar_proto::message::ToHost;

use crate::qemu::qmp;

pub use crate::console::fuzz::{console, matcher};

/// Frames and the messages in them: the cut does not matter, memory is bounded, what is decoded encodes to itself.
pub fn frames(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let whole = decode_frames([bytes]);
    let parts = decode_frames(bytes.chunks(usize::from(cut).max(1)));
    // How rubbish is counted may differ with the cut, not the frames.
    assert_eq!(whole, parts);
    let mut assembler = frame::Assembler::new(1 << 16);
    for f in &whole {
        if let Ok(Some(message)) = assembler.push::<ToHost>(f) {
            let again = frame::to_bytes(&message).and_then(|b| frame::from_bytes::<ToHost>(&b));
            assert_eq!(again.as_ref(), Ok(&message));
        }
        let mut encoded = vec![0; frame::HEADER_LEN];
        encoded.extend_from_slice(&f.payload);
        frame::seal(&mut encoded, f.kind, f.exec, f.session);
        assert_eq!(decode_frames([&encoded[..]]), std::slice::from_ref(f));
    }
}

fn decode_frames<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<frame::Frame> {
    let mut decoder = frame::Decoder::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        while let Some(next) = decoder.next_frame() {
            frames.extend(next.ok());
        }
        assert!(decoder.pending() < frame::HEADER_LEN + frame::MAX_PAYLOAD);
    }
    frames
}

/// Lines of QMP: the cut does not matter.
pub fn qmp(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let whole = decode_qmp([bytes]);
    let parts = decode_qmp(bytes.chunks(usize::from(cut).max(1)));
    assert_eq!(whole, parts);
}

fn decode_qmp<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<qmp::Message>, Option<qmp::DecodeError>) {
    let mut decoder = qmp::Decoder::new();
    let mut messages = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(e) => return (messages, Some(e)),
            }
        }
    }
    (messages, None)
}

#[cfg(test)]
mod tests {
    use belljar_proto::frame::{Encoder, Kind};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames(
            cut in 1u8..60,
            pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40), any::<bool>(), any::<u32>()), 0..8),
        ) {
            let mut data = vec![cut];
            for (bytes, framed, exec) in pieces {
                if framed {
                    Encoder::new(7).bytes(Kind::Stdout, exec, &bytes, &mut data);
                } else {
                    data.extend(bytes);
                }
            }
            super::frames(&data);
        }

        #[test]
        fn qmp(cut in 1u8..60, text in "(\\{\"(event|return|QMP|error|id)\": ?(\"a\"|\\{\\}|1|null)\\}\r?\n|[{}\\[\\]\":,a-z0-9\n ]{0,20}){0,8}") {
            super::qmp(&[&[cut], text.as_bytes()].concat());
        }
    }
}
