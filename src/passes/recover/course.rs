//! The course of a training: which rows at which step, what was seen on held-out rows, when it ends.

use super::{HELD_OUT, Recover};
use crate::evaluate::samples::Samples;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Tells the draw of held-out rows from those of epochs.
const HOLD_OUT: u64 = 0x6865_6c64;

/// Everything that decides about the next step beside the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Course {
    /// Steps that are done.
    pub(super) step: u64,
    /// Whether the held-out rows are to be looked at before the next step.
    pub(super) due: bool,
    /// Steps in all.
    pub(super) steps: u64,
    /// Held-out loss before the first step.
    pub(super) first: f64,
    /// Best held-out loss, and the step after which it was seen.
    pub(super) best: f64,
    pub(super) best_step: u64,
    /// Looks since then.
    worse: u64,
    /// Steps between looks.
    every: u64,
    seed: u64,
    batch: usize,
    train: Vec<usize>,
    held_out: Vec<Vec<usize>>,
}

impl Course {
    /// Holds out rows drawn with the seed; batches come from the others, drawn anew in each epoch.
    pub(super) fn plan(data: &Samples, settings: &Recover, seed: u64) -> Course {
        let batch = match settings.batch {
            0 => data.batch_size(),
            n => n,
        };
        let mut rows: Vec<usize> = (0..data.len()).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ HOLD_OUT));
        let most = HELD_OUT.min(rows.len().saturating_sub(1));
        let out = ((settings.hold_out * rows.len() as f64).ceil() as usize)
            .clamp(usize::from(settings.hold_out > 0.0), most);
        let mut held: Vec<usize> = rows.split_off(rows.len() - out);
        held.sort_unstable();
        rows.sort_unstable();
        let batch = batch.clamp(1, rows.len().max(1));
        let steps = match settings.steps {
            0 => {
                let seen: f64 = (0..rows.len().min(64))
                    .filter_map(|i| data.batch(&[rows[i * rows.len() / rows.len().min(64)]]).ok())
                    .map(|b| b.tokens as f64)
                    .sum();
                let by_row = (seen / rows.len().clamp(1, 64) as f64).max(1.0);
                ((settings.tokens as f64 / (by_row * batch as f64)).floor() as u64).max(1)
            }
            n => n,
        };
        Course {
            step: 0,
            due: false,
            steps,
            first: f64::INFINITY,
            best: f64::INFINITY,
            best_step: 0,
            worse: 0,
            every: steps.div_ceil(settings.looks.max(1)).max(1),
            seed,
            batch,
            train: rows,
            held_out: held.chunks(data.batch_size().max(1)).map(<[usize]>::to_vec).collect(),
        }
    }

    /// Rows of the next step.
    pub(super) fn rows(&self) -> Vec<usize> {
        let per_epoch = (self.train.len() / self.batch).max(1) as u64;
        let (epoch, at) = (self.step / per_epoch, (self.step % per_epoch) as usize);
        let mut rows = self.train.clone();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed.wrapping_add(epoch)));
        rows[at * self.batch..(at + 1) * self.batch].to_vec()
    }

    /// Held-out rows, batch by batch.
    pub(super) fn held_out(&self) -> impl Iterator<Item = &[usize]> {
        self.held_out.iter().map(Vec::as_slice)
    }

    /// Notes the held-out loss before the first step.
    pub(super) fn begin(&mut self, loss: f64) {
        (self.first, self.best) = (loss, loss);
    }

    /// Whether it is time to look.
    pub(super) fn looks_now(&self) -> bool {
        self.step.is_multiple_of(self.every) || self.step == self.steps
    }

    /// Notes what was seen; whether it is the best so far. Without held-out rows the last is the best.
    pub(super) fn note(&mut self, loss: f64) -> bool {
        self.due = false;
        let better = loss < self.best || self.held_out.is_empty();
        if better {
            (self.best, self.best_step, self.worse) = (loss, self.step, 0);
        } else {
            self.worse += 1;
        }
        better
    }

    /// Whether training ends.
    pub(super) fn over(&self, patience: u64) -> bool {
        self.step >= self.steps || (patience > 0 && self.worse >= patience)
    }

    /// Whether `other` is a later moment of the same course.
    pub(super) fn continues(&self, other: &Course) -> bool {
        let plan = |c: &Course| (c.steps, c.every, c.seed, c.batch, c.train.clone(), c.held_out.clone());
        plan(self) == plan(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::samples::Batch;

    fn course(settings: &Recover) -> Course {
        let data =
            Samples::given((0..20).map(|_| Batch { rows: 1, tokens: 7, ..Batch::default() }).collect());
        Course::plan(&data, settings, 5)
    }

    #[test]
    fn every_epoch_sees_each_row_once_and_never_a_held_out_one() {
        let mut c = course(&Recover { steps: 100, hold_out: 0.2, ..Recover::default() });
        let held: Vec<usize> = c.held_out().flatten().copied().collect();
        assert_eq!(held.len(), 4);
        let mut epochs = Vec::new();
        for _ in 0..2 {
            let mut seen = Vec::new();
            for _ in 0..16 {
                seen.extend(c.rows());
                c.step += 1;
            }
            assert!(seen.iter().all(|r| !held.contains(r)));
            epochs.push(seen.clone());
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 16);
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn tokens_become_steps_and_patience_ends_it() {
        let mut c = course(&Recover { tokens: 70, ..Recover::default() });
        assert_eq!(c.steps, 10);
        c.begin(2.0);
        for loss in [1.5, 1.6, 1.7] {
            assert!(!c.over(2));
            c.step += 1;
            c.note(loss);
        }
        assert!(c.over(2) && !c.over(0));
        assert_eq!((c.best, c.best_step), (1.5, 1));
    }
}
