use super::*;
use crate::store::Base;

const SIZE: u64 = 1 << 20;

fn disk() -> LabDisk {
    LabDisk::new(Store::new(SIZE, Base::Zeros, tempfile::tempfile().unwrap()), false, "data0")
}

fn asked(operation: Operation, offset: u64, length: u32, payload: &[u8]) -> Request<'_> {
    Request { cookie: 1, operation: Some(operation), offset, length, fua: false, payload, path: 0 }
}

/// Does a request at once; gives what was read, or the number of the error.
fn ask(disk: &mut LabDisk, request: Request<'_>) -> Result<Vec<u8>, u32> {
    let fate = disk.decide(&request, Instant::now());
    assert_eq!(fate.when(), When::Now);
    let mut out = Answers::default();
    disk.execute(&request, fate, &mut out);
    let out = out.bytes();
    match u32::from_be_bytes(out[4..8].try_into().unwrap()) {
        0 => Ok(out[16..].to_vec()),
        error => Err(error),
    }
}

fn read(disk: &mut LabDisk, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
    ask(disk, asked(Operation::Read, offset, length, &[]))
}

fn write(disk: &mut LabDisk, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, u32> {
    ask(disk, asked(Operation::Write, offset, bytes.len() as u32, bytes))
}

fn flush(disk: &mut LabDisk) -> Result<Vec<u8>, u32> {
    ask(disk, asked(Operation::Flush, 0, 0, &[]))
}

fn arm(disk: &mut LabDisk, text: &str) -> u32 {
    match disk.obey(Order::Arm(text.to_owned())) {
        Answer::Armed { number, .. } => number,
        other => panic!("{text}: {other:?}"),
    }
}

fn refused(disk: &mut LabDisk, order: Order) -> String {
    match disk.obey(order) {
        Answer::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_come_where_and_as_often_as_they_are_asked_for() {
    let mut disk = disk();
    let fault = arm(&mut disk, "error write errno=ENOSPC at=8s+8s after=1 times=2");
    let bytes = [1; 512];
    assert_eq!(write(&mut disk, 0, &bytes), Ok(vec![]), "elsewhere");
    assert_eq!(read(&mut disk, 4096, 512), Ok(vec![0; 512]), "another operation");
    let tries: Vec<_> = (0..5).map(|_| write(&mut disk, 4096, &bytes).err()).collect();
    assert_eq!(tries, [None, Some(28), Some(28), None, None]);
    assert_eq!(disk.obey(Order::Heal(Some(fault))), Answer::Healed(1));
    assert!(refused(&mut disk, Order::Heal(Some(fault))).contains("no fault 1"));
    // A fault by chance is the same under the same seed.
    let by_chance = || {
        let mut disk = self::disk();
        arm(&mut disk, "error read chance=0.5 seed=9");
        (0..64).map(|_| read(&mut disk, 0, 512).is_err()).collect::<Vec<_>>()
    };
    let failed = by_chance();
    assert_eq!(failed, by_chance());
    assert!((10..54).contains(&failed.iter().filter(|failed| **failed).count()));
}

#[test]
fn what_is_lost_torn_misplaced_or_flipped_is_answered_as_if_it_were_not() {
    let mut disk = disk();
    let new = [7; 1024];
    arm(&mut disk, "lose write times=1");
    assert_eq!(write(&mut disk, 0, &new), Ok(vec![]));
    assert_eq!(read(&mut disk, 0, 1024), Ok(vec![0; 1024]));
    arm(&mut disk, "tear times=1");
    write(&mut disk, 0, &new).unwrap();
    assert_eq!(read(&mut disk, 0, 1024), Ok([vec![7; 512], vec![0; 512]].concat()));
    arm(&mut disk, "misplace by=16s times=1 at=0");
    write(&mut disk, 0, &[8; 512]).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![7; 512]));
    assert_eq!(read(&mut disk, 8192, 512), Ok(vec![8; 512]));
    arm(&mut disk, "misplace by=1s times=1");
    write(&mut disk, SIZE - 512, &[9; 512]).unwrap();
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![9; 512]), "behind the end is the beginning");
    arm(&mut disk, "flip times=1 seed=4");
    let flipped = read(&mut disk, 0, 512).unwrap();
    let bits: u32 = flipped.iter().map(|byte| (byte ^ 9).count_ones()).sum();
    assert_eq!(bits, 1);
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![9; 512]), "only the answer was wrong");
}

