//! `gen`: what belongs to an installation: completions, man pages, settings, schemas.

use super::{Cli, context::Context};
use crate::error::{Error, Result};
use crate::save;
use clap::CommandFactory;
use std::path::PathBuf;

/// Write shell completions, man pages, a settings template, or the published schemas
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Completions for a shell
    #[command(
        after_help = "Example:\n  tinsmith gen completions bash > ~/.local/share/bash-completion/completions/tinsmith"
    )]
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// The man page, or all pages into a directory
    #[command(after_help = "Example:\n  tinsmith gen man --output ~/.local/share/man/man1")]
    Man {
        /// Write one page per command into this directory
        #[arg(long, short, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// A settings file with every field and its default
    #[command(after_help = "Example:\n  tinsmith gen config > ~/.config/tinsmith/config.toml")]
    Config,
    /// Keys and actions of the workbench, as Markdown
    #[command(after_help = "Example:\n  tinsmith gen keys > keys.md")]
    Keys,
    /// A published JSON schema, or their names
    #[command(after_help = "Example:\n  tinsmith gen schema recipe")]
    Schema {
        /// Name
        name: Option<String>,
    },
}

pub(super) fn run(context: &Context, args: Args, keys: fn() -> String) -> anyhow::Result<()> {
    match args.what {
        What::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tinsmith", &mut out);
            context.write(&String::from_utf8_lossy(&out))
        }
        What::Man { output: None } => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out)?;
            context.write(&String::from_utf8_lossy(&out))
        }
        What::Man { output: Some(dir) } => {
            std::fs::create_dir_all(&dir).map_err(|e| Error::io("create the directory", &dir, e))?;
            let mut command = Cli::command();
            command.build();
            pages(&command, "tinsmith", &mut |name, page| save::bytes(&dir.join(format!("{name}.1")), page))?;
            context.note(&format!("man pages are in {}", dir.display()));
            Ok(())
        }
        What::Keys => context.write(&keys()),
        What::Config => context.write(CONFIG),
        What::Schema { name: None } => {
            context.write(&SCHEMAS.iter().map(|(name, _)| format!("{name}\n")).collect::<String>())
        }
        What::Schema { name: Some(name) } => {
            let schema = SCHEMAS.iter().find(|(n, _)| *n == name).ok_or_else(|| {
                let names: Vec<_> = SCHEMAS.iter().map(|(n, _)| *n).collect();
                Error::usage("SCHEMA", "no schema of this name").found(&name).limit(names.join(", "))
            })?;
            context.write(schema.1)
        }
    }
}

fn pages(
    command: &clap::Command,
    name: &str,
    write: &mut impl FnMut(&str, &[u8]) -> Result<()>,
) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).render(&mut page)?;
    write(name, &page)?;
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        pages(sub, &format!("{name}-{}", sub.get_name()), write)?;
    }
    Ok(())
}

/// The settings file with every field.
const CONFIG: &str = "\
# Settings of tinsmith. Every field is optional; the values are the defaults.
schema_version = 1

# Jobs that may compute at the same time; measuring always runs alone.
concurrent_jobs = 1

# Colours of the workbench: auto, dark, light, mono.
theme = \"auto\"

# Keys of the workbench: action = \"key\"; `tinsmith gen keys` lists the actions.
[keys]
";

/// The published schemas by name.
pub(super) const SCHEMAS: &[(&str, &str)] = &[
    ("comparison", include_str!("../../assets/schema/comparison.json")),
    ("card", include_str!("../../assets/schema/card.json")),
    ("deploy", include_str!("../../assets/schema/deploy.json")),
    ("devices", include_str!("../../assets/schema/devices.json")),
    ("diff", include_str!("../../assets/schema/diff.json")),
    ("doctor", include_str!("../../assets/schema/doctor.json")),
    ("error", include_str!("../../assets/schema/error.json")),
    ("evaluations", include_str!("../../assets/schema/evaluations.json")),
    ("event", include_str!("../../assets/schema/event.json")),
    ("jobs", include_str!("../../assets/schema/jobs.json")),
    ("measurements", include_str!("../../assets/schema/measurements.json")),
    ("proposals", include_str!("../../assets/schema/proposals.json")),
    ("recipe", include_str!("../../assets/schema/recipe.json")),
    ("saturation", include_str!("../../assets/schema/saturation.json")),
    ("session", include_str!("../../assets/schema/session.json")),
    ("summary", include_str!("../../assets/schema/summary.json")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn the_settings_template_states_every_field_and_its_default() {
        assert_eq!(toml::from_str::<Settings>(CONFIG).unwrap(), Settings::default());
        let fields: toml::Table = toml::Table::try_from(Settings::default()).unwrap();
        let stated: toml::Table = toml::from_str(CONFIG).unwrap();
        assert_eq!(fields.keys().collect::<Vec<_>>(), stated.keys().collect::<Vec<_>>());
    }

    #[test]
    fn schemas_are_valid_and_refuse_unknown_versions() {
        for (name, text) in SCHEMAS {
            let schema: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(schema["title"].as_str(), Some(*name));
            jsonschema::validator_for(&schema).unwrap();
        }
    }
}
