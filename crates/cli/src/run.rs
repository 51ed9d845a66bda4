//! `belljar run`, and the part of it that `belljar shell` shares.

use std::{
    cell::RefCell,
    ffi::OsString,
    io::{self, Stderr},
    os::unix::ffi::OsStringExt,
    rc::Rc,
    time::{Duration, Instant},
};

use belljar_guest_spec::{Guards, scheduled::ScheduledOrder};
use belljar_machine::{
    WindowSize,
    backend::PrepareRequest,
    command::{GuestCommand, Terminal},
    console::ConsoleView,
    session::agent::ExecControl,
};
use belljar_model::Verdict;
use belljar_report::run::{Level, RunReporter, Style};
use belljar_runner::{
    cancel::{self, Canceller},
    log::EventLog,
    run::{Request, RunIo},
    run_dir::{self, RunDir},
    suite::resources::{Memory, no_room_for},
};
use tokio::{
    io::AsyncRead,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::{JoinHandle, LocalSet},
};

use crate::{
    args::{ExecArgs, HostArgs, RunArgs, ShareArgs},
    complain, complain_note, env,
    guest::{self, GuestArgs, Named},
    input::{Input, is_in_background, until_in_foreground},
    settings,
    sink::StdSink,
    template,
    terminal::{self, RawTerminal},
    write_out,
};

/// What `TERM` is in a guest where this process has none.
const DEFAULT_TERM: &str = "vt100";

/// How long the last bytes of output may take to be taken.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// After which time a phase is said to go on.
const DELAY: Duration = Duration::from_secs(2);
const DELAY_LOOK: Duration = Duration::from_millis(250);

type Reporter = Rc<RefCell<RunReporter<Stderr>>>;

/// `belljar run`.
pub(crate) fn run(args: RunArgs) -> Result<u8, String> {
    let RunArgs { guest, share, exec, host, timeout, no_stdin, tty, power_off, orders, command } = args;
    let orders =
        orders.iter().map(|text| ScheduledOrder::parse(text).map_err(|why| format!("--order: {text:?} is {why}")));
    let orders = orders.collect::<Result<Vec<_>, _>>()?;
    let argv = command.into_iter().map(OsString::into_vec).collect();
    let prepared = Prepared::new(&guest, &share, &exec, &host, argv, tty)?;
    let prepared = Prepared { request: Request { timeout, power_off, orders, ..prepared.request }, ..prepared };
    if host.dry_run {
        return prepared.show();
    }
    let stdin = if no_stdin { Stdin::Empty } else { Stdin::Ours };
    prepared.go(&host, stdin)
}

/// Where the command's standard input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// From nowhere.
    Empty,
    /// From ours.
    Ours,
}

/// A request, and what lives as long as it.
pub(crate) struct Prepared {
    /// The request.
    pub(crate) request: Request,
    run_dir: RunDir,
}

impl Prepared {
    /// Resolves what was typed.
    pub(crate) fn new(
        guest_args: &GuestArgs,
        share: &ShareArgs,
        exec: &ExecArgs,
        host: &HostArgs,
        argv: Vec<Vec<u8>>,
        tty: bool,
    ) -> Result<Self, String> {
        let named = Named::of(guest_args)?;
        let named = named.as_ref();
        let (spec, guest_name) = guest::guest(guest_args, named)?;
        let run_dir = settings::run_dir(host, settings::exposed(share, named))?;
        let backends =
            settings::backends(host.qemu.as_deref(), host.engine.as_deref(), None, template::settings(host)?)?;
        let user = exec.user.clone().or_else(|| named?.user().map(str::to_owned));
        let out_is_ours = share.out.is_none();
        let share = settings::share(share, &spec, named, &run_dir, host.dry_run)?;
        let other = user.as_deref().filter(|user| !matches!(*user, "root" | "0"));
        if !host.dry_run && out_is_ours {
            // A container image may name another user than root, too.
            settings::open_out(&share.out)?;
        } else if let Some(user) = other.filter(|_| !host.dry_run) {
            settings::note_of_out(&share.out, user)?;
        }
        let of_options = Guards::new(exec.guards.iter().copied(), Vec::new());
        let guards = named.map_or_else(|| of_options.clone(), |named| of_options.over(named.guards()));
        let terminal = tty.then(|| {
            let (rows, cols) = terminal::size();
            let term = env::get("TERM").and_then(|t| t.into_string().ok()).unwrap_or_else(|| DEFAULT_TERM.into());
            Terminal { size: WindowSize { rows, cols }, term }
        });
        let command = GuestCommand {
            argv,
            env: settings::command_env(exec, named, &share)?,
            cwd: settings::cwd(exec, named, &share)?,
            user,
            terminal,
            guards: Some(guards),
        };
        let request = Request {
            run: run_dir.id().clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            guest: spec,
            guest_name,
            share,
            dir: run_dir.path().to_owned(),
            backends,
            command: Some(command),
            orders: Vec::new(),
            timeout: None,
            power_off: false,
        };
        Ok(Self { request, run_dir })
    }

