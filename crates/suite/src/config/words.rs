//! The words that keys of suites and tests choose from. Those of a guest's keys come from `guest-spec`.

use belljar_guest_spec::words;

use crate::toml_tree::word_value;

word_value!(Backoff, Format, Isolation);

words! {
    /// Who shares a guest.
    Isolation {
        /// Each test has a fresh guest.
        Test = "test",
        /// All tests of a suite run in one guest, in order.
        Suite = "suite",
    }
}

words! {
    /// How a test tells its results.
    Format {
        /// The exit code: 0 passes, 77 skips, all else fails.
        Exit = "exit",
        /// TAP 13 or 14 on its output.
        Tap = "tap",
        /// JUnit files that it leaves.
        Junit = "junit",
        /// A binary of Rust's test harness, listed and run one test at a time.
        Libtest = "libtest",
        /// The kernel's selftests: TAP with their own habits.
        Kselftest = "kselftest",
    }
}

words! {
    /// How the pause before a retry grows.
    Backoff {
        /// It does not.
        Fixed = "fixed",
        /// It doubles.
        Exponential = "exponential",
    }
}
