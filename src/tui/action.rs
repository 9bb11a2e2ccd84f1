//! The one table of actions. Key map, footer, palette, help and `docs/keys.md` are made from it; user
//! overrides enter by action name. Knows the application only through the `enabled` column.

use super::app::{App, Tab};
use super::key::Key;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};

/// Where an action applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// On every tab.
    Everywhere,
    /// On one tab.
    On(Tab),
}

impl Context {
    /// Whether the action applies on `tab`.
    pub fn covers(self, tab: Tab) -> bool {
        self == Context::Everywhere || self == Context::On(tab)
    }
    /// Heading in the help and the documentation.
    pub fn title(self) -> &'static str {
        match self {
            Context::Everywhere => "Everywhere",
            Context::On(tab) => tab.title(),
        }
    }
}

/// One row of the table.
pub struct Spec {
    /// What is done.
    pub action: Action,
    /// Name in the settings and the documentation.
    pub id: &'static str,
    /// Default keys.
    pub keys: &'static [&'static str],
    /// Where it applies.
    pub context: Context,
    /// Word or two for the footer.
    pub label: &'static str,
    /// One sentence for the help.
    pub help: &'static str,
    /// Place in the footer, from 1; 0 keeps it out.
    pub rank: u8,
    /// Whether it would do something now.
    pub enabled: fn(&App) -> bool,
}

macro_rules! actions {
    ($($action:ident $id:literal $keys:tt $context:ident $rank:literal $label:literal $help:literal $enabled:expr;)*) => {
        /// Everything that a person can do with a key or from the palette.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action { $(#[doc = $help] $action,)* }

        /// All actions, in the order of the help.
        pub static TABLE: &[Spec] = &[$(Spec {
            action: Action::$action, id: $id, keys: &$keys, context: actions!(@ $context),
            label: $label, help: $help, rank: $rank, enabled: $enabled,
        },)*];
    };
    (@ All) => { Context::Everywhere };
    (@ $tab:ident) => { Context::On(Tab::$tab) };
}

fn always(_: &App) -> bool {
    true
}

