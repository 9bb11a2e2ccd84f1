//! Drawing of dialogs.

use super::super::action::Context;
use super::super::app::App;
use super::super::overlay::{
    Actions, CUT_FIELDS, Confirm, CutForm, FIELDS, GoalForm, OpenModel, Overlay, Prompt, Purpose, RatioForm,
    Texts,
};
use super::super::paint::{Pen, span};
use super::super::theme::Role;
use super::doc::wrap;
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use tui_input::Input;

/// Draws a dialog over the body.
pub(super) fn draw(app: &App, overlay: &Overlay, pen: &mut Pen<'_>) {
    match overlay {
        Overlay::Actions(a) => actions(app, a, pen),
        Overlay::Open(o) => open(o, pen),
        Overlay::Confirm(c) => confirm(c, pen),
        Overlay::Goal(g) => goal(g, pen),
        Overlay::Prompt(p) => prompt(p, pen),
        Overlay::Texts(t) => texts(t, pen),
        Overlay::Ratio(r) => ratio(r, pen),
        Overlay::Cut(c) => cut(c, pen),
        Overlay::Filter(_) => {}
    }
}

/// A box in the middle, cleared; its inside is returned.
fn boxed(pen: &mut Pen<'_>, width: usize, height: usize, title: &str) -> Rect {
    let area = pen.area();
    let w = (width as u16).min(area.width);
    let h = (height as u16).min(area.height);
    let place =
        Rect { x: area.x + (area.width - w) / 2, y: area.y + (area.height - h) / 3, width: w, height: h };
    let mut pen = pen.part(place);
    pen.clear();
    let inner = pen.frame(&[span(title, Role::Title)], &[], true, false);
    Rect { x: inner.x + 1.min(inner.width), width: inner.width.saturating_sub(2), ..inner }
}

/// A text field with its cursor; returns the columns used.
pub(super) fn field(
    pen: &mut Pen<'_>,
    x: usize,
    y: usize,
    room: usize,
    input: &Input,
    active: bool,
) -> usize {
    if room == 0 {
        return 0;
    }
    let scroll = input.visual_scroll(room.saturating_sub(1));
    let mut skipped = 0;
    let shown: String = input
        .value()
        .chars()
        .skip_while(|c| {
            let skip = skipped < scroll;
            skipped += unicode_width::UnicodeWidthChar::width(*c).unwrap_or(0);
            skip
        })
        .collect();
    pen.spans(x, y, room, &[span(shown, Role::Text)]);
    if active {
        let at = input.visual_cursor().saturating_sub(scroll).min(room - 1);
        pen.tint(x + at, y, 1, ratatui::style::Style::new().add_modifier(Modifier::REVERSED));
    } else {
        pen.tint(x, y, room, ratatui::style::Style::new().add_modifier(Modifier::UNDERLINED));
    }
    room
}

