//! The server against real directories, asked as a guest's kernel asks, and as one that is none.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use crate::wire::{HEADER, MAX_DATA, ROOT, init};
use crate::{Answer, Malformed, Server, Use, serve};

const INIT: u32 = 26;
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME2: u32 = 45;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const READDIRPLUS: u32 = 44;

const EPERM: i32 = Errno::PERM.raw_os_error();
const EINVAL: i32 = Errno::INVAL.raw_os_error();
const EROFS: i32 = Errno::ROFS.raw_os_error();
const ENOSYS: i32 = Errno::NOSYS.raw_os_error();
const ENOENT: i32 = Errno::NOENT.raw_os_error();

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(length.to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn name(name: impl AsRef<[u8]>) -> Vec<u8> {
    [name.as_ref(), &[0]].concat()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What a kernel that knows everything offers.
fn hello() -> Vec<u8> {
    request(INIT, 0, &numbers(&[7, 38, 1 << 20, u32::MAX, u32::MAX, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
}

struct Guest {
    dir: TempDir,
    server: Server,
}

impl Guest {
    fn new(using: Use) -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir(&share).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let fd = fs::File::open(&share).unwrap();
        let mut guest = Self { server: Server::new(fd.into(), using, 1024).unwrap(), dir };
        guest.ask(INIT, 0, &hello()[HEADER..]).unwrap();
        guest
    }

    fn share(&self) -> std::path::PathBuf {
        self.dir.path().join("share")
    }

    /// The body of the reply, or its error.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        match self.server.answer(&request(opcode, node, body)).unwrap() {
            Answer::Reply(reply) => {
                assert_eq!(u32_at(&reply, 0) as usize, reply.len());
                assert_eq!(u64_at(&reply, 8), 7);
                let error = u32_at(&reply, 4).cast_signed();
                if error == 0 { Ok(reply[16..].to_vec()) } else { Err(-error) }
            }
            other => panic!("{other:?}"),
        }
    }

    fn look_up(&mut self, parent: u64, called: &str) -> Result<u64, i32> {
        let node = u64_at(&self.ask(LOOKUP, parent, &name(called))?, 0);
        if node == 0 { Err(ENOENT) } else { Ok(node) }
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        Ok(u64_at(&self.ask(OPEN, node, &numbers(&[flags, 0]))?, 0))
    }

    fn create(&mut self, parent: u64, called: &str, flags: u32, mode: u32) -> Result<(u64, u64), i32> {
        let body = [numbers(&[flags, 0o100_000 | mode, 0, 0]), name(called)].concat();
        let reply = self.ask(CREATE, parent, &body)?;
        Ok((u64_at(&reply, 0), u64_at(&reply, 128)))
    }

    fn write(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        (write_flags, flags): (u32, u32),
        data: &[u8],
    ) -> Result<u32, i32> {
        let size = u32::try_from(data.len()).unwrap();
        let head = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        let tail = numbers(&[size, write_flags, 0, 0, flags, 0]);
        Ok(u32_at(&self.ask(WRITE, node, &[&head, &tail, data].concat())?, 0))
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let head = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
        self.ask(READ, node, &[head, numbers(&[size, 0, 0, 0, 0, 0])].concat())
    }

    fn names(&mut self, node: u64, handle: u64, plus: bool) -> Vec<String> {
        let mut all = Vec::new();
        let mut offset = 0_u64;
        loop {
            let head = [handle.to_le_bytes(), offset.to_le_bytes()].concat();
            let body = [head, numbers(&[512, 0, 0, 0, 0, 0])].concat();
            let reply = self.ask(if plus { READDIRPLUS } else { READDIR }, node, &body).unwrap();
            assert!(reply.len() <= 512);
            if reply.is_empty() {
                return all;
            }
            let mut at = 0;
            while at < reply.len() {
                let entry = at + if plus { 128 } else { 0 };
                let length = u32_at(&reply, entry + 16) as usize;
                offset = u64_at(&reply, entry + 8);
                all.push(String::from_utf8(reply[entry + 24..entry + 24 + length].to_vec()).unwrap());
                at = entry + (24 + length).next_multiple_of(8);
            }
        }
    }

    fn set_mode(&mut self, node: u64, mode: u32) -> Result<Vec<u8>, i32> {
        let mut body = numbers(&[1, 0]);
        body.resize(68, 0);
        body.extend(mode.to_le_bytes());
        body.resize(88, 0);
        self.ask(SETATTR, node, &body)
    }

    fn set_size(&mut self, node: u64, handle: Option<u64>, size: u64) -> Result<Vec<u8>, i32> {
        let mut body = numbers(&[1 << 3 | if handle.is_some() { 1 << 6 } else { 0 }, 0]);
        body.extend(handle.unwrap_or(0).to_le_bytes());
        body.extend(size.to_le_bytes());
        body.resize(88, 0);
        self.ask(SETATTR, node, &body)
    }
}

#[test]
fn files_are_made_written_read_and_listed() {
    let mut guest = Guest::new(Use::Exchange);
    let (node, handle) = guest.create(ROOT, "file", 2, 0o640).unwrap();
    assert_eq!(guest.write(node, handle, 3, (0, 0), b"data"), Ok(4));
    assert_eq!(guest.read(node, handle, 0, 100), Ok(b"\0\0\0data".to_vec()));
    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"\0\0\0data");
    assert_eq!(fs::metadata(guest.share().join("file")).unwrap().permissions().mode() & 0o7777, 0o640);
    guest.ask(RELEASE, node, &[handle.to_le_bytes(), [0; 8], [0; 8]].concat()).unwrap();
    assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::BADF.raw_os_error()));
    for n in 0..40 {
        fs::write(guest.share().join(format!("{n}-{}", "x".repeat(n))), "").unwrap();
    }
    for plus in [false, true] {
        let directory = u64_at(&guest.ask(OPENDIR, ROOT, &numbers(&[0, 0])).unwrap(), 0);
        let mut names = guest.names(ROOT, directory, plus);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 43, "{names:?}");
        // Once more from the beginning.
        assert_eq!(guest.names(ROOT, directory, plus).len(), 43);
    }
}