actions! {
    Help "help" ["?", "F1"] All 0 "help" "Show the keys of this tab; type to filter, Enter runs the selected one." always;
    Palette "palette" [":"] All 90 "command" "Open the command palette: every action by name, on every tab." always;
    TabModel "tab-model" ["1"] All 0 "Model" "Go to the Model tab: what is in the model." always;
    TabPlan "tab-plan" ["2"] All 0 "Plan" "Go to the Plan tab: ranked recipes for a device and a goal." always;
    TabRuns "tab-runs" ["3"] All 0 "Runs" "Go to the Runs tab: jobs, their curves and logs." always;
    TabCompare "tab-compare" ["4"] All 0 "Compare" "Go to the Compare tab: variants against a baseline." always;
    TabLog "tab-log" ["5"] All 0 "Log" "Go to the Log tab: lines of all jobs and of the workbench." always;
    NextPane "next-pane" ["Tab"] All 60 "pane" "Move the focus to the next pane." App::has_several_panes;
    PreviousPane "previous-pane" ["Shift-Tab"] All 0 "previous pane" "Move the focus to the previous pane." App::has_several_panes;
    Up "up" ["Up", "k"] All 0 "up" "Move up." always;
    Down "down" ["Down", "j"] All 0 "down" "Move down." always;
    Left "left" ["Left", "h"] All 0 "left" "Collapse, step the cursor back, or scroll left." always;
    Right "right" ["Right", "l"] All 0 "right" "Expand, step the cursor on, or scroll right." always;
    First "first" ["g", "Home"] All 0 "first" "Go to the first row." always;
    Last "last" ["G", "End"] All 0 "last" "Go to the last row." always;
    PageUp "page-up" ["PgUp", "Ctrl-u"] All 0 "page up" "Move up by a page." always;
    PageDown "page-down" ["PgDn", "Ctrl-d"] All 0 "page down" "Move down by a page." always;
    Open "open" ["Enter"] All 1 "open" "Open or drill into the selected row." App::can_open;
    Back "back" ["Esc"] All 1 "back" "One step back: dialog, filter, marks, pane. Never quits." always;
    Filter "filter" ["/"] All 50 "filter" "Show only the rows that contain a text." App::can_filter;
    NextMatch "next-match" ["n"] All 0 "next match" "Go to the next row that matches the filter." App::is_filtered;
    PreviousMatch "previous-match" ["N"] All 0 "previous match" "Go to the previous row that matches the filter." App::is_filtered;
    Sort "sort" ["s"] All 52 "sort" "Sort by the next column." App::can_sort;
    ReverseSort "reverse-sort" ["S"] All 0 "reverse" "Reverse the order." App::can_sort;
    Mark "mark" ["Space"] All 0 "mark" "Mark the selected row; marked runs are what Compare and the overlay show." App::can_mark;
    Zoom "zoom-pane" ["z"] All 0 "zoom" "Give the whole window to the focused pane, or give it back." App::has_several_panes;
    Copy "copy" ["y"] All 0 "copy" "Copy the path, command or value under the cursor to the clipboard (OSC 52), and show it." App::can_copy;
    Export "export" ["e"] All 0 "export" "Write what is on the screen to a JSON file and say which command gives the same." App::can_export;
    KeepFloat "keep-float" ["K"] All 3 "keep in float" "Keep the selected layer in float, or quantise it again, and run the recipe again: earlier steps and what is known of other layers are taken over." App::can_keep_float;
    Freeze "freeze" ["f"] All 0 "freeze" "Hold the view still; the header counts the updates that wait." always;
    Mouse "mouse" ["m"] All 0 "mouse" "Turn the mouse on or off; off leaves selecting text to the terminal." always;
    Quit "quit" ["q"] All 0 "quit" "Back; at the first pane, quit. Jobs go on." always;
    QuitWithSummary "quit-with-summary" ["Q"] All 0 "quit, keep summary" "Quit and leave a plain summary in the scrollback." always;
    QuitNow "quit-now" ["Ctrl-c"] All 0 "quit now" "Quit at once. Jobs go on." always;
    Redraw "redraw" ["Ctrl-l"] All 0 "redraw" "Draw the whole screen again." always;
    Suspend "suspend" ["Ctrl-z"] All 0 "suspend" "Stop the workbench until `fg`. Jobs go on." always;

    OpenModel "open-model" ["o"] Model 2 "open model" "Open a model file by path, or a recent one." always;
    ExpandAll "expand-all" ["*"] Model 5 "expand all" "Expand every group, or collapse all when all are expanded." App::has_model;
    ModelView "model-view" ["v"] Model 4 "view" "Switch between layers, coupling groups, operators, tensors and, once there is one, the diff." App::has_model;
    Weights "weights" ["w"] Model 6 "weights" "Read the selected weights: histogram, moments, zeros, outlier channels." App::has_weights;
    DiffModel "diff" ["d"] Model 7 "diff" "Compare with another model or a variant of it: nodes, shapes, elements of weights." App::has_model;
    Map "map" ["i"] Model 8 "map" "Map what pruning can take: groups of channels, neurons and heads by layer, their importance, what a cut would bring. Reads all weights, in the background." App::has_graph;
    RunCut "run-cut" ["r"] Model 1 "run" "On the map: run the planned cut as a job; the dialog shows the equivalent command." App::can_run_cut;
    CutMore "cut-more" ["+"] Model 1 "more" "On the map: cut more of what the level means." App::can_plan_cut;
    CutLess "cut-less" ["-"] Model 1 "less" "On the map: cut less of what the level means." App::can_plan_cut;
    CutValue "cut-value" ["="] Model 2 "ratio" "On the map: type the ratio of what the level means." App::can_plan_cut;
    CutReset "cut-reset" ["0"] Model 3 "as others" "On the map: take ratio and protection away again." App::can_plan_cut;
    Protect "protect" ["x"] Model 2 "protect" "On the map: let nothing leave what the level means, or let it go again." App::can_protect;
    CutLevel "cut-level" ["a"] Model 2 "level" "On the map: what + and - change: a group, its block, its kind, the whole model." App::can_plan_cut;
    CutSource "cut-source" ["u"] Model 3 "source" "On the map: show the importance that a pruning run found, and what it left, or that of the weights." App::has_cut_sources;
    CutSettings "cut-settings" ["b"] Model 3 "settings" "On the map: edit ratio, criterion, spread, repair and rounding of the cut." App::can_plan_cut;
    PlanForModel "plan-model" ["p"] Model 3 "plan" "Recommend recipes for this model; from the map, take the planned cut along." App::has_model;

    Run "run" ["r"] Plan 2 "run" "Run the selected recipe as a job; the dialog shows the equivalent command." App::can_run;
    EditGoal "edit-goal" ["b"] Plan 3 "goal" "Edit the goal: device, latency, size, memory, quality, data." always;
    NextDevice "next-device" ["d"] Plan 4 "device" "Plan for the next device profile." App::has_devices;
    OpenModelPlan "open-model-plan" ["o"] Plan 5 "open model" "Open a model file to plan for." always;
    Refresh "recommend-again" ["u"] Plan 0 "recommend again" "Recommend again for the goal as it stands." App::has_model;

    Cancel "cancel" ["x"] Runs 3 "cancel" "Cancel the selected job (asks first); a checkpoint stays." App::can_cancel;
    Pause "pause" ["p"] Runs 2 "pause" "Pause at the next checkpoint, or go on." App::can_pause;
    Resume "resume" ["R"] Runs 2 "resume" "Resume a dead, failed, cancelled or paused job from its last checkpoint." App::can_resume;
    Delete "delete" ["D"] Runs 6 "delete" "Delete the selected job's directory (asks for its name)." App::can_delete;
    DiffRun "diff-run" ["d"] Runs 4 "diff" "Compare the variant that the selected run made with its original: groups, nodes, weights." App::can_diff_run;
    MapRun "map-run" ["i"] Runs 4 "map" "Show on the map what the selected pruning run took from which group, and go on from its settings." App::can_map_run;
    Overlay "overlay" ["o"] Runs 7 "overlay" "Draw the curves of the marked runs over each other." App::has_marks;
    Scale "scale" ["v"] Runs 8 "scale" "Cycle the y axis: linear, logarithmic, relative to the first value." App::has_curves;
    ZoomIn "zoom-in" ["+"] Runs 0 "zoom in" "Show a shorter part of the x axis." App::has_curves;
    ZoomOut "zoom-out" ["-"] Runs 0 "zoom out" "Show a longer part of the x axis." App::has_curves;
    ZoomReset "zoom-reset" ["="] Runs 0 "whole axis" "Show the whole x axis." App::has_curves;
    Cursor "cursor" ["c"] Runs 9 "read out" "Read values off the curves; Left and Right step." App::has_curves;

    Baseline "baseline" ["b"] Compare 2 "baseline" "Make the selected variant the baseline." App::has_comparison;
    Differences "differences" ["i"] Compare 4 "differences" "Show only the columns that differ between variants." App::has_comparison;
    Axes "axes" ["v"] Compare 5 "axes" "Choose what the scatter plots against quality: latency, size, memory." App::has_comparison;
    Say "say" ["w"] Compare 6 "text" "Let the baseline and the selected variant go on from a prompt, side by side (language models)." App::has_comparison;
    Scatter "scatter" ["t"] Compare 3 "table/scatter" "Switch between the table and the scatter." App::has_comparison;

    Wrap "wrap" ["w"] Log 3 "wrap" "Wrap long lines, or cut them." always;
    Follow "follow" ["F"] Log 2 "follow" "Stay at the newest line." always;
    Level "level" ["L"] Log 4 "level" "Show all lines, warnings and errors, or errors alone." always;
    Source "source" ["a"] Log 5 "source" "Show all lines, the selected run's, or the workbench's own." always;
}

