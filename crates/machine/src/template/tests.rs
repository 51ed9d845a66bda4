use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::mpsc,
    time::{Duration, SystemTime},
};

use super::{
    Frozen, KeyMaker, Template, TemplateKey, TemplateStore, sparse,
    store::{Claim, Facts, Making},
};

struct Lab {
    dir: tempfile::TempDir,
    store: TemplateStore,
}

fn lab() -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let store = TemplateStore::new(dir.path().join("cache/templates"), u64::MAX);
    Lab { dir, store }
}

fn key(name: &str) -> TemplateKey {
    let mut maker = KeyMaker::new();
    maker.add("test", name.as_bytes());
    maker.finish()
}

fn claim(store: &TemplateStore, key: &TemplateKey) -> Making {
    match store.claim(key, false).unwrap() {
        Claim::Ours(making) => making,
        other => panic!("{other:?}"),
    }
}

fn finish(making: Making, content: &[u8]) -> Template {
    finish_on(making, content, None)
}

fn finish_on(making: Making, content: &[u8], base: Option<TemplateKey>) -> Template {
    let ram = making.create("ram").unwrap();
    let source = tempfile::tempfile().unwrap();
    source.set_len(1 << 20).unwrap();
    source.write_all_at(content, 8192).unwrap();
    let copied = sparse::copy(&source, &ram, 1 << 20).unwrap();
    making.create("state").unwrap().write_all(b"the devices").unwrap();
    making.create_volume(0).unwrap().write_all(b"a disk").unwrap();
    making.create_volume(1).unwrap().write_all(b"another").unwrap();
    let facts =
        Facts { guest: "a guest".into(), base, qemu: "1.2.3".into(), boot_millis: 1, session: Frozen::AgentOnVirtio };
    making.publish(facts, copied.hash).unwrap()
}

