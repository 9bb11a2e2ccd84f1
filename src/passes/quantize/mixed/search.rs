//! Paths of assignments from the smallest to the most exact. What each layer may be, with bytes and loss,
//! enters; assignments of rising size leave. Bytes and losses of layers add up here.

use serde::{Deserialize, Serialize};

/// How layers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Search {
    /// The least loss for each size (multiple-choice knapsack).
    #[default]
    Knapsack,
    /// Step by step the layer that loses least for a byte more.
    Greedy,
}

/// One thing that a layer may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    /// Bytes beyond those of the layer's smallest choice.
    pub(super) bytes: f64,
    /// Loss, not negative.
    pub(super) loss: f64,
}

/// Sizes that the knapsack tells apart.
const SIZES: usize = 1024;

/// Assignments (the index of a choice for each layer) of rising bytes and falling loss. `choices[layer]` are in
/// rising order of bytes, the first with none.
pub(super) fn path(choices: &[Vec<Choice>], search: Search) -> Vec<Vec<usize>> {
    match search {
        Search::Greedy => greedy(choices),
        Search::Knapsack => knapsack(choices),
    }
}

fn greedy(choices: &[Vec<Choice>]) -> Vec<Vec<usize>> {
    let mut at = vec![0; choices.len()];
    let mut path = vec![at.clone()];
    loop {
        // A step may pass over choices that bring less for a byte than a later one.
        let mut best: Option<(f64, usize, usize)> = None;
        for (layer, of) in choices.iter().enumerate() {
            let now = of[at[layer]];
            for (k, next) in of.iter().enumerate().skip(at[layer] + 1) {
                let gain = (now.loss - next.loss) / (next.bytes - now.bytes).max(1.0);
                if best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, layer, k));
                }
            }
        }
        let Some((_, layer, k)) = best else { return path };
        at[layer] = k;
        path.push(at.clone());
    }
}

fn knapsack(choices: &[Vec<Choice>]) -> Vec<Vec<usize>> {
    let most: f64 = choices.iter().filter_map(|of| of.last()).map(|c| c.bytes).sum();
    let unit = (most / SIZES as f64).max(1.0);
    // Rounded up, so that an assignment is never larger than it is taken for.
    let units = |c: &Choice| (c.bytes / unit).ceil() as usize;
    let room = choices.iter().filter_map(|of| of.last()).map(units).sum::<usize>();
    let mut least = vec![0.0f64; room + 1];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(choices.len());
    for of in choices {
        let mut next = vec![f64::INFINITY; room + 1];
        let mut which = vec![0u8; room + 1];
        for size in 0..=room {
            for (k, c) in of.iter().enumerate() {
                let Some(rest) = size.checked_sub(units(c)) else { continue };
                let loss = least[rest] + c.loss;
                if loss < next[size] {
                    (next[size], which[size]) = (loss, k as u8);
                }
            }
        }
        least = next;
        taken.push(which);
    }
    let mut path: Vec<Vec<usize>> = Vec::new();
    for size in 0..=room {
        if size > 0 && least[size] >= least[size - 1] {
            continue;
        }
        let (mut at, mut left) = (vec![0; choices.len()], size);
        for (layer, which) in taken.iter().enumerate().rev() {
            at[layer] = usize::from(which[left]);
            left -= units(&choices[layer][at[layer]]);
        }
        path.push(at);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(all: &[(f64, f64)]) -> Vec<Choice> {
        all.iter().map(|(bytes, loss)| Choice { bytes: *bytes, loss: *loss }).collect()
    }

    fn sums(choices: &[Vec<Choice>], at: &[usize]) -> (f64, f64) {
        let of = choices.iter().zip(at).map(|(of, k)| of[*k]);
        of.fold((0.0, 0.0), |(b, l), c| (b + c.bytes, l + c.loss))
    }

    /// Six layers of three choices.
    fn six() -> Vec<Vec<Choice>> {
        let sizes = [400.0, 150.0, 90.0, 700.0, 30.0, 260.0];
        let losses = [0.4, 0.9, 0.05, 0.3, 0.2, 0.01];
        let of = |(b, l): (&f64, &f64)| layer(&[(0.0, *l), (b / 3.0, l / 9.0), (*b, 0.0)]);
        sizes.iter().zip(&losses).map(of).collect()
    }

    #[test]
    fn both_paths_rise_in_size_fall_in_loss_and_end_in_float() {
        let choices = six();
        for search in [Search::Greedy, Search::Knapsack] {
            let path = path(&choices, search);
            assert_eq!(path[0], [0; 6], "{search:?}");
            assert_eq!(path.last().unwrap(), &[2; 6], "{search:?}");
            for pair in path.windows(2) {
                let (a, b) = (sums(&choices, &pair[0]), sums(&choices, &pair[1]));
                assert!(a.0 < b.0 && a.1 > b.1, "{search:?} {a:?} {b:?}");
            }
        }
    }

    #[test]
    fn the_knapsack_is_as_good_as_trying_everything() {
        let choices = six();
        let path = path(&choices, Search::Knapsack);
        for budget in [50.0, 200.0, 333.0, 800.0, 1500.0] {
            let mut least = f64::INFINITY;
            for code in 0..3usize.pow(6) {
                let at: Vec<usize> = (0..6).map(|l| code / 3usize.pow(l) % 3).collect();
                let (bytes, loss) = sums(&choices, &at);
                if bytes <= budget {
                    least = least.min(loss);
                }
            }
            let fitting = path.iter().map(|at| sums(&choices, at)).filter(|s| s.0 <= budget);
            let found = fitting.map(|s| s.1).fold(f64::INFINITY, f64::min);
            // Six sizes are rounded up by at most 1.6 bytes each.
            assert!(found <= least + 0.02, "{budget}: {found} against {least}");
        }
    }

    #[test]
    fn greedy_takes_what_loses_most_for_a_byte_first() {
        let choices = [layer(&[(0.0, 1.0), (100.0, 0.0)]), layer(&[(0.0, 0.9), (10.0, 0.0)])];
        assert_eq!(path(&choices, Search::Greedy), [[0, 0], [0, 1], [1, 1]]);
        assert_eq!(path(&[], Search::Knapsack), [Vec::<usize>::new()]);
    }
}
