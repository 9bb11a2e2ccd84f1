//! The command line as people and scripts meet it: help, formats, schemas, exit codes, pipes, signals.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tinsmith::evaluate::measurement::{Conditions, Measurement, Quality};
use tinsmith::evaluate::stats;
use tinsmith::text::is_unsafe;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tinsmith");

/// A home of its own.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("TINSMITH_HOME", self.path("home")).env("XDG_CONFIG_HOME", self.path("config"));
        command.env_remove("NO_COLOR").env_remove("TINSMITH_TRIAL");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn assert_clean(arguments: &[&str], out: &Output) {
    for bytes in [&out.stdout, &out.stderr] {
        let bad = text(bytes).chars().find(|c| is_unsafe(*c) && *c != '\n' && *c != '\t');
        assert_eq!(bad, None, "{arguments:?}");
    }
    assert!(!text(&out.stderr).contains("panicked"), "{arguments:?}: {}", text(&out.stderr));
}

/// Every command with its words, from the man pages.
fn commands(home: &Home) -> Vec<Vec<String>> {
    home.stdout(&["gen", "man", "--output", "man"]);
    let mut names: Vec<String> = fs::read_dir(home.path("man"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".1").to_string())
        .collect();
    names.sort();
    names.iter().map(|n| n.split('-').skip(1).map(String::from).collect()).collect()
}

#[test]
fn help_of_every_command() {
    let home = Home::new();
    let mut all = String::new();
    let commands = commands(&home);
    assert!(commands.len() > 10);
    for words in commands {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let out = home.command(&arguments).env("COLUMNS", "100").output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{arguments:?}");
        assert_clean(&arguments, &out);
        all.push_str(&format!("$ tinsmith {}\n{}\n", arguments.join(" "), text(&out.stdout)));
    }
    insta::assert_snapshot!(all);
}

#[test]
fn completions_and_man_pages_are_produced() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.stdout(&["gen", "completions", shell]);
        assert!(script.contains("tinsmith") && script.contains("quantize"), "{shell}");
    }
    let page = home.stdout(&["gen", "man"]);
    assert!(page.starts_with(".ie") || page.contains(".TH tinsmith"), "{page}");
    assert!(home.stdout(&["gen", "config"]).contains("schema_version = 1"));
}

fn measured(variant: &str, ms: f64, wrong: usize) -> Measurement {
    let samples: Vec<f64> = (0..40).map(|i| ms * (1.0 + 0.01 * f64::from((i * 7) % 10))).collect();
    let correct: Vec<bool> = (0..500).map(|i| i >= wrong).collect();
    Measurement {
        schema_version: 1,
        variant: variant.into(),
        model_sha256: "00".repeat(32),
        path: format!("{variant}.onnx"),
        parameters: 1000,
        macs: 20_000,
        weight_bytes: 4000,
        file_bytes: (ms * 1000.0) as u64,
        peak_activation_bytes: 512,
        latency_ms: stats::latency(samples, 1),
        throughput_per_s: Some(1e3 / ms),
        peak_rss_bytes: Some(40 << 20),
        energy_j: None,
        quality: Some(Quality {
            metric: "accuracy".into(),
            value: (500 - wrong) as f64 / 500.0,
            ci95: stats::wilson((500 - wrong) as u64, 500),
            n: 500,
            higher_is_better: true,
            correct,
            data_hash: "d".into(),
        }),
        output_error: Some(0.01),
        conditions: Conditions { threads: 1, runtime: "onnxruntime 1.32.0".into(), ..Conditions::default() },
        failures: vec![],
    }
}

fn figures(home: &Home, name: &str, figures: &[Measurement]) {
    fs::write(home.path(name), serde_json::to_vec(figures).unwrap()).unwrap();
}

