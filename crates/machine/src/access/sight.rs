//! What the open line of a console looks like to a person who wants to get in.

/// One look at the open line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Somebody is to log in: `debian login: `.
    Login,
    /// A password is to be typed.
    Password,
    /// A question in unknown words, after a user name: maybe for the password, maybe a shell's prompt.
    Question,
    /// A password has expired and a new one is wanted.
    NewPassword,
    /// busybox's `Please press Enter to activate this console.`
    Activate,
    /// The end of a line as shells have it: `# `, `$ `.
    Prompt,
    /// An emergency shell that wants root's password, or just Enter.
    Maintenance,
    /// A prompt that messages of the kernel were written over: it is gone, and Enter brings it back.
    Covered,
    /// A boot loader that waits for a key, for as long as it takes.
    BootMenu,
    /// Some other text that waits.
    Text,
    /// Nothing on the line.
    Blank,
}

/// Words for "password" just before the colon, in lower case. Login programs translate theirs.
const PASSWORD: &[&str] = &[
    "password",
    "passwort",
    "kennwort",
    "passwd",
    "passcode",
    "mot de passe",
    "contraseña",
    "senha",
    "palavra-passe",
    "wachtwoord",
    "hasło",
    "heslo",
    "lösenord",
    "adgangskode",
    "passord",
    "salasana",
    "jelszó",
    "parola",
    "пароль",
    "κωδικός πρόσβασης",
    "パスワード",
    "密码",
    "密碼",
    "암호",
];

/// Looks at the open line. `after_name`: a user name was just typed, so a question may be for the password.
pub(super) fn look(line: &str, after_name: bool) -> Sight {
    let text = line.trim();
    let lower = text.to_lowercase();
    if text.is_empty() {
        return Sight::Blank;
    }
    if is_login_prompt(text) {
        return Sight::Login;
    }
    if lower.contains("press enter to activate this console") {
        return Sight::Activate;
    }
    if lower.contains("for maintenance")
        || lower.contains("for system maintenance")
        || lower.starts_with("(or press control-d")
    {
        return Sight::Maintenance;
    }
    if let Some(question) = lower.strip_suffix([':', '：']) {
        let question = question.trim_end();
        if ["new ", "current ", "retype ", "(current) "].iter().any(|w| question.starts_with(w)) {
            return Sight::NewPassword;
        }
        // "Password for root:", as some PAM modules have it.
        let named = PASSWORD.iter().any(|w| question.ends_with(w) || question.starts_with(&format!("{w} for ")));
        if named {
            return Sight::Password;
        }
        if after_name {
            return Sight::Question;
        }
    }
    if text.ends_with(['#', '$', '%', '>', '❯', '➜', '»']) && !is_percentage(text) && text.chars().count() < 200 {
        return Sight::Prompt;
    }
    Sight::Text
}

/// Whether the last lines show a prompt after which only the kernel wrote: `/ # [    2.356461] tsc: …`.
pub(super) fn is_covered(tail: &[String]) -> bool {
    for line in tail.iter().rev() {
        let Some(at) = kernel_stamp(line) else { return false };
        let before = &line[..at];
        if !before.trim().is_empty() {
            return matches!(look(before, false), Sight::Prompt | Sight::Login);
        }
    }
    false
}

/// What a boot loader shows that waits for a key, each with what says so and with what it shows where it goes on by itself after a while. Sources:
/// GRUB's `grub-core/normal/menu_text.c`, SYSLINUX's `com32/menu/menumain.c`.
const MENUS: &[(&str, &str, &str)] = &[
    ("GRUB's menu", "GNU GRUB ", "executed automatically in"),
    ("the menu of SYSLINUX", "[Tab] to edit options", "Automatic boot in"),
];

/// How many of the last lines are where the cursor is.
const LAST: usize = 3;

/// The boot loader that waits for a key, if one does: `line` is the open line, `tail` has the last lines that were shown, `full_screen` whether the last of it was
/// put at a place on the screen.
pub(super) fn boot_menu(line: &str, tail: &[String], full_screen: bool) -> Option<&'static str> {
    let line = line.trim();
    if !line.is_empty() && line.replace("boot:", "").trim().is_empty() {
        return tail.iter().any(|line| line.contains("LINUX ")).then_some("the prompt of SYSLINUX");
    }
    if line == "Press any key to continue..." {
        return Some("GRUB");
    }
    let shows = |what: &str| tail.iter().any(|line| line.contains(what));
    // Some end with an empty line below their box.
    let last = &tail[tail.len().saturating_sub(LAST)..];
    let known =
        MENUS.iter().find(|(_, sign, _)| shows(sign) && (full_screen || last.iter().any(|line| line.contains(sign))));
    if let Some((name, _, countdown)) = known {
        return (!shows(countdown)).then_some(name);
    }
    // systemd-boot shows nothing but titles.
    (full_screen && shows("BdsDxe: starting ") && !shows("Boot in "))
        .then_some("a menu that the UEFI firmware has started")
}

/// Whether these lines show that a boot loader has chosen by itself what it starts.
pub(super) fn menu_is_left(tail: &[String]) -> bool {
    const LEAVES: [&str; 3] = ["Booting `", "Loading Linux ", "Loading initial ramdisk"];
    tail.iter().any(|line| LEAVES.iter().any(|sign| line.contains(sign)))
}

