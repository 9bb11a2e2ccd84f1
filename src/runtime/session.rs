//! A model in the library, ready to run.

use super::{OpTime, Runtime, exchange, native, read_profile};
use crate::child;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, ValueType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much the library rewrites the graph before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimization {
    /// Not at all.
    None,
    /// Constant folding, removal of redundant nodes.
    Basic,
    /// Fusions too.
    Extended,
    /// Memory layout too.
    #[default]
    All,
}

impl Optimization {
    /// The word for people and for `--serialize`.
    pub fn word(self) -> &'static str {
        match self {
            Optimization::None => "none",
            Optimization::Basic => "basic",
            Optimization::Extended => "extended",
            Optimization::All => "all",
        }
    }
}

/// Settings of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionOptions {
    /// Graph rewriting.
    pub optimization: Optimization,
    /// Threads within an operator, the calling one included.
    pub threads: usize,
    /// CPUs to pin the threads to: the calling thread to the first, the library's to the others. Not
    /// pinned when there are fewer than `threads`.
    pub cpus: Vec<usize>,
    /// Whether idle threads spin: faster on an idle machine, much slower on a busy one.
    pub spinning: bool,
    /// Whether memory is kept in an arena.
    pub arena: bool,
    /// Whether the memory plan of the first run is reused; off for varying shapes.
    pub memory_pattern: bool,
    /// Whether the constant operands of kernels are laid out for them when the model is loaded.
    pub prepacking: bool,
    /// Whether numbers below the least normal one count as zero.
    pub denormals_as_zero: bool,
    /// Threads that run branches of the graph beside each other; 1 runs one node after the other.
    pub branches: usize,
    /// Execution provider, one of [`super::provider::names`] without `auto`.
    pub provider: String,
    /// Prefix of the profile file; no profile when absent.
    pub profile: Option<PathBuf>,
    /// Where the rewritten graph is written to.
    pub optimized_model: Option<PathBuf>,
    /// Symbolic dimensions to fix while loading, by name.
    pub dimensions: BTreeMap<String, i64>,
    /// Further session configuration entries of the library.
    pub config: BTreeMap<String, String>,
}

impl Default for SessionOptions {
    /// One thread, every optimisation, spinning, arena.
    fn default() -> SessionOptions {
        SessionOptions {
            optimization: Optimization::All,
            threads: 1,
            cpus: Vec::new(),
            spinning: true,
            arena: true,
            memory_pattern: true,
            prepacking: true,
            denormals_as_zero: false,
            branches: 1,
            provider: "cpu".into(),
            profile: None,
            optimized_model: None,
            dimensions: BTreeMap::new(),
            config: BTreeMap::new(),
        }
    }
}

/// A dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Known.
    Fixed(usize),
    /// Named.
    Symbol(String),
    /// Neither.
    Unknown,
}

/// An input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub dims: Vec<Dim>,
}

/// As `bytes:i32[batch,2048]`; an unknown dimension is `?`.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}[", self.name, self.dtype)?;
        for (i, dim) in self.dims.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match dim {
                Dim::Fixed(n) => write!(f, "{comma}{n}")?,
                Dim::Symbol(name) => write!(f, "{comma}{name}")?,
                Dim::Unknown => write!(f, "{comma}?")?,
            }
        }
        f.write_str("]")
    }
}

/// Inputs that were handed over once, for repeated timed runs.
pub struct Prepared(pub(super) Vec<(String, DynValue)>);

/// A loaded model.
pub struct Session {
    pub(super) native: ort::session::Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    profiled: bool,
}

/// An error of the library as ours.
pub(super) fn fault<R>(e: &ort::Error<R>, what: &str) -> Error {
    use ort::ErrorCode as C;
    let message = format!("ONNX Runtime cannot {what}: {}", e.message());
    match e.code() {
        C::NotImplemented => Error::unsupported("ORT-UNSUPPORTED", message)
            .hint("this version of ONNX Runtime lacks an operator or type that the model uses"),
        _ if e.message().contains("bad_alloc") || e.message().contains("Failed to allocate") => {
            Error::limit_exceeded("ORT-MEMORY", message).hint("use smaller inputs, or allow more memory")
        }
        C::InvalidArgument
        | C::NoSuchFile
        | C::NoModel
        | C::InvalidProtobuf
        | C::InvalidGraph
        | C::ModelLoaded => {
            Error::invalid("ORT-INVALID", message).hint("check the model with `tinsmith inspect`")
        }
        _ => Error::invalid("ORT-FAILED", message)
            .hint("check the model with `tinsmith inspect`, and its inputs"),
    }
}

