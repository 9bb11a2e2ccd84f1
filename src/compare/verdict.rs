//! The comparison itself. Latency is tested by the ratio of medians, accuracy by the paired exact test
//! and by the score interval against the margin; both families of p-values are corrected after Holm.
//! Sizes are exact and need no test; a single reading of peak memory allows none.

use super::conditions::unlike;
use super::table::{Comparison, Delta, Row, SCHEMA_VERSION, Verdict};
use crate::error::{Error, Result};
use crate::evaluate::measurement::{Measurement, Quality};
use crate::evaluate::stats::{
    self, Discordant, mcnemar_exact, minimum_detectable_difference, non_inferiority_p, paired_difference_ci,
};
use crate::plan::Goal;

const ALPHA: f64 = 0.05;
/// One-sided level of non-inferiority, that of a 95 % interval.
const ALPHA_MARGIN: f64 = 0.025;

/// Compares `measurements` with the one whose variant is `baseline` (the first where none is named).
/// `margin` is the relative loss of quality that still counts as none; a drop gate in `goal` is judged
/// by the same margin. Rows keep the order given.
///
/// Errors: nothing to compare, no such baseline, a baseline named twice (usage); outcomes of the same
/// data with different numbers of items, a margin outside 0 to 1 (invalid).
pub fn compare(
    measurements: &[Measurement],
    baseline: Option<&str>,
    goal: &Goal,
    margin: f64,
) -> Result<Comparison> {
    let at = find_baseline(measurements, baseline)?;
    if !(0.0..1.0).contains(&margin) {
        return Err(Error::usage("MARGIN", "the margin is a relative loss").found(margin).limit("0 to 1"));
    }
    let base = &measurements[at];
    let mut notes = Vec::new();
    let mut rows = Vec::with_capacity(measurements.len());
    let mut speeds = Vec::new();
    let mut qualities = Vec::new();
    for (index, m) in measurements.iter().enumerate() {
        let mut row = blank(m);
        if index == at {
            row.size = Some(exactly(0.0, Verdict::Baseline));
            row.latency = m.latency_ms.as_ref().map(|_| exactly(0.0, Verdict::Baseline));
            row.memory = m.peak_rss_bytes.map(|_| exactly(0.0, Verdict::Baseline));
            row.quality = m.quality.as_ref().map(|_| exactly(0.0, Verdict::Baseline));
        } else {
            row.size = size(m, base);
            let unlike = unlike(m, base);
            if !unlike.is_empty() {
                notes.push(format!(
                    "{}: latency and memory are not compared, conditions differ: {}",
                    m.variant,
                    unlike.join("; ")
                ));
            }
            let (latency, p) = latency(m, base, unlike.is_empty(), index as u64);
            row.latency = latency;
            row.memory = memory(m, base, unlike.is_empty());
            speeds.push((index, p));
            let (quality, test) = quality(m, base, margin, &mut notes)?;
            row.quality = quality;
            qualities.push((index, test));
        }
        if m.conditions.session != base.conditions.session {
            let told = |m: &Measurement| match m.conditions.session.is_empty() {
                true => "the default session".to_string(),
                false => m.conditions.session.join(", "),
            };
            notes.push(format!("{}: measured with {}, the baseline with {}", m.variant, told(m), told(base)));
        }
        if !m.conditions.noise.is_empty() {
            notes.push(format!("{}: disturbed while measured: {}", m.variant, m.conditions.noise.join(", ")));
        }
        rows.push(row);
    }
    judge_latency(&mut rows, &speeds);
    judge_quality(&mut rows, &qualities, &mut notes);
    mark_pareto(&mut rows);
    power_note(&rows, base, margin, &mut notes);
    let foreign_device = goal.device.as_deref().filter(|d| *d != "host");
    if let Some(device) = foreign_device
        && (goal.latency_ms.is_some() || goal.memory_mb.is_some())
    {
        notes.push(format!(
            "latency and memory gates are for {device}, the figures are of this host: not judged"
        ));
    }
    for row in &mut rows {
        row.missed = missed(row, goal, foreign_device.is_some());
        row.conclusion = conclude(row);
    }
    Ok(Comparison { schema_version: SCHEMA_VERSION, baseline: at, margin, rows, notes })
}

