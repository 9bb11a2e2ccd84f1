//! Whether two measurements were taken under conditions that allow a comparison of their figures.

use crate::evaluate::measurement::Measurement;

/// The conditions in which `a` and `b` differ, as `threads 1, 2`; empty where speed and memory may be
/// compared.
pub(super) fn unlike(a: &Measurement, b: &Measurement) -> Vec<String> {
    let (a, b) = (&a.conditions, &b.conditions);
    let mut out = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            let name = |v: &str| if v.is_empty() { "unknown".to_string() } else { v.to_string() };
            out.push(format!("{what} {}, {}", name(&a), name(&b)));
        }
    };
    differ("host", a.host.clone(), b.host.clone());
    differ("cpu", a.cpu.clone(), b.cpu.clone());
    differ("isa", a.isa.clone(), b.isa.clone());
    differ("runtime", a.runtime.clone(), b.runtime.clone());
    differ("threads", a.threads.to_string(), b.threads.to_string());
    differ("pinned cpus", a.affinity.len().to_string(), b.affinity.len().to_string());
    differ("inputs", a.inputs.join(" "), b.inputs.join(" "));
    out
}
