//! The words that some keys choose from.

use belljar_guest_spec::{Accel, Access, DiskBus, NicMode, OopsPolicy, WorkspaceMode, words};

use crate::toml_tree::word_value;

word_value!(Accel, Access, Backoff, DiskBus, Format, Isolation, NicMode, OopsPolicy, WorkspaceMode);

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
