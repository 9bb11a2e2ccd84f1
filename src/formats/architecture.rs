//! Architectures: a checkpoint enters, its graph leaves. Descriptions are read from `config.json` or from GGUF
//! metadata; a few builders turn them into operators of operator set 23, which keep attention and norms
//! whole. Weights stay where they are until they are needed. A new family that differs by names and
//! switches is a row in `families`.
//!
//! Decoders take `input_ids [batch, seq]`, `attention_mask [batch, past + seq]` and
//! `past_key_values.N.{key,value} [batch, kv_heads, past, head_size]`, and give `logits [batch, seq, vocabulary]`
//! and `present.N.{key,value}`. Encoders give `last_hidden_state`, and where the checkpoint has them `logits`
//! and `sentence_embedding`. Nodes are named by layer and part: `layers.3.attention.q`.

mod config;
mod decoder;
mod encoder;
mod families;
mod fields;
mod gguf;
pub mod mask;
mod names;
mod net;
mod rope;
mod vision;
mod weights;

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::graph::Graph;
use config::Kind;
use encoder::{Encoder, Pooling};
use fields::Fields;
use names::Role;
use net::Net;
use std::path::{Path, PathBuf};
use weights::Weights;

/// What a graph is built for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Most positions that a decoder serves; all that the model was trained for, where none is given.
    pub context: Option<usize>,
}

/// A graph that was built.
#[derive(Debug)]
pub struct Built {
    /// The graph.
    pub graph: Graph,
    /// What was left out, for people.
    pub warnings: Vec<String>,
}

/// Metadata keys of built graphs.
pub mod keys {
    /// Family: `llama`, `bert`.
    pub const ARCHITECTURE: &str = "tinsmith.architecture";
    /// Most tokens that a text model serves.
    pub const CONTEXT: &str = "tinsmith.context";
}

/// Names of what can be built, as `model_type` and GGUF spell them.
pub fn known() -> Vec<&'static str> {
    let decoders = families::FAMILIES.iter().flat_map(|f| f.model_types.iter().copied());
    decoders.chain(["bert", "roberta", "distilbert", "vit"]).collect()
}

/// Builds the graph of a checkpoint.
///
/// # Errors
/// `Unsupported` for architectures and variants that are not built, with what is missing; `Invalid` where
/// configuration and weights contradict each other, naming key or weight.
pub fn build(checkpoint: &Checkpoint, options: &Options) -> Result<Built> {
    if options.context == Some(0) {
        return Err(Error::usage("CONTEXT", "a graph needs room for one position at least").found(0));
    }
    let built = match &checkpoint.config {
        Some(config) if checkpoint.format != "gguf" => {
            from_config(checkpoint, &Fields::new(config, &config_path(checkpoint))?, options)
        }
        _ => from_metadata(checkpoint, options),
    };
    built.map_err(|e| e.file(&checkpoint.path))
}

fn from_config(checkpoint: &Checkpoint, fields: &Fields<'_>, options: &Options) -> Result<Built> {
    let model_type = fields.text("model_type")?.ok_or_else(|| fields.missing("model_type"))?;
    let mut warnings = Vec::new();
    for key in ["auto_map", "trust_remote_code"] {
        if fields.has(key) {
            warnings.push(format!("config.json names code ({key}), which is never run"));
        }
    }
    if let Some(family) = families::by_model_type(model_type) {
        let names = [family.names];
        let weights = Weights::new(checkpoint, &names, Role::Embedding, family.transposed)?;
        let decoder = config::decoder(fields, family, &weights, options.context)?;
        return finish_decoder(&decoder, model_type, weights, warnings);
    }
    let plain = |names: &[names::Names], anchor| Weights::new(checkpoint, names, anchor, false);
    let (encoder, weights) = match model_type {
        "bert" => (
            config::encoder(fields, Kind::Bert, pooling(checkpoint)?)?,
            plain(&[names::BERT], Role::Embedding)?,
        ),
        "roberta" | "xlm-roberta" | "camembert" => (
            config::encoder(fields, Kind::Roberta, pooling(checkpoint)?)?,
            plain(&[names::ROBERTA_HEAD, names::BERT], Role::Embedding)?,
        ),
        "distilbert" => (
            config::encoder(fields, Kind::DistilBert, pooling(checkpoint)?)?,
            plain(&[names::DISTILBERT], Role::Embedding)?,
        ),
        "vit" => {
            let vision = config::vision(fields)?;
            let mut net = Net::new(model_type, plain(&[names::VIT], Role::Patches)?);
            vision.build(&mut net)?;
            return finish(net, model_type, warnings);
        }
        other => return Err(unknown(checkpoint, "model_type", other)),
    };
    finish_encoder(&encoder, model_type, weights, warnings)
}

