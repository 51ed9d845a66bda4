//! Images that somebody made to do harm, or to be odd: each is read as an engine would, or refused with a reason, and in no time.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{ANY, Put, add, digest, fsck, layer, layout, merged, open, read_back, shown, write};
use crate::{
    image::{Image, ImageError, Wanted},
    limits::Limits,
};

/// An archive with one file, of which the pax header says this.
fn told(words: &[(&str, &[u8])], name: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions(words.iter().copied()).unwrap();
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, data).unwrap();
    tar.into_inner().unwrap()
}

/// What comes of an archive of a root.
fn of_root(bytes: &[u8]) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let (tar, image) = (dir.path().join("root.tar"), dir.path().join("fs"));
    fs::write(&tar, bytes).unwrap();
    write(&tar, &image).map_err(|error| error.to_string())?;
    fsck(&image);
    Ok(shown(&read_back(&image)))
}

#[test]
fn odd_names_are_kept_or_refused() {
    let long = "n".repeat(255);
    let name = |name: &[u8]| of_root(&told(&[("path", name)], "x", b"1"));
    assert_eq!(name(b"line\nbreak \x1b[31m").unwrap(), ["/line\nbreak \x1b[31m: file 1"]);
    // A directory by its name has no data, whatever follows.
    assert_eq!(name(b"d//").unwrap(), ["/d: dir"]);
    // So may the value of an attribute have a newline: of a capability or an ACL that is common.
    let acl: &[u8] = b"\x02\0\0\0\x01\0\x06\0\x0a\0\0\0=\n12 a=b\n";
    let bytes = told(&[("SCHILY.xattr.user.acl", acl), ("path", b"x")], "y", b"1");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("root.tar"), &bytes).unwrap();
    write(&dir.path().join("root.tar"), &dir.path().join("fs")).unwrap();
    assert!(fs::read(dir.path().join("fs")).unwrap().windows(acl.len()).any(|window| window == acl));
    assert_eq!(name(long.as_bytes()).unwrap(), [format!("/{long}: file 1")]);
    for (path, says) in [
        (&b"with\0nul"[..], "NUL"),
        (format!("{long}n").as_bytes(), "longer than 255"),
        (format!("{}x", "d/".repeat(2500)).as_bytes(), "longer than 4095"),
        (b"a/../../b", "leads out"),
        (b"", "root directory"),
    ] {
        let error = name(path).unwrap_err();
        assert!(error.contains(says), "{error}");
        // The message itself is bounded.
        assert!(error.len() < 2000, "{}", error.len());
    }
}

#[test]
fn numbers_that_are_too_large_are_refused() {
    for (word, value) in [
        ("size", &b"9223372036854775808"[..]),
        ("size", b"18446744073709551615"),
        ("size", b"99999999999999999999999"),
        ("size", b"-1"),
        ("uid", b"4294967296"),
        ("gid", b"-5"),
        ("mtime", b"1e400"),
    ] {
        assert!(of_root(&told(&[(word, value)], "x", b"1")).is_err(), "{word}");
    }
    // In the header itself, in base 256.
    let mut header = Header::new_gnu();
    header.as_old_mut().name[0] = b'x';
    header.as_old_mut().size = *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    header.set_mode(0o644);
    header.set_cksum();
    let error = of_root(&[header.as_bytes().as_slice(), &[0; 2048]].concat()).unwrap_err();
    assert!(error.contains("cut short") || error.contains("more than"), "{error}");
}