fn validate(home: &Home, schema: &str, document: &str) -> serde_json::Value {
    let schema: serde_json::Value = serde_json::from_str(&home.stdout(&["gen", "schema", schema])).unwrap();
    let document: serde_json::Value =
        serde_json::from_str(document).unwrap_or_else(|e| panic!("{e}: {document}"));
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{document:#}");
    document
}

#[test]
fn a_comparison_is_written_in_every_format() {
    let home = Home::new();
    figures(&home, "a.json", &[measured("original", 4.0, 10), measured("int8", 2.0, 11)]);
    let json = home.stdout(&["compare", "a.json", "--format", "json"]);
    let document = validate(&home, "comparison", &json);
    assert_eq!(document["rows"][1]["latency"]["verdict"], "better");
    assert_eq!(document["rows"][1]["quality"]["verdict"], "non_inferior");
    insta::assert_snapshot!("comparison_text", home.stdout(&["compare", "a.json"]));
    insta::assert_snapshot!("comparison_md", home.stdout(&["compare", "a.json", "--format", "md"]));
    insta::assert_snapshot!("comparison_csv", home.stdout(&["compare", "a.json", "--format", "csv"]));
    assert_eq!(home.stdout(&["compare", "a.json", "--format", "jsonl"]).lines().count(), 2);
    // What it wrote can be compared again.
    fs::write(home.path("again.json"), json).unwrap();
    assert_eq!(home.stdout(&["compare", "again.json"]), home.stdout(&["compare", "a.json"]));
}

#[test]
fn a_missed_gate_is_exit_code_one() {
    let home = Home::new();
    figures(&home, "a.json", &[measured("original", 4.0, 10), measured("int8", 2.0, 11)]);
    let out = home.run(&["compare", "a.json", "--goal", "latency_ms=1"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("int8 misses latency_ms"), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("original"));
    assert_eq!(home.run(&["compare", "a.json", "--goal", "latency_ms=3"]).status.code(), Some(0));
}

#[test]
fn a_baseline_catches_a_regression() {
    let home = Home::new();
    figures(&home, "good.json", &[measured("m", 4.0, 10)]);
    figures(&home, "slow.json", &[measured("m", 5.0, 10)]);
    figures(&home, "worse.json", &[measured("m", 4.0, 60)]);
    home.stdout(&["baseline", "set", "nightly", "good.json"]);
    assert!(home.stdout(&["baseline", "list"]).contains("nightly"));
    assert_eq!(home.run(&["baseline", "check", "nightly", "good.json"]).status.code(), Some(0));
    for (file, word) in [("slow.json", "slower"), ("worse.json", "lost quality")] {
        let out = home.run(&["baseline", "check", "nightly", file]);
        assert_eq!(out.status.code(), Some(1), "{file}");
        assert!(text(&out.stderr).contains(word), "{}", text(&out.stderr));
    }
    assert_eq!(home.run(&["baseline", "check", "none", "good.json"]).status.code(), Some(2));
}

#[test]
fn bad_input_ends_with_the_right_code_and_a_next_step() {
    let home = Home::new();
    fs::write(home.path("m.onnx"), "no model").unwrap();
    fs::write(home.path("text.json"), "{").unwrap();
    fs::write(home.path("broken.toml"), "schema_version = 1\nname = \"x\"\nmodel = 3\n").unwrap();
    fs::write(home.path("field.toml"), "schema_version = 1\nname = \"x\"\nmodel = \"m.onnx\"\ncolour = 1\n")
        .unwrap();
    fs::write(
        home.path("pass.toml"),
        "schema_version = 1\nname = \"x\"\nmodel = \"m.onnx\"\n[[step]]\npass = \"sharpen\"\n",
    )
    .unwrap();
    fs::write(home.path("future.toml"), "schema_version = 99\nname = \"x\"\nmodel = \"m.onnx\"\n").unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["inspect", "missing.onnx"], 3, "missing.onnx"),
        (&["inspect", "m.onnx"], 3, "m.onnx"),
        (&["inspect", "m.onnx", "--bind", "batch"], 2, "NAME=SIZE"),
        (&["run", "missing.toml"], 3, "missing.toml"),
        (&["run", "broken.toml"], 2, "line 3"),
        (&["run", "field.toml"], 2, "line 4"),
        (&["run", "pass.toml"], 2, "step[0]"),
        (&["run", "future.toml"], 2, "schema_version"),
        (&["run", "m.onnx"], 2, "--recipe"),
        (&["optimize", "missing.onnx"], 3, "missing.onnx"),
        (&["bench", "missing.onnx"], 3, "missing.onnx"),
        (&["compare", "text.json"], 3, "text.json"),
        (&["compare", "missing.json"], 3, "missing.json"),
        (&["compare", "text.json", "--goal", "speed=1"], 2, "speed=1"),
        (&["jobs", "show", "nope"], 2, "no such job"),
        (&["jobs", "show", "last"], 2, "no job"),
        (&["gen", "schema", "nope"], 2, "comparison"),
        (&["--format", "yaml", "jobs", "list"], 2, "yaml"),
        (&["--threads", "0", "jobs", "list"], 2, "0"),
        (&["frobnicate"], 2, "frobnicate"),
    ];
    for (arguments, code, said) in cases {
        let out = home.run(arguments);
        assert_eq!(out.status.code(), Some(*code), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(said), "{arguments:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{arguments:?}");
        assert_clean(arguments, &out);
    }
    assert!(!home.path("home/jobs").exists(), "nothing was submitted");
}

