//! Lines of the kernel's record that may say that it failed: the agent passes these on, the host judges them.

/// Parts of such lines. Each is part of every kernel message that the host takes for a fault or worth a note; more than those may
/// contain one.
const PARTS: &[&str] = &[
    " [#",
    " error",
    "BUG",
    "Corruption",
    "I/O error",
    "INFO: trying to register",
    "Internal error",
    "Kernel panic",
    "LOCKUP",
    "Oops",
    "PM: suspend",
    "UBSAN: ",
    "Unable to handle",
    "WARNING: ",
    "blocked for more than",
    "kmemleak: ",
    "lockup",
    "oom-killer",
    "protection fault",
    "stall",
    "starved",
    "ut of memory",
];

/// Whether a line of the kernel's may be a fault or worth a note.
#[must_use]
pub fn may_matter(line: &str) -> bool {
    PARTS.iter().any(|part| line.contains(part))
}

/// One record of `/dev/kmsg` (the kernel's `Documentation/ABI/testing/dev-kmsg`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number: each record has the next one.
    pub sequence: u64,
    /// Written by the kernel itself. What a program writes to `/dev/kmsg` has the facility of a program, whatever it says.
    pub by_kernel: bool,
    /// The message, without what drivers add to it.
    pub text: &'a [u8],
}

/// Reads a record: `priority,sequence,time,flags[,…];text`, then lines that begin with a space.
#[must_use]
pub fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let at = bytes.iter().position(|&byte| byte == b';')?;
    let head = core::str::from_utf8(&bytes[..at]).ok()?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let text = bytes[at + 1..].split(|&byte| byte == b'\n').next().unwrap_or_default();
    Some(Record { sequence, by_kernel: priority >> 3 == 0, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_a_record_is_told_apart() {
        let kernel = record(b"1,642,12345678,-;BUG: kernel NULL pointer dereference\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((kernel.sequence, kernel.by_kernel), (642, true));
        assert_eq!(kernel.text, b"BUG: kernel NULL pointer dereference");
        // `echo "BUG: x" >/dev/kmsg` and `echo "<1>BUG: x" >/dev/kmsg`: facility 1.
        for program in [&b"12,643,1,-;BUG: x\n"[..], b"9,643,1,-;BUG: x\n"] {
            assert!(!record(program).unwrap().by_kernel);
        }
        assert_eq!(record(b"6,1,2,-,caller=T1;a;b\n").unwrap().text, b"a;b");
        for rubbish in [&b""[..], b"x", b";x", b"1;x", b"a,b;x", b"1,2,3,-", b"\xff,1;x"] {
            assert_eq!(record(rubbish), None);
        }
    }
}
