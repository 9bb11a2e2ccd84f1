//! Rotary position embeddings: base and scaling enter, tables of cosines and sines leave. Knows no graph.

use super::fields::Fields;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// How the frequencies of a model were stretched beyond the context that it was first trained on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scaling {
    /// As trained.
    None,
    /// All frequencies divided by a factor.
    Linear(f64),
    /// Llama 3: low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over dimensions, and attention scaled.
    Yarn { factor: f64, original: f64, fast: f64, slow: f64, attention: f64, truncate: bool },
    /// Each frequency divided by a factor of its own, as LongRoPE and some GGUF files store them.
    Factors { factors: Vec<f64>, attention: f64 },
}

/// Rotary embedding of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    /// Base of the frequencies (`rope_theta`).
    pub(super) base: f64,
    /// Rotated dimensions of a head, even.
    pub(super) dims: usize,
    /// Stretching.
    pub(super) scaling: Scaling,
}

impl Rope {
    /// One inverse frequency for each pair of dimensions.
    fn frequencies(&self) -> Vec<f32> {
        let pairs = self.dims / 2;
        let plain = |i: usize| self.base.powf(-(2.0 * i as f64) / self.dims as f64);
        let scaled = |i: usize| -> f64 {
            let f = plain(i);
            match &self.scaling {
                Scaling::None => f,
                Scaling::Linear(factor) => f / factor,
                Scaling::Llama3 { factor, low, high, original } => {
                    let wavelength = 2.0 * std::f64::consts::PI / f;
                    if wavelength < original / high {
                        f
                    } else if wavelength > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                }
                Scaling::Yarn { factor, original, fast, slow, truncate, .. } => {
                    // Dimension at which a frequency turns `n` times within the original context.
                    let dimension = |n: f64| {
                        self.dims as f64 * (original / (n * 2.0 * std::f64::consts::PI)).ln()
                            / (2.0 * self.base.ln())
                    };
                    let (mut from, mut to) = (dimension(*fast), dimension(*slow));
                    if *truncate {
                        (from, to) = (from.floor(), to.ceil());
                    }
                    let (from, mut to) = (from.max(0.0), to.min(self.dims as f64 - 1.0));
                    if from == to {
                        to += 0.001;
                    }
                    let ramp = ((i as f64 - from) / (to - from)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                }
                Scaling::Factors { factors, .. } => f / factors.get(i).copied().unwrap_or(1.0),
            }
        };
        (0..pairs).map(|i| scaled(i) as f32).collect()
    }

    /// What cosines and sines are multiplied by.
    fn amplitude(&self) -> f64 {
        match &self.scaling {
            Scaling::Yarn { attention, .. } | Scaling::Factors { attention, .. } => *attention,
            _ => 1.0,
        }
    }

    /// Cosines and sines, each `[positions, dims / 2]` f32. Angles are products in f32, as the models were
    /// trained with.
    pub(super) fn tables(&self, positions: usize) -> Result<(Tensor, Tensor)> {
        let (frequencies, amplitude) = (self.frequencies(), self.amplitude());
        if positions.saturating_mul(frequencies.len()) > MOST {
            return Err(Error::limit_exceeded(
                "CONTEXT-LONG",
                "the tables of so many positions are too large",
            )
            .field("context_length")
            .found(positions)
            .limit(MOST / frequencies.len().max(1))
            .hint("import with fewer positions: --context N"));
        }
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for p in 0..positions {
            for f in &frequencies {
                let angle = f64::from(p as f32 * f);
                cos.push((angle.cos() * amplitude) as f32);
                sin.push((angle.sin() * amplitude) as f32);
            }
        }
        let shape = vec![positions, frequencies.len()];
        Ok((Tensor::from_vec(shape.clone(), cos)?, Tensor::from_vec(shape, sin)?))
    }
}

/// Most elements of a table: a million positions of heads of 128.
const MOST: usize = 1 << 26;

/// Reads the rotary settings of a `config.json`, in the older spelling (`rope_theta`, `rope_scaling`) and in
/// the newer one (`rope_parameters`). `section` is the object that holds the scaling, where there is
/// one; `context` is the number of positions that the graph will have, `trained` that of the model.
pub(super) fn from_config(
    fields: &Fields<'_>,
    section: Option<&Fields<'_>>,
    default_base: f64,
    dims: usize,
    context: usize,
    trained: usize,
) -> Result<Rope> {
    let inside = |key: &str| section.map_or(Ok(None), |s| s.positive(key));
    let base = inside("rope_theta")?.or(fields.positive("rope_theta")?).unwrap_or(default_base);
    let Some(s) = section else { return Ok(Rope { base, dims, scaling: Scaling::None }) };
    let kind = match s.text("rope_type")? {
        Some(kind) => kind,
        None => s.text("type")?.unwrap_or("default"),
    };
    let need = |key: &str| s.positive(key)?.ok_or_else(|| s.missing(key));
    let original = s
        .positive("original_max_position_embeddings")?
        .or(fields.positive("original_max_position_embeddings")?)
        .unwrap_or(trained as f64);
    let scaling = match kind {
        "default" => Scaling::None,
        // Within the trained context these are the plain frequencies.
        "dynamic" => Scaling::None,
        "linear" => Scaling::Linear(need("factor")?),
        "llama3" => Scaling::Llama3 {
            factor: need("factor")?,
            low: need("low_freq_factor")?,
            high: need("high_freq_factor")?,
            original,
        },
        "yarn" => {
            let factor = need("factor")?;
            Scaling::Yarn {
                factor,
                original,
                fast: s.positive("beta_fast")?.unwrap_or(32.0),
                slow: s.positive("beta_slow")?.unwrap_or(1.0),
                attention: match s.positive("attention_factor")? {
                    Some(given) => given,
                    None => yarn_attention(factor, s.positive("mscale")?, s.positive("mscale_all_dim")?),
                },
                truncate: s.flag("truncate")?.unwrap_or(true),
            }
        }
        "longrope" | "su" => {
            let long = context as f64 > original;
            let key = if long { "long_factor" } else { "short_factor" };
            let factors = s.numbers(key)?.ok_or_else(|| s.missing(key))?;
            if factors.len() != dims / 2 || factors.iter().any(|f| *f <= 0.0) {
                return Err(s.unsupported(
                    key,
                    format!("{} factors", factors.len()),
                    &format!("{}", dims / 2),
                ));
            }
            let stretch = match s.positive("factor")? {
                Some(factor) => factor,
                None => trained as f64 / original,
            };
            let attention = match s.positive("attention_factor")? {
                Some(given) => given,
                None if stretch <= 1.0 => 1.0,
                None => (1.0 + stretch.ln() / original.ln()).sqrt(),
            };
            Scaling::Factors { factors, attention }
        }
        other => {
            return Err(s.unsupported(
                "rope_type",
                other,
                "default, linear, dynamic, llama3, yarn, longrope",
            ));
        }
    };
    Ok(Rope { base, dims, scaling })
}

/// The amplitude of YaRN, where the configuration does not state it.
pub(super) fn yarn_attention(factor: f64, mscale: Option<f64>, all: Option<f64>) -> f64 {
    let get = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (mscale, all) {
        (Some(m), Some(all)) => get(m) / get(all),
        _ => get(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope { base: 10000.0, dims: 8, scaling }
    }

    #[test]
    fn tables_hold_the_angle_of_each_position_and_pair() {
        let (cos, sin) = rope(Scaling::None).tables(3).unwrap();
        assert_eq!(cos.shape(), [3, 4]);
        let (cos, sin) = (cos.to_f32s().unwrap(), sin.to_f32s().unwrap());
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert!((f64::from(sin[8]) - 2f64.sin()).abs() < 1e-7);
        assert!((f64::from(cos[9]) - 0.2f64.cos()).abs() < 1e-7);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let f = rope(Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 }).frequencies();
        assert_eq!(f[0], 1.0);
        assert!((f[3] - 0.001 / 8.0).abs() < 1e-9);
        assert!(f[1] < 0.1 && f[1] > 0.1 / 8.0, "{f:?}");
    }

    #[test]
    fn yarn_scales_the_amplitude() {
        assert!((yarn_attention(4.0, None, None) - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(yarn_attention(4.0, Some(1.0), Some(1.0)), 1.0);
        assert_eq!(yarn_attention(1.0, None, None), 1.0);
    }
}
