//! What a tester wants to be told while a command runs, as far as it can be seen from within the guest: programs that dump core, new flags of the
//! kernel, units of systemd's that fail. What the kernel says is passed on beside it (`kmsg`).
//!
//! What was there before the command began is nobody's finding: of each there is a beginning, taken without asking anybody. So a command that is
//! guarded begins no later, and only its end waits for an answer of systemd's.

mod deaths;
mod units;

use std::os::fd::OwnedFd;
use std::time::Duration;

use belljar_proto::message::{AgentGuards, BlindGuard, Exec, ExecId, GuardNews, KernelNews, MAX_SEEN, ToHost};
use rustix::time::{ClockId, clock_gettime};

use crate::kmsg::tainted;
use crate::link::Link;
use crate::systemd;

use deaths::Deaths;

/// How long a core that is being dumped when the command ends may take until the kernel says by which signal that is.
const DUMPING: Duration = Duration::from_secs(1);

/// The guards of one command.
struct Watched {
    id: ExecId,
    wanted: AgentGuards,
    /// The kernel's flags when it began, and those that are told.
    tainted: u64,
    /// When it began: microseconds of `CLOCK_MONOTONIC`, as systemd counts.
    since: u64,
    /// How often systemd had run then, if it rested.
    rested: Option<u64>,
    /// Whether it could be asked then.
    could_ask: bool,
    /// The command's first process, whose end is the command's own.
    first: Option<i32>,
    programs: u32,
    units: u32,
    /// Failed units that systemd was not asked about.
    unseen_units: u32,
}

impl Watched {
    /// Those of these flags that were not set when it began and are not told yet; they are told now.
    fn new_flags(&mut self, now: u64) -> u64 {
        let new = now & !self.tainted;
        self.tainted |= new;
        new
    }
}

/// The guards.
#[derive(Default)]
pub(crate) struct Guards {
    watched: Option<Watched>,
    /// Opened for the first command that wants it.
    deaths: Option<Deaths>,
}

impl Guards {
    /// A command is about to start.
    pub(crate) fn begin(&mut self, exec: &Exec, link: &mut Link) {
        let Some(mut wanted) = exec.guards else {
            self.watched = None;
            return;
        };
        let kind = link.kind();
        wanted.core_dumps &= kind.has_own_kernel();
        wanted.taint &= kind.has_own_kernel();
        wanted.units &= kind.is_in_guest();
        if wanted.core_dumps && self.deaths.is_none() {
            match Deaths::open() {
                Ok(deaths) => self.deaths = Some(deaths),
                Err(why) => blind(link, BlindGuard::CoreDumps, false, why),
            }
        }
        if let Some(deaths) = &mut self.deaths {
            // Of before.
            deaths.read();
            deaths.forget();
        }
        tell(link, GuardNews::Begins(exec.id));
        let tainted = match if wanted.taint { tainted() } else { Ok(0) } {
            Ok(flags) => flags,
            Err(why) => {
                wanted.taint = false;
                blind(link, BlindGuard::Taint, false, why);
                0
            }
        };
        let since = monotonic();
        let rested = if wanted.units { first_process_rests() } else { None };
        self.watched = Some(Watched {
            id: exec.id,
            wanted,
            tainted,
            since,
            rested,
            could_ask: wanted.units && units::can_be_asked(),
            first: None,
            programs: 0,
            units: 0,
            unseen_units: 0,
        });
    }

    /// Listens already, so that each copy of the guest does.
    pub(crate) fn listen_ahead(&mut self) {
        // Who cannot is told when somebody wants to know.
        self.deaths = self.deaths.take().or_else(|| Deaths::open().ok());
    }

    /// It has started as this process.
    pub(crate) fn started(&mut self, first: i32) {
        if let Some(watched) = &mut self.watched {
            watched.first = Some(first);
        }
    }

