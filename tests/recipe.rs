//! Recipes: the published schema says what is read, and flags write what they mean.

use crate::run::{Home, text};
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::fs;
use tinsmith::passes;
use tinsmith::plan::Recipe;

fn schema() -> Json {
    serde_json::from_str(include_str!("../assets/schema/recipe.json")).unwrap()
}

fn names<'a>(of: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    of.into_iter().map(String::from).collect()
}

/// What a message of the reader lists behind "expected": names between backticks.
fn listed(message: &str) -> BTreeSet<String> {
    let behind = message.split_once("expected").unwrap_or_else(|| panic!("{message}")).1;
    let behind = behind.split("; ").next().unwrap();
    names(behind.split('`').skip(1).step_by(2))
}

fn table(document: &Json) -> toml::Table {
    toml::Table::try_from(document).unwrap()
}

/// What reading the settings of a pass complains of.
fn complaint(pass: &str, settings: &Json) -> String {
    passes::by_name(pass, &table(settings)).err().unwrap_or_else(|| panic!("{settings} is read")).to_string()
}

/// Puts a value at a path of keys.
fn at(path: &[&str], value: Json) -> Json {
    path.iter().rev().fold(value, |inner, key| json!({ *key: inner }))
}

/// Every object of the schema below a pass has the fields that are read, and every choice the names.
fn agrees(pass: &str, path: &[&str], node: &Json, all: &Json, seen: &mut usize) {
    let node = match node["$ref"].as_str() {
        Some(reference) => &all["$defs"][reference.rsplit('/').next().unwrap()],
        None => node,
    };
    if let Some(choices) = node["enum"].as_array() {
        let wanted = names(choices.iter().map(|c| c.as_str().unwrap()));
        let message = complaint(pass, &at(path, json!("no such thing")));
        // A single name is not listed as one of several.
        assert_eq!(listed(&message), wanted, "{pass} {path:?}: {message}");
        *seen += 1;
    }
    let Some(fields) = node["properties"].as_object() else { return };
    let known = names(fields.keys().map(String::as_str).filter(|k| *k != "pass"));
    let message = complaint(pass, &at(&[path, &["no_such_field"]].concat(), json!(1)));
    assert_eq!(listed(&message), known, "{pass} {path:?}: {message}");
    assert_eq!(node["additionalProperties"], false, "{pass} {path:?}");
    *seen += 1;
    for (name, field) in fields.iter().filter(|(name, _)| *name != "pass") {
        agrees(pass, &[path, &[name.as_str()]].concat(), field, all, seen);
    }
}

#[test]
fn the_schema_has_the_fields_and_choices_that_are_read() {
    let all = schema();
    let mut seen = 0;
    for (pass, _, _) in passes::PASSES {
        agrees(pass, &[], &all["$defs"][pass], &all, &mut seen);
    }
    assert!(seen > 15, "{seen} objects and choices");
    let step = names(
        all["$defs"]["step"]["properties"]["pass"]["enum"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_str().unwrap()),
    );
    assert_eq!(step, names(passes::PASSES.iter().map(|(name, _, _)| *name)));
    // The recipe around the steps.
    let head = "schema_version = 1\nname = \"n\"\nmodel = \"m\"\n";
    for (part, node) in [("", &all), ("data", &all["$defs"]["data"]), ("goal", &all["$defs"]["goal"])] {
        let faulty = match part {
            "" => format!("{head}no_such_field = 1\n"),
            part => format!("{head}[{part}]\nno_such_field = 1\n"),
        };
        let message = Recipe::parse(&faulty).unwrap_err().to_string();
        assert_eq!(
            listed(&message),
            names(node["properties"].as_object().unwrap().keys().map(String::as_str)),
            "{part}"
        );
    }
}

