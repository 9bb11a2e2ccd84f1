//! Screens as text at the sizes that people have, what they use of the terminal, any size at all, and
//! what happens to hostile text.

use super::fixtures::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tinsmith::jobs::Status;
use tinsmith::text::is_unsafe;
use tinsmith::tui::Tab;
use tinsmith::tui::app::{App, Data};
use tinsmith::tui::layout::Pane;
use tinsmith::tui::model::Opened;
use tinsmith::tui::theme::{Depth, Look, ThemeName};
use tinsmith::tui::view;

const SIZES: [(u16, u16); 4] = [(60, 15), (80, 24), (120, 40), (200, 60)];

fn drawn(app: &App, width: u16, height: u16) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    view::draw(app, &mut buffer);
    buffer
}

/// A workbench with everything, on one tab.
fn on(tab: Tab, look: Look) -> App {
    let mut app = full(look);
    app.tab = tab;
    if tab == Tab::Log {
        keys(&mut app, "5");
    }
    app
}

fn snapshots(tab: Tab) {
    let name = tab.title().to_lowercase();
    let app = on(tab, PLAIN);
    for (w, h) in SIZES {
        check(&format!("{name}-{w}x{h}"), screen(&app, w, h));
    }
    let app = on(tab, BARE);
    check(&format!("{name}-80x24-ascii"), screen(&app, 80, 24));
    let mut app = blank(PLAIN);
    app.tab = tab;
    app.runs.listed = true;
    check(&format!("{name}-80x24-empty"), screen(&app, 80, 24));
}

#[test]
fn the_model_tab() {
    snapshots(Tab::Model);
    let mut app = on(Tab::Model, PLAIN);
    keys(&mut app, "v");
    check("model-120x40-groups", screen(&app, 120, 40));
    keys(&mut app, "v");
    check("model-80x24-operators", screen(&app, 80, 24));
}

#[test]
fn the_plan_tab() {
    snapshots(Tab::Plan);
}

#[test]
fn the_runs_tab() {
    snapshots(Tab::Runs);
    let mut app = on(Tab::Runs, PLAIN);
    keys(&mut app, "v c Left");
    check("runs-120x40-log-scale-and-cursor", screen(&app, 120, 40));
}

#[test]
fn the_compare_tab() {
    snapshots(Tab::Compare);
    let mut app = on(Tab::Compare, PLAIN);
    keys(&mut app, "j j i Enter");
    check("compare-120x40-differences", screen(&app, 120, 40));
}

#[test]
fn the_log_tab() {
    snapshots(Tab::Log);
}

#[test]
fn dialogs() {
    for (name, typed) in
        [("help", "?"), ("palette", ":"), ("goal", "2 b"), ("run", "2 r"), ("delete", "3 G D")]
    {
        let mut app = full(PLAIN);
        keys(&mut app, typed);
        check(&format!("dialog-{name}-80x24"), screen(&app, 80, 24));
    }
}

#[test]
fn below_the_least_size_there_is_one_card() {
    let app = full(PLAIN);
    check("card-48x12", screen(&app, 48, 12));
}

/// Where roles show as colours: a letter a cell.
fn colours(app: &App, width: u16, height: u16) -> String {
    let buffer = drawn(app, width, height);
    let letter = |x: u16, y: u16| -> char {
        let cell = &buffer[(x, y)];
        if cell.modifier.contains(Modifier::REVERSED) {
            return '#';
        }
        match cell.fg {
            _ if cell.symbol() == " " => ' ',
            Color::Reset if cell.modifier.contains(Modifier::BOLD) => 'B',
            Color::Reset => '.',
            Color::DarkGray => 'd',
            Color::Red => 'r',
            Color::Green => 'g',
            Color::Yellow => 'y',
            Color::Blue => 'b',
            Color::Magenta => 'm',
            Color::Cyan => 'c',
            _ => '?',
        }
    };
    (0..height)
        .map(|y| (0..width).map(|x| letter(x, y)).collect::<String>().trim_end().to_string() + "\n")
        .collect()
}

#[test]
fn sixteen_colours_carry_what_the_words_say() {
    check("compare-80x24-colours", colours(&on(Tab::Compare, PLAIN), 80, 24));
    check("runs-80x24-colours", colours(&on(Tab::Runs, PLAIN), 80, 24));
}

#[test]
fn a_screen_uses_no_more_than_the_terminal_has() {
    let look = |theme, depth, ascii| Look { theme, depth, ascii, ssh: false };
    for tab in Tab::ALL {
        for (w, h) in SIZES {
            let bare = drawn(&on(tab, look(ThemeName::Mono, Depth::None, true)), w, h);
            assert!(bare.content.iter().all(|c| c.symbol().is_ascii()), "{tab:?} {w}x{h}");
            assert!(bare.content.iter().all(|c| (c.fg, c.bg) == (Color::Reset, Color::Reset)), "{tab:?}");
            for theme in [ThemeName::Auto, ThemeName::Dark, ThemeName::Light] {
                let few = drawn(&on(tab, look(theme, Depth::Ansi16, false)), w, h);
                let fixed = |c: Color| matches!(c, Color::Rgb(..) | Color::Indexed(_));
                assert!(!few.content.iter().any(|c| fixed(c.fg) || fixed(c.bg)), "{tab:?} {theme:?}");
            }
            let many = drawn(&on(tab, look(ThemeName::Dark, Depth::Indexed, false)), w, h);
            assert!(!many.content.iter().any(|c| matches!(c.fg, Color::Rgb(..))), "{tab:?}");
        }
    }
}

