//! Whole images: what engines and tools write is read, and comes out of the file system as it went in.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

mod hostile;

use proptest::prelude::*;
use serde_json::json;
use sha2::Sha256;
use tar::{Builder, EntryType, Header};

use crate::{
    digest::Digest,
    facts::Facts,
    fuzz,
    image::{Image, ImageError, Wanted, identity, split_tag},
    limits::Limits,
};

const ANY: Wanted<'static> = Wanted { tag: None, architecture: "amd64" };

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(<Sha256 as sha2::Digest>::digest(bytes).as_slice()))
}

/// What a test puts into a layer.
#[derive(Clone, Debug)]
enum Put {
    File(&'static str),
    Dir,
    Symlink(&'static str),
    Hardlink(&'static str),
    Char(u32, u32),
    Fifo,
}

fn add(tar: &mut Builder<Vec<u8>>, path: &str, put: &Put) {
    let mut header = Header::new_gnu();
    let (kind, mode, data) = match put {
        Put::File(data) => (EntryType::Regular, 0o644, *data),
        Put::Dir => (EntryType::Directory, 0o755, ""),
        Put::Symlink(_) => (EntryType::Symlink, 0o777, ""),
        Put::Hardlink(_) => (EntryType::Link, 0o644, ""),
        Put::Char(major, minor) => {
            header.set_device_major(*major).unwrap();
            header.set_device_minor(*minor).unwrap();
            (EntryType::Char, 0o600, "")
        }
        Put::Fifo => (EntryType::Fifo, 0o600, ""),
    };
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(1000);
    header.set_gid(50);
    header.set_mtime(1_700_000_000);
    header.set_size(data.len() as u64);
    // As it is: the library would not write a path that leads elsewhere.
    let name = header.as_old_mut();
    name.name[..path.len()].copy_from_slice(path.as_bytes());
    if let Put::Symlink(to) | Put::Hardlink(to) = put {
        name.linkname[..to.len()].copy_from_slice(to.as_bytes());
    }
    header.set_cksum();
    tar.append(&header, data.as_bytes()).unwrap();
}

fn layer(entries: &[(&str, Put)]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, put) in entries {
        add(&mut tar, path, put);
    }
    tar.into_inner().unwrap()
}

/// An OCI layout of these layers.
fn layout(dir: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let put = |bytes: &[u8]| {
        let name = digest(bytes);
        fs::write(dir.join("blobs/sha256").join(&name[7..]), bytes).unwrap();
        name
    };
    let diffs: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin", "A=b"], "User": "app", "WorkingDir": "/srv"},
        "rootfs": {"type": "layers", "diff_ids": diffs},
    });
    let config = put(config.to_string().as_bytes());
    let layers: Vec<_> =
        layers.iter().map(|layer| json!({"mediaType": "x", "digest": put(layer), "size": layer.len()})).collect();
    let manifest = json!({"config": {"mediaType": "x", "digest": config, "size": 1}, "layers": layers});
    let manifest = put(manifest.to_string().as_bytes());
    let tag = json!({"org.opencontainers.image.ref.name": "one"});
    let index = json!({"manifests": [{"mediaType": "x", "digest": manifest, "size": 1, "annotations": tag}]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

fn open(path: &Path) -> Result<Image, ImageError> {
    Image::open(path, ANY, tempfile::tempfile, Limits { keep_free: 0, ..Limits::default() })
}

fn write(path: &Path, into: &Path) -> Result<Facts, ImageError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(into).unwrap();
    let facts = open(path)?.write(&file)?;
    assert_eq!(Facts::read(&file).unwrap(), facts);
    Ok(facts)
}

/// The file system of these layers, read back: each path with what it is.
fn merged(layers: &[&[(&str, Put)]]) -> Result<BTreeMap<String, String>, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    layout(dir.path(), &layers);
    let image = dir.path().join("fs");
    write(dir.path(), &image)?;
    Ok(read_back(&image))
}

/// Reads a file system of ours as the kernel would, as far as what is tested.
fn read_back(image: &Path) -> BTreeMap<String, String> {
    let file = File::open(image).unwrap();
    let at = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    let superblock = at(1024, 128);
    assert_eq!(number(&superblock[..4]), 0xe0f5_e1e2);
    let inodes = number(&superblock[40..44]) * 4096;
    let mut found = BTreeMap::new();
    let mut todo = vec![(String::new(), number(&superblock[14..16]))];
    while let Some((path, nid)) = todo.pop() {
        let place = inodes + nid * 32;
        let inode = at(place, 64);
        let (format, count) = (number(&inode[..2]), number(&inode[2..4]));
        let (mode, size) = (number(&inode[4..6]), number(&inode[8..16]) as usize);
        let block = number(&inode[16..20]);
        let behind = place + 64 + if count > 0 { 12 + 4 * (count - 1) } else { 0 };
        let data = if format == 5 {
            at(behind, size)
        } else if matches!(mode >> 12, 4 | 8 | 10) {
            at(block * 4096, size)
        } else {
            Vec::new()
        };
        let links = number(&inode[44..48]);
        let what = match mode >> 12 {
            4 => {
                let mut names = Vec::new();
                for block in data.chunks(4096) {
                    let entries = number(&block[8..10]) as usize / 12;
                    for entry in 0..entries {
                        let one = &block[entry * 12..][..12];
                        let start = number(&one[8..10]) as usize;
                        let end = if entry + 1 < entries {
                            number(&block[(entry + 1) * 12..][8..10]) as usize
                        } else {
                            block.len()
                        };
                        let name = &block[start..end];
                        let name = &name[..name.iter().position(|&b| b == 0).unwrap_or(name.len())];
                        names.push(String::from_utf8(name.to_vec()).unwrap());
                        if !matches!(name, b"." | b"..") {
                            todo.push((format!("{path}/{}", names.last().unwrap()), number(&one[..8])));
                        }
                    }
                }
                assert!(names.is_sorted(), "{names:?}");
                assert_eq!(names.iter().filter(|name| matches!(name.as_str(), "." | "..")).count(), 2);
                "dir".to_owned()
            }
            8 => format!("file {}", String::from_utf8_lossy(&data)),
            10 => format!("link {}", String::from_utf8_lossy(&data)),
            2 => format!("char {block:x}"),
            1 => "fifo".to_owned(),
            other => format!("mode {other}"),
        };
        let names = if mode >> 12 == 8 && links > 1 { format!(" ({links} names)") } else { String::new() };
        found.insert(path, what + &names);
    }
    found
}

/// Those of a map, without the root.
fn shown(map: &BTreeMap<String, String>) -> Vec<String> {
    map.iter().filter(|(path, _)| !path.is_empty()).map(|(path, what)| format!("{path}: {what}")).collect()
}

#[test]
fn layers_are_put_over_one_another() {
    let lower = [
        ("etc/", Put::Dir),
        ("etc/kept", Put::File("1")),
        ("etc/gone", Put::File("2")),
        ("etc/changed", Put::File("3")),
        ("etc/was-dir/x", Put::File("4")),
        ("etc/was-file", Put::File("5")),
        ("opaque/old", Put::File("6")),
        ("opaque/sub/old", Put::File("7")),
        ("bin", Put::Symlink("usr/bin")),
        ("usr/bin/", Put::Dir),
        ("one", Put::File("8")),
        ("two", Put::Hardlink("one")),
    ];
    let upper = [
        ("etc/.wh.gone", Put::File("")),
        ("etc/.wh.never-there", Put::File("")),
        ("etc/changed", Put::File("3b")),
        ("etc/was-dir", Put::File("now a file")),
        ("etc/was-file/", Put::Dir),
        ("opaque/new", Put::File("9")),
        ("opaque/.wh..wh..opq", Put::File("")),
        ("opaque/sub/new", Put::File("10")),
        ("bin/tool", Put::File("11")),
        ("null", Put::Char(1, 300)),
        ("pipe", Put::Fifo),
        ("three", Put::Hardlink("/two")),
        ("one", Put::File("8b")),
    ];
    let found = merged(&[&lower, &upper]).unwrap();
    assert_eq!(
        shown(&found),
        [
            "/bin: link usr/bin",
            "/etc: dir",
            "/etc/changed: file 3b",
            "/etc/kept: file 1",
            "/etc/was-dir: file now a file",
            "/etc/was-file: dir",
            "/null: char 10012c",
            "/one: file 8b",
            "/opaque: dir",
            "/opaque/new: file 9",
            "/opaque/sub: dir",
            "/opaque/sub/new: file 10",
            "/pipe: fifo",
            "/three: file 8 (2 names)",
            "/two: file 8 (2 names)",
            "/usr: dir",
            "/usr/bin: dir",
            "/usr/bin/tool: file 11",
        ]
    );
}

#[test]
fn what_a_layer_says_is_gone_is_only_that_of_lower_ones() {
    let found = merged(&[
        &[("d/old", Put::File("1")), ("e/old", Put::File("2"))],
        // Whatever the order.
        &[("d/new", Put::File("3")), (".wh.d", Put::File("")), (".wh.e", Put::File("")), ("e/new", Put::File("4"))],
    ]);
    assert_eq!(shown(&found.unwrap()), ["/d: dir", "/d/new: file 3", "/e: dir", "/e/new: file 4"]);
}

#[test]
fn what_leads_out_of_the_tree_is_refused() {
    for (entries, says) in [
        (&[("../x", Put::File("1"))][..], "leads out"),
        (&[("a/../../x", Put::File("1"))], "leads out"),
        (&[("x", Put::Hardlink("../../etc/passwd"))], "leads out"),
        (&[("x", Put::Hardlink("etc/passwd"))], "not there"),
        (&[("d/", Put::Dir), ("x", Put::Hardlink("d"))], "is a directory"),
        (&[("f", Put::File("1")), ("f/x", Put::File("2"))], "no directory"),
        (&[("a", Put::Symlink("b")), ("b", Put::Symlink("a")), ("a/x", Put::File("2"))], "circle"),
        (&[("d/.wh...", Put::File(""))], "no name"),
        (&[("d/.wh.", Put::File(""))], "no name"),
        (&[("./.", Put::File("1"))], "root directory"),
        (&[("x", Put::Symlink(""))], "nowhere"),
    ] {
        let error = merged(&[entries]).unwrap_err().to_string();
        assert!(error.contains(says), "{entries:?}: {error}");
        assert!(error.contains("layer 1"), "{error}");
    }
    // A link that leads out of it leads nowhere but into it.
    let found =
        merged(&[&[("out", Put::Symlink("../../../etc")), ("out/x", Put::File("1")), ("/abs", Put::Symlink("/etc"))]]);
    assert_eq!(shown(&found.unwrap()), ["/abs: link /etc", "/etc: dir", "/etc/x: file 1", "/out: link ../../../etc"]);
}

#[test]
fn what_is_exported_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let lower = layer(&[
        ("bin/", Put::Dir),
        ("bin/a", Put::File("bytes")),
        ("b", Put::Hardlink("bin/a")),
        ("link", Put::Symlink("/bin//./a")),
        ("null", Put::Char(1, 300)),
        ("pipe", Put::Fifo),
        ("empty", Put::File("")),
    ]);
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.user.x", &b"value"[..])]).unwrap();
    let mut header = Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o4755);
    tar.append_data(&mut header, format!("bin/{}", "long".repeat(50)), &b"hello"[..]).unwrap();
    layout(dir.path(), &[lower, tar.into_inner().unwrap()]);
    write(dir.path(), &first).unwrap();
    let out = File::create(dir.path().join("out.tar")).unwrap();
    open(dir.path()).unwrap().export(&out, &tempfile::tempfile().unwrap()).unwrap();
    write(&dir.path().join("out.tar"), &second).unwrap();
    let (first_tree, second_tree) = (read_back(&first), read_back(&second));
    assert_eq!(first_tree, second_tree);
    assert_eq!(first_tree["/link"], "link /bin//./a");
    assert_eq!(first_tree["/null"], "char 10012c");
    let bytes = fs::read(&second).unwrap();
    assert!(bytes.windows(6).any(|window| window == b"xvalue"), "the attribute is there");
}

