//! Every ONNX backend node case whose operators, versions and element types are claimed passes, in
//! shape, type and value; `docs/operators.md` says what is claimed.

use crate::protobuf::{Msg, model};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use tinsmith::error::Kind;
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::{Graph, Type};
use tinsmith::ops;
use tinsmith::tensor::{DType, Tensor};

/// Cases that contradict the standard's text or test what an executor may leave open.
const EXCUSED: &[(&str, &str)] = &[
    ("test_training_dropout", RANDOM),
    ("test_training_dropout_default", RANDOM),
    ("test_training_dropout_default_mask", RANDOM),
    ("test_training_dropout_mask", RANDOM),
];
const RANDOM: &str = "the elements that are dropped follow one library's random generator";

/// A TensorProto without its name.
fn unnamed(bytes: &[u8]) -> Vec<u8> {
    let varint = |at: &mut usize| {
        let (mut v, mut shift) = (0u64, 0);
        loop {
            let b = bytes[*at];
            *at += 1;
            v |= u64::from(b & 0x7f) << shift;
            shift += 7;
            if b < 0x80 {
                return v;
            }
        }
    };
    let (mut out, mut at) = (vec![], 0);
    while at < bytes.len() {
        let start = at;
        let tag = varint(&mut at);
        match tag & 7 {
            0 => drop(varint(&mut at)),
            1 => at += 8,
            2 => {
                let length = varint(&mut at) as usize;
                at += length;
            }
            _ => at += 4,
        }
        if tag >> 3 != 8 {
            out.extend_from_slice(&bytes[start..at]);
        }
    }
    out
}

/// Tensors of `.pb` files, read as the initialisers of a model of our own.
fn tensors(paths: &[PathBuf], scratch: &Path) -> Option<Vec<Tensor>> {
    if paths.is_empty() {
        return Some(vec![]);
    }
    let mut graph = Msg::new().text(2, "tensors");
    for (i, path) in paths.iter().enumerate() {
        let renamed = Msg(unnamed(&fs::read(path).unwrap())).text(8, &format!("t{i}"));
        graph = graph.msg(5, renamed);
    }
    // Large tensors are read when they are needed, so each file keeps its place.
    let first = paths.first()?.to_string_lossy().replace('/', "_");
    let file = scratch.join(first).with_extension("onnx");
    fs::write(&file, model(graph, 13).0).unwrap();
    let opened = formats::load(&file).unwrap_or_else(|e| panic!("{paths:?}: {e}")).graph;
    (0..paths.len()).map(|i| opened.initializer(opened.find(&format!("t{i}"))?).cloned()).collect()
}

/// Files `input_0.pb`, `input_1.pb`, ... in order.
fn numbered(dir: &Path, kind: &str) -> Vec<PathBuf> {
    (0..).map(|i| dir.join(format!("{kind}_{i}.pb"))).take_while(|p| p.is_file()).collect()
}

/// Why a case is not claimed, or the operators that it claims.
fn claimed(graph: &Graph) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    for v in graph.inputs() {
        if !matches!(&graph.value(*v).ty, Some(Type::Tensor { .. })) {
            return Err("input is no tensor".into());
        }
    }
    let facts = graph.infer(&|_| None).map_err(|e| match e.kind() {
        Kind::Unsupported => format!("unsupported: {e}"),
        _ => format!("inference: {e}"),
    });
    for node in graph.nodes() {
        let name = node.operator_name();
        let opset = graph.opset(&node.domain).unwrap_or(0);
        if node.is("If") {
            let tensors =
                |b: &Graph| b.outputs().iter().all(|v| matches!(&b.value(*v).ty, Some(Type::Tensor { .. })));
            if !node.bodies.iter().all(|(_, b)| tensors(b)) {
                return Err("If of no tensor".into());
            }
            for (_, body) in &node.bodies {
                names.extend(claimed(body)?);
            }
            names.insert(name);
            continue;
        }
        let Some(spec) = ops::lookup(&node.domain, &node.op_type, opset) else {
            return Err(format!("{name} {opset}"));
        };
        let dtype = match &facts {
            Ok(f) => node.inputs.first().copied().flatten().and_then(|v| f.get(v)).map(|f| f.dtype),
            Err(_) => node.inputs.first().copied().flatten().and_then(|v| match &graph.value(v).ty {
                Some(Type::Tensor { dtype, .. }) => Some(*dtype),
                _ => None,
            }),
        };
        if let Some(dtype) = dtype
            && !spec.dtypes.contains(&dtype)
        {
            return Err(format!("{name} of {dtype}"));
        }
        if node.op.is_none() {
            return Err(format!("{name} {opset} with these attributes"));
        }

        names.insert(name);
    }
    facts.map(|_| names)
}

