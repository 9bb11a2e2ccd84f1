//! Training steps here and in PyTorch, in turns, from the same weights and tokens: a decoder of 13.8 million
//! parameters with AdamW, and convolutions forward and backward. `cargo bench --bench train`; arguments
//! behind `--` pick `decoder` or `conv`, or `memory`: the decoder by itself, with gradient checkpointing. PyTorch is looked for in `$TINSMITH_PEER` (a Python interpreter) and
//! /tmp/peer/bin/python; without it, only our own figures are printed.
#![allow(missing_docs, clippy::print_stdout)]

use candle_core::Tensor as Float;
use rand::{Rng, SeedableRng};
use serde_json::{Value as Json, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tinsmith::execute::optimizer::AdamW;
use tinsmith::execute::train::Trainer;
use tinsmith::execute::{Checkpointing, Executor, Overrides, Planner, Segments, loss};
use tinsmith::formats;
use tinsmith::graph::{Edit, Graph, ValueId, constants::Constants};
use tinsmith::ops::{Attr, Attributes};
use tinsmith::tensor::{DType, Tensor, Value};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

const THREADS: usize = 2;
const ROUNDS: usize = 4;
/// Steps of one process, and those at its start that do not count.
const STEPS: usize = 8;
const WARM: usize = 2;
const LAYERS: usize = 6;
const WIDTH: usize = 384;
const HEADS: usize = 6;
const MLP: usize = 1024;
const VOCABULARY: usize = 8192;
const BATCH: usize = 8;
const SEQ: usize = 128;
const CHUNKS: usize = 8;
const RATE: f64 = 1e-3;
const DECAY: f64 = 0.1;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ours", directory, steps, rest @ ..] => {
            rayon::ThreadPoolBuilder::new().num_threads(THREADS).build_global()?;
            let (directory, steps) = (Path::new(directory), steps.parse()?);
            match rest {
                ["conv"] => convolutions(directory, steps),
                ["memory", segments] => decoder(directory, steps, segments.parse()?),
                _ => decoder(directory, steps, 1),
            }
        }
        ["write", directory] => write(Path::new(directory)),
        picked => {
            let directory = tempfile::tempdir()?;
            write(directory.path())?;
            let wants = |what| picked.is_empty() || picked.contains(&what);
            if wants("decoder") {
                compare_decoders(directory.path())?;
            }
            if wants("conv") {
                compare_convolutions(directory.path())?;
            }
            if picked.contains(&"memory") {
                by_segments(directory.path())?;
            }
            Ok(())
        }
    }
}

// What both sides read.

fn write(directory: &Path) -> Outcome<()> {
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
        "max_position_embeddings": SEQ, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let mut weights = vec![("model.embed_tokens".to_string(), vec![VOCABULARY, WIDTH])];
    for i in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            weights.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        };
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[WIDTH, WIDTH]);
        }
        add("mlp.gate_proj", &[MLP, WIDTH]);
        add("mlp.up_proj", &[MLP, WIDTH]);
        add("mlp.down_proj", &[WIDTH, MLP]);
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
    }
    weights.push(("model.norm".to_string(), vec![WIDTH]));
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, shape) in weights {
        let from = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            let value = if shape.len() == 1 { 1.0 } else { random.random_range(-0.035f32..0.035) };
            data.extend(value.to_le_bytes());
        }
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, data.len()] });
        header.insert(format!("{name}.weight"), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(directory.join("model.safetensors"), file)?;
    // Each token has a usual follower, so that there is something to learn.
    let mut tokens = Vec::with_capacity(CHUNKS * BATCH * (SEQ + 1));
    let mut token = 1;
    for _ in 0..CHUNKS * BATCH * (SEQ + 1) {
        let usual = (token * 31 + 7) % 512;
        token = if random.random_bool(0.8) { usual } else { random.random_range(0..VOCABULARY) };
        tokens.push(token);
    }
    let data = json!({ "batch": BATCH, "seq": SEQ, "rate": RATE, "decay": DECAY, "tokens": tokens });
    std::fs::write(directory.join("tokens.json"), data.to_string())?;
    std::fs::write(directory.join("convs.json"), cases().to_string())?;
    Ok(())
}

