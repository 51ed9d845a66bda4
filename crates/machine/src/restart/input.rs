//! The standard input of a command.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// Most bytes that are read while there is nobody in the guest who takes them.
const MOST_AHEAD: usize = 4096;

/// Standard input that tells whether it has come to its end, and can be read ahead.
pub(crate) struct Input<'a> {
    inner: &'a mut (dyn AsyncRead + Unpin + Send),
    ended: Arc<AtomicBool>,
    ahead: Vec<u8>,
}

impl<'a> Input<'a> {
    /// `ended` is set when it has come to its end.
    pub(crate) fn new(inner: &'a mut (dyn AsyncRead + Unpin + Send), ended: Arc<AtomicBool>) -> Self {
        Self { inner, ended, ahead: Vec::new() }
    }

    /// Reads what comes while the machine is down, for the command that is started then: so a person who types is heard, and what ends Belljar itself is
    /// seen. Never comes back.
    pub(crate) async fn read_ahead(&mut self) {
        let mut bytes = [0; 256];
        while self.ahead.len() < MOST_AHEAD {
            match self.inner.read(&mut bytes).await {
                Ok(0) => {
                    self.ended.store(true, Ordering::Relaxed);
                    break;
                }
                Ok(read) => self.ahead.extend_from_slice(&bytes[..read]),
                // Who reads it next is told.
                Err(_) => break,
            }
        }
        std::future::pending::<()>().await;
    }
}

impl AsyncRead for Input<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let taken = self.ahead.len().min(into.remaining());
            into.put_slice(&self.ahead[..taken]);
            self.ahead.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut *self.inner).poll_read(cx, into);
        if polled.is_ready() && into.filled().len() == before {
            self.ended.store(true, Ordering::Relaxed);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_typed_meanwhile_comes_first() {
        let (mut keyboard, mut theirs) = tokio::io::duplex(64);
        let ended = Arc::new(AtomicBool::new(false));
        let mut input = Input::new(&mut theirs, ended.clone());
        tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"ahead").await.unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), input.read_ahead()).await.is_err());
        tokio::io::AsyncWriteExt::write_all(&mut keyboard, b" and after").await.unwrap();
        drop(keyboard);
        let mut all = String::new();
        assert!(!ended.load(Ordering::Relaxed));
        input.read_to_string(&mut all).await.unwrap();
        assert_eq!((all.as_str(), ended.load(Ordering::Relaxed)), ("ahead and after", true));
    }
}
