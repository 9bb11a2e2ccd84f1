//! Drawing of the Model tab.

use super::super::action::Action;
use super::super::app::App;
use super::super::layout::Pane;
use super::super::model::{Opened, View};
use super::super::paint::{Pen, Span, many, span};
use super::super::theme::Role;
use super::super::tree::Order;
use super::doc::Doc;
use super::table::{Cell, Column, Grid, cell, flexible, left, right};
use crate::analysis::{Layer, Summary};
use crate::units::{Bytes, Count};

type Titles = (Vec<Span>, Vec<Span>);

const LAYERS: [Column; 8] = [
    flexible("layer", 22),
    left("op", 14, 3),
    left("output shape", 16, 6),
    right("params", 7, 0),
    right("MACs", 7, 1),
    right("bytes", 9, 2),
    left("share of MACs", 14, 4),
    left("role", 10, 5),
];
const TENSORS: [Column; 6] = [
    flexible("tensor", 24),
    left("encoding", 9, 0),
    left("shape", 14, 2),
    right("params", 7, 1),
    right("bytes", 9, 0),
    left("role", 10, 3),
];
const GROUPS: [Column; 6] = [
    right("group", 5, 0),
    right("units", 6, 0),
    left("prunable", 8, 0),
    right("params/unit", 11, 2),
    right("weights", 7, 3),
    flexible("pinned by / weights", 20),
];
const OPERATORS: [Column; 6] = [
    flexible("operator", 18),
    right("nodes", 7, 0),
    right("params", 8, 1),
    right("MACs", 8, 0),
    left("share of MACs", 14, 3),
    left("status", 8, 2),
];

fn name(app: &App) -> Option<String> {
    let path = app.model.path.as_ref()?;
    Some(path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned())
}

pub(super) fn tree_title(app: &App) -> Titles {
    let mut title = vec![span(
        match app.model.view {
            View::Layers => "Layers",
            View::Groups => "Coupling groups",
            View::Operators => "Operators",
            View::Tensors => "Tensors",
            View::Diff => "Diff",
            View::Map => "Map",
        },
        Role::Title,
    )];
    if let Some(name) = name(app) {
        title.push(span(" · ", Role::Dim));
        title.push(span(crate::text::clean(&name, 32), Role::Accent));
    }
    if !app.model.filter.is_empty() {
        title.push(span(format!(" /{}", crate::text::clean(&app.model.filter, 20)), Role::Key));
    }
    let mut note = Vec::new();
    if app.model.loading.is_some() {
        note.push(span("analysing…", Role::Info));
    } else if app.model.comparing.is_some() {
        note.push(span("comparing…", Role::Info));
    } else if app.on_map() {
        note = super::map::note(app);
    } else if let (View::Diff, Some(diff)) = (app.model.view, &app.model.diff) {
        note.push(span(format!("against {}", crate::text::clean(&diff.after, 32)), Role::Dim));
    } else if let Some(o) = &app.model.opened {
        let s = &o.summary;
        note.push(span(
            format!("{} params · {} · {}", Count(s.parameters), macs(s), Bytes(s.file_bytes)),
            Role::Dim,
        ));
    }
    (title, note)
}

/// Total MACs in words; a lower bound is marked.
pub(super) fn macs(s: &Summary) -> String {
    match (s.macs, s.macs_unknown) {
        (0, 1..) => "unknown MACs".into(),
        (n, 1..) => format!("≥{} MACs", Count(n)),
        (n, 0) => format!("{} MACs", Count(n)),
    }
}

pub(super) fn tree(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let tab = &app.model;
    let Some(opened) = &tab.opened else {
        let open = app.keymap.key_name(Action::OpenModel);
        if let Some(path) = &tab.loading {
            return super::empty(pen, &format!("Analysing {} …", path.display()), &[]);
        }
        if let Some(failure) = &tab.failure {
            return super::empty(pen, &failure.message, &[(&open, "open another model")]);
        }
        let palette = app.keymap.key_name(Action::Palette);
        let help = app.keymap.key_name(Action::Help);
        return super::empty(
            pen,
            "No model is open. Open an ONNX, GGUF or safetensors file or a checkpoint's directory to see \
             its layers, parameters, cost and which channels can be pruned together.",
            &[(&open, "open a model"), (&palette, "find a command"), (&help, "all keys")],
        );
    };
    match tab.view {
        View::Layers => layers(app, opened, pen, focused),
        View::Groups => groups(app, &opened.summary, pen, focused),
        View::Operators => operators(app, opened, pen, focused),
        View::Tensors => tensors(app, &opened.summary, pen, focused),
        View::Diff => super::differ::rows(app, pen, focused),
        View::Map => super::map::map(app, pen, focused),
    }
}

