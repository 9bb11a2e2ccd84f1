//! `device`: profiles of the devices that predictions are made for.

use super::context::Context;
use crate::error::{Error, Result};
use crate::hardware::Device;
use crate::report::{Cell, Format, Report, Table};
use crate::units::Bytes;
use serde::Serialize;

/// List or show the devices that recommendations are made for
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All profiles: this machine as measured, shipped ones, and your own
    #[command(after_help = "Example:\n  tinsmith device list")]
    List,
    /// A whole profile, in the form that your own below devices/ of the home directory have
    #[command(
        after_help = "Example:\n  tinsmith device show raspberry-pi-5 > ~/.local/share/tinsmith/devices/mine.toml"
    )]
    Show {
        /// Name
        name: String,
    },
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    devices: &'a [Device],
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        What::List => {
            let mut devices = vec![Device::named("host", &context.paths)?];
            devices.extend(Device::all(&context.paths)?);
            context.print(&report(&devices)?)
        }
        What::Show { name } => {
            let device = Device::named(&name, &context.paths)?;
            if context.format != Format::Text {
                return context.print(&report(&[device])?);
            }
            let text = toml::to_string(&device)
                .map_err(|e| Error::internal("DEVICE", format!("a profile cannot be written: {e}")))?;
            context.write(&text)
        }
    }
}

fn report(devices: &[Device]) -> Result<Report> {
    let mut table = Table::new(&[
        ("name", "<device"),
        ("isa", "<isa"),
        ("cores", "cores"),
        ("gflops_per_core", "GFLOP/s a core"),
        ("bandwidth_gbs", "GB/s"),
        ("ram_mb", "memory"),
        ("uncertainty", "?uncertainty"),
        ("description", "?<what"),
        ("source", "?<source"),
    ]);
    for d in devices {
        table.push([
            Cell::text(d.name.clone()),
            Cell::text(d.isa.clone()),
            Cell::value(d.cores, d.cores),
            Cell::value(d.gflops_per_core, format!("{:.1}", d.gflops_per_core)),
            Cell::value(d.bandwidth_gbs, format!("{:.1}", d.bandwidth_gbs)),
            Cell::value(d.ram_mb, Bytes(d.ram_mb * 1_000_000)),
            Cell::value(d.uncertainty, format!("{:.0} %", 100.0 * d.uncertainty)),
            Cell::text(d.description.clone()),
            Cell::text(d.source.clone()),
        ]);
    }
    Ok(Report::new(&Document { schema_version: 1, devices })?.records(devices)?.table(table))
}
