//! The backend on this machine: files, jobs and the rooms above.

use super::app::{Control, Job, Liveness, Usage};
use super::backend::{Backend, Watch};
use super::map::Ran;
use super::plan::Ranked;
use super::quantised::Quantised;
use crate::analysis::diff::Diff;
use crate::analysis::{self, Summary};
use crate::compare::Comparison;
use crate::config::{Paths, Settings};
use crate::error::{Error, Kind, Result};
use crate::evaluate::generate::{GenerateOptions, Generated, generate};
use crate::evaluate::measurement::Measurement;
use crate::evaluate::tasks::Engine;
use crate::export;
use crate::hardware::Device;
use crate::history;
use crate::jobs::{self, JobHandle, JobState, Request, Status, Tail};
use crate::monitor::{Level, Monitor, Silent, Switch};
use crate::passes;
use crate::passes::prune::Criterion;
use crate::plan::study::{Forecast, Question, Session, Study};
use crate::plan::{self, DataSpec, DeviceFacts, Goal, Recipe};
use crate::runtime;
use crate::save;
use crate::tensor::Distribution;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Jobs that are followed, newest first.
const JOBS: usize = 500;
/// Jobs that have ended and are looked at again in one look.
const ENDED_PER_LOOK: usize = 40;
/// Models that are judged anew in one look.
const JUDGED_PER_LOOK: usize = 10;
/// Recent models that are kept.
const RECENT: usize = 20;
/// Paths that the open dialog gets at most.
const PATHS: usize = 200;

/// This machine.
pub(super) struct Local {
    paths: Paths,
    settings: Settings,
    /// Ends the analysis that is under way.
    analysis: Mutex<Arc<Switch>>,
    /// Newest request for the map, and what ends its work.
    studying: Mutex<(u64, Arc<Switch>)>,
    /// The model that was read for the map, and what it was read by.
    study: Mutex<Option<Studied>>,
}

struct Studied {
    path: PathBuf,
    criterion: Criterion,
    /// None where its process has ended.
    session: Option<Session>,
}

/// Tells a face how far the reading is, at most ten times a second, and hears when to stop.
struct Told<'a> {
    stop: &'a Switch,
    tell: &'a (dyn Fn(&str, u64, Option<u64>) + Sync),
    now: Mutex<(String, Option<u64>, Instant)>,
}

impl Monitor for Told<'_> {
    fn phase(&self, name: &str, total: Option<u64>) {
        *held(&self.now) = (name.to_string(), total, Instant::now());
        (self.tell)(name, 0, total);
    }
    fn progress(&self, done: u64) {
        let mut now = held(&self.now);
        if now.2.elapsed() > Duration::from_millis(100) {
            now.2 = Instant::now();
            (self.tell)(&now.0, done, now.1);
        }
    }
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.stop.stop_requested()
    }
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Serialize, Deserialize)]
struct Recent {
    schema_version: u32,
    models: Vec<PathBuf>,
}

impl Local {
    pub(super) fn new(paths: Paths, settings: Settings) -> Local {
        Local {
            paths,
            settings,
            analysis: Mutex::default(),
            studying: Mutex::default(),
            study: Mutex::default(),
        }
    }

    /// Stops the work for the map that older requests asked for; the switch of this one's.
    ///
    /// # Errors
    /// `Stopped` where a newer request came first.
    fn supersede(&self, generation: u64) -> Result<Arc<Switch>> {
        let mut now = held(&self.studying);
        if generation < now.0 {
            return Err(Error::stopped("STUDY-OLD", "a newer request came first"));
        }
        now.1.0.store(true, Ordering::Relaxed);
        *now = (generation, Arc::default());
        Ok(now.1.clone())
    }

    fn recent_file(&self) -> PathBuf {
        self.paths.home().join("recent.json")
    }

    fn recent(&self) -> Vec<PathBuf> {
        let text = std::fs::read(self.recent_file()).unwrap_or_default();
        serde_json::from_slice::<Recent>(&text)
            .ok()
            .filter(|r| r.schema_version == 1)
            .map(|r| r.models)
            .unwrap_or_default()
    }
}

impl Backend for Local {
    fn analyse(&self, path: &Path) -> Result<Summary> {
        let switch: Arc<Switch> = Arc::default();
        let before = std::mem::replace(&mut *held(&self.analysis), switch.clone());
        before.0.store(true, Ordering::Relaxed);
        analysis::summarize_in_child(path, &analysis::Options::default(), &*switch)
    }

