//! The executor of the ladder.

use std::time::Duration;

use tokio::time::Instant;

use super::shell::Launch;
use super::sight::{self, Sight};
use super::{AccessError, AccessEvent, AccessOptions, Act, Credentials, Rung, Shell, answer};
use crate::console::{AlarmKind, Alarms, Console, Marker, Patience, Pattern, Severity, Wake};

/// How long a line that looks like a prompt is at rest before it is believed: it may be the start of a longer one.
const SETTLED: Duration = Duration::from_millis(250);
/// How long a probe is waited for; a slow guest needs longer to start a program.
const PROBE_REST: Duration = Duration::from_secs(3);
/// A console that never rests is asked after this long all the same.
const CHATTER: Duration = Duration::from_secs(30);
/// How often a user name is typed before we give up.
const LOGIN_TRIES: u32 = 6;
/// How many refusals may be our own doing: where the guest is slow, it is silent for long while it judges a password, too.
const FORGIVEN: u32 = 2;
/// How often a shell is probed with every form before we give up.
const PROBE_ROUNDS: u32 = 3;
/// How many Enters a blank line gets before it is probed as it is.
const BLIND_AFTER: u32 = 4;
/// An alarm is about what the line shows now if no more bytes than this came since.
const NEAR: u64 = 700;
/// Bytes that may come back for an Enter without anybody there but the terminal and a prompt.
const ECHO: u64 = 64;
/// How long a boot menu is at rest before it is answered: one that counts its seconds shows each of them.
const MENU_REST: Duration = Duration::from_secs(5);
/// How many boot menus are answered before a kernel starts.
const MENU_ANSWERS: u32 = 3;
/// How many of the last lines a boot menu is looked for in.
const SCREEN: usize = 60;
/// How many of the last lines an error carries.
const TAIL: usize = 15;

/// A way to ask "are you a shell?", and how to get a POSIX shell from one that understood.
struct Probe {
    by: &'static str,
    line: fn(&str) -> String,
    launch: Launch,
}

/// The first is understood by every shell, also fish and csh; it comes twice, since what is typed too early is lost. The others
/// are for guests without `sh` in the `PATH`.
const PROBES: &[Probe] = &[
    Probe { by: "sh -c", line: |m| format!("sh -c 'echo \"{m}\"'"), launch: Launch::Type("exec sh") },
    Probe { by: "sh -c", line: |m| format!("sh -c 'echo \"{m}\"'"), launch: Launch::Type("exec sh") },
    Probe { by: "echo", line: |m| format!("echo \"{m}\""), launch: Launch::Stay },
    Probe { by: "/bin/sh -c", line: |m| format!("/bin/sh -c 'echo \"{m}\"'"), launch: Launch::Type("exec /bin/sh") },
    Probe {
        by: "busybox sh -c",
        line: |m| format!("busybox sh -c 'echo \"{m}\"'"),
        launch: Launch::Type("exec busybox sh"),
    },
];

/// Ways to root, with and without a password to type.
const ROOT_WAYS: &[(&str, &str)] = &[("sudo", "sudo -n sh"), ("doas", "doas -n sh")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was typed at a login prompt, or all that was is settled.
    Watching,
    /// The user name was typed.
    NameTyped,
    /// The password was typed.
    PasswordTyped,
}

/// Gets a shell on the line.
///
/// # Errors
///
/// When patience runs out, when the guest says no, or when it is plain that no shell will come.
pub async fn climb(
    console: &mut Console,
    options: &AccessOptions,
    patience: &mut Patience,
    observer: &mut dyn FnMut(AccessEvent),
) -> Result<Shell, AccessError> {
    let climber = Climber {
        alarms: console.alarms(),
        console,
        options,
        credentials: options.credentials.clone().unwrap_or_else(Credentials::root),
        stage: Stage::Watching,
        name_arrived: true,
        question: None,
        question_is_password: false,
        disturbed: false,
        forgiven: 0,
        typed_by: None,
        logged_in: None,
        logins: 0,
        enters: 0,
        entered: None,
        rounds: 0,
        last_act: Instant::now(),
        stuck: None,
        menu: None,
        menus_answered: 0,
        kernel: false,
    };
    climber.run(patience, observer).await
}

