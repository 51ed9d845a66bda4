//! What carried a guest's shares in the end, and how that is told.

use belljar_model::EventKind;

use super::Kind;
use crate::{plan::Plan, session::Session, share};

/// How the host's directories got into the guest; none if none did.
pub(crate) fn share_choice(plan: &Plan, session: &dyn Session, carried: Option<Carried>) -> Option<EventKind> {
    let workspace = plan.share.workspace.as_ref().map(|w| format!("the workspace at {} ({})", w.mount_at, w.mode));
    let by = session.mounted_by()?;
    if plan.exchange().is_empty() {
        return Some(no_share("none was asked for"));
    }
    let Carried { kind, lacking, places, .. } = carried?;
    let mounted = workspace.into_iter().chain([format!("the output directory at {}", share::OUT_PATH)]);
    let mounted = mounted.collect::<Vec<_>>().join(" and ");
    let mut why = format!("{by} mounted {mounted}");
    for (other, lacking) in plan.exchange().iter().zip(lacking) {
        why.push_str(&format!("; the guest's kernel has no {} ({lacking})", other.what));
    }
    for place in places {
        why.push_str(&format!("; {place}"));
    }
    Some(EventKind::Choice { what: "share".into(), chosen: kind.name.into(), why })
}

/// What carries a guest's shares.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) kind: &'static Kind,
    /// Why those that come before it in [`Plan::exchange`] do not.
    pub(crate) lacking: Vec<String>,
    /// The ports through which it does, by their ids.
    pub(crate) ports: Vec<String>,
    /// Where the guest has its copies, where it has copies.
    pub(crate) places: Vec<String>,
}

/// That nothing of the host's is in the guest, which nobody asked for.
pub(crate) fn no_share(why: &str) -> EventKind {
    EventKind::Choice { what: "share".into(), chosen: "none".into(), why: format!("{why}; {}", share::OUT_IS_LOST) }
}