    fn weight(&self, path: &Path, name: &str) -> Result<Distribution> {
        analysis::weight_in_child(path, name, &Silent)
    }

    fn diff(&self, before: &Path, after: &Path) -> Result<Diff> {
        analysis::diff_in_child(before, after, &analysis::Options::default(), &Silent)
    }

    fn say(
        &self,
        model: &Path,
        prompt: &str,
        most: usize,
        piece: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Generated> {
        let library = runtime::ensure(&self.paths, &Silent)?.library;
        let model = export::ready(model, &self.paths, &Silent)?;
        let options = GenerateOptions {
            max_tokens: most,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            ..GenerateOptions::new(prompt, Engine::OnnxRuntime(library))
        };
        generate(&model, &options, &Silent, piece)
    }

    fn study(
        &self,
        generation: u64,
        path: &Path,
        criterion: Criterion,
        tell: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<Study> {
        let stop = self.supersede(generation)?;
        let mut kept = held(&self.study);
        *kept = None;
        let now = Mutex::new((String::new(), None, Instant::now()));
        let (session, study) = Session::open(path, criterion, &Told { stop: &stop, tell, now })?;
        *kept = Some(Studied { path: path.to_path_buf(), criterion, session: Some(session) });
        Ok(study)
    }

    fn end_study(&self, generation: u64) {
        // A newer request does that itself.
        if self.supersede(generation).is_ok() {
            *held(&self.study) = None;
        }
    }

    fn foresee(&self, question: &Question) -> Result<Forecast> {
        let stop = held(&self.studying).1.clone();
        let mut kept = held(&self.study);
        let Some(studied) = kept.as_mut() else {
            return Err(Error::stopped("STUDY-GONE", "the model is not open any more"));
        };
        let mut session = match studied.session.take() {
            Some(session) => session,
            None => Session::open(&studied.path, studied.criterion, &*stop)?.0,
        };
        let answer = session.ask(question, &*stop);
        let gone = |e: &Error| matches!(e.kind(), Kind::Died | Kind::Limit | Kind::Stopped);
        if !answer.as_ref().is_err_and(gone) {
            studied.session = Some(session);
        }
        answer
    }

    fn ran(&self, job: &str) -> Result<Vec<Ran>> {
        let job = jobs::open(&self.paths, job)?;
        let Request::Run { recipe } = job.request()? else { return Ok(Vec::new()) };
        let variant = job.dir.join(Request::artifact_of(&recipe));
        let bytes = std::fs::metadata(&variant).map(|m| m.len());
        let variant = bytes.ok().map(|bytes| (variant, bytes));
        let mut out = Vec::new();
        for (step, of) in recipe.unrolled()?.iter().enumerate().filter(|(_, s)| s.pass == "prune") {
            let settings = passes::settings("prune", &of.settings)?;
            // A step that the run has not come to has no report.
            let Ok(report) = job.report(step, "prune") else { continue };
            out.push(Ran {
                job: job.id.to_string(),
                name: recipe.name.clone(),
                step,
                settings,
                report: Arc::new(report),
                variant: variant.clone(),
            });
        }
        Ok(out)
    }

    fn quantised(&self, job: &str) -> Result<Option<Quantised>> {
        let job = jobs::open(&self.paths, job)?;
        let Request::Run { recipe } = job.request()? else { return Ok(None) };
        let steps = recipe.unrolled()?;
        let Some(at) = steps.iter().position(|s| s.pass == "quantize") else { return Ok(None) };
        let settings = passes::settings("quantize", &steps[at].settings)?;
        if !job.report_path(at, "quantize").exists() {
            return Ok(None);
        }
        let report = job.report(at, "quantize")?;
        Ok(Some(Quantised::new(job.id.as_str(), recipe, &settings, report)))
    }

    fn devices(&self) -> Result<Vec<String>> {
        let profiles = Device::all(&self.paths)?;
        Ok(std::iter::once("host".into()).chain(profiles.into_iter().map(|d| d.name)).collect())
    }

    fn recommend(
        &self,
        summary: &Summary,
        path: &Path,
        goal: &Goal,
        data: &DataSpec,
        measured_ms: Option<f64>,
    ) -> Result<Ranked> {
        let device = Device::named(goal.device.as_deref().unwrap_or("host"), &self.paths)?;
        let recommendation = plan::recommend(&plan::Question {
            summary,
            model: &path.to_string_lossy(),
            device: &DeviceFacts::from(&device),
            goal,
            data,
            measured_ms: measured_ms.filter(|_| device.name == "host"),
            tried: &history::tried(&self.paths, path, device.name == "host")?,
            seed: 0,
        });
        Ok(Ranked { device, recommendation })
    }

    fn compare(&self, measurements: &[Measurement], baseline: usize, goal: &Goal) -> Result<Comparison> {
        let name = measurements.get(baseline).map(|m| m.variant.as_str());
        let margin = goal.max_quality_drop.unwrap_or(crate::compare::DEFAULT_MARGIN);
        crate::compare::compare(measurements, name, goal, margin)
    }

    fn submit(&self, recipe: &Recipe) -> Result<String> {
        let id = jobs::submit(&self.paths, &Request::Run { recipe: recipe.clone() })?;
        jobs::dispatch(&self.paths, &self.settings)?;
        Ok(id.to_string())
    }

    fn control(&self, id: &str, control: Control) -> Result<()> {
        let job = jobs::open(&self.paths, id)?;
        match control {
            Control::Cancel => jobs::cancel(&job),
            Control::Pause => jobs::pause(&job),
            Control::Resume => {
                jobs::resume(&job)?;
                jobs::dispatch(&self.paths, &self.settings).map(|_| ())
            }
            Control::Delete => jobs::delete(&self.paths, &job),
        }
    }

    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Follow::new(self.paths.clone(), self.settings.clone()))
    }

