//! Signed weights become unsigned ones with their zero point in the middle: the same values, but products that no
//! processor adds in 16 bits (see `hardware/integer.rs`).

use crate::error::Result;
use crate::graph::Graph;
use crate::passes::PassReport;
use crate::tensor::{DType, Tensor};

const RULE: &str = "unsigned-weights";

/// A pair graph with the int8 weights of Conv, Gemm and MatMul as uint8 around 128. Depthwise convolutions, whose
/// kernels are exact and faster with signed weights, keep theirs, and so do weights that others read as well.
///
/// # Errors
/// Those of reading weights.
pub(in crate::passes::quantize) fn unsigned(graph: &Graph, report: &mut PassReport) -> Result<Graph> {
    let uses = graph.uses();
    let mut edit = graph.edit();
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        if !["Conv", "Gemm", "MatMul"].iter().any(|op| node.is(op)) {
            continue;
        }
        let Some((d, _)) = node.inputs.get(1).copied().flatten().and_then(|v| uses.producer(v)) else {
            continue;
        };
        let [Some(levels), Some(_), Some(zero)] = graph.node(d).inputs[..] else { continue };
        let (Some(w), Some(z)) = (graph.initializer(levels), graph.initializer(zero)) else { continue };
        let alone = |v| uses.consumers(v).len() == 1;
        let depthwise = node.attributes.int("group", 1)? > 1 && w.shape().get(1) == Some(&1);
        let read = graph.node(d).outputs.iter().flatten().all(|v| alone(*v));
        if w.dtype() != DType::I8 || depthwise || !(read && alone(levels) && alone(zero)) {
            continue;
        }
        let moved = |t: &Tensor| -> Result<Tensor> {
            let moved = t.to_vec::<i8>()?.into_iter().map(|q| (q as u8) ^ 0x80).collect();
            Tensor::from_vec(t.shape().to_vec(), moved)
        };
        edit.set_initializer(levels, moved(w)?);
        edit.set_initializer(zero, moved(z)?);
        report.apply(RULE, graph.label(i), "weights around 128, sums exact on every processor");
    }
    edit.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::Executor;
    use crate::graph::{Edit, Node, ValueId};
    use crate::ops::{Attr, Attributes};

    /// A convolution with weights of two groups or one behind DequantizeLinear.
    fn graph(groups: i64) -> Graph {
        let mut edit = Edit::new("conv", &[("", 17)]);
        let x = edit.add_input("x", crate::graph::Type::Tensor { dtype: DType::F32, shape: None });
        let inner = 2 / groups as usize;
        let levels: Vec<i8> = (0..2 * inner).map(|i| [-127, 127, 3, -1][i]).collect();
        let levels = edit.add_initializer("q", Tensor::from_vec(vec![2, inner, 1, 1], levels).unwrap());
        let scales = edit.add_initializer("s", Tensor::from_vec(vec![2], vec![0.5f32, 0.25]).unwrap());
        let zeros = edit.add_initializer("z", Tensor::from_vec(vec![2], vec![0i8; 2]).unwrap());
        let axis = Attributes::new().with("axis", Attr::Int(0));
        let w: ValueId = edit.add_op("DequantizeLinear", &[levels, scales, zeros], axis, "w");
        let y = edit.add_value("y", None);
        let mut conv = Node::new("Conv", vec![Some(x), Some(w)], vec![Some(y)]).named("conv");
        conv.attributes = Attributes::new().with("group", Attr::Int(groups));
        edit.add_node(conv);
        edit.add_output(y);
        edit.commit().unwrap()
    }

    #[test]
    fn values_stay_and_depthwise_weights_stay_signed() {
        let x = Tensor::from_vec(vec![1, 2, 1, 2], vec![1.0f32, -2.0, 3.0, 0.5]).unwrap();
        let run = |g: &Graph| {
            let y = Executor::new(g).unwrap().run(&[("x".into(), x.clone())]).unwrap().remove(0).1;
            y.to_f32s().unwrap()
        };
        for (groups, wanted) in [(1, DType::U8), (2, DType::I8)] {
            let (before, mut report) = (graph(groups), PassReport::new("quantize"));
            let after = unsigned(&before, &mut report).unwrap();
            let dtype = |name: &str| after.initializer(after.find(name).unwrap()).unwrap().dtype();
            assert_eq!((dtype("q"), dtype("z")), (wanted, wanted));
            assert_eq!(run(&before), run(&after));
        }
    }
}
