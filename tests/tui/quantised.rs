//! What a quantise step did: its tables, keeping a layer in float and running again, and what is compared then.

use super::desk::start;
use super::fixtures::*;
use crate::run::{Home, net};
use std::sync::Arc;
use std::time::Duration;
use tinsmith::analysis::SaturatedLayer;
use tinsmith::jobs::state::Artifact;
use tinsmith::jobs::{Request, Status};
use tinsmith::passes::quantize::{LayerReport, OptionReport, Precision, TensorReport};
use tinsmith::passes::{self, PassReport};
use tinsmith::plan::{Recipe, Step};
use tinsmith::tui::Tab;
use tinsmith::tui::app::{App, Control, Data, Effect, Job};
use tinsmith::tui::compare::Source;
use tinsmith::tui::layout::Pane;
use tinsmith::tui::quantised::{Quantised, Sheet};
use tinsmith::tui::theme::Look;
use tinsmith::tui::view;

const FIRST: &str = "20261123-141500-beef";
const AGAIN: &str = "20261123-151500-cafe";

/// Layers of the model in the fixtures that can be quantised.
fn names() -> Vec<String> {
    summary().layers.iter().filter(|l| l.parameters > 0).map(|l| l.name.clone()).collect()
}

fn recipe(exclude: &[&str]) -> Recipe {
    let mut recipe = Recipe::new("static-int8", "/models/digits.onnx");
    let mut step = Step::new("quantize").with("scheme", "weight-int4");
    if !exclude.is_empty() {
        step = step.with("exclude", exclude.to_vec());
    }
    recipe.steps = vec![Step::new("prune").with("ratio", 0.3), step];
    recipe
}

/// What a run of mixed precision told: the third layer hurts most and got 8 bits.
fn told(job: &str, recipe: Recipe, loss: f64) -> Quantised {
    let mut report = PassReport::new("quantize");
    let kept = recipe.in_float();
    for (i, name) in names().iter().enumerate().filter(|(_, n)| !kept.contains(&format!("={n}"))) {
        let option = |precision, loss, saved_bytes| OptionReport { precision, saved_bytes, loss };
        let most = if i == 2 { 0.041 } else { 0.001 * (i + 1) as f64 };
        report.layers.push(LayerReport {
            name: name.clone(),
            precision: if i == 2 { Precision::Int8 } else { Precision::Scheme },
            options: vec![
                option(Precision::Scheme, most, 8120.0),
                option(Precision::Int8, most / 250.0, 6960.0),
            ],
        });
        report.apply("weight-int4", name, "4 bits in blocks of 32");
        report.tensors.push(TensorReport {
            value: format!("{name}_output_0"),
            elements: 262_144,
            min: -1.59,
            max: 1.18 * (i + 1) as f32,
            low: -1.59,
            high: 1.0,
            scale: 0.0109,
            zero_point: 146,
            clipped: 0.002 * i as f64,
            sqnr_db: Some(40.0 - 6.0 * i as f64),
        });
        report.saturation.push(SaturatedLayer {
            node: name.clone(),
            operator: "Conv".into(),
            products: 1 << 20,
            pairs: 1 << 19,
            saturated_pairs: if i == 1 { 9352 } else { 0 },
            share: if i == 1 { 9352.0 / 524_288.0 } else { 0.0 },
            outputs: 65_536,
            changed_outputs: if i == 1 { 8521 } else { 0 },
            largest_error: if i == 1 { 37_741 } else { 0 },
            largest_sum: 142_974,
        });
    }
    report.apply("equalize", "/stem/Conv", "16 channels with /layer.1/conv1/Conv");
    report.skip("weight-int4", "/head/fc/Gemm", "a number that is not finite");
    for (name, value) in [
        ("mixed_loss", loss),
        ("calibration_samples", 128.0),
        ("saturated_pairs", 9352.0),
        ("held_pairs", 4_194_304.0),
        ("saturation_cosine", 0.998_56),
        ("weight_bytes_before", 56_680.0),
        ("weight_bytes_after", 9_480.0),
        ("mixed_known_layers", kept.len() as f64 * 7.0),
    ] {
        report.facts.insert(name.into(), value);
    }
    let settings = passes::settings("quantize", &recipe.steps[1].settings).unwrap();
    Quantised::new(job, recipe, &settings, report)
}

