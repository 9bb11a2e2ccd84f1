//! The index under damage, competition and later versions.

use super::*;
use crate::evaluate::measurement::{Conditions, Interval, Latency};
use crate::jobs::event::Event;
use crate::jobs::log::Log;
use crate::jobs::{Request, submit};
use crate::plan::Recipe;
use std::fs;

pub(super) fn measurement(variant: &str, sha256: &str) -> Measurement {
    Measurement {
        schema_version: 1,
        variant: variant.into(),
        model_sha256: sha256.into(),
        path: "m.onnx".into(),
        parameters: 10,
        macs: 20,
        weight_bytes: 40,
        file_bytes: 50,
        peak_activation_bytes: 60,
        latency_ms: Some(Latency {
            p50: 1.5,
            p90: 2.0,
            p99: None,
            mean: 1.6,
            ci95: Interval { low: 1.4, high: 1.6 },
            n: 3,
            samples: vec![1.4, 1.5, 1.6],
        }),
        throughput_per_s: None,
        peak_rss_bytes: None,
        energy_j: None,
        quality: None,
        output_error: None,
        conditions: Conditions::default(),
        failures: vec![],
    }
}

fn home() -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::under(dir.path());
    for name in ["first", "second"] {
        submit(&paths, &Request::Run { recipe: Recipe::new(name, "m.onnx") }).unwrap();
    }
    (dir, paths)
}

fn add(job: &JobHandle, event: Event) {
    let mut log = Log::open(&job.dir, 0).unwrap();
    log.append(event).unwrap();
    log.commit().unwrap();
}

fn names(history: &History) -> Vec<String> {
    let mut names: Vec<_> = history.query(&Query::default()).unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    names
}

#[test]
fn only_changed_jobs_are_read_again() {
    let (_dir, paths) = home();
    let mut history = History::open(&paths).unwrap();
    assert_eq!(history.in_memory(), None);
    assert_eq!(history.sync(&paths).unwrap(), Synced { updated: 2, removed: 0 });
    assert_eq!(history.sync(&paths).unwrap(), Synced::default());
    let job = &jobs::list(&paths)[0];
    let figures = measurement("original", "aa");
    add(job, Event::Measurement { measurement: Box::new(figures.clone()) });
    add(job, Event::Finished);
    assert_eq!(history.sync(&paths).unwrap(), Synced { updated: 1, removed: 0 });
    let finished = Query { status: Some("finished".into()), ..Query::default() };
    let found = history.query(&finished).unwrap();
    assert_eq!((found.len(), found[0].id.as_str(), found[0].measurements), (1, job.id.as_str(), 1));
    assert_eq!(history.measurements("aa").unwrap(), [figures]);
    fs::remove_dir_all(&job.dir).unwrap();
    assert_eq!(history.sync(&paths).unwrap(), Synced { updated: 0, removed: 1 });
    assert!(history.measurements("aa").unwrap().is_empty());
}

#[test]
fn text_is_searched_as_text() {
    let (_dir, paths) = home();
    let history = sync(&paths).unwrap();
    let count =
        |text: &str| history.query(&Query { text: Some(text.into()), ..Query::default() }).unwrap().len();
    assert_eq!((count("FIRST"), count("m.onnx"), count("%"), count("' OR 1=1 --")), (1, 2, 0, 0));
}

#[test]
fn a_damaged_file_is_kept_aside_and_rebuilt() {
    let (dir, paths) = home();
    let path = dir.path().join(FILE);
    let whole = {
        sync(&paths).unwrap();
        fs::read(&path).unwrap()
    };
    let mut flipped = whole.clone();
    for i in (4000..flipped.len()).step_by(97) {
        flipped[i] ^= 0x5a;
    }
    let mut header = whole.clone();
    header[..100].fill(0xff);
    let cases: [(&[u8], bool); 5] = [
        (b"not a database, but long enough to be looked at as one by anybody who tries it out ....", true),
        (&flipped, true),
        (&header, true),
        (&whole[..whole.len() / 2], true),
        (b"", false),
    ];
    for (n, (content, kept)) in cases.into_iter().enumerate() {
        for entry in fs::read_dir(dir.path()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(FILE) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        fs::write(&path, content).unwrap();
        let history = sync(&paths).unwrap();
        assert_eq!(names(&history), ["first", "second"], "case {n}");
        assert_eq!(history.in_memory(), None, "case {n}");
        let bad = fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().contains(".bad-"))
            .count();
        assert_eq!(bad > 0, kept, "case {n}");
    }
}

