//! Figures about clones, for `testing/bench/clones`: leases many guests of one image and prints one JSON object.
//!
//! `clones BELLJAR CACHE IMAGE USER:PASSWORD COUNT JOBS warm|cold|apart`: `warm` has each guest wait, warmed up, until it is asked for;
//! `apart` has each say who it is and what it sees of the others.

#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::{
    cell::RefCell,
    collections::HashSet,
    io::Write,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Instant, SystemTime},
};

use belljar_guest_spec::{Accel, Access, BootSource, BusChoice, GuestSpec, Login};
use belljar_machine::{
    bounds::Bounds,
    command::GuestCommand,
    guest::{Ending, Io, Origin},
    host::HostContext,
    lease::{self, Templates, Use},
    plan,
    qemu::sandbox::Shim,
    session::agent::{OutputSink, SinkFuture},
    spec::ShareSpec,
    template::TemplateStore,
};
use belljar_model::{EventKind, Exit, Phase};
use serde_json::json;
use tokio::task::{JoinSet, LocalSet};

/// Lines of its own: machine id, host name, random numbers, hardware address, seconds since the epoch. Then, of each mark that another guest
/// left on the disk or in memory, one more.
const WHO: &str = "cat /etc/machine-id; hostname; od -An -tx1 -N16 /dev/urandom; cat /sys/class/net/e*/address; date +%s; \
                   ls /marks /dev/shm/mark 2>/dev/null; mkdir /marks && echo mine >/marks/mine && echo mine >/dev/shm/mark && sync; exit ";

/// What no two guests may have in common, by the line of [`WHO`].
const OWN: usize = 4;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Warm,
    Cold,
    Apart,
}

/// Milliseconds of one guest.
#[derive(Default)]
struct Times {
    seen: HashSet<(usize, String)>,
    /// KiB of this process when a tenth was done, and at the end.
    memory: (u64, u64),
    done: u32,
    running: Vec<f64>,
    ready: Vec<f64>,
    started: Vec<f64>,
    ended: Vec<f64>,
    private: Vec<f64>,
    wrong: usize,
    cold: usize,
}

/// Notices when the command has started.
#[derive(Default)]
struct Sink {
    started: Option<Instant>,
    said: Vec<u8>,
}

