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

fn texts(spec: &str) -> Vec<String> {
    let set = TextSet::open(spec).unwrap();
    (0..set.len()).map(|i| set.text(i).unwrap()).collect()
}

#[test]
fn texts_are_cut_into_rows_and_joined_into_documents() {
    let (_dir, path) = file("a.txt", "\n\none\ntwo\r\n\n \nthrée\n\nfour".as_bytes());
    assert_eq!(texts(&format!("text:{path}")), ["one\ntwo", "thrée", "four"]);
    assert_eq!(texts(&format!("text:{path}?by=line")), ["one", "two", "thrée", "four"]);
    let set = TextSet::open(&format!("text:{path}#0..2")).unwrap();
    let documents: Vec<String> = set.documents().map(Result::unwrap).collect();
    assert_eq!(documents, ["one\ntwo\r\n\n \nthrée"]);
    let all = TextSet::open(&format!("text:{path}")).unwrap();
    assert_ne!(set.hash(), all.hash());
    assert_eq!(all.hash(), TextSet::open(&format!("text:{path}")).unwrap().hash());
    // All rows are the whole file.
    let whole: Vec<String> = all.documents().map(Result::unwrap).collect();
    assert_eq!(whole, [std::fs::read_to_string(&path).unwrap()]);
    // Rows in another order are documents of their own.
    let shuffled = TextSet::open(&format!("text:{path}?shuffle=1")).unwrap();
    let mut rows = texts(&format!("text:{path}?shuffle=1"));
    rows.sort();
    assert_eq!(rows, ["four", "one\ntwo", "thrée"]);
    assert!(shuffled.documents().count() > 1);
}

#[test]
fn directories_of_texts_are_labelled_by_their_folders() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, name) in [("easy-ham", "1"), ("easy-ham", "2"), ("hard-ham", "3"), ("spam", "4")] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        std::fs::write(dir.path().join(folder).join(name), format!("mail {name}")).unwrap();
    }
    let root = dir.path().display();
    let set = TextSet::open(&format!("text:{root}?label=folder")).unwrap();
    assert_eq!((set.labels(), set.classes().len()), ([0, 0, 1, 2].as_slice(), 3));
    let set = TextSet::open(&format!("text:{root}?label=folder&classes=ham,spam")).unwrap();
    assert_eq!(
        (set.labels(), set.classes()),
        ([0, 0, 0, 1].as_slice(), ["ham", "spam"].map(String::from).as_slice())
    );
    let e = TextSet::open(&format!("text:{root}?label=folder&classes=easy,spam")).unwrap_err();
    assert!(e.code() == "DATA-LABEL" && e.to_string().contains("hard-ham"), "{e}");
    let two = format!("text:{root}/easy-ham/{{1..2}}");
    assert_eq!(texts(&two), ["mail 1", "mail 2"]);
}

#[test]
fn fields_of_json_lines_and_csv_are_texts() {
    let lines = b"{\"a\": {\"text\": \"x\"}, \"label\": \"no\"}\n\n{\"a\": {\"text\": \"y\\n\"}, \"label\": \"yes\"}\n";
    let (_dir, path) = file("a.jsonl", lines);
    let set = TextSet::open(&format!("jsonl:{path}?text=a.text&label=label")).unwrap();
    assert_eq!(
        (set.labels(), set.classes()),
        ([0, 1].as_slice(), ["no", "yes"].map(String::from).as_slice())
    );
    assert_eq!(texts(&format!("jsonl:{path}?text=a.text")), ["x", "y\n"]);
    let e = TextSet::open(&format!("jsonl:{path}?text=b")).unwrap_err();
    assert!(e.code() == "DATA-JSONL" && e.to_string().contains("line 1"), "{e}");
    let (_dir, path) = file("a.csv", b"id,body,class\n1,\"x, y\",0\n2,z,3\n");
    let spec = format!("csv:{path}?text=body&label=class");
    assert_eq!(texts(&spec), ["x, y", "z"]);
    assert_eq!(TextSet::open(&spec).unwrap().labels(), [0, 3]);
    assert!(TextSet::is_text(&spec) && !TextSet::is_text(&format!("csv:{path}")));
    assert_eq!(DataSet::open(&spec).unwrap_err().code(), "DATA-TEXT");
}

#[test]
fn texts_that_are_no_utf8_are_named_or_replaced() {
    let (_dir, path) = file("a.txt", b"ab\xffc");
    let set = TextSet::open(&format!("text:{path}")).unwrap();
    let e = set.text(0).unwrap_err();
    assert!(e.code() == "DATA-UTF8" && e.to_string().contains("byte 2"), "{e}");
    assert_eq!(texts(&format!("text:{path}?lossy=1")), ["ab\u{fffd}c"]);
    let (_dir, path) = file("b.txt", b" \n\n");
    assert_eq!(TextSet::open(&format!("text:{path}")).unwrap_err().code(), "DATA-EMPTY");
    for (spec, code) in
        [("text:/nonexistent", "IO"), ("text:x?by=word", "DATA-OPTION"), ("text:x?y=1", "DATA-OPTION")]
    {
        assert_eq!(TextSet::open(spec).unwrap_err().code(), code, "{spec}");
    }
}

