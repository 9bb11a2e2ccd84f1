//! Bad model files: every one is refused with its kind, code, place and next step, quickly and in little
//! memory. The files are made here, byte by byte.

use crate::protobuf::{Msg, model, node, sparse_model, tensor, tensor_f32, value, varint};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tinsmith::analysis::{Options, require_known, summarize_opened};
use tinsmith::error::{Error, Kind};
use tinsmith::formats::{self, Limits, Opened};

/// Loads bytes from a file; a panic or more than two seconds fail the test.
fn load(bytes: &[u8]) -> Result<Opened, Error> {
    load_with(bytes, &Limits::default())
}

fn load_with(bytes: &[u8], limits: &Limits) -> Result<Opened, Error> {
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());
    DIR.with(|dir| {
        let path = dir.path().join("evil.onnx");
        fs::write(&path, bytes).unwrap();
        load_path(&path, limits)
    })
}

fn load_path(path: &Path, limits: &Limits) -> Result<Opened, Error> {
    let start = Instant::now();
    let result = formats::load_with(path, limits);
    assert!(start.elapsed() < Duration::from_secs(2), "{path:?} took {:?}", start.elapsed());
    if let Err(e) = &result {
        let text = e.to_string();
        assert!(!text.chars().any(|c| c != '\n' && c.is_control()), "{text:?}");
        assert!(
            text.contains("evil") || text.contains(&*path.file_name().unwrap().to_string_lossy()),
            "{text}"
        );
        assert_ne!(e.kind(), Kind::Internal, "{text}");
    }
    result
}

#[track_caller]
fn refused(bytes: &[u8], kind: Kind, code: &str, text: &str) {
    match load(bytes) {
        Ok(_) => panic!("accepted, expected {code}"),
        Err(e) => same(&e, kind, code, text),
    }
}

#[track_caller]
fn same(e: &Error, kind: Kind, code: &str, text: &str) {
    assert_eq!((e.kind(), e.code()), (kind, code), "{e}");
    assert!(e.to_string().contains(text), "\"{e}\" lacks \"{text}\"");
}

/// x -> Add(w) -> Relu -> y with the given graph fields added.
fn with(extra: impl FnOnce(Msg) -> Msg) -> Vec<u8> {
    let graph = Msg::new()
        .msg(1, node("Add", "add", &["x", "w"], &["a"]))
        .msg(1, node("Relu", "relu", &["a"], &["y"]))
        .text(2, "g")
        .msg(5, tensor_f32("w", &[4], &[1., 2., 3., 4.]))
        .msg(11, value("x", &[-1, 4]))
        .msg(12, value("y", &[-1, 4]));
    model(extra(graph).sorted(), 17).0
}

fn good() -> Vec<u8> {
    with(|g| g)
}

/// The graph whose only fault is in this initialiser.
fn with_weight(weight: Msg) -> Vec<u8> {
    with(|g| g.msg(5, weight))
}

#[test]
fn files_too_short_for_a_header_say_so() {
    let bytes = good();
    refused(&[], Kind::Invalid, "FORMAT-EMPTY", "the file is empty");
    for n in [1, 7, 8, 15] {
        refused(&bytes[..n], Kind::Invalid, "FORMAT-SHORT", &format!("{n} of 16 bytes"));
    }
}

#[test]
fn every_prefix_is_refused_or_is_a_model() {
    let bytes = with(|g| g.msg(5, tensor("large", 2, &[6000], &[1; 6000])));
    let whole = load(&bytes).unwrap();
    assert_eq!(whole.graph.nodes().len(), 2);
    let lengths = (0..bytes.len()).filter(|n| *n < 400 || *n + 400 > bytes.len() || n % 97 == 0);
    for n in lengths {
        match load(&bytes[..n]) {
            Err(e) => assert_eq!(e.kind(), Kind::Invalid, "prefix {n}: {e}"),
            Ok(_) => panic!("prefix {n} of {} was accepted", bytes.len()),
        }
    }
}

