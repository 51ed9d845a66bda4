//! What is asked of the guards, as typed by the user.

use belljar_guest_spec::{Allowed, Guard, GuardAction, Guards, Word, says_something};
use toml::Spanned;

use super::{check::contradiction, layers::plain};
use crate::toml_tree::{List, Table, Text, Walk, table, word_value};

word_value!(Guard, GuardAction);

table! {
    /// What a tester is told of while a test runs, and what comes of it: "fail", "warn" or "ignore".
    GuardsTable is "the guards" {
        /// A program that a signal killed which dumps core (SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP).
        "coredump" coredump: GuardAction = "\"fail\"",
        /// A kernel WARNING, or a report of lockdep, UBSAN, KCSAN or kmemleak.
        "warning" warning: GuardAction = "\"fail\"",
        /// A new flag of /proc/sys/kernel/tainted, but those of warnings and of faults, which are told by their messages.
        "taint" taint: GuardAction = "\"fail\"",
        /// A unit of systemd's that failed.
        "unit" unit: GuardAction = "\"fail\"",
        /// A process that the kernel killed for want of memory.
        "oom" oom: GuardAction = "\"fail\"",
        /// An error of a disk or a file system in the guest's kernel that no lab disk was told to make.
        "io-error" io_error: GuardAction = "\"fail\"",
        /// What is not held against the test. Those of guest, suite and header are put together.
        "allow" allow: List<AllowTable> = "[]",
    }
}

table! {
    /// Something that is not held against a test.
    AllowTable is "an exception of a guard" {
        /// The guard.
        "guard" guard: Guard = "(must be given)",
        /// What the finding says somewhere; `*` stands for any text.
        "match" pattern: Text = "(must be given)",
        /// Why it may be.
        "reason" reason: Text = "(must be given)",
    }
}

/// Says what is wrong with what is right by itself.
pub(super) fn check(table: Option<&Spanned<GuardsTable>>, walk: &mut Walk) {
    let allow = table.and_then(|table| table.get_ref().allow.as_ref());
    for table in allow.iter().flat_map(|list| &list.get_ref().0) {
        let table = table.get_ref();
        let examples = [
            ("guard", "guard = \"warning\""),
            ("match", "match = \"at net/core/dev.c\""),
            ("reason", "reason = \"a known warning of this kernel\""),
        ];
        for (key, example) in examples {
            if !table.seen.contains(key) {
                walk.missing(table.span.clone(), AllowTable::NOUN, key, example);
            }
        }
        if let Some(pattern) = &table.pattern
            && !says_something(&pattern.get_ref().0)
        {
            let message = "`match` fits whatever the guard sees";
            contradiction(walk, pattern.span(), message, "write what is to be allowed, or have the guard \"ignore\"");
        }
    }
}

/// What is asked of the guards; exceptions that are wrong are left out.
pub(super) fn guards(table: &Option<Spanned<GuardsTable>>) -> Guards {
    let Some(table) = table.as_ref().map(Spanned::get_ref) else { return Guards::default() };
    let action = |value: &Option<Spanned<GuardAction>>| value.as_ref().map(|v| *v.get_ref());
    let actions = Guard::ALL.iter().filter_map(|(_, guard)| {
        let action = match guard {
            Guard::CoreDump => action(&table.coredump),
            Guard::Warning => action(&table.warning),
            Guard::Taint => action(&table.taint),
            Guard::Unit => action(&table.unit),
            Guard::Oom => action(&table.oom),
            Guard::IoError => action(&table.io_error),
        };
        Some((*guard, action?))
    });
    let allowed = |table: &Spanned<AllowTable>| {
        let table = table.get_ref();
        let guard = *table.guard.as_ref()?.get_ref();
        Some(Allowed { guard, pattern: plain(&table.pattern)?, reason: plain(&table.reason)? })
    };
    let allow = table.allow.iter().flat_map(|list| &list.get_ref().0).filter_map(allowed).collect();
    Guards::new(actions, allow)
}

#[cfg(test)]
mod tests {
    use belljar_guest_spec::Judgement;

    use super::*;
    use crate::{config::Config, diagnostic::SourceText};

    #[test]
    fn guest_suite_and_header_are_put_together() {
        let text = "[guests.g]\nguards = { coredump = \"ignore\", oom = \"warn\", allow = [{ guard = \"unit\", match = \"a.service\", reason = \"r\" }] }\n\
                    [[suites]]\nname = \"s\"\ntests = \"*\"\nguards.coredump = \"warn\"\n";
        let config = Config::parse("belljar.toml", text).unwrap();
        let source = SourceText::new("t", "");
        let line = "guards = { allow = [{ guard = \"unit\", match = \"b*service\", reason = \"q\" }] }";
        let header = crate::header::parse(&source, 0, std::path::Path::new(""), line).unwrap().layer;
        let layers = [&header, &config.suites[0].layer, &config.guests["g"].layer];
        let guards = crate::settings::Layer::merge(layers).settle(&[]).0.guards;
        assert_eq!((guards.action(Guard::CoreDump), guards.action(Guard::Oom)), (GuardAction::Warn, GuardAction::Warn));
        let unit = |text| guards.judge(Guard::Unit, text);
        assert_eq!(unit("a.service failed"), Judgement::Allowed("r".into()));
        assert_eq!(unit("b2.service failed"), Judgement::Allowed("q".into()));
        assert_eq!(unit("c.service failed"), Judgement::Fail);
    }

    #[test]
    fn an_exception_says_what_and_why() {
        let wrong = |exception: &str| {
            let text =
                format!("[guests.g]\nguards.allow = [{{ {exception} }}]\n[[suites]]\nname = \"s\"\ntests = \"*\"\n");
            Config::parse("belljar.toml", &text).map(drop).unwrap_err().to_string()
        };
        assert!(wrong("guard = \"unit\", match = \"x\"").contains("reason"));
        assert!(wrong("match = \"x\", reason = \"r\"").contains("guard"));
        assert!(wrong("guard = \"unit\", match = \"*\", reason = \"r\"").contains("fits whatever"));
        assert!(wrong("guard = \"oops\", match = \"x\", reason = \"r\"").contains("oops"));
    }

    #[test]
    fn every_guard_is_a_key_with_the_default_that_holds() {
        for (word, guard) in Guard::ALL {
            let key = GuardsTable::keys().into_iter().find(|key| key.name == *word).unwrap();
            assert_eq!(key.default.trim_matches('"'), Guards::default().action(*guard).word());
        }
    }
}
