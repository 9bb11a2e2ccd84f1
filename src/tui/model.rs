//! State of the Model tab: the analysed model, what is open in its tree, what is selected.

use super::app::Failure;
use super::list::{List, Scroll};
use super::map::PruneMap;
use super::tree::{Order, Row, Tree};
use crate::analysis::diff::{ChangeKind, Diff};
use crate::analysis::{Layer, Summary, TensorInfo};
use crate::tensor::Distribution;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

/// Rows that a tree shows at first: whole levels of groups are open while they fit.
const OPEN_AT_FIRST: usize = 60;

/// An analysed model, made ready off the UI thread.
#[derive(Debug)]
pub struct Opened {
    /// Facts.
    pub summary: Arc<Summary>,
    /// Layers by path.
    pub tree: Tree,
    /// Operators with their sums, most expensive first.
    pub operators: Vec<Operator>,
    /// Weights by name.
    pub by_name: HashMap<String, usize>,
}

/// An operator's share of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Operator {
    /// Name.
    pub name: String,
    /// Nodes.
    pub nodes: usize,
    /// Scalar weights.
    pub parameters: u64,
    /// Multiply-accumulates of those that could be counted.
    pub macs: u64,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// This version knows it.
    pub known: bool,
}

impl Opened {
    /// Groups the layers and sums the operators of a summary.
    pub fn new(summary: Summary) -> Opened {
        let mut sums: BTreeMap<&str, Operator> = BTreeMap::new();
        for layer in &summary.layers {
            let entry = sums.entry(&layer.op).or_insert_with(|| Operator {
                name: layer.op.clone(),
                nodes: 0,
                parameters: 0,
                macs: 0,
                weight_bytes: 0,
                known: !summary.unknown_ops.iter().any(|(op, _)| *op == layer.op),
            });
            entry.nodes += 1;
            entry.parameters = entry.parameters.saturating_add(layer.parameters);
            entry.macs = entry.macs.saturating_add(layer.macs.unwrap_or(0));
            entry.weight_bytes = entry.weight_bytes.saturating_add(layer.weight_bytes);
        }
        let mut operators: Vec<Operator> = sums.into_values().collect();
        operators.sort_by(|a, b| {
            (a.known, b.macs, b.parameters, &a.name).cmp(&(b.known, a.macs, a.parameters, &b.name))
        });
        let tree = Tree::new(&summary);
        let by_name = summary.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Opened { summary: Arc::new(summary), tree, operators, by_name }
    }
}

/// What the first pane lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// Layers by path.
    #[default]
    Layers,
    /// Coupling groups.
    Groups,
    /// Operators.
    Operators,
    /// Weights as they are stored.
    Tensors,
    /// What changed between this model and another one.
    Diff,
    /// What pruning can take, by block and kind.
    Map,
}

/// What is known of the elements of a weight.
#[derive(Debug, Clone)]
pub enum Weighed {
    /// They are being read.
    Reading,
    /// They were read.
    Ready(Arc<Distribution>),
    /// They cannot be read, and why.
    Failed(String),
}

/// A row of the diff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffRow {
    /// A coupling group of another size.
    Group(usize),
    /// A layer that differs.
    Layer(usize),
    /// A weight that differs.
    Weight(usize),
}

/// Weights that one key asks for at most.
const ASKED: usize = 8;

/// The tab.
#[derive(Debug, Default)]
pub struct ModelTab {
    /// The file in front.
    pub path: Option<PathBuf>,
    /// The file being analysed.
    pub loading: Option<PathBuf>,
    /// Newest request.
    pub generation: u64,
    /// The file in front.
    pub opened: Option<Arc<Opened>>,
    /// Why the last file could not be opened.
    pub failure: Option<Failure>,
    /// Open groups, by node of the tree.
    pub open: Vec<bool>,
    /// What is listed.
    pub view: View,
    /// Order of the rows.
    pub order: Order,
    /// Reversed.
    pub reverse: bool,
    /// Text that names or operators must contain.
    pub filter: String,
    /// Visible rows of the layers.
    pub rows: Vec<Row>,
    /// Selection among them.
    pub layers: List,
    /// Selection among the groups.
    pub groups: List,
    /// Selection among the operators.
    pub operators: List,
    /// Visible rows of the tensors.
    pub tensor_rows: Vec<usize>,
    /// Selection among them.
    pub tensors: List,
    /// Elements of weights that were asked for.
    pub weighed: HashMap<String, Weighed>,
    /// What changed between this model and another one.
    pub diff: Option<Arc<Diff>>,
    /// The other one.
    pub diff_with: PathBuf,
    /// The model that is being compared with.
    pub comparing: Option<PathBuf>,
    /// Newest request for a diff.
    pub diff_generation: u64,
    /// Visible rows of the diff.
    pub diff_rows: Vec<DiffRow>,
    /// Selection among them.
    pub differences: List,
    /// What was in front before the diff.
    pub before_diff: View,
    /// A model to compare with as soon as the one that is being analysed is there.
    pub then_differ: Option<PathBuf>,
    /// The map of what pruning can take.
    pub map: PruneMap,
    /// Position in the details.
    pub details: Scroll,
    /// Position in the facts.
    pub facts: Scroll,
}

