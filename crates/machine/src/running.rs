//! A guest that runs in QEMU: a session in which commands run, until its end.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use belljar_guest_spec::machine_order::Down;
use belljar_model::{CrashKind, EventKind, Exit, Phase};
use belljar_proto::{files::FileQuery, message::Identity};

use crate::{
    Cause, Lost,
    boot::{Entered, Machine},
    bringing,
    command::GuestCommand,
    console::LogFault,
    guest::{Answer, Ending, Guest, GuestClock, Io, Observe, Origin, Pending},
    orders::Orders,
    plan::Processes,
    qemu::qmp::{self, Qmp},
    restart::{self, Input, Lines, Past, Restarts, last_words},
    session::{self, Session, agent::OutputSink},
    template::{Frozen, Template},
    watch::{self, Expectation, Expected},
};

/// Everything that came over the serial console, as it came, in the guest's directory.
pub const CONSOLE_LOG: &str = "console.log";
/// What QEMU itself said, beside it.
pub const QEMU_LOG: &str = "qemu.log";
/// The command that started QEMU, beside it.
pub const QEMU_COMMAND: &str = "qemu.cmd";

/// Lines of the console that go with a loss.
pub(crate) const TAIL: usize = 15;

/// How long standard input may take to end before a person is told that the command waits for that.
const STDIN_SOON: Duration = Duration::from_secs(3);

/// A guest with a session.
#[derive(Debug)]
pub struct QemuGuest {
    pub(crate) machine: Machine,
    pub(crate) session: Box<dyn Session>,
    pub(crate) template: Option<Template>,
    /// What tells it from other copies of the template.
    pub(crate) identity: Option<Identity>,
    /// Something was run in it, or in the guest that it is a copy of, before the command that runs now.
    pub(crate) set_up: bool,
    /// Its shares come and go on a disk.
    pub(crate) by_disk: bool,
    processes: Processes,
    /// How it is started again, if it may be.
    pub(crate) restarts: Option<Restarts>,
    clock: Rc<QemuClock>,
}

/// The guest's processors, stopped and started over QMP: those of the machine that it has now.
#[derive(Debug)]
struct QemuClock(RefCell<(Qmp, Expected)>);

impl QemuClock {
    fn of(machine: &Machine) -> (Qmp, Expected) {
        (machine.qemu.qmp().clone(), machine.watch.expected().clone())
    }
}

impl GuestClock for QemuClock {
    fn stop(&self) -> Pending<'_, ()> {
        let (qmp, expected) = self.0.borrow().clone();
        Box::pin(async move {
            expected.announce(Expectation::Stop);
            if qmp.execute(qmp::Stop {}).await.is_err() {
                expected.take(Expectation::Stop);
            }
        })
    }

    fn go_on(&self) -> Pending<'_, ()> {
        let (qmp, _) = self.0.borrow().clone();
        Box::pin(async move { drop(qmp.execute(qmp::Cont {}).await) })
    }
}

impl QemuGuest {
    /// A guest in which commands can run.
    pub(crate) fn new(machine: Machine, session: Box<dyn Session>, processes: Processes) -> Self {
        let by_disk = machine.exchange.is_some();
        let clock = Rc::new(QemuClock(RefCell::new(QemuClock::of(&machine))));
        Self {
            machine,
            session,
            template: None,
            identity: None,
            set_up: false,
            by_disk,
            processes,
            restarts: None,
            clock,
        }
    }

    /// Goes on with the machine and the session of another, which takes the place of its own.
    pub(crate) fn take_over(&mut self, other: Self) {
        let Self { mut machine, session, by_disk, .. } = other;
        // Whoever gives it orders knows of one guest.
        std::mem::swap(&mut machine.watch.inbox, &mut self.machine.watch.inbox);
        self.clock.0.replace(QemuClock::of(&machine));
        (self.machine, self.session, self.by_disk) = (machine, session, by_disk);
    }

    /// The same, being the copy of a template.
    pub(crate) fn with_template(mut self, template: Template, identity: Identity) -> Self {
        (self.template, self.identity) = (Some(template), Some(identity));
        self
    }

