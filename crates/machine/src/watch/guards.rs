//! What guards see while a command runs, and what comes of it.
//!
//! The agent tells in one stream what the kernel says and what it sees itself, with a mark where the command begins and one where it has ended;
//! what is outside of the marks was there before, or is of what comes after, and is not held against the command. Without an agent the
//! console is all there is, from the command's start to its end.

use std::collections::{BTreeMap, BTreeSet};

use belljar_guest_spec::{Guard, GuardAction, Guards, Judgement, Word};
use belljar_model::{EventKind, Exit, event::FindingOutcome};
use belljar_proto::message::{AgentGuards, BlindGuard, ExecId, GuardNews};

use super::Watch;
use crate::{
    console::{AlarmKind, sanitize::sanitize_line},
    guest::Observe,
};

/// Most findings of one guard with one outcome that are told of one command.
const MOST: usize = 20;
/// Most bytes of what a finding says.
const MAX_TEXT: usize = 600;

/// Flags of `/proc/sys/kernel/tainted` that come with a message of the kernel's, by which they are judged: `TAINT_BAD_PAGE`, `TAINT_DIE` and
/// `TAINT_SOFTLOCKUP` are the faults', `TAINT_WARN` is a warning's.
const TOLD_OTHERWISE: u64 = 1 << 5 | 1 << 7 | 1 << 14 | WARNED;
/// `TAINT_WARN`.
const WARNED: u64 = 1 << 9;

/// The flags by number, with their letter (the kernel's `Documentation/admin-guide/tainted-kernels.rst`).
const FLAGS: &[(u32, char, &str)] = &[
    (0, 'P', "a proprietary module was loaded"),
    (1, 'F', "a module was loaded by force"),
    (2, 'S', "the kernel runs on a system that it is not made for"),
    (3, 'R', "a module was taken out by force"),
    (4, 'M', "the processor reported a machine check"),
    (6, 'U', "a program asked for it"),
    (8, 'A', "an ACPI table was overridden"),
    (10, 'C', "a driver of the staging tree was loaded"),
    (11, 'I', "a bug of the firmware was worked around"),
    (12, 'O', "a module from outside of the kernel's tree was loaded"),
    (13, 'E', "a module without a signature was loaded"),
    (15, 'K', "the kernel was patched while it ran"),
    (16, 'X', "set by the distribution"),
    (17, 'T', "the layout of its structures is random"),
    (18, 'N', "a test in the kernel was run"),
    (19, 'J', "a program changed what a device works with, by fwctl"),
];

/// Guards that see what the kernel says.
const OF_KERNEL: [Guard; 3] = [Guard::Warning, Guard::Oom, Guard::IoError];

/// What the agent is asked to look for; none: nobody wants to know anything.
pub(crate) fn of_agent(guards: Option<&Guards>) -> Option<AgentGuards> {
    let guards = guards?;
    let any = Guard::ALL.iter().any(|(_, guard)| guards.wants(*guard));
    any.then(|| AgentGuards {
        core_dumps: guards.wants(Guard::CoreDump),
        // A warning whose message was lost is known by its flag.
        taint: guards.wants(Guard::Taint) || guards.wants(Guard::Warning),
        units: guards.wants(Guard::Unit),
    })
}

/// What guards see of one command.
#[derive(Debug, Default)]
pub(crate) struct Guarding {
    /// What is asked of them; none where nobody wants to know.
    guards: Option<Guards>,
    /// The command runs, as far as this side knows.
    runs: bool,
    /// The agent has told of the command's begin, and not of its end.
    begun: Option<ExecId>,
    ended: bool,
    /// The kernel has warned.
    warned: bool,
    told: BTreeMap<(Guard, FindingOutcome), usize>,
    /// Guards that cannot see: told once for a guest.
    blind: BTreeSet<BlindGuard>,
}

