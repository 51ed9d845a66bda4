//! A container that can be started: what it is of, and what it will see of the host.

use std::{
    cell::{Cell, RefCell},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use belljar_guest_spec::{
    ContainerSource, GuestSpec, Hardware, ImageRef, PullPolicy, Source as GuestSource, WorkspaceMode,
};
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{CANNOT_BE_HAD, Mount, MountMode, Setup, Source};
use data_encoding::HEXLOWER;
use tokio::net::UnixStream;

use super::{
    Shared,
    ahead::{self, Begun, OwnSocket, SOCKET},
    arguments::{Bind, BindMode, Container, OWN_PATH, plain_path},
    call::{Call, CallEnd},
    described,
    engine::{Engine, EngineKind, ignored},
    find,
    gauged::Gauged,
    guest::{ContainerGuest, Parts},
    image::{self, Image},
    import,
    keep::{self, Kept},
    note,
    owner::{self, Owner},
    places::{self, Place, PlacesQuestion},
    systemd, unlimited,
};
use crate::{
    Cause, Lost,
    backend::{ByHand, Layer, LeaseRequest, PrepareRequest, PreparedGuest},
    bounds::Gauge,
    command::GuestCommand,
    conceal::Covers,
    for_people,
    guest::{Answer, Ending, Guest, Observe},
    lease::SETTING_UP,
    limits::Limits,
    plan::CONTROL_DIR,
    qemu::{
        args::{Accel, to_shell},
        probe::remember::Memory,
        sandbox::hidden,
    },
    session::agent::{AgentSession, BoxedPort, Liveness, PortKind, of_session},
    share,
    spec::{ShareSpec, Workspace},
    tree,
};

/// What the engine was told, in the guest's directory.
pub(super) const ENGINE_COMMAND: &str = "engine.cmd";
/// What it said where a container came to nothing.
const ENGINE_LOG: &str = "engine.log";
/// What is mounted over what is not to be seen, in the guest's directory.
pub(crate) const COVERS_DIR: &str = "covers";
/// Where a workspace is from which the agent makes a copy.
const LOWER_PATH: &str = "/run/belljar/workspace";
/// How long a copy of a workspace may take to be made.
const COPYING: std::time::Duration = std::time::Duration::from_secs(600);
/// The directory of a container that is set up to be kept, in that of the guest that wants it first.
const SET_UP_DIR: &str = "set-up";
/// How often is looked whether the engine stands still at a named pipe.
const AT_PIPE: std::time::Duration = std::time::Duration::from_secs(1);
/// How long the engine may take to say how a container ended that did not come up.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(3);
/// How long the engine may take to remove what did not come up.
const REMOVING: std::time::Duration = std::time::Duration::from_secs(10);

/// A container that can be started.
pub(crate) struct PreparedContainer {
    pub(super) shared: Rc<Shared>,
    pub(super) engine: Engine,
    source: ContainerSource,
    pub(super) image: Image,
    pub(super) agent: &'static [u8],
    pub(super) hardware: Hardware,
    covers: Covers,
    limits: Limits,
    choices: Vec<EventKind>,
    /// For its description by hand.
    share: ShareSpec,
    dir: PathBuf,
    /// The choices about the share were told.
    told: Cell<bool>,
    /// So was what the engine does not do of what it is told.
    warned: Cell<bool>,
    /// What was started for the first lease, before all was known.
    begun: RefCell<Option<Begun>>,
}

impl std::fmt::Debug for PreparedContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedContainer")
            .field("source", &self.source)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// How a copy-on-write workspace is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cow {
    Overlay,
    Copy,
}

