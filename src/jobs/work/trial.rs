//! Work that computes nothing of use, for tests of the worker, in debug builds only: named steps of
//! known length, deterministic artefacts, and faults on demand.

use super::{Activity, Context, Work};
use crate::error::{Error, Result};
use crate::monitor::{Level, Monitor};
use crate::save;
use serde::Deserialize;
use std::fs;
use std::time::{Duration, Instant};

/// Environment variable that holds the description as JSON.
pub const VARIABLE: &str = "TINSMITH_TRIAL";

/// Description of the work.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trial {
    /// Steps.
    pub steps: u64,
    /// Length of a step.
    pub millis: u64,
    /// Bytes that each step saves.
    pub bytes: usize,
    /// Fault: `panic`, `abort`, `overflow`, `error`, `deaf` (never looks whether to stop), `eat`
    /// (allocates until something ends it).
    pub fault: Option<String>,
    /// Step that the fault happens in, on the first try only where a file `tried` can be made.
    pub fault_step: u64,
    /// Measures at the end.
    pub measure: bool,
}

impl Default for Trial {
    fn default() -> Trial {
        Trial { steps: 3, millis: 50, bytes: 1000, fault: None, fault_step: 0, measure: false }
    }
}

/// The description in the environment, if there is one.
pub fn from_environment() -> Result<Option<Trial>> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
    serde_json::from_str(&text.to_string_lossy())
        .map(Some)
        .map_err(|e| Error::usage("TRIAL", e.to_string()).field(VARIABLE))
}

impl Work for Trial {
    fn run(&mut self, ctx: &Context<'_>) -> Result<()> {
        let mut content = match ctx.done {
            Some(checkpoint) => {
                let path = checkpoint.dir.join("data");
                fs::read(&path).map_err(|e| Error::io("read", &path, e))?
            }
            None => b"begin".to_vec(),
        };
        for step in ctx.first_step()..self.steps {
            let _computing = ctx.begin(Activity::Computing)?;
            ctx.monitor.set_step(step);
            ctx.monitor.phase(&format!("trial {step}"), Some(self.millis));
            self.fail(ctx, step)?;
            self.wait(ctx, step)?;
            let seed = save::sha256(&content);
            content = seed.bytes().cycle().take(self.bytes).collect();
            let saved = ctx.checkpoints.save(step, |dir| save::bytes(&dir.join("data"), &content))?;
            ctx.monitor.checkpoint(step, &saved.dir)?;
        }
        if self.measure {
            let _measuring = ctx.begin(Activity::Measuring)?;
            ctx.monitor.phase("measure", None);
            self.wait(ctx, self.steps)?;
        }
        let path = ctx.job.dir.join("artifacts/trial.bin");
        save::bytes(&path, &content)?;
        ctx.monitor.artifact("trial", &path)?;
        Ok(())
    }
}

impl Trial {
    fn wait(&self, ctx: &Context<'_>, step: u64) -> Result<()> {
        let begin = Instant::now();
        loop {
            let passed = begin.elapsed().as_millis() as u64;
            if passed >= self.millis {
                return Ok(());
            }
            ctx.monitor.progress(passed);
            ctx.monitor.metric("loss", step * self.millis + passed, 1.0 / (1.0 + passed as f64));
            if self.fault.as_deref() != Some("deaf") {
                ctx.monitor.check()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[allow(clippy::panic)]
    fn fail(&self, ctx: &Context<'_>, step: u64) -> Result<()> {
        let Some(fault) = self.fault.as_deref().filter(|_| step == self.fault_step) else { return Ok(()) };
        if fs::File::create_new(ctx.job.dir.join("control/tried")).is_err() {
            return Ok(());
        }
        ctx.monitor.log(Level::Warning, &format!("fault: {fault}"));
        match fault {
            "panic" => panic!("trial panic"),
            "abort" => std::process::abort(),
            "overflow" => {
                dig(0);
                Ok(())
            }
            "error" => Err(Error::limit_exceeded("TRIAL", "refused by the trial").limit(1)),
            "eat" => {
                let mut food = Vec::new();
                loop {
                    food.push(vec![1u8; 1 << 20]);
                    std::hint::black_box(&food);
                }
            }
            _ => Ok(()),
        }
    }
}

fn dig(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    if depth == u64::MAX { 0 } else { dig(depth + 1).wrapping_add(room[7]) }
}
