//! Rows that two data sets have in common. Two specs enter; a count leaves. Rows are the same where they
//! hold the same, and texts also where they lie in the same place of a file.

use super::DataSet;
use super::texts::TextSet;
use crate::error::Result;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Rows of one data set that another has as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// Rows that both have.
    pub rows: usize,
    /// Rows of the first.
    pub of: usize,
}

/// Rows of the data `spec` that `other` has as well; none where one is texts and the other numbers.
///
/// # Errors
/// Those of reading the data.
pub fn shared(spec: &str, other: &str) -> Result<Shared> {
    match (TextSet::is_text(spec), TextSet::is_text(other)) {
        (true, true) => texts(&TextSet::open(spec)?, &TextSet::open(other)?),
        (false, false) => numbers(&DataSet::open(spec)?, &DataSet::open(other)?),
        (true, false) => Ok(Shared { rows: 0, of: TextSet::open(spec)?.len() }),
        (false, true) => Ok(Shared { rows: 0, of: DataSet::open(spec)?.len() }),
    }
}

/// 64 bits; that two rows of different content agree in them is not to be expected below 10^8 rows.
fn digest(content: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

fn numbers(a: &DataSet, b: &DataSet) -> Result<Shared> {
    let rows = |set: &DataSet| -> Result<Vec<u64>> {
        let (input, mut raw) = (set.input(), Vec::new());
        input.write_raw(&mut raw)?;
        let row = (raw.len() / set.len().max(1)).max(1);
        Ok(raw.chunks(row).map(|row| digest((input.dtype().onnx(), row))).collect())
    };
    let known: HashSet<u64> = rows(b)?.into_iter().collect();
    let rows = rows(a)?;
    Ok(Shared { rows: rows.iter().filter(|r| known.contains(r)).count(), of: rows.len() })
}

fn texts(a: &TextSet, b: &TextSet) -> Result<Shared> {
    let mut known = HashSet::new();
    let mut places: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
    // A row that cannot be read as text is known by its place alone.
    let content = |set: &TextSet, row: usize| set.text(row).ok().map(|text| digest(text.trim()));
    for row in 0..b.len() {
        known.extend(content(b, row));
        let (path, start, end) = b.place(row);
        places
            .entry(path.canonicalize().unwrap_or_else(|_| path.to_path_buf()))
            .or_default()
            .push((start, end));
    }
    places.values_mut().for_each(|spans| spans.sort_unstable());
    let mut rows = 0;
    for row in 0..a.len() {
        let (path, start, end) = a.place(row);
        let spans = places.get(&path.canonicalize().unwrap_or_else(|_| path.to_path_buf()));
        // Rows of one data set do not overlap, so that the last one that begins before `end` decides.
        let met = spans.is_some_and(|spans| {
            let before = spans.partition_point(|(from, _)| *from < end);
            before.checked_sub(1).is_some_and(|last| spans[last].1 > start)
        });
        rows += usize::from(met || content(a, row).is_some_and(|c| known.contains(&c)));
    }
    Ok(Shared { rows, of: a.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn rows_of_numbers_are_the_same_by_content() {
        let count = |a, b| shared(a, b).unwrap();
        assert_eq!(count("digits:test#0..50", "digits:test"), Shared { rows: 50, of: 50 });
        assert_eq!(count("digits:test#0..50", "digits:test#40..90").rows, 10);
        assert_eq!(count("digits:train", "digits:test").rows, 0);
    }

    #[test]
    fn texts_are_the_same_by_place_and_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            format!("text:{}", dir.path().join(name).display())
        };
        let a = file("a.txt", "one\n\ntwo\n\nthree\n\nfour\n");
        let copy = file("b.txt", "three\n\nfive\n");
        let paragraphs = |spec: &str| format!("{spec}?by=paragraph");
        let count = |a: &str, b: &str| shared(a, b).unwrap().rows;
        assert_eq!(count(&paragraphs(&a), &a), 4);
        assert_eq!(count(&a, &format!("{}#3..4", paragraphs(&a))), 1);
        assert_eq!(count(&format!("{}#0..2", paragraphs(&a)), &format!("{}#2..4", paragraphs(&a))), 0);
        assert_eq!(count(&paragraphs(&a), &paragraphs(&copy)), 1);
        assert_eq!(count(&a, "digits:test"), 0);
    }
}
