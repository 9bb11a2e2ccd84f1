//! Time from a path to the first facts: a graph of 10,000 nodes, and one with 600 MB of weights that
//! stay on disk.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use tinsmith::analysis::{Options, summarize_file, summarize_opened};
use tinsmith::formats;

#[path = "../tests/protobuf.rs"]
#[allow(dead_code)]
mod protobuf;
use protobuf::{model, node, tensor_f32, value, varint};

/// A chain of MatMul, Add and Relu.
fn chain(nodes: usize) -> Vec<u8> {
    let mut graph = protobuf::Msg::new();
    let mut last = "x".to_string();
    for i in 0..nodes {
        let out = format!("layer.{}/value_{i}", i / 3);
        let name = format!("/model/layer.{}/node_{i}", i / 3);
        let n = match i % 3 {
            0 => node("MatMul", &name, &[&last, &format!("w{}", i % 30)], &[&out]),
            1 => node("Add", &name, &[&last, &format!("b{}", i % 30)], &[&out]),
            _ => node("Relu", &name, &[&last], &[&out]),
        };
        graph = graph.msg(1, n);
        last = out;
    }
    for i in (0..30).filter(|i| i % 3 == 0) {
        graph = graph.msg(5, tensor_f32(&format!("w{i}"), &[64, 64], &[0.5; 64 * 64]));
        graph = graph.msg(5, tensor_f32(&format!("b{}", i + 1), &[64], &[0.1; 64]));
    }
    model(graph.text(2, "chain").msg(11, value("x", &[-1, 64])).msg(12, value(&last, &[-1, 64])), 17).0
}

/// One MatMul whose weight is a hole of `megabytes` in a sparse file.
fn sparse(path: &Path, megabytes: u64) {
    let (rows, len) = (megabytes * 256, megabytes << 20);
    let head = protobuf::Msg::new().int(1, rows as i64).int(1, 1024).int(2, 1).text(8, "w");
    let raw_head = [&[9 << 3 | 2][..], &varint(len)].concat();
    let tensor_len = head.0.len() as u64 + raw_head.len() as u64 + len;
    let rest = protobuf::Msg::new()
        .msg(1, node("MatMul", "matmul", &["x", "w"], &["y"]))
        .text(2, "g")
        .msg(11, value("x", &[-1, rows as i64]))
        .msg(12, value("y", &[-1, 1024]));
    let tensor_head = [&[5 << 3 | 2][..], &varint(tensor_len)].concat();
    let graph_len = rest.0.len() as u64 + tensor_head.len() as u64 + tensor_len;
    let mut file = std::fs::File::create(path).expect("create");
    let start = protobuf::Msg::new().int(1, 8).msg(8, protobuf::Msg::new().int(2, 17));
    for piece in [&start.0[..], &[7 << 3 | 2], &varint(graph_len), &rest.0, &tensor_head, &head.0, &raw_head]
    {
        file.write_all(piece).expect("write");
    }
    let end = file.seek(SeekFrom::Current(len as i64)).expect("seek");
    file.set_len(end).expect("extend");
}

fn inspect(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("directory");
    let deep = dir.path().join("deep.onnx");
    std::fs::write(&deep, chain(10_000)).expect("write");
    let large = dir.path().join("large.onnx");
    sparse(&large, 600);
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
