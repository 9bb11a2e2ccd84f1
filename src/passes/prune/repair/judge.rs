//! How near a model's outputs are to the original's. Models enter; distances leave, by which a repair is
//! chosen.

use super::super::importance::{Source, data};
use crate::error::{Error, Kind, Result};
use crate::evaluate::objective::{Head, Objective};
use crate::evaluate::samples::{Batch, Samples};
use crate::execute::{Executor, Overrides};
use crate::graph::Graph;
use crate::tensor::Value;

/// Positions that a judgement looks at, and the fewest and most rows that it takes for them.
const POSITIONS: usize = 1024;
const ROWS: (usize, usize) = (4, 256);

/// The original's outputs on the first rows of the calibration data.
pub(super) struct Judge<'a> {
    source: &'a Source<'a>,
    rows: Samples,
    head: Head,
    /// The judged output by batch.
    reference: Vec<Value>,
}

impl<'a> Judge<'a> {
    /// Runs the original; none where no output has a distance, as that of an ArgMax.
    ///
    /// # Errors
    /// Those of the data and of running the model.
    pub(super) fn of(source: &'a Source<'a>) -> Result<Option<Judge<'a>>> {
        let data = data(source.data)?;
        let one = data.batch(&[0])?;
        let rows = POSITIONS.div_ceil(one.tokens.max(1)).clamp(ROWS.0, ROWS.1);
        let Ok(head) = Head::of(source.graph, data) else { return Ok(None) };
        let rows = data.first(rows);
        let mut judge = Judge { source, rows, head, reference: Vec::new() };
        let mut reference = Vec::new();
        judge.each(source.graph, &judge.rows, &mut |_, y| {
            reference.push(y);
            Ok(true)
        })?;
        let first = judge.rows.batches(source.batch).next().transpose()?.unwrap_or(one);
        let itself = reference.first().map(std::slice::from_ref).unwrap_or_default();
        if judge.head().loss(Objective::Reference, itself, &first, Some(itself)).is_err() {
            return Ok(None);
        }
        judge.reference = reference;
        Ok(Some(judge))
    }

    /// The head where the judged output is alone.
    fn head(&self) -> Head {
        Head { output: 0, ..self.head }
    }

    /// Rows that are looked at.
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Gives the judged output of `graph` on each batch of `rows` to `look`, which says whether to go on.
    fn each(
        &self,
        graph: &Graph,
        rows: &Samples,
        look: &mut dyn FnMut(usize, Value) -> Result<bool>,
    ) -> Result<()> {
        let executor = Executor::new(graph)?;
        let none = Overrides::new();
        for (i, batch) in rows.batches(self.source.batch).enumerate() {
            let mut outputs =
                executor.run_watched(&batch?.inputs, &none, &mut |_| self.source.monitor.check())?;
            if self.head.output >= outputs.len() {
                return Err(Error::internal("JUDGE-OUTPUT", "the judged output is missing"));
            }
            if !look(i, outputs.swap_remove(self.head.output))? {
                break;
            }
        }
        Ok(())
    }

    /// Mean distance of the outputs of `graph`, infinite where they are not finite; none where they have
    /// other shapes than the original's.
    ///
    /// # Errors
    /// Those of running the model; `Stopped` when asked to.
    pub(super) fn distance(&self, graph: &Graph) -> Result<Option<f64>> {
        let head = self.head();
        let batches = self.rows.batches(self.source.batch).collect::<Result<Vec<Batch>>>()?;
        let (mut sum, mut count, mut alike) = (0.0, 0.0, true);
        self.each(graph, &self.rows.rebound(graph)?, &mut |i, y| {
            let (batch, reference) = (&batches[i], std::slice::from_ref(&self.reference[i]));
            alike = y.shape() == reference[0].shape();
            if alike {
                match head.loss(Objective::Reference, &[y], batch, Some(reference)) {
                    Ok(loss) => (sum, count) = (sum + loss.sum, count + loss.count),
                    Err(e) if is_not_finite(&e) => sum = f64::INFINITY,
                    Err(e) => return Err(e),
                }
            }
            Ok(alike && sum.is_finite())
        })?;
        Ok(alike.then_some(sum / f64::max(count, 1.0)))
    }
}

fn is_not_finite(e: &Error) -> bool {
    e.kind() == Kind::Invalid && e.code() == "LOSS-NAN"
}
