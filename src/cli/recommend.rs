//! `recommend`: ranked recipes for a model on a device, predicted, with reasons.

use super::context::Context;
use super::goal::{DataArgs, GoalArgs};
use super::inspect::Binding;
use super::run;
use crate::analysis::{self, Options};
use crate::data::{DataSet, TextSet};
use crate::error::{Error, Result};
use crate::hardware::Device;
use crate::history;
use crate::plan::{self, DeviceFacts, Question, Recipe, Recommendation};
use crate::save;
use std::path::{Path, PathBuf};

/// Rank recipes for a model on a device: predicted speed, size and quality, with reasons and risks
///
/// Predictions come from the structure of the model and a roofline of the device; nothing is run. What a
/// proposal really brings is measured by `--run N` or `tinsmith run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith recommend model.onnx --device raspberry-pi-5 --goal latency_ms=40\n  tinsmith recommend cnn.onnx --calibration digits:train#0..256 --data digits:test --run 1"
)]
pub(super) struct Args {
    /// Model
    model: String,
    /// Where it must run: host, or a profile of `tinsmith device list`
    #[arg(long, value_name = "DEVICE", default_value = "host")]
    device: String,
    /// Run the proposal of this rank as a job, instead of listing all
    #[arg(long, value_name = "N")]
    run: Option<usize>,
    /// With --run: start the job, print its id and return
    #[arg(long, requires = "run")]
    detach: bool,
    /// Write the recipe of the first proposal, or of that of --run, to this file
    #[arg(long, value_name = "FILE")]
    save_recipe: Option<PathBuf>,
    #[command(flatten)]
    binding: Binding,
    #[command(flatten)]
    goal: GoalArgs,
    #[command(flatten)]
    data: DataArgs,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let recommendation = answer(context, &args)?;
    let chosen = match (args.run, &args.save_recipe) {
        (None, None) => None,
        (rank, _) => Some(choose(&recommendation, rank.unwrap_or(1), context.threads()?)?),
    };
    if let (Some(path), Some(recipe)) = (&args.save_recipe, &chosen) {
        save::bytes(path, recipe.to_toml()?.as_bytes())?;
        context.note(&format!("wrote {}", path.display()));
    }
    match (args.run, chosen) {
        (Some(rank), Some(recipe)) => {
            context.note(&format!("running proposal {rank}: {}", recipe.name));
            run::start(context, recipe, args.detach, None)
        }
        _ => context.show(&recommendation),
    }
}

fn answer(context: &Context, args: &Args) -> Result<Recommendation> {
    let data = args.data.spec();
    // Recipes with data that cannot be read are no proposals.
    for spec in [&data.train, &data.calibration].into_iter().flatten() {
        DataSet::open(spec)?;
    }
    match &data.eval {
        Some(spec) if TextSet::is_text(spec) => drop(TextSet::open(spec)?),
        Some(spec) => drop(DataSet::open(spec)?),
        None => {}
    }
    let device = Device::named(&args.device, &context.paths)?;
    let options = Options { bindings: args.binding.sizes()?, ..Options::default() };
    let interrupts = super::progress::Progress::new(context);
    let summary = analysis::summarize_in_child(Path::new(&args.model), &options, &interrupts)?;
    let goal = args.goal.parse(Some(&args.device).filter(|d| *d != "host").map(String::as_str))?;
    Ok(plan::recommend(&Question {
        summary: &summary,
        model: &args.model,
        device: &DeviceFacts::from(&device),
        goal: &goal,
        data: &data,
        measured_ms: None,
        tried: &history::tried(&context.paths, Path::new(&args.model), args.device == "host")?,
        seed: context.seed,
    }))
}

fn choose(recommendation: &Recommendation, rank: usize, threads: Option<usize>) -> Result<Recipe> {
    let proposal = recommendation.proposals.iter().find(|p| p.rank == rank).ok_or_else(|| {
        Error::usage("PROPOSAL", "there is no proposal of this rank")
            .field("--run")
            .found(rank)
            .limit(format!("1 to {}", recommendation.proposals.len()))
            .hint("`tinsmith recommend MODEL` lists them")
    })?;
    Ok(Recipe { threads, ..proposal.recipe.clone() })
}
