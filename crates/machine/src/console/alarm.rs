//! Lines on the console that say how the guest fares: kernel failures, and boots that got stuck.
//!
//! The patterns follow CoreOS's `kola` and what boot loaders, initramfs shells and systemd print.
//!
//! # Limits
//!
//! The console is one stream. A kernel message is told from a program's output by its shape only: text right after a
//! time stamp (`[   12.345678] `) anywhere in a line, or, as long as no time stamp was ever seen (a kernel without
//! `CONFIG_PRINTK_TIME`), a line that starts with the message, with or without `<N>`. So a program that prints `BUG:`
//! does no harm, and one that prints the kernel's log (`dmesg`) to the console raises alarms again. The other
//! patterns must start a line; they mean something only until a shell is reached, and [`AlarmKind::phase`] says so.

use std::sync::{Arc, Mutex, PoisonError};

use belljar_image::grub::config::GAVE_UP;
use tokio::sync::watch;

/// Most alarms kept of one guest; later ones are counted only.
const KEPT: usize = 256;
/// How much of a line an alarm quotes, in bytes.
const QUOTE_MAX: usize = 512;

/// One line that means something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What it says.
    pub kind: AlarmKind,
    /// The line, fit to be shown.
    pub line: String,
    /// Console bytes seen when the line came.
    pub at: u64,
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.title(), self.line)
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a line in the event log.
    Note,
    /// The guest is ending or starting again; a crash where nobody asked for it.
    Ending,
    /// The guest waits for a person and will not get on.
    Stuck,
    /// The kernel failed; what the guest says from here on cannot be trusted.
    Fatal,
}

/// Which part of a guest's life an alarm belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Firmware, boot loader, initramfs: to be ignored once a shell was reached.
    Boot,
    /// The running kernel, at any time.
    Kernel,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident, $severity:ident, $phase:ident, $title:literal, $advice:literal;)*) => {
        /// What a line says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum AlarmKind {
            $($(#[$doc])* $name,)*
        }

        impl AlarmKind {
            /// Every kind.
            pub const ALL: &'static [AlarmKind] = &[$(AlarmKind::$name),*];

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(AlarmKind::$name => Severity::$severity,)* }
            }

            /// When it means something.
            pub fn phase(self) -> Phase {
                match self { $(AlarmKind::$name => Phase::$phase,)* }
            }

            /// What happened, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(AlarmKind::$name => $title,)* }
            }

            /// What a person can do about it.
            pub fn advice(self) -> &'static str {
                match self { $(AlarmKind::$name => $advice,)* }
            }
        }
    };
}