fn tensors(app: &App, summary: &Summary, pen: &mut Pen<'_>, focused: bool) {
    let grid = Grid::new(&TENSORS, pen.width().saturating_sub(2));
    grid.header(pen, 0, &TENSORS, None);
    let rows = &app.model.tensor_rows;
    if rows.is_empty() {
        let none = summary.tensors.is_empty();
        let text = if none { "The model has no weights." } else { "No tensor matches the filter." };
        pen.text(1, 2, text, Role::Dim);
        return;
    }
    let window = app.model.tensors.window(rows.len(), pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let t = &summary.tensors[rows[at]];
        grid.row(pen, y, &TENSORS, |column| match column {
            0 => cell(t.name.clone(), Role::Text),
            1 => cell(t.encoding.clone(), Role::Accent),
            2 => cell(super::weight::dims(&t.shape), Role::Dim),
            3 => cell(Count(t.parameters).to_string(), Role::Text),
            4 => cell(Bytes(t.bytes).to_string(), Role::Text),
            _ => cell(t.role.clone(), Role::Dim),
        });
        if at == app.model.tensors.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

fn layers(app: &App, opened: &Opened, pen: &mut Pen<'_>, focused: bool) {
    let tab = &app.model;
    let room = pen.width().saturating_sub(2);
    let grid = Grid::new(&LAYERS, room);
    let sorted = match tab.order {
        Order::Name => (0, tab.reverse),
        Order::Parameters => (3, tab.reverse),
        Order::Macs => (4, tab.reverse),
        Order::Bytes => (5, tab.reverse),
        Order::Execution => (usize::MAX, tab.reverse),
    };
    grid.header(pen, 0, &LAYERS, Some(sorted));
    if tab.rows.is_empty() {
        let text =
            if tab.filter.is_empty() { "The graph has no nodes." } else { "No layer matches the filter." };
        pen.text(1, 2, text, Role::Dim);
        return;
    }
    let total = opened.summary.macs.max(1) as f64;
    let window = tab.layers.window(tab.rows.len(), pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let row = tab.rows[at];
        let node = &opened.tree.nodes[row.node];
        let layer = node.layer.and_then(|l| opened.summary.layers.get(l));
        grid.row(pen, y, &LAYERS, |column| match (column, layer) {
            (0, _) => {
                let open = tab.open.get(row.node).copied().unwrap_or(false) || !tab.filter.is_empty();
                let mark = match (layer, open) {
                    (Some(_), _) => "  ",
                    (None, true) => "▾ ",
                    (None, false) => "▸ ",
                };
                let role = if layer.is_some() { Role::Text } else { Role::Strong };
                Cell::Spans(vec![
                    span(" ".repeat(row.depth.min(12) * 2), Role::Text),
                    span(mark, Role::Dim),
                    span(node.name.clone(), role),
                ])
            }
            (1, Some(layer)) => {
                let known = !opened.summary.unknown_ops.iter().any(|(op, _)| *op == layer.op);
                cell(layer.op.clone(), if known { Role::Accent } else { Role::Warn })
            }
            (1, None) => cell(many(node.layers, "layer"), Role::Dim),
            (2, Some(layer)) => cell(shape(layer), Role::Dim),
            (3, _) if node.parameters > 0 => cell(Count(node.parameters).to_string(), Role::Text),
            (4, _) if node.macs_unknown == node.layers => cell("?", Role::Warn),
            (4, _) if node.macs > 0 => cell(Count(node.macs).to_string(), Role::Text),
            (5, _) if node.weight_bytes > 0 => cell(Bytes(node.weight_bytes).to_string(), Role::Text),
            (6, _) if node.macs > 0 => Cell::Bar(node.macs as f64 / total, Role::Bar),
            (7, Some(layer)) => cell(layer.role.clone(), Role::Dim),
            (3..=5, _) => cell("–", Role::Dim),
            _ => cell("", Role::Text),
        });
        if at == tab.layers.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

/// The selected row: reversed where the pane has the focus, a mark at its left otherwise.
pub(super) fn mark_row(pen: &mut Pen<'_>, y: usize, focused: bool) {
    if focused {
        pen.select(y);
    } else {
        pen.text(0, y, "▸", Role::Focus);
    }
}

fn groups(app: &App, summary: &Summary, pen: &mut Pen<'_>, focused: bool) {
    let grid = Grid::new(&GROUPS, pen.width().saturating_sub(2));
    grid.header(pen, 0, &GROUPS, None);
    if summary.groups.is_empty() {
        pen.text(1, 2, "No channels are coupled: nothing here can be pruned by structure.", Role::Dim);
        return;
    }
    let window = app.model.groups.window(summary.groups.len(), pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let group = &summary.groups[at];
        grid.row(pen, y, &GROUPS, |column| match column {
            0 => cell(group.id.to_string(), Role::Strong),
            1 => cell(group.units.to_string(), Role::Text),
            2 if group.prunable => cell("yes", Role::Good),
            2 => cell("pinned", Role::Warn),
            3 => cell(Count(group.parameters_per_unit).to_string(), Role::Text),
            4 => cell(group.members.len().to_string(), Role::Text),
            _ => match (&group.pinned_by, group.members.first()) {
                (Some(why), _) => cell(why.clone(), Role::Dim),
                (None, Some((tensor, _))) => cell(tensor.clone(), Role::Dim),
                (None, None) => cell("", Role::Dim),
            },
        });
        if at == app.model.groups.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

fn operators(app: &App, opened: &Opened, pen: &mut Pen<'_>, focused: bool) {
    let grid = Grid::new(&OPERATORS, pen.width().saturating_sub(2));
    grid.header(pen, 0, &OPERATORS, None);
    let total = opened.summary.macs.max(1) as f64;
    let window = app.model.operators.window(opened.operators.len(), pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let op = &opened.operators[at];
        grid.row(pen, y, &OPERATORS, |column| match column {
            0 => cell(op.name.clone(), Role::Accent),
            1 => cell(op.nodes.to_string(), Role::Text),
            2 if op.parameters > 0 => cell(Count(op.parameters).to_string(), Role::Text),
            3 if op.macs > 0 => cell(Count(op.macs).to_string(), Role::Text),
            4 if op.macs > 0 => Cell::Bar(op.macs as f64 / total, Role::Bar),
            5 if op.known => cell("known", Role::Dim),
            5 => cell("unknown", Role::Warn),
            4 => cell("", Role::Text),
            _ => cell("–", Role::Dim),
        });
        if at == app.model.operators.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

fn shape(layer: &Layer) -> String {
    layer.output_shape.as_ref().map_or("?".into(), |dims| dims.join("×"))
}

pub(super) fn layer_title(app: &App) -> Titles {
    let title = match app.model.view {
        View::Layers => {
            if app.model.selected_layer().is_some() {
                "Layer"
            } else {
                "Group of layers"
            }
        }
        View::Groups => "Coupling group",
        View::Operators => "Operator",
        View::Tensors => "Tensor",
        View::Diff => "Difference",
        View::Map => super::map::detail_title(app),
    };
    (vec![span(title, Role::Title)], vec![])
}

pub(super) fn layer(app: &App, pen: &mut Pen<'_>) {
    let tab = &app.model;
    let Some(opened) = &tab.opened else { return };
    let s = &opened.summary;
    let mut doc = Doc::new(pen);
    match tab.view {
        View::Layers => {
            if let Some(layer) = tab.selected_layer() {
                one_layer(&mut doc, app, s, layer);
            } else if let Some(node) = tab.selected_node().and_then(|n| opened.tree.nodes.get(n)) {
                doc.pair("name", &node.name, Role::Strong);
                doc.pair("layers", &node.layers.to_string(), Role::Text);
                let counted = (node.macs > 0 || node.macs_unknown == 0).then_some(node.macs);
                cost(&mut doc, s, node.parameters, counted, node.weight_bytes);
                if node.macs_unknown > 0 {
                    let text = format!(
                        "{} of unknown shape; their MACs are not in the sum",
                        many(node.macs_unknown, "layer")
                    );
                    doc.item("!", Role::Warn, &text);
                }
            }
        }
        View::Groups => {
            let Some(group) = s.groups.get(tab.groups.selected) else { return };
            doc.pair("group", &group.id.to_string(), Role::Strong);
            doc.pair("units", &format!("{} ({})", group.units, group.kind), Role::Text);
            doc.pair(
                "per unit",
                &format!("{} parameters leave with one", Count(group.parameters_per_unit)),
                Role::Text,
            );
            match &group.pinned_by {
                Some(why) => doc.pair("pinned by", why, Role::Warn),
                None => doc.pair("prunable", "yes, all its weights are cut together", Role::Good),
            }
            doc.heading("Weights that lose a slice");
            for (tensor, axis) in group.members.iter().take(2000) {
                doc.item("·", Role::Dim, &format!("{tensor}  axis {axis}"));
            }
            let layers: Vec<&Layer> = s.layers.iter().filter(|l| l.group == Some(group.id)).collect();
            if !layers.is_empty() {
                doc.heading("Layers");
                for layer in layers.iter().take(2000) {
                    doc.item("·", Role::Dim, &format!("{}  {}", layer.name, layer.op));
                }
            }
        }
        View::Operators => {
            let Some(op) = opened.operators.get(tab.operators.selected) else { return };
            doc.pair("operator", &op.name, Role::Strong);
            doc.pair("nodes", &op.nodes.to_string(), Role::Text);
            cost(&mut doc, s, op.parameters, Some(op.macs), op.weight_bytes);
            if !op.known {
                doc.item(
                    "!",
                    Role::Warn,
                    "This version does not know the operator. It is kept as it is and written back; passes \
                     do not cross it, and the built-in executor cannot run it.",
                );
            }
            doc.heading("Nodes");
            for layer in s.layers.iter().filter(|l| l.op == op.name).take(500) {
                doc.item("·", Role::Dim, &layer.name);
            }
        }
        View::Tensors => {
            let Some(t) = tab.selected_tensor() else { return };
            if !super::weight::is_read(app, t) {
                doc.pair("name", &t.name, Role::Strong);
            }
            super::weight::elements(&mut doc, app, t);
            super::weight::stored(&mut doc, t);
        }
        View::Diff => super::differ::detail(&mut doc, app),
        View::Map => super::map::detail(&mut doc, app),
    }
    doc.draw(pen, &tab.details);
}

fn one_layer(doc: &mut Doc, app: &App, s: &Summary, layer: &Layer) {
    doc.pair("name", &layer.name, Role::Strong);
    let known = !s.unknown_ops.iter().any(|(op, _)| *op == layer.op);
    if s.no_graph.is_some() {
        doc.pair("encoding", &layer.op, Role::Accent);
    } else if known {
        doc.pair("operator", &layer.op, Role::Accent);
    } else {
        doc.pair("operator", &format!("{} (unknown to this version)", layer.op), Role::Warn);
    }
    // What a key asked for stands first.
    let tensors: Vec<&crate::analysis::TensorInfo> =
        layer.weights.iter().filter_map(|(name, ..)| app.model.tensor(name)).collect();
    let read: Vec<_> = tensors.iter().filter(|t| super::weight::is_read(app, t)).collect();
    for t in &read {
        super::weight::elements(doc, app, t);
    }
    if !read.is_empty() {
        doc.heading("Layer");
    }
    if s.no_graph.is_none() {
        doc.pair("output", &format!("{} [{}]", layer.dtype, shape(layer)), Role::Text);
    }
    doc.pair("role", &layer.role, Role::Text);
    doc.pair("position", &format!("{} of {}", layer.index + 1, s.layers.len()), Role::Text);
    cost(doc, s, layer.parameters, layer.macs, layer.weight_bytes);
    if let Some(bytes) = layer.traffic_bytes {
        doc.pair("traffic", &format!("{} read and written", Bytes(bytes)), Role::Text);
        if let Some(macs) = layer.macs.filter(|m| *m > 0 && bytes > 0) {
            doc.pair("intensity", &format!("{:.2} MACs per byte", macs as f64 / bytes as f64), Role::Text);
        }
    }
    if let Some(bytes) = layer.activation_bytes {
        doc.pair("activations", &Bytes(bytes).to_string(), Role::Text);
    }
    if let Some(group) = layer.group.and_then(|id| s.groups.iter().find(|g| g.id == id)) {
        let (word, role) = match &group.pinned_by {
            Some(why) => (format!("{}, pinned by {why}", group.id), Role::Warn),
            None => (format!("{}, {} units, prunable", group.id, group.units), Role::Good),
        };
        doc.pair("group", &word, role);
    }
    if !layer.weights.is_empty() {
        doc.heading("Weights");
        for (name, dtype, dims) in &layer.weights {
            doc.item("·", Role::Dim, &format!("{name}  {dtype} [{}]", super::weight::dims(dims)));
        }
        for t in tensors.iter().filter(|t| !super::weight::is_read(app, t)) {
            super::weight::elements(doc, app, t);
        }
    }
}

fn cost(doc: &mut Doc, s: &Summary, parameters: u64, macs: Option<u64>, bytes: u64) {
    let share = |part: u64, whole: u64| {
        if whole == 0 { String::new() } else { format!("  {:.1} %", 100.0 * part as f64 / whole as f64) }
    };
    doc.pair("parameters", &format!("{}{}", Count(parameters), share(parameters, s.parameters)), Role::Text);
    match macs {
        _ if s.no_graph.is_some() => {}
        Some(macs) => doc.pair("MACs", &format!("{}{}", Count(macs), share(macs, s.macs)), Role::Text),
        None => doc.pair("MACs", "unknown: the shape is not known", Role::Warn),
    }
    doc.pair("weights", &format!("{}{}", Bytes(bytes), share(bytes, s.weight_bytes)), Role::Text);
}
