//! Elements counted in bins of equal width on both sides of zero, of a range that need not be known
//! beforehand: where an element lies beyond the last bin, neighbours are merged two by two until it does
//! not. Widths are powers of two, so that the result does not depend on the order of the elements, and
//! two histograms can be added.

/// Bins on each side of zero, where not told otherwise.
pub const SIDE: usize = 4096;
/// Exponent of the smallest width.
const LEAST: i32 = -120;

/// Elements by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uniform {
    /// Most bins on a side.
    side: usize,
    /// The width of a bin is two to the power of it.
    exponent: i32,
    /// Elements `x` with `i <= |x| / width < i + 1`, by sign; as long as the furthest element asks for.
    below: Vec<u64>,
    above: Vec<u64>,
    zeros: u64,
}

/// Elements between two values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Least value.
    pub from: f64,
    /// Largest value.
    pub to: f64,
    /// Elements.
    pub count: u64,
}

impl Uniform {
    /// No elements, at most `side` bins on each side of zero (a power of two).
    pub fn new(side: usize) -> Uniform {
        Uniform {
            side: side.next_power_of_two().max(2),
            exponent: LEAST,
            below: vec![],
            above: vec![],
            zeros: 0,
        }
    }

    /// Counts finite elements, of which `least` is the smallest and `most` the largest.
    pub fn add(&mut self, elements: &[f32], least: f32, most: f32) {
        if elements.is_empty() {
            return;
        }
        self.reach(most.max(-least));
        let per_bin = (-self.exponent as f32).exp2();
        let mut until = |side: fn(&mut Uniform) -> &mut Vec<u64>, furthest: f32| {
            let side = side(self);
            side.resize(side.len().max((furthest * per_bin) as usize + 1), 0);
        };
        if least < 0.0 {
            until(|u| &mut u.below, -least);
        }
        if most >= 0.0 {
            until(|u| &mut u.above, most);
        }
        for x in elements {
            let side = if *x < 0.0 { &mut self.below } else { &mut self.above };
            // Within the side by the range; zeros are taken out below.
            if let Some(count) = side.get_mut((x.abs() * per_bin) as usize) {
                *count += 1;
            }
        }
        let zeros = elements.iter().filter(|x| **x == 0.0).count() as u64;
        self.zeros += zeros;
        if let Some(first) = self.above.first_mut() {
            *first -= zeros;
        }
    }

    /// Makes bins so wide that a magnitude of `largest` lies in one.
    fn reach(&mut self, largest: f32) {
        let fits = |exponent: i32| f64::from(largest) < self.side as f64 * f64::from(exponent).exp2();
        let mut exponent = self.exponent;
        while !fits(exponent) {
            exponent += 1;
        }
        self.widen(exponent);
    }

    fn widen(&mut self, exponent: i32) {
        let doublings = exponent - self.exponent;
        if doublings <= 0 {
            return;
        }
        for side in [&mut self.below, &mut self.above] {
            if !side.is_empty() {
                let merged = if doublings < 64 { 1usize << doublings.min(63) } else { usize::MAX };
                *side = side.chunks(merged).map(|bins| bins.iter().sum()).collect();
            }
        }
        self.exponent = exponent;
    }

    /// Exact zeros, which are in no bin.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// All elements.
    pub fn total(&self) -> u64 {
        self.zeros + self.below.iter().chain(&self.above).sum::<u64>()
    }

    /// Width of a bin.
    pub fn width(&self) -> f64 {
        f64::from(self.exponent).exp2()
    }