    fn find_models(&self, typed: &str) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let mut add = |path: String| {
            if out.len() < PATHS && !out.contains(&path) {
                out.push(path);
            }
        };
        let recent = self.recent();
        let show = |p: &Path| p.to_string_lossy().into_owned();
        if typed.is_empty() {
            for path in recent.iter().filter(|p| p.exists()) {
                add(show(path));
            }
            let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
            for (root, depth) in [(here, 1), (self.paths.models(), 3)] {
                for path in models_under(&root, depth) {
                    add(show(&path));
                }
            }
            return out;
        }
        let expanded = match (typed.strip_prefix("~/"), std::env::var_os("HOME")) {
            (Some(rest), Some(home)) => show(&Path::new(&home).join(rest)),
            _ => typed.to_string(),
        };
        let (dir, start) = match expanded.rfind('/') {
            Some(at) => (&expanded[..=at], &expanded[at + 1..]),
            None => ("", expanded.as_str()),
        };
        let start = start.to_lowercase();
        let entries = std::fs::read_dir(if dir.is_empty() { "." } else { dir });
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .take(20_000)
            .filter_map(|e| {
                let name = e.file_name().to_string_lossy().into_owned();
                let hidden = name.starts_with('.') && !start.starts_with('.');
                if hidden || !name.to_lowercase().starts_with(&start) {
                    return None;
                }
                if e.path().is_dir() {
                    Some(format!("{dir}{name}/"))
                } else {
                    is_model(&name).then(|| format!("{dir}{name}"))
                }
            })
            .collect();
        names.sort_by(|a, b| (a.ends_with('/'), a).cmp(&(b.ends_with('/'), b)));
        names.into_iter().for_each(&mut add);
        let needle = typed.to_lowercase();
        for path in recent.iter().map(|p| show(p)).filter(|p| p.to_lowercase().contains(&needle)) {
            add(path);
        }
        out
    }

    fn remember(&self, path: &Path) {
        let Ok(path) = std::path::absolute(path) else { return };
        let mut models = self.recent();
        models.retain(|p| *p != path);
        models.insert(0, path);
        models.truncate(RECENT);
        // A list of recent files is not worth a complaint.
        if std::fs::create_dir_all(self.paths.home()).is_ok() {
            let _ = save::json(&self.recent_file(), &Recent { schema_version: 1, models });
        }
    }

    fn export(&self, name: &str, text: &str) -> Result<PathBuf> {
        let (stem, extension) = name.split_once('.').unwrap_or((name, "txt"));
        for n in 1..1000 {
            let candidate = if n == 1 { name.to_string() } else { format!("{stem}-{n}.{extension}") };
            let path = PathBuf::from(&candidate);
            match std::fs::read(&path) {
                Ok(old) if old == text.as_bytes() => return Ok(path),
                Ok(_) => continue,
                Err(_) => {
                    save::bytes(&path, text.as_bytes())?;
                    return Ok(path);
                }
            }
        }
        Err(Error::storage("EXPORT", "no name is free").file(name).hint("remove earlier exports"))
    }

    fn read_only(&self) -> bool {
        let mut dir = self.paths.home();
        while !dir.exists() {
            match dir.parent() {
                Some(parent) => dir = parent,
                None => return true,
            }
        }
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err()
    }

    fn machine(&self) -> String {
        jobs::clock::host()
    }

    fn clock(&self) -> u64 {
        jobs::clock::wall_ms()
    }
}

