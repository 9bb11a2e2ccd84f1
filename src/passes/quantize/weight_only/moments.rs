//! Second moments of what flows into products, as much of them at once as the cap allows.

use super::super::{Settings, calibrate};
use super::Chosen;
use crate::error::{Error, Result};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, ValueId};
use crate::passes::Ctx;
use crate::passes::look::{Look, Moments};
use crate::tensor::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Most memory for second moments at once.
pub(super) const CAP: u64 = 1 << 30;

/// How many of the products, from the first on, have moments that fit under the cap; one at least.
pub(in super::super) fn fitting(chosen: &[Chosen]) -> usize {
    let (mut bytes, mut seen) = (0u64, BTreeSet::new());
    let fits = chosen.iter().take_while(|c| {
        if seen.insert(c.data) {
            bytes += 4 * (c.inputs * c.inputs) as u64;
        }
        bytes <= CAP
    });
    fits.count().max(1)
}

/// Second moments of what flows into products.
pub(in super::super) fn gather(
    graph: &Graph,
    chosen: &[Chosen],
    settings: &Settings,
    ctx: &Ctx<'_>,
) -> Result<BTreeMap<ValueId, Moments>> {
    let look = Look { data: calibrate::data(ctx)?, samples: settings.samples, batch: 0 };
    let mut moments: BTreeMap<ValueId, Moments> = BTreeMap::new();
    for c in chosen {
        moments.entry(c.data).or_insert_with(|| Moments::of(c.inputs, true));
    }
    let wanted: BTreeSet<ValueId> = moments.keys().copied().collect();
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    look.each("quantize: look at what products read", ctx.monitor, 0, &mut |_, batch| {
        let positions = Positions::of(batch)?;
        let mut add = |v: ValueId, value: &Value| -> Result<()> {
            ctx.monitor.check()?;
            moments.get_mut(&v).map_or(Ok(()), |moments| moments.add_value(value, &positions))
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = graph.find(name).filter(|v| wanted.contains(v)) {
                add(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&|v| wanted.contains(&v)), &mut add).map(drop)
    })?;
    for (v, m) in &moments {
        if !m.sum.iter().all(|s| s.is_finite()) {
            return Err(Error::invalid("CALIBRATION-NAN", "calibration met a value that is not finite")
                .field(format!("value \"{}\"", graph.value_name(*v))));
        }
    }
    Ok(moments)
}
