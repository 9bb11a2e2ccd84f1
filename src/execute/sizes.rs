//! Bytes of what a run computes, buffer by buffer: values that share their elements (views) are counted
//! once, constants not at all.

use super::{Env, Executor, Overrides, Step, Tap};
use crate::error::Result;
use crate::graph::ValueId;
use crate::tensor::{Tensor, Value};
use std::collections::HashSet;
use std::sync::OnceLock;

/// Buffers of one run by value, and their bytes.
#[derive(Debug, Clone, Default)]
pub struct Sizes {
    /// By value: the buffer that holds its elements; none for constants.
    buffers: Vec<Option<usize>>,
    bytes: Vec<u64>,
    /// By value: it is no float, so that its elements stay where its shape does.
    host: Vec<bool>,
}

impl Sizes {
    /// Number of buffers.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn of(&self, v: ValueId) -> Option<(usize, u64)> {
        self.buffers[v.0 as usize].map(|b| (b, self.bytes[b]))
    }

    pub(super) fn host(&self, v: ValueId) -> bool {
        self.host[v.0 as usize]
    }

    pub(super) fn bytes(&self, buffer: usize) -> u64 {
        self.bytes[buffer]
    }

    fn add(&mut self, v: ValueId, bytes: u64) {
        self.buffers[v.0 as usize] = Some(self.bytes.len());
        self.bytes.push(bytes);
    }
}

impl Executor {
    /// Runs once, node by node, freeing what is no longer read, and notes how large everything is.
    pub fn sizes(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        tap: &mut Tap<'_>,
    ) -> Result<Sizes> {
        let graph = self.graph();
        let count = graph.value_count();
        let mut sizes = Sizes { buffers: vec![None; count], bytes: vec![], host: vec![false; count] };
        let mut env = self.environment(inputs)?;
        for v in graph.inputs() {
            if let Some(value) = &env[v.0 as usize] {
                sizes.host[v.0 as usize] = matches!(value, Value::Host(_));
                sizes.add(*v, value.buffer().1);
            }
        }
        let plan = self.plain.clone();
        self.run_steps(&plan, plan.all(), &mut env, overrides, &|_| None, &mut |s, env| {
            let step = &plan.steps()[s];
            for v in step.outputs.iter().flatten() {
                if let Some(value) = &env[v.0 as usize] {
                    self.note(&mut sizes, step, (*v, value), env, overrides);
                    tap(*v, value)?;
                }
            }
            for v in plan.free_after(s) {
                env[v.0 as usize] = None;
            }
            Ok(())
        })?;
        Ok(sizes)
    }

    /// Notes an output of a step, as a view where it shares the elements of an input.
    fn note(
        &self,
        sizes: &mut Sizes,
        step: &Step,
        (v, value): (ValueId, &Value),
        env: &Env,
        overrides: &Overrides,
    ) {
        sizes.host[v.0 as usize] = matches!(value, Value::Host(_));
        let (at, bytes) = value.buffer();
        let is = |of: Option<&Value>| of.is_some_and(|of| of.buffer().0 == at);
        let constant = |v: ValueId| is(overrides.get(&v)) || is(self.constants[v.0 as usize].get());
        if constant(v) || step.reads(&self.graph).any(constant) {
            return;
        }
        match step.reads(&self.graph).find(|u| is(env[u.0 as usize].as_ref())) {
            Some(source) => sizes.buffers[v.0 as usize] = sizes.buffers[source.0 as usize],
            None => sizes.add(v, bytes),
        }
    }

    /// Bytes of the buffers in `env` that are no constants.
    pub(super) fn kept_bytes(&self, env: &[Option<Value>], overrides: &Overrides) -> u64 {
        let constants = self.constants.iter().filter_map(OnceLock::get).chain(overrides.values());
        let mut seen: HashSet<usize> = constants.map(|value| value.buffer().0).collect();
        let held = env.iter().flatten().map(Value::buffer);
        held.filter(|(at, _)| seen.insert(*at)).map(|(_, bytes)| bytes).sum()
    }
}