fn is_model(name: &str) -> bool {
    let lower = name.to_lowercase();
    [".onnx", ".gguf", ".safetensors"].iter().any(|e| lower.ends_with(e))
}

/// Model files below a directory, by name; bounded in depth and number.
fn models_under(root: &Path, depth: usize) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut stack = vec![(root.to_path_buf(), depth)];
    let mut seen = 0;
    while let Some((dir, depth)) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            seen += 1;
            if seen > 5000 || out.len() >= PATHS {
                break;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type() {
                Ok(t) if t.is_dir() && depth > 1 && !name.starts_with('.') => {
                    stack.push((entry.path(), depth - 1));
                }
                Ok(t) if !t.is_dir() && is_model(&name) => out.push(entry.path()),
                _ => {}
            }
        }
    }
    out.sort();
    out
}

struct Followed {
    handle: JobHandle,
    model: PathBuf,
    state: Arc<JobState>,
    tail: Tail,
    liveness: Liveness,
    pid: Option<u32>,
}

/// Follows all jobs.
struct Follow {
    paths: Paths,
    settings: Settings,
    jobs: HashMap<String, Followed>,
    next_ended: usize,
    dispatched: Option<Instant>,
    system: Option<sysinfo::System>,
    last: Option<Vec<Job>>,
    verdicts: Verdicts,
}

impl Follow {
    fn new(paths: Paths, settings: Settings) -> Follow {
        Follow {
            paths,
            settings,
            jobs: HashMap::new(),
            next_ended: 0,
            dispatched: None,
            system: sysinfo::System::new().ok(),
            last: None,
            verdicts: Verdicts::default(),
        }
    }

    fn usage(&mut self, pids: &[u32]) {
        let pids: Vec<sysinfo::Pid> = pids.iter().map(|p| sysinfo::Pid::from_u32(*p)).collect();
        let Some(system) = self.system.as_mut().filter(|_| !pids.is_empty()) else { return };
        let what = sysinfo::ProcessRefreshKind::nothing().with_cpu().with_memory();
        let _ = system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&pids), true, what);
        system.refresh_memory();
    }
}

