//! A run of `belljar test` such as there might be one, made of nothing: for tests of the reports.

use std::time::Duration;

use belljar_model::{
    AttemptId, Crash, CrashKind, Event, EventKind, Exit, Fault, Phase, RunId, Scope, UnitId, Verdict, event::SCHEMA,
    test_run::*,
};
use jiff::Timestamp;

/// Bytes that a hostile guest might write, as what logs them would clean them, and worse.
pub(crate) const HOSTILE: &str = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">]]>&amp;{{data}}\u{0}\u{1b}[31mred\u{1b}[0m\r\u{9b}\u{85}\u{2028}\u{202e}\u{fffe}\u{ffff}\u{1f4a9}\u{10ffff}'\"`--><!-- [[ATTACHMENT|/etc/passwd]] \\ # TODO javascript:alert(1)";

const TESTS: &[(&str, &str)] = &[
    ("storage", "mkfs-ext4.sh"),
    ("storage", "mkfs-xfs.sh"),
    ("storage", "lvm-thin-snapshot.sh"),
    ("storage", "raid1-rebuild.sh"),
    ("storage", "loop-partitions.sh"),
    ("storage", "quota.sh"),
    ("network", "namespaces.sh"),
    ("network", "bridge-vlan.sh"),
    ("network", "nftables-nat.sh"),
    ("network", "dhcp-lease.sh"),
    ("boot", "initramfs-rescue.sh"),
    ("boot", "kexec.sh"),
    ("boot", "systemd-unit.sh"),
    ("kernel", "module-load.sh"),
    ("kernel", "sysctl-persist.sh"),
    ("kernel", "cgroup-memory.tap"),
    ("packages", "install-remove.sh"),
    ("packages", "upgrade-keep-config.sh"),
];
const GUESTS: &[&str] = &["debian-12", "fedora-42", "alpine"];

/// Milliseconds, and what was told then.
type Told = (u64, Option<Scope>, EventKind);

struct Writer {
    events: Vec<Event>,
    at: Timestamp,
}

impl Writer {
    fn push(&mut self, after: u64, kind: EventKind) {
        self.push_of(after, None, kind);
    }

    fn push_of(&mut self, after: u64, scope: Option<Scope>, kind: EventKind) {
        self.at += Duration::from_millis(after);
        self.events.push(Event { seq: self.events.len() as u64, at: self.at, kind, scope });
    }
}

/// The log of a run of about `count` units. With `hostile`, names, messages and outputs try to break out of every report.
pub(crate) fn log(count: usize, hostile: bool) -> Vec<Event> {
    let mut w = Writer { events: Vec::new(), at: "2026-01-02T03:04:05Z".parse().unwrap() };
    let odd = |text: &str| if hostile { format!("{text}{HOSTILE}") } else { text.to_owned() };
    w.push(
        0,
        EventKind::TestRunStarted(TestRunStarted {
            schema: SCHEMA,
            run: RunId::new(w.at, 0x1a2b_3c4d),
            version: "0.1.0".into(),
            host: Host {
                name: odd("build-7"),
                kernel: "Linux 6.12.5".into(),
                arch: "x86_64".into(),
                cpus: 8,
                memory: 32 << 30,
                accelerator: "kvm".into(),
            },
            profile: "ci".into(),
            command: vec!["belljar".into(), "test".into(), "--profile".into(), "ci".into()],
            partition: None,
            missing: None,
            jobs: Some(4),
        }),
    );
    w.push(
        1,
        EventKind::Choice { what: "accelerator".into(), chosen: "kvm".into(), why: "/dev/kvm runs a guest".into() },
    );
    let mut units = Vec::new();
    for n in 0..count {
        let (suite, name) = TESTS[n / GUESTS.len() % TESTS.len()];
        let round = n / (GUESTS.len() * TESTS.len());
        let test = odd(&if round == 0 { name.to_owned() } else { format!("{round:03}-{name}") });
        let guest = GUESTS[n % GUESTS.len()];
        let unit = Unit {
            unit: UnitId::new(suite, &test, guest),
            suite: suite.into(),
            test: test.clone(),
            guest: guest.into(),
            tags: if n.is_multiple_of(7) { vec![odd("disk"), "slow".into()] } else { vec![] },
            file: Some(format!("tests/{suite}/{name}")),
        };
        if n % 29 == 11 {
            let reason = odd("the guest `alpine` has no systemd");
            w.push(0, EventKind::UnitSkipped(UnitSkipped { unit, reason }));
        } else {
            w.push(0, EventKind::UnitPlanned(unit.clone()));
            units.push((n, unit));
        }
    }
    // Four at once: what each does is laid out beforehand, then put in order of time.
    let start = w.at;
    let mut free = [0_u64; 4];
    let mut later: Vec<Told> = Vec::new();
    let mut counts = Counts { units: count as u64, skip: (count - units.len()) as u64, ..Counts::default() };
    for (n, unit) in &units {
        let slot = (0..4).min_by_key(|s| free[*s]).unwrap();
        let (kinds, took, verdict, flaky) = one(*n, unit, u32::try_from(slot).unwrap(), &odd);
        later.extend(kinds.into_iter().map(|(t, scope, k)| (free[slot] + t, scope, k)));
        free[slot] += took;
        counts.add(&verdict, flaky);
    }
    later.sort_by_key(|(t, _, _)| *t);
    for (t, scope, kind) in later {
        w.at = start + Duration::from_millis(t);
        w.push_of(0, scope, kind);
    }
    let end =
        TestRunEnded { counts, exit_code: counts.exit_code(), millis: *free.iter().max().unwrap(), message: None };
    w.push(40, EventKind::TestRunEnded(end));
    w.events
}

