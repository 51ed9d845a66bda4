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
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use belljar_guest_spec::fault::{Effect, Fault};
use belljar_lab::{
    Setup,
    control::{Answer, Class, MAX_LINE, Order},
};
use belljar_model::EventKind;
use belljar_proto::message::{DiskChange, DiskInUse, MAX_SAID, Outcome};
use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    sync::{Mutex, mpsc},
    time::Instant,
};

use crate::{
    Cause,
    beside::{Beside, Noted},
    companion::{Companion, of_line},
    console::sanitize::sanitize_line,
    harmed::{HarmedDisk, HarmedDisks},
    host::HostContext,
    volume::{BOOT_LAB, Watched},
};

/// How long a server may take for an order. One that cuts the power of a large disk may have much to write.
const LIMIT: Duration = Duration::from_secs(60);

/// From how long on a request that is delayed is told as one that hangs.
const LONG: Duration = Duration::from_secs(5);

/// How long what the kernel has said may take until it is read.
const TOLD_LATE: Duration = Duration::from_secs(10);

/// A disk that is to be served.
#[derive(Debug)]
pub(crate) struct LabDisk {
    /// Its serial number.
    pub(crate) name: String,
    pub(crate) setup: Setup,
    /// As the setup wants them.
    pub(crate) files: Vec<File>,
    /// The server's ends of the lines to QEMU, one for each path.
    pub(crate) lines: Vec<StdStream>,
    /// What takes the guest's writes, to be looked at while it runs.
    pub(crate) written: File,
    /// The image from which it is served as it is.
    pub(crate) watched: Option<Watched>,
    /// QEMU takes a write that is to be durable when it is answered (FUA) for any other, although its guest relies on it: of NVMe disks.
    pub(crate) forgets_fua: bool,
}

/// The lines from another machine to a disk that is served already.
#[derive(Debug)]
pub(crate) struct LabLine {
    /// The disk's serial number.
    pub(crate) name: String,
    /// The server's ends of the lines to QEMU, one for each path.
    pub(crate) lines: Vec<StdStream>,
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
    /// Images that are not to change.
    images: Arc<[Watched]>,
    /// Those of which QEMU [forgets FUA](LabDisk::forgets_fua).
    forgetful: Arc<BTreeSet<String>>,
    told: Told,
    /// Those that were told to behave otherwise than good disks do.
    harmed: HarmedDisks,
    /// Those that were since that was asked the last time, or [kept](Lab::keep).
    broken: Broken,
    hanging: Hanging,
}

/// Disks that what uses them may not have survived, by their serial numbers.
#[derive(Clone, Debug, Default)]
struct Broken(Arc<StdMutex<BTreeSet<String>>>);