    /// What is to be waited for.
    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.deaths.as_ref().map(Deaths::fd)
    }

    /// Passes on which programs have died.
    pub(crate) fn pass_on(&mut self, link: &mut Link) {
        let Some(deaths) = &mut self.deaths else { return };
        deaths.read();
        let Some(watched) = self.watched.as_mut().filter(|watched| watched.wanted.core_dumps) else {
            deaths.forget();
            return;
        };
        for death in deaths.take() {
            if Some(death.pid) == watched.first {
                continue;
            }
            watched.programs += 1;
            if watched.programs <= MAX_SEEN {
                tell(link, death.news());
            }
        }
    }

    /// Whether a command is guarded that has this number.
    pub(crate) fn watches(&self, id: ExecId) -> bool {
        self.watched.as_ref().is_some_and(|watched| watched.id == id)
    }

    /// The command has ended. `lines`: how many lines of the kernel's were not passed on.
    pub(crate) fn end(&mut self, lines: u32, link: &mut Link) {
        if let Some(deaths) =
            self.deaths.as_mut().filter(|_| self.watched.as_ref().is_some_and(|w| w.wanted.core_dumps))
        {
            deaths.settle(DUMPING);
            if !deaths.still_tells() {
                let why =
                    "a program has switched off what the kernel tells of processes that die (PROC_CN_MCAST_IGNORE)";
                blind(link, BlindGuard::CoreDumps, true, why.to_owned());
            }
        }
        self.pass_on(link);
        self.look(link);
        let Some(Watched { id, programs, units, unseen_units, .. }) = self.watched.take() else { return };
        let programs = programs.saturating_sub(MAX_SEEN) + self.deaths.as_mut().map_or(0, Deaths::lost);
        let units = units.saturating_sub(MAX_SEEN).saturating_add(unseen_units);
        tell(link, GuardNews::Ends { id, lines, programs, units });
    }

    /// Tells which flags and failed units are new, if a command is guarded: it has ended, or the guest may go down from here on.
    pub(crate) fn look(&mut self, link: &mut Link) {
        let Some(watched) = &mut self.watched else { return };
        if watched.wanted.taint {
            match tainted().map(|now| watched.new_flags(now)) {
                Ok(0) => {}
                Ok(flags) => tell(link, GuardNews::Taint(flags)),
                Err(why) => blind(link, BlindGuard::Taint, true, why),
            }
        }
        // Without systemd's doing no unit has failed; to ask costs an emulated guest a fifth of a second.
        let may_have = watched.rested.is_none() || first_process_rests() != watched.rested;
        if !watched.wanted.units || !may_have || !systemd::is_first_process() {
            return;
        }
        let now = monotonic();
        match units::failed_since(watched.since, watched.could_ask) {
            Ok(failed) => {
                watched.unseen_units = failed.unseen;
                for (name, result) in failed.units {
                    watched.units = watched.units.saturating_add(1);
                    if watched.units <= MAX_SEEN {
                        tell(link, GuardNews::Unit { name, result });
                    }
                }
                // Those are told. What fails while systemd answers may be told twice.
                watched.since = now;
            }
            Err(why) => blind(link, BlindGuard::Units, watched.could_ask, why),
        }
    }
}

fn tell(link: &mut Link, news: GuardNews) {
    link.queue(&ToHost::Kernel(KernelNews::Guard(news)));
}

fn blind(link: &mut Link, guard: BlindGuard, meanwhile: bool, why: String) {
    tell(link, GuardNews::Blind { guard, meanwhile, why });
}

fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    u64::try_from(micros).unwrap_or(0)
}

/// How often the first process has been switched away from, if it rests now: as long as that stays, it has done nothing (proc_pid_status(5)).
fn first_process_rests() -> Option<u64> {
    rests(&std::fs::read_to_string("/proc/1/status").ok()?)
}

fn rests(status: &str) -> Option<u64> {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let count = |name| value(name)?.parse::<u64>().ok();
    let rests = value("State")?.starts_with('S');
    rests.then_some(count("voluntary_ctxt_switches")?.checked_add(count("nonvoluntary_ctxt_switches")?)?)
}

#[cfg(test)]
mod tests {
    use super::{AgentGuards, Watched, rests};

    #[test]
    fn a_flag_is_told_once_and_unless_it_was_there() {
        let wanted = AgentGuards { core_dumps: true, taint: true, units: true };
        let mut watched = Watched {
            id: 1,
            wanted,
            tainted: 1,
            since: 0,
            rested: None,
            could_ask: false,
            first: None,
            programs: 0,
            units: 0,
            unseen_units: 0,
        };
        assert_eq!((watched.new_flags(1), watched.new_flags(65), watched.new_flags(65)), (0, 64, 0));
        assert_eq!(watched.new_flags(1 << 12 | 65), 1 << 12);
    }

    #[test]
    fn who_rests_and_was_not_switched_away_from_has_done_nothing() {
        let status = |state: &str| {
            format!("Name:\tsystemd\nState:\t{state}\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n")
        };
        assert_eq!(rests(&status("S (sleeping)")), Some(42));
        assert_eq!(rests(&status("R (running)")), None);
        assert_eq!(rests("State:\tS (sleeping)\n"), None);
    }
}
