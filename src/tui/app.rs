//! The state of the workbench, what enters it ([`Msg`]) and what it asks for ([`Effect`]). No I/O.

use super::action::KeyMap;
use super::compare::CompareTab;
use super::layout::Pane;
use super::log::LogTab;
use super::model::ModelTab;
use super::overlay::Overlay;
use super::plan::PlanTab;
use super::quantised::{Quantised, Sheets, Told};
use super::runs::RunsTab;
use super::theme::Look;
use crate::analysis::Summary;
use crate::analysis::diff::Diff;
use crate::compare::Comparison;
use crate::error::Error;
use crate::evaluate::measurement::Measurement;
use crate::jobs::{JobState, Status};
use crate::monitor::Level;
use crate::passes::prune::Criterion;
use crate::plan::study::{Forecast, Question, Study};
use crate::plan::{DataSpec, Goal, Recipe};
use crate::tensor::Distribution;
use crossterm::event::{KeyEvent, MouseEvent};
use ratatui::layout::Rect;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

/// The five tabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tab {
    /// What is in the model.
    Model,
    /// Ranked recipes.
    Plan,
    /// Jobs.
    Runs,
    /// Variants against a baseline.
    Compare,
    /// Lines.
    Log,
}

impl Tab {
    /// In the order of their digits.
    pub const ALL: [Tab; 5] = [Tab::Model, Tab::Plan, Tab::Runs, Tab::Compare, Tab::Log];

    /// The word for people.
    pub fn title(self) -> &'static str {
        match self {
            Tab::Model => "Model",
            Tab::Plan => "Plan",
            Tab::Runs => "Runs",
            Tab::Compare => "Compare",
            Tab::Log => "Log",
        }
    }
}

/// An error as it is shown: what failed, and the next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The sentence.
    pub message: String,
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure { message: e.to_string() }
    }
}

/// What is known of a worker besides its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Liveness {
    /// It beats, or need not.
    #[default]
    Fine,
    /// No heartbeat for so many seconds.
    Stalled(u64),
    /// No process holds the job although its log does not say that it ended.
    Gone,
}

/// What a worker uses of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Resident bytes.
    pub rss: u64,
    /// Memory of the machine or of the control group.
    pub memory: u64,
    /// Percent of one core.
    pub cpu: f64,
}

/// A job as the workbench shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Directory name.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The input model, with the directory of its submission where its path is relative.
    pub model: PathBuf,
    /// Folded events.
    pub state: Arc<JobState>,
    /// Worker.
    pub liveness: Liveness,
    /// Use of the machine.
    pub usage: Option<Usage>,
    /// What measurements say against the model that it made: slower than its input, or worse than its margin.
    pub against: Vec<String>,
}

impl Job {
    /// The status that people see: a job whose worker is gone is dead.
    pub fn status(&self) -> Status {
        match (self.state.status, self.liveness) {
            (Status::Running, Liveness::Gone) => Status::Dead,
            (status, _) => status,
        }
    }
    /// Its name, or its id where it has none.
    pub fn title(&self) -> &str {
        if self.state.name.is_empty() { &self.id } else { &self.state.name }
    }
    /// The model that it made, where there is one.
    pub fn variant(&self) -> Option<PathBuf> {
        let made = self.state.artifacts.iter().filter(|a| a.path.ends_with(".onnx"));
        made.map(|a| self.dir.join(&a.path)).next_back()
    }
    /// Whether one of its steps prunes.
    pub fn prunes(&self) -> bool {
        self.state.steps.iter().any(|s| s == "prune" || s.starts_with("prune "))
    }
    /// Whether one of its steps quantises.
    pub fn quantises(&self) -> bool {
        self.state.steps.iter().any(|s| s == "quantize" || s.starts_with("quantize "))
    }
    /// What measurements say against its model, in a word or two.
    pub fn verdict(&self) -> Option<&'static str> {
        let slower = self.against.iter().any(|a| a.starts_with("slower"));
        let worse = self.against.iter().any(|a| !a.starts_with("slower"));
        match (slower, worse) {
            (true, true) => Some("slower, worse"),
            (true, false) => Some("slower"),
            (false, true) => Some("worse"),
            (false, false) => None,
        }
    }
    /// Whether a worker computes.
    pub fn is_running(&self) -> bool {
        self.status() == Status::Running
    }
}

/// What is asked of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Stop for good; a checkpoint stays.
    Cancel,
    /// Stop at the next checkpoint.
    Pause,
    /// Go on from the last checkpoint.
    Resume,
    /// Remove the directory.
    Delete,
}

