//! Dynamic int8 of 64 MB of weights in 16 products, in process: what the pass itself costs.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tinsmith::{
    graph::{Edit, Graph, Type},
    monitor::Silent,
    ops::{Attributes, Dim},
    passes::{self, Ctx},
    tensor::{DType, Tensor},
};

const WIDTH: usize = 1024;
const LAYERS: usize = 16;

fn graph() -> Graph {
    let mut edit = Edit::new("mlp", &[("", 17)]);
    let shape = Some(vec![Dim::symbol("batch"), Dim::from(WIDTH)]);
    let mut x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    for layer in 0..LAYERS {
        let values = (0..WIDTH * WIDTH).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect();
        let weight = Tensor::from_vec(vec![WIDTH, WIDTH], values).expect("a square of values");
        let weight = edit.add_initializer(&format!("w{layer}"), weight);
        x = edit.add_op("MatMul", &[x, weight], Attributes::new(), &format!("y{layer}"));
    }
    edit.add_output(x);
    edit.commit().expect("the graph is valid")
}

fn dynamic(c: &mut Criterion) {
    let graph = graph();
    let settings = "scheme = 'dynamic-int8'".parse().expect("valid settings");
    let pass = passes::by_name("quantize", &settings).expect("a known pass");
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Bytes((LAYERS * WIDTH * WIDTH * 4) as u64)).sample_size(20);
    group.bench_function("dynamic-int8 64 MB", |b| {
        b.iter(|| {
            let mut ctx = Ctx { threads: 2, ..Ctx::new(&Silent) };
            pass.run(&graph, &mut ctx).expect("the pass runs")
        });
    });
    group.finish();
}

criterion_group!(benches, dynamic);
criterion_main!(benches);