#[test]
fn links_through_links_stay_within() {
    let found = merged(&[&[
        ("a", Put::Symlink("b")),
        ("b", Put::Symlink("c/../c")),
        ("c", Put::Symlink("/d//./")),
        ("d/", Put::Dir),
        ("a/x", Put::File("1")),
        ("up", Put::Symlink("../../..")),
        ("up/etc/y", Put::File("2")),
        ("z", Put::Hardlink("a/x")),
    ]]);
    let found = shown(&found.unwrap());
    assert!(
        found.contains(&"/d/x: file 1 (2 names)".to_owned()) && found.contains(&"/etc/y: file 2".to_owned()),
        "{found:?}"
    );
    // One of a later entry, as of one that never comes, is none.
    for entries in [
        &[("x", Put::Hardlink("later")), ("later", Put::File("1"))][..],
        &[("x", Put::Hardlink("x"))],
        &[("s", Put::Symlink("s")), ("x", Put::Hardlink("s/y"))],
    ] {
        assert!(merged(&[entries]).is_err(), "{entries:?}");
    }
    // Many links that lead through one another are an error in no time.
    let begun = Instant::now();
    let names: Vec<(String, String)> = (0..60).map(|n| (format!("l{n}"), format!("l{}/l{}", n + 1, n + 1))).collect();
    let mut tar = Builder::new(Vec::new());
    for (name, to) in &names {
        let to: &'static str = Box::leak(to.clone().into_boxed_str());
        add(&mut tar, name, &Put::Symlink(to));
    }
    add(&mut tar, "l0/x", &Put::File("1"));
    assert!(of_root(&tar.into_inner().unwrap()).is_err());
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn whiteouts_reach_no_further_than_their_directory() {
    let lower = [("d/e/f", Put::File("1")), ("g", Put::File("2")), ("link", Put::Symlink("d"))];
    // Of a parent, through a link, of the root, and of one's own layer.
    let found = merged(&[&lower, &[("d/e/.wh.f", Put::File("")), ("d/.wh.e", Put::File(""))]]).unwrap();
    assert_eq!(shown(&found), ["/d: dir", "/g: file 2", "/link: link d"]);
    let found = merged(&[&lower, &[("link/.wh.e", Put::File(""))]]).unwrap();
    assert!(!shown(&found).contains(&"/d/e/f: file 1".to_owned()), "an engine goes through the link, too");
    let found = merged(&[&lower, &[(".wh..wh..opq", Put::File("")), ("new", Put::File("3"))]]).unwrap();
    assert_eq!(shown(&found), ["/new: file 3"]);
    for name in [".wh...", ".wh..", "d/.wh...", ".wh."] {
        let made = merged(&[&lower, &[(name, Put::File(""))]]);
        assert!(made.is_err() || shown(&made.unwrap()).contains(&"/g: file 2".to_owned()), "{name}");
    }
    // One that is a directory or a link is one, too, and leaves nothing of its name.
    for put in [Put::Dir, Put::Symlink("g"), Put::Fifo, Put::Hardlink("g")] {
        let found = shown(&merged(&[&lower, &[(".wh.g", put)]]).unwrap());
        assert!(found.iter().all(|line| !line.starts_with("/g") && !line.contains(".wh.")), "{found:?}");
    }
}

/// Zeros, packed by this program.
fn packed(program: &[&str], mebibytes: usize) -> Vec<u8> {
    let child = Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("these tests need {}: {error}", program[0]));
    let mut to = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        for _ in 0..mebibytes {
            to.write_all(&vec![0; 1 << 20]).unwrap();
        }
    });
    let bytes = child.wait_with_output().unwrap().stdout;
    writing.join().unwrap();
    bytes
}

#[test]
fn bombs_end_at_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    // One file that is large, in an archive that is small.
    let mut header = Header::new_gnu();
    header.as_old_mut().name[0] = b'x';
    header.set_size(1 << 40);
    header.set_cksum();
    for program in [&["gzip", "-1"][..], &["zstd", "-q"], &["xz", "-0"]] {
        let zeros = packed(program, 64);
        assert!(zeros.len() < 1 << 20);
        let mut bomb = {
            let mut child = Command::new(program[0]);
            let mut child = child.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(header.as_bytes()).unwrap();
            child.wait_with_output().unwrap().stdout
        };
        bomb.extend(&zeros);
        let limits = || Limits { bytes: 16 << 20, keep_free: 0, ..Limits::default() };
        let begun = Instant::now();
        // As the archive of a root, and as a layer.
        let path = dir.path().join("bomb");
        fs::write(&path, &bomb).unwrap();
        let error = Image::open(&path, ANY, tempfile::tempfile, limits()).unwrap_err().to_string();
        assert!(error.contains("when they are unpacked"), "{program:?}: {error}");
        let layered = dir.path().join(program[0]);
        layout(&layered, &[bomb]);
        let image = Image::open(&layered, ANY, tempfile::tempfile, limits()).unwrap();
        let error = image.write(&tempfile::tempfile().unwrap()).unwrap_err().to_string();
        assert!(error.contains("when they are unpacked") || error.contains("digest"), "{program:?}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{program:?}");
    }
    // Holes are bytes.
    let words = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"1099511627776"),
        ("GNU.sparse.map", b"0,1"),
    ];
    let error = of_root(&told(&words, "x", b"1")).unwrap_err();
    assert!(error.contains("more than 64 GiB"), "{error}");
}

