//! The picture in the README: a real frame of the workbench as SVG. Lines, bars and dots are drawn as
//! shapes, so that they meet whatever font shows the letters.

use super::fixtures::*;
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tinsmith::analysis::{Options, summarize_file};
use tinsmith::compare::Comparison;
use tinsmith::jobs::Status;
use tinsmith::monitor::Silent;
use tinsmith::passes::prune::Criterion;
use tinsmith::plan::study::Session;
use tinsmith::tui::app::{App, Data, Effect, Failure};
use tinsmith::tui::model::Opened;
use tinsmith::tui::theme::{Depth, Look, ThemeName};
use tinsmith::tui::view;

const WIDE: u32 = 9;
const HIGH: u32 = 19;
const FONT: u32 = 15;
const MARGIN: u32 = 14;
const BAR: u32 = 30;
const GROUND: &str = "#16181e";
const TEXT: &str = "#d6dae4";

fn hex(color: Color, default: &str) -> String {
    match color {
        Color::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
        _ => default.into(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Ends of the strokes of a box character, from the middle: left, right, up, down.
fn strokes(symbol: &str) -> Option<[bool; 4]> {
    Some(match symbol {
        "─" => [true, true, false, false],
        "│" => [false, false, true, true],
        "┌" => [false, true, false, true],
        "┐" => [true, false, false, true],
        "└" => [false, true, true, false],
        "┘" => [true, false, true, false],
        "├" => [false, true, true, true],
        "┤" => [true, false, true, true],
        _ => return None,
    })
}

/// Filled part of a block character, in eighths of a column.
fn eighths(symbol: &str) -> Option<u32> {
    Some(8 - "█▉▊▋▌▍▎▏".chars().position(|c| symbol.starts_with(c))? as u32)
}

/// Filled part of a bar that stands on the ground, in eighths of a row.
fn standing(symbol: &str) -> Option<u32> {
    Some(1 + "▁▂▃▄▅▆▇".chars().position(|c| symbol.starts_with(c))? as u32)
}

fn dots(symbol: &str) -> Option<u32> {
    let code = symbol.chars().next()? as u32;
    (0x2801..=0x28ff).contains(&code).then(|| code - 0x2800)
}

fn shape(out: &mut String, cell: &Cell, x: u32, y: u32, ink: &str) -> bool {
    let symbol = cell.symbol();
    if let Some([left, right, up, down]) = strokes(symbol) {
        let (mx, my) = (f64::from(x) + f64::from(WIDE) / 2.0, f64::from(y) + f64::from(HIGH) / 2.0);
        let mut path = String::new();
        for (drawn, dx, dy) in [(left, -1.0, 0.0), (right, 1.0, 0.0), (up, 0.0, -1.0), (down, 0.0, 1.0)] {
            if drawn {
                let (dx, dy) = (dx * f64::from(WIDE) / 2.0, dy * f64::from(HIGH) / 2.0);
                write!(path, "M{mx} {my}l{dx} {dy}").unwrap();
            }
        }
        writeln!(out, r#"<path d="{path}" stroke="{ink}"/>"#).unwrap();
    } else if let Some(eighths) = eighths(symbol) {
        let width = f64::from(WIDE * eighths) / 8.0;
        writeln!(out, r#"<rect x="{x}" y="{}" width="{width}" height="{}" fill="{ink}"/>"#, y + 3, HIGH - 6)
            .unwrap();
    } else if let Some(eighths) = standing(symbol) {
        let high = (HIGH - 6) * eighths / 8;
        writeln!(
            out,
            r#"<rect x="{x}" y="{}" width="{WIDE}" height="{high}" fill="{ink}"/>"#,
            y + HIGH - 3 - high
        )
        .unwrap();
    } else if let Some(bits) = dots(symbol) {
        const ORDER: [(u32, u32); 8] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
        for (bit, (dx, dy)) in ORDER.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0) {
            let _ = bit;
            let (cx, cy) =
                (f64::from(x) + 2.5 + 4.0 * f64::from(*dx), f64::from(y) + 2.5 + 4.7 * f64::from(*dy));
            writeln!(out, r#"<circle cx="{cx}" cy="{cy:.1}" r="1.3" fill="{ink}"/>"#).unwrap();
        }
    } else {
        return false;
    }
    true
}

/// A frame as SVG, with a window around it.
fn svg(buffer: &Buffer, title: &str) -> String {
    let (w, h) = (u32::from(buffer.area.width), u32::from(buffer.area.height));
    let (width, height) = (w * WIDE + 2 * MARGIN, h * HIGH + BAR + MARGIN);
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">
<style>text{{font-family:'DejaVu Sans Mono','Cascadia Mono',Menlo,Consolas,monospace;font-size:{FONT}px;white-space:pre}}.b{{font-weight:700}}path{{fill:none;stroke-width:1.2}}</style>
<rect width="{width}" height="{height}" rx="9" fill="{GROUND}"/>
<circle cx="20" cy="15" r="5.5" fill="#f0605a"/><circle cx="39" cy="15" r="5.5" fill="#f0b84a"/><circle cx="58" cy="15" r="5.5" fill="#58c05c"/>
"##
    );
    for y in 0..h {
        let mut x = 0;
        while x < w {
            let cell = &buffer[(x as u16, y as u16)];
            let (px, py) = (MARGIN + x * WIDE, BAR + y * HIGH);
            let reversed = cell.modifier.contains(Modifier::REVERSED);
            let ink = if reversed { GROUND.to_string() } else { hex(cell.fg, TEXT) };
            if reversed {
                let ground = hex(cell.fg, TEXT);
                writeln!(out, r#"<rect x="{px}" y="{py}" width="{WIDE}" height="{HIGH}" fill="{ground}"/>"#)
                    .unwrap();
            }
            if cell.symbol() == " " || shape(&mut out, cell, px, py, &ink) {
                x += 1;
                continue;
            }
            let mut text = cell.symbol().to_string();
            let mut next = x + 1;
            while next < w {
                let other = &buffer[(next as u16, y as u16)];
                let same = (other.fg, other.modifier) == (cell.fg, cell.modifier);
                let symbol = other.symbol();
                let drawn = strokes(symbol).is_some()
                    || eighths(symbol).is_some()
                    || standing(symbol).is_some()
                    || dots(symbol).is_some();
                if !same || drawn || symbol == " " || reversed {
                    break;
                }
                text.push_str(symbol);
                next += 1;
            }
            let bold = if cell.modifier.contains(Modifier::BOLD) { r#" class="b""# } else { "" };
            writeln!(
                out,
                r#"<text x="{px}" y="{}"{bold} fill="{ink}" textLength="{}" lengthAdjust="spacingAndGlyphs">{}</text>"#,
                py + HIGH - 5,
                (next - x) * WIDE,
                escaped(&text)
            )
            .unwrap();
            x = next;
        }
    }
    out.push_str("</svg>\n");
    out
}

/// What `tinsmith demo` measured, as `e` on the Compare tab wrote it; raw samples left out, names of people
/// and machines made up.
const DEMO: &str = include_str!("demo-comparison.json");

fn compared() -> App {
    let look = Look { theme: ThemeName::Dark, depth: Depth::True, ascii: false, ssh: false };
    let table: Comparison = serde_json::from_str(DEMO).unwrap();
    let mut app = blank(look);
    let mut all = job("20261124-153627-0f49", "compare all", Status::Finished);
    all.model = "/home/ada/.local/share/tinsmith/models/digits-resnet/digits-resnet.onnx".into();
    let measured = table.rows.iter().map(|r| r.measurement.clone()).collect();
    Arc::make_mut(&mut all.state).measurements = measured;
    data(&mut app, Data::Jobs(vec![all]));
    let generation = app.compare.generation;
    data(&mut app, Data::Compared { generation, result: Ok(table) });
    keys(&mut app, "4 j j Tab");
    app
}

/// The shipped sample on the map, with a cut planned as a person would.
fn mapped() -> App {
    let look = Look { theme: ThemeName::Dark, depth: Depth::True, ascii: false, ssh: false };
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx"));
    let shown = PathBuf::from("/home/ada/.local/share/tinsmith/models/digits-resnet/digits-resnet.onnx");
    tinsmith::child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let (mut session, study) = Session::open(path, Criterion::L2, &Silent).unwrap();
    let summary = summarize_file(path, &Options::default()).unwrap();
    let mut app = blank(look);
    app.model.generation = 1;
    let opened = Arc::new(Opened::new(summary));
    data(&mut app, Data::Analysed { generation: 1, path: shown, result: Ok(opened) });
    let generation = app.plan.generation;
    data(&mut app, Data::Proposed { generation, result: Ok(Box::new(ranked())) });
    let effects = keys(&mut app, "i");
    let Some(Effect::Study { generation, .. }) = effects.first() else { panic!("{effects:?}") };
    let mut asked = data(&mut app, Data::Studied { generation: *generation, result: Ok(Arc::new(study)) });
    for key in ["", "a", "a", "a", "+", "+", "+", "+", "+", "a", "j", "j", "+", "j", "j", "x", "k", "k"] {
        asked.extend(keys(&mut app, key));
        while let Some(effect) = asked.pop() {
            let Effect::Foresee { generation, question } = effect else { continue };
            let result = session.ask(&question, &Silent).map(Box::new).map_err(Failure::from);
            asked.extend(data(&mut app, Data::Foreseen { generation, result }));
        }
    }
    app
}

/// `UPDATE_DOCS=1` writes a picture instead of comparing it.
fn kept(app: &App, name: &str, title: &str) {
    let mut buffer = Buffer::empty(Rect::new(0, 0, 132, 40));
    view::draw(app, &mut buffer);
    let picture = svg(&buffer, title);
    let path = format!("{}/docs/images/{name}.svg", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, &picture).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == picture, "{path} is old; UPDATE_DOCS=1 writes it");
}

#[test]
fn the_picture_in_the_readme_is_what_the_workbench_shows() {
    let title = "The Compare tab: variants with deltas, verdicts and the Pareto front";
    kept(&compared(), "workbench", title);
}

#[test]
fn the_picture_of_the_map_is_what_the_workbench_shows() {
    let title = "The map of what pruning can take, with a planned cut and what it would bring";
    kept(&mapped(), "map", title);
}