impl Broken {
    fn all(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Faults by which requests hang, of which whoever waits for the guest is told.
#[derive(Clone, Debug, Default)]
struct Hanging(Arc<StdMutex<HangingNow>>);

#[derive(Debug, Default)]
struct HangingNow {
    /// The numbers of the faults, by disk.
    faults: BTreeMap<String, BTreeSet<u32>>,
    /// When one was healed the last time.
    healed: Option<Instant>,
}

impl Hanging {
    fn now(&self) -> MutexGuard<'_, HangingNow> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order was carried out.
    fn note(&self, name: &str, order: &Order, answer: &Answer) {
        let mut now = self.now();
        match (order, answer) {
            (Order::Arm(text), Answer::Armed { number, .. }) if holds_up(text) => {
                now.faults.entry(name.to_owned()).or_default().insert(*number);
            }
            (Order::Heal(number), Answer::Healed(_)) => {
                let healed = match number {
                    Some(number) => now.faults.get_mut(name).is_some_and(|numbers| numbers.remove(number)),
                    None => now.faults.remove(name).is_some_and(|numbers| !numbers.is_empty()),
                };
                if healed {
                    now.healed = Some(Instant::now());
                }
            }
            _ => {}
        }
    }
}

/// Whether a fault has requests wait for so long that whoever asks seems to stand still.
fn holds_up(fault: &str) -> bool {
    let effect = fault.parse().ok().map(|fault: Fault| fault.effect);
    effect.is_some_and(|effect| match effect {
        Effect::Hang => true,
        Effect::Delay(by) => by >= LONG,
        _ => false,
    })
}

/// What a server is to a person.
fn what(name: &str) -> String {
    format!("the server of the lab disk {name}")
}

impl Served {
    fn start(disk: LabDisk, host: &HostContext) -> io::Result<Self> {
        let LabDisk { name, setup, files, lines, written: _, watched: _, forgets_fua: _ } = disk;
        let (ours, control) = StdStream::pair()?;
        let sockets = lines.into_iter().chain([control]).map(Into::into);
        let descriptors = sockets.chain(files.into_iter().map(Into::into)).collect();
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
        let forgetful = disks.iter().filter(|disk| disk.forgets_fua).map(|disk| disk.name.clone()).collect();
        let images = disks.iter().filter_map(|disk| disk.watched.clone()).collect();
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
        let forgetful = Arc::new(forgetful);
        Ok(Self { disks, names, images, forgetful, told: told_now, ..Self::default() })
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
        for LabLine { name, lines, .. } in lines {
            let told = |why: String| io::Error::other(format!("{name}: {why}"));
            let served = disks.iter_mut().find(|served| served.name == name);
            let served = served.ok_or_else(|| told("it is not served".to_owned()))?;
            for (path, line) in (0..).zip(lines) {
                let order = Order::Connect(path);
                match served.orders.give_with(&order, Some(line)).await.map_err(|e| told(e.to_string()))? {
                    Answer::Done => {}
                    other => return Err(told(format!("it says {other:?}"))),
                }
            }
            // One that has power says so.
            served.orders.give(&Order::On).await.map_err(|e| told(e.to_string()))?;
        }
        Ok(())
    }

    /// Why what the guest has read of a disk is not to be believed, if its image has changed since the guest was prepared.
    pub(crate) fn spoilt(&self) -> Option<Cause> {
        self.images.iter().find_map(Watched::change).map(Cause::ShareServer)
    }

    /// QEMU's own flushes do nothing until it is said that its guest [runs](Self::begin).
    ///
    /// # Errors
    /// When a server does not take note; with which one.
    pub(crate) async fn still(&self) -> Result<(), String> {
        self.tell_all(&Order::Still).await
    }

    /// The guest runs: faults and flushes are as ever.
    ///
    /// # Errors
    /// When a server does not take note; with which one.
    pub(crate) async fn begin(&self) -> Result<(), String> {
        self.tell_all(&Order::Begin).await
    }

    /// From now on none does or answers anything, until its power is [cut](Self::cut).
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn hold(&self) -> Result<(), String> {
        self.tell_all(&Order::Hold).await
    }

    /// Has what hangs fail, and all that QEMU asks for yet: the machine is down.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn let_go(&self) -> Result<(), String> {
        self.tell_all(&Order::LetGo).await
    }

    /// Cuts the power of all: what was not flushed is lost, but for what this seed chooses. Gives what that did, for a person.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn cut(&self, seed: Option<u64>) -> Result<String, String> {
        let mut told = Vec::new();
        self.names.iter().for_each(|name| self.harmed.note(name, None));
        for (served, at) in self.disks.lock().await.iter_mut().zip(0u64..) {
            // Not each the same part of what it was asked.
            let seed = seed.map(|seed| seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let name = &served.name;
            match served.orders.give(&Order::Cut(seed)).await {
                Ok(Answer::Cut { pending, lost }) => {
                    let more = self.of_forgotten(name, pending);
                    told.push(format!("{name} lost {lost} of {pending} changes that were not flushed{more}"));
                }
                Ok(Answer::Refused(why)) => told.push(format!("{name}: {why}")),
                Ok(other) => return Err(format!("{}: it says {other:?}", what(name))),
                Err(error) => return Err(format!("{}: {error}", what(name))),
            }
        }
        Ok(told.join("; "))
    }

    /// What to say, where power is cut, of so many changes to a disk that were not flushed.
    fn of_forgotten(&self, name: &str, pending: u64) -> &'static str {
        if pending > 0 && self.forgetful.contains(name) {
            " (what the guest had made durable without a flush may be among them: QEMU's NVMe disk forgets FUA)"
        } else {
            ""
        }
    }