#[test]
fn a_long_directory_and_long_links_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Builder::new(Vec::new());
    let mut wanted = Vec::new();
    for number in 0..3000 {
        let path = format!("d/{number:0>60}");
        let mut header = Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o600);
        tar.append_data(&mut header, &path, &b"hello"[..]).unwrap();
        wanted.push(format!("/{path}: file hello"));
    }
    let long = "x/".repeat(2040);
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "long", &long).unwrap();
    layout(dir.path(), &[tar.into_inner().unwrap()]);
    let image = dir.path().join("fs");
    write(dir.path(), &image).unwrap();
    let found = read_back(&image);
    assert_eq!(found["/long"], format!("link {long}"));
    assert_eq!(shown(&found)[1..3001], wanted[..]);
    fsck(&image);
}

/// Has the tools of the file system look at one, where they are installed.
fn fsck(image: &Path) {
    // Without it the kernel of a real guest is what looks at one.
    if let Ok(out) = Command::new("fsck.erofs").arg(image).output() {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn every_packing_and_every_place_gives_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let one =
        layer(&[("bin/sh", Put::File("\x7fELF\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\0\0")), ("x", Put::File("1"))]);
    let root = dir.path();
    layout(&root.join("plain"), std::slice::from_ref(&one));
    let image = open(&root.join("plain")).unwrap();
    assert_eq!(image.config().env, ["PATH=/bin", "A=b"]);
    assert_eq!((image.config().user.as_deref(), image.config().working_dir.as_deref()), (Some("app"), Some("/srv")));
    assert_eq!(image.identity(), identity([digest(&one).as_str()]));
    let facts = write(&root.join("plain"), &root.join("fs")).unwrap();
    assert_eq!((facts.machine, facts.shell), (Some(62), true));
    let wanted = fs::read(root.join("fs")).unwrap();
    fsck(&root.join("fs"));
    let run = |command: &str| {
        assert!(Command::new("sh").arg("-c").arg(command).current_dir(root).status().unwrap().success());
    };
    fs::write(root.join("root.tar"), &one).unwrap();
    run(
        "tar -C plain -cf archive.tar . && gzip -k archive.tar && zstd -q archive.tar && xz -k root.tar && gzip -k root.tar",
    );
    // As docker writes it: the layer in a directory of its own, once as a link; some write a hard link.
    let config = fs::read_dir(root.join("plain/blobs/sha256")).unwrap().flatten().map(|e| fs::read(e.path()).unwrap());
    let config = config.into_iter().find(|bytes| bytes.starts_with(b"{\"architecture")).unwrap();
    let hex = digest(&config)[7..].to_owned();
    for (file, layer) in [("docker.tar", "b/layer.tar"), ("linked.tar", "c/layer.tar")] {
        let saved = json!([{"Config": format!("{hex}.json"), "RepoTags": ["box:1"], "Layers": [layer]}]);
        let mut tar = Builder::new(Vec::new());
        for (name, bytes) in [
            ("a/layer.tar", &one[..]),
            (&format!("{hex}.json"), &config),
            ("manifest.json", saved.to_string().as_bytes()),
        ] {
            let mut header = Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        add(&mut tar, "b/layer.tar", &Put::Symlink("../a/layer.tar"));
        add(&mut tar, "c/layer.tar", &Put::Hardlink("a/layer.tar"));
        fs::write(root.join(file), tar.into_inner().unwrap()).unwrap();
    }
    for name in [
        "archive.tar",
        "archive.tar.gz",
        "archive.tar.zst",
        "root.tar",
        "root.tar.xz",
        "root.tar.gz",
        "docker.tar",
        "linked.tar",
    ] {
        write(&root.join(name), &root.join("other")).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(fs::read(root.join("other")).unwrap() == wanted, "{name}");
        assert_eq!(open(&root.join(name)).unwrap().identity().is_none(), name.starts_with("root"), "{name}");
    }
    for name in ["archive.tar", "archive.tar.gz", "root.tar", "root.tar.xz", "docker.tar"] {
        let whole = fs::read(root.join(name)).unwrap();
        for cut in [whole.len() / 3, whole.len() / 2] {
            fs::write(root.join("cut"), &whole[..cut]).unwrap();
            assert!(write(&root.join("cut"), &root.join("other")).is_err(), "{name} cut to {cut}");
        }
    }
}

#[test]
fn what_is_not_what_its_name_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = layer(&[("bin/sh", Put::File("1"))]);
    layout(dir.path(), std::slice::from_ref(&one));
    let blob = dir.path().join("blobs/sha256").join(&digest(&one)[7..]);
    let mut bytes = one.clone();
    bytes[512] = b'2';
    fs::write(&blob, &bytes).unwrap();
    let error = write(dir.path(), &dir.path().join("fs")).unwrap_err();
    assert!(
        matches!(&error, ImageError::Digest { wanted, .. } if *wanted == Digest::parse(&digest(&one)).unwrap()),
        "{error}"
    );
    // Bytes behind what was packed, too.
    fs::write(&blob, [&one[..], b"more"].concat()).unwrap();
    assert!(matches!(write(dir.path(), &dir.path().join("fs")), Err(ImageError::Digest { .. })));
    fs::remove_file(&blob).unwrap();
    assert!(matches!(write(dir.path(), &dir.path().join("fs")), Err(ImageError::Missing { .. })));
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(
        matches!(write(dir.path(), &dir.path().join("fs")), Err(ImageError::Missing { .. })),
        "nobody waits for a FIFO"
    );
}

#[test]
fn every_bound_holds() {
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("bomb.tar");
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(8 << 20);
    tar.append_data(&mut header, "zeros", std::io::repeat(0).take(8 << 20)).unwrap();
    for number in 0..300 {
        let mut header = Header::new_gnu();
        header.set_size(0);
        tar.append_data(&mut header, format!("{}f{number}", "d/".repeat(40)), &b""[..]).unwrap();
    }
    fs::write(&bomb, tar.into_inner().unwrap()).unwrap();
    let with = |limits: Limits| {
        let file = tempfile::tempfile().unwrap();
        let image = Image::open(&bomb, ANY, tempfile::tempfile, limits).unwrap();
        image.write(&file).map_err(|error| error.to_string())
    };
    let all = || Limits { keep_free: 0, ..Limits::default() };
    assert!(with(all()).is_ok());
    for (limits, says) in [
        (Limits { bytes: 4 << 20, ..all() }, "unpacked"),
        (Limits { entries: 200, ..all() }, "more than 200 files"),
        (Limits { depth: 20, ..all() }, "20 deep"),
        (Limits { metadata: 4000, ..all() }, "names"),
        (Limits { steps: 1000, ..all() }, "too many links"),
        (Limits { keep_free: u64::MAX, ..all() }, "left free"),
    ] {
        let error = with(limits).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn zeros_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.tar");
    let mut tar = Builder::new(File::create(&path).unwrap());
    let mut header = Header::new_gnu();
    header.set_size(64 << 20);
    tar.append_data(&mut header, "zeros", std::io::repeat(0).take(64 << 20)).unwrap();
    tar.into_inner().unwrap().flush().unwrap();
    write(&path, &dir.path().join("fs")).unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(dir.path().join("fs")).unwrap());
    assert!(blocks < 200, "{blocks}");
}

#[test]
fn one_of_several_is_chosen_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), &[layer(&[("x", Put::File("1"))])]);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
    let mut second = index["manifests"][0].clone();
    second["annotations"] = json!({"org.opencontainers.image.ref.name": "two"});
    second["digest"] = json!(digest(b"another"));
    let index = json!({"manifests": [index["manifests"][0], second]});
    fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
    let named = |tag| Image::open(dir.path(), Wanted { tag, ..ANY }, tempfile::tempfile, Limits::default());
    assert!(named(Some("one")).is_ok());
    let error = named(None).unwrap_err().to_string();
    assert!(error.contains("one") && error.contains("two") && error.contains("PATH:TAG"), "{error}");
    assert!(named(Some("three")).unwrap_err().to_string().contains("\"three\""));
    let text = format!("{}:one", dir.path().display());
    assert_eq!(split_tag(Path::new(&text)), (dir.path().to_owned(), Some("one".to_owned())));
    assert_eq!(split_tag(dir.path()), (dir.path().to_owned(), None));
    let text = format!("{}:host.example:5000/one:x", dir.path().display());
    assert_eq!(split_tag(Path::new(&text)), (dir.path().to_owned(), Some("host.example:5000/one:x".to_owned())));
}

