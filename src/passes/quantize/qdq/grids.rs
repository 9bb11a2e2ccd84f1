//! The grid of every value that has one: its range on the calibration data, widened where kernels need one
//! grid for several values.

use super::super::Settings;
use super::super::calibrate::Calibration;
use super::super::ranges::{Grid, Range};
use super::placement::Placement;
use super::roles::{MASK, Role};
use crate::error::Result;
use crate::graph::{Graph, NodeIndex, ValueId};
use crate::passes::PassReport;
use std::collections::BTreeMap;

/// Ranges by value whose grid is its own.
pub(super) type Ranges = BTreeMap<ValueId, Range>;

/// The range that the data and the settings give to each value.
pub(super) fn ranges(
    graph: &Graph,
    placement: &Placement,
    calibration: &Calibration,
    settings: &Settings,
) -> Result<Ranges> {
    placement.roots().into_iter().map(|v| Ok((v, calibration.range(graph, v, settings)?))).collect()
}

/// Nodes without weights of which a value holds a mask.
pub(super) fn unfit(placement: &Placement, ranges: &Ranges) -> Vec<NodeIndex> {
    let masks =
        |v: &ValueId| ranges.get(&placement.root(*v).0).is_some_and(|r| r.min <= -MASK || r.max >= MASK);
    let weightless = placement.roles.iter().filter(|(_, r)| !matches!(r, Role::Weighted(_)));
    weightless.map(|(i, _)| *i).filter(|i| placement.data[i].iter().any(masks)).collect()
}

/// A grid for each value, on the levels of the value that it shares them with.
pub(super) fn grids(
    graph: &Graph,
    placement: &Placement,
    mut ranges: Ranges,
    calibration: &Calibration,
    settings: &Settings,
    report: &mut PassReport,
) -> BTreeMap<ValueId, Grid> {
    share(graph, placement, &mut ranges);
    for (v, range) in &ranges {
        report.tensors.extend(calibration.report(graph, *v, *range, settings));
    }
    let of = |v: &ValueId| {
        let (root, factor) = placement.root(*v);
        let mut grid = ranges.get(&root)?.grid(settings.levels());
        // What lies above a Clip must not be on the grid, or the runtime keeps the Clip.
        if let Some((_, largest)) = placement.ramps.get(&root) {
            while grid.ends().1 > f64::from(*largest) {
                grid.scale = grid.scale.next_down();
            }
        }
        grid.scale *= factor;
        Some((*v, grid))
    };
    placement.values.iter().filter_map(of).collect()
}

/// Parts of a Concat whose range is at least half of the whole's have the whole's grid: they are copied, for
/// less than one bit of resolution.
fn share(graph: &Graph, placement: &Placement, ranges: &mut Ranges) {
    let span = |r: Range| r.max.max(0.0) - r.min.min(0.0);
    for i in placement.roles.keys().filter(|i| graph.node(**i).is("Concat")) {
        let Some(y) = graph.node(*i).outputs[0] else { continue };
        let mut members: Vec<ValueId> = placement.data[i].iter().copied().chain([y]).collect();
        members.retain(|v| placement.root(*v).1 == 1.0);
        let roots: Vec<ValueId> = members.iter().map(|v| placement.root(*v).0).collect();
        let known = roots.iter().filter_map(|v| ranges.get(v));
        let whole = known.fold(Range::EMPTY, |all, r| all.union(*r));
        for root in roots {
            if placement.ramps.get(&root).is_some_and(|(_, largest)| whole.max > *largest || whole.min < 0.0)
            {
                continue;
            }
            if let Some(range) = ranges.get_mut(&root).filter(|r| 2.0 * span(**r) >= span(whole)) {
                *range = whole;
            }
        }
    }
}
