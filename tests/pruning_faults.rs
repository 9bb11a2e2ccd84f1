//! What goes wrong with pruning, from the command line to the artefact: each fault ends with its code and a
//! message that names file, field and next step, the original and what was there before stay as they were,
//! and work that was interrupted goes on to the same bits.

use crate::jobs::SmallDisk;
use crate::run::{Home, artifact, net, signal, text, until};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use tinsmith::config::Paths;
use tinsmith::formats;
use tinsmith::jobs::{self, JobHandle, Request, Status};
use tinsmith::plan::{Recipe, Step};
use tinsmith::tensor::Tensor;

/// A fault: what it is, the arguments behind `prune`, exit code, code, and what the message names.
struct Fault {
    what: &'static str,
    arguments: Vec<String>,
    exit: i32,
    code: &'static str,
    said: &'static [&'static str],
}

fn fault(
    what: &'static str,
    arguments: &str,
    exit: i32,
    code: &'static str,
    said: &'static [&'static str],
) -> Fault {
    let arguments = arguments.split_whitespace().map(String::from).collect();
    Fault { what, arguments, exit, code, said }
}

/// The net of a home with other elements in some of its weights.
fn changed(home: &Home, name: &str, weights: &[&str], change: fn(usize, f32) -> f32) {
    let graph = formats::load(&home.at("net.onnx")).unwrap().graph;
    let mut edit = graph.edit();
    for weight in weights {
        let v = graph.find(weight).unwrap();
        let tensor = graph.initializer(v).unwrap();
        let data = tensor.to_f32s().unwrap().into_iter().enumerate().map(|(i, x)| change(i, x)).collect();
        edit.set_initializer(v, Tensor::from_vec::<f32>(tensor.shape().to_vec(), data).unwrap());
    }
    formats::save(&edit.commit().unwrap(), &home.at(name)).unwrap();
}

/// Rows of 64 numbers and a label, or without.
fn rows(path: &Path, count: usize, last: &str, odd: &str) {
    let row = |r: usize| {
        let mut cells: Vec<String> = (0..64).map(|c| ((r * 7 + c * 3) % 16).to_string()).collect();
        if r == 1 && !odd.is_empty() {
            cells[5] = odd.into();
        }
        if !last.is_empty() {
            cells.push(last.into());
        }
        cells.join(",") + "\n"
    };
    fs::write(path, (0..count).map(row).collect::<String>()).unwrap();
}

fn home() -> Home {
    let home = Home::new();
    changed(&home, "nan.onnx", &["w2"], |i, x| if i == 7 { f32::NAN } else { x });
    changed(&home, "inf.onnx", &["w2"], |i, x| if i == 7 { f32::INFINITY } else { x });
    home.ok(&["quantize", "net.onnx", "--scheme", "dynamic-int8", "-o", "int8.onnx", "--quiet"]);
    rows(&home.at("unlabelled.csv"), 40, "", "");
    rows(&home.at("class17.csv"), 40, "17", "");
    rows(&home.at("holes.csv"), 40, "3", "nan");
    fs::write(home.at("empty.csv"), "").unwrap();
    fs::write(home.at("five.csv"), "1,2,3,4,5,0\n5,4,3,2,1,1\n").unwrap();
    fs::write(home.at("words.txt"), "some words\nand more\n").unwrap();
    home
}