impl Control {
    /// The subcommand of `tinsmith jobs`.
    pub fn word(self) -> &'static str {
        match self {
            Control::Cancel => "cancel",
            Control::Pause => "pause",
            Control::Resume => "resume",
            Control::Delete => "delete",
        }
    }
}

/// What workers send.
#[derive(Debug)]
pub enum Data {
    /// A model was analysed.
    Analysed {
        /// Which request this answers.
        generation: u64,
        /// The file.
        path: PathBuf,
        /// Its summary and tree.
        result: Result<Arc<super::model::Opened>, Failure>,
    },
    /// Elements of a weight were looked at.
    Weighed {
        /// The analysis that the weight belongs to.
        generation: u64,
        /// Name of the weight.
        name: String,
        /// What its elements are like.
        result: Result<Box<Distribution>, Failure>,
    },
    /// A model is being read for the map.
    Studying {
        /// Which request this is about.
        generation: u64,
        /// Phase.
        phase: String,
        /// Units done.
        done: u64,
        /// Units in all, where that is known.
        total: Option<u64>,
    },
    /// A model was read for the map.
    Studied {
        /// Which request this answers.
        generation: u64,
        /// Its groups.
        result: Result<Arc<Study>, Failure>,
    },
    /// What the planned cut would bring.
    Foreseen {
        /// Which request this answers.
        generation: u64,
        /// The forecast, or why the plan cannot be met.
        result: Result<Box<Forecast>, Failure>,
    },
    /// What pruning runs told.
    Ran {
        /// Which request this answers.
        generation: u64,
        /// Their steps, newest first.
        runs: Vec<super::map::Ran>,
    },
    /// What quantise steps told.
    Quantised(Vec<Quantised>),
    /// Two models were compared.
    Differed {
        /// Which request this answers.
        generation: u64,
        /// The other model.
        after: PathBuf,
        /// What changed.
        result: Result<Box<Diff>, Failure>,
    },
    /// A model wrote a piece of text.
    Wrote {
        /// Which request this answers.
        generation: u64,
        /// Which of its models.
        side: usize,
        /// The piece.
        text: String,
    },
    /// A model ended its text.
    Said {
        /// Which request this answers.
        generation: u64,
        /// Which of its models.
        side: usize,
        /// A line about speed, or what went wrong.
        result: Result<String, Failure>,
    },
    /// Device profiles.
    Devices(Vec<String>),
    /// Proposals for the goal.
    Proposed {
        /// Which request this answers.
        generation: u64,
        /// Ranked.
        result: Result<Box<super::plan::Ranked>, Failure>,
    },
    /// All jobs, newest state.
    Jobs(Vec<Job>),
    /// Variants compared.
    Compared {
        /// Which request this answers.
        generation: u64,
        /// The table.
        result: Result<Comparison, Failure>,
    },
    /// Model files for the open dialog.
    Models {
        /// Which request this answers.
        generation: u64,
        /// Paths; directories end in a separator.
        paths: Vec<String>,
    },
    /// A job was accepted.
    Submitted(Result<String, Failure>),
    /// A line for the log alone.
    Noted(Failure),
    /// Something else was done, or not.
    Done(Result<String, Failure>),
    /// The home directory cannot be written to.
    ReadOnly(bool),
}

/// What enters the state.
#[derive(Debug)]
pub enum Msg {
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The mouse did something.
    Mouse(MouseEvent),
    /// The window has another size.
    Resize(u16, u16),
    /// Time passed; see [`App::deadline`].
    Tick,
    /// A worker sent something.
    Data(Data),
    /// The terminal asked to stop until `fg`.
    Suspend,
}