#[test]
fn what_is_misplaced_is_written_elsewhere_wherever_that_is() {
    let mut disk = disk();
    for by in [SIZE, 5 * SIZE] {
        assert!(refused(&mut disk, Order::Arm(format!("misplace by={by}"))).contains("where it belongs"));
    }
    let (last, end) = (u64::MAX / SIZE * SIZE + SIZE / 2, SIZE / 2);
    arm(&mut disk, &format!("misplace by={last} times=1"));
    write(&mut disk, 512, &[1; 512]).unwrap();
    assert_eq!(read(&mut disk, end + 512, 512), Ok(vec![1; 512]));
    // Over the end.
    arm(&mut disk, "misplace by=1s times=1");
    write(&mut disk, SIZE - 1024, &[2; 1024]).unwrap();
    assert_eq!((read(&mut disk, SIZE - 512, 512), read(&mut disk, 0, 512)), (Ok(vec![2; 512]), Ok(vec![2; 512])));
    assert_eq!(read(&mut disk, SIZE - 1024, 512), Ok(vec![0; 512]));
}

#[test]
fn bits_rot_otherwise_each_time_and_on_each_disk_and_the_same_again() {
    let bits = |one: &[u8], other: &[u8]| -> Vec<u32> {
        let sectors = one.chunks(512).zip(other.chunks(512));
        sectors.map(|(one, other)| one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum()).collect()
    };
    let rotten = |name: &str, seed, times| {
        let data = tempfile::tempfile().unwrap();
        let mut disk = LabDisk::new(Store::new(SIZE, Base::Zeros, data.try_clone().unwrap()), false, name);
        for _ in 0..times {
            assert_eq!(disk.obey(Order::Rot { at: "1000+3700".into(), seed }), Answer::Done);
        }
        let bytes = read(&mut disk, 0, 5120).unwrap();
        (bytes, disk, data)
    };
    let bytes = |name: &str, seed, times| rotten(name, seed, times).0;
    for times in 1..40 {
        // Of the second sector something is in the range, and of the tenth.
        let expected: Vec<u32> = (0..10).map(|sector| if sector > 0 { times } else { 0 }).collect();
        assert_eq!(bits(&bytes("data0", None, times), &[0; 5120]), expected);
    }
    assert_eq!(bytes("data0", None, 3), bytes("data0", None, 3));
    assert_eq!(bytes("data0", Some(7), 3), bytes("data1", Some(7), 3));
    for (one, other) in [(("data0", None), ("data1", None)), (("data0", None), ("data0", Some(7)))] {
        let (one, other) = (bytes(one.0, one.1, 1), bytes(other.0, other.1, 1));
        assert!(bits(&one, &other).iter().filter(|bits| **bits == 2).count() > 6);
    }
    // A copy goes on where it was.
    let (before, mut disk, data) = rotten("data0", None, 1);
    disk.obey(Order::Freeze);
    let store = Store::go_on(crate::store::Frozen::open(data, Base::Zeros).unwrap());
    let mut again = LabDisk::new(store, false, "data0");
    again.obey(Order::Rot { at: "1000+3700".into(), seed: None });
    assert_eq!(bits(&before, &read(&mut again, 0, 5120).unwrap())[1..], [1; 9]);
    assert_eq!(bits(&read(&mut again, 0, 5120).unwrap(), &[0; 5120])[1..], [2; 9]);
}

