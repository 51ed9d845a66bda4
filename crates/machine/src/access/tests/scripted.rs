//! Guests from a script: what a real one does once in a hundred boots.

use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A guest's end of the line.
struct Guest {
    line: DuplexStream,
    typed: Vec<u8>,
    echo: bool,
}

impl Guest {
    async fn say(&mut self, text: &str) {
        self.line.write_all(text.as_bytes()).await.expect("say");
    }

    async fn byte(&mut self) -> Option<u8> {
        let mut one = [0];
        match self.line.read(&mut one).await {
            Ok(1) => Some(one[0]),
            _ => None,
        }
    }

    /// The next line that is typed, with the terminal's echo.
    async fn hear(&mut self) -> Option<String> {
        loop {
            let b = self.byte().await?;
            match b {
                b'\n' | b'\r' => {
                    if self.echo {
                        self.say("\r\n").await;
                    }
                    return Some(String::from_utf8_lossy(&std::mem::take(&mut self.typed)).into_owned());
                }
                0x03 | 0x15 => self.typed.clear(),
                b => {
                    self.typed.push(b);
                    if self.echo {
                        self.line.write_all(&[b]).await.expect("echo");
                    }
                }
            }
        }
    }

    /// Everything typed from now on is lost, for this long.
    async fn lose_for(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::timeout_at(until, self.byte()).await.is_ok() {}
    }

    /// What a real `sh` prints for this line, and its variables after it: enough of a shell for us.
    async fn be_a_shell(&mut self, prompt: &str) {
        self.say(prompt).await;
        let mut state = String::new();
        while let Some(line) = self.hear().await {
            let output = sh(&mut state, &line);
            self.say(&output.replace('\n', "\r\n")).await;
            let quiet = state.contains("PS1=");
            self.say(if quiet { "" } else { prompt }).await;
        }
    }
}

