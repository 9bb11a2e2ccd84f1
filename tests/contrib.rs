//! ONNX Runtime's own operators on the executor give what ONNX Runtime gives.

use crate::cache;
use crate::transformer::Noise;
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::{Edit, Node, Type};
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::{DType, Tensor};

/// Runs one node in both; outputs are named by slot. Absent inputs are `None`.
fn both(
    domain: &str,
    op: &str,
    attributes: &[(&str, Attr)],
    inputs: &[Option<Tensor>],
    outputs: &[usize],
) -> [Vec<Tensor>; 2] {
    both_as(DType::F32, domain, op, attributes, inputs, outputs)
}

/// As [`both`], with outputs of another type.
fn both_as(
    dtype: DType,
    domain: &str,
    op: &str,
    attributes: &[(&str, Attr)],
    inputs: &[Option<Tensor>],
    outputs: &[usize],
) -> [Vec<Tensor>; 2] {
    let mut edit = Edit::new("one", &[("", 17), ("com.microsoft", 1)]);
    let mut feed = vec![];
    let ids: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let t = t.as_ref()?;
            feed.push((format!("x{i}"), t.clone()));
            let shape = Some(t.shape().iter().map(|n| Dim::from(*n)).collect());
            Some(edit.add_input(&format!("x{i}"), Type::Tensor { dtype: t.dtype(), shape }))
        })
        .collect();
    let last = outputs.iter().max().unwrap() + 1;
    let mut slots = vec![None; last];
    for slot in outputs {
        let ty = Type::Tensor { dtype, shape: None };
        let v = edit.add_value(&format!("y{slot}"), Some(ty));
        slots[*slot] = Some(v);
        edit.add_output(v);
    }
    let all = attributes.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()));
    edit.add_node(Node::new(op, ids, slots).with(all).in_domain(domain));
    edit.header_mut().ir_version = 8;
    let graph = edit.commit().unwrap();
    let found = Executor::new(&graph).unwrap().run(&feed).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.onnx");
    formats::save(&graph, &path).unwrap();
    let mut session = Session::load(&cache::runtime(), &path, &SessionOptions::default()).unwrap();
    let wanted = session.run(&feed).unwrap();
    [found, wanted].map(|all| all.into_iter().map(|(_, t)| t).collect())
}

fn close(a: &Tensor, b: &Tensor, keep: impl Fn(usize) -> bool) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f32s().unwrap(), b.to_f32s().unwrap());
    assert!(b.iter().any(|x| *x != 0.0));
    (0..a.len()).filter(|i| keep(*i)).map(|i| (a[i] - b[i]).abs()).fold(0.0, f32::max)
}

fn agree(domain: &str, op: &str, attributes: &[(&str, Attr)], inputs: &[Option<Tensor>], outputs: &[usize]) {
    let [found, wanted] = both(domain, op, attributes, inputs, outputs);
    for (a, b) in found.iter().zip(&wanted) {
        let far = close(a, b, |_| true);
        assert!(far < 2e-6, "{op} {attributes:?}: {far:e}");
    }
}

fn random(shape: &[usize], seed: u64) -> Option<Tensor> {
    Some(Noise(seed).tensor(shape, 1.0))
}

fn i32s(shape: &[usize], v: &[i32]) -> Option<Tensor> {
    Some(Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap())
}

fn tables(positions: usize, half: usize) -> [Option<Tensor>; 2] {
    let angles: Vec<f32> = (0..positions * half)
        .map(|i| (i / half) as f32 / 50f32.powf((i % half) as f32 / half as f32))
        .collect();
    [f32::cos, f32::sin].map(|f| {
        Some(
            Tensor::from_vec(vec![positions, half], angles.iter().map(|a| f(*a)).collect::<Vec<_>>())
                .unwrap(),
        )
    })
}