    /// Prints how the guest is started by hand, and leaves nothing behind but the cache.
    pub(crate) fn show(self) -> Result<u8, String> {
        let Self { request, mut run_dir } = self;
        let Request { guest: spec, share, dir, backends, command, .. } = request;
        let look = async {
            let prepared = backends
                .of(&spec.source)?
                .prepare(PrepareRequest { spec: spec.clone(), share, dir, leased_at_once: false })
                .await?;
            prepared.by_hand(command.as_ref())
        };
        let shown = runtime()?.block_on(look).map_err(|lost| lost.to_string());
        let kept = shown.as_ref().is_ok_and(|by_hand| by_hand.needs_dir);
        if kept {
            run_dir.keep_scratch();
            let dir = run_dir.path().display();
            complain_note(&format!(
                "the cache cannot be written: the kernel and the initramfs of this command are in {dir}; remove it when you are done"
            ));
        } else {
            // Nothing ran, so there are no logs to keep.
            drop(fs_err::remove_dir_all(run_dir.path()));
        }
        write_out((shown?.commands + "\n").as_bytes())
    }

    /// Boots, runs, reports; gives the exit code.
    pub(crate) fn go(self, host: &HostArgs, stdin: Stdin) -> Result<u8, String> {
        let Request { guest, backends, .. } = &self.request;
        let backend = backends.of(&guest.source).map_err(|lost| lost.to_string())?;
        if let Some(why) = no_room_for(&backend.footprint(&guest.hardware), None, Memory::of_host()) {
            drop(fs_err::remove_dir_all(self.run_dir.path()));
            return Err(why);
        }
        let runtime = runtime()?;
        let style = settings::style(host);
        let verdict = LocalSet::new().block_on(&runtime, self.run(style, stdin))?;
        // A thread that waits for standard input cannot be called back.
        runtime.shutdown_background();
        Ok(verdict.run_exit_code())
    }

    async fn run(self, style: Style, stdin: Stdin) -> Result<Verdict, String> {
        let Self { request, mut run_dir } = self;
        let raw = request.command.as_ref().is_some_and(|c| c.terminal.is_some());
        let at_terminal = raw && terminal::is_there();
        let reporter = RunReporter::new(io::stderr(), style, run_dir.shown().display().to_string());
        let reporter: Reporter = Rc::new(RefCell::new(reporter));
        let (canceller, cancel) = cancel::channel();
        hear_signals(Rc::new(canceller)).map_err(|e| format!("cannot listen for signals: {e}"))?;

        let (control, controls) = mpsc::channel(4);
        let raw_terminal: Rc<RefCell<Option<RawTerminal>>> = Rc::default();
        let mut entering: Option<JoinHandle<()>> = None;
        let observer = {
            let reporter = Rc::clone(&reporter);
            let raw_terminal = Rc::clone(&raw_terminal);
            move |event: &belljar_model::Event| {
                // The terminal is the guest's from the command's start to its end, and the person's at all other times.
                match event.kind {
                    belljar_model::EventKind::CommandStarted { .. } if at_terminal => {
                        reporter.borrow_mut().stop_live();
                        if is_in_background(io::stdin()) {
                            entering = Some(tokio::task::spawn_local(enter_later(Rc::clone(&raw_terminal))));
                        } else {
                            *raw_terminal.borrow_mut() = RawTerminal::enter().ok();
                        }
                    }
                    belljar_model::EventKind::Phase { phase: belljar_model::Phase::Close }
                    | belljar_model::EventKind::CommandEnded { .. }
                    | belljar_model::EventKind::RunEnded { .. } => {
                        if let Some(entering) = entering.take() {
                            entering.abort();
                        }
                        drop(raw_terminal.borrow_mut().take());
                    }
                    _ => {}
                }
                // With standard error closed there is nobody to tell.
                drop(reporter.borrow_mut().on_event(event));
            }
        };
        let mut log = EventLog::create(&run_dir.file(run_dir::EVENTS), Box::new(observer))
            .map_err(|e| format!("cannot write the event log: {e}"))?;
        tokio::task::spawn_local(tell_delays(Rc::clone(&reporter)));
        let (view_sender, views) = mpsc::unbounded_channel();
        tokio::task::spawn_local(follow_consoles(views, Rc::clone(&reporter), style.level));
        if raw {
            tokio::task::spawn_local(follow_size(control));
        }

        let mut sink = StdSink::new(raw);
        let mut input: Box<dyn AsyncRead + Unpin + Send> = match (stdin, at_terminal) {
            (Stdin::Empty, _) => Box::new(tokio::io::empty()),
            (Stdin::Ours, false) => Box::new(Input::new()),
            (Stdin::Ours, true) => Box::new(terminal::EscapableInput::new(Input::new())),
        };
        let io = RunIo {
            stdin: (stdin == Stdin::Ours).then_some(&mut *input),
            sink: &mut sink,
            control: raw.then_some(controls),
            console: Some(view_sender),
        };
        let verdict = belljar_runner::run::run(request, io, cancel, &mut log).await;
        // The rest of a cut-off escape sequence; what nobody takes is nobody's loss any more.
        drop(tokio::time::timeout(LAST_WRITE, sink.finish()).await);
        // Its guest is gone.
        match run_dir.deliver() {
            Err(error) if verdict == Verdict::Pass => Err(error.to_string()),
            Err(error) => {
                complain(&error.to_string());
                Ok(verdict)
            }
            Ok(()) => Ok(verdict),
        }
    }
}

