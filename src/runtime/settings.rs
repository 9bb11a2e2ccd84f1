//! What of a session can be chosen for a model and a machine, as files and people state it.

use super::{Optimization, SessionOptions, provider};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Settings of a session that change how fast it is and how much memory it takes, never what it computes
/// beyond rounding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionSettings {
    /// Execution provider, such as `cpu`.
    pub provider: String,
    /// Threads within an operator, the calling one included.
    pub threads: usize,
    /// Threads that run branches of the graph beside each other; 1 runs one node after the other.
    pub branches: usize,
    /// Whether idle threads spin.
    pub spinning: bool,
    /// Whether memory is kept in an arena.
    pub arena: bool,
    /// Whether the memory plan of the first run is reused.
    pub memory_pattern: bool,
    /// Whether constant operands are laid out for the kernels when the model is loaded.
    pub prepacking: bool,
    /// Whether numbers below the least normal one count as zero.
    pub denormals_as_zero: bool,
    /// Graph rewriting by the library.
    pub optimization: Optimization,
}

impl Default for SessionSettings {
    /// Those of [`SessionOptions::default`].
    fn default() -> SessionSettings {
        let o = SessionOptions::default();
        SessionSettings {
            provider: o.provider,
            threads: o.threads,
            branches: o.branches,
            spinning: o.spinning,
            arena: o.arena,
            memory_pattern: o.memory_pattern,
            prepacking: o.prepacking,
            denormals_as_zero: o.denormals_as_zero,
            optimization: o.optimization,
        }
    }
}

impl SessionSettings {
    /// A session with these settings, its threads not pinned.
    pub fn options(&self) -> SessionOptions {
        SessionOptions {
            provider: self.provider.clone(),
            threads: self.threads,
            branches: self.branches,
            spinning: self.spinning,
            arena: self.arena,
            memory_pattern: self.memory_pattern,
            prepacking: self.prepacking,
            denormals_as_zero: self.denormals_as_zero,
            optimization: self.optimization,
            ..SessionOptions::default()
        }
    }

    /// # Errors
    /// `Usage` for a thread count out of range and an unknown provider.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [("threads", self.threads), ("branches", self.branches)] {
            if !(1..=1024).contains(&value) {
                return Err(Error::usage("SESSION-SETTING", "a session cannot have this setting")
                    .field(field)
                    .found(value)
                    .limit("1 to 1024"));
            }
        }
        match self.provider.as_str() {
            provider::AUTO => Err(Error::usage("SESSION-SETTING", "a session has one execution provider")
                .field("provider")
                .found(&self.provider)
                .limit(provider::names().join(", "))),
            name => provider::check(name),
        }
    }

    /// What differs from the default beside the threads, a few words each, such as `no spinning`.
    pub fn differences(&self) -> Vec<String> {
        let plain = SessionSettings::default();
        let mut out = Vec::new();
        if self.provider != plain.provider {
            out.push(format!("provider {}", self.provider));
        }
        if self.branches != plain.branches {
            out.push(format!("{} branches", self.branches));
        }
        for (name, here, there) in [
            ("spinning", self.spinning, plain.spinning),
            ("arena", self.arena, plain.arena),
            ("memory pattern", self.memory_pattern, plain.memory_pattern),
            ("prepacking", self.prepacking, plain.prepacking),
            ("denormals as zero", self.denormals_as_zero, plain.denormals_as_zero),
        ] {
            if here != there {
                out.push(if here { name.to_string() } else { format!("no {name}") });
            }
        }
        if self.optimization != plain.optimization {
            out.push(format!("optimization {}", self.optimization.word()));
        }
        out
    }

    /// All in a line, such as `2 threads, no spinning`.
    pub fn describe(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        let threads = format!("{} thread{plural}", self.threads);
        std::iter::once(threads).chain(self.differences()).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        assert_eq!(SessionSettings::default().describe(), "1 thread");
        let settings = SessionSettings {
            threads: 2,
            spinning: false,
            denormals_as_zero: true,
            branches: 2,
            ..SessionSettings::default()
        };
        assert_eq!(settings.describe(), "2 threads, 2 branches, no spinning, denormals as zero");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let of = |text: &str| serde_json::from_str::<SessionSettings>(text).unwrap().check();
        assert!(of("{}").is_ok());
        for bad in [
            r#"{"threads": 0}"#,
            r#"{"branches": 5000}"#,
            r#"{"provider": "auto"}"#,
            r#"{"provider": "gpu"}"#,
        ] {
            assert_eq!(of(bad).unwrap_err().kind().exit_code(), 2, "{bad}");
        }
        assert!(serde_json::from_str::<SessionSettings>(r#"{"spin": true}"#).is_err());
    }
}