#[test]
fn one_of_several_in_an_archive_is_chosen_by_its_whole_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("two.tar");
    let layer = layer(&[("x", Put::File("1"))]);
    let rootfs = json!({"type": "layers", "diff_ids": [digest(&layer)]});
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).to_string();
    let one = |name: &str, tags: &[&str]| json!({"Config": name, "RepoTags": tags, "Layers": ["l.tar"]});
    let all = json!([one("a.json", &["host/a:x", "host/c:y"]), one("b.json", &["host/b:x"])]).to_string();
    let files = [("l.tar", &layer[..]), ("a.json", config.as_bytes()), ("b.json", config.as_bytes())];
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files.into_iter().chain([("manifest.json", all.as_bytes())]) {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    let named = |tag| Image::open(&path, Wanted { tag, ..ANY }, tempfile::tempfile, Limits::default());
    for tag in ["host/a:x", "host/b:x", "host/c:y", "y"] {
        assert!(named(Some(tag)).is_ok(), "{tag}");
    }
    for tag in [None, Some("x"), Some("host/d:x")] {
        let error = named(tag).unwrap_err().to_string();
        assert!(["host/a:x", "host/b:x", "host/c:y", "PATH:NAME"].iter().all(|w| error.contains(w)), "{error}");
    }
}

