//! Reading checkpoints: block encodings bit for bit, and what a file says is what is read.

#[path = "checkpoint/files.rs"]
pub mod files;
#[path = "checkpoint/hostile.rs"]
mod hostile;

use files::{Gguf, array, put, safetensors, string};
use std::collections::BTreeSet;
use std::path::Path;
use tinsmith::formats::metadata::Fact;
use tinsmith::formats::{self, Limits};
use tinsmith::kernels::blocks::Encoding;
use tinsmith::tensor::DType;

/// The next `n` bytes of `rest`.
fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(n);
    *rest = tail;
    head
}

#[test]
fn blocks_are_spelled_out_bit_for_bit_as_the_reference_does() {
    let fixture =
        std::env::var_os("TINSMITH_TEST_BLOCKS").unwrap_or_else(|| "tests/fixtures/gguf_blocks.bin".into());
    let bytes = std::fs::read(Path::new(&fixture)).unwrap();
    let mut rest = &bytes[..];
    let mut seen = BTreeSet::new();
    while !rest.is_empty() {
        let length = usize::from(take(&mut rest, 1)[0]);
        let name = String::from_utf8(take(&mut rest, length).to_vec()).unwrap();
        let number = |rest: &mut &[u8]| u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize;
        let (count, elements) = (number(&mut rest), number(&mut rest));
        let encoding = *Encoding::ALL.iter().find(|e| e.name() == name).expect("a known encoding");
        assert_eq!(encoding.elements(), elements, "{name}");
        let blocks = take(&mut rest, count * encoding.bytes());
        let want = take(&mut rest, count * elements * 4);
        let mut out = vec![f32::NAN; count * elements];
        encoding.dequantize(blocks, &mut out);
        for (i, (ours, theirs)) in out.iter().zip(want.chunks_exact(4)).enumerate() {
            let theirs = f32::from_le_bytes(theirs.try_into().unwrap());
            assert_eq!(
                ours.to_bits(),
                theirs.to_bits(),
                "{name}: element {} of block {}: {ours} for {theirs}",
                i % elements,
                i / elements
            );
        }
        seen.insert(name);
    }
    // The package does not spell these out.
    let without = ["Q1_0", "Q2_0", "Q8_K"];
    let all: BTreeSet<String> =
        Encoding::ALL.iter().map(|e| e.name().to_string()).filter(|n| !without.contains(&&**n)).collect();
    assert_eq!(seen, all);
}

#[test]
fn every_metadata_type_is_read_in_order() {
    let le = |v: &[&[u8]]| v.iter().map(|b| b.to_vec()).collect::<Vec<_>>();
    let nested =
        array(9, &[array(4, &le(&[&1u32.to_le_bytes(), &2u32.to_le_bytes()])), array(8, &[string("x")])]);
    let file = Gguf::small()
        .entry("u8", 0, &[200])
        .entry("i8", 1, &[200])
        .entry("u16", 2, &65535u16.to_le_bytes())
        .entry("i16", 3, &(-2i16).to_le_bytes())
        .entry("u32", 4, &u32::MAX.to_le_bytes())
        .entry("i32", 5, &i32::MIN.to_le_bytes())
        .entry("f32", 6, &0.1f32.to_le_bytes())
        .entry("bool", 7, &[1])
        .entry("string", 8, &string("tü"))
        .entry("u64", 10, &u64::MAX.to_le_bytes())
        .entry("i64", 11, &i64::MIN.to_le_bytes())
        .entry("f64", 12, &0.1f64.to_le_bytes())
        .entry("a.u8", 9, &array(0, &le(&[&[1], &[255]])))
        .entry("a.i16", 9, &array(3, &le(&[&(-1i16).to_le_bytes()])))
        .entry("a.u64", 9, &array(10, &le(&[&7u64.to_le_bytes()])))
        .entry("a.huge", 9, &array(10, &le(&[&u64::MAX.to_le_bytes()])))
        .entry("a.f32", 9, &array(6, &le(&[&1.5f32.to_le_bytes()])))
        .entry("a.f64", 9, &array(12, &le(&[&2.5f64.to_le_bytes()])))
        .entry("a.bool", 9, &array(7, &le(&[&[0], &[1]])))
        .entry("a.string", 9, &array(8, &[string(""), string("b")]))
        .entry("a.empty", 9, &array(5, &[]))
        .entry("a.nested", 9, &nested)
        .entry("bytes", 8, &string([b'a', 0xff, b'b']));
    let dir = tempfile::tempdir().unwrap();
    let c = formats::checkpoint(&put(dir.path(), "a.gguf", &file.bytes()), &Limits::default()).unwrap();
    let want = [
        ("u8", Fact::Int(200)),
        ("i8", Fact::Int(-56)),
        ("u16", Fact::Int(65535)),
        ("i16", Fact::Int(-2)),
        ("u32", Fact::Int(u32::MAX.into())),
        ("i32", Fact::Int(i32::MIN.into())),
        ("f32", Fact::Float(0.1f32.into())),
        ("bool", Fact::Bool(true)),
        ("string", Fact::Text("tü".to_string())),
        ("u64", Fact::Int(u64::MAX.into())),
        ("i64", Fact::Int(i64::MIN.into())),
        ("f64", Fact::Float(0.1)),
        ("a.u8", Fact::Ints(vec![1, 255])),
        ("a.i16", Fact::Ints(vec![-1])),
        ("a.u64", Fact::Ints(vec![7])),
        ("a.huge", Fact::Other("1 integers, 1 of them beyond 64 signed bits".to_string())),
        ("a.f32", Fact::Floats(vec![1.5])),
        ("a.f64", Fact::Floats(vec![2.5])),
        ("a.bool", Fact::Bools(vec![false, true])),
        ("a.string", Fact::Texts(vec![String::new(), "b".to_string()])),
        ("a.empty", Fact::Ints(vec![])),
        ("a.nested", Fact::Other("[[1, 2], [\"x\"]]".to_string())),
        ("bytes", Fact::Text("a\\xffb".to_string())),
    ];
    let entries = &c.metadata.entries()[3..];
    assert_eq!(entries.len(), want.len());
    for ((key, fact), (name, wanted)) in entries.iter().zip(&want) {
        assert_eq!((&**key, fact), (*name, wanted));
    }
    assert!(c.warnings.iter().any(|w| w.contains("not UTF-8")), "{:?}", c.warnings);
}

