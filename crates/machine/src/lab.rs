//! The lab disks of a machine: each is served by a process of its own ([`crate::qemu::sandbox`]) beside QEMU, and told by Belljar what is to
//! happen to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream as StdStream,
    },
    pin::Pin,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use belljar_guest_spec::machine_order::MachineOrder;
use belljar_lab::{
    Setup,
    control::{Answer, Class, MAX_LINE, Order},
};
use belljar_model::EventKind;
use belljar_proto::message::{MAX_SAID, Outcome};
use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use crate::{
    beside::{Beside, Noted},
    companion::{Companion, of_line},
    console::sanitize::sanitize_line,
    host::HostContext,
    qemu::{
        args::CARD,
        qmp::{InjectNmi, Qmp, SetLink},
    },
    session::agent::Reports,
    watch::control,
};

/// How long a server may take for an order. One that cuts the power of a large disk may have much to write.
const LIMIT: Duration = Duration::from_secs(60);

/// A disk that is to be served.
#[derive(Debug)]
pub(crate) struct LabDisk {
    /// Its serial number.
    pub(crate) name: String,
    pub(crate) setup: Setup,
    /// As the setup wants them.
    pub(crate) files: Vec<File>,
    /// The server's end of the line to QEMU.
    pub(crate) line: StdStream,
    /// What takes the guest's writes, to be looked at while it runs.
    pub(crate) written: File,
}

/// The line from another machine to a disk that is served already.
#[derive(Debug)]
pub(crate) struct LabLine {
    /// The disk's serial number.
    pub(crate) name: String,
    /// The server's end of the line to QEMU.
    pub(crate) line: StdStream,
    /// What takes the guest's writes.
    pub(crate) written: File,
}

/// One that is served.
#[derive(Debug)]
struct Served {
    name: String,
    process: Companion,
    orders: Orders,
}

/// The line on which a server gets its orders.
#[derive(Debug)]
struct Orders(BufReader<UnixStream>);

/// All of a machine's. Dropping the last of them ends their servers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lab {
    disks: Arc<Mutex<Vec<Served>>>,
    names: Arc<[String]>,
    told: Told,
    /// One of them was told to behave otherwise than a good disk does.
    has_orders: Arc<AtomicBool>,
    hanging: Hanging,
}

/// Faults by which requests hang, of which whoever waits for the guest is told.
#[derive(Clone, Debug, Default)]
struct Hanging(Arc<StdMutex<BTreeMap<String, BTreeSet<u32>>>>);

impl Hanging {
    fn now(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<u32>>> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order was carried out.
    fn note(&self, name: &str, order: &Order, answer: &Answer) {
        let mut now = self.now();
        match (order, answer) {
            (Order::Arm(text), Answer::Armed { number, .. }) if text.starts_with("hang") => {
                now.entry(name.to_owned()).or_default().insert(*number);
            }
            (Order::Heal(Some(number)), Answer::Healed(_)) => {
                if let Some(numbers) = now.get_mut(name) {
                    numbers.remove(number);
                }
            }
            (Order::Heal(None), Answer::Healed(_)) => drop(now.remove(name)),
            _ => {}
        }
    }
}

/// What a server is to a person.
fn what(name: &str) -> String {
    format!("the server of the lab disk {name}")
}

impl Served {
    fn start(disk: LabDisk, host: &HostContext) -> io::Result<Self> {
        let LabDisk { name, setup, files, line, written: _ } = disk;
        let (ours, control) = StdStream::pair()?;
        let descriptors = [line.into(), control.into()].into_iter().chain(files.into_iter().map(Into::into)).collect();
        let command = host.shim.command_to_serve_disk(&setup, descriptors)?;
        let process = Companion::start(command, host)?;
        ours.set_nonblocking(true)?;
        Ok(Self { name, process, orders: Orders(BufReader::new(UnixStream::from_std(ours)?)) })
    }
}

impl Orders {
    /// Has an order carried out.
    async fn give(&mut self, order: &Order) -> io::Result<Answer> {
        self.give_with(order, None).await
    }

