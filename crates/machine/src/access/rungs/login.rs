//! A login prompt on the serial line, for a user that is known, or root without a password.

use belljar_guest_spec::Access;

use super::{Act, Rung, Sight, Start, boots_by_itself, nothing};

pub(super) const LOGIN: Rung = Rung {
    name: "login",
    word: Access::Console,
    suits: boots_by_itself,
    attach: nothing,
    rules: &[
        (Sight::Login, Act::TypeUser),
        (Sight::Password, Act::TypePassword),
        (Sight::NewPassword, Act::Expired),
        (Sight::Question, Act::TryQuestion),
    ],
    agent: None,
    is_init: false,
    seed: None,
    start: Start::ByImage,
};
