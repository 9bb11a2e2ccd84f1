//! How far a pass over data has come, kept for a run that begins it again, and for one that asks for the
//! same with another ratio. Sums are kept bit by bit, so that what is recalled decides as what was computed.

use crate::monitor::{Level, Monitor};
use crate::passes::Memo;
use std::time::{Duration, Instant};

/// Least time between two writes while a pass runs.
const EVERY: Duration = Duration::from_secs(5);

/// Sums of a pass as of its last whole batch.
pub(in crate::passes) struct Kept<'a> {
    memo: Option<&'a dyn Memo>,
    what: String,
    done: usize,
    sums: Vec<f64>,
    /// Batches in what was written last, and when that was.
    written: (usize, Instant),
}

impl<'a> Kept<'a> {
    /// What is kept under the name `what`, which says everything but model and data that the sums depend
    /// on. Sums that do not `fit` are none.
    pub(in crate::passes) fn of(
        memo: Option<&'a dyn Memo>,
        monitor: &dyn Monitor,
        what: String,
        fit: impl FnOnce(&[f64]) -> bool,
    ) -> Kept<'a> {
        let mut kept = Kept { memo, what, done: 0, sums: vec![], written: (0, Instant::now()) };
        let bytes = kept.memo.and_then(|m| m.recall(&kept.what)).unwrap_or_default();
        let mut words =
            bytes.chunks_exact(8).map(|w| w.try_into().unwrap_or_default()).map(u64::from_le_bytes);
        if let Some(done) = words.next() {
            let sums: Vec<f64> = words.map(f64::from_bits).collect();
            if bytes.len().is_multiple_of(8) && fit(&sums) {
                (kept.done, kept.sums) = (done as usize, sums);
                kept.written.0 = kept.done;
                monitor.log(Level::Info, "what an earlier run saw of the data counts");
            }
        }
        kept
    }

    /// Batches that were seen, and their sums; none where the pass begins.
    pub(in crate::passes) fn seen(&self) -> (usize, &[f64]) {
        (self.done, &self.sums)
    }

    /// Whether what is noted now would be written.
    pub(in crate::passes) fn due(&self) -> bool {
        self.memo.is_some() && self.written.1.elapsed() >= EVERY
    }

    /// The sums once `done` batches were seen; they are asked for where anything is kept.
    pub(in crate::passes) fn note(&mut self, done: usize, sums: impl FnOnce() -> Vec<f64>) {
        if self.memo.is_none() {
            return;
        }
        (self.done, self.sums) = (done, sums());
        if self.written.1.elapsed() >= EVERY {
            self.write();
        }
    }

    /// Keeps what was noted last.
    pub(in crate::passes) fn write(&mut self) {
        if let Some(memo) = self.memo.filter(|_| self.done > self.written.0) {
            let words = std::iter::once(self.done as u64).chain(self.sums.iter().map(|s| s.to_bits()));
            memo.keep(&self.what, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
            self.written = (self.done, Instant::now());
        }
    }
}
