//! Who logs in on the guest's console, with passwords kept out of all that is shown or logged.

use std::fmt;

use crate::values;

/// A text that never shows: neither by `Debug` nor in any error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one who has to type it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A login as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User name in the guest.
    pub user: String,
    /// How the user proves it.
    pub password: Password,
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// There is none.
    None,
    /// Here.
    Given(Secret),
    /// In this environment variable.
    Env(String),
}

/// A login with all that has to be typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User name in the guest.
    pub user: String,
    /// `None`: the guest is expected to ask for none.
    pub password: Option<Secret>,
}

impl Login {
    /// Reads `USER[:PASSWORD]`.
    ///
    /// # Errors
    /// What is wrong with it; never with the password in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (text, None),
        };
        if values::user(user).is_err() {
            return Err("the login has no usable user name; write USER or USER:PASSWORD".into());
        }
        if password.is_some_and(|p| p.chars().any(char::is_control)) {
            return Err(format!("the password for {user} has control characters in it, which cannot be typed"));
        }
        let password = password.map_or(Password::None, |p| Password::Given(Secret::new(p)));
        Ok(Self { user: user.to_owned(), password })
    }

    /// What is to be typed; none where the password has not been looked up.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        let password = match &self.password {
            Password::None => None,
            Password::Given(secret) => Some(secret.clone()),
            Password::Env(_) => return None,
        };
        Some(Credentials { user: self.user.clone(), password })
    }
}

impl Credentials {
    /// `root` without a password.
    #[must_use]
    pub fn root() -> Self {
        Self { user: "root".into(), password: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show() {
        let login = Login::parse("root:hunter2").unwrap();
        let shown = format!("{login:?} {:#?}", login.credentials());
        assert!(!shown.contains("hunter2") && shown.contains("root"), "{shown}");
    }

    #[test]
    fn logins_never_show_the_password() {
        let given = |text: &str| Login::parse(text).unwrap().credentials().unwrap().password;
        assert_eq!(given("root"), None);
        assert_eq!(given("root:a:b"), Some(Secret::new("a:b")));
        assert_eq!(given("root:"), Some(Secret::new("")));
        let error = Login::parse("root:sec\nret").unwrap_err();
        assert!(!error.contains("sec"), "{error}");
        assert!(Login::parse(":x").is_err());
        let looked_up_later = Login { user: "root".into(), password: Password::Env("P".into()) };
        assert_eq!(looked_up_later.credentials(), None);
    }
}
