//! The lab disks of a machine: each is served by a process of its own ([`crate::qemu::sandbox`]) beside QEMU, and told by Belljar what is to
//! happen to it.

use std::{fs::File, io, os::unix::net::UnixStream as StdStream, sync::Arc, time::Duration};

use belljar_lab::{
    Setup,
    control::{Answer, Class, MAX_LINE, Order},
};
use belljar_model::EventKind;
use belljar_proto::message::{MAX_SAID, Outcome};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{Mutex, mpsc},
    task::JoinSet,
};

use crate::{
    beside::{Beside, Noted},
    companion::{Companion, of_line},
    console::sanitize::sanitize_line,
    host::HostContext,
    session::agent::Reports,
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
        let mut line = serde_json::to_vec(order).map_err(io::Error::other)?;
        line.push(b'\n');
        let answered = async {
            self.0.get_mut().write_all(&line).await?;
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

impl Lab {
    /// Starts the servers of all disks; gives what has them noted as long as they run.
    ///
    /// # Errors
    /// When one cannot be started; with what it said.
    pub(crate) async fn start(disks: Vec<LabDisk>, host: &HostContext) -> io::Result<Self> {
        let mut all = Vec::new();
        for disk in disks {
            let name = disk.name.clone();
            let told = |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
            let mut served = Served::start(disk, host).map_err(told)?;
            // It answers when it has opened its files.
            let Served { process, orders, .. } = &mut served;
            process.answers(async { orders.give(&Order::Counts(None)).await.map(drop) }).await.map_err(told)?;
            all.push(served);
        }
        let names = all.iter().map(|served| served.name.clone()).collect();
        Ok(Self { disks: Arc::new(Mutex::new(all)), names })
    }

    /// Tells when a server has ended; gives what has them noted as long as they run.
    ///
    /// # Errors
    /// When that cannot be waited for.
    pub(crate) async fn watch(&self, tell: &mpsc::UnboundedSender<String>, beside: &Beside) -> io::Result<Vec<Noted>> {
        let mut noted = Vec::new();
        for served in &mut *self.disks.lock().await {
            served.process.watch(what(&served.name), tell.clone())?;
            noted.push(beside.note(what(&served.name), served.process.pid()));
        }
        Ok(noted)
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

/// What programs in a guest ask of its lab disks, done one after another beside whatever else goes on.
#[derive(Debug)]
pub(crate) struct Desk {
    lab: Lab,
    tasks: JoinSet<()>,
    tell: mpsc::UnboundedSender<EventKind>,
    told: mpsc::UnboundedReceiver<EventKind>,
}

impl Desk {
    pub(crate) fn new(lab: Lab) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { lab, tasks: JoinSet::new(), tell, told }
    }

    /// Does what was asked for, and answers.
    pub(crate) fn take(&mut self, number: u32, text: String, reports: Arc<Reports>) {
        // Those that have ended.
        while self.tasks.try_join_next().is_some() {}
        let (lab, tell) = (self.lab.clone(), self.tell.clone());
        self.tasks.spawn(async move {
            let (outcome, event) = lab.ask(&text).await;
            // It is told before anybody can build on it. Nobody listening is fine.
            event.into_iter().for_each(|event| drop(tell.send(event)));
            reports.answer(number, outcome);
        });
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
