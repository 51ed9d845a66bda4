//! A line that reads further lines from the terminal.

use std::time::Duration;

use super::{PIECE, Shell, ShellError, UNHEARD, frame};
use crate::{
    access::answer::{self, Answer, UNFINISHED, quote},
    console::Patience,
};

/// How long the line is silent before whoever still waits for lines gets empty ones, the first time; then twice as long each time.
const STARVED: Duration = Duration::from_secs(5);
/// How often.
const ASKED_MOST: u32 = 4;

impl Shell {
    /// Runs a line that reads these lines from the terminal, behind one that it must throw away: a terminal's answer to what the shell has
    /// asked of it may come there. Gives the line's exit code; none where the shell did not begin it, or gave it up. Since any of
    /// the lines may have lost bytes on the way, the line itself has to find out what it got.
    ///
    /// The terminal hands on whole lines, so a program that reads so many of them leaves the rest alone. Who gets fewer, for a line's end was
    /// lost, gets empty ones; where nobody reads them, they are a shell's empty commands.
    ///
    /// # Errors
    ///
    /// When the shell does not answer, or the line is too long to be typed.
    pub(crate) async fn run_with_lines(
        &mut self,
        line: &str,
        lines: &[String],
        patience: &mut Patience,
    ) -> Result<Option<u8>, ShellError> {
        let word = String::from_utf8_lossy(&quote(line.as_bytes())).into_owned();
        if word.len() > PIECE {
            return Err(ShellError::TooLong { length: line.len() });
        }
        self.seq += 1;
        let seq = self.seq;
        let mut last_ask = self.next_ask();
        // A shell that reads with an echo gets it back: see `settle`.
        let after = if self.echo { "sane" } else { "sane -echo" };
        let framed = format!(
            "stty sane -echo 2>/dev/null;{}stty {after} 2>/dev/null;{}\n",
            frame(seq, &format!("eval {word}")),
            answer::ask(last_ask)
        );
        self.console.send(framed.as_bytes()).await?;
        let (mut begun, mut asked) = (false, 0);
        // How much of the unread text was there when we last asked.
        let mut noticed = 0;
        loop {
            let usual = if begun { STARVED } else { UNHEARD } * (1 << asked);
            let tag = self.tag.clone();
            let quiet = |unread: &[u8]| {
                let damaged = answer::fragments(&tag, unread.get(noticed..).unwrap_or(unread));
                if damaged { super::DAMAGED } else { usual }
            };
            let heard = self.listen(quiet, patience).await?;
            if heard.is_some() {
                noticed = 0;
            }
            match heard.map(|(_, heard)| heard) {
                Some(Answer::Begins { seq: s }) if s == seq && !begun => {
                    begun = true;
                    let all = format!("\n{}\n", lines.join("\n"));
                    // They wait on their way until the guest takes them.
                    match tokio::time::timeout(patience.remaining(), self.console.send(all.as_bytes())).await {
                        Ok(sent) => sent?,
                        Err(_) => return Err(self.unheard()),
                    }
                }
                Some(Answer::State { seq: s, code, .. }) if s == seq => {
                    return Ok(u8::try_from(code).ok().filter(|_| code != UNFINISHED));
                }
                Some(Answer::State { ask, .. }) if ask == last_ask => return Ok(None),
                Some(_) => {}
                None => {
                    self.still_there()?;
                    if asked == ASKED_MOST {
                        return Err(self.unheard());
                    }
                    asked += 1;
                    noticed = self.console.unread().len();
                    last_ask = self.next_ask();
                    // The shell may be within a quotation that lost its end.
                    let end = if asked > 1 { "\x03\n" } else { "" };
                    let empty = "\n".repeat(lines.len() + 2);
                    self.console.send(format!("{end}{empty}{}\n", answer::ask(last_ask)).as_bytes()).await?;
                }
            }
        }
    }
}
