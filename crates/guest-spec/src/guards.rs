//! Guards: what a tester wants to be told of a guest while a test runs, and what comes of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Word, words};

words! {
    /// What a guard looks for while a command runs.
    #[derive(PartialOrd, Ord)]
    Guard {
        /// A program that was killed by a signal that dumps core.
        CoreDump = "coredump",
        /// A kernel WARNING, or a report of lockdep, UBSAN, KCSAN or kmemleak.
        Warning = "warning",
        /// A flag of `/proc/sys/kernel/tainted` that is new.
        Taint = "taint",
        /// A unit of systemd's that failed.
        Unit = "unit",
        /// A process that the kernel killed for want of memory.
        Oom = "oom",
        /// An error of a disk or a file system in the guest's kernel that no lab disk was told to make.
        IoError = "io-error",
    }
}

impl Guard {
    /// Whether the guest's kernel has to be its own: a container sees the host's, which is nobody's business there.
    #[must_use]
    pub fn is_of_kernel(self) -> bool {
        self != Self::Unit
    }
}

words! {
    /// What comes of what a guard sees.
    #[derive(Default)]
    GuardAction {
        /// A test that would pass fails.
        #[default]
        Fail = "fail",
        /// It is told.
        Warn = "warn",
        /// Nobody looks.
        Ignore = "ignore",
    }
}

/// Something that is not held against a test, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// Of which guard.
    pub guard: Guard,
    /// What the finding says somewhere; `*` stands for any text.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Why it may be.
    pub reason: String,
}

/// What is asked of the guards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guards {
    /// Those of which something is said; the others have the default.
    #[serde(flatten)]
    actions: BTreeMap<Guard, GuardAction>,
    /// What is not held against the test.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<Allowed>,
}

/// What comes of a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// A test that would pass fails.
    Fail,
    /// It is told.
    Warn,
    /// It is allowed, for this reason.
    Allowed(String),
    /// Nobody looks.
    Ignored,
}

impl Guards {
    /// Guards of which these are told something.
    #[must_use]
    pub fn new(actions: impl IntoIterator<Item = (Guard, GuardAction)>, allow: Vec<Allowed>) -> Self {
        Self { actions: actions.into_iter().collect(), allow }
    }

    /// Guards that fail nothing, and tell what they would have failed: for a person at a terminal, who sees it.
    #[must_use]
    pub fn softened(mut self) -> Self {
        for (_, guard) in Guard::ALL {
            if self.action(*guard) == GuardAction::Fail {
                self.actions.insert(*guard, GuardAction::Warn);
            }
        }
        self
    }

    /// Whether nothing is said of any.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.actions.is_empty() && self.allow.is_empty()
    }

    /// What comes of what this guard sees.
    #[must_use]
    pub fn action(&self, guard: Guard) -> GuardAction {
        self.actions.get(&guard).copied().unwrap_or_default()
    }

    /// Whether anybody wants to know what this guard sees.
    #[must_use]
    pub fn wants(&self, guard: Guard) -> bool {
        self.action(guard) != GuardAction::Ignore
    }

    /// What comes of this finding.
    #[must_use]
    pub fn judge(&self, guard: Guard, text: &str) -> Judgement {
        let action = self.action(guard);
        if action == GuardAction::Ignore {
            return Judgement::Ignored;
        }
        let allowed = self.allow.iter().find(|allowed| allowed.guard == guard && is_in(&allowed.pattern, text));
        match (allowed, action) {
            (Some(allowed), _) => Judgement::Allowed(allowed.reason.clone()),
            (None, GuardAction::Warn) => Judgement::Warn,
            (None, _) => Judgement::Fail,
        }
    }

    /// What holds if `self` is stronger than `weaker`: of each guard the stronger action; what either allows is allowed.
    #[must_use]
    pub fn over(&self, weaker: &Self) -> Self {
        let actions = weaker.actions.iter().chain(&self.actions).map(|(guard, action)| (*guard, *action)).collect();
        let allow = self.allow.iter().chain(weaker.allow.iter().filter(|a| !self.allow.contains(a))).cloned().collect();
        Self { actions, allow }
    }
}

