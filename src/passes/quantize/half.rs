//! Weights stored in 16-bit floats and cast back where they are used, so that a file is half as large and computes
//! in f32 as before. ONNX Runtime folds the casts when it loads the file, so that memory is as for f32. Tables of
//! angles, vectors and small tensors stay, and so does, by name and with the reason, what the type cannot hold.

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Uses, ValueId};
use crate::monitor::Monitor;
use crate::ops::{Attr, Attributes};
use crate::passes::PassReport;
use crate::tensor::{DType, Tensor};
use half::{bf16, f16};

/// Elements below which a weight is not worth a cast.
const SMALL: usize = 1024;
/// Casts know bf16 from here on.
const OPSET: i64 = 13;

/// Inputs that hold angles, which half precision would spoil.
const ANGLES: &[(&str, &[usize])] = &[
    ("RotaryEmbedding", &[1, 2]),
    ("com.microsoft:RotaryEmbedding", &[2, 3]),
    ("com.microsoft:GroupQueryAttention", &[7, 8]),
];

/// A 16-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// IEEE half: 11 bits of precision, up to 65504.
    F16,
    /// Brain float: 8 bits of precision, the range of f32.
    Bf16,
}

impl Half {
    fn dtype(self) -> DType {
        if self == Half::F16 { DType::F16 } else { DType::BF16 }
    }
    /// Name in settings and reports.
    pub(super) fn rule(self) -> &'static str {
        if self == Half::F16 { "fp16" } else { "bf16" }
    }
    fn suffix(self) -> &'static str {
        if self == Half::F16 { "f16" } else { "bf16" }
    }
    /// What is left of a number.
    fn stored(self, x: f32) -> f32 {
        if self == Half::F16 { f16::from_f32(x).to_f32() } else { bf16::from_f32(x).to_f32() }
    }
    /// Least magnitude with full precision.
    fn normal(self) -> f32 {
        if self == Half::F16 { f16::MIN_POSITIVE.to_f32() } else { bf16::MIN_POSITIVE.to_f32() }
    }
    /// Largest number.
    fn largest(self) -> f32 {
        if self == Half::F16 { f16::MAX.to_f32() } else { bf16::MAX.to_f32() }
    }
}

/// What storing a tensor in 16 bits does to it.
#[derive(Debug, Default)]
struct Loss {
    /// Largest relative error of elements with full precision.
    relative: f32,
    /// Elements that are not zero and become zero, and those that lose precision below the least normal number.
    flushed: usize,
    subnormal: usize,
    /// Elements that are not finite, those beyond the range, and the largest magnitude.
    bad: usize,
    beyond: usize,
    top: f32,
}

impl Loss {
    fn of(tensor: &Tensor, half: Half) -> Result<Loss> {
        let mut loss = Loss::default();
        tensor.for_each_piece(&mut |_, piece| {
            for x in piece {
                if !x.is_finite() {
                    loss.bad += 1;
                    continue;
                }
                loss.top = loss.top.max(x.abs());
                let y = half.stored(*x);
                if x.abs() > half.largest() || !y.is_finite() {
                    loss.beyond += 1;
                } else if x.abs() >= half.normal() {
                    loss.relative = loss.relative.max((y - x).abs() / x.abs());
                } else if *x != 0.0 && y == 0.0 {
                    loss.flushed += 1;
                } else if y != *x {
                    loss.subnormal += 1;
                }
            }
            Ok(())
        })?;
        Ok(loss)
    }
}

