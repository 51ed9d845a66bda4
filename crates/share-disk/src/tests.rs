use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use crate::device::{RangeReader, RangeWriter};
use crate::layout::{CONTENT_AT, Header};
use crate::pack::{Manifest, pack, weigh};
use crate::tar::{Entry, Kind, Reader, TarError, Writer};
use crate::unpack::{Rules, Target, UnpackError, unpack};

fn root(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn archive(dir: &Path, since: Option<&Manifest>) -> (Vec<u8>, Manifest, Vec<String>) {
    let mut writer = Writer::new(Vec::new());
    let packed = pack(&mut writer, "w", root(dir), since).unwrap();
    (writer.end().unwrap(), packed.manifest, packed.left_out.lines())
}

fn entry(path: &str, kind: Kind) -> Entry {
    Entry { path: path.into(), kind, mode: 0o644, owner: (0, 0), mtime: (0, 0), size: 0 }
}

fn archive_of(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, data) in entries {
        writer.entry(&Entry { size: data.len() as u64, ..entry.clone() }).unwrap();
        if !data.is_empty() {
            writer.data(data).unwrap();
        }
    }
    writer.end().unwrap()
}

/// Unpacks on the host, with what it knows to be there.
fn bring_back(archive: &[u8], dir: &Path, known: &mut Manifest, room: u64) -> (Result<(), UnpackError>, Vec<String>) {
    let root = root(dir);
    let mut targets = [Target { known: Some(known), room, ..Target::fresh("w", &root) }];
    let done = unpack(archive, &mut targets, Rules::Plain);
    (done, std::mem::take(&mut targets[0].conflicts.0))
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/file"), "text").unwrap();
    fs::write(dir.join("a/b/large"), vec![7; 700_001]).unwrap();
    fs::write(dir.join("a/run"), "x").unwrap();
    fs::set_permissions(dir.join("a/run"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::hard_link(dir.join("a/file"), dir.join("again")).unwrap();
    symlink("../outside", dir.join("a/link")).unwrap();
    symlink("x".repeat(300), dir.join("long link")).unwrap();
    fs::write(dir.join("n".repeat(255)), "").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::set_permissions(dir.join("a/b"), PermissionsExt::from_mode(0o2750)).unwrap();
}

#[test]
fn a_tree_is_the_same_on_the_other_side() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    let sparse = fs::File::create(from.path().join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    let (bytes, manifest, left_out) = archive(from.path(), None);
    assert_eq!(left_out, [""; 0]);
    let there = root(to.path());
    unpack(bytes.as_slice(), &mut [Target::fresh("w", &there)], Rules::Whole).unwrap();
    for path in manifest.keys().map(|path| std::str::from_utf8(path).unwrap()) {
        let look = |dir: &Path| {
            let path = dir.join(path);
            let stat = fs::symlink_metadata(&path).unwrap();
            let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            (stat.mode(), stat.mtime(), stat.mtime_nsec(), fs::read_link(&path).ok(), content)
        };
        assert_eq!(look(from.path()), look(to.path()), "{path}");
    }
    let file = |name: &str| fs::metadata(to.path().join(name)).unwrap();
    assert_eq!(file("a/file").ino(), file("again").ino());
    assert_eq!(file("sparse").blocks(), 0, "what is nothing but zeros takes no room");
}

#[test]
fn the_systems_tar_reads_it() {
    let from = tempfile::tempdir().unwrap();
    tree(from.path());
    let (bytes, manifest, _) = archive(from.path(), None);
    let to = tempfile::tempdir().unwrap();
    fs::write(to.path().join("x.tar"), bytes).unwrap();
    let done = std::process::Command::new("tar").args(["-xf", "x.tar"]).current_dir(to.path()).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    assert_eq!(archive(&to.path().join("w"), None).1.len(), manifest.len());
}

#[test]
fn only_what_changed_comes_back_and_all_of_it() {
    let (host, guest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (host, guest) = (host.path(), guest.path());
    tree(host);
    let (bytes, mut known, _) = archive(host, None);
    let there = root(guest);
    unpack(bytes.as_slice(), &mut [Target::fresh("w", &there)], Rules::Whole).unwrap();
    let (_, before, _) = archive(guest, None);
    let (nothing, ..) = archive(guest, Some(&before));
    assert_eq!(nothing, [0; 1024], "nothing has changed");

    fs::write(guest.join("a/b/new"), "new").unwrap();
    fs::write(guest.join("a/run"), "other").unwrap();
    fs::set_permissions(guest.join("a/run"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::remove_file(guest.join("a/link")).unwrap();
    fs::create_dir(guest.join("a/link")).unwrap();
    fs::write(guest.join("a/link/in"), "in").unwrap();
    fs::remove_file(guest.join("fifo")).unwrap();
    // Of a file with two names.
    fs::write(guest.join("again"), "by its other name").unwrap();
    fs::hard_link(guest.join("again"), guest.join("a/third")).unwrap();
    let (bytes, after, _) = archive(guest, Some(&before));
    assert!(bytes.len() < 100_000, "the large file is not in it");
    let (done, conflicts) = bring_back(&bytes, host, &mut known, u64::MAX);
    done.unwrap();
    assert_eq!(conflicts, [""; 0]);
    let read = |path: &str| fs::read_to_string(host.join(path)).unwrap();
    assert_eq!((read("a/b/new"), read("a/run"), read("a/link/in")), ("new".into(), "other".into(), "in".into()));
    assert!(!host.join("fifo").exists());
    assert_eq!(read("a/file"), "by its other name");
    for name in ["a/file", "again", "a/third"] {
        assert_eq!(fs::metadata(host.join(name)).unwrap().nlink(), 3, "{name}");
    }
    fs::remove_file(guest.join("a/file")).unwrap();
    let (bytes, after, _) = archive(guest, Some(&after));
    let (done, conflicts) = bring_back(&bytes, host, &mut known, u64::MAX);
    done.unwrap();
    assert_eq!(conflicts, [""; 0]);
    assert_eq!(fs::metadata(host.join("again")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(host.join("a/run")).unwrap().mode() & 0o7777, 0o755, "nobody is made somebody else");
    assert_eq!(fs::metadata(host.join("a/b")).unwrap().mode() & 0o7777, 0o2750, "the host's own mode stays");
    let here: Vec<_> = archive(host, None).1.into_keys().collect();
    assert_eq!(here, after.into_keys().collect::<Vec<_>>());
    assert_eq!(archive(host, Some(&known)).0, [0; 1024], "what is known is what is there");
}

#[test]
fn what_was_changed_on_both_sides_is_told_and_stays() {
    let (host, guest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (host, guest) = (host.path(), guest.path());
    for name in ["both", "deleted here", "deleted there", "dir/file", "same"] {
        fs::create_dir_all(host.join("dir")).unwrap();
        fs::write(host.join(name), "before").unwrap();
    }
    let (bytes, mut known, _) = archive(host, None);
    let there = root(guest);
    unpack(bytes.as_slice(), &mut [Target::fresh("w", &there)], Rules::Whole).unwrap();
    let (_, before, _) = archive(guest, None);
    for dir in [host, guest] {
        fs::write(dir.join("both"), format!("by {}", dir.display())).unwrap();
        fs::write(dir.join("new on both"), format!("by {}", dir.display())).unwrap();
    }
    fs::remove_file(host.join("deleted here")).unwrap();
    fs::write(guest.join("deleted here"), "changed").unwrap();
    fs::remove_file(guest.join("deleted there")).unwrap();
    fs::write(host.join("deleted there"), "changed").unwrap();
    fs::remove_dir_all(guest.join("dir")).unwrap();
    fs::write(host.join("dir/added"), "x").unwrap();
    fs::remove_file(host.join("same")).unwrap();
    fs::remove_file(guest.join("same")).unwrap();
    let (bytes, ..) = archive(guest, Some(&before));
    let aside = tempfile::tempdir().unwrap();
    let (kept, here) = (root(aside.path()), root(host));
    let mut targets = [Target { known: Some(&mut known), aside: Some(&kept), ..Target::fresh("w", &here) }];
    unpack(bytes.as_slice(), &mut targets, Rules::Plain).unwrap();
    let mut conflicts = targets[0].conflicts.0.clone();
    conflicts.sort();
    assert_eq!(conflicts, ["both", "deleted here", "deleted there", "dir", "new on both"]);
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(read(&host.join("both")), format!("by {}", host.display()));
    assert_eq!(read(&host.join("deleted there")), "changed");
    assert_eq!(read(&host.join("dir/added")), "x");
    assert!(!host.join("deleted here").exists());
    assert_eq!(read(&aside.path().join("both")), format!("by {}", guest.display()));
    assert_eq!(read(&aside.path().join("deleted here")), "changed");
}

/// As after a store to memory that is mapped, which changes no time.
#[test]
fn what_changed_without_a_time_is_seen_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["same", "other"] {
        fs::write(dir.path().join(name), "text").unwrap();
    }
    let (_, before, _) = archive(dir.path(), None);
    let mut known = crate::pack::contents(root(dir.path()), &before).unwrap();
    known.insert(b"other".to_vec(), 7);
    for wanted in [&["w/other"][..], &[]] {
        let mut writer = Writer::new(Vec::new());
        let packed = crate::pack::pack_changes(&mut writer, "w", root(dir.path()), &before, &mut known).unwrap();
        assert_eq!(packed.manifest, before);
        let bytes = writer.end().unwrap();
        let mut reader = Reader::new(bytes.as_slice());
        let mut found = Vec::new();
        while let Some(entry) = reader.entry().unwrap() {
            found.push(String::from_utf8(entry.path).unwrap());
        }
        assert_eq!(found, wanted);
    }
}

/// What is there and cannot be looked at is not taken for deleted.
#[test]
fn what_is_hidden_in_the_guest_stays_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    for name in ["file", "sub/file", "deleted"] {
        fs::write(dir.path().join(name), "text").unwrap();
    }
    let (_, mut before, _) = archive(dir.path(), None);
    // As under something that is mounted there: a socket.
    fs::remove_file(dir.path().join("file")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("file")).unwrap();
    fs::remove_dir_all(dir.path().join("sub")).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(dir.path().join("sub")).unwrap();
    fs::remove_file(dir.path().join("deleted")).unwrap();
    let (bytes, after, left_out) = archive(dir.path(), Some(&before));
    let mut reader = Reader::new(bytes.as_slice());
    let mut gone = Vec::new();
    while let Some(entry) = reader.entry().unwrap() {
        if entry.kind == Kind::Gone {
            gone.push(String::from_utf8(entry.path).unwrap());
        }
    }
    assert_eq!(gone, ["w/deleted"]);
    assert_eq!(left_out.len(), 1, "{left_out:?}");
    before.remove(b"deleted".as_slice());
    assert!(after.keys().eq(before.keys()), "what is hidden is known as it was");
}

#[test]
fn directories_of_the_host_keep_what_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    for (name, bits) in [("known", 0o2755), ("unknown", 0o700), ("changed", 0o755)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(bits)).unwrap();
    }
    let (_, mut known, _) = archive(dir.path(), None);
    known.remove(b"unknown".as_slice());
    fs::set_permissions(dir.path().join("changed"), PermissionsExt::from_mode(0o711)).unwrap();
    let directory = |path, mode| (Entry { mode, ..entry(path, Kind::Directory) }, &b""[..]);
    let all = [
        directory("w/known", 0o4),
        directory("w/unknown", 0o777),
        directory("w/changed", 0o777),
        directory("w/new", 0),
    ];
    let (done, conflicts) = bring_back(&archive_of(&all), dir.path(), &mut known, 1 << 20);
    done.unwrap();
    assert_eq!(conflicts, [""; 0]);
    assert_eq!([mode("known"), mode("unknown"), mode("changed"), mode("new")], [0o2704, 0o700, 0o711, 0o700]);
}

#[test]
fn a_path_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    for path in [format!("w{}", "/a".repeat(300)), format!("w{}", format!("/{}", "a".repeat(250)).repeat(20))] {
        let (done, _) =
            bring_back(&archive_of(&[(entry(&path, Kind::File), b"x")]), dir.path(), &mut Manifest::new(), 1 << 20);
        assert!(matches!(done, Err(UnpackError::Path(_))), "{done:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_archive_of_a_guest_leads_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (top, beside) = (dir.path().join("top"), dir.path().join("beside"));
    fs::create_dir_all(&top).unwrap();
    fs::create_dir_all(&beside).unwrap();
    fs::write(beside.join("secret"), "secret").unwrap();
    symlink(&beside, top.join("link")).unwrap();
    symlink("../beside/secret", top.join("file link")).unwrap();
    let (_, known, _) = archive(&top, None);
    let file = |path: &str| (entry(path, Kind::File), b"forged".as_slice());
    let bad = [
        file("w/../beside/secret"),
        file("../beside/secret"),
        file("/etc/x"),
        file("w//x"),
        file("w/./x"),
        file("w/"),
        file("other/x"),
        file(""),
        (entry("w/hard", Kind::Hardlink("w/../beside/secret".into())), b"".as_slice()),
        (entry("w/hard", Kind::Hardlink("/etc/passwd".into())), b"".as_slice()),
        (entry("w/hard", Kind::Hardlink("w/file link".into())), b"".as_slice()),
    ];
    for one in bad {
        let (done, _) = bring_back(&archive_of(std::slice::from_ref(&one)), &top, &mut known.clone(), u64::MAX);
        assert!(matches!(done, Err(UnpackError::Path(_))), "{:?}: {done:?}", one.0);
    }
    // Through a link that is there, or that the archive itself makes.
    for entries in [
        vec![file("w/link/secret")],
        vec![(entry("w/new", Kind::Symlink("../beside".into())), b"".as_slice()), file("w/new/secret")],
        vec![file("w/file link")],
        vec![(entry("w/hard", Kind::Hardlink("w/link/secret".into())), b"".as_slice())],
    ] {
        let _ = bring_back(&archive_of(&entries), &top, &mut known.clone(), u64::MAX);
        assert_eq!(fs::read_to_string(beside.join("secret")).unwrap(), "secret", "{entries:?}");
        assert_eq!(fs::read_dir(&beside).unwrap().count(), 1);
        assert_eq!(fs::metadata(beside.join("secret")).unwrap().nlink(), 1);
        let _ = fs::remove_file(top.join("new"));
    }
}

#[test]
fn more_than_may_be_is_refused_and_zeros_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (_, known, _) = archive(dir.path(), None);
    let with = |data: &[u8]| {
        let archive = archive_of(&[(entry("w/x", Kind::File), data)]);
        let done = bring_back(&archive, dir.path(), &mut known.clone(), 1 << 20).0;
        let _ = fs::remove_file(dir.path().join("x"));
        done
    };
    assert!(with(&vec![1; 1 << 19]).is_ok());
    assert!(with(&vec![0; 3 << 20]).is_ok());
    assert!(matches!(with(&vec![1; 2 << 20]), Err(UnpackError::TooMuch { .. })));
    let many: Vec<_> = (0..3000).map(|n| (entry(&format!("w/{n}"), Kind::Directory), b"".as_slice())).collect();
    let done = bring_back(&archive_of(&many), dir.path(), &mut known.clone(), 1 << 20).0;
    assert!(matches!(done, Err(UnpackError::TooMuch { .. })), "{done:?}");
}

/// The data of a file with holes.
fn pieces(pieces: &[(u64, &[u8])]) -> Vec<u8> {
    let piece = |(at, data): &(u64, &[u8])| {
        let header = [at.to_le_bytes(), (data.len() as u64).to_le_bytes()];
        [header.as_flattened(), *data].concat()
    };
    pieces.iter().flat_map(piece).collect()
}

/// Bytes of a file's blocks, and what is there of it.
fn of_sparse(path: &Path, places: &[u64]) -> (u64, u64, Vec<[u8; 4]>) {
    let file = fs::File::open(path).unwrap();
    let stat = file.metadata().unwrap();
    let at = |place: &u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, *place).unwrap();
        bytes
    };
    (stat.len(), stat.blocks() * 512, places.iter().map(at).collect())
}

#[test]
fn holes_are_holes_in_the_archive_and_on_both_sides() {
    const SIZE: u64 = 1 << 40;
    let places = [0, 5 << 20, (1 << 30) + 3, SIZE - 4, 4 << 20];
    let (host, guest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |dir: &Path, place: u64| {
        let file = fs::File::options().create(true).truncate(false).write(true).open(dir.join("disk")).unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"data", place).unwrap();
    };
    (0..4).for_each(|n| write(host.path(), places[n]));
    let (bytes, mut known, left_out) = archive(host.path(), None);
    assert_eq!(left_out, [""; 0]);
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let there = root(guest.path());
    unpack(bytes.as_slice(), &mut [Target::fresh("w", &there)], Rules::Whole).unwrap();
    let expected = |last: &[u8; 4]| [b"data", b"data", b"data", b"data", last].map(|bytes| *bytes).to_vec();
    let (size, blocks, found) = of_sparse(&guest.path().join("disk"), &places);
    assert_eq!((size, found), (SIZE, expected(&[0; 4])));
    assert!(blocks < 1 << 20, "{blocks}");

    // And back, with what the guest has added to it.
    let since = archive(guest.path(), None).1;
    write(guest.path(), places[4]);
    let (bytes, ..) = archive(guest.path(), Some(&since));
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let (done, conflicts) = bring_back(&bytes, host.path(), &mut known, 1 << 20);
    done.unwrap();
    assert_eq!(conflicts, [""; 0]);
    let (size, blocks, found) = of_sparse(&host.path().join("disk"), &places);
    assert_eq!((size, found), (SIZE, expected(b"data")));
    assert!(blocks < 1 << 20, "{blocks}");
}

#[test]
fn what_is_weighed_is_about_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
    fs::write(dir.path().join("largest"), vec![1; 900_000]).unwrap();
    let weight = weigh(root(dir.path()), || Ok(())).unwrap();
    let length = archive(dir.path(), None).0.len() as u64;
    assert!(weight.bytes.abs_diff(length) < 64 * 1024, "{} and {length}", weight.bytes);
    let largest: Vec<_> = weight.largest.iter().map(|(bytes, path)| (*bytes, path.as_str())).collect();
    assert_eq!(largest[..2], [(900_000, "largest"), (700_001, "a/b/large")]);
    let given_up = weigh(root(dir.path()), || Err(std::io::ErrorKind::TimedOut.into())).unwrap_err();
    assert_eq!(given_up.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn pieces_of_a_file_with_holes_are_where_they_can_be_or_the_archive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_, known, _) = archive(dir.path(), None);
    let with = |size: u64, data: &[u8]| {
        let archive = archive_of(&[(entry("w/x", Kind::Sparse(size)), data)]);
        let done = bring_back(&archive, dir.path(), &mut known.clone(), 1 << 20).0;
        let found = fs::read(dir.path().join("x")).ok();
        let _ = fs::remove_file(dir.path().join("x"));
        done.map(|()| found.unwrap())
    };
    assert_eq!(with(6, &pieces(&[(1, b"ab"), (5, b"c")])).unwrap(), b"\0ab\0\0c");
    assert_eq!(with(3, &[]).unwrap(), [0; 3]);
    assert_eq!(with(0, &[]).unwrap(), [0; 0]);
    assert_eq!(with(2, &pieces(&[(0, b""), (0, b"ab"), (2, b"")])).unwrap(), b"ab");
    let header = |at: u64, length: u64| [at.to_le_bytes(), length.to_le_bytes()].concat();
    for (size, data) in [
        (6, pieces(&[(5, b"ab")])),
        (6, pieces(&[(2, b"ab"), (0, b"c")])),
        (6, pieces(&[(0, b"ab"), (1, b"c")])),
        (6, pieces(&[(u64::MAX, b"a")])),
        (6, pieces(&[(7, b"")])),
        (6, header(0, 3)),
        (6, header(0, u64::MAX)),
        (6, header(u64::MAX, u64::MAX)),
        (6, vec![0; 15]),
        (6, [pieces(&[(0, b"ab")]), vec![1]].concat()),
    ] {
        let done = with(size, &data);
        assert!(matches!(done, Err(UnpackError::Archive(TarError::Malformed(_)))), "{size}, {data:?}: {done:?}");
    }
    // Each piece takes at least a block.
    let many: Vec<_> = (0..400).map(|n| (n << 20, b"x".as_slice())).collect();
    let done = with(1 << 40, &pieces(&many));
    assert!(matches!(done, Err(UnpackError::TooMuch { .. })), "{done:?}");
}

