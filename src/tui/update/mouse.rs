//! What the mouse does.

use super::super::app::{App, Effect, Hit};
use super::super::layout::Pane;
use super::moves::{Move, move_by, open};
use super::{focus, go_to, quantised};
use crossterm::event::{MouseButton, MouseEvent, MouseEventKind};

pub(super) fn on_mouse(app: &mut App, event: MouseEvent, out: &mut Vec<Effect>) {
    if app.overlay.is_some() {
        return;
    }
    let hit = app
        .hits
        .borrow()
        .iter()
        .rev()
        .find(|(area, _)| area.contains((event.column, event.row).into()))
        .map(|(_, hit)| *hit);
    match (event.kind, hit) {
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Tab(tab))) => go_to(app, tab),
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Pane(pane))) => focus(app, pane),
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Row(pane, row))) => {
            focus(app, pane);
            let again = match pane {
                Pane::Tree => std::mem::replace(&mut app.model.list().selected, row) == row,
                Pane::Proposals => std::mem::replace(&mut app.plan.list.selected, row) == row,
                Pane::Jobs => std::mem::replace(&mut app.runs.list.selected, row) == row,
                Pane::Quantised => {
                    quantised::sheets(app).list.selected = row;
                    false
                }
                Pane::Table => std::mem::replace(&mut app.compare.list.selected, row) == row,
                Pane::Lines => std::mem::replace(&mut app.log.list.selected, row) == row,
                _ => false,
            };
            move_by(app, Move::Step(0));
            if again && pane == Pane::Tree {
                open(app, out);
            }
        }
        (
            MouseEventKind::ScrollDown | MouseEventKind::ScrollUp,
            Some(Hit::Pane(pane) | Hit::Row(pane, _)),
        ) => {
            focus(app, pane);
            move_by(app, Move::Step(if event.kind == MouseEventKind::ScrollDown { 3 } else { -3 }));
        }
        _ => {}
    }
}
