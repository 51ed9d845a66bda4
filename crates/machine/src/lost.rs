//! How a guest's story ends badly.

use std::time::Duration;

use belljar_model::{
    Crash, CrashKind, Phase, Verdict,
    verdict::{Exit, Fault},
};

/// Why a guest did not do what was asked, ready to be the verdict. Never [`Verdict::Pass`].
#[derive(Clone, Debug)]
pub struct Lost {
    /// What to call it.
    pub verdict: Verdict,
    /// What was awaited or attempted, and what to do next, where the verdict does not say it.
    pub message: Option<String>,
    /// The last lines of the console, where they help; without control characters.
    pub tail: Vec<String>,
    /// Whether another try would end the same way, such as after a password that was refused.
    pub lasting: bool,
}

impl Lost {
    /// Our side, or the host's.
    #[must_use]
    pub fn host(message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Error(Fault::Host { message: message.into() }),
            message: None,
            tail: Vec::new(),
            lasting: false,
        }
    }

    /// A person or a CI server.
    #[must_use]
    pub fn interrupted(signal: i32) -> Self {
        Self { verdict: Verdict::Error(Fault::Interrupted { signal }), message: None, tail: Vec::new(), lasting: false }
    }

    /// The guest died.
    #[must_use]
    pub fn crash(kind: CrashKind, seen: impl Into<String>, phase: Phase) -> Self {
        Self {
            verdict: Verdict::Crash(Crash { kind, seen: seen.into(), phase }),
            message: None,
            tail: Vec::new(),
            lasting: false,
        }
    }

    /// A deadline passed.
    #[must_use]
    pub fn timeout(phase: Phase, message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Timeout(phase), message: Some(message.into()), tail: Vec::new(), lasting: false }
    }

    /// The command never ran; as shells have it, 127 where it is not there and 126 where it cannot be run. `errno` is the program's
    /// own: what else is missing, such as the directory to start in, does not make it a command that is not there.
    #[must_use]
    pub fn not_started(errno: i32, message: impl Into<String>) -> Self {
        const ENOENT: i32 = 2;
        let code = if errno == ENOENT { 127 } else { 126 };
        Self {
            verdict: Verdict::Fail(Exit::Code(code)),
            message: Some(message.into()),
            tail: Vec::new(),
            lasting: false,
        }
    }

    /// The same, and another try would not help.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// With what the console last showed.
    #[must_use]
    pub fn with_tail(mut self, tail: Vec<String>) -> Self {
        self.tail = tail;
        self
    }

    /// With more to say.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }
}

/// A duration for a person: `90 s`, `5 min`, `1.5 s`.
#[must_use]
pub fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 120.0 && seconds % 60.0 < 0.5 {
        format!("{:.0} min", seconds / 60.0)
    } else if seconds >= 10.0 || seconds.fract() < 0.05 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (millis, text) in
            [(1500, "1.5 s"), (90_000, "90 s"), (300_000, "5 min"), (2_000, "2 s"), (150_000, "150 s")]
        {
            assert_eq!(for_people(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn a_command_that_is_not_there_fails_as_in_a_shell() {
        assert_eq!(Lost::not_started(2, "x").verdict.run_exit_code(), 127);
        assert_eq!(Lost::not_started(13, "x").verdict.run_exit_code(), 126);
    }
}
