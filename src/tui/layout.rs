//! Which panes stand where: from the drawn area, the tab and the focus. Pure.

use super::app::Tab;
use ratatui::layout::Rect;

/// A part of a tab that can have the focus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pane {
    /// Layers, groups or operators.
    Tree,
    /// The selected one in detail.
    Layer,
    /// The model as a whole.
    Facts,
    /// Ranked recipes.
    Proposals,
    /// Why the selected one.
    Why,
    /// What a quantise step did: on the Plan tab that of the newest run of the selected recipe.
    Quantised,
    /// Jobs.
    Jobs,
    /// Curves of the selected job.
    Charts,
    /// Facts of the selected job.
    RunFacts,
    /// Last lines of the selected job.
    Tail,
    /// Variants.
    Table,
    /// Latency against quality.
    Scatter,
    /// The selected variant in detail.
    Variant,
    /// Log lines.
    Lines,
}

impl Pane {
    /// Panes of a tab in the order of Tab.
    pub fn of(tab: Tab) -> &'static [Pane] {
        match tab {
            Tab::Model => &[Pane::Tree, Pane::Layer, Pane::Facts],
            Tab::Plan => &[Pane::Proposals, Pane::Why, Pane::Quantised],
            Tab::Runs => &[Pane::Jobs, Pane::Charts, Pane::Quantised, Pane::RunFacts, Pane::Tail],
            Tab::Compare => &[Pane::Table, Pane::Scatter, Pane::Variant],
            Tab::Log => &[Pane::Lines],
        }
    }
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nothing can be drawn.
    Nothing,
    /// Below 60x15: a card says so.
    Card,
    /// Below 80x24: one pane without borders.
    Bare,
    /// From 80x24.
    Small,
    /// From 120x40.
    Medium,
    /// From 200x60.
    Large,
}

/// The class of an area.
pub fn class(width: u16, height: u16) -> Class {
    match (width, height) {
        (0, _) | (_, 0) => Class::Nothing,
        (w, h) if w >= 200 && h >= 60 => Class::Large,
        (w, h) if w >= 120 && h >= 40 => Class::Medium,
        (w, h) if w >= 80 && h >= 24 => Class::Small,
        (w, h) if w >= 60 && h >= 15 => Class::Bare,
        _ => Class::Card,
    }
}

/// A pane in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Pane.
    pub pane: Pane,
    /// Where, border included.
    pub area: Rect,
    /// Its top edge continues the box above.
    pub joined: bool,
}

fn rows(area: Rect, top: u16) -> (Rect, Rect) {
    let top = top.min(area.height);
    (Rect { height: top, ..area }, Rect { y: area.y + top, height: area.height - top, ..area })
}

/// Two boxes that share an edge.
fn stacked(area: Rect, top: u16) -> (Rect, Rect) {
    let (a, b) = rows(area, top);
    if b.height == 0 || a.height == 0 {
        return (a, b);
    }
    (a, Rect { y: b.y - 1, height: b.height + 1, ..b })
}

fn columns(area: Rect, left: u16) -> (Rect, Rect) {
    let left = left.min(area.width);
    (Rect { width: left, ..area }, Rect { x: area.x + left, width: area.width - left, ..area })
}

