//! Pruning in rounds: one step of a recipe stands for several, each of which cuts, repairs and trains
//! before the next one looks at what is left. Every round leaves the same part of what it found, so that
//! all of them together leave what the step states.

use super::Settings;
use super::target::{Amount, Target};
use crate::error::{Error, Result};

impl Settings {
    /// The settings of each round.
    ///
    /// # Errors
    /// `Internal` where settings cannot be written as a recipe has them.
    pub(super) fn in_rounds(&self) -> Result<Vec<toml::Table>> {
        let part = |all: f64| all.powf(1.0 / self.rounds as f64);
        let ratio = |all: f64| 1.0 - part(1.0 - all);
        let amount = |all: Amount| match all {
            Amount::Part(all) => Amount::Part(part(all)),
            number => number,
        };
        let target = |t: Target| Target {
            parameters: t.parameters.map(amount),
            macs: t.macs.map(amount),
            bytes: t.bytes.map(amount),
            latency: t.latency.map(part),
        };
        // Which part of a model a number is, a round can tell only once it has the model.
        let later = matches!(self.target.and_then(|t| t.one()), Some((_, Amount::Number(_))));
        let one = |left: usize| Settings {
            ratio: ratio(self.ratio),
            target: self.target.map(target),
            ratios: self.ratios.iter().map(|(name, all)| (name.clone(), ratio(*all))).collect(),
            min_keep: part(self.min_keep),
            rounds: if later { left } else { 1 },
            ..self.clone()
        };
        let written = |settings: &Settings| {
            toml::Table::try_from(settings)
                .map_err(|e| Error::internal("PRUNE-ROUNDS", format!("settings cannot be written: {e}")))
        };
        let defaults = written(&Settings::default())?;
        let round = |left: usize| {
            let mut table = written(&one(left))?;
            table.retain(|key, value| defaults.get(key) != Some(value));
            Ok(table)
        };
        (1..=self.rounds).rev().map(round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_together_leave_what_is_asked_for() {
        let settings = Settings {
            ratio: 0.488,
            ratios: [("heads".to_string(), 0.75)].into(),
            rounds: 3,
            ..Settings::default()
        };
        let rounds = settings.in_rounds().unwrap();
        assert_eq!(rounds.len(), 3);
        let (mut left, mut heads) = (1.0, 1.0);
        for table in &rounds {
            let one: Settings = crate::passes::settings("prune", table).unwrap();
            one.check().unwrap();
            assert_eq!(one.rounds, 1);
            left *= 1.0 - one.ratio;
            heads *= 1.0 - one.ratios["heads"];
        }
        assert!((left - 0.512).abs() < 1e-12 && (heads - 0.25).abs() < 1e-12, "{left} {heads}");
        let sized = Settings {
            target: Some(Target { bytes: Some(Amount::Number(20_000_000)), ..Target::default() }),
            rounds: 2,
            ..Settings::default()
        };
        let left: Vec<usize> = sized
            .in_rounds()
            .unwrap()
            .iter()
            .map(|table| crate::passes::settings::<Settings>("prune", table).unwrap())
            .map(|one| {
                assert_eq!(one.target.unwrap().one(), sized.target.unwrap().one());
                one.rounds
            })
            .collect();
        assert_eq!(left, [2, 1]);
    }
}