fn find_baseline(measurements: &[Measurement], name: Option<&str>) -> Result<usize> {
    if measurements.is_empty() {
        return Err(Error::usage("COMPARE", "nothing to compare").hint("name at least two models or jobs"));
    }
    let Some(name) = name else { return Ok(0) };
    let hits: Vec<usize> = (0..measurements.len()).filter(|i| measurements[*i].variant == name).collect();
    match hits.as_slice() {
        [one] => Ok(*one),
        [] => {
            let names: Vec<_> = measurements.iter().map(|m| m.variant.as_str()).collect();
            Err(Error::usage("BASELINE", "no variant of this name").found(name).limit(names.join(", ")))
        }
        _ => Err(Error::usage("BASELINE", "several variants have this name")
            .found(name)
            .hint("give each variant a name of its own")),
    }
}

fn blank(m: &Measurement) -> Row {
    Row {
        measurement: m.clone(),
        size: None,
        latency: None,
        memory: None,
        quality: None,
        pareto: false,
        missed: Vec::new(),
        conclusion: String::new(),
    }
}

fn exactly(delta: f64, verdict: Verdict) -> Delta {
    Delta { delta, ci95: None, p_value: None, minimum_detectable: None, verdict }
}

fn size(m: &Measurement, base: &Measurement) -> Option<Delta> {
    if base.file_bytes == 0 || m.file_bytes == 0 {
        return None;
    }
    let delta = m.file_bytes as f64 / base.file_bytes as f64 - 1.0;
    let verdict = match m.file_bytes.cmp(&base.file_bytes) {
        std::cmp::Ordering::Less => Verdict::Better,
        std::cmp::Ordering::Equal => Verdict::NonInferior,
        std::cmp::Ordering::Greater => Verdict::Worse,
    };
    Some(exactly(delta, verdict))
}

fn memory(m: &Measurement, base: &Measurement, alike: bool) -> Option<Delta> {
    let (a, b) = (m.peak_rss_bytes?, base.peak_rss_bytes.filter(|b| *b > 0)?);
    let verdict = if alike { Verdict::Undecided } else { Verdict::NotComparable };
    Some(exactly(a as f64 / b as f64 - 1.0, verdict))
}

/// The latency delta, its verdict still open, and the raw p-value.
fn latency(m: &Measurement, base: &Measurement, alike: bool, seed: u64) -> (Option<Delta>, Option<f64>) {
    let (Some(a), Some(b)) = (&m.latency_ms, &base.latency_ms) else { return (None, None) };
    let delta = a.p50 / b.p50 - 1.0;
    if !alike || !delta.is_finite() {
        return (Some(exactly(if delta.is_finite() { delta } else { 0.0 }, Verdict::NotComparable)), None);
    }
    let Some(test) = stats::ratio_of_medians(&a.samples, &b.samples, seed) else {
        return (Some(exactly(delta, Verdict::Undecided)), None);
    };
    let interval =
        crate::evaluate::measurement::Interval { low: test.ci95.low - 1.0, high: test.ci95.high - 1.0 };
    let delta = Delta {
        delta: test.ratio - 1.0,
        ci95: Some(interval),
        p_value: None,
        minimum_detectable: test.minimum_detectable,
        verdict: Verdict::Undecided,
    };
    (Some(delta), test.p_value)
}

/// Raw p-values of a quality comparison: of no difference, and of a loss beyond the margin.
struct QualityTest {
    difference: f64,
    beyond_margin: f64,
}

