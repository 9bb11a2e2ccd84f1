//! Tables of embeddings in int8: a look-up of rows and one of their scales.

use super::{Settings, weights};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, ValueId};
use crate::monitor::Level;
use crate::ops::{Attr, Attributes};
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;

/// Smallest table worth a look-up of scales.
const ROWS: usize = 256;

/// Quantised weight and its scales.
pub(super) type Pair = (ValueId, ValueId);

/// The constant table that a node looks rows of f32 up in.
pub(super) fn table(graph: &Graph, node: &Node) -> Option<ValueId> {
    if !node.is("Gather") || node.attributes.int("axis", 0).unwrap_or(0) != 0 {
        return None;
    }
    let table = (*node.inputs.first()?)?;
    node.inputs.get(1).copied().flatten()?;
    let fits = |t: &Tensor| t.dtype() == DType::F32 && t.shape().len() == 2 && t.shape()[0] >= ROWS;
    graph.initializer(table).is_some_and(fits).then_some(table)
}

/// int8 rows of a table, and a scale for each.
pub(super) fn levels(
    graph: &Graph,
    edit: &mut Edit,
    table: ValueId,
) -> Result<std::result::Result<Pair, String>> {
    let name = graph.value_name(table).to_string();
    let tensor = graph.initializer(table).ok_or_else(|| Error::internal("QUANTIZE", "table vanished"))?;
    // Rows are looked up, not multiplied: nothing saturates.
    let q = match weights::symmetric(&name, tensor, Some(0), 127.0, &[])? {
        Ok(q) => q,
        Err(why) => return Ok(Err(why)),
    };
    let rows = q.scales.len();
    let values = Tensor::from_vec(tensor.shape().to_vec(), q.values)?;
    Ok(Ok((
        edit.add_initializer(&format!("{name}_rows"), values),
        edit.add_initializer(&format!("{name}_row_scale"), Tensor::from_vec(vec![rows, 1], q.scales)?),
    )))
}

/// Puts look-ups of rows and of their scales in the place of one of floats.
pub(super) fn look_up(
    edit: &mut Edit,
    graph: &Graph,
    i: NodeIndex,
    index: ValueId,
    y: ValueId,
    (table, scale): (ValueId, ValueId),
) {
    let label = graph.label(i);
    edit.remove_node(i);
    let axis = || Attributes::new().with("axis", Attr::Int(0));
    let rows = edit.add_op("Gather", &[table, index], axis(), &format!("{label}_rows"));
    let scales = edit.add_op("Gather", &[scale, index], axis(), &format!("{label}_row_scales"));
    let to_float = Attributes::new().with("to", Attr::Int(i64::from(DType::F32.onnx())));
    let float = edit.add_op("Cast", &[rows], to_float, &format!("{label}_float"));
    edit.add_node(
        Node::new("Mul", vec![Some(float), Some(scales)], vec![Some(y)]).named(format!("{label}_rescale")),
    );
}

/// The graph with its tables of embeddings in int8.
pub(super) fn quantize(
    graph: &Graph,
    settings: &Settings,
    rule: &'static str,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let mut edit = graph.edit();
    let mut done: HashMap<ValueId, std::result::Result<Pair, String>> = HashMap::new();
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        let Some(table) = table(graph, node).filter(|_| !settings.excluded(graph, i)) else { continue };
        let (Some(Some(index)), Some(Some(y))) = (node.inputs.get(1), node.outputs.first()) else { continue };
        ctx.monitor.check()?;
        let pair = match done.get(&table) {
            Some(pair) => pair.clone(),
            None => {
                let pair = levels(graph, &mut edit, table)?;
                done.entry(table).or_insert(pair).clone()
            }
        };
        match pair {
            Ok(pair) => {
                look_up(&mut edit, graph, i, *index, *y, pair);
                report.apply(rule, graph.label(i), "int8 rows with a scale each");
            }
            Err(why) => {
                ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(i)));
                report.skip(rule, graph.label(i), why);
            }
        }
    }
    if done.is_empty() {
        return Ok(graph.clone());
    }
    drop_unused_constants(graph, edit.commit()?)
}
