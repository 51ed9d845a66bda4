//! The exit codes of the `belljar` program: their one home. The manual's table is checked against it.

/// Everything went as asked.
pub const OK: u8 = 0;
/// `belljar test`: no test matched.
pub const NO_TESTS: u8 = 4;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// `belljar.toml` is wrong.
pub const BAD_CONFIG: u8 = 96;
/// `belljar test`: tests failed.
pub const TESTS_FAILED: u8 = 100;
/// `belljar run`: the guest died, panicked or hung under the command.
pub const GUEST_DIED: u8 = 121;
/// `belljar run`: the command exited with 0, but a guard saw something that fails it.
pub const GUARD: u8 = 122;
/// `belljar run`: the time given to the command, or to the boot, passed (as `timeout(1)`).
pub const TIMEOUT: u8 = 124;
/// Belljar, or the host, could not do what was asked.
pub const CANNOT_RUN: u8 = 125;

/// Code for a command killed by a signal, as shells give it: 128 plus the signal's number.
#[must_use]
pub fn for_signal(signal: i32) -> u8 {
    u8::try_from(signal).ok().and_then(|s| 128_u8.checked_add(s)).unwrap_or(CANNOT_RUN)
}

/// Every documented code with its meaning, for the manual and its test.
pub const ALL: &[(u8, &str)] = &[
    (OK, "everything went as asked"),
    (USAGE, "the command line is wrong"),
    (NO_TESTS, "`belljar test`: no test matched"),
    (BAD_CONFIG, "`belljar.toml` is wrong"),
    (TESTS_FAILED, "`belljar test`: tests failed"),
    (GUEST_DIED, "`belljar run`: the guest died, panicked or hung under the command"),
    (GUARD, "`belljar run`: the command exited with 0, but a guard saw something that fails it"),
    (TIMEOUT, "the time given to the boot or to the command passed"),
    (CANNOT_RUN, "Belljar, or the host, could not do what was asked"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_map_as_in_shells() {
        assert_eq!(for_signal(9), 137);
        assert_eq!(for_signal(15), 143);
        assert_eq!(for_signal(127), 255);
        assert_eq!(for_signal(128), CANNOT_RUN);
        assert_eq!(for_signal(-1), CANNOT_RUN);
    }

    #[test]
    fn no_code_stands_twice() {
        let mut codes: Vec<u8> = ALL.iter().map(|(c, _)| *c).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ALL.len());
    }
}
