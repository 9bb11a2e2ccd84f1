//! Dialogs over a tab: help and palette, filter line, open, confirm, goal form. Keys enter; what the
//! dialog decided leaves as an [`Outcome`]. Knows no terminal.

mod cut;

use super::action::{Action, Spec, TABLE};
use super::app::{App, Effect, Failure, Tab};
use super::list::List;
use crate::passes::prune::Settings;
use crate::plan::{DataSpec, Goal};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
pub use cut::{CUT_FIELDS, CutForm, RatioForm};
use std::path::PathBuf;
use tui_input::{Input, InputRequest};

/// Longest text that a field takes.
const FIELD_CHARS: usize = 4096;

/// A dialog.
#[derive(Debug)]
pub enum Overlay {
    /// The list of actions: of this tab (help) or of all (palette).
    Actions(Actions),
    /// The filter line; it filters while one types.
    Filter(Input),
    /// The path of a model.
    Open(OpenModel),
    /// A question.
    Confirm(Box<Confirm>),
    /// The goal.
    Goal(Box<GoalForm>),
    /// A prompt for language models.
    Prompt(Box<Prompt>),
    /// What language models made of a prompt.
    Texts(Box<Texts>),
    /// A ratio of the planned cut.
    Ratio(Box<RatioForm>),
    /// Settings of the planned cut.
    Cut(Box<CutForm>),
}

/// A prompt, and the models that will go on from it.
#[derive(Debug)]
pub struct Prompt {
    /// What was typed.
    pub input: Input,
    /// Name and file of each model.
    pub models: Vec<(String, PathBuf)>,
}

/// Texts of several models, side by side.
#[derive(Debug)]
pub struct Texts {
    /// Which request this answers.
    pub generation: u64,
    /// The prompt.
    pub prompt: String,
    /// One for each model.
    pub sides: Vec<Side>,
    /// Lines that are scrolled away.
    pub scroll: usize,
}

/// What one model wrote.
#[derive(Debug)]
pub struct Side {
    /// Name of the model.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Text so far.
    pub text: String,
    /// Speed, or why there is no text; `None` while it writes.
    pub end: Option<Result<String, Failure>>,
}

/// Help or palette.
#[derive(Debug)]
pub struct Actions {
    /// Only what works on the tab in front, with sentences.
    pub help: bool,
    /// What was typed.
    pub input: Input,
    /// Selection.
    pub list: List,
}

/// What a chosen model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It goes in front.
    Open,
    /// It is compared with the one in front.
    Diff,
}

/// The open dialog.
#[derive(Debug)]
pub struct OpenModel {
    /// What the model is for.
    pub purpose: Purpose,
    /// Variants of the model in front, which stand before other paths while nothing is typed.
    pub variants: Vec<String>,
    /// What was typed.
    pub input: Input,
    /// Paths that match.
    pub paths: Vec<String>,
    /// Selection; only used once one moved into the list.
    pub list: List,
    /// The list, not the field, decides on Enter.
    pub in_list: bool,
    /// Newest request.
    pub generation: u64,
}

/// A question with consequences.
#[derive(Debug)]
pub struct Confirm {
    /// Heading.
    pub title: String,
    /// What will happen.
    pub lines: Vec<String>,
    /// The command line that does the same; empty for none.
    pub command: String,
    /// What is done on yes.
    pub effect: Effect,
    /// Word on the yes key.
    pub yes: &'static str,
    /// Text that must be typed first, and what was typed.
    pub typed: Option<(String, Input)>,
}

/// Fields of the goal form.
pub const FIELDS: [(&str, &str); 8] = [
    ("Device", "Left and Right change it"),
    ("Latency", "at most, ms for one inference"),
    ("File size", "at most, MB"),
    ("Peak memory", "at most, MB"),
    ("Quality drop", "at most, % relative to the original"),
    ("Evaluation", "data that judges quality, such as digits:test"),
    ("Calibration", "data for static int8, such as digits:train#0..256"),
    ("Training", "data for repair after cuts, such as csv:a.csv?label=last"),
];

/// The goal form.
#[derive(Debug)]
pub struct GoalForm {
    /// Device profiles.
    pub devices: Vec<String>,
    /// Fields as typed; the first is the device.
    pub inputs: [Input; 8],
    /// Field in front.
    pub field: usize,
    /// What is wrong with a field.
    pub wrong: Option<String>,
}

