//! Operators: one file per family, each operator knows everything about itself: shape inference, cost,
//! evaluation, vector-Jacobian product, axis coupling. They see facts, values and attributes, never a
//! graph. To support an operator is to add it here and to its family's [`Spec`] table, nowhere else.

pub mod attributes;
pub mod broadcast;
pub mod coupling;
pub mod dim;
pub mod fact;

mod activation;
mod along;
mod arithmetic;
mod attention;
mod bits;
mod block_weights;
mod cast;
mod compare;
mod conv;
mod constant;
mod einsum;
pub(crate) mod elements;
pub(crate) mod float;
mod gather;
mod grouped_attention;
mod integer;
mod lstm;
mod matmul;
mod movement;
mod multi_head_attention;
mod normalization;
mod pool;
mod qlinear;
mod quantize;
mod reduce;
mod resize;
mod reshape;
mod rotary;
pub mod saturation;
mod softmax;
mod scatter;
mod select;
mod shape;
mod skip_norm;
mod spatial;
pub(crate) mod spelled;
mod unary;
mod vector_norm;

pub use attributes::{Attr, Attributes};
pub use coupling::{Coupling, Cut, Link, Pattern, Port};
pub use dim::Dim;
pub use fact::Fact;
pub use skip_norm::EPSILON as SKIP_NORM_EPSILON;

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, Value};
use std::{fmt, sync::Arc};

/// The forward values that a vector-Jacobian product reads; the executor keeps only these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeps {
    /// Input values.
    pub inputs: bool,
    /// Output values.
    pub outputs: bool,
}

/// What enters a vector-Jacobian product.
pub struct Vjp<'a> {
    /// Forward inputs. Of floats only the shape may be trusted unless `keeps().inputs`; host tensors
    /// (shapes, axes, indices) always hold their elements.
    pub inputs: &'a [Option<&'a Value>],
    /// Forward outputs, where `keeps().outputs`.
    pub outputs: &'a [Option<&'a Value>],
    /// Gradient of the loss with respect to each output; `None` where nothing flows back.
    pub grads: &'a [Option<candle_core::Tensor>],
    /// Which inputs need a gradient.
    pub needs: &'a [bool],
}

/// Why an operator has no gradient by its nature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// The result depends on shapes alone, or on nothing: there is no gradient to hand on.
    Shapes,
    /// The result is of integers or truth values.
    Whole,
    /// The elements are integers, or are rounded to such.
    Integers,
    /// The result is constant between jumps.
    Steps,
    /// How many results there are depends on the elements.
    Count,
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Barrier::Shapes => "the result depends on no element",
            Barrier::Whole => "the result is of integers or truth values",
            Barrier::Integers => "it works on integers or rounds to them",
            Barrier::Steps => "the result is constant between jumps",
            Barrier::Count => "how many results there are depends on the elements",
        })
    }
}

/// New attributes and constant inputs of a node whose axes are cut.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// Attributes to set.
    pub attributes: Vec<(String, Attr)>,
    /// Attributes that no longer hold.
    pub remove: Vec<String>,
    /// Constant inputs to replace: (input, tensor).
    pub inputs: Vec<(usize, Tensor)>,
}

/// Where a node sums products of data and a weight over one axis of both, index by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contraction {
    /// Input that holds the data, and the axis that is summed over.
    pub data: (usize, usize),
    /// Input that holds the weight, and the axis that is summed over.
    pub weight: (usize, usize),
    /// Axis of the weight that becomes `output`.
    pub features: usize,
    /// Axis of the first output that holds the features.
    pub output: usize,
    /// Input that is added to the features, where there is one.
    pub bias: Option<usize>,
}

/// Takes (row of the batch, columns `[features, positions]`, positions).
pub type Columns<'a> = dyn FnMut(usize, &[f32], usize) + 'a;

/// One operator with its attributes parsed. `inputs` hold `None` where an optional input is absent.
pub trait Operator: fmt::Debug + Send + Sync {
    /// Output facts. Fails with kind `Invalid` where the inputs cannot be, naming what is wrong.
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>>;

    /// Multiply-accumulates of one evaluation; zero for operators without products.
    /// `None` where the shapes do not tell.
    fn macs(&self, _inputs: &[Option<&Fact>], _outputs: &[Fact]) -> Option<Dim> {
        Some(Dim::from(0i64))
    }

    /// Evaluates. Must not panic on any input that passes `infer`; shape errors are kind `Invalid`.
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>>;

    /// Whether gradients can flow back through this operator (with these attributes).
    fn differentiable(&self) -> bool {
        false
    }

    /// Why no gradient flows where none does by nature. To ask for one is an error, except through
    /// [`Barrier::Shapes`], where nothing is lost.
    fn barrier(&self) -> Option<Barrier> {
        None
    }

    /// Which forward values [`Operator::vjp`] reads.
    fn keeps(&self) -> Keeps {
        Keeps { inputs: true, outputs: false }
    }

