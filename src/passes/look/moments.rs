//! First and second moments of features over positions, gathered piece by piece.

use crate::error::Result;
use crate::evaluate::samples::Positions;
use crate::kernels::gemm::{Matrix, product};
use crate::ops::float::elements;
use crate::tensor::Value;

/// Sums over positions.
#[derive(Debug, Default)]
pub(in crate::passes) struct Moments {
    /// Sum of weights.
    count: f64,
    pub(in crate::passes) sum: Vec<f64>,
    /// Sum of products `[features, features]`, where it was asked for.
    pub(in crate::passes) gram: Option<Vec<f32>>,
}

impl Moments {
    pub(in crate::passes) fn of(features: usize, gram: bool) -> Moments {
        let gram = gram.then(|| vec![0f32; features * features]);
        Moments { count: 0.0, sum: vec![0.0; features], gram }
    }

    /// Mean by feature.
    pub(in crate::passes) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.weight()).collect()
    }

    fn weight(&self) -> f64 {
        if self.count > 0.0 { self.count } else { 1.0 }
    }

    /// Mean product of two features, about their means where `centred`.
    pub(in crate::passes) fn about(&self, i: usize, j: usize, centred: bool) -> f64 {
        let n = self.weight();
        let raw = self.gram.as_ref().map_or(0.0, |g| f64::from(g[i * self.sum.len() + j])) / n;
        if centred { raw - self.sum[i] / n * (self.sum[j] / n) } else { raw }
    }

    /// Mean square by feature, of features whose products were asked for.
    pub(in crate::passes) fn power(&self) -> Vec<f32> {
        (0..self.sum.len()).map(|i| self.about(i, i, false) as f32).collect()
    }

    /// Adds positions of equal weight; `x` holds one feature a row.
    pub(in crate::passes) fn add_columns(&mut self, x: &[f32], positions: usize) {
        self.count += positions as f64;
        for (sum, line) in self.sum.iter_mut().zip(x.chunks(positions.max(1))) {
            *sum += line.iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        if let Some(gram) = &mut self.gram {
            let matrix = Matrix::new(x, self.sum.len(), positions);
            product(1.0, matrix, matrix.t(), gram, true, true);
        }
    }

    /// Adds the positions of a value whose last axis holds the features, without padding.
    ///
    /// # Errors
    /// `Internal` where the value is no f32 tensor.
    pub(in crate::passes) fn add_value(&mut self, value: &Value, positions: &Positions) -> Result<()> {
        let float = value.float()?;
        let shape = float.dims();
        let axis = shape.len().saturating_sub(1);
        let x = elements::<f32>(float)?;
        let shown = positions.rows_of(shape, axis);
        let lines = x.chunks(shape[axis].max(1)).zip(&shown).filter(|(_, row)| row.is_some());
        let rows: Vec<f32> = lines.flat_map(|(line, _)| line.iter().copied()).collect();
        let count = rows.len() / shape[axis].max(1);
        self.add_rows(rows, &vec![1.0; count]);
        Ok(())
    }

    /// Adds positions by weight; `x` holds one position a row.
    pub(in crate::passes) fn add_rows(&mut self, mut x: Vec<f32>, weights: &[f64]) {
        let features = self.sum.len();
        self.count += weights.iter().sum::<f64>();
        for (line, weight) in x.chunks_mut(features.max(1)).zip(weights) {
            self.sum.iter_mut().zip(&*line).for_each(|(s, v)| *s += weight * f64::from(*v));
            let root = weight.sqrt() as f32;
            line.iter_mut().for_each(|v| *v *= root);
        }
        if let Some(gram) = &mut self.gram {
            let matrix = Matrix::new(&x, weights.len(), features).t();
            product(1.0, matrix, matrix.t(), gram, true, true);
        }
    }
}
