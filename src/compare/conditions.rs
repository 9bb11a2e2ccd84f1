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
    differ("inputs", asked(&a.inputs), asked(&b.inputs));
    out
}

/// Inputs as they count. A cache of keys and values, `past…:f32[batch,heads,tokens,size]`, is the model's
/// own and as wide as its heads, of which a pruned model has fewer; how many tokens it holds counts.
fn asked(inputs: &[String]) -> String {
    let counted = |input: &String| {
        let dims =
            input.strip_suffix(']').and_then(|i| i.split_once('[')).filter(|_| input.starts_with("past"));
        match dims.map(|(name, dims)| (name, dims.split(',').collect::<Vec<_>>())) {
            Some((name, dims)) if dims.len() == 4 => format!("{name}[{},*,{},*]", dims[0], dims[2]),
            _ => input.clone(),
        }
    };
    inputs.iter().map(counted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::asked;

    #[test]
    fn caches_count_by_their_tokens() {
        let inputs = |heads: usize, past: usize| {
            asked(&["ids:i64[1,128]".to_string(), format!("past_key_values.0.key:f32[1,{heads},{past},64]")])
        };
        assert_eq!(inputs(3, 0), inputs(2, 0));
        assert_ne!(inputs(3, 0), inputs(3, 128));
        assert_ne!(asked(&["x:f32[1,3,8,8]".into()]), asked(&["x:f32[1,2,8,8]".into()]));
    }
}
