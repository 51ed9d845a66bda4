//! Whether somebody else has set the guest's clock.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Notices that somebody sets the guest's clock.
#[derive(Default)]
pub(crate) struct ClockWatch(Option<OwnedFd>);

impl ClockWatch {
    /// Whether it may have been set since this was asked last.
    pub(crate) fn was_set(&mut self) -> bool {
        // A timer that will never ring; setting the clock cancels it.
        let watch = || -> Result<OwnedFd, Errno> {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
            let never = Timespec { tv_sec: i64::from(i32::MAX) * 2, tv_nsec: 0 };
            let never = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
            timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
            Ok(timer)
        };
        let before = std::mem::replace(&mut self.0, watch().ok());
        before.is_none_or(|timer| rustix::io::read(&timer, &mut [0_u8; 8]) != Err(Errno::AGAIN))
    }
}
