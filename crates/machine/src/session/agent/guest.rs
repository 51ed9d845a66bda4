//! What a guest needs of the agent.

use std::{io, sync::Arc};

use belljar_model::{CrashKind, Exit, Phase};
use belljar_proto::{
    files::FileQuery,
    message::{Exec, Leftovers, Nonce, ShutdownHow, Status, Stdio, SyncReport},
};

use super::{AgentSession, ExecIo, OutputSink, PortKind, Reports, SessionError, SinkFuture};
use crate::{
    Cause, Lost,
    boot::{self, Entered},
    command::GuestCommand,
    guest::Io,
    session::{Answer, Session},
    template::Frozen,
};

impl Session for AgentSession {
    fn mounted_by(&self) -> Option<&'static str> {
        Some("the agent")
    }

    fn reports(&self) -> Option<Arc<Reports>> {
        Some(self.reports())
    }

    fn wants_whole_stdin(&self) -> bool {
        false
    }

    fn exec<'a>(&'a mut self, command: GuestCommand, io: &'a mut Io<'_>) -> Answer<'a, Exit> {
        Box::pin(async move {
            let stdio = match (&command.terminal, io.stdin.is_some()) {
                (Some(terminal), _) => Stdio::Pty { size: terminal.size, term: terminal.term.clone() },
                (None, true) => Stdio::Pipes,
                (None, false) => Stdio::PipesNoStdin,
            };
            let exec = Exec {
                // The session gives the number.
                id: 0,
                nonce: nonce()?,
                argv: command.argv,
                env: command.env,
                clear_env: false,
                cwd: command.cwd,
                user: command.user,
                stdio,
                guards: crate::watch::guards::of_agent(command.guards.as_ref()),
            };
            let io = ExecIo {
                stdin: io.stdin.as_deref_mut().map(|s| s as _),
                sink: &mut *io.sink,
                control: io.control.as_mut(),
            };
            let status = self.exec(exec, io).await.map_err(|e| of_session(e, Phase::Command))?;
            Ok(match status {
                Status::Code(code) => Exit::Code(code),
                Status::Signal { signal, core } => Exit::Signal { number: signal, core },
            })
        })
    }

    fn take_notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    fn kill_running(&mut self) -> Answer<'_, ()> {
        Box::pin(async { self.kill_running().await.map_err(|e| of_session(e, Phase::Command)) })
    }

    fn files<'a>(&'a mut self, query: FileQuery, sink: &'a mut dyn OutputSink) -> Answer<'a, bool> {
        Box::pin(async move {
            let answered = self.files(query, nonce()?, sink).await;
            match answered.map_err(|e| of_session(e, Phase::Command))? {
                Status::Code(0) => Ok(true),
                status => Err(Cause::Answer(format!(
                    "the agent could not say which files the test left: its process ended with {status:?}"
                ))
                .into()),
            }
        })
    }

    fn check(&mut self) -> Answer<'_, ()> {
        Box::pin(async {
            self.set_clock(boot::now_ns()).await.map_err(|e| of_session(e, Phase::Session))?;
            self.ping().await.map_err(|e| of_session(e, Phase::Session))
        })
    }

    fn warm_up(&mut self) -> Answer<'_, ()> {
        Box::pin(async {
            let argv = ["/bin/sh", "-c", ":"].map(|word| word.as_bytes().to_vec()).to_vec();
            let exec = Exec {
                id: 0,
                nonce: nonce()?,
                argv,
                env: Vec::new(),
                clear_env: false,
                cwd: None,
                user: None,
                stdio: Stdio::PipesNoStdin,
                guards: None,
            };
            match self.exec(exec, ExecIo { stdin: None, sink: &mut Nowhere, control: None }).await {
                // A guest without a shell is as warm as it can be.
                Ok(_) | Err(SessionError::ExecFailed { .. }) => Ok(()),
                Err(error) => Err(of_session(error, Phase::Session)),
            }
        })
    }

    fn keep_processes(&mut self) -> Answer<'_, ()> {
        Box::pin(async { self.keep_processes().await.map_err(|e| of_session(e, Phase::Session)) })
    }

    fn renew(&mut self) -> Answer<'_, Leftovers> {
        Box::pin(async { self.renew().await.map_err(|e| of_session(e, Phase::Session)) })
    }

    fn sync(&mut self) -> Answer<'_, SyncReport> {
        Box::pin(async { self.sync().await.map_err(|e| of_session(e, Phase::Close)) })
    }

    fn make_directories(&mut self, paths: Vec<String>) -> Answer<'_, ()> {
        Box::pin(async { self.make_directories(paths).await.map_err(|e| of_session(e, Phase::Command)) })
    }

    fn power_off(&mut self) -> Answer<'_, ()> {
        Box::pin(async { self.end(ShutdownHow::PowerOff, Phase::Close).await })
    }

    fn reboot(&mut self) -> Answer<'_, ()> {
        Box::pin(async { self.end(ShutdownHow::Reboot, Phase::Command).await })
    }

    fn agent(&mut self) -> Option<&mut AgentSession> {
        Some(self)
    }

    fn into_entered(self: Box<Self>, frozen: &Frozen) -> Entered {
        let port = if *frozen == Frozen::AgentOnSerial { PortKind::Serial } else { PortKind::Virtio };
        Entered::Agent { session: self, port }
    }
}

impl AgentSession {
    /// Has the guest end, where that cannot be refused.
    async fn end(&mut self, how: ShutdownHow, phase: Phase) -> Result<(), Lost> {
        match self.shutdown(how).await.map_err(|e| of_session(e, phase))? {
            Ok(()) => Ok(()),
            Err(why) => Err(Cause::Session(format!("the agent does not end the guest: {why}")).into()),
        }
    }
}

fn nonce() -> Result<Nonce, Lost> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| Cause::NoRandom(e.to_string()))?;
    Ok(Nonce(nonce))
}

/// Takes what nobody wants to read.
struct Nowhere;

impl OutputSink for Nowhere {
    fn stdout<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What a failure of the session says about the guest.
pub(crate) fn of_session(error: SessionError, phase: Phase) -> Lost {
    match error {
        SessionError::ExecFailed { errno, .. } => Cause::NotStarted { errno, why: error.to_string() }.into(),
        SessionError::Sink(source) if source.kind() == io::ErrorKind::BrokenPipe => Cause::OutputClosed.into(),
        SessionError::Sink(_) | SessionError::Stdin(_) | SessionError::Random(_) | SessionError::Version { .. } => {
            Cause::Session(error.to_string()).into()
        }
        SessionError::Closed { .. }
        | SessionError::Port { .. }
        | SessionError::Garbage(_)
        | SessionError::Message(_)
        | SessionError::WrongSession
        | SessionError::Restarted
        | SessionError::WrongNonce { .. }
        | SessionError::UnknownExec { .. }
        | SessionError::Protocol { .. }
        | SessionError::Silent { .. }
        | SessionError::AgentFatal { .. } => Lost::crash(CrashKind::Silent, error.to_string(), phase),
    }
}