fn make(store: &TemplateStore, name: &str) -> PathBuf {
    let key = key(name);
    finish(claim(store, &key), b"its memory");
    store.dir().join(key.as_str())
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn names(store: &TemplateStore) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(store.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_made_is_found() {
    let lab = lab();
    assert!(lab.store.find(&key("a")).unwrap().is_none());
    make(&lab.store, "a");
    let template = lab.store.find(&key("a")).unwrap().unwrap();
    assert!(template.is_unchanged());
    assert_eq!(text(template.state().unwrap()), "the devices");
    assert_eq!(text(template.state().unwrap()), "the devices", "each reader begins at the beginning");
    assert_eq!(template.volumes().unwrap().into_iter().map(text).collect::<Vec<_>>(), ["a disk", "another"]);
    let mut memory = [0; 10];
    template.ram().unwrap().read_exact_at(&mut memory, 8192).unwrap();
    assert_eq!(&memory, b"its memory");
    assert!(lab.store.find(&key("b")).unwrap().is_none());
}

/// Each way to spoil a template is noticed, and what was spoilt is gone.
#[test]
fn what_is_not_as_it_was_made_is_never_used() {
    type Spoil = fn(&std::path::Path);
    let ways: &[(&str, Spoil)] = &[
        ("memory cut short", |d| File::options().write(true).open(d.join("ram")).unwrap().set_len(8192).unwrap()),
        ("memory too long", |d| File::options().write(true).open(d.join("ram")).unwrap().set_len(2 << 20).unwrap()),
        ("one bit of memory", |d| {
            let file = File::options().write(true).open(d.join("ram")).unwrap();
            file.write_all_at(b"hts", 8192).unwrap();
        }),
        ("something where nothing was", |d| {
            let file = File::options().write(true).open(d.join("ram")).unwrap();
            file.write_all_at(b"x", 500_000).unwrap();
        }),
        ("memory replaced", |d| {
            fs::remove_file(d.join("ram")).unwrap();
            File::create(d.join("ram")).unwrap().set_len(1 << 20).unwrap();
        }),
        ("state", |d| fs::write(d.join("state"), "the device5").unwrap()),
        ("disks swapped", |d| {
            fs::write(d.join("disk0"), "b disk").unwrap();
        }),
        ("a part is gone", |d| fs::remove_file(d.join("disk1")).unwrap()),
        ("a part is a link", |d| {
            fs::rename(d.join("disk1"), d.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", d.join("disk1")).unwrap();
        }),
        ("no manifest", |d| fs::remove_file(d.join("manifest")).unwrap()),
        ("an empty manifest", |d| fs::write(d.join("manifest"), "").unwrap()),
        ("half a manifest", |d| {
            let text = fs::read(d.join("manifest")).unwrap();
            fs::write(d.join("manifest"), &text[..text.len() / 2]).unwrap();
        }),
        ("a manifest that was edited", |d| {
            let text = fs::read_to_string(d.join("manifest")).unwrap();
            fs::write(d.join("manifest"), text.replace("virtio", "serial")).unwrap();
        }),
    ];
    for (what, spoil) in ways {
        let lab = lab();
        let dir = make(&lab.store, "a");
        spoil(&dir);
        let flaw = lab.store.find(&key("a")).expect_err(what).to_string();
        assert!(!flaw.is_empty());
        assert_eq!(names(&lab.store), [""; 0], "{what}");
        // And it can be made anew.
        make(&lab.store, "a");
        assert!(lab.store.find(&key("a")).unwrap().is_some(), "{what}");
    }
}

#[test]
fn a_template_under_another_name_is_none() {
    let lab = lab();
    let dir = make(&lab.store, "a");
    fs::rename(dir, lab.store.dir().join(key("b").as_str())).unwrap();
    let flaw = lab.store.find(&key("b")).unwrap_err().to_string();
    assert!(flaw.contains("another template"), "{flaw}");
}

#[test]
fn a_copy_of_the_files_is_read_once_and_believed() {
    let lab = lab();
    let dir = make(&lab.store, "a");
    let copy = dir.join("copy");
    fs::copy(dir.join("ram"), &copy).unwrap();
    fs::rename(copy, dir.join("ram")).unwrap();
    let before = fs::read(dir.join("manifest")).unwrap();
    assert!(lab.store.find(&key("a")).unwrap().is_some());
    assert_ne!(fs::read(dir.join("manifest")).unwrap(), before, "the new stamp is kept");
    assert!(lab.store.find(&key("a")).unwrap().is_some());
}

#[test]
fn what_is_in_use_may_go() {
    let lab = lab();
    make(&lab.store, "a");
    let template = lab.store.find(&key("a")).unwrap().unwrap();
    lab.store.remove(&key("a"));
    assert_eq!(names(&lab.store), [""; 0]);
    assert!(template.is_unchanged());
    assert_eq!(text(template.state().unwrap()), "the devices");
}

#[test]
fn writing_to_what_is_in_use_is_noticed() {
    let lab = lab();
    let dir = make(&lab.store, "a");
    let template = lab.store.find(&key("a")).unwrap().unwrap();
    File::options().write(true).open(dir.join("ram")).unwrap().set_len(4096).unwrap();
    assert!(!template.is_unchanged());
}

#[test]
fn one_makes_it_and_the_others_wait() {
    let lab = lab();
    let making = claim(&lab.store, &key("a"));
    assert!(matches!(lab.store.claim(&key("a"), false).unwrap(), Claim::Taken));
    assert!(matches!(lab.store.claim(&key("b"), false).unwrap(), Claim::Ours(_)));
    let (tell, told) = mpsc::channel();
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let (store, tell) = (lab.store.clone(), tell.clone());
            std::thread::spawn(move || {
                let made = matches!(store.claim(&key("a"), true).unwrap(), Claim::Made);
                tell.send(made).unwrap();
            })
        })
        .collect();
    assert!(told.try_recv().is_err());
    finish(making, b"x");
    for waiter in waiters {
        waiter.join().unwrap();
    }
    drop(tell);
    assert_eq!(told.iter().collect::<Vec<_>>(), [true; 4]);
    assert_eq!(names(&lab.store), [key("a").as_str()]);
}

#[test]
fn when_the_maker_gives_up_the_next_has_a_go() {
    let lab = lab();
    let making = claim(&lab.store, &key("a"));
    making.create("ram").unwrap().write_all(b"half").unwrap();
    let store = lab.store.clone();
    let waiter = std::thread::spawn(move || match store.claim(&key("a"), true).unwrap() {
        Claim::Ours(making) => fs::read_dir(making.dir()).unwrap().count(),
        other => panic!("{other:?}"),
    });
    drop(making);
    assert_eq!(waiter.join().unwrap(), 1, "there is nothing but the lock");
    assert_eq!(names(&lab.store), [""; 0]);
}

/// As `kill -9` leaves it: files, and a lock that nobody holds.
#[test]
fn what_a_killed_maker_left_is_cleared_away() {
    let lab = lab();
    for name in ["a", "b"] {
        let dir = lab.store.dir().join(format!("{}.making", key(name)));
        fs::create_dir_all(&dir).unwrap();
        for file in ["lock", "ram", "disk0"] {
            fs::write(dir.join(file), "half").unwrap();
        }
    }
    let dropped = lab.store.dir().join("dropped-1-0-1");
    fs::create_dir(&dropped).unwrap();
    assert!(lab.store.find(&key("a")).unwrap().is_none());
    let making = claim(&lab.store, &key("a"));
    assert_eq!(fs::read_dir(making.dir()).unwrap().count(), 1);
    finish(making, b"x");
    assert_eq!(names(&lab.store), [key("a").as_str()], "what others left goes too");
}

#[test]
fn the_least_recently_used_goes_first() {
    let lab = lab();
    let now = SystemTime::now();
    for (name, age) in [("a", 300), ("b", 100), ("c", 200)] {
        let dir = make(&lab.store, name);
        let used = File::options().write(true).open(dir.join("used")).unwrap();
        used.set_modified(now - Duration::from_secs(age)).unwrap();
    }
    let order =
        |store: &TemplateStore| -> Vec<TemplateKey> { store.list().unwrap().into_iter().map(|k| k.key).collect() };
    assert_eq!(order(&lab.store), [key("b"), key("c"), key("a")]);
    let size = lab.store.list().unwrap()[0].size;
    let removed = lab.store.prune(size * 2 + size / 2).unwrap();
    assert_eq!(removed.iter().map(|k| k.key.clone()).collect::<Vec<_>>(), [key("a")]);
    // Finding one is using it.
    assert!(lab.store.find(&key("c")).unwrap().is_some());
    assert_eq!(order(&lab.store), [key("c"), key("b")]);
    // A new one makes room, and stays itself however large it is.
    let small = TemplateStore::new(lab.store.dir(), 1);
    make(&small, "d");
    assert_eq!(names(&lab.store), [key("d").as_str()]);
    lab.store.prune(0).unwrap();
    assert_eq!(names(&lab.store), [""; 0]);
}

#[test]
fn a_store_that_cannot_be_written_to_says_so() {
    let lab = lab();
    fs::write(lab.dir.path().join("file"), "").unwrap();
    let store = TemplateStore::new(lab.dir.path().join("file/templates"), u64::MAX);
    assert!(store.find(&key("a")).unwrap().is_none());
    assert!(store.claim(&key("a"), false).is_err());
    assert!(store.list().is_err() || store.list().unwrap().is_empty());
}

#[test]
fn nobody_else_can_read_a_guests_memory() {
    use std::os::unix::fs::PermissionsExt;
    let lab = lab();
    let dir = make(&lab.store, "a");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o077, 0);
    assert_eq!(fs::metadata(dir.join("ram")).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn all_of_a_template_can_be_read_and_compared() {
    let lab = lab();
    let dir = make(&lab.store, "a");
    let template = lab.store.find(&key("a")).unwrap().unwrap();
    template.verify().unwrap();
    let file = File::options().write(true).open(dir.join("ram")).unwrap();
    file.write_all_at(b"I", 8192).unwrap();
    let flaw = template.verify().unwrap_err();
    assert!(flaw.to_string().contains("ram is not as it was made") && !flaw.is_the_hosts(), "{flaw}");
}

#[test]
fn failures_are_counted_until_one_works() {
    let lab = lab();
    make(&lab.store, "a");
    assert_eq!([(); 3].map(|()| lab.store.count_failure(&key("a"))), [1, 2, 3]);
    lab.store.forget_failures(&key("a"));
    assert_eq!(lab.store.count_failure(&key("a")), 1);
    // Of one that went meanwhile nothing is remembered.
    assert_eq!([(); 2].map(|()| lab.store.count_failure(&key("b"))), [1, 1]);
}

#[test]
fn what_is_being_made_is_known_as_long_as_its_maker_is_there() {
    let lab = lab();
    assert!(lab.store.being_made().unwrap().is_empty());
    let making = claim(&lab.store, &key("a"));
    assert_eq!(lab.store.being_made().unwrap()[0].guest, None);
    making.announce("a guest");
    lab.store.sweep();
    let made = lab.store.being_made().unwrap();
    assert_eq!((made[0].guest.as_deref(), made[0].maker), (Some("a guest"), Some(std::process::id())));
    assert!(matches!(lab.store.claim(&key("a"), false).unwrap(), Claim::Taken), "nobody took the right away");
    drop(making);
    assert!(lab.store.being_made().unwrap().is_empty());
}

#[test]
fn what_killed_makers_left_is_swept_away() {
    let lab = lab();
    make(&lab.store, "a");
    let dir = |name: &str| lab.store.dir().join(name);
    let (locked, bare) = (dir(&format!("{}.making", key("b"))), dir(&format!("{}.making", key("c"))));
    let beside = dir(&format!("{}.making", key("a")));
    for (left, with) in
        [(&locked, &["lock", "ram"][..]), (&bare, &[]), (&beside, &["lock"]), (&dir("dropped-1"), &["ram"])]
    {
        fs::create_dir(left).unwrap();
        for name in with {
            fs::write(left.join(name), "").unwrap();
        }
    }
    fs::create_dir(dir("others.making")).unwrap();
    lab.store.sweep();
    let mut left: Vec<_> = fs::read_dir(lab.store.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    let mut wanted = [key("a").as_str().into(), std::ffi::OsString::from("others.making")];
    wanted.sort();
    assert_eq!(left, wanted);
}

#[test]
fn what_cannot_be_done_with_a_template_is_remembered_for_a_while() {
    let lab = lab();
    let dir = make(&lab.store, "a");
    assert_eq!(lab.store.noted(&key("a"), "network card"), None);
    lab.store.note(&key("a"), "network card", "it stays");
    lab.store.note(&key("b"), "virtio", "there is no such template");
    assert_eq!(lab.store.noted(&key("a"), "network card").as_deref(), Some("it stays"));
    assert_eq!((lab.store.noted(&key("a"), "virtio"), lab.store.noted(&key("b"), "virtio")), (None, None));
    assert!(lab.store.find(&key("a")).unwrap().is_some(), "it is as good as before");
    let note = File::options().write(true).open(dir.join("note-network-card")).unwrap();
    note.set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    assert_eq!(lab.store.noted(&key("a"), "network card"), None);
}

#[test]
fn a_template_tells_what_it_was_made_of() {
    let lab = lab();
    make(&lab.store, "a");
    let making = claim(&lab.store, &key("b"));
    making.create("ram").unwrap().write_all(b"half").unwrap();
    making.clear().unwrap();
    assert_eq!(fs::read_dir(making.dir()).unwrap().count(), 1, "there is nothing but the lock");
    finish_on(making, b"its memory", Some(key("a")));
    let bases: Vec<_> = lab.store.list().unwrap().into_iter().filter_map(|kept| kept.base).collect();
    assert_eq!(bases, [key("a")]);
}