#[test]
fn grouped_attention_is_the_runtimes() {
    let (heads, groups, size) = (4, 2, 32);
    // New tokens, cached ones, last position of each row.
    let cases: &[(usize, usize, &[i32])] =
        &[(5, 0, &[4, 4]), (1, 6, &[6, 6]), (1, 6, &[6, 3]), (3, 6, &[8]), (7, 0, &[6]), (1, 0, &[0])];
    let plain: &[(&str, Attr)] = &[("num_heads", Attr::Int(4)), ("kv_num_heads", Attr::Int(2))];
    let more: &[&[(&str, Attr)]] = &[
        &[],
        &[("do_rotary", Attr::Int(1))],
        &[("do_rotary", Attr::Int(1)), ("rotary_interleaved", Attr::Int(1)), ("scale", Attr::Float(0.3))],
        &[("local_window_size", Attr::Int(3)), ("softcap", Attr::Float(2.0))],
    ];
    for (new, past, last) in cases {
        for more in more {
            for half in [8, 16] {
                let rotary = more.iter().any(|(n, _)| *n == "do_rotary");
                if half == 8 && !rotary {
                    continue;
                }
                let (b, attributes) = (last.len(), [plain, more].concat());
                let [cos, sin] = if rotary { tables(16, half) } else { [None, None] };
                let inputs = [
                    random(&[b, *new, heads * size], 1),
                    random(&[b, *new, groups * size], 2),
                    random(&[b, *new, groups * size], 3),
                    random(&[b, groups, *past, size], 4),
                    random(&[b, groups, *past, size], 5),
                    i32s(&[b], last),
                    i32s(&[], &[(new + past) as i32]),
                    cos,
                    sin,
                ];
                let inputs = if rotary { &inputs[..] } else { &inputs[..7] };
                agree("com.microsoft", "GroupQueryAttention", &attributes, inputs, &[0, 1, 2]);
            }
        }
    }
}

/// Rows of a padded first prompt: what lies behind a row's last token is left open.
#[test]
fn grouped_attention_of_rows_that_end_early_is_the_runtimes() {
    let attributes =
        [("num_heads", Attr::Int(4)), ("kv_num_heads", Attr::Int(2)), ("do_rotary", Attr::Int(1))];
    let [cos, sin] = tables(16, 8);
    let inputs = [
        random(&[2, 5, 64], 1),
        random(&[2, 5, 32], 2),
        random(&[2, 5, 32], 3),
        None,
        None,
        i32s(&[2], &[4, 2]),
        i32s(&[], &[5]),
        cos,
        sin,
    ];
    let [found, wanted] = both("com.microsoft", "GroupQueryAttention", &attributes, &inputs, &[0, 1, 2]);
    let real = |i: usize| i / (5 * 64) == 0 || i / 64 % 5 < 3;
    assert!(close(&found[0], &wanted[0], real) < 2e-6);
    for cache in 1..3 {
        let real = |i: usize| i / (2 * 5 * 16) == 0 || i / 16 % 5 < 3;
        assert!(close(&found[cache], &wanted[cache], real) < 2e-6);
    }
}

#[test]
fn packed_queries_and_added_biases_are_the_runtimes() {
    let attributes = [("num_heads", Attr::Int(4)), ("kv_num_heads", Attr::Int(2))];
    let mut inputs =
        vec![random(&[1, 3, 64], 1), None, None, random(&[1, 2, 2, 8], 4), random(&[1, 2, 2, 8], 5)];
    inputs.extend([i32s(&[1], &[4]), i32s(&[], &[5])]);
    agree("com.microsoft", "GroupQueryAttention", &attributes, &inputs, &[0, 1, 2]);
    inputs[0] = random(&[1, 3, 32], 1);
    inputs[1] = random(&[1, 3, 16], 2);
    inputs[2] = random(&[1, 3, 16], 3);
    inputs.extend([None, None, None, random(&[1, 4, 3, 5], 6)]);
    agree("com.microsoft", "GroupQueryAttention", &attributes, &inputs, &[0, 1, 2]);
}