#[test]
fn every_flipped_bit_gives_a_model_or_an_error_in_time() {
    let constant = Msg::new().text(1, "value").msg(5, tensor("", 1, &[1], &[0, 0, 0, 63])).int(20, 4);
    let body =
        Msg::new().msg(1, node("Relu", "inner", &["a"], &["b"])).text(2, "then").msg(12, value("b", &[4]));
    let branch = Msg::new().text(1, "then_branch").msg(6, body).int(20, 5);
    let bytes = with(|g| {
        g.msg(1, node("Constant", "c", &[], &["k"]).msg(5, constant))
            .msg(1, node("If", "if", &["k"], &["q"]).msg(5, branch))
            .msg(13, value("a", &[-1, 4]))
            .msg(5, Msg::new().int(1, 2).int(2, 7).bytes(7, &[1, 2]).text(8, "ints"))
    });
    let start = Instant::now();
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let kind = match load(&flipped) {
            Ok(opened) => {
                summarize_opened(&opened, &Options::default()).unwrap();
                let written = formats::encode(&opened.graph).unwrap();
                load(&written)
                    .unwrap_or_else(|e| panic!("bit {bit}: what was read is not written back: {e}"));
                "Ok".to_string()
            }
            Err(e) => {
                assert!(
                    matches!(e.kind(), Kind::Invalid | Kind::Unsupported | Kind::Limit),
                    "bit {bit}: {e}"
                );
                format!("{:?}", e.kind())
            }
        };
        *kinds.entry(kind).or_default() += 1;
    }
    println!("{kinds:?} in {:?}", start.elapsed());
    assert!(kinds["Ok"] > 100 && kinds["Invalid"] > 100, "{kinds:?}");
}

