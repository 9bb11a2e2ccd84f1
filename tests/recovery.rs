//! Training after a cut: it helps, and a training that was stopped ends with the same bits as one that
//! was not.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tinsmith::error::Result;
use tinsmith::evaluate::samples::Samples;
use tinsmith::formats::{self, Tokenizer};
use tinsmith::graph::Graph;
use tinsmith::monitor::{Level, Monitor, Silent};
use tinsmith::passes::{Ctx, Keep, PassReport, by_name};
use tinsmith::tensor::Tensor;

/// Keeps one state in a directory, as a job does.
struct Kept {
    dir: PathBuf,
    newest: Mutex<Option<u64>>,
}

impl Kept {
    fn new(dir: &Path) -> Kept {
        Kept { dir: dir.into(), newest: Mutex::new(None) }
    }
}

impl Keep for Kept {
    fn save(&self, step: u64, fill: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        let dir = self.dir.join(step.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        fill(&dir)?;
        *self.newest.lock().unwrap() = Some(step);
        Ok(())
    }
    fn newest(&self) -> Option<(u64, PathBuf)> {
        let step = (*self.newest.lock().unwrap())?;
        Some((step, self.dir.join(step.to_string())))
    }
    fn settled(&self, _: &str) -> Result<Option<f64>> {
        Ok(None)
    }
    fn settle(&self, _: &str, _: f64) -> Result<()> {
        Ok(())
    }
}

/// Stops once `step` training steps are done.
struct StopAt {
    step: u64,
    done: AtomicU64,
}

impl Monitor for StopAt {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, name: &str, step: u64, _: f64) {
        if name == "loss" {
            self.done.store(step + 1, Ordering::Relaxed);
        }
    }
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.step
    }
}

fn sample() -> (Graph, Samples) {
    let graph = formats::load(Path::new("assets/digits-resnet.onnx")).unwrap().graph;
    let none = || -> Result<Tokenizer> { unreachable!("numbers need no tokenizer") };
    let data = Samples::open("digits:train#0..400", &graph, &none, None).unwrap();
    (graph, data)
}

fn settings(more: &str) -> toml::Table {
    let text = format!("ratio = 0.4\ncriterion = \"l2\"\nscope = \"layer\"\n[recover]\nbatch = 32\n{more}");
    toml::from_str(&text).unwrap()
}

fn run(table: &toml::Table, monitor: &dyn Monitor, keep: Option<&dyn Keep>) -> Result<(Graph, PassReport)> {
    let (graph, data) = sample();
    let mut ctx = Ctx { train: Some(&data), keep, seed: 3, ..Ctx::new(monitor) };
    by_name("prune", table).unwrap().run(&graph, &mut ctx)
}

fn bits(graph: &Graph) -> Vec<(String, Vec<u32>)> {
    graph
        .initializers()
        .filter(|(_, t)| t.dtype().is_float())
        .map(|(v, t)| {
            let bits = t.to_f32s().unwrap().iter().map(|x| x.to_bits()).collect();
            (graph.value_name(v).to_string(), bits)
        })
        .collect()
}

#[test]
fn training_lowers_the_held_out_loss_by_labels_and_by_the_original() {
    for towards in ["task", "reference"] {
        let (_, report) =
            run(&settings(&format!("rate = 1e-3\nsteps = 16\ntowards = \"{towards}\"")), &Silent, None)
                .unwrap();
        let (before, after) =
            (report.facts["recover_held_out_before"], report.facts["recover_held_out_after"]);
        assert!(after < 0.8 * before, "{towards}: {before} -> {after}");
        assert!(report.applied.iter().any(|a| a.rule == "recover"), "{report:?}");
    }
}

