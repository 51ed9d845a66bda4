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

/// Where an error is of which the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorPlace<'a> {
    /// On the block device with this name, or in a file system on it.
    Device(&'a str),
    /// In a Btrfs, which may be on further devices beside this one.
    Btrfs(&'a str),
    /// In a file system of this kind, of which the line does not say more.
    AnyOf(&'static str),
}

/// Where an error of a disk or a file system is, by the line that tells of it; none where the line is of something else, or does not say.
#[must_use]
pub fn error_place(line: &str) -> Option<ErrorPlace<'_>> {
    let after = |mark: &str| {
        let (_, rest) = line.split_once(mark)?;
        let name = rest.split(|c: char| c.is_whitespace() || ",):".contains(c)).next()?;
        (!name.is_empty()).then_some(name)
    };
    if line.starts_with("BTRFS") {
        return after("(device ").map(ErrorPlace::Btrfs);
    }
    if line.starts_with("SQUASHFS error") {
        return Some(ErrorPlace::AnyOf("squashfs"));
    }
    let device = if line.starts_with("EXT4-fs") {
        after("(device ")
    } else if line.starts_with("XFS (") {
        after("XFS (")
    } else {
        after(" error, dev ").or_else(|| after(" error on dev ")).or_else(|| after(" error on device "))
    };
    device.map(ErrorPlace::Device)
}

/// One record of `/dev/kmsg` (the kernel's `Documentation/ABI/testing/dev-kmsg`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number: each record has the next one.
    pub sequence: u64,
    /// When it was written: microseconds of the kernel's own clock (`local_clock`), which goes as long as the machine does.
    pub time: u64,
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
    let time = fields.next()?.parse().ok()?;
    let text = bytes[at + 1..].split(|&byte| byte == b'\n').next().unwrap_or_default();
    Some(Record { sequence, time, by_kernel: priority >> 3 == 0, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_a_record_is_told_apart() {
        let kernel = record(b"1,642,12345678,-;BUG: kernel NULL pointer dereference\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((kernel.sequence, kernel.time, kernel.by_kernel), (642, 12_345_678, true));
        assert_eq!(kernel.text, b"BUG: kernel NULL pointer dereference");
        // `echo "BUG: x" >/dev/kmsg` and `echo "<1>BUG: x" >/dev/kmsg`: facility 1.
        for program in [&b"12,643,1,-;BUG: x\n"[..], b"9,643,1,-;BUG: x\n"] {
            assert!(!record(program).unwrap().by_kernel);
        }
        assert_eq!(record(b"6,1,2,-,caller=T1;a;b\n").unwrap().text, b"a;b");
        for rubbish in [&b""[..], b"x", b";x", b"1;x", b"a,b;x", b"1,2,3,-", b"\xff,1;x", b"1,2;x", b"1,2,x,-;x"] {
            assert_eq!(record(rubbish), None);
        }
    }

    #[test]
    fn where_an_error_is() {
        use ErrorPlace::{AnyOf, Btrfs, Device};
        for (line, place) in [
            ("I/O error, dev vdb, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2", Some(Device("vdb"))),
            ("blk_update_request: I/O error, dev nvme0n1, sector 0", Some(Device("nvme0n1"))),
            ("critical medium error, dev sda, sector 8 op 0x0:(READ)", Some(Device("sda"))),
            ("Buffer I/O error on dev dm-0, logical block 0, async page read", Some(Device("dm-0"))),
            ("Buffer I/O error on device sda1, logical block 7", Some(Device("sda1"))),
            (
                "EXT4-fs error (device vdb1): ext4_journal_check_start:83: comm sync: Detected aborted journal",
                Some(Device("vdb1")),
            ),
            ("EXT4-fs error (device md0) in ext4_reserve_inode_write:5764: Journal has aborted", Some(Device("md0"))),
            ("XFS (dm-3): log I/O error -5", Some(Device("dm-3"))),
            ("XFS (nvme0n1p2): metadata I/O error in \"x\" at daddr 0x1 len 1 error 5", Some(Device("nvme0n1p2"))),
            ("BTRFS error (device vda): bdev /dev/vdb errs: wr 1, rd 0, flush 0, corrupt 0, gen 0", Some(Btrfs("vda"))),
            ("BTRFS error (device vda state EA): parent transid verify failed", Some(Btrfs("vda"))),
            ("BTRFS: error (device vda) in btrfs_commit_transaction:2462: errno=-5 IO failure", Some(Btrfs("vda"))),
            ("SQUASHFS error: Failed to read block 0x60: -5", Some(AnyOf("squashfs"))),
            ("I/O error, dev", None),
            ("I/O error, dev , sector 8", None),
            ("EXT4-fs error", None),
            ("BTRFS error: x", None),
            ("Out of memory: Killed process 7 (x)", None),
        ] {
            assert_eq!(error_place(line), place, "{line}");
        }
    }
}
