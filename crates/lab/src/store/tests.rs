use proptest::prelude::*;

use super::*;
use crate::{answers::Piece, arriving::Arriving};

const SIZE: u64 = 16 * GRANULE + 1024;

fn file() -> File {
    tempfile::tempfile().unwrap()
}

fn whole_of(store: &Store, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    store.read(0, &mut bytes).unwrap();
    bytes
}

fn whole(store: &Store) -> Vec<u8> {
    Spread(0).whole(store)
}

/// Sectors of the model, which are looked at on the disk in groups, with so many bytes that nobody looks at behind each.
#[derive(Clone, Copy)]
struct Spread(u64);

impl Spread {
    /// Sectors of a group; not whole granules.
    const GROUP: u64 = 13;

    fn size(self) -> u64 {
        self.at(SIZE - 512) + 512
    }

    /// Where something of the model is on the disk.
    fn at(self, offset: u64) -> u64 {
        offset + offset / 512 / Self::GROUP * self.0
    }

    /// Parts that are in one group.
    fn parts(offset: u64, length: u64) -> Vec<(u64, u64)> {
        let (group, end) = (Self::GROUP * 512, offset + length);
        let mut starts = vec![offset];
        starts.extend((offset / group + 1..).map(|number| number * group).take_while(|start| *start < end));
        starts.into_iter().map(|start| (start, end.min((start / group + 1) * group) - start)).collect()
    }

    fn whole(self, store: &Store) -> Vec<u8> {
        let mut bytes = vec![0xee; SIZE as usize];
        for (offset, length) in Self::parts(0, SIZE) {
            store.read(self.at(offset), &mut bytes[offset as usize..][..length as usize]).unwrap();
        }
        bytes
    }

    fn write(self, store: &mut Store, offset: u64, bytes: &[u8], durable: bool) {
        for (part, length) in Self::parts(offset, bytes.len() as u64) {
            let bytes = &bytes[(part - offset) as usize..][..length as usize];
            store.write(self.at(part), bytes, durable).unwrap();
        }
    }

    fn zero(self, store: &mut Store, offset: u64, length: u64, durable: bool) {
        let (start, end) = (self.at(offset), self.at(offset + length - 512) + 512);
        store.zero(start, end - start, durable).unwrap();
    }
}

/// What is in each sector, and what a power cut may leave of it: the first is durable.
#[derive(Clone)]
struct Model(Vec<Vec<Vec<u8>>>);

impl Model {
    fn of(bytes: &[u8]) -> Self {
        Self(bytes.chunks(512).map(|sector| vec![sector.to_vec()]).collect())
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        for (at, byte) in (offset..).zip(bytes) {
            let (sector, at) = ((at / 512) as usize, (at % 512) as usize);
            // Writes are of whole sectors: at the first byte of one another version begins.
            if at == 0 {
                let last = self.0[sector].last().unwrap().clone();
                self.0[sector].push(last);
            }
            self.0[sector].last_mut().unwrap()[at] = *byte;
        }
        if durable {
            let touched = (offset / 512) as usize..((offset + bytes.len() as u64) / 512) as usize;
            self.0[touched].iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
        }
    }

    fn flush(&mut self) {
        self.0.iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
    }