impl OutputSink for Sink {
    fn started(&mut self, _: u32) {
        self.started = Some(Instant::now());
    }
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.said.extend_from_slice(bytes);
        Box::pin(std::future::ready(Ok(())))
    }
    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [belljar, cache, image, login, count, jobs, mode] = words.as_slice() else {
        return Err("usage: clones BELLJAR CACHE IMAGE USER:PASSWORD COUNT JOBS warm|cold|apart".into());
    };
    let (count, jobs): (u32, usize) = (count.parse()?, jobs.parse()?);
    let mode = match mode.as_str() {
        "warm" => Mode::Warm,
        "apart" => Mode::Apart,
        _ => Mode::Cold,
    };
    let scratch = tempfile::tempdir()?;
    let image =
        BootSource::Image { path: image.into(), format: None, bus: BusChoice::default(), access: Access::default() };
    let spec = GuestSpec { login: Some(Login::parse(login)?), ..GuestSpec::new(image.clone()) };
    let (share, dir) = place_of(scratch.path(), 0)?;
    let host = HostContext {
        cache_dir: cache.into(),
        qemu: None,
        path: std::env::var_os("PATH"),
        engine: None,
        qemu_img: "qemu-img".into(),
        firmware_dirs: Vec::new(),
        own: Vec::new(),
        home: None,
        guest_env: Vec::new(),
        qemu_env: Vec::new(),
        shim: Shim { program: belljar.into(), args: vec!["__exec".into()] },
        accel: Some(Accel::Tcg),
    };
    let plan = plan::prepare(&image, None, &spec, &share, host, dir)?;
    let templates = Templates::new(TemplateStore::new(Path::new(cache).join("templates"), u64::MAX), Use::Make);
    let times = Rc::new(RefCell::new(Times::default()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (began, before) = runtime.block_on(LocalSet::new().run_until(async {
        // The first one makes the template, if need be.
        one(&plan, &templates, scratch.path(), 1, mode, &Rc::default()).await;
        let (began, before) = (Instant::now(), cpu_of_children());
        // Not kept when they have ended: each would hold on to its memory.
        let mut running = JoinSet::new();
        for number in 0..count {
            while running.len() >= jobs {
                drop(running.join_next().await);
            }
            let (plan, templates, times) = (plan.clone(), templates.clone(), times.clone());
            let dir = scratch.path().to_owned();
            running.spawn_local(async move {
                one(&plan, &templates, &dir, number + 2, mode, &times).await;
                let mut times = times.borrow_mut();
                times.done += 1;
                if times.done == count.div_ceil(10) {
                    times.memory.0 = memory();
                }
                times.memory.1 = memory();
            });
        }
        while running.join_next().await.is_some() {}
        (began, before)
    }));
    let times = times.borrow();
    let report = json!({
        "count": count,
        "wrong": times.wrong,
        "cold": times.cold,
        "seconds": began.elapsed().as_secs_f64(),
        "cpu_seconds_each": (cpu_of_children() - before) / f64::from(count),
        "ms_asked_to_running": median(&times.running),
        "ms_asked_to_ready": median(&times.ready),
        "ms_command_asked_to_started": median(&times.started),
        "ms_command_asked_to_ended": median(&times.ended),
        "mib_private_dirty": median(&times.private),
        "descriptors_left": std::fs::read_dir("/proc/self/fd")?.count(),
        "processes_left": children(),
        // The directory of the guest that made the template, which is not removed before the end.
        "files_left": std::fs::read_dir(scratch.path())?.count(),
        "templates": std::fs::read_dir(Path::new(cache).join("templates"))?.count(),
        "memory_kib_at_a_tenth": times.memory.0,
        "memory_kib_at_the_end": times.memory.1,
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

async fn one(
    plan: &plan::Plan,
    templates: &Templates,
    dir: &Path,
    number: u32,
    mode: Mode,
    times: &Rc<RefCell<Times>>,
) {
    let Ok((share, dir)) = place_of(dir, number) else { return };
    let plan = plan.at(share, dir.clone());
    let code = u8::try_from(number % 256).unwrap_or(0);
    let asked = Instant::now();
    let mut running = None;
    let mut observe = |kind| {
        if matches!(kind, EventKind::Phase { phase: Phase::Session }) {
            running = Some(asked.elapsed());
        }
    };
    let leased = lease::lease(&plan, templates, None, None, &mut observe).await;
    let Ok(mut guest) = leased else {
        times.borrow_mut().wrong += 1;
        return;
    };
    let ready = asked.elapsed();
    let private = private_dirty(guest.pid());
    let mut nobody = |_| ();
    let mut good = true;
    if mode == Mode::Warm {
        good &= guest.warm_up(&mut nobody).await.is_ok();
    }
    let wanted = Instant::now();
    if mode == Mode::Warm {
        good &= guest.check(&mut nobody).await.is_ok();
    }
    let words = match (mode, code) {
        (Mode::Apart, code) => vec!["sh".into(), "-c".into(), format!("{WHO}{code}")],
        (_, 0) => vec!["true".to_owned()],
        (_, code) => vec!["sh".into(), "-c".into(), format!("exit {code}")],
    };
    let before = seconds();
    let command = GuestCommand {
        argv: words.into_iter().map(String::into_bytes).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        guards: None,
    };
    let mut sink = Sink::default();
    let exit = guest.exec(command, Io { stdin: None, sink: &mut sink, control: None }, &mut nobody).await;
    let ended = wanted.elapsed();
    let cold = guest.origin() == Origin::Cold;
    good &= matches!(exit, Ok(Exit::Code(c)) if c == code);
    good &= guest.close(Ending::Kill, &mut nobody).await.is_ok();
    drop(std::fs::remove_dir_all(dir));
    let mut times = times.borrow_mut();
    if mode == Mode::Apart {
        let said = String::from_utf8_lossy(&sink.said);
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        let own = lines.iter().take(OWN).enumerate().filter(|(_, line)| !line.is_empty());
        let alone = own.filter(|(at, line)| times.seen.insert((*at, (**line).to_owned()))).count() == OWN;
        let on_time = lines.get(OWN).and_then(|s| s.parse().ok()).is_some_and(|at| (before..=seconds()).contains(&at));
        if !alone || !on_time || lines.len() != OWN + 1 {
            good = false;
            drop(writeln!(std::io::stderr(), "guest {number} is not apart from the others: {lines:?}"));
        }
    }
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1000.0;
    times.running.extend(running.map(ms));
    times.ready.push(ms(ready));
    times.started.extend(sink.started.map(|at| ms(at - wanted)));
    times.ended.push(ms(ended));
    times.private.extend(private);
    times.wrong += usize::from(!good);
    times.cold += usize::from(cold);
}

/// The output directory of a guest, and the guest's own directory.
fn place_of(dir: &Path, number: u32) -> std::io::Result<(ShareSpec, PathBuf)> {
    let own = dir.join(number.to_string());
    let out = own.join("out");
    std::fs::create_dir_all(&out)?;
    Ok((ShareSpec { workspace: None, out, out_wanted: false, bounds: Bounds::default(), modules: None }, own))
}

/// MiB that only this process has.
fn private_dirty(pid: i32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    // Of the memory's own mapping only what it wrote counts: its file may not have been written to the disk yet.
    let anonymous = text.lines().filter_map(|l| l.strip_prefix("Anonymous:"));
    let kib: f64 = anonymous.filter_map(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok()).sum();
    Some(kib / 1024.0)
}

/// Processor time of all that has ended below this process, in seconds.
fn cpu_of_children() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [13, 14].iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// KiB that this process has in memory.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// How many processes are below this one, zombies included.
fn children() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
