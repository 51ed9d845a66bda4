//! Questions after files: everything is told of, nothing is followed out of the root, and the answer is whole or none.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use belljar_proto::files::{FileQuery, FileRecord, FileRecords, FoundKind, Part};
use belljar_proto::message::{AskFiles, Status, ToAgent};

use crate::peer::{NONCE, Peer};

fn ask(peer: &mut Peer, id: u32, query: FileQuery) -> Vec<FileRecord> {
    peer.send(&ToAgent::Files(Box::new(AskFiles { id, nonce: NONCE, query })));
    let ran = peer.outcome(id);
    assert_eq!(ran.status, Some(Status::Code(0)));
    let mut records = FileRecords::default();
    records.push(&ran.stdout);
    let mut all = Vec::new();
    while let Some(record) = records.next().unwrap() {
        all.push(record);
    }
    assert!(records.is_whole());
    all
}

/// All paths that `pattern` wants, each with what it is.
fn look(peer: &mut Peer, id: u32, root: &Path, pattern: &str) -> Vec<String> {
    let part = |text: &str| if text == "**" { Part::Any } else { Part::Name(text.into()) };
    let wanted = vec![pattern.split('/').map(part).collect()];
    let records = ask(peer, id, FileQuery::Look { root: root.as_os_str().as_bytes().to_vec(), wanted });
    let mut all: Vec<String> = records
        .iter()
        .filter_map(|record| match record {
            FileRecord::Found(found) if !found.path.is_empty() => {
                let what = match &found.kind {
                    FoundKind::File if found.target.is_some() => "link".to_owned(),
                    FoundKind::File => "file".to_owned(),
                    FoundKind::Other(why) => why.clone(),
                    FoundKind::Closed(why) => format!("closed: {why}"),
                    FoundKind::Mount => "mount".to_owned(),
                };
                Some(format!("{}: {what}", String::from_utf8_lossy(&found.path)))
            }
            _ => None,
        })
        .collect();
    all.sort();
    all
}

fn read(
    peer: &mut Peer,
    id: u32,
    root: &Path,
    paths: &[&str],
    most: u64,
    most_in_all: u64,
) -> Vec<Result<String, String>> {
    let paths = paths.iter().map(|p| p.as_bytes().to_vec()).collect();
    let root = root.as_os_str().as_bytes().to_vec();
    let mut bytes = Vec::new();
    let mut all = Vec::new();
    for record in ask(peer, id, FileQuery::Read { root, paths, most, most_in_all }) {
        match record {
            FileRecord::Bytes(more) => bytes.extend(more),
            FileRecord::Read(read) => {
                let text = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
                all.push(read.map(|()| text));
            }
            _ => {}
        }
    }
    all
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::create_dir(at("dir.xml")).unwrap();
    fs::write(at("top.xml"), "top").unwrap();
    fs::write(at("top.txt"), "no").unwrap();
    fs::write(at("a/one.xml"), "one").unwrap();
    fs::write(at("a/b/two.xml"), "two").unwrap();
    symlink("a/b/two.xml", at("latest.xml")).unwrap();
    symlink(at("a/one.xml"), at("absolute.xml")).unwrap();
    symlink("a", at("linked")).unwrap();
    symlink(".", at("a/round")).unwrap();
    symlink("/etc/passwd", at("out.xml")).unwrap();
    symlink("/etc", at("etc")).unwrap();
    symlink("none", at("dangling.xml")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo.xml"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    dir
}

#[test]
fn what_is_wanted_is_found_through_links_that_stay_inside() {
    let (mut peer, dir) = (Peer::greeted(), tree());
    let top =
        ["absolute.xml: link", "fifo.xml: a FIFO", "latest.xml: link", "out.xml: a symbolic link that leads elsewhere"];
    let found = look(&mut peer, 1, dir.path(), "*.xml");
    let mut expected: Vec<&str> = [&top[..], &["top.xml: file"]].concat();
    expected.push("dangling.xml: a symbolic link that leads nowhere: No such file or directory (os error 2)");
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(look(&mut peer, 2, dir.path(), "linked/*.xml"), ["linked/one.xml: file"]);
    assert_eq!(look(&mut peer, 3, dir.path(), "a/*/*.xml"), ["a/b/two.xml: file", "a/round/one.xml: file"]);
    assert_eq!(look(&mut peer, 4, dir.path(), "t*p.x*"), ["top.xml: file"]);
    // Any depth, and round in no circle; what is behind a link out of the tree is told of.
    let found = look(&mut peer, 5, dir.path(), "**/*.xml");
    for wanted in ["top.xml: file", "etc: closed: a symbolic link that leads elsewhere"] {
        assert!(found.iter().any(|f| f == wanted), "{wanted}: {found:?}");
    }
    // By whichever of its names it is met first.
    for one in [["a/one.xml: file", "linked/one.xml: file"], ["a/b/two.xml: file", "linked/b/two.xml: file"]] {
        assert_eq!(found.iter().filter(|f| one.contains(&f.as_str())).count(), 1, "{one:?}: {found:?}");
    }
}

#[test]
fn files_are_read_within_limits_and_never_out_of_the_root() {
    let (mut peer, dir) = (Peer::greeted(), tree());
    fs::write(dir.path().join("long"), vec![b'x'; 100_000]).unwrap();
    let paths = ["latest.xml", "out.xml", "etc/passwd", "fifo.xml", "none", "a", "long", "top.xml"];
    let elsewhere = || Err("a symbolic link that leads elsewhere".to_owned());
    let got = read(&mut peer, 1, dir.path(), &paths, 1000, 2000);
    assert_eq!(got[0], Ok("two".into()));
    assert_eq!(got[1..3], [elsewhere(), elsewhere()]);
    assert!(got[3..7].iter().all(Result::is_err), "{got:?}");
    assert_eq!(got[7], Ok("top".into()));
    let got = read(&mut peer, 2, dir.path(), &["long", "top.xml"], 200_000, 100_001);
    assert!(got[0].as_ref().is_ok_and(|text| text.len() == 100_000) && got[1].is_err(), "{:?}", got[1]);
}

#[test]
fn a_root_that_is_not_there_is_no_empty_one() {
    let mut peer = Peer::greeted();
    let query = FileQuery::Look { root: b"/no/such".to_vec(), wanted: vec![vec![Part::Any]] };
    let records = ask(&mut peer, 1, query);
    assert!(
        matches!(&records[..], [FileRecord::End { cut: Some(why), .. }] if why.contains("/no/such")),
        "{records:?}"
    );
}

/// The first look knows nothing of the time before it.
#[test]
fn a_clock_that_nobody_set_is_trusted_from_the_second_look_on() {
    let mut peer = Peer::greeted();
    let mut set = |id| {
        let query = FileQuery::Look { root: b"/".to_vec(), wanted: vec![vec![Part::Name(b"none".to_vec())]] };
        let records = ask(&mut peer, id, query);
        matches!(records.last(), Some(FileRecord::End { clock_set: true, .. }))
    };
    assert_eq!([set(1), set(2), set(3)], [true, false, false]);
}