kinds! {
    /// `Kernel panic - not syncing: VFS: Unable to mount root fs` and its like.
    NoRoot, Fatal, Kernel, "the kernel found no root file system",
        "Check root= on the kernel line, and that the kernel or its initramfs has the disk's driver and file system.";
    /// `Kernel panic - not syncing: No working init found` or `Attempted to kill init`.
    InitDied, Fatal, Kernel, "the guest's first process is missing or died",
        "Check init= or rdinit=, and the lines above it; with a shell as init, leaving the shell ends the guest.";
    /// Any other `Kernel panic`.
    Panic, Fatal, Kernel, "kernel panic",
        "The trace is in the console log.";
    /// `Oops:`, general protection faults, invalid opcodes and the like in the kernel.
    Oops, Fatal, Kernel, "kernel oops",
        "The trace is in the console log.";
    /// `BUG:` and `kernel BUG at`.
    Bug, Fatal, Kernel, "kernel bug",
        "The trace is in the console log.";
    /// A CPU did not schedule for long.
    Lockup, Fatal, Kernel, "CPU lockup in the kernel",
        "On an overloaded host without KVM this may be the host's fault: run fewer guests at once, then look at the trace.";
    /// `rcu: INFO: … detected stall`.
    RcuStall, Fatal, Kernel, "RCU stall in the kernel",
        "On an overloaded host without KVM this may be the host's fault: run fewer guests at once, then look at the trace.";
    /// `INFO: task … blocked for more than`.
    HungTask, Fatal, Kernel, "a task hung in the kernel",
        "A process waits for I/O or a lock that does not come; the trace in the console log says where.";
    /// `WARNING: CPU: …`, lockdep's `WARNING: possible …`, `UBSAN: …`, `BUG: KCSAN: …`, and what else a debugging kernel reports and goes on.
    Warning, Note, Kernel, "kernel warning",
        "The trace is in the console log.";
    /// The kernel killed a process for want of memory.
    OutOfMemory, Note, Kernel, "the guest ran out of memory and killed a process",
        "Give the guest more memory.";
    /// A disk or file system failed under the kernel.
    DiskError, Note, Kernel, "a disk or file system error in the guest",
        "Check the image, and that the host's disk is not full.";
    /// `Linux version …` as the first message: a kernel starts.
    KernelStart, Note, Kernel, "a kernel starts",
        "";
    /// `PM: suspend entry (s2idle)`, of which QEMU knows nothing.
    Suspend, Note, Kernel, "the guest suspends itself",
        "";
    /// `PM: suspend exit`.
    Wake, Note, Kernel, "the guest wakes",
        "";
    /// `reboot: Power down`.
    PowerDown, Ending, Kernel, "the guest powers off",
        "";
    /// `reboot: Restarting system`.
    Restart, Ending, Kernel, "the guest restarts",
        "";
    /// `reboot: System halted`.
    Halt, Ending, Kernel, "the guest halted",
        "";
    /// `(initramfs)` of Debian's initramfs-tools.
    InitramfsShell, Stuck, Boot, "the initramfs gave up and waits in its own shell",
        "The root file system was not found: check root= and that the disk is attached as the initramfs expects it.";
    /// dracut's emergency shell.
    DracutShell, Stuck, Boot, "dracut gave up and waits in its emergency shell",
        "The root file system was not found: check root= and that the disk is attached as the initramfs expects it.";
    /// `Give root password for maintenance` or a root account that is locked there.
    Maintenance, Stuck, Boot, "the guest went into emergency mode and waits for a person",
        "A unit needed for the boot failed, often a mount in /etc/fstab; the lines above name it.";
    /// `grub rescue>`.
    GrubRescue, Stuck, Boot, "GRUB cannot find its files",
        "The disk's boot loader is damaged, or the image needs UEFI or another disk order.";
    /// `grub>`.
    GrubShell, Stuck, Boot, "GRUB waits at its command line",
        "GRUB found no configuration: check the image's /boot/grub/grub.cfg.";
    /// What our GRUB says when it cannot go on (`belljar_image::grub`).
    OurGrub, Stuck, Boot, "Belljar's GRUB did not start the image",
        "It boots the default entry of a grub.cfg, or of boot loader specification entries; the console log says what it read. Other ways in: --access.";
    /// A menu that waits for a choice.
    BootMenu, Note, Boot, "the boot loader shows its menu",
        "If it waits for ever, give the image's boot loader a timeout.";
    /// SeaBIOS found nothing to boot.
    NoBootDevice, Stuck, Boot, "the firmware found nothing to boot",
        "The image has no BIOS boot loader (it may need UEFI: --firmware auto, or the guest's `firmware`), or it is not a disk image at all.";
    /// A UEFI firmware found nothing to boot.
    UefiNoBoot, Stuck, Boot, "the UEFI firmware found nothing to boot",
        "The image has no EFI boot loader (it may need BIOS: leave --firmware uefi out, or the guest's `firmware`), or it is not a disk image at all.";
    /// A UEFI firmware's own handler of exceptions (EDK II's `CpuExceptionHandlerLib` and `DefaultExceptionHandlerLib`), after which it stands still.
    UefiException, Stuck, Boot, "the UEFI firmware, or the boot loader in it, crashed",
        "The registers are in the console log: try another version of the firmware's package, or of the image's boot loader.";
    /// The shell of the UEFI firmware.
    UefiShell, Stuck, Boot, "the guest ended up in the UEFI shell",
        "The image has no EFI boot loader (it may need BIOS: leave --firmware uefi out, or the guest's `firmware`), or it is not a disk image at all.";
    /// iPXE gave up.
    NetworkBoot, Stuck, Boot, "the guest tried to boot from the network and found nothing",
        "No disk was bootable: check the image and its firmware.";
    /// iPXE was reached at all.
    NetworkBootTried, Note, Boot, "the firmware tries the network card",
        "Seen when no disk was bootable.";
    /// ISOLINUX or SYSLINUX without a kernel.
    SyslinuxPrompt, Stuck, Boot, "SYSLINUX found no kernel to load",
        "The image's boot loader configuration is broken.";
    /// `U-Boot`'s prompt.
    UBootPrompt, Stuck, Boot, "U-Boot waits at its prompt",
        "U-Boot found nothing to boot.";
}

