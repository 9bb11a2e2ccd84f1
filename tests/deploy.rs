//! Bundles, session settings by measuring, and models as ONNX Runtime rewrites them: through the command
//! line, on the real library, and with plain onnxruntime in Python.

use crate::cache;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tinsmith::config::Paths;
use tinsmith::evaluate::measurement::{Conditions, Measurement};
use tinsmith::evaluate::stats;
use tinsmith::jobs::event::Event;
use tinsmith::jobs::log::Log;
use tinsmith::jobs::request::{Sampling, Subject};
use tinsmith::jobs::{self, Request};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");

/// A home with the sample as `m.onnx`.
struct House {
    dir: tempfile::TempDir,
    library: PathBuf,
}

impl House {
    fn new() -> House {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(SAMPLE, dir.path().join("m.onnx")).unwrap();
        House { dir, library: cache::library().path }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("TINSMITH_HOME", self.path("home")).env("TINSMITH_ORT_DYLIB", &self.library);
        command.env_remove("TINSMITH_TRIAL").output().unwrap()
    }

    fn good(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    fn refused(&self, code: i32, arguments: &[&str], words: &[&str]) {
        let out = self.run(arguments);
        let told = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{arguments:?}: {told} lacks {word}");
        }
    }

    fn valid(&self, schema: &str, document: &str) -> serde_json::Value {
        let schema: serde_json::Value = serde_json::from_str(&self.good(&["gen", "schema", schema])).unwrap();
        let value: serde_json::Value = serde_json::from_str(document).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let faults: Vec<String> =
            validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(faults.is_empty(), "{faults:?}");
        value
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn left_over(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap();
        let names = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|n| n.starts_with('.')).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A Python with onnxruntime and numpy: the one of the system, or under `CI` one that is made for it.
fn python() -> Option<PathBuf> {
    let has = |python: &Path| {
        let test =
            Command::new(python).args(["-c", "import onnxruntime, numpy"]).stderr(Stdio::null()).status();
        test.is_ok_and(|s| s.success())
    };
    let given = std::env::var_os("TINSMITH_TEST_PYTHON").map(PathBuf::from);
    let venv = cache::paths().home().join("venv-onnxruntime");
    let own = venv.join("bin/python");
    let all = given.into_iter().chain([PathBuf::from("python3"), own.clone()]);
    if let Some(found) = all.into_iter().find(|p| has(p)) {
        return Some(found);
    }
    std::env::var_os("CI")?;
    let run = |program: &Path, arguments: &[&str]| {
        let out = Command::new(program).args(arguments).output().unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    };
    run(Path::new("python3"), &["-m", "venv", venv.to_str().unwrap()]);
    let package = format!("onnxruntime=={}", tinsmith::runtime::VERSION);
    run(&own, &["-m", "pip", "install", "--quiet", &package, "numpy"]);
    Some(own)
}

#[test]
fn a_bundle_is_whole_and_runs_with_plain_onnxruntime() {
    let house = House::new();
    let settings = serde_json::json!({
        "schema_version": 1,
        "model_sha256": tinsmith::save::digest(&house.path("m.onnx")).unwrap().0,
        "settings": {"threads": 2, "spinning": false, "prepacking": false},
    });
    fs::write(house.path("m.onnx.session.json"), settings.to_string()).unwrap();
    house.valid("session", &house.read("m.onnx.session.json"));
    fs::write(house.path("labels.txt"), "zero\none\n").unwrap();
    let out = house.good(&["deploy", "m.onnx", "--to", "b", "--format", "json"]);
    let document = house.valid("deploy", &out);
    let names: Vec<&str> =
        document["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    for name in [
        "model.onnx",
        "labels.txt",
        "session.json",
        "card.json",
        "MODEL_CARD.md",
        "example.py",
        "example.rs",
        "example.cpp",
        "Cargo.toml",
        "sample/inputs/0",
        "sample/outputs/0",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(fs::read(house.path("b/model.onnx")).unwrap(), fs::read(SAMPLE).unwrap());
    let session = house.valid("session", &house.read("b/session.json"));
    assert_eq!(
        (&session["settings"]["threads"], &session["settings"]["spinning"]),
        (&2.into(), &false.into())
    );
    let card = house.valid("card", &house.read("b/card.json"));
    assert_eq!(card["gate"]["passed"], true);
    assert!(card["notes"].to_string().contains("nothing was measured"), "{card}");
    // What the repository compiles is what a bundle holds.
    let example = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/deploy").join(name)).unwrap()
    };
    assert_eq!(house.read("b/example.rs"), example("main.rs"));
    assert_eq!(house.read("b/example.py"), example("example.py"));
    assert!(!house.read("b/example.cpp").contains('@'));
    house.good(&["deploy", "--check", "b"]);
    match python() {
        None => println!("no Python with onnxruntime: its example was not run"),
        Some(python) => {
            let run = || Command::new(&python).arg(house.path("b/example.py")).output().unwrap();
            let out = run();
            println!("{}", text(&out.stdout));
            assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
            // It tells where outputs are others.
            let recorded = house.path("b/sample/outputs/0");
            let mut bytes = fs::read(&recorded).unwrap();
            bytes[..4].copy_from_slice(&1e6f32.to_le_bytes());
            fs::write(&recorded, bytes).unwrap();
            assert!(!run().status.success());
        }
    }
}

#[test]
fn a_bundle_is_replaced_only_by_force_and_changes_are_found() {
    let house = House::new();
    house.good(&["deploy", "m.onnx", "--to", "b"]);
    house.refused(2, &["deploy", "m.onnx", "--to", "b"], &["--force"]);
    house.good(&["deploy", "m.onnx", "--to", "b", "--force"]);
    fs::create_dir(house.path("mine")).unwrap();
    fs::write(house.path("mine/thesis.txt"), "three years").unwrap();
    house.refused(2, &["deploy", "m.onnx", "--to", "mine", "--force"], &["no bundle"]);
    assert_eq!(house.read("mine/thesis.txt"), "three years");
    house.refused(3, &["deploy", "nothing.onnx", "--to", "c"], &["nothing.onnx"]);
    house.refused(3, &["deploy", "--check", "mine"], &["SHA256SUMS"]);
    house.refused(6, &["deploy", "m.onnx", "--to", "/proc/none/b"], &["/proc/none"]);
    house.refused(6, &["deploy", "m.onnx", "--to", "no/such/place"], &["no/such"]);
    fs::write(house.path("b/card.json"), "{}").unwrap();
    let out = house.run(&["deploy", "--check", "b", "--format", "json"]);
    assert_eq!(out.status.code(), Some(9));
    let document = house.valid("deploy", &text(&out.stdout));
    assert_eq!(document["faults"], serde_json::json!([{"path": "card.json", "what": "differs"}]));
    assert!(house.left_over().is_empty(), "{:?}", house.left_over());
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let house = House::new();
    let disk = house.path("disk");
    let Some(disk) = crate::jobs::SmallDisk::new(&disk, "64k") else {
        assert!(std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "cannot mount");
        return;
    };
    house.refused(6, &["deploy", "m.onnx", "--to", "disk/b"], &["space"]);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
}

fn figures(variant: &str, sha256: &str, ms: f64) -> Measurement {
    let samples: Vec<f64> = (0..60).map(|i| ms * (1.0 + 0.001 * f64::from((i * 7) % 10))).collect();
    Measurement {
        schema_version: 1,
        variant: variant.into(),
        model_sha256: sha256.into(),
        path: format!("{variant}.onnx"),
        parameters: 10,
        macs: 20,
        weight_bytes: 40,
        file_bytes: 50,
        peak_activation_bytes: 60,
        latency_ms: stats::latency(samples, 1),
        throughput_per_s: None,
        peak_rss_bytes: None,
        energy_j: None,
        quality: None,
        output_error: None,
        conditions: Conditions { threads: 1, runtime: "onnxruntime 1.32.0".into(), ..Conditions::default() },
        failures: vec![],
    }
}

#[test]
fn what_measured_slower_is_refused_and_forced_bundles_say_so() {
    let house = House::new();
    let paths = Paths::under(&house.path("home"));
    let (sha256, _) = tinsmith::save::digest(&house.path("m.onnx")).unwrap();
    let measure = |ms: f64| {
        let id = jobs::submit(
            &paths,
            &Request::Measure {
                name: "compare".into(),
                models: vec![Subject::new("original", "o.onnx"), Subject::new("int8", "m.onnx")],
                threads: vec![1],
                data: None,
                sampling: Sampling::default(),
                after: vec![],
            },
        )
        .unwrap();
        let mut log = Log::open(&jobs::open(&paths, id.as_str()).unwrap().dir, 0).unwrap();
        for m in [figures("original", &"0".repeat(64), 1.0), figures("int8", &sha256, ms)] {
            log.append(Event::Measurement { measurement: Box::new(m) }).unwrap();
        }
        log.append(Event::Finished).unwrap();
        log.commit().unwrap();
        id.to_string()
    };
    let slow = measure(1.3);
    house.refused(1, &["deploy", "m.onnx", "--to", "b"], &["slower than original", "+30", &slow]);
    assert!(!house.path("b").exists());
    house.good(&["deploy", "m.onnx", "--to", "b", "--force"]);
    let card = house.valid("card", &house.read("b/card.json"));
    assert_eq!((&card["gate"]["passed"], &card["gate"]["forced"]), (&false.into(), &true.into()));
    assert_eq!(card["comparisons"][0]["latency"]["verdict"], "worse");
    assert_eq!(card["measurements"][0]["job"], slow);
    let told = house.read("b/MODEL_CARD.md");
    assert!(
        told.contains("by force") && told.contains("slower than original") && told.contains(&slow),
        "{told}"
    );
    // A later comparison counts instead.
    let fast = measure(0.7);
    house.good(&["deploy", "m.onnx", "--to", "c"]);
    let card = house.valid("card", &house.read("c/card.json"));
    assert_eq!(card["gate"]["passed"], true);
    assert_eq!(card["comparisons"][0]["job"], fast);
}

#[test]
fn the_model_of_a_job_is_deployed_with_how_it_was_made() {
    let house = House::new();
    let out = house.good(&["optimize", "m.onnx", "--format", "json"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    let job = document["job"].as_str().unwrap();
    fs::write(house.path("labels.txt"), "zero\n").unwrap();
    house.good(&["deploy", job, "--to", "b"]);
    let card = house.valid("card", &house.read("b/card.json"));
    assert_eq!(card["made"]["job"], job);
    assert!(card["made"]["recipe"].as_str().unwrap().contains("pass = \"optimize\""), "{card}");
    assert!(card["made"]["resolved"].as_str().unwrap().contains("model_sha256"));
    assert_eq!(card["model"]["sha256"], document["artifacts"][0]["sha256"]);
    assert_eq!(house.read("b/labels.txt"), "zero\n");
}

#[test]
fn tuned_settings_lie_beside_the_model_and_are_used() {
    let house = House::new();
    let out = house.good(&["optimize", "m.onnx", "--tune", "--threads", "1,2", "--format", "json"]);
    let file = house.valid("session", &out);
    house.valid("session", &house.read("m.onnx.session.json"));
    let trials = file["tuned"]["trials"].as_array().unwrap();
    let factors: Vec<&str> = trials.iter().map(|t| t["factor"].as_str().unwrap()).collect();
    for factor in ["threads", "optimization", "arena", "all"] {
        assert!(factors.contains(&factor), "{factors:?}");
    }
    assert!(trials.iter().all(|t| t["ratio"].is_number() || t["reason"].is_string()), "{trials:?}");
    let out = house.run(&["bench", "m.onnx", "--seconds", "0.2", "--rounds", "2", "--format", "json"]);
    let measured: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(measured["measurements"][0]["conditions"]["threads"], file["settings"]["threads"]);
    assert!(text(&out.stderr).contains("m.onnx.session.json"));
    let job = jobs::open(&Paths::under(&house.path("home")), file["tuned"]["job"].as_str().unwrap()).unwrap();
    assert!(fs::read_to_string(job.dir.join("resolved.toml")).unwrap().contains("[search"));
    house.refused(2, &["optimize", "m.onnx", "--tune", "--device", "toaster"], &["toaster"]);
}

#[test]
fn models_are_written_as_the_runtime_rewrites_them() {
    let house = House::new();
    for (level, name) in [("basic", "basic.onnx"), ("extended", "extended.ort"), ("all", "all.onnx")] {
        let out = house.run(&["optimize", "m.onnx", "--serialize", level, "-o", name]);
        let told = text(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{told}");
        assert!(told.contains(&format!("level {level}: ")) && told.contains("outputs differ"), "{told}");
        assert_eq!(told.contains("tied to the instruction set"), level == "all", "{told}");
        assert!(house.path(name).metadata().unwrap().len() > 1000);
    }
    // .ort files are flat buffers with a mark of their own.
    assert_eq!(&fs::read(house.path("extended.ort")).unwrap()[4..8], b"ORTM");
    let out = house.good(&[
        "bench",
        "m.onnx",
        "extended.ort",
        "--seconds",
        "0.2",
        "--rounds",
        "2",
        "--format",
        "json",
    ]);
    let measured: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(measured["measurements"][1]["output_error"].as_f64().unwrap() < 1e-5, "{out}");
    // So short a measurement may say anything of its speed.
    house.good(&["deploy", "extended.ort", "--to", "b", "--force"]);
    assert!(house.path("b/model.ort").exists());
    house.refused(2, &["optimize", "m.onnx", "--serialize", "most"], &["most"]);
}
