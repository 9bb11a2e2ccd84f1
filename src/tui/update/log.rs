//! What keys do on the Log tab.

use super::super::action::Action;
use super::super::app::{App, Effect};
use super::super::log;

/// Does an action of the Log tab.
pub(super) fn act(app: &mut App, action: Action, _: &mut Vec<Effect>) {
    match action {
        Action::Wrap => app.log.wrap = !app.log.wrap,
        Action::Follow => {
            app.log.follow = !app.log.follow;
            relog(app);
        }
        Action::Level => {
            app.log.next_level();
            relog(app);
        }
        Action::Source => {
            app.log.source = app.log.source.next();
            relog(app);
        }
        _ => {}
    }
}

pub(super) fn relog(app: &mut App) {
    let lines = log::gather(app);
    app.log.set(lines);
}