#[test]
fn random_damage_gives_a_model_or_an_error_in_time() {
    use rand::{Rng, SeedableRng};
    let whole = crate::onnx::rich();
    let rounds = std::env::var("HOSTILE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut accepted = 0;
    for round in 0..rounds {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..6) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.random_range(0..4)],
                2 => drop(bytes.remove(at)),
                3 => bytes.insert(at, random.random()),
                4 => bytes.truncate(at.max(20)),
                _ => {
                    let n = random.random_range(1..40).min(bytes.len() - at);
                    let piece = bytes[at..at + n].to_vec();
                    let to = random.random_range(0..bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        match load(&bytes) {
            Ok(opened) => {
                accepted += 1;
                summarize_opened(&opened, &Options::default()).unwrap();
                let written = formats::encode(&opened.graph).unwrap();
                let again = load(&written).unwrap_or_else(|e| panic!("round {round}: not written back: {e}"));
                assert!(formats::encode(&again.graph).unwrap() == written, "round {round}");
            }
            Err(e) => assert_ne!(e.kind(), Kind::Storage, "round {round}: {e}"),
        }
    }
    println!("{accepted} of {rounds} accepted");
}

#[test]
fn damaged_encoding_is_named_with_its_offset() {
    let head = &[0x08, 8, 0x12, 4, b't', b'e', b's', b't'][..];
    let pad = [0x32, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let cases: [(&[u8], &str); 7] = [
        (&[0x28, 0x80], "ONNX-VARINT"),
        (&[0x28, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], "ONNX-VARINT"),
        (&[0x00, 0x01], "ONNX-FIELD"),
        (&[0x3b], "ONNX-GROUP"),
        (&[0x3c], "ONNX-GROUP"),
        (&[0x3d, 0, 0, 0, 0], "ONNX-WIRE"),
        (&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], "ONNX-LENGTH"),
    ];
    for (tail, code) in cases {
        let bytes = [head, &pad, tail].concat();
        let e = load(&bytes).unwrap_err();
        same(&e, Kind::Invalid, code, "at byte 1");
        assert!(e.to_string().contains("(0x1"), "{e}");
    }
    refused(&[&good()[..], &[0x08, 9]].concat(), Kind::Invalid, "ONNX-TWICE", "ir_version");
}

/// If nodes nested `levels` deep; each level is three messages.
fn nested(levels: usize) -> Vec<u8> {
    let leaf = |name: &str| {
        Msg::new().text(2, "leaf").msg(1, node("Relu", "r", &["x"], &[name])).msg(12, value(name, &[4]))
    };
    let mut body = leaf("o");
    for _ in 0..levels {
        let then = Msg::new().text(1, "then_branch").int(20, 5).msg(6, body);
        body = Msg::new()
            .text(2, "b")
            .msg(1, node("If", "if", &["c"], &["o"]).msg(5, then))
            .msg(12, value("o", &[4]));
    }
    model(body.msg(11, value("x", &[4])).msg(11, value("c", &[1])), 17).0
}

#[test]
fn nesting_is_limited_and_never_overflows_the_stack() {
    // The value types of the leaf go four messages below its graph.
    for levels in [1, 10, 31] {
        load(&nested(levels)).unwrap();
    }
    refused(&nested(34), Kind::Invalid, "ONNX-DEPTH", "nested too deeply");
    let mut deep: Vec<u8> = Vec::new();
    for i in 0..99_999u32 {
        // Built inside out: attribute.g, node.attribute, graph.node; the length is prepended.
        let tag = [6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2][i as usize % 3];
        let mut length = varint(deep.len() as u64);
        length.reverse();
        deep.extend(length);
        deep.push(tag);
    }
    deep.reverse();
    let bytes = Msg::new().int(1, 8).bytes(7, &deep).0;
    refused(&bytes, Kind::Invalid, "ONNX-DEPTH", "allowed 100");
}

#[test]
fn wide_bombs_are_refused_by_count() {
    let nodes = Msg::new().int(1, 8).bytes(7, &[0x0a, 0].repeat(10_000_000)).0;
    refused(&nodes, Kind::Limit, "LIMIT", "\"nodes\"");
    let strings = Msg::new().int(1, 8).msg(7, Msg::new().bytes(1, &[0x0a, 0].repeat(10_000_000))).0;
    refused(&strings, Kind::Limit, "LIMIT", "TINSMITH_LIMITS=items=");
    let ints = Msg::new().bytes(5, &[&[0x0a, 1, b'k'][..], &[0x40, 1].repeat(10_000_000)].concat());
    refused(&Msg::new().int(1, 8).msg(7, Msg::new().msg(1, ints)).0, Kind::Limit, "LIMIT", "\"items\"");
    let attributes = Msg::new().msg(1, Msg::new().raw(&[0x2a, 0].repeat(10_000_000)));
    refused(&Msg::new().int(1, 8).msg(7, attributes).0, Kind::Limit, "LIMIT", "\"memory_bytes\"");
    let dims = Msg::new().raw(&[0x08, 1].repeat(100)).int(2, 1).text(8, "deep");
    refused(&with_weight(dims), Kind::Limit, "LIMIT", "graph.initializer[1] \"deep\".dims");
}

#[test]
fn a_chain_of_a_hundred_thousand_nodes_is_read() {
    let mut graph = Msg::new();
    for i in 0..100_000 {
        graph = graph.msg(1, node("Relu", "", &[&format!("v{i}")], &[&format!("v{}", i + 1)]));
    }
    let bytes = model(graph.text(2, "g").msg(11, value("v0", &[4])).msg(12, value("v100000", &[4])), 17).0;
    let opened = load(&bytes).unwrap();
    assert_eq!(opened.graph.nodes().len(), 100_000);
    let summary = summarize_opened(&opened, &Options::default()).unwrap();
    assert_eq!(summary.peak_activation_bytes, 32);
    drop(opened);
}

/// A weight whose data is said to lie in another file.
fn external(name: &str, entries: &[(&str, &str)]) -> Msg {
    let entries = entries.iter().map(|(k, v)| Msg::new().text(1, k).text(2, v));
    Msg::new().int(1, 4).int(2, 1).text(8, name).each(13, entries).int(14, 1)
}

#[test]
fn external_data_cannot_name_what_lies_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    fs::write(dir.path().join("data.bin"), [0u8; 16]).unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), [1u8; 16]).unwrap();
    std::os::unix::fs::symlink(secret.path(), dir.path().join("link.bin")).unwrap();
    std::os::unix::fs::symlink(secret.path().parent().unwrap(), dir.path().join("linkdir")).unwrap();
    fs::hard_link(dir.path().join("data.bin"), sub.join("hard.bin")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    let through_dir =
        format!("linkdir/{}", secret.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
    let cases = [
        ("../x", "ONNX-EXTERNAL-NAME"),
        ("/etc/passwd", "ONNX-EXTERNAL-NAME"),
        ("a/../../x", "ONNX-EXTERNAL-NAME"),
        ("C:\\x", "ONNX-EXTERNAL-NAME"),
        ("x\0y", "ONNX-EXTERNAL-NAME"),
        ("", "ONNX-EXTERNAL-NAME"),
        (".", "ONNX-EXTERNAL-NAME"),
        (".hidden", "ONNX-EXTERNAL-NAME"),
        ("a/b/c/d/e", "ONNX-EXTERNAL-NAME"),
        ("/dev/zero", "ONNX-EXTERNAL-NAME"),
        ("/proc/self/environ", "ONNX-EXTERNAL-NAME"),
        ("http://x", "ONNX-EXTERNAL-NAME"),
        ("*/_ORT_MEM_ADDR_/*", "ONNX-EXTERNAL-NAME"),
        ("sub", "ONNX-EXTERNAL-TYPE"),
        ("pipe", "ONNX-EXTERNAL-TYPE"),
        ("none.bin", "ONNX-EXTERNAL-MISSING"),
        ("link.bin", "ONNX-EXTERNAL-LINK"),
        (&through_dir, "ONNX-EXTERNAL-LINK"),
        ("sub/hard.bin", "ONNX-EXTERNAL-LINK"),
    ];
    for (location, code) in cases {
        fs::write(&path, with_weight(external("ext", &[("location", location)]))).unwrap();
        let Err(e) = load_path(&path, &Limits::default()) else { panic!("{location:?} was accepted") };
        // A name that the system made may break the grammar before the link is met.
        assert!(e.code() == code || location == through_dir, "{location:?}: {e}");
        same(&e, Kind::Invalid, e.code(), "graph.initializer[1] \"ext\".external_data.location");
    }
    let limits = Limits { hard_links: true, ..Limits::default() };
    fs::write(&path, with_weight(external("ext", &[("location", "sub/hard.bin")]))).unwrap();
    assert_eq!(load_path(&path, &limits).unwrap().facts.external.len(), 1);
}

#[test]
fn external_data_positions_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    fs::write(dir.path().join("d.bin"), [0u8; 64]).unwrap();
    let check = |weights: Vec<Msg>, kind: Kind, code: &str, text: &str| {
        fs::write(&path, with(|g| g.each(5, weights))).unwrap();
        match load_path(&path, &Limits::default()) {
            Ok(_) => panic!("accepted, expected {code}"),
            Err(e) => same(&e, kind, code, text),
        }
    };
    let at = |name: &str, offset: &str, length: &str| {
        external(name, &[("location", "d.bin"), ("offset", offset), ("length", length)])
    };
    let one = |offset: &str, length: &str, code: &str, text: &str| {
        check(vec![at("ext", offset, length)], Kind::Invalid, code, text);
    };
    one("-4", "16", "ONNX-EXTERNAL-NUMBER", "external_data.offset");
    one("0x10", "16", "ONNX-EXTERNAL-NUMBER", "\"0x10\"");
    one("+1", "16", "ONNX-EXTERNAL-NUMBER", "external_data.offset");
    one("9223372036854775808", "16", "ONNX-EXTERNAL-NUMBER", "external_data.offset");
    one("9223372036854775807", "16", "ONNX-EXTERNAL-RANGE", "allowed 64 bytes");
    one("60", "16", "ONNX-EXTERNAL-RANGE", "60 + 16 bytes");
    one("0", "15", "ONNX-EXTERNAL-LENGTH", "found 15 bytes, allowed 16 bytes");
    check(
        vec![at("one", "0", "16"), at("two", "8", "16")],
        Kind::Invalid,
        "ONNX-EXTERNAL-OVERLAP",
        "of \"one\"",
    );
    let same_region = (0..10_000).map(|i| at(&format!("t{i}"), "0", "16")).collect();
    check(same_region, Kind::Limit, "ONNX-EXTERNAL-AMPLIFIED", "160000 bytes");
    let key = |entries: &[(&str, &str)], text: &str| {
        check(vec![external("ext", entries)], Kind::Invalid, "ONNX-EXTERNAL-KEY", text);
    };
    key(&[("location", "d.bin"), ("__class__", "x")], "__class__");
    key(&[("location", "d.bin"), ("location", "d.bin")], "a key twice");
    let both = external("ext", &[("location", "d.bin")]).bytes(9, &[0; 16]);
    check(vec![both], Kind::Invalid, "ONNX-DATA", "here and in an external file");
    // Tied weights may share a region.
    fs::write(&path, with(|g| g.msg(5, at("one", "0", "16")).msg(5, at("two", "0", "16")))).unwrap();
    let opened = load_path(&path, &Limits::default()).unwrap();
    assert_eq!(opened.facts.external[0].1, 64);
}

