//! Guests for tests of the runner that are none: no QEMU, no process, no file of a machine. That all of the runner works with them shows
//! that it needs nothing of QEMU.
//!
//! What becomes of a guest says the file that is run in it, a line for each step:
//!
//! | line | does |
//! |---|---|
//! | `say TEXT` | writes to standard output |
//! | `exit N` | ends the command; without it the command ends with 0 |
//! | `hang` | the command never ends |
//! | `crash` | the guest's kernel panics |
//! | `lose` | the guest is lost by what is on the host's side |
//! | `unsynced` | what is written does not reach the host, which shows when it is asked for |
//! | `spoil` | leaves behind what makes the guest useless for further tests |
//! | `once STEP` | does the step the first time that this file runs, and nothing later |

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use belljar_guest_spec::{BootSource, GuestSpec, Hardware, Need, Source};
use belljar_machine::{
    Cause, Lost,
    backend::{Backend, Backends, ByHand, Footprint, GuestFiles, Layer, LeaseRequest, PrepareRequest, PreparedGuest},
    command::GuestCommand,
    guest::{Answer, Ending, Guest, GuestClock, Io, Observe, Origin, Pending},
    session::agent::{FileQuery, OutputSink},
    spec::Workspace,
};
use belljar_model::{CrashKind, EventKind, Exit, Phase};

/// The file in a guest's directory that it says its last words in.
pub(crate) const LAST_WORDS: &str = "last-words";
/// The file in a guest's directory that is of no use after its end.
pub(crate) const SCRATCH: &str = "scratch";

/// What becomes of guests before anything runs in them, and after it.
#[derive(Debug)]
pub(crate) struct Fate {
    /// How a guest comes about.
    pub(crate) origin: Origin,
    /// Whether it can be kept with its set-up.
    pub(crate) keeps: bool,
    /// Why guests cannot be prepared.
    pub(crate) unprepared: RefCell<Option<Lost>>,
    /// So many guests are lost before they are there.
    pub(crate) lost_on_lease: Cell<u32>,
    /// So many guests are gone when it is looked whether they still wait.
    pub(crate) lost_waiting: Cell<u32>,
    /// Why there can be no guest at all.
    pub(crate) impossible: Option<&'static str>,
}

impl Default for Fate {
    fn default() -> Self {
        Self {
            origin: Origin::Cold,
            keeps: false,
            unprepared: RefCell::default(),
            lost_on_lease: Cell::default(),
            lost_waiting: Cell::default(),
            impossible: None,
        }
    }
}

/// Gives such guests wherever a root directory of the host's was asked for.
#[derive(Clone)]
pub(crate) struct Pretend(Rc<World>);

struct World {
    fate: Fate,
    /// What was asked of it, in order.
    journal: RefCell<Vec<String>>,
    /// Guests so far.
    guests: Cell<u32>,
    /// Files that ran.
    ran: RefCell<BTreeSet<PathBuf>>,
    /// Set-ups with which guests are kept.
    kept: RefCell<BTreeSet<[u8; 32]>>,
}

impl fmt::Debug for Pretend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pretend").field(&self.0.fate).finish()
    }
}

impl Pretend {
    /// A backend whose guests fare like this.
    pub(crate) fn new(fate: Fate) -> Self {
        Self(Rc::new(World {
            fate,
            journal: RefCell::default(),
            guests: Cell::default(),
            ran: RefCell::default(),
            kept: RefCell::default(),
        }))
    }

    /// It alone.
    pub(crate) fn alone(&self) -> Backends {
        Backends::of_these(vec![Rc::new(self.clone())])
    }

    /// What was asked of it so far, in order; a guest's number comes first.
    pub(crate) fn journal(&self) -> Vec<String> {
        self.0.journal.borrow().clone()
    }

    /// How often this was asked, whatever the guest.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.0.journal.borrow().iter().filter(|line| line.split_once(": ").is_some_and(|(_, did)| did == what)).count()
    }
}

impl World {
    fn note(&self, what: impl Into<String>) {
        self.journal.borrow_mut().push(what.into());
    }
}

/// One fewer, if there was one.
fn take(count: &Cell<u32>) -> bool {
    let left = count.get();
    count.set(left.saturating_sub(1));
    left > 0
}

