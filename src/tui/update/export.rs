//! What is on the screen as a file, and the command that gives the same.

use super::super::app::{App, Effect, Tab};
use super::super::log;
use super::super::model::View;
use super::super::plan::{command, file_stem, quoted};
use crate::monitor::Level;

pub(super) fn export(app: &mut App, out: &mut Vec<Effect>) {
    let model = app.model.path.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    let (name, text, command) = match app.tab {
        Tab::Model => {
            let Some(opened) = &app.model.opened else { return };
            if let (View::Diff, Some(diff)) = (app.model.view, &app.model.diff) {
                let name = format!("{}.diff.json", file_stem(&diff.after));
                let text = json(serde_json::to_string_pretty(&**diff));
                let after = app.model.diff_with.to_string_lossy();
                let command = format!("tinsmith diff {} {} --format json", quoted(&model), quoted(&after));
                out.push(Effect::Export { name, text, command });
                return;
            }
            if app.on_map() && app.model.map.edit.cuts() {
                let recipe = match super::map::recipe(app) {
                    Ok(recipe) => recipe,
                    Err(why) => return app.say(Level::Warning, why),
                };
                let text = match recipe.to_toml() {
                    Ok(text) => text,
                    Err(e) => return app.say(Level::Error, e.to_string()),
                };
                let name = format!("{}.toml", file_stem(&recipe.name));
                out.push(Effect::Export { name, text, command: command(&recipe) });
                return;
            }
            (
                format!("{}.summary.json", file_stem(&opened.summary.name)),
                json(serde_json::to_string_pretty(&*opened.summary)),
                format!("tinsmith inspect {} --format json", quoted(&model)),
            )
        }
        Tab::Plan => {
            let Some(proposal) = app.plan.selected() else { return };
            let text = match proposal.recipe.to_toml() {
                Ok(text) => text,
                Err(e) => return app.say(Level::Error, e.to_string()),
            };
            (format!("{}.toml", file_stem(&proposal.recipe.name)), text, command(&proposal.recipe))
        }
        Tab::Runs => {
            let Some(job) = app.runs.selected() else { return };
            (
                format!("{}.job.json", file_stem(&job.id)),
                json(serde_json::to_string_pretty(&*job.state)),
                format!("tinsmith jobs show {} --format json", quoted(&job.id)),
            )
        }
        Tab::Compare => {
            let Some(table) = &app.compare.comparison else { return };
            let paths: Vec<String> = table.rows.iter().map(|r| quoted(&r.measurement.path)).collect();
            (
                "comparison.json".to_string(),
                json(serde_json::to_string_pretty(table)),
                format!("tinsmith compare {} --format json", paths.join(" ")),
            )
        }
        Tab::Log => {
            let lines: Vec<String> = app
                .log
                .lines()
                .iter()
                .map(|l| {
                    let message = crate::text::clean(&l.message, usize::MAX);
                    format!("{} {:?} {} {message}\n", log::clock(l.wall_ms), l.level, l.source)
                })
                .collect();
            ("workbench.log".to_string(), lines.concat(), "tinsmith jobs log JOB".to_string())
        }
    };
    out.push(Effect::Export { name, text, command });
}