/// What the state asks for. The driver does it outside the update.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Analyse a file; an older request is void.
    Analyse {
        /// Number of the request.
        generation: u64,
        /// File.
        path: PathBuf,
    },
    /// Look at the elements of a weight.
    Weigh {
        /// The analysis that the weight belongs to.
        generation: u64,
        /// File.
        path: PathBuf,
        /// Name of the weight.
        name: String,
    },
    /// Let models go on from a prompt, one after the other.
    Say {
        /// Number of the request.
        generation: u64,
        /// Files.
        models: Vec<PathBuf>,
        /// The prompt.
        prompt: String,
    },
    /// Read a model for the map; an older request is void.
    Study {
        /// Number of the request.
        generation: u64,
        /// File.
        path: PathBuf,
        /// What scores its units.
        criterion: Criterion,
    },
    /// Stop reading for the map, or let what was read go.
    EndStudy {
        /// Number of the newest request that is void.
        generation: u64,
    },
    /// Say what a cut of the model that was read last would bring.
    Foresee {
        /// Number of the request.
        generation: u64,
        /// The cut.
        question: Box<Question>,
    },
    /// Read what pruning runs told.
    ReadRuns {
        /// Number of the request.
        generation: u64,
        /// Jobs.
        jobs: Vec<String>,
    },
    /// Read what quantise steps of these jobs told.
    ReadQuantised(Vec<String>),
    /// Compare two models.
    Differ {
        /// Number of the request.
        generation: u64,
        /// Model before.
        before: PathBuf,
        /// Model after.
        after: PathBuf,
    },
    /// Recommend recipes.
    Recommend {
        /// Number of the request.
        generation: u64,
        /// The model, analysed.
        summary: Arc<Summary>,
        /// Its file.
        path: PathBuf,
        /// Gates.
        goal: Goal,
        /// Data at hand.
        data: DataSpec,
        /// Median latency of the model on this machine, where it was measured.
        measured_ms: Option<f64>,
    },
    /// List model files that match what was typed.
    FindModels {
        /// Number of the request.
        generation: u64,
        /// What was typed.
        typed: String,
    },
    /// Queue a job.
    Submit(Box<Recipe>),
    /// Ask something of a job.
    Control {
        /// Job.
        id: String,
        /// Request.
        control: Control,
    },
    /// Compare variants.
    Compare {
        /// Number of the request.
        generation: u64,
        /// Variants.
        measurements: Vec<Measurement>,
        /// Index of the baseline.
        baseline: usize,
    },
    /// Write a file under the exports directory and say where.
    Export {
        /// File name.
        name: String,
        /// Content.
        text: String,
        /// Command that gives the same.
        command: String,
    },
    /// Put text on the clipboard of the terminal.
    Copy(String),
    /// Turn the mouse on or off.
    Mouse(bool),
    /// Draw everything again.
    Redraw,
    /// Stop until `fg`.
    Suspend,
    /// End; with a summary left behind or not.
    Quit {
        /// Leave a summary in the scrollback.
        summary: bool,
    },
}

/// A short message in place of the footer.
#[derive(Debug, Clone, PartialEq)]
pub struct Toast {
    /// Text.
    pub text: String,
    /// Weight.
    pub level: Level,
    /// Shown until then, on the clock of [`App::now_ms`].
    pub until_ms: u64,
}

/// How long a toast stays.
pub const TOAST_MS: u64 = 4000;

/// A held view.
#[derive(Debug, Default)]
pub struct Frozen {
    /// Updates that came meanwhile.
    pub waiting: u64,
    /// The newest of each sort.
    pub held: Vec<Data>,
}

/// What a click hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    /// A tab.
    Tab(Tab),
    /// A pane, and a row of it.
    Row(Pane, usize),
    /// A pane.
    Pane(Pane),
}

/// Everything that the workbench shows.
pub struct App {
    /// Colours and glyphs.
    pub look: Look,
    /// Keys.
    pub keymap: KeyMap,
    /// The tab in front.
    pub tab: Tab,
    /// Focused pane of each tab.
    pub focus: [usize; 5],
    /// The focused pane has the whole window.
    pub zoomed: bool,
    /// A dialog over the tab.
    pub overlay: Option<Overlay>,
    /// Newest request for texts.
    pub says: u64,
    /// A short message.
    pub toast: Option<Toast>,
    /// Held view.
    pub frozen: Option<Frozen>,
    /// The mouse is on.
    pub mouse: bool,
    /// Jobs cannot be written.
    pub read_only: bool,
    /// It was said that jobs go on after quitting.
    pub told_jobs_go_on: bool,
    /// Window.
    pub size: (u16, u16),
    /// Monotonic clock, ms since the start.
    pub now_ms: u64,
    /// Wall clock, ms since 1970.
    pub wall_ms: u64,
    /// Name of this machine for the header.
    pub machine: String,
    /// Model tab.
    pub model: ModelTab,
    /// Plan tab.
    pub plan: PlanTab,
    /// Runs tab.
    pub runs: RunsTab,
    /// Compare tab.
    pub compare: CompareTab,
    /// Log tab.
    pub log: LogTab,
    /// What quantise steps told.
    pub told: Told,
    /// What a click would hit in the last frame.
    pub hits: RefCell<Vec<(Rect, Hit)>>,
}

impl App {
    /// An empty workbench.
    pub fn new(look: Look, keymap: KeyMap) -> App {
        App {
            look,
            keymap,
            tab: Tab::Model,
            focus: [0; 5],
            zoomed: false,
            overlay: None,
            says: 0,
            toast: None,
            frozen: None,
            mouse: !look.ssh,
            read_only: false,
            told_jobs_go_on: false,
            size: (80, 24),
            now_ms: 0,
            wall_ms: 0,
            machine: String::new(),
            model: ModelTab::default(),
            plan: PlanTab::default(),
            runs: RunsTab::default(),
            compare: CompareTab::default(),
            log: LogTab::default(),
            told: Told::default(),
            hits: RefCell::default(),
        }
    }

