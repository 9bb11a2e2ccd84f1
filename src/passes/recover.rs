//! Recovery: a model that lost something is trained, on the loss of its task or towards the outputs of
//! the model that it came from. A graph, its original and data enter; the graph with the best weights
//! leaves. The order of the data follows from seed and step, and everything else that decides about the
//! next step is saved with the weights, so that a run that was stopped ends with the same bits.

mod course;
mod saved;

use super::{Ctx, PassReport, keepable};
use crate::error::{Error, Result};
use crate::evaluate::objective::{Head, Objective};
use crate::evaluate::samples::Samples;
use crate::execute::optimizer::{AdamW, Cosine};
use crate::execute::train::Trainer;
use crate::execute::{Checkpointing, Executor, Gradient, Overrides, Planner};
use crate::graph::constants::Constants;
use crate::graph::{Graph, ValueId};
use crate::monitor::Level;
use crate::tensor::{DType, Value};
use course::Course;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Instant;

/// What is trained towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Towards {
    /// The original's outputs.
    #[default]
    Reference,
    /// The labels, or the next token of texts.
    Task,
}

/// Settings of a step's `[step.recover]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recover {
    /// What is trained towards.
    pub towards: Towards,
    /// Optimiser steps; 0 where `tokens` says how long.
    pub steps: u64,
    /// Tokens (rows where the data are numbers) to train on in all; 0 where `steps` says how long.
    pub tokens: u64,
    /// Rows at once; 0 leaves it to the data.
    pub batch: usize,
    /// Largest learning rate.
    pub rate: f64,
    /// Last learning rate, relative to the largest.
    pub floor: f64,
    /// Part of the steps over which the rate rises.
    pub warmup: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
    /// Largest joint norm of the gradients; 0 for no limit.
    pub clip: f64,
    /// Part of the rows that is held out to choose the best weights by.
    pub hold_out: f64,
    /// Looks at the held-out rows over the whole course.
    pub looks: u64,
    /// Looks without a better loss after which training ends; 0 for never.
    pub patience: u64,
}

impl Default for Recover {
    fn default() -> Recover {
        Recover {
            towards: Towards::default(),
            steps: 0,
            tokens: 0,
            batch: 0,
            rate: 1e-4,
            floor: 0.1,
            warmup: 0.1,
            weight_decay: 0.01,
            clip: 1.0,
            hold_out: 0.1,
            looks: 10,
            patience: 3,
        }
    }
}

/// Most held-out rows that are looked at.
const HELD_OUT: usize = 64;
/// Seconds between checkpoints, at least and at most; in between, saving takes a part of the time.
const SAVE_EVERY: (f64, f64) = (0.2, 60.0);
const SAVE_PART: f64 = 0.02;
/// Bytes of state that are written fast enough to do so when asked to stop.
const QUICK: u64 = 200 << 20;

impl Recover {
    /// `Usage` where a setting is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, what: &str, found: String, limit: &str| {
            Err(Error::usage("RECOVER-SETTINGS", what.to_string())
                .field(format!("step.recover.{field}"))
                .found(found)
                .limit(limit)
                .hint("`tinsmith gen schema recipe` has the settings of recover"))
        };
        if (self.steps > 0) == (self.tokens > 0) {
            let found = format!("steps {}, tokens {}", self.steps, self.tokens);
            return refuse("steps", "one number says how long to train", found, "steps or tokens");
        }
        if !(self.rate > 0.0 && self.rate < 1.0) {
            return refuse(
                "rate",
                "the learning rate is out of range",
                format!("{:?}", self.rate),
                "above 0, below 1",
            );
        }
        for (field, value) in [("floor", self.floor), ("warmup", self.warmup), ("hold_out", self.hold_out)] {
            if !(0.0..1.0).contains(&value) {
                return refuse(field, "a part is out of range", value.to_string(), "from 0, below 1");
            }
        }
        if !(self.clip >= 0.0 && self.weight_decay >= 0.0) {
            return refuse("clip", "a limit is negative", self.clip.to_string(), "0 or more");
        }
        Ok(())
    }
}

/// Copies of the weights that a training holds: themselves, gradients, two moments and the best; the original
/// beside them.
pub(super) fn copies(towards: Towards) -> u64 {
    5 + u64::from(towards == Towards::Reference)
}

