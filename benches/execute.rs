//! Real models on the executor and in ONNX Runtime, the same inputs and threads, in turns: median times,
//! their ratio, and the operators in which the executor spends its time. `cargo bench --bench execute`;
//! models and the library come from `$TINSMITH_HOME` and are fetched where they are missing.
#![allow(missing_docs, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tinsmith::config::Paths;
use tinsmith::execute::{Executor, Overrides, Seen};
use tinsmith::monitor::Silent;
use tinsmith::runtime::{self, Runtime, Session, SessionOptions};
use tinsmith::tensor::Tensor;
use tinsmith::{fetch, formats};

const THREADS: usize = 2;
const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Milliseconds of each operator in one run.
fn operators(executor: &Executor, feed: &[(String, Tensor)]) -> Result<Vec<(String, f64)>, Box<dyn Error>> {
    let (mut times, mut last) = (BTreeMap::<String, f64>::new(), Instant::now());
    executor.run_watched(feed, &Overrides::new(), &mut |step| {
        let now = Instant::now();
        *times.entry(step.title()).or_default() += (now - last).as_secs_f64() * 1e3;
        last = now;
        Ok(())
    })?;
    let mut times: Vec<(String, f64)> = times.into_iter().collect();
    times.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(times)
}

fn compare(runtime: &Runtime, model: &Path, input: Tensor) -> Result<(), Box<dyn Error>> {
    let executor = Executor::new(&formats::load(model)?.graph)?;
    let options = SessionOptions { threads: THREADS, ..SessionOptions::default() };
    let mut session = Session::load(runtime, model, &options)?;
    let shape = input.shape().to_vec();
    let feed = [(session.inputs()[0].name.clone(), input)];
    let prepared = session.prepare(&feed)?;
    let (mut ours, mut apart, mut theirs) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS + 3 {
        let start = Instant::now();
        executor.run(&feed)?;
        let own = start.elapsed();
        let start = Instant::now();
        executor.run_tapped(&feed, &Overrides::new(), Seen::All, &mut |_, _| Ok(()))?;
        let by_node = start.elapsed();
        let other = session.time(&prepared, 1)?;
        // The first rounds load weights and warm caches.
        if round >= 3 {
            ours.push(own);
            apart.push(by_node);
            theirs.push(other);
        }
    }
    let (ours, apart, theirs) = (median(ours), median(apart), median(theirs));
    println!(
        "{} {shape:?}: executor {ours:.2} ms (node by node {apart:.2} ms), ONNX Runtime {theirs:.2} ms, ratio {:.2}",
        model.file_name().unwrap_or_default().to_string_lossy(),
        ours / theirs
    );
    for (name, ms) in operators(&executor, &feed)?.into_iter().take(8) {
        println!("    {name:20} {ms:8.2} ms");
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    rayon::ThreadPoolBuilder::new().num_threads(THREADS).build_global()?;
    let paths = match std::env::var_os("TINSMITH_HOME") {
        Some(home) => Paths::under(Path::new(&home)),
        None => Paths::under(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench-cache")),
    };
    let runtime = Runtime::open(&runtime::install(&paths, &Silent)?)?;
    let tokens = (0..2048).map(|i| (i * 31 + i / 7) % 256).collect::<Vec<i32>>();
    let magika = fetch::fetch("magika", &paths, &Silent)?.file("model.onnx")?;
    compare(&runtime, &magika, Tensor::from_vec(vec![1, 2048], tokens)?)?;
    let ppocr = fetch::fetch("ppocr", &paths, &Silent)?;
    for (part, h, w) in [("cls", 48, 192), ("det", 320, 320), ("rec", 48, 320)] {
        let pixels = (0..3 * h * w).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect::<Vec<f32>>();
        let input = Tensor::from_vec(vec![1, 3, h, w], pixels)?;
        compare(&runtime, &ppocr.file(&format!("{part}_infer.onnx"))?, input)?;
    }
    Ok(())
}