#[test]
fn multi_head_attention_is_the_runtimes() {
    let heads = ("num_heads", Attr::Int(4));
    let base = [random(&[2, 3, 32], 1), random(&[2, 5, 32], 2), random(&[2, 5, 24], 3)];
    let run = |more: &[(&str, Attr)], rest: Vec<Option<Tensor>>| {
        let attributes = [std::slice::from_ref(&heads), more].concat();
        agree("com.microsoft", "MultiHeadAttention", &attributes, &[base.to_vec(), rest].concat(), &[0]);
    };
    run(&[], vec![]);
    run(&[("scale", Attr::Float(0.2))], vec![random(&[88], 4)]);
    run(&[], vec![None, i32s(&[2, 5], &[1, 1, 1, 1, 1, 1, 1, 0, 1, 0])]);
    run(
        &[("mask_filter_value", Attr::Float(-2.0))],
        vec![None, i32s(&[2, 5], &[1, 1, 1, 1, 1, 1, 1, 0, 1, 0])],
    );
    run(&[], vec![None, None, random(&[2, 4, 3, 5], 5)]);
    run(&[], vec![None, i32s(&[2, 5], &[1, 1, 1, 1, 0, 1, 1, 0, 1, 0]), random(&[1, 1, 3, 5], 5)]);
}

#[test]
fn norms_with_residuals_are_the_runtimes() {
    let x = || [random(&[2, 3, 16], 1), random(&[2, 3, 16], 2), random(&[16], 3)];
    let epsilon = [("epsilon", Attr::Float(1e-3))];
    let with = |rest: Vec<Option<Tensor>>| [x().to_vec(), rest].concat();
    for rest in [vec![random(&[16], 4)], vec![random(&[16], 4), random(&[16], 5)], vec![]] {
        agree("com.microsoft", "SkipLayerNormalization", &epsilon, &with(rest), &[0, 3]);
    }
    for rest in [vec![], vec![random(&[16], 4)]] {
        agree("com.microsoft", "SkipSimplifiedLayerNormalization", &epsilon, &with(rest), &[0, 3]);
    }
    // Where no epsilon is given, small inputs tell which one is taken.
    let small = |seed: u64| Some(Noise(seed).tensor(&[2, 3, 16], 1e-3));
    for op in ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"] {
        agree("com.microsoft", op, &[], &[small(1), small(2), random(&[16], 3)], &[0]);
    }
    let inputs = [random(&[2, 3, 16], 1), random(&[16], 3)];
    agree("", "SimplifiedLayerNormalization", &[epsilon[0].clone(), ("axis", Attr::Int(-1))], &inputs, &[0]);
}

#[test]
fn rotary_embeddings_are_the_runtimes() {
    let ids = Some(Tensor::from_vec(vec![2, 3], vec![0i64, 1, 2, 5, 0, 7]).unwrap());
    for interleaved in [0, 1] {
        let way = ("interleaved", Attr::Int(interleaved));
        let heads = ("num_heads", Attr::Int(4));
        for (half, part) in [(8, None), (4, Some(("rotary_embedding_dim", Attr::Int(8))))] {
            let [cos, sin] = tables(9, half);
            let attributes: Vec<(&str, Attr)> =
                [way.clone(), heads.clone()].into_iter().chain(part).collect();
            for x in [random(&[2, 4, 3, 16], 1), random(&[2, 3, 64], 1)] {
                let inputs = [x, ids.clone(), cos.clone(), sin.clone()];
                agree("com.microsoft", "RotaryEmbedding", &attributes, &inputs, &[0]);
            }
        }
        let [cos, sin] = tables(9, 8);
        let first = Some(Tensor::from_vec(vec![1], vec![4i64]).unwrap());
        agree(
            "com.microsoft",
            "RotaryEmbedding",
            &[way, heads],
            &[random(&[2, 4, 3, 16], 1), first, cos, sin],
            &[0],
        );
    }
}

#[test]
fn activations_are_the_runtimes() {
    let (x, b) = (random(&[2, 3, 16], 1), random(&[16], 2));
    agree("com.microsoft", "Gelu", &[], std::slice::from_ref(&x), &[0]);
    agree("com.microsoft", "QuickGelu", &[("alpha", Attr::Float(1.3))], std::slice::from_ref(&x), &[0]);
    agree("com.microsoft", "FastGelu", &[], std::slice::from_ref(&x), &[0]);
    agree("com.microsoft", "FastGelu", &[], &[x.clone(), b.clone()], &[0]);
    agree("com.microsoft", "BiasGelu", &[], &[x, b], &[0]);
}