/// Runs a line in a real shell with the variables that earlier lines left. `stty` is not there.
fn sh(state: &mut String, line: &str) -> String {
    let script = format!("stty() {{ return 1; }}\n{state}\n{line}\n");
    let output = std::process::Command::new("sh").arg("-c").arg(&script).output().expect("sh");
    for assigned in ["PS1=", "_b=", "_s=", "_c="] {
        if line.starts_with("PS1=") && line.contains(assigned) {
            let values = line.split(';').next().unwrap_or_default();
            *state = values.replace(' ', "\n");
        }
    }
    if let Some(at) = line.find("_s=") {
        let seq: String = line[at + 3..].chars().take_while(char::is_ascii_digit).collect();
        let text = String::from_utf8_lossy(&output.stdout);
        // The code is in the answer.
        let code = text.rsplit('<').next().and_then(|m| m.split(':').nth(2)).unwrap_or("0").to_owned();
        let tag = state.lines().find(|l| l.starts_with("_b=")).unwrap_or("_b=").to_owned();
        *state = format!("PS1=\n{tag}\n_s={seq}\n_c={code}");
    }
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// A shell of a user who may become root in some way.
async fn be_a_users_shell(mut g: Guest, sudo: &'static str) {
    let (mut tag, mut state, mut root) = (String::new(), (0u64, 0u64), false);
    g.echo = false;
    g.say("user@host:~$ ").await;
    while let Some(line) = g.hear().await {
        let number = |key: &str| {
            let at = line.find(key)? + key.len();
            line[at..].chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().ok()
        };
        if let Some(probe) = line.strip_prefix("sh -c 'echo \"<") {
            let probe: String = probe.chars().take_while(char::is_ascii_alphanumeric).collect();
            g.say(&format!("<{probe}:42:0>\r\n")).await;
        }
        if let Some(at) = line.find("_b=") {
            tag = line[at + 3..].chars().take_while(char::is_ascii_alphanumeric).collect();
            state = (0, 0);
        }
        if line.starts_with("sudo") {
            root = match sudo {
                "free" => true,
                "password" if line.contains("-p") => {
                    g.say(&format!("<{tag}:0:p:0>")).await;
                    g.hear().await.as_deref() == Some("pw")
                }
                _ => false,
            };
            g.say(if root { "# " } else { "sudo: a password is required\r\n$ " }).await;
        }
        if let Some(seq) = number("_s=").filter(|_| line.contains("eval ")) {
            g.say(&format!("<{tag}:{seq}:b:{seq}>\r\n")).await;
            let code = if line.contains("command -v sudo") {
                u64::from(sudo == "none")
            } else {
                u64::from(line.contains("command -v"))
            };
            if line.contains("uid=") {
                g.say(if root { "uid=0\r\n" } else { "uid=1000\r\n" }).await;
            }
            state = (seq, code);
        }
        if let Some(ask) = number("$((_s*1000+_c)):") {
            g.say(&format!("<{tag}:{}:{}:{}:{ask}>\r\n", state.0, state.1, state.0 * 1000 + state.1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_becomes_root_where_that_can_be() {
    for (sudo, password, by) in
        [("free", None, true), ("password", Some("pw"), true), ("password", None, false), ("none", Some("pw"), false)]
    {
        let options = AccessOptions { credentials: login("user", password).credentials, ..quick() };
        let (result, events) = against(options, 600, move |g| be_a_users_shell(g, sudo)).await;
        match result {
            Ok(shell) => assert!(by && shell.root() == Some(true), "{sudo}: {events:#?}"),
            Err(e) => {
                assert!(!by && matches!(e, AccessError::NotRoot { .. }), "{sudo}: {e}\n{events:#?}");
                assert!(e.to_string().contains("sudo"), "{e}");
            }
        }
    }
    let options = AccessOptions { root: false, ..quick() };
    let (result, _) = against(options, 600, |g| be_a_users_shell(g, "none")).await;
    assert_eq!(result.expect("a user's shell will do").root(), Some(false));
}

/// Runs a script against a climb.
async fn against<F>(
    options: AccessOptions,
    seconds: u64,
    script: impl FnOnce(Guest) -> F,
) -> (Result<Shell, AccessError>, Vec<AccessEvent>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let mut console = Console::new(ours, std::io::sink());
    let guest = tokio::spawn(script(Guest { line: theirs, typed: Vec::new(), echo: true }));
    let result = climb_with(&mut console, &options, seconds).await;
    guest.abort();
    result
}

fn error(result: Result<Shell, AccessError>) -> AccessError {
    result.map(|_| ()).expect_err("an error")
}

#[tokio::test(start_paused = true)]
async fn silence_ends_with_what_was_awaited() {
    let (result, _) = against(quick(), 90, |mut g| async move {
        g.echo = false;
        while g.byte().await.is_some() {}
    })
    .await;
    let text = error(result).to_string();
    assert!(text.contains("a shell or a login prompt did not come") && text.contains("shown nothing"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_closes_is_told_at_once() {
    let (result, _) = against(quick(), 90, |mut g| async move { g.say("SeaBIOS\r\n").await }).await;
    assert!(error(result).to_string().contains("closed while"), "");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_under_boot_messages_comes_back_with_enter() {
    let (result, events) = against(login("root", None), 300, |mut g| async move {
        g.say("[    0.000000] Linux version 6.1\r\n").await;
        g.say("\r\ndebian login: [   45.123456] random: crng init done\r\n").await;
        while g.hear().await.is_some_and(|l| l.is_empty()) {
            g.say("debian login: ").await;
        }
        g.be_a_shell("root@debian:~# ").await;
    })
    .await;
    result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
    assert!(events.iter().any(|e| matches!(e, AccessEvent::Held { rung: "login", .. })), "{events:?}");
}

/// A guest so slow that messages come before the name is taken, and that is silent for long then.
#[tokio::test(start_paused = true)]
async fn an_enter_of_ours_in_the_middle_of_a_login_is_no_wrong_password() {
    for pause in [700, 40_000] {
        let (result, events) = against(login("root", Some("secret")), 600, move |mut g| async move {
            g.say("debian login: ").await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            g.say("[  142.545981] kvm: Nested Virtualization enabled\r\n").await;
            assert_eq!(g.hear().await.as_deref(), Some("root"));
            tokio::time::sleep(Duration::from_millis(pause)).await;
            for tries in 1.. {
                g.echo = false;
                g.say("Password: ").await;
                let password = g.hear().await.expect("password");
                g.echo = true;
                if password == "secret" {
                    break;
                }
                assert!(tries < 3 && password.is_empty(), "the password is {password:?}");
                g.say("\r\nLogin incorrect\r\ndebian login: ").await;
                while g.hear().await.is_some_and(|name| name != "root") {
                    g.say("debian login: ").await;
                }
            }
            g.be_a_shell("\r\n# ").await;
        })
        .await;
        result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
        let entered = events.iter().any(|e| matches!(e, AccessEvent::Did { act: Act::Enter, .. }));
        assert_eq!(entered, pause == 40_000, "{events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_typed_too_early_is_typed_again() {
    let (result, events) = against(quick(), 300, |mut g| async move {
        g.say("debian login: root (automatic login)\r\n\r\nroot@debian:~# ").await;
        g.lose_for(Duration::from_secs(4)).await;
        g.be_a_shell("root@debian:~# ").await;
    })
    .await;
    result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_lost_its_first_letters_gets_no_password() {
    let (result, events) = against(login("root", Some("secret")), 300, |mut g| async move {
        g.say("debian login: ").await;
        g.echo = false;
        let name = g.hear().await.expect("name");
        assert_eq!(name, "root");
        g.say("ot\r\nPassword: ").await;
        assert_eq!(g.hear().await.as_deref(), Some(""), "the password must not go to another user");
        g.say("\r\nLogin incorrect\r\ndebian login: ").await;
        g.echo = true;
        assert_eq!(g.hear().await.as_deref(), Some("root"));
        g.echo = false;
        g.say("Password: ").await;
        assert_eq!(g.hear().await.as_deref(), Some("secret"));
        g.echo = true;
        g.be_a_shell("\r\n# ").await;
    })
    .await;
    result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
}

#[tokio::test(start_paused = true)]
async fn a_login_that_timed_out_or_came_too_early_is_tried_again() {
    for text in [
        "Login timed out after 60 seconds.",
        "System is booting up. Unprivileged users are not permitted to log in yet.\r\nLogin incorrect",
    ] {
        let (result, events) = against(login("bob", Some("pw")), 600, move |mut g| async move {
            for tries in 0.. {
                g.echo = true;
                g.say("debian login: ").await;
                if g.hear().await.is_some_and(|l| l.is_empty()) {
                    continue;
                }
                g.echo = false;
                g.say("Password: ").await;
                g.hear().await;
                if tries == 2 {
                    break;
                }
                g.say(&format!("\r\n{text}\r\n")).await;
            }
            g.echo = true;
            g.be_a_shell("\r\n$ ").await;
        })
        .await;
        result.unwrap_or_else(|e| panic!("{text}: {e}\n{events:#?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_password_is_told() {
    let (result, _) = against(login("root", Some("old")), 300, |mut g| async move {
        g.say("debian login: ").await;
        g.hear().await;
        g.say("Password: ").await;
        g.echo = false;
        g.hear().await;
        g.say("\r\nYou are required to change your password immediately (administrator enforced).\r\nNew password: ")
            .await;
        g.hear().await;
    })
    .await;
    let e = error(result);
    assert!(matches!(e, AccessError::PasswordExpired { .. }), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_login_prompt_that_only_comes_back_ends() {
    let (result, _) = against(login("root", Some("x")), 3000, |mut g| async move {
        loop {
            g.say("\r\ndebian login: ").await;
            if g.hear().await.is_none() {
                return;
            }
        }
    })
    .await;
    let e = error(result);
    assert!(matches!(e, AccessError::LoginLoop { .. }), "{e}");
}

#[tokio::test(start_paused = true)]
async fn busybox_wants_enter_first() {
    let (result, events) = against(quick(), 300, |mut g| async move {
        g.say("\r\nPlease press Enter to activate this console. ").await;
        g.hear().await;
        g.be_a_shell("\r\n/ # ").await;
    })
    .await;
    result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_stuck_is_named() {
    for (screen, words) in [
        ("Gave up waiting for root file system device.\r\n\r\n(initramfs) ", "root="),
        ("error: no such device: 1234.\r\nEntering rescue mode...\r\ngrub rescue> ", "GRUB cannot find its files"),
        (
            "Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n",
            "nothing to boot",
        ),
        ("UEFI Interactive Shell v2.2\r\nPress ESC in 1 seconds\r\nShell> ", "UEFI shell"),
        (
            "You are in emergency mode. After logging in, type \"journalctl -xb\"\r\nGive root password for maintenance\r\n(or press Control-D to continue): ",
            "emergency mode",
        ),
    ] {
        let (result, _) = against(quick(), 300, move |mut g| async move {
            g.say(screen).await;
            while let Some(line) = g.hear().await {
                assert_eq!(line, "", "nothing is typed there");
            }
        })
        .await;
        let e = error(result);
        assert!(matches!(e, AccessError::Stuck { .. }) && e.to_string().contains(words), "{e}");
    }
}

/// What real boot loaders wrote to the serial line of a machine without a screen, up to where they wait: GRUB 2.06 with `timeout=-1`, SYSLINUX 6.04 with
/// `PROMPT 1`, its `menu.c32`, and systemd-boot 252 under OVMF with `timeout menu-force`.
const MENUS: &[(&str, &[u8])] = &[
    ("GRUB's menu", include_bytes!("menus/grub-menu")),
    ("the prompt of SYSLINUX", include_bytes!("menus/syslinux-prompt")),
    ("the menu of SYSLINUX", include_bytes!("menus/syslinux-menu")),
    ("a menu that the UEFI firmware has started", include_bytes!("menus/systemd-boot")),
    ("GRUB", b"error: file `/boot/vmlinuz' not found.\r\n\r\nPress any key to continue..."),
];

fn menus_answered(events: &[AccessEvent]) -> Vec<&str> {
    let answered = events.iter().filter_map(|event| match event {
        AccessEvent::Did { line, act: Act::Choose, .. } => Some(line.as_str()),
        _ => None,
    });
    answered.collect()
}

#[tokio::test(start_paused = true)]
async fn a_boot_menu_that_waits_is_answered_once() {
    for (name, bytes) in MENUS {
        let (result, events) = against(quick(), 120, move |mut g| async move {
            g.echo = false;
            g.line.write_all(bytes).await.expect("say");
            assert_eq!(g.byte().await, Some(b'\r'), "{name}");
            g.say("\x1b[2J\x1b[H\r\n[    0.000000] Linux version 6.1.0\r\n").await;
            g.echo = true;
            g.be_a_shell("~ # ").await;
        })
        .await;
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(menus_answered(&events), [*name]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_boot_menu_is_answered_where_nothing_else_is_typed() {
    let rungs = LADDER.iter().filter(|rung| rung.name == "credentials").copied().collect();
    let (result, events) = against(AccessOptions { rungs, ..quick() }, 120, |mut g| async move {
        g.echo = false;
        g.line.write_all(MENUS[0].1).await.expect("say");
        assert_eq!(g.byte().await, Some(b'\r'));
        g.say("\x1b[2J\x1b[H\r\nPress any key to continue...\r\n~ # ").await;
        assert_eq!(g.byte().await, None, "a shell's prompt is not the business of that way in");
    })
    .await;
    assert!(matches!(error(result), AccessError::Expect(_)));
    assert_eq!(menus_answered(&events).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_boot_menu_that_counts_is_left_alone() {
    for (name, screen) in [
        (
            "GRUB",
            "\x1b[2J\x1b[1;1H  GNU GRUB  version 2.06\x1b[4;4H*Debian\x1b[23;4HThe highlighted entry will be executed automatically in 0s.\x1b[4;4H",
        ),
        ("SYSLINUX", "\x1b[2J\x1b[18;27HPress [Tab] to edit options\x1b[20;4HAutomatic boot in 1 second...\x1b[4;4H"),
        (
            "systemd-boot",
            "BdsDxe: starting Boot0001 \"UEFI\"\r\n\x1b[2J\x1b[10;30HDebian\x1b[20;30HBoot in 1 s.\x1b[4;4H",
        ),
    ] {
        let (result, events) = against(quick(), 300, move |mut g| async move {
            g.say(screen).await;
            let silence = tokio::time::timeout(Duration::from_secs(40), g.byte()).await;
            assert!(silence.is_err(), "{name}: it goes on by itself");
            g.say("\x1b[2J\x1b[H\r\n[    0.000000] Linux version 6.1.0\r\n").await;
            g.be_a_shell("~ # ").await;
        })
        .await;
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(menus_answered(&events), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_looks_like_a_menu_after_the_boot_is_none() {
    let (result, events) = against(quick(), 120, |mut g| async move {
        g.say("[    0.000000] Linux version 6.1.0\r\nSYSLINUX 6.04\r\nboot: ").await;
        assert_eq!(g.hear().await.as_deref(), Some(""), "somebody's prompt");
        g.be_a_shell("~ # ").await;
    })
    .await;
    assert!(result.is_ok());
    assert_eq!(menus_answered(&events), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_boot_menu_that_stays_is_named() {
    let (result, _) = against(quick(), 120, |mut g| async move {
        g.echo = false;
        g.say("\x1b[2J\x1b[1;1H                 GNU GRUB  version 2.06\x1b[4;4H*Debian GNU/Linux\x1b[20;1H").await;
        for _ in 0..3 {
            assert_eq!(g.byte().await, Some(b'\r'));
        }
        assert_eq!(g.byte().await, None, "it is not for Enter");
    })
    .await;
    let e = error(result);
    assert!(e.to_string().contains("boot loader shows its menu"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_boot_menu_that_went_on_by_itself_is_not_blamed_for_the_silence_after_it() {
    let (result, _) = against(quick(), 120, |mut g| async move {
        g.echo = false;
        g.say("\x1b[2J\x1b[1;1H                 GNU GRUB  version 2.06\x1b[4;4H*Debian GNU/Linux\x1b[20;1H").await;
        g.say("The highlighted entry will be executed automatically in 0s.").await;
        g.say("\x1b[2J\x1b[1;1H  Booting `Debian GNU/Linux'\r\n\r\n").await;
        while g.byte().await.is_some() {}
    })
    .await;
    let e = error(result);
    assert!(matches!(e, AccessError::Expect(_)), "{e}");
}

#[tokio::test(start_paused = true)]
async fn an_installer_is_left_alone_and_named() {
    let (result, _) = against(quick(), 120, |mut g| async move {
        g.say("\x1b[2J\x1b[4;4H Choose language\x1b[6;8HEnglish\x1b[20;4H<Go Back>\x1b[24;1H<Tab> moves").await;
        assert_eq!(g.hear().await, None, "Enter would choose");
    })
    .await;
    let e = error(result);
    assert!(e.to_string().contains("full-screen"), "{e}");
    let AccessError::NoShell { tail, .. } = &e else { panic!("{e:?}") };
    assert!(tail.iter().any(|line| line.contains("Choose language")), "{tail:?}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_the_climb() {
    let (result, _) = against(quick(), 300, |mut g| async move {
        g.say("[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n")
            .await;
        g.hear().await;
    })
    .await;
    let e = error(result);
    assert!(matches!(e, AccessError::Died { .. }) && e.to_string().contains("root="), "{e}");
}

#[tokio::test(start_paused = true)]
async fn what_only_looks_like_a_shell_is_told() {
    let (result, _) = against(quick(), 3000, |mut g| async move {
        loop {
            g.say("router> ").await;
            if g.hear().await.is_none() {
                return;
            }
            g.say("% Unknown command\r\n").await;
        }
    })
    .await;
    let e = error(result);
    assert!(matches!(e, AccessError::NoShell { .. }) && e.to_string().contains("router>"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn an_emergency_shell_can_be_wanted() {
    let options = AccessOptions { emergency_shell: true, ..quick() };
    let (result, events) = against(options, 300, |mut g| async move { g.be_a_shell("(initramfs) ").await }).await;
    result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
}

/// A shell that answers one framed line with a given code, in a stream into which the kernel writes.
async fn hostile_shell(mut g: Guest, code: u8, output: String, noise: Vec<(usize, String)>, sizes: Vec<usize>) {
    let mut tag = String::new();
    let mut state = (0u64, 0u64);
    let mut noise = noise.into_iter().cycle();
    let mut sizes = sizes.into_iter().cycle();
    g.echo = false;
    while let Some(line) = g.hear().await {
        let mut out = String::new();
        if let Some(at) = line.find("_b=") {
            tag = line[at + 3..].chars().take_while(char::is_ascii_alphanumeric).collect();
            state = (0, 0);
        }
        let framed = line.contains("eval ");
        if framed {
            let at = line.find("_s=").expect("number") + 3;
            let seq: u64 =
                line[at..].chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("number");
            out.push_str(&format!("<{tag}:{seq}:b:{seq}>\r\n"));
            let ours = line.contains("the command");
            if ours {
                out.push_str(&output.replace('\n', "\r\n"));
            }
            state = (seq, if ours { u64::from(code) } else { 1 });
        }
        if let Some(at) = line.rfind("$((_s*1000+_c)):") {
            let ask: String = line[at + 16..].chars().take_while(char::is_ascii_digit).collect();
            out.push_str(&format!("<{tag}:{}:{}:{}:{ask}>\r\n", state.0, state.1, state.0 * 1000 + state.1));
        }
        let mut bytes = out.into_bytes();
        if framed && let Some((at, text)) = noise.next() {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, text.into_bytes());
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = sizes.next().unwrap_or(1).clamp(1, rest.len());
            g.line.write_all(&rest[..n]).await.expect("write");
            rest = &rest[n..];
            tokio::task::yield_now().await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn the_code_is_exact_whatever_lands_in_the_line(
        code in 0u8..=255,
        output in "([a-z<>:0-9 ]{0,30}\n){0,4}[a-z]{0,5}",
        noise in proptest::collection::vec((0usize..200, "(\\[ {1,4}[0-9]{1,3}\\.[0-9]{6}\\] [ -~]{0,60}\r\n|8021q: [0-9:]{0,8}>?\r\n|[0-9]{1,4}\r\n){0,3}"), 1..6),
        sizes in proptest::collection::vec(1usize..40, 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        let reply = runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let console = Console::new(ours, std::io::sink());
            let guest = Guest { line: theirs, typed: Vec::new(), echo: false };
            let guest = tokio::spawn(hostile_shell(guest, code, output.clone(), noise.clone(), sizes));
            let mut shell = Shell::adopt(&console, shell::Launch::Stay, true, &mut patience(3000)).await.expect("adopted");
            let reply = shell.run("the command", &mut patience(3000)).await;
            guest.abort();
            reply
        });
        let reply = reply.map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(reply.code, code);
        if noise.iter().all(|(_, t)| t.is_empty()) {
            prop_assert_eq!(String::from_utf8_lossy(&reply.output), output);
        }
    }
}