/// Convolutions in a row; weights `[out, in / groups, h, w]`.
fn cases() -> Json {
    let layer = |outputs: usize, inputs: usize, stride: usize, groups: usize| json!({ "w": [outputs, inputs / groups, 3, 3], "stride": stride, "pad": 1, "groups": groups });
    json!([
        { "name": "7 convolutions, 8 x 3 x 128 x 128", "x": [8, 3, 128, 128], "relu": true, "layers": [
            layer(32, 3, 2, 1), layer(32, 32, 1, 1), layer(64, 32, 2, 1), layer(64, 64, 1, 1),
            layer(128, 64, 2, 1), layer(128, 128, 1, 1), layer(256, 128, 2, 1),
        ] },
        { "name": "depthwise 3 x 3, 8 x 128 x 32 x 32", "x": [8, 128, 32, 32], "relu": false,
          "layers": [layer(128, 128, 1, 128)] },
        { "name": "depthwise 3 x 3 stride 2, 8 x 128 x 32 x 32", "x": [8, 128, 32, 32], "relu": false,
          "layers": [layer(128, 128, 2, 128)] },
        { "name": "pointwise, 8 x 128 x 32 x 32", "x": [8, 128, 32, 32], "relu": false,
          "layers": [{ "w": [128, 128, 1, 1], "stride": 1, "pad": 0, "groups": 1 }] },
    ])
}

// Our side, in a process of its own.

