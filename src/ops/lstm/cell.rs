//! The recurrence of one direction, and its gradient through time.

use super::super::float::Float;
use super::super::{Operator, Vjp};
use crate::error::Result;
use crate::tensor::Value;
use std::sync::Arc;

/// Gates in the order in which weights hold them: input, output, forget, candidate.
pub(super) const GATES: usize = 4;

/// One direction: `i, o, f = F(z)`, `g = G(z)`, `c' = f c + i g`, `h' = o H(c')`, with
/// `z = x W^T + h R^T + biases`, to which peepholes add the cell that they look at.
#[derive(Debug)]
pub(super) struct Cell {
    /// F, G and H.
    pub(super) functions: [Arc<dyn Operator>; 3],
    /// Arguments of F and G are limited to this magnitude.
    pub(super) clip: Option<f64>,
    /// The forget gate is what the input gate leaves.
    pub(super) coupled: bool,
}

/// What one direction runs over.
pub(super) struct Sequence<'a> {
    /// `x W^T` and both biases, `[length, batch, 4 hidden]`.
    pub(super) projected: Float,
    /// `[batch, hidden]` to `[batch, 4 hidden]`.
    pub(super) recurrent: &'a dyn Fn(&Float) -> Result<Float>,
    /// Weights of the cell in the input, output and forget gate, each `[hidden]`.
    pub(super) peepholes: Option<[Float; 3]>,
    /// First hidden state and first cell, each `[batch, hidden]`.
    pub(super) start: [Float; 2],
    /// By position: 1 for rows that reach it, 0 for those that have ended, `[batch, 1]`. Absent where all
    /// rows reach all positions.
    pub(super) reach: Option<Vec<Float>>,
    pub(super) reverse: bool,
}

/// What one position computes. Each is `[batch, hidden]`.
pub(super) struct Step {
    pub(super) at: usize,
    before: [Float; 2],
    arguments: [Float; GATES],
    gates: [Float; GATES],
    cell: Float,
    squashed: Float,
    /// The output; zero for rows that have ended.
    pub(super) output: Float,
    /// Hidden state and cell behind this position.
    pub(super) after: [Float; 2],
}

/// Gradients of what enters a direction.
pub(super) struct Back {
    /// Of [`Sequence::projected`].
    pub(super) projected: Float,
    /// Of the first hidden state and of the first cell.
    pub(super) start: [Float; 2],
    /// Of the recurrent weights, `[4 hidden, hidden]`.
    pub(super) recurrent: Float,
    /// Of the peepholes, `[3 hidden]`.
    pub(super) peepholes: Option<Float>,
}

fn apply(function: &Arc<dyn Operator>, x: &Float) -> Result<Float> {
    Ok(function.eval(&[Some(&x.clone().into())])?.remove(0).float()?.clone())
}

/// The gradient of a function's argument.
fn slope(function: &Arc<dyn Operator>, x: &Float, y: &Float, grad: Float) -> Result<Float> {
    let (x, y): (Value, Value) = (x.clone().into(), y.clone().into());
    let (inputs, outputs, grads) = ([Some(&x)], [Some(&y)], [Some(grad)]);
    let found = function.vjp(&Vjp { inputs: &inputs, outputs: &outputs, grads: &grads, needs: &[true] })?;
    match found.into_iter().next().flatten() {
        Some(d) => Ok(d),
        None => Ok(x.float()?.zeros_like()?),
    }
}

/// `new` for rows that reach a position, `old` for the others.
fn held(reach: Option<&Float>, new: &Float, old: &Float) -> Result<Float> {
    let Some(reach) = reach else { return Ok(new.clone()) };
    let rest = reach.affine(-1.0, 1.0)?;
    Ok((new.broadcast_mul(reach)? + old.broadcast_mul(&rest)?)?)
}

impl Cell {
    /// Runs over the positions in the order of the direction.
    pub(super) fn run(&self, s: &Sequence<'_>, mut see: impl FnMut(Step)) -> Result<[Float; 2]> {
        let length = s.projected.dim(0)?;
        let mut state = s.start.clone();
        for k in 0..length {
            let at = if s.reverse { length - 1 - k } else { k };
            let step = self.step(s, at, state)?;
            state = step.after.clone();
            see(step);
        }
        Ok(state)
    }

