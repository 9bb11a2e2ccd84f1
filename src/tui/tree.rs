//! The layers of a summary as a tree by name path, with sums per group and rows for a list that shows
//! only what is open. Knows nothing of drawing.

use crate::analysis::{Layer, Summary};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Deepest nesting; the rest of a longer path stays one name.
const DEPTH: usize = 24;
/// Part of a layer's name that its place in the tree is made from, in bytes.
const NAME: usize = 4096;

/// A group of layers, or one layer.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Last part of the path; several parts where groups with a single member were joined.
    pub name: String,
    /// Members, in the order of the file.
    pub children: Vec<usize>,
    /// The group that it belongs to.
    pub parent: usize,
    /// Index of the layer, if it is one.
    pub layer: Option<usize>,
    /// Layers in it.
    pub layers: usize,
    /// Scalar weights in it.
    pub parameters: u64,
    /// Multiply-accumulates in it, of the layers that could be counted.
    pub macs: u64,
    /// Layers whose MACs are unknown.
    pub macs_unknown: usize,
    /// Bytes of weights in it.
    pub weight_bytes: u64,
}

/// What rows are ordered by, within their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Name, numbers by value.
    #[default]
    Name,
    /// Order of execution.
    Execution,
    /// Scalar weights.
    Parameters,
    /// Multiply-accumulates.
    Macs,
    /// Bytes of weights.
    Bytes,
}

impl Order {
    /// The next one.
    pub fn next(self) -> Order {
        match self {
            Order::Name => Order::Execution,
            Order::Execution => Order::Parameters,
            Order::Parameters => Order::Macs,
            Order::Macs => Order::Bytes,
            Order::Bytes => Order::Name,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Order::Name => "name",
            Order::Execution => "execution order",
            Order::Parameters => "parameters",
            Order::Macs => "MACs",
            Order::Bytes => "bytes",
        }
    }
}

/// A visible row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Index of the node.
    pub node: usize,
    /// Nesting, from 0.
    pub depth: usize,
}

/// The tree. Node 0 is the root.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// All nodes; parents come before their members.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// Groups the layers of a summary.
    pub fn new(summary: &Summary) -> Tree {
        let mut nodes = vec![Node::default()];
        let mut groups: HashMap<(usize, String), usize> = HashMap::new();
        for (index, layer) in summary.layers.iter().enumerate() {
            let mut parts = segments(&layer.name);
            let leaf = parts.pop().unwrap_or_default();
            let mut at = 0;
            for part in parts {
                at = match groups.get(&(at, part.clone())) {
                    Some(found) => *found,
                    None => {
                        let new = push(&mut nodes, at, part.clone());
                        groups.insert((at, part), new);
                        new
                    }
                };
            }
            let new = push(&mut nodes, at, leaf);
            fill(&mut nodes[new], index, layer);
        }
        let mut tree = Tree { nodes };
        tree.sum();
        tree.join_single_members();
        tree
    }

    fn sum(&mut self) {
        for at in (1..self.nodes.len()).rev() {
            let (layers, parameters, macs, unknown, bytes) = {
                let n = &self.nodes[at];
                (n.layers, n.parameters, n.macs, n.macs_unknown, n.weight_bytes)
            };
            let parent = self.nodes[at].parent;
            let up = &mut self.nodes[parent];
            up.layers += layers;
            up.parameters = up.parameters.saturating_add(parameters);
            up.macs = up.macs.saturating_add(macs);
            up.macs_unknown += unknown;
            up.weight_bytes = up.weight_bytes.saturating_add(bytes);
        }
    }

    /// A group with one member becomes that member, under both names.
    fn join_single_members(&mut self) {
        for at in (1..self.nodes.len()).rev() {
            if self.nodes[at].layer.is_some() || self.nodes[at].children.len() != 1 {
                continue;
            }
            let only = self.nodes[at].children[0];
            let member = self.nodes[only].clone();
            let name = format!("{}/{}", self.nodes[at].name, member.name);
            for child in &member.children {
                self.nodes[*child].parent = at;
            }
            let parent = self.nodes[at].parent;
            self.nodes[at] = Node { name, parent, ..member };
        }
    }

    /// Rows that are visible: members of open groups; with a filter, the layers whose name or operator
    /// contains it, and their groups.
    pub fn rows(
        &self,
        layers: &[Layer],
        open: &[bool],
        order: Order,
        reverse: bool,
        filter: &str,
    ) -> Vec<Row> {
        let wanted = (!filter.is_empty()).then(|| self.matching(layers, &filter.to_lowercase()));
        let mut rows = Vec::new();
        let mut stack = vec![(0usize, 0usize)];
        while let Some((at, depth)) = stack.pop() {
            if at != 0 {
                rows.push(Row { node: at, depth: depth - 1 });
            }
            let shown = at == 0 || wanted.is_some() || open.get(at).copied().unwrap_or(false);
            if !shown || self.nodes.is_empty() {
                continue;
            }
            let mut members: Vec<usize> = self.nodes[at]
                .children
                .iter()
                .copied()
                .filter(|c| wanted.as_ref().is_none_or(|w| w[*c]))
                .collect();
            members.sort_by(|a, b| {
                let order = self.compare(*a, *b, order);
                if reverse { order.reverse() } else { order }
            });
            stack.extend(members.into_iter().rev().map(|c| (c, depth + 1)));
        }
        rows
    }

    /// Which groups to open so that whole levels are shown while there are at most `rows` rows.
    pub fn open_within(&self, rows: usize) -> Vec<bool> {
        let mut open = vec![false; self.nodes.len()];
        let mut level: Vec<usize> = self.nodes.first().map(|n| n.children.clone()).unwrap_or_default();
        let mut shown = level.len();
        loop {
            let groups: Vec<usize> = level.into_iter().filter(|n| self.is_group(*n)).collect();
            let next: Vec<usize> = groups.iter().flat_map(|n| self.nodes[*n].children.clone()).collect();
            shown += next.len();
            if next.is_empty() || shown > rows {
                return open;
            }
            groups.iter().for_each(|n| open[*n] = true);
            level = next;
        }
    }

    fn compare(&self, a: usize, b: usize, order: Order) -> Ordering {
        let (x, y) = (&self.nodes[a], &self.nodes[b]);
        match order {
            Order::Name => natural(&x.name, &y.name).then(a.cmp(&b)),
            Order::Execution => a.cmp(&b),
            Order::Parameters => y.parameters.cmp(&x.parameters).then(a.cmp(&b)),
            Order::Macs => y.macs.cmp(&x.macs).then(a.cmp(&b)),
            Order::Bytes => y.weight_bytes.cmp(&x.weight_bytes).then(a.cmp(&b)),
        }
    }

    fn matching(&self, layers: &[Layer], needle: &str) -> Vec<bool> {
        let mut wanted = vec![false; self.nodes.len()];
        for at in (1..self.nodes.len()).rev() {
            let node = &self.nodes[at];
            if let Some(layer) = node.layer.and_then(|l| layers.get(l)) {
                wanted[at] =
                    layer.name.to_lowercase().contains(needle) || layer.op.to_lowercase().contains(needle);
            }
            if wanted[at] {
                wanted[node.parent] = true;
            }
        }
        wanted
    }

    /// Whether a node has members to show.
    pub fn is_group(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|n| n.layer.is_none() && node != 0)
    }
}

