//! Installs the pinned library from its Python wheel: checked, complete or absent, once at a time.

use super::locate::{Library, Origin, library_in};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::fetch::{
    Client, Fetched, Lock, Package, Rule, UnpackLimits, Wheel, download, is_current, publish, unpack,
};
use crate::monitor::{Level, Monitor};
use std::path::{Path, PathBuf};

/// The version that is installed.
pub const VERSION: &str = "1.32.0";

/// The wheel for this platform.
fn package() -> Option<Package> {
    let (platform, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => {
            ("manylinux_2_28_x86_64", "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d")
        }
        ("linux", "aarch64") => {
            ("manylinux_2_28_aarch64", "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c")
        }
        ("macos", "aarch64") => {
            ("macosx_14_0_arm64", "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c")
        }
        ("windows", "x86_64") => {
            ("win_amd64", "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72")
        }
        _ => return None,
    };
    Some(Package {
        client: Client::Pip(Wheel { platform, python: "3.11" }),
        name: "onnxruntime",
        version: VERSION,
        sha256,
    })
}

/// The installed library with the newest version.
pub(super) fn installed(runtimes: &Path) -> Option<PathBuf> {
    let mut found: Vec<(Vec<u64>, PathBuf)> = std::fs::read_dir(runtimes)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|dir| {
            let name = dir.file_name()?.to_str()?;
            let version = name.split('.').map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>()?;
            Some((version, library_in(&dir)?))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path)
}

/// Installs the pinned version below `$TINSMITH_HOME/runtimes`, or finds it there.
///
/// # Errors
/// `Unsupported` where no wheel exists for this platform; otherwise those of
/// [`crate::fetch::download`] and [`crate::fetch::unpack`].
pub fn install(paths: &Paths, monitor: &dyn Monitor) -> Result<Library> {
    let package = package().ok_or_else(|| {
        Error::unsupported("ORT-PLATFORM", "no ONNX Runtime package is known for this platform")
            .found(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))
            .hint("build or install ONNX Runtime and set TINSMITH_ORT_DYLIB to its library")
    })?;
    let runtimes = paths.runtimes();
    let done = |fetched: &Fetched| {
        library_in(&fetched.dir).map(|path| Library { path, origin: Origin::Installed }).ok_or_else(|| {
            Error::integrity("ORT-WHEEL", "the package holds no library")
                .file(&fetched.dir)
                .hint("report this as a bug")
        })
    };
    if let Some(found) = is_current(&runtimes, VERSION, package.sha256) {
        return done(&found);
    }
    let _lock = Lock::acquire(&runtimes, VERSION, monitor)?;
    if let Some(found) = is_current(&runtimes, VERSION, package.sha256) {
        return done(&found);
    }
    monitor.log(Level::Info, &format!("installing ONNX Runtime {VERSION} (28 MB, MIT licence)"));
    let work = tempfile::Builder::new()
        .prefix(".install.")
        .tempdir_in(&runtimes)
        .map_err(|e| Error::io("create a directory", &runtimes, e))?;
    let wheel = download(&package, work.path(), monitor)?;
    let contents = work.path().join("contents");
    let rules = [
        Rule::directory("onnxruntime/capi/libonnxruntime.", "libonnxruntime."),
        Rule::file("onnxruntime/capi/onnxruntime.dll", "onnxruntime.dll"),
        Rule::file("onnxruntime/LICENSE", "LICENSE"),
    ];
    monitor.phase("unpack ONNX Runtime", None);
    unpack(&wheel, &rules, &contents, &UnpackLimits { file: 1 << 30, ..UnpackLimits::default() }, monitor)?;
    let fetched = Fetched {
        schema_version: 1,
        name: VERSION.into(),
        version: package.version(),
        package_sha256: package.sha256.into(),
        licence: "MIT".into(),
        dir: runtimes.join(VERSION),
        files: Vec::new(),
    };
    done(&publish(fetched, &contents, monitor)?)
}