    /// The same with a line that comes with it.
    async fn give_with(&mut self, order: &Order, with: Option<StdStream>) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(order).map_err(io::Error::other)?;
        line.push(b'\n');
        let answered = async {
            let stream = self.0.get_mut();
            let sent = match &with {
                None => 0,
                Some(with) => {
                    stream.async_io(Interest::WRITABLE, || send_with(stream.as_fd(), &line, with.as_fd())).await?
                }
            };
            stream.write_all(&line[sent..]).await?;
            let mut answer = Vec::new();
            (&mut self.0).take(MAX_LINE as u64).read_until(b'\n', &mut answer).await?;
            if answer.last() != Some(&b'\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            serde_json::from_slice(&answer).map_err(io::Error::other)
        };
        match tokio::time::timeout(LIMIT, answered).await {
            Ok(answer) => answer.map_err(of_line),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }
}

/// Sends the beginning of a line, and a descriptor with it; gives how many bytes.
fn send_with(socket: BorrowedFd<'_>, line: &[u8], with: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = [with];
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    Ok(sendmsg(socket, &[IoSlice::new(line)], &mut message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

/// Where it is told that a server has ended: to whoever watches the machine that there is now.
#[derive(Clone, Debug, Default)]
struct Told(Arc<StdMutex<Option<mpsc::UnboundedSender<String>>>>);

impl Told {
    fn now(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<String>>> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lab {
    /// Starts the servers of all disks; gives what has them noted as long as they run.
    ///
    /// # Errors
    /// When one cannot be started; with what it said.
    pub(crate) async fn start(disks: Vec<LabDisk>, host: &HostContext) -> io::Result<Self> {
        let mut all = Vec::new();
        let told_now = Told::default();
        let (ended, mut ends) = mpsc::unbounded_channel();
        for disk in disks {
            let name = disk.name.clone();
            let told = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
            let mut served = Served::start(disk, host).map_err(told)?;
            // It answers when it has opened its files.
            let Served { process, orders, .. } = &mut served;
            process.answers(async { orders.give(&Order::Counts(None)).await.map(drop) }).await.map_err(told)?;
            process.watch(what(&name), ended.clone()).map_err(told)?;
            all.push(served);
        }
        if !all.is_empty() {
            let told = told_now.clone();
            drop(ended);
            tokio::spawn(async move {
                while let Some(why) = ends.recv().await {
                    // Nobody listening is fine.
                    told.now().as_ref().map(|tell| tell.send(why));
                }
            });
        }
        let names = all.iter().map(|served| served.name.clone()).collect();
        let disks = Arc::new(Mutex::new(all));
        Ok(Self { disks, names, told: told_now, has_orders: Arc::default(), hanging: Hanging::default() })
    }

    /// Tells when a server has ended, instead of whoever was told before; gives what has them noted as long as they run.
    pub(crate) async fn watch(&self, tell: &mpsc::UnboundedSender<String>, beside: &Beside) -> Vec<Noted> {
        *self.told.now() = Some(tell.clone());
        let disks = self.disks.lock().await;
        disks.iter().map(|served| beside.note(what(&served.name), served.process.pid())).collect()
    }

    /// Connects each to another QEMU, and gives those power that have none.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn connect(&self, lines: Vec<LabLine>) -> io::Result<()> {
        let mut disks = self.disks.lock().await;
        for LabLine { name, line, .. } in lines {
            let told = |why: String| io::Error::other(format!("{name}: {why}"));
            let served = disks.iter_mut().find(|served| served.name == name);
            let served = served.ok_or_else(|| told("it is not served".to_owned()))?;
            match served.orders.give_with(&Order::Connect, Some(line)).await.map_err(|e| told(e.to_string()))? {
                Answer::Done => {}
                other => return Err(told(format!("it says {other:?}"))),
            }
            // One that has power says so.
            served.orders.give(&Order::On).await.map_err(|e| told(e.to_string()))?;
        }
        Ok(())
    }

    /// Cuts the power of all: what was not flushed is lost, but for what this seed chooses. Gives what that did, for a person.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn cut(&self, seed: Option<u64>) -> Result<String, String> {
        let mut told = Vec::new();
        self.has_orders.store(true, Ordering::Relaxed);
        for (served, at) in self.disks.lock().await.iter_mut().zip(0u64..) {
            // Not each the same part of what it was asked.
            let seed = seed.map(|seed| seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let name = &served.name;
            match served.orders.give(&Order::Cut(seed)).await {
                Ok(Answer::Cut { pending, lost }) => {
                    told.push(format!("{name} lost {lost} of {pending} changes that were not flushed"));
                }
                Ok(Answer::Refused(why)) => told.push(format!("{name}: {why}")),
                Ok(other) => return Err(format!("{}: it says {other:?}", what(name))),
                Err(error) => return Err(format!("{}: {error}", what(name))),
            }
        }
        Ok(told.join("; "))
    }

    /// What to say of disks that hang by order, beside that something took too long; nothing where none does.
    pub(crate) fn hangs(&self) -> Option<String> {
        let now = self.hanging.now();
        let names: Vec<_> =
            now.iter().filter(|(_, faults)| !faults.is_empty()).map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "the test has ordered that requests to the lab disk {} hang, and has not healed that",
                names.join(" and ")
            )
        })
    }

    /// What the disks are told up to now is part of the guest, and comes back by [`renew`](Self::renew).
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn keep(&self) -> Result<(), String> {
        self.tell_all(&Order::Keep).await
    }

    /// Has all disks be as they were when that was [kept](Self::keep), but for their bytes; gives what was otherwise, for a person.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn renew(&self) -> Result<Option<String>, String> {
        let mut all = Vec::new();
        for served in &mut *self.disks.lock().await {
            match served.orders.give(&Order::Renew).await {
                Ok(Answer::Renewed(was)) if was.is_empty() => {}
                Ok(Answer::Renewed(was)) => all.push(format!("{} ({})", served.name, was.join(", "))),
                Ok(other) => return Err(format!("{}: it says {other:?}", what(&served.name))),
                Err(error) => return Err(format!("{}: {error}", what(&served.name))),
            }
        }
        // One that its set-up has armed is forgotten here, of which the set-up's author knows.
        self.hanging.now().clear();
        // What the kernel says of a disk from here on nobody has ordered in this test.
        self.has_orders.store(false, Ordering::Relaxed);
        Ok((!all.is_empty()).then(|| all.join(", ")))
    }

    /// Whether there is one.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Has all that was written to each put down, so that copies can begin with it.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn freeze(&self) -> Result<(), String> {
        self.tell_all(&Order::Freeze).await
    }

