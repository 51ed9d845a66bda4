//! `belljar-ctl`: this program under another name, by which a test asks for something and hears what came of it.
//!
//! It is where commands find it by `PATH`. `/run` is often mounted `noexec`; then the file is elsewhere, and what is in `PATH` is a link to it.
//!
//! Under further names it does what tests that were written for other harnesses look for: `autopkgtest-reboot` and `autopkgtest-reboot-prepare`
//! in `/tmp` (autopkgtest's `doc/README.package-tests.rst`), and `tmt-reboot` (tmt's specification, `tests/restart` and "Reboot during test").

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use belljar_proto::message::{MAX_QUESTION, Question};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;

use super::{PATH, VARIABLE, answers, make_directory};
use crate::{kexec, serve, soft_reboot, text};

/// The directory that is in `PATH`.
pub(crate) const DIRECTORY: &str = "/run/belljar/bin";
/// What the program is called.
pub(crate) const NAME: &str = "belljar-ctl";
/// Where the file may be if it cannot be run where it is to be found.
const ELSEWHERE: &[&str] = &["/dev/shm/belljar", "/tmp/belljar", "/var/tmp/belljar"];
/// How long an answer is waited for: a disk that loses its power may have much to put in order.
const LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked for at first, and how often at last.
const OFTEN: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_millis(20);

/// The other names, where each is to be found.
const NAMES: [(&str, &str); 3] =
    [("tmt-reboot", DIRECTORY), ("autopkgtest-reboot", "/tmp"), ("autopkgtest-reboot-prepare", "/tmp")];
/// How long the end of the machine is waited for by who has asked for it, once it is known to be asked.
const END: Duration = Duration::from_secs(3600);

const USAGE: &str = "usage: belljar-ctl mark TEXT | disk NAME ORDER | reboot [MARK] | reset [MARK] | power-cut [MARK] [strict|seed=N]
                 | power-button [MARK] | reboot-prepare [MARK] | soft-reboot [MARK]
                 | kexec [MARK] [loaded | kernel=FILE initrd=FILE append=WORDS] | nmi | link up|down | plug DEVICE | unplug DEVICE [surprise]
                 | snapshot NAME MARK | return NAME MARK
                 | wakeup TIME | clock +TIME|-TIME|rate=N
                 | balloon SIZE|full | screenshot NAME
It asks Belljar for something and prints what came of it. The exit code is 0 if it was done, 1 if it was refused, 2 if it makes no sense, and
3 if there was no answer, or it could not be written. The orders are in the manual, under \"Breaking things\".";

/// Puts the program where commands find it, and gives whether it is there. A guest in which that cannot be done has only the pipe.
pub(super) fn install() -> bool {
    let program = Path::new(DIRECTORY).join(NAME);
    if fs::metadata(&program).is_ok_and(|file| file.is_file()) {
        return true;
    }
    if make_directory(Path::new(DIRECTORY)).is_err() {
        return false;
    }
    if may_be_run(Path::new(DIRECTORY)) {
        return copy(&program).is_ok();
    }
    ELSEWHERE.iter().map(Path::new).any(|directory| {
        let file = directory.join(NAME);
        let there = make_directory(directory).is_ok() && may_be_run(directory) && copy(&file).is_ok();
        let _ = fs::remove_file(&program);
        there && std::os::unix::fs::symlink(&file, &program).is_ok()
    })
}

/// Puts the other names there, as links. What has such a name already stays.
pub(super) fn install_names() {
    let program = Path::new(DIRECTORY).join(NAME);
    for (name, directory) in NAMES {
        let _ = std::os::unix::fs::symlink(&program, Path::new(directory).join(name));
    }
}

/// What is to be done, or seen, here before somebody is asked for what these words are: the kernel that they would start is loaded. Gives their line then.
///
/// # Errors
/// An exit code, and why.
fn before(name: &[u8], words: &[&[u8]]) -> Result<Option<Vec<u8>>, (c_int, String)> {
    let order = words.split_first().filter(|_| name == NAME.as_bytes());
    if order.is_some_and(|(order, _)| *order == b"soft-reboot") || (name == b"tmt-reboot" && words == [b"-s"]) {
        soft_reboot::check().map_err(|why| (1, format!("soft-reboot: {why}")))?;
    }
    let Some((&b"kexec", words)) = order else { return Ok(None) };
    let asked = kexec::Asked::read(words).map_err(|why| (2, why))?;
    if asked.wanted.is_none() && !kexec::is_loaded() {
        return Err((
            1,
            "kexec: no kernel is loaded that could be started; leave out loaded, or load one before".to_owned(),
        ));
    }
    // The agent loads that for whoever may not.
    if asked.wanted == Some(kexec::Wanted::default()) && !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if let Some(wanted) = &asked.wanted {
        kexec::load(wanted).map_err(|why| (1, format!("kexec: {why}")))?;
    }
    Ok(Some(asked.line()))
}