#[test]
fn products_with_weights_in_blocks_are_the_runtimes() {
    let bytes = |shape: &[usize], seed: usize| {
        let values = (0..shape.iter().product()).map(|i: usize| (((i + seed) * 2_654_435_761) >> 7) as u8);
        Some(Tensor::from_vec(shape.to_vec(), values.collect::<Vec<u8>>()).unwrap())
    };
    // Inner sizes that fill their blocks and that do not.
    for (bits, k, block) in
        [(4usize, 64usize, 32usize), (4, 50, 16), (4, 200, 128), (8, 64, 32), (8, 40, 16), (2, 64, 32)]
    {
        let (n, blocks) = (6, k.div_ceil(block));
        let attributes: Vec<(&str, Attr)> = [("K", k), ("N", n), ("bits", bits), ("block_size", block)]
            .map(|(name, v)| (name, Attr::Int(v as i64)))
            .to_vec();
        let weight = bytes(&[n, blocks, block * bits / 8], 1);
        let scales = Some(Noise(4).tensor(&[n * blocks], 0.01));
        let zeros = bytes(&[n * (blocks * bits).div_ceil(8)], 3);
        for (zeros, bias) in [(None, None), (zeros.clone(), None), (zeros, random(&[n], 6))] {
            let inputs = [random(&[2, 3, k], 5), weight.clone(), scales.clone(), zeros, None, bias];
            let used = inputs.iter().rposition(Option::is_some).unwrap() + 1;
            agree("com.microsoft", "MatMulNBits", &attributes, &inputs[..used], &[0]);
        }
    }
}

#[test]
fn look_ups_in_blocks_are_the_runtimes() {
    let bytes = |shape: &[usize], seed: usize| {
        let values = (0..shape.iter().product()).map(|i: usize| (((i + seed) * 2_654_435_761) >> 7) as u8);
        Some(Tensor::from_vec(shape.to_vec(), values.collect::<Vec<u8>>()).unwrap())
    };
    for (bits, k, block) in [(4usize, 64usize, 32usize), (8, 64, 16), (4, 96, 32)] {
        let blocks = k / block;
        let attributes: Vec<(&str, Attr)> =
            [("bits", bits), ("block_size", block), ("gather_axis", 0), ("quantize_axis", 1)]
                .map(|(name, v)| (name, Attr::Int(v as i64)))
                .to_vec();
        let at = Some(Tensor::from_vec(vec![2, 2], vec![3i64, 0, 8, 3]).unwrap());
        for zeros in [None, bytes(&[9, (blocks * bits).div_ceil(8)], 3)] {
            let scales = Some(Noise(4).tensor(&[9, blocks], 0.01));
            let inputs = [bytes(&[9, k * bits / 8], 1), at.clone(), scales, zeros];
            let used = inputs.iter().rposition(Option::is_some).unwrap() + 1;
            agree("com.microsoft", "GatherBlockQuantized", &attributes, &inputs[..used], &[0]);
        }
    }
}

/// Levels, a scale and a zero point.
fn on_grid(shape: &[usize], seed: u64, signed: bool, scale: f32) -> Vec<Option<Tensor>> {
    let x = Noise(seed).tensor(shape, 1.0).to_f32s().unwrap();
    let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), x| (l.min(*x), h.max(*x)));
    let level = |x: &f32| ((x - low) / (high - low) * 255.0).round();
    let (levels, zero) = match signed {
        true => {
            let v = x.iter().map(|x| (level(x) - 128.0) as i8).collect::<Vec<i8>>();
            (Tensor::from_vec(shape.to_vec(), v), Tensor::scalar(-9i8))
        }
        false => {
            let v = x.iter().map(|x| level(x) as u8).collect::<Vec<u8>>();
            (Tensor::from_vec(shape.to_vec(), v), Tensor::scalar(117u8))
        }
    };
    vec![Some(levels.unwrap()), Some(Tensor::scalar(scale)), Some(zero)]
}

