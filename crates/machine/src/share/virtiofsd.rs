//! The program that serves shares over virtiofs: `virtiofsd`, a process for each share, behind QEMU's device `vhost-user-fs`.
//!
//! There are two programs of that name: one in C, part of QEMU up to 7.2, and one in Rust. Which one is there is asked of itself. Both take a socket on
//! which they wait for QEMU: it has a name for as long as it takes to connect to it, in the guest's own directory.
//!
//! It has the user's rights and no more: as root it confines itself to the directory (`chroot(2)`) with the capabilities that QEMU has left; the one in C, which can do nothing else, does so
//! for other users in a user namespace; the one in Rust is confined by its own list of system calls alone. In each case it has the shim's filters: what it makes are plain files of
//! the user, and of a share that is read nothing can be changed. Protocol: QEMU's `docs/interop/vhost-user.rst`.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use belljar_share_fuse::Use;
use rustix::process::geteuid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::UnboundedSender,
};

use crate::{
    beside::{Beside, Noted},
    companion::{Companion, of_line},
    host::HostContext,
    qemu::{
        probe::{answer, look_up},
        sandbox::Server,
    },
    share,
};

/// The program.
const PROGRAM: &str = "virtiofsd";
/// Where distributions keep it, since nobody calls it by hand.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"];
/// Its socket while QEMU's end of the line is made, in the guest's directory.
const SOCKET: &str = "virtiofsd.sock";
/// The numbers under which it has the socket and the directory.
const LISTENER: i32 = 3;
const DIRECTORY: i32 = 4;
/// What keeps the directory as it is seen.
const VIEW: i32 = 5;
/// `VHOST_USER_GET_FEATURES`, which changes nothing: the request, version 1, no payload.
const ASK: [u32; 3] = [1, 1, 0];
/// The answer: the same request, as a reply, with 8 bytes.
const ANSWER: [u32; 3] = [1, 5, 8];
/// Capabilities that it is not to ask for, since they make more than plain files of the user, and the filter does without them.
const WITHOUT: &str = "-chown:-fsetid:-setgid:-setuid:-mknod:-setfcap";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoVirtiofsd {
    /// It is not there.
    #[error(
        "shares over virtiofs are served by {PROGRAM}, which is not in PATH, nor {}; install the package virtiofsd (Debian 12: qemu-system-common), or leave --share at auto",
        PLACES.join(" or ")
    )]
    Missing,
    /// It cannot be asked.
    #[error("cannot ask {} for its options: {source}; reinstall its package, or leave --share at auto", path.display())]
    Ask {
        /// The program.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It is another program, or one that is too old.
    #[error("{} is no {PROGRAM} that Belljar knows: it has no option {lacks}; install a later one (1.5 or later), or leave --share at auto", path.display())]
    Strange {
        /// The program.
        path: PathBuf,
        /// What it lacks.
        lacks: &'static str,
    },
}

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Make {
    /// QEMU's own, in C.
    C,
    /// The later one, in Rust; whether it tells of mounts in the directory unless it is not to.
    Rust {
        /// Whether it has an option not to.
        announces: bool,
    },
}

/// What serves a guest's shares.
#[derive(Clone, Debug)]
pub(crate) struct Virtiofsd {
    program: PathBuf,
    make: Make,
}

impl Virtiofsd {
    /// Finds it, in `path` (the value of `PATH`) or where distributions keep it.
    pub(crate) fn find(path: Option<&OsStr>) -> Result<Self, NoVirtiofsd> {
        let places = PLACES.iter().find_map(|place| look_up(Path::new(place), None));
        let program = look_up(Path::new(PROGRAM), path).or(places).ok_or(NoVirtiofsd::Missing)?;
        let asked = answer(&program, &["--help"]);
        let (_, help) = asked.map_err(|source| NoVirtiofsd::Ask { path: program.clone(), source })?;
        match Make::of(&help) {
            Ok(make) => Ok(Self { program, make }),
            Err(lacks) => Err(NoVirtiofsd::Strange { path: program, lacks }),
        }
    }

