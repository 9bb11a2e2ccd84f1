//! Where the groups of a map stand: blocks are rows, kinds are columns. Entries enter, lines leave.

use super::super::tree::segments;
use super::{Entry, Order};
use crate::graph::coupling::Kind;
use std::collections::HashMap;

/// A line of the map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Block that it belongs to.
    pub block: usize,
    /// Whether it is the first of its block.
    pub first: bool,
    /// By column: groups in that cell. One in a column of a kind; all that can never shrink in the last.
    pub cells: Vec<Vec<usize>>,
}

impl Line {
    /// The filled cell nearest to a column.
    pub fn nearest(&self, column: usize) -> usize {
        let filled = (0..self.cells.len()).filter(|c| !self.cells[*c].is_empty());
        filled.min_by_key(|c| (c.abs_diff(column), *c)).unwrap_or(0)
    }
}

/// All lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Places {
    /// Kinds of which groups can shrink; the columns.
    pub kinds: Vec<Kind>,
    /// Whether a last column holds groups that can never shrink.
    pub pinned: bool,
    /// Names of the blocks.
    pub blocks: Vec<String>,
    /// Lines.
    pub lines: Vec<Line>,
}

/// The block of a group: the path of the node that first reads its weights, down to the first part with a
/// number of its own (`encoder/layer.3`); the node's own name where it has no path.
pub(super) fn block(id: usize, first_reader: Option<&String>) -> String {
    let Some(name) = first_reader else { return format!("group {id}") };
    let parts = segments(name);
    let numbered = |part: &String| {
        part.rsplit_once('.').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let path = &parts[..parts.len() - 1];
    match path.iter().position(numbered) {
        Some(at) => path[..=at].join("/"),
        None if path.is_empty() => parts.concat(),
        None => path.join("/"),
    }
}

impl Places {
    /// Places entries in blocks, in the wanted order; only blocks and nodes that contain `filter`. Each has
    /// a line to itself where `listed`.
    pub fn of(entries: &[Entry], order: Order, reverse: bool, filter: &str, listed: bool) -> Places {
        let mut kinds: Vec<Kind> = entries.iter().filter(|e| e.prunable()).map(|e| e.kind).collect();
        kinds.sort();
        kinds.dedup();
        let needle = filter.to_lowercase();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let mut found: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let name = entry.block.as_str();
            let contains = |n: &str| n.to_lowercase().contains(&needle);
            if !needle.is_empty() && !contains(name) && !entry.nodes.iter().any(|n| contains(n)) {
                continue;
            }
            let at = *by_name.entry(name).or_insert_with(|| {
                found.push((name, Vec::new()));
                found.len() - 1
            });
            found[at].1.push(i);
        }
        sort(&mut found, entries, order, reverse);
        let common = common(found.iter().map(|(name, _)| *name));
        let pinned = entries.iter().any(|e| !e.prunable());
        let columns = kinds.len() + usize::from(pinned);
        let mut lines: Vec<Line> = Vec::new();
        if listed {
            let of = |(block, (_, groups)): (usize, &(&str, Vec<usize>))| {
                let line = |i: &usize| Line { block, first: true, cells: vec![vec![*i]] };
                groups.iter().map(line).collect::<Vec<Line>>()
            };
            lines = found.iter().enumerate().flat_map(of).collect();
        }
        for (block, (_, groups)) in found.iter().enumerate().filter(|_| !listed) {
            let mut here: Vec<Line> = Vec::new();
            let mut used = vec![0; columns];
            for i in groups {
                let entry = &entries[*i];
                let own = kinds.iter().position(|k| *k == entry.kind && entry.prunable());
                let column = own.unwrap_or(kinds.len());
                let row = if own.is_some() { used[column] } else { 0 };
                used[column] += 1;
                while here.len() <= row {
                    here.push(Line { block, first: here.is_empty(), cells: vec![Vec::new(); columns] });
                }
                here[row].cells[column].push(*i);
            }
            lines.extend(here);
        }
        let blocks = found.into_iter().map(|(name, _)| name[common..].to_string()).collect();
        Places { kinds, pinned, blocks, lines }
    }

    /// The line on which a group stands.
    pub fn line_of(&self, entries: &[Entry], id: usize) -> Option<usize> {
        let has = |l: &Line| l.cells.iter().flatten().any(|i| entries[*i].id == id);
        self.lines.iter().position(has)
    }
}

