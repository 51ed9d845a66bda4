//! One maker at a time of what is made of an image: who comes second waits, and finds it made.
//!
//! A file in the cache is locked by who makes, so that the kernel unlocks it whatever ends the maker. It goes when the maker is done; one that a killed maker
//! left is locked by nobody, and the next takes it over.

use std::{
    fs::{File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;

use crate::{Cause, Lost, for_people};

/// How long somebody else's making is waited for. It is more than an engine may take to write an image.
const LIMIT: Duration = Duration::from_secs(2400);
/// How often is looked whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// The right to make something, until it is dropped.
#[derive(Debug)]
pub(crate) struct Making {
    /// None where nobody can lock anything.
    lock: Option<(File, PathBuf)>,
    /// How long somebody else's making was waited for.
    pub(crate) waited: Option<Duration>,
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.lock {
            // Still locked, so that nobody else's is removed.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Waits until nobody else makes what is called `key` in the cache. `what` is that for a person.
pub(crate) async fn alone(cache: &Path, key: &str, what: &str) -> Result<Making, Lost> {
    alone_within(cache, key, what, LIMIT).await
}

async fn alone_within(cache: &Path, key: &str, what: &str, limit: Duration) -> Result<Making, Lost> {
    let path = cache.join(format!("belljar-making-{key}"));
    let begun = tokio::time::Instant::now();
    let mut waited = None;
    loop {
        match try_lock(&path) {
            Ok(Some(file)) => return Ok(Making { lock: Some((file, path)), waited }),
            Ok(None) => {}
            // Then nothing can be kept there, either.
            Err(_) => return Ok(Making { lock: None, waited }),
        }
        if begun.elapsed() >= limit {
            let said = format!(
                "another belljar ({}) has been making {what} for {}: see what keeps it, or end it. It holds the lock {}",
                holder(&path),
                for_people(limit),
                path.display()
            );
            return Err(Lost::from(Cause::Description(said)).lasting());
        }
        tokio::time::sleep(LOOK).await;
        waited = Some(begun.elapsed());
    }
}

/// The lock; none if somebody has it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    if let Some(dir) = path.parent() {
        fs_err::create_dir_all(dir)?;
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let mut file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Who had it may have removed it meanwhile, and others lock another one.
    let (ours, there) = (file.metadata()?, std::fs::symlink_metadata(path));
    if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
        return Ok(None);
    }
    file.set_len(0)?;
    write!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

/// Who has the lock, for a person.
fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(20).read_to_string(&mut text));
    let pid = read.ok().and_then(|_| text.parse::<u32>().ok());
    pid.map_or_else(|| "it is not known which".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_second_waits_and_is_told_for_whom() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let first = alone(&cache, "k", "the root of box").await.unwrap();
        assert_eq!(first.waited, None);
        let other = alone(&cache, "other", "the root of another").await.unwrap();
        assert_eq!(other.waited, None);
        let lost = alone_within(&cache, "k", "the root of box", Duration::from_secs(3)).await.unwrap_err();
        let said = lost.cause.to_string();
        let pid = std::process::id().to_string();
        assert!(said.contains("has been making the root of box") && said.contains(&pid), "{said}");
        let second = alone(&cache, "k", "the root of box");
        let (second, ()) = tokio::join!(second, async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(first);
        });
        assert!(second.as_ref().unwrap().waited.is_some_and(|waited| waited.as_secs() == 5));
        drop((second, other));
        assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0, "no lock is left");
        // What a killed maker left is locked by nobody.
        std::fs::write(cache.join("belljar-making-k"), "1").unwrap();
        assert_eq!(alone(&cache, "k", "").await.unwrap().waited, None);
        // Where there can be no lock, there is none.
        assert!(alone(Path::new("/dev/null/x"), "k", "").await.unwrap().lock.is_none());
    }
}
