//! Which engine works here, and what it has to be told: found out by trying, and remembered like the answers of other probes.
//!
//! What is tried is a container that holds nothing but the agent, which says its version. An engine that does not run it as it is gets told more, one
//! thing after the other. So there is no list of hosts with what each needs.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, geteuid, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::{
    call::CallEnd,
    engine::{ASK_LIMIT, Engine, EngineError, EngineKind, EngineOptions, call, call_to_finish, ignored, words},
};
use crate::{
    Cause, Lost,
    host::HostContext,
    qemu::probe::{identity, look_up, remember::Memory},
};

/// The engines, the one to take first.
const ENGINES: [&str; 2] = ["podman", "docker"];
/// Programs that run containers for an engine, whose own choice comes before them.
const RUNTIMES: [&str; 2] = ["crun", "runc"];
/// The name of the images of trials; the tag is the process that tries, in hexadecimal digits.
const TRIAL: &str = "belljar-trial";
/// Memory of the container that is tried with a limit to it.
const TRIAL_MEMORY: &str = "134217728";
/// What an engine goes by beside its program, below the directory of the system's and that of the user's configuration.
const CONFIGURATION: [&str; 4] =
    ["containers/containers.conf", "containers/storage.conf", "docker/daemon.json", "containers/containers.conf.d"];

/// The engine of this process, found when it is first asked for.
#[derive(Debug)]
pub(crate) struct Engines {
    host: HostContext,
    found: OnceCell<Engine>,
}

impl Engines {
    pub(crate) fn new(host: HostContext) -> Self {
        Self { host, found: OnceCell::new() }
    }

    /// The one that works.
    pub(crate) async fn get(&self) -> Result<&Engine, Lost> {
        let found = self.found.get_or_try_init(|| find(&self.host)).await;
        found.map_err(|NoEngine(why)| Lost::from(Cause::Description(why)).lasting())
    }

    /// The same, if it was asked for.
    pub(crate) fn known(&self) -> Option<&Engine> {
        self.found.get()
    }

    /// What is in the way of there being one, as far as a look tells.
    pub(crate) fn obstacles(&self) -> Vec<String> {
        candidates(&self.host).err().map(|NoEngine(why)| why).into_iter().collect()
    }
}

/// Why there is no engine.
#[derive(Clone, Debug)]
pub(crate) struct NoEngine(pub(crate) String);

/// What is remembered of an engine.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    kind: EngineKind,
    version: String,
    options: EngineOptions,
}

/// The programs that may be engines: the one that the user named, else all that are there.
pub(crate) fn candidates(host: &HostContext) -> Result<Vec<PathBuf>, NoEngine> {
    let path = host.path.as_deref();
    match &host.engine {
        Some(named) => match look_up(named, path) {
            Some(program) => Ok(vec![program]),
            None if named.exists() => Err(NoEngine(format!(
                "{} is no program, and so no container engine; name podman's or docker's with --engine",
                named.display()
            ))),
            None => Err(NoEngine(format!(
                "there is no container engine {}; name one that is there with --engine, or install it",
                named.display()
            ))),
        },
        None => {
            let found: Vec<_> = ENGINES.iter().filter_map(|name| look_up(Path::new(name), path)).collect();
            if found.is_empty() {
                return Err(NoEngine(format!(
                    "there is no container engine ({} in PATH); install podman (Debian and Fedora have it as `podman`), or name one with --engine",
                    ENGINES.join(" or ")
                )));
            }
            Ok(found)
        }
    }
}

/// The first engine that works.
pub(crate) async fn find(host: &HostContext) -> Result<Engine, NoEngine> {
    let mut why = Vec::new();
    for program in candidates(host)? {
        match try_engine(&program, host).await {
            Ok(engine) => return Ok(engine),
            Err(NoEngine(no)) => why.push(no),
        }
    }
    Err(NoEngine(why.join("\n")))
}

/// The first engine of which is remembered that it works. Nothing is tried.
pub(crate) fn remembered(host: &HostContext) -> Option<Engine> {
    let memory = Memory::new(&host.cache_dir);
    candidates(host).ok()?.into_iter().find_map(|program| {
        let found: Answer = memory.recall("engine", &question(&program, host))?;
        Some(engine(&program, found, host))
    })
}