fn sort(found: &mut [(&str, Vec<usize>)], entries: &[Entry], order: Order, reverse: bool) {
    let least = |groups: &[usize], of: &dyn Fn(&Entry) -> Option<f64>| {
        groups.iter().filter_map(|i| of(&entries[*i])).fold(f64::INFINITY, f64::min)
    };
    let key = |groups: &[usize]| -> f64 {
        match order {
            Order::Model => 0.0,
            Order::Importance => least(groups, &|e| e.share),
            Order::Sensitivity => least(groups, &|e| e.sensitivity().map(|c| c.at(0.25))),
            Order::Parameters => least(groups, &|e| e.prunable().then_some(-(e.parameters_per_unit as f64))),
        }
    };
    if order != Order::Model {
        found.sort_by(|(_, a), (_, b)| key(a).total_cmp(&key(b)));
    }
    if reverse {
        found.reverse();
    }
}

/// Bytes of the path that all names begin with, up to a `/`, where something is left of each.
fn common<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let mut shared: Option<&str> = None;
    for name in names {
        let parent = name.rfind('/').map_or("", |at| &name[..=at]);
        shared = Some(match shared {
            None => parent,
            Some(before) => {
                let same = before.bytes().zip(parent.bytes()).take_while(|(a, b)| a == b).count();
                let same = before.floor_char_boundary(same);
                before[..same].rfind('/').map_or("", |at| &before[..=at])
            }
        });
    }
    shared.map_or(0, str::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: usize, kind: Kind, node: &str, never: bool) -> Entry {
        Entry {
            id,
            kind,
            units: 8,
            nodes: vec![node.into()],
            block: block(id, Some(&node.to_string())),
            readers: None,
            parameters_per_unit: 10 + id as u64,
            macs_per_unit: None,
            never: never.then(|| "graph output".into()),
            strip: vec![],
            share: Some(1.0 / (1 + id) as f64),
            ran: None,
        }
    }

    #[test]
    fn blocks_are_rows_and_kinds_are_columns() {
        let entries = [
            entry(0, Kind::Width, "/bert/embeddings/word/Gather", true),
            entry(1, Kind::Heads, "/bert/encoder/layer.0/attention/q/MatMul", false),
            entry(2, Kind::Neurons, "/bert/encoder/layer.0/mlp/up/MatMul", false),
            entry(3, Kind::Neurons, "/bert/encoder/layer.0/mlp/gate/MatMul", false),
            entry(4, Kind::Heads, "/bert/encoder/layer.10/attention/q/MatMul", false),
            entry(5, Kind::Other, "/bert/encoder/layer.10/attention/k/MatMul", true),
        ];
        let places = Places::of(&entries, Order::Model, false, "", false);
        assert_eq!(places.kinds, [Kind::Heads, Kind::Neurons]);
        assert_eq!(places.blocks, ["embeddings/word", "encoder/layer.0", "encoder/layer.10"]);
        let cells: Vec<_> = places.lines.iter().map(|l| (l.first, l.cells.clone())).collect();
        assert_eq!(
            cells,
            [
                (true, vec![vec![], vec![], vec![0]]),
                (true, vec![vec![1], vec![2], vec![]]),
                (false, vec![vec![], vec![3], vec![]]),
                (true, vec![vec![4], vec![], vec![5]]),
            ]
        );
        assert_eq!(places.lines[2].nearest(0), 1);
        assert_eq!(places.line_of(&entries, 3), Some(2));
        let some = Places::of(&entries, Order::Model, false, "mlp", false);
        assert_eq!(some.lines.len(), 2);
        let by_importance = Places::of(&entries, Order::Importance, false, "", false);
        assert_eq!(by_importance.blocks[0], "encoder/layer.10");
    }

    #[test]
    fn names_without_a_path_are_blocks_of_their_own() {
        let name = |node: &str| block(0, Some(&node.to_string()));
        assert_eq!(name("conv2d_12"), "conv2d_12");
        assert_eq!(name("layer1.0.conv1.weight"), "layer1.0");
        assert_eq!(name("/head/fc/Gemm"), "head/fc");
        assert_eq!(name("/features/features.3/conv/conv.0/Conv"), "features/features.3");
        assert_eq!(block(7, None), "group 7");
    }
}