#[test]
fn an_archive_that_is_cut_or_damaged_is_an_error_wherever_it_is() {
    let from = tempfile::tempdir().unwrap();
    tree(from.path());
    fs::write(from.path().join("a/b/large"), "no longer").unwrap();
    let (bytes, ..) = archive(from.path(), None);
    for end in (0..bytes.len()).step_by(97) {
        let to = tempfile::tempdir().unwrap();
        let there = root(to.path());
        let done = unpack(&bytes[..end], &mut [Target::fresh("w", &there)], Rules::Plain);
        assert!(
            matches!(done, Err(UnpackError::Archive(TarError::Malformed(_)))),
            "{end} of {}: {done:?}",
            bytes.len()
        );
    }
    let mut more = bytes.clone();
    let end = more.len();
    more[end - 600] = 1;
    assert!(unpack(more.as_slice(), &mut [Target::fresh("w", &root(from.path()))], Rules::Plain).is_err());
}

#[test]
fn a_range_of_a_disk_is_written_and_read_a_piece_at_a_time() {
    use std::io::{Read, Write};
    let file = tempfile::tempfile().unwrap();
    for length in [0, 1, 4096, (1 << 20) - 1, (1 << 20) + 1, 3 << 20] {
        let bytes: Vec<u8> = (0..length).map(|n: usize| (n % 251) as u8).collect();
        let mut writer = RangeWriter::new(file.as_fd(), CONTENT_AT, 4 << 20);
        writer.write_all(&bytes).unwrap();
        let (count, crc) = writer.finish().unwrap();
        assert_eq!((count, crc), (length as u64, crc32fast::hash(&bytes)));
        let mut reader = RangeReader::new(file.as_fd(), CONTENT_AT, count);
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        assert_eq!(back, bytes);
        assert_eq!(reader.finish().unwrap(), crc);
        assert_eq!(RangeReader::new(file.as_fd(), CONTENT_AT, count).finish().unwrap(), crc);
    }
    let mut writer = RangeWriter::new(file.as_fd(), CONTENT_AT, 10);
    assert!(writer.write_all(&[0; 11]).is_err());
    assert!(RangeReader::new(file.as_fd(), 1 << 40, 5).finish().is_err(), "the file ends before it");
}

