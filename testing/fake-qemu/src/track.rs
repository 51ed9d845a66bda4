//! Plays the script: one thread for each section.

use std::{sync::Arc, thread, time::Duration};

use belljar_proto::message::{BlindGuard, DiskPath, GuardNews, KernelLine, KernelNews, Question};
use serde_json::Value;

use crate::{
    agent,
    channel::{Channel, Faults},
    guest::Guest,
    machine::{End, Machine, Options, complain},
    migrate::Manners,
    rng::Rng,
    script::{Script, ScriptError, Step},
    terminal::{self, LOGIN, LOOK, Login, Look},
};

/// One event of a flood.
const FLOOD_LINE: &[u8] =
    b"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 1}, \"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\r\n";

/// How long `await` and `wait` wait unless told.
const PATIENCE: Duration = Duration::from_secs(30);

/// `[options]`.
pub(crate) fn options(script: &Script) -> Result<Options, ScriptError> {
    let mut options = Options::default();
    for step in script.section("options").unwrap_or_default() {
        let obeyed = || match step.need(0)? {
            b"obey" => Ok(true),
            b"ignore" => Ok(false),
            _ => Err(step.fail("obey or ignore")),
        };
        match step.verb.as_str() {
            "version" => options.version = step.need_text(0)?,
            "powerdown" => options.powerdown_obeyed = obeyed()?,
            "sigterm" => options.sigterm_obeyed = obeyed()?,
            "quit" => options.quit_obeyed = obeyed()?,
            "cont" => options.cont_obeyed = obeyed()?,
            "sshd" => options.sshd = obeyed()?,
            "migrate" => options.migrate = Manners::of(step)?,
            "incoming" => options.incoming = Manners::of(step)?,
            "screendump" => options.screendump = Manners::of(step)?,
            "dump" => options.dump = step.need_text(0)?.parse().map_err(|_| step.fail("seconds"))?,
            "device-add" => options.device_add = Manners::of(step)?,
            "device-del" => options.device_del = Manners::of(step)?,
            other => return Err(step.fail(format!("no option is called {other}"))),
        }
    }
    Ok(options)
}

/// One section being played.
#[derive(Clone, Debug)]
pub(crate) struct Track {
    /// The machine.
    pub(crate) machine: Arc<Machine>,
    /// Its commands.
    pub(crate) guest: Arc<Guest>,
    /// The section's channel, if it has one.
    pub(crate) channel: Option<Arc<Channel>>,
    /// How far in the channel's input `await` has come.
    pub(crate) place: usize,
}

/// Whether the track goes on.
enum Next {
    Step,
    Stop,
}

impl Track {
    /// Plays these steps; a mistake in them ends the machine. False if the script says to stop there.
    pub(crate) fn play(mut self, steps: &[Step]) -> bool {
        for step in steps {
            match self.step(step) {
                Ok(Next::Step) => {}
                Ok(Next::Stop) => return false,
                Err(e) => {
                    self.machine.script_failed(&e.to_string());
                    return false;
                }
            }
        }
        true
    }

