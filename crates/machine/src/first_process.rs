//! Whether systemd is a guest's first process: one question, whoever asks it.

use belljar_model::Exit;

use crate::{Cause, command::GuestCommand};

/// Tells it by what `sd_booted(3)` goes by, and by the name that systemd gives itself. No word of `systemctl` is asked for, which an image may have of anybody.
const IS_SYSTEMD: &str =
    "[ -d /run/systemd/system ] && read -r name </proc/1/comm && [ \"$name\" = systemd ] && echo yes || echo no";

/// The command that finds it out.
#[must_use]
pub fn question() -> GuestCommand {
    GuestCommand::of_words(["sh", "-c", IS_SYSTEMD])
}

/// What its end and its output say.
///
/// # Errors
/// If it did not find it out.
pub fn is_systemd(exit: Exit, stdout: &[u8]) -> Result<bool, Cause> {
    match (exit, stdout.trim_ascii()) {
        (Exit::Code(0), b"yes") => Ok(true),
        (Exit::Code(0), b"no") => Ok(false),
        (exit, _) => {
            let said = format!("could not find out whether systemd is the guest's first process: {exit}");
            Err(Cause::Answer(said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_answer_is_one() {
        assert!(is_systemd(Exit::Code(0), b"yes\n").unwrap());
        assert!(!is_systemd(Exit::Code(0), b"no\n").unwrap());
        for (exit, said) in [(Exit::Code(0), &b""[..]), (Exit::Code(0), b"yes\nno\n"), (Exit::Code(1), b"yes\n")] {
            assert!(is_systemd(exit, said).is_err(), "{exit:?} {said:?}");
        }
    }
}
