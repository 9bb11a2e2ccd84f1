//! Int8 models as processors compute them that hold sums of two products in 16 bits: equal, integer for integer,
//! to ONNX Runtime on such a processor (`benches/quantisation/saturation.py` wrote the fixtures), and what the
//! quantiser does about it.

use std::path::Path;
use tinsmith::analysis::saturation::{saturation, simulated};
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::{Edit, Graph, Node, Type};
use tinsmith::monitor::Silent;
use tinsmith::ops::Dim;
use tinsmith::passes::{self, Ctx, PassReport};
use tinsmith::tensor::{DType, Data, Tensor};

const FIXTURES: &str = "tests/fixtures/saturation";

fn input(graph: &Graph, case: &serde_json::Value) -> Tensor {
    let Some(Type::Tensor { dtype, .. }) = &graph.value(graph.find("x").unwrap()).ty else {
        panic!("no type")
    };
    let shape = case["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let x = case["x"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
    let data = match dtype {
        DType::U8 => Data::U8(x.map(|x| x as u8).collect()),
        DType::I8 => Data::I8(x.map(|x| x as i8).collect()),
        _ => Data::F32(x.map(|x| x as f32).collect()),
    };
    Tensor::new(*dtype, shape, data).unwrap()
}

#[test]
fn simulated_outputs_equal_the_runtime_on_avx2_integer_for_integer() {
    let text = std::fs::read_to_string(Path::new(FIXTURES).join("cases.json")).unwrap();
    let cases: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let (mut faults, mut saturating) = (vec![], 0);
    for (name, case) in &cases {
        let graph = formats::load(&Path::new(FIXTURES).join(format!("{name}.onnx"))).unwrap().graph;
        let inputs = [("x".to_string(), input(&graph, case))];
        let (executor, tallies) = simulated(&graph).unwrap();
        let y = |e: &Executor| e.run(&inputs).unwrap().remove(0).1.to_f64s().unwrap();
        let (held, exact) = (y(&executor), y(&Executor::new(&graph).unwrap()));
        let wanted: Vec<f64> = case["avx2"].as_array().unwrap().iter().map(|y| y.as_f64().unwrap()).collect();
        let differ = |a: &[f64], b: &[f64]| a.iter().zip(b).filter(|(a, b)| a != b).count();
        let counts = tallies[0].1.counts();
        let saturates = counts.saturated > 0;
        if differ(&held, &wanted) != 0 || held.len() != wanted.len() {
            faults.push(format!("{name}: {} of {} differ", differ(&held, &wanted), wanted.len()));
        }
        // The exact sums are not what such a processor gives wherever something saturates.
        if saturates != (differ(&exact, &wanted) > 0) {
            faults.push(format!("{name}: {counts:?}, exact sums differ in {}", differ(&exact, &wanted)));
        }
        saturating += usize::from(saturates);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(cases.len() >= 28 && saturating >= 23, "{saturating} of {} cases saturate", cases.len());
}

/// A product whose weights come in equal pairs of large magnitude.
fn hot() -> (Graph, Samples) {
    let mut edit = Edit::new("hot", &[("", 17)]);
    let shape = |n: i64| Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2i64), Dim::from(n)]) };
    let x = edit.add_input("x", shape(32));
    let weights: Vec<f32> =
        (0..32 * 8).map(|i| if i % 3 == 0 { 0.1 } else { 1.0 - (i % 5) as f32 / 50.0 }).collect();
    let w = edit.add_initializer("w", Tensor::from_vec(vec![32, 8], weights).unwrap());
    let y = edit.add_value("y", Some(shape(8)));
    edit.add_node(Node::new("MatMul", vec![Some(x), Some(w)], vec![Some(y)]).named("hot"));
    edit.add_output(y);
    let x: Vec<f32> = (0..64).map(|i| 0.7 + (i % 7) as f32 / 20.0).collect();
    let inputs = vec![("x".to_string(), Tensor::from_vec(vec![2, 32], x).unwrap())];
    (edit.commit().unwrap(), Samples::given(vec![Batch { inputs, rows: 2, tokens: 2, ..Batch::default() }]))
}

fn quantize(
    settings: &str,
    target: Option<(&str, &str)>,
    data: &Samples,
    graph: &Graph,
) -> (Graph, PassReport) {
    let pass = passes::by_name("quantize", &settings.parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx { calibration: Some(data), target, ..Ctx::new(&Silent) }).unwrap()
}

#[test]
fn weights_get_seven_bits_where_the_target_saturates_unless_told_otherwise() {
    let (graph, data) = hot();
    for scheme in ["dynamic-int8", "static-int8"] {
        for (isa, reduce, bits) in [
            (None, "", 8.0),
            (Some("avx2"), "", 7.0),
            (Some("avx512"), "", 7.0),
            (Some("avx512_vnni"), "", 8.0),
            (Some("neon_dot"), "", 8.0),
            (Some("avx512_vnni"), "reduce_range = true", 7.0),
            (Some("avx2"), "reduce_range = false", 8.0),
        ] {
            let settings = format!("scheme = '{scheme}'\n{reduce}");
            let (int8, report) = quantize(&settings, isa.map(|isa| ("box", isa)), &data, &graph);
            let case = format!("{scheme} {isa:?} {reduce}");
            assert_eq!(report.facts["weight_bits"], bits, "{case}");
            let weight =
                int8.initializers().find(|(_, t)| t.dtype() == DType::I8 && t.len() == 256).unwrap().1;
            let largest = weight.to_f32s().unwrap().into_iter().fold(0f32, |m, w| m.max(w.abs()));
            assert_eq!(largest, if bits == 7.0 { 63.0 } else { 127.0 }, "{case}");
            let chosen = report.applied.iter().any(|a| a.rule == "reduce-range" && a.target == "box");
            assert_eq!(chosen, bits == 7.0 && reduce.is_empty(), "{case}");
            // What the user insisted on is told by layer, with its share.
            let told = isa == Some("avx2") && !reduce.is_empty();
            assert_eq!(!report.saturation.is_empty(), told, "{case}");
            if told {
                let layer = &report.saturation[0];
                assert!(layer.saturated_pairs > 0 && layer.share > 0.1, "{layer:?}");
                assert_eq!(report.facts["saturated_pairs"], layer.saturated_pairs as f64);
                assert!(report.facts["saturation_cosine"] < 1.0);
            }
            let found = saturation(&int8, &data, "avx2", &Silent).unwrap();
            assert_eq!(found.layers.iter().any(|l| l.saturated_pairs > 0), bits == 8.0, "{case}: {found:?}");
            assert_eq!((found.layers.len(), found.samples), (1, 2), "{case}");
        }
    }
}

#[test]
fn what_cannot_be_simulated_is_said() {
    let (graph, data) = hot();
    let e = saturation(&graph, &data, "avx2", &Silent).unwrap_err();
    assert!(e.kind().exit_code() == 4 && e.hint_text().is_some_and(|h| h.contains("quantize")), "{e}");
    let (int8, _) = quantize("scheme = 'dynamic-int8'", None, &data, &graph);
    let e = saturation(&int8, &data, "toaster", &Silent).unwrap_err();
    assert!(e.kind().exit_code() == 2 && e.to_string().contains("avx512_vnni"), "{e}");
    let found = saturation(&int8, &data, "amx", &Silent).unwrap();
    assert!(!found.saturates && found.layers.is_empty());
}
