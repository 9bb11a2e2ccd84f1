//! Shape inference over a whole graph, folding small constants on the way.

use super::{Graph, NodeIndex, Type, ValueId};
use crate::error::{Error, Result};
use crate::ops::{Dim, Fact, fact::FOLD_LIMIT};
use crate::tensor::Value;

/// What is known of each value of one graph.
#[derive(Debug, Clone)]
pub struct Facts(Vec<Option<Fact>>);

impl Facts {
    /// The fact of a value, where anything is known.
    pub fn get(&self, v: ValueId) -> Option<&Fact> {
        self.0[v.0 as usize].as_ref()
    }
    /// Facts of a node's inputs.
    pub fn inputs(&self, graph: &Graph, i: NodeIndex) -> Vec<Option<&Fact>> {
        graph.node(i).inputs.iter().map(|v| v.and_then(|v| self.get(v))).collect()
    }
    /// Facts of a node's outputs, where all wanted ones are known; unwanted ones are unranked.
    pub fn outputs(&self, graph: &Graph, i: NodeIndex) -> Option<Vec<Fact>> {
        let unwanted = Fact::unranked(crate::tensor::DType::F32);
        graph
            .node(i)
            .outputs
            .iter()
            .map(|v| v.map_or(Some(unwanted.clone()), |v| self.get(v).cloned()))
            .collect()
    }
}

impl Graph {
    /// Facts of all values. `bind` may replace the symbols of graph inputs by sizes.
    /// Fails where an operator says that its inputs cannot be, naming the node.
    pub fn infer(&self, bind: &dyn Fn(&str) -> Option<i64>) -> Result<Facts> {
        self.infer_with(bind, |_| None)
    }

    /// As [`Graph::infer`], with facts of captured outer values for a body.
    pub fn infer_with(
        &self,
        bind: &dyn Fn(&str) -> Option<i64>,
        outer: impl Fn(&str) -> Option<Fact>,
    ) -> Result<Facts> {
        self.infer_noting(bind, outer, &mut Err)
    }

    /// As [`Graph::infer_with`] for inspection: a node's error goes to `note`, which may pass it on or
    /// swallow it; then the node's outputs are what the file declares.
    pub fn infer_noting(
        &self,
        bind: &dyn Fn(&str) -> Option<i64>,
        outer: impl Fn(&str) -> Option<Fact>,
        note: &mut dyn FnMut(Error) -> Result<()>,
    ) -> Result<Facts> {
        let mut facts = Facts(vec![None; self.values.len()]);
        for (i, value) in self.values.iter().enumerate() {
            facts.0[i] = outer(&value.name);
        }
        for v in &self.inputs {
            facts.0[v.0 as usize] = self.declared(*v, bind);
        }
        for (v, tensor) in &self.initializers {
            facts.0[v.0 as usize] = Some(Fact::constant(tensor));
        }
        for i in 0..self.nodes.len() {
            let inferred = match self.infer_node(i, &facts) {
                Ok(inferred) => inferred,
                Err(e) => {
                    note(e)?;
                    None
                }
            };
            for (slot, v) in self.nodes[i].outputs.iter().enumerate() {
                let Some(v) = v else { continue };
                let fact = inferred.as_ref().and_then(|f| f.get(slot).cloned());
                facts.0[v.0 as usize] = match fact {
                    Some(f) if f.shape.is_some() => Some(f),
                    found => self.declared(*v, bind).or(found),
                };
            }
        }
        Ok(facts)
    }

    fn declared(&self, v: ValueId, bind: &dyn Fn(&str) -> Option<i64>) -> Option<Fact> {
        match self.value(v).ty.as_ref()? {
            Type::Tensor { dtype, shape: Some(shape) } => {
                let bound = shape.iter().map(|d| d.eval(bind).map_or_else(|| d.clone(), Dim::from)).collect();
                Some(Fact::new(*dtype, bound))
            }
            Type::Tensor { dtype, shape: None } => Some(Fact::unranked(*dtype)),
            Type::Opaque(_) => None,
        }
    }

    /// Facts of one node's outputs; `None` where the operator or an input is unknown.
    fn infer_node(&self, i: NodeIndex, facts: &Facts) -> Result<Option<Vec<Fact>>> {
        let node = &self.nodes[i];
        let Some(op) = &node.op else { return Ok(None) };
        let inputs = facts.inputs(self, i);
        if node.inputs.iter().zip(&inputs).any(|(v, f)| v.is_some() && f.is_none()) {
            return Ok(None);
        }
        let at = |e: crate::error::Error| e.node(self.label(i)).field(node.operator_name());
        let mut outputs = op.infer(&inputs).map_err(at)?;
        let small = |f: &Fact| f.value.as_ref().is_some_and(|t| t.len() <= FOLD_LIMIT);
        let foldable = op.deterministic()
            && outputs.iter().all(|f| {
                f.value.is_none()
                    && f.fixed_shape().is_some_and(|s| s.iter().product::<usize>() <= FOLD_LIMIT)
            })
            && inputs.iter().flatten().all(|f| small(f));
        if foldable {
            let loaded: Result<Vec<Option<Value>>> = inputs
                .iter()
                .map(|f| f.and_then(|f| f.value.as_ref()).map(Value::load).transpose())
                .collect();
            let loaded = loaded.map_err(at)?;
            let refs: Vec<Option<&Value>> = loaded.iter().map(Option::as_ref).collect();
            if let Ok(values) = op.eval(&refs) {
                for (fact, value) in outputs.iter_mut().zip(values) {
                    let symbolic = fact.dims.take();
                    *fact = Fact::constant(&value.to_tensor().map_err(at)?);
                    fact.dims = fact.dims.take().or(symbolic);
                }
            }
        }
        Ok(Some(outputs))
    }
}
