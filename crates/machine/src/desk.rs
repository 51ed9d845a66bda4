//! What programs in a guest ask of its machine and its lab disks, and who does it.

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use belljar_guest_spec::machine_order::{Device, MachineOrder};
use belljar_model::EventKind;
use belljar_proto::message::{Outcome, ToAgent};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    balloon::{Balloon, GivenBack},
    console::sanitize::sanitize_line,
    hotplug::{Hotplug, medium::MediumOrder},
    lab::Lab,
    pictures::Pictures,
    qemu::{
        args::{CARD, MachineConfig},
        qmp::{EventStream, InjectNmi, Qmp, QmpError, SetLink, SystemWakeup},
    },
    session::{agent::Reports, console::AskSource},
    volume::BOOT_LAB,
    watch::control,
};

/// Something that is to be done.
type Act = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who asks for something.
#[derive(Debug)]
pub(crate) enum Asker {
    /// A program in the guest.
    Guest {
        /// The question's number.
        number: u32,
        /// Where the answer goes.
        source: AskSource,
    },
    /// Somebody outside.
    Outside {
        answer: oneshot::Sender<Result<String, String>>,
        /// The agent, where there is one, for what it has to do itself.
        reports: Option<Arc<Reports>>,
    },
}

/// How long the agent may take to have the guest's clock jump.
const STEPPING: Duration = Duration::from_secs(30);

impl Asker {
    /// The guest's agent, where there is one.
    fn agent(&self) -> Option<Arc<Reports>> {
        match self {
            Self::Guest { source, .. } => source.agent(),
            Self::Outside { reports, .. } => reports.clone(),
        }
    }

    /// Says what came of it.
    pub(crate) fn answer(self, outcome: Outcome) {
        let answer = match self {
            Self::Guest { number, source } => return source.answer(number, outcome),
            Self::Outside { answer, .. } => answer,
        };
        let said = match outcome {
            Outcome::Done(said) => Ok(said),
            Outcome::Refused(why) => Err(why),
            Outcome::GoesDown => Ok("the machine goes down".to_owned()),
            Outcome::Full => Err("no more of it is taken".to_owned()),
        };
        // Nobody waiting is fine.
        drop(answer.send(said));
    }
}

/// What programs in a guest ask of its lab disks and of the machine, done one after another, in the order in which they ask, beside whatever else goes on.
#[derive(Debug)]
pub(crate) struct Desk {
    lab: Lab,
    qmp: Qmp,
    hotplug: Arc<Mutex<Hotplug>>,
    /// Who does it, and who waits for the guest to sleep. What is not done goes with the machine.
    clerks: JoinSet<()>,
    orders: mpsc::UnboundedSender<Act>,
    tell: mpsc::UnboundedSender<EventKind>,
    told: mpsc::UnboundedReceiver<EventKind>,
    /// How much of it was told since the command has begun.
    recorded: usize,
    /// The network card's cable is plugged out by order.
    unplugged: Arc<AtomicBool>,
    /// The guest's clock was told to jump, or to go otherwise.
    clock_changed: bool,
    /// How many commands have come to their end in this guest: what an earlier one has ordered and was not done yet is not done any more.
    ended: Arc<AtomicU64>,
    /// How many orders wait to be done, or are being done.
    under_way: Arc<AtomicU64>,
    balloon: Arc<Mutex<Balloon>>,
    pictures: Arc<Mutex<Pictures>>,
}

/// Why an order is not done whose command has ended.
const LATE: &str = "the test that ordered it has ended";

/// Most orders of one command that are recorded.
const MOST_RECORDED: usize = 1000;

