//! `prune`: a recipe of one pruning step, from flags. Every setting of the step has one.

use super::context::Context;
use super::step::{Common, pairs, scalar, start};
use crate::plan::Step;
use toml::Value;

/// Remove whole channels, neurons, heads or layers, so that the shapes really shrink
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  How much:
    tinsmith prune cnn.onnx --ratio 0.2 -o cnn-20.onnx --measure --data digits:test
    tinsmith prune cnn.onnx --target macs=0.5 -o half.onnx
    tinsmith prune smollm2.gguf --target bytes=200MB --round-to 32 -o small.onnx
    tinsmith prune cnn.onnx --ratio 0.5 --rounds 3 --recover steps=200 --train digits:train
    tinsmith prune vit.onnx --ratios heads=0.25,neurons=0.5 --protect 'head*',embeddings
  Which units:
    tinsmith prune smollm2.gguf --ratio 0.2 --criterion taylor --calibration text:moby-dick.txt
    tinsmith prune cnn.onnx --ratio 0.3 --scope sensitivity --calibration digits:train#0..256
    tinsmith prune smollm2.gguf --ratio 0.2 --criterion block-influence --unit layer --calibration text:moby-dick.txt
  What is left:
    tinsmith prune cnn.onnx --ratio 0.3 --repair ridge --calibration digits:train#0..256
    tinsmith prune cnn.onnx --ratio 0.5 --recover steps=200,rate=1e-3,batch=32,towards=task --train digits:train
    tinsmith prune smollm2.gguf --ratio 0.2 --recover tokens=200000,rate=1e-4 --train text:corpus.txt --save-recipe prune.toml")]
