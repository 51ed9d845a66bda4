//! A command whose files are in a directory that both sides see.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use belljar_model::Exit;
use rustix::fs::{FileType, Mode, OFlags, inotify};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe::Receiver;

use super::{ConsoleSession, End, Exchange, Running, Signals, keeper_gone, pass_on, random_name, script, tell_end};
use crate::command::GuestCommand;
use crate::guest::Io;
use crate::session::agent::OutputSink;
use crate::{Cause, Lost};

/// Files are looked at this often although no event came: events of a directory may be lost.
const LOOK: Duration = Duration::from_millis(500);
/// After the code has come, how long the output may take to be all there.
const STRAGGLE: Duration = Duration::from_secs(30);
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Most bytes of standard input.
const STDIN_MAX: u64 = 1 << 30;

/// The directory of one command, on the host.
struct Place {
    path: PathBuf,
    dir: OwnedFd,
    outputs: [Output; 2],
}

/// A file that the guest writes and we read. We hold it from before the guest knew of it, so whatever the guest makes of its
/// name, we never follow it.
struct Output {
    file: std::fs::File,
    read: u64,
}

impl Place {
    fn make(host: &Path, name: &str) -> io::Result<Self> {
        let path = host.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        let output = |name| Ok::<_, io::Error>(Output { file: create(&dir, name)?, read: 0 });
        let outputs = [output("1")?, output("2")?];
        Ok(Place { path, dir, outputs })
    }

    /// Writes a file for the guest.
    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        create(&self.dir, name)?.write_all_at(bytes, 0)
    }

    /// The `code` file, if it is there and what it should be.
    fn code(&self, nonce: &str) -> io::Result<Option<End>> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, "code", flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(io::Error::other("the guest put something else in place of the exit code's file"));
        }
        let mut text = [0; script::CODE_MAX];
        let n = std::fs::File::from(file).read_at(&mut text, 0)?;
        Ok(script::read_code(&text[..n], nonce))
    }

    /// Whether the command has ended, and its output has not.
    fn is_over(&self) -> bool {
        rustix::fs::statat(&self.dir, "over", rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Passes on what the outputs have grown by; tells whether they had.
    async fn pass_on(&mut self, sink: &mut dyn OutputSink, chunk: &mut [u8]) -> Result<bool, Lost> {
        let mut grown = false;
        for (index, output) in self.outputs.iter_mut().enumerate() {
            let n = output.file.read_at(chunk, output.read).map_err(|e| reading(&e))?;
            if n > 0 {
                grown = true;
                output.read += n as u64;
                pass_on(sink, index == 1, &chunk[..n]).await?;
            }
        }
        Ok(grown)
    }
}

/// A new file in the directory of a command, wherever its name leads by now: something that an earlier command left in the guest may be at
/// work there.
fn create(dir: &OwnedFd, name: &str) -> io::Result<std::fs::File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn reading(e: &io::Error) -> Lost {
    Cause::Output(format!("reading the command's output from the exchange directory failed: {e}")).into()
}

/// Wakes when something happens in a directory, or after [`LOOK`].
struct Watch(Option<Receiver>);

impl Watch {
    fn new(path: &Path) -> Self {
        let make = || -> io::Result<Receiver> {
            let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVED_TO)?;
            // Not a pipe, but read like one.
            Receiver::from_owned_fd_unchecked(fd)
        };
        // Without one (a host may have run out of them) looking now and then has to do.
        Watch(make().ok())
    }

    async fn woken(&mut self) {
        let mut events = [0; 4096];
        let event = async {
            match &mut self.0 {
                Some(receiver) => drop(receiver.read(&mut events).await),
                None => std::future::pending().await,
            }
        };
        let _ = tokio::time::timeout(LOOK, event).await;
    }
}

