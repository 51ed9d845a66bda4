//! Services that systemd starts when somebody wants something of them, and that end by themselves when nobody does any more.

/// What is asked of systemd of each.
pub(super) const PROPERTIES: &str = "--property=Id,Type,ActiveState,Result,TriggeredBy,WantedBy,RequiredBy,ExecMainCode,ExecMainStatus,\
ExecMainExitTimestampMonotonic,ActiveEnterTimestampMonotonic,ActiveExitTimestampMonotonic";
/// `CLD_EXITED` of waitid(2).
const EXITED: &str = "1";

/// Of the units in an answer of `systemctl show`, those that have ended by themselves, and well, and are started again when somebody wants them. `is_up`: whether a
/// unit is.
pub(super) fn ended_by_themselves(answer: &str, is_up: impl Fn(&str) -> bool) -> Vec<&str> {
    let units = answer.split("\n\n").map(|lines| Shown(lines.trim()));
    units
        .filter(|unit| unit.is_on_demand(&is_up) && unit.has_ended_well(&is_up))
        .filter_map(|unit| unit.says("Id"))
        .collect()
}

/// A unit as `systemctl show` has it.
struct Shown<'a>(&'a str);

impl<'a> Shown<'a> {
    fn says(&self, key: &str) -> Option<&'a str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.says(key) == Some(value)
    }

    /// When something was, in microseconds; 0: never.
    fn time(&self, key: &str) -> Option<u64> {
        self.says(key)?.parse().ok()
    }

    /// Whether something that is up starts it: a socket, a timer.
    fn is_triggered(&self, is_up: &impl Fn(&str) -> bool) -> bool {
        self.says("TriggeredBy").unwrap_or_default().split_ascii_whitespace().any(is_up)
    }

    /// Nothing wants that it runs, and it is started when somebody wants something of it, also by its name on the bus.
    fn is_on_demand(&self, is_up: &impl Fn(&str) -> bool) -> bool {
        let unwanted = self.is("WantedBy", "") && self.is("RequiredBy", "");
        let by_name = || self.is("Type", "dbus") && (is_up("dbus.service") || is_up("dbus-broker.service"));
        unwanted && (self.is_triggered(is_up) || by_name())
    }

    /// Its program ended first, and then it. One that is stopped, by whomever, is not up any more before its program ends.
    fn has_ended_well(&self, is_up: &impl Fn(&str) -> bool) -> bool {
        let ended = || {
            let program = self.time("ExecMainExitTimestampMonotonic")?;
            let unit = self.time("ActiveExitTimestampMonotonic")?;
            Some(program > 0 && program <= unit)
        };
        // Since systemd began anew, as in a soft reboot. What nothing triggers systemd may have forgotten meanwhile, and says the same of it.
        let has_not_run = self.is("ActiveEnterTimestampMonotonic", "0") && self.is_triggered(is_up);
        let has_exited = self.is("ExecMainCode", EXITED) && self.is("ExecMainStatus", "0");
        self.is("ActiveState", "inactive")
            && self.is("Result", "success")
            && (has_not_run || (has_exited && ended() == Some(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian 12 says it of its own after half a minute.
    const FSCKD: &str = "Type=simple\nResult=success\nExecMainExitTimestampMonotonic=41\nExecMainCode=1\nExecMainStatus=0\nId=systemd-fsckd.service\n\
                         RequiredBy=\nWantedBy=\nTriggeredBy=systemd-fsckd.socket\nActiveState=inactive\nActiveEnterTimestampMonotonic=11\n\
                         ActiveExitTimestampMonotonic=42\n";

    fn ended(answer: &str) -> Vec<&str> {
        ended_by_themselves(answer, |unit| matches!(unit, "systemd-fsckd.socket" | "dbus.service"))
    }

    #[test]
    fn a_service_that_nobody_wants_any_more_ends_by_itself() {
        let hostname = FSCKD
            .replace("fsckd.service", "hostnamed.service")
            .replace("TriggeredBy=systemd-fsckd.socket", "TriggeredBy=")
            .replace("Type=simple", "Type=dbus");
        let both = format!("{FSCKD}\n{hostname}");
        assert_eq!(ended(&both), ["systemd-fsckd.service", "systemd-hostnamed.service"]);
        assert_eq!(ended_by_themselves(&both, |_| false), [""; 0], "nothing would start them");
        let anew = |unit: &str| {
            unit.replace("=41", "=0").replace("=42", "=0").replace("=11", "=0").replace("Code=1", "Code=0")
        };
        assert_eq!(ended(&anew(FSCKD)), ["systemd-fsckd.service"], "after a soft reboot");
        assert_eq!(ended(&anew(&hostname)), [""; 0], "systemd knows nothing of it any more");
        for (was, is, why) in [
            ("ActiveExitTimestampMonotonic=42", "ActiveExitTimestampMonotonic=40", "it was stopped"),
            ("ExecMainCode=1", "ExecMainCode=2", "it was killed"),
            ("ExecMainStatus=0", "ExecMainStatus=1", "it failed"),
            ("Result=success", "Result=exit-code", "it failed"),
            ("ActiveState=inactive", "ActiveState=failed", "it failed"),
            ("WantedBy=\n", "WantedBy=multi-user.target\n", "it is to run"),
            ("RequiredBy=\n", "RequiredBy=x.service\n", "it is to run"),
            ("TriggeredBy=systemd-fsckd.socket", "TriggeredBy=", "nothing would start it"),
            ("ExecMainExitTimestampMonotonic=41\n", "", "systemd does not say"),
            ("ExecMainExitTimestampMonotonic=41\n", "ExecMainExitTimestampMonotonic=0\n", "systemd does not know"),
        ] {
            assert!(FSCKD.contains(was), "{was}");
            assert_eq!(ended(&FSCKD.replace(was, is)), [""; 0], "{why}");
        }
        assert_eq!(ended(""), [""; 0]);
    }
}
