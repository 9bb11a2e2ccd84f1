//! Measures model files against each other. Models enter; announced measurements leave, one for each
//! model and thread count. Alone on the machine as far as this house's jobs go.

use super::{Activity, Context, Work};
use crate::analysis::{self, Options, Summary};
use crate::error::{Error, Kind, Result};
use crate::evaluate::measure::{Facts, MeasureOptions, VariantSpec, compare_variants};
use crate::evaluate::measurement::Measurement;
use crate::evaluate::session;
use crate::export;
use crate::formats;
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::runtime::{self, Library, Probe, SessionSettings, provider};
use std::collections::BTreeMap;
use std::path::Path;

/// The work of [`crate::jobs::Request::Measure`].
pub(super) struct Measure {
    pub(super) models: Vec<Subject>,
    pub(super) threads: Vec<usize>,
    pub(super) data: Option<String>,
    pub(super) sampling: Sampling,
}

impl Work for Measure {
    fn run(&mut self, ctx: &Context<'_>) -> Result<()> {
        if self.models.is_empty() {
            return Err(Error::usage("MEASURE", "there is no model to measure"));
        }
        let probe = runtime::ensure(ctx.paths, ctx.monitor)?;
        let Measure { models, threads, data, sampling } = self;
        let mut ready = models.clone();
        for model in &mut ready {
            let path = ctx.info.directory.join(&model.path);
            // What is wrong with a file is told of where it is looked at.
            if formats::is_checkpoint(&path).unwrap_or(false) {
                let file = export::ready(&path, ctx.paths, ctx.monitor)?;
                model.path = file.to_string_lossy().into_owned();
            }
        }
        let (models, data) = (ready.as_slice(), data.as_deref());
        let what = Interleaved { models, threads, data, sampling, sessions: true };
        interleaved(ctx, &probe, &what).map(drop)
    }
}

/// What to measure.
pub(super) struct Interleaved<'a> {
    /// Models; the first is the reference.
    pub(super) models: &'a [Subject],
    /// Thread counts, one after the other; one thread where none is stated.
    pub(super) threads: &'a [usize],
    /// Labelled data.
    pub(super) data: Option<&'a str>,
    /// How long, and on what input.
    pub(super) sampling: &'a Sampling,
    /// Whether models are run with the settings in their session files; variants that are judged against
    /// what they were made from are not.
    pub(super) sessions: bool,
}

/// Measures, announces and returns the figures.
///
/// # Errors
/// `Invalid` where the reference is no model; those of [`compare_variants`]. What goes wrong with
/// another model stands in its measurement.
pub(super) fn interleaved(
    ctx: &Context<'_>,
    probe: &Probe,
    what: &Interleaved<'_>,
) -> Result<Vec<Measurement>> {
    let _alone = ctx.begin(Activity::Measuring)?;
    let (mut variants, mut options) = prepared(ctx, &probe.library, what)?;
    let provider = provided(ctx, probe, what.sampling.provider.as_deref())?;
    options.provider = provider.unwrap_or(provider::CPU).into();
    if what.sessions {
        for variant in &mut variants {
            variant.session = session_of(ctx, &variant.name, &variant.path, provider)?;
        }
    }
    let (one, mut rows) = ([1], Vec::new());
    for &threads in if what.threads.is_empty() { &one } else { what.threads } {
        if what.threads.len() > 1 {
            ctx.monitor.log(Level::Info, &format!("measuring with {threads} threads"));
        }
        let options = MeasureOptions { threads, ..options.clone() };
        if !what.threads.is_empty() {
            variants.iter_mut().filter_map(|v| v.session.as_mut()).for_each(|s| s.threads = threads);
        }
        for row in compare_variants(&variants, &options, ctx.monitor)? {
            for failure in &row.failures {
                ctx.monitor.log(Level::Warning, &format!("{}: {failure}", row.variant));
            }
            ctx.monitor.measurement(row.clone())?;
            rows.push(row);
        }
    }
    Ok(rows)
}

