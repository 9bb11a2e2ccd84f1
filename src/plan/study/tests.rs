//! What is foretold is what the pass does: on nets by hand, for many settings.

use super::*;
use crate::analysis::{Options, summarize};
use crate::graph::coupling::Kind;
use crate::graph::{Edit, Type, ValueId};
use crate::monitor::Silent;
use crate::ops::{Attr, Attributes, Dim};
use crate::passes::prune::{Scope, Settings, decide, slice};
use crate::tensor::{DType, Tensor};

struct Net {
    edit: Edit,
    state: u64,
}

impl Net {
    fn new() -> Net {
        Net { edit: Edit::new("net", &[("", 17)]), state: 7 }
    }
    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let mut next = || {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((self.state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        };
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        self.edit.add_initializer(name, Tensor::from_vec(shape.to_vec(), data).unwrap())
    }
    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: Attributes, name: &str) -> ValueId {
        self.edit.add_op(op, inputs, attributes, name)
    }
    fn conv(&mut self, name: &str, x: ValueId, from: usize, to: usize) -> ValueId {
        let w = self.weight(&format!("{name}.w"), &[to, from, 3, 3]);
        let b = self.weight(&format!("{name}.b"), &[to]);
        let pads = Attributes::new().with("pads", Attr::Ints(vec![1; 4]));
        let y = self.op("Conv", &[x, w, b], pads, name);
        self.op("Relu", &[y], Attributes::new(), &format!("{name}.relu"))
    }
}

/// Two residual blocks over images of an open batch, then two linear layers.
fn graph() -> Graph {
    let mut net = Net::new();
    let shape = vec![Dim::symbol("n"), Dim::from(3i64), Dim::from(8i64), Dim::from(8i64)];
    let x = net.edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let stem = net.conv("stem", x, 3, 24);
    let mut at = stem;
    for i in 0..2 {
        let a = net.conv(&format!("block.{i}.a"), at, 24, 32);
        let b = net.conv(&format!("block.{i}.b"), a, 32, 24);
        at = net.op("Add", &[at, b], Attributes::new(), &format!("block.{i}.add"));
    }
    let pooled = net.op("GlobalAveragePool", &[at], Attributes::new(), "pool");
    let flat = net.op("Flatten", &[pooled], Attributes::new(), "flat");
    let up = net.weight("up.w", &[24, 64]);
    let h = net.op("MatMul", &[flat, up], Attributes::new(), "up");
    let h = net.op("Relu", &[h], Attributes::new(), "act");
    let down = net.weight("down.w", &[64, 5]);
    let y = net.op("MatMul", &[h, down], Attributes::new(), "down");
    net.edit.add_output(y);
    net.edit.commit().unwrap()
}

