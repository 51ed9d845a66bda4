//! `belljar-ctl` for a guest without the agent: a script, and two directories that both sides see. A program in the guest puts a file with an order, a line,
//! into the one, and finds the answer in a file of the same name in the other.
//!
//! In a directory `.belljar.ctl-NAME` of the exchange, for one command:
//!
//! | file | holds |
//! |---|---|
//! | `SECRET/` | all the rest: nobody but root can list the directory that it is in |
//! | `SECRET/orders/ID` | an order, a line with its end; any user of the guest may put one there, and it is taken away. A name that begins with a dot is left alone |
//! | `SECRET/answers/ID` | `ok` or `error`, and what there is to say; appears whole. The last [`MAX_ANSWERS`] stay |
//! | `SECRET/answers/.taken-ID` | the order was taken, and its answer may take long |
//! | `SECRET/bin/belljar-ctl` | the program, `ctl.sh` |
//!
//! The guest writes all of it as it likes. So the directories are held open, each file is opened through no link, and must be a plain file of one short line; how
//! many names are looked at is limited, and what is beyond that costs the command its result rather than being lost in silence.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use belljar_proto::ask::{MAX_ANSWER_NAME, is_answer_name};
use belljar_proto::message::MAX_QUESTION;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::asks::{ShellAsks, Taken};
use super::random_name;
use crate::Lost;

/// The program, for any POSIX `sh`.
pub(super) const PROGRAM: &str = include_str!("ctl.sh");
/// What it is called in the guest: under each name it does what is expected of that one.
pub(super) const NAMES: [&str; 2] = ["belljar-ctl", "tmt-reboot"];

/// How often the directory is looked at. No event tells of what a guest does on every file system.
const OFTEN: Duration = Duration::from_millis(100);
/// Most names that are looked at at a time.
const MAX_NAMES: usize = 4096;
/// Most answers that stay.
pub(super) const MAX_ANSWERS: usize = 256;

/// Where a command finds this in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    /// The directory for orders, which `BELLJAR_CTL_DIR` names.
    pub(super) orders: String,
    /// The directory of the program, for `PATH`; none where no program can be run that is put there.
    pub(super) programs: Option<String>,
}

impl Places {
    /// Those in this directory of the guest.
    pub(super) fn in_directory(directory: &str) -> Self {
        Self { orders: format!("{directory}/orders"), programs: Some(format!("{directory}/bin")) }
    }
}

/// The directories of one command, on the host; removed when this is dropped.
#[derive(Debug)]
pub(super) struct OrderFiles {
    path: PathBuf,
    /// The same in the guest, below the exchange.
    inner: String,
    orders: OwnedFd,
    answers: OwnedFd,
    written: VecDeque<String>,
    /// What is no order and cannot be taken away.
    stays: BTreeSet<Vec<u8>>,
    notes: Vec<String>,
}

impl Drop for OrderFiles {
    fn drop(&mut self) {
        // Never follows a link; what cannot be removed stays in the run's own directory.
        let _ = crate::tree::remove(&self.path);
    }
}

/// What is there under a name.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A line, without its end.
    Line(Vec<u8>),
    /// The beginning of one.
    Begun,
    /// Nothing, any more.
    Gone,
    /// What is no order, for this reason.
    Odd(String),
}

impl OrderFiles {
    /// Makes them in this directory of the host.
    ///
    /// # Errors
    /// When they cannot be made.
    pub(super) fn make(host: &Path) -> Result<io::Result<Self>, Lost> {
        let (name, secret) = (format!(".belljar.ctl-{}", random_name()?), random_name()?);
        Ok(Self::make_named(host, &name, &secret))
    }

