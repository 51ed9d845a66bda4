//! The bytes of an image that is not raw, from QEMU's own `qemu-nbd`.
//!
//! The connection is made before the program starts: the listening socket has a name only for a moment, in a directory of our own, and is handed over
//! (`LISTEN_FDS`, as to a service of systemd). The program serves one client and then ends, so it ends with the connection, whatever becomes of Belljar.
//! Every file of the image's chain is named to it as it was looked at, so that no name in an image is followed.
//!
//! Source: the protocol's `doc/proto.md`: the fixed newstyle handshake, `NBD_OPT_GO`, simple replies.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use belljar_image::disk::DiskImage;
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, Mode, OFlags};

use crate::disk::ReadError;

/// As a service of systemd finds its first socket.
const SOCKET: i32 = 3;
/// Longest text of the program's that is repeated.
const MAX_SAID: u64 = 64 << 10;
/// How long it may take to say why it ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
const FIXED_NEWSTYLE: u32 = 1;
const OPT_GO: u32 = 7;
const OPT_REPLY: u64 = 0x0003_e889_0455_65a9;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const CMD_READ: u16 = 0;

/// A connection to a server of one image.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    child: Child,
    errors: File,
    program: String,
    size: u64,
    cookie: u64,
}

impl Client {
    pub(crate) fn start(program: &Path, image: &DiskImage, time: Duration) -> Result<Self, ReadError> {
        let name = program.display().to_string();
        if !crate::is_program(program) {
            return Err(ReadError::NoServer { program: name });
        }
        let (listener, stream) = connected()?;
        let errors: File =
            rustix::fs::memfd_create("qemu-nbd errors", MemfdFlags::CLOEXEC).map_err(io::Error::from)?.into();
        let node = image.node();
        let mut command = Command::new("/bin/sh");
        // The program takes the socket only if the variable has its own process id.
        command.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec \"$@\"", "sh"]);
        command.arg(program).args(["--read-only", &format!("json:{node}")]);
        command.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors.try_clone()?);
        command.fd_mappings(vec![FdMapping { parent_fd: listener, child_fd: SOCKET }]).map_err(io::Error::other)?;
        let child = command.spawn()?;
        // Its copy of the socket goes with the command.
        drop(command);
        let mut client = Self { stream, child, errors, program: name, size: 0, cookie: 0 };
        match client.shake_hands(time) {
            Ok(size) => {
                client.size = size;
                Ok(client)
            }
            Err(error) => Err(client.explain(&error)),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn read_at(&mut self, offset: u64, buffer: &mut [u8], time: Duration) -> Result<(), ReadError> {
        self.ask(offset, buffer, time).map_err(|error| self.explain(&error))
    }

    fn ask(&mut self, offset: u64, buffer: &mut [u8], time: Duration) -> io::Result<()> {
        self.cookie += 1;
        let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST.to_be_bytes());
        request.extend([0; 2]);
        request.extend(CMD_READ.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        let mut wire = Timed::new(&self.stream, time);
        wire.write_all(&request)?;
        let (magic, error, cookie) = (wire.u32()?, wire.u32()?, wire.u64()?);
        if magic != REPLY || cookie != self.cookie {
            return Err(io::Error::other("its answer is not one to the question"));
        }
        match i32::try_from(error) {
            Ok(0) => wire.read_exact(buffer),
            Ok(code) => Err(io::Error::from_raw_os_error(code)),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The size of the disk.
    fn shake_hands(&mut self, time: Duration) -> io::Result<u64> {
        let mut wire = Timed::new(&self.stream, time);
        let mut greeting = [0; 16];
        wire.read_exact(&mut greeting)?;
        if &greeting != GREETING {
            return Err(io::Error::other("it speaks another protocol"));
        }
        wire.read_exact(&mut [0; 2])?;
        let mut words = FIXED_NEWSTYLE.to_be_bytes().to_vec();
        words.extend(IHAVEOPT);
        words.extend(OPT_GO.to_be_bytes());
        words.extend(6_u32.to_be_bytes()); // what follows
        words.extend([0; 4 + 2]); // the export without a name; no further question
        wire.write_all(&words)?;
        let mut size = None;
        loop {
            if (wire.u64()?, wire.u32()?) != (OPT_REPLY, OPT_GO) {
                return Err(io::Error::other("its answer is not one to the question"));
            }
            let (kind, length) = (wire.u32()?, wire.u32()?);
            if length > 64 << 10 {
                return Err(io::Error::other("its answer is too long"));
            }
            let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            wire.read_exact(&mut data)?;
            match kind {
                REP_ACK => return size.ok_or_else(|| io::Error::other("it does not say how large the disk is")),
                // NBD_INFO_EXPORT, size, flags.
                REP_INFO if data.starts_with(&[0, 0]) => {
                    size = data.get(2..10).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
                }
                REP_INFO => {}
                _ => return Err(io::Error::other(String::from_utf8_lossy(&data).into_owned())),
            }
        }
    }

    /// With the program's own words, if it has ended.
    fn explain(&mut self, error: &io::Error) -> ReadError {
        let began = Instant::now();
        let closed = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        );
        let mut ended = matches!(self.child.try_wait(), Ok(Some(_)));
        while closed && !ended && began.elapsed() < LAST_WORDS {
            std::thread::sleep(Duration::from_millis(5));
            ended = matches!(self.child.try_wait(), Ok(Some(_)));
        }
        let mut said = String::new();
        let words = self.errors.rewind().and_then(|()| (&self.errors).take(MAX_SAID).read_to_string(&mut said));
        let said = match words {
            Ok(_) if !said.trim().is_empty() => {
                let lines: Vec<_> = said.lines().map(|line| line.trim_start_matches("qemu-nbd: ").trim()).collect();
                lines[lines.len().saturating_sub(4)..].join("; ")
            }
            _ if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                "it did not answer in time".into()
            }
            _ => error.to_string(),
        };
        ReadError::Server { program: self.program.clone(), said }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It only reads; there is nothing for it to finish.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A socket that listens, and a connection that waits in it. Nobody else can connect: its name is gone again.
fn connected() -> io::Result<(OwnedFd, UnixStream)> {
    let dir = tempfile::tempdir()?;
    // However long the directory's name is: a socket's has 107 bytes at most.
    let handle = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/s", handle.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    dir.close()?;
    Ok((listener.into(), stream))
}

/// A stream on which all of a message has to pass in a time.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream, time: Duration) -> Self {
        Self { stream, deadline: Instant::now() + time }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        (&mut &*self.stream).write_all(bytes)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match (&mut &*self.stream).read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => buffer = &mut std::mem::take(&mut buffer)[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}
