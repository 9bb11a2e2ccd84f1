//! Drawing of what is known of the model as a whole.

use super::super::app::App;
use super::super::paint::{Pen, Span, many, span};
use super::super::theme::Role;
use super::doc::Doc;
use super::model::macs;
use crate::analysis::Summary;
use crate::formats::About;
use crate::units::{Bytes, Count};

/// Metadata values are cut to this many characters.
const VALUE: usize = 400;

pub(super) fn title() -> (Vec<Span>, Vec<Span>) {
    (vec![span("Model", Role::Title)], vec![])
}

pub(super) fn facts(app: &App, pen: &mut Pen<'_>) {
    let Some(opened) = &app.model.opened else { return };
    let s = &opened.summary;
    let mut doc = Doc::new(pen);
    size(&mut doc, s);
    if !s.about.is_empty() {
        about(&mut doc, &s.about);
    }
    if !s.warnings.is_empty() {
        doc.heading("Take care");
        for warning in &s.warnings {
            doc.item("!", Role::Warn, warning);
        }
    }
    shares(&mut doc, s);
    for (title, values) in [("Inputs", &s.inputs), ("Outputs", &s.outputs)] {
        if values.is_empty() {
            continue;
        }
        doc.heading(title);
        for v in values {
            let dims = v.shape.as_ref().map_or("?".into(), |d| d.join("×"));
            doc.item("·", Role::Dim, &format!("{}  {} [{dims}]", v.name, v.dtype));
        }
    }
    if !s.bindings.is_empty() {
        let list: Vec<String> = s.bindings.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        doc.pair("counted with", &list.join(", "), Role::Dim);
    }
    if !s.opsets.is_empty() {
        doc.heading("Operator sets");
        for (domain, version) in &s.opsets {
            let domain = if domain.is_empty() { "ai.onnx" } else { domain };
            doc.item("·", Role::Dim, &format!("{domain} {version}"));
        }
    }
    if !s.metadata.is_empty() {
        doc.heading("Metadata");
        for (key, value) in &s.metadata {
            let shown = &value[..value.floor_char_boundary(VALUE)];
            let mark = if shown.len() < value.len() { "…" } else { "" };
            doc.item("·", Role::Dim, &format!("{key}: {shown}{mark}"));
        }
    }
    doc.draw(pen, &app.model.facts);
}

fn size(doc: &mut Doc, s: &Summary) {
    doc.pair("file", &s.name, Role::Strong);
    let producer = if s.producer.is_empty() { String::new() } else { format!(" · {}", s.producer) };
    doc.pair("format", &format!("{}{producer}", s.format), Role::Text);
    doc.pair("size", &Bytes(s.file_bytes).to_string(), Role::Text);
    doc.pair("parameters", &Count(s.parameters).to_string(), Role::Text);
    if let Some(why) = &s.no_graph {
        doc.pair("no graph", &format!("{why}; it cannot be converted"), Role::Warn);
    } else {
        doc.pair("compute", &format!("{} per inference", macs(s)), Role::Text);
        doc.pair("activations", &format!("{} at the peak", Bytes(s.peak_activation_bytes)), Role::Text);
        doc.pair("nodes", &s.layers.len().to_string(), Role::Text);
        let prunable = s.groups.iter().filter(|g| g.prunable).count();
        doc.pair("groups", &format!("{} coupled, {prunable} prunable", s.groups.len()), Role::Text);
    }
    if let Some(cache) = &s.kv_cache {
        let at = match (cache.context, cache.bytes_at_context) {
            (Some(n), Some(bytes)) => format!(", {} at {n}", Bytes(bytes)),
            _ => String::new(),
        };
        let text = format!("{} per token{at} ({})", Bytes(cache.bytes_per_token), cache.dtype);
        doc.pair("KV cache", &text, Role::Text);
    }
    if !s.unknown_ops.is_empty() {
        let list: Vec<String> = s.unknown_ops.iter().map(|(op, n)| format!("{op} ({n})")).collect();
        doc.pair("unknown ops", &list.join(", "), Role::Warn);
    }
}

fn about(doc: &mut Doc, a: &About) {
    doc.heading("About");
    let mut text = |label: &str, value: &Option<String>| {
        if let Some(value) = value {
            doc.pair(label, value, Role::Text);
        }
    };
    text("title", &a.title);
    text("architecture", &a.architecture);
    text("licence", &a.licence);
    text("quantised", &a.quantisation);
    let of = |n: Option<u64>, word: &str| n.map(|n| format!("{n} {word}"));
    let join = |parts: [Option<String>; 3]| parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let shape = join([of(a.blocks, "blocks"), of(a.width, "wide"), of(a.feed_forward, "feed-forward")]);
    let heads = join([of(a.heads, "heads"), of(a.kv_heads, "key-value"), of(a.head_size, "wide")]);
    let text = join([of(a.context_length, "tokens of context"), of(a.vocabulary, "in the vocabulary"), None]);
    for (label, value) in [("blocks", shape), ("attention", heads), ("text", text)] {
        if !value.is_empty() {
            doc.pair(label, &value, Role::Text);
        }
    }
    if let Some(t) = &a.tokenizer {
        let pre = t.pre.as_ref().map_or(String::new(), |p| format!(" ({p})"));
        let template = if t.chat_template { ", chat template" } else { "" };
        doc.pair("tokenizer", &format!("{}{pre}, {} tokens{template}", t.kind, t.tokens), Role::Text);
        let special: Vec<String> = t.special.iter().map(|(n, v)| format!("{n} {v}")).collect();
        if !special.is_empty() {
            doc.pair("special", &special.join("  "), Role::Dim);
        }
    }
    if !a.generation.is_empty() {
        let settings: Vec<String> = a.generation.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        doc.pair("generation", &settings.join(", "), Role::Dim);
    }
}

/// Where parameters and work are: by role, and how weights are stored.
fn shares(doc: &mut Doc, s: &Summary) {
    let part = |n: u64, of: u64| 100.0 * n as f64 / of.max(1) as f64;
    let roles: Vec<_> = s.by_role.iter().filter(|r| r.parameters > 0 || r.macs > 0).collect();
    if !roles.is_empty() {
        doc.heading("By role");
        for r in roles {
            let work = match s.macs {
                0 => String::new(),
                all => format!(", {:.1} % of the MACs", part(r.macs, all)),
            };
            let text = format!("{:.1} % of the parameters{work}", part(r.parameters, s.parameters));
            doc.pair(&r.kind, &text, Role::Text);
        }
    }
    if !s.encodings.is_empty() {
        doc.heading("Encodings");
        for e in &s.encodings {
            let bits = 8.0 * e.bytes as f64 / e.parameters.max(1) as f64;
            let text = format!("{}, {}, {bits:.2} bits each", many(e.tensors, "tensor"), Bytes(e.bytes));
            doc.pair(&e.encoding, &text, Role::Text);
        }
    }
}
