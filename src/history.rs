//! History: a SQLite index over the job directories, for questions that reach over many jobs, and
//! baselines as files. Job directories enter, rows leave. The directories are the truth: the index is
//! rebuilt whenever it is missing or damaged, and lives in memory where its file cannot be used.

pub mod baselines;
mod index;
mod judged;

pub use judged::{Judged, against, judge, percent, tried};

use crate::config::Paths;
use crate::error::Result;
use crate::evaluate::measurement::Measurement;
use crate::jobs::{self, JobHandle, JobId, JobState};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// File name in the home directory.
pub const FILE: &str = "history.db";

/// An open index.
#[derive(Debug)]
pub struct History {
    connection: Connection,
    path: PathBuf,
    in_memory: Option<String>,
}

/// What [`History::sync`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// Jobs whose rows were written.
    pub updated: usize,
    /// Jobs that are gone.
    pub removed: usize,
}

/// Which jobs to show. Missing conditions do not bind.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Query {
    /// Part of the name, the model's path or the id.
    pub text: Option<String>,
    /// Status word.
    pub status: Option<String>,
    /// Sort of job.
    pub what: Option<String>,
    /// SHA-256 of the input model.
    pub model_sha256: Option<String>,
    /// Created at this wall time (ms) or later.
    pub since_ms: Option<u64>,
    /// Most rows; 0 for all.
    pub limit: usize,
}

/// One job of the index.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Id.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Sort of job.
    pub what: String,
    /// Input model.
    pub model: String,
    /// SHA-256 of the input model, once known.
    pub model_sha256: Option<String>,
    /// Status word, as of the last sync.
    pub status: String,
    /// Why it paused, failed or died.
    pub reason: Option<String>,
    /// Wall time of creation, ms.
    pub created_ms: u64,
    /// Wall time of the last event, ms.
    pub updated_ms: u64,
    /// Produced files.
    pub artifacts: u64,
    /// Figures measured.
    pub measurements: u64,
}

impl History {
    /// Opens the index of this home, making, migrating or rebuilding it as needed. A damaged file is
    /// kept as `history.db.bad-TIME`. A file that cannot be written or locked is replaced by an index
    /// in memory, [`History::in_memory`] says why.
    ///
    /// # Errors
    /// `Unsupported` where a later version of this program made the file.
    pub fn open(paths: &Paths) -> Result<History> {
        let path = paths.home().join(FILE);
        let (connection, in_memory) = index::open(&path)?;
        Ok(History { connection, path, in_memory })
    }

    /// Why the index lives in memory, if it does.
    pub fn in_memory(&self) -> Option<&str> {
        self.in_memory.as_deref()
    }

    /// Takes in what changed in the job directories since the last time, in one transaction. Jobs whose
    /// log did not change are not read.
    pub fn sync(&mut self, paths: &Paths) -> Result<Synced> {
        let fail = |e| index::failed(&self.path, e);
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(fail)?;
        let mut synced = Synced::default();
        let mut known = BTreeSet::new();
        {
            let mut ids = transaction.prepare("SELECT id FROM jobs").map_err(fail)?;
            let rows = ids.query_map([], |r| r.get::<_, String>(0)).map_err(fail)?;
            for id in rows {
                known.insert(id.map_err(fail)?);
            }
        }
        for job in jobs::list(paths) {
            known.remove(job.id.as_str());
            let stamp = stamp(&job);
            let before: Option<String> = transaction
                .query_row("SELECT stamp FROM jobs WHERE id = ?1", [job.id.as_str()], |r| r.get(0))
                .optional()
                .map_err(fail)?;
            if before.as_deref() != Some(stamp.as_str()) {
                store(&transaction, &job, &stamp).map_err(fail)?;
                synced.updated += 1;
            }
        }
        for id in known {
            transaction.execute("DELETE FROM jobs WHERE id = ?1", [&id]).map_err(fail)?;
            synced.removed += 1;
        }
        transaction.commit().map_err(fail)?;
        Ok(synced)
    }

