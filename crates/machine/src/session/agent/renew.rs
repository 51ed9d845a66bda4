//! From one test to the next in a guest that both use: what the first one left is ended, then the agent becomes another process, and
//! only then the new session gets its tag.

use belljar_proto::frame::Encoder;
use belljar_proto::message::{DiskChange, DiskInUse, Leftovers, MAX_NAMED, ToAgent, ToHost, VERSION};

use super::AgentSession;
use super::connect::session_tag;
use super::error::{SessionError, clean};

/// What the new process has said.
enum Came {
    Announced,
    Ready,
}

impl AgentSession {
    /// What runs in the guest now belongs to it.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn keep_processes(&mut self) -> Result<(), SessionError> {
        self.ask_to_renew(false).await.map(drop)
    }

    /// Ends what was started since [`keep_processes`](Self::keep_processes), and goes on with a new process of the agent in a session of
    /// its own. Where something is left the guest is of no more use, nor is the session.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn renew(&mut self) -> Result<Leftovers, SessionError> {
        self.kill_running().await?;
        let new = session_tag()?;
        self.link.leave(new);
        let found = self.ask_to_renew(true).await?;
        if !found.left.is_empty() {
            return Ok(found);
        }
        self.greet(new).await?;
        self.running = None;
        self.abandoned.clear();
        Ok(found)
    }

    async fn ask_to_renew(&mut self, fresh: bool) -> Result<Leftovers, SessionError> {
        self.send(&ToAgent::Renew { fresh }).await?;
        let found = self
            .wait("the end of what an earlier test left", |message| match message {
                ToHost::Renewing(found) => Ok(*found),
                other => Err(other),
            })
            .await?;
        let words = |all: Vec<String>| -> Vec<String> { all.iter().take(MAX_NAMED).map(|text| clean(text)).collect() };
        let cleaned = |DiskInUse { device, serial, uses }: DiskInUse| DiskInUse {
            device: clean(&device),
            serial: clean(&serial),
            uses: words(uses),
        };
        let changed = |DiskChange { device, serial, change }: DiskChange| DiskChange {
            device: clean(&device),
            serial: clean(&serial),
            change: clean(&change),
        };
        Ok(Leftovers {
            killed: words(found.killed),
            stopped: words(found.stopped),
            gone: words(found.gone),
            left: words(found.left),
            disks: found.disks.into_iter().take(MAX_NAMED).map(cleaned).collect(),
            changed: found.changed.into_iter().take(MAX_NAMED).map(changed).collect(),
            kept: found.kept.into_iter().take(MAX_NAMED).map(cleaned).collect(),
            ..found
        })
    }

    /// Greets the new process, as often as it announces itself.
    async fn greet(&mut self, new: u64) -> Result<(), SessionError> {
        let mut entered = false;
        loop {
            let came = self
                .wait("the agent's new process", |message| match message {
                    ToHost::Announce(announce) if announce.version == VERSION => Ok(Came::Announced),
                    ToHost::Ready if entered => Ok(Came::Ready),
                    other => Err(other),
                })
                .await?;
            match came {
                Came::Ready => return Ok(()),
                Came::Announced => {
                    self.link.enter(new);
                    entered = true;
                    let mut hello = Vec::new();
                    Encoder::default()
                        .message(&ToAgent::Hello { version: VERSION, session: new }, &mut hello)
                        .map_err(SessionError::Message)?;
                    self.link.send(hello).await?;
                }
            }
        }
    }
}