#[test]
fn disks_and_faults_that_are_given_no_seed_have_one_each_which_is_told() {
    let failed = |name: &str, texts: &[&str]| {
        let mut disk = LabDisk::new(Store::new(SIZE, Base::Zeros, tempfile::tempfile().unwrap()), false, name);
        let mut seed = None;
        for text in texts {
            disk.obey(Order::Heal(None));
            let Answer::Armed { seed: chosen, .. } = disk.obey(Order::Arm((*text).into())) else { panic!() };
            seed = chosen;
        }
        (seed.unwrap(), (0..64).map(|_| read(&mut disk, 0, 512).is_err()).collect::<Vec<_>>())
    };
    let text = "error read chance=0.5";
    let first = failed("data0", &[text]);
    assert_eq!(first, failed("data0", &[text]));
    assert_ne!(first.1, failed("data1", &[text]).1);
    assert_ne!(first.1, failed("data0", &[text, text]).1);
    let with_seed = format!("{text} seed={}", first.0);
    assert_eq!(first, failed("data1", &[text, &with_seed]));
    assert_eq!(disk().obey(Order::Arm("error".into())), Answer::Armed { number: 1, seed: None });
}

#[test]
fn another_test_finds_it_as_it_was_kept() {
    let mut disk = disk();
    let kept = arm(&mut disk, "error read at=8s times=1");
    disk.obey(Order::Limit("bytes=1MiB".into()));
    assert_eq!(disk.obey(Order::Keep), Answer::Done);
    assert_eq!(disk.obey(Order::Renew), Answer::Renewed(vec![]));
    disk.obey(Order::Limit("none".into()));
    write(&mut disk, 0, &[1; 512]).unwrap();
    assert!(read(&mut disk, 4096, 512).is_err() && read(&mut disk, 4096, 512).is_ok());
    disk.obey(Order::Heal(Some(kept)));
    arm(&mut disk, "hang");
    arm(&mut disk, "error");
    disk.obey(Order::Damage("0".into()));
    disk.obey(Order::Capacity(Some(0)));
    disk.obey(Order::Mark("x".into()));
    disk.obey(Order::Cut(None));
    let was = ["2 faults", "1 fault fewer", "damage", "a limit", "a capacity", "no power"];
    assert_eq!(disk.obey(Order::Renew), Answer::Renewed(was.map(str::to_owned).to_vec()));
    assert_eq!(disk.now.rate.bytes, Some(1 << 20));
    disk.obey(Order::Limit("none".into()));
    assert!(refused(&mut disk, Order::Counts(Some("x".into()))).contains("no mark"));
    assert_eq!((write(&mut disk, 0, &[1; 512]), read(&mut disk, 0, 512)), (Ok(vec![]), Ok(vec![1; 512])));
    assert!(read(&mut disk, 4096, 512).is_err(), "it has its times again");
}

#[test]
fn a_flush_that_lies_makes_nothing_durable() {
    let mut disk = disk();
    write(&mut disk, 0, &[1; 512]).unwrap();
    flush(&mut disk).unwrap();
    arm(&mut disk, "lose flush");
    write(&mut disk, 512, &[2; 512]).unwrap();
    assert_eq!(flush(&mut disk), Ok(vec![]));
    assert_eq!(disk.obey(Order::Cut(None)), Answer::Cut { pending: 1, lost: 1 });
    assert!(disk.is_off());
    assert!(refused(&mut disk, Order::Cut(None)).contains("no power already"));
    assert_eq!((read(&mut disk, 0, 512), write(&mut disk, 0, &[3; 512]), flush(&mut disk)), (Err(5), Err(5), Err(5)));
    let mut bytes = [9; 1024];
    disk.store.read(0, &mut bytes).unwrap();
    assert_eq!(bytes.to_vec(), [vec![1; 512], vec![0; 512]].concat());
    assert_eq!((disk.obey(Order::On), disk.is_off()), (Answer::Done, false));
    assert!(refused(&mut disk, Order::On).contains("has power"));
    assert_eq!(read(&mut disk, 0, 1024), Ok(bytes.to_vec()));
    let Answer::Log { requests, .. } = disk.obey(Order::Log(None)) else { panic!() };
    let power = |on| requests.iter().any(|logged| logged.what == What::Power(on));
    assert!(power(false) && power(true), "{requests:?}");
}