/// The line by which what this name and its words ask for is asked for; or why they ask for nothing.
fn line_of(name: &[u8], words: &[&[u8]]) -> Result<Vec<u8>, String> {
    let with_mark = |order: &str| match words {
        [mark] => Ok([order.as_bytes(), b" ", mark].concat()),
        _ => Err("it takes one word, the mark with which the test is started again".to_owned()),
    };
    match name {
        b"autopkgtest-reboot" => with_mark("reboot"),
        b"autopkgtest-reboot-prepare" => with_mark("reboot-prepare"),
        b"tmt-reboot" => match words {
            // Its limit is Belljar's affair.
            [] | [b"-t", _] => Ok(b"reboot".to_vec()),
            [b"-s"] => Ok(b"soft-reboot".to_vec()),
            _ => Err("of tmt-reboot's options there are -t and -s here; for another kind of reboot take belljar-ctl"
                .to_owned()),
        },
        _ => Ok(words.join(&b' ')),
    }
}

fn may_be_run(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|there| !there.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

fn copy(to: &Path) -> io::Result<()> {
    let new = to.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = File::options().write(true).create_new(true).mode(0o755).open(&new)?;
    let copied = File::open("/proc/self/exe").and_then(|mut program| io::copy(&mut program, &mut file));
    drop(file);
    let done = copied.and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o755)));
    done.and_then(|()| fs::rename(&new, to)).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Whether this program was started under one of the names, and which.
pub(crate) fn name_of(program: &[u8]) -> Option<&[u8]> {
    let name = program.rsplit(|byte| *byte == b'/').next()?;
    let known = name == NAME.as_bytes() || NAMES.iter().any(|(other, _)| name == other.as_bytes());
    known.then_some(name)
}

/// Asks; gives the exit code.
pub(crate) fn run(name: &[u8], words: &[&[u8]]) -> c_int {
    let loaded = match before(name, words) {
        Ok(loaded) => loaded,
        Err((code, why)) => {
            text::say(&why);
            return code;
        }
    };
    let loads = loaded.is_some() && !words.contains(&b"loaded".as_slice());
    let line = match loaded.map_or_else(|| line_of(name, words), Ok) {
        Ok(line) => line,
        Err(why) => {
            text::say(&format!("{}: {why}", text::lossy(name)));
            return 2;
        }
    };
    match words.first().filter(|_| name == NAME.as_bytes()) {
        Some(&(b"-h" | b"--help" | b"help")) => {
            let printed = print(USAGE.as_bytes()).and_then(|()| print(b"\n"));
            return if printed.is_ok() { 0 } else { 3 };
        }
        None if name == NAME.as_bytes() => {
            text::say(USAGE);
            return 2;
        }
        _ => {}
    }
    let limit = match super::question(&line) {
        Ok(Question::Machine(_)) => END,
        Ok(_) => LIMIT,
        Err(why) => {
            text::say(&format!("{:?}: {why}\n{USAGE}", text::lossy(&line)));
            return 2;
        }
    };
    serve::need_proc();
    let pipe = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PATH), PathBuf::from);
    match ask(&pipe, &line, limit) {
        Ok(Ok(said)) => match print(said.as_bytes()) {
            Ok(()) => 0,
            Err(errno) => {
                text::say(&format!("it was done, but what there is to say cannot be written: {}", text::errno(errno)));
                3
            }
        },
        Ok(Err(why)) => {
            if loads {
                kexec::unload();
            }
            text::say(why.trim_end());
            1
        }
        Err(why) => {
            text::say(&why);
            3
        }
    }
}

