//! One pass over data: how many rows, in which batches, what is told meanwhile, and how far it has come.
//! Samples enter; batches leave, one by one. What is done with them is the caller's.

mod judge;
mod kept;
mod moments;

pub(in crate::passes) use judge::Judge;
pub(in crate::passes) use kept::Kept;
pub(in crate::passes) use moments::Moments;

use crate::error::{Error, Result};
use crate::evaluate::samples::{Batch, Samples};
use crate::monitor::Monitor;

/// What a pass looks at.
#[derive(Debug, Clone, Copy)]
pub(in crate::passes) struct Look<'a> {
    pub(in crate::passes) data: &'a Samples,
    /// Most rows; 0 for all.
    pub(in crate::passes) samples: usize,
    /// Rows at once; 0 leaves it to the data.
    pub(in crate::passes) batch: usize,
}

impl Look<'_> {
    fn rows(&self) -> usize {
        if self.samples == 0 { self.data.len() } else { self.data.len().min(self.samples) }
    }

    /// How many batches there are.
    pub(in crate::passes) fn batches(&self) -> usize {
        self.data.first(self.rows()).batch_count(self.batch)
    }

    /// Calls `each` with the number of every batch and the batch, but for the first `skip`, telling the
    /// monitor of phase and progress. Rows in all, those of the first `skip` included.
    ///
    /// # Errors
    /// Those of the data and of `each`; `Stopped` when asked to; `Internal` where the data ended early.
    pub(in crate::passes) fn each(
        &self,
        phase: &str,
        monitor: &dyn Monitor,
        skip: usize,
        each: &mut dyn FnMut(usize, &Batch) -> Result<()>,
    ) -> Result<usize> {
        let rows = self.rows();
        monitor.phase(phase, Some(rows as u64));
        let data = self.data.first(rows);
        let (mut done, mut batches) = (0, 0);
        for (i, batch) in data.batches(self.batch).enumerate() {
            monitor.check()?;
            let batch = batch?;
            if i >= skip {
                each(i, &batch)?;
            }
            batches += 1;
            done += batch.rows;
            monitor.progress(done.min(rows) as u64);
        }
        if batches != self.batches() {
            return Err(Error::internal("LOOK-ROWS", "not all rows of the data were read")
                .found(format!("{batches} batches"))
                .limit(self.batches()));
        }
        Ok(done)
    }
}