pub(super) struct Prune {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    amount: Amount,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    rest: Rest,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How much")]
struct Amount {
    /// Part of the parameters to remove, above 0 and below 1
    #[arg(long, value_name = "PART", conflicts_with = "target", allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// What the ratio is a part of: prunable (what may leave at all) or total [default: prunable]
    #[arg(long, value_name = "NAME", requires = "ratio")]
    of: Option<String>,
    /// What may remain: macs, params, bytes or latency (measured here), as a part of the original's, or a
    /// number with a unit: macs=0.5, bytes=20MB, params=25M
    #[arg(long, value_name = "FIGURE=PART")]
    target: Option<String>,
    /// Part of the units to remove from groups of a kind (heads, neurons, channels, width) or with a name,
    /// whatever the others do
    #[arg(long, value_name = "KIND=PART", value_delimiter = ',')]
    ratios: Vec<String>,
    /// Cut, repair and train so many times, each time by the same part [default: 1]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Let the width that all layers share shrink with the rest
    #[arg(long)]
    width: bool,
    /// Keep counts at multiples of this [default: 8]
    #[arg(long, value_name = "N")]
    round_to: Option<u32>,
    /// Smallest part of its units that a group keeps [default: 0.1]
    #[arg(long, value_name = "PART", allow_negative_numbers = true)]
    min_keep: Option<f64>,
    /// Fewest units that a group keeps [default: 1]
    #[arg(long, value_name = "N")]
    min_units: Option<u32>,
    /// Nodes and weights whose units stay, by name
    #[arg(long, visible_alias = "protect", value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    exclude: Vec<String>,
    /// Let axes of the model's inputs and outputs shrink
    #[arg(long)]
    allow_interface_change: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Which units")]
struct Choice {
    /// What makes a unit unimportant. By weights: l1, l2. By what flows through it on --calibration data:
    /// activation, frequency, flap, wanda, minitron. By the slope of the loss on those data: taylor,
    /// llm-pruner, obd. Of whole layers: block-influence, loss-on-removal. To compare with: random
    #[arg(long, value_name = "NAME", default_value = "l2")]
    criterion: String,
    /// Between which units is chosen: global, layer (each group loses the same part), sensitivity (where
    /// the loss on --calibration data rises least) [default: global]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// What leaves at once by criteria of layers: layer (attention and feed-forward) or block (each alone)
    /// [default: layer]
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// The loss whose slope is taken: task (labels, or the next token of texts), reference (the unpruned
    /// model's outputs), auto [default: auto]
    #[arg(long, value_name = "NAME")]
    slope: Option<String>,
    /// What taylor sums over: gate, group, element [default: gate]
    #[arg(long, value_name = "NAME")]
    form: Option<String>,
    /// How changes of the loss are accumulated: squared, absolute [default: squared]
    #[arg(long, value_name = "NAME")]
    power: Option<String>,
    /// How scores of different groups are compared: none, mean, max, cost [default: the criterion's own]
    #[arg(long, value_name = "NAME")]
    normalize: Option<String>,
    /// Most rows of calibration data to look at; 0 for all [default: 128]
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Rows of calibration data at once [default: left to the data]
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Most rows that each point of a sensitivity curve looks at [default: 8]
    #[arg(long, value_name = "N")]
    sensitivity_samples: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is left")]
struct Rest {
    /// How what is left makes up for what was taken, on --calibration data: none, bias, ridge
    /// [default: none]
    #[arg(long, value_name = "NAME")]
    repair: Option<String>,
    /// Penalty of ridge on changes of the weights [default: 0.01]
    #[arg(long, value_name = "PART", allow_negative_numbers = true)]
    ridge: Option<f64>,
    /// Train what is left on --train data: steps or tokens say how long; rate, batch, towards (reference,
    /// task), hold_out, looks, patience, warmup, floor, clip and weight_decay as in [step.recover]
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    recover: Vec<String>,
    /// Save memory of reverse passes (slopes of the loss, training) by computing values again: auto (where
    /// the memory cap asks for it), off, or a number of segments; the result is the same [default: auto]
    #[arg(long, value_name = "HOW")]
    checkpointing: Option<String>,
}

pub(super) fn prune(context: &Context, args: Prune) -> anyhow::Result<()> {
    let Prune { common, amount, choice, rest } = args;
    let name = amount.name();
    let mut step = Step::new("prune").with("criterion", choice.criterion);
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            step.settings.insert(name.into(), value);
        }
    };
    let number = |n: Option<u32>| n.map(|n| Value::from(i64::from(n)));
    set("ratio", amount.ratio.map(Value::from));
    set("of", amount.of.map(Value::from));
    set("target", amount.target.map(|pair| pairs("--target", &[pair])).transpose()?);
    set("ratios", given(&amount.ratios).map(|all| pairs("--ratios", all)).transpose()?);
    set("rounds", number(amount.rounds));
    set("width", amount.width.then_some(Value::from(true)));
    set("round_to", number(amount.round_to));
    set("min_keep", amount.min_keep.map(Value::from));
    set("min_units", number(amount.min_units));
    set("exclude", given(&amount.exclude).map(|names| Value::from(names.to_vec())));
    set("allow_interface_change", amount.allow_interface_change.then_some(Value::from(true)));
    set("scope", choice.scope.map(Value::from));
    set("unit", choice.unit.map(Value::from));
    set("slope", choice.slope.map(Value::from));
    set("form", choice.form.map(Value::from));
    set("power", choice.power.map(Value::from));
    set("normalize", choice.normalize.map(Value::from));
    set("samples", number(choice.samples));
    set("batch", number(choice.batch));
    set("sensitivity_samples", number(choice.sensitivity_samples));
    set("repair", rest.repair.map(Value::from));
    set("ridge", rest.ridge.map(Value::from));
    set("checkpointing", rest.checkpointing.as_deref().map(scalar));
    set("recover", given(&rest.recover).map(|all| pairs("--recover", all)).transpose()?);
    start(context, common, &name, step)
}

fn given(all: &[String]) -> Option<&[String]> {
    (!all.is_empty()).then_some(all)
}

impl Amount {
    /// What the variant is called.
    fn name(&self) -> String {
        match (self.ratio, self.target.as_deref().and_then(|t| t.split_once('='))) {
            (Some(ratio), _) => format!("pruned-{:.0}", 100.0 * ratio),
            (_, Some((figure, amount))) => match amount.trim().parse::<f64>() {
                Ok(part) => format!("pruned-{}-{:.0}", figure.trim(), 100.0 * part),
                Err(_) => format!("pruned-{}-{}", figure.trim(), amount.trim()),
            },
            _ => "pruned".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_named_after_what_was_asked_for() {
        let name = |ratio, target: Option<&str>| {
            Amount {
                ratio,
                of: None,
                target: target.map(String::from),
                ratios: vec![],
                rounds: None,
                width: false,
                round_to: None,
                min_keep: None,
                min_units: None,
                exclude: vec![],
                allow_interface_change: false,
            }
            .name()
        };
        assert_eq!(name(Some(0.2), None), "pruned-20");
        assert_eq!(name(None, Some("macs=0.5")), "pruned-macs-50");
        assert_eq!(name(None, Some("bytes=20MB")), "pruned-bytes-20MB");
        assert_eq!(name(None, None), "pruned");
    }
}
