//! How a guest's story ends badly.

use std::{fmt, io, sync::Arc, time::Duration};

use belljar_model::{
    Crash, CrashKind, Phase, Verdict,
    verdict::{Exit, Fault, signal_name},
};

use crate::{
    access::AccessError,
    bounds::Exceeded,
    console::LogFault,
    qemu::process::{End, SpawnError},
};

/// Why a guest did not do what was asked. Its verdict is never [`Verdict::Pass`].
#[derive(Clone, Debug)]
pub struct Lost {
    /// What went wrong.
    pub cause: Cause,
    /// What to do next, or what else is known, where the cause does not say it.
    pub advice: Option<String>,
    /// The last lines of the console, where they help; without control characters.
    pub tail: Vec<String>,
    /// Whether another try would end the same way, such as after a password that was refused.
    pub lasting: bool,
    /// Whether the guest was there and nobody got in, so that another way may lead there.
    pub(crate) no_way_in: bool,
}

/// What went wrong, in words for a person by its `Display`. What is decided by it is decided by the variant, never by the words.
#[derive(Clone, Debug)]
pub enum Cause {
    /// The guest died.
    Crash(Crash),
    /// QEMU ended, and nothing is known of the guest that explains it.
    QemuEnded {
        /// Its exit code or signal, and its last words.
        end: QemuEnd,
        /// In which phase of the guest.
        phase: Phase,
    },
    /// A deadline passed.
    Timeout {
        /// In which phase.
        phase: Phase,
        /// What had not come, and within which time.
        awaited: Box<str>,
        /// For how long the guest has been suspended by itself, if it is.
        suspended: Option<Duration>,
    },
    /// The command never ran. As shells have it, its exit code is 127 where it is not there and 126 where it cannot be run.
    NotStarted {
        /// Linux error number of starting the program; 0 where it did not come to that, for the directory to start in was missing, say.
        errno: i32,
        /// What could not be done.
        why: String,
    },
    /// A program that Belljar ran for its own ends did not do what it is for.
    Failed {
        /// How the program ended; never [`Exit::Code`] of 0.
        exit: Exit,
        /// What it was for, and what came of it.
        why: String,
    },
    /// A program that Belljar ran for its own ends says that there is nothing to do here.
    Skipped(String),
    /// A person or a CI server ended the run by this signal.
    Interrupted {
        /// Linux signal number.
        signal: i32,
    },
    /// Whoever read the command's output is gone.
    OutputClosed,

    /// The guest cannot be had as it is described: what is wrong with the description, or missing on this host.
    Description(String),
    /// The container engine did not do its part: what was attempted, what it said, and what to do.
    Engine(String),
    /// QEMU could not be started.
    QemuStart(QemuStart),
    /// QEMU refused what it was told: its own words.
    QemuRefused(String),
    /// QEMU could not write what the guest wrote to a disk: its own words.
    DiskWrite(String),
    /// The guest wrote more than it may.
    Exceeded(Exceeded),
    /// The guest's template was written to while the guest ran on it.
    TemplateChanged,
    /// A file or directory of the host's could not be had.
    HostFile {
        /// What was attempted.
        attempt: Box<str>,
        /// What happened.
        error: Box<str>,
        /// What to do.
        advice: &'static str,
    },
    /// The system gives no random numbers.
    NoRandom(String),
    /// The console's log is not whole.
    ConsoleLog(LogFault),

    /// There was a console, and no way in.
    Access(Arc<AccessError>),
    /// The session with the agent failed by what is on this side of it.
    Session(String),
    /// The agent's answer is not whole: which.
    Answer(String),
    /// The guest has no file system for the shares.
    NoShares(String),
    /// A share could not be mounted in the guest.
    Mount(String),
    /// The server of a share ended while the guest used it: which, and why.
    ShareServer(String),
    /// What was written to the shares may not have reached the host.
    Unsynced(String),
    /// What the guest changed in shares on a disk could not be brought back.
    BroughtBack(String),
    /// The shares, by where they were, are not mounted any more.
    Unmounted(Vec<String>),
    /// Something is mounted below the output directory: where.
    OutCovered(Vec<String>),
    /// The guest's shell could not carry the command out.
    Shell(String),
    /// So many orders of programs in the guest, such as faults of its disks, were never carried out.
    OrdersLost(u64),
    /// An order that the test was to have was not carried out: which, and why.
    OrderNotCarriedOut(String),
    /// The guest could not begin again as its command has asked for, when the command had been ended for that: which way, and why.
    NotRestarted(String),
    /// Standard input could not be read, or brought to the command.
    Stdin(String),
    /// The command's output was lost on the way, or could not be passed on.
    Output(String),

