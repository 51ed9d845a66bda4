//! One part of a run, so that several machines share it.
//!
//! What is parted are cells (see [`crate::plan::Cell`]): units that share a guest stay together.
//!
//! * `slice:k/n` takes every n-th cell in the plan's stable order, beginning with the k-th. Parts are of equal size; a new test moves others.
//! * `hash:k/n` takes the cells whose hash falls to k. A cell stays in its part as long as its id and n are the same. The hash is
//!   the first eight bytes of BLAKE3 of the id, little-endian, modulo n, and 0 falls to part 1. This never changes.

use std::{fmt, str::FromStr};

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    kind: Kind,
    /// From 0.
    part: u64,
    of: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Slice,
    Hash,
}

impl Partition {
    /// Whether the cell with this id, at this place in the stable order, is in the part.
    #[must_use]
    pub fn takes(&self, index: usize, id: &str) -> bool {
        let number = match self.kind {
            Kind::Slice => index as u64,
            Kind::Hash => {
                let mut start = [0; 8];
                start.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..8]);
                u64::from_le_bytes(start)
            }
        };
        number % self.of == self.part
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("{text:?} is no partition; write slice:1/4 or hash:1/4 for the first of four parts");
        let (kind, numbers) = text.split_once(':').ok_or_else(shape)?;
        let kind = match kind {
            "slice" | "count" => Kind::Slice,
            "hash" => Kind::Hash,
            _ => return Err(shape()),
        };
        let (part, of) = numbers.split_once('/').ok_or_else(shape)?;
        let number = |t: &str| t.parse::<u64>().ok().filter(|_| t.bytes().all(|b| b.is_ascii_digit()));
        let (part, of) = number(part).zip(number(of)).ok_or_else(shape)?;
        if of == 0 || part == 0 || part > of {
            return Err(format!("{text:?}: there is no part {part} of {of}; parts count from 1"));
        }
        Ok(Self { kind, part: part - 1, of })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Slice => "slice",
            Kind::Hash => "hash",
        };
        write!(f, "{kind}:{}/{}", self.part + 1, self.of)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn mistakes() {
        for wrong in [
            "",
            "slice",
            "slice:",
            "slice:1",
            "slice:0/2",
            "slice:3/2",
            "hash:1/0",
            "mesh:1/2",
            "hash:+1/2",
            "hash:1/2/3",
        ] {
            assert!(wrong.parse::<Partition>().is_err(), "{wrong}");
        }
        assert_eq!(
            "slice:5/4".parse::<Partition>().unwrap_err(),
            "\"slice:5/4\": there is no part 5 of 4; parts count from 1"
        );
    }

    #[test]
    fn the_hash_never_changes() {
        let parts: Vec<_> = (1..=4).map(|k| format!("hash:{k}/4").parse::<Partition>().unwrap()).collect();
        let of = |id: &str| parts.iter().position(|p| p.takes(0, id)).unwrap() + 1;
        let ids = ["storage/lvm.sh@debian", "storage/raid.sh@debian", "net/bridge.sh@host", "", "日本"];
        assert_eq!(ids.map(of), [1, 2, 1, 4, 4]);
    }

    proptest! {
        #[test]
        fn each_cell_is_in_one_part(ids in prop::collection::vec(".{0,12}", 0..30), of in 1_u64..9, kind in "slice|hash") {
            let parts: Vec<Partition> = (1..=of).map(|k| format!("{kind}:{k}/{of}").parse().unwrap()).collect();
            for (i, id) in ids.iter().enumerate() {
                prop_assert_eq!(parts.iter().filter(|p| p.takes(i, id)).count(), 1);
            }
        }

        #[test]
        fn what_is_written_parses_to_the_same(part in 1_u64..1000, more in 0_u64..1000, kind in "slice|hash") {
            let text = format!("{kind}:{part}/{}", part + more);
            prop_assert_eq!(text.parse::<Partition>().unwrap().to_string(), text);
        }

        #[test]
        fn the_parser_never_panics(text in "\\PC{0,20}|(slice|hash):?[0-9/]{0,30}") {
            let _ = text.parse::<Partition>();
        }
    }
}