fn engine(program: &Path, found: Answer, host: &HostContext) -> Engine {
    let Answer { kind, version, options } = found;
    Engine { path: program.to_owned(), kind, version, options, shim: host.shim.clone() }
}

/// The engine with this program, as it is remembered, or found out now.
pub(crate) async fn try_engine(program: &Path, host: &HostContext) -> Result<Engine, NoEngine> {
    let memory = Memory::new(&host.cache_dir);
    let question = question(program, host);
    let found: Answer = match memory.recall("engine", &question) {
        Some(known) => known,
        None => {
            let answer = Probe { program, host }.probe().await?;
            memory.keep("engine", &question, &answer);
            answer
        }
    };
    Ok(engine(program, found, host))
}

/// Forgets what is remembered of this engine, for it did not prove true.
pub(crate) fn forget(engine: &Engine, host: &HostContext) {
    Memory::new(&host.cache_dir).forget("engine", &question(&engine.path, host));
}

/// All that may change the answer.
fn question(program: &Path, host: &HostContext) -> String {
    let mut parts = vec![format!("{:?}", identity(program)), geteuid().as_raw().to_string()];
    let path = host.path.as_deref();
    parts
        .extend(RUNTIMES.iter().map(|name| format!("{:?}", look_up(Path::new(name), path).and_then(|p| identity(&p)))));
    parts.extend(host.home.iter().map(|home| home.display().to_string()));
    let homes = host.home.iter().map(|home| home.join(".config"));
    for dir in [PathBuf::from("/etc")].into_iter().chain(homes) {
        parts.extend(CONFIGURATION.iter().map(|name| format!("{:?}", identity(&dir.join(name)))));
    }
    let limits = [Resource::Nofile, Resource::Nproc].map(|resource| format!("{:?}", getrlimit(resource).maximum));
    parts.extend(limits);
    parts.push(rustix::system::uname().release().to_string_lossy().into_owned());
    // What is there of control groups decides what can be limited.
    parts.push(fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    parts.push(belljar_agent_binary::AGENTS.first().map(|agent| agent.fingerprint).unwrap_or_default().to_owned());
    parts.join("\0")
}

struct Probe<'a> {
    program: &'a Path,
    host: &'a HostContext,
}

