//! JUnit files of a test, wherever they were found.

use std::path::PathBuf;

use belljar_formats::{Results, junit};

use crate::output::clean_results;

/// JUnit files that a test left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// What is in the files.
    pub(crate) results: Results,
    /// Their paths, relative to where they were found.
    pub(crate) paths: Vec<PathBuf>,
}

/// Reads a document; what is wrong with it names it.
pub(crate) fn junit_of(document: &[u8], name: &str) -> Results {
    let mut results = clean_results(junit::parse_junit(document));
    for problem in &mut results.problems {
        *problem = format!("{name}: {problem}");
    }
    results
}