/// Asks; gives what was said, or why it was refused. An error is that nothing is known.
fn ask(pipe: &Path, line: &[u8], limit: Duration) -> Result<Result<String, String>, String> {
    let name = format!("ctl-{}-{}", std::process::id(), now());
    // First it ends what somebody may have left unended in the pipe.
    let whole = [b"\n>", name.as_bytes(), b" ", line, b"\n"].concat();
    if whole.len() > MAX_QUESTION || line.contains(&b'\n') {
        return Ok(Err(format!(
            "a line of {} bytes is too long, or has a line's end in it; {MAX_QUESTION} bytes are the limit",
            whole.len()
        )));
    }
    let shown = pipe.display();
    let opened = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe);
    let mut opened = opened.map_err(|error| {
        format!("cannot ask at {shown}: {}; is this a guest of Belljar's, with its agent?", text::io(&error))
    })?;
    let begun = Instant::now();
    let mut pause = OFTEN;
    let mut asked = false;
    let (answer, taken) = (answers::directory(pipe).join(&name), answers::taken(pipe, &name));
    let mut is_taken = false;
    let limit = loop {
        is_taken = is_taken || taken.exists();
        let limit = if is_taken { limit } else { limit.min(LIMIT) };
        if begun.elapsed() >= limit {
            break limit;
        }
        if !asked {
            match opened.write(&whole) {
                // Up to PIPE_BUF bytes are written as a whole or not at all (pipe(7)).
                Ok(_) => asked = true,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(format!("cannot ask at {shown}: {}", text::io(&error))),
            }
        }
        if let Ok(said) = fs::read_to_string(&answer) {
            return Ok(match said.split_once('\n') {
                Some(("ok", said)) => Ok(said.to_owned()),
                Some((_, why)) => Err(why.to_owned()),
                None => Err(said),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(SELDOM);
    };
    Err(format!("there was no answer within {} s; it may have been done", limit.as_secs()))
}

/// A number that no other question of this process's number had.
fn now() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)).as_nanos()
}

fn print(mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_by_its_name() {
        assert_eq!(name_of(b"belljar-ctl"), Some(&b"belljar-ctl"[..]));
        assert_eq!(name_of(b"/run/belljar/bin/belljar-ctl"), Some(&b"belljar-ctl"[..]));
        assert_eq!(name_of(b"/tmp/autopkgtest-reboot"), Some(&b"autopkgtest-reboot"[..]));
        assert_eq!((name_of(b"belljar-agent"), name_of(b"/belljar-ctl/agent")), (None, None));
    }

    #[test]
    fn the_names_of_other_harnesses_ask_for_the_same() {
        let line = |name: &str, words: &[&[u8]]| line_of(name.as_bytes(), words).map(|line| text::lossy(&line));
        assert_eq!(line("belljar-ctl", &[b"mark", b"a b"]), Ok("mark a b".into()));
        assert_eq!(line("autopkgtest-reboot", &[b"here"]), Ok("reboot here".into()));
        assert_eq!(line("autopkgtest-reboot-prepare", &[b"here"]), Ok("reboot-prepare here".into()));
        assert_eq!(
            (line("tmt-reboot", &[]), line("tmt-reboot", &[b"-t", b"600"])),
            (Ok("reboot".into()), Ok("reboot".into()))
        );
        assert!(line("autopkgtest-reboot", &[]).unwrap_err().contains("one word"));
        assert!(line("tmt-reboot", &[b"-c", b"kexec"]).unwrap_err().contains("belljar-ctl"));
    }

    #[test]
    fn what_makes_no_sense_is_not_asked() {
        assert_eq!(
            ["", "explode", "mark", "--help"]
                .map(|word| run(NAME.as_bytes(), &[word.as_bytes()][usize::from(word.is_empty())..])),
            [2, 2, 2, 0]
        );
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("control");
        assert!(ask(&pipe, b"mark x", LIMIT).unwrap_err().contains("ENOENT"));
        assert!(ask(&pipe, &[b'x'; MAX_QUESTION], LIMIT).unwrap().unwrap_err().contains("too long"));
        assert!(ask(&pipe, b"mark x\ndisk y", LIMIT).unwrap().unwrap_err().contains("line's end"));
    }

    #[test]
    fn only_a_directory_of_our_own_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bin");
        make_directory(&path).unwrap();
        make_directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        make_directory(&path).unwrap_err();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        make_directory(&link).unwrap_err();
        let program = dir.path().join(NAME);
        copy(&program).unwrap();
        assert!(fs::metadata(&program).unwrap().len() > 0);
    }
}