fn builder(runtime: &Runtime, options: &SessionOptions) -> Result<SessionBuilder> {
    let set = |e: ort::Error<SessionBuilder>| fault(&e, "set a session up");
    let providers = super::provider::dispatches(options)?;
    let level = match options.optimization {
        Optimization::None => GraphOptimizationLevel::Disable,
        Optimization::Basic => GraphOptimizationLevel::Level1,
        Optimization::Extended => GraphOptimizationLevel::Level2,
        Optimization::All => GraphOptimizationLevel::All,
    };
    let threads = options.threads.max(1);
    let mut builder = ort::session::Session::builder(&runtime.environment)
        .map_err(|e| fault(&e, "set a session up"))?
        .with_optimization_level(level)
        .map_err(set)?
        .with_intra_threads(threads)
        .map_err(set)?
        .with_inter_threads(options.branches.max(1))
        .map_err(set)?
        .with_parallel_execution(options.branches > 1)
        .map_err(set)?
        .with_intra_op_spinning(options.spinning)
        .map_err(set)?
        .with_inter_op_spinning(options.spinning)
        .map_err(set)?
        .with_memory_pattern(options.memory_pattern)
        .map_err(set)?
        .with_prepacking(options.prepacking)
        .map_err(set)?
        .with_log_level(ort::logging::LogLevel::Error)
        .map_err(set)?
        .with_execution_providers(providers)
        .map_err(set)?;
    if options.denormals_as_zero {
        builder = builder.with_flush_to_zero().map_err(set)?;
    }
    if threads > 1 && options.cpus.len() >= threads {
        // One entry for each thread that the library starts; its CPUs count from 1.
        let others: Vec<String> = options.cpus[1..threads].iter().map(|cpu| (cpu + 1).to_string()).collect();
        builder =
            builder.with_config_entry("session.intra_op_thread_affinities", others.join(";")).map_err(set)?;
    }
    if let Some(prefix) = &options.profile {
        builder = builder.with_profiling(prefix).map_err(set)?;
    }
    if let Some(path) = &options.optimized_model {
        builder = builder.with_optimized_model_path(path).map_err(set)?;
    }
    for (name, size) in &options.dimensions {
        builder = builder.with_dimension_override(name, *size).map_err(set)?;
    }
    for (key, value) in &options.config {
        builder = builder.with_config_entry(key, value).map_err(set)?;
    }
    Ok(builder)
}

fn port(name: &str, ty: &ValueType) -> Result<Port> {
    let unsupported = |what: String| {
        Error::unsupported("ORT-PORT", "an input or output has a type that this program does not pass")
            .field(name)
            .found(what)
    };
    let ValueType::Tensor { ty, shape, dimension_symbols } = ty else {
        return Err(unsupported(format!("{ty:?}")));
    };
    let dims = shape
        .iter()
        .enumerate()
        .map(|(i, &d)| match (usize::try_from(d), dimension_symbols.get(i)) {
            (Ok(n), _) => Dim::Fixed(n),
            (Err(_), Some(symbol)) if !symbol.is_empty() => Dim::Symbol(symbol.clone()),
            _ => Dim::Unknown,
        })
        .collect();
    let dtype = exchange::dtype(*ty).ok_or_else(|| unsupported(format!("{ty:?}")))?;
    Ok(Port { name: name.into(), dtype, dims })
}

impl Session {
    /// Loads a model file, with its external data. With pinning, pins the calling thread, which is
    /// the one that must call [`Session::run`].
    ///
    /// # Errors
    /// `Invalid`, `Unsupported` or `Limit` with the library's message; names the file.
    pub fn load(runtime: &Runtime, model: &Path, options: &SessionOptions) -> Result<Session> {
        if !model.is_file() {
            std::fs::File::open(model).map_err(|e| Error::io("read the model", model, e))?;
            return Err(Error::invalid("ORT-MODEL", "the model is not a file")
                .file(model)
                .hint("pass an ONNX file"));
        }
        let native = builder(runtime, options)?
            .commit_from_file(model)
            .map_err(|e| fault(&e, "load this model").file(model))?;
        Session::of(native, options).map_err(|e| e.file(model))
    }

