//! The search for session settings: one factor at a time from a start, each value measured beside the best
//! settings so far. A value is taken only where its interval excludes no gain and a second comparison says
//! so too; the search ends when no factor gains. Knows no model: what measures is handed in.

use super::measurement::Interval;
use super::session::Trial;
use super::stats;
use crate::error::Result;
use crate::runtime::{Optimization, SessionSettings};
use serde::{Deserialize, Serialize};

/// Least part of the latency that a value must gain.
const LEAST: f64 = 0.01;
/// Rounds through all factors.
const ROUNDS: usize = 3;
/// Factors in the order in which they are tried: those that usually matter most first.
const FACTORS: &[&str] = &[
    "threads",
    "provider",
    "spinning",
    "optimization",
    "branches",
    "prepacking",
    "memory_pattern",
    "arena",
    "denormals_as_zero",
];

/// What a search may choose from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Space {
    /// Thread counts.
    pub threads: Vec<usize>,
    /// Execution providers that can be used.
    pub providers: Vec<String>,
}

/// How far a search has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Round through the factors.
    round: usize,
    /// Next factor.
    next: usize,
    /// Whether this round has gained.
    gained: bool,
    /// Where it began.
    pub start: SessionSettings,
    /// Best settings so far.
    pub best: SessionSettings,
    /// Every comparison so far.
    pub trials: Vec<Trial>,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The settings: the start, where nothing gained.
    pub settings: SessionSettings,
    /// Median latency at the start and with the settings, of the last comparison, in milliseconds.
    pub ms: (f64, f64),
    /// Their ratio.
    pub ratio: f64,
    /// 95 % interval of it.
    pub ci95: Interval,
    /// Every comparison.
    pub trials: Vec<Trial>,
}

/// Latency samples of one session, or why there are none.
pub type Sampled = std::result::Result<Vec<f64>, String>;

impl Search {
    /// From `start`.
    pub fn new(start: SessionSettings) -> Search {
        Search { round: 0, next: 0, gained: false, best: start.clone(), start, trials: Vec::new() }
    }

    /// Goes on to the end. `measure` takes samples of several sessions, interleaved, the first of which is
    /// the reference that the others' outputs are held against; `settle` keeps what was decided.
    ///
    /// # Errors
    /// Those of `measure` and `settle`; a message where the start itself cannot be measured.
    pub fn run(
        mut self,
        space: &Space,
        seed: u64,
        measure: &mut dyn FnMut(&[SessionSettings]) -> Result<Vec<Sampled>>,
        settle: &mut dyn FnMut(&Search) -> Result<()>,
    ) -> Result<Found> {
        while self.round < ROUNDS {
            while let Some(factor) = FACTORS.get(self.next) {
                let values = values(factor, &self.best, space);
                if !values.is_empty() {
                    self.vary(factor, values, seed, measure)?;
                }
                self.next += 1;
                settle(&self)?;
            }
            if !self.gained {
                break;
            }
            (self.round, self.next, self.gained) = (self.round + 1, 0, false);
        }
        let both = measure(&[self.start.clone(), self.best.clone()])?;
        let failed = |why: &str| {
            crate::error::Error::unsupported("TUNE-START", format!("the model cannot be measured: {why}"))
        };
        let of = |i: usize| match both.get(i) {
            Some(Ok(samples)) => Ok(samples),
            Some(Err(why)) => Err(failed(why)),
            None => Err(failed("there are no samples")),
        };
        let (before, after) = (of(0)?, of(1)?);
        let test = stats::ratio_of_medians(after, before, seed).ok_or_else(|| failed("too few samples"))?;
        let holds = self.best == self.start || test.ci95.high < 1.0;
        let mut trials = self.trials;
        trials.push(Trial {
            factor: "all".into(),
            tried: self.best.describe(),
            ratio: Some(test.ratio),
            ci95: Some(test.ci95.clone()),
            taken: holds,
            reason: (!holds).then(|| "what was found does not gain beside the start".to_string()),
        });
        Ok(Found {
            settings: if holds { self.best } else { self.start },
            ms: (stats::median(before), stats::median(after)),
            ratio: test.ratio,
            ci95: test.ci95,
            trials,
        })
    }