#[test]
fn the_schema_takes_what_is_read_and_refuses_what_is_not() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let of = |step: Json| json!({ "schema_version": 1, "name": "n", "model": "m.onnx", "step": [step] });
    let with = |more: Json| {
        let mut step = json!({ "pass": "prune" });
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        step
    };
    let reads = |step: &Json| {
        let mut settings = step.clone();
        settings.as_object_mut().unwrap().remove("pass");
        passes::by_name(step["pass"].as_str().unwrap(), &table(&settings)).is_ok()
    };
    let good = [
        json!({ "pass": "optimize", "skip": ["fold-batch-norm"] }),
        json!({ "pass": "lower", "target": "standard" }),
        json!({ "pass": "quantize", "scheme": "static-int8", "per_channel": false }),
        json!({ "pass": "quantize", "scheme": "dynamic-int8", "repair": { "smooth": "auto", "equalize": true } }),
        json!({ "pass": "quantize", "repair": { "smooth": 0.5 } }),
        with(json!({ "ratio": 0.3, "criterion": "taylor", "of": "total", "exclude": ["head*"] })),
        with(json!({ "target": { "macs": 0.5 } })),
        with(json!({ "target": { "bytes": "20MB" } })),
        with(json!({ "target": { "bytes": "1.5 GiB" }, "protect": ["head"] })),
        with(json!({ "target": { "params": "25M" } })),
        with(json!({ "target": { "latency": 0.5 } })),
        with(json!({ "ratios": { "heads": 0.25, "neurons": 0.5 }, "scope": "layer" })),
        with(json!({ "ratio": 0.2, "recover": { "tokens": 20000, "rate": 1e-4, "towards": "task" } })),
    ];
    for step in good {
        let errors: Vec<String> = validator.iter_errors(&of(step.clone())).map(|e| e.to_string()).collect();
        assert!(errors.is_empty() && reads(&step), "{step}: {errors:?}");
    }
    let bad = [
        json!({ "pass": "sharpen" }),
        json!({ "pass": "optimize", "strength": 3 }),
        json!({ "pass": "quantize", "scheme": "int3" }),
        json!({ "pass": "quantize", "repair": { "smooth": 1.5 } }),
        json!({ "pass": "quantize", "repair": { "smooth": "much" } }),
        with(json!({})),
        with(json!({ "ratio": 1.0 })),
        with(json!({ "ratio": -0.1 })),
        with(json!({ "ratio": 0.2, "criterion": "luck" })),
        with(json!({ "target": {} })),
        with(json!({ "target": { "macs": 0.5, "bytes": 0.5 } })),
        with(json!({ "target": { "macs": 1.5 } })),
        with(json!({ "target": { "bytes": "20 pages" } })),
        with(json!({ "target": { "latency": "5ms" } })),
        with(json!({ "ratios": { "heads": 1.0 } })),
        with(json!({ "ratio": 0.2, "round_to": 0 })),
        with(json!({ "ratio": 0.2, "recover": {} })),
        with(json!({ "ratio": 0.2, "recover": { "steps": 5, "rate": 1e30 } })),
        with(json!({ "ratio": 0.2, "recover": { "steps": 5, "lr": 0.1 } })),
    ];
    for step in bad {
        assert!(!validator.is_valid(&of(step.clone())), "the schema takes {step}");
        assert!(!reads(&step), "{step} is read");
    }
}

/// The recipe that flags wrote, checked against the schema.
fn saved(home: &Home, name: &str) -> Recipe {
    let text = fs::read_to_string(home.at(name)).unwrap();
    let document: toml::Table = toml::from_str(&text).unwrap();
    let document = serde_json::to_value(&document).unwrap();
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}\n{text}");
    Recipe::load(&home.at(name)).unwrap()
}

