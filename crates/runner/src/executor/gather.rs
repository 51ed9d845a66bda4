//! The JUnit files of a test, brought together: those in its output directory, which the host reads, and those that only the guest can
//! tell of.

use std::path::Path;

use belljar_formats::Results;
use belljar_machine::{Cause, Lost, guest::Guest};
use belljar_model::EventKind;
use belljar_suite::{config::Format, glob::Pattern, plan::Unit};

use super::{
    collect::{self, Seen},
    files,
    junit::Left,
};
use crate::cancel::Cancel;

/// JUnit files where a test does not say which.
const ANY_JUNIT: &[&str] = &["*.xml", "**/*.xml"];
/// JUnit files from the workspace, in the directory of the try.
const FROM_WORKSPACE: &str = "from-workspace";

/// Without an agent nobody in the guest can be believed to look for files.
pub(crate) const NO_AGENT: &str =
    "this guest has no agent, only a shell: JUnit files count only in $BELLJAR_OUT, and its workspace is not looked at";
const NO_AGENT_HINT: &str = "; its workspace was not looked at, since this guest has no agent: write to $BELLJAR_OUT";

/// JUnit files that only the guest can tell of.
pub(crate) struct Gathered {
    workspace: Left,
    /// Those in the output directory that are behind symbolic links.
    out: Left,
}

/// Has the agent look for JUnit files where the host cannot: in the workspace, and behind the links in the output directory.
#[expect(clippy::too_many_arguments, reason = "two places, each of which has two sides")]
pub(crate) async fn gather(
    guest: &mut dyn Guest,
    workspace: collect::SearchRoot<'_>,
    before: &Seen,
    out: collect::SearchRoot<'_>,
    out_here: &Path,
    keep: &Path,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Gathered, Lost> {
    let gone = || Cause::Answer("the agent that looked for files before the test does not look after it".into());
    let keep = keep.join(FROM_WORKSPACE);
    let seen = collect::look(guest, workspace, cancel, observe).await?.ok_or_else(gone)?;
    let workspace = seen.since(before, guest, workspace, &keep, cancel, observe).await?;
    let here = files::walk(out_here);
    let mut behind = Left::default();
    if here.has_links() {
        let mut seen = collect::look(guest, out, cancel, observe).await?.ok_or_else(gone)?;
        seen.forget(&here);
        behind = seen.since(&Seen::default(), guest, out, &keep.join("out"), cancel, observe).await?;
    }
    Ok(Gathered { workspace, out: behind })
}

pub(crate) fn junit_patterns(unit: &Unit) -> Vec<Pattern> {
    let patterns: Vec<&str> = if !unit.settings.junit.is_empty() {
        unit.settings.junit.iter().map(String::as_str).collect()
    } else if unit.settings.format == Format::Junit {
        ANY_JUNIT.to_vec()
    } else {
        Vec::new()
    };
    // They were checked with the configuration.
    patterns.into_iter().filter_map(|p| Pattern::new(p).ok()).collect()
}

/// The JUnit files of the test: those in its output directory, and those that it left in the workspace.
pub(crate) fn junit_results(unit: &Unit, out: &Path, gathered: Option<Gathered>) -> Option<Results> {
    let patterns = junit_patterns(unit);
    if patterns.is_empty() {
        return None;
    }
    let has_agent = gathered.is_some();
    let Gathered { workspace, out: behind } =
        gathered.unwrap_or_else(|| Gathered { workspace: Left::default(), out: Left::default() });
    let mut left = files::junit(out, &patterns, &behind.paths);
    for more in [behind, workspace] {
        left.results.extend(more.results);
        left.paths.extend(more.paths);
    }
    let unmatched = |p: &&Pattern| !left.paths.iter().any(|path| p.matches(path));
    let missing: Vec<&str> = patterns.iter().filter(unmatched).map(Pattern::text).collect();
    let where_ = if has_agent { "in $BELLJAR_OUT, nor a new one in the workspace" } else { "in $BELLJAR_OUT" };
    let hint = if has_agent { "" } else { NO_AGENT_HINT };
    if !unit.settings.junit.is_empty() && !missing.is_empty() {
        let missing = missing.join("`, `");
        left.results.absent = Some(format!("no file matches `{missing}` (`junit`): the test left none {where_}{hint}"));
    } else if left.paths.is_empty() {
        left.results.absent = Some(format!("the test left no JUnit file {where_} (see `junit`){hint}"));
    }
    Some(left.results)
}