/// Most levels by which both may differ, which round what lies between two of them in one way or the other.
fn levels_agree(op: &str, attributes: &[(&str, Attr)], inputs: &[Option<Tensor>]) {
    let zero = inputs.iter().flatten().rfind(|t| t.shape().is_empty() && t.dtype() != DType::F32).unwrap();
    let [found, wanted] = both_as(zero.dtype(), "com.microsoft", op, attributes, inputs, &[0]);
    assert_eq!((found[0].shape(), found[0].dtype()), (wanted[0].shape(), wanted[0].dtype()));
    let (a, b) = (found[0].to_i64s().unwrap(), wanted[0].to_i64s().unwrap());
    let off = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    let far = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let spread = b.iter().max().unwrap() - b.iter().min().unwrap();
    assert!(
        far <= 1 && off * 20 <= a.len() && spread > 20,
        "{op}: {off} of {} off, {far}, {spread}",
        a.len()
    );
}

#[test]
fn operators_on_grids_are_the_runtimes() {
    for signed in [false, true] {
        let zero = if signed { Tensor::scalar(3i8) } else { Tensor::scalar(100u8) };
        let result = |scale: f32| vec![Some(Tensor::scalar(scale)), Some(zero.clone())];
        let x = || on_grid(&[2, 3, 6, 5], 1, signed, 0.02137);
        for (op, scale) in [("QLinearAdd", 0.03113), ("QLinearMul", 0.04171)] {
            for shape in [&[2, 3, 6, 5][..], &[3, 1, 1], &[]] {
                let y = on_grid(shape, 2, signed, 0.01571);
                levels_agree(op, &[], &[x(), y, result(scale)].concat());
            }
        }
        levels_agree("QLinearSigmoid", &[], &[x(), result(1.0 / 255.0)].concat());
        levels_agree("QLinearLeakyRelu", &[("alpha", Attr::Float(0.1))], &[x(), result(0.02137)].concat());
        levels_agree(
            "QLinearGlobalAveragePool",
            &[("channels_last", Attr::Int(0))],
            &[on_grid(&[4, 16, 2, 1], 4, signed, 0.02137), result(0.01033)].concat(),
        );
        let window = [("kernel_shape", Attr::Ints(vec![2, 3])), ("strides", Attr::Ints(vec![1, 2]))];
        levels_agree("QLinearAveragePool", &window, &[x(), result(0.01219)].concat());
        let parts = [result(0.02593), x(), on_grid(&[2, 4, 6, 5], 3, signed, 0.03113)].concat();
        levels_agree("QLinearConcat", &[("axis", Attr::Int(1))], &parts);
    }
}

/// Weights on 7 bits, so that no sum of two products of bytes saturates on a processor without VNNI.
fn narrow(shape: &[usize], seed: u64) -> Option<Tensor> {
    let full = on_grid(shape, seed, true, 1.0)[0].as_ref().unwrap().to_vec::<i8>().unwrap();
    Some(Tensor::from_vec(shape.to_vec(), full.iter().map(|x| x / 2).collect::<Vec<i8>>()).unwrap())
}

#[test]
fn products_of_integers_are_the_runtimes() {
    let scales =
        Some(Tensor::from_vec(vec![7], (1..8).map(|i| i as f32 * 0.001).collect::<Vec<_>>()).unwrap());
    let zeros = Some(Tensor::from_vec(vec![7], vec![0i8; 7]).unwrap());
    let a = on_grid(&[5, 12], 1, false, 0.02);
    for turned in [0, 1] {
        let shape = if turned == 1 { [7, 12] } else { [12, 7] };
        let b = narrow(&shape, 2);
        let attributes = [("transB", Attr::Int(turned)), ("alpha", Attr::Float(1.0))];
        let bias = i32s(&[7], &[900, -800, 70, -6, 5000, 4, -3]);
        let inputs = [a.clone(), vec![b, scales.clone(), zeros.clone(), bias]].concat();
        agree("com.microsoft", "QGemm", &attributes, &inputs, &[0]);
        let result = vec![Some(Tensor::scalar(0.05f32)), Some(Tensor::scalar(90u8))];
        levels_agree("QGemm", &attributes, &[inputs, result].concat());
    }
    let a = on_grid(&[2, 3, 12], 1, false, 0.02);
    let b = narrow(&[12, 7], 2);
    let bias = random(&[7], 3);
    for bias in [None, bias] {
        let mut inputs =
            vec![a[0].clone(), b.clone(), a[1].clone(), scales.clone(), a[2].clone(), zeros.clone(), bias];
        inputs.truncate(inputs.iter().rposition(Option::is_some).unwrap() + 1);
        agree("com.microsoft", "MatMulIntegerToFloat", &[], &inputs, &[0]);
    }
}