    fn make_named(host: &Path, name: &str, secret: &str) -> io::Result<Self> {
        let path = host.join(name);
        // By descriptors: something that an earlier command left in the guest may be at work there.
        let host = open_directory(rustix::fs::CWD, host)?;
        let top = make_directory(&host, name, Mode::from_raw_mode(0o711))?;
        let inner = make_directory(&top, secret, Mode::from_raw_mode(0o755))?;
        let orders = make_directory(&inner, "orders", Mode::from_raw_mode(0o777))?;
        let answers = make_directory(&inner, "answers", Mode::from_raw_mode(0o755))?;
        let programs = make_directory(&inner, "bin", Mode::from_raw_mode(0o755))?;
        for program in NAMES {
            create(&programs, program, Mode::from_raw_mode(0o755))?.write_all_at(PROGRAM.as_bytes(), 0)?;
        }
        let inner = format!("{name}/{secret}");
        Ok(Self { path, inner, orders, answers, written: VecDeque::new(), stays: BTreeSet::new(), notes: Vec::new() })
    }

    /// Where they are in a guest that sees the directory here.
    pub(super) fn places(&self, guest: &str) -> Places {
        Places::in_directory(&format!("{guest}/{}", self.inner))
    }

    /// Takes what is asked for, and brings the answers, as long as this is waited for.
    pub(super) async fn serve(&mut self, asks: &ShellAsks) -> Infallible {
        let mut changes = asks.changes();
        let mut next = tokio::time::Instant::now();
        loop {
            changes.mark_unchanged();
            self.answer(asks);
            tokio::select! {
                biased;
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep_until(next) => {
                    self.take(asks);
                    next = tokio::time::Instant::now() + OFTEN;
                }
            }
        }
    }

    /// The command has ended: all is taken that it has asked for, and what there is to say of that is given.
    pub(super) fn finish(&mut self, asks: &ShellAsks) -> Vec<String> {
        let (names, cut) = self.names();
        for name in names {
            self.take_one(name, asks, true);
        }
        if cut {
            // How many of them are orders is known to nobody.
            asks.lose(1);
            self.note(format!(
                "the command left more than {MAX_NAMES} files of orders behind, of which the rest was not looked at"
            ));
        }
        std::mem::take(&mut self.notes)
    }

    /// Takes what is asked for by now, in the order of the names.
    fn take(&mut self, asks: &ShellAsks) {
        let (names, _) = self.names();
        for name in names {
            if !asks.has_room() {
                return;
            }
            self.take_one(name, asks, false);
        }
    }

    /// The names that are there, and whether there are more. Those that begin with a dot are somebody's own affair.
    fn names(&self) -> (Vec<Vec<u8>>, bool) {
        let mut names = Vec::new();
        let Ok(entries) = Dir::read_from(&self.orders) else { return (names, false) };
        for (count, entry) in entries.enumerate() {
            // A guest's file system may say anything here.
            let Ok(entry) = entry else { break };
            if count >= MAX_NAMES {
                names.sort();
                return (names, true);
            }
            let name = entry.file_name().to_bytes();
            if !name.starts_with(b".") && !self.stays.contains(name) {
                names.push(name.to_vec());
            }
        }
        names.sort();
        (names, false)
    }

    fn take_one(&mut self, name: Vec<u8>, asks: &ShellAsks, is_last: bool) {
        let found = self.look(&name);
        if found == Found::Begun && !is_last {
            return;
        }
        if found == Found::Gone {
            return;
        }
        // First, so that it is not carried out twice.
        let removed = remove(&self.orders, &name);
        if removed.is_err_and(|errno| errno != Errno::NOENT) {
            self.stays.insert(name.clone());
        }
        let named = is_answer_name(&name).then(|| String::from_utf8_lossy(&name).into_owned());
        let odd = match (named, found, removed) {
            (None, found, _) => {
                // Nobody can be told, and what was asked for will never come.
                if matches!(found, Found::Line(_) | Found::Begun) {
                    asks.lose(1);
                }
                format!("its name is not 1 to {MAX_ANSWER_NAME} letters, digits and \".\", \"_\", \"-\"")
            }
            (Some(name), Found::Line(line), Ok(())) => {
                if asks.ask(name.clone(), &line) == Taken::MuchLater {
                    self.put(&taken(&name), "");
                }
                return;
            }
            // Whoever has taken it away has not asked.
            (Some(_), Found::Line(_), Err(Errno::NOENT)) | (Some(_), Found::Gone, _) => return,
            (Some(_), Found::Line(_), Err(errno)) => format!("it cannot be taken away: {errno}"),
            (Some(name), Found::Begun, _) => {
                let why = "its line has no end";
                asks.refuse(name, why.to_owned());
                why.to_owned()
            }
            (Some(name), Found::Odd(why), _) => {
                asks.refuse(name, why.clone());
                why
            }
        };
        let name = crate::console::sanitize::sanitize_line(&name);
        self.note(format!("{name:?} in $BELLJAR_CTL_DIR is no order: {odd}"));
    }