    fn step(&mut self, step: &Step) -> Result<Next, ScriptError> {
        let time = |ms: Option<u64>, default| ms.map_or(default, Duration::from_millis);
        match step.verb.as_str() {
            "sleep" => thread::sleep(time(step.number(0)?, Duration::ZERO)),
            "mark" => self.machine.mark(&step.need_text(0)?),
            "wait" => {
                let name = step.need_text(0)?;
                if !self.machine.await_mark(&name, Some(time(step.number(1)?, PATIENCE))) {
                    return Err(step.fail(format!("nothing marked {name:?} in time")));
                }
            }
            "event" => {
                let data = match step.word(1) {
                    None => Value::Null,
                    Some(text) => serde_json::from_slice(text).map_err(|e| step.fail(e.to_string()))?,
                };
                self.machine.control.event(&step.need_text(0)?, &data);
            }
            "port" => match step.need(0)? {
                b"open" => self.machine.port(true),
                b"close" => self.machine.port(false),
                _ => return Err(step.fail("port open or close")),
            },
            "kernel" => {
                step.only(&["lost", "tainted", "disks"])?;
                let news = match step.count("lost")? {
                    Some(records) => KernelNews::Lost { records, tainted: step.count("tainted")?.unwrap_or(0) },
                    None => {
                        let disk = |serial: &str| DiskPath { serial: serial.into(), path: 0 };
                        let disks = step.text("disks").map(|names| names.split(',').map(disk).collect());
                        let devices = disks.into_iter().collect();
                        KernelNews::Line(KernelLine { text: step.need_text(0)?, devices })
                    }
                };
                if !self.machine.kernel(news) {
                    return Err(step.fail("no agent has a session"));
                }
            }
            "guard" => {
                let number = |at| step.number(at).map(|n: Option<u64>| n.unwrap_or(0));
                let text =
                    |at| step.word(at).map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
                let news = match step.need(0)? {
                    b"coredump" => GuardNews::CoreDump {
                        pid: 41,
                        name: step.need_text(1)?,
                        program: String::new(),
                        parent: "sh".into(),
                        signal: i32::try_from(number(2)?).unwrap_or(0),
                        core: true,
                    },
                    b"taint" => GuardNews::Taint(number(1)?),
                    b"unit" => GuardNews::Unit { name: step.need_text(1)?, result: text(2) },
                    b"blind" => {
                        GuardNews::Blind { guard: BlindGuard::CoreDumps, meanwhile: false, why: step.need_text(1)? }
                    }
                    b"blinded" => {
                        GuardNews::Blind { guard: BlindGuard::CoreDumps, meanwhile: true, why: step.need_text(1)? }
                    }
                    _ => return Err(step.fail("guard coredump, taint, unit or blind")),
                };
                if !self.machine.kernel(KernelNews::Guard(news)) {
                    return Err(step.fail("no agent has a session"));
                }
            }
            "ask" => {
                // The number is nobody else's.
                if !self.machine.ask(u32::MAX, Question::Machine(step.need_text(0)?)) {
                    return Err(step.fail("no agent has a session"));
                }
            }
            "shutdown" => self.machine.shutdown(true, "guest-shutdown"),
            "reset" => self.machine.reset(),
            "panicked" => self.machine.panicked(),
            "wants-disk" => {
                let serial = step.need_text(0)?;
                if !self.machine.has_disk(&serial) {
                    self.machine.panicked();
                    return Ok(Next::Stop);
                }
            }
            "exit" => {
                let code = step.number(0)?.and_then(|c| i32::try_from(c).ok()).unwrap_or(0);
                self.machine.end(End::Exit(code));
            }
            "signal" => {
                let number = step.number(0)?.and_then(|c| i32::try_from(c).ok());
                self.machine.end(End::Signal(number.ok_or_else(|| step.fail("signal wants a number"))?));
            }
            "stderr" => complain(&step.need_text(0)?),
            "stderr-flood" => {
                let line = "qemu-system-x86_64: warning: guest updated active QH ".repeat(8);
                (0..step.number(0)?.unwrap_or(0) / line.len() as u64).for_each(|_| complain(&line));
            }
            "hang" => return Ok(Next::Stop),
            "qmp" => match step.need(0)? {
                b"close" => self.machine.control.close(),
                b"mute" => self.machine.control.mute(),
                b"unmute" => self.machine.control.unmute(),
                b"send" => self.machine.control.raw(step.need(1)?),
                b"flood" => {
                    let lines = step.number(1)?.unwrap_or(0) / FLOOD_LINE.len() as u64;
                    (0..lines).for_each(|_| self.machine.control.raw(FLOOD_LINE));
                }
                b"endless" => {
                    let count = step.number(1)?.unwrap_or(0) / 1024;
                    (0..count).for_each(|_| self.machine.control.raw(&[b'{'; 1024]));
                }
                _ => return Err(step.fail("qmp close, mute, unmute, send, flood or endless")),
            },
            _ => return self.channel_step(step),
        }
        Ok(Next::Step)
    }