impl ModelTab {
    /// A model was analysed.
    pub fn set(&mut self, path: PathBuf, opened: Arc<Opened>) {
        let same = self.path.as_ref() == Some(&path);
        self.open = opened.tree.open_within(OPEN_AT_FIRST);
        self.opened = Some(opened);
        self.path = Some(path);
        self.loading = None;
        self.failure = None;
        self.weighed.clear();
        self.diff = None;
        self.comparing = None;
        self.diff_generation += 1;
        if matches!(self.view, View::Diff | View::Map) {
            self.view = View::Layers;
        }
        self.map.clear();
        if !same {
            self.tensors = List::default();
            self.filter.clear();
            self.layers = List::default();
            self.groups = List::default();
            self.operators = List::default();
        }
        self.refresh();
    }

    /// Recomputes the visible rows; the selected node stays selected where it is still visible.
    pub fn refresh(&mut self) {
        let Some(opened) = &self.opened else {
            self.rows.clear();
            return;
        };
        let kept = self.rows.get(self.layers.selected).map(|r| r.node);
        self.rows =
            opened.tree.rows(&opened.summary.layers, &self.open, self.order, self.reverse, &self.filter);
        if let Some(at) = kept.and_then(|node| self.rows.iter().position(|r| r.node == node)) {
            self.layers.selected = at;
        }
        self.layers.clamp(self.rows.len());
        let needle = self.filter.to_lowercase();
        let fits =
            |texts: &[&str]| needle.is_empty() || texts.iter().any(|t| t.to_lowercase().contains(&needle));
        let tensors = opened.summary.tensors.iter().enumerate();
        self.tensor_rows =
            tensors.filter(|(_, t)| fits(&[&t.name, &t.encoding, &t.role])).map(|(i, _)| i).collect();
        self.tensors.clamp(self.tensor_rows.len());
        self.diff_rows = self.diff.as_ref().map_or(Vec::new(), |diff| {
            let named = |name: &str, change: Option<ChangeKind>, renamed: &Option<String>| {
                change.is_some_and(|c| fits(&[name, c.word(), renamed.as_deref().unwrap_or("")]))
            };
            // What is merely renamed or stored another way stands last.
            let weight = |renamed: bool| {
                diff.weights
                    .iter()
                    .enumerate()
                    .filter(move |(_, w)| {
                        matches!(w.change, Some(ChangeKind::Renamed | ChangeKind::Recoded)) == renamed
                    })
                    .filter(|(_, w)| named(&w.name, w.change, &w.renamed))
                    .map(|(i, _)| DiffRow::Weight(i))
            };
            let layer = |renamed: bool| {
                diff.layers
                    .iter()
                    .enumerate()
                    .filter(move |(_, l)| (l.change == ChangeKind::Renamed) == renamed)
                    .filter(|(_, l)| named(&l.name, Some(l.change), &l.renamed))
                    .map(|(i, _)| DiffRow::Layer(i))
            };
            let groups = diff.groups.iter().enumerate();
            let groups =
                groups.filter(|(_, g)| fits(&[&g.name, g.kind.word()])).map(|(i, _)| DiffRow::Group(i));
            groups.chain(layer(false)).chain(weight(false)).chain(layer(true)).chain(weight(true)).collect()
        });
        self.differences.clamp(self.diff_rows.len());
        if self.view == View::Map {
            self.map.place(&self.filter);
        }
        self.details = Scroll::default();
    }

    /// Another model was compared with this one.
    pub fn set_diff(&mut self, after: PathBuf, diff: Diff) {
        self.diff = Some(Arc::new(diff));
        self.diff_with = after;
        self.before_diff = if self.view == View::Map { View::Map } else { View::Layers };
        self.view = View::Diff;
        self.filter.clear();
        self.differences = List::default();
        self.refresh();
    }

    /// Notes that a weight's elements are asked for; `false` where they are known or on their way.
    pub fn ask_for(&mut self, name: &str) -> bool {
        if matches!(self.weighed.get(name), Some(Weighed::Reading | Weighed::Ready(_))) {
            return false;
        }
        self.weighed.insert(name.to_string(), Weighed::Reading);
        true
    }

    /// A weight's elements were read, or not.
    pub fn weighed(&mut self, name: String, result: Result<Box<Distribution>, Failure>) {
        let known = match result {
            Ok(found) => Weighed::Ready(Arc::from(found)),
            Err(failure) => Weighed::Failed(failure.message),
        };
        self.weighed.insert(name, known);
    }