    fn now(&self) -> Vec<u8> {
        self.0.iter().flat_map(|versions| versions.last().unwrap().clone()).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8, bool),
    Zero(u64, u64, bool),
    Flush,
    Forget,
    Refreeze,
    Snapshot(u32),
    GoBack(u32),
    ForgetSnapshots,
    Lend(u64, u64, u64),
    TakeBack(Option<u64>),
    Place(u32, u64, u8),
    Put(u32, u64, bool),
    Abandon(u32),
    Cut(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let sectors = SIZE / 512;
    let range = (0..sectors).prop_flat_map(move |start| (Just(start), 1..=(sectors - start).min(24)));
    prop_oneof![
        6 => (range.clone(), any::<u8>(), prop::bool::weighted(0.2)).prop_map(|((s, l), b, d)| Step::Write(s * 512, l * 512, b, d)),
        2 => (range.clone(), 0..3u64).prop_map(|((s, l), cookie)| Step::Lend(cookie, s * 512, l * 512)),
        1 => prop::option::of(0..3u64).prop_map(Step::TakeBack),
        2 => (1..3u32, 1..8u64, any::<u8>()).prop_map(|(path, count, byte)| Step::Place(path, count, byte)),
        2 => (1..3u32, 0..8u64, prop::bool::weighted(0.2)).prop_map(|(path, at, durable)| Step::Put(path, at, durable)),
        1 => (1..3u32).prop_map(Step::Abandon),
        2 => (range, prop::bool::weighted(0.2)).prop_map(|((s, l), d)| Step::Zero(s * 512, l * 512, d)),
        1 => Just(Step::Flush),
        1 => Just(Step::Forget),
        1 => Just(Step::Refreeze),
        1 => (0..3u32).prop_map(Step::Snapshot),
        1 => (0..3u32).prop_map(Step::GoBack),
        1 => Just(Step::ForgetSnapshots),
        2 => prop::option::of(any::<u64>()).prop_map(Step::Cut),
    ]
}

proptest! {
    #[test]
    fn it_reads_as_written_and_a_cut_leaves_what_it_may(below in 0..3, gap in prop::sample::select(vec![0, (1u64 << 32) + 1536, 1 << 39]), steps in prop::collection::vec(step(), 1..40)) {
        let spread = Spread(gap);
        let base = match below {
            0 => Base::Zeros,
            1 => {
                let file = file();
                // It ends before the disk does.
                file.write_all_at(&vec![7; 9 * GRANULE as usize + 100], 0).unwrap();
                Base::File(Arc::new(file))
            }
            _ => {
                let data = file();
                let mut below = Store::new(spread.size(), Base::Zeros, data.try_clone().unwrap());
                spread.write(&mut below, GRANULE + 512, &[9; 9216], false);
                below.freeze().unwrap();
                Base::Frozen(Arc::new(Frozen::open(data, Base::Zeros).unwrap()))
            }
        };
        let mut data = file();
        let mut store = Store::new(spread.size(), base.clone(), data.try_clone().unwrap());
        let mut model = Model::of(&spread.whole(&store));
        let mut remembered = std::collections::BTreeMap::new();
        let mut placed = std::collections::BTreeMap::new();
        let mut lent: Vec<(u64, Vec<Piece>, Vec<u8>)> = Vec::new();
        // What a step adds to the memory that is wanted, at most.
        let mut entries = 8;
        for step in steps {
            match step {
                Step::Write(offset, length, byte, durable) => {
                    let bytes: Vec<u8> = (0..length).map(|at| byte.wrapping_add((at / 512) as u8)).collect();
                    spread.write(&mut store, offset, &bytes, durable);
                    model.write(offset, &bytes, durable);
                }
                Step::Zero(offset, length, durable) => {
                    spread.zero(&mut store, offset, length, durable);
                    model.write(offset, &vec![0; length as usize], durable);
                }
                Step::Flush => { store.flush().unwrap(); model.flush(); }
                Step::Forget => store.forget().unwrap(),
                Step::Refreeze => {
                    store.freeze().unwrap();
                    model.flush();
                    let frozen = Frozen::open(data, base.clone()).unwrap();
                    data = frozen.data.try_clone().unwrap();
                    store = Store::go_on(frozen);
                    remembered.clear();
                    lent.clear();
                    placed.clear();
                }
                Step::Snapshot(number) => {
                    store.snapshot(number).unwrap();
                    remembered.insert(number, model.clone());
                }
                Step::GoBack(number) => match remembered.get(&number) {
                    Some(then) => {
                        store.go_back(number).unwrap();
                        model = then.clone();
                    }
                    None => prop_assert!(store.go_back(number).is_err()),
                },
                Step::ForgetSnapshots => {
                    store.forget_snapshots();
                    remembered.clear();
                }
                Step::Lend(cookie, offset, length) => {
                    let (part, length) = Spread::parts(offset, length)[0];
                    store.take_back(0, Some(cookie));
                    lent.retain(|(of, ..)| *of != cookie);
                    let pieces = store.lend(0, cookie, spread.at(part), length, 99).unwrap().unwrap();
                    lent.push((cookie, pieces, model.now()[part as usize..][..length as usize].to_vec()));
                }
                Step::Place(path, count, byte) => {
                    placed.remove(&path);
                    store.abandon(path);
                    let bytes: Vec<u8> = (0..count * 8).flat_map(|sector| [byte.wrapping_add(sector as u8); 512]).collect();
                    let place = store.place(path, bytes.len() as u64, 99).unwrap();
                    let mut arriving = Arriving::new([0; 28], place);
                    arriving.take(&bytes).unwrap();
                    placed.insert(path, (arriving.placed, bytes));
                }
                // Elsewhere what follows each other in the model does not on the disk.
                Step::Put(path, granule, durable) if gap == 0 => {
                    if let Some((place, bytes)) = placed.remove(&path) {
                        store.put_placed(path, granule * GRANULE, &place, durable).unwrap();
                        model.write(granule * GRANULE, &bytes, durable);
                    }
                }
                Step::Put(path, ..) => {
                    if let Some((place, bytes)) = placed.remove(&path) {
                        prop_assert!(store.take_placed(path, &place).unwrap() == bytes);
                    }
                }
                Step::Abandon(path) => {
                    placed.remove(&path);
                    store.take_back(path, None);
                }
                Step::TakeBack(cookie) => {
                    store.take_back(0, cookie);
                    lent.retain(|(of, ..)| cookie.is_some_and(|cookie| *of != cookie));
                }
                Step::Cut(seed) => {
                    let lost = store.cut(seed.map_or(Survival::Strict, Survival::Seed)).unwrap();
                    prop_assert!(lost.lost <= lost.pending);
                    let left = spread.whole(&store);
                    for (sector, (left, may)) in left.chunks(512).zip(&model.0).enumerate() {
                        let may = if seed.is_some() { &may[..] } else { &may[..1] };
                        prop_assert!(may.iter().any(|version| version == left), "sector {sector} is what nobody wrote");
                    }
                    prop_assert_eq!(store.pending(), 0);
                    model = Model::of(&left);
                }
            }
            prop_assert_eq!(spread.whole(&store), model.now());
            for (_, pieces, then) in &lent {
                let now: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
                prop_assert!(now == *then, "what is lent was written over");
            }
            for (place, then) in placed.values() {
                let mut now = Vec::new();
                for (start, count) in &place.runs {
                    let piece = Piece { file: Some((Arc::clone(&place.file), u64::from(*start) * GRANULE)), length: u64::from(*count) * GRANULE };
                    now.extend(piece.bytes());
                }
                prop_assert!(now == *then, "what is to be put was written over");
            }
            entries += 8;
            prop_assert!(store.map.len() + store.durable.len() + store.pending.len() + store.stale.len() <= entries);
        }
    }
}

#[test]
fn seeds_choose_differently_and_each_the_same_again() {
    let left = |seed| {
        let mut store = Store::new(SIZE, Base::Zeros, file());
        for granule in 0..16 {
            store.write(granule * GRANULE, &[1 + granule as u8; GRANULE as usize], false).unwrap();
        }
        store.cut(Survival::Seed(seed)).unwrap();
        whole(&store)
    };
    let all: Vec<_> = (0..20).map(left).collect();
    assert_eq!(all, (0..20).map(left).collect::<Vec<_>>());
    let nothing = vec![0; SIZE as usize];
    let torn =
        |bytes: &Vec<u8>| bytes.chunks(GRANULE as usize).any(|granule| granule.iter().any(|byte| *byte != granule[0]));
    assert!(all.contains(&nothing), "in some nothing survives");
    assert!(all.iter().any(|bytes| !bytes[..16 * GRANULE as usize].contains(&0)), "in some all does");
    assert!(all.iter().any(torn), "some writes are torn");
}

#[test]
fn blocks_are_used_again_and_history_has_its_limit() {
    let data = file();
    let mut store = Store::new(64 << 20, Base::Zeros, data.try_clone().unwrap());
    let mib = vec![3; 1 << 20];
    for _ in 0..40 {
        for at in 0..8 {
            store.write(at << 20, &mib, false).unwrap();
        }
    }
    // Never flushed: what is durable is nothing, and the rest is forgotten.
    let length = data.metadata().unwrap().len();
    assert!(length < 160 << 20, "{length}");
    for _ in 0..40 {
        for at in 0..8 {
            store.write(at << 20, &mib, false).unwrap();
        }
        store.flush().unwrap();
    }
    assert!(data.metadata().unwrap().len() < length + (32 << 20));
    assert_eq!(store.allocated(), 8 << 20);
    store.zero(0, 64 << 20, false).unwrap();
    assert_eq!((store.allocated(), store.pending()), (0, 1));
    store.cut(Survival::Strict).unwrap();
    assert_eq!(store.allocated(), 8 << 20, "a discard that was not flushed is lost, too");
}

#[test]
fn what_was_lent_is_used_again_when_it_is_back() {
    for with_snapshot in [false, true] {
        let data = file();
        let mut store = Store::new(64 << 20, Base::Zeros, data.try_clone().unwrap());
        let mib = vec![3; 1 << 20];
        for cookie in 0..200 {
            store.write(0, &mib, false).unwrap();
            store.flush().unwrap();
            store.take_back(0, Some(cookie % 2));
            store.lend(0, cookie % 2, 1000, 500_000, 99).unwrap().unwrap();
            if with_snapshot && cookie == 100 {
                store.snapshot(1).unwrap();
                store.write(0, &mib, false).unwrap();
                store.forget_snapshots();
            }
        }
        let length = data.metadata().unwrap().len();
        assert!(length < 8 << 20, "{length}");
    }
    // Whoever asks for more than anybody takes does not get more.
    let mut store = Store::new(SIZE, Base::Zeros, file());
    store.write(0, &[1; 512], true).unwrap();
    let got = (0..1000).filter(|cookie| store.lend(0, *cookie, 0, 512, 99).unwrap().is_some()).count();
    assert!((16..=100).contains(&got), "{got}");
    store.take_back(1, None);
    assert!(store.lend(0, 0, 0, 512, 99).unwrap().is_none());
    store.take_back(0, None);
    assert!(store.lend(0, 0, 0, 512, 0).unwrap().is_none(), "in more pieces than it is wanted in");
    assert!(store.lend(0, 0, 0, 512, 1).unwrap().is_some());
}

#[test]
fn what_was_never_written_costs_nothing_to_make_zeros() {
    const LARGE: u64 = 8 << 40;
    let frozen = {
        let data = file();
        let mut below = Store::new(LARGE, Base::Zeros, data.try_clone().unwrap());
        below.write(1 << 40, &[1; 512], false).unwrap();
        below.freeze().unwrap();
        Base::Frozen(Arc::new(Frozen::open(data, Base::Zeros).unwrap()))
    };
    let raw = file();
    raw.write_all_at(&[7; 10_000], 0).unwrap();
    for (base, changes) in [(Base::Zeros, 0), (frozen, 1), (Base::File(Arc::new(raw)), 1)] {
        let data = file();
        let mut store = Store::new(LARGE, base, data.try_clone().unwrap());
        // As QEMU asks for it, which does not keep to granules.
        for at in (0..LARGE).step_by(1 << 31) {
            store.zero(at, (1 << 31) - 512, false).unwrap();
            store.zero(at + (1 << 31) - 512, 512, false).unwrap();
        }
        store.zero(0, LARGE, false).unwrap();
        assert_eq!(store.pending(), changes);
        assert!(store.map.len() + store.durable.len() <= 4, "{store:?}");
        assert_eq!((store.allocated(), data.metadata().unwrap().len()), (0, 0));
    }
    let mut store = Store::new(LARGE, Base::Zeros, file());
    for at in (0..LARGE).step_by(1 << 33) {
        store.write(at, &[1; 512], false).unwrap();
    }
    store.zero(0, LARGE, true).unwrap();
    // That nothing was there is one thing to remember.
    assert_eq!((store.map.len(), store.durable.len(), store.allocated()), (0, 1, 0));
}

#[test]
fn zeros_that_have_to_be_durable_are_even_where_there_are_zeros_already() {
    let mut store = Store::new(SIZE, Base::Zeros, file());
    store.write(0, &[1; 2 * GRANULE as usize], true).unwrap();
    store.zero(0, 2 * GRANULE, false).unwrap();
    store.zero(0, GRANULE, true).unwrap();
    store.zero(GRANULE, 512, true).unwrap();
    store.cut(Survival::Strict).unwrap();
    let left = whole(&store);
    assert_eq!(left[..GRANULE as usize + 512], [0; GRANULE as usize + 512]);
    assert_eq!(left[GRANULE as usize + 512], 1);
}

#[test]
fn a_thin_disk_fills_up_and_has_room_again() {
    let mut store = Store::new(SIZE, Base::Zeros, file());
    store.set_capacity(Some(2 * GRANULE));
    store.write(0, &[1; 2 * GRANULE as usize], false).unwrap();
    let full = store.write(3 * GRANULE, &[1; 512], false).unwrap_err();
    assert!(matches!(full, StoreError::Full));
    store.write(0, &[2; 512], false).unwrap();
    store.zero(0, GRANULE, false).unwrap();
    store.write(3 * GRANULE, &[1; 512], false).unwrap();
}

#[test]
fn what_is_not_on_the_disk_is_refused() {
    let mut store = Store::new(SIZE, Base::Zeros, file());
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
        assert!(store.read(offset, &mut vec![0; length as usize]).is_err());
        assert!(store.write(offset, &vec![0; length as usize], false).is_err());
        assert!(store.zero(offset, length, false).is_err());
    }
}

