//! The child's side: holds one model, answers with times, outputs, memory and correctness.

use super::MeasureOptions;
use crate::child::{Handler, Link};
use crate::data::{DataSet, InputShape, random_inputs};
use crate::error::{Error, Result};
use crate::evaluate::accuracy::{InputForm, classify};
use crate::evaluate::noise::reference_loop;
use crate::evaluate::stats;
use crate::monitor::Monitor;
use crate::runtime::{Dim, Library, OpTime, Port, Prepared, Runtime, Session, SessionOptions};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Fewest and most runs of a profile; the library keeps a million events.
const PROFILED: (usize, usize) = (8, 400);

#[derive(Serialize, Deserialize)]
pub(super) enum Question {
    /// Loads a model for accuracy alone.
    Open { library: Library, model: PathBuf, session: SessionOptions },
    /// Loads a model, runs it once for its outputs and then until it is warm.
    Load {
        model: Bound,
        /// Data whose first rows give the outputs to compare, instead of random ones.
        eval: Option<String>,
        /// Directory for the outputs.
        outputs: PathBuf,
    },
    /// Takes samples for `budget_ms`, at least 3 and at most `most`, of `inner` runs each.
    Sample { budget_ms: f64, most: usize, inner: usize },
    /// Peak memory so far.
    Peak,
    /// Loads a model, whose session has a place for the profile, and runs it for `budget_ms` with every
    /// node timed.
    Profile { model: Bound, budget_ms: f64 },
    /// Loads a model, runs it once on random inputs and keeps both sides in `directory`.
    Record { model: Bound, directory: PathBuf },
    /// Loads a model in a session that writes it as it is rewritten.
    Rewrite { library: Library, model: PathBuf, session: SessionOptions },
    /// Runs labelled data through the model.
    Accuracy { data: String, batch: usize },
}

/// A model with inputs of known shape.
#[derive(Serialize, Deserialize)]
pub(super) struct Bound {
    pub(super) library: Library,
    pub(super) path: PathBuf,
    pub(super) session: SessionOptions,
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    pub(super) dimensions: BTreeMap<String, usize>,
    /// Of the random inputs.
    pub(super) seed: u64,
}

impl Bound {
    /// `path` under `options`, with a session of its own.
    pub(super) fn of(path: &Path, session: SessionOptions, options: &MeasureOptions) -> Bound {
        Bound {
            library: options.library.clone(),
            path: path.to_path_buf(),
            session,
            shapes: options.shapes.clone(),
            dimensions: options.dimensions.clone(),
            seed: options.seed,
        }
    }

    /// The library's version, the session, its inputs and random values for them.
    fn load(&self) -> Result<(String, Session, Vec<InputShape>, Prepared)> {
        let runtime = Runtime::open(&self.library)?;
        let session = Session::load(&runtime, &self.path, &self.session)?;
        let wanted = bind(session.inputs(), &self.shapes, &self.dimensions)?;
        let prepared = session.prepare(&random_inputs(&wanted, self.seed)?)?;
        Ok((runtime.version().into(), session, wanted, prepared))
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Opened,
    Loaded(Loaded),
    Samples {
        ms: Vec<f64>,
        reference_ms: f64,
    },
    Peak {
        rss_bytes: Option<u64>,
    },
    Profile {
        runs: u64,
        run_ms: f64,
        nodes: Vec<OpTime>,
    },
    Recorded {
        runtime: String,
        inputs: Vec<(String, DType, Vec<usize>)>,
        outputs: Vec<(String, DType, Vec<usize>)>,
    },
    Accuracy {
        correct: Vec<bool>,
        data_hash: String,
    },
}

/// What is known once a model is loaded and warm.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    /// Version of the library.
    pub runtime: String,
    /// Inputs as `name:f32[1,8,8]`.
    pub inputs: Vec<String>,
    /// Rows of one inference.
    pub batch: usize,
    /// Runs in one sample.
    pub inner: usize,
    outputs: Vec<(String, DType, Vec<usize>)>,
}