/// On which everything runs, on one thread.
pub(crate) fn runtime() -> Result<Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("cannot start: {e}"))
}

/// Ctrl-C and its like: once for an orderly end, twice for an end at once.
pub(crate) fn hear_signals(canceller: Rc<Canceller>) -> io::Result<()> {
    for number in terminal::ending() {
        let mut stream = signal(SignalKind::from_raw(number.as_raw()))?;
        let canceller = Rc::clone(&canceller);
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() {
                canceller.signal(number.as_raw());
            }
        });
    }
    Ok(())
}

/// Says of each phase that takes its time that it does.
async fn tell_delays(reporter: Reporter) {
    let mut last = None;
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(DELAY_LOOK).await;
        let now = reporter.borrow().phase();
        if now != last {
            (last, since) = (now, Instant::now());
        } else if let Some(phase) = now
            && since.elapsed() >= DELAY
        {
            // With standard error closed there is nobody to tell.
            drop(reporter.borrow_mut().on_delay(phase));
            // Once.
            since = Instant::now() + Duration::from_secs(u32::MAX.into());
        }
    }
}

/// Follows one machine's console after the other's.
async fn follow_consoles(mut views: mpsc::UnboundedReceiver<ConsoleView>, reporter: Reporter, level: Level) {
    let mut next = views.recv().await;
    while let Some(view) = next.take() {
        let following = follow_console(&view, &reporter, level);
        tokio::select! {
            () = following => next = views.recv().await,
            another = views.recv() => match another {
                Some(view) => next = Some(view),
                None => return follow_console(&view, &reporter, level).await,
            },
        }
    }
}

async fn follow_console(view: &ConsoleView, reporter: &Reporter, level: Level) {
    if level >= Level::Console {
        let mut lines = view.lines();
        while let Some(line) = lines.next().await {
            drop(reporter.borrow_mut().on_console_line(&line));
        }
        return;
    }
    let mut last = view.last_line();
    while last.changed().await.is_ok() {
        let line = last.borrow_and_update().clone();
        drop(reporter.borrow_mut().on_console_line(&line));
    }
}

/// Makes the terminal raw when it is ours to use: to do so in the background would stop us.
async fn enter_later(raw_terminal: Rc<RefCell<Option<RawTerminal>>>) {
    until_in_foreground().await;
    *raw_terminal.borrow_mut() = RawTerminal::enter().ok();
}

async fn follow_size(control: mpsc::Sender<ExecControl>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let (rows, cols) = terminal::size();
        if control.send(ExecControl::Resize(WindowSize { rows, cols })).await.is_err() {
            return;
        }
    }
}