#[test]
fn a_link_swapped_in_while_opening_never_leaks_what_it_points_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    let (data, aside) = (dir.path().join("d.bin"), dir.path().join("aside"));
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), b"canary canary ca").unwrap();
    fs::write(&data, [0u8; 16]).unwrap();
    fs::write(&path, with_weight(external("ext", &[("location", "d.bin")]))).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut outcomes = [0; 2];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::os::unix::fs::symlink(secret.path(), &aside).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Exchanges the file and the link, again and again.
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(rustix::fs::CWD, &data, rustix::fs::CWD, &aside, flags);
            }
        });
        for _ in 0..2000 {
            match formats::load(&path) {
                Ok(opened) => {
                    let v = opened.graph.find("ext").unwrap();
                    let values = opened.graph.initializer(v).unwrap().to_f32s().unwrap();
                    assert_eq!(values, [0.0; 4]);
                    outcomes[0] += 1;
                }
                Err(e) => {
                    assert!(matches!(e.kind(), Kind::Invalid | Kind::Integrity), "{e}");
                    outcomes[1] += 1;
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("{outcomes:?} opened and refused");
}

#[test]
fn data_must_match_type_and_shape() {
    let f32s = |dims: &[i64], n: usize| tensor("bad", 1, dims, &vec![0; n]);
    let bad = |t: Msg, code: &str, text: &str| refused(&with_weight(t), Kind::Invalid, code, text);
    bad(f32s(&[3, 4], 47), "ONNX-BYTES", "graph.initializer[1] \"bad\".raw_data");
    bad(f32s(&[3, 4], 49), "ONNX-BYTES", "48 bytes for f32[3, 4]");
    bad(f32s(&[2000, 4], 8000), "ONNX-BYTES", "found 8000 bytes, allowed 32000 bytes");
    bad(f32s(&[-1, 4], 16), "ONNX-DIMS", "found [-1, 4]");
    bad(f32s(&[1 << 40, 1 << 40], 16), "ONNX-DIMS", "overflows");
    bad(f32s(&[i64::MAX], 16), "ONNX-DIMS", "overflows");
    bad(tensor("bad", 0, &[1], &[0]), "ONNX-DTYPE", "data_type");
    refused(&with_weight(tensor("bad", 99, &[1], &[0])), Kind::Unsupported, "ONNX-DTYPE", "found 99");
    let both = tensor("bad", 1, &[1], &[0; 4]).f32(4, 1.0);
    bad(both, "ONNX-DATA", "twice");
    let both = tensor("bad", 1, &[2000], &[0; 8000]).bytes(4, &[0; 8000]);
    bad(both, "ONNX-DATA", "twice");
    let ints = |ty: i64, v: i64| Msg::new().int(1, 1).int(2, ty).text(8, "bad").int(5, v);
    bad(ints(3, 128), "ONNX-VALUE", "-128 to 127 for i8");
    bad(ints(10, 65_536), "ONNX-VALUE", "int32_data");
    bad(ints(1, 1), "ONNX-DATA", "int32_data");
    let few = Msg::new().int(1, 3).int(2, 7).text(8, "bad").bytes(7, &[1, 2]);
    bad(few, "ONNX-BYTES", "found 2 numbers, allowed 3 numbers for i64[3]");
    let many = Msg::new().int(1, 3).int(2, 7).text(8, "bad").bytes(7, &[1; 5000]);
    bad(many, "ONNX-BYTES", "int64_data");
    let huge = Msg::new().int(1, 1 << 50).int(2, 7).text(8, "bad").bytes(7, &[1; 5000]);
    bad(huge, "ONNX-BYTES", "int64_data");
    bad(Msg::new().int(1, 2).int(2, 8).text(8, "bad").bytes(6, b"x"), "ONNX-BYTES", "found 1 strings");
    bad(tensor("bad", 8, &[1], b"x"), "ONNX-BYTES", "string_data");
    bad(tensor_f32("w", &[4], &[0.; 4]), "GRAPH-DUPLICATE", "\"w\"");
    bad(tensor_f32("", &[4], &[0.; 4]), "ONNX-NAME", "graph.initializer[1]");
}

#[test]
fn strings_with_markup_and_control_characters_stay_inert() {
    let text = "<script>\u{1b}]52;c;x\u{7}\u{202e}".as_bytes();
    let strings = Msg::new().int(1, 1).int(2, 8).text(8, "s\u{1b}[2J").bytes(6, text);
    let opened = load(&with_weight(strings)).unwrap();
    let v = opened.graph.find("s\u{1b}[2J").unwrap();
    assert_eq!(opened.graph.initializer(v).unwrap().byte_len(), text.len() as u64);
    assert_eq!(load(&formats::encode(&opened.graph).unwrap()).unwrap().graph.nodes().len(), 2);
    let bad = tensor("evil\u{1b}[31m", 1, &[4], &[0]);
    let e = load(&with_weight(bad)).unwrap_err();
    assert!(e.to_string().contains("evil\\u{1b}[31m"), "{e}");
}

#[test]
fn sparse_initialisers_are_spelled_out_within_limits() {
    let sparse = |dims: &[i64], indices: &[i64]| {
        let raw: Vec<u8> = indices.iter().flat_map(|i| i.to_le_bytes()).collect();
        let values = tensor_f32("sp", &[2], &[5., 7.]);
        let m = Msg::new().msg(1, values).msg(2, tensor("", 7, &[indices.len() as i64], &raw));
        dims.iter().fold(m, |m, d| m.int(3, *d))
    };
    let opened = load(&with(|g| g.msg(15, sparse(&[2, 3], &[1, 5])))).unwrap();
    let v = opened.graph.find("sp").unwrap();
    assert_eq!(opened.graph.initializer(v).unwrap().to_f32s().unwrap(), [0., 5., 0., 0., 0., 7.]);
    assert!(opened.facts.warnings.iter().any(|w| w.contains("sparse")), "{:?}", opened.facts.warnings);
    refused(&with(|g| g.msg(15, sparse(&[2, 3], &[1, 6]))), Kind::Invalid, "ONNX-SPARSE", "indices[1]");
    refused(&with(|g| g.msg(15, sparse(&[2, 3], &[-1, 5]))), Kind::Invalid, "ONNX-SPARSE", "indices[0]");
    refused(&with(|g| g.msg(15, sparse(&[1 << 30, 64], &[1, 5]))), Kind::Limit, "LIMIT", "sparse tensor");
}

#[test]
fn wrong_graphs_are_named_by_node() {
    let bad = |bytes: Vec<u8>, code: &str, text: &str| refused(&bytes, Kind::Invalid, code, text);
    bad(
        with(|g| g.msg(1, node("Relu", "p", &["q2"], &["q1"])).msg(1, node("Relu", "q", &["q1"], &["q2"]))),
        "GRAPH-CYCLE",
        "node \"p\"",
    );
    bad(with(|g| g.msg(1, node("Relu", "lost", &["nowhere"], &["q"]))), "GRAPH-DANGLING", "node \"lost\"");
    bad(with(|g| g.msg(1, node("Relu", "again", &["x"], &["a"]))), "GRAPH-DUPLICATE", "node \"again\"");
    bad(with(|g| g.msg(1, node("Relu", "over", &["x"], &["w"]))), "GRAPH-DUPLICATE", "node \"over\"");
    bad(with(|g| g.msg(11, value("x", &[4]))), "GRAPH-DUPLICATE", "graph.input[1]");
    bad(with(|g| g.msg(12, value("y", &[4]))), "GRAPH-DUPLICATE", "graph.output[1]");
    bad(with(|g| g.msg(12, value("none", &[4]))), "GRAPH-DANGLING", "none");
    bad(with(|g| g.msg(1, node("", "noop", &["x"], &["q"]))), "ONNX-OP", "node \"noop\"");
    let twice = || Msg::new().text(1, "k").int(3, 1).int(20, 2);
    bad(
        with(|g| g.msg(1, node("Foo", "foo", &["x"], &["q"]).msg(5, twice()).msg(5, twice()))),
        "GRAPH-DUPLICATE",
        "attribute \"k\"",
    );
    let body =
        Msg::new().text(2, "b").msg(1, node("Relu", "r", &["missing"], &["o"])).msg(12, value("o", &[4]));
    let branch = Msg::new().text(1, "then_branch").int(20, 5).msg(6, body);
    bad(
        with(|g| g.msg(1, node("If", "branching", &["x"], &["q"]).msg(5, branch))),
        "GRAPH-DANGLING",
        "node \"branching\"",
    );
    let function = |name: &str, calls: &str| {
        Msg::new().text(1, name).text(10, "f").msg(7, Msg::new().text(4, calls).text(7, "f")).text(4, "x")
    };
    let add = |functions: &[Msg]| functions.iter().cloned().fold(Msg(good()), |m, f| m.msg(25, f)).0;
    bad(add(&[function("Self", "Self")]), "ONNX-FUNCTION-CYCLE", "\"f:Self\"");
    bad(add(&[function("A", "B"), function("B", "A")]), "ONNX-FUNCTION-CYCLE", "functions[0]");
    bad(add(&[function("A", "B"), function("A", "C")]), "ONNX-FUNCTION", "two functions");
    assert!(load(&add(&[function("A", "B"), function("B", "C")])).is_ok());
}

#[test]
fn models_without_what_makes_a_model_are_refused() {
    let bad = |m: Msg, code: &str, text: &str| refused(&m.0, Kind::Invalid, code, text);
    let graph =
        || Msg::new().text(2, "g").msg(1, node("Relu", "r", &["x"], &["y"])).msg(11, value("x", &[4]));
    let set = |v: i64| Msg::new().int(2, v);
    bad(Msg::new().int(1, 8).text(2, "producer of nothing").msg(8, set(17)), "ONNX-NO-GRAPH", "graph");
    bad(Msg::new().msg(7, graph()).msg(8, set(17)), "ONNX-IR", "ir_version");
    bad(Msg::new().int(1, 8).msg(7, graph()), "ONNX-OPSET", "opset_import");
    bad(Msg::new().int(1, 8).msg(7, graph()).msg(8, set(0)), "ONNX-OPSET", "opset_import[0]");
    bad(
        Msg::new().int(1, 8).msg(7, graph()).msg(8, set(17)).msg(8, set(18)),
        "ONNX-OPSET",
        "opset_import[1]",
    );
}

#[test]
fn unknown_operators_and_versions_are_listed_and_inspection_still_works() {
    let odd = with(|g| {
        g.msg(1, node("Mystery", "m1", &["y"], &["m"]).text(7, "my.domain"))
            .msg(1, node("Mystery", "m2", &["m"], &["n"]).text(7, "my.domain"))
    });
    let opened = load(&odd).unwrap();
    let summary = summarize_opened(&opened, &Options::default()).unwrap();
    assert_eq!(summary.unknown_ops, [("my.domain:Mystery".to_string(), 2)]);
    assert_eq!(summary.layers.len(), 4);
    let e = require_known(&opened.graph).unwrap_err();
    same(&e, Kind::Unsupported, "OP-UNKNOWN", "my.domain:Mystery (2)");
    assert!(formats::encode(&opened.graph).unwrap() == odd);

    let graph = Msg::new().text(2, "g").msg(1, node("Relu", "r", &["x"], &["y"]));
    let future = model(graph.msg(11, value("x", &[4])).msg(12, value("y", &[4])), 999).0;
    let opened = load(&future).unwrap();
    assert!(opened.facts.warnings[0].contains("999"), "{:?}", opened.facts.warnings);
    same(&require_known(&opened.graph).unwrap_err(), Kind::Unsupported, "OP-UNKNOWN", "ai.onnx 999");

    let minus = Msg::new().msg(1, Msg::new().int(1, -1)).msg(1, Msg::new().int(1, 4));
    let ty = Msg::new().msg(1, Msg::new().int(1, 1).msg(2, minus));
    let bytes = with(|g| g.msg(13, Msg::new().text(1, "a").msg(2, ty)));
    let opened = load(&bytes).unwrap();
    assert!(opened.facts.warnings.iter().any(|w| w.contains("negative")));
    assert!(formats::encode(&opened.graph).unwrap() == bytes);
}

#[test]
fn what_is_no_model_is_named_for_what_it_is() {
    let gzip = |inner: &[u8]| {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut e, inner).unwrap();
        e.finish().unwrap()
    };
    refused(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        Kind::Invalid,
        "FORMAT-LFS",
        "git lfs pull",
    );
    refused(b"<!DOCTYPE html><html><body>404</body></html>", Kind::Invalid, "FORMAT-HTML", "web page");
    refused(&gzip(&good()), Kind::Invalid, "FORMAT-GZIP", "gunzip");
    refused(b"PK\x03\x04 and something else here", Kind::Invalid, "FORMAT-ZIP", "PyTorch");
    refused(
        b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01",
        Kind::Unsupported,
        "FORMAT-PICKLE",
        "never loaded",
    );
    refused(b"{\"architectures\": [\"Bert\"]}", Kind::Invalid, "FORMAT-JSON", "config.json");
    refused(&[0; 4096], Kind::Invalid, "FORMAT-ZEROS", "unfinished");
    refused(b"hello, this is a text file\n", Kind::Invalid, "FORMAT-TEXT", "text file");
    refused(&[0xff; 64], Kind::Invalid, "ONNX-VARINT", "at byte 0");

    let dir = tempfile::tempdir().unwrap();
    let named = |path: &Path, text: &str| {
        let e = load_path(path, &Limits::default()).err().unwrap();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.to_string().contains(text), "{e}");
    };
    let directory = dir.path().join("evil.safetensors");
    fs::create_dir(&directory).unwrap();
    named(&directory, "a directory");
    let pipe = dir.path().join("evil.pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    named(&pipe, "a pipe");
    let socket = dir.path().join("evil.socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    named(&socket, "a socket");
    named(Path::new("/dev/zero"), "a device");
    let huge = dir.path().join("evil.sparse");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    named(&huge, "zero bytes");
    // One that starts like a model and whose weight fills the rest.
    let head = Msg::new().int(1, 8).text(2, "p").0;
    fs::write(&huge, [&head[..], &[0x3a], &varint(1 << 39), &[0x2a], &varint((1 << 39) - 7)].concat())
        .unwrap();
    fs::OpenOptions::new().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    named(&huge, "at byte");
    named(&dir.path().join("evil.missing"), "check the path");
}

#[test]
fn odd_file_names_are_shown_escaped() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 3] =
        [b"evil\nname.onnx", b"evil\xff\xfe.onnx", &[&b"evil"[..], &[b'x'; 251]].concat()];
    for name in names {
        let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, b"").unwrap();
        let e = formats::load(&path).unwrap_err();
        assert_eq!(e.code(), "FORMAT-EMPTY");
        let text = e.to_string();
        assert!(text.contains("evil") && !text.contains(char::is_control), "{text:?}");
        fs::write(&path, good()).unwrap();
        formats::load(&path).unwrap();
    }
}

