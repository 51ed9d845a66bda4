//! Templates: guests that were booted once and frozen.

use std::path::PathBuf;

/// Where templates are kept.
#[derive(Clone, Debug)]
pub struct TemplateStore {
    /// Made when it is needed.
    pub dir: PathBuf,
    /// Bytes that all of them may take.
    pub limit: u64,
}

impl TemplateStore {
    /// `dir` is made when it is needed; the least recently used templates go when all take more than `limit` bytes.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, limit: u64) -> Self {
        Self { dir: dir.into(), limit }
    }
}
