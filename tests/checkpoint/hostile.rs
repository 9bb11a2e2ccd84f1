//! Hostile and broken checkpoint files: each is refused with the right kind, field and reason, in time
//! and within memory.

use super::files::{Gguf, array, put, safetensors, string, vectors};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tinsmith::error::{Error, Kind, Result};
use tinsmith::formats::{self, Checkpoint, Limits};

#[track_caller]
fn open(path: &Path) -> Result<Checkpoint> {
    let start = Instant::now();
    let result = formats::checkpoint(path, &Limits::default());
    // Generous, for builds without optimisation on a busy machine; each takes milliseconds.
    assert!(start.elapsed() < Duration::from_secs(10), "{path:?} took {:?}", start.elapsed());
    if let Err(e) = &result {
        let text = e.to_string();
        assert!(!text.chars().any(|c| c.is_control()), "{text:?}");
        assert_ne!(e.kind(), Kind::Internal, "{text}");
    }
    result
}

#[track_caller]
fn open_bytes(name: &str, bytes: &[u8]) -> Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    open(&put(dir.path(), name, bytes))
}

#[track_caller]
fn same(e: &Error, kind: Kind, code: &str, texts: &[&str]) {
    assert_eq!((e.kind(), e.code()), (kind, code), "{e}");
    for text in texts {
        assert!(e.to_string().contains(text), "\"{e}\" lacks \"{text}\"");
    }
}

#[track_caller]
fn refused(path: &Path, kind: Kind, code: &str, texts: &[&str]) {
    match open(path) {
        Ok(_) => panic!("accepted, expected {code}"),
        Err(e) => same(&e, kind, code, texts),
    }
}

#[track_caller]
fn tensors(header: &str, data: &[u8], kind: Kind, code: &str, texts: &[&str]) {
    match open_bytes("evil.safetensors", &safetensors(header, data)) {
        Ok(_) => panic!("accepted, expected {code}"),
        Err(e) => same(&e, kind, code, &[texts, &["evil.safetensors"]].concat()),
    }
}

#[track_caller]
fn gguf(file: &Gguf, kind: Kind, code: &str, texts: &[&str]) {
    match open_bytes("evil.gguf", &file.bytes()) {
        Ok(_) => panic!("accepted, expected {code}"),
        Err(e) => same(&e, kind, code, &[texts, &["evil.gguf"]].concat()),
    }
}

const INVALID: Kind = Kind::Invalid;

#[test]
fn files_too_short_for_a_header_say_so() {
    for (name, bytes) in [("a.gguf", Gguf::small().bytes()), ("a.safetensors", vectors(&[("a", &[1; 9])]))] {
        let e = open_bytes(name, &[]).unwrap_err();
        same(&e, INVALID, "FORMAT-EMPTY", &["the file is empty", name]);
        for n in [1, 7, 8, 15] {
            let e = open_bytes(name, &bytes[..n]).unwrap_err();
            assert_eq!(e.kind(), INVALID, "{e}");
            assert!(e.to_string().contains("too short for a"), "{e}");
            assert!(e.to_string().contains(&format!("{n} of ")), "{e}");
        }
    }
    same(&open_bytes("a.gguf", b"GGUF").unwrap_err(), INVALID, "GGUF-SHORT", &["4 of 24 bytes"]);
}

#[test]
fn every_prefix_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("a.gguf", Gguf::small().bytes()),
        ("a.safetensors", vectors(&[("first", &[1; 40]), ("second", &[2; 700])])),
    ] {
        assert!(open(&put(dir.path(), name, &bytes)).is_ok());
        for n in 0..bytes.len() {
            match open(&put(dir.path(), name, &bytes[..n])) {
                Err(e) => assert_eq!(e.kind(), INVALID, "{name}, prefix {n}: {e}"),
                Ok(_) => panic!("{name}: prefix {n} of {} was accepted", bytes.len()),
            }
        }
    }
}

#[test]
fn every_flipped_bit_gives_a_checkpoint_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
    for (name, bytes) in [("a.gguf", Gguf::small().bytes()), ("a.safetensors", safetensors(header, &[7; 22]))]
    {
        let mut kinds = std::collections::BTreeMap::<String, usize>::new();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let kind = match open(&put(dir.path(), name, &flipped)) {
                Ok(c) => {
                    for stored in c.tensors() {
                        if let Some(tensor) = &stored.tensor {
                            assert_eq!(tensor.shape(), stored.shape);
                            tensor.data().unwrap();
                        }
                    }
                    "ok".to_string()
                }
                Err(e) => {
                    assert!([3, 4, 5, 9].contains(&e.kind().exit_code()), "bit {bit}: {e}");
                    e.code().to_string()
                }
            };
            *kinds.entry(kind).or_default() += 1;
        }
        println!("{name}: {kinds:?}");
        assert!(kinds.len() > 6, "{kinds:?}");
    }
}

#[test]
fn the_length_of_a_safetensors_header_is_checked_before_it_is_read() {
    let with = |length: u64| [&length.to_le_bytes()[..], b"{\"a\": 1}"].concat();
    for (length, text) in [
        (u64::MAX, "longer than the format allows"),
        (1 << 63, "longer than the format allows"),
        (100_000_001, "longer than the format allows"),
        (100_000_000, "longer than the file"),
        (9, "longer than the file"),
    ] {
        let e = open_bytes("evil.safetensors", &with(length)).unwrap_err();
        same(&e, INVALID, "SAFETENSORS-HEADER", &[text, "header length"]);
    }
    let small = Limits { structure_bytes: 20, ..Limits::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "a.safetensors", &vectors(&[("a", &[1; 9])]));
    let e = formats::checkpoint(&path, &small).unwrap_err();
    same(&e, Kind::Limit, "LIMIT", &["structure_bytes", "TINSMITH_LIMITS"]);
}