/// The graph with its weights in 16 bits. The report has an entry for each weight that is stored, and for each
/// float constant that stays, with the reason.
///
/// # Errors
/// Those of reading weights; `Stopped` when asked to.
pub fn stored(graph: &Graph, half: Half, monitor: &dyn Monitor, report: &mut PassReport) -> Result<Graph> {
    let raised = match half {
        Half::Bf16 => graph.upgrade(OPSET)?,
        Half::F16 => graph.clone(),
    };
    let graph = &raised;
    let (rule, uses) = (half.rule(), graph.uses());
    let mut edit = graph.edit();
    let (mut relative, mut flushed, mut subnormal) = (0f32, 0, 0);
    let floats: Vec<(ValueId, Tensor)> =
        graph.initializers().filter(|(_, t)| t.dtype() == DType::F32).map(|(v, t)| (v, t.clone())).collect();
    monitor.phase("quantize: weights", Some(floats.len() as u64));
    for (done, (v, tensor)) in floats.into_iter().enumerate() {
        monitor.check()?;
        monitor.progress(done as u64);
        let name = graph.value_name(v).to_string();
        if let Some(why) = stays(graph, &uses, v, &tensor) {
            report.skip(rule, name, why);
            continue;
        }
        let loss = Loss::of(&tensor, half)?;
        if loss.bad > 0 {
            report.skip(rule, &name, super::weights::refusal(&name, loss.bad, tensor.len()));
            continue;
        }
        if loss.beyond > 0 {
            let told = format!(
                "weight \"{name}\" stays in f32: it reaches {:e}, {} ends at {:e}",
                loss.top,
                half.suffix(),
                half.largest()
            );
            report.skip(rule, name, told);
            continue;
        }
        edit.remove_initializer(v);
        let stored = edit.add_initializer(&format!("{name}.{}", half.suffix()), tensor.cast_to(half.dtype()));
        let to = Attributes::new().with("to", Attr::Int(i64::from(DType::F32.onnx())));
        let cast = Node::new("Cast", vec![Some(stored)], vec![Some(v)]);
        edit.add_node(cast.with(to).named(format!("{name}.cast")));
        (relative, flushed) = (relative.max(loss.relative), flushed + loss.flushed);
        subnormal += loss.subnormal;
        let small = match loss.flushed + loss.subnormal {
            0 => String::new(),
            n => format!(", {n} below the least normal number, of which {} become zero", loss.flushed),
        };
        report.apply(rule, name, format!("relative error at most {:.2e}{small}", loss.relative));
    }
    report.facts.insert("largest_relative_error".into(), f64::from(relative));
    report.facts.insert("flushed_to_zero".into(), flushed as f64);
    report.facts.insert("subnormal".into(), subnormal as f64);
    edit.commit()
}

/// Why a float constant stays as it is, whatever it holds.
fn stays(graph: &Graph, uses: &Uses, v: ValueId, tensor: &Tensor) -> Option<&'static str> {
    let angles = uses.consumers(v).iter().any(|(i, slot)| {
        let name = graph.node(*i).operator_name();
        ANGLES.iter().any(|(op, slots)| *op == name && slots.contains(slot))
    });
    if angles {
        return Some("it holds angles");
    }
    if graph.constant(v).is_none() || graph.inputs().contains(&v) {
        return Some("a caller may replace it");
    }
    if uses.consumers(v).is_empty() || graph.outputs().contains(&v) {
        return Some("no node reads it, or it is an output");
    }
    (tensor.shape().len() < 2 || tensor.len() < SMALL).then_some("it is a vector or small")
}

/// Fails where nothing would be stored in 16 bits.
pub(super) fn check(graph: &Graph) -> Result<()> {
    let uses = graph.uses();
    let any =
        graph.initializers().any(|(v, t)| t.dtype() == DType::F32 && stays(graph, &uses, v, t).is_none());
    if any {
        return Ok(());
    }
    Err(Error::unsupported(
        "NOTHING-TO-QUANTIZE",
        "no f32 weight of 1024 elements and more is left to store in 16 bits",
    )
    .hint("check whether the model is stored in 16 bits already"))
}

/// The error of a model of which nothing fits.
pub(super) fn refused(report: &PassReport) -> Error {
    let error = Error::invalid(
        "HALF-RANGE",
        "no weight fits 16 bits: all hold values that are too large or not finite",
    );
    match report.skipped.iter().find(|s| s.reason.contains("weight \"")) {
        Some(first) => error.found(&first.reason).hint("repair or retrain the model, or use bf16"),
        None => error,
    }
}

/// Bytes of the weights that become 16 bits.
pub(super) fn covered(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let f32s = graph.initializers().filter(|(_, t)| t.dtype() == DType::F32);
    f32s.filter(|(v, t)| stays(graph, &uses, *v, t).is_none()).map(|(_, t)| t.byte_len()).sum()
}