#[test]
fn an_image_of_another_system_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.tar");
    let config = json!({"architecture": "amd64", "os": "windows", "rootfs": {"diff_ids": []}}).to_string();
    let all = json!([{"Config": "a.json", "RepoTags": ["a:x"], "Layers": []}]).to_string();
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in [("a.json", &config), ("manifest.json", &all)] {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
    }
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("for windows"), "{error}");
}

#[test]
fn a_tag_where_there_are_none_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    let path = dir.path().join("root.tar");
    fs::write(&path, layer(&[("x", Put::File("1"))])).unwrap();
    for path in [dir.path(), &path] {
        let open = |tag| Image::open(path, Wanted { tag, ..ANY }, tempfile::tempfile, Limits::default());
        let error = open(Some("v1")).unwrap_err().to_string();
        assert!(error.contains("leave `:v1` out"), "{error}");
        assert!(open(None).is_ok());
    }
}

#[test]
fn what_is_no_image_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    fs::rename(dir.path().join("bin"), dir.path().join("tests")).unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("no OCI layout, and no root either"));
    assert!(open(&dir.path().join("gone")).unwrap_err().to_string().contains("No such file"));
    assert!(open(Path::new("/dev/null")).unwrap_err().to_string().contains("neither"));
    fs::write(dir.path().join("text"), "no archive\n".repeat(100)).unwrap();
    assert!(open(&dir.path().join("text")).unwrap_err().to_string().contains("no header"));
}