fn actions(app: &App, dialog: &Actions, pen: &mut Pen<'_>) {
    let rows = dialog.rows(app.tab);
    let width = pen.width().saturating_sub(4).min(if dialog.help { 104 } else { 84 });
    let height = (rows.len() + 8).clamp(8, pen.height().saturating_sub(2).max(8));
    let title =
        if dialog.help { format!("Keys on {}", app.tab.title()) } else { "Command palette".to_string() };
    let inner = boxed(pen, width, height, &title);
    let mut pen = pen.part(inner);
    let used = pen.text(0, 0, if dialog.help { "filter " } else { ": " }, Role::Dim);
    let room = pen.width().saturating_sub(used);
    field(&mut pen, used, 0, room, &dialog.input, true);
    if rows.is_empty() {
        pen.text(0, 2, "No action matches. Backspace widens the search.", Role::Dim);
        return;
    }
    // The sentence of the selected action in full, where the list may have to cut it.
    let sentence = rows.get(dialog.list.selected).map_or(vec![], |s| wrap(s.help, pen.width()));
    let narrow = pen.width() < 100;
    let reserved = if narrow { 3 } else { 0 };
    for (i, line) in sentence.iter().take(2).enumerate().filter(|_| narrow) {
        let y = pen.height().saturating_sub(2) + i;
        pen.text(0, y, line, Role::Text);
    }
    let window = dialog.list.window(rows.len(), pen.height().saturating_sub(2 + reserved));
    for (y, at) in window.enumerate() {
        let y = y + 2;
        let spec = rows[at];
        let keys: Vec<String> = app.keymap.keys(spec.action).iter().map(ToString::to_string).collect();
        let enabled = (spec.enabled)(app) || !spec.context.covers(app.tab);
        let (key, text) = if enabled { (Role::Key, Role::Text) } else { (Role::Dim, Role::Dim) };
        pen.spans(0, y, 14, &[span(keys.join(" "), key)]);
        if dialog.help {
            let room = pen.width().saturating_sub(15);
            pen.spans(15, y, room, &[span(spec.help, text)]);
        } else {
            let tab = match spec.context {
                Context::Everywhere => "",
                Context::On(tab) => tab.title(),
            };
            pen.spans(15, y, 8, &[span(tab, Role::Dim)]);
            let used = 24 + pen.spans(24, y, 20, &[span(spec.id, text)]);
            let room = pen.width().saturating_sub(used.max(44) + 1);
            pen.spans(used.max(44) + 1, y, room, &[span(spec.help, Role::Dim)]);
        }
        if at == dialog.list.selected {
            pen.select(y);
        }
    }
}

fn prompt(dialog: &Prompt, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(100);
    let inner = boxed(pen, width, 7, "Text from both models");
    let mut pen = pen.part(inner);
    let used = pen.text(0, 0, "prompt ", Role::Dim);
    let room = pen.width().saturating_sub(used);
    field(&mut pen, used, 0, room, &dialog.input, true);
    let names: Vec<&str> = dialog.models.iter().map(|(name, _)| name.as_str()).collect();
    pen.text(
        0,
        2,
        &format!("{} go on from it, the most likely token each time.", names.join(" and ")),
        Role::Dim,
    );
    pen.text(0, 3, "Only language models with their tokenizer beside them can.", Role::Dim);
}

/// Texts in columns; below 80 columns of room one under the other.
fn texts(dialog: &Texts, pen: &mut Pen<'_>) {
    let (width, height) = (pen.width().saturating_sub(2), pen.height().saturating_sub(2));
    let inner = boxed(pen, width, height, "Text from both models");
    let mut pen = pen.part(inner);
    let mut top = 0;
    for line in wrap(&dialog.prompt, pen.width()).iter().take(3) {
        pen.text(0, top, line, Role::Dim);
        top += 1;
    }
    top += 1;
    let count = dialog.sides.len().max(1);
    let beside = pen.width() >= 76;
    let columns = if beside { (pen.width() + 2) / count - 2 } else { pen.width() };
    let rows = pen.height().saturating_sub(top);
    let each = if beside { rows } else { rows / count };
    for (i, side) in dialog.sides.iter().enumerate() {
        let (x, y) = if beside { (i * (columns + 2), top) } else { (0, top + i * each) };
        let area = pen.area();
        let place =
            Rect { x: area.x + x as u16, y: area.y + y as u16, width: columns as u16, height: each as u16 };
        let mut part = pen.part(place);
        part.spans(0, 0, columns, &[span(side.name.as_str(), Role::Title)]);
        let (end, role) = match &side.end {
            None if side.text.is_empty() => ("reads the prompt ...", Role::Dim),
            None => ("writes ...", Role::Dim),
            Some(Ok(line)) => (line.as_str(), Role::Dim),
            Some(Err(failure)) => (failure.message.as_str(), Role::Bad),
        };
        let mut lines: Vec<(String, Role)> =
            side.text.lines().flat_map(|l| wrap(l, columns)).map(|l| (l, Role::Text)).collect();
        lines.extend(wrap(end, columns).into_iter().map(|l| (l, role)));
        for (n, (line, role)) in lines.iter().skip(dialog.scroll).take(each.saturating_sub(1)).enumerate() {
            part.text(0, n + 1, line, *role);
        }
    }
}