/// Panics that say more than "panic".
const PANICS: &[(&str, AlarmKind)] = &[
    ("VFS: Unable to mount root fs", AlarmKind::NoRoot),
    ("VFS: Unable to open", AlarmKind::NoRoot),
    ("No working init found", AlarmKind::InitDied),
    ("No init found", AlarmKind::InitDied),
    ("Requested init ", AlarmKind::InitDied),
    ("Attempted to kill init!", AlarmKind::InitDied),
];

/// Starts of kernel messages.
const KERNEL: &[(&str, AlarmKind)] = &[
    ("Oops: ", AlarmKind::Oops),
    ("Oops [", AlarmKind::Oops),
    ("Internal error: ", AlarmKind::Oops),
    ("Unable to handle kernel ", AlarmKind::Oops),
    ("general protection fault", AlarmKind::Oops),
    ("BUG: KCSAN: ", AlarmKind::Warning),
    ("BUG: ", AlarmKind::Bug),
    ("kernel BUG at ", AlarmKind::Bug),
    ("watchdog: BUG: soft lockup", AlarmKind::Lockup),
    ("NMI watchdog: BUG: soft lockup", AlarmKind::Lockup),
    ("NMI watchdog: Watchdog detected hard LOCKUP", AlarmKind::Lockup),
    ("watchdog: Watchdog detected hard LOCKUP", AlarmKind::Lockup),
    ("WARNING: ", AlarmKind::Warning),
    ("UBSAN: ", AlarmKind::Warning),
    ("INFO: trying to register non-static key", AlarmKind::Warning),
    ("Out of memory: ", AlarmKind::OutOfMemory),
    ("Memory cgroup out of memory: ", AlarmKind::OutOfMemory),
    ("EXT4-fs error ", AlarmKind::DiskError),
    ("BTRFS error ", AlarmKind::DiskError),
    ("BTRFS: error ", AlarmKind::DiskError),
    ("I/O error, dev ", AlarmKind::DiskError),
    ("blk_update_request: I/O error", AlarmKind::DiskError),
    ("Buffer I/O error on dev", AlarmKind::DiskError),
    ("SQUASHFS error: ", AlarmKind::DiskError),
    ("PM: suspend entry (s2idle)", AlarmKind::Suspend),
    ("PM: suspend exit", AlarmKind::Wake),
    ("reboot: Power down", AlarmKind::PowerDown),
    ("reboot: Restarting system", AlarmKind::Restart),
    ("reboot: System halted", AlarmKind::Halt),
];

/// What the kernel calls errors of a disk (`block/blk-core.c`), but for `I/O`. A request that ran out of space, or that a disk does not know, is none.
const BLOCK_ERRORS: &[&str] =
    &["critical medium", "critical nexus", "critical target", "timeout", "recoverable transport", "protection"];

