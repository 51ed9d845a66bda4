//! The arguments with which an engine starts a container: a pure function of what the guest is to be.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
};

use belljar_guest_spec::{Hardware, NicMode};

use super::engine::{Engine, EngineKind, words};
use crate::{command::GuestCommand, share::OUT_PATH};

/// What systemd wants of a container (its document `CONTAINER_INTERFACE`), of docker, which knows nothing of it. Its control groups can be written
/// to if the container is privileged.
const OF_SYSTEMD: [&str; 8] =
    ["--cgroupns", "private", "--tmpfs", "/run", "--tmpfs", "/run/lock", "--env", "container=docker"];

/// Where in the container what is Belljar's is: the agent, and the socket.
pub(crate) const OWN_PATH: &str = "/.belljar";

/// A directory or file of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    /// On the host; [`plain_path`] has been asked.
    pub(crate) from: PathBuf,
    /// In the container.
    pub(crate) to: String,
    /// What is done to it.
    pub(crate) mode: BindMode,
}

/// What becomes of writes to a directory of the host's in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindMode {
    /// They go to the host.
    Written,
    /// They fail.
    Read,
    /// The engine keeps them apart, and forgets them.
    Overlaid,
}

/// A container that is to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its name, which no other has.
    pub(crate) name: String,
    /// What is written on it.
    pub(crate) labels: Vec<(&'static str, String)>,
    /// Its image.
    pub(crate) image: String,
    /// Its network where it has one of its own.
    pub(crate) network: Option<String>,
    /// Memory, processors, and which network it has.
    pub(crate) hardware: Hardware,
    /// Its processes may do what the engine may.
    pub(crate) privileged: bool,
    /// The image's systemd is to be its first process.
    pub(crate) systemd: bool,
    /// The socket's name, beside the agent.
    pub(crate) socket: String,
    /// What it sees of the host.
    pub(crate) binds: Vec<Bind>,
}

impl Container {
    /// The arguments by which Belljar starts it: its first process is the agent.
    pub(crate) fn arguments(&self, engine: &Engine) -> Vec<OsString> {
        let mut arguments = self.of_agent(engine);
        arguments.extend(words(["serve", "--container", &format!("{OWN_PATH}/{}", self.socket)]));
        arguments.extend(self.systemd.then(|| "--systemd".into()));
        arguments
    }

    /// The arguments by which the agent says where these paths lead in the image.
    pub(crate) fn looking_at(&self, engine: &Engine, paths: &[String]) -> Vec<OsString> {
        let mut arguments = self.of_agent(engine);
        arguments.push("places".into());
        arguments.extend(paths.iter().map(OsString::from));
        arguments
    }

    /// Up to the words that tell the agent what to do.
    fn of_agent(&self, engine: &Engine) -> Vec<OsString> {
        let mut arguments = words(["run", "--rm", "--pull", "never", "--log-driver", "none", "--name", &self.name]);
        // Signals to the engine's program are not for the guest, and nobody but the agent says how it is.
        arguments.extend(words(["--sig-proxy=false", "--no-healthcheck"]));
        for (label, value) in &self.labels {
            arguments.extend(words(["--label", &format!("{label}={value}")]));
        }
        self.describe(engine, &mut arguments);
        arguments.extend(words(["--user", "0:0", "--workdir", "/", "--entrypoint", &format!("{OWN_PATH}/agent")]));
        arguments.push(OsString::from(&self.image));
        arguments
    }

    /// The arguments by which a person starts the same container with this command in it, or with a shell. With systemd it is that which is started.
    pub(crate) fn by_hand(&self, engine: &Engine, command: Option<&GuestCommand>) -> Vec<OsString> {
        let command = command.filter(|command| !command.argv.is_empty() && !self.systemd);
        let mut arguments = words(["run", "--rm", "--interactive"]);
        if command.is_none_or(|command| command.terminal.is_some()) {
            arguments.extend(words(["--tty"]));
        }
        arguments.extend(words(["--pull", "never"]));
        let mut same = self.clone();
        // The directory of a run that there is not.
        same.binds.retain(|bind| bind.to != OWN_PATH && bind.to != OUT_PATH);
        same.describe(engine, &mut arguments);
        let of = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        let mut words_of = Vec::new();
        if let Some(command) = command {
            arguments.extend(command.user.iter().flat_map(|user| words(["--user", user])));
            arguments.extend(command.cwd.iter().flat_map(|cwd| ["--workdir".into(), of(cwd)]));
            words_of = command.argv.iter().map(|word| of(word)).collect();
        }
        let own = if self.systemd { "/sbin/init" } else { "/bin/sh" };
        let entry = if words_of.is_empty() { own.into() } else { words_of.remove(0) };
        arguments.extend(["--entrypoint".into(), entry, OsString::from(&self.image)]);
        arguments.extend(words_of);
        arguments
    }

