//! A password, kept out of everything that is shown or logged.

use std::fmt;

/// A text that never shows: neither by `Debug` nor in any error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one who has to type it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User name in the guest.
    pub user: String,
    /// `None`: the guest is expected to ask for none.
    pub password: Option<Secret>,
}

impl Credentials {
    /// `root` without a password.
    pub fn root() -> Self {
        Credentials { user: "root".into(), password: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let c = Credentials { user: "root".into(), password: Some(Secret::new("hunter2")) };
        let shown = format!("{c:?} {c:#?}");
        assert!(!shown.contains("hunter2") && shown.contains("root"), "{shown}");
    }
}
