//! Specs, readers and their complaints.

use super::*;
use crate::tensor::DType;

fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_string();
    (dir, path)
}

#[test]
fn the_digits_split_is_fixed_balanced_and_disjoint() {
    let (train, test) = (DataSet::open("digits:train").unwrap(), DataSet::open("digits:test").unwrap());
    assert_eq!((train.len(), test.len()), (1000, 797));
    assert_eq!(train.input().shape(), [1000, 1, 8, 8]);
    for class in 0..10 {
        assert_eq!(train.labels().iter().filter(|l| **l == class).count(), 100);
    }
    assert_eq!(train.hash(), DataSet::open("digits:train").unwrap().hash());
    assert_ne!(train.hash(), DataSet::open("digits:train#0..999").unwrap().hash());
    let rows = |d: &DataSet| -> Vec<Vec<u32>> {
        d.input()
            .to_vec::<f32>()
            .unwrap()
            .chunks(64)
            .map(|r| r.iter().map(|p| p.to_bits()).collect())
            .collect()
    };
    let train: std::collections::HashSet<_> = rows(&train).into_iter().collect();
    assert!(rows(&test).iter().all(|r| !train.contains(r)));
}

#[test]
fn csv_rows_become_scaled_batches() {
    let (_dir, path) = file("a.csv", b"1,2,3,4,0\n5,6,7,8,1\n9,10,11,12,2\n");
    let set = DataSet::open(&format!("csv:{path}?shape=1,2,2&scale=2#1..3")).unwrap();
    assert_eq!((set.input().shape(), set.labels()), ([2, 1, 2, 2].as_slice(), [1, 2].as_slice()));
    let batches: Vec<Batch> = set.batches(1).map(Result::unwrap).collect();
    assert_eq!(batches[1].input.to_vec::<f32>().unwrap(), [4.5, 5.0, 5.5, 6.0]);
    assert_eq!(batches[1].labels, [2]);
}

#[test]
fn bad_data_names_row_column_and_option() {
    let (_dir, path) = file("a.csv", b"1,2\n3,x\n");
    let e = DataSet::open(&format!("csv:{path}?label=none")).unwrap_err().to_string();
    assert!(e.contains("row 2, column 2") && e.contains("a.csv"), "{e}");
    let (_dir, path) = file("a.csv", b"1,2\n3\n");
    assert!(DataSet::open(&format!("csv:{path}")).unwrap_err().to_string().contains("row 2"));
    let (_dir, path) = file("a.csv", b"1,2.5\n");
    assert_eq!(DataSet::open(&format!("csv:{path}")).unwrap_err().code(), "DATA-LABEL");
    for (spec, code) in [
        ("digits", "DATA-SPEC"),
        ("digits:other", "DATA-PART"),
        ("digits:train?x=1", "DATA-OPTION"),
        ("digits:train#5..2", "DATA-RANGE"),
        ("digits:train#a..2", "DATA-SPEC"),
        ("zip:x", "DATA-KIND"),
    ] {
        let e = DataSet::open(spec).unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), (code, 2), "{spec}");
    }
    assert_eq!(DataSet::open("csv:/nonexistent.csv").unwrap_err().kind().exit_code(), 3);
}

#[test]
fn npy_arrays_are_read_by_their_header() {
    let mut bytes = b"\x93NUMPY\x01\x00\x46\x00".to_vec();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    bytes.extend(format!("{header:<69}\n").into_bytes());
    bytes.extend((0..6).flat_map(|i| (i as f32).to_le_bytes()));
    let (_dir, path) = file("a.npy", &bytes);
    let set = DataSet::open(&format!("npy:{path}")).unwrap();
    assert_eq!((set.input().shape(), set.input().dtype()), ([2, 3].as_slice(), DType::F32));
    let (_dir, path) = file("b.npy", &bytes[..bytes.len() - 1]);
    assert_eq!(DataSet::open(&format!("npy:{path}")).unwrap_err().code(), "TENSOR-BYTES");
}

#[test]
fn files_become_stripped_and_padded_tokens() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("txt")).unwrap();
    std::fs::write(dir.path().join("txt/a"), b"  \n hello world \n").unwrap();
    std::fs::write(dir.path().join("tiny.txt"), b"x").unwrap();
    let set = DataSet::open(&format!("bytes:{}", dir.path().display())).unwrap();
    assert_eq!((set.len(), set.notes().len()), (1, 1));
    let row = set.input().to_vec::<i32>().unwrap();
    assert_eq!((row[0], row[10], row[13], row[1023]), (i32::from(b'h'), i32::from(b'd'), 256, 256));
    assert_eq!((row[1024], row[2047]), (256, i32::from(b'd')));
}

#[test]
fn random_inputs_are_seeded_and_fit_their_names() {
    let of = |name: &str, dtype| InputShape { name: name.into(), dtype, shape: vec![2, 3] };
    let inputs = [of("x", DType::F32), of("input_ids", DType::I64), of("attention_mask", DType::I64)];
    let (a, b) = (random_inputs(&inputs, 1).unwrap(), random_inputs(&inputs, 1).unwrap());
    assert!(a.iter().zip(&b).all(|((_, a), (_, b))| a.same_bits(b).unwrap()));
    assert_eq!(a[2].1.to_i64s().unwrap(), [1; 6]);
}
