//! What a fuzzer runs: all that QEMU may say to a disk, done.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Instant,
};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    answers::Answers,
    disk::{LabDisk, When},
    nbd::{Conversation, Said, missing},
    serve::serve,
    store::{Base, Store},
};

/// Bytes of the disk.
const SIZE: u64 = 1 << 20;

/// Says `bytes` to a disk.
pub fn conversation(bytes: &[u8]) {
    let Ok(data) = memfd_create("lab", MemfdFlags::CLOEXEC) else { return };
    let data = File::from(data);
    let mut disk = LabDisk::new(Store::new(SIZE, Base::Zeros, data), false, "lab");
    let mut said_so_far = Vec::new();
    let mut conversation = Conversation::begin(disk.export(), &mut said_so_far);
    let mut at = 0;
    while let Ok(Some((taken, said))) = conversation.next(&bytes[at..], &mut said_so_far) {
        assert!(taken > 0);
        at += taken;
        match said {
            Said::Nothing => {}
            Said::Goodbye => return,
            Said::Request(request) => {
                let fate = disk.decide(&request, Instant::now());
                assert_eq!(fate.when(), When::Now);
                let mut answers = Answers::default();
                disk.execute(&request, fate, &mut answers);
                let failed = answers.buffer().get(4..8).is_some_and(|error| error != [0; 4]);
                let read = request.operation == Some(belljar_guest_spec::fault::Operation::Read);
                let expected = if read && !failed { request.length as usize } else { 0 };
                assert_eq!(answers.unsent(), 16 + expected as u64);
            }
        }
    }
    let _ = missing(&bytes[at..]);
}

/// Says `bytes` to a server, in pieces of at most so many; gives the first `count` bytes that it says.
///
/// # Errors
/// When there are no sockets or threads.
pub fn served(bytes: &[u8], piece: usize, count: usize) -> io::Result<Vec<u8>> {
    let data = File::from(memfd_create("lab", MemfdFlags::CLOEXEC)?);
    let disk = LabDisk::new(Store::new(SIZE, Base::Zeros, data), false, "lab");
    let ((ours, theirs), (control, orders)) = (UnixStream::pair()?, UnixStream::pair()?);
    std::thread::scope(|scope| {
        scope.spawn(move || serve(disk, vec![theirs], orders));
        let mut said = ours.try_clone()?;
        let saying = scope.spawn(move || {
            for part in bytes.chunks(piece.max(1)) {
                // It does not listen any more to what nobody says.
                if said.write_all(part).is_err() {
                    break;
                }
            }
        });
        let mut out = Vec::new();
        let _ = (&ours).take(count as u64).read_to_end(&mut out);
        // Whoever hangs up takes no answers any more.
        let _ = saying.join();
        let _ = ours.shutdown(Shutdown::Write);
        let _ = (&ours).read_to_end(&mut Vec::new());
        drop(control);
        Ok(out)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::tests::{asked, hello};

    proptest! {
        #[test]
        fn whatever_is_asked_is_answered(requests in prop::collection::vec((0u16..9, 0u16..4, prop_oneof![0..SIZE + 5000, any::<u64>()], prop_oneof![0u32..9000, any::<u32>()]), 0..20)) {
            let mut bytes = hello();
            for (kind, flags, offset, length) in requests {
                let length = if kind == 1 { length % 9000 } else { length };
                let payload = vec![1; if kind == 1 { length as usize } else { 0 }];
                bytes.extend(asked(kind, flags, 1, offset, length, &payload));
            }
            conversation(&bytes);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_server_says_what_a_disk_holds_however_it_is_asked(requests in prop::collection::vec((0u16..7, 0u64..256, 1u32..100, any::<u8>()), 1..30), piece in prop_oneof![1usize..2000, 2000usize..400_000]) {
            let mut bytes = hello();
            let mut disk = vec![0u8; SIZE as usize];
            let mut expected = Vec::new();
            for (cookie, (kind, offset, length, byte)) in (0..).zip(requests) {
                let offset = offset * 4096;
                let length = u64::from(length * 4096).min(SIZE - offset);
                let place = offset as usize..(offset + length) as usize;
                let mut ask = |kind, length: u64, payload: &[u8]| bytes.extend(asked(kind, 0, cookie, offset, length as u32, payload));
                match kind {
                    // More reads and writes than the others.
                    0 | 2 => ask(0, length, b""),
                    1 | 5 => {
                        let payload: Vec<u8> = (0..length).map(|at| byte.wrapping_add((at / 512) as u8)).collect();
                        ask(1, length, &payload);
                        disk[place.clone()].copy_from_slice(&payload);
                    }
                    4 | 6 => {
                        ask(kind, length, b"");
                        disk[place.clone()].fill(0);
                    }
                    _ => ask(3, 0, b""),
                }
                crate::nbd::reply(cookie, None, &mut expected);
                if matches!(kind, 0 | 2) {
                    expected.extend_from_slice(&disk[place]);
                }
            }
            let greeted = 18 + 20 + 32 + 34 + 20;
            let said = served(&bytes, piece, greeted + expected.len()).unwrap();
            prop_assert!(said[greeted..] == expected);
        }

        #[test]
        fn a_server_ends_whatever_is_said(bytes in prop::collection::vec(any::<u8>(), 0..300), shakes in any::<bool>(), piece in 1usize..100) {
            let mut all = if shakes { hello() } else { Vec::new() };
            all.extend(bytes);
            served(&all, piece, 0).unwrap();
        }
    }
}
