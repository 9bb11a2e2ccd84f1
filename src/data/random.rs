//! Seeded inputs for models whose data is not at hand: for timing and parity, not for quality.

use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Tensor, cast, element_count};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Type and fixed shape of an input.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct InputShape {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
}

/// Most elements of one random input.
const LIMIT: usize = 1 << 30;

/// One tensor for each input: floats uniform in [-1, 1), integers in 0..32 (small enough for any
/// vocabulary), ones where the name says mask, zeros where it says type or segment.
pub fn random_inputs(inputs: &[InputShape], seed: u64) -> Result<Vec<(String, Tensor)>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    inputs
        .iter()
        .map(|input| {
            let count = element_count(&input.shape).filter(|n| *n <= LIMIT).ok_or_else(|| {
                Error::limit_exceeded("INPUT-SIZE", "the input is too large")
                    .field(format!("input \"{}\"", input.name))
                    .found(format!("{:?}", input.shape))
                    .limit(format!("{LIMIT} elements"))
            })?;
            let name = input.name.to_lowercase();
            let values: Vec<f32> = if input.dtype.is_float() {
                (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
            } else if name.contains("mask") || input.dtype == DType::Bool {
                vec![1.0; count]
            } else if name.contains("type") || name.contains("segment") {
                vec![0.0; count]
            } else {
                (0..count).map(|_| rng.random_range(0..32) as f32).collect()
            };
            let data = cast(&Data::F32(values), DType::F32, input.dtype)
                .map_err(|e| e.field(format!("input \"{}\"", input.name)))?;
            Ok((input.name.clone(), Tensor::new(input.dtype, input.shape.clone(), data)?))
        })
        .collect()
}
