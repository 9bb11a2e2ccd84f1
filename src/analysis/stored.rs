//! Inspection of a checkpoint without a graph: its weights are the layers.

use super::summarize::Options;
use super::summary::{Layer, SCHEMA_VERSION, Summary, TensorInfo};
use super::weights::{self, Weight};
use super::{cache, role};
use crate::error::Result;
use crate::formats::metadata::Fact;
use crate::formats::{About, Checkpoint};
use std::collections::HashMap;

/// Characters of a metadata value that are kept.
const VALUE: usize = 32 << 10;
/// Elements of an array that are spelled out.
const LISTED: usize = 8;

/// Facts about a checkpoint; `why` says why it has no graph.
pub fn summarize_checkpoint(checkpoint: &Checkpoint, why: &str, options: &Options) -> Result<Summary> {
    let mut summary =
        Summary { schema_version: SCHEMA_VERSION, no_graph: Some(why.to_string()), ..Summary::default() };
    describe(&mut summary, checkpoint, options)?;
    summary.layers = summary.tensors.iter().enumerate().map(|(i, t)| layer(i, t)).collect();
    total(&mut summary);
    summary.by_role = role::totals(&summary.layers, |l| l.role.as_str());
    summary.kv_cache = cache::of(&[], &summary.about);
    Ok(summary)
}

/// What the files of a checkpoint tell, graph or not: weights as stored, encodings, metadata, facts.
pub(super) fn describe(summary: &mut Summary, checkpoint: &Checkpoint, options: &Options) -> Result<()> {
    let name = checkpoint.path.file_name().map(|n| n.to_string_lossy().into_owned());
    summary.name = name.unwrap_or_else(|| checkpoint.path.to_string_lossy().into_owned());
    summary.format = checkpoint.format.to_string();
    summary.file_bytes = checkpoint.files.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n));
    let mut warnings = checkpoint.warnings.clone();
    summary.about = About::of(checkpoint, &mut warnings);
    let mut found: Vec<Weight<'_>> = checkpoint
        .tensors()
        .iter()
        .map(|t| Weight {
            info: TensorInfo {
                name: t.name.clone(),
                encoding: t.encoding.clone(),
                shape: t.shape.clone(),
                parameters: t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64)),
                bytes: t.bytes,
                role: role::of(&t.name, "").to_string(),
                distribution: None,
            },
            tensor: t.tensor.as_ref(),
            axis: weights::channel_axis(None, t.shape.len()),
        })
        .collect();
    if options.weights {
        weights::measure(&mut found, &mut warnings)?;
    }
    summary.tensors = found.into_iter().map(|w| w.info).collect();
    summary.encodings = weights::encodings(&summary.tensors);
    summary.metadata =
        checkpoint.metadata.entries().iter().map(|(key, fact)| (key.clone(), spelled(fact))).collect();
    summary.warnings.splice(0..0, warnings);
    Ok(())
}

/// Weights of a graph over a checkpoint count as the files store them: each once, with its encoding.
pub(super) fn count_as_stored(summary: &mut Summary) {
    let by_name: HashMap<&str, &TensorInfo> = summary.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    for layer in &mut summary.layers {
        let mut bytes = 0u64;
        for (name, encoding, shape) in &mut layer.weights {
            let elements = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
            let stored = by_name.get(name.as_str()).filter(|t| t.parameters == elements);
            if let Some(t) = stored {
                encoding.clone_from(&t.encoding);
                bytes = bytes.saturating_add(t.bytes);
            }
        }
        if layer.parameters > 0 && bytes > 0 {
            layer.weight_bytes = bytes;
        }
    }
    total(summary);
    summary.by_operator = role::totals(&summary.layers, |l| l.op.as_str());
    summary.by_role = role::totals(&summary.layers, |l| l.role.as_str());
}

/// Sums over all weights. Indices and masks that lie among them are no parameters.
fn total(summary: &mut Summary) {
    let counted = |t: &&TensorInfo| !matches!(t.encoding.as_str(), "I64" | "U64" | "BOOL");
    summary.parameters =
        summary.tensors.iter().filter(counted).fold(0, |sum, t| sum.saturating_add(t.parameters));
    summary.weight_bytes = summary.tensors.iter().fold(0, |sum, t| sum.saturating_add(t.bytes));
}

