//! The real ONNX Runtime: libraries that are good, bad and old; sessions on real models.

use crate::cache;
use std::fs;
use std::path::Path;
use tinsmith::error::Kind;
use tinsmith::monitor::Silent;
use tinsmith::runtime::{self, Dim, Library, Optimization, Origin, Session, SessionOptions};
use tinsmith::tensor::{DType, Tensor};

fn at(path: &Path) -> Library {
    Library { path: path.to_path_buf(), origin: Origin::Environment }
}

#[test]
fn the_installed_library_is_found_and_works() {
    let library = cache::library();
    let probe = runtime::probe(&library).unwrap();
    assert_eq!(probe.version, runtime::VERSION);
    assert!(probe.providers.iter().any(|p| p == "CPUExecutionProvider"), "{:?}", probe.providers);
    let ensured = runtime::ensure(&cache::paths(), &Silent).unwrap();
    assert_eq!(ensured.library, library);
}

#[test]
fn a_library_that_is_none_is_an_error_with_a_hint() {
    let good = cache::library();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libonnxruntime.so.1.0.0");
    fs::write(&text, "not a library").unwrap();
    let empty = dir.path().join("empty.so");
    fs::write(&empty, "").unwrap();
    let bytes = fs::read(&good.path).unwrap();
    let mut cases = vec![
        (dir.path().join("missing.so"), "check the path"),
        (dir.path().to_path_buf(), "setup"),
        (text, "setup"),
        (empty, "setup"),
    ];
    for (i, length) in [100, 4096, 100_000, bytes.len() / 2, bytes.len() - 5000].into_iter().enumerate() {
        let path = dir.path().join(format!("truncated{i}.so"));
        fs::write(&path, &bytes[..length]).unwrap();
        cases.push((path, "setup"));
    }
    let mut foreign = bytes.clone();
    foreign[18] = 243; // e_machine: RISC-V
    let path = dir.path().join("foreign.so");
    fs::write(&path, foreign).unwrap();
    cases.push((path, "setup"));
    for (path, hint) in cases {
        let e = runtime::probe(&at(&path)).expect_err(&path.to_string_lossy());
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.hint_text().is_some_and(|h| h.contains(hint)), "{e}");
        assert!(e.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{e}");
        println!("{e}");
    }
    // A library of something else loads, and has no ONNX Runtime in it.
    if let Some(libz) = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"]
        .iter()
        .find(|p| Path::new(p).exists())
    {
        let e = runtime::probe(&at(Path::new(libz))).unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        println!("{e}");
    }
}

/// Compiles a small shared library that claims to be ONNX Runtime.
#[cfg(unix)]
fn imitation(dir: &Path, name: &str, source: &str) -> Library {
    cache::paths();
    let (code, library) = (dir.join(format!("{name}.c")), dir.join(format!("lib{name}.so")));
    fs::write(&code, source).unwrap();
    let status =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
    assert!(status.expect("a C compiler, which Rust needs to link").success());
    at(&library)
}

#[cfg(unix)]
#[test]
fn a_library_that_is_too_old_is_refused_by_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let source = r#"
        static const void *api(unsigned v) { return 0; }
        static const char *version(void) { return "1.16.3"; }
        static struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }"#;
    let e = runtime::probe(&imitation(dir.path(), "old", source)).unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Unsupported, "ORT-OLD"), "{e}");
    assert!(e.to_string().contains("found 1.16.3, allowed 1.17 or newer"), "{e}");
}

#[cfg(unix)]
#[test]
fn a_library_that_hangs_or_lies_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let hangs =
        "#include <unistd.h>\n__attribute__((constructor)) static void f(void) { for (;;) sleep(1); }";
    let e =
        runtime::probe_within(&imitation(dir.path(), "hangs", hangs), std::time::Duration::from_millis(500))
            .unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Invalid, "ORT-BROKEN"), "{e}");
    let lies = r#"
        static const void *api(unsigned v) { return 0; }
        static const char *version(void) { return "1.99.0"; }
        static struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };
        const void *OrtGetApiBase(void) { return &base; }"#;
    let e = runtime::probe(&imitation(dir.path(), "lies", lies)).unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Invalid, "ORT-BROKEN"), "{e}");
}