impl Probe<'_> {
    fn no(&self, what: &str) -> NoEngine {
        NoEngine(format!("{}: {what}", self.program.display()))
    }

    async fn ask(&self, arguments: Vec<OsString>) -> Result<CallEnd, EngineError> {
        call(&self.host.shim, self.program, &arguments, ASK_LIMIT).await
    }

    async fn probe(&self) -> Result<Answer, NoEngine> {
        let said = self.ask(words(["--version"])).await.map_err(|error| self.no(&error.what()))?;
        let version = super::call::clean(&said.stdout).lines().last().unwrap_or_default().to_owned();
        let Some(kind) = EngineKind::of(&version) else {
            return Err(self.no(&format!("neither podman nor docker: it says {version:?} of its version")));
        };
        let dir = tempfile::tempdir().map_err(|error| self.no(&format!("no directory for a trial: {error}")))?;
        let tar = dir.path().join("agent.tar");
        let agent = belljar_agent_binary::AGENTS.first().map(|agent| agent.program).unwrap_or_default();
        fs::write(&tar, tar_of("agent", agent)).map_err(|error| self.no(&format!("no image for a trial: {error}")))?;
        self.remove_old_trials().await;
        let image = format!("{TRIAL}:{:016x}", std::process::id());
        let import = [OsString::from("import"), tar.into(), OsString::from(&image)].into();
        let imported = self.ask(import).await;
        imported.map_err(|error| {
            self.no(&format!("it cannot take in an image: {}\n{}", error.what(), mend(kind, &error)))
        })?;
        let found = self.try_all(kind, &image, dir.path()).await;
        // What cannot be removed is two megabytes that nobody asks for.
        drop(self.ask(words(["rmi", "--force", &image])).await);
        found.map(|options| Answer { kind, version, options })
    }

    /// Removes the images of trials whose Belljar was killed.
    async fn remove_old_trials(&self) {
        let list = words(["images", "--format", "{{.Tag}}", TRIAL]);
        let Ok(listed) = self.ask(list).await else { return };
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let is_old = |tag: &&str| {
            u32::from_str_radix(tag, 16)
                .is_ok_and(|pid| tag.len() == 16 && !Path::new(&format!("/proc/{pid}")).exists())
        };
        for tag in listed.lines().map(str::trim).filter(is_old) {
            drop(self.ask(words(["rmi", "--force", &format!("{TRIAL}:{tag}")])).await);
        }
    }

    async fn try_all(&self, kind: EngineKind, image: &str, dir: &Path) -> Result<EngineOptions, NoEngine> {
        let mut tried = Vec::new();
        let mut first = None;
        for mut options in ladder(kind, self.host.path.as_deref()) {
            match self.trial(image, &options, &[]).await {
                Ok(()) => {
                    options.tried = tried;
                    return Ok(self.extras(kind, image, options, dir).await);
                }
                // Another word will not make it answer.
                Err(error @ (EngineError::Overdue(_) | EngineError::Start(_))) => return Err(self.no(&error.what())),
                Err(error) => {
                    tried.push(format!("{}: {}", shown(&options), last_line(&error.what())));
                    first.get_or_insert(error);
                }
            }
        }
        let what = first.as_ref().map(EngineError::what).unwrap_or_default();
        let advice = first.map(|error| mend(kind, &error)).unwrap_or_default();
        Err(self.no(&format!("it runs no container: {what}\ntried in vain: {}\n{advice}", tried.join("; "))))
    }

    /// What else it can do.
    async fn extras(&self, kind: EngineKind, image: &str, mut options: EngineOptions, dir: &Path) -> EngineOptions {
        let memory = self.trial(image, &options, &words(["--memory", TRIAL_MEMORY])).await;
        let cpus = self.trial(image, &options, &words(["--cpus", "1"])).await;
        options.memory = memory.is_ok();
        options.cpus = cpus.is_ok();
        let mut outcomes = vec![("--memory", memory.err()), ("--cpus", cpus.err())];
        if kind == EngineKind::Podman {
            let mount = format!("{}:/mnt/trial:O", dir.display());
            let overlay = self.trial(image, &options, &words(["--volume", &mount])).await;
            options.overlay = overlay.is_ok();
            outcomes.push(("--volume DIR:PATH:O", overlay.err()));
        }
        let template = match kind {
            EngineKind::Podman => "{{.Store.GraphRoot}}",
            EngineKind::Docker => "{{.DockerRootDir}}",
        };
        let storage = self.ask(words(["info", "--format", template])).await.ok();
        let storage = storage.map(|end| PathBuf::from(super::call::clean(&end.stdout)));
        options.storage = storage.filter(|storage| storage.is_absolute());
        let refused = outcomes.into_iter().filter_map(|(what, error)| Some((what, error?)));
        options.tried.extend(refused.map(|(what, error)| format!("{what}: {}", last_line(&error.what()))));
        options
    }

    async fn trial(&self, image: &str, options: &EngineOptions, more: &[OsString]) -> Result<(), EngineError> {
        let mut arguments: Vec<OsString> =
            options.runtime.iter().flat_map(|runtime| words(["--runtime", runtime])).collect();
        arguments.extend(words(["run", "--rm", "--network", "none", "--log-driver", "none"]));
        arguments.extend(options.ulimits.iter().flat_map(|limit| words(["--ulimit", limit])));
        arguments.extend(more.iter().cloned());
        arguments.extend(words(["--entrypoint", "/agent", image, "version"]));
        let end = call_to_finish(&self.host.shim, self.program, &arguments, ASK_LIMIT).await?;
        // One that starts the container without what it was told has not got it either.
        let did = end.stdout.starts_with(b"belljar-agent ") && ignored(&end.stderr).is_empty();
        if did { Ok(()) } else { Err(EngineError::Refused(end)) }
    }
}

