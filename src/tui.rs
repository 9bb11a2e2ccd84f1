//! Terminal workbench: five tabs over real files and jobs. Keys and worker messages enter; frames and
//! effects leave. Only the loop ([`run`]) knows the terminal; the state and the drawing are pure, which is
//! what the tests drive. Knows no other face.

pub mod action;
pub mod app;
pub mod backend;
pub mod compare;
mod driver;
pub mod key;
pub mod layout;
pub mod list;
mod local;
pub mod log;
pub mod map;
pub mod model;
pub mod overlay;
pub mod paint;
pub mod plan;
pub mod quantised;
pub mod runs;
mod terminal;
pub mod theme;
pub mod tree;
pub mod update;
pub mod view;

pub use app::Tab;
pub use theme::ColorChoice;

use crate::config::{Paths, Settings};
use crate::error::{Error, Result};
use crate::plan::DataSpec;
use std::path::PathBuf;
use std::sync::Arc;

/// How the workbench is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where jobs and models are.
    pub paths: Paths,
    /// User settings: theme and keys are used here.
    pub settings: Settings,
    /// A model to open.
    pub model: Option<PathBuf>,
    /// Colours.
    pub color: ColorChoice,
    /// The tab in front; the Model tab where none is named.
    pub tab: Option<Tab>,
    /// Data to plan with.
    pub data: DataSpec,
}

/// What the workbench leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitSummary {
    /// Lines for the scrollback, cleaned; empty unless the person asked for them with `Q`.
    pub lines: Vec<String>,
}

/// Opens the workbench on this terminal and returns when it is quit. Ends the process itself, terminal
/// restored, on SIGHUP, SIGINT, SIGQUIT and SIGTERM (129, 130, 131, 143) and when the terminal hangs up.
///
/// # Errors
/// Usage (2) without a terminal or with wrong key settings; internal (70) after a panic, with its message.
pub fn run(options: Options) -> Result<ExitSummary> {
    let backend = Arc::new(local::Local::new(options.paths.clone(), options.settings.clone()));
    run_on(backend, options)
}

/// [`run`] on another backend.
///
/// # Errors
/// As [`run`].
pub fn run_on(backend: Arc<dyn backend::Backend>, options: Options) -> Result<ExitSummary> {
    let theme = &options.settings.theme;
    if theme::ThemeName::parse(theme).is_none() {
        return Err(Error::usage("THEME", "no theme has this name")
            .file(options.paths.settings())
            .field("theme")
            .found(theme)
            .limit("auto, dark, light, mono"));
    }
    let keymap = action::KeyMap::new(&options.settings.keys).map_err(|e| e.file(options.paths.settings()))?;
    let look = theme::Look::detect(theme, options.color, |name| std::env::var(name).ok());
    let mut app = app::App::new(look, keymap);
    app.machine = backend.machine();
    app.plan.data = options.data;
    if let Some(tab) = options.tab {
        app.tab = tab;
    }
    driver::run(app, backend, options.model)
}

/// The page that documents the keys, made from the table of actions; `docs/keys.md` is this text.
pub fn keys_markdown() -> String {
    action::markdown()
}