/// What an option says of one guard: `coredump=warn`.
///
/// # Errors
/// What is wrong with it, and which words there are.
pub fn guard_option(text: &str) -> Result<(Guard, GuardAction), String> {
    let list = |words: &mut dyn Iterator<Item = &'static str>| words.collect::<Vec<_>>().join(", ");
    let (guard, action) = text.split_once('=').ok_or("write GUARD=ACTION, such as coredump=warn")?;
    let guard = Guard::of(guard)
        .ok_or_else(|| format!("there is no guard {guard:?}; there are {}", list(&mut Guard::words())))?;
    let action = GuardAction::of(action).ok_or_else(|| {
        format!("{action:?} is nothing that a guard does; write one of {}", list(&mut GuardAction::words()))
    })?;
    Ok((guard, action))
}

/// Whether a pattern is somewhere in a text; `*` stands for any text.
fn is_in(pattern: &str, text: &str) -> bool {
    let mut rest = text;
    pattern.split('*').all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

/// Whether a pattern says anything: one that fits everything is no exception but the guard's end.
#[must_use]
pub fn says_something(pattern: &str) -> bool {
    pattern.chars().any(|c| c != '*' && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(guard: Guard, pattern: &str) -> Allowed {
        Allowed { guard, pattern: pattern.into(), reason: "known".into() }
    }

    #[test]
    fn what_nobody_speaks_of_fails() {
        let guards = Guards::default();
        assert!(guards.is_default());
        for (word, guard) in Guard::ALL {
            assert_eq!((guard.word(), Guard::of(word)), (*word, Some(*guard)));
            assert_eq!(guards.judge(*guard, "x"), Judgement::Fail);
            assert_eq!(guards.clone().softened().judge(*guard, "x"), Judgement::Warn);
        }
        let quiet = Guards::new([(Guard::Taint, GuardAction::Ignore)], Vec::new());
        assert_eq!(quiet.softened().judge(Guard::Taint, "x"), Judgement::Ignored, "not louder than it was");
    }

    #[test]
    fn what_is_allowed_is_of_one_guard_and_fits_somewhere() {
        let guards = Guards::new(
            [(Guard::Oom, GuardAction::Ignore)],
            vec![allowed(Guard::Warning, "at net/*/tcp.c"), allowed(Guard::Oom, "x")],
        );
        let line = "WARNING: CPU: 0 PID: 7 at net/ipv4/tcp.c:12 tcp_x+0x1/0x2";
        assert_eq!(guards.judge(Guard::Warning, line), Judgement::Allowed("known".into()));
        assert_eq!(guards.judge(Guard::CoreDump, line), Judgement::Fail);
        assert_eq!(guards.judge(Guard::Warning, "WARNING: CPU: 0 PID: 7 at net/tcp.c:12"), Judgement::Fail);
        assert_eq!(guards.judge(Guard::Oom, "x"), Judgement::Ignored);
        for (pattern, fits) in [("", true), ("*", true), ("b", true), ("a*c", true), ("c*a", false), ("*bc*", true)] {
            assert_eq!(is_in(pattern, "abc"), fits, "{pattern}");
        }
        assert!(says_something("a*") && !says_something("**") && !says_something(" "));
    }

    #[test]
    fn the_stronger_action_holds_and_what_is_allowed_is_put_together() {
        let strong = Guards::new([(Guard::Oom, GuardAction::Warn)], vec![allowed(Guard::Unit, "a")]);
        let actions = [(Guard::Oom, GuardAction::Ignore), (Guard::Taint, GuardAction::Ignore)];
        let weak = Guards::new(actions, vec![allowed(Guard::Unit, "b"), allowed(Guard::Unit, "a")]);
        let both = strong.over(&weak);
        assert_eq!((both.action(Guard::Oom), both.action(Guard::Taint)), (GuardAction::Warn, GuardAction::Ignore));
        assert_eq!(both.allow.len(), 2);
        assert_eq!(both.over(&Guards::default()), both);
    }

    #[test]
    fn an_option_says_one() {
        assert_eq!(guard_option("io-error=warn"), Ok((Guard::IoError, GuardAction::Warn)));
        for wrong in ["io-error", "disk=warn", "oom=maybe", ""] {
            assert!(guard_option(wrong).is_err(), "{wrong}");
        }
    }
}