fn on<T>(graph: &Graph, work: impl FnOnce(&mut Open<'_>) -> T) -> T {
    let facts = graph.infer(&|_| None).unwrap();
    let bound = analysis::bound(graph, &Options::default()).unwrap();
    let survey = Survey::of(graph, &facts, false);
    let mut open = Open::of(graph, &facts, &bound, &survey, Criterion::L2, &Silent).unwrap();
    work(&mut open)
}

fn device() -> DeviceFacts {
    DeviceFacts {
        name: "d".into(),
        isa: "avx2".into(),
        threads: 1,
        peak_gflops: 50.0,
        bandwidth_gbs: 10.0,
        ram_bytes: None,
    }
}

fn ask(open: &mut Open<'_>, settings: &Settings) -> Result<Forecast> {
    let question = Question { settings: settings.clone(), curves: vec![], device: Some(device()) };
    open.answer(&question)
}

fn settings(text: &str) -> Settings {
    toml::from_str(text).unwrap()
}

#[test]
fn a_forecast_is_what_the_pass_does() {
    let graph = graph();
    let before = summarize(&graph, &Options::default()).unwrap();
    on(&graph, |open| {
        assert_eq!((open.study.parameters, open.study.macs), (before.parameters, before.macs));
        assert_eq!(open.study.weight_bytes, before.weight_bytes);
        let base = ask(open, &Settings::default()).unwrap();
        let roofline: f64 = cost::layers(&before, &device()).iter().map(|l| l.ms).sum();
        let (was, is) = base.roofline_ms.unwrap();
        assert!((was - roofline).abs() < 1e-9 * roofline && was == is, "{was} {is} {roofline}");
        for text in [
            "ratio = 0.3",
            "ratio = 0.3\nscope = 'layer'\nround_to = 4",
            "ratio = 0.2\nof = 'total'\nround_to = 2",
            "ratio = 0.4\nround_to = 1\nratios = { neurons = 0.5 }",
            "ratios = { channels = 0.25, 'block.1.a.b' = 0.5 }",
            "ratio = 0.25\nprotect = ['block.0.a.b']\nmin_keep = 0.5",
            "ratios = { 'group 2' = 0.5 }\nratio = 0.1\nprotect = ['group 3']",
        ] {
            let settings = settings(text);
            let foretold = ask(open, &settings).unwrap();
            let decision = decide(&graph, &settings, &Silent).unwrap();
            let kept: Vec<usize> = decision.coupled.groups().iter().map(|g| decision.kept(g)).collect();
            assert_eq!(foretold.kept, kept, "{text}");
            assert_eq!(foretold.stays, decision.stays, "{text}");
            let after = summarize(&slice(&graph, &decision).unwrap(), &Options::default()).unwrap();
            assert_eq!(foretold.parameters, after.parameters, "{text}");
            assert_eq!(foretold.macs, after.macs, "{text}");
            assert_eq!(foretold.weight_bytes, after.weight_bytes, "{text}");
            let roofline: f64 = cost::layers(&after, &device()).iter().map(|l| l.ms).sum();
            let (was, is) = foretold.roofline_ms.unwrap();
            assert!((is - roofline).abs() < 1e-9 * roofline && is < was, "{text}: {is} {roofline}");
            assert!(foretold.exact && foretold.parameters < before.parameters, "{text}");
        }
        // The last cut leaves nothing behind.
        assert_eq!(ask(open, &Settings::default()).unwrap(), base);
    });
}

#[test]
fn each_group_has_a_name_that_means_it_alone() {
    let graph = graph();
    on(&graph, |open| {
        let groups = open.study.groups.clone();
        let free: Vec<_> = groups.iter().filter(|g| g.never.is_none()).collect();
        assert!(free.len() >= 4, "{groups:?}");
        for group in free {
            let number = format!("group {}", group.id);
            let by_number = Settings { ratios: [(number, 0.5)].into(), ..Settings::default() };
            let first = ask(open, &by_number).unwrap();
            let address = first.addresses[&group.id].clone();
            let by_name = Settings { ratios: [(address.clone(), 0.5)].into(), ..Settings::default() };
            let second = ask(open, &by_name).unwrap();
            assert_eq!(first.kept, second.kept, "{address}");
            let changed: Vec<usize> =
                groups.iter().filter(|g| g.units != second.kept[g.id]).map(|g| g.id).collect();
            assert_eq!(changed, [group.id], "{address}");
            // The bias of a convolution tells its channels from those that it reads.
            if group.kind == Kind::Channels {
                assert!(!address.starts_with("group "), "{address}");
            }
        }
    });
}

#[test]
fn what_cannot_be_met_is_an_error_and_what_is_not_known_is_said() {
    let graph = graph();
    on(&graph, |open| {
        let wrong = |open: &mut Open<'_>, text: &str| ask(open, &settings(text)).unwrap_err().code();
        assert_eq!(wrong(open, "ratio = 0.99"), "PRUNE-RATIO");
        assert_eq!(wrong(open, "ratio = 0.1\nratios = { nothing = 0.5 }"), "PRUNE-RATIOS");
        assert_eq!(wrong(open, "target = { macs = 0.5 }"), "PRUNE-PREVIEW");
        // Scores that only data give may choose other groups; an even cut is the same by any scores.
        let exact = |open: &mut Open<'_>, text: &str| ask(open, &settings(text)).unwrap().exact;
        assert!(!exact(open, "ratio = 0.3\ncriterion = 'taylor'"));
        assert!(exact(open, "ratio = 0.3\ncriterion = 'taylor'\nscope = 'layer'"));
        assert!(!exact(open, "ratio = 0.3\nscope = 'sensitivity'"));
        let count = open.study.groups.len();
        let curve = |slope: f64| Some(crate::passes::prune::Curve { points: vec![(0.5, slope)] });
        let curves = (0..count).map(|i| curve(1.0 + i as f64)).collect();
        let settings = Settings { ratio: 0.3, scope: Scope::Sensitivity, ..Settings::default() };
        let answer = open.answer(&Question { settings, curves, device: None }).unwrap();
        assert!(answer.exact && answer.roofline_ms.is_none());
    });
}

#[test]
fn a_quantised_model_says_why_it_stays() {
    let mut edit = graph().edit();
    let y = edit.graph().outputs()[0];
    let scale = edit.add_initializer("scale", Tensor::from_vec(vec![], vec![0.1f32]).unwrap());
    let zero = edit.add_initializer("zero", Tensor::from_vec(vec![], vec![0u8]).unwrap());
    edit.add_op("QuantizeLinear", &[y, scale, zero], Attributes::new(), "q");
    let graph = edit.commit().unwrap();
    on(&graph, |open| {
        assert!(open.study.refusal.as_ref().unwrap().contains("quantised"), "{:?}", open.study.refusal);
        assert!(open.study.groups.iter().all(|g| g.scores.is_none()));
        assert_eq!(ask(open, &settings("ratio = 0.3")).unwrap_err().code(), "PRUNE-QUANTIZED");
    });
}

#[test]
fn scores_in_brief_keep_their_ends_and_their_mean() {
    let scores: Vec<f64> = (0..100).rev().map(f64::from).collect();
    let brief = brief(&scores).unwrap();
    assert_eq!((brief.quantiles[0], brief.quantiles[QUANTILES - 1], brief.mean), (0.0, 99.0, 49.5));
    assert!(brief.quantiles.is_sorted() && super::brief(&[]).is_none());
}
