//! What is missing for a plan's guests, before anything runs.

use belljar_guest_spec::Surroundings;
use belljar_machine::plan::Lookup;
use belljar_suite::plan::{Machine, Plan};

use crate::schedule::resources::{Memory, no_room_for};

/// What keeps each of the plan's machines from running, as far as a look at the host tells, with how to mend it.
#[must_use]
pub fn obstacles(plan: &Plan, max_memory: Option<u64>, around: &Surroundings, lookup: Lookup<'_>) -> Vec<Vec<String>> {
    let host = Memory::of_host();
    let of = |machine: &Machine| {
        let mut found: Vec<String> = no_room_for(machine.hardware.memory, max_memory, host).into_iter().collect();
        match machine.spec(around) {
            Ok(spec) => found.extend(belljar_machine::plan::obstacles(&spec, lookup)),
            Err(why) => found.push(why),
        }
        found
    };
    plan.machines.iter().map(of).collect()
}