    /// What is under a name.
    fn look(&self, name: &[u8]) -> Found {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.orders, name, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Found::Gone,
            Err(Errno::LOOP) => return Found::Odd("it is a link".to_owned()),
            Err(errno) => return Found::Odd(format!("it cannot be opened: {errno}")),
        };
        match rustix::fs::fstat(&file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) => return Found::Odd("it is no plain file".to_owned()),
            Err(errno) => return Found::Odd(format!("it cannot be looked at: {errno}")),
        }
        let mut text = [0; MAX_QUESTION + 1];
        let mut read = 0;
        while read < text.len() {
            match file.read_at(&mut text[read..], read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Found::Odd(format!("it cannot be read: {error}")),
            }
        }
        line_of(&text[..read])
    }

    /// Brings the answers.
    fn answer(&mut self, asks: &ShellAsks) {
        for (name, answer) in asks.take_answers() {
            self.put(&name, &answer.to_answer());
            let _ = rustix::fs::unlinkat(&self.answers, taken(&name), AtFlags::empty());
            self.written.push_back(name);
            if self.written.len() > MAX_ANSWERS
                && let Some(oldest) = self.written.pop_front()
                && !self.written.contains(&oldest)
            {
                let _ = rustix::fs::unlinkat(&self.answers, oldest, AtFlags::empty());
            }
        }
    }

    /// Puts a file there, whole. Where the guest keeps that from being done, it has no answer, and who waits for one has a limit.
    fn put(&self, name: &str, text: &str) {
        const NEW: &str = ".new";
        let _ = rustix::fs::unlinkat(&self.answers, NEW, AtFlags::empty());
        let made = create(&self.answers, NEW, Mode::from_raw_mode(0o644));
        if made.and_then(|file| file.write_all_at(text.as_bytes(), 0)).is_ok() {
            let _ = rustix::fs::renameat(&self.answers, NEW, &self.answers, name);
        }
    }

    fn note(&mut self, text: String) {
        /// Most that is said of one command.
        const MOST: usize = 10;
        if self.notes.len() < MOST && !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }
}

/// What shows that an order has been taken; no answer has such a name.
pub(super) fn taken(name: &str) -> String {
    format!(".taken-{name}")
}

/// What the beginning of a file is, of which as much was read as an order has at most, and a byte more.
pub(super) fn line_of_file(text: &[u8]) -> Result<Option<&[u8]>, String> {
    match text.iter().position(|byte| *byte == b'\n') {
        Some(end) if text[end + 1..].is_empty() => Ok(Some(&text[..end])),
        Some(_) => Err("it has more than one line".to_owned()),
        None if text.len() > MAX_QUESTION => Err(format!("it has more than {MAX_QUESTION} bytes")),
        None => Ok(None),
    }
}

fn line_of(text: &[u8]) -> Found {
    match line_of_file(text) {
        Ok(Some(line)) => Found::Line(line.to_vec()),
        Ok(None) => Found::Begun,
        Err(why) => Found::Odd(why),
    }
}

/// How a directory is opened: through no link.
fn open_directory(at: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

/// A new directory with this mode, whatever the file mode creation mask is.
fn make_directory(at: &OwnedFd, name: &str, mode: Mode) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(at, name, Mode::RWXU)?;
    let made = open_directory(at, name)?;
    rustix::fs::fchmod(&made, mode)?;
    Ok(made)
}

/// A new file with this mode, whatever the file mode creation mask is.
fn create(at: &OwnedFd, name: &str, mode: Mode) -> io::Result<std::fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchmod(&file, mode)?;
    Ok(file.into())
}

