//! Command line: arguments enter, calls to the rooms below follow, results leave on stdout, progress
//! and errors on stderr, the exit code says how it ended. One file per command. Nothing here computes
//! on a model: commands submit jobs and read their state, or ask a child process.

mod baseline;
mod compare;
mod context;
mod demo;
mod deploy;
mod device;
mod doctor;
mod evaluate;
mod failure;
mod follow;
mod generate;
mod goal;
mod import;
mod inspect;
mod jobs;
mod measure;
mod prepare;
mod progress;
mod prune;
mod recommend;
mod run;
mod setup;
mod shell;
mod step;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use context::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make neural networks small and fast on ordinary CPUs, and prove it with measurements.
///
/// Without a command the workbench opens.
#[derive(Debug, Parser)]
#[command(name = "tinsmith", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 a gate was not met, 2 usage, 3 invalid input, 4 unsupported, 5 refused by a limit,\n6 storage, 7 busy, 8 a job or worker died, 9 integrity, 70 internal bug, 75 stopped and resumable,\n129/130/143 ended by HUP, INT, TERM.\n\nExample:\n  tinsmith demo --headless"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Open the workbench on this model
    #[arg(long, value_name = "MODEL")]
    open: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// How results are written to stdout
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    format: FormatName,
    /// Where jobs, models, data and runtimes are kept [default: $TINSMITH_HOME or the user's data directory]
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Colours on a terminal
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: When,
    /// Threads within an operator; `bench` takes a list such as 1,2
    #[arg(long, global = true, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Text,
    Json,
    Jsonl,
    Csv,
    Md,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Inspect(inspect::Inspect),
    Diff(inspect::Diff),
    Import(import::Args),
    Fetch(setup::Fetch),
    Setup(setup::Setup),
    Doctor(doctor::Args),
    Recommend(recommend::Args),
    Run(run::Args),
    Prune(Box<prune::Prune>),
    Quantize(Box<step::Quantize>),
    Optimize(step::Optimize),
    Bench(measure::Bench),
    Eval(evaluate::Args),
    Generate(generate::Args),
    Compare(compare::Args),
    Deploy(deploy::Args),
    Jobs(jobs::Args),
    Baseline(baseline::Args),
    Device(device::Args),
    Gen(shell::Args),
}

/// What the workbench is opened with. The faces do not know each other, so `main` hands it over.
#[derive(Debug)]
pub struct Workbench {
    /// Where jobs and models are.
    pub paths: crate::config::Paths,
    /// User settings.
    pub settings: crate::config::Settings,
    /// A model to open.
    pub model: Option<PathBuf>,
    /// Colours always or never; none decides by the terminal.
    pub color: Option<bool>,
    /// Open on the list of runs.
    pub runs: bool,
    /// Data to plan with.
    pub data: crate::plan::DataSpec,
}

/// What the command line shows of the workbench without knowing it.
#[derive(Debug, Clone, Copy)]
pub struct OtherFace {
    /// Opens the workbench; returns the lines that it leaves behind.
    pub open: fn(Workbench) -> crate::error::Result<Vec<String>>,
    /// Its key map, as Markdown.
    pub keys: fn() -> String,
}

/// Runs the command line of this process and returns its exit code.
pub fn main(workbench: OtherFace) -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let json = failure::wants_json(&arguments);
    let matches = match Cli::command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(e) => return failure::of_arguments(&e, json),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return failure::of_arguments(&e, json),
    };
    let color = context::color_on_stderr(cli.global.color);
    match execute(cli, workbench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failure::report(&e, json, color),
    }
}

fn execute(cli: Cli, workbench: OtherFace) -> anyhow::Result<()> {
    let context = Context::new(&cli.global)?;
    if let (Some(model), Some(_)) = (&cli.open, &cli.command) {
        return Err(crate::error::Error::usage("OPEN", "--open belongs to the workbench, not to a command")
            .field("--open")
            .found(model.display())
            .hint("leave out the command, or the option")
            .into());
    }
    let color = match cli.global.color {
        When::Auto => None,
        When::Always => Some(true),
        When::Never => Some(false),
    };
    match cli.command {
        None => {
            let (paths, settings) = (context.paths.clone(), context.settings.clone());
            let (model, data) = (cli.open, crate::plan::DataSpec::default());
            let lines = (workbench.open)(Workbench { paths, settings, model, color, runs: false, data })?;
            lines.iter().try_for_each(|line| context.write(&format!("{line}\n")))
        }
        Some(Command::Demo(args)) => demo::run(&context, args, workbench, color),
        Some(Command::Inspect(args)) => inspect::inspect(&context, args),
        Some(Command::Diff(args)) => inspect::diff(&context, args),
        Some(Command::Import(args)) => import::run(&context, args),
        Some(Command::Fetch(args)) => setup::run(&context, args),
        Some(Command::Setup(args)) => setup::setup(&context, args),
        Some(Command::Doctor(args)) => doctor::run(&context, args),
        Some(Command::Recommend(args)) => recommend::run(&context, args),
        Some(Command::Run(args)) => run::run(&context, args),
        Some(Command::Prune(args)) => prune::prune(&context, *args),
        Some(Command::Quantize(args)) => step::quantize(&context, *args),
        Some(Command::Optimize(args)) => step::optimize(&context, args),
        Some(Command::Bench(args)) => measure::bench(&context, args),
        Some(Command::Eval(args)) => evaluate::run(&context, args),
        Some(Command::Generate(args)) => generate::run(&context, args),
        Some(Command::Compare(args)) => compare::run(&context, args),
        Some(Command::Deploy(args)) => deploy::run(&context, args),
        Some(Command::Jobs(args)) => jobs::run(&context, args),
        Some(Command::Baseline(args)) => baseline::run(&context, args),
        Some(Command::Device(args)) => device::run(&context, args),
        Some(Command::Gen(args)) => shell::run(&context, args, workbench.keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_sentence_and_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no sentence");
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                let example = help.contains("Example") && help.contains("tinsmith ");
                assert!(sub.has_subcommands() || example, "{path} has no example");
                check(sub, &path);
            }
        }
        check(&Cli::command(), "tinsmith");
    }
}
