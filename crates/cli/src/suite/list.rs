//! `belljar list`.

use std::path::Path;

use belljar_guest_spec::Surroundings;
use belljar_model::exit_code;
use belljar_runner::suite::{self, Cases};
use belljar_suite::plan::{Listing, Plan};

use super::{Refused, args::ListArgs, chosen::Chosen};
use crate::{complain_note, guest, settings, template, write_out};

/// The plan for showing, with what keeps its machines from running here, and which tests are skipped for what their guests are.
pub(super) fn listing<'a>(
    plan: &'a Plan,
    chosen: &Chosen,
    (qemu, engine): (Option<&Path>, Option<&Path>),
) -> Result<Listing<'a>, Refused> {
    let backends = settings::backends(qemu, engine, None, template::unused()?)?;
    let obstacles = suite::obstacles(plan, chosen.profile.max_memory, &surroundings(plan), &backends);
    Ok(plan.listing().with_obstacles(obstacles).with_lacks(suite::lacks(plan, &backends)))
}

/// What of the environment the plan's guests depend on.
pub(super) fn surroundings(plan: &Plan) -> Surroundings {
    guest::surroundings(plan.machines.iter().map(|machine| &machine.guest.spec))
}

/// Says what would run where, and why not.
pub(crate) fn list(args: &ListArgs) -> Result<u8, Refused> {
    let chosen = Chosen::new(&args.suite)?;
    let plan = chosen.plan(&Cases::new(), 1);
    for note in chosen.discovery.notes.iter().chain(plan.notes.iter()) {
        complain_note(&note.to_string());
    }
    let listing = listing(&plan, &chosen, (args.qemu.as_deref(), args.engine.as_deref()))?;
    let text = if args.json {
        serde_json::to_string_pretty(&listing).map_err(|e| format!("cannot write the listing as JSON: {e}"))? + "\n"
    } else {
        listing.human(args.verbose)
    };
    write_out(text.as_bytes())?;
    if plan.units.is_empty() && plan.skipped.iter().all(|s| !s.reason.is_verdict()) {
        if chosen.nothing_to_rerun() {
            return Ok(exit_code::OK);
        }
        return Err(Refused { message: chosen.why_none(&plan), code: exit_code::NO_TESTS });
    }
    Ok(exit_code::OK)
}
