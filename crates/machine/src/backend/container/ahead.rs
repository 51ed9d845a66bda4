//! The start of a container, and how it may go ahead of what is not known yet.
//!
//! What an image's name stands for has to be asked of the engine, which takes a quarter of the time in which it starts a container, and is as a rule
//! what it was the last time. So where one container is wanted at once, it is started of the image for which the name stood then, while the engine
//! is asked. It is taken if the answer is the same, and has ended else: nothing but the agent has run in it, which finds nobody to talk to.

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use belljar_guest_spec::{NicMode, PullPolicy};
use belljar_model::EventKind;
use tokio::net::{UnixListener, UnixStream};

use super::{
    Shared,
    call::Call,
    engine::{ASK_LIMIT, Engine, words},
    image::{self, Image},
    note,
    owner::{self, Owner},
    prepared::{ENGINE_COMMAND, PreparedContainer, command_line, not_made, random},
    socket,
};
use crate::{
    Lost, backend::PrepareRequest, plan::CONTROL_DIR, plan_shares::put_agent, qemu::probe::remember::Memory,
    spec::ShareSpec,
};

/// The socket of a container, beside the agent.
pub(super) const SOCKET: &str = "host";
/// That of one that goes ahead. It has a name of its own: such a container that is not taken may live on for a moment, and is not to come to the
/// socket of the one that is.
const SOCKET_AHEAD: &str = "host-ahead";
/// Under which the images are remembered for which names stood.
const KIND: &str = "image";

/// A container whose start the engine was told, and whose agent has not come yet. Dropping it ends it: its agent finds nobody.
#[derive(Debug)]
pub(super) struct Begun {
    /// Its name.
    pub(super) name: String,
    /// The call that starts it.
    pub(super) call: Call,
    /// Where its agent is awaited.
    pub(super) socket: OwnSocket,
    /// The guest's directory.
    pub(super) dir: PathBuf,
}

/// A socket to which one agent is to come. Dropping it leaves no other a way.
#[derive(Debug)]
pub(super) struct OwnSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl OwnSocket {
    fn new(path: PathBuf) -> io::Result<Self> {
        Ok(Self { listener: socket::listen(&path)?, path })
    }

    /// Waits until somebody comes.
    pub(super) async fn accept(&self) -> io::Result<(UnixStream, tokio::net::unix::SocketAddr)> {
        self.listener.accept().await
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl PreparedContainer {
    /// Has the engine start a container. `dir` is for its own files, and lies in `own`, the guest's directory, or is it.
    pub(super) async fn begin(
        &self,
        image: &str,
        share: &ShareSpec,
        (dir, own): (&Path, &Path),
        socket: &str,
    ) -> Result<Begun, Lost> {
        let owner = Owner::this();
        let claim = self.shared.claim(&self.engine, owner.as_ref());
        put_agent(self.agent, dir)
            .map_err(|error| not_made("put the agent where the container gets it from", &error))?;
        let random = random()?;
        let name = owner.as_ref().map_or_else(|| format!("{}{random}", owner::NAMED), |owner| owner.name(&random));
        let container = self.container(share, dir, name.clone(), owner.as_ref());
        let mut container = container.map_err(|error| not_made("describe the container", &error))?;
        image.clone_into(&mut container.image);
        socket.clone_into(&mut container.socket);
        self.look_at_places(&container, dir).await?;
        self.cover(&mut container, share, (dir, own))?;
        let mut afterwards = Vec::new();
        if self.hardware.nic == NicMode::Isolated {
            // Named after the container, which goes before it.
            let mut create = words(["network", "create", "--internal"]);
            for (label, value) in &container.labels {
                create.extend(words(["--label", &format!("{label}={value}")]));
            }
            create.extend(words([&name]));
            let created = self.engine.ask(create, ASK_LIMIT).await;
            created.map_err(|error| self.engine.lost("make a network for the container", &error))?;
            afterwards.push(words(["network", "rm", &name]));
            container.network = Some(name.clone());
        }
        let path = dir.join(CONTROL_DIR).join(socket);
        let socket = OwnSocket::new(path).map_err(|error| not_made("make a socket for the container", &error))?;
        let arguments = container.arguments(&self.engine);
        note(dir, ENGINE_COMMAND, &command_line(&self.engine, &arguments));
        let call = self.engine.start(arguments, afterwards, claim).map_err(|error| self.not_called(&error))?;
        Ok(Begun { name, call, socket, dir: own.to_owned() })
    }

    /// Begins one ahead, where nothing else has to be asked or made before; what goes wrong then is told when it goes wrong again.
    async fn begin_ahead(&self, request: &PrepareRequest) -> Option<Begun> {
        let PrepareRequest { share, dir, .. } = request;
        let described = self.container(share, dir, String::new(), None).ok()?;
        if self.hardware.nic == NicMode::Isolated || !self.knows_places(&described) {
            return None;
        }
        self.begin(&self.image.id, share, (dir, dir), SOCKET_AHEAD).await.ok()
    }
}

/// Finds out what an image's name stands for, and prepares a container of that: one that is begun, where it is wanted at once and may go ahead.
pub(super) async fn prepare(
    shared: Rc<Shared>,
    engine: &Engine,
    (name, pull): (&str, PullPolicy),
    request: &PrepareRequest,
) -> Result<PreparedContainer, Lost> {
    let memory = Memory::new(&shared.host.cache_dir);
    let question = question(engine, name);
    // What is fetched anew is another one as a rule.
    let last: Option<Image> = (pull != PullPolicy::Always).then(|| memory.recall(KIND, &question)).flatten();
    let going_ahead = async {
        let image = last.clone().filter(|_| request.leased_at_once)?;
        let prepared = PreparedContainer::of(Rc::clone(&shared), engine.clone(), image, request).ok()?;
        let begun = prepared.begin_ahead(request).await?;
        Some((prepared, begun))
    };
    // The engine is asked first.
    let (looked, ahead) = tokio::join!(biased; image::look(engine, name, pull), going_ahead);
    let image = looked?;
    let is_same = last.as_ref() == Some(&image);
    if !is_same {
        memory.keep(KIND, &question, &image);
    }
    let choice = |chosen: &str, why: String| EventKind::Choice { what: "start".into(), chosen: chosen.into(), why };
    match ahead {
        Some((mut prepared, begun)) if is_same => {
            let why =
                format!("{name} stood for the same image the last time, so that {} was asked meanwhile", engine.name());
            prepared.tell(choice("ahead", why));
            prepared.takes(begun);
            Ok(prepared)
        }
        Some((other, begun)) => {
            drop(begun);
            let mut prepared = PreparedContainer::of(shared, engine.clone(), image, request)?;
            let why = format!(
                "{name} stood for {} the last time; a container of that was started, and is of no use",
                other.image.id
            );
            prepared.tell(choice("anew", why));
            Ok(prepared)
        }
        None => PreparedContainer::of(shared, engine.clone(), image, request),
    }
}

/// What the answer is of: each user's engine has images of its own.
fn question(engine: &Engine, name: &str) -> String {
    let user = rustix::process::geteuid().as_raw().to_string();
    let storage = engine.options.storage.as_ref().map(|storage| storage.display().to_string()).unwrap_or_default();
    [&*engine.path.display().to_string(), &user, &storage, name].join("\0")
}
