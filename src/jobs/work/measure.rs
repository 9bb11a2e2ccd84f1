//! Measures model files against each other. Models enter; announced measurements leave, one for each
//! model and thread count. Alone on the machine as far as this house's jobs go.

use super::{Activity, Context, Work};
use crate::analysis::{self, Options, Summary};
use crate::error::{Error, Kind, Result};
use crate::evaluate::measure::{Facts, MeasureOptions, VariantSpec, compare_variants};
use crate::export;
use crate::formats;
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::runtime::{self, Library};
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
        interleaved(ctx, &probe.library, &Interleaved { models, threads, data, sampling })
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
}

/// Measures and announces.
///
/// # Errors
/// `Invalid` where the reference is no model; those of [`compare_variants`]. What goes wrong with
/// another model stands in its measurement.
pub(super) fn interleaved(ctx: &Context<'_>, library: &Library, what: &Interleaved<'_>) -> Result<()> {
    let _alone = ctx.begin(Activity::Measuring)?;
    let (variants, options) = prepared(ctx, library, what)?;
    let one = [1];
    for &threads in if what.threads.is_empty() { &one } else { what.threads } {
        if what.threads.len() > 1 {
            ctx.monitor.log(Level::Info, &format!("measuring with {threads} threads"));
        }
        let options = MeasureOptions { threads, ..options.clone() };
        for row in compare_variants(&variants, &options, ctx.monitor)? {
            for failure in &row.failures {
                ctx.monitor.log(Level::Warning, &format!("{}: {failure}", row.variant));
            }
            ctx.monitor.measurement(row)?;
        }
    }
    Ok(())
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
        let mut spec = VariantSpec { exact: model.exact, ..VariantSpec::new(&model.name, &path) };
        match analysis::summarize_file(&path, &options) {
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
        dimensions: analysis::dimensions(&summaries),
        eval: what.data.map(String::from),
        ..defaults
    };
    Ok((variants, options))
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