fn from_metadata(checkpoint: &Checkpoint, options: &Options) -> Result<Built> {
    let Some(keys) = gguf::Keys::new(checkpoint)? else {
        return Err(Error::unsupported("ARCHITECTURE", "weights alone do not tell how they are connected")
            .file(&checkpoint.path)
            .found(format!("{} weights without config.json", checkpoint.tensors().len()))
            .hint("pass the directory that holds config.json beside the weights"));
    };
    let name = keys.architecture();
    if let Some(family) = families::by_gguf(name) {
        let weights = Weights::new(checkpoint, &[names::GGUF], Role::Embedding, false)?;
        let decoder = gguf::decoder(&keys, family, &weights, options.context)?;
        return finish_decoder(&decoder, name, weights, Vec::new());
    }
    if name == "bert" {
        let weights = Weights::new(checkpoint, &[names::GGUF_BERT], Role::Embedding, false)?;
        let encoder = gguf::encoder(&keys, &weights)?;
        return finish_encoder(&encoder, name, weights, Vec::new());
    }
    Err(unknown(checkpoint, "general.architecture", name))
}

fn finish_decoder(
    decoder: &decoder::Decoder,
    name: &str,
    weights: Weights<'_>,
    warnings: Vec<String>,
) -> Result<Built> {
    let mut net = Net::new(name, weights);
    decoder.build(&mut net)?;
    net.edit.set_metadata(keys::CONTEXT, &decoder.context.to_string());
    finish(net, name, warnings)
}

fn finish_encoder(
    encoder: &Encoder,
    name: &str,
    weights: Weights<'_>,
    warnings: Vec<String>,
) -> Result<Built> {
    let mut net = Net::new(name, weights);
    encoder.build(&mut net)?;
    net.edit.set_metadata(keys::CONTEXT, &encoder.context().to_string());
    finish(net, name, warnings)
}

fn finish(net: Net<'_>, name: &str, mut warnings: Vec<String>) -> Result<Built> {
    let Net { mut edit, weights, .. } = net;
    let beside = weights.finish()?;
    if let Some(first) = beside.first() {
        warnings.push(format!("{} weights beside the network are left out, such as {first}", beside.len()));
    }
    edit.set_metadata(keys::ARCHITECTURE, name);
    Ok(Built { graph: edit.commit()?, warnings })
}

fn unknown(checkpoint: &Checkpoint, field: &str, found: &str) -> Error {
    Error::unsupported("ARCHITECTURE", "this architecture cannot be converted to a graph yet")
        .file(&checkpoint.path)
        .field(field)
        .found(found)
        .limit(known().join(", "))
        .hint("`tinsmith inspect` still shows its weights; an ONNX export of the model can be used instead")
}

fn directory(checkpoint: &Checkpoint) -> PathBuf {
    match checkpoint.path.is_dir() {
        true => checkpoint.path.clone(),
        false => checkpoint.path.parent().unwrap_or(Path::new(".")).to_path_buf(),
    }
}

fn config_path(checkpoint: &Checkpoint) -> PathBuf {
    directory(checkpoint).join("config.json")
}

/// Pooling and normalisation that sentence-transformers keep beside the weights.
fn pooling(checkpoint: &Checkpoint) -> Result<Option<Pooling>> {
    let dir = directory(checkpoint);
    let path = dir.join("1_Pooling/config.json");
    let Some(value) = super::json::read_optional(&path)? else { return Ok(None) };
    let fields = Fields::new(&value, &path)?;
    let set = |key: &str| -> Result<bool> { Ok(fields.flag(key)?.unwrap_or(false)) };
    let cls = match (set("pooling_mode_mean_tokens")?, set("pooling_mode_cls_token")?) {
        (true, false) => false,
        (false, true) => true,
        _ => {
            return Err(fields.unsupported(
                "pooling_mode_mean_tokens",
                "another pooling",
                "mean or first token",
            ));
        }
    };
    let modules = super::json::read_optional(&dir.join("modules.json"))?;
    let normalize = modules.as_ref().and_then(|m| m.as_array()).is_some_and(|list| {
        list.iter().any(|m| m["type"].as_str().is_some_and(|t| t.ends_with("Normalize")))
    });
    Ok(Some(Pooling { cls, normalize }))
}
