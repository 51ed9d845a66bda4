//! The session for guests that cannot run our agent: `sh` on the serial console.
//!
//! The command runs in the background, so that the shell stays ours: to ask how it goes, and to kill it. Its output goes to
//! files. Where the guest has mounted a directory of the host's (an [`Exchange`]), they are read there as they grow;
//! elsewhere they are fetched over the console, encoded so that any byte survives, and checked.
//!
//! The exit code counts only with this attempt's nonce, which the shell hands to the command's keeper in private, and
//! with the sizes that the output files had in the end, so that no output is lost in silence.
//!
//! # Limits
//!
//! A command that SIGINT or SIGPIPE killed is reported with the exit code 130 or 141: shells do not tell these from codes. Standard
//! input is read to its end before the command starts; without an exchange it is typed in, and may have 256 KiB.

mod asks;
mod ctl;
mod ctl_by_console;
mod exchange;
mod fetch;
mod guest;
mod script;
mod terminal;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use belljar_model::{CrashKind, Exit, Phase};
use belljar_proto::message::SyncFault;

use crate::access::{Shell, ShellReply};
use crate::command::GuestCommand;
use crate::console::Patience;
use crate::enter::of_shell;
use crate::guest::Io;
use crate::session::agent::{ExecControl, LATE_QUIET, OutputEnd, OutputSink};
use crate::{Cause, Lost};
pub(crate) use asks::{AskSource, ShellAsks};
use ctl::{OrderFiles, Places};

/// A directory that both sides see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// On the host.
    pub host: PathBuf,
    /// The same in the guest.
    pub guest: String,
}

/// A session with a shell on the console.
#[derive(Debug)]
pub struct ConsoleSession {
    shell: Shell,
    exchange: Option<Exchange>,
    layer: Option<String>,
    /// Shares beside the exchange that commands write to.
    shares: Vec<String>,
    factor: f64,
    running: Option<Running>,
    tools: Option<fetch::Tools>,
    /// Whether the guest was made fit for commands.
    prepared: bool,
    notes: Vec<String>,
    /// How long what a command left running may be silent before its output is given up.
    late_quiet: Duration,
    /// What programs in the guest ask for.
    asks: Arc<ShellAsks>,
    /// Where the command that runs asks, if it can.
    places: Option<Places>,
    /// Where `belljar-ctl` is in a guest without an exchange, once that is known; none where it cannot be run.
    programs: Option<Option<String>>,
}

/// A command that has not been seen to end.
#[derive(Debug)]
struct Running {
    guest_dir: String,
    /// Where its orders are in the guest, if that is not the host's.
    orders_dir: Option<String>,
    /// [`guest_dir`](Self::guest_dir) on the host, removed when this is dropped.
    host_dir: Option<PathBuf>,
    /// Whether there may be something to kill.
    started: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(dir) = &self.host_dir {
            // Never follows a link out of the directory; what cannot be removed stays in the run's own directory.
            let _ = crate::tree::remove(dir);
        }
    }
}

/// Signals that are to be sent to the command as soon as there is one.
#[derive(Debug, Default)]
struct Signals(Vec<i32>);

impl Signals {
    /// Waits until there is one more.
    async fn hear(&mut self, control: &mut Option<tokio::sync::mpsc::Receiver<ExecControl>>) {
        loop {
            // A new size is nothing to a command without a terminal.
            if let ExecControl::Signal(signal) = next_control(control).await {
                self.0.push(signal);
                return;
            }
        }
    }
}

/// What the keeper says of the command's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    exit: Exit,
    /// Sizes of standard output and error, where the guest could tell.
    sizes: Option<(u64, u64)>,
    /// Why the command was not started, if it was not.
    missing: Option<Missing>,
    /// How the output came to its end.
    output: OutputEnd,
}

/// What the command needs and the guest has not got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// The directory to start in.
    Directory,
    /// The same: there is something else of that name.
    NoDirectory,
    /// The user to run as.
    User,
}

impl End {
    /// How the command ended, or why it was not started.
    fn outcome(self, command: &GuestCommand) -> Result<Exit, Lost> {
        let Some(missing) = self.missing else { return Ok(self.exit) };
        let cwd = String::from_utf8_lossy(command.cwd.as_deref().unwrap_or(b"/"));
        let why = match missing {
            Missing::Directory => format!("change to its directory {cwd}: there is no such directory in the guest"),
            Missing::NoDirectory => format!("change to its directory {cwd}: it is not a directory in the guest"),
            Missing::User => {
                format!("find user {:?} in the guest's /etc/passwd", command.user.as_deref().unwrap_or_default())
            }
        };
        Err(Cause::NotStarted { errno: 0, why: format!("cannot start the command: {why}") }.into())
    }
}

impl ConsoleSession {
    /// Takes over a shell. `factor` is how much slower the guest may be than one with KVM.
    pub fn new(shell: Shell, exchange: Option<Exchange>, factor: f64) -> Self {
        ConsoleSession {
            shell,
            exchange,
            layer: None,
            shares: Vec::new(),
            factor,
            running: None,
            tools: None,
            prepared: false,
            notes: Vec::new(),
            late_quiet: LATE_QUIET,
            asks: Arc::default(),
            places: None,
            programs: None,
        }
    }