#[test]
fn a_sparse_map_that_lies_is_refused() {
    let map = |map: &[u8], size: &[u8]| {
        let words = [
            ("GNU.sparse.major", &b"0"[..]),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", size),
            ("GNU.sparse.map", map),
        ];
        of_root(&told(&words, "x", b"data"))
    };
    assert_eq!(map(b"1,4", b"6").unwrap(), ["/x: file \0data\0"]);
    for (said, size) in [
        (&b"0,4"[..], &b"3"[..]),
        (b"0,3", b"9"),
        (b"0,5", b"9"),
        (b"4,2,0,2", b"9"),
        (b"0,2,1,2", b"9"),
        (b"0,4,7", b"9"),
        (b"", b"9"),
        (b"0,x", b"9"),
        (b"18446744073709551615,4", b"9"),
    ] {
        assert!(map(said, size).is_err(), "{}", String::from_utf8_lossy(said));
    }
    for words in [&[("GNU.sparse.major", &b"2"[..]), ("GNU.sparse.minor", b"0")][..], &[("GNU.sparse.what", b"1")]] {
        assert!(of_root(&told(words, "x", b"data")).is_err());
    }
    let words = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9"),
        ("GNU.sparse.name", b"real"),
    ];
    let data = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        data.extend(b"data");
        of_root(&told(&words, "x", &data))
    };
    assert_eq!(data("1\n2\n4\n").unwrap(), ["/real: file \0\0data\0\0\0"]);
    for map in [
        "",
        "1\n2\n",
        "2\n2\n4\n",
        "99999999999999999999\n",
        "18446744073709551615\n",
        "-1\n",
        "1\n2\n5\n",
        "1\n8\n4\n",
    ] {
        assert!(data(map).is_err(), "{map}");
    }
}

#[test]
fn many_entries_are_read_in_time() {
    // A million headers are 512 MB, of which the archive has one and a half percent.
    let mut tar = Builder::new(Vec::new());
    for number in 0..15_000 {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("d{}/f{number}", number % 100), &b""[..]).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let begun = Instant::now();
    assert_eq!(of_root(&bytes).unwrap().len(), 15_100);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A layout in which the first index names these images, by the words that a platform has.
fn platforms(dir: &Path, platforms: &[(&str, &str)]) {
    layout(dir, &[layer(&[("bin/sh", Put::File("1"))])]);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let one = &index["manifests"][0];
    let all: Vec<_> = platforms
        .iter()
        .enumerate()
        .map(|(number, (os, architecture))| {
            let mut one = one.clone();
            one["annotations"] = json!({});
            if number > 0 {
                one["digest"] = json!(digest(format!("another {number}").as_bytes()));
            }
            one["platform"] = json!({"os": os, "architecture": architecture});
            one
        })
        .collect();
    fs::write(dir.join("index.json"), json!({"manifests": all}).to_string()).unwrap();
}

#[test]
fn of_several_processors_the_hosts_is_taken() {
    let try_all = |all: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        platforms(dir.path(), all);
        open(dir.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    try_all(&[("linux", "amd64"), ("linux", "arm64"), ("windows", "amd64"), ("unknown", "unknown")]).unwrap();
    // That of one other processor is a machine of that kind.
    try_all(&[("linux", "arm64")]).unwrap();
    let error = try_all(&[("linux", "arm64"), ("linux", "s390x")]).unwrap_err();
    assert!(error.contains("for arm64") && error.contains("none of them is for amd64"), "{error}");
    let error = try_all(&[("windows", "amd64")]).unwrap_err();
    assert!(error.contains("no image of a kind that is known"), "{error}");
}

/// What is done to a manifest and a configuration.
type Change<'a> = dyn Fn(&mut serde_json::Value, &mut serde_json::Value) + 'a;

#[test]
fn odd_descriptions_are_refused() {
    let rewrite = |change: &Change<'_>| {
        let dir = tempfile::tempdir().unwrap();
        layout(dir.path(), &[layer(&[("bin/sh", Put::File("1"))])]);
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(dir.path().join(name)).unwrap()).unwrap()
        };
        let blob = |digest: &serde_json::Value| format!("blobs/sha256/{}", &digest.as_str().unwrap()[7..]);
        let put = |value: &serde_json::Value| {
            let bytes = value.to_string();
            let name = digest(bytes.as_bytes());
            fs::write(dir.path().join("blobs/sha256").join(&name[7..]), bytes).unwrap();
            json!(name)
        };
        let mut index = read("index.json");
        let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
        let mut config = read(&blob(&manifest["config"]["digest"]));
        change(&mut manifest, &mut config);
        if manifest["config"].is_object() {
            manifest["config"]["digest"] = put(&config);
        }
        index["manifests"][0]["digest"] = put(&manifest);
        fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        write(dir.path(), &dir.path().join("fs")).map(|_| ())
    };
    // A media type says nothing that the bytes do not.
    for kind in [
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "",
        "x",
    ] {
        rewrite(&|manifest, _| manifest["layers"][0]["mediaType"] = json!(kind)).unwrap();
    }
    let refused: [(&str, &Change<'_>); 7] = [
        ("encrypted", &|manifest, _| {
            manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        }),
        ("digests of layers", &|_, config| config["rootfs"]["diff_ids"] = json!([])),
        ("no digest of a kind", &|_, config| config["rootfs"]["diff_ids"] = json!(["md5:1"])),
        ("no digest of a kind", &|manifest, _| manifest["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")),
        ("cannot be read", &|_, config| config["rootfs"] = json!(null)),
        ("is not in it", &|manifest, _| manifest["layers"][0]["digest"] = json!(digest(b"elsewhere"))),
        ("no image of a kind", &|manifest, _| manifest["config"] = json!(null)),
    ];
    for (says, change) in refused {
        let error = rewrite(change).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    // A list that names itself comes to an end.
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &[layer(&[])]);
    fs::write(dir.path().join("index.json"), format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))).unwrap();
    assert!(matches!(open(dir.path()), Err(ImageError::Description { .. })));
}