impl PreparedContainer {
    pub(crate) async fn new(shared: Rc<Shared>, request: PrepareRequest) -> Result<Self, Lost> {
        let GuestSource::Container(source) = &request.spec.source else {
            return Err(Cause::Defect(format!("a container engine was asked for {}", request.spec.source)).into());
        };
        if !request.spec.hardware.disks.is_empty() {
            let said = "a container has no disks of its own; leave them out, or take a machine";
            return Err(Lost::from(Cause::Description(said.to_owned())).lasting());
        }
        let at = request.share.workspace.as_ref().map(|w| &w.mount_at);
        if let Some(at) = at.filter(|at| at.contains([':', '\n', '\\'])) {
            let said = format!(
                "an engine cannot be told to mount the workspace at {at:?}, for the path has a colon or the like; name another with mount-at"
            );
            return Err(Lost::from(Cause::Description(said)).lasting());
        }
        let engine = shared.engine().await?.clone();
        match &source.image {
            ImageRef::Engine(name) => ahead::prepare(shared.clone(), &engine, (name, source.pull), &request).await,
            ImageRef::Path(path) => {
                let name = import::import(&engine, path, (&shared.host, &request.dir)).await?;
                let image = image::look(&engine, &name, PullPolicy::Never).await?;
                Self::of(shared, engine, image, &request)
            }
        }
    }