fn now<'a, T: 'a>(value: T) -> Pending<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Backend for Pretend {
    fn gives(&self, source: &Source) -> bool {
        matches!(source, Source::Boot(BootSource::RootDir { .. }))
    }

    fn footprint(&self, hardware: &Hardware) -> Footprint {
        Footprint { memory: hardware.memory, overhead: 0, program: "nothing", cpus: hardware.cpus }
    }

    fn lacks(&self, _: &Source, hardware: &Hardware, needs: &BTreeSet<Need>) -> Option<String> {
        if needs.contains(&Need::Machine) {
            return Some("a pretended guest is no machine".to_owned());
        }
        (!hardware.disks.is_empty()).then(|| "a pretended guest has no disks".to_owned())
    }

    fn files(&self) -> GuestFiles {
        GuestFiles { console: Some(LAST_WORDS), scratch: &[SCRATCH] }
    }

    fn probe(&self) -> Answer<'_, Option<String>> {
        self.0.note("all: probe");
        now(match self.0.fate.impossible {
            None => Ok(None),
            Some(why) => Err(Cause::Description(why.to_owned()).into()),
        })
    }

    fn obstacles(&self, _: &GuestSpec) -> Vec<String> {
        self.0.fate.impossible.into_iter().map(str::to_owned).collect()
    }

    fn prepare(&self, _: PrepareRequest) -> Answer<'_, Box<dyn PreparedGuest>> {
        self.0.note("all: prepare");
        now(match &*self.0.fate.unprepared.borrow() {
            None => Ok(Box::new(Prepared { world: Rc::clone(&self.0), choices: vec![choice()] })),
            Some(lost) => Err(lost.clone()),
        })
    }
}

fn choice() -> EventKind {
    EventKind::Choice { what: "guest".into(), chosen: "pretended".into(), why: "this is a test".into() }
}

struct Prepared {
    world: Rc<World>,
    choices: Vec<EventKind>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepared")
    }
}

impl PreparedGuest for Prepared {
    fn choices(&self) -> &[EventKind] {
        &self.choices
    }

    fn by_hand(&self, _: Option<&GuestCommand>) -> Result<ByHand, Lost> {
        Ok(ByHand { commands: "pretend".to_owned(), needs_dir: false })
    }

    fn lease<'a, 'l: 'a>(&'a self, request: LeaseRequest<'l>, observe: Observe<'a>) -> Answer<'a, Box<dyn Guest>> {
        Box::pin(async move {
            observe(EventKind::Phase { phase: Phase::Boot });
            let LeaseRequest { share, dir, layer, view: _ } = request;
            let guest = |workspace| {
                let number = self.world.guests.get();
                self.world.guests.set(number + 1);
                let guest =
                    PretendedGuest { world: Rc::clone(&self.world), number, workspace, unsynced: false, spoilt: false };
                guest.note("lease");
                guest
            };
            // As what boots, it takes its time.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if take(&self.world.fate.lost_on_lease) {
                drop(guest(None));
                return Err(Lost::from(Cause::Session("it did not come up".into())).with_tail(vec!["no root".into()]));
            }
            let written = fs_err::create_dir(dir.join(SCRATCH)).and_then(|()| fs_err::write(dir.join(LAST_WORDS), "!"));
            written.map_err(|e| Cause::host_file("pretend", &e, "look into the test"))?;
            let mut leased = guest(share.workspace);
            if let Some(Layer { id, set_up, .. }) = layer {
                if !self.world.fate.keeps {
                    set_up.run(&mut leased, observe).await?;
                } else if !self.world.kept.borrow().contains(&id) {
                    let mut first = guest(Some(set_up.inputs()?));
                    set_up.run(&mut first, observe).await?;
                    first.note("keep");
                    self.world.kept.borrow_mut().insert(id);
                }
            }
            Ok(Box::new(leased) as Box<dyn Guest>)
        })
    }
}

struct PretendedGuest {
    world: Rc<World>,
    number: u32,
    workspace: Option<Workspace>,
    unsynced: bool,
    spoilt: bool,
}

impl fmt::Debug for PretendedGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PretendedGuest({})", self.number)
    }
}

impl Drop for PretendedGuest {
    fn drop(&mut self) {
        self.note("gone");
    }
}

impl PretendedGuest {
    fn note(&self, what: &str) {
        self.world.note(format!("{}: {what}", self.number));
    }

    /// The program on the host, and its name in the workspace.
    fn program(&self, command: &GuestCommand) -> Option<(PathBuf, String)> {
        let Workspace { dir, mount_at, mode: _ } = self.workspace.as_ref()?;
        let path = String::from_utf8(command.argv.first()?.clone()).ok()?;
        let name = Path::new(&path).strip_prefix(mount_at).ok()?;
        Some((dir.join(name), name.display().to_string()))
    }