    /// What the guest is like.
    fn describe(&self, engine: &Engine, arguments: &mut Vec<OsString>) {
        let options = &engine.options;
        match (&self.network, self.hardware.nic) {
            (Some(own), _) => arguments.extend(words(["--network", own])),
            (None, NicMode::None | NicMode::Isolated) => arguments.extend(words(["--network", "none"])),
            // The engine's own choice, which is other for an ordinary user.
            (None, NicMode::User) => {}
        }
        if engine.kind == EngineKind::Podman && self.hardware.nic != NicMode::User {
            // What of this process's environment leads out.
            arguments.extend(words(["--http-proxy=false"]));
        }
        if options.memory {
            arguments.extend(words(["--memory", &self.hardware.memory.to_string()]));
        }
        if options.cpus {
            arguments.extend(words(["--cpus", &self.hardware.cpus.to_string()]));
        }
        arguments.extend(options.ulimits.iter().flat_map(|limit| words(["--ulimit", limit])));
        if self.privileged {
            arguments.extend(words(["--privileged"]));
        }
        if self.systemd {
            // Nobody has it end in an orderly way, so nobody waits for that.
            arguments.extend(words(["--stop-timeout", "0"]));
            arguments.extend(match engine.kind {
                // Memory at /run and the like, and control groups that can be written to.
                EngineKind::Podman => words(["--systemd", "always"]),
                EngineKind::Docker => OF_SYSTEMD.iter().map(OsString::from).collect(),
            });
        }
        // The labels of SELinux on the user's files are not to be changed, which is the other way to have them read.
        arguments.extend(words(["--security-opt", "label=disable"]));
        for bind in &self.binds {
            arguments.push("--volume".into());
            let mut volume = bind.from.clone().into_os_string();
            volume.push(":");
            volume.push(&bind.to);
            match bind.mode {
                BindMode::Written => {}
                BindMode::Read => volume.push(":ro"),
                BindMode::Overlaid => volume.push(":O"),
            }
            arguments.push(volume);
        }
    }
}

