//! Gradients of products, convolutions, pools and norms against central differences in `f64`, and
//! convolution against its definition.

use candle_core::{Device, Tensor as Float};
use rand::{Rng, SeedableRng};
use tinsmith::ops::{self, Attr, Attributes, Vjp};
use tinsmith::tensor::{Tensor, Value};

/// Numbers from -1 to 1.
pub fn random(shape: &[usize], seed: u64) -> Float {
    between(shape, seed, -1.0, 1.0)
}

/// Numbers from `low` to `high`.
pub fn between(shape: &[usize], seed: u64, low: f64, high: f64) -> Float {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| rng.random_range(low..high)).collect();
    Float::from_vec(v, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Float) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

/// An operator by name, with its domain before a colon where that is not the default one.
fn op(name: &str, opset: i64, attributes: &Attributes) -> std::sync::Arc<dyn ops::Operator> {
    let (domain, name) = name.split_once(':').unwrap_or(("", name));
    (ops::lookup(domain, name, opset).unwrap().parse)(attributes, opset).unwrap()
}

fn run(op: &dyn ops::Operator, inputs: &[Float]) -> Float {
    let values: Vec<Value> = inputs.iter().map(|t| t.clone().into()).collect();
    run_values(op, &values)
}

fn run_values(op: &dyn ops::Operator, inputs: &[Value]) -> Float {
    let refs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
    op.eval(&refs).unwrap().remove(0).float().unwrap().clone()
}

/// As [`check_values`], of floats alone.
pub fn check(name: &str, opset: i64, attributes: Attributes, inputs: &[Float]) {
    let values: Vec<Value> = inputs.iter().map(|t| t.clone().into()).collect();
    check_values(name, opset, attributes, &values);
}

/// As [`check_slots`], of the first output and with all inputs there.
pub fn check_values(name: &str, opset: i64, attributes: Attributes, inputs: &[Value]) {
    let slots: Vec<Option<Value>> = inputs.iter().cloned().map(Some).collect();
    check_slots(name, opset, attributes, &slots, &[0]);
}

/// Compares every gradient of the given outputs with central differences, and checks that each float
/// input alone gets its gradient and no other does. Values that the operator does not ask to keep are
/// withheld from it. Where nothing flows back, nothing is given.
pub fn check_slots(
    name: &str,
    opset: i64,
    attributes: Attributes,
    inputs: &[Option<Value>],
    outputs: &[usize],
) {
    let op = op(name, opset, &attributes);
    assert!(op.differentiable(), "{name}");
    let run = |inputs: &[Option<Value>]| -> Vec<Value> {
        let refs: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
        op.eval(&refs).unwrap()
    };
    let y = run(inputs);
    let mut grads = vec![None; y.len()];
    for o in outputs {
        grads[*o] = Some(random(y[*o].shape(), 99 + *o as u64));
    }
    let loss = |inputs: &[Option<Value>]| -> f64 {
        let y = run(inputs);
        let along = |o: usize| -> f64 {
            let weights = flat(grads[o].as_ref().unwrap());
            flat(y[o].float().unwrap()).iter().zip(&weights).map(|(a, b)| a * b).sum()
        };
        outputs.iter().map(|o| along(*o)).sum()
    };
    let keeps = op.keeps();
    let kept: Vec<Option<Value>> = inputs
        .iter()
        .map(|v| match v {
            Some(Value::Float(t)) if !keeps.inputs => {
                let nothing = Float::full(f64::NAN, (), &Device::Cpu).unwrap();
                Some(nothing.broadcast_as(t.shape()).unwrap().into())
            }
            v => v.clone(),
        })
        .collect();
    let refs: Vec<Option<&Value>> = kept.iter().map(Option::as_ref).collect();
    let given: Vec<Option<&Value>> = y.iter().map(|y| keeps.outputs.then_some(y)).collect();
    let vjp = |grads: &[Option<Float>], needs: &[bool]| {
        op.vjp(&Vjp { inputs: &refs, outputs: &given, grads, needs }).unwrap()
    };
    for i in (0..inputs.len()).filter(|i| matches!(inputs[*i], Some(Value::Float(_)))) {
        let mut needs = vec![false; inputs.len()];
        needs[i] = true;
        let found = vjp(&grads, &needs);
        for (j, g) in found.iter().enumerate() {
            assert_eq!(g.is_some(), i == j, "{name}: gradient of input {j} when {i} is needed");
        }
        let grad = found[i].as_ref().unwrap();
        let x = inputs[i].as_ref().unwrap().float().unwrap();
        assert_eq!(grad.dims(), x.dims(), "{name}: shape of gradient {i}");
        let (grad, base) = (flat(grad), flat(x));
        let step = 1e-6;
        for k in 0..base.len() {
            let moved = |by: f64| {
                let mut v = base.clone();
                v[k] += by;
                let mut inputs = inputs.to_vec();
                inputs[i] = Some(Float::from_vec(v, x.dims(), &Device::Cpu).unwrap().into());
                loss(&inputs)
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * step);
            assert!(
                (grad[k] - expected).abs() <= 1e-6 * (1.0 + expected.abs()) * 10.0,
                "{name}: input {i} element {k}: {} is not {expected}",
                grad[k]
            );
        }
    }
    let found = vjp(&vec![None; y.len()], &vec![true; inputs.len()]);
    assert!(found.iter().all(Option::is_none), "{name}: a gradient of nothing");
}