/// What a dialog decided.
#[derive(Debug)]
pub enum Outcome {
    /// Stay open.
    Stay,
    /// Close.
    Close,
    /// Close and do an action.
    Act(Action),
    /// Close and ask for effects.
    Ask(Effect),
    /// The filter text is this; stay.
    Filter(String),
    /// Close and show all rows again.
    Unfilter,
    /// Close and open this model, or compare with it.
    OpenModel(Purpose, String),
    /// Look for models again; stay.
    FindModels,
    /// Close and plan for this goal, with this data.
    Goal(Goal, DataSpec),
    /// Let models go on from a prompt.
    Say(String, Vec<(String, PathBuf)>),
    /// Close and set the ratio of what the level of the map means, or take it away.
    Ratio(Option<f64>),
    /// Close and plan with these settings and this calibration data.
    Cut(Box<Settings>, Option<String>),
    /// Ask for another prompt.
    Prompt(String, Vec<(String, PathBuf)>),
}

/// An editing key applied to a field; whether the text changed.
pub(super) fn edit(input: &mut Input, key: &KeyEvent) -> bool {
    let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
    let request = match key.code {
        KeyCode::Char('u') if ctrl => InputRequest::DeleteLine,
        KeyCode::Char('w') if ctrl => InputRequest::DeletePrevWord,
        KeyCode::Char('a') if ctrl => InputRequest::GoToStart,
        KeyCode::Char('e') if ctrl => InputRequest::GoToEnd,
        KeyCode::Char(c) if !ctrl && !crate::text::is_unsafe(c) => {
            if input.value().chars().count() >= FIELD_CHARS {
                return false;
            }
            InputRequest::InsertChar(c)
        }
        KeyCode::Backspace => InputRequest::DeletePrevChar,
        KeyCode::Delete => InputRequest::DeleteNextChar,
        KeyCode::Left => InputRequest::GoToPrevChar,
        KeyCode::Right => InputRequest::GoToNextChar,
        KeyCode::Home => InputRequest::GoToStart,
        KeyCode::End => InputRequest::GoToEnd,
        _ => return false,
    };
    input.handle(request).is_some_and(|change| change.value)
}

impl Overlay {
    /// Help for the tab in front.
    pub fn help() -> Overlay {
        Overlay::Actions(Actions { help: true, input: Input::default(), list: List::default() })
    }
    /// The palette.
    pub fn palette() -> Overlay {
        Overlay::Actions(Actions { help: false, input: Input::default(), list: List::default() })
    }

    /// The field that takes text now.
    pub fn field(&mut self) -> Option<&mut Input> {
        match self {
            Overlay::Actions(a) => Some(&mut a.input),
            Overlay::Filter(input) => Some(input),
            Overlay::Open(o) => Some(&mut o.input),
            Overlay::Confirm(c) => c.typed.as_mut().map(|(_, input)| input),
            Overlay::Goal(g) => (g.field > 0).then(|| &mut g.inputs[g.field]),
            Overlay::Prompt(p) => Some(&mut p.input),
            Overlay::Ratio(r) => Some(&mut r.input),
            Overlay::Cut(c) => c.typed(),
            Overlay::Texts(_) => None,
        }
    }

    /// Pasted text goes into the field in front, on one line, and runs nothing; `None` without a field.
    pub fn paste(&mut self, text: &str) -> Option<Outcome> {
        let input = self.field()?;
        let room = FIELD_CHARS.saturating_sub(input.value().chars().count());
        for c in text.chars().filter(|c| !crate::text::is_unsafe(*c)).take(room) {
            input.handle(InputRequest::InsertChar(c));
        }
        Some(self.changed())
    }

    fn changed(&mut self) -> Outcome {
        match self {
            Overlay::Actions(a) => {
                a.list = List::default();
                Outcome::Stay
            }
            Overlay::Filter(input) => Outcome::Filter(input.value().to_string()),
            Overlay::Open(o) => {
                o.in_list = false;
                o.list = List::default();
                Outcome::FindModels
            }
            Overlay::Goal(g) => {
                g.wrong = None;
                Outcome::Stay
            }
            Overlay::Ratio(r) => {
                r.wrong = None;
                Outcome::Stay
            }
            Overlay::Cut(c) => {
                c.wrong = None;
                Outcome::Stay
            }
            Overlay::Confirm(_) | Overlay::Prompt(_) | Overlay::Texts(_) => Outcome::Stay,
        }
    }

