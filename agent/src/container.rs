//! The agent as the first process of a container, or beside the image's systemd, which it then has in its place.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use belljar_proto::message::CANNOT_BE_HAD;
use rustix::fs::{Access, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use crate::agent::Agent;
use crate::port::{Kind, Port};
use crate::{beside, serve, still, sys, text};

/// Where distributions have systemd. Another init that lies at `/sbin/init` is none.
const SYSTEMD: &[&str] = &["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// Control groups that systemd can put its services into: all of the second version, and its own hierarchy beside those of the first.
const GROUPS: &[(&str, &str)] =
    &[("/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup"), ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd")];

/// `serve --container`: for the host that listens at this path; `--systemd` makes the image's systemd the first process.
pub(crate) fn serve(host: &Path, with_systemd: bool) -> i32 {
    let systemd = match with_systemd.then(find_systemd).transpose() {
        Ok(found) => found,
        Err(why) => {
            text::say(&why);
            return CANNOT_BE_HAD;
        }
    };
    // What the engine may have left open.
    sys::close_all_but(&[]);
    let Some(systemd) = systemd else {
        return connect_or_say(host).map_or(1, |fd| go_on(fd, Kind::Container));
    };
    // Who connects is whom the host takes for the agent: not the process that becomes systemd.
    let Ok((connected, tell)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else {
        text::say("serve: cannot make a pipe");
        return 1;
    };
    match sys::fork() {
        Ok(None) => {
            drop(connected);
            let Some(fd) = connect_or_say(host) else { sys::exit_now(1) };
            let _ = rustix::io::write(&tell, b"+");
            drop(tell);
            let _ = rustix::process::setsid();
            still::beside_systemd();
            sys::exit_now(go_on(fd, Kind::SystemContainer))
        }
        Ok(Some(_)) => {
            drop(tell);
            let mut said = [0];
            let came = loop {
                match rustix::io::read(&connected, &mut said) {
                    Err(Errno::INTR) => {}
                    read => break read == Ok(1),
                }
            };
            if !came {
                return 1;
            }
            drop(connected);
            sys::command_signals();
            text::say(&beside::become_program(systemd, "", std::iter::empty()));
            1
        }
        Err(errno) => {
            text::say(&format!("serve: fork: {}", text::errno(errno)));
            1
        }
    }
}

fn connect_or_say(host: &Path) -> Option<OwnedFd> {
    let connected = connect(host);
    connected
        .map_err(|errno| text::say(&format!("serve: connect to Belljar at {}: {}", host.display(), text::errno(errno))))
        .ok()
}

fn go_on(fd: OwnedFd, kind: Kind) -> i32 {
    let _ = rustix::thread::set_name(c"belljar-agent");
    let _ = rustix::process::chdir("/");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    serve::protect();
    // What the engine has at their other ends takes all that is written to them, and no test is to write there.
    serve::silence();
    serve::run(Agent::new(Port { fd, kind }, serve::environment()))
}

fn connect(host: &Path) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(host)?)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// The image's systemd, if it can run here; else what is missing, for a person.
fn find_systemd() -> Result<&'static str, String> {
    if !rustix::process::getpid().is_init() {
        return Err("the engine did not make the agent the first process".to_owned());
    }
    let runs = |path: &&&str| rustix::fs::access(**path, Access::EXEC_OK).is_ok();
    let Some(systemd) = SYSTEMD.iter().find(runs) else {
        return Err(format!("the image has no systemd ({})", SYSTEMD.join(", ")));
    };
    let there = |path: &str| rustix::fs::access(path, Access::EXISTS).is_ok();
    let Some((_, groups)) = GROUPS.iter().find(|(sign, _)| there(sign)) else {
        return Err("the engine gives the container no control groups, which systemd needs".to_owned());
    };
    match rustix::fs::access(*groups, Access::WRITE_OK) {
        Ok(()) => Ok(systemd),
        Err(errno) => Err(format!(
            "the engine gives the container no control groups that systemd can write to ({groups}: {})",
            text::errno(errno)
        )),
    }
}

/// `places`: says of each path where it leads in this root, a line each: `link` where the path itself is a link, else `place`; and the real path, as far
/// as there is anything. Whoever has directories mounted there then knows where they would come.
pub(crate) fn places(paths: &[&[u8]]) -> i32 {
    for path in paths {
        let path = Path::new(OsStr::from_bytes(path));
        let kind = if path.is_symlink() { "link" } else { "place" };
        let there = path.ancestors().find_map(|above| Some((above, std::fs::canonicalize(above).ok()?)));
        let real = there.map(|(above, real)| match path.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        });
        let line = [kind.as_bytes(), b" ", real.unwrap_or_default().as_os_str().as_bytes(), b"\n"].concat();
        if rustix::io::write(rustix::stdio::stdout(), &line) != Ok(line.len()) {
            return 1;
        }
    }
    0
}
