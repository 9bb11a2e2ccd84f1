//! Trains the sample that ships in `assets/digits-resnet.onnx`, with the executor's own reverse pass.
//!
//! ```text
//! cargo run --release --example train_digits [-- --out FILE] [--seed N] [--epochs N]
//! ```
//!
//! The same seed gives the same file on the same instruction set: sums are split over a fixed number of
//! threads, however many cores there are.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod net;

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;
use std::time::Instant;
use tinsmith::data::DataSet;
use tinsmith::error::{Error, Result};
use tinsmith::execute::Executor;
use tinsmith::execute::loss::cross_entropy;
use tinsmith::execute::optimizer::{AdamW, Cosine};
use tinsmith::execute::train::Trainer;
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::save;
use tinsmith::tensor::Tensor;

/// Rows of a training batch.
const BATCH: usize = 50;
/// Threads that the work is split over; the order of additions follows from it.
const THREADS: usize = 2;
/// Height and width of an image.
const SIDE: usize = 8;
/// Largest learning rate.
const RATE: f64 = 4e-3;
/// Weight decay. It is strong, so that channels that the net does not need become small.
const DECAY: f32 = 0.3;
/// Label smoothing.
const SMOOTHING: f64 = 0.1;

struct Options {
    out: PathBuf,
    seed: u64,
    epochs: u64,
}

fn main() -> std::process::ExitCode {
    match options().and_then(|o| train(&o)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::from(e.kind().exit_code())
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options { out: "assets/digits-resnet.onnx".into(), seed: 7, epochs: 60 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let number = || {
            value.parse().map_err(|_| Error::usage("OPTION", "a number is wanted").field(&name).found(&value))
        };
        match name.as_str() {
            "--out" => options.out = value.into(),
            "--seed" => options.seed = number()?,
            "--epochs" => options.epochs = number()?,
            _ => {
                return Err(Error::usage("OPTION", "unknown option")
                    .found(&name)
                    .limit("--out, --seed, --epochs"));
            }
        }
    }
    Ok(options)
}

fn train(options: &Options) -> Result<()> {
    let begin = Instant::now();
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .map_err(|e| Error::internal("THREADS", e.to_string()))?;
    let (train, test) = (DataSet::open("digits:train")?, DataSet::open("digits:test")?);
    let (graph, parameters) = net::build(options.seed)?;
    let mut trainer = Trainer::new(&graph, &parameters, AdamW::new(DECAY))?;
    trainer.clip_norm = 5.0;
    let per_epoch = (train.len() / BATCH) as u64;
    let schedule =
        Cosine { peak: RATE, floor: 0.01, warmup: 2 * per_epoch, total: options.epochs * per_epoch };
    let images = train.input().to_f32s()?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ 0x5eed);
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut step = 0;
    for epoch in 1..=options.epochs {
        order.shuffle(&mut rng);
        let mut sum = 0.0;
        for rows in order.chunks_exact(BATCH) {
            let mut pixels = Vec::with_capacity(BATCH * SIDE * SIDE);
            for row in rows {
                let image = &images[row * SIDE * SIDE..(row + 1) * SIDE * SIDE];
                shifted(image, rng.random_range(-1..=1), rng.random_range(-1..=1), &mut pixels);
            }
            let labels: Vec<usize> = rows.iter().map(|r| train.labels()[*r]).collect();
            let input = Tensor::from_vec(vec![BATCH, 1, SIDE, SIDE], pixels)?;
            sum += trainer.step(&[("image".into(), input)], schedule.at(step), &mut |outputs| {
                let (loss, gradient) = cross_entropy(outputs[0].float()?, &labels, SMOOTHING)?;
                Ok((loss, vec![(0, gradient)]))
            })?;
            step += 1;
        }
        if epoch == 1 || epoch % 5 == 0 || epoch == options.epochs {
            let right = correct(&net::for_inference(&trainer.graph(&graph)?)?, &test)?;
            println!(
                "epoch {epoch:>3}  loss {:.4}  test accuracy {:.4}  {:.0} s",
                sum / per_epoch as f64,
                right as f64 / test.len() as f64,
                begin.elapsed().as_secs_f64()
            );
        }
    }
    let mut edit = net::for_inference(&trainer.graph(&graph)?)?.edit();
    edit.set_metadata("task", "classification of 8 x 8 handwritten digits, pixels scaled to 0..1");
    edit.set_metadata("data", "digits:train (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)");
    edit.set_metadata("training", &format!("seed {}, {} epochs", options.seed, options.epochs));
    let trained = edit.commit()?;
    formats::save(&trained, &options.out)?;
    let (sha256, bytes) = save::digest(&options.out)?;
    println!("wrote {} ({bytes} bytes, sha256 {sha256})", options.out.display());
    Ok(())
}

/// Appends the image moved by whole pixels; what comes in from outside is empty.
fn shifted(image: &[f32], down: i64, right: i64, out: &mut Vec<f32>) {
    let side = SIDE as i64;
    for y in 0..side {
        for x in 0..side {
            let (from_y, from_x) = (y - down, x - right);
            let inside = (0..side).contains(&from_y) && (0..side).contains(&from_x);
            out.push(if inside { image[(from_y * side + from_x) as usize] } else { 0.0 });
        }
    }
}

/// Rows whose largest logit is that of their class.
fn correct(graph: &Graph, data: &DataSet) -> Result<usize> {
    let executor = Executor::new(graph)?;
    let mut right = 0;
    for batch in data.batches(200) {
        let batch = batch?;
        let outputs = executor.run(&[("image".into(), batch.input)])?;
        let logits = outputs[0].1.to_f32s()?;
        for (row, label) in logits.chunks(10).zip(&batch.labels) {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
            right += usize::from(best == Some(*label));
        }
    }
    Ok(right)
}