/// Entries of a safetensors header.
fn entries(list: &[(&str, &str, &str, u64, u64)]) -> String {
    let one = |(name, dtype, shape, from, to): &(&str, &str, &str, u64, u64)| {
        format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    format!("{{{}}}", list.iter().map(one).collect::<Vec<_>>().join(","))
}

#[test]
fn safetensors_ranges_cover_the_data_exactly_once() {
    let two = |a: (u64, u64), b: (u64, u64)| {
        let shape = |(from, to): (u64, u64)| format!("[{}]", to.saturating_sub(from));
        entries(&[("a", "U8", &shape(a), a.0, a.1), ("b", "U8", &shape(b), b.0, b.1)])
    };
    tensors(
        &two((0, 10), (5, 20)),
        &[0; 20],
        INVALID,
        "SAFETENSORS-OVERLAP",
        &["\"b\"", "5..20", "0..10 of \"a\""],
    );
    tensors(&two((0, 10), (0, 10)), &[0; 10], INVALID, "SAFETENSORS-OVERLAP", &["0..10"]);
    tensors(&two((0, 10), (12, 20)), &[0; 20], INVALID, "SAFETENSORS-GAP", &["10..12"]);
    tensors(&two((2, 10), (10, 20)), &[0; 20], INVALID, "SAFETENSORS-GAP", &["0..2"]);
    tensors(&two((0, 10), (10, 20)), &[0; 25], INVALID, "SAFETENSORS-GAP", &["20..25"]);
    tensors(
        &two((0, 10), (20, 10)),
        &[0; 20],
        INVALID,
        "SAFETENSORS-RANGE",
        &["\"b\"", "20..10", "reversed"],
    );
    tensors(&two((0, 10), (10, 20)), &[0; 19], INVALID, "SAFETENSORS-RANGE", &["\"b\"", "10..20", "0..19"]);
    let huge = entries(&[("a", "U8", "[1]", 0, u64::MAX)]);
    tensors(&huge, &[0; 9], INVALID, "SAFETENSORS-RANGE", &["\"a\""]);
    // What stands behind or inside makes a file of two kinds.
    for guest in [&b"PK\x03\x04............"[..], b"%PDF-1.7 .......", b"\x7fELF............"] {
        let bytes = [vectors(&[("a", &[1; 9])]), guest.to_vec()].concat();
        let e = open_bytes("evil.safetensors", &bytes).unwrap_err();
        same(&e, INVALID, "SAFETENSORS-GAP", &["bytes not covered by any tensor: 9..25"]);
    }
    // Order in the header is free; it is kept.
    let c = open_bytes("a.safetensors", &safetensors(&two((10, 20), (0, 10)), &[0; 20])).unwrap();
    assert_eq!(c.tensors().iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn safetensors_shapes_fit_their_ranges() {
    for (dtype, shape, bytes, code, text) in [
        ("F32", "[4294967296,4294967296]", 8, "SAFETENSORS-SHAPE", "4294967296"),
        ("F32", "[4611686018427387904]", 8, "SAFETENSORS-SHAPE", "4611686018427387904"),
        ("F32", "[3]", 8, "SAFETENSORS-SIZE", "12 bytes for F32 [3]"),
        ("BF16", "[3]", 8, "SAFETENSORS-SIZE", "6 bytes for BF16"),
        ("F4", "[3]", 2, "SAFETENSORS-SIZE", "12 bits, which are no whole bytes"),
        ("F6_E2M3", "[2]", 2, "SAFETENSORS-SIZE", "12 bits"),
        ("C64", "[1]", 4, "SAFETENSORS-SIZE", "8 bytes"),
        ("F32", "[-1]", 8, "JSON-SYNTAX", ""),
        ("F32", "[1.5]", 8, "JSON-NUMBER", "1.5"),
        ("F32", "[18446744073709551616]", 8, "JSON-NUMBER", "18446744073709551616"),
        ("F32", "\"2\"", 8, "JSON-SYNTAX", "'\"'"),
    ] {
        let header = entries(&[("layer.w", dtype, shape, 0, bytes)]);
        let e = open_bytes("evil.safetensors", &safetensors(&header, &vec![0; bytes as usize])).unwrap_err();
        assert_eq!(e.kind(), INVALID, "{e}");
        if code != "JSON-SYNTAX" || !shape.contains('-') {
            same(&e, INVALID, code, &["layer.w", text]);
        }
    }
    let axes = format!("[{}]", ["1"; 40].join(","));
    tensors(&entries(&[("a", "U8", &axes, 0, 1)]), &[0; 1], Kind::Limit, "LIMIT", &["\"a\".\"shape\""]);
}

#[test]
fn safetensors_names_come_once() {
    let one = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let header = format!("{{\"a\":{one},\"a\":{one}}}");
    tensors(&header, &[0], INVALID, "JSON-DUPLICATE", &["\"a\""]);
    let header = format!("{{\"a\":{one},\"\\u0061\":{one}}}");
    tensors(&header, &[0], INVALID, "JSON-DUPLICATE", &["\"a\""]);
    let header = format!("{{\"__metadata__\":{{}},\"__metadata__\":{{}},\"a\":{one}}}");
    tensors(&header, &[0], INVALID, "JSON-DUPLICATE", &["__metadata__"]);
    let header = r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    tensors(header, &[0], INVALID, "JSON-DUPLICATE", &["\"a\".\"dtype\""]);
    let header = r#"{"__metadata__":{"x":"1","x":"2"}}       "#;
    tensors(header, &[], INVALID, "JSON-DUPLICATE", &["\"__metadata__\".\"x\""]);
    // The same letter composed and decomposed.
    let twins = [("caf\u{e9}", &[1u8; 8][..]), ("cafe\u{301}", &[2; 8])];
    let c = open_bytes("a.safetensors", &vectors(&twins)).unwrap();
    assert_eq!(c.tensors().len(), 2);
    assert!(c.warnings.iter().any(|w| w.contains("look")), "{:?}", c.warnings);
}

#[test]
fn unknown_element_types_are_named_after_every_other_check() {
    let known = "F64, F32, F16, BF16";
    let header = entries(&[("a", "Q9", "[8]", 0, 8)]);
    tensors(&header, &[0; 8], Kind::Unsupported, "SAFETENSORS-DTYPE", &["\"a\".dtype", "Q9", known]);
    let header = entries(&[("a", "Q9", "[8]", 0, 8)]);
    tensors(&header, &[0; 7], INVALID, "SAFETENSORS-RANGE", &["0..8"]);
    let header = entries(&[("a", "Q9", "[8]", 0, 8), ("b", "U8", "[4]", 4, 8)]);
    tensors(&header, &[0; 8], INVALID, "SAFETENSORS-OVERLAP", &["\"b\""]);
    let header = entries(&[("a", "Q9", "[8]", 1, 8)]);
    tensors(&header, &[0; 8], INVALID, "SAFETENSORS-GAP", &["0..1"]);
}

#[test]
fn entries_are_whole() {
    for (entry, code, text) in [
        (r#"{"shape":[1],"data_offsets":[0,1]}"#, "SAFETENSORS-ENTRY", "\"dtype\""),
        (r#"{"dtype":"U8","data_offsets":[0,1]}"#, "SAFETENSORS-ENTRY", "\"shape\""),
        (r#"{"dtype":"U8","shape":[1]}"#, "SAFETENSORS-ENTRY", "\"data_offsets\""),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0]}"#, "SAFETENSORS-ENTRY", "two ends"),
        (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#, "SAFETENSORS-ENTRY", "two ends"),
        (r#"{"dtype":7,"shape":[1],"data_offsets":[0,1]}"#, "JSON-SYNTAX", "a string"),
        ("[]", "JSON-SYNTAX", "an object"),
        ("null", "JSON-SYNTAX", "an object"),
    ] {
        tensors(&format!("{{\"w\":{entry}}}"), &[0], INVALID, code, &["\"w\"", text]);
    }
    tensors("{\"__metadata__\":{\"a\":1}}", &[], INVALID, "JSON-SYNTAX", &["\"__metadata__\".\"a\""]);
    tensors("{} trailing text", &[], INVALID, "JSON-SYNTAX", &["'t'"]);
    let c = open_bytes("a.safetensors", &safetensors("{       }       ", &[])).unwrap();
    assert_eq!((c.tensors().len(), &c.warnings[..]), (0, &["there are no weights in it".to_string()][..]));
    // Unknown keys are noted, not obeyed.
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"encrypted":{"by":[1,2]}}}"#;
    let c = open_bytes("a.safetensors", &safetensors(header, &[0])).unwrap();
    assert!(c.warnings[0].contains("encrypted"), "{:?}", c.warnings);
}

#[test]
fn bombs_of_json_are_refused() {
    tensors(&format!("{{\"a\":{}", "[".repeat(100_000)), &[], INVALID, "JSON-SYNTAX", &["an object"]);
    let header = format!("{{\"a\":{{\"x\":{}", "[".repeat(50_000_000));
    tensors(&header, &[], Kind::Limit, "JSON-DEPTH", &["\"a\".\"x\"", "64"]);
    let header = format!("{{\"__metadata__\":{{\"x\":\"{}\"}}}}", "x".repeat(50_000_000));
    tensors(&header, &[], Kind::Limit, "JSON-STRING", &["\"x\"", "16777216 bytes"]);
    let header = format!("{{\"__metadata__\":{{\"x\":\"{}", "x".repeat(1000));
    tensors(&header, &[], INVALID, "JSON-SYNTAX", &["the end of the string"]);
    let keys: Vec<String> = (0..300_000).map(|i| format!("\"k{i}\":\"\"")).collect();
    let header = format!("{{\"__metadata__\":{{{}}}}}", keys.join(","));
    assert_eq!(
        open_bytes("a.safetensors", &safetensors(&header, &[])).unwrap().metadata.entries().len(),
        300_000
    );
    let few = Limits { items: 1000, ..Limits::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "a.safetensors", &safetensors(&header, &[]));
    let e = formats::checkpoint(&path, &few).unwrap_err();
    same(&e, Kind::Limit, "LIMIT", &["items", "TINSMITH_LIMITS=items="]);
    let path = put(dir.path(), "a.safetensors", &vectors(&[(&"n".repeat(5000), &[1])]));
    refused(&path, Kind::Limit, "LIMIT", &["name_bytes"]);
    let bytes = [&4u64.to_le_bytes()[..], b"{\"\xff\"", b"12345678"].concat();
    same(&open_bytes("a.safetensors", &bytes).unwrap_err(), INVALID, "JSON-UTF8", &[]);
}

fn index(map: &[(&str, &str)]) -> String {
    let entries: Vec<String> =
        map.iter().map(|(tensor, file)| format!("{tensor:?}:{}", serde_json::json!(file))).collect();
    format!("{{\"metadata\":{{\"total_size\":4}},\"weight_map\":{{{}}}}}", entries.join(","))
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn an_index_and_its_files_tell_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    put(here, "one.safetensors", &vectors(&[("a", &[1, 2])]));
    put(here, "two.safetensors", &vectors(&[("b", &[3]), ("c", &[4])]));
    let set = |map: &[(&str, &str)]| put(here, INDEX, index(map).as_bytes());
    let good = [("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "two.safetensors")];
    let path = set(&good);
    for asked in [here, &path, &here.join("two.safetensors")] {
        let c = open(asked).unwrap();
        assert_eq!((c.tensors().len(), c.files.len(), &*c.path), (3, 2, asked));
        assert!(c.warnings.is_empty(), "{:?}", c.warnings);
        assert_eq!(c.get("c").unwrap().tensor.as_ref().unwrap().to_vec::<u8>().unwrap(), [4]);
    }
    let fail = |map: &[(&str, &str)], code: &str, texts: &[&str]| {
        set(map);
        refused(here, INVALID, code, texts);
    };
    fail(
        &[good[0], ("b", "three.safetensors")],
        "SAFETENSORS-MISSING",
        &["weight_map.\"b\"", "three.safetensors"],
    );
    fail(&good[..2], "SAFETENSORS-INDEX", &["\"c\"", "does not name"]);
    fail(
        &[good[0], good[1], good[2], ("d", "two.safetensors")],
        "SAFETENSORS-INDEX",
        &["weight_map.\"d\"", "does not hold"],
    );
    fail(&[("a", "two.safetensors"), good[1], good[2]], "SAFETENSORS-INDEX", &["weight_map.\"a\""]);
    put(here, "three.safetensors", &vectors(&[("a", &[1, 2])]));
    fail(
        &[good[0], good[1], good[2], ("d", "three.safetensors")],
        "SAFETENSORS-INDEX",
        &["\"a\"", "two files"],
    );
    put(here, INDEX, br#"{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}"#);
    refused(here, INVALID, "JSON-DUPLICATE", &["\"weight_map\".\"a\"", INDEX]);
    put(here, INDEX, br#"{"weights":{}, "x": 1}"#);
    refused(here, INVALID, "SAFETENSORS-INDEX", &["weight_map"]);
    put(here, INDEX, br#"{"weight_map":{"a":["one.safetensors"]}}"#);
    refused(here, INVALID, "JSON-SYNTAX", &["\"weight_map\".\"a\""]);
    put(here, INDEX, index(&good).replace(":4}", ":5}").as_bytes());
    assert!(open(here).unwrap().warnings[0].contains("promises 5 bytes"));
}

#[test]
fn an_index_cannot_name_what_lies_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("repo/snapshots/rev");
    fs::create_dir_all(&here).unwrap();
    // Each of these files could be read, if it were opened.
    let good = vectors(&[("a", &[1, 2, 3, 4])]);
    let outside = put(dir.path(), "outside.safetensors", &good);
    put(&dir.path().join("repo/snapshots"), "up.safetensors", &good);
    put(&here, ".hidden.safetensors", &good);
    put(&here, "sp ace.safetensors", &good);
    fs::create_dir(here.join("sub")).unwrap();
    fs::create_dir(here.join("folder.safetensors")).unwrap();
    std::os::unix::fs::symlink(&outside, here.join("link.safetensors")).unwrap();
    std::os::unix::fs::symlink(dir.path(), here.join("linked")).unwrap();
    std::os::unix::fs::symlink("gone", here.join("broken.safetensors")).unwrap();
    let pipe = Command::new("mkfifo").arg(here.join("pipe.safetensors")).status().unwrap();
    assert!(pipe.success());
    let absolute = outside.to_string_lossy().into_owned();
    for (name, code) in [
        ("../up.safetensors", "SAFETENSORS-NAME"),
        ("../../../outside.safetensors", "SAFETENSORS-NAME"),
        ("sub/../../up.safetensors", "SAFETENSORS-NAME"),
        (&*absolute, "SAFETENSORS-NAME"),
        ("/etc/passwd", "SAFETENSORS-NAME"),
        ("a\0.safetensors", "SAFETENSORS-NAME"),
        ("", "SAFETENSORS-NAME"),
        (".", "SAFETENSORS-NAME"),
        ("C:\\x.safetensors", "SAFETENSORS-NAME"),
        ("https://example.org/x.safetensors", "SAFETENSORS-NAME"),
        (".hidden.safetensors", "SAFETENSORS-NAME"),
        ("sp ace.safetensors", "SAFETENSORS-NAME"),
        ("link.safetensors", "SAFETENSORS-LINK"),
        ("linked/outside.safetensors", "SAFETENSORS-LINK"),
        ("broken.safetensors", "SAFETENSORS-LINK"),
        ("folder.safetensors", "SAFETENSORS-TYPE"),
        ("pipe.safetensors", "SAFETENSORS-TYPE"),
        ("none.safetensors", "SAFETENSORS-MISSING"),
    ] {
        put(&here, INDEX, index(&[("a", name)]).as_bytes());
        refused(&here, INVALID, code, &["weight_map.\"a\""]);
    }
    // The cache of the hub links to blobs by hash, which is where a person's path leads as well.
    let hash = "0123456789abcdef0123456789abcdef01234567";
    fs::create_dir(dir.path().join("repo/blobs")).unwrap();
    put(&dir.path().join("repo/blobs"), hash, &good);
    fs::remove_file(here.join("link.safetensors")).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{hash}"), here.join("link.safetensors")).unwrap();
    put(&here, INDEX, index(&[("a", "link.safetensors")]).as_bytes());
    assert_eq!(open(&here).unwrap().parameters(), 4);
    for target in
        [format!("../../blobs/../blobs/{hash}"), "../../blobs/../../../outside.safetensors".to_string()]
    {
        fs::remove_file(here.join("link.safetensors")).unwrap();
        std::os::unix::fs::symlink(target, here.join("link.safetensors")).unwrap();
        refused(&here, INVALID, "SAFETENSORS-LINK", &["link.safetensors"]);
    }
    fs::remove_file(here.join("link.safetensors")).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{hash}"), here.join("link.safetensors")).unwrap();
    fs::remove_file(dir.path().join("repo/blobs").join(hash)).unwrap();
    std::os::unix::fs::symlink(&outside, dir.path().join("repo/blobs").join(hash)).unwrap();
    refused(&here, INVALID, "SAFETENSORS-LINK", &["link.safetensors"]);
}

#[test]
fn other_versions_and_orders_of_gguf_are_named() {
    let small = Gguf::small();
    for (version, kind, code, texts) in [
        (0, INVALID, "GGUF-VERSION", &["version"][..]),
        (1, Kind::Unsupported, "GGUF-VERSION", &["found 1", "2 or 3"]),
        (4, Kind::Unsupported, "GGUF-VERSION", &["found 4"]),
        (3u32.swap_bytes(), Kind::Unsupported, "GGUF-ENDIAN", &["big-endian file?"]),
    ] {
        gguf(&Gguf { version, ..small.clone() }, kind, code, texts);
    }
    gguf(&Gguf { magic: *b"FUGG", ..small.clone() }, Kind::Unsupported, "GGUF-ENDIAN", &["big-endian"]);
    gguf(&Gguf { magic: *b"\xfeGGU", ..small.clone() }, INVALID, "GGUF-MAGIC", &[]);
    assert!(open_bytes("a.gguf", &Gguf { version: 2, ..small }.bytes()).is_ok());
    let split = Gguf::small().entry("split.count", 2, &3u16.to_le_bytes());
    gguf(&split, Kind::Unsupported, "GGUF-SPLIT", &["split.count", "gguf-split"]);
}

#[test]
fn gguf_counts_are_checked_against_the_bytes_that_are_left() {
    let small = Gguf::small();
    for count in [u64::MAX, 1 << 62, 1_000_000_000, 50] {
        let file = Gguf { counts: (Some(count), None), ..small.clone() };
        gguf(
            &file,
            INVALID,
            "GGUF-SHORT",
            &["tensor_count", &format!("count {count} needs at least"), "left"],
        );
        let file = Gguf { counts: (None, Some(count)), ..small.clone() };
        gguf(&file, INVALID, "GGUF-SHORT", &["metadata_kv_count", &count.to_string(), "left"]);
    }
    // One more than there are: the next bytes are no entry.
    let more = Gguf { counts: (None, Some(4)), ..small.clone() };
    assert_eq!(open_bytes("a.gguf", &more.bytes()).unwrap_err().kind(), INVALID);
    let few = Limits { tensors: 1, ..Limits::default() };
    let dir = tempfile::tempdir().unwrap();
    let e = formats::checkpoint(&put(dir.path(), "a.gguf", &small.bytes()), &few).unwrap_err();
    same(&e, Kind::Limit, "LIMIT", &["tensors"]);
}

#[test]
fn gguf_values_are_bounded() {
    let entry = |kind: u32, value: &[u8]| Gguf::small().entry("evil.key", kind, value);
    let long = |n: u64| n.to_le_bytes().to_vec();
    let head = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let field = "metadata[3] \"evil.key\"";
    gguf(&entry(8, &long((1 << 30) - 1)), INVALID, "GGUF-SHORT", &[field, "longer than the file"]);
    gguf(&entry(8, &long(u64::MAX)), INVALID, "GGUF-SHORT", &[field]);
    gguf(&entry(9, &head(0, 1_000_000_000)), INVALID, "GGUF-SHORT", &[field, "array of uint8"]);
    gguf(&entry(9, &head(12, u64::MAX)), INVALID, "GGUF-SHORT", &[field]);
    gguf(&entry(9, &head(13, 1)), INVALID, "GGUF-VALUE", &[field, "found 13"]);
    gguf(&entry(13, &[]), INVALID, "GGUF-VALUE", &[field, "unknown type"]);
    gguf(&entry(7, &[2]), INVALID, "GGUF-VALUE", &[field, "0 or 1"]);
    gguf(&entry(9, &array(7, &[vec![1], vec![9]])), INVALID, "GGUF-VALUE", &[field]);
    let deep = head(9, 1).repeat(100_000);
    gguf(&entry(9, &deep), Kind::Limit, "GGUF-DEPTH", &[field, "8"]);
    gguf(&entry(8, &string(vec![b'x'; 17 << 20])), Kind::Limit, "LIMIT", &[field, "text_bytes"]);
    gguf(
        &Gguf::small().entry("k".repeat(5000), 7, &[1]),
        Kind::Limit,
        "LIMIT",
        &["metadata[3]", "name_bytes"],
    );
    gguf(&Gguf::small().entry(b"\xff\xfe", 7, &[1]), INVALID, "GGUF-NAME", &["metadata[3]", "UTF-8"]);
    let twice = entry(7, &[1]).entry("evil.key", 7, &[1]);
    gguf(&twice, INVALID, "GGUF-DUPLICATE", &["metadata[4] \"evil.key\""]);
    let few = Limits { items: 100, ..Limits::default() };
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "a.gguf", &entry(9, &array(0, &vec![vec![1]; 101])).bytes());
    let e = formats::checkpoint(&path, &few).unwrap_err();
    same(&e, Kind::Limit, "LIMIT", &[field, "items"]);
}

#[test]
fn gguf_alignment_is_a_power_of_two_given_once() {
    let key = "general.alignment";
    for n in [0u32, 3, 33, 1 << 31] {
        let file = Gguf::small().entry(key, 4, &n.to_le_bytes());
        gguf(&file, INVALID, "GGUF-ALIGNMENT", &[key, &format!("found {n}")]);
    }
    gguf(&Gguf::small().entry(key, 10, &32u64.to_le_bytes()), INVALID, "GGUF-ALIGNMENT", &[key, "uint64"]);
    gguf(&Gguf::small().entry(key, 8, &string("32")), INVALID, "GGUF-ALIGNMENT", &[key, "string"]);
    let value = 32u32.to_le_bytes();
    gguf(&Gguf::small().entry(key, 4, &value).entry(key, 4, &value), INVALID, "GGUF-DUPLICATE", &[key]);
    let wide = Gguf { alignment: 128, ..Gguf::new() }
        .entry(key, 4, &128u32.to_le_bytes())
        .with("a", &[2], 0, &[1; 8])
        .with("b", &[2], 0, &[2; 8]);
    let c = open_bytes("a.gguf", &wide.bytes()).unwrap();
    assert_eq!(c.get("b").unwrap().tensor.as_ref().unwrap().region().unwrap().offset() % 128, 0);
    let narrow = wide.info("c", &[2], 0, 160);
    gguf(&narrow, INVALID, "GGUF-ALIGNMENT", &["tensors[2](\"c\").offset", "multiples of 128"]);
}

#[test]
fn gguf_shapes_are_checked() {
    let info = |dims: &[u64], kind: u32| Gguf::small().info("evil", dims, kind, 128);
    gguf(&info(&[1; 5], 0), INVALID, "GGUF-DIMS", &["tensors[2](\"evil\").n_dims", "found 5"]);
    let mut wild = info(&[1], 0);
    let at = string("evil").len();
    wild.tensors[2][at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    gguf(&wild, INVALID, "GGUF-DIMS", &["n_dims", "4294967295"]);
    for dims in
        [&[4398046511105, 4194304][..], &[1 << 32, 1 << 32], &[u64::MAX], &[u64::MAX, u64::MAX], &[1 << 63]]
    {
        gguf(&info(dims, 0), INVALID, "GGUF-DIMS", &["tensors[2](\"evil\").ne[", "overflows"]);
    }
    gguf(&info(&[48], 8), INVALID, "GGUF-DIMS", &["ne[0]", "multiples of 32 for Q8_0"]);
    gguf(&info(&[128], 12), INVALID, "GGUF-DIMS", &["multiples of 256 for Q4_K"]);
    // Nothing and a single number are shapes too.
    let odd = Gguf::small().with("empty", &[0, 7], 0, &[]).with("scalar", &[], 0, &[0, 0, 128, 63]);
    let c = open_bytes("a.gguf", &odd.bytes()).unwrap();
    assert_eq!((&c.get("empty").unwrap().shape[..], c.get("empty").unwrap().bytes), (&[7, 0][..], 0));
    assert_eq!(c.get("scalar").unwrap().tensor.as_ref().unwrap().to_vec::<f32>().unwrap(), [1.0]);
}

#[test]
fn gguf_tensors_lie_one_behind_the_other() {
    let small = Gguf::small();
    let end = small.data.len() as u64;
    let at = |offset: u64| small.clone().info("evil", &[8], 0, offset);
    let field = "tensors[2](\"evil\").offset";
    gguf(&at(end.next_multiple_of(32) + 320), INVALID, "GGUF-RANGE", &[field]);
    gguf(&at(u64::MAX - 31), INVALID, "GGUF-RANGE", &[field, "outside the file"]);
    gguf(&at(33), INVALID, "GGUF-ALIGNMENT", &[field, "multiples of 32"]);
    gguf(&at(32), INVALID, "GGUF-OVERLAP", &["overlaps", "\"blk.0.w\" ends"]);
    gguf(&at(96), INVALID, "GGUF-OVERLAP", &["overlaps"]);
    let past = small.clone().info("evil", &[1 << 40], 0, 128);
    gguf(&past, INVALID, "GGUF-RANGE", &[field]);
    let mut holed = small.clone();
    holed.data.resize(512, 7);
    gguf(&holed, INVALID, "GGUF-GAP", &["bytes not covered by any tensor: 108..512"]);
    gguf(&holed.info("evil", &[8], 0, 480), INVALID, "GGUF-GAP", &[field, "108..480"]);
    let guest = [Gguf::small().bytes(), vec![b'P'; 64]].concat();
    same(&open_bytes("a.gguf", &guest).unwrap_err(), INVALID, "GGUF-GAP", &[]);
    // The last tensor may be padded.
    let mut padded = small.clone();
    padded.data.resize(128, 0);
    assert!(open_bytes("a.gguf", &padded.bytes()).is_ok());
    let twice = small.clone().with("norm", &[8], 0, &[0; 32]);
    gguf(&twice, INVALID, "GGUF-DUPLICATE", &["tensors[2](\"norm\")", "tensors[1] has it too"]);
}

#[test]
fn unknown_gguf_types_are_inspected_and_named_when_they_are_wanted() {
    let file = Gguf::small().with("odd", &[64], 99, &[5; 40]).with("old", &[32], 31, &[5; 18]).with(
        "end",
        &[2],
        0,
        &[0; 8],
    );
    let c = open_bytes("a.gguf", &file.bytes()).unwrap();
    let (odd, old) = (c.get("odd").unwrap(), c.get("old").unwrap());
    assert_eq!((&*odd.encoding, &odd.shape[..], odd.tensor.is_none()), ("type 99", &[64][..], true));
    assert_eq!((&*old.encoding, old.tensor.is_none()), ("Q4_0_4_4", true));
    assert_eq!(c.warnings.len(), 2, "{:?}", c.warnings);
    let e = odd.tensor().unwrap_err();
    same(&e, Kind::Unsupported, "ENCODING", &["\"odd\"", "type 99"]);
    assert_eq!(c.get("norm").unwrap().tensor().unwrap().to_vec::<f32>().unwrap(), [1., 2., 3.]);
    // Their place is checked all the same.
    gguf(&Gguf::small().info("odd", &[64], 99, 33), INVALID, "GGUF-ALIGNMENT", &["odd"]);
    gguf(&Gguf::small().info("odd", &[64], 99, 4096), INVALID, "GGUF-RANGE", &["odd"]);
    gguf(&Gguf::small().info("odd", &[64], 99, 32), INVALID, "GGUF-OVERLAP", &[]);
}

#[test]
fn many_names_take_linear_time() {
    let mut file = Gguf::new();
    for i in 0..90_000 {
        file = file.entry(format!("general.duplicate.almost.{i:06}"), 7, &[1]);
    }
    for i in 0..100_000 {
        file = file.info(format!("blk.almost.the.same.{i:06}"), &[0], 0, 0);
    }
    let start = Instant::now();
    let c = open_bytes("many.gguf", &file.bytes()).unwrap();
    println!("190000 names in {:?}", start.elapsed());
    assert_eq!((c.metadata.entries().len(), c.tensors().len()), (90_000, 100_000));
    let over = file.entry("a", 7, &[1]);
    let over = Gguf { entries: over.entries.iter().cycle().take(100_001).cloned().collect(), ..over };
    gguf(&over, Kind::Limit, "LIMIT", &["metadata_kv_count", "100001"]);
}

#[test]
fn names_with_control_characters_stay_inert() {
    for evil in [
        "\u{1b}[31mred",
        "\u{1b}]8;;http://x\u{1b}\\link",
        "\u{1b}]52;c;Y2FuYXJ5\u{7}",
        "\u{9d}52;c;x\u{9c}",
        "a\rb",
        "a\nb",
        "\u{202e}reversed",
        "\u{2066}isolate",
    ] {
        for file in [
            Gguf::small().info(evil, &[8], 0, 7),
            Gguf::small().entry(evil, 7, &[9]),
            Gguf::small().info(evil, &[0], 0, 0).info(evil, &[0], 0, 0),
        ] {
            let e = open_bytes("evil.gguf", &file.bytes()).unwrap_err();
            let json = serde_json::to_string(&e).unwrap();
            for text in [e.to_string(), json] {
                let bad = |c: char| {
                    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
                };
                assert!(!text.chars().any(bad), "{text:?}");
            }
        }
        let header =
            entries(&[("x", "U8", "[2]", 0, 1)]).replace("\"x\"", &serde_json::json!(evil).to_string());
        let e = open_bytes("evil.safetensors", &safetensors(&header, &[0])).unwrap_err();
        assert!(!e.to_string().chars().any(char::is_control), "{e}");
    }
    gguf(
        &Gguf::small().info("n".repeat(1 << 20), &[0], 0, 0),
        Kind::Limit,
        "LIMIT",
        &["tensors[2]", "name_bytes"],
    );
}

#[test]
fn templates_are_text() {
    let template = "{% for i in range(10**12) %}{{ ''.__class__.__mro__[1].__subclasses__() }}{% endfor %}";
    let c =
        open_bytes("a.gguf", &Gguf::small().entry("tokenizer.chat_template", 8, &string(template)).bytes());
    assert_eq!(c.unwrap().metadata.text("tokenizer.chat_template").unwrap(), Some(template));
}

#[test]
fn configurations_are_read_with_care() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    put(here, "model.safetensors", &vectors(&[("a", &[1])]));
    assert!(open(here).unwrap().config.is_none());
    let set = |text: &str| put(here, "config.json", text.as_bytes());
    set(r#"{"hidden_size": 8, "auto_map": {"AutoModel": "evil.Model"}}"#);
    let c = open(here).unwrap();
    assert_eq!(c.config.as_ref().unwrap()["hidden_size"], 8);
    assert!(c.warnings.iter().any(|w| w.contains("auto_map") && w.contains("never run")), "{:?}", c.warnings);
    for (text, code, field) in [
        (r#"{"a": NaN}"#, "JSON-SYNTAX", "\"a\""),
        (r#"{"a": {"b": [1, 1e999]}}"#, "JSON-NUMBER", "\"a\".\"b\"[1]"),
        (r#"{"hidden_size": 8, "hidden_size": 16}"#, "JSON-DUPLICATE", "hidden_size"),
        ("[1, 2, 3]", "CONFIG", "object"),
        ("", "JSON-SYNTAX", "config.json"),
    ] {
        set(text);
        refused(here, INVALID, code, &[field, "config.json"]);
    }
    set(&format!("{{\"a\":{}", "[".repeat(1 << 20)));
    refused(here, Kind::Limit, "JSON-DEPTH", &["config.json"]);
    set(&" ".repeat(17 << 20));
    refused(here, Kind::Limit, "LIMIT", &["config.json", "text_bytes"]);
    fs::remove_file(here.join("config.json")).unwrap();
    std::os::unix::fs::symlink("gone", here.join("config.json")).unwrap();
    assert!(open(here).is_err());
}

#[test]
fn what_is_no_checkpoint_is_named_for_what_it_is() {
    let pad = |bytes: &[u8]| [bytes, &[7; 64]].concat();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for name in ["model.safetensors", "model.gguf"] {
        for (bytes, kind, code, text) in [
            (pad(b"\x80\x04\x95"), Kind::Unsupported, "FORMAT-PICKLE", "never loaded"),
            (pad(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"), Kind::Unsupported, "FORMAT-PICKLE", "never loaded"),
            (pad(b"PK\x03\x04"), INVALID, "FORMAT-ZIP", "never unpacked"),
            (lfs.as_bytes().to_vec(), INVALID, "FORMAT-LFS", "git lfs pull"),
            (b"<!DOCTYPE html><html><head>".to_vec(), INVALID, "FORMAT-HTML", "web page"),
            (pad(&[0x1f, 0x8b, 8]), INVALID, "FORMAT-GZIP", "gunzip"),
            (vec![0; 64], INVALID, "FORMAT-ZEROS", "zero bytes"),
            (pad(b"\x7fELF"), INVALID, "FORMAT-ELF", "program"),
            (b"just some words of text, nothing else".to_vec(), INVALID, "FORMAT-TEXT", "text"),
            (b"{\"model_type\": \"llama\"}".to_vec(), INVALID, "FORMAT-JSON", "config.json"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = put(dir.path(), name, &bytes);
            refused(&path, kind, code, &[text, name]);
            // A directory leads to the same file.
            refused(dir.path(), kind, code, &[text]);
        }
    }
}

#[test]
fn directories_without_one_checkpoint_say_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    refused(here, INVALID, "CHECKPOINT-NONE", &["model.safetensors"]);
    put(here, "config.json", b"{}");
    put(here, "model.onnx", &[8; 40]);
    refused(here, INVALID, "CHECKPOINT-ONNX", &["model.onnx"]);
    put(here, "pytorch_model.bin", b"\x80\x02");
    refused(here, Kind::Unsupported, "FORMAT-PICKLE", &["pytorch_model.bin", "never loaded"]);
    put(here, "a.gguf", &Gguf::small().bytes());
    assert_eq!(open(here).unwrap().format, "gguf");
    put(here, "b.gguf", &Gguf::small().bytes());
    refused(here, INVALID, "CHECKPOINT-SEVERAL", &["a.gguf, b.gguf"]);
    put(here, "model.safetensors", &vectors(&[("a", &[1])]));
    assert_eq!(open(here).unwrap().format, "safetensors");
    refused(&here.join("gone"), INVALID, "IO", &["check the path"]);
}

#[test]
fn odd_files_never_block() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "model.gguf"] {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        refused(&path, INVALID, "CHECKPOINT-NONE", &[]);
        fs::remove_dir(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(&path, INVALID, "FILE-TYPE", &["a pipe"]);
        if name == "model.safetensors" {
            refused(dir.path(), INVALID, "FILE-TYPE", &["a pipe"]);
        }
        fs::remove_file(&path).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        refused(&path, INVALID, "FILE-TYPE", &["a regular file is needed"]);
        drop(socket);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(&path, INVALID, "FILE-TYPE", &["a device"]);
        fs::remove_file(&path).unwrap();
        // A tebibyte of nothing behind a small header.
        let bytes = if name.ends_with("gguf") { Gguf::small().bytes() } else { vectors(&[("a", &[1; 9])]) };
        put(dir.path(), name, &bytes);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let code = if name.ends_with("gguf") { "GGUF-GAP" } else { "SAFETENSORS-GAP" };
        refused(&path, INVALID, code, &["bytes not covered by any tensor"]);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn odd_names_are_shown_escaped() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(255 - 5) + ".gguf";
    for name in [&b"new\nline.gguf"[..], b"not\xff\xfeutf8.gguf", b"esc\x1b[31m.gguf", long.as_bytes()] {
        let name = std::ffi::OsStr::from_bytes(name);
        let path = put(dir.path(), name, &Gguf::small().bytes());
        assert_eq!(open(&path).unwrap().parameters(), 67);
        fs::write(&path, b"GGUF").unwrap();
        let e = open(&path).unwrap_err();
        assert!(!e.to_string().chars().any(char::is_control), "{e:?}");
    }
}

#[test]
fn files_that_may_not_be_read_are_storage_errors() {
    let path = Path::new("/proc/self/mem");
    assert_eq!(open(path).unwrap_err().kind(), INVALID);
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "a.gguf", &Gguf::small().bytes());
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o000);
    fs::set_permissions(&path, mode).unwrap();
    match open(&path) {
        // Root may read everything.
        Ok(_) => assert!(rustix::process::geteuid().is_root()),
        Err(e) => same(&e, Kind::Storage, "IO", &["check the permissions"]),
    }
}

#[test]
fn a_checkpoint_that_changes_while_it_is_open_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::small().bytes();
    let tensors = vectors(&[("a", &[1; 64])]);
    for (name, bytes) in [("a.gguf", &gguf), ("a.safetensors", &tensors)] {
        for round in 0..100 {
            let path = put(dir.path(), name, bytes);
            let c = open(&path).unwrap();
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            match round % 3 {
                0 => file.set_len(bytes.len() as u64 - 20).unwrap(),
                1 => file.set_len(bytes.len() as u64 + 20).unwrap(),
                // The clock of file times is coarse.
                _ => file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap(),
            }
            for stored in c.tensors() {
                let tensor = stored.tensor().unwrap();
                let e = tensor.data().unwrap_err();
                same(&e, Kind::Integrity, "FILE-CHANGED", &["changed while it was read", name]);
                assert_eq!(tensor.write_raw(&mut Vec::new()).unwrap_err().kind(), Kind::Integrity);
            }
        }
        // A file that takes the place of the old one leaves that readable.
        let path = put(dir.path(), name, bytes);
        let c = open(&path).unwrap();
        let next = put(dir.path(), "next", &[0; 8]);
        fs::rename(next, &path).unwrap();
        assert!(c.tensors()[0].tensor().unwrap().data().is_ok());
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_program_refuses_to_inspect_or_to_quantise_them() {
    let dir = tempfile::tempdir().unwrap();
    let wild = Gguf::small().info("evil", &[8], 0, u64::MAX - 31).bytes();
    let unknown = safetensors(&entries(&[("a", "Q9", "[8]", 0, 8)]), &[0; 8]);
    let long = Gguf::small().entry("k".repeat(5000), 7, &[1]).bytes();
    let length = [&u64::MAX.to_le_bytes()[..], b"{\"a\": 1}"].concat();
    for (name, bytes, code, texts) in [
        ("evil.gguf", wild, 3, ["GGUF-RANGE", "tensors[2](\"evil\").offset"]),
        ("evil.safetensors", unknown, 4, ["SAFETENSORS-DTYPE", "\"a\".dtype"]),
        ("long.gguf", long, 5, ["name_bytes", "metadata[3]"]),
        ("length.safetensors", length, 3, ["SAFETENSORS-HEADER", "header length"]),
        (
            "pickle.safetensors",
            [&b"\x80\x04\x95"[..], &[7; 64]].concat(),
            4,
            ["FORMAT-PICKLE", "never loaded"],
        ),
    ] {
        let path = put(dir.path(), name, &bytes);
        for command in [&["inspect"][..], &["quantize", "--scheme", "dynamic-int8"]] {
            let out = Command::new(env!("CARGO_BIN_EXE_tinsmith"))
                .args(command)
                .arg(&path)
                .current_dir(dir.path())
                .env("TINSMITH_HOME", dir.path().join("home"))
                .output()
                .unwrap();
            let text = String::from_utf8(out.stderr).unwrap();
            assert_eq!(out.status.code(), Some(code), "{command:?} {name}: {text}");
            for wanted in texts.iter().chain([&name]) {
                assert!(text.contains(wanted), "{command:?}: \"{text}\" lacks \"{wanted}\"");
            }
            assert!(!text.contains("panicked"), "{text}");
            let left: Vec<String> = fs::read_dir(dir.path())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| n.ends_with(".onnx"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

/// Runs [`in_child`] in a process of its own and returns what it printed: the outcome and its peak
/// memory in KiB above the start.
fn measured(path: &Path) -> (String, u64) {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::hostile::in_child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("CHECKPOINT_FILE", path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line =
        text.lines().find_map(|l| l.split("outcome=").nth(1)).unwrap_or_else(|| panic!("{text}\n{out:?}"));
    let (outcome, peak) = line.split_once(" peak=").unwrap();
    (outcome.to_string(), peak.trim().parse().unwrap())
}

fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
#[ignore = "runs in a process of its own"]
fn in_child() {
    let Some(path) = std::env::var_os("CHECKPOINT_FILE") else { return };
    let before = status("VmRSS");
    let outcome = match formats::checkpoint(Path::new(&path), &Limits::default()) {
        Ok(c) => format!("ok,{}", c.parameters()),
        Err(e) => e.code().to_string(),
    };
    println!("outcome={outcome} peak={}", status("VmHWM").saturating_sub(before));
}

#[test]
fn bombs_and_large_checkpoints_stay_within_memory() {
    let dir = tempfile::tempdir().unwrap();
    let head = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let bomb = Gguf::small().entry("a", 9, &head(0, 1_000_000_000)).bytes();
    let length = [&u64::MAX.to_le_bytes()[..], b"{\"a\": 1}"].concat();
    for (name, bytes, code, most) in [
        ("array.gguf", bomb, "GGUF-SHORT", 20),
        ("string.gguf", Gguf::small().entry("a", 8, &u64::MAX.to_le_bytes()).bytes(), "GGUF-SHORT", 20),
        ("counts.gguf", Gguf { counts: (Some(u64::MAX), None), ..Gguf::small() }.bytes(), "GGUF-SHORT", 20),
        ("length.safetensors", length, "SAFETENSORS-HEADER", 20),
        // The header is 50 MB, so that much and no multiple of it.
        (
            "deep.safetensors",
            safetensors(&"{\"a\":{\"x\":[[[[[[".replace('[', &"[".repeat(8_000_000)), &[]),
            "JSON-DEPTH",
            110,
        ),
    ] {
        let (outcome, peak) = measured(&put(dir.path(), name, &bytes));
        println!("{name}: {outcome}, {peak} KiB above the start for {} KiB", bytes.len() >> 10);
        assert_eq!(outcome, code);
        assert!(peak < most << 10, "{name}: {peak} KiB");
    }
    // 6 GiB of weights without a byte on disk.
    let size = 6u64 << 30;
    let path = put(
        dir.path(),
        "large.safetensors",
        &safetensors(&entries(&[("a", "F32", &format!("[{}]", size / 4), 0, size)]), &[]),
    );
    let start = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(start + size).unwrap();
    let (outcome, peak) = measured(&path);
    assert_eq!(outcome, format!("ok,{}", size / 4));
    assert!(peak < 20 << 10, "{peak} KiB");
}