#[test]
fn a_frozen_disk_that_was_changed_is_none() {
    let freeze = || {
        let data = file();
        let mut store = Store::new(SIZE, Base::Zeros, data.try_clone().unwrap());
        store.write(GRANULE, &[5; 3 * GRANULE as usize], false).unwrap();
        store.freeze().unwrap();
        data
    };
    assert_eq!(Frozen::open(freeze(), Base::Zeros).unwrap().size(), SIZE);
    let length = freeze().metadata().unwrap().len();
    assert!(Frozen::open(file(), Base::Zeros).is_err());
    for at in 3 * GRANULE..length {
        let data = freeze();
        let mut byte = [0];
        data.read_exact_at(&mut byte, at).unwrap();
        data.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        assert!(Frozen::open(data, Base::Zeros).is_err(), "{at}");
    }
    let data = freeze();
    data.set_len(length - 1).unwrap();
    assert!(Frozen::open(data, Base::Zeros).is_err());
}

#[test]
fn a_disk_with_snapshots_grows_no_more_than_what_it_has_to_remember() {
    const DISK: u64 = 8 << 20;
    let data = file();
    let mut store = Store::new(DISK, Base::Zeros, data.try_clone().unwrap());
    let fill = |store: &mut Store, byte: u8| {
        for at in 0..8 {
            store.write(at << 20, &vec![byte; 1 << 20], false).unwrap();
        }
        store.flush().unwrap();
    };
    fill(&mut store, 1);
    store.snapshot(7).unwrap();
    for byte in 2..60 {
        fill(&mut store, byte);
    }
    let most = MAX_STALE * GRANULE + 4 * DISK;
    let length = data.metadata().unwrap().len();
    assert!(length <= most, "{length}");
    for _ in 0..30 {
        store.go_back(7).unwrap();
        assert!(whole_of(&store, DISK).iter().all(|byte| *byte == 1));
        fill(&mut store, 9);
        store.cut(Survival::Strict).unwrap();
        assert!(whole_of(&store, DISK).iter().all(|byte| *byte == 9), "what was flushed since");
    }
    assert!(data.metadata().unwrap().len() <= most);
    for number in 0..7 {
        store.snapshot(number).unwrap();
    }
    assert!(store.snapshot(8).unwrap_err().contains("8 snapshots already"));
    store.forget_snapshots();
    assert!(store.go_back(7).is_err());
    fill(&mut store, 3);
    assert!(data.metadata().unwrap().len() <= most);
}
