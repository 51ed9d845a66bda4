//! The socket by which a container's agent reaches Belljar.

use std::{
    fs::Permissions,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener as StdUnixListener},
    },
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

/// A socket at this path, which may be longer than one can be: it is made by way of its directory's descriptor.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir: OwnedFd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let _ = std::fs::remove_file(&short);
    let listener = StdUnixListener::bind(&short)?;
    // The agent is root; nobody else is to connect.
    std::fs::set_permissions(&short, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_may_be_deep_below() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120)).join("e".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
        let _listener = listen(&deep.join("socket")).unwrap();
        assert_eq!(std::fs::metadata(deep.join("socket")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