    /// Words for one whose socket and directory are these.
    fn words(&self, socket: [&str; 2], directory: &OsStr, using: Use, is_root: bool) -> Vec<OsString> {
        let cache = match using {
            // What the host changes is seen after a second, and in a file that is opened at once.
            Use::Exchange => "auto",
            Use::Reading => "always",
        };
        let socket = format!("{}={}", socket[0], socket[1]);
        let mut words: Vec<OsString> = match self.make {
            Make::C => {
                let source = OsString::from_vec([b"source=", &escaped(directory.as_bytes())[..]].concat());
                let (cache, caps) = (format!("cache={cache}"), format!("modcaps={}", self.without(is_root)));
                let options: [&OsStr; 6] = [
                    &source,
                    "sandbox=chroot".as_ref(),
                    cache.as_ref(),
                    "xattr".as_ref(),
                    caps.as_ref(),
                    "log_level=err".as_ref(),
                ];
                options.into_iter().flat_map(|option| ["-o".into(), option.to_owned()]).collect()
            }
            Make::Rust { announces } => {
                let sandbox = if is_root { "chroot" } else { "none" };
                let mut words: Vec<OsString> =
                    ["--shared-dir".into(), directory.to_owned(), "--sandbox".into(), sandbox.into()].into();
                words.extend(["--cache", cache, "--xattr", "--inode-file-handles=never"].map(OsString::from));
                words.extend([
                    format!("--modcaps={}", self.without(is_root)).into(),
                    "--log-level".into(),
                    "error".into(),
                ]);
                if announces {
                    words.push("--no-announce-submounts".into());
                }
                words
            }
        };
        words.extend([socket.into(), "--rlimit-nofile=0".into()]);
        words
    }

    /// Who is not root has no capability at all.
    fn without(&self, is_root: bool) -> String {
        if is_root { WITHOUT.to_owned() } else { format!("{WITHOUT}:-dac_override:-fowner") }
    }

    /// The command by which a person starts one, in the background.
    pub(crate) fn by_hand(&self, tag: &str, directory: &Path, read_only: bool) -> Vec<OsString> {
        let using = if read_only { Use::Reading } else { Use::Exchange };
        let socket = ["--socket-path", &socket_by_hand(tag)].map(str::to_owned);
        let socket = [socket[0].as_str(), socket[1].as_str()];
        let words = self.words(socket, directory.as_os_str(), using, geteuid().is_root());
        ["setsid".into(), "-f".into(), self.program.clone().into_os_string()].into_iter().chain(words).collect()
    }
}

/// The socket of one that a person starts.
pub(crate) fn socket_by_hand(tag: &str) -> String {
    format!("{tag}.sock")
}

/// A value of the C one's `-o`, which ends at a comma.
fn escaped(value: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| if b",\\".contains(byte) { vec![b'\\', *byte] } else { vec![*byte] };
    value.iter().flat_map(escape).collect()
}

impl Make {
    /// By its own help; or which option it lacks.
    fn of(help: &str) -> Result<Self, &'static str> {
        if help.contains("-o source=PATH") {
            let lacks = ["--fd=", "modcaps=", "sandbox="].into_iter().find(|option| !help.contains(option));
            return lacks.map_or(Ok(Self::C), Err);
        }
        let options = ["--shared-dir", "--fd", "--sandbox", "--modcaps", "--inode-file-handles", "--log-level"];
        match options.into_iter().find(|option| !help.contains(option)) {
            Some(lacks) => Err(lacks),
            None => Ok(Self::Rust { announces: help.contains("--no-announce-submounts") }),
        }
    }
}

/// What is to be served at the other end of QEMU's line.
#[derive(Debug)]
pub(crate) struct ToServe {
    /// The share's tag.
    pub(crate) tag: String,
    /// The directory, as the guest is to see it.
    pub(crate) directory: OwnedFd,
    /// What keeps it as it is seen, to be held as long as it is used.
    pub(crate) view: Option<OwnedFd>,
    /// What it is for.
    pub(crate) using: Use,
    /// Where it waits for QEMU, which is connected already.
    listener: UnixListener,
    /// QEMU's end.
    line: UnixStream,
}

impl ToServe {
    /// Makes the line on which it will be served; gives QEMU's end too. `dir` is the guest's own directory.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub(crate) fn new(
        tag: String,
        directory: OwnedFd,
        view: Option<OwnedFd>,
        using: Use,
        dir: &Path,
    ) -> io::Result<(Self, UnixStream)> {
        // By its descriptor, for a socket's path has room for 108 bytes.
        let within = fs_err::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", within.as_raw_fd()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let line = UnixStream::connect(&path);
        std::fs::remove_file(&path)?;
        let line = line?;
        let of_qemu = line.try_clone()?;
        Ok((Self { tag, directory, view, using, listener, line }, of_qemu))
    }
}

/// One that runs.
#[derive(Debug)]
pub(crate) struct Running(Companion, String);