fn faults() -> Vec<Fault> {
    vec![
        fault("a ratio of one or more", "net.onnx --ratio 1", 2, "PRUNE-SETTINGS", &["step.ratio"]),
        fault("a negative ratio", "net.onnx --ratio -0.2", 2, "PRUNE-SETTINGS", &["step.ratio", "-0.2"]),
        fault("nothing says how much", "net.onnx", 2, "PRUNE-SETTINGS", &["step.ratio", "target"]),
        fault("more than may leave", "net.onnx --ratio 0.97", 2, "PRUNE-RATIO", &["step.ratio", "min_keep"]),
        fault("a target out of reach", "net.onnx --target macs=0.001", 2, "PRUNE-TARGET", &["step.target"]),
        fault(
            "a target that is met already",
            "net.onnx --target bytes=1GB",
            2,
            "PRUNE-ENOUGH",
            &["step.target"],
        ),
        fault(
            "everything protected",
            "net.onnx --ratio 0.2 --protect *",
            4,
            "PRUNE-NOTHING",
            &["excluded by"],
        ),
        fault(
            "a kind that the model lacks",
            "net.onnx --ratios heads=0.5",
            2,
            "PRUNE-RATIOS",
            &["step.ratios.heads"],
        ),
        fault(
            "a quantised model",
            "int8.onnx --ratio 0.2",
            4,
            "PRUNE-QUANTIZED",
            &["int8.onnx", "float model"],
        ),
        fault(
            "a weight with NaN, l2",
            "nan.onnx --ratio 0.2",
            3,
            "PRUNE-WEIGHT",
            &["nan.onnx", "w2", "inspect"],
        ),
        fault(
            "a weight with Inf, l1",
            "inf.onnx --ratio 0.2 --criterion l1",
            3,
            "PRUNE-WEIGHT",
            &["inf.onnx", "w2"],
        ),
        fault(
            "a weight with NaN, on data",
            "nan.onnx --ratio 0.2 --criterion wanda --calibration digits:train#0..64",
            3,
            "PRUNE-WEIGHT",
            &["nan.onnx", "w2"],
        ),
        fault(
            "a weight with NaN, by slope",
            "nan.onnx --ratio 0.2 --criterion taylor --calibration digits:train#0..64",
            3,
            "PRUNE-WEIGHT",
            &["nan.onnx", "w2"],
        ),
        fault(
            "a weight with NaN, by chance",
            "nan.onnx --ratio 0.2 --criterion random",
            3,
            "PRUNE-WEIGHT",
            &["nan.onnx", "w2"],
        ),
        fault(
            "no labels for the slope of the task",
            "net.onnx --ratio 0.2 --criterion taylor --slope task --calibration csv:unlabelled.csv?label=none",
            2,
            "PRUNE-LABELS",
            &["step.slope", "reference"],
        ),
        fault(
            "no labels to train on",
            "net.onnx --ratio 0.2 --recover steps=3,towards=task --train csv:unlabelled.csv?label=none",
            2,
            "RECOVER-LABELS",
            &["data.train", "reference"],
        ),
        fault(
            "labels that are no classes",
            "net.onnx --ratio 0.2 --recover steps=3,towards=task --train csv:class17.csv?label=last",
            2,
            "LOSS-LABELS",
            &["17"],
        ),
        fault(
            "data with NaN",
            "net.onnx --ratio 0.2 --criterion wanda --calibration csv:holes.csv?label=last",
            3,
            "DATA-NAN",
            &["data.calibration", "row 1"],
        ),
        fault(
            "training data with NaN",
            "net.onnx --ratio 0.2 --recover steps=3 --train csv:holes.csv?label=last",
            3,
            "DATA-NAN",
            &["data.train", "row 1"],
        ),
        fault(
            "an empty file",
            "net.onnx --ratio 0.2 --criterion wanda --calibration csv:empty.csv?label=last",
            3,
            "DATA",
            &["data.calibration", "empty.csv"],
        ),
        fault(
            "a range without rows",
            "net.onnx --ratio 0.2 --criterion wanda --calibration digits:train#5..5",
            2,
            "DATA",
            &["data.calibration", "#5..5"],
        ),
        fault(
            "one row to train on",
            "net.onnx --ratio 0.2 --recover steps=3 --train digits:train#0..1",
            2,
            "RECOVER-DATA",
            &["data.train"],
        ),
        fault(
            "no data to train on",
            "net.onnx --ratio 0.2 --recover steps=3",
            2,
            "RECIPE-TRAIN",
            &["data.train"],
        ),
        fault(
            "a missing file",
            "net.onnx --ratio 0.2 --criterion wanda --calibration csv:nowhere.csv",
            3,
            "IO",
            &["data.calibration", "nowhere.csv"],
        ),
        fault(
            "data of another shape",
            "net.onnx --ratio 0.2 --criterion wanda --calibration csv:five.csv?label=last",
            2,
            "EVAL-SHAPE",
            &["data.calibration", "five.csv", "net.onnx"],
        ),
        fault(
            "texts for a model of images",
            "net.onnx --ratio 0.2 --criterion wanda --calibration text:words.txt",
            3,
            "TOKENIZER-NONE",
            &["data.calibration", "words.txt"],
        ),
        fault(
            "a learning rate out of range",
            "net.onnx --ratio 0.2 --recover steps=3,rate=1e30 --train digits:train#0..64",
            2,
            "RECOVER-SETTINGS",
            &["step.recover.rate", "below 1"],
        ),
    ]
}

