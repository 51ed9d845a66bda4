//! stub
use crate::{Lost, access::Shell, command::GuestCommand, guest::Io};
use belljar_model::Exit;
pub struct Exchange {
    pub host: std::path::PathBuf,
    pub guest: String,
}
#[derive(Debug)]
pub struct ConsoleSession;
impl ConsoleSession {
    pub fn new(_s: Shell, _e: Option<Exchange>, _f: f64) -> Self {
        Self
    }
    pub async fn exec(&mut self, _c: GuestCommand, _io: &mut Io<'_>) -> Result<Exit, Lost> {
        Err(Lost::host("stub"))
    }
    pub async fn kill_running(&mut self) -> Result<(), Lost> {
        Ok(())
    }
    pub async fn sync(&mut self) -> Result<Option<String>, Lost> {
        Ok(None)
    }
    pub async fn power_off(&mut self) -> Result<(), Lost> {
        Ok(())
    }
}