fn finished(id: &str, name: &str, bytes: u64) -> Job {
    let mut job = job(id, name, Status::Finished);
    let state = Arc::make_mut(&mut job.state);
    state.created_ms = id.bytes().fold(0, |n, b| n * 2 + u64::from(b));
    state.checkpoint = Some((1, "checkpoints/step-1".into()));
    state.measurements = vec![
        measurement("original", Some(0.412), 62_310, Some(0.972)),
        measurement(name, Some(0.2), bytes, Some(0.961)),
    ];
    state.artifacts =
        vec![Artifact { name: name.into(), path: "a.onnx".into(), sha256: "ab".repeat(32), bytes }];
    job
}

/// The Runs tab on a quantised run, its tables in front.
fn workbench(look: Look) -> App {
    let mut app = full(look);
    let mut jobs = jobs();
    jobs.retain(|j| j.id != FIRST);
    jobs.push(finished(FIRST, "static-int8", 18_430));
    let out = data(&mut app, Data::Jobs(jobs));
    assert!(out.contains(&Effect::ReadQuantised(vec![FIRST.into()])), "{out:?}");
    data(&mut app, Data::Quantised(vec![told(FIRST, recipe(&[]), 0.0185)]));
    app.runs.want(FIRST);
    app.tab = Tab::Runs;
    app
}

fn submitted(effects: &[Effect]) -> Recipe {
    let of = |e: &Effect| match e {
        Effect::Submit(recipe) => Some((**recipe).clone()),
        _ => None,
    };
    effects.iter().find_map(of).unwrap_or_else(|| panic!("nothing was submitted: {effects:?}"))
}

#[test]
fn the_tables_of_a_run_at_every_size() {
    let mut app = workbench(PLAIN);
    for (w, h) in [(80, 24), (120, 40), (200, 60)] {
        check(&format!("quantised-{w}x{h}"), screen(&app, w, h));
    }
    keys(&mut app, "Enter");
    assert_eq!(app.pane(), Pane::Quantised);
    for sheet in ["ranges", "saturation", "notes"] {
        keys(&mut app, "Right");
        check(&format!("quantised-120x40-{sheet}"), screen(&app, 120, 40));
    }
    keys(&mut app, "Right");
    assert_eq!(app.runs.sheets.sheet, Sheet::Notes, "there is no further table");
    keys(&mut app, "Left Left Left Left");
    assert_eq!(app.pane(), Pane::Jobs, "back from the first one");
    check("quantised-80x24-ascii", screen(&workbench(BARE), 80, 24));
}

#[test]
fn any_size_and_hostile_names_are_drawn() {
    let mut app = workbench(PLAIN);
    let mut run = told(FIRST, recipe(&[]), f64::NAN);
    run.layers[0].name = "\u{1b}[31m日本語/".repeat(40);
    run.layers[1].most = Some(f64::INFINITY);
    data(&mut app, Data::Quantised(vec![run]));
    keys(&mut app, "Enter");
    for _ in 0..4 {
        for (w, h) in (0..40).map(|i| (i * 6, i * 2)) {
            let mut buffer = ratatui::buffer::Buffer::empty(ratatui::layout::Rect::new(0, 0, w, h));
            view::draw(&app, &mut buffer);
            assert!(buffer.content.iter().all(|c| !c.symbol().contains('\u{1b}')), "{w}x{h}");
        }
        keys(&mut app, "Right");
    }
}

#[test]
fn the_worst_is_first() {
    let run = told(FIRST, recipe(&[]), 0.0185);
    let losses: Vec<f64> = run.layers.iter().map(|l| l.loss.unwrap()).collect();
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    // The most sensitive layer got bits, and stands behind those that lose more as they are.
    let third = run.layers.iter().position(|l| l.name == names()[2]).unwrap();
    assert_eq!((run.layers[third].got, third), ("int8", run.layers.len() - 1));
    let db = |i: &usize| run.report.tensors[*i].sqnr_db.unwrap();
    assert!(run.ranges.is_sorted_by(|a, b| db(a) <= db(b)));
    assert_eq!(run.report.saturation[run.saturation[0]].node, names()[1]);
}

#[test]
fn reports_are_read_once_a_step_is_saved() {
    let mut app = full(PLAIN);
    let mut job = finished(FIRST, "static-int8", 18_430);
    Arc::make_mut(&mut job.state).checkpoint = None;
    let asks = |app: &mut App, job: &Job| {
        let out = data(app, Data::Jobs(vec![job.clone()]));
        out.iter().any(|e| matches!(e, Effect::ReadQuantised(_)))
    };
    assert!(!asks(&mut app, &job), "no step is whole");
    for step in 0..2 {
        Arc::make_mut(&mut job.state).checkpoint = Some((step, String::new()));
        assert!(asks(&mut app, &job), "step {step}");
        assert!(!asks(&mut app, &job), "step {step}, again");
    }
}