impl Guarding {
    /// A command begins.
    pub(crate) fn begin(&mut self, guards: Option<&Guards>) {
        let guards = guards.filter(|guards| of_agent(Some(guards)).is_some()).cloned();
        let blind = std::mem::take(&mut self.blind);
        *self = Self { runs: guards.is_some(), guards, blind, ..Self::default() };
    }

    /// The command has ended, of itself where there is an exit; all that the agent said before is read. `by_agent`: there is one.
    pub(crate) fn end(&mut self, exit: Option<Exit>, by_agent: bool, observe: Observe<'_>) {
        if by_agent && self.runs && !self.ended && exit.is_some() {
            let message =
                "the guest's agent did not say what the guards saw, so that they vouch for nothing".to_owned();
            observe(EventKind::Warning { message });
        }
        for ((guard, outcome), count) in std::mem::take(&mut self.told) {
            if let Some(more) = count.checked_sub(MOST).filter(|more| *more > 0) {
                let what = if outcome == FindingOutcome::Allowed { "allowed findings" } else { "findings" };
                let message = format!("{more} more {what} of the guard {guard} were not recorded");
                observe(EventKind::Warning { message });
            }
        }
        (self.runs, self.begun) = (false, None);
    }

    /// Judges what a guard has seen; gives whether it was told.
    fn find(&mut self, guard: Guard, text: &str, observe: Observe<'_>) -> bool {
        let Some(guards) = &self.guards else { return false };
        let text = short(text);
        let (outcome, reason) = match guards.judge(guard, &text) {
            Judgement::Ignored => return false,
            Judgement::Allowed(reason) => (FindingOutcome::Allowed, Some(reason)),
            Judgement::Warn => (FindingOutcome::Warn, None),
            Judgement::Fail => (FindingOutcome::Fail, None),
        };
        let told = self.told.entry((guard, outcome)).or_default();
        *told += 1;
        if *told <= MOST {
            observe(EventKind::Finding { guard: guard.word().into(), text, outcome, reason });
        }
        true
    }

    /// So many came that nobody has judged, of one of these guards. A limit vouches for nothing: what fails a command for one fails it for these, and
    /// what is allowed does not count, for nobody knows what they are.
    fn unjudged(&mut self, count: u32, what: &str, of: &[Guard], observe: Observe<'_>) {
        if count == 0 {
            return;
        }
        self.unseen(&format!("{count} more {what} came than can be judged: they were not looked at"), of, observe);
    }

    /// Something was not looked at that one of these guards is for.
    fn unseen(&mut self, text: &str, of: &[Guard], observe: Observe<'_>) {
        let text = short(text);
        let fails = |guard: &Guard| self.guards.as_ref().is_some_and(|all| all.action(*guard) == GuardAction::Fail);
        let failing: Vec<_> = of.iter().copied().filter(fails).collect();
        if failing.is_empty() {
            observe(EventKind::Warning { message: text });
            return;
        }
        for guard in failing {
            let outcome = FindingOutcome::Fail;
            // Beyond the number of findings that are told, so that it is never left out.
            observe(EventKind::Finding { guard: guard.word().into(), text: text.clone(), outcome, reason: None });
        }
    }

    /// So many messages of the kernel's were lost before anybody read them.
    pub(crate) fn lost_records(&mut self, records: u64, observe: Observe<'_>) {
        if self.begun.is_some() {
            let text = format!(
                "{records} messages of the guest's kernel were overwritten before they could be read: they were not looked at"
            );
            self.unseen(&text, &OF_KERNEL, observe);
        }
    }

    /// Nobody reads the kernel's record any more, for this reason.
    pub(crate) fn record_closed(&mut self, why: &str, observe: Observe<'_>) {
        if self.begun.is_some() {
            let text = format!("what the guest's kernel said meanwhile was not looked at: {why}");
            self.unseen(&text, &OF_KERNEL, observe);
        }
    }