#[test]
fn files_that_cannot_be_read_are_storage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    fs::write(&path, good()).unwrap();
    let opened = formats::load(&path).unwrap();
    let nowhere = dir.path().join("missing/evil.onnx");
    assert_eq!(formats::save(&opened.graph, &nowhere).unwrap_err().kind(), Kind::Storage);
    assert_eq!(formats::save(&opened.graph, dir.path()).unwrap_err().kind(), Kind::Storage);
}

#[test]
fn a_file_that_changes_while_it_is_open_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    let bytes = with_weight(tensor("large", 2, &[100_000], &[7; 100_000]));
    let changes: [&dyn Fn(); 3] = [
        &|| fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap(),
        &|| fs::write(&path, [&bytes[..], &[0; 10]].concat()).unwrap(),
        &|| fs::write(&path, vec![9; bytes.len()]).unwrap(),
    ];
    for (i, change) in changes.iter().enumerate() {
        fs::write(&path, &bytes).unwrap();
        let opened = formats::load(&path).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        change();
        let v = opened.graph.find("large").unwrap();
        let e = opened.graph.initializer(v).unwrap().data().unwrap_err();
        assert_eq!(e.kind(), Kind::Integrity, "change {i}: {e}");
        let copy = dir.path().join("copy.onnx");
        assert_eq!(formats::save(&opened.graph, &copy).unwrap_err().kind(), Kind::Integrity);
        assert!(!copy.exists(), "nothing is left of a failed save");
    }
    // Replaced by a rename: the open file is still the old one.
    fs::write(&path, &bytes).unwrap();
    let opened = formats::load(&path).unwrap();
    fs::write(dir.path().join("new"), good()).unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert!(formats::encode(&opened.graph).unwrap() == bytes);
}