fn ints(pairs: &[(&str, &[i64])]) -> Attributes {
    pairs.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, Attr::Ints(v.to_vec())))
}

#[test]
fn matrix_products_have_exact_gradients() {
    for (a, b) in [
        (&[3usize, 4][..], &[4usize, 5][..]),
        (&[2, 3, 4], &[4, 5]),
        (&[2, 3, 4], &[2, 4, 5]),
        (&[2, 1, 3, 4], &[3, 4, 2]),
        (&[3, 4], &[2, 4, 2]),
        (&[4], &[4, 3]),
        (&[3, 4], &[4]),
        (&[4], &[4]),
        (&[2, 3, 4], &[4]),
        (&[4], &[2, 4, 3]),
    ] {
        check("MatMul", 13, Attributes::new(), &[random(a, 1), random(b, 2)]);
    }
    for (ta, tb) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let attributes = Attributes::new()
            .with("transA", Attr::Int(ta))
            .with("transB", Attr::Int(tb))
            .with("alpha", Attr::Float(0.5))
            .with("beta", Attr::Float(1.5));
        let a = if ta == 1 { [4, 3] } else { [3, 4] };
        let b = if tb == 1 { [5, 4] } else { [4, 5] };
        for c in [&[5usize][..], &[3, 5], &[3, 1], &[1, 5], &[]] {
            check("Gemm", 13, attributes.clone(), &[random(&a, 1), random(&b, 2), random(c, 3)]);
        }
    }
}

#[test]
fn a_product_of_transposed_views_equals_that_of_copies() {
    let (a, b) = (random(&[2, 3, 6, 4], 1), random(&[2, 3, 6, 5], 2));
    let op = op("MatMul", 13, &Attributes::new());
    let view = run(&*op, &[a.transpose(2, 3).unwrap(), b.clone()]);
    let copy = run(&*op, &[a.transpose(2, 3).unwrap().contiguous().unwrap(), b]);
    assert_eq!(flat(&view), flat(&copy));
}

