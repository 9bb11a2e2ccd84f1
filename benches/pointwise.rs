//! Element-wise operators, softmax and reductions over 4 million `f32`.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tinsmith::{
    ops::{self, Attributes},
    tensor::{Tensor, Value},
};

const ROWS: usize = 4096;
const WIDTH: usize = 1024;

fn value(shape: &[usize]) -> Value {
    let n = shape.iter().product::<usize>();
    let v: Vec<f32> = (0..n).map(|i| ((i * 2_654_435_761) % 100_000) as f32 / 12_500.0 - 4.0).collect();
    Value::load(&Tensor::from_vec(shape.to_vec(), v).expect("as many as the shape says")).expect("in memory")
}

fn pointwise(c: &mut Criterion) {
    let (x, row, column) = (value(&[ROWS, WIDTH]), value(&[WIDTH]), value(&[ROWS, 1]));
    let mut group = c.benchmark_group("pointwise");
    group.throughput(Throughput::Elements((ROWS * WIDTH) as u64)).sample_size(20);
    let mut run = |label: &str, name: &str, inputs: &[Option<&Value>]| {
        let spec = ops::lookup("", name, 20).expect("a known operator");
        let op = (spec.parse)(&Attributes::new(), 20).expect("default attributes");
        group.bench_function(label, |b| b.iter(|| op.eval(black_box(inputs)).expect("a result")));
    };
    for name in ["Relu", "Exp", "Log", "Sigmoid", "Tanh", "Erf", "Gelu", "Softplus", "Softmax", "ReduceSum"] {
        run(name, name, &[Some(&x)]);
    }
    run("Add of one shape", "Add", &[Some(&x), Some(&x)]);
    run("Add of a row", "Add", &[Some(&x), Some(&row)]);
    run("Add of a column", "Add", &[Some(&x), Some(&column)]);
    group.finish();
}

criterion_group!(benches, pointwise);
criterion_main!(benches);