    /// A container of this image.
    pub(super) fn of(shared: Rc<Shared>, engine: Engine, image: Image, request: &PrepareRequest) -> Result<Self, Lost> {
        let PrepareRequest { spec, share, dir, .. } = request.clone();
        let GuestSpec { source, hardware, boot_timeout, hide, .. } = spec;
        let GuestSource::Container(source) = source else {
            return Err(Cause::Defect(format!("a container engine was asked for {source}")).into());
        };
        let agent = belljar_agent_binary::agent_for(&image.processor).ok_or_else(|| {
            Lost::from(Cause::Skipped(format!(
                "the image {} is for the processor {}, for which there is no agent here",
                source.image, image.processor
            )))
            .lasting()
        })?;
        let mut choices = vec![
            EventKind::Choice {
                what: "engine".into(),
                chosen: engine.version.clone(),
                why: match &engine.options.tried[..] {
                    [] => described(&engine),
                    tried => format!("{}; tried before: {}", described(&engine), tried.join("; ")),
                },
            },
            EventKind::Choice {
                what: "image".into(),
                chosen: source.image.to_string(),
                why: format!(
                    "{} is {}; commands run as {}",
                    source.image,
                    image.id,
                    image.user.as_deref().unwrap_or("root")
                ),
            },
        ];
        choices.extend(unlimited(&engine).map(|what| EventKind::Warning {
            message: format!("{} cannot limit {what} here: a container may take all that the host has", engine.name()),
        }));
        let covers = Covers::new(&hide, &shared_of(&share), &shared.host, &dir, &mut |event| choices.push(event));
        let covers = covers.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting())?;
        let limits = Limits::new(Accel::Kvm, boot_timeout);
        let agent = agent.program;
        Ok(Self {
            shared,
            engine,
            source,
            image,
            agent,
            hardware,
            covers,
            limits,
            choices,
            share,
            dir,
            told: Cell::new(false),
            warned: Cell::new(false),
            begun: RefCell::default(),
        })
    }

    /// Takes a choice into those that are told.
    pub(super) fn tell(&mut self, choice: EventKind) {
        self.choices.push(choice);
    }

    /// Has the next lease take this container, which is for its share and directory.
    pub(super) fn takes(&mut self, begun: Begun) {
        *self.begun.get_mut() = Some(begun);
    }

    fn cow(&self) -> Cow {
        if self.engine.options.overlay { Cow::Overlay } else { Cow::Copy }
    }

    /// The container of a guest that sees these directories, without what is only there when it starts.
    pub(super) fn container(
        &self,
        share: &ShareSpec,
        dir: &Path,
        name: String,
        owner: Option<&Owner>,
    ) -> io::Result<Container> {
        let mut binds = vec![
            Bind { from: plain_path(&dir.join(CONTROL_DIR), dir, 0)?, to: OWN_PATH.to_owned(), mode: BindMode::Read },
            Bind { from: plain_path(&share.out, dir, 1)?, to: share::OUT_PATH.to_owned(), mode: BindMode::Written },
        ];
        if let Some(workspace) = &share.workspace {
            let (to, mode) = match (workspace.mode, self.cow()) {
                (WorkspaceMode::Rw, _) => (workspace.mount_at.clone(), BindMode::Written),
                (WorkspaceMode::Ro, _) => (workspace.mount_at.clone(), BindMode::Read),
                (WorkspaceMode::Cow, Cow::Overlay) => (workspace.mount_at.clone(), BindMode::Overlaid),
                (WorkspaceMode::Cow, Cow::Copy) => (LOWER_PATH.to_owned(), BindMode::Read),
            };
            binds.push(Bind { from: plain_path(&workspace.dir, dir, 2)?, to, mode });
        }
        let mut labels = vec![(owner::RUN, dir.display().to_string())];
        if let Some(owner) = owner {
            labels.extend([(owner::OWNER, owner.label()), (owner::PID, owner.pid().to_string())]);
        }
        Ok(Container {
            name,
            labels,
            image: self.image.id.clone(),
            network: None,
            hardware: self.hardware.clone(),
            privileged: self.source.privileged,
            systemd: self.source.systemd,
            socket: SOCKET.to_owned(),
            binds,
        })
    }

    /// Adds what hides paths of the host.
    pub(super) fn cover(
        &self,
        container: &mut Container,
        share: &ShareSpec,
        (dir, own): (&Path, &Path),
    ) -> Result<(), Lost> {
        let shares = shared_of(share);
        let covers = self.covers.of(&shares, &self.shared.host, own);
        let mut covers = covers.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting())?;
        // The outermost first, so that what is in it is not there any more.
        covers.reverse();
        let Some(workspace) = &share.workspace else { return Ok(()) };
        let real = std::fs::canonicalize(&workspace.dir).unwrap_or_else(|_| workspace.dir.clone());
        let Some(seen_at) = container.binds.get(2).map(|bind| bind.to.clone()) else { return Ok(()) };
        let put = |file: PathBuf, is_dir: bool| -> io::Result<PathBuf> {
            let made = if is_dir { fs_err::create_dir_all(&file) } else { fs_err::write(&file, "") };
            made.map(|()| file)
        };
        for (number, path) in covers.iter().enumerate() {
            let Ok(below) = path.strip_prefix(&real) else { continue };
            let to = Path::new(&seen_at).join(below);
            let place = dir.join(COVERS_DIR);
            let made = fs_err::create_dir_all(&place)
                .and_then(|()| put(place.join(if path.is_dir() { "directory" } else { "file" }), path.is_dir()))
                .and_then(|from| plain_path(&from, dir, 100 + number));
            let from = made.map_err(|error| not_made("hide a path of the host", &error))?;
            let Some(to) = to.to_str().filter(|to| !to.contains([':', '\n', '\\'])).map(str::to_owned) else {
                let said = format!(
                    "{} cannot be hidden from a container, for its path has a colon or the like; rename it, or share another directory",
                    path.display()
                );
                return Err(Lost::from(Cause::Description(said)).lasting());
            };
            container.binds.push(Bind { from, to, mode: BindMode::Read });
        }
        Ok(())
    }

    /// What the agent is to find, or to make.
    fn mounts(&self, share: &ShareSpec) -> Vec<Mount> {
        let there = |copy_of: Option<String>| vec![Source::Engine { copy_of }];
        let mut mounts = vec![Mount {
            name: share::OUT_TAG.into(),
            sources: there(None),
            path: share::OUT_PATH.into(),
            mode: MountMode::ReadWrite,
        }];
        if let Some(workspace) = &share.workspace {
            let (mode, copied) = match workspace.mode {
                WorkspaceMode::Rw => (MountMode::ReadWrite, false),
                WorkspaceMode::Ro => (MountMode::ReadOnly, false),
                WorkspaceMode::Cow => (MountMode::CopyOnWrite, self.cow() == Cow::Copy),
            };
            let sources = there(copied.then(|| LOWER_PATH.to_owned()));
            mounts.push(Mount { name: share::WORKSPACE_TAG.into(), sources, path: workspace.mount_at.clone(), mode });
        }
        mounts
    }

    /// How the host's directories are in the guest, for a person.
    fn share_choice(&self, share: &ShareSpec) -> EventKind {
        let (chosen, how) = match (&share.workspace, self.cow()) {
            (Some(Workspace { mode: WorkspaceMode::Cow, .. }), Cow::Overlay) => {
                ("overlay", "the engine keeps what is written to it apart")
            }
            (Some(Workspace { mode: WorkspaceMode::Cow, .. }), Cow::Copy) => {
                ("copy", "the agent copies it into the container, for the engine mounts no overlay here")
            }
            _ => ("bind", "the engine mounts it"),
        };
        let workspace = match &share.workspace {
            Some(workspace) => format!("the workspace is at {} ({}): {how}; ", workspace.mount_at, workspace.mode),
            None => String::new(),
        };
        let why = format!("{workspace}the output directory is at {}", share::OUT_PATH);
        EventKind::Choice { what: "share".into(), chosen: chosen.into(), why }
    }

    async fn start(&self, request: LeaseRequest<'_>, observe: Observe<'_>) -> Result<ContainerGuest, Lost> {
        let LeaseRequest { share, dir, layer, view: _ } = request;
        observe(EventKind::Phase { phase: Phase::Boot });
        let begun = self.begun.take().filter(|begun| layer.is_none() && begun.dir == dir);
        if let Some(begun) = begun {
            return self.come_up(begun, &share, &dir, observe).await;
        }
        let Some(mut layer) = layer else { return self.start_one(&self.image.id, &share, (&dir, &dir), observe).await };
        match self.kept(&mut layer, &share, &dir, observe).await? {
            Kept::Image { name, id } => {
                told(observe, &name, format!("the container is of {}, {}", self.source.image, layer.title));
                self.start_one(&id, &share, (&dir, &dir), observe).await
            }
            Kept::Not(why) => {
                told(observe, "run", format!("it is not kept: {why}"));
                let mut guest = self.start_one(&self.image.id, &share, (&dir, &dir), observe).await?;
                layer.set_up.run(&mut guest, observe).await?;
                Ok(guest)
            }
        }
    }

    /// The set-up as it is kept, which it is from now on if it can be.
    async fn kept(
        &self,
        layer: &mut Layer<'_>,
        share: &ShareSpec,
        dir: &Path,
        observe: Observe<'_>,
    ) -> Result<Kept, Lost> {
        let like = format!("{:?} {:?} {:?}", self.hardware, self.source.privileged, self.source.systemd);
        let key = keep::key(&self.image.id, &layer.id, &like);
        let place = self.shared.kept.of(&key);
        // Others that want it wait here.
        let mut known = place.lock().await;
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let cache = &self.shared.host.cache_dir;
        let found = keep::find(&self.engine, cache, (keep::NAME, &key)).await;
        let kept = match found.map_err(|error| self.engine.lost("look for an image with a set-up", &error))? {
            Some((name, id)) => Kept::Image { name, id },
            None => self.make_kept(layer, share, (dir, &key), observe).await?,
        };
        *known = Some(kept.clone());
        Ok(kept)
    }

    /// Runs a set-up in a container of its own, and commits that.
    async fn make_kept(
        &self,
        layer: &mut Layer<'_>,
        share: &ShareSpec,
        (dir, key): (&Path, &str),
        observe: Observe<'_>,
    ) -> Result<Kept, Lost> {
        let (own, dir) = (dir, dir.join(SET_UP_DIR));
        let out = dir.join("out");
        fs_err::create_dir_all(&out).map_err(|error| not_made("make a directory for a set-up", &error))?;
        let workspace = Some(layer.set_up.inputs()?);
        let share = ShareSpec { workspace, out, ..share.clone() };
        let mut guest = self.start_one(&self.image.id, &share, (&dir, own), observe).await?;
        guest.keep_processes(observe).await?;
        layer.set_up.run(&mut guest, observe).await?;
        guest.settle(observe).await?;
        let left = guest.leftovers(observe).await?;
        let kept = match left {
            Some(left) => Kept::Not(left),
            None => {
                let title = &layer.title;
                let committed =
                    keep::commit(&self.engine, &self.shared.host.cache_dir, (guest.name(), key, title)).await;
                match committed {
                    Ok((name, id)) => Kept::Image { name, id },
                    Err(error) => Kept::Not(format!("{} cannot commit it: {}", self.engine.name(), error.what())),
                }
            }
        };
        if let Kept::Not(why) = &kept {
            let message = format!("the set-up cannot be kept as an image, and runs in every container instead: {why}");
            observe(EventKind::Warning { message });
        }
        Box::new(guest).close(Ending::Hurry, observe).await?;
        drop(tree::remove(&dir));
        keep::prune(&self.engine, &self.shared.host.cache_dir).await;
        Ok(kept)
    }

    /// Starts a container with a session, its shares in place. `dir` is for its own files, and lies in `own`, the guest's directory, or is it.
    async fn start_one(
        &self,
        image: &str,
        share: &ShareSpec,
        (dir, own): (&Path, &Path),
        observe: Observe<'_>,
    ) -> Result<ContainerGuest, Lost> {
        let begun = self.begin(image, share, (dir, own), SOCKET).await?;
        self.come_up(begun, share, dir, observe).await
    }

    /// Has a container that was begun come up, with a session and its shares in place. `dir` is for its own files.
    async fn come_up(
        &self,
        begun: Begun,
        share: &ShareSpec,
        dir: &Path,
        observe: Observe<'_>,
    ) -> Result<ContainerGuest, Lost> {
        let Begun { name, mut call, socket, .. } = begun;
        let port = self.await_agent(&socket, &mut call, &name, dir).await?;
        let refused = ignored(&call.said_so_far());
        if !refused.is_empty() && !self.warned.replace(true) {
            for said in refused {
                observe(EventKind::Warning { message: format!("{} says: {said}", self.engine.name()) });
            }
        }
        // Nobody else is to come.
        drop(socket);
        let watched = port.try_clone();
        let port = UnixStream::from_std(port).map_err(|error| not_made("use the socket", &error))?;
        // Who connected, as this process's namespace has it (unix(7), SO_PEERCRED); 0 where it has not.
        let agent = port.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
        let agent = agent.filter(|pid| *pid > 0);
        let port: BoxedPort = Box::new(port);
        observe(EventKind::Phase { phase: Phase::Session });
        let connecting = AgentSession::connect(vec![(PortKind::Socket, port)]);
        let limit = self.limits.agent_start();
        let (mut session, announce, _) = match tokio::time::timeout(limit, connecting).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                let lost = of_session(error, Phase::Session);
                return Err(self.explained(lost, &mut call, (&name, dir)).await);
            }
            Err(_) => {
                let said =
                    format!("the agent came to its socket, but did not announce itself within {}", for_people(limit));
                return Err(Lost::timeout(Phase::Session, said));
            }
        };
        session.set_liveness(Liveness { silent_after: self.limits.silence() });
        if self.source.systemd {
            let up = systemd::await_up(&mut session, self.limits.whole_boot(), observe).await;
            if let Err(lost) = up {
                return Err(self.explained(lost, &mut call, (&name, dir)).await);
            }
            // What it says on its way up, of limits that it cannot set and the like, says nothing of its end.
            call.forget_said();
        }
        self.set_up_shares(&mut session, share, observe).await?;
        if !self.told.replace(true) {
            observe(EventKind::Choice {
                what: "session".into(),
                chosen: "agent on a socket".into(),
                why: if self.source.systemd {
                    format!(
                        "it was the container's first process, which systemd is now, on the host's Linux {}",
                        announce.kernel
                    )
                } else {
                    format!("it is the container's first process, on the host's Linux {}", announce.kernel)
                },
            });
        }
        observe(self.share_choice(share));
        let gauged = watched.and_then(|port| Gauged::start(self.gauge(share, dir)?, port));
        let gauged = gauged.map_err(|error| not_made("look at what the container is to write to", &error))?;
        Ok(ContainerGuest::new(Parts {
            engine: self.engine.clone(),
            name,
            call,
            session,
            limits: self.limits,
            gauged,
            systemd: self.source.systemd,
            agent,
            user: self.image.user.clone(),
            cwd: self.image.working_dir.clone(),
        }))
    }

    /// Sees that nothing of the host's comes where the engine makes files, in what is known of the image, or by a container that looks.
    pub(super) async fn look_at_places(&self, container: &Container, dir: &Path) -> Result<(), Lost> {
        let question = PlacesQuestion::new(&self.engine, container);
        let mut seen = self.shared.seen.0.lock().await;
        let memory = Memory::new(&self.shared.host.cache_dir);
        let places = match seen.get(&question.text).cloned().or_else(|| question.recall(&memory)) {
            Some(places) => places,
            None => {
                let mut looking = container.clone();
                // Named like the other, for it is another's part, and there is only one of them at a time.
                looking.binds.retain(|bind| bind.to == OWN_PATH);
                looking.systemd = false;
                let places = self.looked(&looking, &question.paths, dir).await?;
                question.keep(&memory, &places);
                places
            }
        };
        places::check(&places, &self.source.image.to_string())?;
        seen.insert(question.text, places);
        Ok(())
    }

    /// Whether [`PreparedContainer::look_at_places`] has nothing to find out about this container, nor against it.
    pub(super) fn knows_places(&self, container: &Container) -> bool {
        let question = PlacesQuestion::new(&self.engine, container);
        let known = question.recall(&Memory::new(&self.shared.host.cache_dir));
        known.is_some_and(|places| places::check(&places, &self.source.image.to_string()).is_ok())
    }

    async fn looked(&self, container: &Container, paths: &[String], dir: &Path) -> Result<Vec<Place>, Lost> {
        let started = self.engine.start_to_answer(container.looking_at(&self.engine, paths));
        let mut call = started.map_err(|error| self.not_called(&error))?;
        let limit = self.limits.whole_boot();
        let mut again = tokio::time::interval(AT_PIPE);
        let mut at_pipe = 0;
        let overdue = tokio::time::sleep(limit);
        tokio::pin!(overdue);
        let end = loop {
            tokio::select! {
                biased;
                end = call.ended() => break end,
                () = &mut overdue => return Err(self.overdue(&call, &container.name, limit).await),
                _ = again.tick() => {
                    at_pipe = if call.waits_at_pipe() { at_pipe + 1 } else { 0 };
                    if at_pipe > 2 {
                        call.kill();
                        drop(self.engine.remove(&container.name, REMOVING).await);
                        let said = format!(
                            "{} stands still at a named pipe of the image {}, which it takes for a file that it reads, such as /etc/passwd or /etc/group; take an image where these are files",
                            self.engine.name(),
                            self.source.image
                        );
                        return Err(Lost::from(Cause::Description(said)).lasting());
                    }
                }
            }
        };
        let end = end.ok_or_else(|| Cause::Defect("nobody knows how the engine ended".to_owned()))?;
        if !end.status.success() {
            return Err(self.not_started(&end, dir));
        }
        places::read(paths, &end.stdout).ok_or_else(|| {
            let said = super::call::clean(&end.stdout);
            let said = format!(
                "{} ran a container of {}, whose agent was to say where directories come, and said {said:?}",
                self.engine.name(),
                self.source.image
            );
            Cause::Engine(said).into()
        })
    }

    pub(super) fn not_called(&self, error: &io::Error) -> Lost {
        let engine = self.engine.name();
        Cause::Engine(format!("{engine} cannot be started: {error}; see whether it is still there")).into()
    }

    /// Ends a container that did not come up in time; gives the error that it is.
    async fn overdue(&self, call: &Call, name: &str, limit: std::time::Duration) -> Lost {
        call.kill();
        let removed = self.engine.remove(name, REMOVING).await;
        let left = removed.err().map(|error| format!("; the container {name} could not be removed: {}", error.what()));
        let said = format!(
            "{} did not bring the container up within {}{}; see whether it answers at all (`{0} ps`), or give it longer with boot-timeout",
            self.engine.name(),
            for_people(limit),
            left.unwrap_or_default()
        );
        Lost::timeout(Phase::Boot, said)
    }

    fn gauge(&self, share: &ShareSpec, dir: &Path) -> io::Result<Gauge> {
        let workspace = share.workspace.as_ref().filter(|w| w.mode == WorkspaceMode::Rw).map(|w| &*w.dir);
        let storage = self.engine.options.storage.as_deref().filter(|storage| storage.is_dir());
        let others: Vec<&Path> = workspace.into_iter().chain(storage).collect();
        Gauge::new(share.bounds, &share.out, Vec::new(), dir, &others)
    }

    /// Waits until the agent comes to the socket.
    async fn await_agent(
        &self,
        socket: &OwnSocket,
        call: &mut Call,
        name: &str,
        dir: &Path,
    ) -> Result<std::os::unix::net::UnixStream, Lost> {
        let limit = self.limits.whole_boot();
        tokio::select! {
            biased;
            came = socket.accept() => {
                let came = came.and_then(|(stream, _)| stream.into_std());
                came.map_err(|error| not_made("take the container's connection", &error))
            }
            end = call.ended() => Err(match end {
                Some(end) => self.not_started(&end, dir),
                None => Cause::Defect("nobody knows how the engine ended".to_owned()).into(),
            }),
            () = tokio::time::sleep(limit) => {
                Err(self.overdue(call, name, limit).await)
            }
        }
    }

    /// What it means that the engine ended before the agent came.
    fn not_started(&self, end: &CallEnd, dir: &Path) -> Lost {
        let said = end.said();
        note(dir, ENGINE_LOG, &said);
        let engine = self.engine.name();
        let lower = said.to_ascii_lowercase();
        let image = &self.source.image;
        if lower.contains("exec format error") {
            let why = format!(
                "the image {image} is for the processor {}, whose programs do not run here ({said}); install qemu-user-static, or take another image",
                self.image.processor
            );
            return Lost::from(Cause::Skipped(why)).lasting();
        }
        if self.source.systemd && end.status.code() == Some(CANNOT_BE_HAD) {
            let help = match self.engine.kind {
                _ if said.contains("the image") => "take an image that has it, or leave `systemd` (--systemd) out",
                EngineKind::Docker if !self.source.privileged => {
                    "`privileged` (--privileged) has docker give it such; podman does without"
                }
                _ => "a machine (--rootfs container:IMAGE) has what it needs",
            };
            let said = said.trim_start_matches("belljar: ");
            let why = format!("systemd cannot run in a container of {image} here: {said}; {help}");
            return Lost::from(Cause::Skipped(why)).lasting();
        }
        let advice = if lower.contains("no space left") {
            format!("make room where {engine} keeps its containers, such as with `{engine} system prune`")
        } else if lower.contains("permission denied") && lower.contains("agent") {
            "the file system of the run's directory may be mounted noexec: name another with --run-dir, or set BELLJAR_STATE_DIR".to_owned()
        } else if super::engine::says_missing(&said) {
            format!("the image may have been removed meanwhile: look with `{engine} images`")
        } else {
            // What was found out about it may not be true any more.
            find::forget(&self.engine, &self.shared.host);
            format!(
                "{ENGINE_COMMAND} in {} is what it was told; `belljar doctor` tells whether it works at all",
                dir.display()
            )
        };
        match end.status.code() {
            // The engine's own.
            Some(125..=127) | None => {
                Lost::from(Cause::Engine(format!("{engine} could not start a container of {image}: {said}; {advice}")))
            }
            _ => Lost::crash(CrashKind::Container, format!("before its agent had come up: {said}"), Phase::Boot)
                .with_advice(advice),
        }
    }

    /// Why a container was lost that had not come up, with what the engine knows of it where it has ended; ends it where it has not.
    async fn explained(&self, lost: Lost, call: &mut Call, (name, dir): (&str, &Path)) -> Lost {
        if lost.cause.crash_kind() == Some(CrashKind::Silent)
            && let Ok(Some(end)) = tokio::time::timeout(LAST_WORDS, call.ended()).await
        {
            let said = end.said();
            note(dir, ENGINE_LOG, &said);
            let who = if self.source.systemd { "systemd" } else { "the agent" };
            let advice = format!("{ENGINE_LOG} in {} is what was said last", dir.display());
            let seen = format!("{who} ended before the container had come up: {said}");
            return Lost::crash(CrashKind::Container, seen, Phase::Boot).with_advice(advice);
        }
        if self.source.systemd && call.end().is_none() {
            // It does not end because the agent does.
            drop(self.engine.remove(name, REMOVING).await);
        }
        lost
    }

    async fn set_up_shares(
        &self,
        session: &mut AgentSession,
        share: &ShareSpec,
        observe: Observe<'_>,
    ) -> Result<(), Lost> {
        let mounts = self.mounts(share);
        let copies = mounts.iter().any(|mount| matches!(&mount.sources[..], [Source::Engine { copy_of: Some(_) }]));
        let limit = if copies { COPYING } else { self.limits.setup_of_copy() };
        let working_dir = self.image.working_dir.clone();
        let setup = Setup { mounts: mounts.clone(), working_dir, ..Setup::default() };
        let report = match tokio::time::timeout(limit, session.setup(setup)).await {
            Ok(answered) => answered.map_err(|error| of_session(error, Phase::Session))?,
            Err(_) => {
                let said = format!("the container did not have its shares within {}", for_people(limit));
                return Err(Lost::timeout(Phase::Session, said));
            }
        };
        for line in session.take_log() {
            observe(EventKind::Warning { message: format!("the agent says: {line}") });
        }
        match report.faults.first() {
            None => Ok(()),
            Some((index, fault)) => {
                let mount = usize::try_from(*index).ok().and_then(|at| mounts.get(at));
                let (name, path) = mount.map(|m| (m.name.as_str(), m.path.as_str())).unwrap_or_default();
                let what = share::what(name);
                Err(Cause::Mount(format!("the container has not got {what} at {path}: {}", share::detail(fault)))
                    .into())
            }
        }
    }
}