fn close(found: &Tensor, wanted: &Tensor) -> Result<(), String> {
    if found.dtype() != wanted.dtype() || found.shape() != wanted.shape() {
        return Err(format!(
            "{}{:?} instead of {}{:?}",
            found.dtype(),
            found.shape(),
            wanted.dtype(),
            wanted.shape()
        ));
    }
    if !found.dtype().is_float() {
        let same = found.same_bits(wanted).map_err(|e| e.to_string())?;
        return if same { Ok(()) } else { Err(format!("{:?} instead of {:?}", found.data(), wanted.data())) };
    }
    let (a, b) = (found.to_f64s().unwrap(), wanted.to_f64s().unwrap());
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-7 + 1e-3 * b.abs();
        if !same {
            return Err(format!("element {i} is {a} instead of {b}"));
        }
    }
    Ok(())
}

fn run(graph: &Graph, case: &Path, scratch: &Path) -> Result<(), String> {
    let executor = Executor::new(graph).map_err(|e| e.to_string())?;
    for n in 0.. {
        let dir = case.join(format!("test_data_set_{n}"));
        if !dir.is_dir() {
            break;
        }
        let (Some(inputs), Some(wanted)) =
            (tensors(&numbered(&dir, "input"), scratch), tensors(&numbered(&dir, "output"), scratch))
        else {
            return Err("its data cannot be read".into());
        };
        let named: Vec<(String, Tensor)> =
            graph.inputs().iter().zip(inputs).map(|(v, t)| (graph.value_name(*v).to_string(), t)).collect();
        let found = executor.run(&named).map_err(|e| e.to_string())?;
        if found.len() != wanted.len() {
            return Err(format!("{} outputs instead of {}", found.len(), wanted.len()));
        }
        for ((name, found), wanted) in found.iter().zip(&wanted) {
            close(found, wanted).map_err(|e| format!("{name}: {e}"))?;
        }
        let facts = graph.infer(&|_| None).map_err(|e| e.to_string())?;
        for (v, (name, found)) in graph.outputs().iter().zip(&found) {
            let Some(fact) = facts.get(*v) else { continue };
            let fits = fact.dtype == found.dtype()
                && fact.shape.as_ref().is_none_or(|s| {
                    s.len() == found.shape().len()
                        && s.iter().zip(found.shape()).all(|(d, n)| d.known().is_none_or(|k| k == *n as i64))
                });
            if !fits {
                let (dtype, shape) = (fact.dtype, &fact.shape);
                return Err(format!(
                    "{name}: inferred {dtype}{shape:?}, got {}{:?}",
                    found.dtype(),
                    found.shape()
                ));
            }
        }
    }
    Ok(())
}