/// Where the kernel's time stamp begins.
fn kernel_stamp(line: &str) -> Option<usize> {
    line.match_indices('[').map(|(at, _)| at).find(|at| {
        let rest = line[at + 1..].trim_start();
        rest.split_once("] ").and_then(|(stamp, _)| stamp.split_once('.')).is_some_and(|(seconds, fraction)| {
            fraction.len() == 6
                && !seconds.is_empty()
                && seconds.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit())
        })
    })
}

/// `debian login:`; not `Last login: …`, which is no question.
pub(super) fn is_login_prompt(line: &str) -> bool {
    let lower = line.trim().to_lowercase();
    let Some(before) = lower.strip_suffix("login:").or_else(|| lower.strip_suffix("ogin as:")) else {
        return lower.ends_with("username:") || lower.ends_with("user name:");
    };
    let before = before.trim_end();
    !before.ends_with("last") && !before.ends_with("failed") && before.chars().count() < 200
}

/// `50%` is progress, not a prompt.
fn is_percentage(text: &str) -> bool {
    text.strip_suffix('%').is_some_and(|t| t.trim_end().ends_with(|c: char| c.is_ascii_digit()))
}

/// Texts that say that a login was turned down.
const REFUSED: &[&str] = &[
    "login incorrect",
    "authentication failure",
    "authentication error",
    "permission denied",
    "access denied",
    "maximum number of tries exceeded",
    "account is locked",
    "account locked",
    "account has expired",
    "this account is currently not available",
    "cannot possibly work without effective root",
];

/// Texts that say that a login came at the wrong time and is worth another try.
const TOO_EARLY: &[&str] =
    &["login timed out", "system is booting up", "system is going down", "not permitted to log in yet"];

/// Texts that say that the password must be changed first.
const EXPIRED: &[&str] =
    &["password has expired", "required to change your password", "changing password for", "passwort ist abgelaufen"];

/// What was said since something was typed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) refused: bool,
    pub(super) too_early: bool,
    pub(super) expired: bool,
}

pub(super) fn said(text: &[u8]) -> Said {
    let recent = &text[text.len().saturating_sub(16 * 1024)..];
    let lower = String::from_utf8_lossy(recent).to_lowercase();
    let any = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    Said { refused: any(REFUSED), too_early: any(TOO_EARLY), expired: any(EXPIRED) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_seen_for_what_they_are() {
        use Sight::*;
        for (line, sight) in [
            ("debian login: ", Login),
            ("localhost login:", Login),
            ("login: ", Login),
            ("(none) login:", Login),
            ("Welcome to Alpine! Login:", Login),
            ("debian login: root (automatic login)", Text),
            ("Last login:", Text),
            ("Last login: Mon Jan  1 00:00:00 UTC 2024 on ttyS0", Text),
            ("Password: ", Password),
            ("Passwort: ", Password),
            ("Mot de passe : ", Password),
            ("root's password:", Password),
            ("Password for root:", Password),
            ("パスワード:", Password),
            ("New password:", NewPassword),
            ("Current password:", NewPassword),
            ("Please press Enter to activate this console. ", Activate),
            ("Give root password for maintenance", Maintenance),
            ("(or press Control-D to continue): ", Maintenance),
            ("Press Enter for maintenance", Maintenance),
            ("~ # ", Prompt),
            ("root@debian:~# ", Prompt),
            ("[root@fedora ~]# ", Prompt),
            ("bash-5.2$ ", Prompt),
            ("> ", Prompt),
            ("[root@arch ~]❯ ", Prompt),
            ("Loading 55%", Text),
            ("Starting something:", Text),
            ("", Blank),
            ("   ", Blank),
        ] {
            assert_eq!(look(line, false), sight, "{line}");
        }
        assert_eq!(look("Kode rahasia: ", true), Question);
        assert_eq!(look("Kode rahasia: ", false), Text);
    }

    #[test]
    fn a_prompt_under_kernel_messages_is_seen() {
        let lines = |t: &str| t.lines().map(str::to_owned).collect::<Vec<_>>();
        assert!(is_covered(&lines("x\n/ # [    2.356461] tsc: Refined\n[    2.357664] clocksource: tsc")));
        assert!(is_covered(&lines("debian login: [   45.123456] random: crng init done")));
        assert!(!is_covered(&lines("[    2.356461] tsc: Refined\n[    2.357664] clocksource: tsc")));
        assert!(!is_covered(&lines("[  OK  ] Started x\n[    2.357664] clocksource: tsc")));
        assert!(!is_covered(&lines("/ # [    2.356461] tsc: Refined\nfsck")));
    }

    #[test]
    fn what_was_said_is_heard() {
        assert!(said(b"\r\nLogin incorrect\r\n").refused);
        assert!(said(b"Login timed out after 60 seconds.").too_early);
        assert!(said(b"You are required to change your password immediately").expired);
        assert_eq!(said(b"Last login: never"), Said::default());
    }

    proptest! {
        #[test]
        fn any_line_is_looked_at_without_a_panic(line in "\\PC{0,80}(login|Password|\\[ +1\\.[0-9]{5,7}\\] ?)?:? ?", after in any::<bool>()) {
            look(&line, after);
            is_covered(std::slice::from_ref(&line));
            said(line.as_bytes());
        }
    }
}