/// The provider that was asked for, found out with what the library can give.
fn provided(ctx: &Context<'_>, probe: &Probe, wanted: Option<&str>) -> Result<Option<&'static str>> {
    let Some(wanted) = wanted else { return Ok(None) };
    let choice = provider::choose(&probe.library, &probe.providers, wanted)?;
    choice.notes.iter().for_each(|note| ctx.monitor.log(Level::Warning, note));
    ctx.monitor.log(Level::Info, &format!("execution provider {}", choice.name));
    Ok(Some(choice.name))
}

/// The settings in the session file of a model; the provider is what was asked for, where it was.
fn session_of(
    ctx: &Context<'_>,
    name: &str,
    path: &Path,
    provider: Option<&str>,
) -> Result<Option<SessionSettings>> {
    if !path.is_file() {
        return Ok(None);
    }
    let (file, told) = session::applicable(path)?;
    let level = if file.is_some() { Level::Info } else { Level::Warning };
    told.iter().for_each(|told| ctx.monitor.log(level, &format!("{name}: {told}")));
    Ok(file.map(|file| match provider {
        Some(provider) => SessionSettings { provider: provider.into(), ..file.settings },
        None => file.settings,
    }))
}

/// What is known of the models before they run, and the options of measuring them on one thread.
pub(super) fn prepared(
    ctx: &Context<'_>,
    library: &Library,
    what: &Interleaved<'_>,
) -> Result<(Vec<VariantSpec>, MeasureOptions)> {
    ctx.monitor.phase("look at the models", None);
    let mut variants = Vec::with_capacity(what.models.len());
    let mut summaries = Vec::new();
    for (index, model) in what.models.iter().enumerate() {
        ctx.monitor.check()?;
        let path = ctx.info.directory.join(&model.path);
        let options = Options { bindings: what.sampling.bind.clone(), ..Options::default() };
        // Files in the library's own format are measured, but nothing more is known of them.
        let own = path.extension().is_some_and(|e| e == "ort");
        let mut spec = VariantSpec { exact: model.exact, ..VariantSpec::new(&model.name, &path) };
        match analysis::summarize_file(&path, &options) {
            _ if own => {
                ctx.monitor.log(Level::Info, &format!("{}: sizes in .ort files are not read", model.name))
            }
            Ok(summary) => {
                spec.facts = facts(&summary, &path);
                summaries.push(summary);
            }
            Err(e) if index == 0 && e.kind() == Kind::Invalid => return Err(e),
            // A file that is missing is told of by the measurement itself.
            Err(_) if !path.exists() => {}
            Err(e) => ctx.monitor.log(Level::Warning, &format!("{}: {e}", model.name)),
        }
        variants.push(spec);
    }
    let defaults = MeasureOptions::new(library.clone());
    let (shapes, stated) = analysis::input_shapes(&summaries);
    for line in stated {
        ctx.monitor.log(Level::Info, &line);
    }
    let options = MeasureOptions {
        seconds: what.sampling.seconds.unwrap_or(defaults.seconds),
        rounds: what.sampling.rounds.unwrap_or(defaults.rounds),
        shapes,
        dimensions: sizes(analysis::dimensions(&summaries), what.sampling),
        eval: what.data.map(String::from),
        ..defaults
    };
    Ok((variants, options))
}

/// Sizes of open dimensions: those that were stated hold for models that cannot be looked into, too.
fn sizes(mut known: BTreeMap<String, usize>, sampling: &Sampling) -> BTreeMap<String, usize> {
    for (name, size) in &sampling.bind {
        if let Ok(size) = usize::try_from(*size) {
            known.entry(name.clone()).or_insert(size);
        }
    }
    known
}

fn facts(summary: &Summary, path: &Path) -> Facts {
    let file = path.metadata().map_or(0, |m| m.len());
    Facts {
        parameters: summary.parameters,
        macs: summary.macs,
        weight_bytes: summary.weight_bytes,
        peak_activation_bytes: summary.peak_activation_bytes,
        external_bytes: summary.file_bytes.saturating_sub(file),
    }
}