#[test]
fn errors_are_objects_under_json() {
    let home = Home::new();
    for arguments in [&["compare", "missing.json", "--format", "json"][..], &["--format=json", "frobnicate"]]
    {
        let out = home.run(arguments);
        let document = validate(&home, "error", &text(&out.stderr));
        assert_eq!(document["exit_code"].as_i64(), out.status.code().map(i64::from));
    }
}

#[test]
fn the_doctor_reports_in_its_schema_and_names_the_next_step() {
    let home = Home::new();
    let document = validate(&home, "doctor", &home.stdout(&["doctor", "--format", "json"]));
    let names: Vec<_> =
        document["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert!(["processor", "onnxruntime", "home", "space"].iter().all(|n| names.contains(n)), "{names:?}");
    let out = home.command(&["doctor"]).env("TINSMITH_ORT_DYLIB", "/nowhere.so").output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("/nowhere.so"), "{}", text(&out.stdout));
}

/// The first table of the real library; `bench` on the shipped sample asks for what it has not.
#[test]
fn a_provider_that_is_missing_is_refused_and_the_file_beside_a_model_is_used() {
    let home = Home::new();
    let library = crate::cache::library();
    let model = home.path("m.onnx");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx"), &model).unwrap();
    let run = |arguments: &[&str]| {
        home.command(arguments).env("TINSMITH_ORT_DYLIB", &library.path).output().unwrap()
    };
    let bench = ["bench", "m.onnx", "--seconds", "0.2", "--rounds", "2"];
    let doctor = text(&run(&["doctor"]).stdout);
    assert!(doctor.contains("providers"), "{doctor}");
    if doctor.contains("xnnpack: ") {
        let out = run(&[&bench[..], &["--provider", "xnnpack"]].concat());
        assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("cpu"), "{}", text(&out.stderr));
        let out = run(&[&bench[..], &["--provider", "auto"]].concat());
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains("provider xnnpack is not used: "), "{}", text(&out.stderr));
    }
    assert_eq!(run(&[&bench[..], &["--provider", "gpu"]].concat()).status.code(), Some(2));
    let (sha256, _) = tinsmith::save::digest(&model).unwrap();
    let beside = serde_json::json!({
        "schema_version": 1, "model_sha256": sha256, "settings": {"threads": 2, "spinning": false},
    });
    fs::write(home.path("m.onnx.session.json"), beside.to_string()).unwrap();
    let out = run(&[&bench[..], &["--format", "json"]].concat());
    let document = validate(&home, "measurements", &text(&out.stdout));
    let conditions = &document["measurements"][0]["conditions"];
    assert_eq!(conditions["session"], serde_json::json!(["no spinning"]));
    assert_eq!(conditions["threads"], 2);
    assert!(text(&out.stderr).contains("m.onnx.session.json"), "{}", text(&out.stderr));
    fs::write(home.path("m.onnx.session.json"), "{").unwrap();
    assert_eq!(run(&bench).status.code(), Some(3));
}

#[test]
fn keys_settings_and_known_names_are_listed() {
    let home = Home::new();
    assert!(home.stdout(&["gen", "keys"]).contains("[keys]"));
    assert!(home.stdout(&["fetch"]).contains("magika"));
    assert_eq!(home.run(&["fetch", "nope"]).status.code(), Some(2));
    let alone = home.run(&[]);
    assert_eq!(alone.status.code(), Some(2), "the workbench needs a terminal");
    assert_clean(&[], &alone);
}

