//! Goals and data from flags.

use crate::error::{Error, Result};
use crate::plan::{DataSpec, Goal};

/// Gates on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Goal")]
pub(super) struct GoalArgs {
    /// Gates: latency_ms, size_mb, memory_mb, max_quality_drop (relative)
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    goal: Vec<String>,
}

impl GoalArgs {
    /// The goal; `device` is the profile that its latency is for.
    pub(super) fn parse(&self, device: Option<&str>) -> Result<Goal> {
        let mut goal = Goal { device: device.map(String::from), ..Goal::default() };
        for pair in &self.goal {
            let bad = |message: &str| {
                Error::usage("GOAL", message)
                    .field("--goal")
                    .found(pair)
                    .limit("latency_ms=, size_mb=, memory_mb=, max_quality_drop= with a positive number")
            };
            let (key, value) = pair.split_once('=').ok_or_else(|| bad("a gate is KEY=VALUE"))?;
            let number: f64 = value.trim().parse().map_err(|_| bad("the value is not a number"))?;
            if !number.is_finite() || number < 0.0 {
                return Err(bad("the value is not a positive number"));
            }
            let gate = match key.trim() {
                "latency_ms" => &mut goal.latency_ms,
                "size_mb" => &mut goal.size_mb,
                "memory_mb" => &mut goal.memory_mb,
                "max_quality_drop" => &mut goal.max_quality_drop,
                _ => return Err(bad("no gate of this name")),
            };
            *gate = Some(number);
        }
        Ok(goal)
    }
}

/// Data on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct DataArgs {
    /// Evaluation data, such as digits:test or csv:FILE?label=last
    #[arg(long, value_name = "DATA")]
    pub(super) data: Option<String>,
    /// Calibration data, such as digits:train#0..256
    #[arg(long, value_name = "DATA")]
    pub(super) calibration: Option<String>,
    /// Training data
    #[arg(long, value_name = "DATA")]
    pub(super) train: Option<String>,
    /// Most tokens of a row, where calibration or training data are texts [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub(super) length: Option<usize>,
}

impl DataArgs {
    /// As a recipe states it.
    pub(super) fn spec(&self) -> DataSpec {
        DataSpec {
            train: self.train.clone(),
            calibration: self.calibration.clone(),
            eval: self.data.clone(),
            length: self.length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_and_bad_ones_named() {
        let parse = |pairs: &[&str]| {
            GoalArgs { goal: pairs.iter().map(ToString::to_string).collect() }.parse(Some("host"))
        };
        let goal = parse(&["latency_ms=40", "max_quality_drop=0.02"]).unwrap();
        assert_eq!((goal.latency_ms, goal.max_quality_drop), (Some(40.0), Some(0.02)));
        for bad in ["latency=4", "latency_ms", "size_mb=x", "size_mb=nan", "size_mb=-1"] {
            let e = parse(&[bad]).unwrap_err();
            assert_eq!(e.kind().exit_code(), 2);
            assert!(e.to_string().contains(bad), "{e}");
        }
    }
}
