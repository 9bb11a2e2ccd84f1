//! Checks of a model's functions, which are carried unread: names are unique and no function calls
//! itself, directly or through others. Walks are loops.

use super::proto::{FunctionProto, NodeProto};
use crate::error::{Error, Result};
use std::collections::HashMap;

type Id<'a> = (&'a str, &'a str, &'a str);

fn called(node: &NodeProto) -> Id<'_> {
    (
        node.domain.as_deref().unwrap_or_default(),
        node.op_type.as_deref().unwrap_or_default(),
        node.overload.as_deref().unwrap_or_default(),
    )
}

/// Fails where two functions have one name or one calls itself.
pub(super) fn check(functions: &[FunctionProto]) -> Result<()> {
    let mut known: HashMap<Id<'_>, usize> = HashMap::new();
    let field = |i: usize, id: Id<'_>| format!("functions[{i}] \"{}:{}\"", id.0, id.1);
    let id = |f: &'_ FunctionProto| -> (String, String, String) {
        (
            f.domain.clone().unwrap_or_default(),
            f.name.clone().unwrap_or_default(),
            f.overload.clone().unwrap_or_default(),
        )
    };
    let ids: Vec<_> = functions.iter().map(id).collect();
    for (i, (domain, name, overload)) in ids.iter().enumerate() {
        let id = (domain.as_str(), name.as_str(), overload.as_str());
        if known.insert(id, i).is_some() {
            return Err(Error::invalid("ONNX-FUNCTION", "two functions have one name").field(field(i, id)));
        }
    }
    let edges: Vec<Vec<usize>> = functions
        .iter()
        .map(|f| {
            let mut out = Vec::new();
            let mut work: Vec<&[NodeProto]> = vec![&f.node];
            while let Some(nodes) = work.pop() {
                for node in nodes {
                    out.extend(known.get(&called(node)).copied());
                    let graphs =
                        node.attribute.iter().flat_map(|a| a.g.iter().map(|g| &**g).chain(&a.graphs));
                    work.extend(graphs.map(|g| g.node.as_slice()));
                }
            }
            out
        })
        .collect();
    // Kahn's algorithm: what is left over lies on or behind a cycle.
    let mut waiting: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (caller, callees) in edges.iter().enumerate() {
        for callee in callees {
            if let Some(list) = callers.get_mut(*callee) {
                list.push(caller);
            }
        }
    }
    let mut ready: Vec<usize> =
        waiting.iter().enumerate().filter(|(_, n)| **n == 0).map(|(i, _)| i).collect();
    let mut done = 0;
    while let Some(i) = ready.pop() {
        done += 1;
        for caller in callers.get(i).into_iter().flatten() {
            if let Some(n) = waiting.get_mut(*caller) {
                *n -= 1;
                if *n == 0 {
                    ready.push(*caller);
                }
            }
        }
    }
    if done < functions.len()
        && let Some(i) = waiting.iter().position(|n| *n > 0)
        && let Some((domain, name, overload)) = ids.get(i)
    {
        return Err(Error::invalid("ONNX-FUNCTION-CYCLE", "a function calls itself")
            .field(field(i, (domain, name, overload)))
            .node(name.as_str())
            .hint("export the model again; functions must not be recursive"));
    }
    Ok(())
}
