//! Where a command's output goes on our side.

use std::io::{self, IsTerminal};

use belljar_machine::{
    console::sanitize::Sanitizer,
    session::agent::{OutputSink, SinkFuture},
};
use tokio::io::{AsyncWriteExt, Stderr, Stdout};

/// Our own standard output and error. To a terminal go no control sequences of the guest, unless it was asked for
/// them; to anything else goes what came, byte for byte.
pub(crate) struct StdSink {
    stdout: Stdout,
    stderr: Stderr,
    clean_stdout: Option<Sanitizer>,
    clean_stderr: Option<Sanitizer>,
}

impl StdSink {
    /// `raw`: the command has a terminal of its own, and the user's is given to it.
    pub(crate) fn new(raw: bool) -> Self {
        let clean = |terminal: bool| (terminal && !raw).then(Sanitizer::new);
        Self {
            stdout: tokio::io::stdout(),
            stderr: tokio::io::stderr(),
            clean_stdout: clean(io::stdout().is_terminal()),
            clean_stderr: clean(io::stderr().is_terminal()),
        }
    }

    /// Writes what is still held back.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        for (sanitizer, error) in [(self.clean_stdout.take(), false), (self.clean_stderr.take(), true)] {
            let Some(mut sanitizer) = sanitizer else { continue };
            let mut rest = String::new();
            sanitizer.finish(&mut rest);
            if error {
                self.stderr.write_all(rest.as_bytes()).await?;
            } else {
                self.stdout.write_all(rest.as_bytes()).await?;
            }
        }
        self.stdout.flush().await?;
        self.stderr.flush().await
    }
}

impl OutputSink for StdSink {
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async move {
            match &mut self.clean_stdout {
                Some(sanitizer) => {
                    let mut text = String::new();
                    sanitizer.push(bytes, &mut text);
                    self.stdout.write_all(text.as_bytes()).await?;
                }
                None => self.stdout.write_all(bytes).await?,
            }
            self.stdout.flush().await
        })
    }

    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async move {
            match &mut self.clean_stderr {
                Some(sanitizer) => {
                    let mut text = String::new();
                    sanitizer.push(bytes, &mut text);
                    self.stderr.write_all(text.as_bytes()).await?;
                }
                None => self.stderr.write_all(bytes).await?,
            }
            self.stderr.flush().await
        })
    }
}
