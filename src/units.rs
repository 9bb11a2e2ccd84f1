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
}
