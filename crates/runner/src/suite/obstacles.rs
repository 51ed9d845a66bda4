//! What is missing for a plan's guests, before anything runs.

use belljar_guest_spec::Surroundings;
use belljar_machine::backend::Backends;
use belljar_suite::plan::{Machine, Plan, Unit};

use crate::schedule::resources::{self, Memory, no_room_for};

/// What each of the plan's units wants that its guests never have, for which it is skipped.
#[must_use]
pub fn lacks(plan: &Plan, backends: &Backends) -> Vec<Option<String>> {
    let of = |unit: &Unit| {
        let machine = plan.machines.get(unit.machine)?;
        let source = &machine.guest.spec.source;
        backends.of(source).ok()?.lacks(source, &machine.hardware, &unit.settings.needs)
    };
    plan.units.iter().map(of).collect()
}

/// What keeps each of the plan's machines from running, as far as a look at the host tells, with how to mend it.
#[must_use]
pub fn obstacles(plan: &Plan, max_memory: Option<u64>, around: &Surroundings, backends: &Backends) -> Vec<Vec<String>> {
    let host = Memory::of_host();
    let of = |(machine, footprint): (&Machine, _)| {
        let mut found: Vec<String> = no_room_for(footprint, max_memory, host).into_iter().collect();
        match (machine.spec(around), backends.of(&machine.guest.spec.source)) {
            (Ok(spec), Ok(backend)) => found.extend(backend.obstacles(&spec)),
            (Ok(_), Err(lost)) => found.push(lost.to_string()),
            (Err(why), _) => found.push(why),
        }
        found
    };
    plan.machines.iter().zip(&resources::of_machines(plan, backends)).map(of).collect()
}