    fn channel_step(&mut self, step: &Step) -> Result<Next, ScriptError> {
        let channel =
            self.channel.as_ref().ok_or_else(|| step.fail(format!("no verb is called `{}` here", step.verb)))?;
        match step.verb.as_str() {
            "send" => {
                channel.send(step.need(0)?);
            }
            "await" => {
                channel.listen(Arc::clone(&self.machine.journal));
                let text = step.need(0)?;
                let within = step.number(1)?.map_or(PATIENCE, Duration::from_millis);
                self.place = channel.find(text, self.place, within).ok_or_else(|| {
                    step.fail(format!("{:?} did not come on {}", String::from_utf8_lossy(text), channel.name))
                })?;
            }
            "drain" => channel.listen(Arc::clone(&self.machine.journal)),
            "drop" => {
                let count = step.number(0)?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                channel.drop_input(count);
            }
            "faults" => {
                step.only(&["noise", "text", "lose", "chunk", "seed"])?;
                let faults = Faults {
                    noise: step.count("noise")?.unwrap_or(0),
                    noise_text: step.bytes("text").map(<[u8]>::to_vec),
                    lose: step.count("lose")?.unwrap_or(0),
                    chunk: step.count("chunk")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
                };
                channel.set_faults(faults, step.count("seed")?.unwrap_or(1));
            }
            "flood" => {
                step.only(&["kind", "seed"])?;
                let size = step.number(0)?.ok_or_else(|| step.fail("flood wants a size"))?;
                flood(channel, size, &step.text("kind").unwrap_or_default(), step.count("seed")?.unwrap_or(1));
            }
            "close" => channel.close(),
            "shell" => {
                step.only(&LOOK)?;
                let look = Look::of(step)?;
                channel.listen(Arc::clone(&self.machine.journal));
                let (machine, guest, channel) =
                    (Arc::clone(&self.machine), Arc::clone(&self.guest), Arc::clone(channel));
                let place = self.place;
                thread::spawn(move || {
                    terminal::shell(&machine, &guest, &channel, &look, place);
                });
            }
            "login" => {
                step.only(&[&LOOK[..], &LOGIN[..]].concat())?;
                let login = Login::of(step)?;
                channel.listen(Arc::clone(&self.machine.journal));
                let (machine, guest, channel) =
                    (Arc::clone(&self.machine), Arc::clone(&self.guest), Arc::clone(channel));
                let place = self.place;
                thread::spawn(move || terminal::login(&machine, &guest, &channel, &login, place));
            }
            "agent" => {
                let manners = agent::Manners::of(step)?;
                let (machine, guest, channel) =
                    (Arc::clone(&self.machine), Arc::clone(&self.guest), Arc::clone(channel));
                // In a machine that goes on it is the agent that was frozen.
                let resumed = machine.args.has("incoming");
                thread::spawn(move || agent::serve(&machine, &guest, &channel, &manners, resumed));
            }
            other => return Err(step.fail(format!("no verb is called `{other}`"))),
        }
        Ok(Next::Step)
    }
}

/// Junk: `text` (lines), `line` (one endless line) or `random` (all bytes).
fn flood(channel: &Channel, size: u64, kind: &str, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut left = size;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(64 * 1024);
        let junk: Vec<u8> = match kind {
            "random" => (0..count).map(|_| rng.next().to_le_bytes()[0]).collect(),
            "line" => vec![b'.'; count],
            _ => b"[   12.345678] audit: backlog limit exceeded\r\n".iter().copied().cycle().take(count).collect(),
        };
        if !channel.send(&junk) {
            return;
        }
        left -= count as u64;
    }
}