impl ConsoleSession {
    pub(super) async fn exec_with_exchange(
        &mut self,
        exchange: &Exchange,
        command: &GuestCommand,
        io: &mut Io<'_>,
    ) -> Result<Exit, Lost> {
        let nonce = random_name()?;
        let name = format!(".belljar-{}", random_name()?);
        let guest_dir = format!("{}/{name}", exchange.guest);
        let attempt = format!("make files for the command in {}", exchange.host.display());
        let making = |e: io::Error| Cause::host_file(&attempt, &e, "is the disk full?");
        // From here on it is removed with whatever is running.
        let running = Running {
            guest_dir: guest_dir.clone(),
            orders_dir: None,
            host_dir: Some(exchange.host.join(&name)),
            started: false,
        };
        let keeper = script::keeper(&guest_dir, command, self.layer.as_deref(), self.late_quiet);
        let text = script::command(command, self.places.as_ref());
        let running = self.running.insert(running);
        let mut place = Place::make(&exchange.host, &name).map_err(making)?;
        place.put("cmd", &text).map_err(making)?;
        place.put("keep", keeper.as_ref()).map_err(making)?;
        spool(io.stdin.take(), &place.dir).await?;

        let mut watch = Watch::new(&place.path);
        running.started = true;
        let started = self.line_run(script::start(&guest_dir, &nonce)).await?;
        if started.code != 0 {
            self.running = None;
            return Err(
                Cause::Shell(format!("the guest's shell could not start the command: {}", started.text())).into()
            );
        }
        let end = self.follow(&mut place, &mut watch, &guest_dir, &nonce, io).await?;
        self.running = None;
        self.drain(&mut place, end, io.sink).await?;
        tell_end(io.sink, end);
        end.outcome(command)
    }

    /// Passes the output on until the code comes.
    async fn follow(
        &mut self,
        place: &mut Place,
        watch: &mut Watch,
        guest_dir: &str,
        nonce: &str,
        io: &mut Io<'_>,
    ) -> Result<End, Lost> {
        let mut chunk = vec![0; CHUNK];
        let heartbeat = self.heartbeat();
        let mut last_beat = tokio::time::Instant::now();
        let mut dead_before = false;
        let mut over = false;
        let mut signals = Signals::default();
        loop {
            let grown = place.pass_on(io.sink, &mut chunk).await?;
            if let Some(end) = place.code(nonce).map_err(|e| reading(&e))? {
                return Ok(end);
            }
            if !over && place.is_over() {
                over = true;
                io.sink.lingers();
            }
            if grown {
                continue;
            }
            tokio::select! {
                biased;
                () = signals.hear(&mut io.control) => {}
                () = self.asks.attention() => {}
                () = watch.woken() => {}
            }
            self.attend(&mut signals).await?;
            self.send_signals(guest_dir, &mut signals).await?;
            if dead_before || last_beat.elapsed() >= heartbeat {
                // Dead twice, with a look at the file in between: its end was not just seen late.
                let alive = self.is_alive(guest_dir).await?;
                if !alive && dead_before {
                    return Err(keeper_gone());
                }
                dead_before = !alive;
                last_beat = tokio::time::Instant::now();
            }
        }
    }

    /// Passes on the rest of the output; the code came after it was written.
    async fn drain(&mut self, place: &mut Place, end: End, sink: &mut dyn OutputSink) -> Result<(), Lost> {
        let mut chunk = vec![0; CHUNK];
        let deadline = tokio::time::Instant::now() + STRAGGLE;
        loop {
            while place.pass_on(sink, &mut chunk).await? {}
            let have = (place.outputs[0].read, place.outputs[1].read);
            let Some(want) = end.sizes else { return Ok(()) };
            if have.0 >= want.0 && have.1 >= want.1 {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Lost::from(Cause::Output(format!(
                    "output of the command was lost between guest and host: {} of {} bytes of standard output and {} of {} of \
                     standard error came through the exchange directory",
                    have.0, want.0, have.1, want.1
                )))
                .with_advice(format!("the command itself ended: {}", end.exit)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Writes all of standard input to a file.
async fn spool(stdin: Option<&mut (dyn AsyncRead + Unpin + Send)>, dir: &OwnedFd) -> Result<(), Lost> {
    let saving = |e: &io::Error| Cause::host_file("keep standard input for the guest", e, "is the disk full?");
    let file = create(dir, "0").map_err(|e| saving(&e))?;
    let Some(stdin) = stdin else { return Ok(()) };
    let mut chunk = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let n =
            stdin.read(&mut chunk).await.map_err(|e| Cause::Stdin(format!("reading standard input failed: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        file.write_all_at(&chunk[..n], written).map_err(|e| saving(&e))?;
        written += n as u64;
        if written > STDIN_MAX {
            let why =
                "more than 1 GiB of standard input for a command on the console; put it in a file in the workspace";
            return Err(Cause::Stdin(why.into()).into());
        }
    }
}
