//! What workers sent is folded into the state.

use super::super::app::{App, Data, Effect, Tab};
use super::super::compare;
use super::super::layout::Pane;
use super::super::map::Known;
use super::super::overlay::Overlay;
use super::super::paint::many;
use super::compare::{compare_again, side_of};
use super::log::relog;
use super::plan::recommend;
use super::runs::announce;
use super::{compare_with, focus, go_to, map, quantised};
use crate::monitor::Level;
use crate::plan::Recommendation;

pub(super) fn on_data(app: &mut App, data: Data, out: &mut Vec<Effect>) {
    if let Some(frozen) = &mut app.frozen
        && matches!(data, Data::Jobs(_))
    {
        frozen.waiting += 1;
        frozen.held.clear();
        frozen.held.push(data);
        return;
    }
    match data {
        Data::Analysed { generation, path, result } if generation == app.model.generation => match result {
            Ok(opened) => {
                let layers = opened.summary.layers.len();
                let line = format!("opened {} with {}", path.display(), many(layers, "layer"));
                app.log.note(app.wall_ms, Level::Info, line);
                for warning in opened.summary.warnings.iter().take(20) {
                    app.log.note(app.wall_ms, Level::Warning, format!("{}: {warning}", opened.summary.name));
                }
                let studied = !matches!(app.model.map.known, Known::Nothing);
                app.model.set(path, opened);
                app.plan.own.clear();
                app.plan.clear();
                recommend(app, out);
                compare_again(app, false, out);
                if studied {
                    out.push(Effect::EndStudy { generation: app.model.map.generation });
                }
                if let Some(after) = app.model.then_differ.take() {
                    compare_with(app, after, out);
                }
                if let Some(job) = app.model.map.wanted.take() {
                    map::enter(app, out);
                    map::want(app, job, out);
                }
            }
            Err(failure) => {
                app.model.loading = None;
                app.say(Level::Error, failure.message.clone());
                app.model.failure = Some(failure);
            }
        },
        Data::Weighed { generation, name, result } if generation == app.model.generation => {
            if let Err(failure) = &result {
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
            }
            app.model.weighed(name, result);
        }
        Data::Studying { generation, phase, done, total } if generation == app.model.map.generation => {
            app.model.map.known = Known::Reading(phase, done, total);
        }
        Data::Studied { generation, result } if generation == app.model.map.generation => {
            map::studied(app, result, out);
        }
        Data::Foreseen { generation, result } if generation == app.model.map.foreseen => {
            map::foreseen(app, result, out);
        }
        Data::Ran { generation, runs } if generation == app.model.map.asked_runs.0 => {
            map::ran(app, runs, out);
        }
        Data::Quantised(read) => app.told.set(read),
        Data::Noted(failure) => app.log.note(app.wall_ms, Level::Warning, failure.message),
        Data::Differed { generation, after, result } if generation == app.model.diff_generation => {
            app.model.comparing = None;
            match result {
                Ok(diff) => {
                    let c = diff.layer_counts;
                    let (changed, w) = (c.changed + c.removed + c.added, diff.weight_counts.changed);
                    let line =
                        format!("{}: {changed} of the layers and {w} of the weights differ", after.display());
                    app.say(Level::Info, line);
                    app.model.set_diff(after, *diff);
                    go_to(app, Tab::Model);
                    focus(app, Pane::Tree);
                }
                Err(failure) => app.say(Level::Error, failure.message),
            }
        }
        Data::Devices(devices) => app.plan.devices = devices,
        Data::Proposed { generation, result } if generation == app.plan.generation => match result {
            Ok(ranked) => {
                let Recommendation { proposals, refused, .. } = &ranked.recommendation;
                let (n, no) = (proposals.len(), refused.len());
                let line = format!("ranked {} for {}; refused {no}", many(n, "recipe"), ranked.device.name);
                app.log.note(app.wall_ms, Level::Info, line);
                app.plan.set(*ranked);
                // Latencies are for the device in front.
                map::foresee(app, out);
            }
            Err(failure) => {
                app.plan.loading = false;
                app.plan.clear();
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
                app.plan.failure = Some(failure);
            }
        },
        Data::Jobs(jobs) => {
            announce(app, &jobs);
            app.runs.set(jobs);
            quantised::follow(app, out);
            relog(app);
            compare_again(app, false, out);
            if app.on_map() {
                map::ask_runs(app, out);
            }
            // Predictions start from what was measured as soon as it is known.
            if app.has_model() && compare::measured_ms(app) != app.plan.measured_ms {
                recommend(app, out);
            }
        }
        Data::Compared { generation, result } if generation == app.compare.generation => match result {
            Ok(table) => app.compare.set(table),
            Err(failure) => {
                app.compare.loading = false;
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
                app.compare.failure = Some(failure);
            }
        },
        Data::Models { generation, paths } => {
            if let Some(Overlay::Open(open)) = app.overlay.as_mut()
                && open.generation == generation
            {
                let own: Vec<String> = match open.input.value().is_empty() {
                    true => open.variants.clone(),
                    false => Vec::new(),
                };
                open.paths =
                    own.iter().cloned().chain(paths.into_iter().filter(|p| !own.contains(p))).collect();
                open.list.clamp(open.paths.len());
            }
        }
        Data::Submitted(Ok(id)) if quantised::queued(app, &id) => {}
        Data::Submitted(Ok(id)) => {
            go_to(app, Tab::Runs);
            app.focus[Tab::Runs as usize] = 0;
            app.runs.want(&id);
            app.say(Level::Info, format!("job {id} is queued; it goes on when the workbench is closed"));
        }
        Data::Submitted(Err(failure)) => {
            quantised::refused(app);
            app.say(Level::Error, failure.message);
        }
        Data::Done(Err(failure)) => app.say(Level::Error, failure.message),
        Data::Done(Ok(text)) => app.say(Level::Info, text),
        Data::ReadOnly(read_only) => app.read_only = read_only,
        // Answers to requests that newer ones replaced.
        Data::Wrote { generation, side, text } => {
            if let Some(side) = side_of(app, generation, side) {
                side.text.push_str(&text);
            }
        }
        Data::Said { generation, side, result } => {
            if let Some(side) = side_of(app, generation, side) {
                side.end = Some(result);
            }
        }
        Data::Analysed { .. }
        | Data::Studying { .. }
        | Data::Studied { .. }
        | Data::Foreseen { .. }
        | Data::Ran { .. }
        | Data::Proposed { .. }
        | Data::Compared { .. }
        | Data::Weighed { .. }
        | Data::Differed { .. } => {}
    }
}
