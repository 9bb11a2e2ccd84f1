//! What changed between two models. Two paths enter; nodes, shapes and weights that were changed,
//! removed, added or renamed leave. Nodes are paired by [`crate::graph::diff`], weights are compared
//! element by element and piece by piece.

mod groups;
mod nodes;
mod times;
mod weights;

pub use groups::GroupChange;
pub use times::{LayerTime, Times, times};
pub use weights::Difference;

use super::open::open;
use super::summarize::{Options, of_model};
use super::summary::Summary;
use crate::error::Result;
use crate::graph::diff::{Fingerprints, How, Matching, matching};
use crate::monitor::Monitor;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use weights::Held;

/// Version of [`Diff`].
pub const SCHEMA_VERSION: u32 = 1;

/// A figure of both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiffTotal {
    /// Name: `parameters`, `macs`.
    pub name: String,
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// How a layer or weight differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is in both models and not the same.
    Changed,
    /// Its elements are the same in another encoding.
    Recoded,
    /// It is the same but for its name.
    Renamed,
    /// Only the model before has it.
    Removed,
    /// Only the model after has it.
    Added,
}

impl ChangeKind {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            ChangeKind::Changed => "changed",
            ChangeKind::Recoded => "recoded",
            ChangeKind::Renamed => "renamed",
            ChangeKind::Removed => "removed",
            ChangeKind::Added => "added",
        }
    }
}

/// A layer that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerChange {
    /// Name before, or after where it is new.
    pub name: String,
    /// How it differs.
    pub change: ChangeKind,
    /// Name after, where it is another one.
    pub renamed: Option<String>,
    /// What differs: `operator`, `attributes`, `output`, `weights`, `inputs`.
    pub what: Vec<String>,
    /// Operator, output shape and weights before.
    pub before: Option<String>,
    /// Operator, output shape and weights after.
    pub after: Option<String>,
    /// Scalar weights before.
    pub parameters_before: u64,
    /// Scalar weights after.
    pub parameters_after: u64,
}

/// A weight of either model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightChange {
    /// Name before, or after where it is new.
    pub name: String,
    /// How it differs; `None` where shape, encoding and all bits are the same.
    pub change: Option<ChangeKind>,
    /// Name after, where it is another one.
    pub renamed: Option<String>,
    /// Encoding and shape before.
    pub before: Option<String>,
    /// Encoding and shape after.
    pub after: Option<String>,
    /// Elements against each other, where both have as many and can be read.
    pub difference: Option<Difference>,
}

/// How many of something differ in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// In both models, the same in everything that is compared, the name included.
    pub same: usize,
    /// In both, and different.
    pub changed: usize,
    /// The same elements in another encoding.
    pub recoded: usize,
    /// The same under another name.
    pub renamed: usize,
    /// Only before.
    pub removed: usize,
    /// Only after.
    pub added: usize,
}

impl Counts {
    fn count(&mut self, change: Option<ChangeKind>) {
        *match change {
            None => &mut self.same,
            Some(ChangeKind::Changed) => &mut self.changed,
            Some(ChangeKind::Recoded) => &mut self.recoded,
            Some(ChangeKind::Renamed) => &mut self.renamed,
            Some(ChangeKind::Removed) => &mut self.removed,
            Some(ChangeKind::Added) => &mut self.added,
        } += 1;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.same, "the same"),
            (self.recoded, "recoded"),
            (self.renamed, "renamed"),
            (self.changed, "changed"),
            (self.removed, "removed"),
            (self.added, "added"),
        ];
        let text: Vec<String> = all.iter().filter(|(n, _)| *n > 0).map(|(n, w)| format!("{n} {w}")).collect();
        f.write_str(if text.is_empty() { "none".into() } else { text.join(", ") }.as_str())
    }
}