#[test]
fn convolutions_have_exact_gradients() {
    let conv = |group: i64, attributes: Attributes, x: &[usize], w: &[usize]| {
        let attributes = attributes.with("group", Attr::Int(group));
        check("Conv", 11, attributes, &[random(x, 1), random(w, 2), random(&w[..1], 3)]);
    };
    conv(1, Attributes::new(), &[2, 3, 5, 4], &[4, 3, 1, 1]);
    conv(1, ints(&[("pads", &[1, 1, 1, 1])]), &[2, 3, 5, 4], &[4, 3, 3, 3]);
    conv(1, ints(&[("pads", &[1, 0, 2, 1]), ("strides", &[2, 3])]), &[2, 2, 6, 7], &[3, 2, 3, 2]);
    conv(1, ints(&[("pads", &[2, 2, 2, 2]), ("dilations", &[2, 2])]), &[1, 2, 6, 5], &[3, 2, 3, 3]);
    conv(2, ints(&[("pads", &[1, 1, 1, 1])]), &[2, 4, 4, 4], &[6, 2, 3, 3]);
    conv(4, ints(&[("pads", &[1, 1, 1, 1])]), &[2, 4, 5, 5], &[4, 1, 3, 3]);
    conv(3, ints(&[("pads", &[1, 0, 0, 1]), ("strides", &[2, 2])]), &[2, 3, 5, 6], &[6, 1, 3, 3]);
    conv(3, ints(&[("dilations", &[2, 1]), ("pads", &[2, 1, 2, 1])]), &[1, 3, 5, 6], &[3, 1, 3, 3]);
    conv(1, ints(&[("pads", &[2, 1]), ("strides", &[2])]), &[2, 3, 9], &[4, 3, 4]);
    conv(3, ints(&[("pads", &[1, 1])]), &[2, 3, 9], &[3, 1, 3]);
    conv(1, ints(&[("pads", &[1, 0, 1, 0, 1, 1])]), &[1, 2, 3, 4, 3], &[2, 2, 2, 3, 2]);
    let same = Attributes::new().with("auto_pad", Attr::Str(b"SAME_LOWER".to_vec()));
    conv(1, same, &[1, 2, 5, 5], &[2, 2, 2, 2]);
}

#[test]
fn transposed_convolutions_have_exact_gradients() {
    let conv = |group: i64, attributes: Attributes, x: &[usize], w: &[usize]| {
        let attributes = attributes.with("group", Attr::Int(group));
        let bias = [w[1] * group as usize];
        check("ConvTranspose", 11, attributes, &[random(x, 1), random(w, 2), random(&bias, 3)]);
    };
    conv(1, ints(&[("strides", &[2, 2])]), &[2, 3, 3, 4], &[3, 2, 2, 2]);
    let odd = ints(&[("strides", &[3, 2]), ("pads", &[1, 0, 0, 1]), ("output_padding", &[1, 1])]);
    conv(1, odd, &[1, 2, 3, 3], &[2, 3, 3, 3]);
    conv(2, ints(&[("dilations", &[2])]), &[2, 4, 5], &[4, 3, 3]);
    conv(3, ints(&[("strides", &[2, 2])]), &[1, 3, 3, 3], &[3, 1, 3, 3]);
}