#[test]
fn a_name_leads_one_step_down_and_nowhere_else() {
    let mut guest = Guest::new(Use::Exchange);
    fs::create_dir(guest.share().join("dir")).unwrap();
    symlink("..", guest.share().join("up")).unwrap();
    symlink("../secret", guest.share().join("link")).unwrap();
    let dir = guest.look_up(ROOT, "dir").unwrap();
    for bad in ["", ".", "..", "../secret", "/etc/passwd", "dir/..", "up/secret", "dir/"] {
        assert_eq!(guest.look_up(ROOT, bad), Err(EINVAL), "{bad}");
        assert_eq!(guest.look_up(dir, bad), Err(EINVAL), "{bad}");
        assert_eq!(guest.create(dir, bad, 2, 0o600), Err(EINVAL), "{bad}");
        assert_eq!(guest.ask(UNLINK, dir, &name(bad)), Err(EINVAL), "{bad}");
        assert_eq!(guest.ask(MKDIR, dir, &[numbers(&[0o755, 0]), name(bad)].concat()), Err(EINVAL), "{bad}");
        let renamed = [ROOT.to_le_bytes().to_vec(), numbers(&[0, 0]), name("dir"), name(bad)].concat();
        assert_eq!(guest.ask(RENAME2, ROOT, &renamed), Err(EINVAL), "{bad}");
        let linked = [dir.to_le_bytes().to_vec(), name(bad)].concat();
        assert_eq!(guest.ask(LINK, ROOT, &linked), Err(EINVAL), "{bad}");
        assert_eq!(guest.ask(SYMLINK, ROOT, &[name(bad), name("x")].concat()), Err(EINVAL), "{bad}");
        assert_eq!(guest.ask(MKNOD, ROOT, &[numbers(&[0o100_644, 0, 0, 0]), name(bad)].concat()), Err(EINVAL), "{bad}");
    }
    let long = Errno::NAMETOOLONG.raw_os_error();
    assert_eq!(guest.look_up(ROOT, &"n".repeat(5000)), Err(long));
    assert_eq!(guest.create(ROOT, &"n".repeat(5000), 2, 0o600), Err(long));
    // A link is itself: nothing is looked up in it, nothing opened, nothing written.
    for called in ["up", "link"] {
        let link = guest.look_up(ROOT, called).unwrap();
        assert!(guest.look_up(link, "secret").is_err());
        assert_eq!(guest.open(link, 0), Err(Errno::NXIO.raw_os_error()));
        assert!(guest.set_size(link, None, 0).is_err());
        assert!(guest.set_mode(link, 0o777).is_err());
        assert!(guest.create(ROOT, called, 2 | 0o1000, 0o600).is_err());
    }
    assert_eq!(fs::read(guest.dir.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn what_the_host_swaps_for_a_link_leads_nowhere() {
    let mut guest = Guest::new(Use::Exchange);
    let share = guest.share();
    fs::create_dir(share.join("dir")).unwrap();
    fs::write(share.join("dir/file"), "inside").unwrap();
    let dir = guest.look_up(ROOT, "dir").unwrap();
    let file = guest.look_up(dir, "file").unwrap();
    fs::rename(share.join("dir"), share.join("moved")).unwrap();
    symlink("..", share.join("dir")).unwrap();
    fs::rename(share.join("moved/file"), share.join("moved/other")).unwrap();
    symlink("../../secret", share.join("moved/file")).unwrap();
    // The same directory and the same file, whatever their names lead to by now.
    let handle = guest.open(file, 2).unwrap();
    assert_eq!(guest.write(file, handle, 0, (0, 0), b"INSIDE"), Ok(6));
    assert_eq!(fs::read(share.join("moved/other")).unwrap(), b"INSIDE");
    guest.create(dir, "new", 2, 0o600).unwrap();
    assert!(share.join("moved/new").exists() && !guest.dir.path().join("new").exists());
    // Asked anew, the names are links.
    let link = guest.look_up(ROOT, "dir").unwrap();
    assert_eq!(guest.look_up(link, "secret"), Err(Errno::NOTDIR.raw_os_error()));
    let link = guest.look_up(dir, "file").unwrap();
    assert_eq!(guest.open(link, 0), Err(Errno::NXIO.raw_os_error()));
}

#[test]
fn what_comes_of_it_on_the_host_are_plain_files_of_the_user() {
    let mut guest = Guest::new(Use::Exchange);
    let mknod = |mode: u32, called: &str| [numbers(&[mode, 0x103, 0, 0]), name(called)].concat();
    for device in [0o020_666, 0o060_666] {
        assert_eq!(guest.ask(MKNOD, ROOT, &mknod(device, "device")), Err(EPERM));
    }
    for (mode, called) in [(0o010_644, "fifo"), (0o140_644, "socket"), (0o100_644, "plain")] {
        guest.ask(MKNOD, ROOT, &mknod(mode, called)).unwrap();
    }
    let kind = |called: &str| fs::symlink_metadata(guest.dir.path().join("share").join(called)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket() && kind("plain").is_file());
    for bits in [0o4000, 0o2000, 0o6000] {
        assert_eq!(guest.create(ROOT, "set-id", 2, bits | 0o755), Err(EPERM));
        assert_eq!(guest.ask(MKNOD, ROOT, &mknod(0o100_755 | bits, "set-id")), Err(EPERM));
    }
    let plain = guest.look_up(ROOT, "plain").unwrap();
    assert_eq!(guest.set_mode(plain, 0o104_755), Err(EPERM));
    guest.set_mode(plain, 0o102_755).unwrap();
    assert_eq!(fs::metadata(guest.share().join("plain")).unwrap().mode() & 0o7777, 0o755);
    // A directory keeps the bit that the host gave it.
    fs::create_dir(guest.share().join("group")).unwrap();
    fs::set_permissions(guest.share().join("group"), fs::Permissions::from_mode(0o2755)).unwrap();
    let group = guest.look_up(ROOT, "group").unwrap();
    guest.set_mode(group, 0o042_700).unwrap();
    assert_eq!(fs::metadata(guest.share().join("group")).unwrap().mode() & 0o7777, 0o2700);
    // An owner that is asked for is none.
    let mut body = numbers(&[1 << 1 | 1 << 2, 0]);
    body.resize(76, 0);
    body.extend(numbers(&[12345, 12345, 0]));
    guest.ask(SETATTR, plain, &body).unwrap();
    assert_ne!(fs::metadata(guest.share().join("plain")).unwrap().uid(), 12345);
    // Nothing that is no plain file is opened on the host.
    for called in ["fifo", "socket"] {
        let node = guest.look_up(ROOT, called).unwrap();
        assert_eq!(guest.open(node, 2), Err(Errno::NXIO.raw_os_error()));
        assert!(guest.create(ROOT, called, 2, 0o600).is_err());
    }
    let set = |key: &str| [numbers(&[1, 0]), name(key), b"1".to_vec()].concat();
    for key in ["trusted.overlay.opaque", "security.capability", "system.posix_acl_access", "user"] {
        assert_eq!(guest.ask(SETXATTR, plain, &set(key)), Err(Errno::OPNOTSUPP.raw_os_error()), "{key}");
        let get = [numbers(&[100, 0]), name(key)].concat();
        assert_eq!(guest.ask(GETXATTR, plain, &get), Err(Errno::OPNOTSUPP.raw_os_error()), "{key}");
    }
}

/// The guest says itself what its kernel can do: one that wants to be asked for each opening changes nothing either.
#[test]
fn a_share_for_reading_is_emptied_by_no_opening() {
    let mut guest = Guest::new(Use::Reading);
    guest.ask(INIT, 0, &numbers(&[7, 38, 0, 0, 0])).unwrap();
    fs::write(guest.share().join("file"), "text").unwrap();
    let file = guest.look_up(ROOT, "file").unwrap();
    for flags in 0..(1 << 14) {
        let writes = flags & 0o3 != 0 || flags & 0o1000 != 0;
        match guest.open(file, flags) {
            Ok(handle) if !writes => drop(guest.ask(RELEASE, file, &[handle.to_le_bytes(), [0; 8], [0; 8]].concat())),
            found => assert_eq!(found.err(), Some(EROFS), "{flags:o}"),
        }
    }
    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"text");
}

#[test]
fn a_share_for_reading_is_read() {
    let mut guest = Guest::new(Use::Reading);
    fs::write(guest.share().join("file"), "text").unwrap();
    let file = guest.look_up(ROOT, "file").unwrap();
    assert_eq!(guest.open(file, 0), Err(ENOSYS), "the kernel is told to tell of no opening");
    assert_eq!(guest.open(file, 2), Err(EROFS));
    assert_eq!(guest.read(file, 0, 1, 100), Ok(b"ext".to_vec()));
    assert_eq!(guest.ask(OPENDIR, ROOT, &numbers(&[0, 0])), Err(ENOSYS));
    assert_eq!(guest.names(ROOT, 0, true).len(), 3);
    assert_eq!(guest.create(ROOT, "new", 2, 0o600), Err(EROFS));
    assert_eq!(guest.ask(UNLINK, ROOT, &name("file")), Err(EROFS));
    assert_eq!(guest.ask(MKDIR, ROOT, &[numbers(&[0o755, 0]), name("d")].concat()), Err(EROFS));
    assert_eq!(guest.set_mode(file, 0o600), Err(EROFS));
    assert_eq!(guest.set_size(file, None, 0), Err(EROFS));
    assert_eq!(guest.write(file, 0, 0, (0, 0), b"x"), Err(EROFS));
    assert_eq!(fs::read(guest.share().join("file")).unwrap(), b"text");
    // That a name is not there is believed.
    assert_eq!(u64_at(&guest.ask(LOOKUP, ROOT, &name("none")).unwrap(), 0), 0);
    // A file that is not known any more is not held.
    guest.server.answer(&request(FORGET, file, &u64::MAX.to_le_bytes())).unwrap();
    assert_eq!(guest.read(file, 0, 0, 1), Err(Errno::STALE.raw_os_error()));
}

#[test]
fn an_open_file_is_the_same_file_without_its_name() {
    let mut guest = Guest::new(Use::Exchange);
    let (node, handle) = guest.create(ROOT, "log", 2, 0o600).unwrap();
    guest.write(node, handle, 0, (0, 0), b"old").unwrap();
    fs::write(guest.share().join("next"), "new file").unwrap();
    fs::rename(guest.share().join("next"), guest.share().join("log")).unwrap();
    guest.set_size(node, Some(handle), 1).unwrap();
    guest.set_size(node, None, 2).unwrap();
    guest.set_mode(node, 0o100_644).unwrap();
    assert_eq!(guest.read(node, handle, 0, 10), Ok(b"o\0".to_vec()));
    assert_eq!(fs::read(guest.share().join("log")).unwrap(), b"new file");
    // What is appended comes at the end, and what the guest's cache writes comes where it belongs.
    const APPEND: u32 = 0o2001;
    guest.write(node, handle, 0, (0, APPEND), b"end").unwrap();
    guest.write(node, handle, 0, (1, APPEND), b"O").unwrap();
    assert_eq!(guest.read(node, handle, 0, 10), Ok(b"O\0end".to_vec()));
    let attr = guest.ask(GETATTR, node, &[numbers(&[1, 0]), handle.to_le_bytes().to_vec()].concat()).unwrap();
    assert_eq!(u64_at(&attr, 16 + 8), 5);
}

#[test]
fn huge_numbers_cost_nothing() {
    let mut guest = Guest::new(Use::Exchange);
    let (node, handle) = guest.create(ROOT, "file", 2, 0o600).unwrap();
    guest.write(node, handle, 0, (0, 0), b"x").unwrap();
    assert_eq!(guest.read(node, handle, 0, u32::MAX), Ok(b"x".to_vec()));
    assert!(guest.read(node, handle, u64::MAX, u32::MAX).is_err());
    assert!(guest.write(node, handle, u64::MAX, (0, 0), b"x").is_err());
    assert_eq!(guest.set_size(node, None, u64::MAX), Err(EINVAL));
    let reserve = [handle.to_le_bytes(), 1_u64.to_le_bytes(), u64::MAX.to_le_bytes(), [0; 8]].concat();
    assert!(guest.ask(43, node, &reserve).is_err());
    let copy = [handle, 0, node, handle, 0, u64::MAX, 0].map(u64::to_le_bytes).concat();
    assert!(guest.ask(47, node, &copy).is_err(), "onto itself");
    for node in [0, 2_000, u64::MAX] {
        assert_eq!(guest.ask(GETATTR, node, &[0; 16]), Err(Errno::STALE.raw_os_error()));
        assert_eq!(guest.look_up(node, "x"), Err(Errno::STALE.raw_os_error()));
    }
    let value = [numbers(&[u32::MAX, 0]), name("user.x")].concat();
    assert!(guest.server.answer(&request(SETXATTR, node, &value)).is_err(), "a size that is not there");
}

#[test]
fn floods_of_forgetting_forget_what_was_known() {
    let mut guest = Guest::new(Use::Exchange);
    fs::write(guest.share().join("file"), "").unwrap();
    let file = guest.look_up(ROOT, "file").unwrap();
    let again = guest.look_up(ROOT, "file").unwrap();
    assert_eq!(file, again);
    let mut body = numbers(&[10_000, 0]);
    for n in 0..10_000_u64 {
        body.extend(n.to_le_bytes());
        body.extend(u64::MAX.to_le_bytes());
    }
    assert_eq!(guest.server.answer(&request(BATCH_FORGET, 0, &body)), Ok(Answer::Nothing));
    assert_eq!(guest.ask(GETATTR, file, &[0; 16]), Err(Errno::STALE.raw_os_error()));
    // The directory itself is never forgotten.
    assert!(guest.look_up(ROOT, "file").unwrap() > file);
    body[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(guest.server.answer(&request(BATCH_FORGET, 0, &body)), Err(Malformed), "more than there are");
}

/// A share with more files than may be open, all of which the guest knows, and what it calls them.
fn many() -> (Guest, Vec<(String, u64)>) {
    let mut guest = Guest::new(Use::Exchange);
    let mut known = Vec::new();
    for d in 0..30 {
        let directory = format!("d{d}");
        fs::create_dir_all(guest.share().join(&directory).join("below")).unwrap();
        let outer = guest.look_up(ROOT, &directory).unwrap();
        let inner = guest.look_up(outer, "below").unwrap();
        for n in 0..100 {
            let path = format!("{directory}/below/{n}");
            fs::write(guest.share().join(&path), &path).unwrap();
            known.push((path, guest.look_up(inner, &n.to_string()).unwrap()));
            assert!(guest.server.held() < 1024, "{} are held", guest.server.held());
        }
    }
    (guest, known)
}

#[test]
fn a_guest_may_know_more_files_than_may_be_open() {
    let (mut guest, known) = many();
    for (path, node) in known.iter().rev().chain(&known) {
        let handle = guest.open(*node, 0).unwrap();
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0_u64.to_le_bytes());
        body.extend(numbers(&[100, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(guest.ask(READ, *node, &body).unwrap(), path.as_bytes());
        guest.ask(RELEASE, *node, &[&handle.to_le_bytes()[..], &[0; 16]].concat()).unwrap();
        assert!(guest.server.held() < 1024, "{} are held", guest.server.held());
    }
    // What is looked up again is what it was.
    for (path, node) in &known {
        let mut at = ROOT;
        for part in path.split('/') {
            at = guest.look_up(at, part).unwrap();
        }
        assert_eq!(at, *node, "{path}");
    }
}

#[test]
fn what_was_let_go_of_is_found_where_the_guest_has_put_it() {
    let (mut guest, known) = many();
    let (first, last) = (known[0].1, known[99].1);
    // All of it is let go of by now. The guest moves the directory, a file, and one over another.
    let directory = guest.look_up(ROOT, "d0").unwrap();
    let below = guest.look_up(directory, "below").unwrap();
    let rename = |to: u64, from: &str, new: &str| [&to.to_le_bytes()[..], &[0; 8], &name(from), &name(new)].concat();
    guest.ask(RENAME2, ROOT, &rename(ROOT, "d0", "moved")).unwrap();
    guest.ask(RENAME2, below, &rename(ROOT, "0", "first")).unwrap();
    guest.ask(RENAME2, below, &rename(below, "98", "99")).unwrap();
    guest.ask(UNLINK, below, &name("50")).unwrap();
    for (path, node) in &known[100..] {
        assert!(
            guest
                .open(*node, 0)
                .is_ok_and(|handle| guest.ask(RELEASE, *node, &[&handle.to_le_bytes()[..], &[0; 16]].concat()).is_ok()),
            "{path}"
        );
    }
    let links = |guest: &mut Guest, node| guest.ask(GETATTR, node, &[0; 16]).map(|reply| u32_at(&reply, 16 + 64));
    assert_eq!(links(&mut guest, first), Ok(1));
    assert_eq!(guest.look_up(ROOT, "first"), Ok(first));
    assert_eq!(links(&mut guest, known[97].1), Ok(1), "in the directory that was moved");
    assert_eq!(links(&mut guest, known[98].1), Ok(1), "the one that was moved over another");
    assert_eq!(links(&mut guest, last), Ok(0), "the one that it took the place of");
    assert_eq!(links(&mut guest, known[50].1), Ok(0), "the one that has no name any more");
}

/// Nobody on the host leads the guest elsewhere by changing what was let go of.
#[test]
fn what_the_host_has_changed_meanwhile_is_stale() {
    let (mut guest, known) = many();
    let share = guest.share();
    fs::rename(share.join("d0/below/0"), share.join("elsewhere")).unwrap();
    fs::write(share.join("d0/below/0"), "another").unwrap();
    fs::remove_file(share.join("d0/below/1")).unwrap();
    symlink("../../../secret", share.join("d0/below/1")).unwrap();
    fs::rename(share.join("d1/below"), share.join("d1/was-below")).unwrap();
    symlink(guest.dir.path(), share.join("d1/below")).unwrap();
    fs::write(guest.dir.path().join("5"), "secret").unwrap();
    let stale = Errno::STALE.raw_os_error();
    for at in [0, 1, 105] {
        assert_eq!(guest.open(known[at].1, 0), Err(stale), "{}", known[at].0);
        assert_eq!(guest.ask(GETATTR, known[at].1, &[0; 16]), Err(stale), "{}", known[at].0);
    }
    // A name that is looked up again is the file that is there now.
    let directory = guest.look_up(ROOT, "d0").unwrap();
    let below = guest.look_up(directory, "below").unwrap();
    let now = guest.look_up(below, "0").unwrap();
    assert_ne!(now, known[0].1);
    assert!(guest.open(now, 0).is_ok());
    assert!(guest.open(known[2].1, 0).is_ok());
}

/// No more can be open than there are descriptors. What does not fit would be taken for not there, so it is the end.
#[test]
fn what_is_open_has_an_end() {
    let mut guest = Guest::new(Use::Exchange);
    fs::write(guest.share().join("file"), "").unwrap();
    let file = guest.look_up(ROOT, "file").unwrap();
    let open = request(OPEN, file, &numbers(&[0, 0]));
    let full = (0..1200).map(|_| guest.server.answer(&open).unwrap()).find(|answer| matches!(answer, Answer::Full(_)));
    let Some(Answer::Full(most)) = full else { panic!("nothing ended: {full:?}") };
    assert!((800..1024).contains(&most));
    let error = crate::ServeError::Full(most).to_string();
    assert!(error.contains("ulimit -Hn"), "{error}");
    let directory = guest.server.answer(&request(OPENDIR, ROOT, &numbers(&[0, 0])));
    assert_eq!(directory, Ok(Answer::Full(most)), "that is one more");
    guest.ask(RELEASE, file, &[&1_u64.to_le_bytes()[..], &[0; 16]].concat()).unwrap();
    assert!(matches!(guest.server.answer(&open), Ok(Answer::Reply(_))));
}

#[test]
fn what_is_not_served_says_so() {
    let mut guest = Guest::new(Use::Exchange);
    for opcode in [0, 7, 19, 31, 32, 33, 34, 36, 37, 39, 40, 48, 49, 50, 52, 99, u32::MAX] {
        assert_eq!(guest.ask(opcode, ROOT, &[0; 64]), Err(ENOSYS), "{opcode}");
    }
    assert_eq!(guest.server.answer(&request(DESTROY, 0, &[])), Ok(Answer::End));
    let mut short = request(LOOKUP, ROOT, b"no end");
    assert_eq!(guest.server.answer(&short), Err(Malformed));
    short.truncate(HEADER - 1);
    assert_eq!(guest.server.answer(&short), Err(Malformed));
}

#[test]
fn an_old_kernel_gets_what_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::new(fs::File::open(dir.path()).unwrap().into(), Use::Exchange, 1024).unwrap();
    assert_eq!(server.answer(&request(LOOKUP, ROOT, &name("x"))), Err(Malformed), "before it has said who it is");
    let known = (init::BIG_WRITES | init::ASYNC_READ) as u32;
    let Ok(Answer::Reply(reply)) = server.answer(&request(INIT, 0, &numbers(&[7, 22, 4096, known]))) else { panic!() };
    assert_eq!(reply.len(), 16 + 24);
    assert_eq!((u32_at(&reply, 16), u32_at(&reply, 20), u32_at(&reply, 28)), (7, 22, known));
    let Ok(Answer::Reply(reply)) = server.answer(&request(INIT, 0, &numbers(&[7, 31, 4096, known]))) else { panic!() };
    assert_eq!(reply.len(), 16 + 64);
    let Ok(Answer::Reply(reply)) = server.answer(&request(INIT, 0, &numbers(&[8, 0, 0, 0]))) else { panic!() };
    assert_ne!(u32_at(&reply, 4), 0);
}

/// A stream that gives its bytes in pieces, and takes what is written to it.
struct Stream<'a> {
    left: &'a [u8],
    most: usize,
    written: Vec<u8>,
}

impl std::io::Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        assert!(!into.is_empty(), "nothing would look like the end");
        let length = self.most.min(into.len()).min(self.left.len());
        let (piece, left) = self.left.split_at(length);
        into[..length].copy_from_slice(piece);
        self.left = left;
        Ok(length)
    }
}

impl std::io::Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Replies to a stream of requests that comes in pieces of this size, and whether it ended well.
fn talk(dir: &Path, bytes: &[u8], most: usize) -> (Vec<u8>, bool) {
    let server = Server::new(fs::File::open(dir).unwrap().into(), Use::Exchange, 1024).unwrap();
    let mut stream = Stream { left: bytes, most, written: Vec::new() };
    let ended = serve(server, &mut stream);
    (stream.written, ended.is_ok())
}

#[test]
fn however_the_bytes_come_the_answers_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let data = vec![1; MAX_DATA];
    let write = [[1_u64, 0].map(u64::to_le_bytes).concat(), numbers(&[MAX_DATA as u32, 0, 0, 0, 2, 0]), data].concat();
    let mut bytes = hello();
    for more in [
        request(LOOKUP, ROOT, &name("file")),
        request(OPEN, 2, &numbers(&[2, 0])),
        request(WRITE, 2, &write),
        request(WRITE, 2, &write),
        request(LOOKUP, ROOT, &name("none")),
    ] {
        bytes.extend(more);
    }
    let (whole, ended) = talk(dir.path(), &bytes, 60_000);
    assert!(ended && whole.len() > 200);
    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().len(), MAX_DATA as u64);
    for pieces in [7, 4093, 65_537] {
        let (again, ended) = talk(dir.path(), &bytes, pieces);
        // Times differ, lengths do not.
        assert!(ended && again.len() == whole.len(), "{pieces}");
    }
    // Cut off in the middle it is no more than cut off.
    assert!(talk(dir.path(), &bytes[..bytes.len() - 3], 4096).1);
    for length in [0_u32, 39, 3 << 20, u32::MAX] {
        let mut bytes = hello();
        bytes.extend(length.to_le_bytes());
        bytes.extend([0; 100]);
        assert!(!talk(dir.path(), &bytes, 4096).1, "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever a guest says, nothing but its share is touched, and nothing ends in a panic.
    #[test]
    fn no_request_does_harm(
        requests in proptest::collection::vec(
            (0_u32..54, prop_oneof![Just(1_u64), Just(2), 0_u64..6, any::<u64>()], prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                proptest::collection::vec(0_u8..4, 0..120),
                "[a-c./]{0,3}".prop_map(name),
                ("[a-c./]{0,3}", "[a-c./]{0,3}").prop_map(|(a, b)| [[0; 16].to_vec(), name(a), name(b)].concat()),
                ("[a-c./]{0,3}", any::<[u32; 4]>()).prop_map(|(a, n)| [numbers(&n), name(a)].concat()),
            ]),
            0..40,
        ),
        using in prop_oneof![Just(Use::Exchange), Just(Use::Reading)],
        offered in any::<Option<u32>>(),
    ) {
        // Reserving room for real takes time.
        let requests = requests.into_iter().filter(|(opcode, ..)| *opcode != 43);
        let mut guest = Guest::new(using);
        if let Some(offered) = offered {
            guest.ask(INIT, 0, &numbers(&[7, 38, 0, offered, 0])).unwrap();
        }
        fs::write(guest.share().join("a"), "a").unwrap();
        symlink("../secret", guest.share().join("b")).unwrap();
        for (opcode, node, body) in requests {
            crate::fuzz::requests(&request(opcode, node, &body));
            match guest.server.answer(&request(opcode, node, &body)) {
                Ok(Answer::Reply(reply)) => {
                    prop_assert_eq!(u32_at(&reply, 0) as usize, reply.len());
                    guest.server.reuse(reply);
                }
                Ok(Answer::Nothing | Answer::End | Answer::Full(_)) | Err(Malformed) => {}
            }
        }
        if using == Use::Reading {
            prop_assert_eq!(fs::read(guest.share().join("a")).unwrap(), b"a");
            prop_assert_eq!(fs::read_dir(guest.share()).unwrap().count(), 2);
        }
        prop_assert_eq!(fs::read(guest.dir.path().join("secret")).unwrap(), b"secret");
        prop_assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 2);
    }

    /// Nor do bytes that are no requests at all.
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), greeted in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        crate::fuzz::requests(&bytes);
        let all = [if greeted { hello() } else { Vec::new() }, bytes].concat();
        talk(dir.path(), &all, 64);
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