impl PreparedGuest for PreparedContainer {
    fn choices(&self) -> &[EventKind] {
        &self.choices
    }

    fn by_hand(&self, command: Option<&GuestCommand>) -> Result<ByHand, Lost> {
        let mut container = self
            .container(&self.share, &self.dir, String::new(), None)
            .map_err(|error| not_made("describe the container", &error))?;
        if let Some(bind) = container.binds.get_mut(2).filter(|bind| bind.to == LOWER_PATH)
            && let Some(workspace) = &self.share.workspace
        {
            bind.to.clone_from(&workspace.mount_at);
        }
        let command = command.map(|command| GuestCommand {
            user: command.user.clone().or_else(|| self.image.user.clone()),
            cwd: command.cwd.clone().or_else(|| self.image.working_dir.clone().map(String::into_bytes)),
            ..command.clone()
        });
        let by_hand = container.by_hand(&self.engine, command.as_ref());
        Ok(ByHand { commands: command_line(&self.engine, &by_hand), needs_dir: false })
    }

    fn lease<'a, 'l: 'a>(&'a self, request: LeaseRequest<'l>, observe: Observe<'a>) -> Answer<'a, Box<dyn Guest>> {
        Box::pin(async move { Ok(Box::new(self.start(request, observe).await?) as Box<dyn Guest>) })
    }
}

/// The directories of the host that may show more than they are to.
fn shared_of(share: &ShareSpec) -> Vec<hidden::Shared> {
    let workspace = share.workspace.iter().map(|w| (w.dir.clone(), w.mode == WorkspaceMode::Rw));
    let all = workspace.chain([(share.out.clone(), true)]);
    all.map(|(path, writable)| hidden::Shared { path, writable }).collect()
}

pub(super) fn not_made(attempt: &str, error: &io::Error) -> Lost {
    Cause::host_file(attempt, error, "the run's directory must be writable").into()
}

/// Tells how the set-up is had.
fn told(observe: Observe<'_>, chosen: &str, why: String) {
    observe(EventKind::Choice { what: SETTING_UP.into(), chosen: chosen.into(), why });
}

/// Digits that nobody guesses, for a name.
pub(super) fn random() -> Result<String, Lost> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Cause::NoRandom(error.to_string()))?;
    Ok(HEXLOWER.encode(&bytes))
}

/// A command line to paste.
pub(super) fn command_line(engine: &Engine, arguments: &[OsString]) -> String {
    let program = [engine.path.clone().into_os_string()];
    let all: Vec<OsString> = program.into_iter().chain(engine.arguments(arguments.to_vec())).collect();
    to_shell(&all)
}