    /// Has each do something of which there is nothing to say.
    async fn tell_all(&self, order: &Order) -> Result<(), String> {
        for served in &mut *self.disks.lock().await {
            let why = match served.orders.give(order).await {
                Ok(Answer::Done) => continue,
                Ok(Answer::Refused(why)) => why,
                Ok(other) => format!("it says {other:?}"),
                Err(error) => error.to_string(),
            };
            return Err(format!("{}: {why}", what(&served.name)));
        }
        Ok(())
    }

    /// Does what is asked for in the words of the manual, `NAME ORDER`; gives what there is to say, and what there is to tell of it.
    pub(crate) async fn ask(&self, text: &str) -> (Outcome, Option<EventKind>) {
        let (name, rest) = text.split_once(char::is_whitespace).map_or((text, ""), |(name, rest)| (name, rest.trim()));
        let refused = |why: String| (Outcome::Refused(sanitize_line(why.as_bytes())), None);
        let mut disks = self.disks.lock().await;
        let Some(served) = disks.iter_mut().find(|served| served.name == name) else {
            return refused(if self.is_empty() {
                "this guest has no lab disks; make one with lab = true in its disks, or --disk size=1G,lab".to_owned()
            } else {
                let name = sanitize_line(name.as_bytes());
                format!("there is no lab disk {name:?}; there are {}", self.names.join(", "))
            });
        };
        let order = match Order::parse(rest) {
            Ok(order) => order,
            Err(why) => return refused(why),
        };
        let mut told = String::new();
        let answer = match served.orders.give(&order).await {
            Ok(answer) => {
                self.hanging.note(name, &order, &answer);
                told = answer.told();
                answer.said(MAX_SAID)
            }
            Err(error) => Err(format!("{}: {error}", what(name))),
        };
        let refused = answer.is_err();
        let said = answer.unwrap_or_else(|why| sanitize_line(why.as_bytes()));
        if order.class() == Class::Change && !refused {
            self.has_orders.store(true, Ordering::Relaxed);
        }
        let event = (order.class() == Class::Change).then(|| EventKind::Control {
            device: format!("disk {name}"),
            order: sanitize_line(rest.as_bytes()),
            outcome: format!("{}{told}", said.trim()),
            refused,
        });
        (if refused { Outcome::Refused(said) } else { Outcome::Done(said) }, event)
    }
}

/// Something that is to be done.
type Act = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What programs in a guest ask of its lab disks and of the machine, done one after another, in the order in which they ask, beside whatever else goes on.
#[derive(Debug)]
pub(crate) struct Desk {
    lab: Lab,
    qmp: Qmp,
    /// Who does it. What is not done goes with the machine.
    _clerk: JoinSet<()>,
    orders: mpsc::UnboundedSender<Act>,
    tell: mpsc::UnboundedSender<EventKind>,
    told: mpsc::UnboundedReceiver<EventKind>,
    /// How much of it was told since the command has begun.
    recorded: usize,
    /// The network card's cable is plugged out by order.
    unplugged: Arc<AtomicBool>,
}

/// Most orders of one command that are recorded.
const MOST_RECORDED: usize = 1000;

impl Desk {
    pub(crate) fn new(lab: Lab, qmp: Qmp) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (orders, mut to_do) = mpsc::unbounded_channel::<Act>();
        let mut clerk = JoinSet::new();
        clerk.spawn(async move {
            while let Some(act) = to_do.recv().await {
                act.await;
            }
        });
        Self { lab, qmp, _clerk: clerk, orders, tell, told, recorded: 0, unplugged: Arc::default() }
    }