/// Starts of lines, before there is a shell.
const BOOT: &[(&str, AlarmKind)] = &[
    ("dracut:/#", AlarmKind::DracutShell),
    ("Entering emergency mode. Exit the shell to continue.", AlarmKind::DracutShell),
    ("Give root password for maintenance", AlarmKind::Maintenance),
    ("Give root password for system maintenance", AlarmKind::Maintenance),
    ("You are in emergency mode", AlarmKind::Maintenance),
    ("You are in rescue mode", AlarmKind::Maintenance),
    ("Cannot open access to console, the root account is locked", AlarmKind::Maintenance),
    ("grub rescue>", AlarmKind::GrubRescue),
    ("Entering rescue mode...", AlarmKind::GrubRescue),
    (GAVE_UP, AlarmKind::OurGrub),
    ("No bootable device", AlarmKind::NoBootDevice),
    ("Boot failed: ", AlarmKind::NoBootDevice),
    ("BdsDxe: No bootable option or device was found", AlarmKind::UefiNoBoot),
    ("!!!! X64 Exception Type - ", AlarmKind::UefiException),
    ("!!!! IA32 Exception Type - ", AlarmKind::UefiException),
    ("!!!! RISCV64 Exception Type - ", AlarmKind::UefiException),
    ("Synchronous Exception at 0x", AlarmKind::UefiException),
    ("UEFI Interactive Shell", AlarmKind::UefiShell),
    ("No more network devices", AlarmKind::NetworkBoot),
    ("No configuration methods succeeded", AlarmKind::NetworkBoot),
    ("iPXE ", AlarmKind::NetworkBootTried),
    ("Could not find kernel image: ", AlarmKind::SyslinuxPrompt),
    ("No DEFAULT or UI configuration directive found", AlarmKind::SyslinuxPrompt),
    ("GNU GRUB ", AlarmKind::BootMenu),
];

/// Lines that are a prompt and nothing else.
const PROMPTS: &[(&str, AlarmKind)] = &[
    ("(initramfs)", AlarmKind::InitramfsShell),
    ("grub>", AlarmKind::GrubShell),
    ("Shell>", AlarmKind::UefiShell),
    ("iPXE>", AlarmKind::NetworkBoot),
    ("=>", AlarmKind::UBootPrompt),
    ("U-Boot>", AlarmKind::UBootPrompt),
];

/// Finds alarms in lines.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// A kernel's time stamp was seen.
    stamped: bool,
    /// U-Boot introduced itself.
    u_boot: bool,
    /// What the line that is still open already raised.
    raised: Option<AlarmKind>,
}

impl Scanner {
    /// A line has ended. It is to be fit for display and without trailing blanks.
    pub(crate) fn line(&mut self, line: &str) -> Option<AlarmKind> {
        let kind = self.judge(line, false);
        let raised = self.raised.take();
        kind.filter(|k| raised != Some(*k))
    }

    /// A line is open, as far as it goes; for prompts, which nobody ends.
    pub(crate) fn open_line(&mut self, line: &str) -> Option<AlarmKind> {
        if self.raised.is_some() {
            return None;
        }
        self.raised = self.judge(line, true);
        self.raised
    }

    fn judge(&mut self, line: &str, open: bool) -> Option<AlarmKind> {
        if let Some(message) = after_stamp(line) {
            self.stamped = true;
            // An open line is judged again when it ends; half a kernel message may say too little.
            return if open { None } else { kernel_kind(message) };
        }
        if !self.stamped
            && !open
            && !is_a_programs(strip_level(line))
            && let Some(kind) = kernel_kind(strip_level(line))
        {
            return Some(kind);
        }
        let line = line.trim();
        self.u_boot |= line.starts_with("U-Boot ");
        if open {
            return PROMPTS
                .iter()
                .find(|(p, k)| *p == line && (self.u_boot || *k != AlarmKind::UBootPrompt))
                .or_else(|| BOOT.iter().find(|(p, _)| p.ends_with('>') && *p == line))
                .or_else(|| BOOT.iter().find(|(p, k)| *k == AlarmKind::Maintenance && line.starts_with(p)))
                .or_else(|| BOOT.iter().find(|(p, k)| *k == AlarmKind::DracutShell && line == *p))
                .map(|(_, k)| *k);
        }
        BOOT.iter().find(|(p, _)| line.starts_with(p)).map(|(_, k)| *k)
    }
}

/// What follows the last kernel time stamp (`[   12.345678] `, maybe with a CPU or thread: `[   12.345678][    T1] `).
fn after_stamp(line: &str) -> Option<&str> {
    let mut found = None;
    for (at, _) in line.match_indices('[') {
        let rest = &line[at + 1..];
        let Some(close) = rest.find(']') else { break };
        let stamp = rest[..close].trim_start();
        let Some((seconds, fraction)) = stamp.split_once('.') else { continue };
        let digits =
            |s: &str, n: std::ops::RangeInclusive<usize>| n.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(seconds, 1..=9) || !digits(fraction, 6..=6) {
            continue;
        }
        let mut message = &rest[close + 1..];
        if let Some(caller) = message.strip_prefix('[') {
            let Some((_, after)) = caller.split_once(']') else { continue };
            message = after;
        }
        found = Some(message.strip_prefix(' ').unwrap_or(message));
    }
    found
}