#[test]
fn magika_runs_and_repeats_itself() {
    let model = cache::fetched("magika").file("model.onnx").unwrap();
    let runtime = cache::runtime();
    let mut session = Session::load(&runtime, &model, &SessionOptions::default()).unwrap();
    let input = session.inputs()[0].clone();
    assert_eq!((input.name.as_str(), input.dtype), ("bytes", DType::I32));
    assert_eq!(input.dims[1], Dim::Fixed(2048));
    let bytes: Vec<i32> = (0..2048).map(|i| if i < 1500 { (i * 7) % 256 } else { 256 }).collect();
    let feed = [("bytes".to_string(), Tensor::from_vec(vec![1, 2048], bytes).unwrap())];
    let first = session.run(&feed).unwrap();
    assert_eq!(first[0].0, "target_label");
    assert_eq!(first[0].1.shape(), [1, 214]);
    let sum: f32 = first[0].1.to_f32s().unwrap().iter().sum();
    assert!((sum - 1.0).abs() < 1e-4, "probabilities add up to {sum}");
    let second = session.run(&feed).unwrap();
    assert!(first[0].1.same_bits(&second[0].1).unwrap());
}

#[test]
fn every_ppocr_model_runs_at_every_optimisation_level_with_the_same_outputs() {
    let runtime = cache::runtime();
    let fetched = cache::fetched("ppocr");
    for (name, shape) in [("cls", [1, 3, 48, 192]), ("det", [1, 3, 64, 96]), ("rec", [1, 3, 48, 160])] {
        let model = fetched.file(&format!("{name}_infer.onnx")).unwrap();
        let count = shape.iter().product::<usize>();
        let pixels: Vec<f32> = (0..count).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect();
        let mut reference: Option<Vec<f32>> = None;
        for level in [Optimization::None, Optimization::Basic, Optimization::Extended, Optimization::All] {
            let options = SessionOptions { optimization: level, threads: 2, ..SessionOptions::default() };
            let mut session = Session::load(&runtime, &model, &options).unwrap();
            let input = session.inputs()[0].name.clone();
            let feed = [(input, Tensor::from_vec(shape.to_vec(), pixels.clone()).unwrap())];
            let out = session.run(&feed).unwrap().remove(0).1.to_f32s().unwrap();
            assert!(out.iter().all(|v| v.is_finite()));
            let reference = reference.get_or_insert_with(|| out.clone());
            let worst = reference.iter().zip(&out).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name} at {level:?}: {worst}");
        }
    }
}

#[test]
fn a_profile_names_nodes_and_an_optimised_model_is_written() {
    let runtime = cache::runtime();
    let model = cache::fetched("ppocr").file("cls_infer.onnx").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = SessionOptions {
        profile: Some(dir.path().join("p")),
        optimized_model: Some(dir.path().join("o.onnx")),
        optimization: Optimization::Basic,
        ..SessionOptions::default()
    };
    let mut session = Session::load(&runtime, &model, &options).unwrap();
    let input = session.inputs()[0].name.clone();
    let feed = [(input, Tensor::from_vec(vec![1, 3, 48, 192], vec![0.5f32; 3 * 48 * 192]).unwrap())];
    let prepared = session.prepare(&feed).unwrap();
    session.time(&prepared, 3).unwrap();
    let times = session.end_profile().unwrap();
    assert!(times.iter().any(|t| t.op.contains("Conv") && t.count == 3), "{times:?}");
    assert!(fs::metadata(dir.path().join("o.onnx")).unwrap().len() > 100_000);
    assert!(session.end_profile().unwrap().is_empty());
}

#[test]
fn every_element_type_passes_through_unchanged() {
    use half::{bf16, f16};
    let runtime = cache::runtime();
    let tensors = [
        Tensor::from_vec(vec![2], vec![1.5f32, -2.0]),
        Tensor::from_vec(vec![2], vec![1.5f64, -2.0]),
        Tensor::from_vec(vec![2], vec![f16::from_f32(1.5), f16::from_f32(-2.0)]),
        Tensor::from_vec(vec![2], vec![bf16::from_f32(1.5), bf16::from_f32(-2.0)]),
        Tensor::from_vec(vec![2], vec![-1i8, 7]),
        Tensor::from_vec(vec![2], vec![-1i16, 7]),
        Tensor::from_vec(vec![2], vec![-1i32, 7]),
        Tensor::from_vec(vec![2], vec![-1i64, 7]),
        Tensor::from_vec(vec![2], vec![255u8, 7]),
        Tensor::from_vec(vec![2], vec![65535u16, 7]),
        Tensor::from_vec(vec![2], vec![u32::MAX, 7]),
        Tensor::from_vec(vec![2], vec![u64::MAX, 7]),
        Tensor::from_bools(vec![2], vec![true, false]),
        Tensor::new(DType::Str, vec![2], tinsmith::tensor::Data::Str(vec![b"ab".to_vec(), "ü".into()])),
    ];
    for tensor in tensors {
        let tensor = tensor.unwrap();
        let mut session =
            Session::from_bytes(&runtime, &identity(tensor.dtype().onnx() as u8), &SessionOptions::default())
                .unwrap();
        let out = session.run(&[("x".into(), tensor.clone())]).unwrap();
        assert!(out[0].1.same_bits(&tensor).unwrap(), "{}", tensor.dtype());
    }
}

