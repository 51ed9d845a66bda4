//! One command.

use belljar_proto::files::FileQuery;
use belljar_proto::frame::{Frame, Kind};
use belljar_proto::message::{AskFiles, Exec, ExecId, Nonce, OutputEnd, Status, Stdio, ToAgent, ToHost};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::AgentSession;
use super::error::{SessionError, clean};
use super::io::{ExecControl, ExecIo, OutputSink};
use super::link::Pulse;

/// Standard input on its way.
struct Input<'a> {
    source: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    /// Bytes the agent has room for.
    credit: usize,
    /// Frames that wait for room in the queue to the port.
    waiting: Option<Vec<u8>>,
    /// The most credit there can be.
    window: usize,
    chunk: Vec<u8>,
}

impl Input<'_> {
    /// The next bytes, no more than the agent has room for. Never comes back where there is nothing to be read now.
    async fn next(&mut self) -> std::io::Result<usize> {
        match &mut self.source {
            Some(source) if self.credit > 0 && self.waiting.is_none() => {
                let limit = self.credit.min(self.chunk.len());
                source.read(&mut self.chunk[..limit]).await
            }
            _ => std::future::pending().await,
        }
    }
}

impl AgentSession {
    /// Runs a command and waits for its end; its `id` is replaced by the session's next number.
    ///
    /// `Ok` is the guest's own record for this attempt: it carried the session's tag and [`Exec::nonce`]. Processes that the command
    /// leaves behind with its output open are listened to for a while; the sink is told of them.
    ///
    /// Dropping the future leaves the command running until the next one starts or the guest ends.
    ///
    /// # Errors
    /// [`SessionError::ExecFailed`] where the command could not be started; [`SessionError::Sink`] and [`SessionError::Stdin`] for
    /// failures on our side; all others mean that the session is broken.
    pub async fn exec(&mut self, mut exec: Exec, io: ExecIo<'_>) -> Result<Status, SessionError> {
        let id = self.next_id().await?;
        exec.id = id;
        let nonce = exec.nonce;
        let takes_stdin = exec.stdio != Stdio::PipesNoStdin;
        self.attend(ToAgent::Exec(Box::new(exec)), id, nonce, takes_stdin, io).await
    }