#[test]
fn a_header_is_believed_only_as_it_was_written() {
    let header = Header { id: [3; 16], program: 5, content: 1 << 20, crc: 7 };
    let block = header.to_block();
    assert_eq!(Header::of_block(&block), Some(header));
    assert_eq!(Header::of_block(&block[..100]), Some(header));
    assert_eq!(Header::of_block(&block[..20]), None);
    for at in 0..56 {
        let mut other = block;
        other[at] ^= 1;
        assert_eq!(Header::of_block(&other), None, "{at}");
    }
    assert_eq!(Header::of_block(&Header { content: u64::MAX, ..header }.to_block()), None);
}

prop_compose! {
    fn any_entry()(
        path in proptest::collection::vec(1_u8.., 0..400),
        link in proptest::collection::vec(1_u8.., 0..300),
        kind in 0..7,
        real_size in 0_u64..1 << 62,
        mode in 0_u32..0o10000,
        owner in any::<(u32, u32)>(),
        seconds in -1_i64 << 40..1 << 40,
        nanoseconds in 0_u32..1_000_000_000,
        data in proptest::collection::vec(any::<u8>(), 0..1500),
    ) -> (Entry, Vec<u8>) {
        let kind = match kind {
            0 => Kind::Directory,
            1 => Kind::Symlink(link),
            2 => Kind::Hardlink(link),
            3 => Kind::Fifo,
            4 => Kind::Gone,
            5 => Kind::Sparse(real_size),
            _ => Kind::File,
        };
        let data = if kind.is_file() { data } else { Vec::new() };
        let size = data.len() as u64;
        (Entry { path, kind, mode, owner, mtime: (seconds, nanoseconds), size }, data)
    }
}