impl Loaded {
    /// Name and number of axes of the first output.
    pub(super) fn first_output(&self) -> Option<(&str, usize)> {
        self.outputs.first().map(|(name, _, shape)| (name.as_str(), shape.len()))
    }

    /// The outputs of the first run, from the directory that the child was given.
    pub(super) fn read_outputs(&self, directory: &Path) -> Result<Vec<(String, Tensor)>> {
        let read = |(index, (name, dtype, shape)): (usize, &(String, DType, Vec<usize>))| {
            let path = directory.join(index.to_string());
            let bytes = std::fs::read(&path).map_err(|e| Error::io("read an output", &path, e))?;
            Ok((name.clone(), Tensor::from_raw(*dtype, shape.clone(), &bytes)?))
        };
        self.outputs.iter().enumerate().map(read).collect()
    }
}

#[derive(Default)]
pub(super) struct State {
    session: Option<Session>,
    prepared: Option<Prepared>,
}

/// Serves [`Question`]s.
pub fn handler() -> Handler {
    Handler::stateful::<State, Question, Answer>("evaluate.measure", answer)
}

fn answer(state: &mut State, question: Question, link: &Link) -> Result<Answer> {
    match question {
        Question::Open { library, model, session } => {
            let runtime = Runtime::open(&library)?;
            state.session = Some(Session::load(&runtime, &model, &session)?);
            Ok(Answer::Opened)
        }
        Question::Load { model, eval, outputs } => {
            let (runtime, mut loaded, wanted, prepared) = model.load()?;
            // Where data are at hand, outputs are compared on them; noise is no input of a trained model.
            let compared = match eval.as_deref().map(|spec| first_rows(spec, loaded.inputs())) {
                Some(rows) => loaded.run(&rows?)?,
                None => loaded.run_prepared(&prepared)?,
            };
            let written = write(&compared, &outputs)?;
            let single = warm(&mut loaded, &prepared)?;
            let answer = Loaded {
                runtime,
                inputs: wanted.iter().map(describe).collect(),
                batch: wanted.first().and_then(|i| i.shape.first().copied()).unwrap_or(1).max(1),
                inner: inner_runs(single),
                outputs: written,
            };
            state.session = Some(loaded);
            state.prepared = Some(prepared);
            Ok(Answer::Loaded(answer))
        }
        Question::Sample { budget_ms, most, inner } => {
            let (session, prepared) = loaded(state)?;
            let reference_ms = reference_loop();
            let until = Instant::now() + Duration::from_secs_f64(budget_ms.clamp(0.0, 3.6e6) / 1e3);
            // The first run after a pause finds cold caches and sleeping threads.
            session.time(prepared, 1)?;
            let mut ms = Vec::new();
            while ms.len() < 3 || (ms.len() < most && Instant::now() < until) {
                ms.push(session.time(prepared, inner)?.as_secs_f64() * 1e3 / inner as f64);
            }
            Ok(Answer::Samples { ms, reference_ms })
        }
        Question::Peak => Ok(Answer::Peak { rss_bytes: peak_rss() }),
        Question::Profile { model, budget_ms } => {
            let (_, mut loaded, _, prepared) = model.load()?;
            let budget = Duration::from_secs_f64(budget_ms.clamp(0.0, 3.6e6) / 1e3);
            link.phase("time the nodes", Some(budget.as_millis() as u64));
            let (start, mut ms) = (Instant::now(), Vec::new());
            while ms.len() < PROFILED.0 || (ms.len() < PROFILED.1 && start.elapsed() < budget) {
                ms.push(loaded.time(&prepared, 1)?.as_secs_f64() * 1e3);
                link.progress(start.elapsed().min(budget).as_millis() as u64);
            }
            let nodes = loaded.end_profile()?;
            Ok(Answer::Profile { runs: ms.len() as u64, run_ms: stats::median(&ms), nodes })
        }
        Question::Record { model, directory } => {
            let runtime = Runtime::open(&model.library)?;
            let mut loaded = Session::load(&runtime, &model.path, &model.session)?;
            let wanted = bind(loaded.inputs(), &model.shapes, &model.dimensions)?;
            let inputs = random_inputs(&wanted, model.seed)?;
            let outputs = loaded.run(&inputs)?;
            Ok(Answer::Recorded {
                runtime: runtime.version().into(),
                inputs: write(&inputs, &directory.join("inputs"))?,
                outputs: write(&outputs, &directory.join("outputs"))?,
            })
        }
        Question::Rewrite { library, model, session } => {
            let runtime = Runtime::open(&library)?;
            Session::load(&runtime, &model, &session)?;
            Ok(Answer::Opened)
        }
        Question::Accuracy { data, batch } => {
            let session = state.session.as_mut().ok_or_else(not_loaded)?;
            let data = DataSet::open(&data)?;
            let port = only_input(session.inputs())?.clone();
            let total = data.len() as u64;
            link.phase("evaluate", Some(total));
            let mut done = 0;
            let quality = classify(&data, &form(&port), batch, &mut |rows| {
                done += rows.shape()[0] as u64;
                let mut out = session.run(&[(port.name.clone(), rows)])?;
                link.progress(done.min(total));
                if out.is_empty() {
                    return Err(Error::invalid("EVAL-OUTPUT", "the model has no outputs"));
                }
                Ok(out.swap_remove(0).1)
            })?;
            Ok(Answer::Accuracy { correct: quality.correct, data_hash: quality.data_hash })
        }
    }
}