    /// Takes a message of the kernel's, from its record or, where nobody reads that, from the console; gives whether it was told as a finding, or
    /// is about to be.
    pub(crate) fn kernel_says(&mut self, kind: AlarmKind, line: &str, of_record: bool, observe: Observe<'_>) -> bool {
        let runs = if of_record { self.begun.is_some() } else { self.runs };
        let guard = match kind {
            AlarmKind::Warning => Guard::Warning,
            AlarmKind::DiskError => Guard::IoError,
            // That the killer was called is said just before, of the same.
            AlarmKind::OutOfMemory if line.contains(" invoked oom-killer") => {
                return runs && self.guards.as_ref().is_some_and(|guards| guards.wants(Guard::Oom));
            }
            AlarmKind::OutOfMemory => Guard::Oom,
            _ => return false,
        };
        if !runs {
            return false;
        }
        self.warned |= guard == Guard::Warning;
        self.find(guard, line, observe)
    }

    /// Takes what the agent tells.
    pub(crate) fn take(&mut self, news: GuardNews, observe: Observe<'_>) {
        match news {
            GuardNews::Begins(id) => (self.begun, self.ended) = (self.runs.then_some(id), false),
            GuardNews::Ends { id, lines, programs, units } => {
                if self.begun != Some(id) {
                    return;
                }
                (self.begun, self.ended) = (None, true);
                // Nobody knows of which of them the kernel's messages are.
                self.unjudged(lines, "messages of the guest's kernel", &OF_KERNEL, observe);
                self.unjudged(programs, "core dumps", &[Guard::CoreDump], observe);
                self.unjudged(units, "failed units", &[Guard::Unit], observe);
            }
            GuardNews::Blind { guard, meanwhile, why } => {
                let guards: &[Guard] = match guard {
                    BlindGuard::CoreDumps => &[Guard::CoreDump],
                    BlindGuard::Units => &[Guard::Unit],
                    BlindGuard::Taint => &[Guard::Taint, Guard::Warning],
                };
                if meanwhile && self.begun.is_some() {
                    self.unseen(&format!("what happened meanwhile was not looked at: {why}"), guards, observe);
                } else if self.blind.insert(guard) {
                    guards.iter().for_each(|guard| observe(blind(guard.word(), &why)));
                }
            }
            // Of a command that is over, or that nobody guards.
            _ if self.begun.is_none() => {}
            GuardNews::CoreDump { pid, name, program, parent, signal, core } => {
                let text = core_dump(pid, &name, &program, &parent, Exit::Signal { number: signal, core });
                self.find(Guard::CoreDump, &text, observe);
            }
            GuardNews::Taint(flags) => self.tainted(flags, observe),
            GuardNews::Unit { name, result } => {
                let result = if result.is_empty() { String::new() } else { format!(" ({result})") };
                self.find(Guard::Unit, &format!("{name} failed{result}"), observe);
            }
        }
    }

    fn tainted(&mut self, flags: u64, observe: Observe<'_>) {
        if flags & WARNED != 0 && !self.warned {
            let text = "WARNING: the kernel has set the flag W (a warning), whose message was not seen";
            self.find(Guard::Warning, text, observe);
        }
        let flags = flags & !TOLD_OTHERWISE;
        for bit in (0..u64::BITS).filter(|bit| flags & 1 << bit != 0) {
            let text = match FLAGS.iter().find(|(number, ..)| *number == bit) {
                Some((_, letter, what)) => format!("the kernel is tainted: {letter} ({what})"),
                None => format!("the kernel is tainted: flag {bit}"),
            };
            self.find(Guard::Taint, &text, observe);
        }
    }
}

/// That guards cannot see, and why.
pub(crate) fn blind(guard: &str, why: &str) -> EventKind {
    let why = short(why);
    EventKind::Choice { what: format!("guard {guard}"), chosen: "cannot see".into(), why }
}