/// Places of a tab's panes in `area` (without header and footer). `items` is the length of the main list;
/// with none, the first pane says how to begin and has the whole area. `quantised` says that there is something
/// to show of a quantise step.
pub fn places(
    tab: Tab,
    class: Class,
    area: Rect,
    focus: Pane,
    zoomed: bool,
    (items, quantised): (usize, bool),
) -> Vec<Place> {
    let own = |pane: Pane, area: Rect| Place { pane, area, joined: false };
    let joined = |pane: Pane, area: Rect| Place { pane, area, joined: true };
    if zoomed || class <= Class::Bare || tab == Tab::Log {
        return vec![own(focus, area)];
    }
    if items == 0 {
        return vec![own(Pane::of(tab)[0], area)];
    }
    let list = (items.clamp(3, 400) as u16).saturating_add(3);
    // What shares the place of the curves.
    let middle = match focus {
        Pane::Charts | Pane::Quantised => focus,
        _ if quantised => Pane::Quantised,
        _ => Pane::Charts,
    };
    match (tab, class) {
        (Tab::Model, Class::Small) => vec![own(focus, area)],
        (Tab::Model, Class::Medium) => {
            let (left, right) = columns(area, area.width * 62 / 100);
            let (top, bottom) = stacked(right, area.height / 2);
            vec![own(Pane::Tree, left), own(Pane::Layer, top), joined(Pane::Facts, bottom)]
        }
        (Tab::Model, _) => {
            let (left, rest) = columns(area, area.width * 52 / 100);
            let (middle, right) = columns(rest, rest.width / 2);
            vec![own(Pane::Tree, left), own(Pane::Layer, middle), own(Pane::Facts, right)]
        }
        (Tab::Plan, Class::Large) => {
            let layers = quantised || focus == Pane::Quantised;
            let (left, right) = columns(area, area.width * if layers { 50 } else { 58 } / 100);
            if !layers {
                return vec![own(Pane::Proposals, left), own(Pane::Why, right)];
            }
            let (top, bottom) = stacked(right, area.height / 2);
            vec![own(Pane::Proposals, left), own(Pane::Why, top), joined(Pane::Quantised, bottom)]
        }
        (Tab::Plan, _) => {
            // Two lines of the goal stand above the rows.
            let (top, bottom) = stacked(area, list.saturating_add(3).clamp(8, area.height * 55 / 100));
            let second = if focus == Pane::Quantised { focus } else { Pane::Why };
            vec![own(Pane::Proposals, top), joined(second, bottom)]
        }
        (Tab::Runs, Class::Small) => {
            let (top, bottom) = stacked(area, list.clamp(5, area.height * 2 / 5));
            let second = if focus == Pane::Jobs { middle } else { focus };
            vec![own(Pane::Jobs, top), joined(second, bottom)]
        }
        (Tab::Runs, Class::Medium) => {
            let (left, right) = columns(area, 46);
            let (charts, rest) = stacked(right, area.height * 48 / 100);
            let (facts, tail) = stacked(rest, rest.height.saturating_sub(9));
            vec![
                own(Pane::Jobs, left),
                own(middle, charts),
                joined(Pane::RunFacts, facts),
                joined(Pane::Tail, tail),
            ]
        }
        (Tab::Runs, _) => {
            let (top, tail) = rows(area, area.height.saturating_sub(12));
            let (left, rest) = columns(top, 56);
            let (charts, facts) = columns(rest, rest.width.saturating_sub(48));
            vec![
                own(Pane::Jobs, left),
                own(middle, charts),
                own(Pane::RunFacts, facts),
                own(Pane::Tail, tail),
            ]
        }
        (Tab::Compare, Class::Small) => {
            let (top, bottom) = stacked(area, list.clamp(6, area.height / 2));
            let second = if focus == Pane::Table { Pane::Scatter } else { focus };
            vec![own(Pane::Table, top), joined(second, bottom)]
        }
        (Tab::Compare, Class::Medium) => {
            let (top, bottom) = rows(area, list.saturating_add(2).clamp(8, area.height / 2));
            let (left, right) = columns(bottom, area.width * 58 / 100);
            vec![own(Pane::Table, top), own(Pane::Scatter, left), own(Pane::Variant, right)]
        }
        _ => {
            let (left, scatter) = columns(area, area.width * 62 / 100);
            let (table, variant) = stacked(left, list.saturating_add(2).clamp(8, area.height / 2));
            vec![own(Pane::Table, table), joined(Pane::Variant, variant), own(Pane::Scatter, scatter)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_stay_inside_the_area_and_show_the_focused_one() {
        for tab in Tab::ALL {
            for (w, h) in [(60, 13), (80, 22), (120, 38), (200, 58), (500, 200), (119, 70)] {
                let area = Rect::new(0, 1, w, h);
                for focus in Pane::of(tab) {
                    for content in [(1, false), (5, true), (10_000, true)] {
                        let places = places(tab, class(w, h + 2), area, *focus, false, content);
                        assert!(places.iter().any(|p| p.pane == *focus), "{tab:?} {focus:?} {w}x{h}");
                        for place in places {
                            assert_eq!(place.area.intersection(area), place.area, "{tab:?} {w}x{h}");
                            assert!(place.area.height >= 3, "{tab:?} {:?} {w}x{h}", place.pane);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_tab_without_content_is_one_pane() {
        let area = Rect::new(0, 1, 200, 58);
        for tab in Tab::ALL {
            let places = places(tab, Class::Large, area, Pane::of(tab)[0], false, (0, false));
            assert_eq!(
                places.iter().map(|p| (p.pane, p.area)).collect::<Vec<_>>(),
                [(Pane::of(tab)[0], area)]
            );
        }
    }

    #[test]
    fn the_area_decides_the_class() {
        assert_eq!(class(0, 10), Class::Nothing);
        assert_eq!(class(59, 40), Class::Card);
        assert_eq!(class(60, 15), Class::Bare);
        assert_eq!(class(80, 24), Class::Small);
        assert_eq!(class(200, 40), Class::Medium);
        assert_eq!(class(200, 60), Class::Large);
    }
}
