//! What programs in the guest ask for while a command runs.

use std::sync::Arc;

use belljar_model::EventKind;
use belljar_proto::message::{MAX_QUESTION, Outcome, Question};

use super::Watch;
use crate::{
    guest::Observe,
    lab::Desk,
    session::agent::{Asks, Reports},
};

/// Most marks of one command that are recorded.
pub(crate) const MOST_MARKS: usize = 1000;

/// How many marks the command has set.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    set: usize,
    cut: bool,
}

impl Watch {
    /// A command begins, with all marks before it.
    pub(crate) fn begin_marks(&mut self) {
        self.marks = Marks::default();
    }

    /// Does what was asked for up to now, and answers.
    pub(crate) fn answer_asks(&mut self, observe: Observe<'_>) {
        if let Some(reports) = self.reports.clone() {
            self.marks.answer(&reports, Some(&mut self.desk), observe);
        }
        while let Some(done) = self.desk.news() {
            observe(done);
        }
    }
}

impl Marks {
    /// Does what programs in the guest have asked for up to now, and answers; without a desk there are no devices that it could be done to.
    pub(crate) fn answer(&mut self, reports: &Arc<Reports>, mut desk: Option<&mut Desk>, observe: Observe<'_>) {
        let Asks { asks, lost } = reports.take_asks();
        let mut cut = lost > 0;
        for (number, question) in asks {
            let outcome = match (question, &mut desk) {
                (Question::Mark(text), _) if self.set < MOST_MARKS => {
                    self.set += 1;
                    observe(EventKind::Mark { text: clean(&text) });
                    Outcome::Done(String::new())
                }
                (Question::Mark(_), _) => {
                    cut = true;
                    Outcome::Full
                }
                (Question::Disk(text), Some(desk)) => {
                    desk.take(number, text, reports.clone());
                    continue;
                }
                (Question::Disk(_), None) => {
                    Outcome::Refused("a container has no disks of its own; take a machine".to_owned())
                }
            };
            reports.answer(number, outcome);
        }
        if cut && !std::mem::replace(&mut self.cut, true) {
            let message = format!("the command sets more than {MOST_MARKS} marks: the rest is not recorded");
            observe(EventKind::Warning { message });
        }
    }
}

/// A mark as it may stand in the log and on a terminal. The guest's agent keeps to the limit; whoever speaks in its place may not.
fn clean(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=text.len().min(MAX_QUESTION)).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_short_line() {
        assert_eq!(clean(" a\u{1b}[31m\nb "), "a [31m b");
        assert_eq!(clean(&"ä".repeat(MAX_QUESTION)).len(), MAX_QUESTION);
    }
}
