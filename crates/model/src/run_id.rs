//! The name of a run.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Names one run: `20261122T230638Z-1a2b3c4d`. Sorts by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// Makes an id from the time at which the run began and 32 random bits.
    #[must_use]
    pub fn new(at: Timestamp, random: u32) -> Self {
        Self(format!("{}-{random:08x}", at.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The id as text; safe as a file name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_by_time() {
        let early = RunId::new("2026-01-02T03:04:05Z".parse().unwrap(), 0xffff_ffff);
        let late = RunId::new("2026-01-02T03:04:06Z".parse().unwrap(), 0);
        assert_eq!(early.as_str(), "20260102T030405Z-ffffffff");
        assert!(early < late);
    }
}