    /// A key; `tab` is the one in front.
    pub fn key(&mut self, key: &KeyEvent, app_tab: Tab) -> Outcome {
        if key.code == KeyCode::Esc {
            return match self {
                Overlay::Filter(_) => Outcome::Unfilter,
                _ => Outcome::Close,
            };
        }
        match self {
            Overlay::Actions(a) => {
                let rows = a.rows(app_tab);
                match key.code {
                    KeyCode::Enter => {
                        return rows.get(a.list.selected).map_or(Outcome::Stay, |s| Outcome::Act(s.action));
                    }
                    KeyCode::Up | KeyCode::BackTab => a.list.step(-1, rows.len()),
                    KeyCode::Down | KeyCode::Tab => a.list.step(1, rows.len()),
                    KeyCode::PageUp => a.list.page(-1, rows.len()),
                    KeyCode::PageDown => a.list.page(1, rows.len()),
                    _ if edit(&mut a.input, key) => return self.changed(),
                    _ => {}
                }
                Outcome::Stay
            }
            Overlay::Filter(input) => match key.code {
                KeyCode::Enter => Outcome::Close,
                _ if edit(input, key) => self.changed(),
                _ => Outcome::Stay,
            },
            Overlay::Open(o) => {
                match key.code {
                    KeyCode::Enter => {
                        let purpose = o.purpose;
                        return o.chosen().map_or(Outcome::Stay, |path| Outcome::OpenModel(purpose, path));
                    }
                    KeyCode::Tab => {
                        let path = o.paths.get(o.list.selected).cloned();
                        if let Some(path) = path {
                            o.input = Input::new(path);
                            return self.changed();
                        }
                    }
                    KeyCode::Down if !o.in_list => o.in_list = !o.paths.is_empty(),
                    KeyCode::Up if o.in_list && o.list.selected == 0 => o.in_list = false,
                    KeyCode::Down => o.list.step(1, o.paths.len()),
                    KeyCode::Up => o.list.step(-1, o.paths.len()),
                    KeyCode::PageUp => o.list.page(-1, o.paths.len()),
                    KeyCode::PageDown => o.list.page(1, o.paths.len()),
                    _ if edit(&mut o.input, key) => return self.changed(),
                    _ => {}
                }
                Outcome::Stay
            }
            Overlay::Confirm(c) => match (key.code, &mut c.typed) {
                (KeyCode::Enter, None) | (KeyCode::Char('y' | 'Y'), None) => Outcome::Ask(c.effect.clone()),
                (KeyCode::Enter, Some((wanted, input))) if input.value() == wanted => {
                    Outcome::Ask(c.effect.clone())
                }
                (KeyCode::Char('n' | 'N' | 'q'), None) => Outcome::Close,
                (_, Some((_, input))) => {
                    edit(input, key);
                    Outcome::Stay
                }
                _ => Outcome::Stay,
            },
            Overlay::Goal(g) => g.key(key),
            Overlay::Ratio(r) => r.key(key),
            Overlay::Cut(c) => c.key(key),
            Overlay::Prompt(p) => match key.code {
                KeyCode::Enter if !p.input.value().trim().is_empty() => {
                    Outcome::Say(p.input.value().to_string(), p.models.clone())
                }
                _ => {
                    edit(&mut p.input, key);
                    Outcome::Stay
                }
            },
            Overlay::Texts(t) => {
                match key.code {
                    KeyCode::Char('q') => return Outcome::Close,
                    KeyCode::Enter => {
                        let models = t.sides.iter().map(|s| (s.name.clone(), s.path.clone())).collect();
                        return Outcome::Prompt(t.prompt.clone(), models);
                    }
                    KeyCode::Up | KeyCode::Char('k') => t.scroll = t.scroll.saturating_sub(1),
                    KeyCode::Down | KeyCode::Char('j') => t.scroll = t.scroll.saturating_add(1),
                    KeyCode::PageUp => t.scroll = t.scroll.saturating_sub(10),
                    KeyCode::PageDown => t.scroll = t.scroll.saturating_add(10),
                    KeyCode::Home => t.scroll = 0,
                    _ => {}
                }
                Outcome::Stay
            }
        }
    }
}

impl Actions {
    /// The actions that are listed: every word that was typed occurs in the name, label, keys or sentence;
    /// names that begin with it come first.
    pub fn rows(&self, tab: Tab) -> Vec<&'static Spec> {
        let typed = self.input.value().to_lowercase();
        let words: Vec<&str> = typed.split_whitespace().collect();
        let mut rows: Vec<&Spec> = TABLE
            .iter()
            .filter(|s| !self.help || s.context.covers(tab))
            .filter(|s| {
                let all = format!("{} {} {} {}", s.id, s.label, s.help, s.context.title()).to_lowercase();
                words.iter().all(|w| all.contains(w) || s.keys.iter().any(|k| k.to_lowercase() == *w))
            })
            .collect();
        let rank = |s: &Spec| match words.first() {
            Some(w) if s.id.starts_with(w) || s.label.starts_with(w) => 0,
            Some(w) if s.id.contains(w) || s.label.contains(w) => 1,
            Some(_) => 2,
            // The tab's own actions stand first in the help.
            None if self.help => usize::from(s.context == super::action::Context::Everywhere),
            None => 0,
        };
        rows.sort_by_key(|s| rank(s));
        rows
    }
}

