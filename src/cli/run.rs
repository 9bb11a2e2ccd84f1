//! `run`: a recipe as a job.

use super::context::Context;
use super::follow::{self, Followed};
use super::goal::{DataArgs, GoalArgs};
use crate::compare::{self, Comparison, DEFAULT_MARGIN};
use crate::error::{Error, Result};
use crate::export;
use crate::formats;
use crate::jobs::Request;
use crate::plan::{Goal, Recipe};
use crate::report::{Present, Report};
use crate::save;
use crate::units::Bytes;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Run a recipe as a job that outlives this terminal
///
/// Progress goes to stderr. The first Ctrl-C stops the job at a checkpoint (exit code 75), the second
/// ends it. A closed terminal does not stop it: `tinsmith jobs attach` follows it again.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith run recipe.toml\n  tinsmith run model.onnx --recipe recipe.toml --detach"
)]
pub(super) struct Args {
    /// A recipe, or a model where --recipe names the recipe
    #[arg(value_name = "RECIPE|MODEL")]
    subject: String,
    /// Recipe to run on MODEL
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Where the variant is written [default: kept in the job's directory]
    #[arg(long, short, value_name = "FILE", conflicts_with = "detach")]
    output: Option<PathBuf>,
    /// Start the job, print its id and return
    #[arg(long)]
    detach: bool,
    /// Measure the original and the variant at the end
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    goal: GoalArgs,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let mut recipe = match &args.recipe {
        Some(path) => {
            let mut recipe = Recipe::load(path)?;
            recipe.model = args.subject.clone();
            recipe
        }
        None => load_beside(Path::new(&args.subject))?,
    };
    recipe.measure |= args.measure;
    if let Some(seed) = context.seed_given {
        recipe.seed = seed;
    }
    recipe.threads = context.threads()?.or(recipe.threads);
    let given = args.data.spec();
    recipe.data.train = given.train.or(recipe.data.train);
    recipe.data.calibration = given.calibration.or(recipe.data.calibration);
    recipe.data.eval = given.eval.or(recipe.data.eval);
    recipe.data.length = given.length.or(recipe.data.length);
    let goal = args.goal.parse(None)?;
    if goal != Goal::default() {
        recipe.goal = Goal { device: recipe.goal.device.clone(), ..goal };
    }
    start(context, recipe, args.detach, args.output.as_deref())
}

/// A recipe whose relative model path refers to the recipe's own directory where the model lies there.
fn load_beside(path: &Path) -> Result<Recipe> {
    if path.extension().is_some_and(|e| e == "onnx") {
        return Err(Error::usage("RECIPE", "this is a model, not a recipe")
            .file(path)
            .hint("name the recipe with --recipe, or use `tinsmith recommend`"));
    }
    let mut recipe = Recipe::load(path)?;
    if let Some(directory) = path.parent()
        && !Path::new(&recipe.model).exists()
        && directory.join(&recipe.model).exists()
    {
        recipe.model = directory.join(&recipe.model).to_string_lossy().into_owned();
    }
    Ok(recipe)
}

/// Checks the recipe, submits it and, unless detached, follows it; the artefact is copied to `output`.
pub(super) fn start(
    context: &Context,
    recipe: Recipe,
    detach: bool,
    output: Option<&Path>,
) -> anyhow::Result<()> {
    std::fs::metadata(&recipe.model).map_err(|e| Error::io("read the model", &recipe.model, e))?;
    for note in recipe.check()? {
        context.note(&format!("warning: {note}"));
    }
    let goal = recipe.goal.clone();
    let request = Request::Run { recipe };
    if detach {
        let job = follow::submit(context, &request)?;
        return context.print(&detached(&job)?);
    }
    let followed = follow::submit_and_follow(context, &request)?;
    let outcome = Outcome::new(&followed, &goal)?;
    if let (Some(output), Some(artifact)) = (output, outcome.artifacts.last()) {
        copy(Path::new(&artifact.path), output)?;
        context.note(&format!("wrote {}", output.display()));
    }
    context.print(&outcome.report()?)?;
    outcome.gate()
}

/// What is said of a job that goes on by itself.
pub(super) fn detached(job: &crate::jobs::JobHandle) -> Result<Report> {
    #[derive(Serialize)]
    struct Started<'a> {
        schema_version: u32,
        job: &'a str,
        directory: String,
    }
    let directory = job.dir.display().to_string();
    let document = Started { schema_version: 1, job: job.id.as_str(), directory: directory.clone() };
    Ok(Report::new(&document)?
        .facts([("job", job.id.to_string()), ("directory", directory)])
        .line(format!("follow it with `tinsmith jobs attach {}`", job.id)))
}

/// Puts an artefact where it was asked for, all or nothing. External data goes along.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let opened = formats::load(from)?;
    export::companions(from, opened.facts.format, to, &mut Vec::new())?;
    if !opened.facts.external.is_empty() {
        return formats::save(&opened.graph, to).map(drop);
    }
    save::atomic(to, |file| {
        let mut source = std::fs::File::open(from).map_err(|e| Error::io("read the result", from, e))?;
        std::io::copy(&mut source, file).map_err(|e| Error::io("write the result", to, e))?;
        Ok(())
    })
}

/// What a run left.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    schema_version: u32,
    job: String,
    directory: String,
    artifacts: Vec<Produced>,
    comparison: Option<Comparison>,
}

#[derive(Debug, Serialize)]
struct Produced {
    name: String,
    path: String,
    sha256: String,
    bytes: u64,
}

impl Outcome {
    pub(super) fn new(followed: &Followed, goal: &Goal) -> Result<Outcome> {
        let Followed { job, state } = followed;
        let produced = |a: &crate::jobs::state::Artifact| {
            Ok(Produced {
                name: a.name.clone(),
                path: job.artifact(&a.path)?.display().to_string(),
                sha256: a.sha256.clone(),
                bytes: a.bytes,
            })
        };
        let comparison = match state.measurements.as_slice() {
            all @ [_, _, ..] => {
                Some(compare::compare(all, None, goal, goal.max_quality_drop.unwrap_or(DEFAULT_MARGIN))?)
            }
            _ => None,
        };
        Ok(Outcome {
            schema_version: 1,
            job: job.id.to_string(),
            directory: job.dir.display().to_string(),
            artifacts: state.artifacts.iter().map(produced).collect::<Result<_>>()?,
            comparison,
        })
    }

    /// Fails where the last variant misses a gate.
    pub(super) fn gate(&self) -> anyhow::Result<()> {
        match self.comparison.as_ref().and_then(|c| c.rows.last()) {
            Some(row) if !row.missed.is_empty() => Err(gate(row).into()),
            _ => Ok(()),
        }
    }
}

/// The error of a variant that misses gates.
pub(super) fn gate(row: &crate::compare::Row) -> Error {
    Error::gate("GOAL", format!("{} misses {}", row.measurement.variant, row.missed.join(", ")))
}

impl Present for Outcome {
    fn report(&self) -> Result<Report> {
        let mut report = Report::new(self)?;
        if let Some(comparison) = &self.comparison {
            report = report.append(comparison.report()?);
        }
        for a in &self.artifacts {
            report = report.facts([
                ("variant", a.name.clone()),
                ("file", a.path.clone()),
                ("size", Bytes(a.bytes).to_string()),
                ("sha256", a.sha256.clone()),
            ]);
        }
        Ok(report.facts([("job", self.job.clone()), ("directory", self.directory.clone())]))
    }
}
