//! The library's profile file: time per node.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;

/// Time spent in one node of the graph as the library rewrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    let mut times: HashMap<String, OpTime> = HashMap::new();
    for event in events.into_iter().filter(|e| e.cat == "Node") {
        let Some(node) = event.name.strip_suffix("_kernel_time") else { continue };
        let time = times.entry(node.to_string()).or_insert_with(|| OpTime {
            node: node.to_string(),
            op: event.args.op_name,
            provider: event.args.provider,
            count: 0,
            total_us: 0,
        });
        time.count += 1;
        time.total_us += event.dur;
    }
    let mut times: Vec<OpTime> = times.into_values().collect();
    times.sort_by(|a, b| b.total_us.cmp(&a.total_us).then_with(|| a.node.cmp(&b.node)));
    Ok(times)
}