    /// Bins with elements other than zero, lowest first.
    pub fn bins(&self) -> impl DoubleEndedIterator<Item = Bin> + '_ {
        let width = self.width();
        let below = self.below.iter().enumerate().rev();
        let below =
            below.map(move |(i, n)| Bin { from: -width * (i + 1) as f64, to: -width * i as f64, count: *n });
        let above = self.above.iter().enumerate();
        let above =
            above.map(move |(i, n)| Bin { from: width * i as f64, to: width * (i + 1) as f64, count: *n });
        below.chain(above).filter(|b| b.count > 0)
    }

    /// The value below which a part `q` of the elements lies, zeros included; interpolated within a bin,
    /// and 0 where there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let wanted = q.clamp(0.0, 1.0) * self.total() as f64;
        let (mut before, mut crossed, mut last) = (0.0, self.zeros == 0, 0.0);
        for bin in self.bins() {
            if bin.from >= 0.0 && !crossed {
                crossed = true;
                before += self.zeros as f64;
                if before >= wanted {
                    return 0.0;
                }
            }
            let count = bin.count as f64;
            if before + count >= wanted {
                return bin.from + (bin.to - bin.from) * ((wanted - before) / count).clamp(0.0, 1.0);
            }
            before += count;
            last = bin.to;
        }
        if crossed { last } else { 0.0 }
    }

    /// Numbers that [`Uniform::load`] reads, behind what is in `into`.
    pub fn save(&self, into: &mut Vec<f64>) {
        let head = [self.side as f64, f64::from(self.exponent), self.zeros as f64];
        into.extend(head);
        for side in [&self.below, &self.above] {
            into.push(side.len() as f64);
            into.extend(side.iter().map(|n| *n as f64));
        }
    }

    /// What [`Uniform::save`] wrote at the front of `from`, which is moved behind it; none where that is
    /// something else.
    pub fn load(from: &mut &[f64]) -> Option<Uniform> {
        let whole = |x: f64| (x >= 0.0 && x.fract() == 0.0 && x < 9e15).then_some(x as u64);
        let mut take = |n: usize| -> Option<&[f64]> {
            let (head, rest) = from.split_at_checked(n)?;
            *from = rest;
            Some(head)
        };
        let &[side, exponent, zeros] = take(3)? else { return None };
        let mut uniform = Uniform::new(usize::try_from(whole(side)?).ok().filter(|s| *s <= 1 << 20)?);
        (uniform.exponent, uniform.zeros) = (exponent as i32, whole(zeros)?);
        if uniform.side as f64 != side || f64::from(uniform.exponent) != exponent || exponent.abs() > 200.0 {
            return None;
        }
        for counts in [&mut uniform.below, &mut uniform.above] {
            let length = whole(*take(1)?.first()?).filter(|n| *n as f64 <= side)?;
            *counts = take(length as usize)?.iter().map(|n| whole(*n)).collect::<Option<_>>()?;
        }
        Some(uniform)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(elements: &[f32], piece: usize, side: usize) -> Uniform {
        let mut uniform = Uniform::new(side);
        for piece in elements.chunks(piece) {
            let least = piece.iter().copied().fold(f32::INFINITY, f32::min);
            uniform.add(piece, least, piece.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        uniform
    }

    fn noise(n: usize) -> Vec<f32> {
        let wild = |i: usize| ((i * 2_654_435_761) % 10_007) as f32 / 10_007.0 - 0.4;
        (0..n).map(|i| wild(i) * if i % 97 == 0 { 30.0 } else { 1.0 }).collect()
    }

    #[test]
    fn elements_are_counted_where_they_lie_whatever_their_order() {
        let mut x = noise(5000);
        x.extend([0.0, -0.0, 0.0]);
        let uniform = of(&x, 64, 256);
        let mut turned = x.clone();
        turned.reverse();
        assert_eq!(uniform, of(&turned, 1000, 256));
        assert_eq!(
            (uniform.total(), uniform.zeros()),
            (5003, 3 + noise(5000).iter().filter(|x| **x == 0.0).count() as u64)
        );
        // As narrow as the range allows: half of the bins at least are in reach of the furthest element.
        let furthest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(
            f64::from(furthest) >= 128.0 * uniform.width() && f64::from(furthest) < 256.0 * uniform.width()
        );
        for bin in uniform.bins() {
            let inside = |x: &&f32| match bin.from >= 0.0 {
                true => f64::from(**x) >= bin.from && f64::from(**x) < bin.to && **x != 0.0,
                false => f64::from(**x) > bin.from && f64::from(**x) <= bin.to && **x < 0.0,
            };
            assert_eq!(bin.count, x.iter().filter(inside).count() as u64, "{bin:?}");
        }
    }

    #[test]
    fn quantiles_agree_with_sorting_to_a_bin() {
        let mut x = noise(5000);
        x.extend(vec![0.0; 1000]);
        let uniform = of(&x, 100, SIDE);
        let mut sorted = x.clone();
        sorted.sort_by(f32::total_cmp);
        for q in [0.0, 0.001, 0.1, 0.45, 0.5, 0.9, 0.999, 1.0] {
            let want = sorted[((q * 6000.0) as usize).clamp(1, 6000) - 1];
            let got = uniform.quantile(q);
            // One rank apart is within the distance of neighbours.
            assert!((got - f64::from(want)).abs() <= 2.0 * uniform.width() + 0.02, "{q}: {got} {want}");
        }
        assert_eq!(uniform.quantile(0.45), 0.0);
        assert_eq!(of(&[0.0; 4], 4, 16).quantile(0.5), 0.0);
        assert_eq!(Uniform::new(16).quantile(0.5), 0.0);
    }

    #[test]
    fn tiny_huge_and_saved_ones_hold() {
        for x in [vec![1e-44f32, 3e38, -3e38], vec![1e-40], vec![f32::MIN_POSITIVE, -1.0]] {
            let uniform = of(&x, 1, 128);
            assert_eq!(uniform.total(), x.len() as u64);
            let mut saved = vec![7.0];
            uniform.save(&mut saved);
            saved.push(5.0);
            let mut rest = &saved[1..];
            assert_eq!(Uniform::load(&mut rest), Some(uniform));
            assert_eq!(rest, [5.0]);
            for cut in 1..saved.len() - 1 {
                assert_eq!(Uniform::load(&mut &saved[1..cut]), None);
            }
        }
        assert_eq!(Uniform::load(&mut &[f64::NAN; 9][..]), None);
        assert_eq!(Uniform::load(&mut &[16.0, 0.0, 0.0, 1e9, 0.0][..]), None);
    }
}
