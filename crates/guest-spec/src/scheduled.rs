//! Orders that are given to a test's machine from outside, when it is time: `+5s disk data0 hang`, `mark:ready power-cut`.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};

use crate::{fault, machine_order::MachineOrder};

/// How the word begins that waits for a mark.
const MARK: &str = "mark:";
/// The longest order, in bytes, as in the guest.
const MAX_ORDER: usize = 900;
/// The latest time of an order.
const LATEST: Duration = Duration::from_secs(7 * 86400);
/// Most orders of one test.
pub const MAX_ORDERS: usize = 1000;

/// Something that is to happen to a test's devices or machine while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScheduledOrder {
    /// When.
    pub when: When,
    /// What, in the words of `belljar-ctl`.
    pub order: String,
}

/// When an order is given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// So long after the command has started.
    After(Duration),
    /// When the test sets this mark for the first time.
    Mark(String),
}

impl When {
    /// Reads `+5s`, or `mark:NAME`.
    ///
    /// # Errors
    /// Completes "… is ".
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix(MARK) {
            let name = name.trim();
            return if name.is_empty() {
                Err("no mark; write mark:NAME".to_owned())
            } else {
                Ok(Self::Mark(name.to_owned()))
            };
        }
        let time = text.trim().strip_prefix('+').unwrap_or(text);
        let time =
            humantime::parse_duration(time).map_err(|_| "no time for an order; write +5s, or mark:NAME".to_owned())?;
        if time > LATEST {
            Err("too late for an order: no test takes more than a week".to_owned())
        } else {
            Ok(Self::After(time))
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(time) => write!(f, "+{}", humantime::format_duration(*time).to_string().replace(' ', "")),
            Self::Mark(name) => write!(f, "{MARK}{name}"),
        }
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for ScheduledOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.when, self.order)
    }
}

impl ScheduledOrder {
    /// Reads `WHEN ORDER`.
    ///
    /// # Errors
    /// Completes "… is ".
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "no order with its time; write +5s ORDER, or mark:NAME ORDER".to_owned();
        let (when, order) = text.trim().split_once(char::is_whitespace).ok_or_else(wrong)?;
        Ok(Self { when: When::parse(when)?, order: checked(order)? })
    }
}

/// An order in the words of `belljar-ctl`, as far as it can be known before there is a machine.
///
/// # Errors
/// Completes "… is ".
pub fn checked(order: &str) -> Result<String, String> {
    let order = order.trim();
    if order.len() > MAX_ORDER || order.chars().any(char::is_control) {
        return Err(format!("no order: it has {MAX_ORDER} bytes at most, and no control characters"));
    }
    match order.split_once(char::is_whitespace) {
        Some(("disk", rest)) => {
            let (_, what) =
                rest.trim().split_once(char::is_whitespace).ok_or("no order to a disk; write disk NAME ORDER")?;
            let word = what.split_whitespace().next().unwrap_or_default();
            if fault::is_effect(word) {
                what.parse::<fault::Fault>().map_err(|why| format!("no order to a disk: {why}"))?;
            }
        }
        _ if order == "disk" => return Err("no order to a disk; write disk NAME ORDER".to_owned()),
        _ => {
            MachineOrder::parse(order).map_err(|why| format!("no order: {why}, and disk NAME ORDER"))?;
        }
    }
    Ok(order.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Programs in the guest write them, too.
        #[test]
        fn no_text_is_too_odd_to_be_read(text in "\\PC*", words in "((un)?plug|disk|memory|clock|wakeup|power-cut|link|[-+][0-9]{1,30}[a-z]|[0-9]{1,25}[KMGT]?|seed=[0-9]{1,25}|path=[0-9]{1,12}| ){0,8}") {
            for text in [text, words] {
                let _ = MachineOrder::parse(&text);
                let _ = ScheduledOrder::parse(&text);
            }
        }
    }

    #[test]
    fn orders_and_their_times() {
        let of = |text: &str| ScheduledOrder::parse(text).unwrap();
        assert_eq!(of("+5s disk data0 error write").when, When::After(Duration::from_secs(5)));
        assert_eq!(of("mark:ready  power-cut seed=3").order, "power-cut seed=3");
        for text in ["+1m30s unplug nic", "mark:a link down"] {
            assert_eq!(of(text).to_string(), text);
        }
        for (text, says) in [
            ("", "write +5s ORDER"),
            ("+5s", "write +5s ORDER"),
            ("soon nmi", "write +5s, or mark:NAME"),
            ("mark: nmi", "no mark"),
            ("+500000000000y nmi", "too late for an order"),
            ("+1s explode", "there are reboot"),
            ("+1s disk", "disk NAME ORDER"),
            ("+1s disk a", "disk NAME ORDER"),
            ("+1s disk a delay", "delay wants"),
        ] {
            let error = ScheduledOrder::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