#[test]
fn a_model_is_written_over_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.onnx");
    let bytes = with_weight(tensor("large", 2, &[100_000], &[7; 100_000]));
    fs::write(&path, &bytes).unwrap();
    let opened = formats::load(&path).unwrap();
    formats::save(&opened.graph, &path).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    formats::save(&opened.graph, &path).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
}

/// Runs [`in_child`] in a process of its own under an address-space limit, and returns what it printed:
/// the outcome and its peak memory in KiB above the start.
fn measured(path: &Path, address_space: u64) -> (String, u64) {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::in_child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("HOSTILE_FILE", path)
        .env("HOSTILE_LIMIT", address_space.to_string())
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
    line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse().unwrap()
}

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");

#[test]
#[ignore = "started by other tests as a process of its own"]
fn in_child() {
    let Some(path) = std::env::var_os("HOSTILE_FILE") else { return };
    let limit: u64 = std::env::var("HOSTILE_LIMIT").unwrap().parse().unwrap();
    let both = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(rustix::process::Resource::As, both).unwrap();
    // The program's own pages do not count.
    tinsmith::analysis::summarize_file(Path::new(SAMPLE), &Options::default()).unwrap();
    let before = status("VmRSS");
    let outcome = match tinsmith::analysis::summarize_file(Path::new(&path), &Options::default()) {
        Ok(s) => format!("ok,{}", s.parameters),
        Err(e) => e.code().to_string(),
    };
    println!("outcome={outcome} peak={}", status("VmHWM").saturating_sub(before));
}

