//! Checks a recipe before anything runs: every step names a pass that exists, with settings of the right
//! type and range, and the data that it needs.

use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::passes;

impl Recipe {
    /// Fails with a usage error that names the step and the field. Returns what the person should know
    /// though the recipe can run.
    pub fn check(&self) -> Result<Vec<String>> {
        if self.model.trim().is_empty() {
            return Err(Error::usage("RECIPE-MODEL", "the recipe names no model").field("model"));
        }
        if let Some(threads) = self.threads.filter(|t| !(1..=1024).contains(t)) {
            return Err(Error::usage("RECIPE-THREADS", "a recipe computes with at least one thread")
                .field("threads")
                .found(threads)
                .limit("1 to 1024"));
        }
        if let Some(margin) = self.goal.max_quality_drop.filter(|m| !(0.0..1.0).contains(m)) {
            return Err(Error::usage("RECIPE-GOAL", "a quality drop is a relative loss")
                .field("goal.max_quality_drop")
                .found(margin)
                .limit("0 to 1"));
        }
        for (field, value) in [
            ("goal.latency_ms", self.goal.latency_ms),
            ("goal.size_mb", self.goal.size_mb),
            ("goal.memory_mb", self.goal.memory_mb),
        ] {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(Error::usage("RECIPE-GOAL", "a gate is a positive number")
                    .field(field)
                    .found(value));
            }
        }
        for (index, step) in self.steps.iter().enumerate() {
            let place = format!("step[{index}]");
            let pass = passes::by_name(&step.pass, &step.settings).map_err(|e| {
                let field = e.field_path().map_or(place.clone(), |f| format!("{place}: {f}"));
                e.at_field(field)
            })?;
            if let (Some(what), None) = (pass.needs_calibration(), &self.data.calibration) {
                return Err(Error::usage("RECIPE-CALIBRATION", format!("{what} needs calibration data"))
                    .field(format!("{place}: data.calibration"))
                    .hint("name some, such as calibration = \"digits:train#0..256\""));
            }
            let none = self.data.train.is_none() && self.data.calibration.is_none();
            if let (Some(what), true) = (pass.needs_training(), none) {
                return Err(Error::usage("RECIPE-TRAIN", format!("{what} needs training data"))
                    .field(format!("{place}: data.train"))
                    .hint("name some, such as train = \"digits:train\""));
            }
        }
        let mut notes = Vec::new();
        let same = |a: &Option<String>, b: &Option<String>| a.is_some() && a == b;
        if same(&self.data.calibration, &self.data.eval) {
            notes.push(
                "calibration and evaluation use the same data: the measured quality is too good".into(),
            );
        }
        if same(&self.data.train, &self.data.eval) {
            notes.push("training and evaluation use the same data: the measured quality is too good".into());
        }
        let at = |pass: &str| self.steps.iter().position(|s| s.pass == pass);
        if at("quantize").zip(at("optimize")).is_some_and(|(quantize, optimize)| quantize < optimize) {
            notes.push(
                "optimize stands behind quantize: put it in front, so that batch norms and constants are part \
                 of the weights that are quantised"
                    .into(),
            );
        }
        Ok(notes)
    }
}