    /// What to say of disks that hang by order, beside that something took too long; nothing where none does.
    pub(crate) fn hangs(&self) -> Option<String> {
        let now = self.hanging.now();
        let names: Vec<_> =
            now.faults.iter().filter(|(_, faults)| !faults.is_empty()).map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "the test has ordered that requests to the lab disk {} hang or are put off for long, and has not healed that",
                names.join(" and ")
            )
        })
    }

    /// Whether what the kernel says now of a task that hangs may be what was ordered: a disk hangs, or did until a moment ago.
    pub(crate) fn may_hang_tasks(&self) -> bool {
        let now = self.hanging.now();
        now.faults.values().any(|faults| !faults.is_empty())
            || now.healed.is_some_and(|healed| healed.elapsed() < TOLD_LATE)
    }

    /// What is on them now is remembered under this number.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn snapshot(&self, number: u32) -> Result<(), String> {
        self.tell_all(&Order::Snapshot(number)).await
    }

    /// What is on them is what was remembered under this number.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn go_back(&self, number: u32) -> Result<(), String> {
        self.tell_all(&Order::GoBack(number)).await
    }

    /// Nothing is remembered any more.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn forget(&self) -> Result<(), String> {
        self.tell_all(&Order::Forget).await
    }

    /// What the disks are told up to now is part of the guest, and comes back by [`renew`](Self::renew).
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn keep(&self) -> Result<(), String> {
        self.broken.all().clear();
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
        *self.hanging.now() = HangingNow::default();
        // What the kernel says of a disk from here on nobody has ordered in this test.
        self.harmed.forget();
        Ok((!all.is_empty()).then(|| all.join(", ")))
    }

    /// The disks that were told to behave otherwise than good ones do, which may be others than lab disks.
    pub(crate) fn harmed(&self) -> &HarmedDisks {
        &self.harmed
    }

    /// This order is about to be given to a disk. What the kernel says may be read before the disk has answered.
    fn note_before(&self, name: &str, order: &Order) -> Option<HarmedDisk> {
        // Mending it is no harm of its own.
        let harms = order.may_harm(&Answer::Done) && !matches!(order, Order::Heal(_));
        harms.then(|| self.harmed.note_again(name, order.path()))
    }

    /// It was given, with this answer.
    fn note_after(&self, name: &str, order: &Order, answer: &Answer, before: Option<HarmedDisk>) {
        if !order.may_harm(answer) {
            if let Some(before) = before {
                self.harmed.put_back(name, before);
            }
            return;
        }
        if matches!(order, Order::Heal(_)) && !self.harmed.has(name) {
            // A set-up has ordered it.
            self.harmed.note(name, None);
        }
        self.broken.all().insert(name.to_owned());
    }

    /// Something was done to a disk, or to one path of it, that good ones do not do: its requests fail.
    pub(crate) fn note_harm(&self, name: &str, path: Option<u32>) {
        self.harmed.note(name, path);
        self.broken.all().insert(name.to_owned());
    }

    /// Whether the disk from which the guest has booted was told to behave otherwise than a good one does, in which case what is mounted of it may be of no
    /// more use although it behaves well again: a file system that could not write its journal stays read-only.
    pub(crate) fn is_boot_harmed(&self) -> bool {
        self.broken.all().contains(BOOT_LAB)
    }

    /// Cuts the power of one disk: what was not flushed is lost. Gives whether it had power.
    ///
    /// # Errors
    /// When its server does not.
    pub(crate) async fn cut_one(&self, name: &str) -> Result<bool, String> {
        self.note_harm(name, None);
        match self.tell(name, &Order::Cut(None)).await? {
            Answer::Cut { .. } => Ok(true),
            Answer::Refused(_) => Ok(false),
            other => Err(format!("{}: it says {other:?}", what(name))),
        }
    }

    /// Gives one disk power again.
    ///
    /// # Errors
    /// When its server does not.
    pub(crate) async fn give_power(&self, name: &str) -> Result<(), String> {
        // One that has power says so.
        self.tell(name, &Order::On).await.map(drop)
    }

    /// Has what hangs on one disk, and all that comes, fail until it is given [power](Self::give_power) again: its medium is taken out. Gives whether that is so;
    /// not where it has no power.
    ///
    /// # Errors
    /// When its server does not.
    pub(crate) async fn let_go_of(&self, name: &str) -> Result<bool, String> {
        match self.tell(name, &Order::TakeOut).await? {
            Answer::Done => Ok(true),
            Answer::Refused(_) => Ok(false),
            other => Err(format!("{}: it says {other:?}", what(name))),
        }
    }

    async fn tell(&self, name: &str, order: &Order) -> Result<Answer, String> {
        let mut disks = self.disks.lock().await;
        let served = disks.iter_mut().find(|served| served.name == name);
        let served = served.ok_or_else(|| format!("{name}: it is not served"))?;
        served.orders.give(order).await.map_err(|error| format!("{}: {error}", what(name)))
    }

    /// Which of these disks of the guest are lab disks, and how they are used, for a person; nothing where none is. One whose serial number the guest's kernel
    /// does not say may be one.
    pub(crate) fn in_use(&self, found: &[DiskInUse]) -> Option<String> {
        shown(found.iter().filter(|disk| self.may_be_ours(&disk.serial)))
    }

    /// The same of disks that are not as they were, and what became of them.
    pub(crate) fn changed(&self, found: &[DiskChange]) -> Option<String> {
        let ours = found.iter().filter(|disk| self.may_be_ours(&disk.serial));
        let told = |disk: &DiskChange| format!("{} ({} {})", called(&disk.serial), disk.device, disk.change);
        let all: Vec<String> = ours.map(told).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    fn may_be_ours(&self, serial: &str) -> bool {
        !self.is_empty() && (serial.is_empty() || self.names.iter().any(|name| name == serial))
    }

    /// The same of those that what uses them may not have survived, because they were told to behave otherwise than good ones do since this was asked the last
    /// time.
    pub(crate) fn take_broken(&self, in_use: &[DiskInUse]) -> Option<String> {
        let broken = std::mem::take(&mut *self.broken.all());
        let is_broken =
            |disk: &&DiskInUse| !broken.is_empty() && (disk.serial.is_empty() || broken.contains(&disk.serial));
        shown(in_use.iter().filter(is_broken))
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
        let before = self.note_before(name, &order);
        let answer = match served.orders.give(&order).await {
            Ok(answer) => {
                self.hanging.note(name, &order, &answer);
                self.note_after(name, &order, &answer, before);
                told = answer.told();
                if let Answer::Cut { pending, .. } = answer {
                    told += self.of_forgotten(name, pending);
                }
                answer.said(MAX_SAID)
            }
            Err(error) => Err(format!("{}: {error}", what(name))),
        };
        let refused = answer.is_err();
        let said = answer.unwrap_or_else(|why| sanitize_line(why.as_bytes()));
        let event = (order.class() == Class::Change).then(|| EventKind::Control {
            device: format!("disk {name}"),
            order: sanitize_line(rest.as_bytes()),
            outcome: format!("{}{told}", said.trim().replace('\n', ", ")),
            refused,
        });
        (if refused { Outcome::Refused(said) } else { Outcome::Done(said) }, event)
    }
}