    /// The same in a guest that has a copy-on-write directory there, which is to be its commands' user's own.
    pub(crate) fn with_layer(self, layer: Option<String>) -> Self {
        Self { layer, ..self }
    }

    /// The same in a guest that has a share there that its commands write to.
    pub(crate) fn with_share(mut self, at: Option<String>) -> Self {
        self.shares.extend(at);
        self
    }

    /// Whom a command runs as, and what is to be given to that user.
    fn user_of<'a>(&'a self, command: &'a GuestCommand) -> Option<(&'a str, Option<&'a str>)> {
        command.user.as_deref().map(|user| (user, self.layer.as_deref()))
    }

    /// Whether there is a directory that both sides see.
    pub(crate) fn has_exchange(&self) -> bool {
        self.exchange.is_some()
    }

    /// The shell that it ran commands with.
    pub(crate) fn into_shell(self) -> Shell {
        self.shell
    }

    /// What a person should know of how commands run here, said once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Runs one command to its end.
    ///
    /// Dropping the future leaves the command running; see [`ConsoleSession::kill_running`].
    ///
    /// # Errors
    ///
    /// A [`Lost`] for everything that is not the command's own end.
    pub async fn exec(&mut self, command: GuestCommand, io: &mut Io<'_>) -> Result<Exit, Lost> {
        self.kill_running().await?;
        if !self.prepared {
            // Without it nothing can be found that is to be killed. A guest that has nothing but a shell may not have it.
            self.line_run("[ -e /proc/self/stat ]||{ mkdir -p /proc;mount -t proc proc /proc; }").await?;
            self.prepared = true;
        }
        self.asks.begin(self.exchange.is_some());
        self.places = None;
        let Some(exchange) = self.exchange.clone() else {
            return match &command.terminal {
                Some(terminal) => self.exec_on_terminal(&command, terminal, io).await,
                None => self.exec_by_console(&command, io).await,
            };
        };
        let attempt = format!("make files for the command's orders in {}", exchange.host.display());
        let files = OrderFiles::make(&exchange.host)?;
        let mut files = files.map_err(|e| Cause::host_file(&attempt, &e, "is the disk full?"))?;
        self.places = Some(files.places(&exchange.guest));
        let asks = self.asks.clone();
        let ended = {
            let running = async {
                match &command.terminal {
                    Some(terminal) => self.exec_on_terminal(&command, terminal, io).await,
                    None => self.exec_with_exchange(&exchange, &command, io).await,
                }
            };
            tokio::select! {
                biased;
                ended = running => ended,
                never = files.serve(&asks) => match never {},
            }
        };
        for text in files.finish(&asks) {
            self.note(&text);
        }
        ended
    }

    /// Does what somebody else wants while a command runs: that it ends, or that what it has written is brought to the host.
    async fn attend(&mut self, signals: &mut Signals) -> Result<(), Lost> {
        self.asks.beat();
        if self.asks.take_kill() {
            signals.0.push(9);
        }
        if let Some(tell) = self.asks.take_sync() {
            let fault = self.sync().await?;
            // Nobody waiting is fine.
            drop(tell.send(fault.map(SyncFault::Failed)));
        }
        Ok(())
    }

    /// Kills the command that [`ConsoleSession::exec`] left running, with all that it started, where the guest can tell.
    ///
    /// # Errors
    ///
    /// When the shell does not answer.
    pub async fn kill_running(&mut self) -> Result<(), Lost> {
        let Some(running) = self.running.take() else { return Ok(()) };
        // A line of ours may be under way: its answer must not be taken for the next one's.
        self.shell.interrupt(&mut self.line()).await.map_err(|e| of_shell(&e, Phase::Command))?;
        if running.started {
            self.line_run(script::kill(&running.guest_dir)).await?;
        }
        if running.host_dir.is_none() {
            let dirs = [Some(&running.guest_dir), running.orders_dir.as_ref()];
            let dirs: String = dirs.into_iter().flatten().map(|dir| format!(" {}", script::word(dir))).collect();
            self.line_run(format!("rm -rf{dirs}")).await?;
        }
        Ok(())
    }

    /// Sees that the shell still answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn check(&mut self) -> Result<(), Lost> {
        self.line_run(":").await.map(drop)
    }

    /// Has everything that was written to the shares brought to the host. Gives what could not be, if anything.
    ///
    /// # Errors
    ///
    /// When the shell does not answer.
    pub async fn sync(&mut self) -> Result<Option<String>, Lost> {
        let Some(exchange) = &self.exchange else {
            // There is nothing of the host's in it.
            self.check().await?;
            return Ok(None);
        };
        // Of the shares alone, where that can be asked for: what is written to a lab disk may have to wait for it, and then so would we.
        let shares = self.shares.iter().chain([&exchange.guest]);
        let shares: String = shares.map(|at| format!(" {}", script::word(at))).collect();
        let all = if self.asks.are_disks_held() { "(exit 1)" } else { "sync||busybox sync" };
        let line = format!(
            "if sync -f /proc 2>/dev/null;then sync -f{shares};elif busybox sync -f /proc 2>/dev/null;then busybox sync -f{shares};else {all};fi"
        );
        let reply = self.line_run(line).await?;
        if reply.code == 0 {
            return Ok(None);
        }
        let said = format!("sync failed in the guest with code {}: {}", reply.code, reply.text());
        let lacks = if self.asks.are_disks_held() {
            "; a power cut needs a sync that knows -f (coreutils 8.24 and later, busybox)"
        } else {
            ""
        };
        Ok(Some(said + lacks))
    }

    /// Starts the guest's end and comes back at once; that it ended is seen outside.
    ///
    /// # Errors
    ///
    /// When the shell does not answer.
    pub async fn power_off(&mut self) -> Result<(), Lost> {
        // Through the service manager where there is one; `-f` where the shell is the first process. In the background, since
        // some of these never come back.
        let line = "( if [ -d /run/systemd/system ];then systemctl --no-block poweroff;elif [ $$ = 1 ];then sync;poweroff -f||\
                    busybox poweroff -f||echo o >/proc/sysrq-trigger;else poweroff||/sbin/poweroff||busybox poweroff -f;fi ) \
                    >/dev/null 2>&1 &";
        self.line_run(line).await.map(|_| ())
    }

    /// Starts the guest's restart and comes back at once; that it went down is seen outside.
    ///
    /// # Errors
    ///
    /// When the shell does not answer.
    pub async fn reboot(&mut self) -> Result<(), Lost> {
        // As `power_off`.
        let line = "( if [ -d /run/systemd/system ];then systemctl --no-block reboot;elif [ $$ = 1 ];then sync;reboot -f||\
                    busybox reboot -f||echo b >/proc/sysrq-trigger;else reboot||/sbin/reboot||busybox reboot -f;fi ) \
                    >/dev/null 2>&1 &";
        self.line_run(line).await.map(|_| ())
    }

    fn line(&self) -> Patience {
        line(self.factor)
    }

    async fn line_run(&mut self, line: impl AsRef<[u8]>) -> Result<ShellReply, Lost> {
        let mut patience = self.line();
        self.shell.run(line, &mut patience).await.map_err(|e| of_shell(&e, Phase::Command))
    }

    async fn send_signals(&mut self, dir: &str, signals: &mut Signals) -> Result<(), Lost> {
        while let Some(signal) = signals.0.first() {
            if self.line_run(script::signal(dir, *signal)).await?.code != 0 {
                // The command is not there yet, or not any more.
                return Ok(());
            }
            signals.0.remove(0);
        }
        Ok(())
    }

    /// How often the shell is asked whether the command still lives.
    fn heartbeat(&self) -> Duration {
        Duration::from_secs(5).mul_f64(self.factor.clamp(1.0, 6.0))
    }

    fn note(&mut self, text: &str) {
        if !self.notes.iter().any(|n| n == text) {
            self.notes.push(text.to_owned());
        }
    }

    /// Whether the command's keeper is still there.
    async fn is_alive(&mut self, dir: &str) -> Result<bool, Lost> {
        Ok(self.line_run(script::alive(dir)).await?.code == 0)
    }
}