/// Trains `graph`. Facts and what was done go into the report; curves `loss`, `held_out` and `rate` to
/// the monitor.
///
/// # Errors
/// `Usage` where data or labels are missing, `Unsupported` where no weight can be trained or an operator
/// has no gradient (by name), `Invalid` where training diverges before it has made anything better,
/// `Stopped` when asked to, after saving.
pub fn recover(
    graph: &Graph,
    original: &Graph,
    settings: &Recover,
    checkpointing: Checkpointing,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let given = data(ctx, settings.towards)?;
    let data = given.rebound(graph)?;
    let data = &data;
    let head = Head::of(graph, data)?;
    let keepable = keepable(ctx.monitor, graph, copies(settings.towards));
    let wanted = trainable(graph, data, head, Planner::new(checkpointing, keepable), ctx)?;
    let mut trainer = Trainer::new(graph, &wanted, AdamW::new(settings.weight_decay))?;
    trainer.planner = Planner::new(checkpointing, keepable);
    if settings.clip > 0.0 {
        trainer.clip_norm = settings.clip;
    }
    let teacher = match settings.towards {
        Towards::Reference => Some((Executor::new(original)?, given.rebound(original)?)),
        Towards::Task => None,
    };
    let mut course = Course::plan(data, settings, ctx.seed);
    let schedule = Cosine {
        peak: settings.rate,
        floor: settings.floor,
        warmup: (settings.warmup * course.steps as f64).round() as u64,
        total: course.steps,
    };
    saved::restore(ctx, &mut trainer, &mut course)?;
    let run = Run { trainer, course, schedule, teacher, data, head, settings, ctx };
    run.finish(graph, report)
}

/// Training data, else those of calibration.
pub(super) fn data<'a>(ctx: &Ctx<'a>, towards: Towards) -> Result<&'a Samples> {
    let data = ctx.train.or(ctx.calibration).filter(|d| d.len() > 1).ok_or_else(|| {
        Error::usage("RECOVER-DATA", "training needs data, two rows at least")
            .field("data.train")
            .hint("pass --train SPEC, or set [data] train in the recipe")
    })?;
    if towards == Towards::Task && !data.labelled() {
        return Err(Error::usage(
            "RECOVER-LABELS",
            "the loss of the task needs labels, and the data have none",
        )
        .field("data.train")
        .hint("use towards = \"reference\", or data with labels"));
    }
    Ok(data)
}

/// Float weights that a gradient reaches.
fn trainable(
    graph: &Graph,
    data: &Samples,
    head: Head,
    mut planner: Planner,
    ctx: &Ctx<'_>,
) -> Result<Vec<ValueId>> {
    let constants = Constants::of(graph);
    let all: Vec<ValueId> = constants
        .weights()
        .filter(|(v, t)| t.dtype() == DType::F32 && graph.initializer(*v).is_some())
        .map(|(v, _)| v)
        .collect();
    let executor = Executor::new(graph)?;
    let batch = data.batch(&[0])?;
    let mut reached = BTreeSet::new();
    let (none, watch) = (Overrides::new(), || ctx.monitor.check());
    let segments = planner.segments(&executor, &batch.inputs, &none, &all, &watch)?;
    let tape = executor.forward_in(&segments, &batch.inputs, &none, &mut |_| watch())?;
    let loss = head.probe(tape.outputs(), &batch, 0)?;
    let mut take = |g: Gradient<'_>| {
        reached.insert(g.value);
        Ok(())
    };
    tape.backward_watched(loss.seeds, &mut take, &mut |_| watch())?;
    if reached.is_empty() {
        return Err(Error::unsupported("RECOVER-WEIGHTS", "no weight of this model can be trained")
            .found(format!("{} float weights of type f32", all.len()))
            .hint(
                "weights of other types: import with --dtype f32; weights in Constant nodes: optimize first",
            ));
    }
    Ok(all.into_iter().filter(|v| reached.contains(v)).collect())
}

/// A training run.
struct Run<'a> {
    trainer: Trainer,
    course: Course,
    schedule: Cosine,
    /// The original, with the data bound to it.
    teacher: Option<(Executor, Samples)>,
    data: &'a Samples,
    head: Head,
    settings: &'a Recover,
    ctx: &'a Ctx<'a>,
}