/// Programs warn in these words, too; the kernel's own are known by their time stamp.
fn is_a_programs(line: &str) -> bool {
    line.starts_with("WARNING: ") && !line.starts_with("WARNING: CPU: ")
}

fn strip_level(line: &str) -> &str {
    line.strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .filter(|(level, _)| level.len() <= 3 && !level.is_empty() && level.bytes().all(|b| b.is_ascii_digit()))
        .map_or(line, |(_, rest)| rest)
}

/// What a message of the kernel's says, without its time stamp.
pub(crate) fn kernel_kind(message: &str) -> Option<AlarmKind> {
    if let Some(why) = message.strip_prefix("Kernel panic - not syncing") {
        let why = why.trim_start_matches([':', ' ']);
        return Some(PANICS.iter().find(|(p, _)| why.starts_with(p)).map_or(AlarmKind::Panic, |(_, k)| *k));
    }
    if message.starts_with("Linux version ") {
        return Some(AlarmKind::KernelStart);
    }
    if let Some((_, k)) = KERNEL.iter().find(|(p, _)| message.starts_with(p)) {
        return Some(*k);
    }
    // x86: "invalid opcode: 0000 [#1] PREEMPT SMP"; the counter in brackets is the kernel's own.
    if message.len() < 120
        && let Some((what, code)) = message.split_once(": ")
        && !what.contains('[')
        && code.len() > 5
        && code.as_bytes()[..4].iter().all(u8::is_ascii_hexdigit)
        && code.as_bytes()[4..].starts_with(b" [#")
    {
        return Some(AlarmKind::Oops);
    }
    if message.contains(" blocked for more than ") && message.contains("INFO: task ") {
        return Some(AlarmKind::HungTask);
    }
    if message.contains("INFO: rcu_") && (message.contains("stall") || message.contains("starved")) {
        return Some(AlarmKind::RcuStall);
    }
    if message.contains(" invoked oom-killer: ") {
        return Some(AlarmKind::OutOfMemory);
    }
    if message.starts_with("kmemleak: ") && message.contains(" new suspected memory leak") {
        return Some(AlarmKind::Warning);
    }
    // "XFS (vda1): Corruption detected", "XFS (vda1): metadata I/O error in …".
    if let Some((_, said)) = message.strip_prefix("XFS (").and_then(|rest| rest.split_once("): "))
        && (said.contains("I/O error") || said.starts_with("Corruption "))
    {
        return Some(AlarmKind::DiskError);
    }
    // "critical medium error, dev sda, sector 8 op 0x0:(READ)": the kernel's `blk_errors`.
    let of_block_layer = message.strip_prefix("blk_update_request: ").unwrap_or(message);
    if let Some((what, _)) = of_block_layer.split_once(" error, dev ")
        && BLOCK_ERRORS.contains(&what)
    {
        return Some(AlarmKind::DiskError);
    }
    None
}

/// All alarms of one console, shared by those who watch it.
#[derive(Debug)]
pub(crate) struct AlarmLog {
    kept: Mutex<Vec<Alarm>>,
    count: watch::Sender<u64>,
}

impl AlarmLog {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(AlarmLog { kept: Mutex::default(), count: watch::Sender::new(0) })
    }

    pub(crate) fn raise(&self, kind: AlarmKind, line: &str, at: u64) {
        let mut quote = line.to_owned();
        if quote.len() > QUOTE_MAX {
            quote.truncate((0..=QUOTE_MAX).rev().find(|n| quote.is_char_boundary(*n)).unwrap_or(0));
            quote.push('…');
        }
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // A flood of notes must not hide a panic at its end.
            if kept.len() < KEPT || (kind.severity() > Severity::Note && kept.len() < 2 * KEPT) {
                kept.push(Alarm { kind, line: quote, at });
            }
        }
        self.count.send_modify(|n| *n += 1);
    }
}

