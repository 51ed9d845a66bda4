//! The variables of a command in a guest.

use belljar_machine::share::OUT_PATH;
use belljar_model::AttemptId;
use belljar_suite::plan::Unit;

/// A command's variables: the user's, and where it is. A test has an attempt, and the guest's path of its output directory; a set-up
/// script has neither.
pub(crate) fn environment(unit: &Unit, attempt: Option<(&AttemptId, &str)>) -> Vec<Vec<u8>> {
    let mut vars: Vec<String> = unit.settings.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let out = attempt.map_or(OUT_PATH, |(_, out)| out);
    vars.push(format!("BELLJAR_OUT={out}"));
    vars.push(format!("BELLJAR_WORKSPACE={}", unit.guest.spec.mount_at));
    vars.push(format!("BELLJAR_SUITE={}", unit.suite.name));
    vars.push(format!("BELLJAR_GUEST={}", unit.guest.name));
    if let Some((id, _)) = attempt {
        vars.push(format!("BELLJAR_TEST={}", unit.test));
        vars.push(format!("BELLJAR_ATTEMPT={}", id.attempt));
    }
    vars.into_iter().map(String::into_bytes).collect()
}