impl Run<'_> {
    fn objective(&self) -> Objective {
        if self.teacher.is_some() { Objective::Reference } else { Objective::Likelihood }
    }

    fn finish(mut self, graph: &Graph, report: &mut PassReport) -> Result<Graph> {
        let monitor = self.ctx.monitor;
        monitor.phase("recover", Some(self.course.steps));
        monitor.progress(self.course.step);
        if self.course.step == 0 {
            let first = self.look()?;
            self.course.begin(first);
            monitor.metric("held_out", 0, first);
        }
        let begin = Instant::now();
        let (mut saved, mut every) = (Instant::now(), SAVE_EVERY.0);
        let mut diverged = None;
        let mut tokens = 0u64;
        loop {
            match self.advance() {
                Ok(Some(seen)) => tokens += seen,
                Ok(None) => break,
                Err(e) if e.kind() == crate::error::Kind::Stopped => {
                    self.save_if(saved::bytes(&self.trainer) <= QUICK)?;
                    return Err(e);
                }
                Err(e) if matches!(e.code(), "TRAIN-NAN" | "LOSS-NAN") => {
                    let e = self.divergence(e);
                    if self.course.best_step == 0 {
                        return Err(e);
                    }
                    monitor.log(Level::Warning, &format!("{e}: the best weights so far are kept"));
                    diverged = Some(self.course.step);
                    break;
                }
                Err(e) => return Err(e.field(format!("training step {}", self.course.step))),
            }
            if saved.elapsed().as_secs_f64() >= every {
                let begin = Instant::now();
                self.save_if(true)?;
                saved = Instant::now();
                every = ((saved - begin).as_secs_f64() / SAVE_PART).clamp(SAVE_EVERY.0, SAVE_EVERY.1);
            }
        }
        let Course { step, first, best, best_step, .. } = self.course;
        let mut fact = |name: &str, value: f64| report.facts.insert(format!("recover_{name}"), value);
        fact("steps", step as f64);
        fact("held_out_before", first);
        fact("held_out_after", best);
        fact("segments", self.trainer.planner.count() as f64);
        if let Some(step) = diverged {
            fact("diverged_at", step as f64);
        }
        let seconds = begin.elapsed().as_secs_f64();
        if seconds > 0.0 && tokens > 0 {
            fact("tokens_per_s", tokens as f64 / seconds);
        }
        report.apply(
            "recover",
            format!("{} weights", self.trainer.len()),
            format!("{step} steps, held-out loss {first:.4} -> {best:.4} at step {best_step}"),
        );
        if best >= first {
            monitor.log(
                Level::Warning,
                "training made the held-out loss no better: the weights stay as they were; a lower rate may help",
            );
        }
        self.trainer.best(graph)
    }

    /// The error of a training whose loss or gradients are no numbers any more.
    fn divergence(&self, e: Error) -> Error {
        let (step, rate) = (self.course.step, self.schedule.at(self.course.step));
        let what = e.found_text().unwrap_or("not finite");
        Error::invalid("RECOVER-DIVERGED", "training diverged: the loss or its gradient is not finite")
            .field("step.recover.rate")
            .found(format!("{what} at training step {step}, rate {rate:e}"))
            .hint("lower the learning rate, or set clip")
            .source(e)
    }

    /// The look that is due, then one step: its tokens, none where training is over. What was done when
    /// it is stopped in between is part of the course.
    fn advance(&mut self) -> Result<Option<u64>> {
        let monitor = self.ctx.monitor;
        if self.course.due {
            let held_out = self.look()?;
            monitor.metric("held_out", self.course.step, held_out);
            if self.course.note(held_out) {
                self.trainer.mark()?;
            }
        }
        if self.course.over(self.settings.patience) {
            return Ok(None);
        }
        let step = self.course.step;
        let (loss, seen) = self.step()?;
        self.course.step += 1;
        self.course.due = self.course.looks_now();
        monitor.metric("loss", step, loss);
        monitor.metric("rate", step, self.schedule.at(step));
        monitor.progress(self.course.step);
        Ok(Some(seen))
    }

    fn save_if(&self, now: bool) -> Result<()> {
        if now { saved::save(self.ctx, &self.trainer, &self.course) } else { Ok(()) }
    }

    /// One optimiser step: loss and tokens.
    fn step(&mut self) -> Result<(f64, u64)> {
        let monitor = self.ctx.monitor;
        monitor.check()?;
        let rows = self.course.rows();
        let batch = self.data.batch(&rows)?;
        let reference = self.reference(&rows)?;
        let (head, objective) = (self.head, self.objective());
        let rate = self.schedule.at(self.course.step);
        let loss = self.trainer.step_watched(
            &batch.inputs,
            rate,
            &mut |outputs| {
                let loss = head.loss(objective, outputs, &batch, reference.as_deref())?;
                Ok((loss.mean(), loss.seeds))
            },
            &|| monitor.check(),
        )?;
        Ok((loss, batch.tokens as u64))
    }

    /// Mean loss on the held-out rows.
    fn look(&self) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for rows in self.course.held_out() {
            self.ctx.monitor.check()?;
            let batch = self.data.batch(rows)?;
            let reference = self.reference(rows)?;
            let outputs = self.trainer.outputs(&batch.inputs)?;
            let loss = self.head.loss(self.objective(), &outputs, &batch, reference.as_deref())?;
            sum += loss.sum;
            count += loss.count;
        }
        Ok(if count > 0.0 { sum / count } else { 0.0 })
    }

    /// Outputs of the original, where it is trained towards.
    fn reference(&self, rows: &[usize]) -> Result<Option<Vec<Value>>> {
        let Some((teacher, data)) = &self.teacher else { return Ok(None) };
        let batch = data.batch(rows)?;
        let monitor = self.ctx.monitor;
        teacher.run_watched(&batch.inputs, &Overrides::new(), &mut |_| monitor.check()).map(Some)
    }
}
