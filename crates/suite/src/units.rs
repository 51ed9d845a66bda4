//! Durations as people write them.

use std::time::Duration;

/// Longest duration that makes sense; more is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Reads a duration such as `90s`, `5m` or `1h 30m`; it may be zero.
///
/// # Errors
///
/// Says what a duration looks like.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = "not a duration; write a number and a unit, such as \"90s\", \"5m\" or \"1h 30m\"";
    let duration = humantime::parse_duration(text).map_err(|_| hint.to_owned())?;
    if duration > LONGEST { Err("more than a year".into()) } else { Ok(duration) }
}

/// Reads a duration above zero.
///
/// # Errors
///
/// As [`duration`], and for zero.
pub fn time_limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("no time at all; write a duration above zero, or leave the key out".into()),
        duration => Ok(duration),
    }
}

/// Serialises durations as milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::Serializer;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(time_limit("0s").is_err());
        for wrong in ["", "5", "5 parsecs", "-1s", "2years", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,20}|[0-9. ]{0,24}[a-zA-Z]{0,3}") {
            let _ = (duration(&text), time_limit(&text));
        }
    }
}