fn push(nodes: &mut Vec<Node>, parent: usize, name: String) -> usize {
    let at = nodes.len();
    nodes.push(Node { name, parent, ..Node::default() });
    nodes[parent].children.push(at);
    at
}

fn fill(node: &mut Node, index: usize, layer: &Layer) {
    node.layer = Some(index);
    node.layers = 1;
    node.parameters = layer.parameters;
    node.macs = layer.macs.unwrap_or(0);
    node.macs_unknown = usize::from(layer.macs.is_none());
    node.weight_bytes = layer.weight_bytes;
}

/// Parts of a layer name: split at `/` and `.`, a number stays with the word before it.
pub(super) fn segments(name: &str) -> Vec<String> {
    let name = &name[..name.floor_char_boundary(NAME)];
    let mut parts: Vec<String> = Vec::new();
    for part in name.split(['/', '.']).filter(|p| !p.is_empty()) {
        let number = part.bytes().all(|b| b.is_ascii_digit());
        match parts.last_mut() {
            Some(last) if number || parts_full(last, name) => {
                last.push('.');
                last.push_str(part);
            }
            _ => parts.push(part.to_string()),
        }
        if parts.len() > DEPTH {
            let rest = parts.pop().unwrap_or_default();
            if let Some(last) = parts.last_mut() {
                last.push('/');
                last.push_str(&rest);
            }
        }
    }
    if parts.is_empty() {
        parts.push(name.to_string());
    }
    parts
}

/// Version-like names (`1.0.2`) are not paths.
fn parts_full(last: &str, name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !last.is_empty()
}

/// Compares text with runs of digits by value: `layer.2` before `layer.10`.
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.chars().peekable(), b.chars().peekable());
    loop {
        let (Some(x), Some(y)) = (a.peek().copied(), b.peek().copied()) else {
            return a.peek().is_some().cmp(&b.peek().is_some());
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                let mut digits = String::new();
                while let Some(d) = chars.next_if(char::is_ascii_digit) {
                    if !(digits.is_empty() && d == '0') {
                        digits.push(d);
                    }
                }
                digits
            };
            let (m, n) = (number(&mut a), number(&mut b));
            let order = m.len().cmp(&n.len()).then_with(|| m.cmp(&n));
            if order != Ordering::Equal {
                return order;
            }
        } else {
            let order = x.to_ascii_lowercase().cmp(&y.to_ascii_lowercase());
            if order != Ordering::Equal {
                return order;
            }
            a.next();
            b.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value_and_stay_with_their_word() {
        let mut names = vec!["layer.10", "layer.2", "Layer.1", "head"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["head", "Layer.1", "layer.2", "layer.10"]);
        assert_eq!(
            segments("/encoder/layer.0/attention/MatMul"),
            ["encoder", "layer.0", "attention", "MatMul"]
        );
        assert_eq!(segments("///"), ["///"]);
        assert_eq!(segments("1.0.2"), ["1.0.2"]);
        assert!(segments(&"a/".repeat(5000)).len() <= DEPTH);
    }
}
