//! Time from a path to the first facts: a graph of 10,000 nodes, and one with 600 MB of weights that
//! stay on disk.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tinsmith::analysis::{Options, summarize_file, summarize_opened};
use tinsmith::formats;

#[path = "../tests/protobuf.rs"]
#[allow(dead_code)]
mod protobuf;
use protobuf::{chain, sparse_model};

fn inspect(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("directory");
    let deep = dir.path().join("deep.onnx");
    std::fs::write(&deep, chain(10_000)).expect("write");
    let large = dir.path().join("large.onnx");
    sparse_model(&large, 600);
    let options = Options::default();
    let mut group = c.benchmark_group("inspect");
    group.sample_size(20);
    group.bench_function("load 10,000 nodes", |b| b.iter(|| formats::load(black_box(&deep)).expect("model")));
    let opened = formats::load(&deep).expect("model");
    group.bench_function("summarize 10,000 nodes", |b| {
        b.iter(|| summarize_opened(black_box(&opened), &options).expect("summary"));
    });
    group.bench_function("inspect 600 MB", |b| {
        b.iter(|| summarize_file(black_box(&large), &options).expect("summary"));
    });
    group.finish();
}

criterion_group!(benches, inspect);
criterion_main!(benches);