#[test]
fn a_foreign_database_is_kept_and_a_later_version_refused() {
    let (dir, paths) = home();
    let path = dir.path().join(FILE);
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    assert_eq!(names(&sync(&paths).unwrap()), ["first", "second"]);
    assert!(
        fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains(".bad-"))
    );
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let e = History::open(&paths).unwrap_err();
    assert_eq!(e.kind().exit_code(), 4);
    assert!(e.to_string().contains("99"), "{e}");
    assert!(path.exists(), "and left as it is");
}

#[test]
fn a_file_that_cannot_be_used_is_replaced_by_memory() {
    let (dir, paths) = home();
    fs::create_dir(dir.path().join(FILE)).unwrap();
    let history = sync(&paths).unwrap();
    assert!(history.in_memory().is_some());
    assert_eq!(names(&history), ["first", "second"]);
}

#[test]
fn lost_and_stray_side_files_lose_no_job() {
    let (dir, paths) = home();
    let side = |suffix: &str| dir.path().join(format!("{FILE}{suffix}"));
    let open = sync(&paths).unwrap();
    let stray = fs::read(side("-wal")).unwrap();
    drop(open);
    fs::write(side("-wal"), &stray).unwrap();
    assert_eq!(names(&sync(&paths).unwrap()), ["first", "second"]);
    fs::write(side("-wal"), vec![7; 5000]).unwrap();
    fs::write(side("-shm"), "x").unwrap();
    assert_eq!(names(&sync(&paths).unwrap()), ["first", "second"]);
}

#[test]
fn many_at_once_see_no_lock_and_lose_nothing() {
    let (_dir, paths) = home();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let paths = &paths;
            scope.spawn(move || {
                for _ in 0..4 {
                    let mut history = History::open(paths).unwrap();
                    assert_eq!(history.in_memory(), None);
                    let job = &jobs::list(paths)[n % 2];
                    if n < 2 {
                        add(job, Event::Progress { done: 1 });
                    }
                    history.sync(paths).unwrap();
                }
            });
        }
    });
    assert_eq!(names(&sync(&paths).unwrap()), ["first", "second"]);
}

#[test]
fn the_library_has_the_write_ahead_log_repair() {
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

#[test]
fn what_was_tried_is_judged_by_whichever_job_measured_it() {
    let (dir, paths) = home();
    let model = dir.path().join("m.onnx");
    fs::write(&model, b"a model").unwrap();
    let (sha256, _) = crate::save::digest(&model).unwrap();
    let jobs = jobs::list(&paths);
    // The first job makes a model of the file, the second one measures both.
    let about = jobs[0].dir.join("job.json");
    let mut info: serde_json::Value = serde_json::from_slice(&fs::read(&about).unwrap()).unwrap();
    info["model_sha256"] = sha256.as_str().into();
    fs::write(&about, info.to_string()).unwrap();
    add(
        &jobs[0],
        Event::Artifact { name: "v".into(), path: "v.onnx".into(), sha256: "made".into(), bytes: 7 },
    );
    assert!(tried(&paths, &model, true).unwrap().is_empty(), "nothing is measured");
    let timed = |variant: &str, sha256: &str, ms: f64| {
        let samples: Vec<f64> = (0..40).map(|i| ms * (1.0 + 0.001 * f64::from(i % 7))).collect();
        let mut m = measurement(variant, sha256);
        m.latency_ms = Some(Latency { p50: ms, mean: ms, n: 40, samples, ..m.latency_ms.unwrap() });
        Event::Measurement { measurement: Box::new(m) }
    };
    let mut log = Log::open(&jobs[1].dir, 0).unwrap();
    log.append(timed("original", &sha256, 1.0)).unwrap();
    log.append(timed("variant", "made", 1.5)).unwrap();
    log.commit().unwrap();
    let found = tried(&paths, &model, true).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].job, jobs[1].id.to_string());
    assert!(found[0].against[0].contains("slower than original by +50"), "{:?}", found[0].against);
    // Elsewhere its speed is not this machine's.
    assert!(tried(&paths, &model, false).unwrap()[0].against.is_empty());
    fs::write(&model, b"another model").unwrap();
    assert!(tried(&paths, &model, true).unwrap().is_empty());
}