    fn step(&self, s: &Sequence<'_>, at: usize, before: [Float; 2]) -> Result<Step> {
        let [h, c] = &before;
        let hidden = h.dim(1)?;
        let z = (s.projected.get(at)? + (s.recurrent)(h)?)?;
        let argument = |gate: usize, looks_at: Option<&Float>| -> Result<Float> {
            let mut z = z.narrow(1, gate * hidden, hidden)?;
            if let (Some(peepholes), Some(cell)) = (&s.peepholes, looks_at) {
                z = (z + cell.broadcast_mul(&peepholes[gate])?)?;
            }
            Ok(match self.clip {
                Some(limit) => z.clamp(-limit, limit)?,
                None => z.contiguous()?,
            })
        };
        let [gate, candidate, out] = &self.functions;
        let (zi, zf, zg) = (argument(0, Some(c))?, argument(2, Some(c))?, argument(3, None)?);
        let (i, g) = (apply(gate, &zi)?, apply(candidate, &zg)?);
        let f = if self.coupled { i.affine(-1.0, 1.0)? } else { apply(gate, &zf)? };
        let cell = ((&f * c)? + (&i * &g)?)?;
        let zo = argument(1, Some(&cell))?;
        let (o, squashed) = (apply(gate, &zo)?, apply(out, &cell)?);
        let new = (&o * &squashed)?;
        let reach = s.reach.as_ref().map(|by| &by[at]);
        let output = held(reach, &new, &new.zeros_like()?)?;
        let after = [held(reach, &new, h)?, held(reach, &cell, c)?];
        Ok(Step {
            at,
            before,
            arguments: [zi, zo, zf, zg],
            gates: [i, o, f, g],
            cell,
            squashed,
            output,
            after,
        })
    }

    /// Gradients from those of the outputs `[length, batch, hidden]` and of the last states. `weights` are
    /// the recurrent ones, `[4 hidden, hidden]`; `steps` as [`Cell::run`] gave them.
    pub(super) fn back(
        &self,
        s: &Sequence<'_>,
        steps: &[Step],
        weights: &Float,
        outputs: Option<&Float>,
        last: [Option<Float>; 2],
    ) -> Result<Back> {
        let nothing = s.start[0].zeros_like()?;
        let [mut dh, mut dc] = last.map(|g| g.unwrap_or_else(|| nothing.clone()));
        let hidden = nothing.dim(1)?;
        let mut recurrent = weights.zeros_like()?;
        let none = Float::zeros(hidden, nothing.dtype(), nothing.device())?;
        let mut looks = s.peepholes.is_some().then(|| [none.clone(), none.clone(), none]);
        let mut projected = vec![nothing.clone(); steps.len()];
        for step in steps.iter().rev() {
            let reach = s.reach.as_ref().map(|by| &by[step.at]);
            let [h, c] = &step.before;
            let (passed_h, passed_c) = (held(reach, &nothing, &dh)?, held(reach, &nothing, &dc)?);
            let given = match outputs {
                Some(grads) => (grads.get(step.at)? + &dh)?,
                None => dh.clone(),
            };
            let (dh_new, mut dc_new) = (held(reach, &given, &nothing)?, held(reach, &dc, &nothing)?);
            let [gate, candidate, out] = &self.functions;
            let [i, o, f, g] = &step.gates;
            dc_new = (dc_new + slope(out, &step.cell, &step.squashed, (&dh_new * o)?)?)?;
            let through = |which: &Arc<dyn Operator>, n: usize, grad: Float| -> Result<Float> {
                let d = slope(which, &step.arguments[n], &step.gates[n], grad)?;
                Ok(match self.clip {
                    Some(limit) => (d * step.arguments[n].abs()?.lt(limit)?.to_dtype(nothing.dtype())?)?,
                    None => d,
                })
            };
            let dzo = through(gate, 1, (&dh_new * &step.squashed)?)?;
            if let Some(p) = &s.peepholes {
                dc_new = (dc_new + dzo.broadcast_mul(&p[1])?)?;
            }
            let (mut di, df) = ((&dc_new * g)?, (&dc_new * c)?);
            let dzf = match self.coupled {
                true => {
                    di = (di - df)?;
                    nothing.clone()
                }
                false => through(gate, 2, df)?,
            };
            let (dzi, dzg) = (through(gate, 0, di)?, through(candidate, 3, (&dc_new * i)?)?);
            dc = ((&dc_new * f)? + passed_c)?;
            if let (Some(p), Some(looks)) = (&s.peepholes, &mut looks) {
                dc = ((dc + dzi.broadcast_mul(&p[0])?)? + dzf.broadcast_mul(&p[2])?)?;
                for (look, (dz, cell)) in looks.iter_mut().zip([(&dzi, c), (&dzo, &step.cell), (&dzf, c)]) {
                    *look = (&*look + (dz * cell)?.sum(0)?)?;
                }
            }
            let dz = Float::cat(&[&dzi, &dzo, &dzf, &dzg], 1)?;
            dh = (dz.matmul(weights)? + passed_h)?;
            recurrent = (recurrent + dz.t()?.matmul(&h.contiguous()?)?)?;
            projected[step.at] = dz;
        }
        let projected = match projected.is_empty() {
            true => s.projected.zeros_like()?,
            false => Float::stack(&projected, 0)?,
        };
        let peepholes = looks.map(|looks| Float::cat(&looks, 0)).transpose()?;
        Ok(Back { projected, start: [dh, dc], recurrent, peepholes })
    }
}