/// X, W, R, B, lengths, states and peepholes of an LSTM.
fn lstm(directions: usize, lengths: Option<&[i32]>) -> Vec<Option<Tensor>> {
    let (length, batch, width, hidden) = (7, 2, 12, 16);
    let state = [directions, batch, hidden];
    vec![
        random(&[length, batch, width], 1),
        random(&[directions, 4 * hidden, width], 2),
        random(&[directions, 4 * hidden, hidden], 3),
        random(&[directions, 8 * hidden], 4),
        lengths.and_then(|n| i32s(&[batch], n)),
        random(&state, 5),
        random(&state, 6),
        random(&[directions, 3 * hidden], 7),
    ]
}

const LSTM: [&str; 3] = ["forward", "reverse", "bidirectional"];

#[test]
fn lstm_is_the_runtimes() {
    let functions = |names: &[&str]| Attr::Strs(names.iter().map(|n| n.as_bytes().to_vec()).collect());
    for direction in LSTM {
        let directions = if direction == "bidirectional" { 2 } else { 1 };
        let plain = [("hidden_size", Attr::Int(16)), ("direction", Attr::Str(direction.as_bytes().to_vec()))];
        let more: [Vec<(&str, Attr)>; 4] = [
            vec![],
            vec![("clip", Attr::Float(0.7))],
            vec![("input_forget", Attr::Int(1))],
            vec![
                ("activations", functions(&["HardSigmoid", "Softsign", "ScaledTanh"].repeat(directions))),
                ("activation_alpha", Attr::Floats([0.3, 0.8].repeat(directions))),
                ("activation_beta", Attr::Floats([0.4, 1.3].repeat(directions))),
            ],
        ];
        for more in more {
            let attributes = [plain.to_vec(), more].concat();
            for lengths in [None, Some(&[7, 4][..])] {
                let inputs = lstm(directions, lengths);
                agree("", "LSTM", &attributes, &inputs, &[0, 1, 2]);
                agree("", "LSTM", &attributes, &inputs[..3], &[0]);
            }
        }
    }
}

#[test]
fn lstm_with_weights_in_8_bits_is_the_runtimes() {
    for direction in LSTM {
        let directions = if direction == "bidirectional" { 2 } else { 1 };
        let attributes =
            [("hidden_size", Attr::Int(16)), ("direction", Attr::Str(direction.as_bytes().to_vec()))];
        let bytes = |inner: usize, seed: i64| -> Option<Tensor> {
            let all = (0..(directions * inner * 64) as i64).map(|i| ((i * 83 + seed) % 127 - 63) as i8);
            Some(Tensor::from_vec(vec![directions, inner, 64], all.collect()).unwrap())
        };
        for channels in [vec![directions], vec![directions, 64]] {
            let count = channels.iter().product::<usize>();
            let scale = |by: f32| -> Option<Tensor> {
                let all = (0..count).map(|i| by * (1.0 + (i % 5) as f32 / 10.0)).collect();
                Some(Tensor::from_vec(channels.clone(), all).unwrap())
            };
            let zero = || Some(Tensor::from_vec(channels.clone(), vec![0i8; count]).unwrap());
            let mut inputs = lstm(directions, None);
            (inputs[1], inputs[2]) = (bytes(12, 5), bytes(16, 31));
            inputs.extend([scale(0.01), zero(), scale(0.008), zero()]);
            agree("com.microsoft", "DynamicQuantizeLSTM", &attributes, &inputs, &[0, 1, 2]);
        }
    }
}