    /// Loads a model from memory; external data are not found this way.
    pub fn from_bytes(runtime: &Runtime, model: &[u8], options: &SessionOptions) -> Result<Session> {
        let native =
            builder(runtime, options)?.commit_from_memory(model).map_err(|e| fault(&e, "load this model"))?;
        Session::of(native, options)
    }

    fn of(native: ort::session::Session, options: &SessionOptions) -> Result<Session> {
        let ports = |outlets: &[ort::value::Outlet]| {
            outlets.iter().map(|o| port(o.name(), o.dtype())).collect::<Result<Vec<Port>>>()
        };
        let (inputs, outputs) = (ports(native.inputs())?, ports(native.outputs())?);
        if let Some(&first) = options.cpus.first().filter(|_| options.cpus.len() >= options.threads.max(1)) {
            child::pin(&[first]).map_err(|e| {
                Error::usage("ORT-PIN", format!("cannot pin a thread: {e}"))
                    .found(first)
                    .hint("name CPUs that this process may use")
            })?;
        }
        Ok(Session { native, inputs, outputs, profiled: options.profile.is_some() })
    }

    /// Inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }
    /// Outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Hands inputs over once.
    pub fn prepare(&self, inputs: &[(String, Tensor)]) -> Result<Prepared> {
        let mut prepared = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            if !self.inputs.iter().any(|p| p.name == *name) {
                let known: Vec<&str> = self.inputs.iter().map(|p| p.name.as_str()).collect();
                return Err(Error::invalid("ORT-INPUT", "the model has no input of this name")
                    .found(name)
                    .limit(known.join(", ")));
            }
            prepared.push((name.clone(), exchange::to_native(tensor).map_err(|e| e.field(name.as_str()))?));
        }
        Ok(Prepared(prepared))
    }

    /// Runs on named inputs; outputs in the model's order.
    pub fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let prepared = self.prepare(inputs)?;
        self.run_prepared(&prepared)
    }

    /// Runs on inputs handed over before.
    pub fn run_prepared(&mut self, inputs: &Prepared) -> Result<Vec<(String, Tensor)>> {
        let views: Vec<(&str, &DynValue)> = inputs.0.iter().map(|(n, v)| (n.as_str(), v)).collect();
        let native = self.native.run(views).map_err(|e| fault(&e, "run this model"))?;
        self.outputs
            .iter()
            .map(|p| {
                let value = native.get(&p.name).ok_or_else(|| {
                    Error::internal("ORT-OUTPUT", "an output is missing after a run").field(p.name.as_str())
                })?;
                Ok((p.name.clone(), exchange::from_native(value).map_err(|e| e.field(p.name.as_str()))?))
            })
            .collect()
    }

    /// Runs `times` times and returns how long that took; the outputs are dropped within that time, as
    /// any user of the library has to.
    pub fn time(&mut self, inputs: &Prepared, times: usize) -> Result<Duration> {
        let start = Instant::now();
        for _ in 0..times {
            let views: Vec<(&str, &DynValue)> = inputs.0.iter().map(|(n, v)| (n.as_str(), v)).collect();
            self.native.run(views).map_err(|e| fault(&e, "run this model"))?;
        }
        Ok(start.elapsed())
    }

    /// Ends profiling and returns what each node of the rewritten graph took; empty when the session
    /// was not profiled. The profile file is removed.
    pub fn end_profile(&mut self) -> Result<Vec<OpTime>> {
        if !std::mem::take(&mut self.profiled) {
            return Ok(Vec::new());
        }
        let path = PathBuf::from(self.native.end_profiling().map_err(|e| fault(&e, "write a profile"))?);
        let times = read_profile(&path)?;
        let _ = std::fs::remove_file(&path);
        Ok(times)
    }
}

impl Runtime {
    /// [`native::MINIMUM_MINOR`] as people read it.
    pub fn minimum_version() -> String {
        format!("1.{}", native::MINIMUM_MINOR)
    }
}
