use super::*;
use crate::console::{Console, Patience};

pub(crate) mod pty;
mod real_shells;
mod scripted;

fn patience(seconds: u64) -> Patience {
    Patience::new(Duration::from_secs(seconds))
}

pub(crate) fn quick() -> AccessOptions {
    // Some of these guests are this host.
    AccessOptions { rest: Duration::from_millis(400), calm: false, ..AccessOptions::default() }
}

fn login(user: &str, password: Option<&str>) -> AccessOptions {
    let credentials = Credentials { user: user.into(), password: password.map(Secret::new) };
    AccessOptions { credentials: Some(credentials), ..quick() }
}

/// Climbs and collects the events.
async fn climb_with(
    console: &mut Console,
    options: &AccessOptions,
    seconds: u64,
) -> (Result<Shell, AccessError>, Vec<AccessEvent>) {
    let mut events = Vec::new();
    let result = climb(console, options, &mut patience(seconds), &mut |e| events.push(e)).await;
    (result, events)
}

#[test]
fn every_sight_has_a_rule() {
    for sight in [
        Sight::Login,
        Sight::Password,
        Sight::NewPassword,
        Sight::Activate,
        Sight::Prompt,
        Sight::Maintenance,
        Sight::Question,
        Sight::Covered,
        Sight::Text,
        Sight::Blank,
    ] {
        let rules = LADDER.iter().flat_map(|r| r.rules).filter(|(s, _)| *s == sight).count();
        assert_eq!(rules, 1, "{sight:?}");
    }
}