impl OpenModel {
    /// The dialog with the paths still to come.
    pub fn new(purpose: Purpose, variants: Vec<String>) -> OpenModel {
        OpenModel {
            purpose,
            variants,
            input: Input::default(),
            paths: Vec::new(),
            list: List::default(),
            in_list: false,
            generation: 0,
        }
    }

    fn chosen(&self) -> Option<String> {
        let typed = self.input.value().trim();
        if self.in_list || typed.is_empty() {
            return self.paths.get(self.list.selected).cloned();
        }
        Some(typed.to_string())
    }
}

impl GoalForm {
    /// The form filled with a goal.
    pub fn new(app: &App) -> GoalForm {
        let goal = &app.plan.goal;
        let number = |v: Option<f64>| Input::new(v.map_or(String::new(), |v| v.to_string()));
        let text = |v: &Option<String>| Input::new(v.clone().unwrap_or_default());
        GoalForm {
            devices: app.plan.devices.clone(),
            inputs: [
                Input::new(goal.device.clone().unwrap_or_else(|| "host".into())),
                number(goal.latency_ms),
                number(goal.size_mb),
                number(goal.memory_mb),
                number(goal.max_quality_drop.map(|v| (v * 1e6).round() / 1e4)),
                text(&app.plan.data.eval),
                text(&app.plan.data.calibration),
                text(&app.plan.data.train),
            ],
            field: 1,
            wrong: None,
        }
    }

    fn key(&mut self, key: &KeyEvent) -> Outcome {
        match key.code {
            KeyCode::Up | KeyCode::BackTab => self.field = (self.field + FIELDS.len() - 1) % FIELDS.len(),
            KeyCode::Down | KeyCode::Tab => self.field = (self.field + 1) % FIELDS.len(),
            KeyCode::Left if self.field == 0 => self.device(-1),
            KeyCode::Right | KeyCode::Char(' ') if self.field == 0 => self.device(1),
            KeyCode::Enter => match self.goal() {
                Ok((goal, data)) => return Outcome::Goal(goal, data),
                Err((field, wrong)) => {
                    self.field = field;
                    self.wrong = Some(wrong);
                }
            },
            _ if self.field > 0 && edit(&mut self.inputs[self.field], key) => self.wrong = None,
            _ => {}
        }
        Outcome::Stay
    }

    fn device(&mut self, by: isize) {
        let now = self.inputs[0].value();
        let at = self.devices.iter().position(|d| d == now).unwrap_or(0) as isize;
        let len = self.devices.len() as isize;
        if len > 0 {
            let next = (at + by).rem_euclid(len) as usize;
            self.inputs[0] = Input::new(self.devices[next].clone());
        }
    }

    /// The goal as typed, or the field that is wrong and why.
    fn goal(&self) -> Result<(Goal, DataSpec), (usize, String)> {
        let number = |field: usize| -> Result<Option<f64>, (usize, String)> {
            let text = self.inputs[field].value().trim();
            let text = text.trim_end_matches(['%', ' ']);
            if text.is_empty() {
                return Ok(None);
            }
            match text.replace(',', ".").parse::<f64>() {
                Ok(v) if v.is_finite() && v >= 0.0 => Ok(Some(v)),
                _ => Err((field, format!("{}: a number, or nothing", FIELDS[field].0))),
            }
        };
        let goal = Goal {
            device: Some(self.inputs[0].value().to_string()).filter(|d| !d.is_empty() && d != "host"),
            latency_ms: number(1)?,
            size_mb: number(2)?,
            memory_mb: number(3)?,
            max_quality_drop: number(4)?.map(|v| v / 100.0),
        };
        let spec = |field: usize| -> Result<Option<String>, (usize, String)> {
            let text = self.inputs[field].value().trim();
            if text.is_empty() {
                return Ok(None);
            }
            match crate::data::Spec::parse(text) {
                Ok(_) => Ok(Some(text.to_string())),
                Err(e) => Err((field, format!("{}: {}", FIELDS[field].0, e.message()))),
            }
        };
        Ok((goal, DataSpec { eval: spec(5)?, calibration: spec(6)?, train: spec(7)?, ..DataSpec::default() }))
    }
}