/// What is said, without what differs from run to run.
fn message(home: &Home, stderr: &str) -> String {
    let line = stderr.lines().find(|l| l.starts_with("error[")).unwrap_or(stderr);
    let line = match line.strip_prefix("error[JOB-FAILED] job ") {
        Some(job) => job.split_once(": ").map_or(job, |(_, rest)| rest),
        None => line.trim_start_matches("error"),
    };
    let line = line.split("; `tinsmith jobs log ").next().unwrap_or(line);
    line.replace(&format!("{}/", home.at("").display()).replace("//", "/"), "")
}

/// Between these two lines of `docs/pruning.md` stands what is said.
const MARKS: [&str; 2] =
    ["<!-- faults: UPDATE_DOCS=1 cargo test --locked --test all each_fault -->", "<!-- end -->"];

/// Holds the table in the documentation against `table`, or writes it.
fn documented(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pruning.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let after = rest.split_once(MARKS[1]).unwrap().1;
    let wanted = format!("{before}{}\n\n{table}\n{}{after}", MARKS[0], MARKS[1]);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == wanted, "docs/pruning.md is not current: UPDATE_DOCS=1");
}

#[test]
fn each_fault_has_its_code_and_loses_nothing() {
    let home = home();
    fs::write(home.at("out.onnx"), "from before").unwrap();
    let before: Vec<(String, Vec<u8>)> = ["net.onnx", "nan.onnx", "inf.onnx", "int8.onnx", "out.onnx"]
        .map(|name| (name.to_string(), fs::read(home.at(name)).unwrap()))
        .into();
    let mut wrong = vec![];
    let mut table = "| fault | exit | message |\n|---|---|---|\n".to_string();
    for Fault { what, arguments, exit, code, said } in faults() {
        let mut all = vec!["prune".to_string()];
        all.extend(arguments);
        all.extend(["-o", "out.onnx", "--quiet"].map(String::from));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let out = home.tinsmith(&all);
        let stderr = text(&out.stderr);
        let said_of_it = message(&home, &stderr);
        table += &format!("| {what} | {exit} | {} |\n", said_of_it.replace('|', "\\|"));
        let good: bool = out.status.code() == Some(exit)
            && stderr.contains(code)
            && said.iter().all(|s| stderr.contains(s))
            && !stderr.contains("panicked");
        if !good {
            let found = out.status.code();
            wrong.push(format!("{what}: exit {found:?}, wanted {exit}, {code}, {said:?}: {stderr}"));
        }
        for (name, content) in &before {
            if fs::read(home.at(name)).unwrap() != *content {
                wrong.push(format!("{what}: {name} has changed"));
                fs::write(home.at(name), content).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let left: usize = jobs::list(&home.paths)
        .iter()
        .map(|job| fs::read_dir(job.dir.join("artifacts")).map_or(0, Iterator::count))
        .sum();
    assert_eq!(left, 2, "of the quantised model alone artefact and report are left");
    documented(&table);
}

/// A step of pruning on a net that takes its time.
fn long(home: &Home, settings: &str) -> Recipe {
    net(&home.at("wide.onnx"), 32);
    let mut recipe = home.recipe("pruned", "wide.onnx", &[]);
    recipe.steps.push(Step { pass: "prune".into(), settings: toml::from_str(settings).unwrap() });
    recipe.data.calibration = Some("digits:train".into());
    recipe.data.train = Some("digits:train#0..320".into());
    recipe.threads = Some(2);
    recipe
}

const RECOVERED: &str =
    "ratio = 0.2\nround_to = 1\nrecover = { steps = 150, batch = 32, rate = 1e-3, looks = 6 }";

/// Kills the worker of a job once `ready`, resumes the job and gives the digest of what it leaves.
fn killed(home: &Home, recipe: &Recipe, ready: impl Fn(&JobHandle) -> bool) -> (JobHandle, String) {
    let job = home.submit(&Request::Run { recipe: recipe.clone() });
    let mut worker = home.start(&job);
    until("the moment to be killed", || ready(&job));
    signal(&worker, Signal::KILL);
    worker.wait().unwrap();
    assert_eq!(job.status().status, Status::Dead);
    jobs::resume(&job).unwrap();
    assert_eq!(home.start(&job).wait().unwrap().code(), Some(0), "{:?}", job.status());
    let sha256 = artifact(&job);
    (job, sha256)
}

#[test]
fn a_worker_killed_while_it_looks_at_data_ends_with_the_same_bits() {
    let home = Home::new();
    for settings in [
        "ratio = 0.3\ncriterion = \"taylor\"\nsamples = 0",
        "ratio = 0.3\ncriterion = \"wanda\"\nrepair = \"ridge\"\nsamples = 0",
    ] {
        let recipe = long(&home, settings);
        let expected = home.reference(&recipe);
        // What the reference saw of the data would count.
        fs::remove_dir_all(home.paths.cache().join("steps")).unwrap();
        let looking = |job: &JobHandle| {
            let phase = job.state().phase;
            phase.name.starts_with("prune: ") && phase.done > 32
        };
        assert_eq!(killed(&home, &recipe, looking).1, expected, "{settings}");
    }
}

fn inside(job: &JobHandle) -> usize {
    let saved = fs::read_dir(job.dir.join("checkpoints/inside-0"));
    saved.map_or(0, |d| {
        d.filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("step-"))).count()
    })
}

#[test]
fn a_worker_killed_in_a_training_goes_on_from_its_checkpoint_to_the_same_bits() {
    let home = Home::new();
    let recipe = long(&home, RECOVERED);
    let expected = home.reference(&recipe);
    let (job, found) = killed(&home, &recipe, |job| inside(job) > 0);
    assert_eq!(found, expected);
    let told = job.state().log.iter().any(|l| l.message.contains("training goes on from step"));
    assert!(told, "{:?}", job.state().log);
    assert!(!job.dir.join("checkpoints/inside-0").exists(), "what is done needs no checkpoint inside");
}

#[test]
fn a_full_disk_at_a_checkpoint_of_a_training_pauses_it_and_it_goes_on_by_itself() {
    let home = Home::new();
    let recipe = long(&home, RECOVERED);
    let expected = home.reference(&recipe);
    let outer = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(&outer.path().join("disk"), "8m") else {
        assert!(std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "cannot mount");
        return;
    };
    let paths = Paths::under(&disk.0);
    let id = jobs::submit(&paths, &Request::Run { recipe }).unwrap();
    let job = jobs::open(&paths, id.as_str()).unwrap();
    // Room for the result twice and for what a worker keeps in reserve, not for weights and moments.
    let ballast = disk.0.join("ballast");
    let free = rustix::fs::statvfs(&disk.0).unwrap();
    let free = (free.f_bavail * free.f_frsize) as usize;
    fs::write(&ballast, vec![1u8; free - (344 << 10)]).unwrap();
    let mut worker = std::process::Command::new(env!("CARGO_BIN_EXE_tinsmith"))
        .arg("--home")
        .arg(paths.home())
        .arg("__worker")
        .arg(&job.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("TINSMITH_TRIAL")
        .spawn()
        .unwrap();
    until("the pause", || job.state().status == Status::Paused);
    let status = job.status();
    assert!(status.reason.as_ref().unwrap().starts_with("disk full: "), "{status:?}");
    assert_eq!(status.pid, Some(worker.id()), "the worker waits");
    assert!(job.state().phase.name.contains("recover"), "{:?}", job.state().phase);
    fs::remove_file(&ballast).unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(0), "{:?}", job.state());
    assert_eq!(artifact(&job), expected);
}