/// y = Identity(x) of one element type, opset 13.
fn identity(dtype: u8) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
    let value = |name: &[u8]| [field(1, name), field(2, &field(1, &[8, dtype]))].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &value(b"x")), field(12, &value(b"y"))].concat();
    [vec![8, 8], field(7, &graph), field(8, &[10, 0, 16, 13])].concat()
}

#[test]
fn wrong_inputs_and_broken_models_are_errors_that_name_them() {
    let runtime = cache::runtime();
    let model = cache::fetched("magika").file("model.onnx").unwrap();
    let mut session = Session::load(&runtime, &model, &SessionOptions::default()).unwrap();
    let tensor = Tensor::from_vec(vec![1, 4], vec![0i32; 4]).unwrap();
    let e = session.run(&[("nope".into(), tensor.clone())]).unwrap_err();
    assert!(e.kind() == Kind::Invalid && e.to_string().contains("bytes"), "{e}");
    let e = session.run(&[("bytes".into(), tensor)]).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
    let floats = Tensor::from_vec(vec![1, 2048], vec![0f32; 2048]).unwrap();
    assert_eq!(session.run(&[("bytes".into(), floats)]).unwrap_err().kind(), Kind::Invalid);

    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.onnx");
    let bytes = fs::read(&model).unwrap();
    fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    for path in [broken.as_path(), dir.path(), Path::new("/no/such/model.onnx")] {
        let Err(e) = Session::load(&runtime, path, &SessionOptions::default()) else {
            panic!("{} loads", path.display())
        };
        assert_eq!(e.kind(), Kind::Invalid, "{e}");
        assert!(e.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{e}");
    }
}

/// The ordinary library has the CPU and says of the others, in its own words, why not.
#[test]
fn providers_are_tried_and_those_that_are_missing_say_why() {
    use tinsmith::runtime::provider::{self, AUTO};
    let probe = runtime::probe(&cache::library()).unwrap();
    let offers = provider::offers(&probe.library, &probe.providers);
    let offer = |name: &str| offers.iter().find(|o| o.name == name).unwrap();
    assert!(offer("cpu").usable && offer("cpu").compiled && offer("cpu").reason.is_none());
    for name in ["xnnpack", "dnnl", "openvino", "cuda", "coreml", "acl"] {
        let offer = offer(name);
        println!("{name}: {:?}", offer.reason);
        assert_eq!(offer.compiled, probe.providers.contains(&offer.native));
        assert!(offer.usable || offer.reason.as_ref().is_some_and(|r| r.len() > 8), "{offer:?}");
    }
    let choose = |name: &str| provider::choose(&probe.library, &probe.providers, name);
    assert_eq!(choose("cpu").unwrap().notes, Vec::<String>::new());
    if !offer("xnnpack").compiled {
        let e = choose("xnnpack").unwrap_err();
        assert_eq!(e.kind().exit_code(), 4, "{e}");
        assert!(e.to_string().contains("not in this ONNX Runtime") && e.to_string().contains("cpu"), "{e}");
    }
    let chosen = choose(AUTO).unwrap();
    assert!(offer(chosen.name).usable, "{chosen:?}");
    let passed_over = offers.iter().take_while(|o| o.name != chosen.name).count();
    assert_eq!(chosen.notes.len(), passed_over, "{chosen:?}");
    assert_eq!(choose("gpu").unwrap_err().kind().exit_code(), 2);
}

#[test]
fn settings_of_a_session_change_no_output() {
    let path = cache::fetched("magika").file("model.onnx").unwrap();
    let bytes: Vec<i32> = (0..2048).map(|i| i * 7 % 257).collect();
    let input = vec![("bytes".to_string(), Tensor::from_vec(vec![1, 2048], bytes).unwrap())];
    let run = |options: &SessionOptions| {
        Session::load(&cache::runtime(), &path, options).unwrap().run(&input).unwrap()
    };
    let plain = run(&SessionOptions::default());
    for options in [
        SessionOptions { branches: 2, threads: 2, ..SessionOptions::default() },
        SessionOptions { prepacking: false, arena: false, ..SessionOptions::default() },
        SessionOptions { denormals_as_zero: true, memory_pattern: false, ..SessionOptions::default() },
    ] {
        let found = tinsmith::evaluate::parity::parity(&plain, &run(&options), 1e-5).unwrap();
        assert!(found.max_rel < 1e-5 && found.elements > 0, "{options:?}: {found:?}");
    }
}
