//! Texts of two language models side by side: prompt, pieces as they come, ends, and what closes them.

use super::fixtures::*;
use tinsmith::tui::app::{App, Data, Effect, Failure, Tab};

fn prompted() -> (App, Effect) {
    let mut app = full(PLAIN);
    keys(&mut app, "4 Down w");
    text(&mut app, "Call me");
    let effects = keys(&mut app, "Enter");
    let say = effects.into_iter().find(|e| matches!(e, Effect::Say { .. })).unwrap();
    (app, say)
}

#[test]
fn the_baseline_and_the_selected_variant_are_asked() {
    let mut app = full(PLAIN);
    keys(&mut app, "4");
    let selected = app.compare.selected().unwrap().measurement.path.clone();
    let (app, say) = prompted();
    let Effect::Say { models, prompt, .. } = &say else { panic!("{say:?}") };
    assert_eq!(prompt, "Call me");
    assert_eq!(models.len(), 2);
    assert_eq!(models[0].to_string_lossy(), app.compare.measurements[app.compare.baseline_index()].path);
    assert!(models[1] != models[0] && !selected.is_empty());
    assert_eq!(app.tab, Tab::Compare);
    // Nothing is asked for without a prompt.
    let mut app = full(PLAIN);
    assert!(keys(&mut app, "4 w Enter").iter().all(|e| !matches!(e, Effect::Say { .. })));
}

#[test]
fn pieces_appear_as_they_come_and_late_ones_are_dropped() {
    let (mut app, say) = prompted();
    let Effect::Say { generation, .. } = say else { panic!() };
    let wrote = |side, text: &str| Data::Wrote { generation, side, text: text.into() };
    data(&mut app, wrote(0, " Ishmael. Some years ago - never mind how long precisely -"));
    assert!(screen(&app, 120, 40).contains("writes"));
    data(&mut app, wrote(0, " having little or no money in my purse.\nSecond line."));
    data(&mut app, Data::Said { generation, side: 0, result: Ok("21 tokens at 31.4 tokens/s".into()) });
    data(&mut app, wrote(1, " a taxi.\u{1b}[31m"));
    let result = Err(Failure { message: "no tokenizer beside the model".into() });
    data(&mut app, Data::Said { generation, side: 1, result });
    for (width, height) in [(80, 24), (120, 40), (200, 60)] {
        check(&format!("compare-texts-{width}x{height}"), screen(&app, width, height));
    }
    assert!(!screen(&app, 120, 40).contains('\u{1b}'));
    // Another prompt starts with the last one; what the old request still sends is dropped.
    keys(&mut app, "Enter");
    text(&mut app, " anything");
    let effects = keys(&mut app, "Enter");
    assert!(effects.iter().any(|e| matches!(e, Effect::Say { prompt, .. } if prompt == "Call me anything")));
    data(&mut app, wrote(0, "LATE"));
    assert!(!screen(&app, 120, 40).contains("LATE"));
    keys(&mut app, "Esc");
    assert!(app.overlay.is_none());
    data(&mut app, wrote(0, "LATE"));
}
