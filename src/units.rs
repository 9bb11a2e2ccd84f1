//! Quantities with a unit. Each has one `Display`, so that every face prints it the same way.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A number of bytes. Displayed with binary prefixes (`3.0 MiB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut step = 0;
        while value >= 1024.0 && step + 1 < STEPS.len() {
            value /= 1024.0;
            step += 1;
        }
        let text = match step {
            0 => format!("{} B", self.0),
            _ if value < 10.0 => format!("{value:.2} {}", STEPS[step]),
            _ => format!("{value:.1} {}", STEPS[step]),
        };
        f.pad(&text)
    }
}

/// A number with one of these endings; case does not count, nor a space before it.
fn scaled(text: &str, endings: &[(&str, f64)]) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, ending) = (&text[..digits], text[digits..].trim());
    let (_, factor) = endings.iter().find(|(name, _)| *name == ending)?;
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value <= 2f64.powi(63)).then_some(value.round() as u64)
}

impl Bytes {
    /// Reads `20MB`, `1.5 GiB`, `512k` or a number of bytes: prefixes are decimal without an `i`.
    pub fn parse(text: &str) -> Option<Bytes> {
        const KINDS: [(&str, f64); 4] = [("k", 1.0), ("m", 2.0), ("g", 3.0), ("t", 4.0)];
        let mut endings = vec![(String::new(), 1.0), ("b".to_string(), 1.0)];
        for (prefix, power) in KINDS {
            let decimal = 1000f64.powf(power);
            endings.push((prefix.to_string(), decimal));
            endings.push((format!("{prefix}b"), decimal));
            endings.push((format!("{prefix}ib"), 1024f64.powf(power)));
        }
        let endings: Vec<(&str, f64)> = endings.iter().map(|(name, f)| (name.as_str(), *f)).collect();
        scaled(text, &endings).map(Bytes)
    }
}

/// A plain count shown with decimal prefixes (`134.5 M`): parameters, MACs, FLOPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [&str; 6] = ["", " K", " M", " G", " T", " P"];
        let mut value = self.0 as f64;
        let mut step = 0;
        while value >= 1000.0 && step + 1 < STEPS.len() {
            value /= 1000.0;
            step += 1;
        }
        let text = match step {
            0 => self.0.to_string(),
            _ if value < 10.0 => format!("{value:.2}{}", STEPS[step]),
            _ => format!("{value:.1}{}", STEPS[step]),
        };
        f.pad(&text)
    }
}

impl Count {
    /// Reads `25M`, `1.2 G`, `300k` or a plain number.
    pub fn parse(text: &str) -> Option<Count> {
        scaled(text, &[("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9), ("t", 1e12)]).map(Count)
    }
}

/// A duration in milliseconds, as latencies are reported.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub f64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        let text = if !ms.is_finite() {
            "n/a".to_string()
        } else if ms < 1.0 {
            format!("{:.1} us", ms * 1e3)
        } else if ms < 100.0 {
            format!("{ms:.2} ms")
        } else if ms < 10_000.0 {
            format!("{ms:.0} ms")
        } else {
            Span(ms / 1e3).to_string()
        };
        f.pad(&text)
    }
}

/// A span in seconds for people: `41 s`, `1m 12s`, `3h 05m`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub f64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if !self.0.is_finite() || self.0 < 0.0 {
            "n/a".to_string()
        } else if self.0 < 10.0 {
            format!("{:.1} s", self.0)
        } else {
            let s = self.0.round() as u64;
            match s {
                0..=59 => format!("{s} s"),
                60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
                _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_display_with_three_significant_figures() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes(3 << 20).to_string(), "3.00 MiB");
        assert_eq!(Count(134_515_008).to_string(), "134.5 M");
        assert_eq!(Millis(0.0421).to_string(), "42.1 us");
        assert_eq!(Span(4333.0).to_string(), "1h 12m");
        assert_eq!(format!("{:>9}", Count(1500)), "   1.50 K");
    }

    #[test]
    fn sizes_and_counts_are_read_with_decimal_and_binary_prefixes() {
        for (text, bytes) in [
            ("20MB", 20_000_000),
            ("20 MiB", 20 << 20),
            ("1.5gib", 3 << 29),
            ("512k", 512_000),
            ("7", 7),
            ("7 B", 7),
        ] {
            assert_eq!(Bytes::parse(text), Some(Bytes(bytes)), "{text}");
        }
        assert_eq!(Count::parse("1.2G"), Some(Count(1_200_000_000)));
        assert_eq!(Count::parse("300 k"), Some(Count(300_000)));
        for text in ["", "MB", "20 QB", "-3MB", "1e9", "nan", "inf", "1..2M", "99999999999999T"] {
            assert_eq!((Bytes::parse(text), Count::parse(text)), (None, None), "{text}");
        }
    }
}
