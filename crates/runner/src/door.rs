//! Where people ask for something to happen to the guests of a run that goes on: a socket in the run's directory, for which `belljar ctl` has the
//! other end. The directory is the user's alone.
//!
//! One line is asked and one answer given: `UNIT<TAB>ORDER`, then `ok` or `error` in the first line and what there is to say in the others.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use belljar_machine::orders::Orders;
use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinHandle,
};

/// The socket's name in the run's directory, where nothing of a guest's has that name (`belljar_machine::plan`, `CONTROL_DIR`).
pub const SOCKET: &str = "orders";
/// The longest line that is asked, in bytes.
const MAX_LINE: u64 = 4096;
/// The longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// How long whoever has come may take to ask.
const ASKING: Duration = Duration::from_secs(10);
/// How long an order may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How many may ask at the same time.
const MOST: usize = 64;

/// The commands that run, by their names.
type Inside = Arc<Mutex<BTreeMap<String, Orders>>>;

/// The door of a run. It closes when this is dropped.
#[derive(Debug)]
pub struct Door {
    inside: Inside,
    listening: JoinHandle<()>,
    path: PathBuf,
}

/// A command that can be asked for by its name as long as this lives.
#[derive(Debug)]
pub(crate) struct Entered {
    inside: Inside,
    name: String,
}

fn now(inside: &Inside) -> MutexGuard<'_, BTreeMap<String, Orders>> {
    // Nothing is half-done while it is held.
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket's name by the directory's descriptor: an address has room for 108 bytes (unix(7)).
fn address(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir, path))
}

impl Door {
    /// Opens the door of the run with this directory. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If there can be none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let (_dir, address) = address(dir)?;
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let inside = Inside::default();
        let listening = tokio::spawn(listen(listener, inside.clone()));
        Ok(Self { inside, listening, path: dir.join(SOCKET) })
    }

    /// Lets people ask for a command by this name, until what is given is dropped. Of two of the same name the second has a number, too.
    pub(crate) fn enter(&self, name: &str, orders: Orders) -> Entered {
        let mut inside = now(&self.inside);
        let further = (2..).map(|number: u32| format!("{name}#{number}"));
        let name =
            std::iter::once(name.to_owned()).chain(further).find(|name| !inside.contains_key(name)).unwrap_or_default();
        inside.insert(name.clone(), orders);
        Entered { inside: self.inside.clone(), name }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
        // It may have gone with the directory.
        drop(fs_err::remove_file(&self.path));
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        now(&self.inside).remove(&self.name);
    }
}

async fn listen(listener: UnixListener, inside: Inside) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let inside = inside.clone();
                tokio::spawn(async move {
                    // Who has gone hears nothing.
                    drop(serve(stream, &inside).await);
                    drop(place);
                });
            }
            // Such as too many open files.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: UnixStream, inside: &Inside) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(MAX_LINE));
    let asked = tokio::time::timeout(ASKING, read.read_line(&mut line)).await;
    let said = match asked {
        Ok(Ok(_)) if line.ends_with('\n') => answer(line.trim_end_matches('\n'), inside).await,
        _ => Err(format!("a line of at most {MAX_LINE} bytes was expected")),
    };
    let (word, said) = match &said {
        Ok(said) => ("ok", said),
        Err(why) => ("error", why),
    };
    write.write_all(format!("{word}\n{said}").as_bytes()).await?;
    write.shutdown().await
}

async fn answer(line: &str, inside: &Inside) -> Result<String, String> {
    let (name, order) = line.split_once('\t').ok_or("the name of a unit and an order were expected")?;
    let orders = find(name, &now(inside))?;
    match tokio::time::timeout(LIMIT, orders.give(order)).await {
        Ok(said) => said,
        Err(_) => Err(format!("there was no answer within {} s; it may still be done", LIMIT.as_secs())),
    }
}

/// The command of this name; without one, the only one that there is.
fn find(name: &str, inside: &BTreeMap<String, Orders>) -> Result<Orders, String> {
    let names = || inside.keys().map(String::as_str).filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ");
    match (inside.get(name), inside.len()) {
        (Some(orders), _) => Ok(orders.clone()),
        (None, 0) => Err("no command runs now whose machine could be told something".to_owned()),
        (None, 1) if name.is_empty() => inside.values().next().cloned().ok_or_else(String::new),
        (None, _) if name.is_empty() => Err(format!("several run now; name one of them: {}", names())),
        (None, _) => Err(format!("nothing of the name {name:?} runs now; there are {}", names())),
    }
}

/// Whether somebody answers at the door of the run with this directory.
#[must_use]
pub fn is_open(dir: &Path) -> bool {
    address(dir).and_then(|(_dir, address)| StdStream::connect(address)).is_ok()
}

/// Asks at the door of the run with this directory; gives what was said, or why it was refused.
///
/// # Errors
/// When nobody answers there.
pub fn ask(dir: &Path, unit: &str, order: &str) -> io::Result<Result<String, String>> {
    if [unit, order].iter().any(|text| text.contains(['\n', '\t'])) {
        return Ok(Err("an order has no line ends or tabs in it".to_owned()));
    }
    let (_dir, address) = address(dir)?;
    let mut stream = StdStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT + ASKING))?;
    stream.set_write_timeout(Some(ASKING))?;
    stream.write_all(format!("{unit}\t{order}\n").as_bytes())?;
    let mut said = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut said)?;
    match said.split_once('\n') {
        Some(("ok", said)) => Ok(Ok(said.to_owned())),
        Some(("error", why)) => Ok(Err(why.to_owned())),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(dir: &Path, unit: &'static str, order: &'static str) -> Result<String, String> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || ask(&dir, unit, order).unwrap()).await.unwrap()
    }

    #[test]
    fn the_socket_is_in_nobodys_way() {
        use crate::run_dir::{EVENTS, OUT};
        let others = [belljar_machine::plan::CONTROL_DIR, EVENTS, OUT, "guests", "lock", "attempts"];
        assert!(!others.contains(&SOCKET));
    }

    #[tokio::test]
    async fn who_is_inside_can_be_asked_for() {
        let deep = tempfile::tempdir().unwrap();
        let dir = deep.path().join("x".repeat(200));
        fs_err::create_dir(&dir).unwrap();
        ask(&dir, "", "nmi").unwrap_err();
        let door = Door::open(&dir).unwrap();
        assert!(asked(&dir, "", "nmi").await.unwrap_err().contains("no command runs"));
        let (one, two) =
            (Orders::for_tests(|text| Ok(format!("one: {text}"))), Orders::for_tests(|_| Err("no".to_owned())));
        let first = door.enter("s/a@g", one);
        assert_eq!(asked(&dir, "", "disk d hang").await, Ok("one: disk d hang".to_owned()));
        let second = door.enter("s/a@g", two);
        assert_eq!(asked(&dir, "s/a@g#2", "nmi").await, Err("no".to_owned()));
        assert!(asked(&dir, "", "nmi").await.unwrap_err().contains("several run now"));
        assert!(asked(&dir, "x", "nmi").await.unwrap_err().contains("there are s/a@g, s/a@g#2"));
        assert!(asked(&dir, "x", "a\nb").await.unwrap_err().contains("line ends"));
        drop(first);
        assert!(asked(&dir, "s/a@g", "nmi").await.is_err());
        drop((second, door));
        ask(&dir, "", "nmi").unwrap_err();
        assert!(!dir.join(SOCKET).exists());
    }
}
