//! Trains the sample model: a convolutional net with residual blocks on the digits data, with the
//! executor's own reverse pass.
//!
//! `cargo run --release --example train_digits [OUT.onnx]` reproduces `assets/sample/digits-resnet.onnx`.
//! The seed, the order of the batches and the thread count are fixed, so that the same machine type
//! gives the same file.
#![allow(clippy::print_stdout, missing_docs)]

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;
use tinsmith::{
    data::DataSet,
    error::Result,
    execute::{
        Executor,
        loss::cross_entropy,
        optimizer::{AdamW, Cosine},
        train::Trainer,
    },
    graph::{Edit, Graph, Node, Type, ValueId},
    ops::{Attr, Attributes, Dim},
    tensor::{DType, Tensor},
};

const SEED: u64 = 17;
const EPOCHS: usize = 60;
const BATCH: usize = 64;
const THREADS: usize = 2;

/// Builds the training graph. Weights are He-normal (He et al. 2015).
struct Builder {
    edit: Edit,
    rng: ChaCha8Rng,
    wanted: Vec<ValueId>,
}

impl Builder {
    fn normal(&mut self, shape: &[usize], deviation: f32) -> Tensor {
        let count = shape.iter().product();
        let mut gauss = || {
            let (a, b): (f64, f64) = (self.rng.random(), self.rng.random());
            ((-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()) as f32
        };
        let values = (0..count).map(|_| gauss() * deviation).collect();
        Tensor::from_vec(shape.to_vec(), values).expect("count follows from shape")
    }

    fn constant(&mut self, name: &str, tensor: Tensor, trained: bool) -> ValueId {
        let v = self.edit.add_initializer(name, tensor);
        if trained {
            self.wanted.push(v);
        }
        v
    }

    fn filled(&mut self, name: &str, n: usize, value: f32, trained: bool) -> ValueId {
        let tensor = Tensor::from_vec(vec![n], vec![value; n]).expect("one value for each channel");
        self.constant(name, tensor, trained)
    }

    fn conv_norm(&mut self, name: &str, x: ValueId, channels: (usize, usize), stride: i64) -> ValueId {
        let (from, to) = channels;
        let deviation = (2.0 / (from * 9) as f32).sqrt();
        let weight = self.normal(&[to, from, 3, 3], deviation);
        let weight = self.constant(&format!("{name}.weight"), weight, true);
        let attributes = Attributes::new()
            .with("kernel_shape", Attr::Ints(vec![3, 3]))
            .with("pads", Attr::Ints(vec![1; 4]))
            .with("strides", Attr::Ints(vec![stride; 2]));
        let y = self.edit.add_op("Conv", &[x, weight], attributes, name);
        let norm = format!("{name}.norm");
        let inputs = [
            y,
            self.filled(&format!("{norm}.scale"), to, 1.0, true),
            self.filled(&format!("{norm}.bias"), to, 0.0, true),
            self.filled(&format!("{norm}.mean"), to, 0.0, false),
            self.filled(&format!("{norm}.var"), to, 1.0, false),
        ];
        let outputs = ["", ".next_mean", ".next_var"].map(|end| self.edit.add_value(&format!("{norm}{end}"), None));
        let attributes = Attributes::new()
            .with("epsilon", Attr::Float(1e-5))
            .with("momentum", Attr::Float(0.9))
            .with("training_mode", Attr::Int(1));
        let node = Node::new("BatchNormalization", inputs.map(Some).to_vec(), outputs.map(Some).to_vec());
        self.edit.add_node(node.named(norm).with(attributes));
        outputs[0]
    }

    fn relu(&mut self, name: &str, x: ValueId) -> ValueId {
        self.edit.add_op("Relu", &[x], Attributes::new(), name)
    }

    fn block(&mut self, name: &str, x: ValueId, width: usize) -> ValueId {
        let y = self.conv_norm(&format!("{name}.conv1"), x, (width, width), 1);
        let y = self.relu(&format!("{name}.relu1"), y);
        let y = self.conv_norm(&format!("{name}.conv2"), y, (width, width), 1);
        let sum = self.edit.add_op("Add", &[y, x], Attributes::new(), &format!("{name}.add"));
        self.relu(&format!("{name}.relu2"), sum)
    }
}

fn network() -> Result<(Graph, Vec<ValueId>)> {
    let edit = Edit::new("digits-resnet", &[("", 17)]);
    let mut b = Builder { edit, rng: ChaCha8Rng::seed_from_u64(SEED), wanted: vec![] };
    let shape = vec![Dim::symbol("batch"), Dim::from(1i64), Dim::from(8i64), Dim::from(8i64)];
    let x = b.edit.add_input("pixels", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let x = b.conv_norm("stem", x, (1, 32), 1);
    let x = b.relu("stem.relu", x);
    let x = b.block("block1", x, 32);
    let x = b.conv_norm("down", x, (32, 64), 2);
    let x = b.relu("down.relu", x);
    let x = b.block("block2", x, 64);
    let x = b.edit.add_op("GlobalAveragePool", &[x], Attributes::new(), "pool");
    let x = b.edit.add_op("Flatten", &[x], Attributes::new().with("axis", Attr::Int(1)), "flat");
    let weight = b.normal(&[10, 64], (1.0f32 / 64.0).sqrt());
    let weight = b.constant("head.weight", weight, true);
    let bias = b.filled("head.bias", 10, 0.0, true);
    let gemm = Attributes::new().with("transB", Attr::Int(1));
    let y = b.edit.add_op("Gemm", &[x, weight, bias], gemm, "logits");
    let shape = vec![Dim::symbol("batch"), Dim::from(10i64)];
    b.edit.set_type(y, Some(Type::Tensor { dtype: DType::F32, shape: Some(shape) }));
    b.edit.add_output(y);
    let wanted = b.wanted.clone();
    Ok((b.edit.commit()?, wanted))
}

/// Batch normalisation back to inference form.
fn frozen(graph: &Graph) -> Result<Graph> {
    let mut edit = graph.edit();
    for (i, node) in graph.nodes().iter().enumerate().filter(|(_, n)| n.is("BatchNormalization")) {
        let first = node.outputs[0];
        let changed = edit.node_mut(i);
        changed.outputs = vec![first];
        changed.attributes.remove("training_mode");
    }
    edit.set_metadata("data", "Optical Recognition of Handwritten Digits, UCI, CC BY 4.0");
    edit.set_metadata("made_by", "cargo run --release --example train_digits");
    edit.commit()
}

/// Shifts an 8 x 8 image by up to one pixel.
fn shifted(image: &[f32], rng: &mut ChaCha8Rng, out: &mut Vec<f32>) {
    let (dx, dy) = (rng.random_range(-1i32..=1), rng.random_range(-1i32..=1));
    for y in 0..8i32 {
        for x in 0..8i32 {
            let (sx, sy) = (x + dx, y + dy);
            let inside = (0..8).contains(&sx) && (0..8).contains(&sy);
            out.push(if inside { image[(sy * 8 + sx) as usize] } else { 0.0 });
        }
    }
}

fn accuracy(graph: &Graph, images: &[f32], labels: &[usize]) -> Result<f64> {
    let input = Tensor::from_vec(vec![labels.len(), 1, 8, 8], images.to_vec())?;
    let logits = Executor::new(graph)?.run(&[("pixels".into(), input)])?.remove(0).1.to_vec::<f32>()?;
    let right = logits.chunks(10).zip(labels).filter(|(row, label)| {
        let best = (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap_or(0);
        best == **label
    });
    Ok(right.count() as f64 / labels.len() as f64)
}

fn load(spec: &str) -> Result<(Vec<f32>, Vec<usize>)> {
    let set = DataSet::open(spec)?;
    let images = set.inputs()[0].1.to_vec::<f32>()?;
    Ok((images, set.labels().to_vec()))
}

fn train() -> Result<()> {
    let out = std::env::args().nth(1).map_or_else(|| PathBuf::from("assets/sample/digits-resnet.onnx"), PathBuf::from);
    let (images, labels) = load("digits:train")?;
    let (test_images, test_labels) = load("digits:test")?;
    let (graph, wanted) = network()?;
    let mut trainer = Trainer::new(&graph, &wanted, AdamW::new(0.02))?;
    trainer.clip_norm = 5.0;
    let steps = (labels.len() / BATCH) as u64;
    let schedule = Cosine { peak: 4e-3, floor: 0.01, warmup: 2 * steps, total: steps * EPOCHS as u64 };
    let mut rng = ChaCha8Rng::seed_from_u64(SEED + 1);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    let mut step = 0u64;
    for epoch in 1..=EPOCHS {
        order.shuffle(&mut rng);
        let mut sum = 0.0;
        for batch in order.chunks_exact(BATCH) {
            let mut pixels = Vec::with_capacity(BATCH * 64);
            batch.iter().for_each(|i| shifted(&images[i * 64..(i + 1) * 64], &mut rng, &mut pixels));
            let target: Vec<usize> = batch.iter().map(|i| labels[*i]).collect();
            let input = [("pixels".to_string(), Tensor::from_vec(vec![BATCH, 1, 8, 8], pixels)?)];
            sum += trainer.step(&input, schedule.at(step), &mut |outputs| {
                let (loss, grad) = cross_entropy(outputs[0].float()?, &target, 0.05)?;
                Ok((loss, vec![(0, grad)]))
            })?;
            step += 1;
        }
        if epoch % 10 == 0 {
            let now = frozen(&trainer.graph(&graph)?)?;
            let right = accuracy(&now, &test_images, &test_labels)?;
            println!("epoch {epoch:2}  loss {:.4}  test accuracy {right:.4}", sum / steps as f64);
        }
    }
    tinsmith::formats::save(&frozen(&trainer.graph(&graph)?)?, &out)?;
    println!("{}  sha256 {}", out.display(), tinsmith::save::sha256_file(&out)?);
    Ok(())
}

fn main() -> std::process::ExitCode {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build_global();
    match pool.map_err(|e| e.to_string()).and_then(|()| train().map_err(|e| e.to_string())) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            println!("{e}");
            std::process::ExitCode::FAILURE
        }
    }
}