/// What is tried, the least that has to be said first.
fn ladder(kind: EngineKind, path: Option<&OsStr>) -> Vec<EngineOptions> {
    let runtimes = match kind {
        EngineKind::Podman => RUNTIMES.iter().filter(|name| look_up(Path::new(name), path).is_some()).collect(),
        EngineKind::Docker => Vec::new(),
    };
    // The engine has taken the first by itself if it is the only one.
    let others = if runtimes.len() > 1 { runtimes } else { Vec::new() };
    let runtimes: Vec<Option<String>> =
        std::iter::once(None).chain(others.into_iter().map(|r| Some((*r).to_owned()))).collect();
    let mut ladder = Vec::new();
    for ulimits in ulimits() {
        let each = runtimes.iter().map(|runtime| EngineOptions {
            runtime: runtime.clone(),
            ulimits: ulimits.clone(),
            ..EngineOptions::default()
        });
        ladder.extend(each);
    }
    ladder
}

/// Limits of processes and files: an engine that may not raise them, as in a container of its own, starts nothing with those that it takes by
/// itself.
fn ulimits() -> Vec<Vec<String>> {
    let own = |resource| getrlimit(resource).maximum.unwrap_or(1 << 20);
    let (files, processes) = (own(Resource::Nofile), own(Resource::Nproc));
    let pair =
        |files: u64, processes: u64| vec![format!("nofile={files}:{files}"), format!("nproc={processes}:{processes}")];
    let mut all = vec![Vec::new(), pair(files, processes)];
    // What an engine's own parts may have lowered them to.
    all.extend([(files, 4096), (4096, 1024), (1024, 100)].map(|(f, p)| pair(files.min(f), processes.min(p))));
    all.dedup();
    all
}

/// What was tried, for a person.
fn shown(options: &EngineOptions) -> String {
    let runtime = options.runtime.iter().map(|runtime| format!("--runtime {runtime}"));
    let all: Vec<_> = runtime.chain(options.ulimits.iter().map(|limit| format!("--ulimit {limit}"))).collect();
    if all.is_empty() { "as it is".to_owned() } else { all.join(" ") }
}

fn last_line(said: &str) -> String {
    said.lines().last().unwrap_or_default().chars().take(300).collect()
}

/// What to do about it, where that is known.
fn mend(kind: EngineKind, error: &EngineError) -> String {
    let said = error.what().to_ascii_lowercase();
    if said.contains("daemon") && (said.contains("connect") || said.contains("permission")) {
        return "start its daemon (systemctl start docker), and add yourself to the group docker".to_owned();
    }
    if said.contains("newuidmap") || said.contains("subuid") || said.contains("cannot setup namespace") {
        return "for containers of an ordinary user install uidmap, and give the user ranges in /etc/subuid and /etc/subgid".to_owned();
    }
    if said.contains("no space left") {
        return "make room where it keeps its images".to_owned();
    }
    let test = match kind {
        EngineKind::Podman => "podman info",
        EngineKind::Docker => "docker info",
    };
    format!("`{test}` may tell more; `belljar doctor --fresh` tries again")
}

/// An archive with one program in it (POSIX ustar).
pub(crate) fn tar_of(name: &str, program: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", program.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = Vec::with_capacity(program.len() + 4 * BLOCK);
    tar.extend_from_slice(&header);
    tar.extend_from_slice(program);
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    tar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_tried_first() {
        let all = ulimits();
        assert_eq!(all[0], [""; 0]);
        assert!(all[1][0].starts_with("nofile="));
        assert_eq!(all.last().unwrap(), &["nofile=1024:1024", "nproc=100:100"]);
        let ladder = ladder(EngineKind::Docker, None);
        assert_eq!(ladder[0], EngineOptions::default());
        assert!(ladder.iter().all(|options| options.runtime.is_none()));
        assert_eq!(shown(&ladder[0]), "as it is");
        assert!(shown(ladder.last().unwrap()).ends_with("--ulimit nproc=100:100"));
    }

    #[test]
    fn the_trials_image_is_an_archive_that_tar_reads() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        fs::write(&file, tar_of("agent", &[7; 700])).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("-rwxr-xr-x") && listed.contains(" 700 ") && listed.contains("agent"), "{listed}");
    }

    #[test]
    fn what_is_known_of_a_refusal_is_told() {
        let refused = EngineError::Start("Cannot connect to the Docker daemon at unix:///var/run/docker.sock".into());
        assert!(mend(EngineKind::Docker, &refused).contains("systemctl start docker"));
        assert!(mend(EngineKind::Podman, &EngineError::Start("x".into())).contains("podman info"));
    }
}
