//! What programs in the guest ask for while a command runs.

use belljar_model::EventKind;
use belljar_proto::message::{MAX_QUESTION, Question};

use super::Watch;
use crate::{
    guest::Observe,
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
            self.marks.answer(&reports, observe);
        }
    }
}

impl Marks {
    /// Does what programs in the guest have asked for up to now, and answers.
    pub(crate) fn answer(&mut self, reports: &Reports, observe: Observe<'_>) {
        let Asks { asks, lost } = reports.take_asks();
        let mut cut = lost > 0;
        for (number, question) in asks {
            let done = match question {
                Question::Mark(text) if self.set < MOST_MARKS => {
                    self.set += 1;
                    observe(EventKind::Mark { text: clean(&text) });
                    true
                }
                Question::Mark(_) => {
                    cut = true;
                    false
                }
            };
            reports.answer(number, done);
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