fn decoder(directory: &Path, steps: usize, segments: usize) -> Outcome<()> {
    let data: Json = serde_json::from_slice(&std::fs::read(directory.join("tokens.json"))?)?;
    let tokens: Vec<i64> = data["tokens"].as_array().into_iter().flatten().filter_map(Json::as_i64).collect();
    let graph = formats::load(directory)?.graph;
    let constants = Constants::of(&graph);
    let wanted: Vec<ValueId> = graph
        .initializers()
        .filter(|(v, t)| t.dtype() == DType::F32 && constants.get(*v).is_some() && !is_table(&graph, *v))
        .map(|(v, _)| v)
        .collect();
    let count: usize = wanted.iter().filter_map(|v| graph.initializer(*v)).map(Tensor::len).sum();
    let mut trainer = Trainer::new(&graph, &wanted, AdamW::new(DECAY as f32))?;
    let mut kept = 0;
    if segments > 1 {
        trainer.planner = Planner::new(Checkpointing::Segments(segments), None);
    }
    for step in 0..steps {
        let chunk = &tokens[step % CHUNKS * BATCH * (SEQ + 1)..][..BATCH * (SEQ + 1)];
        let ids = chunk.chunks(SEQ + 1).flat_map(|r| &r[..SEQ]).copied().collect();
        let labels: Vec<usize> = chunk.chunks(SEQ + 1).flat_map(|r| &r[1..]).map(|t| *t as usize).collect();
        let mut inputs = vec![
            ("input_ids".to_string(), Tensor::from_vec(vec![BATCH, SEQ], ids)?),
            ("attention_mask".to_string(), Tensor::from_vec(vec![BATCH, SEQ], vec![1i64; BATCH * SEQ])?),
        ];
        for i in 0..LAYERS {
            for part in ["key", "value"] {
                let empty = Tensor::from_vec(vec![BATCH, HEADS, 0, WIDTH / HEADS], Vec::<f32>::new())?;
                inputs.push((format!("past_key_values.{i}.{part}"), empty));
            }
        }
        if step + 1 == steps {
            kept = kept_bytes(&graph, &wanted, &inputs, segments)?;
        }
        let value = trainer.step(&inputs, RATE, &mut |outputs: &[Value]| {
            let logits = outputs[0].float()?;
            let (loss, grad) =
                loss::cross_entropy(&logits.reshape((BATCH * SEQ, VOCABULARY))?, &labels, 0.0)?;
            Ok((loss, vec![(0, grad.reshape(logits.dims())?)]))
        })?;
        let spent = trainer.profile();
        let operators = |of: &std::collections::BTreeMap<String, std::time::Duration>| -> Json {
            of.iter()
                .map(|(k, v)| (k.clone(), Json::from(v.as_secs_f64())))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        println!(
            "{}",
            json!({
                "loss": value, "forward": (spent.forward + spent.loss).as_secs_f64(),
                "backward": spent.backward.as_secs_f64(), "again": spent.again.as_secs_f64(), "optimizer": spent.optimizer.as_secs_f64(),
                "of_loss": spent.loss.as_secs_f64(), "peak": peak_rss(), "parameters": count, "kept": kept,
                "operators": [operators(&spent.forward_operators), operators(&spent.backward_operators)],
            })
        );
    }
    Ok(())
}

/// Most bytes of the forward pass that a step holds.
fn kept_bytes(
    graph: &Graph,
    wanted: &[ValueId],
    inputs: &[(String, Tensor)],
    segments: usize,
) -> Outcome<u64> {
    let sizes = Executor::new(graph)?.sizes(inputs, &Overrides::new(), &mut |_, _| Ok(()))?;
    Ok(match segments {
        1 => Segments::whole(graph, wanted).kept_bytes(graph, &sizes),
        n => Segments::cut(graph, wanted, &sizes, n).kept_bytes(graph, &sizes),
    })
}

fn is_table(graph: &Graph, v: ValueId) -> bool {
    graph.value_name(v).starts_with("rope.")
}

fn convolutions(directory: &Path, steps: usize) -> Outcome<()> {
    let cases: Json = serde_json::from_slice(&std::fs::read(directory.join("convs.json"))?)?;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut noise = |shape: Vec<usize>| {
        let values = (0..shape.iter().product()).map(|_| random.random_range(0f32..1.0)).collect();
        Tensor::from_vec(shape, values)
    };
    let sizes = |j: &Json| -> Vec<usize> {
        j.as_array().into_iter().flatten().filter_map(Json::as_u64).map(|n| n as usize).collect()
    };
    for case in cases.as_array().into_iter().flatten() {
        let mut edit = Edit::new("conv", &[("", 17)]);
        // A constant lies where the executor computes, as the tensor of the peer does.
        let input = edit.add_initializer("x", noise(sizes(&case["x"]))?);
        let (mut y, mut wanted) = (input, vec![input]);
        for (i, layer) in case["layers"].as_array().into_iter().flatten().enumerate() {
            let number = |key: &str| layer[key].as_i64().unwrap_or(1);
            let w = edit.add_initializer(&format!("w{i}"), noise(sizes(&layer["w"]))?);
            let attributes = Attributes::new()
                .with("strides", Attr::Ints(vec![number("stride"); 2]))
                .with("pads", Attr::Ints(vec![number("pad"); 4]))
                .with("group", Attr::Int(number("groups")));
            y = edit.add_op("Conv", &[y, w], attributes, &format!("y{i}"));
            wanted.push(w);
            if case["relu"].as_bool() == Some(true) {
                y = edit.add_op("Relu", &[y], Attributes::new(), &format!("r{i}"));
            }
        }
        edit.add_output(y);
        let executor = Executor::new(&edit.commit()?)?;
        let (mut forward, mut backward) = (vec![], vec![]);
        for _ in 0..steps {
            let start = Instant::now();
            let tape = executor.forward(&[], &Overrides::new(), &wanted)?;
            let middle = Instant::now();
            let like = tape.outputs()[0].float()?;
            let seed = Float::ones(like.dims(), like.dtype(), like.device())?;
            let gradients = tape.backward(vec![(0, seed)])?;
            backward.push(middle.elapsed().as_secs_f64());
            forward.push((middle - start).as_secs_f64());
            drop(gradients);
        }
        let (forward, backward) = (median(forward), median(backward));
        println!("{}", json!({ "name": case["name"], "forward": forward, "backward": backward }));
    }
    Ok(())
}

// Both in turns.

fn run(mut command: Command) -> Outcome<Vec<Json>> {
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}", output.status).into());
    }
    let lines = std::str::from_utf8(&output.stdout)?.lines();
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn ours(directory: &Path, steps: usize, what: &[&str]) -> Outcome<Vec<Json>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("ours").arg(directory).arg(steps.to_string()).args(what);
    // Freed pages stay with the allocator: they are wanted again in the next step.
    command.env("MIMALLOC_PURGE_DELAY", "-1").env("CANDLE_NUM_THREADS", "1");
    run(command)
}