    /// Gradients of the inputs that `needs` asks for, shaped like the inputs; `None` elsewhere and for
    /// inputs through which nothing flows (indices, shapes).
    fn vjp(&self, _v: &Vjp<'_>) -> Result<Vec<Option<candle_core::Tensor>>> {
        Err(Error::unsupported("NO-VJP", "no gradient is defined for this operator"))
    }

    /// The sum of products that this operator is with its second input as the weight, if it is one.
    fn contraction(&self, _inputs: &[Option<&Fact>]) -> Option<Contraction> {
        None
    }

    /// For a [`Contraction`] whose products are not taken over the data as they lie: the data as columns
    /// `[features, positions]` by row of the batch, the features in the order of the weight's elements
    /// for one output feature. False where the data's own axis holds the features.
    fn unfold(&self, _inputs: &[Option<&Value>], _see: &mut Columns<'_>) -> Result<bool> {
        Ok(false)
    }

    /// Inputs with the outputs that may be written into their place: cells behind those in use are never
    /// read, and the runtime takes a longer buffer that is bound to both.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// How axes couple. The default pins every axis.
    fn couple(&self, _inputs: &[Option<&Fact>], _outputs: &[Fact]) -> Coupling {
        Coupling { reason: Some("the operator has no coupling rule".into()), ..Coupling::default() }
    }

    /// New attributes and constants after axes were cut. Constant inputs whose own axes are cut
    /// (weights) are sliced by the caller, not here.
    fn resize(&self, _inputs: &[Option<&Fact>], _outputs: &[Fact], _cut: &Cut) -> Result<Rewrite> {
        Ok(Rewrite::default())
    }

    /// Whether the same inputs always give the same outputs; others are never folded.
    fn deterministic(&self) -> bool {
        true
    }
}

/// Parses the attributes of one node; the second argument is the operator-set version in force.
pub type Parse = fn(&Attributes, i64) -> Result<Arc<dyn Operator>>;

/// The claim that a family makes for one operator.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Domain, empty for the default one.
    pub domain: &'static str,
    /// Operator name.
    pub name: &'static str,
    /// First and last operator-set version that is covered.
    pub opsets: (i64, i64),
    /// Element types of the first input that are covered.
    pub dtypes: &'static [DType],
    /// Parser.
    pub parse: Parse,
}

impl Spec {
    /// A claim for the default domain, from this operator-set version to [`LAST_OPSET`].
    pub const fn new(name: &'static str, from: i64, dtypes: &'static [DType], parse: Parse) -> Spec {
        Spec { domain: "", name, opsets: (from, LAST_OPSET), dtypes, parse }
    }
}

/// The last default-domain operator-set version that families claim.
pub const LAST_OPSET: i64 = 26;

/// The default domain has two spellings.
pub fn canonical_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Every claim, family by family.
pub fn specs() -> impl Iterator<Item = &'static Spec> {
    FAMILIES.iter().flat_map(|f| f.iter())
}

/// The claim for an operator at a version, if there is one.
pub fn lookup(domain: &str, name: &str, opset: i64) -> Option<&'static Spec> {
    let domain = canonical_domain(domain);
    specs().find(|s| s.domain == domain && s.name == name && (s.opsets.0..=s.opsets.1).contains(&opset))
}

const FAMILIES: &[&[Spec]] = &[
    activation::SPECS,
    along::SPECS,
    arithmetic::SPECS,
    attention::SPECS,
    bits::SPECS,
    block_weights::SPECS,
    cast::SPECS,
    compare::SPECS,
    conv::SPECS,
    constant::SPECS,
    einsum::SPECS,
    gather::SPECS,
    grouped_attention::SPECS,
    integer::SPECS,
    lstm::SPECS,
    matmul::SPECS,
    movement::SPECS,
    multi_head_attention::SPECS,
    normalization::SPECS,
    pool::SPECS,
    qlinear::SPECS,
    quantize::SPECS,
    reduce::SPECS,
    reshape::SPECS,
    resize::SPECS,
    rotary::SPECS,
    softmax::SPECS,
    unary::SPECS,
    scatter::SPECS,
    select::SPECS,
    shape::SPECS,
    skip_norm::SPECS,
    vector_norm::SPECS,
];

/// The n-th input, or an error that says which one is missing.
pub fn input<'a, T: ?Sized>(inputs: &[Option<&'a T>], n: usize) -> Result<&'a T> {
    inputs
        .get(n)
        .copied()
        .flatten()
        .ok_or_else(|| Error::invalid("OP-INPUT", "a required input is missing").field(format!("input[{n}]")))
}

/// An axis from attributes (negative counts from the end) as an index below `rank`.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(resolved).ok().filter(|a| *a < rank).ok_or_else(|| {
        Error::invalid("OP-AXIS", "axis is out of range")
            .found(axis)
            .limit(format!("-{rank} to {}", rank as i64 - 1))
    })
}