fn quality(
    m: &Measurement,
    base: &Measurement,
    margin: f64,
    notes: &mut Vec<String>,
) -> Result<(Option<Delta>, Option<QualityTest>)> {
    let (Some(a), Some(b)) = (&m.quality, &base.quality) else { return Ok((None, None)) };
    let delta = a.value - b.value;
    let reason = if a.metric != b.metric {
        Some(format!("metrics differ: {}, {}", a.metric, b.metric))
    } else if a.data_hash != b.data_hash {
        Some("they were evaluated on different data".to_string())
    } else {
        None
    };
    if let Some(reason) = reason {
        notes.push(format!("{}: quality is not compared, {reason}", m.variant));
        return Ok((Some(exactly(delta, Verdict::NotComparable)), None));
    }
    if a.correct.is_empty() || b.correct.is_empty() {
        notes.push(format!("{}: no outcomes per item are at hand, quality is not tested", m.variant));
        return Ok((Some(exactly(delta, Verdict::Undecided)), None));
    }
    let counts = discordant(a, b, &m.variant)?;
    let tolerated = margin * b.value.abs();
    let delta = Delta {
        delta: counts.difference(),
        ci95: Some(paired_difference_ci(&counts)),
        p_value: None,
        minimum_detectable: Some(minimum_detectable_difference(counts.rate(), counts.n)),
        verdict: Verdict::Undecided,
    };
    let test = QualityTest {
        difference: mcnemar_exact(counts.first_only, counts.second_only),
        beyond_margin: non_inferiority_p(&counts, tolerated),
    };
    Ok((Some(delta), Some(test)))
}

fn discordant(a: &Quality, b: &Quality, variant: &str) -> Result<Discordant> {
    Discordant::count(&a.correct, &b.correct).ok_or_else(|| {
        Error::invalid("QUALITY-ITEMS", "outcomes of the same data have different numbers of items")
            .field(format!("{variant}: quality.correct"))
            .found(a.correct.len())
            .limit(b.correct.len())
            .hint("evaluate both again")
    })
}

fn judge_latency(rows: &mut [Row], tests: &[(usize, Option<f64>)]) {
    let tested: Vec<(usize, f64)> = tests.iter().filter_map(|(i, p)| Some((*i, (*p)?))).collect();
    let adjusted = stats::holm(&tested.iter().map(|t| t.1).collect::<Vec<_>>());
    for ((index, _), p) in tested.into_iter().zip(adjusted) {
        if let Some(delta) = &mut rows[index].latency {
            delta.p_value = Some(p);
            if p <= ALPHA {
                delta.verdict = if delta.delta < 0.0 { Verdict::Better } else { Verdict::Worse };
            }
        }
    }
}

fn judge_quality(rows: &mut [Row], tests: &[(usize, Option<QualityTest>)], notes: &mut Vec<String>) {
    let tested: Vec<(usize, &QualityTest)> =
        tests.iter().filter_map(|(i, t)| Some((*i, t.as_ref()?))).collect();
    let differences = stats::holm(&tested.iter().map(|t| t.1.difference).collect::<Vec<_>>());
    let margins = stats::holm(&tested.iter().map(|t| t.1.beyond_margin).collect::<Vec<_>>());
    for ((index, test), (p, p_margin)) in tested.iter().zip(differences.into_iter().zip(margins)) {
        let Row { measurement, quality: Some(delta), .. } = &mut rows[*index] else { continue };
        delta.p_value = Some(p);
        delta.verdict = if p <= ALPHA && delta.delta > 0.0 {
            Verdict::Better
        } else if p_margin <= ALPHA_MARGIN {
            Verdict::NonInferior
        } else if p <= ALPHA && delta.delta < 0.0 {
            Verdict::Worse
        } else {
            Verdict::Undecided
        };
        if test.beyond_margin <= ALPHA_MARGIN && p_margin > ALPHA_MARGIN {
            notes.push(format!(
                "{}: quality is within the margin by itself, not after correction for {} variants",
                measurement.variant,
                tested.len()
            ));
        }
    }
}

/// Marks rows that no other row beats in both latency and quality. Rows without both, or measured
/// under other conditions, take no part.
fn mark_pareto(rows: &mut [Row]) {
    let comparable = |d: &Option<Delta>| d.as_ref().is_some_and(|d| d.verdict != Verdict::NotComparable);
    let points: Vec<Option<(f64, f64)>> = rows
        .iter()
        .map(|r| {
            let quality = r.measurement.quality.as_ref()?;
            let latency = r.measurement.latency_ms.as_ref()?.p50;
            let good = if quality.higher_is_better { quality.value } else { -quality.value };
            (comparable(&r.latency) && comparable(&r.quality) && good.is_finite()).then_some((latency, good))
        })
        .collect();
    for (row, own) in rows.iter_mut().zip(&points) {
        let Some((latency, good)) = *own else { continue };
        row.pareto =
            !points.iter().flatten().any(|(l, g)| *l <= latency && *g >= good && (*l < latency || *g > good));
    }
}

