//! The group under the cursor in detail, and what the plan brings as a whole.

use super::super::super::action::Action;
use super::super::super::app::App;
use super::super::super::map::{Entry, Level, PruneMap, latency};
use super::super::super::paint::{Pen, many, span};
use super::super::super::theme::Role;
use super::super::doc::Doc;
use super::{change, measured, scope, source, time};
use crate::units::{Bytes, Count, Millis};

pub(in super::super) fn detail_title(app: &App) -> &'static str {
    match app.model.map.selected().as_slice() {
        [one] if !one.prunable() => "Pinned group",
        [] | [_] => "Group",
        _ => "Pinned groups",
    }
}

/// The group under the cursor.
pub(in super::super) fn detail(doc: &mut Doc, app: &App) {
    let map = &app.model.map;
    let selected = map.selected();
    let refusal = map.study().and_then(|s| s.refusal.clone());
    let [entry] = selected.as_slice() else {
        for entry in selected.iter().take(200) {
            doc.item("·", Role::Dim, &format!("group {}: {} {}", entry.id, entry.units, entry.kind));
            doc.text(&format!("  {}", entry.never.as_deref().unwrap_or("")), Role::Dim);
        }
        return;
    };
    doc.pair("group", &format!("{}, in {}", entry.id, entry.block), Role::Strong);
    doc.pair("units", &format!("{} {}", entry.units, entry.kind), Role::Text);
    let per = |n: u64, what: &str| format!("{} {what} leave with one", Count(n));
    doc.pair("per unit", &per(entry.parameters_per_unit, "parameters"), Role::Text);
    if let Some(macs) = entry.macs_per_unit {
        doc.pair("", &per(macs, "MACs"), Role::Text);
    }
    match (&entry.never, refusal) {
        (Some(why), _) => doc.pair("stays", why, Role::Warn),
        (None, Some(why)) => doc.pair("stays", &why, Role::Warn),
        (None, None) => planned(doc, map, entry),
    }
    scores(doc, map, entry);
    ran(doc, map, entry);
    doc.heading("Nodes that read its weights");
    let more = entry.readers.map_or(0, |n| n.saturating_sub(entry.nodes.len()));
    for (i, node) in entry.nodes.iter().enumerate() {
        if more > 0 && i + 1 == entry.nodes.len() {
            doc.text(&format!("  … {more} more …"), Role::Dim);
        }
        doc.item("·", Role::Dim, node);
    }
}

fn planned(doc: &mut Doc, map: &PruneMap, entry: &Entry) {
    doc.heading("Plan");
    let edit = &map.edit;
    let percent = |r: f64| format!("{:.1} %", 100.0 * r);
    let by = if edit.protected.contains(&entry.id) {
        "protected".to_string()
    } else if let Some(ratio) = edit.groups.get(&entry.id) {
        format!("own ratio {}", percent(*ratio))
    } else if let Some(ratio) = edit.of_kind(entry.kind) {
        format!("ratio of {} {}", entry.kind, percent(ratio))
    } else if edit.settings.ratio > 0.0 {
        format!("{} overall, {}", percent(edit.settings.ratio), scope(edit.settings.scope))
    } else {
        "nothing asked".into()
    };
    doc.pair("asked", &by, Role::Text);
    let Some(f) = &map.forecast else { return };
    if let Some(kept) = map.planned(entry.id) {
        let gone = entry.units - kept.min(entry.units);
        let role = if gone > 0 { Role::Good } else { Role::Text };
        doc.pair("keeps", &format!("{kept} of {}, {gone} leave", entry.units), role);
    }
    if let Some(Some(why)) = f.stays.get(entry.id).filter(|_| edit.cuts()) {
        doc.pair("stays", why, Role::Dim);
    }
    if let Some(Some(steps)) = f.steps.get(entry.id) {
        let text = format!("all {}, or multiples of {} from {} on", steps.units, steps.step, steps.floor);
        doc.pair("may keep", &text, Role::Dim);
    }
}

fn scores(doc: &mut Doc, map: &PruneMap, entry: &Entry) {
    let Some(source) = source(map).filter(|_| !entry.strip.is_empty()) else { return };
    doc.heading("Importance");
    doc.pair("criterion", &source, Role::Accent);
    let at = |part: f64| entry.strip[((entry.strip.len() - 1) as f64 * part) as usize];
    let text = format!("least {:.2}, median {:.2}, most {:.2}, mean 1", at(0.0), at(0.5), at(1.0));
    doc.pair("scores", &text, Role::Text);
    if let Some(share) = entry.share {
        doc.pair("share", &format!("{:.2} % of all scores", 100.0 * share), Role::Text);
    }
}

