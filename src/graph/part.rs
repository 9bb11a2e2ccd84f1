//! A part of a graph as a graph of its own, to be run apart from the rest.

use super::{Edit, Graph, NodeIndex, Type, Uses, ValueId};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Graph {
    /// What makes `output`: nodes and constants back to the graph's inputs and to the values for which
    /// `stop` holds. These are the inputs of the part, in the types that `ty` gives. Names are kept. `None`
    /// where a node with bodies takes part, or where the type of an input is not known.
    pub(crate) fn part(
        &self,
        uses: &Uses,
        output: ValueId,
        stop: &dyn Fn(ValueId) -> bool,
        ty: &dyn Fn(ValueId) -> Option<Type>,
    ) -> Option<Graph> {
        let (mut nodes, mut inputs) = (BTreeSet::<NodeIndex>::new(), BTreeSet::new());
        let (mut constants, mut seen) = (vec![], HashSet::new());
        let mut open = vec![output];
        while let Some(v) = open.pop() {
            if !seen.insert(v) {
                continue;
            }
            if self.constant(v).is_some() {
                constants.push(v);
                continue;
            }
            match uses.producer(v).filter(|_| v == output || !stop(v)) {
                None => {
                    inputs.insert(v);
                }
                Some((i, _)) => {
                    let node = self.node(i);
                    if !node.bodies.is_empty() {
                        return None;
                    }
                    nodes.insert(i);
                    open.extend(node.inputs.iter().flatten());
                }
            }
        }
        let opsets: Vec<(&str, i64)> = self.opsets().iter().map(|(d, v)| (d.as_str(), *v)).collect();
        let mut edit = Edit::new("part", &opsets);
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for v in inputs {
            map.insert(v, edit.add_input(self.value_name(v), ty(v)?));
        }
        for v in constants {
            map.insert(v, edit.add_initializer(self.value_name(v), self.constant(v)?.clone()));
        }
        for i in nodes {
            let mut node = self.node(i).clone();
            for input in node.inputs.iter_mut().flatten() {
                *input = *map.get(input)?;
            }
            for v in node.outputs.iter_mut().flatten() {
                let new = match map.get(v) {
                    // A node may give an input of the part beside what is asked for.
                    Some(_) => edit.add_value("unread", None),
                    None => edit.add_value(self.value_name(*v), None),
                };
                map.entry(*v).or_insert(new);
                *v = new;
            }
            edit.add_node(node);
        }
        edit.add_output(*map.get(&output)?);
        edit.commit().ok()
    }
}