fn open(dialog: &OpenModel, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(100);
    let height = (dialog.paths.len() + 6).clamp(9, pen.height().saturating_sub(2).clamp(9, 24));
    let inner = boxed(
        pen,
        width,
        height,
        match dialog.purpose {
            Purpose::Open => "Open a model",
            Purpose::Diff => "Compare with a model",
        },
    );
    let mut pen = pen.part(inner);
    let used = pen.text(0, 0, "path ", Role::Dim);
    let room = pen.width().saturating_sub(used);
    field(&mut pen, used, 0, room, &dialog.input, !dialog.in_list);
    if dialog.paths.is_empty() {
        pen.text(
            0,
            2,
            "Nothing matches. Type the path of a model file or directory; Tab completes.",
            Role::Dim,
        );
        return;
    }
    let heading = match (dialog.input.value().is_empty(), dialog.variants.is_empty()) {
        (true, true) => "Recent and nearby",
        (true, false) => "Variants, recent and nearby",
        (false, _) => "Matches",
    };
    pen.text(0, 2, heading, Role::Dim);
    let window = dialog.list.window(dialog.paths.len(), pen.height().saturating_sub(3));
    for (y, at) in window.enumerate() {
        let path = &dialog.paths[at];
        let role = if path.ends_with('/') { Role::Accent } else { Role::Text };
        let room = pen.width();
        // The end of a path tells more than its beginning.
        let columns = crate::text::columns(path);
        let shown = if columns > room {
            let tail: String = path.chars().skip(path.chars().count().saturating_sub(room - 1)).collect();
            format!("…{tail}")
        } else {
            path.clone()
        };
        pen.spans(0, y + 3, room, &[span(shown, role)]);
        if at == dialog.list.selected && (dialog.in_list || dialog.input.value().is_empty()) {
            pen.select(y + 3);
        }
    }
}

fn confirm(dialog: &Confirm, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(76);
    let room = width.saturating_sub(4);
    let mut lines: Vec<String> = dialog.lines.iter().flat_map(|l| wrap(l, room)).collect();
    lines.truncate(pen.height().saturating_sub(9).max(1));
    let command = if dialog.command.is_empty() { vec![] } else { wrap(&dialog.command, room) };
    let typed = if dialog.typed.is_some() { 3 } else { 0 };
    let extra = if command.is_empty() { 0 } else { command.len() + 2 };
    let height = lines.len() + extra + typed + 4;
    let inner = boxed(pen, width, height, &dialog.title);
    let mut pen = pen.part(inner);
    let mut y = 0;
    for line in &lines {
        pen.text(0, y, line, Role::Text);
        y += 1;
    }
    if !command.is_empty() {
        y += 1;
        pen.text(0, y, "The same on the command line:", Role::Dim);
        for line in &command {
            y += 1;
            pen.text(0, y, line, Role::Key);
        }
        y += 1;
    }
    let mut ready = true;
    if let Some((wanted, input)) = &dialog.typed {
        y += 1;
        let used =
            pen.text(0, y, &format!("Type {} to confirm: ", crate::text::clean(wanted, 24)), Role::Text);
        let room = pen.width().saturating_sub(used);
        field(&mut pen, used, y, room, input, true);
        y += 1;
        ready = input.value() == wanted;
    }
    y += 1;
    let key = if ready { Role::Key } else { Role::Dim };
    let last = y.min(pen.height().saturating_sub(1));
    pen.spans(
        0,
        last,
        usize::MAX,
        &[
            span("Enter", key),
            span(format!(" {}   ", dialog.yes), if ready { Role::Strong } else { Role::Dim }),
            span("Esc", Role::Key),
            span(" leave", Role::Text),
        ],
    );
}

