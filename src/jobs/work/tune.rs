//! Chooses session settings for a model by measuring. A model enters; `MODEL.session.json` beside it leaves.
//! Each decision is kept in `resolved.toml`, from which a job that was stopped goes on.

use super::measure::{Interleaved, prepared};
use super::{Activity, Context, Work};
use crate::error::{Error, Result};
use crate::evaluate::measure::{MeasureOptions, VariantSpec, compare_variants};
use crate::evaluate::session::{SCHEMA_VERSION, SessionFile, Tuned};
use crate::evaluate::tune::{Sampled, Search, Space};
use crate::formats;
use crate::hardware::{Device, Machine};
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::runtime::{self, SessionSettings, provider};
use crate::save;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Seconds of sampling of each of the sessions of a comparison, and rounds, where nothing is stated.
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 10;

/// The work of [`crate::jobs::Request::Tune`].
pub(super) struct Tune {
    pub(super) model: Subject,
    pub(super) threads: Vec<usize>,
    pub(super) device: Option<String>,
    pub(super) sampling: Sampling,
}

/// What `resolved.toml` of such a job holds.
#[derive(Serialize, Deserialize)]
struct Settled {
    schema_version: u32,
    version: String,
    isa: String,
    model_sha256: String,
    search: Search,
}

impl Work for Tune {
    fn run(&mut self, ctx: &Context<'_>) -> Result<()> {
        let path = ctx.info.directory.join(&self.model.path);
        if formats::is_checkpoint(&path)? {
            return Err(Error::unsupported("TUNE-FORMAT", "sessions are of ONNX models")
                .file(&path)
                .hint("make one with `tinsmith import`"));
        }
        let named = self.device.as_deref().filter(|d| *d != "host");
        let device = named.map(|d| Device::named(d, ctx.paths)).transpose()?;
        let probe = runtime::ensure(ctx.paths, ctx.monitor)?;
        let _alone = ctx.begin(Activity::Measuring)?;
        let models = [self.model.clone()];
        let what = Interleaved {
            models: &models,
            threads: &[],
            data: None,
            sampling: &self.sampling,
            sessions: false,
        };
        let (variants, options) = prepared(ctx, &probe.library, &what)?;
        let spec = variants.into_iter().next().ok_or_else(|| Error::internal("TUNE", "no model"))?;
        let options = MeasureOptions {
            seconds: self.sampling.seconds.unwrap_or(SECONDS),
            rounds: self.sampling.rounds.unwrap_or(ROUNDS),
            ..options
        };
        let machine = Machine::detect();
        let space = self.space(ctx, device.as_ref(), &machine, &probe);
        let (sha256, _) = save::digest(&path)?;
        let start = SessionSettings {
            threads: space.threads.iter().copied().max().unwrap_or(1),
            ..SessionSettings::default()
        };
        let search = resumed(ctx, &sha256, machine.isa())?.unwrap_or_else(|| Search::new(start.clone()));
        let mut inputs = Vec::new();
        let mut measure = |all: &[SessionSettings]| -> Result<Vec<Sampled>> {
            let specs: Vec<VariantSpec> = all
                .iter()
                .enumerate()
                .map(|(i, s)| VariantSpec { session: Some(s.clone()), exact: i > 0, ..spec.clone() })
                .collect();
            let rows = compare_variants(&specs, &options, ctx.monitor)?;
            if let Some(first) = rows.first().filter(|_| inputs.is_empty()) {
                inputs.clone_from(&first.conditions.inputs);
            }
            let samples = |row: crate::evaluate::measurement::Measurement| match row.latency_ms {
                Some(l) => Ok(l.samples),
                None => Err(row.failures.join("; ")),
            };
            Ok(rows.into_iter().map(samples).collect())
        };
        let mut told = search.trials.len();
        let mut settle = |search: &Search| -> Result<()> {
            for trial in &search.trials[told..] {
                let figure = match (&trial.ratio, &trial.ci95) {
                    (Some(ratio), Some(ci)) => format!("{ratio:.3}x [{:.3}, {:.3}]", ci.low, ci.high),
                    _ => "not measured".into(),
                };
                let end = if trial.taken { "taken" } else { trial.reason.as_deref().unwrap_or_default() };
                ctx.monitor.log(Level::Info, &format!("{}: {}: {figure}, {end}", trial.factor, trial.tried));
            }
            told = search.trials.len();
            save_settled(ctx, &sha256, machine.isa(), search)
        };
        let found = search.run(&space, options.seed, &mut measure, &mut settle)?;
        let gain = format!(
            "{}: {:.3} ms -> {:.3} ms, {:.3}x [{:.3}, {:.3}] of {}",
            found.settings.describe(),
            found.ms.0,
            found.ms.1,
            found.ratio,
            found.ci95.low,
            found.ci95.high,
            start.describe()
        );
        ctx.monitor.log(Level::Info, &gain);
        let file = SessionFile {
            schema_version: SCHEMA_VERSION,
            model_sha256: sha256,
            settings: found.settings,
            tuned: Some(Tuned {
                job: ctx.job.id.to_string(),
                host: machine.host.clone(),
                cpu: machine.cpu.clone(),
                isa: machine.isa().into(),
                runtime: format!("onnxruntime {}", probe.version),
                device: device.map_or("host".into(), |d| d.name),
                inputs,
                start,
                start_ms: found.ms.0,
                tuned_ms: found.ms.1,
                ratio: found.ratio,
                ci95: found.ci95,
                trials: found.trials,
            }),
        };
        let kept = ctx.job.dir.join("artifacts/session.json");
        save::json(&kept, &file)?;
        ctx.monitor.artifact("session settings", &kept)?;
        let beside = file.save(&path)?;
        ctx.monitor.log(Level::Info, &format!("wrote {}", beside.display()));
        Ok(())
    }
}

