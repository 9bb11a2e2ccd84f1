//! What is known of a value before anything runs.

use super::dim::Dim;
use crate::tensor::{DType, Tensor};

/// Type, shape and, where known, content of a value.
#[derive(Debug, Clone)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Shape; `None` where not even the rank is known.
    pub shape: Option<Vec<Dim>>,
    /// The value itself, for initialisers and folded constants (large ones stay in their file).
    pub value: Option<Tensor>,
    /// Content of a small integer tensor of rank 0 or 1 as dimensions, which may be symbolic.
    pub dims: Option<Vec<Dim>>,
}

/// Largest tensor whose content is folded while shapes are inferred.
pub const FOLD_LIMIT: usize = 4096;

impl Fact {
    /// A value of this type and shape.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Fact {
        Fact { dtype, shape: Some(shape), value: None, dims: None }
    }
    /// A value of this type and unknown rank.
    pub fn unranked(dtype: DType) -> Fact {
        Fact { dtype, shape: None, value: None, dims: None }
    }
    /// A value of this type and fixed shape.
    pub fn fixed(dtype: DType, shape: &[usize]) -> Fact {
        Fact::new(dtype, shape.iter().map(|d| Dim::from(*d)).collect())
    }
    /// A constant. Small integers are also kept as dimensions.
    pub fn constant(tensor: &Tensor) -> Fact {
        let small = tensor.shape().len() <= 1 && tensor.len() <= FOLD_LIMIT && tensor.dtype().is_int();
        let dims =
            if small { tensor.to_i64s().ok().map(|v| v.into_iter().map(Dim::from).collect()) } else { None };
        let mut fact = Fact::fixed(tensor.dtype(), tensor.shape());
        fact.value = Some(tensor.clone());
        fact.dims = dims;
        fact
    }
    /// An integer tensor (rank 0 where `scalar`) with this content.
    pub fn of_dims(dtype: DType, dims: Vec<Dim>, scalar: bool) -> Fact {
        let known: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
        let shape = if scalar { vec![] } else { vec![dims.len()] };
        let value = known.and_then(|v| Tensor::from_vec(shape.clone(), v).ok()).map(|t| t.cast_to(dtype));
        Fact { dtype, shape: Some(shape.into_iter().map(Dim::from).collect()), value, dims: Some(dims) }
    }
    /// Rank, where known.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }
    /// Shape in numbers, where all are known.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::size).collect()
    }
    /// Number of elements, symbolic.
    pub fn elements(&self) -> Option<Dim> {
        self.shape.as_ref().map(Dim::product)
    }
    /// Content as integers, where known.
    pub fn ints(&self) -> Option<Vec<i64>> {
        match &self.dims {
            Some(d) => d.iter().map(Dim::known).collect(),
            None => self.value.as_ref().filter(|t| t.len() <= FOLD_LIMIT)?.to_i64s().ok(),
        }
    }
    /// The same fact without content.
    pub fn without_value(&self) -> Fact {
        Fact { dtype: self.dtype, shape: self.shape.clone(), value: None, dims: None }
    }
}