impl Action {
    /// Its row.
    pub fn spec(self) -> &'static Spec {
        &TABLE[self as usize]
    }
}

/// Keys to actions, the user's overrides applied.
#[derive(Debug, Clone)]
pub struct KeyMap {
    keys: Vec<Vec<Key>>,
    lookup: HashMap<Key, Vec<Action>>,
}

impl KeyMap {
    /// The defaults with `overrides` (action name to one or more keys, separated by spaces).
    ///
    /// # Errors
    /// A usage error that names `keys.<name>`: no such action, not a key, or a key that two actions of
    /// one tab would share.
    pub fn new(overrides: &BTreeMap<String, String>) -> Result<KeyMap> {
        let mut keys: Vec<Vec<Key>> = TABLE
            .iter()
            .map(|s| s.keys.iter().map(|k| Key::parse(k)).collect::<Result<Vec<_>>>())
            .collect::<Result<_>>()?;
        for (name, value) in overrides {
            let at = TABLE.iter().position(|s| s.id == name).ok_or_else(|| {
                Error::usage("KEY-ACTION", "no action has this name")
                    .field(format!("keys.{name}"))
                    .hint("docs/keys.md lists the names")
            })?;
            keys[at] = value
                .split_whitespace()
                .map(|k| Key::parse(k).map_err(|e| e.field(format!("keys.{name}"))))
                .collect::<Result<_>>()?;
        }
        let mut lookup: HashMap<Key, Vec<Action>> = HashMap::new();
        for (spec, keys) in TABLE.iter().zip(&keys) {
            for key in keys {
                let others = lookup.entry(*key).or_default();
                for other in others.iter().map(|a| a.spec()) {
                    if overlaps(spec.context, other.context) {
                        let blamed = if overrides.contains_key(spec.id) { spec.id } else { other.id };
                        return Err(Error::usage(
                            "KEY-CONFLICT",
                            format!("`{key}` would be both {} and {}", other.id, spec.id),
                        )
                        .field(format!("keys.{blamed}"))
                        .hint("choose another key for one of them"));
                    }
                }
                others.push(spec.action);
            }
        }
        Ok(KeyMap { keys, lookup })
    }