    /// Asks for files; the answer goes to the sink as a command's standard output does.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub async fn files(
        &mut self,
        query: FileQuery,
        nonce: Nonce,
        sink: &mut dyn OutputSink,
    ) -> Result<Status, SessionError> {
        let id = self.next_id().await?;
        let asked = ToAgent::Files(Box::new(AskFiles { id, nonce, query }));
        self.attend(asked, id, nonce, false, ExecIo { stdin: None, sink, control: None }).await
    }

    async fn next_id(&mut self) -> Result<ExecId, SessionError> {
        self.kill_running().await?;
        let id = self.next_exec;
        self.next_exec += 1;
        Ok(id)
    }

    /// Has something run and takes what it says, until its end.
    async fn attend(
        &mut self,
        what: ToAgent,
        id: ExecId,
        nonce: Nonce,
        takes_stdin: bool,
        io: ExecIo<'_>,
    ) -> Result<Status, SessionError> {
        let ExecIo { stdin, sink, mut control } = io;
        self.running = Some(id);
        self.send(&what).await?;
        let (window, at_once) = self.link.stdin_window();
        let mut input =
            Input { source: stdin.filter(|_| takes_stdin), credit: window, waiting: None, window, chunk: Vec::new() };
        if input.source.is_some() {
            input.chunk = vec![0; at_once];
        } else if takes_stdin {
            self.send(&ToAgent::StdinEof(id)).await?;
        }

        let mut pulse = Pulse::new(self.liveness.silent_after);
        loop {
            let has_waiting = input.waiting.is_some();
            let has_control = control.is_some();
            let room = self.link.room();
            tokio::select! {
                frame = self.link.recv() => {
                    let ended = self.take_frame(frame?, id, nonce, sink, &mut input).await?;
                    // After the sink, however slow it was: that time is not the guest's silence.
                    pulse.heard();
                    if let Some(status) = ended {
                        self.running = None;
                        return Ok(status);
                    }
                }
                room = room, if has_waiting => {
                    if let Some(frames) = input.waiting.take() {
                        room?.send(frames);
                    }
                }
                read = input.next() => {
                    let read = read.map_err(SessionError::Stdin)?;
                    if read == 0 {
                        input.source = None;
                        input.waiting = Some(self.link.encode(&ToAgent::StdinEof(id))?);
                    } else {
                        input.credit -= read;
                        input.waiting = Some(self.link.stdin(id, &input.chunk[..read]));
                    }
                }
                asked = next_control(&mut control), if has_control => match asked {
                    Some(ExecControl::Signal(signal)) => {
                        self.send(&ToAgent::Signal { id, signal }).await?;
                    }
                    Some(ExecControl::Resize(size)) => {
                        self.send(&ToAgent::Resize { id, size }).await?;
                    }
                    None => control = None,
                },
                () = pulse.tick() => {
                    pulse.check("the command's end", self.link.reports())?;
                    self.link.ping();
                }
            }
        }
    }

    /// Kills the command that an earlier caller started and gave up on, if there is one, with all of its process group.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn kill_running(&mut self) -> Result<(), SessionError> {
        const SIGKILL: i32 = 9;
        if let Some(id) = self.running.take() {
            self.abandoned.push(id);
            self.send(&ToAgent::Signal { id, signal: SIGKILL }).await?;
        }
        Ok(())
    }

    /// Takes one frame while command `id` runs; gives its status with the last.
    async fn take_frame(
        &mut self,
        frame: Frame,
        id: ExecId,
        nonce: Nonce,
        sink: &mut dyn OutputSink,
        input: &mut Input<'_>,
    ) -> Result<Option<Status>, SessionError> {
        let Some(message) = self.link.message(&frame)? else {
            match frame.kind {
                Kind::Part => {}
                _ if self.abandoned.contains(&frame.exec) => {}
                kind if frame.exec != id => {
                    return Err(SessionError::UnknownExec { id: frame.exec, what: format!("{kind:?} bytes") });
                }
                Kind::Stderr => sink.stderr(&frame.payload).await.map_err(SessionError::Sink)?,
                _ => sink.stdout(&frame.payload).await.map_err(SessionError::Sink)?,
            }
            return Ok(None);
        };
        match message {
            ToHost::Started { id: of, pid } if of == id => sink.started(pid),
            ToHost::ExecFailed { id: of, what, errno } if of == id => {
                self.running = None;
                return Err(SessionError::ExecFailed { what: clean(&what), errno });
            }
            ToHost::Lingers(of) if of == id => sink.lingers(),
            ToHost::Exited { id: of, nonce: of_attempt, status, output } if of == id => {
                self.running = None;
                if of_attempt != nonce {
                    return Err(SessionError::WrongNonce { id });
                }
                if output != OutputEnd::Whole {
                    sink.left_open(output);
                }
                return Ok(Some(status));
            }
            ToHost::StdinCredit { id: of, bytes } if of == id => {
                input.credit += bytes as usize;
                if input.credit > input.window {
                    return Err(SessionError::Protocol {
                        what: format!("room for {} bytes of standard input, more than there is", input.credit),
                    });
                }
            }
            ToHost::StdinClosed(of) if of == id => {
                input.source = None;
                input.waiting = None;
            }
            other => self.housekeeping(other)?,
        }
        Ok(None)
    }
}

async fn next_control(control: &mut Option<&mut tokio::sync::mpsc::Receiver<ExecControl>>) -> Option<ExecControl> {
    match control {
        Some(control) => control.recv().await,
        None => std::future::pending().await,
    }
}