/// A directory with files of all kinds.
fn root_directory(dir: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    for name in ["bin", "etc/deep/er", "empty"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::write(dir.join("bin/sh"), "program").unwrap();
    fs::set_permissions(dir.join("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(dir.join("bin/sh"), dir.join("bin/ash")).unwrap();
    fs::write(dir.join("etc/deep/er/.wh.kept"), "a name as any other").unwrap();
    fs::write(dir.join("etc/line\nbreak"), "").unwrap();
    symlink("/etc", dir.join("out")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
}

#[test]
fn a_directory_is_read_as_its_archive_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    root_directory(&root);
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    // Not every file system of a temporary directory takes one.
    let told =
        rustix::fs::setxattr(root.join("etc"), "user.told", b"of the directory", rustix::fs::XattrFlags::empty());
    let facts = write(&root, &dir.path().join("of-dir")).unwrap();
    assert_eq!(facts.passed_over, ["socket (a socket)"]);
    assert!(facts.shell);
    let bytes = fs::read(dir.path().join("of-dir")).unwrap();
    let is_kept = bytes.windows(20).any(|window| window == b"toldof the directory");
    assert_eq!(is_kept, told.is_ok(), "{told:?}");
    fs::remove_file(root.join("socket")).unwrap();
    let tar = dir.path().join("root.tar");
    assert!(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status().unwrap().success());
    write(&tar, &dir.path().join("of-tar")).unwrap();
    let found = read_back(&dir.path().join("of-dir"));
    assert_eq!(found, read_back(&dir.path().join("of-tar")));
    assert_eq!(found["/bin/ash"], "file program (2 names)");
    assert_eq!(found["/etc/deep/er/.wh.kept"], "file a name as any other");
    assert_eq!((found["/out"].as_str(), found["/loop"].as_str()), ("link /etc", "link loop"));
    fsck(&dir.path().join("of-dir"));
    // And what an engine imports of it.
    let out = File::create(dir.path().join("out.tar")).unwrap();
    open(&root).unwrap().export(&out, &tempfile::tempfile().unwrap()).unwrap();
    write(&dir.path().join("out.tar"), &dir.path().join("again")).unwrap();
    assert_eq!(read_back(&dir.path().join("again")), found);
}

#[test]
fn a_change_in_a_directory_is_noticed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    root_directory(dir.path());
    let stamp = || open(dir.path()).unwrap().stamp().unwrap().to_owned();
    let mut before = stamp();
    assert_eq!(before, stamp());
    let deep = dir.path().join("etc/deep/er/.wh.kept");
    let changes: [&dyn Fn(); 5] = [
        // As many bytes, at the same time as far as anybody says.
        &|| {
            let time = deep.metadata().unwrap().modified().unwrap();
            fs::write(&deep, "A name as any other").unwrap();
            File::options().write(true).open(&deep).unwrap().set_modified(time).unwrap();
        },
        &|| fs::set_permissions(&deep, fs::Permissions::from_mode(0o600)).unwrap(),
        &|| fs::rename(&deep, deep.with_file_name("other")).unwrap(),
        &|| fs::create_dir(dir.path().join("empty/new")).unwrap(),
        &|| fs::remove_dir(dir.path().join("empty/new")).unwrap(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        change();
        let after = stamp();
        assert_ne!(before, after, "change {number}");
        before = after;
    }
    // One behind the back of who reads it.
    let image = open(dir.path()).unwrap();
    fs::write(dir.path().join("bin/sh"), "another program").unwrap();
    let error = image.write(&tempfile::tempfile().unwrap()).unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
}

#[test]
fn a_directory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    root_directory(dir.path());
    File::create(dir.path().join("etc/large")).unwrap().set_len(1 << 40).unwrap();
    let limited = |limits: Limits| {
        let image = Image::open(dir.path(), ANY, tempfile::tempfile, Limits { keep_free: 0, ..limits })?;
        image.write(&tempfile::tempfile().unwrap())
    };
    let plain = Limits::default;
    for (limits, says) in [
        (plain(), "more than 64 GiB"),
        (Limits { depth: 2, ..plain() }, "more than 2 deep"),
        (Limits { entries: 5, ..plain() }, "more than 5 files"),
        (Limits { metadata: 300, ..plain() }, "names, links"),
    ] {
        let error = limited(limits).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn attributes_are_kept_but_those_of_an_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.tar");
    let mut tar = Builder::new(Vec::new());
    let value: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let attributes: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", value),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.odd.name", b"1"),
    ];
    tar.append_pax_extensions(attributes).unwrap();
    let mut header = Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, "ping", &b""[..]).unwrap();
    fs::write(&path, tar.into_inner().unwrap()).unwrap();
    let facts = write(&path, &dir.path().join("fs")).unwrap();
    assert_eq!(facts.left_out, ["odd.name", "trusted.overlay.redirect"]);
    let bytes = fs::read(dir.path().join("fs")).unwrap();
    let has = |wanted: &[u8]| bytes[..bytes.len() - 4096].windows(wanted.len()).any(|window| window == wanted);
    assert!(has(b"capability\x01\0\0\x02") && !has(b"redirect"));
    fsck(&dir.path().join("fs"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        fuzz::layers(&bytes);
    }

    #[test]
    fn any_change_of_an_archive_is_read_or_refused(at in 0usize..6000, byte: u8, cut in 0usize..7000) {
        let mut bytes = layer(&[
            ("a/b", Put::File("1")), ("a/c", Put::Symlink("b")), ("d", Put::Hardlink("a/b")), (".wh.a", Put::File("")), ("e/", Put::Dir),
        ]);
        if let Some(there) = bytes.get_mut(at) {
            *there = byte;
        }
        bytes.truncate(cut);
        bytes.splice(0..0, 3000_u16.to_le_bytes());
        fuzz::layers(&bytes);
    }
}

/// Entries of all kinds at few paths, so that they meet.
fn puts() -> impl Strategy<Value = Vec<(&'static str, Put)>> {
    let paths = [
        "a",
        "a/b",
        "a/b/c",
        "b",
        "b/a",
        "c",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        "b/.wh.a",
        ".wh..wh..opq",
        "../a",
        "a/./b",
    ];
    let put = prop_oneof![
        Just(Put::File("x")),
        Just(Put::File("")),
        Just(Put::Dir),
        Just(Put::Symlink("a")),
        Just(Put::Symlink("/b")),
        Just(Put::Symlink("..")),
        Just(Put::Hardlink("a")),
        Just(Put::Hardlink("b/a")),
        Just(Put::Fifo),
        Just(Put::Char(0, 0))
    ];
    proptest::collection::vec((proptest::sample::select(paths.to_vec()), put), 0..12)
}

proptest! {
    #[test]
    fn layers_of_all_kinds_give_a_file_system_or_an_error(first in puts(), second in puts()) {
        if let Ok(found) = merged(&[&first, &second]) {
            // Every file that has several names has them.
            for (path, what) in found.iter().filter(|(_, what)| what.ends_with(" names)")) {
                let names = found.values().filter(|other| *other == what).count();
                prop_assert!(names >= 2, "{path}: {what}");
            }
        }
    }
}