impl Watch for Follow {
    fn poll(&mut self) -> Option<Vec<Job>> {
        // Every face that looks gives waiting jobs their turn.
        if self.dispatched.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
            self.dispatched = Some(Instant::now());
            let _ = jobs::dispatch(&self.paths, &self.settings);
        }
        let mut handles = jobs::list(&self.paths);
        handles.drain(..handles.len().saturating_sub(JOBS));
        self.jobs.retain(|id, _| handles.iter().any(|h| h.id.as_str() == id));
        let ended: Vec<String> = handles
            .iter()
            .filter(|h| self.jobs.get(h.id.as_str()).is_some_and(|f| f.state.status.is_final()))
            .map(|h| h.id.to_string())
            .collect();
        let turn: Vec<String> = ended
            .iter()
            .cycle()
            .skip(self.next_ended % ended.len().max(1))
            .take(ENDED_PER_LOOK.min(ended.len()))
            .cloned()
            .collect();
        self.next_ended = self.next_ended.wrapping_add(ENDED_PER_LOOK);
        for handle in &handles {
            let id = handle.id.as_str();
            let Some(job) = self.jobs.get_mut(id) else {
                let (state, tail) = handle.follow();
                let directory = handle.info().map(|i| i.directory).unwrap_or_default();
                let mut job = Followed {
                    handle: handle.clone(),
                    model: directory.join(&state.model),
                    state: Arc::new(state),
                    tail,
                    liveness: Liveness::Fine,
                    pid: None,
                };
                judge(&mut job);
                self.jobs.insert(id.to_string(), job);
                continue;
            };
            if job.state.status.is_final() && !turn.iter().any(|t| t == id) {
                continue;
            }
            read(job);
            judge(job);
        }
        // Jobs are listed before any is judged.
        if self.last.is_some() {
            self.verdicts.refresh(handles.iter().rev().filter_map(|h| self.jobs.get(h.id.as_str())));
        }
        let pids: Vec<u32> = self.jobs.values().filter_map(|j| j.pid).collect();
        self.usage(&pids);
        let memory = self.system.as_ref().map_or(0, sysinfo::System::total_memory);
        let all: Vec<Job> = handles
            .iter()
            .filter_map(|h| self.jobs.get(h.id.as_str()))
            .map(|f| Job {
                id: f.handle.id.to_string(),
                dir: f.handle.dir.clone(),
                model: f.model.clone(),
                state: f.state.clone(),
                liveness: f.liveness,
                against: self.verdicts.get(f.handle.id.as_str()).cloned().unwrap_or_default(),
                usage: f
                    .pid
                    .and_then(|p| self.system.as_ref()?.process(sysinfo::Pid::from_u32(p)))
                    .map(|p| Usage { rss: p.memory(), memory, cpu: f64::from(p.cpu_usage()).round() }),
            })
            .collect();
        if self.last.as_ref() == Some(&all) {
            return None;
        }
        self.last = Some(all.clone());
        Some(all)
    }
}

/// What measurements of all jobs say against the models that jobs made.
#[derive(Default)]
struct Verdicts {
    /// By job that made a model: the jobs that measured it with the number of their figures, and what they say.
    known: HashMap<String, (Vec<(String, usize)>, Vec<String>)>,
}

impl Verdicts {
    /// Judges anew where more was measured; `jobs` are newest first.
    fn refresh<'a>(&mut self, jobs: impl Iterator<Item = &'a Followed>) {
        let jobs: Vec<&Followed> = jobs.collect();
        let mut left = JUDGED_PER_LOOK;
        self.known.retain(|id, _| jobs.iter().any(|j| j.handle.id.as_str() == id));
        let measured: Vec<&&Followed> = jobs.iter().filter(|j| !j.state.measurements.is_empty()).collect();
        for job in &jobs {
            let Some(made) = job.state.artifacts.last().filter(|_| job.state.status == Status::Finished)
            else {
                continue;
            };
            let about = |j: &&&&Followed| j.state.measurements.iter().any(|m| m.model_sha256 == made.sha256);
            let about: Vec<&&&Followed> = measured.iter().filter(about).collect();
            let by: Vec<(String, usize)> =
                about.iter().map(|j| (j.handle.id.to_string(), j.state.measurements.len())).collect();
            let id = job.handle.id.as_str();
            if self.known.get(id).is_none_or(|k| k.0 != by) {
                if left == 0 {
                    continue;
                }
                left -= 1;
                let judged: Vec<history::Judged> = about
                    .iter()
                    .flat_map(|j| history::judge(&j.handle, &j.state.measurements, &made.sha256))
                    .collect();
                self.known.insert(id.to_string(), (by, history::against(&judged, true)));
            }
        }
    }

    fn get(&self, job: &str) -> Option<&Vec<String>> {
        Some(&self.known.get(job)?.1)
    }
}

fn read(job: &mut Followed) {
    let mut records = job.tail.poll();
    while !records.is_empty() {
        let state = Arc::make_mut(&mut job.state);
        for record in &records {
            state.apply(record);
        }
        if job.tail.is_caught_up() {
            break;
        }
        records = job.tail.poll();
    }
}

fn judge(job: &mut Followed) {
    job.pid = None;
    job.liveness = Liveness::Fine;
    if job.state.status.is_final() || job.state.status == Status::Queued {
        return;
    }
    let seen = job.handle.status();
    job.pid = seen.pid;
    job.liveness = match seen.stalled_ms {
        Some(ms) => Liveness::Stalled(ms / 1000),
        None if seen.status == Status::Dead => Liveness::Gone,
        None => Liveness::Fine,
    };
    read(job);
}
