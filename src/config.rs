//! Paths and user settings. XDG variables come first on every system. Knows no face.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where this installation keeps things. `home` holds jobs, models, data, runtimes and the history.
#[derive(Debug, Clone)]
pub struct Paths {
    home: PathBuf,
    config: PathBuf,
}

impl Paths {
    /// Resolves the home directory: `flag` (from `--home`), `$TINSMITH_HOME`, `$XDG_DATA_HOME/tinsmith`,
    /// the platform's data directory. Fails with a usage error where none can be found.
    pub fn resolve(flag: Option<&Path>) -> Result<Paths> {
        let dirs = directories::ProjectDirs::from("", "", "tinsmith");
        let from_env = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = flag
            .map(Path::to_path_buf)
            .or_else(|| from_env("TINSMITH_HOME"))
            .or_else(|| from_env("XDG_DATA_HOME").map(|p| p.join("tinsmith")))
            .or_else(|| dirs.as_ref().map(|d| d.data_dir().to_path_buf()))
            .ok_or_else(|| {
                Error::usage("HOME", "no home directory is known")
                    .hint("set TINSMITH_HOME or pass --home DIR")
            })?;
        let config = from_env("XDG_CONFIG_HOME")
            .map(|p| p.join("tinsmith"))
            .or_else(|| dirs.as_ref().map(|d| d.config_dir().to_path_buf()))
            .unwrap_or_else(|| home.clone());
        let home =
            std::path::absolute(&home).map_err(|e| Error::io("resolve the home directory", &home, e))?;
        Ok(Paths { home, config })
    }

    /// Paths under one directory, for tests.
    pub fn under(dir: &Path) -> Paths {
        Paths { home: dir.to_path_buf(), config: dir.join("config") }
    }

    /// The home directory itself.
    pub fn home(&self) -> &Path {
        &self.home
    }
    /// Job directories.
    pub fn jobs(&self) -> PathBuf {
        self.home.join("jobs")
    }
    /// Fetched models.
    pub fn models(&self) -> PathBuf {
        self.home.join("models")
    }
    /// Fetched data sets.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }
    /// Installed ONNX Runtime libraries.
    pub fn runtimes(&self) -> PathBuf {
        self.home.join("runtimes")
    }
    /// Content-addressed results of recipe steps.
    pub fn cache(&self) -> PathBuf {
        self.home.join("cache")
    }
    /// Log files of the faces.
    pub fn logs(&self) -> PathBuf {
        self.home.join("logs")
    }
    /// The settings file.
    pub fn settings(&self) -> PathBuf {
        self.config.join("config.toml")
    }
}

/// User settings (`config.toml`). Every field has a default; unknown fields are errors that name them.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Format version of this file.
    pub schema_version: u32,
    /// Jobs that may compute at the same time.
    pub concurrent_jobs: usize,
    /// Workbench theme: `auto`, `dark`, `light`, `mono`.
    pub theme: String,
    /// Key overrides: action name to key, such as `quit = "Q"`.
    pub keys: std::collections::BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { schema_version: 1, concurrent_jobs: 1, theme: "auto".into(), keys: Default::default() }
    }
}

impl Settings {
    /// Reads the settings file; defaults where there is none.
    pub fn load(path: &Path) -> Result<Settings> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::default()),
            Err(e) => return Err(Error::io("read settings", path, e)),
        };
        let settings: Settings = toml::from_str(&text).map_err(|e| {
            Error::usage("CONFIG", e.message().to_string())
                .file(path)
                .hint("correct the line or remove it; `tinsmith gen config` prints a template")
        })?;
        if settings.schema_version != 1 {
            return Err(Error::usage("CONFIG-VERSION", "settings of another version")
                .file(path)
                .field("schema_version")
                .found(settings.schema_version)
                .limit(1));
        }
        Ok(settings)
    }
}