    /// What it is made of, to be frozen. The shares are still mounted in it.
    pub(crate) fn into_machine(self, frozen: &Frozen) -> (Machine, Entered) {
        (self.machine, self.session.into_entered(frozen))
    }

    /// Whether it booted itself.
    #[must_use]
    pub fn origin(&self) -> Origin {
        if self.template.is_some() { Origin::Clone } else { Origin::Cold }
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.machine.qemu.pid()
    }

    /// Bytes of memory that QEMU has in use now, those that it shares with other clones included; `None` when it has ended.
    #[must_use]
    pub fn rss(&self) -> Option<u64> {
        self.machine.qemu.rss()
    }

    /// For a guest that waits for somebody to need it: has it do once what every command needs, so that the first one begins
    /// sooner. An emulated guest translates the code for that now.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn warm_up(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        self.ask(Phase::Session, None, async |session| session.warm_up().await, observe).await
    }

    /// For a guest that has waited: sees that it is still there, and sets its clock.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn check(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = (self.machine.limits.silence(), "the guest did not answer");
        self.ask(Phase::Session, Some(limit), async |session| session.check().await, observe).await
    }

    /// Asks the session, looks for the guest's death meanwhile, and gives the best reason there is for a loss. The limit comes with what
    /// has not happened when it is over.
    async fn ask<T>(
        &mut self,
        phase: Phase,
        limit: Option<(Duration, &str)>,
        asking: impl AsyncFnOnce(&mut dyn Session) -> Result<T, Lost>,
        observe: Observe<'_>,
    ) -> Result<T, Lost> {
        let asking = asking(&mut *self.session);
        let limited = async {
            let Some((limit, what)) = limit else { return asking.await };
            tokio::time::timeout(limit, asking)
                .await
                .unwrap_or_else(|_| Err(Lost::timeout(phase, format!("{what} within {}", crate::for_people(limit)))))
        };
        let answered = tokio::select! {
            biased;
            answered = limited => answered,
            lost = self.machine.watch.trouble(phase, observe) => Err(lost),
        };
        match answered {
            Ok(answer) => Ok(answer),
            Err(lost) => Err(self.explain(lost, phase).await),
        }
    }

    /// Runs one command to its end and gives what the guest vouches for.
    ///
    /// Dropping the future leaves the command running; see [`QemuGuest::kill_command`].
    ///
    /// # Errors
    /// A [`Lost`] for everything that is not the command's own end.
    pub async fn exec(&mut self, command: GuestCommand, io: Io<'_>, observe: Observe<'_>) -> Result<Exit, Lost> {
        if let Some(exchange) = &self.machine.exchange {
            let new = exchange.new_directories();
            if !new.is_empty() {
                self.ask(Phase::Command, None, async |session| session.make_directories(new).await, observe).await?;
            }
        }
        let Processes { user, cwd } = &self.processes;
        let command = command.in_image(user.as_ref(), cwd.as_ref());
        let waits = self.session.wants_whole_stdin() && command.terminal.is_none();
        let is_terminal = command.terminal.is_some();
        let Io { stdin, sink, mut control } = io;
        let read = Arc::new(AtomicBool::new(!waits || stdin.is_none()));
        let mut input = stdin.map(|inner| Input::new(inner, read.clone()));
        let mut lines = Lines::new(sink, is_terminal);
        let mut past = Past::default();
        loop {
            let passing = lines.passing();
            let stdin = input.as_mut().map(|input| input as _);
            let mut io = Io { stdin, sink: &mut lines, control: control.take() };
            let ended = self.run(&command, &mut io, (&read, &passing), &past, observe).await;
            control = io.control.take();
            let power = &mut self.machine.watch.power;
            let (wanted, prepared) = (power.take_wanted(), power.take_prepared());
            power.end();
            // Of what runs next nothing of the kind is expected.
            self.machine.watch.expected().take(Expectation::Restart);
            let restart = match (ended, wanted, prepared) {
                // Whoever asks for a restart wants the command to be started again, even if it has ended meanwhile.
                (Ok(_) | Err(Lost { cause: Cause::Restart, .. }), Some(wanted), _) => wanted.restart,
                (Ok(exit), None, _) => {
                    if past.snapshots.is_used() {
                        self.machine.lab.forget().await.map_err(Cause::ShareServer)?;
                    }
                    return self.ended(exit, observe).await;
                }
                (Err(lost), _, prepared) => {
                    // Its memory is kept by whoever knows of a command's limits.
                    let lost = self.explain_without_memory(lost, Phase::Command).await;
                    match (lost.cause.crash_kind(), prepared) {
                        (Some(CrashKind::Reboot | CrashKind::PowerOff), Some(prepared)) => prepared,
                        (Some(CrashKind::Watchdog), Some(prepared)) => {
                            observe(watch::control(&prepared.to_string(), "the guest's watchdog bit", false));
                            prepared
                        }
                        _ => return Err(lost),
                    }
                }
            };
            self.machine.watch.power.begin(Some(format!("the machine goes down already: {restart}")));
            lines.end_lines().await?;
            lines.restarts(false);
            let restarting = self.restart(restart, &mut past, observe);
            match &mut input {
                // A person goes on typing.
                Some(input) if is_terminal => {
                    let mut restarting = std::pin::pin!(restarting);
                    tokio::select! {
                        biased;
                        restarted = &mut restarting => restarted?,
                        () = input.read_ahead() => restarting.await?,
                    }
                }
                _ => {
                    restarting.await?;
                    // It was read, and nobody can read it again.
                    input = None;
                }
            }
            lines.restarts(true);
            // It was told once.
            self.set_up = false;
        }
    }

    /// A command has come to its own end.
    async fn ended(&mut self, exit: Exit, observe: Observe<'_>) -> Result<Exit, Lost> {
        self.set_up = true;
        // Whoever runs commands looks for what they left when they have ended.
        if self.by_disk {
            let brought = self.sync(self.machine.limits.packing(), observe).await;
            if let Err(lost) = brought {
                return Err(self.explain(lost, Phase::Command).await);
            }
        }
        Ok(exit)
    }

    /// Runs a command until it ends, or the machine is to go down, or is lost. `read`: standard input has come to its end; `passing`: output is being
    /// taken.
    async fn run(
        &mut self,
        command: &GuestCommand,
        io: &mut Io<'_>,
        (read, passing): (&AtomicBool, &AtomicBool),
        past: &Past,
        observe: Observe<'_>,
    ) -> Result<Exit, Lost> {
        let mut command = command.clone();
        let has_agent = self.session.reports().is_some();
        let refusal = match &self.restarts {
            Some(_) if !has_agent && command.terminal.is_some() => Some(
                "a guest without an agent has but one terminal, which the command has, so that its machine cannot be restarted for it; run the command \
                 without a terminal"
                    .to_owned(),
            ),
            Some(_) => {
                command.env.splice(0..0, past.environment());
                past.refusal()
            }
            None => Some(
                "this machine cannot be restarted now, for what is set up in it is to be kept for its copies"
                    .to_owned(),
            ),
        };
        let syncing = (self.by_disk, self.syncing());
        let Self { machine, session, restarts, .. } = &mut *self;
        machine.watch.begin_command(refusal, command.guards.as_ref());
        machine.watch.hear_shell(session.shell_asks());
        if !has_agent {
            machine.watch.power.without_agent();
        }
        if restarts.as_ref().is_some_and(Restarts::nobody_at_button) {
            machine.watch.power.without_button();
        }
        if restarts.as_ref().is_some_and(Restarts::is_without_initramfs) {
            machine.watch.power.without_kexec();
        }
        let obstacle = restarts.as_ref().and_then(Restarts::not_kept);
        machine.watch.power.with_snapshots(past.snapshots.names(), obstacle);
        let ended = {
            let mut running = session.exec(command, io);
            let mut soon = std::pin::pin!(tokio::time::sleep(STDIN_SOON));
            let mut is_soon = true;
            // `true`: it is at its own end, whatever that is.
            let (ended, is_over) = loop {
                tokio::select! {
                    biased;
                    ended = &mut running => break (ended, true),
                    lost = machine.watch.trouble(Phase::Command, observe) => {
                        let announced = matches!(lost.cause, Cause::Restart) && machine.watch.power.wanted().is_none();
                        if !announced {
                            break (Err(lost), false);
                        }
                        match machine.prepare_restart(&mut running, syncing, observe).await {
                            Ok(None) => {}
                            Ok(Some(ended)) => break (ended, true),
                            // Nothing more is asked of it.
                            Err(lost) => break (Err(lost), true),
                        }
                    }
                    () = &mut soon, if is_soon => {
                        is_soon = false;
                        if !read.load(Ordering::Relaxed) {
                            observe(EventKind::Warning {
                                message: "the command starts when standard input has come to its end (Ctrl-D at a terminal), for this guest \
                                          has no agent; --no-stdin gives it an empty one"
                                    .into(),
                            });
                        }
                    }
                }
            };
            // They came before the command's end, which may have been looked at first.
            machine.watch.answer_asks(observe);
            if let Some(lost) = machine.watch.lost_orders() {
                drop(running);
                for message in session.take_notes() {
                    observe(EventKind::Warning { message });
                }
                return Err(lost);
            }
            if ended.is_ok() && machine.watch.power.wanted().is_none() {
                machine.watch.finish_orders(observe).await;
            }
            if let Some(wanted) = machine.watch.power.wanted().cloned() {
                restart::begin(&machine.lab, &wanted.restart, observe).await?;
                machine.watch.tell_of_end(wanted.number, matches!(wanted.restart.how, Down::PowerCut(_)));
                let (reports, shell) = (machine.watch.reports().cloned(), machine.watch.shell_asks().cloned());
                // What it has said up to now is brought here. One that does not end goes with the machine.
                if !is_over && !last_words(&mut running, (reports.as_deref(), shell.as_deref()), passing).await {
                    let message = "what the command has left behind was still writing when the machine went down, so that it is cut off";
                    observe(EventKind::Warning { message: message.to_owned() });
                }
                // What it has ordered beside that goes with this machine, if it is not done.
                machine.watch.answer_asks(observe);
                if let Some(lost) = machine.watch.lost_orders() {
                    return Err(lost);
                }
                machine.watch.finish_orders(observe).await;
            }
            ended
        };
        let exit = ended.as_ref().ok().copied();
        // A fault that came before the command's end is the end.
        let ended = match self.machine.watch.end_guards(exit, observe) {
            Some(lost) => Err(lost),
            None => ended,
        };
        for message in self.session.take_notes() {
            observe(EventKind::Warning { message });
        }
        self.machine.watch.look_at_shares_if_due(observe);
        match ended {
            Err(lost) if self.machine.watch.power.is_prepared() => Err(self.await_end(lost, observe).await),
            ended => ended,
        }
    }

    /// Asks the agent for files, whose answer goes to `sink`; gives `false` where there is no agent that could be asked.
    ///
    /// # Errors
    /// A [`Lost`] where there is no whole answer.
    pub async fn files(
        &mut self,
        query: FileQuery,
        sink: &mut dyn OutputSink,
        observe: Observe<'_>,
    ) -> Result<bool, Lost> {
        self.ask(Phase::Command, None, async |session| session.files(query, sink).await, observe).await
    }

    /// Kills what [`QemuGuest::exec`] left running, as well as it can within a few seconds.
    pub async fn kill_command(&mut self, observe: Observe<'_>) {
        if self.machine.qemu.exit_watch().has_ended() {
            return;
        }
        let limit = self.machine.limits.farewell();
        let killed = tokio::time::timeout(limit, self.session.kill_running()).await.is_ok_and(|r| r.is_ok());
        if !killed {
            observe(EventKind::Warning { message: "the command could not be killed; it dies with its guest".into() });
        }
    }

    /// Brings what was written to the shares to the host, and ends the guest.
    ///
    /// # Errors
    /// Where the command's result can no longer be believed: what it wrote did not reach the host, or the guest's kernel
    /// turned out to have failed.
    pub async fn close(mut self, how: Ending, observe: Observe<'_>) -> Result<(), Lost> {
        let limits = self.machine.limits;
        let limit = match (how == Ending::Hurry, self.by_disk) {
            (true, false) => limits.farewell(),
            (true, true) => limits.packing_late(),
            (false, _) => self.syncing(),
        };
        let synced = match self.sync(limit, observe).await {
            Err(lost) if how != Ending::Hurry => Err(self.explain(lost, Phase::Close).await),
            synced => synced,
        };
        self.machine.watch.look_at_shares(observe);
        let mut doubt = match (how, &synced) {
            (Ending::Kill | Ending::PowerOff, Ok(())) => self.doubt(observe).await,
            _ => self.machine.watch.fault_now(Phase::Command),
        };
        if how == Ending::PowerOff && synced.is_ok() && doubt.is_none() {
            doubt = self.power_off(observe).await.err();
        }
        let end = self.machine.qemu.kill().await;
        let exceeded = end.and_then(|end| end.exceeded).map(|e| watch::of_exceeded(&e));
        // What was not recorded cannot be vouched for.
        let unlogged = match self.machine.console.view().log_fault() {
            Some(fault @ LogFault::Write(_)) => Some(Cause::ConsoleLog(fault).into()),
            Some(LogFault::Limit(_)) | None => None,
        };
        // Nor can what ran on memory that somebody else wrote to.
        let spoilt = self.template.as_ref().is_some_and(|t| !t.is_unchanged()).then(|| Cause::TemplateChanged.into());
        let spoilt = spoilt.or_else(|| self.machine.lab.spoilt().map(Lost::from));
        match (doubt, exceeded, synced, unlogged.or(spoilt)) {
            (Some(lost), ..) => Err(lost.with_tail(self.machine.console.tail(TAIL))),
            // That is why QEMU was killed, whatever the session noticed of it.
            (None, Some(lost), ..) | (None, None, Err(lost), _) | (None, None, Ok(()), Some(lost)) => Err(lost),
            (None, None, Ok(()), None) => Ok(()),
        }
    }

    /// Brings what was written to the shares to the host, for a guest in which more is to run.
    ///
    /// # Errors
    /// As [`QemuGuest::close`]: then what ran cannot be believed, and nothing more should run here.
    pub async fn settle(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        if let Err(lost) = self.sync(self.syncing(), observe).await {
            return Err(self.explain(lost, Phase::Close).await);
        }
        if let Some(exceeded) = self.machine.qemu.exceeded() {
            return Err(watch::of_exceeded(&exceeded));
        }
        match self.doubt(observe).await {
            Some(lost) => Err(lost.with_tail(self.machine.console.tail(TAIL))),
            None => self.machine.lab.spoilt().map_or(Ok(()), |cause| Err(cause.into())),
        }
    }

    /// What runs in the guest now, such as daemons of set-up scripts, is part of it and lives on over [`renew`](Self::renew).
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn keep_processes(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        self.ask(Phase::Session, Some(self.readying()), async |session| session.keep_processes().await, observe)
            .await?;
        self.machine.watch.keep_orders().await
    }

    /// Makes the guest ready for a test that has nothing to do with those before: what they left running is ended, and the
    /// session gets keys of its own that they cannot have seen. Gives why the guest is of no more use, if it is.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn renew(&mut self, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        let limit = Some(self.readying());
        // First, for what hangs for a disk cannot be ended.
        if let Some(why) = self.machine.watch.end_orders(observe).await? {
            return Ok(Some(why));
        }
        let found = self.ask(Phase::Session, limit, async |session| session.renew().await, observe).await?;
        let left = session::of_leftovers(&found, observe);
        Ok(left.or_else(|| self.machine.watch.disks_left(&found)))
    }

    /// What the guest died of, or saw of its shares, without anybody having noticed.
    async fn doubt(&mut self, observe: Observe<'_>) -> Option<Lost> {
        let Machine { watch, qemu, .. } = &mut self.machine;
        match watch.doubt(Phase::Command, observe).await {
            Some(lost) => Some(lost),
            None => watch.shares(qemu.qmp(), Phase::Command).await,
        }
    }

    fn readying(&self) -> (Duration, &'static str) {
        (self.machine.limits.sync(), "the guest was not made ready for the next test")
    }

    /// How long it may take until what was written has reached the host.
    fn syncing(&self) -> Duration {
        if self.by_disk { self.machine.limits.packing() } else { self.machine.limits.sync() }
    }

    async fn sync(&mut self, limit: Duration, observe: Observe<'_>) -> Result<(), Lost> {
        let report = tokio::select! {
            biased;
            synced = tokio::time::timeout(limit, self.session.sync()) => synced.unwrap_or_else(|_| Err(Lost::timeout(
                Phase::Close,
                format!("the guest did not bring what it wrote to the shares to the host within {}{}", crate::for_people(limit), self.machine.watch.blame()),
            )))?,
            lost = self.machine.watch.trouble(Phase::Close, observe) => return Err(lost),
        };
        let returned = bringing::returned(report, self.by_disk, observe)?;
        if self.by_disk { self.machine.bring_back(returned, limit, observe).await } else { Ok(()) }
    }

    /// Has the guest power itself off; one that does not is killed later.
    async fn power_off(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = self.machine.limits.power_off();
        let Self { machine, session, .. } = self;
        machine.served.may_end();
        let ended = {
            let mut ended = std::pin::pin!(tokio::time::timeout(limit, machine.watch.powered_off(&mut *observe)));
            tokio::select! {
                biased;
                ended = &mut ended => ended,
                _ = session.power_off() => ended.await,
            }
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(lost)) => Err(self.explain(lost, Phase::Close).await),
            Err(_) => {
                let limit = crate::for_people(limit);
                observe(EventKind::Warning {
                    message: format!("the guest did not power off within {limit} and was killed"),
                });
                Ok(())
            }
        }
    }

    pub(crate) async fn explain(&mut self, lost: Lost, phase: Phase) -> Lost {
        let lost = self.explain_without_memory(lost, phase).await;
        self.machine.with_memory(lost).await
    }

    async fn explain_without_memory(&mut self, lost: Lost, phase: Phase) -> Lost {
        let lost = self.machine.watch.explain(lost, phase).await;
        self.machine.watch.last_words(&lost).await;
        if lost.tail.is_empty() && lost.cause.crash_kind().is_some() {
            let tail = self.machine.console.tail(TAIL);
            return lost.with_tail(tail);
        }
        lost
    }
}