    async fn play(&mut self, command: &GuestCommand, sink: &mut dyn OutputSink) -> Result<Exit, Lost> {
        let Some((program, name)) = self.program(command) else {
            return Err(Cause::NotStarted { errno: 2, why: "it is not in the workspace".into() }.into());
        };
        self.note(&format!("run {name}"));
        let script = fs_err::read_to_string(&program).map_err(|e| Cause::Stdin(e.to_string()))?;
        let is_first = self.world.ran.borrow_mut().insert(PathBuf::from(name));
        for line in script.lines().filter(|line| !line.starts_with('#')) {
            let step = match line.strip_prefix("once ") {
                Some(_) if !is_first => continue,
                Some(step) => step,
                None => line,
            };
            match step.split_once(' ').unwrap_or((step, "")) {
                ("say", text) => {
                    let said = sink.stdout(format!("{text}\n").as_bytes()).await;
                    said.map_err(|e| Cause::Output(e.to_string()))?;
                }
                ("exit", code) => return Ok(Exit::Code(code.parse().unwrap_or(255))),
                ("hang", _) => std::future::pending().await,
                ("crash", _) => {
                    let lost = Lost::crash(CrashKind::Panic, "not syncing: as it was told", Phase::Command);
                    return Err(lost.with_tail(vec!["panic".into()]));
                }
                ("lose", _) => return Err(Cause::Output("it was lost as it was told".into()).into()),
                ("unsynced", _) => self.unsynced = true,
                ("spoil", _) => self.spoilt = true,
                ("", _) => {}
                (other, _) => panic!("{}: a pretended guest knows no {other:?}", program.display()),
            }
        }
        Ok(Exit::Code(0))
    }

    fn synced(&self) -> Result<(), Lost> {
        if self.unsynced { Err(Cause::Unsynced("EIO".into()).into()) } else { Ok(()) }
    }
}

impl Guest for PretendedGuest {
    fn origin(&self) -> Origin {
        self.world.fate.origin
    }

    fn exec<'a>(&'a mut self, command: GuestCommand, io: Io<'a>, _: Observe<'a>) -> Answer<'a, Exit> {
        Box::pin(async move {
            // Commands of Belljar's own.
            if command.argv.first().is_some_and(|word| word == b"sh") {
                return Ok(Exit::Code(0));
            }
            self.play(&command, io.sink).await
        })
    }

    fn kill_command<'a>(&'a mut self, _: Observe<'a>) -> Pending<'a, ()> {
        Box::pin(async { self.note("kill command") })
    }

    fn files<'a>(&'a mut self, _: FileQuery, _: &'a mut dyn OutputSink, _: Observe<'a>) -> Answer<'a, bool> {
        now(Ok(false))
    }

    fn warm_up<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, ()> {
        self.note("warm up");
        now(Ok(()))
    }

    fn check<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, ()> {
        self.note("check");
        let lost = take(&self.world.fate.lost_waiting);
        now(if lost { Err(Cause::Session("it is gone".into()).into()) } else { Ok(()) })
    }

    fn keep_processes<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, ()> {
        self.note("keep processes");
        now(Ok(()))
    }

    fn renew<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, Option<String>> {
        self.note("renew");
        now(Ok(self.spoilt.then(|| "an earlier test has left behind: a mount".to_owned())))
    }

    fn settle<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, ()> {
        self.note("settle");
        now(self.synced())
    }

    fn close(self: Box<Self>, how: Ending, _: Observe<'_>) -> Answer<'_, ()> {
        Box::pin(async move {
            self.note(&format!("close {how:?}"));
            if how == Ending::Hurry { Ok(()) } else { self.synced() }
        })
    }

    fn clock(&self) -> Rc<dyn GuestClock> {
        Rc::new(Clock { world: Rc::clone(&self.world), number: self.number })
    }

    fn suspended(&self) -> Option<Duration> {
        None
    }

    fn last_lines(&self, _: usize) -> Vec<String> {
        vec!["what it was at".to_owned()]
    }
}

struct Clock {
    world: Rc<World>,
    number: u32,
}

impl GuestClock for Clock {
    fn stop(&self) -> Pending<'_, ()> {
        self.world.note(format!("{}: stop", self.number));
        now(())
    }

    fn go_on(&self) -> Pending<'_, ()> {
        self.world.note(format!("{}: go on", self.number));
        now(())
    }
}