/// A path that can stand in an argument of the engine's: the same, or that of a link to it in `dir` where it has characters that mean something
/// there. `number` tells the links in a directory from each other.
pub(crate) fn plain_path(path: &Path, dir: &Path, number: usize) -> io::Result<PathBuf> {
    let is_plain = |path: &Path| {
        let bytes = path.as_os_str().as_bytes();
        path.is_absolute() && path.to_str().is_some() && !bytes.iter().any(|byte| matches!(byte, b':' | b'\n' | b'\\'))
    };
    if is_plain(path) {
        return Ok(path.to_owned());
    }
    let link = dir.join(format!("directory-{number}"));
    if !is_plain(&link) {
        let what = format!("the engine cannot be told of {}, for its path has a colon or the like", dir.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    symlink(path, &link)?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::container::engine::EngineOptions, qemu::sandbox::Shim};

    fn engine(kind: EngineKind, options: EngineOptions) -> Engine {
        let shim = Shim { program: "belljar".into(), args: Vec::new() };
        Engine { path: "/usr/bin/engine".into(), kind, version: "engine version 1".into(), options, shim }
    }

    fn container() -> Container {
        let bind = |from: &str, to: &str, mode| Bind { from: from.into(), to: to.into(), mode };
        Container {
            name: "belljar-1".into(),
            labels: vec![("belljar.pid", "7".into())],
            image: "c831".into(),
            network: None,
            hardware: Hardware { memory: 1 << 20, cpus: 2, nic: NicMode::None, ..Hardware::default() },
            privileged: false,
            systemd: false,
            socket: "host".into(),
            binds: vec![
                bind("/run/1/ctl", OWN_PATH, BindMode::Read),
                bind("/run/1/out", "/run/belljar/out", BindMode::Written),
                bind("/w", "/mnt/hostos", BindMode::Overlaid),
            ],
        }
    }

    fn line(arguments: Vec<OsString>) -> String {
        arguments.into_iter().map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_container_of_podman() {
        let options = EngineOptions {
            ulimits: vec!["nproc=100:100".into()],
            memory: true,
            cpus: true,
            overlay: true,
            ..EngineOptions::default()
        };
        let said = "run --rm --pull never --log-driver none --name belljar-1 --sig-proxy=false --no-healthcheck --label belljar.pid=7 \
                    --network none --http-proxy=false --memory 1048576 --cpus 2 --ulimit nproc=100:100 --security-opt label=disable \
                    --volume /run/1/ctl:/.belljar:ro --volume /run/1/out:/run/belljar/out --volume /w:/mnt/hostos:O --user 0:0 --workdir / \
                    --entrypoint /.belljar/agent c831 serve --container /.belljar/host";
        assert_eq!(line(container().arguments(&engine(EngineKind::Podman, options))), said);
    }

    #[test]
    fn a_container_of_docker_without_limits() {
        let docker = engine(EngineKind::Docker, EngineOptions::default());
        let user = Hardware { nic: NicMode::User, ..container().hardware };
        let mut container = Container { hardware: user, privileged: true, ..container() };
        container.binds[2].mode = BindMode::Read;
        let said = "run --rm --pull never --log-driver none --name belljar-1 --sig-proxy=false --no-healthcheck --label belljar.pid=7 \
                    --privileged --security-opt label=disable --volume /run/1/ctl:/.belljar:ro --volume /run/1/out:/run/belljar/out \
                    --volume /w:/mnt/hostos:ro --user 0:0 --workdir / --entrypoint /.belljar/agent c831 serve --container /.belljar/host";
        assert_eq!(line(container.arguments(&docker)), said);
        let by_hand = "run --rm --interactive --tty --pull never --privileged --security-opt label=disable --volume \
                       /w:/mnt/hostos:ro --entrypoint /bin/sh c831";
        assert_eq!(line(container.by_hand(&docker, None)), by_hand);
        let command = GuestCommand {
            argv: vec![b"make".to_vec(), b"check".to_vec()],
            env: Vec::new(),
            cwd: Some(b"/w".to_vec()),
            user: Some("bob".into()),
            terminal: None,
            guards: None,
        };
        let by_hand = line(container.by_hand(&docker, Some(&command)));
        assert!(by_hand.starts_with("run --rm --interactive --pull never "), "{by_hand}");
        assert!(by_hand.ends_with("--user bob --workdir /w --entrypoint make c831 check"), "{by_hand}");
    }

    #[test]
    fn a_container_with_systemd() {
        let said = |kind| {
            let container = Container { systemd: true, binds: Vec::new(), ..container() };
            let engine = engine(kind, EngineOptions::default());
            (line(container.arguments(&engine)), line(container.by_hand(&engine, None)))
        };
        let (podman, by_hand) = said(EngineKind::Podman);
        assert!(podman.contains(" --stop-timeout 0 --systemd always ") && podman.ends_with(" --systemd"), "{podman}");
        assert!(
            by_hand.contains(" --systemd always ") && by_hand.ends_with("--entrypoint /sbin/init c831"),
            "{by_hand}"
        );
        let (docker, _) = said(EngineKind::Docker);
        let of_docker = "--stop-timeout 0 --cgroupns private --tmpfs /run --tmpfs /run/lock --env container=docker ";
        assert!(docker.contains(of_docker) && docker.ends_with(" --systemd"), "{docker}");
    }

    #[test]
    fn a_path_that_would_mean_something_else_goes_by_a_link() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(plain_path(Path::new("/a b,c"), dir.path(), 0).unwrap(), Path::new("/a b,c"));
        let link = plain_path(Path::new("/a:ro"), dir.path(), 1).unwrap();
        assert_eq!(link, dir.path().join("directory-1"));
        assert_eq!(std::fs::read_link(link).unwrap(), Path::new("/a:ro"));
        assert!(plain_path(Path::new("/a:b"), Path::new("/c:d"), 0).is_err());
    }
}