#[test]
fn roots_of_odd_shapes_are_read() {
    let found = merged(&[&[
        ("usr/lib/", Put::Dir),
        ("lib", Put::Symlink("usr/lib")),
        ("lib/x", Put::File("1")),
        ("etc", Put::Symlink("usr/etc")),
        ("etc/passwd", Put::File("root:x:0:0::/:/bin/sh")),
        ("mnt", Put::Symlink("/var/mnt")),
        ("proc", Put::Symlink("nowhere/at/all")),
        ("dev", Put::File("no directory")),
        ("tmp", Put::Symlink("tmp")),
    ]])
    .unwrap();
    assert_eq!(found["/usr/lib/x"], "file 1");
    assert_eq!(found["/usr/etc/passwd"], "file root:x:0:0::/:/bin/sh");
    assert_eq!(found["/tmp"], "link tmp");
    let none = Wanted { tag: Some("none"), ..ANY };
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &[layer(&[])]);
    assert!(Image::open(dir.path(), none, tempfile::tempfile, Limits::default()).is_err());
    // An image without any file is a root without any.
    assert!(merged(&[&[]]).unwrap().len() == 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is in it, what is read of a directory is what is there.
    #[test]
    fn directories_of_all_kinds_are_read(names in proptest::collection::vec("[a-z.]{1,8}(/[a-z .]{1,8}){0,3}", 1..12), kinds in proptest::collection::vec(0u8..4, 12)) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        for (name, kind) in names.iter().zip(kinds) {
            if name.split('/').any(|part| matches!(part, "." | "..")) {
                continue;
            }
            let path = root.join(name);
            // What is in the way of another stays.
            if path.parent().is_none_or(|above| fs::create_dir_all(above).is_err()) { continue; }
            let _ = match kind {
                0 => fs::write(&path, name),
                1 => fs::create_dir_all(&path),
                2 => std::os::unix::fs::symlink("../..", &path),
                _ => fs::hard_link(root.join(&names[0]), &path),
            };
        }
        let (tar, of_dir, of_tar) = (dir.path().join("tar"), dir.path().join("1"), dir.path().join("2"));
        prop_assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
        write(&root, &of_dir).unwrap();
        write(&tar, &of_tar).unwrap();
        prop_assert_eq!(read_back(&of_dir), read_back(&of_tar));
    }
}
