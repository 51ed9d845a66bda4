//! The lab disks of a machine: each is served by a process of its own ([`crate::qemu::sandbox`]) beside QEMU, and told by Belljar what is to
//! happen to it.

use std::{
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
        Ok(Self { disks: Arc::new(Mutex::new(all)), names, told: told_now, has_orders: Arc::default() })
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

    /// Whether there is one.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Has all that was written to each put down, so that copies can begin with it.
    ///
    /// # Errors
    /// When a server does not; with which one.
    pub(crate) async fn freeze(&self) -> Result<(), String> {
        for served in &mut *self.disks.lock().await {
            let why = match served.orders.give(&Order::Freeze).await {
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
        let answer = match served.orders.give(&order).await {
            Ok(answer) => answer.said(),
            Err(error) => Err(format!("{}: {error}", what(name))),
        };
        let refused = answer.is_err();
        let said = match answer {
            Ok(said) => cut(said),
            Err(why) => sanitize_line(why.as_bytes()),
        };
        if order.class() == Class::Change && !refused {
            self.has_orders.store(true, Ordering::Relaxed);
        }
        let event = (order.class() == Class::Change).then(|| EventKind::Control {
            device: format!("disk {name}"),
            order: sanitize_line(rest.as_bytes()),
            outcome: said.trim().to_owned(),
            refused,
        });
        (if refused { Outcome::Refused(said) } else { Outcome::Done(said) }, event)
    }
}

/// What is said, as far as it fits into one message; the last of it where it does not, with how much is missing.
fn cut(said: String) -> String {
    if said.len() <= MAX_SAID {
        return said;
    }
    let room = MAX_SAID - 64;
    let begin = (said.len() - room..said.len()).find(|at| said.as_bytes()[at - 1] == b'\n').unwrap_or(said.len());
    format!("missing {} lines before these\n{}", said[..begin].lines().count(), &said[begin..])
}

/// Something that is to be done.
type Act = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What programs in a guest ask of its lab disks and of the machine, done one after another, in the order in which they ask, beside whatever else goes on.
#[derive(Debug)]
pub(crate) struct Desk {
    lab: Lab,
    qmp: Qmp,
    /// Who does it. What is not done goes with the machine.
    clerk: JoinSet<()>,
    orders: mpsc::UnboundedSender<Act>,
    tell: mpsc::UnboundedSender<EventKind>,
    told: mpsc::UnboundedReceiver<EventKind>,
}

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
        Self { lab, qmp, clerk, orders, tell, told }
    }

    /// Does what was asked of a disk, and answers.
    pub(crate) fn take(&mut self, number: u32, text: String, reports: Arc<Reports>) {
        let lab = self.lab.clone();
        self.act(number, reports, async move { lab.ask(&text).await });
    }

    /// Does what was asked of the machine, and answers.
    pub(crate) fn take_machine(&mut self, number: u32, order: MachineOrder, text: &str, reports: Arc<Reports>) {
        let (qmp, text) = (self.qmp.clone(), text.to_owned());
        self.act(number, reports, async move {
            let done = match order {
                MachineOrder::Link(up) => qmp.execute(SetLink { name: CARD, up }).await.map(drop),
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
        let _ = self.orders.send(Box::pin(async move { let _: Result<(), ()> = done.send(()); }));
        let _ = is_done.await;
    }

    /// Whether a lab disk was told to behave otherwise than a good disk does.
    pub(crate) fn has_told_disks(&self) -> bool {
        self.lab.has_orders.load(Ordering::Relaxed)
    }

    /// What was done and is not told yet.
    pub(crate) fn news(&mut self) -> Option<EventKind> {
        self.told.try_recv().ok()
    }

    /// Waits for something that was done.
    pub(crate) async fn next(&mut self) -> EventKind {
        match self.told.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_a_message_is_cut_at_its_beginning() {
        assert_eq!(cut("a\n".into()), "a\n");
        let long: String = (0..9000).map(|line| format!("{line} ä\n")).collect();
        let short = cut(long.clone());
        assert!(short.len() <= MAX_SAID && long.ends_with(short.split_once('\n').unwrap().1));
        let missing: usize = short.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(missing + short.lines().count() - 1, 9000);
    }
}
