//! Attention that is written out.

use super::*;

/// How an attention is written out.
#[derive(Clone, Copy)]
struct Parted {
    /// Axes.
    rank: usize,
    /// Keys come as `[batch, positions, heads, size]`.
    flat_keys: bool,
    /// Where the scale is: 0 behind the scores, 1 in front of queries, 2 in front of both.
    scale: usize,
    /// 0 none, 1 added, 2 chosen, 3 chosen the other way round.
    mask: usize,
    axis: i64,
    one_head: bool,
}

const PARTED: Parted = Parted { rank: 4, flat_keys: false, scale: 0, mask: 0, axis: -1, one_head: false };

impl Parted {
    fn nodes(&self) -> usize {
        4 + [1, 1, 2][self.scale] + usize::from(self.mask > 0)
    }
}

/// Shape of a mask, and whether any row rules every key out.
fn attention(net: &mut Net, p: Parted, mask_shape: &[usize], lost: bool, fill: f64) -> ValueId {
    let lead: &[i64] = &[-1, 4][..p.rank - 2];
    let shape = |lead: &[i64], rest: [i64; 2]| [lead, &rest].concat();
    let heads = if p.one_head { vec![-1, 1] } else { lead.to_vec() };
    let mut q = net.input(&shape(lead, [5, 8]), 1.0);
    let mut k = match p.flat_keys {
        true => net.input(&[-1, 7, heads[1], 8], 1.0),
        false => net.input(&shape(&heads, [7, 8]), 1.0),
    };
    let v = net.input(&shape(&heads, [7, 6]), 1.0);
    if p.scale > 0 {
        q = net.by("Mul", q, 0.5);
    }
    if p.scale == 2 {
        k = net.by("Div", k, 2.0);
    }
    let perm: &[i64] = match (p.flat_keys, p.rank) {
        (true, _) => &[0, 2, 3, 1],
        (_, 2) => &[1, 0],
        (_, 3) => &[0, 2, 1],
        _ => &[0, 1, 3, 2],
    };
    let k = net.turned(k, perm);
    let mut scores = net.op("MatMul", &[q, k]);
    if p.scale == 0 {
        scores = net.by("Div", scores, 8f64.sqrt());
    }
    let n: usize = mask_shape.iter().product();
    let width = mask_shape.last().copied().unwrap_or(1);
    let out = |i: usize| i % 3 == 1 && !i.is_multiple_of(width) || lost && i / width == 1;
    match p.mask {
        0 => {}
        1 => {
            let tensor = net.floats(
                mask_shape,
                noise(n, 9).iter().enumerate().map(|(i, x)| if out(i) { fill } else { *x }).collect(),
            );
            let mask = net.constant(tensor);
            scores = net.op("Add", &[scores, mask]);
        }
        way => {
            let keeps = way == 2;
            let bools = (0..n).map(|i| out(i) != keeps).collect();
            let mask = net.constant(Tensor::from_bools(mask_shape.to_vec(), bools).unwrap());
            let fill = net.number(fill);
            scores = net.op("Where", &if keeps { [mask, scores, fill] } else { [mask, fill, scores] });
        }
    }
    let weights = net.softmax(scores, p.axis);
    net.op("MatMul", &[weights, v])
}

#[test]
fn attention_is_one_step_in_all_its_forms() {
    for style in styles() {
        for rank in 2..=4 {
            for scale in 0..3 {
                let mut net = Net::new(style);
                let p = Parted { rank, scale, axis: rank as i64 - 1, ..PARTED };
                let y = attention(&mut net, p, &[], false, 0.0);
                net.ends(y).is("Attention", p.nodes());
            }
        }
        for (flat_keys, one_head) in [(true, false), (false, true), (true, true)] {
            let mut net = Net::new(style);
            let p = Parted { flat_keys, one_head, scale: 2, ..PARTED };
            let y = attention(&mut net, p, &[], false, 0.0);
            net.ends(y).is("Attention", p.nodes());
        }
        for mask in 1..=3 {
            for shape in [&[7][..], &[5, 7], &[5, 1], &[4, 5, 7], &[1, 1, 1, 7], &[1, 4, 5, 7]] {
                for fill in [-1e9, f64::from(f32::MIN)] {
                    let mut net = Net::new(style);
                    let p = Parted { mask, ..PARTED };
                    let y = attention(&mut net, p, shape, false, fill);
                    net.ends(y).is("Attention", p.nodes());
                }
            }
        }
    }
}