/// Patience for one line at a shell that is known to answer.
fn line(factor: f64) -> Patience {
    Patience::new(Duration::from_secs(20)).scaled(factor.clamp(1.0, 6.0))
}

/// Tells of an output that did not come to its end.
fn tell_end(sink: &mut dyn OutputSink, end: End) {
    if end.output != OutputEnd::Whole {
        sink.left_open(end.output);
    }
}

/// Passes bytes on to one of the two outputs.
async fn pass_on(sink: &mut dyn OutputSink, error: bool, bytes: &[u8]) -> Result<(), Lost> {
    let passed = if error { sink.stderr(bytes).await } else { sink.stdout(bytes).await };
    passed.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Cause::OutputClosed.into(),
        _ => Cause::Output(format!("passing on the command's output failed: {e}")).into(),
    })
}

/// The next thing to do to the command; never, where nobody can ask for anything.
async fn next_control(io: &mut Option<tokio::sync::mpsc::Receiver<ExecControl>>) -> ExecControl {
    match io {
        Some(receiver) => match receiver.recv().await {
            Some(control) => control,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn keeper_gone() -> Lost {
    let seen = "the shell that kept the command is gone, and left no exit code";
    Lost::crash(CrashKind::Silent, seen, Phase::Command)
        .with_advice("it may have been killed for want of memory; see the console log")
}

/// A name that nobody else in the guest has.
pub(crate) fn random_name() -> Result<String, Lost> {
    let mut random = [0; 12];
    getrandom::fill(&mut random).map_err(|e| Cause::NoRandom(e.to_string()))?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}
