//! Runs the model of a bundle with ONNX Runtime through the `ort` crate, on the recorded inputs and with the
//! settings in `session.json`, and holds the outputs against those that were recorded.
//!
//! ```text
//! ORT_DYLIB_PATH=/path/to/libonnxruntime.so cargo run --release [-- DIR]
//! ```
#![allow(clippy::print_stdout)]

use ort::session::{Session, builder::GraphOptimizationLevel};
use ort::value::{DynValue, Tensor, TensorElementType, ValueType};
use serde_json::Value;
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".into()));
    let described: Value = serde_json::from_str(&std::fs::read_to_string(here.join("session.json"))?)?;
    let environment = match std::env::var_os("ORT_DYLIB_PATH") {
        Some(library) => ort::init_from(PathBuf::from(library))?,
        None => return Err("set ORT_DYLIB_PATH to the ONNX Runtime library".into()),
    }
    .build()?;
    let mut session = session(&environment, &here, &described)?;
    let mut inputs: Vec<(String, DynValue)> = Vec::new();
    for port in list(&described["inputs"]) {
        inputs.push((text(&port["name"])?.to_string(), value(&here, port)?));
    }
    let outputs = session.run(inputs)?;
    let mut worst = 0f64;
    for port in list(&described["outputs"]) {
        let name = text(&port["name"])?;
        let found = numbers(outputs.get(name).ok_or("an output is missing")?)?;
        let expected = numbers(&value(&here, port)?)?;
        if found.len() != expected.len() {
            return Err(
                format!("{name} has {} elements, recorded were {}", found.len(), expected.len()).into()
            );
        }
        let scale = expected.iter().fold(1e-30f64, |top, x| top.max(x.abs()));
        let off = found.iter().zip(&expected).fold(0f64, |top, (a, b)| top.max((a - b).abs())) / scale;
        println!("{name}: differs by {off:.2e} of the largest recorded element");
        worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
    }
    let allowed = described["tolerance"].as_f64().ok_or("session.json states no tolerance")?;
    if worst > allowed {
        return Err(format!("outputs differ by {worst:.2e}, {allowed:.0e} is allowed").into());
    }
    Ok(())
}

/// The model with the settings of `session.json`, on the CPU provider.
fn session(
    environment: &ort::environment::Environment,
    here: &Path,
    described: &Value,
) -> Result<Session, Box<dyn Error>> {
    let settings = &described["settings"];
    let number = |name: &str| settings[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let flag = |name: &str| settings[name].as_bool().unwrap_or(true);
    if settings["provider"] != "cpu" {
        return Err("this example sets up the CPU provider alone".into());
    }
    let level = match settings["optimization"].as_str() {
        Some("none") => GraphOptimizationLevel::Disable,
        Some("basic") => GraphOptimizationLevel::Level1,
        Some("extended") => GraphOptimizationLevel::Level2,
        _ => GraphOptimizationLevel::All,
    };
    let cpu = ort::ep::CPU::default().with_arena_allocator(flag("arena")).build();
    let mut builder = Session::builder(environment)?
        .with_optimization_level(level)?
        .with_intra_threads(number("threads"))?
        .with_inter_threads(number("branches"))?
        .with_parallel_execution(number("branches") > 1)?
        .with_intra_op_spinning(flag("spinning"))?
        .with_inter_op_spinning(flag("spinning"))?
        .with_memory_pattern(flag("memory_pattern"))?
        .with_prepacking(flag("prepacking"))?
        .with_execution_providers([cpu])?;
    if settings["denormals_as_zero"] == true {
        builder = builder.with_flush_to_zero()?;
    }
    Ok(builder.commit_from_file(here.join(text(&described["model"])?))?)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> Result<&str, Box<dyn Error>> {
    value.as_str().ok_or_else(|| "session.json lacks a text".into())
}

/// A recorded input or output.
fn value(here: &Path, port: &Value) -> Result<DynValue, Box<dyn Error>> {
    let bytes = std::fs::read(here.join(text(&port["file"])?))?;
    let shape: Vec<i64> = list(&port["shape"]).iter().filter_map(Value::as_i64).collect();
    macro_rules! of {
        ($type:ty) => {{
            let size = std::mem::size_of::<$type>();
            let parts = bytes.chunks_exact(size).map(|c| Ok(<$type>::from_le_bytes(c.try_into()?)));
            let elements = parts.collect::<Result<Vec<$type>, std::array::TryFromSliceError>>()?;
            Tensor::from_array((shape, elements))?.into_dyn()
        }};
    }
    Ok(match text(&port["dtype"])? {
        "f32" => of!(f32),
        "f64" => of!(f64),
        "i8" => of!(i8),
        "i16" => of!(i16),
        "i32" => of!(i32),
        "i64" => of!(i64),
        "u8" => of!(u8),
        "u16" => of!(u16),
        "u32" => of!(u32),
        "u64" => of!(u64),
        "bool" => {
            Tensor::from_array((shape, bytes.iter().map(|b| *b != 0).collect::<Vec<bool>>()))?.into_dyn()
        }
        other => return Err(format!("this example passes no {other}").into()),
    })
}

/// The elements of a tensor as numbers.
fn numbers(value: &DynValue) -> Result<Vec<f64>, Box<dyn Error>> {
    let ValueType::Tensor { ty, .. } = value.dtype() else { return Err("an output is no tensor".into()) };
    macro_rules! of {
        ($type:ty) => {
            value.try_extract_tensor::<$type>()?.1.iter().map(|x| *x as f64).collect()
        };
    }
    Ok(match ty {
        TensorElementType::Float32 => of!(f32),
        TensorElementType::Float64 => of!(f64),
        TensorElementType::Int8 => of!(i8),
        TensorElementType::Int16 => of!(i16),
        TensorElementType::Int32 => of!(i32),
        TensorElementType::Int64 => of!(i64),
        TensorElementType::Uint8 => of!(u8),
        TensorElementType::Uint16 => of!(u16),
        TensorElementType::Uint32 => of!(u32),
        TensorElementType::Uint64 => of!(u64),
        TensorElementType::Bool => {
            value.try_extract_tensor::<bool>()?.1.iter().map(|b| f64::from(u8::from(*b))).collect()
        }
        other => return Err(format!("this example compares no {other:?}").into()),
    })
}
