//! Activations, in which products and sums may be in any order:
//!
//! ```text
//! Gelu         x * 1/2 * (1 + Erf(x / sqrt 2)), or with Tanh(sqrt(2 / pi) * (x + 0.044715 x^3))
//! Swish        x * Sigmoid(alpha x)
//! HardSwish    x * Clip(x + 3, 0, 6) / 6, or any x * HardSigmoid(x)
//! HardSigmoid  Clip(x + 3, 0, 6) / 6, and any other slope and offset that end at 0 and 1
//! ```
//!
//! Polynomials may be written out in any way. SwiGLU is its Swish and the product that follows.

use super::sketch::Sketch;
use super::{Form, Found};
use crate::graph::{NodeIndex, ValueId};

const CUBIC: f64 = 0.044715;

/// `x` times something of `x`.
pub(super) fn find(s: &mut Sketch<'_>, i: NodeIndex) -> Option<Found> {
    let (_, output) = s.is(i, &["Mul", "Div"])?;
    let (factor, leaves) = s.product(output)?;
    let [a, b] = leaves[..] else { return None };
    [(a, b), (b, a)].into_iter().find_map(|(x, gate)| {
        let form = s
            .attempt(|s| gelu(s, x, gate, factor))
            .or_else(|| s.attempt(|s| swish(s, x, gate, factor)))
            .or_else(|| s.attempt(|s| hard_swish(s, x, gate, factor)))?;
        Some(Found { form, inputs: vec![Some(x)], output })
    })
}

fn gelu(s: &mut Sketch<'_>, x: ValueId, gate: ValueId, factor: f64) -> Option<Form> {
    let (bent, slope, shift) = s.affine(gate)?;
    let node = s.take(bent, &["Erf", "Tanh"])?;
    let [c0, c1, c2, c3] = s.polynomial(node.inputs.first().copied().flatten()?, x)?;
    let tanh = node.is("Tanh");
    let (linear, cubic) = match tanh {
        true => (std::f64::consts::FRAC_2_PI.sqrt(), std::f64::consts::FRAC_2_PI.sqrt() * CUBIC),
        false => (std::f64::consts::FRAC_1_SQRT_2, 0.0),
    };
    let off: Vec<(f64, f64)> =
        [(factor * slope, 0.5), (factor * shift, 0.5), (c0, 0.0), (c1, linear), (c2, 0.0), (c3, cubic)]
            .into_iter()
            .filter(|(found, wanted)| !s.close_to(x, *found, *wanted))
            .collect();
    match off[..] {
        [] => Some(Form::Gelu { tanh }),
        [(found, wanted)] => s.miss("Gelu", format!("a coefficient is {found}, not {wanted}")),
        _ => None,
    }
}

fn swish(s: &mut Sketch<'_>, x: ValueId, gate: ValueId, factor: f64) -> Option<Form> {
    let node = s.take(gate, &["Sigmoid"])?;
    let [c0, alpha, c2, c3] = s.polynomial(node.inputs.first().copied().flatten()?, x)?;
    (factor == 1.0 && c0 == 0.0 && alpha != 0.0 && c2 == 0.0 && c3 == 0.0).then_some(Form::Swish { alpha })
}

fn hard_swish(s: &mut Sketch<'_>, x: ValueId, gate: ValueId, factor: f64) -> Option<Form> {
    if let Some(node) = s.attempt(|s| s.take(gate, &["HardSigmoid"])) {
        let alpha = node.attributes.float("alpha", 0.2).ok()?;
        let beta = node.attributes.float("beta", 0.5).ok()?;
        let same = node.inputs.first().copied().flatten() == Some(x);
        return (same && factor == 1.0).then(|| Form::HardGate { alpha: alpha.into(), beta: beta.into() });
    }
    let (argument, high) = clipped(s, gate)?;
    let [c0, c1, c2, c3] = s.polynomial(argument, x)?;
    let off: Vec<(f64, f64)> =
        [(factor * high, 1.0), (factor * c1, 1.0 / 6.0), (factor * c0, 0.5), (c2, 0.0), (c3, 0.0)]
            .into_iter()
            .filter(|(found, wanted)| !s.close_to(x, *found, *wanted))
            .collect();
    match off[..] {
        [] => Some(Form::HardSwish),
        [(found, wanted)] => s.miss("HardSwish", format!("a coefficient is {found}, not {wanted}")),
        _ => None,
    }
}

/// A clipped line that ends at 0 and 1.
pub(super) fn find_ramp(s: &mut Sketch<'_>, i: NodeIndex) -> Option<Found> {
    let (_, output) = s.is(i, &["Mul", "Div", "Clip"])?;
    let (bounded, factor, shift) = s.affine(output)?;
    let (argument, high) = clipped(s, bounded)?;
    let (x, slope, offset) = s.affine(argument)?;
    let fits = shift == 0.0 && slope != 0.0 && s.close_to(x, factor * high, 1.0);
    let form = Form::HardSigmoid { alpha: factor * slope, beta: factor * offset };
    fits.then_some(Found { form, inputs: vec![Some(x)], output })
}

/// What `v` clips to at least 0, and the upper end.
fn clipped(s: &mut Sketch<'_>, v: ValueId) -> Option<(ValueId, f64)> {
    let node = s.take(v, &["Clip"])?;
    let argument = node.inputs.first().copied().flatten()?;
    let (low, high) = match node.inputs[..] {
        // Before operator set 11.
        [_] => {
            let bound = |name| node.attributes.get(name).and(node.attributes.float(name, 0.0).ok());
            (f64::from(bound("min")?), f64::from(bound("max")?))
        }
        [_, Some(low), Some(high)] => (s.number(low)?, s.number(high)?),
        _ => return None,
    };
    (low == 0.0 && high > 0.0).then_some((argument, high))
}
