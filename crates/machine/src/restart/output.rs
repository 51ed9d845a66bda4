//! The output of a command whose machine goes down: all of it comes, and what is said after the restart begins a line of its own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Cause, Lost,
    session::{
        agent::{OutputEnd, OutputSink, Reports, SinkFuture},
        console::ShellAsks,
    },
};

/// How long what was running may be silent when the machine goes down, until it is taken to have said all.
const QUIET: Duration = Duration::from_secs(3);
/// How long it may go on talking then, the time not counted in which nobody on this side takes it.
const MOST: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Passes output on, and knows where a line was begun and not ended.
pub(crate) struct Lines<'a> {
    sink: &'a mut dyn OutputSink,
    /// What ends a line: of a terminal, both characters.
    end: &'static [u8],
    /// The last byte of standard output, and of standard error.
    last: [Option<u8>; 2],
    /// Somebody is about to take something.
    passing: Arc<AtomicBool>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(sink: &'a mut dyn OutputSink, is_terminal: bool) -> Self {
        let end: &[u8] = if is_terminal { b"\r\n" } else { b"\n" };
        Self { sink, end, last: [None; 2], passing: Arc::default() }
    }

    /// Whether output is being taken now, however long that takes.
    pub(crate) fn passing(&self) -> Arc<AtomicBool> {
        self.passing.clone()
    }

    /// Ends the lines that were begun.
    ///
    /// # Errors
    /// When nobody takes that.
    pub(crate) async fn end_lines(&mut self) -> Result<(), Lost> {
        let end = self.end;
        let begun = self.last.map(|last| last.is_some_and(|last| last != b'\n'));
        let ended = async {
            if begun[0] {
                self.stdout(end).await?;
            }
            if begun[1] {
                self.stderr(end).await?;
            }
            Ok(())
        };
        ended.await.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe => Cause::OutputClosed.into(),
            _ => Cause::Session(format!("the command's output cannot be passed on: {error}")).into(),
        })
    }
}

/// Sets it for as long as this lives.
struct Passing(Arc<AtomicBool>);

impl Passing {
    fn begin(passing: &Arc<AtomicBool>) -> Self {
        passing.store(true, Ordering::Relaxed);
        Self(passing.clone())
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl OutputSink for Lines<'_> {
    fn started(&mut self, pid: u32) {
        self.sink.started(pid);
    }

    fn lingers(&mut self) {
        self.sink.lingers();
    }

    fn left_open(&mut self, how: OutputEnd) {
        self.sink.left_open(how);
    }

    fn restarts(&mut self, is_up: bool) {
        self.sink.restarts(is_up);
    }

    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.last[0] = bytes.last().copied().or(self.last[0]);
        let passing = Passing::begin(&self.passing);
        let passed = self.sink.stdout(bytes);
        Box::pin(async move {
            let _passing = passing;
            passed.await
        })
    }

    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.last[1] = bytes.last().copied().or(self.last[1]);
        let passing = Passing::begin(&self.passing);
        let passed = self.sink.stderr(bytes);
        Box::pin(async move {
            let _passing = passing;
            passed.await
        })
    }
}

/// Waits until a command that was killed has said all that it had to say, whoever takes it and however slowly; gives whether that was all. One that does not
/// end is silent in the end.
pub(crate) async fn last_words(
    mut running: impl Future + Unpin,
    (reports, shell): (Option<&Reports>, Option<&ShellAsks>),
    passing: &AtomicBool,
) -> bool {
    let (mut quiet, mut talks) = (Duration::ZERO, Duration::ZERO);
    let heard = || reports.map_or_else(|| shell.map_or(0, ShellAsks::beats), Reports::heard);
    let mut before = heard();
    loop {
        let begun = Instant::now();
        if tokio::time::timeout(LOOK, &mut running).await.is_ok() {
            return true;
        }
        if passing.load(Ordering::Relaxed) || reports.is_some_and(Reports::is_held) {
            // That is the time of whoever takes it.
            quiet = Duration::ZERO;
            continue;
        }
        talks += begun.elapsed();
        quiet =
            if std::mem::replace(&mut before, heard()) == before { quiet + begun.elapsed() } else { Duration::ZERO };
        if quiet >= QUIET {
            return true;
        }
        if talks >= MOST {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Kept(Vec<u8>, Vec<u8>);

    impl OutputSink for Kept {
        fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
            self.0.extend_from_slice(bytes);
            Box::pin(std::future::ready(Ok(())))
        }

        fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
            self.1.extend_from_slice(bytes);
            Box::pin(std::future::ready(Ok(())))
        }
    }

    #[tokio::test]
    async fn what_was_begun_is_ended_once() {
        let mut kept = Kept::default();
        let mut lines = Lines::new(&mut kept, false);
        lines.end_lines().await.unwrap();
        lines.stdout(b"1..1\nok 1 - begun ").await.unwrap();
        lines.stderr(b"whole\n").await.unwrap();
        for _ in 0..2 {
            lines.end_lines().await.unwrap();
        }
        lines.stdout(b"not ok 1\n").await.unwrap();
        assert_eq!((kept.0, kept.1), (b"1..1\nok 1 - begun \nnot ok 1\n".to_vec(), b"whole\n".to_vec()));
        let mut kept = Kept::default();
        let mut lines = Lines::new(&mut kept, true);
        lines.stdout(b"$ ").await.unwrap();
        lines.end_lines().await.unwrap();
        assert_eq!(kept.0, b"$ \r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_output_is_waited_for_and_who_says_nothing_is_not() {
        let passing = Arc::new(AtomicBool::new(true));
        let begun = Instant::now();
        let taking = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            passing.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        assert!(last_words(std::pin::pin!(taking), (None, None), &passing).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(101));
        let begun = Instant::now();
        assert!(last_words(std::pin::pin!(std::future::pending::<()>()), (None, None), &passing).await);
        assert!((3..4).contains(&begun.elapsed().as_secs()));
    }
}
