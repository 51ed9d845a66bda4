//! How long is waited for what, by how fast the guest can be.

use std::time::Duration;

use crate::{console::Patience, qemu::args::Accel};

/// Bytes of a guest's memory that are written to a slow disk of the host's in a second.
const MEMORY: u64 = 16 << 20;

/// Bytes that a guest with KVM unpacks in a second, on a slow host.
const UNPACKED: u64 = 20 << 20;
/// A guest without KVM is about this much slower.
const TCG_FACTOR: u32 = 10;

/// The limits for one guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    factor: u32,
    boot: Option<Duration>,
}

impl Limits {
    /// For a guest under this accelerator; `boot` is the user's own limit, which is not stretched.
    #[must_use]
    pub(crate) fn new(accel: Accel, boot: Option<Duration>) -> Self {
        let factor = match accel {
            Accel::Kvm => 1,
            Accel::Tcg => TCG_FACTOR,
        };
        Self { factor, boot }
    }

    /// How much slower than with KVM things may be.
    #[must_use]
    pub(crate) fn factor(&self) -> f64 {
        f64::from(self.factor)
    }

    /// The boot, until a command can run. `cpu` is a clock of the guest's processor time: a guest that computes in silence is
    /// given longer than one that does nothing at all.
    pub(crate) fn boot(&self, cpu: impl FnMut() -> u64 + Send + 'static) -> Patience {
        let total = self.whole_boot();
        Patience::new(total).idle(Duration::from_secs(60).min(total)).fed_by(busy(cpu))
    }

    /// The whole boot at most.
    pub(crate) fn whole_boot(&self) -> Duration {
        self.boot.unwrap_or(Duration::from_secs(120) * self.factor)
    }

    /// Writing or reading the state of a frozen guest's devices: some megabytes.
    pub(crate) fn state(&self) -> Duration {
        Duration::from_secs(60).min(self.whole_boot())
    }

    /// Writing or reading the same with so many bytes of memory.
    pub(crate) fn whole_state(&self, memory: u64) -> Duration {
        self.state() + Duration::from_secs(memory / MEMORY)
    }

    /// A guest's taking note of a device that was plugged in or out.
    pub(crate) fn device(&self) -> Duration {
        (Duration::from_secs(5) * self.factor.min(4)).min(self.whole_boot())
    }

    /// From going on until the agent of a template's copy answers.
    pub(crate) fn answer_of_copy(&self) -> Duration {
        self.agent_start().min(self.whole_boot())
    }

    /// Mounting the shares in the copy of a template.
    pub(crate) fn setup_of_copy(&self) -> Duration {
        Duration::from_secs(30) * self.factor.min(6)
    }

    /// Another way in, when one has turned out not to hold.
    #[must_use]
    pub(crate) fn other_rung(&self) -> Duration {
        Duration::from_secs(10) * self.factor
    }

    /// From the agent's start until it announces itself.
    #[must_use]
    pub(crate) fn agent_start(&self) -> Duration {
        Duration::from_secs(10) * self.factor.min(6)
    }

    /// Mounting the shares, within what is left of the boot's own limit.
    pub(crate) fn setup(&self, boot: &Patience) -> Duration {
        self.setup_of_copy().min(boot.remaining())
    }

    /// One line typed at a shell that is known to answer.
    #[must_use]
    pub(crate) fn line(&self) -> Patience {
        Patience::new(Duration::from_secs(20) * self.factor.min(6))
    }

    /// Typing the agent over the console. Its 750 KB as base64 take 10 to 20 s without KVM.
    #[must_use]
    pub(crate) fn typing(&self) -> Duration {
        (Duration::from_secs(20) * self.factor.min(6)).min(self.whole_boot())
    }

    /// One piece of that.
    #[must_use]
    pub(crate) fn piece(&self) -> Patience {
        Patience::new(self.typing())
    }

    /// A silence of the agent after which the guest counts as lost.
    #[must_use]
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs(60) * self.factor.min(5)
    }

    /// Bringing what was written to the host.
    #[must_use]
    pub(crate) fn sync(&self) -> Duration {
        Duration::from_secs(30) * self.factor.min(6)
    }

    /// Unpacking so many bytes that came on a disk, beside the setup itself.
    pub(crate) fn unpacking(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / UNPACKED) * self.factor.min(10)
    }

    /// Packing what was changed, and writing it to a disk.
    pub(crate) fn packing(&self) -> Duration {
        Duration::from_secs(120) * self.factor.min(5)
    }

    /// The same where the result is known to be bad.
    pub(crate) fn packing_late(&self) -> Duration {
        Duration::from_secs(15) * self.factor.min(4)
    }

    /// Killing a command that is not wanted any more.
    #[must_use]
    pub(crate) fn farewell(&self) -> Duration {
        Duration::from_secs(3)
    }

    /// Powering off through the guest's own service manager.
    #[must_use]
    pub(crate) fn power_off(&self) -> Duration {
        Duration::from_secs(60) * self.factor.min(5)
    }
}

/// A counter that moves only while the guest really computes: its clock ticks even when it idles.
fn busy(mut cpu: impl FnMut() -> u64 + Send + 'static) -> impl FnMut() -> u64 + Send + 'static {
    let mut last = cpu();
    let mut at = tokio::time::Instant::now();
    let mut moved = 0;
    move || {
        let elapsed = at.elapsed();
        if elapsed >= Duration::from_secs(2) {
            let now = cpu();
            // A tenth of a processor: an idle guest needs a few hundredths.
            if u128::from(now.saturating_sub(last)) * 10 > elapsed.as_millis() {
                moved += 1;
            }
            last = now;
            at = tokio::time::Instant::now();
        }
        moved
    }
}