#[test]
fn a_state_is_a_word_wherever_it_is_a_colour() {
    let mut app = full(BARE);
    for (keys_, words) in [
        ("3", &["running", "failed", "dead", "queued", "stalled"][..]),
        ("4", &["better", "worse", "baseline", "pareto"][..]),
        ("2", &["meets", "misses", "high", "low"][..]),
    ] {
        keys(&mut app, keys_);
        let shown = screen(&app, 200, 60);
        for word in words.iter().filter(|w| **w != "queued") {
            assert!(shown.contains(word), "{word}: {shown}");
        }
    }
}

/// States in which a screen may have to be drawn.
fn states() -> Vec<App> {
    let mut out = vec![blank(PLAIN)];
    for tab in Tab::ALL {
        for (at, _) in Pane::of(tab).iter().enumerate() {
            let mut app = on(tab, if at % 2 == 0 { PLAIN } else { BARE });
            app.focus[tab as usize] = at;
            app.zoomed = at == 1;
            out.push(app);
        }
    }
    for typed in ["?", ":", "o", "/", "2 b", "2 r", "3 x", "3 G D", "3 o c v +", "4 i t"] {
        let mut app = full(PLAIN);
        keys(&mut app, typed);
        out.push(app);
    }
    out.extend(super::map::states());
    out
}