    /// Measures the values of one factor beside the best settings, and goes on from the one that gains most.
    fn vary(
        &mut self,
        factor: &str,
        values: Vec<SessionSettings>,
        seed: u64,
        measure: &mut dyn FnMut(&[SessionSettings]) -> Result<Vec<Sampled>>,
    ) -> Result<()> {
        let all: Vec<SessionSettings> = std::iter::once(self.best.clone()).chain(values).collect();
        let sampled = measure(&all)?;
        let Some(Ok(base)) = sampled.first() else {
            let why = match sampled.into_iter().next() {
                Some(Err(why)) => why,
                _ => "there are no samples".into(),
            };
            return Err(crate::error::Error::unsupported(
                "TUNE-START",
                format!("the model cannot be measured: {why}"),
            ));
        };
        let first = self.trials.len();
        let mut most: Option<(usize, f64)> = None;
        for (at, samples) in sampled.iter().enumerate().skip(1) {
            let mut trial = Trial {
                factor: factor.into(),
                tried: all[at].describe(),
                ratio: None,
                ci95: None,
                taken: false,
                reason: None,
            };
            match samples.as_ref().map(|s| stats::ratio_of_medians(s, base, seed)) {
                Err(why) => trial.reason = Some(why.clone()),
                Ok(None) => trial.reason = Some("too few samples".into()),
                Ok(Some(test)) => {
                    trial.ratio = Some(test.ratio);
                    if test.ci95.high >= 1.0 || test.ratio > 1.0 - LEAST {
                        let slower = test.ci95.low > 1.0;
                        trial.reason = Some(if slower { "slower" } else { "no gain beyond noise" }.into());
                    } else if most.is_none_or(|(_, ratio)| test.ratio < ratio) {
                        most = Some((at, test.ratio));
                    } else {
                        trial.reason = Some("another value gains more".into());
                    }
                    trial.ci95 = Some(test.ci95);
                }
            }
            self.trials.push(trial);
        }
        let Some((at, _)) = most else { return Ok(()) };
        // The best of several is partly so by chance; it must gain once more, alone.
        let again = measure(&[self.best.clone(), all[at].clone()])?;
        let gains = match again.as_slice() {
            [Ok(base), Ok(samples)] => {
                stats::ratio_of_medians(samples, base, seed).is_some_and(|t| t.ci95.high < 1.0)
            }
            _ => false,
        };
        for (index, trial) in self.trials[first..].iter_mut().enumerate().filter(|(_, t)| t.reason.is_none())
        {
            trial.taken = gains && index + 1 == at;
            if !trial.taken {
                let why = if gains { "another value gains more" } else { "the gain did not come again" };
                trial.reason = Some(why.into());
            }
        }
        if gains {
            self.best = all[at].clone();
            self.gained = true;
        }
        Ok(())
    }
}