/// Two models against each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    /// Version of this format.
    pub schema_version: u32,
    /// Model before.
    pub before: String,
    /// Model after.
    pub after: String,
    /// Figures of both.
    pub totals: Vec<DiffTotal>,
    /// Nodes that were paired by name.
    pub by_name: usize,
    /// Nodes that were paired by structure.
    pub by_structure: usize,
    /// Layers by how they differ.
    pub layer_counts: Counts,
    /// Layers that differ, in execution order before; then those that are new.
    pub layers: Vec<LayerChange>,
    /// Coupling groups that have another number of units, in their order before.
    #[serde(default)]
    pub groups: Vec<GroupChange>,
    /// Weights by how they differ.
    pub weight_counts: Counts,
    /// All weights, in the order of the file before; then those that are new.
    pub weights: Vec<WeightChange>,
    /// Whether elements were compared; else shapes and encodings only.
    pub elements_compared: bool,
    /// Where the time goes, where both models were run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Compares two model files of any formats. `elements` asks for every weight to be read.
///
/// # Errors
/// Those of opening either; those of reading weights; `Stopped` on request of the monitor.
pub fn diff(
    before: &Path,
    after: &Path,
    options: &Options,
    elements: bool,
    monitor: &dyn Monitor,
) -> Result<Diff> {
    let (old, new) = (open(before)?, open(after)?);
    let plain = Options { weights: false, ..options.clone() };
    let was = of_model(&old, before, &plain)?;
    let is = of_model(&new, after, &plain)?;
    let (held_before, held_after) = (Held::of(&old), Held::of(&new));
    let mut warnings = Vec::new();
    let matched: Option<Matching> = match (old.graph(), new.graph()) {
        (Some(a), Some(b)) => Some(matching(
            a,
            b,
            &Fingerprints { before: &|v| weights::fingerprint(a, v), after: &|v| weights::fingerprint(b, v) },
        )),
        (None, None) => None,
        (a, _) => {
            let without = if a.is_none() { &was } else { &is };
            warnings.push(format!("{} has no graph; only weights are compared", without.name));
            None
        }
    };
    let layers = match (&matched, old.graph(), new.graph()) {
        (Some(m), Some(a), Some(b)) => nodes::changes(m, (a, &was), (b, &is)),
        _ => nodes::Found::default(),
    };
    let pairs = weights::pairs(&held_before, &held_after, matched.as_ref().zip(old.graph()).zip(new.graph()));
    let groups = groups::changes(&was, &is, &weights::names(&held_before, &held_after, &pairs));
    let weights = weights::changes(&held_before, &held_after, &pairs, elements, monitor)?;
    let mut weight_counts = Counts::default();
    weights.iter().for_each(|w| weight_counts.count(w.change));
    let by = |how: How| matched.as_ref().map_or(0, |m| m.nodes.iter().filter(|(.., h)| *h == how).count());
    Ok(Diff {
        schema_version: SCHEMA_VERSION,
        before: was.name.clone(),
        after: is.name.clone(),
        totals: totals(&was, &is, matched.is_some()),
        by_name: by(How::Name),
        by_structure: by(How::Structure),
        layer_counts: layers.counts,
        layers: layers.changes,
        groups,
        weight_counts,
        weights,
        elements_compared: elements,
        times: None,
        warnings,
    })
}

fn totals(before: &Summary, after: &Summary, graphs: bool) -> Vec<DiffTotal> {
    let figures: [(&str, bool, fn(&Summary) -> u64); 7] = [
        ("nodes", true, |s| s.layers.len() as u64),
        ("tensors", false, |s| s.tensors.len() as u64),
        ("parameters", false, |s| s.parameters),
        ("macs", true, |s| s.macs),
        ("weight_bytes", false, |s| s.weight_bytes),
        ("file_bytes", false, |s| s.file_bytes),
        ("peak_activation_bytes", true, |s| s.peak_activation_bytes),
    ];
    figures
        .into_iter()
        .filter(|(_, of_graph, _)| graphs || !of_graph)
        .map(|(name, _, of)| DiffTotal { name: name.to_string(), before: of(before), after: of(after) })
        .collect()
}

#[cfg(test)]
#[path = "diff/tests.rs"]
mod tests;