proptest! {
    #[test]
    fn entries_are_read_as_they_were_written(entries in proptest::collection::vec(any_entry(), 0..6)) {
        let mut writer = Writer::new(Vec::new());
        for (entry, data) in &entries {
            writer.entry(entry).unwrap();
            if !data.is_empty() {
                writer.data(data).unwrap();
            }
        }
        let bytes = writer.end().unwrap();
        let mut reader = Reader::new(bytes.as_slice());
        for (entry, data) in &entries {
            let read_entry = reader.entry().unwrap();
            prop_assert_eq!(read_entry.as_ref(), Some(entry));
            let mut read = Vec::new();
            let mut piece = [0; 700];
            loop {
                match reader.data(&mut piece).unwrap() {
                    0 => break,
                    n => read.extend_from_slice(&piece[..n]),
                }
            }
            prop_assert_eq!(&read, data);
        }
        prop_assert!(reader.entry().unwrap().is_none());
        prop_assert!(reader.into_inner().is_empty());
    }

    #[test]
    fn whatever_a_guest_writes_is_read_or_refused(
        at in 0_usize..6000,
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        cut in 0_usize..8000,
    ) {
        let mut archive = archive_of(&[
            (entry(&format!("w/{}", "d".repeat(200)), Kind::Directory), b""),
            (entry("w/x", Kind::Symlink("l".repeat(200).into())), b""),
            (entry("w/h", Kind::Sparse(1 << 20)), &pieces(&[(0, &[1; 100]), (70_000, &[2; 100])])),
            (entry("w/f", Kind::File), &[1; 700]),
        ]);
        for (to, from) in archive.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        archive.truncate(cut);
        crate::fuzz::archive(&archive);
        let dir = tempfile::tempdir().unwrap();
        let _ = bring_back(&archive, dir.path(), &mut Manifest::new(), 1 << 20);
    }
}
