//! Where a training step spends its time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Times of one training step: its parts, and operators both ways by [`super::Step::title`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Forward pass.
    pub forward: Duration,
    /// Loss and its gradient.
    pub loss: Duration,
    /// Reverse pass.
    pub backward: Duration,
    /// What of it went into values that were computed again.
    pub again: Duration,
    /// Norm of the gradients and update of the parameters.
    pub optimizer: Duration,
    /// Operators of the forward pass.
    pub forward_operators: BTreeMap<String, Duration>,
    /// Operators of the reverse pass, sums of gradients included.
    pub backward_operators: BTreeMap<String, Duration>,
}

/// A stopwatch with two marks: the last lap and the last part.
#[derive(Debug)]
pub(super) struct Clock {
    lap: Instant,
    part: Instant,
}

impl Clock {
    pub(super) fn start() -> Clock {
        let now = Instant::now();
        Clock { lap: now, part: now }
    }

    /// Adds the time since the last lap.
    pub(super) fn lap(&mut self, to: &mut Duration) {
        let now = Instant::now();
        *to += now - self.lap;
        self.lap = now;
    }

    /// Adds the time since the last part, and begins a lap.
    pub(super) fn total(&mut self, to: &mut Duration) {
        let now = Instant::now();
        *to += now - self.part;
        (self.part, self.lap) = (now, now);
    }
}