fn not_loaded() -> Error {
    Error::internal("MEASURE-ORDER", "a question came before the model")
}

fn loaded(state: &mut State) -> Result<(&mut Session, &Prepared)> {
    match (&mut state.session, &state.prepared) {
        (Some(session), Some(prepared)) => Ok((session, prepared)),
        _ => Err(not_loaded()),
    }
}

fn form(port: &Port) -> InputForm {
    let dims = port.dims.iter().map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect();
    InputForm { dtype: port.dtype, dims }
}

fn only_input(inputs: &[Port]) -> Result<&Port> {
    match inputs {
        [only] => Ok(only),
        _ => Err(Error::unsupported("EVAL-INPUTS", "labelled data feed models with one input")
            .found(format!("{} inputs", inputs.len()))
            .limit(1)
            .hint("measure this model without data")),
    }
}

fn first_rows(spec: &str, inputs: &[Port]) -> Result<Vec<(String, Tensor)>> {
    const ROWS: usize = 16;
    let port = only_input(inputs)?;
    let form = form(port);
    let data = DataSet::open(spec)?;
    let size = form.batch(ROWS.min(data.len()));
    let mut batches = data.batches(size.min(data.len()));
    let batch =
        batches.next().transpose()?.ok_or_else(|| Error::invalid("DATA-EMPTY", "the data have no rows"))?;
    let rows = form.fit(&batch.input)?;
    let count = rows.shape()[0];
    let indices: Vec<usize> = (0..size).map(|i| i.min(count - 1)).collect();
    Ok(vec![(port.name.clone(), if count == size { rows } else { rows.selected(0, &indices) })])
}

fn describe(input: &InputShape) -> String {
    let dims: Vec<String> = input.shape.iter().map(ToString::to_string).collect();
    format!("{}:{}[{}]", input.name, input.dtype, dims.join(","))
}