/// A reader of alarms. Each reader gets all of them from the start of the console, so none is missed by coming late.
#[derive(Clone, Debug)]
pub struct Alarms {
    log: Arc<AlarmLog>,
    next: usize,
    changed: watch::Receiver<u64>,
}

impl Alarms {
    pub(crate) fn new(log: &Arc<AlarmLog>) -> Self {
        Alarms { log: Arc::clone(log), next: 0, changed: log.count.subscribe() }
    }

    /// The next alarm that is there already.
    pub fn try_next(&mut self) -> Option<Alarm> {
        let kept = self.log.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let alarm = kept.get(self.next).cloned();
        self.next += usize::from(alarm.is_some());
        alarm
    }

    /// Waits for the next alarm. Cancelling loses nothing. Never returns if there is never another.
    pub async fn next(&mut self) -> Alarm {
        loop {
            self.changed.borrow_and_update();
            if let Some(alarm) = self.try_next() {
                return alarm;
            }
            if self.changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits for the next alarm at least this severe and drops those before it.
    pub async fn next_of(&mut self, at_least: Severity) -> Alarm {
        loop {
            let alarm = self.next().await;
            if alarm.kind.severity() >= at_least {
                return alarm;
            }
        }
    }

    /// Forgets all alarms so far: this reader goes on from here.
    pub fn skip_all(&mut self) {
        self.next = self.log.kept.lock().unwrap_or_else(PoisonError::into_inner).len();
    }

    /// Every alarm kept so far, whatever this reader has read.
    pub fn all(&self) -> Vec<Alarm> {
        self.log.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Option<AlarmKind> {
        Scanner::default().line(line)
    }

    #[test]
    fn kernels_failing_are_told_apart() {
        use AlarmKind::*;
        for (line, kind) in [
            ("[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", NoRoot),
            ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", InitDied),
            ("[   12.345678][    T1] Kernel panic - not syncing: sysrq triggered crash", Panic),
            ("<0>[   12.345678] Kernel panic - not syncing: Fatal exception", Panic),
            ("<0>Kernel panic - not syncing: Fatal exception", Panic),
            ("root@host:~# [   99.000001] BUG: kernel NULL pointer dereference, address: 0000000000000000", Bug),
            ("[    5.000000] Oops: 0002 [#1] PREEMPT SMP NOPTI", Oops),
            ("[    5.000000] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", Oops),
            ("[    5.000000] Internal error: Oops: 0000000096000004 [#1] SMP", Oops),
            ("[    5.000000] general protection fault, probably for non-canonical address 0xdead: 0000 [#1]", Oops),
            ("[  243.123456] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]", Lockup),
            ("[  243.123456] INFO: task jbd2/vda1-8:123 blocked for more than 120 seconds.", HungTask),
            ("[   60.000000] rcu: INFO: rcu_preempt self-detected stall on CPU", RcuStall),
            ("[   60.000000] Out of memory: Killed process 77 (stress) total-vm:1kB", OutOfMemory),
            ("[   60.000000] stress invoked oom-killer: gfp_mask=0x1", OutOfMemory),
            ("[    0.000000] Linux version 6.1.0-1-amd64 (x@y)", KernelStart),
            ("[   60.000000] reboot: Power down", PowerDown),
        ] {
            assert_eq!(one(line), Some(kind), "{line}");
        }
    }

    #[test]
    fn the_agent_passes_on_whatever_is_an_alarm() {
        let lines = KERNEL.iter().map(|(line, kind)| (*line, *kind)).chain([
            ("Kernel panic - not syncing: x", AlarmKind::Panic),
            ("invalid opcode: 0000 [#1] PREEMPT SMP", AlarmKind::Oops),
            ("INFO: task jbd2/vda1-8:123 blocked for more than 120 seconds.", AlarmKind::HungTask),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", AlarmKind::RcuStall),
            ("rcu: INFO: rcu_preempt kthread starved for 100 jiffies", AlarmKind::RcuStall),
            ("stress invoked oom-killer: gfp_mask=0x1", AlarmKind::OutOfMemory),
            ("WARNING: CPU: 0 PID: 7 at kernel/x.c:1 x+0x1/0x2 [x]", AlarmKind::Warning),
            ("WARNING: possible recursive locking detected", AlarmKind::Warning),
            ("WARNING: kernel/x.c:1 at x+0x1/0x2, CPU#0: sh/7", AlarmKind::Warning),
            ("UBSAN: array-index-out-of-bounds in drivers/x.c:1:2", AlarmKind::Warning),
            ("BUG: KCSAN: data-race in a / b", AlarmKind::Warning),
            ("BUG: KASAN: slab-out-of-bounds in x+0x1/0x2", AlarmKind::Bug),
            ("kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)", AlarmKind::Warning),
            ("XFS (vda1): metadata I/O error in \"x\" at daddr 0x1 len 1 error 5", AlarmKind::DiskError),
            ("XFS (vda1): Corruption detected. Unmount and run xfs_repair", AlarmKind::DiskError),
            ("critical medium error, dev sda, sector 8 op 0x0:(READ)", AlarmKind::DiskError),
            ("blk_update_request: critical target error, dev sda, sector 8", AlarmKind::DiskError),
        ]);
        for (line, kind) in lines {
            assert_eq!(kernel_kind(line), Some(kind), "{line}");
            // What says that the guest ends is for the console: the agent ends with it.
            assert!(belljar_proto::kernel::may_matter(line) || kind.severity() == Severity::Ending, "{line}");
        }
    }

    #[test]
    fn stuck_boots_are_told_apart() {
        use AlarmKind::*;
        for (line, kind) in [
            ("(initramfs)", InitramfsShell),
            ("grub rescue>", GrubRescue),
            ("grub>", GrubShell),
            ("Shell>", UefiShell),
            ("Give root password for maintenance", Maintenance),
        ] {
            let mut s = Scanner::default();
            assert_eq!(s.open_line(line), Some(kind), "{line}");
            assert_eq!(s.open_line(line), None, "raised once a line");
        }
        assert_eq!(one("No bootable device."), Some(NoBootDevice));
        assert_eq!(one("BdsDxe: No bootable option or device was found."), Some(UefiNoBoot));
        let crashed = "!!!! X64 Exception Type - 0D(#GP - General Protection)  CPU Apic ID - 00000000 !!!!";
        assert_eq!(one(crashed), Some(UefiException));
        assert_eq!(one("Synchronous Exception at 0x000000013F2B1000"), Some(UefiException));
        assert_eq!(one("belljar: GRUB gives up: no entry of it boots"), Some(OurGrub));
    }

    #[test]
    fn programs_may_say_what_they_like() {
        let mut s = Scanner::default();
        assert_eq!(s.line("WARNING: a program warns of something"), None);
        assert_eq!(s.line("[    0.100000] x86/fpu: x87 FPU will use FXSAVE"), None);
        for line in [
            "BUG: this is a test's own word",
            "Kernel panic - not syncing: said a program",
            "checking BUG: handling",
            "  (initramfs) is where we came from",
            "[1.0] BUG: no kernel writes its stamps like this",
            "[   12.345678] traps: prog[12] general protection fault ip:1 sp:2 error:0",
        ] {
            assert_eq!(s.line(line), None, "{line}");
        }
    }

    #[tokio::test]
    async fn whoever_comes_late_hears_all() {
        let log = AlarmLog::new();
        log.raise(AlarmKind::Warning, "w", 1);
        let mut a = Alarms::new(&log);
        log.raise(AlarmKind::Panic, "p", 2);
        assert_eq!(a.next_of(Severity::Fatal).await.line, "p");
        assert_eq!(a.try_next(), None);
        assert_eq!(a.all().len(), 2);
    }

    proptest! {
        #[test]
        fn any_line_is_judged_without_a_panic(line in "\\PC{0,200}") {
            let mut s = Scanner::default();
            s.open_line(&line);
            s.line(&line);
        }

        #[test]
        fn near_misses_are_judged_without_a_panic(line in "(<[0-9]{0,4}>)?\\[? {0,4}[0-9]{0,10}\\.?[0-9]{0,7}\\]?(\\[ T1\\])? ?(Kernel panic - not syncing:? ?|BUG: |ä: 0000 \\[#1\\])?.{0,20}") {
            let mut s = Scanner::default();
            s.open_line(&line);
            s.line(&line);
        }
    }
}
