//! A container engine, driven by its command line, and what has to be said to it on this host.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    call::{Call, CallEnd, Overdue},
    claim::Claim,
    strays,
};
use crate::{Cause, Lost, for_people, qemu::sandbox::Shim};

/// How long a question may take that an engine answers in a tenth of a second.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(60);

/// What kind of engine it is: what differs between them is asked of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineKind {
    /// Without a daemon: its containers are its user's own.
    Podman,
    /// With a daemon, which is root on most hosts.
    Docker,
}

impl EngineKind {
    /// Which kind says this of its version (`podman version 4.3.1`, `Docker version 24.0.7, build afdd53b`).
    pub(crate) fn of(version: &str) -> Option<Self> {
        let version = version.to_ascii_lowercase();
        [(Self::Podman, "podman version"), (Self::Docker, "docker version")]
            .into_iter()
            .find_map(|(kind, begins)| version.contains(begins).then_some(kind))
    }
}

/// What a probe found to be needed on this host, and to be possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineOptions {
    /// The program that runs containers, where the engine's own choice does not.
    pub(crate) runtime: Option<String>,
    /// Values of `--ulimit`, without which no container starts.
    pub(crate) ulimits: Vec<String>,
    /// Whether memory can be limited.
    pub(crate) memory: bool,
    /// Whether processors can be limited.
    pub(crate) cpus: bool,
    /// Whether a directory can be mounted so that what is written to it is forgotten.
    pub(crate) overlay: bool,
    /// Where it keeps what containers write, if it says.
    pub(crate) storage: Option<PathBuf>,
    /// What was tried, and what was said against it.
    pub(crate) tried: Vec<String>,
}

/// An engine that works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    /// Its program.
    pub(crate) path: PathBuf,
    /// Which one it is.
    pub(crate) kind: EngineKind,
    /// Its name and version, as it says them.
    pub(crate) version: String,
    /// What has to be said to it.
    pub(crate) options: EngineOptions,
    /// By which it is started.
    pub(crate) shim: Shim,
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug)]
pub(crate) enum EngineError {
    /// Its program could not be started.
    Start(String),
    /// It did not answer in time.
    Overdue(Duration),
    /// It said no.
    Refused(CallEnd),
}

impl EngineError {
    /// What happened.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Start(why) => format!("it cannot be started: {why}"),
            Self::Overdue(limit) => {
                format!(
                    "it gave no answer within {}; see whether it answers anybody else, and start it anew",
                    for_people(*limit)
                )
            }
            Self::Refused(end) => end.said(),
        }
    }
}

/// Calls a program with these arguments, and takes its answer if it ended well.
pub(crate) async fn call(
    shim: &Shim,
    program: &Path,
    arguments: &[OsString],
    limit: Duration,
) -> Result<CallEnd, EngineError> {
    let mut command = shim.command_for_helper(program);
    command.args(arguments);
    ended(Call::start(command, true), limit).await
}

/// The same for a call that goes on to its end where Belljar ends.
pub(crate) async fn call_to_finish(
    shim: &Shim,
    program: &Path,
    arguments: &[OsString],
    limit: Duration,
) -> Result<CallEnd, EngineError> {
    let mut command = shim.command_that_finishes(program);
    command.args(arguments);
    ended(Call::start(command, true), limit).await
}

/// How a call ended, if it ended well.
async fn ended(started: io::Result<Call>, limit: Duration) -> Result<CallEnd, EngineError> {
    let call = started.map_err(|error| EngineError::Start(error.to_string()))?;
    match call.within(limit).await {
        Ok(end) if end.status.success() => Ok(end),
        Ok(end) => Err(EngineError::Refused(end)),
        Err(Overdue(limit)) => Err(EngineError::Overdue(limit)),
    }
}

/// Words as arguments.
pub(crate) fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

impl Engine {
    /// Its name for a person, such as `podman`.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// What comes before the command of each call.
    fn before(&self) -> Vec<OsString> {
        self.options.runtime.iter().flat_map(|runtime| words(["--runtime", runtime])).collect()
    }

    /// All arguments of a call.
    pub(crate) fn arguments(&self, arguments: Vec<OsString>) -> Vec<OsString> {
        self.before().into_iter().chain(arguments).collect()
    }

    /// Asks it something.
    pub(crate) async fn ask(&self, arguments: Vec<OsString>, limit: Duration) -> Result<CallEnd, EngineError> {
        call(&self.shim, &self.path, &self.arguments(arguments), limit).await
    }

    /// Asks it something that changes nothing here, so that it ends at once when nobody waits for the answer any more.
    pub(crate) async fn look(&self, arguments: Vec<OsString>, limit: Duration) -> Result<CallEnd, EngineError> {
        let mut command = self.shim.command_for_helper(&self.path);
        command.args(self.arguments(arguments));
        ended(Call::start(command, true).map(Call::ending_when_dropped), limit).await
    }