/// The definition, tap by tap.
fn naive(x: &[f64], w: &[f64], k: &tinsmith::kernels::conv::Conv) -> Vec<f64> {
    let mut y = vec![];
    for n in 0..k.batch {
        for m in 0..k.groups * k.outputs {
            for oy in 0..k.output[1] {
                for ox in 0..k.output[2] {
                    let mut sum = 0.0;
                    for c in 0..k.inputs {
                        for ky in 0..k.kernel[1] {
                            for kx in 0..k.kernel[2] {
                                let iy = (oy * k.stride[1] + ky * k.dilation[1]) as i64 - k.pad[1] as i64;
                                let ix = (ox * k.stride[2] + kx * k.dilation[2]) as i64 - k.pad[2] as i64;
                                if iy < 0 || ix < 0 || iy >= k.input[1] as i64 || ix >= k.input[2] as i64 {
                                    continue;
                                }
                                let channel = n * k.groups * k.inputs + m / k.outputs * k.inputs + c;
                                let at = (channel * k.input[1] + iy as usize) * k.input[2] + ix as usize;
                                sum += x[at] * w[((m * k.inputs + c) * k.kernel[1] + ky) * k.kernel[2] + kx];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

#[test]
fn convolution_of_any_geometry_follows_its_definition() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for _ in 0..200 {
        let mut r = |a: usize, b: usize| rng.random_range(a..=b);
        let (groups, kernel) = (r(1, 3), [1, r(1, 4), r(1, 4)]);
        let (stride, dilation) = ([1, r(1, 3), r(1, 3)], [1, r(1, 3), r(1, 3)]);
        let pad = [0, r(0, 3), r(0, 3)];
        let input = [1, r(1, 24), r(1, 24)];
        let out = |a: usize| {
            let room = input[a] + pad[a] + r(0, 2);
            let extent = (kernel[a] - 1) * dilation[a] + 1;
            (room >= extent).then(|| (room - extent) / stride[a] + 1)
        };
        let mut out = out;
        let (Some(h), Some(w)) = (out(1), out(2)) else { continue };
        let k = tinsmith::kernels::conv::Conv {
            batch: rng.random_range(1..3),
            groups,
            inputs: rng.random_range(1..3),
            outputs: rng.random_range(1..4),
            input,
            output: [1, h, w],
            kernel,
            stride,
            dilation,
            pad,
        };
        let x = flat(&random(&[k.batch * groups * k.inputs * k.area_in()], 1));
        let weights = flat(&random(&[groups * k.outputs * k.taps()], 2));
        let expected = naive(&x, &weights, &k);
        let mut y = vec![0.0; expected.len()];
        k.forward(&x, &weights, None, &mut y);
        for (a, b) in y.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-12, "{k:?}");
        }
    }
}

#[test]
fn pools_have_exact_gradients() {
    for name in ["MaxPool", "AveragePool"] {
        let pool = |attributes: Attributes, x: &[usize]| check(name, 19, attributes, &[random(x, 1)]);
        pool(ints(&[("kernel_shape", &[2, 2]), ("strides", &[2, 2])]), &[2, 2, 4, 6]);
        pool(
            ints(&[("kernel_shape", &[3, 2]), ("strides", &[2, 1]), ("pads", &[1, 0, 1, 1])]),
            &[1, 2, 5, 5],
        );
        pool(ints(&[("kernel_shape", &[3]), ("strides", &[2])]).with("ceil_mode", Attr::Int(1)), &[1, 2, 6]);
        pool(ints(&[("kernel_shape", &[2, 2, 2]), ("dilations", &[2, 1, 2])]), &[1, 1, 4, 3, 5]);
        let padded = ints(&[("kernel_shape", &[3, 3]), ("pads", &[1, 1, 1, 1])]);
        pool(padded.with("count_include_pad", Attr::Int(1)), &[1, 2, 4, 4]);
    }
    for name in ["GlobalAveragePool", "GlobalMaxPool"] {
        check(name, 13, Attributes::new(), &[random(&[2, 3, 4, 5], 1)]);
    }
    for p in [1, 2, 3, 5] {
        let power = |a: Attributes| a.with("p", Attr::Int(p));
        let x = |shape: &[usize]| [random(shape, 1)];
        let window = ints(&[("kernel_shape", &[3, 2]), ("strides", &[2, 1]), ("pads", &[1, 0, 1, 1])]);
        check("LpPool", 18, power(window), &x(&[1, 2, 5, 5]));
        let dilated = ints(&[("kernel_shape", &[2, 2, 2]), ("dilations", &[2, 1, 2])]);
        check("LpPool", 18, power(dilated), &x(&[1, 1, 4, 3, 5]));
        let ceiling = ints(&[("kernel_shape", &[3]), ("strides", &[2])]).with("ceil_mode", Attr::Int(1));
        check("LpPool", 18, power(ceiling), &x(&[1, 2, 6]));
        let same = ints(&[("kernel_shape", &[2, 3])]).with("auto_pad", Attr::Str(b"SAME_UPPER".to_vec()));
        check("LpPool", 11, power(same), &x(&[1, 2, 3, 4]));
        check("GlobalLpPool", 2, power(Attributes::new()), &x(&[2, 3, 4, 5]));
    }
}

/// At the origin, where the norm of a window or vector has no slope, the gradient is zero.
#[test]
fn norms_of_nothing_have_no_slope() {
    let x = Float::zeros((1, 1, 2, 2), candle_core::DType::F64, &Device::Cpu).unwrap();
    for (name, attributes) in [
        ("LpPool", ints(&[("kernel_shape", &[2, 2])])),
        ("GlobalLpPool", Attributes::new()),
        ("LpNormalization", Attributes::new()),
        ("MeanVarianceNormalization", Attributes::new()),
    ] {
        let op = op(name, 18, &attributes);
        let value: Value = x.clone().into();
        let dy = run(&*op, std::slice::from_ref(&x)).ones_like().unwrap();
        let v = Vjp { inputs: &[Some(&value)], outputs: &[None], grads: &[Some(dy)], needs: &[true] };
        let grad = flat(op.vjp(&v).unwrap()[0].as_ref().unwrap());
        assert!(grad.iter().all(|g| *g == 0.0), "{name}: {grad:?}");
    }
}

#[test]
fn norms_along_axes_have_exact_gradients() {
    for axis in [-1, 0, 1] {
        for p in [1, 2] {
            let attributes = Attributes::new().with("axis", Attr::Int(axis)).with("p", Attr::Int(p));
            check("LpNormalization", 1, attributes, &[random(&[3, 4, 2], 1)]);
        }
    }
    for axes in [&[0i64, 2, 3][..], &[1], &[-1, 1], &[0, 1, 2, 3]] {
        check("MeanVarianceNormalization", 13, ints(&[("axes", axes)]), &[random(&[2, 3, 2, 2], 1)]);
    }
    check("MeanVarianceNormalization", 9, Attributes::new(), &[random(&[2, 3, 2, 2], 1)]);
    for size in [1, 2, 3, 4, 9] {
        for (alpha, beta, bias) in [(0.9, 0.75, 1.0), (2.0, 1.5, 0.5)] {
            let attributes = Attributes::new()
                .with("size", Attr::Int(size))
                .with("alpha", Attr::Float(alpha))
                .with("beta", Attr::Float(beta))
                .with("bias", Attr::Float(bias));
            check("LRN", 13, attributes.clone(), &[random(&[2, 5, 2, 3], 1)]);
            check("LRN", 1, attributes, &[random(&[2, 4], 1)]);
        }
    }
}

#[test]
fn resizing_has_an_exact_gradient_in_every_mode() {
    for mode in ["nearest", "linear", "cubic"] {
        for coordinates in
            ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"]
        {
            for antialias in [0, 1] {
                let attributes = Attributes::new()
                    .with("mode", Attr::Str(mode.into()))
                    .with("coordinate_transformation_mode", Attr::Str(coordinates.into()))
                    .with("antialias", Attr::Int(antialias))
                    .with("axes", Attr::Ints(vec![2, 3]));
                let op = op("Resize", 19, &attributes);
                let x = random(&[1, 2, 4, 5], 1);
                let scales: Value = Float::from_vec(vec![2.5f32, 0.6], 2, &Device::Cpu).unwrap().into();
                let run = |x: &Float| {
                    let x: Value = x.clone().into();
                    op.eval(&[Some(&x), None, Some(&scales)]).unwrap().remove(0).float().unwrap().clone()
                };
                let dy = random(run(&x).dims(), 2);
                let loss = |x: &Float| -> f64 { flat(&(run(x) * &dy).unwrap()).iter().sum() };
                let value: Value = x.clone().into();
                let grads = [Some(dy.clone())];
                let v = Vjp {
                    inputs: &[Some(&value), None, Some(&scales)],
                    outputs: &[],
                    grads: &grads,
                    needs: &[true, false, false],
                };
                let grad = flat(op.vjp(&v).unwrap()[0].as_ref().unwrap());
                for k in 0..grad.len() {
                    let mut v = flat(&x);
                    v[k] += 1.0;
                    let moved = Float::from_vec(v, x.dims(), &Device::Cpu).unwrap();
                    let expected = loss(&moved) - loss(&x);
                    assert!((grad[k] - expected).abs() < 1e-9, "{mode} {coordinates} {antialias} {k}");
                }
            }
        }
    }
}

#[test]
fn norms_have_exact_gradients() {
    let channel = |shape: &[usize]| -> Vec<Float> {
        let positive = (random(&[shape[1]], 5).abs().unwrap() + 0.5).unwrap();
        let p = |s| random(&[shape[1]], s);
        vec![random(shape, 1), p(2), p(3), p(4), positive]
    };
    check("BatchNormalization", 9, Attributes::new(), &channel(&[2, 3, 4, 2]));
    check("BatchNormalization", 15, Attributes::new(), &channel(&[4, 3]));
    for axis in [-1, 1] {
        let attributes = Attributes::new().with("axis", Attr::Int(axis)).with("epsilon", Attr::Float(1e-3));
        let normal: &[usize] = if axis == 1 { &[3, 4] } else { &[4] };
        let inputs = [random(&[2, 3, 4], 1), random(normal, 2), random(normal, 3)];
        check("LayerNormalization", 17, attributes.clone(), &inputs);
        check("LayerNormalization", 17, attributes.clone(), &inputs[..2]);
        check("RMSNormalization", 23, attributes, &inputs[..2]);
    }
    // Mean and reciprocal deviation too.
    for axis in [-1, 1] {
        let attributes = Attributes::new().with("axis", Attr::Int(axis)).with("epsilon", Attr::Float(1e-3));
        let normal: &[usize] = if axis == 1 { &[3, 4] } else { &[4] };
        let inputs = [random(&[2, 3, 4], 1), random(normal, 2), random(normal, 3)].map(|x| Some(x.into()));
        for outputs in [&[0usize, 1, 2][..], &[1], &[2]] {
            check_slots("LayerNormalization", 17, attributes.clone(), &inputs, outputs);
        }
    }
    check("InstanceNormalization", 6, Attributes::new(), &channel(&[2, 3, 4, 2])[..3]);
    let groups = Attributes::new().with("num_groups", Attr::Int(2));
    check("GroupNormalization", 21, groups, &channel(&[2, 4, 3, 2])[..3]);
}

#[test]
fn norms_with_a_residual_have_exact_gradients() {
    for (name, parameters) in [("SkipLayerNormalization", 3), ("SkipSimplifiedLayerNormalization", 2)] {
        let name = format!("com.microsoft:{name}");
        let epsilon = Attributes::new().with("epsilon", Attr::Float(1e-3));
        for skip in [&[2usize, 3, 4][..], &[1, 3, 4], &[3, 4]] {
            let mut inputs: Vec<Option<Value>> =
                vec![Some(random(&[2, 3, 4], 1).into()), Some(random(skip, 2).into())];
            inputs.extend((0..parameters).map(|i| Some(random(&[4], 3 + i).into())));
            for outputs in [&[0usize][..], &[0, 3], &[3], &[0, 1, 2, 3]] {
                check_slots(&name, 1, epsilon.clone(), &inputs, outputs);
            }
            // Without the last parameter, the bias.
            check_slots(&name, 1, epsilon.clone(), &inputs[..inputs.len() - 1], &[0, 3]);
        }
    }
}

#[test]
fn lstm_has_exact_gradients() {
    let (length, batch, width, hidden) = (3, 2, 2, 3);
    let attribute = |name: &str, value: Attr| Attributes::new().with(name, value);
    let names = |names: &[&str]| Attr::Strs(names.iter().map(|n| n.as_bytes().to_vec()).collect());
    let bidirectional = attribute("direction", Attr::Str(b"bidirectional".to_vec()));
    let cases = [
        (1, Attributes::new()),
        (1, attribute("direction", Attr::Str(b"reverse".to_vec())).with("clip", Attr::Float(0.4))),
        (2, bidirectional.clone().with("layout", Attr::Int(1))),
        (
            2,
            bidirectional
                .with("input_forget", Attr::Int(1))
                .with(
                    "activations",
                    names(&["Softsign", "ScaledTanh", "Affine", "Sigmoid", "Elu", "Softplus"]),
                )
                .with("activation_alpha", Attr::Floats(vec![0.7, 1.2, 0.5]))
                .with("activation_beta", Attr::Floats(vec![0.9])),
        ),
    ];
    for (directions, attributes) in cases {
        let first = attributes.int("layout", 0).unwrap() == 1;
        let state = if first { [batch, directions, hidden] } else { [directions, batch, hidden] };
        let x = if first { [batch, length, width] } else { [length, batch, width] };
        let some = |shape: &[usize], seed| Some(Value::from(random(shape, seed)));
        let lengths = Value::load(&Tensor::from_vec(vec![2], vec![3i32, 2]).unwrap()).unwrap();
        for lengths in [None, Some(lengths)] {
            let all = vec![
                some(&x, 1),
                some(&[directions, 4 * hidden, width], 2),
                some(&[directions, 4 * hidden, hidden], 3),
                some(&[directions, 8 * hidden], 4),
                lengths,
                some(&state, 5),
                some(&state, 6),
                some(&[directions, 3 * hidden], 7),
            ];
            for outputs in [&[0usize][..], &[1], &[2], &[0, 1, 2]] {
                check_slots("LSTM", 14, attributes.clone(), &all, outputs);
            }
            check_slots("LSTM", 14, attributes.clone(), &all[..3], &[0, 2]);
        }
    }
}

#[test]
fn products_with_weights_in_blocks_have_exact_gradients() {
    let bytes = |shape: &[usize]| -> Option<Value> {
        let values: Vec<u8> = (0..shape.iter().product()).map(|i: usize| (i * 83 % 251) as u8).collect();
        Some(Value::load(&Tensor::from_vec(shape.to_vec(), values).unwrap()).unwrap())
    };
    for bits in [4usize, 8] {
        let attributes = [("K", 20), ("N", 3), ("bits", bits as i64), ("block_size", 16)]
            .into_iter()
            .fold(Attributes::new(), |a, (name, v)| a.with(name, Attr::Int(v)));
        for zeros in [bytes(&[3 * (2 * bits).div_ceil(8)]), Some(random(&[6], 4).into()), None] {
            let (x, bias) = (random(&[2, 2, 20], 1).into(), random(&[3], 2).into());
            let scales = random(&[6], 3).into();
            let inputs = [Some(x), bytes(&[3, 2, 2 * bits]), Some(scales), zeros, None, Some(bias)];
            check_slots("com.microsoft:MatMulNBits", 1, attributes.clone(), &inputs, &[0]);
        }
        let attributes = [("bits", bits as i64), ("block_size", 16)]
            .into_iter()
            .fold(Attributes::new(), |a, (name, v)| a.with(name, Attr::Int(v)));
        let ids = Value::load(&Tensor::from_vec(vec![3], vec![2i64, 0, 2]).unwrap()).unwrap();
        for zeros in [bytes(&[3, (2 * bits).div_ceil(8)]), Some(random(&[3, 2], 4).into()), None] {
            let inputs = [bytes(&[3, 4 * bits]), Some(ids.clone()), Some(random(&[3, 2], 3).into()), zeros];
            check_slots("com.microsoft:GatherBlockQuantized", 1, attributes.clone(), &inputs, &[0]);
        }
    }
}

#[test]
fn running_statistics_are_named_where_a_gradient_is_asked_for() {
    let op = op("BatchNormalization", 15, &Attributes::new().with("training_mode", Attr::Int(1)));
    let inputs: Vec<Value> = (0..5)
        .map(|i| if i == 0 { random(&[3, 2, 4], 1) } else { between(&[2], i, 0.5, 1.0) }.into())
        .collect();
    let refs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
    let grads = [None, Some(random(&[2], 7)), None];
    let e = op.vjp(&Vjp { inputs: &refs, outputs: &[], grads: &grads, needs: &[true; 5] }).unwrap_err();
    assert!(e.code() == "NO-VJP" && e.to_string().contains("running statistics"), "{e}");
}

#[test]
fn training_mode_differentiates_through_the_statistics_of_the_batch() {
    let attributes = Attributes::new().with("training_mode", Attr::Int(1));
    let op = op("BatchNormalization", 15, &attributes);
    let inputs = [
        random(&[3, 2, 4], 1),
        random(&[2], 2),
        random(&[2], 3),
        random(&[2], 4),
        random(&[2], 5).abs().unwrap(),
    ];
    let values: Vec<Value> = inputs.iter().map(|t| t.clone().into()).collect();
    let refs: Vec<Option<&Value>> = values.iter().map(Some).collect();
    let y = op.eval(&refs).unwrap();
    assert_eq!(y.len(), 3);
    let dy = random(&[3, 2, 4], 9);
    let grads = [Some(dy.clone()), None, None];
    let needs = [true, true, true, false, false];
    let d = op.vjp(&Vjp { inputs: &refs, outputs: &[], grads: &grads, needs: &needs }).unwrap();
    for i in 0..3 {
        let (grad, base) = (flat(d[i].as_ref().unwrap()), flat(&inputs[i]));
        for k in 0..base.len() {
            let moved = |by: f64| {
                let mut v = base.clone();
                v[k] += by;
                let mut inputs = inputs.to_vec();
                inputs[i] = Float::from_vec(v, inputs[i].dims(), &Device::Cpu).unwrap();
                flat(&run(&*op, &inputs)).iter().zip(flat(&dy)).map(|(a, b)| a * b).sum::<f64>()
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (grad[k] - expected).abs() < 1e-5,
                "input {i} element {k}: {} is not {expected}",
                grad[k]
            );
        }
    }
}

#[test]
fn wrong_shapes_are_invalid_and_huge_results_are_limited() {
    let kind = |name: &str, attributes: Attributes, inputs: &[Float]| {
        let values: Vec<Value> = inputs.iter().map(|t| t.clone().into()).collect();
        let refs: Vec<Option<&Value>> = values.iter().map(Some).collect();
        op(name, 13, &attributes).eval(&refs).unwrap_err().kind()
    };
    use tinsmith::error::Kind;
    let r = |s: &[usize]| random(s, 1);
    assert_eq!(kind("MatMul", Attributes::new(), &[r(&[2, 3]), r(&[2, 3])]), Kind::Invalid);
    assert_eq!(kind("MatMul", Attributes::new(), &[r(&[]), r(&[2, 3])]), Kind::Invalid);
    assert_eq!(kind("Gemm", Attributes::new(), &[r(&[2, 3]), r(&[3, 4]), r(&[3])]), Kind::Invalid);
    assert_eq!(kind("Conv", Attributes::new(), &[r(&[1, 3, 4, 4]), r(&[2, 2, 3, 3])]), Kind::Invalid);
    assert_eq!(kind("Conv", Attributes::new(), &[r(&[1, 2, 2, 2]), r(&[2, 2, 3, 3])]), Kind::Invalid);
    assert_eq!(
        kind("Conv", Attributes::new(), &[r(&[1, 2, 4, 4]), r(&[2, 2, 3, 3]), r(&[3])]),
        Kind::Invalid
    );
    assert_eq!(
        kind("BatchNormalization", Attributes::new(), &[r(&[2, 3]), r(&[3]), r(&[3]), r(&[2]), r(&[3])]),
        Kind::Invalid
    );
    assert_eq!(kind("MaxPool", ints(&[("kernel_shape", &[3])]), &[r(&[1, 2, 2])]), Kind::Invalid);
    let wide = ints(&[("pads", &[1 << 20, 1 << 20, 1 << 20, 1 << 20])]);
    assert_eq!(kind("Conv", wide, &[r(&[1, 1, 4, 4]), r(&[2, 1, 3, 3])]), Kind::Limit);
}