#[test]
fn a_medium_error_is_healed_by_writing() {
    let mut disk = disk();
    write(&mut disk, 0, &[1; 4096]).unwrap();
    assert_eq!(disk.obey(Order::Damage("1000+1100".into())), Answer::Done);
    assert_eq!(read(&mut disk, 0, 512), Ok(vec![1; 512]));
    assert_eq!((read(&mut disk, 512, 512), read(&mut disk, 0, 4096)), (Err(5), Err(5)));
    write(&mut disk, 1024, &[2; 512]).unwrap();
    let now: Vec<_> = (0..8).map(|sector| read(&mut disk, sector * 512, 512).is_ok()).collect();
    assert_eq!(now, [true, false, true, false, false, true, true, true]);
    write(&mut disk, 0, &[3; 4096]).unwrap();
    assert_eq!(read(&mut disk, 0, 4096), Ok(vec![3; 4096]));
    assert!(refused(&mut disk, Order::Damage("2048s".into())).contains("not on the disk"));
}

#[test]
fn requests_are_put_off_or_hang() {
    let mut disk = disk();
    let now = Instant::now();
    let request = asked(Operation::Read, 0, 1 << 19, &[]);
    disk.obey(Order::Limit("bytes=1MiB".into()));
    disk.all_decided();
    let second = |disk: &mut LabDisk| match disk.decide(&request, now).when() {
        When::At(at) => (at - now).as_millis(),
        other => panic!("{other:?}"),
    };
    assert_eq!((second(&mut disk), second(&mut disk)), (500, 1000));
    // What waits already has another turn at another rate.
    let mut waiting = [disk.decide(&request, now), disk.decide(&request, now)];
    let mut again = |disk: &mut LabDisk| {
        waiting.iter_mut().for_each(|fate| disk.decide_again(&request, fate, now));
        disk.all_decided();
        waiting.map(|fate| if let When::At(at) = fate.when() { (at - now).as_millis() } else { 0 })
    };
    assert_eq!(again(&mut disk), [1500, 2000]);
    disk.obey(Order::Limit("bytes=8MiB".into()));
    assert_eq!(again(&mut disk), [62, 125]);
    disk.obey(Order::Limit("none".into()));
    assert_eq!(again(&mut disk), [0, 0]);
    disk.obey(Order::Limit("none".into()));
    arm(&mut disk, "delay read by=200ms times=1");
    assert_eq!(second(&mut disk), 200);
    let delay = arm(&mut disk, "delay read by=1h times=1");
    let mut delayed = disk.decide(&request, now);
    assert_eq!(delayed.when(), When::At(now + Duration::from_secs(3600)));
    disk.obey(Order::Heal(Some(delay)));
    disk.decide_again(&request, &mut delayed, now);
    assert_eq!(delayed.when(), When::Now);
    let hang = arm(&mut disk, "hang");
    assert_eq!(disk.decide(&request, now).when(), When::Healed(hang));
    assert!(disk.hangs(hang));
    assert_eq!(disk.obey(Order::Heal(None)), Answer::Healed(2));
    assert!(!disk.hangs(hang));
}

