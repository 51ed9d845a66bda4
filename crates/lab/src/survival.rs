//! What a power cut leaves beyond what was flushed.

/// What may be there after a power cut beyond what was flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Strict,
    /// What this seed chooses within what a drive may do: each write since the last flush may have arrived or not, wholly or in sectors, in any order.
    Seed(u64),
}

/// What a power cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes, discards and zeros since the last flush.
    pub pending: u64,
    /// How many of them are not there as a whole.
    pub lost: u64,
}

/// How likely a change has arrived where all have.
const ALL: u8 = 4;

/// What survives a power cut.
pub(crate) struct Choice {
    random: Option<fastrand::Rng>,
    /// How likely a change has arrived, of [`ALL`]: a drive may have been about to finish, or not to begin.
    likely: u8,
}

impl Choice {
    pub(crate) fn new(survival: Survival) -> Self {
        let Survival::Seed(seed) = survival else { return Self { random: None, likely: 0 } };
        let mut random = fastrand::Rng::with_seed(seed);
        let likely = random.u8(0..=ALL);
        Self { random: Some(random), likely }
    }

    /// The parts of a change that have arrived.
    ///
    /// Those that `tears` do so at sectors of this many bytes.
    pub(crate) fn of(&mut self, (offset, length): (u64, u64), tears: bool, sector: u64) -> Vec<(u64, u64)> {
        let Some(random) = &mut self.random else { return Vec::new() };
        if random.u8(0..ALL) >= self.likely {
            return Vec::new();
        }
        let whole = vec![(offset, length)];
        // Most arrive as a whole; those that do not, in sectors. Where all had the time to arrive, they do.
        if !tears || length <= sector || self.likely == ALL || random.u8(0..4) > 0 {
            return whole;
        }
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let end = ((at / sector + 1) * sector).min(offset + length);
            if random.bool() {
                pieces.push((at, end - at));
            }
            at = end;
        }
        pieces
    }
}
