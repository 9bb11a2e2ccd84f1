//! The `tinsmith` binary: hands over to the command line, or to a worker where it was started as one.
//! Here alone the command line and the workbench meet.

use std::process::ExitCode;
use tinsmith::{cli, tui};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(code) = tinsmith::child::serve_if_asked(handlers) {
        return code;
    }
    match tinsmith::jobs::worker::invoked(std::env::args_os()) {
        Some(code) => ExitCode::from(code),
        None => cli::main(cli::OtherFace { open: workbench, keys: tui::keys_markdown }),
    }
}

/// What this program does as its own child.
fn handlers() -> Vec<tinsmith::child::Handler> {
    let mut handlers = vec![tinsmith::child::fault_handler()];
    handlers.extend(tinsmith::runtime::handlers());
    handlers.extend(tinsmith::evaluate::handlers());
    handlers.extend(tinsmith::analysis::handlers());
    handlers.extend(tinsmith::export::handlers());
    handlers.extend(tinsmith::plan::handlers());
    handlers
}

fn workbench(request: cli::Workbench) -> tinsmith::error::Result<Vec<String>> {
    let options = tui::Options {
        paths: request.paths,
        settings: request.settings,
        model: request.model,
        color: match request.color {
            None => tui::ColorChoice::Auto,
            Some(true) => tui::ColorChoice::Always,
            Some(false) => tui::ColorChoice::Never,
        },
        tab: request.runs.then_some(tui::Tab::Runs),
        data: request.data,
    };
    Ok(tui::run(options)?.lines)
}
