//! What a graph takes and gives, as far as binding data needs it.

use crate::error::{Error, Result};
use crate::evaluate::accuracy::InputForm;
use crate::graph::{Graph, Type};

/// Name and form of the one input of a model.
///
/// # Errors
/// `Unsupported` for several inputs, or one of unknown shape.
pub(super) fn only_input(graph: &Graph) -> Result<(String, InputForm)> {
    let inputs: Vec<_> = graph.required_inputs().collect();
    let [input] = inputs.as_slice() else {
        return Err(Error::unsupported("DATA-INPUTS", "these data feed models with one input")
            .found(format!("{} inputs", inputs.len()))
            .limit(1)
            .hint("models of text take texts: text:FILE, jsonl:FILE?text=FIELD"));
    };
    let name = graph.value_name(*input).to_string();
    match &graph.value(*input).ty {
        Some(Type::Tensor { dtype, shape: Some(shape) }) => {
            let dims = shape.iter().map(|d| d.size()).collect();
            Ok((name, InputForm { dtype: *dtype, dims }))
        }
        _ => Err(Error::unsupported("DATA-INPUT", "the model does not state the shape of its input")
            .found(format!("input \"{name}\""))),
    }
}

/// Whether the model gives scores of the next token for each token.
pub(super) fn predicts_tokens(graph: &Graph) -> bool {
    graph.outputs().iter().any(|v| {
        let rank = match &graph.value(*v).ty {
            Some(Type::Tensor { shape: Some(shape), .. }) => shape.len(),
            _ => 0,
        };
        graph.value_name(*v) == "logits" && rank == 3
    })
}
