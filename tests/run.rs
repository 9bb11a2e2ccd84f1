//! Recipes and measurements as jobs in real worker processes: artefacts, stops and resumes, bad inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tinsmith::config::Paths;
use tinsmith::formats;
use tinsmith::jobs::lock::{self, Activity};
use tinsmith::jobs::request::{Sampling, Subject};
use tinsmith::jobs::{self, Event, JobHandle, JobId, Request, Status};
use tinsmith::plan::{Recipe, Step};

use crate::cache;
use crate::protobuf::{Msg, model, node, tensor_f32, value};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tinsmith");

/// A home, and beside it a directory to work in.
pub struct Home {
    dir: tempfile::TempDir,
    pub paths: Paths,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(&dir.path().join("home"));
        fs::create_dir(dir.path().join("work")).unwrap();
        net(&dir.path().join("work/net.onnx"), 8);
        Home { dir, paths }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub fn program(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--home").arg(self.paths.home()).current_dir(self.at("")).stdin(Stdio::null());
        command.env_remove("TINSMITH_TRIAL").env("XDG_CONFIG_HOME", self.at("config"));
        command
    }

    /// A command line to its end.
    pub fn tinsmith(&self, arguments: &[&str]) -> Output {
        self.program().args(arguments).output().unwrap()
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let out = self.tinsmith(arguments);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    pub fn submit(&self, request: &Request) -> JobHandle {
        let id = jobs::submit(&self.paths, request).unwrap();
        self.open(&id)
    }

    pub fn open(&self, id: &JobId) -> JobHandle {
        jobs::open(&self.paths, id.as_str()).unwrap()
    }

    pub fn worker(&self, job: &JobHandle) -> Command {
        let mut command = self.program();
        command.arg("__worker").arg(&job.dir).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub fn start(&self, job: &JobHandle) -> Child {
        self.worker(job).spawn().unwrap()
    }

    /// A recipe on a model of this home, by absolute path.
    pub fn recipe(&self, name: &str, model: &str, steps: &[Step]) -> Recipe {
        let mut recipe = Recipe::new(name, self.at(model).to_str().unwrap());
        recipe.data.calibration = Some("digits:train#0..64".into());
        recipe.steps = steps.to_vec();
        recipe
    }

    /// Digest of what an undisturbed run leaves.
    pub fn reference(&self, recipe: &Recipe) -> String {
        let job = self.submit(&Request::Run { recipe: recipe.clone() });
        assert_eq!(self.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
        // Other runs of the recipe are to compute all of its steps.
        self.kept_steps().iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
        artifact(&job)
    }

    /// Results of steps that are kept for other runs.
    pub fn kept_steps(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.paths.cache().join("steps")).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "step")).collect()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A convolutional net for the digits, with weights that follow a formula.
pub fn net(path: &Path, channels: usize) {
    let weights = |n: usize, scale: f32| -> Vec<f32> {
        (0..n).map(|i| scale * ((i * 7919 % 1009) as f32 / 504.5 - 1.0)).collect()
    };
    let ints = |name: &str, values: &[i64]| {
        values.iter().fold(Msg::new().text(1, name).int(20, 7), |m, v| m.int(8, *v))
    };
    let c = channels as i64;
    let conv = |name: &str, i: &str, w: &str, b: &str, o: &str| {
        node("Conv", name, &[i, w, b], &[o])
            .msg(5, ints("kernel_shape", &[3, 3]))
            .msg(5, ints("pads", &[1, 1, 1, 1]))
    };
    let graph = Msg::new()
        .msg(1, conv("conv1", "x", "w1", "b1", "c1"))
        .msg(1, node("Relu", "relu1", &["c1"], &["r1"]))
        .msg(1, conv("conv2", "r1", "w2", "b2", "c2"))
        .msg(1, node("Relu", "relu2", &["c2"], &["r2"]))
        .msg(1, node("Flatten", "flatten", &["r2"], &["f"]))
        .msg(1, node("Gemm", "head", &["f", "w3", "b3"], &["y"]))
        .text(2, "net")
        .msg(5, tensor_f32("w1", &[c, 1, 3, 3], &weights(channels * 9, 0.5)))
        .msg(5, tensor_f32("b1", &[c], &weights(channels, 0.1)))
        .msg(5, tensor_f32("w2", &[c, c, 3, 3], &weights(channels * channels * 9, 0.2)))
        .msg(5, tensor_f32("b2", &[c], &weights(channels, 0.1)))
        .msg(5, tensor_f32("w3", &[64 * c, 10], &weights(640 * channels, 0.1)))
        .msg(5, tensor_f32("b3", &[10], &weights(10, 0.1)))
        .msg(11, value("x", &[-1, 1, 8, 8]))
        .msg(12, value("y", &[-1, 10]));
    fs::write(path, model(graph, 17).0).unwrap();
}

fn static_int8() -> Step {
    Step::new("quantize").with("scheme", "static-int8")
}

fn dynamic_int8() -> Step {
    Step::new("quantize").with("scheme", "dynamic-int8")
}

/// Digest of the artefact, checked against the file.
pub fn artifact(job: &JobHandle) -> String {
    let state = job.state();
    assert_eq!(state.status, Status::Finished, "{:?} {:?}", state.reason, job.worker_log(20));
    let made = state.artifacts.last().unwrap();
    let path = job.artifact(&made.path).unwrap();
    let (sha256, bytes) = tinsmith::save::digest(&path).unwrap();
    assert_eq!((&sha256, bytes), (&made.sha256, made.bytes));
    formats::load(&path).unwrap();
    sha256
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A recipe whose calibration takes a second or two.
fn slow(home: &Home) -> Recipe {
    net(&home.at("wide.onnx"), 160);
    let mut recipe = home.recipe("slow", "wide.onnx", &[static_int8()]);
    recipe.data.calibration = Some("digits:train".into());
    recipe
}

#[test]
fn a_recipe_leaves_a_variant_a_report_and_what_it_was_settled_on() {
    let home = Home::new();
    let recipe = home.recipe("static int8", "net.onnx", &[static_int8()]);
    let job = home.submit(&Request::Run { recipe: recipe.clone() });
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
    let state = job.state();
    artifact(&job);
    let made = &state.artifacts[0];
    assert_eq!((made.name.as_str(), made.path.as_str()), ("static int8", "artifacts/static-int8.onnx"));
    let operators: Vec<String> = formats::load(&job.artifact(&made.path).unwrap())
        .unwrap()
        .graph
        .nodes()
        .iter()
        .map(|n| n.op_type.clone())
        .collect();
    assert!(operators.iter().any(|o| o == "QuantizeLinear"), "{operators:?}");

    let report: tinsmith::passes::PassReport =
        serde_json::from_slice(&fs::read(job.dir.join("artifacts/01-quantize.report.json")).unwrap())
            .unwrap();
    assert_eq!(report.pass, "quantize");
    assert!(!report.applied.is_empty());
    let resolved: toml::Table =
        toml::from_str(&fs::read_to_string(job.dir.join("resolved.toml")).unwrap()).unwrap();
    assert!(resolved["threads"].as_integer().unwrap() >= 1);
    assert_eq!(resolved["model_sha256"].as_str(), job.info().unwrap().model_sha256.as_deref());
    assert_eq!(resolved["calibration_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(resolved["recipe"]["name"].as_str(), Some("static int8"));
    let said: Vec<&str> = state.log.iter().map(|l| l.message.as_str()).collect();
    assert!(said.iter().any(|l| l.contains("needs about") && l.contains("of memory")), "{said:?}");
    assert!(said.iter().any(|l| l.starts_with("quantize: ") && l.contains("left alone")), "{said:?}");
    assert!(state.measurements.is_empty(), "nothing is measured unless asked for");

    assert_eq!(home.reference(&recipe), made.sha256, "the same recipe gives the same bits");
}

/// A step in rounds is as many steps: each cuts the same part of what it finds and trains towards the
/// model that the recipe began with, and a worker that was killed in between ends with the same bits.
#[test]
fn a_step_in_rounds_cuts_and_trains_each_time() {
    let home = Home::new();
    net(&home.at("wide.onnx"), 64);
    let recover = toml::from_str::<toml::Table>("steps = 3\nrate = 1e-3\nlooks = 1").unwrap();
    let step = |rounds: i64| {
        Step::new("prune")
            .with("ratio", 0.5)
            .with("round_to", 4)
            .with("rounds", rounds)
            .with("recover", recover.clone())
    };
    let recipe = |name: &str, rounds| {
        let mut recipe = home.recipe(name, "wide.onnx", &[step(rounds)]);
        recipe.data.calibration = Some("digits:train#0..64".into());
        recipe
    };
    let parameters = |job: &JobHandle| -> u64 {
        let path = job.artifact(&job.state().artifacts[0].path).unwrap();
        let graph = formats::load(&path).unwrap().graph;
        graph.initializers().map(|(_, t)| t.len() as u64).sum()
    };
    let once = home.submit(&Request::Run { recipe: recipe("once", 1) });
    assert_eq!(home.start(&once).wait().unwrap().code(), Some(0), "{:?}", once.status());
    let job = home.submit(&Request::Run { recipe: recipe("rounds", 2) });
    let mut worker = home.start(&job);
    until("the first round", || job.state().checkpoint.is_some());
    signal(&worker, rustix::process::Signal::KILL);
    worker.wait().unwrap();
    if job.status().status != Status::Finished {
        home.ok(&["jobs", "resume", job.id.as_str()]);
    }
    let state = job.state();
    assert_eq!(state.steps.len(), 2);
    assert!(state.steps[1].contains("ratio=0.2929"), "{:?}", state.steps);
    for number in ["01", "02"] {
        let path = job.dir.join(format!("artifacts/{number}-prune.report.json"));
        let report: tinsmith::passes::PassReport = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert!((report.facts["ratio"] - 0.2929).abs() < 0.05, "{:?}", report.facts);
        assert_eq!(report.facts["recover_steps"], 3.0);
    }
    let (one, two) = (parameters(&once) as f64, parameters(&job) as f64);
    assert!((one - two).abs() / one < 0.08, "{one} {two}");
    assert_eq!(artifact(&job), home.reference(&recipe("rounds", 2)));
}

#[test]
fn results_depend_on_the_stated_threads_not_on_the_machine() {
    let home = Home::new();
    let mut recipe = home.recipe("v", "net.onnx", &[static_int8()]);
    recipe.threads = Some(1);
    let job = home.submit(&Request::Run { recipe: recipe.clone() });
    let mut worker = home.worker(&job);
    worker.env("RAYON_NUM_THREADS", "7");
    assert_eq!(worker.status().unwrap().code(), Some(0));
    assert_eq!(home.reference(&recipe), artifact(&job));
    recipe.threads = Some(0);
    let job = home.submit(&Request::Run { recipe });
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(2));
}

#[test]
fn a_run_killed_within_a_step_resumes_to_the_same_bits() {
    let home = Home::new();
    let recipe = slow(&home);
    // In a home of its own: what a calibration saw is kept for the next one.
    let other = Home::new();
    let expected = other.reference(&slow(&other));
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.start(&job);
    until("calibration", || job.state().phase.name.contains("calibrate") && job.state().phase.done > 0);
    signal(&worker, rustix::process::Signal::KILL);
    worker.wait().unwrap();
    assert_eq!(job.status().status, Status::Dead);
    home.ok(&["jobs", "resume", job.id.as_str()]);
    assert_eq!(artifact(&job), expected);
    let again = job.tail().poll().iter().any(|r| matches!(r.event, Event::Resumed { step: 0, .. }));
    assert!(again);
}

#[test]
fn a_run_killed_between_steps_goes_on_from_the_checkpoint_to_the_same_bits() {
    let home = Home::new();
    let mut recipe = slow(&home);
    recipe.steps.insert(0, Step::new("optimize"));
    let expected = home.reference(&recipe);
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.start(&job);
    until("the first checkpoint", || job.state().checkpoint.is_some());
    signal(&worker, rustix::process::Signal::KILL);
    worker.wait().unwrap();
    assert_eq!(job.status().status, Status::Dead);
    jobs::resume(&job).unwrap();
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
    let resumed = job.tail().poll().iter().any(|r| matches!(r.event, Event::Resumed { step: 1, .. }));
    assert!(resumed, "the first step is not computed again");
    assert_eq!(artifact(&job), expected);
    assert!(job.dir.join("artifacts/01-optimize.report.json").exists());
    assert!(job.dir.join("artifacts/02-quantize.report.json").exists());
}

#[test]
fn a_signal_stops_a_run_within_two_seconds_and_the_result_is_the_same() {
    let home = Home::new();
    let recipe = slow(&home);
    // In a home of its own: what a calibration saw is kept for the next one.
    let other = Home::new();
    let expected = other.reference(&slow(&other));
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.start(&job);
    until("calibration", || job.state().phase.name.contains("calibrate") && job.state().phase.done > 0);
    let begin = Instant::now();
    signal(&worker, rustix::process::Signal::TERM);
    assert_eq!(worker.wait().unwrap().code(), Some(75));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    jobs::resume(&job).unwrap();
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
    assert_eq!(artifact(&job), expected);
}

#[test]
fn bad_recipes_end_with_the_right_code_and_name_the_fault() {
    let home = Home::new();
    fs::write(home.at("corrupt.onnx"), &fs::read(home.at("net.onnx")).unwrap()[..2000]).unwrap();
    fs::write(home.at("five.csv"), "1,2,3,4,5,0\n5,4,3,2,1,1\n").unwrap();
    let spec = |spec: &str| {
        let mut recipe = home.recipe("v", "net.onnx", &[static_int8()]);
        recipe.data.calibration = Some(spec.into());
        recipe
    };
    let mut without = home.recipe("v", "net.onnx", &[static_int8()]);
    without.data.calibration = None;
    let mut unlabelled = home.recipe("v", "net.onnx", &[dynamic_int8()]);
    unlabelled.measure = true;
    unlabelled.data.eval = Some(format!("csv:{}?label=none", home.at("five.csv").display()));
    let mut judged_by_its_own = spec("digits:test#0..50");
    judged_by_its_own.data.eval = Some("digits:test".into());
    let five = format!("csv:{}?label=last", home.at("five.csv").display());
    let cases: Vec<(Recipe, i32, &[&str])> = vec![
        (home.recipe("v", "missing.onnx", &[dynamic_int8()]), 3, &["missing.onnx"]),
        (home.recipe("v", "corrupt.onnx", &[dynamic_int8()]), 3, &["corrupt.onnx"]),
        (home.recipe("v", "net.onnx", &[Step::new("sharpen")]), 2, &["step[0]", "sharpen"]),
        (home.recipe("v", "net.onnx", &[dynamic_int8().with("bits", 3)]), 2, &["step[0]", "bits"]),
        (without, 2, &["data.calibration"]),
        (spec("digits:nowhere"), 2, &["digits:nowhere", "data.calibration"]),
        (spec(&five), 2, &["data.calibration", "five.csv", "net.onnx"]),
        (unlabelled, 2, &["data.eval", "five.csv", "labels"]),
        (judged_by_its_own, 3, &["data.calibration", "50 of 50 rows", "digits:test"]),
    ];
    for (recipe, code, said) in cases {
        let job = home.submit(&Request::Run { recipe });
        assert_eq!(home.start(&job).wait().unwrap().code(), Some(code), "{said:?}: {:?}", job.status());
        let reason = job.status().reason.unwrap();
        assert!(said.iter().all(|s| reason.contains(s)), "{said:?}: {reason}");
        assert_eq!(fs::read_dir(job.dir.join("artifacts")).unwrap().count(), 0, "{said:?}");
    }
}

#[test]
fn a_model_or_data_that_changed_is_refused() {
    let home = Home::new();
    let job = home.submit(&Request::Run { recipe: home.recipe("v", "net.onnx", &[dynamic_int8()]) });
    let good = fs::read(home.at("net.onnx")).unwrap();
    net(&home.at("net.onnx"), 9);
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(9));
    assert!(job.status().reason.unwrap().contains("submitted"), "{:?}", job.status());

    let recipe = slow(&home);
    let good_wide = fs::read(home.at("wide.onnx")).unwrap();
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.start(&job);
    until("calibration", || job.state().phase.name.contains("calibrate"));
    signal(&worker, rustix::process::Signal::KILL);
    worker.wait().unwrap();
    job.status();
    let mut bad = good_wide;
    let at = bad.len() / 2;
    bad[at] ^= 1;
    fs::write(home.at("wide.onnx"), bad).unwrap();
    jobs::resume(&job).unwrap();
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(9));
    assert!(job.status().reason.unwrap().contains("wide.onnx"), "{:?}", job.status());

    // Data of the same name and other rows.
    fs::write(home.at("net.onnx"), good).unwrap();
    let rows = |scale: f64| -> String {
        (0..200)
            .map(|r| {
                (0..64).map(|c| format!("{},", scale * f64::from((r * 7 + c) % 16))).collect::<String>()
                    + "0\n"
            })
            .collect()
    };
    fs::write(home.at("rows.csv"), rows(1.0)).unwrap();
    let mut recipe = home.recipe("v", "net.onnx", &[static_int8()]);
    recipe.data.calibration = Some(format!("csv:{}?label=last", home.at("rows.csv").display()));
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.start(&job);
    until("the start", || job.dir.join("resolved.toml").exists());
    signal(&worker, rustix::process::Signal::KILL);
    worker.wait().unwrap();
    job.status();
    fs::write(home.at("rows.csv"), rows(2.0)).unwrap();
    if job.state().status != Status::Finished {
        jobs::resume(&job).unwrap();
        assert_eq!(home.start(&job).wait().unwrap().code(), Some(9));
        assert!(job.status().reason.unwrap().contains("calibration_sha256"), "{:?}", job.status());
    }
}

#[test]
fn the_command_line_runs_a_step_and_writes_the_variant_where_it_is_asked_to() {
    let home = Home::new();
    let common = ["net.onnx", "--scheme", "static-int8", "--calibration", "digits:train#0..64"];
    let run = |more: &[&str]| home.tinsmith(&[&["quantize"], &common[..], more].concat());
    let out = run(&["-o", "int8.onnx", "--format", "json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(document["artifacts"][0]["name"], "static-int8");
    let (sha256, _) = tinsmith::save::digest(&home.at("int8.onnx")).unwrap();
    assert_eq!(document["artifacts"][0]["sha256"], sha256.as_str());

    let before = fs::read(home.at("net.onnx")).unwrap();
    for output in ["net.onnx", "./net.onnx"] {
        let out = run(&["-o", output]);
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains("would replace the model"), "{}", text(&out.stderr));
    }
    assert_eq!(fs::read(home.at("net.onnx")).unwrap(), before);

    let out = home.tinsmith(&["quantize", "net.onnx", "--scheme", "static-int8"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    let out = run(&["--threads", "1", "--save-recipe", "r.toml"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_eq!(Recipe::load(&home.at("r.toml")).unwrap().threads, Some(1));
    home.ok(&["run", "r.toml", "--quiet"]);
}

#[test]
fn without_a_usable_runtime_the_variant_is_made_and_the_reason_is_told() {
    let home = Home::new();
    fs::write(home.at("garbage.so"), "no library").unwrap();
    let mut recipe = home.recipe("v", "net.onnx", &[dynamic_int8()]);
    recipe.measure = true;
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.worker(&job);
    worker.env("TINSMITH_ORT_DYLIB", home.at("garbage.so"));
    assert_eq!(worker.status().unwrap().code(), Some(0));
    artifact(&job);
    let state = job.state();
    assert!(state.measurements.is_empty());
    assert!(state.log.iter().any(|l| l.message.contains("measuring was not possible")), "{:?}", state.log);
}

#[test]
fn a_measured_run_leaves_both_rows_with_quality_and_facts() {
    let home = Home::new();
    let mut recipe = home.recipe("static-int8", "net.onnx", &[static_int8()]);
    recipe.measure = true;
    recipe.data.eval = Some("digits:test".into());
    let job = home.submit(&Request::Run { recipe });
    let mut worker = home.worker(&job);
    worker.env("TINSMITH_ORT_DYLIB", cache::library().path);
    assert_eq!(worker.status().unwrap().code(), Some(0), "{:?}", job.status());
    let rows = job.state().measurements;
    let names: Vec<&str> = rows.iter().map(|r| r.variant.as_str()).collect();
    assert_eq!(names, ["original", "static-int8"]);
    for row in &rows {
        assert!(row.failures.is_empty(), "{:?}", row.failures);
        assert!(row.latency_ms.is_some() && row.peak_rss_bytes.is_some() && row.quality.is_some());
        assert!(
            row.parameters > 5000
                && row.macs > 10_000
                && row.weight_bytes > 0
                && row.peak_activation_bytes > 0
        );
        assert_eq!(row.conditions.inputs, ["x:f32[1,1,8,8]"]);
    }
    assert_eq!(rows[0].macs, 64 * (9 * 8 + 9 * 64) + 5120);
    assert!(rows[1].file_bytes < rows[0].file_bytes);
    assert!(rows[1].output_error.unwrap() > 0.0);
    let shown = home.ok(&["compare", job.id.as_str()]);
    assert!(shown.contains("original") && shown.contains("static-int8"), "{shown}");
}

#[test]
fn a_measurement_waits_for_the_jobs_that_make_its_models() {
    let home = Home::new();
    let runs: Vec<JobHandle> = [("a", dynamic_int8()), ("b", dynamic_int8().with("bits", 3))]
        .into_iter()
        .map(|(name, step)| home.submit(&Request::Run { recipe: home.recipe(name, "net.onnx", &[step]) }))
        .collect();
    let variant = |job: &JobHandle| {
        let Request::Run { recipe } = job.request().unwrap() else { panic!("a run") };
        Subject::new(&recipe.name, job.dir.join(Request::artifact_of(&recipe)).to_str().unwrap())
    };
    let original = Subject::new("original", home.at("net.onnx").to_str().unwrap());
    let measure = home.submit(&Request::Measure {
        name: "all".into(),
        models: vec![original, variant(&runs[0]), variant(&runs[1])],
        threads: vec![1, 2],
        data: None,
        sampling: Sampling { seconds: Some(0.2), rounds: Some(2), ..Sampling::default() },
        after: runs.iter().map(|r| r.id.clone()).collect(),
    });
    let mut attach = home.program();
    attach.args(["jobs", "attach", measure.id.as_str()]).env("TINSMITH_ORT_DYLIB", cache::library().path);
    let out = attach.output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert_eq!(runs[0].state().status, Status::Finished);
    assert_eq!(runs[1].state().status, Status::Failed, "an end is an end");
    let begun = |job: &JobHandle| job.state().started_mono_ms;
    assert!(begun(&runs[0]) < begun(&runs[1]) && begun(&runs[1]) < begun(&measure));
    let rows = measure.state().measurements;
    let good = |name: &str, threads: usize| {
        let row = rows.iter().find(|r| r.variant == name && r.conditions.threads == threads);
        row.is_some_and(|r| r.latency_ms.is_some())
    };
    for threads in [1, 2] {
        assert!(good("original", threads) && good("a", threads), "{rows:?}");
        assert!(!good("b", threads));
    }
    let missing = rows.iter().find(|r| r.variant == "b").unwrap();
    assert!(missing.failures.iter().any(|f| f.contains("b.onnx")), "{:?}", missing.failures);
}

#[test]
fn a_measurement_waits_until_nothing_computes() {
    let home = Home::new();
    let computing = lock::activity(&home.paths, Activity::Computing, || Ok(()), || ()).unwrap();
    let job = home.submit(&Request::Measure {
        name: "net".into(),
        models: vec![Subject::new("net", home.at("net.onnx").to_str().unwrap())],
        threads: vec![],
        data: None,
        sampling: Sampling { seconds: Some(0.1), rounds: Some(1), ..Sampling::default() },
        after: vec![],
    });
    let mut worker = home.worker(&job);
    let mut worker = worker.env("TINSMITH_ORT_DYLIB", cache::library().path).spawn().unwrap();
    until("the wait", || {
        job.state().log.iter().any(|l| l.message.contains("other jobs have stopped computing"))
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(job.state().measurements.is_empty() && job.state().phase.name != "measure");
    drop(computing);
    assert_eq!(worker.wait().unwrap().code(), Some(0), "{:?}", job.status());
    assert_eq!(job.state().measurements.len(), 1);
}

#[test]
fn a_measurement_stops_within_two_seconds_and_can_go_on() {
    let home = Home::new();
    let model = Subject::new("net", home.at("net.onnx").to_str().unwrap());
    let job = home.submit(&Request::Measure {
        name: "net".into(),
        models: vec![model],
        threads: vec![],
        data: None,
        // As many samples as it takes to be stopped among them.
        sampling: Sampling { seconds: Some(3600.0), rounds: Some(10_000), ..Sampling::default() },
        after: vec![],
    });
    let mut worker = home.worker(&job);
    let mut child = worker.env("TINSMITH_ORT_DYLIB", cache::library().path).spawn().unwrap();
    until("sampling", || job.state().phase.name == "measure" && job.state().phase.done > 0);
    let begin = Instant::now();
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(75));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(job.status().status, Status::Paused);
}

#[test]
fn a_damaged_reference_is_no_measurement() {
    let home = Home::new();
    fs::write(home.at("bad.onnx"), &fs::read(home.at("net.onnx")).unwrap()[..2000]).unwrap();
    let mut bench = home.program();
    bench.args(["bench", "bad.onnx", "net.onnx"]).env("TINSMITH_ORT_DYLIB", cache::library().path);
    let out = bench.output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("bad.onnx"));
    for (flag, value) in [("--seconds", "0"), ("--seconds", "nan"), ("--rounds", "0")] {
        assert_eq!(
            home.tinsmith(&["bench", "net.onnx", flag, value]).status.code(),
            Some(2),
            "{flag} {value}"
        );
    }
}

/// Curves are costly and do not depend on how much leaves: another run with another ratio goes by them, to
/// the bits that it would have had.
#[test]
fn a_run_with_a_changed_step_takes_those_before_it_from_another_run() {
    let home = Home::new();
    let run = |steps: &[Step]| {
        let job = home.submit(&Request::Run { recipe: home.recipe("kept", "net.onnx", steps) });
        assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
        let took = job.state().log.iter().filter(|l| l.message.contains("as an earlier run made it")).count();
        (job, took)
    };
    let cut = Step::new("prune").with("ratio", 0.25);
    let keeping = |names: &[&str]| static_int8().with("exclude", names.to_vec());
    let (all, took) = run(&[cut.clone(), static_int8()]);
    assert_eq!((took, home.kept_steps().len()), (0, 1), "what a run ends with is not kept");
    let (some, took) = run(&[cut.clone(), keeping(&["=conv2"])]);
    assert_eq!(took, 1);
    assert_eq!(all.report(0, "prune").unwrap(), some.report(0, "prune").unwrap());
    assert!(all.report(1, "quantize").unwrap().applied.iter().any(|a| a.target == "conv2"));
    assert!(some.report(1, "quantize").unwrap().applied.iter().all(|a| a.target != "conv2"));
    // The same bits as without what was kept.
    assert_eq!(
        artifact(&some),
        home.reference(&home.recipe("kept", "net.onnx", &[cut.clone(), keeping(&["=conv2"])]))
    );
    // Another cut is computed, and so is one of which the file was damaged.
    assert_eq!(run(&[Step::new("prune").with("ratio", 0.5), static_int8()]).1, 0);
    run(&[cut.clone(), static_int8()]);
    for kept in home.kept_steps() {
        let file = kept.join("model.onnx");
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
    }
    let (again, took) = run(&[cut, static_int8()]);
    assert_eq!((took, artifact(&again)), (0, artifact(&all)));
    assert!(again.state().log.iter().any(|l| l.message.contains("is not whole")));
}

#[test]
fn sensitivity_curves_are_computed_once() {
    let home = Home::new();
    net(&home.at("wide.onnx"), 32);
    let recipe = |name: &str, ratio: f64| {
        let step = Step::new("prune").with("scope", "sensitivity").with("ratio", ratio).with("round_to", 4);
        let mut recipe = home.recipe(name, "wide.onnx", &[step]);
        recipe.data.calibration = Some("digits:train#0..32".into());
        recipe
    };
    let run = |recipe: Recipe| {
        let job = home.submit(&Request::Run { recipe });
        assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
        let recalled = job.state().log.iter().any(|l| l.message.contains("of an earlier run"));
        (recalled, artifact(&job))
    };
    let (recalled, alone) = run(recipe("a", 0.3));
    assert!(!recalled);
    fs::remove_dir_all(home.paths.cache()).unwrap();
    assert!(!run(recipe("b", 0.2)).0);
    let (recalled, after) = run(recipe("c", 0.3));
    assert!(recalled);
    assert_eq!(alone, after);
}
