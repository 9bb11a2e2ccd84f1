//! How an operator ties the axes of its inputs and outputs, for structured pruning (DepGraph,
//! arXiv 2301.12900). A link pairs index sets of two axes unit by unit; the closure over a graph gives
//! the groups of indices that must leave together.

/// A slot of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// n-th input.
    In(usize),
    /// n-th output.
    Out(usize),
}

/// The indices that belong to unit `u` on one axis:
/// `start + u * stride + r * period + b` for `r < repeat`, `b < block`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// First index.
    pub start: usize,
    /// Distance between units.
    pub stride: usize,
    /// Adjacent indices of one unit.
    pub block: usize,
    /// Occurrences of a unit.
    pub repeat: usize,
    /// Distance between occurrences.
    pub period: usize,
}

impl Pattern {
    /// One index a unit, from `start`.
    pub fn from(start: usize) -> Pattern {
        Pattern { start, stride: 1, block: 1, repeat: 1, period: 0 }
    }
    /// `block` adjacent indices a unit, from 0.
    pub fn blocks(block: usize) -> Pattern {
        Pattern { start: 0, stride: block, block, repeat: 1, period: 0 }
    }
    /// One index a unit, recurring `repeat` times at distance `period`.
    pub fn recurring(period: usize, repeat: usize) -> Pattern {
        Pattern { start: 0, stride: 1, block: 1, repeat, period }
    }
    /// Calls `see` with every unit below `count` and each index of it, unit by unit.
    pub fn each(self, count: usize, mut see: impl FnMut(usize, usize)) {
        for unit in 0..count {
            for r in 0..self.repeat {
                let from = self.start + unit * self.stride + r * self.period;
                for index in from..from + self.block {
                    see(unit, index);
                }
            }
        }
    }
}

/// Ties `count` units of one axis to those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// One axis.
    pub a: (Port, usize),
    /// Its index sets.
    pub a_units: Pattern,
    /// The other axis.
    pub b: (Port, usize),
    /// Its index sets.
    pub b_units: Pattern,
    /// Units.
    pub count: usize,
    /// Index `i` of one axis is index `i` of the other, whatever the size.
    pub same: bool,
}

/// What an operator says of all its axes. An axis that appears in no link and not in `free` is pinned:
/// its size may not change.
#[derive(Debug, Clone, Default)]
pub struct Coupling {
    /// Ties.
    pub links: Vec<Link>,
    /// Axes that may shrink without effect on others (a sum runs over them).
    pub free: Vec<(Port, usize)>,
    /// Axes over which a statistic is taken: cutting them changes the others' values, so that sliced
    /// and masked models differ (LayerNormalization).
    pub statistics: Vec<(Port, usize)>,
    /// Inputs that hold a state and the outputs that hold it afterwards (past and present keys). Where
    /// both are the graph's interface they change together, as no caller but a loop sees them.
    pub state: Vec<(usize, usize)>,
    /// Why the remaining axes are pinned, for people.
    pub reason: Option<String>,
}

impl Coupling {
    /// Index `i` of `a` is index `i` of `b`.
    pub fn same(&mut self, a: (Port, usize), b: (Port, usize)) {
        self.links.push(Link {
            a,
            a_units: Pattern::from(0),
            b,
            b_units: Pattern::from(0),
            count: 0,
            same: true,
        });
    }
    /// Units of `a` are units of `b`.
    pub fn link(
        &mut self,
        a: (Port, usize),
        a_units: Pattern,
        b: (Port, usize),
        b_units: Pattern,
        count: usize,
    ) {
        self.links.push(Link { a, a_units, b, b_units, count, same: false });
    }
}

/// How the sizes around a node change: indices kept per axis, where an axis is cut.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// For each cut (port, axis): the size before and the kept indices, ascending.
    pub kept: Vec<((Port, usize), usize, Vec<usize>)>,
}

impl Cut {
    /// Kept indices of an axis, if it is cut.
    pub fn of(&self, port: Port, axis: usize) -> Option<(usize, &[usize])> {
        self.kept
            .iter()
            .find(|(k, _, _)| *k == (port, axis))
            .map(|(_, before, kept)| (*before, kept.as_slice()))
    }
}
