//! A shell that is on the serial line already, found by asking.

use belljar_guest_spec::Access;

use super::{Act, Rung, Sight, Start, boots_by_itself, nothing};

pub(super) const SHELL: Rung = Rung {
    name: "shell",
    word: Access::Console,
    suits: boots_by_itself,
    attach: nothing,
    rules: &[
        (Sight::Activate, Act::Enter),
        (Sight::Prompt, Act::Probe),
        (Sight::Covered, Act::Enter),
        (Sight::Text, Act::Enter),
        (Sight::Blank, Act::Enter),
        (Sight::Maintenance, Act::Emergency),
    ],
    agent: None,
    is_init: false,
    seed: None,
    start: Start::ByImage,
};
