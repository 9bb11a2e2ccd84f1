//! Optimisers, in place on plain slices, and learning-rate schedules.

use crate::kernels::adam::{self, Factors};
use std::f64::consts::PI;

/// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101): decoupled weight decay.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay per step, times the learning rate.
    pub weight_decay: f32,
    steps: i32,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    /// The usual constants: 0.9, 0.999, 1e-8.
    pub fn new(weight_decay: f32) -> AdamW {
        AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, steps: 0, moments: vec![] }
    }

    /// One step over all parameters. The list must be the same, in the same order, at every call;
    /// `decay[i]` says whether parameter `i` decays (biases and norm scales do not).
    pub fn step(&mut self, lr: f64, parameters: &mut [&mut [f32]], gradients: &[&[f32]], decay: &[bool]) {
        let mut update = self.update(lr, 1.0);
        for (i, p) in parameters.iter_mut().enumerate() {
            update.apply(i, p, gradients[i], decay[i]);
        }
    }

    /// Steps that were made.
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// First and second moment of parameter `i`, once there was a step.
    pub fn moments(&self, i: usize) -> Option<(&[f32], &[f32])> {
        self.moments.get(i).map(|(m, v)| (m.as_slice(), v.as_slice()))
    }

    /// Goes on behind `steps` steps with these moments.
    pub fn go_on(&mut self, steps: i32, moments: Vec<(Vec<f32>, Vec<f32>)>) {
        (self.steps, self.moments) = (steps, moments);
    }

    /// Begins a step, whose parameters are then updated one by one; gradients are multiplied with `scale`.
    pub fn update(&mut self, lr: f64, scale: f32) -> Update<'_> {
        self.steps += 1;
        Update { lr, scale, optimizer: self }
    }
}

/// One step of an optimiser, parameter by parameter.
#[derive(Debug)]
pub struct Update<'a> {
    optimizer: &'a mut AdamW,
    lr: f64,
    scale: f32,
}

impl Update<'_> {
    /// Updates parameter `i`, once a step; numbers and sizes of parameters are the same at every step.
    pub fn apply(&mut self, i: usize, parameter: &mut [f32], gradient: &[f32], decay: bool) {
        let o = &mut *self.optimizer;
        if o.moments.len() <= i {
            o.moments.resize_with(i + 1, Default::default);
        }
        let (m, v) = &mut o.moments[i];
        m.resize(parameter.len(), 0.0);
        v.resize(parameter.len(), 0.0);
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(o.steps);
        let factors = Factors {
            beta1: o.beta1,
            beta2: o.beta2,
            rate: (self.lr / correction(o.beta1)) as f32,
            scale2: (1.0 / correction(o.beta2)) as f32,
            eps: o.eps,
            shrink: if decay { 1.0 - self.lr as f32 * o.weight_decay } else { 1.0 },
            gradient: self.scale,
        };
        adam::step(factors, parameter, m, v, gradient);
    }
}

/// Learning rate with a linear warm-up and a cosine decay to `floor * peak`.
#[derive(Debug, Clone, Copy)]
pub struct Cosine {
    /// Largest rate.
    pub peak: f64,
    /// Last rate relative to the peak.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Cosine {
    /// The rate at a step, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let x = ((step - self.warmup) as f64 / span).min(1.0);
        self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * x).cos()))
    }
}

/// What gradients of joint L2 norm `norm` are multiplied with, so that it becomes at most `limit`.
pub fn clip(norm: f64, limit: f64) -> f32 {
    if norm > limit { (limit / norm) as f32 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adamw_finds_the_minimum_of_a_bowl() {
        let mut w = [3.0f32, -2.0];
        let mut adam = AdamW::new(0.0);
        let schedule = Cosine { peak: 0.1, floor: 0.0, warmup: 10, total: 500 };
        for step in 0..500 {
            let g = [2.0 * (w[0] - 1.0), 8.0 * (w[1] - 0.5)];
            adam.step(schedule.at(step), &mut [&mut w], &[&g], &[true]);
        }
        assert!((w[0] - 1.0).abs() < 1e-3 && (w[1] - 0.5).abs() < 1e-3, "{w:?}");
    }

    #[test]
    fn first_adamw_step_moves_by_the_rate_and_decay_shrinks() {
        let mut w = [1.0f32];
        AdamW::new(0.5).step(0.1, &mut [&mut w], &[&[4.0]], &[true]);
        assert!((w[0] - (1.0 * 0.95 - 0.1)).abs() < 1e-6);
    }
}
