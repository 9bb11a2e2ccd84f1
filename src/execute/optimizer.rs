//! Optimisers, in place on plain slices, and learning-rate schedules.

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
        self.steps += 1;
        if self.moments.is_empty() {
            self.moments = parameters.iter().map(|p| (vec![0.0; p.len()], vec![0.0; p.len()])).collect();
        }
        let (b1, b2, eps) = (self.beta1, self.beta2, self.eps);
        let scale1 = 1.0 / (1.0 - f64::from(b1).powi(self.steps)) as f32;
        let scale2 = 1.0 / (1.0 - f64::from(b2).powi(self.steps)) as f32;
        let lr = lr as f32;
        for (i, p) in parameters.iter_mut().enumerate() {
            let (m, v) = &mut self.moments[i];
            let shrink = if decay[i] { 1.0 - lr * self.weight_decay } else { 1.0 };
            for (((w, g), m), v) in p.iter_mut().zip(gradients[i]).zip(m.iter_mut()).zip(v.iter_mut()) {
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                *w = *w * shrink - lr * (*m * scale1) / ((*v * scale2).sqrt() + eps);
            }
        }
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

/// Scales gradients so that their joint L2 norm is at most `limit`; returns the norm before.
pub fn clip(gradients: &mut [Vec<f32>], limit: f64) -> f64 {
    let norm = gradients.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
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