#[test]
fn a_layer_is_kept_in_float_by_a_key_and_given_back_by_the_same() {
    let mut app = workbench(PLAIN);
    keys(&mut app, "Enter j");
    let layer = app.told.of(FIRST).unwrap().layers[1].name.clone();
    let one = submitted(&keys(&mut app, "K"));
    assert_eq!(one.in_float(), [format!("={layer}")]);
    assert_eq!(
        (one.name.as_str(), one.steps[0].clone()),
        ("static-int8-float1", recipe(&[]).steps[0].clone())
    );
    let said = app.toast.as_ref().unwrap().text.clone();
    assert!(
        said.contains(&layer) && said.contains("stays in float") && said.contains("from step 2 on"),
        "{said}"
    );
    assert!(screen(&app, 120, 40).contains("→float"));
    // The workbench stays where the next layer can be chosen, and what is not asked for any more is cancelled.
    data(&mut app, Data::Submitted(Ok(AGAIN.into())));
    assert_eq!((app.tab, app.pane()), (Tab::Runs, Pane::Quantised));
    let out = keys(&mut app, "j K");
    assert!(out.contains(&Effect::Control { id: AGAIN.into(), control: Control::Cancel }), "{out:?}");
    let two = submitted(&out);
    assert_eq!((two.in_float().len(), two.name.as_str()), (2, "static-int8-float2"));
    data(&mut app, Data::Submitted(Ok("20261123-151501-cafe".into())));
    let out = keys(&mut app, "k K");
    assert_eq!(submitted(&out).in_float(), two.in_float()[1..], "the first one is quantised again");
    assert!(app.toast.as_ref().unwrap().text.contains("is quantised again"));
}

#[test]
fn the_result_is_compared_with_the_former_one() {
    let mut app = workbench(PLAIN);
    let again = submitted(&{
        keys(&mut app, "Enter");
        keys(&mut app, "K")
    });
    data(&mut app, Data::Submitted(Ok(AGAIN.into())));
    let mut jobs: Vec<Job> = app.runs.jobs.clone();
    let mut later = finished(AGAIN, &again.name, 20_110);
    let state = Arc::make_mut(&mut later.state);
    state.status = Status::Running;
    jobs.push(later.clone());
    data(&mut app, Data::Jobs(jobs.clone()));
    assert!(app.runs.marks.is_empty());
    Arc::make_mut(&mut later.state).status = Status::Finished;
    *jobs.last_mut().unwrap() = later;
    data(&mut app, Data::Jobs(jobs.clone()));
    let said = app.toast.as_ref().unwrap().text.clone();
    assert!(said.contains("size 18.0 KiB → 19.6 KiB") && said.contains("accuracy"), "{said}");
    assert_eq!(app.runs.marks, [FIRST.to_string(), AGAIN.to_string()].into());
    assert_eq!((app.compare.measurements.len(), &app.compare.source), (3, &Source::Marked(2)));
    data(&mut app, Data::Quantised(vec![told(AGAIN, again, 0.0121)]));
    assert_eq!(app.runs.selected().unwrap().id, AGAIN);
    let shown = screen(&app, 120, 40);
    assert!(shown.contains("against static-int8:"), "{shown}");
    check("quantised-120x40-again", shown);
    check("quantised-80x24-again", screen(&app, 80, 24));
    check("quantised-200x60-again", screen(&app, 200, 60));
    // It was told once.
    app.toast = None;
    jobs[0].usage = None;
    data(&mut app, Data::Jobs(jobs));
    assert!(app.toast.is_none());
}

#[test]
fn the_plan_shows_the_layers_of_a_recipe_as_it_ran_last() {
    let mut app = workbench(PLAIN);
    let mut ranked = ranked();
    ranked.recommendation.proposals[0].recipe = recipe(&[]);
    let generation = app.plan.generation;
    data(&mut app, Data::Proposed { generation, result: Ok(Box::new(ranked)) });
    keys(&mut app, "2 Tab Tab");
    assert_eq!(app.pane(), Pane::Quantised);
    for (w, h) in [(80, 24), (120, 40), (200, 60)] {
        check(&format!("quantised-plan-{w}x{h}"), screen(&app, w, h));
    }
    let layer = app.told.of(FIRST).unwrap().layers[0].name.clone();
    assert_eq!(submitted(&keys(&mut app, "K")).in_float(), [format!("={layer}")]);
    // The changed recipe stands before the others and is in front.
    let own = app.plan.selected().unwrap();
    assert_eq!((own.rank, own.name.as_str()), (0, "static-int8-float1"));
    assert_eq!(submitted(&keys(&mut app, "K")), recipe(&[]), "and back");
    assert!(app.plan.own.is_empty());
    // A recipe that never ran has no such pane.
    keys(&mut app, "Esc j Tab Tab");
    assert_eq!(app.pane(), Pane::Proposals);
}

