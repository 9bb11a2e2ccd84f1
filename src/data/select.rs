//! Which rows of a data set are used, and in which order: seeded shuffling, a split into two parts
//! that never overlap, and a range. Options: `shuffle=SEED`, `split=train|test`, `part=SHARE`.

use super::Spec;
use crate::error::{Error, Result};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::ops::Range;

/// Which of the two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

/// A choice of rows.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    shuffle: Option<u64>,
    split: Option<Part>,
    share: f64,
    range: Option<Range<usize>>,
    text: String,
}

impl Selection {
    /// Takes the options and the range of a spec.
    pub(super) fn take(spec: &Spec) -> Result<Selection> {
        let split = match spec.option::<String>("split")?.as_deref() {
            None => None,
            Some("train") => Some(Part::Train),
            Some("test") => Some(Part::Test),
            Some(other) => {
                return Err(Error::usage("DATA-SPLIT", "a split has two parts")
                    .field(format!("{spec} option split"))
                    .found(other)
                    .limit("train, test"));
            }
        };
        let share: Option<f64> = spec.option("part")?;
        if let Some(share) = share.filter(|s| split.is_none() || !(*s > 0.0 && *s < 1.0)) {
            return Err(Error::usage("DATA-SPLIT", "part is the share of the rows that split=test gets")
                .field(format!("{spec} option part"))
                .found(share)
                .limit("between 0 and 1, with split=train or split=test"));
        }
        let shuffle = spec.option("shuffle")?;
        let range = spec.range.clone();
        Ok(Selection { shuffle, split, share: share.unwrap_or(0.2), range, text: spec.to_string() })
    }

    /// The chosen rows of `count`; none where all are chosen in their order. With labels, each class
    /// is split by itself, so that both parts hold all of them in the same proportion.
    pub(super) fn apply(&self, count: usize, labels: &[usize]) -> Result<Option<Vec<usize>>> {
        if self.shuffle.is_none() && self.split.is_none() && self.range.is_none() {
            return Ok(None);
        }
        let seed = self.shuffle.unwrap_or(0);
        let mut rows: Vec<usize> = (0..count).collect();
        if let Some(part) = self.split {
            let mut classes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for row in 0..count {
                classes.entry(labels.get(row).copied().unwrap_or(0)).or_default().push(row);
            }
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            let mut tested = vec![false; count];
            for members in classes.values_mut() {
                members.shuffle(&mut generator);
                let taken = (members.len() as f64 * self.share).round() as usize;
                members.iter().take(taken).for_each(|row| tested[*row] = true);
            }
            rows.retain(|row| tested[*row] == (part == Part::Test));
        }
        if self.shuffle.is_some() {
            rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ 0x5eed));
        }
        if let Some(Range { start, end }) = self.range.clone() {
            if end > rows.len() || start >= end {
                return Err(Error::usage("DATA-RANGE", "the range leaves the data")
                    .field(&self.text)
                    .found(format!("{start}..{end}"))
                    .limit(format!("0..{}", rows.len()))
                    .hint("name rows that the data have"));
            }
            rows = rows[start..end].to_vec();
        }
        Ok(Some(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(options: &str, labels: &[usize]) -> Vec<usize> {
        let spec = Spec::parse(&format!("csv:x?{options}")).unwrap();
        Selection::take(&spec).unwrap().apply(labels.len(), labels).unwrap().unwrap()
    }

    #[test]
    fn splits_are_disjoint_whole_and_stratified() {
        let labels: Vec<usize> = (0..100).map(|i| usize::from(i % 10 == 0)).collect();
        for seed in [0, 7] {
            let test = rows(&format!("split=test&part=0.3&shuffle={seed}"), &labels);
            let train = rows(&format!("split=train&part=0.3&shuffle={seed}"), &labels);
            let mut all = [test.clone(), train].concat();
            all.sort_unstable();
            assert_eq!(all, (0..100).collect::<Vec<_>>());
            assert_eq!((test.len(), test.iter().filter(|r| labels[**r] == 1).count()), (30, 3));
            assert_eq!(test, rows(&format!("split=test&part=0.3&shuffle={seed}"), &labels));
            assert!(!test.is_sorted());
        }
        assert!(rows("split=test", &labels).is_sorted());
        assert_ne!(rows("shuffle=1", &labels), rows("shuffle=2", &labels));
    }

    #[test]
    fn wrong_choices_are_named() {
        for (options, code) in [
            ("split=some", "DATA-SPLIT"),
            ("part=0.5", "DATA-SPLIT"),
            ("split=test&part=1.5", "DATA-SPLIT"),
            ("shuffle=x", "DATA-OPTION"),
        ] {
            let spec = Spec::parse(&format!("csv:x?{options}")).unwrap();
            assert_eq!(Selection::take(&spec).unwrap_err().code(), code, "{options}");
        }
        let spec = Spec::parse("csv:x?split=test#0..30").unwrap();
        let e = Selection::take(&spec).unwrap().apply(100, &[]).unwrap_err();
        assert!(e.code() == "DATA-RANGE" && e.to_string().contains("0..20"), "{e}");
    }
}