    /// Starts a call whose end somebody waits for, with calls that are made when it has ended.
    pub(crate) fn start(
        &self,
        arguments: Vec<OsString>,
        afterwards: Vec<Vec<OsString>>,
        claim: Option<Arc<Claim>>,
    ) -> io::Result<Call> {
        // Killed between what it does for a container's start, an engine leaves processes that it does not know of. The agent of a container that
        // starts when its Belljar is gone finds nobody, and ends.
        let command = |arguments: Vec<OsString>| {
            let mut command = self.shim.command_that_finishes(&self.path);
            command.args(self.arguments(arguments));
            command
        };
        Call::start_with(command(arguments), false, afterwards.into_iter().map(command).collect(), claim)
    }

    /// Starts a container whose output is an answer.
    pub(crate) fn start_to_answer(&self, arguments: Vec<OsString>) -> io::Result<Call> {
        let mut command = self.shim.command_that_finishes(&self.path);
        command.args(self.arguments(arguments));
        Call::start(command, true)
    }

    /// Has it make an image, which it finishes where Belljar ends: half of one would be left, which nobody finds again.
    pub(crate) async fn ask_to_finish(
        &self,
        arguments: Vec<OsString>,
        limit: Duration,
    ) -> Result<CallEnd, EngineError> {
        call_to_finish(&self.shim, &self.path, &self.arguments(arguments), limit).await
    }

    /// Starts a call whose standard output goes to a file.
    pub(crate) fn start_into(&self, arguments: Vec<OsString>, into: std::fs::File) -> io::Result<Call> {
        let mut command = self.shim.command_for_helper(&self.path);
        command.args(self.arguments(arguments));
        Call::start_into(command, into)
    }

    /// Has it make an image of what it reads from a file, as [`Engine::ask_to_finish`].
    pub(crate) async fn ask_with(
        &self,
        arguments: Vec<OsString>,
        from: std::fs::File,
        limit: Duration,
    ) -> Result<CallEnd, EngineError> {
        let mut command = self.shim.command_that_finishes(&self.path);
        command.args(self.arguments(arguments));
        ended(Call::start_from(command, from), limit).await
    }

    /// The loss that an error is: `attempt` is what was to be done, such as `look at the image x`.
    pub(crate) fn lost(&self, attempt: &str, error: &EngineError) -> Lost {
        Cause::Engine(format!("{} cannot {attempt}: {}", self.name(), error.what())).into()
    }

    /// Ends and removes a container, if there is one of this name.
    pub(crate) async fn remove(&self, name: &str, limit: Duration) -> Result<(), EngineError> {
        match self.ask(words(["rm", "--force", "--volumes", name]), limit).await {
            Err(EngineError::Refused(end)) if says_missing(&end.stderr) => {}
            done => drop(done?),
        }
        // It forgets one that it was killed over, and leaves its processes.
        strays::end_of_container(name);
        Ok(())
    }
}

/// Whether this says that there is no such thing.
pub(crate) fn says_missing(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ["no such", "not known", "unable to find image", "no container with"].iter().any(|words| said.contains(words))
}

/// Of what an engine says at a container's start, the lines by which it does not do what it was told: podman of an ordinary user sets no limits
/// under cgroups of version 1 and goes on, and docker drops a limit that the kernel does not know.
pub(super) fn ignored(said: &str) -> Vec<String> {
    let refuses = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["ignored", "ignoring", "discarded"].iter().any(|word| line.contains(word))
    };
    let with_meaning = |line: &str| {
        if line.to_ascii_lowercase().contains("limit") {
            format!("{line} (so what the container takes of memory and processors may not be limited)")
        } else {
            line.to_owned()
        }
    };
    said.lines().filter(refuses).map(with_meaning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_known_by_its_version() {
        assert_eq!(EngineKind::of("podman version 4.3.1\n"), Some(EngineKind::Podman));
        assert_eq!(EngineKind::of("Docker version 24.0.7, build afdd53b\n"), Some(EngineKind::Docker));
        // The program docker of the package podman-docker.
        assert_eq!(EngineKind::of("podman version 5.2.0"), Some(EngineKind::Podman));
        assert_eq!(EngineKind::of("QEMU emulator version 8.2.0"), None);
    }

    #[test]
    fn a_limit_that_an_engine_does_not_set_is_told_with_what_it_means() {
        let said = "Resource limits are not supported and ignored on cgroups V1 rootless systems\nwaiting\n\
                    WARNING: Your kernel does not support swap limit capabilities. Limitation discarded.\n\
                    the option --x is ignored";
        let lines = ignored(said);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("Resource limits") && lines[0].ends_with("may not be limited)"), "{lines:?}");
        assert!(lines[1].contains("discarded. (so what"), "{lines:?}");
        assert_eq!(lines[2], "the option --x is ignored");
    }

    #[test]
    fn what_is_missing_is_told_from_what_went_wrong() {
        for said in [
            "Error: nix: image not known",
            "Error response from daemon: No such image: nix:latest",
            "Unable to find image 'nix:latest' locally",
            "Error: no container with name or ID \"x\" found: no such container",
        ] {
            assert!(says_missing(said), "{said}");
        }
        assert!(!says_missing("Error: runc create failed"));
    }
}
