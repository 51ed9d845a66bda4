//! The words that some keys choose from.

use crate::toml_tree::choice;

choice! {
    /// Who shares a guest.
    Isolation {
        /// Each test has a fresh guest.
        Test = "test",
        /// All tests of a suite run in one guest, in order.
        Suite = "suite",
    }
}

choice! {
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

choice! {
    /// What becomes of the guest's writes to the workspace.
    WorkspaceMode {
        /// They are written to the host.
        Rw = "rw",
        /// There are none.
        Ro = "ro",
        /// They stay in the guest.
        Cow = "cow",
    }
}

choice! {
    /// How a disk is attached.
    Bus {
        /// virtio-blk.
        Virtio = "virtio",
        /// virtio-scsi.
        Scsi = "scsi",
        /// AHCI.
        Sata = "sata",
        /// The PIIX controller of the `pc` machine.
        Ide = "ide",
        /// NVMe.
        Nvme = "nvme",
    }
}

choice! {
    /// The guest's network card.
    Nic {
        /// There is none.
        None = "none",
        /// DHCP answers, and nothing is reachable.
        Isolated = "isolated",
        /// The outside world by NAT.
        User = "user",
    }
}

choice! {
    /// How to get into a guest.
    Access {
        /// What the guest offers.
        Auto = "auto",
        /// What the serial line offers.
        Console = "console",
        /// Belljar's own init.
        Init = "init",
    }
}

choice! {
    /// What runs the guest's code.
    Accel {
        /// The processor.
        Kvm = "kvm",
        /// QEMU's translator.
        Tcg = "tcg",
    }
}

choice! {
    /// What a fault that the guest's kernel reports does.
    Oops {
        /// The guest counts as crashed.
        Crash = "crash",
        /// It is noted.
        Note = "note",
    }
}

choice! {
    /// How the pause before a retry grows.
    Backoff {
        /// It does not.
        Fixed = "fixed",
        /// It doubles.
        Exponential = "exponential",
    }
}