/// Takes a file away, or an empty directory.
fn remove(at: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use belljar_proto::message::{Outcome, Question};

    use super::*;

    fn files() -> (tempfile::TempDir, OrderFiles, ShellAsks, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let files = OrderFiles::make(dir.path()).unwrap().unwrap();
        let orders = PathBuf::from(files.places(&dir.path().to_string_lossy()).orders);
        let asks = ShellAsks::default();
        asks.begin(true);
        (dir, files, asks, orders)
    }

    fn asked(asks: &ShellAsks) -> Vec<Question> {
        asks.take_asks().asks.into_iter().map(|(_, question)| question).collect()
    }

    #[test]
    fn the_program_finds_a_disk_itself() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &[u8]| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for disk in ["vda", "sda", "sdb", "nvme0n1", "nvme0c0n1"] {
            fs::create_dir_all(dir.path().join(disk).join("device")).unwrap();
        }
        write("vda/serial", b"data0");
        write("sdb/device/vpd_pg80", b"\0\x80\0\x05data1");
        write("nvme0n1/device/serial", b"n0           \n");
        write("nvme0c0n1/device/serial", b"n0           \n");
        write("nvme0c0n1/hidden", b"1\n");
        write("dm-0/serial", b"data0");
        let program = PROGRAM.replace("/sys/block", dir.path().to_str().unwrap());
        let device = |name: &str| {
            let words = ["-c", &program, "belljar-ctl", "disk", name, "device"];
            let said = std::process::Command::new("sh").args(words).output().unwrap();
            (said.status.code(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
        };
        for (name, file) in [("data0", "vda"), ("data1", "sdb"), ("n0", "nvme0n1")] {
            assert_eq!(device(name), (Some(0), format!("/dev/{file}\n")));
        }
        let (code, said) = device("data2");
        assert!(code == Some(1) && said.contains("the guest has no disk \"data2\""), "{said}");
    }

    #[test]
    fn orders_are_taken_once_and_answered_under_their_name() {
        let (dir, mut files, asks, orders) = files();
        fs::write(orders.join("b"), "disk d0 error\n").unwrap();
        fs::write(orders.join("a"), "mark x\n").unwrap();
        fs::write(orders.join("c"), "reset again\n").unwrap();
        fs::write(orders.join(".d"), "mark hidden\n").unwrap();
        fs::write(orders.join("begun"), "mark not yet").unwrap();
        files.take(&asks);
        let questions = asks.take_asks().asks;
        assert_eq!(questions.len(), 3);
        assert_eq!(
            (&questions[0].1, &questions[1].1),
            (&Question::Mark("x".into()), &Question::Disk("d0 error".into()))
        );
        let answers = orders.with_file_name("answers");
        assert!(answers.join(".taken-c").exists() && !answers.join(".taken-a").exists());
        files.take(&asks);
        assert!(asked(&asks).is_empty());
        for (number, _) in questions {
            asks.answer(number, Outcome::Done(format!("number {number}")));
        }
        files.answer(&asks);
        assert_eq!(fs::read_to_string(answers.join("a")).unwrap(), "ok\nnumber 1\n");
        assert!(!answers.join(".taken-c").exists());
        fs::write(orders.join("begun"), "mark not yet\n").unwrap();
        files.take(&asks);
        assert_eq!(asked(&asks), [Question::Mark("not yet".into())]);
        assert!(files.finish(&asks).is_empty());
        drop(files);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_order_is_not_followed_and_is_told() {
        let (dir, mut files, asks, orders) = files();
        let secret = dir.path().join("secret");
        fs::write(&secret, "mark secret\n").unwrap();
        symlink(&secret, orders.join("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, orders.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::create_dir(orders.join("empty")).unwrap();
        fs::create_dir_all(orders.join("full/inner")).unwrap();
        fs::write(orders.join("long"), [b'x'; 5000]).unwrap();
        fs::write(orders.join("two"), "mark a\nmark b\n").unwrap();
        fs::write(orders.join("odd name"), "mark odd\n").unwrap();
        fs::write(orders.join("unended"), "mark y").unwrap();
        for _ in 0..3 {
            files.take(&asks);
        }
        let notes = files.finish(&asks);
        let crate::session::agent::Asks { asks: asked, lost } = asks.take_asks();
        assert!(asked.is_empty());
        assert_eq!((lost.orders, lost.marks), (1, 0), "what has an odd name is an order that nobody can be told of");
        for said in [
            "\"link\"",
            "it is a link",
            "no plain file",
            "more than 1024 bytes",
            "more than one line",
            "\"odd name\"",
            "has no end",
        ] {
            assert!(notes.iter().any(|note| note.contains(said)), "{said}: {notes:#?}");
        }
        files.answer(&asks);
        let answer = |name: &str| fs::read_to_string(orders.with_file_name("answers").join(name)).unwrap();
        assert_eq!(answer("link"), "error\nit is a link\n");
        assert!(answer("two").starts_with("error\n"));
        assert!(secret.exists());
    }

    #[test]
    fn a_guest_cannot_have_answers_written_elsewhere() {
        let (dir, mut files, asks, orders) = files();
        let victim = dir.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let answers = orders.with_file_name("answers");
        symlink(&victim, answers.join(".new")).unwrap();
        symlink(&victim, answers.join("a")).unwrap();
        fs::create_dir_all(answers.join("b/inner")).unwrap();
        for name in ["a", "b"] {
            fs::write(orders.join(name), "explode\n").unwrap();
        }
        files.take(&asks);
        files.answer(&asks);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert!(fs::read_to_string(answers.join("a")).unwrap().starts_with("error\n"));
        // In place of the directories themselves.
        fs::rename(&answers, dir.path().join("aside")).unwrap();
        symlink(dir.path(), &answers).unwrap();
        fs::write(orders.join("victim"), "explode\n").unwrap();
        files.take(&asks);
        files.answer(&asks);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        assert!(dir.path().join("aside/victim").exists());
    }

    #[test]
    fn a_flood_waits_and_what_is_lost_is_counted() {
        let (_dir, mut files, asks, orders) = files();
        for number in 0..300 {
            fs::write(orders.join(format!("n{number:04}")), "disk d error\n").unwrap();
        }
        files.take(&asks);
        assert_eq!(asks.take_asks().asks.len(), 256, "the rest waits");
        assert_eq!(fs::read_dir(&orders).unwrap().count(), 44);
        assert!(files.finish(&asks).is_empty());
        let rest = asks.take_asks();
        assert_eq!((rest.asks.len(), rest.lost.orders), (44, 0));
        for number in 0..MAX_NAMES + 10 {
            fs::write(orders.join(format!("m{number}")), "mark x\n").unwrap();
        }
        let notes = files.finish(&asks);
        assert!(
            asks.take_asks().lost.orders >= 1 && notes.iter().any(|note| note.contains("more than 4096")),
            "{notes:?}"
        );
        for number in 0..MAX_ANSWERS + 5 {
            asks.refuse(format!("a{number}"), "no".to_owned());
        }
        files.answer(&asks);
        assert_eq!(fs::read_dir(orders.with_file_name("answers")).unwrap().count(), MAX_ANSWERS);
    }

    #[test]
    fn the_program_asks_for_all_that_can_be_asked_for() {
        let known = PROGRAM.lines().find(|line| line.starts_with("reboot | ")).unwrap().trim_end_matches(") ;;");
        let known: Vec<&str> = known.split(" | ").collect();
        assert_eq!(known, belljar_proto::message::MACHINE_WORDS);
    }

    #[test]
    fn other_users_may_ask_and_may_not_list() {
        let (dir, _files, _asks, orders) = files();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let inner = orders.parent().unwrap();
        let top = inner.parent().unwrap();
        assert_eq!((top.parent().unwrap(), mode(top), mode(inner), mode(&orders)), (dir.path(), 0o711, 0o755, 0o777));
        assert_eq!((mode(&inner.join("answers")), mode(&inner.join("bin/belljar-ctl"))), (0o755, 0o755));
    }
}
