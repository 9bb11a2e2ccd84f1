//! What keys and messages do to the state, and which effects they ask for. No terminal.

use super::fixtures::*;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::path::PathBuf;
use std::sync::Arc;
use tinsmith::jobs::Status;
use tinsmith::tui::Tab;
use tinsmith::tui::app::{Control, Data, Effect, Failure, Msg};
use tinsmith::tui::layout::Pane;
use tinsmith::tui::model::{Opened, View};
use tinsmith::tui::overlay::Overlay;
use tinsmith::tui::update::update;

#[test]
fn digits_choose_the_tab_and_tab_moves_the_focus() {
    let mut app = full(PLAIN);
    for (key, tab) in ["1", "2", "3", "4", "5"].into_iter().zip(Tab::ALL) {
        keys(&mut app, key);
        assert_eq!(app.tab, tab);
    }
    keys(&mut app, "3 Tab");
    assert_eq!(app.pane(), Pane::Charts);
    keys(&mut app, "Shift-Tab Shift-Tab");
    assert_eq!(app.pane(), Pane::Tail);
    keys(&mut app, "Esc");
    assert_eq!(app.pane(), Pane::Jobs);
}

#[test]
fn opening_a_model_asks_for_its_analysis_and_then_for_proposals() {
    let mut app = blank(PLAIN);
    let effects = keys(&mut app, "o");
    assert!(matches!(&effects[..], [Effect::FindModels { typed, .. }] if typed.is_empty()));
    text(&mut app, "/m/a.onnx");
    let effects = keys(&mut app, "Enter");
    let [Effect::Analyse { generation, path }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(path, &PathBuf::from("/m/a.onnx"));
    let opened = Arc::new(Opened::new(summary()));
    let answer = Data::Analysed { generation: *generation, path: path.clone(), result: Ok(opened) };
    let effects = data(&mut app, answer);
    assert!(matches!(&effects[..], [Effect::Recommend { .. }]), "{effects:?}");
    assert!(app.model.opened.is_some());
}

#[test]
fn a_measurement_of_the_model_in_front_is_what_predictions_start_from() {
    let mut app = blank(PLAIN);
    keys(&mut app, "o");
    text(&mut app, "/models/digits.onnx");
    keys(&mut app, "Enter");
    let opened = Arc::new(Opened::new(summary()));
    data(&mut app, Data::Analysed { generation: 1, path: "/models/digits.onnx".into(), result: Ok(opened) });
    let asked = |effects: Vec<Effect>| {
        effects.into_iter().find_map(|e| match e {
            Effect::Recommend { measured_ms, .. } => Some(measured_ms),
            _ => None,
        })
    };
    assert_eq!(asked(data(&mut app, Data::Jobs(jobs()))), Some(Some(0.412)));
    assert_eq!(asked(data(&mut app, Data::Jobs(jobs()))), None, "nothing new");
    keys(&mut app, "2");
    assert_eq!(asked(keys(&mut app, "u")), Some(Some(0.412)));
}

#[test]
fn variants_of_one_name_are_told_apart() {
    let mut app = full(PLAIN);
    let mut all = jobs();
    let state = Arc::make_mut(&mut all[2].state);
    let mut twice = state.measurements[0].clone();
    twice.conditions.threads = 2;
    state.measurements.push(twice);
    let effects = data(&mut app, Data::Jobs(all));
    let measurements = effects
        .iter()
        .find_map(|e| match e {
            Effect::Compare { measurements, baseline, .. } => Some((measurements, baseline)),
            _ => None,
        })
        .unwrap();
    assert_eq!(measurements.0[*measurements.1].variant, "original");
    assert_eq!(measurements.0.last().unwrap().variant, "original, 2 threads");
}

#[test]
fn an_answer_to_an_older_request_changes_nothing() {
    let mut app = blank(PLAIN);
    for name in ["/a.onnx", "/b.onnx"] {
        keys(&mut app, "o");
        text(&mut app, name);
        keys(&mut app, "Enter");
    }
    let late = Data::Analysed {
        generation: 1,
        path: "/a.onnx".into(),
        result: Ok(Arc::new(Opened::new(summary()))),
    };
    assert!(data(&mut app, late).is_empty());
    assert!(app.model.opened.is_none());
    assert_eq!(app.model.loading, Some("/b.onnx".into()));
}

#[test]
fn a_model_that_cannot_be_read_says_why_and_what_to_press() {
    let mut app = blank(PLAIN);
    keys(&mut app, "o");
    text(&mut app, "/bad.onnx");
    keys(&mut app, "Enter");
    let failure = Failure { message: "[ONNX-DIMS] bad.onnx: dimension is negative; export it again".into() };
    data(&mut app, Data::Analysed { generation: 1, path: "/bad.onnx".into(), result: Err(failure) });
    let screen = screen(&app, 100, 30);
    assert!(screen.contains("dimension is negative") && screen.contains("open another model"), "{screen}");
}

#[test]
fn groups_expand_and_collapse_and_natural_order_holds() {
    let mut app = full(PLAIN);
    let shown = screen(&app, 120, 40);
    let at = |name: &str| shown.find(name).unwrap_or_else(|| panic!("{name}: {shown}"));
    assert!(at("layer.1") < at("layer.2") && at("layer.2") < at("layer.10"));
    let all = app.model.rows.len();
    keys(&mut app, "*");
    assert!(app.model.rows.len() < all);
    keys(&mut app, "*");
    assert_eq!(app.model.rows.len(), all);
    keys(&mut app, "g h");
    assert!(app.model.rows.len() < all);
    keys(&mut app, "l");
    assert_eq!(app.model.rows.len(), all);
}

#[test]
fn a_filter_shows_matches_with_their_groups_and_esc_takes_it_away() {
    let mut app = full(PLAIN);
    let all = app.model.rows.len();
    keys(&mut app, "/");
    text(&mut app, "gemm");
    assert!(app.model.rows.len() < all && !app.model.rows.is_empty());
    assert!(screen(&app, 120, 40).contains("Gemm"));
    keys(&mut app, "Enter n");
    assert_eq!(app.model.selected_layer().unwrap().op, "Gemm");
    keys(&mut app, "Esc");
    assert_eq!(app.model.rows.len(), all);
}

#[test]
fn the_model_tab_shows_coupling_groups_and_unknown_operators() {
    let mut app = full(PLAIN);
    keys(&mut app, "v");
    assert_eq!(app.model.view, View::Groups);
    assert!(screen(&app, 120, 40).contains("pinned"));
    keys(&mut app, "v");
    let shown = screen(&app, 120, 40);
    assert!(shown.contains("acme:Temper") && shown.contains("unknown"), "{shown}");
}

#[test]
fn running_a_recipe_asks_first_and_shows_the_command() {
    let mut app = full(PLAIN);
    assert!(keys(&mut app, "2 r").is_empty());
    let shown = screen(&app, 120, 40);
    assert!(shown.contains("tinsmith run static-int8.toml --detach"), "{shown}");
    assert!(keys(&mut app, "Esc").is_empty() && app.overlay.is_none());
    let effects = keys(&mut app, "r Enter");
    assert!(matches!(&effects[..], [Effect::Submit(recipe)] if recipe.name == "static-int8"));
    data(&mut app, Data::Submitted(Ok("20261123-150000-cafe".into())));
    assert_eq!(app.tab, Tab::Runs);
    let mut jobs = jobs();
    jobs.push(job("20261123-150000-cafe", "static-int8", Status::Queued));
    data(&mut app, Data::Jobs(jobs));
    assert_eq!(app.runs.selected().unwrap().id, "20261123-150000-cafe");
}

#[test]
fn the_goal_form_checks_numbers_and_plans_again() {
    let mut app = full(PLAIN);
    keys(&mut app, "2 b");
    text(&mut app, "fast");
    assert!(keys(&mut app, "Enter").is_empty());
    assert!(screen(&app, 100, 30).contains("Latency: a number, or nothing"));
    keys(&mut app, "Ctrl-u");
    text(&mut app, "40");
    keys(&mut app, "Tab Tab Tab");
    text(&mut app, "2 %");
    keys(&mut app, "Up Up Up Up Right");
    let effects = keys(&mut app, "Enter");
    let [Effect::Recommend { goal, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(goal.latency_ms, Some(40.0));
    assert_eq!(goal.max_quality_drop, Some(0.02));
    assert_eq!(goal.device.as_deref(), Some("raspberry-pi-5"));
}

#[test]
fn jobs_are_controlled_and_deleting_needs_the_name() {
    let mut app = full(PLAIN);
    keys(&mut app, "3 g");
    let id = app.runs.selected().unwrap().id.clone();
    assert_eq!(keys(&mut app, "p"), [Effect::Control { id: id.clone(), control: Control::Pause }]);
    assert_eq!(keys(&mut app, "x Enter"), [Effect::Control { id, control: Control::Cancel }]);
    assert!(keys(&mut app, "D").is_empty() && app.overlay.is_none(), "a running job is not deleted");
    keys(&mut app, "G");
    let (id, name) = app.runs.selected().map(|j| (j.id.clone(), j.title().to_string())).unwrap();
    assert!(keys(&mut app, "D Enter").is_empty());
    text(&mut app, &name);
    assert_eq!(keys(&mut app, "Enter"), [Effect::Control { id, control: Control::Delete }]);
}

#[test]
fn dead_and_stalled_jobs_say_so_and_resume() {
    let mut app = full(PLAIN);
    keys(&mut app, "3");
    let shown = screen(&app, 200, 60);
    assert!(shown.contains("stalled 00:42") && shown.contains("resume with R"), "{shown}");
    let at = app.runs.shown.iter().position(|i| app.runs.jobs[*i].title() == "prune-half").unwrap();
    for _ in 0..at {
        keys(&mut app, "j");
    }
    let id = app.runs.selected().unwrap().id.clone();
    assert_eq!(keys(&mut app, "R"), [Effect::Control { id, control: Control::Resume }]);
}

#[test]
fn the_selected_job_stays_selected_when_the_list_changes() {
    let mut app = full(PLAIN);
    keys(&mut app, "3 j j");
    let id = app.runs.selected().unwrap().id.clone();
    let mut jobs = jobs();
    jobs.reverse();
    jobs.push(job("20261123-235959-ffff", "newest", Status::Running));
    data(&mut app, Data::Jobs(jobs));
    assert_eq!(app.runs.selected().unwrap().id, id);
    keys(&mut app, "s S");
    assert_eq!(app.runs.selected().unwrap().id, id);
}

#[test]
fn time_left_appears_after_ten_units_and_thirty_seconds() {
    let j = job("20261123-143015-a1b2", "x", Status::Running);
    assert_eq!(tinsmith::tui::runs::progress(&j), "41% · 7m 12s left");
    let mut early = (*j.state).clone();
    early.phase.done = 9;
    assert!(tinsmith::tui::runs::time_left(&early).is_none());
    let mut full = early;
    full.phase.done = 2000;
    assert_eq!(tinsmith::tui::runs::percent(&full).as_deref(), Some("99%"), "never 100 before it ended well");
}

#[test]
fn a_frozen_view_holds_updates_and_counts_them() {
    let mut app = full(PLAIN);
    keys(&mut app, "3 f");
    data(&mut app, Data::Jobs(vec![]));
    data(&mut app, Data::Jobs(vec![]));
    assert_eq!(app.runs.jobs.len(), 6);
    assert!(screen(&app, 120, 40).contains("FROZEN +2"));
    keys(&mut app, "f");
    assert!(app.runs.jobs.is_empty());
}

#[test]
fn choosing_a_baseline_compares_again() {
    let mut app = full(PLAIN);
    let effects = keys(&mut app, "4 j j b");
    let [Effect::Compare { baseline, measurements, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(measurements[*baseline].variant, "static-int8");
}

#[test]
fn marked_runs_are_what_is_compared() {
    let mut app = full(PLAIN);
    let mut all = jobs();
    let mut other = job("20261123-150000-0001", "other", Status::Finished);
    Arc::make_mut(&mut other.state).measurements = vec![measurement("solo", Some(1.0), 999, None)];
    other.model = "/models/other.onnx".into();
    all.push(other);
    data(&mut app, Data::Jobs(all));
    keys(&mut app, "3");
    while app.runs.selected().unwrap().title() != "other" {
        let before = app.runs.selected().unwrap().id.clone();
        keys(&mut app, "j");
        assert_ne!(app.runs.selected().unwrap().id, before);
    }
    let effects = keys(&mut app, "Space");
    let [Effect::Compare { measurements, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(measurements.len(), 1);
    assert_eq!(measurements[0].variant, "solo");
}

#[test]
fn quitting_with_jobs_under_way_says_once_that_they_go_on() {
    let mut app = full(PLAIN);
    assert!(keys(&mut app, "q").is_empty());
    assert!(screen(&app, 80, 24).contains("go on without the workbench"));
    assert_eq!(keys(&mut app, "Enter"), [Effect::Quit { summary: false }]);
    app.overlay = None;
    assert_eq!(keys(&mut app, "q"), [Effect::Quit { summary: false }]);
    assert_eq!(keys(&mut app, "Q"), [Effect::Quit { summary: true }]);
}

#[test]
fn q_and_esc_go_back_first_and_esc_never_quits() {
    let mut app = full(PLAIN);
    app.told_jobs_go_on = true;
    keys(&mut app, "3 Tab z");
    assert!(keys(&mut app, "q").is_empty() && !app.zoomed);
    assert!(keys(&mut app, "q").is_empty());
    assert_eq!(app.pane(), Pane::Jobs);
    assert!(keys(&mut app, "Esc Esc Esc").is_empty());
}

#[test]
fn ctrl_c_quits_from_any_dialog() {
    let mut app = full(PLAIN);
    for dialog in ["?", ":", "/", "o", "2 b", "r"] {
        app.overlay = None;
        keys(&mut app, dialog);
        assert!(app.overlay.is_some(), "{dialog}");
        assert_eq!(keys(&mut app, "Ctrl-c"), [Effect::Quit { summary: false }], "{dialog}");
    }
}

#[test]
fn the_help_filters_and_runs_and_the_palette_reaches_other_tabs() {
    let mut app = full(PLAIN);
    keys(&mut app, "?");
    text(&mut app, "coupling");
    keys(&mut app, "Enter");
    assert_eq!(app.model.view, View::Groups);
    keys(&mut app, ":");
    text(&mut app, "edit-goal");
    keys(&mut app, "Enter");
    assert_eq!(app.tab, Tab::Plan);
    assert!(matches!(app.overlay, Some(Overlay::Goal(_))));
}

#[test]
fn a_paste_fills_fields_and_runs_nothing() {
    let mut app = full(PLAIN);
    assert!(update(&mut app, Msg::Paste("q\nQ\n:quit\n".into())).is_empty());
    assert!(app.overlay.is_none());
    keys(&mut app, "o");
    let bomb = format!("/tmp/m.onnx\n\u{1b}[31m{}", "x".repeat(10 << 20));
    let effects = update(&mut app, Msg::Paste(bomb));
    assert!(effects.iter().all(|e| matches!(e, Effect::FindModels { .. })));
    let Some(Overlay::Open(open)) = &app.overlay else { panic!() };
    assert!(open.input.value().len() <= 4096 && open.input.value().starts_with("/tmp/m.onnx[31m"));
}

#[test]
fn released_keys_do_nothing() {
    let mut app = full(PLAIN);
    let mut key = KeyEvent::new(KeyCode::Char('3'), KeyModifiers::NONE);
    key.kind = crossterm::event::KeyEventKind::Release;
    update(&mut app, Msg::Key(key));
    assert_eq!(app.tab, Tab::Model);
}

#[test]
fn the_log_follows_until_one_moves_and_filters_by_level_and_text() {
    let mut app = full(PLAIN);
    keys(&mut app, "5");
    assert!(app.log.follow && app.log.count() > 50);
    assert_eq!(app.log.list.selected, app.log.count() - 1);
    keys(&mut app, "k");
    assert!(!app.log.follow);
    keys(&mut app, "G");
    assert!(app.log.follow);
    keys(&mut app, "L");
    let warnings = app.log.count();
    assert!(warnings > 0 && warnings < 12);
    keys(&mut app, "L L /");
    text(&mut app, "step 3");
    assert!(app.log.lines().iter().all(|l| l.message.contains("step 3")));
}

#[test]
fn exports_name_the_command_that_gives_the_same() {
    let mut app = full(PLAIN);
    for (tab, name, command) in [
        ("1", "digits.onnx.summary.json", "tinsmith inspect /models/digits.onnx --format json"),
        ("2", "static-int8.toml", "tinsmith run static-int8.toml --detach"),
        ("4", "comparison.json", "tinsmith compare /models/original.onnx"),
    ] {
        let effects = keys(&mut app, &format!("{tab} e"));
        let [Effect::Export { name: n, text, command: c }] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!(n, name);
        assert!(c.starts_with(command), "{c}");
        assert!(text.contains("schema_version"));
    }
}

#[test]
fn ten_thousand_layers_are_listed_without_delay() {
    let mut app = blank(PLAIN);
    app.model.generation = 1;
    let opened = Arc::new(Opened::new(large(10_000)));
    data(&mut app, Data::Analysed { generation: 1, path: "/big.onnx".into(), result: Ok(opened) });
    keys(&mut app, "*");
    assert!(app.model.rows.len() > 10_000);
    keys(&mut app, "G");
    assert!(screen(&app, 120, 40).contains("op9"));
    keys(&mut app, "/");
    text(&mut app, "layers.99/block.7/op3");
    assert!(screen(&app, 120, 40).contains("op3"));
}