    /// The command has asked for its machine to go down and come up again: whoever runs it does that.
    Restart,
    /// A set-up failed: which, and how.
    SetUp(String),
    /// The guest cannot be shared by further tests: why.
    NotRenewed(String),
    /// The guest is not tried: why.
    NotTried(String),
    /// A defect of Belljar: what it came upon.
    Defect(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(Crash { kind: CrashKind::BootFailed, seen, .. }) => f.write_str(seen),
            Self::Crash(Crash { kind, seen, .. }) => write!(f, "{kind}: {seen}"),
            Self::QemuEnded { end, .. } => write!(f, "{end}"),
            Self::Timeout { awaited, suspended: None, .. } => f.write_str(awaited),
            Self::Timeout { awaited, suspended: Some(slept), .. } => {
                write!(f, "{awaited}; the guest suspended itself {} ago and has not woken", for_people(*slept))
            }
            Self::Interrupted { signal } => match signal_name(*signal) {
                Some(name) => write!(f, "interrupted by {name}"),
                None => write!(f, "interrupted by signal {signal}"),
            },
            Self::OutputClosed => f.write_str("nobody reads the output any more"),
            Self::Restart => f.write_str("the guest was asked to go down and come up again"),
            Self::QemuStart(start) => write!(f, "{start}"),
            Self::DiskWrite(why) => write!(
                f,
                "QEMU could not write what the guest wrote to a disk: {why}; make room where the run's directory is"
            ),
            Self::Exceeded(exceeded) => f.write_str(exceeded.message()),
            Self::TemplateChanged => f.write_str(
                "the guest's template was written to while it was in use, so that the guest may not have been what it was; run it again",
            ),
            Self::HostFile { attempt, error, advice } => write!(f, "cannot {attempt}: {error}; {advice}"),
            Self::NoRandom(error) => write!(f, "no random numbers from the system: {error}"),
            Self::ConsoleLog(fault) => write!(f, "{fault}; free some space"),
            Self::Access(error) => write!(f, "{error}"),
            Self::ShareServer(why) => write!(f, "{why}; what the guest saw of it since then is not to be believed"),
            Self::Unsynced(what) => {
                write!(f, "what the guest wrote to the shares may not have reached the host: {what}; is the disk full?")
            }
            Self::Unmounted(places) => write!(
                f,
                "the command changed what is mounted in the guest, so that what it wrote there may not have reached the host: {}; unmount \
                 only what the command has mounted itself, and end no process of Belljar's",
                places.join(", ")
            ),
            Self::OutCovered(places) => write!(
                f,
                "the command has left something mounted in its output directory, so that what it wrote there has not reached the host: \
                 {}; unmount it before the command ends, or mount it elsewhere",
                places.join(", ")
            ),
            Self::OrdersLost(count) => write!(
                f,
                "{count} orders were lost that programs in the guest gave faster than they were done, so that the result is not to be believed; give each \
                 with belljar-ctl, which waits until it is done"
            ),
            Self::NotRestarted(why) => write!(f, "the guest did not begin again, as it was asked to: {why}"),
            Self::OrderNotCarriedOut(why) => write!(f, "the test did not have what was ordered for it, so that its pass says nothing: {why}"),
            Self::Defect(what) => write!(f, "{what}; please report it"),
            Self::NotStarted { why: said, .. }
            | Self::Failed { why: said, .. }
            | Self::Skipped(said)
            | Self::Description(said)
            | Self::Engine(said)
            | Self::QemuRefused(said)
            | Self::Session(said)
            | Self::Answer(said)
            | Self::NoShares(said)
            | Self::Mount(said)
            | Self::BroughtBack(said)
            | Self::Shell(said)
            | Self::Stdin(said)
            | Self::Output(said)
            | Self::SetUp(said)
            | Self::NotRenewed(said)
            | Self::NotTried(said) => f.write_str(said),
        }
    }
}