    /// A weight as it is stored.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let opened = self.opened.as_ref()?;
        opened.summary.tensors.get(*opened.by_name.get(name)?)
    }

    /// The selected weight, where weights are listed.
    pub fn selected_tensor(&self) -> Option<&TensorInfo> {
        let at = *self.tensor_rows.get(self.tensors.selected)?;
        self.opened.as_ref()?.summary.tensors.get(at)
    }

    /// Names of the weights under the cursor that can be read.
    pub fn selected_weights(&self) -> Vec<String> {
        match self.view {
            View::Layers => self.selected_layer().map_or(Vec::new(), |layer| {
                let names = layer.weights.iter().map(|(name, ..)| name.clone());
                names.filter(|n| self.tensor(n).is_some()).take(ASKED).collect()
            }),
            View::Tensors => self.selected_tensor().map(|t| t.name.clone()).into_iter().collect(),
            View::Groups | View::Operators | View::Diff | View::Map => Vec::new(),
        }
    }

    /// Name of what is under the cursor.
    pub fn selected_name(&self) -> Option<String> {
        match self.view {
            View::Layers => self.selected_layer().map(|l| l.name.clone()),
            View::Tensors => self.selected_tensor().map(|t| t.name.clone()),
            View::Diff => {
                let diff = self.diff.as_ref()?;
                match self.diff_rows.get(self.differences.selected)? {
                    DiffRow::Group(i) => diff.groups.get(*i).map(|g| g.name.clone()),
                    DiffRow::Layer(i) => diff.layers.get(*i).map(|l| l.name.clone()),
                    DiffRow::Weight(i) => diff.weights.get(*i).map(|w| w.name.clone()),
                }
            }
            View::Map => self.map.selected().first().and_then(|e| e.nodes.first().cloned()),
            View::Groups | View::Operators => None,
        }
    }

    /// Rows of the list in front.
    pub fn count(&self) -> usize {
        let Some(opened) = &self.opened else { return 0 };
        match self.view {
            View::Layers => self.rows.len(),
            View::Groups => opened.summary.groups.len(),
            View::Operators => opened.operators.len(),
            View::Tensors => self.tensor_rows.len(),
            View::Diff => self.diff_rows.len(),
            View::Map => self.map.places.lines.len(),
        }
    }

    /// Selection of the list in front.
    pub fn list(&mut self) -> &mut List {
        match self.view {
            View::Layers => &mut self.layers,
            View::Groups => &mut self.groups,
            View::Operators => &mut self.operators,
            View::Tensors => &mut self.tensors,
            View::Diff => &mut self.differences,
            View::Map => &mut self.map.lines,
        }
    }

    /// The selected node of the tree.
    pub fn selected_node(&self) -> Option<usize> {
        (self.view == View::Layers).then(|| self.rows.get(self.layers.selected).map(|r| r.node))?
    }

    /// The selected layer, if a layer is selected.
    pub fn selected_layer(&self) -> Option<&Layer> {
        let opened = self.opened.as_ref()?;
        let layer = opened.tree.nodes.get(self.selected_node()?)?.layer?;
        opened.summary.layers.get(layer)
    }

    /// Opens or closes the selected group; `None` toggles. Whether it changed anything.
    pub fn expand(&mut self, wanted: Option<bool>) -> bool {
        let Some(node) = self.selected_node() else { return false };
        let group = self.opened.as_ref().is_some_and(|o| o.tree.is_group(node));
        let Some(open) = self.open.get_mut(node).filter(|_| group) else { return false };
        let to = wanted.unwrap_or(!*open);
        let changed = *open != to;
        *open = to;
        if changed {
            self.refresh();
        }
        changed
    }

    /// Selects the group that the selected row belongs to.
    pub fn to_parent(&mut self) {
        let parent =
            self.selected_node().and_then(|n| self.opened.as_ref()?.tree.nodes.get(n).map(|n| n.parent));
        if let Some(at) = parent.and_then(|p| self.rows.iter().position(|r| r.node == p)) {
            self.layers.selected = at;
        }
    }

    /// Opens all groups, or closes all when all are open.
    pub fn expand_all(&mut self) {
        let Some(opened) = &self.opened else { return };
        let all = (1..opened.tree.nodes.len()).all(|n| !opened.tree.is_group(n) || self.open[n]);
        self.open.iter_mut().for_each(|open| *open = !all);
        self.refresh();
    }

    /// Goes to the next (`1`) or previous (`-1`) layer that matches the filter itself.
    pub fn step_match(&mut self, direction: isize) {
        let Some(opened) = &self.opened else { return };
        let len = self.rows.len() as isize;
        let mut at = self.layers.selected as isize;
        for _ in 0..len {
            at = (at + direction).rem_euclid(len);
            let node = self.rows[at as usize].node;
            if !opened.tree.is_group(node) {
                self.layers.selected = at as usize;
                self.details = Scroll::default();
                return;
            }
        }
    }
}
