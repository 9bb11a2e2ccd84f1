//! Products of bytes whose sums of two are held in 16 bits, as x86 processors compute them without a
//! dot-product instruction (`vpmaddubsw`): `sat16(a[2i] * b[2i] + a[2i+1] * b[2i+1])`, `a` unsigned, `b` signed,
//! summed in 32 bits. The kernels give what that loses against exact sums. Only few pairs of weights can
//! lose anything, so only these are looked at.

/// Two neighbouring weights whose products with bytes can leave 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    /// Index of the first.
    at: u32,
    weights: [i16; 2],
}

/// Rows of signed weights, by the pairs that can saturate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    k: usize,
    rows: Vec<Vec<Pair>>,
}

impl Pairs {
    /// The pairs of `b`, `[n, k]` row-major; the last weight of an odd row stands beside a zero.
    pub fn of(b: &[i8], k: usize) -> Pairs {
        let risky = |weights: &[i8]| -> Option<[i16; 2]> {
            let [v, w] = [i16::from(weights[0]), i16::from(*weights.get(1).unwrap_or(&0))];
            let (high, low) = (v.max(0) + w.max(0), v.min(0) + w.min(0));
            // 255 * 128 fits both ways, 255 * 129 does not.
            (high > 128 || low < -128).then_some([v, w])
        };
        let row = |row: &[i8]| {
            let pairs = row.chunks(2).enumerate();
            pairs.filter_map(|(i, w)| risky(w).map(|weights| Pair { at: 2 * i as u32, weights })).collect()
        };
        Pairs { k, rows: if k == 0 { vec![] } else { b.chunks_exact(k).map(row).collect() } }
    }

    /// Weights of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether no data can make a sum saturate.
    pub fn safe(&self) -> bool {
        self.rows.iter().all(Vec::is_empty)
    }

    /// Pairs that are summed for one row of data, whether they can saturate or not.
    pub fn per_row(&self) -> u64 {
        (self.rows.len() * self.k.div_ceil(2)) as u64
    }

    /// What one row of data loses: calls `lose(n, loss)` for each row of weights with a loss, `loss` being
    /// the saturated sum less the exact one. Returns how many pairs saturated.
    pub fn row(&self, a: &[u8], mut lose: impl FnMut(usize, i32)) -> u64 {
        assert_eq!(a.len(), self.k, "a row of data is as long as one of weights");
        let mut saturated = 0;
        for (n, pairs) in self.rows.iter().enumerate() {
            let (mut loss, mut any) = (0i32, false);
            for Pair { at, weights: [v, w] } in pairs {
                let at = *at as usize;
                let second = a.get(at + 1).copied().unwrap_or(0);
                let sum = i32::from(a[at]) * i32::from(*v) + i32::from(second) * i32::from(*w);
                let held = sum.clamp(i32::from(i16::MIN), i32::from(i16::MAX));
                if held != sum {
                    saturated += 1;
                    loss += held - sum;
                    any = true;
                }
            }
            if any {
                lose(n, loss);
            }
        }
        saturated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_counts_are_those_of_the_definition() {
        let mut seed = 7u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32
        };
        let mut found = 0;
        for k in [1, 2, 3, 7, 64, 129, 770] {
            let b: Vec<i8> = (0..5 * k).map(|_| next() as i8).collect();
            let a: Vec<u8> = (0..k).map(|_| 255 - (next() % 90) as u8).collect();
            let pairs = Pairs::of(&b, k);
            let mut losses = [0i32; 5];
            let count = pairs.row(&a, |n, loss| losses[n] = loss);
            let (mut wanted, mut saturated) = ([0i32; 5], 0u64);
            for n in 0..5 {
                for i in (0..k).step_by(2) {
                    let product = |i: usize| {
                        if i < k { i64::from(a[i]) * i64::from(b[n * k + i]) } else { 0 }
                    };
                    let sum = product(i) + product(i + 1);
                    let held = sum.clamp(-32768, 32767);
                    wanted[n] += (held - sum) as i32;
                    saturated += u64::from(held != sum);
                }
            }
            assert_eq!((losses, count), (wanted, saturated), "k {k}");
            assert_eq!(pairs.per_row(), 5 * k.div_ceil(2) as u64);
            found += count;
        }
        assert!(found > 100, "the data saturate: {found}");
    }

    #[test]
    fn seven_bits_of_weight_are_safe_and_one_more_is_not() {
        let extremes = |w: i8| Pairs::of(&[w, w, -w, -w, w, -w], 2);
        assert!(extremes(64).safe() && Pairs::of(&[-128, 127], 2).safe() && Pairs::of(&[], 0).safe());
        let pairs = extremes(65);
        let mut losses = vec![];
        assert_eq!(pairs.row(&[255, 255], |n, loss| losses.push((n, loss))), 2);
        assert_eq!(losses, [(0, 32767 - 2 * 255 * 65), (1, -32768 + 2 * 255 * 65)]);
        // The edge itself: 255 * 128 fits.
        assert_eq!(Pairs::of(&[127, 2], 2).row(&[255, 255], |_, _| ()), 1);
        assert_eq!(Pairs::of(&[127, 1], 2).row(&[255, 255], |_, _| ()), 0);
    }
}