    /// The action of a key on a tab.
    pub fn action(&self, key: Key, tab: Tab) -> Option<Action> {
        self.lookup.get(&key)?.iter().copied().find(|a| a.spec().context.covers(tab))
    }

    /// The keys of an action.
    pub fn keys(&self, action: Action) -> &[Key] {
        &self.keys[action as usize]
    }

    /// The first key of an action, or its palette name where it has none.
    pub fn key_name(&self, action: Action) -> String {
        match self.keys(action).first() {
            Some(key) => key.to_string(),
            None => format!(":{}", action.spec().id),
        }
    }
}

fn overlaps(a: Context, b: Context) -> bool {
    a == b || a == Context::Everywhere || b == Context::Everywhere
}

/// The keys page of the documentation.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Keys of the workbench\n\n\
         Every key can be changed in the settings file under `[keys]`, by the name in the last column:\n\n\
         ```toml\n[keys]\nquit = \"q\"\nfilter = \"/ Ctrl-f\"\n```\n\n\
         `?` shows this list inside the workbench, `:` runs any action by its name. In dialogs, Enter\n\
         confirms and Esc leaves; Esc never quits.\n",
    );
    let mut contexts = vec![Context::Everywhere];
    contexts.extend(Tab::ALL.map(Context::On));
    for context in contexts {
        out.push_str(&format!("\n## {}\n\n| key | does | name |\n|---|---|---|\n", context.title()));
        for spec in TABLE.iter().filter(|s| s.context == context) {
            let keys: Vec<String> = spec.keys.iter().map(|k| format!("`{k}`")).collect();
            out.push_str(&format!("| {} | {} | `{}` |\n", keys.join(" "), spec.help, spec.id));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_actions_and_names_are_unique() {
        for (at, spec) in TABLE.iter().enumerate() {
            assert_eq!(spec.action as usize, at);
            assert_eq!(TABLE.iter().filter(|s| s.id == spec.id).count(), 1, "{}", spec.id);
            assert!(spec.help.ends_with('.'), "{}", spec.id);
        }
    }

    #[test]
    fn no_key_means_two_things_on_one_tab() {
        KeyMap::new(&BTreeMap::new()).unwrap();
    }

    #[test]
    fn no_action_depends_on_a_control_key_alone_but_for_the_terminals_own() {
        for spec in TABLE {
            let own = matches!(spec.action, Action::QuitNow | Action::Redraw | Action::Suspend);
            assert!(own || spec.keys.iter().any(|k| !k.starts_with("Ctrl-")), "{}", spec.id);
        }
    }

    #[test]
    fn overrides_replace_keys_and_bad_ones_name_the_field() {
        let map = |a: &str, k: &str| KeyMap::new(&BTreeMap::from([(a.to_string(), k.to_string())]));
        let changed = map("cancel", "X Ctrl-k").unwrap();
        assert_eq!(changed.action(Key::parse("X").unwrap(), Tab::Runs), Some(Action::Cancel));
        assert_eq!(changed.action(Key::parse("x").unwrap(), Tab::Runs), None);
        assert_eq!(changed.action(Key::parse("X").unwrap(), Tab::Model), None);
        for (a, k, code) in
            [("nope", "x", "KEY-ACTION"), ("cancel", "hyper-x", "KEY"), ("cancel", "q", "KEY-CONFLICT")]
        {
            let e = map(a, k).unwrap_err();
            assert_eq!((e.code(), e.field_path()), (code, Some(format!("keys.{a}").as_str())));
        }
    }
}
