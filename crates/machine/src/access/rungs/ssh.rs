//! SSH, where a guest offers nothing else: the host's own `ssh` runs the few commands that fetch the agent and start it ([`crate::ssh`]). Nothing is attached
//! to the machine: the way to the guest's port is there only as long as it is used.

use belljar_guest_spec::Access;

use super::{Agent, Rung, Start, image_if_asked, nothing};

/// Added last, too, where nobody says how to get in and a key is given.
pub(crate) const SSH: Rung = Rung {
    name: "ssh",
    word: Access::Ssh,
    suits: image_if_asked,
    attach: nothing,
    rules: &[],
    agent: Some(Agent {
        which: "was started over SSH; the key of the guest's server is not checked",
        awaited: "was to be started over SSH",
        in_copy: "it was started in its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::ByImage,
};
