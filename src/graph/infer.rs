//! Shape inference over a whole graph, folding small constants on the way and looking into the bodies
//! of If.

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
        self.infer_in(bind, &outer, note)
    }

    fn infer_in(
        &self,
        bind: &dyn Fn(&str) -> Option<i64>,
        outer: &dyn Fn(&str) -> Option<Fact>,
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
            let inferred = match self.infer_node(i, &facts, bind, outer) {
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
    fn infer_node(
        &self,
        i: NodeIndex,
        facts: &Facts,
        bind: &dyn Fn(&str) -> Option<i64>,
        outer: &dyn Fn(&str) -> Option<Fact>,
    ) -> Result<Option<Vec<Fact>>> {
        let node = &self.nodes[i];
        if node.is("If") {
            return self.infer_if(i, facts, bind, outer);
        }
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

    /// Facts of an If: those of the branch that is taken, where the condition is known, else what both
    /// branches agree on. A branch whose inputs cannot be is not the one that is taken.
    fn infer_if(
        &self,
        i: NodeIndex,
        facts: &Facts,
        bind: &dyn Fn(&str) -> Option<i64>,
        outer: &dyn Fn(&str) -> Option<Fact>,
    ) -> Result<Option<Vec<Fact>>> {
        let node = &self.nodes[i];
        let lookup = |name: &str| match self.find(name).and_then(|v| facts.get(v)) {
            Some(fact) => Some(fact.clone()),
            None => outer(name),
        };
        let branch = |wanted: &str| -> Result<Option<Vec<Option<Fact>>>> {
            let Some((_, body)) = node.bodies.iter().find(|(name, _)| name == wanted) else {
                return Ok(None);
            };
            let inner = body.infer_in(bind, &lookup, &mut Err)?;
            Ok(Some(body.outputs.iter().map(|v| inner.get(*v).cloned()).collect()))
        };
        let condition = facts.inputs(self, i).first().copied().flatten().and_then(Fact::ints);
        let merged = match condition.as_deref() {
            Some([0]) => branch("else_branch")?,
            Some([_]) => branch("then_branch")?,
            _ => match (branch("then_branch"), branch("else_branch")) {
                (Ok(Some(a)), Ok(Some(b))) if a.len() == b.len() => {
                    Some(a.into_iter().zip(b).map(|(a, b)| Some(common(&a?, &b?))).collect())
                }
                (Ok(only), Err(_)) | (Err(_), Ok(only)) => only,
                (Err(e), Err(_)) => return Err(e),
                _ => None,
            },
        };
        Ok(merged.and_then(|facts| facts.into_iter().collect()))
    }
}

/// What holds of a value that is one or the other.
fn common(a: &Fact, b: &Fact) -> Fact {
    let shape = match (&a.shape, &b.shape) {
        (Some(x), Some(y)) if x.len() == y.len() => {
            Some(x.iter().zip(y).map(|(x, y)| if x == y { x.clone() } else { Dim::unknown() }).collect())
        }
        _ => None,
    };
    Fact { shape, ..Fact::unranked(a.dtype) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Edit, Node};
    use crate::ops::{Attr, Attributes};
    use crate::tensor::{DType, Tensor};

    /// An If over a captured `x`: squeezed in one branch, as it is in the other.
    fn branching(axis: i64, condition: Option<bool>) -> Graph {
        let body = |op: &str, attributes: Attributes| {
            let mut body = Edit::new(op, &[("", 11)]);
            let x = body.add_value("x", None);
            let y = body.add_op(op, &[x], attributes, "y");
            body.add_output(y);
            body.commit_body().unwrap()
        };
        let mut edit = Edit::new("g", &[("", 11)]);
        let shape = vec![Dim::symbol("n"), Dim::from(1i64), Dim::from(3i64)];
        edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
        let c = match condition {
            Some(c) => edit.add_initializer("c", Tensor::from_bools(vec![], vec![c]).unwrap()),
            None => edit.add_input("c", Type::Tensor { dtype: DType::Bool, shape: Some(vec![]) }),
        };
        let z = edit.add_value("z", None);
        let mut node = Node::new("If", vec![Some(c)], vec![Some(z)]).named("branch");
        let squeeze = Attributes::new().with("axes", Attr::Ints(vec![axis]));
        node.bodies = vec![
            ("then_branch".into(), body("Squeeze", squeeze)),
            ("else_branch".into(), body("Identity", Attributes::new())),
        ];
        node.attributes =
            Attributes::new().with("then_branch", Attr::Body(0)).with("else_branch", Attr::Body(1));
        edit.add_node(node);
        edit.add_output(z);
        edit.commit().unwrap()
    }

    fn result(graph: &Graph) -> String {
        let facts = graph.infer(&|_| None).unwrap();
        format!("{:?}", facts.get(graph.find("z").unwrap()).unwrap().shape)
    }

    #[test]
    fn a_branch_gives_its_shape_where_it_is_known_to_be_taken() {
        assert_eq!(result(&branching(1, Some(true))), "Some([n, 3])");
        assert_eq!(result(&branching(1, Some(false))), "Some([n, 1, 3])");
        // Both are possible, and differ in rank.
        assert_eq!(result(&branching(1, None)), "None");
        // The squeezed axis is not of size 1, so that this branch is never taken.
        assert_eq!(result(&branching(2, None)), "Some([n, 1, 3])");
    }

    #[test]
    fn an_if_is_known_by_its_bodies() {
        let graph = branching(1, None);
        assert!(graph.unknown_operators().is_empty() && graph.first_unknown().is_none());
        let mut edit = graph.edit();
        let body = &mut edit.node_mut(0).bodies[1].1;
        body.nodes[0].op_type = "Frobnicate".into();
        body.nodes[0].op = None;
        let graph = edit.commit().unwrap();
        assert_eq!(graph.unknown_operators(), [("Frobnicate".to_string(), 1)]);
        assert_eq!(graph.first_unknown(), Some(0));
    }

    #[test]
    fn an_impossible_branch_that_must_be_taken_is_an_error_that_names_the_node() {
        let e = branching(2, Some(true)).infer(&|_| None).unwrap_err();
        assert_eq!((e.code(), e.node_name()), ("OP-SQUEEZE", Some("y")));
    }
}