    /// The focused pane; the main one while the tab has nothing to show.
    pub fn pane(&self) -> Pane {
        let panes = Pane::of(self.tab);
        let focus = if self.has_content() { self.focus[self.tab as usize] } else { 0 };
        match panes[focus.min(panes.len() - 1)] {
            Pane::Quantised if self.quantised().is_none() => panes[0],
            pane => pane,
        }
    }

    /// What the quantise step in front told: of the selected run, or of the newest run of the selected recipe.
    pub fn quantised(&self) -> Option<&Arc<Quantised>> {
        match self.tab {
            Tab::Runs => self.told.of(&self.runs.selected()?.id),
            Tab::Plan => {
                let like = Some(&self.plan.selected()?.recipe);
                self.told.newest(&self.runs.jobs, self.model.path.as_ref()?, like)
            }
            Tab::Model | Tab::Compare | Tab::Log => None,
        }
    }

    /// How its tables are looked at.
    pub fn sheets(&self) -> &Sheets {
        if self.tab == Tab::Plan { &self.plan.sheets } else { &self.runs.sheets }
    }

    /// Whether the selected run shows what quantisation did where it has no curves.
    pub(super) fn shows_quantised(&self) -> bool {
        self.quantised().is_some() && !(self.tab == Tab::Runs && self.has_curves())
    }

    /// Whether the tab in front has more to show than how to begin.
    pub fn has_content(&self) -> bool {
        match self.tab {
            Tab::Model => self.has_model(),
            Tab::Plan => self.plan.ranked.is_some(),
            Tab::Runs => !self.runs.jobs.is_empty(),
            Tab::Compare => self.has_comparison(),
            Tab::Log => true,
        }
    }

    /// Shows a short message and keeps it in the log.
    pub fn say(&mut self, level: Level, text: impl Into<String>) {
        let text = text.into();
        self.log.note(self.wall_ms, level, text.clone());
        self.toast = Some(Toast { text, level, until_ms: self.now_ms + TOAST_MS });
    }

    /// When something changes by time alone, on the clock of [`App::now_ms`].
    pub fn deadline(&self) -> Option<u64> {
        let toast = self.toast.as_ref().map(|t| t.until_ms);
        let moving = self.tab == Tab::Runs
            && self.frozen.is_none()
            && self.runs.jobs.iter().any(|j| matches!(j.liveness, Liveness::Stalled(_)) && j.is_running());
        let second = moving.then(|| (self.now_ms / 1000 + 1) * 1000);
        [toast, second].into_iter().flatten().min()
    }

