//! What a fuzzer runs: layers of anybody's, put over one another, and made a file system.

use crate::{
    archive::Reader,
    erofs,
    limits::Limits,
    sink::Sink,
    tree::{Done, Tree},
    unpack,
};

/// Limits that a short input can pass.
fn limits() -> Limits {
    Limits {
        entries: 2000,
        bytes: 4 << 20,
        metadata: 1 << 20,
        depth: 40,
        steps: 100_000,
        keep_free: 0,
        ..Limits::default()
    }
}

/// Reads two layers, the first as long as the first two bytes say.
pub fn layers(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (first, second) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let Ok(file) = tempfile::tempfile() else { return };
    let limits = limits();
    let mut tree = Tree::new(limits.clone());
    let mut sink = Sink::new(&file, 1, &limits);
    for layer in [first, second] {
        tree.begin(true);
        let Ok(unpacked) = unpack::reader(layer) else { continue };
        let mut reader = Reader::new(std::io::Read::take(unpacked, limits.bytes));
        while let Ok(Some(entry)) = reader.next() {
            let size = entry.size;
            match tree.apply(entry) {
                Ok(Done::File(node)) => match sink.take(&mut reader, size) {
                    Ok(extent) => tree.put(node, extent),
                    Err(_) => break,
                },
                Ok(Done::All) => {}
                Err(_) => break,
            }
            sink.free(tree.take_freed());
        }
    }
    let blocks = erofs::write(&tree, &file, sink.next());
    assert!(blocks.is_ok_and(|blocks| blocks > sink.next()), "what was read can be written");
}