    /// Does what was asked of a disk, and answers.
    pub(crate) fn take(&mut self, number: u32, text: String, reports: Arc<Reports>) {
        let lab = self.lab.clone();
        self.act(number, reports, async move { lab.ask(&text).await });
    }

    /// Does what was asked of the machine, and answers.
    pub(crate) fn take_machine(&mut self, number: u32, order: MachineOrder, text: &str, reports: Arc<Reports>) {
        let (qmp, text, unplugged) = (self.qmp.clone(), text.to_owned(), self.unplugged.clone());
        self.act(number, reports, async move {
            let done = match order {
                MachineOrder::Link(up) => {
                    let done = qmp.execute(SetLink { name: CARD, up }).await.map(drop);
                    unplugged.store(done.is_ok() && !up, Ordering::Relaxed);
                    done
                }
                _ => qmp.execute(InjectNmi {}).await.map(drop),
            };
            let why = done.err().map(|error| sanitize_line(error.to_string().as_bytes()));
            let event = control(&text, why.as_deref().unwrap_or_default(), why.is_some());
            (why.map_or_else(|| Outcome::Done(String::new()), Outcome::Refused), Some(event))
        });
    }

    fn act(
        &mut self,
        number: u32,
        reports: Arc<Reports>,
        acting: impl Future<Output = (Outcome, Option<EventKind>)> + Send + 'static,
    ) {
        let tell = self.tell.clone();
        let act = Box::pin(async move {
            let (outcome, event) = acting.await;
            // It is told before anybody can build on it. Nobody listening is fine.
            event.into_iter().for_each(|event| drop(tell.send(event)));
            reports.answer(number, outcome);
        });
        // It is there as long as this is.
        let _ = self.orders.send(act);
    }

    /// Waits until all is done that was asked for before.
    pub(crate) async fn all_done(&self) {
        let (done, is_done) = tokio::sync::oneshot::channel();
        let _ = self.orders.send(Box::pin(async move {
            let _: Result<(), ()> = done.send(());
        }));
        let _ = is_done.await;
    }

    /// Whether a lab disk was told to behave otherwise than a good disk does.
    pub(crate) fn has_told_disks(&self) -> bool {
        self.lab.has_orders.load(Ordering::Relaxed)
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
        done.map(|_| true).map_err(|error| sanitize_line(error.to_string().as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_hang_by_order_are_known() {
        let hanging = Hanging::default();
        let lab = Lab { hanging: hanging.clone(), ..Lab::default() };
        let armed = |number| Answer::Armed { number, seed: None };
        hanging.note("a", &Order::Arm("error all".into()), &armed(1));
        assert_eq!(lab.hangs(), None);
        hanging.note("a", &Order::Arm("hang write".into()), &armed(2));
        hanging.note("b", &Order::Arm("hang all".into()), &armed(1));
        assert!(lab.hangs().unwrap().contains("to the lab disk a and b hang"));
        hanging.note("a", &Order::Heal(Some(2)), &Answer::Refused("no".into()));
        hanging.note("a", &Order::Heal(Some(2)), &Answer::Healed(1));
        hanging.note("b", &Order::Heal(None), &Answer::Healed(1));
        assert_eq!(lab.hangs(), None);
    }
}