fn document(passing: &BTreeMap<String, usize>, totals: (usize, usize)) -> String {
    let mut rows: BTreeMap<(String, (i64, i64)), String> = BTreeMap::new();
    for spec in ops::specs() {
        let name =
            if spec.domain.is_empty() { spec.name.into() } else { format!("{}:{}", spec.domain, spec.name) };
        let dtypes: Vec<&str> =
            DType::ALL.iter().filter(|d| spec.dtypes.contains(d)).map(|d| d.name()).collect();
        // Some operators have attributes without default.
        let attributes = ops::Attributes::new()
            .with("kernel_shape", ops::Attr::Ints(vec![1]))
            .with("to", ops::Attr::Int(1))
            .with("block_size", ops::Attr::Int(16));
        let attributes = [
            "K",
            "N",
            "axis",
            "value_int",
            "num_groups",
            "blocksize",
            "size",
            "num_heads",
            "q_num_heads",
            "kv_num_heads",
        ]
        .iter()
        .fold(attributes, |a, name| a.with(name, ops::Attr::Int(1)));
        let attributes = match spec.name {
            "BitShift" => attributes.with("direction", ops::Attr::Str(b"LEFT".to_vec())),
            _ => attributes,
        };
        let op = (spec.parse)(&attributes, spec.opsets.1).unwrap_or_else(|e| panic!("{name}: {e}"));
        let gradient = match (op.differentiable(), op.barrier()) {
            (true, None) => "yes".to_string(),
            (false, Some(why)) => format!("none: {why}"),
            both => panic!("{name} says {both:?}: either a gradient, or why there is none"),
        };
        let cases = passing.get(&name).copied().unwrap_or(0);
        let (from, to) = spec.opsets;
        let row = format!("| {name} | {from}–{to} | {} | {} | {cases} |", dtypes.join(", "), gradient);
        rows.insert((name, spec.opsets), row);
    }
    let mut out = String::from(
        "# Operators\n\nGenerated from the operators' own claims by `TINSMITH_REGENERATE=1 cargo test conformance`; do not edit.\n\n",
    );
    let _ = write!(
        out,
        "{} claims. Of the {} node cases of the `onnx` package, {} use only claimed operators, versions and element types, and all of these pass. \
         \"Gradient\" is that of every attribute and of every output of floats, checked against central differences, but for two: none flows through the scores that `Attention` gives out, nor through the running statistics of `BatchNormalization`; to ask for one is an error that names the node. `If` runs the operators of its bodies. Models with other operators can still be inspected, measured and exported; passes treat such nodes as barriers.\n\n\
         | operator | operator sets | element types of the first input | gradient | node cases |\n|---|---|---|---|---|\n",
        rows.len(),
        totals.0,
        totals.1,
    );
    for row in rows.values() {
        out.push_str(row);
        out.push('\n');
    }
    out
}

#[test]
fn every_claimed_backend_node_case_passes_and_the_table_of_operators_is_current() {
    let cases = crate::cache::fetched("onnx-node-tests").dir;
    let scratch = tempfile::tempdir().unwrap();
    let (mut failing, mut unclaimed, mut passing) =
        (vec![], BTreeMap::<String, usize>::new(), BTreeMap::new());
    let (mut total, mut good) = (0, 0);
    let mut dirs: Vec<PathBuf> = fs::read_dir(&cases).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs.iter().filter(|d| d.join("model.onnx").is_file()) {
        total += 1;
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let graph = match formats::load(&dir.join("model.onnx")) {
            Ok(opened) => opened.graph,
            Err(e) => {
                *unclaimed.entry(format!("load: {}", e.code())).or_default() += 1;
                continue;
            }
        };
        let ops = match claimed(&graph) {
            Ok(ops) => ops,
            Err(why) if why.starts_with("inference") => {
                failing.push(format!("{name}: {why}"));
                continue;
            }
            Err(why) => {
                *unclaimed.entry(why).or_default() += 1;
                continue;
            }
        };
        if EXCUSED.iter().any(|(n, _)| *n == name) {
            *unclaimed.entry("excused".into()).or_default() += 1;
            continue;
        }
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(&graph, dir, scratch.path())))
            .unwrap_or_else(|_| Err("it panics".into()));
        match result {
            Ok(()) => {
                good += 1;
                ops.into_iter().for_each(|o| *passing.entry(o).or_insert(0) += 1);
            }
            Err(why) => {
                failing.push(format!("{name} {ops:?}: {}", why.chars().take(300).collect::<String>()))
            }
        }
    }
    let missing: usize = unclaimed.values().sum();
    println!("{total} cases: {good} claimed and passing, {} failing, {missing} unclaimed", failing.len());
    unclaimed.iter().for_each(|(why, n)| println!("unclaimed {n:4}  {why}"));
    failing.iter().for_each(|f| println!("FAILING {f}"));
    assert!(failing.is_empty(), "{} claimed cases fail", failing.len());
    assert!(good > 0);
    let document = document(&passing, (total, good));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    if std::env::var_os("TINSMITH_REGENERATE").is_some() {
        fs::write(&path, &document).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(current == document, "docs/operators.md is not current: run with TINSMITH_REGENERATE=1");
}