/// In a person's words.
fn core_dump(pid: u32, name: &str, program: &str, parent: &str, exit: Exit) -> String {
    let name = if name.is_empty() { "a process that was gone at once" } else { name };
    let program = if program.is_empty() { String::new() } else { format!(", {program}") };
    let parent = if parent.is_empty() { String::new() } else { format!(", started by {parent}") };
    let how = match exit {
        Exit::Signal { number: 0, .. } => {
            "was killed, and its core is still being dumped (the kernel does not say yet by which signal)".to_owned()
        }
        Exit::Signal { core: false, .. } => format!("was {exit}, without a core file"),
        exit => format!("was {exit}"),
    };
    format!("{name} ({pid}{program}{parent}) {how}")
}

/// A finding as it may stand in the log and on a terminal.
fn short(text: &str) -> String {
    // A program may be called what it likes, and is one line here.
    let mut text = sanitize_line(text.replace(['\n', '\r'], " ").as_bytes());
    if text.len() > MAX_TEXT {
        text.truncate((0..=MAX_TEXT).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0));
        text.push('…');
    }
    text
}

impl Watch {
    /// Takes what came before a command's end, and ends what guards look for.
    pub(crate) fn end_guards(&mut self, exit: Option<Exit>, observe: Observe<'_>) -> Option<crate::Lost> {
        let lost = self.take_news(belljar_model::Phase::Command, observe);
        let by_agent = self.reports.is_some();
        self.guarding.end(exit.filter(|_| lost.is_none()), by_agent, observe);
        lost
    }
}

#[cfg(test)]
mod tests {
    use belljar_guest_spec::Allowed;

    use super::*;

    fn guards() -> Guards {
        let allowed = Allowed { guard: Guard::Warning, pattern: "at net/*".into(), reason: "known".into() };
        Guards::new([(Guard::Oom, GuardAction::Warn), (Guard::IoError, GuardAction::Ignore)], vec![allowed])
    }

