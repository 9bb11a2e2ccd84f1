//! How often two models of the next token find the same one most likely, on rows of token ids.

use super::runner::{self, Runner};
use super::{Engine, lm};
use crate::child::{Child, Handler, Limits, Link};
use crate::error::Result;
use crate::monitor::Monitor;
use crate::runtime::SessionOptions;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const KIND: &str = "evaluate.agree";
/// Longest time.
const WALL: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
struct Question {
    models: [PathBuf; 2],
    rows: Vec<Vec<u32>>,
    engine: Engine,
    threads: usize,
}

/// Part of the positions of `rows` behind which both models find the same token most likely; in a child process.
///
/// # Errors
/// Those of opening and running the models; `Usage` where one predicts no tokens; `Died` where the child did.
pub fn agreement(
    models: [&Path; 2],
    rows: Vec<Vec<u32>>,
    engine: Engine,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<f64> {
    let mut child = Child::start(KIND, &Limits { wall: WALL, ..Limits::default() })?;
    let question = Question { models: models.map(Path::to_path_buf), rows, engine, threads };
    let answer = child.ask(&question, monitor, &mut |_| Ok(()))?;
    child.finish();
    Ok(answer)
}

/// Serves [`agreement`].
pub(in crate::evaluate) fn handler() -> Handler {
    Handler::new(KIND, |question: Question, link: &Link| run(&question, link))
}

fn run(question: &Question, monitor: &dyn Monitor) -> Result<f64> {
    let session =
        SessionOptions { threads: question.threads, memory_pattern: false, ..SessionOptions::default() };
    let open = |path: &PathBuf| runner::open(path, &question.engine, &session);
    let mut models = question.models.iter().map(open).collect::<Result<Vec<_>>>()?;
    let (mut same, mut all) = (0, 0);
    for ids in &question.rows {
        monitor.check()?;
        let mut tops = models.iter_mut().map(|m| tops(m.as_mut(), ids));
        if let (Some(a), Some(b)) = (tops.next().transpose()?, tops.next().transpose()?) {
            same += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            all += a.len();
        }
    }
    Ok(same as f64 / all.max(1) as f64)
}

/// The most likely token behind each position.
fn tops(model: &mut dyn Runner, ids: &[u32]) -> Result<Vec<usize>> {
    let (logits, width) = lm::logits(model, ids)?;
    let logits = logits.to_f32s()?;
    let top = |row: &[f32]| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(i, _)| i)
    };
    Ok(logits.chunks(width.max(1)).map(top).collect())
}