    /// Jobs that match, newest first.
    pub fn query(&self, query: &Query) -> Result<Vec<Entry>> {
        let fail = |e| index::failed(&self.path, e);
        let sql = "SELECT id, name, what, model, model_sha256, status, reason, created_ms, updated_ms,
                (SELECT count(*) FROM artifacts WHERE job = id),
                (SELECT count(*) FROM measurements WHERE job = id)
            FROM jobs WHERE (?1 IS NULL OR instr(lower(name || ' ' || model || ' ' || id), lower(?1)) > 0)
                AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR what = ?3)
                AND (?4 IS NULL OR model_sha256 = ?4) AND created_ms >= ?5
            ORDER BY id DESC LIMIT ?6";
        let limit = if query.limit == 0 { -1 } else { i64::try_from(query.limit).unwrap_or(i64::MAX) };
        let since = i64::try_from(query.since_ms.unwrap_or(0)).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(sql).map_err(fail)?;
        let rows = statement
            .query_map(params![query.text, query.status, query.what, query.model_sha256, since, limit], |r| {
                Ok(Entry {
                    id: r.get(0)?,
                    name: r.get(1)?,
                    what: r.get(2)?,
                    model: r.get(3)?,
                    model_sha256: r.get(4)?,
                    status: r.get(5)?,
                    reason: r.get(6)?,
                    created_ms: r.get::<_, i64>(7)?.unsigned_abs(),
                    updated_ms: r.get::<_, i64>(8)?.unsigned_abs(),
                    artifacts: r.get::<_, i64>(9)?.unsigned_abs(),
                    measurements: r.get::<_, i64>(10)?.unsigned_abs(),
                })
            })
            .map_err(fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(fail)
    }

    /// The jobs that made a file of this content and those that measured it, newest first.
    pub fn jobs_about(&self, sha256: &str) -> Result<Vec<JobId>> {
        let fail = |e| index::failed(&self.path, e);
        let sql = "SELECT job FROM artifacts WHERE sha256 = ?1
            UNION SELECT job FROM measurements WHERE model_sha256 = ?1 ORDER BY 1 DESC";
        let mut statement = self.connection.prepare_cached(sql).map_err(fail)?;
        let rows = statement.query_map([sha256], |r| r.get::<_, String>(0)).map_err(fail)?;
        let ids = rows.collect::<rusqlite::Result<Vec<String>>>().map_err(fail)?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Everything that was ever measured of a model file, oldest first, raw samples included.
    pub fn measurements(&self, model_sha256: &str) -> Result<Vec<Measurement>> {
        let fail = |e| index::failed(&self.path, e);
        let sql = "SELECT json FROM measurements WHERE model_sha256 = ?1 ORDER BY job, position";
        let mut statement = self.connection.prepare_cached(sql).map_err(fail)?;
        let rows = statement.query_map([model_sha256], |r| r.get::<_, String>(0)).map_err(fail)?;
        let texts = rows.collect::<rusqlite::Result<Vec<String>>>().map_err(fail)?;
        // A row that this version cannot read is left out; the job directory still has it.
        Ok(texts.iter().filter_map(|t| serde_json::from_str(t).ok()).collect())
    }
}

/// Opens the index and brings it up to date.
pub fn sync(paths: &Paths) -> Result<History> {
    let mut history = History::open(paths)?;
    history.sync(paths)?;
    Ok(history)
}

/// Changes whenever the log or the description of a job does.
fn stamp(job: &JobHandle) -> String {
    let part = |name: &str| {
        std::fs::metadata(job.dir.join(name))
            .map(|m| format!("{}:{}.{}", m.len(), m.mtime(), m.mtime_nsec()))
            .unwrap_or_default()
    };
    format!("{} {}", part(jobs::log::FILE), part("job.json"))
}

fn store(transaction: &rusqlite::Transaction<'_>, job: &JobHandle, stamp: &str) -> rusqlite::Result<()> {
    let state: JobState = job.state();
    let info = job.info().ok();
    let id = job.id.as_str();
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    transaction.execute("DELETE FROM jobs WHERE id = ?1", [id])?;
    transaction.execute(
        "INSERT INTO jobs (id, name, what, model, model_sha256, status, reason, created_ms, updated_ms, stamp)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            id,
            state.name,
            state.what,
            state.model,
            info.and_then(|i| i.model_sha256),
            state.status.word(),
            state.reason,
            number(state.created_ms),
            number(state.updated_ms),
            stamp
        ],
    )?;
    for made in &state.artifacts {
        transaction.execute(
            "INSERT OR REPLACE INTO artifacts (job, name, path, sha256, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, made.name, made.path, made.sha256, number(made.bytes)],
        )?;
    }
    for (position, measured) in state.measurements.iter().enumerate() {
        let Ok(json) = serde_json::to_string(measured) else { continue };
        transaction.execute(
            "INSERT INTO measurements (job, position, variant, model_sha256, json) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, number(position as u64), measured.variant, measured.model_sha256, json],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