#[test]
fn gguf_tensors_have_the_shape_that_frameworks_spell() {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "a.gguf", &Gguf::small().bytes());
    let c = formats::checkpoint(&path, &Limits::default()).unwrap();
    assert_eq!((c.format, c.parameters()), ("gguf", 67));
    let w = c.get("blk.0.w").unwrap();
    assert_eq!((&w.shape[..], &*w.encoding, w.bytes), (&[2, 32][..], "Q8_0", 68));
    let tensor = w.tensor().unwrap();
    assert_eq!((tensor.dtype(), tensor.encoding()), (DType::F32, Some(Encoding::Q8_0)));
    let row: Vec<f32> = (0..32).map(|i| i as f32 / 2.0).collect();
    assert_eq!(tensor.to_vec::<f32>().unwrap(), [row.clone(), row].concat());
}

#[test]
fn every_safetensors_type_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dtype, elements, bytes) in [
        ("F64", Some(DType::F64), 2, 16),
        ("F32", Some(DType::F32), 2, 8),
        ("F16", Some(DType::F16), 2, 4),
        ("BF16", Some(DType::BF16), 2, 4),
        ("I64", Some(DType::I64), 2, 16),
        ("I32", Some(DType::I32), 2, 8),
        ("I16", Some(DType::I16), 2, 4),
        ("I8", Some(DType::I8), 2, 2),
        ("U64", Some(DType::U64), 2, 16),
        ("U32", Some(DType::U32), 2, 8),
        ("U16", Some(DType::U16), 2, 4),
        ("U8", Some(DType::U8), 2, 2),
        ("BOOL", Some(DType::Bool), 2, 2),
        ("C64", Some(DType::C64), 2, 16),
        ("F8_E4M3", Some(DType::F8E4M3FN), 2, 2),
        ("F8_E5M2", Some(DType::F8E5M2), 2, 2),
        ("F8_E4M3FNUZ", Some(DType::F8E4M3FNUZ), 2, 2),
        ("F8_E5M2FNUZ", Some(DType::F8E5M2FNUZ), 2, 2),
        ("F8_E8M0", Some(DType::F8E8M0), 2, 2),
        ("F4", Some(DType::F4E2M1), 4, 2),
        ("F6_E2M3", None, 4, 3),
        ("F6_E3M2", None, 4, 3),
    ] {
        let header = format!(
            "{{\"__metadata__\":{{\"b\":\"1\",\"a\":\"2\"}},\"w\":{{\"dtype\":\"{name}\",\"shape\":[{elements}],\"data_offsets\":[0,{bytes}]}}}}"
        );
        let path = put(dir.path(), "a.safetensors", &safetensors(&header, &vec![0; bytes]));
        let c = formats::checkpoint(&path, &Limits::default()).unwrap();
        let w = c.get("w").unwrap();
        assert_eq!((&w.shape[..], &*w.encoding, w.bytes), (&[elements][..], name, bytes as u64));
        assert_eq!(w.tensor.as_ref().map(|t| t.dtype()), dtype);
        let keys: Vec<&str> = c.metadata.entries().iter().map(|(k, _)| &**k).collect();
        assert_eq!(keys, ["b", "a"]);
        match dtype {
            Some(_) => assert!(w.tensor().unwrap().data().is_ok()),
            None => assert_eq!(w.tensor().unwrap_err().kind().exit_code(), 4),
        }
    }
}
