//! The library's profile file: time per node.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;

/// Time spent in one node of the graph as the library rewrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// Node name; fused nodes carry the name of a node of the original graph as prefix.
    pub node: String,
    /// Operator type after fusion.
    pub op: String,
    /// Execution provider.
    pub provider: String,
    /// Runs.
    pub count: u64,
    /// Time over all runs in microseconds.
    pub total_us: u64,
    /// One run in microseconds: the mean of the middle half, which a slow first run or an interrupt does
    /// not touch.
    pub typical_us: f64,
}

/// The mean of the middle half.
fn typical(mut durations: Vec<u64>) -> f64 {
    durations.sort_unstable();
    let cut = durations.len() / 4;
    let middle = &durations[cut..durations.len() - cut];
    middle.iter().sum::<u64>() as f64 / middle.len().max(1) as f64
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Args,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default)]
    op_name: String,
    #[serde(default)]
    provider: String,
}

/// Reads a profile (a JSON array of trace events) and adds up its kernel times per node, slowest
/// node first.
///
/// # Errors
/// `Invalid` where the file is not such a profile.
pub fn read_profile(path: &Path) -> Result<Vec<OpTime>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read the profile", path, e))?;
    let events: Vec<Event> = serde_json::from_reader(BufReader::new(file)).map_err(|e| {
        Error::invalid("ORT-PROFILE", format!("the profile cannot be read: {e}"))
            .file(path)
            .hint("profile again")
    })?;
    let mut runs: HashMap<String, (Args, Vec<u64>)> = HashMap::new();
    for event in events.into_iter().filter(|e| e.cat == "Node") {
        let Some(node) = event.name.strip_suffix("_kernel_time") else { continue };
        let (_, durations) = runs.entry(node.to_string()).or_insert_with(|| (event.args, Vec::new()));
        durations.push(event.dur);
    }
    let mut times: Vec<OpTime> = runs
        .into_iter()
        .map(|(node, (args, durations))| OpTime {
            node,
            op: args.op_name,
            provider: args.provider,
            count: durations.len() as u64,
            total_us: durations.iter().sum(),
            typical_us: typical(durations),
        })
        .collect();
    times.sort_by(|a, b| b.total_us.cmp(&a.total_us).then_with(|| a.node.cmp(&b.node)));
    Ok(times)
}