impl Desk {
    /// That of the machine that QEMU makes of `config`, whose files are in `dir`.
    pub(crate) fn new(lab: Lab, qmp: Qmp, config: &MachineConfig, dir: &Path) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (orders, mut to_do) = mpsc::unbounded_channel::<Act>();
        let mut clerks = JoinSet::new();
        clerks.spawn(async move {
            while let Some(act) = to_do.recv().await {
                act.await;
            }
        });
        let hotplug = Arc::new(Mutex::new(Hotplug::of(config)));
        Self {
            lab,
            qmp,
            hotplug,
            clerks,
            orders,
            tell,
            told,
            recorded: 0,
            unplugged: Arc::default(),
            clock_changed: false,
            ended: Arc::default(),
            under_way: Arc::default(),
            balloon: Arc::new(Mutex::new(Balloon::new(config.ram_size()))),
            pictures: Arc::new(Mutex::new(Pictures::new(dir))),
        }
    }

    /// Does what was asked of a disk, and answers.
    pub(crate) fn take(&mut self, asker: Asker, text: String) {
        match MediumOrder::parse(&text) {
            Some(Ok((name, order))) => return self.move_medium(asker, name, order, &text),
            Some(Err(why)) => return asker.answer(Outcome::Refused(why)),
            None => {}
        }
        let lab = self.lab.clone();
        self.act(asker, async move { lab.ask(&text).await });
    }

    /// Does what was asked of the machine, and answers.
    pub(crate) fn take_machine(&mut self, asker: Asker, order: MachineOrder, text: &str) {
        if let MachineOrder::Unplug { device, surprise } = order {
            self.unplug(asker, device, surprise, text.to_owned());
            return;
        }
        if let MachineOrder::Balloon(target) = order {
            self.set_balloon(asker, target, text.to_owned());
            return;
        }
        let (qmp, text, unplugged) = (self.qmp.clone(), text.to_owned(), self.unplugged.clone());
        let (hotplug, lab) = (self.hotplug.clone(), self.lab.clone());
        let pictures = self.pictures.clone();
        match order {
            MachineOrder::Wakeup(after) => self.await_sleep(after, &text),
            MachineOrder::Clock(_) | MachineOrder::ClockRate(_) => self.clock_changed = true,
            _ => {}
        }
        let agent = asker.agent();
        self.act(asker, async move {
            let told = |error: QmpError| match error {
                QmpError::Refused { class, .. } if class == "DeviceNotFound" => {
                    "this machine has no network card, or it is unplugged".to_owned()
                }
                error => error.told(),
            };
            let done: Result<Outcome, String> = match order {
                MachineOrder::Link(up) => {
                    let done = qmp.execute(SetLink { name: CARD, up }).await;
                    unplugged.store(done.is_ok() && !up, Ordering::Relaxed);
                    done.map(|_| Outcome::Done(String::new())).map_err(told)
                }
                MachineOrder::Plug(device) => {
                    let is_cable_out = unplugged.load(Ordering::Relaxed);
                    hotplug.lock().await.plug(&device, is_cable_out, &qmp, &lab).await.map(Outcome::Done)
                }
                MachineOrder::Wakeup(_) => Ok(Outcome::Done(String::new())),
                MachineOrder::Clock(nanoseconds) => {
                    change_clock(agent, ToAgent::StepClock(nanoseconds)).await.map(|()| Outcome::Done(String::new()))
                }
                MachineOrder::ClockRate(rate) => {
                    change_clock(agent, ToAgent::RateClock(rate)).await.map(|()| Outcome::Done(String::new()))
                }
                MachineOrder::Screenshot(name) => pictures.lock().await.take(&qmp, &name).await.map(Outcome::Done),
                MachineOrder::Nmi => {
                    qmp.execute(InjectNmi {}).await.map(|_| Outcome::Done(String::new())).map_err(told)
                }
                MachineOrder::Unplug { .. }
                | MachineOrder::Balloon(_)
                | MachineOrder::Restart(_)
                | MachineOrder::Prepare(_) => Err("it is done elsewhere".to_owned()),
            };
            let refused = done.is_err();
            let outcome = done.unwrap_or_else(Outcome::Refused);
            let said = if let Outcome::Refused(said) | Outcome::Done(said) = &outcome { said } else { "" };
            let event = control(&text, said, refused);
            (outcome, Some(event))
        });
    }

    /// Takes the medium out of a disk, or puts it in, and answers.
    fn move_medium(&mut self, asker: Asker, name: String, order: MediumOrder, text: &str) {
        let (hotplug, qmp, lab) = (self.hotplug.clone(), self.qmp.clone(), self.lab.clone());
        let order_text = text.trim().strip_prefix(&*name).unwrap_or(text).trim();
        let order_text = order_text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.act(asker, async move {
            let done = hotplug.lock().await.move_medium(&name, order, &qmp, &lab).await;
            let event = EventKind::Control {
                device: format!("disk {}", sanitize_line(name.as_bytes())),
                order: order_text,
                outcome: done.as_ref().err().cloned().unwrap_or_default(),
                refused: done.is_err(),
            };
            (done.map_or_else(Outcome::Refused, |()| Outcome::Done(String::new())), Some(event))
        });
    }

    /// Has the guest woken so long after it will have suspended itself.
    fn await_sleep(&mut self, after: Duration, text: &str) {
        let (qmp, mut events, tell, text) = (self.qmp.clone(), self.qmp.events(), self.tell.clone(), text.to_owned());
        self.clerks.spawn(async move {
            if !sleeps(&mut events).await {
                return;
            }
            tokio::time::sleep(after).await;
            let why = qmp.execute(SystemWakeup {}).await.err();
            let why = why.map(|error| error.told());
            let event = control(&text, why.as_deref().unwrap_or("it is woken"), why.is_some());
            // Nobody listening is fine.
            let _ = tell.send(event);
        });
    }

    fn act(&mut self, asker: Asker, acting: impl Future<Output = (Outcome, Option<EventKind>)> + Send + 'static) {
        let tell = self.tell.clone();
        let is_late = self.is_late();
        let under_way = UnderWay::new(&self.under_way);
        let act = Box::pin(async move {
            let _under_way = under_way;
            if is_late() {
                asker.answer(Outcome::Refused(LATE.to_owned()));
                return;
            }
            let (outcome, event) = acting.await;
            // It is told before anybody can build on it. Nobody listening is fine.
            event.into_iter().for_each(|event| drop(tell.send(event)));
            asker.answer(outcome);
        });
        // It is there as long as this is.
        let _ = self.orders.send(act);
    }

    /// Whether the command that asks now has come to its end, when that is asked.
    fn is_late(&self) -> impl Fn() -> bool + Send + 'static {
        let (ended, now) = (self.ended.clone(), self.ended.load(Ordering::Relaxed));
        move || ended.load(Ordering::Relaxed) != now
    }

    /// Takes a device out, and answers. What the guest waits for before it lets go of one may be an order to a disk that comes later, so that is not
    /// held up by this.
    fn unplug(&mut self, asker: Asker, device: Device, surprise: bool, text: String) {
        let (hotplug, qmp, lab, tell) = (self.hotplug.clone(), self.qmp.clone(), self.lab.clone(), self.tell.clone());
        let is_late = self.is_late();
        let under_way = UnderWay::new(&self.under_way);
        let act = Box::pin(async move {
            // Of two devices one goes after the other.
            let mut hotplug = hotplug.lock_owned().await;
            if is_late() {
                asker.answer(Outcome::Refused(LATE.to_owned()));
                return;
            }
            // It ends with QEMU, or at its limit.
            tokio::spawn(async move {
                let _under_way = under_way;
                let done = hotplug.unplug(&device, surprise, &qmp, &lab).await;
                let event = control(&text, done.as_ref().err().map_or("", String::as_str), done.is_err());
                // Nobody listening is fine.
                let _ = tell.send(event);
                asker.answer(done.map_or_else(Outcome::Refused, |()| Outcome::Done(String::new())));
            });
        });
        // It is there as long as this is.
        let _ = self.orders.send(act);
    }

    /// Takes memory from the guest, or gives it back, and answers. The guest takes its time, which holds up no order to a disk.
    fn set_balloon(&mut self, asker: Asker, target: Option<u64>, text: String) {
        let (balloon, qmp, tell) = (self.balloon.clone(), self.qmp.clone(), self.tell.clone());
        let is_late = self.is_late();
        let under_way = UnderWay::new(&self.under_way);
        let act = Box::pin(async move {
            // Of two such orders one goes after the other.
            let mut balloon = balloon.lock_owned().await;
            if is_late() {
                asker.answer(Outcome::Refused(LATE.to_owned()));
                return;
            }
            // It ends with QEMU, or at its limit.
            tokio::spawn(async move {
                let _under_way = under_way;
                let done = balloon.set(&qmp, target).await;
                let (Ok(said) | Err(said)) = &done;
                // Nobody listening is fine.
                let _ = tell.send(control(&text, said, done.is_err()));
                asker.answer(done.map_or_else(Outcome::Refused, Outcome::Done));
            });
        });
        // It is there as long as this is.
        let _ = self.orders.send(act);
    }

    /// The command has ended: what it has ordered and was not done yet is not done any more.
    pub(crate) fn end_command(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many orders wait to be done, or are being done.
    pub(crate) fn under_way(&self) -> u64 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Waits until all is done that was asked for before.
    pub(crate) async fn all_done(&self) {
        let (done, is_done) = oneshot::channel();
        let _ = self.orders.send(Box::pin(async move {
            let _: Result<(), ()> = done.send(());
        }));
        let _ = is_done.await;
        // Memory is taken beside them.
        drop(self.balloon.lock().await);
    }

    /// Plugs the cable in again that was plugged out by order; gives whether it was.
    ///
    /// # Errors
    /// When QEMU does not.
    pub(crate) async fn plug_in(&self) -> Result<bool, String> {
        if !self.unplugged.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        let done = self.qmp.execute(SetLink { name: CARD, up: true }).await;
        done.map(|_| true).map_err(|error| error.told())
    }

    /// Whether the network card's cable is plugged out by order.
    pub(crate) fn is_cable_out(&self) -> bool {
        self.unplugged.load(Ordering::Relaxed)
    }

    /// Why what the machine is now would not come back with another that goes on from its state, if so.
    pub(crate) async fn not_kept(&self) -> Option<String> {
        if self.is_cable_out() {
            return Some("the network card's cable is plugged out; plug it in before that: link up".to_owned());
        }
        if self.balloon.lock().await.is_taken() {
            return Some("memory was taken from the guest; give it back before that: balloon full".to_owned());
        }
        let what = self.hotplug.lock().await.changed()?;
        Some(format!(
            "what was changed of the machine ({what}) would come back as it was at first; put it back before that"
        ))
    }

    /// What was done to the clock of the machine that this one takes the place of is done to this one's.
    pub(crate) fn inherit_clock(&mut self, before: &Self) {
        self.clock_changed |= before.clock_changed;
    }

    /// What of the machine is otherwise than it was at first and stays so, for a person.
    pub(crate) async fn changed(&self) -> Option<String> {
        let plugged = self.hotplug.lock().await.changed().map(|what| format!("{what} plugged in or out"));
        let clock = self.clock_changed.then(|| "its clock".to_owned());
        let boot = self.lab.is_boot_harmed().then(|| {
            format!(
                "its boot disk (disk {BOOT_LAB}) was made to fail, which what is mounted of it may not have survived"
            )
        });
        let all: Vec<String> = plugged.into_iter().chain(clock).chain(boot).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// What was ordered up to now is part of the guest.
    pub(crate) async fn keep(&self) {
        self.balloon.lock().await.keep();
    }

    /// Gives back the memory that was taken from the guest.
    ///
    /// # Errors
    /// When QEMU does not.
    pub(crate) async fn give_back(&self) -> Result<GivenBack, String> {
        self.balloon.lock().await.give_back(&self.qmp).await
    }

    /// The disks.
    pub(crate) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A command begins.
    pub(crate) fn begin_command(&mut self) {
        self.recorded = 0;
    }

    /// That something was done, as it is told: of a command that orders very much not all is.
    pub(crate) fn record(&mut self, event: EventKind) -> Option<EventKind> {
        self.recorded += 1;
        match self.recorded.cmp(&(MOST_RECORDED + 1)) {
            std::cmp::Ordering::Less => Some(event),
            std::cmp::Ordering::Equal => Some(EventKind::Warning {
                message: format!(
                    "the command gives more than {MOST_RECORDED} orders: the rest is done, and not recorded"
                ),
            }),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// What was done and is not told yet.
    pub(crate) fn news(&mut self) -> Option<EventKind> {
        while let Ok(event) = self.told.try_recv() {
            let told = self.record(event);
            if told.is_some() {
                return told;
            }
        }
        None
    }

    /// Waits for something that was done.
    pub(crate) async fn next(&mut self) -> EventKind {
        while let Some(event) = self.told.recv().await {
            if let Some(told) = self.record(event) {
                return told;
            }
        }
        std::future::pending().await
    }
}

/// An order that is counted until it is done, or is not to be.
#[derive(Debug)]
struct UnderWay(Arc<AtomicU64>);

impl UnderWay {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Has the agent do something to the guest's clock.
///
/// # Errors
/// Why it has not, for a person.
async fn change_clock(agent: Option<Arc<Reports>>, change: ToAgent) -> Result<(), String> {
    let Some(agent) = agent else { return Err("there is no agent in this guest that could set its clock".to_owned()) };
    match tokio::time::timeout(STEPPING, agent.change_clock(&change)).await {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(why))) => Err(why),
        Ok(Err(_)) | Err(_) => Err("the agent did not say what came of it".to_owned()),
    }
}

/// Waits until the guest suspends itself; gives whether it has.
async fn sleeps(events: &mut EventStream) -> bool {
    while let Some(event) = events.next().await {
        if event.name == "SUSPEND" {
            return true;
        }
    }
    false
}
