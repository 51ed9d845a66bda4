//! Sizes and durations as people write them.

use std::time::Duration;

use bytesize::ByteSize;

/// Longest duration that makes sense; more is a slip of the unit.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// The least memory that a guest can start in.
const LEAST_MEMORY: u64 = 64 << 20;

/// Reads a size such as `512M` or `2GiB` into bytes. A bare letter means a power of two, as QEMU has it.
///
/// # Errors
///
/// Says what a size looks like.
pub fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let normal = match trimmed.chars().last() {
        Some('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T') => format!("{trimmed}iB"),
        _ => trimmed.to_owned(),
    };
    let bytes = normal
        .parse::<ByteSize>()
        .map_err(|_| "not a size; write a number and a unit, such as \"512M\" or \"2GiB\"".to_owned())?
        .as_u64();
    match bytes {
        0 => Err("nothing; write a size above zero".into()),
        // What QEMU can count.
        b if b > i64::MAX as u64 => Err("more than any machine has".into()),
        b => Ok(b),
    }
}

/// Reads the memory of a guest into bytes, in whole mebibytes.
///
/// # Errors
///
/// As [`size`], and where it is too little for a guest.
pub fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < LEAST_MEMORY {
        return Err(format!("too little memory for a guest; give it at least {}", ByteSize(LEAST_MEMORY)));
    }
    // QEMU wants whole pages, and Linux is happiest with whole mebibytes.
    Ok(bytes.next_multiple_of(1 << 20))
}

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
    fn sizes() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size(" 1GiB"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert_eq!(size("4096"), Ok(4096));
        for wrong in ["", "G", "-1G", "1X", "one", "0", "1 G G", "99999999T", "inf", "NaN"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(memory("10M").unwrap_err().contains("at least 64.0 MiB"));
        assert_eq!(memory("100000001"), Ok(96 << 20));
    }

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
            let _ = (size(&text), memory(&text), duration(&text), time_limit(&text));
        }
    }
}