impl Tune {
    /// Thread counts within both machines, and the providers that can be used here.
    fn space(
        &self,
        ctx: &Context<'_>,
        device: Option<&Device>,
        machine: &Machine,
        probe: &runtime::Probe,
    ) -> Space {
        let here = machine.usable_threads().max(1);
        let most = device.map_or(here, |d| here.min(d.cores.max(1)));
        let mut threads = match self.threads.is_empty() {
            false => self.threads.clone(),
            true => std::iter::successors(Some(1), |n| Some(n * 2))
                .take_while(|n| *n < most)
                .chain([most])
                .collect(),
        };
        threads.sort_unstable();
        threads.dedup();
        if let Some(device) = device {
            let told = format!(
                "measured here, on {} ({}), within the {} cores of {} ({}): tune on the device itself for its own figures",
                machine.cpu,
                machine.isa(),
                device.cores,
                device.name,
                device.isa
            );
            ctx.monitor.log(Level::Warning, &told);
        }
        let mut providers = vec![provider::CPU.to_string()];
        for offer in provider::offers(&probe.library, &probe.providers) {
            if offer.for_cpu && offer.usable && offer.name != provider::CPU && device.is_none() {
                providers.push(offer.name);
            } else if offer.compiled && !offer.usable {
                let why = offer.reason.unwrap_or_default();
                ctx.monitor.log(Level::Info, &format!("provider {} is not tried: {why}", offer.name));
            }
        }
        Space { threads, providers }
    }
}

const FILE: &str = "resolved.toml";

/// Where an earlier start of the job came to.
fn resumed(ctx: &Context<'_>, sha256: &str, isa: &str) -> Result<Option<Search>> {
    let path = ctx.job.dir.join(FILE);
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let settled: Settled = toml::from_str(&text).map_err(|e| damaged(&path, e.message()))?;
    if settled.model_sha256 != sha256 {
        return Err(Error::integrity("JOB-INPUTS", "the model has changed since the job began")
            .file(&path)
            .field("model_sha256")
            .hint("restore it, or submit a new job"));
    }
    // Decisions of another processor say nothing here.
    Ok(Some(settled.search).filter(|_| settled.schema_version == 1 && settled.isa == isa))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::invalid("RESOLVED", format!("file is damaged: {why}")).file(path).hint("submit the job again")
}

fn save_settled(ctx: &Context<'_>, sha256: &str, isa: &str, search: &Search) -> Result<()> {
    let path = ctx.job.dir.join(FILE);
    let settled = Settled {
        schema_version: 1,
        version: env!("CARGO_PKG_VERSION").into(),
        isa: isa.into(),
        model_sha256: sha256.into(),
        search: search.clone(),
    };
    let text = toml::to_string_pretty(&settled)
        .map_err(|e| Error::internal("RESOLVED", format!("cannot be written: {e}")).file(&path))?;
    save::bytes(&path, text.as_bytes())
}
