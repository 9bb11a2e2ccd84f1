//! The embedded digits: 8 x 8 pixels scaled to 0..1, ten classes, a fixed stratified split.

use super::{Rows, Spec, csv};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

const FILE: &[u8] = include_bytes!("../../assets/digits/digits.csv.gz");
/// Training rows of each class.
const TRAIN: usize = 100;

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    spec.finish()?;
    let table = csv::parse(&csv::unpacked(FILE, "digits.csv.gz".as_ref())?, "digits.csv.gz".as_ref())?;
    let label = |row: &[f64]| row[64] as usize;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut order: Vec<usize> = (0..table.len()).collect();
    order.shuffle(&mut rng);
    let mut seen = [0usize; 10];
    let (mut train, mut test) = (vec![], vec![]);
    for i in order {
        let class = label(&table[i]);
        seen[class] += 1;
        if seen[class] <= TRAIN { train.push(i) } else { test.push(i) }
    }
    let rows = match spec.place.as_str() {
        "train" => train,
        "test" => test,
        other => {
            return Err(Error::usage("DATA-PART", "the digits have two parts")
                .found(other)
                .limit("train, test"));
        }
    };
    let pixels = rows.iter().flat_map(|i| table[*i][..64].iter().map(|p| (*p / 16.0) as f32)).collect();
    Ok(Rows {
        input: Tensor::from_vec(vec![rows.len(), 1, 8, 8], pixels)?,
        labels: rows.iter().map(|i| label(&table[*i])).collect(),
        classes: (0..10).map(|d| d.to_string()).collect(),
        notes: vec![],
    })
}