    pub(super) fn has_several_panes(&self) -> bool {
        Pane::of(self.tab).len() > 1 && self.has_content()
    }
    pub(super) fn has_model(&self) -> bool {
        self.model.opened.is_some()
    }
    pub(super) fn has_graph(&self) -> bool {
        self.model.opened.as_ref().is_some_and(|o| o.summary.no_graph.is_none())
    }
    /// Whether the map is in front.
    pub(super) fn on_map(&self) -> bool {
        self.has_model() && self.model.view == super::model::View::Map
    }
    pub(super) fn can_plan_cut(&self) -> bool {
        self.on_map() && self.model.map.can_plan()
    }
    pub(super) fn can_protect(&self) -> bool {
        self.can_plan_cut() && self.model.map.level != super::map::Level::Model
    }
    pub(super) fn has_cut_sources(&self) -> bool {
        self.on_map() && !self.model.map.runs.is_empty()
    }
    pub(super) fn can_run_cut(&self) -> bool {
        let map = &self.model.map;
        !self.read_only
            && self.can_plan_cut()
            && map.edit.cuts()
            && map.forecast.is_some()
            && map.wrong.is_none()
    }
    pub(super) fn can_diff_run(&self) -> bool {
        self.runs.selected().is_some_and(|j| j.variant().is_some())
    }
    pub(super) fn can_map_run(&self) -> bool {
        self.runs.selected().is_some_and(|j| j.prunes() && j.status().is_final())
    }
    pub(super) fn has_weights(&self) -> bool {
        !self.model.selected_weights().is_empty()
    }
    pub(super) fn has_devices(&self) -> bool {
        self.plan.devices.len() > 1
    }
    pub(super) fn can_filter(&self) -> bool {
        match self.tab {
            Tab::Model => self.has_model(),
            Tab::Plan | Tab::Compare => false,
            Tab::Runs => !self.runs.jobs.is_empty(),
            Tab::Log => true,
        }
    }
    pub(super) fn filter(&self) -> &str {
        match self.tab {
            Tab::Model => &self.model.filter,
            Tab::Runs => &self.runs.filter,
            Tab::Log => &self.log.filter,
            Tab::Plan | Tab::Compare => "",
        }
    }
    pub(super) fn is_filtered(&self) -> bool {
        !self.filter().is_empty()
    }
    pub(super) fn can_sort(&self) -> bool {
        match self.tab {
            Tab::Model => self.has_model(),
            Tab::Plan => self.plan.proposals().len() > 1,
            Tab::Runs => self.runs.jobs.len() > 1,
            Tab::Compare => self.has_comparison(),
            Tab::Log => false,
        }
    }
    pub(super) fn can_mark(&self) -> bool {
        self.tab == Tab::Runs && self.runs.selected().is_some()
    }
    pub(super) fn can_open(&self) -> bool {
        match self.pane() {
            Pane::Tree => true,
            Pane::Proposals => !self.plan.proposals().is_empty(),
            Pane::Jobs | Pane::Charts | Pane::RunFacts => self.runs.selected().is_some(),
            Pane::Quantised => self.tab == Tab::Runs,
            Pane::Table | Pane::Scatter => self.has_comparison(),
            Pane::Layer | Pane::Facts | Pane::Why | Pane::Tail | Pane::Variant | Pane::Lines => false,
        }
    }
    /// Whether [`super::action::Action::Back`] would do something.
    pub(super) fn can_go_back(&self) -> bool {
        self.zoomed
            || self.is_filtered()
            || self.pane() != Pane::of(self.tab)[0]
            || (self.tab == Tab::Model
                && matches!(self.model.view, super::model::View::Diff | super::model::View::Map))
            || (self.tab == Tab::Runs && (self.runs.cursor.is_some() || !self.runs.marks.is_empty()))
    }
    pub(super) fn can_copy(&self) -> bool {
        self.copy_text().is_some()
    }
    pub(super) fn can_export(&self) -> bool {
        match self.tab {
            Tab::Model => self.has_model(),
            Tab::Plan => !self.plan.proposals().is_empty(),
            Tab::Runs => self.runs.selected().is_some(),
            Tab::Compare => self.has_comparison(),
            Tab::Log => !self.log.lines().is_empty(),
        }
    }
    pub(super) fn can_run(&self) -> bool {
        !self.read_only && self.plan.selected().is_some()
    }
    pub(super) fn can_cancel(&self) -> bool {
        !self.read_only && self.runs.selected().is_some_and(|j| !j.status().is_final())
    }
    pub(super) fn can_pause(&self) -> bool {
        !self.read_only
            && self
                .runs
                .selected()
                .is_some_and(|j| matches!(j.status(), Status::Running | Status::Queued | Status::Paused))
    }
    pub(super) fn can_resume(&self) -> bool {
        !self.read_only && self.runs.selected().is_some_and(|j| j.status().is_resumable())
    }
    pub(super) fn can_delete(&self) -> bool {
        !self.read_only && self.runs.selected().is_some_and(|j| j.status().is_final())
    }
    /// Whether a layer is selected that a quantise step could keep in float.
    pub(super) fn can_keep_float(&self) -> bool {
        !self.read_only && super::update::layer_in_front(self).is_some()
    }
    pub(super) fn has_marks(&self) -> bool {
        !self.runs.marks.is_empty()
    }
    pub(super) fn has_curves(&self) -> bool {
        self.runs.selected().is_some_and(|j| !j.state.curves.is_empty())
    }
    pub(super) fn has_comparison(&self) -> bool {
        self.compare.comparison.is_some()
    }

    /// What [`super::action::Action::Copy`] would copy.
    pub(super) fn copy_text(&self) -> Option<String> {
        if let (Pane::Quantised, Some(run)) = (self.pane(), self.quantised()) {
            return self.sheets().selected(run).map(|(name, _)| name.to_string());
        }
        match self.tab {
            Tab::Model => self
                .model
                .selected_name()
                .or_else(|| self.model.path.as_ref().map(|p| p.display().to_string())),
            Tab::Plan => self.plan.selected().map(|p| super::plan::command(&p.recipe)),
            Tab::Runs => self.runs.selected().map(|j| j.dir.display().to_string()),
            Tab::Compare => self.compare.selected().map(|r| r.measurement.path.clone()),
            Tab::Log => self.log.current().map(|l| l.message),
        }
    }
}
