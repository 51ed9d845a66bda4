//! In which order units start: by priority, then the longest first, so that no long one is left over at the end, else as found.
//!
//! What was never timed comes first, for it may be long.

use std::{cmp::Reverse, time::Duration};

use super::{Candidate, Cell, Group};

/// Orders cells and lays their units out in one row. Units that share a guest are in the order of their priority, else as found: how long each takes changes
/// nothing there.
pub(super) fn order(mut groups: Vec<Group>) -> (Vec<Candidate>, Vec<Cell>) {
    for group in &mut groups {
        group.units.sort_by_key(|candidate| Reverse(candidate.unit.settings.priority));
    }
    // Stable, and computed once for each.
    groups.sort_by_cached_key(|group| {
        let units = || group.units.iter().map(|c| &c.unit);
        let priority = units().map(|u| u.settings.priority).max();
        let whole = units().try_fold(Duration::ZERO, |sum, u| Some(sum.saturating_add(u.recorded?)));
        (Reverse(priority), Reverse(whole.unwrap_or(Duration::MAX)))
    });
    let mut row = Vec::new();
    let cells = groups
        .into_iter()
        .map(|group| {
            let start = row.len();
            row.extend(group.units);
            Cell { id: group.id, units: start..row.len(), shared: group.shared }
        })
        .collect();
    (row, cells)
}