impl Running {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub(crate) async fn start(program: &Virtiofsd, to_serve: ToServe, host: &HostContext) -> io::Result<Self> {
        let ToServe { tag, directory, view, using, listener, line } = to_serve;
        let is_root = geteuid().is_root();
        let server = Server { using, own_users: program.make == Make::C && !is_root };
        let descriptors = [(LISTENER, OwnedFd::from(listener)), (DIRECTORY, directory)];
        let descriptors = descriptors.into_iter().chain(view.map(|view| (VIEW, view))).collect();
        let mut command = host.shim.command_of_server(&program.program, server, descriptors)?;
        // The C one looks whether it is a directory before it follows a link.
        let directory = OsString::from(format!("/proc/self/fd/{DIRECTORY}/."));
        command.args(program.words(["--fd", &LISTENER.to_string()], &directory, using, is_root));
        let mut running = Companion::start(command, host)?;
        running.answers(asked(&line)).await?;
        Ok(Self(running, format!("{} (virtiofsd)", share::server_of(&tag))))
    }

    /// Tells, once, when it has ended.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub(crate) fn watch(&mut self, tell: UnboundedSender<String>) -> io::Result<()> {
        self.0.watch(self.1.clone(), tell)
    }

    /// Takes note of it as long as it runs.
    pub(crate) fn noted(&self, beside: &Beside) -> Noted {
        beside.note(self.1.clone(), self.0.pid())
    }
}

/// Asks at the line what changes nothing.
async fn asked(line: &UnixStream) -> io::Result<()> {
    let ours = line.try_clone()?;
    ours.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(ours)?;
    let ask = ASK.map(u32::to_ne_bytes).concat();
    let mut answer = [0; 20];
    let asked = match stream.write_all(&ask).await {
        Ok(()) => stream.read_exact(&mut answer).await.map(drop),
        Err(error) => Err(error),
    };
    drop(stream);
    // For QEMU.
    line.set_nonblocking(false)?;
    asked.map_err(of_line)?;
    if answer.starts_with(&ANSWER.map(u32::to_ne_bytes).concat()) {
        Ok(())
    } else {
        Err(io::Error::other(format!("it answered {answer:02x?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(words: Vec<OsString>) -> String {
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_make_is_told_apart_and_gets_words_that_it_knows() {
        let c = "-o modcaps=CAPLIST -o sandbox=namespace|chroot -o source=PATH --fd=FDNUM";
        let rust = "--shared-dir <X> --fd <FD> --sandbox <S> --modcaps <M> --inode-file-handles=<I> --log-level <L>";
        let words = |help: &str, using, is_root| {
            let program = Virtiofsd { program: "/v".into(), make: Make::of(help).unwrap() };
            shown(program.words(["--fd", "3"], "/d".as_ref(), using, is_root))
        };
        insta::assert_snapshot!(
            [
                words(c, Use::Exchange, true),
                words(c, Use::Reading, false),
                words(rust, Use::Exchange, false),
                words(&format!("{rust} --no-announce-submounts"), Use::Reading, true),
            ]
            .join("\n")
        );
        assert_eq!(Make::of("-o source=PATH --fd=FDNUM sandbox="), Err("modcaps="));
        assert_eq!(Make::of("usage: something else"), Err("--shared-dir"));
    }

    #[test]
    fn a_line_leaves_no_name_behind() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than what a socket's path has room for.
        let long = dir.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        let directory = || OwnedFd::from(std::fs::File::open(&long).unwrap());
        let (to_serve, line) = ToServe::new("hostos".into(), directory(), None, Use::Reading, &long).unwrap();
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
        let (mut ours, _) = to_serve.listener.accept().unwrap();
        io::Write::write_all(&mut &line, b"x").unwrap();
        let mut some = [0];
        io::Read::read_exact(&mut ours, &mut some).unwrap();
        assert_eq!(&some, b"x");
    }

    #[tokio::test]
    async fn one_that_ends_or_answers_otherwise_is_told_of() {
        let after = |bytes: Vec<u8>| async move {
            let (ours, theirs) = UnixStream::pair().unwrap();
            io::Write::write_all(&mut &theirs, &bytes).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            asked(&ours).await
        };
        let answer = [ANSWER.map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
        after(answer.clone()).await.unwrap();
        assert_eq!(after(answer[..19].to_vec()).await.unwrap_err().to_string(), "it has ended");
        assert!(after(vec![7; 20]).await.unwrap_err().to_string().starts_with("it answered [07"));
    }
}