#[test]
fn flags_write_what_they_mean_and_the_recipe_gives_the_same_artefact() {
    let home = Home::new();
    let calibration = ["--calibration", "digits:train#0..48"];
    let train = ["--train", "digits:train#0..64"];
    let cases: &[(&[&str], &str)] = &[
        (&["--target", "macs=0.6", "--round-to", "2"], "round_to = 2\ntarget = { macs = 0.6 }"),
        (&["--target", "params=0.7", "--scope", "layer"], "scope = \"layer\"\ntarget = { params = 0.7 }"),
        (
            &["--target", "bytes=15kB", "--rounds", "2", "--width"],
            "rounds = 2\nwidth = true\ntarget = { bytes = \"15kB\" }",
        ),
        (&["--target", "bytes=15kB", "--min-keep", "0.2"], "min_keep = 0.2\ntarget = { bytes = \"15kB\" }"),
        (
            &["--ratios", "conv1=0.5,channels=0.25", "--round-to", "2"],
            "ratios = { conv1 = 0.5, channels = 0.25 }\nround_to = 2",
        ),
        (&["--ratio", "0.2", "--protect", "head,nowhere"], "exclude = [\"head\", \"nowhere\"]\nratio = 0.2"),
        (
            &["--ratio", "0.3", "--scope", "sensitivity", "--sensitivity-samples", "8", "--batch", "4"],
            "ratio = 0.3\nscope = \"sensitivity\"\nsensitivity_samples = 8\nbatch = 4",
        ),
        (
            &[
                "--ratio",
                "0.3",
                "--criterion",
                "taylor",
                "--power",
                "absolute",
                "--repair",
                "ridge",
                "--ridge",
                "0.1",
            ],
            "criterion = \"taylor\"\npower = \"absolute\"\nratio = 0.3\nrepair = \"ridge\"\nridge = 0.1",
        ),
        (
            &["--ratio", "0.4", "--recover", "steps=3,rate=1e-3", "--recover", "batch=16,towards=task"],
            "ratio = 0.4\nrecover = { steps = 3, rate = 0.001, batch = 16, towards = \"task\" }",
        ),
    ];
    for (flags, wanted) in cases {
        let data = if flags.contains(&"--recover") { train } else { calibration };
        let all = [&["prune", "net.onnx", "-o", "a.onnx", "--save-recipe", "r.toml"], *flags, &data].concat();
        home.ok(&all);
        let recipe = saved(&home, "r.toml");
        let mut wanted: toml::Table = toml::from_str(wanted).unwrap();
        wanted.entry("criterion").or_insert("l2".into());
        assert_eq!(recipe.steps[0].settings, wanted, "{flags:?}");
        home.ok(&["run", "r.toml", "-o", "b.onnx", "--quiet"]);
        let (a, b) = (fs::read(home.at("a.onnx")).unwrap(), fs::read(home.at("b.onnx")).unwrap());
        assert!(a == b, "{flags:?}: the artefacts differ");
        assert!(a.len() < fs::read(home.at("net.onnx")).unwrap().len(), "{flags:?}");
        fs::remove_file(home.at("a.onnx")).unwrap();
    }
}

#[test]
fn flags_of_quantize_write_what_they_mean_and_the_recipe_gives_the_same_artefact() {
    let home = Home::new();
    let cases: [(&str, &str); 9] = [
        ("--scheme fp16", "scheme = 'fp16'"),
        (
            "--scheme static-int8 --equalize --smooth 0.5 --bias-correction --rounding gptq",
            "scheme = 'static-int8'\nrounding = 'gptq'\nrepair = { equalize = true, smooth = 0.5, bias_correction = true }",
        ),
        (
            "--scheme weight-int4 --block 16 --int8 fc1 --mixed max_size=0.5,search=greedy --mixed rows=8,metric=sqnr --recover steps=2,rate=1e-4",
            "scheme = 'weight-int4'\nblock = 16\nint8 = ['fc1']\nmixed = { max_size = 0.5, search = 'greedy', rows = 8, metric = 'sqnr' }\nrecover = { steps = 2, rate = 0.0001 }",
        ),
        (
            "--scheme dynamic-int8 --per-tensor --reduce-range --device host --exclude conv1 conv2",
            "scheme = 'dynamic-int8'\nper_channel = false\nreduce_range = true\nexclude = ['conv1', 'conv2']",
        ),
        (
            "--scheme static-int8 --calibrator percentile --percentile 99.5 --samples 16 --form qoperator --activations s8 --symmetric",
            "scheme = 'static-int8'\ncalibrator = 'percentile'\npercentile = 99.5\nsamples = 16\nform = 'qoperator'\nactivations = 's8'\nsymmetric = true",
        ),
        (
            "--scheme weight-int4 --block 64 --rounding gptq --embeddings keep --accuracy-level 4",
            "scheme = 'weight-int4'\nblock = 64\nrounding = 'gptq'\nembeddings = 'keep'\naccuracy_level = 4",
        ),
        (
            "--scheme weight-int4 --rounding k-quant --block 16 --zero-points real --accuracy-level 1",
            "scheme = 'weight-int4'\nrounding = 'k-quant'\nblock = 16\nzero_points = 'real'\naccuracy_level = 1",
        ),
        (
            "--scheme static-int8 --unsigned-weights --mixed max_loss=0.1",
            "scheme = 'static-int8'\nunsigned_weights = true\nmixed = { max_loss = 0.1 }",
        ),
        (
            "--scheme weight-int8 --rounding hqq --block 16",
            "scheme = 'weight-int8'\nrounding = 'hqq'\nblock = 16",
        ),
    ];
    for (flags, wanted) in cases {
        let head = [
            "quantize",
            "net.onnx",
            "-o",
            "a.onnx",
            "--save-recipe",
            "r.toml",
            "--calibration",
            "digits:train#0..48",
        ];
        home.ok(&head.into_iter().chain(flags.split(' ')).collect::<Vec<_>>());
        let wanted: toml::Table = toml::from_str(wanted).unwrap();
        assert_eq!(saved(&home, "r.toml").steps[0].settings, wanted, "{flags}");
        home.ok(&["run", "r.toml", "-o", "b.onnx", "--quiet"]);
        let (a, b) = (fs::read(home.at("a.onnx")).unwrap(), fs::read(home.at("b.onnx")).unwrap());
        assert!(a == b, "{flags}: the artefacts differ");
        assert!(a.len() < fs::read(home.at("net.onnx")).unwrap().len(), "{flags}");
        fs::remove_file(home.at("a.onnx")).unwrap();
    }
}