/// How QEMU ended.
#[derive(Clone, Debug)]
pub struct QemuEnd(pub(crate) Arc<End>);

impl fmt::Display for QemuEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why QEMU could not be started.
#[derive(Clone, Debug)]
pub struct QemuStart(pub(crate) Arc<SpawnError>);

impl fmt::Display for QemuStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Cause> for Lost {
    fn from(cause: Cause) -> Self {
        Self { cause, advice: None, tail: Vec::new(), lasting: false, no_way_in: false }
    }
}

impl From<SpawnError> for Cause {
    fn from(error: SpawnError) -> Self {
        Self::QemuStart(QemuStart(Arc::new(error)))
    }
}

impl Cause {
    /// A file or directory of the host's could not be had: what was attempted, what happened, and what to do.
    #[must_use]
    pub fn host_file(attempt: &str, error: &io::Error, advice: &'static str) -> Self {
        Self::HostFile { attempt: attempt.into(), error: error.to_string().into(), advice }
    }

    /// The verdict on an attempt that ended by it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        const ENOENT: i32 = 2;
        match self {
            Self::Crash(crash) => Verdict::Crash(crash.clone()),
            Self::QemuEnded { end, phase } => {
                Verdict::Crash(Crash { kind: CrashKind::Qemu, seen: end.to_string(), phase: *phase })
            }
            Self::Timeout { phase, .. } => Verdict::Timeout(*phase),
            Self::NotStarted { errno, .. } => Verdict::Fail(Exit::Code(if *errno == ENOENT { 127 } else { 126 })),
            Self::Failed { exit, .. } => Verdict::Fail(*exit),
            Self::Skipped(why) => Verdict::Skip(why.clone()),
            Self::Interrupted { signal } => Verdict::Error(Fault::Interrupted { signal: *signal }),
            Self::OutputClosed => Verdict::Error(Fault::OutputClosed),
            _ => Verdict::Error(Fault::Host { message: self.to_string() }),
        }
    }

    /// How the guest died, if it did.
    #[must_use]
    pub fn crash_kind(&self) -> Option<CrashKind> {
        match self {
            Self::Crash(crash) => Some(crash.kind),
            Self::QemuEnded { .. } => Some(CrashKind::Qemu),
            _ => None,
        }
    }

    /// Whether the guest did what was asked of it, and only what ran in it did not.
    #[must_use]
    pub fn is_programs_own(&self) -> bool {
        matches!(self, Self::NotStarted { .. } | Self::Failed { .. } | Self::Skipped(_))
    }

    /// Whether it is Belljar's or the host's: another try may go well.
    #[must_use]
    pub fn is_hosts(&self) -> bool {
        matches!(self.verdict(), Verdict::Error(Fault::Host { .. }))
    }
}

impl Lost {
    /// The guest died.
    #[must_use]
    pub fn crash(kind: CrashKind, seen: impl Into<String>, phase: Phase) -> Self {
        Cause::Crash(Crash { kind, seen: seen.into(), phase }).into()
    }

    /// A deadline passed.
    #[must_use]
    pub fn timeout(phase: Phase, awaited: impl Into<String>) -> Self {
        Cause::Timeout { phase, awaited: awaited.into().into(), suspended: None }.into()
    }

    /// The verdict on the attempt.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.cause.verdict()
    }

    /// What there is to say that the verdict does not say.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        match &self.cause {
            cause @ (Cause::Timeout { .. } | Cause::NotStarted { .. } | Cause::Failed { .. }) => {
                Some(self.advice.iter().fold(cause.to_string(), |said, advice| format!("{said}\n{advice}")))
            }
            _ => self.advice.clone(),
        }
    }

    /// Whether another try may go well: the fault is Belljar's or the host's, and need not be the same again. A set-up that failed is a
    /// test's author's to mend, and what was not tried was tried often enough.
    #[must_use]
    pub fn is_worth_another_try(&self) -> bool {
        let settled = matches!(self.cause, Cause::SetUp(_) | Cause::NotTried(_));
        !self.lasting && !settled && self.cause.is_hosts()
    }

    /// The same, and another try would not help.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// With what the console last showed.
    #[must_use]
    pub fn with_tail(mut self, tail: Vec<String>) -> Self {
        self.tail = tail;
        self
    }

    /// With more to say beside what there is already.
    #[must_use]
    pub fn and_advice(self, advice: String) -> Self {
        let all = self.advice.iter().cloned().chain([advice]).collect::<Vec<_>>().join("\n");
        self.with_advice(all)
    }

    /// With more to say.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// The cause, and what else is known.
impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.advice {
            Some(advice) => write!(f, "{}: {advice}", self.cause),
            None => self.cause.fmt(f),
        }
    }
}

/// A duration for a person: `90 s`, `5 min`, `1.5 s`.
#[must_use]
pub fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 120.0 && seconds % 60.0 < 0.5 {
        format!("{:.0} min", seconds / 60.0)
    } else if seconds >= 10.0 || seconds.fract() < 0.05 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// Does what waits for the file system where nothing else waits for it. `what` it is, such as `preparation`, is told where it breaks off.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| Cause::Defect(format!("Belljar's own {what} broke off: {panic}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (millis, text) in
            [(1500, "1.5 s"), (90_000, "90 s"), (300_000, "5 min"), (2_000, "2 s"), (150_000, "150 s")]
        {
            assert_eq!(for_people(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn no_cause_is_a_pass() {
        let crash = Crash { kind: CrashKind::Panic, seen: "Oops".into(), phase: Phase::Command };
        let causes = [
            (Cause::Crash(crash), 121, "the guest's kernel panicked: Oops"),
            (Cause::Timeout { phase: Phase::Boot, awaited: "no login".into(), suspended: None }, 124, "no login"),
            (
                Cause::Timeout {
                    phase: Phase::Command,
                    awaited: "no end".into(),
                    suspended: Some(Duration::from_secs(3)),
                },
                124,
                "no end; the guest suspended itself 3 s ago and has not woken",
            ),
            (Cause::Failed { exit: Exit::Code(3), why: "no list".into() }, 3, "no list"),
            (Cause::Skipped("not here".into()), 77, "not here"),
            (Cause::Interrupted { signal: 2 }, 130, "interrupted by SIGINT"),
            (Cause::OutputClosed, 141, "nobody reads the output any more"),
            (Cause::Defect("no guest".into()), 125, "no guest; please report it"),
            (
                Cause::host_file("make a log", &io::Error::other("no room"), "free some space"),
                125,
                "cannot make a log: no room; free some space",
            ),
        ];
        for (cause, code, said) in causes {
            assert_eq!((cause.verdict().run_exit_code(), cause.to_string().as_str()), (code, said), "{cause:?}");
        }
    }

    #[test]
    fn what_the_verdict_says_is_not_said_again() {
        let host = Lost::from(Cause::Unsynced("EIO".into()));
        assert_eq!(host.message(), None);
        assert_eq!(host.with_advice("run it again").message().as_deref(), Some("run it again"));
        assert_eq!(Lost::timeout(Phase::Boot, "no login").message().as_deref(), Some("no login"));
        let crash = Lost::crash(CrashKind::Oops, "BUG", Phase::Boot).with_advice("look at the log");
        assert_eq!(crash.to_string(), "the guest's kernel reported a fault: BUG: look at the log");
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let may = |cause: Cause| Lost::from(cause).is_worth_another_try();
        assert!(may(Cause::Unsynced("EIO".into())));
        assert!(!Lost::from(Cause::Unsynced("EIO".into())).lasting().is_worth_another_try());
        assert!(!may(Cause::SetUp("it failed".into())));
        assert!(!may(Cause::NotTried("it never came up".into())));
        assert!(!may(Cause::Interrupted { signal: 2 }));
        assert!(!Lost::timeout(Phase::Boot, "no login").is_worth_another_try(), "the test's own retries are for that");
    }

    #[test]
    fn a_command_that_is_not_there_fails_as_in_a_shell() {
        let code = |errno| Cause::NotStarted { errno, why: "x".into() }.verdict().run_exit_code();
        assert_eq!(code(2), 127);
        assert_eq!(code(13), 126);
    }
}
