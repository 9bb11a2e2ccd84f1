//! A model that takes named tensors, whatever computes it; and token ids as the inputs it asks for.

use super::Engine;
use crate::error::{Error, Result};
use crate::execute::Executor;
use crate::formats;
use crate::graph::{Graph, Type, states};
use crate::runtime::{Dim, Kept, Port, Runtime, Session, SessionOptions};
use crate::tensor::{DType, Tensor};
use std::path::{Path, PathBuf};

/// A model, ready to run.
pub(in crate::evaluate) trait Runner {
    /// Inputs.
    fn inputs(&self) -> &[Port];
    /// Names of the outputs, in order.
    fn outputs(&self) -> Vec<String>;
    /// Outputs in order.
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>>;
    /// The last row of the output `wanted`, `[1, tokens, width]`. Outputs that `keep` lists are kept
    /// under the name of an input: in `kept`, from where they are passed on in the next step, or in
    /// `own`, which the caller adds to its inputs.
    fn step(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &mut Kept,
        own: &mut Vec<(String, Tensor)>,
        keep: &[(String, String)],
        wanted: &str,
    ) -> Result<Vec<f32>>;
    /// Whether the caches of this model may be [`Kept::in_place`].
    fn in_place(&self) -> bool {
        false
    }
    /// What computes.
    fn engine(&self) -> String;
}

struct Native {
    session: Session,
    model: PathBuf,
    version: String,
}

impl Runner for Native {
    fn inputs(&self) -> &[Port] {
        self.session.inputs()
    }
    fn outputs(&self) -> Vec<String> {
        self.session.outputs().iter().map(|p| p.name.clone()).collect()
    }
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        self.session.run(inputs)
    }
    fn step(
        &mut self,
        inputs: &[(String, Tensor)],
        kept: &mut Kept,
        _: &mut Vec<(String, Tensor)>,
        keep: &[(String, String)],
        wanted: &str,
    ) -> Result<Vec<f32>> {
        self.session.step(inputs, kept, keep, wanted)
    }
    /// What this program cannot read keeps its caches as every model can.
    fn in_place(&self) -> bool {
        formats::load(&self.model).is_ok_and(|opened| states::in_place(&opened.graph))
    }
    fn engine(&self) -> String {
        format!("onnxruntime {}", self.version)
    }
}

struct Own {
    executor: Executor,
    inputs: Vec<Port>,
}

impl Own {
    fn new(graph: &Graph) -> Result<Own> {
        Ok(Own { executor: Executor::new(graph)?, inputs: ports(graph)? })
    }
}

impl Runner for Own {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }
    fn outputs(&self) -> Vec<String> {
        let graph = self.executor.graph();
        graph.outputs().iter().map(|v| graph.value_name(*v).to_string()).collect()
    }
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        self.executor.run(inputs)
    }
    fn step(
        &mut self,
        inputs: &[(String, Tensor)],
        _: &mut Kept,
        own: &mut Vec<(String, Tensor)>,
        keep: &[(String, String)],
        wanted: &str,
    ) -> Result<Vec<f32>> {
        let mut row = None;
        for (name, tensor) in self.executor.run(inputs)? {
            if name == wanted {
                row = Some(last_row(&name, &tensor)?);
            } else if let Some((_, input)) = keep.iter().find(|(output, _)| *output == name) {
                own.push((input.clone(), tensor));
            }
        }
        row.ok_or_else(|| Error::invalid("EVAL-OUTPUT", "the model lacks an output").field(wanted))
    }
    fn engine(&self) -> String {
        "executor".into()
    }
}

/// The required inputs of a graph.
///
/// # Errors
/// `Unsupported` where the shape of one is not stated.
pub(in crate::evaluate) fn ports(graph: &Graph) -> Result<Vec<Port>> {
    let port = |v| {
        let name = graph.value_name(v).to_string();
        match &graph.value(v).ty {
            Some(Type::Tensor { dtype, shape: Some(shape) }) => {
                let dims = shape.iter().map(|d| match (d.size(), d.as_symbol()) {
                    (Some(n), _) => Dim::Fixed(n),
                    (None, Some(symbol)) => Dim::Symbol(symbol.into()),
                    _ => Dim::Unknown,
                });
                Ok(Port { name, dtype: *dtype, dims: dims.collect() })
            }
            _ => Err(Error::unsupported("EVAL-INPUT", "the model does not state the shape of an input")
                .found(name)),
        }
    };
    graph.required_inputs().map(port).collect()
}

