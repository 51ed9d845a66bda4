//! How Belljar gets a shell in a guest that nobody prepared.
//!
//! The ladder is data: each [`Rung`] is one value in a file of its own ([`rungs`]). It says what the machine gets before the boot, and
//! what to do at which [`Sight`]. One executor, [`climb()`], looks at the open line of the console whenever it is at rest, and does what the
//! first fitting rule says. It types a newline to find out what is there, and shell text only at what looks like a shell: at a login prompt
//! it would be a failed login.

mod answer;
mod climb;
pub mod rungs;
mod shell;
mod sight;

use std::time::Duration;

use crate::console::{Alarm, Console, ExpectError, Patience, SendError, show_tail};

pub use belljar_guest_spec::{Credentials, Secret};
pub use climb::climb;
pub use rungs::{LADDER, Rung};
pub use shell::{Shell, ShellError, ShellReply};
pub use sight::Sight;

pub(crate) use answer::quote;
#[cfg(test)]
pub(crate) use shell::PIECE;
pub(crate) use shell::pieces;

/// What to do at a sight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Press Enter and look again.
    Enter,
    /// Press Enter at a boot menu, which takes the choice that it shows.
    Choose,
    /// Type a line whose answer differs from its echo.
    Probe,
    /// Type the user name.
    TypeUser,
    /// Type the password.
    TypePassword,
    /// Press Enter at what may be a password's question; a login prompt after that says that it was one. A password typed into a
    /// shell would show.
    TryQuestion,
    /// There is no way on: the password has expired.
    Expired,
    /// There is no way on, unless an emergency shell is what is wanted.
    Emergency,
}

/// What to get in with, and how.
#[derive(Clone, Debug)]
pub struct AccessOptions {
    /// The ways that are tried, in this order.
    pub rungs: Vec<&'static Rung>,
    /// Who logs in at a login prompt; `None` tries root without a password.
    pub credentials: Option<Credentials>,
    /// How long the line is silent before it is asked what it is, longer in slow guests. A prompt that looks like one
    /// is not waited for as long.
    pub rest: Duration,
    /// Become root (with sudo or doas) where the shell is another user's, and fail where that cannot be done.
    pub root: bool,
    /// Take an initramfs's, dracut's or systemd's emergency shell for the one that is wanted.
    pub emergency_shell: bool,
    /// Have the kernel (below errors) and systemd stop writing to the line; see [`Shell::restore_messages`].
    pub calm: bool,
}

impl Default for AccessOptions {
    fn default() -> Self {
        AccessOptions {
            rungs: LADDER.to_vec(),
            credentials: None,
            rest: Duration::from_secs(2),
            root: true,
            emergency_shell: false,
            calm: true,
        }
    }
}

/// A step of the climb, for logs and progress displays. Passwords are never in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessEvent {
    /// Something was done about what the line showed.
    Did {
        /// What the open line looked like.
        sight: Sight,
        /// The open line.
        line: String,
        /// What was done.
        act: Act,
    },
    /// A shell answered.
    ShellFound {
        /// What it was asked with.
        by: &'static str,
    },
    /// Root's rights were asked for.
    BecomingRoot {
        /// With which program.
        by: &'static str,
    },
    /// We are in.
    Held {
        /// Name of the [`Rung`].
        rung: &'static str,
        /// Whether the shell runs as root; `None` where the guest could not say.
        root: Option<bool>,
    },
}

/// Why there is no shell.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing came that could be used, in time.
    #[error("no shell on the serial console: {0}")]
    Expect(#[from] ExpectError),
    /// Nothing can be typed.
    #[error("no shell on the serial console: {0}")]
    Send(#[from] SendError),
    /// The user or the password was turned down.
    #[error("the guest refused the login of \"{user}\": check the user name and password given with --login")]
    Refused {
        /// User name.
        user: String,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The guest asks for a password and none was given.
    #[error("the guest wants a password for \"{user}\": give one with --login {user}:PASSWORD")]
    PasswordWanted {
        /// User name.
        user: String,
    },
    /// The password was right and too old.
    #[error(
        "the password of \"{user}\" has expired and the guest wants a new one: change it in the image, or log in as another user"
    )]
    PasswordExpired {
        /// User name.
        user: String,
    },
    /// The login prompt kept coming back without any refusal.
    #[error("the login prompt came back {tries} times after the name \"{user}\" was typed")]
    LoginLoop {
        /// User name.
        user: String,
        /// How often.
        tries: u32,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// Something that looks like a shell does not answer like one.
    #[error("what is on the serial console does not answer as a shell (the line shows \"{line}\")")]
    NoShell {
        /// The open line.
        line: String,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The shell is there, and is not root's.
    #[error(
        "logged in, but not as root, and none of {tried} gave root without asking: log in as root, or let the user run sudo"
    )]
    NotRoot {
        /// What was tried.
        tried: String,
    },
    /// The guest waits for a person somewhere else.
    #[error("the guest did not boot to a shell: {}. {}{}", alarm, alarm.kind.advice(), show_tail(tail))]
    Stuck {
        /// What the console showed.
        alarm: Alarm,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The guest's kernel died.
    #[error("the guest died before there was a shell: {}. {}{}", alarm, alarm.kind.advice(), show_tail(tail))]
    Died {
        /// What the console showed.
        alarm: Alarm,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The shell was found and then lost.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

/// Takes over a shell that a [`Shell`] in the same guest had made quiet before the guest was frozen: whether it is there is found
/// out as for any other.
pub(crate) async fn adopt_again(console: &Console, patience: &mut Patience) -> Result<Shell, ShellError> {
    Shell::adopt(console, shell::Launch::Stay, AccessOptions::default().calm, patience).await
}

#[cfg(test)]
pub(crate) mod tests;