#[test]
fn faulty_flags_are_named_before_a_job_is_made() {
    let home = Home::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["step.ratio", "nothing says how much"]),
        (&["--ratio", "1"], &["step.ratio", "1", "below 1"]),
        (&["--ratio", "-0.2"], &["step.ratio", "-0.2"]),
        (&["--ratio", "nan"], &["step.ratio", "NaN"]),
        (&["--ratio", "0.2", "--target", "macs=0.5"], &["--ratio", "--target"]),
        (&["--target", "macs=1.5"], &["step.target", "1.5"]),
        (&["--target", "macs"], &["--target", "KEY=VALUE"]),
        (&["--target", "watts=0.5"], &["watts", "macs"]),
        (&["--target", "bytes=20pages"], &["20pages", "20MB"]),
        (&["--target", "bytes=20"], &["step.target", "20"]),
        (&["--target", "latency=5ms"], &["5ms"]),
        (&["--ratios", "heads"], &["--ratios", "KEY=VALUE"]),
        (&["--ratios", "heads=1"], &["step.ratios.heads", "below 1"]),
        (&["--ratio", "0.2", "--scope", "town"], &["town", "global"]),
        (&["--ratio", "0.2", "--unit", "brick"], &["brick", "layer"]),
        (&["--ratio", "0.2", "--round-to", "0"], &["step.round_to"]),
        (&["--ratio", "0.2", "--rounds", "0"], &["step.rounds"]),
        (&["--ratio", "0.2", "--of", "all"], &["all", "prunable"]),
        (&["--ratio", "0.2", "--recover", "rate=1e-3", "--train", "digits:train"], &["step.recover.steps"]),
        (
            &["--ratio", "0.2", "--recover", "steps=5,rate=1e30", "--train", "digits:train"],
            &["step.recover.rate"],
        ),
        (&["--ratio", "0.2", "--recover", "steps=5,lr=1", "--train", "digits:train"], &["lr", "rate"]),
        (&["--ratio", "0.2", "--recover", "steps=5"], &["data.train", "needs training data"]),
        (&["--ratio", "0.2", "--scope", "sensitivity"], &["data.calibration", "scope sensitivity"]),
        (&["--ratio", "0.2", "--criterion", "taylor"], &["data.calibration", "criterion taylor"]),
        (&["--ratio", "0.2", "--repair", "ridge"], &["data.calibration", "repair ridge"]),
    ];
    for (flags, said) in cases {
        let out = home.tinsmith(&[&["prune", "net.onnx"], *flags].concat());
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(said.iter().all(|s| stderr.contains(s)), "{flags:?}: {stderr}");
    }
    assert!(!home.paths.jobs().exists(), "nothing was submitted");
}