    /// What is told of these.
    fn told(what: impl FnOnce(&mut Guarding, Observe<'_>)) -> Vec<String> {
        let mut told = Vec::new();
        let mut guarding = Guarding::default();
        guarding.begin(Some(&guards()));
        what(&mut guarding, &mut |event| {
            told.push(match event {
                EventKind::Finding { guard, text, outcome, reason } => {
                    format!("{guard} {outcome:?}: {text}{}", reason.map(|r| format!(" [{r}]")).unwrap_or_default())
                }
                EventKind::Warning { message } => format!("note: {message}"),
                EventKind::Choice { what, chosen, why } => format!("{what}: {chosen}: {why}"),
                other => format!("{other:?}"),
            });
        });
        told
    }

    const ENDS: GuardNews = GuardNews::Ends { id: 7, lines: 0, programs: 0, units: 0 };

    #[test]
    fn only_what_happens_meanwhile_counts() {
        let line = "WARNING: CPU: 0 PID: 1 at kernel/x.c:1 x+0x1/0x2";
        let seen = told(|guarding, observe| {
            assert!(!guarding.kernel_says(AlarmKind::Warning, line, true, observe), "before");
            assert!(!guarding.kernel_says(AlarmKind::OutOfMemory, "x invoked oom-killer: gfp", true, observe));
            guarding.take(GuardNews::Unit { name: "early.service".into(), result: String::new() }, observe);
            guarding.take(GuardNews::Begins(7), observe);
            assert!(guarding.kernel_says(AlarmKind::Warning, line, true, observe));
            assert!(!guarding.kernel_says(AlarmKind::DiskError, "I/O error, dev vda, sector 1", true, observe));
            assert!(guarding.kernel_says(AlarmKind::OutOfMemory, "x invoked oom-killer: gfp", true, observe));
            assert!(guarding.kernel_says(AlarmKind::OutOfMemory, "Out of memory: Killed process 7 (x)", true, observe));
            assert!(guarding.kernel_says(AlarmKind::Warning, "WARNING: CPU: 0 at net/x.c:1", true, observe));
            guarding.take(GuardNews::Taint(1 << 9 | 1 << 7 | 1 << 12 | 1 << 40), observe);
            guarding.take(GuardNews::Unit { name: "a.service".into(), result: "exit-code".into() }, observe);
            guarding.take(ENDS, observe);
            assert!(!guarding.kernel_says(AlarmKind::Warning, line, true, observe), "after");
            guarding.end(Some(Exit::Code(0)), true, observe);
            assert!(!guarding.kernel_says(AlarmKind::Warning, line, false, observe), "after");
        });
        insta::assert_snapshot!(seen.join("\n"), @r"
        warning Fail: WARNING: CPU: 0 PID: 1 at kernel/x.c:1 x+0x1/0x2
        oom Warn: Out of memory: Killed process 7 (x)
        warning Allowed: WARNING: CPU: 0 at net/x.c:1 [known]
        taint Fail: the kernel is tainted: O (a module from outside of the kernel's tree was loaded)
        taint Fail: the kernel is tainted: flag 40
        unit Fail: a.service failed (exit-code)
        ");
    }

    #[test]
    fn a_flood_of_what_is_allowed_hides_nothing() {
        let seen = told(|guarding, observe| {
            guarding.take(GuardNews::Begins(7), observe);
            for _ in 0..100 {
                guarding.kernel_says(AlarmKind::Warning, "WARNING: CPU: 0 at net/x.c:1", true, observe);
            }
            guarding.kernel_says(
                AlarmKind::Warning,
                &format!("WARNING: \u{1b}[31m{}", "x".repeat(5000)),
                true,
                observe,
            );
            guarding.take(GuardNews::Ends { id: 7, lines: 0, programs: 0, units: 0 }, observe);
            guarding.end(Some(Exit::Code(0)), true, observe);
        });
        assert_eq!(seen.iter().filter(|told| told.contains("Allowed")).count(), MOST);
        let failed = seen.iter().find(|told| told.contains("Fail")).unwrap();
        assert!(failed.len() < 700 && !failed.contains('\u{1b}'), "{failed}");
        let notes: Vec<_> = seen.iter().filter(|told| told.starts_with("note")).collect();
        insta::assert_snapshot!(format!("{notes:#?}"), @r#"
        [
            "note: 80 more allowed findings of the guard warning were not recorded",
        ]
        "#);
    }

    #[test]
    fn what_nobody_has_looked_at_fails_unless_its_guards_do_not() {
        let ends = |all: Guards, lines, programs, units| {
            let mut told = Vec::new();
            let mut guarding = Guarding::default();
            guarding.begin(Some(&all));
            let observe: Observe<'_> = &mut |event| {
                told.push(match event {
                    EventKind::Finding { guard, text, outcome, .. } => format!("{guard} {outcome:?}: {text}"),
                    EventKind::Warning { message } => format!("note: {message}"),
                    other => format!("{other:?}"),
                });
            };
            guarding.take(GuardNews::Begins(7), observe);
            guarding.take(GuardNews::Ends { id: 7, lines, programs, units }, observe);
            guarding.end(Some(Exit::Code(0)), true, observe);
            told
        };
        let allowed = |guard| Allowed { guard, pattern: "core dumps".into(), reason: "known".into() };
        let strict = Guards::new([(Guard::Oom, GuardAction::Warn)], vec![allowed(Guard::CoreDump)]);
        insta::assert_snapshot!(ends(strict.clone(), 3, 11, 1).join("\n"), @r"
        warning Fail: 3 more messages of the guest's kernel came than can be judged: they were not looked at
        io-error Fail: 3 more messages of the guest's kernel came than can be judged: they were not looked at
        coredump Fail: 11 more core dumps came than can be judged: they were not looked at
        unit Fail: 1 more failed units came than can be judged: they were not looked at
        ");
        let soft = ends(strict.softened(), 3, 11, 1);
        assert!(soft.len() == 3 && soft.iter().all(|told| told.starts_with("note: ")), "{soft:?}");
    }

    #[test]
    fn a_program_is_named_as_far_as_it_is_known() {
        let dump = |name: &str, signal, core| GuardNews::CoreDump {
            pid: 41,
            name: name.into(),
            program: if name.is_empty() { String::new() } else { "/usr/bin/x".into() },
            parent: "sh".into(),
            signal,
            core,
        };
        let seen = told(|guarding, observe| {
            guarding.take(GuardNews::Begins(7), observe);
            guarding.take(dump("x", 11, true), observe);
            guarding.take(dump("", 6, false), observe);
            guarding.take(dump("x", 0, false), observe);
            for _ in 0..2 {
                guarding.take(
                    GuardNews::Blind { guard: BlindGuard::Units, meanwhile: false, why: "no answer".into() },
                    observe,
                );
            }
            guarding.take(ENDS, observe);
            guarding.end(Some(Exit::Code(0)), true, observe);
        });
        insta::assert_snapshot!(seen.join("\n"), @r"
        coredump Fail: x (41, /usr/bin/x, started by sh) was killed by SIGSEGV (signal 11), core dumped
        coredump Fail: a process that was gone at once (41, started by sh) was killed by SIGABRT (signal 6), without a core file
        coredump Fail: x (41, /usr/bin/x, started by sh) was killed, and its core is still being dumped (the kernel does not say yet by which signal)
        guard unit: cannot see: no answer
        ");
    }

    #[test]
    fn a_warning_whose_message_was_lost_is_known_by_its_flag() {
        let seen = told(|guarding, observe| {
            guarding.take(GuardNews::Begins(7), observe);
            guarding.take(GuardNews::Taint(1 << 9), observe);
        });
        assert_eq!(seen.len(), 1);
        assert!(seen[0].starts_with("warning Fail"), "{seen:?}");
    }

    #[test]
    fn who_was_blinded_meanwhile_vouches_for_nothing() {
        let blind = |guard, meanwhile| GuardNews::Blind { guard, meanwhile, why: "gone".into() };
        let seen = told(|guarding, observe| {
            guarding.lost_records(3, observe);
            guarding.record_closed("gone", observe);
            guarding.take(blind(BlindGuard::Taint, true), observe);
            guarding.take(GuardNews::Begins(7), observe);
            guarding.take(blind(BlindGuard::CoreDumps, false), observe);
            guarding.take(blind(BlindGuard::CoreDumps, true), observe);
            guarding.take(blind(BlindGuard::Units, true), observe);
            guarding.lost_records(3, observe);
            guarding.record_closed("gone", observe);
            guarding.take(ENDS, observe);
        });
        insta::assert_snapshot!(seen.join("\n"), @r"
        guard taint: cannot see: gone
        guard warning: cannot see: gone
        guard coredump: cannot see: gone
        coredump Fail: what happened meanwhile was not looked at: gone
        unit Fail: what happened meanwhile was not looked at: gone
        warning Fail: 3 messages of the guest's kernel were overwritten before they could be read: they were not looked at
        warning Fail: what the guest's kernel said meanwhile was not looked at: gone
        ");
    }

    #[test]
    fn a_name_of_more_than_one_line_is_told_whole() {
        let seen = told(|guarding, observe| {
            guarding.take(GuardNews::Begins(7), observe);
            let (name, program) = ("a\nb".to_owned(), "/tmp/c\r\nd".to_owned());
            guarding.take(
                GuardNews::CoreDump { pid: 5, name, program, parent: "sh".into(), signal: 11, core: false },
                observe,
            );
        });
        assert_eq!(
            seen,
            ["coredump Fail: a b (5, /tmp/c  d, started by sh) was killed by SIGSEGV (signal 11), without a core file"]
        );
    }

    #[test]
    fn nobody_looks_where_nobody_wants_to_know() {
        let none = Guards::new(Guard::ALL.iter().map(|(_, guard)| (*guard, GuardAction::Ignore)), Vec::new());
        assert_eq!((of_agent(None), of_agent(Some(&none))), (None, None));
        let all = AgentGuards { core_dumps: true, taint: true, units: true };
        assert_eq!(of_agent(Some(&Guards::default())), Some(all));
        for (number, letter, _) in FLAGS {
            assert!(TOLD_OTHERWISE & 1 << number == 0, "{letter}");
        }
    }
}
