//! What keys do on the Compare tab: baseline, columns, scatter, texts of two models.

use super::super::action::Action;
use super::super::app::{App, Effect};
use super::super::compare;
use super::super::layout::Pane;
use super::super::overlay::{Overlay, Prompt, Side};
use super::focus;
use std::path::PathBuf;
use tui_input::Input;

/// Does an action of the Compare tab.
pub(super) fn act(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    match action {
        Action::Baseline => {
            if let Some(row) = app.compare.selected() {
                let m = &row.measurement;
                app.compare.baseline = Some((m.variant.clone(), m.model_sha256.clone()));
                compare_again(app, true, out);
            }
        }
        Action::Differences => app.compare.only_differences = !app.compare.only_differences,
        Action::Axes => app.compare.axis = app.compare.axis.next(),
        Action::Scatter => {
            let to = if app.pane() == Pane::Scatter { Pane::Table } else { Pane::Scatter };
            focus(app, to);
        }
        Action::Say => {
            let baseline = app.compare.measurements.get(app.compare.baseline_index());
            let selected = app.compare.selected().map(|r| &r.measurement);
            let mut models: Vec<(String, PathBuf)> = Vec::new();
            for m in [baseline, selected].into_iter().flatten() {
                let model = (m.variant.clone(), PathBuf::from(&m.path));
                if !models.contains(&model) {
                    models.push(model);
                }
            }
            let input = Input::default();
            app.overlay = Some(Overlay::Prompt(Box::new(Prompt { input, models })));
        }
        _ => {}
    }
}

/// Asks for the comparison again where what is to be compared has changed.
pub(super) fn compare_again(app: &mut App, always: bool, out: &mut Vec<Effect>) {
    let (source, measurements) = compare::gather(app);
    let tab = &mut app.compare;
    tab.source = source;
    if measurements.is_empty() {
        tab.measurements.clear();
        tab.comparison = None;
        tab.rows.clear();
        tab.loading = false;
        return;
    }
    if !always && tab.measurements == measurements {
        return;
    }
    tab.measurements = measurements;
    tab.generation += 1;
    tab.loading = true;
    out.push(Effect::Compare {
        generation: tab.generation,
        measurements: tab.measurements.clone(),
        baseline: tab.baseline_index(),
    });
}

/// The column of a text that is still looked at.
pub(super) fn side_of(app: &mut App, generation: u64, side: usize) -> Option<&mut Side> {
    match &mut app.overlay {
        Some(Overlay::Texts(texts)) if texts.generation == generation => texts.sides.get_mut(side),
        _ => None,
    }
}