impl Guest for QemuGuest {
    fn origin(&self) -> Origin {
        self.origin()
    }

    fn exec<'a>(&'a mut self, command: GuestCommand, io: Io<'a>, observe: Observe<'a>) -> Answer<'a, Exit> {
        Box::pin(self.exec(command, io, observe))
    }

    fn kill_command<'a>(&'a mut self, observe: Observe<'a>) -> Pending<'a, ()> {
        Box::pin(self.kill_command(observe))
    }

    fn files<'a>(
        &'a mut self,
        query: FileQuery,
        sink: &'a mut dyn OutputSink,
        observe: Observe<'a>,
    ) -> Answer<'a, bool> {
        Box::pin(self.files(query, sink, observe))
    }

    fn warm_up<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(self.warm_up(observe))
    }

    fn check<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(self.check(observe))
    }

    fn keep_processes<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(self.keep_processes(observe))
    }

    fn renew<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, Option<String>> {
        Box::pin(self.renew(observe))
    }

    fn settle<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(self.settle(observe))
    }

    fn close(self: Box<Self>, how: Ending, observe: Observe<'_>) -> Answer<'_, ()> {
        Box::pin((*self).close(how, observe))
    }

    fn clock(&self) -> Rc<dyn GuestClock> {
        self.clock.clone()
    }

    fn orders(&self) -> Option<Orders> {
        Some(self.machine.watch.inbox.orders())
    }

    fn suspended(&self) -> Option<Duration> {
        self.machine.watch.suspended()
    }

    fn keep_memory(&mut self, lost: Lost) -> Pending<'_, Lost> {
        Box::pin(self.machine.with_memory(lost))
    }

    fn last_lines(&self, most: usize) -> Vec<String> {
        self.machine.console.tail(most)
    }
}

/// How long a guest is watched for the reason of its end, after the end.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(300);