/// The settings that differ from `best` in this factor alone and make sense.
fn values(factor: &str, best: &SessionSettings, space: &Space) -> Vec<SessionSettings> {
    let with = |change: &dyn Fn(&mut SessionSettings)| {
        let mut settings = best.clone();
        change(&mut settings);
        settings
    };
    let most = space.threads.iter().copied().max().unwrap_or(1);
    let all: Vec<SessionSettings> = match factor {
        "threads" => space.threads.iter().map(|n| with(&|s| s.threads = *n)).collect(),
        "provider" => space.providers.iter().map(|p| with(&|s| s.provider.clone_from(p))).collect(),
        // One thread has nobody to wait for.
        "spinning" if best.threads.max(best.branches) > 1 => vec![with(&|s| s.spinning = !s.spinning)],
        "spinning" => vec![],
        "optimization" => [Optimization::Basic, Optimization::Extended, Optimization::All]
            .iter()
            .map(|level| with(&|s| s.optimization = *level))
            .collect(),
        "branches" if most > 1 => [1, 2].iter().map(|n| with(&|s| s.branches = *n)).collect(),
        "prepacking" => vec![with(&|s| s.prepacking = !s.prepacking)],
        "memory_pattern" => vec![with(&|s| s.memory_pattern = !s.memory_pattern)],
        "arena" => vec![with(&|s| s.arena = !s.arena)],
        "denormals_as_zero" => vec![with(&|s| s.denormals_as_zero = !s.denormals_as_zero)],
        _ => vec![],
    };
    all.into_iter().filter(|s| s != best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latency of a made-up machine, with noise of 2 % that depends on the call.
    fn machine(cost: fn(&SessionSettings) -> f64) -> impl FnMut(&[SessionSettings]) -> Result<Vec<Sampled>> {
        let mut state = 1u64;
        move |all| {
            Ok(all
                .iter()
                .map(|s| {
                    let ms = cost(s);
                    if !ms.is_finite() {
                        return Err("failed: load".into());
                    }
                    let mut noise = || {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        0.98 + 0.04 * (state >> 40) as f64 / (1u64 << 24) as f64
                    };
                    Ok((0..60).map(|_| ms * noise()).collect())
                })
                .collect())
        }
    }

    fn search(cost: fn(&SessionSettings) -> f64) -> (Found, usize) {
        let space = Space { threads: vec![1, 2, 4], providers: vec!["cpu".into(), "xnnpack".into()] };
        let start = SessionSettings { threads: 4, ..SessionSettings::default() };
        let mut settled = 0;
        let found = Search::new(start)
            .run(&space, 7, &mut machine(cost), &mut |_| {
                settled += 1;
                Ok(())
            })
            .unwrap();
        (found, settled)
    }

    #[test]
    fn the_best_settings_are_found_and_failures_are_told() {
        // Two threads are best, spinning costs, the other provider cannot be loaded, no arena is worse.
        let (found, _) = search(|s| match s.provider.as_str() {
            "xnnpack" => f64::NAN,
            _ => {
                let threads = [4.0, 2.5, 3.5][[1, 2, 4].iter().position(|n| *n == s.threads).unwrap()];
                threads * if s.spinning { 1.2 } else { 1.0 } * if s.arena { 1.0 } else { 1.1 }
            }
        });
        assert_eq!(found.settings.describe(), "2 threads, no spinning");
        assert!((found.ratio - 2.5 / (3.5 * 1.2)).abs() < 0.02, "{}", found.ratio);
        assert!(found.ci95.high < 1.0 && found.ms.1 < found.ms.0);
        let of = |factor: &'static str| found.trials.iter().filter(move |t| t.factor == factor);
        assert!(of("provider").all(|t| !t.taken && t.reason.as_deref() == Some("failed: load")));
        assert!(of("arena").all(|t| !t.taken && t.ratio.unwrap() > 1.05));
        assert_eq!(of("threads").filter(|t| t.taken).count(), 1);
    }

    #[test]
    fn noise_alone_changes_nothing_and_one_round_is_enough() {
        let (found, settled) = search(|_| 1.0);
        assert_eq!(found.settings.describe(), "4 threads");
        assert!(found.trials.iter().all(|t| t.factor == "all" || !t.taken), "{:#?}", found.trials);
        assert_eq!(settled, FACTORS.len());
    }

    #[test]
    fn a_start_that_fails_is_an_error() {
        let start = Search::new(SessionSettings::default());
        let e = start.run(&Space::default(), 1, &mut machine(|_| f64::NAN), &mut |_| Ok(())).unwrap_err();
        assert_eq!(e.kind().exit_code(), 4);
    }
}