#[test]
fn bombs_and_large_models_stay_within_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.onnx");
    let bombs = [
        ("nodes", Msg::new().int(1, 8).bytes(7, &[0x0a, 0].repeat(10_000_000)).0),
        ("strings", Msg::new().int(1, 8).msg(7, Msg::new().bytes(1, &[0x0a, 0].repeat(10_000_000))).0),
        (
            "strings that fit",
            Msg::new().int(1, 8).msg(7, Msg::new().bytes(1, &[0x0a, 0].repeat(4_900_000))).0,
        ),
        (
            "attributes",
            Msg::new().int(1, 8).msg(7, Msg::new().msg(1, Msg::new().raw(&[0x2a, 0].repeat(10_000_000)))).0,
        ),
        ("dims", with_weight(tensor("huge", 1, &[1 << 55], &[0; 8192]))),
    ];
    for (name, bytes) in bombs {
        fs::write(&path, &bytes).unwrap();
        let (outcome, peak) = measured(&path, 2 << 30);
        println!("{name}: {outcome}, {peak} KiB above the start for {} KiB", bytes.len() >> 10);
        assert!(!outcome.starts_with("ok"), "{name}");
        assert!(peak < 256 << 10, "{name}: {peak} KiB");
    }
    let path = dir.path().join("sparse.onnx");
    sparse_model(&path, 600);
    let (outcome, peak) = measured(&path, 512 << 20);
    println!("600 MiB of weights: {outcome}, {peak} KiB above the start");
    assert_eq!(outcome, format!("ok,{}", 600u64 << 18));
    assert!(peak < 16 << 10, "{peak} KiB");
}

#[test]
fn a_child_inspects_on_behalf_of_a_face() {
    use tinsmith::analysis::{summarize_file, summarize_in_child};
    tinsmith::child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.onnx");
    let inspect = || summarize_in_child(&path, &Options::default(), &tinsmith::monitor::Silent);
    fs::write(&path, good()).unwrap();
    assert_eq!(inspect().unwrap(), summarize_file(&path, &Options::default()).unwrap());
    fs::write(&path, b"<html>").unwrap();
    same(&inspect().unwrap_err(), Kind::Invalid, "FORMAT-SHORT", "evil.onnx");
    fs::write(&path, Msg::new().int(1, 8).bytes(7, &[0x0a, 0].repeat(2_000_000)).0).unwrap();
    same(&inspect().unwrap_err(), Kind::Limit, "LIMIT", "TINSMITH_LIMITS=nodes=");
}
