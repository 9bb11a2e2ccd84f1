//! Disjoint sets of small integers.

/// Union-find; the root of a set is its smallest member, so that results do not depend on the order of
/// unions.
#[derive(Debug, Clone)]
pub(super) struct Union(Vec<u32>);

impl Union {
    /// `n` sets of one.
    pub(super) fn new(n: usize) -> Union {
        Union((0..n as u32).collect())
    }

    /// The smallest member of the set of `i`.
    pub(super) fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] as usize != i {
            self.0[i] = self.0[self.0[i] as usize];
            i = self.0[i] as usize;
        }
        i
    }

    /// Joins two sets and returns the common root.
    pub(super) fn join(&mut self, a: usize, b: usize) -> usize {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        self.0[high] = low as u32;
        low
    }
}