#[test]
fn the_model_tab_keeps_the_selected_layer_in_float() {
    let mut app = workbench(PLAIN);
    app.tab = Tab::Model;
    let go_to = |app: &mut App, op: &str| {
        keys(app, "g");
        for _ in 0..60 {
            if app.model.selected_layer().is_some_and(|l| l.op == op) {
                return;
            }
            keys(app, "j");
        }
        panic!("no {op}");
    };
    go_to(&mut app, "Gemm");
    assert!(screen(&app, 120, 40).contains("K keep in float"));
    assert_eq!(submitted(&keys(&mut app, "K")).in_float(), ["=/head/fc/Gemm"]);
    assert_eq!(app.tab, Tab::Model);
    // A layer that is not quantised anyway has no such key.
    go_to(&mut app, "Relu");
    assert!(keys(&mut app, "K").is_empty());
}

#[test]
fn a_pattern_that_covers_more_is_left_to_the_recipe() {
    let mut app = workbench(PLAIN);
    let wide = recipe(&["layer.*", "layer.1"]);
    data(&mut app, Data::Quantised(vec![told(FIRST, wide, 0.0185)]));
    keys(&mut app, "Enter");
    let at = app.told.of(FIRST).unwrap().layers.iter().position(|l| l.name.contains("layer.1/")).unwrap();
    app.runs.sheets.list.selected = at;
    assert!(keys(&mut app, "K").is_empty());
    assert!(app.toast.as_ref().unwrap().text.contains("FLOAT-PATTERN"));
}

#[test]
fn a_model_that_lost_is_labelled() {
    let mut app = workbench(PLAIN);
    let mut jobs = app.runs.jobs.clone();
    let lost = jobs.iter_mut().find(|j| j.id == FIRST).unwrap();
    lost.against = vec!["slower than original by +12.0 % on 1 thread (job x)".into()];
    assert_eq!(lost.verdict(), Some("slower"));
    data(&mut app, Data::Jobs(jobs.clone()));
    let shown = screen(&app, 200, 60);
    assert!(shown.contains("slower  -70% size"), "{shown}");
    assert!(shown.contains("Not recommended") && shown.contains("by +12.0 %"), "{shown}");
    jobs.iter_mut().find(|j| j.id == FIRST).unwrap().against.push("accuracy worse than that of x".into());
    data(&mut app, Data::Jobs(jobs));
    assert!(screen(&app, 200, 60).contains("slower, worse  -70% size"));
}

#[test]
fn the_program_runs_only_what_changed() {
    let home = Home::new();
    net(&home.at("net.onnx"), 8);
    let mut recipe = home.recipe("small", "net.onnx", &[Step::new("prune").with("ratio", 0.25)]);
    recipe.steps.push(Step::new("quantize").with("scheme", "static-int8"));
    let first = home.submit(&Request::Run { recipe });
    assert_eq!(home.start(&first).wait().unwrap().code(), Some(0));
    let mut desk = start(home.paths.home()).size(120, 40).open(&home.at("net.onnx")).run();
    desk.wait_for("conv1");
    desk.press("3");
    desk.wait_for("[layers 4]");
    desk.press("\r");
    desk.wait_for("K keeps it in float");
    desk.press("K");
    desk.wait_for("stays in float");
    let screen = desk.wait_for("against small:  size");
    assert!(screen.contains("small-float1"), "{screen}");
    desk.press("q");
    desk.press("q");
    assert_eq!(desk.ended_within(Duration::from_secs(5)), Some(0));
    let jobs = tinsmith::jobs::list(&home.paths);
    let again = jobs.iter().find(|j| j.id != first.id).unwrap();
    let Request::Run { recipe } = again.request().unwrap() else { panic!("a run") };
    assert_eq!(recipe.in_float().len(), 1);
    let kept = recipe.in_float()[0].trim_start_matches('=').to_string();
    let made = |job: &tinsmith::jobs::JobHandle| job.report(1, "quantize").unwrap().applied;
    assert!(made(&first).iter().any(|a| a.target == kept) && made(again).iter().all(|a| a.target != kept));
    assert!(again.state().log.iter().any(|l| l.message.contains("step 1, prune: as an earlier run made it")));
}
