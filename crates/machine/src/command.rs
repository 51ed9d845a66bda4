//! A command for a guest.

use belljar_guest_spec::Guards;
use belljar_proto::message::WindowSize;

/// The user who may do everything, whatever a container image says.
pub const ROOT: &str = "root";

/// What to start, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCommand {
    /// Program and arguments; bytes, not text.
    pub argv: Vec<Vec<u8>>,
    /// `KEY=VALUE`, added to the guest's own environment.
    pub env: Vec<Vec<u8>>,
    /// Absolute path in the guest; none means `/`, or what a container image says.
    pub cwd: Option<Vec<u8>>,
    /// User in the guest, by name or number; none means root, or what a container image says.
    pub user: Option<String>,
    /// A terminal of its own.
    pub terminal: Option<Terminal>,
    /// What a tester wants to be told meanwhile; none where nobody does.
    pub guards: Option<Guards>,
}

impl GuestCommand {
    /// These words as root in `/`, with nothing added to the guest's own environment and without a terminal.
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let argv = words.into_iter().map(|word| word.as_bytes().to_vec()).collect();
        Self { argv, env: Vec::new(), cwd: None, user: None, terminal: None, guards: None }
    }

    /// The same where a container image says as whom commands run, and where. Root needs no entry in the guest's `/etc/passwd`.
    pub(crate) fn in_image(self, user: Option<&String>, cwd: Option<&String>) -> Self {
        let user = self.user.or_else(|| user.cloned()).filter(|user| user != ROOT);
        Self { user, cwd: self.cwd.or_else(|| cwd.map(|cwd| cwd.clone().into_bytes())), ..self }
    }
}

/// The terminal of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its first size.
    pub size: WindowSize,
    /// Value of `TERM`.
    pub term: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_holds_where_nothing_else_is_said() {
        let (bob, srv) = ("bob".to_owned(), "/srv".to_owned());
        let command = || GuestCommand::of_words(["true"]);
        let asked = |user: &str| GuestCommand { user: Some(user.to_owned()), cwd: Some(b"/w".to_vec()), ..command() };
        let of_image = command().in_image(Some(&bob), Some(&srv));
        assert_eq!((of_image.user.as_deref(), of_image.cwd.as_deref()), (Some("bob"), Some(&b"/srv"[..])));
        let own = asked("eve").in_image(Some(&bob), Some(&srv));
        assert_eq!((own.user.as_deref(), own.cwd.as_deref()), (Some("eve"), Some(&b"/w"[..])));
        assert_eq!(asked(ROOT).in_image(Some(&bob), None).user, None, "the agent's own");
        assert_eq!(command().in_image(None, None), command());
    }
}
