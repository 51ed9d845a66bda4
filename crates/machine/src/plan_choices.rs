//! What was chosen for a guest, and why, on its way into the event log.

use belljar_guest_spec::Word;
use belljar_image::boot::BootFiles;
use belljar_model::EventKind;

use crate::qemu::probe::AccelChoice;

/// Choices on their way into the event log.
#[derive(Default)]
pub(crate) struct Choices(pub(crate) Vec<EventKind>);

impl Choices {
    pub(crate) fn add(&mut self, what: &str, chosen: impl Into<String>, why: impl Into<String>) {
        self.0.push(EventKind::Choice { what: what.into(), chosen: chosen.into(), why: why.into() });
    }

    pub(crate) fn accelerator(&mut self, choice: &AccelChoice) {
        self.add("accelerator", choice.accel.word(), choice.why.clone());
        // Said to everybody when it is new, later only to those who ask.
        if let Some(mend) = choice.mend.as_ref().filter(|_| !choice.remembered) {
            self.0.push(EventKind::Warning { message: format!("running without KVM, about ten times slower: {mend}") });
        }
    }

    pub(crate) fn boot_files(&mut self, files: &BootFiles) {
        for choice in &files.choices {
            self.add("boot", choice.clone(), "see the manual, Guests");
        }
        self.0.extend(files.mended.iter().map(|message| EventKind::Warning { message: message.clone() }));
    }
}