fn npy(shape: &str, descr: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    bytes.extend(format!("{header:<117}\n").into_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn archives_of_arrays_are_read_by_name_within_limits() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    let x: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    for (name, bytes) in [("x.npy", npy("(3, 2)", "<f4", &x)), ("y.npy", npy("(3,)", "|u1", &[2, 0, 1]))] {
        zip.start_file(name, options).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
    let spec = format!("npz:{}", path.display());
    let set = DataSet::open(&format!("{spec}?input=x&labels=y")).unwrap();
    assert_eq!((set.input().shape(), set.labels()), ([3, 2].as_slice(), [2, 0, 1].as_slice()));
    let split = DataSet::open(&format!("{spec}?input=x&labels=y#1..3")).unwrap();
    assert_eq!(
        (split.labels(), split.input().to_vec::<f32>().unwrap()),
        ([0, 1].as_slice(), vec![2., 3., 4., 5.])
    );
    for (options, part) in [("", "input=NAME"), ("?input=z", "no array")] {
        let e = DataSet::open(&format!("{spec}{options}")).unwrap_err();
        assert!(e.to_string().contains(part), "{e}");
    }
    // Zeros that unpack to a hundred times more than an archive of this size may.
    let bomb = dir.path().join("b.npz");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&bomb).unwrap());
    zip.start_file("x.npy", options.compression_method(zip::CompressionMethod::Deflated)).unwrap();
    zip.write_all(&vec![0; 300 << 20]).unwrap();
    zip.finish().unwrap();
    let e = DataSet::open(&format!("npz:{}", bomb.display())).unwrap_err();
    assert!(matches!(e.kind().exit_code(), 3 | 5), "{e}");
}

#[test]
fn pictures_are_scaled_cut_and_normalised() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, gray) in [("dark", 0u8), ("light", 255)] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        let picture = image::RgbImage::from_pixel(8, 4, image::Rgb([gray, 128, gray]));
        picture.save(dir.path().join(folder).join("a.png")).unwrap();
        picture.save(dir.path().join(folder).join("b.jpg")).unwrap();
    }
    std::fs::write(dir.path().join("dark/notes.txt"), "x").unwrap();
    let spec = format!("images:{}", dir.path().display());
    let set = DataSet::open(&spec).unwrap();
    assert_eq!((set.input().shape(), set.labels()), ([4, 3, 4, 8].as_slice(), [0, 0, 1, 1].as_slice()));
    assert_eq!((set.classes().len(), set.notes().len()), (2, 1));
    let set = DataSet::open(&format!("{spec}?size=2,2&mean=0.5&std=0.5#2..3")).unwrap();
    assert_eq!((set.input().shape(), set.labels()), ([1, 3, 2, 2].as_slice(), [1].as_slice()));
    let values = set.input().to_vec::<f32>().unwrap();
    assert!(
        (values[0] - 1.0).abs() < 1e-6 && (values[4] - (128.0 / 255.0 - 0.5) / 0.5).abs() < 1e-6,
        "{values:?}"
    );
    let gray = DataSet::open(&format!("{spec}?gray=1&layout=nhwc")).unwrap();
    assert_eq!(gray.input().shape(), [4, 4, 8, 1]);
    std::fs::write(dir.path().join("dark/c.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    let e = DataSet::open(&spec).unwrap_err();
    assert!(e.code() == "DATA-IMAGE" && e.to_string().contains("c.png"), "{e}");
    assert_eq!(DataSet::open(&format!("{spec}?size=0")).unwrap_err().code(), "DATA-OPTION");
}

#[test]
fn idx_files_and_tables_of_digits_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28];
    images.extend(vec![255u8; 2 * 784]);
    std::fs::write(dir.path().join("t10k-images-idx3-ubyte"), &images).unwrap();
    std::fs::write(dir.path().join("t10k-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 7, 3]).unwrap();
    let set = DataSet::open(&format!("mnist:{}", dir.path().display())).unwrap();
    assert_eq!((set.input().shape(), set.labels()), ([2, 1, 28, 28].as_slice(), [7, 3].as_slice()));
    assert_eq!(set.input().to_vec::<f32>().unwrap()[0], 1.0);
    std::fs::write(dir.path().join("t10k-images-idx3-ubyte"), &images[..500]).unwrap();
    let e = DataSet::open(&format!("mnist:{}", dir.path().display())).unwrap_err();
    assert!(e.code() == "DATA-MNIST" && e.to_string().contains("length"), "{e}");
    let row = format!("{}5\n", "51,".repeat(784));
    let (_dir, path) = file("a.csv", row.as_bytes());
    let set = DataSet::open(&format!("mnist:{path}")).unwrap();
    assert_eq!((set.input().to_vec::<f32>().unwrap()[783], set.labels()), (0.2, [5].as_slice()));
}