#[test]
fn what_was_asked_of_it_is_counted_and_told() {
    let mut disk = disk();
    write(&mut disk, 0, &[1; 512]).unwrap();
    assert_eq!(disk.obey(Order::Mark("synced".into())), Answer::Done);
    let fault = arm(&mut disk, "error flush times=1");
    flush(&mut disk).unwrap_err();
    flush(&mut disk).unwrap();
    let Answer::Counts(counts) = disk.obey(Order::Counts(Some("synced".into()))) else { panic!() };
    assert_eq!(counts, Counts { flushes: 2, errors: 1, faults: 1, ..Counts::default() });
    let Answer::Counts(all) = disk.obey(Order::Counts(None)) else { panic!() };
    assert_eq!((all.writes, all.written_bytes, all.flushes), (1, 512, 2));
    let Answer::Log { requests, missing } = disk.obey(Order::Log(Some("synced".into()))) else { panic!() };
    let lines: Vec<_> = requests.iter().map(|line| line.to_string().split_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(
        (missing, lines),
        (0, vec!["mark synced".into(), format!("flush 0 0 fault={fault} failed"), "flush 0 0".into()])
    );
    assert!(refused(&mut disk, Order::Counts(Some("x".into()))).contains("no mark"));
    for _ in 0..MAX_LOG + 10 {
        flush(&mut disk).unwrap();
    }
    let Answer::Log { requests, missing } = disk.obey(Order::Log(Some("synced".into()))) else { panic!() };
    assert_eq!((requests.len(), missing), (MAX_TOLD, (MAX_LOG + 13 - MAX_TOLD) as u64));
}

#[test]
fn what_the_disk_cannot_do_is_an_error() {
    let mut disk = disk();
    assert_eq!(write(&mut disk, SIZE, &[1; 512]), Err(28));
    assert_eq!(read(&mut disk, SIZE - 512, 1024), Err(22));
    assert_eq!(read(&mut disk, u64::MAX, 512), Err(22));
    assert_eq!(ask(&mut disk, Request { operation: None, ..asked(Operation::Read, 0, 1, &[]) }), Err(22));
    disk.read_only = true;
    assert_eq!((write(&mut disk, 0, &[1; 512]), flush(&mut disk)), (Err(1), Ok(vec![])));
    disk.read_only = false;
    assert_eq!(disk.obey(Order::Capacity(Some(4096))), Answer::Done);
    write(&mut disk, 0, &[1; 4096]).unwrap();
    assert_eq!(write(&mut disk, 4096, &[1; 512]), Err(28));
}

#[test]
fn what_qemu_would_wait_for_is_no_snapshot() {
    let data = tempfile::tempfile().unwrap();
    let mut disk = LabDisk::new(Store::new(SIZE, Base::Zeros, data), false, "data0");
    let refused = |disk: &mut LabDisk| match disk.obey(Order::Snapshot(1)) {
        Answer::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    disk.obey(Order::Cut(None));
    assert!(refused(&mut disk).contains("no power"));
    disk.obey(Order::On);
    disk.obey(Order::Arm("hang write".into()));
    assert!(refused(&mut disk).contains("heal that before"));
    disk.obey(Order::Heal(None));
    disk.obey(Order::Arm("error write".into()));
    // The same again and again is one.
    for _ in 0..20 {
        assert_eq!(disk.obey(Order::Snapshot(1)), Answer::Done);
    }
    assert_eq!(disk.obey(Order::GoBack(1)), Answer::Done);
    assert_eq!(disk.obey(Order::Forget), Answer::Done);
    assert!(matches!(disk.obey(Order::GoBack(1)), Answer::Refused(_)));
}

#[test]
fn a_flush_of_qemus_own_is_none_of_the_guests() {
    let data = tempfile::tempfile().unwrap();
    let mut disk = LabDisk::new(Store::new(SIZE, Base::Zeros, data), false, "data0");
    write(&mut disk, 0, &[1; 512]).unwrap();
    disk.obey(Order::Arm("error flush times=1".into()));
    disk.obey(Order::Still);
    flush(&mut disk).unwrap();
    let Answer::Counts(counts) = disk.obey(Order::Counts(None)) else { panic!() };
    assert_eq!((counts.flushes, counts.faults), (0, 0));
    disk.obey(Order::Snapshot(1));
    disk.obey(Order::Begin);
    flush(&mut disk).unwrap_err();
    flush(&mut disk).unwrap();
    disk.obey(Order::GoBack(1));
    assert_eq!(disk.obey(Order::Cut(None)), Answer::Cut { pending: 1, lost: 1 });
}