#[test]
fn no_size_of_the_window_makes_it_fail() {
    let begin = Instant::now();
    let states = states();
    // Every size around the borders of the layout classes and the smallest ones; a grid elsewhere.
    let wide: Vec<u16> = (0..=220)
        .filter(|w| *w < 9 || w % 13 == 0 || matches!(w, 59..=61 | 79..=81 | 119..=121 | 199..=201))
        .collect();
    let high: Vec<u16> = (0..=70)
        .filter(|h| *h < 7 || h % 9 == 0 || matches!(h, 14..=16 | 23..=25 | 39..=41 | 59..=61))
        .collect();
    let mut frames = 0;
    for (i, w) in wide.iter().enumerate() {
        for (j, h) in high.iter().enumerate() {
            // Each size sees a third of the states, each state all classes of sizes.
            for app in states.iter().skip((i + j) % 3).step_by(3) {
                drawn(app, *w, *h);
                frames += 1;
            }
        }
    }
    assert!(frames > 5000, "{frames}");
    println!("{frames} frames in {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(60), "the sweep is for every day");
}

const HOSTILE: [&str; 8] = [
    "\u{1b}[2J\u{1b}]0;pwned\u{7}name",
    "\u{9b}31mred",
    "line\nbreak\r\ttab\0nul",
    "\u{202e}gnp.exe\u{2066}",
    "zero\u{200b}width\u{feff}",
    "日本語の名前がとても長いのでどこかで切られる",
    "👩\u{200d}👩\u{200d}👧\u{200d}👦 family ✌\u{fe0f}",
    "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}",
];

/// A workbench in which every text that comes from outside is hostile.
fn tainted(look: Look, evil: &str) -> App {
    let mut app = blank(look);
    app.machine = evil.into();
    let mut s = summary();
    s.name = evil.into();
    s.producer = evil.into();
    s.format = evil.into();
    for layer in &mut s.layers {
        layer.name = format!("{evil}/{}", layer.name);
        layer.dtype = evil.into();
        layer.output_shape = Some(vec![evil.into()]);
        layer.weights = vec![(evil.into(), evil.into(), vec![1])];
    }
    s.layers[3].op = evil.into();
    s.layers[3].role = evil.into();
    for t in &mut s.tensors {
        t.name = evil.into();
        t.encoding = evil.into();
        t.role = evil.into();
    }
    s.encodings[0].encoding = evil.into();
    s.by_role[0].kind = evil.into();
    s.no_graph = Some(evil.into());
    s.about = tinsmith::formats::About {
        title: Some(evil.into()),
        architecture: Some(evil.into()),
        licence: Some(evil.into()),
        tokenizer: Some(tinsmith::formats::about::Tokenizer {
            kind: evil.into(),
            pre: Some(evil.into()),
            special: vec![(evil.into(), evil.into())],
            ..Default::default()
        }),
        generation: vec![(evil.into(), evil.into())],
        ..Default::default()
    };
    s.inputs[0].name = evil.into();
    s.metadata = vec![(evil.into(), evil.into())];
    s.warnings = vec![evil.into()];
    s.unknown_ops = vec![(evil.into(), 1)];
    s.groups[0].members[0].0 = evil.into();
    s.groups[1].pinned_by = Some(evil.into());
    app.model.generation = 1;
    let path = std::path::PathBuf::from(format!("/tmp/{evil}.onnx"));
    data(&mut app, Data::Analysed { generation: 1, path, result: Ok(Arc::new(Opened::new(s))) });
    let mut ranked = ranked();
    ranked.device.name = evil.into();
    ranked.device.description = evil.into();
    ranked.recommendation.notes = vec![evil.into()];
    ranked.recommendation.refused[0].name = evil.into();
    for p in &mut ranked.recommendation.proposals {
        p.name = evil.into();
        p.recipe.name = evil.into();
        p.recipe.model = evil.into();
        p.reasons = vec![evil.into()];
        p.risks = vec![evil.into()];
    }
    let generation = app.plan.generation;
    data(&mut app, Data::Proposed { generation, result: Ok(Box::new(ranked)) });
    let mut jobs = jobs();
    for job in &mut jobs {
        let state = Arc::make_mut(&mut job.state);
        state.name = evil.into();
        state.model = evil.into();
        state.what = evil.into();
        state.reason = Some(evil.into());
        state.phase.name = evil.into();
        state.steps = vec![evil.into()];
        state.checkpoint = Some((1, evil.into()));
        state.log.iter_mut().for_each(|l| l.message = evil.into());
        let curves = std::mem::take(&mut state.curves);
        state.curves = curves.into_iter().map(|(name, points)| (format!("{name}{evil}"), points)).collect();
        state.artifacts.iter_mut().for_each(|a| a.path = evil.into());
        for m in &mut state.measurements {
            m.variant = format!("{evil}{}", m.variant);
            m.path = evil.into();
            m.conditions.runtime = evil.into();
            m.conditions.noise = vec![evil.into()];
            m.failures = vec![evil.into()];
        }
    }
    let measured = jobs.iter().find(|j| !j.state.measurements.is_empty()).unwrap().state.measurements.clone();
    data(&mut app, Data::Jobs(jobs));
    let table = tinsmith::compare::compare(&measured, None, &Default::default(), 0.01).unwrap();
    let generation = app.compare.generation;
    data(&mut app, Data::Compared { generation, result: Ok(table) });
    app
}

#[test]
fn hostile_text_reaches_no_cell_and_moves_no_border() {
    for evil in HOSTILE {
        let mut app = tainted(PLAIN, evil);
        for typed in [
            "1",
            "v",
            "v",
            "v",
            "Tab",
            "Tab",
            "2",
            "2 r",
            "Esc 2 Tab",
            "3",
            "3 Tab",
            "3 D",
            "Esc 4",
            "4 Tab Tab",
            "5",
            "?",
        ] {
            keys(&mut app, typed);
            for (w, h) in SIZES {
                let buffer = drawn(&app, w, h);
                for cell in &buffer.content {
                    assert!(!cell.symbol().chars().any(is_unsafe), "{evil:?} {typed} {:?}", cell.symbol());
                }
                if w >= 80 && app.overlay.is_none() {
                    for y in 2..h - 2 {
                        let edge = buffer[(w - 1, y)].symbol();
                        assert!("│┤┐┘".contains(edge), "{evil:?} {typed} {w}x{h} row {y}: {edge:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_name_of_a_megabyte_costs_no_time() {
    let long = "layer/".repeat(170_000);
    let begin = Instant::now();
    let mut app = tainted(PLAIN, &long);
    for tab in ["1", "2", "3", "4", "5"] {
        keys(&mut app, tab);
        drawn(&app, 120, 40);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn drawing_changes_little_while_a_job_runs() {
    let mut app = on(Tab::Runs, PLAIN);
    let mut before = drawn(&app, 120, 40);
    let mut changed = Vec::new();
    for step in 0..20u64 {
        let mut jobs = jobs();
        let state = Arc::make_mut(&mut jobs[0].state);
        state.phase.done = 820 + step;
        state.updated_mono_ms += step * 500;
        for (name, points) in &mut state.curves {
            points.push((830 + step, if name == "loss" { 0.36 } else { 0.8 }));
        }
        data(&mut app, Data::Jobs(jobs));
        let now = drawn(&app, 120, 40);
        changed.push(before.diff(&now).len());
        before = now;
    }
    let most = changed.iter().skip(1).max().unwrap();
    assert!(*most < 60, "cells that changed per update: {changed:?}");
    let again = drawn(&app, 120, 40);
    assert!(before.diff(&again).is_empty(), "an idle frame changes nothing");
}

#[test]
fn runs_of_every_status_have_their_group() {
    let app = on(Tab::Runs, PLAIN);
    let shown = screen(&app, 120, 40);
    for status in [Status::Running, Status::Finished] {
        assert!(shown.contains(status.word()));
    }
    for heading in ["running 2", "waiting 1", "stopped 2", "finished 1"] {
        assert!(shown.contains(heading), "{heading}: {shown}");
    }
}