/// Disks and how they are used, for a person.
fn shown<'a>(disks: impl Iterator<Item = &'a DiskInUse>) -> Option<String> {
    let told = |disk: &DiskInUse| format!("{} ({}: {})", called(&disk.serial), disk.device, disk.uses.join(", "));
    let all: Vec<String> = disks.map(told).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// A disk of this serial number, for a person.
fn called(serial: &str) -> &str {
    if serial.is_empty() { "one that does not say its name" } else { serial }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_disks_in_use_those_count_that_are_ours() {
        let lab = Lab { names: ["data0".to_owned()].into(), ..Lab::default() };
        let disk = |device: &str, serial: &str| DiskInUse {
            device: device.into(),
            serial: serial.into(),
            uses: vec!["mounted at /srv".into(), "swap".into()],
        };
        let found = [disk("vda", "data0"), disk("vdb", "other"), disk("vdc", "")];
        let told = "data0 (vda: mounted at /srv, swap), one that does not say its name (vdc: mounted at /srv, swap)";
        assert_eq!(lab.in_use(&found).as_deref(), Some(told));
        assert_eq!(lab.in_use(&found[1..2]), None);
        assert_eq!(Lab::default().in_use(&found), None, "a guest without lab disks");
    }

    #[test]
    fn of_disks_that_changed_those_count_that_are_ours() {
        let lab = Lab { names: ["data0".to_owned()].into(), ..Lab::default() };
        let disk = |device: &str, serial: &str| DiskChange {
            device: device.into(),
            serial: serial.into(),
            change: "is read-only now".into(),
        };
        let found = [disk("vda", "data0"), disk("vdb", "other"), disk("vdc", "")];
        let told = "data0 (vda is read-only now), one that does not say its name (vdc is read-only now)";
        assert_eq!(lab.changed(&found).as_deref(), Some(told));
        assert_eq!((lab.changed(&found[1..2]), Lab::default().changed(&found)), (None, None));
    }

    #[tokio::test]
    async fn a_boot_disk_that_was_made_to_fail_is_known() {
        let lab = Lab { names: ["boot".to_owned(), "data0".to_owned()].into(), ..Lab::default() };
        let error = Order::Arm("error all".into());
        let give = |name: &str, order: &Order, answer: &Answer| {
            let before = lab.note_before(name, order);
            lab.note_after(name, order, answer, before);
        };
        let armed = Answer::Armed { number: 1, seed: None };
        give("data0", &error, &Answer::Refused("no".into()));
        assert!(!lab.harmed().has("data0"), "it is as it was");
        give("data0", &error, &armed);
        give("data0", &error, &Answer::Refused("no".into()));
        assert_eq!((lab.harmed().has("data0"), lab.harmed().has("boot"), lab.is_boot_harmed()), (true, false, false));
        give("boot", &Order::Heal(None), &Answer::Healed(0));
        assert!(!lab.harmed().has("boot"));
        give("boot", &Order::Heal(None), &Answer::Healed(1));
        assert!(lab.harmed().has("boot") && lab.is_boot_harmed());
        lab.renew().await.unwrap();
        assert_eq!((lab.harmed().has("data0"), lab.is_boot_harmed()), (false, true), "what is mounted stays as it is");
        lab.keep().await.unwrap();
        assert!(!lab.is_boot_harmed(), "what a set-up has ordered is part of the guest");
    }

    #[tokio::test]
    async fn a_disk_that_was_made_to_fail_while_it_is_in_use_is_known_once() {
        let lab = Lab { names: ["data0".to_owned(), "data1".to_owned()].into(), ..Lab::default() };
        let in_use =
            |serial: &str| DiskInUse { device: "vda".into(), serial: serial.into(), uses: vec!["swap".into()] };
        let both = [in_use("data0"), in_use("data1")];
        let give = |order: &Order, answer: &Answer| {
            let before = lab.note_before("data1", order);
            lab.note_after("data1", order, answer, before);
        };
        give(&Order::Arm("error all".into()), &Answer::Refused("no".into()));
        assert_eq!((lab.take_broken(&both), lab.take_broken(&[in_use("")])), (None, None));
        give(&Order::Cut(None), &Answer::Cut { pending: 0, lost: 0 });
        lab.renew().await.unwrap();
        assert_eq!(lab.take_broken(&both).as_deref(), Some("data1 (vda: swap)"));
        assert_eq!(lab.take_broken(&both), None);
        lab.note_harm("data0", None);
        assert_eq!(lab.take_broken(&[in_use("data1")]), None, "nobody uses it");
        lab.note_harm("data0", None);
        assert!(lab.take_broken(&[in_use("")]).is_some(), "it may be that one");
        lab.note_harm("data0", None);
        lab.keep().await.unwrap();
        assert_eq!(lab.take_broken(&both), None, "of the set-up's own orders its author knows");
    }

    #[test]
    fn what_qemu_forgets_is_told_where_something_is_lost() {
        let lab = Lab { forgetful: Arc::new(["n0".to_owned()].into()), ..Lab::default() };
        assert!(lab.of_forgotten("n0", 1).contains("forgets FUA"));
        assert_eq!((lab.of_forgotten("n0", 0), lab.of_forgotten("v0", 1)), ("", ""));
    }

    #[test]
    fn disks_that_hang_by_order_are_known() {
        let hanging = Hanging::default();
        let lab = Lab { hanging: hanging.clone(), ..Lab::default() };
        let armed = |number| Answer::Armed { number, seed: None };
        hanging.note("a", &Order::Arm("error all".into()), &armed(1));
        hanging.note("a", &Order::Arm("delay read by=4s".into()), &armed(3));
        assert_eq!((lab.hangs(), lab.may_hang_tasks()), (None, false));
        hanging.note("a", &Order::Arm("delay write by=1min".into()), &armed(2));
        hanging.note("b", &Order::Arm("hang all".into()), &armed(1));
        assert!(lab.hangs().unwrap().contains("to the lab disk a and b hang or"));
        hanging.note("a", &Order::Heal(Some(2)), &Answer::Refused("no".into()));
        hanging.note("a", &Order::Heal(Some(2)), &Answer::Healed(1));
        assert!(lab.may_hang_tasks());
        hanging.note("b", &Order::Heal(None), &Answer::Healed(1));
        assert_eq!((lab.hangs(), lab.may_hang_tasks()), (None, true), "what was said before may be read yet");
        hanging.now().healed = Instant::now().checked_sub(TOLD_LATE);
        assert!(!lab.may_hang_tasks());
    }
}