#[test]
fn a_training_that_was_stopped_ends_with_the_same_bits() {
    let table = settings("rate = 1e-3\nsteps = 6\nlooks = 3");
    let (whole, _) = run(&table, &Silent, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keep = Kept::new(dir.path());
    for stop in [2, 5] {
        let monitor = StopAt { step: stop, done: AtomicU64::new(0) };
        let e = run(&table, &monitor, Some(&keep)).unwrap_err();
        assert_eq!(e.kind().exit_code(), 75, "{e}");
        assert_eq!(keep.newest().map(|(step, _)| step), Some(stop));
    }
    let (resumed, _) = run(&table, &Silent, Some(&keep)).unwrap();
    assert!(bits(&whole) == bits(&resumed), "stopped and whole training differ");
    let (cut, _) = run(&settings("steps = 1\nrate = 1e-9"), &Silent, None).unwrap();
    assert!(bits(&cut) != bits(&whole), "training changed nothing");
}

/// Rows of which one holds what is no number.
fn with_a_hole(at: usize) -> Samples {
    let (_, data) = sample();
    let batches = (0..20).map(|i| {
        let mut batch = data.batch(&[i]).unwrap();
        if i == at {
            let (_, tensor) = &mut batch.inputs[0];
            let hole = vec![f32::NAN; tensor.len()];
            *tensor = Tensor::from_vec(tensor.shape().to_vec(), hole).unwrap();
        }
        batch
    });
    Samples::given(batches.collect())
}

/// Training that diverges ends with the best weights so far, and where there are none with an error that
/// tells the step and the rate; the cut alone is never taken for a recovered model.
#[test]
fn a_training_that_diverges_keeps_what_was_better() {
    let (graph, _) = sample();
    let table = settings("rate = 1e-3\nsteps = 18\nlooks = 9\npatience = 0\ntowards = \"task\"");
    let table: toml::Table =
        toml::from_str(&toml::to_string(&table).unwrap().replace("batch = 32", "batch = 1")).unwrap();
    let (mut kept, mut failed) = (0, 0);
    for hole in 0..20 {
        let data = with_a_hole(hole);
        let mut ctx = Ctx { train: Some(&data), seed: 3, ..Ctx::new(&Silent) };
        match by_name("prune", &table).unwrap().run(&graph, &mut ctx) {
            Ok((pruned, report)) => {
                let at = report.facts["recover_diverged_at"];
                assert!((2.0..18.0).contains(&at), "{at}");
                assert!(report.facts["recover_held_out_after"] < report.facts["recover_held_out_before"]);
                assert!(bits(&pruned).iter().flat_map(|(_, b)| b).all(|b| f32::from_bits(*b).is_finite()));
                kept += 1;
            }
            // The hole is among the rows that are held out.
            Err(e) if e.code() == "LOSS-NAN" => {}
            Err(e) => {
                assert_eq!((e.code(), e.kind().exit_code()), ("RECOVER-DIVERGED", 3), "{e}");
                let text = e.to_string();
                let said = ["step.recover.rate", "training step", "lower the learning rate"];
                assert!(said.iter().all(|s| text.contains(s)), "{text}");
                failed += 1;
            }
        }
    }
    assert!(kept > 5 && failed > 0, "{kept} kept, {failed} failed");
}

#[test]
fn what_training_cannot_do_is_named() {
    for (text, code) in [
        ("steps = 0", "RECOVER-SETTINGS"),
        ("steps = 3\ntokens = 5", "RECOVER-SETTINGS"),
        ("steps = 3\nhold_out = 1.0", "RECOVER-SETTINGS"),
    ] {
        let e = by_name("prune", &settings(text)).err().unwrap();
        assert!(e.code() == code && e.kind().exit_code() == 2, "{e}");
    }
    let (graph, _) = sample();
    let mut ctx = Ctx::new(&Silent);
    let pass = by_name("prune", &settings("steps = 3")).unwrap();
    let e = pass.check(&graph, &ctx).unwrap_err();
    assert!(e.code() == "RECOVER-DATA" && e.to_string().contains("data.train"), "{e}");
    let none = || -> Result<Tokenizer> { unreachable!("numbers need no tokenizer") };
    let one = Samples::open("digits:train#0..1", &graph, &none, None).unwrap();
    ctx.train = Some(&one);
    assert_eq!(pass.check(&graph, &ctx).unwrap_err().code(), "RECOVER-DATA");
}
