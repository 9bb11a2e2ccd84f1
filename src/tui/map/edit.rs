//! The cut that a person plans: settings of a `prune` step, with ratios and protection of single groups
//! beside them. What it means is up to the pass.

use crate::error::Result;
use crate::graph::coupling::Kind;
use crate::passes::prune::{Scope, Settings};
use crate::plan::Step;
use std::collections::{BTreeMap, BTreeSet};

/// What a key changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// The selected group.
    #[default]
    Group,
    /// All groups of its block.
    Block,
    /// All groups of its kind.
    Kind,
    /// The overall ratio.
    Model,
}

impl Level {
    /// The next one.
    pub fn next(self) -> Level {
        match self {
            Level::Group => Level::Block,
            Level::Block => Level::Kind,
            Level::Kind => Level::Model,
            Level::Model => Level::Group,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Level::Group => "this group",
            Level::Block => "this block",
            Level::Kind => "this kind",
            Level::Model => "the whole model",
        }
    }
}

/// The planned cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Settings of the step; ratios of kinds and of patterns stand here.
    pub settings: Settings,
    /// Ratios of single groups.
    pub groups: BTreeMap<usize, f64>,
    /// Groups that stay as they are.
    pub protected: BTreeSet<usize>,
}

impl Default for Edit {
    /// Nothing is cut. Without data, a cut is spread evenly: by weight norms alone the whole model cut at
    /// once loses far more.
    fn default() -> Edit {
        Edit::of(Settings { scope: Scope::Layer, ..Settings::default() })
    }
}

impl Edit {
    /// The cut that settings describe.
    pub fn of(settings: Settings) -> Edit {
        let mut edit = Edit { settings, groups: BTreeMap::new(), protected: BTreeSet::new() };
        let number = |name: &str| name.strip_prefix("group ").and_then(|n| n.parse::<usize>().ok());
        let ratios = edit.settings.ratios.iter();
        edit.groups = ratios.filter_map(|(name, ratio)| Some((number(name)?, *ratio))).collect();
        edit.protected = edit.settings.exclude.iter().filter_map(|name| number(name)).collect();
        edit.settings.ratios.retain(|name, _| number(name).is_none());
        edit.settings.exclude.retain(|name| number(name).is_none());
        // A target is found by trying; a plan states ratios.
        edit.settings.target = None;
        edit
    }

    /// Whether anything is asked to leave.
    pub fn cuts(&self) -> bool {
        let any = |r: &f64| *r > 0.0;
        self.settings.ratio > 0.0 || self.settings.ratios.values().any(any) || self.groups.values().any(any)
    }

    /// The ratio of a kind, where it has one of its own.
    pub fn of_kind(&self, kind: Kind) -> Option<f64> {
        self.settings.ratios.get(kind.word()).copied()
    }

    /// Sets or takes away the ratio of a kind.
    pub fn set_kind(&mut self, kind: Kind, ratio: Option<f64>) {
        match ratio {
            Some(ratio) => self.settings.ratios.insert(kind.word().into(), clean(ratio)),
            None => self.settings.ratios.remove(kind.word()),
        };
    }

    /// Sets or takes away the ratio of a group.
    pub fn set_group(&mut self, id: usize, ratio: Option<f64>) {
        match ratio {
            Some(ratio) => self.groups.insert(id, clean(ratio)),
            None => self.groups.remove(&id),
        };
    }

    /// Sets the overall ratio.
    pub fn set_overall(&mut self, ratio: f64) {
        self.settings.ratio = clean(ratio);
    }

    /// Protects groups, or lets them go where all of them are protected.
    pub fn toggle_protection(&mut self, ids: &[usize]) {
        if ids.iter().all(|id| self.protected.contains(id)) {
            ids.iter().for_each(|id| {
                self.protected.remove(id);
            });
        } else {
            self.protected.extend(ids);
        }
    }

    /// Settings in which single groups are meant by `address`.
    pub fn settings(&self, address: &dyn Fn(usize) -> String) -> Settings {
        let mut settings = self.settings.clone();
        // What is protected has no ratio.
        let free = self.groups.iter().filter(|(id, _)| !self.protected.contains(id));
        settings.ratios.extend(free.map(|(id, ratio)| (address(*id), *ratio)));
        settings.exclude.extend(self.protected.iter().map(|id| address(*id)));
        settings
    }

    /// Settings as a study is asked.
    pub fn asked(&self) -> Settings {
        self.settings(&|id| format!("group {id}"))
    }

    /// The step of a recipe: what differs from the defaults, and the criterion.
    pub fn step(&self, address: &dyn Fn(usize) -> String) -> Result<Step> {
        let table = |settings: &Settings| {
            toml::Table::try_from(settings).map_err(|e| {
                crate::error::Error::internal("RECIPE-WRITE", format!("settings cannot be written: {e}"))
            })
        };
        let (own, plain) = (table(&self.settings(address))?, table(&Settings::default())?);
        let mut step = Step::new("prune");
        for (key, value) in own {
            // Recipes of people say `protect`.
            let key_shown = if key == "exclude" { "protect" } else { &key };
            if key == "criterion" || plain.get(&key) != Some(&value) {
                step.settings.insert(key_shown.into(), value);
            }
        }
        Ok(step)
    }
}

/// A ratio without the noise of arithmetic, below 1.
fn clean(ratio: f64) -> f64 {
    ((ratio * 1e6).round() / 1e6).clamp(0.0, 0.999_999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::by_name;

    #[test]
    fn a_plan_becomes_a_step_that_the_pass_reads_and_comes_back() {
        let mut edit = Edit::default();
        assert!(!edit.cuts());
        edit.set_overall(0.3);
        edit.set_kind(Kind::Heads, Some(0.1 + 0.2));
        edit.set_group(3, Some(0.5));
        edit.set_group(4, Some(0.25));
        edit.toggle_protection(&[4, 7]);
        let step = edit.step(&|id| format!("group {id}")).unwrap();
        by_name("prune", &step.settings).unwrap();
        let text = toml::to_string(&step.settings).unwrap();
        for line in
            ["ratio = 0.3\n", "heads = 0.3\n", "\"group 3\" = 0.5", "scope = \"layer\"", "criterion = \"l2\""]
        {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.contains("protect = [\"group 4\", \"group 7\"]"), "{text}");
        assert!(!text.contains("round_to") && !text.contains("group 4\" ="), "{text}");
        let back = Edit::of(toml::from_str(&text).unwrap());
        assert_eq!(back.protected, edit.protected);
        assert_eq!(back.groups, [(3, 0.5)].into());
        assert_eq!(back.settings.ratios, [("heads".to_string(), 0.3)].into());
        edit.toggle_protection(&[4, 7]);
        assert!(edit.protected.is_empty());
    }
}
