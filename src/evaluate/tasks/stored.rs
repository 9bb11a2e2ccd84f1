//! Stored tensors: a `.npz` file holds inputs and expected outputs by their names; the model's outputs
//! are held against them.

use super::runner::Runner;
use super::{Outcome, TaskOptions, metric};
use crate::data::{Spec, arrays};
use crate::error::{Error, Result};
use crate::evaluate::measurement::{Interval, Quality};
use crate::evaluate::parity::parity;
use crate::save;
use crate::tensor::Tensor;
use serde_json::json;

pub(super) fn run(runner: &mut dyn Runner, options: &TaskOptions) -> Result<Outcome> {
    let spec = Spec::parse(&options.data)?;
    if spec.kind != "npz" {
        return Err(Error::usage("EVAL-DATA", "stored tensors come from a .npz file")
            .field(&options.data)
            .limit("npz:FILE")
            .hint("write it with numpy.savez(FILE, input_name=..., output_name=...)"));
    }
    spec.finish()?;
    let stored = arrays(&spec.path())?;
    let find = |name: &str| stored.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
    let inputs: Vec<(String, Tensor)> = runner
        .inputs()
        .iter()
        .map(|port| {
            let tensor = find(&port.name).ok_or_else(|| {
                let names: Vec<&str> = stored.iter().map(|(n, _)| n.as_str()).collect();
                Error::usage("EVAL-DATA", "the file lacks an input of the model")
                    .file(spec.path())
                    .found(names.join(", "))
                    .limit(port.to_string())
            })?;
            let fits = tensor.dtype() == port.dtype;
            Ok((port.name.clone(), if fits { tensor } else { tensor.cast_to(port.dtype) }))
        })
        .collect::<Result<_>>()?;
    let known = runner.outputs();
    let expected: Vec<(String, Tensor)> =
        known.iter().filter_map(|name| Some((name.clone(), find(name)?))).collect();
    if expected.is_empty() {
        let names: Vec<&str> = stored.iter().map(|(n, _)| n.as_str()).collect();
        return Err(Error::usage("EVAL-DATA", "the file holds no output of the model")
            .file(spec.path())
            .found(names.join(", "))
            .limit(known.join(", ")));
    }
    let outputs = runner.run(&inputs)?;
    let mut metrics = Vec::new();
    let mut notes = Vec::new();
    let (mut worst, mut elements) = (0f64, 0);
    for (name, tensor) in &expected {
        let output: Vec<(String, Tensor)> = outputs.iter().filter(|(n, _)| n == name).cloned().collect();
        let p = parity(&[(name.clone(), tensor.clone())], &output, options.tolerance)?;
        metrics.push(metric(&format!("max_abs:{name}"), p.max_abs, None));
        metrics.push(metric(&format!("max_rel:{name}"), p.max_rel, None));
        if let Some(first) = &p.first {
            notes.push(format!(
                "\"{name}\" differs by more than {:.0e} of its largest, first at element {}: {} instead of {}",
                options.tolerance, first.element, first.value, first.reference
            ));
        }
        worst = worst.max(p.max_rel);
        elements += p.elements;
    }
    let (data_hash, _) = save::digest(&spec.path())?;
    let quality = Quality {
        metric: "max_rel".into(),
        value: worst,
        ci95: Interval { low: worst, high: worst },
        n: elements,
        higher_is_better: false,
        correct: Vec::new(),
        data_hash,
    };
    let settings = [("tolerance", json!(options.tolerance)), ("outputs", json!(expected.len()))];
    let settings = settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    Ok(Outcome { quality, metrics, settings, notes })
}