/// Softmax over keys that are all ruled out is even where the fill is finite, and not a number where it is
/// not.
#[test]
fn queries_without_keys_get_what_softmax_gives() {
    for style in styles() {
        for (mask, shape) in [(2, &[5, 7][..]), (3, &[4, 5, 7]), (2, &[5, 1])] {
            let mut net = Net::new(style);
            let p = Parted { mask, ..PARTED };
            let y = attention(&mut net, p, shape, true, f64::from(f32::MIN));
            net.ends(y).is("Attention", p.nodes());
        }
        for mask in [1, 2] {
            let mut net = Net::new(style);
            let p = Parted { mask, ..PARTED };
            let y = attention(&mut net, p, &[5, 7], true, f64::NEG_INFINITY);
            let made = net.ends(y);
            assert_eq!(fused(&made.graph).len(), 1);
            let executor = Executor::new(&made.graph).unwrap();
            let none = Overrides::new();
            let plain = executor.run_tapped(&made.inputs, &none, Seen::All, &mut |_, _| Ok(())).unwrap();
            let own = executor.run(&made.inputs).unwrap()[0].1.to_f64s().unwrap();
            let plain = plain[0].to_tensor().unwrap().to_f64s().unwrap();
            assert!(plain.iter().any(|x| x.is_nan()) && plain.iter().any(|x| x.is_finite()));
            for (a, b) in own.iter().zip(&plain) {
                assert!(a.is_nan() == b.is_nan() && (a.is_nan() || (a - b).abs() < 1e-5), "{a} {b}");
            }
        }
    }
}

#[test]
fn a_score_that_is_no_number_shows() {
    let mut net = Net::new(PLAIN);
    let y = attention(&mut net, PARTED, &[], false, 0.0);
    let mut made = net.ends(y);
    let nans = vec![f32::NAN; made.inputs[0].1.len()];
    made.inputs[0].1 = Tensor::from_vec(made.inputs[0].1.shape().to_vec(), nans).unwrap();
    let out = Executor::new(&made.graph).unwrap().run(&made.inputs).unwrap()[0].1.to_f32s().unwrap();
    assert!(out.iter().all(|x| x.is_nan()));
}

#[test]
fn what_only_resembles_an_attention_stays() {
    let made = |p: Parted, shape: &[usize], fill: f64| {
        let mut net = Net::new(PLAIN);
        let y = attention(&mut net, p, shape, false, fill);
        net.ends(y)
    };
    // Over the queries; a fill that could weigh something; a mask that makes the scores larger.
    let axis = |net: &mut Net| {
        let (q, k) = (net.input(&[2, 7, 8], 1.0), net.input(&[2, 8, 7], 1.0));
        let v = net.input(&[2, 7, 6], 1.0);
        let scores = net.op("MatMul", &[q, k]);
        (scores, v)
    };
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, 1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
    made(Parted { mask: 2, ..PARTED }, &[5, 7], -100.0).stays();
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let mask = net.weight(&[3, 2, 7, 7]);
    let scores = net.op("Add", &[scores, mask]);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
    // Weights are an output, or are used twice.
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.edit.add_output(weights);
    net.ends(y).stays();
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    let z = net.op("MatMul", &[weights, v]);
    let y = net.op("Sub", &[y, z]);
    net.ends(y).stays();
    // Without its keys transposed in the graph it is one too.
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).is("Attention", 3);
    // Keys that serve two batches by broadcasting.
    let mut net = Net::new(PLAIN);
    let (q, k, v) =
        (net.input(&[2, 4, 5, 8], 1.0), net.input(&[1, 4, 8, 7], 1.0), net.input(&[2, 4, 7, 6], 1.0));
    let scores = net.op("MatMul", &[q, k]);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
}