fn verdict(n: usize, odd: &dyn Fn(&str) -> String) -> (Verdict, Option<String>) {
    let message = |m: &str| Some(odd(m));
    match n % 41 {
        3 => (Verdict::Fail(Exit::Code(1)), message("the mirror's second half did not come back")),
        9 => (Verdict::Fail(Exit::Signal { number: 11, core: true }), None),
        15 => (Verdict::Fail(Exit::Code(0)), message("2 of 5 cases failed: memory.max, memory.high")),
        21 => (Verdict::Timeout(Phase::Command), message("waited 300 s for the command")),
        27 => {
            let seen = odd("BUG: kernel NULL pointer dereference, address: 0000000000000018");
            (Verdict::Crash(Crash { kind: CrashKind::Oops, seen, phase: Phase::Command }), None)
        }
        33 => {
            let message = odd("starting QEMU failed: no memory on the host; run with fewer jobs (-j 2)");
            (Verdict::Error(Fault::Host { message }), None)
        }
        38 => (Verdict::Skip(odd("needs /dev/loop-control")), None),
        _ => (Verdict::Pass, None),
    }
}

/// What one unit does: its events by milliseconds from its start, how long it took, its end.
fn one(n: usize, unit: &Unit, slot: u32, odd: &dyn Fn(&str) -> String) -> (Vec<Told>, u64, Verdict, bool) {
    let mut kinds = Vec::new();
    let flaky = n % 17 == 5;
    let mut at = 0;
    let tries = if flaky { 2 } else { 1 };
    let (last, message) = if flaky { (Verdict::Pass, None) } else { verdict(n, odd) };
    for attempt in 1..=tries {
        let id = AttemptId { unit: unit.unit.clone(), repeat: 1, attempt };
        let instance = n as u64 * 4 + u64::from(attempt);
        let (end, why) = if attempt < tries {
            (Verdict::Fail(Exit::Code(1)), Some(odd("no lease within 10 s")))
        } else {
            (last.clone(), message.clone())
        };
        let boot = 90 + (n as u64 * 37) % 400;
        let run = 200 + (n as u64 * 7919) % 2600 * (1 + u64::from(n.is_multiple_of(13)) * 4);
        let from = at;
        let scope = Scope { attempt: id.clone(), instance: Some(instance) };
        let mut push = |t: u64, k: EventKind| kinds.push((t, k.is_of_guest().then(|| scope.clone()), k));
        push(from, EventKind::AttemptStarted(AttemptStarted { id: id.clone(), instance: None, slot: Some(slot) }));
        let started = GuestStarted { instance, guest: unit.guest.clone(), slot };
        push(from, EventKind::GuestStarted(started));
        push(from, EventKind::Phase { phase: Phase::Boot });
        let chosen = EventKind::Choice {
            what: "share".into(),
            chosen: if unit.guest == "fedora-42" { "disk".into() } else { "9p".into() },
            why: "what the guest's kernel has".into(),
        };
        push(from + 20, chosen);
        push(from + boot, EventKind::GuestReady(GuestReady { instance, how: "clone".into() }));
        push(from + boot, EventKind::Phase { phase: Phase::Command });
        at = from + boot + run;
        if run > 8000 {
            push(from + boot + 5000, EventKind::UnitSlow(UnitSlow { id: id.clone(), millis: 5000 }));
        }
        if unit.test.contains("cgroup") {
            for (c, name) in
                ["memory.current", "memory.max", "memory.high", "memory.swap.max", "oom.group"].into_iter().enumerate()
            {
                let bad = matches!(end, Verdict::Fail(_)) && (c == 1 || c == 2);
                let subresult = Subresult {
                    name: odd(name),
                    result: if bad {
                        SubVerdict::Fail
                    } else if c == 3 {
                        SubVerdict::Skip
                    } else {
                        SubVerdict::Pass
                    },
                    message: if bad {
                        Some(odd("expected: 104857600\n  actual: max"))
                    } else if c == 3 {
                        Some("no swap".into())
                    } else {
                        None
                    },
                    millis: Some(12 + c as u64 * 31),
                };
                push(at - 5, EventKind::Subresult(AttemptSubresult { id: id.clone(), subresult }));
            }
        }
        let mut tail =
            format!("+ prepare {}\n+ mkfs -q /dev/disk/by-id/virtio-data0\n+ mount /dev/vdb /mnt\n", unit.test);
        for line in 0..n % 23 {
            tail.push_str(&format!(
                "written {} MiB of 64, checksum {:08x}\n",
                line * 3,
                n * 7_654_321 + line * 1_234_567
            ));
        }
        tail.push_str(&odd("done\n"));
        push(
            at,
            EventKind::Output(Output {
                id: id.clone(),
                stream: Stream::Stdout,
                bytes: tail.len() as u64 + if n.is_multiple_of(5) { 40_000 } else { 0 },
                truncated: false,
                path: Some(format!("units/{n}/{attempt}/stdout")),
                tail,
            }),
        );
        if end != Verdict::Pass {
            let tail = odd("mdadm: device is busy\nassertion failed: state is `degraded`, wanted `clean`\n");
            let path = Some(format!("units/{n}/{attempt}/stderr"));
            push(
                at,
                EventKind::Output(Output {
                    id: id.clone(),
                    stream: Stream::Stderr,
                    bytes: tail.len() as u64,
                    truncated: false,
                    path,
                    tail,
                }),
            );
        }
        if matches!(end, Verdict::Crash(_) | Verdict::Timeout(_)) {
            let line = odd("[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000018");
            push(at, EventKind::Alarm { name: "kernel oops".into(), line: line.clone(), fatal: true, ordered: false });
            let lines = vec![
                "[   12.001122] EXT4-fs (vdb): mounted filesystem".into(),
                line,
                "[   12.345999] Call Trace:".into(),
            ];
            push(at, EventKind::ConsoleTail { lines });
        }
        if n.is_multiple_of(3) {
            let files = vec![
                LeftFile { path: odd("report.xml"), bytes: 2048 },
                LeftFile { path: "dmesg.txt".into(), bytes: 81_234 },
            ];
            push(
                at,
                EventKind::AttemptFiles(AttemptFiles {
                    id: id.clone(),
                    dir: format!("units/{n}/{attempt}/out"),
                    files,
                    more: 0,
                }),
            );
        }
        let exit = if let Verdict::Fail(exit) = &end { Some(*exit) } else { None };
        let retry_in = (attempt < tries).then_some(500);
        push(
            at,
            EventKind::AttemptEnded(AttemptEnded {
                id,
                verdict: end,
                millis: boot + run,
                exit,
                message: why,
                dir: None,
                retry_in,
            }),
        );
        push(
            at,
            EventKind::GuestEnded(GuestEnded {
                instance,
                message: None,
                peak_memory: Some((90 + n as u64 % 60) << 20),
            }),
        );
        at += if retry_in.is_some() { 500 } else { 30 };
    }
    let ended =
        UnitEnded { unit: unit.unit.clone(), verdict: last.clone(), flaky, attempts: tries, millis: at - 30, message };
    kinds.push((at - 30, None, EventKind::UnitEnded(ended)));
    (kinds, at, last, flaky)
}
