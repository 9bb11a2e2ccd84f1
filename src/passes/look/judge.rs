//! How far variants of a model are from it, on a few rows of data. The model and data enter; a number for
//! each variant leaves.

use crate::error::Result;
use crate::evaluate::objective::{Head, Objective};
use crate::evaluate::samples::{Batch, Samples};
use crate::execute::{Executor, Overrides};
use crate::graph::Graph;
use crate::monitor::Monitor;
use crate::tensor::Value;

/// Most bytes of the model's own outputs that are kept instead of computed again.
const KEPT: usize = 256 << 20;

/// Judges variants by the rows that it holds.
pub(in crate::passes) struct Judge<'a> {
    executor: Executor,
    head: Head,
    objective: Objective,
    batches: Vec<Batch>,
    /// The model's own outputs, by batch.
    kept: Vec<Option<Vec<Value>>>,
    /// The model's own loss.
    base: f64,
    monitor: &'a dyn Monitor,
}

impl<'a> Judge<'a> {
    /// Runs `graph` on the first `rows` of `data`, `batch` rows at once (0 leaves it to the data), and judges by
    /// its output `head`.
    ///
    /// # Errors
    /// Those of running the model; `Usage` where the objective needs labels that the data lack; `Stopped`.
    pub(in crate::passes) fn new(
        graph: &Graph,
        data: &Samples,
        rows: usize,
        batch: usize,
        (head, objective): (Head, Objective),
        monitor: &'a dyn Monitor,
    ) -> Result<Judge<'a>> {
        let mut judge = Judge {
            executor: Executor::new(graph)?,
            head,
            objective,
            batches: data.first(rows.max(1)).batches(batch).collect::<Result<_>>()?,
            kept: vec![],
            base: 0.0,
            monitor,
        };
        let size = |v: &[Value]| v.iter().map(|v| 4 * v.shape().iter().product::<usize>()).sum::<usize>();
        let (mut sum, mut count, mut held) = (0.0, 0.0, 0);
        for batch in &judge.batches {
            let y = judge.own(batch)?;
            let loss = judge.head.loss(objective, &y, batch, judge.needed().then_some(y.as_slice()))?;
            (sum, count) = (sum + loss.sum, count + loss.count);
            held += size(&y);
            judge.kept.push((judge.needed() && held <= KEPT).then_some(y));
        }
        judge.base = sum / f64::max(count, 1.0);
        Ok(judge)
    }

    /// Whether variants are held against the model's own outputs.
    fn needed(&self) -> bool {
        self.objective == Objective::Reference
    }

    fn own(&self, batch: &Batch) -> Result<Vec<Value>> {
        self.with(batch, &Overrides::new())
    }

    /// Outputs of the model with some of its constants replaced.
    ///
    /// # Errors
    /// Those of running it; `Stopped`.
    pub(in crate::passes) fn with(&self, batch: &Batch, overrides: &Overrides) -> Result<Vec<Value>> {
        self.executor.run_watched(&batch.inputs, overrides, &mut |_| self.monitor.check())
    }

    /// By how much the mean loss of a variant, whose outputs `run` gives, is above the model's own.
    ///
    /// # Errors
    /// Those of `run`; `Invalid` where outputs are not finite.
    pub(in crate::passes) fn rise(&self, mut run: impl FnMut(&Batch) -> Result<Vec<Value>>) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for (batch, kept) in self.batches.iter().zip(&self.kept) {
            let y = run(batch)?;
            let again = match (self.needed(), kept) {
                (true, None) => Some(self.own(batch)?),
                _ => None,
            };
            let loss = self.head.loss(self.objective, &y, batch, kept.as_deref().or(again.as_deref()))?;
            (sum, count) = (sum + loss.sum, count + loss.count);
        }
        Ok(sum / f64::max(count, 1.0) - self.base)
    }

    /// [`Judge::rise`] of another graph with the same inputs and outputs.
    ///
    /// # Errors
    /// Those of running it.
    pub(in crate::passes) fn rise_of(&self, graph: &Graph) -> Result<f64> {
        let (executor, none) = (Executor::new(graph)?, Overrides::new());
        self.rise(|batch| executor.run_watched(&batch.inputs, &none, &mut |_| self.monitor.check()))
    }
}