/// Says so where the data are too few to show a loss of the size of the margin.
fn power_note(rows: &[Row], base: &Measurement, margin: f64, notes: &mut Vec<String>) {
    let Some(quality) = &base.quality else { return };
    let tolerated = margin * quality.value.abs();
    let worst =
        rows.iter().filter_map(|r| r.quality.as_ref()?.minimum_detectable).fold(f64::NEG_INFINITY, f64::max);
    if worst > tolerated {
        notes.push(format!(
            "{} items show a change of {} of {:.2} points or more; the margin is {:.2} points",
            quality.n,
            quality.metric,
            100.0 * worst,
            100.0 * tolerated
        ));
    }
}

fn missed(row: &Row, goal: &Goal, foreign_device: bool) -> Vec<String> {
    let m = &row.measurement;
    let mut out = Vec::new();
    let mut gate = |name: &str, value: Option<f64>, limit: Option<f64>| match (value, limit) {
        (Some(value), Some(limit)) if value > limit => out.push(name.to_string()),
        (None, Some(_)) => out.push(format!("{name} (not measured)")),
        _ => {}
    };
    gate("size_mb", Some(m.file_bytes as f64 / 1e6), goal.size_mb);
    if !foreign_device {
        gate("latency_ms", m.latency_ms.as_ref().map(|l| l.p50), goal.latency_ms);
        gate("memory_mb", m.peak_rss_bytes.map(|b| b as f64 / 1e6), goal.memory_mb);
    }
    if goal.max_quality_drop.is_some() {
        match row.quality.as_ref().map(|q| q.verdict) {
            Some(Verdict::Baseline | Verdict::Better | Verdict::NonInferior) => {}
            Some(Verdict::Worse) => out.push("max_quality_drop".into()),
            Some(Verdict::Undecided | Verdict::NotComparable) => {
                out.push("max_quality_drop (not shown)".into())
            }
            None => out.push("max_quality_drop (not measured)".into()),
        }
    }
    out
}

fn conclude(row: &Row) -> String {
    use Verdict::*;
    let of = |d: &Option<Delta>| d.as_ref().map(|d| d.verdict);
    let (size, latency, quality) = (of(&row.size), of(&row.latency), of(&row.quality));
    let missed = || format!("misses {}", row.missed.join(", "));
    if size == Some(Baseline) || latency == Some(Baseline) {
        return if row.missed.is_empty() { "baseline".into() } else { format!("baseline, {}", missed()) };
    }
    if let Some(failure) = row.measurement.failures.first() {
        return if failure.starts_with("failed") { failure.clone() } else { format!("failed: {failure}") };
    }
    if latency == Some(Worse) {
        return "slower than the baseline".into();
    }
    if quality == Some(Worse) {
        return "loses quality".into();
    }
    if !row.missed.is_empty() {
        return missed();
    }
    let gain = match (latency, size) {
        (Some(Better), Some(Better)) => Some("faster and smaller"),
        (Some(Better), _) => Some("faster"),
        (_, Some(Better)) => Some("smaller"),
        _ => None,
    };
    match (gain, quality) {
        (None, _) => "no gain shown".into(),
        (Some(gain), Some(Better | NonInferior)) => format!("recommended: {gain}"),
        (Some(gain), Some(Undecided)) => match row.quality.as_ref().and_then(|q| q.minimum_detectable) {
            Some(least) => format!("{gain}; quality undecided, needs {:.1} points to show", 100.0 * least),
            None => format!("{gain}; quality undecided"),
        },
        (Some(gain), Some(_)) => format!("{gain}; quality not comparable"),
        (Some(gain), None) => format!("{gain}; quality not measured"),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
