//! What is told of a guest that nobody gets into.

use belljar_guest_spec::Word;
use belljar_model::Phase;

use crate::{
    Cause, Lost,
    access::rungs,
    plan::{AgentPlace, Plan},
    plan_direct::WayBack,
};

/// The loss of a guest of an image that was not got into, with what was tried, and what was not.
pub(super) fn with_ways(plan: &Plan, lost: Lost) -> Lost {
    let is_about_access =
        matches!(lost.cause, Cause::Timeout { phase: Phase::Boot | Phase::Access, .. } | Cause::Access(_));
    if !is_about_access || plan.agent != AgentPlace::ControlShare {
        return lost;
    }
    let tried: Vec<_> = plan.rungs.iter().map(|rung| rung.name).collect();
    let others = rungs::LADDER.iter().filter(|rung| rung.agent.is_some() && !rung.is_init);
    let others = others.filter(|other| plan.rungs.iter().all(|tried| tried.word != other.word));
    let mut others: Vec<_> = others.map(|rung| rung.word.word()).collect();
    // One word stands for what suits a disk image and for what suits a container's.
    others.dedup();
    let mut said = format!("ways in that were tried: {}", tried.join(", "));
    said.push_str(&format!("; others, to be asked for with --access: {}", others.join(", ")));
    if plan.login.is_none() && plan.rungs.iter().any(|rung| !rung.rules.is_empty()) {
        said.push_str("; or give a --login");
    }
    if let WayBack::NoGrub(why) = &plan.way_back {
        said.push_str(&format!(
            "; what is in it could be started by a GRUB of Belljar's own, which reads more than Belljar does, but: {why}"
        ));
    }
    let lost = lost.and_advice(format!("{said}. `belljar doctor IMAGE` tells what the image is"));
    Lost { no_way_in: true, ..lost }
}