struct Climber<'a> {
    console: &'a mut Console,
    alarms: Alarms,
    options: &'a AccessOptions,
    credentials: Credentials,
    stage: Stage,
    /// Whether the echo of the user name was what was typed.
    name_arrived: bool,
    /// What was asked after the name, in words that we do not know.
    question: Option<String>,
    /// The question was answered with Enter, and the login prompt came again.
    question_is_password: bool,
    /// Enter was pressed while a login was under way, which may have been taken for its password.
    disturbed: bool,
    /// How many refusals were not believed for that reason.
    forgiven: u32,
    /// The rung whose rule had the user's name typed.
    typed_by: Option<&'static Rung>,
    /// The same, when something came of it.
    logged_in: Option<&'static Rung>,
    logins: u32,
    /// Enters since anything else happened.
    enters: u32,
    /// Console bytes and the open line when Enter was last pressed.
    entered: Option<(u64, String)>,
    rounds: u32,
    last_act: Instant,
    stuck: Option<crate::console::Alarm>,
    menu: Option<crate::console::Alarm>,
    /// How many boot menus were answered.
    menus_answered: u32,
    /// Whether a kernel has said that it starts.
    kernel: bool,
}

impl Climber<'_> {
    async fn run(
        mut self,
        patience: &mut Patience,
        observer: &mut dyn FnMut(AccessEvent),
    ) -> Result<Shell, AccessError> {
        let mut settled_at = None;
        loop {
            self.heed_alarms()?;
            let seen = self.console.bytes_seen();
            let line = self.console.open_line();
            let mut sight = sight::look(&line, self.stage == Stage::NameTyped);
            if sight == Sight::Question && self.question_is_password && self.question.as_ref() == Some(&line) {
                sight = Sight::Password;
            }
            if sight == Sight::Blank && sight::is_covered(&self.console.tail(TAIL)) {
                sight = Sight::Covered;
            }
            let waits = self.boot_menu(sight, &line);
            if waits.is_some() {
                sight = Sight::BootMenu;
            }
            let at_rest = self.rest_for(sight);
            // What was judged and left alone is judged again only after it changed, or the long rest.
            let wait = if settled_at == Some(seen) { self.patience_with_silence() } else { at_rest };
            match self.console.wait(seen, wait, patience, || "a shell or a login prompt".to_owned()).await {
                Ok(Wake::Rest) => {}
                Ok(Wake::Bytes)
                    if self.last_act.elapsed() > CHATTER && self.may_type() && !self.console.is_full_screen() =>
                {
                    self.last_act = Instant::now();
                    self.press_enter().await?;
                    continue;
                }
                Ok(Wake::Bytes) => {
                    self.notice_life();
                    continue;
                }
                Err(overdue) => {
                    // A menu that waits for ever explains it better than the clock does.
                    let stays = sight::boot_menu(&line, &self.console.tail(SCREEN), self.console.is_full_screen());
                    let is_left = self.menus_answered > 0 || sight::menu_is_left(&self.console.tail(TAIL));
                    return Err(match self.menu.take().filter(|_| !is_left || stays.is_some()) {
                        Some(alarm) => AccessError::Stuck { alarm, tail: self.console.tail(TAIL) },
                        None if self.console.is_full_screen() => AccessError::NoShell {
                            line: "a full-screen program, such as an installer".to_owned(),
                            tail: self.console.tail(TAIL),
                        },
                        None => overdue.into(),
                    });
                }
            }
            settled_at = Some(seen);
            self.heed_stuck(seen)?;
            if let Some(menu) = waits {
                observer(AccessEvent::Did { sight, line: menu.to_owned(), act: Act::Choose });
                self.menus_answered += 1;
                self.last_act = Instant::now();
                self.act(sight, Act::Choose, &line, patience).await?;
                continue;
            }
            let rules = |rung: &&'static Rung| rung.rules.iter().zip(std::iter::repeat(*rung));
            let fitting = self.options.rungs.iter().flat_map(rules).find(|((s, _), _)| *s == sight);
            let Some(((_, act), rung)) = fitting else { continue };
            // Enter would choose something there.
            let menu = self.menu.as_ref().is_some_and(|m| seen - m.at < 4096) || self.console.is_full_screen();
            if menu && *act == Act::Enter {
                continue;
            }
            observer(AccessEvent::Did { sight, line: line.trim().to_owned(), act: *act });
            if *act == Act::TypeUser {
                self.typed_by = Some(rung);
            }
            let found = self.act(sight, *act, &line, patience).await?;
            self.last_act = Instant::now();
            if let Some((by, launch)) = found {
                observer(AccessEvent::ShellFound { by });
                let mut shell = Shell::adopt(self.console, launch, self.options.calm, patience).await?;
                if self.options.root && shell.root() == Some(false) {
                    self.become_root(&mut shell, patience, observer).await?;
                }
                let rung = self.logged_in.unwrap_or(rung);
                observer(AccessEvent::Held { rung: rung.name, root: shell.root() });
                return Ok(shell);
            }
        }
    }

    /// More than an echo of our Enter: whoever is there has not been asked yet.
    fn notice_life(&mut self) {
        if self
            .entered
            .as_ref()
            .is_some_and(|(bytes, line)| self.console.bytes_seen() > bytes + line.len() as u64 + ECHO)
        {
            self.entered = None;
            self.enters = 0;
        }
    }

    /// The boot loader that waits for a key and is still to be answered, if one does.
    fn boot_menu(&self, sight: Sight, line: &str) -> Option<&'static str> {
        let may_be = matches!(sight, Sight::Blank | Sight::Text | Sight::Prompt)
            && !self.kernel
            && self.logins == 0
            && self.menus_answered < MENU_ANSWERS;
        may_be.then(|| sight::boot_menu(line, &self.console.tail(SCREEN), self.console.is_full_screen())).flatten()
    }

    /// Whether the console may be typed at for the sake of getting in.
    fn may_type(&self) -> bool {
        self.options.rungs.iter().any(|rung| !rung.rules.is_empty())
    }

    /// How long this sight must stay before something is done about it.
    fn rest_for(&self, sight: Sight) -> Duration {
        match sight {
            Sight::Login | Sight::Activate | Sight::NewPassword | Sight::Prompt | Sight::Question => SETTLED,
            Sight::Covered if self.stage == Stage::Watching => 2 * SETTLED,
            Sight::BootMenu => MENU_REST,
            Sight::Password if self.stage != Stage::Watching => SETTLED,
            // What was typed is under way: an Enter on top would be a slow guest's password.
            _ if self.stage != Stage::Watching => 2 * self.patience_with_silence(),
            _ => self.patience_with_silence(),
        }
    }

    /// Longer with each Enter that led nowhere.
    fn patience_with_silence(&self) -> Duration {
        let rest = (self.options.rest * (2 + self.enters.min(8)) / 2).max(SETTLED);
        // Before the first byte there is nobody to ask, but maybe a boot loader to disturb.
        if self.console.bytes_seen() == 0 { rest * 8 } else { rest }
    }

    /// Takes note of alarms; a dead kernel ends the climb.
    fn heed_alarms(&mut self) -> Result<(), AccessError> {
        while let Some(alarm) = self.alarms.try_next() {
            match alarm.kind {
                AlarmKind::Panic | AlarmKind::InitDied | AlarmKind::NoRoot | AlarmKind::PowerDown | AlarmKind::Halt => {
                    return Err(AccessError::Died { alarm, tail: self.console.tail(TAIL) });
                }
                AlarmKind::BootMenu => self.menu = Some(alarm),
                AlarmKind::KernelStart | AlarmKind::Restart => {
                    self.kernel = alarm.kind == AlarmKind::KernelStart;
                    self.menu = None;
                    self.stuck = None;
                    self.stage = Stage::Watching;
                }
                AlarmKind::InitramfsShell | AlarmKind::DracutShell | AlarmKind::Maintenance
                    if self.options.emergency_shell => {}
                kind if kind.severity() == Severity::Stuck => self.stuck = Some(alarm),
                _ => {}
            }
        }
        Ok(())
    }

    /// A guest that stands still where nobody helps it.
    fn heed_stuck(&mut self, seen: u64) -> Result<(), AccessError> {
        match self.stuck.take_if(|s| seen.saturating_sub(s.at) <= NEAR) {
            Some(alarm) => Err(AccessError::Stuck { alarm, tail: self.console.tail(TAIL) }),
            None => Ok(()),
        }
    }

    /// Does it; gives the shell that was found, if one was.
    async fn act(
        &mut self,
        sight: Sight,
        act: Act,
        line: &str,
        patience: &mut Patience,
    ) -> Result<Option<(&'static str, Launch)>, AccessError> {
        let user = self.credentials.user.clone();
        if act != Act::Enter {
            self.enters = 0;
            self.entered = None;
        }
        match act {
            // What a terminal's key sends; boot loaders do not all know a line feed.
            Act::Choose => self.console.send_raw(b"\r").await?,
            Act::TypeUser => self.type_user(user).await?,
            Act::TypePassword => self.type_password(user).await?,
            Act::TryQuestion if self.question.is_none() => {
                self.question = Some(line.to_owned());
                self.press_enter().await?;
            }
            Act::TryQuestion => {
                // It came again after Enter: a prompt.
                return self.probe(line, patience).await;
            }
            Act::Expired if self.stage != Stage::Watching => return Err(AccessError::PasswordExpired { user }),
            Act::Probe => return self.probe(line, patience).await,
            Act::Emergency if self.options.emergency_shell => {
                let password = self.credentials.password.clone();
                let password = password.as_ref().map_or("", super::Secret::expose);
                self.console.send(format!("{password}\n").as_bytes()).await?;
            }
            Act::Enter | Act::Expired | Act::Emergency => {
                if self.is_answered(sight, line) {
                    self.enters = 0;
                    return self.probe(line, patience).await;
                }
                self.press_enter().await?;
            }
        }
        Ok(None)
    }

    /// Whether our Enter was answered as by a shell whose prompt does not look like one.
    fn is_answered(&self, sight: Sight, line: &str) -> bool {
        let Some((bytes, before)) = &self.entered else { return false };
        let echoed = self.console.bytes_seen() > *bytes;
        match sight {
            // The prompt came again on a new line.
            Sight::Text => echoed && before == line,
            // The terminal echoes and nobody says anything: maybe a shell without a prompt. Where somebody is expected to
            // ask for a name, give them more time.
            Sight::Blank => {
                let name_expected =
                    self.options.credentials.is_some() && self.stage == Stage::Watching && self.logged_in.is_none();
                echoed && self.enters >= if name_expected { 2 * BLIND_AFTER } else { BLIND_AFTER }
            }
            _ => false,
        }
    }

    async fn press_enter(&mut self) -> Result<(), AccessError> {
        self.enters += 1;
        self.disturbed |= self.stage != Stage::Watching;
        self.entered = Some((self.console.bytes_seen(), self.console.open_line()));
        self.console.send(b"\n").await?;
        Ok(())
    }

    async fn type_user(&mut self, user: String) -> Result<(), AccessError> {
        let said = sight::said(&self.console.unread());
        if self.stage == Stage::NameTyped && self.question.is_some() && !self.question_is_password {
            self.question_is_password = true;
            if self.credentials.password.is_none() {
                return Err(AccessError::PasswordWanted { user });
            }
        } else if !said.too_early && self.name_arrived {
            // After the password, the prompt alone says no, in whatever language.
            let no = self.stage == Stage::PasswordTyped || said.refused && self.stage == Stage::NameTyped;
            if no && !self.forgives() {
                return Err(AccessError::Refused { user, tail: self.console.tail(TAIL) });
            }
        }
        if self.logins == LOGIN_TRIES {
            return Err(AccessError::LoginLoop { user, tries: self.logins, tail: self.console.tail(TAIL) });
        }
        self.logins += 1;
        self.disturbed = false;
        self.console.skip_unread();
        self.console.send(format!("{user}\n").as_bytes()).await?;
        self.stage = Stage::NameTyped;
        Ok(())
    }

    /// Whether a refusal is no judgement, since it may be our own Enter that was refused.
    fn forgives(&mut self) -> bool {
        let forgives = self.disturbed && self.forgiven < FORGIVEN;
        self.disturbed = false;
        self.forgiven += u32::from(forgives);
        forgives
    }

    async fn type_password(&mut self, user: String) -> Result<(), AccessError> {
        if self.stage == Stage::Watching {
            // Somebody else's question; Enter brings the login prompt back.
            return self.press_enter().await;
        }
        if self.stage == Stage::PasswordTyped {
            if self.forgives() {
                // The password went to the next prompt, as a name.
                self.stage = Stage::Watching;
                return self.press_enter().await;
            }
            return Err(AccessError::Refused { user, tail: self.console.tail(TAIL) });
        }
        // The name is echoed as it arrived; where characters were lost, a password would go to somebody else.
        let unread = self.console.unread();
        let first_line = unread.split(|b| *b == b'\n').next().unwrap_or_default();
        let echo = String::from_utf8_lossy(first_line);
        self.name_arrived = echo.trim().is_empty() || echo.trim() == user;
        let Some(password) = self.credentials.password.clone() else {
            if !self.name_arrived {
                self.console.send(b"\n").await?;
                self.stage = Stage::PasswordTyped;
                return Ok(());
            }
            return Err(AccessError::PasswordWanted { user });
        };
        let text = if self.name_arrived { password.expose() } else { "" };
        self.console.skip_unread();
        self.console.send(format!("{text}\n").as_bytes()).await?;
        self.stage = Stage::PasswordTyped;
        Ok(())
    }

    /// Asks in every way whether there is a shell.
    async fn probe(
        &mut self,
        line: &str,
        patience: &mut Patience,
    ) -> Result<Option<(&'static str, Launch)>, AccessError> {
        if self.stage != Stage::Watching {
            let said = sight::said(&self.console.unread());
            if said.expired && self.stage == Stage::PasswordTyped {
                return Err(AccessError::PasswordExpired { user: self.credentials.user.clone() });
            }
            self.logged_in = self.typed_by;
            self.stage = Stage::Watching;
        }
        let tag = answer::new_tag().map_err(super::ShellError::from)?;
        let pattern = [Pattern::Marker(Marker::new(format!("<{tag}:"), |p| probe_number(p).is_some()))];
        self.console.skip_unread();
        for (number, probe) in PROBES.iter().enumerate() {
            if number == 2 {
                // Whatever holds our text back, such as an open quotation, ends here.
                self.console.send(b"\x03").await?;
            }
            let text = (probe.line)(&format!("<{tag}:$((6*7)):{number}>"));
            self.console.send(format!("{text}\n").as_bytes()).await?;
            if let Some(found) = self.console.expect_unless_quiet(&pattern, |_| PROBE_REST, patience).await?
                && let Some(understood) = probe_number(&found.payload).and_then(|n| PROBES.get(n))
            {
                return Ok(Some((understood.by, understood.launch)));
            }
            self.heed_alarms()?;
            let now = self.console.open_line();
            if matches!(sight::look(&now, false), Sight::Login | Sight::Password | Sight::Activate) {
                return Ok(None);
            }
        }
        self.rounds += 1;
        if self.rounds == PROBE_ROUNDS {
            return Err(AccessError::NoShell { line: line.trim().to_owned(), tail: self.console.tail(TAIL) });
        }
        Ok(None)
    }

    async fn become_root(
        &mut self,
        shell: &mut Shell,
        patience: &mut Patience,
        observer: &mut dyn FnMut(AccessEvent),
    ) -> Result<(), AccessError> {
        let mut tried = Vec::new();
        for (by, line) in ROOT_WAYS {
            if shell.run(&format!("command -v {by} >/dev/null"), patience).await?.code != 0 {
                continue;
            }
            tried.push(*by);
            observer(AccessEvent::BecomingRoot { by });
            shell.enter(line, None, patience).await?;
            if shell.root() == Some(true) {
                return Ok(());
            }
            if let Some(password) = &self.credentials.password
                && *by == "sudo"
            {
                let line = format!("sudo -p {} sh", Shell::PASSWORD_PROMPT);
                shell.enter(&line, Some(password.expose()), patience).await?;
                if shell.root() == Some(true) {
                    return Ok(());
                }
            }
        }
        let tried = if tried.is_empty() { "sudo and doas (neither is there)".to_owned() } else { tried.join(", ") };
        Err(AccessError::NotRoot { tried })
    }
}

/// The number of the form that was understood: `42:N`.
fn probe_number(payload: &[u8]) -> Option<usize> {
    let number = payload.strip_prefix(b"42:")?;
    std::str::from_utf8(number).ok().filter(|t| t.len() == 1)?.parse().ok()
}
