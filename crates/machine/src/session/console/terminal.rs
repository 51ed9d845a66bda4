//! A command that has the console to itself, for a person's terminal.

use std::time::Duration;

use belljar_model::{Exit, Phase};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{ConsoleSession, Running, next_control, pass_on, script};
use crate::command::{GuestCommand, Terminal};
use crate::console::{Patience, SendError};
use crate::enter::of_shell;
use crate::guest::Io;
use crate::session::agent::ExecControl;
use crate::{Cause, Lost};

/// How long the last bytes may take to come after the end.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// As good as never: the caller bounds the command's time.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

impl ConsoleSession {
    /// The guest's serial terminal becomes the command's; its bytes are passed on raw, both ways.
    pub(super) async fn exec_on_terminal(
        &mut self,
        command: &GuestCommand,
        terminal: &Terminal,
        io: &mut Io<'_>,
    ) -> Result<Exit, Lost> {
        let dir = self.make_dir().await?;
        self.write_file(&dir, "cmd", &script::command(command, self.places.as_ref())).await?;
        let (rows, columns) = (terminal.size.rows, terminal.size.cols);
        let fore = script::foreground(&dir, self.user_of(command), &terminal.term, rows, columns);
        self.write_file(&dir, "fore", &fore).await?;

        let lost = |e| of_shell(&e, Phase::Command);
        let mut typist = self.shell.console_mut().share();
        let mut tap = typist.tap();
        // Nothing to kill by name: Ctrl-C from the shell's terminal has to do.
        self.running = Some(Running { guest_dir: dir.clone(), orders_dir: None, host_dir: None, started: false });
        let line = format!("sh {}/fore", script::word(&dir));
        let mut cut = self.shell.start_foreground(&line).await.map_err(lost)?;
        let mut patience = Patience::new(FOR_EVER);
        let mut chunk = [0; 512];
        let code = {
            let mut ended = std::pin::pin!(self.shell.end_foreground(&mut patience));
            loop {
                tokio::select! {
                    biased;
                    Some(bytes) = tap.recv() => pass_on(io.sink, false, &cut.cut(&bytes)).await?,
                    code = &mut ended => break code.map_err(lost)?,
                    typed = read(&mut io.stdin, &mut chunk) => {
                        typist.send_raw(&chunk[..typed?]).await.map_err(|e: SendError| of_shell(&e.into(), Phase::Command))?;
                    }
                    control = next_control(&mut io.control) => if let ExecControl::Signal(2 | 15) = control {
                        // A new size cannot be told: whatever we typed would go to the command.
                        typist.send_raw(b"\x03").await.map_err(|e: SendError| of_shell(&e.into(), Phase::Command))?;
                    },
                }
            }
        };
        self.running = None;
        while !cut.has_ended() {
            match tokio::time::timeout(LAST_BYTES, tap.recv()).await {
                Ok(Some(bytes)) => pass_on(io.sink, false, &cut.cut(&bytes)).await?,
                _ => break,
            }
        }
        drop(tap);
        self.line_run(format!("rm -rf {}", script::word(&dir))).await?;
        Ok(Exit::Code(code))
    }
}

/// The next bytes that were typed; never, after the end.
async fn read(stdin: &mut Option<&mut (dyn AsyncRead + Unpin + Send)>, chunk: &mut [u8]) -> Result<usize, Lost> {
    let n = match stdin {
        Some(source) => {
            source.read(chunk).await.map_err(|e| Cause::Stdin(format!("reading standard input failed: {e}")))?
        }
        None => 0,
    };
    if n == 0 {
        *stdin = None;
        std::future::pending::<()>().await;
    }
    Ok(n)
}