fn ratio(form: &RatioForm, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(72);
    let what = wrap(&format!("Part of {} that leaves:", form.what), width.saturating_sub(4));
    let inner = boxed(pen, width, what.len() + 7, "Ratio");
    let mut pen = pen.part(inner);
    for (y, line) in what.iter().enumerate() {
        pen.text(0, y, line, Role::Text);
    }
    let y = what.len() + 1;
    let room = 12.min(pen.width());
    field(&mut pen, 0, y, room, &form.input, true);
    pen.text(room + 2, y, "30, 30 % or 0.3; nothing: as the others", Role::Dim);
    if let Some(wrong) = &form.wrong {
        pen.text(0, y + 2, wrong, Role::Bad);
    }
}

fn cut(form: &CutForm, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(86);
    let inner = boxed(pen, width, CUT_FIELDS.len() + 6, "Cut");
    let mut pen = pen.part(inner);
    pen.text(0, 0, "What the plan on the map cuts by. Ratios of groups and kinds go before.", Role::Dim);
    for (i, (label, hint)) in CUT_FIELDS.iter().enumerate() {
        let y = i + 2;
        let active = i == form.field;
        pen.spans(0, y, 14, &[span(*label, if active { Role::Focus } else { Role::Text })]);
        if let Some(chosen) = form.chosen(i) {
            let role = if active { Role::Focus } else { Role::Accent };
            let used = pen.spans(15, y, usize::MAX, &[span(format!("◂ {chosen} ▸"), role)]);
            pen.text(15 + used.max(18) + 2, y, hint, Role::Dim);
            continue;
        }
        let wide = i == CUT_FIELDS.len() - 1;
        if wide && form.inputs[i].value().is_empty() && !active {
            pen.text(15, y, hint, Role::Dim);
            continue;
        }
        let room = if wide { pen.width().saturating_sub(15) } else { 8 };
        field(&mut pen, 15, y, room, &form.inputs[i], active);
        if !wide {
            pen.text(15 + room + 2, y, hint, Role::Dim);
        }
    }
    if let Some(wrong) = &form.wrong {
        pen.text(0, CUT_FIELDS.len() + 3, wrong, Role::Bad);
    }
}

fn goal(form: &GoalForm, pen: &mut Pen<'_>) {
    let width = pen.width().saturating_sub(4).min(86);
    let inner = boxed(pen, width, FIELDS.len() + 6, "Goal");
    let mut pen = pen.part(inner);
    pen.text(0, 0, "A variant that misses a limit is not recommended. Empty means no limit.", Role::Dim);
    for (i, (label, hint)) in FIELDS.iter().enumerate() {
        let y = i + 2;
        let active = i == form.field;
        pen.spans(0, y, 13, &[span(*label, if active { Role::Focus } else { Role::Text })]);
        let wide = i >= 5;
        let room = if wide { pen.width().saturating_sub(14) } else { 18 };
        if i == 0 {
            let text = format!("◂ {} ▸", crate::text::clean(form.inputs[0].value(), 24));
            let used = pen.spans(14, y, 30, &[span(text, if active { Role::Focus } else { Role::Accent })]);
            pen.text(14 + used.max(18) + 2, y, hint, Role::Dim);
            continue;
        }
        if wide && form.inputs[i].value().is_empty() && !active {
            pen.text(14, y, hint, Role::Dim);
            continue;
        }
        field(&mut pen, 14, y, room, &form.inputs[i], active);
        if !wide {
            pen.text(14 + room + 2, y, hint, Role::Dim);
        }
    }
    if let Some(wrong) = &form.wrong {
        pen.text(0, FIELDS.len() + 3, wrong, Role::Bad);
    }
}
