//! One package file through the client it belongs to, checked against its pinned digest.

use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::{save, text};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Which of a project's wheels is meant. Pinned, so that the digest does not depend on the Python
/// that happens to run the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wheel {
    /// Platform tag; any when empty.
    pub platform: &'static str,
    /// Python version of a wheel with native code (`3.11`); any when empty.
    pub python: &'static str,
}

impl Wheel {
    /// The wheel for every system.
    pub const ANY: Wheel = Wheel { platform: "", python: "" };
    /// The wheel for Linux on x86-64 and Python 3.11.
    pub const LINUX_X86_64: Wheel = Wheel { platform: "manylinux_2_28_x86_64", python: "3.11" };
}

/// Package client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// `python3 -m pip download --no-deps`
    Pip(Wheel),
    /// `npm pack`
    Npm,
}

/// A pinned package file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    /// Client.
    pub client: Client,
    /// Package name.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// SHA-256 of the package file in hexadecimal.
    pub sha256: &'static str,
}

/// Longest time without the client ending.
const LONGEST: Duration = Duration::from_secs(1800);

impl Package {
    /// `name version (client)`.
    pub fn version(&self) -> String {
        let client = match self.client {
            Client::Pip(_) => "pip",
            Client::Npm => "npm",
        };
        format!("{} {} ({client})", self.name, self.version)
    }

    fn command(&self, into: &Path) -> (Command, &'static str, &'static str) {
        match self.client {
            Client::Pip(wheel) => {
                let mut command = Command::new("python3");
                command
                    .args(["-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"])
                    .args(["--only-binary=:all:", "--dest"])
                    .arg(into);
                if !wheel.platform.is_empty() {
                    command.args(["--platform", wheel.platform, "--implementation", "cp"]);
                    command.args(["--python-version", wheel.python]);
                    command.args(["--abi", &format!("cp{}", wheel.python.replace('.', ""))]);
                    command.args(["--abi", "none"]);
                }
                command.arg(format!("{}=={}", self.name, self.version));
                (command, "python3 -m pip", "install Python 3 with pip, or check the network")
            }
            Client::Npm => {
                let mut command = Command::new("npm");
                command
                    .args(["pack", "--silent", "--ignore-scripts", "--pack-destination"])
                    .arg(into)
                    .arg(format!("{}@{}", self.name, self.version));
                (command, "npm", "install Node.js with npm, or check the network")
            }
        }
    }
}

/// Downloads `package` into the directory `into`, which is created, and returns the file. The bytes
/// received so far go to `monitor` as progress.
///
/// # Errors
/// `Storage` where the client is missing, fails or takes more than half an hour; `Integrity` where
/// the file is not the pinned one (it is removed); `Stopped` when asked.
pub fn download(package: &Package, into: &Path, monitor: &dyn Monitor) -> Result<PathBuf> {
    let into = into.join("package");
    std::fs::create_dir_all(&into).map_err(|e| Error::io("create a directory", &into, e))?;
    monitor.phase(&format!("download {}", package.version()), None);
    let (mut command, client, hint) = package.command(&into);
    let failed = |what: String| {
        Error::storage(
            "FETCH-CLIENT",
            format!("{client} could not get {} {}: {what}", package.name, package.version),
        )
        .hint(hint)
    };
    let mut child = command
        .current_dir(&into)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        if let Some(pipe) = stderr.as_mut() {
            let mut bytes = Vec::new();
            let _ = pipe.take(64 << 10).read_to_end(&mut bytes);
            let _ = std::io::copy(pipe, &mut std::io::sink());
            said = String::from_utf8_lossy(&bytes).into_owned();
        }
        said
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        let fault = match monitor.check() {
            Err(stop) => Some(stop),
            Ok(()) if start.elapsed() > LONGEST => Some(failed("it took too long".into())),
            Ok(()) => None,
        };
        if let Some(fault) = fault {
            let _ = child.kill();
            let _ = child.wait();
            return Err(fault);
        }
        monitor.progress(received(&into));
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = said.join().unwrap_or_default();
    if !status.success() {
        let reason =
            said.lines().rev().find(|l| l.to_ascii_lowercase().contains("err")).or(said.lines().last());
        return Err(failed(text::clean(reason.unwrap_or("it gave no reason"), 300)));
    }
    let file = std::fs::read_dir(&into)
        .map_err(|e| Error::io("list", &into, e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|p| p.is_file())
        .ok_or_else(|| failed("it left no file".into()))?;
    let (digest, _) = save::digest(&file)?;
    if digest != package.sha256 {
        let _ = std::fs::remove_file(&file);
        return Err(Error::integrity("FETCH-DIGEST", "the downloaded package is not the expected one")
            .file(file.file_name().unwrap_or_default())
            .found(digest)
            .limit(package.sha256)
            .hint("check which package index the client uses; a newer tinsmith may know a newer package"));
    }
    Ok(file)
}

fn received(directory: &Path) -> u64 {
    let sizes = std::fs::read_dir(directory).into_iter().flatten().flatten();
    sizes.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}