fn layer(index: usize, tensor: &TensorInfo) -> Layer {
    Layer {
        index,
        name: tensor.name.clone(),
        op: tensor.encoding.clone(),
        role: tensor.role.clone(),
        dtype: tensor.encoding.clone(),
        output_shape: Some(tensor.shape.iter().map(usize::to_string).collect()),
        parameters: tensor.parameters,
        weight_bytes: tensor.bytes,
        weights: vec![(tensor.name.clone(), tensor.encoding.clone(), tensor.shape.clone())],
        ..Layer::default()
    }
}

/// A value for people: long texts are cut, long arrays are counted.
fn spelled(fact: &Fact) -> String {
    fn list<T: ToString>(values: &[T]) -> String {
        let mut text: Vec<String> = values.iter().take(LISTED).map(|v| cut(&v.to_string(), 64)).collect();
        if values.len() > LISTED {
            text.push(format!("… {} in all", values.len()));
        }
        format!("[{}]", text.join(", "))
    }
    match fact {
        Fact::Int(n) => n.to_string(),
        Fact::Float(x) => x.to_string(),
        Fact::Bool(b) => b.to_string(),
        Fact::Text(t) | Fact::Other(t) => cut(t, VALUE),
        Fact::Ints(v) => list(v),
        Fact::Floats(v) => list(v),
        Fact::Bools(v) => list(v),
        Fact::Texts(v) => list(v),
    }
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_string();
    }
    format!("{}… ({} bytes in all)", &text[..text.floor_char_boundary(most)], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Stored;
    use crate::tensor::Tensor;
    use std::path::PathBuf;

    fn stored(name: &str, shape: Vec<usize>, encoding: &str, values: Option<Vec<f32>>) -> Stored {
        let tensor = values.map(|v| Tensor::from_vec(shape.clone(), v).unwrap());
        Stored { name: name.into(), bytes: 18, encoding: encoding.into(), shape, tensor }
    }

    #[test]
    fn weights_are_the_layers_of_a_checkpoint_without_a_graph() {
        let tensors = vec![
            stored(
                "model.layers.0.self_attn.q_proj.weight",
                vec![2, 2],
                "BF16",
                Some(vec![1., 2., 3., f32::NAN]),
            ),
            stored("model.layers.0.mlp.up_proj.weight", vec![4, 8], "IQ2_XXS", None),
        ];
        let mut checkpoint = Checkpoint::new("gguf", PathBuf::from("/models/odd.gguf"), tensors);
        checkpoint.metadata.insert("a.text", Fact::Text("x".repeat(100_000)));
        checkpoint.metadata.insert("a.list", Fact::Ints((0..50_000).collect()));
        let options = Options { weights: true, ..Options::default() };
        let s = summarize_checkpoint(&checkpoint, "architecture \"odd\" is not known", &options).unwrap();
        assert_eq!((s.parameters, s.weight_bytes, s.layers.len()), (36, 36, 2));
        assert_eq!((s.name.as_str(), s.format.as_str()), ("odd.gguf", "gguf"));
        assert_eq!(s.by_role.iter().map(|r| r.kind.as_str()).collect::<Vec<_>>(), ["mlp", "attention"]);
        assert_eq!(
            s.encodings.iter().map(|e| (e.encoding.as_str(), e.tensors)).collect::<Vec<_>>(),
            [("BF16", 1), ("IQ2_XXS", 1)]
        );
        assert_eq!(s.tensors[0].distribution.as_ref().unwrap().stats.nans, 1);
        assert!(s.tensors[1].distribution.is_none() && s.no_graph.is_some());
        assert!(s.warnings.iter().any(|w| w.contains("1 NaN")), "{:?}", s.warnings);
        assert!(s.metadata.iter().all(|(_, v)| v.len() < VALUE + 64));
        assert_eq!(s.metadata[1].1, "[0, 1, 2, 3, 4, 5, 6, 7, … 50000 in all]");
    }
}
