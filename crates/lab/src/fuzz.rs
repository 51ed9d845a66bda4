//! What a fuzzer runs: all that QEMU may say to a disk, done.

use std::{fs::File, time::Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    answers::Answers,
    disk::{LabDisk, When},
    nbd::{Conversation, Said, missing},
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
}