#[test]
fn settings_with_a_mistake_are_named() {
    let home = Home::new();
    fs::create_dir_all(home.path("config/tinsmith")).unwrap();
    fs::write(home.path("config/tinsmith/config.toml"), "colour = 3\n").unwrap();
    let out = home.run(&["jobs", "list"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("config.toml") && text(&out.stderr).contains("colour"));
}

#[test]
fn hostile_names_reach_no_terminal_in_any_format() {
    let home = Home::new();
    let hostile = "a\u{1b}]52;c;eA==\u{7}\u{9b}31m\u{202e}\u{200b}b";
    let mut m = measured(hostile, 4.0, 10);
    m.conditions.noise = vec![hostile.into()];
    let mut other = measured("x", 3.0, 10);
    other.conditions.host = hostile.into();
    figures(&home, "a.json", &[m, other]);
    for format in ["text", "json", "jsonl", "csv", "md"] {
        let arguments = ["compare", "a.json", "--format", format];
        let out = home.run(&arguments);
        assert_eq!(out.status.code(), Some(0));
        assert_clean(&arguments, &out);
    }
    for arguments in [&["compare", "a.json", "--baseline", hostile, "--goal", hostile][..], &[hostile]] {
        let out = home.run(arguments);
        assert_ne!(out.status.code(), Some(0));
        assert_clean(arguments, &out);
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let home = Home::new();
    let mut child = home
        .command(&["gen", "completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert_eq!(said, "");
}

#[test]
fn colour_in_a_pipe_appears_only_when_it_is_demanded() {
    let home = Home::new();
    let never = home.run(&["compare", "missing.json"]);
    assert!(!text(&never.stderr).contains('\u{1b}'));
    let always = home.run(&["compare", "missing.json", "--color", "always"]);
    assert!(text(&always.stderr).contains("\u{1b}[1;31m"));
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let out = home.command(&["compare", "missing.json"]).env(variable, value).output().unwrap();
        assert!(!text(&out.stderr).contains('\u{1b}'), "{variable}");
    }
}

#[cfg(debug_assertions)]
mod runs {
    //! Runs of trial work, which debug builds alone know.

    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn recipe(home: &Home) {
        fs::write(home.path("m.onnx"), "a model").unwrap();
        fs::write(home.path("r.toml"), "schema_version = 1\nname = \"trial\"\nmodel = \"m.onnx\"\n").unwrap();
    }

    fn trial(home: &Home, arguments: &[&str], trial: &str) -> Command {
        let mut command = home.command(arguments);
        command.env("TINSMITH_TRIAL", trial).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn only_job(home: &Home) -> serde_json::Value {
        let list = validate(home, "jobs", &home.stdout(&["jobs", "list", "--format", "json"]));
        assert_eq!(list["jobs"].as_array().unwrap().len(), 1);
        list["jobs"][0].clone()
    }

    /// Whoever looks moves the queue on, and may be the one that starts the worker: it has to know the
    /// trial too.
    fn wait_for(home: &Home, description: &str, status: &str) {
        let start = Instant::now();
        let now = || {
            let out = trial(home, &["jobs", "list", "--format", "json"], description).output().unwrap();
            assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
            text(&out.stdout)
        };
        while !now().contains(&format!("\"status\": \"{status}\"")) {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", now());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn a_run_reports_on_stderr_and_its_result_on_stdout() {
        let home = Home::new();
        recipe(&home);
        let out = trial(&home, &["run", "r.toml", "--format", "json"], "{}").output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        assert_clean(&["run"], &out);
        let document: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let path = document["artifacts"][0]["path"].as_str().unwrap();
        assert!(Path::new(path).is_file());
        let said = text(&out.stderr);
        // A phase that is over before anybody looks is not told of; the last one is.
        for word in ["trial: job 2", "trial 2", "wrote artifacts/trial.bin", "finished"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(only_job(&home)["status"], "finished");
        for line in home.stdout(&["jobs", "log", "last", "--format", "jsonl"]).lines() {
            validate(&home, "event", line);
        }
        assert!(home.stdout(&["jobs", "log", "last"]).contains("checkpoint of step 0"));
        assert!(home.stdout(&["jobs", "show", "last"]).contains("trial.bin"));
        let quiet = trial(&home, &["run", "r.toml", "--quiet"], "{}").output().unwrap();
        assert_eq!(text(&quiet.stderr), "");
    }

    #[test]
    fn a_failed_run_ends_with_the_code_of_its_error() {
        let home = Home::new();
        recipe(&home);
        let failed = trial(&home, &["run", "r.toml"], r#"{"fault":"panic"}"#).output().unwrap();
        assert_eq!(failed.status.code(), Some(70), "{}", text(&failed.stderr));
        assert!(text(&failed.stderr).contains("jobs log"));
        let dead = trial(&home, &["run", "r.toml"], r#"{"fault":"abort"}"#).output().unwrap();
        assert_eq!(dead.status.code(), Some(8), "{}", text(&dead.stderr));
        assert!(text(&dead.stderr).contains("jobs resume"));
    }

    #[test]
    fn a_detached_run_goes_on_and_can_be_attached_to() {
        let home = Home::new();
        recipe(&home);
        let out = trial(&home, &["run", "r.toml", "--detach"], r#"{"millis":200}"#).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        let id = only_job(&home)["id"].as_str().unwrap().to_string();
        assert!(text(&out.stdout).contains(&id));
        assert!(home.stdout(&["jobs", "attach", &id]).contains("trial.bin"));
        assert_eq!(home.run(&["jobs", "delete", &id]).status.code(), Some(2));
        home.stdout(&["jobs", "delete", &id, "--yes"]);
        assert!(home.stdout(&["jobs", "list"]).contains("no jobs yet"));
    }

    fn interrupt(child: &std::process::Child) {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    #[test]
    fn the_first_interrupt_leaves_a_checkpoint_that_resume_goes_on_from() {
        let home = Home::new();
        recipe(&home);
        let description = r#"{"steps":4,"millis":500}"#;
        let child = trial(&home, &["run", "r.toml"], description).spawn().unwrap();
        wait_for(&home, description, "running");
        std::thread::sleep(Duration::from_millis(700));
        interrupt(&child);
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(75), "{}", text(&out.stderr));
        assert_eq!(only_job(&home)["status"], "paused");
        let resumed =
            trial(&home, &["jobs", "resume", "last"], r#"{"steps":4,"millis":20}"#).output().unwrap();
        assert_eq!(resumed.status.code(), Some(0), "{}", text(&resumed.stderr));
        let said = text(&resumed.stderr);
        assert!(said.contains("trial 3") && !said.contains("trial 0"), "{said}");
    }

    #[test]
    fn the_second_interrupt_ends_a_deaf_worker() {
        let home = Home::new();
        recipe(&home);
        let description = r#"{"fault":"deaf","millis":30000}"#;
        let child = trial(&home, &["run", "r.toml"], description).spawn().unwrap();
        wait_for(&home, description, "running");
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(300));
        interrupt(&child);
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(130), "{:?} {}", out.status.signal(), text(&out.stderr));
        wait_for(&home, description, "dead");
    }

    #[test]
    fn pause_and_cancel_reach_the_worker() {
        for (command, status) in [("pause", "paused"), ("cancel", "cancelled")] {
            let home = Home::new();
            recipe(&home);
            let description = r#"{"steps":100,"millis":200}"#;
            trial(&home, &["run", "r.toml", "--detach"], description).output().unwrap();
            wait_for(&home, description, "running");
            home.stdout(&["jobs", command, "last"]);
            assert_eq!(only_job(&home)["status"], status);
        }
    }
}

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");

#[test]
fn recommendations_are_written_in_every_format() {
    let home = Home::new();
    let question = |more: &[&'static str]| {
        let fixed =
            ["recommend", SAMPLE, "--device", "raspberry-pi-5", "--calibration", "digits:train#0..64"];
        [&fixed[..], more].concat()
    };
    let document = validate(&home, "proposals", &home.stdout(&question(&["--format", "json"])));
    assert_eq!(document["device"], "raspberry-pi-5");
    let proposals = document["proposals"].as_array().unwrap();
    assert!(proposals.iter().any(|p| p["name"] == "static-int8"), "{proposals:#?}");
    assert!(proposals.iter().all(|p| !p["reasons"].as_array().unwrap().is_empty()));
    for format in ["text", "csv", "md", "jsonl"] {
        let out = home.stdout(&question(&["--format", format]));
        assert!(out.contains("static-int8"), "{format}: {out}");
    }
    assert_eq!(
        home.stdout(&question(&["--format", "jsonl"])).lines().count(),
        proposals.len(),
        "a line for each proposal"
    );
    // A gate that nothing can meet is told of, and is no failure of the question.
    let document = validate(
        &home,
        "proposals",
        &home.stdout(&question(&["--goal", "size_mb=0.001", "--format", "json"])),
    );
    assert!(document["proposals"].as_array().unwrap().iter().all(|p| p["meets_goal"] == false));
    home.stdout(&question(&["--save-recipe", "first.toml"]));
    let saved = fs::read_to_string(home.path("first.toml")).unwrap();
    assert!(saved.contains(&format!("name = {}", proposals[0]["name"])), "{saved}");
    assert!(!home.path("home/jobs").exists(), "nothing was submitted");
}

#[test]
fn bad_questions_name_what_is_wrong_with_them() {
    let home = Home::new();
    fs::write(home.path("m.onnx"), "no model").unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["recommend", "missing.onnx"], 3, "missing.onnx"),
        (&["recommend", "m.onnx"], 3, "m.onnx"),
        (&["recommend", SAMPLE, "--device", "toaster"], 2, "raspberry-pi-5"),
        (&["recommend", SAMPLE, "--data", "digits:nowhere"], 2, "digits:nowhere"),
        (&["recommend", SAMPLE, "--run", "99", "--device", "raspberry-pi-4"], 2, "--run"),
        (&["recommend", SAMPLE, "--detach"], 2, "--run"),
        (&["device", "show", "toaster"], 2, "raspberry-pi-5"),
        (&["demo", "--headless", "--seconds", "0"], 2, "--seconds"),
    ];
    for (arguments, code, said) in cases {
        let out = home.run(arguments);
        assert_eq!(out.status.code(), Some(*code), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(said), "{arguments:?}: {}", text(&out.stderr));
        assert_clean(arguments, &out);
    }
    assert!(!home.path("home/jobs").exists(), "nothing was submitted");
}

#[test]
fn devices_are_listed_and_a_shown_one_is_a_profile_of_ones_own() {
    let home = Home::new();
    let document = validate(&home, "devices", &home.stdout(&["device", "list", "--format", "json"]));
    let names: Vec<_> =
        document["devices"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert!(names[0] == "host" && names.contains(&"raspberry-pi-5"), "{names:?}");
    assert!(home.stdout(&["device", "list"]).contains("n100-mini-pc"));
    validate(&home, "devices", &home.stdout(&["device", "show", "raspberry-pi-4", "--format", "json"]));
    let profile = home.stdout(&["device", "show", "raspberry-pi-4"]);
    fs::create_dir_all(home.path("home/devices")).unwrap();
    fs::write(home.path("home/devices/mine.toml"), profile.replace("raspberry-pi-4", "mine")).unwrap();
    assert!(home.stdout(&["device", "list"]).contains("mine"));
}

#[test]
fn the_demo_goes_through_the_whole_loop() {
    let home = Home::new();
    let library = crate::cache::library();
    let demo = |format: &str| {
        let mut command = home.command(&["demo", "--seconds", "0.3", "--rounds", "3", "--format", format]);
        command.env("TINSMITH_ORT_DYLIB", &library.path).output().unwrap()
    };
    let out = demo("json");
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("digits-resnet.onnx") && said.contains("proposal 1"), "{said}");
    let document = validate(&home, "comparison", &text(&out.stdout));
    let rows = document["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|r| r["measurement"]["variant"].as_str().unwrap()).collect();
    let expected =
        ["original", "optimized", "static-int8", "pruned-20", "pruned-40", "pruned-20+static-int8"];
    assert_eq!(names, expected);
    let number =
        |row: usize, at: &str| rows[row]["measurement"].pointer(at).and_then(serde_json::Value::as_f64);
    for (row, name) in names.iter().enumerate() {
        assert!(number(row, "/latency_ms/p50").unwrap() > 0.0, "{name}");
        assert_eq!(number(row, "/quality/n"), number(0, "/quality/n"), "{name}");
    }
    let accuracy = |row| number(row, "/quality/value").unwrap();
    let bytes = |row| number(row, "/file_bytes").unwrap();
    assert!(accuracy(0) > 0.9, "{}", accuracy(0));
    assert!((accuracy(0) - accuracy(1)).abs() < 0.002, "an optimized model computes the same");
    assert!(accuracy(2) > accuracy(0) - 0.02, "{}", accuracy(2));
    assert!(bytes(2) < 0.4 * bytes(0) && bytes(3) < 0.9 * bytes(0) && bytes(4) < 0.8 * bytes(0));
    assert!(bytes(5) < bytes(2));
    assert!(number(3, "/parameters").unwrap() < number(0, "/parameters").unwrap());
    let jobs = home.stdout(&["jobs", "list", "--format", "jsonl"]);
    assert_eq!(jobs.lines().count(), 6, "{jobs}");
}