fn last_row(name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
    match *tensor.shape() {
        [1, rows, width] if rows > 0 && width > 0 => Ok(tensor.to_f32s()?[(rows - 1) * width..].to_vec()),
        _ => Err(Error::invalid("EVAL-OUTPUT", "the output is not one row for each token")
            .found(format!("{name}{:?}", tensor.shape()))
            .limit("[1, tokens, width]")),
    }
}

/// Opens a model for an engine. Checkpoints run on the executor whatever is asked for, because ONNX
/// Runtime reads ONNX files only.
pub(in crate::evaluate) fn open(
    model: &Path,
    engine: &Engine,
    session: &SessionOptions,
) -> Result<Box<dyn Runner>> {
    if let Engine::OnnxRuntime(library) = engine
        && is_onnx(model)
    {
        let runtime = Runtime::open(library)?;
        let session = Session::load(&runtime, model, session)?;
        return Ok(Box::new(Native {
            session,
            model: model.to_path_buf(),
            version: runtime.version().into(),
        }));
    }
    let opened = formats::load(model)?;
    Ok(Box::new(Own::new(&opened.graph).map_err(|e| e.file(model))?))
}

fn is_onnx(model: &Path) -> bool {
    use formats::detect::{Content, HEAD, detect};
    let head = || {
        let file = crate::tensor::SourceFile::open(model).ok()?;
        let mut head = vec![0; usize::try_from(file.len()).ok()?.min(HEAD)];
        file.read_exact_at(0, &mut head).ok()?;
        Some(head)
    };
    head().is_none_or(|h| !matches!(detect(&h), Content::Gguf | Content::Safetensors))
        && !model.is_dir()
        && model.extension().is_none_or(|e| e != "json")
}

/// The inputs of a model of text for rows of token ids: ids, mask, types and positions as it asks for
/// them, and an empty cache.
///
/// # Errors
/// `Unsupported` for an input of another kind, by name.
pub(in crate::evaluate) fn feed(
    inputs: &[Port],
    batch: &[(String, Tensor)],
) -> Result<Vec<(String, Tensor)>> {
    let given = |name: &str| batch.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    let ids = given("input_ids").ok_or_else(|| Error::internal("EVAL-FEED", "a batch without input_ids"))?;
    let (rows, length) = (ids.shape()[0], ids.shape()[1]);
    let of = |port: &Port| -> Result<Tensor> {
        let tensor = match port.name.as_str() {
            "position_ids" if given("position_ids").is_none() => {
                let positions = (0..rows).flat_map(|_| 0..length as i64).collect();
                Tensor::from_vec(vec![rows, length], positions)?
            }
            name if is_cache(name) => return empty_cache(port, rows),
            name => given(name)
                .ok_or_else(|| {
                    Error::unsupported("EVAL-INPUT", "this task cannot fill an input of the model")
                        .found(port)
                        .limit("input_ids, attention_mask, token_type_ids, position_ids, past_key_values.*")
                })?
                .clone(),
        };
        Ok(if tensor.dtype() == port.dtype { tensor } else { tensor.cast_to(port.dtype) })
    };
    inputs.iter().map(|port| Ok((port.name.clone(), of(port)?))).collect()
}

/// Whether an input holds keys or values of earlier tokens.
pub(in crate::evaluate) fn is_cache(name: &str) -> bool {
    name.starts_with("past_key_values") || name.starts_with("past_key_") || name.starts_with("past_value_")
}

/// No earlier tokens: `[rows, heads, 0, size]`.
fn empty_cache(port: &Port, rows: usize) -> Result<Tensor> {
    let shape = port.dims.iter().enumerate().map(|(axis, dim)| match dim {
        _ if axis == 0 => rows,
        Dim::Fixed(n) => *n,
        _ => 0,
    });
    let shape: Vec<usize> = shape.collect();
    if !shape.contains(&0) || !matches!(port.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::unsupported("EVAL-INPUT", "the cache of this model cannot be empty").found(port));
    }
    Ok(Tensor::from_vec::<f32>(shape, Vec::new())?.cast_to(port.dtype))
}