/// Every input with a fixed shape.
fn bind(
    inputs: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    dimensions: &BTreeMap<String, usize>,
) -> Result<Vec<InputShape>> {
    if let Some(unknown) = shapes.keys().find(|name| !inputs.iter().any(|p| p.name == **name)) {
        let names: Vec<&str> = inputs.iter().map(|p| p.name.as_str()).collect();
        return Err(Error::usage("MEASURE-INPUT", "the model has no input of this name")
            .found(unknown)
            .limit(names.join(", ")));
    }
    let open = |port: &Port| {
        Error::usage("MEASURE-SHAPE", "a dimension of an input varies and has no size")
            .field(port.name.as_str())
            .found(port.to_string())
            .hint(format!("state the shape, such as {}:1,3,48,192", port.name))
    };
    let bound = |port: &Port| {
        if let Some(shape) = shapes.get(&port.name) {
            let fits = shape.len() == port.dims.len()
                && port.dims.iter().zip(shape).all(|(d, s)| !matches!(d, Dim::Fixed(n) if n != s));
            if !fits {
                return Err(Error::usage("MEASURE-SHAPE", "the input cannot have this shape")
                    .field(port.name.as_str())
                    .found(format!("{shape:?}"))
                    .limit(port.to_string()));
            }
            return Ok(InputShape { name: port.name.clone(), dtype: port.dtype, shape: shape.clone() });
        }
        // A name may be a sum, such as `past + seq`.
        let known = |name: &str| {
            let of = |symbol: &str| dimensions.get(symbol).and_then(|n| i64::try_from(*n).ok());
            let size = of(name).or_else(|| crate::ops::Dim::parse(name).eval(&of))?;
            usize::try_from(size).ok()
        };
        let size = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(name) if axis > 0 => known(name).ok_or_else(|| open(port)),
            Dim::Symbol(name) => Ok(known(name).unwrap_or(1)),
            _ if axis == 0 => Ok(1),
            _ => Err(open(port)),
        };
        let shape = port.dims.iter().enumerate().map(size).collect::<Result<Vec<usize>>>()?;
        Ok(InputShape { name: port.name.clone(), dtype: port.dtype, shape })
    };
    inputs.iter().map(bound).collect()
}

fn write(outputs: &[(String, Tensor)], directory: &Path) -> Result<Vec<(String, DType, Vec<usize>)>> {
    std::fs::create_dir_all(directory).map_err(|e| Error::io("create a directory", directory, e))?;
    let numeric = outputs.iter().filter(|(_, t)| t.dtype() != DType::Str);
    numeric
        .enumerate()
        .map(|(index, (name, tensor))| {
            let path = directory.join(index.to_string());
            let mut bytes = Vec::new();
            tensor.write_raw(&mut bytes)?;
            std::fs::write(&path, bytes).map_err(|e| Error::io("write an output", &path, e))?;
            Ok((name.clone(), tensor.dtype(), tensor.shape().to_vec()))
        })
        .collect()
}

/// Runs until at least 3 runs and 100 ms, or one run longer than that, have passed; the median time.
fn warm(session: &mut Session, prepared: &Prepared) -> Result<Duration> {
    let start = Instant::now();
    let mut times = Vec::new();
    while (times.len() < 3 && start.elapsed() < Duration::from_secs(20))
        || (start.elapsed() < Duration::from_millis(100) && times.len() < 1000)
    {
        times.push(session.time(prepared, 1)?.as_secs_f64());
    }
    Ok(Duration::from_secs_f64(stats::median(&times).max(0.0)))
}

/// Smallest step of the monotonic clock that can be seen, in seconds.
fn resolution() -> f64 {
    let step = || {
        let start = Instant::now();
        loop {
            let passed = start.elapsed();
            if !passed.is_zero() {
                return passed.as_secs_f64();
            }
        }
    };
    (0..50).map(|_| step()).fold(f64::INFINITY, f64::min)
}

/// Runs in one sample, so that it lasts 100 times the clock's resolution or more.
fn inner_runs(single: Duration) -> usize {
    let needed = resolution() * 100.0;
    (needed / single.as_secs_f64().max(1e-9)).ceil().clamp(1.0, 1e6) as usize
}

/// Peak resident memory of this process.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