fn ran(doc: &mut Doc, map: &PruneMap, entry: &Entry) {
    let (Some(run), Some(ran)) = (map.run(), &entry.ran) else { return };
    doc.heading("Run");
    doc.pair("job", &format!("{} ({})", run.job, run.name), Role::Text);
    let gone = ran.units.saturating_sub(ran.kept);
    doc.pair("kept", &format!("{} → {}, {gone} left", ran.units, ran.kept), Role::Text);
    if let Some(why) = &ran.stays {
        doc.pair("stayed", why, Role::Dim);
    }
    if let Some(curve) = &ran.sensitivity {
        let most = curve.points.iter().map(|p| p.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        for (part, rise) in &curve.points {
            let bar = (10.0 * rise / most).round() as usize;
            let text = format!("{:>5.1} % gone  loss +{rise:.4}  ", 100.0 * part);
            doc.line(vec![span(text, Role::Text), span("█".repeat(bar), Role::Bar)]);
        }
    }
}

/// What the plan brings as a whole, how that is known, and the step of the recipe.
pub(in super::super) fn prediction(app: &App, pen: &mut Pen<'_>) {
    let map = &app.model.map;
    let mut doc = Doc::new(pen);
    if let Some(study) = map.study() {
        let f = map.forecast.as_ref().filter(|_| map.edit.cuts());
        let pair = |doc: &mut Doc, label: &str, before: u64, after: u64, text: fn(u64) -> String| {
            let value = match before == after {
                true => text(before),
                false => format!("{} → {}{}", text(before), text(after), change(before, after)),
            };
            doc.pair(label, &value, if after < before { Role::Good } else { Role::Text });
        };
        let or = |before: u64, after: Option<u64>| after.unwrap_or(before);
        let count = |n: u64| Count(n).to_string();
        let bytes = |n: u64| Bytes(n).to_string();
        pair(&mut doc, "parameters", study.parameters, or(study.parameters, f.map(|f| f.parameters)), count);
        pair(&mut doc, "MACs", study.macs, or(study.macs, f.map(|f| f.macs)), count);
        if study.macs_unknown > 0 {
            doc.text(
                &format!("  {} of unknown cost not counted", many(study.macs_unknown, "node")),
                Role::Dim,
            );
        }
        pair(
            &mut doc,
            "weights",
            study.weight_bytes,
            or(study.weight_bytes, f.map(|f| f.weight_bytes)),
            bytes,
        );
        pair(&mut doc, "file", study.file_bytes, or(study.file_bytes, f.map(|f| f.file_bytes)), bytes);
        if study.format != "onnx" {
            doc.text("  the variant is an ONNX file with the weights spelled out", Role::Dim);
        }
        let text: String = time(app).iter().skip(1).map(|s| s.text.clone()).collect();
        doc.pair("latency", &text, Role::Text);
        if let Some((_, low, high)) = latency(app).filter(|(_, low, high)| low < high) {
            doc.pair("between", &format!("{} and {}", Millis(low), Millis(high)), Role::Text);
        }
        how(&mut doc, app);
        if let Some(wrong) = &map.wrong {
            doc.item("!", Role::Bad, wrong);
        }
        if map.edit.cuts() && f.is_some_and(|f| !f.exact) {
            let text = format!(
                "Units are ranked here by {} of the weights. The run ranks by {}, {}, from data, so that \
                 groups may shrink otherwise; how much leaves in all stays.",
                study.criterion,
                map.edit.settings.criterion,
                scope(map.edit.settings.scope)
            );
            doc.item("!", Role::Warn, &text);
        }
    }
    if map.can_plan() {
        doc.heading("Step");
        let address = |id: usize| {
            let known = map.forecast.as_ref().and_then(|f| f.addresses.get(&id).cloned());
            known.unwrap_or_else(|| format!("group {id}"))
        };
        if let Ok(text) = map.edit.step(&address).map(|s| toml::to_string(&s).unwrap_or_default()) {
            text.lines().for_each(|line| doc.text(line, Role::Text));
        }
        let keys = [
            (Action::RunCut, "runs it as a job"),
            (Action::PlanForModel, "takes it to the Plan tab"),
            (Action::Export, "writes the recipe to a file"),
            (Action::CutSettings, "edits criterion, spread, repair"),
        ];
        doc.heading("Then");
        for (action, what) in keys {
            doc.item(&app.keymap.key_name(action), Role::Key, what);
        }
    }
    legend(&mut doc, app);
    doc.draw(pen, &app.model.facts);
}

/// How the latency is known.
fn how(doc: &mut Doc, app: &App) {
    let Some(ranked) = &app.plan.ranked else { return };
    let text = match (measured(app), ranked.recommendation.original_latency_ms) {
        (true, _) => format!(
            "The median measured on this machine, times the part of the predicted time that stays: each \
             node by its MACs and bytes at the peaks of {}.",
            ranked.device.name
        ),
        (false, Some(_)) => format!(
            "Not measured: each node by its MACs and bytes at the peaks of {}, right to a factor of two. \
             A run or `tinsmith bench` measures the model.",
            ranked.device.name
        ),
        (false, None) => "Too many nodes are of unknown cost for a prediction.".into(),
    };
    doc.text(&text, Role::Dim);
}

fn legend(doc: &mut Doc, app: &App) {
    let map = &app.model.map;
    if map.entries.iter().all(|e| e.strip.is_empty()) {
        return;
    }
    doc.heading("Reading the map");
    doc.text(
        "A strip shows the scores of a group's units from the least to the most important, half high at their \
         mean; what leaves is marked from the left. Share: part of all scores. Rise ¼: rise of the loss \
         with a quarter of the group gone.",
        Role::Dim,
    );
    if !map.runs.is_empty() {
        let key = app.keymap.key_name(Action::CutSource);
        doc.text(&format!("{key} shows what {} found.", many(map.runs.len(), "pruning run")), Role::Dim);
    }
    if map.level != Level::Group {
        let key = app.keymap.key_name(Action::CutLevel);
        doc.text(&format!("{key} changes what + and - mean."), Role::Dim);
    }
}
