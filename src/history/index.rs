//! The database file: opening, checking, migrating, setting aside. Knows the tables, no job.

use crate::error::{Error, Result};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version of the tables (`user_version`).
pub(super) const VERSION: i64 = 1;
/// Marks the file as ours (`application_id`): "Tsmh".
const APPLICATION: i64 = 0x5473_6d68;
/// How long to wait for others that write.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLES: &str = "
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, what TEXT NOT NULL, model TEXT NOT NULL,
        model_sha256 TEXT, status TEXT NOT NULL, reason TEXT,
        created_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL, stamp TEXT NOT NULL) STRICT;
    CREATE INDEX jobs_by_model ON jobs (model_sha256);
    CREATE TABLE artifacts (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        name TEXT NOT NULL, path TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (job, path)) STRICT;
    CREATE TABLE measurements (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        position INTEGER NOT NULL, variant TEXT NOT NULL, model_sha256 TEXT NOT NULL, json TEXT NOT NULL,
        PRIMARY KEY (job, position)) STRICT;
    CREATE INDEX measurements_by_model ON measurements (model_sha256);
";

/// What to do after a database error.
enum Cure {
    /// The file is damaged or not ours: set it aside and begin anew.
    Rebuild,
    /// The file cannot be used here: work in memory.
    Memory,
    /// Tell the person.
    Fail,
}

fn cure(error: &rusqlite::Error) -> Cure {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Cure::Rebuild,
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::NoLargeFileSupport
            | ErrorCode::DiskFull
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked,
        ) => Cure::Memory,
        _ => Cure::Fail,
    }
}

/// A database error as an error of the house.
pub(super) fn failed(path: &Path, error: rusqlite::Error) -> Error {
    let made = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::busy("HISTORY-BUSY", "the history is written by somebody else")
                .hint("try again in a moment")
        }
        _ => Error::storage("HISTORY", format!("the history failed: {error}"))
            .hint("jobs are not affected; remove the file to have it rebuilt"),
    };
    made.file(path).source(error)
}

/// The connection, and why it is in memory if it is.
pub(super) fn open(path: &Path) -> Result<(Connection, Option<String>)> {
    if let Some(parent) = path.parent() {
        let _ = fs::create_dir_all(parent);
    }
    let mut rebuilt = false;
    let until = Instant::now() + PATIENCE;
    loop {
        match connect(path) {
            Ok(connection) => return Ok((connection, None)),
            Err(Trouble::Newer(found)) => {
                return Err(Error::unsupported(
                    "HISTORY-VERSION",
                    "a later version of this program wrote this",
                )
                .file(path)
                .field("user_version")
                .found(found)
                .limit(VERSION)
                .hint("use that version, or move the file away to have it rebuilt"));
            }
            Err(Trouble::Foreign) if !rebuilt => {
                rebuilt = true;
                set_aside(path)?;
            }
            Err(Trouble::Foreign) => return memory("not a history"),
            Err(Trouble::Database(e)) => match cure(&e) {
                Cure::Rebuild if !rebuilt => {
                    rebuilt = true;
                    set_aside(path)?;
                }
                // Switching to the write-ahead log does not wait for others by itself.
                _ if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Cure::Fail => return Err(failed(path, e)),
                _ => return memory(&e.to_string()),
            },
        }
    }
}

enum Trouble {
    Newer(i64),
    Foreign,
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(e: rusqlite::Error) -> Trouble {
        Trouble::Database(e)
    }
}

fn connect(path: &Path) -> Result<Connection, Trouble> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if tables > 0 && application != APPLICATION {
        return Err(Trouble::Foreign);
    }
    if version > VERSION {
        return Err(Trouble::Newer(version));
    }
    let check: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if check != "ok" {
        return Err(Trouble::Foreign);
    }
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Makes the tables where they are missing; one process at a time, all or nothing.
fn migrate(connection: &mut Connection) -> Result<(), Trouble> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    if version == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |r| r.get(0))?;
    if version == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

fn memory(why: &str) -> Result<(Connection, Option<String>)> {
    let fail = |e| failed(Path::new("memory"), e);
    let mut connection = Connection::open_in_memory().map_err(fail)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(fail)?;
    match migrate(&mut connection) {
        Ok(()) => Ok((connection, Some(why.to_string()))),
        Err(Trouble::Database(e)) => Err(fail(e)),
        Err(_) => Err(Error::internal("HISTORY", "an empty database has contents")),
    }
}

/// Keeps a file that cannot be used, with its log, under a name that says when.
fn set_aside(path: &Path) -> Result<()> {
    let time = crate::jobs::clock::wall_ms();
    for suffix in ["", "-wal", "-shm"] {
        let mut from = path.as_os_str().to_os_string();
        from.push(suffix);
        let mut to = path.as_os_str().to_os_string();
        to.push(format!(".bad-{time}{suffix}"));
        match fs::rename(PathBuf::from(&from), PathBuf::from(to)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("set the damaged history aside", PathBuf::from(from), e)),
        }
    }
    Ok(())
}