fn theirs(directory: &Path, steps: usize, what: &[&str]) -> Outcome<Option<Vec<Json>>> {
    let given = std::env::var_os("TINSMITH_PEER").map(PathBuf::from);
    let python = given.unwrap_or_else(|| "/tmp/peer/bin/python".into());
    if !python.exists() {
        return Ok(None);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peer/train_step.py");
    let mut command = Command::new(python);
    command.arg(script).arg(directory).arg(steps.to_string()).args(what);
    run(command).map(Some)
}

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn number(j: &Json, key: &str) -> f64 {
    j[key].as_f64().unwrap_or(f64::NAN)
}

/// Medians of a side: seconds of a whole step, of its three parts, and the peak in MiB.
fn side(name: &str, steps: &[Json]) -> f64 {
    let of = |f: &dyn Fn(&Json) -> f64| median(steps.iter().map(f).collect());
    let whole = of(&|s| number(s, "forward") + number(s, "backward") + number(s, "optimizer"));
    let part = |key: &str| of(&|s| number(s, key)) * 1e3;
    let peak = steps.iter().map(|s| number(s, "peak")).fold(0.0, f64::max) / f64::from(1 << 20);
    println!(
        "{name}: {:.0} tokens/s, {:.0} ms a step (forward with loss {:.0}, backward {:.0}, optimiser {:.0}), peak {peak:.0} MiB",
        (BATCH * SEQ) as f64 / whole,
        whole * 1e3,
        part("forward"),
        part("backward"),
        part("optimizer"),
    );
    whole
}

/// The decoder with gradient checkpointing: bytes kept and the cost in time, by segments.
fn by_segments(directory: &Path) -> Outcome<()> {
    for segments in [1, 2, 3, 4, 6, 8, 12] {
        let steps = ours(directory, STEPS, &["memory", &segments.to_string()])?;
        let mib = |key: &str| steps.iter().map(|s| number(s, key)).fold(0.0, f64::max) / f64::from(1 << 20);
        let of = |f: &dyn Fn(&Json) -> f64| median(steps.iter().skip(WARM).map(f).collect());
        let whole = of(&|s| number(s, "forward") + number(s, "backward") + number(s, "optimizer"));
        let again = of(&|s| number(s, "again"));
        let (kept, peak) =
            (mib("kept"), steps.iter().rev().skip(1).map(|s| number(s, "peak")).fold(0.0, f64::max));
        println!(
            "{segments} segments: {kept:.1} MiB kept, peak of the process {:.0} MiB, {:.0} ms a step, {:.1} % of it again",
            peak / f64::from(1 << 20),
            whole * 1e3,
            100.0 * again / whole
        );
    }
    Ok(())
}

fn compare_decoders(directory: &Path) -> Outcome<()> {
    let (mut own, mut other) = (vec![], vec![]);
    let mut losses = vec![];
    for _ in 0..ROUNDS {
        let steps = ours(directory, STEPS, &[])?;
        let peer = theirs(directory, STEPS, &[])?.unwrap_or_default();
        losses = steps.iter().zip(&peer).map(|(a, b)| (number(a, "loss"), number(b, "loss"))).collect();
        own.extend(steps.into_iter().skip(WARM));
        other.extend(peer.into_iter().skip(WARM));
    }
    println!(
        "decoder of {:.2} million parameters, {BATCH} x {SEQ} tokens",
        number(&own[0], "parameters") / 1e6
    );
    let a = side("tinsmith", &own);
    if !other.is_empty() {
        let b = side("PyTorch ", &other);
        println!("ratio of tokens/s: {:.2}", b / a);
        let shown: Vec<String> = losses.iter().map(|(a, b)| format!("{a:.4}/{b:.4}")).collect();
        let far = losses.iter().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("losses, ours/theirs: {} (largest difference {far:.1e})", shown.join(" "));
    }
    println!(
        "of a step of ours, ms: loss {:.1}",
        median(own.iter().map(|s| number(s, "of_loss")).collect()) * 1e3
    );
    for (way, which) in ["forward", "backward"].iter().enumerate() {
        let mut times: Vec<(String, f64)> = own[0]["operators"][way]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| {
                let of = own.iter().map(|s| number(&s["operators"][way], name)).collect();
                (name.clone(), median(of) * 1e3)
            })
            .collect();
        times.sort_by(|a, b| b.1.total_cmp(&a.1));
        let list: Vec<String> = times.iter().take(12).map(|(name, ms)| format!("{name} {ms:.1}")).collect();
        println!("    {which}: {}", list.join(", "));
    }
    Ok(())
}

fn compare_convolutions(directory: &Path) -> Outcome<()> {
    let (mut own, mut other): (Vec<Vec<Json>>, Vec<Vec<Json>>) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        own.push(ours(directory, 15, &["conv"])?);
        other.extend(theirs(directory, 15, &["conv"])?);
    }
    for (i, case) in own[0].iter().enumerate() {
        let of =
            |all: &[Vec<Json>], key: &str| median(all.iter().map(|r| number(&r[i], key) * 1e3).collect());
        println!("{}", case["name"].as_str().unwrap_or_default());
        for key in ["forward", "backward"] {
            let (a, b) = (of(&own, key), of(&other, key));
            println!("    {key}: tinsmith {a:.2} ms, PyTorch {b:.2} ms, {:.2} times its time", a / b);
        }
    }
    Ok(())
}
